"""Ensembles in one network: k members side by side, on an axis of their own, in one batched pass.

Rows are of (n,), which all members see, or of (k, n), one for each; what comes out is of (k, units).  With the loss
`bp.Members(loss)` each member learns by itself, and what the ensemble says is the mean of what they predict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError
from bpnet.initializers import Initializer
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.layers.activation import Activation
from bpnet.layers.dense import Dense
from bpnet.options import choice, flag, whole
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
        return (x if x.ndim == 3 else run.xp.expand_dims(x, axis=1)) * p["r"], x

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        dx, dr = _scaled_backward(run, cache, p["r"], dy, need_dx)
        return dx, {"r": dr}


def _scaled_backward(run: Run, x: Array, r: Array, dy: Array, need_dx: bool) -> tuple[Array | None, Array]:
    """dL/dx and dL/dr of y_m = x_m r_m."""
    xp = run.xp
    shared = x.ndim == 2
    dr = run.sum_rows(xp.reshape(dy * (xp.expand_dims(x, axis=1) if shared else x), (dy.shape[0], -1)))
    dx = dy * r if need_dx else None
    return (xp.sum(dx, axis=1) if dx is not None and shared else dx), xp.reshape(dr, r.shape)


def _chunks(chunks: Any) -> tuple[int, ...] | None:
    return None if chunks is None else tuple([whole(f"chunks[{i}]", c) for i, c in enumerate(chunks)])


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
        """f(z), and what its derivative reads."""
        if "activation" in p:
            return self.function.forward(run, p["activation"], z)
        y = self.function.value(run.backend, z)
        return y, self.function.saved(z, y)

    def derived(self, run: Run, p: Params, saved: Any, dy: Array) -> tuple[Array, dict[str, Any]]:
        """dL/dz, and the gradients of what f and the biases are trained by."""
        xp, grads = run.xp, {}
        if "activation" in p:
            dz, grads["activation"] = self.function.backward(run, p["activation"], saved, dy)
            assert dz is not None
        else:
            dz = self.function.derivative(run.backend, saved, dy)
        if self.bias:
            grads["bias"] = xp.reshape(run.sum_rows(xp.reshape(dz, (dz.shape[0], -1))), dz.shape[1:])
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
        xp, (k, n) = run.xp, p["r"].shape
        r = p["r"] * (1.0 / math.sqrt(n)) if self.ntk else p["r"]
        rows = xp.reshape((x if x.ndim == 3 else xp.expand_dims(x, axis=1)) * r, (-1, n))
        h = xp.reshape(run.matmul(rows, p["weight"]), (-1, k, self.units))
        z = h * p["s"]
        y, saved = self.activated(run, p, z + p["bias"] if self.bias else z)
        return y, (x, r, rows, h, saved)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, (x, r, rows, h, saved) = run.xp, cache
        dz, grads = self.derived(run, p, saved, dy)
        grads["s"] = xp.reshape(run.sum_rows(xp.reshape(dz * h, (dz.shape[0], -1))), p["s"].shape)
        dh = xp.reshape(dz * p["s"], (-1, self.units))
        grads["weight"] = run.matmul(rows, dh, transpose_a=True)
        drows = xp.reshape(run.matmul(dh, p["weight"], transpose_b=True), (-1, *r.shape))
        dx, dr = _scaled_backward(run, x, r, drows, need_dx)
        return dx, grads | {"r": dr * (1.0 / math.sqrt(r.shape[1])) if self.ntk else dr}


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
        n, k = in_shape[-1], self.members
        params = {"weight": rng.given((k, n, self.units), [self.weight(rng, n) for _ in range(k)])}
        if self.bias:
            params["bias"] = Leaf(rng.given((k, self.units), [self.biases(rng, n) for _ in range(k)]), decay=False)
        return params | self.own(rng)

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp, (k, n, _) = run.xp, p["weight"].shape
        if x.ndim == 2:
            rows = xp.broadcast_to(xp.expand_dims(x, axis=0), (k, *x.shape))
        else:
            rows = xp.permute_dims(x, (1, 0, 2))
        if self.ntk:
            rows = rows * (1.0 / math.sqrt(n))
        z = xp.permute_dims(run.matmul(rows, p["weight"]), (1, 0, 2))
        y, saved = self.activated(run, p, z + p["bias"] if self.bias else z)
        return y, (rows, saved, x.ndim)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, (rows, saved, axes) = run.xp, cache
        dz, grads = self.derived(run, p, saved, dy)
        dz = xp.permute_dims(dz, (1, 0, 2))
        grads["weight"] = run.matmul(rows, dz, transpose_a=True)
        if not need_dx:
            return None, grads
        dx = run.matmul(dz, p["weight"], transpose_b=True)
        dx = dx * (1.0 / math.sqrt(rows.shape[2])) if self.ntk else dx
        return (xp.sum(dx, axis=0) if axes == 2 else xp.permute_dims(dx, (1, 0, 2))), grads
