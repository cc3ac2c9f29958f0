"""One column of a table of any library, as NumPy arrays; numbers of a device stay where they are.

Libraries are recognised by what their columns have, so that none is imported.
"""

import datetime
import decimal
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import ArgumentError, ArrayMismatchError, DTypeError, ShapeError, kind_of, shown

EPOCH_DAY = np.datetime64("1970-01-01", "us")


@dataclass(frozen=True)
class Column:
    """The values of a column, one a row, in `values`; or in `codes` the place of each row's value there.

    values : numbers (NaN is missing), booleans, datetime64 or timedelta64 (NaT); with `codes` different values of any
        kind, in an array of objects.  Numbers may be an array of another library, on its device
    codes : (rows,) places in `values`, -1 where there is none
    zone : the time zone in which dates are to be read, which are in UTC; None where they are as a clock shows them
    categorical : whether the library says that it is one of categories, whatever these are
    counted : how many rows have each of the values, where these here are a sample of them
    """

    values: Any
    codes: Any = None
    zone: str | None = None
    categorical: bool = False
    counted: Any = None

    @property
    def rows(self) -> int:
        return int((self.values if self.codes is None else self.codes).shape[0])

    @property
    def on_host(self) -> bool:
        return isinstance(self.values, np.ndarray)

    def take(self, rows: Any) -> "Column":
        """These rows: see `rows_of`.

        `values` stay, so that what text is taken for does not hang on a few rows: see `used`.
        """
        if self.codes is not None:
            return replace(self, codes=self.codes[rows], counted=None)
        return replace(self, values=rows_of(self.values, rows))

    def used(self) -> "Column":
        """The column without values that no row has, as one of some rows of another may have them."""
        if self.codes is None:
            return self
        there = self.counts() > 0
        if there.all():
            return self
        place = np.append(np.cumsum(there) - 1, -1)  # which is that of the code -1
        return replace(self, values=self.values[there], codes=place[self.codes])

    def counts(self) -> Any:
        """How many rows have each of the values, which have codes."""
        if self.counted is not None:
            return self.counted
        return np.bincount(self.codes + 1, minlength=len(self.values) + 1)[1:]

    def array(self) -> Any:
        """One value a row: an array of objects where there are codes, None where one is missing."""
        if self.codes is None:
            return self.values
        values = np.empty(len(self.values) + 1, dtype=object)
        values[:-1], values[-1] = self.values, None
        return values[self.codes]

    def missing(self) -> Any:
        """For each row whether there is no value."""
        if self.codes is not None:
            return self.codes < 0
        if not self.on_host:
            xp = backend_of(self.values).xp
            floats = xp.isdtype(self.values.dtype, "real floating")
            return xp.isnan(self.values) if floats else xp.zeros(self.values.shape, dtype=xp.bool)
        if self.values.dtype.kind in "mM":
            return np.isnat(self.values)
        return np.isnan(self.values) if self.values.dtype.kind == "f" else np.zeros(len(self.values), dtype=bool)


def rows_of(values: Any, rows: Any) -> Any:
    """Some rows of an array, where it lies: a slice, or an array of whole numbers, or of booleans, on the host."""
    if isinstance(values, np.ndarray) or isinstance(rows, slice):
        return values[rows, ...]
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype.kind == "b" else rows.astype(np.int64)
    backend = backend_of(values)
    index = backend.from_host(rows, None, backend.device(values))
    return backend.xp.take(values, index, axis=0)


def columns_of(matrix: Any, places: Sequence[int]) -> Any:
    """Some columns of an array (rows, columns), where it lies."""
    if isinstance(matrix, np.ndarray):
        return matrix[:, list(places)]
    backend = backend_of(matrix)
    index = backend.from_host(np.array(places, dtype=np.int64), None, backend.device(matrix))
    return backend.xp.take(matrix, index, axis=1)


