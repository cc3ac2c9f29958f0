"""Figures of a quantity: how far predictions are from it, where most, and how wide an interval about one must be."""

from dataclasses import dataclass

import numpy as np

from bpnet.backends import Array

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares of rows that an interval is to hold."""
BINS = 5
WORST = 5
FEW = 20
"""Rows of which there must be so many to say how far intervals or probabilities hold."""
POINTS = 1500
"""How many rows a picture shows at most."""


@dataclass(frozen=True)
class Bin:
    """Rows whose prediction is in `low` ... `high`: how many, and the mean of residuals and of their sizes."""

    low: float
    high: float
    rows: int
    mean: float
    size: float


@dataclass(frozen=True)
class Coverage:
    """The prediction and `width` to either side of it is to hold a share `level` of all rows, and holds `held`.

    `held` is of rows that had no part in finding the width: that of one half of the rows is tried on the other, and the
    other way round.  `by_size` is the same among the lowest, the middle and the highest third of predictions: far apart
    where errors grow with what is predicted.
    """

    level: float
    width: float
    held: float
    by_size: tuple[float, ...]


@dataclass(frozen=True)
class Worst:
    """A row, by its number, with what it is and what is predicted."""

    row: int
    true: float
    said: float


@dataclass(frozen=True)
class Residuals:
    """Of one quantity: target - prediction, in its own unit."""

    name: str
    count: int
    scores: dict[str, float]
    quantiles: tuple[float, ...]
    bins: list[Bin]
    worst: list[Worst]
    coverage: list[Coverage]
    predicted_quantiles: dict[float, float]
    """Where the model predicts quantiles: the share of targets that is below each of them."""
    points: Array
    """Target and prediction of some rows, for a picture."""
    residuals: Array

    @classmethod
    def of(
        cls,
        name: str,
        target: Array,
        prediction: Array,
        scores: dict[str, float],
        numbers: Array,
        seed: int = 0,
        quantiles: dict[float, Array] | None = None,
    ) -> "Residuals":
        """Of a target and a prediction, a row each; `numbers` are what the rows are called."""
        target, prediction = np.asarray(target, np.float64), np.asarray(prediction, np.float64)
        off, rng = target - prediction, np.random.default_rng(seed)
        order = np.argsort(-np.abs(off), kind="stable")[:WORST]
        some = np.sort(rng.permutation(len(off))[:POINTS])
        return cls(
            name,
            len(off),
            scores,
            tuple(float(q) for q in np.quantile(off, QUANTILES)),
            bins_of(prediction, off),
            [Worst(int(numbers[i]), float(target[i]), float(prediction[i])) for i in order],
            coverage_of(prediction, np.abs(off), rng),
            {q: float(np.mean(target <= at)) for q, at in (quantiles or {}).items()},
            np.stack([target[some], prediction[some]], axis=1),
            off,
        )


def parts(values: Array, count: int) -> list[Array]:
    """Row numbers in so many parts by the size of a value, equal ones together; fewer where there are few values."""
    ends = np.unique(np.quantile(values, np.arange(1, count) / count))
    which = np.searchsorted(ends, values, side="right")
    return [rows for k in range(len(ends) + 1) if len(rows := np.flatnonzero(which == k))]


def bins_of(prediction: Array, off: Array) -> list[Bin]:
    """Residuals by the size of the prediction."""
    return [
        Bin(
            float(prediction[rows].min()),
            float(prediction[rows].max()),
            len(rows),
            float(off[rows].mean()),
            float(np.abs(off[rows]).mean()),
        )
        for rows in parts(prediction, BINS)
    ]


def coverage_of(prediction: Array, size: Array, rng: np.random.Generator) -> list[Coverage]:
    """How far intervals of the sizes of residuals hold; nothing where there are too few rows to say."""
    if len(size) < FEW:
        return []
    order = rng.permutation(len(size))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    thirds, found = parts(prediction, 3), []
    for level in LEVELS:
        within = np.zeros(len(size), bool)
        for one, other in (halves, halves[::-1]):
            # the quantile that holds the level for a further row, as split conformal prediction has it
            rank = min(int(np.ceil((len(one) + 1) * level)), len(one))
            within[other] = size[other] <= np.partition(size[one], rank - 1)[rank - 1]
        by_size = tuple(float(within[rows].mean()) for rows in thirds) if len(thirds) == 3 else ()
        found.append(Coverage(level, float(np.quantile(size, level)), float(within.mean()), by_size))
    return found
