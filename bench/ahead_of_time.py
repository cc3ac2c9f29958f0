"""Predictions by an object file of `bp.files.to_c` beside those of `Trainer.predict`, in turn, for 1 to 1,024 rows.

    python -m bench.ahead_of_time            # 784-512-512-10, float32; needs cc
    python -m bench.ahead_of_time --cpu x86-64-v3 --block 128

prints the size of the object and a table: nanoseconds a row of the object, called from a loop in C on one thread, and
how many times as long others take: `predict` of a compiled trainer on one thread and on all, and of one that is not.
A figure is the median over rounds, and the ratios are those within a round; beside them is the range of all but the
fastest and slowest tenth.
"""

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bpnet as bp

LOOP = """
#include "model.h"
int repeat(const float *x, int64_t rows, float *y, int64_t times) {
    int result = 0;
    for (int64_t i = 0; i < times; ++i) result |= model_predict(x, rows, y);
    return result;
}
"""
SIZES = (784, 512, 512, 10)
ROUNDS = 41
SECONDS = 0.02
"""Of one contender in a round, about."""


def compiled(trainer: bp.Trainer, folder: Path, **options: Any) -> tuple[Any, int]:
    """repeat(x, rows, y, times), and the bytes of the object."""
    _, code = bp.files.to_c(trainer, folder / "model", **options)
    (folder / "loop.c").write_text(LOOP)
    line = ["cc", "-std=c99", "-O2", "-shared", "-fPIC", "loop.c", code.name, "-lm", "-o", "model.so"]
    subprocess.run(line, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "model.so")).repeat, code.stat().st_size


def seconds(function: Callable[[int], Any], times: int) -> float:
    start = time.perf_counter()
    function(times)
    return (time.perf_counter() - start) / times


def calls(predict: Callable[[Any], Any], x: Any) -> Callable[[int], None]:
    def repeat(times: int) -> None:
        for _ in range(times):
            predict(x)

    return repeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default="native")
    parser.add_argument("--block", type=int, default=256)
    given = parser.parse_args()
    x = np.random.default_rng(0).standard_normal((1024, SIZES[0])).astype("float32")
    network = bp.Sequential(*(bp.Dense(n, "relu") for n in SIZES[1:-1]), bp.Dense(SIZES[-1]))
    options = {"compiled, 1 thread": (True, 1), "compiled": (True, None), "not compiled, 1 thread": (False, 1)}
    trainers = {
        name: bp.Trainer(network, "cross_entropy", seed=0, compile=choice, threads=threads).build(x)
        for name, (choice, threads) in options.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        repeat, size = compiled(next(iter(trainers.values())), Path(folder), cpu=given.cpu, block=given.block)
        weights = 4 * trainers["compiled"].layout.size
        print(f"object of {'-'.join(map(str, SIZES))} for {given.cpu}: {size:,} bytes, {weights:,} of them weights\n")
        print(f"{'rows':>5} {'ns a row':>9}" + "".join(f"{name:>30}" for name in trainers))
        for rows in (1, 2, 4, 16, 64, 256, 1024):
            some, y = x[:rows].copy(), np.empty((rows, SIZES[-1]), "float32")
            pointers = some.ctypes.data, y.ctypes.data

            def in_c(times: int, rows: int = rows, pointers: tuple[int, int] = pointers) -> None:
                x_at, y_at = map(ctypes.c_void_p, pointers)
                assert repeat(x_at, ctypes.c_int64(rows), y_at, ctypes.c_int64(times)) == 0

            contenders = {"c": in_c} | {name: calls(trainer.predict, some) for name, trainer in trainers.items()}
            times = {name: max(1, int(SECONDS / seconds(f, 3))) for name, f in contenders.items()}
            assert np.allclose(y, trainers["compiled"].predict(some), atol=1e-5)
            found: dict[str, list[float]] = {name: [] for name in contenders}
            for number in range(ROUNDS):
                for name in (list(contenders), list(contenders)[::-1])[number % 2]:
                    found[name].append(seconds(contenders[name], times[name]))
            cells = []
            for name in trainers:
                ratios = sorted(other / own for other, own in zip(found[name], found["c"], strict=True))
                low, high = ratios[ROUNDS // 10], ratios[-1 - ROUNDS // 10]
                cells.append(f"{statistics.median(ratios):>12.2f} x ({low:.2f} - {high:.2f})".rjust(30))
            print(f"{rows:>5} {statistics.median(found['c']) / rows * 1e9:>9.0f}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
