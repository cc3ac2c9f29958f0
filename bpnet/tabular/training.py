"""A model for a table, from the table: `train_table`, which the command line calls too."""

from __future__ import annotations  # so that help() shows the names of types, not all that they stand for

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Never

import numpy as np

from bpnet.backends import Array
from bpnet.backends.interrupts import ends_sessions
from bpnet.callbacks.base import Callback, check_callbacks
from bpnet.distributed.base import Communicator, agreed
from bpnet.errors import BpnetWarning, DataError, OptionError, ShapeError, users_line
from bpnet.layers.activation import Activation
from bpnet.losses.base import Loss
from bpnet.metrics.base import Metric
from bpnet.optimizers.base import Optimizer
from bpnet.options import choice, flag, number, whole
from bpnet.schedules import Schedule
from bpnet.tabular.design import Design, check_finite, design_of, encoded, first_rows, take, wide_column
from bpnet.tabular.files import TableFile, in_memory_or_not
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import (
    as_type,
    check_bounds,
    class_numbers,
    class_weights,
    find_goal,
    identifiers,
    quantities,
    rare_classes,
    rows_of_table,
    target_names,
    with_target,
)
from bpnet.tabular.model import TableModel
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.remarks import Remark, remarks_on
from bpnet.tabular.scaling import output_for
from bpnet.tabular.schema import Schema
from bpnet.tabular.sizing import Size
from bpnet.tabular.splits import BySeed, split
from bpnet.tabular.target import Target
from bpnet.trainer import Trainer
from bpnet.typing import ActivationName, CallbackName, LossName, MetricName, OptimizerName, Precision

OF_FIT = ("callbacks", "progress", "checkpoint", "every", "resume", "stream", "bad_rows")
"""Options of `train_table` that are none of the training itself."""


@ends_sessions
def train_table(
    table: Any,
    target: Any,
    *,
    hidden: Sequence[int] | None = None,
    activation: ActivationName | Activation = "relu",
    dropout: float | None = None,
    loss: LossName | Loss | Literal["auto"] = "auto",
    optimizer: OptimizerName | Optimizer = "adam",
    lr: float | None = None,
    weight_decay: float | None = None,
    schedule: str | Callable[[float, int], Schedule] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    validation: float = 0.2,
    early_stopping: bool | int = True,
    class_weight: str | Mapping[Any, float] | None = None,
    ensemble: int | None = None,
    preset: str | None = None,
    types: Mapping[str, str] = MappingProxyType({}),
    drop: str | Sequence[str] = (),
    metrics: MetricName | Sequence[MetricName | Metric] = (),
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "float32",
    threads: int | None = None,
    compile: bool | str = "auto",
    distributed: Any = None,
    callbacks: CallbackName | Sequence[CallbackName | Callback] = (),
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    resume: bool = False,
    stream: bool | None = None,
    bad_rows: Literal["error", "skip"] = "error",
    **unknown: Never,
) -> TableModel:
    """Train a model that predicts a column of a table, or what `target` has for every row.

        model = bp.train_table(frame, "species")
        model.predict(frame)
        model = bp.train_table("flights.parquet", "delay")

    A share of the rows is held out, the same share of each class; of a stream each row with that probability.  Training
    stops when the loss on them has not fallen for a while, and the best epoch is kept.  Categories, gaps and the scale
    of numbers are found in the other rows alone; only whether a column of text holds words, numbers or dates is told
    from all rows (see `Schema`).  Rows without a value in the target column are left out.

    Parameters
    ----------
    table : a DataFrame, an array, ...: see `TableModel`; or the path of a Parquet or Arrow file, or of a folder of them
    target : the name of a column, or a list of them; or an array with a label or a quantity for every row
    hidden, dropout, batch_size, epochs : units of the hidden layers, dropout rate, rows per step, and the largest
        number of epochs; None for what suits the number of rows: see `bpnet.tabular.sizing`
    activation, loss, optimizer : names or objects; the loss "auto" is cross_entropy for labels, mse for quantities.
        Whole numbers are labels with a loss for classes, and quantities with a loss for quantities
    lr, weight_decay : of the optimizer; with weight decay, Adam becomes AdamW
    schedule : of the learning rate over all epochs: "cosine", "one_cycle", ..., or a function of the learning rate and
        the number of epochs that gives a `Schedule`
    validation : the share of rows that is held out, 0 for none; of a stream at most 262,144 rows, which stay in memory
    early_stopping : whether to stop early and keep the best epoch; or for how many epochs to wait
    class_weight : "balanced" gives all classes the same total weight; or a dict with a weight for each
    ensemble : this many networks in one, each trained on all rows, whose predictions are averaged (TabM)
    preset : "strong" takes RealMLP's network and training, "simple" its simpler variant
    types : the kinds of columns by their names, "number", "category", "boolean" or "date"; the target's too
    drop : columns to leave out: a name, or several
    metrics : names or objects, recorded after every epoch
    seed : of start values, the order of rows, dropout and held-out rows
    device, precision, threads, compile, distributed : as in `Trainer`; every rank is given the same table
    callbacks, progress : as in `Trainer.fit`
    checkpoint, every, resume : a folder for checkpoints, steps from one to the next, and whether to go on from the
        newest, as in `Trainer.fit`; each is a file of a TableModel
    stream : whether rows of a file stay there, and are read anew in every epoch: see `bpnet.tabular.streaming`.  None
        does so where they would take more than half of the free memory
    bad_rows : of a file that is streamed, whether a row with an infinite number, or with a target that the loss does
        not take, is an "error", or left out and counted, "skip"

    Raises DataError, DTypeError, ShapeError, OptionError, UnknownNameError; DivergedError where training diverged.
    Warns of columns that never vary, that give the target away or that number the rows, and of classes of which no row
    is held out.
    """
    given = locals()
    listeners = check_callbacks([callbacks] if isinstance(callbacks, str) else callbacks)
    options = {name: given[name] for name in TrainingOptions.__dataclass_fields__}
    named = TrainingOptions.named(options | unknown, OF_FIT)
    choice("bad_rows", bad_rows, ("error", "skip"))
    ranks, named = connected(named)
    if isinstance(table := agreed(ranks, in_memory_or_not, table, stream), TableFile):
        from bpnet.tabular.streaming import prepare_file

        training: TableTraining = prepare_file(table, target, named, bad_rows=bad_rows)
    else:
        training = prepare(table, target, named)
    for text in training.warnings():
        warnings.warn(text, BpnetWarning, stacklevel=users_line())
    saving: dict[str, Any] = {"checkpoint": checkpoint, "every": every, "resume": flag("resume", resume)}
    training.fit(listeners, progress=progress, **saving)
    return training.model


