"""The command line on tables as they come: formats, text, gaps, dates, and what is said of them."""

import gzip
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import DataError

pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
pytest.importorskip("pyarrow", reason="reading tables needs pyarrow (the cli extra)")

import pyarrow as pa
from pyarrow import feather, ipc, parquet

from bpnet.cli import text
from bpnet.cli.dataset import Request, read
from bpnet.cli.sources import TextOptions
from tests.support.command import ok, refused, run

SMALL = ("--hidden", "16", "--epochs", "12", "--batch-size", "16", "--lr", "0.02", "--dropout", "0", "--quiet")

ISLANDS, KINDS = ("Hooge", "Föhr, west", "Amrum"), ("gull", "tern", "eider")


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def birds(rows=150, seed=0):
    """A table with text, gaps, dates and booleans, whose kinds can be told apart."""
    rng = np.random.default_rng(seed)
    kind = np.arange(rows) % 3
    mass = [None if i % 17 == 5 else round(float(300 + 400 * k + rng.normal() * 60), 1) for i, k in enumerate(kind)]
    island = [None if i % 23 == 7 else ISLANDS[(k + (rng.random() < 0.2)) % 3] for i, k in enumerate(kind)]
    day = np.datetime64("2021-05-01") + rng.integers(0, 60, rows) + 100 * (kind == 2)
    ringed = [bool(r) for r in rng.random(rows) < 0.5]
    return {
        "ring": [f"R{i:04}" for i in range(rows)],
        "mass": mass,
        "island": island,
        "seen": day.astype(str).tolist(),
        "ringed": ringed,
        "kind": [KINDS[k] for k in kind],
    }


def as_text(columns, sep=",", null=""):
    """As a program writes it."""

    def cell(value):
        text = null if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        return f'"{text}"' if sep in text else text

    rows = zip(*columns.values(), strict=True)
    return "\n".join([sep.join(columns), *(sep.join(map(cell, row)) for row in rows)]) + "\n"


@pytest.fixture
def csv():
    Path("birds.csv").write_text(as_text(birds()), encoding="utf-8")
    return "birds.csv"


def write(kind, columns):
    """The table as a file of a kind, or on standard input; what DATA names it."""
    name, plain = f"birds{kind}", as_text(columns, "\t" if "tsv" in kind else ";" if "semi" in kind else ",")
    table = pa.table({k: pa.array(v) for k, v in columns.items()})
    if kind == ".parquet":
        parquet.write_table(table, name)
    elif kind == ".feather":
        feather.write_feather(table, name)
    elif kind == ".arrow":
        with ipc.new_stream(name, table.schema) as stream:
            stream.write_table(table)
    elif kind.endswith(".zst"):
        with pa.CompressedOutputStream(name, "zstd") as stream:
            stream.write(plain.encode())
    elif kind.endswith(".gz"):
        Path(name).write_bytes(gzip.compress(plain.encode()))
    else:
        Path(name).write_text(plain, encoding="utf-8")
    return name


def table(data, **request):
    """What is read: values by the names of columns, text without codes."""
    found = read(data, Request(labelled=False, **request)).frame
    return {name: found.column(name).tolist() for name in found.names}


# ---- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [".csv", ".tsv", "-semi.csv", ".csv.gz", ".tsv.zst", ".parquet", ".feather", ".arrow", "stdin", "packed"]
)
def test_every_format_gives_the_same_table(kind, monkeypatch):
    columns = birds(40)
    if kind in ("stdin", "packed"):
        name = write(".csv" if kind == "stdin" else ".csv.gz", columns)
        stream = io.TextIOWrapper(io.BytesIO(Path(name).read_bytes()))
        monkeypatch.setattr("sys.stdin", stream)
        found = table("-")
    else:
        found = table(write(kind, columns))
    assert list(found) == list(columns)
    assert found["mass"] == pytest.approx([np.nan if v is None else v for v in columns["mass"]], nan_ok=True, rel=1e-6)
    assert found["island"] == columns["island"]
    assert [str(day)[:10] for day in found["seen"]] == columns["seen"]
    assert found["ringed"] == columns["ringed"]
    assert found["kind"] == columns["kind"]


