"""The command line, from the outside: what it prints, writes and returns."""

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ArgumentError, PathError
from bpnet.files import model

pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
pytest.importorskip("rich", reason="the command line needs rich (the cli extra)")

from bpnet import disk
from bpnet.cli import terminal, train, writing
from bpnet.tabular.splits import split
from tests.support.command import environment, ok, refused, run, start

SMALL = ("--hidden", "16", "--epochs", "8", "--batch-size", "16", "--lr", "0.02", "--dropout", "0", "--quiet")


POSIX = pytest.mark.skipif(os.name != "posix", reason="there are no POSIX devices and signals here")


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def blobs():
    """Two features, three classes well apart."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 240)
    centre = np.array([[0.0, 0.0], [300.0, 0.0], [0.0, 5.0]])[label]
    return centre + rng.normal(size=(240, 2)) * [30.0, 0.5], label


@pytest.fixture
def npz(blobs):
    np.savez("blobs.npz", x=blobs[0], y=blobs[1])
    return "blobs.npz"


@pytest.fixture
def trained(npz, tmp_path_factory):
    """A model of the blobs, trained once."""
    path = tmp_path_factory.getbasetemp() / "trained.safetensors"
    if not path.exists():
        ok("train", npz, *SMALL, "--output", path)
    return path


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="reading .csv and .parquet needs pyarrow (the cli extra)")


def write_table(arrow, path, **columns):
    from pyarrow import csv, parquet

    table = arrow.table(columns)
    csv.write_csv(table, path) if path.endswith(".csv") else parquet.write_table(table, path)
    return path


@pytest.fixture
def animals(arrow, blobs):
    """A table with a text target, a boolean and an integer feature, as CSV and as Parquet."""
    x, label = blobs
    columns = {
        "weight": x[:, 0],
        "size": x[:, 1],
        "tame": label == 1,
        "legs": np.where(x[:, 0] > 100.0, 6, 4),
        "kind": np.array(["ant", "bee", "cow"])[label],
    }
    write_table(arrow, "animals.parquet", **columns)
    return write_table(arrow, "animals.csv", **columns)


# ---- the main job: handwritten digits -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """What `bpnet train digits --json` says, and the model."""
    pytest.importorskip("sklearn", reason="the digits data need scikit-learn (the cli extra)")
    model = tmp_path_factory.mktemp("digits") / "model.safetensors"
    return ok("train", "digits", "--json", "--output", model).json, model


def test_digits_reach_97_percent_of_held_out_rows(digits):
    result, model = digits
    assert result["accuracy"] >= 0.97
    assert result["loss"] < 0.2
    assert result["backend"] == "numpy"
    assert result["device"] == "cpu"
    assert (result["training_rows"], result["held_out_rows"]) == (1438, 359)
    assert result["seconds"] > 0
    assert result["output"] == str(model)
    assert result["interrupted"] is False
    assert len(result["history"]) == result["epochs"] <= 200
    best = min(result["history"], key=lambda record: record["val_loss"])
    assert best["epoch"] == result["best_epoch"] < result["epochs"]
    assert best["val_accuracy"] == result["accuracy"]


def test_evaluate_uses_the_rows_that_training_held_out(digits):
    trained, model = digits
    result = ok("evaluate", model, "digits", "--json").json
    assert result["accuracy"] == trained["accuracy"]
    assert result["loss"] == pytest.approx(trained["loss"], rel=1e-6)
    assert (result["rows"], result["held_out"], result["backend"]) == (359, True, "numpy")
    assert result["seconds"] > 0
    assert "on 359 rows, held out from training" in ok("evaluate", model, "digits").out


def test_evaluate_uses_all_rows_of_other_data(digits):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    np.savez("again.npz", x=x, y=y)
    result = ok("evaluate", digits[1], "again.npz", "--json").json
    assert (result["rows"], result["held_out"]) == (1797, False)
    assert result["accuracy"] > digits[0]["accuracy"]


def test_predict_digits(digits):
    from sklearn.datasets import load_digits

    _, model = digits
    result = ok("predict", model, "digits", "--json").json
    assert result["rows"] == 1797
    assert np.mean(result["predictions"] == load_digits().target) > 0.98
    lines = ok("predict", model, "digits").out.splitlines()
    assert lines == [str(n) for n in result["predictions"]]


def test_the_model_file_works_from_python(digits):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    loaded = bp.load(digits[1])
    assert loaded.evaluate(x, y)["accuracy"] > 0.98
    assert np.mean(loaded.predict(x) == y) > 0.98
    assert loaded.classes_.tolist() == list(range(10))


def test_info_about_a_model(digits):
    result, model = digits
    found = ok("info", model, "--json").json
    assert found["parameters"] == result["parameters"] == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    assert [layer["out_shape"] for layer in found["layers"]] == [[64], [128], [128], [64], [64], [10]]
    assert found["epochs"] == result["epochs"]
    assert found["precision"] == "float32"
    assert found["classes"] == list(range(10))
    assert found["training"]["accuracy"] == result["accuracy"]
    text = ok("info", model).out
    assert "Dense(units=128, activation='relu', bias=True)" in text
    assert "17,226" in text
    assert "products in float32" in text
    assert "trained on digits, 1,438 rows, 359 held out" in text


def test_the_same_seed_gives_the_same_model(npz):
    train = ("train", npz, *SMALL, "--dropout", "0.2", "--json")
    first, again, other = ok(*train).json, ok(*train).json, ok(*train, "--seed", "1").json
    assert [e["loss"] for e in again["history"]] == [e["loss"] for e in first["history"]]
    assert [e["loss"] for e in other["history"]] != [e["loss"] for e in first["history"]]


# ---- what is printed ------------------------------------------------------------------------------------------------


def test_train_says_what_it_does(npz):
    result = ok("train", npz, "--hidden", "16", "--epochs", "3")
    assert "192 rows to train on, 48 held out; 3 classes; 99 parameters; numpy on cpu" in result.out
    assert re.search(r"accuracy [\d.]+%, loss [\d.]+ on 48 rows held out; [\d.]+ s of training\n", result.out)
    assert "model: model.safetensors" in result.out
    assert Path("model.safetensors").exists()
    lines = result.err.splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines):
        assert re.fullmatch(rf"epoch   {i + 1}/3  loss [\d.]+  held-out loss [\d.]+  held-out accuracy [\d.]+%", line)


@pytest.mark.parametrize("silence", ["--quiet", "--json"])
def test_silent_training(npz, silence):
    assert ok("train", npz, "--epochs", "2", silence).err == ""


def test_all_rows_can_be_trained_on(npz):
    result = ok("train", npz, *SMALL, "--validation", "0")
    assert "that it was trained on, as none were held out" in result.out
    found = ok("train", npz, *SMALL, "--validation", "0", "--json").json
    assert (found["training_rows"], found["held_out_rows"]) == (240, 0)
    assert found["accuracy"] > 0.9
    assert ok("evaluate", "model.safetensors", npz, "--json").json["held_out"] is False


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_learning_curves(npz, kind):
    pytest.importorskip("matplotlib", reason="--plot needs Matplotlib (the cli extra)")
    result = ok("train", npz, *SMALL, "--plot", f"curves.{kind}", "--json").json
    assert result["plot"] == f"curves.{kind}"
    picture = Path(f"curves.{kind}").read_bytes()
    assert len(picture) > 5000
    assert picture.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[kind])


def test_learning_curves_in_the_terminal(npz):
    curves = r"^loss   \S+ training   \S+ validation   \S best epoch \d+: [\d.]+$"
    result = ok("train", npz, *SMALL, "--plot")
    assert re.search(curves, result.out[result.out.index("model: ") :], re.MULTILINE), "at the end"
    assert "learning curves:" not in result.out
    result = ok("train", npz, "--plot", *SMALL, "--json")
    assert "plot" not in result.json
    assert re.search(curves, result.err, re.MULTILINE)
    assert ok("train", npz, *SMALL, "--plot", "curves.txt", "--json").json["plot"] == "curves.txt"
    assert re.search("^  \\S best epoch", Path("curves.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_info_about_the_catalogue():
    found = ok("info", "--catalogue", "--json").json
    assert found["activations"]["silu"] == found["activations"]["swish"]
    assert found["losses"]["mse"]["class"] == "MeanSquaredError"
    assert found["metrics"]["f2"]["options"] == "average=None, beta=2.0"
    assert found["layers"]["Embedding"]["options"].startswith("entries, width")
    assert found["optimizers"]["amsgrad"]["paper"] == "Kingma and Ba 2015"
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    text = ok("info", "--catalogue").out
    for entries in found.values():
        for name, entry in entries.items():
            assert f"`{name}`" in page
            assert name in text
            assert entry["says"]
    assert "leave one of them out" in refused("info", "model.safetensors", "--catalogue")


def test_info_about_the_machine():
    found = ok("info", "--json").json
    assert found["bpnet"] == bp.__version__
    assert found["backends"]["numpy"] == {"version": np.__version__, "devices": ["cpu"], "precisions": ["float32"]}
    assert set(found["backends"]) == {"numpy", "cupy", "torch", "jax"}
    assert found["blas"][0]["name"]
    text = ok("info").out
    for word in ("bpnet", bp.__version__, "BLAS", "numpy", "torch", "scikit-learn"):
        assert word in text


def test_help_names_every_command_and_option():
    text = ok("--help").out
    for command in ("train", "evaluate", "predict", "export", "info"):
        assert command in text
    text = ok("train", "--help").out
    for option in (
        "target",
        "hidden",
        "activation",
        "loss",
        "optimizer",
        "lr",
        "batch-size",
        "epochs",
        "dropout",
        "seed",
    ):
        assert f"--{option}" in text
    for option in ("backend", "precision", "threads", "validation", "output", "plot", "json", "quiet"):
        assert f"--{option}" in text


# ---- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_with_a_text_target(animals, kind):
    data = f"animals.{kind}"
    result = ok("train", data, "--target", "kind", *SMALL, "--json").json
    assert result["accuracy"] > 0.95
    found = ok("info", "model.safetensors", "--json").json
    assert found["classes"] == ["ant", "bee", "cow"]
    assert found["features"] == ["weight", "size", "tame", "legs"]
    assert found["target"] == "kind"
    again = ok("evaluate", "model.safetensors", data, "--json").json  # the target comes from the model
    assert (again["accuracy"], again["rows"], again["held_out"]) == (result["accuracy"], 48, True)
    predictions = ok("predict", "model.safetensors", data, "--json").json["predictions"]
    assert set(predictions) == {"ant", "bee", "cow"}


def test_a_model_wants_its_columns_in_any_order(animals, arrow, blobs):
    ok("train", animals, "--target", "kind", *SMALL)
    x, label = blobs
    columns = {"legs": np.full(240, 4), "other": x[:, 0], "size": x[:, 1], "tame": label == 1, "weight": x[:, 0]}
    write_table(arrow, "turned.parquet", **columns)
    turned = ok("predict", "model.safetensors", "turned.parquet").out
    assert turned == ok("predict", "model.safetensors", animals).out
    write_table(arrow, "less.csv", legs=[4], other=[1.0], size=[2.0])
    assert "less.csv lacks the columns 'weight', 'tame' of the model" in refused(
        "predict", "model.safetensors", "less.csv"
    )


@pytest.mark.parametrize(("values", "names"), [([7, 3], [3, 7]), ([True, False], [False, True])])
def test_integers_and_booleans_are_classes(arrow, values, names):
    x = np.linspace(-1, 1, 100)
    write_table(arrow, "t.parquet", x=x, y=np.where(x > 0, *values))
    result = ok("train", "t.parquet", "--target", "y", *SMALL, "--json").json
    assert result["accuracy"] > 0.9
    assert ok("info", "model.safetensors", "--json").json["classes"] == names
    predictions = ok("predict", "model.safetensors", "t.parquet", "--json").json["predictions"]
    assert (predictions[0], predictions[-1]) == (values[1], values[0])


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
def test_two_classes_with_one_output(npz, loss):
    x = np.linspace(-1, 1, 100)[:, None]
    np.savez("two.npz", x=x, y=np.where(x[:, 0] > 0, "up", "down"))
    result = ok("train", "two.npz", *SMALL, "--loss", loss, "--json").json
    assert result["accuracy"] > 0.9
    predictions = ok("predict", "model.safetensors", "two.npz", "--json").json["predictions"]
    assert (predictions[0], predictions[-1]) == ("down", "up")
    assert "has 3 classes" in refused("train", npz, *SMALL, "--loss", loss)


def test_numbers_are_predicted_in_their_own_units(arrow):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 2)) * [1.0, 1000.0] + [5.0, -300.0]
    price = 50_000.0 + 8_000.0 * x[:, 0] + 12.0 * x[:, 1]
    write_table(arrow, "prices.csv", rooms=x[:, 0], area=x[:, 1], price=price)
    train = (
        "train",
        "prices.csv",
        "--target",
        "price",
        "--hidden",
        "32",
        "--epochs",
        "60",
        "--lr",
        "0.01",
        "--dropout",
        "0",
    )
    result = ok(*train, "--json").json
    assert result["accuracy"] is None
    assert result["r2"] > 0.99
    assert min(e["val_loss"] for e in result["history"]) == pytest.approx(result["loss"], rel=1e-4)
    predictions = np.array(ok("predict", "model.safetensors", "prices.csv", "--json").json["predictions"])
    error = np.mean((predictions - price) ** 2)
    assert error < 0.01 * price.var()
    held_out = ok("evaluate", "model.safetensors", "prices.csv", "--json").json
    assert held_out["accuracy"] is None
    assert held_out["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert held_out["loss"] == pytest.approx(error, rel=1.0)
    assert re.search(r"R2 (0\.99|1\.0)", ok(*train).out)


def test_whole_numbers_of_many_values_are_a_quantity(arrow):
    write_table(arrow, "count.csv", x=np.arange(100.0), y=np.arange(100))
    train = ("train", "count.csv", "--target", "y", "--epochs", "1")
    assert "y is a number" in ok(*train).out
    assert "100 classes" in ok(*train, "--types", "y=category").out
    assert "y is a number" in ok(*train, "--loss", "mse").out
    assert ok(*train, "--loss", "cross_entropy", "--json").json["accuracy"] is not None
    result = ok(*train, *SMALL, "--loss", "mse", "--json").json
    assert result["accuracy"] is None
    assert result["r2"] > 0.9


def test_several_numbers_and_images_in_an_npz_file():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4, 3)).astype(np.float32)
    y = np.stack([x.sum(axis=(1, 2)), x[:, 0, 0]], axis=1)
    np.savez("several.npz", x=x, y=y)
    result = ok("train", "several.npz", *SMALL, "--epochs", "60", "--json").json
    assert result["r2"] > 0.8
    assert np.shape(ok("predict", "model.safetensors", "several.npz", "--json").json["predictions"]) == (200, 2)
    assert ok("info", "model.safetensors", "--json").json["layers"][0]["out_shape"] == [12]
    ok("predict", "model.safetensors", "several.npz", "--output", "p.csv")
    assert Path("p.csv").read_text().splitlines()[0] == "prediction_0,prediction_1"


def test_predictions_are_written_to_a_file(animals):
    ok("train", animals, "--target", "kind", *SMALL)
    names = ok("predict", "model.safetensors", animals, "--json").json["predictions"]
    assert "240 predictions written to p.npy" in ok("predict", "model.safetensors", animals, "--output", "p.npy").out
    assert np.load("p.npy").tolist() == names
    assert ok("predict", "model.safetensors", animals, "--output", "p.csv", "--json").json["output"] == "p.csv"
    assert Path("p.csv").read_text().splitlines() == ["kind", *names]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_from_python_can_be_evaluated(npz, blobs, dtype):
    x, y = blobs[0].astype(dtype), blobs[1]
    trainer = bp.Trainer(bp.Sequential(bp.Dense(8, "tanh"), bp.Dense(3)), "cross_entropy", bp.Adam(0.01))
    trainer.fit(x, y, epochs=20, batch_size=32, progress=False)
    trainer.save("mine.safetensors")
    expected = trainer.evaluate(x, y)
    result = ok("evaluate", "mine.safetensors", npz, "--json").json
    assert result["accuracy"] == pytest.approx(expected["accuracy"])
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert set(ok("predict", "mine.safetensors", npz, "--json").json["predictions"]) <= {0, 1, 2}
    assert ok("info", "mine.safetensors", "--json").json["training"] is None
    ok("info", "mine.safetensors")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_options_reach_the_trainer(npz, optimizer, activation):
    args = ("--hidden", "8,4", "--dropout", "0.1", "--epochs", "2", "--lr", "0.05", "--batch-size", "60")
    result = ok("train", npz, *args, "--optimizer", optimizer, "--activation", activation, "--json").json
    assert result["optimizer"].lower().startswith(f"{optimizer}(lr=0.05")
    assert (result["steps"], result["batch_size"]) == (8, 60)
    layers = [layer["layer"] for layer in ok("info", "model.safetensors", "--json").json["layers"]]
    assert layers[1:3] == [f"Dense(units=8, activation='{activation}', bias=True)", "Dropout(rate=0.1)"]
    assert len(layers) == 6


def test_no_hidden_layer(npz):
    assert ok("train", npz, "--hidden", "", "--epochs", "1", "--json").json["parameters"] == 9


# ---- a model in its own units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[3, 5, 7], ["ant", "bee", "cow"], [False, True], [2**62, -(2**62)]], ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits"])
def test_a_classifier_works_in_python_on_raw_data(blobs, names, loss):
    if loss != "cross_entropy" and len(names) > 2:
        pytest.skip("of two classes")
    x, label = blobs[0].astype(np.float32), blobs[1] % len(names)
    np.savez("raw.npz", x=x, y=np.array(names)[label])
    ok("train", "raw.npz", *SMALL, "--epochs", "20", "--loss", loss)
    loaded = bp.load("model.safetensors")
    assert loaded.classes_.tolist() == sorted(names)
    found = ok("predict", "model.safetensors", "raw.npz", "--json").json["predictions"]
    assert loaded.predict(x).tolist() == found
    assert loaded.classes_[loaded.predict_proba(x).argmax(1)].tolist() == found
    assert np.mean(np.array(found) == np.array(names)[label]) > 0.95
    assert ok("predict", "model.safetensors", "raw.npz").out.split() == list(map(str, found))
    loaded.save("again.safetensors")
    assert bp.load("again.safetensors").predict(x).tolist() == found


def housing(rows=200):
    """Features and a target far from zero and from one, as float32 holds them."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 2)) * [1.0, 1000.0] + [5.0, -300.0]
    return x.astype(np.float32), (5e4 + 8e3 * x[:, 0] + 12.0 * x[:, 1]).astype(np.float32)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_regression_works_in_python_on_raw_data_and_is_trained_on(optimizer):
    x, y = housing()
    np.savez("raw.npz", x=x, y=y)
    train = ("train", "raw.npz", *SMALL, "--optimizer", optimizer, "--validation", "0", "--json")
    whole = ok(*train, "--epochs", "12").json
    result, loaded = ok(*train, "--epochs", "5").json, bp.load("model.safetensors")
    error = np.mean((loaded.predict(x).astype(np.float64) - y) ** 2)
    assert loaded.evaluate(x, y)["loss"] == pytest.approx(error, rel=1e-4)
    assert result["loss"] == pytest.approx(error, rel=1e-4)
    assert result["r2"] == pytest.approx(1.0 - error / y.var(dtype=np.float64), rel=1e-4)
    rows, _ = split(len(x), 0.0, seed=0)
    loaded.trainer.fit(x[rows], y[rows][:, None], epochs=7, batch_size=16, progress=False)
    assert loaded.trainer.history["loss"] == pytest.approx([record["loss"] for record in whole["history"]], rel=1e-4)
    assert whole["r2"] > 0.5


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("factor", [1e-50, 1e-20, 1e-9, 1.35e-9, 1.45e-9, 2e-9, 1e-6, 1e3, 1e9, 1e50])
def test_the_unit_of_a_target_does_not_matter(optimizer, factor):
    x, y = housing()
    found = []
    for unit in (1.0, factor):
        np.savez("unit.npz", x=x, y=(y - 5e4).astype(np.float64) * unit)
        found.append(ok("train", "unit.npz", *SMALL, "--optimizer", optimizer, "--json").json)
        assert ok("evaluate", "model.safetensors", "unit.npz", "--json").json["loss"] == found[-1]["loss"]
    assert found[0]["r2"] > 0.5
    assert found[1]["r2"] == pytest.approx(found[0]["r2"], rel=1e-3)
    assert found[1]["loss"] == pytest.approx(found[0]["loss"] * factor**2, rel=1e-2)


