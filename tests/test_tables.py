"""Tables as people have them, by one command each: all of them train, evaluate and predict, and say what is odd."""

import contextlib
import io
import json

import numpy as np
import pytest

pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
pytest.importorskip("rich", reason="the command line needs rich (the cli extra)")
pytest.importorskip("pyarrow", reason="tables are read by pyarrow (the cli extra)")

from support.tables import TABLES

import bpnet as bp
from bpnet import cli

QUICK = ("--epochs", "12", "--hidden", "32", "--lr", "0.02", "--batch-size", "32", "--dropout", "0", "--json")


def run(*args):
    """Run a command in this process: its status, and what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        cli.app([str(a) for a in args], prog_name="bpnet")
    return stopped.value.code or 0, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", [name for name, case in TABLES.items() if not case.refused])
def test_a_table_trains_evaluates_and_predicts(name, tmp_path, monkeypatch):
    case = TABLES[name]
    monkeypatch.chdir(tmp_path)
    path = case.write(tmp_path)
    status, out, err = run("train", path.name, *case.command, *QUICK)
    assert status == 0, err
    trained = json.loads(out)
    lines = err.splitlines()
    assert all(line.startswith("bpnet: ") for line in lines), "a warning is a line, and Python's own are none"
    for words in case.warns:
        assert sum(words in line for line in lines) == 1, (words, err)
    assert bool(lines) == bool(case.warns), err
    figures = trained["accuracy"] if case.kind == "class" else trained["r2"]
    assert figures >= case.least
    model = bp.load("model.safetensors")
    assert not set(case.left_out) & set(model.schema.names)
    if case.classes:
        assert list(model.classes_) == list(case.classes)

    status, out, err = run("evaluate", "model.safetensors", path.name, *case.options, "--json")
    assert status == 0, err
    evaluated = json.loads(out)
    assert evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-4, abs=1e-6)
    assert evaluated["rows"] == (trained["held_out_rows"] or trained["training_rows"])

    status, out, err = run("predict", "model.safetensors", path.name, *case.options, "--json")
    assert (status, err) == (0, "")
    predictions = json.loads(out)["predictions"]
    assert len(predictions) >= trained["training_rows"] + trained["held_out_rows"]
    if case.classes:
        assert set(predictions) <= set(case.classes)
    else:
        assert np.isfinite(np.array(predictions, dtype=float)).all()


@pytest.mark.parametrize("name", [name for name, case in TABLES.items() if case.refused])
def test_a_table_that_can_not_be_used_is_refused_in_a_line(name, tmp_path, monkeypatch):
    case = TABLES[name]
    monkeypatch.chdir(tmp_path)
    status, out, err = run("train", case.write(tmp_path).name, *case.command, *QUICK)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    for words in case.refused:
        assert words in err
