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

A block with a title is a file of that name, and one of a console is commands, each after a `$`, and what they print to
standard output:

    ```python title="train.py"
    print("trained")
    ```

    ```console
    $ python train.py
    trained
    ```

    python -m docs.pages docs/recipes/*.md
"""

import io
import os
import re
import shlex
import shutil
import subprocess
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

BLOCK = re.compile(
    r'^```(?P<kind>python|console|\w+ title="(?P<file>[^"]+)")\n(?P<code>.*?)^```$'
    r"(?:\s*^```text\n(?P<prints>.*?)^```$)?",
    flags=re.DOTALL | re.MULTILINE,
)
"""A block that does something, and the block of text that follows it, if one does."""
IMPORTED = re.compile(r"^\s*(?:import|from) (\w+)", flags=re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]+\]\(([^):]+)\)")

COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", flags=re.MULTILINE)
"""A command of a console, and what it prints."""
OURS = {"python": [sys.executable], "bpnet": [sys.executable, "-m", "bpnet"]}
"""Programs of a console that are those of this environment."""
NEEDS = {"mpiexec": "mpi4py"}
"""Modules without which a program of a console does nothing here."""
AROUND = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH", "")))),
    "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", ""))),
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
"""What programs of a console find in their environment; Open MPI wants to be told that ranks may outnumber cores."""

STYLE = {
    "figure.figsize": (6.4, 3.6), "savefig.bbox": "tight", "svg.hashsalt": "bpnet",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
"""Of every picture."""


class PageError(Exception):
    """A page says something else than its programs do."""


@dataclass(frozen=True)
class Block:
    """What a page does: `code`, the line at which it starts, counted from 0, and what it is to print, if the page says.

    `kind` is "python", "console" or "file", which is to have the name `file`.
    """

    code: str
    line: int
    prints: str | None = None
    kind: str = "python"
    file: str = ""

    @property
    def draws(self) -> bool:
        return self.kind == "python" and "matplotlib" in IMPORTED.findall(self.code)

    @property
    def modules(self) -> set[str]:
        """The modules that it needs."""
        if self.kind == "console":
            return {NEEDS[program] for program in self.programs & NEEDS.keys()}
        return set(IMPORTED.findall(self.code)) if self.kind == "python" or self.file.endswith(".py") else set()

    @property
    def programs(self) -> set[str]:
        """The programs that it needs, of a console."""
        commands = COMMAND.findall(self.code) if self.kind == "console" else []
        return {shlex.split(command)[0] for command, _ in commands} - OURS.keys()


def pages() -> list[Path]:
    """Every page that is written by hand."""
    return sorted(HERE.rglob("*.md"))


def blocks(text: str) -> list[Block]:
    """What a page does, in its order."""
    return [
        Block(
            found["code"],
            text[: found.start("code")].count("\n"),
            found["prints"],
            "file" if found["file"] else found["kind"],
            found["file"] or "",
        )
        for found in BLOCK.finditer(text)
    ]


def missing(path: Path) -> list[str]:
    """Modules, Matplotlib aside, and programs that the page needs and that are not installed."""
    does = blocks(path.read_text(encoding="utf-8"))
    modules = {name for block in does for name in block.modules} - {"matplotlib"}
    programs = {name for block in does for name in block.programs}
    return sorted(
        {name for name in modules if find_spec(name) is None}
        | {name for name in programs if shutil.which(name, path=AROUND["PATH"]) is None}
    )


def run(path: Path) -> dict[str, bytes]:
    """Run a page; the pictures that it shows, by name.

    Raises PageError where something else is printed than the page says, or a picture is not drawn, and whatever its
    programs raise.  A warning is an error.
    """
    text, has_matplotlib = path.read_text(encoding="utf-8"), find_spec("matplotlib") is not None
    space: dict[str, Any] = {"__name__": f"docs.{path.stem.replace('-', '_')}"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _surroundings(folder):
        for block in blocks(text):
            if block.kind == "file":
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(block.code, encoding="utf-8")
            elif block.kind == "console":
                _run_commands(path, block)
            elif not block.draws:
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


def _run_commands(path: Path, block: Block) -> None:
    """Run the commands of a console one after the other."""
    for found in COMMAND.finditer(block.code):
        words = [part for word in shlex.split(found[1]) for part in OURS.get(word, [word])]
        words[0] = shutil.which(words[0], path=AROUND["PATH"]) or words[0]
        options: dict[str, Any] = {"env": os.environ | AROUND, "timeout": 120, "capture_output": True, "text": True}
        done = subprocess.run(words, stdin=subprocess.DEVNULL, **options)
        if done.returncode or not equal(done.stdout, found[2]):
            place = f"{path}, line {block.line + block.code[: found.start()].count(chr(10)) + 1}"
            raise PageError(
                f"{place}: {found[1]} is to print\n\n{found[2]}\nbut prints\n\n{done.stdout}\n"
                f"and ends with {done.returncode}\n\n{done.stderr}"
            )


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
        for name in [name for name, having in known.items() if not having[-1].__module__.startswith("bpnet.")]
    ]
    try:
        with chdir(folder), warnings.catch_warnings(), numpy.printoptions():
            warnings.simplefilter("error")
            yield
    finally:
        for known in registry._classes.values():
            for name in [name for name, having in known.items() if having[-1].__module__.startswith("docs.")]:
                del known[name]
        for known, name, having in others:
            known[name] = having


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
