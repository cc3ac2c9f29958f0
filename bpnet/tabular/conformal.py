"""Intervals and sets that hold the truth as often as one asks for, whatever the network: conformal prediction.

Rows that the network was not trained on say how far off it is: each has a score, large where the prediction is bad.
Where a new row comes from where these n came from, its score is at most the ceil((n + 1) c)-th smallest of theirs with
a probability of at least c, and no more than c + 1 / (n + 1) where no two are equal (Vovk, Gammerman and Shafer 2005;
Lei et al. 2018).  All values whose score is at most that make the interval, or the set.

Scores are arrays (n, targets) of the library of the predictions, and so is what comes of them.
"""

import math
from fractions import Fraction
from typing import Any

from bpnet.backends import Array, backend_of
from bpnet.errors import OptionError, shown
from bpnet.options import number

SETS = ("lac", "aps")
SPREAD = 300.0
"""About how often a row's share runs through 0 ... 1 while a probability does: float32 still has 4 digits of it."""


def rank(count: int, coverage: float) -> int:
    """Which of `count` sorted scores, counted from 1, a new one stays below with probability `coverage`.

    It is ceil((count + 1) coverage), and more than `count` where so few scores can't tell.  Raises OptionError.
    """
    coverage = number("coverage", coverage, 0.0, 1.0, closed="neither")
    return math.ceil((count + 1) * Fraction(str(coverage)))  # as it is written: 0.9 in binary is a little more


def threshold(scores: Array, coverage: float) -> Array:
    """The score that a new row's stays below with probability `coverage`, for each target: (targets,).

    Infinite where there are too few scores: fewer than coverage / (1 - coverage).
    """
    xp, k = backend_of(scores).xp, rank(scores.shape[0], coverage)
    if k > scores.shape[0]:
        return xp.full_like(scores[0, :], math.inf) if scores.shape[0] else xp.sum(scores, axis=0) + math.inf
    return xp.sort(scores, axis=0)[k - 1, :]


# ---- numbers --------------------------------------------------------------------------------------------------------


def residual_scores(y: Array, prediction: Array, deviation: Array | None = None) -> Array:
    """|y - prediction|, over the predicted deviation where there is one (Lei et al. 2018, sections 2.2 and 5.2)."""
    xp = backend_of(y).xp
    error = xp.abs(y - prediction)
    return error if deviation is None else error / deviation


def residual_interval(prediction: Array, limit: Array, deviation: Array | None = None) -> tuple[Array, Array]:
    """prediction -+ limit, times the predicted deviation where there is one."""
    reach = limit if deviation is None else limit * deviation
    return prediction - reach, prediction + reach


def quantile_scores(y: Array, low: Array, high: Array) -> Array:
    """max(low - y, y - high): how far y is outside of two predicted quantiles, negative within (Romano et al. 2019)."""
    return backend_of(y).xp.maximum(low - y, y - high)


def quantile_interval(low: Array, high: Array, limit: Array) -> tuple[Array, Array]:
    """From low - limit to high + limit; a negative limit takes away at both ends, to the middle at most."""
    xp = backend_of(low).xp
    limit = xp.maximum(limit, 0.5 * (low - high))
    return low - limit, high + limit


# ---- classes --------------------------------------------------------------------------------------------------------


def check_sets(method: Any) -> str:
    """`method` where it is one of sets; raises OptionError."""
    if method not in SETS:
        raise OptionError(f"method is {shown(method)}; expected 'lac' or 'aps'")
    return str(method)


def label_scores(probabilities: Array, method: str, chance: Array) -> Array:
    """The score of each class of each row, were it the true one: (rows, classes).

    "lac" is 1 - p, which gives the smallest sets on average (Sadinle, Lei and Wasserman 2019).  "aps" is the sum of the
    probabilities of all likelier classes, and a random share of the class's own: larger sets for rows that are
    harder (Romano, Sesia and Candes 2020).  `chance` is that share, spread evenly over 0 ... 1: (rows, 1).
    """
    xp = backend_of(probabilities).xp
    if method == "lac":
        return 1.0 - probabilities
    order = xp.argsort(probabilities, axis=1, descending=True)
    ranks = xp.argsort(order, axis=1)
    falling = xp.sort(probabilities, axis=1, descending=True)
    likelier = xp.cumulative_sum(falling, axis=1) - falling
    return xp.take_along_axis(likelier, ranks, axis=1) + chance * probabilities


def shares(probabilities: Array) -> Array:
    """A share of 0 ... 1 for each row, (rows, 1), spread as if drawn evenly, but the row's own.

    Were it drawn by the row's place, all rows that are asked for one at a time would have the same, and their sets not
    the coverage that was asked for.  So it is the fraction of a sum that changes fast with the probabilities.
    """
    backend = backend_of(probabilities)
    factors = [SPREAD * math.sqrt(k + 2) for k in range(probabilities.shape[1])]
    total = backend.xp.sum(probabilities * backend.constants(factors, probabilities), axis=1, keepdims=True)
    return total - backend.xp.floor(total)


def true_scores(scores: Array, codes: Array) -> Array:
    """Of the scores of all classes, each row's own: (rows, 1); `codes` is (rows,), whole numbers."""
    xp = backend_of(scores).xp
    return xp.take_along_axis(scores, xp.expand_dims(codes, axis=1), axis=1)
