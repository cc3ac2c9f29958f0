"""The bilinear layer, a product of two inputs, and its derivative."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.initializers import Initializer
from bpnet.layer import Derivatives, Layer, Params, Rng, Run, Shape
from bpnet.layers.dense import Dense
from bpnet.options import flag, whole
from bpnet.registry import resolve
from bpnet.typing import InitializerName


@dataclass(frozen=True, repr=False)
class Bilinear(Layer):
    r"""y_k = u^T W_k v + b_k of two inputs u and v, as PyTorch's `nn.Bilinear`, which here come side by side.

        bp.Sequential(bp.Inputs(user=bp.Embedding(1000, 8), item=bp.Embedding(500, 16)), bp.Bilinear(1, split=8))

    The first `split` features of x are u and all others v; by default each is half of them.  With n of u, m of v, and W
    of (n, m, units), W_k being W[:, :, k], the chain rule gives

        dL/dW_ijk = sum over rows of u_i v_j dL/dy_k,
        dL/du_i = sum_jk W_ijk v_j dL/dy_k,    dL/dv_j = sum_ik W_ijk u_i dL/dy_k.

    It is a `Dense` layer of all products u_i v_j, and is computed as one where n <= units; where there are fewer units,
    t_jk = sum_i u_i W_ijk are less to keep, and y_k = sum_j t_jk v_j + b_k.  The options are those of `Dense`, with n m
    for fan_in.  Raises ShapeError where there are not so many features.
    """

    units: int
    split: int | None = None
    bias: bool = True
    kernel_init: InitializerName | Initializer = "glorot_uniform"
    bias_init: InitializerName | Initializer = "zeros"

    example = (5,)
    __repr__ = Dense.__repr__

    def __post_init__(self) -> None:
        self._set(units=whole("units", self.units, 1, 2**31 - 1))
        self._check(bias=flag)
        if self.split is not None:
            self._check(split=whole)
        for name in ("kernel_init", "bias_init"):
            resolve(Initializer, name, getattr(self, name))

    def _parts(self, features: int) -> tuple[int, int]:
        """How many features u and v have."""
        n = features // 2 if self.split is None else self.split
        return n, features - n

    def out_shape(self, in_shape: Shape) -> Shape:
        n, m = self._parts(in_shape[-1] if in_shape else 0)
        if min(n, m) < 1 or (self.split is None and n != m):
            expected = "an even number of features" if self.split is None else f"more than {n} features"
            raise ShapeError(f"{self} is of two inputs side by side, but rows are {in_shape}; expected {expected}")
        return (*in_shape[:-1], self.units)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        (n, m), units = self._parts(in_shape[-1]), self.units
        kernel_init, bias_init = (resolve(Initializer, k, getattr(self, k)) for k in ("kernel_init", "bias_init"))
        params = {"weight": kernel_init.draw(rng, (n, m, units), n * m, units)}
        return params | {"bias": bias_init.draw(rng, (units,), n * m, units)} if self.bias else params

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        xp, w = run.xp, p["weight"]
        n, m, units = w.shape
        rows = xp.reshape(x, (-1, n + m))
        u, v = rows[:, :n], rows[:, n:]
        if n <= units:
            made = xp.reshape(xp.expand_dims(u, axis=2) * xp.expand_dims(v, axis=1), (-1, n * m))
            y = run.matmul(made, xp.reshape(w, (n * m, units)))
        else:
            made = xp.reshape(run.matmul(u, xp.reshape(w, (n, m * units))), (-1, m, units))
            y = xp.sum(made * xp.expand_dims(v, axis=2), axis=1)
        if self.bias:
            y = y + p["bias"]
        return xp.reshape(y, (*x.shape[:-1], units)), (u, v, made)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        xp, w, (u, v, made) = run.xp, p["weight"], cache
        n, m, units = w.shape
        rows = xp.reshape(dy, (-1, units))
        grads = {"bias": run.sum_rows(rows)} if self.bias else {}
        of_t = n > units
        if of_t:
            dt = xp.reshape(xp.expand_dims(rows, axis=1) * xp.expand_dims(v, axis=2), (-1, m * units))
            dw = run.matmul(u, dt, transpose_a=True)
        else:
            dw = run.matmul(made, rows, transpose_a=True)
        grads["weight"] = xp.reshape(dw, w.shape)
        if not need_dx:
            return None, grads
        if of_t:
            du = run.matmul(dt, xp.reshape(w, (n, m * units)), transpose_b=True)
            dv = xp.sum(xp.expand_dims(rows, axis=1) * made, axis=2)
        else:
            of_products = run.matmul(rows, xp.reshape(w, (n * m, units)), transpose_b=True)
            of_products = xp.reshape(of_products, (-1, n, m))
            du = xp.sum(of_products * xp.expand_dims(v, axis=1), axis=2)
            dv = xp.sum(of_products * xp.expand_dims(u, axis=2), axis=1)
        dx = xp.concat([du, dv], axis=1)
        return xp.reshape(dx, (*dy.shape[:-1], n + m)), grads
