"""The estimators among scikit-learn's own tools, on every array library, and what they say to bad input."""

import importlib
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")

import joblib
import sklearn
from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - which defines what the next line imports
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, HalvingRandomSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import estimator_html_repr, get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator

import bpnet as bp
from bpnet import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
BOTH = pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
SMALL: dict[str, Any] = {"hidden_layer_sizes": (6,), "max_iter": 4, "learning_rate_init": 0.05, "random_state": 0}


def rows(count: int = 60) -> tuple[Any, Any]:
    """Rows of four numbers, and which of three classes each belongs to."""
    x = np.random.default_rng(0).normal(size=(count, 4))
    return x, np.argmax(x[:, :3], axis=1)


# ---- the contract ---------------------------------------------------------------------------------------------------


def checks() -> list[Any]:
    """Every check of scikit-learn's for both estimators; those of CuPy need a device."""
    found = []
    for estimator in (MLPClassifier, MLPRegressor):
        model = estimator(hidden_layer_sizes=(16,), max_iter=12, learning_rate_init=0.1)
        for made, check in estimator_checks_generator(model):
            options = getattr(check, "keywords", {})
            name = f"{estimator.__name__}-{getattr(check, 'func', check).__name__}"
            name += "".join(f"-{value}" for value in options.values() if value is not None)
            found.append(pytest.param(made, check, id=name, marks=[pytest.mark.gpu] if "cupy" in name else []))
    return found


@pytest.mark.parametrize(("estimator", "check"), checks())
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # some checks provoke warnings, and look for them
        warnings.simplefilter("ignore", ConvergenceWarning)
        check(estimator)


@BOTH
def test_tags_say_what_it_takes(estimator: Any) -> None:
    tags = get_tags(estimator())
    assert tags.array_api_support
    assert tags.input_tags.sparse
    assert tags.target_tags.required
    assert tags.target_tags.multi_output or tags.classifier_tags is not None
    if estimator is MLPClassifier:
        assert tags.estimator_type == "classifier"
        assert tags.classifier_tags.multi_label
        assert tags.classifier_tags.multi_class
    else:
        assert tags.estimator_type == "regressor"


# ---- arrays of every library ----------------------------------------------------------------------------------------


def fitted_arrays(model: Any) -> list[Any]:
    return [*model.coefs_, *model.intercepts_]


@BOTH
@pytest.mark.parametrize("dispatch", [True, False])
def test_everything_follows_x(backend: Any, estimator: Any, dispatch: bool) -> None:
    x, y = rows()
    y = y if estimator is MLPClassifier else x[:, 0] - x[:, 1]
    known = estimator(**SMALL).fit(x, y)
    own, target = backend.array(x), backend.array(y)
    kind = type(own)
    with sklearn.config_context(array_api_dispatch=dispatch):
        model = clone(known).fit(own, target)
        found = model.predict(own)
        assert all(isinstance(array, kind) for array in (found, *fitted_arrays(model)))
        assert model.score(own, target) == pytest.approx(known.score(x, y), abs=1e-9)
        assert isinstance(model.score(own, target), float)
        for array, expected in zip(fitted_arrays(model), fitted_arrays(known), strict=True):
            backend.close(array, expected, rtol=1e-8)
        if estimator is MLPClassifier:
            np.testing.assert_array_equal(backend.host(found), known.predict(x))
            chances = model.predict_proba(own)
            assert isinstance(chances, kind)
            backend.close(chances, known.predict_proba(x), rtol=1e-8)
            assert isinstance(model.classes_, kind)
        else:
            backend.close(found, known.predict(x), rtol=1e-8)
        assert isinstance(model.partial_fit(own, target).coefs_[0], kind)


def test_y_comes_to_where_x_is_and_labels_of_text_stay_on_the_host() -> None:
    torch = pytest.importorskip("torch")
    x, y = rows()
    names = np.array(["crow", "owl", "wren"])[y]
    with sklearn.config_context(array_api_dispatch=True):
        model = MLPClassifier(**SMALL).fit(torch.asarray(x), y)  # y of another library
        assert isinstance(model.predict(torch.asarray(x)), torch.Tensor)
        named = MLPClassifier(**SMALL).fit(torch.asarray(x), names)
    assert isinstance(named.predict_proba(torch.asarray(x)), torch.Tensor)
    np.testing.assert_array_equal(named.predict(torch.asarray(x)), np.array(["crow", "owl", "wren"])[model.predict(
        torch.asarray(x)
    ).numpy()])  # fmt: skip


