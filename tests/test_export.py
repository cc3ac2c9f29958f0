"""Trained networks as a file for NumPy and as a module of PyTorch, and `bpnet export`."""

import ast
import datetime
import functools
import importlib.util
import io
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import pytest
from support.calls import CALLS, Function
from support.exports import batch, gradients, predicted, source
from support.networks import Draw

import bpnet as bp
from bpnet.errors import ArgumentError, ExportError, NotBuiltError
from bpnet.export.numpy_table import GAPS
from bpnet.layer import Layer
from bpnet.registry import examples

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4)).astype("float32")


def built(*layers, x=X, loss="mse", **options):
    return bp.Trainer(bp.Sequential(*layers), loss, **options).build(x)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def drawn(seed, single):
    """A random network with its rows."""
    problem = Draw(seed, 0).problem()
    x = batch(problem.x, single)
    return bp.Trainer(problem.network, problem.loss).build(x), x


# ---- NumPy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_file_for_numpy_computes_what_the_network_does(seed, tmp_path):
    trainer, x = drawn(seed, single=seed % 2 == 0)
    found, expected = source(trainer, tmp_path).predict(x), trainer.predict(x)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_every_layer_has_a_file_and_a_module(tmp_path):
    """All of the catalogue's that take rows of 12 numbers side by side, so that one network has them."""
    x, layers = RNG.normal(size=(5, 12)), [layer for layer in examples(Layer).values() if layer.takes is None]
    assert len(layers) > 50
    network = bp.Sequential(bp.Parallel(*[bp.Sequential(layer, bp.Flatten()) for layer in layers]), bp.Dense(2))
    trainer = bp.Trainer(network, "mse").build(x)
    np.testing.assert_allclose(source(trainer, tmp_path).predict(x), trainer.predict(x), rtol=1e-12)
    if importlib.util.find_spec("torch") is not None:
        np.testing.assert_allclose(predicted(bp.files.to_torch_module(trainer), x), trainer.predict(x), rtol=1e-9)


LEFT_OUT = {
    "numpy": {"sort": "descending"},
    "torch": {"flip": "step must be", "take": "out of", "count_nonzero": "(keep)?dim"},
}
"""Of the functions of the standard that a layer of one's own may call: what can't be said, and the error."""


def test_functions_of_the_standard_are_what_they_are_here(tmp_path):
    x, makers = np.round(RNG.normal(size=(7, 12)), 3), {"numpy": lambda trainer: source(trainer, tmp_path).predict}
    if importlib.util.find_spec("torch") is not None:
        makers["torch"] = lambda trainer: functools.partial(predicted, bp.files.to_torch_module(trainer))
    for where, make in makers.items():
        names = sorted(CALLS.keys() - LEFT_OUT[where].keys())
        trainer = bp.Trainer(bp.Parallel(*map(Function, names)), "mse", compile=False).build(x)
        found = make(trainer)
        for rows in (1, 7):
            pairs = zip(
                names,
                np.split(found(x[:rows]), len(names), 1),
                np.split(trainer.predict(x[:rows]), len(names), 1),
                strict=True,
            )
            assert [name for name, a, b in pairs if not np.allclose(a, b, rtol=1e-9, atol=1e-9)] == []
        for name, said in LEFT_OUT[where].items():
            with pytest.raises(ExportError, match=said):
                make(bp.Trainer(Function(name), "mse", compile=False).build(x))


def test_a_person_can_read_it(tmp_path):
    trainer = built(
        bp.Dense(8, "relu"), bp.Residual(bp.Dense(8, "gelu")), bp.LayerNorm(), bp.Dense(3), loss="cross_entropy"
    )
    bp.files.to_numpy_source(trainer, tmp_path / "model.py")
    text = (tmp_path / "model.py").read_text()
    begin = text.index("@np")
    assert (
        text[begin : text.index("def numbers")].rstrip()
        == '''\
@np.errstate(all="ignore")
def predict(x):
    """The outputs of the network, (rows, 3), for x of (rows, 4)."""
    x = numbers(x, (4,), np.float32)

    # 0: Dense(units=8, activation='relu', bias=True)
    dense_0 = np.maximum(x @ W["0.weight"] + W["0.bias"], 0.0)

    # 1.inner: Dense(units=8, activation='gelu', bias=True)
    z = dense_0 @ W["1.inner.weight"] + W["1.inner.bias"]
    dense_1_inner = 0.5 * z * (1.0 + erf(z * 0.7071067811865476))

    # 1: Residual
    residual_1 = dense_0 + dense_1_inner

    # 2: LayerNorm(epsilon=1e-05)
    difference = residual_1 - residual_1.mean(axis=-1, keepdims=True)
    ratio = 1.0 / np.sqrt((difference * difference).mean(axis=-1, keepdims=True) + 1e-05)
    layer_norm_2 = difference * ratio * W["2.scale"] + W["2.shift"]

    return layer_norm_2 @ W["3.weight"] + W["3.bias"]


@np.errstate(all="ignore")
def predict_proba(x):
    """Probabilities, (rows, 3)."""
    z = predict(x)
    return softmax(z, axis=-1)'''
    )
    probabilities = source(trainer, tmp_path).predict_proba(X)
    np.testing.assert_allclose(
        probabilities, bp.CrossEntropy().prediction(trainer.backend, trainer.predict(X)), rtol=1e-6
    )


