"""What the first minute on a CUDA device is for: facts, a line of JSON each, written as soon as they are found.

    python -m bench.first_minute FILE [--small] [--no-pool] [--part NAME ...]

Each part goes on where another fails.  ``--small`` takes small shapes, for a rehearsal where the host is the device;
``--no-pool`` gives every array memory of its own, so that compute-sanitizer sees where each ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cupy
import numpy as np

import bpnet as bp
from bench.contenders.bpnet_trainer import trainer_for
from bench.visit import EQUAL_STEPS, LIMITS, PRODUCTS, SHAPES, STEPS
from bench.workloads import WORKLOADS, Task
from bpnet.backends.cupy import cublaslt
from bpnet.backends.cupy.compiled import Traced

SMALL_SHAPES = ((8, 16, 12), (8, 12, 10))
SMALL_STEPS = (("d", 8, "float32"), ("d", 8, "tf32"), ("d", 8, "bfloat16"), ("c", 8, "float32"))
"""What is taken in a rehearsal."""
TOGETHER = 8  # steps of one launch
QUEUED = 8  # steps that the host hands over without having to wait for a place in the device's queue
SLOW_FLOPS = 1e12  # of a step, from which ten of them are enough

Say = Callable[..., None]


class Facts:
    """The file; what is said goes there and to the screen, and whatever bpnet logs or warns of."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - until the process ends
        logger, handler = logging.getLogger("bpnet"), logging.Handler()
        handler.emit = lambda record: self.say("log", level=record.levelname, text=record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *about: self.say("warning", text=f"{about[0].__name__}: {message}")

    def say(self, what: str, **facts: Any) -> None:
        line = json.dumps({"what": what, **facts}, default=str)
        print(line, file=self.file)
        print(line, flush=True)


def device_us(work: Callable[[], object], times: int) -> float:
    """Microseconds of the device a call, of several in a row."""
    for _ in range(3):
        work()
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return round(1e3 * float(cupy.cuda.get_elapsed_time(begin, end)) / times, 2)


def host_us(work: Callable[[], object]) -> float:
    """Microseconds that the host is busy with a call: the median of some short rows of them."""
    found = []
    for _ in range(5):
        cupy.cuda.Device().synchronize()
        begin = time.perf_counter()
        for _ in range(QUEUED):
            work()
        found.append((time.perf_counter() - begin) / QUEUED)
    cupy.cuda.Device().synchronize()
    return round(1e6 * statistics.median(found), 2)


# ---- the parts, in the order of their worth -------------------------------------------------------------------------


def machine(say: Say, small: bool) -> None:
    """The device, versions, and what bpnet found of cuBLASLt."""
    found, properties = cublaslt.bindings(), cupy.cuda.runtime.getDeviceProperties(0)
    say(
        "machine",
        gpu=properties["name"].decode(),
        memory_gb=round(properties["totalGlobalMem"] / 1e9, 1),
        driver=cupy.cuda.runtime.driverGetVersion(),
        runtime=cupy.cuda.runtime.runtimeGetVersion(),
        bpnet=bp.__version__,
        cupy=cupy.__version__,
        numpy=np.__version__,
        cublaslt=found if isinstance(found, str) else found[0].get_version(),
        precisions=bp.backends.get("cupy").precisions(None),
    )


def equal(say: Say, small: bool) -> None:
    """Steps on the device and on the processor, in each precision: how far the parameters came apart on their way."""
    net = bp.Sequential(bp.Dense(64, "relu"), bp.BatchNorm(), bp.Dense(32, "gelu"), bp.Dense(5))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((150, 30)), rng.integers(0, 5, 150)
    for kind in ("float64", "float32", *(p for p in bp.backends.get("cupy").precisions(None) if p != "float32")):
        trainers = []
        for array, precision in ((np.asarray, "float32"), (cupy.asarray, kind)):
            dtype = "float64" if kind == "float64" else "float32"
            lower: Any = "float32" if precision == "float64" else precision
            trainer = bp.Trainer(net, "cross_entropy", bp.AdamW(epsilon=1e-4), clip_norm=1.0, precision=lower)
            given = array(x.astype(dtype)), array(y)
            trainer.build(given[0])
            start = cupy.asnumpy(trainer.theta).copy()
            trainer.fit(*given, epochs=EQUAL_STEPS // 3, batch_size=50, progress=False)
            trainers.append(trainer)
        ours, theirs = (cupy.asnumpy(trainer.theta) for trainer in trainers)
        apart = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours - start))
        losses = [trainer.history["loss"][-1] for trainer in trainers]
        say(
            "equal",
            kind=kind,
            steps=EQUAL_STEPS,
            apart=apart,
            ok=apart <= LIMITS[kind],
            loss=losses,
            **step_of(trainer),
        )


def step_of(trainer: Any) -> dict[str, Any]:
    """Of a trainer's step: how many commands it is, how many graphs it has, and whether it is captured at all."""
    step = trainer._engine.step
    programs = [program for program in step.programs.values() if isinstance(program, Traced)]
    return {
        "captured": step.captures,
        "graphs": sum(len(program.graphs) for program in programs),
        "commands": max((len(program.commands.commands) for program in programs), default=0),
    }


