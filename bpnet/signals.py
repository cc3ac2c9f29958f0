"""Signals that ask a program to end, while a training writes checkpoints: the step is finished first, and written."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

WORDS = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up"))
    if hasattr(signal, name)
}
"""The signals, each with what happened to a training that it ended."""


class Ended(KeyboardInterrupt):
    """A signal came where nothing had to be finished first."""


class StopSignals:
    """From `install` to `restore`, the first signal is noted in `number`; Ctrl-C after it ends at once.

    Signals that are ignored, as nohup has SIGHUP ignored, stay so.  The handlers that were there are back before
    anybody hears of the signal.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}
        self.at_once = False
        self.process = os.getpid()

    def install(self) -> None:
        """Nothing, but in the main thread, where alone Python handles signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in WORDS:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: it is not Python's, which could not set it again
                self.before[number] = handler
                with suppress(ValueError):  # in an interpreter within another
                    signal.signal(number, self.receive)

    def restore(self) -> None:
        """Have the handlers that there were, but where somebody has set others meanwhile."""
        for number, handler in reversed(self.before.items()):  # that of Ctrl-C last, which may then raise
            if signal.getsignal(number) == self.receive:
                signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if os.getpid() != self.process:  # a child, as of multiprocessing, which has no training to end
            self.restore()
            signal.raise_signal(number)
            return
        if self.number and number == signal.SIGINT:
            self.restore()  # first, since what is raised may come anywhere
            self._hand_on(number, "training interrupted at once: nothing more was written")
            self.install()
        self.number = self.number or number
        if self.at_once:
            self.at_once = False  # what comes now is to be finished
            raise Ended

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """While nothing has to be finished, a signal raises `Ended`."""
        self.at_once = True
        try:
            if self.number:
                raise Ended
            yield
        finally:
            self.at_once = False

    def hand_on(self, text: str) -> None:
        """Have the signal do what it would have done; `text` says what has been written, and how to go on.

        That raises KeyboardInterrupt or SystemExit, but where a handler of the user's own returns.
        """
        number, self.number = self.number, 0
        self.restore()
        self._hand_on(number, f"training {WORDS[signal.Signals(number)]} {text}")
        self.install()

    def _hand_on(self, number: int, text: str) -> None:
        handler = self.before.get(number)
        if handler in (
            signal.default_int_handler,
            None,
        ):  # None: it came to another rank, this one is in no main thread
            raise KeyboardInterrupt(text)
        if handler is signal.SIG_DFL:
            raise Exit(128 + number, text)
        handler(number, None)


class Exit(SystemExit):
    """The end of the program by a signal, with the status that a shell has for it; `text` is for its user."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code)
        self.text = text

    def tell(self) -> None:
        """Say it on standard error, once what else is shown there has ended."""
        with suppress(OSError, ValueError):  # the terminal may be what has gone
            print(f"bpnet: {self.text}", file=sys.stderr, flush=True)
