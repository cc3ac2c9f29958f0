"""What is learnt of a table that is read once, block by block: a sample of its rows, and what a sample could miss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.errors import DataError
from bpnet.losses.base import Loss
from bpnet.tabular.columns import Column
from bpnet.tabular.files import TableFile
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import check_bounds, rows_of_table
from bpnet.tabular.scaling import Spread
from bpnet.tabular.splits import BySeed, drawn
from bpnet.tabular.target import Target
from bpnet.tabular.values import as_number

SAMPLE, LEAST_SAMPLE = 1 << 17, 1 << 12
"""Rows of the sample, and at least, where there are many columns."""
SAMPLED = 1 << 24
"""Values of the sample, at most, but for LEAST_SAMPLE rows."""
MOST = 1 << 16
"""Different values of a column that are counted at a time."""


class Tally:
    """How many rows have each value of a column, of at most 2 MOST values at a time.

    Where there are more, the rarest are given up, and what a value's count may lack is at most `lost` (Manku and
    Motwani 2002); text that is no number is kept, since it says that the column is none.
    """

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        self.lost = 0

    def add(self, values: Sequence[Any], counts: Sequence[int]) -> None:
        known = self.counts
        for value, count in zip(values, counts, strict=True):
            if count:
                known[value] = known.get(value, 0) + count
        if len(known) > 2 * MOST:
            words = [v for v in known if isinstance(v, str) and as_number(v) is None][: MOST // 2]
            best = sorted(known, key=lambda value: -known[value])
            self.lost += known[best[MOST]]
            kept = {*best[:MOST], *words}
            self.counts = {value: count for value, count in known.items() if value in kept}

    def column(self, sample: Column) -> Column:
        """The values of some rows, with how often each is in all of them."""
        found = sample if sample.codes is not None else _objects(sample)
        place = {value: i for i, value in enumerate(self.counts)}
        for value in found.values.tolist():  # those that were given up
            place.setdefault(value, len(place))
        values = np.empty(len(place), dtype=object)
        values[:] = list(place)
        codes = np.array([*(place[value] for value in found.values.tolist()), -1], dtype=np.int64)[found.codes]
        counts = np.array([self.counts.get(value, 1) for value in place], dtype=np.int64)
        return Column(values, codes, found.zone, found.categorical, counts)


def _objects(column: Column) -> Column:
    """Numbers as different values and their codes."""
    gaps = column.missing()
    values, found = np.unique(column.values[~gaps], return_inverse=True)
    codes = np.full(column.rows, -1)
    codes[~gaps] = found.reshape(-1)
    objects = np.empty(len(values), dtype=object)
    objects[:] = values.tolist()
    return Column(objects, codes)


# ---- the target -----------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """What all rows say of the target: values by their counts, and moments of numbers; and where some have none."""

    names: tuple[str, ...]
    tallies: list[Tally]
    few: list[bool]
    rows: int = 0
    gaps: int = 0
    first_gap: int = 0
    samples: list[Column] = field(default_factory=list)

    @classmethod
    def of(cls, file: TableFile, names: Sequence[str]) -> "Answers":
        """Read the columns of the target, and no others.  Raises DataError where one has no values."""
        found = cls(tuple(names), [Tally() for _ in names], [True] * len(names))
        present = np.zeros(len(names), dtype=np.int64)
        for first, frame in file.frames(names):
            columns = [frame.coded(name) for name in names]
            missing = [column.missing() for column in columns]
            present += [int((~gaps).sum()) for gaps in missing]
            gaps = np.any(missing, axis=0)
            if gaps.any():
                found.first_gap = found.first_gap if found.gaps else first + int(np.argmax(gaps))
                found.gaps += int(gaps.sum())
            found.rows += int((~gaps).sum())
            for i, column in enumerate(columns):
                found._add(i, column.take(np.flatnonzero(~gaps)))
        for name, count in zip(names, present, strict=True):
            if not count:
                raise DataError(f"the target {name!r} of {file.name} has no values: all are missing")
        if not found.rows:
            raise DataError(f"no row of {file.name} has a value of all of {', '.join(map(repr, names))}")
        return found

    def _add(self, i: int, column: Column) -> None:
        if len(self.samples) <= i and column.rows:
            self.samples.append(column.take(slice(0, 1)))
        if column.codes is not None:
            self.tallies[i].add(
                column.values.tolist(), np.bincount(column.codes, minlength=len(column.values)).tolist()
            )
        elif self.few[i]:
            known = column.values[np.isfinite(column.values)] if column.values.dtype.kind == "f" else column.values
            values, counts = np.unique(known, return_counts=True)  # infinite ones are refused later, with their row
            self.tallies[i].add(values.tolist(), counts.tolist())
            self.few[i] = len(self.tallies[i].counts) <= MOST  # of quantities nobody asks how often each is there

    def stand_in(self) -> Any:
        """A column, or a frame of several, of a few rows of which `Target.of` says the same as of all."""
        columns = {name: self._stand_in(i) for i, name in enumerate(self.names)}
        if len(columns) == 1:
            return columns[self.names[0]]
        most = max(column.rows for column in columns.values())
        longer = {n: c.take(np.resize(np.arange(c.rows), most)) for n, c in columns.items()}
        return Frame(longer, most)

    def _stand_in(self, i: int) -> Column:
        """Every value that is counted once, and the first as often again as that each has five rows, if so many are."""
        like, values = self.samples[i], list(self.tallies[i].counts)
        more = min(self.rows, 5 * len(values)) - len(values)
        codes = np.append(np.arange(len(values)), np.zeros(max(more, 0), dtype=np.int64))
        if like.codes is not None:
            objects = np.empty(len(values), dtype=object)
            objects[:] = values
            return Column(objects, codes, like.zone, like.categorical)
        return Column(np.array(values, dtype=like.values.dtype)[codes], None, like.zone)

    def sizes(self, goal: Target) -> Array:
        """The rows of each class."""
        counts = self.tallies[0].counts
        return np.array([counts.get(label, 0) for label in goal.classes], dtype=np.int64)


# ---- rows that count ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Rows that have a target and are sound: their numbers in the file, the features, the target, who is held out."""

    numbers: Array
    frame: Frame
    y: Any
    held_out: Array

    def take(self, which: Array) -> "Chunk":
        """Some of the rows."""
        some = np.flatnonzero(which)
        return Chunk(self.numbers[some], self.frame.take(some), self.y.take(some), self.held_out[some])


