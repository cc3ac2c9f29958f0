"""Fused kernels as CUDA C++: run on the host they give what NumPy gives, and NVIDIA's compiler takes them.

Neither needs a device.  On the host the threads of a block take turns between barriers, one block after the other, on
real memory.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.nvrtc import ARCHITECTURES, by_nvrtc, compiled, machine_code
from support.world import World, raw
from test_sums import error

import bpnet as bp
from bpnet.compiler.commands import Address, Fused, FusedKernel, Mask, RowGather, RowScatterAdd, Together
from bpnet.compiler.cuda import emit, gather, scatter
from bpnet.compiler.cuda.launch import SERIAL_ROWS, THREADS, form_of, launch_of, most_tickets, width_of
from bpnet.compiler.together import side_by_side
from bpnet.optimizers.clipping import clip_by_global_norm

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
SHAPES = [(1, 1), (1, 1203), (37, 24), (700, 4), (5, 3), (130, 10), (3, 2000), (40, 1040)]
"""One entry, one long row, and rows around what a thread, a warp and a block take; the last two spread."""

Function = Callable[..., Any]


def elementwise(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    xp = b.xp
    t = xp.maximum((x + c) * r + s * v, -0.5) * 0.3
    return t, xp.where(t > x, xp.abs(t), xp.sign(x) / (2.0 - xp.minimum(t, 1.0)))


def full_sums(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    xp = b.xp
    t = (x + c) * r
    return t, xp.sum(t), xp.max(t * s), xp.min(t - v)


def column_sums(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    xp = b.xp
    t = (x + c) * r
    return xp.sum(t, axis=0), t * s, xp.sum(x * v, axis=0), xp.sum(t * t)


def row_sums(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    xp = b.xp
    z = x + c
    e = xp.exp(z - xp.max(z, axis=1, keepdims=True))
    total = xp.sum(e, axis=1, keepdims=True)
    return e / total * s, xp.log(total) * v, xp.min(z * r, axis=1), xp.max(total), xp.sum(x, axis=1)


def row_and_column_sums(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    xp = b.xp
    z = x * c
    d = z - xp.mean(z, axis=1, keepdims=True)
    d = d / xp.sqrt(xp.mean(d * d, axis=1, keepdims=True) + 0.25) * r
    return d, xp.sum(d, axis=0), xp.sum(x * d, axis=0) * s, xp.sum(d * d) * v


def rows_that_are_stored(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    """Values of rows that later phases read, though they are stored too."""
    xp = b.xp
    e = xp.exp(xp.mean(x + c, axis=1, keepdims=True))
    t = xp.mean(x * e * r, axis=1, keepdims=True)
    y = xp.exp(x - t)
    return t * e + x, e * s, xp.sum(y * v, axis=1), y + e


def known_numbers(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    """Tables that are part of the code."""
    xp, q = b.xp, b.constants([0.5 - 0.25 * (k % 7) for k in range(x.shape[1])], x)
    t = x * q + xp.sum(x * q, axis=1, keepdims=True) * r
    return t, xp.sum(t * q, axis=0), q * c, xp.sum(t * q)


FORMS = {
    f.__name__: f for f in (elementwise, full_sums, column_sums, row_sums, row_and_column_sums, rows_that_are_stored)
}


def operands(shape: tuple[int, int], dtype: str, seed: int = 0) -> list[Any]:
    """A matrix, a row, a column, and a scalar array, of such numbers; and a number."""
    rng = np.random.default_rng(seed)
    sizes = (shape, (1, shape[1]), (shape[0], 1), ())
    return [*(rng.standard_normal(size).astype(dtype) for size in sizes), 0.7]


def shifted(world: World, a: Any) -> Any:
    """The array where only its elements are aligned, so that they are taken one by one."""
    flat = world.array(np.concatenate([np.zeros(1, a.dtype), a.ravel()]))
    return flat[1:].reshape(a.shape)


def ran(world: World, function: Function, arguments: Sequence[Any], wide: bool = True) -> tuple[list[Any], list[Any]]:
    """What a function gives on the substitute for a device, and its commands."""
    step = world.seam.compile(function)
    address = world.array if wide else lambda a: shifted(world, a)
    given = [address(a) if isinstance(a, np.ndarray) else a for a in arguments]
    found = step(*given)
    (traced,) = step.programs.values()
    results = [world.cupy.asnumpy(a) for a in (found if isinstance(found, tuple) else (found,))]
    assert not raw(traced.program.tickets).any(), "the next launch would not know its last block"
    for a, g in zip(arguments, given, strict=True):
        assert g is a or np.array_equal(raw(g), a, equal_nan=True), "an argument was written to"
    world.check_bounds()
    return results, list(traced.commands.commands)


def by_numpy(function: Function, arguments: Sequence[Any]) -> list[Any]:
    """The same in double precision by NumPy."""
    real = [a.astype("float64") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arguments]
    with np.errstate(all="ignore"):
        found = function(bp.backends.Backend(bp.backends.get("numpy").xp), *real)
    return list(found) if isinstance(found, tuple) else [found]


def near(found: Sequence[Any], expected: Sequence[Any], dtype: str, units: float = 200.0) -> None:
    eps = float(np.finfo(dtype).eps)
    for f, e in zip(found, expected, strict=True):
        assert (f.dtype, f.shape) == (dtype, np.shape(e))
        np.testing.assert_allclose(f, e, rtol=units * eps, atol=units * eps * float(np.max(np.abs(e), initial=1.0)))


@pytest.mark.parametrize(
    ("shape", "dtype", "wide"),
    [
        *((shape, "float32", True) for shape in SHAPES),
        *((shape, "float32", False) for shape in SHAPES[1:]),
        *((shape, "float64", True) for shape in SHAPES[1::2]),
    ],
)
@pytest.mark.parametrize("name", FORMS)
def test_kernels_of_every_form(name: str, shape: tuple[int, int], wide: bool, dtype: str, world: World) -> None:
    arguments = operands(shape, dtype)
    found, commands = ran(world, FORMS[name], arguments, wide)
    near(found, by_numpy(FORMS[name], arguments), dtype)
    forms = {"elementwise": "map", "full_sums": "map", "column_sums": "columns"}
    if min(shape) > 1:  # or else these are sums of everything
        assert forms.get(name, "rows") in {form_of(c.kernel) for c in commands if isinstance(c, Fused)}
    if name in forms:
        assert len(commands) == 1
    for code in world.codes:
        compiled(code)


@pytest.mark.parametrize("shape", [(1, 1), (37, 24), (3, 2000)])
@DTYPES
def test_tables_of_known_numbers(dtype: str, shape: tuple[int, int], world: World) -> None:
    arguments = operands(shape, dtype)
    found, _ = ran(world, known_numbers, arguments)
    near(found, by_numpy(known_numbers, arguments), dtype)


def test_every_variant_was_among_them(world: World) -> None:
    """Wide and plain kernels, and such as leave sums of long rows to another; sums are the same wherever arrays lie."""
    seen = []
    for shape in SHAPES:
        for function in (row_and_column_sums, FORMS["full_sums"]):
            each = [ran(world, function, operands(shape, "float32"), wide)[0] for wide in (True, False)]
            seen.append({code for code in world.codes if "scratch[(0 * gridDim.x" in code})
            for one, other in zip(*each, strict=True):
                np.testing.assert_array_equal(one, other)
    assert any(seen)
    assert {width for code in world.codes for width in re.findall(r"load<(\d)>", code)} == {"1", "4"}


def test_kernels_are_given_memory_that_nobody_else_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept to be launched again is told by the address of one workspace, which both kernels use here."""
    step, (*arrays, number) = world.seam.compile(row_and_column_sums), operands((3, 2000), "float32")
    there = [*map(world.array, arrays), number]
    given = []

    def checked(calls: Any) -> None:
        (traced,) = step.programs.values()
        freed = {workspace.data.ptr for workspace in traced.program.workspaces}
        held = [(m.ptr, m.ptr + m.size) for m in world.memory if m.ptr not in freed]
        held += [(first, first + needed) for (first, *_), needed, _ in traced.program.prepared]
        for *_, arguments in calls:
            given.extend(a for a in arguments if isinstance(a, int) and a > 2**20)
            assert not [a for a in given if not any(start <= a < stop for start, stop in held)]

    monkeypatch.setattr("bpnet.backends.cupy.compiled.uninterrupted", checked)
    step(*there)
    assert len(given) > 20


