"""The model's page and its pictures, made of the runs that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.picture import STYLE, _pyplot, _save
from bench.report import heading, markdown, significant
from bench.scaling import gpus, model
from bench.scaling.tables import gather
from bench.workloads import WORKLOADS

Record = dict[str, Any]

PAGE = Path(__file__).resolve().parent.parent / "scaling.md"
COUNTS = [2**i for i in range(11)]
SHOWN = (8, 64, 256, 1024)
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


class Found:
    """The fits to the runs in a folder, and what they predict of the rest."""

    def __init__(self, folder: Path) -> None:
        self.result, scaling = gather(folder)
        if not self.result:
            how = f"python -m bench scaling --json {folder / 'NAME.json'}"
            raise SystemExit(f"{folder} holds no runs of scaling: make some with {how}")
        self.ranks, links = scaling["ranks"], scaling["links"]
        reduces = [r for r in links if r["kind"] == "all_reduce"]
        self.groups = model.groups_of_links(reduces)
        fitted = self.groups.get("fitted", [])
        self.overheads = model.fit_links(fitted) if len(fitted) > 3 else None
        self.compute = model.fit_compute(self.ranks)
        shared = [r for r in links if r["kind"] == "shared"]
        self.shared = model.fit_shared(shared) if shared else {}
        self.steps = model.predicted_steps(self.ranks, self.compute, self.shared)
        trainings = [r for r in links if r["kind"] == "training"]
        self.trainings = model.predicted_trainings(trainings, self.compute, self.overheads)

    def pairs(self) -> dict[str, list[tuple[float, float]]]:
        """(measured, predicted) of each kind of measurement."""
        found = {}
        for name, records in self.groups.items():
            found[f"all-reduces over links, {name}"] = [
                (
                    model.typical(r),
                    model.over_link(r["algorithm"], r["ranks"], r["bytes"], r["delay"], r["rate"], self.overheads),
                )
                for r in records
            ]
        for kind in ("strong", "weak"):
            steps = [(a, b) for r, _, a, b in self.steps if r["kind"] == kind]
            found[f"steps by ranks in shared memory, {kind}, held out"] = steps
        found["steps by two ranks over links, held out"] = [(a, b) for _, a, b in self.trainings]
        return {name: pairs for name, pairs in found.items() if pairs}

    @property
    def spread(self) -> float:
        """How far the logarithm of a held-out all-reduce is from its prediction; a third where none was measured."""
        held = [
            pair for name, pairs in self.pairs().items() if "all-reduces over links, held" in name for pair in pairs
        ]
        return model.Errors.of(held).spread if held else 1 / 3


def coefficients(found: Found) -> list[list[str]]:
    """Every fitted coefficient with its interval."""
    rows = [["coefficient", "unit", "fitted", "95% interval", "measurements"]]

    def line(name: str, unit: str, fit: model.Fit, key: str, scale: float) -> None:
        low, high = fit.interval(key)
        shown = [significant(scale * value) for value in (fit[key], low, high)]
        rows.append([name, unit, shown[0], f"{shown[1]} .. {shown[2]}", str(fit.count)])

    if found.overheads is not None:
        line("o, of a message", "us", found.overheads, "o", 1e6)
        line("h, of beta", "%", found.overheads, "h", 1e2)
        line("gamma, of a byte added up", "ns", found.overheads, "gamma", 1e9)
    for n, fit in found.shared.items():
        line(f"alpha of {n} ranks in shared memory", "us", fit, "alpha", 1e6)
        line(f"beta of {n} ranks in shared memory", "ns a byte", fit, "beta", 1e9)
    for key, fit in found.compute.items():
        line(f"c of ({key})", "ms", fit, "c", 1e3)
        line(f"s of ({key})", "us a row", fit, "s", 1e6)
    return rows


def errors(found: Found) -> list[list[str]]:
    """How well each kind of measurement is predicted."""
    rows = [["measurements", "how many", "off by, median", "at most", "measured / predicted"]]
    for name, pairs in found.pairs().items():
        e = model.Errors.of(pairs)
        rows.append([name, str(e.count), f"{e.median:.0%}", f"{e.worst:.0%}", f"{e.bias:.2f}"])
    return rows


def steps(found: Found) -> list[list[str]]:
    """Steps by ranks, measured and predicted."""
    rows = [["network, batch", "ranks", "ms measured", "ms predicted", "efficiency measured", "predicted"]]
    for record, n, measured, predicted in found.steps:
        alone = model.step_seconds(record, "threads@1")
        share = n if record["kind"] == "strong" else 1
        each = " a rank" if record["kind"] == "weak" else ""
        rows.append(
            [
                f"({record['workload']}) {record['kind']}, {record['batch']:,}{each}",
                str(n),
                *(significant(1e3 * seconds) for seconds in (measured, predicted)),
                *(f"{alone / (share * seconds):.2f}" for seconds in (measured, predicted)),
            ]
        )
    return rows


def over_links(found: Found) -> list[list[str]]:
    """Steps of two ranks over slow links, measured and predicted."""
    rows = [["network, batch", "delay, ms", "MB/s", "ms measured", "ms predicted"]]
    for r, measured, predicted in found.trainings:
        link = [f"{1e3 * r['delay']:g}", f"{r['rate'] / 1e6:g}"]
        shown = [significant(1e3 * seconds) for seconds in (measured, predicted)]
        rows.append([f"({r['workload']}) {r['batch']:,}", *link, *shown])
    return rows


CASES = (
    ("a", 8192, True), ("b", 1024, True), ("b", 8192, True), ("g", 1024, True), ("g", 8192, True),
    ("b", 65536, False), ("g", 65536, False), ("g", 1048576, False),
)  # fmt: skip
"""(network, batch, weak) whose predicted efficiency is tabled; a weak batch is each GPU's."""


