"""How good a model is on rows of a table, and what that rests on: as figures, as text, as a page.

found = report.figures(model, table)       # rows that it was not trained on
print(found.text())
found.html("report.html")
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.backends.interrupts import ends_sessions
from bpnet.errors import DataError, OptionError
from bpnet.losses.base import Loss
from bpnet.losses.likelihood import GaussianNLL
from bpnet.losses.members import Members
from bpnet.losses.regression import Quantile
from bpnet.options import whole
from bpnet.report.importance import Places
from bpnet.report.judging import Figures, judge
from bpnet.report.scores import Statement
from bpnet.tabular.frames import Frame
from bpnet.tabular.model import TableModel
from bpnet.tabular.schema import Schema

__all__ = ["Figures", "figures"]

ROWS = 8192
"""Rows that are predicted at a time."""


@ends_sessions
def figures(
    model: TableModel,
    table: Any,
    y: Any = None,
    *,
    rows: Sequence[int] | Array = None,
    title: str = "",
    which: str = "",
    facts: Mapping[str, str] | None = None,
    numbering: str = "",
    importance: bool = True,
    repeats: int = 5,
    seed: int = 0,
) -> Figures:
    """Figures of a model on the rows of a table whose target is known: see `Figures`.

    Parameters
    ----------
    table, y : as `TableModel.evaluate` takes them
    rows : what the rows are called where single ones are named, by default 1, 2, ...
    title, which, facts : what the model is called, which rows these are, and what else is to stand above the figures
    numbering : how the rows are counted, which stands below tables of rows
    importance : whether to find out which columns matter, by shuffling each `repeats` times in an order that `seed`
        decides; it takes some seconds at most, and fewer rows where there are many columns

    Raises DataError where there are no rows, and what `TableModel.evaluate` raises.
    """
    whole("repeats", repeats, 1)
    frame = Frame.of(table)
    if frame.rows == 0:
        raise DataError(f"{frame.what} has no rows")
    trainer, own = model.trainer, model.inputs(frame)
    target = to_host(model.target.encode(model.answers(frame, y)))
    x = to_host(own)

    def score(x: Any) -> Statement:
        return statement(model, trainer.predict(placed(x, own), batch_size=ROWS))

    more: dict[str, Any] = {"title": title, "which": which, "facts": dict(facts or {})}
    more |= {"numbering": numbering} if numbering else {}
    if importance:
        more |= {"x": x, "places": places_of(model.schema), "score": score, "cost": 2.0 * trainer.layout.size}
    numbers = None if rows is None else np.asarray(rows)
    return judge(
        score(x), target, rows=numbers, seed=seed, repeats=repeats, history=list(trainer.history.epochs), **more
    )


def statement(model: TableModel, outputs: Any) -> Statement:
    """What a model says by these outputs of its network, on the host."""
    target, loss, backend = model.target, model.trainer.loss, backend_of(outputs)
    names = tuple(map(str, target.classes if target.kind == "class" else target.names))
    if target.kind != "class" and not names:
        count = target.columns or 1
        names = ("y",) if count == 1 else tuple(f"y{i}" for i in range(count))
    with backend.session(device=backend.device(outputs)):
        if isinstance(loss, Members):
            outputs, loss = loss.pooled(backend, outputs), loss.inner
        if target.kind == "number":
            values = backend.to_host(loss.prediction(backend, outputs))
            return Statement("number", names, values, quantiles=quantiles_of(loss, backend.to_host(outputs)))
        try:
            return Statement(target.kind, names, backend.to_host(target.probabilities(loss, outputs)))
        except OptionError:  # the loss gives none
            margins = backend.to_host(outputs)
    if target.kind == "class" and margins.shape[1] == 1:
        margins = np.concatenate([-margins, margins], axis=1)
    return Statement(target.kind, names, margins, probabilities=False)


def quantiles_of(loss: Loss, outputs: Array) -> dict[float, Array]:
    """The quantiles that outputs on the host say: those of the loss, or of a normal distribution for gaussian_nll."""
    if isinstance(loss, Quantile):
        each = outputs.reshape(len(outputs), -1, len(loss.quantiles))
        return {q: each[:, :, k] for k, q in enumerate(loss.quantiles)}
    if isinstance(loss, GaussianNLL):
        mean, log_variance = np.moveaxis(outputs.reshape(len(outputs), -1, 2), 2, 0)
        scores = {q: NormalDist().inv_cdf(q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
        return {q: mean + z * np.exp(0.5 * log_variance) for q, z in scores.items()}
    return {}


def places_of(schema: Schema) -> dict[str, Places]:
    """Where the columns of a table are in what the schema makes of it: a date in several columns of numbers."""
    both, numbers, codes = bool(schema.n_numbers and schema.entries), 0, 0
    found: dict[str, Places] = {}
    for feature in schema.features:
        if feature.kind == "category":
            found[feature.name] = [("categories" if both else None, codes)]
            codes += 1
        else:
            count = len(feature.numbers)
            found[feature.name] = [("numbers" if both else None, numbers + k) for k in range(count)]
            numbers += count
    return found


def to_host(x: Any) -> Any:
    """A NumPy array, or a dict of them."""
    return {name: to_host(array) for name, array in x.items()} if isinstance(x, dict) else backend_of(x).to_host(x)


def placed(x: Any, like: Any) -> Any:
    """NumPy arrays where those of `like` lie, of their types."""
    if isinstance(x, dict):
        return {name: placed(array, like[name]) for name, array in x.items()}
    backend = backend_of(like)
    return x if backend.name == "numpy" else backend.from_host(x, like.dtype, backend.device(like))
