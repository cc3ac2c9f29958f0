"""A trained model as a .safetensors file: named arrays, and a JSON description; nothing in it can run code.

Tensors: `parameters.<path>`, `buffers.<path>`, and the optimizer's vectors `optimizer.<i>`.  Metadata: the key `bpnet`
holds the description of network, loss and optimizer, the history, and whatever the user added.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpnet import backends
from bpnet.backends import Array
from bpnet.callbacks import History
from bpnet.errors import ArgumentError, BpnetError, FileFormatError, kind_of
from bpnet.layout import Layout, Slot, layout_of
from bpnet.optimizers import Adam
from bpnet.options import whole
from bpnet.registry import describe, restore
from bpnet.trainer import Trainer

if TYPE_CHECKING:
    import numpy

FORMAT = 2


def save(trainer: Trainer, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write `trainer` to `path`; the file is complete or not there at all.

    Raises NotBuiltError before the first fit, ArgumentError where `metadata` is not JSON, and OSError.
    """
    import numpy
    from safetensors.numpy import save as to_bytes

    backend, layout = trainer.backend, trainer.layout
    theta, buffers = backend.to_host(trainer.theta), backend.to_host(trainer.buffers)
    tensors = {}
    for prefix, slots, vector in (("parameters", layout.parameters, theta), ("buffers", layout.buffers, buffers)):
        for slot in slots:
            part = vector[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            tensors[f"{prefix}.{slot.name}"] = numpy.array(part)
    for i, vector in enumerate(trainer.state):
        tensors[f"optimizer.{i}"] = numpy.array(backend.to_host(vector))
    description = {
        "format": FORMAT,
        "network": describe(trainer.network),
        "loss": describe(trainer.loss),
        "optimizer": describe(trainer.optimizer),
        "in_shape": list(layout.in_shape),
        "seed": trainer.seed,
        "clip_norm": trainer.clip_norm,
        "precision": trainer.precision,
        "step_count": trainer.step_count,
        "history": trainer.history.epochs,
        "classes": _classes(trainer.classes, layout),
        "metadata": _mapping(metadata),
    }
    path = _path(path).resolve()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no ordinary file, so it is left alone")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    data = to_bytes(tensors, metadata={"bpnet": json.dumps(_plain("the model", description))})
    part_file = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part_file.write_bytes(data)
        os.replace(part_file, path)
    finally:
        part_file.unlink(missing_ok=True)


def _path(path: Any) -> Path:
    if not isinstance(path, str | Path):
        raise ArgumentError(f"path is {kind_of(path)}; expected the name of a file")
    return Path(path)


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
        raise ArgumentError(f"classes is {kind_of(classes)}; expected {expected} different names, text or numbers")
    return names


def _mapping(metadata: Any) -> Any:
    if not isinstance(metadata, Mapping):
        raise ArgumentError(f"metadata is {kind_of(metadata)}; expected a dict")
    return _plain("metadata", metadata)


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


def load(path: str | Path, like: Array | None = None, *, device: str | None = None) -> Trainer:
    """The trainer that `Trainer.save` wrote, ready to predict, evaluate or train on.

    Its parameters lie where `like` lies, in its library, or on the `device` that the trainer is to have ("cupy",
    "cupy:1": see `Trainer`); without these they are NumPy arrays.  Numbers keep the type they were saved in.  Products
    have the precision that they were trained with where the library has it, else float32.  A layer of the user's own
    must have been defined (imported) before.

    Raises FileNotFoundError, or FileFormatError where the file is no bpnet model or is damaged.
    """
    if like is not None and device is not None:
        raise ArgumentError("both like and device say where the parameters are to lie: pass one of them")
    backend, place = backends.device_named(backends.check_device(device or "numpy"))
    if like is not None:
        backend = backends.of(like, "like")
        place = backend.device(like)
    path = _path(path)
    description, tensors = _read(path)
    try:
        trainer = _trainer(description)
        layout = layout_of(trainer.network, tuple(whole("in_shape", n, 1) for n in description["in_shape"]))
        trainer.loss.target_shape(layout.out_shape)
        trainer.classes = _classes(description.get("classes"), layout)
        state = [f"optimizer.{i}" for i in range(sum(name.startswith("optimizer.") for name in tensors))]
        theta, buffers, *vectors = _vectors(tensors, layout, state)
        dtype = getattr(backend.xp, str(theta.dtype))
        if description["format"] == 1 and isinstance(trainer.optimizer, Adam):  # which kept means, not sums
            betas = trainer.optimizer.beta1, trainer.optimizer.beta2
            vectors = [mean / (1.0 - beta) for mean, beta in zip(vectors, betas, strict=True)]
        own, kept, *moved = (backend.from_host(vector, dtype, place) for vector in (theta, buffers, *vectors))
        if len(trainer.optimizer.init(backend, own)) != len(moved):
            raise FileFormatError(f"the file has {len(moved)} optimizer vectors, which do not fit {trainer.optimizer}")
        if trainer.precision != "float32" and trainer.precision not in backend.precisions(backend.device(own)):
            trainer.precision = "float32"
        trainer._adopt(backend, layout, (own, kept, tuple(moved)))
        trainer.device = device
        return trainer
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except (BpnetError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise FileFormatError(f"{path} is a damaged bpnet model: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], "dict[str, numpy.ndarray[Any, Any]]"]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is not a .safetensors file that can be read: {error}") from error
    try:
        description = json.loads(metadata["bpnet"])
        version = description["format"]
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is a .safetensors file, but not a bpnet model") from error
    if type(version) is not int or version < 1:
        raise FileFormatError(f"{path} has the format {version!r}; expected {FORMAT}")
    if version > FORMAT:
        raise FileFormatError(f"{path} was written by a newer bpnet (format {version}, this reads {FORMAT})")
    return description, tensors


def _trainer(description: dict[str, Any]) -> Trainer:
    network, loss, optimizer = (restore(description[name]) for name in ("network", "loss", "optimizer"))
    options = {name: description[name] for name in ("seed", "clip_norm")}
    trainer = Trainer(network, loss, optimizer, precision=description.get("precision", "float32"), **options)
    trainer.step_count = whole("step_count", description["step_count"], 0)
    if trainer.step_count >= 2**31:
        raise FileFormatError(f"the step count is {trainer.step_count}")
    epochs, metadata = description["history"], description["metadata"]
    if not isinstance(metadata, dict):
        raise FileFormatError(f"the metadata are {kind_of(metadata)}; expected a dict")
    if not isinstance(epochs, list) or not all(map(_is_record, epochs)):
        raise FileFormatError("the history is no list of records")
    trainer.history, trainer.metadata = History(epochs), metadata
    return trainer


def _is_record(record: Any) -> bool:
    """Whether it has the numbers that every epoch's record has, and for its losses and accuracies numbers too."""
    if not isinstance(record, dict):
        return False
    needed = {"epoch", "step", "loss", "lr", "seconds"}
    numbers = {name for name in record if name in needed or name in ("val_loss", "val_accuracy")}
    return needed <= numbers and all(_is_number(record[name]) for name in numbers)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _vectors(
    tensors: "dict[str, numpy.ndarray[Any, Any]]", layout: Layout, state: list[str]
) -> "list[numpy.ndarray[Any, Any]]":
    """Parameters, buffers and the optimizer's vectors, of one type; raises where one is missing or does not fit."""
    import numpy

    shapes = {f"parameters.{slot.name}": slot.shape for slot in layout.parameters}
    shapes |= {f"buffers.{slot.name}": slot.shape for slot in layout.buffers}
    shapes |= dict.fromkeys(state, (layout.size,))
    missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing:
        raise FileFormatError(f"the array {missing[0]} is missing")
    if extra:
        raise FileFormatError(f"there is an array {extra[0]}, which the network has not")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise FileFormatError(f"the array {name} has the shape {tensor.shape}; expected {shape}")
        if tensor.dtype not in (numpy.float32, numpy.float64):
            raise FileFormatError(f"the array {name} holds {tensor.dtype} values; expected float32 or float64")
    dtype = tensors[next(iter(shapes))].dtype
    if any(tensor.dtype != dtype for tensor in tensors.values()):
        raise FileFormatError("some arrays are float32 and others float64")

    def vector(prefix: str, slots: tuple[Slot, ...]) -> "numpy.ndarray[Any, Any]":
        parts = [tensors[f"{prefix}.{slot.name}"].reshape(-1) for slot in slots]
        return numpy.concatenate(parts) if parts else numpy.empty(0, dtype)

    return [vector("parameters", layout.parameters), vector("buffers", layout.buffers), *(tensors[n] for n in state)]
