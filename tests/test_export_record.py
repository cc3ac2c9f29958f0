"""The forward pass as a list of operations: what a program computes, and what it can't say."""

from typing import Any

import numpy as np
import pytest
from support.calls import CALLS, REFUSED, Function, Refused
from support.networks import drawn

import bpnet as bp
from bpnet.errors import ExportError
from bpnet.export.models import exported
from bpnet.export.record import ROWS, Rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12))
BATCHES = (1, 2, 7, 64)


def assert_computes(trainer: bp.Trainer, x: Any) -> None:
    """That the program gives what the trainer predicts for numbers of rows for which it was not recorded."""
    for fold in (False, True):
        program = exported(trainer).program(fold=fold)
        for rows in BATCHES:
            some = {n: a[np.arange(rows) % len(a)] for n, a in (x if isinstance(x, dict) else {"x": x}).items()}
            found = program(*some.values())["output"]
            want = trainer.predict(some if isinstance(x, dict) else some["x"])
            assert found.shape == want.shape
            np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_a_program_of_a_random_network_gives_what_it_predicts(seed):
    problem = drawn(seed)[0]
    trainer = problem.trainer(compile=False).build(problem.x)
    trainer.step(problem.x, problem.y, problem.weight)
    assert_computes(trainer, problem.x)


def test_functions_of_the_standard_are_recorded():
    assert_computes(bp.Trainer(bp.Parallel(*map(Function, CALLS)), "mse", compile=False).build(X), X)


def test_a_program_says_what_it_computes():
    """For who writes another target, or wants to see what a layer does."""
    trainer = bp.Trainer(bp.Sequential(bp.Dense(2, "relu"), bp.WeightNorm(bp.Dense(2))), "mse").build(X[:, :3])
    assert str(exported(trainer).program(fold=True)).splitlines() == [
        "x: float64[rows, 3]", "0.weight: float64[3, 2]", "0.bias: float64[2]", "1.inner.bias: float64[2]",
        "1.multiply_3: float64[2, 2]", "0.matmul = matmul(x, 0.weight)", "0.add = add(0.matmul, 0.bias)",
        "0.maximum = maximum(0.add, 0.0)", "1.inner.matmul = matmul(0.maximum, 1.multiply_3)",
        "1.inner.add = add(1.inner.matmul, 1.inner.bias)", "output: 1.inner.add",
    ]  # fmt: skip
    assert {"1.inner.weight", "1.length"} <= exported(trainer).program().parameters.keys()


def test_a_size_that_depends_on_rows_is_one_everywhere():
    assert [Rows(2, 1).at(rows) for rows in ROWS] == [2 * rows + 1 for rows in ROWS]
    assert [str(size) for size in (Rows(), Rows(3), Rows(1, 2), Rows(2, -1))] == [
        "rows", "3 rows", "rows + 2", "2 rows - 1",
    ]  # fmt: skip


def test_what_is_computed_twice_is_computed_once_and_what_nobody_reads_is_not():
    """Both branches make the same of x; a reshape to the shape that is there is none."""
    branch = bp.Sequential(bp.Sine(2.0), bp.Flatten())
    trainer = bp.Trainer(bp.Sequential(bp.Parallel(branch, branch), bp.Dense(1)), "mse").build(X)
    functions = [op.function for op in exported(trainer).program().operations]
    assert functions == ["multiply", "sin", "concat", "matmul", "add"]
    shared = bp.Shared(bp.WeightNorm(bp.Dense(12)), "same")
    trainer = bp.Trainer(bp.Sequential(shared, "tanh", shared), "mse").build(X)
    assert [a.shape for a in exported(trainer).program(fold=True).constants.values()] == [(12, 12)]


def test_a_shared_layer_and_the_layers_of_a_composite_are_named_where_they_stand():
    shared = bp.Shared(bp.Dense(12, "tanh"), "same")
    trainer = bp.Trainer(bp.Sequential(shared, bp.Residual(bp.Dense(12)), shared), "mse").build(X)
    program = exported(trainer).program()
    assert [(op.function, op.layer) for op in program.operations] == [
        ("matmul", "0.inner"), ("add", "0.inner"), ("tanh", "0.inner"), ("matmul", "1.inner"), ("add", "1.inner"),
        ("add", "1"), ("matmul", "2.inner"), ("add", "2.inner"), ("tanh", "2.inner"),
    ]  # fmt: skip
    assert list(program.parameters) == ["0.inner.weight", "1.inner.weight", "0.inner.bias", "1.inner.bias"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_say_is_an_error_that_names_the_layer(name):
    network = bp.Sequential(bp.Dense(12), bp.Residual(Refused(name)))
    trainer = bp.Trainer(network, "mse", compile=False).build(X)
    with pytest.raises(ExportError, match=f"layer '1.inner' .Refused. can't be exported: .*{REFUSED[name][1]}"):
        exported(trainer).program()