def one_column(lines, sep=None, **options):
    Path("t.csv").write_text("a" + (sep or ",") + "b\n" + "".join(f"{line}{sep or ','}x\n" for line in lines))
    found = read("t.csv", Request(labelled=False, text=TextOptions(sep, **options))).frame.column("a")
    return found.tolist()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1", "2", ""], [1.0, 2.0, None]),
        (["1", "-2", "+3"], [1, -2, 3]),
        (["1", "NA", "2.5", "?", "null"], [1.0, None, 2.5, None, None]),
        ([" 1", "2 ", " ? "], [1.0, 2.0, None]),
        (["007", "012"], ["007", "012"]),
        (["0.5", "0", "-0.25"], [0.5, 0.0, -0.25]),
        (["1", "x"], ["1", "x"]),
        (["true", "False", ""], [True, False, None]),
        (["1", "true"], ["1", "true"]),
        (['"1,234.5"', "2", '"12,000"'], [1234.5, 2.0, 12000.0]),
        (['"1,5"', "2"], ["1,5", "2"]),
        (["1e3", "inf"], [1000.0, np.inf]),
        (["", "NA"], [None, None]),
        (['"a\nb"', "c"], ["a\nb", "c"]),
    ],
    ids=str,
)
def test_what_a_column_of_text_is(lines, expected):
    found = one_column(lines)
    assert [None if value != value else value for value in found] == expected


def test_a_comma_means_what_the_separator_leaves_it():
    assert one_column(["1,5", "-2,25", "3"], sep=";") == [1.5, -2.25, 3.0]
    assert one_column(["1.5", "2,5"], sep="\t") == [1.5, 2.5]


@pytest.mark.parametrize(
    "lines",
    [["1"] * 9 + ["2.5"], ["1"] * 9 + ["x"], [""] * 9 + ["2"], ["true"] * 9 + ["no"], ["1"] * 9 + ["007"]],
    ids=["integers, a fraction", "integers, text", "gaps, a number", "booleans, text", "integers, a code"],
)
def test_a_later_block_decides_what_a_column_is(lines, monkeypatch):
    whole = one_column(lines)
    monkeypatch.setattr(text, "BLOCKS", (24, 1 << 20))
    assert np.array_equal(np.array(one_column(lines), object), np.array(whole, object)) or whole[0] != whole[0]
    assert one_column(lines)[-1] == whole[-1]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (lambda i: f"{np.sin(i):.6f}", "float32"),
        (lambda i: f"{1_700_000_000 + i}.5", "float64"),
        (lambda i: f"{1_700_000_000 + i // 10}.5", "float64"),
        (lambda i: f"{i / 7}" if i > 50 else "0.5", "float32"),
        (lambda i: f"{i / 7}" if i < 90 else "1e100", "float64"),
        (lambda i: str(i) if i < 50 else f"{i / 7}", "float32"),
    ],
)
def test_numbers_of_a_file_lose_nothing_that_tells_them_apart(values, dtype, monkeypatch):
    monkeypatch.setattr(text, "BLOCKS", (128, 1 << 20))
    lines = [values(i) for i in range(100)]
    Path("t.csv").write_text("a,y\n" + "".join(f"{line},{i % 2}\n" for i, line in enumerate(lines)))
    found = read("t.csv", Request(targets=("y",))).frame.column("a")
    expected = np.array(lines, dtype=float)
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()


def test_a_row_that_is_longer_than_a_block(monkeypatch):
    monkeypatch.setattr(text, "BLOCKS", (24, 1 << 20))
    assert one_column(["1", "y" * 100]) == ["1", "y" * 100]


