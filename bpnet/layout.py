"""One vector: where every parameter of a network lies in one flat array, and views of it in the network's own nesting.

The buffers (values that are kept but not trained) lie in a second vector the same way, so no optimizer touches them.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from itertools import accumulate
from typing import Any

from bpnet.backends import backend_of
from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, OptionError, ShapeError, kind_of, plural
from bpnet.layer import (
    InShape,
    Layer,
    Leaf,
    Params,
    Path,
    Rng,
    Shape,
    ShapeRng,
    SharedParams,
    Takes,
    check_layer,
    walk,
)
from bpnet.options import whole


@dataclass(frozen=True)
class Slot:
    """The place of one leaf: its path in the nesting, shape, first element in the vector, and whether it decays.

    `also` are the paths of the other places of a leaf that is shared.
    """

    path: Path
    shape: Shape
    offset: int
    decay: bool = False
    also: tuple[Path, ...] = ()

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

    @cached_property
    def parted(self) -> dict[tuple[Any, ...], list[Any]]:
        """How patterns of names part it, kept since every step asks: see `Grouped` and `Muon`."""
        return {}

    def views(self, backend: Backend, theta: Array, buffers: Array | None = None) -> dict[str, Any]:
        """Reshaped slices of the vectors, nested by name as the layers see them."""
        given = ((self.parameters, theta), (self.buffers, buffers))
        return self.nested(
            (slot, backend.xp.reshape(vector[slot.part], slot.shape))
            for slots, vector in given
            if vector is not None
            for slot in slots
        )

    def nested(self, values: Iterable[tuple[Slot, Any]]) -> dict[str, Any]:
        """A value for each slot, nested by name as the layers see them."""
        tree: dict[str, Any] = {}
        for group in self.groups:
            _place(tree, group, {})
        for slot, value in values:
            for path in (slot.path, *slot.also):
                _place(tree, path, value)
        return tree

    def part(self, slots: Sequence[Slot]) -> "Layout":
        """The layout of those parameters alone, one after the other."""
        return replace(self, parameters=_placed(slots), buffers=())

    def with_rows(self, counts: Mapping[str, int]) -> "Layout":
        """The same where the tables of these names have so many rows."""
        slots = [replace(s, shape=(counts[s.name], *s.shape[1:])) if s.name in counts else s for s in self.parameters]
        return replace(self, parameters=_placed(slots))

    def unpack(self, vector: Array, buffers: bool = False) -> dict[str, Array]:
        """What lies in a vector laid out like the parameters (or the buffers), as a gradient is, by name.

        {"0.weight": an array of the shape of that weight, ...}; what is shared comes by the name of its first place.
        Raises ShapeError where the vector has another size.
        """
        slots, size = (self.buffers, self.buffer_size) if buffers else (self.parameters, self.size)
        backend = backend_of(vector, "vector")
        if tuple(vector.shape) != (size,):
            of = plural(size, "buffer value" if buffers else "parameter")
            raise ShapeError(f"vector has the shape {tuple(vector.shape)}; expected ({size},), for {of}")
        return {slot.name: backend.xp.reshape(vector[slot.part], slot.shape) for slot in slots}

    def join(self, backend: Backend, tree: Mapping[str, Any]) -> Array:
        """The vector of a nested dict of parameter arrays: the inverse of `views`.

        Raises ArgumentError where a parameter that is shared has other values in another place.
        """
        for slot in self.parameters:
            value = _fitting(tree, slot)
            for path in slot.also:
                other = _at(tree, path)
                if other is not value and not bool(backend.xp.all(other == value)):
                    names = f"{slot.name} and {'.'.join(path)}"
                    raise ArgumentError(f"{names} are one parameter that is shared; expected the same values of both")
        return self._joined(backend, [_fitting(tree, slot) for slot in self.parameters])

    def join_gradients(self, backend: Backend, tree: Mapping[str, Any]) -> Array:
        """The vector of a nested dict of gradients: those of a parameter that is shared are added up."""
        return self._joined(backend, [_total(tree, slot) for slot in self.parameters])

    def _joined(self, backend: Backend, arrays: Sequence[Array]) -> Array:
        parts = [backend.xp.reshape(array, (-1,)) for array in arrays]
        return backend.xp.concat(parts) if len(parts) > 1 else parts[0]

    def join_buffers(self, backend: Backend, tree: Mapping[str, Any], old: Array) -> Array:
        """The vector of buffers with the values that `tree` has, the mean of shared ones, the others as in `old`."""
        parts = []
        for slot in self.buffers:
            values = [value for path in (slot.path, *slot.also) if (value := _at(tree, path)) is not None]
            mean = (
                reduce(operator.add, values) * (1.0 / len(values)) if len(values) > 1 else values[0] if values else None
            )
            parts.append(old[slot.part] if mean is None else backend.xp.reshape(mean, (slot.size,)))
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
    """Memory for the gradient of a network, in which kernels may write each parameter's part where it belongs.

    `vector` is the gradient, and `memory` has room after it for what one rank of several sends along.
    """

    def __init__(self, backend: Backend, layout: Layout, like: Array) -> None:
        self.backend, self.layout = backend, layout
        memory: Any = backend.empty_vector(layout.size + layout.buffer_size + 2, like)
        self.memory, self.vector = memory, memory[: layout.size]
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
        moved = [
            (view, _total(tree, slot) if slot.also else _fitting(tree, slot))
            for slot, view in slots
            if slot.also or _at(tree, slot.path) is not view
        ]
        for view, value in [(v, self.backend.copy(a) if id(a) in self.own else a) for v, a in moved]:
            self.backend.store(view, value)
        return self.vector


def _total(tree: Mapping[str, Any], slot: Slot) -> Array:
    """The gradient for `slot`, added up over all places of a leaf that is shared."""
    return reduce(operator.add, [_fitting(tree, slot, path) for path in (slot.path, *slot.also)])


def _fitting(tree: Mapping[str, Any], slot: Slot, path: Path = ()) -> Array:
    """The array for `slot`; raises ShapeError where a layer of the user's gave none, or one of another shape."""
    *where, name = path = path or slot.path
    value = _at(tree, path)
    shape = getattr(value, "shape", None)
    if shape == slot.shape:
        return value
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