def products(say: Say, small: bool) -> None:
    """Which products cuBLASLt has on this device, and microseconds of each; null: it has none."""
    for precision in ("float32", "tf32", "bfloat16", "float64"):
        for rows, inputs, units in SMALL_SHAPES if small else SHAPES:
            if precision == "float64" and rows > 128:
                continue
            say(
                "product",
                precision=precision,
                shape=(rows, inputs, units),
                us=_products(precision, rows, inputs, units),
            )


def _products(precision: str, rows: int, inputs: int, units: int) -> dict[str, float | None]:
    """Of a dense layer: forward with every epilogue, and both derivatives."""
    factor = {"bfloat16": "bfloat16", "float64": "float64"}.get(precision, "float32")
    real = "float64" if factor == "float64" else "float32"
    precision = "float32" if factor == "float64" else precision
    x, w, dz = (
        cupy.zeros(n, "uint16" if factor == "bfloat16" else factor)
        for n in (rows * inputs, inputs * units, rows * units)
    )
    out, vector = cupy.empty(max(rows * units, inputs * units, rows * inputs), real), cupy.zeros(max(units, 16), real)
    workspace = cupy.empty(cublaslt.WORKSPACE, "uint8")
    plain, turned = (False, inputs, 0), (True, inputs, 0)
    sides = {
        "forward": (rows, units, inputs, plain, (False, units, 0), x, w),
        "dx": (rows, inputs, units, (False, units, 0), (True, units, 0), dz, w),
        "dw": (inputs, units, rows, turned, (False, units, 0), x, dz),
    }
    found: dict[str, float | None] = {}
    for name in PRODUCTS:
        side, _, rest = name.partition(" ")
        epilogue, _, result = rest.partition(" to ")
        if result and factor != result:
            continue
        m, n, k, of_a, of_b, a, b = sides[side]
        kinds = factor, result or real, precision, epilogue or "DEFAULT"
        problem = cublaslt.Problem(m, n, k, of_a, of_b, *kinds, accumulate=False)
        places = (
            a.data.ptr,
            b.data.ptr,
            out.data.ptr,
            vector.data.ptr if "BIAS" in kinds[-1] or "BGRAD" in kinds[-1] else 0,
        )

        try:
            plan = cublaslt.plan(problem, places)
            found[name] = None if plan is None else device_us(partial(plan.run, places, workspace.data.ptr), 20)
        except Exception as error:  # another may go
            found[name] = None
            found[f"{name}: {type(error).__name__}: {error}"] = None
    return found


def steps(say: Say, small: bool) -> None:
    """Microseconds a step of device and host, alone and eight at a launch."""
    for key, rows, precision in SMALL_STEPS if small else STEPS:
        workload, rng = WORKLOADS[key], np.random.default_rng(0)
        x = cupy.asarray(rng.standard_normal((rows, workload.inputs), dtype=np.float32))
        y = cupy.asarray(rng.integers(0, workload.outputs, rows))
        options = {} if precision == "float32" else {"precision": precision}
        trainer = trainer_for(Task(workload, "float32", rows, 1, "cuda", workload.timing, [], precision), **options)
        times = 10 if small or workload.product_flops(rows) > SLOW_FLOPS else 200

        def single(trainer: Any = trainer, x: Any = x, y: Any = y) -> None:
            trainer.step(x, y, check=False)

        facts: dict[str, Any] = {"device_us": device_us(single, times), "host_us": host_us(single), **step_of(trainer)}
        if (rows % TOGETHER == 0 and times > 10) or small:  # of batches of an eighth
            index = cupy.arange(rows, dtype="int32")

            def several(trainer: Any = trainer, x: Any = x, y: Any = y, index: Any = index) -> bool:
                if trainer._engine.run_steps(x, y, None, index, TOGETHER) is not None:
                    return True
                for part in cupy.split(index, TOGETHER):  # as `fit` does where there is no graph yet
                    trainer._engine.advance(x, y, None, part)
                return False

            several()
            if several():
                facts["device_us_of_eight"] = round(device_us(several, times // 5) / TOGETHER, 2)
        say("step", workload=key, rows=rows, precision=precision, **facts)


PARTS = {part.__name__: part for part in (machine, equal, products, steps)}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.first_minute", description=__doc__)
    top.add_argument("file", type=Path)
    top.add_argument("--small", action="store_true", help="small shapes, for a rehearsal")
    top.add_argument("--no-pool", action="store_true", help="without CuPy's memory pool")
    top.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    options = top.parse_args()
    if options.no_pool:
        cupy.cuda.set_allocator(None)
    parts = {name: PARTS[name] for name in options.part or PARTS}
    return attempted(parts, Facts(options.file).say, options.small)


def attempted(parts: Mapping[str, Callable[[Say, bool], None]], say: Say, small: bool) -> int:
    """The status after each part, of which those go on that come after one that fails."""
    failed = 0
    for name, part in parts.items():
        begin = time.perf_counter()
        try:
            part(say, small)
        except Exception as error:  # what comes after it may be well
            failed += 1
            say("failed", part=name, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc(limit=-4))
        say("done", part=name, seconds=round(time.perf_counter() - begin, 2))
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
