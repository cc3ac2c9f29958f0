"""Matrix products as machine code, after K. Goto and R. van de Geijn, "Anatomy of high-performance matrix
multiplication" (2008), in the words of BLIS: blocks of A and panels of B are packed so that the micro-kernel, whose
MR x NR results stay in registers, reads memory in order.

An entry of the result is a sum over blocks of at most KC products, in order, whoever computes it and however the
result is cut into tiles; so it never depends on the number of threads, nor on other rows.
"""

from typing import Any

from llvmlite import ir

from bpnet.compiler.llvm.builder import (
    BYTES,
    I1,
    I64,
    REALS,
    SIZES,
    Function,
    Pointer,
    fuses,
    many_registers,
    suffix,
    vector_bytes,
)

KC = {"float32": 256, "float64": 192}
"""Most products that are added up in registers before they are added to the result."""
PANELS, AHEAD = 4, 8
"""Panels of A that are packed together where its columns lie together, and how many turns ahead memory is prefetched.
"""
UNPACKED_ROWS = 3
"""Rows up to which nothing is packed."""
UNROLLED = 4
"""Turns of the micro-kernel between two prefetches."""

ARGUMENTS = (
    *("rows", "columns", "inner", "tile_rows", "tile_columns", "across"),
    *(f"{matrix}_{what}" for matrix in ("a", "b") for what in ("base", "offset", "row_stride", "column_stride")),
    *("c_base", "c_offset", "c_row_stride", "add"),
)
"""What a product is given, whole numbers: sizes, tiles, and where each matrix lies: which memory, how many bytes into
it, and how many elements its rows and columns are apart; `add`: c <- c + a b, else c <- a b."""


class Blocking:
    """Sizes of blocks: MR x NR results stay in registers, MC x KC of A and KC x NC of B are packed."""

    def __init__(self, dtype: str) -> None:
        self.size = SIZES[dtype]
        self.lanes = vector_bytes() // self.size
        self.kc = KC[dtype]
        self.mr, self.vectors = (8, 3) if many_registers() else (4, 3)
        self.nr = self.vectors * self.lanes
        self.nc = self.nr * 11
        # most rows that are packed at once
        self.mc = 128
        # rows that are packed at a time where there are more
        self.mc_tall = 128 // self.size
        # elements that are prefetched at a time: three lines of the cache
        self.prefetched = 192 // self.size
        # bytes of memory that a thread needs
        self.scratch = self.size * (self.kc * (self.nc + self.mc) + self.mr * self.nr)


STACK = ("tiles", "a_stack_stride", "b_stack_stride")
"""What it is given besides for a stack of products: tiles of each, and how many elements the matrices are apart."""


def write_product(module: ir.Module, name: str, dtype: str, stacked: bool = False) -> None:
    """product(arguments, tile, bases, scratch): one tile of c <- a b, or of one of several such products."""
    _ProductWriter(module, dtype).product(name, stacked)