@pytest.mark.parametrize("factor", [1e-290, 1e-200, 1e-39, 1e-30, 1e30, 1e39, 1e160, 1e200, 1e290])
def test_the_unit_of_a_feature_does_not_matter(factor):
    x, y = housing()
    found = []
    for unit in (1.0, factor):
        np.savez("unit.npz", x=x.astype(np.float64) * [unit, 1.0], y=y)
        found.append(ok("train", "unit.npz", *SMALL, "--json").json["r2"])
    assert found[0] > 0.5
    assert found[1] == pytest.approx(found[0], rel=1e-2)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (1.0, 1e200, "the target of far.npz has the deviation"),
        (1.0, 1e-200, "the target of far.npz has the deviation"),
        (1e308, 1.0, "column 'x0' of far.npz has the mean"),
        (1e-308, 1.0, "column 'x0' of far.npz has the mean"),
    ],
)
def test_what_can_not_be_scaled_is_refused(x, y, words):
    values = np.linspace(-1.0, 1.0, 40)
    np.savez("far.npz", x=values[:, None] * x, y=values * y)
    assert words in refused("train", "far.npz")


def test_columns_keep_the_digits_that_float32_has_not():
    time = 1.7e9 + np.random.default_rng(0).uniform(0.0, 86400.0, 400)  # of a day, in seconds since 1970
    y = np.floor((time - 1.7e9) / 21600.0).astype(int)
    np.savez("time.npz", x=time[:, None], y=y)
    result = ok("train", "time.npz", *SMALL, "--epochs", "60", "--json").json
    assert (result["precision"], result["accuracy"] > 0.9) == ("float64", True)
    loaded = bp.load("model.safetensors")
    assert loaded.trainer.theta.dtype == np.float64
    assert loaded.evaluate(time[:, None], y)["accuracy"] > 0.9
    out = ok("train", "time.npz", "--epochs", "1").out
    assert "in float64 because of column 'x0' of time.npz" in out
    np.savez("whole.npz", x=np.arange(400.0)[:, None] % 7, y=y)
    assert ok("train", "whole.npz", *SMALL, "--json").json["precision"] == "float32"


