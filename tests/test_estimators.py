"""The estimators beside scikit-learn's, driven side by side; and what they have besides."""

import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ArgumentError, DataError, OptionError, ShapeError, UnknownNameError

pytest.importorskip("sklearn", "1.6", reason="the estimators need scikit-learn")
sparse = pytest.importorskip("scipy.sparse")

from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((130, 7))
WEIGHT = RNG.uniform(0.1, 3.0, 130)
CLASSES = np.array(["ant", "bee", "cat"])[X[:, :3].argmax(axis=1)]
TWO = (X[:, 0] + X[:, 1] ** 2 > 1.0).astype(int)
LABELS = (X[:, :3] > 0.3).astype(int)
NUMBERS = X[:, 0] * X[:, 1] + 0.1 * RNG.standard_normal(130)
SEVERAL = np.stack([NUMBERS, X[:, 2] ** 2], axis=1)
COUNTS = RNG.poisson(np.exp(0.5 * X[:, 0]))

ADAPTIVE = {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.1, "tol": 1e-2, "n_iter_no_change": 2}
FALLING = {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.2, "n_iter_no_change": 99}
PLAIN = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1}
HEAVY = {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.05}
STOPPING = {"early_stopping": True, "learning_rate_init": 0.02, "max_iter": 60, "n_iter_no_change": 4}

CASES: dict[str, tuple[str, Any, dict[str, Any], bool]] = {
    "classes": ("classifier", CLASSES, {}, False),
    "two": ("classifier", TWO, {"activation": "tanh", "batch_size": 33, "alpha": 0.5}, False),
    "labels": ("classifier", LABELS, {"activation": "logistic", "hidden_layer_sizes": (9, 6)}, False),
    "numbers": ("regressor", NUMBERS, {"hidden_layer_sizes": 8, "batch_size": 50}, False),
    "several": ("regressor", SEVERAL, {"alpha": 1.0, "shuffle": False, "batch_size": 40}, False),
    "counts": ("regressor", COUNTS, {"loss": "poisson", "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3}, True),
    "weights": ("classifier", CLASSES, {"batch_size": 50, "alpha": 0.1}, True),
    "plain": ("classifier", CLASSES, PLAIN | {"activation": "identity"}, False),
    "momentum": ("classifier", CLASSES, HEAVY, False),
    "falling": ("classifier", CLASSES, FALLING | {"batch_size": 50}, False),
    "adaptive": ("regressor", NUMBERS, ADAPTIVE | {"max_iter": 80}, False),
    "stopping": ("classifier", TWO, STOPPING, True),
    "stopping of numbers": ("regressor", SEVERAL, STOPPING, False),
    "converging": ("classifier", CLASSES, {"tol": 0.01, "learning_rate_init": 0.02, "max_iter": 300}, False),
    "lbfgs": ("classifier", CLASSES, {"solver": "lbfgs", "alpha": 0.01}, True),
    "lbfgs of numbers": ("regressor", SEVERAL, {"solver": "lbfgs", "activation": "tanh"}, False),
    "no hidden layer": ("regressor", NUMBERS, {"hidden_layer_sizes": ()}, False),
}
THEIRS = {"classifier": MLPClassifier, "regressor": MLPRegressor}
OURS = {"classifier": bp.MLPClassifier, "regressor": bp.MLPRegressor}
SAME = ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_")
CURVES = ("loss_curve_", "validation_scores_", "loss_", "best_loss_", "best_validation_score_")


def same(theirs: Any, ours: Any, x: Any, atol: float = 1e-10) -> None:
    """All that was fitted, and what is said of rows."""
    for name in SAME:
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in CURVES:
        assert hasattr(ours, name) == hasattr(theirs, name), name
        known = getattr(theirs, name, None)
        if known is None:
            assert getattr(ours, name, None) is None
        else:
            np.testing.assert_allclose(getattr(ours, name), known, rtol=0, atol=atol, err_msg=name)
    for mine, known in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(mine, known, rtol=0, atol=atol)
    if hasattr(theirs, "predict_proba"):
        assert np.array_equal(ours.predict(x), theirs.predict(x))
        assert np.array_equal(ours.classes_, theirs.classes_)
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=atol)
    else:
        np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=0, atol=1e3 * atol)


