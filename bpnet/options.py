"""Checks of options, each returning the plain value: a NumPy number becomes a Python one, so that it can be saved."""

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from functools import partial
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
    except MemoryError:
        raise
    except Exception:  # of whatever was passed
        plain = math.nan
    above = plain >= low if left == "[" else plain > low
    below = plain <= high if right == "]" else plain < high
    if not (above and below):
        raise OptionError(f"{what} is {shown(value)}; expected a number in {left}{low:g}, {high:g}{right}")
    return plain


positive = partial(number, low=0.0, high=math.inf, closed="neither")
not_negative = partial(number, low=0.0, high=math.inf, closed="left")
fraction = partial(number, low=0.0, high=1.0, closed="left")
finite = partial(number, low=-math.inf, high=math.inf, closed="neither")
"""As `number`, in (0, inf), [0, inf), [0, 1) and (-inf, inf)."""


def numbers(what: str, values: Any, low: float, high: float, closed: str = "both") -> tuple[float, ...]:
    """At least one number, each as `number` has it, as a tuple; raises OptionError."""
    several = list(values) if is_listed(values) else []
    if not several:
        raise OptionError(f"{what} is {shown(values)}; expected several numbers, such as (0.5, 1.5)")
    return tuple([number(f"{what}[{i}]", value, low, high, closed) for i, value in enumerate(several)])


def number_or_numbers(
    what: str, value: Any, low: float, high: float, closed: str = "both"
) -> float | tuple[float, ...]:
    """One number, or at least one of several as a tuple; raises OptionError."""
    several = (isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0) and not isinstance(value, str | bytes)
    return numbers(what, value, low, high, closed) if several else number(what, value, low, high, closed)


def whole(what: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int of at least `least`, and at most `most`; raises OptionError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        plain = operator.index(value)
    except MemoryError:
        raise
    except Exception:  # of whatever was passed
        plain = least - 1
    if plain < least:
        raise OptionError(f"{what} is {shown(value)}; expected a whole number of at least {least}")
    if most is not None and plain > most:
        raise OptionError(f"{what} is {shown(value)}; expected a whole number of at most {most:,}")
    return plain


def wholes(what: str, values: Any, least: int = 1, most: int | None = None) -> tuple[int, ...]:
    """Whole numbers, each as `whole` has it, as a tuple; raises OptionError."""
    if not is_listed(values):
        raise OptionError(f"{what} is {shown(values)}; expected whole numbers in a tuple")
    return tuple([whole(f"{what}[{i}]", value, least, most) for i, value in enumerate(values)])


MOST_PATTERNS = 500
"""Patterns, and parts with one, that are held against every name of a parameter."""


def few(what: str, values: Sequence[Any]) -> Sequence[Any]:
    """`values` where they are no more than MOST_PATTERNS; raises OptionError."""
    if len(values) > MOST_PATTERNS:
        raise OptionError(f"{what} has {len(values):,} parts; expected at most {MOST_PATTERNS:,}")
    return values


def choice(what: str, value: Any, known: Sequence[str]) -> str:
    """`value` where it is one of the known words; raises OptionError."""
    if not isinstance(value, str) or value not in known:
        raise OptionError(f"{what} is {shown(value)}; expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
    return value


def is_listed(value: Any) -> bool:
    """Whether it is some things, as a list or an array of one axis: no text, no dict."""
    if isinstance(value, str | bytes | Mapping):
        return False
    return isinstance(value, Collection) and len(getattr(value, "shape", (1,))) == 1


def flag(what: str, value: Any) -> bool:
    """`value` as True or False; raises OptionError."""
    if type(value).__name__ not in ("bool", "bool_"):  # Python's, and what NumPy calls its own
        raise OptionError(f"{what} is {shown(value)}; expected True or False")
    return bool(value)


def check_range(what: str, value: float, dtype: str, smallest: float, largest: float) -> None:
    """Raise OptionError where the type called `dtype`, of numbers from `smallest` to `largest`, can't hold `value`."""
    if 0.0 < abs(value) < math.inf and not smallest <= abs(value) <= largest:
        bound = f"at least {smallest:.2g}" if abs(value) < smallest else f"at most {largest:.2g}"
        hint = ", or x of float64" if dtype == "float32" else ""
        raise OptionError(f"{what} is {value!r}; with {dtype} parameters expected {bound}{hint}")
