"""CUDA C++ on the host, without a device: a C++ compiler's reading of kernels, and NVIDIA's compiler on its own.

The threads of a block take turns between barriers, one block after the other, on real memory.
"""

import ctypes
import functools
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
                for name in re.findall(r"__global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\(", code)
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


@functools.cache
def compiled(code: str) -> None:
    for architecture in ARCHITECTURES:
        nvrtc, program = by_nvrtc(code, architecture)
        assert len(nvrtc.getCUBIN(program)) > 1000


def by_nvrtc(code: str, architecture: str) -> Any:
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    try:
        program = nvrtc.createProgram(code, "rule.cu", [], [])
    except Exception as error:  # CuPy without NVIDIA's compiler
        pytest.skip(f"NVRTC can't be used: {error}")
    try:
        nvrtc.compileProgram(program, [f"-arch={architecture}", *OPTIONS])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    return nvrtc, program
