"""Whether what a user writes keeps to the protocol: what its methods take and give, of which shapes.

Layers, losses and optimizers are tried once, on two rows of ones on the host, so that no training step pays for it.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from bpnet.backends import backend_of, get
from bpnet.errors import ArgumentError, BpnetError, DTypeError, ShapeError, kind_of, plural
from bpnet.layer import Composite, InShape, Layer, Run, Shape, ShapeRng, leaves
from bpnet.layers.dense import Dense
from bpnet.layout import Layout, layout_of
from bpnet.losses.base import Loss
from bpnet.optimizers.base import ElementwiseOptimizer, Optimizer
from bpnet.registry import parts_of

Faults = list[BpnetError]

MOST = 1_000_000
"""Of how many values, parameters and rows together, a layer is tried; what is wrong with a larger one a step shows."""


def check_network(network: Layer, in_shape: InShape, like: Any, loss: Loss, optimizer: Optimizer | None = None) -> None:
    """Raise where a user's own layer, loss or optimizer does not keep to the protocol for rows of `in_shape`.

    `like` is an array of the library and type that is computed with.
    """
    single = backend_of(like).name in ("numpy", "cupy") and not str(like.dtype).endswith("float64")
    dtype = "float32" if single else "float64"  # which nothing promotes
    _check(network_faults, network, in_shape, dtype)
    if not _own(loss):
        _check(_loss_faults, loss, tuple(network.out_shape(in_shape)), dtype)
    for part in () if optimizer is None else parts_of(optimizer, Optimizer):
        if not _own(part):
            _check(_optimizer_faults, part, dtype)


@lru_cache(maxsize=64)
def _check(find: Callable[..., Faults], *args: Any) -> None:
    for fault in find(*args):
        raise fault


def _own(thing: Layer | Loss | Optimizer) -> bool:
    return type(thing).__module__.startswith("bpnet.")


# ---- layers ---------------------------------------------------------------------------------------------------------


def network_faults(network: Layer, in_shape: InShape, dtype: str) -> Faults:
    """What is wrong with the layers in `network` that are not bpnet's, the first layer first."""
    parts = _parts(network, in_shape)
    return [fault for path, layer, shape in parts for fault in _layer_faults(titled(path, layer), layer, shape, dtype)]


def _parts(layer: Layer, in_shape: InShape, path: str = "") -> Iterator[tuple[str, Layer, InShape]]:
    """Every layer that is not bpnet's, with its path and the shape of the rows that come in."""
    if isinstance(layer, Composite) and _own(layer):
        for (name, child), shape in zip(layer.children, layer.child_shapes(in_shape), strict=True):
            yield from _parts(child, tuple(shape), f"{path}.{name}" if path else name)
    elif type(layer) is Dense:
        yield from _parts(layer.function, layer.out_shape(in_shape), path)
    elif not _own(layer):
        yield path, layer, in_shape


def titled(path: str, layer: Layer) -> str:
    """What a message calls a layer."""
    return f"layer {path!r}, {layer}" if path else str(layer)


def _layer_faults(where: str, layer: Layer, in_shape: InShape, dtype: str) -> Faults:
    found = _signature_faults(where, layer, Layer, "out_shape", "init", "forward", "backward")
    if found or isinstance(layer.takes, tuple):  # of one that takes several arrays a step shows what is wrong
        return found
    out_shape: Any = layer.out_shape(in_shape)
    if not isinstance(out_shape, tuple | list) or not all(hasattr(n, "__index__") for n in out_shape):
        raise ArgumentError(f"{where}: out_shape gave {out_shape!r}; expected a tuple of whole numbers")
    x_shape, y_shape = (2, *in_shape), (2, *map(int, out_shape))
    start: Any = layer.init(ShapeRng(), in_shape)
    if not isinstance(start, Mapping):
        return [ArgumentError(f"{where}: init gave {_given(start)}; expected a dict of start values by name")]
    layout = layout_of(layer, in_shape, trains=False)
    if layout.parameters and not layer.trainable:
        names = ", ".join(slot.name for slot in layout.parameters)
        given = f"trainable is False, but init gives {names} to be trained"
        return [ArgumentError(f"{where}: {given}; expected Leaf(value, trainable=False), and no gradients of backward")]
    if layout.size + layout.buffer_size + math.prod(x_shape) + math.prod(y_shape) > MOST:
        return []
    run = Run(get("numpy"), True, (0, 0))
    x, dy = (run.xp.ones(shape, dtype=dtype) for shape in (x_shape, y_shape))
    x = x if layer.takes is None else run.xp.zeros(x_shape, dtype="int32")
    with suppress(Exception), run.backend.session():  # it may need another library or other rows: a step shows that
        p = layout.views(run.backend, *(run.backend.from_host(v, dy.dtype) for v in layout.start(0)))
        made: Any = layer.forward(run, p, x)
        found = forward_faults(where, made, x_shape, y_shape, dtype)
        for need_dx in () if found else (True, False):
            called = where if need_dx else f"{where}, with need_dx=False"
            back = layer.backward(run, p, made[1], dy, need_dx)
            found = found or backward_faults(called, back, x_shape, layout, dtype, need_dx)
        if layout.buffers and not found:
            found = _buffer_faults(where, layer.update_buffers(run, p, made[1]), layout)
    return found


