"""Whether layers and losses of a user's own keep to the protocol: what their methods take and give, of which shapes.

They are tried once for a network, on two rows of ones on the host, so that no training step pays for it.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from bpnet.backends import of
from bpnet.errors import ArgumentError, BpnetError, ShapeError, kind_of, plural
from bpnet.layer import Layer, Leaf, Rng, Run, Shape, ShapeRng
from bpnet.layers.composition import Residual, Sequential
from bpnet.layers.dense import Dense
from bpnet.losses import Loss

Shapes = Mapping[str, Shape]


def check_network(network: Layer, in_shape: Shape, loss: Loss) -> None:
    """Raise ArgumentError or ShapeError where a layer of a user's own, or the loss, does not keep to the protocol."""
    try:
        _check_once(network, in_shape, loss)
    except TypeError as error:
        if isinstance(error, BpnetError) or _can_be_hashed((network, loss)):
            raise  # else the layout says what can't be hashed


def _can_be_hashed(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=64)
def _check_once(network: Layer, in_shape: Shape, loss: Loss) -> None:
    for fault in network_faults(network, in_shape):
        raise fault
    for fault in _loss_faults(loss, network.out_shape(in_shape)):
        raise fault


def network_faults(network: Layer, in_shape: Shape) -> list[BpnetError]:
    """What is wrong with the layers in `network` that are not bpnet's, the first layer first."""
    return [fault for path, layer, shape in _parts(network, in_shape) for fault in _layer_faults(path, layer, shape)]


def _parts(layer: Layer, in_shape: Shape, path: str = "") -> Iterator[tuple[str, Layer, Shape]]:
    """Every layer that is not bpnet's, with its path and the shape of the rows that come in."""
    if type(layer) is Sequential:
        for name, child in layer.children:
            yield from _parts(child, in_shape, f"{path}.{name}" if path else name)
            in_shape = _shape(child, in_shape)
    elif type(layer) is Residual:
        yield from _parts(layer.inner, in_shape, f"{path}.inner" if path else "inner")
    elif type(layer) is Dense:
        yield from _parts(layer.function, layer.out_shape(in_shape), path)
    elif not _own(layer):
        yield path, layer, in_shape


def _own(thing: Layer | Loss) -> bool:
    return type(thing).__module__.startswith("bpnet.")


def titled(path: str, layer: Layer) -> str:
    """What a message calls a layer."""
    return f"layer {path!r}, {layer}" if path else str(layer)


def _layer_faults(path: str, layer: Layer, in_shape: Shape) -> list[BpnetError]:
    where = titled(path, layer)
    for name in ("out_shape", "init", "forward", "backward"):
        fault = signature_fault(where, layer, name)
        if fault is not None:
            return [fault]
    out_shape, start = _shape(layer, in_shape), layer.init(ShapeRng(), in_shape)
    if not isinstance(start, Mapping):
        return [ArgumentError(f"{where}: init gave {_given(start)}; expected a dict of start values by name")]
    x = Rng(0).full((2, *in_shape), 1.0)
    run = Run(of(x), True, (0, 0, 0))
    trained = {name: _shape_of(value) or () for name, value, trainable in _leaves(start) if trainable}
    kept = {name: _shape_of(value) or () for name, value, trainable in _leaves(start) if not trainable}
    try:
        with run.backend.session():
            p = _values(start)
            made = layer.forward(run, p, x)
            found = forward_faults(where, made, (2, *in_shape), (2, *out_shape))
            for need_dx in () if found else (True, False):
                cache = layer.forward(run, p, x)[1]
                made = layer.backward(run, p, cache, Rng(0).full((2, *out_shape), 1.0), need_dx)
                called = where if need_dx else f"{where}, with need_dx=False"
                found = found or backward_faults(called, made, (2, *in_shape), trained, need_dx)
            if kept and not found:
                found = _absorb_faults(where, layer.absorb(run, p, cache), kept)
    except Exception:  # it may need another library or other rows: then the training step shows what is wrong
        return []
    return found


def _shape(layer: Layer, in_shape: Shape) -> Shape:
    shape: Any = layer.out_shape(in_shape)
    if isinstance(shape, tuple | list) and all(hasattr(n, "__index__") for n in shape):
        return tuple(map(int, shape))
    raise ArgumentError(f"{layer}: out_shape gave {shape!r}; expected a tuple of whole numbers")


def signature_fault(where: str, thing: Any, name: str) -> BpnetError | None:
    """What is wrong with how a method of a user's can be called."""
    base = Layer if isinstance(thing, Layer) else Loss
    wanted = inspect.signature(getattr(base, name))
    try:
        inspect.signature(getattr(thing, name)).bind(*list(wanted.parameters)[1:])
    except TypeError as error:
        return ArgumentError(f"{where}: {name} can't be called as {_plain(name, wanted)}: {error}")
    return None


def _plain(name: str, signature: inspect.Signature) -> str:
    shown = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return f"{name}({', '.join(map(str, shown))})"