# ---- from a table to a training ------------------------------------------------------------------------------------


def prepare(
    table: Any,
    target: Any,
    options: TrainingOptions,
    parts: tuple[Array, Array] | None = None,
    apart: Array | None = None,
) -> TableTraining:
    """The training that `train_table` describes; `parts` are the rows to train on and to hold out, if known.

    Rows that are kept `apart` take no part in it: they are for figures afterwards.
    """
    ranks, options = connected(options)
    return _made(agreed(ranks, _planned, table, target, options, parts, apart))


def connected(options: TrainingOptions) -> tuple[Communicator, TrainingOptions]:
    """The ranks of a training, which connect before anything is read, so that an error on one ends all of them."""
    if options.distributed is None:
        return Communicator(), options
    ranks = options.distributed.connect()
    return ranks, replace(options, distributed=ranks)


@dataclass
class _Plan:
    """A training before there is a trainer; see `TableTraining`."""

    options: TrainingOptions
    size: Size
    frame: Frame
    y: Any
    parts: tuple[Array, Array]
    lots: Sequence[Array]
    inputs: Sequence[Any]
    schema: Schema
    goal: Target
    loss: Loss
    design: Design
    notes: list[str]
    remarks: list[Remark]
    wide: str | None
    weight: Any = None


def _planned(
    table: Any, target: Any, options: TrainingOptions, parts: tuple[Array, Array] | None, apart: Array | None
) -> _Plan:
    frame = Frame.of(table)
    names = target_names(target, frame)
    if not names:
        return _prepared(frame, target, None, [], options, parts, apart)
    frame, y, notes, kept = with_target(frame, names)
    with rows_of_table(kept):
        return _prepared(frame, y, names[0] if len(names) == 1 else None, notes, options, parts, apart)


