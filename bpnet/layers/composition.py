"""Layers made of layers.  The chain rule through a sequence is: each layer's backward, last first."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate
from typing import Any, Literal

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError, shown
from bpnet.layer import Composite, Derivatives, Layer, Params, Rng, Run, Shape, SharedParams, Takes, check_layer
from bpnet.layers.activations.others import Identity
from bpnet.layers.activity import ActivityPenalty
from bpnet.layers.dense import Dense
from bpnet.layers.dropout import Dropout
from bpnet.layers.flatten import Flatten
from bpnet.options import choice
from bpnet.registry import resolve


def named_layer(what: str, layer: Any) -> Layer:
    """`layer`, or the one that it names; raises UnknownNameError, OptionError or ArgumentError."""
    return resolve(Layer, "layer", layer) if isinstance(layer, str) else check_layer(what, layer)


def called(run: Run, name: str, layer: Layer) -> tuple[Run, Layer]:
    """A child as its parent calls it: the pass as seen from it, and the layer, or what stands for it under tracing."""
    at = run.at(name) if layer.stochastic else run
    return at, run.backend.outline(layer) if run.backend.traces else layer


@dataclass(frozen=True, init=False, repr=False)
class Sequential(Composite):
    """One layer after another: y = f_k(... f_2(f_1(x))); dL/dx = J_1^T ( ... (J_k^T dL/dy)).

    The name of an activation, such as "relu", stands for its layer, and "LayerNorm" for LayerNorm(), as of any layer
    whose options have defaults.  Children are named "0", "1", ...
    """

    layers: tuple[Layer, ...]
    star = "layers"
    example = ("tanh", Dense(5))

    def __init__(self, *layers: Layer | str) -> None:
        if not layers:
            raise OptionError("Sequential() has no layers; expected at least one")
        self._set(layers=tuple(named_layer(f"layer {i} of Sequential", layer) for i, layer in enumerate(layers)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        return tuple((str(i), layer) for i, layer in enumerate(self.layers))

    def child_shapes(self, in_shape: Shape) -> Iterator[Shape]:
        for layer in self.layers:
            yield in_shape
            in_shape = tuple(layer.out_shape(in_shape))

    def out_shape(self, in_shape: Shape) -> Shape:
        for layer in self.layers:
            in_shape = layer.out_shape(in_shape)
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        params = {}
        for name, layer in self.children:
            in_shape, params[name] = layer.out_shape(in_shape), layer.init(rng, in_shape)
        return params

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        caches, traces = [], run.backend.traces
        for name, layer in self.children:
            at, layer = called(run, name, layer) if traces or layer.stochastic else (run, layer)
            x, cache = layer.forward(at, p[name], x)
            caches.append(cache)
        return x, caches

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        children, first, traces = self.children, 0, run.backend.traces
        grads: dict[str, Any] = {}
        if not need_dx:  # nothing below the first layer with parameters wants a gradient
            while first < len(children) - 1 and not (p[children[first][0]] and children[first][1].trainable):
                grads[children[first][0]] = {}
                first += 1
        for i in range(len(children) - 1, first - 1, -1):
            name, layer = children[i]
            at, layer = called(run, name, layer) if traces or layer.stochastic else (run, layer)
            dx, grads[name] = layer.backward(at, p[name], cache[i], dy, need_dx or i > first)
            dy = dx
        return (dy if need_dx else None), grads


@dataclass(frozen=True)
class Residual(Composite):
    """y = x + f(x); dL/dx = dL/dy + J_f^T dL/dy (He et al. 2016).  f keeps the shape; its name is "inner"."""

    inner: Layer

    accepts_nan = False  # x itself is in y
    example = (Dense(12, "tanh"),)

    def __post_init__(self) -> None:
        self._set(inner=named_layer("the inner layer of Residual", self.inner))

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        return (("inner", self.inner),)

    def out_shape(self, in_shape: Shape) -> Shape:
        out_shape = self.inner.out_shape(in_shape)
        if out_shape != in_shape:
            raise ShapeError(
                f"the inner layer of Residual turns rows of {in_shape} into {out_shape}; expected it to keep the shape"
            )
        return out_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {"inner": self.inner.init(rng, in_shape)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        at, inner = called(run, "inner", self.inner)
        y, cache = inner.forward(at, p["inner"], x)
        return x + y, (cache,)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        at, inner = called(run, "inner", self.inner)
        dx, grads = inner.backward(at, p["inner"], cache[0], dy, need_dx)
        return (dy + dx if need_dx else None), {"inner": grads}


@dataclass(frozen=True, init=False, repr=False)
class Parallel(Composite):
    r"""Branches that all see the input: y is what they give, joined by concatenation, sum or product.

    With y_k = f_k(x), and dL/dx = sum over k of J_k^T dL/dy_k:

        join="concat"      y = [y_1, y_2, ...] along the last axis,      dL/dy_k = the part of dL/dy that belongs to it
        join="add"         y = y_1 + y_2 + ...,                          dL/dy_k = dL/dy
        join="multiply"    y = y_1 y_2 ..., entry by entry,              dL/dy_k = dL/dy times all others

    The name of an activation stands for its layer; "identity" is the branch of the input itself, as DenseNet
    concatenates (Huang et al. 2017).  Children are named "0", "1", ...  Raises ShapeError where what branches give does
    not fit together.
    """

    branches: tuple[Layer, ...]
    join: Literal["concat", "add", "multiply"]
    star = "branches"
    example = (Identity(), Dense(20))

    def __init__(self, *branches: Layer | str, join: Literal["concat", "add", "multiply"] = "concat") -> None:
        if not branches:
            raise OptionError("Parallel() has no branches; expected at least one")
        layers = tuple(named_layer(f"branch {i} of Parallel", layer) for i, layer in enumerate(branches))
        if len({type(layer.takes) for layer in layers}) > 1:
            raise OptionError(
                "some branches of Parallel take whole numbers, others don't: Inputs gives each its own array"
            )
        self._set(branches=layers, join=choice("join", join, ("concat", "add", "multiply")))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.branches))}, join={self.join!r})"

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        return tuple((str(i), layer) for i, layer in enumerate(self.branches))

    @cached_property
    def takes(self) -> Takes:
        """What all branches take: of whole numbers those for which each has an entry."""
        kinds = [layer.takes for layer in self.branches]
        codes = [kind for kind in kinds if isinstance(kind, int)]
        return min(codes) if codes else kinds[0]

    @cached_property
    def accepts_nan(self) -> bool:  # type: ignore[override]
        return all(layer.accepts_nan is True for layer in self.branches)

    @cached_property
    def updates_buffers(self) -> bool:
        return any(layer.updates_buffers for layer in self.branches)

    def out_shape(self, in_shape: Shape) -> Shape:
        first, *others = shapes = [tuple(layer.out_shape(in_shape)) for layer in self.branches]
        cut = -1 if self.join == "concat" else len(first)
        if any(len(s) != len(first) or s[:cut] != first[:cut] for s in others) or (self.join == "concat" and not first):
            but = " but for the last axis, along which they are joined" if self.join == "concat" else ""
            raise ShapeError(f"the branches of {self} give rows of {shapes}; expected the same shape{but}")
        return first if self.join != "concat" else (*first[:-1], sum(shape[-1] for shape in shapes))

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {name: layer.init(rng, in_shape) for name, layer in self.children}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        made = []
        for name, child in self.children:
            at, layer = called(run, name, child)
            made.append(layer.forward(at, p[name], x))
        ys, caches = zip(*made, strict=True)
        if self.join == "concat":
            return run.xp.concat(ys, axis=-1), (caches, [y.shape[-1] for y in ys])
        if self.join == "add":
            return reduce(operator.add, ys), (caches, None)
        return reduce(operator.mul, ys), (caches, ys)

    def _parts(self, saved: Any, dy: Array) -> list[Array]:
        """dL/dy_k for each branch."""
        if self.join == "concat":
            stops = list(accumulate(saved))
            return [dy[..., stop - n : stop] for n, stop in zip(saved, stops, strict=True)]
        if self.join == "add":
            return [dy for _ in self.branches]
        return [reduce(operator.mul, (*saved[:k], *saved[k + 1 :]), dy) for k in range(len(saved))]

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        caches, saved = cache
        dx: Array | None = None
        grads: dict[str, Any] = {}
        for (name, child), mine, part in zip(self.children, caches, self._parts(saved, dy), strict=True):
            if not need_dx and not (p[name] and child.trainable):
                grads[name] = {}
                continue
            at, layer = called(run, name, child)
            more, grads[name] = layer.backward(at, p[name], mine, part, need_dx)
            dx = more if dx is None else dx + more
        return (dx if need_dx else None), grads

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        return super().update_buffers(run, p, cache[0])


@dataclass(frozen=True)
class Shared(Composite):
    r"""A layer that may stand in a network several times and has one set of parameters: y = f(x; p) wherever it stands.

    encoder = bp.Shared(bp.Dense(64, "relu"), "encoder")
    bp.Sequential(encoder, "relu", encoder)

    By the chain rule dL/dp is the sum of what each place gives.  The name is what parameters are shared by, in files
    too: all layers of a network that are shared under one name must be the same, for inputs of the same shape.  (Any
    other layer that stands in a network twice has parameters for each place.)  They lie in the vector once, by the path
    of the first place.  New values of buffers, as of a `BatchNorm`, are the mean of those of all places.
    """

    inner: Layer
    name: str

    example = (Dense(20), "shared")

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise OptionError(f"name is {shown(self.name)}; expected a text, by which the parameters are shared")
        self._set(inner=named_layer("the inner layer of Shared", self.inner))

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        return (("inner", self.inner),)

    def out_shape(self, in_shape: Shape) -> Shape:
        return self.inner.out_shape(in_shape)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return SharedParams(self.name, self.inner, {"inner": self.inner.init(rng, in_shape)})

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        at, inner = called(run, "inner", self.inner)
        y, cache = inner.forward(at, p["inner"], x)
        return y, (cache,)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        at, inner = called(run, "inner", self.inner)
        dx, grads = inner.backward(at, p["inner"], cache[0], dy, need_dx)
        return dx, {"inner": grads}


def last_activation(layer: Layer) -> Layer:
    """What the outputs of `layer` come out of: an activation, that of a dense layer, or another layer."""
    if isinstance(layer, Sequential):
        parts = [part for part in layer.layers if not isinstance(part, ActivityPenalty | Dropout | Flatten | Identity)]
        return last_activation(parts[-1] if parts else layer.layers[-1])
    return layer.function if isinstance(layer, Dense) else layer
