"""A learning rate that a network learns well with, from one short training in which it grows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpnet.backends.interrupts import ends_sessions
from bpnet.data.loader import row_order
from bpnet.data.prepare import named
from bpnet.errors import OptionError
from bpnet.locking import locked
from bpnet.options import number, positive, whole
from bpnet.state import check_trainer
from bpnet.trainer import Trainer
from bpnet.typing import AnyArray

SMOOTHING = 0.9
"""Of the running mean of the losses."""
DIVERGED = 4.0
"""The search ends where the loss is so many times the smallest."""


@dataclass(frozen=True)
class LearningRateCurve:
    """What `find_learning_rate` saw: at each of the growing `rates` the loss before the step, and its mean."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the running mean is least, a common rule: there the loss still falls fast."""
        return 0.1 * self.rates[self.smoothed.index(min(self.smoothed))]


@ends_sessions
def find_learning_rate(
    trainer: Trainer,
    x: AnyArray,
    y: AnyArray,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    batch_size: int = 256,
    sample_weight: AnyArray | None = None,
) -> LearningRateCurve:
    """Train for `steps` steps with learning rates that grow from `low` to `high`, and go back (Smith 2017).

        curve = bp.find_learning_rate(trainer, x, y)
        curve.suggestion                                # or plot curve.smoothed against curve.rates

    The rates grow by the same factor from step to step, and end early once the loss is 4 times its least or is not
    finite.  Every rate of the optimizer, as of a group's, is multiplied alike.  The trainer is afterwards as it was
    before; where it had no parameters, it has none.

    Raises what `Trainer.fit` raises on unfit data, and OptionError where the optimizer's learning rate is 0.
    """
    low, high = positive("low", low), number("high", high, float(low), math.inf, closed="neither")
    steps, batch_size = whole("steps", steps, 2), whole("batch_size", batch_size)
    return _find(check_trainer(trainer), named(x, y, sample_weight), low, high, steps, batch_size)


@locked("train")
def _find(
    trainer: Trainer, given: Mapping[str, Any], low: float, high: float, steps: int, batch_size: int
) -> LearningRateCurve:
    before = trainer._engine
    data = trainer._prepare(given)
    engine = before or trainer._start(data)
    own, snapshot = (engine.lr_scale, engine.scheduled, engine.of_others), engine.snapshot()
    rates: list[float] = []
    losses: list[float] = []
    means: list[float] = []
    mean = 0.0
    try:
        engine.set_epoch(-(-data.count // batch_size))
        with engine.session(min(batch_size, data.count), steps):
            for batch in _batches(trainer.seed, data, batch_size, steps):
                rate = low * (high / low) ** (len(rates) / (steps - 1))
                usual = engine.scheduled.learning_rate(engine.count)
                if not usual:
                    raise OptionError(
                        f"the optimizer's learning rate of step {engine.count + 1} is 0: give it another, which will "
                        "be multiplied"
                    )
                engine.lr_scale = rate / usual
                (loss,) = engine.backend.fetch([engine.advance(*batch)])
                if not math.isfinite(loss):
                    break
                mean = SMOOTHING * mean + (1.0 - SMOOTHING) * loss
                rates.append(rate)
                losses.append(loss)
                means.append(mean / (1.0 - SMOOTHING ** len(rates)))
                if loss > DIVERGED * min(means):
                    break
    finally:
        engine.lr_scale, engine.scheduled, engine.of_others = own
        engine.restore(snapshot)
        trainer._engine = before
    return LearningRateCurve(tuple(rates), tuple(losses), tuple(means))


def _batches(seed: int, data: Any, batch_size: int, steps: int) -> Any:
    """So many batches, in as many epochs as that takes."""
    epoch = 0
    while True:
        for batch in data.batches(batch_size, row_order(seed, epoch, data.count, True)):
            if steps == 0:
                return
            steps -= 1
            yield batch
        epoch += 1
