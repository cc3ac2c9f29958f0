"""The training on a table that need not fit in memory: one pass finds what there is to know, then blocks are encoded
as they are needed."""

import itertools
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.data.streams.sources import Field, Into, Passes, Source
from bpnet.data.streams.stream import Stream
from bpnet.distributed.base import agreed
from bpnet.errors import DataError, OptionError, plural
from bpnet.tabular.design import Design, design_of, first_rows
from bpnet.tabular.files import TableFile
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import class_table, find_goal, identifiers, rare_classes, rows_of_table, target_names
from bpnet.tabular.model import TableModel
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.remarks import LEAST, Remark, remarks_on
from bpnet.tabular.scaling import Output
from bpnet.tabular.scan import Answers, Kept, Rows, Scan, scan
from bpnet.tabular.schema import Schema
from bpnet.tabular.sizing import Size
from bpnet.tabular.splits import BySeed
from bpnet.tabular.training import connected, trainer_for

HELD_OUT, HELD_OUT_VALUES = 1 << 18, 1 << 22
"""Rows that are held out at most, and values in all: they are kept in memory, and more would tell nothing more."""
BUFFER = 1 << 28
"""Bytes of encoded rows in memory."""


class Encoded(Source):
    """Rows of a file as a network and its loss take them; `names` says what each field is.

    They are those that are trained on, or with `held_out` those that are not, or for None all of them; `counts` are
    how many each unit of the file has.  Rows are read unit by unit: borders lie where these begin.
    """

    def __init__(
        self,
        rows: Rows,
        counts: Sequence[int],
        schema: Schema,
        weights: Array | None = None,
        held_out: bool | None = False,
    ) -> None:
        self.held_out = held_out
        self.rows, self.schema, self.weights, self.name = rows, schema, weights, rows.file.name
        pairs = [(unit, count) for unit, count in zip(rows.file.units, counts, strict=True) if count]
        self.units = [unit for unit, _ in pairs]
        self.borders: list[int] = [0, *itertools.accumulate(count for _, count in pairs)]
        self.count, self.passes = self.borders[-1], Passes()

    def of(self, some: Kept) -> tuple[Any, ...]:
        """(x, y) or (x, y, weight) of rows that have been read."""
        *x, y = self._arrays(some)[: len(self.names) - (self.weights is not None)]
        made = x[0] if len(x) == 1 else dict(zip(self.names, x, strict=False))
        return (made, y) if self.weights is None else (made, y, self.weights[self.rows.labels(some.y)])

    def stream(self) -> Stream:
        """The rows as a training takes them."""
        inputs = self.names[: self.names.index("y")]
        names = inputs if len(inputs) > 1 else None
        return Stream(self, names, has_y=True, has_weight=self.weights is not None, buffer=BUFFER)

    @property
    def names(self) -> tuple[str, ...]:
        """What the fields are."""
        both = bool(self.schema.n_numbers and self.schema.entries)
        return (*(("numbers", "categories") if both else ("x",)), "y", *["sample_weight"] * (self.weights is not None))

    def _arrays(self, some: Kept) -> list[Any]:
        """The fields of rows that have been read; errors name the row in the file."""
        goal = self.rows.goal
        with rows_of_table(some.numbers):
            x, y = self.schema.encode(some.frame), goal.encode(some.y, self.rows.loss)
        arrays = [a.astype(self.schema.dtype, copy=False) if a.dtype.kind == "f" else a for a in
                  (x.values() if isinstance(x, dict) else (x,))]  # fmt: skip
        arrays.append(y if goal.kind == "class" else y.astype(self.schema.dtype))
        return arrays if self.weights is None else [*arrays, self.weights[self.rows.labels(some.y)]]

    @cached_property
    def fields(self) -> tuple[Field, ...]:  # type: ignore[override]
        first = next(self._unit(0))
        return tuple(Field(a.shape[1:], a.dtype) for a in first)

    def read(self, start: int, stop: int, into: Into = ()) -> Sequence[Any]:
        found, at = [], start
        while at < stop:
            i = bisect_right(self.borders, at) - 1
            end = min(stop, self.borders[i + 1])
            found += self._read(i, at, end)
            at = end
        return found[0] if len(found) == 1 else [np.concatenate(some) for some in zip(*found, strict=True)]

    def _read(self, i: int, start: int, stop: int) -> list[Sequence[Any]]:
        """Rows of one unit, in parts; whoever reads on from `stop` need not begin anew."""
        left = self.passes.take(start) if start > self.borders[i] else None
        parts: list[Sequence[Any]] = []
        at, chunks, arrays = left or (self.borders[i], self._unit(i), None)
        while at < stop:
            arrays = next(chunks) if arrays is None else arrays
            low, high = max(start - at, 0), min(stop - at, len(arrays[0]))
            if low < high:
                parts.append([a[low:high] for a in arrays])
            arrays = [a[high:] for a in arrays] if high < len(arrays[0]) else None
            at += high
        if stop < self.borders[i + 1]:
            self.passes.leave(stop, (at, chunks, arrays))
        return parts

    def release(self) -> None:
        self.passes.release()

    def _unit(self, i: int) -> Iterator[list[Any]]:
        """The rows of a unit, some at a time."""
        unit = self.units[i]
        for chunk in self.rows.chunks(unit.start, unit.stop):
            some = chunk if self.held_out is None else chunk.take(chunk.held_out == self.held_out)
            if len(some.numbers):
                yield self._arrays(Kept(some.numbers, some.frame, some.y))

    def where(self, row: int) -> str:
        return f"row {row:,} of those of {self.name} that are used"

    def fingerprint(self) -> str:
        return repr([super().fingerprint(), [size for size, _ in self.rows.file.stamps]])  # copies differ in time


