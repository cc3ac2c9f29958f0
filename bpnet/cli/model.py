"""A saved model and its rows, for all commands that use one."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import bpnet as bp
from bpnet.backends import Array
from bpnet.cli.completion import names_of
from bpnet.cli.dataset import Dataset, Request, read
from bpnet.cli.sources import TextOptions
from bpnet.cli.terminal import JSON, device_of, warn
from bpnet.errors import BpnetError, DataError, DTypeError, FileFormatError, ShapeError, UnknownNameError
from bpnet.metrics.base import Metric
from bpnet.registry import resolve
from bpnet.report.quantities import FEW
from bpnet.tabular.columns import Column
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import class_numbers
from bpnet.tabular.schema import Feature

ROWS = 8192
"""Rows that are evaluated or predicted at a time, so that memory does not grow with the data."""


class OfTrainer(bp.TableModel):
    """The model that a trainer saved in Python is, which knows nothing of tables: their columns in their order."""

    def __init__(self, trainer: bp.Trainer) -> None:
        shape, units = trainer.layout.in_shape, trainer.layout.out_shape[-1]
        if shape and isinstance(shape[0], tuple):
            raise ShapeError("the network takes several arrays, which no data set here has")
        count = int(np.prod(shape, dtype=np.int64))
        schema = bp.Schema(tuple(Feature(f"x{i}", "number") for i in range(count)), named=False, width=count)
        loss, classes = trainer.loss, trainer.classes
        if loss.labels or (loss.boundary is not None and units == 1):
            target = bp.Target("class", (), tuple(range(max(units, 2)) if classes is None else classes))
        elif loss.boundary is not None:
            target = bp.Target("multilabel", (), (), units)
        else:
            columns = units // bp.Target("number").outputs(loss)
            target = bp.Target("number", (), (), columns if columns > 1 else 0)
        super().__init__(schema, target, trainer)


@contextmanager
def rows_from_one() -> Iterator[None]:
    """Errors about values count rows from 1, as those who look at a file do, not from 0, as Python does."""
    try:
        yield
    except (DataError, DTypeError) as error:
        raise type(error)(from_one(str(error))) from None


def from_one(text: str) -> str:
    """The same, of rows counted from 0."""
    return re.sub(r"\brow (\d+(?:,\d{3})*)", lambda found: f"row {int(found[1].replace(',', '')) + 1:,}", text)


@contextmanager
def expect_sound(path: Path) -> Iterator[None]:
    """Raise FileFormatError where what `bpnet train` writes into a model is not what it has written."""
    try:
        yield
    except (BpnetError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is a bpnet model, but what bpnet train wrote into it is damaged") from error


def load(path: Path, backend: str) -> bp.TableModel:
    """A saved model on a backend; a trainer that was saved in Python is one of arrays."""
    with warnings.catch_warnings(action="ignore"):  # a library that lacks float64 says so in an error, too
        found: bp.TableModel | bp.Trainer = bp.load(path, device=device_of(backend))
    return OfTrainer(found) if isinstance(found, bp.Trainer) else found


def request_for(
    model: bp.TableModel,
    text: TextOptions,
    *,
    target: Sequence[str] | None = None,
    labelled: bool = True,
    keys: Sequence[str] = (),
) -> Request:
    """What a model wants of a data set."""
    texts = [f.name for f in model.schema.features if f.values and isinstance(f.values[0], str)]
    targets = (target or model.target.names) if labelled else ()
    if any(isinstance(label, str) for label in model.target.classes):
        texts += targets
    known = list(model.schema.names) if model.schema.named else None
    return Request(
        targets=targets, labelled=labelled, known=known, texts=texts, keys=keys, text=text, evaluates=labelled
    )


def read_for(
    model: bp.TableModel,
    data: str,
    text: TextOptions,
    *,
    target: Sequence[str] | None = None,
    labelled: bool = True,
    keys: Sequence[str] = (),
) -> Dataset:
    """The rows of a data set for a model: its columns, and with `labelled` the target, by default that of the model."""
    request = request_for(model, text, target=target, labelled=labelled, keys=keys)
    dataset = read(data, request)
    if not model.schema.named and len(dataset.frame.names) != model.n_features_in_:
        has = f"{len(dataset.frame.names)} columns" if dataset.targets else f"{len(dataset.frame.names)} numbers a row"
        raise ShapeError(f"{dataset.name} has {has}; the model was trained on {model.n_features_in_}")
    return dataset


def location(trainer: bp.Trainer) -> JSON:
    """The array library and the device that a trainer computes on."""
    return {"backend": trainer.backend.name, "device": str(trainer.backend.device(trainer.theta))}


def check_metric_names(metrics: Sequence[str] | None) -> None:
    """Raise UnknownNameError, with the metric that was probably meant, where one has no name of one."""
    for name in metrics or ():
        try:
            resolve(Metric, "--metric", name)
        except UnknownNameError as error:
            if re.fullmatch(r"f[\d.]+|f.?(beta|score)", name.lower()):
                known = names_of("metric")("")
                raise UnknownNameError("--metric", name, known, "f1") from None
            raise error


def evaluate_rows(model: bp.TableModel, x: Any, y: Array, metrics: Sequence[Any] = ()) -> JSON:
    """Loss in the target's own unit, accuracy (None for numbers), the metrics, and for numbers R2.

    x may be a stream, which has y too, and then y is None.  R2 is the share of variance that is explained.  Of a loss
    with label smoothing, the log loss without is there too.
    """
    trainer = model.trainer
    plain = isinstance(trainer.loss, bp.MeanSquaredError) and trainer.loss.scale == 1.0 and y is not None
    wanted: list[Any] = list(metrics)
    if model.target.kind == "number" and not plain and "r2" not in metrics:
        wanted.append("r2")
    if getattr(trainer.loss.single, "label_smoothing", 0.0) and "log_loss" not in metrics:
        wanted.append("log_loss")
    found = trainer.evaluate(*((x,) if y is None else (x, y)), batch_size=ROWS, metrics=wanted)
    result: JSON = {"loss": found.pop("loss"), "accuracy": found.pop("accuracy", None)}
    if plain:
        with np.errstate(over="ignore"):
            variance = float(trainer.backend.to_host(y).var(axis=0, dtype=np.float64).mean())
        result["r2"] = 1.0 - result["loss"] / variance if 0 < variance < np.inf else None
    return result | {name: value for name, value in found.items() if name not in result}


def useless(model: bp.TableModel, result: JSON, y: Any) -> str | None:
    """What a result on rows with the target y is no better than: a prediction that looks at no column; or None.

    Few rows don't tell.
    """
    if (y.rows if isinstance(y, Column | Frame) else len(y)) < FEW:
        return None
    if model.target.kind == "number":
        r2 = result.get("r2")
        return "predicting the mean" if isinstance(r2, float) and r2 <= 0.0 else None
    labels = class_numbers(model.target, y)
    if labels is None or result["accuracy"] is None:
        return None
    counts = np.bincount(labels)
    if result["accuracy"] > counts.max() / len(labels) + 1e-6:
        return None
    return f"always predicting {str(model.target.classes[int(counts.argmax())])!r}"


def warn_of_useless(model: bp.TableModel, result: JSON, y: Any) -> None:
    """Warn where a result is no better than a prediction that looks at no column."""
    if baseline := useless(model, result, y):
        warn(
            f"the model is no better than {baseline}: the columns may not tell the target, or it takes more rows or "
            "another training"
        )


def scores(result: JSON, metrics: Sequence[str] = ()) -> str:
    """The figures of an evaluation in words."""
    accuracy = "" if result["accuracy"] is None else f"accuracy {result['accuracy']:.2%}, "
    r2 = "" if result.get("r2") is None else f", R2 {result['r2']:.3f}"
    smoothed = isinstance(result.get("log_loss"), float) and "log_loss" not in metrics
    loss = f"log loss {result['log_loss']:.4g}" if smoothed else f"loss {result['loss']:.4g}"
    more = "".join(
        f", {name} {value:.4g}" for name in metrics if isinstance(value := result.get(name), float) and name != "r2"
    )
    return f"{accuracy}{loss}{r2}{more}"
