"""What a column is, read from its values."""

import warnings
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import BpnetWarning, DataError, shown, users_line
from bpnet.tabular.columns import Column
from bpnet.tabular.dates import as_clocks_show, chosen, format_of, have_offsets, parsed
from bpnet.tabular.encoding import _different
from bpnet.tabular.values import as_number, as_text

MOST_CATEGORIES = 1000
"""Known values of a category, the most frequent ones."""
RARE, MANY = 2, 100
"""Values of fewer rows than RARE are too rare to learn in a table of MANY rows or more."""
LOST = 1e-4
"""The part of a column's deviation that float32 may take off a value."""
MOSTLY = 0.9
"""The share of a column's rows that are numbers from which on other text stands for missing ones."""


def infer(column: Column, name: str, kind: str | None, most: int) -> dict[str, Any] | None:
    """The options of a `Feature` for a column, which is of `kind` if that is given; None where nothing can be learnt.

    Whoever calls it has a warning then, and where text stands for missing numbers.
    """
    if kind is None:
        kind = kind_of_column(column)
    if kind == "boolean":
        return {"name": name, "kind": kind}
    if kind == "number":
        return {"name": name, "kind": kind, **_number(column, name)}
    if kind == "date":
        return {"name": name, "kind": kind, **_date(column, name)}
    values = _known(column, most)
    if not values:
        why = "its text hardly repeats, as free text or an identifier does" if len(column.values) else "it has no value"
        warnings.warn(f"column {name!r} is left out: {why}", BpnetWarning, stacklevel=users_line())
        return None
    return {"name": name, "kind": kind, "values": values}


def kind_of_column(column: Column) -> str:
    """The kind of feature that a column is."""
    if not column.on_host:
        return "number"
    if column.categorical:
        return "category"
    values = column.values
    if column.codes is None:
        return {"b": "boolean", "M": "date"}.get(values.dtype.kind, "number")
    objects = values.tolist()
    if objects and all(isinstance(value, bool) for value in objects):
        return "boolean"
    read = [as_number(value) for value in objects]
    counts = column.counts()
    numbers = np.array([number is not None for number in read], dtype=bool)
    real = [number for number in read if number is not None and number == number]
    share = counts[numbers].sum() / max(1, counts.sum())
    if real and (numbers.all() or (share >= MOSTLY and len(real) > 2 * (len(objects) - numbers.sum()))):
        return "number"
    texts = [value for value in objects if isinstance(value, str)]
    return "date" if texts and len(texts) == len(objects) and format_of(texts) else "category"


def _number(column: Column, name: str) -> dict[str, Any]:
    """Origin and unit where float32 could not tell values apart; text that stands for missing ones."""
    if not column.on_host:
        return {}
    values, found = column.values, {}
    if column.codes is not None:
        objects = values.tolist()
        texts = [value for value in objects if as_number(value) is None]
        if any(not isinstance(text, str) for text in texts):
            odd = next(text for text in texts if not isinstance(text, str))
            raise DataError(f"column {name!r} has {shown(odd)}, which is no number")
        if texts:
            found["texts"] = tuple(texts)
            warnings.warn(
                f"column {name!r} is taken for numbers, and {', '.join(map(shown, texts[:3]))} there for missing ones: "
                f"types={{{name!r}: 'category'}} takes all of it as text",
                BpnetWarning,
                stacklevel=users_line(),
            )
        values = np.array([np.nan if n is None else n for n in map(as_number, objects)] + [np.nan])[column.codes]
    elif values.dtype.kind == "m":
        values = np.where(np.isnat(values), np.nan, values / np.timedelta64(1, "s"))
    return found | scale_of(values)


def scale_of(values: Any) -> dict[str, float]:
    """Origin and unit of a column of numbers, where float32 would take more than LOST of the deviation off a value.

    The largest magnitude is taken out before anything is squared, so that nothing overflows or vanishes.
    """
    if values.dtype.kind == "b" or values.dtype.itemsize <= 2 or values.dtype == np.float32:
        return {}
    values = values.astype(np.float64, copy=False)
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    largest = float(np.abs(values).max())
    with np.errstate(all="ignore"):
        single = values.astype(np.float32)
        single[np.abs(single) < np.finfo(np.float32).smallest_normal] = 0.0
        lost = float(np.abs(values - single).max())
    if lost == 0.0:
        return {}
    exponent = int(np.frexp(largest)[1])
    part = np.ldexp(values, -exponent)
    constant = bool(part.min() == part.max())
    deviation = 0.0 if constant else float(np.ldexp(part.std(), exponent))
    if lost <= LOST * deviation or (constant and largest < float(np.finfo(np.float32).max)):
        return {}
    origin = float(values[0] if constant else np.ldexp(part.mean(), exponent))
    return {"origin": origin, "unit": deviation or 1.0}


def _date(column: Column, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    values = column.values
    if column.codes is not None:
        texts = [as_text(value) for value in values.tolist()]
        way = format_of(texts) if texts else "iso"
        if way is None:
            raise DataError(f"column {name!r} has {shown(texts[0])}, which is no date as ISO 8601 writes them")
        values, found["format"] = parsed(texts, way)[0][column.counts() > 0], way
        if way == "iso" and have_offsets(texts):
            found["zone"] = "UTC"
    elif values.dtype.kind != "M":
        raise DataError(f"column {name!r} holds {values.dtype} values, not dates: leave out types={{{name!r}: 'date'}}")
    if column.zone is not None:
        found["zone"], values = column.zone, as_clocks_show(values, column.zone)
    found["parts"], found["origin"] = chosen(values)
    return found


def _known(column: Column, most: int) -> tuple[Any, ...]:
    """The values of a category that are learnt, in order."""
    if not column.on_host:
        column = Column(backend_of(column.values).to_host(column.values))
    if column.codes is None:
        column = _different(column)
    counts = column.counts()
    objects: list[Any] = column.values.tolist()
    if not all(isinstance(value, bool) for value in objects):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in objects)
        objects = [_whole(value) for value in objects] if numbers else list(map(as_text, objects))
    total: dict[Any, int] = {}
    for value, count in zip(objects, counts.tolist(), strict=True):
        total[value] = total.get(value, 0) + count
    least = RARE if len(column.codes) >= MANY else 1
    frequent = [value for value, count in total.items() if count >= least]
    frequent.sort(key=lambda value: -total[value])
    return tuple(sorted(frequent[:most]))


def _whole(value: float) -> float:
    return int(value) if value == value and abs(value) < 2**53 and value == int(value) else value
