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
from bpnet.compiler.llvm.builder import I32, I64, REALS, SIZES, Function, Kernel, Pointer, constant, vector_bytes
from bpnet.compiler.ops import GENERATORS, OPERATIONS, ROW_REDUCTIONS

SINGLE = ("per_row", "scalar")
"""Layouts of what is the same all along a row."""
STRIP = 64
"""Most rows of columns, or vectors of a row, that are added up one after the other.

Sums of so many are then added to others of their like, of rows by further kernels and along rows with what rounding
leaves out of each addition, so that no error grows with the number of what is summed.
"""


def write_fused(module: ir.Module, name: str, kernel: FusedKernel, long: bool) -> None:
    """fused(arguments, tile, bases, scratch); `long`: whether a row, or a tile of it, has more than STRIP vectors.

    `arguments`: rows, columns, rows and columns of a tile, tiles across; (memory, bytes into it) of every operand; the
    slots of the numbers; the bits of the constants in double precision; of every mask the threshold and, for every
    part of the key, whether it is a slot or the part itself, and that; (memory, bytes into it) of every result.

    Partial results of tiles lie one after the other, and column-wise sums of every STRIP rows of a tile.
    """
    _KernelWriter(module, name, kernel, long)


class _KernelWriter:
    def __init__(self, module: ir.Module, name: str, kernel: FusedKernel, long: bool) -> None:
        self.kernel, self.long, self.real, self.size = kernel, long, REALS[kernel.dtype], SIZES[kernel.dtype]
        self.lanes = vector_bytes() // self.size
        self.f = f = Kernel(module, name)
        b = f.b
        rows, self.columns, down, across, count = (f.argument() for _ in range(5))
        first_row = b.mul(b.sdiv(f.tile, count), down)
        last_row = f.least(rows, b.add(first_row, down))
        self.first = b.mul(b.srem(f.tile, count), across)
        self.last = f.least(self.columns, b.add(self.first, across))
        self.operands = [f.operand(_kind(dtype)) for _, dtype in kernel.operands]
        # values that are the same for the whole kernel
        self.once: dict[Reference, Any] = {}
        for i in range(kernel.numbers):
            self.once["number", i] = self._real(self._number(f.argument()))
        for i in range(kernel.constants):
            self.once["constant", i] = self._real(b.bitcast(f.argument(), ir.DoubleType()))
        self.keys = {i: self._key(args[0]) for i, (op, _, _, *args) in enumerate(kernel.expressions) if op == "mask"}
        self.stored = [result_dtype(kernel, result) for result in kernel.results]
        self.targets = [f.operand(_kind(dtype)) for dtype in self.stored]
        phases = max([1, *(phase + 1 for _, _, phase, _ in kernel.results)])
        self.totals: dict[int, _Total] = {}
        strips = f.ceil_div(down, STRIP)
        for i, (kind, _, _, layout) in enumerate(kernel.results):
            if kind == "column_sum":
                self.targets[i] = f.at(self.targets[i], b.mul(b.mul(f.tile, strips), self.columns))
            elif not kind.startswith("store"):
                self.targets[i] = f.at(self.targets[i], f.tile)
                self.totals[i] = _Total(f, kind, self.real, 1 if layout in SINGLE else self.lanes)
        vectors = f.ceil_div(b.sub(self.last, self.first), self.lanes)
        # rows that are added to totals one after the other
        together = b.sdiv(f.number(STRIP), f.least(STRIP, f.most(1, vectors)))
        with f.loop(first_row, last_row, carry=[together] if self.totals else []) as row:
            self.row_index = row.index
            self.row: dict[Reference, Any] = {}
            self.strips = self._strips(b.sub(row.index, first_row))
            for phase in range(phases):
                self._phase(phase)
            if self.totals:
                left = f.sum(row.values[0], -1)
                none = f.compare(left, "==", 0)
                with b.if_then(none):
                    for total in self.totals.values():
                        total.end_part()
                row.next = [b.select(none, together, left)]
        for i, total in self.totals.items():
            b.store(total.result(), self.targets[i])
        b.ret_void()

    # ---- arguments ----------------------------------------------------------------------------------------------

    def _number(self, slot: Any) -> Any:
        f, b = self.f, self.f.b
        return b.load(f.at(b.bitcast(b.load(f.at(f.bases, 0)), Pointer(ir.DoubleType())), slot))

    def _real(self, double: Any) -> Any:
        return double if self.size == 8 else self.f.b.fptrunc(double, self.real)

    def _key(self, parts: int) -> tuple[Any, Any, Any]:
        """(key, threshold, 1 / keep) of a mask, as `bpnet.compiler.random.fold` and `Backend.keep_mask` have them."""
        f, b = self.f, self.f.b
        threshold, state = f.argument(), constant(I32, 0)
        for _ in range(parts):
            is_slot, part = f.compare(f.argument(), "!=", 0), f.argument()
            changing = b.fptoui(self._number(b.select(is_slot, part, f.number(0))), I64)
            word = b.trunc(b.select(is_slot, changing, part), I32)
            state = triple32(b, b.add(b.xor(state, word), constant(I32, 0x9E3779B9)))
        scale = b.fdiv(ir.Constant(ir.DoubleType(), 2.0**32), b.sitofp(threshold, ir.DoubleType()))
        return state, b.trunc(threshold, I32), self._real(scale)

    # ---- going along a row --------------------------------------------------------------------------------------

    def _phase(self, phase: int) -> None:
        f, b, kernel = self.f, self.f.b, self.kernel
        along = [i for i, s in enumerate(kernel.results) if s[2] == phase and s[3] not in SINGLE]
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
            whole = b.add(self.first, f.round_down(b.sub(self.last, self.first), self.lanes))
            with self._parts(whole, totals) as (start, stop), f.loop(start, stop, self.lanes) as column:
                _Body(self, column.index, None).work(along, sums)
            with b.if_then(f.compare(whole, "<", self.last)):
                some = f.first_lanes(b.sub(self.last, whole), self.lanes)
                _Body(self, whole, some).work(along, sums)
        for i, total in sums.items():
            self.row["value", i] = total.result()
        for i, (kind, reference, of_phase, layout) in enumerate(kernel.results):
            if of_phase != phase or layout not in SINGLE:
                continue
            value = self.single(reference)
            if kind.startswith("store"):
                value = as_stored(b, value, self.stored[i])
                b.store(value, f.at(self.targets[i], self.row_index if layout == "per_row" else 0))
            else:
                self.totals[i].add(value)

    @contextmanager
    def _parts(self, whole: Any, totals: "list[_Total]") -> Iterator[tuple[Any, Any]]:
        """From where to where to go along a row: of a long one STRIP vectors at a time, where anything is summed."""
        if not (totals and self.long):
            yield self.first, whole
            return
        length = self.lanes * STRIP
        with self.f.loop(self.first, whole, length) as part:
            yield part.index, self.f.least(whole, self.f.sum(part.index, length))
            for total in totals:
                total.end_part()

    def is_single(self, reference: Reference) -> bool:
        """Whether a value is the same all along the row."""
        kind, which = reference
        if kind == "value":
            return reference in self.row or self.kernel.expressions[which][1] in SINGLE
        return kind != "operand" or self.kernel.operands[which][0] in SINGLE

    def _before(self, reference: Reference, done: set[Reference]) -> None:
        """Compute what is the same all along the row before going along it."""
        kind, which = reference
        if reference in done:
            return
        done.add(reference)
        if self.is_single(reference):
            self.single(reference)
        elif kind == "value" and self.kernel.expressions[which][0] not in GENERATORS:
            for a in self.kernel.expressions[which][3:]:
                self._before(a, done)

    def single(self, reference: Reference) -> Any:
        """A value that is the same all along the row."""
        kind, which = reference
        if kind == "literal":
            return constant(self.real, which)
        if reference in self.once:
            return self.once[reference]
        if reference not in self.row:
            b, f = self.f.b, self.f
            if kind == "operand":
                layout, dtype = self.kernel.operands[which]
                place = f.at(self.operands[which], 0 if layout == "scalar" else self.row_index)
                self.row[reference] = as_operand(b, b.load(place), dtype, self.real)
            else:
                op, _, _, *args = self.kernel.expressions[which]
                self.row[reference] = operate(f, op, [self.single(a) for a in args], self.real)
        return self.row[reference]

    # ---- sums ---------------------------------------------------------------------------------------------------

    def _strips(self, row: Any) -> dict[int, Any]:
        """Where this row of the tile is added to, of every column-wise sum."""
        f, b = self.f, self.f.b
        sums = [i for i, result in enumerate(self.kernel.results) if result[0] == "column_sum"]
        if not sums:
            return {}
        offset = b.mul(b.udiv(row, f.number(STRIP)), self.columns)
        targets = {i: f.at(self.targets[i], offset) for i in sums}
        with b.if_then(f.compare(b.urem(row, f.number(STRIP)), "==", 0)):
            for target in targets.values():
                with f.loop(self.first, self.last) as column:
                    b.store(constant(self.real, 0.0), f.at(target, column.index))
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
        with f.b.goto_entry_block():
            self.part, self.total, self.rest = (f.b.alloca(self.nothing.type) for _ in range(3))
        for place in (self.part, self.total, self.rest):
            f.b.store(self.nothing, place)

    def add(self, value: Any, mask: Any = None) -> None:
        """Add a value, or those of its lanes that `mask` chooses."""
        b = self.f.b
        if mask is not None:
            value = b.select(mask, value, self.nothing)
        b.store(self._join(b.load(self.part), value), self.part)

    def end_part(self) -> None:
        """Add what is in the part to the others."""
        if self.joined_by != "add":
            return
        self.ends = True
        b = self.f.b
        part, old, rest = (b.load(place) for place in (self.part, self.total, self.rest))
        new = b.fadd(old, part)
        arrived = b.fsub(new, old)
        left = b.fadd(b.fsub(old, b.fsub(new, arrived)), b.fsub(part, arrived))
        b.store(new, self.total)
        b.store(b.fadd(rest, left), self.rest)
        b.store(self.nothing, self.part)

    def result(self) -> Any:
        """All lanes joined: halves of them, again and again."""
        f, b = self.f, self.f.b
        vector = b.load(self.part)
        if self.ends:  # where the total is not finite, the rest is not a number
            rest = b.load(self.rest)
            rest = b.select(b.fcmp_ordered("ord", rest, rest), rest, self.nothing)
            vector = b.fadd(b.fadd(b.load(self.total), vector), rest)
        if self.lanes == 1:
            return vector
        n = self.lanes
        while n > 1:
            n //= 2
            low, high = (f.shuffle(vector, vector, range(start, start + n)) for start in (0, n))
            vector = self._join(low, high)
        return b.extract_element(vector, constant(I32, 0))

    def _join(self, x: Any, y: Any) -> Any:
        return operate(self.f, self.joined_by, [x, y], self.real)