def _prepared(
    frame: Frame,
    y: Any,
    name: str | None,
    notes: list[str],
    options: TrainingOptions,
    parts: tuple[Array, Array] | None,
    apart: Array | None,
) -> _Plan:
    """The same for the columns to learn from and the target, which may have a name."""
    types = dict(options.types)
    said = types.pop(name, None) if name is not None else None
    for column in options.drop:
        frame.coded(column)  # which says that there is none
    frame = frame.without(options.drop)
    if not frame.names:
        raise DataError(f"{frame.what} has no column to learn from: there is the target alone, or what is left out")
    check_finite(frame)
    if frame.rows < 2:
        raise DataError(f"{frame.what} has {'a single row' if frame.rows else 'no rows'}: expected at least 2")
    what = f"the target {'' if name is None else f'{name!r} '}of {frame.what}"
    goal, loss = find_goal(y, name, said, options.loss, what)
    labels = class_numbers(goal, y)
    count = int((goal.encode(y) if labels is None else labels).shape[0])
    if count != frame.rows:
        raise ShapeError(f"{what} has {count} values, but {frame.what} {frame.rows} rows: expected one a row")
    check_bounds(quantities(goal, y, slice(None)), loss, what)
    remarks = remarks_on(frame, y, name or "y")
    idle = {column for remark in remarks if remark.kind in ("empty", "constant") for column in remark.names}
    parts = parts or split(frame.rows, options.validation, options.seed, labels)
    size = options.size(len(parts[0]), goal.kind != "number")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schema = Schema.of(frame.take(parts[0]), types, idle)
    notes += [str(warning.message) for warning in caught]
    wide = next((title for rows in parts if len(rows) and (title := wide_column(frame, schema, rows))), None)
    output = output_for(quantities(goal, y, parts[0]), loss, what)
    wide = wide or (what if output.wide else None)
    if wide is not None:
        schema = replace(schema, dtype="float64")
        if options.precision != "float32":
            raise OptionError(f"precision is {options.precision}, but {wide} needs float64")
    lots = parts if apart is None else (*parts, apart)
    inputs = encoded(schema, frame, lots)
    seen = inputs[0]
    design = design_of(schema, seen, goal, output, size, options)
    weight = class_weights(goal, y, options.class_weight)
    sizes = None if labels is None else np.bincount(labels, minlength=len(goal.classes))
    if labels is not None and sizes is not None and len(parts[1]):
        notes += identifiers(sizes, what) or rare_classes(labels[parts[1]], sizes, goal)
    elif options.validation > 0 and not len(parts[1]):
        odd = [] if sizes is None else identifiers(sizes, what)
        none = "no class has two rows, so that none is held out: what is learnt is not tried on other rows"
        notes.append("; ".join([*odd, none]))
    return _Plan(options, size, frame, y, parts, lots, inputs, schema, goal, loss, design, notes, remarks, wide, weight)


def _made(plan: _Plan) -> TableTraining:
    """The training, with a trainer that has parameters."""
    options, goal, design, y = plan.options, plan.goal, plan.design, plan.y
    seen = plan.inputs[0]
    trainer = trainer_for(design, seen, options)
    model = TableModel(plan.schema, goal, trainer, {"split": split_settings(plan.frame.rows, options)})
    trainer.build(first_rows(seen))
    like = trainer.theta if options.device is None else None
    answers, weight = goal.encode(y, plan.loss, like=like), plan.weight
    answers = answers if goal.kind == "class" else as_type(answers, trainer.theta)
    data = [
        (x, *(take(array, rows) for array in (answers, weight) if array is not None)) if len(rows) else None
        for x, rows in zip(plan.inputs, plan.lots, strict=True)
    ]
    return TableTraining(
        options, plan.size, plan.frame, y, plan.parts, data, model, design, plan.notes, plan.remarks, plan.wide
    )


def trainer_for(design: Design, x: Any, options: TrainingOptions) -> Trainer:
    """The trainer of a design, for rows like x; without parameters yet."""
    return Trainer(
        design.network,
        design.loss,
        design.optimizer,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        compile=design.compiles(x, options),
        distributed=options.distributed,
    )


def split_settings(rows: int, options: TrainingOptions) -> dict[str, Any]:
    """What `held_out_rows` needs."""
    return {"rows": rows, "fraction": options.validation, "seed": options.seed}


def held_out_rows(model: TableModel, rows: int, y: Any, numbers: Array | None = None) -> Array | None:
    """The numbers of the rows that were held out of a table when a model was trained on it, None where none were.

    `rows` and y are of that table, y without rows that have none; `numbers` are those in the file (None: all are
    there).  Raises ArgumentError, OptionError or LookupError where the model's settings are damaged.
    """
    known = model.settings["split"]
    fraction, seed = number("fraction", known["fraction"], 0.0, 1.0, closed="left"), whole("seed", known["seed"], 0)
    by_row = known.get("by") == "row"
    if fraction == 0.0 or (not by_row and rows != known["rows"]):
        return None
    labels = class_numbers(model.target, y)
    if by_row:
        sizes = None if labels is None else np.bincount(labels, minlength=len(model.target.classes))
        numbers = np.arange(rows) if numbers is None else numbers
        found = np.flatnonzero(BySeed(seed, fraction, sizes).held_out(numbers, labels))
    else:
        found = split(rows, fraction, seed, labels)[1]
    return found if len(found) else None
