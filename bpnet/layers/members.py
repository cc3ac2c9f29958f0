"""Ensembles in one network: k members side by side, on an axis of their own, in one batched pass.

Rows are of (n,), which all members see, or of (k, n), one for each; what comes out is of (k, units).  With the loss
`bp.Members(loss)` each member learns by itself, and what the ensemble says is the mean of what they predict.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError
from bpnet.initializers import Initializer
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.layers.activation import Activation
from bpnet.layers.dense import Dense
from bpnet.options import choice, flag, whole, wholes
from bpnet.registry import resolve
from bpnet.typing import ActivationName, InitializerName

Start = Literal["ones", "random_signs", "normal"]
STARTS = ("ones", "random_signs", "normal")


class _OfMembers(Layer):
    """Base of what has k members."""

    members: int

    def features(self, in_shape: Shape) -> int:
        """How many features a member sees; raises ShapeError where rows are of other members."""
        if len(in_shape) == 1 or (len(in_shape) == 2 and in_shape[0] == self.members):
            return in_shape[-1]
        raise ShapeError(
            f"{self} takes rows of features, (n,), or one for each member, ({self.members}, n), but rows are {in_shape}"
        )


def _adapter(rng: Rng, start: str, members: int, features: int, chunks: Sequence[int] | None = None) -> Any:
    """Start values of a factor for each feature of each member, the same within each chunk; weight decay spares it."""
    if start == "ones":
        return Leaf(rng.full((members, features), 1.0), decay=False)
    if chunks is not None and sum(chunks) != features:
        raise ShapeError(f"chunks are of {sum(chunks)} features together, but a member sees {features}")
    shape = members, features if chunks is None else len(chunks)
    drawn = rng.normal(shape, 1.0) if start == "normal" else rng.uniform(shape, 1.0)

    def values() -> Any:
        signed = drawn if start == "normal" else (drawn >= 0.0) * 2.0 - 1.0
        return signed if chunks is None else signed.repeat(chunks, axis=1)

    return Leaf(rng.computed((members, features), values), decay=False)


@dataclass(frozen=True)
class MemberScale(_OfMembers):
    r"""y_m = x_m r_m for members m: a trained factor for each feature of each of them.

    With x of (n,) or (k, n), y and r are of (k, n); with sums over rows, dL/dr_m = sum of dL/dy_m x_m, dL/dx_m =
    dL/dy_m r_m, and of an x that all see the sum of these over m.

    It is all that differs between the members of TabM-mini, but for their last layer (Gorishniy, Kotelnikov and Babenko
    2025); `Dense` layers after it are shared.  r starts as `start` says: "random_signs", "normal" (rather after
    embeddings) or "ones".  `chunks`, as (4, 4, 1) of features next to each other that come of one column, start alike.
    """

    members: int
    start: Start = "random_signs"
    chunks: Sequence[int] | None = None

    example = (3,)

    def __post_init__(self) -> None:
        self._set(members=whole("members", self.members), start=choice("start", self.start, STARTS))
        self._set(chunks=_chunks(self.chunks))

    def out_shape(self, in_shape: Shape) -> Shape:
        return (self.members, self.features(in_shape))

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {"r": _adapter(rng, self.start, self.members, in_shape[-1], self.chunks)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        rows = _of_members(run, x, self.members)
        return run.xp.reshape(rows * run.xp.reshape(p["r"], (-1,)), (x.shape[0], *p["r"].shape)), (x.ndim, rows)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        (axes, rows), xp = cache, run.xp
        dy = xp.reshape(dy, rows.shape)
        grads = {"r": xp.reshape(run.sum_rows(dy * rows), p["r"].shape)}
        return (_to_rows(run, dy, p["r"], axes) if need_dx else None), grads


def _of_members(run: Run, x: Array, members: int) -> Array:
    """What the members see of each row, side by side: (rows, k n)."""
    if x.ndim == 2:
        x = run.xp.broadcast_to(run.xp.expand_dims(x, axis=1), (x.shape[0], members, x.shape[1]))
    return run.xp.reshape(x, (x.shape[0], -1))


def _to_rows(run: Run, drows: Array, r: Array, axes: int) -> Array:
    """dL/dx of x_m r_m, from dL/d(x_m r_m) side by side; of an x of two axes, which all see, the sum over m."""
    dx = run.xp.reshape(drows * run.xp.reshape(r, (-1,)), (drows.shape[0], *r.shape))
    return run.xp.sum(dx, axis=1) if axes == 2 else dx


def _chunks(chunks: Any) -> tuple[int, ...] | None:
    return None if chunks is None else wholes("chunks", chunks)


class _MemberLayer(_OfMembers):
    """Base of dense layers of members."""

    units: int
    activation: ActivationName | Activation
    bias: bool
    kernel_init: InitializerName | Initializer
    bias_init: InitializerName | Initializer
    ntk: bool

    __repr__ = Dense.__repr__

    def __post_init__(self) -> None:
        self._set(members=whole("members", self.members), units=whole("units", self.units, 1, 2**31 - 1))
        self._check(bias=flag, ntk=flag)
        for name in ("kernel_init", "bias_init"):
            resolve(Initializer, name, getattr(self, name))
        resolve(Activation, "activation", self.activation)

    @cached_property
    def function(self) -> Activation:
        """The activation f."""
        return resolve(Activation, "activation", self.activation)

    def out_shape(self, in_shape: Shape) -> Shape:
        self.features(in_shape)
        return (self.members, self.units)

    def weight(self, rng: Rng, n: int) -> Any:
        """Start values of one W of (n, units)."""
        drawn = resolve(Initializer, "kernel_init", self.kernel_init).draw(rng, (n, self.units), n, self.units)
        return rng.scaled(drawn, math.sqrt(n)) if self.ntk else drawn

    def biases(self, rng: Rng, n: int) -> Any:
        """Those of one b."""
        return resolve(Initializer, "bias_init", self.bias_init).draw(rng, (self.units,), n, self.units)

    def own(self, rng: Rng) -> dict[str, Any]:
        """Those of the activation."""
        own = self.function.init(rng, (self.members, self.units))
        return {"activation": own} if own else {}

    def activated(self, run: Run, p: Params, z: Array) -> tuple[Array, Any]:
        """y = f(z + b) of (rows, k, units) from z, the members side by side, and what the derivative of f reads."""
        xp, shape = run.xp, (z.shape[0], self.members, self.units)
        z = z + xp.reshape(p["bias"], (-1,)) if self.bias else z
        if "activation" in p:
            y, saved = self.function.forward(run, p["activation"], xp.reshape(z, (-1, self.units)))
            return xp.reshape(y, shape), saved
        y = self.function.value(run.backend, z)
        return xp.reshape(y, shape), self.function.saved(z, y)

    def derived(self, run: Run, p: Params, saved: Any, dy: Array) -> tuple[Array, dict[str, Any]]:
        """dL/dz, the members side by side, and the gradients of what f and the biases are trained by."""
        xp, grads = run.xp, {}
        if "activation" in p:
            rows = xp.reshape(dy, (-1, self.units))
            dz, grads["activation"] = self.function.backward(run, p["activation"], saved, rows)
            assert dz is not None
        else:
            rows = xp.reshape(dy, (dy.shape[0], -1))
            dz = self.function.derivative(run.backend, saved, rows)
        dz = xp.reshape(dz, (dy.shape[0], -1))
        if self.bias:
            grads["bias"] = xp.reshape(run.sum_rows(dz), p["bias"].shape)
        return dz, grads


@dataclass(frozen=True, repr=False)
class BatchEnsemble(_MemberLayer):
    r"""y_m = f(((x_m r_m) W) s_m + b_m) for members m, which share W (Wen, Tran and Ba 2020).

    With x of (n,) or (k, n), W is of (n, units), r of (k, n), s and b of (k, units), and y of (k, units).  With h_m =
    (x_m r_m) W, dz = dL/dy f'(z), and sums over rows, and of W over members too,

        dL/db_m = sum of dz_m,    dL/ds_m = sum of dz_m h_m,    dL/dW = (x_m r_m)^T (dz_m s_m),
        dL/dr_m = sum of x_m ((dz_m s_m) W^T),    dL/dx_m = r_m ((dz_m s_m) W^T).

    All members' rows are one product with W.  r starts as `start` says: "ones", or in the first layer "random_signs"
    or, rather after embeddings, "normal", so that members differ, with `chunks` as in `MemberScale`; s starts at 1:
    that is TabM (Gorishniy, Kotelnikov and Babenko 2025), whose last layer is a `MemberDense`.  All b_m start alike.
    The other options are those of `Dense`.  Weight decay is of W alone.
    """

    members: int
    units: int
    activation: ActivationName | Activation = "identity"
    start: Start = "ones"
    chunks: Sequence[int] | None = None
    bias: bool = True
    kernel_init: InitializerName | Initializer = "glorot_uniform"
    bias_init: InitializerName | Initializer = "zeros"
    ntk: bool = False

    example = (3, 5, "relu", "random_signs")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(start=choice("start", self.start, STARTS), chunks=_chunks(self.chunks))
        if self.chunks is not None and self.start == "ones":
            raise OptionError("chunks are of factors that are drawn; expected start='random_signs' or 'normal' with it")

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n, k = in_shape[-1], self.members
        params = {
            "weight": self.weight(rng, n),
            "r": _adapter(rng, self.start, k, n, self.chunks),
            "s": _adapter(rng, "ones", k, self.units),
        }
        if self.bias:
            params["bias"] = Leaf(rng.given((k, self.units), self.biases(rng, n)), decay=False)
        return params | self.own(rng)

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp, (k, n), r = run.xp, p["r"].shape, self._factors(p)
        rows = _of_members(run, x, k)
        scaled = xp.reshape(rows * xp.reshape(r, (-1,)), (-1, n))
        h = xp.reshape(run.matmul(scaled, p["weight"]), (x.shape[0], -1))
        y, saved = self.activated(run, p, h * xp.reshape(p["s"], (-1,)))
        return y, (x.ndim, rows, scaled, h, saved)

    def _factors(self, p: Params) -> Array:
        """r, or with `ntk` r / sqrt(n)."""
        return p["r"] * (1.0 / math.sqrt(p["r"].shape[1])) if self.ntk else p["r"]

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, (axes, rows, scaled, h, saved) = run.xp, cache
        dz, grads = self.derived(run, p, saved, dy)
        grads["s"] = xp.reshape(run.sum_rows(dz * h), p["s"].shape)
        dh = xp.reshape(dz * xp.reshape(p["s"], (-1,)), (-1, self.units))
        grads["weight"] = run.matmul(scaled, dh, transpose_a=True)
        dscaled = xp.reshape(run.matmul(dh, p["weight"], transpose_b=True), rows.shape)
        dr = xp.reshape(run.sum_rows(dscaled * rows), p["r"].shape)
        grads["r"] = dr * (1.0 / math.sqrt(dr.shape[1])) if self.ntk else dr
        return (_to_rows(run, dscaled, self._factors(p), axes) if need_dx else None), grads


@dataclass(frozen=True, repr=False)
class MemberDense(_MemberLayer):
    r"""y_m = f(x_m W_m + b_m) for members m, which share nothing: a `Dense` layer for each of them, computed together.

    With x of (n,) or (k, n), W is of (k, n, units), b and y of (k, units).  With dz = dL/dy f'(z),

        dL/dW_m = x_m^T dz_m,    dL/db_m = sum of dz_m over rows,    dL/dx_m = dz_m W_m^T,

    of an x that all see the sum of these over m.  As the last layer after `BatchEnsemble` or `MemberScale` it gives
    each member outputs of its own (TabM: Gorishniy et al. 2025); alone it is an ensemble of independent networks.  The
    options are those of `Dense`; each W_m and b_m is drawn.
    """

    members: int
    units: int
    activation: ActivationName | Activation = "identity"
    bias: bool = True
    kernel_init: InitializerName | Initializer = "glorot_uniform"
    bias_init: InitializerName | Initializer = "zeros"
    ntk: bool = False

    example = (3, 5, "relu")

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        n = in_shape[-1]
        params = {"weight": self.each(rng, (n, self.units), lambda: self.weight(rng, n))}
        if self.bias:
            params["bias"] = Leaf(self.each(rng, (self.units,), lambda: self.biases(rng, n)), decay=False)
        return params | self.own(rng)

    def each(self, rng: Rng, shape: Shape, draw: Callable[[], Any]) -> Any:
        """Start values for each member, the first of which tell what is wrong where only shapes are wanted."""
        shape, first = (self.members, *shape), draw()
        return rng.computed(shape, lambda: rng.given(shape, [first, *(draw() for _ in range(self.members - 1))]))

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp, (k, n, _) = run.xp, p["weight"].shape
        if x.ndim == 2:
            rows = xp.broadcast_to(xp.expand_dims(x, axis=0), (k, *x.shape))
        else:
            rows = xp.permute_dims(x, (1, 0, 2))
        if self.ntk:
            rows = rows * (1.0 / math.sqrt(n))
        z = xp.reshape(xp.permute_dims(run.matmul(rows, p["weight"]), (1, 0, 2)), (x.shape[0], -1))
        y, saved = self.activated(run, p, z)
        return y, (rows, saved, x.ndim)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, (rows, saved, axes) = run.xp, cache
        dz, grads = self.derived(run, p, saved, dy)
        dz = xp.permute_dims(xp.reshape(dz, dy.shape), (1, 0, 2))
        grads["weight"] = run.matmul(rows, dz, transpose_a=True)
        if not need_dx:
            return None, grads
        dx = run.matmul(dz, p["weight"], transpose_b=True)
        dx = dx * (1.0 / math.sqrt(rows.shape[2])) if self.ntk else dx
        return (xp.sum(dx, axis=0) if axes == 2 else xp.permute_dims(dx, (1, 0, 2))), grads
