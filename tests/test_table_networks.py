"""Networks for tables: the plain one, and the preset "strong", whose ingredients are RealMLP's."""

import dataclasses

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import OptionError
from bpnet.tabular.networks import strong, strong_widths, table_network

RNG = np.random.default_rng(0)
NUMBERS = RNG.standard_normal((64, 3)).astype(np.float32) * [1.0, 10.0, 0.1]
CODES = RNG.integers(0, 12, (64, 2)).astype(np.int32)
LABELS = (NUMBERS[:, 0] > 0.0).astype(np.int32) + (CODES[:, 0] > 6)
X = {"numbers": NUMBERS.astype(np.float32), "categories": CODES}
INPUT = bp.NumericInput.fit(NUMBERS, "robust", clip=3.0)
CATEGORIES = bp.CategoricalInput((12, 12), strong_widths((12, 8)))


def test_a_plain_network_is_its_layers_in_their_order():
    out = bp.Standardize(5.0, 2.0, invert=True)
    net = table_network(
        INPUT, 2, hidden=(8, 8), activation="tanh", dropout=0.1, norm="LayerNorm", residual=True, out_scale=out
    )
    block = (bp.Dense(8), bp.LayerNorm(), bp.Tanh(), bp.Dropout(0.1))
    assert net.layers == (INPUT, *block, bp.Residual(bp.Sequential(*block)), bp.Dense(2), out)
    assert table_network(None, 3, hidden=()).layers == (bp.Dense(3),)


@pytest.mark.parametrize(("first", "start"), [(INPUT, "random_signs"), (None, "random_signs"), ("pbld", "normal")])
def test_a_network_of_members_is_tabm(first, start):
    inputs = bp.Sequential(INPUT, bp.NumericEmbedding(first)) if isinstance(first, str) else first
    layers = table_network(inputs, 2, hidden=(8, 8), members=4).layers[inputs is not None :]
    assert [type(layer) for layer in layers] == [bp.BatchEnsemble, bp.BatchEnsemble, bp.MemberDense]
    assert [layer.start for layer in layers[:2]] == [start, "ones"]
    assert bp.Sequential(*layers).out_shape((3,)) == (4, 2)


def recipe(task="classification", **options):
    outputs = 3 if task == "classification" else 1
    return strong(INPUT, CATEGORIES, outputs, task=task, epochs=8, batch_size=16, **options)


def rates(made, step):
    """By pattern: the learning rate of a step and the factor of weight decay."""
    each = {"": made.optimizer.base, **dict(made.optimizer.groups)}
    each = {
        name: dataclasses.replace(o, lr=o.lr.lr, weight_decay=getattr(o.weight_decay, "lr", 0.0))
        for name, o in each.items()
    }
    return {
        name: (o.lr(step), o.weight_decay(step) if isinstance(o.weight_decay, bp.Schedule) else 0.0)
        for name, o in each.items()
    }


def test_each_kind_of_parameter_has_its_learning_rate_and_decay():
    made = recipe()
    step = (
        8 * (np.sqrt(2.0) * 8.0 - 1.0) / 15.0
    )  # in the middle of the last cycle of coslog4, behind half of the epochs
    late = 0.5 * (1.0 + np.cos(np.pi * (2.0 * step / 8.0 - 1.0)))
    expected = {
        "": (1, 1),
        "*.bias": (0.1, 0),
        "*.scale": (6, 6),
        "*.activation.alpha": (0.1, 0),
        "0.numbers.*": (0.1, 0.1),
    }
    for name, (lr, decay) in rates(made, step).items():
        assert (lr, decay) == pytest.approx(tuple(np.array(expected.pop(name)) * [0.04, 0.02 * late])), name
    assert not expected
    assert rates(recipe("regression"), step)[""][0] == pytest.approx(0.2)
    simple = rates(recipe("regression", simple=True), step)
    assert list(simple) == ["", "*.bias", "*.scale"]
    np.testing.assert_allclose(list(simple.values()), [(0.07, 0.0), (0.007, 0.0), (0.42, 0.0)])
    assert {o.beta2 for o in (made.optimizer.base, *(o for _, o in made.optimizer.groups))} == {0.95}


def test_its_layers_and_losses_are_those_of_the_paper():
    made, out = recipe(), bp.Standardize(5.0, 2.0, invert=True)
    dropout = bp.Dropout(bp.Epochs(bp.FlatCosine(0.15, 8)))
    dense = bp.Dense(256, "parametric_selu", kernel_init="lecun_normal", ntk=True)
    embedding = bp.Sequential(INPUT, bp.NumericEmbedding("pbld", 4, 16, 0.1))
    assert made.network.layers == (
        bp.TabularInput(embedding, CATEGORIES), bp.Scale(decay=True), dense, dropout, dense, dropout, dense, dropout,
        bp.Dense(3, kernel_init="lecun_normal", ntk=True),
    )  # fmt: skip
    assert made.loss == bp.CrossEntropy(label_smoothing=0.1)
    numbers = recipe("regression", out_scale=out, out_range=(1.0, 9.0))
    assert numbers.network.layers[-2:] == (out, bp.Clamp(1.0, 9.0))
    assert numbers.loss == bp.MeanSquaredError(scale=2.0)
    assert numbers.network.layers[2].activation == "parametric_mish"
    plain = recipe("regression", out_scale=out, out_range=(1.0, 9.0), simple=True)
    dense = bp.Dense(256, "mish", kernel_init="lecun_normal", bias_init=bp.initializers.Normal(1.0), ntk=True)
    assert plain.network.layers == (
        bp.TabularInput(INPUT, CATEGORIES), bp.Scale(), dense, dense, dense, bp.Dense(1, kernel_init="zeros", ntk=True),
        out,
    )  # fmt: skip
    several = recipe(members=4)
    assert several.network.out_shape((("numbers", (3,)), ("categories", (2,)))) == (4, 3)
    assert several.loss == bp.Members(made.loss)
    assert strong_widths((10, 11)) == (0, 8)
    assert strong_widths((10, 500), simple=True) == (0, 0)