def column_of(raw: Any, what: str) -> Column:
    """A column of any library; `what` is what errors call it."""
    if isinstance(raw, Column):
        return raw
    if isinstance(raw, np.ma.MaskedArray):
        return _masked(raw, what)
    if isinstance(raw, np.ndarray):
        return _of_numpy(raw, what)
    if hasattr(raw, "iloc") or (hasattr(raw, "to_numpy") and hasattr(raw, "factorize")):
        return _of_pandas(raw, what)
    if hasattr(raw, "to_physical"):
        return _of_polars(raw, what)
    if hasattr(raw, "dictionary_encode") or hasattr(raw, "dictionary_decode") or hasattr(raw, "null_count"):
        return _of_arrow(raw, what)
    if isinstance(raw, Sequence) and not isinstance(raw, str | bytes):
        return _of_list(list(raw), what)
    try:
        backend = backend_of(raw, what)
    except ArrayMismatchError:
        expected = "an array, a list, or a column of pandas, polars or Arrow"
        raise ArgumentError(f"{what} is {kind_of(raw)}; expected {expected}") from None
    if backend.name == "numpy":
        return _of_numpy(np.asarray(raw), what)
    unfit = backend.unfit(raw)
    if unfit is not None:
        raise ArrayMismatchError(f"{what} is {unfit}")
    raw = backend.detach(raw)
    return Column(_one_axis(backend.xp.reshape(raw, (-1,)) if tuple(raw.shape[1:]) == (1,) else raw, what))


def _one_axis(values: Any, what: str) -> Any:
    if values.ndim != 1:
        raise ShapeError(f"{what} has the shape {tuple(values.shape)}; expected one value a row")
    return values


def _of_numpy(values: Any, what: str) -> Column:
    values = _one_axis(values[:, 0] if values.shape[1:] == (1,) else values, what)
    kind = values.dtype.kind
    if kind == "f" and values.dtype.itemsize not in (4, 8):
        return Column(values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64))
    if kind in "fiubmM":
        return Column(values)
    if kind in "OUST":
        return _of_list(values.tolist(), what)
    raise DTypeError(f"{what} holds {values.dtype} values; expected numbers, text, booleans or dates")


def _masked(values: Any, what: str) -> Column:
    mask = np.ma.getmaskarray(values)
    column = _of_numpy(np.asarray(values.data), what)
    return without(column, mask.reshape(-1)) if mask.any() else column


def without(column: Column, mask: Any) -> Column:
    """The column without the values of some rows, on the host."""
    if column.codes is not None:
        return replace(column, codes=np.where(mask, -1, column.codes))
    values = column.values
    if values.dtype.kind == "b":
        return booleans(np.where(mask, -1, values.astype(np.int8)))
    if values.dtype.kind in "mM":
        return Column(np.where(mask, np.array("NaT", dtype=values.dtype), values), None, column.zone)
    wide = values if values.dtype.kind == "f" else values.astype(np.float64)
    return Column(np.where(mask, wide.dtype.type(np.nan), wide))


def booleans(codes: Any) -> Column:
    """Booleans with gaps: 1, 0, and -1 where there is none."""
    return Column(np.array([False, True], dtype=object), codes)


def _plain(value: Any) -> Any:
    """What NumPy holds as Python has it, and bytes as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if not isinstance(value, np.generic):
        return value
    return value.astype("datetime64[us]").item() if isinstance(value, np.datetime64) else value.item()


def is_missing(value: Any) -> bool:
    """Whether an object stands for no value: None, NaN, NaT, pandas' NA, and text that is empty or blank."""
    if isinstance(value, str):
        return not value or value.isspace()
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # of pandas' NA it can't be said
        return True


def _of_list(items: list[Any], what: str) -> Column:
    """Objects, one a row."""
    try:
        place: dict[Any, int] = dict.fromkeys(items, -1)
    except TypeError:
        row = next(i for i, item in enumerate(items) if not _hashable(item))
        raise DTypeError(
            f"{what} holds {kind_of(items[row]).removeprefix('of type ')} in row {row}: {shown(items[row])}; expected "
            "one number, text, boolean or date a row"
        ) from None
    found: dict[Any, int] = {}
    for item in place:
        if not is_missing(item):
            place[item] = found.setdefault(_plain(item), len(found))
    codes = np.fromiter(map(place.__getitem__, items), np.int64, len(items))
    return simplified(list(found), codes, what)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def simplified(found: list[Any], codes: Any, what: str) -> Column:
    """Different objects and their codes: as numbers or dates where all are these."""
    if found and all(type(value) is int and abs(value) < 2**63 for value in found) and codes.min() >= 0:
        return Column(np.array(found, dtype=np.int64)[codes])
    if all(type(value) in (int, float, decimal.Decimal) for value in found):
        return Column(np.array([*map(_float, found), np.nan])[codes])
    if all(isinstance(value, datetime.timedelta) for value in found):
        return Column(np.array([*found, "NaT"], dtype="timedelta64[us]")[codes])
    if any(isinstance(value, datetime.date) for value in found):
        return _dates(found, codes, what)
    if all(isinstance(value, datetime.time) for value in found):
        return Column(np.array([*map(_on_epoch_day, found), "NaT"], dtype="datetime64[us]")[codes])
    values = np.empty(len(found), dtype=object)
    values[:] = found
    return Column(values, codes)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # of a whole number of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _on_epoch_day(time: datetime.time) -> Any:
    seconds = (time.hour * 60 + time.minute) * 60 + time.second
    return EPOCH_DAY + np.timedelta64(seconds * 1_000_000 + time.microsecond, "us")


