"""A trained model as a .safetensors file: named arrays, and a JSON description; nothing in it can run code.

Arrays: `parameters.<path>`, `buffers.<path>`, the optimizer's `optimizer.<i>`, `history.<quantity>` with a number an
epoch, and `training.<name>` of a training that goes on.  The description says what network, loss and optimizer these
are of, and has whatever the user added: see `bpnet.files.tensors`.
"""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bpnet.disk import checked_path, write_atomically
from bpnet.errors import (
    ArgumentError,
    BpnetError,
    DivergedError,
    DTypeError,
    FileFormatError,
    FolderError,
    NoSuchPathError,
    OptionError,
    OutOfMemoryError,
    PathError,
    kind_of,
    path_error,
    shown,
)
from bpnet.files.history import columns, restored
from bpnet.files.shapes import state_shapes
from bpnet.files.tensors import read, write
from bpnet.layer import InShape
from bpnet.layout import Layout, layout_of
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.options import not_negative, whole
from bpnet.registry import describe, restore

if TYPE_CHECKING:
    import numpy

    from bpnet.files.tensors import Tensors

OPTIONS = ("seed", "clip_norm", "precision", "penalties")
"""Arguments of a trainer that its file keeps."""
TRAINING, TABLE = "training.", "table."
"""How the names of the arrays of a training, and of a table's, begin."""
ARRAY = "array of the file"
"""The key of what stands for an array of a table's."""


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
    history: Any
    """A record of every epoch, a dict each; from a file, `Records`, which makes them when asked."""
    classes: Sequence[Any] | None
    metadata: Mapping[str, Any]
    lr_scale: float = 1.0
    table: Mapping[str, Any] | None = None
    """Of a model that takes tables: what their columns are, and its target; JSON, but for arrays of NumPy among it."""
    training: Mapping[str, Any] | None = None
    """Of a training that goes on from here: its place, options and callbacks' state, in what JSON can hold."""
    arrays: "Mapping[str, numpy.ndarray[Any, Any]]" = field(default_factory=dict)
    """Of that training too: arrays of numbers or truth values of NumPy, by name."""


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, as `Trainer.save` says; the file is complete or not there at all."""
    path, layout = checked_path(path), checkpoint.layout
    theta, buffers, *state = checkpoint.vectors
    check_numbers(layout, checkpoint.optimizer, theta, buffers, *state)
    history, tensors = columns(checkpoint.history)
    tensors |= {f"optimizer.{i}": array for i, array in enumerate(state)}
    for prefix, slots, vector in (("parameters", layout.parameters, theta), ("buffers", layout.buffers, buffers)):
        for slot in slots:
            tensors[f"{prefix}.{slot.name}"] = vector[slot.offset : slot.offset + slot.size].reshape(slot.shape)
    tensors |= {f"{TRAINING}{name}": array for name, array in checkpoint.arrays.items()}
    table = _without_arrays(checkpoint.table, tensors)
    description = {
        "version": importlib.import_module("bpnet").__version__,
        "network": describe(layout.network),
        "loss": describe(checkpoint.loss),
        "optimizer": describe(checkpoint.optimizer),
        "in_shape": plain_shape(layout.in_shape),
        **{name: describe(value) for name, value in checkpoint.options.items()},
        "step_count": checkpoint.step_count,
        **({} if checkpoint.lr_scale == 1.0 else {"lr_scale": checkpoint.lr_scale}),
        "history": history,
        "classes": _classes(checkpoint.classes, layout),
        **({} if table is None else {"table": table}),
        **({} if checkpoint.training is None else {"training": checkpoint.training}),
    }
    if not isinstance(checkpoint.metadata, Mapping):
        raise ArgumentError(f"metadata is {kind_of(checkpoint.metadata)}; expected a dict")
    try:
        description = _plain("the model", description) | {"metadata": _plain("metadata", checkpoint.metadata)}
        with write_atomically(path) as file:
            write(file, tensors, description)
    except RecursionError:
        raise ArgumentError("metadata contains itself, or is nested too deeply for a file") from None
    except BpnetError:
        raise
    except ValueError as error:  # such as a number of more digits than Python writes
        raise ArgumentError(f"metadata is not what JSON can hold: {error}") from None


def check_numbers(layout: Layout, optimizer: Optimizer, theta: Any, buffers: Any, *state: Any) -> None:
    """Raise DivergedError where a parameter, a buffer or the optimizer's state has NaN, and say which."""
    named = [(f"the parameter {slot.name}", theta[slot.part]) for slot in layout.parameters]
    named += [(f"the buffer {slot.name}", buffers[slot.part]) for slot in layout.buffers]
    named += [(f"array {i} of the state of {optimizer}", array) for i, array in enumerate(state)]
    for what, array in named:
        if array.size and not array.min() == array.min():
            raise DivergedError(
                f"{what} has NaN, which no file keeps: a saved model is one that can be used.  Go back to a state "
                "from before, with trainer.restore(snapshot) or from a file, and train on with a smaller learning rate"
            )


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