class _ProductWriter:
    def __init__(self, module: ir.Module, dtype: str) -> None:
        self.module, self.real, self.blocking = module, REALS[dtype], Blocking(dtype)
        self.pointer = Pointer(self.real)
        self.vector = ir.VectorType(self.real, self.blocking.lanes)
        self.micro_kernels = [self.write_micro_kernel(wide + 1) for wide in range(self.blocking.vectors)]
        self.pack_a = self.write_pack_a()
        self.pack_b = self.write_pack_b()
        self.block = self.write_block()
        self.unpacked = self.write_unpacked()

    def function(self, name: str, arguments: list[Any]) -> Function:
        f = Function(self.module, name, arguments)
        for argument in f.arguments:
            if argument.type == self.pointer:
                argument.add_attribute("noalias")
        return f

    def write_micro_kernel(self, wide: int) -> Any:
        """c <- a b, or c + a b, for MR rows and `wide` vectors of columns; a and b are packed.

        Meanwhile so many `prefetches`, `prefetch_stride` elements apart, bring what is packed next into the cache.
        """
        s = self.blocking
        f = self.function(f"micro_kernel{wide}", [I64, *[self.pointer] * 3, I64, I1, self.pointer, I64, I64])
        f.function.attributes.add("noinline")
        b, (kc, left, right, c, row_stride, add, prefetch_from, prefetch_stride, prefetches) = f.b, f.arguments
        zero = ir.Constant(self.vector, [0.0] * s.lanes)

        def turn(sums: list[Any], k: Any) -> list[Any]:
            column, row = f.at(left, f.product(k, s.mr)), f.at(right, f.product(k, wide * s.lanes))
            vectors = [f.load(f.at(row, v * s.lanes), s.lanes, s.lanes * s.size) for v in range(wide)]
            one_by_one = iter(sums)
            made = []
            for i in range(s.mr):
                x = f.splat(b.load(f.at(column, i)), s.lanes)
                made += [self.multiply_add(f, x, v, next(one_by_one)) for v in vectors]
            return made

        for i in range(s.mr):
            self.prefetch(f, f.at(c, f.product(row_stride, i)), 0, wide * s.lanes, to_write=True)
        most = b.and_(kc, f.number(-UNROLLED))
        with f.loop(0, most, UNROLLED, carry=[f.number(0), prefetch_from, *[zero] * (s.mr * wide)]) as k:
            due, place, *sums = k.values  # Bresenham's way to spread `prefetches` evenly
            due = b.add(due, f.product(prefetches, UNROLLED))
            now = b.icmp_signed(">=", due, most)
            with b.if_then(now):
                self.prefetch(f, place, 0, s.prefetched)
            k.next += [b.select(now, b.sub(due, most), due), b.select(now, f.at(place, prefetch_stride), place)]
            for t in range(UNROLLED):
                sums = turn(sums, f.sum(k.index, t))
            k.next += sums
        with f.loop(most, kc, carry=k.values[2:]) as rest:
            rest.next += turn(rest.values, rest.index)
        with b.if_else(add) as (more, new):
            for block, adds in ((more, True), (new, False)):
                with block:
                    for i in range(s.mr):
                        for v in range(wide):
                            place = f.at(f.at(c, f.product(row_stride, i)), v * s.lanes)
                            value = rest.values[i * wide + v]
                            old = f.load(place, s.lanes, s.size) if adds else None
                            f.store(b.fadd(old, value) if adds else value, place, s.size)
        b.ret_void()
        return f.function

    def multiply_add(self, f: Function, x: Any, y: Any, z: Any) -> Any:
        if not fuses():
            return f.b.fadd(f.b.fmul(x, y), z)
        return f.intrinsic(f"fma.{suffix(x.type)}", x.type, [x, y, z])

    def write_pack_a(self) -> Any:
        """to[p][k][i] <- a[p MR + i][k], with zeros where a has no more rows; its rows or its columns lie together."""
        mr, size = self.blocking.mr, self.blocking.size
        f = self.function("pack_a", [I64, I64, self.pointer, I64, I64, self.pointer])
        b, (rows, kc, a, row_stride, column_stride, to) = f.b, f.arguments
        by_rows = b.icmp_signed("==", column_stride, f.number(1))
        by_columns = b.and_(b.icmp_signed("==", row_stride, f.number(1)), b.not_(by_rows))
        together = mr * PANELS
        most = b.select(by_columns, b.and_(rows, f.number(-together)), f.number(0))
        with f.loop(0, most, together) as p, f.loop(0, kc) as k:  # a longer part of a column at a time
            source = f.at(a, b.add(p.index, b.mul(k.index, column_stride)))
            self.prefetch(f, source, f.product(column_stride, AHEAD), together)
            for q in range(PANELS):
                column = f.load(f.at(source, q * mr), mr, size)
                place = b.add(b.mul(f.sum(p.index, q * mr), kc), f.product(k.index, mr))
                f.store(column, f.at(to, place), size)
        with f.loop(most, rows, mr) as p:
            source, target = f.at(a, b.mul(p.index, row_stride)), f.at(to, b.mul(p.index, kc))
            left = b.sub(rows, p.index)
            whole = b.icmp_signed(">=", left, f.number(mr))

            def one(k: Any, i: Any, source: Any = source, target: Any = target) -> None:
                x = b.load(f.at(source, b.add(b.mul(i, row_stride), b.mul(k, column_stride))))
                b.store(x, f.at(target, b.add(f.product(k, mr), i)))

            with b.if_else(b.and_(whole, by_rows)) as (rowwise, other):
                with rowwise:
                    most = b.and_(kc, f.number(-mr))
                    with f.loop(0, most, mr) as k:
                        rows_of_a = [f.at(source, b.add(f.product(row_stride, i), k.index)) for i in range(mr)]
                        some = [f.load(row, mr, size) for row in rows_of_a]
                        for q, column in enumerate(f.transposed(some)):
                            f.store(column, f.at(target, f.product(f.sum(k.index, q), mr)), size)
                    with f.loop(most, kc) as k, f.loop(0, mr) as i:
                        one(k.index, i.index)
                with other, b.if_else(b.and_(whole, by_columns)) as (columnwise, rest):
                    with columnwise, f.loop(0, kc) as k:
                        column = f.load(f.at(source, b.mul(k.index, column_stride)), mr, size)
                        f.store(column, f.at(target, f.product(k.index, mr)), size)
                    with rest, f.loop(0, kc) as k:
                        with f.loop(0, f.least(left, mr)) as i:
                            one(k.index, i.index)
                        with f.loop(f.least(left, mr), mr) as i:
                            zero = ir.Constant(self.real, 0.0)
                            b.store(zero, f.at(target, b.add(f.product(k.index, mr), i.index)))
        b.ret_void()
        return f.function

    def prefetch(self, f: Function, source: Any, distance: Any, elements: int, to_write: bool = False) -> None:
        """Prefetch what is read a few turns from now: it is too far away for the processor to guess."""
        for first in range(0, elements, 64 // self.blocking.size):
            f.prefetch(f.at(source, f.sum(f.number(distance), first)), to_write)

    def write_pack_b(self) -> Any:
        """to[k][j] <- b[k][j] for `columns` columns, with zeros up to `padded`; rows or columns lie together."""
        lanes, size = self.blocking.lanes, self.blocking.size
        f = self.function("pack_b", [I64, I64, I64, self.pointer, I64, I64, self.pointer])
        b, (columns, padded, kc, matrix, row_stride, column_stride, to) = f.b, f.arguments
        by_rows = b.and_(b.icmp_signed("==", column_stride, f.number(1)), b.icmp_signed("==", columns, padded))
        with b.if_then(by_rows), f.loop(0, kc) as k:
            source, target = f.at(matrix, b.mul(k.index, row_stride)), f.at(to, b.mul(k.index, padded))
            self.prefetch(f, source, f.product(row_stride, AHEAD), self.blocking.nr)
            with f.loop(0, columns, lanes) as v:
                f.store(f.load(f.at(source, v.index), lanes, size), f.at(target, v.index), lanes * size)
        with f.loop(b.select(by_rows, padded, f.number(0)), padded, lanes) as v:
            source, target = f.at(matrix, b.mul(v.index, column_stride)), f.at(to, v.index)
            left = b.sub(columns, v.index)
            whole = b.icmp_signed(">=", left, f.number(lanes))

            def one(k: Any, j: Any, source: Any = source, target: Any = target) -> None:
                x = b.load(f.at(source, b.add(b.mul(j, column_stride), b.mul(k, row_stride))))
                b.store(x, f.at(target, b.add(b.mul(k, padded), j)))

            by_columns = b.and_(whole, b.icmp_signed("==", row_stride, f.number(1)))
            with b.if_else(b.icmp_signed("==", column_stride, f.number(1))) as (rowwise, other):
                with rowwise:
                    some = f.first_lanes(left, lanes)
                    with f.loop(0, kc) as k:
                        row = f.load_some(f.at(source, b.mul(k.index, row_stride)), some, size)
                        f.store(row, f.at(target, b.mul(k.index, padded)), lanes * size)
                with other, b.if_else(by_columns) as (columnwise, rest):
                    with columnwise:
                        most = b.and_(kc, f.number(-lanes))
                        with f.loop(0, most, lanes) as k:
                            some = [
                                f.load(f.at(source, b.add(f.product(column_stride, j), k.index)), lanes, size)
                                for j in range(lanes)
                            ]
                            for q, row in enumerate(f.transposed(some)):
                                f.store(row, f.at(target, b.mul(f.sum(k.index, q), padded)), lanes * size)
                        with f.loop(most, kc) as k, f.loop(0, lanes) as j:
                            one(k.index, j.index)
                    with rest, f.loop(0, kc) as k:
                        with f.loop(0, f.least(left, lanes)) as j:
                            one(k.index, j.index)
                        with f.loop(f.least(left, lanes), lanes) as j:
                            b.store(ir.Constant(self.real, 0.0), f.at(target, b.add(b.mul(k.index, padded), j.index)))
        b.ret_void()
        return f.function

    def write_block(self) -> Any:
        """c <- a b, or c + a b, for at most MR rows and NR columns, whose a and b are packed."""
        s = self.blocking
        matrices = [*[self.pointer] * 3, I64, I1, self.pointer]
        f = self.function("block", [I64, I64, I64, *matrices, self.pointer, I64, I64])
        b, (rows, columns, kc, left, right, c, row_stride, add, edge, *prefetch) = f.b, f.arguments
        vectors = b.sdiv(f.sum(columns, s.lanes - 1), f.number(s.lanes))
        whole = b.icmp_signed("==", columns, f.product(vectors, s.lanes))
        whole = b.and_(whole, b.icmp_signed("==", rows, f.number(s.mr)))
        place, stride = b.select(whole, c, edge), b.select(whole, row_stride, f.number(s.nr))
        done = b.append_basic_block("done")
        choice = b.switch(vectors, done)
        for wide, micro_kernel in enumerate(self.micro_kernels, 1):
            case = b.append_basic_block("case")
            choice.add_case(f.number(wide), case)
            b.position_at_end(case)
            b.call(micro_kernel, [kc, left, right, place, stride, b.and_(add, whole), *prefetch])
            b.branch(done)
        b.position_at_end(done)
        with b.if_then(b.not_(whole)), f.loop(0, columns, s.lanes) as v:
            some = f.first_lanes(b.sub(columns, v.index), s.lanes)
            with f.loop(0, rows) as r:
                x = f.load(f.at(edge, b.add(f.product(r.index, s.nr), v.index)), s.lanes, s.size)
                to = f.at(c, b.add(b.mul(r.index, row_stride), v.index))
                with b.if_else(add) as (more, new):
                    with more:
                        f.store_some(b.fadd(f.load_some(to, some, s.size), x), to, some, s.size)
                    with new:
                        f.store_some(x, to, some, s.size)
        b.ret_void()
        return f.function

    def write_unpacked(self) -> Any:
        """c <- a b, or c + a b, for few rows of a, which are not worth a copy of b: its rows lie together."""
        f = self.function("unpacked", [I64, I64, I64, *[self.pointer, I64, I64], *[self.pointer, I64] * 2, I1])
        b, (rows, columns, kc, a, a_row_stride, a_column_stride, right, b_row_stride, c, c_row_stride, add) = (
            f.b,
            f.arguments,
        )
        size = self.blocking.size
        with f.loop(0, rows) as row:
            left, target = f.at(a, b.mul(row.index, a_row_stride)), f.at(c, b.mul(row.index, c_row_stride))
            first: Any = f.number(0)
            for wide, lanes in ((8, self.blocking.lanes), (1, self.blocking.lanes), (1, 1)):
                kind = ir.VectorType(self.real, lanes) if lanes > 1 else self.real
                zero = ir.Constant(kind, [0.0] * lanes if lanes > 1 else 0.0)
                last = b.add(first, b.and_(b.sub(columns, first), f.number(-wide * lanes)))
                with f.loop(first, last, wide * lanes) as column:
                    with f.loop(0, kc, carry=[zero] * wide) as k:
                        source = f.at(right, b.add(b.mul(k.index, b_row_stride), column.index))
                        if wide > 1:
                            self.prefetch(f, source, f.product(b_row_stride, AHEAD), wide * lanes)
                        x = b.load(f.at(left, b.mul(k.index, a_column_stride)))
                        x = f.splat(x, lanes) if lanes > 1 else x
                        for v in range(wide):
                            place = f.at(source, v * lanes)
                            y = f.load(place, lanes, size) if lanes > 1 else b.load(place)
                            k.next.append(self.multiply_add(f, x, y, k.values[v]))
                    for v in range(wide):
                        place = b.bitcast(f.at(target, f.sum(column.index, v * lanes)), Pointer(kind))
                        old = b.load(place, align=size)
                        value = b.select(add, b.fadd(old, k.values[v]), k.values[v])
                        b.store(value, place, align=size)
                first = last
        b.ret_void()
        return f.function

    def prefetching(self, f: Function, calls: Any, kc: Any, strides: list[Any], rows: bool) -> list[Any]:
        """How to prefetch what is packed next, in `calls` micro-kernels: elements between two prefetches, elements
        between those of two calls, prefetches a call, and calls until all has been prefetched.

        `strides`: how far apart its columns (of b) or `rows` (of a) are, and its entries in the direction of KC.
        """
        b, strip, (beside, along) = f.b, f.number(self.blocking.prefetched), strides
        strips = b.sdiv(f.sum(kc, self.blocking.prefetched - 1), strip)
        share = b.sdiv(b.sub(b.add(kc, calls), f.number(1)), calls)
        others = [along, b.mul(share, along), share, calls]
        if rows:  # a call prefetches all of one row
            together = [strip, beside, strips, f.number(self.blocking.mc_tall)]
        else:  # one strip of every column
            together = [beside, strip, f.number(self.blocking.nr), strips]
        along_kc = b.icmp_signed("==", along, f.number(1))
        return [b.select(along_kc, x, y) for x, y in zip(together, others, strict=True)]

    def product(self, name: str, stacked: bool) -> None:
        s = self.blocking
        f = Function(self.module, name, [Pointer(I64), I64, Pointer(BYTES), BYTES], public=True)
        b, (arguments, tile, bases, scratch) = f.b, f.arguments
        names = (*ARGUMENTS, *(STACK if stacked else ()))
        given = {name: b.load(f.at(arguments, i)) for i, name in enumerate(names)}
        number = f.number(0)
        if stacked:
            number, tile = b.sdiv(tile, given["tiles"]), b.srem(tile, given["tiles"])
            given["c_stack_stride"] = b.mul(given["rows"], given["columns"])

        a_strides, b_strides = ([given[f"{m}_row_stride"], given[f"{m}_column_stride"]] for m in ("a", "b"))

        def place(matrix: str) -> Any:
            memory = b.load(f.at(bases, given[f"{matrix}_base"]))
            start = b.bitcast(f.at(memory, given[f"{matrix}_offset"]), self.pointer)
            return f.at(start, b.mul(number, given[f"{matrix}_stack_stride"])) if stacked else start

        first_row = b.mul(b.sdiv(tile, given["across"]), given["tile_rows"])
        first_column = b.mul(b.srem(tile, given["across"]), given["tile_columns"])
        rows = f.least(given["tile_rows"], b.sub(given["rows"], first_row))
        columns = f.least(given["tile_columns"], b.sub(given["columns"], first_column))
        left = f.at(place("a"), b.mul(first_row, a_strides[0]))
        right = f.at(place("b"), b.mul(first_column, b_strides[1]))
        c = f.at(place("c"), b.add(b.mul(first_row, given["c_row_stride"]), first_column))
        packed_b = b.bitcast(scratch, self.pointer)
        packed_a = f.at(packed_b, s.kc * s.nc)
        # where a block of results goes that is larger than what is left of c
        edge = f.at(packed_a, s.kc * s.mc)

        blocks = b.sdiv(f.sum(given["inner"], s.kc - 1), f.number(s.kc))
        most_kc = b.sdiv(b.sub(b.add(given["inner"], blocks), f.number(1)), blocks)
        most_kc = b.and_(f.sum(most_kc, 7), f.number(-8))  # blocks of one size, but for the last
        few = b.icmp_signed("<=", given["rows"], f.number(UNPACKED_ROWS))
        few = b.and_(few, b.icmp_signed("==", b_strides[1], f.number(1)))
        with b.if_then(few), f.loop(0, given["inner"], most_kc) as k:
            kc = f.least(most_kc, b.sub(given["inner"], k.index))
            add = b.or_(b.icmp_signed("!=", given["add"], f.number(0)), b.icmp_signed(">", k.index, f.number(0)))
            some_left = f.at(left, b.mul(k.index, a_strides[1]))
            some_right = f.at(right, b.mul(k.index, b_strides[0]))
            sizes = [rows, columns, kc]
            places = [some_left, *a_strides, some_right, b_strides[0], c, given["c_row_stride"]]
            b.call(self.unpacked, [*sizes, *places, add])

        # few rows are packed at once, and a packed part of b is then used once
        once = b.icmp_signed("<=", rows, f.number(s.mc))
        most = b.select(few, f.number(0), columns)
        most_columns = b.select(once, columns, f.number(s.nc))
        group = b.select(once, f.number(s.mc), f.number(s.mc_tall))
        with f.loop(0, most, most_columns) as jc, f.loop(0, given["inner"], most_kc) as k:
            width = f.least(most_columns, b.sub(columns, jc.index))
            kc = f.least(most_kc, b.sub(given["inner"], k.index))
            panels = b.sdiv(f.sum(width, s.nr - 1), f.number(s.nr))
            add = b.or_(b.icmp_signed("!=", given["add"], f.number(0)), b.icmp_signed(">", k.index, f.number(0)))
            left_k = f.at(left, b.mul(k.index, a_strides[1]))
            right_k = f.at(right, b.mul(k.index, b_strides[0]))
            calls = b.mul(panels, b.sdiv(group, f.number(s.mr)))
            prefetch_a = self.prefetching(f, calls, kc, a_strides, rows=True)
            with f.loop(0, rows, group) as ig:
                height = f.least(group, b.sub(rows, ig.index))
                source = f.at(left_k, b.mul(ig.index, a_strides[0]))
                b.call(self.pack_a, [height, kc, source, *a_strides, packed_a])
                calls = b.sdiv(f.sum(height, s.mr - 1), f.number(s.mr))
                prefetch_b = self.prefetching(f, calls, kc, b_strides[::-1], rows=False)
                first = b.icmp_signed("==", ig.index, f.number(0))
                last = b.icmp_signed(">=", b.add(ig.index, group), rows)
                next_row = b.select(last, f.number(0), b.add(ig.index, group))
                next_k = b.select(last, b.add(k.index, kc), k.index)
                next_left = f.at(left, b.add(b.mul(next_row, a_strides[0]), b.mul(next_k, a_strides[1])))
                any_left = b.icmp_signed("<", next_k, given["inner"])
                with f.loop(0, b.mul(calls, panels), carry=[f.number(0)] * 2) as n:
                    i, j = n.values
                    below, beside = f.sum(i, s.mr), f.sum(j, s.nr)
                    bottom, at_end = b.icmp_signed(">=", below, height), b.icmp_signed(">=", beside, width)
                    top, begin = b.select(bottom, f.number(0), below), b.select(at_end, f.number(0), beside)
                    n.next = [
                        b.select(first, top, b.select(at_end, below, i)),
                        b.select(first, b.select(bottom, beside, j), begin),
                    ]
                    some = f.least(s.nr, b.sub(width, j))
                    vectors = b.sdiv(f.sum(some, s.lanes - 1), f.number(s.lanes))
                    column = b.add(jc.index, j)
                    panel = f.at(packed_b, b.mul(b.select(once, f.number(0), j), kc))
                    with b.if_then(b.and_(first, b.icmp_signed("==", i, f.number(0)))):
                        source = f.at(right_k, b.mul(column, b_strides[1]))
                        sizes = [some, f.product(vectors, s.lanes), kc]
                        b.call(self.pack_b, [*sizes, source, *b_strides, panel])
                    next_right = f.at(right_k, b.mul(f.sum(column, s.nr), b_strides[1]))
                    rights = b.and_(first, b.icmp_signed("<", f.sum(j, s.nr), width))
                    prefetch_from = b.select(rights, next_right, next_left)
                    prefetch_stride, prefetch_call_stride, prefetches, most_calls = (
                        b.select(rights, x, y) for x, y in zip(prefetch_b, prefetch_a, strict=True)
                    )
                    prefetches = b.select(b.or_(rights, any_left), prefetches, f.number(0))
                    row, turn = b.add(ig.index, i), b.sdiv(i, f.number(s.mr))
                    results = f.at(c, b.add(b.mul(row, given["c_row_stride"]), column))
                    turn = b.select(rights, turn, n.index)
                    prefetches = b.select(b.icmp_signed("<", turn, most_calls), prefetches, f.number(0))
                    sizes = [f.least(s.mr, b.sub(height, i)), some, kc]
                    places = [f.at(packed_a, b.mul(i, kc)), panel, results, given["c_row_stride"], add, edge]
                    prefetch_from = f.at(prefetch_from, b.mul(turn, prefetch_call_stride))
                    b.call(self.block, [*sizes, *places, prefetch_from, prefetch_stride, prefetches])
        b.ret_void()
