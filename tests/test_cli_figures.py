"""What commands show of a model beyond its score: figures, pages, searches; and what a shell completes."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
pytest.importorskip("rich", reason="the command line needs rich (the cli extra)")
pytest.importorskip("pyarrow", reason="tables are read by pyarrow (the cli extra)")

import bpnet as bp
from bpnet import cli
from bpnet.cli.completion import columns_of

SMALL = ("--hidden", "16", "--epochs", "8", "--batch-size", "16", "--lr", "0.02", "--dropout", "0")


def run(*args):
    """Run a command in this process: its status, and what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        cli.app([str(a) for a in args], prog_name="bpnet")
    return stopped.value.code or 0, out.getvalue(), err.getvalue()


def ok(*args):
    """What a command that must succeed writes to stdout."""
    status, out, err = run(*args)
    assert status == 0, err
    return out


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    """t.csv in an empty directory: a class, a quantity, and a target that every seventh row lacks."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(140, 2))
    lines = ["size,a b,kind,amount,some"]
    for i, (u, v) in enumerate(x):
        some = "" if i % 7 == 0 else f"{u:.3f}"
        lines.append(f"{u:.4f},{v:.4f},{'big' if u + v > 0 else 'small'},{3 * u - v:.4f},{some}")
    Path("t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ("--drop", "amount,some")


def test_train_and_evaluate_show_the_same_figures(table):
    trained = ok("train", "t.csv", "--target", "kind", *table, *SMALL)
    for words in ("t.csv: 28 rows held out", "Confusion: ", "Calibration of ", "Importance: each column shuffled"):
        assert words in trained
    assert trained.splitlines()[-1] == "model: model.safetensors"
    evaluated = ok("evaluate", "model.safetensors", "t.csv")

    def figures(text):
        return text[text.index("Confusion") : text.index("\n\naccuracy")]

    assert figures(evaluated) == figures(trained)
    assert re.fullmatch(r"accuracy [\d.]+%, loss [\d.]+ on 28 rows, held out from training", evaluated.splitlines()[-1])
    assert ok("evaluate", "model.safetensors", "t.csv", "--quiet").count("\n") == 1
    assert ok("train", "t.csv", "--target", "kind", *table, *SMALL, "--quiet").count("\n") <= 3


def test_single_rows_are_called_as_in_the_file(table):
    ok("train", "t.csv", "--target", "some", "--drop", "kind,amount,size", *SMALL, "--quiet")
    found = json.loads(ok("evaluate", "model.safetensors", "t.csv", "--json", "--report", "page.html"))
    lines = Path("t.csv").read_text(encoding="utf-8").splitlines()
    for worst in found["figures"]["residuals"][0]["worst"]:
        assert float(lines[worst["row"]].split(",")[4]) == pytest.approx(worst["true"])


def test_a_page_is_written_beside_the_model(table):
    out = ok("train", "t.csv", "--target", "amount", "--drop", "kind,some", *SMALL, "--report", "page.html", "--quiet")
    assert out.splitlines()[-1] == "report: page.html"
    page = Path("page.html").read_text(encoding="utf-8")
    for words in ("Residuals", "Training", "112 rows of t.csv", "hidden layers of 16 units", "28 rows held out"):
        assert words in page
    found = json.loads(ok("evaluate", "model.safetensors", "t.csv", "--json", "--report", "again.html"))
    assert found["report"] == "again.html"
    assert found["figures"]["scores"]["r2"] == pytest.approx(found["r2"], rel=1e-4)
    assert "figures" not in json.loads(ok("evaluate", "model.safetensors", "t.csv", "--json"))
    for wrong, words in (("page.pdf", "ends in .html"), ("no/page.html", "--report: "), ("t.csv", "ends in .html")):
        status, out, err = run("train", "t.csv", "--target", "amount", "--report", wrong)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err


def test_a_search_says_what_it_tries_and_keeps(table):
    pytest.importorskip("optuna", reason="a search needs Optuna (the search extra)")
    train = ("train", "t.csv", "--target", "kind", *table, "--epochs", "6", "--hidden", "8", "--activation", "relu")
    status, out, err = run(*train, "--search", "4")
    assert status == 0, err
    assert re.findall(r"^trial +(\d)/4  held-out loss [\d.]+", err, re.MULTILINE) == ["1", "2", "3", "4"]
    assert "as without a search" in err.splitlines()[0]
    assert "28 held out; 2 classes; 4 trials" in out
    kept = re.search(r"^trial (\d) of 4 is kept: ", out, re.MULTILINE)
    found = json.loads(ok(*train, "--search", "4", "--json"))["search"]
    assert found["best"] == int(kept[1])
    assert set(found["trials"][3]["options"]) == {"dropout", "lr", "weight_decay", "batch_size"}
    assert bp.load("model.safetensors").settings["training"]["search"] == found
    for options in (("--folds", "3"), ("--validation", "0"), ("--preset", "strong"), ("--checkpoint", "there")):
        status, _, err = run(*train, "--search", "2", *options)
        assert (status, err.count("\n")) == (2, 1)
        assert f"leave out {options[0]}" in err


def test_a_search_needs_optuna(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = run("train", "t.csv", "--target", "kind", "--search", "2")
    assert status == 2
    assert "pip install 'bpnet-xp[search]'" in err


def test_several_quantities_are_learnt_at_once():
    train = ("train", "t.csv", "--drop", "kind,some", *SMALL, "--json")
    found = json.loads(ok(*train, "-t", "amount", "-t", "a b"))
    assert found["target"] == ["amount", "a b"]
    assert json.loads(ok(*train, "-t", "amount,a b"))["loss"] == found["loss"]
    assert ok("predict", "model.safetensors", "t.csv", "--keys", "size").startswith("size,amount,a b\n")
    assert json.loads(ok("evaluate", "model.safetensors", "t.csv", "--json"))["loss"] == pytest.approx(found["loss"])
    assert bp.load("model.safetensors").schema.names == ("size",)
    whole = json.loads(ok("train", "t.csv", "--drop", "kind", *SMALL, "--json", "-t", "amount", "-t", "some"))
    assert whole["training_rows"] + whole["held_out_rows"] == 120, "rows that lack one of the targets are left out"


# ---- completion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bpnet ev", ["evaluate"]),
        ("bpnet train t.csv --weight-", ["--weight-decay"]),
        ("bpnet train t.csv --loss fo", ["focal"]),
        ("bpnet evaluate m.safetensors t.csv --backend to", ["torch"]),
        ("bpnet train t.csv --drop kind,a", [r"kind,a\ b", "kind,amount"]),
    ],
)
def test_commands_options_names_and_columns_are_completed(line, offered, monkeypatch):
    words = line.split()
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_BPNET_COMPLETE", "complete_bash")
    found = ok().splitlines()
    assert set(offered) <= set(found)
    assert all(one.startswith(words[-1]) for one in found)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_a_real_bash_asks_the_program(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "bpnet"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bpnet "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(bp.__file__).parents[1]))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("_BPNET_COMPLETE", "source_bash")
    source = ok()
    monkeypatch.delenv("_BPNET_COMPLETE")
    script = [source, "COMP_WORDS=(bpnet train t.csv --target a); COMP_CWORD=4; _bpnet_completion bpnet"]
    script += ["complete -p bpnet", '(IFS="|"; echo "${COMPREPLY[*]}")']
    done = subprocess.run(["bash", "--norc", "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["complete -o default -F _bpnet_completion bpnet", r"a\ b|amount"]
    assert done.stderr == ""


def test_columns_are_of_the_data_on_the_line():
    words = ["bpnet", "evaluate", "model.safetensors", "t.csv", "--target"]
    Path("model.safetensors").write_bytes(b"no model")
    assert columns_of(words) == ["size", "a b", "kind", "amount", "some"]
    assert columns_of(words[:2]) == []
    Path("s.csv").write_bytes("gr\xf6\xdfe;a\n1;2\n".encode("latin-1"))
    assert columns_of(["bpnet", "train", "s.csv", "--encoding", "latin-1", "--target", ""]) == ["größe", "a"]
