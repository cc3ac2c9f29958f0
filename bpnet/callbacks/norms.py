"""How large parameters and gradients are in the course of a training."""

import math
from typing import TYPE_CHECKING

from bpnet.backends import Array, definitions
from bpnet.backpropagation import loss_and_gradient
from bpnet.callbacks.base import Callback, Record
from bpnet.data.loader import Loader
from bpnet.data.prepare import named
from bpnet.errors import ArgumentError
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
        given = named(self.x, self.y, self.sample_weight)
        self._data = None if self.x is None else trainer._prepare(given)

    def on_train_end(self, trainer: "Trainer") -> None:
        self._data = None

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        backend, xp = trainer.backend, trainer.backend.xp
        with backend.session(trainer.threads, backend.device(trainer.theta)):
            vectors = {"norm": trainer.theta}
            if self._data is not None:
                vectors["gradient_norm"] = gradient(trainer, self._data)
            names, squares = [], []
            for kind, vector in vectors.items():
                for name, array in trainer.layout.unpack(vector).items():
                    names.append(f"{kind}/{name}")
                    squares.append(xp.sum(array * array))
            record |= {name: math.sqrt(s) for name, s in zip(names, backend.fetch(squares), strict=True)}


def gradient(trainer: "Trainer", data: Loader) -> Array:
    """Of the loss of all rows of `data`, as the next step would have it, but not clipped."""
    engine, backend = trainer._have(), definitions(trainer.backend)
    theta, buffers, _ = engine.carry
    names = "layout", "loss", "seed", "precision", "micro_batch", "penalties", "schedules"
    options = {name: getattr(engine, name) for name in names}
    _, number = engine.hyperparameters(engine.count)
    return loss_and_gradient(backend, theta, buffers, *data.whole_batch(), number, **options)[1]
