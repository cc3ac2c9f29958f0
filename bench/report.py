"""Figures for people: a table a case, and one over all cases."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from bench.contenders import ALL, floor_on

BUSY = 0.3  # processors at other work before a run from which its figures can't be trusted
MODES = {"step": "training step", "predict": "prediction"}

Record = dict[str, Any]


FASTEST = "bpnet-jit"
"""To which README's ratios on a CPU are taken, where it was timed."""


def label(name: str) -> str:
    """A contender's name for people."""
    return ALL[name].label if name in ALL else name


def kind_of(record: Record) -> str:
    """The type of the arrays, or where products are less exact than that, their precision."""
    precision = record.get("precision", "float32")
    return str(record["dtype"] if precision == "float32" else precision)


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.{places}f}"


def columns(rows: list[list[str]]) -> str:
    """Rows as text, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(rows: list[list[str]]) -> str:
    """Rows as a Markdown table, numbers to the right."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body])


def processor(result: Record) -> str:
    """Its name, the model by which those of one name differ, and what the environment had libraries take."""
    machine = result["machine"]
    chosen = [f"{name}={value}" for name, value in machine.get("environment", {}).items()]
    return ", ".join([machine["cpu"] + (f" ({machine['model']})" if machine.get("model") else ""), *chosen])


def heading(result: Record) -> str:
    """What the figures were measured on, in one line."""
    machine = result["machine"]
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    memory = f", {machine['memory_gb']:g} GB" if "memory_gb" in machine else ""
    return (
        f"{processor(result)}, {result['threads']} threads of {machine['cores']} cores{memory}{gpu}; "
        f"Python {machine['python']}, {machine['system']}; {machine['date']}"
        + (f" (other work kept {machine['busy']:.1f} cores busy)" if machine.get("busy", 0.0) > BUSY else "")
    )


def table(record: Record) -> str:
    """One case: every contender by its best time, with those that were not timed below and why."""
    subject = record["subject"]
    where = f"{record['threads']} threads" if record["device"] == "cpu" else "GPU"
    title = (
        f"({record['workload']}) {record['title']}, {kind_of(record)}, batch {record['batch']}, "
        f"{MODES[record['mode']]}, {where}, {record['rounds']} rounds"
    )
    if "roof_products_ms" in record:
        title += (
            f"; at the device's measured rates its products take {significant(record['roof_products_ms'])} ms, "
            f"the update's traffic {significant(record['roof_update_ms'])}"
        )
    on_gpu = record["device"] != "cpu"
    header = [
        "",
        "rows/s",
        "ms best",
        "ms median",
        "products",
        "x floor",
        f"time / {subject}",
        "(min .. max)",
        *(("host us", "device MB") if on_gpu else ("peak MB", "above MB")),
    ]
    timed = {n: line for n, line in record["contenders"].items() if line["status"] == "timed"}
    rows = [header]
    for name, line in sorted(timed.items(), key=lambda item: item[1]["best_ms"]):
        ratio, over, memory = line["ratio"], line["over_floor"], line["memory"]

        def megabytes(name: str, memory: dict[str, float] = memory) -> str:
            return f"{memory[name]:,.0f}" if name in memory else ""

        rows.append(
            [
                label(name),
                f"{line['rows_per_second']:,.0f}",
                significant(line["best_ms"]),
                significant(line["median_ms"]),
                f"{line['products_share']:.0%}" if over else "",
                f"{over['median']:.2f}" if over else "",
                f"{ratio['median']:.2f}" if ratio else "",
                f"({ratio['min']:.2f} .. {ratio['max']:.2f})" if ratio else "",
                *(
                    (f"{line['host_us']:,.1f}" if "host_us" in line else "", megabytes("device_mb"))
                    if on_gpu
                    else (megabytes("peak_mb"), megabytes("above_mb"))
                ),
            ]
        )
    left_out = [
        f"{label(n)}: {line['status']}: {line['reason']}" for n, line in record["contenders"].items() if n not in timed
    ]
    return "\n".join([title, columns(rows), *left_out])


def _rank(name: str) -> int:
    return list(ALL).index(name) if name in ALL else len(ALL)


def timed_names(records: Iterable[Record]) -> list[str]:
    """The contenders timed in any of the records, in the registry's order."""
    return sorted({n for r in records for n, line in r["contenders"].items() if line["status"] == "timed"}, key=_rank)


def peers_of(records: list[Record]) -> list[str]:
    """The contenders that a subject is compared with: neither itself nor the floor."""
    subjects = {r["subject"] for r in records}
    floors = {floor_on(r["device"]) for r in records}
    return [name for name in timed_names(records) if name not in subjects | floors]