@pytest.mark.parametrize("members", [None, 2])
def test_start_values_fit_the_data(members, library, monkeypatch):
    made = recipe(members=members)
    trainer = made.start(made.trainer(seed=3, compile=False), X)
    seen = []
    monkeypatch.setattr(bp.Dense, "forward", watched(bp.Dense.forward, seen))
    p = trainer.layout.views(trainer.backend, trainer.theta, trainer.buffers)
    with trainer.backend.session():
        run = bp.Run(trainer.backend, True, (3, 0))
        trainer.network.forward(run, p, (X["numbers"], X["categories"]))
    for weight, bias, z in seen[:3]:
        np.testing.assert_allclose(z.std(axis=0), 1.0, rtol=1e-4)
        assert (z.min(axis=0) <= -bias).all()
        assert (-bias <= z.max(axis=0)).all()
        assert np.std(bias) > 0.2
        assert abs(weight).mean() > 0.0
    again = made.start(made.trainer(seed=3, compile=False), X)
    np.testing.assert_array_equal(again.theta, trainer.theta)


def test_it_starts_alike_on_every_library(backend):
    if backend.name.startswith("jax"):
        pytest.skip("JAX would compile each of its operations, which are run once")
    made = strong(INPUT, None, 2, task="classification", epochs=1)
    expected = made.start(made.trainer(seed=3, compile=False), NUMBERS).theta
    trainer = made.start(made.trainer(seed=3, compile=False), backend.array(NUMBERS))
    np.testing.assert_allclose(backend.host(trainer.theta), expected, rtol=1e-9, atol=1e-9)


def watched(forward, seen):
    def call(self, run, p, x):
        rows = x.reshape(-1, x.shape[-1])
        seen.append((p["weight"], p["bias"], rows @ p["weight"] / np.sqrt(rows.shape[1])))
        return forward(self, run, p, x)

    return call


@pytest.mark.parametrize("options", [{}, {"members": 2}, {"simple": True}], ids=["TD", "members", "TD-S"])
def test_it_trains_the_same_compiled_and_not_and_comes_back_from_a_file(options, tmp_path):
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    made, trained = recipe(**options), {}
    for compiled in (False, True):
        trainer = made.start(made.trainer(seed=0, compile=compiled), X)
        trainer.fit(X, LABELS, epochs=1, batch_size=made.batch_size, progress=False)
        trained[compiled] = trainer.predict(X)
    np.testing.assert_allclose(trained[True], trained[False], rtol=0.0, atol=2e-3 * np.abs(trained[False]).max())
    if options:
        return
    trainer.save(tmp_path / "strong.safetensors")
    loaded = bp.load(tmp_path / "strong.safetensors", like=X["numbers"])
    assert (loaded.network, loaded.loss, loaded.optimizer) == (made.network, made.loss, made.optimizer)
    np.testing.assert_allclose(loaded.predict(X), trained[True], rtol=0.0, atol=1e-5 * np.abs(trained[True]).max())


def test_predictions_stay_within_the_targets():
    out = bp.Standardize(5.0, 2.0, invert=True)
    made = strong(INPUT, None, 1, task="regression", out_scale=out, out_range=(4.0, 6.0), epochs=1)
    trainer = made.start(made.trainer(seed=0, compile=False), NUMBERS)
    predicted = trainer.predict(100.0 * NUMBERS)
    assert predicted.min() >= 4.0
    assert predicted.max() <= 6.0
    assert ((predicted == 4.0) | (predicted == 6.0)).any()


def test_the_best_epoch_is_the_latest_of_equal_ones():
    made = recipe()
    trainer = made.start(made.trainer(seed=0, compile=False), X)
    best = made.best_epoch()
    data = {"x": X, "y": LABELS, "validation": (X, LABELS), "epochs": 8, "batch_size": 16}
    history = trainer.fit(**data, callbacks=[best], progress=False)
    accuracy = np.array(history["val_accuracy"])
    assert best.best_epoch == history["epoch"][np.flatnonzero(accuracy == accuracy.max())[-1]]
    assert trainer.evaluate(X, LABELS)["accuracy"] == pytest.approx(accuracy.max())


def test_what_does_not_fit():
    with pytest.raises(OptionError, match="task is 'ranking'; expected 'classification' or 'regression'"):
        recipe("ranking")
    with pytest.raises(OptionError, match="neither numbers nor categories"):
        strong(None, None, 2, task="classification")
    with pytest.raises(OptionError, match=r"out_scale is .*; expected an inverted Standardize"):
        recipe("regression", out_scale=bp.Standardize())
