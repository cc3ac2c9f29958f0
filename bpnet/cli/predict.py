"""bpnet predict: the predictions of a saved model for the rows of a data set."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import bpnet as bp
from bpnet.backends import Array
from bpnet.cli import terminal
from bpnet.cli.model import ROWS, load, location, read_for, request_for, rows_from_one
from bpnet.cli.options import Encoding, Keys, Library, Missing, Sep, Stream, text_options
from bpnet.cli.streamed import file_of, parts
from bpnet.cli.terminal import JSON, AsJSON, Data, Model, option
from bpnet.cli.writing import ENDINGS, Writer, as_rows
from bpnet.errors import OptionError, plural
from bpnet.options import number
from bpnet.tabular.distributions import levels_of
from bpnet.tabular.frames import Frame


def predict(
    model: Model,
    data: Data,
    output: Annotated[
        Path | None, option("FILE", "Write to a .csv, .parquet, .jsonl or .npy file.", "--output", "-o")
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="Add the probability of every class.")] = False,
    interval: Annotated[
        float | None,
        option("X", "Add the ends of an interval that holds the true value with probability X, such as 0.9."),
    ] = None,
    keys: Keys = None,
    sep: Sep = None,
    encoding: Encoding = "utf-8",
    missing: Missing = None,
    backend: Library = "numpy",
    stream: Stream = None,
    as_json: AsJSON = False,
) -> None:
    """Predict every row of DATA with MODEL, one line a row: a class by its name, or numbers.

    Models of quantiles give a column for each, gaussian_nll a standard deviation.
    With several columns named, lines are CSV with a header.
    """
    if interval is not None:
        number("--interval", interval, 0.0, 1.0, closed="neither")
    if output is not None:
        if output.suffix.lower() not in ENDINGS:
            expected = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
            raise OptionError(f"--output is {output}: expected a {expected} file")
        if output.suffix.lower() == ".npy" and (proba or keys or interval):
            raise OptionError(f"--output is {output}, but a .npy file holds one column: take a .csv or .parquet file")
        if output.suffix.lower() == ".parquet":
            terminal.load_extra("pyarrow", "writing .parquet", "pyarrow")
        terminal.check_output("--output", output, MODEL=model, DATA=data)
    found = load(model, backend)
    if proba and found.target.kind == "number":
        raise OptionError(f"--proba is for classes, but {model} predicts numbers")
    if interval is not None:
        check_interval(found, interval)
    options, file = text_options(sep, encoding, missing), file_of(data, stream)
    plain_lines = not (proba or keys or interval or spread(found))
    if file is not None:
        if output is None and as_json:
            raise OptionError(
                f"--json would hold every prediction, but {data} is streamed: write them to --output FILE"
            )
        request = request_for(found, options, labelled=False, keys=keys or ())
        rows, some = file.rows, parts(found, file, request)
    else:
        dataset = read_for(found, data, options, labelled=False, keys=keys or ())
        rows, some = dataset.frame.rows, iter([(dataset.frame, dataset.keys, nullcontext())])
    began, predictions = time.perf_counter(), []
    with Writer(output, rows, found.target.classes) as writer:
        for frame, own_keys, numbered in some:
            with rows_from_one(), numbered:
                columns = answers(found, frame, proba, interval)
            named = beside(own_keys, columns)
            if output is not None:
                writer.write(named)
            elif as_json:
                predictions += as_rows(named, plain_lines)
            else:
                writer.show(named, plain_lines)
    result: JSON = {"rows": rows, "seconds": time.perf_counter() - began}
    result |= {**location(found.trainer), "data": data}
    result |= {"predictions": predictions} if output is None else {"output": str(output)}
    terminal.report(result, as_json, *([] if output is None else [f"{plural(rows, 'prediction')} written to {output}"]))


def beside(keys: Frame | None, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Keys and predictions, whose names differ from theirs."""
    found = {} if keys is None else {name: plain(keys.column(name)) for name in keys.names}
    for name in columns:
        free = name
        while free in found:
            free = f"predicted_{free}"
        found[free] = columns[name]
    return found


