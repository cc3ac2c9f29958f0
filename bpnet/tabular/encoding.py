"""Columns as numbers and codes: an encoder gives those of some rows, after what is done once for a column."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import DataError, DTypeError, shown
from bpnet.tabular.columns import Column
from bpnet.tabular.dates import as_clocks_show, parsed, reader_of, zone_of
from bpnet.tabular.values import as_boolean, as_number, as_text

if TYPE_CHECKING:
    from bpnet.tabular.schema import Feature

MISSING, UNSEEN, FIRST = 0, 1, 2
"""Codes of a category: without a value, of one that is not known, and of the first known value."""

Encoder = Callable[[slice], Any]


def encoder_of(feature: "Feature", column: Column, what: str, dtype: str = "float32") -> Encoder:
    """What gives numbers, (rows,) or (rows, numbers), or codes of some rows of a column, called `what` in errors.

    Raises DTypeError where the column holds something else than the feature, with the first row that does, and
    DataError where a number is infinite, or too large for `dtype`.
    """
    if feature.kind == "number":
        return numbers(feature, column, what, dtype)
    return ENCODERS[feature.kind](feature, column, what)


def _refused(column: Column, row: int, what: str, expected: str) -> DTypeError:
    value = column.take(slice(row, row + 1)).array()[0]
    value = value.item() if isinstance(value, np.generic) and value.dtype.kind not in "mM" else value
    text = str(value) if isinstance(value, np.generic) else shown(value)
    return DTypeError(f"{what} has {text} in row {row}; the model takes {expected} there")


def _first(column: Column, wrong: int | None = None) -> int:
    """The first row with the different value of that number, or with any value."""
    found = ~column.missing() if wrong is None else column.codes == wrong
    return int(np.argmax(found))


def _each(feature: "Feature", column: Column, what: str, read: Callable[[Any], float | None], expected: str) -> Any:
    """float64 numbers for the different values of a column and, last, NaN for a missing one."""
    texts, made = frozenset(feature.texts), np.full(len(column.values) + 1, np.nan)
    for i, value in enumerate(column.values.tolist()):
        number = np.nan if value in texts else read(value)
        if number is None:
            raise _refused(column, _first(column, i), what, expected)
        made[i] = number
    return made


def numbers(feature: "Feature", column: Column, what: str, dtype: str) -> Encoder:
    """(x - origin) / unit, in float64 where that is not x itself."""
    values, codes = column.values, column.codes
    if codes is not None:
        values = _each(feature, column, what, as_number, "numbers")
    elif not column.on_host:
        return _device_numbers(feature, values)
    elif values.dtype.kind == "m":
        values = np.where(np.isnat(values), np.nan, values / np.timedelta64(1, "s"))
    elif values.dtype.kind == "M":
        raise _refused(column, _first(column), what, "numbers")
    given = values
    if feature.origin != 0.0 or feature.unit != 1.0:
        values = (values.astype(np.float64) - feature.origin) / feature.unit
    largest = float(np.finfo(dtype).max)
    if values.dtype.kind == "f" and not (_least(values) >= -largest and _most(values) <= largest):
        place = int(np.argmax(np.abs(values) > largest))
        row = place if codes is None else _first(column, place)
        if np.isinf(given[place]):
            raise DataError(f"{what} is infinite in row {row}: a missing value is NaN, others are finite numbers")
        raise DataError(f"{what} has {given[place]:g} in row {row}, which is too large for {dtype}")
    return (lambda rows: values[rows]) if codes is None else (lambda rows: values[codes[rows]])


def _least(values: Any) -> float:
    """The smallest number, or 0."""
    return float(np.fmin.reduce(values, initial=0.0))


def _most(values: Any) -> float:
    """The largest number, or 0."""
    return float(np.fmax.reduce(values, initial=0.0))


def _device_numbers(feature: "Feature", values: Any) -> Encoder:
    if feature.origin == 0.0 and feature.unit == 1.0:
        return lambda rows: values[rows]
    xp = backend_of(values).xp
    return lambda rows: (xp.astype(values[rows], xp.float64) - feature.origin) / feature.unit


def truths(feature: "Feature", column: Column, what: str) -> Encoder:
    """1 and 0 of booleans, and NaN."""
    values, codes = column.values, column.codes
    if codes is not None:
        table = _each(feature, column, what, as_boolean, "true or false")
        return lambda rows: table[codes[rows]]
    if not column.on_host:
        return lambda rows: values[rows]
    if values.dtype.kind == "b":
        return lambda rows: values[rows]
    if values.dtype.kind in "mM":
        raise _refused(column, _first(column), what, "true or false")
    wrong = (values != 0) & (values != 1)
    if values.dtype.kind == "f":
        wrong &= ~np.isnan(values)
    if wrong.any():
        raise _refused(column, int(np.argmax(wrong)), what, "true or false")
    return lambda rows: values[rows]


def dates(feature: "Feature", column: Column, what: str) -> Encoder:
    """The parts of dates; those of a time zone as its clocks show them."""
    values, codes = column.values, column.codes
    if codes is not None:
        texts = column.values.tolist()
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        found, first = (values, wrong) if wrong is not None else parsed(texts, feature.format or "iso")
        if first is not None:
            way = "" if feature.format in (None, "iso") else f" written as {feature.format}"
            raise _refused(column, _first(column, first), what, f"dates{way}")
        values = np.append(found, np.array("NaT", dtype="datetime64[us]"))
    elif not column.on_host or values.dtype.kind != "M":
        if column.on_host and bool(column.missing().all()):
            values = np.full(column.rows, np.array("NaT", dtype="datetime64[us]"))
        else:
            raise _refused(column, _first(column) if column.on_host else 0, what, "dates")
    if column.zone is not None:
        zone_of(column.zone)
    zone = None if column.zone is None else feature.zone or column.zone

    read = reader_of(values, feature.parts, feature.origin)

    def numbers(some: Any) -> Any:
        return read(some if zone is None else as_clocks_show(some, zone))

    if codes is None:
        return lambda rows: numbers(values[rows])
    table = numbers(values)
    return lambda rows: table[codes[rows]]


def categories(feature: "Feature", column: Column, what: str) -> Encoder:
    """0 where a value is missing, 1 where it is unseen, else its place among the known ones and 2."""
    known, codes = feature.values, column.codes
    textual = bool(known) and isinstance(known[0], str)
    if codes is None:
        if not column.on_host:
            return _device_codes(known, column.values)
        if textual or column.values.dtype.kind in "mM":
            column = _different(column)
            codes = column.codes
        else:
            return _number_codes(known, column.values)
    place = {value: FIRST + i for i, value in enumerate(known)}
    table = np.full(len(column.values) + 1, MISSING, dtype=np.int32)
    numeric = textual and any(as_number(value) is not None for value in known)
    for i, value in enumerate(column.values.tolist()):
        key: Any = as_text(value) if textual else as_number(value) if isinstance(value, str) else value
        strange = textual and isinstance(value, int | float) and not (numeric or key in place)
        if strange or (known and key is None):
            expected = f"text such as {known[0]!r}" if textual else f"values such as {known[0]!r}"
            raise _refused(column, _first(column, i), what, expected)
        table[i] = place.get(key, UNSEEN)
    return lambda rows: table[codes[rows]]


def _different(column: Column) -> Column:
    """Values of an array as different ones and their codes."""
    values, codes = np.unique(column.values, return_inverse=True, equal_nan=True)
    objects = np.empty(len(values), dtype=object)
    objects[:] = values.astype("datetime64[us]").tolist() if values.dtype.kind == "M" else values.tolist()
    return Column(objects, np.where(column.missing(), -1, codes.reshape(-1)), column.zone)


def _number_codes(known: tuple[Any, ...], values: Any) -> Encoder:
    """Of numbers in an array."""
    table = np.array(known, dtype=np.float64)
    order = np.argsort(table)
    table, place = table[order], (FIRST + order).astype(np.int32)

    def codes(rows: slice) -> Any:
        some = values[rows].astype(np.float64)
        if not len(table):
            return np.where(np.isnan(some), MISSING, UNSEEN)
        at = np.minimum(np.searchsorted(table, some), len(table) - 1)
        return np.where(table[at] == some, place[at], np.where(np.isnan(some), MISSING, UNSEEN))

    return codes


def _device_codes(known: tuple[Any, ...], values: Any) -> Encoder:
    """The same, where they lie."""
    backend = backend_of(values)
    xp, place = backend.xp, backend.device(values)
    dtype = values.dtype if xp.isdtype(values.dtype, "real floating") else xp.float32
    order = sorted(range(len(known)), key=lambda i: float(known[i]))
    table = backend.from_host(np.array([float(known[i]) for i in order]), dtype, place)
    codes = backend.from_host(np.array([FIRST + i for i in order], dtype=np.int32), xp.int32, place)

    def found(rows: slice) -> Any:
        some = xp.astype(values[rows], dtype)
        other = xp.astype(~xp.isnan(some), xp.int32)  # MISSING and UNSEEN
        if not known:
            return other
        at = xp.minimum(xp.searchsorted(table, some), len(known) - 1)
        return xp.where(xp.take(table, at) == some, xp.take(codes, at), other)

    return found


ENCODERS: dict[str, Callable[["Feature", Column, str], Encoder]] = {
    "boolean": truths,
    "date": dates,
    "category": categories,
}
