"""One vector: where every parameter of a network lies in one flat array, and views of it in the network's own nesting.

The buffers (values that are kept but not trained) lie in a second vector the same way, so no optimizer touches them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, ShapeError, kind_of
from bpnet.layer import InShape, Layer, Leaf, Params, Path, Rng, Shape, ShapeRng, Takes, check_layer, walk
from bpnet.options import whole


@dataclass(frozen=True)
class Slot:
    """The place of one leaf: its path in the nesting, shape, first element in the vector, and whether it decays."""

    path: Path
    shape: Shape
    offset: int
    decay: bool = False

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def part(self) -> slice:
        """Where it lies in the vector."""
        return slice(self.offset, self.offset + self.size)

    @property
    def name(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Layout:
    """The leaves of a network for one shape of input: parameters that decay first, then the others; buffers apart."""

    network: Layer
    in_shape: InShape
    """Of a row; where the network takes several arrays, ((name, shape), ...), one for each."""
    out_shape: Shape
    parameters: tuple[Slot, ...]
    buffers: tuple[Slot, ...]
    groups: tuple[Path, ...]
    """Every place where leaves or children can hang, the layers without parameters included."""

    @cached_property
    def size(self) -> int:
        """Number of trainable parameters."""
        return sum(slot.size for slot in self.parameters)

    @cached_property
    def decaying(self) -> int:
        """Number of parameters to which weight decay applies: the first ones of the vector."""
        return sum(slot.size for slot in self.parameters if slot.decay)

    @cached_property
    def buffer_size(self) -> int:
        """Number of buffer values."""
        return sum(slot.size for slot in self.buffers)

    def views(self, backend: Backend, theta: Array, buffers: Array | None = None) -> dict[str, Any]:
        """Reshaped slices of the vectors, nested by name as the layers see them."""
        tree: dict[str, Any] = {}
        for group in self.groups:
            _place(tree, group, {})
        for slots, vector in ((self.parameters, theta), (self.buffers, buffers)):
            if vector is not None:
                for slot in slots:
                    _place(tree, slot.path, backend.xp.reshape(vector[slot.part], slot.shape))
        return tree

    def join(self, backend: Backend, tree: Mapping[str, Any]) -> Array:
        """The vector of a nested dict of parameter (or gradient) arrays: the inverse of `views`."""
        parts = [backend.xp.reshape(_fitting(tree, slot), (-1,)) for slot in self.parameters]
        return backend.xp.concat(parts) if len(parts) > 1 else parts[0]

    def join_buffers(self, backend: Backend, tree: Mapping[str, Any], old: Array) -> Array:
        """The vector of buffers with the values that `tree` has, the others as in `old`."""
        parts = []
        for slot in self.buffers:
            value = _at(tree, slot.path)
            parts.append(old[slot.part] if value is None else backend.xp.reshape(value, (slot.size,)))
        return backend.concat(parts) if len(parts) > 1 else parts[0]

    def start(self, seed: int) -> tuple[Any, Any]:
        """Start values of parameters and buffers, two float64 NumPy vectors drawn on the host from `seed`."""
        import numpy

        theta, buffers = numpy.empty(self.size), numpy.empty(self.buffer_size)  # before any is drawn for nothing
        tree = self.network.init(Rng(seed), self.in_shape)
        for slots, vector in ((self.parameters, theta), (self.buffers, buffers)):
            for slot in slots:
                value = _at(tree, slot.path)
                value = value.value if isinstance(value, Leaf) else value
                vector[slot.part] = numpy.reshape(value, slot.size)
        return theta, buffers


class GradBuffer:
    """Memory for the gradient of a network, in which kernels may write each parameter's part where it belongs."""

    def __init__(self, backend: Backend, layout: Layout, like: Array) -> None:
        self.backend, self.layout = backend, layout
        self.vector = backend.empty_vector(layout.size, like)
        tree = layout.views(backend, self.vector)
        self.views = [_at(tree, slot.path) for slot in layout.parameters]
        self.own = {id(view) for view in self.views}
        self.last: tuple[Params | None, dict[int, Array]] = None, {}

    def of(self, p: Params) -> dict[int, Array]:
        """By the `id` of a parameter: its gradient's part of the vector."""
        seen, found = self.last
        if seen is not p:
            leaves = [_at(p, slot.path) for slot in self.layout.parameters]
            found = {id(leaf): view for leaf, view in zip(leaves, self.views, strict=True)}
            self.last = p, found
        return dict(found)

    def join(self, tree: Mapping[str, Any]) -> Array:
        """The vector of the gradients in `tree`: those are copied that were not written where they belong."""
        slots = zip(self.layout.parameters, self.views, strict=True)
        moved = [(view, _fitting(tree, slot)) for slot, view in slots if _at(tree, slot.path) is not view]
        for view, value in [(v, self.backend.copy(a) if id(a) in self.own else a) for v, a in moved]:
            self.backend.store(view, value)
        return self.vector


