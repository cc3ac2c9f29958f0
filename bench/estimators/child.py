"""The process that one estimator has for one case, ``python -m bench.estimators.child``."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import peak_memory, reset_peak_memory, serve, versions
from bench.estimators.cases import CASES, Array
from bench.estimators.contenders import get_ready, make
from bench.machine import clock, others

PREDICTING = 0.2
"""Seconds for which predictions are repeated."""


class Session:
    """One estimator and the data of one case."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.name, self.threads, self.case = order["name"], order["threads"], CASES[order["case"]]
        folder = Path(order["folder"])
        self.data = [np.load(folder / f"{part}.npy") for part in ("x", "y", "x_test", "y_test")]
        self.learned = 0
        warnings.simplefilter("ignore")  # the epochs are counted: nobody converges

    def _make(self, seed: int, inputs: int, **changes: Any) -> Any:
        outputs = int(self.data[1].max()) + 1 if self.case.classes else 1
        return make(self.name, replace(self.case, **changes), seed, self.threads, inputs, outputs)

    def warm(self) -> dict[str, Any]:
        """Import all that is needed, by another network on a few of the numbers; the versions of it."""
        get_ready(self.name)
        x, y = self.data[0][:100, :3], self.data[1][:100]
        model = self._make(0, 3, hidden=(4,), epochs=1, batch=50)
        model.fit(x, y)
        model.predict(x)
        return {"versions": versions()}

    def learn(self, seed: int) -> dict[str, Any]:
        """Fit from a seed, and predict, repeatedly where that is short; the first time in this process tells memory."""
        x, y, x_test, y_test = self.data
        held = reset_peak_memory()
        begun = clock()
        model = self._make(seed, x.shape[1])
        model.fit(x, y)
        fitted = clock()
        peak = peak_memory()
        found, times = np.empty(0), list[float]()
        while len(times) < 3 or sum(times) < PREDICTING:  # the first may compile
            start = time.perf_counter()
            found = model.predict(x_test)
            times.append(time.perf_counter() - start)
        self.learned += 1
        return {
            "first": self.learned == 1,
            "score": round(score(found, y_test, self.case.classes), 6),
            "fit_s": round(fitted[0] - begun[0], 5),
            "cpu_s": round(fitted[1] - begun[1], 5),
            "predict_s": round(float(np.median(times)), 7),
            "busy": others(begun),
            "held_mb": round(held / 1e6, 1),
            "above_mb": round(max(0, peak - held) / 1e6, 1),
            "peak_mb": round(peak / 1e6, 1),
        }


def score(found: Array, target: Array, classes: bool) -> float:
    """Accuracy, or the coefficient of determination."""
    if classes:
        return float((np.asarray(found) == target).mean())
    return float(1.0 - np.mean((np.asarray(found, np.float64) - target) ** 2) / target.var())


if __name__ == "__main__":
    serve(Session)
