"""Seeing a network: what its layers are and cost, and what goes through them in a step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bpnet.backends import Array, Backend, definitions, variant
from bpnet.backends.interrupts import ends_sessions
from bpnet.backends.tracing import TracingBackend
from bpnet.compiler.graph import Graph
from bpnet.compiler.ops import POINTWISE, REDUCTIONS
from bpnet.compiler.symbols import Symbol, root_of
from bpnet.compiler.trace import mapped
from bpnet.data.checks import check_x
from bpnet.data.loader import Loader
from bpnet.data.prepare import named
from bpnet.engine import Engine
from bpnet.errors import ArgumentError
from bpnet.layer import Input, Layer, Params, Run, Shape, check_layer, leaves
from bpnet.layers.activation import Activation
from bpnet.layers.activations.others import Identity
from bpnet.layers.dense import Dense
from bpnet.layout import Layout, accepting, arranged, layout_of
from bpnet.locking import locked
from bpnet.penalties import with_penalties
from bpnet.state import check_trainer
from bpnet.table import Table
from bpnet.trainer import Trainer
from bpnet.typing import AnyArray, AnyInput

ROWS = 2
"""Of how many rows a network is traced, and of twice as many: what is once a batch, not once a row, is in both."""
WIDEST = 60
"""Characters of a layer in a table."""


# ---- watching layers ------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One call of a layer: what went in, came out, and was saved; and on the way back dL/dy, dL/dx and gradients."""

    path: str
    layer: Layer
    depth: int
    used: set[str] = field(default_factory=set)
    run: Any = None
    p: Params = field(default_factory=dict)
    x: Any = None
    y: Any = None
    cache: Any = None
    dy: Any = None
    dx: Any = None
    grads: Params = field(default_factory=dict)
    begin: int = 0
    end: int = 0


