"""Every metric: as scikit-learn has it, whatever the library, the batches and the weights; and where it is recorded."""

import math
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.errors import ArgumentError, OptionError, UnknownNameError
from bpnet.metrics.base import COLUMNS, Metric
from bpnet.registry import catalogue, own_catalogue, resolve
from bpnet.typing import MetricName

M = bp.metrics
ROWS = 96
WEIGHT = np.random.default_rng(5).uniform(0.0, 3.0, ROWS) * (np.arange(ROWS) % 7 > 0)

needs_sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")


def draw(*shape, seed=0):
    """Rounded, so that some are equal."""
    return np.round(np.random.default_rng(seed).normal(size=shape), 1)


def identity(lib, units, loss, dtype="float64"):
    """A trainer whose outputs are its inputs."""
    x = lib.array(np.zeros((1, units)), dtype)
    trainer = bp.Trainer(bp.Dense(units), loss, bp.SGD(0.1)).build(x)
    trainer.parameters = {"weight": lib.array(np.eye(units), dtype), "bias": lib.array(np.zeros(units), dtype)}
    return trainer


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def calibration(p, right, w, bins=15):
    """By scikit-learn's bins, each of which it has the means of without weights."""
    which = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], p)
    sums = [np.bincount(which, w * x, bins) for x in (right, p)]
    return np.sum(np.abs(sums[0] - sums[1])) / np.sum(w)


def spearman(a, b):
    from scipy.stats import spearmanr

    return np.mean([spearmanr(a[:, k], b[:, k]).statistic for k in range(a.shape[1])])


def averaged(function, metric, **options):
    return {
        metric(average=average): lambda t, z, w, average=average: function(
            t, z, sample_weight=w, average=average, zero_division=0.0, **options
        )
        for average in ("macro", "micro", "weighted")
    }


def of_labels(sk):
    """What scikit-learn computes from the labels that are true and those that are predicted."""
    return (
        {
            M.Accuracy(): lambda t, z, w: sk.accuracy_score(t, z, sample_weight=w),
            M.FBeta(beta=1.5): lambda t, z, w: sk.fbeta_score(
                t, z, beta=1.5, sample_weight=w, average="binary" if t.ndim == 1 and t.max() == 1 else "macro"
            ),
        },
        averaged(sk.precision_score, M.Precision),
        averaged(sk.recall_score, M.Recall),
    )


