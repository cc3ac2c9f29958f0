"""What a trainer repeats, as pure functions of arrays: a training step, the outputs, the scores.

Each is made once for a network, takes the backend that shall compute it, and may be compiled by `Backend.compile`; only
arrays and numbers cross its border.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from bpnet.backends import Array, Backend
from bpnet.backends.base import Rows
from bpnet.backends.interrupts import current
from bpnet.data.checks import check_like
from bpnet.data.loader import take_rows
from bpnet.errors import ArgumentError, OutOfMemoryError, kind_of, plural
from bpnet.layer import Input, Params, Run, row_count
from bpnet.layout import Layout, accepting
from bpnet.losses.base import Loss
from bpnet.metrics.base import Metric, Statistics
from bpnet.optimizers.base import ElementwiseOptimizer, Optimizer
from bpnet.options import whole

T = TypeVar("T")

Carry = tuple[Array, Array, tuple[Array, ...]]
"""What goes from step to step: parameters, buffers, the optimizer's state."""

Snapshot = tuple[Carry, int]
"""Parameters, buffers, optimizer state, and the number of steps that made them, at one moment."""


def start(
    layout: Layout,
    optimizer: Optimizer,
    seed: int,
    backend: Backend,
    like: Array,
    threads: int | None,
    starts: tuple[Any, Any] | None = None,
) -> Carry:
    """What the first step goes on from, of the library, device and type of `like`.

    `starts` are parameters and buffers, vectors of NumPy; they are drawn from `seed` where it is None.
    """
    device = backend.device(like)
    try:
        starts = layout.start(seed) if starts is None else starts
        theta, buffers = (backend.from_host(values, like.dtype, device) for values in starts)
        with backend.session(threads, device):
            return theta, buffers, optimizer.init(backend, layout, theta)
    except OutOfMemoryError:
        raise
    except backend.oom_errors as error:  # MemoryError among them
        size = plural(layout.size, "parameter")
        raise OutOfMemoryError(f"no memory for {size} of the network and the optimizer's state: {error}") from error


def copied(backend: Backend, carry: Carry) -> Carry:
    """A copy, which no step writes to."""
    theta, buffers, state = carry
    return backend.copy(theta), backend.copy(buffers), tuple([backend.copy(s) for s in state])


def vectors(carry: Carry) -> list[Array]:
    """All arrays in it that have elements."""
    theta, buffers, state = carry
    return [array for array in (theta, buffers, *state) if 0 not in array.shape]


def check_snapshot(snapshot: Any, own: Carry) -> None:
    """Raise unless `snapshot` is one of a trainer like that which goes on from `own`."""
    part: Any = snapshot
    for length, inner in ((2, 0), (3, 2), (len(own[2]), None)):  # a snapshot, its carry, its optimizer's state
        if not isinstance(part, tuple) or len(part) != length:
            raise ArgumentError(f"snapshot is {kind_of(snapshot)}, but not what this trainer's snapshot() gave")
        part = part if inner is None else part[inner]
    (theta, buffers, state), step_count = snapshot
    whole("the snapshot's step count", step_count, 0)
    names = ("parameters", "buffers", *["optimizer state"] * len(state))
    for name, given, mine in zip(names, (theta, buffers, *state), (*own[:2], *own[2]), strict=True):
        check_like(given, mine, f"the snapshot's {name}", f"the trainer's {name}")


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


Gradient = Callable[..., tuple[Array, Array, Array | None]]
"""gradient(backend, theta, buffers, x, y, weight, rows, number) -> loss, its gradient, new buffers if there are any."""


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether its update is one elementwise function, which may write to its arrays; others may read on, and keep."""
    return getattr(optimizer.update, "__func__", None) is ElementwiseOptimizer.update


def updated(
    optimizer: Optimizer, backend: Backend, layout: Layout, theta: Array, grad: Array, state: tuple[Array, ...],
    hyperparameters: Any, evaluate: Callable[[Array], tuple[Array, Array]],
) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
    """theta and state after a step of the optimizer; those that are passed in are given up."""
    args = backend, layout, theta, grad, state, hyperparameters
    if is_elementwise(optimizer):
        theta, state = optimizer.update(*args, donate=True)  # type: ignore[call-arg]
        return theta, state
    current.deferred = None
    theta, state = optimizer.update(*args, evaluate)
    if not backend.traces:  # NumPy makes numbers of arrays without axes
        state = tuple([backend.xp.asarray(array) for array in state])
    return theta, state


def training_step(layout: Layout, optimizer: Optimizer, gradient: Gradient) -> Callable[..., tuple[Carry, Array]]:
    """step(backend, carry, x, y, weight, rows, hyperparameters, number) -> carry, loss; the carry is given up.

    `number` counts steps from 1, and `hyperparameters` are what the optimizer makes of it.
    """

    def step(backend: Backend, carry: Carry, *args: Any) -> tuple[Carry, Array]:
        begin, buffers, state = carry
        *batch, hyperparameters, number = args
        value, grad, new = gradient(backend, begin, buffers, *batch, number)

        def evaluate(at: Array) -> tuple[Array, Array]:
            return (value, grad) if at is begin else gradient(backend, at, buffers, *batch, number)[:2]

        theta, state = updated(optimizer, backend, layout, begin, grad, state, hyperparameters, evaluate)
        return (theta, buffers if new is None else new, state), value

    return step


def _of_blocks(
    function: Callable[..., T], backend: Backend, layout: Layout, precision: str, p: Params, *arrays: Input | None
) -> list[T]:
    """function(run, output, *rows) of every block of rows of the arrays, the first of which is the network's input."""

    def block(number: int, part: Rows) -> T:
        run, rows = Run(backend, context=backend.context(precision)), take_rows(backend, arrays, part, None)
        return function(run, backend.outline(layout.network).forward(run, p, rows[0])[0], *rows)

    return list(backend.map_blocks(block, backend.blocks(row_count(arrays[0]), 2.0 * layout.size)))


