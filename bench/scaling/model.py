"""How long a step takes on n ranks: formulas, their fit to what was measured, and how well they predict the rest.

    t(n) = c + s rows/n + t_all-reduce(n, m)

since the code reduces the whole gradient, of m bytes, when all of it is there, and updates when it has been reduced:
nothing overlaps.  c is what a step takes whatever its rows are (the update, calls), s the time of a row on one rank.

An all-reduce is A messages one after the other, of B bytes together, and adds up R bytes (Hockney 1994):

    t_all-reduce = A (alpha + o) + B beta (1 + h) + R gamma

with the link's delay alpha and the inverse beta of its bandwidth.  In LogGP (Alexandrov et al. 1995) alpha is L, o the
overheads of both sides, and beta is G; the gap g bounds nothing here.  A, B and R are those of Thakur, Rabenseifner and
Gropp (2005) for recursive doubling and Rabenseifner's algorithm, and of Patarasu and Yuan (2009) for the ring, whose
B = 2 (n-1)/n m is the least there can be.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]
Array = np.ndarray[Any, Any]

RESAMPLED = 400
"""Bootstrap samples: resampled measurements to which the fit is repeated."""


def terms(algorithm: str, n: int, m: float) -> tuple[float, float, float]:
    """(A, B, R): messages one after the other, bytes that they hold, bytes added up, of m bytes on n ranks.

    Where n is no power of two, the tree algorithms first have the ranks above the next lower one hand over what they
    have, and give them the result in the end: two messages more.
    """
    if n == 1:
        return 0.0, 0.0, 0.0
    if algorithm == "ring":
        return 2.0 * (n - 1), 2.0 * (n - 1) / n * m, (n - 1) / n * m
    lower = 2 ** math.floor(math.log2(n))
    more = 0 if lower == n else 1
    rounds = math.log2(lower)
    if algorithm == "recursive doubling":
        return rounds + 2 * more, (rounds + 2 * more) * m, (rounds + more) * m
    if algorithm == "Rabenseifner":
        share = (lower - 1) / lower
        return 2 * rounds + 2 * more, (2 * share + 2 * more) * m, (share + more) * m
    raise ValueError(f"algorithm is {algorithm!r}; expected 'ring', 'recursive doubling' or 'Rabenseifner'")


def least_bytes(n: int, m: float) -> float:
    """What each rank has to send at least for an all-reduce of m bytes (Patarasu and Yuan 2009)."""
    return 2.0 * (n - 1) / n * m


@dataclass(frozen=True)
class Fit:
    """Coefficients of a linear model, and what they are in each sample of the bootstrap."""

    names: tuple[str, ...]
    values: tuple[float, ...]
    samples: Array
    count: int  # measurements

    def interval(self, name: str) -> tuple[float, float]:
        """Of a coefficient, where 95% of the samples lie."""
        low, high = np.percentile(self.samples[:, self.names.index(name)], (2.5, 97.5))
        return float(low), float(high)

    def __getitem__(self, name: str) -> float:
        return self.values[self.names.index(name)]

    def predict(self, regressors: Sequence[float]) -> float:
        return sum((value * of for value, of in zip(self.values, regressors, strict=True)), 0.0)


def fit(
    names: Sequence[str], x: Sequence[Sequence[float]], y: Sequence[float], known: Sequence[float] | None = None
) -> Fit:
    """y = known + x coefficients by least squares of the relative error, with a bootstrap over the measurements.

    No coefficient is negative, since all are times: where one would be, it is zero and the others are fitted again.
    """
    left, right = np.array(x, float).reshape(len(y), len(names)), np.array(y, float)
    given = np.zeros(len(right)) if known is None else np.array(known, float)
    scaled, rest = left / right[:, None], 1.0 - given / right

    def solved(rows: Array) -> Array:
        kept, found = list(range(len(names))), np.zeros(len(names))
        while kept:
            found[:] = 0.0
            found[kept] = np.linalg.lstsq(scaled[rows][:, kept], rest[rows], rcond=None)[0]
            if (found >= 0.0).all():
                break
            kept.remove(int(np.argmin(found)))
        return found

    values = solved(np.arange(len(right)))
    rng = np.random.default_rng(0)
    samples = np.array([solved(rng.integers(0, len(right), len(right))) for _ in range(RESAMPLED)])
    return Fit(tuple(names), tuple(map(float, values)), samples, len(right))


@dataclass(frozen=True)
class Errors:
    """Of predictions, by the ratio of what was measured to them: their number, the median of what they are off by
    (0.05: 5%), the largest, and the geometric mean of the ratios, above 1 where it takes longer than predicted."""

    count: int
    median: float
    worst: float
    bias: float
    spread: float  # root mean square of the logarithm

    @staticmethod
    def of(pairs: Sequence[tuple[float, float]]) -> Errors:
        """Of (measured, predicted)."""
        logs = [math.log(measured / predicted) for measured, predicted in pairs]
        off = [math.expm1(abs(one)) for one in logs]
        bias, spread = math.exp(statistics.mean(logs)), math.sqrt(statistics.mean(one**2 for one in logs))
        return Errors(len(pairs), statistics.median(off), max(off), bias, spread)


def typical(record: Record) -> float:
    """Seconds of what a record measured: the median of its rounds."""
    return float(statistics.median(record["seconds"]))


# ---- all-reduces over links -----------------------------------------------------------------------------------------

FITTED_HOSTS = 4
HELD_OUT_LINKS = ((5e-3, 12.5e6), (20e-3, 12.5e6))
"""The fit sees no more hosts than that, and none of these links (seconds, bytes a second)."""


def is_fitted(record: Record) -> bool:
    return record["ranks"] <= FITTED_HOSTS and (record["delay"], record["rate"]) not in HELD_OUT_LINKS


def over_link(algorithm: str, n: int, m: float, delay: float, rate: float, overheads: Fit | None = None) -> float:
    """Seconds of an all-reduce over links of that delay and rate; without the overheads where none are given."""
    a, b, r = terms(algorithm, n, m)
    more = 0.0 if overheads is None else overheads.predict((a, b / rate, r))
    return a * delay + b / rate + more


def fit_links(records: Sequence[Record]) -> Fit:
    """o, h and gamma; delay and rate are known, since they were set."""
    x, y, known = [], [], []
    for record in records:
        a, b, r = terms(record["algorithm"], record["ranks"], record["bytes"])
        x.append((a, b / record["rate"], r))
        y.append(typical(record))
        known.append(a * record["delay"] + b / record["rate"])
    return fit(("o", "h", "gamma"), x, y, known)


def groups_of_links(records: Sequence[Record]) -> dict[str, list[Record]]:
    """What the fit sees, and what it doesn't."""
    found: dict[str, list[Record]] = {}
    for record in records:
        more, other = record["ranks"] > FITTED_HOSTS, (record["delay"], record["rate"]) in HELD_OUT_LINKS
        name = (
            "fitted"
            if not more and not other
            else "held out: "
            + " and ".join(text for text, is_so in (("more hosts", more), ("other links", other)) if is_so)
        )
        found.setdefault(name, []).append(record)
    return found