def test_a_pipeline_of_another_library_runs_there() -> None:
    torch = pytest.importorskip("torch")
    x, y = (torch.asarray(a) for a in rows())
    with sklearn.config_context(array_api_dispatch=True):
        pipeline = make_pipeline(StandardScaler(), MLPClassifier(**SMALL))
        assert isinstance(pipeline.fit(x, y).predict_proba(x), torch.Tensor)
        search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [0.1]}, cv=2).fit(x, y)
        assert isinstance(search.predict(x), torch.Tensor)
        assert search.best_score_ > 0.3


# ---- scikit-learn's tools -------------------------------------------------------------------------------------------


@BOTH
def test_clones_and_parameters(estimator: Any) -> None:
    model = estimator(hidden_layer_sizes=(3, 2), alpha=0.5)
    again = clone(model)
    assert again.get_params() == model.get_params()
    assert again.set_params(alpha=0.25) is again
    assert (again.alpha, model.alpha) == (0.25, 0.5)
    with pytest.raises(ValueError, match="alfa"):
        model.set_params(alfa=1.0)
    assert repr(model) == f"{estimator.__name__}(alpha=0.5, hidden_layer_sizes=(3, 2))"
    fitted = estimator(**SMALL).fit(*rows())
    assert not hasattr(clone(fitted), "coefs_")


def test_searches() -> None:
    x, y = rows()
    grid = GridSearchCV(MLPClassifier(**SMALL), {"activation": ["relu", "tanh"], "alpha": [1e-4]}, cv=2)
    assert set(grid.fit(x, y).best_params_) == {"activation", "alpha"}
    assert grid.best_estimator_.predict(x).shape == (60,)
    options: Any = {"resource": "max_iter", "max_resources": 4, "min_resources": 1, "factor": 4, "cv": 2}
    ranges = {"alpha": [1e-4, 1e-3, 1e-2, 1e-1], "activation": ["relu", "tanh"]}
    base = MLPClassifier(**(SMALL | {"max_iter": 1}))
    halving = HalvingRandomSearchCV(base, ranges, random_state=0, n_candidates=4, **options).fit(x, y)
    assert halving.best_params_["max_iter"] == 4


def test_cross_validation_by_two_jobs_gives_the_same() -> None:
    """In threads, which start sooner than processes; that these are given what they need is what pickling is about."""
    x, y = rows()
    alone = cross_validate(MLPClassifier(**SMALL), x, y, cv=4)
    with joblib.parallel_config("threading"):
        apart = cross_validate(MLPClassifier(**SMALL), x, y, cv=4, n_jobs=2)
    np.testing.assert_allclose(alone["test_score"], apart["test_score"])


def test_columns_of_a_frame_through_a_column_transformer() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = rows()
    frame = pandas.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": np.where(x[:, 2] > 0, "yes", "no")})
    columns = ColumnTransformer([("scaled", StandardScaler(), ["a", "b"]), ("coded", OneHotEncoder(), ["c"])])
    pipeline = make_pipeline(columns, MLPClassifier(**SMALL)).fit(frame, y)
    assert pipeline.predict_proba(frame).shape == (60, 3)


def test_meta_estimators() -> None:
    x, y = rows()
    model = MLPClassifier(**(SMALL | {"max_iter": 30})).fit(x, y)
    calibrated = CalibratedClassifierCV(MLPClassifier(**SMALL), cv=2).fit(x, y)
    np.testing.assert_allclose(calibrated.predict_proba(x).sum(1), 1.0)
    importance = permutation_importance(model, x, y, n_repeats=3, random_state=0).importances_mean
    assert importance[3] < importance[:3].min()  # the class does not depend on it
    bag = BaggingClassifier(MLPClassifier(**SMALL), n_estimators=3, max_samples=0.5, random_state=0).fit(x, y)
    assert not np.array_equal(bag.estimators_[0].coefs_[0], bag.estimators_[1].coefs_[0])


def test_weights_are_routed() -> None:
    x, y = rows()
    weight = np.where(y == 2, 0.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = MLPClassifier(**SMALL).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), routed)
        pipeline.fit(x, y, sample_weight=weight)
        scores = cross_validate(routed, x, y, cv=2, params={"sample_weight": weight})["test_score"]
    scaled = StandardScaler().fit_transform(x)
    expected = MLPClassifier(**SMALL).fit(scaled, y, sample_weight=weight)
    np.testing.assert_allclose(pipeline.predict_proba(x), expected.predict_proba(scaled))
    assert np.isfinite(scores).all()


