"""`bp.data.stream`: rows that need not fit in memory, as something that a trainer takes in the place of arrays."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bpnet.data.streams.groups import group_of, is_batches, is_sliced, members, opened
from bpnet.data.streams.raw import mapped, npy, npy_folder
from bpnet.data.streams.sources import Batches, Joined, Slices, Source, as_numpy
from bpnet.errors import (
    ArgumentError,
    DataError,
    FileFormatError,
    MissingExtraError,
    NoSuchPathError,
    OptionError,
    PathError,
    UnknownNameError,
    kind_of,
)
from bpnet.options import choice, whole

BLOCK = 2**20
"""Bytes of a block where nothing says how many rows it has."""


class Stream:
    """What `bpnet.data.stream` gives, for `Trainer.fit`, `evaluate` and `predict`.

    Attributes
    ----------
    count : how many rows there are
    skipped : how many of them could not be used and were left out of the last pass, with bad_rows="skip"
    source : the `bpnet.data.Source` from which rows are read
    """

    is_stream = True

    def __init__(
        self, source: Source, names: Any = None, *, has_y: bool = False, has_weight: bool = False,
        block: int | None = None, buffer: int = 2**28, shuffle: str = "blocks", read_ahead: int = 1, threads: int = 2,
        bad_rows: str = "error", lanes: int | None = None, dtype: str | None = None,
    ) -> None:  # fmt: skip
        self.source, self.names, self.has_y, self.has_weight = source, names, has_y, has_weight
        self.block = None if block is None else whole("block", block, 1)
        self.buffer, self.read_ahead = whole("buffer", buffer, 1), whole("read_ahead", read_ahead, 0)
        self.shuffle = choice("shuffle", shuffle, ("blocks", "exact"))
        self.threads = whole("threads", threads, 1)
        self.bad_rows = choice("bad_rows", bad_rows, ("error", "skip"))
        self.lanes = None if lanes is None else whole("lanes", lanes, 1)
        self.dtype = None if dtype is None else choice("dtype", dtype, ("float32", "float64"))
        if self.shuffle == "exact" and not source.constant:
            raise OptionError(f"shuffle is 'exact', but {source.name} can only be read in its own order: take 'blocks'")
        self.skipped = 0
        inputs = len(source.fields) - has_y - has_weight
        keys: Sequence[Any] = range(inputs) if isinstance(names, int) else names or ()
        self.whats = [f"x[{key!r}]" for key in keys] if names is not None else ["x"]

    @property
    def count(self) -> int:
        return self.source.count

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"<Stream of {self.count:,} rows of {self.source.name}>"

    @cached_property
    def first(self) -> Sequence[Any]:
        """The first row of each field, which says what all are: read once, however many passes there are."""
        return self.head(1)

    def head(self, rows: int) -> Sequence[Any]:
        """The first rows of each field, at most so many."""
        found = self.source.read(0, min(rows, self.count))
        self.source.release()
        return found

    def arranged(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """Arrays of the source as x, y and sample_weight, as if a user had passed them."""
        inputs = len(arrays) - self.has_y - self.has_weight
        x = arrays[0] if self.names is None else tuple(arrays[:inputs])
        if self.names is not None and not isinstance(self.names, int):
            x = dict(zip(self.names, arrays, strict=False))
        found = {"x": x}
        if self.has_y:
            found["y"] = arrays[inputs]
        if self.has_weight:
            found["sample_weight"] = arrays[-1]
        return found

    def blocks(self, row_bytes: int) -> Any:
        """The borders of the blocks that are shuffled."""
        source = self.source
        rows = self.block or -(-max(1, BLOCK // row_bytes) // source.grain) * source.grain
        if source.borders is None:
            return np.r_[np.arange(0, source.count, rows), source.count]
        borders = np.asarray(source.borders)
        if self.block is None:
            return borders
        starts = np.unique(np.searchsorted(borders, np.arange(0, source.count, rows)))  # what is whole stays so
        return np.r_[borders[starts[starts < len(borders) - 1]], source.count]


def stream(
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    dtype: str | None = None,
    count: int | None = None,
    shuffle: str = "blocks",
    block: int | None = None,
    buffer: int = 2**28,
    read_ahead: int = 1,
    threads: int = 2,
    bad_rows: str = "error",
    lanes: int | None = None,
) -> Stream:
    """Rows that need not fit in memory, as what a trainer takes in the place of x and y.

        rows = bp.data.stream("flights.parquet", "delay", buffer=2**29)
        trainer.fit(rows, epochs=3, batch_size=1024, validation=bp.data.stream("held_out.parquet", "delay"))

    Files are read by system calls, never mapped: where one is cut off or written to meanwhile, that is a PathError.  To
    read an np.memmap beyond the end of its file ends the process, so a stream is the safe way to a large file, and one
    of an np.memmap reads the file that it is a map of.

    Memory that is taken is `buffer`, and what a step, the decoders of `threads` threads and a batch take, whatever the
    size of the files.  A stream whose rows, as they are computed with, fit into `buffer` is read once and kept.

    Parameters
    ----------
    x : where the rows are from, one of
        - a path of a .npy file; or of a folder of them, whose rows follow each other in the order of the files' names
        - an array of NumPy, an np.memmap or a view of one among them
        - a path of a Parquet or Arrow file (.parquet, .arrow, .feather), a folder of them, or a table or data set of
          pyarrow, of which y and sample_weight name columns
        - a path of a Zarr or HDF5 file (.zarr, .h5, .hdf5) or a group in one, of which y and sample_weight name arrays
        - any object with a length and slices: arrays of Zarr, HDF5, Dask, PyTorch, and others
        - batches of any size: an iterable that can be gone through again and again, or a function that gives an
          iterator, of (x, y), (x, y, sample_weight) or, to predict, x
        - a dict or a tuple of such, for a network that begins with `Inputs`
        - a `bpnet.data.Source` of your own
    y : the targets, likewise; for a table a column's name, or a list of them; None to predict
    sample_weight : (rows,) as in `Trainer.fit`, likewise
    columns : of a table those that x is made of (None: all but y's and the weights'): a list of names, whose numbers
        stand side by side, the name of one that holds lists, or a dict of these by the names of inputs.  Of a Zarr or
        HDF5 group the array's name, or a dict
    dtype : "float32" or "float64", of x where it holds floats; None as it is, where float64 if one column is
    count : how many rows batches that are iterated over have in all, or are to be taken; None counts them first
    shuffle : how the rows of an epoch are ordered where `fit` is to shuffle them
        - "blocks" reads blocks of rows that follow each other, in random order.  A window, as many rows as there is
          memory for, is shuffled as a whole, and batches are taken from it; then comes the next one.  So a row may be
          anywhere in the epoch, but those of a block come within one window, or two that follow each other: of sorted
          data a window has as many parts, from anywhere, as it has blocks.  Nothing of the size of the data is drawn,
          and reading is nearly as fast as in the order of the file.  Rows of batches that are iterated over are
          shuffled within windows only
        - "exact" is the permutation that the same seed gives arrays in memory: the same training bit for bit.  It takes
          8 bytes a row, and reads single rows, or where these are encoded together everything once for each window
    block : rows of a block; None: 1 MiB, in whole chunks of Zarr and HDF5.  Blocks of a table are its row groups, of
        which one that is larger than a window is read a window at a time, or several that have so many rows
    buffer : bytes of rows in memory, as they are computed with
    read_ahead : how many windows are read while one is computed with, whose memory is buffer / (1 + read_ahead)
    threads : threads that read, decode, check and convert
    bad_rows : what to do about a row with NaN (where the network takes none), infinity, a missing value, or a label or
        target that the loss does not take: "error" raises DataError with the file and the row; "skip" leaves it out.
        Its batch is smaller then, a warning at the end of the epoch says how many there were, and so does
        `stream.skipped`; predictions for it are NaN
    lanes : a batch is composed of as many rows of each of so many groups of blocks, so that ranks of a distributed
        training, each of which reads its own groups, train as one process with as many lanes; None: one for each rank

    Raises PathError, FileFormatError, ShapeError, DTypeError or DataError where there are no rows to read,
    MissingExtraError without pyarrow (the extra `stream`) for tables, and OptionError for options that don't fit.
    """
    options: dict[str, Any] = {
        "block": block, "buffer": buffer, "shuffle": shuffle, "read_ahead": read_ahead, "threads": threads,
        "bad_rows": bad_rows, "lanes": lanes, "dtype": dtype,
    }  # fmt: skip
    if count is not None:
        count = whole("count", count, 1)
    table, group = _table(x), None
    if table is None:
        group = group_of(x)
    if table is not None:
        return _of_table(table, y, sample_weight, columns, options)
    if group is not None:
        x, y, sample_weight = members(group, x, columns, y, sample_weight)
    elif columns is not None:
        raise OptionError(f"columns is given, but x is {kind_of(x)}: expected a table or a group, which have columns")
    elif is_batches(x):
        if y is not None or sample_weight is not None:
            raise ArgumentError("x is batches, and y or sample_weight is given too: let the batches be (x, y)")
        batches = Batches("x", x, count)
        return Stream(batches, batches.names, has_y=batches.size > 1, has_weight=batches.size > 2, **options)
    if count is not None:
        raise OptionError(f"count is given, but x is {kind_of(x)}, which has a length: it is for batches")
    several = isinstance(x, dict | tuple)
    names = (tuple(x) if isinstance(x, dict) else len(x)) if several else None
    given = list(x.items()) if isinstance(x, dict) else list(enumerate(x)) if several else [("", x)]
    whats = [(f"x[{key!r}]" if several else "x", part) for key, part in given]
    whats += [(what, part) for what, part in (("y", y), ("sample_weight", sample_weight)) if part is not None]
    sources = [(what, source_of(part, what)) for what, part in whats]
    source = sources[0][1] if len(sources) == 1 else Joined(sources)
    return Stream(source, names, has_y=y is not None, has_weight=sample_weight is not None, **options)


TABLES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")


def _table(x: Any) -> Any:
    """The table of pyarrow's that x is or names; None where it is none."""
    path = os.fspath(x) if isinstance(x, str | os.PathLike) else None
    if path is None and not type(x).__module__.startswith("pyarrow"):
        return None
    if path is not None and not path.endswith(TABLES) and not os.path.isdir(path):
        return None
    try:
        from bpnet.data.streams import arrow
    except ImportError as error:
        if path is None or not (path.endswith(TABLES) or _holds_tables(path)):
            return None
        raise MissingExtraError(f"a stream of {path}", "pyarrow", "stream") from error
    return arrow.table_of(x if path is None else path, "the table" if path is None else path)


