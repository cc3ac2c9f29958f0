"""Models as ONNX: what ONNX's own evaluator and onnxruntime make of the file is what the model predicts."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from support.networks import drawn
from support.onnx import BATCHES, apart, assert_same, run_by_all

import bpnet as bp
from bpnet.backends.base import Backend
from bpnet.errors import ExportError
from bpnet.export.models import exported
from bpnet.layer import Layer
from bpnet.registry import examples

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12)).astype("float32")


def trained(network: Layer, x: Any = X, loss: Any = "mse", steps: int = 1, **options: Any) -> bp.Trainer:
    """A trainer of float32 after a step, so that running means and averages are none that a network starts with."""
    trainer = bp.Trainer(network, loss, "adam", **options).build(x)
    rows = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
    y = RNG.normal(size=(rows, *trainer.layout.out_shape)).astype("float32")
    y = np.zeros(rows, int) if loss == "cross_entropy" else y
    for _ in range(steps):
        trainer.step(x, y)
    return trainer


# ---- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_random_network_gives_in_onnx_what_it_predicts(seed):
    problem = drawn(seed)[0]
    for dtype, allowed in (("float32", 1e-5), ("float64", 1e-12))[: 2 if seed == 0 else 1]:
        assert apart(problem, dtype) <= allowed


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


# ---- functions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function(bp.Layer):
    """Any function of (xp, x), one row at a time, as a user may write it in a layer; see `CALLS`."""

    name: str

    def out_shape(self, in_shape):
        return (12,)

    def init(self, rng, in_shape):
        return {"w": rng.full(in_shape, 0.5)}

    def forward(self, run, p, x):
        y = CALLS[self.name](run.xp, x * p["w"], x)
        y = run.xp.astype(y, x.dtype)
        return y if tuple(y.shape) == tuple(x.shape) else run.xp.zeros_like(x) + y, None

    def backward(self, run, p, cache, dy, need_dx=True):
        return dy, {"w": run.xp.zeros_like(p["w"])}


def _pairs(names: str) -> dict[str, Any]:
    return {name: lambda xp, x, y, name=name: getattr(xp, name)(x, y) for name in names.split()}


def _unary(names: str, of: Any = lambda xp, x: x) -> dict[str, Any]:
    return {name: lambda xp, x, y, name=name: getattr(xp, name)(of(xp, x)) for name in names.split()}


def _within(xp: Any, x: Any) -> Any:
    return x / (1.0 + xp.abs(x))


CALLS: dict[str, Any] = {
    **_unary(
        "abs asinh atan ceil cos cosh exp expm1 floor isfinite isinf isnan negative positive round sign signbit sin "
        "sinh square tanh trunc reciprocal"
    ),
    **_unary("acos asin atanh log1p tan", _within),
    **_unary("log log2 log10 sqrt", lambda xp, x: xp.abs(x)),
    **_unary("acosh", lambda xp, x: 1.0 + xp.abs(x)),
    **_unary("logical_not bitwise_invert", lambda xp, x: x > 0.0),
    **_pairs(
        "add subtract multiply divide maximum minimum equal not_equal less less_equal greater greater_equal logaddexp "
        "hypot copysign floor_divide remainder logical_and logical_or logical_xor"
    ),
    "pow": lambda xp, x, y: xp.pow(xp.abs(x), y),
    "whole numbers": lambda xp, x, y: xp.astype(x * 9.0, xp.int64) // 4 + xp.astype(y * 9.0, xp.int32) % 5,
    "bits": lambda xp, x, y: (xp.astype(x * 9.0, xp.int64) & 6) | (xp.astype(y * 9.0, xp.int64) ^ 5),
    "truths": lambda xp, x, y: ((x > 0.1) & (y < 0.5)) | ~(x > 1.0) ^ (y > 2.0),
    "operators": lambda xp, x, y: -x + 2.0 * y - x / 3.0 + abs(y) ** 2.0 + (+x),
    "clip": lambda xp, x, y: xp.clip(x, -0.2, 0.3) + xp.clip(y, max=0.5),
    "where": lambda xp, x, y: xp.where(x > 0.0, y, 0.0) + xp.where(y > 0.0, 1.0, x),
    "matmul": lambda xp, x, y: xp.matmul(x, xp.matmul(xp.matrix_transpose(xp.ones_like(y[0:1, :])), y[0:1, :] * 0.0)),
    "vecdot": lambda xp, x, y: xp.vecdot(x, y)[:, None],
    "tensordot": lambda xp, x, y: xp.tensordot(x, xp.reshape(xp.arange(144, dtype=x.dtype) / 99.0, (12, 12)), axes=1),
    "reshape": lambda xp, x, y: xp.reshape(xp.permute_dims(xp.reshape(x, (-1, 3, 4)), (0, 2, 1)), (-1, 12)),
    "moveaxis": lambda xp, x, y: xp.reshape(xp.moveaxis(xp.reshape(x, (-1, 3, 4)), 1, 2), x.shape),
    "broadcast": lambda xp, x, y: xp.broadcast_to(x[:, :1], x.shape) + xp.broadcast_arrays(x[:, 1:2], y)[0],
    "squeeze": lambda xp, x, y: xp.squeeze(xp.expand_dims(xp.expand_dims(x, axis=1), axis=-1), axis=(1, -1)),
    "concat": lambda xp, x, y: xp.concat([x[:, 6:], y[:, :6]], axis=1),
    "stack": lambda xp, x, y: xp.sum(xp.stack([x, y], axis=1) * 2.0, axis=1),
    "unstack": lambda xp, x, y: xp.stack(list(xp.unstack(x, axis=1))[::-1], axis=1),
    "flip": lambda xp, x, y: xp.flip(x, axis=1) + y[:, ::-1],
    "roll": lambda xp, x, y: xp.roll(x, 5, axis=1) + xp.roll(y, -1, axis=1),
    "repeat": lambda xp, x, y: xp.repeat(x[:, :4], 3, axis=1),
    "tile": lambda xp, x, y: xp.tile(x[:, :4], (1, 3)),
    "tril": lambda xp, x, y: xp.reshape(xp.tril(xp.reshape(x, (-1, 3, 4))) + xp.triu(xp.reshape(y, (-1, 3, 4)), k=1),
                                        (-1, 12)),
    "index": lambda xp, x, y: x[:, 3][:, None] + y[..., -1:] + xp.reshape(x, (-1, 3, 4))[:, None, 1:, 2][:, 0, -2:-1],
    "numbers of columns": lambda xp, x, y: x[:, xp.asarray([3, 1] * 6)],
    "take": lambda xp, x, y: xp.take(x, xp.asarray([11, 0, -1] * 4), axis=1),
    "take_along_axis": lambda xp, x, y: xp.take_along_axis(x, xp.argsort(y, axis=1), axis=1),
    "searchsorted": lambda xp, x, y: xp.searchsorted(xp.asarray([-1.0, 0.0, 1.0], dtype=x.dtype), x)
    + xp.searchsorted(xp.asarray([-1.0, 0.0, 1.0], dtype=x.dtype), y, side="right"),
    **{name: lambda xp, x, y, name=name: getattr(xp, name)(xp.reshape(x, (-1, 3, 4)), axis=(1, 2))[:, None]
       for name in "sum mean max min var std".split()},  # noqa: SIM905
    "prod": lambda xp, x, y: xp.prod(x, axis=-1, keepdims=True),
    "corrected": lambda xp, x, y: xp.std(x, axis=1, correction=1.0, keepdims=True),
    "all": lambda xp, x, y: xp.all(x < 1.0, axis=1, keepdims=True) | xp.any(y > 1.0, axis=1, keepdims=True),
    "count_nonzero": lambda xp, x, y: xp.count_nonzero(xp.trunc(x), axis=1, keepdims=True),
    "argmax": lambda xp, x, y: xp.argmax(x, axis=1, keepdims=True) - xp.argmin(y, axis=-1)[:, None],
    "sort": lambda xp, x, y: xp.sort(x, axis=1) + xp.sort(y, axis=-1, descending=True),
    "cumulative_sum": lambda xp, x, y: xp.cumulative_sum(x, axis=1),
    "diff": lambda xp, x, y: xp.diff(xp.concat([x, y[:, :2]], axis=1), axis=1, n=2),
    "over all rows": lambda xp, x, y: x - xp.mean(x, axis=0) + xp.max(y, axis=0, keepdims=True) * xp.sum(y),
    "of so many rows": lambda xp, x, y: xp.zeros((x.shape[0], 1)) + xp.arange(x.shape[0], dtype=x.dtype)[:, None]
    + xp.full((x.shape[0] + 1, 12), 2.0)[1:, :] + xp.ones_like(x) + xp.full_like(y, 3.0),
    "to the last row": lambda xp, x, y: x[: x.shape[0] - 1 + 1, :] * y[-1:, :] + x[-1, :],
    "two axes of rows": lambda xp, x, y: xp.reshape(xp.reshape(x, (x.shape[0] * 3, 4)), (x.shape[0], 12)),
    "norm": lambda xp, x, y: xp.linalg.vector_norm(x, axis=1, keepdims=True),
    "outer": lambda xp, x, y: x + xp.sum(xp.linalg.outer(x[0, :], y[0, :]), axis=0),
    "NumPy's arrays": lambda xp, x, y: x + xp.asarray(np.arange(12.0), dtype=x.dtype) * np.float32(2.0),
}  # fmt: skip
"""Functions of the standard, of x and another array like it; what has a column for each row is made as wide as x."""


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


def test_a_layer_keeps_its_digits_where_numbers_are_small():
    """ONNX has neither expm1 nor log1p, which exp and log alone would round to nothing near 0."""
    trainer = bp.Trainer(bp.Parallel(Function("expm1"), Function("log1p")), "mse", compile=False).build(X)
    x = (X * 1e-6).astype("float32")
    for _, found in run_by_all(bp.files.to_onnx(trainer, None), {"x": x}):
        np.testing.assert_allclose(found[0], trainer.predict(x), rtol=1e-5)


@dataclass(frozen=True)
class Refused(Function):
    """What can't be said in a file."""

    def forward(self, run, p, x):
        return REFUSED[self.name][0](run, x), None