def test_constant_columns_do_no_harm(blobs):
    x = np.concatenate([blobs[0], np.full((240, 1), 0.1), np.full((240, 1), 1e30), np.zeros((240, 1))], axis=1)
    np.savez("constant.npz", x=x, y=blobs[1])
    assert ok("train", "constant.npz", *SMALL, "--json").json["accuracy"] > 0.95
    assert bp.load("model.safetensors").trainer.theta.dtype == np.float32


def test_values_too_large_for_the_model_are_refused(npz):
    ok("train", npz, *SMALL)
    np.savez("large.npz", x=np.array([[1.0, 1.0], [1.0, 1e39]]))
    assert "column 'x1' of large.npz has 1e+39 in row 2, which is too large for float32" in refused(
        "predict", "model.safetensors", "large.npz"
    )


# ---- columns that are no features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["", ".0"], ids=["integers", "floats"])
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_without_a_name_are_left_out_and_named(arrow, name, point):
    rows = "".join(f"{i * 7 % 60}{point},{np.sin(i):.3f},{'ab'[i // 30]}\n" for i in range(60))
    Path("t.csv").write_text(f"{name},a,y\n{rows}")
    result = ok("train", "t.csv", "--target", "y", *SMALL)
    title = f"column {name!r}" if name else r"column 1 \(unnamed\)"
    assert re.fullmatch(rf"bpnet: {title} of t.csv is left out, taken for row numbers .*\n", result.err)
    assert ok("info", "model.safetensors", "--json").json["features"] == ["a"]
    assert ok("evaluate", "model.safetensors", "t.csv").err == ok("predict", "model.safetensors", "t.csv").err == ""


