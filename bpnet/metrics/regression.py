"""Metrics of numbers: of the error e = prediction - target in the target's own unit, a mean over rows, then outputs."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.layer import Run
from bpnet.losses.base import Loss
from bpnet.losses.regression import Quantile
from bpnet.metrics.base import Metric, Statistics, ratio, total, weighed
from bpnet.options import number


class _OfErrors(Metric):
    """A mean over rows, by weight, of every output."""

    of = ("numbers",)
    larger_is_better = False

    def prediction(self, run: Run, loss: Loss, output: Array) -> Array:
        """What is compared with the target."""
        return loss.prediction(run.backend, output)

    def of_error(self, xp: Any, error: Array, target: Array) -> Array:
        """What is averaged."""
        raise NotImplementedError

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        xp, rows = run.xp, output.shape[0]
        y, t = (xp.reshape(x, (rows, -1)) for x in (self.prediction(run, loss, output), target))
        return total(run, self.of_error(xp, y - t, t), weight), xp.sum(weight)

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        value, count = statistics
        return float(xp.mean(value / count))


@dataclass(frozen=True)
class MAE(_OfErrors):
    """Mean absolute error: the mean of |e|."""

    names = {"mae": {}}

    def of_error(self, xp: Any, error: Array, target: Array) -> Array:
        return xp.abs(error)


@dataclass(frozen=True)
class RMSE(_OfErrors):
    """Root mean squared error: the root of the mean of e**2, of every output, then averaged."""

    names = {"rmse": {}}

    def of_error(self, xp: Any, error: Array, target: Array) -> Array:
        return error * error

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        value, count = statistics
        return float(xp.mean(xp.sqrt(value / count)))


@dataclass(frozen=True)
class MAPE(_OfErrors):
    """Mean absolute percentage error: the mean of |e / target|, 0.1 being 10%.

    A target of 0 counts as float64's rounding error, as in scikit-learn, so that it gives a huge value.
    """

    names = {"mape": {}}

    def of_error(self, xp: Any, error: Array, target: Array) -> Array:
        return xp.abs(error) / xp.maximum(xp.abs(target), 2.0**-52)


@dataclass(frozen=True)
class Pinball(_OfErrors):
    """The mean of alpha |e| where the target is larger, else of (1 - alpha) |e|: least for the alpha-quantile.

    Where the loss is `Quantile` and has that one, the output for it is taken.  It is called `pinball_0.9` and so on, of
    the median, the default, `pinball`.
    """

    alpha: float = 0.5

    names = {"pinball": {}}

    def __post_init__(self) -> None:
        self._set(alpha=number("alpha", self.alpha, 0.0, 1.0))

    @property
    def key(self) -> str:
        return super().key if self == Pinball() else f"pinball_{self.alpha:g}"

    def prediction(self, run: Run, loss: Loss, output: Array) -> Array:
        if isinstance(loss, Quantile) and self.alpha in loss.quantiles:
            return loss.quantile(run.backend, output, self.alpha)
        return super().prediction(run, loss, output)

    def of_error(self, xp: Any, error: Array, target: Array) -> Array:
        return xp.maximum(-self.alpha * error, (1.0 - self.alpha) * error)


@dataclass(frozen=True)
class R2(_OfErrors):
    """1 - sum e**2 / sum (target - its mean)**2, the share of the variance that is explained; the mean over outputs.

    Where a target is constant, 1 if there is no error, else 0.  Means and squares of lots of rows are joined so that
    no digits are lost where the mean is large (Chan, Golub and LeVeque 1983).
    """

    names = {"r2": {}}
    larger_is_better = True

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        xp, rows = run.xp, output.shape[0]
        y, t = (xp.reshape(x, (rows, -1)) for x in (self.prediction(run, loss, output), target))
        count = xp.sum(weight)
        mean = total(run, t, weight) / xp.maximum(count, float(xp.finfo(t.dtype).smallest_normal))
        off = t - mean
        return total(run, (y - t) * (y - t), weight), mean, run.sum_rows(weighed(run, off * off, weight)), count

    def combine(self, b: Backend, some: Statistics, more: Statistics) -> Statistics:
        xp, (errors, mean, square, count), (errors_2, mean_2, square_2, count_2) = b.xp, some, more
        both, apart = count + count_2, mean_2 - mean
        share = count_2 / xp.maximum(both, float(xp.finfo(mean.dtype).smallest_normal))
        square = square + square_2 + apart * apart * (count * share)
        return errors + errors_2, mean + apart * share, square, both

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        errors, _, square, _ = statistics
        constant = xp.where(errors == 0.0, 1.0, 0.0)
        return float(xp.mean(xp.where(square == 0.0, constant, 1.0 - ratio(xp, errors, square))))
