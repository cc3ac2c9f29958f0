"""Rows as a source gives them, checked and made what a batch is: what `prepare` does for arrays, chunk by chunk."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bpnet.backends import get
from bpnet.data.checks import LARGEST_WEIGHT, check_input, check_target, ignored_rows, numeric
from bpnet.data.loader import Loader, StreamingLoader
from bpnet.data.streams.stream import Stream
from bpnet.errors import DataError, ShapeError
from bpnet.layout import accepting, arranged
from bpnet.losses.base import Loss

HEAD = 4096
"""Rows of which the largest weight says how all weights are scaled."""


class Conversion:
    """Of a stream's rows, to the types and shapes of `template`, a loader of the first; `values`: whether to check."""

    def __init__(self, stream: Stream, template: Loader, loss: Loss, values: bool) -> None:
        self.stream, self.loss, self.values, self.host = stream, loss, values, get("numpy")
        streams = isinstance(template, StreamingLoader)
        x: Any = template.x
        self.inputs = x if isinstance(x, tuple) else (x,)
        self.templates = [a for a in (*self.inputs, template.y, template.weight) if a is not None]
        self.targets = template.y is not None
        self.out_shape = template.layout.out_shape
        single = template.like.dtype == template.backend.xp.float32 if streams else template.like.dtype == np.float32
        self.dtype = np.dtype("float32" if single else "float64")
        """The floating type of targets and weights."""
        fields = list(range(len(stream.source.fields)))
        own = arranged(template.layout.network.takes, stream.arranged(fields)["x"], "x")
        self.kinds = [
            (what, codes, nan) for (_, what, _, codes), nan in zip(own, accepting(template.layout.network), strict=True)
        ]
        self.places = [place for *_, place, _ in own]
        """The fields that the arrays of a batch come from, in their order."""
        if self.targets:
            self.places += fields[len(own) :]
        weighted = self.targets and stream.has_weight and loss.reduction == "mean"
        self.scale = self._scale() if weighted else 1.0

    def __call__(self, given: Sequence[Any], values: bool | None = None) -> list[Any]:
        """Arrays of the source as a batch has them; raises DataError where values can't be used."""
        values = self.values if values is None else values
        fields, found = self.stream.source.fields, []
        for (what, codes, nan), place, like in zip(self.kinds, self.places, self.inputs, strict=False):
            x = given[place]
            if values and codes is not None and x.dtype.kind == "f" and fields[place].dtype.kind != "f":
                missing(x, what)
            x = x if x.dtype == like.dtype else x.astype(like.dtype)
            if values and (codes is not None or x.dtype.kind == "f"):
                check_input(self.host, x, what, codes, nan)
            found.append(x)
        if not self.targets:
            return found
        place, *more = self.places[len(found) :]
        y, rows = given[place], len(given[0])
        if y.dtype.kind == "f" and fields[place].dtype.kind != "f":
            if values:
                missing(y, "y")
            y = y.astype(fields[place].dtype)
        y = check_target(self.host, self.loss, self.out_shape, rows, self.dtype, y, "y", "x", values)
        weight = self._weight(given[more[0]], rows, values) if more else None
        weight = ignored_rows(self.host, self.loss, self.dtype, y, weight, "y", False)
        return [*found, y] if weight is None else [*found, y, weight]

    def _weight(self, weight: Any, rows: int, values: bool) -> Any:
        weight, _ = numeric(self.host, weight, "sample_weight", "float32 or float64, or whole numbers")
        if weight.shape != (rows,):
            raise ShapeError(f"sample_weight has rows of shape {weight.shape[1:]}; expected one number per row")
        found = (weight * self.scale if self.scale != 1.0 else weight).astype(self.dtype, copy=False)
        if values:
            good = np.isfinite(found) & (found >= 0.0)
            if not good.all():
                row = int(np.argmin(good))
                raise DataError(f"sample_weight is negative, NaN or too large, first in row {row}: {weight[row]:g}")
        return found

    def _scale(self) -> float:
        """A power of 2 by which weights are multiplied: of a mean only ratios count."""
        head = np.asarray(self.stream.head(HEAD)[-1])
        largest = float(np.max(np.where(np.isfinite(head), head, 0)))
        if largest <= 0.0 or 1.0 <= largest < 2.0**LARGEST_WEIGHT:
            return 1.0
        return float(2.0 ** (LARGEST_WEIGHT // 2 - np.frexp(largest)[1]))

    # ---- rows that can't be used --------------------------------------------------------------------------------

    def bad(self, given: Sequence[Any]) -> Any:
        """Which rows of a chunk can't be used, in ascending order."""
        there = np.ones(len(given[0]), bool)
        nan = [accepts for *_, accepts in self.kinds] + [False] * (len(self.places) - len(self.kinds))
        for place, accepts in zip(self.places, nan, strict=True):
            a = given[place]
            if a.dtype.kind == "f":
                fine = ~np.isinf(a) if accepts else np.isfinite(a)
                there &= fine.reshape(len(a), -1).all(axis=1)
        left = np.flatnonzero(there)
        todo = [left]
        while todo:
            rows = todo.pop()
            if not len(rows) or not self._unfit(given, rows):
                continue
            if len(rows) == 1:
                there[rows] = False
            else:
                todo += np.array_split(rows, 2)
        return np.flatnonzero(~there)

    def first_bad(self, given: Sequence[Any]) -> int:
        """The first row of a chunk that has some which can't be used."""
        good, bad = 0, len(given[0])  # how many rows from the first on can be used, and can't
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if self._unfit(given, slice(middle)) else (middle, bad)
        return good

    def _unfit(self, given: Sequence[Any], rows: Any) -> bool:
        try:
            self([a[rows] for a in given], True)
        except DataError:
            return True
        return False

    def error(self, given: Sequence[Any], place: int, row: int) -> DataError:
        """What to say of a row that can't be used, of which `place` is the place in a chunk, `row` the number."""
        text = "it can't be used"
        try:
            self([a[place : place + 1] for a in given], True)
        except DataError as error:
            text = str(error).replace(", first in row 0", "").replace(" in row 0", "")
        return DataError(f"{self.stream.source.where(row)}: {text}; bad_rows='skip' leaves such rows out")


def missing(a: Any, what: str) -> None:
    """Raise DataError where whole numbers, which came as floats, are missing."""
    wrong = np.isnan(a).reshape(len(a), -1).any(axis=1)
    if wrong.any():
        raise DataError(f"{what} has no value, first in row {int(np.argmax(wrong))}")