def cases(sk):
    """For every kind of target: loss, outputs, targets, and for every metric what scikit-learn says with weights."""
    several, labels, label = draw(ROWS, 4), np.random.default_rng(1).integers(0, 3, ROWS), np.arange(4)
    one, bits = draw(ROWS, 1), (np.random.default_rng(2).uniform(size=ROWS) > 0.6).astype(float)
    many, tags = draw(ROWS, 3, seed=3), (np.random.default_rng(4).uniform(size=(ROWS, 3)) > 0.6).astype(float)
    y, t = draw(ROWS, 2, seed=6), draw(ROWS, 2, seed=7) + 1e3
    basic, precisions, recalls = of_labels(sk)
    p, guess = softmax(several), several.argmax(axis=1)
    yield "classes", bp.CrossEntropy(), several, labels, {
        **{m: lambda w, f=f: f(labels, guess, w) for m, f in (basic | precisions).items()},
        M.BalancedAccuracy(): lambda w: sk.balanced_accuracy_score(labels, guess, sample_weight=w),
        M.TopKAccuracy(2): lambda w: sk.top_k_accuracy_score(labels, several, k=2, sample_weight=w, labels=label),
        M.ConfusionMatrix(): lambda w: sk.confusion_matrix(labels, guess, sample_weight=w, labels=label),
        M.LogLoss(): lambda w: sk.log_loss(labels, p, sample_weight=w, labels=label),
        M.Brier(): lambda w: sk.brier_score_loss(labels, p, sample_weight=w, labels=label),
        M.CalibrationError(): lambda w: calibration(p.max(axis=1), guess == labels, np.ones(ROWS) if w is None else w),
    }  # fmt: skip
    one[:2, 0], bits[:2] = (60.0, -700.0), (0.0, 1.0)  # certain and wrong
    q, side = sigmoid(one[:, 0]), (one[:, 0] > 0.0).astype(float)
    yield "binary", bp.BinaryCrossEntropyWithLogits(), one, bits, {
        **{m: lambda w, f=f: f(bits, side, w) for m, f in basic.items()},
        M.Precision(): lambda w: sk.precision_score(bits, side, sample_weight=w),
        M.Recall(): lambda w: sk.recall_score(bits, side, sample_weight=w),
        M.BalancedAccuracy(): lambda w: sk.balanced_accuracy_score(bits, side, sample_weight=w),
        M.ConfusionMatrix(): lambda w: sk.confusion_matrix(bits, side, sample_weight=w),
        M.LogLoss(): lambda w: sk.log_loss(bits, q, sample_weight=w),
        M.Brier(): lambda w: sk.brier_score_loss(bits, q, sample_weight=w),
        M.CalibrationError(10): lambda w: calibration(q, bits, np.ones(ROWS) if w is None else w, 10),
        M.RocAuc(): lambda w: sk.roc_auc_score(bits, one[:, 0], sample_weight=w),
        M.AveragePrecision(): lambda w: sk.average_precision_score(bits, one[:, 0], sample_weight=w),
    }  # fmt: skip
    sides, chances = (many > 0.0).astype(float), sigmoid(many)
    yield "tags", bp.BinaryCrossEntropyWithLogits(), many, tags, {
        **{m: lambda w, f=f: f(tags, sides, w) for m, f in (basic | recalls).items()},
        M.LogLoss(): lambda w: np.mean([sk.log_loss(tags[:, k], chances[:, k], sample_weight=w) for k in range(3)]),
        M.Brier(): lambda w: np.mean([sk.brier_score_loss(tags[:, k], chances[:, k], sample_weight=w)
                                      for k in range(3)]),
        M.RocAuc(): lambda w: sk.roc_auc_score(tags, many, sample_weight=w),
        M.AveragePrecision(): lambda w: sk.average_precision_score(tags, many, sample_weight=w),
    }  # fmt: skip
    three = np.random.default_rng(8).normal(size=(ROWS, 3))  # none of whose probabilities are equal but for rounding
    yield "three", bp.Focal(), three, labels, {
        M.RocAuc(): lambda w: np.mean([sk.roc_auc_score(labels == k, softmax(three)[:, k], sample_weight=w)
                                       for k in range(3)]),
        M.AveragePrecision(): lambda w: sk.average_precision_score(np.eye(3)[labels], softmax(three), sample_weight=w),
    }  # fmt: skip
    two, second = draw(ROWS, 2, seed=10), bits.astype(int)
    yield "two", bp.CrossEntropy(), two, np.eye(2)[second], {
        M.Accuracy(): lambda w: sk.accuracy_score(second, two.argmax(axis=1), sample_weight=w),
        M.Recall(): lambda w: sk.recall_score(second, two.argmax(axis=1), sample_weight=w, average="macro"),
        M.RocAuc(): lambda w: sk.roc_auc_score(second, two[:, 1] - two[:, 0], sample_weight=w),
        M.LogLoss(): lambda w: sk.log_loss(second, softmax(two), sample_weight=w),
    }  # fmt: skip
    yield "numbers", bp.MeanSquaredError(), y + 1e3, t, {
        M.MAE(): lambda w: sk.mean_absolute_error(t, y + 1e3, sample_weight=w),
        M.RMSE(): lambda w: sk.root_mean_squared_error(t, y + 1e3, sample_weight=w),
        M.MAPE(): lambda w: sk.mean_absolute_percentage_error(t, y + 1e3, sample_weight=w),
        M.R2(): lambda w: sk.r2_score(t, y + 1e3, sample_weight=w),
        M.Pinball(0.2): lambda w: sk.mean_pinball_loss(t, y + 1e3, alpha=0.2, sample_weight=w),
        M.Spearman(): lambda w: spearman(*((y, t) if w is None else (y[w > 0], t[w > 0]))),
    }  # fmt: skip


