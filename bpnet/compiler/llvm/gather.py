"""Gathers of rows and strided copies as machine code."""

from typing import Any

from llvmlite import ir

from bpnet.compiler.llvm.builder import BYTES, I8, I64, SIZES, VOID, Function, Pointer

ROWS_AHEAD, LINES_AHEAD = 16, 8
"""How many rows ahead, and how many cache lines of a row, are prefetched, since rows lie anywhere."""


def write_gather(module: ir.Module, name: str, dtype: str) -> None:
    """gather(arguments, tile, bases, scratch): rows of an array by their numbers, which are of type `dtype`.

    `arguments`: rows, rows of a tile, bytes of a row, rows of the array, and (memory, bytes into it) of the array, the
    numbers and the result.  Numbers below 0 count from the end.  Those that name no row give one of ones in every bit,
    which is no number, or a label of no class: there is nobody to raise an error, and no value would be right.
    """
    f = Function(module, name, [Pointer(I64), I64, Pointer(BYTES), BYTES], public=True)
    b, (arguments, tile, bases, _) = f.b, f.arguments
    rows, step, size, count, *where = (b.load(f.at(arguments, i)) for i in range(10))
    data, index, target = (f.at(b.load(f.at(bases, where[2 * i])), where[2 * i + 1]) for i in range(3))
    numbers = b.bitcast(index, Pointer(ir.IntType(8 * SIZES[dtype])))

    def place(row: Any) -> tuple[Any, Any]:
        """Where a row lies, and whether there is one."""
        number = b.load(f.at(numbers, row))
        number = b.sext(number, I64) if SIZES[dtype] < 8 else number
        number = b.select(b.icmp_signed("<", number, f.number(0)), b.add(number, count), number)
        return f.at(data, b.mul(number, size)), b.icmp_unsigned("<", number, count)

    first = b.mul(tile, step)
    last = f.least(rows, b.add(first, step))
    with f.loop(first, last) as row:
        ahead, _ = place(f.least(f.sum(row.index, ROWS_AHEAD), b.sub(last, f.number(1))))
        with f.loop(0, f.least(size, LINES_AHEAD * 64), 64) as line:
            f.prefetch(f.at(ahead, line.index))
        to = f.at(target, b.mul(row.index, size))
        start, there = place(row.index)
        plain = ir.Constant(ir.IntType(1), 0)
        with b.if_else(there) as (copied, filled):
            with copied:
                f.intrinsic("memcpy.p0.p0.i64", VOID, [to, start, size, plain])
            with filled:
                f.intrinsic("memset.p0.i64", VOID, [to, ir.Constant(I8, -1), size, plain])
    b.ret_void()


def write_strided(module: ir.Module, name: str, itemsize: int) -> None:
    """strided(arguments, tile, bases, scratch): entries of an array that lie so many elements apart along four axes.

    `arguments`: entries along each axis, elements between them, rows (along the last axis) of a tile, and (memory,
    bytes into it) of the array and the result.
    """
    f = Function(module, name, [Pointer(I64), I64, Pointer(BYTES), BYTES], public=True)
    b, (arguments, tile, bases, _) = f.b, f.arguments
    given = [b.load(f.at(arguments, i)) for i in range(13)]
    (*sizes, along), (*strides, apart), step = given[:4], given[4:8], given[8]
    kind = Pointer(ir.IntType(8 * itemsize))
    source, target = (b.bitcast(f.at(b.load(f.at(bases, given[i])), given[i + 1]), kind) for i in (9, 11))
    rows = b.mul(b.mul(sizes[0], sizes[1]), sizes[2])
    first = b.mul(tile, step)
    with f.loop(first, f.least(rows, b.add(first, step))) as row:
        left, start = row.index, f.number(0)
        for size, stride in zip(sizes[::-1], strides[::-1], strict=True):
            start = b.add(start, b.mul(b.srem(left, size), stride))
            left = b.sdiv(left, size)
        start, to = f.at(source, start), f.at(target, b.mul(row.index, along))
        with f.loop(0, along) as entry:
            b.store(b.load(f.at(start, b.mul(entry.index, apart))), f.at(to, entry.index))
    b.ret_void()
