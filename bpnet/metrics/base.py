"""What all metrics share: sums over rows, made on the device block by block, of which a number comes at the end.

    statistics(run, loss, output, target, weight) -> arrays     of some rows
    combine(backend, some, more) -> arrays                      of two lots of rows; by default their sums
    result(xp, loss, *arrays) -> number                         of all, in float64

Sums lie on the host by then.  So a metric needs no more memory for more rows, but for those that sort: they keep rows
(`keeps_rows`), which stay where they were computed; on a device without float64 they come to the host too.
"""

import re
from typing import Any, ClassVar

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, OptionError, kind_of
from bpnet.layer import Run, Shape
from bpnet.losses.base import Loss
from bpnet.losses.classes import ClassLoss
from bpnet.names import define
from bpnet.registry import Registered, catalogue, resolve

Statistics = tuple[Array, ...]


class Metric(Registered, kind="metric"):
    """Base of the metrics: frozen dataclasses of options, each in three methods; see `bpnet.metrics.base`."""

    needs: ClassVar[tuple[str, ...]] = ("statistics", "result")

    larger_is_better: ClassVar[bool] = True
    """Whether `EarlyStopping` waits for it to rise."""
    keeps_rows: ClassVar[bool] = False
    """Whether the statistics have an entry for every row, which are joined, not added up."""
    of: ClassVar[tuple[str, ...]] = ("classes", "labels", "numbers")
    """What it can be of: one of several classes, outputs that are each true or false, numbers."""

    @property
    def key(self) -> str:
        """What it is called in the history and in what `evaluate` gives: the name that stands for it, if one does."""
        return next(iter(self.names), type(self).__name__)

    def check(self, loss: Loss, out_shape: Shape) -> None:
        """Raise OptionError where it means nothing for such outputs."""
        kind = kind_of_target(loss)
        if kind not in self.of:
            takes = " or ".join(KINDS[name] for name in self.of)
            given = KINDS.get(kind, "neither (of one of several heads, take metrics.OfHead(head, metric))")
            raise OptionError(f"the metric {self.key} is for {takes}, but the loss {loss} is for {given}")

    def statistics(self, run: Run, loss: Loss, output: Array, target: Array, weight: Array) -> Statistics:
        """What is needed of these rows; `weight` has a number for each.  Rows of weight 0 must change nothing."""
        raise NotImplementedError

    def combine(self, b: Backend, some: Statistics, more: Statistics) -> Statistics:
        """The statistics of the rows of both, in this order; what they are made of may be given up."""
        if self.keeps_rows:
            return tuple(b.xp.concat([a, c]) for a, c in zip(some, more, strict=True))
        return tuple(b.add_to(a, c) for a, c in zip(some, more, strict=True))

    def result(self, xp: Any, loss: Loss, *statistics: Array) -> Any:
        """The metric of all rows: a number, or nested lists of them."""
        raise NotImplementedError


COLUMNS = ("epoch", "step", "loss", "lr", "matmul_precision", "seconds")
"""What an epoch's record has besides metrics; of validation data it has the loss and all metrics after "val_"."""

KINDS = {"classes": "one of several classes", "labels": "what is true or false", "numbers": "numbers"}


def kind_of_target(loss: Loss) -> str:
    """One of KINDS, or "nothing"."""
    if isinstance(loss, ClassLoss):
        return "classes"
    if loss.boundary is not None:
        return "labels"
    return "numbers" if loss.predicts else "nothing"


def check_metrics(metrics: Any, loss: Loss, out_shape: Shape) -> tuple[Metric, ...]:
    """The metrics that a list of names and objects means; raises ArgumentError, UnknownNameError or OptionError."""
    if not isinstance(metrics, list | tuple):
        raise ArgumentError(f"metrics is {kind_of(metrics)}; expected a list of names or of metrics")
    found = tuple(resolve(Metric, f"metrics[{i}]", metric) for i, metric in enumerate(metrics))
    keys = [metric.key for metric in found]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise OptionError(f"metrics has two that are called {key!r}; expected one of each name")
        if key in COLUMNS or key.startswith("val_"):
            raise OptionError(
                f"metrics[{i}] is called {key!r}, but so is what an epoch's record has besides: rename it, by its "
                "`names` or its `key`"
            )
    if loss.single is not loss:  # of what the members say on average
        loss, out_shape = loss.single, out_shape[1:]
    for metric in found:
        metric.check(loss, out_shape)
    return found


def larger_is_better(name: str) -> bool:
    """Whether a recorded quantity of that name is better when larger."""
    name = re.sub("^(val_)?(head_[0-9]+_)?", "", name)
    define(Metric.kind, name)
    found: Any = catalogue(Metric).get(name, (None,))[0]
    f_score = name[:1] == "f" and name[1:].replace(".", "").isdigit()
    return name.endswith("accuracy") or f_score or (found is not None and bool(found.larger_is_better))


def weighed(run: Run, x: Array, weight: Array) -> Array:
    """x times the weight of its row, 0 where that is, whatever x is."""
    xp = run.xp
    factor = xp.reshape(weight, (weight.shape[0],) + (1,) * (x.ndim - 1))
    return xp.where(factor > 0.0, x * factor, 0.0)


def total(run: Run, x: Array, weight: Array) -> Array:
    """The sum over rows of weight x, of every column."""
    return run.sum_rows(weighed(run, x, weight))


def ratio(xp: Any, above: Array, below: Array, where_none: float = 0.0) -> Array:
    """above / below, and `where_none` where below is 0."""
    none = below == 0.0
    return xp.where(none, where_none, above / xp.where(none, 1.0, below))