def test_encodings():
    Path("t.csv").write_bytes("größe,y\n1,ä\n2,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="not written in UTF-8: say in what by --encoding, such as latin-1"):
        table("t.csv")
    assert table("t.csv", text=TextOptions(encoding="latin-1")) == {"größe": [1, 2], "y": ["ä", "b"]}
    Path("t.csv").write_bytes("größe,y\n1,ä\n2,b\n".encode("utf-16"))
    assert table("t.csv", text=TextOptions(encoding="utf-16")) == {"größe": [1, 2], "y": ["ä", "b"]}
    assert "--encoding is 'latin-x'; expected one that Python knows" in refused(
        "train", "t.csv", "--encoding", "latin-x"
    )


def test_missing_values_have_other_names_too():
    assert one_column(["1", "-", "n.d."], missing=("-", "n.d."))[0] == 1.0
    parquet.write_table(pa.table({"a": [1.0, -999.0, 3.0], "b": ["x", "none", "z"]}), "t.parquet")
    found = table("t.parquet", text=TextOptions(missing=("-999", "none")))
    assert found["a"][0::2] == [1.0, 3.0]
    assert found["a"][1] != found["a"][1]
    assert found["b"] == ["x", None, "z"]


def test_only_the_columns_that_are_needed_are_read(csv, monkeypatch):
    ok("train", csv, "-t", "kind", "--features", "mass,ringed", *SMALL)
    seen = []
    open_csv = text.csv.open_csv

    def opened(stream, **options):
        seen.append(options["convert_options"].include_columns)
        return open_csv(stream, **options)

    monkeypatch.setattr(text.csv, "open_csv", opened)
    ok("predict", "model.safetensors", csv, "--keys", "ring")
    assert [names for names in seen if names] == [["mass", "ringed", "ring"]]


def test_separators_that_can_not_be():
    Path("t.csv").write_text("a,y\n1,2\n")
    for sep in (";;", '"', "é"):
        assert "--sep is" in refused("train", "t.csv", "-t", "y", "--sep", sep)
    assert refused("train", "t.csv", "-t", "y", "--sep", ";").endswith("(it is read as separated by ';': see --sep)\n")
    assert "nothing comes from standard input" in refused("train", "-", "-t", "y") or not os.isatty(0)


# ---- which columns, and what they are -------------------------------------------------------------------------------


def features():
    return ok("info", "model.safetensors", "--json").json["features"]


def test_columns_are_chosen_by_names_and_patterns(csv):
    train = ("train", csv, "-t", "kind", *SMALL)
    ok(*train, "--features", "m*,seen", "--features", "island")
    assert features() == ["mass", "seen", "island"]
    ok(*train, "--drop", "ring,island")
    assert features() == ["mass", "seen", "ringed"]
    assert "has no column 'mas': did you mean 'mass'?" in refused(*train, "--features", "mas")
    assert "--features has 'kind', which is the target" in refused(*train, "--features", "*")


def test_types_are_said(csv):
    Path("t.csv").write_text("zip,size,y\n" + "".join(f"{i % 4},{i % 7},{i % 5}\n" for i in range(60)))
    ok("train", "t.csv", "-t", "y", *SMALL, "--types", "zip=text,size=category", "--types", "y=number")
    found = ok("info", "model.safetensors", "--json").json
    assert found["kinds"] == {"zip": "category", "size": "category"}
    assert (found["classes"], found["target"]) == (None, "y")
    for types, words in (
        ("zip", "expected COLUMN=KIND"),
        ("zip=int", "expected COLUMN=KIND"),
        ("zi=text", "no column"),
    ):
        assert words in refused("train", "t.csv", "-t", "y", *SMALL, "--types", types)
    assert "neither a feature nor the target" in refused(
        "train", "t.csv", "-t", "y", "--drop", "zip", "--types", "zip=text"
    )


# ---- a model of a table ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of the birds, what training said, and the file."""
    folder = tmp_path_factory.mktemp("birds")
    data = folder / "birds.csv"
    data.write_text(as_text(birds()), encoding="utf-8")
    result = ok("train", data, "-t", "kind", "--epochs", "60", "--lr", "0.02", "--json", "-o", folder / "m.safetensors")
    return SimpleNamespace(path=folder / "m.safetensors", data=data, result=result)


def test_a_table_is_trained_on_by_one_command(model):
    said = model.result.err.splitlines()
    assert len(said) == 1
    assert re.search("column 'ring' .*left out", said[0])
    assert model.result.json["accuracy"] > 0.9
    assert model.result.json["parameters"] < 10_000
    assert model.result.json["best_epoch"] <= model.result.json["epochs"]


def test_a_model_takes_the_table_in_python_as_on_the_command_line(model):
    loaded, columns = bp.load(model.path), birds(60, seed=3)
    Path("new.csv").write_text(as_text({name: columns[name] for name in reversed(columns)}), encoding="utf-8")
    found = ok("predict", model.path, "new.csv").out.splitlines()
    assert loaded.predict(columns).tolist() == found
    assert np.mean(np.array(found) == columns["kind"]) > 0.9
    pandas = pytest.importorskip("pandas", reason="frames of pandas need pandas")
    assert loaded.predict(pandas.read_csv("new.csv")).tolist() == found
    result = ok("evaluate", model.path, "new.csv", "--json").json
    assert result["accuracy"] == pytest.approx(np.mean(np.array(found) == columns["kind"]))
    assert loaded.evaluate(columns)["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_evaluation_is_of_rows_held_out_of_every_class(model):
    found = ok("evaluate", model.path, model.data, "--metric", "balanced_accuracy", "--json")
    assert (found.json["rows"], found.json["held_out"], found.err) == (30, True, "")
    assert found.json["loss"] == pytest.approx(model.result.json["loss"], rel=1e-5)
    assert found.json["balanced_accuracy"] == pytest.approx(found.json["accuracy"])  # ten rows of each


def test_rows_that_were_trained_on_are_told_of(model):
    Path("again.csv").write_text(as_text(birds()) + "\n", encoding="utf-8")
    assert re.search("of the rows of again.csv were in the training data", ok("evaluate", model.path, "again.csv").err)
    Path("new.csv").write_text(as_text(birds(60, seed=3)), encoding="utf-8")
    assert ok("evaluate", model.path, "new.csv").err == ""


def test_predictions_beside_keys_and_probabilities(model):
    names = ok("predict", model.path, model.data, "--json").json["predictions"]
    lines = ok("predict", model.path, model.data, "--proba", "--keys", "ring,seen").out.splitlines()
    assert lines[0] == "ring,seen,kind,proba_eider,proba_gull,proba_tern"
    rows = [line.split(",") for line in lines[1:]]
    assert [row[0] for row in rows] == birds()["ring"]
    assert [row[1] for row in rows] == birds()["seen"]
    assert [row[2] for row in rows] == names
    assert np.allclose([sum(map(float, row[3:])) for row in rows], 1.0)
    for kind in ("csv", "parquet", "jsonl"):
        ok("predict", model.path, model.data, "--proba", "--keys", "ring", "--output", f"p.{kind}")
    assert Path("p.csv").read_text().splitlines()[1].split(",")[:2] == ["R0000", names[0]]
    stored = parquet.read_table("p.parquet").to_pylist()
    assert [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()] == stored
    assert list(stored[0]) == ["ring", "kind", "proba_eider", "proba_gull", "proba_tern"]
    assert "a .npy file holds one column" in refused("predict", model.path, model.data, "--proba", "-o", "p.npy")


def test_keys_keep_their_names_and_rows_their_lines(model):
    lines = Path(model.data).read_text(encoding="utf-8").splitlines()
    new = [f"{line},{extra}" for line, extra in zip(lines, ["predicted_kind", *["odd\u2028key"] * 150], strict=True)]
    Path("new.csv").write_text("\n".join(new), encoding="utf-8")
    shown = ok("predict", model.path, "new.csv", "--keys", "kind,predicted_kind").out.splitlines()
    assert shown[0] == "kind,predicted_kind,predicted_predicted_kind"
    assert len(shown) == 151


# ---- what is said of columns and rows -------------------------------------------------------------------------------


def test_suspicious_columns_are_named():
    columns = birds(60)
    codes = {"gull": 7, "tern": 3, "eider": 5}
    columns |= {
        "twin": [codes[kind] for kind in columns["kind"]],
        "same": ["here"] * 60,
        "none": [None] * 60,
        "number": list(range(60)),
        "kind": [*columns["kind"][:-4], "auk", "gull", None, None],
    }
    del columns["ring"]
    columns["twin"][-4:] = [9, 7, 0, 0]
    Path("t.csv").write_text(as_text(columns), encoding="utf-8")
    said = ok("train", "t.csv", "-t", "kind", *SMALL).err
    for words in (
        "2 rows of t.csv have no 'kind', first in row 59: left out",
        "column 'twin' of t.csv tells the target 'kind' outright: unless it is known beforehand too, leave it out with",
        "with --drop 'twin'\n",
        "column 'same' of t.csv never varies, and is left out",
        "column 'none' of t.csv has no value in any row, and is left out",
        "column 'number' of t.csv counts the rows: if it is their number and no quantity",
        "too rare to be held out: class 'auk' (1 row); how well it is told from others is not measured",
    ):
        assert words in said, said
    assert said.count("\n") == 6
    assert features() == ["mass", "island", "seen", "ringed", "twin", "number"]


def test_a_linear_twin_of_a_quantity_is_named():
    x = np.random.default_rng(0).normal(size=(50, 2))
    rows = "".join(f"{a:.6f},{b:.6f},{32 + 1.8 * b:.6f}\n" for a, b in x)
    Path("t.csv").write_text(f"a,celsius,fahrenheit\n{rows}")
    assert "column 'celsius' of t.csv tells the target" in ok("train", "t.csv", "-t", "fahrenheit", *SMALL).err


def test_values_that_a_column_can_not_have(model):
    columns = birds(6)
    columns["mass"][4] = "heavy"
    Path("t.csv").write_text(as_text(columns), encoding="utf-8")
    assert re.search("column 'mass' of t.csv .*'heavy' in row 5", refused("predict", model.path, "t.csv"))
    columns = birds(6)
    columns["kind"][2] = "crow"
    Path("t.csv").write_text(as_text(columns), encoding="utf-8")
    assert "'crow' in row 3" in refused("evaluate", model.path, "t.csv")


# ---- training -------------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_kept(csv):
    train = (
        "train",
        csv,
        "-t",
        "kind",
        "--hidden",
        "32",
        "--lr",
        "0.05",
        "--epochs",
        "60",
        "--patience",
        "4",
        "--json",
    )
    result = ok(*train).json
    losses = [record["val_loss"] for record in result["history"]]
    assert result["epochs"] == len(losses) < 60
    assert result["best_epoch"] == 1 + int(np.argmin(losses)) == result["epochs"] - 4
    assert result["loss"] == pytest.approx(min(losses), rel=1e-5)
    whole = ok(*train, "--patience", "0").json
    assert (whole["epochs"], whole["best_epoch"]) == (60, None)


def test_options_of_training_reach_it(csv):
    more = ("--schedule", "cosine", "--weight-decay", "0.1", "--class-weight", "balanced", "--metric", "f1")
    result = ok("train", csv, "-t", "kind", *SMALL, *more, "--json").json
    assert result["optimizer"].startswith("AdamW(lr=Epochs(lr=Cosine(lr=0.02, steps=12")
    assert "weight_decay=0.1" in result["optimizer"]
    assert result["history"][-1]["lr"] < 0.001
    assert {"f1", "val_f1"} <= result["history"][0].keys()
    assert result["f1"] > 0.8
    assert "f1 " in ok("train", csv, "-t", "kind", *SMALL, "--metric", "f1").out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--schedule", "cosin"), "--schedule is 'cosin'; expected 'constant', "),
        (("--class-weight", "equal"), "--class-weight is 'equal'; expected"),
        (("--preset", "weak"), "--preset is 'weak'; expected"),
        (("--preset", "strong", "--lr", "1"), "--lr is 1.0, but the preset 'strong' has its own: leave one out"),
        (("--metric", "f3"), "unknown --metric 'f3': did you mean 'f1'? known are "),
        (("--optimizer", "sgd", "--weight-decay", "-1"), "--weight-decay is -1"),
        (("--optimizer", "prodigy", "--schedule", "cosine", "--lr", "-1"), "lr is -1"),
        (("--resume",), "give that too"),
        (("--folds", "3", "--checkpoint", "d"), "leave out --checkpoint"),
        (("--folds", "1000"), "--folds is 1000, but there are 150 rows"),
        (("--loss", "mse"), "the target 'kind' of birds.csv is text: mse needs numbers"),
        (("--types", "kind=number"), "is text"),
    ],
)
def test_options_of_training_that_are_wrong(csv, args, words):
    assert words in refused("train", csv, "-t", "kind", "--quiet", *args)


