"""scikit-learn's callbacks, from its version 1.9 on: what a fit tells them of.

A fit is a task, named "fit", and every epoch is a task within it, named "epoch"; of L-BFGS every iteration.
"""

import copy
from collections.abc import Callable
from typing import Any

from bpnet.callbacks.base import Callback
from bpnet.trainer import Trainer

__all__ = ["CallbackSupportMixin", "Tasks", "tasks", "with_callbacks"]

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """There are no callbacks to support."""

    def with_callbacks(method: Any) -> Any:
        """The method as it is."""
        return method


class Tasks(Callback):
    """Tells scikit-learn's callbacks of a fit, of an estimator that has some, and ends it where one asks for it."""

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        self.estimator, self.done, self.epochs = estimator, 0, estimator.max_iter
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        self.data = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self.fit = estimator._init_callback_context(max_subtasks=estimator.max_iter)
        self.fit.call_on_fit_task_begin(**self.data)
        self.epoch: Any = None

    def on_train_begin(self, trainer: Trainer, epochs: int, steps: int) -> None:
        self.epochs = epochs
        self.begin()

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if self.ended(lambda: copy.copy(trainer)):
            trainer.stop = True
        if not trainer.stop and self.done < self.epochs:
            self.begin()

    def begin(self) -> None:
        """That an epoch begins."""
        self.epoch = self.fit.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(**self.data)

    def ended(self, trainer: Callable[[], Trainer]) -> bool:
        """That an epoch has ended; whether a callback wants it to be the last.  `trainer` gives a copy of its own."""
        epoch, self.epoch, self.done = self.epoch, None, self.done + 1
        return bool(epoch.call_on_fit_task_end(**self.data, reconstruction_attributes=lambda: {"_trainer": trainer()}))

    def close(self) -> None:
        """That the fit has ended; an epoch that was begun in vain ends too."""
        if self.epoch is not None:
            self.epoch.call_on_fit_task_end(estimator=self.estimator)
        self.fit.call_on_fit_task_end(**self.data, reconstruction_attributes=dict)


def tasks(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Tasks | None:
    """What tells the callbacks of the estimator of its fit; None where it has none."""
    has = hasattr(estimator, "_skl_callbacks") or hasattr(estimator, "_parent_callback_ctx")
    return Tasks(estimator, X, y, sample_weight) if has else None
