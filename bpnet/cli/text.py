"""Text with separators as a table of Arrow: every column gets the narrowest type that all of its values fit.

The text is read twice, block by block: first to find the types, then to keep values as numbers, and text as codes.  So
memory is that of the compact columns and of a few blocks, whatever the text takes.
"""

import csv as python_csv
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import compute, csv

from bpnet.cli.sources import Source, TextOptions
from bpnet.cli.terminal import reason
from bpnet.errors import DataError

SEPARATORS = ("\t", ";", "|", ",")
"""Those that are looked for, of two that fit equally well the first."""
SAMPLE = 1 << 16
"""Bytes from which the separator is taken."""
BLOCKS = (1 << 24, 1 << 30)
"""Bytes that are read at a time; the larger where a row is longer than the smaller."""
KEPT = 1 << 26
"""Bytes of text that are kept from the first reading, so that there need be no second."""
MISSING = (*csv.ConvertOptions().null_values, "<NA>", "?")
"""What counts as a missing value."""

Cast = Callable[[pa.Array], pa.Array]
"""What makes values of texts without blanks around them; raises ArrowInvalid where one does not fit."""


def integers(values: pa.Array) -> pa.Array:
    return values.cast(pa.int64())


def floats(values: pa.Array) -> pa.Array:
    return values.cast(pa.float64())


def decimal_commas(values: pa.Array) -> pa.Array:
    return compute.replace_substring(values, ",", ".").cast(pa.float64())


def thousands_commas(values: pa.Array) -> pa.Array:
    expect(values, r"^[-+]?\d{1,3}(,\d{3})*(\.\d*)?$")
    return compute.replace_substring(values, ",", "").cast(pa.float64())


def booleans(values: pa.Array) -> pa.Array:
    expect(values, "^([Tt]rue|TRUE|[Ff]alse|FALSE)$")
    return values.cast(pa.bool_())


def days(values: pa.Array) -> pa.Array:
    return values.cast(pa.date32())


def moments(values: pa.Array) -> pa.Array:
    return values.cast(pa.timestamp("us"))


def moments_with_zone(values: pa.Array) -> pa.Array:
    return values.cast(pa.timestamp("us", "UTC"))


def expect(values: pa.Array, pattern: str) -> None:
    """Raise ArrowInvalid where a value is of another pattern."""
    if not compute.all(compute.match_substring_regex(values, pattern), min_count=0).as_py():
        raise pa.ArrowInvalid(f"a value is not as {pattern}")


def families(sep: str) -> list[tuple[Cast, ...]]:
    """What a column may be beside text: of each family a cast takes all that those before it take.

    A comma within a number parts what the separator of columns leaves it to part.
    """
    commas = thousands_commas if sep == "," else decimal_commas
    return [(integers, floats, commas), (booleans,), (days, moments), (moments_with_zone,)]


LEADING_ZERO = r"^[-+]?0\d"
"""What would be lost if "007" were taken for a number."""


@dataclass
class Column:
    """The type of a column, as far as some blocks of text show it."""

    missing: pa.Array
    families: Sequence[tuple[Cast, ...]]
    """None where it is to be text."""
    casts: Sequence[Cast] | None = None
    """Those that fit until now, of which the first is used; none for text; None before there was a value."""

    def look(self, texts: pa.Array) -> None:
        """Take another block into account."""
        if not self.families or self.casts == ():
            return
        values = self._trimmed(texts)
        if values.null_count < len(values):
            several = self.families if self.casts is None else [self.casts]
            self.casts = next(filter(None, (fitting(family, values) for family in several)), ())
            code = compute.match_substring_regex(values, LEADING_ZERO) if integers in self.casts else None
            if code is not None and compute.any(code).as_py():
                self.casts = ()

    def _trimmed(self, texts: pa.Array) -> pa.Array:
        values = compute.ascii_trim_whitespace(texts)
        return compute.if_else(compute.is_in(values, self.missing), pa.scalar(None, values.type), values)

    def values(self, texts: pa.Array) -> pa.Array:
        """A block as what all blocks together have shown the column to be: text as codes of what there is."""
        if self.casts:
            return self.casts[0](self._trimmed(texts))
        if self.casts is None and self.families:
            return pa.nulls(len(texts), pa.float64())
        gap = compute.is_in(compute.ascii_trim_whitespace(texts), self.missing)
        return compute.if_else(gap, pa.scalar(None, texts.type), texts).dictionary_encode()