def test_an_ensemble(csv):
    result = ok("train", csv, "-t", "kind", *SMALL, "--ensemble", "3", "--json").json
    assert result["accuracy"] > 0.5
    assert result["loss_function"].startswith("Members")
    assert ok("evaluate", "model.safetensors", csv, "--json").json["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert len(ok("predict", "model.safetensors", csv).out.splitlines()) == 150


def test_training_goes_on_from_a_checkpoint(csv):
    train = ("train", csv, "-t", "kind", *SMALL, "--json", "--checkpoint", "saved")
    straight = ok(*train[:-2], "--epochs", "6").json
    ok(*train, "--epochs", "4", "--every", "11")
    steps = [f"step-{number:010}.safetensors" for number in (11, 22, 32)]
    assert sorted(os.listdir("saved")) == [".lock", "best.safetensors", *steps]
    assert isinstance(bp.load(f"saved/{steps[0]}"), bp.TableModel)
    resumed = ok(*train, "--epochs", "6", "--resume").json
    assert [record["loss"] for record in resumed["history"]] == [record["loss"] for record in straight["history"]]
    assert (resumed["loss"], resumed["best_epoch"]) == (straight["loss"], straight["best_epoch"])
    for other, said in (
        (("--seed", "1"), "seed is 1, but 0 in the training that "),
        (("--batch-size", "8"), "batch-size is 8, but 16 in the training that "),
        (("--class-weight", "balanced"), "class-weight is 'balanced', but None in the training that "),
    ):
        assert f"bpnet: --{said}" in run(*train, "--resume", *other).err
    assert "--checkpoint is saved, which holds a training already" in refused(*train)
    assert "--every needs --checkpoint DIR: give that too" in refused(*train[:-2], "--every", "3")


def test_cross_validation(csv):
    result = ok("train", csv, "-t", "kind", *SMALL, "--folds", "3", "--json").json
    assert (result["training_rows"], result["held_out_rows"]) == (150, 0)
    found = result["folds"]
    accuracies = [fold["accuracy"] for fold in found["each"]]
    assert len(accuracies) == found["count"] == 3
    assert found["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["deviation"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    assert result["epochs"] == round(np.mean([fold["epochs"] for fold in found["each"]]))
    assert (result["accuracy"], result["loss"]) == (found["mean"]["accuracy"], found["mean"]["loss"])
    shown = ok("train", csv, "-t", "kind", *SMALL[:-1], "--folds", "3", "--report", "page.html").out
    over = re.search("accuracy .*% ± .*%, loss .*: mean and standard deviation over 3 folds", shown)[0]
    assert f"accuracy {found['mean']['accuracy']:.2%}" in over
    assert over in ok("info", "model.safetensors").out
    page = Path("page.html").read_text(encoding="utf-8")
    assert over in page
    for told in (shown, page):  # every row by the network that was trained without it
        assert "150 rows, each predicted by a network that was trained without it" in told
        assert f"{found['mean']['accuracy']:.2%}" in told


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "quantile", "gaussian_nll"])
def test_quantities_of_any_unit_by_any_loss(loss):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = x[:, 0] + 0.5 * x[:, 1] ** 2
    found = []
    for center, unit in ((0.0, 1.0), (50_000.0, 1000.0)):
        Path("t.csv").write_text(
            "a,b,c,y\n" + "".join(f"{r[0]},{r[1]},{r[2]},{q}\n" for r, q in zip(x, center + unit * y, strict=True))
        )
        ok("train", "t.csv", "-t", "y", *SMALL, "--loss", loss, "--epochs", "40")
        predictions = ok("predict", "model.safetensors", "t.csv", "--json").json["predictions"]
        middle = np.array([row["y"] if isinstance(row, dict) else row for row in predictions])
        found.append((middle - center) / unit)
    assert np.var(found[0] - y) < 0.4 * np.var(y)
    assert np.sqrt(np.mean((found[0] - found[1]) ** 2)) < 0.1 * np.std(y)