@pytest.mark.parametrize("values", [lambda i: np.sin(i), lambda i: float(i % 2)], ids=["fractions", "repeated"])
def test_floats_without_a_name_that_number_no_rows_are_learnt_from(arrow, values):
    Path("t.csv").write_text(",a,y\n" + "".join(f"{values(i)},{np.cos(i):.3f},{'ab'[i // 30]}\n" for i in range(60)))
    assert ok("train", "t.csv", "--target", "y", *SMALL).err == ""
    assert ok("info", "model.safetensors", "--json").json["features"] == ["", "a"]


def test_row_numbers_without_a_name_are_told_of_wherever_they_are_left_out(arrow):
    trainer = bp.Trainer(bp.Sequential(bp.Dense(1)), "mse").build(np.ones((1, 1)))
    trainer.save("mine.safetensors")
    Path("t.csv").write_text(",a\n" + "".join(f"{i},{i}\n" for i in range(20)))
    result = ok("predict", "mine.safetensors", "t.csv")
    assert len(result.out.splitlines()) == 20
    assert result.err.count("\n") == result.err.count("is left out, taken for row numbers") == 1
    Path("t.csv").write_text(",y\n0,1\n1,2\n")
    assert "to learn from; column 1 (unnamed) of t.csv is left out" in refused("train", "t.csv", "--target", "y")


@pytest.mark.parametrize("first", [0, 1, 100, 0.0, -30.0])
def test_a_column_that_counts_the_rows_is_named_and_can_be_left_out(arrow, first):
    rows = "".join(f"{i + first},{np.sin(i):.3f},{np.cos(i):.3f},{'ab'[i // 30]}\n" for i in range(60))
    Path("t.csv").write_text(f"id,a,b,y\n{rows}")
    said = ok("train", "t.csv", "--target", "y", *SMALL).err
    assert re.fullmatch("bpnet: column 'id' of t.csv counts the rows: .* leave it out with --drop 'id'\n", said)
    train = ("train", "t.csv", "--target", "y", *SMALL)
    assert ok(*train, "--drop", "id", "--drop", "b").err == ""
    assert ok("info", "model.safetensors", "--json").json["features"] == ["a"]
    Path("t.csv").write_text("a,y\n0.1,a\n0.2,b\n")
    assert ok("evaluate", "model.safetensors", "t.csv", "--json").json["rows"] == 2
    Path("t.csv").write_text(f"id,a,b,y\n{rows}")
    assert "has no column 'idd': did you mean 'id'?" in refused(*train, "--drop", "idd")
    assert "--drop y is the target" in refused(*train, "--drop", "y")
    assert "no column beside the target" in refused(*train, "--drop", "id", "--drop", "a", "--drop", "b")
    assert "--drop names a column" in refused("train", "digits", "--drop", "id")


def test_many_columns_and_long_names(arrow):
    names = ",".join(f"c{i}" for i in range(10_000))
    rows = "".join(",".join([str(k)] * 10_000) + f",{k % 2}\n" for k in range(6))
    Path("wide.csv").write_text(f"{names},y\n{rows}")
    began = time.process_time()
    ok("train", "wide.csv", "--target", "y", *SMALL, "--epochs", "1", "--hidden", "2")
    ok("predict", "model.safetensors", "wide.csv")
    assert time.process_time() - began < 10.0
    assert len(refused("train", "wide.csv", "--target", "yy")) < 400
    assert len(ok("info", "model.safetensors").out) < 2000


def test_one_long_class_among_many_rows(arrow):
    Path("t.csv").write_text("a,y\n" + "".join(f"{i % 9},p\n" for i in range(50_000)) + "1," + "z" * 500_000 + "\n")
    ok("train", "t.csv", "--target", "y", *SMALL, "--batch-size", "4096", "--epochs", "1")
    ok("predict", "model.safetensors", "t.csv", "--output", "p.csv")
    loaded = bp.load("model.safetensors")
    parameters = loaded.trainer.parameters
    flat = {name: {k: 0 * v for k, v in p.items()} for name, p in parameters.items()}
    last = max(parameters)
    flat[last]["bias"] = flat[last]["bias"] + np.array(
        [0.0, 1.0], np.float32
    )  # so that all rows are of the class with the long name
    loaded.trainer.parameters = flat
    loaded.save("long.safetensors")
    assert "a .npy file can't hold these" in refused("predict", "long.safetensors", "t.csv", "--output", "p.npy")


def test_the_whole_file_decides_the_type_of_a_column(arrow):
    Path("t.csv").write_text("a,b,y\n" + "1,22222222,0\n" * 90_000 + "1.5,2,1\n" * 9)  # more than a block of Arrow's
    assert ok("train", "t.csv", "--target", "y", *SMALL, "--epochs", "1", "--batch-size", "9999", "--json").json


# ---- array libraries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_every_backend(npz, backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    if backend == "cupy":
        found = ok("info", "--json").json["backends"]["cupy"]
        if not found["devices"]:
            pytest.skip(found["problem"])
    result = ok("train", npz, *SMALL, "--backend", backend, "--json").json
    assert result["backend"] == backend
    assert result["accuracy"] > 0.95
    again = ok("evaluate", "model.safetensors", npz, "--backend", backend, "--json").json
    assert again["backend"] == backend
    assert again["accuracy"] == pytest.approx(result["accuracy"])
    elsewhere = ok("predict", "model.safetensors", npz, "--json").json["predictions"]
    assert ok("predict", "model.safetensors", npz, "--backend", backend, "--json").json["predictions"] == elsewhere


def test_a_backend_that_is_missing_or_has_no_device(npz):
    found = ok("info", "--json").json["backends"]
    absent = [name for name in found if not found[name]["devices"]]
    if not absent:
        pytest.skip("every library is here and has a device")
    for name in absent:
        assert name in refused("train", npz, *SMALL, "--backend", name).lower().replace("cuda", "cupy")


