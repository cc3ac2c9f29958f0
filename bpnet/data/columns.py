"""What `NumericInput.fit` finds in the columns of an array, on the device where it lies."""

import math
from collections.abc import Sequence
from typing import Any

from bpnet.backends import Array, Backend
from bpnet.data.checks import check_x
from bpnet.layer import Run
from bpnet.layers.numeric import NumericInput
from bpnet.options import choice, whole

SORTED = 2**24
"""About how many values are sorted at a time."""

Column = tuple[float, float, tuple[float, ...]]
"""The center and scale of a column, and its knots."""


def numeric_input(x: Any, kind: str, clip: float | None, missing: Sequence[int] | None, knots: int) -> NumericInput:
    """The layer for the columns of x, (..., n): see `NumericInput.fit`."""
    kind, knots = choice("kind", kind, ("robust", "standard", "quantile", "none")), whole("knots", knots, 2, 2**16)
    backend, x = check_x(x, accepts_nan=True)
    xp = backend.xp
    with backend.session(device=backend.device(x)):
        rows = xp.reshape(x, (-1, x.shape[-1]))
        known = xp.sum(xp.astype(~xp.isnan(rows), _whole_numbers(xp)), axis=0)
        counts: list[int] = backend.to_host(known).tolist()
        found: list[Column] = []
        if kind == "standard":
            found = _standard(backend, rows, counts)
        elif kind != "none":
            width = max(SORTED // rows.shape[0], 1)
            for start in range(0, rows.shape[1], width):
                stop = min(start + width, rows.shape[1])
                found += _sorted(backend, rows[:, start:stop], counts[start:stop], kind, knots)
        least = float(xp.finfo(x.dtype).smallest_normal)
    if missing is None:
        missing = [i for i, count in enumerate(counts) if count < rows.shape[0]]

    def plain(value: float) -> float:
        """A number that the type of x holds in full."""
        return value if abs(value) >= least else 0.0

    if kind == "quantile":
        quantiles = tuple([tuple(map(plain, column)) for *_, column in found])
        return NumericInput(clip=clip, quantiles=quantiles, missing=tuple(missing))
    if kind == "none":
        return NumericInput(clip=clip, missing=tuple(missing))
    centers, scales, _ = zip(*found, strict=True)
    return NumericInput(tuple(map(plain, centers)), tuple(map(plain, scales)), clip, missing=tuple(missing))


def _whole_numbers(xp: Any) -> Any:
    """The type of whole numbers that the library takes by itself, which is not of 64 bits everywhere."""
    return xp.__array_namespace_info__().default_dtypes()["integral"]


def _standard(backend: Backend, x: Array, counts: Sequence[int]) -> list[Column]:
    """Mean and deviation of each column; deviation 0 of what is constant, whatever rounding says."""
    xp, run, nan = backend.xp, Run(backend), backend.xp.isnan(x)
    share = backend.constants([1.0 / max(count, 1) for count in counts], x)
    mean = run.sum_rows(xp.where(nan, 0.0, x * share))
    off = xp.where(nan, 0.0, x - mean)
    largest = xp.max(xp.abs(off), axis=0)
    largest = xp.where(largest > 0.0, largest, 1.0)
    ratio = off / largest  # whose square is no larger than any number
    deviation = xp.sqrt(run.sum_rows(ratio * ratio) * share) * largest
    low, high = xp.min(xp.where(nan, math.inf, x), axis=0), xp.max(xp.where(nan, -math.inf, x), axis=0)
    deviation = xp.where(high > low, deviation, 0.0)
    centers, scales = (backend.to_host(a).tolist() for a in (mean, deviation))
    return [(center, scale, ()) for center, scale in zip(centers, scales, strict=True)]


def _sorted(backend: Backend, x: Array, counts: Sequence[int], kind: str, knots: int) -> list[Column]:
    """What quantiles of each column say: median, and the distance of the quartiles, or the knots."""
    xp = backend.xp
    columns = xp.permute_dims(x, (1, 0))
    columns = xp.sort(xp.where(xp.isnan(columns), math.inf, columns), axis=-1)
    sizes = [min(knots, max(count, 1)) if kind == "quantile" else 5 for count in counts]
    places = [
        [i * (max(count, 1) - 1) / max(size - 1, 1) for i in range(size)]
        for count, size in zip(counts, sizes, strict=True)
    ]
    most = max(sizes)
    values = []
    for rounded in (math.floor, math.ceil):
        index = [[rounded(at) for at in (*some, *[some[-1]] * (most - len(some)))] for some in places]
        numbers = xp.asarray(index, dtype=_whole_numbers(xp), device=backend.device(x))
        values.append(backend.to_host(xp.take_along_axis(columns, numbers, axis=-1)).tolist())
    found: list[Column] = []
    for count, some, low, high in zip(counts, places, *values, strict=True):
        if not count:
            found.append((0.0, 0.0, (0.0,)))
            continue
        made = [a + (b - a) * (at - math.floor(at)) for at, a, b in zip(some, low, high, strict=False)]
        found.append(_robust(made) if kind == "robust" else (0.0, 1.0, tuple(made)))
    return found


def _robust(quartiles: Sequence[float]) -> Column:
    """The median, and the distance of the quartiles; where that is 0, half of that of the ends (Holzmueller 2024)."""
    low, first, median, third, high = quartiles
    return median, third - first if third > first else 0.5 * (high - low), ()
