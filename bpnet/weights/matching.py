"""Which arrays of another library belong to which parameters of a network, and how one is made of the other.

A network's units are its layers that have values of their own, in the order in which it computes.  Others keep their
arrays under other names, and in other shapes: a table says which, by the class of the layer.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    DataError,
    DTypeError,
    ShapeError,
    UnknownNameError,
    kind_of,
    plural,
    shown,
)
from bpnet.export.models import Exported
from bpnet.layer import Composite, Layer, Path, Shape
from bpnet.layers.bilinear import Bilinear
from bpnet.layers.dense import Dense
from bpnet.layers.embedding import Embedding
from bpnet.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from bpnet.layers.reparametrized import Reparametrized, SpectralNorm, WeightNorm
from bpnet.layout import Layout, Slot

Names = tuple[str, ...]
"""What another library calls a value; where it has had several names, the present one comes first."""

_NORMALIZATION: dict[str, tuple[Names, Names]] = {"scale": (("weight",), ("gamma",)), "shift": (("bias",), ("beta",))}
_WEIGHTS: dict[str, tuple[Names, Names]] = {"weight": (("weight",), ("kernel",)), "bias": (("bias",), ("bias",))}
_NAMES: Mapping[type[Layer], Mapping[str, tuple[Names, Names]]] = {
    Dense: _WEIGHTS,
    Bilinear: _WEIGHTS,
    Embedding: {"table": (("weight",), ("embeddings",))},
    LayerNorm: _NORMALIZATION,
    GroupNorm: _NORMALIZATION,
    RMSNorm: {"scale": (("weight",), ("scale", "gamma"))},
    BatchNorm: _NORMALIZATION
    | {"mean": (("running_mean",), ("moving_mean",)), "var": (("running_var",), ("moving_variance",))},
    WeightNorm: {
        "inner.weight": (("parametrizations.weight.original1", "weight_v"), ()),
        "length": (("parametrizations.weight.original0", "weight_g"), ()),
        "inner.bias": (("bias",), ()),
    },
    SpectralNorm: {
        "inner.weight": (("parametrizations.weight.original", "weight_orig"), ()),
        "right": (("parametrizations.weight.0._u", "weight_u"), ()),
        "left": (("parametrizations.weight.0._v", "weight_v"), ()),
        "inner.bias": (("bias",), ()),
    },
}
"""By class: what PyTorch and Keras call a value.  PReLU's is below, since only its own name tells it."""


@dataclass(frozen=True)
class Value:
    """A parameter or buffer of a layer, at one of its places in the network."""

    name: str
    """Within its unit."""
    slot: Slot
    buffer: bool
    torch: Names
    keras: Names
    units_first: bool = False
    """Whether PyTorch has the units, here the last axis, first: y = W x with W of (units, n)."""
    shape: Shape = ()
    """In PyTorch."""
    factor: float = 1.0
    """What a weight of the neural tangent kernel is divided by where it is used."""

    def of_torch(self, array: Any) -> Any:
        """This value, from PyTorch's."""
        array = np.moveaxis(array, 0, -1) if self.units_first else array
        return array.reshape(self.slot.shape) * self.factor

    def to_torch(self, array: Any) -> Any:
        """PyTorch's, from this value."""
        array = np.moveaxis(array, -1, 0) if self.units_first else array
        return array.reshape(self.shape) / self.factor


@dataclass(frozen=True)
class Unit:
    """A layer that has values of its own."""

    path: str
    layer: Layer
    values: tuple[Value, ...]

    def __str__(self) -> str:
        return f"layer {self.path!r} of the network, {self.layer}" if self.path else f"the network, {self.layer}"

    @property
    def first(self) -> bool:
        """Whether this is the first place of a layer that is shared."""
        path = tuple(filter(None, self.path.split(".")))
        return all(value.slot.path[: len(path)] == path for value in self.values)


def units_of(layout: Layout) -> list[Unit]:
    """The units of a network, those that are shared at each of their places."""
    slots: dict[Path, tuple[Slot, bool]] = {}
    for some, buffer in ((layout.parameters, False), (layout.buffers, True)):
        slots |= {path: (slot, buffer) for slot in some for path in (slot.path, *slot.also)}
    return list(_units(layout.network, (), slots))


def _units(layer: Layer, path: Path, slots: dict[Path, tuple[Slot, bool]]) -> Iterator[Unit]:
    """Of the layer at `path`; `slots` are those that no unit has yet."""
    if isinstance(layer, Composite) and not isinstance(layer, Reparametrized):
        for name, child in layer.children:
            yield from _units(child, (*path, name), slots)
    inner = layer.inner if isinstance(layer, Reparametrized) else layer
    function = (*path, "inner", "activation") if inner is not layer else (*path, "activation")
    mine = [p for p in slots if p[: len(path)] == path]
    active = [p for p in mine if isinstance(inner, Dense) and p[: len(function)] == function]
    own = [p for p in mine if p not in active]
    if own:
        found = [_value(layer, inner, ".".join(p[len(path) :]), *slots.pop(p)) for p in own]
        known = list(_NAMES.get(type(layer), {}))
        found.sort(key=lambda value: known.index(value.name) if value.name in known else len(known))
        yield Unit(".".join(path), layer, tuple(found))
    if active and isinstance(inner, Dense):
        alpha = [_value(inner.function, inner.function, ".".join(p[len(function) :]), *slots.pop(p)) for p in active]
        yield Unit(".".join(function), inner.function, tuple(alpha))