def standardized_columns(b: Any, x: Any, c: Any, r: Any, s: Any, v: Any) -> Any:
    """Sums of columns, then of what these make of the columns, and entries that need both."""
    xp = b.xp
    z = x + c
    mean = xp.mean(z, axis=0)
    d = z - mean
    scale = v / xp.sqrt(xp.mean(d * d, axis=0) + 0.25)
    mask = xp.astype(scale > 0.5, x.dtype)
    return d * scale * s * r + mask, 0.5 * mean, scale


@pytest.mark.parametrize(
    ("shape", "again", "dtype"), [((37, 24), 1, "float64"), ((40, 1041), 1, "float32"), ((700, 4), 3, "float32")]
)
def test_columns_whose_sums_are_known_first(
    shape: tuple[int, int], again: int, dtype: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One launch, which goes down few rows again; of many each sum is one, the last block of which goes on with it."""
    monkeypatch.setattr("bpnet.backends.cupy.compiled.MOST_ROWS_AGAIN", 100)
    arguments = operands(shape, dtype)
    found, commands = ran(world, standardized_columns, arguments)
    near(found, by_numpy(standardized_columns, arguments), dtype)
    assert len(commands) == again
    for code in world.codes:
        compiled(code)


@pytest.mark.parametrize("labels", ["int32", "int64"])
@pytest.mark.parametrize("shape", [(1, 2), (300, 10), (70, 33), (5, 1000), (4, 3000)])
@DTYPES
def test_labels_are_compared_with_positions(dtype: str, shape: tuple[int, int], labels: str, world: World) -> None:
    """Those of no class are none; the first of the largest entries is that which counts."""
    rng = np.random.default_rng(1)
    z = (30.0 * rng.standard_normal(shape)).astype(dtype)
    z[-1, :] = 1e4
    y = rng.integers(-1, shape[1] + 1, shape[0]).astype(labels)
    cross_entropy = bp.CrossEntropy()

    def function(b: Any, z: Any, y: Any) -> Any:
        return (*cross_entropy(bp.Run(b), z, y, None, 7.0), cross_entropy.correct(bp.Run(b), z, y))

    found, commands = ran(world, function, [z, y])
    expected = by_numpy(function, [z, y])
    near(found[:2], expected[:2], dtype)
    np.testing.assert_array_equal(found[2], expected[2])
    assert shape[0] == 1 or any(form_of(c.kernel) == "rows" for c in commands if isinstance(c, Fused))


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(("shape", "number"), [((50, 32), 7), ((16, 7), 2**32 + 5), ((1, 3), 0)])
@DTYPES
def test_masks_have_the_bits_of_the_definition(
    dtype: str, shape: tuple[int, int], number: int, wide: bool, world: World
) -> None:
    """Whether a part of the key, and the number of the first row, is known beforehand, or changes from call to call."""
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)

    def both(b: Any, x: Any, number: Any) -> Any:
        streams = ((3, number, 0, 77), 0), ((3, 12), 5), ((2**31 + 3,), number + 1), ((8, number), 2**32 - 1)
        return tuple(x * b.keep_mask(key, shape, 0.7, x.dtype, "cpu", first) for key, first in streams)

    found, _ = ran(world, both, [x, number], wide)
    for f, mask in zip(found, by_numpy(both, [np.ones_like(x), number]), strict=True):
        np.testing.assert_array_equal(f, x * mask.astype(dtype))


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (2, 1300), (300, 8)])
@DTYPES
def test_what_is_not_finite_is_handed_on(dtype: str, shape: tuple[int, int], world: World) -> None:
    """NaN by maximum, minimum and all reductions; and a sum with an infinity is that, not NaN."""
    rows, columns = shape

    def function(b: Any, x: Any) -> Any:
        xp = b.xp
        few = xp.maximum(x, 0.0), xp.minimum(0.0, x), xp.maximum(0.5, x)
        along = [r(x, axis=1) for r in (xp.sum, xp.max, xp.min)]
        return (*few, xp.sum(x, axis=0), *along, xp.sum(x), xp.max(x), xp.min(x))

    for values in ((np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf), (np.nan, 1.0)):
        x = np.ones(shape, dtype)
        x[rows // 2, : len(values)] = values
        x[0, columns - 1] = values[0]
        found, _ = ran(world, function, [x])
        for f, e in zip(found, by_numpy(function, [x]), strict=True):
            np.testing.assert_array_equal(f, e)


@DTYPES
def test_what_ieee_754_rounds_exactly_has_its_bits(dtype: str, world: World) -> None:
    """Of subnormal numbers too; and NVIDIA's compiler is told nothing else: no contraction, flush or approximation."""
    rng, tiny = np.random.default_rng(0), np.finfo(dtype).smallest_normal
    x = (rng.standard_normal((40, 8)) * np.where(np.arange(8) % 2, 4.0 * tiny, 1.0)).astype(dtype)
    y = rng.standard_normal((40, 8)).astype(dtype)

    def function(b: Any, x: Any, y: Any) -> Any:
        return x * y + x, x / (y * 7.0) - x, b.xp.sqrt(b.xp.abs(x) / 3.0)

    found, _ = ran(world, function, [x, y])
    three, seven = np.array(3.0, dtype), np.array(7.0, dtype)
    for f, e in zip(found, (x * y + x, x / (y * seven) - x, np.sqrt(np.abs(x) / three)), strict=True):
        np.testing.assert_array_equal(f, e)
    assert np.sum(np.abs(found[0]) < tiny) > 10
    (code,) = world.codes
    nvrtc, program = by_nvrtc(code, "compute_90")
    used = set(
        re.findall(
            r"\b((?:add|sub|mul|div|sqrt|fma|mad|rcp|abs|neg)[.\w]*\.f(?:32|64))\b", nvrtc.getPTX(program).decode()
        )
    )
    bits = dtype[-2:]
    assert used <= {f"{op}.f{bits}" for op in ("add.rn", "sub.rn", "mul.rn", "div.rn", "sqrt.rn", "abs", "neg")}, used
    assert {f"div.rn.f{bits}", f"sqrt.rn.f{bits}", f"mul.rn.f{bits}"} <= used


@pytest.mark.parametrize("kind", ["equal", "random", "alternating"])
@pytest.mark.parametrize("shape", [(100_000, 1), (30_000, 3), (2_000, 70), (7, 40_000), (1, 30_000), (4_000, 1_040)])
def test_sums_of_many_are_as_good_as_pairwise(shape: tuple[int, int], kind: str, world: World) -> None:
    """Column-wise, row-wise, full, and column-wise beside row-wise."""
    x = np.full(shape, 0.1, np.float32)  # all of whose roundings go the same way
    if kind != "equal":
        x = (1.0 + np.random.default_rng(0).random(shape)).astype(np.float32)
    if kind == "alternating":
        x[1::2] *= -1.0
    if kind != "equal" and x.size > 10**6:
        pytest.skip("one kind of numbers shows that they are good")

    def apart(b: Any, x: Any) -> Any:
        return (b.xp.sum(x, axis=0),)

    def together(b: Any, x: Any) -> Any:
        along = b.xp.sum(x, axis=1, keepdims=True)
        return along, b.xp.sum(x), b.xp.sum(x + 0.0 * along, axis=0)

    (columns,), _ = ran(world, apart, [x])
    (rows, full, others), _ = ran(world, together, [x])
    for found, axis, count in ((columns, 0, shape[0]), (rows[:, 0], 1, shape[1]), (full, None, x.size)):
        assert error(found, x, axis) <= 4.0 + math.log2(count) / 2.0
    assert error(others, x, 0) <= 4.0 + math.log2(shape[0]) / 2.0


@pytest.mark.parametrize("limit", [0.5, 1e-30])
@pytest.mark.parametrize("worst", [np.nan, np.inf, 3e38, 1e-30])
def test_clipping_of_what_float32_hardly_holds(worst: float, limit: float, world: World) -> None:
    grad = np.array([1e-20, worst, 2.0, worst], "f")
    numpy = bp.backends.Backend(bp.backends.get("numpy").xp)
    with np.errstate(all="ignore"):
        expected = clip_by_global_norm(numpy, grad, limit)
    (found,), _ = ran(world, lambda b, g: (clip_by_global_norm(b, g, limit),), [grad])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "limit"), [(1e-30, 1e-31), (1e-20, 1e-22), (1e-32, 1e-33), (1e-25, 1.0), (1e30, 1e-3)]
)
def test_clipping_of_gradients_whose_squares_are_0_or_infinite(size: float, limit: float, world: World) -> None:
    direction = np.random.default_rng(0).standard_normal(300)
    grad = (size * direction / np.linalg.norm(direction)).astype("f")
    (found,), _ = ran(world, lambda b, g: (clip_by_global_norm(b, g, limit),), [grad])
    np.testing.assert_allclose(found, grad * min(1.0, limit / size), rtol=2e-5, atol=0.0)


