"""A training that a signal may end, and what is kept and told of it."""

import math
import signal
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from bpnet.backends import Array
from bpnet.callbacks import Callback, Progress
from bpnet.cli.model import KEY, evaluate_rows, scores
from bpnet.cli.terminal import JSON, STOP_SIGNALS, reason, show, show_json, signal_of, stop
from bpnet.errors import BpnetError, DivergedError, OptionError, plural
from bpnet.trainer import Trainer


class Report(Progress):
    """The trainer's progress bar, with epochs in the words of the command line."""

    def on_epoch_end(self, trainer: Trainer, record: JSON) -> None:
        line = f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['loss']:#.4g}"
        if "val_loss" in record:
            line += f"  held-out loss {record['val_loss']:#.4g}"
        if "val_accuracy" in record:
            line += f"  held-out accuracy {record['val_accuracy']:.2%}"
        self._write(line + "\n")

    def _write(self, text: str) -> None:
        try:
            super()._write(text)
        except OSError:  # nobody reads any more, which is no reason to lose the training
            self.stream = None


class Interrupt(Callback):
    """A signal ends the training after the steps that run; Ctrl-C after it ends it at once.

    Others come in numbers, as from a terminal that closes, and mean no more than the first.
    """

    before_next_step = False
    number = 0
    """Of the signal that came first."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            stop(number)
        self.number = self.number or number

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        if self.number:
            stop(self.number)

    def on_epoch_end(self, trainer: Trainer, record: JSON) -> None:
        trainer.stop = trainer.stop or self.number > 0


def fit(trainer: Trainer, x: Array, y: Array, interrupt: Interrupt, progress: bool, **options: Any) -> list[BpnetError]:
    """Train to the end, a signal or an error; an error that comes after the first step is returned in a list."""
    try:
        callbacks = [Report(), interrupt] if progress else [interrupt]
        trainer.fit(x, y, callbacks=callbacks, progress=False, **options)
    except KeyboardInterrupt as error:
        interrupt.number = interrupt.number or signal_of(error)
    except BpnetError as error:
        if trainer.step_count == 0:
            raise
        return [error]
    return []


def judge(trainer: Trainer, x: Array, y: Array, problems: list[BpnetError]) -> JSON:
    """The figures for some rows; the loss is NaN, and a problem noted, where there are none."""
    try:
        figures = evaluate_rows(trainer, x, y)
    except BpnetError as error:  # what was learnt may be worth keeping nevertheless
        problems.append(error)
        return {"loss": math.nan, "accuracy": None}
    if not problems and not math.isfinite(figures["loss"]):
        problems.append(DivergedError(f"the loss of {plural(len(x), 'row')} is not finite: try a smaller --lr"))
    return figures


def save(trainer: Trainer, output: Path, provenance: JSON, result: JSON) -> str:
    """Write the model, but not from a training that diverged over a file, or with a loss that nobody can use.

    What became of the file, in words.
    """
    if result["diverged"] and output.exists():
        return f"{output} is left as it was"
    if result["diverged"] and not math.isfinite(result["loss"]):
        return "No model was written"
    trainer.save(output, {**trainer.metadata, KEY: {"provenance": provenance, "training": result}})
    result["output"] = str(output)
    return f"The model after {plural(trainer.step_count, 'step')} is in {output}"


def draw(trainer: Trainer, plot: Path, result: JSON, problems: list[BpnetError]) -> None:
    """The learning curves, if an epoch has ended."""
    from bpnet.cli.plot import draw

    try:
        if len(trainer.history):
            draw(trainer.history.epochs, plot)
            result["plot"] = str(plot)
    except Exception as error:  # Matplotlib writes many formats, by other programs too
        problems.append(OptionError(f"--plot is {plot}, but that can't be drawn: {reason(error)}"))


def tell(result: JSON, history: list[JSON], interrupt: Interrupt, as_json: bool) -> None:
    """The result on stdout."""
    with suppress(OSError) if result["interrupted"] else nullcontext():  # the terminal may be what has gone
        if as_json:
            show_json(result | {"history": history})
        elif not result["diverged"] and "output" in result:
            if result["interrupted"]:
                word = STOP_SIGNALS[signal.Signals(interrupt.number)]
                show(f"{word} after {plural(result['steps'], 'step')}; what was learnt until then is saved")
            rows = plural(result["held_out_rows"] or result["training_rows"], "row")
            which = "held out" if result["held_out_rows"] else "that it was trained on, as none were held out"
            show(f"{scores(result)} on {rows} {which}; {result['seconds']:.1f} s of training")
            show(f"model: {result['output']}")
            if "plot" in result:
                show(f"learning curves: {result['plot']}")