# ---- what users get wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--activation", "rleu"), "unknown activation 'rleu': did you mean 'relu'?"),
        (("--loss", "mes"), "did you mean 'mse'?"),
        (("--precision", "half"), "precision is 'half'; expected 'float32', 'tf32' or 'bfloat16'"),
        (("--precision", "tf32"), "which products of numpy arrays do not have here"),
        (("--optimizer", "adamm"), "did you mean 'adam'"),
        (("--backend", "nunpy"), "did you mean 'numpy'?"),
        (("--hidden", "12,x"), "--hidden is '12,x'; expected whole numbers"),
        (("--hidden", "0"), "--hidden is '0'"),
        (("--lr", "-1"), "lr is -1"),
        (("--lr", "nan"), "lr is nan"),
        (("--dropout", "1"), "--dropout is 1"),
        (("--validation", "1"), "--validation is 1"),
        (("--validation", "nan"), "--validation is nan"),
        (("--output", "nowhere/model.safetensors"), "there is no folder"),
        (("--output", "."), "--output: . is a folder"),
        pytest.param(("--output", os.devnull), "is no ordinary file", marks=POSIX),
        (("--target", "y"), "--target names a column of a table, and blobs.npz has none"),
    ],
)
def test_wrong_options(npz, args, words):
    assert words in refused("train", npz, "--quiet", *args)
    assert not Path("model.safetensors").exists()


@pytest.fixture
def diverges(monkeypatch):
    """The parameters become NaN after 17 steps, which are in the second epoch."""
    on_step_end = train.Interrupt.on_step_end

    def spoil(self, trainer, step):
        on_step_end(self, trainer, step)
        if trainer.step_count == 17:
            flat = {name: {k: v * np.nan for k, v in p.items()} for name, p in trainer.parameters.items()}
            trainer.parameters = flat

    monkeypatch.setattr(train.Interrupt, "on_step_end", spoil)


def test_a_diverged_training_keeps_what_it_learnt_before(npz, diverges):
    result = run("train", npz, *SMALL)
    assert (result.status, result.out) == (2, "")
    assert "training diverged" in result.err
    assert result.err.endswith(". The model after 12 steps is in model.safetensors\n")
    assert ok("info", "model.safetensors", "--json").json["training"]["steps"] == 12
    assert ok("evaluate", "model.safetensors", npz, "--json").json["loss"] > 0


def test_a_model_that_can_not_be_written_where_it_should_be_is_not_lost(npz, tmp_path, monkeypatch):
    write, other = model.write_atomically, tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))

    @contextmanager
    def full(path, *args, **options):
        if not path.startswith(str(other)):
            raise PathError(f"{path} can't be written: No space left on device")
        with write(path, *args, **options) as file:
            yield file

    monkeypatch.setattr(model, "write_atomically", full)
    said = refused("train", npz, *SMALL)
    (folder,) = other.iterdir()
    assert f"model.safetensors can't be written: No space left on device. The model is in {folder}/model" in said
    assert bp.load(folder / "model.safetensors").trainer.step_count == 96
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert "The model is" not in refused("train", npz, *SMALL)


def test_a_diverged_training_leaves_the_model_that_is_there(npz, diverges):
    Path("model.safetensors").write_bytes(b"good")
    result = run("train", npz, *SMALL, "--json")
    assert result.status == 2
    assert result.err.endswith(". model.safetensors is left as it was\n")
    assert (result.json["diverged"], "output" in result.json) == (True, False)
    assert Path("model.safetensors").read_bytes() == b"good"


def test_a_loss_that_is_not_finite_leaves_the_model_that_is_there(npz, monkeypatch):
    monkeypatch.setattr(train, "evaluate_rows", lambda *args: {"loss": np.inf, "accuracy": None})
    Path("model.safetensors").write_bytes(b"good")
    said = refused("train", npz, *SMALL)
    assert "the loss of 48 rows is not finite: try a smaller --lr. model.safetensors is left as it was" in said
    assert Path("model.safetensors").read_bytes() == b"good"


def test_a_model_that_can_not_be_evaluated_is_not_written(npz):
    result = run("train", npz, "--quiet", "--lr", "1e30", "--optimizer", "sgd")
    assert (result.status, result.out) == (2, "")
    assert "diverged at step" in result.err
    assert result.err.endswith(". No model was written: none with a finite loss is left\n")
    assert not Path("model.safetensors").exists()


@pytest.mark.parametrize("args", [("--epochs", "0"), ("--batch-size", "x"), ("--seed", "-1"), ("--nope",)])
def test_options_that_are_no_options(npz, args):
    result = run("train", npz, *args)
    assert (result.status, result.out) == (2, "")
    assert args[0] in result.err


def test_a_directory_that_takes_no_files(npz, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk, "replacing", refuse)
    said = refused("train", npz, "--output", "m.safetensors")
    assert "--output: m.safetensors can't be written: Permission denied" in said


def test_pictures_that_can_not_be_drawn(npz):
    pytest.importorskip("matplotlib", reason="--plot needs Matplotlib (the cli extra)")
    assert "expected terminal, or a file that ends in one of" in refused("train", npz, "--plot", "curves.doc")
    assert "there is no folder" in refused("train", npz, "--plot", "nowhere/curves.png")


def in_headers(data, local, central, value):
    """A zip file in whose headers the byte at one place of each local and central one is another."""
    data = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] = value
            at = data.find(mark, at + 1)
    return bytes(data)