def _signature_faults(where: str, thing: Any, base: type, *names: str) -> Faults:
    """Which methods of a user's can't be called as those of the base."""
    found: Faults = []
    for name in names:
        expected = inspect.signature(getattr(base, name)).parameters.values()
        plain = [p.replace(annotation=p.empty) for p in expected]
        with suppress(ValueError):  # of a method that is compiled, and does not say
            try:
                inspect.signature(getattr(thing, name)).bind(*plain[1:])
            except TypeError as error:
                called = f"{name}({', '.join(map(str, plain))})"
                found.append(ArgumentError(f"{where}: {name} can't be called as {called}: {error}"))
    return found


def forward_faults(where: str, made: Any, x_shape: Shape, y_shape: Shape, dtype: str) -> Faults:
    """What is wrong with a result of forward for an x of `x_shape`, the output being declared to be of `y_shape`."""
    if not_two := _not_two(f"{where}: forward", made, "y, cache"):
        return not_two
    shape = _shape_of(made[0])
    if shape is None:
        return [ArgumentError(f"{where}: forward gave {_given(made[0])} as y; expected an array")]
    if shape[:1] != x_shape[:1]:
        return [ShapeError(f"{where}: forward makes {shape} of {x_shape}; expected as many rows")]
    if shape == y_shape:
        return _type_faults(where, dtype, {"output": made[0]})
    declared = f"but out_shape says {y_shape[1:]}: define out_shape(self, in_shape) so that it gives what forward does"
    return [ShapeError(f"{where}: forward turns rows of {x_shape[1:]} into {shape[1:]}, {declared}")]


def backward_faults(where: str, made: Any, x_shape: Shape, layout: Layout, dtype: str, need_dx: bool = True) -> Faults:
    """What is wrong with a result of backward, the trainable parameters being those of `layout`."""
    if not_two := _not_two(f"{where}: backward", made, "dx, grads"):
        return not_two
    dx, grads = made
    if not isinstance(grads, Mapping):
        return [ArgumentError(f"{where}: backward gave {_given(grads)} as grads; expected a dict of arrays by name")]
    trained = {".".join(path): slot.shape for slot in layout.parameters for path in (slot.path, *slot.also)}
    have, wrong = dict(leaves(grads)), []
    if dx is None and need_dx:
        wrong.append("backward gave None for dx although need_dx was True")
    elif need_dx and _shape_of(dx) != x_shape:
        wrong.append(f"dx {_has(dx)}; expected that of x, {x_shape}")
    for name in sorted(trained.keys() | have.keys()):
        if name not in have:
            wrong.append(f"backward gave no gradient for {name}")
        elif name not in trained:
            known = ", ".join(trained) or "none"
            wrong.append(f"backward gave a gradient for {name}, which is no trainable parameter: they are {known}")
        elif _shape_of(have[name]) != trained[name]:
            wrong.append(f"the gradient of {name} {_has(have[name])}; expected {trained[name]}")
    derivatives = {"dx": dx, **{f"gradient of {name}": value for name, value in have.items()}}
    return [ShapeError(f"{where}: {text}") for text in wrong] or _type_faults(where, dtype, derivatives)


def _buffer_faults(where: str, made: Any, layout: Layout) -> Faults:
    if not isinstance(made, Mapping):
        return [ArgumentError(f"{where}: update_buffers gave {_given(made)}; expected a dict of buffers by name")]
    kept, wrong = {slot.name: slot.shape for slot in layout.buffers}, []
    for name, value in leaves(made):
        if name not in kept:
            wrong.append(f"update_buffers gave {name}, which is no buffer: they are {', '.join(kept)}")
        elif _shape_of(value) != kept[name]:
            wrong.append(f"the buffer {name} {_has(value)} in update_buffers; expected {kept[name]}")
    return [ShapeError(f"{where}: {text}") for text in wrong]


# ---- losses and optimizers ------------------------------------------------------------------------------------------


