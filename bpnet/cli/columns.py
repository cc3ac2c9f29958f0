"""Columns of a table by their names, from text, Parquet or Arrow; it needs pyarrow."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from bpnet.backends import Array
from bpnet.cli.dataset import Dataset, Request
from bpnet.cli.selection import Names, beside
from bpnet.cli.sources import Source, TextOptions
from bpnet.cli.terminal import reason, warn
from bpnet.cli.text import Text
from bpnet.errors import BpnetError, DataError
from bpnet.tabular.columns import Column, without
from bpnet.tabular.files import TableFile
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import with_target

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
UNNAMED = re.compile(r"\s*|Unnamed: \d+")
"""Names of columns without one, as they are written and as pandas writes them again."""


class Columns(Names):
    """The columns of a source: their names at once, their values when they are asked for."""

    def __init__(self, source: Source, options: TextOptions) -> None:
        self.source, self.missing, self.text = source, list(options.missing), None
        if source.kind == "text":
            self.text = Text(source, options)
            parted = f" (it is read as separated by {self.text.sep!r}: see --sep)"
            super().__init__(source.name, self.text.names, parted)
        else:
            super().__init__(source.name, self._guarded(self._names))

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
        """Of the columns of a Parquet or Arrow file, or of a folder of them."""
        if self.source.kind == "folder":
            return TableFile(self.source.name).names
        with self.source.open() as file:
            if self.source.kind == "parquet":
                return list(parquet.ParquetFile(file, pre_buffer=False).schema_arrow.names)
            return list(opened(file).schema.names)

    def _read(self, wanted: Sequence[str]) -> pa.Table:
        """Some columns of such a file, text as codes."""
        if self.source.kind == "folder":
            return TableFile(self.source.name).whole(wanted)
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
        except (BpnetError, OSError, MemoryError) as error:
            if (
                isinstance(error, BpnetError)
                or getattr(error, "filename", None)
                or getattr(error, "errno", None)
                or isinstance(error, MemoryError)
            ):
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
    columns = Columns(source, request.text)
    remarks = [columns.text.remark] if columns.text and columns.text.remark else []
    targets, features, keys = columns.chosen(request)
    wanted = list(dict.fromkeys([*features, *targets, *keys]))
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
        raise DataError("; ".join([beside(source.name, targets), *remarks]))
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
