"""Figures of classes: which are taken for which, how far stated probabilities hold, the surest mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.backends import Array

BINS = 10
"""Of equal width, in which probabilities are compared with what came true."""
WORST = 8
"""How many mistakes are listed."""


def share(above: Array, below: Array) -> Array:
    """above / below, NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


@dataclass(frozen=True)
class Confusion:
    """`matrix[i, j]`: how many rows of class i, in the order of `names`, are said to be of class j."""

    names: tuple[str, ...]
    matrix: Array

    @property
    def rows(self) -> Array:
        """How many rows are of each class."""
        return self.matrix.sum(axis=1)

    @property
    def said(self) -> Array:
        """How many rows are said to be of each class."""
        return self.matrix.sum(axis=0)

    @property
    def precision(self) -> Array:
        """Of the rows that are said to be of a class, the share that is; NaN where none is said to be."""
        return share(self.matrix.diagonal(), self.said)

    @property
    def recall(self) -> Array:
        """Of the rows of a class, the share that is said to be of it; NaN where there are none."""
        return share(self.matrix.diagonal(), self.rows)

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """(rows, class, what it is taken for) of the pairs that are confused most often, the most frequent first."""
        off = self.matrix - np.diag(self.matrix.diagonal())
        order = np.argsort(-off, axis=None, kind="stable")[:count]
        return [(int(off.flat[i]), int(i // len(off)), int(i % len(off))) for i in order if off.flat[i] > 0]

    def by_errors(self) -> Array:
        """The classes, those first with which most rows are wrongly taken for another or another for them."""
        wrong = self.rows + self.said - 2 * self.matrix.diagonal()
        return np.argsort(-wrong, kind="stable")


@dataclass(frozen=True)
class Labels:
    """Of outputs that are each true or false: how many rows are true, are said to be, and are both."""

    names: tuple[str, ...]
    count: int
    true: Array
    said: Array
    both: Array

    @property
    def precision(self) -> Array:
        """Of the rows that are said to be true, the share that is."""
        return share(self.both, self.said)

    @property
    def recall(self) -> Array:
        """Of the rows that are true, the share that is said to be."""
        return share(self.both, self.true)


@dataclass(frozen=True)
class Reliability:
    """Stated probabilities in bins of equal width: `rows` in each, the `mean` of them, the share that came `true`.

    `error` is the expected calibration error: the mean over rows of |true - mean| of their bins (Guo et al. 2017).
    """

    rows: Array
    mean: Array
    true: Array
    error: float

    @classmethod
    def of(cls, probability: Array, true: Array, error: float) -> "Reliability":
        """Of a probability and whether it came true, a row each; the error is the metric's."""
        which = np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)
        rows = np.bincount(which, minlength=BINS)
        mean, right = (np.bincount(which, weights=w, minlength=BINS) for w in (probability, np.asarray(true, float)))
        return cls(rows, share(mean, rows), share(right, rows), error)


@dataclass(frozen=True)
class Mistake:
    """A row, by its number, that is of one class and is said to be of another with a probability (None: not known)."""

    row: int
    true: str
    said: str
    probability: float | None


def surest_mistakes(
    names: Sequence[str], true: Array, said: Array, sureness: Array, known: bool, numbers: Array
) -> list[Mistake]:
    """The wrong rows that the model is surest of; `numbers` are what the rows are called.

    Where it is less sure than that a row is no other class, it is not sure.
    """
    wrong = np.flatnonzero((true != said) & ((sureness > 0.5) if known else True))
    order = wrong[np.argsort(-sureness[wrong], kind="stable")][:WORST]
    return [
        Mistake(int(numbers[i]), names[true[i]], names[said[i]], float(sureness[i]) if known else None) for i in order
    ]


def to_json(figures: Any) -> Any:
    """Arrays and figures as JSON has them; NaN is None."""
    if isinstance(figures, np.ndarray):
        return to_json(figures.tolist())
    if isinstance(figures, dict):
        return {str(key): to_json(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [to_json(value) for value in figures]
    if isinstance(figures, float) and not np.isfinite(figures):
        return None
    return figures