def _dates(found: list[Any], codes: Any, what: str) -> Column:
    """Dates and times of Python; those of a time zone in UTC, and its name."""
    aware = [getattr(value, "tzinfo", None) is not None for value in found]
    odd = [i for i, value in enumerate(found) if not isinstance(value, datetime.date) or aware[i] != aware[0]]
    if odd:
        row = int(np.argmax(codes == odd[0]))
        raise DTypeError(
            f"{what} has {shown(found[odd[0]])} in row {row}, and {shown(found[0])} elsewhere: expected dates alone, "
            "all with a time zone or all without"
        )
    if not aware[0]:
        return Column(np.array([*found, "NaT"], dtype="datetime64[us]")[codes])
    plain = [value.astimezone(datetime.UTC).replace(tzinfo=None) for value in found]
    return Column(np.array([*plain, "NaT"], dtype="datetime64[us]")[codes], None, _zone_name(found[0]))


def _zone_name(date: datetime.datetime) -> str:
    """Of the time zone of a date: its name where it has one, else the offset."""
    key = getattr(date.tzinfo, "key", None) or getattr(date.tzinfo, "zone", None)
    return str(key or date.strftime("%z")[:5])


def _of_pandas(raw: Any, what: str) -> Column:
    if not hasattr(raw, "dtype"):
        raise ShapeError(f"{what} has several columns; expected one")
    if not hasattr(raw, "iloc"):  # an index, or an array of pandas
        raw = raw.to_series() if hasattr(raw, "to_series") else sys.modules["pandas"].Series(raw)
    dtype = raw.dtype
    if isinstance(dtype, np.dtype):
        return _of_numpy(raw.to_numpy(), what)
    if hasattr(dtype, "pyarrow_dtype"):
        return _of_arrow(raw.array.__arrow_array__(), what)
    if hasattr(dtype, "categories") and hasattr(dtype, "ordered"):
        return replace(_categorical(column_of(raw.cat.categories, what), raw.cat.codes.to_numpy()), categorical=True)
    if hasattr(dtype, "fill_value") and hasattr(raw, "sparse"):
        return _of_pandas(raw.sparse.to_dense(), what)
    if hasattr(dtype, "tz"):
        utc = raw.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        return Column(utc, None, str(dtype.tz))
    if hasattr(dtype, "numpy_dtype") and getattr(dtype, "kind", "O") in "iufb":
        gaps = raw.isna().to_numpy()
        if dtype.kind == "b":
            return (
                booleans(raw.to_numpy(dtype=np.int8, na_value=-1)) if gaps.any() else Column(raw.to_numpy(dtype=bool))
            )
        if gaps.any():
            return Column(raw.to_numpy(dtype=np.float64, na_value=np.nan))
        return Column(raw.to_numpy(dtype=dtype.numpy_dtype))
    if hasattr(dtype, "freq") and hasattr(raw, "dt"):  # periods
        return Column(raw.dt.to_timestamp().to_numpy())
    if hasattr(dtype, "storage"):  # text
        codes, values = raw.factorize()
        return simplified(*_without_blanks(values.tolist(), codes), what)
    return _of_list(raw.astype(object).tolist(), what)


def _without_blanks(found: list[Any], codes: Any) -> tuple[list[Any], Any]:
    """Different values and their codes, blank text among them made missing."""
    blank = [is_missing(value) for value in found]
    if not any(blank):
        return found, codes
    places = np.append(np.where(blank, -1, np.cumsum(~np.array(blank)) - 1), -1)
    return [value for value, empty in zip(found, blank, strict=True) if not empty], places[codes]


