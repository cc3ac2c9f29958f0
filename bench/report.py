"""Figures for people: a table a case, one over all cases, a picture, and README's part that is made of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.contenders import ALL, floor_on

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
BUSY = 0.7  # the load average before a run from which its figures can't be trusted
MODES = {"step": "training step", "predict": "prediction"}

Record = dict[str, Any]


def label(name: str) -> str:
    """A contender's name for people."""
    return ALL[name].label if name in ALL else name


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


def heading(result: Record) -> str:
    """What the figures were measured on, in one line."""
    machine = result["machine"]
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    memory = f", {machine['memory_gb']:g} GB" if "memory_gb" in machine else ""
    return (
        f"{machine['cpu']}, {result['threads']} threads of {machine['cores']} cores{memory}{gpu}; "
        f"Python {machine['python']}, {machine['system']}; {machine['date']}"
        + (f" (other work was running: load {machine['load']:.1f})" if machine.get("load", 0.0) > BUSY else "")
    )


def table(record: Record) -> str:
    """One case: every contender by its best time, with those that were not timed below and why."""
    subject = record["subject"]
    title = (
        f"({record['workload']}) {record['title']}, {record['dtype']}, batch {record['batch']}, "
        f"{MODES[record['mode']]}, {record['threads']} threads, {record['rounds']} rounds"
    )
    header = [
        "",
        "rows/s",
        "ms best",
        "ms median",
        "products",
        "x floor",
        f"time / {subject}",
        "(min .. max)",
        "peak MB",
        "above MB",
    ]
    timed = {n: line for n, line in record["contenders"].items() if line["status"] == "timed"}
    rows = [header]
    for name, line in sorted(timed.items(), key=lambda item: item[1]["best_ms"]):
        ratio, over, memory = line["ratio"], line["over_floor"], line["memory"]
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
                f"{memory['peak_mb']:,.0f}" if "peak_mb" in memory else "",
                f"{memory['above_mb']:,.0f}" if "above_mb" in memory else "",
            ]
        )
    left_out = [
        f"{label(n)}: {line['status']}: {line['reason']}" for n, line in record["contenders"].items() if n not in timed
    ]
    return "\n".join([title, columns(rows), *left_out])


def _rank(name: str) -> int:
    return list(ALL).index(name) if name in ALL else len(ALL)


def _names(records: Iterable[Record]) -> list[str]:
    """The contenders timed in any of the records, in the registry's order."""
    return sorted({n for r in records for n, line in r["contenders"].items() if line["status"] == "timed"}, key=_rank)


def _peers(records: list[Record]) -> list[str]:
    """The contenders that a subject is compared with: neither itself nor the floor."""
    subjects = {r["subject"] for r in records}
    floors = {floor_on(r["device"]) for r in records}
    return [name for name in _names(records) if name not in subjects | floors]


