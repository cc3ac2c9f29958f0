"""Dates as numbers: days since an origin, and where they are in the year, the month, the week and the day."""

import re
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
QUARTER = np.timedelta64(15, "m")
"""Clocks change at such times of UTC."""


def names_of(parts: tuple[str, ...]) -> list[str]:
    """What the numbers are called that `numbers_of` gives."""
    return [name for part in parts for name in ([f"{part}_sin", f"{part}_cos"] if part in CYCLES else [part])]


def _raw(dates: Any, part: str, origin: float) -> Any:
    """A part of every date, counted from 0; the hour and the minute with their fractions."""
    day = dates.astype("datetime64[D]")
    within = (dates - day) / np.timedelta64(1, "D")
    month = dates.astype("datetime64[M]")
    if part == "days":
        return day.astype(np.int64) - origin + within
    if part == "year":
        return dates.astype("datetime64[Y]").astype(np.int64) + 1970.0
    if part == "month":
        return month.astype(np.int64) % 12
    if part == "day":
        return (day - month.astype("datetime64[D]")).astype(np.int64)
    if part == "weekday":
        return (day.astype(np.int64) + 3) % 7  # 1970 began on a Thursday
    return within * 24.0 if part == "hour" else within * 1440.0 % 60.0


def numbers_of(dates: Any, parts: tuple[str, ...], origin: float) -> Any:
    """(rows, numbers) float64 of datetime64, NaN where there is none; `origin` in days since 1970."""
    gaps, columns = np.isnat(dates), []
    if gaps.any():
        dates = np.where(gaps, np.datetime64(0, "D").astype(dates.dtype), dates)
    for part in parts:
        value = _raw(dates, part, origin)
        if part in CYCLES:
            angle = value * (2.0 * np.pi / CYCLES[part])
            columns += [np.sin(angle), np.cos(angle)]
        else:
            columns.append(value)
    made = np.stack(columns, axis=1).astype(np.float64, copy=False)
    made[gaps] = np.nan
    return made


def chosen(dates: Any) -> tuple[tuple[str, ...], float]:
    """The parts that vary among dates, the days always among them; and the origin, the first day."""
    dates = dates[~np.isnat(dates)]
    if not len(dates):
        return ("days",), 0.0
    origin = float(dates.min().astype("datetime64[D]").astype(np.int64))
    varying = [part for part in PARTS[1:] if np.ptp(np.floor(_raw(dates, part, 0.0))) > 0]
    return ("days", *varying), origin


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
    if way == "iso" and not any("+" in text or "Z" in text or text.count("-") > 2 for text in texts):
        try:
            return np.array([text.strip().replace(",", ".") for text in texts], dtype="datetime64[us]"), None
        except ValueError:
            pass
    found = np.empty(len(texts), dtype="datetime64[us]")
    for i, text in enumerate(texts):
        text = text.strip()
        try:
            date = datetime.fromisoformat(text) if way == "iso" else datetime.strptime(text, way)
        except ValueError:
            return found, i
        found[i] = date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date
    return found, None


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
    place, gaps = zone_of(zone), np.isnat(dates)
    quarters = np.where(gaps, np.datetime64(0, "s"), dates).astype("datetime64[s]").astype(np.int64) // 900
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
