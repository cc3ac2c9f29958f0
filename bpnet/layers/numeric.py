"""Columns of numbers as a network wants them: centred, of one scale, without outliers, and 0 where one is missing."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import NormalDist
from typing import Any, Literal

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError, shown
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.layers.standardize import shown_values
from bpnet.options import is_listed, number_or_numbers, numbers, positive, wholes

MOST = 2**23
"""Whole numbers up to it, and what is half way between two, are exact in float32."""
STEEPEST = 1e30
"""What a derivative by x is at most: a number of float32."""
FAR = 1e9
"""Beyond it, z / sqrt(1 + z**2) is 1 in float64, and its square is a number of float32."""


@dataclass(frozen=True, repr=False)
class NumericInput(Layer):
    r"""y = [z, m]: the columns of x brought to one scale, and behind them which of some columns are missing.

    A missing value is NaN, and z is 0 there.  Elsewhere, with the center and the scale s of the column,

        z = (x - center) / s,                       dz/dx = 1 / s        (both 0 for a column of scale 0),

    or with `quantiles`, the non-decreasing knots q_0 ... q_m of the column, the normal score of x, piecewise linear:

        z = s_i + (s_{i+1} - s_i) (x - q_i) / (q_{i+1} - q_i)   for q_i <= x < q_{i+1},
        dz/dx = (s_{i+1} - s_i) / (q_{i+1} - q_i),      where s_i = Phi^{-1}((i + 1/2) / (m + 1)),

    s_0 below q_0 and s_m from q_m on, and the mean of their scores for knots that are equal.  Then `clip`, a number c,
    is the smooth clip to -c ... c of Holzmueller et al. (2024),

        y = z / sqrt(1 + (z / c)^2),                dy/dz = (1 + (z / c)^2)^{-3/2}.

    m is 1 where x is missing in the columns whose numbers are in `missing`, else 0; it has no derivative, and where x
    is missing dL/dx is 0.  Rows x of (..., n) become rows of (..., n + number of `missing`).

    `center` and `scale` are a number each, or one for every column; nothing is trained.  `NumericInput.fit(x)` finds
    all of them in data.  Raises OptionError on options that do not fit together.
    """

    center: float | Sequence[float] = 0.0
    scale: float | Sequence[float] = 1.0
    clip: float | None = None
    quantiles: Sequence[Sequence[float]] | None = None
    missing: Sequence[int] = ()

    accepts_nan = True
    trainable = False
    example = (0.5, 2.0, 3.0, None, (1, 3))

    def __post_init__(self) -> None:
        center = number_or_numbers("center", self.center, -math.inf, math.inf, closed="neither")
        scale = number_or_numbers("scale", self.scale, 0.0, math.inf, closed="left")
        clip = None if self.clip is None else positive("clip", self.clip)
        self._set(center=center, scale=scale, clip=clip, quantiles=_checked_knots(self.quantiles))
        missing = wholes("missing", self.missing, 0)
        if list(missing) != sorted(set(missing)):
            raise OptionError(f"missing is {missing}; expected numbers of columns in their order, each once")
        self._set(missing=missing)
        if len({len(values) for values in self._per_column().values()}) > 1:
            given = ", ".join(f"{name} {len(values)}" for name, values in self._per_column().items())
            raise OptionError(f"there are of {given}; expected one of each for every column")

    def __repr__(self) -> str:
        options = [f"center={shown_values(self.center)}", f"scale={shown_values(self.scale)}"]
        if self.quantiles is not None:
            options = [f"quantiles=... {len(self.quantiles)} columns"]
        if self.clip is not None:
            options.append(f"clip={self.clip:g}")
        if self.missing:
            several = f"... {len(self.missing)} columns"
            options.append(f"missing={self.missing if len(self.missing) < 4 else several}")
        return f"NumericInput({', '.join(options)})"

    @classmethod
    def fit(
        cls,
        x: Any,
        kind: Literal["robust", "standard", "quantile", "none"] = "robust",
        *,
        clip: float | None = None,
        missing: Sequence[int] | None = None,
        knots: int = 128,
    ) -> "NumericInput":
        r"""The layer for the columns of x, (..., n), an array of any library; what is computed of it is computed there.

        NaN is missing, and counts nowhere.

        kind : "robust", center is the median and scale the distance of the quartiles, or where these are equal, half
            of that from the smallest to the largest value (Holzmueller et al. 2024); "standard", mean and standard
            deviation; "quantile", so many `knots` as quantiles, from the smallest value to the largest; "none", 0 and 1
        clip : of the layer
        missing : the numbers of the columns that get an indicator; None for those that have NaN in x
        knots : at most, where there are as many values

        A column that is constant, or of which nothing is known, has scale 0 (or a single knot), and so is 0.  Raises
        DataError where x has infinity, and DTypeError or ShapeError where it is not rows of numbers.
        """
        found: NumericInput = importlib.import_module("bpnet.data.columns").numeric_input(x, kind, clip, missing, knots)
        return found

    def _per_column(self) -> dict[str, tuple[Any, ...]]:
        """The options that have a value for every column."""
        options = {"center": self.center, "scale": self.scale, "quantiles": self.quantiles}
        return {name: values for name, values in options.items() if isinstance(values, tuple)}

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            raise ShapeError("NumericInput needs rows of features, but x has one axis: make it (rows, features)")
        for name, values in self._per_column().items():
            if len(values) != in_shape[-1]:
                raise ShapeError(f"NumericInput has {name} for {len(values)} columns, but rows have {in_shape[-1]}")
        if self.missing and self.missing[-1] >= in_shape[-1]:
            raise ShapeError(
                f"NumericInput has the column {self.missing[-1]} among those that may be missing, but rows have "
                f"{in_shape[-1]}, from 0 on"
            )
        return (*in_shape[:-1], in_shape[-1] + len(self.missing))

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        columns = in_shape[-1:]
        if self.quantiles is not None:
            places = [_places(knots) for knots in self.quantiles]
            size = 2 ** math.ceil(math.log2(max(map(len, places)))) + 1
            table = (len(places) * size, 1)

            def padded(part: int) -> Any:
                return rng.given(
                    table, [[p[part]] for some in places for p in (*some, *[some[-1]] * (size - len(some)))]
                )

            values = {
                "knots": rng.computed(table, partial(padded, 0)),
                "scores": rng.computed(table, partial(padded, 1)),
                # between whole numbers, so that no rounding makes others of them
                "first": rng.given(columns, [size * i + 0.5 for i in range(columns[0])]),
                "low": rng.given(columns, [some[0][0] for some in places]),
                "high": rng.given(columns, [some[-1][0] for some in places]),
            }
        else:
            scale = self.scale if isinstance(self.scale, tuple) else (self.scale,)
            factor = [1.0 / s if s else 0.0 for s in scale]
            values = {"center": rng.given(columns, self.center), "factor": rng.given(columns, factor)}
        return {name: Leaf(value, trainable=False) for name, value in values.items()}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp, nan = run.xp, run.xp.isnan(x)
        if self.quantiles is None:
            z, slope = xp.where(nan, 0.0, (x - p["center"]) * p["factor"]), p["factor"]
        else:
            z, slope = self._scores(run, p, x)
            z = xp.where(nan, 0.0, z)
        if self.clip is not None:
            t = xp.minimum(xp.maximum(z * (1.0 / self.clip), -FAR), FAR)
            inverse = 1.0 / xp.sqrt(1.0 + t * t)
            z, slope = self.clip * (t * inverse), slope * (inverse * inverse * inverse)
        if self.missing:
            z = xp.concat([z, self._indicators(run, nan, x)], axis=-1)
        return z, (nan, slope)

    def _indicators(self, run: Run, nan: Array, x: Array) -> Array:
        """1 where x is missing, else 0, of the columns in `missing`."""
        xp, columns = run.xp, self.missing
        m = xp.astype(nan, x.dtype)
        if columns[-1] - columns[0] == len(columns) - 1:
            return m[..., columns[0] : columns[-1] + 1]
        numbers = xp.astype(run.backend.constants([float(i) for i in columns], x), xp.int32)
        return xp.take(m, numbers, axis=-1)

    def _scores(self, run: Run, p: Params, x: Array) -> tuple[Array, Array]:
        """The normal scores of x, and their derivatives.

        The piece of each value is found by bisection, in all columns at once: `at` is where it begins, `low` and `high`
        are its ends.
        """
        xp = run.xp

        def looked_up(name: str, at: Array) -> Array:
            index = xp.reshape(xp.astype(at, xp.int32), (-1,))
            return xp.reshape(xp.take(p[name], index, axis=0), x.shape)

        at, low, high = (xp.zeros_like(x) + p[name] for name in ("first", "low", "high"))
        half = p["knots"].shape[0] // x.shape[-1] - 1
        while half > 1:
            half //= 2
            knot = looked_up("knots", at + float(half))
            further = knot <= x
            at, low = xp.where(further, at + float(half), at), xp.where(further, knot, low)
            high = xp.where(further, high, knot)
        score = looked_up("scores", at)
        rise, width = looked_up("scores", at + 1.0) - score, xp.where(high > low, high - low, 1.0)
        t = (x - low) / width
        z = score + rise * xp.minimum(xp.maximum(t, 0.0), 1.0)
        return z, xp.where((t >= 0.0) & (t < 1.0), xp.minimum(rise / width, STEEPEST), 0.0)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        if not need_dx:
            return None, {}
        nan, slope = cache
        dz = dy[..., : nan.shape[-1]] if self.missing else dy
        return run.xp.where(nan, 0.0, dz * slope), {}


def _checked_knots(quantiles: Any) -> tuple[tuple[float, ...], ...] | None:
    if quantiles is None:
        return None
    if not is_listed(quantiles):
        raise OptionError(f"quantiles is {shown(quantiles)}; expected the knots of every column, in a tuple")
    columns = tuple([numbers(f"quantiles[{i}]", q, -math.inf, math.inf, "neither") for i, q in enumerate(quantiles)])
    for i, knots in enumerate(columns):
        if list(knots) != sorted(knots):
            raise OptionError(f"quantiles[{i}] is not sorted; expected knots that do not decrease")
    if not columns:
        raise OptionError("quantiles is empty; expected the knots of every column")
    if len(columns) * 2 * max(map(len, columns)) > MOST:
        many = f"{len(columns):,} columns of up to {max(map(len, columns)):,} knots"
        raise OptionError(f"quantiles has {many}; expected at most {MOST // 2:,} in all: take fewer knots")
    return columns


@lru_cache(maxsize=16)
def _normal_scores(count: int) -> tuple[float, ...]:
    """Phi^{-1}((i + 1/2) / count) for each i below it."""
    return tuple([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


def _places(knots: Sequence[float]) -> list[tuple[float, float]]:
    """The knots with their scores; those that are equal are one, with the mean of theirs."""
    scores: dict[float, list[float]] = {}
    for knot, score in zip(knots, _normal_scores(len(knots)), strict=True):
        scores.setdefault(knot, []).append(score)
    return [(knot, math.fsum(some) / len(some)) for knot, some in scores.items()]
