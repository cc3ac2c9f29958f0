"""Small tables of every kind that people have, made anew from a fixed seed, each with what is expected of it.

for case in TABLES.values():
    path = case.write(folder)      # then: bpnet train PATH *case.command
"""

import csv
import gzip
import io
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

Columns = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A table, and what a person may expect who trains on it by one command.

    `kind` is "class" or "number" (several quantities where `target` names several columns).  `warns` are words of which
    a warning must have each; `refused` words of the error where the table can't be used.  `least` is an accuracy or R2
    that held-out rows must reach after an ordinary training: what is far above chance, not the best that there is.
    `features` are the columns that must be learnt from, where those that are left out are the point.
    """

    name: str
    about: str
    make: Callable[[np.random.Generator], Any]
    target: tuple[str, ...]
    kind: str
    options: tuple[str, ...]
    warns: tuple[str, ...]
    refused: tuple[str, ...]
    least: float
    classes: tuple[Any, ...]
    left_out: tuple[str, ...]
    write_options: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """What follows the file's name in the command."""
        return [*(word for name in self.target for word in ("--target", name)), *self.options]

    def write(self, folder: Path) -> Path:
        """The file, in this folder."""
        made = self.make(np.random.default_rng(zlib.crc32(self.name.encode())))
        path = folder / self.name
        if self.name.endswith(".parquet"):
            write_parquet(path, made)
        else:
            path.write_bytes(made if isinstance(made, bytes) else as_csv(made, **self.write_options))
        return path


TABLES: dict[str, Case] = {}


def table(
    name: str,
    target: str | tuple[str, ...],
    kind: str = "class",
    *,
    options: tuple[str, ...] = (),
    warns: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
    least: float = 0.0,
    classes: tuple[Any, ...] = (),
    left_out: tuple[str, ...] = (),
    **write_options: Any,
) -> Callable[[Callable[[np.random.Generator], Any]], Callable[[np.random.Generator], Any]]:
    """Add the table that the function below makes, whose docstring says what is special about it."""

    def add(make: Callable[[np.random.Generator], Any]) -> Callable[[np.random.Generator], Any]:
        about, targets = (make.__doc__ or "").strip(), (target,) if isinstance(target, str) else target
        TABLES[name] = Case(
            name, about, make, targets, kind, options, warns, refused, least, classes, left_out, write_options
        )
        return make

    return add


def as_csv(
    columns: Columns, *, separator: str = ",", encoding: str = "utf-8", newline: str = "\n", gap: str = ""
) -> bytes:
    """The columns as a file; None is written as `gap`."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=newline)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([gap if value is None else value for value in row])
    return text.getvalue().encode(encoding)


def write_parquet(path: Path, columns: Columns) -> None:
    """The columns, with the types that they have."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


def classes_of(score: np.ndarray, names: list[str]) -> list[str]:
    """A class by the size of a score, all of them as frequent."""
    ends = np.quantile(score, np.arange(1, len(names)) / len(names))
    return [names[i] for i in np.searchsorted(ends, score)]


def with_gaps(rng: np.random.Generator, values: Any, share: float) -> list[Any]:
    """Some of the values are missing."""
    return [None if gone else value for value, gone in zip(values, rng.random(len(values)) < share, strict=True)]


def rounded(values: np.ndarray, digits: int = 2) -> list[float]:
    """As a person writes numbers."""
    return [round(float(value), digits) for value in values]


# ---- what most tables have ------------------------------------------------------------------------------------------


@table("birds.csv", "species", least=0.8, classes=("Adelie", "Chinstrap", "Gentoo"), gap="NA")
def birds(rng: np.random.Generator) -> Columns:
    """Text, numbers and gaps written NA, and a target of text, as the penguins have them."""
    kind = rng.integers(0, 3, 300)
    length = np.array([38.8, 48.8, 47.5])[kind] + 2.5 * rng.normal(size=300)
    depth = np.array([18.3, 18.4, 15.0])[kind] + rng.normal(size=300)
    mass = np.array([3700, 3733, 5076])[kind] + 400 * rng.normal(size=300)
    where = np.where(kind == 0, rng.integers(0, 3, 300), kind)
    return {
        "island": [["Torgersen", "Dream", "Biscoe"][i] for i in where],
        "bill_length_mm": with_gaps(rng, rounded(length, 1), 0.03),
        "bill_depth_mm": with_gaps(rng, rounded(depth, 1), 0.03),
        "body_mass_g": with_gaps(rng, np.round(mass, -1).astype(int), 0.03),
        "sex": with_gaps(rng, rng.choice(["male", "female"], 300), 0.05),
        "species": [["Adelie", "Chinstrap", "Gentoo"][k] for k in kind],
    }


