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

HOST = """\
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <ucontext.h>
#include <utility>
using std::erf; using std::exp; using std::expm1; using std::fabs; using std::log; using std::log1p; using std::sqrt;
using std::tanh;
struct Three { unsigned int x, y; };
static Three gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)

// The threads of a block take turns, each until it waits for the others or is done, on a stack of its own.
enum { MOST = 1024, STACK = 1 << 15 };
struct Thread { ucontext_t start; jmp_buf at; bool begun, waits; };
static Thread threads[MOST];
static jmp_buf back;
static size_t now;
static ucontext_t nowhere;

static void turn_over(bool waits) {
    threads[now].waits = waits;
    if (!_setjmp(threads[now].at)) _longjmp(back, 1);
}

static void __syncthreads() { turn_over(true); }

static void __threadfence() {}

static unsigned int atomicAdd(unsigned int* at, unsigned int more) {
    const unsigned int before = *at;
    *at += more;
    return before;
}

template <typename F> static F* running;
template <typename F> static void enter() {
    for (;;) {
        (*running<F>)();
        turn_over(false);
    }
}

// whether the threads of every block came to the same barriers
template <typename F> static bool run(Three grid, Three block, F body, char* stacks) {
    gridDim = grid, blockDim = block, running<F> = &body;
    const size_t count = block.x * block.y;
    for (size_t i = 0; i < count && stacks; ++i) {
        threads[i].begun = false;
        getcontext(&threads[i].start);
        threads[i].start.uc_stack.ss_sp = stacks + i * STACK, threads[i].start.uc_stack.ss_size = STACK;
        makecontext(&threads[i].start, enter<F>, 0);
    }
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        for (volatile size_t turn = 0, waiting = count; waiting; turn = turn + 1) {
            for (volatile size_t k = 0; k < count; k = k + 1) {
                now = turn % 2 ? count - 1 - k : k;  // in no order on which a kernel might rely
                threadIdx = {(unsigned int)(now % block.x), (unsigned int)(now / block.x)};
                if (!stacks) {
                    body();
                } else if (!_setjmp(back)) {
                    if (threads[now].begun) _longjmp(threads[now].at, 1);
                    threads[now].begun = true;
                    swapcontext(&nowhere, &threads[now].start);
                }
            }
            waiting = 0;
            for (size_t i = 0; i < count && stacks; ++i) waiting = waiting + threads[i].waits;
            if (waiting && waiting != count) return false;
        }
    }
    return true;
}

template <typename... A, size_t... I>
static bool call(
    Three grid, Three block, void (*kernel)(A...), void** given, char* stacks, std::index_sequence<I...>
) {
    return run(grid, block, [=] { kernel(*(A*)given[I]...); }, stacks);
}

template <typename... A> static bool call(Three grid, Three block, void (*kernel)(A...), void** given, char* stacks) {
    return call(grid, block, kernel, given, stacks, std::index_sequence_for<A...>());
}
"""


class Three(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint)]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """run(code, kernel, launch, *arguments): a kernel's text compiled for this processor and run, thread by thread."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "host.hpp").write_text(HOST)
    command = [compiler, "-std=c++17", "-O0", "-ffp-contract=off", "-w", "-fPIC"]
    subprocess.run([*command, "-x", "c++-header", "host.hpp"], cwd=folder, check=True)  # is read in no time from now on
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
            path.write_text('#include "host.hpp"\n' + code + "".join(ways))
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
