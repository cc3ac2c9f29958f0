"""Layers whose rows depend on each other, where several ranks have a part of each batch."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from support.ranks import threads

import bpnet as bp
from bpnet.errors import OptionError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((26, 5)) + 1.0, RNG.integers(0, 3, 26)


def trained(lib: Any, norm: bp.Layer, ranks: Any = None, **options: Any) -> list[Any]:
    """Parameters and buffers after three steps."""
    network = bp.Sequential(bp.Dense(6, "tanh"), norm, bp.Dense(3))
    trainer = bp.Trainer(network, "cross_entropy", bp.SGD(0.1), seed=3, distributed=ranks, **options)
    for _ in range(3):
        trainer.step(lib.array(X), lib.array(Y))
    return [lib.host(trainer.theta), lib.host(trainer.buffers)]


def test_synchronised_batch_norm_is_that_of_one_process(backend: Any) -> None:
    expected = trained(backend, bp.BatchNorm())
    some = threads(2, lambda ranks: trained(backend, bp.BatchNorm(synchronised=True), ranks))
    for first, second, one in zip(*some, expected, strict=True):
        np.testing.assert_allclose(first, one, rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(first, second)


def test_batch_norm_of_one_process_is_the_same_synchronised_or_not(library: Any) -> None:
    lib = library("numpy")
    for found, expected in zip(
        trained(lib, bp.BatchNorm(synchronised=True)), trained(lib, bp.BatchNorm()), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_running_statistics_are_the_mean_over_ranks(library: Any) -> None:
    """Of what each has seen of its rows, where nothing is synchronised; other buffers keep their bits."""
    lib, constant = library("numpy"), bp.Standardize(tuple(X[0].tolist()))

    def step(ranks: Any) -> Any:
        network = bp.Sequential(bp.Parallel(bp.BatchNorm(), constant), bp.Dense(3))
        trainer = bp.Trainer(network, "cross_entropy", "sgd", distributed=ranks)
        trainer.step(lib.array(X), lib.array(Y))
        buffers = trainer.layout.unpack(trainer.buffers, buffers=True)
        np.testing.assert_array_equal(buffers["0.1.mean"], X[0])
        return [*buffers["0.0.mean"], *buffers["0.0.var"]]

    parts = X[:8], X[8:17], X[17:]  # which aren't of the same size
    shares = [len(part) / len(X) * part.var(axis=0, ddof=1) for part in parts]
    mean, var = 0.1 * X.mean(axis=0), 0.9 + 0.1 * sum(shares)
    for buffers in threads(3, step):
        np.testing.assert_allclose(buffers, [*mean, *var], rtol=1e-13)


# ---- the layer by itself ---------------------------------------------------------------------------------------------


def passes(lib: Any, layer: bp.Layer, p: Any, x: Any, dy: Any, ranks: Any = None) -> tuple[Any, ...]:
    """y, dL/dx, gradients and new buffers."""

    def both(p: Any, x: Any, dy: Any) -> Any:
        run = bp.Run(lib.seam, True)
        run.ranks = ranks
        y, cache = layer.forward(run, p, x)
        dx, grads = layer.backward(run, p, cache, dy)
        return y, dx, grads, layer.update_buffers(run, p, cache)

    return lib.call(both, {name: lib.array(value) for name, value in p.items()}, lib.array(x), lib.array(dy))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["numpy", "numpy-jit"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_statistics_are_those_of_all_rows(name: str, dtype: str, library: Any) -> None:
    """Also of one row a rank, of rows of several axes, and where the mean is large beside the deviation."""
    if name == "numpy-jit":
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    lib, close = library(name), 1e-12 if dtype == "float64" else 1e-5
    for shape, cuts, mean in (((7, 4), (1, 3), 0.0), ((3, 4), (1, 2), 1.0), ((6, 2, 3), (1, 2), 200.0)):
        x, dy = (RNG.standard_normal(shape).astype(dtype) for _ in range(2))
        x += dtype == "float64" and mean
        p = {"scale": 2.0, "shift": 1.0, "mean": 3.0, "var": 4.0}
        p = {key: np.full(shape[-1], value, dtype) for key, value in p.items()}
        y, dx, grads, buffers = passes(lib, bp.BatchNorm(), p, x, dy)
        parts = list(zip(np.split(x, cuts), np.split(dy, cuts), strict=True))
        layer = bp.BatchNorm(synchronised=True)
        found = threads(3, lambda ranks: passes(library(name), layer, p, *parts[ranks.rank], ranks))  # noqa: B023
        for k, whole in enumerate((y, dx)):
            np.testing.assert_allclose(np.concatenate([one[k] for one in found]), whole, rtol=close, atol=close)
        for key in grads:
            np.testing.assert_allclose(sum(one[2][key] for one in found), grads[key], rtol=close, atol=close)
        for key in buffers:
            for one in found:
                np.testing.assert_allclose(one[3][key], buffers[key], rtol=close)
                np.testing.assert_array_equal(one[3][key], found[0][3][key])
                assert one[3][key].dtype == dtype


def test_one_row_of_all_ranks_changes_no_running_statistics(library: Any) -> None:
    lib, p = library("numpy"), {name: np.ones(3) for name in ("scale", "shift", "mean", "var")}
    x = np.arange(3.0)[None]
    (found,) = threads(1, lambda ranks: passes(lib, bp.BatchNorm(synchronised=True), p, x, x, ranks))
    np.testing.assert_array_equal(found[0], np.ones((1, 3)))
    for name, value in found[3].items():
        np.testing.assert_array_equal(value, p[name])


@dataclass(frozen=True)
class OffTheMeanOfRanks(bp.Layer):
    """y = x - the mean of x over all rows, whose sums it keeps: a layer of one's own that needs those of all ranks."""

    couples_rows = True
    communicates = True

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {"sum": bp.Leaf(rng.full(in_shape, 0.0), trainable=False)}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        total = run.all_reduce(run.sum_rows(x))
        return x - total * (1.0 / len(X)), total

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
        return dy - run.all_reduce(run.sum_rows(dy)) * (1.0 / len(X)), {}

    def update_buffers(self, run: bp.Run, p: Any, cache: Any) -> dict[str, Any]:
        return {"sum": p["sum"] + cache}


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_of_ones_own_sums_over_ranks(compiled: bool, library: Any) -> None:
    if compiled:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    lib = library("numpy")
    expected = trained(lib, OffTheMeanOfRanks(), compile=compiled)
    for found in threads(3, lambda ranks: trained(lib, OffTheMeanOfRanks(), ranks, compile=compiled)):
        for some, one in zip(found, expected, strict=True):
            np.testing.assert_allclose(some, one, rtol=1e-12, atol=1e-13)


