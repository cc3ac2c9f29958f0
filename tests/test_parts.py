"""Batches that are computed in parts: who must see all rows does, parts differ in nothing but their rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import compiles

import bpnet as bp

MANY = 9000
"""Rows that every backend which cuts batches cuts, compiled or not."""


def stepped(backend: Any, network: bp.Layer, x: Any, y: Any, theta: Any = None, **options: Any) -> bp.Trainer:
    """A trainer after one step of gradient descent at rate 1 on the mean squared error."""
    trainer = bp.Trainer(network, "mse", bp.SGD(1.0), **options).build(backend.array(x))
    if theta is not None:
        trainer.parameters = trainer.layout.views(backend.seam, backend.array(theta))
    SEEN.clear()  # of the rows with which build tries a layer
    trainer.step(backend.array(x), backend.array(y))
    return trainer


# ---- dropout ---------------------------------------------------------------------------------------------------------

ROWS = 64
DROPPING = bp.Sequential(bp.Dropout(0.4), bp.AlphaDropout(0.3), bp.Dropout(bp.Constant(0.2)))


def dropped(backend: Any, **options: Any) -> Any:
    """What DROPPING makes of rows of ones in a step: of weights of 0 the gradient, by targets that are -I."""
    network = bp.Sequential(*DROPPING.layers, bp.Dense(ROWS, bias=False))
    trainer = stepped(backend, network, np.ones((ROWS, 5)), -np.eye(ROWS), np.zeros(5 * ROWS), **options)
    return backend.host(trainer.theta).reshape(5, ROWS).T * (-0.5 * ROWS * ROWS)


def of_the_definition() -> Any:
    run = bp.Run(bp.backends.Backend(bp.backends.get("numpy").xp), True, (0, 1))
    return DROPPING.forward(run, {"0": {}, "1": {}, "2": {}}, np.ones((ROWS, 5)))[0]


def test_a_row_is_dropped_alike_in_whatever_part_it_is(backend: Any) -> None:
    whole = dropped(backend)
    np.testing.assert_array_equal(dropped(backend, micro_batch=9), whole)
    np.testing.assert_allclose(whole, of_the_definition(), rtol=1e-14)
    assert all(len(np.unique(column)) > 1 for column in whole.T)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_row_is_dropped_alike_in_whatever_block_it_is(
    compiled: bool, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles(monkeypatch, compiled)
    for name, value in (("WHOLE", 1), ("LEAST_WORK", 0.0), ("BLOCK_ROWS", 16), ("compiled.COMPILED_ROWS", 16)):
        monkeypatch.setattr(f"bpnet.backends.numpy.{name}", value)
    lib = library("numpy")
    assert len(lib.seam.blocks(ROWS, 1.0)) == 4
    np.testing.assert_allclose(dropped(lib), of_the_definition(), rtol=1e-14)


# ---- layers that need all rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanOff(bp.Layer):
    """y = x - the mean of x over the rows: rows meet, and nothing is kept."""

    couples_rows = True

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return x - run.xp.sum(x, axis=0) * (1.0 / x.shape[0]), None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy - run.xp.sum(dy, axis=0) * (1.0 / dy.shape[0]), {}


@dataclass(frozen=True)
class SumKept(bp.Layer):
    """Keeps the sum of x over the rows of a step, though no row looks at another."""

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {"seen": bp.Leaf(rng.full(in_shape, 0.0), trainable=False)}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return x * 1.0, x

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}

    def update_buffers(self, run: bp.Run, p: Any, cache: Any) -> dict[str, Any]:
        return {"seen": p["seen"] + run.xp.sum(cache, axis=0)}


def many() -> tuple[Any, Any]:
    """Rows whose means drift, so that a part's is not the whole's."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((MANY, 5)) + np.linspace(-3.0, 3.0, MANY)[:, None], rng.standard_normal((MANY, 8))


def test_a_layer_that_couples_rows_and_keeps_nothing_sees_all_rows(backend: Any) -> None:
    x, y = many()
    trainer = stepped(backend, bp.Sequential(MeanOff(), bp.Dense(8, bias=False)), x, y, np.zeros(40))
    assert trainer.buffers.shape == (0,)
    expected = 2.0 / (8 * MANY) * (x - x.mean(axis=0)).T @ y
    backend.close(trainer.theta, expected.reshape(-1), rtol=1e-10)


