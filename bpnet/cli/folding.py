"""Cross-validation in `bpnet train --folds K`: the figures of every fold, and those of all rows out of fold."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset
from bpnet.cli.model import evaluate_rows, rows_from_one
from bpnet.cli.progress import Interrupt, Report
from bpnet.cli.reporting import NUMBERING, facts_of
from bpnet.cli.terminal import JSON
from bpnet.errors import plural
from bpnet.report import Figures, statement, to_host
from bpnet.report.judging import judge
from bpnet.report.scores import Statement
from bpnet.report.words import SHARES
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.folds import each_fold
from bpnet.tabular.goals import rows_of
from bpnet.tabular.model import TableModel
from bpnet.tabular.options import TrainingOptions

ROWS = 8192
"""Rows that are predicted at a time."""


@dataclass(frozen=True)
class OutOfFold:
    """Every row as the network predicted it that was trained without it: `rows` are numbers from 0."""

    statement: Statement
    target: Array
    rows: Array

    @classmethod
    def of(cls, training: TableTraining, rows: Array) -> "OutOfFold":
        """Of the part that was kept apart from a training, the rows with these numbers."""
        model, x = training.model, training.apart[0]
        said = statement(model, model.trainer.predict(x, batch_size=ROWS))
        return cls(said, to_host(model.target.encode(rows_of(training.y, rows))), rows)

    @classmethod
    def together(cls, parts: Sequence["OutOfFold"]) -> "OutOfFold":
        """All parts as one."""
        first = parts[0].statement
        said = dataclasses.replace(
            first,
            values=np.concatenate([part.statement.values for part in parts]),
            quantiles={q: np.concatenate([part.statement.quantiles[q] for part in parts]) for q in first.quantiles},
        )
        return cls(said, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("target", "rows")))

    def figures(self, dataset: Dataset, model: TableModel, rates: JSON) -> Figures:
        """As the report has them; without importances, which are those of one network."""
        numbers = self.rows + 1 if dataset.numbers is None else dataset.numbers[self.rows]
        which = f"{plural(len(self.rows), 'row')}, each predicted by a network that was trained without it"
        facts = facts_of(model) | {"cross-validation": summary(rates)}
        return judge(
            self.statement, self.target, rows=numbers, seed=model.trainer.seed, title=dataset.name, which=which,
            facts=facts, numbering=NUMBERING, history=list(model.trainer.history.epochs),
        )  # fmt: skip


def cross_validate(
    table: Any, goal: Any, options: TrainingOptions, count: int, interrupt: Interrupt, shows: bool
) -> tuple[JSON, OutOfFold]:
    """Mean and standard deviation of every figure over the folds, the figures of each, and the rows out of fold."""
    found: list[JSON] = []
    parts: list[OutOfFold] = []
    with rows_from_one():
        for i, (training, rows) in enumerate(each_fold(table, goal, options, count)):
            callbacks: list[Any] = [interrupt]
            if shows:
                callbacks.insert(0, Report(options.class_weight is not None, fold=f"fold {i + 1}/{count}  "))
            training.fit(callbacks, progress=False)
            if interrupt.number:
                terminal.stop(interrupt.number)
            x, y = training.apart[:2]
            figures = evaluate_rows(training.model, x, y, options.metrics)
            epochs = training.best_epoch or len(training.model.trainer.history)
            found.append(figures | {"epochs": epochs})
            parts.append(OutOfFold.of(training, rows))
    names = [name for name, value in found[0].items() if isinstance(value, float | int)]
    values = {name: np.array([figures[name] for figures in found], dtype=float) for name in names}
    rates = {
        "count": count,
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "deviation": {name: float(v.std(ddof=1)) for name, v in values.items()},
        "each": found,
    }
    return rates, OutOfFold.together(parts)


def after_folds(options: TrainingOptions, rates: JSON) -> TrainingOptions:
    """Of the training on all rows, which takes as many epochs as the folds took in the mean."""
    return dataclasses.replace(options, epochs=max(round(rates["mean"]["epochs"]), 1), validation=0.0)


def figures_over(rates: JSON) -> JSON:
    """The mean figures of the folds, as those of a model: what to expect of it on further rows."""
    return {name: rates["mean"].get(name) for name in rates["each"][0] if name != "epochs"}


def summary(rates: JSON, metrics: Sequence[str] = ()) -> str:
    """What cross-validation has found, in words: shares in percent, as everywhere else."""
    mean, deviation = rates["mean"], rates["deviation"]
    parts = [
        f"{name} {mean[name]:.2%} ± {deviation[name]:.2%}" if name in SHARES
        else f"{'R2' if name == 'r2' else name} {mean[name]:.4g} ± {deviation[name]:.2g}"
        for name in dict.fromkeys(("accuracy", "loss", "r2", *metrics)) if name in mean
    ]  # fmt: skip
    return f"{', '.join(parts)}: mean and standard deviation over {rates['count']} folds"
