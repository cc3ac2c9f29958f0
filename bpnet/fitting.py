"""The epochs of `Trainer.fit`: steps, the record of each epoch, the callbacks that are told of them, checkpoints."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array
from bpnet.backends.interrupts import current
from bpnet.callbacks.base import Callback, end, needs_each_step
from bpnet.data.loader import Batch, Loader, parts
from bpnet.divergence import is_finite_step, what_was_kept
from bpnet.engine import Engine
from bpnet.errors import DivergedError, OptionError
from bpnet.metrics.base import Metric
from bpnet.options import flag, whole
from bpnet.signals import Ended
from bpnet.step import Snapshot, vectors

if TYPE_CHECKING:
    from bpnet.saving import Saving
    from bpnet.trainer import Trainer

LEAST_EVALUATED = 8192
"""Rows that are evaluated at a time, where batches are smaller."""


class Training:
    """One call of `fit`: what it trains on, whom it tells, and how far it has come.

    `count` is how many rows an epoch takes; metrics are of all rows of `data` and of `held_out`, by the parameters at
    the end of an epoch.
    """

    def __init__(
        self,
        trainer: "Trainer",
        engine: Engine,
        data: Loader,
        held_out: Loader | None = None,
        *,
        batch_size: int,
        shuffle: bool | Callable[[int], Any],
        listeners: Sequence[Callback],
        metrics: tuple[Metric, ...] = (),
        count: int | None = None,
        saving: "Saving | None" = None,
    ) -> None:
        self.trainer, self.engine, self.data, self.held_out = trainer, engine, data, held_out
        self.batch_size, self.shuffle, self.listeners, self.metrics = batch_size, shuffle, listeners, metrics
        self.count = data.count if count is None else count
        self.steps = -(-self.count // batch_size)
        self.saving = saving
        self.begun = len(trainer.history), engine.count
        """How many epochs and steps there had been before the training began."""
        # of the epoch that runs:
        self.losses: list[float] = []
        """Those of its steps, as far as the host knows them."""
        self.order: Any = None
        """The order of its rows; None: as they lie."""
        self.sizes: list[float] = []
        """How much its batches weigh."""
        self.launched = False
        """Whether more steps have been launched than anybody has been told of."""
        self.seconds = self.started = 0.0
        """How long it had taken when it was taken up, and when it would have begun, had it never been interrupted."""

    @property
    def number(self) -> int:
        """How many steps there have been, as far as the host knows their losses, whatever callbacks went back to."""
        epochs, steps = self.begun
        return steps + (len(self.trainer.history) - epochs) * self.steps + len(self.losses)

    def run(self, epochs: int) -> None:
        """Train for so many epochs; where it goes on from a checkpoint, for those of them that are left."""
        self.trainer.stop = False
        if self.saving is None:
            self._run(epochs, [])
        else:
            try:
                with self.saving:
                    self._run(epochs, self.saving.take_up(self))
            finally:
                self.saving.close()  # since an interrupt may come before the first line of an `__exit__`

    def _run(self, epochs: int, states: Sequence[tuple[Callback, Any]]) -> None:
        """The same, with what callbacks had kept."""
        trainer, last = self.trainer, self.begun[0] + epochs
        ended = trainer.stop and not self.losses  # an epoch that was begun is done first
        begun: list[Callback] = []
        try:
            for callback in self.listeners:
                callback.on_train_begin(trainer, max(last - len(trainer.history), 0), self.steps)
                begun.append(callback)
            for callback, state in states:
                callback.load_state_dict(state)
            while len(trainer.history) < last and not ended:
                self._epoch(last)
                ended = trainer.stop
        except BaseException as error:
            end(begun, trainer, error)
            raise
        finally:
            trainer.step_loss = None
        end(begun, trainer)

    # ---- an epoch -----------------------------------------------------------------------------------------------

    def _epoch(self, last: int) -> None:
        """One more record in the history, which is to have `last` of them in the end."""
        trainer, engine, history = self.trainer, self.engine, self.trainer.history
        self.started, before = time.perf_counter() - self.seconds, engine.snapshot()
        self._steps(before)
        record: dict[str, Any] = {}
        while not record:
            try:
                with nullcontext() if self.saving is None else self.saving.signals.ending_at_once():
                    record = self._record(before)
            except Ended:
                assert self.saving is not None
                self.saving.save(self)
        history.epochs.append(record)
        self.losses, self.order, self.seconds = [], None, 0.0
        for callback in self.listeners:
            callback.on_epoch_end(trainer, record)
        if self.saving is not None:
            self.saving.after_epoch(self, last=len(history) == last or trainer.stop)

    def _steps(self, before: Snapshot) -> None:
        """Do the steps of the epoch that are left, and know their losses.

        Where several steps are done by one launch, callbacks are told of them, and a checkpoint is written, once all of
        them are done.
        """
        trainer, engine, data = self.trainer, self.engine, self.data
        backend, first = engine.backend, len(self.losses)
        singly = any(map(needs_each_step, self.listeners)) or data.streams or current.reference
        singly = singly or not engine.optimizer.traceable or engine.sparse is not None
        together, whole = 1 if singly else backend.max_steps_per_launch, self.count // self.batch_size
        if whole < together:
            together = max(whole, 1) if self.shuffle else 1  # in their order, few batches are read where they lie
        if self.order is None and (self.shuffle or together > 1 or self.count < data.count):
            order = data.order(engine.seed, len(trainer.history), self.shuffle, self.batch_size)
            self.order = order[: self.count]
        pending: list[Array] = []
        listeners, saving = self.listeners, self.saving
        with engine.session(min(self.batch_size, self.count), self.steps - first):
            steps = self._advance(first, together) if first < self.steps else ()
            for step, loss in enumerate(steps, first + 1):
                pending.append(loss)
                if listeners:
                    trainer.step_loss, left = loss, engine.state.now
                    for callback in listeners:
                        callback.on_step_end(trainer, step)
                    if engine.state.now is not left:
                        engine.check_callbacks(left)
                if saving is None or self.launched or step == self.steps:
                    continue
                if saving.due(self.number + len(pending)):
                    self._fetch(pending, before, first)
                    saving.save(self)
            self.sizes = data.sizes(self.batch_size, self.order)  # while a device computes
            self._fetch(pending, before, first)

    def _advance(self, first: int, together: int) -> Iterator[Array]:
        """Do the steps after so many, `together` by one launch where the backend can: their losses."""
        engine, size = self.engine, self.batch_size
        for x, y, weight, rows in self._batches(together * size, first):
            if together == 1:
                yield engine.advance(x, y, weight, rows)
                continue
            assert rows is not None
            full, cut = rows.shape[0] == together * size, parts(rows.shape[0], size)
            losses = engine.run_steps(x, y, weight, rows, together) if full else None
            for i, (start, stop) in enumerate(cut):
                self.launched = losses is not None and i < len(cut) - 1
                yield engine.advance(x, y, weight, rows[start:stop]) if losses is None else losses[i]

    def _batches(self, size: int, first: int) -> Iterator[Batch]:
        """Batches of `size` rows, without those of the first so many steps."""
        done = first * self.batch_size
        if self.order is not None:
            return self.data.batches(size, self.order[done:])
        if self.data.streams and done:  # none of the others is to be copied
            return self.data.batches(size, range(done, self.count))
        return itertools.islice(self.data.batches(size), first, None)

    def _fetch(self, pending: list[Array], before: Snapshot, first: int) -> None:
        """Have the losses on the host; raises DivergedError where one of them, or what the steps left, is not finite.

        `before` is what the steps after the first so many of the epoch went on from.
        """
        engine, backend = self.engine, self.engine.backend
        if not pending:
            return
        with engine.looking():
            arrays = vectors(engine.carry)
            known = backend.fetch([*pending, *[backend.xp.sum(array) for array in arrays]])
        values = known[: len(pending)]
        finite = all(map(math.isfinite, values)) and (
            all(map(math.isfinite, known)) or is_finite_step(backend, pending[-1], arrays, before[0])
        )
        if not finite:
            engine.repeat(self._batches(self.batch_size, first), before)
        self.losses += values
        pending.clear()

    def _record(self, before: Snapshot) -> dict[str, Any]:
        """The record of the epoch whose steps are done.  Where its metrics are NaN, go back to `before` and raise."""
        engine, held_out, metrics, losses = self.engine, self.held_out, self.metrics, self.losses
        mean = sum(v * n for v, n in zip(losses, self.sizes, strict=True)) / sum(self.sizes)
        record = {
            "epoch": len(self.trainer.history) + 1,
            "step": engine.count,
            "loss": mean if engine.loss.reduction == "mean" else sum(losses),
            "lr": engine.scheduled.learning_rate(engine.count - 1) * engine.lr_scale,
            "matmul_precision": "float64" if engine.carry[0].dtype == engine.backend.xp.float64 else engine.precision,
        }
        if metrics:
            found = self._evaluate(self.data, before, "training")
            record |= {metric.key: found[metric.key] for metric in metrics}
        if held_out is not None:
            found = self._evaluate(held_out, before, "validation")
            record |= {f"val_{name}": value for name, value in found.items()}
        return record | {"seconds": time.perf_counter() - self.started}

    def _evaluate(self, data: Loader, before: Snapshot, which: str) -> dict[str, Any]:
        """Loss and metrics of some data after an epoch; where the loss is NaN, go back to `before`."""
        engine, size = self.engine, self.trainer.micro_batch or max(self.batch_size, LEAST_EVALUATED)
        try:
            return engine.evaluate(data, size, self.metrics)
        except DivergedError as error:
            step = engine.count
            engine.restore(before)
            raise DivergedError(
                f"training diverged at step {step} or before, as the {which} data show: {error}. "
                f"{what_was_kept(engine.backend, engine.state.now)}"
            ) from error

    def elapsed(self) -> float:
        """Seconds that the epoch has taken so far, where one runs."""
        return time.perf_counter() - self.started if self.losses else 0.0


def checked_saving(checkpoint: Any, every: Any, keep: Any, resume: Any) -> "Saving | None":
    """What these arguments of `fit` mean; raises ArgumentError or OptionError."""
    every = None if every is None else whole("every", every, 1)
    keep, resume = whole("keep", keep, 1), flag("resume", resume)
    if checkpoint is None:
        if resume or every is not None:
            raise OptionError(f"{'resume' if resume else 'every'} is given, but no folder: pass checkpoint= too")
        return None
    from bpnet.files.folder import Folder
    from bpnet.saving import Saving

    return Saving(Folder.of(checkpoint), every, keep, resume)