def test_it_passes_ruff(tmp_path):
    pytest.importorskip("ruff", reason="ruff is not installed")
    bp.files.to_numpy_source(built(bp.Dense(70, "gelu"), bp.BatchNorm(), bp.Dense(2)), tmp_path / "model.py")
    rules = ["--isolated", "--select", "E,F,W,I,B,UP,SIM", "--line-length", "120"]
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *rules, tmp_path / "model.py"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


def test_the_file_is_a_program_that_needs_numpy_alone(tmp_path):
    trainer = built(bp.Dense(3, "tanh"), bp.Dense(2))
    bp.files.to_numpy_source(trainer, tmp_path / "model.py")
    rows = "\n".join(",".join(map(str, row)) for row in X)
    blocked = "import runpy, sys; sys.modules['bpnet'] = None; runpy.run_path('model.py', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", blocked], input=rows, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = np.array([line.split(",") for line in run.stdout.splitlines()], float)
    np.testing.assert_allclose(found, trainer.predict(X), rtol=1e-6)


def test_weights_are_literals_and_none_is_changed_unseen(tmp_path):
    trainer = built(bp.Dense(20, "relu"), bp.Dense(3))
    bp.files.to_numpy_source(trainer, tmp_path / "model.py")
    text = (tmp_path / "model.py").read_text()
    (weights,) = [node.value for node in ast.parse(text).body if ast.unparse(node).startswith("W = ")]
    for key, call in zip(weights.keys, weights.values, strict=True):
        assert ast.unparse(call.func) in ("array", "np.array", "np.zeros", "np.ones")
        for part in (key, *call.args):
            ast.literal_eval(part)
    place = text.rindex("]", 0, text.index('], "f4"')) - 2  # a digit of a number
    for changed in (
        text[:place] + "7" + text[place + 1 :],
        text.replace("AA", "AB", 1),
        text.replace("np.zeros(20", "np.ones(20"),
    ):
        if changed != text:
            with pytest.raises(ValueError, match="the weights are not those that were written here"):
                exec(compile(changed, "model.py", "exec"), {"__name__": "model"})


def test_names_from_a_strangers_file_run_no_code(tmp_path):
    name = '"]; globals()["evil"] = 1  # \\ """\n'
    network = bp.Sequential(bp.Inputs((name, bp.Dense(3)), ("b", bp.Shared(bp.Dense(2), name))), bp.Dense(2))
    x = {name: X, "b": X}
    trainer = bp.Trainer(network, "mse").build(x)
    file = source(trainer, tmp_path)
    np.testing.assert_allclose(file.predict(x), trainer.predict(x), rtol=1e-6)
    assert not hasattr(file, "evil")
    model = bp.TableModel(
        bp.Schema.of({name: [1.0, 2.0], "b": ["u", name]}), bp.Target("class", (), ("a", name)), bp.Trainer(
            bp.Sequential(bp.Inputs(numbers="identity", categories=bp.CategoricalInput((4,), (0,))), bp.Dense(2)),
            "cross_entropy",
        ).build({"numbers": np.ones((2, 1), "float32"), "categories": np.zeros((2, 1), "int32")}),
    )  # fmt: skip
    table = {name: [1.0, 3.0], "b": [name, "v"]}
    file = source(model, tmp_path)
    assert list(file.predict(table)) == list(model.predict(table))
    assert not hasattr(file, "evil")
    if importlib.util.find_spec("torch") is not None:
        module = bp.files.to_torch_module(trainer)
        np.testing.assert_allclose(predicted(module, x), trainer.predict(x), rtol=1e-5)


