"""How memory grows while a trainer works again and again: `growing.py WORK COMPILED COUNT`.

What is compared is the memory in use after COUNT calls with that after as many others before, which filled what may be
kept.  The last calls are the same in both, so that what is kept is as large.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

import bpnet as bp

ROWS = 3000
LAST = range(ROWS - 40, ROWS)
"""Sizes of the last calls: more than a trainer keeps executables of."""
ALLOWED = 0.01


def resident() -> int:
    """Kilobytes in use, without what the C library could give back."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))


def main(work: str, compiled: int, count: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((ROWS, 20), "f4"), rng.integers(0, 3, ROWS)
    network = bp.Sequential(bp.Dense(32, "relu"), bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(3))
    trainer = bp.Trainer(network, "cross_entropy", compile=bool(compiled)).build(x)

    def epochs(number: int) -> None:
        trainer.fit(x[:256], y[:256], epochs=number, batch_size=64, progress=False)

    def sizes(numbers: Iterable[Any]) -> None:
        for n in map(int, (*numbers, *LAST)):
            if work == "steps":
                trainer.step(x[:n], y[:n])
            elif work == "predictions":
                trainer.predict(x[:n])
                trainer.evaluate(x[:n], y[:n])
            else:
                trainer.fit(x, y, batch_size=n, progress=False)
                trainer.history.epochs.clear()  # which grows by a record each, as it should

    order = rng.permutation(np.arange(1, ROWS - 40))
    if work != "epochs":
        sizes([*range(1, 65), *range(64, ROWS, 64)])  # for which all is compiled that sizes want compiled
    for part in range(2):
        if part:
            before = resident()
        if work == "epochs":
            epochs(count)
        else:
            sizes(order[part * count : (part + 1) * count])
    after = resident()
    growth = after / before - 1.0
    what = f"{work}, compiled={bool(compiled)}: {growth:.2%} over {count}"
    failures = [what] if growth > ALLOWED else []
    print(json.dumps({"cases": count, "growth": [round(growth, 5)], "failures": failures}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
