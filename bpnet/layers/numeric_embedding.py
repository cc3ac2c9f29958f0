"""Embeddings of numbers: each numeric column becomes several features, by functions of its own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
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
            missing = backend.to_host(xp.sum(xp.astype(xp.isnan(x), xp.int32), axis=0))
        found = []
        for j in range(x.shape[1]):
            last = x.shape[0] - 1 - int(missing[j])  # NaN comes after all others
            edges = sorted({_between(ordered[:, j], last, i / count) for i in range(count + 1)}) if last >= 0 else [0.0]
            found.append(tuple(edges) if len(edges) > 1 else (edges[0], edges[0] + max(1.0, 1e-6 * abs(edges[0]))))
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
        values: dict[str, Callable[[Sequence[float]], list[float]]] = {
            "left": lambda edges: [*edges[:-1]],
            "inverse": lambda edges: [1.0 / (b - a) for a, b in pairwise(edges)],
            "least": lambda edges: [-BEYOND, *[0.0] * (len(edges) - 2)],
            "most": lambda edges: [*[1.0] * (len(edges) - 2), BEYOND],
        }
        shape = n, self.most_bins

        def filled(of: Callable[[Sequence[float]], list[float]]) -> Any:
            columns = [of(edges) for edges in self.bins or ()]
            return rng.given(shape, [[*column, *[0.0] * (self.most_bins - len(column))] for column in columns])

        return {name: Leaf(rng.computed(shape, partial(filled, of)), trainable=False) for name, of in values.items()}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        rows = run.xp.reshape(x, (-1, x.shape[-1]))
        y, cache = (self._periodic if self.bins is None else self._binned)(run, p, rows)
        return run.xp.reshape(y, (x.shape[0], *self.out_shape(x.shape[1:]))), (x.shape, cache)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        in_shape, cache = cache
        rows = run.xp.reshape(dy, (-1, in_shape[-1] * self.features))
        derived = self._periodic_backward if self.bins is None else self._binned_backward
        dx, grads = derived(run, p, cache, rows, in_shape[-1], need_dx)
        return (None if dx is None else run.xp.reshape(dx, in_shape)), grads

    def _periodic(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        """y, (rows, n width), of x, (rows, n): "pbld" and "plr"."""
        xp, n = run.xp, x.shape[1]
        each = _repeated(xp, x, self.frequencies)
        z = TURN * each * _flat(xp, p["frequency"])
        if self.form == "plr":
            made = [xp.cos(z), xp.sin(z)]
            y, stacks = self._project(run, p, made, n)
            y = xp.maximum(y, 0.0)
            return y, (each, made, stacks, y)
        z = z + _flat(xp, p["phase"])
        y, stacks = self._project(run, p, [xp.cos(z)], n)
        y = xp.concat([xp.reshape(y, (x.shape[0], n, -1)), xp.expand_dims(x, axis=2)], axis=2)
        return y, (each, [z], stacks, None)

    def _periodic_backward(
        self, run: Run, p: Params, cache: Any, dy: Array, n: int, need_dx: bool
    ) -> tuple[Array | None, dict[str, Any]]:
        xp, (each, saved, stacks, y) = run.xp, cache
        by_column = xp.reshape(dy, (dy.shape[0], n, -1))
        if self.form == "plr":
            (c, s), dt = saved, xp.where(y > 0.0, dy, 0.0)
            (dc, ds), grads = self._project_backward(run, p, stacks, dt, n)
            dz = c * ds - s * dc
        else:
            dt = xp.reshape(by_column[:, :, : self.features - 1], (dy.shape[0], -1))
            (dc,), grads = self._project_backward(run, p, stacks, dt, n)
            dz = -xp.sin(saved[0]) * dc
            grads["phase"] = xp.reshape(run.sum_rows(dz), p["phase"].shape)
        grads["frequency"] = TURN * xp.reshape(run.sum_rows(each * dz), p["frequency"].shape)
        if not need_dx:
            return None, grads
        dx = TURN * _summed(xp, dz * _flat(xp, p["frequency"]), n)
        return (dx if self.form == "plr" else dx + by_column[:, :, self.features - 1]), grads

    def _binned(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        """y, (rows, n width), of x, (rows, n): "piecewise_linear"."""
        xp = run.xp
        z = (_repeated(xp, x, self.most_bins) - _flat(xp, p["left"])) * _flat(xp, p["inverse"])
        e = xp.minimum(xp.maximum(z, _flat(xp, p["least"])), _flat(xp, p["most"]))
        if self.width is None:
            return e, (z, None, None)
        each = _repeated(xp, x, self.width)
        y, stacks = self._project(run, p, [e], x.shape[1])
        return y + each * _flat(xp, p["linear"]), (z, each, stacks)

    def _binned_backward(
        self, run: Run, p: Params, cache: Any, dy: Array, n: int, need_dx: bool
    ) -> tuple[Array | None, dict[str, Any]]:
        xp, (z, each, stacks) = run.xp, cache
        de, grads = dy, dict[str, Any]()
        if self.width is not None:
            (de,), grads = self._project_backward(run, p, stacks, dy, n)
            grads["linear"] = xp.reshape(run.sum_rows(each * dy), p["linear"].shape)
        if not need_dx:
            return None, grads
        within = (z > _flat(xp, p["least"])) & (z < _flat(xp, p["most"]))
        dx = _summed(xp, xp.where(within, de * _flat(xp, p["inverse"]), 0.0), n)
        return (dx if self.width is None else dx + _summed(xp, dy * _flat(xp, p["linear"]), n)), grads

    def _project(self, run: Run, p: Params, made: list[Array], n: int) -> tuple[Array, list[Array]]:
        """The sum of c V and a over what is made of x, (rows, n k) each, and its parts as stacks, a matrix a column."""
        stacks = [_by_column(run.xp, part, n) for part in made]
        y, *more = (run.matmul(part, weight) for part, weight in zip(stacks, self._weights(p), strict=True))
        return _by_row(run.xp, sum(more, y)) + _flat(run.xp, p["bias"]), stacks

    def _project_backward(
        self, run: Run, p: Params, stacks: list[Array], dt: Array, n: int
    ) -> tuple[list[Array], dict[str, Any]]:
        """dL/dc of each part, and the gradients of V and a."""
        by_column = _by_column(run.xp, dt, n)
        slopes = [_by_row(run.xp, run.matmul(by_column, weight, transpose_b=True)) for weight in self._weights(p)]
        dweights = [run.matmul(part, by_column, transpose_a=True) for part in stacks]
        dweight = dweights[0] if len(dweights) == 1 else run.xp.concat(dweights, axis=1)
        return slopes, {"weight": dweight, "bias": run.xp.reshape(run.sum_rows(dt), p["bias"].shape)}

    def _weights(self, p: Params) -> list[Array]:
        """V for each part of what is made of x."""
        f, weight = self.frequencies, p["weight"]
        return [weight[:, :f, :], weight[:, f:, :]] if self.form == "plr" else [weight]


def _flat(xp: Any, values: Array) -> Array:
    """Parameters of every column, (n, k), as one vector beside rows of n k features."""
    return xp.reshape(values, (-1,))


def _repeated(xp: Any, x: Array, times: int) -> Array:
    """Each number of a row so many times: (rows, n) -> (rows, n times)."""
    return xp.reshape(xp.broadcast_to(xp.expand_dims(x, axis=2), (*x.shape, times)), (x.shape[0], -1))


def _by_column(xp: Any, rows: Array, n: int) -> Array:
    """Rows of k features for each of n columns as a stack of matrices, one a column: (rows, n k) -> (n, rows, k)."""
    return xp.permute_dims(xp.reshape(rows, (rows.shape[0], n, -1)), (1, 0, 2))


def _by_row(xp: Any, stack: Array) -> Array:
    """The reverse."""
    return xp.reshape(xp.permute_dims(stack, (1, 0, 2)), (stack.shape[1], -1))


def _summed(xp: Any, rows: Array, n: int) -> Array:
    """The sum over the features of each column: (rows, n k) -> (rows, n)."""
    return xp.sum(xp.reshape(rows, (rows.shape[0], n, -1)), axis=2)


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