@dataclass(frozen=True)
class Kept:
    """Rows that are kept: their numbers in the file, the features, and the target."""

    numbers: Array
    frame: Frame
    y: Any

    @classmethod
    def of(cls, chunks: Sequence[Chunk], what: str) -> "Kept":
        """The rows of several chunks together."""
        some = [chunk for chunk in chunks if len(chunk.numbers)] or list(chunks[:1])
        ys = [chunk.y for chunk in some]
        y = together(ys) if isinstance(ys[0], Column) else joined(ys, "y")
        return cls(np.concatenate([c.numbers for c in some]), joined([c.frame for c in some], what), y)


@dataclass
class Skipped:
    """Rows that were left out, and why the first was."""

    rows: int = 0
    why: str = ""

    def add(self, rows: int, why: str) -> None:
        self.rows, self.why = self.rows + rows, self.why or why


@dataclass(frozen=True)
class Rows:
    """The rows of a file that count, chunk by chunk: the same ones whenever they are read.

    skip : whether rows with an infinite number, or with a target that can't be learnt, are left out; else they are
        errors that name the row
    """

    file: TableFile
    features: tuple[str, ...]
    targets: tuple[str, ...]
    goal: Target
    loss: Loss
    split: BySeed
    what: str
    skip: bool = False

    def chunks(self, start: int = 0, stop: int | None = None, skipped: Skipped | None = None) -> Iterator[Chunk]:
        """Those from `start` to `stop`; raises DataError or DTypeError with the row."""
        for first, frame in self.file.frames([*self.features, *self.targets], start, stop):
            yield self._chunk(first, frame, skipped or Skipped())

    def _chunk(self, first: int, frame: Frame, skipped: Skipped) -> Chunk:
        gaps = np.any([frame.coded(name).missing() for name in self.targets], axis=0)
        numbers = np.flatnonzero(~gaps)
        frame = frame.take(numbers) if gaps.any() else frame
        numbers = numbers + first
        bad = self._bad(frame, numbers, skipped)
        if bad.any():
            good = np.flatnonzero(~bad)
            frame, numbers = frame.take(good), numbers[good]
        y = frame.coded(self.targets[0]) if len(self.targets) == 1 else frame.select(self.targets)
        labels = self.labels(y) if self.goal.kind == "class" and len(numbers) else None
        return Chunk(numbers, frame.select(self.features), y, self.split.held_out(numbers, labels))

    def labels(self, y: Any) -> Array:
        """The number of each row's class."""
        found: Array = self.goal.encode(y)
        return found

    def quantities(self, y: Any) -> Array:
        """(rows, columns) of float64."""
        found = self.goal.encode(y)
        return (found if found.ndim == 2 else found[:, None]).astype(np.float64)

    def _bad(self, frame: Frame, numbers: Array, skipped: Skipped) -> Array:
        """Which rows are left out; raises DataError for the first where none is to be."""
        bad = np.zeros(frame.rows, dtype=bool)
        for name in (*self.features, *self.targets):
            values = frame.coded(name).values
            if values.dtype.kind != "f" or frame.coded(name).codes is not None:
                continue
            wrong = np.isinf(values)
            if wrong.any():
                what = self.what if name in self.targets else f"column {name!r} of {frame.what}"
                text = f"{what} is infinite in row {numbers[int(np.argmax(wrong))]}"
                if not self.skip:
                    raise DataError(f"{text}: a missing value is NaN, others are finite numbers")
                skipped.add(int((wrong & ~bad).sum()), text)
                bad |= wrong
        if self.goal.kind == "number":
            bad |= self._out_of_bounds(frame, numbers, bad, skipped)
        return bad

    def _out_of_bounds(self, frame: Frame, numbers: Array, bad: Array, skipped: Skipped) -> Array:
        good = np.flatnonzero(~bad)
        more = np.zeros(frame.rows, dtype=bool)
        if not len(good):
            return more
        y = frame.take(good)
        with rows_of_table(numbers[good]):
            values = self.quantities(y.coded(self.targets[0]) if len(self.targets) == 1 else y.select(self.targets))
            try:
                check_bounds(values, self.loss, self.what)
            except DataError as error:
                if not self.skip:
                    raise
                loss = self.loss.single
                least = max(loss.least, 0.0) if loss.positive else loss.least
                wrong = ((values <= least) if loss.positive else (values < least)).any(axis=1)
                skipped.add(int(wrong.sum()), str(error))
                more[good[wrong]] = True
        return more


