"""Weights from and to PyTorch, Keras and scikit-learn: the same network written in both gives the same outputs."""

import io
import json
import zipfile

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ArgumentError, DataError, FileFormatError, NotBuiltError, ShapeError, UnknownNameError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 6))


def built(*layers, x=X, **options):
    return bp.Trainer(bp.Sequential(*layers), "mse", **options).build(x)


def drawn(trainer, seed=1):
    """With values that are nobody's start values, those of a BatchNorm's variance positive."""
    rng = np.random.default_rng(seed)
    (theta, buffers, state), count = trainer.snapshot()
    trainer.restore(((rng.normal(size=theta.shape), np.abs(rng.normal(size=buffers.shape)) + 0.1, state), count))
    return trainer


# ---- PyTorch --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nn():
    return pytest.importorskip("torch", reason="torch is not installed").nn


PAIRS = {  # for rows of n features: the layers here, those there, and how many features come out
    "dense": (lambda n: bp.Dense(5, "tanh"), lambda nn, n: [nn.Linear(n, 5), nn.Tanh()], 5),
    "no bias": (lambda n: bp.Dense(4, bias=False), lambda nn, n: [nn.Linear(n, 4, bias=False)], 4),
    "ntk": (lambda n: bp.Dense(7, ntk=True), lambda nn, n: [nn.Linear(n, 7)], 7),
    "prelu": (lambda n: bp.Dense(6, "prelu"), lambda nn, n: [nn.Linear(n, 6), nn.PReLU(6)], 6),
    "one slope": (lambda n: bp.PReLU(shared=True), lambda nn, n: [nn.PReLU()], None),
    "batch norm": (lambda n: bp.BatchNorm(), lambda nn, n: [nn.BatchNorm1d(n)], None),
    "layer norm": (lambda n: bp.LayerNorm(), lambda nn, n: [nn.LayerNorm(n)], None),
    "group norm": (lambda n: bp.GroupNorm(1), lambda nn, n: [nn.GroupNorm(1, n)], None),
    "rms norm": (lambda n: bp.RMSNorm(), lambda nn, n: [nn.RMSNorm(n, eps=1e-6)], None),
    "weight norm": (
        lambda n: bp.WeightNorm(bp.Dense(5, "prelu")),
        lambda nn, n: [nn.utils.parametrizations.weight_norm(nn.Linear(n, 5)), nn.PReLU(5)],
        5,
    ),
    "spectral norm": (
        lambda n: bp.SpectralNorm(bp.Dense(4)),
        lambda nn, n: [nn.utils.parametrizations.spectral_norm(nn.Linear(n, 4))],
        4,
    ),
    "relu": (lambda n: bp.ReLU(), lambda nn, n: [nn.ReLU()], None),
}  # fmt: skip


def pair(nn, seed):
    """A random network in both libraries."""
    rng = np.random.default_rng(seed)
    ours, theirs, n = [], [], X.shape[1]
    for name in rng.permutation(list(PAIRS))[:6]:
        here, there, units = PAIRS[name]
        ours.append(here(n))
        theirs += there(nn, n)
        n = units or n
    module = nn.Sequential(*theirs, nn.Linear(n, 2)).double()
    state = module.state_dict()
    for value in state.values():  # a running variance is positive, as what counts batches
        value.copy_(value.new_tensor(np.abs(rng.normal(size=value.shape)) + 0.1))
    module.load_state_dict(state)
    return built(*ours, bp.Dense(2)), module.eval()


def outputs(module, x=X):
    import torch

    return module(torch.asarray(x)).detach().numpy()


@pytest.mark.parametrize("seed", range(8))
def test_a_network_with_pytorchs_weights_gives_its_outputs(nn, seed):
    trainer, module = pair(nn, seed)
    assert bp.files.from_torch(trainer, module.state_dict()) is trainer
    np.testing.assert_allclose(trainer.predict(X), outputs(module), rtol=1e-9, atol=1e-9)
    given = bp.files.to_torch(drawn(trainer), module.state_dict())
    module.load_state_dict(given)
    np.testing.assert_allclose(trainer.predict(X), outputs(module), rtol=1e-9, atol=1e-9)
    again = built(*trainer.network.layers)  # and all of it comes back, rounding of a square root apart
    bp.files.from_torch(again, module)
    np.testing.assert_allclose(again.theta, trainer.theta, rtol=1e-15)
    np.testing.assert_array_equal(again.buffers, trainer.buffers)


