"""All figures of a model on rows of a table."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.report.classes import Confusion, Labels, Mistake, Reliability, surest_mistakes, to_json
from bpnet.report.importance import LEAST_ROWS, WORK, Importances, Places, Shuffler, importances
from bpnet.report.quantities import FEW, Residuals
from bpnet.report.scores import Statement, measure


@dataclass(frozen=True)
class Figures:
    """How good a model is on some rows, and what it rests on; print it, or write it as a page.

    Which of the figures there are depends on what is predicted: one of several classes (`confusion`, `mistakes`), what
    is true or false (`labels`), or quantities (`residuals`, one for each).  `scores` are metrics by name, `baseline`
    those of a model that knows no columns: that always says the most frequent class, or the mean.  `reliability` says
    whether stated probabilities hold, `importances` which columns matter, `history` how the training went.
    """

    kind: str
    rows: int
    names: tuple[str, ...]
    scores: dict[str, float]
    baseline: dict[str, float]
    title: str = ""
    which: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    confusion: Confusion | None = None
    labels: Labels | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    reliability: Reliability | None = None
    residuals: list[Residuals] = field(default_factory=list)
    importances: Importances | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def text(self, width: int = 80, history: bool = True) -> str:
        """The figures for a terminal of so many columns; of many classes or columns of a table the most telling.

        `history` is whether the course of the training is among them.
        """
        from bpnet.report.text import text

        return text(self, width, history)

    def html(self, path: Any) -> None:
        """Write a page that needs nothing beside itself; complete, or not there at all.  Raises OSError."""
        from bpnet.disk import write_atomically
        from bpnet.report.page import page

        with write_atomically(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(page(self))

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON has them; what is not a number is None."""
        found = asdict(self)
        for residuals in found["residuals"]:
            del residuals["points"], residuals["residuals"]
        for name in ("title", "which", "facts", "history"):
            del found[name]
        result: dict[str, Any] = to_json({name: value for name, value in found.items() if value not in (None, [], {})})
        return result

    def __str__(self) -> str:
        return self.text()


def judge(
    statement: Statement,
    target: Array,
    *,
    rows: Array | None = None,
    seed: int = 0,
    score: Callable[[Any], Statement] | None = None,
    x: Any = None,
    places: Mapping[str, Places] | None = None,
    cost: float = 0.0,
    repeats: int = 5,
    **more: Any,
) -> Figures:
    """Figures of what is stated of rows whose `target` is known: codes of classes, or a column for every quantity.

    `rows` are what the rows are called (by default 1, 2, ...).  With `x`, which `score` makes a statement of, and the
    `places` of the table's columns in it, permutation importance is among them; `cost` is the number of floating-point
    operations for one row.
    """
    kind, values = statement.kind, statement.values
    target = target if kind == "class" else np.asarray(target, np.float64)
    numbers = np.arange(1, len(values) + 1) if rows is None else np.asarray(rows)
    scores = measure(statement, target, statement.scores())
    given: dict[str, Any] = {"kind": kind, "rows": len(values), "names": statement.names, **more}
    if kind == "class":
        given |= of_classes(statement, target, scores, numbers)
    elif kind == "multilabel":
        given |= of_labels(statement, target, scores)
    else:
        given |= of_quantities(statement, target, numbers, seed)
    if places and score is not None:
        given["importances"] = importance(statement, target, score, x, places, cost, repeats, seed)
    return Figures(scores=scores, **given)


def of_classes(statement: Statement, target: Array, scores: Mapping[str, float], numbers: Array) -> dict[str, Any]:
    """Confusion, calibration and mistakes."""
    values, names = statement.values, statement.names
    said, sureness = values.argmax(axis=1), values.max(axis=1)
    counts = measure(statement, target, ["confusion_matrix"])["confusion_matrix"]
    matrix = np.asarray(counts).round().astype(int)
    found = {
        "confusion": Confusion(names, matrix),
        "mistakes": surest_mistakes(names, target, said, sureness, statement.probabilities, numbers),
        "baseline": {"accuracy": float(matrix.sum(axis=1).max() / len(target))},
    }
    if statement.probabilities and len(target) >= FEW:
        found["reliability"] = Reliability.of(sureness, said == target, scores["calibration_error"])
    return found


def of_labels(statement: Statement, target: Array, scores: Mapping[str, float]) -> dict[str, Any]:
    """Of every label how many rows are right, and the calibration of all of them together."""
    values, true = statement.values, target > 0.5
    said = values > (0.5 if statement.probabilities else 0.0)
    counts = (array.sum(axis=0) for array in (true, said, true & said))
    none = np.broadcast_to(true.mean(axis=0) > 0.5, true.shape)
    found: dict[str, Any] = {
        "labels": Labels(statement.names, len(values), *counts),
        "baseline": {"accuracy": float((true == none).all(axis=1).mean())},
    }
    if statement.probabilities and len(target) >= FEW:
        found["reliability"] = Reliability.of(values.reshape(-1), true.reshape(-1), scores["calibration_error"])
    return found


def of_quantities(statement: Statement, target: Array, numbers: Array, seed: int) -> dict[str, Any]:
    """Residuals of each."""
    mean = np.broadcast_to(target.mean(axis=0, dtype=np.float64), target.shape)
    found = []
    for j, name in enumerate(statement.names):
        true, said = target[:, j], statement.values[:, j]
        scores = measure(replace(statement, values=said[:, None]), true[:, None], ["r2", "mae", "rmse"])
        quantiles = {q: at[:, j] for q, at in statement.quantiles.items()}
        found.append(Residuals.of(name, true, said, scores, numbers, seed, quantiles))
    return {"residuals": found, "baseline": measure(replace(statement, values=mean), target, ["mae", "rmse"])}


def importance(
    statement: Statement,
    target: Array,
    score: Callable[[Any], Statement],
    x: Any,
    places: Mapping[str, Places],
    cost: float,
    repeats: int,
    seed: int,
) -> Importances:
    """Permutation importance of every column, on as many of the rows as there is time for."""
    rng, count = np.random.default_rng(seed), len(target)
    metrics = ["r2"] if statement.kind == "number" else ["log_loss", "accuracy"][not statement.probabilities :]
    if statement.kind == "number" and len(statement.names) == 1:
        metrics.append("mae")
    affordable = int(WORK / max(cost * min(len(places) * repeats, 400), 1.0))
    some = np.sort(rng.permutation(count)[: max(affordable, LEAST_ROWS)])
    kept, true = take(x, some), target[some]

    def scores(x: Any) -> dict[str, float]:
        return measure(score(x), true, metrics)

    return importances(Shuffler(kept, places, scores, rng), cost * len(some), repeats)


def take(x: Any, rows: Array) -> Any:
    """A copy of some rows of an array, or of each array of a dict."""
    return {key: array[rows] for key, array in x.items()} if isinstance(x, dict) else x[rows]
