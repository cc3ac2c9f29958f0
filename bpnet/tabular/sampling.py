"""Monte-Carlo dropout: predictions of many networks drawn from one, by leaving its dropout on.

Dropout while predicting draws networks from an approximate posterior of a Bayesian network, so that the mean over T of
them is its prediction, and their spread what it doesn't know (Gal and Ghahramani 2016, equations 6 and 7).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from bpnet.backends import Array, backend_of
from bpnet.backends.base import Rows
from bpnet.data.loader import take_rows
from bpnet.errors import ArgumentError
from bpnet.layer import Derivatives, InShape, Layer, Params, Run, row_count
from bpnet.layers.dropout import Dropout
from bpnet.registry import Registered, parts_of
from bpnet.trainer import Trainer


@dataclass(frozen=True)
class _Drawn(Layer):
    """A dropout layer that drops while predicting too; every other layer does then what it does while predicting."""

    layer: Layer

    stochastic = True

    def out_shape(self, in_shape: InShape) -> InShape:
        return self.layer.out_shape(in_shape)

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        own = Run(run.backend, True, run.key, run.context, run.values)
        own.first_row = run.first_row
        return self.layer.forward(own, p, x)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        return self.layer.backward(run, p, cache, dy, need_dx)


def drawn(value: Any) -> Any:
    """A network with every dropout layer of it as one that drops while predicting; itself where there is none."""
    if isinstance(value, Dropout):
        return _Drawn(value)
    if isinstance(value, tuple):
        parts = tuple([drawn(part) for part in value])
        return value if all(a is b for a, b in zip(value, parts, strict=True)) else parts
    if not isinstance(value, Registered):
        return value
    options = {f.name: getattr(value, f.name) for f in fields(value)}  # type: ignore[arg-type]
    made = {name: drawn(option) for name, option in options.items()}
    if all(made[name] is option for name, option in options.items()):
        return value
    return type(value)(*(made.pop(value.star) if value.star else ()), **made)


def samples(trainer: Trainer, x: Any, count: int, seed: int = 0) -> Iterator[Array]:
    """The outputs of `count` networks for the rows of x, one after the other, each (rows, ...): with other masks each.

    The same seed draws the same networks, whatever the library.  Raises ArgumentError where nothing is dropped.
    """
    engine, network = trainer._have(), drawn(trainer.network)
    if not any(layer.rate != 0.0 for layer in parts_of(trainer.network, Dropout)):
        raise ArgumentError("the network has no dropout to draw from: train one with dropout=0.1, say")
    backend, layout, theta = engine.backend, engine.layout, engine.evaluated()
    data = trainer._prepare({"x": x})
    p = layout.views(backend, theta, engine.carry[1])
    for number in range(1, count + 1):
        with backend.session(trainer.threads, backend.device(theta)):
            parts: list[Array] = []
            done = 0
            for batch, *_ in data.batches(trainer.micro_batch):

                def block(_: int, part: Rows, number: int = number, batch: Any = batch, done: int = done) -> Array:
                    run = Run(backend, False, (seed, number), backend.context(trainer.precision))
                    run.first_row = done + part[0]
                    return network.forward(run, p, take_rows(backend, (batch,), part, None)[0])[0]

                found = list(backend.map_blocks(block, backend.blocks(row_count(batch), 2.0 * layout.size)))
                parts += map(backend.to_host, found) if data.streams else found
                done += row_count(batch)
            yield parts[0] if len(parts) == 1 else backend_of(parts[0]).xp.concat(parts)