def _fitting(tree: Mapping[str, Any], slot: Slot) -> Array:
    """The array for `slot`; raises ShapeError where a layer of the user's gave none, or one of another shape."""
    value = _at(tree, slot.path)
    shape = getattr(value, "shape", None)
    if shape == slot.shape:
        return value
    *where, name = slot.path
    got = "none" if value is None else kind_of(value) if shape is None else f"one of shape {tuple(shape)}"
    raise ShapeError(
        f"layer {'.'.join(where)!r}: the gradient of {name!r} has the shape of its parameter, {slot.shape}; "
        f"backward gave {got}"
    )


def layout_of(network: Layer, in_shape: Any, trains: bool = True) -> Layout:
    """The layout of `network` for rows of `in_shape`; raises ShapeError where a layer does not fit.

    For a network that takes several arrays it is a dict, or a tuple, of the shapes of their rows.  It also raises
    ShapeError where nothing can be trained, unless `trains` is False.
    """
    check_layer("network", network)
    parts = arranged(network.takes, in_shape, "in_shape")
    shapes = tuple((name, _checked_shape(what, shape)) for name, what, shape, _ in parts)
    layout = _layout_of(network, shapes if isinstance(network.takes, tuple) else shapes[0][1])
    if not layout.parameters and trains:
        raise ShapeError(f"{network} has no parameters to train")
    return layout if layout.network is network else replace(layout, network=network)


def arranged(takes: Takes, given: Any, what: str) -> list[tuple[str, str, Any, int | None]]:
    """What was given for a network's input, array by array: its name, what an error calls it, itself, what it is to be.

    Of one array the name is empty.  Raises ArgumentError where it should be several and is not, and ShapeError where
    one is missing or not expected.
    """
    if not isinstance(takes, tuple):
        if isinstance(given, Mapping):
            raise ArgumentError(
                f"{what} is a dict, but the network takes one array: let it begin with bp.Inputs(...) for several"
            )
        return [("", what, given, takes)]
    names = [name for name, _ in takes]
    if isinstance(given, tuple) and all(isinstance(part, tuple) and part and type(part[0]) is str for part in given):
        given = dict(given)  # shapes as a layout has them
    if isinstance(given, tuple) and names == [str(i) for i in range(len(names))]:
        have, said = {str(i): part for i, part in enumerate(given)}, [f"{what}[{i}]" for i in range(len(given))]
    elif isinstance(given, Mapping):
        have, said = dict(given), [f"{what}[{name!r}]" for name in given]
    else:
        kind = "a tuple" if names[0] == "0" else "a dict"
        expected = f"{kind} of arrays, as the network takes them: {', '.join(names)}"
        raise ArgumentError(f"{what} is {kind_of(given)}; expected {expected}")
    missing, strange = [n for n in names if n not in have], [n for n in have if n not in names]
    if missing or strange:
        wrong = [f"lacks {', '.join(map(str, missing))}"] * bool(missing)
        wrong += [f"has {', '.join(map(str, strange))}, which the network does not take"] * bool(strange)
        raise ShapeError(f"{what} {' and '.join(wrong)}: expected {', '.join(names)}")
    called = dict(zip(have, said, strict=True))
    return [(name, called[name], have[name], part) for name, part in takes]


def _checked_shape(what: str, shape: Any) -> Shape:
    if not isinstance(shape, tuple | list):
        raise ArgumentError(f"{what} is {kind_of(shape)}; expected a tuple, such as x.shape[1:]")
    return tuple(whole(what, n, 1, 2**31 - 1) for n in shape)


@lru_cache(maxsize=64)
def _layout_of(network: Layer, in_shape: InShape) -> Layout:
    out_shape = network.out_shape(in_shape)
    leaves, groups = [], []
    for path, value in walk(network.init(ShapeRng(), in_shape)):
        if isinstance(value, Mapping):
            groups.append(path)
            continue
        leaf = value if isinstance(value, Leaf) else Leaf(value)
        shape = tuple(int(n) for n in getattr(leaf.value, "shape", ()))
        decay = leaf.trainable and (len(shape) >= 2 if leaf.decay is None else leaf.decay)
        leaves.append((leaf.trainable, Slot(path, shape, 0, decay)))
    trained = sorted((slot for trainable, slot in leaves if trainable), key=lambda slot: not slot.decay)
    buffers = [slot for trainable, slot in leaves if not trainable]
    return Layout(network, in_shape, out_shape, _placed(trained), _placed(buffers), tuple(groups))


def _placed(slots: list[Slot]) -> tuple[Slot, ...]:
    """One after the other."""
    offsets = accumulate((slot.size for slot in slots), initial=0)
    return tuple(replace(slot, offset=offset) for slot, offset in zip(slots, offsets, strict=False))


def _place(tree: dict[str, Any], path: Path, value: Any) -> None:
    for name in path[:-1]:
        tree = tree[name]
    tree[path[-1]] = value


def _at(tree: Mapping[str, Any], path: Path) -> Any:
    """What lies there, or None."""
    for name in path:
        if name not in tree:
            return None
        tree = tree[name]
    return tree
