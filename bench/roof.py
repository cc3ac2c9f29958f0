"""What the device can do at most, as it is measured: bytes moved by a copy, and operations of a large product.

A process of its own measures it, ``python -m bench.roof``, and writes JSON; CUDA events keep the time.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy

from bench.plan import ROOT
from bench.workloads import PRECISIONS, WORKLOADS

SIZE = 8192  # rows and columns of the matrices
COPIED = 2**30  # bytes
UPDATE_BYTES = 28
TIMES = 5  # of which the best counts
PATIENCE = 120.0


def measured(patience: float = PATIENCE) -> dict[str, Any]:
    """Gigabytes a second read and written by a copy, and 1e12 operations a second of a product by precision.

    Where nothing can be measured in so many seconds, the reason under "absent".
    """
    environment = {name: value for name, value in os.environ.items() if name != "NVIDIA_TF32_OVERRIDE"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.roof"],
            cwd=ROOT,
            env=environment | {"CUPY_TF32": "0"},
            capture_output=True,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return {"absent": f"no answer in {patience:.0f} s"}
    if done.returncode:
        return {"absent": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rates(copy: float, products: Mapping[str, float]) -> dict[str, Any]:
    """The figures, from the seconds of a copy and of a product by precision."""
    return {
        "copy_gb_per_second": 2 * COPIED / copy / 1e9,
        "tflops": {precision: 2 * SIZE**3 / seconds / 1e12 for precision, seconds in products.items()},
    }


def of_case(found: Mapping[str, Any] | None, record: Mapping[str, Any]) -> dict[str, float]:
    """The least milliseconds of a training step at the measured rates: its products, and moving Adam's vectors once.

    Adam in one pass reads parameter, gradient and two moments and writes three: 28 bytes a parameter in float32.
    """
    precision = record.get("precision")
    if not found or record["device"] == "cpu" or record["mode"] != "step" or record["dtype"] != "float32":
        return {}
    rate = found.get("tflops", {}).get(precision)
    if rate is None:
        return {}
    workload = WORKLOADS[record["workload"]]
    return {
        "roof_products_ms": workload.product_flops(record["batch"]) / rate / 1e9,
        "roof_update_ms": UPDATE_BYTES * workload.parameter_count() / found["copy_gb_per_second"] / 1e6,
    }


def text(found: Mapping[str, Any]) -> str:
    """The figures in a line."""
    if "absent" in found:
        return f"The device's roof could not be measured: {found['absent']}"
    products = ", ".join(f"{rate:.0f} TFLOP/s in {precision}" for precision, rate in found["tflops"].items())
    return f"The device's roof: copies at {found['copy_gb_per_second']:.0f} GB/s, products at {products}"


def _on_device() -> dict[str, Any]:
    import cupy

    def best(work: Callable[[], Any]) -> float:
        seconds = []
        work(), work()
        for _ in range(TIMES):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
        return float(min(seconds))

    here, there = cupy.zeros(COPIED, "uint8"), cupy.zeros(COPIED, "uint8")
    copy = best(partial(cupy.copyto, there, here))
    del here, there
    exact = [cupy.random.default_rng(i).standard_normal((SIZE, SIZE), dtype="float32") for i in range(2)]
    products = {}
    for precision in PRECISIONS:
        try:
            if precision == "tf32":  # CuPy's own switch, by which CUPY_TF32 does the same
                linalg = cupy._core._routines_linalg
                linalg.set_compute_type(numpy.dtype("float32"), linalg.COMPUTE_TYPE_TF32)
            kind = exact[0].dtype if precision != "bfloat16" else importlib.import_module("ml_dtypes").bfloat16
            a, b = (matrix.astype(kind, copy=False) for matrix in exact)
            products[precision] = best(partial(cupy.matmul, a, b, out=cupy.empty_like(a)))
        except Exception as error:  # the others are worth having
            print(f"no product in {precision}: {error}", file=sys.stderr)
    return rates(copy, products)


if __name__ == "__main__":
    print(json.dumps(_on_device()))
