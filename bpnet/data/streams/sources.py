"""Where the rows of a stream are read from.

A source gives rows start ... stop - 1 as arrays of NumPy, decoded; which rows are wanted when, checks, conversion and
reading ahead are the loader's business.  Several threads may read at once.
"""

import bisect
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    DataError,
    DTypeError,
    PathError,
    ShapeError,
    kind_of,
    path_error,
    plural,
)

CHUNK = 2**22
"""Bytes that are read, checked and converted at a time: what a processor's cache holds."""

Into = Sequence[Any]
"""For each field an array of NumPy to read into, or None; an empty sequence for none at all."""


class Field(NamedTuple):
    """What an array of a source holds: the shape of a row, and the type of the values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Source:
    """Rows of one array or several side by side, its `fields`; derive from it, and define `read`, for one of your own.

    Attributes
    ----------
    count : how many rows there are
    fields : what each array holds
    borders : row numbers 0 ... count at which reading may begin cheaply, as those of row groups; None: anywhere.  Rows
        between two of them are read in their order, by one thread at a time
    grain : rows that are best read together, such as those of a chunk
    constant : whether every reading gives the same, so that it can be kept, and rows can be read in any order
    name : what errors call it
    targets : how it is given targets where it has none
    """

    count: int
    fields: tuple[Field, ...]
    borders: Sequence[int] | None = None
    grain: int = 1
    constant: bool = True
    name: str = "the source"
    targets: str = "pass them as y to bp.data.stream"

    def read(self, start: int, stop: int, into: Into = ()) -> Sequence[Any]:
        """Rows start ... stop - 1 of each field, at least one of them.

        Where an array is given in `into`, of so many rows, it may be filled and given back if it is of the field's type
        and contiguous; what is another array is copied.  Raises PathError or DataError where they can't be read.
        """
        raise NotImplementedError

    def gather(self, rows: Any) -> Sequence[Any]:
        """Rows of these numbers, a vector of NumPy in which they ascend.

        By default all is read that lies between those of two borders, or of a grain, a part at a time.
        """
        return gather(self, rows)

    def release(self) -> None:
        """Forget where reading was left: nobody is to go on there soon, and what is held for it can be freed."""

    def where(self, row: int) -> str:
        """What an error calls the row of this number."""
        return f"row {row:,} of {self.name}"

    def fingerprint(self) -> str:
        """What is cheap to know of all rows, by which other data are noticed when a training is resumed."""
        return repr([self.count, *[(shape, str(dtype)) for shape, dtype in self.fields]])


def bytes_per_row(fields: Sequence[Field]) -> int:
    """What a row of them takes in memory."""
    return max(1, sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in fields))


def gather(source: Source, rows: Any, gap: int = 64) -> list[Any]:
    """See `Source.gather`; what is at most `gap` rows apart is read in one, with what is between."""
    found = [np.empty((len(rows), *shape), dtype) for shape, dtype in source.fields]
    if source.borders is not None:
        groups = np.searchsorted(np.asarray(source.borders), rows, side="right")
    else:
        groups = rows // source.grain
        gap = max(gap, source.grain)
    apart = (np.diff(groups) != 0) & (np.diff(rows) > gap)
    at = 0
    for end in (*(np.flatnonzero(apart) + 1).tolist(), len(rows)):
        first, last = int(rows[at]), int(rows[end - 1]) + 1
        step = max(1, CHUNK // bytes_per_row(source.fields))
        for start in range(first, last, step):
            stop = min(start + step, last)
            upto = at + int(np.searchsorted(rows[at:end], stop))
            if upto > at:
                for i, some in enumerate(source.read(start, stop)):
                    found[i] = put(found[i], slice(at, upto), some[rows[at:upto] - start])
            at = upto
    return found


def put(out: Any, place: slice, some: Any) -> Any:
    """Write rows to an array, which is given back, or where whole numbers among them are missing one of floats."""
    if some.dtype.kind == "f" and out.dtype.kind in "biu":
        out = out.astype("f8")
    here = out[place]
    if here.__array_interface__["data"] != some.__array_interface__["data"]:
        here[...] = some
    return out


def usable(into: Into, i: int, dtype: np.dtype[Any]) -> Any:
    """The array to read field i into as its bytes are, or None."""
    out = into[i] if into else None
    return out if out is not None and out.dtype == dtype and out.flags.c_contiguous else None


class FileState:
    """A file as it was when a stream was made of it."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.size, self.time = self._now()

    def _now(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise path_error(f"{self.path} can't be read", error) from error
        return found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Raise PathError where it has been cut, or written to, since."""
        size, time = self._now()
        if size < self.size:
            raise self.cut(size)
        if (size, time) != (self.size, self.time):
            raise PathError(
                f"{self.path} has changed since the stream was made ({self.size:,} bytes then, {size:,} now): stream a "
                "file that nobody writes to, or make the stream again"
            )

    def cut(self, size: int) -> PathError:
        """The error that it has become shorter."""
        return PathError(f"{self.path} has been cut to {size:,} bytes of {self.size:,}: restore the file")


class Chain(Source):
    """Several sources of the same fields, one after the other, such as the files of a folder."""

    def __init__(self, name: str, parts: Sequence[Source]) -> None:
        first = parts[0]
        for part in parts:
            if part.fields != first.fields:
                raise ShapeError(
                    f"{part.name} has {_words(part.fields)}, but {first.name} {_words(first.fields)}: all files of "
                    f"{name} must hold the same"
                )
        self.name, self.fields, self.parts = name, first.fields, [part for part in parts if part.count]
        self.grain = first.grain
        self.starts = [0, *itertools.accumulate(part.count for part in self.parts)]
        self.count = self.starts[-1]
        if any(part.borders is not None for part in self.parts):
            self.borders = [0]
            for start, part in zip(self.starts, self.parts, strict=False):
                self.borders += [start + border for border in (part.borders or (0, part.count))[1:]]

    def read(self, start: int, stop: int, into: Into = ()) -> Sequence[Any]:
        i = bisect.bisect_right(self.starts, start) - 1
        if stop <= self.starts[i + 1]:
            return self.parts[i].read(start - self.starts[i], stop - self.starts[i], into)
        found = [np.empty((stop - start, *shape), dtype) for shape, dtype in self.fields]
        arrays = [usable(into, j, f.dtype) if into else None for j, f in enumerate(self.fields)]
        found = [a if b is None else b for a, b in zip(found, arrays, strict=True)]
        at = start
        while at < stop:
            end = min(stop, self.starts[i + 1])
            place = slice(at - start, end - start)
            given = self.parts[i].read(at - self.starts[i], end - self.starts[i], [a[place] for a in found])
            found = [put(a, place, some) for a, some in zip(found, given, strict=True)]
            at, i = end, i + 1
        return found

    def gather(self, rows: Any) -> Sequence[Any]:
        cuts = np.searchsorted(rows, self.starts).tolist()
        parts = zip(self.parts, self.starts, itertools.pairwise(cuts), strict=False)
        found = [part.gather(rows[a:b] - start) for part, start, (a, b) in parts if b > a]
        return [np.concatenate(some) for some in zip(*found, strict=True)]

    def release(self) -> None:
        for part in self.parts:
            part.release()

    def where(self, row: int) -> str:
        i = bisect.bisect_right(self.starts, row) - 1
        return self.parts[i].where(row - self.starts[i])

    def fingerprint(self) -> str:
        return repr([part.fingerprint() for part in self.parts])


class Joined(Source):
    """Sources of as many rows, side by side: the fields of the first, then those of the second, and so on."""

    def __init__(self, parts: Sequence[tuple[str, Source]]) -> None:
        (what, first), *rest = parts
        for other, part in rest:
            if part.count != first.count:
                raise ShapeError(f"{what} has {plural(first.count, 'row')}, but {other} has {part.count:,}")
        self.parts = [part for _, part in parts]
        self.count, self.fields = first.count, tuple(field for part in self.parts for field in part.fields)
        self.borders = next((part.borders for part in self.parts if part.borders is not None), None)
        self.grain, self.name = max(part.grain for part in self.parts), first.name
        self.constant = all(part.constant for part in self.parts)

    def read(self, start: int, stop: int, into: Into = ()) -> Sequence[Any]:
        found: list[Any] = []
        for part in self.parts:
            n = len(part.fields)
            found += part.read(start, stop, into[len(found) : len(found) + n] if into else ())
        return found

    def gather(self, rows: Any) -> Sequence[Any]:
        return [a for part in self.parts for a in part.gather(rows)]

    def release(self) -> None:
        for part in self.parts:
            part.release()

    def where(self, row: int) -> str:
        return self.parts[0].where(row)

    def fingerprint(self) -> str:
        return repr([part.fingerprint() for part in self.parts])


class Slices(Source):
    """Any object with a length whose slices are arrays, or are made arrays by NumPy: Zarr, HDF5, NumPy, a list."""

    def __init__(self, what: str, rows: Any) -> None:
        self.rows, self.name = rows, what
        shape = getattr(rows, "shape", None)
        self.count = int(shape[0]) if shape else len(rows)  # Zarr's arrays have no length
        self.state = _file_of(rows)
        # one thread at a time, since nobody says of any object that it can be read by several
        self.lock = threading.Lock()
        if self.count == 0:
            raise DataError(f"{what} has no rows")
        head = self._slice(0, 1)
        self.fields = (Field(head.shape[1:], head.dtype),)
        chunks = getattr(rows, "chunks", None)
        if isinstance(chunks, tuple) and chunks and isinstance(chunks[0], int):
            self.grain = max(1, chunks[0])
        elif isinstance(chunks, tuple) and chunks and isinstance(chunks[0], tuple):  # as Dask has them
            self.borders = [0, *itertools.accumulate(chunks[0])]

    def _slice(self, start: int, stop: int) -> Any:
        with self.lock:
            try:
                some = self.rows[start:stop]
            except (TypeError, KeyError) as error:
                raise ArgumentError(f"{self.name} is {kind_of(self.rows)}, which can't be sliced: {error}") from error
            except MemoryError:
                raise
            except Exception as error:  # whatever the library says of what is damaged
                raise DataError(f"{self.name}: rows {start:,} ... {stop - 1:,} can't be read: {error}") from error
            found = as_numpy(some, self.name)
        if found.ndim == 0 or found.shape[0] != stop - start:
            rows = plural(found.shape[0], "row") if found.ndim else "one number"
            raise DataError(f"{self.name}[{start}:{stop}] gave {rows}; expected {stop - start}")
        return found

    def read(self, start: int, stop: int, into: Into = ()) -> Sequence[Any]:
        found = self._slice(start, stop)
        if self.state is not None:
            self.state.check()
        if found.shape[1:] != self.fields[0].shape:
            raise DataError(
                f"{self.name} has rows of shape {found.shape[1:]} from row {start} on, not {self.fields[0].shape}"
            )
        check_types([found], self.fields, f"{self.name}, from row {start:,} on,")
        return [found]


def _file_of(rows: Any) -> FileState | None:
    """Of an HDF5 dataset that is read alone: the library takes what has been cut off for zeros."""
    file = getattr(rows, "file", None)
    name, mode = getattr(file, "filename", None), getattr(file, "mode", "")
    return FileState(name) if isinstance(name, str) and mode == "r" and os.path.isfile(name) else None


class Passes:
    """Where sources that can only be read on from where they are have been left, by several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: dict[int, Any] = {}  # what has been left, by where

    def take(self, at: int) -> Any:
        """What was left at this place, or None."""
        with self.lock:
            return self.open.pop(at, None)

    def leave(self, at: int, what: Any) -> None:
        """It can be gone on with there."""
        with self.lock:
            self.open[at] = what

    def release(self) -> None:
        """Nobody is to go on from anywhere."""
        with self.lock:
            self.open.clear()


class Batches(Source):
    """An iterable of batches, or a function that gives an iterator of them: read from its start, again and again."""

    constant = False
    targets = "let each batch be (x, y)"

    def __init__(self, what: str, batches: Any, count: int | None) -> None:
        self.name, self.batches = what, batches
        self.passes = Passes()
        self.names: Any = None
        """Of several arrays of x: their names, or how many there are."""
        self.size = 0
        """Whether a batch is x, (x, y) or (x, y, weight)."""
        rows = 0
        for i, batch in enumerate(self._iterate()):
            if i == 0:
                self.size = len(batch) if isinstance(batch, tuple | list) else 1
                x = batch[0] if isinstance(batch, tuple | list) and batch else batch
                self.names = tuple(x) if isinstance(x, dict) else len(x) if isinstance(x, tuple | list) else None
                if not 1 <= self.size <= 3:
                    raise ShapeError(f"a batch has {plural(self.size, 'part')}; expected (x, y) or (x, y, weight)")
            arrays = self._arrays(batch, i, rows)
            if i == 0:
                self.fields = tuple(Field(a.shape[1:], a.dtype) for a in arrays)
            rows += arrays[0].shape[0]
            if count is not None:
                break
        if rows == 0:
            raise DataError(f"{what} has no rows")
        self.count = rows if count is None else count
        self.borders = [0, self.count]

    def _iterate(self) -> Iterator[Any]:
        made: Any = self.batches() if callable(self.batches) else self.batches
        try:
            found: Iterator[Any] = iter(made)
        except TypeError:
            raise ArgumentError(
                f"{self.name} gave something {kind_of(made)}; expected an iterator of batches"
            ) from None
        if found is made and not callable(self.batches):
            raise ArgumentError(
                f"{self.name} is {kind_of(made)}, which can be gone through once, but every epoch goes through all "
                "rows: pass a function that gives one, such as a generator function"
            )
        return found

    def _arrays(self, batch: Any, i: int, row: int) -> list[Any]:
        """The arrays of a batch, of as many rows each."""
        what = f"batch {i} of {self.name}, from row {row:,} on,"
        parts = list(batch) if isinstance(batch, tuple | list) else [batch]
        if len(parts) != self.size:
            raise ShapeError(f"{what} has {plural(len(parts), 'part')}, but the first one {self.size}")
        x = parts[0]
        if isinstance(self.names, tuple):
            if not isinstance(x, dict) or set(x) != set(self.names):
                raise ShapeError(f"{what} has not the inputs of the first: {', '.join(map(str, self.names))}")
            parts[:1] = [x[name] for name in self.names]
        elif self.names is not None:
            parts[:1] = list(x)
        arrays = [as_numpy(part, what) for part in parts]
        if len({a.shape[0] if a.ndim else None for a in arrays} - {None}) != 1 or not all(a.ndim for a in arrays):
            raise ShapeError(
                f"{what} has arrays of {' and '.join(str(a.shape) for a in arrays)}; expected as many rows"
            )
        if i and (own := [a.shape[1:] for a in arrays]) != (first := [field.shape for field in self.fields]):
            rows, expected = (", ".join(map(str, shapes)) for shapes in (own, first))
            raise ShapeError(f"{what} has rows of {rows}, but the first one of {expected}")
        if i:
            check_types(arrays, self.fields, what)
        return arrays

    def read(self, start: int, stop: int, into: Into = ()) -> Sequence[Any]:
        found = self.passes.take(start) if start else None
        number, iterator, rest = found or (0, self._iterate(), [])
        at, parts = start if found else 0, []
        while at < stop:
            if not rest or rest[0].shape[0] == 0:
                rest, number = self._arrays(self._next(iterator, number, at), number, at), number + 1
            size, before = rest[0].shape[0], max(start - at, 0)
            end = min(size, stop - at)
            if before < end:
                parts.append([a[before:end] for a in rest])
            rest, at = [a[end:] for a in rest], at + end
        if stop < self.count:
            self.passes.leave(stop, (number, iterator, rest))
        return parts[0] if len(parts) == 1 else [np.concatenate(some) for some in zip(*parts, strict=True)]

    def release(self) -> None:
        self.passes.release()

    def _next(self, iterator: Iterator[Any], number: int, at: int) -> Any:
        try:
            return next(iterator)
        except StopIteration:
            hint = "every pass, of which an epoch may be several, is to begin anew and give as many rows as count says"
            raise DataError(f"{self.name} ended after {plural(at, 'row')}; expected {self.count:,}: {hint}") from None


def as_numpy(value: Any, what: str) -> Any:
    """An array of NumPy of what a source gave."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the library says of an array that is no processor's
        raise ArrayMismatchError(f"{what} gave something {kind_of(value)}, of which NumPy makes no array") from error


def check_types(arrays: Sequence[Any], fields: Sequence[Field], what: str) -> None:
    """Raise DTypeError where values would be cut to fit those of the first row, as 2.5 to a whole number."""
    for array, (_, dtype) in zip(arrays, fields, strict=True):
        if not np.can_cast(array.dtype, dtype, "same_kind" if dtype.kind == "f" else "safe"):
            raise DTypeError(f"{what} has {array.dtype} values, but the first row {dtype}: let all be of one type")


def _words(fields: Sequence[Field]) -> str:
    return " and ".join(f"rows of {shape} {dtype}" for shape, dtype in fields)