class Watch:
    """Notes every call of a layer that comes by way of `Backend.outline`, in the order of the forward pass."""

    def __init__(self, clock: Callable[[], int] = lambda: 0) -> None:
        self.calls: list[Call] = []
        self.clock = clock
        self._open: list[Call] = []

    def name(self, layer: Layer) -> str:
        """What the layer that calls it names this one."""
        if not self._open:
            return ""
        parent = self._open[-1]
        known = [n for n, child in getattr(parent.layer, "children", ()) if child is layer and n not in parent.used]
        name = known[0] if known else f"{type(layer).__name__}{len(parent.used)}"
        parent.used.add(name)
        return f"{parent.path}.{name}" if parent.path else name

    def forward(self, layer: Layer, forward: Callable[..., Any], run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        call = Call(self.name(layer), layer, len(self._open), run=run, p=p, x=x, begin=self.clock())
        self.calls.append(call)
        self._open.append(call)
        call.y, call.cache = forward(run, p, x)
        self._open.pop()
        call.end = self.clock()
        return call.y, _Kept(call)


class _Kept:
    """What a watched layer saves: whose call it was, by which backward is known to belong to it."""

    def __init__(self, call: Call) -> None:
        self.call = call


class _Watched:
    """A layer as a composite calls it."""

    def __init__(self, watch: Watch, layer: Layer, inner: Any) -> None:
        self.watch, self.layer, self.inner = watch, layer, inner

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return self.watch.forward(self.layer, self.inner.forward, run, p, x)

    def backward(self, run: Run, p: Params, cache: _Kept, dy: Array, need_dx: bool = True) -> Any:
        call = cache.call
        call.dy = dy
        call.dx, call.grads = self.inner.backward(run, p, call.cache, dy, need_dx)
        return call.dx, call.grads


# ---- a table of layers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSummary:
    """A layer of a network: its path, shape of an output row, numbers of parameters and of buffer values.

    flops: floating-point operations of a row's forward pass, of which exp and its like are one each; None where bpnet
    can't see them. What is done once a batch, as normalizing a weight, is not in it.
    bytes: of a row's output and of what is saved for backward.
    """

    path: str
    layer: Layer
    depth: int
    out_shape: Shape
    parameters: int
    buffers: int
    flops: int | None
    bytes: int

    @property
    def trainable(self) -> bool:
        """Whether training changes anything in it."""
        return self.parameters > 0


@dataclass(frozen=True, repr=False)
class Summary(Table):
    """The layers of a network for rows of one shape, each before those that it is made of; `net.summary(x)` makes it.

    It shows itself at a prompt and in a notebook; `layers` has the figures. Parameters that are shared are counted at
    their first place.
    """

    layers: tuple[LayerSummary, ...]
    headings = ("", "layer", "output", "parameters", "buffers", "trained", "FLOPs a row", "bytes a row")

    def cells(self) -> Iterable[Sequence[str]]:
        for one in self.layers:
            whole = [name for name, _ in getattr(one.layer, "children", ())]
            name = type(one.layer).__name__ if whole else repr(one.layer)
            layer = "  " * one.depth + (name if len(name) <= WIDEST else f"{name[: WIDEST - 3]}...")
            trained = "yes" if one.trainable else "no" if one.buffers else ""
            counts = [f"{n:,}" if n else "" for n in (one.parameters, one.buffers)]
            costs = ["?" if one.flops is None else f"{one.flops:,}", f"{one.bytes:,}"]
            yield one.path, layer, " x ".join(map(str, one.out_shape)), *counts, trained, *costs


@dataclass(frozen=True, repr=False)
class Outline(Table):
    """The layers of a network as they stand in it, without shapes, which no data has shown: a notebook's view of it."""

    network: Layer
    headings = ("", "layer")

    def cells(self) -> Iterable[Sequence[str]]:
        return self._cells(self.network, "", 0)

    def _cells(self, layer: Layer, path: str, depth: int) -> Iterator[Sequence[str]]:
        children = getattr(layer, "children", ())
        yield path, "\N{NO-BREAK SPACE}" * 4 * depth + (type(layer).__name__ if children else repr(layer))
        for name, child in children:
            yield from self._cells(child, f"{path}.{name}" if path else name, depth + 1)


class _Counting(TracingBackend):
    """Symbols for arrays, and each layer watched."""

    def __init__(self, graph: Graph, real: Backend, watch: Watch) -> None:
        super().__init__(graph, lambda rows, work: [(0, rows)], real)
        self.watch = watch

    def outline(self, part: Any) -> Any:
        return _Watched(self.watch, part, super().outline(part))


def summarized(network: Layer, x: AnyInput) -> Summary:
    """What `network.summary(x)` gives; raises ShapeError where a layer does not fit, and what `fit` does of `x`."""
    parts = arranged(check_layer("network", network).takes, x, "x")
    pairs = zip(parts, accepting(network), strict=True)
    inputs = [(name, codes, *check_x(a, what, codes, nan)) for (name, what, a, codes), nan in pairs]
    shapes: Any = {name: tuple(a.shape[1:]) for name, _, _, a in inputs}
    layout = layout_of(network, shapes if isinstance(network.takes, tuple) else shapes[""], trains=False)
    single = all(codes is not None or a.dtype == backend.xp.float32 for _, codes, backend, a in inputs)
    dtype = "float32" if single else "float64"
    few, many = (_traced(network, layout, dtype, rows) for rows in (ROWS, 2 * ROWS))
    made = []
    for (call, flops, size), (_, more_flops, more_size) in zip(few, many, strict=True):
        flops = None if flops is None or more_flops is None else (more_flops - flops) // ROWS
        beneath = f"{call.path}." if call.path else ""
        parameters, buffers = (
            sum(slot.size for slot in slots if slot.name.startswith(beneath))
            for slots in (layout.parameters, layout.buffers)
        )
        size, shape = (more_size - size) // ROWS, tuple(call.y.shape[1:])
        made.append(LayerSummary(call.path, call.layer, call.depth, shape, parameters, buffers, flops, size))
    return Summary(tuple(made))


def _traced(network: Layer, layout: Layout, dtype: str, rows: int) -> list[tuple[Call, int | None, int]]:
    """Of every layer, its call with so many rows, the operations, and the bytes of output and what is saved."""
    from bpnet.backends import get

    graph = Graph(dtype)
    watch = Watch(lambda: len(graph.symbols))
    backend = _Counting(graph, get("numpy"), watch)
    theta, buffers = (graph.memory(i, (n,), dtype) for i, n in ((2, layout.size), (3, layout.buffer_size)))
    parts = arranged(network.takes, layout.in_shape, "in_shape")
    kinds = [((rows, *shape), dtype if codes is None else "int32") for _, _, shape, codes in parts]
    arrays = tuple(graph.memory(i, *kind) for i, kind in enumerate(kinds, 4))
    x = arrays if isinstance(network.takes, tuple) else arrays[0]
    p = layout.views(backend, theta, buffers)
    backend.outline(network).forward(Run(backend, True, (0, 0)), p, x)
    return [(c, _operations(graph.symbols[c.begin : c.end]), _bytes((c.y, c.cache))) for c in watch.calls]


def _operations(symbols: Iterable[Symbol]) -> int | None:
    """Floating-point operations, of which None says that they are not known."""
    total = 0
    for s in symbols:
        if s.op == "called":
            return None
        if s.op == "matmul":
            total += 2 * s.size * s.args[0].shape[-1]
        elif s.op in POINTWISE and s.op not in ("astype", "where"):
            total += s.size
        elif s.op in REDUCTIONS:
            total += s.args[0].size
    return total


def _bytes(made: Any) -> int:
    """Of all arrays in a tree but those that were passed in, each once."""
    found: set[Symbol] = set()

    def add(leaf: Any) -> None:
        if isinstance(leaf, _Kept):
            mapped(add, leaf.call.cache)
        elif isinstance(leaf, Symbol):
            found.add(leaf.args[0] if leaf.op == "transpose" else root_of(leaf)[0])

    mapped(add, made)
    return sum(s.size * s.dtype.itemsize for s in found if s.op not in ("memory", "number"))


# ---- what goes through a network ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerInspection:
    """What one call of a layer saw in a step, arrays of the library of x.

    x, y: input and output. pre_activation: z of a layer that computes y = f(z), else None. dy, dx: dL/dy and dL/dx.
    grads: dL/dp by name, a composite's with those of its children. norms: the Euclidean norm of each by its name.
    """

    path: str
    layer: Layer
    depth: int
    x: Input
    pre_activation: Array | None
    y: Array
    dy: Array
    dx: Input
    grads: dict[str, Array]
    norms: dict[str, float]


@dataclass(frozen=True, repr=False)
class Inspection(Table):
    """The layers of a trainer's network in one step, each before those that it is made of, and the `loss`.

    Penalties on parameters are in the loss, but in no layer's gradients.
    """

    loss: float
    layers: tuple[LayerInspection, ...]
    headings = ("", "layer", "|x|", "|z|", "|y|", "|dL/dy|", "|dL/dx|", "|gradients|")

    def __getitem__(self, path: str) -> LayerInspection:
        """The layer at a path, "" for the network."""
        for one in self.layers:
            if one.path == path:
                return one
        raise ArgumentError(f"there is no layer {path!r}; they are {', '.join(repr(one.path) for one in self.layers)}")

    def cells(self) -> Iterable[Sequence[str]]:
        for one in self.layers:
            name = "  " * one.depth + type(one.layer).__name__
            norms = [
                f"{one.norms[of]:.3g}" if of in one.norms else "" for of in ("x", "pre_activation", "y", "dy", "dx")
            ]
            inner = {child for child, _ in getattr(one.layer, "children", ())}
            own = [of for of in one.grads if of.partition(".")[0] not in inner]
            yield one.path, name, *norms, ", ".join(f"{of} {one.norms[of]:.3g}" for of in own)


@ends_sessions
def inspect(trainer: Trainer, x: AnyInput, y: AnyArray, sample_weight: AnyArray | None = None) -> Inspection:
    """What goes through every layer, nested ones too, in a step of `trainer` on the batch x, y: nothing is changed.

    For each: input, pre-activation, output, dL/dy, dL/dx, and gradients, with their norms, so that a gradient that
    vanishes or explodes is seen at a glance; print it, or take `inspection["0"].dy`.  Layers are called as they are
    written, on the whole batch, with the dropout masks of the next step.  A composite of your own is looked into where
    it calls its children by `bpnet.layers.composition.called`.

    Raises as `Trainer.step` does on unfit data; like the first step, it draws start values where there are none yet.
    """
    data, engine = _prepared(check_trainer(trainer), x, y, sample_weight)
    watch = Watch()
    own = definitions(engine.backend)
    backend = variant(own, traces=True, outline=lambda _, part: _Watched(watch, part, part))
    with engine.backend.session(1, data.device):
        batch_x, batch_y, weight, _ = data.whole_batch()
        theta, buffers, _ = engine.carry
        p = engine.layout.views(backend, theta, buffers)
        with engine.some_epoch():
            values = engine.values(engine.count)
        run = Run(backend, True, (engine.seed, engine.count + 1), values=values)
        rows_total = float(data.count) if weight is None else backend.xp.sum(weight)
        total = engine.loss.total(rows_total)
        run.terms, run.share = [], (weight, total)
        network = backend.outline(engine.layout.network)
        output, cache = network.forward(run, p, batch_x)
        value, dy = engine.loss(run, output, batch_y, weight, total)
        for term in run.terms:
            value = value + term
        _, grads = network.backward(run, p, cache, dy)
        grad = engine.layout.join_gradients(backend, grads)
        value, _ = with_penalties(backend, engine.layout, engine.penalties, theta, value, grad, run.value, rows_total)
        found, xp = [_seen(call) for call in watch.calls], backend.xp
        known = [  # what is missing has no length
            [xp.where(xp.isnan(a), 0.0, a) if name == "x" and any(accepting(call.layer)) else a for a in some]
            for call, arrays in zip(watch.calls, found, strict=True)
            for name, some in arrays.items()
        ]
        squares = [sum(xp.sum(a * a) for a in some) for some in known]
        loss, *norms = backend.fetch([value, *squares])
    left = iter(norms)
    layers = []
    for call, arrays in zip(watch.calls, found, strict=True):
        sizes = {name: math.sqrt(next(left)) for name in arrays}
        grads = dict(leaves(call.grads))
        made = call.x, next(iter(arrays.get("pre_activation", ())), None), call.y, call.dy, call.dx, grads
        layers.append(LayerInspection(call.path, call.layer, call.depth, *made, sizes))
    return Inspection(loss, tuple(layers))


@locked("train")
def _prepared(trainer: Trainer, x: AnyInput, y: AnyArray, sample_weight: AnyArray | None) -> tuple[Loader, Engine]:
    """The data of a step, and what does it."""
    data = trainer._prepare(named(x, y, sample_weight))
    return data, trainer._engine or trainer._start(data)


def _seen(call: Call) -> dict[str, list[Array]]:
    """All arrays of a call by name, of real numbers; of a layer that takes several x and dx are as many."""
    arrays = {"x": call.x, "pre_activation": _pre_activation(call), "y": call.y, "dy": call.dy, "dx": call.dx}
    every = {name: a if isinstance(a, tuple) else (a,) for name, a in (*arrays.items(), *leaves(call.grads))}
    real = {name: [a for a in some if a is not None and "int" not in str(a.dtype)] for name, some in every.items()}
    return {name: some for name, some in real.items() if some}


def _pre_activation(call: Call) -> Array | None:
    layer, x = call.layer, call.x
    if isinstance(layer, Activation):
        return x
    if not isinstance(layer, Dense) or isinstance(layer.function, Identity):
        return None
    p = {name: value for name, value in call.p.items() if name != "activation"}
    return replace(layer, activation="identity").forward(call.run, p, x)[0]
