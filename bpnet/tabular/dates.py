"""Dates as numbers: days since an origin, and where they are in the year, the month, the week and the day."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import numpy as np

from bpnet.errors import DataError

CYCLES = {"month": 12.0, "day": 31.0, "weekday": 7.0, "hour": 24.0, "minute": 60.0}
"""Parts that come around again, which are a sine and a cosine each, by their period."""
PARTS = ("days", "year", *CYCLES)
FORMATS = (
    "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y",
    "%Y/%m/%d %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%H:%M", "%H:%M:%S",
)  # fmt: skip
"""How dates may be written beside the ways of ISO 8601; where two fit all of a column, the first."""
ISO = re.compile(r"[0-9]{4}-[0-9]{2}(-[0-9]{2}([T ][0-9:.,]+)?)?")
OFFSET = re.compile(r"[T ][0-9:.,]+(Z|[+-][0-9:]+)\s*$")
PER_DAY = {"D": 1, "h": 24, "m": 1440, "s": 86400, "ms": 86400 * 10**3, "us": 86400 * 10**6, "ns": 86400 * 10**9}
"""Of the units of time in NumPy, how many make a day."""


def names_of(parts: tuple[str, ...]) -> list[str]:
    """What the numbers are called that `reader_of` gives."""
    return [name for part in parts for name in ([f"{part}_sin", f"{part}_cos"] if part in CYCLES else [part])]


def split(dates: Any) -> tuple[Any, Any]:
    """Days since 1970, whole numbers, and the part of the day that has passed; of a missing date those of 1970."""
    dates = np.where(np.isnat(dates), np.array(0, dtype="int64").astype(dates.dtype), dates)
    unit, count = np.datetime_data(dates.dtype)
    if unit in PER_DAY and count == 1:  # whole numbers are divided faster than NumPy looks into a calendar
        ticks, per_day = dates.view(np.int64), PER_DAY[unit]
        day = ticks // per_day
        return day, (ticks - day * per_day) / per_day
    day = dates.astype("datetime64[D]")
    return day.view(np.int64), (dates - day) / np.timedelta64(1, "D")


def _of_days(day: Any, part: str) -> Any:
    """A part of days, counted from 0, but the year."""
    dates = day.view("datetime64[D]")
    month = dates.astype("datetime64[M]")
    if part == "year":
        return dates.astype("datetime64[Y]").view(np.int64) + 1970
    if part == "month":
        return month.view(np.int64) % 12
    return (dates - month).view(np.int64) if part == "day" else (day + 3) % 7  # 1970 began on a Thursday


def _circled(value: Any, part: str) -> list[Any]:
    """The columns of a part."""
    if part not in CYCLES:
        return [value]
    angle = value * (2.0 * np.pi / CYCLES[part])
    return [np.sin(angle), np.cos(angle)]


def reader_of(dates: Any, parts: tuple[str, ...], origin: float) -> Callable[[Any], Any]:
    """A function of datetime64, some of these: (rows, numbers) float64, NaN where there is none.

    `origin` is in days since 1970.  Where the dates are of few days, a table has what a calendar says of each.
    """
    of_days = [part for part in parts if part in ("year", "month", "day", "weekday")]
    day = split(dates[~np.isnat(dates)])[0]
    low, high = (int(day.min()) - 2, int(day.max()) + 3) if len(day) else (0, 1)  # clocks may show others than UTC

    def calendar(day: Any) -> dict[str, list[Any]]:
        return {part: _circled(_of_days(day, part), part) for part in of_days}

    table = calendar(np.arange(low, high)) if high - low <= max(1000, len(day)) else None

    def read(some: Any) -> Any:
        day, within = split(some)
        if table is None:
            known = calendar(day)
        else:
            place = np.clip(day - low, 0, high - low - 1)
            known = {part: [column[place] for column in columns] for part, columns in table.items()}
        known["days"] = [day - origin + within]
        for part, value in (("hour", within * 24.0), ("minute", within * 1440.0 % 60.0)):
            if part in parts:
                known[part] = _circled(value, part)
        made = np.stack([column for part in parts for column in known[part]], axis=1, dtype=np.float64)
        made[np.isnat(some)] = np.nan
        return made

    return read


def chosen(dates: Any) -> tuple[tuple[str, ...], float]:
    """The parts that vary among dates, the days always among them; and the origin, the first day."""
    day, within = split(dates[~np.isnat(dates)])
    if not len(day):
        return ("days",), 0.0
    days = np.unique(day)
    values = {part: _of_days(days, part) for part in ("year", "month", "day", "weekday")}
    values |= {"hour": within * 24.0 // 1.0, "minute": within * 1440.0 % 60.0 // 1.0}
    return ("days", *(part for part in PARTS[1:] if np.ptp(values[part]) > 0)), float(days[0])


# ---- as text ------------------------------------------------------------------------------------------------------


def format_of(texts: list[str]) -> str | None:
    """How all of some texts are written as dates: "iso", or one of FORMATS; None where they are no dates."""
    if ISO.match(texts[0]) and ISO.match(texts[-1]):
        return "iso" if parsed(texts, "iso")[1] is None else None
    if not any(c.isdigit() for c in texts[0]) or len(texts[0]) > 30:
        return None
    return next((way for way in FORMATS if parsed(texts[:50], way)[1] is None and parsed(texts, way)[1] is None), None)


def parsed(texts: list[str], way: str) -> tuple[Any, int | None]:
    """Texts as datetime64, in UTC where they say their offset; and the number of the first that is none, if one is."""
    joined = " ".join(texts) if way == "iso" else "+"
    if not ("+" in joined or "Z" in joined or joined.count("-") > 2 * len(texts)):  # none says its offset
        try:
            return np.array(list(map(str.strip, texts)), dtype="datetime64[us]"), None
        except ValueError:
            pass
    found = np.empty(len(texts), dtype="datetime64[us]")
    for i, text in enumerate(texts):
        text = text.strip()
        try:
            date = datetime.fromisoformat(text) if way == "iso" else datetime.strptime(text, way)
        except ValueError:
            return found, i
        if way.startswith("%H"):  # of a clock alone, on the day on which times are
            date = date.replace(year=1970)
        found[i] = date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date
    return found, None


def have_offsets(texts: list[str]) -> bool:
    """Whether texts as ISO 8601 has them say how far they are from UTC."""
    return any(OFFSET.search(text) for text in texts)


# ---- time zones ---------------------------------------------------------------------------------------------------


def zone_of(name: str) -> tzinfo:
    """A time zone by its name, or by its offset: "+02:00"; raises DataError."""
    offset = re.fullmatch(r"(?:UTC|GMT)?([+-])([0-9]{1,2}):?([0-9]{2})", name)
    if offset:
        minutes = int(offset[2]) * 60 + int(offset[3])
        if minutes < 1440:
            return timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    if name.upper() in ("UTC", "Z"):
        return UTC
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise DataError(f"the time zone {name!r} is not known here: pip install tzdata") from None


def as_clocks_show(dates: Any, zone: str) -> Any:
    """What clocks of a zone show at times in UTC."""
    place = zone_of(zone)
    day, within = split(dates)
    quarters = day * 96 + np.floor(within * 96).astype(np.int64)  # of an hour: clocks change at such times
    different, which = np.unique(quarters, return_inverse=True)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    offsets = []
    for quarter in different.tolist():
        try:
            shown = (epoch + timedelta(seconds=900 * quarter)).astimezone(place)
            offsets.append(int((shown.utcoffset() or timedelta()).total_seconds()))
        except OverflowError:  # of years that Python's dates do not have
            offsets.append(0)
    return dates + np.array(offsets, dtype="timedelta64[s]")[which]
