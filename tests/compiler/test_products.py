"""A user's layer with products of its own is compiled to what the library's layers are compiled to."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import bpnet as bp
from bpnet.backends.tracing import TracingBackend
from bpnet.backpropagation import loss_and_gradient
from bpnet.compiler.bfloat16 import round_factors
from bpnet.compiler.build import build
from bpnet.compiler.commands import CommandList, Product
from bpnet.compiler.interpret import interpret
from bpnet.compiler.trace import trace
from bpnet.compiler.verify import verify_commands


@dataclass(frozen=True)
class HandWrittenDense(bp.Layer):
    """y = max(x W + b, 0), as a user writes it."""

    units: int

    def out_shape(self, in_shape: Any) -> Any:
        return (*in_shape[:-1], self.units)

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {"weight": rng.normal((in_shape[-1], self.units), 0.1), "bias": rng.full((self.units,), 0.0)}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        y = run.xp.maximum(run.matmul(x, p["weight"]) + p["bias"], 0.0)
        return y, (x, y)

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        x, y = cache
        dz = dy * run.xp.astype(y > 0.0, dy.dtype)
        grads = {"weight": run.matmul(x, dz, transpose_a=True), "bias": run.sum_rows(dz)}
        return (run.matmul(dz, p["weight"], transpose_b=True) if need_dx else None), grads


@dataclass(frozen=True)
class HandWrittenBilinear(bp.Layer):
    """y = (x U) (x V), entry by entry."""

    units: int

    def out_shape(self, in_shape: Any) -> Any:
        return (*in_shape[:-1], self.units)

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {name: rng.normal((in_shape[-1], self.units), 0.1) for name in "uv"}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        left, right = run.matmul(x, p["u"]), run.matmul(x, p["v"])
        return left * right, (x, left, right)

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        x, left, right = cache
        du, dv = dy * right, dy * left
        grads = {"u": run.matmul(x, du, transpose_a=True), "v": run.matmul(x, dv, transpose_a=True)}
        if not need_dx:
            return None, grads
        return run.matmul(du, p["u"], transpose_b=True) + run.matmul(dv, p["v"], transpose_b=True), grads


def commands(network: bp.Layer) -> CommandList:
    """What the loss and the gradient of a batch of 64 rows of 20 features are compiled to."""
    layout, loss = bp.layout_of(network, (20,)), bp.MeanSquaredError()

    def gradient(graph: Any, symbols: Any) -> Any:
        theta, x, y = symbols
        backend = TracingBackend(graph, lambda rows, work: [(0, rows)])
        return list(loss_and_gradient(backend, theta, None, x, y, None, None, 1, layout=layout, loss=loss)[:2])

    arrays = [((layout.size,), "float32"), ((64, 20), "float32"), ((64, 3), "float32")]
    return build(trace(gradient, arrays), 0)


def test_a_dense_layer_of_the_users_is_compiled_to_the_same_commands() -> None:
    ours = bp.Sequential(bp.Dense(32, "relu"), bp.Dense(16, "relu"), bp.Dense(3))
    theirs = bp.Sequential(HandWrittenDense(32), HandWrittenDense(16), bp.Dense(3))
    assert str(commands(theirs)) == str(commands(ours))
    assert [c.kernel for c in commands(theirs).commands if not isinstance(c, Product)] == [
        c.kernel for c in commands(ours).commands if not isinstance(c, Product)
    ]


def test_a_bilinear_layer_is_its_products_and_few_passes_over_memory() -> None:
    made = commands(bp.Sequential(bp.Dense(32, "relu"), HandWrittenBilinear(16), bp.Dense(3)))
    products = sorted((c.rows, c.inner, c.columns) for c in made.commands if isinstance(c, Product))
    forward = [(64, 20, 32), (64, 32, 16), (64, 32, 16), (64, 16, 3)]
    backward = [(16, 64, 3), (64, 3, 16), *[(32, 64, 16), (64, 16, 32)] * 2, (20, 64, 32)]
    assert products == sorted(forward + backward)
    dense = commands(bp.Sequential(bp.Dense(32, "relu"), bp.Dense(16), bp.Dense(3)))
    fused = [sum(not isinstance(c, Product) for c in some.commands) for some in (made, dense)]
    assert fused[0] <= fused[1] + 2, "the product of both, and the derivatives of both"


def test_all_matrices_of_a_stack_are_rounded() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 8, 16), np.float32), rng.random((3, 16, 8), np.float32)
    traced = trace(lambda graph, s: [graph.matmul(s[0] * 2.0, s[1])], [(a.shape, "float32"), (b.shape, "float32")])
    commands = round_factors(build(traced))
    verify_commands(commands)
    (found,) = interpret(commands, [a, b])
    np.testing.assert_allclose(found, 2.0 * a @ b, rtol=0.01)