def test_how_sure_a_model_of_numbers_is():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    y = 100 + 5 * x[:, 0] + rng.normal(size=200)
    Path("t.csv").write_text("a,b,y\n" + "".join(f"{r[0]},{r[1]},{q}\n" for r, q in zip(x, y, strict=True)))
    ok("train", "t.csv", "-t", "y", *SMALL, "--loss", "quantile", "--quantiles", "0.05,0.5,0.95", "--epochs", "40")
    predict = ("predict", "model.safetensors", "t.csv")
    assert ok(*predict).out.startswith("y_q0.05,y_q0.5,y_q0.95\n")
    rows = ok(*predict, "--interval", "0.9", "--json").json["predictions"]
    assert all(row["y_low"] == row["y_q0.05"] <= row["y_q0.5"] <= row["y_q0.95"] == row["y_high"] for row in rows)
    assert 0.75 < np.mean([row["y_low"] <= q <= row["y_high"] for row, q in zip(rows, y, strict=True)]) < 0.99
    assert "--loss quantile --quantiles 0.1,0.5,0.9" in refused(*predict, "--interval", "0.8")
    assert "--interval is 1.5" in refused(*predict, "--interval", "1.5")
    model = bp.load("model.safetensors")
    columns = {"a": x[:, 0], "b": x[:, 1]}
    model.calibrate(columns, y).save("calibrated.safetensors")
    rows = ok("predict", "calibrated.safetensors", "t.csv", "--interval", "0.8", "--json").json["predictions"]
    ends = [[row["y_low"], row["y_high"]] for row in rows]
    np.testing.assert_allclose(ends, model.predict_interval(columns, 0.8), rtol=1e-5)
    ok("train", "t.csv", "-t", "y", *SMALL, "--loss", "gaussian_nll", "--epochs", "40")
    shown = ok(*predict, "--interval", "0.9").out.splitlines()
    assert shown[0] == "y,y_sd,y_low,y_high"
    found = np.array([line.split(",") for line in shown[1:]], dtype=float)
    np.testing.assert_allclose(found[:, 3] - found[:, 0], 1.6449 * found[:, 1], rtol=1e-3)
    ok("train", "t.csv", "-t", "y", *SMALL)
    assert "needs a model that was calibrated" in refused(*predict, "--interval", "0.9")
    assert "--loss is 'mae'" in refused("train", "t.csv", "-t", "y", "--loss", "mae", "--quantiles", "0.5")
    assert "--quantiles is '0.5;1'" in refused("train", "t.csv", "-t", "y", "--quantiles", "0.5;1")
    assert "--quantiles" in refused("train", "t.csv", "-t", "y", "--quantiles", "2")


