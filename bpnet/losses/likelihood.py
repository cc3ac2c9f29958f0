"""Losses that are the negative logarithm of a likelihood, of targets with a distribution: counts, amounts, noise.

Constants, which no output changes, are left out.  Rates and means are positive, so the output z is their logarithm.
"""

from dataclasses import dataclass

from bpnet.backends.base import Array, Backend
from bpnet.errors import ShapeError
from bpnet.layer import Run, Shape
from bpnet.losses.base import ElementwiseLoss, RowLoss, log_mean_exp
from bpnet.options import number

FAR = 800.0
"""Beyond it exp is infinite in float64, and in float32."""


class _LogLink(ElementwiseLoss):
    """Of a mean exp(z)."""

    least = 0.0
    harmless = 0.0

    def prediction(self, b: Backend, output: Array) -> Array:
        return b.xp.exp(output)

    def average(self, b: Backend, outputs: Array) -> Array:
        return log_mean_exp(b, outputs)


@dataclass(frozen=True, repr=False)
class Poisson(_LogLink):
    """l = mean over outputs of exp(z) - t z; dl/dz = exp(z) - t, over the number of outputs.

    Of counts t >= 0 with the mean exp(z); log t! is left out (McCullagh and Nelder 1989).  PyTorch's PoissonNLLLoss().
    """

    names = {"poisson": {}}

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        mean = b.xp.exp(output)
        return b.xp.where(output > FAR, mean, mean - target * output)

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return b.xp.exp(output) - target


@dataclass(frozen=True, repr=False)
class Gamma(_LogLink):
    """l = mean over outputs of z + t exp(-z); dl/dz = 1 - t exp(-z), over the number of outputs.

    Of amounts t > 0 whose deviation is proportional to their mean exp(z): half of the gamma deviance but for
    1 + log t, which no output changes (McCullagh and Nelder 1989).
    """

    names = {"gamma": {}}
    positive = True

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        return output + target * b.xp.exp(-output)

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        return 1.0 - target * b.xp.exp(-output)


@dataclass(frozen=True, repr=False)
class Tweedie(_LogLink):
    """l = mean over outputs of exp((2 - p) z) / (2 - p) + t exp((1 - p) z) / (p - 1), for a power 1 < p < 2.

    dl/dz = exp((2 - p) z) - t exp((1 - p) z), over the number of outputs.  Of amounts t >= 0 that are 0 with some
    probability, as sums of a random number of claims are, with the mean exp(z) and a variance proportional to its p-th
    power (Jorgensen 1987): half of the deviance but for a constant.  Poisson and Gamma are the limits p = 1 and 2.
    """

    power: float = 1.5

    names = {"tweedie": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(power=number("power", self.power, 1.0, 2.0, closed="neither"))

    def _terms(self, b: Backend, output: Array, target: Array) -> tuple[Array, Array]:
        xp, p = b.xp, self.power
        amount = target * xp.exp((1.0 - p) * output)
        return xp.exp((2.0 - p) * output), xp.where(target > 0.0, amount, 0.0)  # 0 times infinity is 0

    def value(self, b: Backend, output: Array, target: Array) -> Array:
        mean, amount = self._terms(b, output, target)
        return mean * (1.0 / (2.0 - self.power)) + amount * (1.0 / (self.power - 1.0))

    def derivative(self, b: Backend, output: Array, target: Array) -> Array:
        mean, amount = self._terms(b, output, target)
        return mean - amount


@dataclass(frozen=True, repr=False)
class GaussianNLL(RowLoss):
    """l = mean over targets of (s + (t - m)**2 exp(-s)) / 2, of a mean m and the logarithm s of a variance.

    dl/dm = (m - t) exp(-s), dl/ds = (1 - (t - m)**2 exp(-s)) / 2, over the number of targets; log(2 pi) / 2 is left
    out.  A row of the output has two numbers for each target in turn: (m_0, s_0, m_1, s_1, ...).  Any number is the
    logarithm of a variance, so no activation or smallest variance is needed (Nix and Weigend 1994; Kendall and Gal
    2017).
    """

    names = {"gaussian_nll": {}}

    def target_shape(self, out_shape: Shape) -> Shape:
        if len(out_shape) != 1 or out_shape[0] % 2:
            raise ShapeError(
                f"gaussian_nll needs two outputs for each target, its mean and the logarithm of its variance, but the "
                f"network gives {out_shape} per row: end it with Dense(2) for one target"
            )
        return (out_shape[0] // 2,)

    def row_values(self, run: Run, output: Array, target: Array) -> tuple[Array, Array]:
        xp, (rows, width) = run.xp, output.shape
        pairs, is_mean = xp.reshape(output, (rows, width // 2, 2)), run.backend.constants((1.0, 0.0), output) > 0.5
        mean = xp.sum(xp.where(is_mean, pairs, 0.0), axis=2, keepdims=True)
        s = xp.sum(xp.where(is_mean, 0.0, pairs), axis=2, keepdims=True)
        error, root = mean - xp.expand_dims(target, axis=2), xp.exp(-0.5 * s)
        ratio = xp.where(error == 0.0, 0.0, error * root)  # 0 times infinity is 0, twice
        square = ratio * ratio
        slope = xp.where(is_mean, xp.where(error == 0.0, 0.0, ratio * root), 0.5 - 0.5 * square) * (2.0 / width)
        return (s + square) * (1.0 / width), slope

    def prediction(self, b: Backend, output: Array) -> Array:
        """The means."""
        return b.xp.reshape(output, (output.shape[0], output.shape[1] // 2, 2))[:, :, 0]

    def average(self, b: Backend, outputs: Array) -> Array:
        """The mean and the variance of the mixture: the mean of the variances and the variance of the means."""
        xp, (rows, k, width) = b.xp, outputs.shape
        pairs = xp.reshape(outputs, (rows, k, width // 2, 2))
        means, s = pairs[:, :, :, 0], pairs[:, :, :, 1]
        mean = xp.mean(means, axis=1)
        off = means - xp.expand_dims(mean, axis=1)
        variance = xp.exp(log_mean_exp(b, s)) + xp.mean(off * off, axis=1)
        return xp.reshape(xp.stack([mean, xp.log(variance)], axis=2), (rows, width))