KINDS = ("classes", "binary", "tags", "three", "two", "numbers")


def grouped(metrics):
    """The metrics in lists in which no two have one name."""
    groups = []
    for metric in metrics:
        group = next((g for g in groups if metric.key not in [m.key for m in g]), None)
        if group is None:
            groups.append(group := [])
        group.append(metric)
    return groups


def check(lib, kind, weight, dtype="float64", batch_size=32, groups=None):
    import sklearn.metrics as sk

    _, loss, output, target, wanted = next(case for case in cases(sk) if case[0] == kind)
    trainer = identity(lib, output.shape[1], loss, dtype)
    x, y = lib.array(output, dtype), lib.array(target)
    w = None if weight is None else lib.array(weight, dtype)
    for metrics in grouped(wanted)[:groups]:
        found = trainer.evaluate(x, y, sample_weight=w, metrics=metrics, batch_size=batch_size)
        for metric in metrics:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes that don't occur
                expected = wanted[metric](weight)
            rtol = 1e-12 if dtype == "float64" else 2e-5
            np.testing.assert_allclose(found[metric.key], expected, rtol=rtol, atol=rtol, err_msg=str(metric))


@needs_sklearn
@pytest.mark.parametrize("batch_size", [None, 32, 7])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_scikit_learn_has_it(library, kind, weight, batch_size):
    check(library("numpy"), kind, weight, batch_size=batch_size)


@needs_sklearn
@pytest.mark.parametrize("kind", KINDS)
def test_on_every_library(backend, kind, uncompiled):
    if backend.name == "jax":
        pytest.skip("metrics on JAX are tested compiled: eager, JAX compiles every operation again")
    if kind in ("tags", "three", "two") and backend.name in ("numpy-jit", "jax-jit", "cupy"):
        pytest.skip("compiled, they are as classes and one output")
    check(backend, kind, WEIGHT, groups=1)  # others differ by what comes of the same sums
    assert not uncompiled()


@needs_sklearn
@pytest.mark.parametrize("kind", ["classes", "tags", "three"])
def test_of_float32(library, kind):
    check(library("numpy"), kind, WEIGHT, "float32")


def test_every_metric_of_the_catalogue_is_in_the_table():
    pytest.importorskip("sklearn")
    import sklearn.metrics as sk

    proven = {type(metric) for *_, wanted in cases(sk) for metric in wanted} | {M.OfHead}
    assert proven == {cls for cls, _ in catalogue(Metric).values() if cls.__module__.startswith("bpnet.")}


def test_each_is_recorded_by_the_name_that_it_is_asked_for():
    assert {name: resolve(Metric, "metric", name).key for name in own_catalogue(Metric) if name != "OfHead"} == {
        name: name for name in own_catalogue(Metric) if name != "OfHead"
    }
    assert [m.key for m in (M.TopKAccuracy(3), M.Pinball(0.9), M.FBeta(beta=1.5), M.OfHead(0, "precision"))] == [
        "top_3_accuracy", "pinball_0.9", "f1.5", "head_0_precision"
    ]  # fmt: skip


def test_a_type_checker_knows_their_names():
    ours = {name for name, (cls, _) in catalogue(Metric).items() if cls.names and cls.__module__.startswith("bpnet.")}
    assert set(get_args(MetricName)) == ours


