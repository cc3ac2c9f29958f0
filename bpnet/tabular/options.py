"""What the training on a table can be told, and what it is told where nobody says it."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bpnet.distributed.base import check_distributed
from bpnet.errors import OptionError, UnknownNameError, shown
from bpnet.layers.activation import Activation
from bpnet.losses.base import Loss
from bpnet.losses.classes import KLDivergence
from bpnet.losses.similarity import CosineSimilarity
from bpnet.metrics.base import Metric
from bpnet.optimizers.adam import Adam, AdamW
from bpnet.optimizers.base import Optimizer
from bpnet.options import choice, fraction, is_listed, whole
from bpnet.registry import resolve
from bpnet.schedules import Constant, Cosine, CosLog, Epochs, FlatCosine, OneCycle, Polynomial, Schedule, WarmUp
from bpnet.tabular.scaling import rescaled
from bpnet.tabular.sizing import Size, size_for
from bpnet.typing import ActivationName, LossName, MetricName, OptimizerName, Precision

SCHEDULES: Mapping[str, Callable[[float, int], Schedule]] = {
    "constant": lambda lr, epochs: Constant(lr),
    "coslog": CosLog,
    "cosine": Cosine,
    "flat_cosine": FlatCosine,
    "linear": Polynomial,
    "one_cycle": OneCycle,
    "warm_up": lambda lr, epochs: WarmUp(Cosine(lr, max(epochs - epochs // 20 - 1, 1)), epochs // 20 + 1),
}
"""Schedules of the learning rate by name, over so many epochs."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `train_table`, which describes them; None is what the number of rows suggests."""

    hidden: Sequence[int] | None = None
    activation: ActivationName | Activation = "relu"
    dropout: float | None = None
    loss: LossName | Loss | Literal["auto"] = "auto"
    optimizer: OptimizerName | Optimizer = "adam"
    lr: float | None = None
    weight_decay: float | None = None
    schedule: str | Callable[[float, int], Schedule] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    validation: float = 0.2
    early_stopping: bool | int = True
    class_weight: str | Mapping[Any, float] | None = None
    ensemble: int | None = None
    preset: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    drop: str | Sequence[str] = ()
    metrics: MetricName | Sequence[MetricName | Metric] = ()
    seed: int = 0
    device: str | None = None
    precision: Precision = "float32"
    threads: int | None = None
    compile: bool | str = "auto"
    distributed: Any = None

    def __post_init__(self) -> None:
        """Raise OptionError, UnknownNameError or ArgumentError on what can be seen to be wrong before the data."""
        for name in ("drop", "metrics"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        for name in ("hidden", "drop", "metrics"):
            value = getattr(self, name)
            if not (is_listed(value) or (name == "hidden" and value is None)):
                raise OptionError(f"{name} is {shown(value)}; expected several, in a list")
        if not isinstance(self.types, Mapping):
            raise OptionError(f"types is {shown(self.types)}; expected a dict of kinds by column")
        for i, units in enumerate(() if self.hidden is None else self.hidden):
            whole(f"hidden[{i}]", units, 1)
        resolve(Activation, "activation", self.activation)
        if self.dropout is not None:
            fraction("dropout", self.dropout)
        if not (isinstance(self.loss, str) and self.loss == "auto"):
            check_loss(resolve(Loss, "loss", self.loss))
        self.rule(1)
        for name in ("epochs", "batch_size", "ensemble"):
            if (value := getattr(self, name)) is not None:
                whole(name, value, 1)
        fraction("validation", self.validation)
        whole("seed", self.seed, 0)
        if type(self.early_stopping) is not bool:
            whole("early_stopping", self.early_stopping, 0)
        if isinstance(self.class_weight, str):
            choice("class_weight", self.class_weight, ("balanced",))
        if self.preset is not None:
            choice("preset", self.preset, ("strong", "simple"))
            for name in ("hidden", "activation", "dropout", "optimizer", "lr", "weight_decay", "schedule"):
                if getattr(self, name) != getattr(TrainingOptions, name):
                    value = shown(getattr(self, name))
                    raise OptionError(f"{name} is {value}, but the preset {self.preset!r} has its own: leave one out")
        object.__setattr__(self, "distributed", check_distributed(self.distributed))
        if getattr(self.distributed, "rows", "same") != "same":
            raise OptionError(
                f"distributed is {shown(self.distributed)}, but every rank is to be given the whole table, of which it "
                "takes its part: leave out rows"
            )
        for i, metric in enumerate(self.metrics):
            resolve(Metric, f"metrics[{i}]", metric)

    @classmethod
    def named(cls, options: Mapping[str, Any], others: Collection[str] = ()) -> "TrainingOptions":
        """The options with these names; raises UnknownNameError for another, with `others` among those it could be."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownNameError("option", name, (*known, *others))
        return cls(**options)

    def size(self, rows: int, classes: bool) -> Size:
        """What is asked for, and else what so many rows to train on suggest."""
        size = size_for(rows, classes)
        found = {
            name: getattr(self, name) for name in ("hidden", "dropout", "epochs") if getattr(self, name) is not None
        }
        batch_size = min(self.batch_size or size.batch_size, rows)
        size = dataclasses.replace(size, **found, batch_size=batch_size)
        patience = max(size.epochs // 10, 8)
        if self.preset is not None:  # whose rates and rates of dropout follow schedules to the end
            rows_in_step = min(self.batch_size or 256, rows)
            size = dataclasses.replace(size, epochs=self.epochs or 256, batch_size=rows_in_step)
            patience = size.epochs
        waits = type(self.early_stopping) is int and self.early_stopping > 0
        return dataclasses.replace(size, patience=int(self.early_stopping) if waits else patience)

    def rule(self, epochs: int, factor: float = 1.0) -> Optimizer:
        """The optimizer for so many epochs, with the rate, the schedule and the weight decay that are given.

        `factor` is how many times as large the gradient is as that of a target of deviation 1.
        """
        rule = resolve(Optimizer, "optimizer", self.optimizer)
        if self.lr is not None:
            rule = with_option(rule, "lr", self.lr)
        if self.weight_decay is not None:
            rule = with_option(rule, "weight_decay", self.weight_decay)
        return scheduled(rescaled(rule, factor), self.schedule, epochs)


def with_option(optimizer: Optimizer, name: str, value: Any) -> Optimizer:
    """`optimizer` with another learning rate or the like; raises OptionError where it has none."""
    base = getattr(optimizer, "base", None)  # as that of SAM
    if isinstance(base, Optimizer):
        return dataclasses.replace(optimizer, base=with_option(base, name, value))  # type: ignore[type-var]
    if type(optimizer) is Adam and name == "weight_decay":  # which has none, and is AdamW with it
        optimizer = AdamW(**{f.name: getattr(optimizer, f.name) for f in dataclasses.fields(optimizer)})
    if not hasattr(optimizer, name):
        raise OptionError(f"{name} is {shown(value)}, but {optimizer} has no {name}: choose another optimizer")
    return dataclasses.replace(optimizer, **{name: value})  # type: ignore[type-var]


def scheduled(optimizer: Optimizer, schedule: Any, epochs: int) -> Optimizer:
    """`optimizer` with its learning rate along a schedule of so many epochs."""
    if schedule is None:
        return optimizer
    make = schedule if callable(schedule) else SCHEDULES[choice("schedule", schedule, tuple(SCHEDULES))]
    base = getattr(optimizer, "base", None)
    if isinstance(base, Optimizer):
        return dataclasses.replace(optimizer, base=scheduled(base, schedule, epochs))  # type: ignore[type-var]
    rate = getattr(optimizer, "lr", None)
    if not isinstance(rate, float):
        raise OptionError(f"schedule is {shown(schedule)}, but {optimizer} has no learning rate that is a number")
    return with_option(optimizer, "lr", Epochs(make(rate, epochs)))


def check_loss(loss: Loss) -> Loss:
    """Raise OptionError where a loss is of no label or quantity, but of vectors or distributions."""
    if isinstance(loss, KLDivergence | CosineSimilarity) or not loss.predicts:
        raise OptionError(f"loss is {loss}, which is for programs in Python: a table has labels or quantities")
    return loss
