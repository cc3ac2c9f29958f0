"""What a training leaves behind: files of its best networks, tables, logs of other programs, norms, notebook views."""

import csv
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ArgumentError, FolderError, MissingExtraError, OptionError, PathError

LOSSES = [5.0, 3.0, 4.0, 2.0, 2.0, float("nan")]


class Scripted(bp.Callback):
    """Puts numbers of the test's choosing into the records, by the number of the epoch."""

    def __init__(self, name: str = "val_loss", values: list[float] = LOSSES) -> None:
        self.name, self.values = name, values

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        record[self.name] = self.values[record["epoch"] - 1]


class Breaks(bp.Callback):
    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt


X = np.random.default_rng(0).standard_normal((8, 3))
Y = np.argmax(X, axis=1)


def made(**options: Any) -> bp.Trainer:
    return bp.Trainer(bp.Sequential(bp.Dense(4, "tanh"), bp.Dense(3)), "cross_entropy", bp.SGD(0.1), **options)


def fitted(*callbacks: Any, epochs: int = 6, trainer: bp.Trainer | None = None, **more: Any) -> bp.Trainer:
    trainer = trainer or made()
    trainer.fit(X, Y, epochs=epochs, batch_size=4, callbacks=callbacks, progress=False, **more)
    return trainer


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "keep", "kept"),
    [("val_loss", 1, [4]), ("val_loss", 3, [4, 5, 2]), ("val_accuracy", 2, [1, 3]), (None, 1, [6]), (None, 2, [6, 5])],
    ids=str,
)
def test_the_best_or_last_epochs_have_files(tmp_path: Path, monitor: Any, keep: int, kept: list[int]) -> None:
    """NaN is never among the best, and of equal ones the earlier is better."""
    checkpoint = bp.ModelCheckpoint(tmp_path / "new" / "at-{epoch:03}.safetensors", monitor, keep)
    trainer = fitted(Scripted(monitor or "val_loss"), checkpoint)
    assert checkpoint.paths == [str(tmp_path / "new" / f"at-{epoch:03}.safetensors") for epoch in kept]
    assert names(tmp_path / "new") == sorted(map(os.path.basename, checkpoint.paths))
    for epoch, path in zip(kept, checkpoint.paths, strict=True):
        saved = bp.load(path)
        assert (len(saved.history), saved.step_count) == (epoch, trainer.history["step"][epoch - 1])


def test_one_name_is_written_again_by_better_epochs_alone(tmp_path: Path) -> None:
    trainer = fitted(Scripted(), bp.ModelCheckpoint(tmp_path / "best.safetensors"), epochs=3)
    assert names(tmp_path) == ["best.safetensors"]
    assert bp.load(tmp_path / "best.safetensors").step_count == trainer.history["step"][1]


def test_names_may_have_what_was_recorded(tmp_path: Path) -> None:
    fitted(Scripted(), bp.ModelCheckpoint(str(tmp_path / "{epoch}-{val_loss:.2f}.safetensors")), epochs=3)
    assert names(tmp_path) == ["2-3.00.safetensors"]


def test_a_training_that_goes_on_counts_the_files_of_its_history(tmp_path: Path) -> None:
    foreign = tmp_path / "7.safetensors"
    foreign.write_bytes(b"somebody else's")
    path = tmp_path / "{epoch}.safetensors"
    fitted(Scripted(), bp.ModelCheckpoint(path, keep=2), epochs=3)
    assert names(tmp_path) == ["2.safetensors", "3.safetensors", "7.safetensors"]
    trainer = bp.load(tmp_path / "3.safetensors")
    fitted(Scripted(), bp.ModelCheckpoint(path, keep=2), epochs=1, trainer=trainer)
    assert names(tmp_path) == ["2.safetensors", "4.safetensors", "7.safetensors"]
    checkpoint = bp.ModelCheckpoint(path, keep=2)
    fitted(Scripted(values=[0.0] * 4 + [3.5] * 2), checkpoint, epochs=2, trainer=trainer)
    assert names(tmp_path) == ["2.safetensors", "4.safetensors", "7.safetensors"]
    assert checkpoint.paths == [str(tmp_path / f"{epoch}.safetensors") for epoch in (4, 2)]