def _without_arrays(value: Any, tensors: "Tensors") -> Any:
    """`value` with the names of arrays in the place of those it has in dicts, which are put into `tensors`."""
    if isinstance(value, Mapping):
        if ARRAY in value:
            raise ArgumentError(f"the settings have the key {ARRAY!r}, which files use themselves: choose another")
        return {key: _without_arrays(item, tensors) for key, item in value.items()}
    if type(value).__name__ != "ndarray":
        return value
    name = f"{TABLE}{sum(name.startswith(TABLE) for name in tensors)}"
    tensors[name] = value
    return {ARRAY: name}


def _with_arrays(value: Any, tensors: "Tensors") -> Any:
    """The same with its arrays again, which are taken from `tensors`."""
    if not isinstance(value, dict):
        return value
    if ARRAY in value:
        return tensors.pop(value[ARRAY])
    return {key: _with_arrays(item, tensors) for key, item in value.items()}


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


def read_checkpoint(path: str | os.PathLike[str], dtype: Any = None) -> Checkpoint:
    """The checkpoint that `write_checkpoint` wrote, in another type where `dtype` is one; raises what `load` says."""
    path, wanted = checked_path(path), None if dtype is None else _dtype(dtype)
    with damaged(path):
        description, tensors = _read(path)
        network, loss, optimizer = (restore(description[name]) for name in ("network", "loss", "optimizer"))
        try:
            layout = layout_of(network, description["in_shape"])
        except OutOfMemoryError as error:  # no memory has been asked for yet
            raise FileFormatError(f"it describes more than a file holds: {error}") from None
        loss.target_shape(layout.out_shape)
        history = restored(description["history"], tensors)
        metadata = description["metadata"]
        if not isinstance(metadata, dict):
            raise FileFormatError(f"the metadata are {kind_of(metadata)}; expected a dict")
        arrays = {name.removeprefix(TRAINING): tensors.pop(name) for name in [*tensors] if name.startswith(TRAINING)}
        table = _with_arrays(description.get("table"), tensors)
        found = Checkpoint(
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
            table,
            description.get("training"),
            arrays,
        )
    if wanted is not None:
        try:
            found.vectors[:] = [_converted(found.vectors.pop(0), wanted) for _ in range(len(found.vectors))]
        except OptionError as error:
            raise OptionError(f"{path} can't be loaded as {wanted}: {error}") from None
    return found


@contextmanager
def damaged(path: str | os.PathLike[str]) -> Iterator[None]:
    """While a trainer is made from what a file holds: errors say which file, and that it is at fault."""
    name = os.fspath(path)
    try:
        yield
    except FileFormatError as error:
        raise type(error)(f"{name}: {error}") from None
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
        return read(path)
    except PathError as error:
        kind = "a folder" if isinstance(error, FolderError) else "no ordinary file"
        raise FileFormatError(f"this is {kind}") from None
    except FileNotFoundError as error:
        raise NoSuchPathError(f"{path}: no such file") from error
    except OSError as error:
        raise path_error(f"{path} can't be read", error) from error


def _vectors(tensors: "Tensors", layout: Layout, optimizer: Optimizer) -> "list[numpy.ndarray[Any, Any]]":
    """Parameters, buffers and the optimizer's arrays, of one type; raises where one is missing or does not fit.

    Nothing is made of them before all have been found, so that a description of more than there is costs nothing.
    """
    import numpy

    dtype = next((tensor.dtype for name, tensor in tensors.items() if name.startswith("parameters.")), None)
    if dtype not in (numpy.float32, numpy.float64):
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

    def joined(parts: list[Any]) -> "numpy.ndarray[Any, Any]":
        return numpy.concatenate(parts) if parts else numpy.empty(0, dtype)

    theta = [taken(f"parameters.{slot.name}", slot.shape).reshape(-1) for slot in layout.parameters]
    buffers = [taken(f"buffers.{slot.name}", slot.shape).reshape(-1) for slot in layout.buffers]
    shapes = state_shapes(optimizer, layout, dtype)
    state = [taken(f"optimizer.{i}", shape) for i, shape in enumerate(shapes)]
    if tensors:
        raise FileFormatError(f"there is an array {min(tensors)!r}, which the model does not have")
    vectors = [joined(theta), joined(buffers), *state]
    try:
        check_numbers(layout, optimizer, *vectors)
    except DivergedError as error:
        raise FileFormatError(f"{error}".partition(", which no file")[0]) from None
    return vectors


def _dtype(dtype: Any) -> str:
    """The name of a floating type, given as such or as any library's type; raises OptionError."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name is None:
        with suppress(RecursionError):  # of a list in a list in a list ...
            name = str(dtype).rpartition(".")[2]
    if name not in ("float32", "float64"):
        raise OptionError(f"dtype is {shown(dtype)}; expected 'float32' or 'float64'")
    return str(name)


def _converted(vector: Any, dtype: str) -> Any:
    """A NumPy array in another type; raises OptionError where a number does not fit it."""
    import numpy

    with numpy.errstate(over="ignore"):
        found = vector.astype(dtype, copy=False)
    lost = numpy.isinf(found) & ~numpy.isinf(vector)
    if lost.any():
        raise OptionError(f"it holds {vector[lost][0]:g}, which is too large for {dtype}")
    return found
