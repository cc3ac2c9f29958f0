"""Proof of derivatives by finite differences, for the layers of this library and for yours."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bpnet.backends import Array, Backend, backend_of, common_backend, definitions, variant
from bpnet.backends.interrupts import ends_sessions
from bpnet.data.checks import check_target, check_x
from bpnet.errors import ArgumentError, BpnetError, GradientError, ShapeError, plural
from bpnet.layer import Input, InShape, Layer, Run, check_layer, each_array, leaves, row_count
from bpnet.layout import Layout, accepting, arranged, layout_of
from bpnet.losses.base import Loss
from bpnet.options import flag, number, whole
from bpnet.protocol import backward_faults, forward_faults, loss_faults, network_faults
from bpnet.registry import resolve
from bpnet.slopes import STEPS
from bpnet.typing import AnyArray, AnyInput, LossName


@dataclass(frozen=True)
class Check:
    """One comparison: of which derivative, what backward says, what the differences say, and how far they are apart.

    `kink` says that differences to the two sides disagree, and what backward says lies between: there is no derivative.
    """

    name: str
    direction: str
    derived: float
    measured: float
    error: float
    kink: bool = False


@dataclass(frozen=True)
class Replacement:
    """A kernel that a library has in the place of a definition, and how far what comes of it lies from that of both.

    `error` is the largest difference in the output, dL/dx or a parameter's gradient, against the largest value in it.
    """

    name: str
    library: str
    error: float


@dataclass(frozen=True)
class GradientReport:
    """What `check_gradients` found; `ok`, and the comparisons, the worst first within each derivative."""

    subject: str
    tolerance: float
    checks: tuple[Check, ...]
    faults: tuple[str, ...] = ()
    replacements: tuple[Replacement, ...] = ()

    @property
    def _compared(self) -> list[Check | Replacement]:
        return [*self.checks, *self.replacements]

    @property
    def ok(self) -> bool:
        return not self.faults and all(one.error <= self.tolerance for one in self._compared)

    def __str__(self) -> str:
        verdict = "correct" if self.ok else "WRONG"
        lines = [f"{verdict}: derivatives of {self.subject}, relative tolerance {self.tolerance:g}"]
        lines += [f"  {fault}" for fault in self.faults]
        width, side = (max((len(getattr(c, of)) for c in self.checks), default=0) for of in ("name", "direction"))
        if self.checks:
            heading = f"{'of':{width}}  {'direction':{side}}  {'backward':>15}  {'differences':>15}  {'error':>8}"
            lines.append(f"  {'':5} {heading}")
        for one in self._compared:
            if isinstance(one, Check):
                figures = f"{one.derived:15.8e}  {one.measured:15.8e}  {one.error:8.1e}"
                text = f"{one.name:{width}}  {one.direction:{side}}  {figures}"
            else:
                text = f"{one.library}'s {one.name} against its definition: error {one.error:.1e}"
            lines.append(f"  {'ok' if one.error <= self.tolerance else 'WRONG':5} {text}")
        wrong = {check.name for check in self.checks if not check.error <= self.tolerance}
        if any(check.kink and not check.error <= self.tolerance for check in self.checks):
            lines.append("  there are kinks at these values, and no derivative (as of relu at 0): check at others")
        first, *names = dict.fromkeys(check.name for check in self.checks) or [
            ""
        ]  # x; parameters from the last layer on
        right = len(names) + 1 - len(wrong)
        if first in wrong and 0 < right < len(names) and wrong == {first, *names[right:]}:
            lines.append(
                f"  all before {names[right - 1]} is wrong, and nothing from there on: look at dx of its layer, and of "
                f"any between it and {names[right]}"
            )
        return "\n".join(lines)


@ends_sessions
def check_gradients(
    subject: Layer,
    x: AnyInput,
    y: AnyArray | None = None,
    *,
    loss: LossName | Loss | None = None,
    training: bool = True,
    seed: int = 0,
    directions: int = 3,
    tolerance: float = 1e-6,
) -> GradientReport:
    """Compare a layer's (or network's) backward with central differences of its forward, in float64.

    That is done of the definitions as they are written.  What the library of `x` has in their place is run besides,
    each kernel by itself and by its name, and held against them.

    Without a loss the quantity is sum(r * forward(x)) with random r; with `loss` and `y` it is that loss of the output.
    x is a dict or a tuple of arrays where the layer takes several; there are no derivatives by whole numbers.
    Derivatives with respect to x and to every parameter are compared along `directions` random directions each,
    (s(v + h d) - s(v - h d)) / 2h against dL/dv . d; where one disagrees, its single entries are compared too, and the
    worst are listed.  Parameters are moved off their start values, so that zeros there hide nothing.

    Returns the report; raises GradientError with the report as its text where a derivative is wrong (the loss's own,
    with respect to the output, is compared first), a method gives other things or shapes than the protocol says, an
    input is modified, rows depend on each other without `couples_rows`, or float32 does not stay float32.
    """
    import numpy

    subject = check_layer("the layer", subject)
    directions, seed = whole("directions", directions, 1), whole("seed", seed, 0)
    training = flag("training", training)
    tolerance = number("tolerance", tolerance, 0.0, math.inf, closed="neither")
    if (y is None) != (loss is None):
        raise ArgumentError("y and loss belong together: pass both, or neither")
    inputs = [(what, array, codes) for _, what, array, codes in arranged(subject.takes, x, "x")]
    common_backend({what: array for what, array, _ in inputs}, {"y": y})
    own_backend = backend_of(inputs[0][1])
    pairs = zip(inputs, accepting(subject), strict=True)
    inputs = [(what, check_x(array, what, codes, nan)[1], codes) for (what, array, codes), nan in pairs]
    backend, several, rows = definitions(own_backend), isinstance(subject.takes, tuple), inputs[0][1].shape[0]
    for what, array, _ in inputs:
        if array.shape[0] != rows:
            raise ShapeError(f"{inputs[0][0]} has {plural(rows, 'row')}, but {what} {array.shape[0]}")
    host = numpy.random.default_rng(seed)
    compare = partial(_compare, host=host, directions=directions, tolerance=tolerance)
    shapes = [tuple(array.shape[1:]) for _, array, _ in inputs]
    names = [name for name, _ in subject.takes] if isinstance(subject.takes, tuple) else []
    in_shape: InShape = tuple(zip(names, shapes, strict=True)) if several else shapes[0]
    shape, device, who = tuple(inputs[0][1].shape), backend.device(inputs[0][1]), str(subject)
    real = {what: tuple(array.shape) for what, array, codes in inputs if codes is None}

    def judged(
        subject: str,
        faults: Iterable[object] = (),
        checks: Iterable[Check] = (),
        replacements: Iterable[Replacement] = (),
    ) -> GradientReport:
        """The report; raises GradientError where something is wrong."""
        report = GradientReport(subject, tolerance, tuple(checks), tuple(map(str, faults)), tuple(replacements))
        if not report.ok:
            raise GradientError(str(report))
        return report

    judged(who, network_faults(subject, in_shape, "float64"))
    layout = layout_of(subject, in_shape, trains=False)
    y_shape = (shape[0], *layout.out_shape)

    def own(values: Any) -> Array:
        return backend.from_host(values, backend.xp.float64, device)

    def flat(array: Array) -> Any:
        return backend.to_host(array).reshape(-1).copy()

    with backend.session(device=device):
        theta, buffers = layout.start(seed)
        theta = theta + 0.1 * host.standard_normal(theta.shape)
        vectors = {what: flat(backend.xp.astype(a, backend.xp.float64)) for what, a, _ in inputs if what in real}
        vectors |= {slot.name: theta[slot.part] for slot in layout.parameters}
        fixed, run = own(buffers), Run(backend, training, (seed, 1))

        def arrays() -> tuple[Any, Input]:
            """Parameters and input as they stand in `vectors`."""
            x = tuple(own(vectors[what].reshape(real[what])) if what in real else a for what, a, _ in inputs)
            return layout.views(backend, own(theta), fixed), x if several else x[0]

        p, at = arrays()
        given = dict(zip((what for what, *_ in inputs), at if several else (at,), strict=True)) | dict(leaves(p))
        before = {name: flat(a) for name, a in given.items()}
        made: Any = subject.forward(run, p, at)
        judged(who, forward_faults(who, made, shape, y_shape, "float64"))
        output, cache = made
        if loss is None:
            r = own(host.standard_normal(y_shape))
        else:
            criterion = resolve(Loss, "loss", loss)
            target = check_target(backend, criterion, y_shape[1:], rows, backend.xp.float64, y)

        def objective(output: Array, run: Run = run) -> tuple[Array, Array]:
            """The quantity, and its derivative with respect to the output."""
            if loss is None:
                return backend.xp.sum(output * r), r
            return criterion(run, output, target, None, criterion.total(float(shape[0])))

        if loss is not None:
            of_loss = f"the loss {criterion}"
            judged(of_loss, loss_faults(criterion, objective(output), y_shape, "float64"))
            outputs, derived = {"output": flat(output)}, {"output": flat(objective(output)[1])}
            changed = lambda: float(objective(own(outputs["output"].reshape(y_shape)))[0])  # noqa: E731
            judged(of_loss, checks=compare(changed, outputs, derived))  # a layer is not to blame for a wrong loss

        def of_inputs(dx: Any) -> dict[str, Array]:
            """dL/dx of each array of real numbers, by its name."""
            pairs = zip(inputs, dx if several else (dx,), strict=True)
            return {what: part for (what, *_), part in pairs if what in real}

        def gradients(run: Run) -> dict[str, Any]:
            """All that the subject and the loss give, by kernels of the backend of `run`."""
            output, cache = subject.forward(run, p, at)
            value, dy = objective(output, run)
            dx, grads = subject.backward(run, p, cache, dy, True)
            made = {"output": output, "loss": value, "dy": dy, **of_inputs(dx), **dict(leaves(grads))}
            return {name: backend.to_host(a) for name, a in made.items()}

        def value() -> float:
            return float(objective(subject.forward(run, *arrays())[0])[0])

        given["dy"] = dy = objective(output)[1]
        before["dy"] = flat(dy)
        made = subject.backward(run, p, cache, dy, True)
        judged(who, _backward_faults(who, made, at, layout, "float64"))
        grads = _summed(layout, {name: flat(grad) for name, grad in leaves(made[1])})
        derived = {name: flat(dx) for name, dx in of_inputs(made[0]).items()} | grads
        faults = [
            f"the layer modified its input {name}"
            for name, a in given.items()
            if not numpy.array_equal(flat(a), before[name], equal_nan=True)
        ]
        faults = faults or _habits(run, subject, layout, p, at, dy, derived)
        checks = compare(value, vectors, derived)
        replacements = [] if faults else _replacements(own_backend, run, gradients)
    return judged(who, faults, checks, replacements)


def _summed(layout: Layout, grads: Mapping[str, Any]) -> dict[str, Any]:
    """The gradients in their order, those of a parameter that is shared added up."""
    first = {".".join(path): slot.name for slot in layout.parameters for path in slot.also}
    total: dict[str, Any] = {}
    for name, grad in grads.items():
        of = first.get(name, name)
        total[of] = total[of] + grad if of in total else grad
    return total


def _replacements(backend: Backend, run: Run, gradients: Callable[[Run], dict[str, Any]]) -> list[Replacement]:
    """What comes of each kernel that `backend` has in the place of a definition, against the definitions alone."""
    import numpy

    called: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            called.append(name)
            return backend.kernels[name](*args, **options)

        return call

    def found(kernels: Mapping[str, Any]) -> dict[str, Any]:
        return gradients(Run(variant(backend, kernels=kernels), run.training, run.key))

    def largest(array: Any) -> float:
        return float(numpy.max(numpy.abs(array), initial=0.0))

    expected, errors = gradients(run), []
    found({name: noting(name) for name in backend.kernels})
    for name in dict.fromkeys(called):
        made = found({name: backend.kernels[name]})
        error = float(numpy.max([largest(made[key] - e) / max(largest(e), 1e-8) for key, e in expected.items()]))
        errors.append(Replacement(name, backend.name, error if math.isfinite(error) else math.inf))
    return errors


def _compare(
    value: Callable[[], float],
    vectors: dict[str, Any],
    derived: dict[str, Any],
    host: Any,
    directions: int,
    tolerance: float,
) -> list[Check]:
    import numpy

    def check(name: str, label: str, along: Any, scale: float) -> Check:
        vector, expected, found = vectors[name], float(derived[name] @ along), []
        start = vector.copy()
        for step in STEPS:
            ends = []
            for h in (step, -step):
                vector[:] = start + h * along
                ends.append(value())
            measured = (ends[0] - ends[1]) / (2.0 * step)
            error = abs(expected - measured) / max(abs(expected), abs(measured), scale)
            found.append((error if math.isfinite(error) else math.inf, measured))
        vector[:] = start
        error, measured = min(found)
        left, right = sorted(((ends[0] - here) / step, (here - ends[1]) / step))
        kink = right - left > 1e-3 * scale and left - 1e-4 * scale <= expected <= right + 1e-4 * scale
        return Check(name, label, expected, measured, error, kink)

    checks, here = [], value()
    for name, gradient in derived.items():
        # what an error is measured against: the size of the gradient, and rounding in the value that is differenced
        scale = max(float(numpy.linalg.norm(gradient)), 1e-4 * abs(here), 1e-8)
        drawn = (host.standard_normal(gradient.size) for _ in range(directions))
        mine = [check(name, f"random {i}", d / numpy.linalg.norm(d), scale) for i, d in enumerate(drawn, 1)]
        if any(c.error > tolerance for c in mine):
            entries = host.permutation(gradient.size)[:200]
            single = [check(name, f"entry {i}", numpy.eye(1, gradient.size, i)[0], scale) for i in entries]
            single.sort(key=lambda c: -c.error)
            mine += [c for c in single[:5] if c.error > tolerance]
        checks += mine
    return checks


def _backward_faults(who: str, made: Any, x: Input, layout: Layout, dtype: str) -> list[BpnetError]:
    """What is wrong with a result of backward: of several arrays dL/dx is several, and None for whole numbers."""

    def of(made: Any, x: Array) -> list[BpnetError]:
        return backward_faults(who, made, tuple(x.shape), layout, dtype, "int" not in str(x.dtype))

    if not isinstance(x, tuple):
        return of(made, x)
    both = isinstance(made, tuple | list) and len(made) == 2
    dx = made[0] if both and isinstance(made[0], tuple | list) and len(made[0]) == len(x) else [None] * len(x)
    return next(filter(None, (of((part, made[1]) if both else made, a) for part, a in zip(dx, x, strict=True))), [])


def _habits(
    run: Run, subject: Layer, layout: Layout, p: Any, x: Input, dy: Array, derived: Mapping[str, Any]
) -> list[str]:
    """What would go wrong elsewhere.

    Gradients that are others with need_dx=False, rows that depend on each other unsaid, float32 that becomes float64.
    """
    import numpy

    backend, close = run.backend, partial(numpy.allclose, rtol=1e-9, atol=1e-12)
    output, cache = subject.forward(run, p, x)
    grads = leaves(subject.backward(run, p, cache, dy, False)[1])
    again = _summed(layout, {name: backend.to_host(grad).reshape(-1) for name, grad in grads})
    faults = [
        f"the gradient of {slot.name} is another with need_dx=False"
        for slot in layout.parameters
        if slot.name not in again or not close(again[slot.name], derived[slot.name])
    ]
    if row_count(x) > 1 and not subject.couples_rows and not subject.stochastic:
        half = row_count(x) // 2
        part, _ = subject.forward(run, p, each_array(lambda a: a[:half, ...], x))
        if not close(backend.to_host(part), backend.to_host(output)[:half]):
            faults.append("a row's output depends on other rows: set couples_rows = True")
    single, place = backend.xp.float32, backend.device(dy)
    x = each_array(lambda a: a if "int" in str(a.dtype) else backend.xp.astype(a, single), x)
    p = layout.views(backend, *(backend.from_host(v, single, place) for v in layout.start(0)))
    who, (output, cache) = str(subject), subject.forward(run, p, x)
    wrong = forward_faults(who, (output, cache), tuple(output.shape), tuple(output.shape), "float32")
    wrong += _backward_faults(who, subject.backward(run, p, cache, output), x, layout, "float32")
    return [*faults, *map(str, wrong)]
