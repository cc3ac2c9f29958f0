"""What is to be learnt of a table, by which loss, and how much each row counts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.errors import ArgumentError, DataError, DTypeError, OptionError, kind_of, plural, shown
from bpnet.losses.base import Loss
from bpnet.losses.binary import BinaryCrossEntropyWithLogits
from bpnet.losses.classes import ClassLoss, CrossEntropy
from bpnet.losses.regression import MeanSquaredError
from bpnet.options import not_negative
from bpnet.registry import resolve
from bpnet.tabular.columns import Column, column_of
from bpnet.tabular.frames import Frame
from bpnet.tabular.options import check_loss
from bpnet.tabular.splits import rare
from bpnet.tabular.target import Target


def target_names(target: Any, frame: Frame) -> tuple[str, ...]:
    """The columns of a table that `target` names; none where it is the values of the target.

    Raises DataError where one of several names is that of no column.
    """
    if isinstance(target, str):
        return (target,)
    if not isinstance(target, list | tuple) or not target or not all(isinstance(name, str) for name in target):
        return ()
    if len(target) == frame.rows or not any(name in frame for name in target):  # labels
        return ()
    for name in target:
        frame.check(name)
    if len(set(target)) < len(target):
        raise DataError(f"the target names a column more than once: {', '.join(map(repr, target))}")
    return tuple(target)


def with_target(
    frame: Frame, names: Sequence[str], first: int = 0
) -> tuple[Frame, Column | Frame, list[str], Array | None]:
    """The other columns, and those of the target, of the rows that have a value there.

    Then a note where some have none, in which rows are counted from `first`, and the numbers from 0 of those that have
    (None: all).  Raises DataError where none has.
    """
    y = frame.coded(names[0]) if len(names) == 1 else frame.select(names)
    gaps = np.zeros(frame.rows, dtype=bool)
    for name in names:
        missing = frame.coded(name).missing()
        gaps |= backend_of(missing).to_host(missing)
        if gaps.all():
            raise DataError(f"the target {name!r} of {frame.what} has no values: all are missing")
    rest = frame.without(names)
    if not gaps.any():
        return rest, y, [], None
    kept, begin, count = np.flatnonzero(~gaps), int(np.argmax(gaps)) + first, int(gaps.sum())
    has, shown = "have" if count > 1 else "has", " or ".join(map(repr, names))
    note = f"{plural(count, 'row')} of {frame.what} {has} no {shown}, first in row {begin:,}: left out"
    return rest.take(kept), y.take(kept), [note], kept


@contextmanager
def rows_of_table(kept: Array | None) -> Iterator[None]:
    """Errors name the rows of the table that rows were left out of; `kept` are the numbers there of the others."""
    try:
        yield
    except (DataError, DTypeError) as error:
        if kept is None:
            raise
        text = re.sub(r"(?<=in row )\d+", lambda found: str(kept[int(found[0])]), str(error))
        raise type(error)(text) from None


def rows_of(y: Any, rows: Array) -> Any:
    """Some rows of a target, however it came."""
    return y.take(rows) if isinstance(y, Column | Frame) else y[rows]


def find_goal(y: Any, name: str | None, said: str | None, given: Any, what: str) -> tuple[Target, Loss]:
    """What is learnt from y, and by which loss.

    `said` is the kind of column that the user says it is, None if they don't, and `given` the name of a loss or one, or
    "auto".  Raises DTypeError or DataError where a loss does not fit.
    """
    loss = None if isinstance(given, str) and given == "auto" else check_loss(resolve(Loss, "loss", given))
    called = given if isinstance(given, str) else repr(loss)
    wants = None if loss is None else "class" if isinstance(loss, ClassLoss) or loss.boundary is not None else "number"
    kind = wants
    if said is not None:
        kind = {"number": "number", "category": "class", "boolean": "class", "text": "class"}.get(said)
        if kind is None:
            raise OptionError(f"types says that {what} is a {said}; expected number or category")
        if wants not in (None, kind):
            raise OptionError(f"types says that {what} is a {said}, but {called} is a loss of {wants}")
    column = y if isinstance(y, Column) else column_of(y, what) if _is_vector(y, what) else None
    if column is not None:
        if kind == "number" and column.codes is not None:
            raise DTypeError(f"{what} is text: {called} needs numbers")
        if kind == "class" and said is None and _has_fractions(column):
            raise DTypeError(f"{what} holds numbers with fractions: {called} needs classes")
    elif kind == "class":
        kind = "multilabel"
    try:
        goal = Target.of(y, name, kind)
    except (DataError, DTypeError) as error:
        raise type(error)(str(error).replace("y ", f"{what} ", 1)) from None
    if goal.kind == "class" and loss is not None and not loss.labels and len(goal.classes) > 2:
        raise DataError(f"{what} has {len(goal.classes)} classes: {loss} distinguishes two")
    default = {"class": CrossEntropy, "multilabel": BinaryCrossEntropyWithLogits, "number": MeanSquaredError}
    return goal, loss or default[goal.kind]()


def _has_fractions(column: Column) -> bool:
    values = column.values
    return column.codes is None and column.on_host and values.dtype.kind == "f" and bool((values % 1 != 0).any())


def class_numbers(goal: Target, y: Any) -> Array | None:
    """For every row the number of its class, on the host; None where there are no classes."""
    if goal.kind != "class":
        return None
    codes = goal.encode(y)
    return backend_of(codes).to_host(codes)


def quantities(goal: Target, y: Any, rows: Array | slice) -> Array:
    """Some rows of the numbers of y, (rows, columns), on the host; zeros where there are none."""
    if goal.kind != "number":
        return np.zeros((1, 1))
    values = goal.encode(y)
    host: Array = backend_of(values).to_host(values)
    return host[rows].astype(np.float64)


def check_bounds(y: Array, loss: Loss, what: str) -> None:
    """Raise DataError where a quantity of y, (rows, columns), is less than the loss takes."""
    loss = loss.single
    least = max(loss.least, 0.0) if loss.positive else loss.least
    wrong = (y <= least) if loss.positive else (y < least)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        bound = f"above {least:g}" if loss.positive else f"of at least {least:g}"
        raise DataError(f"{what} has {y[row, column]:g} in row {row}; {loss} needs targets {bound}")


def as_type(values: Any, like: Any) -> Any:
    """Numbers of the type of other arrays."""
    backend = backend_of(values)
    dtype = getattr(backend.xp, "float32" if "float32" in str(like.dtype) else "float64")
    return values if values.dtype == dtype else backend.xp.astype(values, dtype)


def class_weights(goal: Target, y: Any, given: str | Mapping[Any, float] | None) -> Any:
    """How much every row counts, None where all count the same; of "balanced" every class does."""
    if given is None:
        return None
    if goal.kind == "class" and isinstance(given, str):
        return goal.balanced_weights(y)
    table = class_table(goal, given)
    codes = goal.encode(y)
    backend = backend_of(codes)
    return backend.from_host(table[backend.to_host(codes)], None, backend.device(codes))


def class_table(goal: Target, given: str | Mapping[Any, float], sizes: Array | None = None) -> Array:
    """How much a row of each class counts; "balanced" needs how many rows each has."""
    if goal.kind != "class":
        raise OptionError(f"class_weight is {shown(given)}, but the target has no classes: leave it out")
    if isinstance(given, str) and sizes is not None:
        return (sizes.sum() / (len(sizes) * np.maximum(sizes, 1))).astype(np.float32)
    if not isinstance(given, Mapping):
        raise ArgumentError(f"class_weight is {kind_of(given)}; expected 'balanced' or a dict with a weight a class")
    for label in given:
        if label not in goal.classes:
            raise OptionError(f"class_weight has the class {label!r}; there are {', '.join(map(repr, goal.classes))}")
    return np.array([not_negative(f"class_weight[{x!r}]", given.get(x, 1.0)) for x in goal.classes], np.float32)


def rare_classes(held_out: Array, sizes: Array, goal: Target) -> list[str]:
    """A note where classes are too rare to be held out, of so many rows each; see `rare`."""
    found = rare(held_out, sizes, goal.classes)
    if not found:
        return []
    some = ", ".join(f"{name!r} ({plural(count, 'row')})" for name, count in found[:5])
    more = f", ... ({len(found):,} in all)" if len(found) > 5 else ""
    which, it = ("classes", "they are") if len(found) > 1 else ("class", "it is")
    return [f"too rare to be held out: {which} {some}{more}; how well {it} told from others is not measured"]


def identifiers(sizes: Array, what: str) -> list[str]:
    """A note where more than half of the classes have a single row each, of a table of more than a few."""
    classes, single = int((sizes > 0).sum()), int((sizes == 1).sum())
    if sizes.sum() < 10 or 2 * single <= classes or classes < 10:
        return []
    of = f"{single:,} of its {classes:,} classes have a single row"
    return [f"{what} looks like an identifier: {of}, from which nothing can be learnt about others"]


def _is_vector(y: Any, what: str) -> bool:
    """Whether y has one axis; raises DataError where it has rows that are no values."""
    try:
        return np.ndim(y) == 1
    except (ValueError, RecursionError):  # lists of several lengths or depths
        raise DataError(f"{what} holds lists of several lengths or depths; expected a value for every row") from None
