"""Proof of derivatives by finite differences, for the layers of this library and for yours."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends import Array, Backend, common_backend, definitions, variant
from bpnet.backends.interrupts import ends_sessions
from bpnet.data.checks import check_target, check_x
from bpnet.errors import ArgumentError, GradientError, ShapeError
from bpnet.layer import Layer, Run, check_layer, leaves
from bpnet.layout import Layout, layout_of
from bpnet.losses import Loss
from bpnet.options import flag, number, whole
from bpnet.protocol import backward_faults, derivatives, forward_faults, loss_faults, network_faults, type_faults
from bpnet.registry import resolve
from bpnet.typing import AnyArray, LossName

STEPS = (1e-4, 1e-5, 1e-6)
"""Half-widths of the differences; the one that agrees best counts, since a kink or rounding spoils some of them."""


@dataclass(frozen=True)
class Check:
    """One comparison: of which derivative, what backward says, what the differences say, and how far they are apart."""

    name: str
    direction: str
    derived: float
    measured: float
    error: float


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
    def ok(self) -> bool:
        errors = [c.error for c in self.checks] + [r.error for r in self.replacements]
        return not self.faults and all(error <= self.tolerance for error in errors)

    def __str__(self) -> str:
        lines = [
            f"{'correct' if self.ok else 'WRONG'}: derivatives of {self.subject}, relative tolerance {self.tolerance:g}"
        ]
        lines += [f"  {fault}" for fault in self.faults]
        if not self.checks:
            return "\n".join(lines)
        width = max([len(c.name) for c in self.checks], default=4)
        side = max([len(c.direction) for c in self.checks], default=9)
        lines.append(
            f"  {'':5} {'of':{width}}  {'direction':{side}}  {'backward':>15}  {'differences':>15}  {'error':>8}"
        )
        for c in self.checks:
            mark = "ok" if c.error <= self.tolerance else "WRONG"
            figures = f"{c.derived:15.8e}  {c.measured:15.8e}  {c.error:8.1e}"
            lines.append(f"  {mark:5} {c.name:{width}}  {c.direction:{side}}  {figures}")
        for r in self.replacements:
            mark = "ok" if r.error <= self.tolerance else "WRONG"
            lines.append(f"  {mark:5} {r.library}'s {r.name} against its definition: error {r.error:.1e}")
        return "\n".join(lines)


@ends_sessions
def check_gradients(
    subject: Layer,
    x: AnyArray,
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
    if y is not None:
        common_backend({"x": x, "y": y})
    own_backend, x = check_x(x)
    backend = definitions(own_backend)
    host = numpy.random.default_rng(seed)
    in_shape = tuple(x.shape[1:])
    _refuse(str(subject), tolerance, network_faults(subject, in_shape, "float64"))
    layout = layout_of(subject, in_shape, trains=False)
    device = backend.device(x)

    def own(values: Any) -> Array:
        return backend.from_host(values, backend.xp.float64, device)

    with backend.session(device=backend.device(x)):
        x = backend.xp.astype(x, backend.xp.float64)
        vectors = {"x": backend.to_host(x).reshape(-1).copy()}
        theta, buffers = layout.start(seed)
        theta = theta + 0.1 * host.standard_normal(theta.shape)
        for slot in layout.parameters:
            vectors[slot.name] = theta[slot.offset : slot.offset + slot.size].copy()
        fixed = own(buffers)

        def arrays() -> tuple[Any, Array]:
            """Parameters and input as they stand in `vectors`."""
            at = own(vectors["x"].reshape(x.shape))
            joined = numpy.concatenate([numpy.empty(0), *(vectors[slot.name] for slot in layout.parameters)])
            return layout.views(backend, own(joined), fixed), at

        p, at = arrays()
        run = Run(backend, training, (seed, 1, 0))
        given = {"x": at, **dict(leaves(p))}
        before = {name: backend.to_host(a).copy() for name, a in given.items()}
        made: Any = subject.forward(run, p, at)
        y_shape = (x.shape[0], *subject.out_shape(in_shape))
        _refuse(str(subject), tolerance, forward_faults(str(subject), made, tuple(x.shape), y_shape))
        output, cache = made
        if loss is None:
            r = own(host.standard_normal(tuple(output.shape)))
            objective: Callable[..., tuple[Array, Array]] = lambda out, run=run: (backend.xp.sum(out * r), r)  # noqa: E731
        else:
            criterion = resolve(Loss, "loss", loss)
            target = check_target(backend, criterion, tuple(output.shape[1:]), at.shape[0], at.dtype, y)
            objective = lambda out, run=run: criterion(run, out, target, None, float(at.shape[0]))  # noqa: E731
            name = f"the loss {criterion}"
            _refuse(name, tolerance, loss_faults(criterion, objective(output), tuple(output.shape)))
            outputs = {"output": backend.to_host(output).reshape(-1).copy()}
            of_loss = _compare(
                lambda: float(objective(own(outputs["output"].reshape(output.shape)))[0]),
                outputs,
                {"output": backend.to_host(objective(output)[1]).reshape(-1)},
                host,
                directions,
                tolerance,
            )
            if any(c.error > tolerance for c in of_loss):  # a layer is not to blame then
                raise GradientError(str(GradientReport(name, tolerance, tuple(of_loss))))

        def gradients(run: Run) -> dict[str, Array]:
            """All that the subject and the loss give, by kernels of the backend of `run`."""
            output, cache = subject.forward(run, p, at)
            value, dy = objective(output, run)
            dx, grads = subject.backward(run, p, cache, dy, True)
            return {"output": output, "loss": value, "dy": dy, "dx": dx, **dict(leaves(grads))}

        def value() -> float:
            params, rows = arrays()
            return float(objective(subject.forward(run, params, rows)[0])[0])

        dy = objective(output)[1]
        given["dy"], before["dy"] = dy, backend.to_host(dy).copy()
        made = subject.backward(run, p, cache, dy, True)
        trained = {slot.name: slot.shape for slot in layout.parameters}
        wrong = backward_faults(str(subject), made, tuple(x.shape), trained)
        if not all(isinstance(fault, ShapeError) for fault in wrong):  # no dx and grads to compare
            _refuse(str(subject), tolerance, wrong)
        dx, grads = made
        faults = [
            f"the layer modified its input {name}"
            for name, a in given.items()
            if not numpy.array_equal(backend.to_host(a), before[name])
        ]
        faults += map(str, wrong)
        faults = faults or _same_without_dx(backend, subject, run, p, at, dy, grads)
        faults = faults or _habits(backend, subject, run, layout, p, at)
        derived = {}
        if dx is not None and tuple(dx.shape) == tuple(x.shape):
            derived["x"] = backend.to_host(dx).reshape(-1)
        for slot in layout.parameters:
            leaf: Any = grads
            for name in slot.path:
                leaf = leaf.get(name) if isinstance(leaf, dict) else None
            if leaf is not None and tuple(leaf.shape) == slot.shape:
                derived[slot.name] = backend.to_host(leaf).reshape(-1)
        checks = _compare(value, vectors, derived, host, directions, tolerance)
        replacements = [] if faults else _replacements(own_backend, run, gradients)
    report = GradientReport(str(subject), tolerance, tuple(checks), tuple(faults), tuple(replacements))
    if not report.ok:
        raise GradientError(str(report))
    return report


class _Noted(dict[str, Any]):
    """Kernels, and the names of those that were called."""

    def __init__(self, kernels: Mapping[str, Any]) -> None:
        super().__init__(kernels)
        self.called: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        if name in self and name not in self.called:
            self.called.append(name)
        return super().get(name, default)


def _replacements(backend: Backend, run: Run, gradients: Callable[[Run], dict[str, Array]]) -> list[Replacement]:
    """What comes of each kernel that `backend` has in the place of a definition, against the definitions alone."""
    import numpy

    def found(kernels: Mapping[str, Any]) -> dict[str, Any]:
        made = gradients(Run(variant(backend, kernels=kernels), run.training, run.key))
        return {name: backend.to_host(a) for name, a in made.items()}

    expected = {name: backend.to_host(a) for name, a in gradients(run).items()}
    noted, errors = _Noted(backend.kernels), []
    found(noted)
    for name in noted.called:
        made = found({name: backend.kernels[name]})
        scales = {key: max(float(numpy.max(numpy.abs(e), initial=0.0)), 1e-8) for key, e in expected.items()}
        differences = [numpy.max(numpy.abs(made[key] - e), initial=0.0) / scales[key] for key, e in expected.items()]
        error = float(numpy.max(differences))
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

    def difference(name: str, along: Any, step: float) -> float:
        start = vectors[name]
        vectors[name] = start + step * along
        above = value()
        vectors[name] = start - step * along
        below = value()
        vectors[name] = start
        return (above - below) / (2.0 * step)

    def check(name: str, label: str, along: Any, scale: float) -> Check:
        expected = float(derived[name] @ along)
        found = [difference(name, along, step) for step in STEPS]
        errors = [abs(expected - f) / max(abs(expected), abs(f), scale) for f in found]
        best = int(numpy.nanargmin(errors)) if not numpy.all(numpy.isnan(errors)) else 0
        error = errors[best] if numpy.isfinite(errors[best]) else float("inf")
        return Check(name, label, expected, found[best], error)

    checks = []
    for name, gradient in derived.items():
        # what an error is measured against: the size of the gradient, and rounding in the value that is differenced
        scale = max(float(numpy.linalg.norm(gradient)), 1e-4 * abs(value()), 1e-8)
        mine = []
        for i in range(directions):
            along = host.standard_normal(gradient.shape)
            mine.append(check(name, f"random {i + 1}", along / numpy.linalg.norm(along), scale))
        if any(c.error > tolerance for c in mine):
            entries = host.permutation(gradient.size)[:200]
            single = []
            for i in entries:
                along = numpy.zeros(gradient.shape)
                along[i] = 1.0
                single.append(check(name, f"entry {i}", along, scale))
            single.sort(key=lambda c: -c.error)
            mine += [c for c in single[:5] if c.error > tolerance]
        checks += mine
    return checks


def _habits(backend: Backend, subject: Layer, run: Run, layout: Layout, p: Any, x: Array) -> list[str]:
    """What would go wrong elsewhere: rows that depend on each other unsaid, float32 that becomes float64."""
    import numpy

    faults = []
    if x.shape[0] > 1 and not subject.couples_rows and not subject.stochastic:
        whole, _ = subject.forward(run, p, x)
        half = x.shape[0] // 2
        part, _ = subject.forward(run, p, x[:half, ...])
        if not numpy.allclose(backend.to_host(part), backend.to_host(whole)[:half], rtol=1e-9, atol=1e-12):
            faults.append("a row's output depends on other rows: set couples_rows = True")
    single = backend.xp.astype(x, backend.xp.float32)
    start = [backend.from_host(v, backend.xp.float32, backend.device(x)) for v in layout.start(0)]
    p = layout.views(backend, *start)
    y, cache = subject.forward(run, p, single)
    dx, grads = subject.backward(run, p, cache, y, True)
    types = type_faults(str(subject), "float32", {"output": y, **derivatives(dx, grads)})
    return [*faults, *map(str, types)]


def _same_without_dx(backend: Backend, subject: Layer, run: Run, p: Any, x: Array, dy: Array, grads: Any) -> list[str]:
    """Which gradients are others with need_dx=False."""
    import numpy

    _, cache = subject.forward(run, p, x)
    again = dict(leaves(subject.backward(run, p, cache, dy, False)[1]))
    return [
        f"the gradient of {name} is another with need_dx=False"
        for name, value in leaves(grads)
        if name not in again
        or not numpy.allclose(backend.to_host(again[name]), backend.to_host(value), rtol=1e-9, atol=1e-12)
    ]


def _refuse(subject: str, tolerance: float, faults: Sequence[Exception]) -> None:
    """Raise GradientError where there are faults that leave nothing to compare."""
    if faults:
        raise GradientError(str(GradientReport(subject, tolerance, (), tuple(map(str, faults)))))
