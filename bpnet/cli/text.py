"""Text with separators as a table of Arrow: every column gets the narrowest type that all of its values fit.

The text is read block by block, of which numbers are kept, and codes of text.  A column that turns out to be something
else later is read once more.  So memory is that of the compact columns and of a few blocks, whatever the text takes.
"""

import csv as python_csv
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv

from bpnet.cli.sources import Source, TextOptions
from bpnet.cli.terminal import reason
from bpnet.errors import DataError
from bpnet.tabular.columns import Column, column_of
from bpnet.tabular.inference import scale_of

SEPARATORS = ("\t", ";", "|", ",")
"""Those that are looked for, of two that fit equally well the first."""
SAMPLE = 1 << 16
"""Bytes from which the separator is taken."""
BLOCKS = (1 << 20, 1 << 30)
"""Bytes that are read at a time; the larger where a row is longer than the smaller."""
MISSING = (*csv.ConvertOptions().null_values, "<NA>", "?")
"""What counts as a missing value."""

Cast = Callable[[pa.Array], pa.Array]
"""What makes values of texts without blanks around them; raises ArrowInvalid where one does not fit."""


class CodeError(Exception):
    """Digits are no number, since they begin with a 0, which would be lost."""


def integers(values: pa.Array) -> pa.Array:
    made = values.cast(pa.int64())
    if compute.any(compute.match_substring_regex(values, r"^[-+]?0\d")).as_py():
        raise CodeError
    return made


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


@dataclass
class TextColumn:
    """A column that is read block by block: what it is, as far as these show, and its values."""

    missing: pa.Array
    families: Sequence[tuple[Cast, ...]]
    """Empty where it is to be text."""
    narrow: bool = False
    """Whether numbers may be of float32, where that holds what is to be learnt from them."""
    casts: Sequence[Cast] | None = None
    """Those that fit until now, of which the first is used; none for text; None before there was a value."""
    parts: list[tuple[Cast | None, pa.Array]] = field(default_factory=list)
    """The blocks, each with the cast that made it, None for text."""

    def add(self, texts: pa.Array) -> None:
        """Take another block."""
        if texts.null_count == len(texts) and self.casts is None:
            self.parts.append((None, texts))
            return
        if self.families and self.casts != ():
            several = self.families if self.casts is None else [self.casts]
            found = fitting(several, texts) or fitting(several, self._trimmed(texts))
            if found is not None:
                self.casts, made = found
                self.parts.append((self.casts[0], made))
                return
        self.casts = ()
        self.parts.append((None, self._trimmed(texts, only_gaps=True).dictionary_encode()))

    def _trimmed(self, texts: pa.Array, only_gaps: bool = False) -> pa.Array:
        """Without blanks around values, and what is missing but for these as missing."""
        if only_gaps and not compute.any(compute.match_substring_regex(texts, r"^\s|\s$")).as_py():
            return texts
        values = compute.utf8_trim_whitespace(texts)
        gap = compute.is_in(values, self.missing)
        return compute.if_else(gap, pa.scalar(None, texts.type), texts if only_gaps else values)

    def again(self) -> bool:
        """Whether blocks have to be read again, since later ones have shown the column to be something else."""
        return any(cast is not self._cast and not self._converts(cast, part) for cast, part in self.parts)

    @property
    def _cast(self) -> Cast | None:
        return self.casts[0] if self.casts else None

    def _converts(self, cast: Cast | None, part: pa.Array) -> bool:
        """Whether a block, by another cast than the last, can be made from what it is: gaps alone, or whole numbers."""
        return part.null_count == len(part) or (cast is integers and self._cast in (floats, decimal_commas))

    def values(self) -> Column:
        """All blocks together, which are given up."""
        parts = [part for _, part in self.parts]
        self.parts = []
        typed = [part.type for part in parts if part.null_count < len(part)]
        if not typed:
            return column_of(np.full(sum(map(len, parts)), np.nan), "")
        kind = next((t for t in typed if t == pa.float64()), typed[-1])
        parts = [part if part.type == kind else as_type(part, kind) for part in parts]
        column = column_of(pa.chunked_array(parts), "")
        if self.narrow and column.codes is None and column.values.dtype == np.float64 and not scale_of(column.values):
            return Column(column.values.astype(np.float32))
        return column


def as_type(part: pa.Array, kind: Any) -> pa.Array:
    return pa.nulls(len(part), kind) if part.null_count == len(part) else part.cast(kind)


def fitting(several: Sequence[Sequence[Cast]], values: pa.Array) -> tuple[tuple[Cast, ...], pa.Array] | None:
    """The casts of the first family that takes the values, from the one that does on, and what it makes of them."""
    for family in several:
        for i, cast in enumerate(family):
            try:
                return tuple(family[i:]), cast(values)
            except pa.ArrowInvalid:
                continue
            except CodeError:
                return None
    return None


class Text:
    """The columns of a text; raises DataError where it can't be read."""

    def __init__(self, source: Source, options: TextOptions) -> None:
        self.source, self.options = source, options
        with self._errors():
            self.sep = options.sep or ("\t" if source.ending in (".tsv", ".tab") else self._sniffed())
            with self._reader(None, BLOCKS[0]) as reader:
                self.names: list[str] = reader.schema.names

    def columns(
        self, names: Sequence[str], texts: Collection[str] = (), narrow: Collection[str] = ()
    ) -> dict[str, Column]:
        """The named columns, of which some are to stay `texts`, and some may be of `narrow` numbers."""
        with self._errors():
            for block in BLOCKS:
                try:
                    return self._columns(names, texts, narrow, block)
                except pa.ArrowInvalid as error:
                    if "straddling" not in str(error) or block == BLOCKS[-1]:
                        raise
        raise AssertionError

    def _columns(
        self, names: Sequence[str], texts: Collection[str], narrow: Collection[str], block: int
    ) -> dict[str, Column]:
        missing, several = pa.array([*MISSING, *self.options.missing]), families(self.sep)
        columns = {name: TextColumn(missing, () if name in texts else several, name in narrow) for name in names}
        self._fill(columns, block)
        late = {name: column for name, column in columns.items() if column.again()}
        for column in late.values():
            column.parts = []
        if late:
            self._fill(late, block)
        return {name: column.values() for name, column in columns.items()}

    def _fill(self, columns: Mapping[str, TextColumn], block: int) -> None:
        with self._reader(list(columns), block) as reader:
            for batch in reader:
                for column, texts in zip(columns.values(), batch.columns, strict=True):
                    column.add(texts)

    @contextmanager
    def _reader(self, names: Sequence[str] | None, block: int) -> Iterator[Any]:
        size, nulls = self.source.size, [*MISSING, *self.options.missing]
        options = csv.ReadOptions(block_size=min(block, max(size + 1, BLOCKS[0])), encoding=self.options.encoding)
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