@dataclass(frozen=True, init=False)
class LooksAtItsValues(bp.Sequential):
    """A network that can't be traced, so that it is called as it stands amidst compiled code."""

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        assert float(run.xp.sum(x)) != 0.0
        return super().forward(run, p, x)


@pytest.mark.filterwarnings("ignore:.*not compiled")
def test_collectives_within_branches_and_what_is_not_compiled(library: Any) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    lib = library("numpy")

    def branches(synchronised: bool) -> bp.Layer:
        norm = bp.BatchNorm(synchronised=synchronised)
        return bp.Parallel(norm, bp.Sequential(bp.Dense(6, "tanh"), norm), LooksAtItsValues(norm, bp.Dense(6)))

    (whole, _), *some = (
        trained(lib, branches(False), compile=True),
        *threads(2, lambda ranks: trained(lib, branches(True), ranks, compile=True)),
    )
    for theta, _ in some:
        np.testing.assert_allclose(theta, whole, rtol=1e-11, atol=1e-12)


def test_every_rank_needs_rows(library: Any) -> None:
    lib = library("numpy")
    network = bp.Sequential(bp.BatchNorm(synchronised=True), bp.Dense(3))
    assert network.communicates
    assert not bp.Sequential(bp.BatchNorm()).communicates

    def fails(ranks: Any, step: bool) -> None:
        trainer = bp.Trainer(network, "cross_entropy", "sgd", distributed=ranks)
        x, y = lib.array(X), lib.array(Y)
        call = partial(trainer.step, x[:1], y[:1]) if step else partial(trainer.fit, x[:5], y[:5], batch_size=4)
        with pytest.raises(OptionError, match=r"synchronised BatchNorm.* rows of every rank"):
            call()

    for step in (True, False):
        threads(2, fails, step)


def test_what_looks_at_data_before_a_training_is_the_same_on_all_ranks(library: Any) -> None:
    lib, network = library("numpy"), bp.Sequential(bp.Dense(6, "tanh"), bp.BatchNorm(synchronised=True), bp.Dense(3))

    def started(ranks: Any = None, rows: Any = slice(None)) -> Any:
        trainer = bp.Trainer(network, "cross_entropy", bp.SGD(0.1), distributed=ranks)
        return bp.lsuv(trainer, lib.array(X[rows])).theta

    parts = slice(0, 10), slice(10, 26)
    for found in threads(2, lambda ranks: started(ranks, parts[ranks.rank]), rows="own"):
        np.testing.assert_array_equal(found, started(rows=parts[0]))

    def curve(ranks: Any = None) -> Any:
        trainer = bp.Trainer(network, "cross_entropy", bp.SGD(0.1), distributed=ranks)
        return bp.find_learning_rate(trainer, lib.array(X), lib.array(Y), steps=7, batch_size=9)

    expected = curve()
    for found in threads(2, curve):
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-10)
        assert found.rates == expected.rates
