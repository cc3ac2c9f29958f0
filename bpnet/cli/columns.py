"""Columns of a .csv or .parquet file as features and a target; it needs pyarrow."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from pyarrow import csv, float64, parquet
from pyarrow import types as kinds

from bpnet.backends import Array
from bpnet.cli.dataset import Dataset, Provenance, check_finite, fingerprint
from bpnet.cli.terminal import names, reason, warn
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
                whole = csv.ReadOptions(block_size=min(max(path.stat().st_size + 1, 1 << 20), 1 << 30))
                nulls = csv.ConvertOptions(strings_can_be_null=True)
                self.table = csv.read_csv(path, read_options=whole, convert_options=nulls)
            else:
                self.table = parquet.read_table(path)
            found = self.table.column_names
        except Exception as error:  # a damaged file can fail in any way
            raise DataError(f"{path} can't be read as {self.kind}: {reason(error)}") from error
        self.position: dict[str, int] = {}
        for i, name in enumerate(found):
            if name in self.position:
                same = f"column {name!r}" if name.strip() else "column without a name"
                raise DataError(f"{path} has more than one {same}: numbers {self.position[name] + 1} and {i + 1}")
            if not name.startswith("__index_level_"):  # as pandas calls the names of rows, which are no column
                self.position[name] = i
        parted = next((sign for sign in ";\t|" if len(found) == 1 and sign in found[0]), None)
        self.hint = f" (columns are parted by commas, not by {parted!r})" if parted else ""

    def title(self, name: str) -> str:
        """What messages call a column: by its number where it has no name."""
        return f"column {name!r}" if name.strip() else f"column {self.position[name] + 1} (unnamed)"

    def __str__(self) -> str:
        return names(name if name.strip() else self.title(name) for name in self.position) + self.hint

    def numbers_rows(self, name: str) -> bool:
        """Whether a column looks like row numbers, which some programs write as floats."""
        column = self.table.column(self.position[name])
        if not kinds.is_floating(column.type):
            return bool(kinds.is_integer(column.type))
        values = column.to_numpy()
        return bool(np.all(values == np.floor(values))) and len(np.unique(values)) == len(values)

    def values(self, name: str, feature: bool) -> Array:
        """A column as numbers, or where it is no `feature` but the target, as labels or numbers."""
        column, title = self.table.column(self.position[name]), f"{self.title(name)} of {self.path}"
        if column.null_count:
            missing, row = plural(column.null_count, "missing value"), column.is_null().index(True).as_py() + 1
            counted = "; an empty field, NA, NaN and null count as missing" if self.kind == ".csv" else ""
            raise DataError(f"{title} has {missing}, first in row {row}{counted}")
        if self.kind == ".csv" and kinds.is_binary(column.type):
            raise DataError(f"{self.path} is not written in UTF-8: save it so")
        if kinds.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        whole = kinds.is_integer(kind) or kinds.is_boolean(kind)
        if whole and not feature:
            return column.to_numpy()
        if whole or kinds.is_floating(kind) or kinds.is_decimal(kind):
            numbers = column.cast(float64(), safe=False).to_numpy()
            check_finite(numbers, f"{title} has NaN or infinity")
            return numbers
        if feature:
            raise DTypeError(
                f"{title} has the type {kind}: a feature must be a number or a boolean, so leave it out with "
                f"--drop {name!r}, or encode it as numbers"
            )
        if not (kinds.is_string(kind) or kinds.is_large_string(kind)):
            raise DTypeError(f"the target {name!r} of {self.path} has the type {kind}: expected text or numbers")
        return np.asarray(column.to_pylist(), dtype=object)  # not padded to the longest, as NumPy's text is


def read_columns(
    path: Path, target: str | None, model: Provenance, drop: Sequence[str] | None, labelled: bool
) -> Dataset:
    """The data set that `read` describes; warns of columns that are row numbers, or probably are."""
    known, columns, remarks = fingerprint(path), Columns(path), []
    target = (model.target if target is None else target) if labelled else None
    if target is None and labelled:
        raise OptionError(f"--target must say which column of {path} is to be learnt: {columns}")
    if target in (drop or ()):
        raise OptionError(f"--drop {target} is the target, which can't be left out")
    left_out = [name for name in (target, *(drop or ())) if name is not None]
    for name in left_out:
        if name not in columns.position:
            close = get_close_matches(name, columns.position, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(f"{path} has no column {name!r}: {meant}it has {columns}")
    if missing := [repr(name) for name in model.features or () if name not in columns.position]:
        these = f"column{'s' * (len(missing) > 1)} {names(missing)}"
        raise DataError(f"{path} lacks the {these} of the model{columns.hint}")
    if columns.table.num_rows == 0:
        raise DataError(f"{path} has no rows")
    features = model.features
    if features is None:
        for name in filter(UNNAMED.fullmatch, columns.position):
            if name not in left_out and columns.numbers_rows(name):
                left_out.append(name)
                remarks.append(
                    f"{columns.title(name)} of {path} is left out, taken for row numbers that a program has added; "
                    "give it a name to learn from it"
                )
        features = [name for name in columns.position if name not in left_out]
    if not features:
        raise DataError("; ".join([f"{path} has no column beside the target {target!r} to learn from", *remarks]))
    x = np.stack([columns.values(name, feature=True) for name in features], axis=1)
    remarks += [
        f"{columns.title(name)} of {path} counts the rows: if it is their number and no quantity, leave it out with "
        f"--drop {name!r}"
        for name, values in zip(features, x.T, strict=True)
        if drop is not None and len(values) >= 10 and values[0] % 1 == 0 and np.all(np.diff(values) == 1.0)
    ]
    y = None if target is None else columns.values(target, feature=False)
    for remark in remarks:
        warn(remark)
    return Dataset(str(path), known, x, y, features, list(map(columns.title, features)), target)