def spread(model: bp.TableModel) -> bool:
    """Whether a model predicts more of a number than its value: quantiles, or a standard deviation."""
    loss = model.trainer.loss.single
    return model.target.kind == "number" and (len(levels_of(loss)) > 1 or isinstance(loss, bp.GaussianNLL))


def check_interval(model: bp.TableModel, coverage: float) -> None:
    """Raise OptionError where a model gives no interval of that coverage."""
    loss = model.trainer.loss.single
    if model.target.kind != "number":
        raise OptionError("--interval is for numbers, but the model predicts classes: see --proba")
    if "calibration" in model.settings or isinstance(loss, bp.GaussianNLL):
        return
    levels = ends_of(coverage)
    if not set(levels) <= set(levels_of(loss)):
        raise OptionError(
            f"--interval {coverage:g} needs a model that was calibrated, or trained with --loss gaussian_nll or "
            f"--loss quantile --quantiles {levels[0]:g},0.5,{levels[1]:g}"
        )


def ends_of(coverage: float) -> tuple[float, float]:
    """The quantiles between which a value lies with that probability, as one would write them."""
    return round((1.0 - coverage) / 2, 10), round((1.0 + coverage) / 2, 10)


def uncertainty(model: bp.TableModel, frame: Any, names: Sequence[str], coverage: float | None) -> dict[str, list[Any]]:
    """Of each number its quantiles or its standard deviation, and the ends of its interval."""
    backend, loss = model.trainer.backend, model.trainer.loss.single
    found: dict[str, Array] = {}
    levels = levels_of(loss)
    if len(levels) > 1:
        found |= dict(zip((f"q{q:g}" for q in levels), last_axis(backend, model.predict_quantiles(frame)), strict=True))
    elif isinstance(loss, bp.GaussianNLL):
        found["sd"] = host(backend, model.predict_deviation(frame))
    if coverage is not None:
        known = "calibration" in model.settings
        ends = model.predict_interval(frame, coverage) if known else model.predict_quantiles(frame, ends_of(coverage))
        found |= dict(zip(("low", "high"), last_axis(backend, ends), strict=True))
    return {
        f"{name}_{what}": plain(values.reshape(len(values), -1)[:, i])
        for i, name in enumerate(names) for what, values in found.items()
    }  # fmt: skip


def last_axis(backend: Any, values: Any) -> list[Array]:
    """The parts of an array along its last axis, on the host."""
    return list(np.moveaxis(host(backend, values), -1, 0))


def answers(model: bp.TableModel, frame: Any, proba: bool, interval: float | None = None) -> dict[str, list[Any]]:
    """Predictions by the name of their column: labels or numbers, and how sure the model is of them."""
    backend, target = model.trainer.backend, model.target
    name = target.name or "prediction"
    if target.kind == "number" and len(levels_of(model.trainer.loss.single)) > 1:
        count = max(target.columns, 1)
        numbered = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        return uncertainty(model, frame, target.names if len(target.names) == count else numbered, interval)
    made: Array = host(backend, model.predict(frame, batch_size=ROWS))
    if made.ndim == 1:
        columns = {name: plain(made)}
    else:
        names = target.names if len(target.names) == made.shape[1] else [f"{name}_{i}" for i in range(made.shape[1])]
        columns = {name: plain(made[:, i]) for i, name in enumerate(names)}
    if proba:
        chances = host(backend, model.predict_proba(frame, batch_size=ROWS))
        labels = target.classes or tuple(columns)
        columns |= {f"proba_{label}": plain(chances[:, i]) for i, label in enumerate(labels)}
    if target.kind == "number":
        columns |= uncertainty(model, frame, list(columns), interval)
    return columns


def host(backend: Any, array: Any) -> Array:
    return array if isinstance(array, np.ndarray) else backend.to_host(array)


def plain(values: Array) -> list[Any]:
    """As Python has them: float32 with the digits that it has, dates as text, None for what is missing."""
    if values.dtype.kind == "M":
        return [None if text == "NaT" else text for text in np.datetime_as_string(values).tolist()]
    if values.dtype == np.float32:
        values = values.astype("U").astype(np.float64)
    listed = values.tolist()
    return [None if value != value else value for value in listed] if values.dtype.kind == "f" else listed
