"""Benchmarks of whole trainings: the data are what they were, splits are everyone's, runs go on where they stopped."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import __main__ as command  # noqa: E402
from bench import visit  # noqa: E402
from bench.estimators import cases  # noqa: E402
from bench.estimators import report as of_estimators  # noqa: E402
from bench.plan import Plan  # noqa: E402
from bench.tables import fetch, methods, sets  # noqa: E402
from bench.tables import report as of_tables  # noqa: E402


def a_table(rows: int = 60) -> sets.Table:
    """Numbers and text with gaps, and classes of which one is rare."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    text = np.where(x > 0.5, "high", np.where(x < -1.0, "", "low"))
    target = np.where(np.arange(rows) % 15 == 0, "rare", np.where(x > 0, "yes", "no"))
    return sets.Table({"x": np.where(x > 2, np.nan, x), "text": text}, target)


def test_a_table_is_known_by_its_values(tmp_path: Path) -> None:
    table = a_table()
    table.save(tmp_path / "it.npz")
    assert sets.Table.read(tmp_path / "it.npz").digest() == table.digest()
    for name, column in table.columns.items():
        changed = column.copy()
        changed[3] = 7.0 if column.dtype.kind == "f" else "else"
        assert sets.Table(table.columns | {name: changed}, table.target).digest() != table.digest()
    assert sets.Table({"y": table.columns["x"], "text": table.columns["text"]}, table.target).digest() != table.digest()
    about = table.about()
    assert (about["rows"], about["columns"], about["categories"], about["classes"]) == (60, 2, 1, 3)
    assert about["missing"] == np.isnan(table.columns["x"]).sum() + (table.columns["text"] == "").sum()


def test_a_split_has_every_row_once_and_each_class_in_its_share() -> None:
    table = a_table()
    numbered = replace(table, columns={"row": np.arange(60.0)})
    train, test = sets.split(numbered, 1)
    rows = np.concatenate([train.columns["row"], test.columns["row"]])
    assert np.array_equal(np.sort(rows), np.arange(60))
    assert (test.target == "rare").sum() == 1
    assert np.array_equal(sets.split(numbered, 1)[1].columns["row"], test.columns["row"])
    assert not np.array_equal(sets.split(numbered, 2)[1].columns["row"], test.columns["row"])
    quantity = sets.Table(numbered.columns, np.arange(60.0))
    assert len(sets.split(quantity, 0)[1]) == 15


def test_losses_are_shares_and_deviations() -> None:
    assert sets.loss(np.array(["a", "b", "b", "a"]), np.array(["a", "b", "a", "a"])) == 0.25
    target = np.array([1.0, 2.0, 3.0, 6.0])
    assert sets.loss(np.full(4, target.mean()), target) == pytest.approx(1.0)


def test_a_set_that_cannot_be_had_or_has_other_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "_inside", lambda source: a_table())
    with pytest.raises(fetch.Unavailable, match=f"digits has other values.*{a_table().digest()}"):
        sets.load("digits", tmp_path)
    monkeypatch.setitem(sets.SETS, "digits", replace(sets.SETS["digits"], digest=a_table().digest()))
    assert len(sets.load("digits", tmp_path)) == 60
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(fetch.Unavailable, match="r-cran-mlbench"):
        sets.load("glass", tmp_path)


def test_columns_of_data_frames_are_numbers_or_text() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed, which R's data are read into")
    factor, grades = pandas.Categorical(["a", None, "b"]), pandas.array([1, None, 3], dtype="Int32")
    columns = [fetch._column(pandas.Series(values)) for values in (factor, grades, ["x", "y", "z"])]
    assert [column.tolist() for column in (columns[0], columns[2])] == [["a", "", "b"], ["x", "y", "z"]]
    assert columns[1].dtype == np.float64
    assert np.array_equal(columns[1], [1.0, np.nan, 3.0], equal_nan=True)
    frame = methods.frame({"a": columns[0], "b": columns[1]})
    assert frame.isna().sum().to_list() == [1, 1]
    assert methods.known_frame({"a": columns[0]})["a"].to_list() == ["a", "missing", "b"]
    assert methods.plain({"a": columns[0]})["a"].tolist() == ["a", None, "b"]


class Here:
    """A learner in this process instead of one of its own."""

    def __init__(self, name: str, module: str, order: dict[str, Any], env: dict[str, str], plan: Plan) -> None:
        self.session, self.process, self.plan = importlib.import_module(module).Session(order), self, plan

    def poll(self) -> None:
        """It is alive."""

    def ask(self, do: str, **order: Any) -> Any:
        return getattr(self.session, do)(**order)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.field.Process", Here)


@pytest.mark.usefixtures("here")
def test_tables_are_learned_and_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, kept = a_table(), tmp_path / "run.json"
    monkeypatch.setattr("bench.tables.run.load", lambda name, cache: table)
    arguments = ["tables", "--method", "bpnet", "--set", "glass", "--json", str(kept), "--threads", "1"]
    assert command.main([*arguments, "--seed", "0"]) == 0
    first = json.loads(kept.read_text())
    assert first["sets"]["glass"]["rows"] == 60
    assert first["versions"].keys() >= {"bpnet", "numpy"}
    (record,) = first["tables"]
    assert 0.0 <= record["loss"] < 0.5  # the sign of x tells nearly all
    assert record["fit_s"] > 0.0
    assert command.main([*arguments, "--seed", "0", "--seed", "1", "--seconds", "0"]) == 0  # nothing more is begun
    assert json.loads(kept.read_text()) == first
    assert "glass          bpnet         seed 0" in capsys.readouterr().out