# ---- steps on this machine ------------------------------------------------------------------------------------------


def step_seconds(record: Record, name: str) -> float:
    """What a contender of a record of `ranks` took for a step: the median of its rounds."""
    return float(record["contenders"][name]["step_ms"]["median"]) / 1e3


def fit_compute(records: Sequence[Record]) -> dict[str, Fit]:
    """c and s of each workload, from one process of one thread at different batches; needs two of these."""
    found = {}
    for key in dict.fromkeys(record["workload"] for record in records):
        points = [(r["batch"], step_seconds(r, "threads@1")) for r in records if r["workload"] == key]
        if len({batch for batch, _ in points}) > 1:
            found[key] = fit(("c", "s"), [(1.0, batch) for batch, _ in points], [seconds for _, seconds in points])
    return found


def fit_shared(records: Sequence[Record]) -> dict[int, Fit]:
    """alpha and beta of an all-reduce by n ranks in shared memory, of bpnet's communicator where it was measured.

    Which algorithm MPI takes there changes with the size, so alpha is of the whole all-reduce, and beta of the least
    bytes.
    """
    through = "bpnet" if any(r["through"] == "bpnet" for r in records) else "mpi4py"
    found = {}
    for n in sorted({r["ranks"] for r in records}):
        own = [r for r in records if r["ranks"] == n and r["through"] == through]
        x = [(1.0, least_bytes(n, r["bytes"])) for r in own]
        found[n] = fit(("alpha", "beta"), x, [typical(r) for r in own])
    return found


def predicted_steps(
    records: Sequence[Record], compute: dict[str, Fit], shared: dict[int, Fit]
) -> list[tuple[Record, int, float, float]]:
    """(record, ranks, measured, predicted) of every step by ranks: none of these was fitted to."""
    found = []
    for record in records:
        key = record["workload"]
        for name in record["contenders"]:
            kind, _, count = name.partition("@")
            n = int(count)
            if kind != "ranks" or key not in compute or n not in shared:
                continue
            rows = record["batch"] / n if record["kind"] == "strong" else record["batch"]
            seconds = compute[key].predict((1.0, rows))
            seconds += shared[n].predict((1.0, least_bytes(n, 4.0 * record["parameters"])))
            found.append((record, n, step_seconds(record, name), seconds))
    return found


def predicted_trainings(
    records: Sequence[Record], compute: dict[str, Fit], overheads: Fit | None
) -> list[tuple[Record, float, float]]:
    """(record, measured, predicted) of every step over a slow link, none of which was fitted to."""
    found = []
    for record in records:
        if record["workload"] in compute:
            n, m = record["ranks"], 4.0 * record["parameters"]
            seconds = compute[record["workload"]].predict((1.0, record["batch"] / n))
            seconds += over_link("Rabenseifner", n, m, record["delay"], record["rate"], overheads)
            meeting = math.ceil(math.log2(n))  # messages of the barrier before it
            seconds += meeting * (record["delay"] + (overheads["o"] if overheads else 0.0))
            found.append((record, typical(record), seconds))
    return found
