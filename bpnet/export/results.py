"""What an exported model gives for rows, made of its network's outputs by functions of the Array API."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.export.models import Exported
from bpnet.losses.base import Loss
from bpnet.losses.classes import ClassLoss
from bpnet.tabular.target import gives_probabilities


@dataclass(frozen=True)
class Results:
    """What a model gives, each as a function of backend and outputs; None where it gives no such thing.

    predict : numbers: of a model of quantities these, in their own unit, else what the network gives
    probabilities : (rows, classes), or of each label, (rows, labels)
    places : the index of each row's class, (rows,); or whether it has each label, (rows, labels)
    classes : the names of the classes, where they have any
    """

    predict: Callable[[Backend, Array], Array]
    probabilities: Callable[[Backend, Array], Array] | None = None
    places: Callable[[Backend, Array], Array] | None = None
    classes: Sequence[Any] | None = None


def results_of(model: Exported) -> Results:
    """Of a trainer, as its `predict` has it, and by its loss; of a model of tables as its methods have it."""
    loss, table = model.trainer.loss, model.table
    if table is not None and table.target.kind == "number":
        if model.estimator:  # which predicts one of several quantiles
            return Results(lambda b, z: loss.prediction(b, z))
        return Results(lambda b, z: table.target.quantities_of(b, loss, z))
    if table is not None:
        found, target = gives_probabilities(loss), table.target
        probabilities = (lambda b, z: target.probabilities_of(b, loss, z)) if found else None
        names = target.classes if target.kind == "class" else None
        return Results(_outputs, probabilities, lambda b, z: target.places_of(b, loss, z), names)
    shape, single = model.trainer.layout.out_shape, loss.single
    one_axis = len(shape) == (1 if single is loss else 2)
    if not one_axis or not (isinstance(single, ClassLoss) or single.boundary is not None):
        return Results(_outputs)
    found = gives_probabilities(single)
    return Results(
        _outputs,
        (lambda b, z: loss.prediction(b, z)) if found else None,
        partial(_places, loss),
        model.trainer.classes,
    )


def _outputs(backend: Backend, outputs: Array) -> Array:
    return outputs


def _places(loss: Loss, backend: Backend, outputs: Array) -> Array:
    xp, single, z = backend.xp, loss.single, loss.pooled(backend, outputs)
    if single.boundary is None:
        return xp.argmax(z, axis=1)
    above = z > single.boundary
    return xp.astype(xp.astype(above[:, 0], z.dtype), xp.int32) if z.shape[1] == 1 else above