def test_training_goes_on_from_the_weights_that_came(nn):
    trainer = built(bp.Dense(4, "relu"), bp.BatchNorm(), bp.Dense(2), optimizer=bp.ExponentialAverage("adam"))
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    trainer.fit(X, X[:, :2], progress=False)
    bp.files.from_torch(trainer, module)
    np.testing.assert_allclose(trainer.predict(X), outputs(module), rtol=1e-12)
    trainer.fit(X, X[:, :2], epochs=2, progress=False)
    module.load_state_dict(bp.files.to_torch(trainer, module))  # what is predicted with: the average
    np.testing.assert_allclose(trainer.predict(X), outputs(module), rtol=1e-12)


def test_embeddings_and_bilinear_layers(nn):
    import torch

    codes = RNG.integers(0, 9, (5, 2))
    trainer = built(bp.Embedding(9, 3), bp.Flatten(), bp.Bilinear(4), x=codes)
    table, product = nn.Embedding(9, 3), nn.Bilinear(3, 3, 4)
    bp.files.from_torch(trainer, nn.ModuleList([table, product]))
    expected = product(*table(torch.asarray(codes)).unbind(1)).detach().numpy()
    np.testing.assert_allclose(trainer.predict(codes), expected, rtol=1e-5, atol=1e-6)


def test_names_say_what_the_order_does_not(nn):
    trainer = built(bp.Parallel(bp.Dense(3), bp.Dense(3), join="add"), bp.Dense(2))
    parts = {"out": nn.Linear(3, 2), "b": nn.Linear(6, 3), "a": nn.Linear(6, 3)}
    state = {f"{n}.{k}": v for n, part in parts.items() for k, v in part.double().state_dict().items()}
    bp.files.from_torch(trainer, state, {"0.0": "a", "1": "out"})  # and the one that is left
    expected = outputs(parts["a"]) + outputs(parts["b"])
    np.testing.assert_allclose(trainer.predict(X), outputs(parts["out"], expected), rtol=1e-12)
    before = np.array(trainer.theta)
    del state["out.weight"], state["out.bias"]
    bp.files.from_torch(trainer, state, {"1": None, "0.0": "b"})
    assert not np.array_equal(trainer.theta, before)
    np.testing.assert_array_equal(trainer.parameters["1"]["weight"], trainer.layout.unpack(before)["1.weight"])


def test_a_shared_layer_may_be_listed_once_or_at_each_of_its_places(nn):
    layer = bp.Shared(bp.Dense(6), "twice")
    trainer, linear = built(layer, "tanh", layer), nn.Linear(6, 6).double()
    twice = nn.Sequential(linear, nn.Tanh(), linear)
    for given in (twice, linear):
        bp.files.from_torch(drawn(trainer), given)
        np.testing.assert_allclose(trainer.predict(X), outputs(twice), rtol=1e-12)
    with pytest.raises(ShapeError, match=r"layer '2.inner' is shared with 0.inner.weight, but '2' has other values"):
        bp.files.from_torch(trainer, nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)))


def test_a_layer_of_ones_own_has_the_same_names_and_shapes():
    trainer = built(bp.Scale(), bp.Dense(2))
    state = {"s.scale": np.arange(6.0), "d.weight": np.ones((2, 6)), "d.bias": np.zeros(2)}
    bp.files.from_torch(trainer, state)
    np.testing.assert_allclose(trainer.predict(X), (X @ np.arange(6.0))[:, None] * np.ones(2))


def test_every_library_can_be_given_weights(backend):
    x = backend.array(X, "float32")
    trainer = built(bp.Dense(4, "relu"), bp.BatchNorm(), bp.Dense(2), x=x)
    values = bp.files.to_keras(drawn(built(bp.Dense(4, "relu"), bp.BatchNorm(), bp.Dense(2))))
    bp.files.from_keras(trainer, values)
    assert type(trainer.theta) is type(x)
    assert trainer.theta.dtype == trainer.buffers.dtype == x.dtype
    for ours, given in zip(bp.files.to_keras(trainer), values, strict=True):
        np.testing.assert_array_equal(ours, given.astype("float32"))


def test_without_a_state_dict_names_are_the_networks_own(nn):
    given = bp.files.to_torch(built(bp.Dense(4, "prelu"), bp.BatchNorm(), bp.Dense(2)))
    assert {name: tuple(value.shape) for name, value in given.items()} == {
        "0.weight": (4, 6), "0.bias": (4,), "0.activation.weight": (4,), "1.weight": (4,), "1.bias": (4,),
        "1.running_mean": (4,), "1.running_var": (4,), "2.weight": (2, 4), "2.bias": (2,),
    }  # fmt: skip


LINEAR = {"weight": np.ones((4, 6)), "bias": np.zeros(4)}
LAST = {"2.weight": np.ones((2, 4)), "2.bias": np.zeros(2)}


