"""Sums of many numbers: on every library, compiled or not, their errors are like those of pairwise summation."""

import math
import time
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.backends import common_backend
from bpnet.backends.base import by_halves

SHAPES = [(100_000, 1), (30_000, 3), (2_000, 70), (65, 17), (7, 40_000), (1, 30_000), (1, 1)]
"""Long and narrow, wide and short, and around the sizes at which sums are cut into parts."""


def error(found: Any, x: Any, axis: int | None) -> float:
    """How far sums of float32 are from the right ones, in units of the last place of the sums of absolute values."""
    x = x.astype(np.float64)
    off = np.abs(np.asarray(found, np.float64) - x.sum(axis=axis)) / np.abs(x).sum(axis=axis)
    return float(np.max(off)) / float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("kind", ["equal", "random", "alternating"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_many_are_as_good_as_pairwise(backend: Any, shape: tuple[int, int], kind: str) -> None:
    if backend.name in ("jax", "jax-jit") and kind != "equal":
        pytest.skip("JAX's sums are its own: one kind of numbers shows that they are good")
    x = np.full(shape, 0.1, np.float32)  # all of whose roundings go the same way
    if kind != "equal":
        x = (1.0 + np.random.default_rng(0).random(shape)).astype(np.float32)
    if kind == "alternating":
        x[1::2] *= -1.0

    def sums(x: Any) -> Any:
        xp = backend.seam.xp
        return bp.Run(backend.seam).sum_rows(x), xp.sum(x, axis=1), xp.sum(x)

    columns, rows, full = map(backend.host, backend.call(sums, backend.array(x)))
    for found, axis, count in ((columns, 0, shape[0]), (rows, 1, shape[1]), (full, None, x.size)):
        assert error(found, x, axis) <= 4.0 + math.log2(count) / 2.0


@pytest.mark.parametrize("rows", [1_000, 20_000])
def test_what_users_layers_sum_up_is_as_good_when_compiled(library: Any, rows: int, monkeypatch: Any) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    lib = library("numpy-jit")
    compiles(monkeypatch, True)
    x = np.full((rows, 6), 0.1, np.float32)

    def sums(x: Any) -> Any:
        xp = lib.seam.xp
        each = xp.sum(x * x, axis=1, keepdims=True)
        return xp.sum(x, axis=0), xp.mean(x + 0.0, axis=0), xp.sum(each), xp.sum(each * x), xp.max(x), xp.sum(-x)

    found = lib.call(sums, x)
    each = (x.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
    right = [x.astype(np.float64).sum(axis=0), x[0], each.sum(), (each * x).sum(), x[0, 0], -x.astype(np.float64).sum()]
    for mine, exact in zip(found, right, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=2e-6)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (200, 40), (2, 5000)])
def test_sums_of_what_is_not_finite(library: Any, rows: int, columns: int, monkeypatch: Any) -> None:
    """What is infinite is not made something that is not a number."""
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    lib = library("numpy-jit")
    compiles(monkeypatch, True)

    def sums(x: Any) -> Any:
        xp = lib.seam.xp
        return xp.sum(x, axis=0), xp.sum(x, axis=1), xp.sum(x), xp.sum(x[1:, ...])

    x = np.ones((rows, columns), np.float32)
    for value in (math.inf, -math.inf, math.nan, 3e38):
        x[0, :] = value
        for found, axis in zip(lib.call(sums, x), (0, 1, None), strict=False):
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(found, x.sum(axis=axis, dtype=np.float64).astype(np.float32))
        assert lib.call(sums, x)[3] == (rows - 1) * columns


def test_parts_are_added_by_halves() -> None:
    for count in range(1, 20):
        text = by_halves(map(str, range(count)), lambda x, y: f"({x} {y})")
        assert text.replace("(", "").replace(")", "") == " ".join(map(str, range(count)))
        assert max(text[:i].count("(") - text[:i].count(")") for i in range(len(text))) <= math.ceil(math.log2(count))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 65, 100, 512, 1000])
def test_few_sums_of_large_parts_are_held(count: int) -> None:
    alive: set[int] = set()
    held: list[int] = []

    def part(first: int, size: int, depth: int) -> tuple[int, int, int]:
        alive.add(first)
        held.append(len(alive))
        return first, size, depth

    def add(a: Any, b: Any) -> Any:
        assert b[0] == a[0] + a[1]  # neighbours, in order
        alive.discard(b[0])
        return part(a[0], a[1] + b[1], max(a[2], b[2]) + 1)

    first, size, depth = by_halves((part(i, 1, 0) for i in range(count)), add, count)
    assert (first, size) == (0, count)
    assert max(held) <= 4  # the newest part, and three sums
    assert depth <= max(3, 3 * (math.ceil(round(count ** (1 / 3), 9)) - 1) + 2)


