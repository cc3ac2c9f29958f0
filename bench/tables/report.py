"""What the tables' results say, for people: rank, distance to RealMLP-TD, seconds, and every single result."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from bench.report import BUSY, columns, heading, markdown, significant
from bench.tables.methods import METHODS

Result = dict[str, Any]

SUBJECT, GOAL = "strong", "realmlp-td"
"""Whose wins are counted, and to whom losses are compared in the mean."""
SHIFT = 0.01
"""Added to losses before their geometric means, as in Holzmüller 2024, so that a set without errors doesn't decide."""


def key(result: Result) -> tuple[str, str, int]:
    """Which result it is: set, method and seed."""
    return result["set"], result["method"], result["seed"]


def line(result: Result) -> str:
    """One result, as it comes."""
    name = f"{result['set']:14} {result['method']:13} seed {result['seed']}"
    if "loss" not in result:
        return f"{name}  failed: {result.get('failed')}"
    other = f", other work on {result['busy']:.1f} cores" if (result["busy"] or 0.0) > BUSY else ""
    return (
        f"{name}  loss {result['loss']:.4f}  fit {result['fit_s']:8.2f} s ({result['cpu_s']:.2f} of a core)  "
        f"predict {result['predict_s']:.3f} s{other}"
    )


def losses(results: list[Result]) -> dict[str, dict[str, dict[int, float]]]:
    """By set and method the loss of each seed, the latest where there are several."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for result in sorted(results, key=lambda result: str(result["date"])):
        if "loss" in result:
            found.setdefault(result["set"], {}).setdefault(result["method"], {})[result["seed"]] = result["loss"]
    return found


def seconds(results: list[Result], method: str, of: str = "fit_s", idle: bool = True) -> dict[str, float]:
    """By set, the median seconds for 1,000 rows; unless told otherwise, only while the machine had no other work."""
    found: dict[str, list[float]] = {}
    for result in results:
        if result["method"] == method and "loss" in result and not (idle and (result["busy"] or 0.0) > BUSY):
            found.setdefault(result["set"], []).append(1000.0 * result[of] / result["rows"])
    return {name: statistics.median(values) for name, values in found.items()}


def methods_of(results: list[Result]) -> list[str]:
    """The methods that have results, in the order of the registry."""
    return [name for name in METHODS if any(r["method"] == name and "loss" in r for r in results)]


def ranks(of: dict[str, dict[int, float]], methods: list[str]) -> dict[str, float]:
    """The places of methods on one set by their mean loss, those that are equal sharing theirs."""
    means = {m: round(statistics.mean(of[m].values()), 6) for m in methods}
    return {
        m: 1.0 + sum(other < mean for other in means.values()) + (list(means.values()).count(mean) - 1) / 2
        for m, mean in means.items()
    }


def against(of: dict[str, dict[int, float]], one: str, other: str) -> int:
    """1 where `one` has less loss than `other` by more than a standard error of their difference, -1 where it has more.

    Of pairs of the same seed, so of the same rows; 0 where neither is so.
    """
    pairs = [of[other][seed] - value for seed, value in of.get(one, {}).items() if seed in of.get(other, {})]
    if len(pairs) < 2:
        return 0
    mean, error = statistics.mean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs))
    return 0 if abs(mean) <= error else int(math.copysign(1, mean))


def mean_ranks(found: dict[str, dict[str, dict[int, float]]], methods: list[str]) -> dict[str, tuple[float, int]]:
    """Of each method the mean of its places, and over how many sets.

    Places are among the methods that learned the most sets; who learned fewer is placed among them where it did.
    """
    counts = {m: sum(m in of for of in found.values()) for m in methods}
    whole = [m for m in methods if counts[m] == max(counts.values())]
    told = {}
    for method in methods:
        company = whole if method in whole else [*whole, method]
        places = [ranks(of, company)[method] for of in found.values() if all(m in of for m in company)]
        if places:
            told[method] = statistics.mean(places), len(places)
    return told


def overview(results: list[Result], sets: dict[str, Any]) -> list[list[str]]:
    """A row for each method: rank, losses relative to RealMLP-TD's, who wins where, and seconds for 1,000 rows."""
    found, methods = losses(results), methods_of(results)
    placed = mean_ranks(found, methods)
    rows = [["mean over (so many sets)", "rank", f"error / {METHODS[GOAL].label}'s, classes", "RMSE / its, quantities",
             f"{SUBJECT} better, even, worse", "s per 1,000 rows", "core s per 1,000 rows"]]  # fmt: skip
    for method in methods:
        rank = f"{placed[method][0]:.2f} ({placed[method][1]})" if method in placed else ""
        cells = [METHODS[method].label, rank]
        for classes in (True, False):
            ratios = [
                (statistics.mean(of[method].values()) + SHIFT) / (statistics.mean(of[GOAL].values()) + SHIFT)
                for name, of in found.items()
                if bool(sets[name]["classes"]) == classes and method in of and GOAL in of
            ]
            cells.append(f"{statistics.geometric_mean(ratios):.3f} ({len(ratios)})" if ratios else "")
        outcomes = [against(of, SUBJECT, method) for of in found.values() if SUBJECT in of and method in of]
        told = ", ".join(str(outcomes.count(which)) for which in (1, 0, -1))
        cells.append(told if method != SUBJECT and outcomes else "")
        for of, idle in (("fit_s", True), ("cpu_s", False)):
            times = seconds(results, method, of, idle)
            mean = statistics.geometric_mean(max(t, 1e-6) for t in times.values()) if times else 0.0
            cells.append(f"{significant(mean, 2)} ({len(times)})" if times else "")
        rows.append(cells)
    return rows


