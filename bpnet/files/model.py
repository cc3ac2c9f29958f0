"""A trained model as a .safetensors file: named arrays, and a JSON description; nothing in it can run code.

Tensors: `parameters.<path>`, `buffers.<path>`, and the optimizer's arrays `optimizer.<i>`.  Metadata: the key `bpnet`
holds the description of network, loss and optimizer, the history, and whatever the user added; `sha256` the hash of the
whole file.
"""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bpnet import backends
from bpnet.callbacks import History
from bpnet.disk import write_atomically
from bpnet.errors import (
    ArgumentError,
    BpnetError,
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
from bpnet.files.tensors import read, write
from bpnet.layout import Layout, Slot, layout_of
from bpnet.options import whole
from bpnet.registry import describe, restore
from bpnet.trainer import Trainer
from bpnet.typing import AnyArray

if TYPE_CHECKING:
    import numpy

    from bpnet.files.tensors import Tensors

FORMAT = 3


def save(trainer: Trainer, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write `trainer` to `path`; the file is complete or not there at all.

    Raises NotBuiltError before the first fit, ArgumentError where `metadata` is not JSON, and PathError, which is an
    OSError, where the file can't be written.
    """
    import numpy

    path = _path(path)
    backend, layout = trainer.backend, trainer.layout
    # Copies, since a training in another thread may go on meanwhile.
    theta, buffers, *state = (
        numpy.array(backend.to_host(vector)) for vector in (trainer.theta, trainer.buffers, *trainer.state)
    )
    tensors = {f"optimizer.{i}": vector for i, vector in enumerate(state)}
    for prefix, slots, vector in (("parameters", layout.parameters, theta), ("buffers", layout.buffers, buffers)):
        for slot in slots:
            tensors[f"{prefix}.{slot.name}"] = vector[slot.offset : slot.offset + slot.size].reshape(slot.shape)
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
    try:
        text = json.dumps(_plain("the model", description))
    except (ValueError, RecursionError) as error:  # such as a number of more digits than Python writes
        raise ArgumentError(f"metadata is not what JSON can hold: {error}") from None
    with write_atomically(path) as file:
        write(file, tensors, {"bpnet": text})


def _path(path: Any) -> str:
    try:
        name = os.fspath(path)
        if isinstance(name, str) and name and b"\0" not in os.fsencode(name):
            return name
        given = kind_of(path) if not isinstance(name, str) else repr(path)
    except TypeError:
        given = kind_of(path)
    except UnicodeEncodeError:
        given = repr(path)
    raise ArgumentError(f"path is {given}; expected the name of a file")


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


def _mapping(metadata: Any) -> Any:
    if not isinstance(metadata, Mapping):
        raise ArgumentError(f"metadata is {kind_of(metadata)}; expected a dict")
    try:
        return _plain("metadata", metadata)
    except RecursionError:
        raise ArgumentError("metadata contains itself, or is nested too deeply for a file") from None


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


def load(path: str | os.PathLike[str], like: AnyArray | None = None, *, device: str | None = None) -> Trainer:
    """The trainer that `Trainer.save` wrote, ready to predict, evaluate or train on.

    Its parameters lie where `like` lies, in its library, or on the `device` that the trainer is to have ("cupy",
    "cupy:1": see `Trainer`); without these they are NumPy arrays.  Numbers keep the type they were saved in.  Products
    have the precision that they were trained with where the library has it, else float32.  A layer of the user's own
    must have been defined (imported) before.

    Raises FileNotFoundError or another OSError where no file can be read, FileFormatError where it is no bpnet model or
    is damaged: a single changed bit is noticed, DTypeError where the library has no numbers of the saved type, and
    OptionError where an option does not fit that type, as only an older bpnet let it.
    """
    if like is not None and device is not None:
        raise ArgumentError("both like and device say where the parameters are to lie: pass one of them")
    backend, place = backends.device_named("numpy" if device is None else backends.check_device(device))
    if like is not None:
        backend = backends.backend_of(like, "like")
        place = backend.device(like)
    path = _path(path)
    try:
        description, tensors = _read(path)
        trainer = _trainer(description)
        layout = layout_of(trainer.network, tuple(whole("in_shape", n, 1) for n in description["in_shape"]))
        trainer.loss.target_shape(layout.out_shape)
        trainer.classes = _classes(description.get("classes"), layout)
        state = [f"optimizer.{i}" for i in range(sum(name.startswith("optimizer.") for name in tensors))]
        vectors = _vectors(tensors, layout, state)
        dtype = getattr(backend.xp, str(vectors[0].dtype))
        moved = []
        while vectors:  # one after the other, so that few are there twice
            moved.append(backend.from_host(vectors.pop(0), dtype, place))
        theta, buffers, *kept = moved
        expected, found = ([tuple(a.shape) for a in some] for some in (trainer.optimizer.init(backend, theta), kept))
        if found != expected:
            raise FileFormatError(f"it has optimizer state of the shapes {found}; {trainer.optimizer} has {expected}")
        if trainer.precision != "float32" and trainer.precision not in backend.precisions(backend.device(theta)):
            trainer.precision = "float32"
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except DTypeError as error:
        raise DTypeError(f"{path} can't be loaded there: {error}") from None
    except PathError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{path}: the model does not fit in memory") from error
    except (BpnetError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise FileFormatError(f"{path} is a damaged bpnet model: {error}") from error
    try:
        trainer._adopt(backend, layout, (theta, buffers, tuple(kept)))
    except OptionError as error:  # the file is sound
        raise OptionError(f"{path} can't be loaded: {error}") from None
    trainer.device = device
    return trainer


def _read(path: str) -> tuple[dict[str, Any], "Tensors"]:
    try:
        tensors, metadata, sound = read(path)
    except FileFormatError as error:
        raise FileFormatError(f"this is not a .safetensors file that can be read: {error}") from None
    except PathError as error:
        raise FileFormatError(
            f"this is {'a folder' if isinstance(error, FolderError) else 'no ordinary file'}"
        ) from None
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
    if version != FORMAT:
        age = "a newer" if version > FORMAT else "an older"
        raise FileFormatError(f"the file was written by {age} bpnet (format {version}, this reads {FORMAT})")
    if not sound:
        raise FileFormatError("the file is damaged: it has no SHA-256 hash")
    return description, tensors


def _trainer(description: dict[str, Any]) -> Trainer:
    network, loss, optimizer = (restore(description[name]) for name in ("network", "loss", "optimizer"))
    options = {name: description[name] for name in ("seed", "clip_norm", "precision")}
    trainer = Trainer(network, loss, optimizer, **options)
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


def _vectors(tensors: "Tensors", layout: Layout, state: list[str]) -> "list[numpy.ndarray[Any, Any]]":
    """Parameters, buffers and the optimizer's vectors, of one type; raises where one is missing or does not fit."""
    import numpy

    shapes = {f"parameters.{slot.name}": slot.shape for slot in layout.parameters}
    shapes |= {f"buffers.{slot.name}": slot.shape for slot in layout.buffers}
    shapes |= {name: tensors[name].shape for name in state if name in tensors}
    missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing:
        raise FileFormatError(f"the array {missing[0]!r} is missing")
    if extra:
        raise FileFormatError(f"there is an array {extra[0]!r}, which the network does not have")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise FileFormatError(f"the array {name!r} has the shape {tensors[name].shape}; expected {shape}")
    dtype = tensors[next(iter(shapes))].dtype
    if any(tensor.dtype != dtype for tensor in tensors.values()):
        raise FileFormatError("some arrays are float32 and others float64")

    def vector(prefix: str, slots: tuple[Slot, ...]) -> "numpy.ndarray[Any, Any]":
        parts = [tensors.pop(f"{prefix}.{slot.name}").reshape(-1) for slot in slots]
        return numpy.concatenate(parts) if parts else numpy.empty(0, dtype)

    return [
        vector("parameters", layout.parameters),
        vector("buffers", layout.buffers),
        *(tensors.pop(name) for name in state),
    ]