def test_a_file_that_cannot_be_written_costs_none_of_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(bp.Callback):
        def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
            if record["epoch"] == 2:
                monkeypatch.setattr(os, "replace", self._no_space)

        def _no_space(self, *args: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

    checkpoint = bp.ModelCheckpoint(tmp_path / "{epoch}.safetensors")
    with pytest.raises(PathError, match=r"2\.safetensors can't be written: No space left"):
        fitted(Scripted(), Full(), checkpoint)
    assert names(tmp_path) == ["1.safetensors"]
    assert checkpoint.paths == [str(tmp_path / "1.safetensors")]


@pytest.mark.parametrize(
    ("args", "error", "pattern"),
    [
        ((5,), ArgumentError, "path is of type int"),
        (("a/{epoch/x.safetensors",), OptionError, r"expected braces in the file's name alone"),
        (("{epoch.safetensors",), OptionError, r"format string"),
        (("x.safetensors", None, 2), OptionError, r"expected \{epoch\} in the name, by which 2 files differ"),
        (("x.safetensors", "val_loss", 0), OptionError, "keep is 0"),
        (("x.safetensors", 5), OptionError, "monitor is 5; expected the name of a recorded quantity"),
    ],
    ids=str,
)
def test_checkpoints_check_their_options(args: Any, error: Any, pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        bp.ModelCheckpoint(*args)


@pytest.mark.parametrize(
    ("name", "monitor", "error", "pattern"),
    [
        ("x", "val_los", OptionError, "ModelCheckpoint monitors 'val_los', which is not recorded: did you mean 'val_l"),
        ("{epoc}", None, OptionError, "'epoc', which is not recorded: did you mean 'epoch'"),
        ("{epoch:.x}", None, OptionError, r"\{epoch:\.x\} can't be filled in"),
        ("", None, FolderError, "is a folder"),
        ("file/x", None, PathError, "the folder .*file can't be made"),
    ],
    ids=str,
)
def test_a_checkpoint_says_what_is_wrong(tmp_path: Path, name: str, monitor: Any, error: Any, pattern: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(error, match=pattern):
        fitted(Scripted(), bp.ModelCheckpoint(f"{tmp_path}/{name}", monitor), epochs=1)
    assert names(tmp_path) == ["file"]


# ---- a table --------------------------------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_line_an_epoch_as_soon_as_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log.csv"
    with pytest.raises(KeyboardInterrupt):
        fitted(bp.CSVLogger(path), Breaks())
    assert [line["epoch"] for line in table(path)] == ["1", "2"]
    trainer = fitted(bp.CSVLogger(path), epochs=2, metrics=["confusion_matrix"])
    assert [{k: str(v) for k, v in record.items()} for record in trainer.history] == table(path)
    assert [float(line["loss"]) for line in table(path)] == trainer.history["loss"], "with all digits"


def test_a_table_is_that_of_the_history(tmp_path: Path) -> None:
    """So it goes on where a training does, whatever is left of a line that a crash cut off."""
    path = tmp_path / "log.csv"
    trainer = fitted(bp.CSVLogger(path), epochs=2)
    with open(path, "a") as file:
        file.write("3,6,0.")
    fitted(Scripted(), bp.CSVLogger(path), epochs=1, trainer=trainer)
    fitted(bp.CSVLogger(path), epochs=1, trainer=trainer)
    assert [line["epoch"] for line in table(path)] == ["1", "2", "3", "4"]
    assert [line["val_loss"] for line in table(path)] == ["", "", "4.0", ""]
    fitted(bp.CSVLogger(path), epochs=1)
    assert [line["epoch"] for line in table(path)] == ["1"]


def test_a_file_that_is_no_table_of_epochs_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("x,y\n1,2\n")
    trainer = made()
    with pytest.raises(PathError, match=r"data\.csv is there and no table of epochs, so it is left alone"):
        fitted(bp.CSVLogger(path), trainer=trainer)
    assert path.read_text() == "x,y\n1,2\n"
    assert len(trainer.history) == 0, "before anything was trained"
    with pytest.raises(FolderError, match="is a folder"):
        fitted(bp.CSVLogger(tmp_path))


# ---- other programs' logs -------------------------------------------------------------------------------------------


def test_tensorboard_reads_every_number_of_the_records(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = fitted(bp.TensorBoard(tmp_path / "run"), epochs=2)
    fitted(bp.TensorBoard(tmp_path / "run"), epochs=1, trainer=trainer)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["scalars"]) == {"step", "loss", "lr", "seconds"}
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(r["epoch"], pytest.approx(r["loss"], rel=1e-6)) for r in trainer.history]


@pytest.mark.filterwarnings("ignore")  # its own, of files in folders
def test_mlflow_has_every_number_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    trainer = fitted(bp.MLflow(), epochs=2)
    assert mlflow.active_run() is None
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.metrics["loss"] == trainer.history["loss"][-1]
    assert run.data.params["optimizer"] == repr(trainer.optimizer)[:500]


class Recorder:
    """Stands for a package: notes calls by name."""

    def __init__(self, calls: list[Any], results: dict[str, Any] | None = None) -> None:
        self.calls, self.results = calls, results or {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, *args, *([options] if options else [])))
            return self.results.get(name)

        return call


def test_tensorboard_is_told_of_epochs_by_its_own_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Message(dict[str, Any]):
        def __init__(self, **fields: Any) -> None:
            super().__init__(fields)

        Value = dict

    modules = {
        "summary.writer.event_file_writer": {"EventFileWriter": lambda path: calls.append(path) or Recorder(calls)},
        "compat.proto.summary_pb2": {"Summary": Message},
        "compat.proto.event_pb2": {"Event": Message},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"tensorboard.{name}", types.SimpleNamespace(**content))
    trainer = fitted(bp.TensorBoard(tmp_path), epochs=2)
    assert calls[0] == str(tmp_path)
    assert [call[0] for call in calls[1:]] == ["add_event", "flush"] * 2 + ["close"]
    for (_, event), record in zip(calls[1:5:2], trainer.history, strict=True):
        assert event["step"] == record["epoch"]
        assert event["wall_time"] > 1e9
        values = {value["tag"]: value["simple_value"] for value in event["summary"]["value"]}
        assert values == {name: record[name] for name in ("step", "loss", "lr", "seconds")}


@pytest.mark.parametrize("active", [None, "a run"])
def test_mlflow_is_told_of_epochs(monkeypatch: pytest.MonkeyPatch, active: Any) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "mlflow", Recorder(calls, {"active_run": active}))
    with pytest.raises(KeyboardInterrupt):
        fitted(bp.MLflow(), Breaks(), trainer=(trainer := made()))
    told = [({n: r[n] for n in ("step", "loss", "lr", "seconds")}, {"step": r["epoch"]}) for r in trainer.history]
    metrics = [("log_metrics", *args) for args in told]
    begin, *rest = calls
    assert begin == ("active_run",)
    if active is None:
        assert rest[0] == ("start_run",)
        assert rest[1][1] == {n: str(getattr(trainer, n)) for n in ("network", "loss", "optimizer", "seed")}
        assert rest[2:] == [*metrics, ("end_run", "KILLED")]
    else:
        assert rest == metrics


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (OSError("full"), "FAILED")])
def test_mlflow_is_told_how_a_training_ended(monkeypatch: pytest.MonkeyPatch, error: Any, status: str) -> None:
    class Fails(bp.Callback):
        def on_epoch_end(self, trainer: Any, record: Any) -> None:
            if error is not None:
                raise error

    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "mlflow", Recorder(calls))
    try:
        fitted("mlflow", Fails(), epochs=1)
    except OSError:
        assert error is not None
    assert calls[-1] == ("end_run", status)