def test_what_is_given_to_it_is_looked_at(tmp_path):
    model = source(built(bp.Dense(2)), tmp_path)
    for wrong, text in (
        (X[:, :3], r"x has the shape \(7, 3\); expected \('rows', 4\)"),
        (np.full((2, 4), np.nan), "not finite"),
        (np.full((2, 4), 1e300), "not finite"),
    ):
        with pytest.raises(ValueError, match=text):
            model.predict(wrong)
    assert model.predict(X[:0]).shape == (0, 2)
    codes = RNG.integers(0, 9, (5, 2))
    trainer = built(bp.Embedding(9, 3), bp.Flatten(), bp.Dense(2), x=codes)
    model = source(trainer, tmp_path)
    np.testing.assert_allclose(model.predict(codes), trainer.predict(codes), rtol=1e-6)
    for wrong, text in ((codes - 9, "outside 0 ... 8"), (codes + 0.0, "holds float64 values; expected whole numbers")):
        with pytest.raises(ValueError, match=text):
            model.predict(wrong)


def test_names_that_python_would_not_have_are_of_no_harm(tmp_path):
    """In NFKC two of these are the same, one is no name, and one is half of a pair of UTF-16."""
    x = {name: X * i for i, name in enumerate(("fi", "\ufb01", "x\xb2", "class", "\ud800"))}
    branches = bp.Inputs(**{name: bp.Dense(2, "tanh") for name in x})
    trainer = bp.Trainer(bp.Sequential(branches, bp.Dense(2)), "mse").build(x)
    np.testing.assert_allclose(source(trainer, tmp_path).predict(x), trainer.predict(x), rtol=1e-6, atol=1e-6)


TABLE = {
    "age": [31.0, None, 45.5, 28.0, 61.0, 39.0] * 4,
    "city": ["Rome", "Oslo", None, "Oslo", "Bern", "Rome"] * 4,
    "rooms": [1, 2, 3, 2, 1, 4] * 4,
    "garden": [True, False, True, True, False, False] * 4,
    "price": ["12.5", "n/a", "7", "3.5", "9", "11"] * 4,
}
UNSEEN = {"age": [None, 1.0], "city": ["Paris", ""], "rooms": [9, 0], "garden": [True, None], "price": ["", "5"]}


@pytest.fixture(scope="module")
def of_tables():
    """Models of labels and of a quantity."""
    options = {"hidden": (8,), "epochs": 3, "types": {"rooms": "category"}, "progress": False, "validation": 0.0}
    y = {"label": ["a", "b", "c"] * 8, "number": [float(i % 5) for i in range(24)]}
    return {kind: bp.train_table({**TABLE, "y": values}, "y", **options) for kind, values in y.items()}


@pytest.mark.parametrize("kind", ["label", "number"])
def test_a_model_of_tables_takes_columns(kind, of_tables, tmp_path):
    model = of_tables[kind]
    file = source(model, tmp_path)
    for table in (TABLE, UNSEEN):
        found, expected = file.predict(table), model.predict(table)
        assert found.shape == expected.shape
        if kind == "number":
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        else:
            assert list(found) == list(expected)
            np.testing.assert_allclose(file.predict_proba(table), model.predict_proba(table), rtol=1e-5, atol=1e-7)
    rows = [list(row) for row in zip(*TABLE.values(), strict=True)]
    np.testing.assert_array_equal(file.predict(np.array(rows, object)), file.predict(TABLE))
    with pytest.raises(ValueError, match=r"the table lacks the columns \['city', 'rooms', 'garden', 'price'\]"):
        file.predict({"age": [1.0]})


def test_a_table_can_come_as_lines_of_text(of_tables, tmp_path):
    bp.files.to_numpy_source(of_tables["label"], tmp_path / "model.py")
    lines = [
        ",".join(TABLE),
        *(",".join("NA" if v is None else str(v) for v in row) for row in zip(*TABLE.values(), strict=True)),
    ]
    run = subprocess.run(
        [sys.executable, "model.py"], input="\n".join(lines), capture_output=True, text=True, cwd=tmp_path
    )
    assert run.stdout.split() == list(of_tables["label"].predict(TABLE)), run.stderr
    text = pytest.importorskip("bpnet.cli.text", reason="the command line needs its extra")
    assert set(text.MISSING) == set(GAPS)  # what `bpnet predict` takes for a gap