def _holds_tables(path: str) -> bool:
    """Whether there are tables in the folder at `path`, or in a folder of it."""
    return any(name.endswith(TABLES) for *_, files in os.walk(path) for name in files)


def _of_table(table: Any, y: Any, sample_weight: Any, columns: Any, options: dict[str, Any]) -> Stream:
    """A stream of columns of a table."""
    from bpnet.data.streams.arrow import TableRows

    for what, name in (("y", y), ("sample_weight", sample_weight)):
        if not (name is None or isinstance(name, str) or (what == "y" and isinstance(name, list))):
            raise ArgumentError(f"{what} is {kind_of(name)}; expected the name of a column of {table.name}")
    others = [] if y is None else [y] if isinstance(y, str) else list(y)
    others += [] if sample_weight is None else [sample_weight]
    if columns is None:
        columns = [name for name in table.schema.names if name not in others]
    names = tuple(columns) if isinstance(columns, dict) else None
    groups = list(columns.values()) if isinstance(columns, dict) else [columns]
    if not groups or not all(groups):
        raise OptionError(f"there is no column of {table.name} for x: columns names none, or all are y's")
    groups += [part for part in (y, sample_weight) if part is not None]
    for group in groups:
        for name in [group] if isinstance(group, str) else group:
            if name not in table.schema.names:
                raise UnknownNameError(f"column of {table.name}", name, table.schema.names)
            if table.schema.names.count(name) > 1:
                raise DataError(f"{table.name} has more than one column {name!r}: give each a name of its own")
    source = TableRows(table, groups)
    return Stream(source, names, has_y=y is not None, has_weight=sample_weight is not None, **options)


