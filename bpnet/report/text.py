"""Figures as text for a terminal: what tells most of each, and what was left out."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bpnet.errors import plural
from bpnet.plots.curves import best_epoch
from bpnet.report.classes import BINS, Confusion
from bpnet.report.quantities import Residuals
from bpnet.report.words import SHARES, aligned, decimals, fixed, more, percent, score, short, title, wrapped
from bpnet.table import fit

if TYPE_CHECKING:
    from bpnet.report.judging import Figures

MOST_CLASSES, MOST_COLUMNS, MOST_QUANTITIES, MOST_EPOCHS = 10, 15, 3, 8
"""How many are shown in full; of more the most telling."""


def text(figures: "Figures", width: int = 80, training: bool = True) -> str:
    """The figures in lines of no more than `width` columns."""
    sections = [scores(figures, width)]
    if figures.confusion is not None:
        sections.append(confusion(figures.confusion, width))
    if figures.labels is not None:
        sections.append(labels(figures, width))
    sections.append(mistakes(figures, width))
    sections += quantities(figures, width)
    sections += [reliability(figures), importance(figures, width), history(figures) if training else []]
    return "\n\n".join("\n".join(section) for section in sections if section)


def scores(figures: "Figures", width: int) -> list[str]:
    """What the rows are, the scores, and those of a model that knows no columns."""
    about = figures.which or plural(figures.rows, "row")
    lines = wrapped([f"{fit(figures.title, width)}:", about] if figures.title else [about], width, 0, " ")
    if len(figures.residuals) == 1 or not figures.residuals:
        lines += wrapped((f"{title(name)} {score(name, value)}" for name, value in figures.scores.items()), width)
    else:
        lines += wrapped([f"mean R2 {figures.scores['r2']:.4f}"], width)
    if figures.confusion is not None:
        common = fit(figures.names[int(figures.confusion.rows.argmax())], 24)
        lines.append(f"  always predicting {common} would have accuracy {percent(figures.baseline['accuracy'], 2)}")
    elif figures.labels is not None:
        lines.append(f"  always predicting the same would have accuracy {percent(figures.baseline['accuracy'], 2)}")
    elif len(figures.residuals) == 1:
        lines.append(f"  always predicting the mean would have mean absolute error {short(figures.baseline['mae'])}")
    return lines


def confusion(found: Confusion, width: int) -> list[str]:
    """The matrix where it fits, else the classes with most errors and the pairs that are confused most often."""
    count = len(found.names)
    digits = max(len(f"{found.matrix.max():,}"), len(str(count)), 5)
    if count <= MOST_CLASSES and 2 + 12 + (count + 2) * (digits + 2) + 9 <= width:
        return matrix(found, width, digits)
    order = found.by_errors()[:MOST_CLASSES]
    rows = [["class", "rows", "predicted", "precision", "recall"]]
    names = [fit(found.names[i], width - 47) for i in order]
    for name, i in zip(names, order, strict=True):
        counts = f"{found.rows[i]:,}", f"{found.said[i]:,}"
        rows.append([name, *counts, percent(found.precision[i]), percent(found.recall[i])])
    lines = ["Classes, those with most errors first", *aligned(rows)]
    if count > MOST_CLASSES:
        lines.append(f"  {more(count - MOST_CLASSES, 'classes with fewer errors')}")
    if pairs := found.most_confused(MOST_CLASSES // 2):
        half = (width - 22) // 2
        lines += ["", "Most often confused: true class as predicted class"]
        lines += aligned(
            [[f"{n:,}", f"{fit(found.names[i], half)}  as  {fit(found.names[j], half)}"] for n, i, j in pairs],
            left=2,
        )
    return lines


def matrix(found: Confusion, width: int, digits: int) -> list[str]:
    """All counts, with precision and recall."""
    count = len(found.names)
    room = width - 2 - (count + 1) * (digits + 2) - 10 - 4
    heads = [f"{k + 1}" for k in range(count)]
    rows = [["", *heads, "rows", "recall"]]
    for i, name in enumerate(found.names):
        counts = [f"{n:,}" if n else "." for n in found.matrix[i]]
        rows.append([f"{i + 1} {fit(name, room)}", *counts, f"{found.rows[i]:,}", percent(found.recall[i])])
    rows.append(["predicted", *(f"{n:,}" for n in found.said), f"{found.matrix.sum():,}", ""])
    rows.append(["precision", *(percent(p, 0) for p in found.precision), "", ""])
    return ["Confusion matrix (rows: true class, columns: predicted class)", *aligned(rows)]


def labels(figures: "Figures", width: int) -> list[str]:
    """Of every label how many rows are true, are said to be, and how far that is right."""
    found: Any = figures.labels
    order = np.argsort(-(found.true + found.said - 2 * found.both), kind="stable")[: 2 * MOST_CLASSES]
    rows = [["label", "true", "predicted", "precision", "recall"]]
    for i in order:
        counts = f"{found.true[i]:,}", f"{found.said[i]:,}"
        name = fit(found.names[i], width - 47)
        rows.append([name, *counts, percent(found.precision[i]), percent(found.recall[i])])
    lines = ["Labels, those with most errors first", *aligned(rows)]
    left_out = len(found.names) - len(order)
    return [*lines, f"  {more(left_out, 'labels with fewer errors')}"] if left_out else lines


def mistakes(figures: "Figures", width: int) -> list[str]:
    """The wrong rows that the model is surest of."""
    if not figures.mistakes:
        return []
    room = (width - 39) // 2
    rows = [["row", "true", "predicted", "probability"]]
    for one in figures.mistakes[:5]:
        sure = "" if one.probability is None else percent(one.probability)
        rows.append([f"{one.row:,}", fit(one.true, room), fit(one.said, room), sure])
    lines = ["Most confident mistakes: the row may be unusual, or its label wrong", *aligned(rows, left=3)]
    return lines + ([f"  {figures.numbering}"] if figures.numbering else [])


def quantities(figures: "Figures", width: int) -> list[list[str]]:
    """Residuals of each quantity; of more than a few a line for each, and those that are predicted worst."""
    found = figures.residuals
    if len(found) <= 1:
        return [residuals(one, width, figures.numbering) for one in found]
    ordered = sorted(found, key=lambda one: one.scores["r2"])
    rows = [["quantity", "R2", "mean abs. error", "root mean sq. error"]]
    for one in ordered[: 2 * MOST_CLASSES]:
        each = one.scores
        rows.append([fit(one.name, width - 52), f"{each['r2']:.4f}", short(each["mae"]), short(each["rmse"])])
    lines = ["Quantities, those predicted worst first", *aligned(rows)]
    if len(found) > 2 * MOST_CLASSES:
        lines.append(f"  {more(len(found) - 2 * MOST_CLASSES, 'quantities with a larger R2')}")
    return [lines, *(residuals(one, width, figures.numbering) for one in ordered[:MOST_QUANTITIES])]


def residuals(one: Residuals, width: int, numbering: str) -> list[str]:
    """Quantiles, by the size of the prediction, the worst rows, and how wide intervals must be."""
    names = "smallest", "5%", "25%", "median", "75%", "95%", "largest"
    lines = [f"Residuals of {fit(one.name, width - 36)}: target - prediction"]
    lines += aligned([names, [short(q) for q in one.quantiles]], left=0)
    if len(one.bins) > 1:
        rows = [["prediction", "", "rows", "mean", "mean absolute"]]
        for some in one.bins:
            ends = short(some.low), f"to {short(some.high)}"
            rows.append([*ends, f"{some.rows:,}", short(some.mean), short(some.size)])
        lines += ["", *aligned(rows, left=0)]
    rows = [["worst: row", "target", "prediction", "residual"]]
    rows += [[f"{w.row:,}", short(w.true), short(w.said), short(w.true - w.said)] for w in one.worst]
    lines += ["", *aligned(rows, left=0), *([f"  {numbering}"] if numbering else [])]
    if one.coverage:
        thirds = ["low third", "middle", "high third"] if one.coverage[0].by_size else []
        rows = [["level", "+- width", "coverage", *thirds]]
        for level in one.coverage:
            held = percent(level.held), *(percent(share) for share in level.by_size)
            rows.append([percent(level.level, 0), short(level.width), *held])
        lines += ["", "  Interval coverage: rows within prediction +- width, of all and by the prediction"]
        lines += aligned(rows, left=0)
    if one.predicted_quantiles:
        rows = [["quantile", "targets below"]]
        rows += [[percent(q), percent(below)] for q, below in one.predicted_quantiles.items()]
        lines += ["", *aligned(rows, left=0)]
    return lines


def reliability(figures: "Figures") -> list[str]:
    """Predicted probabilities, and how often they came true."""
    found = figures.reliability
    if found is None:
        return []
    rows = [["predicted probability", "rows", "mean", "correct" if figures.kind == "class" else "true"]]
    for k in np.flatnonzero(found.rows):
        span = f"{k * 100 // BINS} to {(k + 1) * 100 // BINS}%"
        rows.append([span, f"{found.rows[k]:,}", percent(found.mean[k]), percent(found.true[k])])
    of = "the predicted class" if figures.kind == "class" else "all labels"
    return [f"Calibration of {of} (calibration error {percent(found.error, 2)})", *aligned(rows)]


def importance(figures: "Figures", width: int) -> list[str]:
    """How much worse the scores are without what each column says."""
    found = figures.importances
    if found is None or not found.columns:
        return []
    first = found.scores[0]
    heads = [f"{'more' if name in ('log_loss', 'mae') else 'less'} {title(name)}" for name in found.scores]
    digits = {name: decimals(one.worse[name] for one in found.columns) for name in found.scores}
    rows = [["column", *heads]]
    for one in found.columns[:MOST_COLUMNS]:
        cells = [
            f"{percent(one.worse[name], 2)} +- {percent(one.deviation[name], 2)}" if name in SHARES
            else f"{fixed(one.worse[name], n)} +- {fixed(one.deviation[name], n)}"
            for name, n in digits.items()
        ]  # fmt: skip
        rows.append([fit(one.name, width - 54), *cells])
    times = plural(found.repeats, "time")
    lines = [f"Importance: each column shuffled {times}, on {plural(found.rows, 'row')}", *aligned(rows)]
    rest = found.columns[MOST_COLUMNS:]
    if rest:
        lines.append(f"  {more(len(rest), 'columns')}, each no more than {rest[0].worse[first]:.3g}")
    if found.others:
        lines.append(
            f"  {more(found.others, 'columns')} in groups, none changes it by more than {found.others_worse:.3g}"
        )
    if len(found.columns) > 1:
        lines.append("  Correlated columns share importance, so each may look unimportant.")
    return lines


def history(figures: "Figures") -> list[str]:
    """Some epochs, among them the best and the last."""
    records = figures.history
    if not records:
        return []
    names = [n for n in ("loss", "val_loss", "val_accuracy", "val_r2") if any(n in record for record in records)]
    best = best_epoch(records, "val_loss")
    chosen = {round(i) for i in np.linspace(0, len(records) - 1, min(MOST_EPOCHS, len(records)))}
    rows = [["epoch", *(n.replace("val_", "held-out ") for n in names), ""]]
    for i in sorted(chosen | ({best} if best is not None else set())):
        record = records[i]
        cells = [percent(record[n], 2) if "accuracy" in n else short(record[n]) if n in record else "" for n in names]
        rows.append([f"{record.get('epoch', i + 1):,}", *cells, "best" if i == best else ""])
    return ["Training", *aligned(rows, left=0)]