@pytest.mark.parametrize("float64", [False, True])
def test_what_is_sorted_stays_where_it_is(library, monkeypatch, float64):
    """But on a device without float64."""
    lib, seen = library("strict"), []
    trainer, y = identity(lib, 1, "binary_cross_entropy_with_logits"), (np.arange(ROWS) % 3 == 0).astype(float)
    if not float64:
        monkeypatch.setattr("bpnet.collected._has_float64", lambda *_: False)
    monkeypatch.setattr(lib.seam, "to_host", lambda x: seen.append(tuple(x.shape)) or np.asarray(x))
    metrics = ["roc_auc", "average_precision", "recall"]
    found = trainer.evaluate(lib.array(draw(ROWS, 1)), lib.array(y), metrics=metrics, batch_size=40)
    assert float64 is all(40 not in shape for shape in seen)
    np_lib = library("numpy")
    wanted = identity(np_lib, 1, trainer.loss).evaluate(draw(ROWS, 1), y, metrics=metrics)
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_of_rows_join_to_the_batch(compiled, monkeypatch, library):
    """A large batch is cut into blocks, whose statistics are joined on the device."""
    if compiled:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    compiles(monkeypatch, compiled)
    rows, found = 3000, []
    x, y = draw(rows, 3), np.random.default_rng(1).integers(0, 3, rows)
    net = bp.Sequential(bp.Dense(400, "tanh"), bp.Dense(3))
    for loss, target, metrics in (
        ("cross_entropy", y, ["accuracy", "f1", "confusion_matrix", "roc_auc", "log_loss", M.TopKAccuracy(2)]),
        ("mse", x + 1e3, ["r2", "rmse", "spearman"]),
    ):
        trainer = bp.Trainer(net, loss).build(x)
        whole, parts = (trainer.evaluate(x, target, metrics=metrics, batch_size=n) for n in (None, 100))
        assert len(trainer.backend.blocks(rows, 2.0 * trainer.layout.size)) > 1
        found.append(whole)
        for name, value in whole.items():
            np.testing.assert_allclose(parts[name], value, rtol=1e-9, err_msg=name)


def test_a_row_of_no_weight_changes_nothing_though_its_output_is_infinite(library):
    lib = library("numpy")
    of_classes = ["accuracy", "f1", "roc_auc", "log_loss", "brier", "calibration_error"]
    of_numbers = ["mae", "rmse", "r2", "mape", "pinball", "spearman"]
    for loss, outputs, target, metrics in (
        ("cross_entropy", 3, np.array([0, 1, 2, 1]), of_classes),
        ("mse", 2, draw(4, 2, seed=9), of_numbers),
    ):
        trainer, x = identity(lib, outputs, loss), draw(4, outputs)
        trainer.parameters = {"weight": 10.0 * np.eye(outputs), "bias": np.zeros(outputs)}
        wanted = trainer.evaluate(x[:3], target[:3], metrics=metrics)
        x[3] = 1e308
        found = trainer.evaluate(x, target, sample_weight=np.array([1.0, 1.0, 1.0, 0.0]), metrics=metrics)
        assert found == pytest.approx(wanted, rel=1e-12)


def test_where_there_is_nothing_to_compare(library):
    lib = library("numpy")
    binary, numbers = identity(lib, 1, "binary_cross_entropy_with_logits"), identity(lib, 1, "mse")
    x, ones = draw(5, 1), np.ones((5, 1))
    found = binary.evaluate(x, ones, metrics=["roc_auc"])
    assert math.isnan(found["roc_auc"])
    found = binary.evaluate(-np.abs(x) - 1.0, 0.0 * ones, metrics=["average_precision", "precision", "recall", "f1"])
    assert [found[name] for name in ("average_precision", "precision", "recall", "f1")] == [0.0] * 4
    assert numbers.evaluate(ones, ones, metrics=["r2"])["r2"] == 1.0
    assert numbers.evaluate(x, ones, metrics=["r2"])["r2"] == 0.0
    assert math.isnan(numbers.evaluate(x, ones, metrics=["spearman"])["spearman"])


