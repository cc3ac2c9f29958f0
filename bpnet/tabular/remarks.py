"""What is suspicious about a table that is to be learnt from: columns that say nothing, or too much."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.tabular.columns import Column, column_of
from bpnet.tabular.frames import Frame

LEAST = 10
"""Rows under which nothing is suspicious but a column without values, or with one."""


@dataclass(frozen=True)
class Remark:
    """Columns of one kind that are suspicious: "empty", "constant", "target" or "counts"."""

    kind: str
    names: tuple[str, ...]
    target: str
    what: str

    def text(self, drop: Callable[[Sequence[str]], str] = lambda names: f"drop={list(names)!r}") -> str:
        """What is to be said of them; `drop` says how columns are left out."""
        names, several = self.names, len(self.names) > 1
        shown = ", ".join(map(repr, names[:5])) + (f", ... ({len(names):,} in all)" if len(names) > 5 else "")
        columns, them = (f"columns {shown}", "them") if several else (f"column {shown}", "it")
        which, dropped = f"{columns} of {self.what}", drop(names[:5])
        they_are = "they are their numbers" if several else "it is their number"
        are = "are" if several else "is"
        return {
            "empty": f"{which} {'have' if several else 'has'} no value in any row, and {are} left out",
            "constant": f"{which} never {'vary' if several else 'varies'}, and {are} left out",
            "target": f"{which} {'tell' if several else 'tells'} the target {self.target!r} outright: unless it is "
            f"known beforehand too, leave {them} out with {dropped}",
            "counts": f"{which} {'count' if several else 'counts'} the rows: if {they_are} and no quantity, leave "
            f"{them} out with {dropped}",
        }[self.kind]


def remarks_on(frame: Frame, y: Any, target: str) -> list[Remark]:
    """The suspicious columns of a table on the host, by kind; those of an array, as pictures are, may be constant."""
    found: dict[str, list[str]] = {}
    column = y if isinstance(y, Column) else column_of(y, "y") if np.ndim(y) == 1 else None
    goal = codes = None
    if column is not None and column.on_host:
        if column.codes is None and column.values.dtype.kind == "f":
            goal = column.values
        else:
            goal = codes = (
                column.codes if column.codes is not None else np.unique(column.values, return_inverse=True)[1]
            )
    for name in frame.names:
        kind = next(kinds_of(frame.coded(name), goal, codes), None)
        if kind is not None and (frame.named or kind not in ("empty", "constant")):
            found.setdefault(kind, []).append(name)
    return [Remark(kind, tuple(names), target, frame.what) for kind, names in found.items()]


def kinds_of(column: Column, goal: Array | None, codes: Array | None) -> Iterator[str]:
    """What is suspicious about a column, the worst first."""
    if not column.on_host:
        return
    gaps = column.missing()
    rows, known = column.rows, int(column.rows - gaps.sum())
    if known == 0:
        yield "empty"
        return
    values = column.codes if column.codes is not None else column.values
    present = values[~gaps] if known < rows else values
    if bool((present == present[0]).all()):
        if known == rows:
            yield "constant"
        return
    if rows < LEAST:
        return
    if known == rows and goal is not None and _tells(column, goal, codes):
        yield "target"
    if column.codes is None and values.dtype.kind in "iuf" and known == rows and _counts(values):
        yield "counts"


def _tells(column: Column, goal: Array, codes: Array | None) -> bool:
    """Whether every value of the column goes with one value of the target, and the other way round."""
    if codes is None:
        if column.codes is not None or column.values.dtype.kind not in "iuf":
            return False
        return _linear(column.values.astype(np.float64), goal.astype(np.float64))
    values = column.codes if column.codes is not None else column.values
    classes = int(codes.max()) + 1
    if (
        2 * classes > len(codes) or len(np.unique(values[:1000])) > classes
    ):  # nothing repeats, so that all goes together
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
