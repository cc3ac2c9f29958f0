"""Kernels whose threads wait for each other, with an OS thread for each, under ThreadSanitizer.

It finds two accesses to the same memory that nothing orders, in whatever order they happened to be done.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cuda import KERNEL, kernel_of

from bpnet.compiler.commands import Expression, Fused, FusedKernel, KernelResult
from bpnet.compiler.cuda import emit, launch

SUPPORT = Path(__file__).parents[1] / "support"


def in_phases(expressions: list[Expression], results: list[KernelResult]) -> FusedKernel:
    """A kernel that knows two column-wise sums, values 2 and 3, before it does what follows."""
    sums = [("column_sum", "per_column", 0, ("value", i)) for i in range(2)]
    operations = (*KERNEL.expressions, *sums, *expressions)
    return FusedKernel("float32", KERNEL.operands, 0, 0, operations, tuple(results))


AGAIN = in_phases(
    [
        ("subtract", "full", 1, ("value", 1), ("value", 2)),
        ("column_sum", "per_column", 1, ("value", 4)),
        ("multiply", "full", 2, ("value", 4), ("value", 5)),
    ],
    [("store", ("value", 6), 2, "full"), ("store", ("value", 3), 1, "per_column")],
)
LAST_BLOCK = in_phases(
    [("divide", "per_column", 1, ("value", 3), ("value", 2))],
    [("store", ("value", 1), 0, "full"), ("store", ("value", 4), 1, "per_column")],
)
CASES = {
    "map": (kernel_of("map", 0), 5, 40, 4),
    "columns": (kernel_of("columns", 2), 150, 24, 4),
    "columns, again": (AGAIN, 150, 24, 4),
    "columns, the last block goes on": (LAST_BLOCK, 150, 24, 4),
    "rows": (kernel_of("rows", 0), 11, 36, 1),
    "rows, columns": (kernel_of("rows", 2), 11, 36, 4),
    "long rows, columns": (kernel_of("rows", 1), 5, 80, 4),
}
"""A kernel, rows, columns, and elements that a thread takes at a time."""
SMALL = {"THREADS": 16, "COLUMN_THREADS": 4, "MAX_SUMMING": 4}
"""Of a block, and blocks of a launch."""
PLANTED = [
    *(("rows", "along_row", "__syncthreads();", i) for i in range(3)),
    *(("columns", "over_block", "__syncthreads();", i) for i in range(2)),
    *(("columns", "is_last", "__syncthreads();", i) for i in range(2)),
    *(("columns", "is_last", "__threadfence();", i) for i in range(2)),
    *(("columns, again", "down_columns", "__syncthreads();", i) for i in range(3)),
    *(("columns, the last block goes on", "is_last", "__syncthreads();", i) for i in range(2)),
    *(("columns, the last block goes on", "is_last", "__threadfence();", i) for i in range(2)),
]
"""A case, a function of it, and what is taken away there, the first of its kind, the second ..."""


def without(code: str, function: str, what: str, number: int) -> str:
    at = code.index(f" {function}(")
    for _ in range(number + 1):
        at = code.index(what, at + 1)
    assert "\n}" not in code[code.index(f" {function}(") : at]
    return code[:at] + code[at + len(what) :]


def namespace(name: str, case: str, change: Callable[[str], str] = lambda code: code) -> str:
    """A kernel and what runs it, as C++."""
    kernel, rows, columns, width = CASES[case]
    launched = launch.launch_of(Fused(kernel, rows, columns, (), (), (), (), ()), width)
    variant = emit.Variant(width, spread=launched.partial_rows > 0)
    code = change(emit.source.__wrapped__(kernel, variant)).replace('extern "C"', "")
    code = re.sub(r"__shared__ (\w+) (\w+)(.*?);", r"auto& \2 = shared<\1\3, __LINE__>();", code)
    (grid_x, grid_y), (block_x, block_y) = launched.sizes
    summed = launch.form_of(kernel) == "columns" and not kernel.goes_down_again  # by blocks one below the other
    assert (grid_y if summed else grid_x * grid_y) > 1
    arrays = [
        f"alignas(16) T memory{i}[{rows * columns}];\n" for i in range(len(kernel.operands) + len(kernel.results))
    ]
    names = ", ".join(f"memory{i}" for i in range(len(arrays)))
    return f"""\
namespace {name} {{
{code}{"".join(arrays)}T scratch[{launched.scratch}];
unsigned int tickets[{launch.most_tickets(columns)}];
void run() {{
    ::run({{{grid_x}, {grid_y}}}, {{{block_x}, {block_y}}}, [] {{
        fused({rows}, {columns}, {names}, scratch, tickets, nullptr);
    }});
    for (unsigned int ticket : tickets) if (ticket) std::abort();
}}
}}
"""


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What is found in the kernel of a namespace."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C++ compiler, or not Linux")
    folder = tmp_path_factory.mktemp("races")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            for module in (launch, emit):
                patch.setattr(module, name, value, raising=False)
        made = {f"true{i}": namespace(f"true{i}", case) for i, case in enumerate(CASES)}
        for i, (case, *what) in enumerate(PLANTED):
            made[f"planted{i}"] = namespace(f"planted{i}", case, lambda code, what=what: without(code, *what))
    ways = "".join(f'    if (std::string(arguments[1]) == "{name}") {name}::run();\n' for name in made)
    main = f"int main(int, char** arguments) {{\n{ways}}}\n"
    (folder / "races.cpp").write_text(f'#include "races.hpp"\n#include <string>\n{"".join(made.values())}{main}')
    command = [compiler, "-std=c++17", "-O1", "-fsanitize=thread", "-w", f"-I{SUPPORT}", "races.cpp", "-o", "races"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        done = subprocess.run([folder / "races", "nothing"], capture_output=True, text=True)
    if "tsan" in done.stderr or "ThreadSanitizer" in done.stderr:
        pytest.skip(f"no ThreadSanitizer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[:4000]

    def run(name: str) -> str:
        options = {"TSAN_OPTIONS": "halt_on_error=1"}  # who misses a barrier might wait for ever afterwards
        done = subprocess.run([folder / "races", name], capture_output=True, text=True, timeout=60, env=options)
        assert done.returncode == (66 if "data race" in done.stderr else 0), done.stderr[:4000]
        return done.stderr

    return run


@pytest.mark.parametrize("case", CASES)
def test_kernels_have_none(case: str, races: Callable[[str], str]) -> None:
    assert races(f"true{[*CASES].index(case)}") == ""


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: f"{p[1]} {p[2]} {p[3]}")
def test_none_of_the_orders_can_be_left_out(planted: tuple[str, str, str, int], races: Callable[[str], str]) -> None:
    assert "data race" in races(f"planted{PLANTED.index(planted)}")
