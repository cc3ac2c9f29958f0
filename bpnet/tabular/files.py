"""Tables in files that need not fit in memory: Parquet and Arrow, a file or a folder of them, read a block at a time.

pyarrow reads them, and is imported only then.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpnet.disk import open_ordinary
from bpnet.errors import DataError, MissingExtraError, OptionError, PathError, path_error, plural, shown
from bpnet.options import flag
from bpnet.tabular.frames import Frame

ENDINGS = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}
"""What a file is by its ending."""
ROWS = 1 << 16
"""Rows that are read at a time."""
COPIES, SHARE = 3, 0.5
"""How often a table lies in memory while it is encoded, and the part of the free memory that it may take."""


def kind_of_path(path: Any) -> str | None:
    """What can be read block by block there: "parquet", "arrow" or, of a folder, what its files are; None: nothing."""
    try:
        found = Path(os.fspath(path))
    except (TypeError, ValueError):
        return None
    if found.is_dir():
        kinds = {kind for kind, _ in files_of(found)}
        return kinds.pop() if len(kinds) == 1 else None
    return ENDINGS.get(found.suffix.lower())


def files_of(folder: Path) -> list[tuple[str, Path]]:
    """The tables in a folder and in those in it, by name; what begins with _ or . is none, as Spark has it."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in ENDINGS and path.is_file() and not any(part[0] in "._" for part in parts):
            found.append((ENDINGS[path.suffix.lower()], path))
    return found


def in_memory_or_not(table: Any, stream: bool | None) -> Any:
    """A table as it is; of a path the rows, or where they are to be streamed a TableFile.

    Raises OptionError where what is no path is to be streamed, and what TableFile raises.
    """
    stream = stream if stream is None else flag("stream", stream)
    if not isinstance(table, str | os.PathLike):
        if stream:
            raise OptionError(
                "stream=True is for tables in files: pass the path of a Parquet or Arrow file, or of a folder"
            )
        return table
    file = TableFile(table)
    return file if streams(file, stream) else file.whole()


def streams(file: "TableFile", asked: bool | None) -> bool:
    """Whether a file is read block by block, where nobody says so by what it would take of the free memory."""
    if asked is not None:
        return asked
    free = free_memory()
    return free is not None and COPIES * file.size > SHARE * free


