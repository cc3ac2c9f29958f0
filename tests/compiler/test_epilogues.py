"""Products that do what elementwise kernels did: which do, and that nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpnet.compiler.commands import ARENA, FIRST, Address, Command, Fused, FusedKernel, Matrix, Product, RowGather
from bpnet.compiler.epilogues import epilogue_name, spans_read, spans_written, with_epilogues

N = 3
SIZE = 8 * N * N
"""Bytes of a matrix; all are N x N."""
X, W, BIAS, OUT = (Address(FIRST + i, 0) for i in range(4))
"""Arguments, and a result."""
RAW, OTHER, THIRD = (Address(ARENA, i * SIZE) for i in range(3))

Z = ("operand", 0)
KERNELS = {
    "BIAS": ((("full", "float64"), ("per_column", "float64")), (("add", "full", 0, Z, ("operand", 1)),)),
    "RELU": ((("full", "float64"),), (("maximum", "full", 0, Z, ("literal", 0.0)),)),
    "RELU_BIAS": (
        (("full", "float64"), ("per_column", "float64")),
        (("add", "full", 0, Z, ("operand", 1)), ("maximum", "full", 0, ("value", 0), ("literal", 0.0))),
    ),
    "sum": ((("full", "float64"), ("full", "float64")), (("add", "full", 0, Z, ("operand", 1)),)),
    "square": ((("full", "float64"),), (("multiply", "full", 0, Z, Z),)),
}


def kernel(name: str, out: Address, *operands: Address) -> Fused:
    layouts, expressions = KERNELS[name]
    made = FusedKernel("float64", layouts, 0, 0, expressions, (("store", ("value", len(expressions) - 1), 0, "full"),))
    return Fused(made, N, N, operands, (), (), (), (out,))


def product(out: Address, a: Address = X, b: Address = W, accumulate: bool = False) -> Product:
    return Product("float64", N, N, N, Matrix(a, N, 1), Matrix(b, 1, N), out, accumulate)


def carried_out(commands: Sequence[Command]) -> dict[int, Any]:
    """What lies in the memories of results afterwards.  A product with an epilogue stores only what comes of that."""
    rng = np.random.default_rng(0)
    memories = {i: np.round(4 * rng.standard_normal(2 * N * N)) for i in range(ARENA, FIRST + 5)}

    def at(address: Address) -> Any:
        start = address.offset // 8
        return memories[address.memory][start : start + N * N].reshape(N, N)

    def stored(command: Fused, values: list[Any]) -> None:
        (_, expressions), names = KERNELS[epilogue_name(command.kernel) or NAMES[command.kernel]], []
        for op, _, _, *references in expressions:
            a, b = (r[1] if r[0] == "literal" else (values if r[0] == "operand" else names)[r[1]] for r in references)
            names.append({"add": np.add, "maximum": np.maximum, "multiply": np.multiply}[op](a, b))
        at(command.results[0])[...] = names[-1]

    def operands(command: Fused) -> list[Any]:
        layouts = [layout for layout, _ in command.kernel.operands]
        return [
            at(p).copy() if of == "full" else at(p)[:1].copy() for p, of in zip(command.operands, layouts, strict=True)
        ]

    memories[ARENA] = np.full(3 * N * N, 7.0)
    for command in commands:
        if isinstance(command, Fused):
            stored(command, operands(command))
        elif isinstance(command, Product):
            z = at(command.a.address) @ at(command.b.address).T + (at(command.out) if command.accumulate else 0.0)
            if command.epilogue is None:
                at(command.out)[...] = z
            else:
                stored(command.epilogue, [z, *operands(command.epilogue)[1:]])
    return {i: m for i, m in memories.items() if i >= FIRST}


NAMES = {kernel(name, OUT, *[X] * len(KERNELS[name][0])).kernel: name for name in KERNELS}


def same(commands: Sequence[Command]) -> int:
    """How many commands epilogues spare, which changes no result."""
    made = with_epilogues(commands)
    for memory, values in carried_out(commands).items():
        np.testing.assert_array_equal(carried_out(made)[memory], values)
    return len(commands) - len(made)


@pytest.mark.parametrize("name", ["BIAS", "RELU", "RELU_BIAS"])
@pytest.mark.parametrize("out", [OUT, RAW, OTHER], ids=["result", "in place", "elsewhere"])
def test_what_a_product_can_do_it_does(name: str, out: Address) -> None:
    """Also where others are done in between."""
    after = kernel(name, out, RAW, *[BIAS] * ("BIAS" in name))
    commands = [product(RAW), after, kernel("square", OUT, out)]
    (made, _) = with_epilogues(commands)
    assert made == replace(commands[0], epilogue=after)
    assert epilogue_name(after.kernel) == name
    assert same(commands) == 1
    assert same([commands[0], product(THIRD), after, commands[2]]) == 1


@pytest.mark.parametrize(
    "commands",
    [
        [product(RAW), kernel("square", OUT, RAW)],
        [product(RAW), kernel("sum", OUT, RAW, X)],
        [product(RAW), kernel("BIAS", OTHER, RAW, BIAS), kernel("sum", OUT, RAW, OTHER)],
        [product(RAW), kernel("sum", OTHER, RAW, X), kernel("BIAS", OUT, RAW, BIAS)],
        [product(RAW), kernel("RELU", OTHER, RAW), product(OUT, OTHER, RAW)],
        [product(RAW), kernel("RELU", OTHER, RAW), product(RAW, accumulate=True), kernel("sum", OUT, RAW, OTHER)],
        [product(RAW), product(RAW, X, X, accumulate=True), kernel("RELU", OUT, RAW)],
        [product(OUT), kernel("RELU", Address(FIRST + 4, 0), OUT)],
        [product(RAW), kernel("BIAS", X, RAW, BIAS)],
        [product(RAW), kernel("square", BIAS, X), kernel("BIAS", OUT, RAW, BIAS)],
        [
            *(kernel("square", OTHER, X), product(RAW)),
            *(kernel("sum", OUT, X, OTHER), kernel("RELU", OTHER, RAW), product(Address(FIRST + 4, 0), OTHER)),
        ],
        [product(RAW), kernel("square", OUT, X), kernel("RELU", OUT, RAW)],
        [product(RAW), kernel("square", RAW, X), kernel("RELU", OUT, RAW)],
        [product(RAW), kernel("BIAS", Address(ARENA, 8), RAW, BIAS), kernel("square", OUT, Address(ARENA, 8))],
        [product(RAW), kernel("BIAS", OUT, BIAS, RAW)],
        [product(RAW), kernel("BIAS", OUT, RAW, RAW)],
        [replace(product(RAW), stack=2), kernel("RELU", OUT, RAW)],
    ],
    ids=[
        "another operation",
        "a matrix is added",
        "read again",
        "read before",
        "a product reads it again",
        "added to",
        "added to at once",
        "a result itself",
        "written to a factor",
        "the bias changes in between",
        "its address is read in between",
        "its address is written in between",
        "overwritten in between",
        "in part in place",
        "the product is the bias",
        "its first row is the bias",
        "one of a stack",
    ],
)
def test_what_it_must_not_do_is_done_apart(commands: list[Command]) -> None:
    assert same(commands) == 0


def test_only_kernels_that_libraries_know_have_a_name() -> None:
    known = kernel("RELU_BIAS", OUT, RAW, BIAS).kernel
    for other in (
        replace(known, operands=known.operands[::-1]),
        replace(known, results=(*known.results, ("store", ("value", 0), 0, "full"))),
        replace(known, results=(("full_sum", *known.results[0][1:]),)),
        replace(known, expressions=(known.expressions[0], ("maximum", "full", 0, ("value", 0), ("literal", 1.0)))),
        replace(known, expressions=(("subtract", *known.expressions[0][1:]), known.expressions[1])),
        kernel("square", OUT, RAW).kernel,
    ):
        assert epilogue_name(other) is None


def test_memory_that_is_read_and_written() -> None:
    whole = (FIRST, 0, SIZE)
    assert spans_read(product(RAW)) == [whole, (FIRST + 1, 0, SIZE)]
    assert spans_read(product(RAW, accumulate=True))[2] == (ARENA, 0, SIZE)
    apart = replace(product(RAW), a=Matrix(X, 10, 1), b=Matrix(W, 1, 20))
    assert spans_read(apart) == [(FIRST, 0, 8 * 23), (FIRST + 1, 0, 8 * 43)]
    bias = kernel("BIAS", OUT, RAW, BIAS)
    assert spans_read(bias) == [(ARENA, 0, SIZE), (FIRST + 2, 0, 8 * N)]
    assert spans_read(replace(product(RAW), epilogue=bias))[2:] == [(FIRST + 2, 0, 8 * N)]
    assert spans_written(replace(product(RAW), epilogue=bias))[-1] == (FIRST + 3, 0, SIZE)
    gather = RowGather(5, 9, 12, X, W, "int32", OUT)
    assert (spans_read(gather), spans_written(gather)) == (
        [(FIRST, 0, 108), (FIRST + 1, 0, 20)],
        [(FIRST + 3, 0, 60)],
    )
    sums = [("column_sum", Z, 0, "full"), ("full_sum", Z, 0, "full"), ("store", Z, 0, "per_row")]
    summing = FusedKernel("float32", (("full", "float32"),), 0, 0, (), tuple(sums))
    command = Fused(summing, 4, 6, (X,), (), (), (), (W, BIAS, OUT))
    assert [stop for _, _, stop in spans_written(command)] == [24, 4, 16]


ADDRESSES = [RAW, OTHER, THIRD, Address(ARENA, SIZE // 2 // 8 * 8), OUT, Address(FIRST + 4, 0)]


@st.composite
def lists(draw: Any) -> list[Command]:
    """Commands that read what was written before, wherever that is, and nothing of what was written over since."""
    written, made = [X, W, BIAS], []
    for _ in range(draw(st.integers(2, 7))):
        out = draw(st.sampled_from(ADDRESSES))
        same_bytes = [p for p in written if p.memory == out.memory and abs(p.offset - out.offset) < SIZE]
        name = draw(st.sampled_from(["product", "product", *KERNELS]))
        # no product writes to a factor, and no kernel to a part of an operand
        allowed = [p for p in written if p not in same_bytes or (name != "product" and p == out)]
        if name == "product":
            factors = [draw(st.sampled_from(allowed)) for _ in range(2)]
            made.append(product(out, *factors, accumulate=same_bytes == [out] and draw(st.booleans())))
        else:
            last = draw(st.sampled_from([*allowed, *allowed[-1:] * 4]))
            operands = [last, *(draw(st.sampled_from(allowed)) for _ in KERNELS[name][0][1:])]
            made.append(kernel(name, out, *operands))
        written = [*(p for p in written if p not in same_bytes), out]
    return made


@settings(max_examples=400, deadline=None, derandomize=True)
@given(lists())
def test_any_commands_give_the_same(commands: list[Command]) -> None:
    same(commands)
