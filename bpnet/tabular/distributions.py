"""What a network says of a quantity besides its prediction: how much it may be off, and quantiles.

An output is that of one network, or of the members of an ensemble; functions take the loss that it was trained with.
"""

from collections.abc import Iterable, Sequence
from statistics import NormalDist

from bpnet.backends import Array, Backend, backend_of
from bpnet.errors import OptionError
from bpnet.losses.base import Loss
from bpnet.losses.likelihood import GaussianNLL
from bpnet.losses.members import Members
from bpnet.losses.regression import Quantile
from bpnet.options import numbers
from bpnet.tabular.target import pooled

USUAL = (0.05, 0.5, 0.95)
"""Quantiles where none are named."""


def moments(backend: Backend, loss: Loss, outputs: Array) -> tuple[Array, Array | None]:
    """The prediction of each target, (rows, targets), and its variance, None where nothing tells it.

    Of gaussian_nll it is the predicted one, for members that of the mixture of what they say, sum (s_m + mu_m**2) / k -
    mu**2 (Lakshminarayanan, Pritzel and Blundell 2017).  Of several members with another loss, how far they disagree.
    """
    with backend.session(device=backend.device(outputs)):
        return _moments(backend, loss, outputs)


def _moments(backend: Backend, loss: Loss, outputs: Array) -> tuple[Array, Array | None]:
    xp, plain = backend.xp, loss.single
    if isinstance(plain, GaussianNLL):
        _, output = pooled(backend, loss, outputs)
        log = xp.reshape(output, (output.shape[0], -1, 2))[:, :, 1]
        return plain.prediction(backend, output), xp.exp(log)
    mean = loss.prediction(backend, outputs)
    if not isinstance(loss, Members) or outputs.shape[1] == 1:
        return mean, None
    rows, members = outputs.shape[:2]
    each = plain.prediction(backend, xp.reshape(outputs, (rows * members, -1)))
    each = xp.reshape(each, (rows, members, -1))
    off = each - xp.mean(each, axis=1, keepdims=True)
    return mean, xp.mean(off * off, axis=1)


def no_deviation(loss: Loss) -> str:
    """The message where a standard deviation is asked for and nothing gives one."""
    return (
        f"return_std=True, but loss is {loss.single}, which gives no standard deviation: train with "
        "loss='gaussian_nll' or with ensemble=8, or with dropout=0.1 and draw samples=50, say"
    )


def drawn_moments(loss: Loss, draws: Iterable[Array]) -> tuple[Array, Array]:
    """The mean and the variance of a prediction over networks that were drawn, each of which gave some outputs.

    By the law of total variance, that is how far their means vary, and the mean of the variances that they tell (Gal
    and Ghahramani 2016; Kendall and Gal 2017, equation 9).
    """
    count = 0
    mean: Array = None
    spread: Array = None
    within: Array = None
    for outputs in draws:
        backend = backend_of(outputs)
        with backend.session(device=backend.device(outputs)):
            value, variance = _moments(backend, loss, outputs)
            count += 1
            if mean is None:
                mean, spread = value, value * 0.0
                within = spread if variance is None else variance
                continue
            change = value - mean
            mean = mean + change * (1.0 / count)
            spread = spread + change * (value - mean)
            within = within if variance is None else within + variance
    return mean, (spread + within) * (1.0 / count)


def levels_of(loss: Loss) -> tuple[float, ...]:
    """The quantiles that a network with this loss gives; none of other losses."""
    plain = loss.single
    return tuple(plain.quantiles) if isinstance(plain, Quantile) else ()


def quantiles(backend: Backend, loss: Loss, outputs: Array, levels: Sequence[float] | None = None) -> Array:
    """Quantiles of each target, (rows, targets, levels), which never cross; None for all that the loss has.

    Of the loss "quantile" they are the outputs, in rising order (Chernozhukov, Fernandez-Val and Galichon 2010), which
    are never further from the true ones than as they come; of gaussian_nll mean + z deviation, with z that of the
    normal distribution.  Raises OptionError where the loss gives none, or not these.
    """
    if levels is not None:
        levels = numbers("quantiles", levels, 0.0, 1.0, closed="neither")
    with backend.session(device=backend.device(outputs)):
        return _quantiles(backend, loss, outputs, levels)


def _quantiles(backend: Backend, loss: Loss, outputs: Array, levels: Sequence[float] | None) -> Array:
    xp, plain = backend.xp, loss.single
    if isinstance(plain, GaussianNLL):
        mean, variance = _moments(backend, loss, outputs)
        assert variance is not None
        z = backend.constants([NormalDist().inv_cdf(q) for q in levels or USUAL], mean)
        return xp.expand_dims(mean, axis=2) + xp.expand_dims(xp.sqrt(variance), axis=2) * z
    known = levels_of(loss)
    if not known:
        raise OptionError(
            f"loss is {plain}, which gives no quantiles: train with loss='quantile', or with 'gaussian_nll'"
        )
    _, output = pooled(backend, loss, outputs)
    found = xp.sort(xp.reshape(output, (output.shape[0], -1, len(known))), axis=2)
    if levels is None or tuple(levels) == known:
        return found
    missing = [q for q in levels if q not in known]
    if missing:
        raise OptionError(f"quantiles has {missing[0]}; expected some of those that were learnt: {known}")
    return xp.stack([found[:, :, known.index(q)] for q in levels], axis=2)
