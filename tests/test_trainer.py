"""The trainer on every array library: it trains, follows its input, repeats itself, and survives divergence."""

import importlib.util
import math
import pickle
import re
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pytest

import bpnet as bp

LINE = bp.Dense(3)
FLAT = bp.Sequential(bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(3))
FULL = bp.Sequential(
    bp.Dense(8, "tanh"), bp.BatchNorm(), bp.Residual(bp.Dense(8, "tanh")), bp.Dropout(0.2), bp.Dense(3)
)
CALM = bp.Sequential(bp.Dense(8, "tanh"), bp.BatchNorm(), bp.Residual(bp.Dense(8, "tanh")), bp.Dense(3))
"""FULL without dropout."""

# A library that compiles does so for every trainer and every shape: so most tests use the first two, on 48 rows of 6
# features in batches of 16.


EAGER = ("test_libraries_agree", "test_a_step_is_theta_minus_lr_times_the_gradient")


@pytest.fixture
def backend(backend: Any, request: pytest.FixtureRequest) -> Any:
    """Every library; JAX eagerly only in a few tests, since a trainer always compiles there."""
    if backend.name == "jax" and request.node.originalname not in EAGER:
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    return backend


def rows(count: int = 48, dtype: str = "float64", seed: int = 7) -> tuple[Any, Any]:
    """Rows of six features, and one of three classes that a linear rule gives them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 6))
    return x.astype(dtype), np.argmax(x @ np.random.default_rng(1).standard_normal((6, 3)), axis=1)


def made(network: bp.Layer = LINE, optimizer: Any = None, **options: Any) -> bp.Trainer:
    return bp.Trainer(network, "cross_entropy", optimizer or bp.SGD(0.1, momentum=0.9), **options)


def everything(backend: Any, trainer: bp.Trainer) -> list[Any]:
    """All that training changes, as NumPy arrays."""
    return [backend.host(a) for a in (trainer.theta, trainer.buffers, *trainer.state)]


def copy(backend: Any, x: Any) -> Any:
    return backend.array(backend.host(x))


def same(backend: Any, one: bp.Trainer, other: bp.Trainer) -> bool:
    pairs = zip(everything(backend, one), everything(backend, other), strict=True)
    return one.step_count == other.step_count and all(np.array_equal(a, b) for a, b in pairs)


# ---- training, and what comes out -----------------------------------------------------------------------------------


def test_learns_a_linear_rule_and_reports_it(backend: Any) -> None:
    x, y = map(backend.array, rows())
    held_x, held_y = map(backend.array, rows(seed=8))
    trainer = made(FULL, bp.AdamW(0.02))
    history = trainer.fit(x, y, epochs=30, batch_size=16, validation=(held_x, held_y), progress=False)
    assert history is trainer.history
    assert history["epoch"] == list(range(1, 31))
    assert history["step"][-1] == trainer.step_count == 30 * 3
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    scores = trainer.evaluate(held_x, held_y)
    assert scores == {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}
    assert scores["accuracy"] > 0.7
    guess = np.argmax(backend.host(trainer.predict(held_x)), axis=1)
    assert np.mean(guess == backend.host(held_y)) == pytest.approx(scores["accuracy"])
    for record in history:
        assert record["matmul_precision"] == "float64"
        assert all(type(value) in (int, float) for name, value in record.items() if name != "matmul_precision"), record


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_stay_in_the_library_type_and_device_of_x(backend: Any, dtype: str) -> None:
    x, y = map(backend.array, rows(48, dtype))
    trainer = made(FLAT)
    loss = trainer.step(x, y)
    trainer.fit(x, y, progress=False)
    results = [loss, trainer.predict(x), trainer.theta, trainer.buffers, *trainer.state]
    results.append(trainer.parameters["2"]["weight"])
    for result in results:
        assert bp.backends.backend_of(result) is backend.seam
        assert backend.dtype(result) == dtype
        assert backend.seam.device(result) == backend.seam.device(x)
    assert loss.ndim == 0
    assert tuple(trainer.predict(x).shape) == (48, 3)


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64"])
def test_whole_numbers_become_float32(backend: Any, dtype: str) -> None:
    x = (rows()[0] > 0).astype(dtype)
    y = rows()[1]
    whole, real = made(), made()
    whole.fit(backend.array(x), backend.array(y), progress=False)
    real.fit(backend.array(x.astype("float32")), backend.array(y), progress=False)
    assert backend.dtype(whole.theta) == "float32"
    assert same(backend, whole, real)


def test_whole_numbers_follow_float64_parameters(backend: Any) -> None:
    x, _ = rows()
    trainer = made().build(backend.array(x))
    whole = np.round(3 * x)
    result = trainer.predict(backend.array(whole.astype("int64")))
    assert backend.dtype(result) == "float64"
    assert np.array_equal(backend.host(result), backend.host(trainer.predict(backend.array(whole))))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_targets_of_another_type_are_converted(backend: Any, dtype: str) -> None:
    x = rows()[0]
    other = {"float32": "float64", "float64": "float32"}[dtype]
    y = np.round(x[:, :3], 2).astype("float32")
    one, two = (bp.Trainer(bp.Dense(3), "mse", "sgd") for _ in range(2))
    one.fit(backend.array(x, dtype), backend.array(y, dtype), progress=False)
    two.fit(backend.array(x, dtype), backend.array(y, other), progress=False)
    assert same(backend, one, two)


def test_labels_are_whole_numbers_columns_or_one_hot(backend: Any) -> None:
    x, y = rows()
    trained = []
    for labels in (y, y.astype("int32"), y[:, None], np.eye(3)[y], np.eye(3, dtype="int64")[y]):
        trainer = made()
        trainer.fit(backend.array(x), backend.array(labels), progress=False)
        trained.append(backend.host(trainer.theta))
    for other in trained[1:]:
        np.testing.assert_allclose(other, trained[0], rtol=1e-12, atol=1e-14)


def test_labels_may_be_booleans_and_a_single_output_takes_flat_targets(backend: Any) -> None:
    x, y = rows()
    one, two = (bp.Trainer(bp.Dense(1), "binary_cross_entropy_with_logits", "sgd") for _ in range(2))
    one.fit(backend.array(x), backend.array(y == 1), progress=False)
    two.fit(backend.array(x), backend.array((y == 1).astype("float64")[:, None]), progress=False)
    assert same(backend, one, two)
    boolean = bp.Trainer(bp.Dense(3), "cross_entropy", "sgd")
    boolean.fit(backend.array(x), backend.array(y == 1), progress=False)
    assert boolean.evaluate(backend.array(x), backend.array(y == 1))["accuracy"] > 0.2


def test_rows_of_any_shape(backend: Any) -> None:
    x, y = rows()
    picture, flat = made(bp.Sequential(bp.Flatten(), LINE)), made(bp.Sequential(bp.Flatten(), LINE))
    picture.fit(backend.array(x.reshape(48, 2, 3)), backend.array(y), progress=False)
    flat.fit(backend.array(x), backend.array(y), progress=False)
    assert same(backend, picture, flat)
    assert picture.layout.in_shape == (2, 3)


def test_a_loss_without_classes_has_no_accuracy(backend: Any) -> None:
    x = backend.array(rows()[0])
    trainer = bp.Trainer(bp.Dense(6), "mse", "sgd")
    history = trainer.fit(x, x, validation=(x, x), progress=False)
    assert trainer.evaluate(x, x).keys() == {"loss"}
    assert "val_accuracy" not in history.epochs[0]


# ---- the same seed, the same result ---------------------------------------------------------------------------------


def test_same_seed_same_bits_other_seed_other_result(backend: Any) -> None:
    x, y = map(backend.array, rows())
    first, second, other = (made(FLAT, seed=seed) for seed in (3, 3, 4))
    for trainer in (first, second, other):
        trainer.fit(x, y, epochs=3, batch_size=16, progress=False)
    assert same(backend, first, second)
    assert first.history["loss"] == second.history["loss"]
    assert not same(backend, first, other)


def test_fit_again_goes_on(backend: Any) -> None:
    x, y = map(backend.array, rows())
    whole, halves = (made(FLAT, bp.Adam(bp.Cosine(0.01, 20))) for _ in range(2))
    whole.fit(x, y, epochs=4, batch_size=16, progress=False)
    for _ in range(2):
        halves.fit(x, y, epochs=2, batch_size=16, progress=False)
    assert same(backend, whole, halves)
    for name in ("epoch", "step", "loss", "lr"):
        assert whole.history[name] == halves.history[name]


def test_libraries_agree(backend: Any) -> None:
    """Fifty-one steps from one seed: the same to 1e-9 as NumPy."""
    x, y = rows()
    numpy_trainer, trainer = (made(FULL, bp.AdamW(bp.WarmUp(0.01, 5)), clip_norm=1.0) for _ in range(2))
    numpy_trainer.fit(x, y, epochs=17, batch_size=16, progress=False)
    trainer.fit(backend.array(x), backend.array(y), epochs=17, batch_size=16, progress=False)
    assert trainer.step_count == 51
    expected = numpy_trainer.theta, numpy_trainer.buffers, *numpy_trainer.state
    for ours, reference in zip(everything(backend, trainer), expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(trainer.history["loss"], numpy_trainer.history["loss"], rtol=1e-9)


def test_build_draws_the_parameters_that_fit_would(backend: Any) -> None:
    x, y = map(backend.array, rows())
    built, plain = made(FLAT), made(FLAT)
    assert built.build(x) is built
    built.fit(x, y, progress=False)
    plain.fit(x, y, progress=False)
    assert same(backend, built, plain)


def test_what_was_trained_is_not_built_again(backend: Any) -> None:
    x, y = map(backend.array, rows())
    trainer = made()
    trainer.step(x, y)
    before = everything(backend, trainer)
    with pytest.raises(bp.errors.BuiltError, match="has parameters already: make another Trainer to start afresh"):
        trainer.build(x)
    assert isinstance(bp.errors.BuiltError(), RuntimeError)
    assert trainer.step_count == 1
    assert all(np.array_equal(a, b) for a, b in zip(everything(backend, trainer), before, strict=True))


# ---- batches --------------------------------------------------------------------------------------------------------


def test_batches_in_order_and_a_smaller_last_one(backend: Any) -> None:
    x, y = rows(40)
    fitted, stepped = made(), made()
    history = fitted.fit(backend.array(x), backend.array(y), batch_size=16, shuffle=False, progress=False)
    batches = (slice(16), slice(16, 32), slice(32, 40))
    losses = [float(stepped.step(backend.array(x[batch]), backend.array(y[batch]))) for batch in batches]
    assert same(backend, fitted, stepped)
    assert history["loss"] == [pytest.approx((2 * losses[0] + 2 * losses[1] + losses[2]) / 5, rel=1e-12)]


def test_rows_that_are_left_over_may_be_left_out(backend: Any) -> None:
    """Of an epoch, in whatever order its rows come; schedules and losses count the steps that are done."""
    x, y = map(backend.array, rows(40))
    optimizer = bp.SGD(bp.Epochs(bp.StepDecay(0.1, 1, 0.5)))
    fitted, stepped = made(optimizer=optimizer), made(optimizer=optimizer)
    told: dict[str, Any] = {"batch_size": 16, "drop_last": True, "progress": False}
    history = fitted.fit(x, y, epochs=3, shuffle=lambda epoch: np.roll(np.arange(40), epoch), **told)
    assert history["step"] == [2, 4, 6]
    assert history["lr"] == pytest.approx([0.1, 0.05, 0.025])
    stepped.fit(x[:32, ...], y[:32, ...], batch_size=16, shuffle=False, progress=False)
    assert history["loss"][0] == pytest.approx(stepped.history["loss"][0], rel=1e-12)
    stepped.fit(x, y, shuffle=False, **told)
    assert stepped.step_count == 4


def test_an_order_from_outside(backend: Any) -> None:
    """A function of the number of the epoch says which rows come, one of them twice; other numbers are refused."""
    x, y = rows()
    orders = [np.random.default_rng(epoch).integers(0, 48, 48) for epoch in range(3)]
    fitted, stepped = made(), made()
    fitted.fit(backend.array(x), backend.array(y), batch_size=16, progress=False)
    stepped.fit(backend.array(x), backend.array(y), batch_size=16, progress=False)
    fitted.fit(
        backend.array(x), backend.array(y), epochs=2, batch_size=16, shuffle=lambda epoch: orders[epoch], progress=False
    )
    for batch in np.concatenate(orders[1:]).reshape(-1, 16):
        stepped.step(backend.array(x[batch]), backend.array(y[batch]))
    assert same(backend, fitted, stepped)
    for wrong in (orders[0][1:], orders[0] + 24, orders[0] / 1.0):
        with pytest.raises(bp.errors.DataError, match="expected the numbers of 48 rows, each from 0 to 47"):
            fitted.fit(backend.array(x), backend.array(y), shuffle=lambda _, wrong=wrong: wrong, progress=False)
    assert same(backend, fitted, stepped)


def test_a_batch_may_be_larger_than_the_data(backend: Any) -> None:
    x, y = map(backend.array, rows(16))
    fitted, stepped = made(), made()
    fitted.fit(x, y, batch_size=1000, shuffle=False, drop_last=True, progress=False)
    stepped.step(x, y)
    assert same(backend, fitted, stepped)


def test_one_row_is_enough(backend: Any) -> None:
    x, y = map(backend.array, rows(1))
    trainer = made(FLAT)
    trainer.fit(x, y, epochs=2, progress=False)
    assert np.isfinite(backend.host(trainer.theta)).all()
    assert tuple(trainer.predict(x).shape) == (1, 3)


class Watch(bp.Callback):
    """Which rows each step saw: with x = 1 and nothing shared, a step moves the parameters of its rows only."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.batches = backend, []

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self.old = self.backend.host(trainer.theta)

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        new = self.backend.host(trainer.theta)
        self.batches.append(sorted(np.flatnonzero(new != self.old)))
        self.old = new.copy()


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own(backend: Any) -> None:
    x, y = backend.array(np.eye(10)), backend.array(np.full(10, 100.0))
    orders = {}
    for seed in (0, 0, 1):
        watch = Watch(backend)
        trainer = bp.Trainer(bp.Dense(1, bias=False), "mse", bp.SGD(0.1), seed=seed)
        trainer.fit(x, y, epochs=2, batch_size=4, callbacks=[watch], progress=False)
        assert [len(batch) for batch in watch.batches] == [4, 4, 2, 4, 4, 2]
        first, second = watch.batches[:3], watch.batches[3:]
        assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
        assert first != second
        assert orders.setdefault(seed, watch.batches) == watch.batches
    assert orders[0] != orders[1]
    expected = np.random.default_rng((0, 0)).permutation(10)
    assert orders[0][:3] == [sorted(expected[:4]), sorted(expected[4:8]), sorted(expected[8:])]


