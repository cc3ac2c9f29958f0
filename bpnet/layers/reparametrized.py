"""Layers whose weight is a function of what is trained, or of values that are kept beside it."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Composite, Derivatives, Layer, Leaf, Params, Rng, Run, Shape, check_layer
from bpnet.layers.composition import called
from bpnet.layers.dense import Dense
from bpnet.options import whole


class Reparametrized(Composite):
    """Base of layers that have another, called "inner", compute with a weight that they make of its own."""

    inner: Layer

    example = (Dense(20),)

    def __post_init__(self) -> None:
        self._set(inner=check_layer(f"the inner layer of {type(self).__name__}", self.inner))

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        return (("inner", self.inner),)

    def out_shape(self, in_shape: Shape) -> Shape:
        return self.inner.out_shape(in_shape)

    def start(self, rng: Rng, in_shape: Shape) -> tuple[dict[str, Any], Any]:
        """The inner layer's start values, and its weight among them; raises ShapeError where it has none."""
        values = self.inner.init(rng, in_shape)
        weight = values.get("weight")
        if len(getattr(weight, "shape", ())) < 2:
            name = type(self).__name__
            raise ShapeError(f"{self.inner} has no parameter 'weight' of two axes or more, which {name} is about")
        return values, weight

    def _forward(self, run: Run, p: Params, weight: Array, x: Array) -> tuple[Array, Any]:
        at, inner = called(run, "inner", self.inner)
        return inner.forward(at, {**p["inner"], "weight": weight}, x)

    def _backward(
        self, run: Run, p: Params, weight: Array, cache: Any, dy: Array, need_dx: bool
    ) -> tuple[Array | None, dict[str, Any], Array]:
        """dL/dx, the inner gradients, and dL/dweight."""
        at, inner = called(run, "inner", self.inner)
        dx, grads = inner.backward(at, {**p["inner"], "weight": weight}, cache, dy, need_dx)
        return dx, grads, grads["weight"]

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        return super().update_buffers(run, p, cache[:1])


@dataclass(frozen=True)
class WeightNorm(Reparametrized):
    r"""A layer whose weight is W = g V / |V|, length and direction trained apart (Salimans and Kingma 2016).

    For each unit, along the last axis of W, |V| is the Euclidean norm over all other axes; the length g starts as |V|,
    so that W starts as without. With sums over those axes, and U = V / |V|,

        dL/dg = sum dL/dW U,    dL/dV = g / |V| (dL/dW - U dL/dg).

    In the parameters V is the inner layer's "weight", and g is "length".
    """

    inner: Layer

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        values, v = self.start(rng, in_shape)
        axes = tuple(range(v.ndim - 1))
        return {"inner": values, "length": rng.computed(v.shape[-1:], lambda: (v * v).sum(axis=axes) ** 0.5)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        v = p["inner"]["weight"]
        rows = run.xp.reshape(v, (-1, v.shape[-1]))
        inverse = 1.0 / run.xp.sqrt(run.sum_rows(rows * rows))
        weight = run.xp.reshape(rows * (p["length"] * inverse), v.shape)
        y, cache = self._forward(run, p, weight, x)
        return y, (cache, weight, inverse)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        cache, weight, inverse = cache
        dx, grads, dw = self._backward(run, p, weight, cache, dy, need_dx)
        unit = run.xp.reshape(p["inner"]["weight"], (-1, weight.shape[-1])) * inverse
        dw = run.xp.reshape(dw, unit.shape)
        dg = run.sum_rows(dw * unit)
        dv = (dw - unit * dg) * (p["length"] * inverse)
        return dx, {"inner": grads | {"weight": run.xp.reshape(dv, weight.shape)}, "length": dg}


@dataclass(frozen=True)
class SpectralNorm(Reparametrized):
    r"""A layer whose weight is W / s, s the largest singular value of W by power iteration (Miyato et al. 2018).

    W is (n, units), all axes but the last joined; u of (n,) and v of (units,) are buffers, "left" and "right", near its
    first singular vectors. With s = u^T W v, u and v taken as constants, and the sum over all entries,

        dL/dW = (D - u v^T sum(D W / s)) / s,    D = dL/d(W / s).

    After every training step u <- W v / |W v| and v <- W^T u / |W^T u|, as many times as `iterations` says, by the W of
    that step: so a step computes with vectors that are one update of W behind, and its derivative is exact.  They start
    after `STARTING` iterations of random ones.
    """

    inner: Layer
    iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(iterations=whole)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        values, weight = self.start(rng, in_shape)
        (*others, units), drawn = weight.shape, rng.normal(weight.shape[-1:], 1.0)

        def left() -> Any:
            w, v = weight.reshape(-1, units), drawn
            for _ in range(STARTING):
                u = w @ v
                u = u / (u @ u) ** 0.5
                v = w.T @ u
            return u

        def right() -> Any:
            v = weight.reshape(-1, units).T @ left()
            return v / (v @ v) ** 0.5

        starts = rng.computed((math.prod(others),), left), rng.computed((units,), right)
        return {"inner": values} | {n: Leaf(v, trainable=False) for n, v in zip(("left", "right"), starts, strict=True)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        weight, xp = p["inner"]["weight"], run.xp
        along = self._outer(run, p)
        inverse = 1.0 / xp.sum(xp.reshape(weight, along.shape) * along)
        scaled = weight * inverse
        y, cache = self._forward(run, p, scaled, x)
        return y, (cache, scaled, inverse)

    @staticmethod
    def _outer(run: Run, p: Params) -> Array:
        """u v^T."""
        return run.xp.reshape(p["left"], (-1, 1)) * run.xp.reshape(p["right"], (1, -1))

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        cache, scaled, inverse = cache
        dx, grads, d = self._backward(run, p, scaled, cache, dy, need_dx)
        along = run.xp.reshape(self._outer(run, p), scaled.shape)
        dw = (d - along * run.xp.sum(d * scaled)) * inverse
        return dx, {"inner": grads | {"weight": dw}}

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        taken = super().update_buffers(run, p, cache)
        if not run.training:
            return taken
        xp, v = run.xp, p["right"]
        w = xp.reshape(p["inner"]["weight"], (-1, v.shape[0]))
        for _ in range(self.iterations):
            u = _unit(xp, xp.sum(w * v, axis=1))
            v = _unit(xp, run.sum_rows(w * xp.reshape(u, (-1, 1))))
        return taken | {"left": u, "right": v}


def _unit(xp: Any, v: Array) -> Array:
    """v / |v|."""
    row = xp.reshape(v, (1, -1))
    return xp.reshape(row / xp.sqrt(xp.sum(row * row, axis=-1, keepdims=True)), v.shape)


STARTING = 15
"""Power iterations before the first step."""
