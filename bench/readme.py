"""README's summary, all tables, and pictures, made of the committed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import faults, mnist, picture, visit
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
    significant,
    timed_names,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
TABLES, PAGE = "TABLES.md", "README.md"
"""Beside the results: the page with every table, and that about the runs and the machines."""
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADLINES = (("a", 128), ("a", 8192), ("b", 512), ("c", 2048), ("d", 32))
"""README's rows, where they were measured; others take the place of those that were not."""
ROWS = 5
PEERS = ("torch", "torch-compile", "torch-graph", "jax")
"""Whom README's rows compare with."""


def gather(folder: Path, gpu: bool = False) -> list[Record]:
    """The committed runs of machines with or without a GPU, a machine's as one: of every case the latest.

    The machine of the latest run comes last; those whose environment had libraries take other machine code come first.
    """
    runs = []
    of_visits = [path for name in ("short", "crossing") for path in folder.glob(f"*/{name}.json")]
    for path in sorted([*folder.glob("*.json"), *of_visits]):
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


def headlines(result: Record, device: str) -> list[list[str]]:
    """README's rows of a device: training steps of the networks that people know, of whatever was measured."""
    records = _of(result, device, "step")
    found = {(r["workload"], r["batch"]): r for r in records if timed_names([r]) and kind_of(r) == "float32"}
    chosen = [key for key in HEADLINES if key in found]
    chosen = sorted((chosen + [key for key in found if key not in chosen])[:ROWS])
    peers = [name for name in PEERS if name in peers_of(records)]
    rows = [["network, optimizer", "batch", "bpnet", *map(label, peers)]]
    for key in chosen:
        lines = found[key]["contenders"]
        ratios = [lines.get(name, {}).get("ratio") for name in peers]
        own = lines[found[key]["subject"]]["best_ms"]
        time = f"{significant(own)} ms" if own >= 0.1 else f"{significant(1000 * own)} us"
        shown = [f"{ratio['median']:.2f} x" if ratio else "" for ratio in ratios]
        rows.append([found[key]["title"], f"{key[1]:,}", time, *shown])
    return rows


def one_panel(result: Record) -> Record:
    """What README's picture shows: training steps of the workload with the most batch sizes, of those in its rows."""
    records = [r for r in result["cases"] if r["mode"] == "step" and kind_of(r) == "float32" and timed_names([r])]
    if not records:
        return result
    keys = [r["workload"] for r in records]
    most = max(dict.fromkeys(keys), key=keys.count)
    cases = []
    for record in (against(r, FASTEST) for r in records if r["workload"] == most):
        shown = {*PEERS, *(name for name in record["contenders"] if name.startswith(("bpnet", "floor")))}
        shown -= {"bpnet-torch", "bpnet-jax"}
        cases.append(record | {"contenders": {n: line for n, line in record["contenders"].items() if n in shown}})
    return result | {"cases": cases}


def summary(result: Record, shown: str, tables: str) -> str:
    """README's part: five rows, what they were measured on, and the picture."""
    parts = []
    for device in dict.fromkeys(r["device"] for r in result["cases"]):
        rows = headlines(result, device)
        if len(rows) < 2:
            continue
        means = [mean_ratio(_of(result, device, "step"), name) for name in PEERS if label(name) in rows[0]]
        count = len(_of(result, device, "step"))
        rows.append([f"geometric mean of all {count} cases", "", "", *(f"{mean} x" if mean else "" for mean in means)])
        parts.append(markdown(rows))
    parts += [
        f"{title}: the GPU overtakes the CPU {where}."
        for (key, dtype, mode), where in crossings(result["cases"]).items()
        for title in [f"({key}) {MODES[mode]}, {dtype}"]
    ]
    parts.append(f"Measured on {heading(result)}. [All tables]({tables}).")
    parts.append(f"![Throughput against batch size]({shown})")
    return "\n\n".join(parts)


def section(result: Record, shown: str) -> str:
    """Everything measured on a machine: with what, the ratios by mode, and the picture."""
    versions: dict[str, str] = {}
    for record in result["cases"]:
        versions |= record["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "bpnet")
    parts = [f"Measured on {heading(result)}. {libraries}."]
    for device in dict.fromkeys(r["device"] for r in result["cases"]):
        for mode, title in MODES.items():
            records = _of(result, device, mode)
            rows = ratio_rows(records, usual(records))
            if len(rows) < 2:
                continue
            subject = label(records[0]["subject"])
            parts.append(
                f"One {title}: the best time of {subject}; the ratio to the matrix products alone, by NumPy into "
                f"preallocated arrays (lower is better); and the time of each peer over that of {subject}, the median "
                f"of the rounds (above 1, {subject} is faster)."
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
    """Put the summary and the faults between README's markers, and all tables and the pictures beside the results.

    Machines with a GPU have a part and a picture of their own, in which their CPU is shown too. Of several machines
    each part shows the latest; the others are told by their geometric means.
    """
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    found = {"throughput.svg": gather(folder), "throughput-gpu.svg": gather(folder, gpu=True)}
    if not any(found.values()):
        raise SystemExit(f"{folder} holds no results: make some with python -m bench --json {folder / 'NAME.json'}")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{readme} needs the lines {BEGIN} and {END}, once each and in this order")
    tables = folder / TABLES
    parts, pages = [], ["# All figures", "Written by `python -m bench report` from the runs in this folder."]
    for name, machines in found.items():
        if not machines:
            continue
        picture.plot(machines[-1], folder / name)
        small = folder / name.replace("throughput", "headline")
        picture.plot(one_panel(machines[-1]), small)
        parts.append(summary(machines[-1], _seen_from(readme, small), _seen_from(readme, tables)))
        pages.append(section(machines[-1], name))
    if len(found["throughput.svg"]) > 1:
        pages.append(elsewhere(found["throughput.svg"]))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    body = "\n\n".join(parts)
    text = faults.filled(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", folder)
    readme.write_text(text, encoding="utf-8")
    tables.write_text("\n\n".join(pages) + "\n", encoding="utf-8")
    page = folder / PAGE
    if page.exists():
        mnist.draw(folder)
        page.write_text(visit.filled(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
    print(f"wrote {readme} and {tables}, and beside it {', '.join(name for name, result in found.items() if result)}")


def _seen_from(page: Path, path: Path) -> str:
    """`path` as a link in `page`."""
    try:
        return path.resolve().relative_to(page.resolve().parent).as_posix()
    except ValueError:
        return path.as_posix()