def test_mlflow_leaves_no_run_open_that_could_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(parameters: Any) -> None:
        raise ValueError("too long")

    calls: list[Any] = []
    package = Recorder(calls)
    package.log_params = refuses
    monkeypatch.setitem(sys.modules, "mlflow", package)
    with pytest.raises(ValueError, match="too long"):
        fitted(bp.MLflow())
    assert calls == [("active_run",), ("start_run",), ("end_run", "FAILED")]


@pytest.mark.parametrize(("name", "args"), [("TensorBoard", ("folder",)), ("MLflow", ())])
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, name: str, args: Any) -> None:
    package = name.lower()
    for module in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{name}\(.*\) needs {package}: pip install 'bpnet-xp\[{package}\]'"):
        getattr(bp, name)(*args)


# ---- norms ----------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_parameters_and_of_the_gradient(backend: Any) -> None:
    """That of the whole loss, penalties included, before it is clipped."""
    x, y = map(backend.array, (X, Y))
    trainer = made(penalties=[bp.L2(0.1)], clip_norm=1e-3)
    trainer.fit(x, y, callbacks=[bp.Norms(x, y, x[:, 0] ** 2)], progress=False)
    theta, record = backend.host(trainer.theta), trainer.history.epochs[-1]
    _, grad = bp.value_and_grad(
        trainer.network, "cross_entropy", theta, X, Y, sample_weight=X[:, 0] ** 2, penalties=[bp.L2(0.1)]
    )
    for kind, vector in (("norm", theta), ("gradient_norm", grad)):
        for name, array in trainer.layout.unpack(vector).items():
            assert record[f"{kind}/{name}"] == pytest.approx(np.linalg.norm(array), rel=1e-10)
    assert "gradient_norm/1.bias" in record
    assert "/" not in repr(trainer.history), "a line is for people"


