"""What can be exported: a trainer, a model of tables, a fitted estimator, or the file that one was saved in."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy

from bpnet.backends.base import Backend
from bpnet.errors import ArgumentError, NotBuiltError, kind_of, plural
from bpnet.export.record import Program, network_program
from bpnet.files.model import check_numbers
from bpnet.loading import load
from bpnet.losses.classes import ClassLoss
from bpnet.tabular.distributions import levels_of, moments, quantiles
from bpnet.tabular.model import TableModel
from bpnet.tabular.target import Target, gives_probabilities
from bpnet.trainer import Trainer


@dataclass(frozen=True)
class Exported:
    """A trained network as arrays of NumPy by path, and the model of tables that it is in, if there is one."""

    trainer: Trainer
    table: TableModel | None
    parameters: dict[str, Any]
    """What is predicted with: where the optimizer averages, the average."""
    buffers: dict[str, Any]
    estimator: bool = False
    """Whether it is one of scikit-learn's kind, which predicts one of several quantiles."""

    @property
    def dtype(self) -> Any:
        """The type of its numbers."""
        return next(iter((self.parameters | self.buffers).values())).dtype

    def as_type(self, dtype: str | None) -> "Exported":
        """The same of another type of numbers, None for its own."""
        if dtype is None or self.dtype == dtype:
            return self
        parameters, buffers = (
            {name: a.astype(dtype) for name, a in some.items()} for some in (self.parameters, self.buffers)
        )
        return replace(self, parameters=parameters, buffers=buffers)

    @cached_property
    def target(self) -> Target | None:
        """Of a model of tables; of a trainer the labels that its loss is of, by numbers where they have no names.

        None where a trainer's loss is of quantities.  Raises ArgumentError where there are more names than labels.
        """
        if self.table is not None:
            return self.table.target
        loss, shape, names = self.trainer.loss, self.trainer.layout.out_shape, self.trainer.classes
        one_of_several = isinstance(loss.single, ClassLoss)
        if len(shape) != (1 if loss.single is loss else 2) or not (one_of_several or loss.single.boundary is not None):
            return None
        if shape[-1] > 1 and not one_of_several:
            return Target("multilabel", columns=shape[-1])
        count = shape[-1] if one_of_several else 2
        if names is not None and len(names) != count:
            raise ArgumentError(
                f"classes of the trainer has {plural(len(names), 'name')}; its network tells {count} apart"
            )
        return Target("class", classes=tuple(range(count) if names is None else names))

    @property
    def classes(self) -> Any:
        """The labels that "label" counts, an array, of objects where they are text; None where there are none."""
        return self.target.array() if self.target is not None and self.target.kind == "class" else None

    @property
    def gives_probabilities(self) -> bool:
        """Whether the model tells any; where a trainer's outputs have several axes, though it has no target."""
        return (self.table is None or self.table.target.kind != "number") and gives_probabilities(self.trainer.loss)

    def probabilities(self, backend: Backend, output: Any) -> Any:
        """Those of the classes, or of each label, from the network's output; a trainer's as many as it has outputs."""
        if self.table is not None:
            return self.table.target.probabilities_of(backend, self.trainer.loss, output)
        return self.trainer.loss.prediction(backend, output)

    def answers(self, backend: Backend, output: Any) -> dict[str, Any]:
        """What is predicted, by name, from the network's output; of a trainer without a target any probabilities alone.

        Of classes "label", numbers of `classes`, and "probabilities", or where the loss gives none "scores"; of several
        labels a row these for each, 0 or 1; of quantities "prediction", with "deviation" and "quantiles" where the
        model tells them.
        """
        loss, target, xp = self.trainer.loss, self.target, backend.xp
        if target is None:
            return {"probabilities": self.probabilities(backend, output)} if self.gives_probabilities else {}
        if target.kind != "number":
            label = xp.astype(target.places_of(backend, loss, output), xp.int64)
            if self.gives_probabilities:
                return {"label": label, "probabilities": self.probabilities(backend, output)}
            return {"label": label, "scores": loss.pooled(backend, output)}
        assert self.table is not None
        mean, variance = moments(backend, loss, output)
        answers = {"prediction": self.table._shaped(mean) if self.estimator else target.decode(output, loss)}
        if variance is not None:
            answers["deviation"] = self.table._shaped(backend.xp.sqrt(variance))
        if levels_of(loss):
            answers["quantiles"] = self.table._shaped(quantiles(backend, loss, output))
        return answers

    def program(
        self,
        finish: Callable[[Backend, Any], Mapping[str, Any]] | None = None,
        *,
        fold: bool = False,
        erf: bool = True,
    ) -> Program:
        """What the network computes, as `network_program` says."""
        return network_program(self.trainer.layout, self.parameters, self.buffers, finish, fold=fold, erf=erf)

    def examples(self, program: Program, rows: int) -> list[Any]:
        """Rows that the program takes: an array for each input."""
        rng, takes = numpy.random.default_rng(0), self.trainer.layout.network.takes
        kinds = [kind for _, kind in takes] if isinstance(takes, tuple) else [takes]
        made = []
        for value, below in zip(program.inputs, kinds, strict=True):
            size: Any = (rows, *value.shape[1:])
            x = rng.standard_normal(size) if below is None else rng.integers(0, below, size)
            made.append(x.astype(value.dtype))
        return made


def exported(model: Any) -> Exported:
    """What of a model goes to a file.

    Raises ArgumentError where it is none, NotBuiltError where it is not trained, BusyError while another thread trains
    it, and DivergedError where parameters have NaN.
    """
    if isinstance(model, str | os.PathLike):
        model = load(model)
    estimator = not isinstance(model, Trainer | TableModel) and hasattr(type(model), "model_")
    try:
        model = model.model_ if estimator else model
    except AttributeError as error:
        raise NotBuiltError(str(error)) from None
    if not isinstance(model, Trainer | TableModel):
        expected = "a Trainer, a TableModel, a fitted estimator, or the path of a file that one of them was saved in"
        raise ArgumentError(f"model is {kind_of(model)}; expected {expected}")
    trainer = model if isinstance(model, Trainer) else model.trainer
    engine, backend, layout = trainer._have(), trainer.backend, trainer.layout
    (theta, kept, state), _ = trainer.snapshot()
    with engine.looking():
        theta = trainer.optimizer.evaluation(backend, layout, theta, state)
    theta, kept = backend.to_host(theta), backend.to_host(kept)
    check_numbers(layout, trainer.optimizer, theta, kept)
    parameters = {slot.name: theta[slot.part].reshape(slot.shape) for slot in layout.parameters}
    buffers = {slot.name: kept[slot.part].reshape(slot.shape) for slot in layout.buffers}
    return Exported(trainer, model if isinstance(model, TableModel) else None, parameters, buffers, estimator)