@table("gaps.csv", "yield", "number", least=0.3)
def gaps(rng: np.random.Generator) -> Columns:
    """A third of all fields is empty, and that a field is empty says something."""
    x = rng.normal(size=(400, 3))
    gone = rng.random((400, 3)) < 0.33
    y = 20.0 + 3.0 * np.where(gone, 0.0, x).sum(axis=1) + 5.0 * gone[:, 0] + 0.3 * rng.normal(size=400)
    columns = {
        name: [None if g else v for v, g in zip(rounded(x[:, j]), gone[:, j], strict=True)]
        for j, name in enumerate(["rain", "sun", "soil"])
    }
    return columns | {"yield": rounded(y)}


@table("dates.csv", "visitors", "number", least=0.4)
def dates(rng: np.random.Generator) -> Columns:
    """Dates and times of day; visitors come in summer, on Sundays and about noon."""
    moments = [datetime(2021, 1, 1) + timedelta(hours=int(h)) for h in rng.integers(0, 24 * 900, 500)]
    season = np.array([np.cos(2 * np.pi * (m.timetuple().tm_yday - 200) / 365) for m in moments])
    noon = np.array([-abs(m.hour - 12) / 12 for m in moments])
    y = 300 + 100 * season + 120 * noon + 80 * np.array([m.weekday() == 6 for m in moments]) + 10 * rng.normal(size=500)
    return {
        "when": [m.isoformat(sep=" ") for m in moments],
        "opened": [date(1990 + int(i), 5, 1).isoformat() for i in rng.integers(0, 5, 500)],
        "visitors": rounded(y, 1),
    }


@table("wide.csv", "label", least=0.6, classes=("case", "control"))
def wide(rng: np.random.Generator) -> Columns:
    """More columns than rows: 300, of which 5 matter."""
    x = rng.normal(size=(240, 300))
    label = classes_of(x[:, :5].sum(axis=1), ["control", "case"])
    return {f"gene_{j:03d}": rounded(x[:, j], 3) for j in range(300)} | {"label": label}


@table("long.csv", "y", "number", least=0.8)
def long(rng: np.random.Generator) -> Columns:
    """6,000 rows of three columns."""
    x = rng.uniform(-1, 1, (6_000, 2))
    return {"a": rounded(x[:, 0], 4), "b": rounded(x[:, 1], 4), "y": rounded(np.sin(3 * x[:, 0]) * x[:, 1], 4)}


@table("unicode.csv", "Qualität", least=0.7, classes=("gut ✓", "schlecht", "很好"))
def unicode(rng: np.random.Generator) -> Columns:
    """Names and values in several scripts, one of them with a comma and one with spaces at its ends."""
    grape, sugar = rng.integers(0, 3, 300), rng.normal(size=300)
    return {
        "Größe (µm²)": rounded(50 + 10 * rng.normal(size=300), 1),
        "葡萄": [["Grüner Veltliner", "シャルドネ", "Саперави"][i] for i in grape],
        "sucre, g/l": rounded(20 + 5 * sugar, 1),
        " emoji 🍷 ": rng.choice(["🙂", "🙁", "👩‍👩‍👧"], 300),
        "Qualität": classes_of(sugar + 0.8 * grape, ["schlecht", "gut ✓", "很好"]),
    }


@table("rare.csv", "fault", least=0.8, warns=("sensor",), classes=("belt", "none", "sensor"))
def rare(rng: np.random.Generator) -> Columns:
    """One class has a single row, which can't be both learnt and held out."""
    heat = rng.normal(size=400)
    fault = np.where(heat > 1.5, "belt", "none").astype(object)
    fault[17] = "sensor"
    return {"heat": rounded(heat), "load": rounded(rng.normal(size=400)), "fault": fault}


