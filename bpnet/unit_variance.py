"""Start values that depend on the data: layer-sequential unit variance, and what else looks at a first pass."""

import math
from collections.abc import Callable
from typing import Any

from bpnet.backends import definitions, variant
from bpnet.backends.base import Array
from bpnet.distributed.base import agreed
from bpnet.errors import BuiltError, DataError, NotBuiltError, plural
from bpnet.layer import KERNELS, Rng, Run
from bpnet.layers.activation import Activation
from bpnet.options import number, whole
from bpnet.state import check_trainer
from bpnet.trainer import Trainer
from bpnet.typing import AnyInput

Tune = Callable[[Run, str, Array, Array, Array | None], tuple[Array, Array | None]]
"""tune(run, name, x, W, b) -> W, b: what the dense layer whose W has that name starts with, given its input x."""


def lsuv(trainer: Trainer, x: AnyInput, *, tolerance: float = 0.1, tries: int = 10) -> Trainer:
    """Start every dense layer, wherever it is nested, so that of the rows `x` it gives x W + b of variance 1.

    Layer by layer, as the rows come through: W starts orthogonal, drawn from the trainer's seed, and is divided by the
    standard deviation of all that the layer gives, until the variance is within `tolerance` of 1, at most `tries` times
    (Mishkin and Matas 2016).  A few hundred rows will do; dropout and normalization do what they do in training.  Where
    activations make rows almost alike, as many layers of sigmoids do, W gets as large as it takes to tell them apart.

        trainer = bp.lsuv(bp.Trainer(net, "cross_entropy"), x[:512])

    Of several ranks all start as the first, by its rows.

    Raises BuiltError where the trainer has done steps already, and DataError where a layer gives the same for all rows
    and units.  What else a network starts with stays as it is.
    """
    tolerance, tries = number("tolerance", tolerance, 0.0, 1.0, closed="neither"), whole("tries", tries, 1)
    rng = Rng(check_trainer(trainer).seed)

    def tune(run: Run, name: str, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
        xp, backend = run.xp, run.backend
        made = backend.from_host(rng.orthogonal(tuple(weight.shape)), weight.dtype, backend.device(weight))
        for _ in range(tries):
            z = run.matmul(x, made)
            z, share = z if bias is None else z + bias, 1.0 / math.prod(z.shape)
            centred = z - xp.sum(z) * share
            variance = float(xp.sum(centred * centred)) * share
            if abs(variance - 1.0) <= tolerance:
                break
            if not (math.isfinite(variance) and variance > 0.0):
                raise DataError(f"what {name} makes of x has the variance {variance:g}; expected rows that differ")
            made = made / math.sqrt(variance)
        return made, bias

    return start_from_data(trainer, x, tune)


def start_from_data(trainer: Trainer, x: AnyInput, tune: Tune) -> Trainer:
    """Give every dense layer, as the rows `x` come to it through those before, what `tune` makes of its start values.

    Raises BuiltError where the trainer has done steps already.
    """
    if trainer.step_count:
        done = plural(trainer.step_count, "step")
        raise BuiltError(f"the trainer has done {done}, which would be lost: make another to start afresh")
    try:
        theta = trainer.theta
    except NotBuiltError:
        theta = trainer.build(x).theta
    backend, layout, buffers = trainer.backend, trainer.layout, trainer.buffers
    p = layout.views(backend, theta, buffers)
    names = {id(_at(p, slot.path)): slot.name for slot in layout.parameters}
    made: dict[str, Array] = {}

    def tuned(run: Run, x: Array, weight: Array, bias: Array | None, f: Activation) -> tuple[Array, Array]:
        name, bias_name = names.get(id(weight)), names.get(id(bias))
        if name is not None:  # else it is of a layer that makes it of other parameters
            if name not in made:
                made[name], of_bias = tune(run, name, x, weight, bias)
                if bias_name is not None and of_bias is not None:
                    made[bias_name] = of_bias
            weight, bias = made[name], bias if bias_name is None else made[bias_name]
        return KERNELS["dense_forward"](run, x, weight, bias, f)  # type: ignore[no-any-return]

    def started() -> Array:
        rows = trainer._prepare({"x": x}).whole_batch()[0]
        run = Run(variant(definitions(backend), kernels={"dense_forward": tuned}), True, (trainer.seed, 0))
        layout.network.forward(run, p, rows)
        leaves = [made.get(slot.name, _at(p, slot.path)) for slot in layout.parameters]
        return backend.concat([backend.xp.reshape(leaf, (-1,)) for leaf in leaves])

    with backend.session(trainer.threads, backend.device(theta)):
        ranks = trainer.communicator  # each of whom may have rows of its own
        theta = started() if ranks is None else ranks.broadcast_array(backend, agreed(ranks, started))
        state = trainer.optimizer.init(backend, layout, theta)
    trainer.restore(((theta, buffers, state), 0))
    return trainer


def _at(tree: Any, path: tuple[str, ...]) -> Array:
    for name in path:
        tree = tree[name]
    return tree
