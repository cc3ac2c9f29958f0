"""The command line, from the outside: what it prints, writes and returns."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bpnet as bp

pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
pytest.importorskip("rich", reason="the command line needs rich (the cli extra)")

from bpnet import cli

SMALL = ("--hidden", "16", "--epochs", "8", "--batch-size", "16", "--lr", "0.02", "--dropout", "0", "--quiet")


POSIX = pytest.mark.skipif(os.name != "posix", reason="there are no POSIX devices and signals here")


class Result:
    """What a command did."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


def run(*args):
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        cli.app([str(a) for a in args], prog_name="bpnet")
    return Result(stopped.value.code or 0, out.getvalue(), err.getvalue())


def ok(*args):
    """Run a command that must succeed."""
    result = run(*args)
    assert result.status == 0, result.err
    return result


def refused(*args):
    """Run a command that must fail with one line on stderr, exit status 2 and nothing on stdout; the line."""
    result = run(*args)
    assert (result.status, result.out) == (2, ""), result.err
    assert re.fullmatch(r"bpnet: [^\n]+\n", result.err), result.err
    return result.err


def environment():
    """For a subprocess that is to use the bpnet under test, wherever it starts."""
    return os.environ | {"PYTHONPATH": str(Path(bp.__file__).parents[1])}


def start(*args, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "bpnet", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(), **(pipes | options))


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
        "legs": np.full(240, 4),
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
    assert result["seconds"] < 60
    assert result["output"] == str(model)
    assert result["interrupted"] is False
    assert len(result["history"]) == result["epochs"] == 40
    assert result["history"][-1]["val_accuracy"] == result["accuracy"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_digits_reach_97_percent_from_other_seeds(seed):
    pytest.importorskip("sklearn", reason="the digits data need scikit-learn (the cli extra)")
    assert ok("train", "digits", "--json", "--seed", seed).json["accuracy"] >= 0.97


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
    np.savez("again.npz", x=(x / 16).astype(np.float32), y=y)
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
    scores = bp.load(digits[1]).evaluate((x / 16).astype(np.float32), y)
    assert scores["accuracy"] > 0.98


def test_info_about_a_model(digits):
    result, model = digits
    found = ok("info", model, "--json").json
    assert found["parameters"] == result["parameters"] == 64 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    assert [layer["out_shape"] for layer in found["layers"]] == [[512], [512], [256], [256], [10]]
    assert found["epochs"] == 40
    assert found["precision"] == "float32"
    assert found["classes"] == list(range(10))
    assert found["training"]["accuracy"] == result["accuracy"]
    text = ok("info", model).out
    assert "Dense(units=512, activation='relu', bias=True)" in text
    assert "167,178" in text
    assert "products in float32" in text
    assert "trained on digits, 1,438 rows, 359 held out" in text


def test_the_same_seed_gives_the_same_model(digits):
    again = ok("train", "digits", "--json").json
    assert [e["loss"] for e in again["history"]] == [e["loss"] for e in digits[0]["history"]]


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
    for command in ("train", "evaluate", "predict", "info"):
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
    assert result["history"][-1]["val_loss"] == pytest.approx(result["loss"], rel=1e-4)
    predictions = np.array(ok("predict", "model.safetensors", "prices.csv", "--json").json["predictions"])
    error = np.mean((predictions - price) ** 2)
    assert error < 0.01 * price.var()
    held_out = ok("evaluate", "model.safetensors", "prices.csv", "--json").json
    assert held_out["accuracy"] is None
    assert held_out["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert held_out["loss"] == pytest.approx(error, rel=1.0)
    assert re.search(r"R2 (0\.99|1\.0)", ok(*train).out)


def test_whole_numbers_can_be_predicted_as_numbers(arrow):
    write_table(arrow, "count.csv", x=np.arange(100.0), y=np.arange(100))
    train = ("train", "count.csv", "--target", "y", "--epochs", "1")
    assert "100 classes" in ok(*train).out
    assert "--loss mse predicts a number" in ok(*train).err
    assert "y is a number" in ok(*train, "--loss", "mse").out
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
    assert ok("info", "model.safetensors", "--json").json["layers"][0]["layer"] == "Flatten()"
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
    assert layers[:2] == [f"Dense(units=8, activation='{activation}', bias=True)", "Dropout(rate=0.1)"]
    assert len(layers) == 5


def test_no_hidden_layer(npz):
    assert ok("train", npz, "--hidden", "", "--epochs", "1", "--json").json["parameters"] == 9


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
        (("--optimizer", "adma"), "did you mean 'adam'"),
        (("--backend", "nunpy"), "did you mean 'numpy'?"),
        (("--hidden", "12,x"), "--hidden is '12,x'; expected whole numbers"),
        (("--hidden", "0"), "--hidden is '0'"),
        (("--lr", "-1"), "lr is -1"),
        (("--lr", "nan"), "lr is nan"),
        (("--dropout", "1"), "rate is 1"),
        (("--validation", "1"), "--validation is 1"),
        (("--validation", "nan"), "--validation is nan"),
        (("--output", "nowhere/model.safetensors"), "there is no directory nowhere"),
        (("--output", "."), "which is a directory"),
        pytest.param(("--output", os.devnull), "which is a device", marks=POSIX),
        (("--target", "y"), "--target names a column of a .csv or .parquet file"),
    ],
)
def test_wrong_options(npz, args, words):
    assert words in refused("train", npz, "--quiet", *args)
    assert not Path("model.safetensors").exists()


