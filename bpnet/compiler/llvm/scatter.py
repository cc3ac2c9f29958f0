"""Sums of rows by their numbers as machine code: which rows have a number, as a chain, and then the sum of each."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from bpnet.compiler.commands import SUMMED
from bpnet.compiler.llvm.builder import BYTES, I1, I8, I32, I64, REALS, SIZES, VOID, Kernel, constant, vector_bytes


def write_chains(module: ir.Module, name: str, index_dtype: str) -> None:
    """chains(arguments, tile, bases, scratch): the rows of each number, one pointing to the next.

    `arguments`: rows, numbers, and (memory, bytes into it) of the rows' numbers, of the first row of each number, and
    of the row that follows each; -1 for none.  Numbers below 0 count from the end; others that are none are left out.
    """
    f = Kernel(module, name)
    rows, count = f.argument(), f.argument()
    numbers = f.operand(ir.IntType(8 * SIZES[index_dtype]))
    firsts, following = f.operand(I32), f.operand(I32)
    size = f.mul(count, SIZES["int32"])
    f.intrinsic("memset.p0.i64", VOID, [f.bitcast(firsts, BYTES), ir.Constant(I8, -1), size, ir.Constant(I1, 0)])
    with f.loop(0, rows) as turn:  # the last row first, so that chains are in order
        row = f.sub(f.add(rows, -1), turn.index)
        number = f.load(f.at(numbers, row))
        number = f.sext(number, I64) if SIZES[index_dtype] < 8 else number
        number = f.select(f.compare(number, "<", 0), f.add(number, count), number)
        with f.if_then(f.icmp_unsigned("<", number, count)):
            first = f.at(firsts, number)
            f.store(f.load(first), f.at(following, row))
            f.store(f.trunc(row, I32), first)
    f.ret_void()


def write_scatter_add(module: ir.Module, name: str, dtype: str) -> None:
    """scatter_add(arguments, tile, bases, scratch): for each number the sum of its rows, along the chain of them.

    `arguments`: numbers, numbers of a tile, columns, and (memory, bytes into it) of the rows, of the first row of each
    number, of the row that follows each, and of the result; whether they are added to that.
    """
    f, size = Kernel(module, name), SIZES[dtype]
    count, step, columns = (f.argument() for _ in range(3))
    source, firsts, following, target = (f.operand(kind) for kind in (REALS[dtype], I32, I32, REALS[dtype]))
    accumulates, lanes = f.compare(f.argument(), "!=", 0), vector_bytes() // size
    zero = constant(REALS[dtype], 0.0, lanes)
    first = f.mul(f.tile, step)
    with f.loop(first, f.least(count, f.add(first, step))) as number, f.loop(0, columns, lanes) as column:
        mask = f.first_lanes(f.sub(columns, column.index), lanes)

        def load(row: Any) -> Any:
            return f.load_vector(f.entry(source, row, columns, column.index), lanes, size, mask)

        total = _chain_sum(f, f.sext(f.load(f.at(firsts, number.index)), I64), following, load, zero)
        out = f.entry(target, number.index, columns, column.index)
        before = f.load_vector(out, lanes, size, f.and_(mask, f.splat(accumulates, lanes)))
        f.store_vector(f.fadd(before, total), out, size, mask)
    f.ret_void()


def _chain_sum(f: Kernel, start: Any, following: Any, load: Callable[[Any], Any], zero: Any) -> Any:
    """The sum of `load(row)` along the chain that begins at row `start`: at most SUMMED one after the other."""
    before, (head, body, end) = f.block, f.blocks("head", "body", "end")
    f.branch(head)
    f.position_at_end(head)
    row, places, part, total = phis = [f.phi_from(value, before) for value in (start, f.number(0), zero, zero)]
    f.cbranch(f.compare(row, ">=", 0), body, end)
    f.position_at_end(body)
    more, place = f.fadd(part, load(row)), f.add(places, 1)
    full = f.compare(place, "==", SUMMED)
    after = (
        f.sext(f.load(f.at(following, row)), I64), f.select(full, f.number(0), place), f.select(full, zero, more),
        f.select(full, f.fadd(total, more), total),
    )  # fmt: skip
    for phi, value in zip(phis, after, strict=True):
        phi.add_incoming(value, f.block)
    f.branch(head)
    f.position_at_end(end)
    return f.fadd(total, part)
