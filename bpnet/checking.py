"""`check_backend`: everything that a library has in the place of definitions, tried where the arrays are."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from bpnet.backends import Array, Backend, backend_of, get, reference
from bpnet.backends.interrupts import ends_sessions
from bpnet.backends.techniques import STEPS, Finding, brief, difference
from bpnet.backpropagation import loss_and_gradient
from bpnet.data.checks import detached
from bpnet.errors import BpnetWarning, ShapeError
from bpnet.layer import Layer, Run
from bpnet.layers.composition import Residual, Sequential
from bpnet.layers.dense import Dense
from bpnet.layers.dropout import Dropout
from bpnet.layers.normalization import BatchNorm
from bpnet.layout import layout_of
from bpnet.losses.base import Loss
from bpnet.losses.classes import CrossEntropy
from bpnet.optimizers.base import Optimizer
from bpnet.optimizers.sgd import SGD
from bpnet.registry import examples
from bpnet.step import training_step
from bpnet.trainer import Trainer
from bpnet.typing import AnyArray

FEATURES = 12
TOGETHER = 8
"""Entries of the catalogue that are compiled as one function."""
SHARE = 1e-4
"""Largest difference that is right, relative to the largest value, in float32."""
OF_STEPS = {"float32": 1e-3, "tf32": 2e-2, "bfloat16": 1e-1}
"""The same of what a few steps change, by the precision of products."""


@dataclass(frozen=True)
class BackendReport:
    """What `check_backend` found; `str(report)` is a table with a line for each technique, and one for each fault."""

    library: str
    device: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing gave a wrong value; what was refused is no fault."""
        return all(f.ok or f.refused for f in self.findings)

    def __str__(self) -> str:
        rows = [("technique", "problems", "verdict", "error", "microseconds")]
        titles: dict[str, list[Finding]] = {}
        for f in self.findings:
            titles.setdefault(", ".join(filter(None, (f.name, f.part))), []).append(f)
        for title, found in titles.items():
            good = [f for f in found if f.ok]
            if good:
                times = [f.microseconds for f in good if f.microseconds is not None]
                spent = f"{min(times):.1f}" + (f" to {max(times):.1f}" if len(times) > 1 else "") if times else ""
                rows.append((title, str(len(good)), "ok", f"{max(f.error for f in good):.1e}", spent))
            for f in found:
                if not f.ok:
                    verdict = f"refused: {f.refused}" if f.refused else "WRONG"
                    verdict += f"; instead: {f.instead}" if f.instead else ""
                    rows.append((title, f.problem, verdict, "" if f.refused else f"{f.error:.1e}", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(text.ljust(n) for text, n in zip(row, widths, strict=True)).rstrip() for row in rows]
        verdict = "everything is right" if self.ok else "WRONG VALUES, see above: please report this table"
        return "\n".join([f"{self.library} on {self.device}", *lines, f"{verdict} ({self.seconds:.1f} s)"])

    def to_dict(self) -> dict[str, Any]:
        """All that was found, as JSON can hold it."""
        findings = [asdict(f) | {"ok": f.ok} for f in self.findings]
        return {"library": self.library, "device": self.device, "ok": self.ok, "seconds": self.seconds} | {
            "findings": [f | {"error": f["error"] if math.isfinite(f["error"]) else None} for f in findings]
        }


@ends_sessions
def check_backend(x: AnyArray) -> BackendReport:
    """Check, where `x` lies, all that its library has in the place of definitions: any array will do.

    Every entry of the catalogue, compiled as a training step would have it; and what a library has of its own, as on a
    CUDA device fused kernels, cuBLASLt with each epilogue and precision, captured graphs and streaming. Each is run on
    small and awkward shapes, and compared with its definition, computed by NumPy in double precision.

    On a CUDA device what is wrong or refused is switched off there from then on, also in other processes, and what is
    right is switched on.  Raises ArrayMismatchError where `x` is no array.
    """
    start, backend = time.perf_counter(), backend_of(x)
    device = backend.device(detached(backend, x, "x"))
    with backend.session(device=device, work=math.inf), backend.everything_on(), warnings.catch_warnings():
        warnings.simplefilter("error", BpnetWarning)
        found = tuple(_everything(backend, device))
    with backend.session(device=device), warnings.catch_warnings():
        warnings.simplefilter("always", BpnetWarning)
        backend.switch_off(found)
    return BackendReport(backend.name, backend.describe(device), found, time.perf_counter() - start)


def _everything(backend: Backend, device: Any) -> Iterator[Finding]:
    yield from backend.techniques()
    on = _Place(backend, device)
    for part, entries in (("layers", _layers()), ("losses", _losses()), ("optimizers", _optimizers())):
        for first in range(0, len(entries), TOGETHER):
            for rows in (1, 33):
                yield from _compared(on, part, entries[first : first + TOGETHER], rows)
    for precision in backend.precisions(device):
        yield from _steps(on, precision)


class _Place:
    """A library on a device, and its definitions on the host."""

    def __init__(self, backend: Backend, device: Any) -> None:
        self.backend, self.device, self.definition = backend, device, Backend(get("numpy").xp)

    def array(self, values: Any) -> Array:
        """Of a NumPy array."""
        return self.backend.from_host(values, getattr(self.backend.xp, values.dtype.name), self.device)

    def microseconds(self, call: Callable[[], Any], calls: int = 10) -> float:
        """Of a call, on average."""
        like = self.backend.from_host(0.0, self.backend.xp.float32, self.device)

        def wait(result: Any) -> None:
            self.backend.synchronise(next((a for a in result if a is not None), like))

        wait(call())
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        return (time.perf_counter() - start) / calls * 1e6


# ---- the catalogue --------------------------------------------------------------------------------------------------

Entry = tuple[str, Callable[..., Sequence[Any]], Callable[[Any, int], tuple[Any, ...]]]
"""A name, function(backend, *arguments) -> arrays, and arguments(rng, rows): NumPy arrays, numbers, tuples of them."""


def _layers() -> list[Entry]:
    return [(name, *_layer(layer)) for name, layer in examples(Layer).items()]


def _layer(layer: Layer) -> tuple[Any, Any]:
    takes = layer.takes if isinstance(layer.takes, tuple) else (("", layer.takes),)
    several = isinstance(layer.takes, tuple)
    shapes: Any = {name: (FEATURES,) for name, _ in takes} if several else (FEATURES,)
    layout = layout_of(layer, shapes, trains=False)

    def passes(b: Backend, theta: Any, buffers: Any, x: Any, dy: Any, number: Any) -> Sequence[Any]:
        p, run = layout.views(b, theta, buffers), Run(b, True, (7, number), b.context())
        y, cache = layer.forward(run, p, x)
        dx, grads = layer.backward(run, p, cache, dy)
        updates = layer.update_buffers(run, p, cache)
        derivatives: Any = dx if several else (dx,)
        results = [y, *(part for part in derivatives if part is not None)]
        if layout.parameters:
            results.append(layout.join_gradients(b, grads))
        return [*results, layout.join_buffers(b, updates, buffers)] if updates else results

    def arguments(rng: Any, rows: int) -> tuple[Any, ...]:
        theta = rng.standard_normal(layout.size) if layout.size else None
        buffers = rng.uniform(0.5, 1.5, layout.buffer_size) if layout.buffer_size else None
        shape, dy = (rows, FEATURES), rng.standard_normal((rows, *layout.out_shape))
        x = [rng.standard_normal(shape) if n is None else rng.integers(0, n, shape, "int32") for _, n in takes]
        return theta, buffers, tuple(x) if several else x[0], dy, 3

    return passes, arguments


def _losses() -> list[Entry]:
    return [(name, *_loss(loss)) for name, loss in examples(Loss).items()]


def _loss(loss: Loss) -> tuple[Any, Any]:
    def value(b: Backend, output: Any, target: Any, weight: Any) -> Sequence[Any]:
        run = Run(b, True, (7, 1), b.context())
        return [*loss(run, output, target, None, float(output.shape[0])), *loss(run, output, target, weight, 7.0)]

    def arguments(rng: Any, rows: int) -> tuple[Any, ...]:
        shape: tuple[int, ...] = (FEATURES,)
        try:
            wanted = loss.target_shape(shape)
        except ShapeError:  # it is of three vectors
            shape = 3, FEATURES // 3
            wanted = loss.target_shape(shape)
        target = rng.uniform(0.1, 0.9, (rows, *wanted))
        return rng.uniform(0.1, 0.9, (rows, *shape)), target, rng.uniform(0.5, 1.5, rows)

    return value, arguments


def _optimizers() -> list[Entry]:
    return [(name, *_optimizer(each)) for name, each in examples(Optimizer).items() if each.traceable]


def _optimizer(optimizer: Optimizer) -> tuple[Any, Any]:
    layout = layout_of(Sequential(Dense(5, "tanh"), Dense(3)), (FEATURES,))

    def update(b: Backend, theta: Any, grads: Any, first: Any, second: Any) -> Sequence[Any]:
        state = optimizer.init(b, layout, theta)
        for grad, numbers in zip(grads, (first, second), strict=True):
            theta, state = optimizer.update(b, layout, theta, grad, state, numbers, lambda at: (b.xp.sum(at * at), at))
        return [theta, *state]

    def arguments(rng: Any, rows: int) -> tuple[Any, ...]:
        theta, *grads = (rng.standard_normal(layout.size) for _ in range(3))
        numbers = [optimizer.hyperparameters_at(n) for n in range(2)]
        return theta, tuple(grads), *numbers

    return update, arguments


def _compared(on: _Place, part: str, entries: Sequence[Entry], rows: int) -> Iterator[Finding]:
    """Several entries as one function, each result against the definition's."""
    import numpy

    rng = numpy.random.default_rng(0)
    sizes: list[int] = []
    fused, problem, instead = on.backend.fused, f"{rows} x {FEATURES}", on.backend.instead_of(on.backend.fused)

    def each_array(function: Callable[[Any], Any], tree: Any) -> Any:
        """A tree of arrays and numbers, of whose arrays each is replaced."""
        if isinstance(tree, tuple):
            return tuple(each_array(function, part) for part in tree)
        return function(tree) if isinstance(tree, numpy.ndarray) else tree

    def together(b: Backend, *given: Any) -> tuple[Any, ...]:
        results = [tuple(function(b, *args)) for (_, function, _), args in zip(entries, given, strict=True)]
        sizes[:] = map(len, results)
        return tuple(a for result in results for a in result)

    def real(kind: str) -> Callable[[Any], Any]:
        return lambda a: a.astype(kind) if a.dtype.kind == "f" else a

    given = each_array(real("float32"), tuple(arguments(rng, rows) for _, _, arguments in entries))
    doubled = each_array(real("float64"), given)
    expected = iter([numpy.asarray(a) for a in together(on.definition, *doubled)])
    try:
        compiled, arguments = on.backend.compile(together), each_array(on.array, given)
        found = iter([on.backend.to_host(a) for a in compiled(*arguments)])
    except MemoryError:
        raise
    except Exception as error:  # of whatever library
        names = ", ".join(name for name, *_ in entries)
        yield Finding(fused, part, f"{names}, {problem}", math.inf, SHARE, instead, brief(error))
        return
    spent = on.microseconds(lambda: compiled(*arguments)) / len(entries)
    for (name, *_), size in zip(entries, sizes, strict=True):
        worst = max(difference(next(found), next(expected)) for _ in range(size))
        yield Finding(fused, part, f"{name}, {problem}", worst, SHARE, instead, microseconds=spent)


# ---- whole steps ----------------------------------------------------------------------------------------------------

NETWORK = Sequential(Dense(20, "tanh"), BatchNorm(), Dropout(0.25), Residual(Dense(20, "gelu")), Dense(3))


def _steps(on: _Place, precision: str) -> Iterator[Finding]:
    """Whole steps; what a library makes of them that it refuses, as a graph that can't be captured, is said."""
    tolerance = OF_STEPS[precision]
    for steps in (_single_steps, _fit):
        try:
            for name, problem, error, spent in steps(on, precision):
                instead = on.backend.instead_of(name)
                yield Finding(name, STEPS, f"{precision}, {problem}", error, tolerance, instead, "", spent)
        except MemoryError:
            raise
        except Exception as error:  # of whatever library
            name = on.backend.repeated
            yield Finding(name, STEPS, precision, math.inf, tolerance, on.backend.instead_of(name), brief(error))


def _single_steps(on: _Place, precision: str) -> Iterator[tuple[str, str, float, float | None]]:
    """Steps of a trainer, the first by itself and others as they are repeated, against those of the definition."""
    import numpy

    rng, loss, optimizer = numpy.random.default_rng(0), CrossEntropy(), SGD(0.1, momentum=0.9)
    x, y = rng.standard_normal((33, FEATURES)).astype("float32"), rng.integers(0, 3, 33, "int32")
    trainer = Trainer(NETWORK, loss, optimizer, precision=precision)  # type: ignore[arg-type]
    batch = on.array(x), on.array(y)
    trainer.build(batch[0])
    carry = tuple(on.backend.to_host(a).astype("float64") for a in (trainer.theta, trainer.buffers))
    carry = *carry, tuple(on.backend.to_host(a).astype("float64") for a in trainer.state)
    step = training_step(trainer.layout, optimizer, partial(loss_and_gradient, layout=trainer.layout, loss=loss))
    start, doubled = carry[0], (x.astype("float64"), y, None, None)
    for number in range(1, 5):
        trainer.step(*batch, check=False)
        numbers = optimizer.hyperparameters(optimizer.learning_rate(number - 1), number)
        carry, _ = step(on.definition, carry, *doubled, numbers, number)
        error = difference(on.backend.to_host(trainer.theta) - start, carry[0] - start)
        if number == 1:
            yield on.backend.fused, "the first", error, None
        elif number == 4:
            spent = on.microseconds(lambda: [trainer.step(*batch, check=False)])
            yield on.backend.repeated, "four of them", error, spent


def _fit(on: _Place, precision: str) -> Iterator[tuple[str, str, float, float | None]]:
    """Epochs of weighted batches in random order, several of which a library may do by one launch."""
    import numpy

    rng = numpy.random.default_rng(0)
    x, weight = rng.standard_normal((271, FEATURES)).astype("float32"), rng.uniform(0.5, 1.5, 271).astype("float32")
    y = rng.integers(0, 3, 271, "int32")
    trainers = [Trainer(NETWORK, CrossEntropy(), SGD(0.1), precision=p) for p in (precision, "float32")]  # type: ignore[arg-type]
    options: dict[str, Any] = {"epochs": 2, "batch_size": 33, "progress": False}
    trainers[0].fit(on.array(x), on.array(y), sample_weight=on.array(weight), **options)
    with reference():
        trainers[1].fit(x.astype("float64"), y, sample_weight=weight.astype("float64"), **options)
    start, _ = trainers[1].layout.start(0)
    found = on.backend.to_host(trainers[0].theta) - start
    yield on.backend.repeated, "two epochs", difference(found, trainers[1].theta - start), None
