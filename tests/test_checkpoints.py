"""Checkpoints of a training: a resumed one ends as if it never had been interrupted, and nothing takes them away."""

import errno
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import (
    ArgumentError,
    BpnetWarning,
    BusyError,
    DivergedError,
    FileFormatError,
    OptionError,
    OtherFormatError,
    PathError,
)

ROWS = 44
X = np.random.default_rng(0).standard_normal((ROWS, 6)).astype("float32")
Y = np.argmax(X[:, :3], axis=1)
WEIGHT = np.linspace(0.5, 2.0, ROWS).astype("float32")
OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 12, "progress": False}
STEPS = 4
"""Of an epoch."""


def network() -> bp.Layer:
    return bp.Sequential(bp.Dense(5, "tanh"), bp.BatchNorm(), bp.Dropout(bp.Polynomial(0.3, 3)), bp.Dense(3))


def made(optimizer: Any = None, net: Any = None, **options: Any) -> bp.Trainer:
    optimizer = optimizer or bp.AdamW(bp.Epochs(bp.Cosine(0.02, 4)))
    return bp.Trainer(net or network(), options.pop("loss", "cross_entropy"), optimizer, **options)


def small(**options: Any) -> bp.Trainer:
    return bp.Trainer(bp.Dense(3), "cross_entropy", bp.SGD(0.1, momentum=0.5), **options)


def fitted(trainer: bp.Trainer, x: Any = X, y: Any = Y, **options: Any) -> bp.Trainer:
    trainer.fit(x, y, **OPTIONS | options)
    return trainer


def state(trainer: bp.Trainer) -> list[Any]:
    """All that the next step goes on from, and the history but for the seconds, which differ."""
    (theta, buffers, more), count = trainer.snapshot()
    host = [trainer.backend.to_host(array).tobytes() for array in (theta, buffers, *more)]
    return [host, count, trainer.lr_scale, [{**record, "seconds": 0.0} for record in trainer.history]]


def only(folder: Path, number: int, to: Path) -> Path:
    """A folder that has of another one the checkpoint after so many steps alone."""
    to.mkdir(exist_ok=True)
    name = f"step-{number:010}.safetensors"
    (to / name).write_bytes((folder / name).read_bytes())
    return to


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


