"""What other libraries call the values of a network's layers, and in which shapes they have them.

A network's units are its layers that have values of their own, in the order in which it computes.  A table says by the
class of a layer what PyTorch and Keras call its values; those of any other layer they call as it does.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
class Entry:
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
    values: tuple[Entry, ...]

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
    within: list[Unit] = []
    if isinstance(layer, Composite) and not isinstance(layer, Reparametrized):
        within = [unit for name, child in layer.children for unit in _units(child, (*path, name), slots)]
    inner = layer.inner if isinstance(layer, Reparametrized) else layer
    function = (*path, "inner", "activation") if inner is not layer else (*path, "activation")
    f = getattr(inner, "function", None)
    mine = [p for p in slots if p[: len(path)] == path]
    active = [p for p in mine if isinstance(f, Layer) and p[: len(function)] == function]
    own: dict[Path, list[Path]] = {}
    for p in mine:
        if p not in active:  # of a layer that nests its values each nest for itself
            own.setdefault(path if type(layer) in _NAMES else p[:-1], []).append(p)
    known = list(_NAMES.get(type(layer), {}))
    for place, values in own.items():
        found = [_value(layer, inner, ".".join(p[len(place) :]), *slots.pop(p)) for p in values]
        found.sort(key=lambda value: known.index(value.name) if value.name in known else len(known))
        yield Unit(".".join(place), layer, tuple(found))
    yield from within  # after its own, as PyTorch lists them
    if active and isinstance(f, Layer):
        alpha = [_value(f, f, ".".join(p[len(function) :]), *slots.pop(p)) for p in active]
        yield Unit(".".join(function), f, tuple(alpha))


def _value(layer: Layer, inner: Layer, name: str, slot: Slot, buffer: bool) -> Entry:
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
    return Entry(name, slot, buffer, torch, keras, first, shape, factor)