# ---- from a file to a training --------------------------------------------------------------------------------------


class StreamedTraining(TableTraining):
    """A training whose rows stay in their file but for those held out.

    frame, y : the rows held out, of which `held_out` are the numbers here, and `numbers` those in the file; where none
        are, a sample of those that are trained on
    rows : range(how many are trained on)
    """

    numbers: Array

    @property
    def judged_y(self) -> Any:
        return self.y


@dataclass
class _Plan:
    """A streamed training before there is a trainer."""

    source: Encoded
    found: Scan
    size: Size
    design: Design
    sample: tuple[Any, ...]
    unseen: tuple[Any, ...] | None
    notes: list[str]
    remarks: list[Remark]
    wide: str | None


def prepare_file(
    file: TableFile,
    target: Any,
    options: TrainingOptions,
    *,
    features: Sequence[str] | None = None,
    bad_rows: str = "error",
    told: Callable[[float], None] | None = None,
) -> StreamedTraining:
    """The training that `train_table` describes on the rows of a file, which stay there.

    A first pass reads the target, a second one all that is to be known of the columns: see `Scan`; `told` is called
    with the share of it that is done.
    """
    ranks, options = connected(options)
    plan = agreed(ranks, _planned, file, target, options, features, bad_rows == "skip", told)
    rows, found = plan.source.rows, plan.found
    trainer = trainer_for(plan.design, plan.sample[0], options)
    split = {"rows": file.rows, "fraction": rows.split.fraction, "seed": options.seed, "by": "row", "skip": rows.skip}
    model = TableModel(plan.source.schema, rows.goal, trainer, {"split": split})
    trainer.build(first_rows(plan.sample[0]))
    looked_at = found.sample if plan.unseen is None else found.held_out
    parts = range(sum(found.trained)), np.arange(0 if plan.unseen is None else len(looked_at.numbers))
    data = [(plan.source.stream(),), plan.unseen]
    more = model, plan.design, plan.notes, plan.remarks, plan.wide
    made = StreamedTraining(options, plan.size, looked_at.frame, looked_at.y, parts, data, *more)
    made.numbers, made.judged, made.sample = looked_at.numbers, plan.unseen or plan.sample, plan.sample[0]
    return made