@pytest.mark.parametrize("case", CASES)
def test_as_scikit_learn(case: str) -> None:
    """Losses, coefficients and predictions of tens of epochs, by the same random_state."""
    kind, y, options, weighted = CASES[case]
    options = {"max_iter": 30, "random_state": 3} | options
    weight = WEIGHT if weighted else None
    theirs, ours = (table[kind](**options).fit(X, y, weight) for table in (THEIRS, OURS))
    same(theirs, ours, X)


def test_weights_of_any_scale() -> None:
    """The penalty is divided by the sum of the weights, so that their scale counts."""
    for scale in (1e-3, 1e30):
        options = {"max_iter": 10, "random_state": 0, "alpha": 10.0 * scale}
        same(*(c(**options).fit(X, NUMBERS, WEIGHT * scale) for c in (MLPRegressor, bp.MLPRegressor)), X, 1e-9)


@pytest.mark.parametrize(("y", "classes"), [(CLASSES, np.unique(CLASSES)), (LABELS, np.arange(3)), (NUMBERS, None)])
def test_a_batch_at_a_time(y: Any, classes: Any) -> None:
    kind = "regressor" if classes is None else "classifier"
    first = {} if classes is None else {"classes": classes}
    for options in ({}, {"solver": "sgd", "learning_rate": "invscaling"}):
        theirs, ours = (table[kind](random_state=1, **options) for table in (THEIRS, OURS))
        for start in (0, 40, 90, 10):
            part = slice(start, start + 40)
            for one in (theirs, ours):
                one.partial_fit(X[part], y[part], **(first if start == 0 else {}))
        same(theirs, ours, X)


def test_several_labels_say_themselves_how_many_there_are() -> None:
    """Not all are in the first batch, and nobody has to list them."""
    ours = bp.MLPClassifier(random_state=0)
    ours.partial_fit(X[:4], np.zeros((4, 3), dtype=int)).partial_fit(X, LABELS)
    assert ours.predict(X).shape == LABELS.shape
    assert list(ours.classes_) == [0, 1, 2]


def test_warm_starts_and_what_comes_after() -> None:
    options = {"max_iter": 7, "random_state": 0, "warm_start": True}
    theirs, ours = MLPClassifier(**options), bp.MLPClassifier(**options)
    for one in (theirs, ours):
        one.fit(X, CLASSES).fit(X, CLASSES)
        one.set_params(warm_start=False).partial_fit(X, CLASSES)
    same(theirs, ours, X)


def test_continued_training_is_one_training() -> None:
    """Optimizer, dropout and the order of rows go on: two fits of 5 epochs are one of 10, bit for bit."""
    options: dict[str, Any] = {"random_state": 0, "dropout": 0.2, "hidden_layer_sizes": 8, "batch_size": 30}
    whole = bp.MLPClassifier(max_iter=10, **options).fit(X, CLASSES)
    parts = bp.MLPClassifier(max_iter=5, warm_start="continue", **options).fit(X, CLASSES).fit(X, CLASSES)
    assert parts.loss_curve_ == whole.loss_curve_
    assert all(np.array_equal(a, b) for a, b in zip(parts.coefs_, whole.coefs_, strict=True))


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "csr_array"])
def test_sparse_rows(form: str) -> None:
    x = sparse.random(90, 40, 0.1, "csr", random_state=0, dtype=np.float64)
    total = np.asarray(x.sum(axis=1)).ravel()
    x, y = getattr(sparse, form)(x), np.where(total > np.median(total), 7, 3)
    for options in ({"batch_size": 20}, {"early_stopping": True}, {"solver": "lbfgs"}):
        options = {"max_iter": 8, "random_state": 0} | options
        same(*(c(**options).fit(x, y) for c in (MLPClassifier, bp.MLPClassifier)), x)
    other = bp.MLPClassifier(max_iter=8, random_state=0, norm="LayerNorm", network=None).fit(x, y)
    np.testing.assert_allclose(other.predict_proba(x), other.predict_proba(x.toarray()), rtol=1e-12)


