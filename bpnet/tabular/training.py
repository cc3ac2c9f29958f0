"""A model for a table, from the table: `train_table`, which the command line calls too."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bpnet.backends import Array
from bpnet.callbacks.history import History
from bpnet.callbacks.monitors import EarlyStopping
from bpnet.errors import BpnetWarning, DataError, OptionError
from bpnet.options import number, whole
from bpnet.step import Snapshot
from bpnet.tabular.design import Design, design_of, encoded, first_rows, take, wide_column
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import (
    as_type,
    class_numbers,
    class_weights,
    find_goal,
    quantities,
    rare_classes,
    target_names,
    with_target,
)
from bpnet.tabular.model import TableModel
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.remarks import Remark, remarks_on
from bpnet.tabular.scaling import output_for
from bpnet.tabular.schema import Schema
from bpnet.tabular.sizing import Size
from bpnet.tabular.splits import split
from bpnet.trainer import Trainer

ROWS = 1 << 14
"""Rows that are evaluated at a time."""


def train_table(table: Any, target: Any, **options: Any) -> TableModel:
    """A model of a table that says what stands in a column, or what `target` has for every row.

        model = bp.train_table(frame, "species")
        model.predict(frame)

    Of the rows a share is held out, of every class alike.  Columns are looked at (text, gaps, dates: see `Schema`), and
    numbers scaled, by the others alone; training stops when the loss of those held out has not become smaller for a
    while, and the best epoch is kept.  Rows without a value in the target column are left out.

    Parameters
    ----------
    table : a DataFrame, an array, ...: see `TableModel`
    target : the name of a column, or a list of them; or an array with a label or a quantity for every row
    hidden, dropout, batch_size, epochs : units of the hidden layers, share of their values that is dropped, rows in a
        step, most epochs; where they are None, what is sensible for the number of rows: see `bpnet.tabular.sizing`
    activation, loss, optimizer : names or objects; the loss "auto" is cross_entropy of labels, mse of quantities.  A
        loss of classes makes labels of whole numbers, one of quantities takes them as such
    lr, weight_decay : of the optimizer; weight decay makes AdamW of Adam
    schedule : of the learning rate over all epochs: "cosine", "one_cycle", ..., or a function of the rate and the
        number of epochs that gives a `Schedule`
    validation : the share of rows that is held out, 0 for none
    early_stopping : whether to stop and keep the best epoch; a whole number of epochs to wait
    class_weight : "balanced" counts all classes the same; or a dict with a weight for each
    members : so many networks in one, each of which sees all rows, and whose answers are averaged: TabM
    preset : "strong" takes RealMLP's network and training, "simple" its simple variant
    types : of columns what they are, by name: "number", "category", "boolean" or "date"; of the target too
    drop : columns to leave out
    metrics : names or objects, recorded after every epoch
    seed : of start values, order, dropout and held-out rows
    device, precision, threads, compile : as of `Trainer`
    callbacks, progress : as of `Trainer.fit`

    Raises DataError, DTypeError, ShapeError, OptionError; DivergedError where training diverged.  Warns of columns that
    never vary, that tell the target outright or that are row numbers, and of classes of which no row is held out.
    """
    callbacks, progress = options.pop("callbacks", ()), options.pop("progress", None)
    training = prepare(table, target, TrainingOptions(**options))
    for text in training.warnings():
        warnings.warn(text, BpnetWarning, stacklevel=2)
    training.fit(callbacks, progress=progress)
    return training.model


class TableTraining:
    """A training on a table that is ready to begin, and after `fit` what has become of it.

    options, size : what was asked for, and what the number of rows suggests
    frame, y : all rows with a target, as they came; `rows` and `held_out` are the numbers of those that are trained on
        and held out
    seen, unseen : what `Trainer.fit` takes of both: (x, y) or (x, y, weight); unseen is None where none are held out
    model : the `TableModel`
    remarks : what is suspicious about the columns
    wide : what made float64 necessary, None for nothing
    best_epoch : the epoch that was kept, None where no rows are held out or early stopping is off
    """

    def __init__(
        self,
        options: TrainingOptions,
        size: Size,
        frame: Frame,
        y: Any,
        parts: tuple[Array, Array],
        data: tuple[Any, Any],
        model: TableModel,
        design: Design,
        notes: Sequence[str] = (),
        remarks: Sequence[Remark] = (),
        wide: str | None = None,
    ) -> None:
        self.options, self.size, self.frame, self.y, self.model = options, size, frame, y, model
        self.rows, self.held_out = parts
        self.seen, self.unseen = data
        self.design, self.notes, self.remarks, self.wide = design, list(notes), list(remarks), wide
        self.best_epoch: int | None = None
        self.stopping: BestEpoch | None = None

    @property
    def epochs(self) -> int:
        return self.size.epochs

    def warnings(self, drop: Any = None) -> list[str]:
        """What is to be said before the training begins; `drop` says how columns are left out."""
        return [*self.notes, *(remark.text() if drop is None else remark.text(drop) for remark in self.remarks)]

    def fit(self, callbacks: Sequence[Any] = (), progress: bool | None = None) -> History:
        """Train to the end, and keep the best epoch; raises as `Trainer.fit`.

        An interrupt keeps what was learnt until then, or the best epoch where that is better.
        """
        trainer = self.model.trainer
        x, y = self.seen[:2]
        weight = self.seen[2] if len(self.seen) > 2 else None
        left = self.epochs - len(trainer.history)
        stopping = self.begin_stopping()
        own = [] if stopping is None else [stopping]
        if stopping is not None and stopping.waited >= stopping.patience:
            left = 0
        if not trainer.history.epochs:
            self.design.start(trainer, x)
        metrics = list(self.options.metrics)
        if self.design.monitor == "val_accuracy" and "accuracy" not in metrics:
            metrics.append("accuracy")
        more: dict[str, Any] = {"epochs": left, "batch_size": self.size.batch_size, "metrics": metrics}
        more |= {"validation": self.unseen, "sample_weight": weight, "progress": progress}
        try:
            if left > 0:
                trainer.fit(x, y, callbacks=[*own, *callbacks], **more)
        except KeyboardInterrupt:
            self._keep_best(halfway=True)
            raise
        except BaseException:
            self._keep_best()
            raise
        self._keep_best()
        return trainer.history

    def begin_stopping(self) -> "BestEpoch | None":
        """What keeps the best epoch, None where none is to be kept."""
        if self.unseen is not None and self.options.early_stopping:
            self.stopping = self.stopping or BestEpoch(self.size.patience, self.design.monitor)
        return self.stopping

    def _keep_best(self, halfway: bool = False) -> None:
        if self.stopping is None or self.stopping.kept is None:
            return
        trainer = self.model.trainer
        if halfway and self.unseen is not None:
            weight = self.unseen[2] if len(self.unseen) > 2 else None
            now = trainer.evaluate(*self.unseen[:2], sample_weight=weight, batch_size=ROWS)
            if self.stopping.sign * now[self.stopping.monitor.removeprefix("val_")] < self.stopping.best:
                return
        trainer.restore(self.stopping.kept)
        self.best_epoch = self.stopping.best_epoch


class BestEpoch(EarlyStopping):
    """Keeps the best epoch, to which `TableTraining` goes back."""

    def __init__(self, patience: int, monitor: str = "val_loss") -> None:
        super().__init__(monitor, patience, latest=monitor != "val_loss")
        self.best, self.waited, self.best_epoch = math.inf, 0, 0
        self.kept: Snapshot | None = None

    def follow(self, history: History) -> None:
        """Take epochs into account that were trained before."""
        for record in history:
            if self.improved(record):
                self.best_epoch = record["epoch"]

    def on_train_begin(self, trainer: Trainer, epochs: int, steps: int) -> None:
        """As `follow` has left it."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Nothing is restored yet: an interrupted epoch may be better."""


