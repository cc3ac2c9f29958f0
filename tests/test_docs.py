"""The site's pages: their programs run and print what they say, their links lead somewhere."""

import re
from pathlib import Path

import pytest

import bpnet as bp
from docs import pages

PAGES = [str(path.relative_to(pages.HERE)) for path in pages.pages()]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(page: str) -> None:
    path = pages.HERE / page
    if missing := pages.missing(path):
        pytest.skip(f"{', '.join(missing)} is not installed")
    pages.run(path)


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


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_to_pages(page: str) -> None:
    path = pages.HERE / page
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if not target.startswith(("#", "https://")):
            there = (path.parent / target.partition("#")[0]).resolve()
            assert there.exists() or there.parent == pages.HERE / "reference", target


def test_the_reference_has_every_public_name() -> None:
    pytest.importorskip("typer", reason="typer, of the extra cli, is not installed")
    from docs import reference

    described = re.findall(r"^::: bpnet\.(\w+)$", "".join(reference.pages().values()), flags=re.MULTILINE)
    assert set(bp.__all__) - {"__version__"} == set(described)
    assert len(set(described)) == len(described)