def test_batch_size_does_not_change_predictions_or_scores(backend: Any) -> None:
    x, y = map(backend.array, rows())
    weight = backend.array(np.linspace(0.0, 2.0, 48))
    trainer = made(FLAT)
    trainer.fit(x, y, batch_size=16, progress=False)
    expected, scores = backend.host(trainer.predict(x)), trainer.evaluate(x, y, sample_weight=weight)
    for size in (32, 1000):
        found = backend.host(trainer.predict(x, batch_size=size))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert trainer.evaluate(x, y, sample_weight=weight, batch_size=size) == pytest.approx(scores, rel=1e-12)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_rows_of_weight_zero_do_not_matter(backend: Any) -> None:
    x, y = rows()
    spoiled_x, spoiled_y = x.copy(), y.copy()
    spoiled_x[8:40], spoiled_y[8:40] = 1e3, 0
    weight = np.ones(48)
    weight[8:40] = 0.0
    keep = weight > 0
    weighted, fewer = made(), made()
    weighted.step(backend.array(spoiled_x), backend.array(spoiled_y), backend.array(weight))
    fewer.step(backend.array(x[keep]), backend.array(y[keep]))
    np.testing.assert_allclose(backend.host(weighted.theta), backend.host(fewer.theta), rtol=1e-12, atol=1e-14)
    scores = weighted.evaluate(backend.array(spoiled_x), backend.array(spoiled_y), sample_weight=backend.array(weight))
    assert scores == pytest.approx(weighted.evaluate(backend.array(x[keep]), backend.array(y[keep])), rel=1e-12)


