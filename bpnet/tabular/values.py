"""Single values of a column: what they are as numbers, as text, as booleans."""

import decimal
import math
import re
from typing import Any

NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
CODE = re.compile(r"\s*[+-]?0[0-9]")
"""Text of digits that is no number, since what begins it would be lost: "007"."""
NONE = frozenset({"na", "n/a", "#n/a", "nan", "null", "none", "nil", "?", "-", "--", "."})
"""Text that stands for a missing number, in small letters."""
INFINITE = frozenset({sign + word for sign in ("", "+", "-") for word in ("inf", "infinity")})
BEGINS = frozenset("0123456789+-. \t\n")
TRUE, FALSE = frozenset({"true", "t", "yes", "y", "1"}), frozenset({"false", "f", "no", "n", "0"})


def as_number(value: Any) -> float | None:
    """An object as a number, NaN where it stands for none; None where it is something else."""
    if isinstance(value, str):
        if value[:1] in BEGINS and NUMBER.fullmatch(value):
            return None if CODE.match(value) else float(value)
        word = value.strip().lower() if len(value) < 20 else ""
        return math.nan if word in NONE else float(word) if word in INFINITE else None
    if isinstance(value, bool | int | float | decimal.Decimal):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def as_text(value: Any) -> str:
    """An object as text: numbers as Python writes them, whole ones without a point, days without a time."""
    if isinstance(value, str):
        return value
    if isinstance(value, float | decimal.Decimal) and -(2**53) < value < 2**53 and value == int(value):
        return str(int(value))
    return value.isoformat().removesuffix("T00:00:00") if hasattr(value, "isoformat") else str(value)


def as_boolean(value: Any) -> float | None:
    """An object as 0 or 1; None where it is neither."""
    if isinstance(value, str):
        word = value.strip().lower()
        return 1.0 if word in TRUE else 0.0 if word in FALSE else math.nan if word in NONE else None
    if isinstance(value, bool | int | float | decimal.Decimal) and value in (0, 1):
        return float(value)
    return None
