"""What the estimators' results say, for people."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from bench.estimators.cases import CASES
from bench.estimators.contenders import CONTENDERS
from bench.report import BUSY, columns, heading, markdown, significant

Result = dict[str, Any]

SUBJECT = "bpnet"


def key(result: Result) -> tuple[str, str, int]:
    """Which result it is: case, estimator and seed."""
    return result["case"], result["estimator"], result["seed"]


def line(result: Result) -> str:
    """One result, as it comes."""
    name = f"{result['case']:17} {result['estimator']:12} seed {result['seed']}"
    if "score" not in result:
        return f"{name}  failed: {result.get('failed')}"
    other = f", other work on {result['busy']:.1f} cores" if (result["busy"] or 0.0) > BUSY else ""
    return (
        f"{name}  fit {result['fit_s']:8.3f} s ({result['cpu_s']:.2f} of a core)  "
        f"predict {1e3 * result['predict_s']:9.3f} ms  score {result['score']:.4f}  "
        f"{result['above_mb']:.0f} MB above {result['held_mb']:.0f}{other}"
    )


def of(results: list[Result], case: str, name: str) -> dict[int, Result]:
    """By seed, the results of an estimator on a case."""
    found = (r for r in results if r["case"] == case and r["estimator"] == name and "score" in r)
    return {r["seed"]: r for r in sorted(found, key=lambda r: str(r["date"]))}


def ratio(results: list[Result], case: str, name: str, what: str) -> float | None:
    """How many times bpnet's seconds another takes: the median over the seeds, each within one round of turns."""
    own, other = of(results, case, SUBJECT), of(results, case, name)
    both = [other[seed][what] / own[seed][what] for seed in own if seed in other and own[seed][what] > 0]
    return statistics.median(both) if both else None


def memory(results: list[Result], case: str, name: str, what: str) -> float | None:
    """Megabytes at the peak of an estimator's first fit."""
    found = of(results, case, name)
    return float(found[min(found)][what]) if found else None


def score(results: list[Result], case: str, name: str) -> tuple[float, float] | None:
    """Mean over the seeds, and its standard error, 0 where there is but one."""
    values = [r["score"] for r in of(results, case, name).values()]
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def cases_of(results: list[Result]) -> list[str]:
    """The cases that have results, in the order of the registry."""
    return [case for case in CASES if any(r["case"] == case and "score" in r for r in results)]


def names_of(results: list[Result]) -> list[str]:
    """The estimators that have results, in the order of the registry."""
    return [name for name in CONTENDERS if any(r["estimator"] == name and "score" in r for r in results)]


def times(results: list[Result], what: str, title: str) -> list[list[str]]:
    """A row for each case: bpnet's seconds, first and in the median, and how many times as long the others take."""
    others = [name for name in names_of(results) if name != SUBJECT]
    rows = [[title, "bpnet's first", "bpnet", *(CONTENDERS[name][0] for name in others)]]
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for case in cases_of(results):
        own = list(of(results, case, SUBJECT).values())
        first = [r[what] for r in own if r["first"]]
        cells = [CASES[case].title, seconds(first[0]) if first else ""]
        cells.append(seconds(statistics.median(r[what] for r in own)) if own else "")
        for name in others:
            found = ratio(results, case, name, what)
            ratios[name] += [] if found is None else [found]
            cells.append("" if found is None else f"{found:.2f} x")
        rows.append(cells)
    means = (f"{statistics.geometric_mean(ratios[name]):.2f} x" if ratios[name] else "" for name in others)
    return [*rows, ["geometric mean", "", "", *means]]


def seconds(value: float) -> str:
    """A time with a unit that suits it."""
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if value >= s), ("us", 1e-6))
    return f"{significant(value / size)} {unit}"


def scores(results: list[Result]) -> list[list[str]]:
    """A row for each case: accuracy, or the coefficient of determination, and its standard error over the seeds."""
    names = names_of(results)
    rows = [["score", *(CONTENDERS[name][0] for name in names)]]
    for case in cases_of(results):
        cells = []
        for name in names:
            found = score(results, case, name)
            cells.append("" if found is None else f"{found[0]:.4f} ± {found[1]:.4f}")
        rows.append([CASES[case].title, *cells])
    return rows


def peaks(results: list[Result]) -> list[list[str]]:
    """A row for each case: the peak of memory in the first fit above data and libraries, and all that was held."""
    names = names_of(results)
    rows = [["MB above data and libraries (in all)", *(CONTENDERS[name][0] for name in names)]]
    for case in cases_of(results):
        cells = []
        for name in names:
            above, whole = (memory(results, case, name, what) for what in ("above_mb", "peak_mb"))
            cells.append("" if above is None or whole is None else f"{above:,.1f} ({whole:,.0f})")
        rows.append([CASES[case].title, *cells])
    return rows


def verdict(results: list[Result]) -> list[str]:
    """Where the project's goals against scikit-learn are missed."""
    told = []
    for case in cases_of(results):
        for what, least in (("fit_s", 2.0), ("predict_s", 1.0)):
            found = ratio(results, case, "sklearn", what)
            if found is not None and found < least:
                told.append(f"{case}: {'fit' if what == 'fit_s' else 'predict'} {found:.2f} x, wanted {least:g} x")
        own, other = (memory(results, case, name, "above_mb") for name in (SUBJECT, "sklearn"))
        if own is not None and other is not None and own > other / 2:
            told.append(f"{case}: {own:.1f} MB, wanted half of {other:.1f} at most")
        mine, theirs = (score(results, case, name) for name in (SUBJECT, "sklearn"))
        if mine and theirs and mine[1] and mine[0] < theirs[0] - math.hypot(mine[1], theirs[1]):
            told.append(f"{case}: score {mine[0]:.4f}, scikit-learn's {theirs[0]:.4f} ± {theirs[1]:.4f}")
    return told


def _tables(results: list[Result]) -> list[list[list[str]]]:
    return [
        times(results, "fit_s", "fit"),
        times(results, "predict_s", "predict"),
        scores(results),
        peaks(results),
    ]


def _busy(results: list[Result]) -> str:
    count = sum((r.get("busy") or 0.0) > BUSY for r in results)
    return f"Beside {count} of {len(results)} fits other work ran: those times mean little." if count else ""


def _failures(results: list[Result]) -> list[str]:
    return [f"{r['case']}, {r['estimator']}, seed {r['seed']}: {r.get('failed')}" for r in results if "score" not in r]


def text(result: Result) -> str:
    """Everything of a run, for a terminal."""
    results = result["estimators"]
    if not names_of(results):
        return "Nothing was measured."
    missed = [f"goal missed: {told}" for told in verdict(results)]
    parts = [*map(columns, _tables(results)), "\n".join([*missed, *_failures(results)]), _busy(results)]
    return "\n\n".join(part for part in parts if part)


def page(folder: Path) -> str:
    """For the page about the results: every run."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if "estimators" not in run or not names_of(run["estimators"]):
            continue
        results = run["estimators"]
        libraries = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
        parts.append(f"[{path.stem}]({path.name}): {heading(run)}. {libraries}. {_busy(results)}".rstrip())
        parts += map(markdown, _tables(results))
        parts += [f"Missed of the goals: {'; '.join(told)}." for told in [verdict(results)] if told]
        parts += [f"Failed: {'; '.join(told)}." for told in [_failures(results)] if told]
    return "\n\n".join(parts) or "Not run."
