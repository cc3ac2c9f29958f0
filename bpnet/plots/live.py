"""Curves that grow while a network is trained."""

import importlib
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from bpnet.callbacks.base import Record
from bpnet.callbacks.history import describe
from bpnet.callbacks.progress import Progress, columns, of_a_kernel
from bpnet.options import number
from bpnet.plots.curves import check_texts, panels
from bpnet.plots.terminal import WIDEST, encoding_of, is_coloured, is_plain, lines_of, written
from bpnet.table import Text

if TYPE_CHECKING:
    from bpnet.trainer import Trainer

SHARE = 5.0
"""A drawing is followed by so many times its duration of training at least."""


class LivePlot(Progress):
    """The curves of `history.plot()`, drawn anew after epochs, with the progress bar below them.

        trainer.fit(x, y, epochs=100, validation=(xv, yv), callbacks=[bp.LivePlot()])

    A notebook shows one figure, which changes in its place; where Matplotlib is not installed, and in a terminal, the
    curves are made of characters.  Where nothing can be drawn anew, as in a file, there is a line an epoch, and the
    curves at the end.

    names : which quantities to draw, as in `history.plot`; None for all
    seconds : from one drawing to the next at least; of a training, drawing never takes more than about a sixth
    stream : where a terminal's curves go; standard error by default

    While it runs, `figure` is the notebook's figure, which is none of pyplot's; afterwards it is the last one.
    """

    only_first = True

    def __init__(self, names: Sequence[str] | None = None, seconds: float = 0.5, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.names = None if names is None else check_texts(names)
        self.seconds = number("seconds", seconds, 0.0, float("inf"), closed="left")
        self.figure: Any = None

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self._next, self._lines, self._drawn = 0.0, 0, 0
        self._handle: Any = None
        if of_a_kernel(self.stream):  # what takes its time is done before it counts, and the bar stands below
            self._figures = importlib.import_module("bpnet.plots.figures") if find_spec("matplotlib") else None
            self._handle = importlib.import_module("IPython.display").display(Text(), display_id=True)
        super().on_train_begin(trainer, epochs, steps)

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        if not self.redraws:
            super().on_epoch_end(trainer, record)
            return
        begin = time.monotonic()
        if begin >= self._next:
            self._draw(trainer)
            now = time.monotonic()
            self._next = now + max(self.seconds, SHARE * (now - begin))

    def on_train_end(self, trainer: "Trainer") -> None:
        if self._drawn < len(trainer.history):
            self._draw(trainer)
        super().on_train_end(trainer)
        self._handle = None  # the output stays as it is

    def _draw(self, trainer: "Trainer") -> None:
        """All epochs until now, in the place of what was drawn before."""
        records = trainer.history.epochs
        self._drawn = len(records)
        made = panels(records, self.names)
        if not made or self.stream is None:
            return
        if of_a_kernel(self.stream):
            self._display(made)
            return
        plain, wide = is_plain(self.stream), columns(self.stream) - 1
        most = _rows(self.stream) - 3 if self.redraws else None
        lines = [*lines_of(made, wide, most, plain), [(describe(records[-1])[:wide], "")] * self.redraws]
        text = written(lines, is_coloured(self.stream), plain)
        if self.redraws:  # each line over the one that was there, so that nothing flickers
            text = "\r" + f"\x1b[{self._lines}A" * (self._lines > 0) + text.replace("\n", "\x1b[K\n") + "\x1b[K"
            self._lines = len(lines)
        code = encoding_of(self.stream)
        self.stream.write(text.encode(code, "replace").decode(code) + "\n" + "\x1b[J" * self.redraws)
        self.stream.flush()

    def _display(self, made: Any) -> None:
        """One output of the notebook's cell, which is replaced by the next."""
        if self._figures is None:
            self._handle.update(Text(written(lines_of(made, WIDEST))))
        else:
            self.figure = self._figures.draw(made, self.figure)
            self._handle.update(self.figure)


def _rows(stream: TextIO) -> int:
    """The height of a terminal; 24 where that is not known."""
    try:
        return os.get_terminal_size(stream.fileno()).lines or 24
    except (AttributeError, OSError, ValueError):
        return 24