def state(**change):
    return {f"0.{n}": v for n, v in (LINEAR | change).items() if v is not None} | LAST


@pytest.mark.parametrize(
    ("given", "names", "error", "text"),
    [
        ([1], None, ArgumentError, r"state_dict is of type list; expected a module, or what its state_dict\(\) gives"),
        (state(weight=[1.0]), None, ArgumentError, r"state_dict\['0.weight'\] is of type list; expected an array"),
        (state(weight=np.full((4, 6), np.nan)), None, DataError, r"0.weight has NaN among its values"),
        (
            state(weight=np.ones((5, 6))), None, ShapeError,
            r"layer '0' of .*, Dense\(.*\), needs weight \(4, 6\), bias \(4,\); .* with weight \(5, 6\), bias",
        ),
        (state(bias=None), None, ShapeError, r"has '0' with weight \(4, 6\): Dense\(..., bias=False\) has no bias"),
        (
            state() | {"3.weight": np.ones(2), "3.bias": np.ones(2)}, None, ShapeError,
            r"has 2 layers with values, the state_dict has 3: nothing belongs to '3' with .* in the state_dict",
        ),
        (LAST, {"1": "2"}, ShapeError, r"1 layer with values, the state_dict has 0: nothing belongs to layer '0' of"),
        (state(), {"fc": "0"}, UnknownNameError, r"unknown layer of the network 'fc': known are 0, 1"),
        (state(), {"0": "fc"}, UnknownNameError, r"unknown layer of the state_dict 'fc': known are 0, 2"),
        (state(), "0", ArgumentError, r"names is of type str; expected a dict"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_from_both_sides(given, names, error, text):
    trainer = built(bp.Dense(4), bp.Dense(2))
    before = np.array(trainer.theta)
    with pytest.raises(error, match=text):
        bp.files.from_torch(trainer, given, names)
    np.testing.assert_array_equal(trainer.theta, before)


def test_values_may_be_infinite_but_not_become_it():
    trainer = built(bp.Dense(4), bp.Dense(2), x=X.astype("float32"))
    bp.files.from_torch(trainer, state(bias=np.full(4, -np.inf)))
    assert np.isinf(np.asarray(trainer.parameters["0"]["bias"])).all()
    with pytest.raises(DataError, match=r"0.bias has values that are too large for the trainer's float32"):
        bp.files.from_torch(trainer, state(bias=np.full(4, 1e300)))


def test_a_slope_for_all_features_is_not_one_for_each():
    first = {f"0.{name}": value for name, value in LINEAR.items()}
    with pytest.raises(ShapeError, match=r"PReLU\(shared=True\) has one for all features"):
        bp.files.from_torch(built(bp.Dense(4, "prelu")), {**first, "1.weight": np.ones(1)})


def test_the_network_must_have_parameters():
    for convert in (bp.files.from_torch, bp.files.from_keras):
        with pytest.raises(NotBuiltError):
            convert(bp.Trainer(bp.Dense(2), "mse"), {})
        with pytest.raises(ArgumentError, match="model is of type Dense; expected a Trainer"):
            convert(bp.Dense(2), {})


# ---- Keras ----------------------------------------------------------------------------------------------------------


def keras_layers():
    return bp.Dense(5, "prelu"), bp.BatchNorm(epsilon=1e-3), bp.Dense(3, bias=False), bp.LayerNorm(epsilon=1e-3)


def test_keras_arrays_come_layer_by_layer():
    trainer = drawn(built(*keras_layers()))
    weights = bp.files.to_keras(trainer)
    shapes = [(6, 5), (5,), (5,), (5,), (5,), (5,), (5,), (5, 3), (3,), (3,)]  # alpha; gamma, beta, mean, variance
    assert [w.shape for w in weights] == shapes
    np.testing.assert_array_equal(weights[6], trainer.layout.unpack(trainer.buffers, buffers=True)["1.var"])
    again = bp.files.from_keras(built(*keras_layers()), weights)
    np.testing.assert_array_equal(again.predict(X), trainer.predict(X))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_kerass_own_model_and_file_give_the_same_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    layers = pytest.importorskip("keras", reason="keras is not installed").layers
    import keras

    body = layers.Dense(5), layers.PReLU(), layers.BatchNormalization(), layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((6,)), *body, layers.LayerNormalization()])
    model.set_weights(bp.files.to_keras(drawn(built(*keras_layers()))))
    model.save(tmp_path / "model.keras")
    expected = model.predict(X, verbose=0)
    for given in (model, model.get_weights(), tmp_path / "model.keras"):
        trainer = bp.files.from_keras(built(*keras_layers()), given)
        np.testing.assert_allclose(trainer.predict(X), expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_keras_is_read_in_the_order_of_its_layers(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    weights, place = bp.files.to_keras(drawn(built(*keras_layers()))), io.BytesIO()
    classes = "InputLayer", "Dense", "PReLU", "BatchNormalization", "Dropout", "Dense", "LayerNormalization"
    groups = {"dense": [0, 1], "p_re_lu": [2], "batch_normalization": [3, 4, 5, 6], "dense_1": [7]}
    with h5py.File(place, "w") as file:
        for name, places in (groups | {"layer_normalization": [8, 9]}).items():
            for i, at in enumerate(places):
                file[f"layers/{name}/vars/{i}"] = weights[at]
    config = {"config": {"layers": [{"class_name": name, "config": {"name": "any"}} for name in classes]}}
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as whole:
        whole.writestr("config.json", json.dumps(config))
        whole.writestr("model.weights.h5", place.getvalue())
    read = bp.files.to_keras(bp.files.from_keras(built(*keras_layers()), tmp_path / "m.keras"))
    for ours, given in zip(read, weights, strict=True):
        np.testing.assert_array_equal(ours, given)


def test_a_file_that_is_none_of_kerass(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed")
    (tmp_path / "text.keras").write_text("no archive")
    with pytest.raises(FileFormatError, match="no model that Keras's save has written"):
        bp.files.from_keras(built(bp.Dense(2)), tmp_path / "text.keras")
    with pytest.raises(FileNotFoundError, match=r"missing\.keras can't be read"):
        bp.files.from_keras(built(bp.Dense(2)), tmp_path / "missing.keras")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([np.ones((6, 3))], r"needs kernel \(6, 2\); array 0 of weights, taken in order, has the shape \(6, 3\)"),
        ([np.ones((6, 2))], r"the network has 2 arrays, weights has 1: the network, Dense.*, needs bias as well"),
        ([np.ones((6, 2)), np.ones(2), np.ones(2)], r"2 arrays, weights has 3: no layer has array 2 of weights"),
        (7, r"weights is of type int; expected the list that model.get_weights\(\) gives"),
    ],
)
def test_arrays_that_do_not_fit(given, text):
    with pytest.raises((ShapeError, ArgumentError), match=text):
        bp.files.from_keras(bp.Trainer(bp.Dense(2), "mse").build(X), given)


# ---- scikit-learn ---------------------------------------------------------------------------------------------------

TARGETS = {
    "two": X[:, 0] > 0.0,
    "text": np.array(["ant", "bee", "cat"])[X[:, :3].argmax(axis=1)],
    "several labels": (X[:, :3] > 0.0).astype(int),
    "a number": X[:, 0],
    "numbers": X[:, :2],
    "counts": np.floor(np.abs(X[:, 1])),
}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer:UserWarning", "ignore:lbfgs failed:UserWarning")
@pytest.mark.parametrize(("target", "activation", "solver"), [
    ("two", "relu", "adam"), ("text", "logistic", "sgd"), ("several labels", "tanh", "adam"),
    ("a number", "relu", "lbfgs"), ("numbers", "identity", "adam"), ("counts", "tanh", "adam"),
])  # fmt: skip
def test_scikit_learns_perceptron_becomes_a_model_that_says_the_same(target, activation, solver, tmp_path):
    neural_network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    y, options = TARGETS[target], {"hidden_layer_sizes": (5, 4), "activation": activation, "solver": solver}
    kind = neural_network.MLPRegressor if y.dtype == float else neural_network.MLPClassifier
    if target == "counts":
        options["loss"] = "poisson"
    mlp = kind(**options, max_iter=5, random_state=0).fit(X, y)
    bp.files.from_sklearn(mlp).save(tmp_path / "model.safetensors")
    model = bp.load(tmp_path / "model.safetensors")
    found, expected = model.predict(X), mlp.predict(X)
    assert found.shape == expected.shape
    if y.dtype == float:
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    else:
        assert (found == expected).all()
        np.testing.assert_allclose(model.predict_proba(X), mlp.predict_proba(X), rtol=1e-12, atol=1e-15)
        assert (model.classes_ == mlp.classes_).all()
    model.trainer.step(model.inputs(X), model.target.encode(y, model.trainer.loss, like=model.trainer.theta))


def test_what_is_no_fitted_perceptron():
    neural_network = pytest.importorskip("sklearn.neural_network", reason="scikit-learn is not installed")
    with pytest.raises(ArgumentError, match="mlp is of type int; expected a fitted MLPClassifier or MLPRegressor"):
        bp.files.from_sklearn(3)
    with pytest.raises(ArgumentError, match="this MLPClassifier is not fitted yet"):
        bp.files.from_sklearn(neural_network.MLPClassifier())