def by_set(results: list[Result], sets: dict[str, Any]) -> list[list[str]]:
    """A row for each set: the mean loss in hundredths and its standard error over seeds; the least one in bold."""
    found, methods = losses(results), methods_of(results)
    rows = [["set", "rows", "columns", "seeds", *(METHODS[m].label for m in methods)]]
    for name, of in sorted(found.items(), key=lambda item: (not sets[item[0]]["classes"], item[0])):
        means = {m: statistics.mean(of[m].values()) for m in methods if m in of}
        cells = []
        for m in methods:
            values = list(of.get(m, {}).values())
            if not values:
                cells.append("")
                continue
            error = f" ± {100 * statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
            mark = "**" if means[m] == min(means.values()) else ""
            cells.append(f"{mark}{100 * means[m]:.2f}{mark}{error}")
        about, counts = sets[name], sorted({len(values) for values in of.values()})
        told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        gaps = [f"{about['categories']} of text"] if about["categories"] else []
        gaps += [f"{about['missing']:,} missing"] if about["missing"] else []
        kind = f"{about['classes']} classes" if about["classes"] else "quantity"
        shape = f"{about['columns']}" + (f" ({', '.join(gaps)})" if gaps else "")
        rows.append([f"{name}, {kind}", f"{about['rows']:,}", shape, told, *cells])
    return rows


def singles(results: list[Result]) -> list[list[str]]:
    """A row for each set and method: the loss of every seed, in hundredths."""
    found = losses(results)
    seeds = sorted({result["seed"] for result in results})
    rows = [["set", "method", *(f"seed {seed}" for seed in seeds)]]
    for name, of in sorted(found.items()):
        for method in (m for m in METHODS if m in of):
            values = (of[method].get(seed) for seed in seeds)
            rows.append([name, METHODS[method].label, *("" if v is None else f"{100 * v:.2f}" for v in values)])
    return rows


def failures(results: list[Result]) -> list[str]:
    """What was tried and gave no loss."""
    latest = {key(r): r for r in sorted(results, key=lambda result: str(result["date"]))}
    return [
        f"{name}, {method}, seed {seed}: {r.get('failed')}"
        for (name, method, seed), r in latest.items()
        if "loss" not in r
    ]


def text(result: Result) -> str:
    """Everything of a run but single results, for a terminal."""
    results, sets = result["tables"], result["sets"]
    if not methods_of(results):
        return "Nothing was measured."
    parts = [columns(by_set(results, sets)).replace("**", ""), columns(overview(results, sets)), *failures(results)]
    return "\n\n".join(parts)


def page(folder: Path) -> str:
    """For the page about the results: all runs as one."""
    runs = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    runs = [(path, run) for path, run in runs if "tables" in run]
    results, sets = (
        [r for _, run in runs for r in run["tables"]],
        {n: a for _, run in runs for n, a in run["sets"].items()},
    )
    if not methods_of(results):
        return "Not run."
    versions = {name: version for _, run in runs for name, version in run["versions"].items()}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    parts = [f"[{path.stem}]({path.name}): {heading(run)}." for path, run in runs]
    parts += [f"{libraries}.", markdown(overview(results, sets)), markdown(by_set(results, sets))]
    parts.append(
        "Hundredths of error for classes, of the root mean squared error over the deviation for quantities, ± a "
        "standard error over the seeds. Ratios are geometric means after 0.01 was added to each loss; a set is even "
        "where the difference is within its standard error over the seeds. Seconds are geometric means over the sets: "
        "those of a core, of all runs; the others, of runs beside which no other work ran."
    )
    parts += [f"Failed: {'; '.join(told)}." for told in [failures(results)] if told]
    parts.append(f"<details><summary>Every single result</summary>\n\n{markdown(singles(results))}\n\n</details>")
    return "\n\n".join(parts)