def test_a_column_of_dates(tmp_path):
    days = np.datetime64("2023-11-01T09:30:00") + RNG.integers(0, 30_000_000, 24).astype("timedelta64[s]")
    table = {"day": days, "written": [d.item().strftime("%d.%m.%Y %H:%M") for d in days[::-1]]}
    table["iso"] = [None if i % 5 == 0 else f"{d}+02:00" for i, d in enumerate(days)]
    model = bp.train_table(table | {"y": ["a", "b"] * 12}, "y", hidden=(4,), epochs=1, progress=False, validation=0.0)
    found = source(model, tmp_path).predict_proba(table)
    np.testing.assert_allclose(found, model.predict_proba(table), rtol=1e-6)
    schema = replace(model.schema, features=tuple(replace(f, zone="Europe/Rome") for f in model.schema.features))
    with pytest.raises(ExportError, match="column 'day' is read in the time zone Europe/Rome, which no file can do"):
        bp.files.to_numpy_source(bp.TableModel(schema, model.target, model.trainer), tmp_path / "other.py")
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


DAY = datetime.datetime(2024, 2, 29, 10, 30)
FORMS = {  # of columns in a table of MANY, beside those that it was trained with
    "n": (
        [Decimal("1.5"), None, 2], ["n/a", " 2 ", "1e3"], np.array([5, 6, "NaT"], "timedelta64[ns]"),
        [datetime.timedelta(minutes=5), None, datetime.timedelta(1)],
        np.ma.masked_array([1.0, 2.0, 3.0], [True, False, False]),
    ),
    "b": ([1.0, None, 0.0], [True, "no", " T "], np.array([1, 0, 1])),
    "c": (
        [1.0, np.inf, np.nan], [Decimal("1.0"), b"Rome", " "], ["2020-01-01", "Rome ", True],
        np.array(["2020-01-01", "2021-05-05T03", "NaT"], "datetime64[ns]"),
    ),
    "f": (np.array([0.1, 0.2, 0.3], "float32"), ["0.1", "n/a", None], [0.1, 1, np.inf]),
    "d": (
        ["2024-02", "2023-11-05 10:00", " "], [DAY, DAY.date(), None], ["2024-02-29T10:00:00+02:00", "2024-01-01", ""],
        [DAY.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=5)))] * 3,
        np.array(["2024-02-29T01:02:03.123456789", "NaT", "1900-01-01"], "datetime64[ns]"),
        [datetime.time(10, 30), None, datetime.time(11)],
    ),
}  # fmt: skip
REFUSED = {"n": (["abc"], ["1.2.3"], np.array(["2020-01-01"], "datetime64[ns]")), "b": ([2], ["maybe"]), "d": ([5],)}
MANY = {
    "n": [float(i * i % 23) for i in range(24)],
    "b": [True, False] * 12,
    "c": ["Rome", "1", "2020-01-01", "True"] * 6,
    "f": [0.1, 0.2, 1e-7, 1.0] * 6,
    "d": [f"{2020 + i % 4}-{1 + i % 12:02d}-{1 + i:02d} {i % 24:02d}:15" for i in range(24)],
}


