"""A metric of one of several heads."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError
from bpnet.layer import Run, Shape
from bpnet.losses.base import Loss
from bpnet.losses.heads import Heads
from bpnet.metrics.base import Metric, Statistics
from bpnet.options import whole
from bpnet.registry import resolve


@dataclass(frozen=True)
class OfHead(Metric):
    """A metric of the head of that number, from 0 on, of the loss `Heads`; it is called `head_0_accuracy` and so on."""

    head: int
    metric: Metric

    def __post_init__(self) -> None:
        self._set(head=whole("head", self.head, 0), metric=resolve(Metric, "metric", self.metric))

    @property
    def key(self) -> str:
        return f"head_{self.head}_{self.metric.key}"

    @property
    def keeps_rows(self) -> bool:  # type: ignore[override]
        return self.metric.keeps_rows

    def check(self, loss: Loss, out_shape: Shape) -> None:
        if not isinstance(loss, Heads) or self.head >= len(loss.heads):
            raise OptionError(f"{self.key} is of a head that {loss} does not have")
        head = loss.heads[self.head]
        self.metric.check(head.loss, (head.outputs,))

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        assert isinstance(loss, Heads)
        head, some, y = loss.of_heads(run, output, target)[self.head]
        return self.metric.statistics(run, head.loss, some, y, weight)

    def combine(self, b: Backend, some: Statistics, more: Statistics) -> Statistics:
        return self.metric.combine(b, some, more)

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        assert isinstance(loss, Heads)
        return self.metric.result(xp, loss.heads[self.head].loss, *statistics)
