"""Ensembles in one network: members learn each by itself, and say together the mean of what they predict.

The derivatives of their layers are in the table of `test_layers`, those of their loss in that of `test_losses`.
"""

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import OptionError, ShapeError
from bpnet.registry import examples

K = 3


def table(rows=48, classes=3):
    """Rows, labels and weights."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 4))
    return x, (x @ rng.standard_normal((4, classes))).argmax(axis=1).astype(np.int32), rng.uniform(0.5, 2.0, rows)


def test_each_member_learns_as_if_it_were_alone():
    x, labels, weight = table()
    members = bp.Sequential(bp.MemberDense(K, 5, "tanh"), bp.MemberDense(K, 3))
    together = bp.Trainer(members, bp.Members("cross_entropy"), bp.SGD(0.1 * K), seed=1, compile=False).build(x)
    before = {i: {name: value.copy() for name, value in p.items()} for i, p in together.parameters.items()}
    options = {"epochs": 2, "batch_size": 16, "progress": False, "sample_weight": weight}
    together.fit(x, labels, **options)
    of_all = together.predict(x)
    assert of_all.shape == (48, K, 3)
    for m in range(K):
        net = bp.Sequential(bp.Dense(5, "tanh"), bp.Dense(3))
        alone = bp.Trainer(net, "cross_entropy", bp.SGD(0.1), seed=1, compile=False).build(x)
        alone.parameters = {i: {name: value[m] for name, value in p.items()} for i, p in before.items()}
        alone.fit(x, labels, **options)
        np.testing.assert_allclose(of_all[:, m], alone.predict(x), rtol=1e-9)


def test_what_they_say_is_the_mean_of_what_they_predict(library):
    x, labels, weight = table()
    net = bp.Sequential(bp.BatchEnsemble(K, 8, "relu", "random_signs"), bp.MemberDense(K, 3))
    trainer = bp.Trainer(net, bp.Members("cross_entropy"), bp.Adam(0.05), seed=0, compile=False)
    metrics = ["accuracy", "log_loss", "roc_auc", "confusion_matrix"]
    record = trainer.fit(x, labels, epochs=3, batch_size=16, validation=(x, labels), metrics=metrics, progress=False)
    output = trainer.predict(x)
    p = np.exp(output) / np.exp(output).sum(axis=2, keepdims=True)
    said = trainer.loss.prediction(library("numpy").seam, output)
    np.testing.assert_allclose(said, p.mean(axis=1), rtol=1e-12)
    found = trainer.evaluate(x, labels, metrics=metrics, sample_weight=weight)
    each = -np.log(p[np.arange(48), :, labels])
    assert found["loss"] == pytest.approx(np.average(each.mean(axis=1), weights=weight))
    assert found["accuracy"] == pytest.approx(np.average(said.argmax(axis=1) == labels, weights=weight))
    assert found["log_loss"] == pytest.approx(np.average(-np.log(said[np.arange(48), labels]), weights=weight))
    assert np.shape(found["confusion_matrix"]) == (3, 3)
    assert record["val_accuracy"][-1] == pytest.approx((said.argmax(axis=1) == labels).mean())
    rows = bp.row_losses(trainer.loss, output, labels)
    np.testing.assert_allclose(rows, each.mean(axis=1), rtol=1e-12)


def test_so_it_is_whatever_the_loss(library):
    b, rng = library("numpy").seam, np.random.default_rng(4)
    for name, loss in examples(bp.Loss).items():
        if not loss.predicts or isinstance(loss, bp.Members):
            continue
        outputs = np.abs(rng.uniform(0.1, 0.9, (6, K, 4)))
        each = np.stack([loss.prediction(b, outputs[:, m]) for m in range(K)])
        np.testing.assert_allclose(loss.prediction(b, loss.average(b, outputs)), each.mean(axis=0), err_msg=name)
    heads = bp.Heads(bp.Head("cross_entropy", 3), bp.Head("mse", 1))
    parts = bp.CrossEntropy().average(b, outputs[:, :, :3]), outputs[:, :, 3:].mean(axis=1)
    np.testing.assert_allclose(heads.average(b, outputs), np.concatenate(parts, axis=1))
    mixture = bp.GaussianNLL().average(b, np.array([[[1.0, 0.0], [5.0, np.log(3.0)]]]))
    np.testing.assert_allclose(mixture, [[3.0, np.log(2.0 + 4.0)]])


def test_outputs_of_any_size_have_a_mean(library):
    b = library("numpy").seam
    with np.errstate(all="raise", under="ignore"):
        logits = np.array([[[1e5], [-1e5]], [[1e5], [1e5]], [[-800.0], [-802.0]]])
        found = bp.BinaryCrossEntropyWithLogits().average(b, logits)
        np.testing.assert_allclose(found, [[0.0], [1e5], [-800.0 + np.log((1.0 + np.exp(-2.0)) / 2.0)]], atol=1e-9)
        of_classes = bp.CrossEntropy().average(b, np.concatenate([logits, 0.0 * logits], axis=2))
        np.testing.assert_allclose(of_classes[:, 0] - of_classes[:, 1], found[:, 0], atol=1e-9)


def test_how_members_start():
    def start(layer, in_shape=(4,)):
        return {k: getattr(v, "value", v) for k, v in layer.init(bp.Rng(0), in_shape).items()}

    first = start(bp.BatchEnsemble(50, 2, start="random_signs", bias_init="torch"))
    assert set(np.unique(first["r"])) == {-1.0, 1.0}
    assert abs(first["r"].mean()) < 0.2
    assert (first["s"] == 1.0).all()
    assert (first["bias"] == first["bias"][0]).all()
    drawn = start(bp.MemberScale(50, "normal", chunks=(1, 3)))["r"]
    assert (drawn[:, 1:2] == drawn[:, 1:]).all()
    assert np.std(drawn[:, 0]) == pytest.approx(1.0, abs=0.3)
    apart = start(bp.MemberDense(2, 3, kernel_init="orthogonal", bias_init="torch"), (2, 4))
    assert np.abs(apart["weight"][0] - apart["weight"][1]).min() > 0.0
    for weight in apart["weight"]:
        np.testing.assert_allclose(weight.T @ weight, np.eye(3), atol=1e-12)
    net = bp.Sequential(bp.BatchEnsemble(2, 3), bp.MemberScale(2), bp.MemberDense(2, 1))
    assert sorted(s.name for s in bp.layout_of(net, (4,)).parameters if s.decay) == ["0.weight", "2.weight"]


def test_members_that_start_alike_are_one_dense_layer(library):
    lib, x = library("numpy"), np.random.default_rng(1).standard_normal((5, 4))
    dense, alike = bp.Dense(3, "tanh"), bp.BatchEnsemble(2, 3, "tanh")
    weight = np.random.default_rng(2).standard_normal((4, 3))
    run = bp.Run(lib.seam)
    y = dense.forward(run, {"weight": weight, "bias": np.zeros(3)}, x)[0]
    p = {"weight": weight, "r": np.ones((2, 4)), "s": np.ones((2, 3)), "bias": np.zeros((2, 3))}
    np.testing.assert_allclose(alike.forward(run, p, x)[0], np.stack([y, y], axis=1), rtol=1e-12)


def test_a_saved_one_comes_back(tmp_path):
    x, labels, _ = table()
    net = bp.Sequential(bp.MemberScale(K, chunks=(2, 2)), bp.Dense(4, "relu"), bp.MemberDense(K, 3))
    trainer = bp.Trainer(net, bp.Members(bp.CrossEntropy(label_smoothing=0.1)), seed=0, compile=False)
    trainer.step(x, labels)
    trainer.save(tmp_path / "members.safetensors")
    loaded = bp.load(tmp_path / "members.safetensors", like=x)
    assert loaded.loss == trainer.loss
    np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))


def test_shapes_of_very_many_members_take_no_time():
    shape = bp.layout_of(bp.MemberDense(10**9, 3), (4,)).parameters[0].shape
    assert shape == (10**9, 4, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.Members("mse").target_shape((3,)), ShapeError, r"outputs of several members, \(k, units\)"),
        (lambda: bp.Members(bp.Members("mse")), OptionError, "Members is Members itself"),
        (lambda: bp.MemberDense(2, 3).out_shape((3, 4)), ShapeError, r"one for each member, \(2, n\), but rows are"),
        (lambda: bp.MemberScale(2, "signs"), OptionError, "start is 'signs'; expected 'ones', 'random_signs' or"),
        (lambda: bp.MemberScale(2, chunks=(1, 2)).init(bp.Rng(0), (4,)), ShapeError, "chunks are of 3 features"),
        (lambda: bp.BatchEnsemble(2, 3, chunks=(1,)), OptionError, "chunks are of factors that are drawn"),
        (lambda: bp.BatchEnsemble(0, 3), OptionError, "members is 0; expected a whole number of at least 1"),
    ],
)
def test_what_does_not_fit(make, error, message):
    with pytest.raises(error, match=message):
        make()
