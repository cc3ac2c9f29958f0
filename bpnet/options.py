"""Checks of options, each returning the plain value: a NumPy number becomes a Python one, so that it can be saved."""

import inspect
import math
import operator
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from bpnet.errors import OptionError, shown


def number(what: str, value: Any, low: float, high: float, closed: str = "both") -> float:
    """`value` as a float within low ... high; `closed` as of intervals: both, left, right or neither.

    Raises OptionError.
    """
    left, right = "[" if closed in ("both", "left") else "(", "]" if closed in ("both", "right") else ")"
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        plain = float(value)
    except Exception:  # of whatever was passed
        plain = math.nan
    above = plain >= low if left == "[" else plain > low
    below = plain <= high if right == "]" else plain < high
    if not (above and below):
        raise OptionError(f"{what} is {shown(value)}; expected a number in {left}{low:g}, {high:g}{right}")
    return plain


def whole(what: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int of at least `least`, and at most `most`; raises OptionError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        plain = operator.index(value)
    except Exception:  # of whatever was passed
        plain = least - 1
    if plain < least:
        raise OptionError(f"{what} is {shown(value)}; expected a whole number of at least {least}")
    if most is not None and plain > most:
        raise OptionError(f"{what} is {shown(value)}; expected a whole number of at most {most:,}")
    return plain


def choice(what: str, value: Any, known: Sequence[str]) -> str:
    """`value` where it is one of the known words; raises OptionError."""
    if not isinstance(value, str) or value not in known:
        raise OptionError(f"{what} is {shown(value)}; expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
    return value


def flag(what: str, value: Any) -> bool:
    """`value` as True or False; raises OptionError."""
    if value is True or value is False:
        return bool(value)
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's
        return bool(value)
    raise OptionError(f"{what} is {shown(value)}; expected True or False")


def check_type(what: str, value: Any, dtype: str, smallest: float, largest: float) -> None:
    """Raise OptionError where `value`, or a number among the options of it, is too small or too large for a type.

    `smallest` and `largest` are the positive normal numbers between which those of the type called `dtype` lie.  Only
    options of bpnet's own classes are looked at: what those of others mean, nobody else knows (1e300 may be no limit).
    """
    if isinstance(value, tuple):
        for part in value:
            check_type(what, part, dtype, smallest, largest)
    elif is_dataclass(value):
        for option in fields(value):
            part = getattr(value, option.name)
            declared = [
                c for c in inspect.getmro(type(value)) if option in getattr(c, "__dataclass_fields__", {}).values()
            ]
            if not declared[-1].__module__.startswith("bpnet."):  # there may be layers in it that are bpnet's
                parts = part if isinstance(part, tuple) else (part,)
                part = tuple([one for one in parts if not isinstance(one, float)])
            check_type(f"{option.name} of {value}", part, dtype, smallest, largest)
    elif isinstance(value, float) and 0.0 < abs(value) < math.inf and not smallest <= abs(value) <= largest:
        bound = f"at least {smallest:.2g}" if abs(value) < smallest else f"at most {largest:.2g}"
        raise OptionError(f"{what} is {value!r}; with {dtype} parameters expected {bound}")
