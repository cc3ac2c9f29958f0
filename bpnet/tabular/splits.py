"""Rows to train on and rows to hold out: of every class the same share."""

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


def rare(classes: Array, out: Array, names: Any) -> list[tuple[Any, int]]:
    """The classes of which no row is held out, each with the number of its rows."""
    sizes, held_out = np.bincount(classes, minlength=len(names)), np.bincount(classes[out], minlength=len(names))
    return [(names[i], int(sizes[i])) for i in np.flatnonzero((held_out == 0) & (sizes > 0)).tolist()]
