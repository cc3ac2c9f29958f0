"""Machine code is made anew when anything changes that decides about it."""

import ast
from pathlib import Path

import pytest

import bpnet as bp

FOLDER = Path(bp.__file__).parent / "compiler"


def test_the_key_covers_every_source_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    from bpnet.compiler.llvm import jit

    before = jit._sources.__wrapped__()
    read = Path.read_bytes
    for changed in FOLDER.rglob("*.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, c=changed: read(path) + b" " * (path == c))
        assert jit._sources.__wrapped__() != before, changed


def test_nothing_else_decides_what_is_written() -> None:
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            ours = module.startswith("bpnet.") and module not in ("bpnet.disk", "bpnet.errors")
            assert not ours or module.startswith("bpnet.compiler"), f"{path} imports {module}"
