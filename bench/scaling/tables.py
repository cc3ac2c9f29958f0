"""What was measured of scaling, as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import columns, heading, markdown, significant
from bench.scaling.streams import LABELS

Record = dict[str, Any]
Rows = list[list[str]]

IDENTITY = {
    "ranks": ("kind", "workload", "batch"),
    "streams": ("workload", "batch"),
    "links": ("kind", "through", "workload", "batch", "algorithm", "ranks", "delay", "rate", "bytes"),
}
"""What tells the records of a part from each other."""


def gather(folder: Path) -> tuple[Record, dict[str, list[Record]]]:
    """The latest run's heading and machine, and of all runs on that machine each record, the latest of each."""
    runs = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "scaling" in result:
            runs.append(result)
    if not runs:
        return {}, {}
    runs.sort(key=lambda result: str(result["machine"]["date"]))

    def machine(result: Record) -> tuple[str, ...]:
        return tuple(str(result["machine"].get(name)) for name in ("cpu", "model", "cores"))

    found: dict[str, dict[tuple[Any, ...], Record]] = {part: {} for part in IDENTITY}
    for result in runs:
        if machine(result) == machine(runs[-1]):
            for part, names in IDENTITY.items():
                for record in result["scaling"].get(part, []):
                    found[part][tuple(record.get(name) for name in names)] = record
    return runs[-1], {part: list(records.values()) for part, records in found.items()}


def ranged(values: Record | None, digits: int = 2) -> str:
    """median (min .. max)"""
    if not values:
        return ""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} .. {values['max']:.{digits}f})"


def of_ranks(records: list[Record]) -> Rows:
    """A line for each case and number of ranks."""
    rows = [
        [
            *("network, batch", "ranks", "ms, 1 thread", "ms, ranks", "efficiency", "over threads", "over DDP"),
            *("over PyTorch's threads", "communication", "bytes / least"),
        ]
    ]
    for record in records:
        lines = record["contenders"]
        each = " a rank" if record["kind"] == "weak" else ""
        for name, line in lines.items():
            kind, _, count = name.partition("@")
            if kind != "ranks":
                continue
            # in a weak case all do as many steps, so a step's time compares too
            ratios: dict[str, Record] = line.get("speed_over") or {
                other: _ratios(lines[other]["seconds"], line["seconds"])
                for other in (f"{who}@{count}" for who in ("threads", "ddp", "torch"))
                if other in lines
            }
            share = line.get("communication")
            rows.append(
                [
                    f"({record['workload']}) {record['kind']}, {record['batch']:,}{each}",
                    count,
                    significant(lines["threads@1"]["step_ms"]["median"]),
                    significant(line["step_ms"]["median"]),
                    ranged(line["efficiency"]),
                    *(ranged(ratios.get(f"{who}@{count}")) for who in ("threads", "ddp", "torch")),
                    f"{share['median']:.0%}" if share else "",
                    f"{line['bytes'] / line['least_bytes']:.3f}" if line.get("least_bytes") else "",
                ]
            )
    return rows


def _ratios(theirs: list[float], own: list[float]) -> Record:
    ratios = [a / b for a, b in zip(theirs, own, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def of_streams(records: list[Record]) -> Rows:
    """A line for each way, a column for each case: its speed over that of `fit` on arrays in memory."""
    rows = [["", *(f"({r['workload']}) {r['batch']:,} of {r['rows']:,} rows" for r in records)]]
    for name, label in LABELS.items():
        lines = [record["contenders"].get(name) for record in records]
        if any(lines):
            rows.append([label, *(ranged(line and line.get("speed_over_memory")) for line in lines)])
    return rows


def of_bytes(records: list[Record]) -> Rows:
    """What left a host for an all-reduce of the largest vectors, headers of TCP and IP included, over the least."""
    measured = [r for r in records if r["kind"] == "all_reduce"]
    most = max((r["bytes"] for r in measured), default=0)
    hosts = sorted({r["ranks"] for r in measured})
    rows = [["algorithm", *(f"{n} hosts" for n in hosts)]]
    for algorithm in dict.fromkeys(r["algorithm"] for r in measured):
        cells = []
        for n in hosts:
            own = [r for r in measured if (r["algorithm"], r["ranks"], r["bytes"]) == (algorithm, n, most)]
            least = 2 * (n - 1) / n * most
            cells.append(f"{statistics.median(r['sent'] / least for r in own):.3f}" if own else "")
        rows.append([algorithm, *cells])
    return rows


def of_trainings(records: list[Record]) -> Rows:
    """Steps of two ranks over slow links."""
    rows = [["network, batch", "delay, ms", "MB/s", "ms a step", "bytes sent / least"]]
    for r in records:
        if r["kind"] == "training":
            sent = f"{r['sent'] / r['least_bytes']:.3f}"
            of_link = [f"{1e3 * r['delay']:g}", f"{r['rate'] / 1e6:g}"]
            rows.append([f"({r['workload']}) {r['batch']:,}", *of_link, ranged(r["step_ms"], 1), sent])
    return rows


TITLES = {
    "ranks": "An epoch by ranks of one thread each, strong and weak: milliseconds a step; efficiency against one "
    "process of one thread; the ranks' speed over that of as many threads in one process and of PyTorch on the same "
    "cores (above 1: the ranks are faster); the share of the time in communication, waiting for each other included; "
    "and the bytes that the communicator counts over the least that an all-reduce of the gradient can do with",
    "streams": "An epoch fed from files, warm in the page cache: its speed over `fit` on arrays in memory",
    "bytes": "Bytes that left a host over the least possible, by the counters of its network device",
    "trainings": "Steps of two ranks whose link is slow",
}


def tables(scaling: dict[str, list[Record]]) -> dict[str, Rows]:
    """Those that have lines, by their names in `TITLES`."""
    ranks, streams, links = (scaling.get(part, []) for part in ("ranks", "streams", "links"))
    found = {"ranks": of_ranks(ranks), "streams": of_streams(streams)}
    found |= {"bytes": of_bytes(links), "trainings": of_trainings(links)}
    return {name: rows for name, rows in found.items() if len(rows) > 1}


def text(scaling: dict[str, list[Record]]) -> str:
    """For a terminal."""
    return "\n\n".join(f"{TITLES[name]}\n{columns(rows)}" for name, rows in tables(scaling).items())


def page(folder: Path) -> str:
    """For the page of results."""
    result, scaling = gather(folder)
    if not result:
        return "Nothing of it has been kept yet."
    return in_markdown(result, scaling, markdown)


def in_markdown(result: Record, scaling: dict[str, list[Record]], table: Callable[[Rows], str]) -> str:
    parts = [f"{heading(result)}."]
    for name, rows in tables(scaling).items():
        parts += [f"{TITLES[name]}.", table(rows)]
    return "\n\n".join(parts)