@table("constant.csv", "y", least=0.8, warns=("unit", "empty"), left_out=("unit", "empty"), classes=("high", "low"))
def constant(rng: np.random.Generator) -> Columns:
    """A column that never varies, and one that is empty throughout."""
    x = rng.normal(size=300)
    return {"x": rounded(x), "unit": ["kg"] * 300, "empty": [None] * 300, "y": classes_of(x, ["low", "high"])}


# ---- columns that should not be learnt from -------------------------------------------------------------------------


@table("ids.csv", "churn", least=0.75, warns=("customer",), classes=("no", "yes"))
def ids(rng: np.random.Generator) -> Columns:
    """Numbers of customers in order, and a text that no two rows share."""
    months = rng.integers(1, 60, 300)
    return {
        "customer": np.arange(1, 301),
        "token": [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(300)],
        "months": months,
        "churn": np.where(months + 5 * rng.normal(size=300) < 20, "yes", "no"),
    }


@table("index.csv", "y", "number", least=0.8, warns=("unnamed",), left_out=("",))
def index(rng: np.random.Generator) -> Columns:
    """A first column without a name, in which pandas has numbered the rows."""
    x = rng.normal(size=(300, 2))
    return {
        "": np.arange(300),
        "a": rounded(x[:, 0], 3),
        "b": rounded(x[:, 1], 3),
        "y": rounded(2 * x[:, 0] - x[:, 1], 3),
    }


@table("leak.csv", "price", "number", least=0.8, warns=("price_eur",))
def leak(rng: np.random.Generator) -> Columns:
    """A column that equals the target."""
    area = rng.uniform(30, 200, 300)
    price = rounded(3000 * area + 20_000 * rng.normal(size=300), 0)
    return {"area": rounded(area, 1), "price_eur": price, "price": price}


@table("duplicates.csv", "grade", least=0.6, classes=(1, 2, 3))
def duplicates(rng: np.random.Generator) -> Columns:
    """Every row three times, and whole numbers as classes."""
    x = np.repeat(rng.normal(size=(100, 2)), 3, axis=0)
    grade = classes_of(x[:, 0] - x[:, 1], ["1", "2", "3"])
    order = rng.permutation(300)
    return {
        "p": np.array(rounded(x[:, 0]))[order],
        "q": np.array(rounded(x[:, 1]))[order],
        "grade": np.array(grade)[order],
    }


# ---- how values are written -----------------------------------------------------------------------------------------


@table("yesno.csv", "bought", least=0.75, classes=("no", "yes"))
def yesno(rng: np.random.Generator) -> Columns:
    """Booleans as yes and no, True and False, Y and N, 0 and 1."""
    bits = rng.integers(0, 2, (300, 4))
    words = [("no", "yes"), ("False", "True"), ("N", "Y"), ("0", "1")]
    columns = {
        name: [pair[b] for b in bits[:, j]]
        for j, (name, pair) in enumerate(zip(["member", "email", "visited", "flag"], words, strict=True))
    }
    bought = bits[:, 0] + bits[:, 1] + bits[:, 2] + 0.4 * rng.normal(size=300) > 1.5
    return columns | {"bought": np.where(bought, "yes", "no")}


@table("thousands.csv", "income", "number", least=0.8)
def thousands(rng: np.random.Generator) -> Columns:
    """Numbers with commas between thousands, and money with its sign."""
    people, tax = rng.integers(900, 90_000, 300), rng.uniform(100, 5000, 300)
    return {
        "people": [f"{n:,}" for n in people],
        "tax": [f"{t:,.2f}" for t in tax],
        "income": [f"{30 * n + 400 * t:,.0f}" for n, t in zip(people, tax, strict=True)],
    }


