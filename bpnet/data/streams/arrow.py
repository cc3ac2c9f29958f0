"""Tables in Parquet and Arrow IPC files, read a part at a time by pyarrow, and their columns as arrays.

A table gives rows start ... stop - 1 as a `pyarrow.Table`; `TableRows` is the source of numbers that is made of one.
"""

import bisect
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, dataset, fs, ipc, parquet

from bpnet.data.streams.sources import CHUNK, Field, FileState, Into, Passes, Source
from bpnet.errors import DataError, DTypeError, FileFormatError, NoSuchPathError, OptionError, ShapeError, path_error

BUFFERED = 2**14
"""Bytes of a column that are read from a Parquet file at a time; of pages that are smaller Arrow's buffer keeps all."""
DECODED, DECODED_ROWS = 4 * CHUNK, 8192
"""Bytes and rows of a Parquet file that are decoded at a time: at so many rows what Arrow does once for each column is
little beside the rest, but they may take no more memory than that."""
PARQUET, IPC = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")


class Table:
    """Rows of columns, of which `columns` are read.

    Attributes
    ----------
    name, count, borders : as those of a `Source`; borders are those of row groups and record batches
    schema : all columns, by pyarrow
    """

    name: str
    count: int
    borders: Sequence[int]
    schema: pa.Schema

    def select(self, columns: Sequence[str]) -> "Table":
        """The same table, of which these columns are read."""
        raise NotImplementedError

    def types(self, name: str) -> list[pa.DataType]:
        """Those of a column, which files may have written differently; raises ShapeError where one has none."""
        return [self.schema.field(name).type]

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows start ... stop - 1 in parts, with the columns in their order.  Raises PathError or DataError."""
        raise NotImplementedError

    def release(self) -> None:
        """See `Source.release`."""

    def where(self, row: int) -> str:
        return f"row {row:,} of {self.name}"

    def fingerprint(self) -> str:
        return repr([self.count, str(self.schema)])


class File(Table):
    """A file of groups of rows, which are read one after the other from their beginnings."""

    def __init__(self, path: str, counts: Sequence[int], schema: pa.Schema, columns: Sequence[str]) -> None:
        self.name, self.schema, self.columns = path, schema, list(columns)
        self.state, self.passes = FileState(path), Passes()
        self.borders = [0, *itertools.accumulate(n for n in counts if n)]
        self.groups = [i for i, n in enumerate(counts) if n]
        self.count = self.borders[-1]

    def group(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of a group in parts."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        while start < stop:
            number = bisect.bisect_right(self.borders, start) - 1
            first, end = self.borders[number], min(stop, self.borders[number + 1])
            yield from self._of_group(self.groups[number], first, self.borders[number + 1], start, end)
            start = end

    def _of_group(self, group: int, first: int, last: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        self.state.check()
        found = self.passes.take(start) if start > first else None
        parts, rest, at = (*found, start) if found else (self.group(group), None, first)
        while at < stop:
            if rest is None or rest.num_rows == 0:
                rest = self._next(parts, at)
            before, size = max(start - at, 0), rest.num_rows
            end = min(size, stop - at)
            if before < end:
                yield rest.slice(before, end - before)
            rest, at = rest.slice(end), at + end
        if stop < last:
            self.passes.leave(stop, (parts, rest))

    def release(self) -> None:
        self.passes.release()

    def _next(self, parts: Iterator[pa.RecordBatch], at: int) -> pa.RecordBatch:
        try:
            return next(parts)
        except StopIteration:
            problem = "its row group ends before"
        except MemoryError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            problem = str(error).splitlines()[0]
        self.state.check()  # which says what has become of it, if anything
        raise DataError(f"{self.name} is damaged from row {at:,} on: {problem}")

    def fingerprint(self) -> str:
        return repr([os.path.basename(self.name), self.state.size, list(self.borders)])


class Parquet(File):
    """A Parquet file; its columns are decoded as they are read, so that a row group may be larger than memory."""

    def __init__(self, path: str, columns: Sequence[str] = (), metadata: Any = None) -> None:
        if metadata is None:
            with _opened(path) as file:
                metadata, schema = file.metadata, file.schema_arrow
        else:
            schema = metadata.schema.to_arrow_schema()
        self.metadata = metadata
        super().__init__(
            path, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], schema, columns
        )

    def select(self, columns: Sequence[str]) -> "Parquet":
        return Parquet(self.name, columns, self.metadata)

    def group(self, number: int) -> Iterator[pa.RecordBatch]:
        with _opened(self.name, self.metadata) as file:
            size = max(1, sum(_width(self.schema.field(name).type) for name in self.columns))
            rows = max(256, CHUNK // size, min(DECODED_ROWS, DECODED // size))
            options = {"columns": self.columns, "use_threads": False}
            for batch in file.iter_batches(rows, row_groups=[number], **options):
                yield batch.select(self.columns)


class Ipc(File):
    """An Arrow file, which is Feather's second version too: a record batch is read as a whole."""

    def __init__(self, path: str, columns: Sequence[str] = (), counts: Sequence[int] | None = None) -> None:
        with _source(path) as source, _opened_ipc(path, source) as file:
            schema = file.schema
        self.counts = counts = counts_of(path, schema) if counts is None else counts
        super().__init__(path, counts, schema, columns)

    def select(self, columns: Sequence[str]) -> "Ipc":
        return Ipc(self.name, columns, self.counts)

    def group(self, number: int) -> Iterator[pa.RecordBatch]:
        fields = [self.schema.get_field_index(name) for name in self.columns]
        with _source(self.name) as source, _opened_ipc(self.name, source, fields) as file:
            yield file.get_batch(number).select(self.columns)


