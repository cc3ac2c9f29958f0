"""How large parameters and gradients are in the course of a training."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array, Backend
from bpnet.backpropagation import loss_and_gradient
from bpnet.callbacks.base import Callback, Record
from bpnet.data.loader import Batch
from bpnet.data.prepare import named
from bpnet.errors import ArgumentError
from bpnet.layout import Layout
from bpnet.typing import AnyArray, AnyInput

if TYPE_CHECKING:
    from bpnet.trainer import Trainer


class Norms(Callback):
    """The Euclidean norm of every trained leaf, and of its gradient, in the record of every epoch.

        trainer.fit(x, y, epochs=10, callbacks=[bp.Norms(x[:256], y[:256]), bp.CSVLogger("log.csv")])
        trainer.history["gradient_norm/0.weight"]

    The record of an epoch gets "norm/0.weight" and so on of the parameters after it, and with a batch x, y
    "gradient_norm/0.weight" of the gradient of the loss of these rows, penalties included and not clipped, with the
    dropout masks of the next step.  The same batch in every epoch makes them comparable; a few hundred rows will do.
    Callbacks that use the record, such as `CSVLogger`, come after it in the list.

    Raises as `Trainer.evaluate` does on unfit data, where the training begins.
    """

    def __init__(
        self, x: AnyInput | None = None, y: AnyArray | None = None, sample_weight: AnyArray | None = None
    ) -> None:
        if (x is None) != (y is None):
            raise ArgumentError(f"{'x' if x is None else 'y'} is None; expected a batch, x and y, or neither of them")
        self.x, self.y, self.sample_weight = x, y, sample_weight

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self._data = None if self.x is None else trainer._prepare(named(self.x, self.y, self.sample_weight))
        engine = trainer._have()
        names = "layout", "loss", "seed", "precision", "micro_batch", "penalties", "schedules"
        options = {name: getattr(engine, name) for name in names}
        norms = partial(squared_norms, **options)
        compile = False if trainer.backend.name == "cupy" else trainer.compile  # once an epoch, a graph would not pay
        self._norms = trainer.backend.compile(norms, choice=compile)

    def on_train_end(self, trainer: "Trainer") -> None:
        del self._data, self._norms

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        backend, engine = trainer.backend, trainer._have()
        theta, buffers, _ = engine.carry
        with backend.session(trainer.threads, backend.device(theta)):
            batch = None if self._data is None else self._data.whole_batch()
            squares = backend.fetch(self._norms(theta, buffers, batch, engine.hyperparameters(engine.count)[1]))
        names = [f"{kind}/{slot.name}" for kind in ("norm", "gradient_norm") for slot in trainer.layout.parameters]
        record |= {name: math.sqrt(square) for name, square in zip(names, squares, strict=False)}


def squared_norms(
    backend: Backend, theta: Array, buffers: Array, batch: Batch | None, number: Any, *, layout: Layout, **options: Any
) -> list[Array]:
    """Of every leaf of theta; then, with a batch, of the gradient as the next step would have it, but not clipped."""
    vectors = [theta]
    if batch is not None:
        vectors.append(loss_and_gradient(backend, theta, buffers, *batch, number, layout=layout, **options)[1])
    return [backend.xp.sum(vector[slot.part] ** 2) for vector in vectors for slot in layout.parameters]