def test_a_table_may_come_in_every_form_that_bpnet_reads(tmp_path):
    """What is missing, too; and a table of any library has its columns by name, in whatever order they are."""
    types = {"c": "category", "f": "category"}
    model = bp.train_table(
        MANY | {"y": ["a", "b", "b"] * 8}, "y", hidden=(2,), epochs=1, types=types, progress=False, validation=0.0
    )
    file = source(model, tmp_path)

    def check(table, what):
        found, expected = file.encode(table), model.schema.encode(table)
        np.testing.assert_allclose(found["numbers"], expected["numbers"], rtol=1e-6, atol=1e-6, err_msg=what)
        np.testing.assert_array_equal(found["categories"], expected["categories"], what)

    few = {name: values[:3] for name, values in MANY.items()}
    for name, forms in FORMS.items():
        for form in forms:
            check(few | {name: form}, f"{name}: {form}")
    one = {name: values[:1] for name, values in MANY.items()}
    for name, forms in REFUSED.items():
        for form in forms:
            with pytest.raises((ValueError, TypeError)):
                file.encode(one | {name: form})
    turned = dict(reversed(few.items()))
    for library, make in (("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "table")):
        if importlib.util.find_spec(library) is not None:
            check(getattr(importlib.import_module(library), make)(turned), library)
    if importlib.util.find_spec("pandas") is not None:
        import pandas

        gaps = pandas.DataFrame(few).astype({"n": "Float64", "b": "boolean", "c": "string"})
        gaps.loc[1, ["n", "b", "c"]] = pandas.NA
        check(gaps, "values of pandas that are missing")


def test_an_estimator(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    y = np.array(["ant", "bee"])[(X[:, 0] > 0.0).astype(int)]
    estimator = bp.MLPClassifier(hidden_layer_sizes=(5,), max_iter=20, tol=1e9, random_state=0).fit(X, y)
    file = source(estimator, tmp_path)
    assert list(file.predict(X)) == list(estimator.predict(X))
    np.testing.assert_allclose(file.predict_proba(X), estimator.predict_proba(X), rtol=1e-6)


# ---- PyTorch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_module_computes_what_the_network_does_and_so_do_its_gradients(seed, torch):
    trainer, x = drawn(seed, single=False)
    module = bp.files.to_torch_module(trainer)
    np.testing.assert_allclose(predicted(module, x), trainer.predict(x), rtol=1e-9, atol=1e-9)
    gradients(module, trainer, x)


def test_parameters_are_named_as_pytorchs_own(torch):
    layers = bp.Dense(8, "prelu"), bp.BatchNorm(), bp.Residual(bp.Dense(8, bias=False)), bp.WeightNorm(bp.Dense(4))
    trainer = built(*layers, bp.Bilinear(3), bp.Dense(3, ntk=True))
    module = bp.files.to_torch_module(trainer)
    state, expected = module.state_dict(), bp.files.to_torch(trainer)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "0.weight": (8, 4), "0.bias": (8,), "0.activation.weight": (8,), "1.weight": (8,), "1.bias": (8,),
        "1.running_mean": (8,), "1.running_var": (8,), "2.inner.weight": (8, 8), "3.bias": (4,),
        "3.parametrizations.weight.original0": (4, 1), "3.parametrizations.weight.original1": (4, 8),
        "4.weight": (3, 2, 2), "4.bias": (3,), "5.weight": (3, 3), "5.bias": (3,),
    }  # fmt: skip
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    kept = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert kept == {"1.running_mean", "1.running_var"}
    kinds = {name: type(part).__name__ for name, part in module.named_modules()}
    assert (kinds["0"], kinds["2.inner"]) == ("Linear", "Linear")
    for mode in (module.train(), module.eval()):  # it always predicts
        for rows in (1, 7):
            np.testing.assert_allclose(predicted(mode, X[:rows]), trainer.predict(X[:rows]), rtol=1e-5, atol=1e-6)


def test_layers_may_be_called_as_what_a_module_has(torch, tmp_path):
    names = ["type", "forward", "training", "torch", "slice", "self", "_parameters", "_graph", "x²", "ﬁ", "fi", "W"]
    names += ["np", "x", "class", "Land area", "numbers"]
    network = bp.Sequential(bp.Inputs(*((name, bp.Dense(2)) for name in names)), bp.Dense(2))
    x = {name: X + i for i, name in enumerate(names)}
    trainer = bp.Trainer(network, "mse").build(x)
    module = bp.files.to_torch_module(trainer)
    np.testing.assert_allclose(predicted(module, x), trainer.predict(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(source(trainer, tmp_path).predict(x), trainer.predict(x), rtol=1e-6)
    again = bp.Trainer(network, "mse", seed=1).build(x)
    np.testing.assert_array_equal(bp.files.from_torch(again, module).predict(x), trainer.predict(x))


def test_a_saved_module_does_not_know_bpnet(torch):
    trainer = built(bp.Dense(8, "gelu"), bp.BatchNorm(), bp.SpectralNorm(bp.Dense(2)))
    place = io.BytesIO()
    torch.save(bp.files.to_torch_module(trainer), place)
    assert b"bpnet" not in place.getvalue()
    place.seek(0)
    loaded = torch.load(place, weights_only=False)
    np.testing.assert_allclose(predicted(loaded, X), trainer.predict(X), rtol=1e-5, atol=1e-6)
    assert loaded.state_dict().keys() == bp.files.to_torch(trainer).keys()


def test_what_is_trained_there_comes_back(torch):
    layers = bp.Dense(6, "prelu"), bp.LayerNorm(), bp.WeightNorm(bp.Dense(6)), bp.Bilinear(3), bp.Dense(2)
    trainer = built(*layers)
    module = bp.files.to_torch_module(trainer)
    (module(torch.asarray(X)) ** 2).mean().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad
    before = trainer.predict(X)
    bp.files.from_torch(trainer, module.state_dict())
    np.testing.assert_allclose(trainer.predict(X), predicted(module, X), rtol=1e-5, atol=1e-6)
    assert not np.allclose(trainer.predict(X), before)


# ---- both -----------------------------------------------------------------------------------------------------------


def test_what_is_exported_is_what_is_predicted_with(tmp_path):
    """Where the optimizer averages, the average; and a layer of one's own goes as any other."""

    @dataclass(frozen=True)
    class Bent(bp.Layer):
        def forward(self, run, p, x):
            return run.xp.atan2(x, 1.0 + run.xp.cumulative_prod(x * x, axis=-1)), None

        def backward(self, run, p, cache, dy, need_dx=True):
            raise NotImplementedError

    trainer = built(bp.Dense(5), bp.Dense(2), optimizer=bp.ExponentialAverage("adam", 0.5))
    trainer.fit(X, X[:, :2], epochs=3, progress=False)
    assert not np.allclose(trainer.theta, trainer.layout.join(trainer.backend, trainer.parameters))
    np.testing.assert_allclose(source(trainer, tmp_path).predict(X), trainer.predict(X), rtol=1e-6)
    own = bp.Trainer(bp.Sequential(bp.Dense(3), Bent()), "mse")
    own.build(X)
    np.testing.assert_allclose(source(own, tmp_path).predict(X), own.predict(X), rtol=1e-6)


def test_what_can_not_be_exported_says_so(tmp_path):
    @dataclass(frozen=True)
    class Looking(bp.Layer):
        def forward(self, run, p, x):
            return (x if bool(run.xp.any(x > 0.0)) else -x), None

        def backward(self, run, p, cache, dy, need_dx=True):
            raise NotImplementedError

    trainer = bp.Trainer(bp.Sequential(bp.Dense(3), Looking()), "mse", compile=False).build(X)
    functions = [lambda model: bp.files.to_numpy_source(model, tmp_path / "model.py")]
    functions += [bp.files.to_torch_module] * (importlib.util.find_spec("torch") is not None)
    for function in functions:
        with pytest.raises(ExportError, match=r"layer '1' \(Looking\) can't be exported: it looks at values"):
            function(trainer)
        with pytest.raises(ArgumentError, match="model is of type int; expected a Trainer"):
            function(3)
        with pytest.raises(NotBuiltError):
            function(bp.Trainer(bp.Dense(2), "mse"))
    assert not list(tmp_path.iterdir())


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command():
    pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
    return pytest.importorskip("tests.support.command", reason="the command line needs its extra")


def test_bpnet_export(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = built(bp.Dense(3, "tanh"), bp.Dense(2))
    trainer.save("model.safetensors")
    result = command.ok("export", "model.safetensors", "--to", "numpy", "--out", "made.py")
    size = (tmp_path / "made.py").stat().st_size
    assert result.out == (
        f"made.py written, {size:,} bytes\nuse it: from made import predict; or in a shell, python made.py < rows.csv"
        ", without a header\n"
    )
    np.testing.assert_allclose(source(tmp_path / "made.py").predict(X), trainer.predict(X), rtol=1e-6)
    others = {  # by the package that each needs
        "torch": ("made.pt", ["made.pt"], "torch.load('made.pt', weights_only=False)(x)"),
        "onnx": ("made.onnx", ["made.onnx"], "onnxruntime.InferenceSession('made.onnx').run(None, {'x': ...})"),
        "llvmlite": (
            "made.h",
            ["made.h", "made.o"],
            '#include "made.h", and link made.o; the header describes its functions',
        ),
    }
    for package, (out, files, use) in others.items():
        if importlib.util.find_spec(package) is not None and os.name == "posix":
            found = command.ok("export", "model.safetensors", "--out", out, "--json").json
            assert (found["output"], found["use"]) == (files, use)
            assert found["bytes"] == sum((tmp_path / file).stat().st_size for file in files)
    refused = command.refused
    assert "expected --to onnx, torch, numpy, c" in refused("export", "model.safetensors", "--out", "made")
    assert "such as --out model.onnx" in refused("export", "model.safetensors")
    assert "such as --out model.py" in refused("export", "model.safetensors", "--to", "numpy")
    assert "did you mean 'numpy'" in refused("export", "model.safetensors", "--to", "numpi", "-o", "x.py")
    assert "expected another file" in refused("export", "model.safetensors", "--to", "numpy", "-o", "model.safetensors")
    assert "missing.safetensors" in refused("export", "missing.safetensors", "-o", "x.py")
