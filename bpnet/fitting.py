"""The epochs of `Trainer.fit`: steps, the record of each epoch, the callbacks that are told of them, checkpoints."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array
from bpnet.backends.interrupts import current
from bpnet.callbacks.base import Callback, end, needs_each_step
from bpnet.data.loader import Loader, counting, parts
from bpnet.distributed.agreeing import check_same, same_state, warn_of_drift
from bpnet.distributed.base import LONG, NOTHING, agreed, on_all_ranks, tell
from bpnet.divergence import is_finite_step, what_was_kept
from bpnet.engine import Engine
from bpnet.errors import DivergedError, OptionError
from bpnet.metrics.base import Metric
from bpnet.options import flag, whole
from bpnet.signals import Ended
from bpnet.step import Snapshot, vectors

if TYPE_CHECKING:
    from bpnet.distributed.batches import RankedBatches
    from bpnet.saving import Saving, Stopping
    from bpnet.trainer import Trainer

OF_TRAINER = "loss", "optimizer", "seed", "clip_norm", "penalties", "micro_batch", "step_count", "lr_scale"
"""What of a trainer all ranks must have alike; values that are drawn by each rank for itself are easily others."""
LEAST_EVALUATED = 8192
"""Rows that are evaluated at a time, where batches are smaller."""


class Training:
    """One call of `fit`: what it trains on, whom it tells, and how far it has come.

    Metrics are of all rows of `data` and of `held_out`, by the parameters at the end of an epoch.
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
        drop_last: bool = False,
        saving: "Stopping | None" = None,
    ) -> None:
        self.trainer, self.engine, self.data, self.held_out = trainer, engine, data, held_out
        self.batch_size, self.shuffle, self.listeners, self.metrics = batch_size, shuffle, listeners, metrics
        self.saving, self.ranks = saving, engine.ranks
        self.told = [callback for callback in listeners if self.ranks.rank == 0 or not callback.only_first]
        """The callbacks that this rank has."""
        rows = data.count, 0 if held_out is None else held_out.count
        each = self.ranks.all_gather(rows) if self.ranks.rows == "own" else [rows]
        self.rows, self.rows_held_out = ([row[i] for row in each] for i in range(2))
        """How many rows each rank has, or all of them have together."""
        total = sum(self.rows)
        self.count = total - (total % batch_size if drop_last and total > batch_size else 0)
        """How many rows an epoch takes."""
        self.steps = -(-self.count // batch_size)
        self.parts: RankedBatches | None = None
        if engine.ranked is not None:
            made = import_module("bpnet.distributed.batches").RankedBatches
            self.parts = agreed(self.ranks, made, engine, data, batch_size, self.count, self.rows)
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
        self.drifts = False
        """Whether ranks have been seen to compute other parameters."""
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
        with self.ranks.phase("training"):
            if self.parts is not None:
                self._agree(epochs)
            if self.saving is None:
                self._run(epochs, [])
                return
            try:
                with self.saving.of(self):
                    self._run(epochs, self.saving.take_up(self))
            finally:
                self.saving.close()  # since an interrupt may come before the first line of an `__exit__`

    def _run(self, epochs: int, states: Sequence[tuple[Callback, Any]]) -> None:
        """The same, with what callbacks had kept."""
        trainer, last, ranks = self.trainer, self.begun[0] + epochs, self.ranks
        ended = trainer.stop and not self.losses  # an epoch that was begun is done first
        begun: list[Callback] = []
        try:
            with ranks.phase("callbacks", LONG):
                for callback in self.told:
                    callback.on_train_begin(trainer, max(last - len(trainer.history), 0), self.steps)
                    begun.append(callback)
                for callback, state in states:
                    if callback in begun:
                        callback.load_state_dict(state)
            while len(trainer.history) < last and not ended:
                self._epoch(last)
                ended = trainer.stop
        except BaseException as error:
            tell(ranks, error)  # before callbacks do what may take long
            end(begun, trainer, error)
            raise
        finally:
            trainer.step_loss = None
        with ranks.phase("callbacks", LONG):
            end(begun, trainer)

    def _agree(self, epochs: int) -> None:
        """See that all ranks were given the same, and have rank 0's parameters; signals are for all from now on."""
        from bpnet.saving import Stopping, sample_of

        engine, trainer = self.engine, self.trainer
        self.saving = self.saving or Stopping()
        same = (self.data, self.held_out) if self.ranks.rows == "same" else ()
        with engine.looking():
            data = sample_of(*same)
        given = {
            "the number of rows": self.rows,
            "the number of rows for validation": self.rows_held_out,
            "the data": data,
            "sample_weight": None if self.data.weight is None else "given",
            "the number of parameters": engine.layout.size,
            **{name: getattr(trainer, name) for name in OF_TRAINER},
            "the number of epochs before": len(trainer.history),
            "epochs": epochs,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "shuffle": "a function" if callable(self.shuffle) else self.shuffle,
            "metrics": self.metrics,
            **self.saving.given(),
        }
        check_same(self.ranks, given)
        same_state(engine)

    # ---- an epoch -----------------------------------------------------------------------------------------------

    def _epoch(self, last: int) -> None:
        """One more record in the history, which is to have `last` of them in the end."""
        trainer, engine, history = self.trainer, self.engine, self.trainer.history
        self.started, before = time.perf_counter() - self.seconds, engine.snapshot()
        self._steps(before)
        record: dict[str, Any] = {}
        while not record:
            try:
                # but what ranks do together, none of them breaks off
                whole = self.saving is None or self.parts is not None
                ending = nullcontext() if whole else self.saving.signals.ending_at_once()  # type: ignore[union-attr]
                with ending, self.ranks.phase("an evaluation", LONG):
                    record = self.ranks.broadcast(self._record(before))
            except Ended:
                assert self.saving is not None
                self.saving.save(self)
        history.epochs.append(record)
        self.losses, self.order, self.seconds = [], None, 0.0
        for callback in self.told:
            # bpnet's own may wait for a disk or a server, but never hang; of others nobody knows
            own = type(callback).__module__.startswith("bpnet.")
            with self.ranks.phase("callbacks", LONG) if own else NOTHING:
                callback.on_epoch_end(trainer, record)
        if self.parts is not None:
            self._agree_after_epoch()
        if self.saving is not None:
            self.saving.after_epoch(self, last=len(history) == last or trainer.stop)

    def _agree_after_epoch(self) -> None:
        """See that all ranks still have the same, whatever callbacks have done on some of them."""
        trainer, engine, ranks = self.trainer, self.engine, self.ranks
        if not same_state(engine) and not self.drifts:
            self.drifts = True
            warn_of_drift(ranks)
        told = self.saving is not None and self.saving.signals.number > 0
        stops, scales, signals = zip(*ranks.all_gather((trainer.stop, engine.lr_scale, told)), strict=True)
        trainer.stop, engine.lr_scale = any(stops), scales[0]
        assert engine.ranked is not None
        engine.ranked.stopping = any(signals)

    def _steps(self, before: Snapshot) -> None:
        """Do the steps of the epoch that are left, and know their losses.

        Where several steps are done by one launch, callbacks are told of them, and a checkpoint is written, once all of
        them are done.
        """
        trainer, engine, data = self.trainer, self.engine, self.data
        backend, first = engine.backend, len(self.losses)
        singly = any(map(needs_each_step, self.told)) or data.streams or current.reference or self.parts is not None
        singly = singly or not engine.optimizer.traceable or engine.sparse is not None
        together, whole = 1 if singly else backend.max_steps_per_launch, self.count // self.batch_size
        if whole < together:
            together = max(whole, 1) if self.shuffle else 1  # in their order, few batches are read where they lie
        if self.order is None and (self.shuffle or together > 1 or self.count < data.count or data.lazy):
            self.order = self._order()
        if self.parts is not None:
            self.sizes = self.parts.begin(self.order)
        pending: list[Array] = []
        listeners, saving = self.told, self.saving
        todo: AbstractContextManager[Any] = (
            closing(self._advance(first, together)) if first < self.steps else nullcontext(())
        )
        with engine.session(min(self.batch_size, self.count), self.steps - first), todo as steps:
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
            if self.parts is None:
                self.sizes = data.sizes(self.batch_size, self.order)  # while a device computes
            self._fetch(pending, before, first)

    def _order(self) -> Any:
        """That of the rows in an epoch."""
        seed, epoch = self.engine.seed, len(self.trainer.history)
        if self.parts is not None:
            return self.parts.order_of(seed, epoch, self.shuffle)
        return self.data.order(seed, epoch, self.shuffle, self.batch_size)[: self.count]

    def _advance(self, first: int, together: int) -> Iterator[Array]:
        """Do the steps after so many, `together` by one launch where the backend can: their losses."""
        engine, size = self.engine, self.batch_size
        for batch in self._batches(together * size, first):
            if together == 1:
                yield engine.advance(*batch)
                continue
            x, y, weight, rows = batch
            assert rows is not None
            full, cut = rows.shape[0] == together * size, parts(rows.shape[0], size)
            losses = engine.run_steps(x, y, weight, rows, together) if full else None
            for i, (start, stop) in enumerate(cut):
                self.launched = losses is not None and i < len(cut) - 1
                yield engine.advance(x, y, weight, rows[start:stop]) if losses is None else losses[i]

    def _batches(self, size: int, first: int) -> Iterator[Any]:
        """Batches of `size` rows, without those of the first so many steps; of several ranks, this one's parts."""
        if self.parts is not None:
            return self.parts.batches(first)
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
            self.ranks.check()
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
        mean = sum(v * n for v, n in zip(losses, self.sizes, strict=True)) / counting(sum(self.sizes))
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
            return engine.evaluate(data, size, self.metrics, None if self.parts is None else self.ranks)
        except DivergedError as error:
            step = engine.count
            engine.restore(before)
            kept = what_was_kept(engine.backend, engine.state.now)
            text = f"training diverged at step {step} or before, as the {which} data show: {error}. {kept}"
            raise on_all_ranks(DivergedError(text), self.ranks) from error

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