def test_norms_change_nothing() -> None:
    assert np.array_equal(fitted(bp.Norms(X, Y)).theta, fitted().theta)


def test_norms_need_no_batch_and_serve_other_callbacks(tmp_path: Path) -> None:
    fitted(bp.Norms(), bp.CSVLogger(tmp_path / "log.csv"), epochs=1)
    (line,) = table(tmp_path / "log.csv")
    assert [name for name in line if "/" in name] == ["norm/0.weight", "norm/1.weight", "norm/0.bias", "norm/1.bias"]
    with pytest.raises(ArgumentError, match="y is None; expected a batch, x and y, or neither"):
        bp.Norms(X)
    with pytest.raises(bp.errors.ShapeError, match="x"):
        fitted(bp.Norms(X[:, :2], Y))


# ---- notebooks ------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_networks_and_histories() -> None:
    network = bp.Sequential(bp.Dense(4, "tanh"), bp.Residual(bp.Dropout(0.5)))
    html = network._repr_html_()
    assert html.count("<tr>") == 5
    for text in ("Sequential", "Residual", ">1.inner<", "Dropout(rate=0.5)", "activation=&#x27;tanh&#x27;"):
        assert text in html
    assert "Dense(units=7" in bp.Dense(7)._repr_html_()
    history = fitted(epochs=2).history
    html = history._repr_html_()
    assert html.count("<tr") == 3
    assert f">{history['loss'][1]:.4g}<" in html
    many = bp.History([{"epoch": i + 1, "loss": 0.5, "lr": 0.1, "seconds": 0.0} for i in range(5000)])._repr_html_()
    assert many.count("<tr") == 62
    assert ">10<" in many
    assert ">... 4,940<" in many
    assert ">4951<" in many
    assert ">11<" not in many
    assert "<table>" in bp.History()._repr_html_()
