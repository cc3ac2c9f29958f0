"""Columns of a table by their names, from text, Parquet or Arrow; it needs pyarrow."""

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from bpnet.backends import Array
from bpnet.cli.dataset import Dataset, Request
from bpnet.cli.sources import Source, TextOptions
from bpnet.cli.terminal import names, reason, warn
from bpnet.cli.text import Text
from bpnet.errors import DataError, OptionError
from bpnet.tabular.columns import Column, without
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import with_target

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
UNNAMED = re.compile(r"\s*|Unnamed: \d+")
"""Names of columns without one, as they are written and as pandas writes them again."""


class Columns:
    """The columns of a source: their names at once, their values when they are asked for."""

    def __init__(self, source: Source, options: TextOptions) -> None:
        self.source, self.missing, self.text = source, list(options.missing), None
        if source.kind == "text":
            self.text = Text(source, options)
            found = self.text.names
        else:
            found = self._guarded(self._names)
        self.position: dict[str, int] = {}
        for i, name in enumerate(found):
            if name in self.position:
                same = f"column {name!r}" if name.strip() else "column without a name"
                raise DataError(
                    f"{source.name} has more than one {same}: numbers {self.position[name] + 1} and {i + 1}"
                )
            if not name.startswith("__index_level_"):  # as pandas calls the names of rows, which are no column
                self.position[name] = i
        parted = f" (it is read as parted by {self.text.sep!r}: see --sep)" if self.text else ""
        self.hint = parted if len(found) == 1 else ""

    def title(self, name: str) -> str:
        """What messages call a column: by its number where it has no name."""
        return f"column {name!r}" if name.strip() else f"column {self.position[name] + 1} (unnamed)"

    def __str__(self) -> str:
        return names(name if name.strip() else self.title(name) for name in self.position) + self.hint

    def find(self, name: str) -> str:
        """The column of that name, with or without blanks around it; raises DataError."""
        if name in self.position:
            return name
        bare = [known for known in self.position if known.strip() == name]
        if len(bare) == 1:
            return bare[0]
        close = get_close_matches(name, self.position, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"{self.source.name} has no column {name!r}: {meant}it has {self}")

    def select(self, given: Iterable[str]) -> list[str]:
        """The columns that names mean, also several with commas between, and patterns such as `bill_*`."""
        found: list[str] = []
        for text in given:
            parts = [text] if text in self.position else [part.strip() for part in text.split(",")]
            for part in parts:
                some = [name for name in self.position if any(c in part for c in "*?") and fnmatchcase(name, part)]
                found += [name for name in some or [self.find(part)] if name not in found]
        return found

    def frame(self, wanted: Sequence[str], texts: Collection[str], narrow: Collection[str]) -> Frame:
        """Some columns; of text with separators `texts` are not turned into numbers, and `narrow` ones into float32."""
        if self.text is not None:
            made = self.text.columns(wanted, texts, narrow)
            return Frame(made, next((column.rows for column in made.values()), 0), what=self.source.name)
        frame = Frame.of(self._guarded(lambda: self._read(wanted)), self.source.name)
        for name in wanted if self.missing else ():
            frame = frame.with_column(name, without(column := frame.coded(name), self._gaps(column)))
        return frame

    def _gaps(self, column: Column) -> Array:
        """For each row whether it has one of the values that stand for none."""
        if column.codes is not None:
            stand = np.array([str(value) in self.missing for value in column.values], dtype=bool)
            return np.append(stand, False)[column.codes]
        numbers = [float(text) for text in self.missing if NUMBER.fullmatch(text)]
        return np.isin(column.values, numbers) if column.values.dtype.kind in "fiu" else np.zeros(column.rows, bool)

    def _names(self) -> list[str]:
        """Of the columns of a Parquet or Arrow file."""
        with self.source.open() as file:
            if self.source.kind == "parquet":
                return list(parquet.ParquetFile(file, pre_buffer=False).schema_arrow.names)
            return list(opened(file).schema.names)

    def _read(self, wanted: Sequence[str]) -> pa.Table:
        """Some columns of such a file, text as codes."""
        with self.source.open() as file:
            if self.source.kind == "arrow":
                batches = batches_of(opened(file))
                return pa.Table.from_batches([batch.select(list(wanted)) for batch in batches])
            schema = parquet.ParquetFile(file, pre_buffer=False).schema_arrow
            file.seek(0)
            texts = [field.name for field in schema if pa.types.is_string(field.type)]
            return parquet.ParquetFile(file, read_dictionary=texts, pre_buffer=False).read(columns=list(wanted))

    def _guarded(self, read: Any) -> Any:
        try:
            return read()
        except (OSError, MemoryError) as error:
            if getattr(error, "filename", None) or getattr(error, "errno", None) or isinstance(error, MemoryError):
                raise
            raise DataError(f"{self.source.name} can't be read as {self.source.ending}: {reason(error)}") from error
        except Exception as error:  # a damaged file can fail in any way
            raise DataError(f"{self.source.name} can't be read as {self.source.ending}: {reason(error)}") from error