@pytest.mark.parametrize("parts", [64, 1_000])
def test_the_gradient_of_many_parts(backend: Any, parts: int) -> None:
    """Each part gives the bias a gradient of the same size, and float32 would lose much of a running sum."""
    if ("jax" in backend.name or backend.name == "numpy-jit") and parts > 64:
        pytest.skip("it takes a compiler long to plan so many parts")
    if backend.name == "jax":
        pytest.skip("tested compiled")
    rng = np.random.default_rng(0)
    x, y = np.zeros((parts, 1), np.float32), rng.uniform(1.0, 2.0, (parts, 3)).astype(np.float32)
    start = {"weight": backend.array(np.zeros((1, 3), "f4")), "bias": backend.array(np.zeros(3, "f4"))}
    trainer = bp.Trainer(bp.Dense(3), "mse", bp.SGD(1.0), micro_batch=1).build(backend.array(x))
    trainer.parameters = start
    trainer.step(backend.array(x), backend.array(y))
    expected = 2.0 / 3.0 * y.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(backend.host(trainer.parameters["bias"]), expected, rtol=5e-7)


def test_a_gradient_is_added_before_its_memory_is_written_to_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are at work while the sums of others are made, here slowly."""
    backend, add_to = type(common_backend({"x": np.zeros(1)})), type(common_backend({"x": np.zeros(1)})).add_to

    def slowly(self: Any, total: Any, part: Any) -> Any:
        time.sleep(1e-4)
        return add_to(self, total, part)

    monkeypatch.setattr(backend, "add_to", slowly)
    y = np.random.default_rng(0).uniform(1.0, 2.0, (300, 3)).astype(np.float32)
    trainer = bp.Trainer(bp.Dense(3), "mse", bp.SGD(1.0), micro_batch=1, threads=2).build(np.zeros((300, 1), "f4"))
    before = np.array(trainer.parameters["bias"])
    trainer.step(np.zeros((300, 1), np.float32), y)
    expected = before + 2.0 / 3.0 * (y.astype(np.float64).mean(axis=0) - before)
    np.testing.assert_allclose(trainer.parameters["bias"], expected, rtol=1e-6)


# ---- what is made of sums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1_024, 3), (5_000, 3), (600, 130)], ids=str)
@pytest.mark.parametrize("ratio", [1e2, 1e5])
def test_batch_statistics_beside_a_large_mean(backend: Any, shape: tuple[int, int], ratio: float) -> None:
    """Mean and variance are right to what float32 can hold, however large the mean is beside the deviation."""
    if backend.name == "jax":
        pytest.skip("tested compiled")
    x = (ratio * 3.0 + 3.0 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    exact = x.astype(np.float64)
    trainer = bp.Trainer(bp.Sequential(bp.BatchNorm(momentum=0.0), bp.Dense(1)), "mse", bp.SGD(1e-3))
    trainer.build(backend.array(x))
    trainer.step(backend.array(x), backend.array(np.zeros((shape[0], 1), np.float32)))
    mean, var = backend.host(trainer.buffers).reshape(2, -1)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1.3e-7)
    np.testing.assert_allclose(var, exact.var(axis=0, ddof=1), rtol=5e-6)
    # scale moved by the sum over rows of dy xhat, xhat of the exact statistics
    xhat = (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0) + 1e-5)
    start = bp.Trainer(trainer.network, "mse").build(backend.array(x))
    w = backend.host(parameters(start)["1"]["weight"]).astype(np.float64)
    dy = 2.0 / shape[0] * (xhat @ w) * w[:, 0]
    moved = backend.host(parameters(trainer)["0"]["scale"]).astype(np.float64) - 1.0
    np.testing.assert_allclose(moved, -1e-3 * (dy * xhat).sum(axis=0), atol=2e-7)


@dataclass(frozen=True)
class Centre(bp.Layer):
    """y = factor (x - mean over the rows), as a user may write it."""

    couples_rows = True

    def init(self, rng: Any, in_shape: Any) -> Any:
        return {"factor": rng.full(in_shape, 1.0)}

    def forward(self, run: Any, p: Any, x: Any) -> Any:
        centred = x - run.sum_rows(x) / x.shape[0]
        return p["factor"] * centred, centred

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
        grads = {"factor": run.sum_rows(dy * cache)}
        return (p["factor"] * (dy - run.sum_rows(dy) / dy.shape[0]) if need_dx else None), grads


@pytest.mark.parametrize("inner", [(3,), (3, 2)], ids=str)
def test_sums_over_rows_in_a_users_layer(backend: Any, inner: tuple[int, ...], uncompiled: Any) -> None:
    if backend.name == "jax":
        pytest.skip("tested compiled")
    x = (1e5 + np.random.default_rng(0).standard_normal((100_000, *inner))).astype(np.float32)
    var = x.astype(np.float64).var(axis=0)
    trainer = bp.Trainer(Centre(), "mse", bp.SGD(0.1)).build(backend.array(x))
    loss = float(trainer.step(backend.array(x), backend.array(np.zeros_like(x))))
    assert loss == pytest.approx(var.mean(), rel=0.02)  # of a mean that is off by some units in its last place, 2**-7
    factor = backend.host(trainer.parameters["factor"])
    np.testing.assert_allclose(1.0 - factor, 0.2 / math.prod(inner) * var, rtol=0.02)
    assert not uncompiled()


@pytest.mark.parametrize("rows", [1, 2, 7, 130])
def test_sums_over_rows_of_any_shape(backend: Any, rows: int) -> None:
    for inner in ((), (3,), (2, 3), (1, 1, 4)):
        x = np.random.default_rng(0).standard_normal((rows, *inner))
        found = backend.call(lambda x: bp.Run(backend.seam).sum_rows(x), backend.array(x))
        assert found.shape == inner
        backend.close(found, x.sum(axis=0))


@dataclass(frozen=True)
class Coupled(bp.Dense):
    """A dense layer that is always given the whole batch, as it is in a network with batch normalization."""

    couples_rows = True


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize(("rows", "k", "m"), [(1_000_000, 1, 1), (300_000, 3, 1), (100_001, 2, 3), (9_000, 16, 1)])
def test_gradients_of_weights_over_many_rows(backend: Any, rows: int, k: int, m: int, coupled: bool) -> None:
    """Of rows that are all equal, whose roundings go the same way."""
    if backend.name == "jax":
        pytest.skip("tested compiled")
    x, y = backend.array(np.full((rows, k), 0.1, np.float32)), backend.array(np.full((rows, m), -0.3, np.float32))
    net = bp.Sequential(Coupled(m, bias=False) if coupled else bp.Dense(m, bias=False))
    trainer = bp.Trainer(net, "mse", bp.SGD(m / 2.0)).build(x)
    trainer.parameters = {"0": {"weight": backend.array(np.zeros((k, m), np.float32))}}
    trainer.step(x, y)
    moved = np.float64(np.float32(0.1)) * np.float64(np.float32(-0.3))
    np.testing.assert_allclose(backend.host(parameters(trainer)["0"]["weight"]), moved, rtol=6e-5)


def parameters(trainer: bp.Trainer) -> Any:
    return trainer.layout.views(trainer.backend, trainer.theta, trainer.buffers)


@pytest.mark.parametrize("value", [1e9, 123456.789, 0.1, -3e7])
def test_a_feature_that_is_the_same_everywhere(backend: Any, value: float) -> None:
    """Its variance is 0, and never below."""
    if backend.name == "jax":
        pytest.skip("tested compiled")
    x = np.full((1_777, 3), value, np.float32)
    layer = bp.BatchNorm(momentum=0.0, epsilon=1e-12)
    trainer = bp.Trainer(bp.Sequential(layer, bp.Dense(1)), "mse", bp.SGD(1e-3)).build(backend.array(x))
    assert math.isfinite(float(trainer.step(backend.array(x), backend.array(np.zeros((1_777, 1), np.float32)))))
    mean, var = backend.host(trainer.buffers).reshape(2, 3)
    np.testing.assert_allclose(mean, x[0], rtol=1.3e-7)
    assert np.all(var >= 0.0)
    assert np.all(np.sqrt(var) <= 1e-7 * abs(value))


@pytest.mark.parametrize("shape", [(4_096, 3), (30_000, 1), (300, 1_000)], ids=str)
def test_losses_and_gradients_of_biases(backend: Any, shape: tuple[int, int]) -> None:
    """Of outputs that are all equal: the loss is the square of what is missing, and biases move towards it alike."""
    if backend.name == "jax":
        pytest.skip("tested compiled")
    x, y = np.zeros((shape[0], 2), np.float32), np.full(shape, 0.1, np.float32)
    trainer = bp.Trainer(bp.Dense(shape[1]), "mse", bp.SGD(shape[1] / 2.0)).build(backend.array(x))
    loss = float(trainer.step(backend.array(x), backend.array(y)))
    right = float(np.float32(0.1)) ** 2
    assert loss == pytest.approx(right, rel=2e-6)
    np.testing.assert_allclose(backend.host(parameters(trainer)["bias"]), np.float32(0.1), rtol=2e-6)
    again = bp.Trainer(bp.Dense(shape[1]), "mse").build(backend.array(x))
    found = again.evaluate(backend.array(x), backend.array(y), batch_size=shape[0])["loss"]
    assert found == pytest.approx(right, rel=2e-6)


def test_the_loss_of_many_blocks(backend: Any, monkeypatch: Any) -> None:
    """Neither the loss nor the gradient gets worse with the number of blocks that they come from."""
    if backend.name in ("jax", "jax-jit"):
        pytest.skip("JAX would compile every block")
    x, y = np.zeros((3_000, 1), np.float32), np.full((3_000, 2), 0.1, np.float32)
    trainer = bp.Trainer(bp.Dense(2), "mse", bp.SGD(1.0), micro_batch=10).build(backend.array(x))
    assert float(trainer.step(backend.array(x), backend.array(y))) == pytest.approx(np.float32(0.1) ** 2, rel=2e-6)
    np.testing.assert_allclose(backend.host(parameters(trainer)["bias"]), np.float32(0.1), rtol=2e-6)


# ---- what sizes must not do to machine code --------------------------------------------------------------------------


@pytest.fixture
def code(library: Any, monkeypatch: Any) -> Any:
    """The module that compiles, of NumPy with its `jit`."""
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    compiles(monkeypatch, True)
    from bpnet.compiler.llvm import jit

    return jit


def worked(trainer: bp.Trainer, x: Any, y: Any, weight: Any) -> None:
    trainer.step(x, y)
    trainer.step(x, y, weight)
    trainer.predict(x)
    trainer.evaluate(x, y)


def test_batch_sizes_make_no_machine_code(code: Any) -> None:
    rng = np.random.default_rng(0)
    x, y, weight = rng.random((3_000, 8), np.float32), rng.integers(0, 3, 3_000), rng.random(3_000, np.float32)
    network = bp.Sequential(bp.Dense(16, "relu"), bp.BatchNorm(), bp.Dropout(0.1), bp.Dense(3, "leaky_relu"))
    trainer = bp.Trainer(network, "cross_entropy", clip_norm=1.0).build(x)
    for rows in (40, 1_100, 3_000):
        worked(trainer, x[:rows], y[:rows], weight[:rows])
    before = set(code._addresses)
    for rows in (*range(11, 60), 127, 1_050, 2_000, 2_999):
        worked(trainer, x[:rows], y[:rows], weight[:rows])
    assert set(code._addresses) == before


def test_blocks_make_no_machine_code_and_no_deep_expressions(code: Any, monkeypatch: Any, uncompiled: Any) -> None:
    """However many there are, they are computed by the same functions, and nothing is left to the definition."""
    rng = np.random.default_rng(0)
    x, y, weight = rng.random((600, 8), np.float32), rng.integers(0, 3, 600), rng.random(600, np.float32)
    network = bp.Sequential(bp.Dense(16, "relu"), bp.Residual(bp.Dense(16, "tanh")), bp.Dense(3))
    right = bp.value_and_grad(network, "cross_entropy", bp.Trainer(network, "cross_entropy").build(x).theta, x, y)
    monkeypatch.setattr("bpnet.backends.numpy.compiled.COMPILED_ROWS", 4)
    monkeypatch.setattr("bpnet.backends.numpy.compiled.MOST_BLOCKS", 10_000)
    trainer = bp.Trainer(network, "cross_entropy").build(x)
    for rows in (12, 40):
        worked(trainer, x[:rows], y[:rows], weight[:rows])
    before = set(code._addresses)
    for rows in (16, 44, 400, 600):
        worked(trainer, x[:rows], y[:rows], weight[:rows])
    assert set(code._addresses) == before
    plain = bp.Trainer(network, "cross_entropy", bp.SGD(1.0)).build(x)
    start = plain.theta.copy()
    assert float(plain.step(x, y)) == pytest.approx(float(right[0]), rel=1e-6)
    np.testing.assert_allclose(start - plain.theta, right[1], atol=1e-6)
    assert not uncompiled()


def test_executables_that_are_dropped_are_gone(code: Any, monkeypatch: Any) -> None:
    from bpnet.backends.numpy import compiled

    monkeypatch.setattr(compiled, "MOST_EXECUTABLES", 2)
    x = np.random.default_rng(0).random((30, 4), np.float32)
    trainer = bp.Trainer(bp.Dense(2), "mse").build(x)
    executables = []
    for rows in range(10, 16):
        trainer.step(x[:rows], x[:rows, :2])
        executables.append(weakref.ref(trainer._engine.step.compiled().last[1].executable))
    assert [kept() is None for kept in executables] == [True] * 4 + [False] * 2
