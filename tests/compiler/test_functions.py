"""Functions of arrays as a layer may be made of them: eager NumPy, the interpreter, machine code and CUDA agree."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.compiler.commands import Call
from bpnet.compiler.interpret import interpret

RNG = np.random.default_rng(0)
A, T, Q = (RNG.standard_normal(shape).astype("float32") for shape in ((4, 5), (3, 4, 5), (2, 3, 4, 5)))
B = RNG.standard_normal((5, 6)).astype("float32")
N = np.array([2, 0, 1, 2, -1], "int64")
M = A > 0.0


def unit(xp: Any, v: Any) -> Any:
    """v / |v|, as a row: of one entry, where it is a sum over longer ones."""
    row = xp.reshape(v, (1, -1))
    return row / xp.sqrt(xp.sum(row * row, axis=-1, keepdims=True)) + xp.max(row, axis=0) - xp.min(row)


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "permute": (lambda xp, t: xp.permute_dims(t, (2, 0, 1)) * 2.0, (T,)),
    "perm4": (lambda xp, q: xp.permute_dims(q, (3, 1, 0, 2)) + 1.0, (Q,)),
    "transpose elementwise": (lambda xp, a: xp.permute_dims(a, (1, 0)) + 1.0, (A,)),
    "slice cols": (lambda xp, a: a[:, 1:4] * 2.0, (A,)),
    "slice step": (lambda xp, t: t[::2, 1:, ::-1] + 0.5, (T,)),
    "index": (lambda xp, t: t[1] * t[:, 2].sum() if False else t[1] * 2.0, (T,)),
    "index mid": (lambda xp, t: t[:, -1] * 1.0, (T,)),
    "none": (lambda xp, a: a[:, None, :] * T, (A,))
    if False
    else (
        lambda xp, a, t: t * a[None],
        (A, T),
    ),
    "broadcast mid": (
        lambda xp, t, a: t + xp.reshape(a[:, 0], (4, 1)) * 2.0,
        (T, A),
    ),
    "broadcast 3": (lambda xp, t: t / xp.sum(t, axis=1, keepdims=True), (T,)),
    "sum mid": (lambda xp, t: xp.sum(t, axis=1), (T,)),
    "sum last": (lambda xp, t: xp.sum(t, axis=-1), (T,)),
    "sum of one": (lambda xp, a: unit(xp, xp.sum(a[:1] * a[:1], axis=1)), (A,)),
    "sum first": (lambda xp, t: xp.sum(t * t, axis=0), (T,)),
    "sum two": (lambda xp, t: xp.sum(t * t, axis=(0, 2)), (T,)),
    "sum 01": (lambda xp, t: xp.sum(t * t, axis=(0, 1)), (T,)),
    "max mid": (lambda xp, t: xp.max(t, axis=1), (T,)),
    "max 0": (lambda xp, a: xp.max(a, axis=0), (A,)),
    "var": (lambda xp, t: xp.var(t, axis=-1, keepdims=True) * xp.std(t, axis=1, correction=1)[:, None, :], (T,)),
    "layernorm": (
        lambda xp, t: (t - xp.mean(t, axis=-1, keepdims=True)) / xp.sqrt(xp.var(t, axis=-1, keepdims=True) + 1e-5),
        (T,),
    ),
    "softmax mid": (
        lambda xp, t: (
            xp.exp(t - xp.max(t, axis=1, keepdims=True))
            / xp.sum(xp.exp(t - xp.max(t, axis=1, keepdims=True)), axis=1, keepdims=True)
        ),
        (T,),
    ),
    "matmul": (
        lambda xp, a, b: xp.matmul(a, b),
        (A, B),
    ),
    "batched": (
        lambda xp, t, b: xp.matmul(t, b),
        (T, B),
    ),
    "batched2": (lambda xp, t: xp.matmul(t, xp.matrix_transpose(t)), (T,)),
    "batched3": (
        lambda xp, a, t: xp.matmul(xp.permute_dims(t, (0, 2, 1)), a),
        (A, T),
    ),
    "batched4": (
        lambda xp, q, t: xp.matmul(q, xp.permute_dims(t, (0, 2, 1))),
        (Q, T),
    ),
    "attention": (lambda xp, t: xp.matmul(xp.exp(xp.matmul(t, xp.matrix_transpose(t)) * 0.1), t), (T,)),
    "pow": (lambda xp, a: a**2 + a**3.0 - xp.abs(a) ** 0.5 + (a * a + 1.0) ** -1.5 + xp.pow(a, 4), (A,)),
    "sign": (lambda xp, a: xp.sign(a) * a, (A,)),
    "mask out": (lambda xp, a: xp.where(xp.logical_and(a > 0.0, xp.logical_not(a > 1.0)), a, 0.0), (A,)),
    "isfinite": (lambda xp, a: xp.where(xp.isfinite(a / xp.where(a > 0.0, 0.0, 1.0)), a, 7.0), (A,)),
    "concat1": (lambda xp, a: xp.concat([a, 2.0 * a, a[:, :2]], axis=1), (A,)),
    "concat2": (lambda xp, t: xp.concat([t, xp.exp(t)], axis=-1), (T,)),
    "stack": (lambda xp, a: xp.stack([a, a * 2.0], axis=1), (A,)),
    "flip": (lambda xp, t: xp.flip(t, axis=1) * 1.0, (T,)),
    "take": (
        lambda xp, t, i: xp.take(t, i, axis=1),
        (T, N),
    ),
    "take0": (
        lambda xp, t, i: xp.take(t, i, axis=0) * 2.0,
        (T, N),
    ),
    "take computed": (
        lambda xp, a, t: xp.take(t, xp.argmax(a, axis=0), axis=1),
        (A, T),
    ),
    "whole numbers": (lambda xp, a: xp.astype(xp.astype(3.0 * a, xp.int64), a.dtype) + xp.trunc(5.0 * a), (A,)),
    "take by whole numbers": (
        lambda xp, a, b: xp.take(b, xp.astype(xp.minimum(xp.abs(4.0 * a[:, 0]), 4.5), xp.int32), axis=0) * 2.0,
        (A, B),
    ),
    "argmax mid": (lambda xp, t: xp.astype(xp.argmax(t, axis=1), t.dtype) * 2.0, (T,)),
    "bool array": (
        lambda xp, a, m: xp.where(m, a, -a) + xp.astype(m, a.dtype),
        (A, M),
    ),
    "int array": (
        lambda xp, a, i: xp.sum(a, axis=0) + xp.astype(i, a.dtype),
        (A, N),
    ),
    "cumsum": (lambda xp, a: 2.0 * xp.cumulative_sum(a * a, axis=1) + 1.0, (A,)),
    "sort": (lambda xp, a: xp.sort(xp.exp(a), axis=0) * a, (A,)),
    "sin": (lambda xp, t: xp.sum(xp.sin(t) * xp.cos(t * 2.0), axis=-1), (T,)),
    "searchsorted": (lambda xp, a: xp.astype(xp.searchsorted(xp.sort(a[0]), a[1]), a.dtype) + a[0], (A,)),
    "concat called": (lambda xp, a: xp.concat([xp.floor(a), a]), (A,)),
    "zeros": (lambda xp, a: xp.zeros_like(a) + xp.full_like(a, 3.0) * a, (A,)),
    "ones": (lambda xp, a: xp.ones_like(a), (A,)),
    "clip": (lambda xp, a: xp.clip(a, -0.5, 0.5), (A,)),
    "all": (
        lambda xp, t: xp.astype(xp.any(t > 1.0, axis=1), t.dtype) + xp.astype(xp.all(t > -1.0, axis=(0, 1)), t.dtype),
        (T,),
    ),
    "expand": (lambda xp, a: xp.expand_dims(a, axis=1) * xp.expand_dims(a, axis=0), (A,)),
    "outer": (lambda xp, a: a[:, :1] * a[:1, :], (A,)),
    "squeeze": (lambda xp, a: xp.squeeze(a[:, :1], axis=1) * 2.0, (A,)),
    "view of view": (lambda xp, t: xp.reshape(t[1:], (-1, 5))[2:5] * 2.0, (T,)),
}
CALLED = {"cumsum", "sort", "searchsorted", "concat called"}
"""Those that have a part which is called as it stands."""
SORTS = {"cumsum", "sort", "searchsorted"}
"""Of these, what CuPy does by libraries that need a device."""


def executable(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    from bpnet.backends.numpy.compiled import Executable

    return Executable(lambda b, *a: function(b.xp, *a), args, False, 2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_arrays_is_compiled(name: str) -> None:
    pytest.importorskip("llvmlite")
    function, args = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        expected = np.asarray(function(array_api_compat.numpy, *args))
        made = executable(function, args)
        (found,) = interpret(made.commands, list(args))
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(made.caller(args)(None, 0, *args), expected, rtol=3e-6, atol=3e-6)
    assert any(isinstance(c, Call) for c in made.commands.commands) == (name in CALLED)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in SORTS])
def test_a_function_of_arrays_is_compiled_for_cuda(name: str, world: Any) -> None:
    from bpnet.backends.cupy.compiled import Compiled

    function, args = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        expected = np.asarray(function(array_api_compat.numpy, *args))
    made = Compiled(lambda b, *a: function(b.xp, *a), world.seam)
    found = world.cupy.asnumpy(made(*map(world.array, args)))
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)


# ---- layers that can't be traced as a whole -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Erf(bp.Layer):
    """y = erf(x), by a function that knows NumPy's arrays only."""

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        return np.vectorize(math.erf, otypes=[x.dtype])(x), x

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
        return dy * (2.0 / math.sqrt(math.pi)) * run.xp.exp(-cache * cache), {}


