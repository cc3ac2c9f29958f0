"""Throughput against batch size, CPU and GPU in one picture; and the test errors of epochs."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import floor_on
from bench.report import MODES, Record, crossings, kind_of, label, timed_names

COLOURS = {
    "bpnet": "#d62728",
    "bpnet-jit": "#9467bd",
    "bpnet-torch": "#ff9896",
    "bpnet-jax": "#f7b6d2",
    "bpnet-cupy": "#d62728",
    "bpnet-cupy-steps": "#ff7896",
    "bpnet-cupy-eager": "#e7969c",
    "torch": "#ff7f0e",
    "torch-compile": "#bcbd22",
    "torch-graph": "#fdae6b",
    "jax": "#1f77b4",
    "jax-steps": "#9ecae1",
    "keras": "#17becf",
    "sklearn": "#2ca02c",
    "thinc": "#8c564b",
    "numpy": "#7f7f7f",
    "cupy": "#7f7f7f",
    "floor": "#000000",
    "floor-cupy": "#000000",
    "roof-cupy": "#636363",
}

STYLE = {"svg.hashsalt": "bench", "svg.fonttype": "path", "font.size": 10}


def families(records: list[Record]) -> list[list[Record]]:
    """The records in groups that differ in nothing but the batch size, which grows, and the device."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault((record["workload"], kind_of(record), record["mode"]), []).append(record)
    return [sorted(group, key=lambda r: (r["device"], r["batch"])) for group in found.values()]


def _batches(family: list[Record]) -> list[int]:
    return sorted({record["batch"] for record in family})


def plot(result: Record, path: Path) -> None:
    """Both axes logarithmic; one panel for each workload, type and mode, one line a contender on a device."""
    pyplot = _pyplot(path)
    if pyplot is None:
        return
    timed = [r for r in result["cases"] if timed_names([r])]
    panels = [family for family in families(timed) if len(_batches(family)) > 1] or families(timed)
    if not panels:
        print(f"no picture: nothing was timed, {path} was not written")
        return
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            down, across, figsize=(6.4 * across, 4.8 * down), squeeze=False, layout="constrained"
        )
        for panel in axes.flat[len(panels) :]:
            panel.set_visible(False)
        for panel, family in zip(axes.flat, panels, strict=False):
            _panel(panel, family)
        shown = {
            text: line for panel in axes.flat for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=2 * across, fontsize=9)
        _save(figure, path)
        pyplot.close(figure)


def curves(found: dict[str, tuple[float, list[list[float]]]], path: Path) -> None:
    """Per cent wrong after every epoch, both axes logarithmic: of each title what was published, and its trainings.

    A line is the median of the trainings, as long as the shortest; around it is what lies between the lowest and the
    highest. A cross is what was published.
    """
    pyplot = _pyplot(path)
    if pyplot is None:
        return
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.8), layout="constrained")
        for number, (title, (published, trainings)) in enumerate(found.items()):
            points = list(zip(*trainings, strict=False))  # of every epoch the errors
            epochs, colour = range(1, 1 + len(points)), f"C{number}"
            axes.plot(epochs, [median(p) for p in points], color=colour, linewidth=1.6, label=title)
            axes.fill_between(
                epochs, *([f(p) for p in points] for f in (min, max)), color=colour, alpha=0.2, linewidth=0
            )
            axes.plot(epochs[-1], published, "x", color=colour, markersize=7, markeredgewidth=2, clip_on=False)
        axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel="per cent of the test set wrong (x: published)")
        shown = axes.get_xlim()
        for axis, ticks in ((axes.xaxis, (1, 2, 5, 10, 20, 50, 100)), (axes.yaxis, (1, 1.5, 2, 3, 4, 5, 7, 10))):
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set_xlim(shown)
        axes.grid(True, alpha=0.3)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
        _save(figure, path)
        pyplot.close(figure)


def _pyplot(path: Path) -> Any:
    """matplotlib's pyplot, drawing to files; None, and a line that says so, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print(f"no picture: matplotlib is not installed, {path} was not written")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(panel: Any, family: list[Record]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    first, devices = family[0], list(dict.fromkeys(r["device"] for r in family))
    for device in devices:
        records = [r for r in family if r["device"] == device]
        for name in timed_names(records):
            timed = [r for r in records if r["contenders"].get(name, {}).get("status") == "timed"]
            own, floor = name == records[0]["subject"], name == floor_on(device)
            line = ":" if len(devices) > 1 and device == "cpu" else "-"
            panel.plot(
                [r["batch"] for r in timed],
                [r["contenders"][name]["rows_per_second"] for r in timed],
                label=label(name) + (", GPU" if device != "cpu" else ""),
                color=COLOURS.get(name),
                linestyle="--" if floor else line,
                linewidth=2.6 if own else 1.4,
                marker="o",
                markersize=5 if own else 3.5,
                zorder=3 if own else 2,
            )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    batches = _batches(family)
    panel.set_xticks(batches, [f"{b:,}" for b in batches], rotation=45, ha="right", rotation_mode="anchor")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("rows in a batch")
    panel.set_ylabel("rows per second")
    kind = "" if kind_of(first) == "float32" else f", {kind_of(first)}"
    where = {("cpu",): "", ("cuda",): ", GPU"}.get(tuple(devices), ", CPU and GPU")
    title = f"({first['workload']}) {MODES[first['mode']]}{kind}{where}\n{first['title']}"
    for crossing in crossings(family).values():
        title += f"\nthe GPU overtakes the CPU {crossing}"
    panel.set_title(title, fontsize=10)
    panel.grid(True, which="major", alpha=0.3)