def against(record: Record, subject: str) -> Record:
    """The record with every ratio taken to `subject` instead, round by round; as it is where that was not timed."""
    own = record["contenders"].get(subject, {})
    if own.get("status") != "timed" or record["subject"] == subject:
        return record
    lines = {}
    for name, line in record["contenders"].items():
        lines[name] = dict(line)
        if line["status"] == "timed":
            ratios = [a / b for a, b in zip(line["ms"], own["ms"], strict=False)]
            lines[name]["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return record | {"subject": subject, "contenders": lines}


def case_name(record: Record) -> str:
    """Workload, batch, and the type where it is not the usual one."""
    kind = kind_of(record)
    return f"({record['workload']}) {record['batch']:,}" + ("" if kind == "float32" else f" {kind}")


def ratio_rows(records: list[Record], peers: list[str]) -> list[list[str]]:
    """Each family's time of a peer over the subject's, median of the rounds, by batch size."""
    rows = [["workload, batch", "ms", "x floor", *map(label, peers)]]
    for record in records:
        lines = record["contenders"]
        own = lines.get(record["subject"], {})
        if own.get("status") != "timed":
            continue
        over = own["over_floor"]
        cells = [case_name(record), significant(own["best_ms"]), f"{over['median']:.2f}" if over else ""]
        for name in peers:
            ratio = lines.get(name, {}).get("ratio")
            cells.append(f"{ratio['median']:.2f}" if ratio else "")
        rows.append(cells)
    means = ["geometric mean", "", "", *(mean_ratio(records, name) for name in peers)]
    return [*rows, means] if len(rows) > 2 else rows


def mean_ratio(records: list[Record], name: str) -> str:
    """The geometric mean of a contender's ratios, nothing where it has none."""
    ratios = [r["contenders"].get(name, {}).get("ratio") for r in records]
    medians = [ratio["median"] for ratio in ratios if ratio]
    some = f" ({len(medians)})" if len(medians) < len(records) else ""
    return f"{statistics.geometric_mean(medians):.2f}{some}" if medians else ""


def overview(result: Record) -> str:
    """All cases: how much longer than the subject each peer takes."""
    parts = []
    for device in dict.fromkeys(r["device"] for r in result["cases"]):
        for mode in dict.fromkeys(r["mode"] for r in result["cases"]):
            records = [r for r in result["cases"] if r["device"] == device and r["mode"] == mode]
            rows = ratio_rows(records, peers_of(records))
            if len(rows) > 1 and len(rows[0]) > 3:
                subject = label(records[0]["subject"])
                parts.append(
                    f"{MODES[mode]} on {device}: time over that of {subject}, median of rounds "
                    f"(above 1: {subject} is faster)\n{columns(rows)}"
                )
    parts += [
        f"({key}) {MODES[mode]}, {dtype}: the GPU overtakes the CPU {where}"
        for (key, dtype, mode), where in crossings(result["cases"]).items()
    ]
    return "\n\n".join(parts)


def crossings(records: list[Record]) -> dict[tuple[str, str, str], str]:
    """By workload, type and mode: from which batch on bpnet is faster on the GPU than on the CPU, in words.

    Of the CPU, the fastest of the contenders that are bpnet on NumPy; between two batches where one overtakes the other
    the crossing is read off on a logarithmic scale.
    """
    speeds: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for record in records:
        if record.get("precision", "float32") != "float32":
            continue
        own = ("bpnet", "bpnet-jit") if record["device"] == "cpu" else (record["subject"],)
        lines = [record["contenders"].get(name, {}) for name in own]
        found = [line["rows_per_second"] for line in lines if line.get("status") == "timed"]
        if found:
            key = record["workload"], record["dtype"], record["mode"]
            speeds.setdefault(key, {}).setdefault(record["device"], {})[record["batch"]] = max(found)
    return {key: _crossing(devices["cpu"], devices["cuda"]) for key, devices in speeds.items() if len(devices) == 2}


def _crossing(cpu: dict[int, float], cuda: dict[int, float]) -> str:
    gains = [(batch, math.log(cuda[batch] / cpu[batch])) for batch in sorted(cpu.keys() & cuda.keys())]
    behind = [place for place, (_, gain) in enumerate(gains) if gain < 0]
    if not gains:
        return "at an unknown batch: none was measured on both"
    if not behind:
        return f"at every batch measured, the smallest being {gains[0][0]:,}"
    last = behind[-1]
    if last == len(gains) - 1:
        return f"at no batch measured, the largest being {gains[-1][0]:,}"
    (small, below), (large, above) = gains[last : last + 2]
    share = -below / (above - below)
    return f"at about {round(small * (large / small) ** share):,} rows"
