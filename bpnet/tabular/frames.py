"""One view on every kind of table: names of columns, and each column's values."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import ArgumentError, ArrayMismatchError, DataError, ShapeError, closest, kind_of, shown
from bpnet.tabular.columns import Column, column_of, columns_of, rows_of

TABLES = (
    "an array (rows, columns), a DataFrame of pandas or polars, a table of Arrow, a structured array, a dict of "
    "columns or a list of dicts"
)


class Frame:
    """A table of any kind, read column by column.

    names : of the columns, in their order; "x0", "x1", ... where the table has none
    named : whether the table has names of its own
    rows : how many
    width : how many columns the table had that this is of, columns that were left out among them
    matrix : the table itself where it is an array of numbers (rows, columns) of any library, else None
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        rows: int,
        *,
        matrix: Any = None,
        named: bool = True,
        width: int | None = None,
        what: str = "the table",
    ) -> None:
        self.names = tuple(columns)
        self.rows, self.matrix, self.named, self.what = rows, matrix, named, what
        self.width = len(self.names) if width is None else width
        self._raw = columns
        self._columns: dict[str, Column] = {}

    def __repr__(self) -> str:
        return f"<Frame of {self.rows} rows: {', '.join(self.names)}>"

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    @classmethod
    def of(cls, table: Any, what: str = "the table") -> "Frame":
        """The view on a table: see TABLES; `what` is what errors call it.

        Raises ArgumentError where it is no table, ShapeError or DataError where names or lengths of columns are not
        as they should be.
        """
        if isinstance(table, Frame):
            return table
        names, columns = _parts(table, what)
        if names is None and hasattr(columns, "ndim"):
            return cls._of_matrix(columns, what)
        named = names is not None
        names = list(_places(len(columns))) if names is None else names
        keys = [str(name) for name in names]
        if len(set(keys)) < len(keys):
            twice = next(name for i, name in enumerate(keys) if name in keys[:i])
            raise DataError(f"{what} has more than one column called {twice!r}: rename one, or leave it out")
        lengths = [_length(column, f"column {name!r}") for name, column in zip(keys, columns, strict=True)]
        if len(set(lengths)) > 1:
            odd = next(i for i, length in enumerate(lengths) if length != lengths[0])
            raise ShapeError(
                f"column {keys[0]!r} of {what} has {lengths[0]} rows, but column {keys[odd]!r} {lengths[odd]}: "
                "expected as many"
            )
        return cls(dict(zip(keys, columns, strict=True)), lengths[0] if lengths else 0, named=named, what=what)

    @classmethod
    def _of_matrix(
        cls, matrix: Any, what: str, names: Sequence[str] | None = None, width: int | None = None
    ) -> "Frame":
        numbers = not isinstance(matrix, np.ndarray) or matrix.dtype.kind in "fiub"
        columns = _MatrixColumns(matrix, _places(int(matrix.shape[1])) if names is None else names)
        kept = matrix if numbers else None
        return cls(columns, int(matrix.shape[0]), matrix=kept, named=False, width=width, what=what)

    def column(self, name: str) -> Any:
        """The values of a column, one a row: a NumPy array, or where numbers lie on a device an array there.

        Missing are NaN among numbers, NaT among dates, None among objects.
        """
        return self.coded(name).array()

    def check(self, name: str) -> None:
        """Raise DataError where there is no such column."""
        try:
            known = name in self._raw
        except TypeError:  # what has no hash, as a list
            known = False
        if not known:
            meant = closest(name, self._raw) if isinstance(name, str) else None
            hint = f": did you mean {meant!r}?" if meant else f"; it has {', '.join(map(repr, self.names))}"
            raise DataError(f"{self.what} has no column {shown(name)}{hint}")

    def coded(self, name: str) -> Column:
        """The column itself; text and mixed objects as different values and their codes."""
        self.check(name)
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = column_of(self._raw[name], f"column {name!r} of {self.what}")
        return found

    def take(self, rows: Any) -> "Frame":
        """The table of some rows: a slice, or an array of whole numbers, or of booleans."""
        if self.matrix is not None:
            return Frame._of_matrix(rows_of(self.matrix, rows), self.what, self.names, self.width)
        columns = {name: self.coded(name).take(rows) for name in self.names}
        first = next(iter(columns.values()), None)
        rows = 0 if first is None else first.rows
        return Frame(columns, rows, named=self.named, width=self.width, what=self.what)

    def select(self, names: Iterable[str]) -> "Frame":
        """The table of these columns; raises DataError where it lacks one."""
        names = list(names)
        for name in names:
            self.check(name)
        if self.matrix is not None:
            places = [self.names.index(name) for name in names]
            return Frame._of_matrix(columns_of(self.matrix, places), self.what, names, self.width)
        raw = {name: self._columns.get(name, self._raw[name]) for name in names}
        return Frame(raw, self.rows, named=self.named, width=self.width, what=self.what)

    def without(self, names: Iterable[str]) -> "Frame":
        """The table without these columns; those that it does not have don't matter."""
        out = set(names)
        return self.select(name for name in self.names if name not in out) if out & set(self.names) else self

    def with_column(self, name: str, values: Any) -> "Frame":
        """The table with other values in a column, or with one more; as many as there are rows."""
        column = column_of(values, f"column {name!r} of {self.what}")
        if column.rows != self.rows:
            raise ShapeError(f"column {name!r} has {column.rows} rows, but {self.what} {self.rows}")
        raw = {key: self._columns.get(key, value) for key, value in self._raw.items()}
        width = None if self.named or name not in self else self.width
        return Frame({**raw, name: column}, self.rows, named=self.named, width=width, what=self.what)


