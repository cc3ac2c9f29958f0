"""Matrix products as machine code, after K. Goto and R. van de Geijn, "Anatomy of high-performance matrix
multiplication" (2008), in the words of BLIS: blocks of A and panels of B are packed so that the micro-kernel, whose
MR x NR results stay in registers, reads memory in order.

An entry of the result is a sum over blocks of at most KC products, in order, whoever computes it and however the
result is cut into tiles; so it never depends on the number of threads, nor on other rows.
"""

import itertools
import math
from typing import Any

from llvmlite import ir

from bpnet.compiler.llvm import builder
from bpnet.compiler.llvm.arithmetic import operate
from bpnet.compiler.llvm.builder import I1, I64, REALS, SIZES, Function, Kernel, Pointer, constant, suffix

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
    *("c_base", "c_offset", "c_row_stride", "add", "bias_base", "bias_offset", "epilogue"),
)
"""What a product is given, whole numbers: sizes, tiles, and where each matrix lies: which memory, how many bytes into
it, and how many elements its rows and columns are apart; `add`: c <- c + a b, else c <- a b; `epilogue`: of EPILOGUES.
"""
EPILOGUES = (None, "BIAS", "RELU_BIAS")
"""What is done to entries of c when they are complete: nothing, a vector is added to each row, and then relu."""


class Blocking:
    """Sizes of blocks: MR x NR results stay in registers, MC x KC of A and KC x NC of B are packed."""

    def __init__(self, dtype: str) -> None:
        self.size = SIZES[dtype]
        self.lanes = builder.vector_bytes() // self.size
        self.kc = KC[dtype]
        self.mr, self.vectors = (8, 3) if builder.many_registers() else (4, 3)
        self.nr = self.vectors * self.lanes
        self.nc = self.nr * 11
        # most rows that are packed at once
        self.mc = 128
        # rows that are packed at a time where there are more
        self.mc_tall = 128 // self.size
        # elements that are prefetched at a time: three lines of the cache
        self.prefetched = 192 // self.size
        # bytes of memory that a thread needs, and where b is packed already
        self.scratch = self.size * (self.kc * (self.nc + self.mc) + self.mr * self.nr)
        self.scratch_packed = self.scratch - self.size * self.kc * self.nc


STACK = ("tiles", "a_stack_stride", "b_stack_stride")
"""What it is given besides for a stack of products: tiles of each, and how many elements the matrices are apart."""


def write_product(module: ir.Module, name: str, dtype: str, stacked: bool = False, packed: bool = False) -> None:
    """product(arguments, tile, bases, scratch): one tile of c <- a b, or of one of several such products.

    With `packed` there is one tile, and b is as `packing.packed` has left it.
    """
    _ProductWriter(module, dtype, packed).product(name, stacked)