def test_a_diverged_training_keeps_what_it_learnt_before(npz):
    result = run("train", npz, "--quiet", "--lr", "1e30", "--optimizer", "sgd")
    assert (result.status, result.out) == (2, "")
    assert "diverged at step" in result.err
    assert "They are in model.safetensors" in result.err
    assert ok("info", "model.safetensors").out


@pytest.mark.parametrize("args", [("--epochs", "0"), ("--batch-size", "x"), ("--seed", "-1"), ("--nope",)])
def test_options_that_are_no_options(npz, args):
    result = run("train", npz, *args)
    assert (result.status, result.out) == (2, "")
    assert args[0] in result.err


def test_a_directory_that_takes_no_files(npz, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli.tempfile, "NamedTemporaryFile", refuse)
    assert "nothing can be written there: Permission denied" in refused("train", npz, "--output", "m.safetensors")


def test_pictures_that_can_not_be_drawn(npz):
    pytest.importorskip("matplotlib", reason="--plot needs Matplotlib (the cli extra)")
    assert "expected a file that ends in one of" in refused("train", npz, "--plot", "curves.txt")
    assert "there is no directory" in refused("train", npz, "--plot", "nowhere/curves.png")


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
    assert "DATA must be digits, or a .npz, .csv or .parquet file" in refused("train", "words.txt")
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
        (
            {"x": np.array([[1.0], [np.nan], [1.0]]), "y": np.ones(3)},
            "x in bad.npz has NaN or infinity, first in row 2",
        ),
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
        ({}, "--target must say which column of t.csv is to be learnt: a, y", []),
        ({}, "has no column 'yy': did you mean 'y'? it has a, y", ["--target", "yy"]),
        ({"city": ["Rom", "Bern", "Rom"]}, "column 'city' of t.csv has the type string", ["--target", "y"]),
        ({"a": [1.0, None, 3.0]}, "column 'a' of t.csv has 1 missing value, first in row 2", ["--target", "y"]),
        ({"y": ["u", "v", None]}, "column 'y' of t.csv has 1 missing value, first in row 3", ["--target", "y"]),
        ({"a": [1.0, 2.0, float("inf")]}, "column 'a' of t.csv has NaN or infinity, first in row 3", ["--target", "y"]),
        ({"y": [1.0, 2.0, float("inf")]}, "column 'y' of t.csv has NaN or infinity, first in row 3", ["--target", "y"]),
    ]
    for columns, words, options in cases:
        write_table(arrow, "t.csv", **(good | columns))
        assert words in refused("train", "t.csv", *options)
    Path("t.csv").write_text("y\n1\n2\n")
    assert "no column beside the target 'y'" in refused("train", "t.csv", "--target", "y")
    Path("t.csv").write_text("a,a,y\n1,2,3\n")
    assert "more than one column 'a'" in refused("train", "t.csv", "--target", "y")
    Path("t.csv").write_text("a,y\n")
    assert "t.csv has no rows" in refused("train", "t.csv", "--target", "y")
    Path("t.csv").write_text("a,y\n1,2\n3\n")
    assert "t.csv can't be read as .csv" in refused("train", "t.csv", "--target", "y")
    write_table(arrow, "t.parquet", a=[1.0, 2.0], when=np.array(["2020-01-01", "2020-01-02"], "datetime64[s]"))
    assert "the target 'when' of t.parquet has the type" in refused("train", "t.parquet", "--target", "when")
    assert "column 'when' of t.parquet has the type" in refused("train", "t.parquet", "--target", "a")