class At(bp.Callback):
    """Does something after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if trainer.step_count == self.step:
            self.action()


def fails() -> None:
    raise RuntimeError("on purpose")


class Keeps(bp.Callback):
    """Keeps all that may be kept."""

    def __init__(self, more: Any = None) -> None:
        self.more = more

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self.kept: dict[str, Any] = {"steps": [], "host": np.arange(3), "worst": float("inf"), "none": None}

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.kept["steps"].append((step, f"{trainer.step_count}"))
        if len(self.kept["steps"]) == 1:
            self.kept["first"] = trainer.snapshot()

    def state_dict(self) -> Any:
        return self.kept if self.more is None else self.more

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state


# ---- the same bits --------------------------------------------------------------------------------------------------


def test_a_resumed_training_ends_as_if_it_never_had_been_interrupted(backend: Any, tmp_path: Path) -> None:
    """In the midst of an epoch: with what schedules, dropout and callbacks keep, on the device too."""
    x, y, weight = (backend.array(a[:36]) for a in (X, Y, WEIGHT))

    def run(**options: Any) -> tuple[bp.Trainer, Keeps]:
        kept = Keeps()
        callbacks = [kept, bp.EarlyStopping("loss", 1, 0.3), bp.ReduceOnPlateau("loss", 0.5, 1, 0.2)]
        return fitted(made(), x, y, callbacks=callbacks, sample_weight=weight, **options), kept

    whole, kept = run(checkpoint=tmp_path / "all", every=1, keep=99)
    for number in (5,) if backend.name != "numpy" else (2, 3, 4, 5, 6):
        folder = only(tmp_path / "all", number, tmp_path / f"{number}")
        resumed, others = run(checkpoint=folder, resume=True)
        assert state(resumed) == state(whole)
        assert files(folder)[-1] == files(tmp_path / "all")[-1]
        assert others.kept["steps"] == kept.kept["steps"]
        assert (others.kept["worst"], others.kept["none"], others.kept["host"].tolist()) == (np.inf, None, [0, 1, 2])
        resumed.restore(others.kept["first"])
        assert resumed.step_count == 1


@pytest.mark.gpu
def test_checkpoints_wait_for_the_end_of_a_launch_of_several_steps(device: Any, tmp_path: Path) -> None:
    x, y = device.array(X[:40]), device.array(Y[:40])
    more: dict[str, Any] = {"batch_size": 2, "epochs": 3}  # 20 steps an epoch
    whole = fitted(small(), x, y, checkpoint=tmp_path / "all", every=1, keep=99, **more)
    numbers = [int(name[5:15]) for name in files(tmp_path / "all")[1:]]
    assert 40 in numbers and len(numbers) < 45, numbers  # noqa: PT018
    middle = next(number for number in numbers if number > 40)
    folder = only(tmp_path / "all", middle, tmp_path / "other")
    resumed = fitted(small(), x, y, checkpoint=folder, resume=True, every=1, **more)
    assert state(resumed) == state(whole) == state(fitted(small(), x, y, **more))


def bootstrap() -> Any:
    """An order that is another whenever it is asked for."""
    rng = np.random.default_rng(0)
    return lambda epoch: rng.integers(0, ROWS, ROWS)


RANKS = np.random.default_rng(1).integers(0, 9, (ROWS, 1))
CASES: dict[str, Any] = {
    "in their order": ({}, {"shuffle": False}),
    "rows left out": ({}, {"drop_last": True}),
    "micro-batches": ({"micro_batch": 5, "net": bp.Sequential(bp.Dense(4), bp.Dropout(0.2), bp.Dense(3))}, {}),
    "streams": ({"device": "torch"}, {}),
    "streams in their order": ({"device": "torch"}, {"shuffle": False}),
    "a batch of all": ({"optimizer": bp.LBFGS(), "net": bp.Dense(3)}, {"batch_size": ROWS}),
    "schedule-free": ({"optimizer": bp.ScheduleFreeAdamW(0.02)}, {}),
    "an average": ({"optimizer": bp.ExponentialAverage(bp.Adafactor())}, {}),
    "sparse tables": (
        {
            "net": bp.Sequential(
                bp.Inputs(a=bp.Sequential(bp.Embedding(9, 4, sparse=True), bp.Flatten()), b=bp.Dense(4)), bp.Dense(3)
            ),
            "optimizer": bp.Adam(0.02),
        },
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_trained_how_is_resumed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "streams" in case:
        pytest.importorskip("torch")
        monkeypatch.setattr("bpnet.data.loader.CACHED_SHARE", 0.0)
    options, more = CASES[case]
    x = {"a": RANKS, "b": X} if case == "sparse tables" else X
    more = {"validation": (x, Y), "callbacks": ["early_stopping"], "metrics": ["f1"], **more}
    whole = fitted(made(**options), x, checkpoint=tmp_path / "all", every=1, keep=99, **more)
    number = whole.step_count // 4 + 2
    folder = only(tmp_path / "all", number, tmp_path / "other")
    assert state(fitted(made(**options), x, checkpoint=folder, resume=True, **more)) == state(whole)


def test_an_order_that_is_drawn_anew_is_kept_for_the_epoch(tmp_path: Path) -> None:
    def run(order: Any, **more: Any) -> Any:
        trainer = fitted(small(), epochs=1, shuffle=order, **more)
        return state(trainer)

    order = bootstrap()
    whole = run(order, checkpoint=tmp_path / "all", every=1, keep=99)
    assert run(order, checkpoint=only(tmp_path / "all", 2, tmp_path / "other"), resume=True) == whole


def test_the_lengths_of_checkpoints_change_nothing_and_a_trainer_goes_on_in_its_folder(tmp_path: Path) -> None:
    whole = state(fitted(small()))
    assert state(fitted(small(), checkpoint=tmp_path / "a", every=3)) == whole
    trainer = small()
    trainer.classes, trainer.metadata = ["x", "y", "z"], {"mine": 1}
    with pytest.raises(RuntimeError, match="on purpose"):
        fitted(trainer, checkpoint=tmp_path / "b", callbacks=[At(6, fails)])
    assert trainer.step_count == 6
    assert state(fitted(trainer, checkpoint=tmp_path / "b", resume=True)) == whole
    assert state(fitted(trainer, checkpoint=tmp_path / "b", resume=True)) == whole  # it is complete
    longer = fitted(small(), checkpoint=tmp_path / "b", resume=True, epochs=6)
    assert state(longer) == state(fitted(small(), epochs=6))
    assert (longer.classes, longer.metadata) == (trainer.classes, trainer.metadata)


def test_epochs_are_those_of_the_training_whatever_was_before(tmp_path: Path) -> None:
    def run(**more: Any) -> Any:
        trainer = fitted(small(), epochs=2)
        return trainer, lambda: state(fitted(trainer, epochs=3, **more))

    whole = run()[1]()
    _, go_on = run(checkpoint=tmp_path, callbacks=[At(14, fails)])
    with pytest.raises(RuntimeError):
        go_on()
    again = run(checkpoint=tmp_path, resume=True)[1]()
    assert again == whole
    assert len(again[-1]) == 5


def test_an_epoch_that_a_callback_wants_to_be_the_last_is_done_first(tmp_path: Path) -> None:
    class Stops(bp.Callback):
        begun: ClassVar[list[int]] = []

        def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
            self.begun.append(epochs)

        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            trainer.stop = trainer.stop or trainer.step_count == 6

    with pytest.raises(RuntimeError, match="on purpose"):
        fitted(small(), checkpoint=tmp_path, every=1, callbacks=[Stops(), At(7, fails)])
    whole = state(fitted(small(), epochs=2))
    for epochs in (3, 1):  # it has stopped; it has had more
        assert state(fitted(small(), checkpoint=tmp_path, resume=True, epochs=epochs, callbacks=[Stops()])) == whole
    assert Stops.begun == [4, 2, 0]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_the_last_and_the_best_are_kept_each_a_model_file(tmp_path: Path) -> None:
    losses = []

    class Watch(bp.Callback):
        def on_epoch_end(self, trainer: bp.Trainer, record: Any) -> None:
            record["val_loss"] = (3.0, 1.0, 2.0, float("nan"))[record["epoch"] - 1]
            losses.append(record["val_loss"])
            record |= {"own": np.float32(2.5), "count": np.int64(record["epoch"])}

    data = {"validation": (X, Y), "callbacks": [Watch()]}
    fitted(small(), checkpoint=tmp_path / "epochs", keep=2, **data)
    names = [f"step-{number:010}.safetensors" for number in (12, 16)]
    assert files(tmp_path / "epochs") == ["best.safetensors", *names]
    best = bp.load(tmp_path / "epochs" / "best.safetensors")
    assert repr([best.history[name] for name in ("own", "count")]) == "[[2.5, 2.5], [1, 2]]"
    assert len(fitted(best, checkpoint=tmp_path / "epochs", resume=True, **data).history) == 4
    fitted(small(), checkpoint=tmp_path / "steps", every=6)
    names = [f"step-{number:010}.safetensors" for number in (6, 12, 16)]  # the end is kept, too
    assert files(tmp_path / "steps") == ["best.safetensors", *names]
    loaded = bp.load(tmp_path / "steps" / names[0])
    assert (loaded.step_count, len(loaded.history)) == (6, 1)
    loaded.predict(X)


def test_a_damaged_file_is_passed_over_by_name_and_costs_what_came_since(tmp_path: Path) -> None:
    whole = fitted(small(), checkpoint=tmp_path, every=1)
    newest = tmp_path / files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(BpnetWarning, match=rf"passed over: .*{newest.name}"):
        again = fitted(small(), checkpoint=tmp_path, resume=True)
    assert state(again) == state(whole)
    for name in files(tmp_path):
        (tmp_path / name).write_bytes(b"")
    with (
        pytest.warns(BpnetWarning),
        pytest.raises(FileFormatError, match=r"none of the 4 checkpoints in .* can be read"),
    ):
        fitted(small(), checkpoint=tmp_path, resume=True)


def test_what_a_newer_bpnet_wrote_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpnet.files.tensors.FORMAT", 99)
    fitted(small(), checkpoint=tmp_path)
    monkeypatch.undo()
    with pytest.raises(OtherFormatError, match="was written by a newer bpnet"):
        fitted(small(), checkpoint=tmp_path, resume=True)


def test_a_full_disk_costs_neither_the_parameters_nor_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = small()
    with pytest.raises(PathError, match=r"step-0000000006\.safetensors can't be written: No space left"):
        fitted(
            trainer, checkpoint=tmp_path, every=3, callbacks=[At(6, lambda: monkeypatch.setattr(os, "fsync", no_space))]
        )
    monkeypatch.undo()
    assert trainer.step_count == 6
    assert files(tmp_path) == ["best.safetensors", "step-0000000003.safetensors"]
    assert state(fitted(trainer, checkpoint=tmp_path, resume=True)) == state(fitted(small()))


def test_a_folder_that_is_gone_or_read_only_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    folder, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    with pytest.raises(PathError, match="there"):
        fitted(small(), checkpoint=folder, every=1, callbacks=[At(3, lambda: folder.rename(elsewhere))])
    assert files(elsewhere) == ["step-0000000001.safetensors", "step-0000000002.safetensors"]
    folder.mkdir()
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PathError, match="there can't be written to: Read-only"):
        fitted(small(), checkpoint=folder)
    monkeypatch.undo()
    folder.rmdir()
    folder.write_bytes(b"a file")
    with pytest.raises(PathError, match=r"the folder .*there can't be made"):
        fitted(small(), checkpoint=folder)


def test_divergence_is_found_before_it_is_saved(tmp_path: Path) -> None:
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.SGD(bp.Epochs(bp.Constant(1e25))))
    with pytest.raises(DivergedError, match="step 2"):
        fitted(trainer, X, X[:, :1], checkpoint=tmp_path, every=1)
    saved = bp.load(tmp_path / files(tmp_path)[-1])
    assert saved.step_count == trainer.step_count == 1
    assert np.isfinite(saved.theta).all()


# ---- of another training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "options", "said"),
    [
        ({"seed": 1}, {}, "seed is 1, but 0 in the training"),
        ({"clip_norm": 1.0}, {}, "clip_norm is 1.0, but None in"),
        ({"micro_batch": 4}, {}, "micro_batch is 4, but None in"),
        ({"network": bp.Sequential(bp.Dense(3))}, {}, "the network is another than in the training"),
        ({"loss": "focal"}, {}, "the loss is "),
        ({"optimizer": bp.SGD(0.2)}, {}, "the optimizer is "),
        ({"optimizer": bp.SGD(0.2, momentum=0.5)}, {}, "optimizer.lr is 0.2, but 0.1 in"),
        ({"network": bp.Dense(3, bias=False)}, {}, "network.bias is False, but True in"),
        ({}, {"batch_size": 11}, "batch_size is 11, but 12 in"),
        ({}, {"x": X[1:], "y": Y[1:]}, "the number of rows is 43, but 44 in"),
        ({}, {"x": X[:, 1:]}, r"the shape of a row of x is \(5,\), but \(6,\) in"),
        ({}, {"x": X.astype("float64")}, "the type of x is 'float64', but 'float32' in"),
        ({}, {"shuffle": False}, "shuffle is False, but True in"),
        ({}, {"drop_last": True}, "drop_last is True, but False in"),
        ({}, {"sample_weight": WEIGHT}, "sample_weight is 'given', but None in"),
        ({}, {"validation": (X, Y)}, "validation is '44 rows', but None in"),
        ({}, {"callbacks": ["early_stopping"], "validation": (X, Y)}, "the callbacks that keep a state are"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_training_is_refused_with_what_differs(trainer: Any, options: Any, said: str, tmp_path: Path) -> None:
    fitted(small(), checkpoint=tmp_path, epochs=1)
    given: dict[str, Any] = {"network": bp.Dense(3), "loss": "cross_entropy", "optimizer": bp.SGD(0.1, momentum=0.5)}
    other = bp.Trainer(**given | trainer)
    with pytest.raises(OptionError, match=f"{said}.*{tmp_path.name}"):
        fitted(other, checkpoint=tmp_path, resume=True, **options)
    assert (len(other.history), other.step_count) == (0, 0)


def test_what_was_trained_otherwise_is_not_thrown_away(tmp_path: Path) -> None:
    fitted(small(), checkpoint=tmp_path, epochs=1)
    other = fitted(small(), X, (Y + 1) % 3, epochs=1)
    with pytest.raises(OptionError, match="has been trained for 1 epoch that are not those"):
        fitted(other, checkpoint=tmp_path, resume=True)


def test_other_data_are_noticed(tmp_path: Path) -> None:
    fitted(small(), checkpoint=tmp_path, epochs=1, validation=(X, Y))
    for x, y, held_out in ((X[::-1], Y[::-1], X), (X, (Y + 1) % 3, X), (X, Y, X[::-1])):
        with pytest.warns(BpnetWarning, match="was begun with other data, or with the same rows in another order"):
            fitted(small(), x, y, checkpoint=tmp_path, resume=True, epochs=1, validation=(held_out, Y))


def test_the_state_of_a_callback_is_for_what_it_follows(tmp_path: Path) -> None:
    stopping = [bp.EarlyStopping(name) for name in ("loss", "val_loss")]
    fitted(small(), checkpoint=tmp_path, epochs=1, validation=(X, Y), callbacks=stopping)
    with pytest.raises(OptionError, match="the callbacks that keep a state are others than in"):
        fitted(small(), checkpoint=tmp_path, resume=True, validation=(X, Y), callbacks=stopping[::-1])


def test_a_used_folder_and_what_no_folder_is_given_for_are_errors(tmp_path: Path) -> None:
    fitted(small(), checkpoint=tmp_path, epochs=1)
    with pytest.raises(OptionError, match="which holds a training already: go on with that by resume=True"):
        fitted(small(), checkpoint=tmp_path)
    for options, error, said in (
        ({"resume": True}, OptionError, "resume is given, but no folder"),
        ({"every": 5}, OptionError, "every is given, but no folder"),
        ({"checkpoint": tmp_path, "every": 0}, OptionError, "every is 0"),
        ({"checkpoint": tmp_path, "keep": 0}, OptionError, "keep is 0"),
        ({"checkpoint": 5}, ArgumentError, "path is of type int"),
    ):
        with pytest.raises(error, match=said):
            fitted(small(), **options)


def test_a_folder_is_the_same_wherever_the_program_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fitted(small(), checkpoint="here", every=100, callbacks=[At(3, lambda: monkeypatch.chdir("elsewhere"))])
    assert files(tmp_path / "here") == ["best.safetensors", "step-0000000016.safetensors"]
    if os.name == "posix":  # elsewhere the current folder can't be removed
        os.rmdir(tmp_path / "elsewhere")
        for given in ({"checkpoint": "here"}, {"callbacks": [bp.CSVLogger("here/epochs.csv")]}):
            with pytest.raises(PathError, match="here is of the current folder, which can't be found"):
                fitted(small(), **given)
        monkeypatch.chdir(tmp_path)


def test_a_folder_is_of_one_training_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr("bpnet.files.folder.WAIT", 0.1)

    def second() -> None:
        with pytest.raises(BusyError) as refused:
            fitted(small(), checkpoint=tmp_path, resume=True)
        said.append(str(refused.value))

    fitted(small(), checkpoint=tmp_path, callbacks=[At(5, second)])
    assert said[0].startswith(f"process {os.getpid()} on ")
    assert f"trains in the folder {tmp_path} at this moment" in said[0]
    fitted(small(), checkpoint=tmp_path, resume=True)


# ---- callbacks ------------------------------------------------------------------------------------------------------


def endless() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["a"] = [found]
    return found


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([1], r"Keeps.state_dict\(\) gave something of type list; expected a dict"),
        ({"a": [{1}]}, r"Keeps.state_dict\(\)\['a'\]\[0\] is of type set; expected numbers, text, arrays"),
        ({"a": {1: 2}}, r"Keeps.state_dict\(\)\['a'\] is of type dict"),
        ({"a": np.zeros(1, "float16")}, r"Keeps.state_dict\(\)\['a'\] is an array of float16 values; expected whole"),
        (endless(), r"Keeps.state_dict\(\) contains itself, or is nested too deeply"),
    ],
    ids=["a list", "a set", "a number as key", "float16", "itself"],
)
def test_what_no_file_can_hold_of_a_callback_is_named(kept: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=said):
        fitted(small(), checkpoint=tmp_path, callbacks=[Keeps(kept)])


def test_mlflow_goes_on_in_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs: dict[str, list[int]] = {}
    now: list[Any] = []

    class Module:
        @staticmethod
        def active_run() -> Any:
            return now[-1] if now else None

        @staticmethod
        def start_run(run_id: str | None = None) -> None:
            name = run_id or f"run {len(runs)}"
            runs.setdefault(name, [])
            now.append(type("Run", (), {"info": type("Info", (), {"run_id": name})}))

        @staticmethod
        def end_run(status: str) -> None:
            now.pop()

        delete_run = staticmethod(runs.pop)
        log_params = staticmethod(lambda parameters: None)

        @staticmethod
        def log_metrics(metrics: Any, step: int) -> None:
            runs[now[-1].info.run_id].append(step)

    monkeypatch.setitem(sys.modules, "mlflow", Module)
    with pytest.raises(RuntimeError):
        fitted(small(), checkpoint=tmp_path, callbacks=["mlflow", At(6, fails)])
    fitted(small(), checkpoint=tmp_path, callbacks=["mlflow"], resume=True)
    assert runs == {"run 0": [1, 2, 3, 4]}


# ---- signals --------------------------------------------------------------------------------------------------------

POSIX = pytest.mark.skipif(os.name != "posix", reason="there are no POSIX signals here")


def sends(name: str) -> Any:
    return lambda: signal.raise_signal(getattr(signal, name))


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Those of a program of its own, which are there again after a test."""
    numbers = {n: signal.default_int_handler if n == "SIGINT" else signal.SIG_DFL for n in ("SIGINT", "SIGTERM")}
    if hasattr(signal, "SIGHUP"):
        numbers["SIGHUP"] = signal.SIG_DFL
    before = {name: signal.signal(getattr(signal, name), handler) for name, handler in numbers.items()}
    yield
    assert {name: signal.getsignal(getattr(signal, name)) for name in numbers} == numbers
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@POSIX
@pytest.mark.parametrize("place", ["a step", "validation", "the end of an epoch"])
@pytest.mark.parametrize(("name", "status"), [("SIGINT", None), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_waits_for_the_step_and_a_checkpoint(
    place: str, name: str, status: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtEnd(bp.Callback):
        def on_epoch_end(self, trainer: bp.Trainer, record: Any) -> None:
            if len(trainer.history) == 2:
                sends(name)()

    evaluate = bp.engine.Engine.evaluate  # type: ignore[attr-defined]

    def interrupted(self: Any, *args: Any) -> Any:
        if self.count == 2 * STEPS and place == "validation":
            monkeypatch.undo()
            sends(name)()
        return evaluate(self, *args)

    monkeypatch.setattr("bpnet.engine.Engine.evaluate", interrupted)
    callbacks = [At(6, sends(name)) if place == "a step" else AtEnd()] if place != "validation" else []
    number, data = 6 if place == "a step" else 2 * STEPS, {"validation": (X, Y)}
    trainer = small()
    with pytest.raises(SystemExit if status else KeyboardInterrupt) as ended:
        fitted(trainer, checkpoint=tmp_path, every=100, callbacks=callbacks, **data)
    said = capsys.readouterr().err if status else str(ended.value)
    path = tmp_path / f"step-{number:010}.safetensors"
    assert f"after {number} steps, saved in {path}: resume=True goes on from there" in said
    assert ("terminated" if name == "SIGTERM" else "interrupted" if name == "SIGINT" else "hung up") in said
    assert getattr(ended.value, "code", None) == status
    assert trainer.step_count == number
    assert state(fitted(small(), checkpoint=tmp_path, resume=True, **data)) == state(fitted(small(), **data))


@POSIX
def test_a_terminal_that_has_gone_hides_no_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", open(os.devnull))  # noqa: SIM115 - nothing can be written there
    with pytest.raises(SystemExit) as ended:
        fitted(small(), checkpoint=tmp_path, callbacks=[At(6, sends("SIGHUP"))])
    sys.stderr.close()
    assert ended.value.code == 129


@POSIX
def test_a_signal_is_not_lost_where_a_training_fails_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def signalled(*args: Any) -> Any:
        sends("SIGTERM")()
        fails()

    with pytest.raises(SystemExit) as ended:
        fitted(small(), checkpoint=tmp_path, callbacks=[At(6, signalled)])
    assert ended.value.code == 143
    assert isinstance(ended.value.__context__, RuntimeError)
    assert "training terminated as it failed: RuntimeError: on purpose" in capsys.readouterr().err
    monkeypatch.setattr("bpnet.files.folder._locked", signalled)  # before it has begun
    with pytest.raises(SystemExit):
        fitted(small(), checkpoint=tmp_path, resume=True)


@POSIX
def test_ctrl_c_again_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        sends("SIGTERM")()
        sends("SIGINT")()

    trainer = small()
    with pytest.raises(KeyboardInterrupt, match="training interrupted at once: nothing more was written"):
        fitted(trainer, checkpoint=tmp_path, callbacks=[At(6, twice)])
    assert files(tmp_path) == ["best.safetensors", "step-0000000004.safetensors"]
    assert trainer.step_count == 6


@POSIX
@pytest.mark.parametrize("raises", [True, False])
def test_a_handler_of_the_users_own_is_called_after_the_checkpoint(raises: bool, tmp_path: Path) -> None:
    seen: list[Any] = []

    def handler(number: int, frame: Any) -> None:
        seen.append((number, files(tmp_path)))
        if raises:
            raise OSError("mine")

    signal.signal(signal.SIGTERM, handler)
    trainer = small()
    try:
        fitted(trainer, checkpoint=tmp_path, every=100, callbacks=[At(6, sends("SIGTERM"))])
    except OSError as error:
        assert (raises, str(error)) == (True, "mine")  # noqa: PT017
    assert seen == [(signal.SIGTERM, ["best.safetensors", "step-0000000006.safetensors"])]
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is handler
    assert trainer.step_count == (6 if raises else 16)


@POSIX
def test_signals_that_are_ignored_or_come_without_checkpoints_are_as_they_were(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    fitted(small(), checkpoint=tmp_path, callbacks=[At(6, sends("SIGHUP"))])
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    trainer = small()
    with pytest.raises(KeyboardInterrupt) as ended:
        fitted(trainer, callbacks=[At(6, sends("SIGINT"))])
    assert ended.value.args == ()


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    seen = []
    look = At(6, lambda: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=fitted, args=(small(),), kwargs={"checkpoint": tmp_path, "callbacks": [look]})
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
    assert len(files(tmp_path)) == 4


def _forked() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads, which the child has no use for
        return os.fork()


@POSIX
def test_a_killed_process_loses_no_more_than_an_interval_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.pipe()

    def kill() -> None:
        if _forked() == 0:
            os.close(theirs)
            os.read(ours, 1)  # a child that lives on
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        pid = _forked()
        if pid == 0:
            try:
                fitted(small(compile=False), checkpoint=tmp_path, every=2, callbacks=[At(7, kill)])
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        monkeypatch.setattr("bpnet.files.folder.WAIT", 20.0)  # for the child, on a busy machine
        assert files(tmp_path)[-1] == "step-0000000006.safetensors"
        assert state(fitted(small(), checkpoint=tmp_path, resume=True)) == state(fitted(small()))
    finally:
        os.close(theirs)
        os.close(ours)


@POSIX
def test_a_child_that_is_to_end_ends(tmp_path: Path) -> None:
    """As those of multiprocessing, which a pool ends by SIGTERM."""
    ended = []

    def child() -> None:
        ours, theirs = os.pipe()
        pid = _forked()
        if pid == 0:
            os.write(theirs, b"x")  # Python forgets a signal that comes before
            time.sleep(10)
            os._exit(0)
        os.read(ours, 1)
        os.kill(pid, signal.SIGTERM)
        ended.append(os.WTERMSIG(os.waitpid(pid, 0)[1]))
        os.close(ours)
        os.close(theirs)

    trainer = fitted(small(compile=False), checkpoint=tmp_path, epochs=2, callbacks=[At(6, child)])
    assert ended == [signal.SIGTERM]
    assert trainer.step_count == 8


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_training_on_a_table_is_resumed(tmp_path: Path) -> None:
    table = {"a": X[:, 0], "b": X[:, 1], "kind": np.array(["x", "y", "z"])[Y]}
    options: dict[str, Any] = {"hidden": [4], "epochs": 3, "batch_size": 12, "progress": False}

    def run(**more: Any) -> bp.TableModel:
        return bp.train_table(table, "kind", **options | more)

    whole = run()
    with pytest.raises(RuntimeError):
        run(checkpoint=tmp_path, every=1, callbacks=[At(5, fails)])
    assert isinstance(bp.load(tmp_path / files(tmp_path)[-1]), bp.TableModel)
    assert state(run(checkpoint=tmp_path, resume=True).trainer) == state(whole.trainer)
    with pytest.raises(OptionError, match="class_weight is 'balanced', but None in the training"):
        run(checkpoint=tmp_path, resume=True, class_weight="balanced")
    with pytest.raises(OptionError, match="the columns are others than in the training"):
        run(checkpoint=tmp_path, resume=True, types={"b": "category"})
    with pytest.raises(OptionError, match="the model is 'a trainer', but 'of a table' in the training"):
        fitted(small(), checkpoint=tmp_path, resume=True)
