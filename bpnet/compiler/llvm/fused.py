"""Fused kernels as machine code: rows one after the other, each a vector register at a time.

A row is gone along once in each phase: as often as reductions over it are needed before it can be finished (softmax:
its largest entry, the sum of its exponentials, its results).  The end of a row that does not fill a register is handled
by masked loads and stores.  Nothing is contracted or reordered, so an operation that IEEE 754 rounds exactly gives the
bits that it gives alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from bpnet.compiler.commands import FusedKernel, Reference, result_dtype
from bpnet.compiler.llvm.arithmetic import as_operand, as_stored, operate, triple32
from bpnet.compiler.llvm.builder import I32, I64, REALS, SIZES, Function, Kernel, Pointer, constant, table, vector_bytes
from bpnet.compiler.ops import GENERATORS, OPERATIONS, RANDOM, ROW_REDUCTIONS
from bpnet.compiler.random import GOLDEN

SINGLE = ("per_row", "scalar")
"""Layouts of what is the same all along a row."""
STRIP = 64
"""Most rows of columns, or vectors of a row, that are added up one after the other.

Sums of so many are then added to others of their like, of rows by further kernels and along rows with what rounding
leaves out of each addition, so that no error grows with the number of what is summed.
"""


def write_fused(module: ir.Module, name: str, kernel: FusedKernel, long: bool) -> None:
    """fused(arguments, tile, bases, scratch); `long`: whether a row, or a tile of it, has more than STRIP vectors.

    `arguments`: rows, columns, rows and columns of a tile, tiles across; (memory, bytes into it) of every operand; how
    many elements the rows of each window are apart, operands before results; the slots of the numbers; the bits of the
    constants in double precision; of every mask the threshold and, for every part of the key, whether it is a slot or
    the part itself, and that; (memory, bytes into it) of every result.

    Partial results of tiles lie one after the other, and column-wise sums of every STRIP rows of a tile.
    """
    _KernelWriter(module, name, kernel, long)


class _KernelWriter:
    def __init__(self, module: ir.Module, name: str, kernel: FusedKernel, long: bool) -> None:
        self.kernel, self.long, self.real, self.size = kernel, long, REALS[kernel.dtype], SIZES[kernel.dtype]
        self.lanes = vector_bytes() // self.size
        self.f = f = Kernel(module, name)
        rows, self.columns, down, across, count = (f.argument() for _ in range(5))
        first_row = f.mul(f.sdiv(f.tile, count), down)
        last_row = f.least(rows, f.add(first_row, down))
        self.first = f.mul(f.srem(f.tile, count), across)
        self.last = f.least(self.columns, f.add(self.first, across))
        self.operands = [f.operand(_kind(dtype)) for _, dtype in kernel.operands]
        # of windows, how many elements their rows are apart
        self.apart = {i: f.argument() for i, (layout, _) in enumerate(kernel.operands) if layout == "window"}
        self.target_apart = {i: f.argument() for i, (*_, layout) in enumerate(kernel.results) if layout == "window"}
        # values that are the same for the whole kernel
        self.once: dict[Reference, Any] = {}
        for i in range(kernel.numbers):
            self.once["number", i] = self._real(self._number(f.argument()))
        for i in range(kernel.constants):
            self.once["constant", i] = self._real(f.bitcast(f.argument(), ir.DoubleType()))
        self.keys = {i: self._key(args[0]) for i, (op, _, _, *args) in enumerate(kernel.expressions) if op in RANDOM}
        expressions = enumerate(kernel.expressions)
        self.tables = {i: table(module, self.real, args) for i, (op, _, _, *args) in expressions if op == "table"}
        self.stored = [result_dtype(kernel, result) for result in kernel.results]
        self.targets = [f.operand(_kind(dtype)) for dtype in self.stored]
        phases = max([1, *(phase + 1 for _, _, phase, _ in kernel.results)])
        self.totals: dict[int, _Total] = {}
        strips = f.ceil_div(down, STRIP)
        for i, (kind, _, _, layout) in enumerate(kernel.results):
            if kind == "column_sum":
                self.targets[i] = f.at(self.targets[i], f.mul(f.mul(f.tile, strips), self.columns))
            elif not kind.startswith("store"):
                self.targets[i] = f.at(self.targets[i], f.tile)
                self.totals[i] = _Total(f, kind, self.real, 1 if layout in SINGLE else self.lanes)
        vectors = f.ceil_div(f.sub(self.last, self.first), self.lanes)
        # rows that are added to totals one after the other
        together = f.sdiv(STRIP, f.least(STRIP, f.most(1, vectors)))
        with f.loop(first_row, last_row, carry=[together] if self.totals else []) as row:
            self.row = _Scope(self, row.index)
            self.strips = self._strips(f.sub(row.index, first_row))
            for phase in range(phases):
                self._phase(phase)
            if self.totals:
                left = f.add(row.values[0], -1)
                none = f.compare(left, "==", 0)
                with f.if_then(none):
                    for total in self.totals.values():
                        total.end_part()
                row.next = [f.select(none, together, left)]
        for i, total in self.totals.items():
            f.store(total.result(), self.targets[i])
        f.ret_void()

    # ---- arguments ----------------------------------------------------------------------------------------------

    def _number(self, slot: Any) -> Any:
        f = self.f
        return f.load(f.at(f.bitcast(f.load(f.at(f.bases, 0)), Pointer(ir.DoubleType())), slot))

    def _real(self, double: Any) -> Any:
        return double if self.size == 8 else self.f.fptrunc(double, self.real)

    def _key(self, parts: int) -> tuple[Any, Any, Any]:
        """(start, threshold, 1 / keep) of a mask, as in `bpnet.compiler.random.start_of` and `Backend.keep_mask`."""
        f = self.f
        threshold, state = f.argument(), constant(I32, 0)

        def word() -> Any:
            is_slot, part = f.compare(f.argument(), "!=", 0), f.argument()
            changing = f.fptoui(self._number(f.select(is_slot, part, 0)), I64)
            return f.trunc(f.select(is_slot, changing, part), I32)

        before = f.mul(word(), constant(I32, GOLDEN))
        for _ in range(parts - 1):
            state = triple32(f, f.add(f.xor(state, word()), constant(I32, GOLDEN)))
        scale = f.fdiv(ir.Constant(ir.DoubleType(), 2.0**32), f.sitofp(threshold, ir.DoubleType()))
        return f.add(state, before), f.trunc(threshold, I32), self._real(scale)

    # ---- going along a row --------------------------------------------------------------------------------------

    def _phase(self, phase: int) -> None:
        f, kernel, row = self.f, self.kernel, self.row.index["per_row"]
        results = [i for i, (_, _, of_phase, _) in enumerate(kernel.results) if of_phase == phase]
        along, once = ([i for i in results if (kernel.results[i][3] in SINGLE) is single] for single in (False, True))
        sums = {
            i: _Total(f, op, self.real, self.lanes)
            for i, (op, _, of_phase, *_) in enumerate(kernel.expressions)
            if op in ROW_REDUCTIONS and of_phase == phase
        }
        before: set[Reference] = set()
        for reference in (*(kernel.results[i][1] for i in along), *(kernel.expressions[i][3] for i in sums)):
            self._before(reference, before)
        totals = [*sums.values(), *(self.totals[i] for i in along if i in self.totals)]
        if along or sums:
            whole = f.add(self.first, f.round_down(f.sub(self.last, self.first), self.lanes))
            with self._parts(whole, totals) as (start, stop), f.loop(start, stop, self.lanes) as column:
                _Scope(self, row, column.index).write(along, sums)
            with f.if_then(f.compare(whole, "<", self.last)):
                some = f.first_lanes(f.sub(self.last, whole), self.lanes)
                _Scope(self, row, whole, some).write(along, sums)
        for i, total in sums.items():
            self.row.known["value", i] = total.result()
        self.row.write(once, {})

    @contextmanager
    def _parts(self, whole: Any, totals: "list[_Total]") -> Iterator[tuple[Any, Any]]:
        """From where to where to go along a row: of a long one STRIP vectors at a time, where anything is summed."""
        if not (totals and self.long):
            yield self.first, whole
            return
        length = self.lanes * STRIP
        with self.f.loop(self.first, whole, length) as part:
            yield part.index, self.f.least(whole, self.f.add(part.index, length))
            for total in totals:
                total.end_part()

    def is_single(self, reference: Reference) -> bool:
        """Whether a value is the same all along the row."""
        kind, which = reference
        if kind == "value":
            return reference in self.row.known or self.kernel.expressions[which][1] in SINGLE
        return kind != "operand" or self.kernel.operands[which][0] in SINGLE

    def _before(self, reference: Reference, done: set[Reference]) -> None:
        """Compute what is the same all along the row before going along it."""
        kind, which = reference
        if reference in done:
            return
        done.add(reference)
        if self.is_single(reference):
            self.row.value(reference)
        elif kind == "value" and self.kernel.expressions[which][0] not in GENERATORS:
            for a in self.kernel.expressions[which][3:]:
                self._before(a, done)

    # ---- sums ---------------------------------------------------------------------------------------------------

    def _strips(self, row: Any) -> dict[int, Any]:
        """Where this row of the tile is added to, of every column-wise sum."""
        f = self.f
        sums = [i for i, result in enumerate(self.kernel.results) if result[0] == "column_sum"]
        if not sums:
            return {}
        offset = f.mul(f.udiv(row, STRIP), self.columns)
        targets = {i: f.at(self.targets[i], offset) for i in sums}
        with f.if_then(f.compare(f.urem(row, STRIP), "==", 0)):
            for target in targets.values():
                with f.loop(self.first, self.last) as column:
                    f.store(constant(self.real, 0.0), f.at(target, column.index))
        return targets


class _Total:
    """A sum, maximum or minimum of what is added to it, in memory that becomes registers, by lanes.

    A sum is of parts: `part` is of what was added since the last ended, `total` of those before, and `rest` of what
    rounding left out of that (D. Knuth, The Art of Computer Programming 2, 4.2.2, theorem B).
    """

    def __init__(self, f: Function, op: str, real: Any, lanes: int) -> None:
        self.f, self.real, self.lanes = f, real, lanes
        self.joined_by, self.ends = OPERATIONS[op].joined_by, False
        self.nothing = constant(real, OPERATIONS[op].start, lanes)
        with f.goto_entry_block():
            self.part, self.total, self.rest = (f.alloca(self.nothing.type) for _ in range(3))
        for address in (self.part, self.total, self.rest):
            f.store(self.nothing, address)

    def add(self, value: Any, mask: Any = None) -> None:
        """Add a value, or those of its lanes that `mask` chooses."""
        f = self.f
        if mask is not None:
            value = f.select(mask, value, self.nothing)
        f.store(self._join(f.load(self.part), value), self.part)

    def end_part(self) -> None:
        """Add what is in the part to the others."""
        if self.joined_by != "add":
            return
        self.ends = True
        f = self.f
        part, old, rest = (f.load(address) for address in (self.part, self.total, self.rest))
        new = f.fadd(old, part)
        arrived = f.fsub(new, old)
        left = f.fadd(f.fsub(old, f.fsub(new, arrived)), f.fsub(part, arrived))
        f.store(new, self.total)
        f.store(f.fadd(rest, left), self.rest)
        f.store(self.nothing, self.part)

    def result(self) -> Any:
        """All lanes joined: halves of them, again and again."""
        f = self.f
        vector = f.load(self.part)
        if self.ends:  # where the total is not finite, the rest is not a number
            rest = f.load(self.rest)
            rest = f.select(f.fcmp_ordered("ord", rest, rest), rest, self.nothing)
            vector = f.fadd(f.fadd(f.load(self.total), vector), rest)
        if self.lanes == 1:
            return vector
        n = self.lanes
        while n > 1:
            n //= 2
            low, high = (f.shuffle(vector, vector, range(start, start + n)) for start in (0, n))
            vector = self._join(low, high)
        return f.extract_element(vector, constant(I32, 0))

    def _join(self, x: Any, y: Any) -> Any:
        return operate(self.f, self.joined_by, [x, y], self.real)


class _Scope:
    """Values along a whole row, or of one register of it: from `column` on, in the lanes of `mask` (None: all)."""

    def __init__(self, writer: _KernelWriter, row: Any, column: Any = None, mask: Any = None) -> None:
        self.w, self.f, self.mask = writer, writer.f, mask
        self.lanes, self.known = 1, dict(writer.once)
        self.index: dict[str, Any] = {"scalar": 0, "per_row": row}
        if column is not None:
            self.lanes, self.known = writer.lanes, {}
            self.index |= {"per_column": column, "full": self.f.add(self.f.mul(row, writer.columns), column)}

    def value(self, reference: Reference) -> Any:
        if reference not in self.known:
            self.known[reference] = self._value(reference)
        return self.known[reference]

    def _value(self, reference: Reference) -> Any:
        (kind, which), f, w = reference, self.f, self.w
        if self.lanes > 1 and w.is_single(reference):
            return f.splat(w.row.value(reference), self.lanes)
        if kind == "literal":
            return constant(w.real, which)
        if kind == "operand":
            layout, dtype = w.kernel.operands[which]
            return as_operand(f, self._load(w.operands[which], layout, dtype, w.apart.get(which)), dtype, w.real)
        op, _, _, *args = w.kernel.expressions[which]
        if op in RANDOM:
            return self._drawn(op, *w.keys[which])
        if op == "positions":
            start = f.splat(f.sitofp(self.index["per_column"], w.real), self.lanes)
            return f.fadd(start, constant(w.real, [float(i) for i in range(self.lanes)]))
        if op == "table":
            return self._load(w.tables[which], "per_column", w.kernel.dtype)
        return operate(f, op, [self.value(a) for a in args], w.real)

    def write(self, results: list[int], sums: "dict[int, _Total]") -> None:
        """Add to row-wise sums, and store results or add to them."""
        for i, total in sums.items():
            total.add(self.value(self.w.kernel.expressions[i][3]), self.mask)
        values = [self.value(self.w.kernel.results[i][1]) for i in results]  # before what they read is written over
        for i, value in zip(results, values, strict=True):
            kind, _, _, layout = self.w.kernel.results[i]
            if kind.startswith("store"):
                dtype = self.w.stored[i]
                apart = self.w.target_apart.get(i)
                self._store(as_stored(self.f, value, dtype), self.w.targets[i], layout, dtype, apart)
            elif kind == "column_sum":
                strip = self.w.strips[i], "per_column", self.w.kernel.dtype
                self._store(self.f.fadd(self._load(*strip), value), *strip)
            else:
                self.w.totals[i].add(value, self.mask)

    def _drawn(self, op: str, key: Any, threshold: Any, scale: Any) -> Any:
        """As `Backend.keep_mask` and `uniform`, by the number of the entry."""
        f, lanes = self.f, self.lanes
        count = f.add(f.splat(f.trunc(self.index["full"], I32), lanes), constant(I32, list(range(lanes))))
        bits = triple32(f, f.add(f.mul(count, constant(I32, GOLDEN, lanes)), f.splat(key, lanes)))
        if op == "uniform":
            upper = f.sitofp(f.lshr(bits, constant(I32, 9, lanes)), constant(self.w.real, 0.5, lanes).type)
            return f.fmul(f.fadd(upper, constant(self.w.real, 0.5, lanes)), constant(self.w.real, 2.0**-23, lanes))
        kept = f.icmp_unsigned("<", bits, f.splat(threshold, lanes))
        return f.select(kept, f.splat(scale, lanes), constant(self.w.real, 0.0, lanes))

    def _load(self, array: Any, layout: str, dtype: str, apart: Any = None) -> Any:
        return self.f.load_vector(self._at(array, layout, apart), self.lanes, SIZES[dtype], self.mask)

    def _store(self, value: Any, array: Any, layout: str, dtype: str, apart: Any = None) -> None:
        self.f.store_vector(value, self._at(array, layout, apart), SIZES[dtype], self.mask)

    def _at(self, array: Any, layout: str, apart: Any) -> Any:
        """Where the entry of an array lies, of a window by how far its rows are `apart`."""
        if apart is None:
            return self.f.at(array, self.index[layout])
        row = self.f.mul(self.index["per_row"], apart)
        return self.f.at(array, self.f.add(row, self.index["per_column"]))


def _kind(dtype: str) -> Any:
    return REALS.get(dtype) or ir.IntType(8 * SIZES[dtype])
