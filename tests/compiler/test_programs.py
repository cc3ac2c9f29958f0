"""Random functions of arrays: eager NumPy, the interpreter of commands, machine code, and CUDA kernels agree."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import compiles
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.nvrtc import compiled
from support.world import World

import bpnet as bp
from bpnet.backends.tracing import TracingBackend
from bpnet.compiler.build import build
from bpnet.compiler.columns import in_phases
from bpnet.compiler.commands import CommandList
from bpnet.compiler.interpret import interpret
from bpnet.compiler.together import side_by_side
from bpnet.compiler.trace import trace
from bpnet.compiler.verify import verify_commands

SEAM = bp.backends.get("numpy")

UNARY: dict[str, Callable[..., Any]] = {
    "negative": lambda xp, x: -x,
    "abs": lambda xp, x: xp.abs(x),
    "sign": lambda xp, x: xp.sign(x),
    "sqrt": lambda xp, x: xp.sqrt(xp.abs(x)),
    "exp": lambda xp, x: xp.exp(xp.minimum(x, 2.0)),
    "log": lambda xp, x: xp.log(xp.abs(x) + 0.5),
    "log1p": lambda xp, x: xp.log1p(xp.abs(x)),
    "expm1": lambda xp, x: xp.expm1(xp.minimum(x, 2.0)),
    "tanh": lambda xp, x: xp.tanh(x),
    "waves": lambda xp, x: xp.sin(x) + xp.cos(0.5 * x),
    "scale": lambda xp, x: 0.7 * x + 3.0,
    "relu": lambda xp, x: x * xp.astype(x > 0.0, x.dtype),
    "softmax": lambda xp, x: xp.exp(x - xp.max(x, axis=-1, keepdims=True)),
    "centred rows": lambda xp, x: x - xp.mean(x, axis=1, keepdims=True),
    "centred columns": lambda xp, x: x - xp.mean(x, axis=0),
    "least of rows": lambda xp, x: x / (2.0 + xp.abs(xp.min(x, axis=1, keepdims=True))),
    "share": lambda xp, x: x / (1.0 + xp.sum(xp.abs(x))),
    "gram": lambda xp, x: xp.matmul(xp.matmul(x, xp.permute_dims(x, (1, 0))) / x.size, x),
    "rows twice": lambda xp, x: xp.concat([x[1:, ...], x[:1, ...]]),
    "power": lambda xp, x: powers(xp, xp.tanh(x)),
    "clipped": lambda xp, x: xp.clip(x, -0.5, 1.0),
    "standardized": lambda xp, x: x / (1.0 + xp.std(x, axis=-1, keepdims=True) + xp.var(x)),
    "band": lambda xp, x: xp.where((x > 0.0) & ~(x > 1.0) | (x < -1.0), x, 0.5 * x),
    "rank three": lambda xp, x: xp.reshape(stacked(xp, xp.reshape(x, (x.shape[0], 1, x.shape[1]))), x.shape),
    "vectors": lambda xp, x: x * xp.expand_dims(xp.matmul(x, xp.sum(x, axis=0)), axis=1) / (x.size * x.shape[0]),
    "columns turned": lambda xp, x: xp.concat([x[:, 1:], x[:, :1]], axis=1),
    "every other row": lambda xp, x: xp.concat([x[::2, ...], x[1::2, ...]]),
    "backwards": lambda xp, x: xp.flip(x, axis=1),
    "columns summed up": lambda xp, x: x - xp.max(xp.abs(x), axis=0) / 2.0 + xp.min(x, axis=0),
    "pairs of rows": lambda xp, x: xp.mean(xp.expand_dims(x, axis=1) - 0.5 * xp.expand_dims(x, axis=0), axis=1),
    "stack of products": lambda xp, x: products(xp, xp.stack([x, 0.5 * x])) / (x.size + 1.0),
    "halves": lambda xp, x: halves(xp, x),
    "reshaped": lambda xp, x: xp.reshape(xp.reshape(x, (-1,)) * 2.0, x.shape),
}


def powers(xp: Any, x: Any) -> Any:
    return (xp.abs(x) + 0.5) ** 1.5 + xp.square(x) - xp.reciprocal(x**4 + 1.0) + (x**2 + 0.5) ** -3 + xp.pow(x, 5)


def halves(xp: Any, x: Any) -> Any:
    """Columns that are read and written where they lie, beside others: by kernels, reductions and products."""
    if x.shape[1] == 1:
        return x
    half = (x.shape[1] + 1) // 2
    first, second = x[:, :half], x[:, half:]
    both = xp.concat([xp.tanh(second) + 1.0, first - xp.mean(first, axis=1, keepdims=True)], axis=1)
    product = xp.matmul(first, xp.permute_dims(both[:, :half], (1, 0))) / (x.size + 1.0)
    return both + xp.sum(second, axis=0)[:1] + xp.matmul(product, x) / (x.size + 1.0)


def products(xp: Any, x: Any) -> Any:
    """Of a stack of two matrices: each by its transpose and itself, added up."""
    return xp.sum(xp.matmul(xp.matmul(x, xp.permute_dims(x, (0, 2, 1))), x), axis=0)


def stacked(xp: Any, x: Any) -> Any:
    """Of an array of three axes: reductions over the last and over the others, a product with a matrix."""
    x = x - xp.mean(x, axis=-1, keepdims=True) + xp.mean(x, axis=(0, 1))
    square = xp.reshape(xp.sum(x, axis=(0, 1), keepdims=True), (x.shape[2], 1))
    return xp.where(x != 0.0, x, 1.0) + xp.matmul(x, square) / (x.size * x.shape[0])


def turned(xp: Any, row: Any, rows: int) -> Any:
    """A row as a column, where there are as many rows."""
    return xp.reshape(row, (rows, 1)) if row.shape == (rows,) else row


BINARY: dict[str, Callable[..., Any]] = {
    "sum": lambda xp, x, y: x + y,
    "difference": lambda xp, x, y: x - y,
    "product": lambda xp, x, y: x * y,
    "quotient": lambda xp, x, y: x / (1.0 + y * y),
    "largest": lambda xp, x, y: xp.maximum(x, y),
    "least": lambda xp, x, y: xp.minimum(x, y),
    "chosen": lambda xp, x, y: xp.where(x <= y, x, 0.5 * y),
    "differ": lambda xp, x, y: xp.astype((x < 0.0) != (y < 0.0), x.dtype) * xp.astype(x != y, x.dtype),
    "same": lambda xp, x, y: xp.astype((x < 0.0) == (y >= 0.0), x.dtype),
    "column of": lambda xp, x, y: x + xp.sum(y, axis=1, keepdims=True) / y.size,
    "row of": lambda xp, x, y: x * xp.sum(y, axis=0) / y.size,
    "beside": lambda xp, x, y: xp.concat([x, y, x], axis=-1)[:, x.shape[1] - 1 : -1 - x.shape[1]] * x,
    "turned row of": lambda xp, x, y: x * turned(xp, xp.sum(y, axis=0), x.shape[0]) / y.size,
    "mixed": lambda xp, x, y: xp.matmul(xp.matmul(x, xp.permute_dims(y, (1, 0))) / x.size, y),
}


KNOWN: dict[str, Callable[..., Any]] = {
    "known numbers": lambda seam, x: x * seam.constants([0.3 * k - 0.5 for k in range(x.shape[1])], x),
}
"""Of a backend and an array."""


@dataclass(frozen=True)
class Program:
    """Operations, each on values before it; the first two are the arguments x and y, the results the last ones."""

    steps: tuple[tuple[str, int, int], ...]
    results: int

    def __call__(self, seam: Any, carry: Any, x: Any, y: Any, number: Any) -> Any:
        """carry * number + what comes of x and y, and more results."""
        values = [x, y]
        for name, i, j in self.steps:
            if name in BINARY:
                values.append(BINARY[name](seam.xp, values[i], values[j]))
            else:
                values.append(UNARY[name](seam.xp, values[i]) if name in UNARY else KNOWN[name](seam, values[i]))
        return (carry * number + values[-1], *values[-1 - self.results : -1])


@st.composite
def programs(draw: Any) -> Program:
    steps = []
    for number in range(draw(st.integers(1, 8))):
        earlier = st.integers(max(0, number - 2), number + 1)
        steps.append(
            (draw(st.sampled_from([*UNARY, *BINARY, *KNOWN])), draw(earlier), draw(st.integers(0, number + 1)))
        )
    return Program(tuple(steps), draw(st.integers(0, min(2, len(steps) - 1))))


def commands_of(program: Program, shape: tuple[int, int], dtype: str) -> CommandList:
    def on_symbols(graph: Any, symbols: list[Any]) -> Any:
        return program(TracingBackend(graph, lambda rows, work: [(0, rows)]), *symbols)

    return build(trace(on_symbols, [(shape, dtype)] * 3 + ["number"]), donated=1)


def close(found: Any, expected: Any, dtype: str) -> None:
    largest = np.max(np.abs(expected), initial=1.0)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=largest * (3e-4 if dtype == "float32" else 1e-11))


SHAPES = st.sampled_from([*product([1, 2, 5, 70], [1, 3, 17, 40]), (5, 5), (17, 17)])


def arrays(shape: tuple[int, int], dtype: str, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(3)]


READ_AGAIN = Program(
    (("tanh", 0, 0), ("centred columns", 0, 0), ("centred columns", 1, 0), ("quotient", 3, 2), ("row of", 4, 0)), 1
)
"""Of which a kernel stores entries that it reads again in its next phase, and nobody else does."""
TURNED = Program((("product", 0, 1), ("turned row of", 0, 2)), 0)
"""Of as many rows as columns, where a sum of the columns is read by rows."""
OVER_TURNED = Program((("turned row of", 0, 1), ("row of", 0, 2), ("row of", 0, 3)), 0)
"""And where another sum of the columns is stored in its place."""

DOWN_A_TABLE = Program((("known numbers", 0, 0), ("centred columns", 2, 0)), 0)
"""Of which a kernel that goes down its columns has a number for each."""


@settings(max_examples=200, deadline=None, derandomize=True)
@example(READ_AGAIN, (2, 3), 0, "float32")
@example(TURNED, (5, 5), 0, "float32")
@example(OVER_TURNED, (5, 5), 0, "float32")
@given(programs(), SHAPES, st.integers(0, 5), st.sampled_from(["float32", "float64"]))
def test_the_interpreter_gives_what_eager_numpy_gives(program: Program, shape: Any, seed: int, dtype: str) -> None:
    """Also where the commands write over the carry, which is donated, and where kernels are joined for a GPU."""
    given = arrays(shape, dtype, seed)
    with np.errstate(all="ignore"):
        expected = program(SEAM, *(a.astype("f8") for a in given), 0.3)
        commands = commands_of(program, shape, dtype)
        together = replace(commands, commands=side_by_side(in_phases(commands.commands, 20)))
        verify_commands(together)
        for some in [commands] if together == commands else [commands, together]:
            for a, e in zip(interpret(some, [*given, 0.3]), expected, strict=True):
                close(a, e, dtype)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=programs(), shape=SHAPES, seed=st.integers(0, 5), dtype=st.sampled_from(["float32", "float64"]))
def test_machine_code_gives_what_the_interpreter_gives(
    program: Program, shape: Any, seed: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    compiles(monkeypatch, True)
    given = arrays(shape, dtype, seed)
    with np.errstate(all="ignore"):
        expected = interpret(commands_of(program, shape, dtype), [*given, 0.3])
    for threads in (1, 2):
        with SEAM.session(threads, work=1.0):
            found = SEAM.compile(program, donate=True)(given[0].copy(), *given[1:], 0.3)
        for a, e in zip(found, expected, strict=True):
            close(a, e, dtype)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(program=DOWN_A_TABLE, shape=(5, 3), seed=0, dtype="float64")
@given(program=programs(), shape=SHAPES, seed=st.integers(0, 5), dtype=st.sampled_from(["float32", "float64"]))
def test_cuda_kernels_give_what_the_interpreter_gives(
    program: Program, shape: Any, seed: int, dtype: str, world: World
) -> None:
    """Run on the host, and taken by NVIDIA's compiler."""
    given = arrays(shape, dtype, seed)
    with np.errstate(all="ignore"):
        expected = interpret(commands_of(program, shape, dtype), [*given, 0.3])
    found = world.seam.compile(program)(*map(world.array, given), 0.3)
    for a, e in zip(map(world.cupy.asnumpy, found), expected, strict=True):
        close(a, e, dtype)
    world.check_bounds()
    for code in world.codes:
        compiled(code)
