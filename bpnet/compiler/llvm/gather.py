"""Gathers of rows and strided copies as machine code."""

from typing import Any

from llvmlite import ir

from bpnet.compiler.llvm.builder import I1, I8, I64, SIZES, VOID, Kernel

ROWS_AHEAD, LINES_AHEAD = 16, 8
"""How many rows ahead, and how many cache lines of a row, are prefetched, since rows lie anywhere."""


def write_gather(module: ir.Module, name: str, dtype: str) -> None:
    """gather(arguments, tile, bases, scratch): rows of an array by their numbers, which are of type `dtype`.

    `arguments`: rows, rows of a tile, bytes of a row, rows of the array, and (memory, bytes into it) of the array, the
    numbers and the result.  Numbers below 0 count from the end.  Those that name no row give one of ones in every bit,
    which is no number, or a label of no class: there is nobody to raise an error, and no value would be right.
    """
    f = Kernel(module, name)
    rows, step, size, count = (f.argument() for _ in range(4))
    data, numbers, target = (f.operand(kind) for kind in (I8, ir.IntType(8 * SIZES[dtype]), I8))

    def pointer(row: Any) -> tuple[Any, Any]:
        """Where a row lies, and whether there is one."""
        number = f.load(f.at(numbers, row))
        number = f.sext(number, I64) if SIZES[dtype] < 8 else number
        number = f.select(f.compare(number, "<", 0), f.add(number, count), number)
        return f.at(data, f.mul(number, size)), f.icmp_unsigned("<", number, count)

    first = f.mul(f.tile, step)
    last = f.least(rows, f.add(first, step))
    with f.loop(first, last) as row:
        ahead, _ = pointer(f.least(f.add(row.index, ROWS_AHEAD), f.add(last, -1)))
        with f.loop(0, f.least(size, LINES_AHEAD * 64), 64) as line:
            f.prefetch(f.at(ahead, line.index))
        to = f.at(target, f.mul(row.index, size))
        start, there = pointer(row.index)
        with f.if_else(there) as (copied, filled):
            with copied:
                f.intrinsic("memcpy.p0.p0.i64", VOID, [to, start, size, ir.Constant(I1, 0)])
            with filled:
                f.intrinsic("memset.p0.i64", VOID, [to, ir.Constant(I8, -1), size, ir.Constant(I1, 0)])
    f.ret_void()


def write_strided(module: ir.Module, name: str, itemsize: int) -> None:
    """strided(arguments, tile, bases, scratch): entries of an array that lie so many elements apart along four axes.

    `arguments`: entries along each axis, elements between them, rows (along the last axis) of a tile, and (memory,
    bytes into it) of the array and the result.
    """
    f = Kernel(module, name)
    (*sizes, along), (*strides, apart) = ([f.argument() for _ in range(4)] for _ in range(2))
    step = f.argument()
    source, target = (f.operand(ir.IntType(8 * itemsize)) for _ in range(2))
    rows = f.mul(f.mul(sizes[0], sizes[1]), sizes[2])
    first = f.mul(f.tile, step)
    left, places = first, []  # along the three axes, the last first
    for size in sizes[::-1]:
        places.append(f.srem(left, size))
        left = f.sdiv(left, size)
    with f.loop(first, f.least(rows, f.add(first, step)), carry=places) as row:
        start = f.at(source, 0)
        for place, stride in zip(row.values, strides[::-1], strict=True):
            start = f.at(start, f.mul(place, stride))
        to = f.at(target, f.mul(row.index, along))
        with f.if_else(f.compare(apart, "==", 1)) as (together, scattered):
            with together, f.loop(0, along) as entry:
                f.store(f.load(f.at(start, entry.index)), f.at(to, entry.index))
            with scattered, f.loop(0, along) as entry:
                f.store(f.load(f.at(start, f.mul(entry.index, apart))), f.at(to, entry.index))
        one: Any = 1  # to go on by along the last axis, and where that is at its end along the one before; not divided
        for place, size in zip(row.values, sizes[::-1], strict=True):
            there = f.add(place, one)
            ends = f.compare(there, "==", size)
            row.next.append(f.select(ends, 0, there))
            one = f.select(ends, 1, 0)
    f.ret_void()
