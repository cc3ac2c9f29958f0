"""An epoch through ``Trainer.fit`` against the bare steps: what batching, shuffling, metrics and progress cost."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import time
from typing import Any

import numpy as np

from bench.contenders import ALL, Absent, subject_on
from bench.report import columns, significant
from bench.workloads import WORKLOADS, Task, pool, start_values


def epoch(
    key: str,
    batch: int,
    dtype: str,
    threads: int,
    rows: int,
    rounds: int,
    contender: str = "bpnet",
    device: str = "cpu",
    fed: bool = False,
) -> dict[str, Any]:
    """Seconds of an epoch both ways, alternating in one process; the progress bar is shown, to nobody.

    `fed` leaves the rows of `fit` in NumPy arrays, from which they stream to the device; else they lie there already.
    """
    from bench.contenders.bpnet_trainer import Bpnet

    workload = WORKLOADS[key]
    task = Task(workload, dtype, batch, threads, device, workload.timing, start_values(workload, dtype))
    count = max(1, rows // batch)
    parts = [pool(workload, batch, dtype, seed) for seed in range(1, 2 + count // 64)]
    x = np.concatenate([part[0].reshape(-1, workload.inputs) for part in parts])
    y = np.concatenate([part[1].reshape(-1, *part[1].shape[2:]) for part in parts])
    x, y = np.resize(x, (count * batch, *x.shape[1:])), np.resize(y, (count * batch, *y.shape[1:]))
    made = dict(ALL[contender].options)
    bare, fitted = Bpnet(task, **made), Bpnet(task, **made | ({"device": "cuda"} if fed else {}))
    if fed:  # also where the device would have room for all of them
        importlib.import_module("bpnet.data.loader").CACHED_SHARE = 0.0  # type: ignore[attr-defined]
    rows_of_fit = (x, y) if fed else (bare.put(x), bare.put(y))
    batches = [(bare.put(x[i : i + batch]), bare.put(y[i : i + batch])) for i in range(0, len(x), batch)]

    def steps() -> float:
        begin = time.perf_counter()
        for part in batches:
            result = bare.step(*part)
        bare.wait(result)
        return time.perf_counter() - begin

    def fit() -> float:
        with open(os.devnull, "w") as nobody, contextlib.redirect_stderr(nobody):
            begin = time.perf_counter()
            fitted.trainer.fit(*rows_of_fit, epochs=1, batch_size=batch, progress=True)
            return time.perf_counter() - begin

    steps(), fit()
    times = [(fit(), steps()) if number % 2 else (steps(), fit())[::-1] for number in range(rounds)]
    ratios = [fit_seconds / step_seconds for fit_seconds, step_seconds in times]
    return {
        "workload": key,
        "batch": batch,
        "dtype": dtype,
        "threads": threads,
        "device": device,
        "fed": fed,
        "rows": len(x),
        "fit_ms": min(t[0] for t in times) * 1e3,
        "steps_ms": min(t[1] for t in times) * 1e3,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare on the workloads and batches asked for: (a) and (d) at 32, 512 and 4096 by default."""
    found = []
    device = "cuda" if options.device == "cupy" else "cpu"
    contender = (options.contender or [subject_on(device)])[0]
    for key in options.workload or ["a", "d"]:
        for batch in options.batch or [32, 512, 4096]:
            rows = options.rows or max(16384, 8 * batch)
            try:
                found.append(
                    epoch(
                        key,
                        batch,
                        options.dtype or "float32",
                        options.threads,
                        rows,
                        options.rounds,
                        contender,
                        device,
                        options.fed,
                    )
                )
            except Absent as absent:
                raise SystemExit(f"nothing to measure: {absent}") from None
    rows_of_table = [["workload, batch", "rows", "fit ms", "steps ms", "fit / steps", "(min .. max)"]]
    for one in found:
        ratio = one["ratio"]
        rows_of_table.append(
            [
                f"({one['workload']}) {one['batch']:,}",
                f"{one['rows']:,}",
                significant(one["fit_ms"]),
                significant(one["steps_ms"]),
                f"{ratio['median']:.3f}",
                f"({ratio['min']:.3f} .. {ratio['max']:.3f})",
            ]
        )
    print(columns(rows_of_table))
    return found
