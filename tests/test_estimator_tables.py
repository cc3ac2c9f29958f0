"""Estimators on tables as they come: text, booleans, dates, gaps, and numbers of any scale."""

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import get_tags

import bpnet as bp
from bpnet import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
SMALL: dict[str, Any] = {"hidden_layer_sizes": (16,), "max_iter": 40, "learning_rate_init": 0.02, "random_state": 0}
COLOURS = np.array(["red", "green", "blue"], dtype=object)


def columns(count: int = 240) -> tuple[dict[str, Any], Any]:
    """A table whose target is by the colour, the flag, and whether the size is missing."""
    rng = np.random.default_rng(0)
    colour, flag, gap = rng.integers(3, size=count), rng.random(count) > 0.5, rng.random(count) > 0.7
    size = np.where(gap, np.nan, rng.normal(size=count))
    day = np.datetime64("2024-01-01") + rng.integers(700, size=count)
    y = np.where(gap, "none", np.where(flag, COLOURS[colour], "off")).astype(object)
    return {"colour": COLOURS[colour], "flag": flag, "size": size, "day": day}, y


@pytest.fixture(params=["pandas", "polars"])
def frame(request: pytest.FixtureRequest) -> Any:
    library = pytest.importorskip(request.param)
    table, y = columns()
    return library.DataFrame(table), y


def test_columns_are_read_by_their_types(frame: Any) -> None:
    x, y = frame
    model = MLPClassifier(**SMALL, categorical_features="from_dtype", scaling="standard").fit(x, y)
    assert model.score(x, y) > 0.95
    assert list(model.feature_names_in_) == ["colour", "flag", "size", "day"]
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert get_tags(model).input_tags.categorical
    search = GridSearchCV(clone(model).set_params(max_iter=2), {"alpha": [0.0, 0.1]}, cv=2).fit(x, y)
    assert search.predict(x).shape == (240,)
    model.partial_fit(x, y)
    with pytest.raises(ValueError, match=r"categorical_features='from_dtype'"):
        MLPClassifier().fit(x.drop(columns="day") if hasattr(x, "loc") else x.drop("day"), y)


def test_a_model_takes_the_same_frame_without_scikit_learn(frame: Any, tmp_path: Any) -> None:
    x, y = frame
    model = MLPClassifier(**SMALL, categorical_features="from_dtype").fit(x, y)
    model.save(tmp_path / "model.safetensors")
    loaded = bp.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
    again = MLPClassifier.from_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert again.categorical_features == "from_dtype"


def test_values_that_were_not_there_say_nothing() -> None:
    pandas = pytest.importorskip("pandas")
    table, y = columns()
    x = pandas.DataFrame(table)[["colour", "size"]]
    model = MLPClassifier(**SMALL, categorical_features=["colour"]).fit(x, y)
    new = pandas.DataFrame({"colour": ["violet", None, "red"], "size": [0.1, 0.1, 0.1]})
    chances = model.predict_proba(new)
    np.testing.assert_array_equal(chances[0], chances[1])  # unseen and missing both: no colour
    assert not np.array_equal(chances[0], chances[2])


def test_categories_by_name_number_and_mask() -> None:
    pandas = pytest.importorskip("pandas")
    table, y = columns()
    x = pandas.DataFrame(table)[["colour", "flag", "size"]]
    ways: list[Any] = [["colour"], [0], [True, False, False], np.array(["colour"], dtype=object)]
    found = [MLPClassifier(**SMALL, categorical_features=way).fit(x, y).predict_proba(x) for way in ways]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    for wrong in ([3], ["shape"], [True], 1.5, "all", [0.5]):
        with pytest.raises(ValueError, match=r"categorical_features|no column"):
            MLPClassifier(categorical_features=wrong).fit(x, y)


def test_codes_in_an_array_of_any_library(backend: Any) -> None:
    """Ten codes, of which no order tells anything: a line through them is wrong, a table of them is right."""
    if backend.name.startswith("jax"):
        pytest.skip("JAX compiles for long")
    rng = np.random.default_rng(0)
    codes, numbers = rng.integers(10, size=200), rng.normal(size=200)
    x, y = np.stack([codes, numbers], axis=1), rng.permutation(10)[codes] % 2
    own = backend.array(x)
    model = MLPClassifier(**SMALL, categorical_features=[0], activation="identity").fit(own, y)
    assert model.score(own, y) == 1.0
    assert isinstance(model.predict_proba(own), type(own))
    assert isinstance(model.coefs_[0], type(own))
    assert MLPClassifier(**SMALL, activation="identity").fit(own, y).score(own, y) < 0.8


@pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
def test_missing_numbers_are_told_to_the_network(backend: Any, estimator: Any) -> None:
    if backend.name.startswith("jax"):
        pytest.skip("JAX compiles for long")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 3))
    y = rng.integers(2, size=160)
    x[y == 1, 1] = np.nan  # all that tells of y
    own = backend.array(x)
    model = estimator(**SMALL, early_stopping=True, n_iter_no_change=100).fit(own, backend.array(y))
    assert model.score(own, backend.array(y)) > 0.9
    assert get_tags(model).input_tags.allow_nan
    x[0, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN in column 2, which had no missing values"):
        model.predict(backend.array(x))
    with pytest.raises(ValueError, match="NaN"):
        estimator(**SMALL).fit(np.nan_to_num(x), y).partial_fit(x, y)


@pytest.mark.parametrize("scaling", ["standard", "robust", "quantile"])
def test_scaling_makes_units_immaterial(scaling: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(120, 3)), np.arange(120) % 2
    units = np.array([1.0, 1e3, 1e-4])
    options = SMALL | {"scaling": scaling, "max_iter": 5}
    one, other = MLPClassifier(**options).fit(x, y), MLPClassifier(**options).fit(x * units + 7.0 * units, y)
    np.testing.assert_allclose(other.predict_proba(x * units + 7.0 * units), one.predict_proba(x), rtol=1e-6)
    assert isinstance(one.coefs_[0], np.ndarray)


def test_everything_together_with_the_strong_preset_and_an_ensemble() -> None:
    pandas = pytest.importorskip("pandas")
    table, y = columns(120)
    x = pandas.DataFrame(table)
    for more in ({"preset": "strong", "max_iter": 8}, {"ensemble": 4, "max_iter": 40, "scaling": "robust"}):
        model = MLPClassifier(**(SMALL | {"categorical_features": "from_dtype"} | more)).fit(x, y)
        assert model.score(x, y) > 0.7
