"""History, early stopping, progress and callbacks: who is told what and when, and what an interrupt leaves."""

import io
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from support.leftovers import Leftovers

import bpnet as bp
from bpnet.callbacks.base import NAMES
from bpnet.typing import CallbackName


def data(rows: int = 48) -> tuple[Any, Any]:
    x = np.random.default_rng(0).standard_normal((rows, 6))
    return x, np.argmax(x[:, :3], axis=1)


def made(lr: float = 0.1, **options: Any) -> bp.Trainer:
    return bp.Trainer(bp.Sequential(bp.Dense(8, "tanh"), bp.Dense(3)), "cross_entropy", bp.SGD(lr), **options)


class Diary(bp.Callback):
    """Writes down what it is told."""

    def __init__(self, name: str = "", pages: list[Any] | None = None) -> None:
        self.name, self.pages = name, [] if pages is None else pages

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self.pages.append((f"{self.name}begin", epochs, steps))

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.pages.append((f"{self.name}step", step, trainer.step_count))

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        assert record is trainer.history.epochs[-1]
        self.pages.append((f"{self.name}epoch", record["epoch"]))

    def on_train_end(self, trainer: bp.Trainer) -> None:
        self.pages.append((f"{self.name}end",))


class Scripted(bp.Callback):
    """Puts numbers of the test's choosing where the losses of the epochs would be."""

    def __init__(self, values: list[float], name: str = "val_loss") -> None:
        self.values, self.name = iter(values), name

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        record[self.name] = next(self.values)


def stopped_after(values: list[float], **options: Any) -> tuple[bp.Trainer, bp.EarlyStopping]:
    trainer, stopping = made(), bp.EarlyStopping(**options)
    x, y = data()
    script = Scripted(values, options.get("monitor", "val_loss"))
    trainer.fit(x, y, epochs=len(values), callbacks=[script, stopping], progress=False)
    return trainer, stopping


# ---- the order of events --------------------------------------------------------------------------------------------


def test_a_misspelt_method_is_an_error_where_it_is_defined() -> None:
    pattern = (
        "unknown method of the callback Late, 'on_epoch_ends': did you mean 'on_epoch_end'. known are on_epoch_end"
    )
    with pytest.raises(bp.errors.UnknownNameError, match=pattern):

        class Late(bp.Callback):
            def on_epoch_ends(self, trainer: bp.Trainer, record: Any) -> None:
                """Would never be called."""

    class Early(bp.Callback):
        def _on_my_own(self) -> None:
            """Nobody else's business."""


def test_a_history_shows_small_losses() -> None:
    record = {"epoch": 1, "loss": 1.23456e-5, "val_accuracy": 1.0, "seconds": 0.25}
    assert repr(bp.History([record])) == "History\n  epoch   1  loss 1.235e-05  val_accuracy 1.000  0.25 s"


def test_callbacks_are_told_in_their_order() -> None:
    pages: list[Any] = []
    x, y = data(10)
    made().fit(x, y, epochs=2, batch_size=5, callbacks=[Diary("a ", pages), Diary("b ", pages)], progress=False)
    expected = [("begin", 2, 2)]
    for epoch in (1, 2):
        expected += [("step", 1, 2 * epoch - 1), ("step", 2, 2 * epoch), ("epoch", epoch)]
    expected += [("end",)]
    assert pages == [(f"{name} {event[0]}", *event[1:]) for event in expected for name in "ab"]


def test_stop_ends_the_training_after_the_epoch_and_not_the_next_one() -> None:
    class Stop(bp.Callback):
        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            trainer.stop = trainer.step_count >= 3

    trainer, diary = made(), Diary()
    x, y = data(10)
    trainer.fit(x, y, epochs=9, batch_size=5, callbacks=[Stop(), diary], progress=False)
    assert len(trainer.history) == 2
    assert trainer.step_count == 4
    assert diary.pages[-1] == ("end",)
    trainer.fit(x, y, epochs=2, batch_size=5, progress=False)
    assert len(trainer.history) == 4


