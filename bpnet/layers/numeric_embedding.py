"""Embeddings of numbers: each numeric column becomes several features, by functions of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from bpnet.backends import backend_of
from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError, shown
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.options import choice, flag, numbers, positive, whole

Form = Literal["pbld", "plr", "piecewise_linear"]
FORMS = ("pbld", "plr", "piecewise_linear")
TURN = 2.0 * math.pi
BEYOND = 1e30
"""How far the first bin goes on to the left and the last to the right, in widths of them: further than any number."""


@dataclass(frozen=True, repr=False)
class NumericEmbedding(Layer):
    r"""Each number of a row becomes `width` features, by functions of its own column: (..., n) -> (..., n width).

    For each of the n columns, of numbers x, with F `frequencies` and the row vectors c, s and e made of x:

        "pbld"               c = cos(2 pi w x + b),  y = [c V + a, x]         (Holzmueller, Grinsztajn, Steinwart 2024)
        "plr"                c = cos(2 pi w x), s = sin(2 pi w x),  y = max(0, [c, s] V + a)    (Gorishniy et al. 2022)
        "piecewise_linear"   e = how far x is through each of its bins,  y = x u + a + e V      (Gorishniy et al. 2025)

    A bin from l to r has e = (x - l) / (r - l), kept within 0 ... 1; but the first goes on below 0, and the last above
    1.  With width=None y is e itself, 0 where a column has fewer bins than another.  With dt = dL/dy where max(0, .)
    lets it through, and sums over rows, the chain rule gives

        dL/dV = [c, s]^T dt, or e^T dt,    dL/da = sum of dt,    dL/du = sum of x dt,
        dL/db = -sin(2 pi w x + b) dL/dc,    dL/dw = sum of 2 pi x (cos(2 pi w x) dL/ds - sin(2 pi w x + b) dL/dc),

    and dL/dx is the sum of these ways, the slope of a bin's e being 1 / (r - l) within it.

    width : features for a number; of "pbld" one of them is x
    frequencies, sigma : how many there are, and their deviation at the start, w ~ N(0, sigma**2), which matters: it
        says how fast y changes at first.  x is to be scaled, as by `NumericInput`; b starts evenly over -pi ... pi
    bins : of "piecewise_linear", for each column the edges of its bins, in rising order: `NumericEmbedding.bins_of(x)`
    flatten : False gives (..., n, width)

    V and a start evenly within 1 / sqrt(F), or 1 / sqrt(2 F) of "plr"; of "piecewise_linear" V starts at 0, so that y
    is linear at first, u and a evenly within 1 / sqrt(width).  Weight decay is of V and u alone.  Parameters are
    "frequency", "phase" (w and b), "weight", "bias" (V and a) and "linear" (u).  Raises OptionError where options don't
    fit, and ShapeError where bins are of another number of columns.
    """

    form: Form = "pbld"
    width: int | None = 4
    frequencies: int = 16
    sigma: float = 0.1
    bins: Sequence[Sequence[float]] | None = None
    flatten: bool = True

    def __post_init__(self) -> None:
        self._set(form=choice("form", self.form, FORMS), frequencies=whole("frequencies", self.frequencies))
        self._check(sigma=positive, flatten=flag)
        if self.width is not None:
            self._set(width=whole("width", self.width, 2 if self.form == "pbld" else 1, 2**31 - 1))
        elif self.form != "piecewise_linear":
            raise OptionError(
                f"width is None, which is of the form 'piecewise_linear', not {self.form!r}: give a number"
            )
        if (self.bins is None) != (self.form != "piecewise_linear"):
            hint = "give those of NumericEmbedding.bins_of(x)" if self.bins is None else "leave them out"
            raise OptionError(f"bins is {shown(self.bins)} and form is {self.form!r}, which alone has bins: {hint}")
        if self.bins is not None:
            self._set(bins=tuple(_edges(f"bins[{j}]", edges) for j, edges in enumerate(self.bins)))

    def __repr__(self) -> str:
        """The options that are not as they are by default; of bins only how many columns they are of."""
        options = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        shown = [f"{n}={f'... {len(v)} columns' if n == 'bins' else repr(v)}" for n, v in options]
        return f"NumericEmbedding({', '.join(shown)})"

    @staticmethod
    def bins_of(x: Any, count: int = 48) -> tuple[tuple[float, ...], ...]:
        """Edges of `count` bins of each column of x, (rows, n), with as many rows in each: its quantiles.

        Equal ones count once, so that there may be fewer; NaN is left out.  Where the embedding is not the first layer,
        x is to be what the layers before it make of the rows.
        """
        count, backend = whole("count", count), backend_of(x)
        if x.ndim != 2:
            raise ShapeError(f"x is of {tuple(x.shape)}; expected (rows, columns)")
        xp = backend.xp
        with backend.session(device=backend.device(x)):
            ordered = backend.to_host(xp.sort(x, axis=0))
            missing = backend.to_host(xp.sum(xp.astype(xp.isnan(x), xp.int64), axis=0))
        found = []
        for j in range(x.shape[1]):
            last = x.shape[0] - 1 - int(missing[j])  # NaN comes after all others
            edges = sorted({_between(ordered[:, j], last, i / count) for i in range(count + 1)}) if last >= 0 else [0.0]
            found.append(tuple(edges) if len(edges) > 1 else (edges[0], edges[0] + 1.0))
        return tuple(found)

    @property
    def trainable(self) -> bool:  # type: ignore[override]
        """Not of an encoding alone."""
        return self.width is not None

    @cached_property
    def most_bins(self) -> int:
        """The bins of the column that has most."""
        return max(len(edges) - 1 for edges in self.bins or ((0.0,),))

    @property
    def features(self) -> int:
        """How many features a number becomes."""
        return self.most_bins if self.width is None else self.width

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            raise ShapeError("NumericEmbedding needs rows of numbers, but x has one axis: make it (rows, columns)")
        if self.bins is not None and len(self.bins) != in_shape[-1]:
            raise ShapeError(f"NumericEmbedding has bins of {len(self.bins)} columns, but rows have {in_shape[-1]}")
        *others, n = in_shape
        return (*others, n * self.features) if self.flatten else (*others, n, self.features)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n, width, f = in_shape[-1], self.width, self.frequencies
        if self.bins is not None:
            values = self._bins(rng, n)
            if width is None:
                return values
            limit = 1.0 / math.sqrt(width)
            return values | {
                "linear": rng.uniform((n, width), limit),
                "weight": rng.full((n, self.most_bins, width), 0.0),
                "bias": Leaf(rng.uniform((n, width), limit), decay=False),
            }
        assert width is not None
        pbld = self.form == "pbld"
        made, out = (f, width - 1) if pbld else (2 * f, width)
        limit = 1.0 / math.sqrt(made)
        phase = {"phase": Leaf(rng.uniform((n, f), math.pi), decay=False)} if pbld else {}
        return {
            "frequency": Leaf(rng.normal((n, f), self.sigma), decay=False),
            **phase,
            "weight": rng.uniform((n, made, out), limit),
            "bias": Leaf(rng.uniform((n, out), limit), decay=False),
        }

    def _bins(self, rng: Rng, n: int) -> dict[str, Any]:
        """Of every bin its left edge, 1 over its length, and within what e is kept; zeros where there is none."""
        columns = []
        for edges in self.bins or ():
            count, none = len(edges) - 1, [0.0] * (self.most_bins - len(edges) + 1)
            columns.append(
                (
                    [*edges[:-1], *none],
                    [*(1.0 / (b - a) for a, b in pairwise(edges)), *none],
                    [-BEYOND, *[0.0] * (count - 1), *none],
                    [*[1.0] * (count - 1), BEYOND, *none],
                )
            )
        shape, names = (n, self.most_bins), ("left", "inverse", "least", "most")
        return {
            name: Leaf(rng.given(shape, [column[i] for column in columns]), trainable=False)
            for i, name in enumerate(names)
        }

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp = run.xp
        columns = xp.expand_dims(xp.permute_dims(xp.reshape(x, (-1, x.shape[-1])), (1, 0)), axis=2)
        if self.bins is not None:
            z = (columns - _each(xp, p["left"])) * _each(xp, p["inverse"])
            made = xp.minimum(xp.maximum(z, _each(xp, p["least"])), _each(xp, p["most"]))
            y = made
            if self.width is not None:
                y = run.matmul(made, p["weight"]) + columns * _each(xp, p["linear"]) + _each(xp, p["bias"])
        else:
            z = TURN * columns * _each(xp, p["frequency"])
            if self.form == "pbld":
                z = z + _each(xp, p["phase"])
                made = xp.cos(z)
            else:
                made = xp.concat([xp.cos(z), xp.sin(z)], axis=2)
            y = run.matmul(made, p["weight"]) + _each(xp, p["bias"])
            y = xp.concat([y, columns], axis=2) if self.form == "pbld" else xp.maximum(y, 0.0)
        shape = self.out_shape(x.shape[1:])
        return xp.reshape(xp.permute_dims(y, (1, 0, 2)), (x.shape[0], *shape)), (columns, z, made, y, x.shape)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, (columns, z, made, y, in_shape) = run.xp, cache
        n, width = in_shape[-1], self.features
        dy = xp.permute_dims(xp.reshape(dy, (-1, n, width)), (1, 0, 2))
        dx: Array | None = None
        grads = {}
        if self.bins is not None:
            de = dy
            if self.width is not None:
                grads = {
                    "linear": xp.sum(columns * dy, axis=1),
                    "weight": run.matmul(made, dy, transpose_a=True),
                    "bias": xp.sum(dy, axis=1),
                }
                de = run.matmul(dy, p["weight"], transpose_b=True) if need_dx else dy
            if need_dx:
                within = (z > _each(xp, p["least"])) & (z < _each(xp, p["most"]))
                dx = xp.sum(xp.where(within, de * _each(xp, p["inverse"]), 0.0), axis=2)
                if self.width is not None:
                    dx = dx + xp.sum(dy * _each(xp, p["linear"]), axis=2)
        else:
            f = self.frequencies
            dt = dy[:, :, : width - 1] if self.form == "pbld" else xp.where(y > 0.0, dy, 0.0)
            dmade = run.matmul(dt, p["weight"], transpose_b=True)
            if self.form == "pbld":
                dz = -xp.sin(z) * dmade
                grads["phase"] = xp.sum(dz, axis=1)
            else:
                dz = made[:, :, :f] * dmade[:, :, f:] - made[:, :, f:] * dmade[:, :, :f]
            grads |= {
                "frequency": TURN * xp.sum(columns * dz, axis=1),
                "weight": run.matmul(made, dt, transpose_a=True),
                "bias": xp.sum(dt, axis=1),
            }
            if need_dx:
                dx = TURN * xp.sum(dz * _each(xp, p["frequency"]), axis=2)
                dx = dx + dy[:, :, width - 1] if self.form == "pbld" else dx
        return (None if dx is None else xp.reshape(xp.permute_dims(dx, (1, 0)), in_shape)), grads


def _each(xp: Any, values: Array) -> Array:
    """Values of every column, (n, k), beside rows that lie column by column, (n, rows, k)."""
    return xp.expand_dims(values, axis=1)


def _edges(what: str, edges: Any) -> tuple[float, ...]:
    """Two or more rising numbers; raises OptionError."""
    found = numbers(what, edges, -math.inf, math.inf, closed="neither")
    if len(found) < 2 or any(a >= b for a, b in pairwise(found)):
        raise OptionError(f"{what} is {shown(edges)}; expected two or more edges in rising order")
    return found


def _between(values: Any, last: int, share: float) -> float:
    """What is at that share of the way through a vector up to `last`, evenly between two of its values."""
    place = share * last
    i = min(int(place), last)
    low, high = float(values[i]), float(values[min(i + 1, last)])
    return low + (place - i) * (high - low)