class _ProductWriter:
    def __init__(self, module: ir.Module, dtype: str, packed: bool) -> None:
        self.module, self.real, self.blocking, self.packed = module, REALS[dtype], Blocking(dtype), packed
        self.pointer = Pointer(self.real)
        # whether there is an epilogue, a vector that is added to every row, and what is taken at least
        self.epilogue = I1, self.pointer, self.real
        self.micro_kernels = [self.write_micro_kernel(wide + 1) for wide in range(self.blocking.vectors)]
        self.pack_a = self.write_pack_a()
        self.pack_b = None if packed else self.write_pack_b()
        self.block = self.write_block()
        self.unpacked = self.write_unpacked()

    def function(self, name: str, arguments: list[Any]) -> Function:
        f = Function(self.module, name, arguments)
        for argument in f.arguments:
            if argument.type == self.pointer:
                argument.add_attribute("noalias")
        return f

    def write_micro_kernel(self, wide: int) -> Any:
        """c <- a b, or c + a b, for MR rows and `wide` vectors of columns, and the epilogue; a and b are packed.

        Meanwhile so many `prefetches`, `prefetch_stride` elements apart, bring what is packed next into the cache.
        """
        s = self.blocking
        matrices, prefetch = [*[self.pointer] * 3, I64, I1], [self.pointer, I64, I64]
        f = self.function(f"micro_kernel{wide}", [I64, *matrices, *self.epilogue, *prefetch])
        f.function.attributes.add("noinline")
        kc, left, right, c, row_stride, add, *epilogue, prefetch_from, prefetch_stride, prefetches = f.arguments
        zero = constant(self.real, 0.0, s.lanes)

        def turn(sums: list[Any], k: Any) -> list[Any]:
            column, row = f.at(left, f.mul(k, s.mr)), f.at(right, f.mul(k, wide * s.lanes))
            vectors = [f.load_vector(f.at(row, v * s.lanes), s.lanes, s.lanes * s.size) for v in range(wide)]
            following, made = iter(sums), []
            for i in range(s.mr):
                x = f.splat(f.load(f.at(column, i)), s.lanes)
                made += [self.multiply_add(f, x, v, next(following)) for v in vectors]
            return made

        for i in range(s.mr):
            self.prefetch(f, f.at(c, f.mul(row_stride, i)), 0, wide * s.lanes, to_write=True)
        most = f.round_down(kc, UNROLLED)
        with f.loop(0, most, UNROLLED, carry=[0, prefetch_from, *[zero] * (s.mr * wide)]) as k:
            due, pointer, *sums = k.values  # Bresenham's way to spread `prefetches` evenly
            due = f.add(due, f.mul(prefetches, UNROLLED))
            now = f.compare(due, ">=", most)
            with f.if_then(now):
                self.prefetch(f, pointer, 0, s.prefetched)
            k.next += [f.select(now, f.sub(due, most), due), f.select(now, f.at(pointer, prefetch_stride), pointer)]
            for t in range(UNROLLED):
                sums = turn(sums, f.add(k.index, t))
            k.next += sums
        with f.loop(most, kc, carry=k.values[2:]) as rest:
            rest.next += turn(rest.values, rest.index)
        with f.if_else(add) as (more, new):
            for block, adds in ((more, True), (new, False)):
                with block:
                    for (i, v), value in zip(itertools.product(range(s.mr), range(wide)), rest.values, strict=True):
                        pointer = f.at(f.at(c, f.mul(row_stride, i)), v * s.lanes)
                        value = f.fadd(f.load_vector(pointer, s.lanes, s.size), value) if adds else value
                        f.store_vector(value, pointer, s.size)
        with f.if_then(epilogue[0]), f.loop(0, s.mr) as row:
            for v in range(wide):
                self.finish(f, f.entry(c, row.index, row_stride, v * s.lanes), v * s.lanes, s.lanes, epilogue)
        f.ret_void()
        return f.function

    def finish(self, f: Function, pointer: Any, column: Any, lanes: int, epilogue: list[Any], mask: Any = None) -> None:
        """z <- max(z + bias, least) for a vector of c, which begins at `column` of the bias."""
        (_, bias, least), size = epilogue, self.blocking.size
        z, shift = (f.load_vector(at, lanes, size, mask) for at in (pointer, f.at(bias, column)))
        f.store_vector(operate(f, "maximum", [f.fadd(z, shift), f.splat(least, lanes)], self.real), pointer, size, mask)

    def multiply_add(self, f: Function, x: Any, y: Any, z: Any) -> Any:
        if not builder.fuses():
            return f.fadd(f.fmul(x, y), z)
        return f.intrinsic(f"fma.{suffix(x.type)}", x.type, [x, y, z])

    def write_pack_a(self) -> Any:
        """to[p][k][i] <- a[p MR + i][k], with zeros where a has no more rows; its rows or its columns lie together."""
        mr, size = self.blocking.mr, self.blocking.size
        f = self.function("pack_a", [I64, I64, self.pointer, I64, I64, self.pointer])
        rows, kc, a, row_stride, column_stride, to = f.arguments
        by_rows = f.compare(column_stride, "==", 1)
        by_columns = f.and_(f.compare(row_stride, "==", 1), f.not_(by_rows))
        together = mr * PANELS
        most = f.select(by_columns, f.round_down(rows, together), 0)
        with f.loop(0, most, together) as p, f.loop(0, kc) as k:  # a longer part of a column at a time
            source = f.entry(a, k.index, column_stride, p.index)
            self.prefetch(f, source, f.mul(column_stride, AHEAD), together)
            for q in range(PANELS):
                column = f.load_vector(f.at(source, q * mr), mr, size)
                f.store_vector(column, f.entry(to, f.add(p.index, q * mr), kc, k.index, mr), size)
        with f.loop(most, rows, mr) as p:
            left = f.sub(rows, p.index)
            whole = f.compare(left, ">=", mr)
            cases = [(f.and_(whole, by_rows), "transposed"), (f.and_(whole, by_columns), "vectors")]
            source, target = f.at(a, f.mul(p.index, row_stride)), f.at(to, f.mul(p.index, kc))
            self.pack_panel(f, cases, (left, kc), source, (row_stride, column_stride), target, (mr, mr, size))
        f.ret_void()
        return f.function

    def write_pack_b(self) -> Any:
        """to[k][j] <- b[k][j] for `columns` columns, with zeros up to `padded`; rows or columns lie together."""
        lanes, size = self.blocking.lanes, self.blocking.size
        f = self.function("pack_b", [I64, I64, I64, self.pointer, I64, I64, self.pointer])
        columns, padded, kc, matrix, row_stride, column_stride, to = f.arguments
        rows_lie_together = f.compare(column_stride, "==", 1)
        by_rows = f.and_(rows_lie_together, f.compare(columns, "==", padded))
        with f.if_then(by_rows), f.loop(0, kc) as k:
            source, target = f.at(matrix, f.mul(k.index, row_stride)), f.at(to, f.mul(k.index, padded))
            self.prefetch(f, source, f.mul(row_stride, AHEAD), self.blocking.nr)
            with f.loop(0, columns, lanes) as v:
                f.store_vector(f.load_vector(f.at(source, v.index), lanes, size), f.at(target, v.index), lanes * size)
        with f.loop(f.select(by_rows, padded, 0), padded, lanes) as v:
            left = f.sub(columns, v.index)
            by_columns = f.and_(f.compare(left, ">=", lanes), f.compare(row_stride, "==", 1))
            cases = [(rows_lie_together, "vectors of what is left"), (by_columns, "transposed")]
            source, target = f.at(matrix, f.mul(v.index, column_stride)), f.at(to, v.index)
            strides, pitch = (column_stride, row_stride), (lanes, padded, lanes * size)
            self.pack_panel(f, cases, (left, kc), source, strides, target, pitch)
        f.ret_void()
        return f.function

    def pack_panel(
        self, f: Function, cases: list[tuple[Any, str]], sizes: Any, matrix: Any, strides: Any, to: Any, panel: Any
    ) -> None:
        """to[k][i] <- matrix[k][i] for i up to the panel's width, with zeros from the first of `sizes` on.

        `strides`: those of i and of k; `panel`: its width, and elements from row to row, aligned to so many bytes.
        `cases`: two conditions, each with how it is then done; where none holds, one entry after the other.
        """
        (left, kc), (of_i, of_k), (width, pitch, align), size = sizes, strides, panel, self.blocking.size

        def one(k: Any, i: Any) -> None:
            f.store(f.load(f.entry(matrix, i, of_i, k, of_k)), f.entry(to, k, pitch, i))

        def pack(how: str) -> None:
            if how == "transposed":
                most = f.round_down(kc, width)
                with f.loop(0, most, width) as k:
                    vectors = [f.load_vector(f.entry(matrix, i, of_i, k.index), width, size) for i in range(width)]
                    for q, vector in enumerate(f.transposed(vectors)):
                        f.store_vector(vector, f.at(to, f.mul(f.add(k.index, q), pitch)), align)
                with f.loop(most, kc) as k, f.loop(0, width) as i:
                    one(k.index, i.index)
            else:
                mask = None if how == "vectors" else f.first_lanes(left, width)
                with f.loop(0, kc) as k:
                    vector = f.load_vector(f.at(matrix, f.mul(k.index, of_k)), width, size, mask)
                    f.store_vector(vector, f.at(to, f.mul(k.index, pitch)), align)

        (first, first_way), (second, second_way) = cases
        with f.if_else(first) as (in_first, others):
            with in_first:
                pack(first_way)
            with others, f.if_else(second) as (in_second, rest):
                with in_second:
                    pack(second_way)
                with rest, f.loop(0, kc) as k:
                    some = f.least(left, width)
                    with f.loop(0, some) as i:
                        one(k.index, i.index)
                    with f.loop(some, width) as i:
                        f.store(constant(self.real, 0.0), f.entry(to, k.index, pitch, i.index))

    def prefetch(self, f: Function, source: Any, distance: Any, elements: int, to_write: bool = False) -> None:
        """Prefetch what is read a few turns from now: it is too far away for the processor to guess."""
        for first in range(0, elements, 64 // self.blocking.size):
            f.prefetch(f.at(source, f.add(distance, first)), to_write)

    def write_block(self) -> Any:
        """c <- a b, or c + a b, and the epilogue, for at most MR rows and NR columns, whose a and b are packed."""
        s = self.blocking
        matrices = [*[self.pointer] * 3, I64, I1, *self.epilogue, self.pointer]
        f = self.function("block", [I64, I64, I64, *matrices, self.pointer, I64, I64])
        rows, columns, kc, left, right, c, row_stride, add, finishes, bias, least, edge, *prefetch = f.arguments
        epilogue = [finishes, bias, least]
        vectors = f.ceil_div(columns, s.lanes)
        whole = f.and_(f.compare(columns, "==", f.mul(vectors, s.lanes)), f.compare(rows, "==", s.mr))
        pointer, stride = f.select(whole, c, edge), f.select(whole, row_stride, s.nr)
        (done,) = f.blocks("done")
        choice = f.switch(vectors, done)
        for wide, micro_kernel in enumerate(self.micro_kernels, 1):
            (case,) = f.blocks("case")
            choice.add_case(f.number(wide), case)
            f.position_at_end(case)
            in_place = f.and_(add, whole), f.and_(finishes, whole), bias, least
            f.call(micro_kernel, [kc, left, right, pointer, stride, *in_place, *prefetch])
            f.branch(done)
        f.position_at_end(done)
        with f.if_then(f.not_(whole)), f.loop(0, columns, s.lanes) as v:
            some = f.first_lanes(f.sub(columns, v.index), s.lanes)
            with f.loop(0, rows) as r:
                x = f.load_vector(f.entry(edge, r.index, s.nr, v.index), s.lanes, s.size)
                to = f.entry(c, r.index, row_stride, v.index)
                with f.if_else(add) as (more, new):
                    with more:
                        f.store_vector(f.fadd(f.load_vector(to, s.lanes, s.size, some), x), to, s.size, some)
                    with new:
                        f.store_vector(x, to, s.size, some)
                with f.if_then(finishes):
                    self.finish(f, to, v.index, s.lanes, epilogue, some)
        f.ret_void()
        return f.function

    def write_unpacked(self) -> Any:
        """c <- a b, or c + a b, and the epilogue, for few rows of a, too few to pack b, whose rows lie together."""
        matrices = [self.pointer, I64, I64, self.pointer, I64, self.pointer, I64]
        f, size = self.function("unpacked", [I64, I64, I64, *matrices, I1, *self.epilogue]), self.blocking.size
        rows, columns, kc, a, a_row_stride, a_column_stride, right, b_row_stride, c, c_row_stride, *last = f.arguments
        add, *epilogue = last
        with f.loop(0, rows) as row:
            left, target = f.at(a, f.mul(row.index, a_row_stride)), f.at(c, f.mul(row.index, c_row_stride))
            first: Any = 0
            widest = self.blocking.vectors if self.packed else 8
            for wide, lanes in ((widest, self.blocking.lanes), (1, self.blocking.lanes), (1, 1)):
                last = f.add(first, f.mul(f.sdiv(f.sub(columns, first), wide * lanes), wide * lanes))
                with f.loop(first, last, wide * lanes) as column:
                    with f.loop(0, kc, carry=[constant(self.real, 0.0, lanes)] * wide) as k:
                        source = f.entry(right, k.index, b_row_stride, column.index)
                        if wide > 1:
                            self.prefetch(f, source, f.mul(b_row_stride, AHEAD), wide * lanes)
                        x = f.splat(f.load(f.at(left, f.mul(k.index, a_column_stride))), lanes)
                        for v in range(wide):
                            y = f.load_vector(f.at(source, v * lanes), lanes, size)
                            k.next.append(self.multiply_add(f, x, y, k.values[v]))
                    for v in range(wide):
                        pointer = f.at(target, f.add(column.index, v * lanes))
                        old = f.load_vector(pointer, lanes, size)
                        f.store_vector(f.select(add, f.fadd(old, k.values[v]), k.values[v]), pointer, size)
                        with f.if_then(epilogue[0]):
                            self.finish(f, pointer, f.add(column.index, v * lanes), lanes, epilogue)
                first = last
        f.ret_void()
        return f.function

    def prefetching(self, f: Function, calls: Any, kc: Any, strides: list[Any], rows: bool) -> list[Any]:
        """How to prefetch what is packed next, in `calls` micro-kernels: elements between two prefetches, elements
        between those of two calls, prefetches a call, and calls until all has been prefetched.

        `strides`: how far apart its columns (of b) or `rows` (of a) are, and its entries in the direction of KC.
        """
        strip, (beside, along) = self.blocking.prefetched, strides
        strips, share = f.ceil_div(kc, strip), f.ceil_div(kc, calls)
        others = [along, f.mul(share, along), share, calls]
        of_row, of_columns = [strip, beside, strips, self.blocking.mc_tall], [beside, strip, self.blocking.nr, strips]
        together = of_row if rows else of_columns  # a call prefetches all of one row, or one strip of every column
        along_kc = f.compare(along, "==", 1)
        return [f.select(along_kc, x, y) for x, y in zip(together, others, strict=True)]

    def product(self, name: str, stacked: bool) -> None:
        s = self.blocking
        f = Kernel(self.module, name)
        tile = f.tile
        given = {name: f.argument() for name in (*ARGUMENTS, *(STACK if stacked else ()))}
        if stacked:
            number, tile = f.sdiv(tile, given["tiles"]), f.srem(tile, given["tiles"])
            given["c_stack_stride"] = f.mul(given["rows"], given["columns"])
        a_strides, b_strides = ([given[f"{m}_row_stride"], given[f"{m}_column_stride"]] for m in ("a", "b"))

        def pointer(matrix: str) -> Any:
            start = f.pointer(given[f"{matrix}_base"], given[f"{matrix}_offset"], self.real)
            return f.at(start, f.mul(number, given[f"{matrix}_stack_stride"])) if stacked else start

        first_row = f.mul(f.sdiv(tile, given["across"]), given["tile_rows"])
        first_column = f.mul(f.srem(tile, given["across"]), given["tile_columns"])
        rows = f.least(given["tile_rows"], f.sub(given["rows"], first_row))
        columns = f.least(given["tile_columns"], f.sub(given["columns"], first_column))
        left = f.at(pointer("a"), f.mul(first_row, a_strides[0]))
        right = f.at(pointer("b"), f.mul(first_column, b_strides[1]))
        c = f.entry(pointer("c"), first_row, given["c_row_stride"], first_column)
        packed_b = f.bitcast(f.scratch, self.pointer)
        packed_a = packed_b if self.packed else f.at(packed_b, s.kc * s.nc)
        # where a block of results goes that is larger than what is left of c
        edge = f.at(packed_a, s.kc * s.mc)

        most_kc = f.ceil_div(given["inner"], f.ceil_div(given["inner"], s.kc))
        most_kc = f.round_down(f.add(most_kc, 7), 8)  # blocks of one size, but for the last

        bias = f.at(f.pointer(given["bias_base"], given["bias_offset"], self.real), first_column)
        relu, any_epilogue = f.compare(given["epilogue"], "==", 2), f.compare(given["epilogue"], "!=", 0)
        least = f.select(relu, constant(self.real, 0.0), constant(self.real, -math.inf))

        def block(k: Any) -> tuple[Any, ...]:
            """Of those from k on: how many, whether they are added to c, whether they are the last and an epilogue
            follows, and where their parts of a and b lie."""
            add = f.or_(f.compare(given["add"], "!=", 0), f.compare(k, ">", 0))
            kc = f.least(most_kc, f.sub(given["inner"], k))
            finishes = f.and_(any_epilogue, f.compare(f.add(k, kc), ">=", given["inner"]))
            return kc, add, finishes, f.at(left, f.mul(k, a_strides[1])), f.at(right, f.mul(k, b_strides[0]))

        def padded(count: Any) -> Any:
            return f.mul(f.ceil_div(count, s.lanes), s.lanes)

        def panel_of(k: Any, kc: Any, column: Any) -> Any:
            """Where that of b lies that begins in a column, where b is packed."""
            return f.at(right, f.add(f.mul(k, padded(columns)), f.mul(column, kc)))

        few = f.compare(given["rows"], "<=", UNPACKED_ROWS)
        few = few if self.packed else f.and_(few, f.compare(b_strides[1], "==", 1))
        with f.if_then(few), f.loop(0, given["inner"], most_kc) as k:
            kc, add, finishes, left_k, right_k = block(k.index)
            with f.loop(0, columns, s.nr if self.packed else columns) as j:
                some = f.least(s.nr, f.sub(columns, j.index)) if self.packed else columns
                b = (panel_of(k.index, kc, j.index), padded(some)) if self.packed else (right_k, b_strides[0])
                operands = [left_k, *a_strides, *b, f.at(c, j.index), given["c_row_stride"]]
                f.call(self.unpacked, [rows, some, kc, *operands, add, finishes, f.at(bias, j.index), least])

        # few rows are packed at once, and a packed part of b is then used once
        once = f.compare(rows, "<=", s.mc)
        most = f.select(few, 0, columns)
        most_columns = f.select(once, columns, s.nc)
        group = f.select(once, s.mc, s.mc_tall)
        with f.loop(0, most, most_columns) as jc, f.loop(0, given["inner"], most_kc) as k:
            width = f.least(most_columns, f.sub(columns, jc.index))
            kc, add, finishes, left_k, right_k = block(k.index)
            panels = f.ceil_div(width, s.nr)
            calls = f.mul(panels, f.sdiv(group, s.mr))
            prefetch_a = self.prefetching(f, calls, kc, a_strides, rows=True)
            with f.loop(0, rows, group) as ig:
                height = f.least(group, f.sub(rows, ig.index))
                source = f.at(left_k, f.mul(ig.index, a_strides[0]))
                f.call(self.pack_a, [height, kc, source, *a_strides, packed_a])
                calls = f.ceil_div(height, s.mr)
                prefetch_b = self.prefetching(f, calls, kc, b_strides[::-1], rows=False)
                first, last = f.compare(ig.index, "==", 0), f.compare(f.add(ig.index, group), ">=", rows)
                next_row = f.select(last, 0, f.add(ig.index, group))
                next_k = f.select(last, f.add(k.index, kc), k.index)
                next_left = f.entry(left, next_row, a_strides[0], next_k, a_strides[1])
                any_left = f.compare(next_k, "<", given["inner"])
                with f.loop(0, f.mul(calls, panels), carry=[0, 0]) as n:
                    i, j = n.values
                    below, beside = f.add(i, s.mr), f.add(j, s.nr)
                    bottom, at_end = f.compare(below, ">=", height), f.compare(beside, ">=", width)
                    top, begin = f.select(bottom, 0, below), f.select(at_end, 0, beside)
                    n.next += [f.select(first, top, f.select(at_end, below, i))]
                    n.next += [f.select(first, f.select(bottom, beside, j), begin)]
                    some = f.least(s.nr, f.sub(width, j))
                    column = f.add(jc.index, j)
                    panel = (
                        panel_of(k.index, kc, column)
                        if self.packed
                        else f.at(packed_b, f.mul(f.select(once, 0, j), kc))
                    )
                    if not self.packed:
                        with f.if_then(f.and_(first, f.compare(i, "==", 0))):
                            source = f.at(right_k, f.mul(column, b_strides[1]))
                            f.call(self.pack_b, [some, padded(some), kc, source, *b_strides, panel])
                    next_right = f.at(right_k, f.mul(f.add(column, s.nr), b_strides[1]))
                    rights = I1(0) if self.packed else f.and_(first, f.compare(beside, "<", width))
                    prefetch_from = f.select(rights, next_right, next_left)
                    prefetch_stride, prefetch_call_stride, prefetches, most_calls = (
                        f.select(rights, x, y) for x, y in zip(prefetch_b, prefetch_a, strict=True)
                    )
                    prefetches = f.select(f.or_(rights, any_left), prefetches, 0)
                    row, turn = f.add(ig.index, i), f.sdiv(i, s.mr)
                    results = f.entry(c, row, given["c_row_stride"], column)
                    turn = f.select(rights, turn, n.index)
                    prefetches = f.select(f.compare(turn, "<", most_calls), prefetches, 0)
                    sizes = [f.least(s.mr, f.sub(height, i)), some, kc]
                    operands = [f.at(packed_a, f.mul(i, kc)), panel, results, given["c_row_stride"], add]
                    operands += [finishes, f.at(bias, column), least, edge]
                    prefetch_from = f.at(prefetch_from, f.mul(turn, prefetch_call_stride))
                    f.call(self.block, [*sizes, *operands, prefetch_from, prefetch_stride, prefetches])
        f.ret_void()
