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

COLUMNS = '''\
def columns(table):
    """The columns of a table by name: of a dict, a DataFrame, or rows in the order of COLUMNS."""
    if hasattr(table, "keys"):
        missing = [name for name in COLUMNS if name not in table.keys()]
        if missing:
            raise ValueError(f"the table lacks the columns {missing}")
        return {name: np.asarray(table[name]) for name in COLUMNS}
    rows = np.asarray(table)
    if rows.ndim != 2 or rows.shape[1] != len(COLUMNS):
        raise ValueError(f"the table has the shape {rows.shape}; expected (rows, {len(COLUMNS)})")
    return dict(zip(COLUMNS, rows.T, strict=True))
'''
NUMBER = '''\
def number(values, words=()):
    """Numbers, NaN where one is missing: nothing, one of these words, or one that always says so."""
    if values.dtype.kind in "biuf":
        return values.astype(float)
    missing = {*MISSING, *words}
    return np.array([np.nan if str(v).strip().lower() in missing or v in words else float(v) for v in values], float)
'''
TRUTH = '''\
def truth(values, words=()):
    """1 and 0 of booleans, NaN where one is missing."""
    if values.dtype.kind in "biuf":
        return values.astype(float)
    known = dict.fromkeys([*MISSING, *words], np.nan) | dict.fromkeys(TRUE, 1.0) | dict.fromkeys(FALSE, 0.0)
    return np.array([known[str(v).strip().lower()] for v in values], float)
'''
DATE = '''\
def date(values, origin, parts, pattern=None):
    """Parts of dates side by side: days since an origin, and where they are in the year, month, week and day."""
    if values.dtype.kind != "M":
        values = np.array([moment(value, pattern) for value in values.tolist()], "datetime64[us]")
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


def moment(value, pattern):
    """A date without a time zone, in UTC where it says its own; None where there is none."""
    if value is None or value != value or value == "":
        return None
    if isinstance(value, str):
        value = datetime.strptime(value.strip(), pattern) if pattern else datetime.fromisoformat(value.strip())
        value = value.replace(year=1970) if pattern and pattern.startswith("%H") else value
    return value.astimezone(timezone.utc).replace(tzinfo=None) if getattr(value, "tzinfo", None) else value
'''
CATEGORY = '''\
def category(values, known):
    """Codes: 0 where a value is missing, 1 where it is unknown, else its place among the known ones and 2."""
    places = {value: code for code, value in enumerate(known, 2)}
    read = text if isinstance(known[0], str) else float
    missing = (None, "")
    return np.array([0 if v in missing or v != v else places.get(read(v), 1) for v in values.tolist()], np.int64)


def text(value):
    """A value as text, a whole number without a point."""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)
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
    if numbers:
        functions.append(NUMBER)
        constants.append(_list("MISSING", map(quoted, sorted({"", "<na>", *NONE}))))
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
        pattern = "" if feature.format in (None, "iso") else f", {quoted(feature.format)}"
        return f"(date, 0.0, 1.0, {feature.origin!r}, {feature.parts!r}{pattern})"
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
            "rows = list(csv.DictReader(sys.stdin))",
            "given = {name: np.array([row[name] for row in rows], object) for name in COLUMNS}",
        ]
    elif table is not None:
        read = ["given = np.array(list(csv.reader(sys.stdin)), object)"]
    elif not isinstance(layout.network.takes, tuple) and len(layout.in_shape) == 1:
        kind = "float" if layout.network.takes is None else "int"
        read = [f'given = np.loadtxt(sys.stdin, {kind}, delimiter=",", ndmin=2)']
    else:
        return ""
    imports = [*["import csv"] * (table is not None), "import sys", ""]
    lines = [*imports, *read, "for answer in predict(given):", '    print(*np.ravel(answer), sep=",")']
    start = "# python model.py < rows.csv\n"
    return f'{start}if __name__ == "__main__":\n' + "\n".join(f"    {line}".rstrip() for line in lines) + "\n"