@table(
    "kunden.csv", "Umsatz", "number", separator=";", encoding="latin-1", options=("--encoding", "latin-1"), least=0.7
)
def kunden(rng: np.random.Generator) -> Columns:
    """As a German spreadsheet exports it: semicolons, decimal commas, Latin-1."""
    size, town = rng.uniform(1, 50, 300), rng.integers(0, 3, 300)
    return {
        "Größe": [f"{v:.2f}".replace(".", ",") for v in size],
        "Straße": [["Königsallee", "Übersee", "Bahnhof"][i] for i in town],
        "Umsatz": [f"{v:.2f}".replace(".", ",") for v in 100 * size + 500 * town + 50 * rng.normal(size=300)],
    }


@table("mixed.csv", "damage", "number", warns=("speed",), least=0.3)
def mixed(rng: np.random.Generator) -> Columns:
    """A column of numbers among which words stand, and one of both kinds in equal parts."""
    speed = rng.uniform(10, 120, 300)
    written: list[Any] = [round(float(s)) for s in speed]
    for i in rng.choice(300, 12, replace=False):
        written[i] = ["unknown", "fast", "?"][i % 3]
    code = [str(k) if k < 3 else "ABC"[k - 3] for k in rng.integers(0, 6, 300)]
    return {"speed": written, "code": code, "damage": rounded(speed**2 / 50 + 10 * rng.normal(size=300), 1)}


@table("extremes.csv", "kind", least=0.75, classes=("heavy", "light"))
def extremes(rng: np.random.Generator) -> Columns:
    """Numbers of 1e25 and 1e-30, time stamps in nanoseconds, and one value a million times the others."""
    x = rng.normal(size=300)
    odd = rng.normal(size=300)
    odd[5] = 1e6
    return {
        "mass": [f"{10 ** (25 + v):.6e}" for v in x],
        "charge": [f"{1e-30 * (2 + v):.6e}" for v in rng.normal(size=300)],
        "stamp": 1_700_000_000_000_000_000 + np.round(1e9 * x).astype(np.int64),
        "odd": rounded(odd, 4),
        "kind": classes_of(x, ["light", "heavy"]),
    }


@table("reviews.csv", "stars", least=0.3, warns=("'text'",), classes=(1, 2, 3, 4, 5))
def reviews(rng: np.random.Generator) -> Columns:
    """Fields of several lines, with quotation marks and commas in them."""
    price = rng.uniform(1, 9, 250)
    words = ["good", 'so-called "best"', "never, ever", "fine\nbut late", "no"]
    return {
        "price": rounded(price),
        "text": [f"{words[i]}\nNumber {k}" for k, i in enumerate(rng.integers(0, 5, 250))],
        "tone": [words[i] for i in rng.integers(0, 5, 250)],
        "stars": classes_of(-price + rng.normal(size=250), ["1", "2", "3", "4", "5"]),
    }


@table("bom.csv", "result", least=0.75, encoding="utf-8-sig", newline="\r\n", classes=("fail", "pass"))
def bom(rng: np.random.Generator) -> Columns:
    """As Excel writes UTF-8: a byte order mark, and lines that end in CR LF."""
    hours = rng.uniform(0, 10, 200)
    return {"hours": rounded(hours, 1), "result": np.where(hours + rng.normal(size=200) > 4, "pass", "fail")}


@table("spectra.tsv.gz", "substance", least=0.8, classes=("acid", "base", "salt"))
def spectra(rng: np.random.Generator) -> bytes:
    """Tabulators between the columns, compressed."""
    kind = rng.integers(0, 3, 300)
    lines = np.array([[1, 0, 2, 0], [0, 2, 0, 1], [2, 2, 0, 0]])[kind] + 0.4 * rng.normal(size=(300, 4))
    columns: Columns = {f"{400 + 50 * j} nm": rounded(lines[:, j], 3) for j in range(4)}
    return gzip.compress(as_csv(columns | {"substance": [["acid", "base", "salt"][k] for k in kind]}, separator="\t"))


