"""Numbers and names as people read them, in columns that line up whatever script they are written in."""

import math
from collections.abc import Iterable, Sequence

from bpnet.metrics.base import COLUMNS
from bpnet.table import columns_of, fit, pad

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "ROC AUC",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "f1": "F1",
    "r2": "R2",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
}
"""What scores are called in a report."""
SHARES = ("accuracy", "balanced_accuracy", "calibration_error")
"""Scores that are written in percent."""
RECORDED = set(COLUMNS)


def title(name: str) -> str:
    """What a score is called."""
    return TITLES.get(name, name.replace("_", " "))


def short(value: float) -> str:
    """A number with some four digits, and commas between thousands."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    if 1000 <= size < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def brief(text: str, width: int = 160) -> str:
    """What a layer or an optimizer is as code, without what stands in parentheses within others; at most so long."""
    depth, parts = 0, []
    for c in text:
        depth -= c in ")]}"
        if depth < 2:
            parts.append(c)
        if c in "([{":
            depth += 1
            parts += ["..."] * (depth == 2)
    return fit("".join(parts), width)


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals, and without a sign where all of them are 0."""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def percent(value: float, digits: int = 1) -> str:
    """A share; a dash where there is none."""
    return f"{fixed(100.0 * value, digits)}%" if math.isfinite(value) else "-"


def score(name: str, value: float) -> str:
    """A score as it is written."""
    return percent(value, 2) if name in SHARES else f"{value:.4f}" if name in ("r2", "roc_auc", "f1") else short(value)


def aligned(rows: Iterable[Sequence[str]], left: int = 1, indent: int = 2) -> list[str]:
    """Lines of a table whose first `left` columns are text and whose others are numbers."""
    listed = list(rows)
    widths = [max(columns_of(row[i]) for row in listed) for i in range(len(listed[0]))]
    return [
        (
            " " * indent + "  ".join(pad(c, w, i >= left) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        ).rstrip()
        for row in listed
    ]


def wrapped(parts: Iterable[str], width: int, indent: int = 2, between: str = "  ") -> list[str]:
    """The parts one after the other, on as many lines as they need."""
    lines: list[str] = []
    for part in parts:
        if lines and columns_of(lines[-1] + between + part) <= width:
            lines[-1] += between + part
        else:
            lines.append(" " * indent + part)
    return lines


def more(count: int, what: str) -> str:
    """That so many are left out."""
    return f"... and {count:,} more {what}"


def decimals(values: Iterable[float]) -> int:
    """How many decimals to write such numbers with, so that the largest has four digits."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 3 if largest == 0 else min(max(3 - math.floor(math.log10(largest)), 0), 9)
