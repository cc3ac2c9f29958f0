"""What a trainer repeats, as pure functions of arrays: a training step, the outputs, the scores.

Each is made once for a network, takes the backend that shall compute it, and may be compiled by `Backend.compile`; only
arrays and numbers cross its border.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from bpnet.backends import Array, Backend
from bpnet.backends.base import Rows
from bpnet.backends.interrupts import current
from bpnet.backpropagation import loss_and_gradient, take_rows
from bpnet.layer import Composite, Layer, Params, Run
from bpnet.layers.composition import Sequential
from bpnet.layout import GradBuffer, Layout, Path, Slot
from bpnet.losses import Loss
from bpnet.optimizers import ElementwiseOptimizer, Optimizer, clip_by_global_norm

Carry = tuple[Array, Array, tuple[Array, ...]]
"""What goes from step to step: parameters, buffers, the optimizer's state."""


class Views:
    """The vectors as the layers see them, made anew only where the vectors are others than last time."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.last: tuple[Array, Array, Params] = (None, None, {})

    def __call__(self, backend: Backend, theta: Array, buffers: Array) -> Params:
        if backend.traces:
            return self.layout.views(backend, theta, buffers)
        seen, kept, p = self.last
        if seen is not theta or kept is not buffers:
            p = self.layout.views(backend, theta, buffers)
            self.last = theta, buffers, p
        return p


def training_step(
    layout: Layout,
    views: Views,
    loss: Loss,
    optimizer: Optimizer,
    seed: int,
    clip_norm: float | None,
    precision: str = "float32",
    micro_batch: int | None = None,
) -> Callable[..., tuple[Carry, Array]]:
    """step(backend, carry, x, y, weight, rows, hyperparameters, number) -> carry, loss; the carry is given up.

    `number` counts steps from 1, and `hyperparameters` are what the optimizer makes of it.
    """

    own = getattr(optimizer.update, "__func__", None) is ElementwiseOptimizer.update
    """Whether a step ends in one elementwise function, which may write to its arrays; others may read on, and keep."""
    grad_buffers: list[GradBuffer] | None = [] if own else None

    def clipped(backend: Backend, grad: Array) -> Array:
        if clip_norm is None or clip_norm > float(backend.xp.finfo(grad.dtype).max):
            return grad
        return clip_by_global_norm(backend, grad, clip_norm)

    def step(backend: Backend, carry: Carry, *args: Any) -> tuple[Carry, Array]:
        theta, buffers, state = carry
        x, y, weight, rows, hyperparameters, number = args
        batch = {"x": x, "y": y, "weight": weight, "rows": rows, "key": (seed, number), "micro_batch": micro_batch}
        gradient = partial(
            loss_and_gradient, backend, layout, loss, **batch, grad_buffers=grad_buffers, precision=precision
        )
        value, grad, taken = gradient(p=views(backend, theta, buffers))
        grad = grad if clip_norm is None else clipped(backend, grad)
        if taken:
            buffers = layout.join_buffers(backend, taken, buffers)
        if own:
            args = backend, layout, theta, grad, state, hyperparameters
            theta, state = optimizer.update(*args, donate=True)  # type: ignore[call-arg]
        else:
            current.deferred = None

            def evaluate(theta: Array) -> tuple[Array, Array]:
                value, grad, _ = gradient(p=views(backend, theta, carry[1]))
                return value, clipped(backend, grad)

            theta, state = optimizer.update(backend, layout, theta, grad, state, hyperparameters, evaluate)
        return (theta, buffers, state), value

    return step


def outputs(
    layout: Layout, views: Views, precision: str = "float32"
) -> Callable[[Backend, Array, Array, Array], tuple[Array, Array]]:
    """outputs(backend, theta, buffers, x): what the network gives for the rows of x, and the sum over x and that.

    The sum tells whether one of them has NaN or infinity, without a pass of its own over x.
    """

    def function(backend: Backend, theta: Array, buffers: Array, x: Array) -> tuple[Array, Array]:
        p = views(backend, theta, buffers)

        def block(number: int, part: Rows) -> tuple[Array, Array]:
            (bx,) = take_rows(backend, (x,), part, None)
            run = Run(backend, context=backend.context(precision))
            output = backend.outline(layout.network).forward(run, p, bx)[0]
            return output, backend.xp.sum(bx) + backend.xp.sum(output)

        parts = list(backend.map_blocks(block, backend.blocks(x.shape[0], 2.0 * layout.size)))
        result, total = parts[0][0], backend.total((total for _, total in parts), backend.add_to)
        return result if len(parts) == 1 else backend.xp.concat([part for part, _ in parts]), total

    return function


def scores(
    layout: Layout, views: Views, loss: Loss, precision: str = "float32"
) -> Callable[..., tuple[Array, Array | None, Array | None]]:
    """scores(backend, theta, buffers, x, y, weight, total): these rows' share of the loss, and what is right of them.

    That is the weight of the rows for which the prediction is right, and of all rows, added up in the same order, so
    that their ratio is no more than 1; without weights the number of those rows, and None.  For a loss without classes
    both are None.
    """

    def function(
        backend: Backend, theta: Array, buffers: Array, x: Array, y: Array, weight: Array | None, total: Any
    ) -> tuple[Array, Array | None, Array | None]:
        p, xp = views(backend, theta, buffers), backend.xp

        def block(number: int, part: Rows) -> tuple[Array, Array | None, Array | None]:
            run = Run(backend, context=backend.context(precision))
            bx, by, bw = take_rows(backend, (x, y, weight), part, None)
            output = backend.outline(layout.network).forward(run, p, bx)[0]
            value, right = loss(run, output, by, bw, total)[0], loss.correct(run, output, by)
            if right is None or bw is None:
                return value, None if right is None else xp.sum(right), None
            return value, xp.sum(right * bw), xp.sum(bw)

        parts = list(backend.map_blocks(block, backend.blocks(x.shape[0], 2.0 * layout.size)))

        def total_of(some: Sequence[Array | None]) -> Array | None:
            return None if some[0] is None else backend.total(some, backend.add_to)

        values, rights, counted = zip(*parts, strict=True)
        return total_of(values), total_of(rights), total_of(counted)

    return function


def broken(xp: Any, vector: Array, before: Array) -> Array:
    """Where a vector is NaN, or infinite though it was not before."""
    return xp.isnan(vector) | (xp.isinf(vector) & xp.isfinite(before))


def not_finite(
    backend: Backend, layout: Layout, slots: Sequence[Slot], vector: Array, before: Array | None = None
) -> Iterator[tuple[Path, str]]:
    """The path of every leaf of the vector whose values are not all finite, and what to call it.

    With `before`, what was infinite in that does not count.
    """
    xp = backend.xp
    wrong = ~xp.isfinite(vector) if before is None else broken(xp, vector, before)
    if vector.shape != (sum(slot.size for slot in slots),):  # an optimizer's state of another shape
        if bool(xp.any(wrong)):
            yield (), str(layout.network)
        return
    for slot in slots:
        if bool(xp.any(wrong[slot.offset : slot.offset + slot.size])):
            depth, layer = 0, layout.network
            while isinstance(layer, Composite) and slot.path[depth] in dict(layer.children):
                layer = dict(layer.children)[slot.path[depth]]
                depth += 1
            yield slot.path, f"{'.'.join(slot.path[depth:])} of {_named(layer, slot.path[:depth])}"


def first_not_finite(
    run: Run, layer: Layer, p: Params, x: Array, leaves: Mapping[Path, str], path: Path = ()
) -> str | None:
    """The first layer, in the order of the forward pass, that has one of `leaves` or an output that is not finite."""
    if isinstance(layer, Sequential):
        for name, child in layer.children:
            at = run.at(name) if child.stochastic else run
            found = first_not_finite(at, child, p[name], x, leaves, (*path, name))
            if found:
                return found
            x = child.forward(at, p[name], x)[0]
        return None
    own = [text for leaf, text in leaves.items() if leaf[: len(path)] == path]
    if own:
        return own[0]
    output = layer.forward(run, p, x)[0]
    return None if _finite(run.backend, output) else f"the output of {_named(layer, path)}"


def _named(layer: Layer, path: Path) -> str:
    return f"layer {'.'.join(path)!r}, {layer}" if path else str(layer)


def _finite(backend: Backend, a: Array) -> bool:
    return bool(backend.xp.all(backend.xp.isfinite(a)))
