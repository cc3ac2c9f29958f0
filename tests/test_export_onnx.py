"""Models as ONNX: what ONNX's own evaluator and onnxruntime make of the file is what the model predicts."""

import json
import sys
from typing import Any

import numpy as np
import pytest
from support.calls import CALLS, UNUSUAL, Function, Refused
from support.networks import drawn
from support.onnx import BATCHES, assert_same, largest_distance, run_by_all

import bpnet as bp
from bpnet.errors import ExportError
from bpnet.export.models import exported
from bpnet.layer import Layer
from bpnet.registry import examples

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from bpnet.export.onnx.graph import Graph  # noqa: E402 - which needs onnx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")


def trained(network: Layer, x: Any = X, loss: Any = "mse") -> bp.Trainer:
    """A trainer of float32 after a step, so that running means and averages are none that a network starts with."""
    trainer = bp.Trainer(network, loss, "adam").build(x)
    rows = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
    y = RNG.normal(size=(rows, *trainer.layout.out_shape)).astype("float32")
    y = np.zeros(rows, int) if loss == "cross_entropy" else y
    trainer.step(x, y)
    return trainer


# ---- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_random_network_gives_in_onnx_what_it_predicts(seed):
    problem = drawn(seed)[0]
    for dtype, allowed in (("float32", 1e-5), ("float64", 1e-12))[: 2 if seed == 0 else 1]:
        assert largest_distance(problem, dtype) <= allowed


LEFT_OUT: dict[str, str] = {}
"""Layers of the catalogue that can't be exported, and why.  There are none: all compute with functions of the standard
while they predict, and what draws random numbers does so in training alone."""


def test_every_layer_and_activation_of_the_catalogue_is_exported():
    found = {name: layer for name, layer in examples(Layer).items() if name not in LEFT_OUT}
    of_numbers = {name: layer for name, layer in found.items() if layer.takes is None}
    network = bp.Parallel(*(bp.Sequential(layer, bp.Flatten()) for layer in of_numbers.values()))
    assert_same(trained(network), X)
    codes = RNG.integers(0, 5, (64, 12))
    inputs = {  # what those take that take codes, or several arrays
        "CategoricalInput": codes,
        "Embedding": codes,
        "Inputs": {"0": X, "1": X},
        "TabularInput": {"numbers": X, "categories": codes},
    }
    assert inputs.keys() == found.keys() - of_numbers.keys()
    for name, x in inputs.items():
        network = bp.Sequential(found[name], bp.Flatten(), bp.Dense(2))
        given = tuple(x.values()) if name == "Inputs" else x
        trainer = bp.Trainer(network, "mse").build(given)
        assert_same(trainer, given)


def test_missing_numbers_are_what_they_are_to_the_network():
    x = np.where(RNG.random(X.shape) < 0.3, np.float32(np.nan), X)
    layers = bp.NumericInput.fit(x), bp.NumericInput.fit(x, "quantile", clip=3.0, missing=(1, 5))
    trainer = bp.Trainer(bp.Sequential(bp.Parallel(*layers), bp.Dense(3)), "mse").build(x)
    assert_same(trainer, x)


def test_what_predicts_is_exported_and_not_what_trains():
    """Running statistics, an average of parameters, no dropout."""
    network = bp.Sequential(bp.Dense(8, "relu"), bp.BatchNorm(), bp.Dropout(0.5), bp.GaussianNoise(1.0), bp.Dense(2))
    trainer = bp.Trainer(network, "mse", bp.ExponentialAverage(bp.SGD(0.1), 0.9)).build(X)
    for _ in range(3):
        trainer.step(X, X[:, :2])
    model = assert_same(trainer, X)
    assert not {"Dropout", "RandomNormal", "RandomUniform"} & {node.op_type for node in model.graph.node}


# ---- functions -------------------------------------------------------------------------------------------------------


def test_functions_of_the_standard_are_what_they_are_in_numpy():
    """Each in a branch, so that one file has them all."""
    names = sorted(CALLS)
    network = bp.Parallel(*map(Function, names))
    x = np.round(X, 3)
    trainer = bp.Trainer(network, "mse", compile=False).build(x)
    model = bp.files.to_onnx(trainer, None)
    for rows in BATCHES:
        want = trainer.predict(x[:rows])
        for who, found in run_by_all(model, {"x": x[:rows]}):
            each = zip(names, np.split(found[0], len(names), axis=1), np.split(want, len(names), axis=1), strict=True)
            wrong = [n for n, a, b in each if not np.allclose(a, b, rtol=1e-5, atol=1e-5)]
            assert not wrong, f"{who}, {rows} rows"


