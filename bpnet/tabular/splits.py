"""Rows to train on and rows to hold out: of every class the same share."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.backends import Array


def split(rows: int, fraction: float, seed: int, classes: Array | None = None) -> tuple[Array, Array]:
    """Row numbers to train on, and those held out: a `fraction` of them, chosen by `seed`, at least one of each.

    With the number of each row's class, classes are held out in proportion to their rows: each gives the whole part of
    its share, and those with the largest remainders one row more.  A class of a single row is always trained on.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    count = min(max(round(fraction * rows), 1), rows - 1) if fraction > 0 else 0
    if classes is None or count == 0:
        return order[count:], order[:count]
    return _stratified(order, classes, shares(np.bincount(classes), count))


def shares(sizes: Array, count: int) -> Array:
    """How many of `count` rows each class gives, of so many that it has; one row at least stays of each."""
    most = np.maximum(sizes - 1, 0)
    ideal = sizes * (count / sizes.sum())
    found = np.minimum(np.floor(ideal).astype(np.int64), most)
    for place in np.argsort(found - ideal, kind="stable"):
        if found.sum() >= count:
            break
        found[place] += found[place] < most[place]
    return found


def _stratified(order: Array, classes: Array, wanted: Array) -> tuple[Array, Array]:
    of_class = classes[order]
    by_class = np.argsort(of_class, kind="stable")  # places in `order`, class by class
    sizes = np.bincount(of_class, minlength=len(wanted))
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    out = rank < wanted[of_class]
    return order[~out], order[out]


def folds(rows: int, count: int, seed: int, classes: Array | None = None) -> list[tuple[Array, Array]]:
    """`count` ways of training on all rows but a part, each row being held out once; classes as evenly as they go."""
    order = np.random.default_rng(seed).permutation(rows)
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    place = np.empty(rows, dtype=np.int64)
    place[order] = np.arange(rows) % count
    shuffled = np.random.default_rng(seed).permutation(rows)
    return [(shuffled[place[shuffled] != i], shuffled[place[shuffled] == i]) for i in range(count)]


def rare(held_out: Array, sizes: Array, names: Any) -> list[tuple[Any, int]]:
    """The classes of which no row is held out, each with the number of its rows, of which `sizes` are all.

    `held_out` are the numbers of the classes of the rows held out.
    """
    held_out = np.bincount(held_out, minlength=len(names))
    return [(names[i], int(sizes[i])) for i in np.flatnonzero((held_out == 0) & (sizes > 0)).tolist()]


# ---- of rows that are not all in memory -----------------------------------------------------------------------------

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
NEVER = 1e-6
"""How probable it may be that all rows of a class are held out."""


def drawn(seed: int, rows: Array) -> Array:
    """A number of [0, 1) for each row, by its number and the seed alone (SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = (np.asarray(rows).astype(np.uint64) + np.uint64(seed % 2**32) * np.uint64(2**32)) * GOLDEN + GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class BySeed:
    """Which rows are held out where each is drawn by itself, so that nobody needs to know all of them.

    A class of so few rows that all of them could be drawn is trained on alone; `sizes` are those of the classes.
    """

    seed: int
    fraction: float
    sizes: Array | None = None

    def held_out(self, rows: Array, labels: Array | None = None) -> Array:
        """For the numbers of some rows, and those of their classes, whether each is held out."""
        found = drawn(self.seed, rows) < self.fraction
        if self.sizes is None or labels is None or not self.fraction > 0.0:
            return found
        least = math.ceil(math.log(NEVER) / math.log(self.fraction))
        return found & (self.sizes >= least)[labels]