# ---- the features ---------------------------------------------------------------------------------------------------


@dataclass
class Feature:
    """What is known of all rows of a column: see `Scan`."""

    counted: Tally | None = None
    gaps: int = 0
    known: int = 0
    first: Any = None
    varies: bool = False
    numbers_rows: bool = True

    def add(self, column: Column, numbers: Array, trained: Array, count: bool) -> None:
        gaps = column.missing()
        present = ~gaps
        self.gaps += int((gaps & trained).sum())
        if not present.any():
            self.numbers_rows = self.numbers_rows and not column.rows
            return
        self.known += int(present.sum())
        if column.codes is not None:
            some = np.unique(column.codes[present])
            values: Any = [column.values[code] for code in some[:2].tolist()]
        else:
            some = column.values[present]
            values = [some[0]] if bool((some == some[0]).all()) else [some[0], some[np.argmax(some != some[0])]]
        self.first = values[0] if self.first is None else self.first
        self.varies = self.varies or any(bool(value != self.first) for value in values)
        whole = column.codes is None and column.values.dtype.kind in "iuf" and not gaps.any()
        self.numbers_rows = self.numbers_rows and whole and bool(np.ptp(column.values - numbers) == 0)
        if column.codes is not None:
            self.counted = self.counted or Tally()
            counts = np.bincount(column.codes[trained] + 1, minlength=len(column.values) + 1)[1:]
            self.counted.add(column.values.tolist(), counts.tolist())
        elif count:
            self.counted = self.counted or Tally()
            values, counts = np.unique(column.values[present & trained], return_counts=True)
            self.counted.add(values.tolist(), counts.tolist())


