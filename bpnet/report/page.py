"""Figures as one page of HTML, which needs nothing beside itself and runs no code."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from bpnet.errors import plural
from bpnet.plots.curves import best_epoch, panels
from bpnet.plots.scales import spread
from bpnet.report.classes import BINS, Confusion
from bpnet.report.quantities import Residuals
from bpnet.report.svg import Plot, bar_chart, heat_map
from bpnet.report.words import decimals, fixed, percent, score, short, title
from bpnet.table import clean, fit

if TYPE_CHECKING:
    from bpnet.report.judging import Figures

MOST_CELLS, MOST_HEAT, MOST_BARS, MOST_QUANTITIES = 20, 150, 40, 12
"""Classes of which a table shows all counts, and a picture; columns with a bar; quantities with pictures."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2330; --quiet: #5d6879; --rule: #dde2ea; --card: #f6f8fb;
  --one: #2266cc; --two: #c75b12; --good: #2e8b57; --heat: 34, 102, 204; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e4e9f0; --quiet: #9aa6b8; --rule: #303846;
  --card: #1c222c; --one: #6ea8ff; --two: #f0a058; --good: #63c08d; --heat: 110, 168, 255; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 4rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } p, figcaption, dt { color: var(--quiet); }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0 .4rem; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .5rem .9rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; } .tile span { color: var(--quiet); }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem; } figure { margin: .6rem 0; max-width: 100%; }
svg { max-width: 100%; height: auto; display: block; } svg text { font-size: 12px; fill: var(--ink); }
svg text.name { fill: var(--quiet); }
.grid { stroke: var(--rule); fill: none; } .axis, .whisker { stroke: var(--quiet); fill: none; }
.whisker { stroke: var(--ink); } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.one { stroke: var(--one); } .line.two { stroke: var(--two); } .dashed { stroke-dasharray: 7 3; }
.line.ideal { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 4 4; }
.dot.one, .bar.one { fill: var(--one); } .dot.two, .bar.two { fill: var(--two); } .dot.thin { fill: var(--one);
  fill-opacity: .45; } .bar.faint { fill: var(--one); fill-opacity: .22; }
.heat { fill: var(--one); } .frame { fill: var(--card); stroke: var(--rule); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--quiet); } th.left, td.left { text-align: left; overflow-wrap: break-word;
  max-width: 20rem; } td.cell { min-width: 3rem; text-align: center; border: 1px solid var(--rule); }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--one); }
