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
from bpnet.layout import layout_of
from bpnet.registry import describe, restore
from bpnet.trainer import Trainer

if TYPE_CHECKING:
    import numpy

FORMAT = 1


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
        "step_count": trainer.step_count,
        "history": trainer.history.epochs,
        "metadata": _mapping(metadata),
    }
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    data = to_bytes(tensors, metadata={"bpnet": json.dumps(description)})
    part_file = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part_file.write_bytes(data)
        os.replace(part_file, path)
    finally:
        part_file.unlink(missing_ok=True)


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


def load(path: str | Path, like: Array | None = None) -> Trainer:
    """The trainer that `Trainer.save` wrote, ready to predict, evaluate or train on.

    Its parameters lie where `like` lies, in its library; without it they are NumPy arrays.  Numbers keep the type they
    were saved in.  A layer of the user's own must have been defined (imported) before.

    Raises FileNotFoundError, or FileFormatError where the file is no bpnet model or is damaged.
    """
    backend = backends.get("numpy") if like is None else backends.of(like, "like")
    device = None if like is None else backend.device(like)
    if not isinstance(path, str | Path):
        raise ArgumentError(f"path is {kind_of(path)}; expected the name of a file")
    path = Path(path)
    description, tensors = _read(path)
    try:
        trainer = _trainer(description)
        layout = layout_of(trainer.network, tuple(int(n) for n in description["in_shape"]))
        theta = _vector(tensors, "parameters", layout.parameters)
        buffers = _vector(tensors, "buffers", layout.buffers).astype(theta.dtype)
        state = tuple(tensors[f"optimizer.{i}"] for i in range(sum(name.startswith("optimizer.") for name in tensors)))
        if any(vector.shape != theta.shape for vector in state):
            raise FileFormatError("the optimizer's state does not fit the parameters")
        dtype = getattr(backend.xp, str(theta.dtype))
        own = [backend.from_host(vector, dtype, device) for vector in (theta, buffers, *state)]
        trainer._adopt(backend, layout, (own[0], own[1], tuple(own[2:])))
        if len(trainer.optimizer.init(backend, own[0])) != len(state):
            raise FileFormatError("the optimizer's state does not fit the optimizer")
        return trainer
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except (BpnetError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is a damaged bpnet model: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], "dict[str, numpy.ndarray[Any, Any]]"]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a .safetensors file: {error}") from error
    try:
        description = json.loads(metadata["bpnet"])
        if description["format"] > FORMAT:
            raise FileFormatError(
                f"{path} was written by a newer bpnet (format {description['format']}, this reads {FORMAT})"
            )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is a .safetensors file, but not a bpnet model") from error
    return description, tensors


def _trainer(description: dict[str, Any]) -> Trainer:
    network, loss, optimizer = (restore(description[name]) for name in ("network", "loss", "optimizer"))
    trainer = Trainer(network, loss, optimizer, seed=description["seed"], clip_norm=description["clip_norm"])
    trainer.step_count = int(description["step_count"])
    trainer.history = History(list(description["history"]))
    trainer.metadata = dict(description["metadata"])
    return trainer


def _vector(tensors: "dict[str, numpy.ndarray[Any, Any]]", prefix: str, slots: Any) -> "numpy.ndarray[Any, Any]":
    import numpy

    parts = []
    for slot in slots:
        name = f"{prefix}.{slot.name}"
        if name not in tensors:
            raise FileFormatError(f"the array {name} is missing")
        if tensors[name].shape != slot.shape:
            raise FileFormatError(f"the array {name} has the shape {tensors[name].shape}; expected {slot.shape}")
        if tensors[name].dtype not in (numpy.float32, numpy.float64):
            raise FileFormatError(f"the array {name} holds {tensors[name].dtype} values; expected float32 or float64")
        parts.append(tensors[name].reshape(-1))
    return numpy.concatenate(parts) if parts else numpy.empty(0)