def a_result(method: str, name: str, seed: int, loss: float, busy: float = 0.0) -> dict[str, Any]:
    of = {"set": name, "method": method, "seed": seed, "date": "2026-01-01", "threads": 2, "rows": 500}
    return of | {"loss": loss, "fit_s": 2.0, "cpu_s": 3.0, "predict_s": 0.1, "busy": busy}


def test_ranks_and_wins_are_of_all_sets() -> None:
    results = [
        a_result(method, name, seed, loss + 0.001 * seed, busy=0.9 if name == "pima" else 0.0)
        for method, found in {"strong": (0.1, 0.3), "realmlp-td": (0.1, 0.2), "mlp": (0.4, 0.4)}.items()
        for name, loss in zip(("glass", "pima"), found, strict=True)
        for seed in (0, 1)
    ]
    about = {"rows": 214, "columns": 9, "categories": 0, "missing": 0, "classes": 6}
    rows = of_tables.overview(results, {"glass": about, "pima": about})
    cells = {row[0]: row[1:] for row in rows}
    assert cells['bpnet, preset="strong"'][0] == "1.75 (2)"  # a first place that is shared, and a second
    assert cells["RealMLP-TD"][0] == "1.25 (2)"
    assert cells["RealMLP-TD"][1] == "1.000 (2)"
    assert cells["RealMLP-TD"][3] == "0, 1, 1"  # glass is even, pima lost
    assert cells["scikit-learn's MLP"][3] == "2, 0, 0"
    assert cells["scikit-learn's MLP"][4:] == ["4.0 (1)", "6.0 (2)"]  # seconds beside other work are left out
    table = of_tables.by_set(results, {"glass": about, "pima": about})
    assert table[1][4] == "**10.05** ± 0.05"
    only = a_result("tabm", "glass", 0, 0.05)  # is placed where it is, and moves nobody
    more = {row[0]: row[1] for row in of_tables.overview([*results, only], {"glass": about, "pima": about})}
    assert (more["TabM-D"], more["RealMLP-TD"]) == ("1.00 (1)", "1.25 (2)")
    failed = a_result("tabm", "glass", 0, 0.0) | {"failed": "no memory"}
    del failed["loss"]
    assert of_tables.failures([*results, failed]) == ["glass, tabm, seed 0: no memory"]


@pytest.mark.usefixtures("here")
def test_an_estimator_is_measured_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed, whose face the estimators have")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 8))
    y = x @ rng.normal(size=8)
    case = replace(cases.CASES["concrete"], data=lambda cache: (x[:60], y[:60], x[60:], y[60:]), hidden=(20,))
    monkeypatch.setitem(cases.CASES, "concrete", case)
    monkeypatch.setattr("bench.estimators.child.get_ready", lambda name: None)  # which compiles
    kept, arguments = tmp_path / "run.json", ["estimators", "--case", "concrete", "--seed", "0"]
    names = ("--estimator", "bpnet", "--estimator", "sklearn")
    assert command.main([*arguments, *names, "--json", str(kept)]) == 0
    ours, theirs = json.loads(kept.read_text())["estimators"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)  # of the same start values and batches
    assert ours["fit_s"] > 0.0
    assert ours["first"]
    assert ours["peak_mb"] > 10.0
    assert "concrete" in capsys.readouterr().out
    subject = ours | {"above_mb": 4.0}
    changed = {"fit_s": 3 * ours["fit_s"], "predict_s": 0.5 * ours["predict_s"], "above_mb": 9.0}
    results = [subject, theirs | changed]
    assert of_estimators.ratio(results, "concrete", "sklearn", "fit_s") == pytest.approx(3.0)
    assert of_estimators.verdict(results) == ["concrete: predict 0.50 x, wanted 1 x"]


def test_pages_are_made_of_the_runs(tmp_path: Path) -> None:
    names = ("runs", "mnist", "catalogue", "estimators", "tables", "scaling", "gpu")
    empty = "\n".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->" for name in names)
    machine = {"cpu": "A processor", "cores": 2, "python": "3.11", "system": "Linux", "date": "2026-01-01 00:00 UTC"}
    of = {
        "case": "digits",
        "estimator": "bpnet",
        "seed": 0,
        "date": "2026-01-01",
        "busy": 0.0,
        "score": 0.97,
        "first": True,
    }
    figures = {"fit_s": 0.2, "cpu_s": 0.2, "predict_s": 0.0003, "held_mb": 100.0, "above_mb": 1.0, "peak_mb": 101.0}
    about = {"rows": 214, "columns": 9, "categories": 0, "missing": 0, "classes": 6}
    run = {"machine": machine, "threads": 2, "versions": {"bpnet": "1.0"}}
    (tmp_path / "e.json").write_text(json.dumps(run | {"estimators": [of | figures]}))
    tables = {"sets": {"glass": about}, "tables": [a_result("mlp", "glass", 0, 0.25)]}
    (tmp_path / "t.json").write_text(json.dumps(run | tables))
    page = visit.filled(empty, tmp_path)
    assert "`python -m bench estimators`" in page
    assert "| digits, 1,348 x 64, float64 | 200 ms | 200 ms |" in page
    assert "| glass, 6 classes | 214 | 9 | 1 | **25.00** |" in page
    assert "| glass | scikit-learn's MLP | 25.00 |" in page
