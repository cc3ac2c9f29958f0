"""A training on a table that is ready to begin: it fits, keeps the best epoch, and holds what came of it."""

import math
import os
from collections.abc import Sequence
from typing import Any

from bpnet.backends import Array
from bpnet.callbacks.history import History
from bpnet.callbacks.monitors import EarlyStopping
from bpnet.files.folder import Folder
from bpnet.step import Snapshot
from bpnet.tabular.design import Design
from bpnet.tabular.frames import Frame
from bpnet.tabular.goals import rows_of
from bpnet.tabular.model import TableModel
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.remarks import Remark
from bpnet.tabular.sizing import Size
from bpnet.trainer import Trainer

ROWS = 1 << 14
"""Rows that are evaluated at a time."""


class BestEpoch(EarlyStopping):
    """Keeps the best epoch, to which `TableTraining` goes back."""

    def __init__(self, patience: int, monitor: str = "val_loss") -> None:
        super().__init__(monitor, patience, latest=monitor != "val_loss")
        self.best, self.waited, self.best_epoch = math.inf, 0, 0
        self.kept: Snapshot | None = None

    def on_train_begin(self, trainer: Trainer, epochs: int, steps: int) -> None:
        """As it was made, or as the last `fit` has left it."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Nothing is restored yet: an interrupted epoch may be better."""


class TableTraining:
    """A training on a table that is ready to begin, and after `fit` its outcome.

    options, size : what was asked for, and what the number of rows suggests
    frame, y : all rows with a target, as they came; `rows` and `held_out` are the numbers of those that are trained on
        and held out
    seen, unseen, apart : these rows, and those that are kept apart, as `Trainer.fit` takes them: (x, y) or
        (x, y, weight), or a stream alone; None where there are none
    model : the `TableModel`
    sample : rows that are trained on, as the network takes them: all of them, or some of a stream
    judged : rows by which the model is judged, as (x, y): those held out, or where none are `sample`
    remarks : what is suspicious about the columns
    wide : what made float64 necessary, None where nothing did
    best_epoch : the epoch that was kept, None where no rows are held out or early stopping is off
    """

    def __init__(
        self,
        options: TrainingOptions,
        size: Size,
        frame: Frame,
        y: Any,
        parts: tuple[Array, Array],
        data: Sequence[Any],
        model: TableModel,
        design: Design,
        notes: Sequence[str] = (),
        remarks: Sequence[Remark] = (),
        wide: str | None = None,
    ) -> None:
        self.options, self.size, self.frame, self.y, self.model = options, size, frame, y, model
        self.rows, self.held_out = parts
        self.seen, self.unseen, self.apart = data if len(data) > 2 else (*data, None)
        self.design, self.notes, self.remarks, self.wide = design, list(notes), list(remarks), wide
        self.best_epoch: int | None = None
        self.stopping: BestEpoch | None = None
        self.sample: Any = self.seen[0]
        self.judged: Sequence[Any] = self.unseen or self.seen

    @property
    def epochs(self) -> int:
        return self.size.epochs

    @property
    def judged_y(self) -> Any:
        """The target of the rows by which the model is judged, as it came."""
        return rows_of(self.y, self.held_out if len(self.held_out) else self.rows)

    def warnings(self, drop: Any = None) -> list[str]:
        """Warnings to give before the training begins; `drop` says how columns are left out."""
        return [*self.notes, *(remark.text() if drop is None else remark.text(drop) for remark in self.remarks)]

    def fit(
        self,
        callbacks: Sequence[Any] = (),
        progress: bool | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int | None = None,
        resume: bool = False,
    ) -> History:
        """Train to the end and keep the best epoch; raises what `Trainer.fit` raises.

        An interrupt keeps what was learnt so far, or the best epoch if that is better.
        """
        trainer = self.model.trainer
        weight = self.seen[2] if len(self.seen) > 2 else None
        left = self.epochs if resume else self.epochs - len(trainer.history)
        stopping = self.begin_stopping()
        own = [] if stopping is None else [stopping]
        if not trainer.history.epochs:
            self.design.start(trainer, self.sample)
        metrics = list(self.options.metrics)  # each of which takes another pass over the rows that are trained on
        more: dict[str, Any] = {"epochs": left, "batch_size": self.size.batch_size, "metrics": metrics}
        more["drop_last"] = self.design.recipe is not None  # at its high rates, a step by a few rows would lead far off
        more |= {"validation": self.unseen, "sample_weight": weight, "progress": progress}
        if resume or checkpoint is not None or every is not None:
            folder = None if checkpoint is None else self.folder(checkpoint)
            more |= {"checkpoint": folder, "every": every, "resume": resume}
        try:
            if left > 0:
                trainer.fit(*self.seen[:2], callbacks=[*own, *callbacks], **more)
        except KeyboardInterrupt:
            self._keep_best(halfway=True)
            raise
        except BaseException:
            self._keep_best()
            raise
        self._keep_best()
        return trainer.history

    def folder(self, path: str | os.PathLike[str]) -> Folder:
        """Of checkpoints of its model, with what makes it up besides the table and the network."""
        weight = self.options.class_weight
        named = weight if weight is None or isinstance(weight, str) else sorted((str(k), v) for k, v in weight.items())
        stopping = "on" if self.unseen is not None and self.options.early_stopping else "off"
        return Folder(path, self.model.describe, {"class_weight": named, "early_stopping": stopping})

    def begin_stopping(self) -> BestEpoch | None:
        """The callback that keeps the best epoch, None where none is to be kept."""
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
