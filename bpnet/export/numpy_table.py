"""The part of a file for NumPy that makes numbers and codes of a table's columns, and the program that it is."""

from collections.abc import Iterable
from typing import Any

from bpnet.errors import ExportError
from bpnet.export.statements import quoted, wrapped
from bpnet.layout import Layout
from bpnet.tabular.dates import CYCLES
from bpnet.tabular.model import TableModel
from bpnet.tabular.schema import Feature, Schema
from bpnet.tabular.values import FALSE, NONE, TRUE

GAPS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "?", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),
)
"""What stands for a missing value in a file of text, as `bpnet predict` reads it."""

COLUMNS = '''\
def columns(table):
    """The columns of a table by name: of a dict, a DataFrame, or rows in the order of COLUMNS."""
    names = table.keys() if hasattr(table, "keys") else None  # of pandas; those of Arrow and polars:
    names = names if names is not None else getattr(table, "column_names", getattr(table, "columns", None))
    if names is not None:
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(f"the table lacks the columns {missing}")
        return {name: column(table[name]) for name in COLUMNS}
    rows = np.asarray(table, object if isinstance(table, (list, tuple)) else None)
    if rows.ndim != 2 or rows.shape[1] != len(COLUMNS):
        raise ValueError(f"the table has the shape {rows.shape}; expected (rows, {len(COLUMNS)})")
    return {name: column(values) for name, values in zip(COLUMNS, rows.T, strict=True)}


def column(values):
    """Numbers, truth, dates, seconds of durations, or objects, of which those that are missing are None."""
    if isinstance(values, np.ma.MaskedArray):
        values = values.astype(object).filled(None)
    values = np.asarray(values, object if isinstance(values, (list, tuple)) else None)
    if values.dtype.kind == "m":
        return values / np.timedelta64(1, "s")
    if values.dtype.kind in "biufM":
        return values
    return np.array([plain(value) for value in values.tolist()], object)


def plain(value):
    """A value as Python has it; None where it is missing: nothing, NaN, blank text."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    value = value.item() if isinstance(value, np.generic) else value
    value = value.decode() if isinstance(value, bytes) else value
    blank = value.isspace() or not value if isinstance(value, str) else value is None
    return None if blank or type(value).__name__ == "NAType" or value != value else value
'''
NUMBER = '''\
def number(values, words=()):
    """Numbers, NaN where one is missing: nothing, one of these words, or one that always says so."""
    if values.dtype.kind == "M":
        raise ValueError("the table has dates where there were numbers")
    return values.astype(float) if values.dtype.kind in "biuf" else np.array([real(v, words) for v in values], float)


def real(value, words=()):
    """A value as a number, NaN where it is missing."""
    if value is None or value in words or (isinstance(value, str) and value.strip().lower() in MISSING):
        return np.nan
    return value.total_seconds() if hasattr(value, "total_seconds") else float(value)
'''
TRUTH = '''\
def truth(values, words=()):
    """1 and 0 of booleans, NaN where one is missing."""
    known = dict.fromkeys(TRUE, True) | dict.fromkeys(FALSE, False)
    if values.dtype.kind == "O":
        values = np.array([known.get(v.strip().lower(), v) if isinstance(v, str) else v for v in values], object)
    found = number(values, words)
    if not np.isin(found[~np.isnan(found)], (0.0, 1.0)).all():
        raise ValueError("the table has numbers where there was true or false")
    return found
'''
DATE = '''\
def date(values, origin, parts, pattern=None, utc=False):
    """Parts of dates side by side: days since an origin, and where they are in the year, month, week and day."""
    if values.dtype.kind != "M":
        values = np.array([moment(value, pattern, utc) for value in values.tolist()], "datetime64[us]")
    day, month = values.astype("datetime64[D]"), values.astype("datetime64[M]")
    number, within = day.astype(np.int64), (values - day) / np.timedelta64(1, "D")
    found = {
        "days": number - origin + within,
        "year": values.astype("datetime64[Y]").astype(np.int64) + 1970,
        "month": month.astype(np.int64) % 12,
        "day": (day - month).astype(np.int64),
        "weekday": (number + 3) % 7,
        "hour": within * 24.0,
        "minute": within * 1440.0 % 60.0,
    }
    columns = []
    for part in parts:
        angle = found[part] * (2.0 * np.pi / CYCLES.get(part, 1.0))
        columns += [np.sin(angle), np.cos(angle)] if part in CYCLES else [found[part]]
    return np.where(np.isnat(values)[:, None], np.nan, np.stack(columns, axis=1))


def moment(value, pattern, utc):
    """A date as clocks show it, in UTC where its text says how far it is from that; None where there is none."""
    if value is None or value != value:
        return None
    if isinstance(value, str):
        value, utc = value.strip(), True
        if pattern:
            value = datetime.strptime(value, pattern)
            value = value.replace(year=1970) if pattern.startswith("%H") else value
        else:
            value = datetime.fromisoformat(value if len(value) > 7 else f"{value}-01")
    elif not hasattr(value, "isoformat"):
        raise ValueError(f"the table has {value!r} where there were dates")
    if not hasattr(value, "year"):  # a time
        value = datetime.combine(datetime(1970, 1, 1), value)
    if getattr(value, "tzinfo", None) is None:
        return value
    return (value.astimezone(timezone.utc) if utc else value).replace(tzinfo=None)
'''
CATEGORY = '''\
def category(values, known):
    """Codes: 0 where a value is missing, 1 where it is unknown, else its place among the known ones and 2."""
    kind = values.dtype.type if values.dtype.kind == "f" else None
    values = values.astype("datetime64[us]") if values.dtype.kind == "M" else values
    if isinstance(known[0], str):
        places, read = {value: code for code, value in enumerate(known, 2)}, text
    else:  # numbers are compared in their own type, as float32 has fewer digits
        places = {float(kind(value)) if kind else value: code for code, value in enumerate(known, 2)}
        read = exact
    return np.array([0 if v is None or v != v else places.get(read(v), 1) for v in values.tolist()], np.int64)


def exact(value):
    """A number as it is, text as a number."""
    return value if isinstance(value, int) else real(value)


def text(value):
    """A value as text: a whole number without a point, a day without a time."""
    if hasattr(value, "isoformat"):
        return value.isoformat().removesuffix("T00:00:00")
    whole = hasattr(value, "as_integer_ratio") and abs(value) < 2**53 and value == int(value)
    return str(int(value)) if whole and not isinstance(value, bool) else str(value)
'''


