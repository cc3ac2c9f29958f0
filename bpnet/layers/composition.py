"""Layers made of layers.  The chain rule through a sequence is: each layer's backward, last first."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError
from bpnet.layer import Composite, Layer, Params, Rng, Run, Shape, check_layer


@dataclass(frozen=True, init=False)
class Sequential(Composite):
    """One layer after another: y = f_k(... f_2(f_1(x))); dL/dx = J_1^T ( ... (J_k^T dL/dy)).

    Children are named "0", "1", ...
    """

    layers: tuple[Layer, ...]
    star = "layers"

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise OptionError("Sequential() has no layers; expected at least one")
        for i, layer in enumerate(layers):
            check_layer(f"layer {i} of Sequential", layer)
        object.__setattr__(self, "layers", layers)

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
            out_shape = layer.out_shape(in_shape)
            params[name] = layer.init(rng, in_shape)
            in_shape = out_shape
        return params

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        caches = []
        for name, layer in self.children:
            x, cache = layer.forward(run.at(name) if layer.stochastic else run, p[name], x)
            caches.append(cache)
        return x, caches

    def backward(
        self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Array | None, dict[str, Any]]:
        children, grads = self.children, {}
        first = 0
        if not need_dx:  # nothing below the first layer with parameters wants a gradient
            while first < len(children) - 1 and not (p[children[first][0]] and children[first][1].trainable):
                first += 1
        for i in range(len(children) - 1, first - 1, -1):
            name, layer = children[i]
            at = run.at(name) if layer.stochastic else run
            dx, grads[name] = layer.backward(at, p[name], cache[i], dy, need_dx or i > first)
            dy = dx
        for name, _ in children[:first]:
            grads[name] = {}
        return (dy if need_dx else None), grads


@dataclass(frozen=True)
class Residual(Composite):
    """y = x + f(x); dL/dx = dL/dy + J_f^T dL/dy (He et al. 2016).  f keeps the shape; its name is "inner"."""

    inner: Layer

    def __post_init__(self) -> None:
        check_layer("the inner layer of Residual", self.inner)

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
        y, cache = self.inner.forward(run.at("inner") if self.inner.stochastic else run, p["inner"], x)
        return x + y, (cache,)

    def backward(
        self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Array | None, dict[str, Any]]:
        at = run.at("inner") if self.inner.stochastic else run
        dx, grads = self.inner.backward(at, p["inner"], cache[0], dy, need_dx)
        return (dy + dx if need_dx else None), {"inner": grads}
