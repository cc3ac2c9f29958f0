"""Weights from and to Keras, whose layers keep them in the shapes that they have here."""

import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpnet.errors import ArgumentError, FileFormatError, MissingPackageError, ShapeError, kind_of, path_error, plural
from bpnet.export.models import exported
from bpnet.export.units import Entry, Unit, units_of
from bpnet.layout import Layout
from bpnet.weights.matching import set_values, to_host

if TYPE_CHECKING:
    from bpnet.tabular.model import TableModel
    from bpnet.trainer import Trainer


def from_keras(model: "Trainer | TableModel", weights: Any) -> Any:
    """Give a network the weights of a Keras model that computes the same; returns the trainer or table's model.

        net = bp.Sequential(bp.Dense(128, "relu"), bp.BatchNorm(epsilon=1e-3), bp.Dense(10))
        trainer = bp.Trainer(net, loss="cross_entropy").build(x)
        bp.files.from_keras(trainer, keras_model.get_weights())

    `weights` are the arrays in the order of the layers, as `get_weights()` gives them; or the model; or the path of a
    file that its `save` wrote, "model.keras", which needs h5py.  Dense, BatchNormalization with its moving statistics,
    LayerNormalization, GroupNormalization, RMSNormalization, Embedding and PReLU have the values of the layers of these
    names here.  Keras's epsilon is 1e-3 in all normalizations, and here 1e-5: write it down.  Numbers become those of
    the trainer's type, and the optimizer begins anew.

    Raises ShapeError where the numbers of arrays or their shapes differ, and names both sides, DataError where values
    are NaN or too large, PathError or FileFormatError where a file can't be read, and NotBuiltError without
    parameters.  Nothing has changed then.
    """
    own, (labels, arrays) = exported(model), _arrays(weights)
    expected = _expected(own.trainer.layout)
    for (unit, value), label, array in zip(expected, labels, arrays, strict=False):
        if tuple(array.shape) != value.slot.shape:
            name = (*value.keras, value.name)[0]
            shape = tuple(array.shape)
            raise ShapeError(f"{unit}, needs {name} {value.slot.shape}; {label}, taken in order, has the shape {shape}")
    if len(expected) != len(arrays):
        over = expected[len(arrays) :]
        more = f"{over[0][0]}, needs {over[0][1].name} as well" if over else f"no layer has {labels[len(expected)]}"
        raise ShapeError(f"the network has {plural(len(expected), 'array')}, weights has {len(arrays)}: {more}")
    return set_values(own, {value.slot.name: array for (_, value), array in zip(expected, arrays, strict=True)})


def to_keras(model: "Trainer | TableModel") -> list[Any]:
    """The weights of a network for a Keras model that computes the same: NumPy arrays in the order of the layers.

    keras_model.set_weights(bp.files.to_keras(trainer))
    """
    found = exported(model)
    values = found.parameters | found.buffers
    return [values[value.slot.name].copy() for _, value in _expected(found.trainer.layout)]


def _expected(layout: Layout) -> list[tuple[Unit, Entry]]:
    """What a Keras model of the same layers has: a layer that is shared once."""
    return [(unit, value) for unit in units_of(layout) if unit.first for value in unit.values]


def _arrays(weights: Any) -> tuple[Sequence[str], list[Any]]:
    """What an error calls each array, and the arrays."""
    if isinstance(weights, str | os.PathLike):
        found = _read(os.fspath(weights))
    elif callable(getattr(weights, "get_weights", None)):
        names = [f"the model's {getattr(w, 'path', w)}" for w in weights.weights]
        found = names, list(weights.get_weights())
    elif isinstance(weights, list | tuple):
        found = [f"array {i} of weights" for i in range(len(weights))], list(weights)
    else:
        raise ArgumentError(f"weights is {kind_of(weights)}; expected the list that model.get_weights() gives")
    return found[0], [to_host(array, label) for label, array in zip(*found, strict=True)]


def _read(path: str) -> tuple[list[str], list[Any]]:
    """The arrays of a file that Keras 3 has written, "model.keras", in the order of its layers.

    Layers are named there by their classes, and numbered: dense, dense_1, batch_normalization, ...
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingPackageError("a file of Keras", "h5py") from None
    try:
        with zipfile.ZipFile(path) as whole:
            config, stored = json.loads(whole.read("config.json")), io.BytesIO(whole.read("model.weights.h5"))
        labels: list[str] = []
        arrays: list[Any] = []
        counts: dict[str, int] = {}
        with h5py.File(stored, "r") as file:
            for layer in config["config"]["layers"]:
                kind = _snake_case(layer["class_name"])
                counts[kind] = count = counts.get(kind, -1) + 1
                group = file["layers"].get(f"{kind}_{count}" if count else kind)
                values = {} if group is None else group.get("vars", {})
                for i in range(len(values)):
                    labels.append(f"{layer['config'].get('name', kind)} {i} of {path}")
                    arrays.append(values[str(i)][()])
    except OSError as error:
        raise path_error(f"{path} can't be read", error) from error
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileFormatError(f"{path} is no model that Keras's save has written: {error}") from error
    return labels, arrays


def _snake_case(name: str) -> str:
    """As Keras makes it: BatchNormalization is batch_normalization, PReLU p_re_lu."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