def test_losses_that_do_not_fit_the_target(npz):
    np.savez("numbers.npz", x=np.ones((9, 2)), y=np.linspace(0, 1, 9))
    assert "cross_entropy needs classes" in refused("train", "numbers.npz", "--loss", "cross_entropy")
    np.savez("words.npz", x=np.ones((9, 2)), y=np.array(list("abcabcabc")))
    assert "mse needs numbers" in refused("train", "words.npz", "--loss", "mse")


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
    assert "wide.npz has rows of the shape (5,); the model was trained on (2,)" in refused(
        "evaluate", "model.safetensors", "wide.npz"
    )
    np.savez("strange.npz", x=np.ones((3, 2)), y=np.array([0, 1, 7]))
    assert "has the class 7; the model knows 0, 1, 2" in refused("evaluate", "model.safetensors", "strange.npz")
    np.savez("bare.npz", x=np.ones((3, 2)))
    assert "has no array 'y'" in refused("evaluate", "model.safetensors", "bare.npz")
    assert len(ok("predict", "model.safetensors", "bare.npz").out.splitlines()) == 3
    assert "expected a .npy or .csv file" in refused("predict", "model.safetensors", "bare.npz", "--output", "p.txt")
    assert "there is no directory" in refused("predict", "model.safetensors", "bare.npz", "--output", "no/p.csv")


def test_a_model_whose_recipe_is_damaged(npz):
    ok("train", npz, *SMALL)
    trainer = bp.load("model.safetensors")
    trainer.save("model.safetensors", {cli.KEY: {"recipe": {"nonsense": 1}}})
    assert "damaged" in refused("evaluate", "model.safetensors", npz)


# ---- in a process of its own ----------------------------------------------------------------------------------------


def test_as_a_module(npz):
    with start("train", npz, *SMALL, "--json") as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["accuracy"] > 0.9


def test_no_traceback_for_a_missing_file():
    with start("evaluate", "none.safetensors", "none.npz") as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err == "bpnet: none.safetensors: no such file\n"


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
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
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


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_training_at_a_step(npz, presses, monkeypatch):
    on_step_end = cli.Interrupt.on_step_end

    def press(self, trainer, step):
        if trainer.step_count == 17:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        on_step_end(self, trainer, step)

    monkeypatch.setattr(cli.Interrupt, "on_step_end", press)
    result = run("train", npz, *SMALL, "--json")
    assert (result.status, result.err) == (130, "")
    assert result.json["interrupted"] is True
    assert (result.json["steps"], result.json["epochs"]) == (17, 1)
    assert bp.load("model.safetensors").step_count == 17
    assert ok("evaluate", "model.safetensors", npz, "--json").json["loss"] == pytest.approx(result.json["loss"])


def test_ctrl_c_before_there_is_anything_to_save(npz, monkeypatch):
    def press(*args):  # Python's own handler is not there in a process that was started in the background
        signal.default_int_handler(signal.SIGINT, None)

    monkeypatch.setattr(cli, "read", press)
    result = run("train", npz)
    assert (result.status, result.out, result.err) == (130, "", "bpnet: interrupted, nothing was saved\n")


def test_import_of_bpnet_does_not_import_the_command_line():
    heavy = ("typer", "rich", "pyarrow", "matplotlib", "sklearn")
    code = f"import sys, bpnet; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