def families(records: list[Record]) -> list[list[Record]]:
    """The records in groups that differ in nothing but the batch size, which grows."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = (record["device"], record["workload"], record["dtype"], record["mode"])
        found.setdefault(key, []).append(record)
    return [sorted(group, key=lambda r: r["batch"]) for group in found.values()]


def ratio_rows(records: list[Record]) -> list[list[str]]:
    """Each family's time of a peer over the subject's, median of the rounds, by batch size."""
    peers = _peers(records)
    rows = [["workload, batch", "ms", "x floor", *map(label, peers)]]
    for record in records:
        lines = record["contenders"]
        own = lines.get(record["subject"], {})
        if own.get("status") != "timed":
            continue
        over = own["over_floor"]
        cells = [
            f"({record['workload']}) {record['batch']:,}" + (" float64" if record["dtype"] == "float64" else ""),
            significant(own["best_ms"]),
            f"{over['median']:.2f}" if over else "",
        ]
        for name in peers:
            ratio = lines.get(name, {}).get("ratio")
            cells.append(f"{ratio['median']:.2f}" if ratio else "")
        rows.append(cells)
    means = ["geometric mean", "", ""]
    for name in peers:
        ratios = [r["contenders"].get(name, {}).get("ratio") for r in records]
        medians = [ratio["median"] for ratio in ratios if ratio]
        means.append(f"{statistics.geometric_mean(medians):.2f}" if medians else "")
    return [*rows, means] if len(rows) > 2 else rows


def overview(result: Record) -> str:
    """All cases: how much longer than the subject each peer takes."""
    parts = []
    for device in dict.fromkeys(r["device"] for r in result["cases"]):
        for mode in dict.fromkeys(r["mode"] for r in result["cases"]):
            records = [r for r in result["cases"] if r["device"] == device and r["mode"] == mode]
            rows = ratio_rows(records)
            if len(rows) > 1 and len(rows[0]) > 3:
                subject = label(records[0]["subject"])
                parts.append(
                    f"{MODES[mode]} on {device}: time over that of {subject}, median of rounds "
                    f"(above 1: {subject} is faster)\n{columns(rows)}"
                )
    return "\n\n".join(parts)


# ---- the picture ----------------------------------------------------------------------------------------------------

_COLOURS = {
    "bpnet": "#d62728",
    "bpnet-jit": "#9467bd",
    "bpnet-torch": "#ff9896",
    "bpnet-jax": "#f7b6d2",
    "bpnet-cupy": "#d62728",
    "torch": "#ff7f0e",
    "torch-compile": "#bcbd22",
    "jax": "#1f77b4",
    "keras": "#17becf",
    "sklearn": "#2ca02c",
    "thinc": "#8c564b",
    "numpy": "#7f7f7f",
    "cupy": "#7f7f7f",
    "floor": "#000000",
    "floor-cupy": "#000000",
}


def plot(result: Record, path: Path) -> None:
    """Throughput against batch size, both logarithmic; one panel for each workload and mode, one line a contender."""
    try:
        import matplotlib
    except ImportError:
        print(f"no picture: matplotlib is not installed, {path} was not written")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panels = [family for family in families(result["cases"]) if len(family) > 1] or families(result["cases"])
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "path", "font.size": 10}):
        figure, axes = pyplot.subplots(
            down, across, figsize=(6.4 * across, 4.8 * down), squeeze=False, layout="constrained"
        )
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
        for panel, family in zip(axes.flat, panels, strict=False):
            first = family[0]
            for name in _names(family):
                timed = [r for r in family if r["contenders"].get(name, {}).get("status") == "timed"]
                own, floor = name == first["subject"], name == floor_on(first["device"])
                panel.plot(
                    [r["batch"] for r in timed],
                    [r["contenders"][name]["rows_per_second"] for r in timed],
                    label=label(name),
                    color=_COLOURS.get(name),
                    linestyle="--" if floor else "-",
                    linewidth=2.6 if own else 1.4,
                    marker="o",
                    markersize=5 if own else 3.5,
                    zorder=3 if own else 2,
                )
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            batches = [r["batch"] for r in family]
            panel.set_xticks(batches, [f"{b:,}" for b in batches], rotation=45, ha="right", rotation_mode="anchor")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel("rows in a batch")
            panel.set_ylabel("rows per second")
            dtype = "" if first["dtype"] == "float32" else f", {first['dtype']}"
            device = "" if first["device"] == "cpu" else ", GPU"
            panel.set_title(
                f"({first['workload']}) {MODES[first['mode']]}{dtype}{device}\n{first['title']}", fontsize=10
            )
            panel.grid(True, which="major", alpha=0.3)
        shown = {
            text: line for panel in axes.flat for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=2 * across, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=110, metadata=metadata)
        pyplot.close(figure)


# ---- README ---------------------------------------------------------------------------------------------------------


def gather(folder: Path) -> Record | None:
    """The committed runs as one: of every case the latest, all from the machine of the latest run."""
    runs = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "cases" in result:
            runs.append(result)
    if not runs:
        return None
    runs.sort(key=lambda result: str(result["machine"]["date"]))
    last = runs[-1]
    same = [r for r in runs if all(r["machine"].get(k) == last["machine"].get(k) for k in ("cpu", "cores", "gpu"))]
    cases: dict[tuple[Any, ...], Record] = {}
    for result in same:
        for record in result["cases"]:
            key = (record["device"], record["workload"], record["dtype"], record["mode"], record["batch"])
            cases[key] = record
    return {**last, "cases": [cases[key] for key in sorted(cases)]}


def section(result: Record, picture: str) -> str:
    """README's part: what it was measured on, the ratios by mode, and the picture."""
    versions: dict[str, str] = {}
    for record in result["cases"]:
        versions |= record["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "bpnet")
    parts = [f"Measured on: {heading(result)}. {libraries}."]
    for device in dict.fromkeys(r["device"] for r in result["cases"]):
        for mode, title in MODES.items():
            records = [r for r in result["cases"] if r["device"] == device and r["mode"] == mode]
            rows = ratio_rows(records)
            if len(rows) < 2:
                continue
            subject = label(records[0]["subject"])
            parts.append(
                f"One {title} of {subject}: its best time, that time over the matrix products alone, and how many "
                f"times as long each peer takes (median of the rounds; above 1, {subject} is faster)."
            )
            parts.append(markdown(rows))
    workloads = {r["workload"]: r["title"] for r in result["cases"]}
    parts.append("Workloads: " + "; ".join(f"({key}) {title}" for key, title in workloads.items()) + ".")
    parts.append(f"![Throughput against batch size]({picture})")
    return "\n\n".join(parts)


def write(folder: Path = RESULTS, readme: Path = README) -> None:
    """Put the table between README's markers and draw the picture beside the results."""
    result = gather(folder)
    if result is None:
        raise SystemExit(f"{folder} holds no results: make some with python -m bench --json {folder / 'NAME.json'}")
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{readme} needs the lines {BEGIN} and {END}, once each and in this order")
    picture = folder / "throughput.svg"
    plot(result, picture)
    try:
        shown = picture.resolve().relative_to(readme.resolve().parent).as_posix()
    except ValueError:
        shown = picture.as_posix()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{section(result, shown)}\n\n{END}{after}", encoding="utf-8")
    print(f"wrote {readme} and {picture}")
