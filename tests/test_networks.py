"""Random networks of the whole catalogue: the gradient by differences, and one step alike on every library.

As many as take some seconds; `--networks FIRST:STOP` runs those of other seeds, however many.
"""

from typing import Any

import numpy as np
import pytest
from conftest import without_cublaslt
from support.networks import distance, drawn, state_of

import bpnet as bp

WAYS = {
    "numpy": ("numpy", False), "numpy, compiled": ("numpy", True), "strict": ("strict", False),
    "torch": ("torch", False), "jax, compiled": ("jax", True), "cupy": ("cupy", False), "cupy, captured": ("cupy", True),
}  # fmt: skip
"""A library, and whether steps are compiled."""
STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
POINTS = 5
"""Of parameters at which a network may have a kink, or be too steep or too flat for differences."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "network" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("networks")
        first, stop = map(int, chosen.split(":")) if chosen else (0, 4)
        metafunc.parametrize("network", range(first, stop))


def measured(value: Any, start: Any, along: Any) -> float | None:
    """The derivative of value along a direction, by central differences of the fourth order, from several steps.

    It is that of two steps that agree best with each other, and there is none where none do to 1e-7: near a kink, or
    where rounding hides the slope.  What is to be compared with it has no say in that.
    """

    def difference(h: float) -> float:
        near, far = (value(start + s * along) - value(start - s * along) for s in (h, 2.0 * h))
        return float(8.0 * near - far) / (12.0 * h)

    found = [difference(h) for h in STEPS]
    apart = [abs(a - b) for a, b in zip(found, found[1:], strict=False)]
    best = int(np.argmin(apart))
    return found[best + 1] if apart[best] <= 1e-7 * abs(found[best + 1]) else None


def test_the_gradient_along_a_random_direction(network: int) -> None:
    """To 1e-6, and usually to 1e-9."""
    problem, _, _ = drawn(network)
    trainer, rng = problem.trainer(compile=False).build(problem.x), np.random.default_rng(network)
    layout, buffers = trainer.layout, trainer.buffers
    options = {"penalties": problem.options.get("penalties", ()), "sample_weight": problem.weight}
    if layout.buffer_size:
        options["buffers"] = buffers

    def value_and_grad(theta: Any) -> Any:
        return bp.value_and_grad(problem.network, problem.loss, theta, problem.x, problem.y, **options)

    for _ in range(POINTS):
        theta, along = trainer.theta + 0.1 * rng.standard_normal(layout.size), rng.standard_normal(layout.size)
        derived = float(value_and_grad(theta)[1] @ along)
        slope = measured(lambda at: value_and_grad(at)[0], theta, along / np.linalg.norm(along))
        if slope is not None:
            derived /= float(np.linalg.norm(along))
            assert abs(derived - slope) <= 1e-6 * max(abs(derived), abs(slope)), (problem, derived, slope)
            return
    raise AssertionError(f"no differences of {problem}")


@pytest.mark.parametrize("way", [pytest.param(w, marks=pytest.mark.gpu) if "cupy" in w else w for w in WAYS])
def test_a_step_is_the_same(way: str, network: int, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-12 of the largest entry in each vector; captured, to the bit of the step launched command by command."""
    name, compile = WAYS[way]
    lib = library(name)
    if way == "numpy, compiled":
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    if way == "cupy, captured" and (why := without_cublaslt()):
        pytest.skip(why)
    if name == "torch":  # which has masks of its own
        monkeypatch.setattr(lib.seam, "keep_mask", host_mask(lib))
    problem, expected, _ = drawn(network)
    batch = problem.batch(lib.array)
    trainer = problem.trainer(compile).build(batch[0])
    start = trainer.snapshot()
    for number in range(1 + (way == "cupy, captured")):
        if number:
            trainer.restore(start)
        found = [lib.host(a) for a in (trainer.step(*batch), *state_of(trainer))]
        error = distance(found, expected)
        assert error <= 1e-12, (error, str(problem))
        if number:
            assert all(np.array_equal(a, b) for a, b in zip(found, before, strict=True))
        before = found


def host_mask(lib: Any) -> Any:
    own = bp.backends.get("numpy")

    def keep_mask(key: Any, shape: Any, keep: float, dtype: Any, device: Any) -> Any:
        return lib.array(own.keep_mask(key, shape, keep, np.dtype("float64"), "cpu"))

    return keep_mask
