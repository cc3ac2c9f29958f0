"""Cross-validation: a model for each part of the rows, trained on all others."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bpnet.errors import OptionError
from bpnet.options import whole
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import class_numbers, find_goal, target_names, with_target
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.splits import folds
from bpnet.tabular.training import TableTraining, prepare


def each_fold(table: Any, target: Any, options: TrainingOptions, count: int) -> Iterator[TableTraining]:
    """A training for each of `count` parts of the rows, which are held out, of every class alike, as `prepare` has it.

    Raises OptionError where there are more parts than rows.
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
    for i, parts in enumerate(folds(kept.rows, count, options.seed, class_numbers(goal, y))):
        yield prepare(frame, target, replace(options, seed=options.seed + i), parts)
