"""What bpnet/compiler/README.md shows is what the compiler makes today."""

import re
from pathlib import Path
from typing import Any

import pytest

import bpnet as bp

README = Path(bp.__file__).parent / "compiler" / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
SPACE: dict[str, Any] = {}
exec(BLOCKS[0][1], SPACE)


def inner_loop() -> str:
    """The body of the inner loop of the last command's kernel, with values numbered from 0."""
    from llvmlite import ir

    from bpnet.compiler.llvm import fused

    module = ir.Module("kernel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "vector_bytes", lambda: 32)
        fused.write_fused(module, "kernel", SPACE["commands"].commands[8].kernel, False)
    text = str(module)
    body = text[text.index("head.1:") : text.index("end.1:")].replace('"', "")
    lines = [line for line in body.splitlines() if " bitcast ptr " not in line]
    for name, source in re.findall(r"(%\.\d+) = bitcast ptr (%\.\d+)", body):
        lines = [re.sub(rf"{re.escape(name)}\b", source, line) for line in lines]
    numbers: dict[str, str] = {}
    found = "\n".join(lines).replace("<float undef, " + "float undef, " * 6 + "float undef>", "undef")
    found = found.replace("<i32 0, " + "i32 0, " * 6 + "i32 0>", "zeroinitializer")
    return re.sub(r"%\.\d+", lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), found)


def shown() -> dict[str, str]:
    commands = SPACE["commands"]
    made = [SPACE["traced"].graph, commands, commands.commands[3].kernel]
    return {f"{i}": str(one) for i, one in enumerate(made, 1)}


@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_what_is_printed_is_what_is_made(number: str) -> None:
    assert BLOCKS[int(number)][1].rstrip() == shown()[number].rstrip()


def test_the_inner_loop_is_what_is_written() -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    assert BLOCKS[4][1].rstrip() == inner_loop().rstrip()