def test_a_batch_all_of_weight_zero_changes_nothing(backend: Any) -> None:
    x, y = rows()
    weight = np.ones(48)
    weight[16:32] = 0.0
    keep = weight > 0
    weighted, fewer = made(LINE, bp.SGD(0.1)), made(LINE, bp.SGD(0.1))
    history = weighted.fit(
        backend.array(x), backend.array(y), sample_weight=backend.array(weight), batch_size=16, shuffle=False,
        progress=False,
    )  # fmt: skip
    fewer.fit(backend.array(x[keep]), backend.array(y[keep]), batch_size=16, shuffle=False, progress=False)
    np.testing.assert_allclose(backend.host(weighted.theta), backend.host(fewer.theta), rtol=1e-12, atol=1e-14)
    assert history["loss"] == pytest.approx(fewer.history["loss"], rel=1e-12)


def test_weight_two_equals_the_row_twice(backend: Any) -> None:
    x, y = rows(16)
    count = np.array([1, 2, 3, 6] * 4)
    weighted, repeated = made(), made()
    one = weighted.step(backend.array(x), backend.array(y), backend.array(count))
    two = repeated.step(backend.array(np.repeat(x, count, axis=0)), backend.array(np.repeat(y, count)))
    assert float(one) == pytest.approx(float(two), rel=1e-12)
    np.testing.assert_allclose(backend.host(weighted.theta), backend.host(repeated.theta), rtol=1e-12, atol=1e-14)


def test_what_a_trainer_was_made_for_stays() -> None:
    x, y = rows()
    trainer = made()
    trainer.optimizer = bp.SGD(0.1)  # there is nothing yet that it would not fit
    trainer.step(x, y)
    for name, value in (("optimizer", bp.Adam()), ("loss", "mse"), ("clip_norm", -1.0), ("network", bp.Dense(2))):
        with pytest.raises(bp.errors.BuiltError, match=f"^{name} can't be set any more, .*: make another trainer"):
            setattr(trainer, name, value)
    assert trainer.optimizer == bp.SGD(0.1)
    trainer.lr_scale, trainer.classes = 0.5, None


SCALES = [("float32", 2.0**-142), ("float32", 6e37), ("float64", 2.0**-1068), ("float64", 3e307)]


@pytest.mark.parametrize(
    ("kind", "scale", "dtype"),
    [*((kind, scale, kind) for kind, scale in SCALES[::2]), (*SCALES[1], "float64"), (*SCALES[3], "float32")],
)
def test_the_scale_of_weights_does_not_matter(backend: Any, kind: str, scale: float, dtype: str) -> None:
    """Of weights whose sum is no number of their type, nor they themselves any of the type of x."""
    if backend.name == "jax-jit" and scale < np.finfo(kind).tiny:
        pytest.skip("JAX takes such numbers for 0")
    if backend.name == "jax-jit" and kind != dtype:
        pytest.skip("each kind of weights once, since JAX compiles it all again")
    x, y = rows(dtype=dtype)
    weight = np.array([1.0, 2, 4, 5] * 12)
    trainers, found = [], []
    for s in (1.0, scale):
        given = (backend.array(x), backend.array(y), backend.array(weight * s, kind))
        trainer = made(LINE, bp.SGD(0.5), micro_batch=20)
        first = float(trainer.step(*given))
        trainer.fit(*given[:2], sample_weight=given[2], batch_size=16, validation=given, progress=False)
        unchecked = float(trainer.step(*given, check=False))
        grad = bp.value_and_grad(LINE, "cross_entropy", trainer.theta, *given[:2], sample_weight=given[2])
        scores = trainer.evaluate(*given[:2], sample_weight=given[2], batch_size=20)
        record = {
            name: value
            for name, value in trainer.history.epochs[-1].items()
            if type(value) is float and name != "seconds"
        }
        found.append({**scores, **record, "first": first, "unchecked": unchecked, "gradient": float(grad[0])})
        trainers.append(backend.host(trainer.theta))
    assert found[1] == pytest.approx(found[0], rel=1e-12 if {dtype, kind} == {"float64"} else 1e-5)
    assert found[0]["first"] > 0.1
    np.testing.assert_allclose(trainers[1], trainers[0], rtol=1e-4 if dtype == "float32" else 1e-10, atol=1e-6)


@pytest.mark.parametrize("small", [1e-10, 1e-35])
def test_a_batch_of_weights_that_are_tiny_against_others_is_a_batch(backend: Any, small: float) -> None:
    """Its step is that of its own weighted mean, and in the epoch's loss it counts for next to nothing."""
    x, y = rows(32, "float32")
    weight = np.float32(np.array([1.0, 3, 2, 8] * 8))
    scaled = weight * np.float32(np.repeat([1e5, 1e5 * small], 16))
    whole, parts = made(LINE, bp.SGD(0.5)), made(LINE, bp.SGD(0.5))
    whole.fit(
        backend.array(x), backend.array(y), sample_weight=backend.array(scaled), batch_size=16, shuffle=False,
        progress=False,
    )  # fmt: skip
    losses = [parts.step(*(backend.array(a[s]) for a in (x, y, weight))) for s in (slice(0, 16), slice(16, 32))]
    np.testing.assert_allclose(backend.host(whole.theta), backend.host(parts.theta), rtol=1e-5, atol=1e-6)
    assert whole.history["loss"] == [pytest.approx(float(losses[0]), rel=1e-5)]


def test_accuracy_is_a_count_over_a_count(backend: Any) -> None:
    """However the rows are cut, and of weights never more than 1."""
    x, y = rows(3001, "float32")
    weight = np.random.default_rng(3).uniform(0.1, 7.0, 3001).astype("float32")
    trainer = made(LINE, bp.SGD(1.0)).build(backend.array(x))
    trainer.fit(backend.array(x), backend.array(y), batch_size=1000, progress=False)
    guess = np.argmax(backend.host(trainer.predict(backend.array(x))), axis=1)
    for size in (None, 1500, 100):
        given = backend.array(x), backend.array(y)
        assert trainer.evaluate(*given, batch_size=size)["accuracy"] == np.count_nonzero(guess == y) / 3001
        share = trainer.evaluate(*given, sample_weight=backend.array(weight), batch_size=size)["accuracy"]
        assert share == pytest.approx(np.sum(weight[guess == y], dtype="float64") / np.sum(weight, dtype="float64"))
        own = backend.array(x), backend.array(guess)
        for w in (weight, 1e-30 * weight, np.ones(3001, "float32")):
            assert trainer.evaluate(*own, sample_weight=backend.array(w), batch_size=size)["accuracy"] == 1.0


def test_rows_beyond_what_float32_counts_are_counted() -> None:
    count = 2**24 + 3
    x, y = np.ones((count, 1), "float32"), np.zeros(count, "int32")
    trainer = made(bp.Dense(2)).build(x)
    trainer.parameters = {"weight": np.zeros((1, 2), "float32"), "bias": np.float32([1.0, 0.0])}
    assert trainer.evaluate(x, y)["accuracy"] == 1.0
    y[5] = 1
    assert trainer.evaluate(x, y, batch_size=2**25)["accuracy"] == (count - 1) / count


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_an_epoch_is_that_of_all_its_rows(backend: Any, weighted: bool) -> None:
    """Where nothing moves (lr=0), it is what evaluate says, however the rows are cut into batches."""
    x, y = map(backend.array, rows())
    weight = backend.array(np.random.default_rng(0).uniform(0, 5, 48)) if weighted else None
    trainer = made(LINE, bp.SGD(0.0))
    history = trainer.fit(
        x, y, sample_weight=weight, batch_size=16, validation=(x, y, weight) if weighted else [x, y], progress=False
    )
    expected = trainer.evaluate(x, y, sample_weight=weight)
    assert history["loss"] == [pytest.approx(expected["loss"], rel=1e-12)]
    assert history["val_loss"] == [expected["loss"]]
    assert history["val_accuracy"] == [expected["accuracy"]]


# ---- one step is the gradient step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_theta_minus_lr_times_the_gradient(backend: Any, weighted: bool) -> None:
    x, y = map(backend.array, rows())
    weight = backend.array(np.linspace(0.0, 2.0, 48)) if weighted else None
    trainer = made(CALM, bp.SGD(0.25)).build(x)
    theta, buffers = copy(backend, trainer.theta), copy(backend, trainer.buffers)
    value, grad = bp.value_and_grad(CALM, "cross_entropy", theta, x, y, sample_weight=weight, buffers=buffers)
    loss = trainer.step(x, y, weight)
    assert float(loss) == pytest.approx(float(value), rel=1e-12)
    expected = backend.host(theta) - 0.25 * backend.host(grad)
    np.testing.assert_allclose(backend.host(trainer.theta), expected, rtol=1e-12, atol=1e-14)


def test_clip_norm_bounds_the_gradient_and_leaves_small_ones(backend: Any) -> None:
    x, y = map(backend.array, rows())
    moved = {}
    for limit in (None, 0.01, 1e6):
        trainer = made(LINE, bp.SGD(1.0), clip_norm=limit).build(x)
        start = backend.host(trainer.theta).copy()
        trainer.step(x, y)
        moved[limit] = backend.host(trainer.theta) - start
    assert np.linalg.norm(moved[None]) > 0.02
    assert np.linalg.norm(moved[0.01]) == pytest.approx(0.01, rel=1e-9)
    np.testing.assert_allclose(moved[1e6], moved[None], rtol=1e-9, atol=1e-15)
    along = moved[None] / np.linalg.norm(moved[None])
    np.testing.assert_allclose(moved[0.01] / 0.01, along, rtol=1e-9, atol=1e-9)


def test_the_schedule_sets_the_rate_and_the_history_shows_it(backend: Any) -> None:
    x, y = map(backend.array, rows())
    schedule = bp.WarmUp(bp.Cosine(0.5, 6, final=0.1), 4)
    trainer = made(LINE, bp.SGD(schedule))
    history = trainer.fit(x, y, epochs=4, batch_size=16, progress=False)
    assert history["lr"] == [schedule(step - 1) for step in (3, 6, 9, 12)]
    late = [0.1 + 0.4 * (1 + math.cos(math.pi * done / 6)) / 2 for done in (1, 4, 6)]
    assert history["lr"] == pytest.approx([0.375, *late])
    slow, full = made(LINE, bp.SGD(schedule)).build(x), made(LINE, bp.SGD(0.5)).build(x)
    start = backend.host(slow.theta).copy()
    slow.step(x, y)
    full.step(x, y)
    moved, expected = backend.host(slow.theta) - start, backend.host(full.theta) - start
    np.testing.assert_allclose(4 * moved, expected, rtol=1e-9, atol=1e-14)


# ---- layers that behave otherwise in training -----------------------------------------------------------------------


def test_batch_norm_keeps_running_statistics_and_predicts_with_them(backend: Any) -> None:
    x, y = rows()
    trainer = bp.Trainer(bp.Sequential(bp.BatchNorm(momentum=0.8), bp.Dense(3)), "cross_entropy", bp.SGD(0.1))
    trainer.step(backend.array(x), backend.array(y))
    mean, var = np.split(backend.host(trainer.buffers), 2)
    np.testing.assert_allclose(mean, 0.2 * x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(var, 0.8 + 0.2 * x.var(axis=0, ddof=1), rtol=1e-12)
    p = {name: {k: backend.host(v) for k, v in leaves.items()} for name, leaves in trainer.parameters.items()}
    hidden = (x - mean) / np.sqrt(var + 1e-5) * p["0"]["scale"] + p["0"]["shift"]
    expected = hidden @ p["1"]["weight"] + p["1"]["bias"]
    np.testing.assert_allclose(backend.host(trainer.predict(backend.array(x))), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        backend.host(trainer.predict(backend.array(x[:1]))), expected[:1], rtol=1e-12, atol=1e-13
    )
    z = expected - expected.max(axis=1, keepdims=True)
    loss = np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(48), y])
    scores = trainer.evaluate(backend.array(x), backend.array(y))
    assert scores["loss"] == pytest.approx(loss, rel=1e-12)
    assert np.array_equal(np.split(backend.host(trainer.buffers), 2)[0], mean), "evaluate moved the statistics"


def test_dropout_acts_in_training_only(backend: Any) -> None:
    x, y = map(backend.array, rows())
    with_it = made(bp.Sequential(bp.Dropout(0.5), bp.Dense(3)))
    without = made(bp.Sequential(bp.Identity(), bp.Dense(3)))
    with_it.build(x)
    without.build(x)
    assert np.array_equal(backend.host(with_it.predict(x)), backend.host(without.predict(x)))
    assert with_it.evaluate(x, y) == without.evaluate(x, y)
    with_it.step(x, y)
    without.step(x, y)
    assert not np.array_equal(backend.host(with_it.theta), backend.host(without.theta))


@dataclass(frozen=True)
class ScaleAndShift(bp.Layer):
    """y = a x + b: one number a, and one b for each feature, as a user would write it."""

    start: float = 1.0

    def init(self, rng: bp.Rng, in_shape: tuple[int, ...]) -> dict[str, Any]:
        return {"a": rng.full((), self.start), "b": rng.full(in_shape, 0.0)}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return p["a"] * x + p["b"], x

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        grads = {"a": run.xp.sum(dy * cache), "b": run.xp.sum(dy, axis=0)}
        return p["a"] * dy if need_dx else None, grads


def test_a_users_layer_trains_and_is_saved_and_loaded(backend: Any, tmp_path: Any) -> None:
    x, y = map(backend.array, rows())
    trainer = made(bp.Sequential(ScaleAndShift(2.0), bp.Dense(3)))
    trainer.fit(x, y, epochs=3, batch_size=16, progress=False)
    assert float(trainer.parameters["0"]["a"]) != 2.0
    trainer.save(tmp_path / "model.safetensors")
    loaded = bp.load(tmp_path / "model.safetensors", like=x)
    assert loaded.network == trainer.network
    assert same(backend, loaded, trainer)
    assert np.array_equal(backend.host(loaded.predict(x)), backend.host(trainer.predict(x)))
    trained_alone = bp.Trainer(ScaleAndShift(), "mse", bp.SGD(0.5))
    trained_alone.fit(x, backend.array(3 * rows()[0] + 1), epochs=100, progress=False)
    assert float(trained_alone.parameters["a"]) == pytest.approx(3, abs=1e-3)


# ---- parameters -----------------------------------------------------------------------------------------------------


def test_parameters_are_named_and_assignable(backend: Any) -> None:
    x, y = rows()
    trainer = made(FLAT).build(backend.array(x))
    shapes = {
        name: {k: tuple(v.shape) for k, v in leaves.items()} for name, leaves in trainer.parameters.items() if leaves
    }
    assert shapes == {"0": {"scale": (6,), "shift": (6,)}, "2": {"weight": (6, 3), "bias": (3,)}}
    before = backend.host(trainer.theta).copy()
    tree = trainer.parameters
    tree["2"] = {"weight": backend.array(np.zeros((6, 3))), "bias": backend.array(np.array([1.0, 2.0, 3.0]))}
    trainer.parameters = tree
    result = backend.host(trainer.predict(backend.array(x)))
    assert np.array_equal(result, np.tile([1.0, 2.0, 3.0], (48, 1)))
    assert np.sum(backend.host(trainer.theta) != before) == 6 * 3 + 3
    trainer.step(backend.array(x), backend.array(y))
    assert not np.array_equal(backend.host(trainer.predict(backend.array(x))), result)


@pytest.mark.parametrize("bias", [False, True])
def test_assigned_parameters_stay_the_users(backend: Any, bias: bool) -> None:
    x, y = map(backend.array, rows())
    trainer = made(bp.Dense(3, bias=bias)).build(x)
    weight = backend.array(np.ones((6, 3)))
    trainer.parameters = {"weight": weight} | ({"bias": backend.array(np.zeros(3))} if bias else {})
    trainer.step(x, y)
    assert np.array_equal(backend.host(weight), np.ones((6, 3)))


def test_snapshot_and_restore(backend: Any) -> None:
    x, y = map(backend.array, rows())
    trainer = made(FLAT)
    trainer.fit(x, y, batch_size=16, progress=False)
    kept, before = trainer.snapshot(), everything(backend, trainer)
    trainer.fit(x, y, batch_size=16, progress=False)
    assert trainer.step_count == 6
    for _ in range(2):  # restoring twice: training on must not spoil what was kept
        trainer.restore(kept)
        assert trainer.step_count == 3
        assert all(np.array_equal(a, b) for a, b in zip(everything(backend, trainer), before, strict=True))
        trainer.fit(x, y, batch_size=16, progress=False)


# ---- compiled or not ------------------------------------------------------------------------------------------------

CALLS: list[int] = []


@dataclass(frozen=True)
class Called(bp.Layer):
    """Passes x on, and notes that Python did."""

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        CALLS.append(x.shape[0])
        return x * 1.0, None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


def test_a_trainer_says_whether_its_steps_are_compiled(backend: Any, tmp_path: Any) -> None:
    x, y = map(backend.array, rows())
    network, found = bp.Sequential(Called(), bp.Dense(3)), {}
    compiled = {"numpy": importlib.util.find_spec("llvmlite") is not None, "jax": True, "cupy": True}
    for choice in (False, True):
        trainer = bp.Trainer(network, "cross_entropy", bp.SGD(0.1), compile=choice)
        if (choice and not compiled.get(backend.seam.name)) or (
            choice and backend.name == "jax"
        ):  # whose `compile` is off
            kinds = bp.errors.OptionError, bp.errors.MissingExtraError
            with pytest.raises(kinds, match=r"compile is True, but steps on .* can't be compiled|needs llvmlite"):
                trainer.build(x)
            return
        trainer.build(x)
        CALLS.clear()
        trainer.fit(x, y, batch_size=16, epochs=3, progress=False)
        calls = len(CALLS)
        assert calls == 9 if not choice else calls < 9
        found[choice] = backend.host(trainer.theta)
        trainer.save(tmp_path / "m.safetensors")
        assert bp.load(tmp_path / "m.safetensors", like=x, compile=choice).compile is choice
    np.testing.assert_allclose(found[True], found[False], rtol=1e-10)


def test_a_trainer_explains_a_step(backend: Any) -> None:
    x, y = map(backend.array, rows())
    trainer = bp.Trainer(bp.Sequential(bp.Dense(8, "relu"), bp.Dense(3)), "cross_entropy")
    start = everything(backend, bp.Trainer(trainer.network, "cross_entropy").build(x))
    text = trainer.explain(x, y)  # which builds it, as a step would
    before = everything(backend, trainer)
    assert all(np.array_equal(a, b) for a, b in zip(before, start, strict=True))
    assert trainer.explain(x, y) == text
    assert text.startswith(backend.seam.name)
    assert repr(text) == str(text)
    assert trainer.step_count == 0
    assert all(np.array_equal(a, b) for a, b in zip(everything(backend, trainer), before, strict=True))
    if backend.name == "numpy-jit":
        assert "48 x 8" in text or "(48, 8)" in text
    plain = bp.Trainer(trainer.network, "cross_entropy", compile=False).build(x)
    assert "every operation as it stands" in plain.explain(x, y)


# ---- inputs ---------------------------------------------------------------------------------------------------------


def test_inputs_are_never_modified(backend: Any) -> None:
    x, y = rows()
    weight = np.linspace(0.1, 2.0, 48)
    targets = np.eye(3)[y]
    mine = [backend.array(a) for a in (x, targets, weight)]
    trainer = made(FLAT, bp.AdamW(0.01), clip_norm=0.1)
    for shuffle in (False, True):
        trainer.fit(*mine[:2], sample_weight=mine[2], shuffle=shuffle, batch_size=16, validation=mine, progress=False)
    trainer.step(*mine)
    trainer.evaluate(*mine[:2], sample_weight=mine[2])
    trainer.predict(mine[0])
    if backend.name != "jax-jit":  # slow there, since it runs eagerly, on arrays that can't be modified
        bp.value_and_grad(
            FLAT, "cross_entropy", trainer.theta, *mine[:2], sample_weight=mine[2], buffers=trainer.buffers
        )
    for array, original in zip(mine, (x, targets, weight), strict=True):
        assert np.array_equal(backend.host(array), original)


def test_an_identity_gives_an_output_of_its_own(backend: Any) -> None:
    """Writing into a prediction must not write into x."""
    x, _ = rows()
    mine = backend.array(x)
    trainer = bp.Trainer(bp.Sequential(bp.Dense(6), bp.Residual(bp.Identity())), "mse", "sgd").build(mine)
    assert trainer.predict(mine) is not mine


def test_a_memory_mapped_file(tmp_path: Any) -> None:
    x, y = rows(300, "float32")
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, two = made(FLAT), made(FLAT)
    one.fit(mapped, y, batch_size=32, validation=(mapped, y), progress=False)
    two.fit(x, y, batch_size=32, validation=(x, y), progress=False)
    assert np.array_equal(one.theta, two.theta)
    for batch_size in (None, 100):
        result = one.predict(mapped, batch_size=batch_size)
        assert type(result) is np.ndarray
        assert np.array_equal(result, two.predict(x, batch_size=batch_size))
    assert type(one.theta) is np.ndarray
    assert type(one.predict(mapped[:10])) is np.ndarray


@pytest.mark.parametrize("view", ["columns", "reversed", "fortran"])
def test_numpy_views_of_any_strides(view: str) -> None:
    x, y = rows(40)
    wide = np.repeat(x, 2, axis=1)
    seen = {
        "columns": wide[:, ::2],
        "reversed": np.ascontiguousarray(x[::-1])[::-1],
        "fortran": np.asfortranarray(x),
    }[view]
    one, two = made(), made()
    one.fit(seen, y, batch_size=16, progress=False)
    two.fit(x, y, batch_size=16, progress=False)
    np.testing.assert_allclose(one.theta, two.theta, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(one.predict(seen), two.predict(x), rtol=1e-12, atol=1e-14)
    assert one.theta.dtype == np.dtype("float64")


def test_torch_tensors_that_record_a_graph(library: Any) -> None:
    torch = library("torch").module
    x, y = (torch.tensor(a) for a in rows())
    one, two = made(FLAT), made(FLAT)
    one.fit(x.clone().requires_grad_(), y, batch_size=16, progress=False)
    two.fit(x, y, batch_size=16, progress=False)
    assert torch.equal(one.theta, two.theta)
    assert not one.theta.requires_grad
    assert not one.predict(x.clone().requires_grad_()).requires_grad
    leaf = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    dense = made(bp.Dense(3, bias=False)).build(x)
    dense.parameters = {"weight": leaf}
    dense.step(x, y)
    assert not dense.theta.requires_grad
    assert not leaf.detach().any()


# ---- divergence -----------------------------------------------------------------------------------------------------


def finite(backend: Any, trainer: bp.Trainer) -> bool:
    return all(np.isfinite(a).all() for a in everything(backend, trainer))


@pytest.mark.parametrize("optimizer", [bp.SGD(1e308), bp.SGD(1e308, momentum=0.9), bp.Adam(1e308)], ids=str)
def test_divergence_is_an_error_that_keeps_the_last_finite_parameters(backend: Any, optimizer: Any) -> None:
    x, y = map(backend.array, rows())
    trainer = made(FLAT, optimizer)
    with pytest.raises(bp.errors.DivergedError, match=r"diverged at step \d+: .* layer '\d") as caught:
        trainer.fit(x, y, epochs=20, batch_size=16, progress=False)
    assert isinstance(caught.value, RuntimeError)
    assert f"at step {trainer.step_count + 1}:" in str(caught.value)
    assert finite(backend, trainer)


def test_a_diverged_trainer_is_usable_again(backend: Any) -> None:
    """Back to sane parameters, and it trains as if nothing had been."""
    x, y = map(backend.array, rows())
    wild = made(FLAT, bp.SGD(0.1)).build(x)
    start = wild.snapshot()
    good = wild.parameters
    spoiled = {**good, "2": {**good["2"], "bias": backend.array(np.array([0.0, np.inf, 0.0]))}}
    wild.parameters = spoiled
    with pytest.raises(bp.errors.DivergedError, match=r"step 1: bias of layer '2'"):
        wild.fit(x, y, progress=False)
    assert len(wild.history) == 0
    wild.restore(start)
    wild.fit(x, y, epochs=2, progress=False)
    calm = made(FLAT, bp.SGD(0.1))
    calm.fit(x, y, epochs=2, progress=False)
    assert same(backend, wild, calm)


def test_divergence_in_the_last_update_is_not_overlooked(backend: Any) -> None:
    """The loss of the only step was finite; what it made of the parameters is not."""
    x = 1e100 * rows()[0]
    x, y = backend.array(x), backend.array(x[:, 0])
    trainer = bp.Trainer(bp.Sequential(bp.Dense(1)), "mse", bp.SGD(1e300)).build(x)
    start = backend.host(trainer.theta).copy()
    with pytest.raises(bp.errors.DivergedError, match=r"at step 1: .*layer '\d'"):
        trainer.fit(x, y, progress=False)
    assert np.array_equal(backend.host(trainer.theta), start)
    assert trainer.step_count == 0


def test_divergence_names_the_layer_whose_output_overflows(backend: Any) -> None:
    @dataclass(frozen=True)
    class Explode(bp.Layer):
        """y = exp(x), which overflows for an x that is finite."""

        def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
            y = run.xp.exp(x)
            return y, y

        def backward(
            self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True
        ) -> tuple[Any, dict[str, Any]]:
            return dy * cache, {}

    x, _ = rows()
    network = bp.Sequential(bp.Dense(4), bp.Sequential(Explode(), bp.Dense(2)))
    trainer = bp.Trainer(network, "mse", bp.SGD(0.1))
    with pytest.raises(bp.errors.DivergedError, match=r"output of layer '1\.0', .*Explode\(\)"):
        trainer.fit(backend.array(x * 1e6), backend.array(x[:, :2]), progress=False)
    assert trainer.step_count == 0
    assert finite(backend, trainer)


def test_a_huge_learning_rate_in_the_middle_of_training(backend: Any) -> None:
    """Epochs before the one that diverges stay in the history; the step that is named is the one that went wrong."""

    @dataclass(frozen=True)
    class Cliff(bp.Schedule):
        def __call__(self, step: int) -> float:
            return 0.01 if step < 7 else 1e200

    x = rows()[0]
    trainer = bp.Trainer(bp.Sequential(bp.Dense(4), bp.Dense(2)), "mse", bp.SGD(Cliff()))
    with pytest.raises(bp.errors.DivergedError, match=r"at step [89]:"):
        trainer.fit(backend.array(x), backend.array(x[:, :2]), epochs=9, batch_size=16, progress=False)
    assert len(trainer.history) == 2
    assert finite(backend, trainer)
    assert trainer.step_count in (7, 8)


NORMED = bp.Sequential(bp.BatchNorm(), bp.Dense(3))


def test_a_buffer_that_overflows_is_divergence(backend: Any) -> None:
    """One finite value, too large to be squared: the state from before its step comes back, all of it."""
    x, y = rows(dtype="float32")
    good, wild = x.copy(), x.copy()
    wild[40, 2] = 1e20
    trainer, other = (made(NORMED, bp.Adam(0.01)) for _ in range(2))
    options = {"batch_size": 16, "shuffle": False, "progress": False}
    trainer.fit(backend.array(good), backend.array(y), **options)
    with pytest.raises(bp.errors.DivergedError, match=r"at step 6: var of layer '0', BatchNorm.* no longer finite"):
        trainer.fit(backend.array(wild), backend.array(y), **options)
    other.fit(backend.array(good), backend.array(y), **options)
    other.fit(backend.array(good[:32]), backend.array(y[:32]), **options)
    assert same(backend, trainer, other)
    trainer.fit(backend.array(good), backend.array(y), **options)


def test_data_that_only_a_buffer_shows_to_diverge(backend: Any) -> None:
    """All is far too large: 1 / sqrt(var + epsilon) is 0, so that every output is finite."""
    x, y = rows(dtype="float32")
    trainer = made(NORMED, bp.Adam(0.01))
    with pytest.raises(bp.errors.DivergedError, match=r"at step 1: var of layer '0', BatchNorm"):
        trainer.fit(backend.array(x * np.float32(1e30)), backend.array(y), progress=False)
    assert finite(backend, trainer)
    assert trainer.step_count == 0


def test_an_optimizers_state_that_overflows_is_divergence(backend: Any) -> None:
    """Gradients of 1e24, the squares of which float32 does not hold: the parameters would stay as they are."""
    x = backend.array(np.full((4, 2), 1e12, "float32"))
    trainer = bp.Trainer(bp.Sequential(bp.Dense(1)), "mse", bp.Adam(0.01))
    with pytest.raises(bp.errors.DivergedError, match=r"step 1: Adam's second moment v of weight of layer '0', Dense"):
        trainer.fit(x, x[:, :1] * -1.0, progress=False)
    assert finite(backend, trainer)


def test_finite_numbers_whose_sum_is_not_are_no_divergence(backend: Any) -> None:
    x = backend.array(np.zeros((4, 3), "float32"))
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.Adam(0.1)).build(x)
    weight = np.full((3, 1), 3e38, "float32")
    trainer.parameters = {"weight": backend.array(weight), "bias": backend.array(np.ones(1, "float32"))}
    trainer.fit(x, x[:, :1], epochs=50, batch_size=4, progress=False)
    steps(trainer, x, x[:, :1], 40)
    assert np.array_equal(backend.host(trainer.parameters["weight"]), weight)
    assert abs(float(trainer.parameters["bias"][0])) < 0.1
    assert len(trainer.history) == 50
    large = backend.array(np.asarray([[0.9, 0, 0], [0.9, 0, 0]], "float32"))
    assert np.isfinite(backend.host(trainer.predict(large))).all()  # of which the sum is infinite


@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_a_loss_that_overflows_says_what_to_scale(scale: float, backend: Any) -> None:
    x = rows(dtype="float32")[0]
    trainer = bp.Trainer(LINE, "mse", bp.SGD(0.1))
    with pytest.raises(bp.errors.DivergedError, match=r"the loss is .* up to \de\+\d\d are too large .* scale the"):
        trainer.fit(backend.array(x), backend.array(x[:, :3] * np.float32(scale)), progress=False)


def with_weight(backend: Any, trainer: bp.Trainer, value: float) -> None:
    """One weight of the first layer replaced."""
    tree = trainer.parameters
    weight = backend.host(tree["0"]["weight"]).copy()
    weight[1, 1] = value
    trainer.parameters = {**tree, "0": {**tree["0"], "weight": backend.array(weight)}}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_parameters_that_are_no_numbers_are_told_of(activation: str, backend: Any) -> None:
    x, y = map(backend.array, rows())
    trainer = made(bp.Sequential(bp.Dense(4, activation), bp.Dense(3))).build(x)
    start = trainer.snapshot()
    with_weight(backend, trainer, math.nan)
    spoiled = everything(backend, trainer)
    for call in (
        lambda: trainer.predict(x),
        lambda: trainer.predict(x, batch_size=7),
        lambda: trainer.evaluate(x, y),
        lambda: trainer.evaluate(x, y, batch_size=7),
        lambda: trainer.step(x, y),
        lambda: trainer.fit(x, y, progress=False),
    ):
        with pytest.raises(bp.errors.DivergedError, match=r"weight of layer '0', Dense"):
            call()
        for a, b in zip(everything(backend, trainer), spoiled, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises((bp.errors.DataError, bp.errors.DivergedError), match=r"x has NaN|weight of layer '0'"):
        trainer.predict(x * math.nan)  # both are at fault
    trainer.restore(start)
    trainer.predict(x)
    trainer.step(x, y)


def test_infinite_outputs_and_losses_are_results(backend: Any) -> None:
    x, _ = rows()
    trainer = bp.Trainer(bp.Dense(3), "mse").build(backend.array(x))
    weight = backend.host(trainer.parameters["weight"])
    bias = np.asarray([0.0, -np.inf, 1.0])
    trainer.parameters = {"weight": backend.array(weight), "bias": backend.array(bias)}
    backend.close(trainer.predict(backend.array(x))[:, 2:], x @ weight[:, 2:] + 1.0)
    assert np.all(backend.host(trainer.predict(backend.array(x), batch_size=5))[:, 1] == -np.inf)
    assert trainer.evaluate(backend.array(x), backend.array(x[:, :3]))["loss"] == math.inf


def test_outputs_that_overflow_to_nan_name_their_layer(backend: Any) -> None:
    """Every parameter is finite, and so is x."""
    x = np.full((5, 2), 1e300)
    x[3:] = 0.0
    network = bp.Sequential(bp.Dense(2, bias=False), bp.Dense(1, bias=False))
    trainer = bp.Trainer(network, "mse").build(backend.array(x))
    large = {"0": {"weight": [[1e300, 1e300]] * 2}, "1": {"weight": [[1.0], [-1.0]]}}
    trainer.parameters = {name: {"weight": backend.array(np.asarray(p["weight"]))} for name, p in large.items()}
    assert np.array_equal(backend.host(trainer.predict(backend.array(x[3:]))), np.zeros((2, 1)))
    with pytest.raises(bp.errors.DivergedError, match=r"though x is finite: the output of layer '0', Dense"):
        trainer.predict(backend.array(x[::-1].copy()))


def steps(trainer: bp.Trainer, x: Any, y: Any, count: int) -> None:
    for _ in range(count):
        trainer.step(x, y)


def test_validation_that_gives_nan_is_told_of(backend: Any) -> None:
    """Of finite data: both outputs of the first layer overflow, and the second takes their difference."""
    x = backend.array(np.zeros((4, 2)))
    far, y = backend.array(np.full((4, 2), 1e300)), backend.array(np.zeros((4, 1)))
    network = bp.Sequential(bp.Dense(2, bias=False), bp.Dense(1, bias=False))
    trainer = bp.Trainer(network, "mse", bp.SGD(0.1)).build(x)
    large = {"0": {"weight": [[1e300, 1e300]] * 2}, "1": {"weight": [[1.0], [-1.0]]}}
    trainer.parameters = {name: {"weight": backend.array(np.asarray(p["weight"]))} for name, p in large.items()}
    told = "at step 2 .* the loss is NaN, though x is finite: the output of layer '0'.* before step 1 were kept"
    with pytest.raises(bp.errors.DivergedError, match=told):
        trainer.fit(x, y, batch_size=2, validation=(far, y), progress=False)
    assert finite(backend, trainer)
    assert trainer.step_count == len(trainer.history) == 0


class SpoilsAStep(bp.Callback):
    """Puts NaN into the bias after the second step."""

    def on_step_end(self, trainer: Any, step: int) -> None:
        if step == 2:
            self.before = trainer.snapshot()
            tree = trainer.parameters
            tree["0"]["bias"] = tree["0"]["bias"] + math.nan
            trainer.parameters = tree


def test_nan_that_a_callback_sets_is_named_and_undone(backend: Any) -> None:
    x = backend.array(np.ones((12, 3)))
    trainer, spoils = bp.Trainer(bp.Sequential(bp.Dense(2)), "mse"), SpoilsAStep()
    told = r"at step 2: a callback has put NaN into bias of layer '0', Dense.* that step 2 left were kept"
    with pytest.raises(bp.errors.DivergedError, match=told):
        trainer.fit(x, x[:, :2], batch_size=3, callbacks=[spoils], progress=False)
    assert trainer.step_count == 2
    np.testing.assert_array_equal(backend.host(trainer.theta), backend.host(spoils.before[0][0]))


@pytest.mark.parametrize("optimizer", [bp.SGD(1e200), bp.Adam(1e200)], ids=str)
def test_steps_that_diverge_raise_and_go_back(optimizer: Any, backend: Any) -> None:
    x, y = map(backend.array, rows())
    trainer = made(bp.Sequential(bp.Dense(4), bp.Dense(4), bp.Dense(3)), optimizer).build(x)
    with pytest.raises(bp.errors.DivergedError, match=r"diverged at step \d: .*from before step 1 were kept"):
        steps(trainer, x, y, 9)
    assert trainer.step_count == 0
    calm = made(trainer.network, optimizer).build(x)
    assert same(backend, trainer, calm)


def test_steps_look_at_the_parameters_they_make(backend: Any) -> None:
    """The loss of the only step is finite, and no other step shows what has become of the parameters."""
    x = backend.array(1e100 * rows()[0])
    trainer, trusting = (bp.Trainer(bp.Sequential(bp.Dense(1)), "mse", bp.SGD(1e300)) for _ in range(2))
    assert math.isfinite(float(trusting.step(x, x[:, 0], check=False)))  # looks at nothing
    with pytest.raises(bp.errors.DivergedError, match="at step 1: weight of layer '0'"):
        trainer.step(x, x[:, 0])
    assert finite(backend, trainer)


def test_steps_look_at_buffers_and_state_now_and_then(backend: Any) -> None:
    x, y = rows(dtype="float32")
    good, y = backend.array(x), backend.array(y)
    x[5, 0] = 1e20
    wild = backend.array(x)
    trainer, other = (made(NORMED, bp.Adam(0.01)) for _ in range(2))
    steps(trainer, good, y, 40)
    steps(other, good, y, 32)
    assert finite(backend, trainer)
    with pytest.raises(bp.errors.DivergedError, match=r"at step 64: var of layer '0', .* from before step 33 were"):
        steps(trainer, wild, y, 32)
    assert same(backend, trainer, other)


def test_steps_never_go_back_beyond_what_the_user_changed(backend: Any) -> None:
    x, y = map(backend.array, rows())
    nothing = backend.array(np.zeros((48, 6)))
    trainer = made(LINE, bp.SGD(1e308)).build(x)
    trainer.step(nothing, y)
    trainer.step(nothing, y, check=False)
    own = trainer.snapshot()
    trainer.restore(own)
    trainer.parameters = {"weight": backend.array(np.full((6, 3), 0.5)), "bias": backend.array(np.ones(3))}
    with pytest.raises(bp.errors.DivergedError, match="from before step 3 were kept"):
        steps(trainer, x, y, 30)
    assert trainer.step_count == 2
    assert np.all(backend.host(trainer.parameters["weight"]) == 0.5)


class Spoils(bp.Callback):
    """Puts NaN into the parameters after the first epoch."""

    def on_epoch_end(self, trainer: bp.Trainer, record: Any) -> None:
        if len(trainer.history) == 1:
            theta, *rest = trainer.snapshot()[0]
            trainer.restore(((theta * math.nan, *rest), trainer.step_count))


@pytest.mark.parametrize("epochs", [1, 3])  # whose next step is the loop's or is fit's own
def test_what_was_kept_is_said_to_have_nan_where_it_has(backend: Any, epochs: int) -> None:
    x, y = map(backend.array, rows())
    trainer = made(LINE, bp.SGD(0.1))

    def train() -> None:
        trainer.fit(x, y, epochs=epochs, batch_size=48, callbacks=[Spoils()], progress=False)
        trainer.step(x, y)

    with pytest.raises(bp.errors.DivergedError, match="from before step 2 had NaN already") as caught:
        train()
    assert "were kept" not in str(caught.value)
    assert np.all(np.isnan(backend.host(trainer.theta)))
    assert trainer.step_count == 1


@pytest.mark.parametrize(
    ("network", "optimizer"),
    [(bp.Dense(1), bp.Adam(0.1, epsilon=3.5e-18)), (bp.Sequential(bp.BatchNorm(epsilon=1.2e-38), bp.Dense(1)), "sgd")],
    ids=["adam", "batch norm"],
)
def test_the_smallest_epsilons_that_are_taken_do(network: Any, optimizer: Any, backend: Any) -> None:
    """A column without a gradient, and one that is constant."""
    x = np.zeros((4, 2), "float32")
    x[:, 0] = 1.0
    trainer = bp.Trainer(network, "mse", optimizer)
    trainer.fit(backend.array(x), backend.array(np.ones((4, 1), "float32")), epochs=3, progress=False)
    assert finite(backend, trainer)


def test_a_batch_of_one_row_leaves_the_running_variance_alone() -> None:
    x = np.random.default_rng(0).standard_normal((9, 4))
    trainer = bp.Trainer(bp.Sequential(bp.BatchNorm(), bp.Dense(1)), "mse").build(x)
    trainer.step(x[:1], x[:1, :1])
    np.testing.assert_array_equal(trainer.buffers, [0.0] * 4 + [1.0] * 4)


def test_a_trainer_can_be_pickled_and_copied() -> None:
    x = np.random.default_rng(0).standard_normal((9, 4))
    trainer = bp.Trainer(bp.Sequential(bp.BatchNorm(), bp.Dense(1)), "mse")
    trainer.fit(x, x[:, :1], epochs=2, progress=False)
    for other in (pickle.loads(pickle.dumps(trainer)), deepcopy(trainer)):
        np.testing.assert_array_equal(other.predict(x), trainer.predict(x))
        other.fit(x, x[:, :1], progress=False)
        assert other.step_count == trainer.step_count + 1


def test_a_snapshot_of_another_network_is_refused() -> None:
    x = np.random.default_rng(0).standard_normal((9, 4))
    one, other = bp.Trainer(bp.Dense(1), "mse").build(x), bp.Trainer(bp.Dense(2), "mse").build(x)
    with pytest.raises(bp.errors.ShapeError, match=r"the snapshot.s parameters has the shape \(10,\); expected \(5,\)"):
        one.restore(other.snapshot())


def test_unchecked_steps_are_the_same_steps() -> None:
    x = np.random.default_rng(0).standard_normal((9, 4))
    one, other = bp.Trainer(bp.Dense(1), "mse").build(x), bp.Trainer(bp.Dense(1), "mse").build(x)
    for _ in range(3):
        assert one.step(x, x[:, :1]) == other.step(x, x[:, :1], check=False)
    np.testing.assert_array_equal(one.theta, other.theta)


@pytest.mark.parametrize(
    ("loss", "target", "weight"),
    [("binary_cross_entropy_with_logits", 1.5, 1.0), ("cross_entropy", 0.9, 1.0), ("mse", 0.0, -0.5)],
)
def test_unchecked_values_are_trusted(loss: str, target: float, weight: float) -> None:
    x, y, weights = np.ones((4, 3)), np.full((4, 2), target), np.array([1.0, weight, 1.0, 1.0])
    trainer = bp.Trainer(bp.Dense(2), loss).build(x)
    with pytest.raises(bp.errors.DataError):
        trainer.step(x, y, weights)
    assert np.isfinite(trainer.step(x, y, weights, check=False))


def test_nothing_asked_for_is_nothing_fetched(backend: Any) -> None:
    assert backend.seam.fetch([]) == []


def test_a_trainer_shows_what_it_is() -> None:
    trainer = bp.Trainer(bp.Sequential(bp.Dense(3), "tanh"), "mse", bp.SGD(0.5))
    start = (
        "<Trainer of Sequential(Dense(units=3, activation='identity', bias=True), Tanh()), MeanSquaredError(), "
        "SGD(lr=0.5, momentum=0.0, nesterov=False, weight_decay=0.0, steps_in_velocity=False): "
    )
    assert repr(trainer) == f"{start}no parameters yet>"
    x = np.ones((4, 2))
    trainer.step(x, np.ones((4, 3)))
    assert repr(trainer) == f"{start}9 parameters (numpy), 1 step done>"
    one = bp.Trainer(bp.Dense(1, bias=False), "mse").build(np.ones((1, 1)))
    assert repr(one).endswith("1 parameter (numpy), 0 steps done>")


def test_help_names_the_attributes() -> None:
    text = bp.Trainer.__doc__ or ""
    listed = text.partition("Attributes\n")[2]
    public = [name for name in vars(bp.Trainer(bp.Dense(1), "mse")) if not name.startswith("_")]
    properties = [
        name for name in dir(bp.Trainer) if isinstance(getattr(bp.Trainer, name), property) and not name.startswith("_")
    ]
    assert {"history", "metadata", "step_count", "stop"} <= {*public, *properties}
    for name in (*public, *properties):
        assert re.search(rf"\b{name}\b", listed) or re.search(rf"^ *{name} : ", text, re.M), name
