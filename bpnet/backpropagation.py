"""Loss and gradient of a network: a sum over row blocks, by the chain rule within each.

x, y -> [ row blocks -> forward -> loss -> backward ] summed -> gradient vector
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bpnet.backends import Array, Backend, common_backend, definitions
from bpnet.backends.base import Rows
from bpnet.backends.interrupts import current, ends_sessions
from bpnet.data.checks import check_target, check_x, detached
from bpnet.data.loader import Batch, take_rows
from bpnet.data.prepare import named, prepare
from bpnet.errors import DTypeError, ShapeError, plural
from bpnet.layer import Input, InShape, Layer, Params, Run, check_layer, each_array, row_count, value_of
from bpnet.layout import GradBuffer, Layout, arranged, layout_of
from bpnet.losses.base import Loss
from bpnet.optimizers.clipping import clip_by_global_norm
from bpnet.options import flag, whole
from bpnet.penalties import Penalty, check_penalties, with_penalties
from bpnet.protocol import check_network
from bpnet.registry import resolve
from bpnet.schedules import Schedule
from bpnet.typing import AnyArray, AnyInput, LossName


def loss_and_gradient(
    backend: Backend,
    theta: Array,
    buffers: Array,
    x: Input,
    y: Array | None,
    weight: Array | None,
    rows: Array | None,
    number: Any,
    *,
    layout: Layout,
    loss: Loss,
    clip_norm: float | None = None,
    penalties: Sequence[Penalty] = (),
    schedules: tuple[Schedule, ...] = (),
    **options: Any,
) -> tuple[Array, Array, Array | None]:
    """The loss of a batch, its gradient with respect to `theta`, clipped, and new buffers, if the network has any.

    `rows` are those of the arrays to take (None: all), and `number` is the step's, from which masks are drawn.  Where
    layers or penalties have `schedules`, it is a tuple: that of the step, and of each.  For `options` see
    `part_of_gradient`.
    """
    xp = backend.xp
    total = float(row_count(x) if rows is None else rows.shape[0])
    if weight is not None:
        total = xp.sum(weight if rows is None else xp.take(weight, rows))
        least = float(xp.finfo(theta.dtype).smallest_normal)
        total = xp.maximum(total, least)  # rows of no weight: no loss, not NaN
    batch = x, y, weight, rows, number, total
    options |= {"layout": layout, "loss": loss, "schedules": schedules}
    value, grad, updated = part_of_gradient(backend, theta, buffers, *batch, **options)
    of_step: dict[str, Any] = {"layout": layout, "penalties": penalties, "clip_norm": clip_norm, "schedules": schedules}
    return *finished(backend, theta, value, grad, number, total, **of_step), updated


def part_of_gradient(
    backend: Backend,
    theta: Array,
    buffers: Array,
    x: Input,
    y: Array | None,
    weight: Array | None,
    rows: Array | None,
    number: Any,
    total: Any,
    first_row: Any = 0,
    *,
    layout: Layout,
    loss: Loss,
    views: Callable[[Backend, Array, Array], Params] | None = None,
    seed: int = 0,
    training: bool = True,
    precision: str = "float32",
    micro_batch: int | None = None,
    schedules: tuple[Schedule, ...] = (),
    grad_buffers: list[GradBuffer] | None = None,
    ranks: Any = None,
) -> tuple[Array, Array, Array | None]:
    """What these rows contribute to the loss and the gradient of a batch whose weight is `total`, and new buffers.

    That of the batch is the sum over its parts.  Of these rows the first has the number `first_row` in it, from which
    masks are drawn.  `views` is `layout.views`, or gives the same.  `precision` is that of products.  `micro_batch` is
    the most rows of a block, where rows may be parted.  `grad_buffers` keeps the memory of gradients from one call to
    the next, for a caller who is then done with the last one.  `ranks` is the communicator of those who have the rest
    of the batch.
    """
    step, values = number_of(number, schedules)
    xp, p = backend.xp, (views or layout.views)(backend, theta, buffers)
    total = loss.total(total)

    def of_block(
        x: Input, y: Array | None, weight: Array | None, first: Any, pool: list[GradBuffer] | None
    ) -> tuple[Array, Array, Array | None]:
        network, buffer = layout.network, None
        if backend.writable:
            buffer = pool.pop() if pool else GradBuffer(backend, layout, theta)
        context = backend.context(precision, None if buffer is None else buffer.of(p))
        run = Run(backend, training, (seed, step), context, values)
        run.first_row, run.terms, run.share = first, ([] if training else None), (weight, total)
        run.ranks = ranks
        part, measure = (backend.outline(network), backend.outline(loss)) if backend.traces else (network, loss)
        output, cache = part.forward(run, p, x)
        value, dy = measure(run, output, y, weight, total)
        for term in run.terms or ():
            value = value + term
        _, grads = part.backward(run, p, cache, dy, False)
        updates = network.update_buffers(run, p, cache) if network.updates_buffers and training else {}
        grad = layout.join_gradients(backend, grads) if buffer is None else buffer.join(grads)
        if pool is not None and buffer is not None:
            pool.append(buffer)  # for the next call: the caller is done with this gradient by then
        return value, grad, layout.join_buffers(backend, updates, buffers) if updates else None

    blocks = blocks_of(backend, layout, row_count(x) if rows is None else rows.shape[0], micro_batch)
    if len(blocks) > 1:
        return *_sum_of_blocks(backend, of_block, (x, y, weight, rows), blocks, first_row, grad_buffers), None
    if rows is not None:
        x = each_array(lambda a: xp.take(a, rows, axis=0), x)
        y, weight = (None if a is None else xp.take(a, rows, axis=0) for a in (y, weight))
    return of_block(x, y, weight, first_row, grad_buffers)


def blocks_of(backend: Backend, layout: Layout, count: int, micro_batch: int | None) -> list[Rows]:
    """The blocks of so many rows, the sums over which are added up."""
    if layout.network.couples_rows or layout.network.updates_buffers:
        return [(0, count)]
    blocks = backend.blocks(count, 6.0 * layout.size)
    if micro_batch is not None and max(stop - start for start, stop in blocks) > micro_batch:
        pieces = -(-count // micro_batch)
        return [(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
    return blocks


def number_of(number: Any, schedules: tuple[Schedule, ...]) -> tuple[Any, dict[Schedule, Any]]:
    """The number of a step, and those of schedules in it."""
    if not schedules:
        return number, {}
    step, *own = number
    return step, dict(zip(schedules, own, strict=True))


def finished(
    backend: Backend,
    theta: Array,
    value: Array,
    grad: Array,
    number: Any,
    total: Any,
    *,
    layout: Layout,
    penalties: Sequence[Penalty] = (),
    clip_norm: float | None = None,
    schedules: tuple[Schedule, ...] = (),
) -> tuple[Array, Array]:
    """The loss of a whole batch and its gradient, with penalties, and then clipped."""
    if penalties:
        step, values = number_of(number, schedules)
        of_step = partial(value_of, values=values, number=step)
        value, grad = with_penalties(backend, layout, penalties, theta, value, grad, of_step, total)
    return value, grad if clip_norm is None else clip_by_global_norm(backend, grad, clip_norm)


def _sum_of_blocks(
    backend: Backend,
    of_block: Callable[..., tuple[Array, Array, Any]],
    batch: Batch,
    blocks: Sequence[Rows],
    first_row: Any,
    grad_buffers: list[GradBuffer] | None,
) -> tuple[Array, Array]:
    pool = [] if grad_buffers is None else grad_buffers

    def block(number: int, part: Rows) -> tuple[Array, Array, list[GradBuffer]]:
        try:
            own = [pool.pop()]
        except IndexError:
            own = []
        x, y, weight = take_rows(backend, batch[:3], part, batch[3])
        value, grad, _ = of_block(x, y, weight, first_row + part[0], own)
        return value, grad, own

    def add(some: tuple[Array, Array, list[GradBuffer]], more: tuple[Array, Array, list[GradBuffer]]) -> Any:
        value, grad = backend.add_to(some[0], more[0]), backend.add_to(some[1], more[1])
        pool.extend(more[2])  # only now: another thread may take it and write to it at once
        return value, grad, some[2]

    value, grad, own = backend.total(backend.map_blocks(block, blocks), add, len(blocks))
    pool.extend(own)
    return value, grad


@ends_sessions
def value_and_grad(
    network: Layer,
    loss: LossName | Loss,
    theta: AnyArray,
    x: AnyInput,
    y: AnyArray,
    *,
    sample_weight: AnyArray | None = None,
    buffers: AnyArray | None = None,
    penalties: Sequence[Penalty] = (),
    seed: int = 0,
    training: bool = True,
) -> tuple[Array, Array]:
    """The loss of `network` with parameters `theta` on the batch x, y, and its gradient with respect to `theta`.

    `theta` (and `buffers`, for a network that has any) are vectors laid out by `bp.layout_of(network, x.shape[1:])`;
    the gradient is a vector like theta.  Where the network takes several arrays, x is a dict or a tuple of them.
    `training=False` leaves dropout out and takes running statistics.

    Raises ArrayMismatchError, ShapeError, DTypeError or DataError on unfit arguments.
    """
    criterion, seed = resolve(Loss, "loss", loss), whole("seed", seed, 0)
    network, training = check_layer("network", network), flag("training", training)
    inputs = {what: array for _, what, array, _ in arranged(network.takes, x, "x")}
    common_backend(inputs | {"y": y, "theta": theta}, {"sample_weight": sample_weight, "buffers": buffers})

    def fitting(in_shape: InShape, like: Array) -> Layout:
        check_network(network, in_shape, like, criterion)
        return layout_of(network, in_shape)

    data = prepare(named(x, y, sample_weight), network, criterion, fitting)
    backend, layout, like = data.backend, data.layout, data.like
    with backend.session(device=backend.device(like)):
        theta = check_vector(backend, theta, layout.size, like.dtype, "theta")
        network.check_type(*type_of(backend, like))
        if layout.buffer_size:
            if buffers is None:
                raise ShapeError(f"the network has {plural(layout.buffer_size, 'buffer value')}: pass them as buffers=")
            buffers = check_vector(backend, buffers, layout.buffer_size, like.dtype, "buffers")
        backend = definitions(backend) if current.reference else backend
        options: dict[str, Any] = {"layout": layout, "loss": criterion, "seed": seed, "training": training}
        options |= {"penalties": check_penalties(penalties)}
        value, grad, _ = loss_and_gradient(backend, theta, buffers, *data.whole_batch(), 0, **options)
    return value, grad


@ends_sessions
def row_losses(loss: LossName | Loss, output: AnyArray, target: AnyArray) -> Array:
    """The loss of every row of a network's output for its target, a vector: elsewhere the reduction "none".

    Their mean is the loss of all, or by its `reduction` their sum.  Raises ArrayMismatchError, ShapeError, DTypeError
    or DataError on unfit arguments.
    """
    criterion = resolve(Loss, "loss", loss)
    common_backend({"output": output, "target": target})
    backend, output = check_x(output, "output")
    with backend.session(device=backend.device(output)):
        shape = tuple(output.shape)
        target = check_target(backend, criterion, shape[1:], shape[0], output.dtype, target, "target", "output")
        return criterion.rows(Run(backend), output, target)


def type_of(backend: Backend, x: Array) -> tuple[str, float, float]:
    """The name of the type of `x`, and its smallest normal and its largest number."""
    info = backend.xp.finfo(x.dtype)
    name = "float32" if x.dtype == backend.xp.float32 else "float64"
    return name, float(info.smallest_normal), float(info.max)


def check_vector(backend: Backend, vector: Array, size: int, dtype: Any, name: str) -> Array:
    """Raise unless `vector` is 1-d, of `size` elements of `dtype`."""
    vector = detached(backend, vector, name)
    if tuple(vector.shape) != (size,):
        raise ShapeError(f"{name} has the shape {tuple(vector.shape)}; expected ({size},)")
    if vector.dtype != dtype:
        raise DTypeError(f"{name} holds {vector.dtype} values, but x {dtype}: convert one of them")
    return vector