def _looks(run, x):
    return x if run.xp.any(x > 100.0) else -x


def _writes(run, x):
    x[0, 0] = 1.0
    return x


REFUSED = {
    "values": (_looks, "looks at values"),
    "masks": (lambda run, x: run.xp.broadcast_to(x[x > 0.0][0], x.shape), "a mask selects"),
    "writing": (_writes, "changed in place"),
    "random numbers": (lambda run, x: x + run.normal(x.shape, like=x), "draws random numbers"),
    "rows in a branch": (lambda run, x: x * 2.0 if x.shape[0] == 1 else x, "number of rows"),
    "rows in a number": (lambda run, x: x * (1.0 / x.shape[0]), "multiply depends on the number of rows"),
    "half of the rows": (lambda run, x: x + run.xp.sum(x[: x.shape[0] // 2, :]), "otherwise than"),
    "no counterpart": (lambda run, x: x + run.xp.linalg.pinv(x)[0, 0], r"no counterpart of linalg\.pinv"),
    "methods": (lambda run, x: x - x.mean(), "write xp.mean"),
    "other values, other shapes": (lambda run, x: x + run.xp.unique_values(x)[0], "unique_values"),
    "NumPy's functions": (lambda run, x: np.tanh(x), "Recorded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_say_is_an_error_that_names_the_layer(name):
    network = bp.Sequential(bp.Dense(12), bp.Residual(Refused(name)))
    trainer = bp.Trainer(network, "mse", compile=False).build(X)
    with pytest.raises(ExportError, match=f"layer '1.inner' .Refused. can't be exported: .*{REFUSED[name][1]}"):
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
    with pytest.raises(bp.errors.OptionError, match="gives none"):
        bp.files.to_onnx(trained(bp.Dense(3)), None, probabilities=True)


def properties(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_a_file_says_what_it_is_and_where_each_node_comes_from(tmp_path):
    trainer = trained(bp.Sequential(bp.Dense(4, "relu"), bp.Residual(bp.Dense(4, "silu"))))
    trainer.metadata = {"data": "mine"}
    trainer.save(tmp_path / "model.safetensors")
    bp.files.to_onnx(tmp_path / "model.safetensors", tmp_path / "model.onnx", metadata={"license": {"id": "MIT"}})
    model = onnx.load(tmp_path / "model.onnx")
    assert (model.producer_name, model.producer_version) == ("bpnet", bp.__version__)
    assert properties(model) == {"loss": "MeanSquaredError()", "data": "mine", "license": '{"id": "MIT"}'}
    assert model.doc_string == repr(trainer.network)
    nodes = [(node.op_type, node.name) for node in model.graph.node]
    assert nodes == [
        ("Gemm", "0/Gemm"), ("Relu", "0/Relu"), ("Gemm", "1.inner/Gemm"), ("Sigmoid", "1.inner/Sigmoid"),
        ("Mul", "1.inner/Mul"), ("Add", "1/Add"),
    ]  # fmt: skip
    assert model.graph.node[2].doc_string == repr(bp.Dense(4, "silu"))
    assert {t.name for t in model.graph.initializer} == {"0.weight", "0.bias", "1.inner.weight", "1.inner.bias"}
    for info in (*model.graph.input, *model.graph.output):
        assert info.type.tensor_type.shape.dim[0].dim_param == "rows"


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


def test_a_program_says_what_it_computes():
    """For who writes another target, or wants to see what a layer does."""
    trainer = bp.Trainer(bp.Sequential(bp.Dense(2, "relu"), bp.Flatten()), "mse").build(X)
    program = exported(trainer).program()
    assert str(program).splitlines() == [
        "x: float32[rows, 12]", "0.weight: float32[12, 2]", "0.bias: float32[2]", "0.matmul = matmul(x, 0.weight)",
        "0.add = add(0.matmul, 0.bias)", "0.maximum = maximum(0.add, 0.0)", "output: 0.maximum",
    ]  # fmt: skip
    np.testing.assert_array_equal(program(X[:5])["output"], trainer.predict(X[:5]))
    assert isinstance(trainer.backend, Backend)
