"""Matrix products as machine code, after K. Goto and R. van de Geijn, "Anatomy of high-performance matrix
multiplication" (2008): pieces of both matrices are copied so that the innermost loop, whose results stay in registers,
reads memory in order.

An entry of the result is a sum over blocks of at most `depth` products, in order, whoever computes it and however the
result is cut into tiles; so it never depends on the number of threads, nor on other rows.
"""

from typing import Any

from llvmlite import ir

from bpnet.backends.native.code import (
    BYTES,
    I1,
    I64,
    REALS,
    SIZES,
    Function,
    fuses,
    many_registers,
    suffix,
    vector_bytes,
)

DEPTH = {"float32": 256, "float64": 192}
"""Most products that are added up in registers before they are added to the result."""
PANELS, AHEAD = 4, 8
"""Blocks of rows that are copied at a time, and how many turns ahead memory is asked for."""
FEW = 3
"""Rows up to which nothing is copied."""
TURNS = 4
"""Columns of the left matrix that are multiplied between two requests for memory."""

ARGUMENTS = (
    *("rows", "columns", "inner", "rows_a_tile", "columns_a_tile", "across"),
    *(f"{matrix}_{what}" for matrix in ("a", "b") for what in ("base", "offset", "down", "along")),
    *("c_base", "c_offset", "c_down", "add"),
)
"""What a product is told, whole numbers: sizes, tiles, and where each matrix lies: which memory, how many bytes into
it, and how many elements its rows and columns are apart; `add`: c <- c + a b, else c <- a b."""


class Shape:
    """Of the block of results that stays in registers: `up` rows of `wide` vectors."""

    def __init__(self, dtype: str) -> None:
        self.size = SIZES[dtype]
        self.lanes = vector_bytes() // self.size
        self.depth = DEPTH[dtype]
        self.up, self.wide = (8, 3) if many_registers() else (4, 3)
        self.across = self.wide * self.lanes
        self.columns = self.across * 11
        """Most columns of the right matrix that are copied before they are used again."""
        self.rows = 128
        """Most rows that are all copied at once."""
        self.together = 128 // self.size
        """Of more rows, those that are copied together."""
        self.strip = 192 // self.size
        """Elements that are asked for at a time: three lines of the cache."""
        self.scratch = self.size * (self.depth * (self.columns + self.rows) + self.up * self.across)
        """Bytes of memory that a thread needs."""


def write_product(module: ir.Module, name: str, dtype: str) -> None:
    """product(arguments, tile, bases, scratch): one tile of c <- a b."""
    _Writer(module, dtype).product(name)