def outputs(
    layout: Layout, views: Views, precision: str = "float32"
) -> Callable[[Backend, Array, Array, Input], tuple[Array, Array]]:
    """outputs(backend, theta, buffers, x): what the network gives for the rows of x, and the sum over x and that.

    The sum tells whether one of them has NaN or infinity, without a pass of its own over x; of x only those values
    count that the network does not take.
    """

    takes, missing = layout.network.takes, accepting(layout.network)
    # which arrays of x are of whole numbers, none of which is not finite
    codes = [kind is not None for _, kind in takes] if isinstance(takes, tuple) else [takes is not None]

    def of_block(run: Run, output: Array, x: Input) -> tuple[Array, Array]:
        total, xp = run.xp.sum(output), run.xp
        for array, is_codes, accepts_nan in zip(x if isinstance(x, tuple) else (x,), codes, missing, strict=True):
            if not is_codes:
                total = xp.sum(xp.where(xp.isnan(array), 0.0, array) if accepts_nan else array) + total
        return output, total

    def function(backend: Backend, theta: Array, buffers: Array, x: Input) -> tuple[Array, Array]:
        found = _of_blocks(of_block, backend, layout, precision, views(backend, theta, buffers), x)
        results, totals = zip(*found, strict=True)
        return results[0] if len(results) == 1 else backend.xp.concat(results), backend.total(totals, backend.add_to)

    return function


def scores(
    layout: Layout, views: Views, loss: Loss, precision: str = "float32", metrics: Sequence[Metric] = ()
) -> Callable[..., tuple[Array, Array | None, Array | None, tuple[Statistics, ...]]]:
    """scores(backend, theta, buffers, x, y, weight, total): these rows' share of the loss, and what is right of them.

    That is the weight of the rows for which the prediction is right, and of all rows, added up in the same order, so
    that their ratio is no more than 1; without weights the number of those rows, and None.  For a loss without classes
    both are None.  Then the statistics of each of the metrics.
    """

    def statistics(run: Run, output: Array, y: Array, weight: Array | None) -> tuple[Statistics, ...]:
        if not metrics:
            return ()
        rows, one, output = output.shape[0], loss.single, loss.pooled(run.backend, output)
        each = run.xp.ones_like(run.xp.reshape(output, (rows, -1))[:, 0]) if weight is None else weight
        return tuple([metric.statistics(run, one, output, y, each) for metric in metrics])

    def function(
        backend: Backend, theta: Array, buffers: Array, x: Input, y: Array, weight: Array | None, total: Any
    ) -> tuple[Array, Array | None, Array | None, tuple[Statistics, ...]]:
        def of_block(run: Run, output: Array, x: Input, y: Array, weight: Array | None) -> tuple[Any, ...]:
            value, right = loss(run, output, y, weight, total)[0], loss.correct(run, output, y)
            found = statistics(run, output, y, weight)
            if right is None:
                return value, None, None, found
            if weight is None:
                return value, run.xp.sum(right), None, found
            return value, run.xp.sum(right * weight), run.xp.sum(weight), found

        blocks = _of_blocks(of_block, backend, layout, precision, views(backend, theta, buffers), x, y, weight)
        *numbers, each = zip(*blocks, strict=True)
        value, right, counted = (None if some[0] is None else backend.total(some, backend.add_to) for some in numbers)
        joined = [
            backend.total(some, partial(metric.combine, backend))
            for metric, some in zip(metrics, zip(*each, strict=True), strict=True)
        ]
        return value, right, counted, tuple(joined)

    return function
