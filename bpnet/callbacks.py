"""What happens between epochs: the history, early stopping, the progress bar, and whatever a user adds."""

import io
import math
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from bpnet.errors import ArgumentError, OptionError, RecordError, UnknownNameError, closest, kind_of, shown
from bpnet.metrics import larger_is_better
from bpnet.options import number, whole

if TYPE_CHECKING:
    from bpnet.step import Snapshot
    from bpnet.trainer import Trainer

Record = dict[str, Any]


class Callback:
    """Base of the callbacks; override what is wanted.  `trainer.stop = True` ends the training after the epoch.

    A callback may predict, evaluate, save and restore, but not train the trainer that is at it: BusyError.

    On a GPU, several steps may be done by one launch, unless a callback overrides `on_step_end`.  One that can wait
    says so by `before_next_step = False`: it is then told of the steps one after the other once all of them are done,
    so count by its argument `step`; `trainer.step_count` and the parameters are those after the last of them.
    """

    before_next_step: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        """A method that is never called because its name is misspelt is an error where it is defined."""
        super().__init_subclass__(**options)
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name in vars(cls):
            if name.startswith("on_") and name not in known:
                raise UnknownNameError(f"method of the callback {cls.__name__},", name, known)

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        """Before the first of `epochs` epochs of `steps` steps each."""

    def on_step_end(self, trainer: "Trainer", step: int) -> None:
        """After a step, the first of an epoch being 1.  Reading values here, as of parameters, waits for a device."""

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        """After an epoch, with its record of the history."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """After the last epoch, also where training was interrupted or something raised, `on_train_begin` apart."""


def check_callbacks(callbacks: Any) -> list[Callback]:
    """The callbacks as a list; raises ArgumentError where they are none."""
    if not isinstance(callbacks, list | tuple):
        raise ArgumentError(f"callbacks is {kind_of(callbacks)}; expected a list of callbacks")
    for i, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            hint = "an instance of it" if isinstance(callback, type) else "a bpnet Callback"
            raise ArgumentError(f"callbacks[{i}] is {kind_of(callback)}; expected {hint}")
    return list(callbacks)


def needs_each_step(callback: Callback) -> bool:
    """Whether it is to be told after every step, before the next."""
    return callback.before_next_step and getattr(callback.on_step_end, "__func__", None) is not Callback.on_step_end


def end(callbacks: Sequence[Callback], trainer: "Trainer", first: BaseException | None = None) -> None:
    """Tell all of them the end, whatever one raises; raise the first error, to which later ones are notes."""
    for callback in callbacks:
        try:
            callback.on_train_end(trainer)
        except BaseException as error:
            if first is None:
                first = error
            else:
                first.add_note(f"{type(callback).__name__}.on_train_end raised besides: {error!r}")
    if first is not None:
        raise first


class History:
    """One record an epoch: `history["val_loss"]` is a list over the epochs, `history.epochs` the records."""

    def __init__(self, epochs: list[Record] | None = None) -> None:
        if epochs is not None and not (isinstance(epochs, list) and all(isinstance(e, dict) for e in epochs)):
            raise ArgumentError(f"epochs is {kind_of(epochs)}; expected a list of records, each a dict")
        self.epochs: list[Record] = [] if epochs is None else epochs

    def __getitem__(self, name: str) -> list[Any]:
        names = {key for record in self.epochs for key in record}
        if not isinstance(name, str):
            raise ArgumentError(
                f"history[{shown(name)}]: expected the name of a recorded quantity, such as 'loss'; the records of the "
                "epochs are history.epochs"
            )
        if name not in names:
            raise RecordError(unrecorded(f"{name!r} was not recorded", name, sorted(names)))
        return [record.get(name) for record in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.epochs)

    def __repr__(self) -> str:
        return "\n".join(["History", *(f"  {describe(record)}" for record in self.epochs)])


def describe(record: Record) -> str:
    """A record in one line."""
    shown = [name for name, value in record.items() if isinstance(value, float) and name not in ("lr", "seconds")]
    values = [f"{name} {record[name]:#.4g}" for name in shown]
    return "  ".join([f"epoch {record['epoch']:>3}", *values, f"{record['seconds']:.2f} s"])


def unrecorded(text: str, name: str, names: Collection[str]) -> str:
    """`text`, what was recorded instead, and which of it was probably meant."""
    meant = closest(name, names)
    hint = f"did you mean {meant!r}? " if meant else ""
    return f"{text}: {hint}recorded are {', '.join(names)}" if names else f"{text}: no epoch has ended yet"


class _Monitors(Callback):
    """What follows a recorded quantity."""

    def __init__(self, monitor: str, patience: int, min_delta: float) -> None:
        if not isinstance(monitor, str):
            raise OptionError(
                f"monitor is {shown(monitor)}; expected the name of a recorded quantity, such as 'val_loss'"
            )
        self.monitor, self.patience = monitor, whole("patience", patience, 1)
        self.min_delta = number("min_delta", min_delta, 0.0, math.inf, closed="left")
        self.sign = -1.0 if larger_is_better(monitor) else 1.0

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self.best, self.waited = math.inf, 0

    def improved(self, record: Record) -> bool:
        """Whether the quantity is better than ever by `min_delta`; else `waited` counts one epoch more."""
        name = type(self).__name__
        if self.monitor not in record:
            text = unrecorded(f"{name} monitors {self.monitor!r}, which is not recorded", self.monitor, record)
            raise OptionError(f"{text}. What begins with val_ needs validation=")
        try:
            value = self.sign * float(record[self.monitor])
        except (TypeError, ValueError):
            raise OptionError(
                f"{name} monitors {self.monitor!r}, which is {shown(record[self.monitor])}; expected a number"
            ) from None
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False


class EarlyStopping(_Monitors):
    """Stop when `monitor` has not become better by `min_delta` for `patience` epochs; then restore the best parameters.

    Which is better, larger or smaller, is what the metric of that name says; of any other quantity smaller is, unless
    its name ends in "accuracy".
    """

    def __init__(self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0) -> None:
        super().__init__(monitor, patience, min_delta)

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        super().on_train_begin(trainer, epochs, steps)
        self.kept: Snapshot | None = None

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        if self.improved(record):
            self.kept = trainer.snapshot()
            self.best_epoch = record["epoch"]
        else:
            trainer.stop = trainer.stop or self.waited >= self.patience

    def on_train_end(self, trainer: "Trainer") -> None:
        if self.kept is not None:
            trainer.restore(self.kept)


class ReduceOnPlateau(_Monitors):
    """Multiply the learning rate by `factor` when `monitor` has not become better by `min_delta` for `patience` epochs.

    It does so by `trainer.lr_scale`, which it takes no lower than `least`, and then begins to count again.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        least: float = 1e-4,
    ) -> None:
        super().__init__(monitor, patience, min_delta)
        self.factor = number("factor", factor, 0.0, 1.0, closed="neither")
        self.least = number("least", least, 0.0, 1.0, closed="left")

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        if not self.improved(record) and self.waited >= self.patience:
            trainer.lr_scale = max(trainer.lr_scale * self.factor, min(self.least, trainer.lr_scale))
            self.waited = 0


