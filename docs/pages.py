"""Runs the programs of a page, and compares what they print with what the page says.

A page is Markdown.  All its blocks of Python run in their order, as one program, in an empty folder:

    ```python
    print(2 / 3)
    ```

    ```text
    0.666...
    ```

A block of text that follows is what the block before it prints, `...` standing for anything.  A picture is what the
program saves, as by `plt.savefig("curve.svg")`, and `![The loss](curve.svg)` shows it.  Without Matplotlib the blocks
that import it are left out, so each block that draws imports it.

    python -m docs.pages docs/recipes/*.md
"""

import io
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy

from bpnet import registry

HERE = Path(__file__).parent

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", flags=re.DOTALL | re.MULTILINE)
"""A block of Python, and the block of text that follows it, if one does."""
IMPORTED = re.compile(r"^\s*(?:import|from) (\w+)", flags=re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]+\]\(([^):]+)\)")

STYLE = {
    "figure.figsize": (6.4, 3.6), "savefig.bbox": "tight", "svg.hashsalt": "bpnet",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
"""Of every picture."""


class PageError(Exception):
    """A page says something else than its programs do."""


@dataclass(frozen=True)
class Block:
    """A program of a page, the line at which it starts, counted from 0, and what it is to print, if the page says."""

    code: str
    line: int
    prints: str | None

    @property
    def draws(self) -> bool:
        return "matplotlib" in IMPORTED.findall(self.code)


def pages() -> list[Path]:
    """Every page that is written by hand."""
    return sorted(HERE.rglob("*.md"))


def blocks(text: str) -> list[Block]:
    """The programs of a page."""
    return [Block(found[1], text[: found.start(1)].count("\n"), found[2]) for found in BLOCK.finditer(text)]


def missing(path: Path) -> list[str]:
    """Modules that the page needs and that are not installed, Matplotlib aside."""
    needed = {name for block in blocks(path.read_text(encoding="utf-8")) for name in IMPORTED.findall(block.code)}
    return sorted(name for name in needed - {"matplotlib"} if find_spec(name) is None)


def run(path: Path) -> dict[str, bytes]:
    """Run a page; the pictures that it shows, by name.

    Raises PageError where something else is printed than the page says, or a picture is not drawn, and whatever its
    programs raise.  A warning is an error.
    """
    text, has_matplotlib = path.read_text(encoding="utf-8"), find_spec("matplotlib") is not None
    space: dict[str, Any] = {"__name__": f"docs.{path.stem.replace('-', '_')}"}
    with tempfile.TemporaryDirectory() as folder, _surroundings(folder):
        for block in blocks(text):
            if not block.draws:
                _run_block(path, block, space)
            elif has_matplotlib:
                with _drawing():
                    _run_block(path, block, space)
        wanted = [name for name in PICTURE.findall(text) if not (path.parent / name).exists()]
        drawn = {name: Path(folder, name).read_bytes() for name in wanted if Path(folder, name).exists()}
    if has_matplotlib and len(drawn) < len(set(wanted)):
        raise PageError(f"{path} shows {', '.join(set(wanted) - drawn.keys())}, which no block of it saves")
    return drawn


def _run_block(path: Path, block: Block, space: dict[str, Any]) -> None:
    with redirect_stdout(io.StringIO()) as out:
        exec(compile("\n" * block.line + block.code, str(path), "exec"), space)
    printed = out.getvalue()
    if block.prints is not None and not equal(printed, block.prints):
        raise PageError(f"{path}, line {block.line + 1}, says\n\n{block.prints}\nbut prints\n\n{printed}")


def equal(printed: str, said: str) -> bool:
    """Whether a program prints what a page says: `...` is anything, and blanks at the ends of lines don't count."""
    plain = ["\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (printed, said)]
    return re.fullmatch(re.escape(plain[1]).replace(re.escape("..."), ".*?"), plain[0], flags=re.DOTALL) is not None


@contextmanager
def _surroundings(folder: str) -> Iterator[None]:
    """A folder to work in and warnings as errors; print options and the registry of classes are the page's own."""
    others = [
        (known, name, known.pop(name))
        for known in registry._classes.values()
        for name in [name for name, cls in known.items() if not cls.__module__.startswith("bpnet.")]
    ]
    try:
        with chdir(folder), warnings.catch_warnings(), numpy.printoptions():
            warnings.simplefilter("error")
            yield
    finally:
        for known in registry._classes.values():
            for name in [name for name, cls in known.items() if cls.__module__.startswith("docs.")]:
                del known[name]
        for known, name, cls in others:
            known[name] = cls


@contextmanager
def _drawing() -> Iterator[None]:
    """Matplotlib without a screen, in the style of all pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        try:
            yield
        finally:
            pyplot.close("all")


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or pages():
        print(page, *run(page.resolve()))
