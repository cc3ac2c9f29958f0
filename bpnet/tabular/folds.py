"""Cross-validation: a model for each part of the rows, trained on all others."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bpnet.backends import Array
from bpnet.errors import OptionError
from bpnet.options import whole
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import class_numbers, find_goal, target_names, with_target
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.splits import folds, split
from bpnet.tabular.training import prepare


def each_fold(table: Any, target: Any, options: TrainingOptions, count: int) -> Iterator[tuple[TableTraining, Array]]:
    """A training for each of `count` parts of the rows, of every class alike, which are kept apart: see `prepare`.

    With it come the numbers of the rows of that part.

    Of all other rows the share `validation` is held out, by which training stops and the best epoch is kept: would the
    part itself say that, its figures would flatter.  Raises OptionError where there are more parts than rows.
    """
    frame = Frame.of(table)
    whole("folds", count, 2)
    y, kept, names = target, frame, target_names(target, frame)
    name = names[0] if len(names) == 1 else None
    said = options.types.get(name) if name is not None else None
    if names:
        kept, y = with_target(frame, names)[:2]
    goal, _ = find_goal(y, name, said, options.loss, "the target")
    if count > kept.rows:
        raise OptionError(f"folds is {count}, but there are {kept.rows} rows")
    classes = class_numbers(goal, y)
    for i, (others, part) in enumerate(folds(kept.rows, count, options.seed, classes)):
        own = replace(options, seed=options.seed + i)
        rows, held_out = split(len(others), own.validation, own.seed, None if classes is None else classes[others])
        yield prepare(frame, target, own, (others[rows], others[held_out]), part), part
