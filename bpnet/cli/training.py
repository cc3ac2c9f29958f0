"""A training that a signal may end, and what is kept and told of it."""

import math
import signal
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from bpnet import Callback, Progress, Trainer
from bpnet.backends import Array
from bpnet.cli.model import KEY, evaluate_rows, scores
from bpnet.cli.terminal import JSON, STOP_SIGNALS, show, show_json, signal_of, stop
from bpnet.errors import BpnetError, DivergedError, plural


class Report(Progress):
    """The trainer's progress bar, with epochs in the words of the command line."""

    def on_epoch_end(self, trainer: Trainer, record: JSON) -> None:
        words = {
            "loss": "loss {:#.4g}",
            "val_loss": "held-out loss {:#.4g}",
            "val_accuracy": "held-out accuracy {:.2%}",
        }
        figures = [text.format(record[name]) for name, text in words.items() if name in record]
        self._write("  ".join([f"epoch {record['epoch']:>3}/{self.epochs}", *figures]) + "\n")

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
    """Train to the end, a signal or an error; one that comes after the first step is returned in a list."""
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
    """The figures for some rows; adds to the problems where the loss is not finite."""
    figures: JSON = {"loss": math.nan, "accuracy": None}
    try:
        figures = evaluate_rows(trainer, x, y)
        if not problems and not math.isfinite(figures["loss"]):
            raise DivergedError(f"the loss of {plural(len(x), 'row')} is not finite: try a smaller --lr")
    except BpnetError as error:  # what was learnt may be worth keeping nevertheless
        problems.append(error)
    return figures


def save(trainer: Trainer, output: Path, provenance: JSON, result: JSON) -> str:
    """Write the model, and say so; but leave an existing file alone where training diverged.

    There, a model that can't be evaluated is not written at all.
    """
    if result["diverged"] and output.exists():
        return f"{output} is left as it was"
    if result["diverged"] and not math.isfinite(result["loss"]):
        return "No model was written"
    trainer.save(output, {**trainer.metadata, KEY: {"provenance": provenance, "training": result}})
    result["output"] = str(output)
    return f"The model after {plural(trainer.step_count, 'step')} is in {output}"


def tell(result: JSON, trainer: Trainer, interrupt: Interrupt, as_json: bool) -> None:
    """The result on stdout, but for people not where training diverged."""
    with suppress(OSError) if result["interrupted"] else nullcontext():  # the terminal may be what has gone
        if as_json:
            show_json(result | {"history": trainer.history.epochs})
        elif not result["diverged"] and math.isfinite(result["loss"]):
            if result["interrupted"]:
                word = STOP_SIGNALS[signal.Signals(interrupt.number)]
                show(f"{word} after {plural(result['steps'], 'step')}; what was learnt until then is saved")
            rows = plural(result["held_out_rows"] or result["training_rows"], "row")
            which = "held out" if result["held_out_rows"] else "that it was trained on, as none were held out"
            show(f"{scores(result)} on {rows} {which}; {result['seconds']:.1f} s of training")
            show(f"model: {result['output']}")
            if "plot" in result:
                show(f"learning curves: {result['plot']}")
