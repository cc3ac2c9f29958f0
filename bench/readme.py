"""README's part: tables and pictures made of the committed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import picture
from bench.report import (
    FASTEST,
    MODES,
    Record,
    against,
    case_name,
    crossings,
    heading,
    kind_of,
    label,
    markdown,
    mean_ratio,
    peers_of,
    processor,
    ratio_rows,
    timed_names,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def gather(folder: Path, gpu: bool = False) -> list[Record]:
    """The committed runs of machines with or without a GPU, a machine's as one: of every case the latest.

    The machine of the latest run comes last; those whose environment had libraries take other machine code come first.
    """
    runs = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "cases" in result and bool(result["machine"].get("gpu")) == gpu:
            runs.append(result)
    runs.sort(key=lambda result: str(result["machine"]["date"]))
    machines: dict[tuple[Any, ...], Record] = {}
    for result in runs:
        key = tuple(str(result["machine"].get(name)) for name in ("cpu", "model", "cores", "gpu", "environment"))
        both = machines.pop(key, {"machine": {}, "cases": []}), result
        cases = {_which(record): record for run in both for record in run["cases"]}
        busy = [run["machine"]["busy"] for run in both if "busy" in run["machine"]]
        machine = result["machine"] | ({"busy": max(busy)} if busy else {})
        machines[key] = {**result, "machine": machine, "cases": [cases[which] for which in sorted(cases)]}
    return sorted(machines.values(), key=lambda machine: "environment" not in machine["machine"])


def _which(record: Record) -> tuple[Any, ...]:
    return record["device"], record["workload"], kind_of(record), record["mode"], record["batch"]


def _of(result: Record, device: str, mode: str) -> list[Record]:
    """The cases of a device and a mode, on a CPU those with bpnet's fastest contender, and against it, if it ran."""
    records = [r for r in result["cases"] if r["device"] == device and r["mode"] == mode]
    if device != "cpu":
        return records
    records = [against(r, FASTEST) for r in records]
    return [r for r in records if r["subject"] == FASTEST] or records


def usual(records: list[Record]) -> list[str]:
    """The peers that were timed in a quarter of the cases or more: who gets a column."""
    return [name for name in peers_of(records) if 4 * sum(name in timed_names([r]) for r in records) >= len(records)]


def others(records: list[Record]) -> str:
    """The peers that get no column, each with its ratios in the cases where it was timed."""
    told = []
    for name in (name for name in peers_of(records) if name not in usual(records)):
        ratios = {case_name(r): r["contenders"].get(name, {}).get("ratio") for r in records}
        shown = ", ".join(f"{case} {ratio['median']:.2f}" for case, ratio in ratios.items() if ratio)
        told.append(f"{label(name)}: {shown}")
    return "; ".join(told)


def elsewhere(machines: list[Record]) -> str:
    """A table of the geometric means that a training step had on each machine without a GPU."""
    peers = usual(_of(machines[-1], "cpu", "step"))
    rows = [["machine", "products in NumPy", "date", "", *map(label, peers)]]
    for result in reversed(machines):
        records = _of(result, "cpu", "step")
        means = [mean_ratio(records, name) for name in peers]
        count = f"{len(records)} steps"
        library = next((r["versions"]["blas"] for r in records if r["versions"].get("blas")), "")
        rows.append([processor(result), library, result["machine"]["date"][:10], count, *means])
    return (
        "Geometric means over the training steps measured on a machine (in brackets: of how many, if not of all):\n\n"
        + markdown(rows)
    )


def section(result: Record, shown: str) -> str:
    """README's part: what it was measured on, the ratios by mode, and the picture."""
    versions: dict[str, str] = {}
    for record in result["cases"]:
        versions |= record["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "bpnet")
    parts = [f"Measured on: {heading(result)}. {libraries}."]
    for device in dict.fromkeys(r["device"] for r in result["cases"]):
        for mode, title in MODES.items():
            records = _of(result, device, mode)
            rows = ratio_rows(records, usual(records))
            if len(rows) < 2:
                continue
            subject = label(records[0]["subject"])
            parts.append(
                f"One {title} of {subject}: its best time; its time over that of its matrix products alone, done by "
                f"NumPy into arrays made beforehand (below 1 where other products are faster); and how many times as "
                f"long each peer takes (medians of the rounds; above 1, {subject} is faster)."
            )
            parts.append(markdown(rows))
            if told := others(records):
                parts.append(f"In single cases: {told}.")
    parts += [
        f"({key}) {MODES[mode]}, {dtype}: the GPU overtakes the CPU {where}."
        for (key, dtype, mode), where in crossings(result["cases"]).items()
    ]
    workloads = {r["workload"]: r["title"] for r in result["cases"]}
    parts.append("Workloads: " + "; ".join(f"({key}) {title}" for key, title in workloads.items()) + ".")
    parts.append(f"![Throughput against batch size]({shown})")
    return "\n\n".join(parts)


def write(folder: Path = RESULTS, readme: Path = README) -> None:
    """Put the tables between README's markers and draw the pictures beside the results.

    Machines with a GPU have a part and a picture of their own, in which their CPU is shown too. Of several machines
    each part shows the latest; the others are told by their geometric means.
    """
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    found = {"throughput.svg": gather(folder), "throughput-gpu.svg": gather(folder, gpu=True)}
    if not any(found.values()):
        raise SystemExit(f"{folder} holds no results: make some with python -m bench --json {folder / 'NAME.json'}")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{readme} needs the lines {BEGIN} and {END}, once each and in this order")
    parts = []
    for name, machines in found.items():
        if not machines:
            continue
        path = folder / name
        picture.plot(machines[-1], path)
        try:
            shown = path.resolve().relative_to(readme.resolve().parent).as_posix()
        except ValueError:
            shown = path.as_posix()
        parts.append(section(machines[-1], shown))
    if len(found["throughput.svg"]) > 1:
        parts.append(elsewhere(found["throughput.svg"]))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    body = "\n\n".join(parts)
    readme.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")
    print(f"wrote {readme}, and beside the results {', '.join(name for name, result in found.items() if result)}")
