"""bpnet evaluate and bpnet predict: how well a saved model does on a data set, and what it says of its rows."""

import csv
import dataclasses
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np

import bpnet as bp
from bpnet.backends import Array
from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset, Provenance, read
from bpnet.cli.preprocessing import convert, targets_of
from bpnet.cli.terminal import JSON, AsJSON, Backend, Data, Model, Target, device_of, option
from bpnet.disk import write_atomically
from bpnet.errors import BpnetError, FileFormatError, OptionError, ShapeError, plural

KEY = "bpnet train"
"""The key of what the command line knows in the metadata of a model file."""

ROWS = 8192
"""Rows that are evaluated or predicted at a time, so that memory does not grow with the data."""


def evaluate(
    model: Model, data: Data, target: Target = None, backend: Backend = "numpy", as_json: AsJSON = False
) -> None:
    """Loss and accuracy of MODEL on DATA.

    On the data it was trained with, only the rows that were held out are used; on any other, all rows.
    """
    trainer, provenance = load(model, backend)
    dataset, which = read(data, target, model=provenance), "all that the data has"
    held_out = provenance.held_out(dataset)
    if held_out is not None:
        dataset = dataclasses.replace(dataset, x=dataset.x[held_out], y=dataset.y[held_out])
        which = "held out from training"
    x = features_for(trainer, dataset)
    y = targets_of(dataset, trainer.loss, trainer.classes, x.dtype)
    began = time.perf_counter()
    result = evaluate_rows(trainer, x, y)
    result |= {"seconds": time.perf_counter() - began, **location(trainer), "data": data}
    result |= {"rows": len(x), "held_out": held_out is not None}
    terminal.report(result, as_json, f"{scores(result)} on {plural(len(x), 'row')}, {which}")


def predict(
    model: Model,
    data: Data,
    output: Annotated[Path | None, option("FILE", "Write to a .npy or .csv file instead.")] = None,
    backend: Backend = "numpy",
    as_json: AsJSON = False,
) -> None:
    """What MODEL says of each row of DATA, one line a row: a class by its name, or numbers."""
    if output is not None:
        if output.suffix.lower() not in (".npy", ".csv"):
            raise OptionError(f"--output is {output}: expected a .npy or .csv file")
        terminal.check_output("--output", output, MODEL=model, DATA=data)
    trainer, provenance = load(model, backend)
    x = features_for(trainer, read(data, model=provenance, labelled=False))
    began = time.perf_counter()
    found = answers(trainer.predict(x, batch_size=ROWS), trainer)
    result: JSON = {"rows": len(x), "seconds": time.perf_counter() - began, **location(trainer), "data": data}
    if output is not None:
        write(output, found, provenance.target or "prediction")
        lines = [f"{plural(len(found), 'prediction')} written to {output}"]
        result["output"] = str(output)
    else:
        lines = [",".join(map(str, answer)) if isinstance(answer, list) else str(answer) for answer in found]
        result["predictions"] = found
    terminal.report(result, as_json, *lines)


@contextmanager
def expect_sound(model: Path) -> Iterator[None]:
    """Raise FileFormatError where what `bpnet train` writes into a model is not what it has written."""
    try:
        yield
    except (BpnetError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{model} is a bpnet model, but what bpnet train wrote into it is damaged") from error


def load(model: Path, backend: str) -> tuple[bp.Trainer, Provenance]:
    """A saved trainer on a backend, and what it was trained on: nothing where `bpnet train` did not write it."""
    with warnings.catch_warnings(action="ignore"):  # a library that lacks float64 says so in an error, too
        trainer = bp.load(model, device=device_of(backend))
    with expect_sound(model):
        return trainer, Provenance(**trainer.metadata.get(KEY, {}).get("provenance", {}))


def features_for(trainer: bp.Trainer, dataset: Dataset) -> Array:
    """The features as a trained network takes them, of the type of its parameters."""
    shape, expected = dataset.x.shape[1:], trainer.layout.in_shape
    if shape != expected:
        raise ShapeError(f"{dataset.name} has rows of the shape {shape}; the model was trained on {expected}")
    dtype = trainer.backend.to_host(trainer.theta[:1]).dtype
    return convert(dataset.x, dtype, f"{dataset.name} has a feature")


def location(trainer: bp.Trainer) -> JSON:
    """The array library and the device that a trainer computes on."""
    return {"backend": trainer.backend.name, "device": str(trainer.backend.device(trainer.theta))}


def evaluate_rows(trainer: bp.Trainer, x: Array, y: Array) -> JSON:
    """Loss in the target's own unit, accuracy (None for numbers), and for numbers the share of variance explained."""
    found = trainer.evaluate(x, y, batch_size=ROWS)
    result: JSON = {"loss": found["loss"], "accuracy": found.get("accuracy")}
    if isinstance(trainer.loss, bp.MeanSquaredError):
        with np.errstate(over="ignore"):
            variance = float(y.var(axis=0, dtype=np.float64).mean())
        result["r2"] = 1.0 - found["loss"] / variance if 0 < variance < np.inf else None
    return result


def scores(result: JSON) -> str:
    """The figures of an evaluation in words."""
    accuracy = "" if result["accuracy"] is None else f"accuracy {result['accuracy']:.2%}, "
    r2 = "" if result.get("r2") is None else f", R2 {result['r2']:.3f}"
    return f"{accuracy}loss {result['loss']:.4g}{r2}"


def answers(output: Array, trainer: bp.Trainer) -> list[Any]:
    """Of every row of outputs its class, by name where the model knows names, or its number or numbers."""
    loss, single = trainer.loss, output.shape[1:] == (1,)
    if loss.labels:
        which = output.argmax(axis=-1)
    elif loss.boundary is not None and single:
        which = output[:, 0] > loss.boundary
    else:
        return list((output[:, 0] if single else output).tolist())
    numbers = which.astype(np.int64).tolist()
    return numbers if trainer.classes is None else [trainer.classes[i] for i in numbers]


def write(path: Path, found: list[Any], name: str) -> None:
    """Predictions as a .npy array, or a .csv file with a header; complete, or not there at all."""
    if path.suffix.lower() == ".npy":
        longest = max((len(answer) for answer in found if isinstance(answer, str)), default=0)
        array = np.asarray(found if longest * len(found) < 1 << 28 else None)  # NumPy pads text to the longest
        if array.dtype.kind not in "biufU":
            raise OptionError(f"--output is {path}, but a .npy file can't hold these predictions: take a .csv file")
        with write_atomically(path) as file:
            np.save(file, array, allow_pickle=False)
        return
    wide = isinstance(found[0], list)
    with write_atomically(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f"{name}_{i}" for i in range(len(found[0]))] if wide else [name])
        writer.writerows(found if wide else ([answer] for answer in found))