class _MatrixColumns(Mapping[str, Any]):
    """The columns of an array, each cut out when it is asked for."""

    def __init__(self, matrix: Any, names: Iterable[str]) -> None:
        self.matrix = matrix
        self.names = names if isinstance(names, dict) else {name: i for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Any:
        return self.matrix[:, self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@lru_cache(maxsize=8)
def _places(count: int) -> dict[str, int]:
    """Of columns without names what they are called, and their places."""
    return {f"x{i}": i for i in range(count)}


def _length(column: Any, what: str) -> int:
    if isinstance(column, Column):
        return column.rows
    shape = getattr(column, "shape", None)
    try:
        return int(shape[0]) if isinstance(shape, tuple) and shape else len(column)
    except TypeError:
        hint = "a value for every row (a table of one row is a list with its dict)"
        raise ArgumentError(f"{what} of the table is {shown(column)}; expected {hint}") from None


def _parts(table: Any, what: str) -> tuple[list[Any] | None, Any]:
    """Names and columns of a table; no names where it has none, and the array itself where it is (rows, columns)."""
    if isinstance(table, np.ndarray) and table.dtype.names:
        return list(table.dtype.names), [table[name] for name in table.dtype.names]
    if isinstance(table, np.ma.MaskedArray):
        matrix = _two_axes(table, what)
        return None, matrix if matrix.dtype.kind == "O" else matrix.astype(np.float64).filled(np.nan)
    if isinstance(table, np.ndarray):
        return None, _two_axes(np.asarray(table), what)
    if isinstance(table, Mapping):
        return list(table.keys()), list(table.values())
    if hasattr(table, "iloc") and hasattr(table, "columns"):  # pandas
        dtypes = set(table.dtypes)
        if len(dtypes) == 1 and isinstance(dtype := dtypes.pop(), np.dtype) and dtype.kind in "fiub":
            return list(table.columns), list(table.to_numpy().T)
        return list(table.columns), [column for _, column in table.items()]
    if hasattr(table, "get_columns") and hasattr(table, "columns"):  # polars
        return list(table.columns), list(table.get_columns())
    if hasattr(table, "column_names") and hasattr(table, "num_columns"):  # Arrow
        return list(table.column_names), [table.column(i) for i in range(table.num_columns)]
    if hasattr(table, "__arrow_c_stream__") and not (hasattr(table, "iloc") or hasattr(table, "to_physical")):
        loaded = sys.modules.get("pyarrow"), sys.modules.get("polars")
        made = next((module.table if module is loaded[0] else module.DataFrame for module in loaded if module), None)
        if made is not None:
            return _parts(made(table), what)
    if isinstance(table, Sequence) and not isinstance(table, str | bytes | memoryview):
        return _of_rows(list(table), what)
    try:
        return None, _two_axes(_plain(table, what), what)
    except ArrayMismatchError:
        raise ArgumentError(f"{what} is {kind_of(table)}; expected {TABLES}{_hint(table)}") from None


def _plain(table: Any, what: str) -> Any:
    backend = backend_of(table, what)
    unfit = backend.unfit(table)
    if unfit is not None:
        raise ArrayMismatchError(f"{what} is {unfit}")
    return backend.detach(table)


def _hint(table: Any) -> str:
    if hasattr(table, "iloc"):  # a pandas Series
        return "; a row of a DataFrame is frame.iloc[[0]], with two brackets; a column's .to_frame() gives a table"
    ways = ("to_frame", "collect", "compute", "toarray", "to_pandas", "toPandas", "df")
    known = next((way for way in ways if callable(getattr(table, way, None))), None)
    return f"; its .{known}() gives one" if known else ""


def _two_axes(matrix: Any, what: str) -> Any:
    if matrix.ndim != 2:
        hint = f": {what}[None] makes it one row, {what}[:, None] one column" if matrix.ndim == 1 else ""
        raise ShapeError(f"{what} has the shape {tuple(matrix.shape)}; expected (rows, columns){hint}")
    return matrix


def _of_rows(rows: list[Any], what: str) -> tuple[list[Any] | None, Any]:
    """A list with a dict, or a list of values, for every row."""
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        return list(names), [[row.get(name) for row in rows] for name in names]
    wide = [list(row) if isinstance(row, list | tuple | np.ndarray) else [] for row in rows]
    widths = {len(row) for row in wide}
    if not rows or widths == {0} or len(widths) > 1:
        raise ArgumentError(f"{what} is a list of {shown(rows[0]) if rows else 'no rows'}; expected {TABLES}")
    return None, list(map(list, zip(*wide, strict=True)))