DAMAGED = {
    "deflate": lambda good: good[:100] + b"\xff" * 20 + good[120:],
    "cut off": lambda good: good[: len(good) // 2],
    "encrypted": lambda good: in_headers(good, 6, 8, 1),
    "an unknown method": lambda good: in_headers(good, 8, 10, 99),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_npz_file(blobs, how):
    np.savez_compressed("bad.npz", x=blobs[0], y=blobs[1])
    good = Path("bad.npz").read_bytes()
    bad = DAMAGED[how](good)
    assert bad != good
    Path("bad.npz").write_bytes(bad)
    assert "bad.npz can't be read as a .npz file: " in refused("train", "bad.npz")


@pytest.mark.parametrize("shape", [(10**12, 4), (5, 10**30), (-3, 4), (10**7, 4)], ids=str)
def test_a_npz_file_that_lies_about_its_size(shape):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile("bad.npz", "w") as file:
        for name in ("x.npy", "y.npy"):
            file.writestr(name, member.getvalue() + bytes(80))
    assert "bad.npz can't be read as a .npz file: " in refused("train", "bad.npz")


def test_a_npz_file_of_no_arrays():
    with zipfile.ZipFile("bad.npz", "w") as file:
        file.writestr("x", b"hello")
        file.writestr("y", b"hello")
    assert "its member x is no array" in refused("train", "bad.npz")


@POSIX
@pytest.mark.parametrize("name", ["pipe.npz", "pipe.csv", "pipe.parquet"])
def test_data_is_never_waited_for(name, request):
    if not name.endswith("npz"):
        request.getfixturevalue("arrow")
    os.mkfifo(name)
    assert name in refused("train", name, *([] if name.endswith("npz") else ["--target", "y"]))
    os.symlink(os.devnull, f"null-{name}")
    assert name in refused("train", f"null-{name}", *([] if name.endswith("npz") else ["--target", "y"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a,y\n\xe9\xff,1\n2,0\n", "t.csv is not written in UTF-8"),
        (b"a,y\n1,caf\xe9\n2,tea\n", "t.csv is not written in UTF-8"),
        (b"\xe9a,y\n1,2\n", "t.csv is not written in UTF-8: say in what by --encoding"),
        ("a,y\n1,2\n".encode("utf-16"), "t.csv is written in UTF-16: say so by --encoding utf-16"),
        (b"a:b:y\n1:2:3\n", "t.csv has no column 'y': it has a:b:y (it is read as separated by ',': see --sep)"),
        (b'a,y\n"1,2\n2,3\n', "t.csv can't be read as .csv"),
        (b"a,y\n1,2,3\n", "t.csv can't be read as .csv"),
        (b"\n\n\n", "t.csv can't be read as .csv"),
        (b"a,y\n1,2\n", "t.csv has a single row"),
        (b"a,y\n1,NA\n2,nan\n", "the target 'y' of t.csv has no values: all are missing"),
        (b"a,y\nNA,1\nnull,2\n", "has no column to learn from"),
    ],
)
def test_text_that_can_not_be_used(arrow, text, words):
    Path("t.csv").write_bytes(text)
    assert words in refused("train", "t.csv", "--target", "y")


@pytest.mark.parametrize("text", ["\ufeffa,y\n{}", "a,y\r\n{}", "a,y\n\n{}\n\n", "a,y\r{}"])
def test_text_as_programs_write_it(arrow, text):
    end = "\r" if text == "a,y\r{}" else "\n"
    rows = end.join(f"{i % 5 / 4},{'uv'[i % 5 > 1]}" for i in range(50))
    Path("t.csv").write_bytes(text.format(rows).encode())
    assert ok("train", "t.csv", "--target", "y", *SMALL, "--json").json["accuracy"] > 0.9


@pytest.mark.parametrize("hidden", ["1" * 16, "9" * 5000, str(10**12), "1000000,1000000,1000000"])
def test_networks_that_no_memory_holds(npz, hidden):
    assert re.search("--hidden (is|makes)", refused("train", npz, "--quiet", "--hidden", hidden))


@pytest.mark.parametrize("option", ["--batch-size", "--seed", "--threads"])
def test_numbers_of_any_size(npz, option):
    ok("train", npz, *SMALL, "--epochs", "1", option, 10**30)


def test_files_that_would_be_overwritten(npz):
    assert "--output is blobs.npz, and so is DATA" in refused("train", npz, "--output", npz)
    ok("train", npz, *SMALL)
    Path("p.csv").symlink_to("model.safetensors")
    assert "--output is p.csv, and so is MODEL" in refused("predict", "model.safetensors", npz, "--output", "p.csv")
    if importlib.util.find_spec("matplotlib"):
        assert "--plot is a.svg, and so is --output" in refused("train", npz, "--output", "a.svg", "--plot", "./a.svg")


def test_a_picture_that_fails_leaves_the_model(npz, monkeypatch):
    pytest.importorskip("matplotlib", reason="--plot needs Matplotlib (the cli extra)")

    def fail(*args, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    Path("p.png").write_bytes(b"old")
    result = run("train", npz, *SMALL, "--plot", "p.png")
    assert (result.status, Path("p.png").read_bytes()) == (2, b"old")
    assert "can't be drawn: no ink. The model after 96 steps is in model.safetensors" in result.err
    ok("info", "model.safetensors")


@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_predictions_that_fail_leave_the_old_file(npz, kind, monkeypatch):
    ok("train", npz, *SMALL)
    Path(f"p.{kind}").write_bytes(b"old")

    def fail(file, *args, **options):
        file.write(b"half" if kind == "npy" else "half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.np.lib.format, "write_array_header_2_0", fail)
    monkeypatch.setattr(writing.csv, "writer", fail)
    assert "No space left on device" in refused("predict", "model.safetensors", npz, "--output", f"p.{kind}")
    assert Path(f"p.{kind}").read_bytes() == b"old"
    assert sorted(p.name for p in Path().iterdir()) == ["blobs.npz", "model.safetensors", f"p.{kind}"]


def test_what_steers_a_terminal_is_written_out(arrow):
    name, classes = "a\x1b[31m\u202e", ["\x1b]0;x\x07", "b\nc"]
    write_table(arrow, "t.parquet", **{name: np.linspace(-1, 1, 60), "y": np.array(classes)[np.arange(60) // 30]})
    ok("train", "t.parquet", "--target", "y", *SMALL, "--epochs", "20")
    lines = ok("predict", "model.safetensors", "t.parquet").out.splitlines()
    assert set(lines) == {r"\x1b]0;x\x07", r"b\nc"}
    assert set(ok("predict", "model.safetensors", "t.parquet", "--json").json["predictions"]) == set(classes)
    os.rename("model.safetensors", "\x1b[1m.safetensors")
    assert r"\x1b[1m" in ok("train", "t.parquet", "--target", "y", *SMALL, "--output", "\x1b[1m.safetensors").out
    assert r"no column '\x1b': " in refused("train", "t.parquet", "--target", "\x1b").replace("\\\\", "\\")
    loaded = bp.load("\x1b[1m.safetensors")
    loaded.settings = {"training": loaded.settings["training"] | {"data": "\x1b[2J", "bpnet": "\x9b"}}
    loaded.save("m.safetensors")
    for args in (("info", "m.safetensors"), ("info", "m.safetensors", "--json")):
        assert "\x1b" not in ok(*args).out
        assert "\x9b" not in ok(*args).out
    assert "\x1b" not in refused("info", "\x1b[2J.safetensors")


@pytest.mark.parametrize("name", ["none.npz", "none.csv", "none.parquet"])
def test_data_that_does_not_exist(name, request):
    target = []
    if not name.endswith("npz"):
        request.getfixturevalue("arrow")
        target = ["--target", "y"]
    assert refused("train", name, *target) == f"bpnet: {name}: No such file or directory\n"


def test_data_that_is_no_data(arrow):
    for name in ("bad.npz", "bad.csv", "bad.parquet"):
        Path(name).write_bytes(b"\x00\xff\xfe nothing of the kind \x80\n" * 3)
        options = [] if name == "bad.npz" else ["--target", "y"]
        assert name in refused("train", name, *options)
        Path(name).write_bytes(b"")
        assert name in refused("train", name, *options)
        Path(name).unlink()
        Path(name).mkdir()
        assert name in refused("train", name, *options)
    Path("words.txt").write_text("a,b\n1,2\n")
    assert "DATA must be digits, - for standard input, or a file that ends in .csv, " in refused("train", "words.txt")
    assert "did you mean digits?" in refused("train", "digit")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.ones((3, 2))}, "has no array 'y': expected x and y, found x"),
        ({"a": np.ones((3, 2))}, "has no array 'x'"),
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, "y in bad.npz has the shape (4,)"),
        ({"x": np.ones(3), "y": np.ones(3)}, "x in bad.npz has the shape (3,)"),
        ({"x": np.ones((3, 2)), "y": np.float64(1)}, "y in bad.npz has the shape ()"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "bad.npz has no rows"),
        ({"x": np.ones((1, 2)), "y": np.ones(1)}, "bad.npz has a single row"),
        ({"x": np.ones((3, 2), complex), "y": np.ones(3)}, "x in bad.npz has the type complex128"),
        ({"x": np.full((3, 2), "a"), "y": np.ones(3)}, "x in bad.npz has the type <U1"),
        ({"x": np.ones((3, 2)), "y": np.ones(3, complex)}, "y in bad.npz has the type complex128"),
        ({"x": np.array([[1.0], [np.inf], [1.0]]), "y": np.ones(3)}, "x in bad.npz has infinity, first in row 2"),
        ({"x": np.ones((3, 2)), "y": np.array([1.0, 2.0, np.inf])}, "y in bad.npz has NaN or infinity"),
        ({"x": np.ones((3, 2)), "y": np.array([1, 1, 1])}, "the single class 1"),
        ({"x": np.ones((3, 2)), "y": np.ones((3, 2), int)}, "y in bad.npz has the shape (3, 2)"),
        ({"x": np.array([[object()]] * 3), "y": np.ones(3)}, "can't be read as a .npz file"),
    ],
)
def test_arrays_that_can_not_be_used(arrays, words):
    np.savez("bad.npz", **arrays)
    assert words in refused("train", "bad.npz")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64"])
def test_features_of_any_type(dtype):
    x = np.random.default_rng(0).integers(0, 2, (200, 3)).astype(dtype)
    np.savez("t.npz", x=x, y=x[:, 1].astype(bool))
    assert ok("train", "t.npz", *SMALL, "--json").json["accuracy"] == 1.0


def test_a_single_array_is_no_npz_file():
    with open("one.npz", "wb") as file:
        np.save(file, np.ones((3, 2)))
    assert "it holds a single array" in refused("train", "one.npz")


def test_columns_that_can_not_be_used(arrow):
    good = {"a": [1.0, 2.0, 3.0], "y": ["u", "v", "u"]}
    cases = [
        ({}, "--target must name the column of t.csv to predict: a, y\n", []),
        ({"": [1, 2, 3]}, "--target must name the column of t.csv to predict: a, y, column 3 (unnamed)\n", []),
        ({}, "has no column 'yy': did you mean 'y'? it has a, y", ["--target", "yy"]),
        ({"a": [1.0, 2.0, float("inf")]}, "column 'a' of t.csv is infinite in row 3", ["--target", "y"]),
        ({"y": [1.5, 2.0, float("inf")]}, "the target 'y' of t.csv is infinite in row 3", ["--target", "y"]),
    ]
    for columns, words, options in cases:
        write_table(arrow, "t.csv", **(good | columns))
        assert words in refused("train", "t.csv", *options)
    Path("t.csv").write_text("y\n1\n2\n")
    assert "no column beside the target 'y'" in refused("train", "t.csv", "--target", "y")
    Path("t.csv").write_text("a,a,y\n1,2,3\n")
    assert "more than one column 'a'" in refused("train", "t.csv", "--target", "y")
    Path("t.csv").write_text("a,,y,\n1,2,3,4\n")
    assert "more than one column without a name: numbers 2 and 4" in refused("train", "t.csv", "--target", "y")
    Path("t.csv").write_text("a,y\n")
    assert "t.csv has no rows" in refused("train", "t.csv", "--target", "y")
    Path("t.csv").write_text("a,y\n1,2\n3\n")
    assert "t.csv can't be read as .csv" in refused("train", "t.csv", "--target", "y")
    write_table(arrow, "t.parquet", a=[1.0, 2.0], when=np.array(["2020-01-01", "2020-01-02"], "datetime64[s]"))
    assert "the target 'when' of t.parquet is a date (datetime64[ms]); expected labels or numbers" in refused(
        "train", "t.parquet", "--target", "when"
    )
    write_table(arrow, "t.parquet", a=[1.0, 2.0], some=[[1, 2], [3]])
    assert "column 'some' of t.parquet holds list" in refused("train", "t.parquet", "--target", "a")


def test_losses_that_do_not_fit_the_target(npz):
    np.savez("numbers.npz", x=np.ones((9, 2)), y=np.linspace(0, 1, 9))
    assert "cross_entropy needs classes" in refused("train", "numbers.npz", "--loss", "cross_entropy")
    np.savez("words.npz", x=np.ones((9, 2)), y=np.array(list("abcabcabc")))
    assert "mse needs numbers" in refused("train", "words.npz", "--loss", "mse")
    assert "which is for programs in Python" in refused("train", "numbers.npz", "--loss", "kl_divergence")


def test_files_that_are_no_models(npz):
    Path("empty.safetensors").write_bytes(b"")
    Path("noise.safetensors").write_bytes(os.urandom(1000))
    Path("folder.safetensors").mkdir()
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3)}, "other.safetensors")
    for name in ("none", "empty", "noise", "folder", "other"):
        model = f"{name}.safetensors"
        for command in (("evaluate", model, npz), ("predict", model, npz), ("info", model)):
            assert model in refused(*command)