def test_a_layer_that_keeps_something_and_couples_no_rows_sees_all_rows(backend: Any) -> None:
    x, y = many()
    network = bp.Sequential(SumKept(), bp.Dense(8, bias=False))
    assert not network.couples_rows
    trainer = stepped(backend, network, x, y, np.zeros(40))
    backend.close(trainer.buffers, x.sum(axis=0), rtol=1e-10)
    backend.close(trainer.theta, (2.0 / (8 * MANY) * x.T @ y).reshape(-1), rtol=1e-10)


# ---- micro-batches ---------------------------------------------------------------------------------------------------

SEEN: list[int] = []


@dataclass(frozen=True)
class RowsSeen(bp.Layer):
    """Passes x on and notes of how many rows a training step, and others, are given it."""

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        SEEN.append(x.shape[0])
        return x * 1.0, None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


SEEING = bp.Sequential(RowsSeen(), bp.Dense(2))


def check_parts(lib: Any, rows: int, most: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, 3))
    stepped(lib, SEEING, x, x[:, :2], micro_batch=most)
    assert sum(SEEN) == rows
    assert max(SEEN) <= most
    assert max(SEEN) - min(SEEN) <= 1
    assert len(SEEN) == -(-rows // most)


def test_micro_batches_are_even_and_as_few_as_fit(backend: Any) -> None:
    check_parts(backend, 25, 8)


@pytest.mark.parametrize(("rows", "most"), [(10, 3), (9, 9), (9, 10), (9, 8), (5, 1), (11, 4), (100, 33)])
def test_micro_batches_of_other_sizes(rows: int, most: int, library: Any) -> None:
    check_parts(library("numpy"), rows, most)


def test_outputs_and_scores_are_computed_of_a_micro_batch_at_most(backend: Any) -> None:
    x = backend.array(np.random.default_rng(0).standard_normal((11, 3)))
    trainer = bp.Trainer(SEEING, "mse", micro_batch=4).build(x)
    for call in (lambda: trainer.predict(x), lambda: trainer.evaluate(x, x[:, :2])):
        SEEN.clear()
        call()
        assert SEEN
        assert max(SEEN) <= 4


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_cut_by_the_backend_has_no_larger_parts_either(
    compiled: bool, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    compiles(monkeypatch, compiled)
    x, y = many()
    for most in (9000, 3500, 1000, 999):
        trainer = bp.Trainer(bp.Sequential(RowsSeen(), bp.Dense(8)), "mse", micro_batch=most).build(x)
        SEEN.clear()
        trainer.step(x, y)
        assert sum(SEEN) == MANY
        assert max(SEEN) <= most
        assert max(SEEN) - min(SEEN) <= 1


# ---- where gradients are written -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Astray(bp.Layer):
    """y = a x + b + c, whose gradients lie in each other's places: a's in b's, b's in c's, c's in a's."""

    turn: int

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {name: rng.full(in_shape, 1.0) for name in "abc"}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return x * p["a"] + p["b"] + p["c"] * 2.0, x

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        xp = run.xp
        right = {"a": xp.sum(dy * cache, axis=0), "b": xp.sum(dy, axis=0), "c": 2.0 * xp.sum(dy, axis=0)}
        buffer = xp.empty_like if run.context is None else run.context.grad_buffer
        places = {name: buffer(p[name]) for name in "abc"}
        grads = {}
        for name, other in zip("abc", "abc"[self.turn :] + "abc"[: self.turn], strict=True):
            grads[name] = places[other]
            grads[name][...] = right[name]
        return dy * p["a"], grads


@pytest.mark.filterwarnings("ignore:a training step is launched command by command")
@pytest.mark.filterwarnings("ignore:a training step is launched command by command")
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_gradients_in_each_others_places_arrive_where_they_belong(turn: int, backend: Any) -> None:
    if backend.name.startswith("jax"):
        pytest.skip("arrays of JAX can't be written to")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    dy = 2.0 / 24 * (x + 3.0 - y)
    expected = np.concatenate([(dy * x).sum(axis=0), dy.sum(axis=0), 2.0 * dy.sum(axis=0)])
    network = Astray(turn)
    assert [slot.name for slot in bp.layout_of(network, (4,)).parameters] == ["a", "b", "c"]
    _, gradient = bp.value_and_grad(network, "mse", backend.array(np.ones(12)), backend.array(x), backend.array(y))
    backend.close(gradient, expected)
    for parts in ({}, {"micro_batch": 2}):
        trainer = stepped(backend, network, x, y, np.ones(12), **parts)
        backend.close(trainer.theta, 1.0 - expected)