def _value(layer: Layer, inner: Layer, name: str, slot: Slot, buffer: bool) -> Value:
    torch, keras = _NAMES.get(type(layer), {}).get(name, ((name,), (name,)))
    shape, first, factor = slot.shape, False, 1.0
    if name.rpartition(".")[2] == "weight" and isinstance(inner, Dense | Bilinear):
        shape, first = (shape[-1], *shape[:-1]), True
    if isinstance(layer, Dense) and layer.ntk and name == "weight":
        factor = math.sqrt(slot.shape[0])
    if isinstance(layer, WeightNorm) and name == "length":
        shape = (*shape, *(1,) * (3 if isinstance(inner, Bilinear) else 2))[: 3 if isinstance(inner, Bilinear) else 2]
    if name == "alpha":
        torch, shape = ("weight",), shape or (1,)
    return Value(name, slot, buffer, torch, keras, first, shape, factor)


# ---- pairs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theirs:
    """A layer of the other library: its name, and its arrays by theirs."""

    name: str
    arrays: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name!r} with {', '.join(f'{n} {tuple(a.shape)}' for n, a in self.arrays.items())}"


def paired(
    units: Sequence[Unit],
    theirs: Sequence[Theirs],
    names: Mapping[str, str | None] | None,
    what: str,
    check: Callable[[Unit, Theirs], Any],
) -> list[tuple[Unit, Theirs]]:
    """Each unit with the layer whose arrays are its own: by `names`, and the others in their order.

    `check` raises ShapeError where two don't fit.  Raises UnknownNameError where a name is no unit's or layer's, and
    ShapeError where two don't fit, or the numbers of both differ.
    """
    names = {} if names is None else names
    if not isinstance(names, Mapping):
        raise ArgumentError(f"names is {kind_of(names)}; expected a dict of layers' paths, and what {what} calls each")
    for path, name in names.items():
        if not isinstance(path, str) or not isinstance(name, str | None):
            raise ArgumentError(f"names has {shown(path)}: {shown(name)}; expected text, or None for the second")
    own, other = {unit.path: unit for unit in units}, {layer.name: layer for layer in theirs}
    for path, name in names.items():
        if path not in own:
            raise UnknownNameError("layer of the network", path, own)
        if name is not None and name not in other:
            raise UnknownNameError(f"layer of {what}", name, other)
    pairs = {path: other[name] for path, name in names.items() if name is not None}
    taken = {layer.name for layer in pairs.values()}
    left, rest = [u for u in units if u.path not in names], [layer for layer in theirs if layer.name not in taken]
    if len(left) != len(rest):
        left = [unit for unit in left if unit.first]
    for unit, layer in zip(left, rest, strict=False):
        check(unit, layer)
    if len(left) != len(rest):
        ours, other_ones = left[len(rest) :], rest[len(left) :]
        over = str(ours[0]) if ours else f"{other_ones[0]} in {what}"
        raise ShapeError(
            f"the network has {plural(len(left), 'layer')} with values, {what} has {len(rest)}: nothing belongs to "
            f"{over}. Write the same layers in both, or say by names={{'0': 'fc1', ...}} which belong together; None "
            "leaves a layer as it is"
        )
    pairs |= {unit.path: layer for unit, layer in zip(left, rest, strict=True)}
    return [(unit, pairs[unit.path]) for unit in units if unit.path in pairs]


def set_values(model: Exported, arrays: Mapping[str, Any]) -> Any:
    """Set the parameters and buffers of these names; the others stay, and the optimizer's state begins anew.

    It gives the trainer, or the model of tables that it is in.
    """
    trainer = model.trainer
    layout, backend = trainer.layout, trainer.backend
    for name, array in arrays.items():
        if np.isnan(array).any():
            raise DataError(f"what is given for {name} has NaN among its values")
    like, place = trainer.theta, backend.device(trainer.theta)
    vectors = []
    for slots, known in ((layout.parameters, model.parameters), (layout.buffers, model.buffers)):
        values = [np.reshape(arrays.get(slot.name, known[slot.name]), slot.size) for slot in slots]
        vectors.append(backend.from_host(np.concatenate([np.empty(0, np.float32), *values]), like.dtype, place))
    theta, buffers = vectors
    trainer.parameters = layout.views(backend, theta)
    (new, _, state), count = trainer.snapshot()
    trainer.restore(((new, buffers, state), count))
    return model.table or trainer


def to_host(value: Any, what: str) -> Any:
    """A NumPy array of float32 or float64 from anybody's array.

    Raises ArgumentError or ArrayMismatchError where it is none, and DTypeError where it does not hold numbers.
    """
    if isinstance(value, list | tuple | float | int):
        raise ArgumentError(f"{what} is {kind_of(value)}; expected an array")
    backend = backend_of(value, what)
    unfit = backend.unfit(value)
    if unfit is not None:
        raise ArrayMismatchError(f"{what} is {unfit}")
    if not backend.xp.isdtype(value.dtype, ("real floating", "integral", "bool")):
        raise DTypeError(f"{what} holds {value.dtype} values; expected numbers")
    value = backend.detach(value)
    if value.dtype not in (backend.xp.float32, backend.xp.float64):  # of which some are none of NumPy's
        value = backend.xp.astype(value, backend.xp.float32)
    return np.asarray(backend.to_host(value))
