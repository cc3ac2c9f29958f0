"""CUDA C++ on the host, without a device: a C++ compiler's reading of kernels, and NVIDIA's compiler on its own.

The threads of a block take turns between barriers, one block after the other, on real memory.
"""

import ctypes
import functools
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpnet.compiler.cuda.emit import OPTIONS

THREADS = Path(__file__).parent / "support" / "threads.hpp"
"""What stands for CUDA's own names on the host."""


class Three(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint)]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """run(code, kernel, launch, *arguments): a kernel's text compiled for this processor and run, thread by thread."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    shutil.copy(THREADS, folder)
    command = [compiler, "-std=c++17", "-O0", "-ffp-contract=off", "-w", "-fPIC"]
    subprocess.run(
        [*command, "-x", "c++-header", THREADS.name], cwd=folder, check=True
    )  # is read in no time from now on
    made: dict[str, Any] = {}
    stacks = ctypes.create_string_buffer(1024 << 15)

    def run(code: str, kernel: str, launch: Any, *arguments: Any) -> None:
        if code not in made:
            path: Path = folder / f"k{len(made)}.cpp"
            ways = [
                f'extern "C" bool launch_{name}(Three grid, Three block, void** given, char* stacks) {{ '
                f"return call(grid, block, {name}, given, stacks); }}\n"
                for name in re.findall(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(", code)
            ]
            path.write_text(f'#include "{THREADS.name}"\n' + code + "".join(ways))
            subprocess.run([*command, "-shared", path.name, "-o", f"{path.stem}.so"], cwd=folder, check=True)
            made[code] = ctypes.CDLL(str(path.with_suffix(".so")))
        way = getattr(made[code], f"launch_{kernel}")
        way.restype = ctypes.c_bool
        given = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        room = stacks if "__syncthreads" in code else None  # who waits for nobody needs no stack of its own
        assert way(*(Three(*sizes) for sizes in launch), given, room), "threads of a block wait at different places"

    return run


def aligned(a: np.ndarray) -> np.ndarray:
    """A copy of `a` that begins at a multiple of 16 bytes."""
    memory = np.empty(a.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


ARCHITECTURES = ("sm_80", "sm_90")
"""What kernels are compiled for here, a sixth of a second each."""


MOST_REGISTERS, MOST_STACK = 128, 16
"""Of a thread.  A multiprocessor has registers for two blocks of 256 then; and a few bytes are what NVIDIA's compiler
puts into local memory of its own accord, if one block more fits so."""


@functools.cache
def compiled(code: str) -> None:
    """NVIDIA's compiler takes it, and what a thread holds lies in registers."""
    for architecture in ARCHITECTURES:
        nvrtc, program = by_nvrtc(code, architecture, "--ptxas-options=-v")
        assert len(nvrtc.getCUBIN(program)) > 1000
        log = nvrtc.getProgramLog(program)
        ((stack, registers),) = re.findall(r"(\d+) bytes stack frame.*?Used (\d+) registers", log, re.DOTALL)
        assert int(stack) <= MOST_STACK, log
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
