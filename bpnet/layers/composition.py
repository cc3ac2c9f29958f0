"""Layers made of layers.  The chain rule through a sequence is: each layer's backward, last first."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError
from bpnet.layer import Composite, Derivatives, Layer, Params, Rng, Run, Shape, check_layer
from bpnet.layers.activation import Activation
from bpnet.layers.activations.others import Identity
from bpnet.layers.activity import ActivityPenalty
from bpnet.layers.dense import Dense
from bpnet.layers.dropout import Dropout
from bpnet.layers.flatten import Flatten
from bpnet.registry import resolve


def named_layer(what: str, layer: Any) -> Layer:
    """`layer`, or the one of the activation that it names; raises UnknownNameError or ArgumentError."""
    return resolve(Activation, "activation", layer) if isinstance(layer, str) else check_layer(what, layer)


@dataclass(frozen=True, init=False, repr=False)
class Sequential(Composite):
    """One layer after another: y = f_k(... f_2(f_1(x))); dL/dx = J_1^T ( ... (J_k^T dL/dy)).

    The name of an activation, such as "relu", stands for its layer.  Children are named "0", "1", ...
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
        caches = []
        for name, layer in self.children:
            at = run.at(name) if layer.stochastic else run
            x, cache = (run.backend.outline(layer) if run.backend.traces else layer).forward(at, p[name], x)
            caches.append(cache)
        return x, caches

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        children, first = self.children, 0
        grads: dict[str, Any] = {}
        if not need_dx:  # nothing below the first layer with parameters wants a gradient
            while first < len(children) - 1 and not (p[children[first][0]] and children[first][1].trainable):
                grads[children[first][0]] = {}
                first += 1
        for i in range(len(children) - 1, first - 1, -1):
            name, layer = children[i]
            at = run.at(name) if layer.stochastic else run
            layer = run.backend.outline(layer) if run.backend.traces else layer
            dx, grads[name] = layer.backward(at, p[name], cache[i], dy, need_dx or i > first)
            dy = dx
        return (dy if need_dx else None), grads


@dataclass(frozen=True)
class Residual(Composite):
    """y = x + f(x); dL/dx = dL/dy + J_f^T dL/dy (He et al. 2016).  f keeps the shape; its name is "inner"."""

    inner: Layer

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
        at = run.at("inner") if self.inner.stochastic else run
        y, cache = (run.backend.outline(self.inner) if run.backend.traces else self.inner).forward(at, p["inner"], x)
        return x + y, (cache,)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        at = run.at("inner") if self.inner.stochastic else run
        inner = run.backend.outline(self.inner) if run.backend.traces else self.inner
        dx, grads = inner.backward(at, p["inner"], cache[0], dy, need_dx)
        return (dy + dx if need_dx else None), {"inner": grads}


def last_activation(layer: Layer) -> Layer:
    """What the outputs of `layer` come out of: an activation, that of a dense layer, or another layer."""
    if isinstance(layer, Sequential):
        parts = [part for part in layer.layers if not isinstance(part, ActivityPenalty | Dropout | Flatten | Identity)]
        return last_activation(parts[-1] if parts else layer.layers[-1])
    return layer.function if isinstance(layer, Dense) else layer
