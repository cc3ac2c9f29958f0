"""A trained model as a .safetensors file: named arrays, and a JSON description; nothing in it can run code.

Tensors: `parameters.<path>`, `buffers.<path>`, and the optimizer's arrays `optimizer.<i>`.  Metadata: the key `bpnet`
holds the description of network, loss and optimizer, the history, and whatever the user added; `sha256` the hash of the
whole file.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bpnet.backends import get
from bpnet.disk import checked_path, write_atomically
from bpnet.errors import (
    ArgumentError,
    BpnetError,
    DTypeError,
    FileFormatError,
    FolderError,
    NoSuchPathError,
    OutOfMemoryError,
    PathError,
    kind_of,
    path_error,
    shown,
)
from bpnet.files.tensors import read, write
from bpnet.layer import InShape
from bpnet.layout import Layout, Slot, layout_of
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.options import not_negative, whole
from bpnet.registry import describe, restore

if TYPE_CHECKING:
    import numpy

    from bpnet.files.tensors import Tensors

FORMAT = 1
OPTIONS = ("seed", "clip_norm", "precision", "penalties")
"""Arguments of a trainer that its file keeps."""
TRAINING = "training."
"""How the names of the arrays of a training begin."""
RECORDED = {"epoch", "step", "loss", "lr", "seconds"}
"""The numbers in every epoch's record."""


@dataclass
class Checkpoint:
    """A trainer as plain data on the host: what a file holds, and what a trainer is made from again."""

    layout: Layout
    """Of the network, for the shape of its input."""
    loss: Loss
    optimizer: Optimizer
    vectors: list[Any]
    """Parameters, buffers and the arrays of the optimizer's state, of NumPy."""
    step_count: int
    options: Mapping[str, Any]
    """Further arguments of the trainer, by their names."""
    history: list[dict[str, Any]]
    classes: Sequence[Any] | None
    metadata: Mapping[str, Any]
    lr_scale: float = 1.0
    table: Mapping[str, Any] | None = None
    """Of a model that takes tables: what their columns are, and its target."""
    training: Mapping[str, Any] | None = None
    """Of a training that goes on from here: its place, options and callbacks' state, in what JSON can hold."""
    arrays: "Mapping[str, numpy.ndarray[Any, Any]]" = field(default_factory=dict)
    """Of that training too: arrays of numbers or truth values of NumPy, by name."""


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, as `Trainer.save` says; the file is complete or not there at all."""
    path, layout = checked_path(path), checkpoint.layout
    theta, buffers, *state = checkpoint.vectors
    tensors = {f"optimizer.{i}": array for i, array in enumerate(state)}
    for prefix, slots, vector in (("parameters", layout.parameters, theta), ("buffers", layout.buffers, buffers)):
        for slot in slots:
            tensors[f"{prefix}.{slot.name}"] = vector[slot.offset : slot.offset + slot.size].reshape(slot.shape)
    tensors |= {f"{TRAINING}{name}": array for name, array in checkpoint.arrays.items()}
    description = {
        "format": FORMAT,
        "network": describe(layout.network),
        "loss": describe(checkpoint.loss),
        "optimizer": describe(checkpoint.optimizer),
        "in_shape": plain_shape(layout.in_shape),
        **{name: describe(value) for name, value in checkpoint.options.items()},
        "step_count": checkpoint.step_count,
        **({} if checkpoint.lr_scale == 1.0 else {"lr_scale": checkpoint.lr_scale}),
        "history": checkpoint.history,
        "classes": _classes(checkpoint.classes, layout),
        **({} if checkpoint.table is None else {"table": checkpoint.table}),
        **({} if checkpoint.training is None else {"training": checkpoint.training}),
    }
    if not isinstance(checkpoint.metadata, Mapping):
        raise ArgumentError(f"metadata is {kind_of(checkpoint.metadata)}; expected a dict")
    try:
        description = _plain("the model", description) | {"metadata": _plain("metadata", checkpoint.metadata)}
        text = json.dumps(description)
    except RecursionError:
        raise ArgumentError("metadata contains itself, or is nested too deeply for a file") from None
    except ValueError as error:  # such as a number of more digits than Python writes
        raise ArgumentError(f"metadata is not what JSON can hold: {error}") from None
    with write_atomically(path) as file:
        write(file, tensors, {"bpnet": text})


def plain_shape(in_shape: InShape) -> Any:
    """As JSON has it: a list of numbers, or for several arrays a list by the name of each."""
    several = in_shape and isinstance(in_shape[0], tuple)
    return {name: list(shape) for name, shape in in_shape} if several else list(in_shape)


def _classes(classes: Any, layout: Layout) -> list[Any] | None:
    """The names of the classes as a list that JSON can hold; raises ArgumentError where they don't fit the outputs."""
    if classes is None:
        return None
    units = layout.out_shape[-1]
    expected = 2 if units == 1 else units
    names = classes.tolist() if hasattr(classes, "tolist") else classes
    names = list(names) if isinstance(names, list | tuple) else [None]
    plain = all(isinstance(name, str | bool | int | float) for name in names)
    if not plain or len(set(names)) != len(names) or len(names) != expected:
        raise ArgumentError(f"classes is {shown(classes)}; expected {expected} different names, text or numbers")
    return names