@BOTH
def test_pickles_of_every_kind(estimator: Any, tmp_path: Any) -> None:
    x, y = rows()
    model = estimator(**SMALL).fit(x, y)
    joblib.dump(model, tmp_path / "model.joblib")
    copies = [pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")]
    for again in copies:
        np.testing.assert_array_equal(again.predict(x), model.predict(x))
        assert again.get_params() == model.get_params()
        np.testing.assert_array_equal(again.partial_fit(x, y).coefs_[0], clone_of(model).partial_fit(x, y).coefs_[0])


def clone_of(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@BOTH
def test_skops(estimator: Any) -> None:
    io = pytest.importorskip("skops.io")
    x, y = rows()
    model = estimator(**SMALL).fit(x, y)
    data = io.dumps(model)
    trusted = io.get_untrusted_types(data=data)
    assert all(name.startswith(("bpnet.", "sklearn.")) for name in trusted), trusted
    again = io.loads(data, trusted=trusted)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


@BOTH
def test_a_diagram_for_notebooks(estimator: Any) -> None:
    unfitted = estimator_html_repr(estimator(alpha=0.5))
    fitted = estimator_html_repr(make_pipeline(StandardScaler(), estimator(**SMALL)).fit(*rows()))
    assert estimator.__name__ in unfitted
    assert "alpha" in unfitted
    assert estimator.__name__ in fitted


class Diary:
    """A callback of scikit-learn's that writes down what it is told, and asks for an end after so many epochs."""

    def __init__(self, most: int) -> None:
        self.most, self.scores = most, []
        self.tasks: list[tuple[str, str, Any]] = []

    def setup(self, estimator: Any, context: Any) -> None:
        self.tasks.append(("setup", "", None))

    def teardown(self, estimator: Any, context: Any) -> None:
        self.tasks.append(("teardown", "", None))

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        self.tasks.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, X: Any = None, y: Any = None, fitted_estimator: Any = None
    ) -> bool:
        self.tasks.append(("end", context.task_name, context.task_id))
        if context.task_name == "epoch" and len(self.scores) < self.most:
            self.scores.append(fitted_estimator.score(X, y))
        return context.task_name == "epoch" and context.task_id == self.most - 1


@BOTH
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_callbacks_of_scikit_learn(estimator: Any, solver: str) -> None:
    pytest.importorskip("sklearn.callback")
    diary, (x, y) = Diary(3), rows()
    model = estimator(**SMALL, solver=solver).set_callbacks(diary).fit(x, y)
    assert model.n_iter_ == 3  # it asked for no more
    assert diary.tasks[0][0] == "setup"
    assert diary.tasks[-1][0] == "teardown"
    assert [task[0] for task in diary.tasks if task[1] == "fit"] == ["begin", "end"]
    epochs = [(when, number) for when, name, number in diary.tasks if name == "epoch"]
    assert epochs == [(when, number) for number in range(3) for when in ("begin", "end")]
    assert diary.scores[2] == model.score(x, y)  # an estimator as if the fit had ended there
    assert diary.scores[0] == estimator(**(SMALL | {"max_iter": 1}), solver=solver).fit(x, y).score(x, y)
    with pytest.raises(TypeError, match="FitCallback"):
        model.set_callbacks(print)


# ---- when things go wrong -------------------------------------------------------------------------------------------


BAD_OPTIONS: list[tuple[str, Any]] = [
    ("hidden_layer_sizes", -1), ("hidden_layer_sizes", (3, 0)), ("activation", "ghost"), ("solver", "hadoken"),
    ("alpha", -1), ("batch_size", 0), ("batch_size", "all"), ("learning_rate", "fast"), ("learning_rate_init", -1),
    ("power_t", -0.5), ("max_iter", -1), ("max_iter", 1.5), ("shuffle", "true"), ("random_state", "seed"),
    ("tol", -1), ("warm_start", 3), ("momentum", 2), ("nesterovs_momentum", -0.5), ("early_stopping", "yes"),
    ("validation_fraction", 1.5), ("beta_1", 1.0), ("beta_2", -0.1), ("epsilon", 0.0), ("n_iter_no_change", -1),
    ("max_fun", 0),
]  # fmt: skip


def raised(model: Any, *data: Any, **more: Any) -> Exception | None:
    try:
        model.fit(*data, **more)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    ("ours", "other"), [(MLPClassifier, theirs.MLPClassifier), (MLPRegressor, theirs.MLPRegressor)]
)
def test_bad_options_are_refused_by_name_and_with_the_same_type(ours: Any, other: Any) -> None:
    x, y = rows()
    for name, value in BAD_OPTIONS:
        expected, found = (raised(kind(**{name: value}), x, y) for kind in (other, ours))
        assert isinstance(expected, ValueError), name
        assert isinstance(found, ValueError), (name, value, found)
        assert name in str(found), (name, found)
        assert str(value).strip("()").split(", ")[-1] in str(found), (name, found)


