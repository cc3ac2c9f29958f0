"""Scales of features and targets: what brings them to that of weights, and whether float32 can hold them."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from bpnet.backends import Array
from bpnet.errors import DataError
from bpnet.layers.standardize import Standardize
from bpnet.losses.base import Loss
from bpnet.losses.classes import ClassLoss
from bpnet.losses.likelihood import Gamma, GaussianNLL, Poisson, Tweedie
from bpnet.losses.regression import Huber, MeanAbsoluteError, MeanSquaredError, Quantile
from bpnet.optimizers.adam import Adam, Adamax, NAdam, RAdam
from bpnet.optimizers.adaptive import Adagrad, RMSprop
from bpnet.optimizers.around import SAM
from bpnet.optimizers.base import Optimizer
from bpnet.optimizers.layerwise import LAMB
from bpnet.optimizers.schedule_free import ScheduleFreeAdamW
from bpnet.optimizers.sgd import SGD

LOST = 1e-4
"""The part of a deviation that float32 may take off a value, before float64 is needed."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What comes after the last weights: the layer that brings outputs to the unit of the target, None for classes.

    `loss` is in that unit, and its gradient `factor` times that of the standardized target.  `wide` says that float32
    can't hold the target, and `range` has the least and the largest value of each quantity.
    """

    layer: Standardize | None
    loss: Loss
    factor: float = 1.0
    wide: bool = False
    range: tuple[list[float], list[float]] | None = None


def output_for(y: Array, loss: Loss, what: str) -> Output:
    """For quantities y, (rows, columns), and a loss; mean squared error counts all columns alike.

    Raises DataError where a unit is one of which float64 can't hold the powers that training takes.
    """
    if isinstance(loss, ClassLoss) or loss.boundary is not None:
        return Output(None, loss)
    mean, deviation, lost = moments(y)
    return output_of(mean, deviation, lost, (y.min(axis=0), y.max(axis=0)), loss, what)


def output_of(mean: Array, deviation: Array, lost: Array, ends: tuple[Array, Array], loss: Loss, what: str) -> Output:
    """The same of moments of the quantities, and of the least and the largest of each."""
    found = _output(mean, deviation, lost, loss, what)
    return dataclasses.replace(found, range=(ends[0].tolist(), ends[1].tolist()))


def _output(mean: Array, deviation: Array, lost: Array, loss: Loss, what: str) -> Output:
    center, units = mean.tolist(), [float(d) or 1.0 for d in deviation]
    for unit in units:
        if not 1e-60 <= unit <= 1e60:
            raise DataError(
                f"{what} has the deviation {unit:.3g}, of which float64 can't hold the powers that training takes: "
                "bring it between 1e-60 and 1e60, by a power of ten"
            )
    # under 1.9e-5, Adam's epsilon in this unit would be less than float32 gradients have squares for
    wide = not all(2e-5 <= unit <= 1e7 for unit in units) or bool(np.any(lost > LOST * np.array(units)))
    if len(units) > 1 and isinstance(loss, MeanSquaredError):
        loss = dataclasses.replace(loss, scale=units) if loss.scale == 1.0 else loss
        return Output(Standardize(center, units, invert=True), loss, 1.0, wide)
    unit = math.hypot(*units) / math.sqrt(len(units))  # which squares nothing that overflows
    if isinstance(loss, Poisson | Gamma | Tweedie):  # whose outputs are logarithms of means
        logs = [math.log(m) if m > 0 else 0.0 for m in center]
        return Output(_inverted(logs, 1.0), loss, 1.0, wide)
    if isinstance(loss, GaussianNLL):  # a mean and the logarithm of a variance each
        pairs = [value for m in center for value in (m, 2.0 * math.log(unit))]
        layer = Standardize(pairs, [unit, 1.0] * len(center), invert=True)
        return Output(layer, loss, 1.0, wide)
    if isinstance(loss, Quantile):
        center = [m for m in center for _ in loss.quantiles]
    if isinstance(loss, Huber):  # whose delta is in deviations
        loss = dataclasses.replace(loss, delta=loss.delta * unit)
    power = (
        2 if isinstance(loss, MeanSquaredError | Huber) else 1 if isinstance(loss, MeanAbsoluteError | Quantile) else 0
    )
    return Output(_inverted(center, unit), loss, unit**power, wide)


def _inverted(mean: list[float], unit: float) -> Standardize:
    return Standardize(mean if len(mean) > 1 else mean[0], unit, invert=True)


def rescaled(optimizer: Optimizer, factor: float) -> Optimizer:
    """`optimizer` for a loss whose gradient is `factor` times as large as that of the standardized target.

    Its steps are those that it would take for the standardized target, so the network that is saved, which answers in
    the target's unit, is the one that was trained, and can be trained on.
    """
    if factor == 1.0:
        return optimizer
    if isinstance(optimizer, SAM):
        return dataclasses.replace(optimizer, base=rescaled(optimizer.base, factor))
    # whose epsilon is added to the size of gradients
    over_roots = Adam, NAdam, RAdam, Adamax, LAMB, RMSprop, Adagrad, ScheduleFreeAdamW
    if isinstance(optimizer, over_roots):
        return dataclasses.replace(optimizer, epsilon=optimizer.epsilon * factor)
    if isinstance(optimizer, SGD) and isinstance(optimizer.lr, float):
        return dataclasses.replace(optimizer, lr=optimizer.lr / factor)
    return optimizer


def needs_float64(x: Array, titles: Sequence[str]) -> str | None:
    """The title of the first column of numbers that float32 can't hold, None where there is none.

    Raises DataError where float64 could not scale one either.
    """
    mean, deviation, lost = moments(x)
    varies = deviation > 0.0
    far = varies & ((deviation < 1e-300) | (np.abs(mean) + deviation > 1e300))
    for i in np.flatnonzero(far).tolist():
        raise DataError(
            f"{titles[i]} has the mean {mean[i]:.3g} and the deviation {deviation[i]:.3g}, at the end of what "
            "float64 holds: multiply or divide it by a power of ten"
        )
    most = np.where(varies, LOST * deviation, np.finfo(np.float32).max)
    return next((titles[i] for i in np.flatnonzero(lost > most).tolist()), None)


def moments(values: Array) -> tuple[Array, Array, Array]:
    """Mean and deviation of every column, 0 if it is constant, and the most that float32 takes off one of its values.

    NaN is left out.  Columns are taken a few at a time, since each needs float64 copies.
    """
    found = []
    for i in range(0, values.shape[1], step := max(1, (1 << 23) // len(values))):
        part = values[:, i : i + step].astype(np.float64)
        gaps = np.isnan(part)
        if gaps.any():
            found += [_moments(part[~gap, j : j + 1]) for j, gap in enumerate(gaps.T)]
        else:
            found.append(_moments(part))
    mean, deviation, lost = map(np.concatenate, zip(*found, strict=True))
    return mean, deviation, lost


def _moments(part: Array) -> tuple[Array, Array, Array]:
    """Of columns without NaN; the largest magnitude is taken out before anything is squared, so that nothing overflows
    or vanishes."""
    if len(part) == 0:
        part = np.zeros((1, part.shape[1]))
    with np.errstate(all="ignore"):
        single = part.astype(np.float32)
        single[np.abs(single) < np.finfo(np.float32).smallest_normal] = 0.0  # as GPUs may do with subnormal numbers
        lost = np.abs(part - single).max(axis=0)
    exponent = np.frexp(np.abs(part).max(axis=0))[1]
    part = np.ldexp(part, -exponent)
    constant = part.min(axis=0) == part.max(axis=0)
    mean = np.ldexp(np.where(constant, part[0], part.mean(axis=0)), exponent)
    return mean, np.ldexp(np.where(constant, 0.0, part.std(axis=0)), exponent), lost


class Spread:
    """`moments` of rows that come in parts, and the least and the largest value of each column, in `ends`.

    Those of parts are put together by Chan, Golub and LeVeque (1979), equal to those of all rows within rounding.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.mean: Array = 0.0
        self.squares: Array = 0.0
        self.lost: Array = 0.0
        self.ends: tuple[Array, Array] = (math.inf, -math.inf)

    def add(self, part: Array) -> None:
        """Rows (rows, columns) of float64, at least one and without NaN."""
        mean, deviation, lost = _moments(part)
        rows, old = len(part), self.rows
        with np.errstate(all="ignore"):
            gap = mean - self.mean
            self.squares = self.squares + deviation * deviation * rows + gap * gap * (old * rows / (old + rows))
            self.mean = self.mean + gap * (rows / (old + rows))
        self.rows, self.lost = old + rows, np.maximum(self.lost, lost)
        self.ends = np.minimum(self.ends[0], part.min(axis=0)), np.maximum(self.ends[1], part.max(axis=0))

    @property
    def deviation(self) -> Array:
        """0 of what is constant; where its square can't be held, the distance of the ends, which is about as large."""
        width = self.ends[1] - self.ends[0]
        found = np.sqrt(self.squares / max(self.rows, 1))
        return np.where((width > 0) & ~((found > 0) & np.isfinite(found)), width, np.where(width > 0, found, 0.0))

    def output(self, loss: Loss, what: str) -> Output:
        """As `output_for`."""
        if isinstance(loss, ClassLoss) or loss.boundary is not None:
            return Output(None, loss)
        return output_of(self.mean, self.deviation, self.lost, self.ends, loss, what)