def _plain(what: str, value: Any) -> Any:
    """`value` where JSON can hold it and give it back; raises ArgumentError."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentError(f"{what} has the key {key!r}; expected text, which is all that JSON can hold there")
        return {key: _plain(f"{what}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{what}[{i}]", item) for i, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ArgumentError(f"{what} is {kind_of(value)}; expected what JSON can hold: text, numbers, lists, dicts")


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint that `write_checkpoint` wrote; raises what `load` says."""
    path = checked_path(path)
    with damaged(path):
        description, tensors = _read(path)
        network, loss, optimizer = (restore(description[name]) for name in ("network", "loss", "optimizer"))
        layout = layout_of(network, description["in_shape"])
        loss.target_shape(layout.out_shape)
        history, metadata = description["history"], description["metadata"]
        if not isinstance(metadata, dict):
            raise FileFormatError(f"the metadata are {kind_of(metadata)}; expected a dict")
        if not isinstance(history, list) or not all(map(_is_record, history)):
            raise FileFormatError("the history is no list of records")
        arrays = {name.removeprefix(TRAINING): tensors.pop(name) for name in [*tensors] if name.startswith(TRAINING)}
        return Checkpoint(
            layout,
            loss,
            optimizer,
            _vectors(tensors, layout, optimizer),
            whole("step_count", description["step_count"], 0, 2**31 - 1),
            {
                name: restore(description.get(name, ())) if name == "penalties" else description[name]
                for name in OPTIONS
            },
            history,
            _classes(description["classes"], layout),
            metadata,
            not_negative("lr_scale", description.get("lr_scale", 1.0)),
            description.get("table"),
            description.get("training"),
            arrays,
        )


@contextmanager
def damaged(path: str | os.PathLike[str]) -> Iterator[None]:
    """While a trainer is made from what a file holds: errors say which file, and that it is at fault."""
    name = os.fspath(path)
    try:
        yield
    except FileFormatError as error:
        raise FileFormatError(f"{name}: {error}") from None
    except DTypeError as error:
        raise DTypeError(f"{name} can't be loaded there: {error}") from None
    except PathError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{name}: the model does not fit in memory") from error
    except (BpnetError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise FileFormatError(f"{name} is a damaged bpnet model: {error}") from error


def _read(path: str) -> tuple[dict[str, Any], "Tensors"]:
    try:
        tensors, metadata, sound = read(path)
    except FileFormatError as error:
        raise FileFormatError(f"this is not a .safetensors file that can be read: {error}") from None
    except PathError as error:
        kind = "a folder" if isinstance(error, FolderError) else "no ordinary file"
        raise FileFormatError(f"this is {kind}") from None
    except FileNotFoundError as error:
        raise NoSuchPathError(f"{path}: no such file") from error
    except OSError as error:
        raise path_error(f"{path} can't be read", error) from error
    if sound is False:
        raise FileFormatError("the file is damaged: its SHA-256 hash is of another content")
    try:
        description = json.loads(metadata["bpnet"])
        version = description["format"]
    except (LookupError, TypeError, ValueError, RecursionError):
        raise FileFormatError("this is a .safetensors file, but not a bpnet model") from None
    if type(version) is not int or version < 1:
        raise FileFormatError(f"the file has the format {version!r}; expected {FORMAT}")
    if version > FORMAT:
        raise FileFormatError(f"the file was written by a newer bpnet (format {version}, this reads {FORMAT})")
    if not sound:
        raise FileFormatError("the file is damaged: it has no SHA-256 hash")
    return description, tensors


def _is_record(record: Any) -> bool:
    """Whether it has the numbers that every epoch's record has, and for its losses and accuracies numbers too."""
    if not isinstance(record, dict):
        return False
    numbers = [record.get(name) for name in RECORDED | (record.keys() & {"val_loss", "val_accuracy"})]
    return all(type(n) is float or (type(n) is int and abs(n) < 2**63) for n in numbers)


def _vectors(tensors: "Tensors", layout: Layout, optimizer: Optimizer) -> "list[numpy.ndarray[Any, Any]]":
    """Parameters, buffers and the optimizer's arrays, of one type; raises where one is missing or does not fit."""
    import numpy

    dtype = next((tensor.dtype for name, tensor in tensors.items() if name.startswith("parameters.")), None)
    if dtype is not None and dtype.kind != "f":
        raise FileFormatError(f"the parameters are {dtype} values; expected float32 or float64")

    def taken(name: str, shape: tuple[int, ...]) -> "numpy.ndarray[Any, Any]":
        if name not in tensors:
            raise FileFormatError(f"the array {name!r} is missing")
        tensor = tensors.pop(name)
        if tensor.shape != shape:
            raise FileFormatError(f"the array {name!r} has the shape {tensor.shape}; expected {shape}")
        if tensor.dtype != dtype:
            raise FileFormatError(f"the array {name!r} holds {tensor.dtype} values, but the first parameter {dtype}")
        return tensor

    def vector(prefix: str, slots: tuple[Slot, ...]) -> "numpy.ndarray[Any, Any]":
        parts = [taken(f"{prefix}.{slot.name}", slot.shape).reshape(-1) for slot in slots]
        return numpy.concatenate(parts) if parts else numpy.empty(0, dtype)

    theta, buffers = vector("parameters", layout.parameters), vector("buffers", layout.buffers)
    shapes = [tuple(array.shape) for array in optimizer.init(get("numpy"), layout, theta)]
    state = [taken(f"optimizer.{i}", shape) for i, shape in enumerate(shapes)]
    if tensors:
        raise FileFormatError(f"there is an array {min(tensors)!r}, which the model does not have")
    return [theta, buffers, *state]