def test_a_gate_that_is_shut_lets_nothing_through():
    """As a node Sigmoid of onnxruntime would: 1.5e-8 of each number."""
    x = -100.0 * np.abs(X)
    trainer = bp.Trainer(bp.Sequential("silu", bp.Scale(1e6)), "mse").build(x)
    for _, (found,) in run_by_all(bp.files.to_onnx(trainer, None), {"x": x}):
        np.testing.assert_allclose(found, trainer.predict(x), rtol=1e-5, atol=1e-6)


def test_a_layer_keeps_its_digits_where_numbers_are_small():
    """ONNX has neither expm1 nor log1p, which exp and log alone would round to nothing near 0."""
    trainer = bp.Trainer(bp.Parallel(Function("expm1"), Function("log1p")), "mse", compile=False).build(X)
    x = (X * 1e-6).astype("float32")
    for _, found in run_by_all(bp.files.to_onnx(trainer, None), {"x": x}):
        np.testing.assert_allclose(found[0], trainer.predict(x), rtol=1e-5)


def test_what_onnx_has_no_counterpart_of_is_an_error_that_names_the_layer():
    trainer = bp.Trainer(bp.Sequential(bp.Dense(12), Refused("pinv")), "mse", compile=False).build(X)
    assert "linalg.pinv" in str(exported(trainer).program())
    with pytest.raises(ExportError, match=f"layer '1' .Refused. can't be exported: .*{UNUSUAL['pinv'][1]}"):
        bp.files.to_onnx(trainer, None)


# ---- what is predicted ----------------------------------------------------------------------------------------------


def test_a_trainer_gives_probabilities_and_labels_where_they_are_asked_for():
    trainer = trained(bp.Dense(3), loss="cross_entropy")
    trainer.classes = ["one", "two", "three"]
    model = bp.files.to_onnx(trainer, None, probabilities=True)
    logits = trainer.predict(X)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for _, (labels, found) in run_by_all(model, {"x": X}):
        np.testing.assert_allclose(found, p, atol=1e-6)
        assert labels.tolist() == [trainer.classes[i] for i in logits.argmax(axis=1)]
    assert [node.op_type for node in model.graph.node].count("Softmax") == 1
    assert json.loads(properties(model)["classes"]) == trainer.classes
    yes, names = (
        bp.Trainer(bp.Dense(1), "binary_cross_entropy_with_logits").build(X),
        trained(bp.Dense(3), X, "cross_entropy"),
    )
    for _, (labels, found) in run_by_all(bp.files.to_onnx(yes, None, probabilities=True), {"x": X}):
        assert labels.tolist() == [int(p > 0.5) for p in found[:, 0]]
    for classes, error in ((["a", "b"], bp.errors.ArgumentError), (["a", "b", "\ud800"], ExportError)):
        names.classes = classes
        with pytest.raises(error):
            bp.files.to_onnx(names, None, probabilities=True)
    with pytest.raises(bp.errors.OptionError, match="gives none"):
        bp.files.to_onnx(trained(bp.Dense(3)), None, probabilities=True)


def properties(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_a_file_says_what_it_is_and_where_each_node_comes_from(tmp_path):
    trainer = trained(bp.Sequential(bp.Dense(4, "relu"), bp.Residual(bp.Dense(4, "softmax")), bp.Dense(1, "sigmoid")))
    trainer.metadata = {"data": "mine"}
    trainer.save(tmp_path / "model.safetensors")
    bp.files.to_onnx(tmp_path / "model.safetensors", tmp_path / "model.onnx", metadata={"license": {"id": "MIT"}})
    model = onnx.load(tmp_path / "model.onnx")
    assert (model.producer_name, model.producer_version) == ("bpnet", bp.__version__)
    assert properties(model) == {"loss": "MeanSquaredError()", "data": "mine", "license": '{"id": "MIT"}'}
    assert model.doc_string == repr(trainer.network)
    nodes = [(node.op_type, node.name) for node in model.graph.node]
    assert nodes == [
        ("Gemm", "0/Gemm"), ("Relu", "0/Relu"), ("Gemm", "1.inner/Gemm"), ("Softmax", "1.inner/Softmax"),
        ("Add", "1/Add"), ("Gemm", "2/Gemm"), ("Sigmoid", "2/Sigmoid"),
    ]  # fmt: skip
    assert model.graph.node[2].doc_string == repr(bp.Dense(4, "softmax"))
    assert {t.name for t in model.graph.initializer} == set(exported(trainer).parameters)
    for info in (*model.graph.input, *model.graph.output):
        assert info.type.tensor_type.shape.dim[0].dim_param == "rows"


def test_what_changes_nothing_is_a_model_too():
    """The outputs are the input, and a parameter for every row."""
    for network in (bp.Sequential(bp.Flatten(), bp.Parallel("identity", bp.Scale(2.0), join="add")), Function("take")):
        assert_same(bp.Trainer(network, "mse", compile=False).build(X), X)
    graph = Graph()
    x = graph.input("x", "float32", (2,))
    made = graph.node("Neg", x)
    assert [graph.output(name, made, (2,)) for name in ("first", "second", "x")] == ["first", "second", "x_2"]
    assert [(node.op_type, *node.input, *node.output) for node in graph.nodes] == [
        ("Neg", "x", "first"), ("Identity", "first", "second"), ("Identity", "first", "x_2"),
    ]  # fmt: skip


@pytest.mark.parametrize("opset", [18, 23])
def test_every_version_of_operators_that_can_be_asked_for_gives_the_same(opset):
    trainer = trained(bp.Sequential(bp.Dense(4, "gelu"), bp.LayerNorm(), bp.Dense(2)))
    model = assert_same(trainer, X, opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]


def test_the_type_of_numbers_can_be_another():
    trainer = bp.Trainer(bp.Sequential(bp.Dense(4, "gelu"), bp.Dense(2)), "mse").build(X.astype("float64"))
    model = bp.files.to_onnx(trainer, None, dtype="float32")
    for _, (found,) in run_by_all(model, {"x": X}):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, trainer.predict(X.astype("float64")), atol=1e-5)


