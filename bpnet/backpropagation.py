"""Loss and gradient of a network: a sum over row blocks, by the chain rule within each.

x, y -> [ row blocks -> forward -> loss -> backward ] summed -> gradient vector
"""

from collections.abc import Mapping
from typing import Any

from bpnet.backends import Array, Backend, common_backend
from bpnet.backends.base import Rows
from bpnet.backends.interrupts import ends_sessions
from bpnet.data import check_rows, check_target, check_weight, check_x, detached
from bpnet.errors import DTypeError, ShapeError, plural
from bpnet.layer import Layer, Params, Run, check_layer
from bpnet.layout import GradBuffer, Layout, layout_of
from bpnet.losses import Loss
from bpnet.options import flag, whole
from bpnet.protocol import check_network
from bpnet.registry import resolve
from bpnet.typing import AnyArray, LossName


def loss_and_gradient(
    backend: Backend,
    layout: Layout,
    loss: Loss,
    p: Params,
    x: Array,
    y: Array,
    weight: Array | None,
    rows: Array | None = None,
    key: tuple[Any, ...] = (0, 0),
    training: bool = True,
    grad_buffers: list[GradBuffer] | None = None,
    precision: str = "float32",
    micro_batch: int | None = None,
) -> tuple[Array, Array, Mapping[str, Any]]:
    """The loss of a batch, its gradient as one vector, and the new values of the buffers.

    The batch is x, y, weight, or where `rows` is given, those rows of them.  `grad_buffers` keeps the memory of
    gradients from one call to the next, for a caller who is then done with the last one.  `precision` is that of
    products.  `micro_batch` is the most rows of a block, where rows may be parted.
    """
    xp, network = backend.xp, layout.network
    grad_buffers = [] if grad_buffers is None else grad_buffers
    count = x.shape[0] if rows is None else rows.shape[0]
    total: Any = float(count)
    if weight is not None:
        total = xp.sum(weight if rows is None else xp.take(weight, rows))
        total = xp.maximum(total, float(xp.finfo(x.dtype).smallest_normal))  # rows of no weight have no loss, not NaN
    taken: dict[str, Any] = {}

    def block(number: int, part: Rows) -> tuple[Array, Array, GradBuffer | None]:
        buffer = _grad_buffer(backend, layout, x, grad_buffers)
        context = backend.context(precision, None if buffer is None else buffer.of(p), network)
        run = Run(backend, training, (*key, number), context)
        bx, by, bw = take_rows(backend, (x, y, weight), part, rows)
        output, cache = network.forward(run, p, bx)
        value, slope = loss(run, backend.widened(output), by, bw, total)
        _, grads = network.backward(run, p, cache, slope, False)
        if network.updates_buffers and training:
            taken.update(network.update_buffers(run, p, cache))
        return value, layout.join(backend, grads) if buffer is None else buffer.join(grads), buffer

    whole = network.couples_rows or network.updates_buffers
    parts = [(0, count)] if whole else backend.blocks(count, 6.0 * layout.size)
    if micro_batch is not None and not whole and max(stop - start for start, stop in parts) > micro_batch:
        pieces = -(-count // micro_batch)
        parts = [(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]

    def add(total: tuple[Array, Array, GradBuffer | None], part: tuple[Array, Array, GradBuffer | None]) -> Any:
        value, grad = backend.add_to(total[0], part[0]), backend.add_to(total[1], part[1])
        if part[2] is not None:
            grad_buffers.append(part[2])  # only now: another thread may take it and write to it at once
        return value, grad, total[2]

    one = len(parts) == 1
    value, grad, kept = block(0, parts[0]) if one else backend.total(backend.map_blocks(block, parts), add, len(parts))
    if kept is not None:
        grad_buffers.append(kept)  # for the next call: the caller is done with this gradient by then
    return value, grad, taken


def _grad_buffer(backend: Backend, layout: Layout, x: Array, grad_buffers: list[GradBuffer]) -> GradBuffer | None:
    """One of `grad_buffers`, or a new one, for a library whose arrays can be written to."""
    if backend.traces:
        return None
    try:
        return grad_buffers.pop()
    except IndexError:
        memory = backend.empty_vector(layout.size, x)
        return None if memory is None else GradBuffer(backend, layout, memory)


def take_rows(
    backend: Backend, arrays: tuple[Array | None, ...], part: Rows, rows: Array | None
) -> tuple[Array | None, ...]:
    """Rows part[0] ... part[1] - 1 of each array, or of the selection `rows` of it."""
    start, stop = part
    if rows is None:
        if start == 0 and stop == arrays[0].shape[0]:  # type: ignore[union-attr]
            return arrays
        return tuple([None if a is None else a[start:stop, ...] for a in arrays])
    some = rows[start:stop]
    return tuple(None if a is None else backend.xp.take(a, some, axis=0) for a in arrays)


@ends_sessions
def gradient(
    network: Layer,
    loss: LossName | Loss,
    theta: AnyArray,
    x: AnyArray,
    y: AnyArray,
    *,
    sample_weight: AnyArray | None = None,
    buffers: AnyArray | None = None,
    seed: int = 0,
    training: bool = True,
) -> tuple[Array, Array]:
    """The loss of `network` with parameters `theta` on the batch x, y, and its gradient with respect to `theta`.

    `theta` (and `buffers`, for a network that has any) are vectors laid out by `bp.layout_of(network, x.shape[1:])`;
    the gradient is a vector like theta.  `training=False` leaves dropout out and takes running statistics.

    Raises ArrayMismatchError, ShapeError, DTypeError or DataError on unfit arguments.
    """
    loss, seed = resolve(Loss, "loss", loss), whole("seed", seed, 0)
    network = check_layer("network", network)
    common_backend({"x": x, "y": y, "theta": theta}, {"sample_weight": sample_weight, "buffers": buffers})
    training = flag("training", training)
    backend, x = check_x(x)
    with backend.session(device=backend.device(x)):
        check_network(network, x, loss)
        layout = layout_of(network, tuple(x.shape[1:]))
        check_rows(x, layout.in_shape)
        theta = check_vector(backend, theta, layout.size, x.dtype, "theta")
        network.check_type(*type_of(backend, x))
        if layout.buffer_size:
            if buffers is None:
                raise ShapeError(f"the network has {plural(layout.buffer_size, 'buffer value')}: pass them as buffers=")
            buffers = check_vector(backend, buffers, layout.buffer_size, x.dtype, "buffers")
        y = check_target(backend, loss, layout.out_shape, x, y)
        weight = check_weight(backend, sample_weight, x)
        p = layout.views(backend, theta, buffers)
        value, grad, _ = loss_and_gradient(backend, layout, loss, p, x, y, weight, key=(seed, 0), training=training)
    return value, grad


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