def test_metrics_are_in_the_targets_own_unit(library):
    lib, z = library("numpy"), draw(6, 1)
    counts = np.array([[0.0], [1], [2], [3], [1], [0]])
    found = identity(lib, 1, "poisson").evaluate(z, counts, metrics=["mae"])
    assert found["mae"] == pytest.approx(np.mean(np.abs(np.exp(z) - counts)), rel=1e-12)
    trainer, z = identity(lib, 2, bp.Quantile((0.1, 0.9))), draw(6, 2)
    found = trainer.evaluate(z, counts, metrics=[M.Pinball(0.1), M.Pinball(0.9)])
    for k, q in enumerate((0.1, 0.9)):
        e = counts[:, 0] - z[:, k]
        assert found[f"pinball_{q}"] == pytest.approx(np.mean(np.maximum(q * e, (q - 1.0) * e)), rel=1e-12)
    assert (found["pinball_0.1"] + found["pinball_0.9"]) / 2 == pytest.approx(found["loss"], rel=1e-12)


def test_metrics_of_heads(library):
    lib, z = library("numpy"), draw(6, 4)
    y = np.concatenate([np.array([[0], [1], [2], [2], [1], [0]]), draw(6, 1, seed=8)], axis=1)
    trainer = identity(lib, 4, bp.Heads(bp.Head("cross_entropy", 3), bp.Head("mse", 1)))
    found = trainer.evaluate(z, y, metrics=[M.OfHead(0, "accuracy"), M.OfHead(0, "roc_auc"), M.OfHead(1, "r2")])
    assert found["head_0_accuracy"] == np.mean(z[:, :3].argmax(axis=1) == y[:, 0])
    apart = identity(lib, 3, "cross_entropy").evaluate(z[:, :3], y[:, 0].astype(int), metrics=["roc_auc"])
    assert found["head_0_roc_auc"] == pytest.approx(apart["roc_auc"], rel=1e-12)
    apart = identity(lib, 1, "mse").evaluate(z[:, 3:], y[:, 1:], metrics=["r2"])
    assert found["head_1_r2"] == pytest.approx(apart["r2"], rel=1e-12)


# ---- in a training --------------------------------------------------------------------------------------------------


def test_the_history_has_them_of_training_and_of_validation_data(library, tmp_path, capsys):
    x, y = draw(60, 3), np.random.default_rng(1).integers(0, 3, 60)
    trainer = bp.Trainer(bp.Dense(3), "cross_entropy")
    metrics = ["accuracy", "roc_auc", M.ConfusionMatrix()]
    history = trainer.fit(x, y, epochs=2, batch_size=20, validation=(x[:9], y[:9]), metrics=metrics, progress=False)
    last = history.epochs[-1]
    for prefix, rows in (("", slice(None)), ("val_", slice(0, 9))):
        now = trainer.evaluate(x[rows], y[rows], metrics=metrics)
        for name in ("accuracy", "roc_auc", "confusion_matrix"):
            np.testing.assert_allclose(last[prefix + name], now[name], rtol=1e-12)
    names = list(last)
    assert names.index("loss") < names.index("accuracy") < names.index("val_loss") < names.index("val_accuracy")
    assert "accuracy 0." in repr(history)
    assert "val_roc_auc 0." in repr(history)
    trainer.save(tmp_path / "m.safetensors")
    assert bp.load(tmp_path / "m.safetensors").history.epochs == history.epochs
    plain = bp.Trainer(bp.Dense(3), "cross_entropy").fit(x, y, validation=(x, y), progress=False).epochs[0]
    assert plain.keys() == {*COLUMNS, "val_loss", "val_accuracy"}


def test_training_is_the_same_with_metrics(library):
    x, y = draw(60, 3), np.random.default_rng(1).integers(0, 3, 60)
    thetas = []
    for metrics in ([], ["accuracy", "f1"]):
        trainer = bp.Trainer(bp.Sequential(bp.Dense(5), bp.Dropout(0.5), bp.Dense(3)), "cross_entropy")
        trainer.fit(x, y, epochs=2, batch_size=16, metrics=metrics, progress=False)
        thetas.append(trainer.theta)
    np.testing.assert_array_equal(*thetas)


