"""One library's process, ``python -m bench.catalogue.child``: which holds some entries at a time."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.catalogue.entries import CHECKED_STEPS, ENTRIES, pool
from bench.child import serve
from bench.contenders.base import Absent

FIRST_GUESS = 3
"""Steps from which the time of one is estimated."""


class Session:
    """One contender: what it has prepared of entries and batches, until it is told to drop them."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.folder, self.threads, self.options = Path(order["folder"]), order["threads"], order["options"]
        self.module = importlib.import_module(order["module"])
        self.made: dict[str, Any] = {}
        self.data: dict[tuple[str, int], list[tuple[Any, Any]]] = {}

    def prepare(self, key: str, batches: list[int]) -> dict[str, Any]:
        """Compile an entry for these batches: the losses of a few steps from the common start, and a step's time."""
        entry = next(e for e in ENTRIES if e.key == key)
        with np.load(self.folder / f"{key}.npz") as held:
            start = {name: held[name] for name in held.files}
        made = self.made[key] = self.module.make(
            entry, start, pool(entry, batches[0])[0][0], self.threads, **self.options
        )
        losses, seconds = {}, {}
        for batch in batches:
            made.restore()
            data = self.data[key, batch] = [self._put(made, *each) for each in pool(entry, batch)]
            losses[batch] = [made.value(made.step(*each)) for each in data[: CHECKED_STEPS + 1]]
            self._steps(key, batch, FIRST_GUESS)
            seconds[batch] = self._steps(key, batch, FIRST_GUESS)
        return {"losses": losses, "seconds": seconds}

    @staticmethod
    def _put(made: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return {k: made.put(v) for k, v in x.items()} if isinstance(x, dict) else made.put(x), made.put(y)

    def run(self, key: str, batch: int, steps: int) -> dict[str, Any]:
        """Seconds of a step, from the start values on, so that nothing fades; a tenth as many go before."""
        if key not in self.made:
            raise Absent("its process ended with another entry")
        self.made[key].restore()
        self._steps(key, batch, max(1, steps // 10))
        return {"seconds": self._steps(key, batch, steps)}

    def _steps(self, key: str, batch: int, steps: int) -> float:
        step, data, loss = self.made[key].step, self.data[key, batch], None
        batches = [data[i % len(data)] for i in range(steps)]
        begin = time.perf_counter()
        for x, y in batches:
            loss = step(x, y)
        self.made[key].wait(loss)
        return (time.perf_counter() - begin) / steps

    def drop(self) -> dict[str, Any]:
        """Forget all that was prepared."""
        self.made.clear()
        self.data.clear()
        return {"dropped": True}


if __name__ == "__main__":
    serve(Session)