def test_a_callback_may_change_the_parameters() -> None:
    class Zero(bp.Callback):
        def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
            p = trainer.parameters
            trainer.parameters = {name: {k: 0.0 * v for k, v in leaves.items()} for name, leaves in p.items()}

    trainer = made()
    x, y = data()
    trainer.fit(x, y, epochs=2, callbacks=[Zero()], progress=False)
    assert not trainer.predict(x).any()
    assert trainer.history["loss"][1] == pytest.approx(np.log(3))


# ---- history --------------------------------------------------------------------------------------------------------


def test_history_reads_like_records_and_like_columns() -> None:
    x, y = data()
    trainer = made(lr=0.25)
    history = trainer.fit(x, y, epochs=2, batch_size=12, progress=False)
    trainer.fit(x, y, epochs=1, batch_size=12, validation=(x, y), progress=False)
    assert len(history) == 3
    assert list(history) == history.epochs
    assert history["epoch"] == [1, 2, 3]
    assert history["step"] == [4, 8, 12]
    assert history["lr"] == [0.25] * 3
    assert all(seconds > 0 for seconds in history["seconds"])
    assert history["val_loss"][:2] == [None, None]
    assert history["val_accuracy"][2] == trainer.evaluate(x, y)["accuracy"]
    lines = repr(history).splitlines()
    assert len(lines) == 4
    assert re.fullmatch(
        r"  epoch   3  loss \d\.\d{3,}  val_loss \d\.\d{3,}  val_accuracy [01]\.\d{3,}  \d+\.\d\d s", lines[3]
    )


def test_history_says_what_it_has() -> None:
    with pytest.raises(KeyError, match="'loss' was not recorded: no epoch has ended yet"):
        bp.History()["loss"]
    x, y = data()
    history = made().fit(x, y, progress=False)
    with pytest.raises(KeyError, match="'val_los' was not recorded: recorded are epoch, loss, lr, matmul_prec") as e:
        history["val_los"]
    assert isinstance(e.value, bp.errors.BpnetError)
    assert not str(e.value).startswith('"')
    with pytest.raises(KeyError, match=r"'los' was not recorded: did you mean 'loss'"):
        history["los"]
    for key in (0, -1, slice(2), None, ("loss", "lr"), 1.5):
        with pytest.raises(bp.errors.ArgumentError, match=r"history\[.*\]: expected the name of a recorded"):
            history[key]  # type: ignore[index]
    for epochs in (5, "loss", [1], {"loss": 1}):
        with pytest.raises(bp.errors.ArgumentError, match=r"epochs is .*; expected a list of records"):
            bp.History(epochs)  # type: ignore[arg-type]
    records: list[Any] = []
    assert bp.History(records).epochs is records


# ---- early stopping -------------------------------------------------------------------------------------------------


def test_early_stopping_restores_the_best_parameters(backend: Any) -> None:
    """Trained far too fast on random labels, later epochs are worse; what remains is the best epoch exactly."""
    x, y = map(backend.array, data())
    held = tuple(map(backend.array, (data()[0][::-1].copy(), data()[1])))
    trainer = made(lr=2.0)
    stopping = bp.EarlyStopping(patience=3)
    history = trainer.fit(x, y, epochs=30, batch_size=48, validation=held, callbacks=[stopping], progress=False)
    best = int(np.argmin(history["val_loss"]))
    assert best < len(history) - 1, "the test needs a network that gets worse"
    assert len(history) in (best + 1 + 3, 30)
    assert trainer.evaluate(*held) == {"loss": history["val_loss"][best], "accuracy": history["val_accuracy"][best]}
    assert trainer.step_count == history["step"][best]
    assert stopping.best_epoch == best + 1
    again = made(lr=2.0)
    again.fit(x, y, epochs=best + 1, batch_size=48, progress=False)
    assert np.array_equal(backend.host(again.theta), backend.host(trainer.theta))
    trainer.fit(x, y, epochs=1, batch_size=48, progress=False)
    assert len(history) in (best + 2 + 3, 31)


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([5, 4, 3, 2, 1], {"patience": 1}, 5, 5),
        ([5, 4, 6, 3, 2], {"patience": 1}, 3, 2),
        ([5, 4, 6, 3, 2], {"patience": 2}, 5, 5),
        ([5, 5, 5, 5, 5], {"patience": 3}, 4, 1),
        ([5, 4.9, 4.8, 4.7, 4.6], {"patience": 2, "min_delta": 0.5}, 3, 1),
        ([5, 4.9, 4.4, 4.3, 3.8], {"patience": 2, "min_delta": 0.5}, 5, 5),
        ([0.5, 0.6, 0.55, 0.5, 0.9], {"patience": 2, "monitor": "val_accuracy"}, 4, 2),
        ([0.5, 0.5, 0.5, 0.6, 0.9], {"patience": 3, "monitor": "val_accuracy"}, 5, 5),
        ([0.5, 0.52, 0.54, 0.9], {"patience": 2, "monitor": "val_accuracy", "min_delta": 0.05}, 3, 1),
        ([float("nan"), 3, float("nan"), 2, 1], {"patience": 2}, 5, 5),
        ([float("nan")] * 5, {"patience": 2}, 2, None),
    ],
)
def test_patience_and_min_delta(values: Any, options: Any, epochs: int, best: int | None) -> None:
    trainer, stopping = stopped_after(values, **options)
    assert len(trainer.history) == epochs
    assert trainer.step_count == (best or epochs)
    if best:
        assert stopping.best_epoch == best


