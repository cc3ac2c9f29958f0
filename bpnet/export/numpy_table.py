"""The part of a file for NumPy that makes numbers and codes of a table's columns, and the program that it is."""

from typing import Any

from bpnet.errors import ExportError
from bpnet.export.statements import quoted, wrapped
from bpnet.layout import Layout
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
    """The function `encode` of a table, with what it needs; raises ExportError where a column is of dates."""
    dates = [f.name for f in schema.features if f.kind == "date"]
    if dates:
        raise ExportError(f"column {dates[0]!r} is of dates, which a file for NumPy does not read")
    names = schema.names if schema.named else [f"x{i}" for i in range(schema.width)]
    numbers = [f for f in schema.features if f.kind != "category"]
    constants = [_list("COLUMNS", map(quoted, names))]
    functions, lines, made = [COLUMNS], [], []
    if numbers:
        functions.append(NUMBER)
        constants.append(_list("MISSING", map(quoted, sorted({"", "<na>", *NONE}))))
        constants.append(_dict("NUMBERS", "how a column is read: its kind, origin and unit", numbers, _number))
        lines += [
            "found = [(read(given[name], *words) - origin) / unit",
            "         for name, (read, origin, unit, *words) in NUMBERS.items()]",
        ]
        made.append(f"np.stack(found, axis=1).astype(np.{schema.dtype})")
    if any(f.kind == "boolean" for f in numbers):
        functions.append(TRUTH)
        constants += [_list(name, map(quoted, sorted(w))) for name, w in (("TRUE", TRUE), ("FALSE", FALSE))]
    if schema.categories:
        functions.append(CATEGORY)
        constants.append(_dict("CATEGORIES", "the values that are known of a column", schema.categories, _known))
        made.append("np.stack([category(given[name], known) for name, known in CATEGORIES.items()], axis=1)")
    several = len(made) > 1
    result = f'{{\n        "numbers": {made[0]},\n        "categories": {made[1]},\n    }}' if several else made[0]
    if not several and len(in_shape) != 1:
        result += f".reshape({', '.join(map(str, (-1, *in_shape)))})"
    body = "\n".join(f"    {line}" for line in ["given = columns(table)", *lines, f"return {result}"])
    encode = f'def encode(table):\n    """The rows of a table as the network takes them."""\n{body}\n'
    return "\n\n".join([encode, *functions, "".join(constants)])


def _number(feature: Feature) -> str:
    read = "truth" if feature.kind == "boolean" else "number"
    words = f", {feature.texts!r}" if feature.texts else ""
    return f"({read}, {feature.origin!r}, {feature.unit!r}{words})"


def _known(feature: Feature) -> str:
    values = feature.values or ("",)
    return f"[\n{wrapped((quoted(v) if isinstance(v, str) else repr(v) for v in values), ' ' * 8)}\n    ]"


def _list(name: str, words: Any) -> str:
    return f"{name} = [\n{wrapped(words)}\n]\n"


def _dict(name: str, what: str, features: Any, entry: Any) -> str:
    return f"{name} = {{  # {what}\n" + "".join(f"    {quoted(f.name)}: {entry(f)},\n" for f in features) + "}\n"


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
