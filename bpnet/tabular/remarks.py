"""What is suspicious about a table that is to be learnt from: columns that say nothing, or too much."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.tabular.columns import Column
from bpnet.tabular.frames import Frame

LEAST = 10
"""Rows under which nothing is suspicious but a column without values."""


def remarks_on(frame: Frame, y: Any, target: str) -> list[str]:
    """A sentence for each kind of suspicious columns, which it names; of a table on the host."""
    found: dict[str, list[str]] = {}
    goal = np.asarray(y) if np.ndim(y) == 1 else None
    codes = None if goal is None or goal.dtype.kind == "f" else np.unique(goal, return_inverse=True)[1]
    for name in frame.names:
        column = frame.coded(name)
        for kind in kinds_of(column, goal, codes):
            found.setdefault(kind, []).append(name)
            break
    return [sentence(kind, names, target, frame.what) for kind, names in found.items()]


def kinds_of(column: Column, goal: Array | None, codes: Array | None) -> Iterator[str]:
    """What is suspicious about a column, the worst first."""
    if not column.on_host:
        return
    gaps = column.missing()
    rows, known = column.rows, int(column.rows - gaps.sum())
    if known == 0:
        yield "empty"
        return
    if rows < LEAST:
        return
    values = column.codes if column.codes is not None else column.values
    present = values[~gaps] if known < rows else values
    if bool((present == present[0]).all()):
        if known == rows:
            yield "constant"
        return
    if known == rows and goal is not None and _tells(column, goal, codes):
        yield "target"
    if column.codes is None and values.dtype.kind in "iuf" and known == rows and _counts(values):
        yield "counts"
    if column.codes is not None and len(column.values) > 50 and _names(column, known):
        yield "names"


def _tells(column: Column, goal: Array, codes: Array | None) -> bool:
    """Whether every value of the column goes with one value of the target, and the other way round."""
    if codes is None:
        if column.codes is not None or column.values.dtype.kind not in "iuf":
            return False
        return _linear(column.values.astype(np.float64), goal.astype(np.float64))
    values = column.codes if column.codes is not None else column.values
    classes = int(codes.max()) + 1
    if len(np.unique(values[:1000])) > classes:
        return False
    _, own = np.unique(values, return_inverse=True)
    if int(own.max()) + 1 != classes:
        return False
    return len(np.unique(own.astype(np.int64) * classes + codes)) == classes


def _linear(x: Array, y: Array) -> bool:
    """Whether y = a x + b to the digits that a table has."""
    with np.errstate(all="ignore"):
        x, y = x - x.mean(), y - y.mean()
        sizes = np.sqrt((x * x).sum() * (y * y).sum())
        return bool(sizes > 0 and abs((x * y).sum()) > (1.0 - 1e-9) * sizes)


def _counts(values: Array) -> bool:
    """Whether they are whole and each is one more than the one before."""
    return bool(values[0] % 1 == 0) and bool(np.all(np.diff(values) == 1))


def _names(column: Column, known: int) -> bool:
    """Whether most texts are there once."""
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.values))
    return int((counts == 1).sum()) > 0.9 * known


def sentence(kind: str, names: Sequence[str], target: str, what: str) -> str:
    """What is to be said of these columns."""
    shown = ", ".join(map(repr, names[:5])) + (f", ... ({len(names):,} in all)" if len(names) > 5 else "")
    several = len(names) > 1
    columns, them = (f"columns {shown}", "them") if several else (f"column {shown}", "it")
    dropped = " ".join(f"--drop {name!r}" for name in names[:5])
    return {
        "empty": f"{columns} of {what} {'have' if several else 'has'} no value in any row: nothing is learnt from {them}",
        "constant": f"{columns} of {what} never {'vary' if several else 'varies'}: nothing is learnt from {them}",
        "target": f"{columns} of {what} {'tell' if several else 'tells'} the target {target!r} outright: if "
        f"{'they are' if several else 'it is'} not known beforehand, leave {them} out with {dropped}",
        "counts": f"{columns} of {what} {'count' if several else 'counts'} the rows: if "
        f"{'they are their numbers' if several else 'it is their number'} and no quantity, leave {them} out with {dropped}",
        "names": f"{columns} of {what} {'have' if several else 'has'} another text in nearly every row, from which "
        f"nothing can be learnt: leave {them} out with {dropped}, or make several columns of {them}",
    }[kind]