@table("sensors.parquet", "state", least=0.75, classes=("idle", "run"))
def sensors(rng: np.random.Generator) -> Columns:
    """Parquet with its own types: time stamps, categories, booleans and whole numbers with nulls."""
    import pyarrow

    power = rng.normal(size=300)
    return {
        "time": pyarrow.array([datetime(2024, 3, 1) + timedelta(minutes=i) for i in range(300)]),
        "line": pyarrow.array(list(rng.choice(["A", "B"], 300))).dictionary_encode(),
        "door": pyarrow.array([bool(b) for b in rng.integers(0, 2, 300)]),
        "count": pyarrow.array(with_gaps(rng, [int(v) for v in 100 + 20 * power], 0.1)),
        "power": pyarrow.array(rounded(power, 3)),
        "state": pyarrow.array([str(s) for s in np.where(power > 0, "run", "idle")]),
    }


@table("nested.parquet", "y", "number", refused=("spectrum", "list"))
def nested(rng: np.random.Generator) -> Columns:
    """A column of lists, which can't be a feature."""
    return {"a": rounded(rng.normal(size=50)), "spectrum": [[1.0, 2.0]] * 50, "y": rounded(rng.normal(size=50))}


# ---- targets --------------------------------------------------------------------------------------------------------


@table("single.csv", "y", "number", least=0.7)
def single(rng: np.random.Generator) -> Columns:
    """One feature and few rows."""
    x = rng.uniform(-2, 2, 60)
    return {"x": rounded(x, 3), "y": rounded(x**2 + 0.1 * rng.normal(size=60), 3)}


@table("singles.csv", "name", warns=("class",), classes=tuple(f"mineral {i:02d}" for i in range(12)))
def singles(rng: np.random.Generator) -> Columns:
    """Twelve classes of a row each: none can be held out."""
    return {
        "hardness": rounded(rng.uniform(1, 10, 12), 1),
        "density": rounded(rng.uniform(2, 8, 12)),
        "name": [f"mineral {i:02d}" for i in range(12)],
    }


@table("towns.csv", "rent", "number", least=0.3)
def towns(rng: np.random.Generator) -> Columns:
    """Text of some 150 different values in 900 rows, on which the target depends."""
    level = rng.normal(size=150)
    town, rooms = rng.integers(0, 150, 900), rng.integers(1, 6, 900)
    rent = 400 + 150 * rooms + 120 * level[town] + 20 * rng.normal(size=900)
    return {"town": [f"Town of {k}" for k in town], "rooms": rooms, "rent": rounded(rent)}


@table("heating.csv", ("heating", "cooling"), "number", least=0.7)
def heating(rng: np.random.Generator) -> Columns:
    """Two quantities at once, of different size."""
    x = rng.uniform(0, 1, (400, 3))
    return {
        "wall": rounded(x[:, 0], 3),
        "roof": rounded(x[:, 1], 3),
        "glass": rounded(x[:, 2], 3),
        "heating": rounded(10 + 20 * x[:, 0] + 5 * x[:, 1] * x[:, 2], 3),
        "cooling": rounded(1e4 * (1 + x[:, 2] - 0.5 * x[:, 1]) + 200 * rng.normal(size=400), 0),
    }


@table("series.csv", "load", "number", least=0.6)
def series(rng: np.random.Generator) -> Columns:
    """A quantity by the hour, with a trend and a day's rhythm, rows in order of time; whole numbers as the target."""
    hours = np.arange(600)
    load = 5000 + 2 * hours + 800 * np.sin(2 * np.pi * hours / 24) + 60 * rng.normal(size=600)
    begin = datetime(2024, 6, 1)
    return {
        "time": [(begin + timedelta(hours=int(h))).isoformat() for h in hours],
        "temperature": rounded(20 + 5 * np.sin(2 * np.pi * (hours - 3) / 24) + rng.normal(size=600), 1),
        "load": np.round(load).astype(int),
    }


@table("unknown.csv", "approved", least=0.7, warns=("approved",), classes=(False, True))
def unknown(rng: np.random.Generator) -> Columns:
    """A target of true and false that some rows lack."""
    score = rng.normal(size=300)
    approved = ["true" if s + 0.3 * n > 0 else "false" for s, n in zip(score, rng.normal(size=300), strict=True)]
    return {"score": rounded(score), "age": rng.integers(18, 80, 300), "approved": with_gaps(rng, approved, 0.1)}
