"""Who learns the tables, each at its defaults: as a user would call it, what it needs done to the columns included."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.tables.fetch import Columns
from bench.tables.sets import Array, Table

Predict = Callable[[Any], Array]


@dataclass(frozen=True)
class Method:
    """A `form` that the columns are brought into beforehand, and `fit`, which returns what predicts.

    What fit is given: the columns so, the target, whether that is a class, the seed and the number of threads.
    """

    label: str
    form: Callable[[Columns], Any]
    fit: Callable[[Any, Array, bool, int, int], Predict]


def filled(column: Array, missing: str | None) -> Array:
    """Text as objects, with `missing` where there is none; numbers as they are."""
    if column.dtype.kind == "f":
        return column
    values = column.astype(object)
    values[column == ""] = missing
    return values


def plain(columns: Columns) -> dict[str, Any]:
    """Columns as bpnet takes them."""
    return {name: filled(column, None) for name, column in columns.items()}


def frame(columns: Columns) -> Any:
    """A pandas frame of numbers and categories, whose missing ones are missing."""
    import pandas as pd

    found = {n: c if c.dtype.kind == "f" else pd.Categorical(filled(c, None)) for n, c in columns.items()}
    return pd.DataFrame(found)


def known_frame(columns: Columns) -> Any:
    """A pandas frame in which text that is missing is a category of its own."""
    import pandas as pd

    return pd.DataFrame({name: filled(column, "missing") for name, column in columns.items()})


def train_table(**options: Any) -> Callable[[Any, Array, bool, int, int], Predict]:
    """``bpnet.train_table`` with these options."""

    def fit(x: Any, y: Array, classes: bool, seed: int, threads: int) -> Predict:
        import bpnet as bp

        categories = {name: "category" for name, column in x.items() if column.dtype.kind == "O"}  # also of digits
        predict: Predict = bp.train_table(x, y, types=categories, seed=seed, **options).predict
        return predict

    return fit


def with_pytabkit(name: str) -> Callable[[Any, Array, bool, int, int], Predict]:
    """One of pytabkit's classifiers and regressors; numbers that are missing become the median, and are marked."""

    def fit(x: Any, y: Array, classes: bool, seed: int, threads: int) -> Predict:
        import pytabkit
        from sklearn.compose import make_column_selector, make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline

        kind = getattr(pytabkit, f"{name}_{'Classifier' if classes else 'Regressor'}")
        model = kind(device="cpu", random_state=seed, n_threads=threads)
        if x.isna().to_numpy().any():
            numbers = SimpleImputer(strategy="median", add_indicator=True), make_column_selector(dtype_include="number")
            whole = make_column_transformer(numbers, remainder="passthrough", verbose_feature_names_out=False)
            model = make_pipeline(whole.set_output(transform="pandas"), model)
        model.fit(x, y)
        predict: Predict = model.predict
        return predict

    return fit


def sklearn_mlp(x: Any, y: Array, classes: bool, seed: int, threads: int) -> Predict:
    """scikit-learn's MLP behind the usual pipeline: scaled numbers, one-hot categories, a scaled target."""
    from sklearn.compose import TransformedTargetRegressor, make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    inputs = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), make_column_selector(dtype_exclude="number")),
    )
    if classes:
        model = make_pipeline(inputs, MLPClassifier(random_state=seed))
    else:
        scaled = TransformedTargetRegressor(MLPRegressor(random_state=seed), transformer=StandardScaler())
        model = make_pipeline(inputs, scaled)
    model.fit(x, y)
    predict: Predict = model.predict
    return predict


def gradient_boosting(x: Any, y: Array, classes: bool, seed: int, threads: int) -> Predict:
    """scikit-learn's histogram-based gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    model = (HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor)(random_state=seed)
    model.fit(x, y)
    predict: Predict = model.predict
    return predict


METHODS = {
    "strong": Method('bpnet, preset="strong"', plain, train_table(preset="strong")),
    "bpnet": Method("bpnet, defaults", plain, train_table()),
    "realmlp-td": Method("RealMLP-TD", known_frame, with_pytabkit("RealMLP_TD")),
    "realmlp-td-s": Method("RealMLP-TD-S", known_frame, with_pytabkit("RealMLP_TD_S")),
    "tabm": Method("TabM-D", known_frame, with_pytabkit("TabM_D")),
    "boosting": Method("gradient boosting", frame, gradient_boosting),
    "mlp": Method("scikit-learn's MLP", known_frame, sklearn_mlp),
}


def warm_up() -> Table:
    """A small table with every kind of column, so that imports are over when the first one counts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    columns = {"a": x, "b": np.where(rng.random(120) < 0.1, np.nan, rng.normal(size=120))}
    columns["c"] = np.where(rng.random(120) < 0.3, "low", np.where(rng.random(120) < 0.1, "", "high"))
    return Table(columns, np.where(x + 0.1 * rng.normal(size=120) > 0, "yes", "no"))


def learn(method: Method, train: Table, test: Table, seed: int, threads: int, clock: Callable[[], Any]) -> list[Any]:
    """Fit and predict: what the clock said before, between and after, and the predictions."""
    x, x_test = method.form(train.columns), method.form(test.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # defaults are measured, of which some warn that they stop before the end
        begun = clock()
        predict = method.fit(x, train.target, train.classes, seed, threads)
        fitted = clock()
        found = predict(x_test)
    return [begun, fitted, clock(), np.asarray(found).reshape(-1)]