def free_memory() -> int | None:
    """The bytes that this process may still take: of the machine, its container and its own limit; None: unknown."""
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        for limit, place in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                pages = int(Path("/proc/self/statm").read_text().split()[place])
                found.append(most - pages * resource.getpagesize())
    if not found:
        with suppress(AttributeError, ValueError, OSError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(min(found), 0) if found else None


@dataclass(frozen=True)
class Unit:
    """What is read as a whole, a row group or a record batch: the number of its file, its own there, and its rows."""

    file: int
    number: int
    start: int
    stop: int


class TableFile:
    """The rows of a file, or of all files in a folder one after the other.

    name : what errors call it
    names : of the columns
    rows : how many
    size : about how many bytes all columns take in memory
    units : row groups or record batches, in order

    Raises DataError where it can't be read, or files of a folder have other columns than the first, and
    MissingExtraError where there is no pyarrow.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            import pyarrow
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"reading {self.name}", "pyarrow", "cli") from error
        self.arrow = pyarrow
        place, kind = Path(path), kind_of_path(path)
        if kind is None:
            if place.is_dir():
                raise DataError(f"{self.name} is a folder without tables: expected .parquet, or .arrow, files alone")
            raise DataError(f"{self.name} is no table that can be read by parts: expected {', '.join(ENDINGS)}")
        self.kind, self.paths = kind, [p for _, p in files_of(place)] if place.is_dir() else [place]
        self.units: list[Unit] = []
        self.size, self.schema, self.stamps = 0, None, []
        for i, file in enumerate(self.paths):
            with self._guarded(file):
                open_ordinary(file).close()  # what would be waited for, as a FIFO, is none
            self.stamps.append(self._stamp(file))
            with self._guarded(file):
                schema, counts, size = self._parquet(file) if kind == "parquet" else self._ipc(file)
            if self.schema is None:
                self.schema = schema
            elif schema.names != self.schema.names or schema.types != self.schema.types:
                odd = next((f for f in schema if f not in self.schema), None) or next(
                    f for f in self.schema if f not in schema
                )
                raise DataError(
                    f"{file} has other columns than {self.paths[0]}, first {odd.name!r} ({odd.type}): expected the same"
                )
            for number, count in enumerate(counts):
                start = self.units[-1].stop if self.units else 0
                self.units.append(Unit(i, number, start, start + count))
            self.size += size
        assert self.schema is not None
        self.names = [name for name in self.schema.names if not name.startswith("__index_level_")]
        self.rows = self.units[-1].stop if self.units else 0
        self.starts = [unit.start for unit in self.units]

    def __repr__(self) -> str:
        return f"<TableFile {self.name}: {plural(self.rows, 'row')}, {plural(len(self.names), 'column')}>"

    # ---- what there is ------------------------------------------------------------------------------------------

    def _parquet(self, path: Path) -> tuple[Any, list[int], int]:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            schema = file.schema_arrow
            bytes_of_rows = file.metadata.num_rows * _bytes_a_row(schema)
            size = max(sum(group.total_byte_size for group in groups), bytes_of_rows)
            return schema, [group.num_rows for group in groups], size

    def _ipc(self, path: Path) -> tuple[Any, list[int], int]:
        from pyarrow import ipc

        from bpnet.data.streams.arrow import counts_of

        with self.arrow.OSFile(os.fspath(path)) as file, ipc.open_file(file) as reader:
            schema, size = reader.schema, file.size()
        counts = counts_of(os.fspath(path), schema)
        return schema, counts, max(size, sum(counts) * _bytes_a_row(schema))

    def _stamp(self, path: Path) -> tuple[int, int]:
        """What tells that a file is still as it was."""
        try:
            found = path.stat()
        except OSError as error:
            raise path_error(str(path), error) from error
        return found.st_size, found.st_mtime_ns

    # ---- reading ------------------------------------------------------------------------------------------------

    def whole(self, columns: Sequence[str] | None = None) -> Any:
        """All rows, as a table of Arrow."""
        assert self.schema is not None
        columns = self.names if columns is None else list(columns)
        pieces = [table for _, table in self.tables(columns)]
        return self.arrow.concat_tables(pieces) if pieces else self.schema.empty_table().select(columns)

    def frames(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Frame]]:
        """Some columns of rows from `start` to `stop`, at most ROWS at a time, each with the number of the first."""
        for first, table in self.tables(columns, start, stop):
            yield first, Frame.of(table, self.name)

    def tables(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Any]]:
        """The same as tables of Arrow.  Raises DataError where rows can't be read, and says which."""
        stop = self.rows if stop is None else stop
        for unit in self.units[max(bisect_right(self.starts, start) - 1, 0) :]:
            if unit.start >= stop:
                return
            if unit.stop <= start:
                continue
            place = unit.start
            for batch in self._batches(unit, list(columns)):
                low, high = max(start - place, 0), min(stop - place, batch.num_rows)
                if low < high:
                    part = batch.slice(low, high - low)
                    yield place + low, self.arrow.Table.from_batches([part])
                place += batch.num_rows
                if place >= stop:
                    return

    def _batches(self, unit: Unit, columns: list[str]) -> Iterator[Any]:
        path = self.paths[unit.file]
        if self._stamp(path) != self.stamps[unit.file]:
            raise PathError(f"{path} has changed while it was read: begin anew, with a file that nobody writes to")
        with self._guarded(path, unit):
            if self.kind == "parquet":
                yield from self._row_group(path, unit.number, columns)
            else:
                yield from self._record_batch(path, unit.number, columns)

    def _row_group(self, path: Path, number: int, columns: list[str]) -> Iterator[Any]:
        from pyarrow import parquet, types

        assert self.schema is not None
        texts = [field.name for field in self.schema if types.is_string(field.type) and field.name in columns]
        with parquet.ParquetFile(path, read_dictionary=texts, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from file.iter_batches(ROWS, [number], columns, use_threads=False)

    def _record_batch(self, path: Path, number: int, columns: list[str]) -> Iterator[Any]:
        from pyarrow import ipc

        assert self.schema is not None
        fields = [self.schema.get_field_index(name) for name in columns]
        options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        # not as a map, of which to read what is cut off meanwhile ends the process
        with self.arrow.OSFile(os.fspath(path)) as file, ipc.open_file(file, options=options) as reader:
            batch = reader.get_batch(number).select(columns)
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)

    def _guarded(self, path: Path, unit: Unit | None = None) -> "_Guarded":
        return _Guarded(self, path, unit)


class _Guarded:
    """Errors of pyarrow say which file can't be read, and which rows of it."""

    def __init__(self, file: TableFile, path: Path, unit: Unit | None) -> None:
        self.file, self.path, self.unit = file, path, unit

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, DataError | PathError | MemoryError):
            return
        if isinstance(error, OSError) and (error.errno or error.filename):
            raise path_error(str(self.path), error) from error
        rows = "" if self.unit is None else f"rows {self.unit.start} to {self.unit.stop - 1} of "
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{rows}{self.path} can't be read as {self.file.kind}: {shown(reason)}") from error


def _bytes_a_row(schema: Any) -> int:
    """About what the columns take as numbers and codes, and text its text."""
    return sum(max(getattr(field.type, "bit_width", 64), 8) // 8 if _has_width(field.type) else 40 for field in schema)


def _has_width(kind: Any) -> bool:
    try:
        return int(kind.bit_width) > 0
    except (ValueError, AttributeError):
        return False