def test_wide_sparse_rows_never_become_dense() -> None:
    """200 of these rows would take 1.6 GB, of which no one asks for a fifth."""
    code = """
        import resource, numpy as np, scipy.sparse as sparse, warnings
        import bpnet as bp
        warnings.simplefilter("ignore")
        columns = np.random.default_rng(0).integers(0, 1_000_000, 4000)
        x = sparse.csr_matrix((np.ones(4000, "f4"), columns, np.arange(0, 4001, 10)), (400, 1_000_000))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        y = np.arange(400) % 2
        bp.MLPClassifier(4, max_iter=1, random_state=0, n_jobs=1).fit(x, y).predict(x)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
    """
    if sys.platform != "linux":
        pytest.skip("other systems count memory in other units")
    said = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    assert float(said.stdout) < 300.0, said.stderr


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_verbose_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (STOPPING, ADAPTIVE, {"max_iter": 300, "tol": 0.05, "learning_rate_init": 0.02}):
        said = []
        for make in (MLPClassifier, bp.MLPClassifier):
            make(random_state=0, verbose=True, **options).fit(X, TWO)
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        assert "did not improve more than tol" in said[1]


def test_what_has_not_converged_warns() -> None:
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        bp.MLPClassifier(max_iter=2).fit(X, TWO)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        bp.MLPClassifier(max_iter=2, solver="lbfgs").fit(X, TWO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.MLPClassifier(max_iter=300, tol=0.1).fit(X, TWO)


class Interrupt(bp.Callback):
    """Ctrl-C in the third epoch."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        self.epochs += 1
        if self.epochs == 3:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_the_network_so_far() -> None:
    ours = bp.MLPClassifier(max_iter=1000, tol=0.0, n_iter_no_change=2000, callbacks=[Interrupt()])
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        ours.fit(X, CLASSES)
    assert len(ours.loss_curve_) == ours.n_iter_ == 3
    assert set(ours.predict(X)) <= set(CLASSES)


# ---- more than scikit-learn has -------------------------------------------------------------------------------------

FURTHER: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "activation and optimizer by name": ("classifier", CLASSES, {"activation": "gelu", "solver": "adamw"}),
    "both as objects": ("regressor", NUMBERS, {"activation": bp.Mish(), "solver": bp.Lion(1e-3)}),
    "a schedule by name": ("classifier", TWO, {"learning_rate": "one_cycle", "learning_rate_init": 0.01}),
    "a schedule as an object": ("classifier", TWO, {"learning_rate": bp.Epochs(bp.Cosine(0.01, 20))}),
    "norms and residuals": (
        "classifier",
        CLASSES,
        {"norm": "LayerNorm", "residual": True, "hidden_layer_sizes": (8, 8)},
    ),
    "focal loss": ("classifier", CLASSES, {"loss": "focal"}),
    "hinge loss": ("classifier", CLASSES, {"loss": "hinge"}),
    "classes of two": ("classifier", TWO, {"loss": bp.CrossEntropy(label_smoothing=0.1)}),
    "absolute errors": ("regressor", SEVERAL, {"loss": "mae"}),
    "means and variances": ("regressor", SEVERAL, {"loss": "gaussian_nll"}),
    "a network of one's own": ("regressor", NUMBERS, {"network": bp.Sequential(bp.Dense(9, "silu"), bp.Dense(1))}),
    "an ensemble": ("classifier", CLASSES, {"ensemble": 3, "dropout": 0.1}),
    "an ensemble of numbers": ("regressor", SEVERAL, {"ensemble": 3}),
    "float32": ("classifier", LABELS, {"dtype": "float32", "ensemble": 2}),
}


@pytest.mark.parametrize("case", FURTHER)
def test_options_of_bpnet(case: str, tmp_path: Any) -> None:
    """It learns, the same again, and the model that is saved says the same, also as an estimator that goes on."""
    kind, y, options = FURTHER[case]
    fits = [OURS[kind](random_state=0, max_iter=20, **options).fit(X, y) for _ in range(2)]
    ours = fits[0]
    assert ours.loss_curve_[-1] < 0.95 * ours.loss_curve_[0]
    assert pickle.dumps(fits[0]) == pickle.dumps(fits[1])
    path = tmp_path / "model.safetensors"
    ours.save(path)
    model, again = bp.load(path), type(ours).from_model(path)
    found = ours.predict(X)
    assert np.array_equal(np.asarray(model.predict(X), dtype=found.dtype), found)
    assert np.array_equal(again.predict(X), found)
    assert again.loss_curve_ == ours.loss_curve_
    if hasattr(ours, "predict_proba") and case != "hinge loss":
        assert np.array_equal(model.predict_proba(X), ours.predict_proba(X))
        np.testing.assert_allclose(ours.predict_log_proba(X), np.log(ours.predict_proba(X)), rtol=1e-5)
    for one in (ours, again):
        one.partial_fit(X, y)
    assert np.array_equal(ours.predict(X), again.predict(X))


def test_the_strong_preset() -> None:
    strong = bp.MLPRegressor(preset="strong", max_iter=60, random_state=0, early_stopping=True).fit(100.0 * X, NUMBERS)
    plain = bp.MLPRegressor(max_iter=30, random_state=0).fit(100.0 * X, NUMBERS)
    assert strong.score(100.0 * X, NUMBERS) > max(0.8, plain.score(100.0 * X, NUMBERS))
    assert strong.n_iter_ == 60
    labels = bp.MLPClassifier(preset="strong", max_iter=10, random_state=0, ensemble=2).fit(X, TWO)
    assert labels.score(X, TWO) > 0.8


def test_held_out_rows_of_ones_own() -> None:
    held = X[:40], CLASSES[:40], WEIGHT[:40]
    options: dict[str, Any] = {"random_state": 0, "max_iter": 30, "learning_rate_init": 0.02}
    ours = bp.MLPClassifier(early_stopping=True, n_iter_no_change=99, **options)
    ours.fit(X[40:], CLASSES[40:], validation_data=held)
    assert len(ours.validation_loss_curve_) == len(ours.validation_scores_) == 30
    assert ours.best_validation_score_ == max(ours.validation_scores_) == ours.score(*held)
    by_loss = bp.MLPClassifier(early_stopping=True, n_iter_no_change=99, scoring="loss", **options)
    by_loss.fit(X[40:], CLASSES[40:], validation_data=held)
    assert by_loss.best_validation_score_ == -min(by_loss.validation_loss_curve_)
    p = by_loss.predict_proba(held[0])[np.arange(40), np.searchsorted(by_loss.classes_, held[1])]
    assert np.average(-np.log(p), weights=held[2]) == pytest.approx(min(by_loss.validation_loss_curve_))
    by_name = bp.MLPClassifier(early_stopping=True, scoring="neg_log_loss", **options).fit(X, CLASSES)
    np.testing.assert_allclose(by_name.validation_scores_, -np.array(by_name.validation_loss_curve_))
    watched = bp.MLPClassifier(**options).fit(X[40:], CLASSES[40:], validation_data=held)
    assert watched.loss_curve_ == bp.MLPClassifier(**options).fit(X[40:], CLASSES[40:]).loss_curve_
    assert len(watched.validation_scores_) == watched.n_iter_


def test_weights_of_classes() -> None:
    """Those of scikit-learn's `compute_sample_weight`."""
    from sklearn.utils import compute_sample_weight

    options = {"random_state": 0, "max_iter": 5}
    for given in ("balanced", {"ant": 2.0, "bee": 0.5, "cat": 1.0}):
        own = bp.MLPClassifier(class_weight=given, **options).fit(X, CLASSES, WEIGHT)
        weighed = bp.MLPClassifier(**options).fit(X, CLASSES, WEIGHT * compute_sample_weight(given, CLASSES))
        assert own.loss_curve_ == weighed.loss_curve_
    with pytest.raises(ValueError, match="is not for partial_fit"):
        bp.MLPClassifier(class_weight="balanced").partial_fit(X, CLASSES, classes=np.unique(CLASSES))


def test_coefficients_are_set_in_every_way() -> None:
    ours = bp.MLPRegressor(hidden_layer_sizes=5, random_state=0, max_iter=2).fit(X, NUMBERS)
    weight = ours.coefs_[0].copy()
    expected = np.maximum(2.0 * X @ weight + ours.intercepts_[0], 0.0) @ ours.coefs_[1] + ours.intercepts_[1]
    ours.coefs_[0] = 2.0 * weight
    np.testing.assert_allclose(ours.predict(X), expected[:, 0])
    ours.coefs_[0][:] = weight
    ours.coefs_[-1] *= 2.0
    ours.intercepts_ = [np.zeros(5), [7.0]]
    np.testing.assert_allclose(ours.predict(X), (np.maximum(X @ weight, 0.0) @ ours.coefs_[1])[:, 0] + 7.0)
    with pytest.raises(ValueError, match="1 arrays for 2 layers"):
        ours.coefs_ = [weight]
    with pytest.raises(AttributeError, match=r"model_\.trainer\.parameters"):
        _ = bp.MLPRegressor(ensemble=2, max_iter=1).fit(X, NUMBERS).coefs_


def test_compiled_is_as_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that may take long is compiled at once, another one once it has; L-BFGS too.  Predictions are not."""
    pytest.importorskip("llvmlite")
    from bpnet.backends.numpy import compiled

    made = []
    monkeypatch.setattr(compiled, "build", lambda *args, build=compiled.build: made.append(1) or build(*args))
    training = "bpnet.estimators.training"
    for solver, least in (("adam", 6), ("lbfgs", 8)):
        options = {"random_state": 0, "max_iter": 12, "hidden_layer_sizes": 6, "solver": solver}
        fits = []
        for after, at_once in ((1e9, 5e9), (least * 2.1e6, 5e9), (1e9, 0.0)):
            monkeypatch.setattr(f"{training}.COMPILES", after)
            monkeypatch.setattr(f"{training}.COMPILES_AT_ONCE", at_once)
            fits.append(bp.MLPClassifier(**options).fit(X, CLASSES))
            fits[-1].predict(X)
        for other in fits[1:]:
            np.testing.assert_allclose(other.coefs_[0], fits[0].coefs_[0], rtol=1e-9)
        assert len(made) == 2
        made.clear()


@pytest.mark.parametrize("kind", [bp.MLPClassifier, bp.MLPRegressor])
def test_a_fit_holds_little_beside_the_data(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a mask of the numbers, which were a quarter of them in float32; nor are labels kept in wide types."""
    monkeypatch.setattr("bpnet.estimators.training.COMPILES_AT_ONCE", np.inf)
    x, y = np.ones((40_000, 100), dtype=np.float32), np.arange(40_000) % 7
    y = y if kind is bp.MLPClassifier else y.astype(np.float32)
    options = {"hidden_layer_sizes": 2, "batch_size": 1000, "max_iter": 1, "n_jobs": 1}
    kind(**options).fit(x[:1000], y[:1000])
    tracemalloc.start()
    try:
        kind(**options).fit(x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 12  # of which a batch is half


def test_threads_are_as_many_as_are_asked_for() -> None:
    known = {None: None, 1: 1, 2: 2, -1: None, -(os.cpu_count() or 1): 1}
    for jobs, threads in known.items():
        assert bp.MLPClassifier(n_jobs=jobs, max_iter=1).fit(X, TWO)._trainer.threads == threads
    with pytest.raises(OptionError, match="n_jobs is 0"):
        bp.MLPClassifier(n_jobs=0).fit(X, TWO)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": "adammw"}, UnknownNameError, "did you mean 'adamw'"),
        ({"activation": "rellu"}, UnknownNameError, "did you mean 'relu'"),
        ({"loss": "hing"}, UnknownNameError, "did you mean 'hinge'"),
        ({"learning_rate": "falling"}, ValueError, "'learning_rate' parameter"),
        ({"learning_rate": "cosine", "solver": bp.SGD(bp.Cosine(0.1, 9))}, OptionError, "a schedule of its own"),
        ({"warm_start": "maybe"}, ValueError, "'warm_start' parameter"),
        ({"callbacks": ["early_stoping"]}, UnknownNameError, "early_stopping"),
        ({"device": "nowhere"}, ValueError, "nowhere"),
        ({"loss": "binary_cross_entropy"}, OptionError, "takes probabilities"),
        ({"network": bp.Dense(1), "dropout": 0.1}, OptionError, "dropout is 0.1, but network is set"),
        ({"network": bp.Dense(3)}, ShapeError, "expected 1 output"),
        ({"preset": "strong", "network": bp.Dense(1)}, OptionError, "but preset is set"),
        ({"preset": "strong", "scaling": "robust"}, OptionError, "scaling is 'robust', but preset is set"),
        ({"preset": "strong", "solver": "lbfgs"}, OptionError, "which has no epochs"),
        ({"callbacks": ["early_stopping"], "solver": "lbfgs"}, OptionError, "callbacks is set, but solver is 'lbfgs'"),
        ({"dropout": 0.1, "solver": "lbfgs"}, OptionError, "a loss without chance"),
    ],
)
def test_what_can_not_be(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bp.MLPClassifier(**options).fit(X, TWO)


def test_a_network_of_ones_own_has_columns_scaled_and_gaps_filled() -> None:
    options: dict[str, Any] = {"max_iter": 2, "random_state": 0, "network": bp.Dense(1)}
    far = X * 1000.0 + 5000.0
    one = bp.MLPClassifier(**options, scaling="standard").fit(far, TWO)
    other = bp.MLPClassifier(**options, scaling="standard").fit(X, TWO)
    np.testing.assert_allclose(one.predict_proba(far), other.predict_proba(X), rtol=1e-6)
    far[::3, 1] = np.nan
    assert np.isfinite(bp.MLPClassifier(**options).fit(far, TWO).predict_proba(far)).all()


def test_a_single_class_is_certain(tmp_path: Any) -> None:
    for options in ({}, {"preset": "strong"}, {"ensemble": 2}):
        model = bp.MLPClassifier(max_iter=1, **options).fit(X, ["a"] * len(X))
        model.save(tmp_path / "model.safetensors")
        for one in (model, bp.load(tmp_path / "model.safetensors")):
            assert one.predict_proba(X).tolist() == [[1.0]] * len(X)
            assert set(one.predict(X)) == {"a"}


def test_rows_of_weight_0_are_not_looked_at() -> None:
    wild, weight, y = X.copy(), np.ones(len(X)), NUMBERS.astype(float)
    wild[:5], y[:5], weight[:5] = 1e6, 1e6, 0.0
    for options in ({"preset": "strong"}, {"scaling": "standard"}):
        model = bp.MLPRegressor(max_iter=2, random_state=0, **options).fit(wild, y, weight)
        assert np.abs(model.predict(X)).max() < 1e4


def test_a_device_takes_arrays_of_numpy_and_gives_such_back() -> None:
    pytest.importorskip("torch")
    x, there = X.astype(np.float32), {"device": "torch", "max_iter": 3, "random_state": 0}
    for options in ({"early_stopping": True}, {"calibration_fraction": 0.3}):
        found = bp.MLPClassifier(**there, **options).fit(x, TWO)
        expected = bp.MLPClassifier(**(there | options | {"device": None})).fit(x, TWO)
        assert type(found.predict(x)) is type(found.predict_proba(x)) is type(found.classes_) is np.ndarray
        np.testing.assert_allclose(found.predict_proba(x), expected.predict_proba(x), atol=1e-5)
    assert found.predict_set(x).shape == (len(x), 2)
    with pytest.raises(DataError, match="X is sparse"):
        found.predict(sparse.csr_matrix(x))


def test_training_goes_on_with_other_options() -> None:
    model = bp.MLPClassifier(8, solver="lbfgs", max_iter=2, warm_start=True, random_state=0).fit(X, TWO)
    model.set_params(solver="adam").fit(X, TWO)
    model.set_params(early_stopping=True).fit(X, TWO)
    assert (len(model.loss_curve_), len(model.validation_scores_), model.best_loss_) == (4, 2, None)
    model.set_params(early_stopping=False).fit(X, TWO)
    assert np.isfinite(model.best_loss_)
    with pytest.raises(OptionError, match="loss is 'hinge', but the network was trained with another"):
        model.set_params(loss="hinge").fit(X, TWO)
    with pytest.raises(OptionError, match="validation_data"):
        bp.MLPClassifier(solver="lbfgs").fit(X, TWO, validation_data=(X, TWO))


def test_the_strong_preset_has_a_learning_rate_of_its_own() -> None:
    options: dict[str, Any] = {"preset": "strong", "max_iter": 2, "random_state": 0}
    plain = bp.MLPClassifier(**options).fit(X, TWO)
    other = bp.MLPClassifier(**options, solver="sgd", learning_rate="invscaling").fit(X, TWO)
    np.testing.assert_array_equal(other.predict_proba(X), plain.predict_proba(X))


def test_a_model_of_another_kind(tmp_path: Any) -> None:
    numbers = bp.MLPRegressor(max_iter=1).fit(X, NUMBERS).model_
    with pytest.raises(DataError, match=r"MLPRegressor\.from_model"):
        bp.MLPClassifier.from_model(numbers)
    with pytest.raises(ArgumentError, match="expected a path, or a bp"):
        bp.MLPClassifier.from_model(numbers.trainer)


def test_without_scikit_learn_it_is_said_what_to_install() -> None:
    code = """
        import sys
        sys.modules["sklearn"] = None
        import bpnet as bp
        try:
            bp.Dense(3, "reluu")
        except bp.errors.UnknownNameError:
            pass
        try:
            from bpnet import MLPClassifier
        except ImportError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    assert "MLPRegressor need scikit-learn: pip install 'bpnet-xp[sklearn]'" in said.stdout, said.stderr