def fitting(family: Sequence[Cast], values: pa.Array) -> tuple[Cast, ...]:
    """The casts of a family from the first on that takes the values."""
    for i, cast in enumerate(family):
        try:
            cast(values)
        except pa.ArrowInvalid:
            continue
        return tuple(family[i:])
    return ()


class Text:
    """The columns of a text; raises DataError where it can't be read."""

    def __init__(self, source: Source, options: TextOptions) -> None:
        self.source, self.options = source, options
        with self._errors():
            self.sep = options.sep or ("\t" if source.ending in (".tsv", ".tab") else self._sniffed())
            with self._reader(None, BLOCKS[0]) as reader:
                self.names: list[str] = reader.schema.names

    def table(self, names: Sequence[str], texts: Collection[str] = ()) -> pa.Table:
        """The named columns, of which some are to stay `texts`."""
        missing = pa.array([*MISSING, *self.options.missing])
        columns = [Column(missing, () if name in texts else families(self.sep)) for name in names]
        with self._errors():
            for block in BLOCKS:
                try:
                    return self._table(names, columns, block)
                except pa.ArrowInvalid as error:
                    if "straddling" not in str(error) or block == BLOCKS[-1]:
                        raise
        raise AssertionError

    def _table(self, names: Sequence[str], columns: Sequence[Column], block: int) -> pa.Table:
        kept: list[Any] | None = []
        for batch in self._batches(names, block):
            for column, texts in zip(columns, batch.columns, strict=True):
                column.look(texts)
            if kept is not None:
                kept.append(batch)
                kept = kept if sum(b.nbytes for b in kept) <= KEPT else None
        found = [
            [column.values(texts) for column, texts in zip(columns, batch.columns, strict=True)]
            for batch in (self._batches(names, block) if kept is None else kept)
        ]
        chunks = [pa.chunked_array(parts) for parts in zip(*found, strict=True)]
        return pa.table(chunks, names=list(names)).unify_dictionaries() if found else pa.table({n: [] for n in names})

    def _batches(self, names: Sequence[str], block: int) -> Iterator[pa.RecordBatch]:
        with self._reader(names, block) as reader:
            yield from reader

    @contextmanager
    def _reader(self, names: Sequence[str] | None, block: int) -> Iterator[Any]:
        size, nulls = self.source.size, [*MISSING, *self.options.missing]
        options = csv.ReadOptions(block_size=min(block, max(size + 1, 1 << 20)), encoding=self.options.encoding)
        parse = csv.ParseOptions(delimiter=self.sep, newlines_in_values=True)
        types = {} if names is None else dict.fromkeys(names, pa.string())
        convert = csv.ConvertOptions(
            include_columns=names, column_types=types, null_values=nulls, strings_can_be_null=True
        )
        more = {"read_options": options, "parse_options": parse, "convert_options": convert}
        with self._stream() as stream, csv.open_csv(stream, **more) as reader:
            yield reader

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        with self.source.open() as file:
            yield file if self.source.compression is None else pa.CompressedInputStream(file, self.source.compression)

    def _sniffed(self) -> str:
        """The separator that parts the rows at the beginning into equally many values, the most of them."""
        with self._stream() as stream:
            start = stream.read(SAMPLE + 1)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") and self.options.encoding == "utf-8":
            raise DataError(f"{self.source.name} is written in UTF-16: say so by --encoding utf-16")
        whole = len(start) <= SAMPLE
        text = start[:SAMPLE].decode(self.options.encoding, errors="replace").lstrip("\ufeff")
        lines = text.splitlines(keepends=True)
        text = text if whole or len(lines) < 2 else "".join(lines[:-1])

        def fit(sep: str) -> tuple[float, int]:
            rows = [row for row in python_csv.reader(io.StringIO(text, newline=""), delimiter=sep) if row]
            width = len(rows[0]) if rows else 1
            return (0.0, 0) if width == 1 else (sum(len(row) == width for row in rows) / len(rows), width)

        best = max(SEPARATORS, key=fit)
        return best if fit(best)[1] else ","

    @contextmanager
    def _errors(self) -> Iterator[None]:
        name = self.source.name
        try:
            yield
        except (DataError, OSError, MemoryError):
            raise
        except Exception as error:  # a damaged file can fail in any way
            if isinstance(error, UnicodeError) or "UTF8" in str(error):
                told = "UTF-8" if self.options.encoding.lower().startswith("utf-8") else self.options.encoding
                raise DataError(
                    f"{name} is not written in {told}: say in what by --encoding, such as latin-1, cp1252 or utf-16"
                ) from error
            raise DataError(f"{name} can't be read as {self.source.ending}: {reason(error)}") from error