def test_the_help_names_what_there_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("train", "--help").out
    for word in ("gelu", "cross_entropy", "huber", "adamw", "one_cycle", "balanced", "strong", "roc_auc", ".parquet"):
        assert word in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


# ---- one file for everybody -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", ["the command line", "Python", "an estimator"])
def test_whoever_saved_a_model_all_read_the_same_in_it(maker, csv):
    """Rows as they were trained on, with text, gaps and dates: from the command, from Python, from an estimator."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    frame = pandas.read_csv(csv, parse_dates=["seen"])
    columns = ["mass", "island", "seen", "ringed"]
    if maker == "the command line":
        ok("train", csv, "--target", "kind", "--drop", "ring", *SMALL)
    elif maker == "Python":
        options = {"drop": "ring", "hidden": (16,), "epochs": 12, "lr": 0.02, "dropout": 0.0, "progress": False}
        bp.train_table(frame, "kind", **options).save("model.safetensors")
    else:
        est = bp.MLPClassifier(
            (16,), max_iter=40, tol=0.0, n_iter_no_change=50, learning_rate_init=0.02, categorical_features="from_dtype"
        )
        with pytest.warns(Warning, match="converged"):
            est.fit(frame[columns], frame["kind"])
        est.save("model.safetensors")
    loaded, again = bp.load("model.safetensors"), bp.MLPClassifier.from_model("model.safetensors")
    said = ok("predict", "model.safetensors", csv).out.splitlines()
    sure = np.asarray([list(row.values())[1:] for row in json.loads(
        ok("predict", "model.safetensors", csv, "--proba", "--json").out)["predictions"]], dtype=float)  # fmt: skip
    assert said == loaded.predict(frame).tolist() == again.predict(frame[columns]).tolist()
    for found in (loaded.predict_proba(frame), again.predict_proba(frame[columns])):
        np.testing.assert_allclose(sure, found, atol=1e-6)
    assert np.mean(np.asarray(said) == frame["kind"]) > 0.8
