"""Start values that depend on the data: layer-sequential unit variance."""

import math
from typing import Any

from bpnet.backends import definitions, variant
from bpnet.backends.base import Array
from bpnet.errors import BuiltError, DataError, NotBuiltError, plural
from bpnet.layer import KERNELS, Rng, Run
from bpnet.layers.activation import Activation
from bpnet.options import number, whole
from bpnet.trainer import Trainer
from bpnet.typing import AnyInput


def lsuv(trainer: Trainer, x: AnyInput, *, tolerance: float = 0.1, tries: int = 10) -> Trainer:
    """Start every dense layer, wherever it is nested, so that of the rows `x` it gives x W + b of variance 1.

    Layer by layer, as the rows come through: W starts orthogonal, drawn from the trainer's seed, and is divided by the
    standard deviation of all that the layer gives, until the variance is within `tolerance` of 1, at most `tries` times
    (Mishkin and Matas 2016).  A few hundred rows will do; dropout and normalization do what they do in training.  Where
    activations make rows almost alike, as many layers of sigmoids do, W gets as large as it takes to tell them apart.

        trainer = bp.lsuv(bp.Trainer(net, "cross_entropy"), x[:512])

    Raises BuiltError where the trainer has done steps already, and DataError where a layer gives the same for all rows
    and units.  What else a network starts with stays as it is.
    """
    tolerance, tries = number("tolerance", tolerance, 0.0, 1.0, closed="neither"), whole("tries", tries, 1)
    if trainer.step_count:
        done = plural(trainer.step_count, "step")
        raise BuiltError(f"the trainer has done {done}, which would be lost: make another to start afresh")
    try:
        theta = trainer.theta
    except NotBuiltError:
        theta = trainer.build(x).theta
    backend, layout, buffers, rng = trainer.backend, trainer.layout, trainer.buffers, Rng(trainer.seed)
    p = layout.views(backend, theta, buffers)
    names, made = {id(_at(p, slot.path)): slot.name for slot in layout.parameters}, {}

    def tuned(run: Run, x: Array, weight: Array, bias: Array | None, f: Activation) -> tuple[Array, Array]:
        xp, name = run.xp, names.get(id(weight))
        if name is None:  # of a layer that makes it of other parameters
            return KERNELS["dense_forward"](run, x, weight, bias, f)  # type: ignore[no-any-return]
        if name not in made:
            made[name] = backend.from_host(rng.orthogonal(tuple(weight.shape)), weight.dtype, backend.device(weight))
            for _ in range(tries):
                z = run.matmul(x, made[name])
                z, share = z if bias is None else z + bias, 1.0 / math.prod(z.shape)
                centred = z - xp.sum(z) * share
                variance = float(xp.sum(centred * centred)) * share
                if abs(variance - 1.0) <= tolerance:
                    break
                if not (math.isfinite(variance) and variance > 0.0):
                    raise DataError(f"what {name} makes of x has the variance {variance:g}; expected rows that differ")
                made[name] = made[name] / math.sqrt(variance)
        return KERNELS["dense_forward"](run, x, made[name], bias, f)  # type: ignore[no-any-return]

    with backend.session(trainer.threads, backend.device(theta)):
        rows = trainer._prepare({"x": x}).whole_batch()[0]
        run = Run(variant(definitions(backend), kernels={"dense_forward": tuned}), True, (trainer.seed, 0, 0))
        layout.network.forward(run, p, rows)
        leaves = [made.get(slot.name, _at(p, slot.path)) for slot in layout.parameters]
        theta = backend.concat([backend.xp.reshape(leaf, (-1,)) for leaf in leaves])
        state = trainer.optimizer.init(backend, layout, theta)
    trainer.restore(((theta, buffers, state), 0))
    return trainer


def _at(tree: Any, path: tuple[str, ...]) -> Array:
    for name in path:
        tree = tree[name]
    return tree