def predictions(spread: float) -> list[list[str]]:
    rows = [["network, batch", "parameters", *(f"{n:,} GPUs" for n in SHOWN), "all-reduce at 1,024", "of two levels"]]
    cluster = gpus.Cluster()
    for key, batch, weak in CASES:
        found = gpus.band(cluster, key, batch, list(SHOWN), weak, spread)
        size = 4.0 * WORKLOADS[key].parameter_count()
        seconds, how = cluster.nccl(SHOWN[-1], size)
        name = f"({key}) {'weak' if weak else 'strong'}, {batch:,}{' a GPU' if weak else ''}"
        cells = [f"{typical:.2f} ({low:.2f} .. {high:.2f})" for typical, low, high in found]
        rows.append([name, f"{WORKLOADS[key].parameter_count():,}", *cells, f"{1e3 * seconds:.2f} ms ({how})"])
        rows[-1].append(f"{1e3 * cluster.two_level(SHOWN[-1], size):.2f} ms")
    return rows


def assumptions() -> list[list[str]]:
    rows = [["figure", "low", "taken", "high", "unit", "what it is, and where from"]]
    for name, a in gpus.ASSUMED.items():
        rows.append([name, *(f"{value:.3g}" for value in (a.low, a.typical, a.high)), a.unit, a.source])
    return rows


