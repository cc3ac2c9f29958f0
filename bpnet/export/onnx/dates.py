"""Dates as numbers, from microseconds since 1970, by the operators of ONNX: see `bpnet.tabular.dates`."""

import math

import numpy as np

from bpnet.export.onnx.graph import Graph, Tensor
from bpnet.export.onnx.operators import cos
from bpnet.tabular.dates import CYCLES, PER_DAY

DAY = PER_DAY["us"]


class Whole:
    """Whole numbers, with Python's operators; quotients are of numbers from 0 on, or exact."""

    def __init__(self, g: Graph, x: Tensor) -> None:
        self.g, self.x = g, x

    def _with(self, operator: str, other: "Whole | int") -> "Whole":
        right = other.x if isinstance(other, Whole) else self.g.array(other, dtype=np.int64)
        return Whole(self.g, self.g.node(operator, self.x, right))

    def __add__(self, other: "Whole | int") -> "Whole":
        return self._with("Add", other)

    def __sub__(self, other: "Whole | int") -> "Whole":
        return self._with("Sub", other)

    def __mul__(self, other: int) -> "Whole":
        return self._with("Mul", other)

    def __floordiv__(self, other: int) -> "Whole":
        return self._with("Div", other)

    def __mod__(self, other: int) -> "Whole":
        return self._with("Mod", other)

    @property
    def real(self) -> Tensor:
        return self.g.cast(self.x, np.float64)


def date_parts(g: Graph, ticks: Tensor, parts: tuple[str, ...], origin: float, missing: int) -> Tensor:
    """The parts of dates side by side, float64, from microseconds (rows, 1); NaN where these are `missing`."""
    none = g.node("Equal", ticks, g.array(missing, dtype=np.int64), dtype=bool)
    at = Whole(g, g.node("Where", none, g.array(0, dtype=np.int64), ticks, dtype=np.int64))
    within_day = at % DAY
    day = (at - within_day) // DAY
    within = g.node("Div", within_day.real, g.array(float(DAY)))
    year, month, of_month = _calendar(g, day)
    values = {"year": year, "month": month, "day": of_month, "weekday": (day + 3) % 7}  # 1970 began on a Thursday
    columns = []
    for part in parts:
        if part == "days":
            value = g.node("Add", g.node("Sub", day.real, g.array(origin)), within)
        elif part in values:
            value = values[part].real
        else:
            value = g.node("Mul", within, g.array(24.0 if part == "hour" else 1440.0))
            if part == "minute":
                whole = g.node("Floor", g.node("Div", value, g.array(60.0)))
                value = g.node("Sub", value, g.node("Mul", whole, g.array(60.0)))
        if part in CYCLES:
            angle = g.node("Mul", value, g.array(2.0 * math.pi / CYCLES[part]))
            columns += [g.node("Sin", angle), cos(g, angle)]
        else:
            columns.append(value)
    found = columns[0] if len(columns) == 1 else g.node("Concat", *columns, axis=1)
    return g.node("Where", none, g.array(math.nan), found, dtype=np.float64)


def _calendar(g: Graph, day: Whole) -> tuple[Whole, Whole, Whole]:
    """Year, month and day of the month, these from 0 on, of days since 1970 in the Gregorian calendar.

    Years are counted from March, so that a leap day is the last of its year, in eras of 400 of them (H. Hinnant,
    chrono-compatible low-level date algorithms, 2013).
    """
    since = day + 719468
    of_era = since % 146097
    era = (since - of_era) // 146097
    of_years = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (of_years * 365 + of_years // 4 - of_years // 100)
    place = (of_year * 5 + 2) // 153
    month = (place + 2) % 12
    begun = g.node("Less", month.x, g.array(2, dtype=np.int64), dtype=bool)
    return of_years + era * 400 + Whole(g, g.cast(begun, np.int64)), month, of_year - (place * 153 + 2) // 5