@pytest.mark.parametrize(
    ("monitor", "larger"),
    [("val_roc_auc", True), ("val_f1", True), ("f1.5", True), ("val_top_3_accuracy", True), ("val_r2", True),
     ("val_precision", True), ("val_head_0_roc_auc", True), ("head_1_rmse", False),
     ("val_loss", False), ("val_rmse", False), ("brier", False),
     ("val_log_loss", False)],
)  # fmt: skip
def test_early_stopping_knows_which_is_better(monitor, larger):
    assert (bp.EarlyStopping(monitor).sign < 0) is larger


@dataclass(frozen=True)
class _LargestError(Metric):
    """A user's own: the largest absolute error."""

    names = {"largest_error": {}}
    larger_is_better = False
    of = ("numbers",)

    def statistics(self, run, loss, output, target, weight):
        return (run.xp.max(run.xp.abs(output - target)),)

    def combine(self, b, some, more):
        return (b.xp.maximum(some[0], more[0]),)

    def result(self, xp, loss, largest):
        return float(largest)


def test_a_users_own_metric(backend):
    trainer, x, y = identity(backend, 2, "mse"), draw(6, 2), draw(6, 2, seed=8)
    found = trainer.evaluate(backend.array(x), backend.array(y), metrics=[_LargestError()], batch_size=2)
    assert found["largest_error"] == pytest.approx(np.max(np.abs(x - y)), rel=1e-12)


@dataclass(frozen=True)
class _Called(M.MAE):
    """A user's own of any name."""

    key: str = "own"


@pytest.mark.parametrize(
    ("loss", "outputs", "metrics", "error", "message"),
    [
        ("mse", 1, "accuracy", ArgumentError, "metrics is an object of the type str|metrics is .*; expected a list"),
        ("mse", 1, ["acuracy"], UnknownNameError, "did you mean 'accuracy'"),
        ("mse", 1, [M.Accuracy], ArgumentError, "an instance"),
        ("mse", 1, ["accuracy"], OptionError, "accuracy is for one of several classes or what is true or"),
        ("cross_entropy", 3, ["rmse"], OptionError, "rmse is for numbers, but the loss"),
        ("cross_entropy", 3, ["f1", "f1"], OptionError, "two that are called 'f1'"),
        ("mse", 1, [_Called("lr")], OptionError, r"metrics\[0\] is called 'lr', but so is what an epoch's record"),
        ("mse", 1, [_Called("val_mae")], OptionError, "is called 'val_mae', but so is"),
        ("cross_entropy", 3, ["top_k_accuracy"], OptionError, "of the 5 most probable classes, but there are 3"),
        ("cross_entropy", 3, [M.Precision("binary")], OptionError, "average is 'binary', which is of one output"),
        ("hinge", 1, ["log_loss"], OptionError, "log_loss is of probabilities"),
        ("hinge", 2, ["confusion_matrix"], OptionError, "is of one output or of one of several classes"),
        ("hinge", 2, ["balanced_accuracy"], OptionError, "is of one output or of one of several classes"),
        (bp.Heads(bp.Head("mse", 2)), 2, ["mae"], OptionError, "OfHead"),
        (bp.Heads(bp.Head("mse", 2)), 2, [M.OfHead(1, "mae")], OptionError, "head_1_mae is of a head that"),
    ],
)  # fmt: skip
def test_metrics_that_do_not_fit(library, loss, outputs, metrics, error, message):
    trainer, x = identity(library("numpy"), outputs, loss), np.zeros((2, outputs))
    y = np.array([0, 1]) if loss == "cross_entropy" else x
    for call in (trainer.evaluate, trainer.fit):
        with pytest.raises(error, match=message):
            call(x, y, metrics=metrics)


def test_options_that_can_not_be():
    for make in (lambda: M.TopKAccuracy(0), lambda: M.FBeta(beta=0.0), lambda: M.Precision("mean"),
                 lambda: M.CalibrationError(0), lambda: M.Pinball(2.0), lambda: M.OfHead(-1, "mae")):  # fmt: skip
        with pytest.raises(OptionError):
            make()