class Progress(Callback):
    """A bar that fills during an epoch and gives way to the epoch's record; where there can be none the records alone.

    On standard error by default; in a notebook, which would show that as if it were an error, on standard output.
    Drawn ten times a second at most, never waiting for a device.
    """

    before_next_step = False

    def __init__(self, stream: TextIO | None = None) -> None:
        if stream is not None and (isinstance(stream, type | io.RawIOBase | io.BufferedIOBase) or not _writes(stream)):
            raise ArgumentError(
                f"stream is {kind_of(stream)}; expected an open stream of text, such as sys.stdout or open(path, 'w')"
            )
        self.stream = default_stream() if stream is None else stream

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self.epochs, self.steps, self.shown, self.width = len(trainer.history) + epochs, steps, 0.0, 0
        self.redraws = redraws(self.stream)

    def on_step_end(self, trainer: "Trainer", step: int) -> None:
        now = time.monotonic()
        if not self.redraws or now - self.shown < 0.1:
            return
        self.shown = now
        full = 30 * step // self.steps
        self._write(
            f"epoch {len(trainer.history) + 1:>3}/{self.epochs}  {'━' * full}{'─' * (30 - full)}  {step}/{self.steps}"
        )

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        self._write(describe(record) + "\n")

    def on_train_end(self, trainer: "Trainer") -> None:
        if self.redraws:
            self._write("")

    def _write(self, text: str) -> None:
        """`text` in the place of what the line shows."""
        if self.stream is None:
            return
        if _of_a_kernel(self.stream):  # which knows no sequence that clears a line
            cleared = "\r" + " " * self.width + "\r" if self.width else ""
            self.width = 0 if text.endswith("\n") else len(text)
            text = cleared + text
        elif self.redraws:
            text = "\r\x1b[K" + text
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.replace("━", "#").replace("─", "-"))
        self.stream.flush()


def default_stream() -> TextIO | None:
    """Where a bar goes."""
    return sys.stdout if _of_a_kernel(sys.stdout) else sys.stderr


def redraws(stream: TextIO | None) -> bool:
    """Whether a line that was written to `stream` can be written anew: that of a terminal, or of a notebook."""
    return stream is not None and _writes(stream) and (_of_a_kernel(stream) or stream.isatty())


def _writes(stream: Any) -> bool:
    """Whether it is a stream, and open."""
    has = all(callable(getattr(stream, name, None)) for name in ("write", "flush", "isatty"))
    return has and not getattr(stream, "closed", False)


def _of_a_kernel(stream: Any) -> bool:
    """Whether a notebook shows it."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"