@dataclass(frozen=True)
class _Decides(bp.Layer):
    """y = 2 x or x / 2, by the sign of the sum of all of x."""

    couples_rows = True

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        factor = 2.0 if run.xp.sum(x) > 0.0 else 0.5
        return factor * x, factor

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
        return cache * dy, {}


@dataclass(frozen=True)
class _Noise(bp.Layer):
    """y = x times random factors, drawn where nothing can be traced."""

    stochastic = True

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        mask = run.keep_mask(x.shape, 0.5, x)
        return np.asarray(mask) * x, mask

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
        return cache * dy, {}


@pytest.mark.parametrize("layer", [_Erf(), _Decides(), bp.Residual(_Decides()), _Noise()], ids=str)
def test_what_cannot_be_traced_costs_only_itself(layer: bp.Layer, jit: Any) -> None:
    """The same values as without the compiler, for batches on which a layer decides otherwise, and most is compiled."""
    net = bp.Sequential(bp.Dense(8, "relu"), layer, bp.Dense(3))
    trainers = [bp.Trainer(net, "cross_entropy", "adam", seed=3) for _ in range(2)]
    losses = []
    for trainer, choice in zip(trainers, (False, True), strict=True):
        jit(choice)
        rng = np.random.default_rng(1)
        losses.append([])
        for turn in range(6):
            x = rng.standard_normal((40, 5)).astype("float32") + (-2.0) ** (turn % 3)
            losses[-1].append(float(trainer.step(x.astype("float32"), rng.integers(0, 3, 40))))
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-6)
    np.testing.assert_allclose(trainers[1].theta, trainers[0].theta, rtol=2e-5, atol=2e-7)