def counts_of(path: str, schema: pa.Schema) -> list[int]:
    """How many rows each record batch of an Arrow file has; nothing else tells, so the narrowest column is read."""
    fields = [min(range(len(schema)), key=lambda i: _width(schema.field(i).type))] if len(schema) else None
    try:
        with _source(path) as source, _opened_ipc(path, source, fields) as file:
            return [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
    except pa.ArrowException as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error


class Memory(Table):
    """A table of pyarrow's."""

    def __init__(self, table: pa.Table, name: str) -> None:
        self.table, self.name, self.count, self.schema = table, name, table.num_rows, table.schema
        self.borders = [0, self.count]

    def select(self, columns: Sequence[str]) -> "Memory":
        return Memory(self.table.select(list(columns)), self.name)

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        yield from self.table.slice(start, stop - start).to_batches()


class Files(Table):
    """Files of the same columns, one after the other: those of the first."""

    def __init__(self, name: str, parts: Sequence[Table]) -> None:
        self.name, self.schema = name, parts[0].schema
        self.parts = [part for part in parts if part.count]
        self.others: list[Table] = []
        """Of the files with a schema of their own the first."""
        for part in self.parts:
            if not any(part.schema.equals(other.schema) for other in self.others):
                self.others.append(part)
        self.starts = [0, *itertools.accumulate(part.count for part in self.parts)]
        self.count, self.borders = self.starts[-1], [0]
        for start, part in zip(self.starts, self.parts, strict=False):
            self.borders += [start + border for border in part.borders[1:]]

    def select(self, columns: Sequence[str]) -> "Files":
        return Files(self.name, [part.select(columns) for part in self.parts])

    def types(self, name: str) -> list[pa.DataType]:
        for part in self.others:
            if name not in part.schema.names:
                raise ShapeError(f"{part.name} has no column {name!r}: all files of {self.name} must hold the same")
        return [kind for part in self.others for kind in part.types(name)]

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        while start < stop:
            i = bisect.bisect_right(self.starts, start) - 1
            end = min(stop, self.starts[i + 1])
            yield from self.parts[i].read(start - self.starts[i], end - self.starts[i])
            start = end

    def release(self) -> None:
        for part in self.parts:
            part.release()

    def where(self, row: int) -> str:
        i = bisect.bisect_right(self.starts, row) - 1
        return self.parts[i].where(row - self.starts[i])

    def fingerprint(self) -> str:
        return repr([part.fingerprint() for part in self.parts])


class TableRows(Source):
    """Columns of a table as arrays: each of `groups` is several columns side by side, or a single one.

    A column of numbers becomes rows of one value, where it is single a vector; one of lists rows of as many values.
    Values that are missing are NaN.  A column that files hold in different types becomes of one that takes all of them.
    """

    targets = "pass the name of their column as y to bp.data.stream"

    def __init__(self, table: Table, groups: Sequence[str | Sequence[str]]) -> None:
        names = list(dict.fromkeys(n for group in groups for n in ([group] if isinstance(group, str) else group)))
        self.table, self.name, self.count = table.select(names), table.name, table.count
        if table.count == 0:
            raise DataError(f"{table.name} has no rows")
        self.borders = table.borders
        self.groups = [
            group[0] if len(group) == 1 and any(map(_is_list, self.table.types(group[0]))) else group
            for group in groups
        ]
        self.places = {name: i for i, name in enumerate(names)}
        self.fields = tuple(self._field(group) for group in groups)
        self.alike = [self._alike(group) for group in groups]
        """Of each group that is columns of one type, from which Arrow makes rows, their places; of others None."""

    def _field(self, group: str | Sequence[str]) -> Field:
        names = [group] if isinstance(group, str) else list(group)
        types = [(name, kind) for name in names for kind in self.table.types(name)]
        if not any(_is_list(kind) for _, kind in types):
            return Field(() if isinstance(group, str) else (len(names),), number_type(types, self.name))
        if len(names) > 1:
            name = next(name for name, kind in types if _is_list(kind))
            raise ShapeError(f"column {name!r} of {self.name} holds lists: it can't stand beside others in x")
        values = [(name, kind.value_type if _is_list(kind) else kind) for name, kind in types]
        return Field((self._length(names[0]),), number_type(values, self.name))

    def _alike(self, group: str | Sequence[str]) -> list[int] | None:
        types = {kind for name in ([] if isinstance(group, str) else group) for kind in self.table.types(name)}
        if len(types) != 1 or not any(pa.types.is_integer(t) or t in (pa.float32(), pa.float64()) for t in types):
            return None
        return [self.places[name] for name in group]

    def _length(self, name: str) -> int:
        first = next(self.table.select([name]).read(0, 1)).column(0)
        if not (_is_list(first.type) and first[0].is_valid):
            raise DataError(f"{self.where(0)}: column {name!r} has no list, by which its length would be known")
        return len(first[0])

    def read(self, start: int, stop: int, into: Into = ()) -> Sequence[Any]:
        found: list[Any] = []
        for i, (shape, dtype) in enumerate(self.fields):
            own = into[i] if into else None
            fits = own is not None and own.dtype == dtype
            found.append(own if fits else np.empty((stop - start, *shape), dtype))
        at = 0
        for batch in self.table.read(start, stop):
            here = slice(at, at + batch.num_rows)
            for i, (group, alike) in enumerate(zip(self.groups, self.alike, strict=True)):
                if alike and _as_rows(batch.select(alike), found[i][here]):
                    continue
                names = [group] if isinstance(group, str) else group
                columns = [batch.column(self.places[name]) for name in names]
                found[i] = self._put(found[i], here, columns, isinstance(group, str), names, start + at)
            at += batch.num_rows
        return found

    def _put(self, out: Any, here: slice, columns: list[Any], single: bool, names: Sequence[str], row: int) -> Any:
        """Columns to rows of an array; it is given back, or where whole numbers are missing one of floats."""
        if out.dtype.kind in "biu" and any(column.null_count for column in columns):
            out = out.astype("f8")
        if single and out.ndim == 2:
            width, is_list = out.shape[1], _is_list(columns[0].type)
            lengths = compute.list_value_length(columns[0]).fill_null(-1).to_numpy() if is_list else np.full(1, -1)
            if (lengths != width).any():
                where = self.where(row + int(np.argmax(lengths != width)))
                raise DataError(f"{where}: column {names[0]!r} has no list of {width} values, as the first row has")
            flat = columns[0].flatten()
            if flat.null_count and out.dtype.kind in "biu":
                out = out.astype("f8")
            out[here] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
        elif single:
            out[here] = columns[0].to_numpy(zero_copy_only=False)
        else:
            for j, column in enumerate(columns):
                out[here, j] = column.to_numpy(zero_copy_only=False)
        return out

    def release(self) -> None:
        self.table.release()

    def where(self, row: int) -> str:
        return self.table.where(row)

    def fingerprint(self) -> str:
        return self.table.fingerprint()


def _as_rows(columns: pa.RecordBatch, out: Any) -> bool:
    """Columns of one type to the rows of an array; False, and nothing is done, where whole numbers are missing."""
    whole = pa.types.is_integer(columns.schema.field(0).type)
    if whole and any(column.null_count for column in columns.columns):
        return False
    out[...] = columns.to_tensor(null_to_nan=not whole).to_numpy()
    return True


def number_type(types: Sequence[tuple[str, Any]], of: str) -> np.dtype[Any]:
    """The type of an array of such columns: float64 if one is, else float32 if one has floats, else whole numbers."""
    found = []
    for name, kind in types:
        if pa.types.is_decimal(kind):
            found.append(np.dtype("f8"))
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            found.append(np.dtype(kind.to_pandas_dtype()))
        else:
            raise DTypeError(
                f"column {name!r} of {of} holds {kind} values; expected numbers: choose columns=[...], or "
                "bp.train_table, which takes text and dates"
            )
    if any(dtype == np.float64 for dtype in found):
        return np.dtype("f8")
    if any(dtype.kind == "f" for dtype in found):
        return np.dtype("f4")
    return np.result_type(*found)


def table_of(given: Any, what: str) -> Table | None:
    """The table of a path, a folder, a data set of pyarrow's or a table; None where it is none.  Raises PathError."""
    if isinstance(given, pa.Table):
        return Memory(given, what)
    if isinstance(given, dataset.FileSystemDataset):
        if not isinstance(given.filesystem, fs.LocalFileSystem):
            raise OptionError(f"x is a data set on a {given.filesystem.type_name} file system; expected local files")
        try:
            return Files(what, [_file(fragment.path) for fragment in given.get_fragments()])
        except ValueError as error:  # which it says of one with a filter
            raise OptionError(f"x is a data set that can't be streamed: {error}") from error
    if isinstance(given, dataset.InMemoryDataset):
        return Memory(given.to_table(), what)
    if not isinstance(given, str):
        return None
    if os.path.isdir(given):
        names = sorted(
            os.path.join(folder, name)
            for folder, _, files in os.walk(given)
            for name in files
            if name.endswith((*PARQUET, *IPC))
            and not any(part[0] in "._" for part in os.path.relpath(os.path.join(folder, name), given).split(os.sep))
        )
        return Files(given, [_file(name) for name in names]) if names else None
    return _file(given) if given.endswith((*PARQUET, *IPC)) else None


def _file(path: str) -> Table:
    return Ipc(path) if path.endswith(IPC) else Parquet(path)


def _opened(path: str, metadata: Any = None) -> Any:
    try:
        return parquet.ParquetFile(path, metadata=metadata, buffer_size=BUFFERED, pre_buffer=False)
    except FileNotFoundError:
        raise NoSuchPathError(f"{path} is not there") from None
    except OSError as error:
        raise path_error(f"{path} can't be read", error) from error
    except pa.ArrowException as error:
        raise FileFormatError(f"{path} is not a Parquet file, or is damaged: {error}") from error


def _source(path: str) -> Any:
    try:
        return pa.OSFile(path, "rb")
    except FileNotFoundError:
        raise NoSuchPathError(f"{path} is not there") from None
    except OSError as error:
        raise path_error(f"{path} can't be read", error) from error


def _opened_ipc(path: str, source: Any, fields: Sequence[int] | None = None) -> Any:
    options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    try:
        return ipc.open_file(source, options=options)
    except pa.ArrowException as error:
        raise FileFormatError(f"{path} is not an Arrow file, or is damaged: {error}") from error


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _width(kind: Any) -> int:
    """About how many bytes a value of a column takes."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 32