# ---- from a table to a training ------------------------------------------------------------------------------------


def prepare(
    table: Any, target: Any, options: TrainingOptions, parts: tuple[Array, Array] | None = None
) -> TableTraining:
    """The training that `train_table` describes; `parts` are the rows to train on and to hold out, where known."""
    frame = Frame.of(table)
    notes: list[str] = []
    types, y, names = dict(options.types), target, target_names(target, frame)
    name = names[0] if len(names) == 1 else None
    said = types.pop(name, None) if name is not None else None
    if names:
        frame, y, notes, _ = with_target(frame, names)
    for column in options.drop:
        frame.coded(column)  # which says that there is none
    frame = frame.without(options.drop)
    if frame.rows < 2:
        raise DataError(f"{frame.what} has {'a single row' if frame.rows else 'no rows'}: expected at least 2")
    what = f"the target {'' if name is None else f'{name!r} '}of {frame.what}"
    goal, loss = find_goal(y, name, said, options.loss, what)
    labels = class_numbers(goal, y)
    remarks = remarks_on(frame, y, name or "y")
    idle = {column for remark in remarks if remark.kind in ("empty", "constant") for column in remark.names}
    parts = parts or split(frame.rows, options.validation, options.seed, labels)
    size = options.size(len(parts[0]), goal.kind != "number")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schema = Schema.of(frame.take(parts[0]), types, idle)
    notes += [str(warning.message) for warning in caught]
    wide = wide_column(frame, schema, parts[0])
    output = output_for(quantities(goal, y, parts[0]), loss, what)
    wide = wide or (what if output.wide else None)
    if wide is not None:
        schema = replace(schema, dtype="float64")
        if options.precision != "float32":
            raise OptionError(f"precision is {options.precision}, but {wide} needs float64")
    seen, unseen = encoded(schema, frame, parts)
    design = design_of(schema, seen, goal, output, size, options)
    trainer = Trainer(
        design.network,
        design.loss,
        design.optimizer,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        compile=design.compiles(seen, options),
    )
    model = TableModel(schema, goal, trainer, {"split": split_settings(frame.rows, options)})
    trainer.build(first_rows(seen))
    like = trainer.theta if options.device is None else None
    answers, weight = goal.encode(y, loss, like=like), class_weights(goal, y, options.class_weight)
    answers = answers if goal.kind == "class" else as_type(answers, trainer.theta)
    data = [
        (x, *(take(array, rows) for array in (answers, weight) if array is not None)) if len(rows) else None
        for x, rows in ((seen, parts[0]), (unseen, parts[1]))
    ]
    if labels is not None and len(parts[1]):
        notes += rare_classes(labels, parts[1], goal)
    elif options.validation > 0 and not len(parts[1]):
        notes.append("no class has two rows, so that none is held out: what is learnt is not tried on other rows")
    return TableTraining(options, size, frame, y, parts, (data[0], data[1]), model, design, notes, remarks, wide)


def split_settings(rows: int, options: TrainingOptions) -> dict[str, Any]:
    """What `held_out_rows` needs."""
    return {"rows": rows, "fraction": options.validation, "seed": options.seed}


def held_out_rows(model: TableModel, rows: int, y: Any) -> Array | None:
    """The numbers of the rows that were held out of a table when a model was trained on it, None where none were.

    `rows` and y are of that table, y without rows that have none.  Raises ArgumentError, OptionError or LookupError
    where the model's settings are damaged.
    """
    known = model.settings["split"]
    fraction, seed = number("fraction", known["fraction"], 0.0, 1.0, closed="left"), whole("seed", known["seed"], 0)
    if fraction == 0.0 or rows != known["rows"]:
        return None
    found = split(rows, fraction, seed, class_numbers(model.target, y))[1]
    return found if len(found) else None