@dataclass(frozen=True)
class _Fickle(bp.Layer):
    """Keeps text in its cache that depends on values."""

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        return x * 1.0, "large" if float(run.xp.max(x)) > 5.0 else "small"

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
        return dy * (2.0 if cache == "large" else 1.0), {}


def test_what_compiled_code_relies_on_may_not_change(jit: Any) -> None:
    jit(True)
    trainer = bp.Trainer(bp.Sequential(bp.Dense(3), _Fickle(), bp.Dense(2)), "mse")
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")
    trainer.step(x, y)
    before = np.array(trainer.theta)
    with pytest.raises(bp.errors.ArgumentError, match=r"forward of _Fickle\(\).*it gave .*large.* but .*small"):
        trainer.step(100.0 * x, y)
    np.testing.assert_array_equal(trainer.theta, before)


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    pytest.importorskip("llvmlite")
    return lambda on: compiles(monkeypatch, on)


# ---- a user's layer is compiled like ours ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _LayerNorm(bp.Layer):
    """y = scale xhat + shift with xhat of mean 0 and variance 1 along each row (Ba, Kiros and Hinton 2016)."""

    epsilon: float = 1e-5

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {"scale": rng.full(in_shape[-1:], 1.0), "shift": rng.full(in_shape[-1:], 0.0)}

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        xp = run.xp
        centred = x - xp.mean(x, axis=-1, keepdims=True)
        inverse = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
        xhat = centred * inverse
        return xhat * p["scale"] + p["shift"], (xhat, inverse)

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
        xp, (xhat, inverse) = run.xp, cache
        grads = {"scale": run.sum_rows(dy * xhat), "shift": run.sum_rows(dy)}
        g = dy * p["scale"]
        along = xp.mean(g * xhat, axis=-1, keepdims=True)
        return inverse * (g - xp.mean(g, axis=-1, keepdims=True) - xhat * along), grads


