"""bpnet predict: what a saved model says of the rows of a data set."""

import csv
import io
import json
import time
from collections.abc import Mapping
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

ENDINGS = (".csv", ".parquet", ".jsonl", ".npy")


def predict(
    model: Model,
    data: Data,
    output: Annotated[
        Path | None, option("FILE", "Write to a .csv, .parquet, .jsonl or .npy file.", "--output", "-o")
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="Give the probability of every class, too.")] = False,
    keys: Keys = None,
    sep: Sep = None,
    encoding: Encoding = "utf-8",
    missing: Missing = None,
    backend: Library = "numpy",
    as_json: AsJSON = False,
) -> None:
    """What MODEL says of each row of DATA, one line a row: a class by its name, or numbers.

    With --proba or --keys, lines are of text with commas, below a header.
    """
    if output is not None:
        if output.suffix.lower() not in ENDINGS:
            expected = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
            raise OptionError(f"--output is {output}: expected a {expected} file")
        if output.suffix.lower() == ".npy" and (proba or keys):
            raise OptionError(f"--output is {output}, but a .npy file holds one column: take a .csv or .parquet file")
        if output.suffix.lower() == ".parquet":
            terminal.load_extra("pyarrow", "writing .parquet", "pyarrow")
        terminal.check_output("--output", output, MODEL=model, DATA=data)
    found = load(model, backend)
    if proba and found.target.kind == "number":
        raise OptionError(f"--proba is of classes, but {model} predicts numbers")
    dataset = read_for(found, data, text_options(sep, encoding, missing), labelled=False, keys=keys or ())
    began = time.perf_counter()
    with rows_from_one():
        columns = answers(found, dataset.frame, proba)
    result: JSON = {"rows": dataset.frame.rows, "seconds": time.perf_counter() - began}
    result |= {**location(found.trainer), "data": data}
    beside = {} if dataset.keys is None else {name: plain(dataset.keys.column(name)) for name in dataset.keys.names}
    columns = beside | {(f"predicted_{name}" if name in beside else name): values for name, values in columns.items()}
    if output is not None:
        write(output, columns)
        lines = [f"{plural(dataset.frame.rows, 'prediction')} written to {output}"]
        result["output"] = str(output)
    elif proba or keys:
        lines = as_csv(columns).splitlines()
        result["predictions"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    else:
        rows = [list(row) if len(row) > 1 else row[0] for row in zip(*columns.values(), strict=True)]
        lines = [",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows]
        result["predictions"] = rows
    terminal.report(result, as_json, *lines)


def answers(model: bp.TableModel, frame: Any, proba: bool) -> dict[str, list[Any]]:
    """By what a column of answers is called: labels or quantities, and probabilities."""
    backend, target = model.trainer.backend, model.target
    made: Array = host(backend, model.predict(frame, batch_size=ROWS))
    name = target.name or "prediction"
    if made.ndim == 1:
        columns = {name: plain(made)}
    else:
        names = target.names if len(target.names) == made.shape[1] else [f"{name}_{i}" for i in range(made.shape[1])]
        columns = {name: plain(made[:, i]) for i, name in enumerate(names)}
    if proba:
        chances = host(backend, model.predict_proba(frame, batch_size=ROWS))
        labels = target.classes or tuple(columns)
        columns |= {f"proba_{label}": plain(chances[:, i]) for i, label in enumerate(labels)}
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
