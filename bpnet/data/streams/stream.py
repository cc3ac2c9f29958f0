"""`bp.data.stream`: rows that need not fit in memory, as something that a trainer takes in the place of arrays."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpnet.data.streams.raw import mapped, npy, npy_folder
from bpnet.data.streams.sources import Joined, Slices, Source
from bpnet.errors import ArgumentError, MissingExtraError, NoSuchPathError, PathError, kind_of
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
        bad_rows: str = "error", lanes: int | None = None,
    ) -> None:  # fmt: skip
        self.source, self.names, self.has_y, self.has_weight = source, names, has_y, has_weight
        self.block = None if block is None else whole("block", block, 1)
        self.buffer, self.read_ahead = whole("buffer", buffer, 1), whole("read_ahead", read_ahead, 0)
        self.shuffle = choice("shuffle", shuffle, ("blocks", "exact"))
        self.threads = whole("threads", threads, 1)
        self.bad_rows = choice("bad_rows", bad_rows, ("error", "skip"))
        self.lanes = None if lanes is None else whole("lanes", lanes, 1)
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
        if source.borders is not None and self.block is None:
            return np.asarray(source.borders)
        rows = self.block or -(-max(1, BLOCK // row_bytes) // source.grain) * source.grain
        borders = np.r_[np.arange(0, source.count, rows), source.count]
        return borders if source.borders is None else np.union1d(borders, np.asarray(source.borders))


def stream(
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    columns: Any = None,
    block: int | None = None,
    buffer: int = 2**28,
    shuffle: str = "blocks",
    read_ahead: int = 1,
    threads: int = 2,
    bad_rows: str = "error",
    lanes: int | None = None,
    count: int | None = None,
) -> Stream:
    """Rows of x, with their y and weights, read batch by batch: `trainer.fit(bp.data.stream("t.parquet", "price"))`."""
    options: dict[str, Any] = {
        "block": block, "buffer": buffer, "shuffle": shuffle, "read_ahead": read_ahead, "threads": threads,
        "bad_rows": bad_rows, "lanes": lanes,
    }  # fmt: skip
    table = _table(x)
    if table is not None:
        return _of_table(table, y, sample_weight, columns, options)
    several = isinstance(x, dict | tuple)
    names = (tuple(x) if isinstance(x, dict) else len(x)) if several else None
    given = list(x.items()) if isinstance(x, dict) else list(enumerate(x)) if several else [("", x)]
    whats = [(f"x[{key!r}]" if several else "x", part) for key, part in given]
    whats += [(what, part) for what, part in (("y", y), ("sample_weight", sample_weight)) if part is not None]
    sources = [(what, source_of(part, what)) for what, part in whats]
    source = sources[0][1] if len(sources) == 1 else Joined(sources)
    return Stream(source, names, has_y=y is not None, has_weight=sample_weight is not None, **options)


def _table(x: Any) -> Any:
    """The table of pyarrow's that x is or names; None where it is none."""
    path = os.fspath(x) if isinstance(x, str | os.PathLike) else None
    if path is None and not type(x).__module__.startswith("pyarrow"):
        return None
    try:
        from bpnet.data.streams import arrow
    except ImportError as error:
        if path is not None and not path.endswith((".parquet", ".pq", ".arrow", ".feather", ".ipc")):
            return None
        raise MissingExtraError(f"a stream of {path}", "pyarrow", "stream") from error
    return arrow.table_of(x if path is None else path, "the table" if path is None else path)


def _of_table(table: Any, y: Any, sample_weight: Any, columns: Any, options: dict[str, Any]) -> Stream:
    """A stream of columns of a table."""
    from bpnet.data.streams.arrow import TableRows

    others = [] if y is None else [y] if isinstance(y, str) else list(y)
    others += [] if sample_weight is None else [sample_weight]
    if columns is None:
        columns = [name for name in table.schema.names if name not in others]
    names = tuple(columns) if isinstance(columns, dict) else None
    groups = list(columns.values()) if isinstance(columns, dict) else [columns]
    groups += [part for part in (y, sample_weight) if part is not None]
    source = TableRows(table, groups)
    return Stream(source, names, has_y=y is not None, has_weight=sample_weight is not None, **options)


def source_of(given: Any, what: str) -> Source:
    """Where the rows of what a user passed are read from; `what` errors call it."""
    if isinstance(given, Source):
        return given
    if isinstance(given, str | os.PathLike):
        return _of_path(os.fspath(given), what)
    if isinstance(given, np.ndarray):
        found = mapped(given)
        if found is not None:
            return found
    if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        return Slices(what, given)
    raise ArgumentError(f"{what} is {kind_of(given)}; expected a path, an array, or an object with a length and slices")


def _of_path(path: str, what: str) -> Source:
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.endswith(".npy"))
        if names:
            return npy_folder(path, names)
        raise PathError(f"{what} is {path}, a folder without files of rows: .npy")
    if not os.path.exists(path):
        raise NoSuchPathError(f"{what} is {path}, which is not there")
    return npy(path)
