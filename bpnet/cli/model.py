"""Models that `bpnet train` has written: what they were trained on, and how well they predict."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import bpnet as bp
from bpnet.backends import Array
from bpnet.cli.dataset import Dataset, Provenance
from bpnet.cli.preprocessing import features_of
from bpnet.cli.terminal import JSON
from bpnet.errors import BpnetError, FileFormatError, ShapeError

KEY = "bpnet train"
"""The key of what the command line knows in the metadata of a model file."""

ROWS = 8192
"""Rows that are evaluated or predicted at a time, so that memory does not grow with the data."""


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
        trainer = bp.load(model, device=backend)
    with expect_sound(model):
        return trainer, Provenance(**trainer.metadata.get(KEY, {}).get("provenance", {}))


def dtype_of(trainer: bp.Trainer) -> Any:
    """The type of the trainer's parameters, as NumPy's."""
    return trainer.backend.to_host(trainer.theta[:1]).dtype


def features_for(trainer: bp.Trainer, dataset: Dataset) -> Array:
    """The features as a trained network takes them."""
    shape, expected = dataset.x.shape[1:], trainer.layout.in_shape
    if shape != expected:
        raise ShapeError(f"{dataset.name} has rows of the shape {shape}; the model was trained on {expected}")
    return features_of(dataset, dtype_of(trainer))


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