def test_early_stopping_can_watch_the_training_loss_and_be_used_again() -> None:
    x, y = data()
    stopping = bp.EarlyStopping("loss", patience=2)
    for _ in range(2):
        trainer = made(lr=0.0)
        trainer.fit(x, y, epochs=9, shuffle=False, callbacks=[stopping], progress=False)
        assert len(trainer.history) == 3
    good = made()
    good.fit(x, y, epochs=5, callbacks=[stopping], progress=False)
    assert len(good.history) == 5
    assert good.step_count == 5


def test_an_unknown_quantity_is_an_error_that_names_the_known() -> None:
    x, y = data()
    diary = Diary()
    for monitor, validation in (("val_loss", None), ("val_los", (x, y))):
        with pytest.raises(ValueError, match=f"'{monitor}', which is not recorded.*recorded are epoch, .*loss") as e:
            made().fit(
                x, y, validation=validation, callbacks=[bp.EarlyStopping(monitor), diary], progress=False
            )  # fmt: skip
        assert isinstance(e.value, bp.errors.OptionError)
        assert diary.pages[-1] == ("end",)


@pytest.mark.parametrize("value", ["float32", None, [1.0]], ids=repr)
def test_early_stopping_wants_a_number(value: Any) -> None:
    with pytest.raises(bp.errors.OptionError, match=r"EarlyStopping monitors 'score', which is .*; expected a number"):
        made().fit(*data(), callbacks=[Scripted([value], "score"), bp.EarlyStopping("score")], progress=False)


# ---- interruption ---------------------------------------------------------------------------------------------------


class Interrupt(bp.Callback):
    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self.step, self.epoch = step, epoch

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if trainer.step_count == self.step:
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        if record["epoch"] == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("when", [{"step": 5}, {"epoch": 2}], ids=str)
def test_an_interrupt_leaves_a_trainer_that_works(backend: Any, when: dict[str, int]) -> None:
    x, y = map(backend.array, data())
    trainer, diary, calm = made(), Diary(), made()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, y, epochs=4, batch_size=16, callbacks=[diary, Interrupt(**when)], progress=False)
    assert diary.pages.count(("end",)) == 1
    assert diary.pages[-1] == ("end",)
    assert len(trainer.history) == len(trainer.history["epoch"]) == when.get("epoch", 1)
    assert trainer.step_count == when.get("step", 6)
    if "epoch" in when:  # between epochs, going on is as if nothing had been
        trainer.fit(x, y, epochs=2, batch_size=16, progress=False)
        calm.fit(x, y, epochs=4, batch_size=16, progress=False)
        assert np.array_equal(backend.host(trainer.theta), backend.host(calm.theta))
    else:
        trainer.fit(x, y, batch_size=16, progress=False)
        assert trainer.history["epoch"] == [1, 2]
    assert np.isfinite(trainer.evaluate(x, y)["loss"])