def encoder(schema: Schema, in_shape: Any) -> str:
    """The function `encode` of a table, with what it needs; raises ExportError where a date is of a time zone."""
    zones = [f for f in schema.features if f.zone not in (None, "UTC")]
    if zones:
        raise ExportError(f"column {zones[0].name!r} is read in the time zone {zones[0].zone}, which no file can do")
    names = schema.names if schema.named else [f"x{i}" for i in range(schema.width)]
    numbers = [f for f in schema.features if f.kind != "category"]
    constants = [_list("COLUMNS", map(quoted, names))]
    functions, lines, made = [COLUMNS], [], []
    if any(f.kind != "date" for f in schema.features):
        functions.append(NUMBER)
        constants.append(_list("MISSING", map(quoted, sorted(NONE))))
    if numbers:
        constants.append(
            _entries("NUMBERS", "how a column is read: by what, origin, unit", ((f.name, _number(f)) for f in numbers))
        )
        lines += [
            "found = [(read(given[name], *words) - origin) / unit",
            "         for name, (read, origin, unit, *words) in NUMBERS.items()]",
        ]
        made.append(f"np.column_stack(found).astype(np.{schema.dtype})")
    if any(f.kind == "boolean" for f in numbers):
        functions.append(TRUTH)
        constants += [_list(name, map(quoted, sorted(w))) for name, w in (("TRUE", TRUE), ("FALSE", FALSE))]
    if any(f.kind == "date" for f in numbers):
        functions.append(DATE)
        constants.append(_entries("CYCLES", "of what comes around again, how much there is", CYCLES.items()))
    if schema.categories:
        functions.append(CATEGORY)
        constants.append(
            _entries("CATEGORIES", "of a column those that are known", ((f.name, _known(f)) for f in schema.categories))
        )
        made.append("np.stack([category(given[name], known) for name, known in CATEGORIES.items()], axis=1)")
    several = len(made) > 1
    result = f'{{\n        "numbers": {made[0]},\n        "categories": {made[1]},\n    }}' if several else made[0]
    if not several and len(in_shape) != 1:
        result += f".reshape({', '.join(map(str, (-1, *in_shape)))})"
    body = "\n".join(f"    {line}" for line in ["given = columns(table)", *lines, f"return {result}"])
    encode = f'def encode(table):\n    """The rows of a table as the network takes them."""\n{body}\n'
    return "\n\n".join([encode, *functions, "".join(constants)])


def _number(feature: Feature) -> str:
    if feature.kind == "date":
        pattern = None if feature.format in (None, "iso") else feature.format
        return f"(date, 0.0, 1.0, {feature.origin!r}, {feature.parts!r}, {pattern!r}, {feature.zone is not None!r})"
    read = "truth" if feature.kind == "boolean" else "number"
    words = f", {feature.texts!r}" if feature.texts else ""
    return f"({read}, {feature.origin!r}, {feature.unit!r}{words})"


def _known(feature: Feature) -> str:
    values = feature.values or ("",)
    return f"[\n{wrapped((quoted(v) if isinstance(v, str) else repr(v) for v in values), ' ' * 8)}\n    ]"


def _list(name: str, words: Any) -> str:
    return f"{name} = [\n{wrapped(words)}\n]\n"


def _entries(name: str, what: str, entries: Iterable[tuple[str, Any]]) -> str:
    return f"{name} = {{  # {what}\n" + "".join(f"    {quoted(key)}: {value},\n" for key, value in entries) + "}\n"


def program_of(table: TableModel | None, layout: Layout) -> str:
    """What the file does as a program; nothing where rows are no lines of a table."""
    if table is not None and table.schema.named:
        read = [
            f"missing = {{\n{wrapped(map(quoted, GAPS))}\n}}",
            'rows = list(csv.DictReader(sys.stdin, restval=""))',
            "given = {",
            "    name: np.array([None if row[name].strip() in missing else row[name] for row in rows], object)",
            "    for name in COLUMNS",
            "    if not rows or name in rows[0]",
            "}",
        ]
    elif table is not None:
        read = ["given = np.array(list(csv.reader(sys.stdin)), object)"]
    elif not isinstance(layout.network.takes, tuple) and len(layout.in_shape) == 1:
        kind = "float" if layout.network.takes is None else "int"
        read = [f'given = np.loadtxt(sys.stdin, {kind}, delimiter=",", ndmin=2)']
    else:
        return ""
    lines = ["import csv", "import sys", "", *read, 'lines = csv.writer(sys.stdout, lineterminator="\\n")']
    lines.append("lines.writerows(map(np.ravel, predict(given)))")
    start = f"# python model.py < rows.csv{'' if table is not None and table.schema.named else ', without a header'}\n"
    lines = "\n".join(lines).split("\n")
    return f'{start}if __name__ == "__main__":\n' + "\n".join(f"    {line}".rstrip() for line in lines) + "\n"
