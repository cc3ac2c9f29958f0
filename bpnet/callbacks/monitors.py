"""What follows a recorded quantity: it stops the training, changes its rate, or keeps the best networks."""

import math
from typing import TYPE_CHECKING, Any

from bpnet.callbacks.base import Callback, Record
from bpnet.callbacks.history import unrecorded
from bpnet.errors import OptionError, shown
from bpnet.metrics.base import larger_is_better
from bpnet.options import flag, number, whole

if TYPE_CHECKING:
    from bpnet.step import Snapshot
    from bpnet.trainer import Trainer


class Monitors(Callback):
    """What follows a recorded quantity.

    Which is better, larger or smaller, is what the metric of that name says; of any other quantity smaller is, unless
    its name ends in "accuracy".
    """

    def __init__(self, monitor: str) -> None:
        if not isinstance(monitor, str):
            raise OptionError(
                f"monitor is {shown(monitor)}; expected the name of a recorded quantity, such as 'val_loss'"
            )
        self.monitor = monitor
        self.sign = -1.0 if larger_is_better(monitor) else 1.0

    def value(self, record: Record) -> float:
        """The quantity, so that smaller is better."""
        name = type(self).__name__
        if self.monitor not in record:
            text = unrecorded(f"{name} monitors {shown(self.monitor)}, which is not recorded", self.monitor, record)
            raise OptionError(f"{text}. What begins with val_ needs validation=")
        try:
            return self.sign * float(record[self.monitor])
        except (TypeError, ValueError):
            raise OptionError(
                f"{name} monitors {shown(self.monitor)}, which is {shown(record[self.monitor])}; expected a number"
            ) from None


class _Waits(Monitors):
    """What does something when the quantity has not become better for a while."""

    def __init__(self, monitor: str, patience: int, min_delta: float) -> None:
        super().__init__(monitor)
        self.patience = whole("patience", patience, 1)
        self.min_delta = number("min_delta", min_delta, 0.0, math.inf, closed="left")

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self.best, self.waited = math.inf, 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def improved(self, record: Record) -> bool:
        """Whether the quantity is better than ever by `min_delta`; else `waited` counts one epoch more."""
        value = self.value(record)
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False


class EarlyStopping(_Waits):
    """Stop when `monitor` has not become better by `min_delta` for `patience` epochs; then restore the best parameters.

    Which is better, larger or smaller, is what the metric of that name says; of any other quantity smaller is, unless
    its name ends in "accuracy".  Of epochs that are equally good the first counts; with `latest` the last is restored,
    which for an accuracy of few rows is better trained.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0, latest: bool = False
    ) -> None:
        super().__init__(monitor, patience, min_delta)
        self.latest = flag("latest", latest)

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        super().on_train_begin(trainer, epochs, steps)
        self.kept: Snapshot | None = None
        self.best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"kept": self.kept, "best_epoch": self.best_epoch}

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        better = self.improved(record)
        if better or (self.latest and self.value(record) == self.best):
            self.kept = trainer.snapshot()
            self.best_epoch = record["epoch"]
        if not better:
            trainer.stop = trainer.stop or self.waited >= self.patience

    def on_train_end(self, trainer: "Trainer") -> None:
        if self.kept is not None:
            trainer.restore(self.kept)


class ReduceOnPlateau(_Waits):
    """Multiply the learning rate by `factor` when `monitor` has not become better by `min_delta` for `patience` epochs.

    It does so by `trainer.lr_scale`, which it takes no lower than `least`, and then begins to count again.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        least: float = 1e-4,
    ) -> None:
        super().__init__(monitor, patience, min_delta)
        self.factor = number("factor", factor, 0.0, 1.0, closed="neither")
        self.least = number("least", least, 0.0, 1.0, closed="left")

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        if not self.improved(record) and self.waited >= self.patience:
            trainer.lr_scale = max(trainer.lr_scale * self.factor, min(self.least, trainer.lr_scale))
            self.waited = 0
