"""The progress bar."""

import io
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from bpnet.callbacks.base import Callback, Record
from bpnet.callbacks.history import describe
from bpnet.errors import ArgumentError, kind_of, plural

if TYPE_CHECKING:
    from bpnet.trainer import Trainer


class Progress(Callback):
    """A bar that fills during an epoch and gives way to the epoch's record; where there can be none the records alone.

    Beside it are the epochs in all, the loss and the time left for all epochs.  The loss is that of the last step where
    the library computes on the host; that of a device could only be had by waiting for it, so it is the last epoch's.

    On standard error by default; in a notebook, which would show that as if it were an error, on standard output.
    Drawn ten times a second at most, never waiting for a device; a narrow terminal gets a shorter bar, or none.
    """

    before_next_step = False

    only_first = True

    def __init__(self, stream: TextIO | None = None) -> None:
        if stream is not None and (isinstance(stream, type | io.RawIOBase | io.BufferedIOBase) or not _writes(stream)):
            raise ArgumentError(
                f"stream is {kind_of(stream)}; expected an open stream of text, such as sys.stdout or open(path, 'w')"
            )
        self.stream = default_stream() if stream is None else stream

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self.before = len(trainer.history)
        self.epochs, self.steps, self.shown, self.width = self.before + epochs, steps, 0.0, 0
        self.redraws, self.on_host = redraws(self.stream), trainer.backend.name == "numpy"
        self.pace: float | None = None  # seconds a step
        self.skipped: int | None = None  # steps of the first epoch that were done before, where it is resumed
        self.begun = time.monotonic()
        if trainer.communicator is not None and trainer.ranks > 1:
            self._write(f"{trainer.communicator.describe()}\n")

    def on_step_end(self, trainer: "Trainer", step: int) -> None:
        now = time.monotonic()
        if self.skipped is None:
            self.skipped = step - 1
        done = (len(trainer.history) - self.before) * self.steps + step - self.skipped
        if done > 1 and step == 1:  # whole epochs, with what else belongs to them; a device is done with them
            self.pace = (now - self.begun) / done
        if not self.redraws or now - self.shown < 0.1:
            return
        self.shown = now
        texts = []
        if self.on_host:
            texts.append(f"loss {float(trainer.step_loss):#.4g}")
        elif trainer.history.epochs:
            texts.append(f"loss {trainer.history.epochs[-1]['loss']:#.4g}")
        pace = (now - self.begun) / done if self.pace is None and self.on_host else self.pace
        if pace is not None:
            total = (self.epochs - self.before) * self.steps - self.skipped
            texts.append(f"{_clock(self.begun + pace * total - now)} left")
        self._write(self._bar(len(trainer.history) + 1, step, texts))

    def _bar(self, epoch: int, step: int, texts: list[str]) -> str:
        """The line, of a width that the stream has: one that wraps could not be written anew."""
        begin, texts = f"epoch {epoch:>3}/{self.epochs}", [f"{step:>{len(str(self.steps))}}/{self.steps}", *texts]
        most = columns(self.stream) - 1
        while len(texts) > 1 and len("  ".join([begin, *texts])) > most:
            texts.pop()
        room = min(30, most - len("  ".join([begin, "", *texts])))
        if room >= 5:
            full = room * step // self.steps
            texts.insert(0, "━" * full + "─" * (room - full))
        return "  ".join([begin, *texts])[:most]

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        self._write(describe(record) + "\n")

    def on_train_end(self, trainer: "Trainer") -> None:
        if self.redraws:
            self._write("")

    def _write(self, text: str) -> None:
        """`text` in the place of what the line shows."""
        if self.stream is None:
            return
        if of_a_kernel(self.stream):  # which knows no sequence that clears a line
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


class Resumed(Callback):
    """Says where a training goes on that was saved in a folder, on the stream of the progress bar."""

    only_first = True

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        done, after = len(trainer.history), trainer.step_count - (trainer.history["step"][-1] if trainer.history else 0)
        if epochs == 0 or trainer.stop:
            self.say(f"the training in {self.folder} was complete after epoch {done}")
        elif trainer.step_count:
            middle = f", {plural(after, 'step')} into the next" if after > 0 else ""
            self.say(f"resuming after epoch {done}{middle}")
        else:
            self.say(f"nothing to resume in {self.folder}")

    def say(self, text: str) -> None:
        stream = default_stream()
        if stream is not None:
            stream.write(text + "\n")
            stream.flush()


def _clock(seconds: float) -> str:
    """0:05, 12:00, 1:00:00."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def columns(stream: TextIO | None) -> int:
    """The width of a terminal; 80 where that is not known."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return 80


def default_stream() -> TextIO | None:
    """Where a bar goes."""
    return sys.stdout if of_a_kernel(sys.stdout) else sys.stderr


def redraws(stream: TextIO | None) -> bool:
    """Whether a line that was written to `stream` can be written anew: that of a terminal, or of a notebook."""
    return stream is not None and _writes(stream) and (of_a_kernel(stream) or stream.isatty())


def _writes(stream: Any) -> bool:
    """Whether it is a stream, and open."""
    has = all(callable(getattr(stream, name, None)) for name in ("write", "flush", "isatty"))
    return has and not getattr(stream, "closed", False)


def of_a_kernel(stream: Any) -> bool:
    """Whether a notebook shows it."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"