def draw(path: Path, spread: float) -> None:
    """Efficiency against the number of GPUs: by network, batch, and network cards, weak and strong."""
    pyplot = _pyplot(path)
    if pyplot is None:
        return
    nodes = gpus.Cluster()
    panels: list[tuple[str, list[tuple[str, gpus.Cluster, str, int, bool]]]] = [
        (
            "weak, (g) 134 million parameters: rows a GPU",
            [(f"{batch:,} rows", nodes, "g", batch, True) for batch in (8192, 2048, 512)],
        ),
        (
            "weak, 2,048 rows a GPU: network",
            [
                (f"({key}) {WORKLOADS[key].parameter_count() / 1e6:.1f} million parameters", nodes, key, 2048, True)
                for key in "gba"
            ],
        ),
        (
            "weak, (g), 2,048 rows a GPU: cards of 400 Gb/s in a node of 8",
            [(f"{nics} card{'s' * (nics > 1)}", gpus.Cluster(nics=nics), "g", 2048, True) for nics in (8, 4, 1)],
        ),
        (
            "strong, (g): rows of all GPUs together",
            [(f"{batch:,} rows", nodes, "g", batch, False) for batch in (1048576, 262144, 65536)],
        ),
    ]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(2, 2, figsize=(12.0, 8.4), layout="constrained", sharey=True)
        for panel, (title, lines) in zip(axes.flat, panels, strict=True):
            for colour, (name, cluster, key, batch, weak) in zip(COLOURS, lines, strict=False):
                found = gpus.band(cluster, key, batch, COUNTS, weak, spread)
                panel.plot(COUNTS, found[:, 0], color=colour, marker="o", markersize=3, label=name)
                panel.fill_between(COUNTS, found[:, 1], found[:, 2], color=colour, alpha=0.18, linewidth=0)
            panel.set(xscale="log", title=title, ylim=(0.0, 1.05), xlim=(1, COUNTS[-1]))
            panel.set_xticks(COUNTS, [f"{n:,}" for n in COUNTS])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.legend(fontsize=9, loc="lower left")
        for panel in axes[:, 0]:
            panel.set_ylabel("efficiency (predicted)")
        for panel in axes[1]:
            panel.set_xlabel("GPUs")
        _save(figure, path)
        pyplot.close(figure)


def draw_check(found: Found, path: Path) -> None:
    """What was measured against what was predicted."""
    pyplot = _pyplot(path)
    if pyplot is None:
        return
    with pyplot.rc_context(STYLE):
        figure, panel = pyplot.subplots(figsize=(7.6, 6.4), layout="constrained")
        ends = []
        markers = "ox^vsDP*"
        for number, (name, pairs) in enumerate(found.pairs().items()):
            measured, predicted = zip(*pairs, strict=True)
            ends += [*measured, *predicted]
            options: dict[str, Any] = {"marker": markers[number % len(markers)], "s": 22, "alpha": 0.7}
            panel.scatter([1e3 * p for p in predicted], [1e3 * m for m in measured], label=name, **options)
        low, high = 1e3 * min(ends) / 1.3, 1e3 * max(ends) * 1.3
        panel.plot([low, high], [low, high], color="black", linewidth=1)
        for factor in (1.25, 0.8):
            panel.plot([low, high], [factor * low, factor * high], color="black", linewidth=0.6, linestyle=":")
        panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        panel.set(xlabel="ms predicted", ylabel="ms measured (dotted: a quarter more, a fifth less)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
        _save(figure, path)
        pyplot.close(figure)


def write(folder: Path, path: Path = PAGE) -> None:
    """The page, and its two pictures beside the results."""
    found = Found(folder)
    pictures = {name: folder / f"scaling-{name}.svg" for name in ("model", "check")}
    draw(pictures["model"], found.spread)
    draw_check(found, pictures["check"])
    template = path.read_text(encoding="utf-8") if path.exists() else TEMPLATE
    made = {
        "measured": f"Measured on {heading(found.result)}.",
        "coefficients": markdown(coefficients(found)),
        "errors": markdown(errors(found)),
        "steps": markdown(steps(found)),
        "links": markdown(over_links(found)),
        "assumptions": markdown(assumptions()),
        "predictions": markdown(predictions(found.spread)),
    }
    path.write_text(filled(template, made), encoding="utf-8")


TEMPLATE = "\n\n".join(
    f"<!-- {name}:begin -->\n\n<!-- {name}:end -->"
    for name in ("measured", "coefficients", "errors", "steps", "links", "assumptions", "predictions")
)


def filled(template: str, made: dict[str, str]) -> str:
    """The page with the parts between their markers; raises SystemExit where a marker is missing."""
    for name, content in made.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if template.count(begin) != 1 or template.count(end) != 1 or template.index(begin) > template.index(end):
            raise SystemExit(f"the page of the model needs the lines {begin} and {end}, once each and in this order")
        template = f"{template.split(begin)[0]}{begin}\n\n{content}\n\n{end}{template.split(end)[1]}"
    return template
