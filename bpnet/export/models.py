"""What can be exported: a trainer, a model of tables, a fitted estimator, or the file that one was saved in."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Backend
from bpnet.errors import ArgumentError, kind_of
from bpnet.export.record import Program, network_program
from bpnet.loading import load
from bpnet.tabular.model import TableModel
from bpnet.trainer import Trainer


@dataclass(frozen=True)
class Exported:
    """A trained network as arrays of NumPy by path, and the model of tables that it is in, if there is one."""

    trainer: Trainer
    table: TableModel | None
    parameters: dict[str, Any]
    """What is predicted with: where the optimizer averages, the average."""
    buffers: dict[str, Any]

    def program(
        self,
        finish: Callable[[Backend, Any], Mapping[str, Any]] | None = None,
        *,
        fold: bool = False,
        erf: bool = True,
    ) -> Program:
        """What the network computes, as `network_program` says."""
        return network_program(self.trainer.layout, self.parameters, self.buffers, finish, fold=fold, erf=erf)


def exported(model: Any) -> Exported:
    """What of a model goes to a file; raises ArgumentError where it is none, and NotBuiltError where not trained."""
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if not isinstance(model, Trainer | TableModel) and hasattr(type(model), "model_"):
        model = model.model_
    if not isinstance(model, Trainer | TableModel):
        expected = "a Trainer, a TableModel, a fitted estimator, or the path of a file that one of them was saved in"
        raise ArgumentError(f"model is {kind_of(model)}; expected {expected}")
    trainer = model if isinstance(model, Trainer) else model.trainer
    engine, backend, layout = trainer._have(), trainer.backend, trainer.layout
    theta = backend.to_host(engine.evaluated())
    parameters = {slot.name: theta[slot.part].reshape(slot.shape) for slot in layout.parameters}
    kept = backend.to_host(trainer.buffers)
    buffers = {slot.name: kept[slot.part].reshape(slot.shape) for slot in layout.buffers}
    return Exported(trainer, model if isinstance(model, TableModel) else None, parameters, buffers)
