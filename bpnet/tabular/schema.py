"""The kinds of columns in a table, and how they become the numbers and codes that a network takes."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import DataError, FileFormatError, OptionError, ShapeError, plural, shown
from bpnet.options import choice, finite, flag, is_listed, positive, whole
from bpnet.tabular.columns import Column, columns_of
from bpnet.tabular.dates import FORMATS, PARTS, names_of, zone_of
from bpnet.tabular.encoding import encoder_of
from bpnet.tabular.frames import Frame
from bpnet.tabular.inference import MOST_CATEGORIES, infer

KINDS = ("number", "boolean", "date", "category")
BLOCK = 4096
"""Rows that are assembled at a time, so that what is written stays in the processor's cache."""


@dataclass(frozen=True)
class Feature:
    """A column that a model uses, and how it is read.

    name : of the column
    kind : "number"; "boolean", a number 0 or 1; "date", several numbers; "category", the code of one of `values`
    origin, unit : a number becomes (x - origin) / unit, computed in float64, if float32 could not distinguish its
        values; a date has its origin in days since 1970
    values : the values of a category, text, numbers or booleans, in order; the first one has the code 2
    texts : the words that stand for missing values in a column of numbers ("unknown")
    parts : of a date: "days" since the origin, "year", and "month", "day", "weekday", "hour", "minute" as sine and
        cosine
    zone : the time zone in which a date is read, where the column has one
    format : how a date in text is written: "iso" or one of `dates.FORMATS`
    """

    name: str
    kind: str
    origin: float = 0.0
    unit: float = 1.0
    values: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    zone: str | None = None
    format: str | None = None

    @property
    def numbers(self) -> list[str]:
        """The names of its columns of numbers."""
        if self.kind == "date":
            return [f"{self.name}.{part}" for part in names_of(self.parts)]
        return [] if self.kind == "category" else [self.name]

    @property
    def details(self) -> str:
        """How it is read, in words."""
        if self.kind == "category":
            return f"{plural(len(self.values), 'value')}: {some(self.values)}"
        words = [", ".join(self.parts)] if self.parts else []
        words += [f"(x - {self.origin:g}) / {self.unit:g}"] if self.kind == "number" and self.unit != 1.0 else []
        words += [f"clocks of {self.zone}"] if self.zone else []
        words += [f"missing where {some(self.texts)}"] if self.texts else []
        return "; ".join(words)

    def describe(self) -> dict[str, Any]:
        """As JSON, without defaults."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def restore(cls, plain: Any) -> "Feature":
        """The feature that `describe` described; raises FileFormatError if it is invalid."""
        if (
            not isinstance(plain, dict)
            or plain.keys() - {f.name for f in fields(cls)}
            or not {"name", "kind"} <= plain.keys()
        ):
            raise FileFormatError("the table has a column that is none")
        options: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()}
        made = cls(**options)
        if not isinstance(made.name, str):
            raise FileFormatError("the table has a column whose name is no text")
        choice("the kind of a column", made.kind, KINDS)
        finite("the origin of a column", made.origin)
        positive("the unit of a column", made.unit)
        sorts = {type(value) for value in made.values}
        plain_values = sorts <= {str} or sorts <= {bool} or (sorts <= {int, float} and np.isfinite(made.values).all())
        text = all(isinstance(value, str) for value in (*made.texts, made.zone or "", made.format or ""))
        sound = plain_values and text and isinstance(made.values, tuple) and isinstance(made.texts, tuple)
        parts = made.parts if isinstance(made.parts, tuple) else (None,)
        if not sound or len(set(made.values)) < len(made.values) or len(set(parts)) < len(parts):
            raise FileFormatError(f"the column {made.name!r} of the table is described by what does not fit together")
        if any(part not in PARTS for part in parts) or (made.kind == "date") != bool(parts):
            raise FileFormatError(f"the column {made.name!r} of the table has parts of a date that are none")
        if made.kind != "category" and made.values:
            raise FileFormatError(f"the column {made.name!r} of the table has values, but is no category")
        if made.format not in (None, "iso", *FORMATS):
            raise FileFormatError(f"the column {made.name!r} of the table has a format of dates that is not known")
        if made.zone is not None:
            zone_of(made.zone)
        return made


def some(values: Sequence[Any]) -> str:
    """The first of some values."""
    return ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)


@dataclass(frozen=True)
class Schema:
    """The columns that a model uses, in order, and how they become numbers and codes.

        schema = Schema.of(table)
        schema.encode(table)  # {"numbers": (rows, n) floats, NaN = missing, "categories": (rows, c) int32 codes}

    A category has the code 0 where its value is missing, 1 where it is unknown, and 2 ... K + 1 for its K known values.

    features : how each column is read
    named : whether the table had column names; if not, columns are identified by position
    width : for a table without names, its number of columns, those left out included
    dtype : of the numbers, "float32" or "float64"
    """

    features: tuple[Feature, ...]
    named: bool = True
    width: int = 0
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        table: Any,
        types: Mapping[str, str] | None = None,
        drop: Collection[str] = (),
        most_categories: int = MOST_CATEGORIES,
        dtype: str = "float32",
    ) -> "Schema":
        """The schema of a table.

        types : the kinds of columns by their names: "number", "boolean", "date" or "category"
        drop : names of columns to leave out, such as the target
        most_categories : the largest number of known values of a category; the most frequent ones are kept

        Whole numbers are numbers unless `types` says "category".  Text is a category, unless all of it is numbers or
        dates.  Raises DataError where a column can't be used or no column is left.
        """
        frame = Frame.of(table)
        if not isinstance(types, Mapping | None):
            raise OptionError(f"types is {shown(types)}; expected a dict of kinds by column")
        if not is_listed(drop):
            raise OptionError(f"drop is {shown(drop)}; expected the names of columns, in a list")
        types, most = dict(types or {}), whole("most_categories", most_categories, 1)
        for name, kind in types.items():
            choice(f"types[{name!r}]", kind, KINDS)
        for name in (*types, *drop):
            frame.check(name)
        if frame.rows == 0:
            raise DataError(f"{frame.what} has no rows")
        kept = frame.without(drop)
        if frame.matrix is not None and not types:
            features = [Feature(name, "number") for name in kept.names]
        else:
            found = (infer(kept.coded(name), name, types.get(name), most) for name in kept.names)
            features = [Feature(**options) for options in found if options is not None]
        if not features:
            raise DataError(f"{frame.what} has no column to learn from: {', '.join(map(repr, frame.names)) or 'none'}")
        return cls(
            tuple(features),
            frame.named,
            0 if frame.named else frame.width,
            choice("dtype", dtype, ("float32", "float64")),
        )

    # ---- what there is ------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The names of the columns of numbers that `encode` gives: "age", "born.year", ..."""
        return tuple(name for feature in self.features for name in feature.numbers)

    @property
    def owners(self) -> tuple[int, ...]:
        """For each of these, the index of its column in `features`."""
        return tuple(i for i, feature in enumerate(self.features) for _ in feature.numbers)

    @cached_property
    def categories(self) -> tuple[Feature, ...]:
        """The columns that become codes."""
        return tuple(feature for feature in self.features if feature.kind == "category")

    @property
    def n_numbers(self) -> int:
        return len(self.numbers)

    @property
    def entries(self) -> tuple[int, ...]:
        """The number of codes of each category: missing, unknown, and its known values."""
        return tuple(len(feature.values) + 2 for feature in self.categories)

    @cached_property
    def plain(self) -> bool:
        """Whether rows of numbers are taken unchanged."""
        return all(f.kind == "number" and f.origin == 0.0 and f.unit == 1.0 for f in self.features)

    # ---- encoding -----------------------------------------------------------------------------------------------

    def places(self, frame: Frame) -> list[str]:
        """The names in `frame` of the features' columns; raises DataError or ShapeError."""
        if self.named and frame.named:
            missing = [name for name in self.names if name not in frame]
            if missing:
                many, have = "columns" if len(missing) > 1 else "column", ", ".join(map(repr, frame.names))
                raise DataError(
                    f"{frame.what} lacks the {many} {', '.join(map(repr, missing))} of the model; it has {have}"
                )
            return list(self.names)
        count = len(frame.names)
        if not (self.named or frame.named) and frame.width == self.width and all(name in frame for name in self.names):
            return list(self.names)
        if not self.named and count == self.width:
            return [frame.names[int(name[1:])] for name in self.names]
        if count == len(self.features):
            return list(frame.names)
        expected = len(self.features) if self.named else self.width
        raise ShapeError(f"{frame.what} has {count} columns; the model takes {expected}")

    def encode(self, table: Any) -> Any:
        """The rows of a table as a network takes them: an array of numbers, one of codes, or a dict of both.

        Numbers have the schema's dtype, but an array of floats of any library is taken unchanged.  Raises DataError,
        DTypeError or ShapeError where a column is missing or has a value of the wrong kind, and names the first such
        row.
        """
        return self.encoder(table)(slice(None))

    def encoder(self, table: Any) -> Callable[[slice], Any]:
        """`encode` for some rows at a time; work that is done once per table is done here."""
        frame = Frame.of(table)
        places = self.places(frame)
        matrix = frame.matrix
        if matrix is not None and self.plain:
            return self._matrix_rows(frame, places)
        made = [
            encoder_of(feature, frame.coded(name), f"column {name!r} of {frame.what}", self.dtype)
            for feature, name in zip(self.features, places, strict=True)
        ]
        numbers = [e for e, f in zip(made, self.features, strict=True) if f.kind != "category"]
        codes = [e for e, f in zip(made, self.features, strict=True) if f.kind == "category"]
        like = next((c for c in map(frame.coded, places) if not c.on_host), None)

        def rows(part: slice) -> Any:
            start, stop, _ = part.indices(frame.rows)
            if like is not None:
                return self._on_device(numbers, codes, slice(start, stop), like)
            x, c = np.empty((stop - start, self.n_numbers), self.dtype), np.empty((stop - start, len(codes)), np.int32)
            for begin in range(start, stop, BLOCK):
                some, at = (
                    slice(begin, min(begin + BLOCK, stop)),
                    slice(begin - start, min(begin + BLOCK, stop) - start),
                )
                place = 0
                for encoder in numbers:
                    found = encoder(some)
                    if found.ndim == 1:
                        x[at, place] = found
                        place += 1
                    else:
                        x[at, place : place + found.shape[1]] = found
                        place += found.shape[1]
                for j, encoder in enumerate(codes):
                    c[at, j] = encoder(some)
            return _together(x if numbers else None, c if codes else None)

        return rows

    def _matrix_rows(self, frame: Frame, places: list[str]) -> Callable[[slice], Any]:
        matrix, backend = frame.matrix, backend_of(frame.matrix)
        if places != list(frame.names):
            matrix = columns_of(matrix, [frame.names.index(name) for name in places])
        floats = backend.xp.isdtype(matrix.dtype, "real floating")
        if floats and matrix.dtype not in (backend.xp.float32, backend.xp.float64):
            floats = False
        dtype = getattr(backend.xp, self.dtype)

        def rows(part: slice) -> Any:
            start, stop, _ = part.indices(frame.rows)
            some = matrix if stop - start == frame.rows else matrix[start:stop, ...]
            return some if floats else backend.xp.astype(some, dtype)

        return rows

    def _on_device(self, numbers: list[Any], codes: list[Any], part: slice, like: Column) -> Any:
        """Assembled on the device of `like`."""
        backend = backend_of(like.values)
        xp, place = backend.xp, backend.device(like.values)

        def there(value: Any, dtype: Any) -> Any:
            if isinstance(value, np.ndarray) and backend.name != "numpy":
                return backend.from_host(value.astype(str(np.dtype(dtype))), getattr(xp, dtype), place)
            return xp.astype(value, getattr(xp, dtype))

        found = [there(encoder(part), self.dtype) for encoder in numbers]
        x = [array if array.ndim == 2 else xp.reshape(array, (-1, 1)) for array in found]
        c = [there(encoder(part), "int32") for encoder in codes]
        return _together(xp.concat(x, axis=1) if x else None, xp.stack(c, axis=1) if c else None)

    # ---- as data ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        features = [feature.describe() for feature in self.features]
        return {"features": features, "named": self.named, "width": self.width, "dtype": self.dtype}

    @classmethod
    def restore(cls, plain: Any) -> "Schema":
        """The schema that `describe` described; raises FileFormatError, OptionError or DataError if it is invalid."""
        if not isinstance(plain, dict) or not isinstance(plain.get("features"), list) or not plain["features"]:
            raise FileFormatError("the table has no columns")
        made = cls(
            tuple(map(Feature.restore, plain["features"])),
            flag("named", plain["named"]),
            whole("width", plain["width"], 0),
            choice("dtype", plain["dtype"], ("float32", "float64")),
        )
        if len(set(made.names)) < len(made.names):
            raise FileFormatError("two columns of the table have the same name")
        places = [int(name[1:]) if re.fullmatch("x(0|[1-9][0-9]{0,8})", name) else made.width for name in made.names]
        if not made.named and max(places) >= made.width:
            raise FileFormatError("the columns of a table without names are called otherwise")
        return made


def _together(numbers: Any, codes: Any) -> Any:
    if codes is None:
        return numbers
    return codes if numbers is None else {"numbers": numbers, "categories": codes}
