"""A traced rule is the rule: what the tracer wrote down, done by NumPy line by line, gives the rule's own bits."""

from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.backends.interrupts import uninterrupted
from bpnet.backends.numpy.in_place import in_place
from bpnet.compiler.symbols import NotTraceableError

ACTIVATIONS = [
    bp.Sigmoid(),
    bp.Tanh(),
    bp.ReLU(),
    bp.LeakyReLU(0.3),
    bp.GELU(),
    bp.GELU(approximate=True),
    bp.SiLU(),
    bp.Softplus(),
    bp.ELU(0.7),
]
OPTIMIZERS = [bp.SGD(0.1), bp.SGD(0.1, momentum=0.9, nesterov=True), bp.Adam(1e-2), bp.AdamW(1e-2)]


def rules() -> list[Any]:
    """(rule, arrays, scalars) of every elementwise rule."""
    found = [pytest.param(f.value, 1, (), id=f"{f} value") for f in ACTIVATIONS]
    found += [pytest.param(f.derivative, 2, (), id=f"{f} derivative") for f in ACTIVATIONS]
    for optimizer in OPTIMIZERS:
        state = optimizer.init(bp.backends.get("numpy"), bp.layout_of(bp.Dense(1, bias=False), (1,)), np.zeros(1))
        numbers = optimizer.hyperparameters_at(6)
        found.append(pytest.param(optimizer.elementwise_step, 2 + len(state), numbers, id=str(optimizer)))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rule", "arrays", "scalars"), rules())
def test_what_was_traced_gives_the_bits_of_the_rule(rule: Any, arrays: int, scalars: Any, dtype: str) -> None:
    backend = bp.backends.get("numpy")
    rng = np.random.default_rng(0)
    values = [np.abs(rng.standard_normal(999)).astype(dtype) for _ in range(arrays)]  # Adam takes a root
    values[0] *= rng.choice([-1, 1], 999).astype(dtype)
    expected = rule(backend, *values, *scalars)
    try:
        program = in_place(rule, arrays, len(scalars), dtype)
    except NotTraceableError:  # comparisons and erf need memory of another kind
        assert rule.__self__ in (bp.ReLU(), bp.LeakyReLU(0.3), bp.GELU(), bp.ELU(0.7))
        return
    expected = expected if isinstance(expected, tuple) else (expected,)
    results = [np.empty_like(e) for e in expected]
    scratch = np.empty((program.needs, 999), dtype)
    uninterrupted(program.calls(np, values, scalars, results, scratch))
    for result, e in zip(results, expected, strict=True):
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, e)


def test_one_operation_on_the_same_values_is_written_once() -> None:
    program = in_place(lambda b, x: (b.xp.exp(x) + b.xp.exp(x)) * b.xp.exp(x), 1, 0, "float64")
    x = np.zeros(3)
    calls = program.calls(np, [x], (), [np.empty_like(x)], [np.empty_like(x)] * program.needs)
    assert [function for function, *_ in calls] == [np.exp, np.add, np.multiply]
