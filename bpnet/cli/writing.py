"""Where predictions go, part by part: a file that is complete or not there at all, or lines."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.cli import terminal
from bpnet.disk import write_atomically
from bpnet.errors import OptionError

ENDINGS = (".csv", ".parquet", ".jsonl", ".npy")
LONGEST = 1 << 28
"""Characters of text in a .npy file, which pads each to the longest."""

Columns = Mapping[str, list[Any]]


class Writer:
    """Writes the columns of so many rows, which come in parts, to a file, or shows them as lines.

    `texts` are those that predictions may be.
    """

    def __init__(self, path: Path | None, rows: int, texts: Sequence[Any] = ()) -> None:
        self.path, self.rows, self.kind = path, rows, "" if path is None else path.suffix.lower()
        self.longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
        self.stack, self.first = ExitStack(), True
        self.file: Any = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    # ---- lines --------------------------------------------------------------------------------------------------

    def show(self, columns: Columns, plain: bool) -> None:
        """The predictions, or with names CSV."""
        if plain:
            rows = as_rows(columns, plain)
            terminal.show(*(",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows))
        else:
            file = io.StringIO(newline="")
            self._csv(file, columns, "\n")
            terminal.show(*file.getvalue().removesuffix("\n").split("\n"))
        self.first = False

    # ---- a file -------------------------------------------------------------------------------------------------

    def write(self, columns: Columns) -> None:
        """The next rows."""
        if self.kind in (".csv", ".jsonl"):
            self._open("w", newline="", encoding="utf-8")
            if self.kind == ".csv":
                self._csv(self.file, columns, "\r\n")
            else:
                for row in zip(*columns.values(), strict=True):
                    self.file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
        elif self.kind == ".npy":
            self._npy(columns)
        else:
            self._parquet(columns)
        self.first = False

    def _open(self, *args: Any, **options: Any) -> None:
        if self.first:
            assert self.path is not None
            self.file = self.stack.enter_context(write_atomically(self.path, *args, **options))

    def _csv(self, file: Any, columns: Columns, end: str) -> None:
        writer = csv.writer(file, lineterminator=end)
        if self.first:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))

    def _npy(self, columns: Columns) -> None:
        array = self._array(list(columns.values()))
        self._open()
        if self.first:
            self.like = np.dtype(f"U{self.longest}") if array.dtype.kind == "U" else array.dtype
            header = {"descr": self.like.str, "fortran_order": False, "shape": (self.rows, *array.shape[1:])}
            np.lib.format.write_array_header_2_0(self.file, header)
        self.file.write(array.astype(self.like).tobytes())

    def _array(self, columns: Sequence[list[Any]]) -> Array:
        """One column as an array, several side by side."""
        found = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        array = np.asarray(found if self.longest * self.rows < LONGEST else None)
        if array.dtype.kind not in "biufU":
            raise OptionError(
                f"--output is {self.path}, but a .npy file can't hold these predictions: take a .csv file"
            )
        return array

    def _parquet(self, columns: Columns) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        if self.first:
            arrays = {name: pa.array(values) for name, values in columns.items()}
            # a column of gaps alone may be of text further on, but hardly of numbers
            schema = pa.schema({n: pa.string() if pa.types.is_null(a.type) else a.type for n, a in arrays.items()})
            self.schema = schema
            self._open()
            self.table: Any = self.stack.enter_context(parquet.ParquetWriter(self.file, schema))
        self.table.write(pa.table(dict(columns), schema=self.schema))


def as_rows(columns: Columns, plain: bool) -> list[Any]:
    """What JSON has of each row: the prediction, or several; else values by the names of their columns."""
    rows = zip(*columns.values(), strict=True)
    if not plain:
        return [dict(zip(columns, row, strict=True)) for row in rows]
    return [list(row) if len(row) > 1 else row[0] for row in rows]
