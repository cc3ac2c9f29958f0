"""Random networks of the whole catalogue: the gradient by differences, and one step alike on every library.

As many as take some seconds; `--networks FIRST:STOP` runs those of these seeds, however many.
"""

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import without_cublaslt
from support.networks import distance, drawn, state_of
from support.ranks import threads

import bpnet as bp
from bpnet.registry import Registered

DIRECTIONS = range(40)
IN_PARTS = range(20)
WAYS = {
    "numpy": ("numpy", False, range(24)),
    "strict": ("strict", False, range(24)),
    "torch": ("torch", False, range(24)),
    "numpy, compiled": ("numpy", True, range(102, 104)),
    "jax, compiled": ("jax", True, range(201, 202)),
    "cupy, captured": ("cupy", True, range(322, 323)),
}
"""A library, whether steps are compiled, and which networks are tried where none are asked for."""
STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
POINTS = 5
"""Of parameters at which a network may have a kink, or be too steep or too flat for differences."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "network" not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption("networks")
    chosen = range(*map(int, asked.split(":"))) if asked else None
    if "way" not in metafunc.fixturenames:
        metafunc.parametrize("network", chosen or (IN_PARTS if "parts" in metafunc.function.__name__ else DIRECTIONS))
        return
    pairs = [(way, network) for way, (*_, usual) in WAYS.items() for network in chosen or usual]
    marks = {True: [pytest.mark.gpu], False: []}
    metafunc.parametrize(
        ("way", "network"), [pytest.param(*pair, marks=marks[pair[0].startswith("cupy")]) for pair in pairs]
    )


def measured(value: Any, start: Any, along: Any) -> float | None:
    """The derivative of value along a direction, by central differences of the fourth order, from several steps.

    It is that of two steps that agree best with each other, and there is none where none do to 1e-7: near a kink, or
    where rounding hides the slope.  What is to be compared with it has no say in that.
    """

    def difference(h: float) -> float:
        near, far = (value(start + s * along) - value(start - s * along) for s in (h, 2.0 * h))
        return float(8.0 * near - far) / (12.0 * h)

    found = [difference(h) for h in STEPS]
    apart, best = min((abs(a - b), b) for a, b in pairwise(found))
    return best if apart <= 1e-7 * abs(best) else None


def test_the_gradient_along_a_random_direction(network: int, record_property: Any) -> None:
    """To 1e-6, and mostly to 1e-10."""
    problem, _, _ = drawn(network)
    trainer, rng = problem.trainer(compile=False).build(problem.x), np.random.default_rng(network)
    options = {"penalties": problem.options.get("penalties", ()), "sample_weight": problem.weight}
    if trainer.layout.buffer_size:
        options["buffers"] = trainer.buffers

    def value_and_grad(theta: Any) -> Any:
        return bp.value_and_grad(problem.network, problem.loss, theta, problem.x, problem.y, **options)

    def loss(theta: Any) -> Any:
        return value_and_grad(theta)[0]

    flat = 0
    for _ in range(POINTS):
        theta, along = (rng.standard_normal(trainer.layout.size) for _ in range(2))
        theta, along = trainer.theta + 0.1 * theta, along / np.linalg.norm(along)
        derived, slope = float(value_and_grad(theta)[1] @ along), measured(loss, theta, along)
        flat += derived == slope == 0.0  # as where no row is wrong any more: tried elsewhere
        if slope is not None and slope != derived:
            error = abs(derived - slope) / max(abs(derived), abs(slope))
            assert error <= 1e-6, (str(problem), derived, slope)
            record_property("differences", ("networks", "numpy", 1, error))
            return
    assert flat == POINTS, f"there are no differences of {problem}"


def test_a_step_is_the_same(way: str, network: int, library: Any, uncompiled: Any) -> None:
    """To 1e-12 of the largest entry in each vector; captured, to the bit of the step launched command by command."""
    name, compile, _ = WAYS[way]
    lib = library(name)
    if way == "numpy, compiled":
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    if name == "cupy" and (why := without_cublaslt()):
        pytest.skip(why)
    problem, expected, _ = drawn(network)
    batch = problem.batch(lib.array)
    trainer = problem.trainer(compile).build(batch[0])
    start = trainer.snapshot()

    def stepped() -> list[Any]:
        return [lib.host(a) for a in (trainer.step(*batch), *state_of(trainer))]

    found = stepped()
    assert distance(found, expected) <= 1e-12, str(problem)
    assert not uncompiled()
    if name == "cupy":
        trainer.restore(start)
        for captured, launched in zip(stepped(), found, strict=True):
            np.testing.assert_array_equal(captured, launched)


def synchronised(value: Any) -> Any:
    """A network with the statistics of all rows in the place of those of a rank's."""
    if isinstance(value, bp.BatchNorm):
        return replace(value, synchronised=True)
    if isinstance(value, tuple):
        return tuple(map(synchronised, value))
    if not isinstance(value, Registered):
        return value
    options = {f.name: synchronised(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]
    return type(value)(*(options.pop(value.star) if value.star else ()), **options)


def test_a_step_in_parts_is_the_same(network: int) -> None:
    """By micro-batches of two rows at most, and by two ranks or three, which end with the same bits."""
    problem, expected, _ = drawn(network)

    def stepped(**options: Any) -> list[Any]:
        trainer = replace(problem, network=synchronised(problem.network), options=problem.options | options)
        made = trainer.trainer(compile=False).build(problem.x)
        return [np.asarray(a) for a in (made.step(*problem.batch(np.array)), *state_of(made))]

    if not (problem.network.couples_rows or problem.network.updates_buffers):
        assert distance(stepped(micro_batch=2), expected) <= 1e-12, str(problem)
    for count in {2, 3, 3 if problem.network.couples_rows else 7}:
        if not (problem.network.couples_rows and len(problem.y) < count):  # who normalizes needs rows
            first, *others = threads(count, lambda ranks: stepped(distributed=ranks))
            assert distance(first, expected) <= 1e-12, (str(problem), count)
            for other in others:
                for found, same in zip(other, first, strict=True):
                    np.testing.assert_array_equal(found, same)
