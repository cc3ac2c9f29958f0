"""NVIDIA's compiler, which needs no device: whether it takes a kernel's text, and what it makes of it."""

import functools
import importlib.metadata
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpnet.compiler.cuda.emit import OPTIONS

ARCHITECTURES = ("sm_80", "sm_90")
"""What kernels are compiled for here, a sixth of a second each."""
MOST_REGISTERS, MOST_STACK = 128, 16
"""Of a thread.  A multiprocessor has registers for two blocks of 256 then; and a few bytes are what NVIDIA's compiler
puts into local memory of its own accord, if one block more fits so."""
OF_LARGE_ANGLES = 32
"""Bytes more in which CUDA's sine and cosine hold bits of 2/pi, for angles far beyond those of a network."""


@functools.cache
def compiled(code: str) -> None:
    """NVIDIA's compiler takes it, and what a thread holds lies in registers."""
    for architecture in ARCHITECTURES:
        nvrtc, program = by_nvrtc(code, architecture, "--ptxas-options=-v")
        assert len(nvrtc.getCUBIN(program)) > 1000
        log = nvrtc.getProgramLog(program)
        ((stack, registers),) = re.findall(r"(\d+) bytes stack frame.*?Used (\d+) registers", log, re.DOTALL)
        assert int(stack) <= MOST_STACK + (OF_LARGE_ANGLES if re.search(r"\b(sin|cos)\(", code) else 0), log
        assert int(registers) <= MOST_REGISTERS, log


def by_nvrtc(code: str, architecture: str, *options: str) -> Any:
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    try:
        program = nvrtc.createProgram(code, "rule.cu", [], [])
    except Exception as error:  # CuPy without NVIDIA's compiler
        pytest.skip(f"NVRTC can't be used: {error}")
    try:
        nvrtc.compileProgram(program, [f"-arch={architecture}", *OPTIONS, *options])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    return nvrtc, program


def machine_code(code: str, architecture: str, folder: Path) -> dict[str, list[str]]:
    """Of every kernel of a text, the instructions that a device of this architecture is given, in their order."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvidia-cuda-nvdisasm is not installed")
    (tool,) = (str(file.locate()) for file in files if file.stem == "nvdisasm")
    nvrtc, program = by_nvrtc(code, architecture)
    (folder / "kernels").write_bytes(nvrtc.getCUBIN(program) + b"\0")  # which CuPy has taken for the end of a text
    command = [tool, "-ndf", "-c", str(folder / "kernels")]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"^\.text\.(\w+):$", listing, flags=re.MULTILINE)
    return {
        name: re.findall(r"\*/\s+(?:@\S+ )?([A-Z][\w.]+)", text)
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }
