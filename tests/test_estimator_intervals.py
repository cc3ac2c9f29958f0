"""What the estimators say besides one value a row: quantiles, deviations, intervals and sets that hold the truth."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import bpnet as bp
from bpnet import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
SMALL: dict[str, Any] = {"hidden_layer_sizes": (16,), "learning_rate_init": 0.01, "random_state": 0}


def noisy(count: int, seed: int = 0) -> tuple[Any, Any]:
    """A number, and a line through it with noise that grows with its size."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2.0, 2.0, (count, 1))
    return x, x[:, 0] + scale(x) * rng.normal(size=count)


def scale(x: Any) -> Any:
    return 0.1 + 0.5 * np.abs(x[:, 0])


def mixed(count: int, seed: int = 0) -> tuple[Any, Any]:
    """Two numbers, and one of three labels, more of them sure where the first number is large."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2))
    logits = np.stack([2.0 * x[:, 0], 2.0 * x[:, 1], np.zeros(count)], axis=1) + rng.gumbel(size=(count, 3))
    return x, np.array(["a", "b", "c"])[logits.argmax(1)]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Regressors of each kind, trained on 600 rows of the noisy line, 200 of which they are calibrated by."""
    x, y = noisy(600)
    kinds: dict[str, Any] = {
        "squared_error": {"dropout": 0.1},
        "gaussian_nll": {},
        "quantile": {"quantiles": (0.1, 0.5, 0.9)},
    }
    common = SMALL | {"max_iter": 60, "batch_size": 50, "calibration_fraction": 1 / 3}
    return {loss: MLPRegressor(loss=loss, **common, **more).fit(x, y) for loss, more in kinds.items()}


def test_quantiles_are_above_as_many_targets_as_they_say(models: Any) -> None:
    x, y = noisy(4000, seed=1)
    found = models["quantile"].predict_quantiles(x)
    assert found.shape == (4000, 3)
    assert (np.diff(found, axis=1) >= 0.0).all()
    np.testing.assert_allclose((y[:, None] < found).mean(0), (0.1, 0.5, 0.9), atol=0.05)
    np.testing.assert_array_equal(models["quantile"].predict(x), found[:, 1])  # the median
    np.testing.assert_array_equal(models["quantile"].predict_quantiles(x, [0.9]), found[:, 2:])
    normal = models["gaussian_nll"].predict_quantiles(x, (0.1, 0.5, 0.9))
    np.testing.assert_allclose((y[:, None] < normal).mean(0), (0.1, 0.5, 0.9), atol=0.05)
    with pytest.raises(ValueError, match=r"quantiles has 0.3; .*\(0.1, 0.5, 0.9\)"):
        models["quantile"].predict_quantiles(x, (0.3,))
    with pytest.raises(ValueError, match="loss='quantile'"):
        models["squared_error"].predict_quantiles(x)


def test_deviations_are_those_of_the_noise(models: Any) -> None:
    x, _ = noisy(500, seed=1)
    mean, deviation = models["gaussian_nll"].predict(x, return_std=True)
    assert mean.shape == deviation.shape == (500,)
    np.testing.assert_array_equal(mean, models["gaussian_nll"].predict(x))
    assert np.corrcoef(deviation, scale(x))[0, 1] > 0.9
    assert deviation.mean() == pytest.approx(scale(x).mean(), rel=0.15)
    with pytest.raises(ValueError, match="gaussian_nll"):
        models["squared_error"].predict(x, return_std=True)


@pytest.mark.parametrize("loss", ["squared_error", "gaussian_nll", "quantile"])
def test_intervals_hold_as_many_targets_as_asked_for(models: Any, loss: str) -> None:
    x, y = noisy(4000, seed=2)
    for coverage in (0.5, 0.9):
        ends = models[loss].predict_interval(x, coverage)
        assert ends.shape == (4000, 2)
        inside = (ends[:, 0] <= y) & (y <= ends[:, 1])
        assert inside.mean() == pytest.approx(coverage, abs=0.08)  # 200 scores: their own deviation is 0.02 ... 0.035
        width = ends[:, 1] - ends[:, 0]
        if loss == "squared_error":
            np.testing.assert_allclose(width, width[0])
        else:
            assert np.corrcoef(width, scale(x))[0, 1] > 0.8
    assert np.isinf(models[loss].predict_interval(x, 0.999)).all() or loss == "quantile"


def test_the_calibration_is_by_rows_that_were_not_trained_on() -> None:
    """A network that knows its rows by heart still gives intervals that are wide enough for new ones."""
    x, y = np.random.default_rng(0).normal(size=(2, 120, 3))
    y, (x_new, y_new) = y[:, 0], np.random.default_rng(1).normal(size=(2, 2000, 3))
    model = MLPRegressor(
        hidden_layer_sizes=(30,), solver="lbfgs", alpha=0.0, max_iter=60, calibration_fraction=0.5, random_state=0
    )
    ends = model.fit(x, y).predict_interval(x_new)
    assert ((ends[:, 0] <= y_new[:, 0]) & (y_new[:, 0] <= ends[:, 1])).mean() > 0.8
    assert model.calibration_scores_.shape == (60, 1)
    by_itself = clone(model).set_params(calibration_fraction=None).fit(x, y)
    with pytest.raises(NotFittedError, match="calibration_fraction"):
        by_itself.predict_interval(x)
    by_itself.calibrate(x_new, y_new[:, 0])
    assert by_itself.calibration_scores_.shape == (2000, 1)
    assert by_itself.predict_interval(x).shape == (120, 2)
    by_itself.fit(x, y)
    with pytest.raises(NotFittedError):  # another network
        by_itself.predict_interval(x)


def test_several_targets_have_an_interval_each() -> None:
    x, y = noisy(300)
    both = np.stack([y, 10.0 * y], axis=1)
    model = MLPRegressor(**SMALL, max_iter=5, loss="quantile", quantiles=(0.1, 0.9), calibration_fraction=0.5)
    ends = model.fit(x, both).predict_interval(x)
    assert ends.shape == (300, 2, 2)
    assert model.predict_quantiles(x).shape == (300, 2, 2)
    assert (ends[:, 1, 1] - ends[:, 1, 0]).mean() > 3.0 * (ends[:, 0, 1] - ends[:, 0, 0]).mean()


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_hold_as_many_labels_as_asked_for(method: str) -> None:
    x, y = mixed(600)
    model = MLPClassifier(**SMALL, max_iter=20, calibration_fraction=1 / 3).fit(x, y)
    new, truth = mixed(4000, seed=1)
    for coverage in (0.7, 0.9):
        sets = model.predict_set(new, coverage, method)
        assert sets.shape == (4000, 3)
        assert sets.dtype == bool
        held = sets[np.arange(4000), np.searchsorted(model.classes_, truth)]
        assert held.mean() == pytest.approx(coverage, abs=0.08)
    sure = model.predict_proba(new).max(1) > 0.8
    assert sets[sure].sum(1).mean() < sets[~sure].sum(1).mean()
    np.testing.assert_array_equal(sets, model.predict_set(new, 0.9, method))  # the same every time
    with pytest.raises(ValueError, match="method is 'raps'"):
        model.predict_set(new, method="raps")
    with pytest.raises(NotFittedError, match="calibrate"):
        clone(model).set_params(calibration_fraction=None).fit(x[:50], y[:50]).predict_set(x)