def _categorical(values: Column, codes: Any) -> Column:
    """Of categories, which are a column themselves, and codes of them."""
    plain = np.empty(values.rows, dtype=object)
    plain[:] = values.array().tolist()
    if values.on_host and values.values.dtype.kind in "mM" and values.codes is None:
        return Column(np.append(values.values, np.array("NaT", dtype=values.values.dtype))[codes], None, values.zone)
    found, codes = _without_blanks(plain.tolist(), codes)
    plain = np.empty(len(found), dtype=object)
    plain[:] = found
    return Column(plain, codes)


def _of_polars(raw: Any, what: str) -> Column:
    dtype = raw.dtype
    name = type(dtype).__name__ if not isinstance(dtype, type) else dtype.__name__
    if name in ("String", "Utf8", "Binary", "Object"):
        return _of_list(raw.to_list(), what)
    if name in ("Categorical", "Enum"):
        return replace(_of_list(raw.cast(str).to_list(), what), categorical=True)
    gaps = raw.null_count() > 0
    if name == "Boolean":
        return booleans(raw.cast(int).fill_null(-1).to_numpy()) if gaps else Column(raw.to_numpy())
    if name in ("Decimal", "Int128", "UInt128"):
        return Column(raw.cast(float).to_numpy())
    if name == "Time":
        nanoseconds = raw.to_physical().to_numpy()
        since = np.where(np.isnan(nanoseconds), 0, nanoseconds).astype(np.int64) if gaps else nanoseconds
        column = Column((since // 1000).astype("timedelta64[us]") + EPOCH_DAY)
        return without(column, raw.is_null().to_numpy()) if gaps else column
    if name in ("Datetime", "Date", "Duration"):
        return Column(raw.to_numpy(), None, getattr(dtype, "time_zone", None))
    if name == "Null":
        return Column(np.full(len(raw), np.nan))
    if name in ("List", "Array", "Struct"):
        raise DTypeError(f"{what} holds {dtype} values; expected one number, text, boolean or date a row")
    return _of_numpy(raw.to_numpy(), what)


def _of_arrow(raw: Any, what: str) -> Column:
    """Of Arrow: an array, or one in chunks."""
    kind = str(raw.type)
    if kind.startswith("extension"):
        return _of_arrow(raw.cast(raw.type.storage_type), what)
    if kind.startswith("dictionary"):
        raw = raw.unify_dictionaries() if hasattr(raw, "unify_dictionaries") else raw
    elif "string" in kind or kind == "utf8":
        raw = raw.cast("string").dictionary_encode()
        kind = str(raw.type)
    raw = _joined(raw)
    if kind.startswith("dictionary"):
        texts = str(raw.dictionary.type) == "string"  # which is how Arrow keeps text that repeats
        values = Column(*_numbered(raw.dictionary.to_pylist())) if texts else column_of(raw.dictionary, what)
        codes = raw.indices.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False)
        return replace(_categorical(values, codes), categorical=not texts)
    if kind == "null":
        return Column(np.full(len(raw), np.nan))
    if kind == "bool":
        if raw.null_count:
            return booleans(raw.cast("int8").fill_null(-1).to_numpy(zero_copy_only=False))
        return Column(raw.to_numpy(zero_copy_only=False))
    if kind.startswith("decimal"):
        return Column(raw.cast("float64").to_numpy(zero_copy_only=False))
    if kind.startswith("time") and kind[4:6] in ("32", "64"):
        unit = kind.partition("[")[2].rstrip("]")
        since = raw.cast("int32" if kind[4:6] == "32" else "int64").fill_null(0).to_numpy(zero_copy_only=False)
        column = Column(since.astype(f"timedelta64[{unit}]") + EPOCH_DAY)
        return without(column, raw.is_null().to_numpy(zero_copy_only=False)) if raw.null_count else column
    if kind.startswith(("list", "struct", "map", "large_list", "fixed_size_list", "fixed_size_binary", "month_day")):
        raise DTypeError(f"{what} holds {kind} values; expected one number, text, boolean or date a row")
    values = raw.to_numpy(zero_copy_only=False)
    return Column(values, None, raw.type.tz) if kind.startswith("timestamp") else _of_numpy(values, what)


def _numbered(values: list[Any]) -> tuple[Any, Any]:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made, np.arange(len(values))


def _joined(raw: Any) -> Any:
    """Of an array in chunks one array."""
    if not hasattr(raw, "combine_chunks"):
        return raw
    whole = raw.combine_chunks()
    return whole.chunk(0) if hasattr(whole, "chunk") and whole.num_chunks == 1 else whole