def _planned(
    file: TableFile,
    target: Any,
    options: TrainingOptions,
    features: Sequence[str] | None,
    skip: bool,
    told: Callable[[float], None] | None,
) -> _Plan:
    names = _targets(target, file)
    name = names[0] if len(names) == 1 else None
    types = dict(options.types)
    said = types.pop(name, None) if name is not None else None
    for column in (*options.drop, *types):
        _check(column, file)
    wanted = [n for n in (file.names if features is None else features) if n not in (*names, *options.drop)]
    if not wanted:
        raise DataError(f"{file.name} has no column to learn from: there is the target alone, or what is left out")
    answers = Answers.of(file, names)
    what = f"the target {'' if name is None else f'{name!r} '}of {file.name}"
    goal, loss = find_goal(answers.stand_in(), name, said, options.loss, what)
    if answers.rows < 2:
        raise DataError(f"{file.name} has a single row with a target: expected at least 2")
    sizes = answers.sizes(goal) if goal.kind == "class" else None
    share = min(options.validation, min(HELD_OUT, HELD_OUT_VALUES // len(wanted)) / answers.rows)
    rows = Rows(file, tuple(wanted), names, goal, loss, BySeed(options.seed, share, sizes), what, skip)
    found = scan(rows, round(answers.rows * (1.0 - share)), types, told)
    notes = _notes(file, answers, found)
    frame, remarks = _looked_at(found, name or "y", file)
    idle = {column for remark in remarks if remark.kind in ("empty", "constant") for column in remark.names}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schema = Schema.of(frame, types, idle)
    notes += [str(warning.message) for warning in caught]
    output = Output(None, loss) if found.spread is None else found.spread.output(loss, what)
    wide = what if output.wide else None
    if wide is not None:
        schema = replace(schema, dtype="float64")
        if options.precision != "float32":
            raise OptionError(f"precision is {options.precision}, but {wide} needs float64")
    size = options.size(sum(found.trained), goal.kind != "number")
    weights = None if options.class_weight is None else class_table(goal, options.class_weight, sizes)
    source = Encoded(rows, found.trained, schema, weights)
    sample = source.of(Kept(found.sample.numbers, frame, found.sample.y))
    design = design_of(schema, sample[0], goal, output, size, options, found.gaps)
    unseen = source.of(found.held_out) if len(found.held_out.numbers) else None
    if unseen is not None and sizes is not None:
        notes += identifiers(sizes, what) or rare_classes(rows.labels(found.held_out.y), sizes, goal)
    elif options.validation > 0 and unseen is None:
        notes.append("no row is held out: what is learnt is not tried on other rows")
    return _Plan(source, found, size, design, sample, unseen, notes, remarks, wide)


def _targets(target: Any, file: TableFile) -> tuple[str, ...]:
    """The names of its columns."""
    given = [target] if isinstance(target, str) else target
    if not isinstance(given, list | tuple) or not given or not all(isinstance(name, str) for name in given):
        raise OptionError(f"target is none of the columns of {file.name}: expected the name of one, or a list of names")
    for name in given:
        _check(name, file)
    return target_names(list(given), Frame(dict.fromkeys(file.names), -1, what=file.name)) or tuple(given)


def _check(name: str, file: TableFile) -> None:
    Frame(dict.fromkeys(file.names), 0, what=file.name).check(name)


def _notes(file: TableFile, answers: Answers, found: Scan) -> list[str]:
    """What is said of rows that are left out."""
    notes = []
    if answers.gaps:
        has, shown = "have" if answers.gaps > 1 else "has", " or ".join(map(repr, answers.names))
        first = f"first in row {answers.first_gap:,}"
        notes.append(f"{plural(answers.gaps, 'row')} of {file.name} {has} no {shown}, {first}: left out")
    if found.skipped.rows:
        notes.append(
            f"{plural(found.skipped.rows, 'row')} of {file.name} left out, of which the first: {found.skipped.why}"
        )
    return notes


def _looked_at(found: Scan, target: str, file: TableFile) -> tuple[Frame, list[Remark]]:
    """The sample with what is known of all rows, and what is suspicious about its columns."""
    frame = found.sample.frame
    columns = {name: found.column(name) for name in frame.names}
    remarks: list[Remark] = []
    kinds: dict[str, list[str]] = {}
    for remark in remarks_on(frame, found.sample.y, target):
        if remark.kind == "target":  # what is true of a sample and of all rows
            kinds[remark.kind] = list(remark.names)
    for name, feature in found.features.items():
        if not feature.known:
            kinds.setdefault("empty", []).append(name)
        elif not feature.varies and not feature.gaps:
            kinds.setdefault("constant", []).append(name)
        elif feature.numbers_rows and feature.known >= LEAST and feature.varies:
            kinds.setdefault("counts", []).append(name)
    remarks = [Remark(kind, tuple(names), target, file.name) for kind, names in kinds.items()]
    return Frame(columns, frame.rows, what=file.name), remarks