def test_an_interrupt_also_restores_the_best_parameters() -> None:
    x, y = data()
    trainer = made()
    callbacks = [Scripted([1.0, 2.0, 3.0]), bp.EarlyStopping(), Interrupt(epoch=3)]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, y, epochs=5, callbacks=callbacks, progress=False)
    assert trainer.step_count == 1


def test_an_error_in_a_callback_reaches_the_caller_and_ends_the_training() -> None:
    class Broken(bp.Callback):
        def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
            raise RuntimeError("the disk is full")

    diary = Diary()
    x, y = data()
    with pytest.raises(RuntimeError, match="the disk is full"):
        made().fit(x, y, epochs=3, callbacks=[Broken(), diary], progress=False)
    assert diary.pages[-1] == ("end",)


class Raises(bp.Callback):
    """Raises `errors[when]`, where there is one."""

    def __init__(self, **errors: BaseException) -> None:
        self.errors = errors

    def _raise(self, when: str) -> None:
        if when in self.errors:
            raise self.errors[when]

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self._raise("begin")

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        self._raise("epoch")

    def on_train_end(self, trainer: bp.Trainer) -> None:
        self._raise("end")


@pytest.mark.parametrize("error", [RuntimeError("no disk"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_those_that_began_are_told_the_end_where_another_could_not_begin(error: BaseException) -> None:
    pages: list[Any] = []
    x, y = data()
    callbacks = [
        Diary("a ", pages),
        Diary("b ", pages),
        Raises(begin=error, end=ValueError("unasked")),
        Diary("c ", pages),
    ]
    with pytest.raises(type(error)) as caught:
        made().fit(x, y, callbacks=callbacks, progress=False)
    assert caught.value is error
    assert pages == [("a begin", 1, 1), ("b begin", 1, 1), ("a end",), ("b end",)]


@pytest.mark.parametrize("error", [RuntimeError("no disk"), KeyboardInterrupt()], ids=repr)
def test_all_are_told_the_end_where_one_raises_there(error: BaseException) -> None:
    """So that the best parameters come back in any case."""
    x, y = data()
    trainer, diary = made(), Diary()
    callbacks = [Scripted([1.0, 2.0, 3.0]), Raises(end=error), bp.EarlyStopping(), diary]
    with pytest.raises(type(error)) as caught:
        trainer.fit(x, y, epochs=3, callbacks=callbacks, progress=False)
    assert caught.value is error
    assert trainer.step_count == 1
    assert diary.pages[-1] == ("end",)
    assert [event[0] for event in diary.pages].count("end") == 1
    trainer.fit(x, y, progress=False)
    assert trainer.step_count == 2


def test_the_first_error_is_raised_and_notes_tell_of_others() -> None:
    x, y = data()
    first = KeyboardInterrupt()
    callbacks = [Raises(epoch=first, end=ValueError("one")), Raises(end=OSError("two")), bp.EarlyStopping("loss")]
    with pytest.raises(KeyboardInterrupt) as caught:
        made().fit(x, y, epochs=3, callbacks=callbacks, progress=False)
    assert caught.value is first
    assert first.__notes__ == [
        "Raises.on_train_end raised besides: ValueError('one')",
        "Raises.on_train_end raised besides: OSError('two')",
    ]
    assert made().fit(x, y, callbacks=[Raises()], progress=False), "of nothing but the end"
    quiet = [Raises(end=ValueError("one")), Raises(end=OSError("two"))]
    with pytest.raises(ValueError, match="one") as second:
        made().fit(x, y, callbacks=quiet, progress=False)
    assert second.value.__notes__ == ["Raises.on_train_end raised besides: OSError('two')"]


def test_an_error_is_told_before_the_end() -> None:
    """To all of them, whatever one raises there."""
    x, y = data()
    seen: list[Any] = []

    class Told(bp.Callback):
        def on_exception(self, trainer: bp.Trainer, error: BaseException) -> None:
            seen.append(error)
            raise OSError("two")

        def on_train_end(self, trainer: bp.Trainer) -> None:
            seen.append("end")

    first = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        made().fit(x, y, callbacks=[Told(), Raises(epoch=first), Told()], progress=False)
    assert seen == [first, "end"] * 2
    assert caught.value.__notes__ == ["Told.on_exception raised besides: OSError('two')"] * 2
    seen.clear()
    made().fit(x, y, callbacks=[Told()], progress=False)
    assert seen == ["end"]


HOOKS = [name for name in vars(bp.Callback) if name.startswith("on_") or name.endswith("state_dict")]


class Fails(bp.Callback):
    """Raises an error in one of its methods, and keeps the parameters after each step."""

    def __init__(self, hook: str = "", error: BaseException | None = None) -> None:
        self.hook, self.error, self.steps = hook, error, {0: b""}

    def _call(self, hook: str) -> None:
        if hook == self.hook and self.error is not None:
            raise self.error

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self._call("on_train_begin")

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.steps[trainer.step_count] = trainer.theta.tobytes()
        if step == 2:
            self._call("on_step_end")

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        self._call("on_epoch_end")
        if self.hook == "on_exception" and self.error is not None:
            raise type(self.error)("the first one")

    def on_exception(self, trainer: bp.Trainer, error: BaseException) -> None:
        self._call("on_exception")

    def state_dict(self) -> dict[str, Any]:
        self._call("state_dict")
        return {"a": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._call("load_state_dict")

    def on_train_end(self, trainer: bp.Trainer) -> None:
        self._call("on_train_end")


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS)
def test_wherever_a_callback_raises_the_trainer_is_at_a_step_and_nothing_else_is_left(
    hook: str, error: type[BaseException], tmp_path: Path
) -> None:
    x, y = data()

    def fit(trainer: bp.Trainer, epochs: int, callback: bp.Callback, folder: str = "interrupted") -> None:
        trainer.fit(
            x, y, epochs=epochs, batch_size=16, callbacks=[callback], progress=False,
            checkpoint=tmp_path / folder, every=2, resume=True,
        )  # fmt: skip

    calm, keep, trainer = made(), Fails(), made()
    fit(calm, 2, keep, "calm")
    fit(made(), 1, Fails())
    leftovers = Leftovers(tmp_path)
    with pytest.raises(error):
        fit(trainer, 2, Fails(hook, error("no")))
    assert not leftovers.found()
    assert trainer.theta.tobytes() == keep.steps[trainer.step_count]
    count = trainer.step_count
    trainer.step(x, y)
    assert trainer.step_count == count + 1
    resumed = made()
    fit(resumed, 2, Fails())
    assert resumed.theta.tobytes() == calm.theta.tobytes()


def test_callbacks_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data()
    callbacks: Any = ["early_stopping", "reduce_on_plateau", "norms", "progress"]
    history = made().fit(x, y, epochs=2, validation=(x, y), callbacks=callbacks, progress=False)
    assert "norm/0.weight" in history.epochs[-1]
    assert "epoch   2" in capsys.readouterr().err
    assert all(issubclass(getattr(bp, name), bp.Callback) for name in NAMES.values())
    assert set(get_args(CallbackName)) == NAMES.keys()
    for unfit, error, message in (
        (["early_stoping"], bp.errors.UnknownNameError, "unknown callback .*: did you mean 'early_stopping'"),
        (
            ["CSVLogger"],
            bp.errors.OptionError,
            r"callbacks\[0\] is 'CSVLogger': pass an object, bp.CSVLogger\(\.\.\.\)",
        ),
        ([3], bp.errors.ArgumentError, r"callbacks\[0\] is .*int; expected a name or a bpnet Callback"),
        ("norms", bp.errors.ArgumentError, "expected a list of names or of callbacks"),
    ):
        with pytest.raises(error, match=message):
            made().fit(x, y, callbacks=unfit)


# ---- progress -------------------------------------------------------------------------------------------------------


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown_by(terminal: bool, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    x, y = data()
    made().fit(x, y, epochs=2, batch_size=12, validation=(x, y), **options)
    return stream.getvalue()


def screen(text: str) -> list[str]:
    """What a terminal shows after `text`: a carriage return starts the line anew, ESC [K clears it."""
    lines = [""]
    for part in re.split(r"(\r\x1b\[K|\n)", text):
        if part == "\n":
            lines.append("")
        elif part.startswith("\r"):
            lines[-1] = ""
        else:
            lines[-1] += part
    return lines


LINE = r"epoch   {}  loss \d\.\d{{3,}}  val_loss \d\.\d{{3,}}  val_accuracy [01]\.\d{{3,}}  \d+\.\d\d s"


def test_a_terminal_gets_a_bar_and_keeps_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", iter(range(1000, 9999)).__next__)  # every step is drawn
    text = shown_by(True, monkeypatch)
    lines = screen(text)
    assert len(lines) == 3
    assert lines[2] == ""
    for epoch in (1, 2):
        assert re.fullmatch(LINE.format(epoch), lines[epoch - 1])
    drawn = [part for part in re.split(r"\r\x1b\[K|\n", text) if "/" in part]
    assert len(drawn) == 8
    losses = [re.search(r"loss [\d.]+", bar)[0] for bar in drawn]  # type: ignore[index]
    assert drawn[0] == "epoch   1/2  " + "━" * 7 + "─" * 23 + f"  1/4  {losses[0]}  0:07 left"
    assert drawn[-1] == "epoch   2/2  " + "━" * 30 + f"  4/4  {losses[-1]}  0:00 left"
    assert len(set(losses)) > 4, "those of the steps"


def test_bars_are_drawn_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.arange(1000.0, 1010.0, 0.03).tolist())
    monkeypatch.setattr("time.monotonic", ticks.__next__)
    text = shown_by(True, monkeypatch)
    assert len([part for part in re.split(r"\r\x1b\[K|\n", text) if "/" in part]) == 2


class Losses(bp.Callback):
    before_next_step = False

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.seen.append(float(trainer.step_loss))


class Slow(bp.Callback):
    """Takes 100 seconds for a step, and 3000 for the end of an epoch."""

    before_next_step = False

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.clock[0] += 100.0

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        self.clock[0] += 3000.0


def test_the_bar_shows_loss_and_time_left_without_waiting_for_a_device(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the host the step's loss; else the last epoch's, and the time by whole epochs: steps are but launched."""
    clock, stream = [1000.0], Stream(True)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    x, y = map(backend.array, data())
    trainer, each = made(), Losses()
    callbacks = [Slow(clock), bp.Progress(stream), each]
    trainer.fit(x, y, epochs=3, batch_size=24, callbacks=callbacks, progress=False)
    bars = [part for part in re.split(r"\r\x1b\[K|\n", stream.getvalue()) if "/" in part]
    assert len(bars) == 6
    first, losses = bars[0].partition("1/2  ")[2], [f"{loss:#.4g}" for loss in trainer.history["loss"]]
    if trainer.backend.name == "numpy":
        assert re.fullmatch(r"loss \d\.\d{3}  8:20 left", first)  # five more steps of 100 s
    else:
        assert bars[0].endswith("1/2")
        assert f"loss {losses[0]}" in bars[3]
    assert bars[2].endswith("  55:00 left")  # three of six steps took 3300 s
    assert np.reshape(each.seen, (3, 2)).mean(axis=1).tolist() == pytest.approx(trainer.history["loss"])
    assert trainer.step_loss is None


WHOLE = r"epoch   1/2  ━*─+    1/120  loss \d\.\d{3}  3:59 left"


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        (100, WHOLE),
        (60, WHOLE),
        (45, WHOLE.replace("━*─+  ", "")),
        (40, WHOLE.replace("  3:59 left", "")),
        (25, r"epoch   1/2    1/120"),
        (6, "epoch"),
        (0, WHOLE),
    ],
)
def test_a_bar_fits_into_a_line(monkeypatch: pytest.MonkeyPatch, columns: int, pattern: str) -> None:
    """With a shorter bar, or none, and then without what comes last; where the width is not known, as if of 80."""
    stream = Stream(True)
    monkeypatch.setattr(stream, "fileno", lambda: 7, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((columns, 24)))
    monkeypatch.setattr("time.monotonic", iter(range(1000, 9999)).__next__)
    x, y = data(480)
    made().fit(x, y, epochs=2, batch_size=4, callbacks=[bp.Progress(stream)], progress=False)
    parts = re.split(r"\r\x1b\[K|\n", stream.getvalue())
    bars = [part for part in parts if not part.endswith(" s") and part]
    assert len(bars) == 240
    assert max(map(len, bars)) < (columns or 80)
    assert re.fullmatch(pattern, bars[0])


def test_a_file_gets_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_by(False, monkeypatch) == ""


def test_progress_false_is_silent_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_by(True, monkeypatch, progress=False) == ""


def test_progress_true_into_a_file_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown_by(False, monkeypatch, progress=True)
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(LINE.format(1), lines[0])


def test_progress_goes_to_a_stream_of_ones_own_and_survives_a_narrow_encoding() -> None:
    x, y = data()
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    stream.isatty = lambda: True  # type: ignore[method-assign]
    made().fit(x, y, callbacks=[bp.Progress(stream)], progress=False)
    text = raw.getvalue().decode("ascii")
    assert "epoch   1" in text
    assert "#" * 30 in text


def test_without_a_standard_error_training_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw, where sys.stderr is None."""
    x, y = data()
    monkeypatch.setattr(sys, "stderr", None)
    for progress in (None, True):
        made().fit(x, y, progress=progress)


def test_an_interrupt_leaves_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    x, y = data()
    with pytest.raises(KeyboardInterrupt):
        made().fit(x, y, epochs=3, batch_size=12, callbacks=[Interrupt(step=6)])
    lines = screen(stream.getvalue())
    assert len(lines) == 2
    assert re.fullmatch(r"epoch   1  loss \d\.\d{3,}  \d+\.\d\d s", lines[0])
    assert lines[1] == ""


def test_the_second_fit_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    trainer = made()
    trainer.fit(x, y, epochs=2, progress=False)
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    trainer.fit(x, y, epochs=2)
    assert "epoch   3/4" in stream.getvalue()
    assert [line[:9] for line in screen(stream.getvalue())] == ["epoch   3", "epoch   4", ""]


def test_a_notebook_gets_a_line_that_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel's streams are no terminals, and know no escape sequences."""
    kernel = type("OutStream", (Stream,), {"__module__": "ipykernel.iostream"})
    out, err = kernel(False), kernel(False)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr("time.monotonic", iter(range(1000, 9999)).__next__)  # every step is drawn
    x, y = data()
    made().fit(x, y, epochs=2, batch_size=12, callbacks=[Interrupt(epoch=9)])
    text = out.getvalue()
    assert err.getvalue() == ""
    assert "\x1b" not in text
    assert text.count("/4") == 8
    for line in text.split("\n")[:2]:  # the last thing written covers what was there before
        *before, last = line.split("\r")  # bar, blanks, bar, ..., blanks, record
        assert re.fullmatch(r"epoch   \d  loss \d\.\d{3,}  \d+\.\d\d s", last)
        assert before[-1] == " " * len(before[-2])
    with pytest.raises(KeyboardInterrupt):
        made().fit(x, y, batch_size=12, callbacks=[Interrupt(step=2)])
    *_, bar, blank, end = out.getvalue().split("\r")
    assert (blank, end) == (" " * len(bar), "")
    out.truncate(0)
    made().fit(x, y, progress=False)
    assert out.getvalue() == ""


NO_STREAM = [5, "log.txt", b"x", sys, io.StringIO, io.BytesIO(), print, [], False]


@pytest.mark.parametrize("stream", NO_STREAM, ids=lambda s: type(s).__name__)
def test_progress_wants_a_stream_of_text(stream: Any) -> None:
    with pytest.raises(bp.errors.ArgumentError, match=r"stream is .*; expected an open stream of text, such as sys\.s"):
        bp.Progress(stream)


def test_progress_wants_an_open_stream() -> None:
    closed = io.StringIO()
    closed.close()
    with pytest.raises(bp.errors.ArgumentError, match="stream is of type StringIO; expected an open stream of text"):
        bp.Progress(closed)