def test_data_that_does_not_fit_the_model(npz, arrow):
    ok("train", npz, *SMALL)
    np.savez("wide.npz", x=np.ones((3, 5)), y=np.ones(3, int))
    assert "wide.npz has 5 numbers a row; the model was trained on 2" in refused(
        "evaluate", "model.safetensors", "wide.npz"
    )
    np.savez("strange.npz", x=np.ones((3, 2)), y=np.array([0, 1, 7]))
    assert "has the class 7 in row 3; the model knows 0, 1, 2" in refused(
        "evaluate", "model.safetensors", "strange.npz"
    )
    np.savez("bare.npz", x=np.ones((3, 2)))
    assert "has no array 'y'" in refused("evaluate", "model.safetensors", "bare.npz")
    assert len(ok("predict", "model.safetensors", "bare.npz").out.splitlines()) == 3
    assert "expected a .csv, .parquet, .jsonl or .npy file" in refused(
        "predict", "model.safetensors", "bare.npz", "--output", "p.txt"
    )
    assert "there is no folder" in refused("predict", "model.safetensors", "bare.npz", "--output", "no/p.csv")


@pytest.mark.parametrize(
    "damage",
    [
        {"split": []},
        {"split": {"rows": 240, "fraction": "x", "seed": 0}},
        {"split": {"rows": 240, "fraction": 1e300, "seed": 0}},
        {"split": {"rows": 240, "fraction": 0.2, "seed": -1}},
        {"split": {"rows": 240, "fraction": 0.0, "seed": 0}, "seen": 3},
        {"split": {"rows": 240, "fraction": 0.0, "seed": 0}, "seen": {"every": 0, "hashes": "", "alike": 0.0}},
        {"split": {"rows": 240, "fraction": 0.0, "seed": 0}, "seen": {"every": 1, "hashes": "?", "alike": 0.0}},
    ],
    ids=str,
)
def test_a_model_whose_settings_are_damaged(npz, trained, damage):
    loaded = bp.load(trained)
    loaded.settings = loaded.settings | damage
    loaded.save("m.safetensors")
    assert "is damaged" in refused("evaluate", "m.safetensors", npz)
    ok("predict", "m.safetensors", npz)


@pytest.mark.parametrize("damage", [[], 3, {"data": "t"}, {"loss": "much"}], ids=str)
def test_a_model_whose_record_of_training_is_damaged(npz, trained, damage):
    loaded = bp.load(trained)
    known = loaded.settings["training"]
    damaged = known | damage if isinstance(damage, dict) and "loss" in damage else damage
    loaded.settings = loaded.settings | {"training": damaged}
    loaded.save("m.safetensors")
    assert "is damaged" in refused("info", "m.safetensors")
    ok("evaluate", "m.safetensors", npz)


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "b"], "abc", 3, [[], [], []], [None, 1, 2]], ids=str)
def test_classes_that_do_not_fit_the_outputs(classes):
    trainer = bp.Trainer(bp.Sequential(bp.Dense(3)), "cross_entropy").build(np.ones((1, 2)))
    trainer.classes = classes
    with pytest.raises(ArgumentError, match="expected 3 different names"):
        trainer.save("model.safetensors")


# ---- in a process of its own ----------------------------------------------------------------------------------------


def test_as_a_module(npz):
    with start("train", npz, *SMALL, "--json") as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["accuracy"] > 0.9


