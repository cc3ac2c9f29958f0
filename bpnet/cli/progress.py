"""What is told of a training while it runs, and what ends it."""

import signal
import time
from contextlib import suppress
from types import FrameType

import bpnet as bp
from bpnet.callbacks import progress as callbacks
from bpnet.callbacks.progress import default_stream, redraws
from bpnet.cli import terminal
from bpnet.cli.terminal import JSON


class Report(bp.Progress):
    """The trainer's progress bar, with epochs in the words of the command line."""

    def __init__(self, balanced: bool = False, fold: str = "") -> None:
        super().__init__()
        self.accuracy, self.fold, self.last = "balanced accuracy" if balanced else "accuracy", fold, ""

    def on_epoch_end(self, trainer: bp.Trainer, record: JSON) -> None:
        line = f"{self.fold}epoch {record['epoch']:>3}/{self.epochs}  loss {record['loss']:#.4g}"
        if "val_loss" in record:
            line += f"  held-out loss {record['val_loss']:#.4g}"
        if "val_accuracy" in record:
            line += f"  held-out {self.accuracy} {record['val_accuracy']:.2%}"
        self.last, epoch = line, record["epoch"]
        if epoch == self.epochs or epoch % 10 ** (len(str(epoch)) - 1) == 0:  # 1 ... 10, 20 ... 100, 200 ...
            self._write(line + "\n")
            self.last = ""

    def on_train_end(self, trainer: bp.Trainer) -> None:
        if self.last:
            self._write(self.last + "\n")
        super().on_train_end(trainer)

    def _write(self, text: str) -> None:
        try:
            super()._write(text)
        except OSError:  # nobody reads any more, which is no reason to lose the training
            self.stream = None


class Interrupt(bp.Callback):
    """A signal ends the training after the steps that run; Ctrl-C after it ends it at once.

    Others come in numbers, as from a terminal that closes, and mean no more than the first.
    """

    before_next_step = False
    number = 0
    """Of the signal that came first."""
    saves = at_once = False
    """Whether the training writes checkpoints; then it says itself when a signal may end it, which is at once."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        again = self.number and number == signal.SIGINT
        self.number = self.number or number
        if again or self.at_once:
            terminal.stop(number)

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self.at_once = self.saves

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if self.number:
            terminal.stop(self.number)

    def on_epoch_end(self, trainer: bp.Trainer, record: JSON) -> None:
        trainer.stop = trainer.stop or self.number > 0


class Reading:
    """Says how much of a file has been read, where a line can be written anew; a signal that has come ends it."""

    def __init__(self, name: str, interrupt: Interrupt, shows: bool) -> None:
        self.name, self.interrupt, self.stream = name, interrupt, default_stream()
        self.shows, self.last = shows and redraws(self.stream), 0.0

    def __call__(self, share: float) -> None:
        if self.interrupt.number:
            terminal.stop(self.interrupt.number)
        if self.shows and self.stream is not None and (share >= 1.0 or time.monotonic() > self.last + 0.1):
            self.last = time.monotonic()
            with suppress(OSError):
                self.stream.write("\r\x1b[K" + (f"reading {self.name}: {share:.0%}" if share < 1.0 else ""))
                self.stream.flush()


class Resumed(callbacks.Resumed):
    """Says where a training goes on, in the words and at the place of the command."""

    def say(self, text: str) -> None:
        terminal.show(text)