class _Writer:
    def __init__(self, module: ir.Module, dtype: str) -> None:
        self.module, self.real, self.shape = module, REALS[dtype], Shape(dtype)
        self.pointer = self.real.as_pointer()
        self.vector = ir.VectorType(self.real, self.shape.lanes)
        self.inner = [self.inner_loop(wide + 1) for wide in range(self.shape.wide)]
        self.pack_left = self.left()
        self.pack_right = self.right()
        self.block = self.one_block()
        self.few_rows = self.few()

    def function(self, name: str, arguments: list[Any]) -> Function:
        f = Function(self.module, name, arguments)
        for argument in f.arguments:
            if argument.type == self.pointer:
                argument.add_attribute("noalias")
        return f

    def inner_loop(self, wide: int) -> Any:
        """c <- a b, or c + a b, for `up` rows and `wide` vectors of columns; a and b are packed.

        Meanwhile `asks` strips of memory, so many elements `apart`, are asked for: what is copied next.
        """
        s = self.shape
        f = self.function(f"inner{wide}", [I64, *[self.pointer] * 3, I64, I1, self.pointer, I64, I64])
        f.made.attributes.add("noinline")
        b, (depth, left, right, c, down, add, asked, apart, asks) = f.b, f.arguments
        zero = ir.Constant(self.vector, [0.0] * s.lanes)

        def turn(sums: list[Any], k: Any) -> list[Any]:
            column, row = f.at(left, f.product(k, s.up)), f.at(right, f.product(k, wide * s.lanes))
            vectors = [f.load(f.at(row, v * s.lanes), s.lanes, s.lanes * s.size) for v in range(wide)]
            one_by_one = iter(sums)
            made = []
            for i in range(s.up):
                x = f.splat(b.load(f.at(column, i)), s.lanes)
                made += [self.multiply_add(f, x, v, next(one_by_one)) for v in vectors]
            return made

        for i in range(s.up):
            self.prefetch(f, f.at(c, f.product(down, i)), 0, wide * s.lanes, to_write=True)
        most = b.and_(depth, f.number(-TURNS))
        with f.loop(0, most, TURNS, carry=[f.number(0), asked, *[zero] * (s.up * wide)]) as k:
            due, place, *sums = k.values  # Bresenham's way to spread `asks` evenly
            due = b.add(due, f.product(asks, TURNS))
            now = b.icmp_signed(">=", due, most)
            with b.if_then(now):
                self.prefetch(f, place, 0, s.strip)
            k.next += [b.select(now, b.sub(due, most), due), b.select(now, f.at(place, apart), place)]
            for t in range(TURNS):
                sums = turn(sums, f.sum(k.index, t))
            k.next += sums
        with f.loop(most, depth, carry=k.values[2:]) as rest:
            rest.next += turn(rest.values, rest.index)
        with b.if_else(add) as (more, new):
            for block, adds in ((more, True), (new, False)):
                with block:
                    for i in range(s.up):
                        for v in range(wide):
                            place = f.at(f.at(c, f.product(down, i)), v * s.lanes)
                            value = rest.values[i * wide + v]
                            old = f.load(place, s.lanes, s.size) if adds else None
                            f.store(b.fadd(old, value) if adds else value, place, s.size)
        b.ret_void()
        return f.made

    def multiply_add(self, f: Function, x: Any, y: Any, z: Any) -> Any:
        if not fuses():
            return f.b.fadd(f.b.fmul(x, y), z)
        return f.intrinsic(f"fma.{suffix(x.type)}", x.type, [x, y, z])

    def left(self) -> Any:
        """to[p][k][i] <- a[p up + i][k], with zeros where a has no more rows; its rows or its columns lie together."""
        up, size = self.shape.up, self.shape.size
        f = self.function("left", [I64, I64, self.pointer, I64, I64, self.pointer])
        b, (rows, depth, a, down, along, to) = f.b, f.arguments
        by_rows = b.icmp_signed("==", along, f.number(1))
        by_columns = b.and_(b.icmp_signed("==", down, f.number(1)), b.not_(by_rows))
        together = up * PANELS
        most = b.select(by_columns, b.and_(rows, f.number(-together)), f.number(0))
        with f.loop(0, most, together) as p, f.loop(0, depth) as k:  # a longer part of a column at a time
            source = f.at(a, b.add(p.index, b.mul(k.index, along)))
            self.prefetch(f, source, f.product(along, AHEAD), together)
            for q in range(PANELS):
                column = f.load(f.at(source, q * up), up, size)
                place = b.add(b.mul(f.sum(p.index, q * up), depth), f.product(k.index, up))
                f.store(column, f.at(to, place), size)
        with f.loop(most, rows, up) as p:
            source, target = f.at(a, b.mul(p.index, down)), f.at(to, b.mul(p.index, depth))
            left = b.sub(rows, p.index)
            whole = b.icmp_signed(">=", left, f.number(up))

            def one(k: Any, i: Any, source: Any = source, target: Any = target) -> None:
                x = b.load(f.at(source, b.add(b.mul(i, down), b.mul(k, along))))
                b.store(x, f.at(target, b.add(f.product(k, up), i)))

            with b.if_else(b.and_(whole, by_rows)) as (rowwise, other):
                with rowwise:
                    most = b.and_(depth, f.number(-up))
                    with f.loop(0, most, up) as k:
                        some = [f.load(f.at(source, b.add(f.product(down, i), k.index)), up, size) for i in range(up)]
                        for q, column in enumerate(f.transposed(some)):
                            f.store(column, f.at(target, f.product(f.sum(k.index, q), up)), size)
                    with f.loop(most, depth) as k, f.loop(0, up) as i:
                        one(k.index, i.index)
                with other, b.if_else(b.and_(whole, by_columns)) as (columnwise, rest):
                    with columnwise, f.loop(0, depth) as k:
                        column = f.load(f.at(source, b.mul(k.index, along)), up, size)
                        f.store(column, f.at(target, f.product(k.index, up)), size)
                    with rest, f.loop(0, depth) as k:
                        with f.loop(0, f.least(left, up)) as i:
                            one(k.index, i.index)
                        with f.loop(f.least(left, up), up) as i:
                            zero = ir.Constant(self.real, 0.0)
                            b.store(zero, f.at(target, b.add(f.product(k.index, up), i.index)))
        b.ret_void()
        return f.made

    def prefetch(self, f: Function, source: Any, distance: Any, elements: int, to_write: bool = False) -> None:
        """Ask for the memory that is read a few turns from now: it is too far away for the processor to guess."""
        for first in range(0, elements, 64 // self.shape.size):
            f.prefetch(f.at(source, f.sum(f.number(distance), first)), to_write)

    def right(self) -> Any:
        """to[k][j] <- b[k][j] for `columns` columns, with zeros up to `padded`; rows or columns lie together."""
        lanes, size = self.shape.lanes, self.shape.size
        f = self.function("right", [I64, I64, I64, self.pointer, I64, I64, self.pointer])
        b, (columns, padded, depth, matrix, down, along, to) = f.b, f.arguments
        by_rows = b.and_(b.icmp_signed("==", along, f.number(1)), b.icmp_signed("==", columns, padded))
        with b.if_then(by_rows), f.loop(0, depth) as k:
            source, target = f.at(matrix, b.mul(k.index, down)), f.at(to, b.mul(k.index, padded))
            self.prefetch(f, source, f.product(down, AHEAD), self.shape.across)
            with f.loop(0, columns, lanes) as v:
                f.store(f.load(f.at(source, v.index), lanes, size), f.at(target, v.index), lanes * size)
        with f.loop(b.select(by_rows, padded, f.number(0)), padded, lanes) as v:
            source, target = f.at(matrix, b.mul(v.index, along)), f.at(to, v.index)
            left = b.sub(columns, v.index)
            whole = b.icmp_signed(">=", left, f.number(lanes))

            def one(k: Any, j: Any, source: Any = source, target: Any = target) -> None:
                x = b.load(f.at(source, b.add(b.mul(j, along), b.mul(k, down))))
                b.store(x, f.at(target, b.add(b.mul(k, padded), j)))

            with b.if_else(b.icmp_signed("==", along, f.number(1))) as (rowwise, other):
                with rowwise:
                    some = f.first_lanes(left, lanes)
                    with f.loop(0, depth) as k:
                        row = f.load_some(f.at(source, b.mul(k.index, down)), some, size)
                        f.store(row, f.at(target, b.mul(k.index, padded)), lanes * size)
                with other, b.if_else(b.and_(whole, b.icmp_signed("==", down, f.number(1)))) as (columnwise, rest):
                    with columnwise:
                        most = b.and_(depth, f.number(-lanes))
                        with f.loop(0, most, lanes) as k:
                            some = [
                                f.load(f.at(source, b.add(f.product(along, j), k.index)), lanes, size)
                                for j in range(lanes)
                            ]
                            for q, row in enumerate(f.transposed(some)):
                                f.store(row, f.at(target, b.mul(f.sum(k.index, q), padded)), lanes * size)
                        with f.loop(most, depth) as k, f.loop(0, lanes) as j:
                            one(k.index, j.index)
                    with rest, f.loop(0, depth) as k:
                        with f.loop(0, f.least(left, lanes)) as j:
                            one(k.index, j.index)
                        with f.loop(f.least(left, lanes), lanes) as j:
                            b.store(ir.Constant(self.real, 0.0), f.at(target, b.add(b.mul(k.index, padded), j.index)))
        b.ret_void()
        return f.made

    def one_block(self) -> Any:
        """c <- a b, or c + a b, for at most `up` rows and `across` columns, whose a and b are packed."""
        s = self.shape
        matrices = [*[self.pointer] * 3, I64, I1, self.pointer]
        f = self.function("block", [I64, I64, I64, *matrices, self.pointer, I64, I64])
        b, (rows, columns, depth, left, right, c, down, add, corner, *asked) = f.b, f.arguments
        vectors = b.sdiv(f.sum(columns, s.lanes - 1), f.number(s.lanes))
        whole = b.icmp_signed("==", columns, f.product(vectors, s.lanes))
        whole = b.and_(whole, b.icmp_signed("==", rows, f.number(s.up)))
        place, apart = b.select(whole, c, corner), b.select(whole, down, f.number(s.across))
        done = b.append_basic_block("done")
        choice = b.switch(vectors, done)
        for wide, inner in enumerate(self.inner, 1):
            case = b.append_basic_block("inner")
            choice.add_case(f.number(wide), case)
            b.position_at_end(case)
            b.call(inner, [depth, left, right, place, apart, b.and_(add, whole), *asked])
            b.branch(done)
        b.position_at_end(done)
        with b.if_then(b.not_(whole)), f.loop(0, columns, s.lanes) as v:
            some = f.first_lanes(b.sub(columns, v.index), s.lanes)
            with f.loop(0, rows) as r:
                x = f.load(f.at(corner, b.add(f.product(r.index, s.across), v.index)), s.lanes, s.size)
                to = f.at(c, b.add(b.mul(r.index, down), v.index))
                with b.if_else(add) as (more, new):
                    with more:
                        f.store_some(b.fadd(f.load_some(to, some, s.size), x), to, some, s.size)
                    with new:
                        f.store_some(x, to, some, s.size)
        b.ret_void()
        return f.made

    def few(self) -> Any:
        """c <- a b, or c + a b, for few rows of a, which are not worth a copy of b: its rows lie together."""
        f = self.function("few", [I64, I64, I64, *[self.pointer, I64, I64], *[self.pointer, I64] * 2, I1])
        b, (rows, columns, depth, a, a_down, a_along, right, b_down, c, c_down, add) = f.b, f.arguments
        size = self.shape.size
        with f.loop(0, rows) as row:
            left, target = f.at(a, b.mul(row.index, a_down)), f.at(c, b.mul(row.index, c_down))
            first: Any = f.number(0)
            for wide, lanes in ((8, self.shape.lanes), (1, self.shape.lanes), (1, 1)):
                kind = ir.VectorType(self.real, lanes) if lanes > 1 else self.real
                zero = ir.Constant(kind, [0.0] * lanes if lanes > 1 else 0.0)
                last = b.add(first, b.and_(b.sub(columns, first), f.number(-wide * lanes)))
                with f.loop(first, last, wide * lanes) as column:
                    with f.loop(0, depth, carry=[zero] * wide) as k:
                        source = f.at(right, b.add(b.mul(k.index, b_down), column.index))
                        if wide > 1:
                            self.prefetch(f, source, f.product(b_down, AHEAD), wide * lanes)
                        x = b.load(f.at(left, b.mul(k.index, a_along)))
                        x = f.splat(x, lanes) if lanes > 1 else x
                        for v in range(wide):
                            place = f.at(source, v * lanes)
                            y = f.load(place, lanes, size) if lanes > 1 else b.load(place)
                            k.next.append(self.multiply_add(f, x, y, k.values[v]))
                    for v in range(wide):
                        place = b.bitcast(f.at(target, f.sum(column.index, v * lanes)), kind.as_pointer())
                        old = b.load(place, align=size)
                        value = b.select(add, b.fadd(old, k.values[v]), k.values[v])
                        b.store(value, place, align=size)
                first = last
        b.ret_void()
        return f.made

    def asking(self, f: Function, calls: Any, depth: Any, beside: Any, along: Any, rows: bool) -> list[Any]:
        """How to ask for the matrix that is copied next, in `calls` inner loops: elements between two strips,
        elements between what two loops ask for, strips a loop, and loops until all has been asked for.

        Its columns (of b) or `rows` (of a) are `beside` apart, and `along` in the direction of `depth`.
        """
        b, strip = f.b, f.number(self.shape.strip)
        strips = b.sdiv(f.sum(depth, self.shape.strip - 1), strip)
        share = b.sdiv(b.sub(b.add(depth, calls), f.number(1)), calls)
        others = [along, b.mul(share, along), share, calls]
        if rows:  # a loop asks for all of one row
            together = [strip, beside, strips, f.number(self.shape.together)]
        else:  # for one strip of every column
            together = [beside, strip, f.number(self.shape.across), strips]
        along_depth = b.icmp_signed("==", along, f.number(1))
        return [b.select(along_depth, x, y) for x, y in zip(together, others, strict=True)]

    def product(self, name: str) -> None:
        s = self.shape
        f = Function(self.module, name, [I64.as_pointer(), I64, BYTES.as_pointer(), BYTES], public=True)
        b, (told, tile, bases, scratch) = f.b, f.arguments
        know = {name: b.load(f.at(told, i)) for i, name in enumerate(ARGUMENTS)}

        def place(matrix: str) -> Any:
            memory = b.load(f.at(bases, know[f"{matrix}_base"]))
            return b.bitcast(f.at(memory, know[f"{matrix}_offset"]), self.pointer)

        first_row = b.mul(b.sdiv(tile, know["across"]), know["rows_a_tile"])
        first_column = b.mul(b.srem(tile, know["across"]), know["columns_a_tile"])
        rows = f.least(know["rows_a_tile"], b.sub(know["rows"], first_row))
        columns = f.least(know["columns_a_tile"], b.sub(know["columns"], first_column))
        left = f.at(place("a"), b.mul(first_row, know["a_down"]))
        right = f.at(place("b"), b.mul(first_column, know["b_along"]))
        c = f.at(place("c"), b.add(b.mul(first_row, know["c_down"]), first_column))
        packed_right = b.bitcast(scratch, self.pointer)
        packed_left = f.at(packed_right, s.depth * s.columns)
        corner = f.at(packed_left, s.depth * s.rows)
        """Where a block of results goes that is larger than what is left of c."""

        blocks = b.sdiv(f.sum(know["inner"], s.depth - 1), f.number(s.depth))
        most_depth = b.sdiv(b.sub(b.add(know["inner"], blocks), f.number(1)), blocks)
        most_depth = b.and_(f.sum(most_depth, 7), f.number(-8))  # blocks of one size, but for the last
        few = b.icmp_signed("<=", know["rows"], f.number(FEW))
        few = b.and_(few, b.icmp_signed("==", know["b_along"], f.number(1)))
        with b.if_then(few), f.loop(0, know["inner"], most_depth) as k:
            depth = f.least(most_depth, b.sub(know["inner"], k.index))
            add = b.or_(b.icmp_signed("!=", know["add"], f.number(0)), b.icmp_signed(">", k.index, f.number(0)))
            some_left = f.at(left, b.mul(k.index, know["a_along"]))
            some_right = f.at(right, b.mul(k.index, know["b_down"]))
            sizes = [rows, columns, depth]
            places = [some_left, know["a_down"], know["a_along"], some_right, know["b_down"], c, know["c_down"]]
            b.call(self.few_rows, [*sizes, *places, add])

        once = b.icmp_signed("<=", rows, f.number(s.rows))
        """Few rows: they are copied at once, and a copied part of b is used once."""
        most = b.select(few, f.number(0), columns)
        most_columns = b.select(once, columns, f.number(s.columns))
        group = b.select(once, f.number(s.rows), f.number(s.together))
        with f.loop(0, most, most_columns) as jc, f.loop(0, know["inner"], most_depth) as k:
            width = f.least(most_columns, b.sub(columns, jc.index))
            depth = f.least(most_depth, b.sub(know["inner"], k.index))
            panels = b.sdiv(f.sum(width, s.across - 1), f.number(s.across))
            add = b.or_(b.icmp_signed("!=", know["add"], f.number(0)), b.icmp_signed(">", k.index, f.number(0)))
            left_k = f.at(left, b.mul(k.index, know["a_along"]))
            right_k = f.at(right, b.mul(k.index, know["b_down"]))
            calls = b.mul(panels, b.sdiv(group, f.number(s.up)))
            ask_left = self.asking(f, calls, depth, know["a_down"], know["a_along"], rows=True)
            with f.loop(0, rows, group) as ig:
                height = f.least(group, b.sub(rows, ig.index))
                source = f.at(left_k, b.mul(ig.index, know["a_down"]))
                b.call(self.pack_left, [height, depth, source, know["a_down"], know["a_along"], packed_left])
                calls = b.sdiv(f.sum(height, s.up - 1), f.number(s.up))
                ask_right = self.asking(f, calls, depth, know["b_along"], know["b_down"], rows=False)
                first = b.icmp_signed("==", ig.index, f.number(0))
                last = b.icmp_signed(">=", b.add(ig.index, group), rows)
                next_row = b.select(last, f.number(0), b.add(ig.index, group))
                next_k = b.select(last, b.add(k.index, depth), k.index)
                next_left = f.at(left, b.add(b.mul(next_row, know["a_down"]), b.mul(next_k, know["a_along"])))
                any_left = b.icmp_signed("<", next_k, know["inner"])
                with f.loop(0, b.mul(calls, panels), carry=[f.number(0)] * 2) as n:
                    i, j = n.values
                    below, beside = f.sum(i, s.up), f.sum(j, s.across)
                    bottom, edge = b.icmp_signed(">=", below, height), b.icmp_signed(">=", beside, width)
                    top, begin = b.select(bottom, f.number(0), below), b.select(edge, f.number(0), beside)
                    n.next = [
                        b.select(first, top, b.select(edge, below, i)),
                        b.select(first, b.select(bottom, beside, j), begin),
                    ]
                    some = f.least(s.across, b.sub(width, j))
                    vectors = b.sdiv(f.sum(some, s.lanes - 1), f.number(s.lanes))
                    column = b.add(jc.index, j)
                    panel = f.at(packed_right, b.mul(b.select(once, f.number(0), j), depth))
                    with b.if_then(b.and_(first, b.icmp_signed("==", i, f.number(0)))):
                        source = f.at(right_k, b.mul(column, know["b_along"]))
                        sizes = [some, f.product(vectors, s.lanes), depth]
                        b.call(self.pack_right, [*sizes, source, know["b_down"], know["b_along"], panel])
                    next_right = f.at(right_k, b.mul(f.sum(column, s.across), know["b_along"]))
                    rights = b.and_(first, b.icmp_signed("<", f.sum(j, s.across), width))
                    asked = b.select(rights, next_right, next_left)
                    apart, apart_call, asks, most_calls = (
                        b.select(rights, x, y) for x, y in zip(ask_right, ask_left, strict=True)
                    )
                    asks = b.select(b.or_(rights, any_left), asks, f.number(0))
                    row, turn = b.add(ig.index, i), b.sdiv(i, f.number(s.up))
                    results = f.at(c, b.add(b.mul(row, know["c_down"]), column))
                    turn = b.select(rights, turn, n.index)
                    asks = b.select(b.icmp_signed("<", turn, most_calls), asks, f.number(0))
                    sizes = [f.least(s.up, b.sub(height, i)), some, depth]
                    places = [f.at(packed_left, b.mul(i, depth)), panel, results, know["c_down"], add, corner]
                    b.call(self.block, [*sizes, *places, f.at(asked, b.mul(turn, apart_call)), apart, asks])
        b.ret_void()
