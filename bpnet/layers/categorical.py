"""Columns of categories: each value becomes a place among the features, or a row of a trained table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError, plural
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.layers.numeric import MOST
from bpnet.options import wholes

MISSING, UNSEEN, KNOWN = 0, 1, 2
"""The codes of what is missing and of what is not known, and the first of those that are."""


class Group(NamedTuple):
    """Columns that are looked up together: their numbers, and either their common width, or as how many known values
    each is one-hot."""

    columns: tuple[int, ...]
    width: int
    known: int

    @property
    def features(self) -> int:
        """Of each column."""
        return self.width or self.known


@dataclass(frozen=True)
class CategoricalInput(Layer):
    r"""y = [E_1[x_1], E_2[x_2], ...]: columns of codes, one-hot or by rows of trained tables (Guo and Berkhahn 2016).

    In column j with K_j known values the code 0 says that the value is missing, 1 that it is none of those known, and
    2 ... K_j + 1 are the known ones, so `entries` has K_j + 2.  Any other code counts as 1.

    Where `width` has 0 for a column, it is one-hot: K_j features, of which that of the value is 1 and all others are 0;
    all are 0 where it is missing or not known.  Else its values are rows of a table of (entries_j, width_j), of which
    the first two start as zeros, so that nothing is said of what training has not shown, and the others are normally
    distributed with deviation 1 / sqrt(width_j).  By the chain rule

        dL/dE_j[k] = sum over all rows with the code k of the part of dL/dy that belongs to column j.

    There is no dL/dx.  Weight decay leaves the tables alone, as those of `Embedding`.

    Rows x of c codes become rows of sum K_j + sum width_j features, those of columns of one width side by side: first
    those of the width of the first column.  They are looked up together, in one table, "width_8" for that width.

    Raises OptionError where entries are less than 2, or width has not as many numbers as entries.
    """

    entries: Sequence[int]
    width: Sequence[int]

    accepts_nan = True
    example = ((5, 9, 40) * 4, (0, 0, 4) * 4)

    def __post_init__(self) -> None:
        entries, width = wholes("entries", self.entries, KNOWN, MOST), wholes("width", self.width, 0, MOST)
        if not entries or len(entries) != len(width):
            raise OptionError(
                f"entries has {len(entries)} numbers and width {len(width)}; expected one of each a column"
            )
        self._set(entries=entries, width=width)
        if sum(entries) > MOST:
            raise OptionError(
                f"the tables of CategoricalInput have {sum(entries):,} entries; expected at most {MOST:,}"
            )
        if not self.groups:
            raise OptionError("entries and width leave no feature: no column has a known value, or a width")

    @property
    def takes(self) -> int:
        return max(self.entries)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The columns of a width, in the order of their first; those without a feature are in none."""
        found: dict[tuple[int, int], list[int]] = {}
        for i, (n, width) in enumerate(zip(self.entries, self.width, strict=True)):
            if width or n > KNOWN:
                found.setdefault((width, 0 if width else n - KNOWN), []).append(i)
        return tuple(Group(tuple(columns), *kind) for kind, columns in found.items())

    @cached_property
    def trainable(self) -> bool:  # type: ignore[override]
        return any(self.width)

    @cached_property
    def picks(self) -> tuple[tuple[int, ...], tuple[slice, ...]]:
        """In which order the columns are to be, and which of them, then, each group has.

        They stay as they are where each group is every so-many-th column; else they come group by group.
        """
        steps = [{b - a for a, b in pairwise(group.columns)} or {1} for group in self.groups]
        if all(len(some) == 1 for some in steps):
            ends = [
                (group.columns[0], group.columns[-1] + 1, *step) for group, step in zip(self.groups, steps, strict=True)
            ]
            return tuple(range(len(self.entries))), tuple(slice(*end) for end in ends)
        stops = accumulate((len(group.columns) for group in self.groups), initial=0)
        order = tuple(column for group in self.groups for column in group.columns)
        return order, tuple(slice(*ends) for ends in pairwise(stops))

    def out_shape(self, in_shape: Shape) -> Shape:
        if math.prod(in_shape) != len(self.entries) or len(in_shape) > 1:
            have = plural(len(self.entries), "column")
            raise ShapeError(f"CategoricalInput has {have}, but rows have the shape {tuple(in_shape)}")
        return (sum(len(group.columns) * group.features for group in self.groups),)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        params: dict[str, Any] = {}
        first = dict.fromkeys(range(len(self.entries)), 0.0)
        for group in self.groups:
            if group.width:
                *starts, rows = accumulate((self.entries[column] for column in group.columns), initial=0)
                first |= zip(group.columns, map(float, starts), strict=True)
                shape = rows, group.width
                table = rng.computed(shape, partial(_table, rng, shape, starts))
                params[f"width_{group.width}"] = Leaf(table, decay=False)
        order, _ = self.picks
        # between whole numbers, so that no rounding makes others of them
        kept = {"bound": [self.entries[c] - 0.5 for c in order], "first": [first[c] + 0.5 for c in order]}
        return params | {name: Leaf(rng.given((len(order),), v), trainable=False) for name, v in kept.items()}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp, real, rows, (order, slices) = run.xp, p["bound"].dtype, x.shape[0], self.picks
        x = xp.reshape(x, (rows, len(self.entries)))
        if order != tuple(range(len(self.entries))):
            columns = run.backend.constants([float(i) for i in order], p["bound"])
            x = xp.take(x, xp.astype(columns, xp.int32), axis=1)
        code = xp.astype(x, real)
        code = xp.where((code >= 0.0) & (code < p["bound"]), code, float(UNSEEN))
        place, known = xp.astype(code + p["first"], xp.int32), code - float(KNOWN)
        made, indices = [], []
        for group, some in zip(self.groups, slices, strict=True):
            if group.width:
                index = xp.reshape(place[:, some], (-1,))
                indices.append(index)
                features = xp.take(p[f"width_{group.width}"], index, axis=0)
            else:
                numbers = xp.arange(group.known, dtype=real, device=run.backend.device(code))
                features = xp.astype(xp.reshape(known[:, some], (rows, -1, 1)) == numbers, real)
            made.append(xp.reshape(features, (rows, len(group.columns) * group.features)))
        return made[0] if len(made) == 1 else xp.concat(made, axis=-1), (p, indices)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        (tables, indices), grads, start = cache, {}, 0
        left = iter(indices)
        for group in self.groups:
            stop = start + len(group.columns) * group.features
            if group.width:
                name, part = f"width_{group.width}", run.xp.reshape(dy[:, start:stop], (-1, group.width))
                grads[name] = run.scatter_add(tables[name], next(left), part)
            start = stop
        return None, grads


def _table(rng: Rng, shape: Shape, starts: Sequence[int]) -> Any:
    """Start values of a table in which columns begin at these rows."""
    found = rng.normal(shape, 1.0 / math.sqrt(shape[1]))
    for start in starts:
        found[start : start + KNOWN] = 0.0
    return found