def test_saved_models_keep_their_calibration(models: Any, tmp_path: Any) -> None:
    x, y = noisy(50)
    for loss, model in models.items():
        model.save(tmp_path / "model.safetensors")
        loaded = bp.load(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(loaded.predict_interval(x, 0.8), model.predict_interval(x, 0.8))
        again = MLPRegressor.from_model(loaded)
        np.testing.assert_array_equal(again.predict_interval(x, 0.8), model.predict_interval(x, 0.8))
        if loss != "squared_error":
            np.testing.assert_array_equal(loaded.predict_quantiles(x), model.predict_quantiles(x))
        np.testing.assert_array_equal(
            loaded.calibrate(x, y).predict_interval(x), again.calibrate(x, y).predict_interval(x)
        )
        with pytest.raises(ValueError, match="predict_interval"):
            loaded.predict_set(x)
    for classes in (2, 3):
        x, y = mixed(200)
        y = np.where(y == "c", "a", y) if classes == 2 else y
        classifier = MLPClassifier(**SMALL, max_iter=5, calibration_fraction=0.5).fit(x, y)
        classifier.save(tmp_path / "model.safetensors")
        loaded = bp.load(tmp_path / "model.safetensors")
        for method in ("lac", "aps"):
            expected = classifier.predict_set(x, 0.8, method)
            np.testing.assert_array_equal(loaded.predict_set(x, 0.8, method), expected)
        loaded.calibrate(x, y)
        np.testing.assert_array_equal(loaded.predict_set(x), classifier.calibrate(x, y).predict_set(x))
        loaded.settings = {}
        with pytest.raises(ValueError, match="calibrate"):
            loaded.predict_set(x)


def test_dropout_tells_what_a_network_does_not_know(models: Any) -> None:
    model, near = models["squared_error"], np.linspace(-1.0, 1.0, 50)[:, None]
    mean, deviation = model.predict(near, samples=100, return_std=True)
    np.testing.assert_allclose(mean, model.predict(near), atol=0.3)
    _, far = model.predict(near + 20.0, samples=100, return_std=True)
    assert far.mean() > 3.0 * deviation.mean()  # nobody saw such rows
    again = model.predict(near, samples=100)
    np.testing.assert_array_equal(again, mean)
    x, y = mixed(200)
    classifier = MLPClassifier(**SMALL, max_iter=5, dropout=0.3).fit(x, y)
    chances, spread = classifier.predict_proba(x, samples=40, return_std=True)
    np.testing.assert_allclose(chances.sum(1), 1.0)
    np.testing.assert_allclose(chances, classifier.predict_proba(x), atol=0.2)
    assert 0.0 < spread.mean() < 0.3
    with pytest.raises(TypeError, match="dropout"):
        MLPRegressor(**SMALL, max_iter=1).fit(near, near[:, 0]).predict(near, samples=5)


def test_members_tell_how_far_they_disagree() -> None:
    x, y = noisy(200)
    model = MLPRegressor(**SMALL, max_iter=10, ensemble=4).fit(x, y)
    mean, deviation = model.predict(x, return_std=True)
    np.testing.assert_array_equal(mean, model.predict(x))
    assert (deviation > 0.0).all()
    quantiles = MLPRegressor(**SMALL, max_iter=2, ensemble=4, loss="quantile").fit(x, y).predict_quantiles(x)
    assert quantiles.shape == (200, 3)


def test_what_is_said_lies_where_x_does(backend: Any) -> None:
    if backend.name.startswith("jax"):
        pytest.skip("JAX compiles for long; test_conformal.py has these functions there")
    x, y = noisy(60)
    own, target = backend.array(x), backend.array(y)
    model = MLPRegressor(**SMALL, max_iter=2, loss="gaussian_nll", calibration_fraction=0.5).fit(own, target)
    found = [*model.predict(own, return_std=True), model.predict_quantiles(own), model.predict_interval(own)]
    features, labels = mixed(60)
    classifier = MLPClassifier(**SMALL, max_iter=2, calibration_fraction=0.5, dropout=0.1)
    classifier.fit(backend.array(features), labels)
    rows = backend.array(features)
    found += [classifier.predict_set(rows), classifier.predict_set(rows, method="aps")]
    found += [*classifier.predict_proba(rows, samples=2, return_std=True), model.calibration_scores_]
    assert all(isinstance(array, type(own)) for array in found)


def test_what_can_not_be_is_refused() -> None:
    x, y = noisy(40)
    for wrong in (0.0, 1.0, -0.5, "some"):
        with pytest.raises(ValueError, match="calibration_fraction"):
            MLPRegressor(calibration_fraction=wrong).fit(x, y)
    with pytest.raises(ValueError, match="quantiles"):
        MLPRegressor(loss="quantile", quantiles=(0.5, 1.5)).fit(x, y)
    model = MLPRegressor(**SMALL, max_iter=1, calibration_fraction=0.5).fit(x, y)
    with pytest.raises(ValueError, match="coverage"):
        model.predict_interval(x, 90)
    with pytest.raises(ValueError, match="samples"):
        model.predict(x, samples=-1)
    several = MLPClassifier(**SMALL, max_iter=1).fit(x, np.eye(2, dtype=int)[np.arange(40) % 2])
    with pytest.raises(ValueError, match="one label a row"):
        several.calibrate(x, np.eye(2, dtype=int)[np.arange(40) % 2])
    classifier = MLPClassifier(**SMALL, max_iter=1).fit(x, np.arange(40) % 2)
    with pytest.raises(ValueError, match="classes"):
        classifier.calibrate(x, np.arange(40) % 3)
    with pytest.raises(bp.errors.OptionError, match="coverage"):
        model.predict_interval(x, 2.0)
