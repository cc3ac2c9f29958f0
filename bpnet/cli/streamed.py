"""Tables that stay in their file, since they would take too much memory: what the commands do with them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bpnet import TableModel
from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset, Request
from bpnet.cli.model import from_one
from bpnet.cli.selection import Names
from bpnet.cli.sources import fingerprint
from bpnet.errors import DataError, OptionError, ShapeError
from bpnet.tabular.files import TableFile, kind_of_path, streams
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import rows_of_table
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.scan import Answers, Kept, Rows
from bpnet.tabular.splits import BySeed, drawn
from bpnet.tabular.streaming import Encoded, StreamedTraining, prepare_file

SAMPLE = 1 << 16
"""Rows, about, of which figures are made, where there are more."""


def file_of(data: str, stream: bool | None) -> TableFile | None:
    """The file whose rows stay there, or None where they are read at once: as is asked for, or as its size suggests."""
    kind = None if data == "digits" or not os.path.exists(data) else kind_of_path(data)
    if kind is None:
        if stream and os.path.exists(data):
            raise OptionError(f"--stream is for Parquet and Arrow files, or folders of them, and {data} is none")
        return None
    if stream is False:
        return None
    terminal.load_extra("pyarrow", f"reading {data}", "pyarrow")
    try:
        file = TableFile(data)
    except DataError:  # who reads it at once knows more of what it may be, and says what is wrong
        if stream:
            raise
        return None
    return file if streams(file, stream) else None


def unfit(file: TableFile, asked: bool | None, **options: Any) -> None:
    """Raise OptionError for the first of some options that is given, as it needs all rows in memory."""
    given = next((name for name, value in options.items() if value), None)
    if given is not None:
        why = "as --stream asks" if asked else f"since all of it takes {in_bytes(file.size)} or more in memory"
        raise OptionError(
            f"--{given} needs all rows in memory, but {file.name} is streamed, {why}: leave --{given} out, or give "
            "--no-stream"
        )


def in_bytes(size: float) -> str:
    """1.2 GB."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# ---- training -------------------------------------------------------------------------------------------------------


def prepared(
    file: TableFile, request: Request, options: TrainingOptions, bad_rows: str, told: Callable[[float], None]
) -> tuple[StreamedTraining, Dataset]:
    """The training on a file, and the rows of it that figures are made of."""
    if request.text.missing:
        raise OptionError(f"--missing is for rows that are read at once, but {file.name} is streamed: give --no-stream")
    names = Names(file.name, file.names)
    targets, features, _ = names.chosen(request)
    training = prepare_file(file, targets, options, features=features, bad_rows=bad_rows, told=told)
    training.notes = list(map(from_one, training.notes))
    titles = {name: names.title(name) for name in features}
    numbers = training.numbers + 1
    known = fingerprint(file.paths)
    return training, Dataset(file.name, known, training.frame, training.y, tuple(targets), None, titles, numbers)


def judged(training: TableTraining) -> str:
    """Which rows figures are of, after how many."""
    if len(training.held_out):
        return " held out from training"
    count = len(training.rows)
    return (
        f" of the {count:,} that it was trained on, as none were held out"
        if count > training.frame.rows
        else (" that it was trained on, as none were held out")
    )


# ---- evaluating -----------------------------------------------------------------------------------------------------


class Evaluated:
    """The rows of a file by which a model is evaluated: all, or those held out where it was trained with this file.

    rows : how many
    held_out : whether they are those held out
    """

    def __init__(self, model: TableModel, file: TableFile, request: Request) -> None:
        targets, features, _ = Names(file.name, file.names).chosen(request)
        goal, loss = model.target, model.trainer.loss
        self.split, self.held_out, skip = BySeed(0, 0.0), False, False
        known: Any = model.settings.get("split")
        by_row = isinstance(known, dict) and known.get("by") == "row"
        if by_row and model.settings.get("fingerprint") == fingerprint(file.paths):
            sizes = Answers.of(file, targets).sizes(goal) if goal.kind == "class" else None
            self.split, self.held_out = BySeed(int(known["seed"]), float(known["fraction"]), sizes), True
            skip = bool(known.get("skip"))  # as those were that the training left out
        what = f"column {targets[0]!r} of {file.name}" if len(targets) == 1 else f"the target of {file.name}"
        of_target = Rows(file, tuple(features) if skip else (), tuple(targets), goal, loss, self.split, what, skip)
        counts = []
        for unit in file.units:
            chunks = of_target.chunks(unit.start, unit.stop)
            counts.append(sum(int(c.held_out.sum()) if self.held_out else len(c.numbers) for c in chunks))
        self.rows = sum(counts)
        if not self.rows:
            raise DataError(f"{file.name} has no row with a value of {', '.join(map(repr, targets))} to compare with")
        self.all = replace(of_target, features=tuple(features))
        self.source = Encoded(self.all, counts, model.schema, None, True if self.held_out else None)

    def sample(self) -> Dataset:
        """About SAMPLE of the rows, evenly drawn."""
        found = []
        for chunk in self.all.chunks():
            wanted = drawn(1, chunk.numbers) < SAMPLE / self.rows
            found.append(chunk.take(wanted & chunk.held_out if self.held_out else wanted))
        kept = Kept.of(found, self.all.file.name)
        return Dataset(self.all.file.name, "", kept.frame, kept.y, self.all.targets, None, {}, kept.numbers + 1)


# ---- predicting -----------------------------------------------------------------------------------------------------


def parts(model: TableModel, file: TableFile, request: Request) -> Iterator[tuple[Frame, Frame | None, Any]]:
    """The rows of a file, some at a time: features, keys, and a context in which errors count rows as the file does."""
    _, features, keys = Names(file.name, file.names).chosen(request)
    if not model.schema.named and len(features) != model.n_features_in_:
        raise ShapeError(f"{file.name} has {len(features)} columns; the model was trained on {model.n_features_in_}")
    if not file.rows:
        raise DataError(f"{file.name} has no rows")
    for first, frame in file.frames(list(dict.fromkeys([*features, *keys]))):
        numbered = rows_of_table(np.arange(first, first + frame.rows))
        yield frame.select(features), frame.select(keys) if keys else None, numbered
