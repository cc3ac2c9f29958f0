"""bpnet predict: the predictions of a saved model for the rows of a data set."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import bpnet as bp
from bpnet.backends import Array
from bpnet.cli import terminal
from bpnet.cli.model import ROWS, load, location, read_for, rows_from_one
from bpnet.cli.options import Encoding, Keys, Library, Missing, Sep, text_options
from bpnet.cli.terminal import JSON, AsJSON, Data, Model, option
from bpnet.disk import write_atomically
from bpnet.errors import OptionError, plural
from bpnet.options import number
from bpnet.tabular.distributions import levels_of

ENDINGS = (".csv", ".parquet", ".jsonl", ".npy")


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
    dataset = read_for(found, data, text_options(sep, encoding, missing), labelled=False, keys=keys or ())
    began = time.perf_counter()
    with rows_from_one():
        columns = answers(found, dataset.frame, proba, interval)
    result: JSON = {"rows": dataset.frame.rows, "seconds": time.perf_counter() - began}
    result |= {**location(found.trainer), "data": data}
    beside = {} if dataset.keys is None else {name: plain(dataset.keys.column(name)) for name in dataset.keys.names}
    for name in [*columns]:
        free = name
        while free in beside:
            free = f"predicted_{free}"
        beside[free] = columns[name]
    columns = beside
    if output is not None:
        write(output, columns)
        lines = [f"{plural(dataset.frame.rows, 'prediction')} written to {output}"]
        result["output"] = str(output)
    elif proba or keys or interval or spread(found):
        lines = as_csv(columns).removesuffix("\n").split("\n")
        result["predictions"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    else:
        rows = [list(row) if len(row) > 1 else row[0] for row in zip(*columns.values(), strict=True)]
        lines = [",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows]
        result["predictions"] = rows
    terminal.report(result, as_json, *lines)


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


def as_csv(columns: Mapping[str, list[Any]]) -> str:
    """Text with commas, below a header."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def write(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """Predictions as a file, complete or not there at all."""
    kind = path.suffix.lower()
    if kind == ".npy":
        array = as_array(list(columns.values()), path)
        with write_atomically(path) as file:
            np.save(file, array, allow_pickle=False)
    elif kind == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        with write_atomically(path) as file:
            parquet.write_table(table, file)
    else:
        with write_atomically(path, "w", newline="", encoding="utf-8") as file:
            if kind == ".csv":
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
            else:
                for row in zip(*columns.values(), strict=True):
                    file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


def as_array(columns: list[list[Any]], path: Path) -> Array:
    """One column as an array, several side by side."""
    found = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    longest = max((len(answer) for answer in found if isinstance(answer, str)), default=0)
    array = np.asarray(found if longest * len(found) < 1 << 28 else None)  # NumPy pads text to the longest
    if array.dtype.kind not in "biufU":
        raise OptionError(f"--output is {path}, but a .npy file can't hold these predictions: take a .csv file")
    return array