def bad_data() -> dict[str, tuple[Any, ...]]:
    x, y = rows(12)
    gap, far = x.copy(), x.copy()
    gap[3, 1], far[3, 1] = np.nan, np.inf
    return {
        "one axis": (x[:, 0], y),
        "three axes": (x[:, :, None], y),
        "no rows": (x[:0], y[:0]),
        "no columns": (x[:, :0], y),
        "rows differ": (x, y[:-1]),
        "no target": (x, None),
        "infinity": (far, y),
        "complex": (x + 1j, y),
        "text": (np.array([["a", "b"]] * 12), y),
        "ragged": ([[1.0, 2.0], [3.0]], [0, 1]),
        "a target of three axes": (x, np.zeros((12, 2, 2))),
        "a target that is no number": (x, np.where(y == 0, np.nan, y.astype(float))),
        "weights of others": (x, y, np.ones(11)),
        "a matrix of weights": (x, y, np.ones((12, 2))),
    }


@pytest.mark.parametrize(
    ("ours", "other"), [(MLPClassifier, theirs.MLPClassifier), (MLPRegressor, theirs.MLPRegressor)]
)
def test_bad_data_is_refused_with_the_same_type(ours: Any, other: Any) -> None:
    for name, data in bad_data().items():
        expected, found = (raised(kind(max_iter=2), *data) for kind in (other, ours))
        assert expected is not None, name
        assert isinstance(found, Exception), name
        common = ValueError if isinstance(expected, ValueError) else type(expected)
        assert isinstance(found, common), (name, repr(expected), repr(found))
        assert len(str(found)) > 20, name


@BOTH
def test_targets_of_the_wrong_kind(estimator: Any) -> None:
    x, y = rows(12)
    if estimator is MLPClassifier:
        with pytest.raises(ValueError, match=r"(?s)continuous.*MLPRegressor"):
            estimator().fit(x, x[:, 0])
    else:
        with pytest.raises(ValueError, match=r"(?s)MLPClassifier"):
            estimator().fit(x, np.array(["a", "b", "c"])[y])


@BOTH
def test_held_out_rows_without_a_weight(estimator: Any) -> None:
    x, y = rows(40)
    with pytest.raises(ValueError, match="weight 0"):
        estimator(**SMALL, early_stopping=True).fit(x, y, np.eye(40)[0])


@BOTH
def test_what_is_not_fitted_says_so(estimator: Any) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        estimator().predict(np.zeros((1, 2)))


@BOTH
def test_other_columns_than_in_fit_are_refused(estimator: Any) -> None:
    pandas = pytest.importorskip("pandas")
    x, y = rows()
    model = estimator(**SMALL).fit(x, y)
    with pytest.raises(ValueError, match=r"3 features.*4 features"):
        model.predict(x[:, :3])
    frame = pandas.DataFrame(x, columns=list("abcd"))
    model = estimator(**SMALL).fit(frame, y)
    with pytest.raises(ValueError, match=r"(?s)feature names.*e"):
        model.predict(frame.rename(columns={"d": "e"}))
    with pytest.warns(UserWarning, match="feature names"):
        model.predict(x)


@BOTH
def test_an_interrupt_leaves_what_was_learnt_so_far(estimator: Any) -> None:
    class Impatient(bp.Callback):
        def on_epoch_end(self, trainer: Any, record: Any) -> None:
            if record["epoch"] == 3:
                raise KeyboardInterrupt

    x, y = rows()
    model = estimator(**(SMALL | {"max_iter": 50}), callbacks=[Impatient()])
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(x, y)
    assert 2 <= model.n_iter_ <= 3
    assert len(model.loss_curve_) == model.n_iter_
    short = estimator(**(SMALL | {"max_iter": model.n_iter_})).fit(x, y)
    np.testing.assert_allclose(model.predict(x), short.predict(x))


@BOTH
def test_what_has_not_converged_warns(estimator: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        estimator(**SMALL).fit(*rows())


def test_import_needs_nothing_but_asks_for_the_extra() -> None:
    """`import bpnet` alone imports no scikit-learn; the estimators do, and come from modules of their own."""
    assert MLPClassifier.__module__.startswith("bpnet.estimators")
    assert importlib.import_module("bpnet").MLPClassifier is MLPClassifier