def _loss_faults(loss: Loss, out_shape: Shape, dtype: str) -> Faults:
    found, shape = _signature_faults(str(loss), loss, Loss, "__call__"), (2, *out_shape)
    if found or math.prod(shape) > MOST:
        return found
    run = Run(get("numpy"), True, (0, 0))
    with suppress(Exception), run.backend.session():  # as above: it may want other targets
        target = run.xp.full((2, *loss.target_shape(out_shape)), 0.5, dtype=dtype)
        if loss.labels:
            target = run.xp.zeros(2, dtype=run.xp.int64)
        output = run.xp.full(shape, 0.5, dtype=dtype)
        output[1, ...] = 0.25
        made = loss(run, output, target, None, 2.0)
        found = loss_faults(loss, made, shape, dtype)
        if not found:
            each = (loss(run, output[i : i + 1, ...], target[i : i + 1, ...], None, 2.0)[0] for i in range(2))
            found = _sum_faults(loss, float(made[0]), sum(map(float, each)))
    return found


def _sum_faults(loss: Loss, both: float, each: float) -> Faults:
    """Whether the loss of two rows is other than the sum of those of each."""
    if math.isclose(both, each, rel_tol=1e-3, abs_tol=1e-6) or not math.isfinite(both - each):
        return []
    return [
        ArgumentError(
            f"{loss}: of two rows it gave {both:.6g}, but of each by itself, with the same total, {each:.6g} together; "
            "expected a sum over rows, divided by total: they are computed in parts, which are added up"
        )
    ]


def loss_faults(loss: Loss, made: Any, shape: Shape, dtype: str) -> Faults:
    """What is wrong with a result of a loss for an output of `shape`."""
    if not_two := _not_two(str(loss), made, "value, d_output"):
        return not_two
    if _shape_of(made[0]) != ():
        return [ShapeError(f"{loss}: the value {_has(made[0])}; expected (), a sum over rows and outputs")]
    if _shape_of(made[1]) != shape:
        return [ShapeError(f"{loss}: d_output {_has(made[1])}; expected that of the output, {shape}")]
    return _type_faults(str(loss), dtype, {"d_output": made[1]})


def _optimizer_faults(optimizer: Optimizer, dtype: str) -> Faults:
    """What is wrong with what an optimizer gives for nine parameters: theta and its state anew, of shapes as before."""
    found: Faults = []
    backend, layout = get("numpy"), layout_of(Dense(3), (2,))
    with suppress(Exception), backend.session():  # as above: it may need other parameters
        theta: Any = backend.xp.ones(layout.size, dtype=dtype)
        state, numbers = optimizer.init(backend, layout, theta), optimizer.hyperparameters_at(0)
        if type(optimizer).update is ElementwiseOptimizer.update:
            made: Any = optimizer.elementwise_step(backend, theta, *state, theta, *numbers)  # type: ignore[attr-defined]
            if not isinstance(made, tuple) or len(made) != 1 + len(state):
                given = plural(len(made), "thing") if isinstance(made, tuple) else "no tuple"
                expected = ", ".join(("theta", *optimizer.state_names[: len(state)]))
                return [ArgumentError(f"{optimizer}: elementwise gave {given}; expected the tuple ({expected},)")]
        else:
            made = optimizer.update(
                backend, layout, theta, theta, state, numbers, lambda at: (0.5 * backend.xp.sum(at * at), at)
            )
            if not_two := _not_two(f"{optimizer}: update", made, "theta, state"):
                return not_two
            made = made[0], *made[1]
        names = ["theta", *(f"state {i}" for i in range(len(state)))]
        for name, old, new in zip(names, (theta, *state), made, strict=False):
            if _shape_of(new) != _shape_of(old):
                found.append(ShapeError(f"{optimizer}: {name} {_has(new)} after a step; expected {_shape_of(old)}"))
        found = found or _type_faults(str(optimizer), dtype, dict(zip(names, made, strict=False)))
    return found


# ---- what was given, against what was expected ----------------------------------------------------------------------


def _type_faults(where: str, dtype: str, made: Mapping[str, Any]) -> Faults:
    """Which results are of another type than x and the parameters, which are of `dtype`."""
    return [
        DTypeError(
            f"{where}: the {name} is {value.dtype} where x and the parameters are {dtype}: compute with Python's "
            "numbers, or with arrays of the type of x"
        )
        for name, value in made.items()
        if value is not None and str(value.dtype).rpartition(".")[2] != dtype
    ]


def _not_two(who: str, made: Any, expected: str) -> Faults:
    several = isinstance(made, tuple | list)
    if several and len(made) == 2:
        return []
    given = plural(len(made), "thing") if several else "None" if made is None else "one thing"
    return [ArgumentError(f"{who} gave {given}; expected the two of `return {expected}`")]


def _given(value: Any) -> str:
    return "None" if value is None else f"an object {kind_of(value)}"


def _shape_of(value: Any) -> Shape | None:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _has(value: Any) -> str:
    shape = _shape_of(value)
    return f"is {kind_of(value)}" if shape is None else f"has the shape {shape}"