def forward_faults(where: str, made: Any, x_shape: Shape, y_shape: Shape) -> list[BpnetError]:
    """What is wrong with a result of forward for an x of `x_shape`, the output being declared to be of `y_shape`."""
    if not _is_pair(made):
        return [ArgumentError(f"{where}: forward gave {_shown(made)}; expected the two of `return y, cache`")]
    shape = _shape_of(made[0])
    if shape is None:
        return [ArgumentError(f"{where}: forward gave {_given(made[0])} as y; expected an array")]
    if shape[:1] != x_shape[:1]:
        return [ShapeError(f"{where}: forward makes {shape} of {x_shape}; expected as many rows")]
    if shape != y_shape:
        return [
            ShapeError(
                f"{where}: forward turns rows of {x_shape[1:]} into {shape[1:]}, but out_shape says {y_shape[1:]}: "
                "define out_shape(self, in_shape) so that it gives what forward does"
            )
        ]
    return []


def backward_faults(where: str, made: Any, x_shape: Shape, trained: Shapes, need_dx: bool = True) -> list[BpnetError]:
    """What is wrong with a result of backward, the trainable parameters being those of `trained`."""
    if not _is_pair(made):
        return [ArgumentError(f"{where}: backward gave {_shown(made)}; expected the two of `return dx, grads`")]
    dx, grads = made
    faults: list[BpnetError] = []
    if dx is None and need_dx:
        faults.append(ShapeError(f"{where}: backward gave None for dx although need_dx was True"))
    elif need_dx and _shape_of(dx) != x_shape:
        faults.append(ShapeError(f"{where}: dx {_has(dx)}; expected that of x, {x_shape}"))
    if not isinstance(grads, Mapping):
        return [
            *faults,
            ArgumentError(f"{where}: backward gave {_given(grads)} as grads; expected a dict of arrays by name"),
        ]
    have = {name: value for name, value, _ in _leaves(grads)}
    for name in sorted(trained.keys() - have.keys()):
        faults.append(ShapeError(f"{where}: backward gave no gradient for {name}"))
    for name in sorted(have.keys() - trained.keys()):
        known = ", ".join(trained) or "none"
        faults.append(
            ShapeError(
                f"{where}: backward gave a gradient for {name}, which is no trainable parameter: they are {known}"
            )
        )
    for name in sorted(trained.keys() & have.keys()):
        if _shape_of(have[name]) != trained[name]:
            faults.append(ShapeError(f"{where}: the gradient of {name} {_has(have[name])}; expected {trained[name]}"))
    return faults


def _absorb_faults(where: str, made: Any, kept: Shapes) -> list[BpnetError]:
    if not isinstance(made, Mapping):
        return [ArgumentError(f"{where}: absorb gave {_given(made)}; expected a dict of buffers by name")]
    faults: list[BpnetError] = []
    for name, value, _ in _leaves(made):
        if name not in kept:
            faults.append(ShapeError(f"{where}: absorb gave {name}, which is no buffer: they are {', '.join(kept)}"))
        elif _shape_of(value) != kept[name]:
            faults.append(ShapeError(f"{where}: the buffer {name} {_has(value)} in absorb; expected {kept[name]}"))
    return faults


def _loss_faults(loss: Loss, out_shape: Shape) -> list[BpnetError]:
    if _own(loss):
        return []
    fault = signature_fault(str(loss), loss, "__call__")
    if fault is not None:
        return [fault]
    output = Rng(0).full((2, *out_shape), 0.5)
    run = Run(of(output), True, (0, 0, 0))
    try:
        with run.backend.session():
            made: Any = loss(run, output, Rng(0).full((2, *loss.target_shape(out_shape)), 0.5), None, 2.0)
    except Exception:  # as above: it may want other targets
        return []
    return loss_faults(loss, made, (2, *out_shape))


def loss_faults(loss: Loss, made: Any, shape: Shape) -> list[BpnetError]:
    """What is wrong with a result of a loss for an output of `shape`."""
    if not _is_pair(made):
        return [ArgumentError(f"{loss} gave {_shown(made)}; expected the two of `return value, d_output`")]
    if _shape_of(made[0]) != ():
        return [ShapeError(f"{loss}: the value {_has(made[0])}; expected (), a sum over rows and outputs")]
    if _shape_of(made[1]) != shape:
        return [ShapeError(f"{loss}: d_output {_has(made[1])}; expected that of the output, {shape}")]
    return []


def _is_pair(made: Any) -> bool:
    return isinstance(made, tuple | list) and len(made) == 2


def _shown(made: Any) -> str:
    if isinstance(made, tuple | list):
        return plural(len(made), "thing")
    return "None" if made is None else "one thing"


def _given(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _shape_of(value: Any) -> Shape | None:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _has(value: Any) -> str:
    shape = _shape_of(value)
    return f"is {kind_of(value)}" if shape is None else f"has the shape {shape}"


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, bool]]:
    """(name, value, whether it is trained) of all values of a nested dict."""
    for name, value in tree.items():
        at = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _leaves(value, at)
        elif isinstance(value, Leaf):
            yield at, value.value, value.trainable
        else:
            yield at, value, True


def _values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The start values as a layer is given them."""
    return {
        name: _values(value) if isinstance(value, Mapping) else value.value if isinstance(value, Leaf) else value
        for name, value in tree.items()
    }
