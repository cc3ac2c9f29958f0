"""What happens between epochs: the history, early stopping, the progress bar, and whatever a user adds."""

import math
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from bpnet.errors import OptionError, RecordError
from bpnet.options import number, whole

if TYPE_CHECKING:
    from bpnet.trainer import Snapshot, Trainer

Record = dict[str, Any]


class Callback:
    """Base of the callbacks; override what is wanted.  `trainer.stop = True` ends the training after the epoch.

    A callback may predict, evaluate, save and restore, but not train the trainer that is at it: BusyError.

    On a GPU, several steps may be done by one launch, unless a callback overrides `on_step_end`.  One that can wait
    says so by `before_next_step = False`: it is then told of the steps one after the other once all of them are done,
    so count by its argument `step`; `trainer.step_count` and the parameters are those after the last of them.
    """

    before_next_step: ClassVar[bool] = True

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        """Before the first of `epochs` epochs of `steps` steps each."""

    def on_step_end(self, trainer: "Trainer", step: int) -> None:
        """After a step, the first of an epoch being 1.  Reading values here, as of parameters, waits for a device."""

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        """After an epoch, with its record of the history."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """After the last epoch, also where training was interrupted."""


class History:
    """One record an epoch: `history["val_loss"]` is a list over the epochs, `history.epochs` the records."""

    def __init__(self, epochs: list[Record] | None = None) -> None:
        self.epochs: list[Record] = epochs or []

    def __getitem__(self, name: str) -> list[Any]:
        names = {key for record in self.epochs for key in record}
        if name not in names:
            raise RecordError(f"{name!r} was not recorded; recorded were {', '.join(sorted(names)) or 'no epochs'}")
        return [record.get(name) for record in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.epochs)

    def __repr__(self) -> str:
        return "\n".join(["History", *(f"  {describe(record)}" for record in self.epochs)])


def describe(record: Record) -> str:
    """A record in one line."""
    shown = [f"epoch {record['epoch']:>3}"]
    for name in ("loss", "val_loss", "val_accuracy"):
        if name in record:
            shown.append(f"{name} {record[name]:.4f}")
    return "  ".join([*shown, f"{record['seconds']:.2f} s"])


class EarlyStopping(Callback):
    """Stop when `monitor` has not become better by `min_delta` for `patience` epochs; then restore the best parameters.

    A quantity whose name ends in "accuracy" is better when larger, any other when smaller.
    """

    def __init__(self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0) -> None:
        if not isinstance(monitor, str):
            raise OptionError(f"monitor is {monitor!r}; expected the name of a recorded quantity, such as 'val_loss'")
        self.monitor, self.patience = monitor, whole("patience", patience, 1)
        self.min_delta = number("min_delta", min_delta, 0.0, math.inf, closed="left")
        self.sign = -1.0 if monitor.endswith("accuracy") else 1.0

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self.best, self.waited = math.inf, 0
        self.kept: Snapshot | None = None

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        if self.monitor not in record:
            known = ", ".join(record)
            raise OptionError(
                f"EarlyStopping monitors {self.monitor!r}, which is not recorded; recorded are {known}. "
                "What begins with val_ needs validation="
            )
        value = self.sign * record[self.monitor]
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            self.kept = trainer.snapshot()
            self.best_epoch = record["epoch"]
        else:
            self.waited += 1
            trainer.stop = trainer.stop or self.waited >= self.patience

    def on_train_end(self, trainer: "Trainer") -> None:
        if self.kept is not None:
            trainer.restore(self.kept)


class Progress(Callback):
    """A bar that fills during an epoch and gives way to the epoch's record; off a terminal the records alone.

    Drawn ten times a second at most, never waiting for a device.
    """

    before_next_step = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self.epochs, self.steps, self.shown = len(trainer.history) + epochs, steps, 0.0
        self.terminal = self.stream is not None and self.stream.isatty()

    def on_step_end(self, trainer: "Trainer", step: int) -> None:
        now = time.monotonic()
        if not self.terminal or now - self.shown < 0.1:
            return
        self.shown = now
        full = 30 * step // self.steps
        self._write(
            f"epoch {len(trainer.history) + 1:>3}/{self.epochs}  {'━' * full}{'─' * (30 - full)}  {step}/{self.steps}"
        )

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        self._write(describe(record) + "\n")

    def on_train_end(self, trainer: "Trainer") -> None:
        if self.terminal:
            self._write("")

    def _write(self, text: str) -> None:
        if self.stream is None:
            return
        text = "\r\x1b[K" + text if self.terminal else text
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.replace("━", "#").replace("─", "-"))
        self.stream.flush()
