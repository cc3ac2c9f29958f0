"""What scikit-learn's own tests promise of its multi-layer perceptrons, each promise told again of ours.

The promises are those of scikit-learn 1.9; how they are tried here is our own.
"""

import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")

import joblib
from scipy import sparse
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import roc_auc_score

from bpnet import MLPClassifier, MLPRegressor

BOTH = pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
ACTIVATIONS = ["identity", "logistic", "tanh", "relu"]


def digits(classes: int, rows: int = 200) -> tuple[Any, Any]:
    x, y = load_digits(n_class=classes, return_X_y=True)
    return x[:rows] / 16.0, y[:rows]


def curve(rows: int = 200) -> tuple[Any, Any]:
    """Ten numbers of a row, and a noisy linear function of them of mean 0 and deviation 1."""
    x, y = make_regression(rows, 10, noise=100.0, random_state=7)
    return x, (y - y.mean()) / y.std()


def fitted(model: Any, x: Any, y: Any, **more: Any) -> Any:
    """The model fitted, converged or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y, **more)


def sizes(model: Any) -> Any:
    return np.array([np.abs(w).sum() for w in model.coefs_])


# ---- one step of the descent ----------------------------------------------------------------------------------------


def forward(coefs: Any, intercepts: Any, x: Any, activation: str) -> Any:
    function = {
        "identity": lambda z: z,
        "logistic": lambda z: 1 / (1 + np.exp(-z)),
        "tanh": np.tanh,
        "relu": lambda z: np.maximum(z, 0),
    }[activation]
    for w, b in zip(coefs[:-1], intercepts[:-1], strict=True):
        x = function(x @ w + b)
    return x @ coefs[-1] + intercepts[-1]


def log_loss(z: Any, t: Any) -> float:
    """Mean over rows of the cross-entropy of a softmax, or, of one output, of a logistic function."""
    if z.shape[1] == 1:
        return float(np.mean(np.log1p(np.exp(z)) - t * z))
    return float(np.mean(np.log(np.exp(z).sum(1)) - (t * z).sum(1)))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_of_gradient_descent_goes_against_the_differences_of_the_loss(activation: str, classes: int) -> None:
    rng, alpha = np.random.default_rng(0), 0.3
    x, y = rng.normal(size=(6, 4)), np.arange(6) % classes
    options: Any = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.5, "alpha": alpha, "random_state": 1}
    model = MLPClassifier(3, activation, **options).partial_fit(x, y, classes=range(classes))
    before = [w.copy() for w in (*model.coefs_, *model.intercepts_)]
    target = np.eye(classes)[y] if classes > 2 else y[:, None]

    def loss(*parameters: Any) -> float:
        coefs, intercepts = parameters[:2], parameters[2:]
        decay = sum(float((w * w).sum()) for w in coefs) * alpha / 2 / len(x)
        return log_loss(forward(coefs, intercepts, x, activation), target) + decay

    assert model.predict_proba(x).shape == (6, classes)
    model.partial_fit(x, y)
    assert model.loss_ == pytest.approx(loss(*before), rel=1e-12)
    for place, after in enumerate((*model.coefs_, *model.intercepts_)):
        for index in np.ndindex(after.shape):
            values = []
            for change in (1e-5, -1e-5):
                moved = [w.copy() for w in before]
                moved[place][index] += change
                values.append(loss(*moved))
            step = before[place][index] - 0.5 * (values[0] - values[1]) / 2e-5
            assert after[index] == pytest.approx(step, abs=1e-8), (place, index)


def test_a_larger_alpha_gives_smaller_weights() -> None:
    x, y = digits(2, 100)
    small, large = (fitted(MLPClassifier(10, alpha=alpha, random_state=1), x, y) for alpha in (0.0, 1.0))
    assert (sizes(large) < sizes(small)).all()


# ---- L-BFGS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_lbfgs_learns_classes(classes: int) -> None:
    x, y = digits(classes)
    for activation in ACTIVATIONS:
        model = fitted(MLPClassifier(20, activation, solver="lbfgs", max_iter=100, random_state=1), x[:150], y[:150])
        assert model.score(x[:150], y[:150]) > 0.95
        labels = model.predict(x[150:])
        assert labels.shape == (50,)
        assert labels.dtype == y.dtype


def test_lbfgs_learns_numbers() -> None:
    x, y = curve()
    for activation in ACTIVATIONS:
        model = fitted(
            MLPRegressor(
                hidden_layer_sizes=30, activation=activation, solver="lbfgs", max_iter=200, tol=1e-3, random_state=1
            ),
            x,
            y,
        )
        assert model.score(x, y) > (0.8 if activation == "identity" else 0.98)


@BOTH
def test_max_fun_bounds_lbfgs_and_says_that_it_has_not_converged(estimator: Any) -> None:
    x, y = digits(3)
    model = estimator(hidden_layer_sizes=20, solver="lbfgs", tol=0.0, max_fun=10, random_state=1)
    with pytest.warns(ConvergenceWarning):
        model.fit(x, y)
    assert model.n_iter_ <= 10


def test_poisson_loss_without_a_hidden_layer_to_speak_of_is_poisson_regression() -> None:
    x = np.linspace(0.0, 1.0, 100)[:, None]
    y = np.random.default_rng(0).poisson(np.exp(x[:, 0] + 1.0))
    straight = PoissonRegressor(alpha=0.0, tol=1e-7).fit(x, y).predict(x)
    options: Any = {"alpha": 0.0, "solver": "lbfgs", "tol": 1e-7, "random_state": 1}
    network = fitted(MLPRegressor(hidden_layer_sizes=(1,), activation="identity", loss="poisson", **options), x, y)
    np.testing.assert_allclose(network.predict(x), straight, rtol=1e-4)
    other = fitted(MLPRegressor(hidden_layer_sizes=(1,), activation="identity", **options), x, y)
    assert not np.allclose(other.predict(x), straight, rtol=1e-4)


# ---- several targets ------------------------------------------------------------------------------------------------


def test_several_labels_a_row() -> None:
    x, y = make_multilabel_classification(50, random_state=0)
    model = fitted(MLPClassifier(20, "logistic", solver="lbfgs", alpha=1e-5, random_state=0), x, y)
    assert model.score(x, y) > 0.97
    chances = model.predict_proba(x)
    assert chances.shape == y.shape
    np.testing.assert_array_equal(chances > 0.5, y == 1)
    assert np.abs(chances.sum(1) - 1.0).max() > 1e-5  # they are of one label each, and no softmax
    np.testing.assert_allclose(model.predict_log_proba(x), np.log(chances), atol=1e-12)
    model = MLPClassifier(50, "logistic", solver="sgd", alpha=1e-5, learning_rate_init=0.4, random_state=0)
    for _ in range(50):
        model.partial_fit(x, y, classes=range(5))
    assert model.score(x, y) > 0.9
    early = fitted(MLPClassifier(10, early_stopping=True, max_iter=3, random_state=0), x, y)  # in no strata
    assert early.predict(x).shape == y.shape


def test_several_numbers_a_row() -> None:
    x, y = make_regression(200, 20, n_targets=5, random_state=11)
    model = fitted(MLPRegressor(hidden_layer_sizes=20, solver="lbfgs", tol=1e-2, random_state=1), x, y)
    assert model.score(x, y) > 0.9


# ---- probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_and_their_logarithms_agree(classes: int) -> None:
    x, y = digits(classes, 50)
    model = fitted(MLPClassifier(5, "logistic", learning_rate_init=0.01, random_state=1), x, y)
    chances, logs = model.predict_proba(x), model.predict_log_proba(x)
    assert chances.shape == (50, classes)
    np.testing.assert_allclose(chances.sum(1), 1.0)
    np.testing.assert_array_equal(chances.argmax(1), logs.argmax(1))
    np.testing.assert_allclose(logs, np.log(chances), atol=1e-12)
    if classes == 2:
        assert roc_auc_score(y, chances[:, 1]) == 1.0


# ---- partial_fit ----------------------------------------------------------------------------------------------------


def test_partial_fit_again_and_again_is_fit() -> None:
    for classes in (2, 3):
        x, y = digits(classes)
        options: Any = {"solver": "sgd", "alpha": 1e-5, "learning_rate_init": 0.2, "random_state": 1}
        whole = fitted(MLPClassifier(20, tol=0.0, max_iter=40, **options), x, y)
        part = MLPClassifier(20, **options)
        for _ in range(40):
            part.partial_fit(x, y, classes=np.unique(y))
        np.testing.assert_array_equal(part.predict(x), whole.predict(x))
        assert part.score(x, y) > 0.95
    x, y = curve()
    for momentum in (0.0, 0.9):
        options = {"solver": "sgd", "learning_rate_init": 0.01, "random_state": 1, "batch_size": 200}
        whole = fitted(MLPRegressor(momentum=momentum, max_iter=100, **options), x, y)
        part = MLPRegressor(momentum=momentum, **options)
        for _ in range(100):
            part.partial_fit(x, y)
        np.testing.assert_allclose(part.predict(x), whole.predict(x))
        assert part.score(x, y) > 0.65


def test_partial_fit_wants_all_classes_at_once_and_keeps_to_them() -> None:
    model = MLPClassifier(4, random_state=0)
    with pytest.raises(ValueError, match="classes"):
        model.partial_fit([[1.0], [2.0]], ["a", "b"])
    model.partial_fit([[1.0], [2.0], [3.0]], ["a", "b", "c"], classes=["a", "b", "c", "d"])
    model.partial_fit([[4.0]], ["d"])
    assert list(model.classes_) == ["a", "b", "c", "d"]
    assert model.score([[1.0], [2.0], [3.0], [4.0]], ["a", "b", "c", "d"]) > 0
    with pytest.raises(ValueError, match="classes"):
        model.partial_fit([[1.0]], ["a"], classes=["a", "b"])
    with pytest.raises(ValueError, match="classes"):
        model.partial_fit([[1.0]], ["e"])
    with pytest.raises(ValueError, match="classes"):
        MLPClassifier(4).partial_fit([[3.0], [1.0]], [1, 0], classes=[2])


@BOTH
def test_partial_fit_is_there_for_stochastic_solvers_and_without_early_stopping(estimator: Any) -> None:
    x, y = digits(2, 60)
    with pytest.raises(AttributeError, match="partial_fit"):
        estimator(solver="lbfgs").partial_fit(x, y)
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    assert hasattr(estimator(solver="sgd"), "partial_fit")
    model = fitted(estimator(hidden_layer_sizes=4, early_stopping=True, max_iter=2, random_state=0), x, y)
    with pytest.raises(ValueError, match="early_stopping"):
        model.partial_fit(x, y)


def test_what_joblib_has_loaded_goes_on_learning(tmp_path: Any) -> None:
    model = MLPRegressor(hidden_layer_sizes=(42,), learning_rate_init=0.01, random_state=42).fit([[2.0]], [4.0])
    joblib.dump(model, tmp_path / "model.pkl")
    again = joblib.load(tmp_path / "model.pkl")
    for _ in range(200):
        again.partial_fit([[2.0]], [1.0])
    np.testing.assert_allclose(again.predict([[2.0]]), [1.0], rtol=1e-3)
    assert model.predict([[2.0]])[0] > 3.0  # which is another one


# ---- when it ends ---------------------------------------------------------------------------------------------------


def test_it_stops_where_the_loss_no_longer_falls_by_tol() -> None:
    x, y = digits(2, 100)
    for patience in (2, 10):
        model = MLPClassifier(tol=0.01, max_iter=3000, solver="sgd", n_iter_no_change=patience, random_state=0)
        model.fit(x, y)
        assert model.n_iter_ == len(model.loss_curve_) < 3000
        best, since = np.inf, 0
        for loss in model.loss_curve_:
            since = since + 1 if loss > best - 0.01 else 0
            best = min(best, loss)
        assert since == patience + 1
        assert model.best_loss_ == best


def test_it_never_stops_early_where_no_number_of_epochs_is_enough() -> None:
    x, y = digits(2, 20)
    model = MLPClassifier(2, tol=1e9, max_iter=30, solver="sgd", n_iter_no_change=np.inf)
    with pytest.warns(ConvergenceWarning, match="30"):
        model.fit(x, y)
    assert model.n_iter_ == 30


def test_an_adaptive_rate_falls_before_it_stops() -> None:
    options: Any = {"tol": 0.5, "max_iter": 3000, "solver": "sgd", "n_iter_no_change": 3, "random_state": 0}
    x, y = [[3.0, 2.0], [1.0, 6.0]], [1, 0]
    constant = MLPClassifier(5, **options).fit(x, y)
    adaptive = MLPClassifier(5, learning_rate="adaptive", **options).fit(x, y)
    # from 0.001 it is divided by 5 until it is below 1e-6: five times, after as many epochs each
    assert constant.n_iter_ * 5 <= adaptive.n_iter_ < 3000


@BOTH
def test_early_stopping_holds_rows_out_and_keeps_their_scores(estimator: Any) -> None:
    x, y = digits(2, 100)
    options: Any = {"tol": 0.2, "max_iter": 3000, "solver": "sgd", "random_state": 0}
    model = estimator(early_stopping=True, **options).fit(x, y)
    assert model.n_iter_ == len(model.validation_scores_) < 3000
    assert model.best_loss_ is None
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert min(model.validation_scores_[-2:]) < model.best_validation_score_ + 0.2
    model = estimator(**options).fit(x, y)
    assert model.validation_scores_ is None
    assert model.best_validation_score_ is None
    assert model.best_loss_ == min(model.loss_curve_)


def test_rows_are_held_out_class_by_class() -> None:
    with pytest.raises(ValueError, match="least populated class"):
        MLPClassifier(early_stopping=True).fit([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0]], [0, 0, 0, 1])
    with pytest.raises(ValueError, match="validation set is too small"):
        MLPRegressor(early_stopping=True).fit([[1.0, 2.0], [2.0, 1.0]], [0.5, 1.5])


def test_early_stopping_with_labels_of_text() -> None:
    x, y = digits(3, 100)
    names = np.array(["nought", "one", "two"], dtype=object)[y]
    model = fitted(MLPClassifier(10, early_stopping=True, max_iter=5, random_state=0), x, names)
    assert len(model.validation_scores_) == model.n_iter_
    assert np.isfinite(model.validation_scores_).all()


def test_a_run_that_diverges_has_scores_that_are_not_numbers() -> None:
    x, y = load_digits(n_class=3, return_X_y=True)
    options: Any = {"learning_rate_init": 1.0, "early_stopping": True, "max_iter": 20, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MLPRegressor(hidden_layer_sizes=20, activation="identity", solver="sgd", **options).fit(x, y)
    assert isinstance(model.validation_scores_[-1], float)
    assert np.isnan(model.validation_scores_[-1])
    assert np.isfinite(model.predict(x)).all()  # the best network is kept


@BOTH
def test_numbers_too_large_to_learn_from_are_an_error(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    x = np.finfo(np.float64).max * rng.uniform(size=(10, 2))
    model = estimator(hidden_layer_sizes=5, random_state=0)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"non-finite|not finite|large"):
        model.fit(x, np.arange(10) % 2)


# ---- warm start -----------------------------------------------------------------------------------------------------


def test_rows_seen_are_counted_and_set_an_inverse_scaling_rate() -> None:
    x, y = np.array([[3.0, 2.0], [1.0, 6.0], [5.0, 6.0], [-2.0, -4.0]]), np.array([1, 1, 1, 0])
    for rate, expected in (("invscaling", 0.1 / (8 + 1) ** 0.25), ("constant", 0.1)):
        options: Any = {"learning_rate": rate, "power_t": 0.25, "learning_rate_init": 0.1, "momentum": 0.0}
        options |= {"warm_start": True, "alpha": 0.0, "random_state": 0, "max_iter": 1, "solver": "sgd"}
        model = fitted(fitted(MLPClassifier(4, "identity", **options), x, y), x, y)
        assert model.t_ == 8
        before = [w.copy() for w in model.coefs_]
        chance = model.predict_proba(x)[:, 1]
        hidden = x @ before[0] + model.intercepts_[0]
        model.partial_fit(x, y)
        np.testing.assert_allclose(model.coefs_[1], before[1] - expected * hidden.T @ (chance - y)[:, None] / 4)


def test_a_warm_start_wants_the_same_classes() -> None:
    x, y = digits(3, 60)
    model = fitted(MLPClassifier(2, solver="lbfgs", warm_start=True, max_iter=3, random_state=0), x, y)
    fitted(model, x, np.roll(y, 7))
    for other in (y % 2, np.where(y == 2, 3, y), np.arange(60) % 5):
        with pytest.raises(ValueError, match="warm_start"):
            model.fit(x, other)


@BOTH
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_each_warm_start_has_max_iter_epochs_of_its_own(estimator: Any, solver: str) -> None:
    x, y = digits(3, 90)
    model = estimator(
        hidden_layer_sizes=8, solver=solver, warm_start=True, max_iter=3, n_iter_no_change=np.inf, random_state=0
    )
    for most in (3, 3, 6):
        model.set_params(max_iter=most)
        with pytest.warns(ConvergenceWarning):
            model.fit(x, y)
        assert model.n_iter_ == most


@BOTH
def test_a_warm_start_goes_on_with_the_scores_of_early_stopping(estimator: Any) -> None:
    x, y = digits(3, 90)
    model = fitted(
        estimator(hidden_layer_sizes=8, max_iter=3, random_state=0, warm_start=True, early_stopping=True), x, y
    )
    first = list(model.validation_scores_)
    fitted(model.set_params(max_iter=5), x, y)
    assert model.validation_scores_[: len(first)] == first
    assert len(model.validation_scores_) == 8


# ---- data -----------------------------------------------------------------------------------------------------------


def test_shuffling_changes_the_result_and_the_seed_settles_it() -> None:
    x, y = make_regression(50, 5, random_state=0)
    options: Any = {"hidden_layer_sizes": 1, "max_iter": 1, "batch_size": 1, "random_state": 0}
    once, again, unshuffled, unshuffled_again = (
        fitted(MLPRegressor(shuffle=shuffle, **options), x, y).coefs_[0] for shuffle in (True, True, False, False)
    )
    assert np.array_equal(once, again)
    assert np.array_equal(unshuffled, unshuffled_again)
    assert not np.array_equal(once, unshuffled)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix, sparse.csc_matrix])
def test_sparse_rows_are_as_dense_ones(kind: Any) -> None:
    x, y = digits(2, 50)
    dense = fitted(MLPClassifier(5, solver="lbfgs", max_iter=20, random_state=1), x, y)
    thin = fitted(MLPClassifier(5, solver="lbfgs", max_iter=20, random_state=1), kind(x), y)
    np.testing.assert_allclose(thin.predict_proba(kind(x)), dense.predict_proba(x), atol=1e-6)
    np.testing.assert_array_equal(thin.predict(x), thin.predict(kind(x)))


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parameters_have_the_type_of_the_rows(estimator: Any, dtype: Any) -> None:
    x, y = digits(3, 90)
    model = fitted(estimator(hidden_layer_sizes=(5, 3), max_iter=3, random_state=1), x.astype(dtype), y)
    assert {w.dtype for w in (*model.coefs_, *model.intercepts_)} == {np.dtype(dtype)}
    if estimator is MLPRegressor:
        assert model.predict(x.astype(dtype)).dtype == dtype
    else:
        assert model.predict_proba(x.astype(dtype)).dtype == dtype


@BOTH
def test_single_precision_learns_what_double_does(estimator: Any) -> None:
    x, y = digits(3)
    double, single = (
        fitted(estimator(hidden_layer_sizes=(5, 3), max_iter=30, random_state=1), x.astype(dtype), y)
        for dtype in ("float64", "float32")
    )
    np.testing.assert_allclose(single.predict(x.astype(np.float32)), double.predict(x), rtol=5e-4)
    if estimator is MLPClassifier:
        np.testing.assert_allclose(single.predict_proba(x.astype(np.float32)), double.predict_proba(x), rtol=1e-2)


@BOTH
def test_names_of_columns_outlive_the_rows_held_out(estimator: Any) -> None:
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(np.random.default_rng(0).normal(size=(10, 2)), columns=["left", "right"])
    y = pandas.Series(np.ones(10, dtype=int), name="y")
    model = fitted(
        estimator(hidden_layer_sizes=3, early_stopping=True, validation_fraction=0.2, max_iter=2), x, y
    )  # and no UserWarning
    assert list(model.feature_names_in_) == ["left", "right"]


def test_weights_of_one_change_nothing() -> None:
    x, y = make_regression(100, 2, n_informative=2, random_state=42)
    options: Any = {"early_stopping": True, "learning_rate_init": 0.01, "batch_size": 10, "random_state": 42}
    plain, weighted = (
        fitted(MLPRegressor(hidden_layer_sizes=10, max_iter=20, **options), x, y, sample_weight=weight)
        for weight in (None, np.ones(100))
    )
    np.testing.assert_allclose(weighted.predict(x), plain.predict(x))


@BOTH
def test_verbose_tells_of_each_epoch(estimator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = [[3.0, 2.0], [1.0, 6.0]], [1, 0]
    model = fitted(estimator(hidden_layer_sizes=2, solver="sgd", max_iter=2, verbose=True), x, y)
    assert capsys.readouterr().out.count("Iteration") == 2
    model.partial_fit(x, y)
    assert "Iteration" in capsys.readouterr().out
