"""The site: programs of its pages run and print what they say, links lead somewhere, nothing public is left out."""

import posixpath
import re
import sys
from pathlib import Path

import pytest

import bpnet as bp
from docs import pages
from docs.docstrings import as_markdown

PAGES = [path.relative_to(pages.HERE).as_posix() for path in pages.pages()]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(page: str) -> None:
    path = pages.HERE / page
    if missing := pages.missing(path):
        pytest.skip(f"{', '.join(missing)} is not installed")
    try:
        pages.run(path)
    finally:
        if "ray" in sys.modules:  # whose processes are not to outlive a page that failed
            sys.modules["ray"].shutdown()


def page_of(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text.replace("'''", "```"), encoding="utf-8")
    return path


TWO_BLOCKS = """
'''python
import bpnet as bp
class OfAPage(bp.Layer):
    pass
print(2 / 3, OfAPage.__name__)
'''

'''text
0.666... OfAPage
'''

More of it:

'''python
print({})
'''
'''text
end
'''
"""


def test_blocks_are_one_program_whose_output_counts(tmp_path: Path) -> None:
    for _ in range(2):  # and leave no class behind
        assert pages.run(page_of(tmp_path, TWO_BLOCKS.format("'end' if OfAPage else 0"))) == {}
    with pytest.raises(pages.PageError, match=r"page.md, line 16, says\n\nend\n\nbut prints\n\nanother"):
        pages.run(page_of(tmp_path, TWO_BLOCKS.format("'another'")))
    with pytest.raises(ZeroDivisionError) as raised:
        pages.run(page_of(tmp_path, TWO_BLOCKS.format("1 / 0")))
    assert (raised.traceback[-1].path, raised.traceback[-1].lineno + 1) == (tmp_path / "page.md", 16)


CONSOLE = """
'''python title="programs/add.py"
import sys
print(int(sys.argv[1]) + 1)
'''

'''console
$ python programs/add.py 41
42
$ python -c "print('first'); print('second')"
...
{}
'''
"""


def test_programs_of_a_page_are_run_as_a_reader_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.run(page_of(tmp_path, CONSOLE.format("second"))) == {}
    with pytest.raises(
        pages.PageError, match=r"page.md, line 10: python -c [^\n]* is to print\n\n\.\.\.\nthird\n\nbut prints\n\nfirst"
    ):
        pages.run(page_of(tmp_path, CONSOLE.format("third")))
    with pytest.raises(pages.PageError, match=r"ends with 3"):
        pages.run(page_of(tmp_path, "'''console\n$ python -c 'raise SystemExit(3)'\n'''\n"))
    needy = "'''python title=\"a.py\"\nimport no_module\n'''\n'''console\n$ no_program -n 2\n'''\n"
    assert pages.missing(page_of(tmp_path, needy)) == ["no_module", "no_program"]
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    assert "mpi4py" in pages.missing(page_of(tmp_path, "'''console\n$ mpiexec -n 2 python train.py\n'''\n"))


@pytest.mark.filterwarnings("ignore")
def test_a_warning_fails_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, "'''python\nimport warnings\nwarnings.warn('careful')\n'''\n")
    with pytest.raises(UserWarning, match="careful"):
        pages.run(page)


def test_a_picture_is_what_a_page_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    draws = (
        "'''python\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('{}')\n'''\n![A line](line.svg)\n"
    )
    page = page_of(tmp_path, draws.format("line.svg"))
    assert b"<svg" in pages.run(page)["line.svg"]
    with pytest.raises(pages.PageError, match=r"shows line.svg, which no block of it saves"):
        pages.run(page_of(tmp_path, draws.format("curve.svg")))
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    assert pages.missing(page) == []
    assert pages.run(page) == {}  # without Matplotlib nothing is drawn
    assert pages.missing(page_of(tmp_path, "'''python\nfrom cupy import linalg\n'''\n")) == ["cupy"]


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The pages of the reference."""
    pytest.importorskip("typer", reason="typer, of the extra cli, is not installed")
    from docs import reference

    return reference.pages()


def test_links_and_the_navigation_lead_to_pages(generated: dict[str, str]) -> None:
    link = re.compile(r"(?<!!)\[[^\]]*\]\((?!https?://)([^)\s#]*)(?:#(bpnet\.[\w.]+))?[^)\s]*\)")
    for page in PAGES:
        text = (pages.HERE / page).read_text(encoding="utf-8")
        for target, name in link.findall(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page
            assert place in generated or place in PAGES, f"{page} leads to {target}"
            assert not name or f"::: {name}\n" in generated[place], f"{page} leads to {name}"
    config = (pages.HERE.parent / "zensical.toml").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"([\w/-]+\.md)"', config)) == sorted([*PAGES, *generated])


def test_the_reference_has_every_public_name(generated: dict[str, str]) -> None:
    described = re.findall(r"^::: bpnet\.(\w+)$", "".join(generated.values()), flags=re.MULTILINE)
    assert set(bp.__all__) - {"__version__"} == set(described)
    assert len(set(described)) == len(described)


def test_a_docstring_becomes_markdown() -> None:
    text = """\
y = x**2 + z_k where 0 < x, a `Layer` or `bp.Dense` of `units`.

    dL/dx = 2 x dL/dy

Options
-------
units, width : how many, say
    some * 2
and so on : as [0]

- `rate`: a*b*c
"""
    assert as_markdown(text) == (
        "y = x\\*\\*2 + z\\_k where 0 &lt; x, a [`Layer`][bpnet.Layer] or [`bp.Dense`][bpnet.Dense] of `units`.\n\n"
        "    dL/dx = 2 x dL/dy\n\n"
        "**Options**\n\n\n`units`, `width`\n:   how many, say\n    some \\* 2\n"
        "and so on : as \\[0\\]\n\n"
        "- `rate`: a\\*b\\*c"
    )
