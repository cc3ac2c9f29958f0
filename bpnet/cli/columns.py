"""Columns of a .csv or .parquet file as features and a target; it needs pyarrow."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from bpnet.backends import Array
from bpnet.cli.dataset import Dataset, check_finite, names
from bpnet.cli.terminal import reason, warn
from bpnet.errors import DataError, DTypeError, OptionError, plural

UNNAMED = re.compile(r"\s*|Unnamed: \d+")
"""Names of columns without one, as they are written and as pandas writes them again."""


class Columns:
    """The columns of a file by their names."""

    def __init__(self, path: Path) -> None:
        self.path, self.kind = path, path.suffix.lower()
        try:
            if self.kind == ".csv":
                # The whole file decides the types of its columns, not its beginning; and no row is longer than a block.
                block = min(max(path.stat().st_size + 1, 1 << 20), 1 << 30)
                self.table = csv.read_csv(
                    path,
                    read_options=csv.ReadOptions(block_size=block),
                    convert_options=csv.ConvertOptions(strings_can_be_null=True),
                )
            else:
                self.table = parquet.read_table(path)
            found = self.table.column_names
        except Exception as error:  # a damaged file can fail in any way
            raise DataError(f"{path} can't be read as {self.kind}: {reason(error)}") from error
        self.position: dict[str, int] = {}
        """By name; what pandas adds to keep the names of rows is no column."""
        for i, name in enumerate(found):
            if name in self.position:
                same = f"column {name!r}" if name.strip() else "column without a name"
                raise DataError(f"{path} has more than one {same}: numbers {self.position[name] + 1} and {i + 1}")
            if not name.startswith("__index_level_"):
                self.position[name] = i
        separator = next((sign for sign in ";\t|" if len(found) == 1 and sign in found[0]), None)
        self.hint = f" (columns are parted by commas, not by {separator!r})" if separator else ""

    def title(self, name: str) -> str:
        """What messages call a column: by its number where it has no name."""
        return f"column {name!r}" if name.strip() else f"column {self.position[name] + 1} (unnamed)"

    def __str__(self) -> str:
        return names(name if name.strip() else self.title(name) for name in self.position) + self.hint

    def check_name(self, name: str) -> None:
        """Raise DataError where no column has the name."""
        if name not in self.position:
            close = get_close_matches(name, self.position, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(f"{self.path} has no column {name!r}: {meant}it has {self}")

    def numbers_rows(self, name: str) -> bool:
        """Whether a column looks like row numbers, which some programs write as floats."""
        column = self.table.column(self.position[name])
        if not pa.types.is_floating(column.type):
            return bool(pa.types.is_integer(column.type))
        values = column.to_numpy()
        return bool(np.all(values == np.floor(values))) and len(np.unique(values)) == len(values)

    def _complete(self, name: str) -> Any:
        column = self.table.column(self.position[name])
        if column.null_count:
            row = column.is_null().index(True).as_py() + 1
            counted = "; an empty field, NA, NaN and null count as missing" if self.kind == ".csv" else ""
            missing = plural(column.null_count, "missing value")
            raise DataError(f"{self.title(name)} of {self.path} has {missing}, first in row {row}{counted}")
        if self.kind == ".csv" and pa.types.is_binary(column.type):
            raise DataError(f"{self.path} is not written in UTF-8: save it so")
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def _floats(self, name: str, column: Any) -> Array:
        values = column.cast(pa.float64(), safe=False).to_numpy()
        check_finite(values, f"{self.title(name)} of {self.path} has NaN or infinity")
        return values

    def feature(self, name: str) -> Array:
        """A column's values as numbers."""
        column = self._complete(name)
        if not (is_number(column.type) or pa.types.is_boolean(column.type)):
            raise DTypeError(
                f"{self.title(name)} of {self.path} has the type {column.type}: a feature must be a number or a "
                f"boolean, so leave it out with --drop {name!r}, or encode it as numbers"
            )
        return self._floats(name, column)

    def target(self, name: str) -> Array:
        """A column's values as labels or numbers."""
        column = self._complete(name)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return np.asarray(column.to_pylist(), dtype=object)  # not padded to the longest, as NumPy's text is
        if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
            return column.to_numpy()
        if is_number(column.type):
            return self._floats(name, column)
        raise DTypeError(
            f"the target {name!r} of {self.path} has the type {column.type}: expected text, numbers or booleans"
        )


def is_number(kind: Any) -> bool:
    """Whether a type of Arrow's is one of numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def counts_rows(values: Array) -> bool:
    """Whether values grow by one from row to row, of which there are enough that it is no accident."""
    return len(values) >= 10 and values[0] == np.floor(values[0]) and bool(np.all(np.diff(values) == 1.0))


def read_columns(
    path: Path,
    fingerprint: str,
    target: str | None,
    features: list[str] | None,
    drop: Sequence[str] | None,
    labelled: bool,
) -> Dataset:
    """The columns called `features`, without which all are taken but the target and those to `drop`, and the target.

    Warns of columns that are row numbers, or probably are.
    """
    columns, remarks = Columns(path), []
    if target is None and labelled:
        raise OptionError(f"--target must say which column of {path} is to be learnt: {columns}")
    if target in (drop or ()):
        raise OptionError(f"--drop {target} is the target, which can't be left out")
    left_out = [name for name in (target, *(drop or ())) if name is not None]
    for name in left_out:
        columns.check_name(name)
    if missing := [repr(name) for name in features or () if name not in columns.position]:
        these = f"column{'s' * (len(missing) > 1)} {names(missing)}"
        raise DataError(f"{path} lacks the {these} of the model{columns.hint}")
    if columns.table.num_rows == 0:
        raise DataError(f"{path} has no rows")
    if features is None:
        for name in filter(UNNAMED.fullmatch, columns.position):
            if name not in left_out and columns.numbers_rows(name):
                left_out.append(name)
                remarks.append(
                    f"{columns.title(name)} of {path} is left out, taken for row numbers that a program has "
                    "added; give it a name to learn from it"
                )
        features = [name for name in columns.position if name not in left_out]
    if not features:
        raise DataError("; ".join([f"{path} has no column beside the target {target!r} to learn from", *remarks]))
    found = []
    for name in features:
        found.append(columns.feature(name))
        if drop is not None and counts_rows(found[-1]):
            remarks.append(
                f"{columns.title(name)} of {path} counts the rows: if it is their number and no quantity, leave it out "
                f"with --drop {name!r}"
            )
    y = None if target is None else columns.target(target)
    titles = list(map(columns.title, features))
    for remark in remarks:
        warn(remark)
    return Dataset(str(path), fingerprint, np.stack(found, axis=1), y, features, titles, target)
