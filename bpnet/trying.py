"""What fits in memory, where a step or a forward pass did not: seen by trying parts of it, and said by the error."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from bpnet.backends import definitions
from bpnet.backends.interrupts import current
from bpnet.data.loader import Batch, parts, take_rows
from bpnet.data.memory import out_of_memory
from bpnet.errors import OutOfMemoryError
from bpnet.layer import Input, row_count

if TYPE_CHECKING:
    from bpnet.engine import Engine

PARTS_TRIED = 1024
"""Parts of a batch that are tried where the whole does not fit in memory."""


def step_error(engine: "Engine", error: Exception, batch: Batch) -> OutOfMemoryError:
    """The error to raise where a training step on that batch failed for want of memory."""
    x, _, _, rows = batch
    if x is None:  # of several ranks one that has no rows
        return OutOfMemoryError(f"a training step needs more memory than there is: {error}")
    # where tables are sparse the gradient is not one vector
    attempt = None if engine.sparse is not None else partial(_try_step, engine, batch)
    return _error(engine, error, row_count(x if rows is None else rows), True, attempt)


def forward_error(engine: "Engine", error: Exception, function: Callable[..., Any], x: Input, *args: Any) -> Exception:
    """The same of a forward pass, by a function of the engine."""
    return _error(engine, error, row_count(x), False, partial(_try_forward, engine, function, (x, *args)))


def _error(
    engine: "Engine", error: Exception, rows: int, training: bool, attempt: Callable[[int], Any] | None
) -> OutOfMemoryError:
    traceback.clear_frames(error.__traceback__)  # which hold what had been made
    return out_of_memory(error, engine.backend, engine.layout, engine.carry[0], rows, training, attempt)


@contextmanager
def _trying(engine: "Engine") -> Iterator[int]:
    """While it is tried what fits, in this thread alone: other libraries may end a process that has no memory.

    Gives how many threads will be at work, each on rows of its own and with gradients of its own.
    """
    threads, before = max(current.session.threads, 1), current.inside
    held = [engine.backend.empty_vector(engine.layout.size, engine.carry[0]) for _ in range(3 * (threads - 1))]
    try:
        current.inside = True
        yield threads
    finally:
        current.inside = before
        held.clear()


def _try_step(engine: "Engine", batch: Batch, most: int) -> None:
    """Loss and gradient of the batch by parts of at most so many rows, or of that many where they need each other.

    By the definition: to compile takes memory, and time, and what is compiled needs no more to run.
    """
    network, backend, (x, y, weight, rows) = engine.layout.network, engine.backend, batch
    count, whole = row_count(x if rows is None else rows), network.couples_rows or network.updates_buffers
    tried = min(count, most if whole else PARTS_TRIED * most)
    if rows is None:
        x, y, weight = take_rows(backend, (x, y, weight), (0, tried), None)
    else:
        rows = rows[:tried]
    (theta, buffers, _), (_, number) = engine.carry, engine.hyperparameters(engine.count)
    args = theta, buffers, x, y, weight, rows, number
    gradient = partial(engine.plain_gradient, grad_buffers=None)
    with _trying(engine) as threads, backend.session(engine.threads, backend.device(theta)):
        own = definitions(backend) if current.reference else backend
        gradient(own, *args, micro_batch=None if whole else most * threads)


def _try_forward(engine: "Engine", function: Callable[..., Any], args: tuple[Any, ...], most: int) -> None:
    """The same as `forward`, of at most so many rows at a time; outputs are put together in the end."""
    x, *rest = args
    arrays, rest = (x, *rest[:2]), rest[2:]  # with y and the weights of the rows, for `scores`
    theta, buffers, state = engine.carry
    theta = engine.optimizer.evaluation(engine.backend, engine.layout, theta, state)
    found = []
    with _trying(engine):
        for part in parts(row_count(x), most)[:PARTS_TRIED]:
            found.append(function(theta, buffers, *take_rows(engine.backend, arrays, part, None), *rest))
        if function is engine.outputs:
            engine.backend.xp.concat([output for output, _ in found])
