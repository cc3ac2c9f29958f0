"""The epochs of `Trainer.fit`: steps, the record of each epoch, and the callbacks that are told of them."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array
from bpnet.callbacks.base import Callback, end, needs_each_step
from bpnet.data.loader import Loader
from bpnet.engine import Engine
from bpnet.metrics.base import Metric

if TYPE_CHECKING:
    from bpnet.trainer import Trainer

LEAST_EVALUATED = 8192
"""Rows that are evaluated at a time, where batches are smaller."""


def run_epochs(
    trainer: "Trainer",
    engine: Engine,
    data: Loader,
    held_out: Loader | None,
    *,
    epochs: int,
    batch_size: int,
    shuffle: bool | Callable[[int], Any],
    metrics: tuple[Metric, ...],
    listeners: Sequence[Callback],
    count: int | None = None,
) -> None:
    """Train on all rows of `data` so many times, or `count` of them, and each time add a record to the history.

    Metrics are of all rows of `data` and of `held_out`, by the parameters at the end of the epoch.
    """
    singly, evaluated = any(map(needs_each_step, listeners)), trainer.micro_batch or max(batch_size, LEAST_EVALUATED)
    begun: list[Callback] = []
    count = data.count if count is None else count

    def after(step: int, loss: Array) -> None:
        trainer.step_loss = loss
        for callback in listeners:
            callback.on_step_end(trainer, step)

    try:
        for callback in listeners:
            callback.on_train_begin(trainer, epochs, -(-count // batch_size))
            begun.append(callback)
        for _ in range(epochs):
            started, before = time.perf_counter(), engine.snapshot()
            record = engine.epoch(data, batch_size, len(trainer.history), shuffle, singly, after, before, count)
            if metrics:
                found = engine.validate(data, evaluated, before, metrics, "training")
                record |= {metric.key: found[metric.key] for metric in metrics}
            if held_out is not None:
                found = engine.validate(held_out, evaluated, before, metrics)
                record |= {f"val_{name}": value for name, value in found.items()}
            record["seconds"] = time.perf_counter() - started
            trainer.history.epochs.append(record)
            for callback in listeners:
                callback.on_epoch_end(trainer, record)
            if trainer.stop:
                break
    except BaseException as error:
        end(begun, trainer, error)
        raise
    finally:
        trainer.step_loss = None
    end(begun, trainer)
