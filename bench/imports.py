"""How long ``import bpnet`` takes over ``import numpy``, and what it brings along: fresh interpreters, alternating."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from bench.plan import ROOT
from bench.report import columns, significant

STATEMENTS = {
    "numpy": "import numpy",
    "bpnet": "import numpy, bpnet",
    "bpnet.Trainer": "import numpy, bpnet; bpnet.Trainer",
}
_EXTRAS = (
    "llvmlite",
    "sklearn",
    "pandas",
    "polars",
    "torch",
    "jax",
    "cupy",
    "rich",
    "typer",
    "matplotlib",
    "pyarrow",
    "onnx",
    "mpi4py",
)
_PROGRAM = """
import json, sys, time
begin = time.perf_counter()
{statement}
seconds = time.perf_counter() - begin
print(json.dumps([seconds, [name for name in {extras!r} if name in sys.modules]]))
"""


def once(statement: str) -> tuple[float, list[str]]:
    """Seconds of the statement in a fresh interpreter, and the optional libraries it loaded."""
    program = _PROGRAM.format(statement=statement, extras=_EXTRAS)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, extras = json.loads(done.stdout)
    return seconds, extras


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Time every statement in each round, and give the extra over NumPy in the same round."""
    for statement in STATEMENTS.values():
        once(statement)  # so that byte code and files are there
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    loaded: dict[str, list[str]] = {}
    for _ in range(options.rounds):
        for name, statement in STATEMENTS.items():
            seconds, loaded[name] = once(statement)
            times[name].append(seconds * 1e3)
    rows = [["", "ms best", "ms median", "ms over numpy", "(min .. max)", "extras loaded"]]
    found: dict[str, Any] = {}
    for name, values in times.items():
        over = [value - base for value, base in zip(values, times["numpy"], strict=True)]
        found[name] = {
            "best_ms": min(values),
            "median_ms": statistics.median(values),
            "over_numpy_ms": {"median": statistics.median(over), "min": min(over), "max": max(over)},
            "extras": loaded[name],
        }
        cells = [significant(min(values)), significant(statistics.median(values)), significant(statistics.median(over))]
        rows.append(
            [f"import {name}", *cells, f"({min(over):.1f} .. {max(over):.1f})", ", ".join(loaded[name]) or "none"]
        )
    print(columns(rows))
    return found
