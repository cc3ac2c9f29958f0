"""Intervals of quantities and sets of classes from what a network says, calibrated by rows that it was not trained on.

`conformal` has the formulas; here they meet losses and their outputs.
"""

from typing import Any

import numpy as np

from bpnet.backends import Array, Backend, backend_of
from bpnet.errors import OptionError
from bpnet.losses.base import Loss
from bpnet.tabular import conformal
from bpnet.tabular.distributions import levels_of, moments, quantiles


def _spread(backend: Backend, loss: Loss, outputs: Array) -> tuple[Array, Array, Array, Array]:
    """Prediction and deviation of each target, and its lowest and highest quantile; None where there is no such."""
    mean, variance = moments(backend, loss, outputs)
    if len(levels_of(loss)) > 1:
        found = quantiles(backend, loss, outputs)
        return mean, None, found[:, :, 0], found[:, :, -1]
    if variance is None:
        return mean, None, None, None
    least = backend.xp.finfo(mean.dtype).smallest_normal  # members may agree to the last bit
    return mean, backend.xp.sqrt(backend.xp.maximum(variance, float(least))), None, None


def interval_scores(loss: Loss, outputs: Array, target: Array) -> Array:
    """How far off the outputs are for each target, (rows, targets), the smallest first."""
    backend = backend_of(outputs)
    with backend.session(device=backend.device(outputs)):
        middle, deviation, low, high = _spread(backend, loss, outputs)
        if low is None:
            scores = conformal.residual_scores(target, middle, deviation)
        else:
            scores = conformal.quantile_scores(target, low, high)
        return backend.xp.sort(scores, axis=0)


def intervals(loss: Loss, outputs: Array, scores: Array, coverage: float) -> Array:
    """The ends of an interval for each target that holds it with probability `coverage`: (rows, targets, 2).

    Its width is the same for all rows, that of split conformal prediction (Lei et al. 2018); where the network tells a
    deviation, in proportion to it; and with several quantiles the lowest and the highest of them, moved by the same for
    all rows (conformalized quantile regression, Romano, Patterson and Candes 2019).
    """
    backend = backend_of(outputs)
    with backend.session(device=backend.device(outputs)):
        limit = conformal.threshold(scores, coverage)
        middle, deviation, low, high = _spread(backend, loss, outputs)
        if low is None:
            ends = conformal.residual_interval(middle, limit, deviation)
        else:
            ends = conformal.quantile_interval(low, high, limit)
        return backend.xp.stack(ends, axis=2)


def set_scores(probabilities: Array, codes: Array) -> Array:
    """How unlikely each row's true class is thought: (rows, 2), by "lac" and by "aps", the smallest first."""
    backend = backend_of(probabilities)
    with backend.session(device=backend.device(probabilities)):
        found = [_scores(probabilities, method) for method in conformal.SETS]
        own = [conformal.true_scores(scores, codes) for scores in found]
        return backend.xp.sort(backend.xp.concat(own, axis=1), axis=0)


def sets(probabilities: Array, scores: Array, coverage: float, method: str) -> Array:
    """Which classes each row may be of, its true one with probability `coverage`: (rows, classes) of True and False."""
    place, backend = conformal.SETS.index(conformal.check_sets(method)), backend_of(probabilities)
    with backend.session(device=backend.device(probabilities)):
        limit = conformal.threshold(scores, coverage)[place]
        return _scores(probabilities, method) <= limit


def _scores(probabilities: Array, method: str) -> Array:
    """The score of every class of every row, the same whatever rows are beside it."""
    return conformal.label_scores(probabilities, method, conformal.shares(probabilities))


def kept(scores: Any) -> Any:
    """The scores that a model was calibrated by, as files have them: of NumPy, since there is one for every row."""
    return np.asarray(backend_of(scores).to_host(scores), dtype=np.float64)


def restored(settings: Any, like: Array) -> Array:
    """The scores from a model's settings, where `like` lies; raises OptionError where it was not calibrated."""
    scores = settings.get("calibration")
    if scores is None:
        raise OptionError(
            "the model is not calibrated: call calibrate(table, y) with rows that it was not trained on, and save it"
        )
    backend = backend_of(like)
    try:
        values = np.array(scores, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 2 or not np.all(np.isfinite(values)):
        raise OptionError("settings['calibration'] holds no scores: calibrate the model anew")
    return backend.from_host(values, like.dtype, backend.device(like))