@media print { details { display: block; } }
"""


def page(figures: "Figures") -> str:
    """The whole page."""
    name = clean(figures.title) or "a model"
    body = [head(figures, name), history(figures)]
    if figures.confusion is not None:
        body.append(confusion(figures.confusion))
    if figures.labels is not None:
        body.append(labels(figures))
    body += [mistakes(figures), quantities(figures), reliability(figures), importance(figures)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(name)}: report of bpnet</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text and whose others are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        shown = (
            f"<{tag}{' class=left' if i < left else ''}>{escape(clean(cell))}</{tag}>" for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(heads, "th")}</thead><tbody>{body}</tbody></table></div>'


def figure(svg: str, caption: str = "") -> str:
    """A picture, and what it shows."""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{said}</figure>"


def section(heading: str, about: str, *parts: str) -> str:
    """A heading, what is to be seen, and the figures."""
    return "\n".join(
        [f"<section>\n<h2>{escape(heading)}</h2>\n<p>{escape(about)}</p>", *filter(None, parts), "</section>"]
    )


def head(figures: "Figures", name: str) -> str:
    """What the model is of, what it was tried on, and its scores."""
    about = figures.which or plural(figures.rows, "row")
    shown = figures.scores if len(figures.residuals) < 2 else {"r2": figures.scores["r2"]}
    mean = "mean " if len(figures.residuals) > 1 else ""
    tiles = [
        f'<div class="tile"><b>{escape(score(key, value))}</b><span>{escape(mean + title(key))}</span></div>'
        for key, value in shown.items()
    ]
    if figures.confusion is not None:
        common = figures.names[int(figures.confusion.rows.argmax())]
        less = (
            f"A model that always predicts {fit(common, 60)} has accuracy {percent(figures.baseline['accuracy'], 2)}."
        )
    elif figures.labels is not None:
        less = f"A model that always predicts the same has accuracy {percent(figures.baseline['accuracy'], 2)}."
    elif len(figures.residuals) == 1:
        less = f"A model that always predicts the mean has a mean absolute error of {short(figures.baseline['mae'])}."
    else:
        less = "The mean over quantities; each by itself is below."
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(clean(v))}</dd>" for k, v in figures.facts.items())
    listed = f'<dl class="facts">{facts}</dl>' if facts else ""
    return (
        f"<header><h1>{escape(name)}</h1>\n<p>{escape(about)}</p>\n{listed}"
        f'<div class="tiles">{"".join(tiles)}</div>\n<p>{escape(less)}</p></header>'
    )


def history(figures: "Figures") -> str:
    """Learning curves."""
    records = figures.history
    names = [name for name in ("loss", "accuracy") if any({name, f"val_{name}"} & record.keys() for record in records)]
    if len(records) < 2:
        return ""
    plots, best = [], best_epoch(records, "val_loss")
    for panel in panels(records, names):
        ends = panel.ends
        if ends is None:
            continue
        epochs = panel.curves[0].x
        plot = Plot(
            (float(epochs[0]), float(epochs[-1])), ends, ("epoch", panel.title), scale=panel.scale, whole_x=True,
            percent=(False, panel.name == "accuracy"),
        )  # fmt: skip
        for curve in panel.curves:
            kind, said = ("one", "training") if curve.role == "training" else ("two", "held out")
            thin = curve.thinned()
            dashed = " dashed" * (kind == "two")
            plot.line(zip(thin.x.tolist(), thin.y.tolist(), strict=True), kind + dashed, said)
            if panel.best is not None and kind == "two" and math.isfinite(panel.best[1]):
                plot.dots([panel.best], kind, 4.5, [f"best: epoch {panel.best[0]:.0f}"])
        plots.append(figure(plot.svg()))
    kept = (
        f" The smallest held-out loss came in epoch {records[best].get('epoch', best + 1)}." if best is not None else ""
    )
    return section("Training", f"{plural(len(records), 'epoch')}.{kept}", f'<div class="plots">{"".join(plots)}</div>')


def confusion(found: Confusion) -> str:
    """Which classes are taken for which, and precision and recall of each."""
    names, count = [clean(name) for name in found.names], len(found.names)
    shares = np.nan_to_num(found.matrix / np.maximum(found.rows[:, None], 1))
    parts = []
    if count <= MOST_CELLS:
        heads = "".join(f'<th title="{escape(name)}">{escape(fit(name, 12))}</th>' for name in names)
        lines = []
        for i, name in enumerate(names):
            cells = "".join(
                f'<td class="cell" style="background: rgba(var(--heat), {0.55 * shares[i, j]:.2f})" '
                f'title="{escape(name)} predicted as {escape(names[j])}">{found.matrix[i, j] or ""}</td>'
                for j in range(count)
            )
            recall = f"<td>{found.rows[i]:,}</td><td>{percent(found.recall[i])}</td>"
            lines.append(f'<tr><td class="left">{escape(fit(name, 40))}</td>{cells}{recall}</tr>')
        precision = "".join(f"<td>{percent(p)}</td>" for p in found.precision)
        parts.append(
            f'<div class="wide"><table><thead><tr><th class="left">true \\ predicted</th>{heads}<th>rows</th>'
            f"<th>recall</th></tr></thead><tbody>{''.join(lines)}<tr>"
            f'<td class="left">precision</td>{precision}<td></td><td></td></tr>'
            "</tbody></table></div>"
        )
    else:
        order = found.by_errors()
        if count <= MOST_HEAT:
            titles = [[f"{a} as {b}: {found.matrix[i, j]}" for j, b in enumerate(names)] for i, a in enumerate(names)]
            caption = "Rows: true class, columns: predicted class; point at a cell for its names."
            parts.append(figure(heat_map(shares, titles), caption))
        pairs = [(f"{n:,}", names[i], names[j]) for n, i, j in found.most_confused(15)]
        if pairs:
            parts += ["<h3>Most often confused</h3>", table(["rows", "true", "predicted"], pairs, 3)]
        rows = [
            [
                names[i],
                f"{found.rows[i]:,}",
                f"{found.said[i]:,}",
                percent(found.precision[i]),
                percent(found.recall[i]),
            ]
            for i in order
        ]
        heads_of_all = ["class", "rows", "predicted", "precision", "recall"]
        parts.append(f"<details><summary>All {count:,} classes</summary>{table(heads_of_all, rows)}</details>")
    about = (
        "Rows: true class, columns: predicted class. Precision: the share of the rows predicted as a class that are of "
        "it. Recall: the share of the rows of a class that are predicted as it."
    )
    return section("Confusion matrix", about, *parts)


def labels(figures: "Figures") -> str:
    """Precision and recall of every label."""
    found: Any = figures.labels
    rows = [
        [name, f"{found.true[i]:,}", f"{found.said[i]:,}", percent(found.precision[i]), percent(found.recall[i])]
        for i, name in enumerate(found.names)
    ]
    about = "How many rows have a label, for how many it is predicted; precision and recall."
    return section("Labels", about, table(["label", "true", "predicted", "precision", "recall"], rows))


def mistakes(figures: "Figures") -> str:
    """The wrong rows that the model is surest of."""
    if not figures.mistakes:
        return ""
    rows = [
        [f"{one.row:,}", one.true, one.said, "" if one.probability is None else percent(one.probability)]
        for one in figures.mistakes
    ]
    about = "Wrong predictions with the highest probability: the row may be unusual, or its label wrong."
    found = table(["row", "true", "predicted", "probability"], rows, 3)
    return section("Most confident mistakes", about, found, f"<p>{escape(figures.numbering)}</p>")


def quantities(figures: "Figures") -> str:
    """Residuals of every quantity."""
    found = figures.residuals
    if not found:
        return ""
    if len(found) == 1:
        return section(
            "Residuals", f"Target - prediction of {fit(found[0].name, 60)}.", residuals(found[0], figures.numbering)
        )
    ordered = sorted(found, key=lambda one: one.scores["r2"])
    rows = [[one.name, *(score(k, one.scores[k]) for k in ("r2", "mae", "rmse"))] for one in ordered]
    parts = [table(["quantity", "R2", "mean absolute error", "root mean squared error"], rows)]
    for one in ordered[:MOST_QUANTITIES]:
        parts.append(f"<details{' open' if one is ordered[0] else ''}><summary>{escape(clean(one.name))}</summary>")
        parts.append(f"{residuals(one, figures.numbering)}</details>")
    about = "Target - prediction of each quantity, those that are predicted worst first."
    if len(found) > MOST_QUANTITIES:
        about += f" Pictures are of {MOST_QUANTITIES} of {len(found)}."
    return section("Residuals", about, *parts)


def residuals(one: Residuals, numbering: str) -> str:
    """Pictures and tables of one quantity."""
    target, said = one.points[:, 0], one.points[:, 1]
    ends = spread(float(one.points.min()), float(one.points.max()), 0.03)
    against = Plot(ends, ends, ("prediction", "target"))
    against.line([(ends[0], ends[0]), (ends[1], ends[1])], "ideal")
    against.dots(zip(said, target, strict=True), "thin")
    counts, edges = np.histogram(one.residuals, bins=min(40, max(8, int(one.count**0.5))))
    spans = Plot((edges[0], edges[-1]), (0.0, float(counts.max()) * 1.05), ("residual", "rows"))
    spans.bars(edges.tolist(), counts.tolist(), "one")
    off = target - said
    across, up = (spread(float(v.min()), float(v.max()), 0.03) for v in (said, np.append(off, 0.0)))
    by_size = Plot(across, up, ("prediction", "residual"))
    by_size.line([(across[0], 0.0), (across[1], 0.0)], "ideal")
    by_size.dots(zip(said, off, strict=True), "thin")
    few = f"{len(one.points):,} of {one.count:,} rows, drawn at random." if len(one.points) < one.count else ""
    pictures = "".join(figure(plot.svg()) for plot in (against, by_size, spans))
    parts = [f'<div class="plots">{pictures}</div>', f"<p>{few}</p>" if few else ""]
    quantiles = ["smallest", "5%", "25%", "median", "75%", "95%", "largest"]
    parts += ["<h3>Quantiles of residuals</h3>", table(quantiles, [[short(q) for q in one.quantiles]], 0)]
    if len(one.bins) > 1:
        rows = [[f"{short(b.low)} to {short(b.high)}", f"{b.rows:,}", short(b.mean), short(b.size)] for b in one.bins]
        heads = ["prediction", "rows", "mean residual", "mean absolute residual"]
        parts += ["<h3>By the size of the prediction</h3>", table(heads, rows)]
    if one.coverage:
        thirds = ["lowest third", "middle third", "highest third"] if one.coverage[0].by_size else []
        rows = [
            [percent(c.level, 0), f"± {short(c.width)}", percent(c.held), *(percent(share) for share in c.by_size)]
            for c in one.coverage
        ]
        about = (
            "The interval prediction ± width is to contain a share (level) of all targets. The coverage is counted on "
            "rows that were not used to find the width. Where it differs between thirds of the predictions, the errors "
            "depend on the size of the prediction."
        )
        heads = ["level", "width", "coverage", *thirds]
        parts += ["<h3>Interval coverage</h3>", f"<p>{about}</p>", table(heads, rows)]
    if one.predicted_quantiles:
        rows = [[percent(q), percent(below)] for q, below in one.predicted_quantiles.items()]
        parts += ["<h3>Predicted quantiles</h3>", table(["quantile", "targets below"], rows)]
    rows = [[f"{w.row:,}", short(w.true), short(w.said), short(w.true - w.said)] for w in one.worst]
    parts += ["<h3>Worst rows</h3>", table(["row", "target", "prediction", "residual"], rows)]
    parts.append(f"<p>{escape(numbering)}</p>")
    return "\n".join(filter(None, parts))


def reliability(figures: "Figures") -> str:
    """Whether predicted probabilities come true as often."""
    found = figures.reliability
    if found is None:
        return ""
    of, word = ("the predicted class", "correct") if figures.kind == "class" else ("each label", "true")
    there = np.flatnonzero(found.rows)
    plot = Plot((0.0, 1.0), (0.0, 1.0), ("predicted probability", f"share that is {word}"), percent=(True, True))
    edges = [k / BINS for k in range(BINS + 1)]
    plot.bars(edges, (found.rows / found.rows.max()).tolist(), "faint")
    plot.line([(0.0, 0.0), (1.0, 1.0)], "ideal")
    points = [(found.mean[k], found.true[k]) for k in there]
    plot.line(points, "two")
    said = [f"{found.rows[k]:,} rows: mean {percent(found.mean[k])}, {word} {percent(found.true[k])}" for k in there]
    plot.dots(points, "two", 4.0, said)
    rows = [
        [
            f"{k * 100 // BINS} to {(k + 1) * 100 // BINS}%",
            f"{found.rows[k]:,}",
            percent(found.mean[k]),
            percent(found.true[k]),
        ]
        for k in there
    ]
    about = (
        f"The predicted probability of {of}, and how often that is {word}. On the dashed line both are equal; below it "
        f"the model is overconfident. The expected calibration error is {percent(found.error, 2)}. Bars show how many "
        "rows there are."
    )
    return section(
        "Calibration", about, f'<div class="plots">{figure(plot.svg())}'
        f"<div>{table(['predicted probability', 'rows', 'mean', word], rows)}</div></div>",
    )  # fmt: skip


def importance(figures: "Figures") -> str:
    """How much worse the model does without what each column says."""
    found = figures.importances
    if found is None or not found.columns:
        return ""
    first, shown = found.scores[0], found.columns[:MOST_BARS]
    digits = decimals([one.worse[first] for one in shown])
    values, deviations = ([getattr(one, part)[first] for one in shown] for part in ("worse", "deviation"))
    words = [f"{fixed(v, digits)} ± {fixed(d, digits)}" for v, d in zip(values, deviations, strict=True)]
    chart = bar_chart([fit(one.name, 30) for one in shown], values, deviations, words)
    less = "rises" if first == "log_loss" else "falls"
    about = (
        f"By how much {title(first)} {less} where the values of one column are shuffled: the mean and standard "
        f"deviation of {plural(found.repeats, 'time')}, on {plural(found.rows, 'row')}. Correlated columns share "
        "importance, so each may look unimportant."
    )
    parts = [figure(chart)]
    if found.others:
        parts.append(
            f"<p>{found.others:,} more columns were shuffled in groups only, none of which changed it by more than "
            f"{found.others_worse:.3g}.</p>"
        )
    if len(found.scores) > 1 or len(found.columns) > MOST_BARS:
        heads = ["column", *(f"{'more' if s in ('log_loss', 'mae') else 'less'} {title(s)}" for s in found.scores)]
        spans = {s: decimals([one.worse[s] for one in found.columns]) for s in found.scores}
        rows = [
            [one.name, *(f"{fixed(one.worse[s], n)} ± {fixed(one.deviation[s], n)}" for s, n in spans.items())]
            for one in found.columns
        ]
        parts.append(f"<details><summary>All columns and scores</summary>{table(heads, rows)}</details>")
    return section("Importance of columns", about, *parts)