class _Body:
    """One register of a row, from `column` on; `mask` tells which lanes there are (None: all)."""

    def __init__(self, writer: _KernelWriter, column: Any, mask: Any) -> None:
        self.w, self.column, self.mask = writer, column, mask
        self.f, self.b, self.lanes = writer.f, writer.f.b, writer.lanes
        self.entry = self.b.add(self.b.mul(writer.row_index, writer.columns), column)
        self.known: dict[Reference, Any] = {}

    def work(self, along: list[int], sums: dict[int, _Total]) -> None:
        for i, total in sums.items():
            total.add(self.value(self.w.kernel.expressions[i][3]), self.mask)
        values = [self.value(self.w.kernel.results[i][1]) for i in along]  # before what they read may be written over
        for i, value in zip(along, values, strict=True):
            (kind, _, _, layout), target = self.w.kernel.results[i], self.w.targets[i]
            if kind.startswith("store"):
                dtype = self.w.stored[i]
                self.f.store(as_stored(self.b, value, dtype), self._place(target, layout), SIZES[dtype], self.mask)
            elif kind == "column_sum":
                place = self._place(self.w.strips[i], "per_column")
                value = self.b.fadd(self.f.load(place, self.lanes, self.w.size, self.mask), value)
                self.f.store(value, place, self.w.size, self.mask)
            else:
                self.w.totals[i].add(value, self.mask)

    def value(self, reference: Reference) -> Any:
        kind, which = reference
        if reference in self.known:
            return self.known[reference]
        w = self.w
        if w.is_single(reference):
            value = self.f.splat(w.single(reference), self.lanes)
        elif kind == "operand":
            layout, dtype = w.kernel.operands[which]
            loaded = self.f.load(self._place(w.operands[which], layout), self.lanes, SIZES[dtype], self.mask)
            value = as_operand(self.b, loaded, dtype, w.real)
        else:
            op, _, _, *args = w.kernel.expressions[which]
            if op == "mask":
                value = self._mask(*w.keys[which])
            elif op == "positions":
                start = self.f.splat(self.b.sitofp(self.column, w.real), self.lanes)
                value = self.b.fadd(start, constant(w.real, [float(i) for i in range(self.lanes)]))
            else:
                value = operate(self.f, op, [self.value(a) for a in args], w.real)
        self.known[reference] = value
        return value

    def _mask(self, key: Any, threshold: Any, scale: Any) -> Any:
        """As `Backend.keep_mask`, by the number of the entry."""
        b, lanes = self.b, self.lanes
        count = b.add(self.f.splat(b.trunc(self.entry, I32), lanes), constant(I32, list(range(lanes))))
        bits = triple32(b, b.add(b.mul(count, constant(I32, 0x9E3779B9, lanes)), self.f.splat(key, lanes)))
        kept = b.icmp_unsigned("<", bits, self.f.splat(threshold, lanes))
        return b.select(kept, self.f.splat(scale, lanes), constant(self.w.real, 0.0, lanes))

    def _place(self, array: Any, layout: str) -> Any:
        return self.f.at(array, self.entry if layout == "full" else self.column)


def _kind(dtype: str) -> Any:
    return REALS.get(dtype) or ir.IntType(8 * SIZES[dtype])