def source_of(given: Any, what: str) -> Source:
    """Where the rows of what a user passed are read from; `what` errors call it."""
    if isinstance(given, Source):
        return given
    if isinstance(given, str | os.PathLike):
        return _of_path(os.fspath(given), what)
    if isinstance(given, list):  # by all of which NumPy is to choose a type
        given = as_numpy(given, what)
    if isinstance(given, np.ndarray):
        found = mapped(given)
        if found is not None:
            return found
    if is_sliced(given):
        return Slices(what, given)
    raise ArgumentError(f"{what} is {kind_of(given)}; expected a path, an array, or an object with a length and slices")


def _of_path(path: str, what: str) -> Source:
    """An array in a .npy file, in a folder of them, or of Zarr."""
    array = opened(path)
    if array is not None:
        return Slices(path, array)
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.endswith(".npy"))
        if names:
            return npy_folder(path, names)
        raise PathError(f"{what} is {path}, a folder without files of rows: .npy, .parquet or .arrow")
    if not os.path.exists(path):
        raise NoSuchPathError(f"{what} is the path {path}, which is not there")
    try:
        return npy(path)
    except FileFormatError as error:
        if path.endswith(".npy"):
            raise
        raise FileFormatError(
            f"{what} is {path}; expected .npy, a table in .parquet or .arrow, a folder of these, .zarr or .h5 (of "
            "text, such as .csv, pyarrow or polars makes a Parquet file)"
        ) from error