def test_batch_statistics_beside_a_very_large_mean(world: World) -> None:
    """Where the mean itself is rounded by a tenth of the deviation, and the variance must not take that for spread."""
    x = (3e6 + np.random.default_rng(0).standard_normal((1000, 3))).astype("float32")
    p = {"scale": np.ones(3, "f"), "shift": np.zeros(3, "f"), "mean": np.zeros(3, "f"), "var": np.ones(3, "f")}
    layer = bp.BatchNorm()

    def function(b: Any, x: Any, *values: Any) -> Any:
        run, named = bp.Run(b, True), dict(zip(p, values, strict=True))
        y, cache = layer.forward(run, named, x)
        return y, layer.update_buffers(run, named, cache)["var"]

    (y, var), _ = ran(world, function, [x, *p.values()])
    exact = x.astype("float64")
    np.testing.assert_allclose(var, 0.9 + 0.1 * exact.var(axis=0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(y, (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0) + 1e-5), atol=1e-4)


@pytest.mark.parametrize("columns", [1, 3, 4, 64, 130])
@pytest.mark.parametrize("index", ["int32", "int64"])
@DTYPES
def test_rows_are_gathered(dtype: str, index: str, columns: int, world: World) -> None:
    """Negative numbers count from the end; a row that is not there is one of NaN."""
    source = np.arange(20 * columns).reshape(20, columns).astype(dtype)
    rows = np.array([3, 0, 19, 3, -1, -20, 20, -21, 10**6] * 40, index)

    def function(b: Any, source: Any, rows: Any) -> Any:
        return b.xp.take(source, rows, axis=0), b.xp.take(source, rows, axis=0) * 2.0

    (found, twice), commands = ran(world, function, [source, rows])
    there = (rows >= -20) & (rows < 20)
    expected = np.where(there[:, None], source[np.where(there, rows, 0)], np.nan)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(twice, 2.0 * expected)
    assert sum(isinstance(c, RowGather) for c in commands) == 1


@pytest.mark.parametrize(("columns", "entries"), [(1, 400), (3, 20), (70, 20)])
@pytest.mark.parametrize("index", ["int32", "int64"])
@DTYPES
def test_rows_are_added_up_by_their_numbers(dtype: str, index: str, columns: int, entries: int, world: World) -> None:
    """In as large a table as need be; negative numbers count from the end, and those of no row are left out."""
    rows = np.random.default_rng(0).standard_normal((360, columns)).astype(dtype)
    numbers = np.array([3, 0, 19, 3, -1, -20, entries, -entries - 1, 10**6] * 40, index)

    def function(b: Any, table: Any, numbers: Any, rows: Any) -> Any:
        run = bp.Run(b, True)
        total = run.scatter_add(table, numbers, rows)
        more = b.add_to(run.scatter_add(table, numbers, rows * 2.0), run.scatter_add(table, numbers, rows))
        return total, total * 2.0, more

    table = np.zeros((entries, columns), dtype)
    (found, twice, more), commands = ran(world, function, [table, numbers, rows])
    expected, there = np.zeros((entries, columns)), (numbers >= -entries) & (numbers < entries)
    np.add.at(expected, numbers[there], rows[there].astype("float64"))
    near([found, twice, more], [expected, 2.0 * expected, 3.0 * expected], dtype)
    assert [c.accumulate for c in commands if isinstance(c, RowScatterAdd)] == [False, False, True]
    again, _ = ran(world, function, [table, numbers, rows])
    np.testing.assert_array_equal(again[0], found)
    compiled(scatter.source(dtype, index))
    compiled(scatter.zero_source(dtype))


def test_a_result_may_go_where_an_address_in_memory_says(world: World) -> None:
    """As the loss of a captured step, whose address is another at every launch."""
    from bpnet.backends.cupy import program

    kernel = FusedKernel("float32", (("full", "float32"),), 0, 0, (), (("full_sum", ("operand", 0), 0, "full"),))
    command = Fused(kernel, 30, 5, (Address(2, 0),), (), (), (), (Address(3, 0),))
    code = emit.source(kernel, emit.Variant(1, frozenset([0])))
    x, out = world.array(np.ones((30, 5), "f")), world.array(np.zeros(3, "f"))
    launch = launch_of(command, 1)
    scratch, tickets = world.cupy.empty(launch.scratch, "f"), world.array(np.zeros(most_tickets(5), "u4"))
    address = world.array(np.array([out.data.ptr + 4]))
    addresses = (x.data.ptr, address.data.ptr, scratch.data.ptr, tickets.data.ptr, 0)
    program.function(code, "fused")(*launch.sizes, (30, 5, *addresses))
    np.testing.assert_array_equal(world.cupy.asnumpy(out), [0.0, 150.0, 0.0])
    compiled(code)


KERNEL = FusedKernel(
    "float32",
    (("full", "float32"), ("full", "float32"), ("per_row", "float32")),
    0,
    0,
    (("multiply", "full", 0, ("operand", 0), ("operand", 2)), ("add", "full", 0, ("value", 0), ("operand", 1))),
    (("store", ("value", 1), 0, "full"), ("store", ("value", 0), 0, "full")),
)


def kernel_of(form: str, sums: int) -> FusedKernel:
    """Such a kernel of a form; row-wise if wished, and with so many column-wise sums."""
    expressions = KERNEL.expressions
    if form == "rows":
        expressions += (("row_sum", "per_row", 0, ("value", 0)), ("divide", "full", 1, ("value", 1), ("value", 2)))
    last = ("value", len(expressions) - 1), int(form == "rows"), "full"
    results = [("store", *last), *[("column_sum", *last)] * sums, ("full_sum", *last)]
    return FusedKernel("float32", KERNEL.operands, 0, 0, expressions, tuple(results))


def check_launch(grid: tuple[int, int], block: tuple[int, int]) -> None:
    """That devices take so many blocks and threads, and that sums can halve the threads down to one."""
    assert 1 <= grid[0] < 2**31
    assert 1 <= grid[1] < 2**16
    assert block[0] * block[1] <= 1024
    assert all(size > 0 and size & (size - 1) == 0 for size in block)


@pytest.mark.parametrize(
    ("rows", "columns", "width"),
    [(1, 10**9, 4), (10**9, 1, 1), (10**8, 3, 1), (262144, 4096, 4), (3, 10, 2), (1, 1, 1), (2**31, 8, 4)],
)
@pytest.mark.parametrize(("form", "sums"), [("map", 0), ("columns", 1), ("columns", 3), ("rows", 0), ("rows", 2)])
def test_launches_stay_within_what_devices_take(form: str, sums: int, rows: int, columns: int, width: int) -> None:
    """And what they need besides within a small share of the data."""
    kernel = kernel_of(form, sums)
    assert form_of(kernel) == form
    made = launch_of(Fused(kernel, rows, columns, (), (), (), (), ()), width)
    check_launch(*made.sizes)
    assert made.sizes[1][0] * made.sizes[1][1] == THREADS
    assert made.scratch <= sums * max(rows * columns // 16, 2**18, 16 * columns) + 2**16 + 2 * rows // SERIAL_ROWS
    assert most_tickets(columns) <= max(2, 1 + columns)
    check_launch(*gather.sizes(rows, columns))
    at = Address(2, 0)
    check_launch(*scatter.sizes(RowScatterAdd("float32", rows, 10**6, columns, at, at, "int32", at, False)))
    check_launch(*scatter.zero_sizes(rows * columns))


@pytest.mark.parametrize(("columns", "width"), [(1, 1), (3, 1), (256, 4), (10**9, 4)])
def test_strips_of_columns_have_a_block_each(columns: int, width: int) -> None:
    """Of 32 bytes of a row, or the whole row, and all of its threads down the rows."""
    expressions = ("column_sum", "per_column", 0, ("value", 1)), ("subtract", "full", 1, ("value", 1), ("value", 2))
    results = (("store", ("value", 3), 1, "full"),)
    kernel = FusedKernel("float32", KERNEL.operands, 0, 0, (*KERNEL.expressions, *expressions), results)
    assert form_of(kernel) == "columns"
    made = launch_of(Fused(kernel, 100, columns, (), (), (), (), ()), width)
    check_launch(*made.sizes)
    (across, down), (threads, _) = made.sizes
    assert (down, made.scratch) == (1, 0)
    assert columns <= across * threads * width < columns + 2 * threads * width
    assert threads * width <= 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sixteen_bytes_are_read_and_written_at_a_time(architecture: str, tmp_path: Path) -> None:
    """By kernels with column-wise sums of four rows before anything is written; and from a cache that does not see what
    is written meanwhile only where nothing is."""
    expected, codes = {}, []
    for form, loads, stores in (("map", 2, 1), ("columns", 8, 4), ("rows", 3, 1)):
        for dtype, disjoint in (("float32", False), ("float32", True), ("float64", True)):
            kernel = kernel_of(form, int(form == "columns"))
            operands = tuple((layout, dtype) for layout, _ in kernel.operands)
            kernel = FusedKernel(dtype, operands, 0, 0, kernel.expressions, kernel.results)
            code, name = emit.source(kernel, emit.Variant(width_of(kernel), disjoint=disjoint)), f"k{len(codes)}"
            codes.append(f"namespace of_{name} {{\n{code.replace(' fused(', f' {name}(')}}}\n")
            load = "LDG.E.128.CONSTANT" if disjoint else "LDG.E.128"
            expected[name] = [load] * loads + ["STG.E.128"] * stores
    found = machine_code("".join(codes), architecture, tmp_path)
    for name, instructions in expected.items():
        assert [i for i in found[name] if re.match(r"(LD|ST)G\.E\.128", i)] == instructions


@pytest.mark.parametrize(("operands", "launches"), [(3, 1), (80, 2)])
@DTYPES
def test_launches_are_given_no_more_than_devices_take(operands: int, launches: int, dtype: str) -> None:
    """4 KB, of all kernels that are one launch."""
    given, sums = (("full", dtype),) * operands, [("copy", "full", 0, ("operand", 0))]
    sums += [("add", "full", 0, ("value", i - 1), ("operand", i)) for i in range(1, operands)]
    sums += [("mask", "full", 0, 3), ("multiply", "full", 0, ("value", operands), ("constant", 0))]
    kernel = FusedKernel(dtype, given, 0, 1, tuple(sums), (("store", ("value", operands + 1), 0, "full"),))
    mask = Mask(2**31, (1, 2, 3))
    commands = [
        Fused(kernel, 1, 40, (Address(2, 0),) * operands, (), (0.1,), (mask,), (Address(3 + i, 0),)) for i in range(8)
    ]
    made = side_by_side(commands)
    assert len(made) == launches
    for command in made:
        assert isinstance(command, Together)
        variant = emit.Variant(1, masks=((False,) * 3,))
        text = emit.source_together((kernel,) * len(command.parts), (variant,) * len(command.parts))
        parameters = re.search(r" fused\((.*?)\) {", text, re.DOTALL)
        assert parameters is not None
        assert 8 * len(parameters[1].split(",")) <= 4096


def test_equal_kernels_share_their_text_whatever_their_sizes() -> None:
    variant = emit.Variant(1)
    assert emit.source(KERNEL, variant) is emit.source(FusedKernel(**vars(KERNEL)), variant)
