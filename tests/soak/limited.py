"""Trains where memory is limited (RLIMIT_AS), and as the error says: `limited.py NETWORK COMPILED MEGABYTES WARM`."""

import faulthandler
import json
import re
import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import bpnet as bp

ROWS = 30_000
"""Of which a batch takes more than most limits leave."""
NETWORKS = {
    "deep": bp.Sequential(bp.Dense(512, "relu"), bp.Dense(512, "gelu"), bp.Dense(3)),
    "small": bp.Sequential(bp.Dense(64, "tanh"), bp.Dropout(0.2), bp.LayerNorm(), bp.Dense(3)),
    "wide": bp.Sequential(bp.Dense(900, "relu"), bp.Dropout(0.5), bp.Residual(bp.Dense(900, "swish")), bp.Dense(3)),
}


def used() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def attempt(call: Callable[[], Any]) -> tuple[int | None, str]:
    """The rows that are said to fit, and the error; 0: none do.  None: nothing was raised, or what should not be."""
    try:
        call()
    except bp.errors.OutOfMemoryError as error:
        found = re.search(r"(?:micro_batch|batch_size)=(\d+) would fit", str(error))
        return int(found[1]) if found else 0, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return None, ""


def main(name: str, compiled: int, megabytes: float, warm: int) -> None:
    faulthandler.dump_traceback_later(240.0, exit=True)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((ROWS, 50), "f4"), rng.integers(0, 3, ROWS)

    def made(**options: Any) -> bp.Trainer:
        return bp.Trainer(NETWORKS[name], "cross_entropy", compile=bool(compiled), **options).build(x[:2])

    trainer = made()
    if warm:
        trainer.fit(x[:64], y[:64], batch_size=64, progress=False)
        trainer.predict(x[:64])
    first = trainer.snapshot()
    limit = used() + int(megabytes * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    failures, told, retried = [], 0, 0
    rows, error = attempt(lambda: trainer.fit(x, y, batch_size=ROWS, progress=False))
    told += bool(error)
    if error:
        if trainer.step_count != first[1] or not np.array_equal(trainer.theta, first[0][0]):
            failures.append("the parameters are others after the error")
        if rows is None or f"a batch of {ROWS:,} rows" not in error:
            failures.append(f"the error is another: {error}")
        else:
            del trainer  # a trainer made for smaller parts goes on
            trainer = made(micro_batch=rows or 1)
            trainer.restore(first)
            retried += 1
            again = attempt(lambda: trainer.fit(x, y, batch_size=ROWS, progress=False))[1]
            if again and rows:
                failures.append(f"micro_batch={rows} does not fit: {again}")
            elif rows == 0 and not again:
                failures.append("one row fits, though the error says that it does not")
    for call in (trainer.predict, lambda x, **more: trainer.evaluate(x, y, **more)):
        rows, error = attempt(lambda call=call: call(x))
        told += bool(error)
        if rows and rows >= 16:  # of fewer, it takes long
            retried += 1
            again = attempt(lambda call=call, rows=rows: call(x, batch_size=rows))[1]
            if again:
                failures.append(f"batch_size={rows} does not fit: {again}")
        elif rows is None and error:
            failures.append(error)
    print(json.dumps({"cases": 1, "told": told, "retried": retried, "failures": failures}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
