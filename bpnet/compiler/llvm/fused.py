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
from bpnet.compiler.llvm.arithmetic import as_operand, as_stored, constant, operate, triple32
from bpnet.compiler.llvm.builder import BYTES, I8, I32, I64, REALS, SIZES, Function, Pointer, vector_bytes
from bpnet.compiler.ops import GENERATORS, OPERATIONS, ROW_REDUCTIONS

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
        self.f = f = Function(module, name, [Pointer(I64), I64, Pointer(BYTES), BYTES], public=True)
        b, (self.arguments, tile, self.bases, _) = f.b, f.arguments
        self.position = 0
        rows, self.columns, down, across, count = (self.next_argument() for _ in range(5))
        self.first_row = b.mul(b.sdiv(tile, count), down)
        self.last_row = f.least(rows, b.add(self.first_row, down))
        self.first = b.mul(b.srem(tile, count), across)
        self.last = f.least(self.columns, b.add(self.first, across))
        self.operands = [b.bitcast(self.next_place(), Pointer(self._kind(dtype))) for _, dtype in kernel.operands]
        # values that are the same for the whole kernel
        self.once: dict[Reference, Any] = {}
        for i in range(kernel.numbers):
            self.once["number", i] = self.number(self.next_argument())
        for i in range(kernel.constants):
            self.once["constant", i] = self._real(b.bitcast(self.next_argument(), ir.DoubleType()))
        self.keys: dict[int, tuple[Any, Any, Any]] = {}
        for i, (op, _, _, *args) in enumerate(kernel.expressions):
            if op == "mask":
                self.keys[i] = self._key(args[0])
        self.stored = [result_dtype(kernel, result) for result in kernel.results]
        self.targets = [b.bitcast(self.next_place(), Pointer(self._kind(dtype))) for dtype in self.stored]
        phases = max([1, *(phase + 1 for _, _, phase, _ in kernel.results)])
        self.totals: dict[int, _Total] = {}
        strips = b.sdiv(f.sum(down, STRIP - 1), f.number(STRIP))
        for i, (kind, _, _, layout) in enumerate(kernel.results):
            if kind == "column_sum":
                self.targets[i] = f.at(self.targets[i], b.mul(b.mul(tile, strips), self.columns))
            elif not kind.startswith("store"):
                self.targets[i] = f.at(self.targets[i], tile)
                self.totals[i] = _Total(f, kind, self.real, self.lanes if layout in ("full", "per_column") else 1)
        vectors = b.sdiv(f.sum(b.sub(self.last, self.first), self.lanes - 1), f.number(self.lanes))
        # rows that are added to totals one after the other
        together = b.sdiv(f.number(STRIP), f.least(STRIP, f.most(1, vectors)))
        self.row: dict[Reference, Any] = {}
        with f.loop(self.first_row, self.last_row, carry=[together] if self.totals else []) as row:
            self.row_index = row.index
            self.row = {}
            self.strips = self._strips()
            for phase in range(phases):
                self._phase(phase)
            if self.totals:
                left = f.sum(row.values[0], -1)
                none = b.icmp_signed("==", left, f.number(0))
                with b.if_then(none):
                    for total in self.totals.values():
                        total.end_part()
                row.next = [b.select(none, together, left)]
        for i, total in self.totals.items():
            b.store(total.result(), self.targets[i])
        b.ret_void()

    # ---- arguments ----------------------------------------------------------------------------------------------

    def next_argument(self) -> Any:
        self.position += 1
        return self.f.b.load(self.f.at(self.arguments, self.position - 1))

    def next_place(self) -> Any:
        base, offset = self.next_argument(), self.next_argument()
        return self.f.at(self.f.b.load(self.f.at(self.bases, base)), offset)

    def number(self, slot: Any) -> Any:
        f, b = self.f, self.f.b
        numbers = b.bitcast(b.load(f.at(self.bases, 0)), Pointer(ir.DoubleType()))
        return self._real(b.load(f.at(numbers, slot)))

    def _real(self, double: Any) -> Any:
        return double if self.size == 8 else self.f.b.fptrunc(double, self.real)

    def _kind(self, dtype: str) -> Any:
        return REALS.get(dtype) or (I8 if dtype == "bool" else ir.IntType(8 * SIZES[dtype]))

    def _key(self, parts: int) -> tuple[Any, Any, Any]:
        """(key, threshold, 1 / keep) of a mask, as `bpnet.compiler.random.fold` and `Backend.keep_mask` have them."""
        f, b = self.f, self.f.b
        threshold = self.next_argument()
        state: Any = ir.Constant(I32, 0)
        for _ in range(parts):
            slot, part = self.next_argument(), self.next_argument()
            numbers = b.bitcast(b.load(f.at(self.bases, 0)), Pointer(ir.DoubleType()))
            place = b.select(b.icmp_signed("!=", slot, f.number(0)), part, f.number(0))
            changing = b.fptoui(b.load(f.at(numbers, place)), I64)
            word = b.trunc(b.select(b.icmp_signed("!=", slot, f.number(0)), changing, part), I32)
            state = triple32(b, b.add(b.xor(state, word), ir.Constant(I32, 0x9E3779B9)), lambda n: ir.Constant(I32, n))
        scale = b.fdiv(ir.Constant(ir.DoubleType(), 2.0**32), b.sitofp(threshold, ir.DoubleType()))
        return state, b.trunc(threshold, I32), self._real(scale)

    # ---- going along a row --------------------------------------------------------------------------------------

    def _phase(self, phase: int) -> None:
        f, b, kernel = self.f, self.f.b, self.kernel
        along = [i for i, s in enumerate(kernel.results) if s[2] == phase and s[3] in ("full", "per_column")]
        sums = {
            i: _Total(f, op, self.real, self.lanes)
            for i, (op, _, of_phase, *_) in enumerate(kernel.expressions)
            if op in ROW_REDUCTIONS and of_phase == phase
        }
        self.before: set[Reference] = set()
        for i in along:
            self._before(kernel.results[i][1])
        for i in sums:
            self._before(kernel.expressions[i][3])
        totals = [*sums.values(), *(self.totals[i] for i in along if i in self.totals)]
        if along or sums:
            whole = b.add(self.first, b.and_(b.sub(self.last, self.first), f.number(-self.lanes)))
            with self._parts(whole, totals) as (start, stop), f.loop(start, stop, self.lanes) as column:
                _Body(self, column.index, None).work(along, sums)
            with b.if_then(b.icmp_signed("<", whole, self.last)):
                some = f.first_lanes(b.sub(self.last, whole), self.lanes)
                _Body(self, whole, some).work(along, sums)
        for i, total in sums.items():
            self.row["value", i] = total.result()
        for i, (kind, reference, of_phase, layout) in enumerate(kernel.results):
            if of_phase != phase or layout in ("full", "per_column"):
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

    def _before(self, reference: Reference) -> None:
        """Compute what is the same all along the row before going along it."""
        kind, which = reference
        if reference in self.before:
            return
        self.before.add(reference)
        if kind == "operand" and self.kernel.operands[which][0] in ("per_row", "scalar"):
            self.single(reference)
        elif kind == "value":
            op, layout, _, *args = self.kernel.expressions[which]
            if op in GENERATORS:
                return
            if layout in ("per_row", "scalar"):
                self.single(reference)
            else:
                for a in args:
                    self._before(a)

    def single(self, reference: Reference) -> Any:
        """A value that is the same all along the row."""
        kind, which = reference
        if kind == "literal":
            return ir.Constant(self.real, which)
        if kind in ("number", "constant"):
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

    def _strips(self) -> dict[int, Any]:
        """Where this row is added to, of every column-wise sum."""
        f, b = self.f, self.f.b
        targets = {i: self.targets[i] for i, result in enumerate(self.kernel.results) if result[0] == "column_sum"}
        if not targets:
            return {}
        row = b.sub(self.row_index, self.first_row)
        offset = b.mul(b.udiv(row, f.number(STRIP)), self.columns)
        targets = {i: f.at(target, offset) for i, target in targets.items()}
        with b.if_then(b.icmp_signed("==", b.urem(row, f.number(STRIP)), f.number(0))):
            for target in targets.values():
                with f.loop(self.first, self.last) as column:
                    b.store(ir.Constant(self.real, 0.0), f.at(target, column.index))
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
        n = self.lanes
        if n == 1:
            return vector
        while n > 1:
            n //= 2
            low = f.shuffle(vector, vector, list(range(n)))
            vector = self._join(low, f.shuffle(vector, vector, list(range(n, 2 * n))))
        return b.extract_element(vector, ir.Constant(I32, 0))

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
                place = self.f.at(target, self.entry if layout == "full" else self.column)
                self._store(as_stored(self.b, value, self.w.stored[i]), place, self.w.stored[i])
            elif kind == "column_sum":
                place = self.f.at(self.w.strips[i], self.column)
                self._store(self.b.fadd(self._load(place, self.w.kernel.dtype), value), place, self.w.kernel.dtype)
            else:
                self.w.totals[i].add(value, self.mask)

    def value(self, reference: Reference) -> Any:
        kind, which = reference
        if reference in self.known:
            return self.known[reference]
        kernel, w = self.w.kernel, self.w
        if kind == "literal":
            value = constant(w.real, which, self.lanes)
        elif kind in ("number", "constant") or reference in w.row or self._single(reference):
            value = self.f.splat(w.single(reference), self.lanes)
        elif kind == "operand":
            layout, dtype = kernel.operands[which]
            place = self.f.at(w.operands[which], self.entry if layout == "full" else self.column)
            value = as_operand(self.b, self._load(place, dtype), dtype, w.real)
        else:
            op, _, _, *args = kernel.expressions[which]
            if op == "mask":
                value = self._mask(*w.keys[which])
            elif op == "positions":
                counted = constant(w.real, [float(i) for i in range(self.lanes)], self.lanes)
                start = self.b.sitofp(self.column, w.real)
                value = self.b.fadd(self.f.splat(start, self.lanes), counted)
            else:
                value = operate(self.f, op, [self.value(a) for a in args], w.real)
        self.known[reference] = value
        return value

    def _single(self, reference: Reference) -> bool:
        kind, which = reference
        if kind == "operand":
            return self.w.kernel.operands[which][0] in ("per_row", "scalar")
        return kind == "value" and self.w.kernel.expressions[which][1] in ("per_row", "scalar")

    def _mask(self, key: Any, threshold: Any, scale: Any) -> Any:
        """As `Backend.keep_mask`, by the number of the entry."""
        b, lanes = self.b, self.lanes

        def word(n: int) -> Any:
            return ir.Constant(ir.VectorType(I32, lanes), [n] * lanes)

        counted = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        count = b.add(self.f.splat(b.trunc(self.entry, I32), lanes), counted)
        bits = triple32(b, b.add(b.mul(count, word(0x9E3779B9)), self.f.splat(key, lanes)), word)
        kept = b.icmp_unsigned("<", bits, self.f.splat(threshold, lanes))
        return b.select(kept, self.f.splat(scale, lanes), constant(self.w.real, 0.0, lanes))

    def _load(self, place: Any, dtype: str) -> Any:
        if self.mask is None:
            return self.f.load(place, self.lanes, SIZES[dtype])
        return self.f.load_some(place, self.mask, SIZES[dtype])

    def _store(self, value: Any, place: Any, dtype: str) -> None:
        if self.mask is None:
            self.f.store(value, place, SIZES[dtype])
        else:
            self.f.store_some(value, place, self.mask, SIZES[dtype])
