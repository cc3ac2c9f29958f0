"""What bpnet/compiler/README.md shows is what the compiler makes today; this file as a program writes it anew."""

import re
from pathlib import Path
from typing import Any

import pytest

import bpnet as bp
from bpnet.compiler.cuda import emit
from bpnet.compiler.cuda.launch import width_of

README = Path(bp.__file__).parent / "compiler" / "README.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)
BLOCKS = [text for _, text in BLOCK.findall(README.read_text(encoding="utf-8"))]
SPACE: dict[str, Any] = {}
exec(BLOCKS[0], SPACE)


def inner_loop() -> str:
    """The inner loop of the last command's kernel, with values numbered from 0, for registers of 32 bytes."""
    from llvmlite import ir

    from bpnet.compiler.llvm import fused

    module = ir.Module("kernel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "vector_bytes", lambda: 32)
        fused.write_fused(module, "kernel", SPACE["commands"].commands[-1].kernel, False)
    text = str(module)
    body = text[text.index("head.1:") : text.index("end.1:")].replace('"', "")
    lines = [line for line in body.splitlines() if " bitcast ptr " not in line]
    for name, source in re.findall(r"(%\.\d+) = bitcast ptr (%\.\d+)", body):
        lines = [re.sub(rf"{re.escape(name)}\b", source, line) for line in lines]
    found = "\n".join(lines).replace("<float undef, " + "float undef, " * 6 + "float undef>", "undef")
    found = found.replace("<i32 0, " + "i32 0, " * 6 + "i32 0>", "zeroinitializer").replace("phi  ", "phi ")
    numbers: dict[str, str] = {}
    return re.sub(r"%\.\d+", lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), found)


def cuda() -> str:
    """The last command's kernel as CUDA."""
    kernel = SPACE["commands"].commands[-1].kernel
    text = emit.source(kernel, emit.Variant(width_of(kernel)))
    return text[text.index('extern "C"') :]


def shown(number: int) -> str:
    """What the block of that number is to be."""
    commands = SPACE["commands"]
    made = [BLOCKS[0], SPACE["traced"].graph, commands, commands.commands[3].kernel]
    text = str(made[number]) if number < 4 else inner_loop() if number == 4 else cuda()
    return text.rstrip() + "\n"


@pytest.mark.parametrize("number", range(1, 6))
def test_what_is_shown_is_what_is_made(number: int) -> None:
    if number == 4:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    assert BLOCKS[number] == shown(number), f"python {Path(__file__).relative_to(Path.cwd())} writes it anew"


if __name__ == "__main__":
    numbers = iter(range(6))
    text = README.read_text(encoding="utf-8")
    README.write_text(
        BLOCK.sub(lambda m: f"```{m[1]}\n{shown(n) if (n := next(numbers, 9)) < 6 else m[2]}```", text),
        encoding="utf-8",
    )