def accepting(network: Layer) -> tuple[bool, ...]:
    """Of each array that a network takes, whether values may be missing in it: see `Layer.accepts_nan`."""
    found, takes = network.accepts_nan, network.takes
    return found if isinstance(found, tuple) else (found,) * (len(takes) if isinstance(takes, tuple) else 1)


def _checked_shape(what: str, shape: Any) -> Shape:
    if not isinstance(shape, tuple | list):
        raise ArgumentError(f"{what} is {kind_of(shape)}; expected a tuple, such as x.shape[1:]")
    return tuple(whole(what, n, 1, 2**31 - 1) for n in shape)


_NO_NETWORK = Layer()


def layout_of_array(shape: Shape) -> Layout:
    """The layout of one array that is no network's: optimizers take it as a leaf called x, which does not decay."""
    slot = Slot(("x",), tuple(shape), 0)
    return Layout(_NO_NETWORK, (), slot.shape, (slot,), (), ())


@lru_cache(maxsize=64)
def _layout_of(network: Layer, in_shape: InShape) -> Layout:
    out_shape = network.out_shape(in_shape)
    leaves, groups, shared = [], [], _SharedPlaces()
    again: dict[Path, list[Path]] = {}
    for path, value in walk(network.init(ShapeRng(), in_shape)):
        if isinstance(value, Mapping):
            groups.append(path)
            if isinstance(value, SharedParams):
                shared.add(path, value)
            continue
        first = shared.first(path)
        if first != path:
            again.setdefault(first, []).append(path)
            continue
        leaf, shape = value if isinstance(value, Leaf) else Leaf(value), _shape_of(value)
        decay = leaf.trainable and (len(shape) >= 2 if leaf.decay is None else leaf.decay)
        leaves.append((path, shape, decay, leaf.trainable))

    def placed(some: Iterable[tuple[Path, Shape, bool, bool]]) -> tuple[Slot, ...]:
        slots, offset = [], 0
        for path, shape, decay, _ in some:
            slots.append(Slot(path, shape, offset, decay, tuple(again.get(path, ()))))
            offset += slots[-1].size
        return tuple(slots)

    parameters = placed(sorted((leaf for leaf in leaves if leaf[3]), key=lambda leaf: not leaf[2]))
    buffers = placed(leaf for leaf in leaves if not leaf[3])
    return Layout(network, in_shape, out_shape, parameters, buffers, tuple(groups))


class _SharedPlaces:
    """Where shared layers stand, in the order of the network: the first place of each has the parameters."""

    def __init__(self) -> None:
        self.firsts: dict[str, tuple[Path, SharedParams]] = {}
        self.moved: dict[Path, Path] = {}

    def add(self, path: Path, params: SharedParams) -> None:
        """Raises OptionError where another layer has the same name, and ShapeError where it is for other inputs."""
        if self.first(path) != path:
            return
        first, same = self.firsts.setdefault(params.name, (path, params))
        if first == path:
            return
        self.moved.setdefault(path, first)
        what, where = f"shared under the name {params.name!r}", f"at {'.'.join(first)!r} and {'.'.join(path)!r}"
        if same.layer != params.layer:
            raise OptionError(f"two layers are {what}, {same.layer} and {params.layer}: give one another name")
        old, new = ([(p, _shape_of(leaf)) for p, leaf in walk(values)] for values in (same, params))
        if old != new:
            text = f"{params.layer} is {what}, but {where} it has inputs of different shapes, and so other parameters"
            raise ShapeError(f"{text}: give one another name")

    def first(self, path: Path) -> Path:
        """Where what lies at `path` stands first."""
        for length in range(1, len(path) + 1 if self.moved else 0):
            first = self.moved.get(path[:length])
            if first is not None:
                return self.first(first + path[length:])
        return path


def _shape_of(value: Any) -> Shape:
    """The shape of a start value."""
    value = value.value if isinstance(value, Leaf) else value
    return tuple(int(n) for n in getattr(value, "shape", ()))


def _placed(slots: Sequence[Slot]) -> tuple[Slot, ...]:
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