def test_layer_normalization_adds_no_command(jit: Any) -> None:
    """Its forward pass is done by the kernel of the layer before it, its derivative by that of the same layer."""
    jit(True)
    x, y = np.zeros((64, 32), "float32"), np.zeros(64, "int64")

    def kinds(*layers: Any) -> list[str]:
        trainer = bp.Trainer(bp.Sequential(*layers), "cross_entropy")
        trainer.step(x, y)
        commands = trainer._engine.step.compiled().last[1].executable.commands.commands
        return [type(command).__name__ for command in commands]

    with_it = kinds(bp.Dense(32, "tanh"), _LayerNorm(), bp.Dense(10))
    assert with_it == kinds(bp.Dense(32, "tanh"), bp.Dense(10))


@pytest.mark.parametrize("features", [32, 1000, 2048])
def test_layer_normalization_is_two_launches_and_two(features: int, world: Any) -> None:
    """With its column-wise sums over many rows, whatever is before it; and it equals NumPy's."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((512, 5), dtype="float32"), rng.integers(0, 10, 512)

    def launched(*layers: Any) -> tuple[int, Any]:
        trainer = bp.Trainer(bp.Sequential(*layers), "cross_entropy", "sgd")
        batch = world.array(x), world.array(y)
        trainer.step(*batch, check=False)
        before = world.counts["kernel"]
        trainer._engine.step.captures = False
        trainer.step(*batch, check=False)
        return world.counts["kernel"] - before, trainer

    with_it, trainer = launched(bp.Dense(features, "tanh"), _LayerNorm(), bp.Dense(10))
    assert with_it - launched(bp.Dense(features, "tanh"), bp.Dense(10))[0] <= 2 + 2
    plain = bp.Trainer(trainer.network, "cross_entropy", "sgd", compile=False)
    for _ in range(2):
        plain.step(x, y)
    np.testing.assert_allclose(world.cupy.asnumpy(trainer.theta), plain.theta, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class _AddsAndClips(bp.Layer):
    """max(x + b, 0), as an epilogue does it, where no product is."""

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {"b": rng.full(in_shape, 0.25)}

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        y = run.xp.maximum(x + p["b"], 0.0)
        return y, y

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
        dx = dy * run.xp.astype(cache > 0.0, dy.dtype)
        return dx, {"b": run.sum_rows(dx)}


def test_a_bias_is_rounded_before_it_is_read(world: Any) -> None:
    """That of a product alone, and no other is read rounded."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 16), dtype="float32"), rng.integers(0, 8, 40)
    network = bp.Sequential(_AddsAndClips(), bp.Dense(8))
    rounded = bp.Trainer(network, "cross_entropy", "sgd", precision="bfloat16")
    exact = bp.Trainer(network, "cross_entropy", "sgd")
    for _ in range(3):
        found, expected = float(rounded.step(world.array(x), world.array(y))), float(exact.step(x, y))
        assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("network", "features"),
    [
        (bp.Sequential(bp.Dense(1, "relu"), bp.Dropout(0.5), bp.Dense(3)), 17),
        (bp.Sequential(bp.Dropout(0.5), bp.BatchNorm(), bp.Dense(3)), 1),
        (bp.Sequential(bp.Dense(9), bp.Softmax(), bp.Dense(1), bp.Dropout(0.5), bp.Dense(3)), 17),
    ],
)
def test_masks_of_one_column(network: Any, features: int, jit: Any, world: Any) -> None:
    """They have an entry for each row, and so are not drawn in kernels of wider rows."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((45, features), dtype="float32"), rng.integers(0, 3, 45)
    trainers = [bp.Trainer(network, "cross_entropy", "adam", seed=1, compile=way) for way in (False, True, "auto")]
    for _ in range(3):
        plain, compiled = (float(trainer.step(x, y)) for trainer in trainers[:2])
        on_device = float(trainers[2].step(world.array(x), world.array(y)))
        assert [compiled, on_device] == pytest.approx([plain] * 2, rel=1e-5)


@dataclass(frozen=True)
class _FiveTimes(bp.SGD):
    """Gradient descent with five times the learning rate where that is exactly 0.5."""

    names = {}

    def elementwise(self, b: Any, theta: Any, *args: Any) -> tuple[Any, ...]:
        grad, lr = args
        return (theta - (5.0 if lr == 0.5 else 1.0) * lr * grad,)


@pytest.mark.filterwarnings("ignore:a training step runs without the compiler")
@pytest.mark.parametrize("compiles", [False, True])
def test_a_rule_that_decides_by_a_number_takes_the_right_branch(compiles: bool, jit: Any) -> None:
    jit(compiles)
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")
    found = []
    for optimizer in (_FiveTimes(0.5), bp.SGD(2.5)):
        trainer = bp.Trainer(bp.Dense(2), "mse", optimizer)
        trainer.step(x, y)
        found.append(np.array(trainer.theta))
    np.testing.assert_array_equal(*found)