def test_what_is_wrong_with_arguments_is_said(tmp_path, monkeypatch):
    trainer = trained(bp.Dense(2))
    for options, error in (
        ({"opset": 17}, bp.errors.OptionError),
        ({"opset": 99}, bp.errors.OptionError),
        ({"dtype": "float16"}, bp.errors.OptionError),
        ({"metadata": {"what": {1, 2}}}, bp.errors.ArgumentError),
    ):
        with pytest.raises(error):
            bp.files.to_onnx(trainer, tmp_path / "model.onnx", **options)
    with pytest.raises(bp.errors.ArgumentError, match="expected a Trainer"):
        bp.files.to_onnx(bp.Dense(2), None)
    with pytest.raises(bp.errors.NotBuiltError):
        bp.files.to_onnx(bp.Trainer(bp.Dense(2), "mse"), None)
    wrong = trained(bp.Dense(2))
    wrong.theta[3] = np.nan
    with pytest.raises(bp.errors.DivergedError, match="weight has NaN"):
        bp.files.to_onnx(wrong, tmp_path / "model.onnx")
    with monkeypatch.context() as patched:
        patched.setattr("bpnet.export.onnx.model.LARGEST", 100)
        with pytest.raises(ExportError, match="104 bytes"):
            bp.files.to_onnx(trainer, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.delitem(sys.modules, "bpnet.export.onnx.model")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(bp.errors.MissingExtraError, match=r"bpnet-xp\[onnx\]"):
        bp.files.to_onnx(trainer, None)


# ---- tables ---------------------------------------------------------------------------------------------------------


def table_of(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    age = np.where(rng.random(rows) < 0.2, np.nan, rng.normal(50.0, 10.0, rows))
    city = rng.choice(np.array(["a", "b", "c", ""], dtype=object), rows)
    return {
        "age": age,
        "serial": 1e9 + rng.normal(size=rows),
        "city": city,
        "flag": rng.random(rows) < 0.5,
        "code": rng.integers(0, 5, rows),
        "size": rng.choice([0.5, 1.5, np.nan], rows),
        "answer": np.where(np.nan_to_num(age) + 20.0 * (city == "a") > 50.0, "yes", "no"),
    }


def test_a_table_of_all_kinds_of_columns():
    """Text that is unknown, text that is missing, other numbers than those known, NaN."""
    model = bp.train_table(
        table_of(300), "answer", epochs=1, hidden=(8,), types={"code": "category", "size": "category"}, progress=False
    )
    file = bp.files.to_onnx(model, None)
    kinds = {info.name: info.type.tensor_type.elem_type for info in file.graph.input}
    proto = onnx.TensorProto
    assert kinds == {
        "age": proto.FLOAT, "serial": proto.DOUBLE, "city": proto.STRING, "flag": proto.FLOAT, "code": proto.INT64,
        "size": proto.DOUBLE,
    }  # fmt: skip
    strange = table_of(50)
    strange["city"][:9], strange["code"][5:20], strange["size"][8:30] = "elsewhere", 77, 9.25
    types = {proto.FLOAT: "float32", proto.DOUBLE: "float64", proto.STRING: object, proto.INT64: "int64"}
    for table in (table_of(1), table_of(7), strange):
        given = {name: table[name].astype(types[kind])[:, None] for name, kind in kinds.items()}
        for _, (labels, probabilities) in run_by_all(file, given):
            assert labels.tolist() == list(model.predict(table))
            np.testing.assert_allclose(probabilities, model.predict_proba(table), atol=1e-5)
    given["code"][0] = -(2**63)
    missing = {name: values.astype(float) if name == "code" else values for name, values in table.items()}
    missing["code"][0] = np.nan
    for _, (_, probabilities) in run_by_all(file, given):
        np.testing.assert_allclose(probabilities, model.predict_proba(missing), atol=1e-5)


def test_a_table_of_numbers_is_one_matrix():
    table = {name: column for name, column in table_of(300).items() if name in ("age", "serial", "flag")}
    model = bp.train_table({**table, "y": np.nan_to_num(table["age"])}, "y", epochs=1, hidden=(4,), progress=False)
    file = bp.files.to_onnx(model, None)
    assert json.loads(properties(file)["columns"]) == list(table)
    for _, (found,) in run_by_all(file, {"X": np.column_stack(list(table.values()))}):
        np.testing.assert_allclose(found, model.predict(table), rtol=1e-5)


def test_dates_are_microseconds():
    """Of years before 1970 too, leap days, one that is missing."""
    rng = np.random.default_rng(0)
    dates = np.datetime64("2000-02-29T12:34:56", "us") + rng.integers(-(2**52), 2**52, 200)
    model = bp.train_table({"day": dates, "y": np.arange(200.0)}, "y", epochs=1, hidden=(4,), progress=False)
    assert len(model.schema.features[0].parts) == 7
    file = bp.files.to_onnx(model, None)
    assert file.graph.input[0].doc_string.startswith("date, in microseconds since 1970 as clocks show it")
    tried = np.array(["1970-01-01", "1899-12-31T23:59:59.999999", "2024-02-29", "2100-03-01", "1600-02-29", "NaT"])
    tried = np.append(tried.astype("datetime64[us]"), dates)
    want = model.schema.encode({"day": tried})
    encoder = onnx.utils.Extractor(file).extract_model(["day"], [layer_input(file)])
    for _, (found,) in run_by_all(encoder, {"day": tried.astype("int64")[:, None]}):
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    for _, (found,) in run_by_all(file, {"day": tried.astype("int64")[:, None]}):
        np.testing.assert_allclose(found, model.predict({"day": tried}), rtol=1e-5)


def layer_input(file):
    """What the first layer is given, as parts of dates are side by side."""
    return next(node.input[0] for node in file.graph.node if node.name.startswith("0/"))


# ---- estimators -----------------------------------------------------------------------------------------------------

LABELS = {
    "whole numbers": np.arange(64) % 3,
    "text": np.array(["a", "b", "c"])[np.arange(64) % 3],
    "truth": np.arange(64) % 2 == 0,
    "several": np.column_stack([np.arange(64) % 2, np.arange(64) % 3 > 0]).astype(int),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_classifier_gives_labels_and_probabilities(name):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    x = X.astype("float64") if name == "text" else X
    made = bp.MLPClassifier((8,), random_state=0, ensemble=3 if name == "truth" else None)
    made.partial_fit(x, LABELS[name], classes=np.unique(LABELS[name]))
    file = bp.files.to_onnx(made, None)
    for rows in BATCHES:
        for _, (labels, probabilities) in run_by_all(file, {"X": x[:rows]}):
            assert labels.tolist() == made.predict(x[:rows]).tolist()
            np.testing.assert_allclose(probabilities, made.predict_proba(x[:rows]), atol=1e-5)


@pytest.mark.parametrize("loss", ["squared_error", "quantile", "gaussian_nll"])
def test_a_regressor_gives_predictions_and_what_else_it_knows(loss):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    y = 5.0 + X[:, :2] if loss == "squared_error" else X[:, 0]
    made = bp.MLPRegressor(loss, hidden_layer_sizes=(8,), random_state=0).partial_fit(X, y)
    file = bp.files.to_onnx(made, None)
    want = {"prediction": made.predict(X)}
    want |= {"quantiles": made.predict_quantiles(X)} if loss == "quantile" else {}
    want |= {"deviation": made.predict(X, return_std=True)[1]} if loss == "gaussian_nll" else {}
    assert [info.name for info in file.graph.output] == list(want)
    for _, found in run_by_all(file, {"X": X}):
        for a, b in zip(found, want.values(), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=1e-5)