def test_a_missing_file_is_named():
    assert refused("evaluate", "none.safetensors", "none.npz") == "bpnet: none.safetensors: no such file\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from bpnet.__main__ import main; main()"
    found = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == f"bpnet: the command line needs {missing}: pip install 'bpnet-xp[cli]'\n"


@pytest.mark.parametrize(
    ("missing", "args"),
    [("sklearn", ["digits"]), ("pyarrow", ["t.csv", "--target", "y"]), ("matplotlib", ["t.npz", "--plot", "p.png"])],
)
def test_without_one_library_of_the_extra(missing, args, monkeypatch):
    users = ("bpnet.cli.columns", "bpnet.plots.figures")
    for name in [name for name in sys.modules if name.split(".")[0] == missing or name in users]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert "pip install 'bpnet-xp[cli]'" in refused("train", *args)


@POSIX
def test_ctrl_c_saves_what_was_learnt(npz):
    options = ("--epochs", "1000000", "--hidden", "8", "--lr", "0.02", "--output", "half.safetensors")
    with start("train", npz, *options) as process:
        for line in process.stderr:  # until it has trained for some epochs
            if line.startswith("epoch") and int(line.split()[1].split("/")[0]) >= 50:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert re.search(r"interrupted after [\d,]+ steps; what was learnt until then is saved", out)
    assert "model: half.safetensors" in out
    found = ok("info", "half.safetensors", "--json").json
    evaluated = ok("evaluate", "half.safetensors", npz, "--json").json
    assert evaluated["accuracy"] == found["training"]["accuracy"] > 0.8
    assert found["training"]["interrupted"] is True


SIGNALS = [
    pytest.param(name, status, marks=[] if name == "SIGINT" else POSIX)
    for name, status in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129))
]


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize(("name", "status"), SIGNALS)
def test_a_signal_ends_training_at_a_step(npz, presses, name, status, monkeypatch):
    on_step_end = train.Interrupt.on_step_end
    number = getattr(signal, name)
    monkeypatch.setattr(signal, "SIG_IGN", None)  # as it would be for a process that was started in the background
    before = signal.getsignal(number)

    def press(self, trainer, step):
        if trainer.step_count == 17:
            for _ in range(presses):
                signal.raise_signal(number)
        on_step_end(self, trainer, step)

    monkeypatch.setattr(train.Interrupt, "on_step_end", press)
    result = run("train", npz, *SMALL, "--json")
    assert (result.status, result.err) == (status, "")
    assert signal.getsignal(number) is before
    assert result.json["interrupted"] is True
    assert (result.json["steps"], result.json["epochs"]) == (17, 1)
    assert bp.load("model.safetensors").trainer.step_count == 17
    assert ok("evaluate", "model.safetensors", npz, "--json").json["loss"] == pytest.approx(result.json["loss"])


@POSIX
def test_a_training_that_a_signal_has_ended_goes_on_in_the_midst_of_its_epoch(npz, monkeypatch):
    command = ("train", npz, *SMALL, "--checkpoint", "saved", "--every", "1000")
    end = train.Interrupt.on_step_end

    def press(self, trainer, step):
        end(self, trainer, step)
        if trainer.step_count == 17:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(train.Interrupt, "on_step_end", press)
        result = run(*command)
    assert result.status == 143
    assert "terminated after 17 steps; what was learnt until then is saved\n" in result.out
    assert "/saved/step-0000000017.safetensors; --resume goes on from there\n" in result.out
    loud = [option for option in command if option != "--quiet"]
    resumed, whole = run(*loud, "--resume"), ok("train", npz, *SMALL, "--json").json
    assert "resuming after epoch 1, " in resumed.out
    found = bp.load("model.safetensors").trainer.history
    assert [record["loss"] for record in found] == [record["loss"] for record in whole["history"]]
    assert "the training in saved was complete after epoch " in run(*loud, "--resume").out


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_that_come_in_numbers_lose_nothing(npz, name, monkeypatch):
    evaluate, end = train.evaluate_rows, train.Interrupt.on_step_end
    number = getattr(signal, name)
    monkeypatch.setattr(signal, "SIG_IGN", None)

    def signalled(function):
        def call(*args):
            signal.raise_signal(number)
            return function(*args)

        return call

    monkeypatch.setattr(train, "evaluate_rows", signalled(evaluate))
    monkeypatch.setattr(train.Interrupt, "on_step_end", signalled(end))
    monkeypatch.setattr(bp.Trainer, "save", signalled(bp.Trainer.save))
    monkeypatch.setattr(terminal, "report", signalled(terminal.report))
    result = run("train", npz, *SMALL, "--json")
    assert (result.status, result.err) == (128 + number, "")
    assert result.json["steps"] == bp.load("model.safetensors").trainer.step_count == 1


@pytest.mark.parametrize("first", ["SIGINT", pytest.param("SIGTERM", marks=POSIX)])
def test_a_further_ctrl_c_ends_at_once(npz, first, monkeypatch):
    end = train.Interrupt.on_step_end
    press = lambda *args: (signal.raise_signal(getattr(signal, first)), end(*args))  # noqa: E731
    monkeypatch.setattr(signal, "SIG_IGN", None)
    monkeypatch.setattr(train.Interrupt, "on_step_end", press)
    monkeypatch.setattr(train, "evaluate_rows", lambda *args: signal.raise_signal(signal.SIGINT))
    result = run("train", npz, *SMALL)
    assert (result.status, result.out, result.err) == (130, "", "bpnet: interrupted, nothing was saved\n")
    assert not Path("model.safetensors").exists()


def test_ctrl_c_before_there_is_anything_to_save(npz, monkeypatch):
    def press(*args, **options):  # Python's own handler is not there in a process that was started in the background
        signal.default_int_handler(signal.SIGINT, None)

    monkeypatch.setattr(train, "read", press)
    result = run("train", npz)
    assert (result.status, result.out, result.err) == (130, "", "bpnet: interrupted, nothing was saved\n")


@POSIX
def test_a_signal_before_there_is_anything_to_save(npz, monkeypatch):
    monkeypatch.setattr(train, "read", lambda *args, **options: signal.raise_signal(signal.SIGTERM))
    result = run("train", npz)
    assert (result.status, result.out, result.err) == (143, "", "bpnet: terminated, nothing was saved\n")


@POSIX
def test_nohup_is_heeded(npz, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        end = train.Interrupt.on_epoch_end
        monkeypatch.setattr(
            train.Interrupt, "on_epoch_end", lambda *args: (signal.raise_signal(signal.SIGHUP), end(*args))
        )
        assert ok("train", npz, *SMALL, "--json").json["interrupted"] is False
    finally:
        signal.signal(signal.SIGHUP, before)


@POSIX
@pytest.mark.parametrize("closed", [[1], [0, 1, 2]], ids=str)
def test_closed_streams_lose_nothing(npz, closed):
    names = ["stdin", "stdout", "stderr"]
    redirected = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    options = {names[number]: subprocess.DEVNULL for number in closed}
    command = ["sh", "-c", f'exec "$0" "$@" {redirected}', sys.executable, "-m", "bpnet", "train", npz, "--epochs", "1"]
    found = subprocess.run(command, env=environment(), timeout=120, check=False, **options)
    assert found.returncode == 0
    assert ok("evaluate", "model.safetensors", npz).out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_messages_that_nobody_can_take_lose_nothing(npz):
    with open("/dev/full", "w") as full, start("train", npz, "--epochs", "1", stderr=full) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "model: model.safetensors" in out


def test_import_of_bpnet_does_not_import_the_command_line():
    heavy = ("typer", "rich", "pyarrow", "matplotlib", "sklearn")
    code = f"import sys, bpnet; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