@dataclass
class Scan:
    """What one pass over the rows that count finds.

    sample : of the rows to train on, uniform and without replacement: all of them where there are at most SAMPLE, or
        fewer where there are many columns.  A quantile of n sampled rows is one of all
        rows whose rank is within 2 / sqrt(n) of it, 0.55% for SAMPLE, in 999 of 1,000 columns (Dvoretzky, Kiefer and
        Wolfowitz 1956)
    held_out : all rows that are held out
    features : by name what all of the rows say: gaps and values of text by their counts, whether they vary
    spread : moments of quantities, of the rows to train on
    trained : how many rows to train on there are, of each unit of the file
    """

    sample: "Kept"
    held_out: "Kept"
    features: dict[str, Feature]
    spread: Spread | None
    trained: list[int]
    skipped: Skipped

    def column(self, name: str) -> Column:
        """The sampled rows of a column, with the counts of all rows where values are counted."""
        counted, column = self.features[name].counted, self.sample.frame.coded(name)
        return column if counted is None else counted.column(column)

    @property
    def gaps(self) -> set[str]:
        """The columns that have some."""
        return {name for name, feature in self.features.items() if feature.gaps}


def scan(rows: Rows, expected: int, types: Mapping[str, str], told: Callable[[float], None] | None = None) -> Scan:
    """Read all rows that count; `expected` is about how many are trained on, `types` what the user says of columns.

    `told` is called with the share of the rows that has been read.
    """
    features = {name: Feature() for name in rows.features}
    most = min(SAMPLE, max(SAMPLED // max(len(features), 1), LEAST_SAMPLE))
    share = 1.0 if expected <= most else most / expected
    spread = Spread() if rows.goal.kind == "number" else None
    skipped, trained = Skipped(), []
    sampled: list[Chunk] = []
    held_out: list[Chunk] = []
    for unit in rows.file.units:
        trained.append(0)
        for chunk in rows.chunks(unit.start, unit.stop, skipped):
            if told is not None and len(chunk.numbers):
                told(int(chunk.numbers[0]) / rows.file.rows)
            own = ~chunk.held_out
            trained[-1] += int(own.sum())
            for name, feature in features.items():
                column = chunk.frame.coded(name)
                feature.add(column, chunk.numbers, own, types.get(name) == "category")
            if spread is not None and own.any():
                spread.add(rows.quantities(chunk.y)[own])
            sampled.append(chunk.take(own & (drawn(rows.split.seed + 1, chunk.numbers) < share)))
            held_out.append(chunk.take(chunk.held_out))
    if told is not None:
        told(1.0)
    if not sum(trained):
        raise DataError(f"no row of {rows.file.name} is left to train on")
    name = rows.file.name
    return Scan(Kept.of(sampled, name), Kept.of(held_out, name), features, spread, trained, skipped)


def joined(frames: Sequence[Frame], what: str) -> Frame:
    """Rows of several frames of the same columns, one after the other."""
    columns = {name: together([frame.coded(name) for frame in frames]) for name in frames[0].names}
    return Frame(columns, sum(frame.rows for frame in frames), what=what)


def together(columns: Sequence[Column]) -> Column:
    """Rows of several columns that are of one: what is of numbers in one may be of floats in the next, with gaps."""
    zone, categorical = columns[0].zone, any(column.categorical for column in columns)
    if all(column.codes is None for column in columns):
        return Column(np.concatenate([column.values for column in columns]), None, zone, categorical)
    place: dict[Any, int] = {}
    codes = []
    for column in columns:
        if column.codes is None:  # booleans without gaps
            column = _objects(column)
        places = [place.setdefault(value, len(place)) for value in column.values.tolist()]
        codes.append(np.array([*places, -1], dtype=np.int64)[column.codes])
    values = np.empty(len(place), dtype=object)
    values[:] = list(place)
    return Column(values, np.concatenate(codes), zone, categorical)