def opened(file: Any) -> Any:
    """A reader of an Arrow file, or of a stream of it, as pipes have."""
    try:
        return ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return ipc.open_stream(file)


def batches_of(reader: Any) -> list[Any]:
    count = getattr(reader, "num_record_batches", None)
    return list(reader) if count is None else [reader.get_batch(i) for i in range(count)]


def numbers_rows(column: Column) -> bool:
    """Whether a column looks like row numbers, which some programs write as floats."""
    values = column.values
    if column.codes is not None or values.dtype.kind not in "iuf":
        return False
    whole = values.dtype.kind != "f" or bool(np.all(values == np.floor(values)))
    return whole and (values.dtype.kind != "f" or len(np.unique(values)) == len(values))


def read_columns(source: Source, request: Request) -> Dataset:
    """The data set that `read` describes; warns of columns that are row numbers, and of rows without a target."""
    columns, remarks = Columns(source, request.text), []
    targets = columns.select(request.targets)
    if not targets and request.labelled:
        raise OptionError(f"--target must say which column of {source.name} is to be learnt: {columns}")
    drop, keys = columns.select(request.drop), columns.select(request.keys)
    for name in targets:
        if name in drop:
            raise OptionError(f"--drop {name} is the target, which can't be left out")
    if missing := [repr(name) for name in request.known or () if name not in columns.position]:
        these = f"column{'s' * (len(missing) > 1)} {names(missing)}"
        raise DataError(f"{source.name} lacks the {these} of the model{columns.hint}")
    if request.known is not None:
        features = list(request.known)
    elif request.features:
        features = columns.select(request.features)
        for name in targets:
            if name in features:
                raise OptionError(f"--features has {name!r}, which is the target")
        features = [name for name in features if name not in drop]
    else:
        features = [name for name in columns.position if name not in (*targets, *drop)]
    strange = [name for name in request.types if name not in (*targets, *features)]
    for name in strange:
        columns.find(name)  # which refuses it
        raise OptionError(f"--types says what {name!r} is, which is neither a feature nor the target")
    wanted = list(dict.fromkeys([*features, *targets, *keys]))
    beside = f"{source.name} has no column beside the target {', '.join(map(repr, targets))} to learn from"
    if not wanted and targets:
        raise DataError(beside)
    texts = [*request.texts, *(name for name, kind in request.types.items() if kind == "text")]
    narrow = {*features} - {*keys, *request.types} if request.known is None else ()  # a model may need float64
    frame = columns.frame(wanted, texts, narrow)
    if frame.rows == 0:
        raise DataError(f"{source.name} has no rows")
    for name in filter(UNNAMED.fullmatch, [] if request.known or request.features else list(features)):
        if frame.coded(name).missing().all():
            features.remove(name)
            remarks.append(f"{columns.title(name)} of {source.name} has no values, and is left out")
        elif numbers_rows(frame.coded(name)):
            features.remove(name)
            remarks.append(
                f"{columns.title(name)} of {source.name} is left out, taken for row numbers that a program has added; "
                "give it a name to learn from it"
            )
    if not features:
        raise DataError("; ".join([beside, *remarks]))
    y = numbers = None
    if targets:
        _, y, notes, kept = with_target(frame, targets, first=1)
        remarks += notes
        if kept is not None:
            frame, numbers = frame.take(kept), kept + 1
    for remark in remarks:
        warn(remark)
    titles = {name: columns.title(name) for name in features}
    known = source.fingerprint()
    learnt, beside_them = frame.select(features), frame.select(keys)
    return Dataset(source.name, known, learnt, y, tuple(targets), beside_them, titles, numbers)
