"""Permutation importance: how much worse a model does where the values of one column are shuffled.

    importance_j = score(x) - mean over repeats of score(x with column j shuffled)

(Breiman 2001).  A column is one of the table that the user knows: what a date or a category becomes is shuffled
together, in the same order.  Rows are shuffled as they are encoded: it comes to the same, since each is on its own.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.report.scores import worse_by

WORK = 2e10
"""Floating-point operations that the importance of all columns may take, which are a second or so."""
LEAST_ROWS, LEAST_RUNS = 200, 100
"""Rows and passes that are worth it whatever they take."""

Places = Sequence[tuple[str | None, int]]
"""Where a column is: in which of the arrays (None: in the only one), and in which of its columns."""


@dataclass(frozen=True)
class Importance:
    """Of a column: how much its shuffling worsens each score on average, and the deviation over repeats."""

    name: str
    worse: dict[str, float]
    deviation: dict[str, float]


@dataclass(frozen=True)
class Importances:
    """Of all columns, the most important first.

    In a table so wide that there is no time for every column, `others` columns were shuffled in groups only, those at a
    time that matter least together; `others_worse` is the most by which one group worsened the first score.
    """

    columns: list[Importance]
    scores: tuple[str, ...]
    rows: int
    repeats: int
    others: int = 0
    others_worse: float = 0.0


Score = Callable[[Any, int], list[dict[str, float]]]
"""score(x, n): scores by name of each of n parts of x, which have the same rows in turn."""


class Shuffler:
    """Scores of a model where some columns are shuffled, `repeats` times side by side, on rows kept on the host."""

    def __init__(
        self, x: Any, places: Mapping[str, Places], score: Score, rng: np.random.Generator, repeats: int = 1
    ) -> None:
        self.places, self.score, self.rng, self.repeats = places, score, rng, repeats
        first = next(iter(x.values())) if isinstance(x, dict) else x
        self.rows, (self.base,) = len(first), score(x, 1)
        self.arrays = {
            key: np.concatenate([a] * repeats) for key, a in (x if isinstance(x, dict) else {None: x}).items()
        }

    def worse(self, names: Sequence[str]) -> list[dict[str, float]]:
        """By how much each score is worse with these columns shuffled, all in one order, which each repeat has anew."""
        order = np.concatenate([k * self.rows + self.rng.permutation(self.rows) for k in range(self.repeats)])
        kept = [(self.arrays[key], j, self.arrays[key][:, j].copy()) for name in names for key, j in self.places[name]]
        for array, j, values in kept:
            array[:, j] = values[order]
        try:
            found = self.score(self.arrays.get(None, self.arrays), self.repeats)
        finally:
            for array, j, values in kept:
                array[:, j] = values
        return [{name: worse_by(name, value, one[name]) for name, value in self.base.items()} for one in found]


def importances(
    x: Any, places: Mapping[str, Places], score: Score, rng: np.random.Generator, cost: float, repeats: int = 5
) -> Importances:
    """The importance of every column: by the score that comes first, where it is put before others.

    `cost` is the number of floating-point operations of a pass over the rows of x.
    """
    shuffler = Shuffler(x, places, score, rng, repeats)
    names, scores = list(places), tuple(shuffler.base)
    first, runs = scores[0], max(int(WORK / max(cost, 1.0)), LEAST_RUNS)
    others, others_worse = 0, 0.0
    if len(names) * repeats > runs:
        names, rest = search(Shuffler(x, places, score, rng), names, first, runs // 2, runs // (2 * repeats))
        others, others_worse = sum(len(group) for _, group in rest), max((worse for worse, _ in rest), default=0.0)
    found = []
    for name in names:
        each = shuffler.worse([name])
        values = {score: np.array([one[score] for one in each]) for score in scores}
        deviation = {score: float(v.std(ddof=1)) if repeats > 1 else 0.0 for score, v in values.items()}
        found.append(Importance(name, {score: float(v.mean()) for score, v in values.items()}, deviation))
    found.sort(key=lambda one: -one.worse[first])
    return Importances(found, scores, shuffler.rows, repeats, others, others_worse)


def search(
    shuffler: Shuffler, names: list[str], score: str, runs: int, most: int
) -> tuple[list[str], list[tuple[float, list[str]]]]:
    """The columns, no more than `most`, that matter most, and the groups of all others with what each is worth.

    Columns are shuffled together, and the group that matters most is parted in two, until single columns are left or
    so many `runs` are done.
    """
    heap: list[tuple[float, int, list[str]]] = [(-np.inf, 0, names)]
    singles: list[tuple[float, str]] = []
    for number in range(0, runs, 2):
        if not heap or len(singles) == most:
            break
        worse, _, group = heapq.heappop(heap)
        if len(group) == 1:
            singles.append((-worse, group[0]))
            continue
        for k, part in enumerate((group[: len(group) // 2], group[len(group) // 2 :])):
            heapq.heappush(heap, (-shuffler.worse(part)[0][score], number + k + 1, part))
    return [name for _, name in singles], [(-worse, group) for worse, _, group in heap]
