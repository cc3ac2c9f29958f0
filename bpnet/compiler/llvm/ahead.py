"""Functions of rows as an object file that a program in C links: no interpreter, no threads of its own, no state.

Each is there for several numbers of rows, whose lists of commands share their kernels: any other number is made of
them, the last ones repeated until a block is full.  Commands are carried out as `thread_pool` does, by whoever calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Protocol

from llvmlite import binding as llvm
from llvmlite import ir

from bpnet.compiler.commands import ARENA, FIRST
from bpnet.compiler.llvm.builder import BYTES, I1, I8, I32, I64, REALS, SIZES, VOID, Function, Kernel, Pointer
from bpnet.compiler.llvm.jit import written
from bpnet.compiler.llvm.processor import EAX, ECX, Processor
from bpnet.compiler.llvm.products import ARGUMENTS, UNPACKED_ROWS, Blocking
from bpnet.errors import ExportError, shown

Constant = int | str | list[str] | list[float]
"""What the object has besides functions: a 64-bit whole number, text, or several texts or numbers."""

ALIGNED = 64
"""Bytes to whose multiples weights and parts of the workspace are aligned."""
OK, BAD_ARGUMENT, NO_MEMORY, NO_PROCESSOR, BAD_INPUT, BAD_OUTPUT = range(6)
"""What the functions return."""
MARK = b"bpnet: the weights of a network follow"


class Tiled(Protocol):
    """A command cut into tiles: see `backends.numpy.lower.TiledCommand`."""

    @property
    def kind(self) -> str: ...
    @property
    def made_from(self) -> tuple[Any, ...]: ...
    @property
    def arguments(self) -> tuple[int, ...]: ...
    @property
    def tiles(self) -> int: ...
    def write(self, module: ir.Module, name: str) -> None: ...


@dataclass(frozen=True)
class Input:
    """An array of rows: numbers of a type, or codes, int32, below `codes` (None: any)."""

    dtype: str
    features: int
    codes: int | None = None
    accepts_nan: bool = False

    @property
    def row_bytes(self) -> int:
        return self.features * SIZES[self.dtype]


@dataclass(frozen=True)
class Entry:
    """A function of the object: what it gives for each row, and by numbers of rows how that is computed.

    whole: whether results, computed as numbers, are stored as int32; those below 0 are none.
    runs: commands, and the bytes of their arena.
    """

    name: str
    outputs: int
    whole: bool
    runs: Mapping[int, tuple[Sequence[Tiled], int]]


def object_file(
    name: str,
    processor: Processor,
    dtype: str,
    inputs: Sequence[Input],
    weights: Sequence[bytes],
    entries: Sequence[Entry],
    constants: Mapping[str, Constant],
) -> bytes:
    """The object: functions `<name>_<entry>`, each with one that takes its memory, and constants."""
    return _Object(name, processor, dtype, inputs, weights, entries).made(constants)


class _Object:
    def __init__(
        self,
        name: str,
        processor: Processor,
        dtype: str,
        inputs: Sequence[Input],
        weights: Sequence[bytes],
        entries: Sequence[Entry],
    ) -> None:
        self.name, self.processor, self.dtype = name, processor, dtype
        self.inputs, self.weights, self.entries = inputs, weights, entries
        self.data, self.mark = b"".join(map(_padded, weights)), MARK.ljust(ALIGNED, b"\0")
        self.machine = processor.machine(reloc="pic", codemodel="default")
        self.module = ir.Module(name)
        self.module.triple = processor.triple
        # what is written in modules of its own: by all that it depends on, its kind, declaration and writer
        self.parts: dict[Any, tuple[str, Any, Callable[[ir.Module, str], None]]] = {}
        self.public: set[str] = set()

    def made(self, constants: Mapping[str, Constant]) -> bytes:
        self.places = self._weights()
        for title, value in constants.items():
            self._constant(f"{self.name}_{title}", value)
        sizes = {rows: max(_Layout(self, e, rows).bytes for e in self.entries) for rows in self.entries[0].runs}
        needed, supported = self._workspace_bytes(sizes), self._supported()
        for entry in self.entries:
            self._entry_points(entry, needed, supported, self._blocks(entry))
        made = llvm.parse_assembly(str(self.module))
        for kind, function, write in self.parts.values():
            made.link_in(written(function.name, write, self.machine, kind))
        for value in (*made.functions, *made.global_variables):
            if not value.is_declaration and value.name not in self.public:
                value.linkage = "internal"
        made.verify()
        if self.processor.is_x86:
            llvm.initialize_native_asmparser()
        code = bytearray(self.machine.emit_object(made))
        if self.data:
            place = code.index(self.mark) + ALIGNED
            code[place : place + len(self.data)] = self.data
        return bytes(code)

    def _function(self, name: str, arguments: Sequence[Any], result: Any, public: bool = False) -> Function:
        """A function; what is public has to run on any processor, since it says that another is too old."""
        f = Function(self.module, name, arguments, public, result)
        f.function.attributes.add("nounwind")
        if public:
            self.public.add(name)
            if self.processor.is_x86:
                set.add(f.function.attributes, '"target-cpu"="x86-64" "target-features"="+sse2"')
        else:
            f.function.attributes.add("noinline")
        return f

    def _external(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        """A function that is written elsewhere."""
        found = self.module.globals.get(name)
        return found or ir.Function(self.module, ir.FunctionType(result, list(arguments)), name)

    # ---- data -----------------------------------------------------------------------------------------------------

    def _weights(self) -> list[Any]:
        """Where each array lies.  They are put in once the object is made: as text for LLVM they would be three times
        as long."""
        if not self.data:
            return [ir.Constant(BYTES, None)] * len(self.weights)
        mark, zeros = ir.ArrayType(I8, ALIGNED), ir.ArrayType(I8, len(self.data))
        kind = ir.LiteralStructType([mark, zeros])
        value = ir.Constant(kind, [ir.Constant(mark, bytearray(self.mark)), ir.Constant(zeros, None)])
        found = self._data("weights", value, ALIGNED)
        places = accumulate(map(len, map(_padded, self.weights)), initial=ALIGNED)
        return [_address(found, place) for place, _ in zip(places, self.weights, strict=False)]

    def _data(self, name: str, value: Any, align: int, public: bool = False) -> Any:
        found = ir.GlobalVariable(self.module, value.type, name)
        found.global_constant, found.initializer, found.align = True, value, align
        if public:
            self.public.add(name)
        return found

    def _constant(self, name: str, value: Constant) -> None:
        if isinstance(value, int):
            self._data(name, I64(value), 8, public=True)
        elif isinstance(value, str):
            self._data(name, _text(value), 1, public=True)
        else:
            kind, made = REALS["float64"], list(value)
            if isinstance(value[0], str):
                texts = [self._data(f"{name}.{i}", _text(str(text)), 1) for i, text in enumerate(value)]
                kind, made = BYTES, list(map(_address, texts))
            self._data(name, ir.Constant(ir.ArrayType(kind, len(made)), made), 8, public=True)

    # ---- the processor ----------------------------------------------------------------------------------------------

    def _supported(self) -> Any:
        """supported() -> whether this processor has what the code counts on, of which x86 tells.

        What was found is kept in one byte, whoever writes it: CPUID takes a microsecond, and a virtual machine longer.
        """
        tested = self.processor.tested if self.processor.is_x86 else {}
        f = self._function(f"{self.name}_supported", [], I32, public=True)
        if not tested:
            f.ret(I32(1))
            return f.function
        state = ir.GlobalVariable(self.module, I8, "processor")
        state.linkage, state.initializer = "internal", I8(0)
        known = f.load_atomic(state, "monotonic", 1, typ=I8)
        with f.if_then(f.icmp_unsigned("!=", known, I8(0))):
            f.ret(f.zext(f.icmp_unsigned("==", known, I8(1)), I32))
        fits = f.and_(self._reaches(f, 0, 7), self._reaches(f, 0x80000000, 0x80000001))
        found = f.alloca(I1)
        f.store(fits, found)
        with f.if_then(fits):
            for (leaf, subleaf), some in groupby(tested.items(), lambda item: item[0][:2]):
                registers = _cpuid(f, leaf, subleaf)
                for (_, _, register), mask in some:
                    has = f.and_(f.extract_value(registers, register), I32(mask - 2**32 * (mask >> 31)))
                    has = f.icmp_unsigned("==", has, I32(mask - 2**32 * (mask >> 31)))
                    f.store(f.and_(f.load(found, typ=I1), has), found)
            saved = 0xE6 if self.processor.vector_bytes == 64 else 0x06 if self.processor.vector_bytes == 32 else 0
            if saved:  # registers that the system keeps for each thread
                keeps = f.icmp_unsigned("!=", f.and_(f.extract_value(_cpuid(f, 1, 0), ECX), I32(1 << 27)), I32(0))
                with f.if_else(f.and_(f.load(found, typ=I1), keeps)) as (asks, cannot):
                    with asks:
                        kind = ir.FunctionType(ir.LiteralStructType([I32, I32]), [I32])
                        low = f.extract_value(f.asm(kind, "xgetbv", "={ax},={dx},{cx}", [I32(0)], True), 0)
                        f.store(f.icmp_unsigned("==", f.and_(low, I32(saved)), I32(saved)), found)
                    with cannot:
                        f.store(I1(0), found)
        result = f.load(found, typ=I1)
        f.store_atomic(f.select(result, I8(1), I8(2)), state, "monotonic", 1)
        f.ret(f.zext(result, I32))
        return f.function

    def _reaches(self, f: Function, first: int, leaf: int) -> Any:
        """Whether CPUID has that leaf."""
        signed = [n - 2**32 * (n >> 31) for n in (first, leaf)]
        return f.icmp_unsigned(">=", f.extract_value(_cpuid(f, signed[0], 0), EAX), I32(signed[1]))

    # ---- functions of rows ------------------------------------------------------------------------------------------

    def _workspace_bytes(self, sizes: Mapping[int, int]) -> Any:
        """workspace_bytes(rows)"""
        f = self._function(f"{self.name}_workspace_bytes", [I64], I64, public=True)
        found: Any = max(sizes.values())
        for rows in sorted(sizes, reverse=True):
            most = max(size for other, size in sizes.items() if other <= rows)
            found = f.select(f.compare(f.arguments[0], "<=", rows), most, found)
        f.ret(f.number(found))
        return f.function

    def _entry_points(self, entry: Entry, needed: Any, supported: Any, blocks: Any) -> None:
        """<name>_<entry>(inputs..., rows, results), and <name>_<entry>_in, which is given the workspace as well."""
        name, pointers = f"{self.name}_{entry.name}", [BYTES] * len(self.inputs)
        for own in (True, False):
            f = self._function(
                name if own else f"{name}_in", [*pointers, I64, BYTES, *([] if own else [BYTES])], I32, public=True
            )
            rows, given = f.arguments[len(pointers)], f.arguments
            with f.if_then(f.compare(rows, "==", 0)):
                f.ret(I32(OK))
            wrong = f.compare(rows, "<", 0)
            for pointer in (*given[: len(pointers)], *given[len(pointers) + 1 :]):
                wrong = f.or_(wrong, f.icmp_unsigned("==", pointer, ir.Constant(BYTES, None)))
            with f.if_then(wrong):
                f.ret(I32(BAD_ARGUMENT))
            with f.if_then(f.icmp_unsigned("==", f.call(supported, []), I32(0))):
                f.ret(I32(NO_PROCESSOR))
            if own:
                workspace = f.call(self._external("malloc", BYTES, [I64]), [f.call(needed, [rows])])
                with f.if_then(f.icmp_unsigned("==", workspace, ir.Constant(BYTES, None))):
                    f.ret(I32(NO_MEMORY))
                result = f.call(blocks, [*given, workspace])
                f.call(self._external("free", VOID, [BYTES]), [workspace])
            else:
                result = f.call(blocks, list(given))
            f.ret(result)

    def _blocks(self, entry: Entry) -> Any:
        """blocks(inputs..., rows, results, workspace): one block after the other, and what was wrong with any."""
        count = len(self.inputs)
        f = self._function(f"{entry.name}.blocks", [*[BYTES] * count, I64, BYTES, BYTES], I32)
        sizes = sorted(entry.runs)
        (*xs, rows, y, workspace), most = f.arguments, sizes[-1]
        parts = {size: self._block(entry, size) for size in sizes}
        with f.loop(0, rows, most, carry=[I32(0)]) as block:
            left = f.least(most, f.sub(rows, block.index))
            here = [f.at(x, f.mul(block.index, i.row_bytes)) for x, i in zip(xs, self.inputs, strict=True)]
            given = [*here, left, f.at(y, f.mul(block.index, self._result_bytes(entry))), workspace]
            (done,) = f.blocks("done")
            flags = []
            for size in sizes:
                fits, other = f.blocks("fits", "other")
                f.cbranch(f.compare(left, "<=", size), fits, other if size < most else fits)
                f.position_at_end(fits)
                flags.append((f.call(parts[size], given), fits))
                f.branch(done)
                f.position_at_end(other)
            f.unreachable()
            f.position_at_end(done)
            flag = f.phi(I32)
            for value, origin in flags:
                flag.add_incoming(value, origin)
            block.next.append(f.or_(block.values[0], flag))
        (found,) = block.values
        wrong = f.select(f.icmp_unsigned("==", found, I32(0)), I32(OK), I32(BAD_OUTPUT))
        f.ret(f.select(f.icmp_unsigned("!=", f.and_(found, I32(1)), I32(0)), I32(BAD_INPUT), wrong))
        return f.function

    def _result_bytes(self, entry: Entry) -> int:
        return entry.outputs * SIZES["int32" if entry.whole else self.dtype]

    def _block(self, entry: Entry, size: int) -> Any:
        """block(inputs..., count, results, workspace): up to `size` rows; 1 where an input is none, + 2 an output."""
        f = self._function(f"{entry.name}.block{size}", [*[BYTES] * len(self.inputs), I64, BYTES, BYTES], I32)
        *xs, count, y, workspace = f.arguments
        layout, full = _Layout(self, entry, size), f.compare(count, "==", size)
        start = f.inttoptr(f.round_down(f.add(f.ptrtoint(workspace, I64), ALIGNED - 1), ALIGNED), BYTES)
        filled = [f.at(start, place) for place in layout.inputs]
        with f.if_then(f.not_(full)):
            for x, to, each in zip(xs, filled, self.inputs, strict=True):
                last = f.at(x, f.mul(f.add(count, -1), each.row_bytes))
                _copy(f, to, x, f.mul(count, each.row_bytes))
                with f.loop(count, size) as row:
                    _copy(f, f.at(to, f.mul(row.index, each.row_bytes)), last, each.row_bytes)
        given = [f.select(full, x, to) for x, to in zip(xs, filled, strict=True)]
        own = f.at(start, layout.result)
        target = own if entry.whole else f.select(full, y, own)
        memories = {ARENA: start, **dict(enumerate((*self.places, *given, target), FIRST))}
        bases = f.bitcast(f.at(start, layout.bases), Pointer(BYTES))
        for i, memory in memories.items():
            f.store(f.bitcast(memory, BYTES), f.at(bases, i))
        self._commands(f, f"{entry.name}.arguments{size}", entry.runs[size][0], bases, f.at(start, layout.scratch))
        values = f.mul(count, entry.outputs)
        if entry.whole:
            convert = self._part(("whole", self.dtype), "whole", [BYTES, BYTES, I64], VOID, _write_whole, self.dtype)
            f.call(convert, [y, own, values])
        else:
            with f.if_then(f.not_(full)):
                _copy(f, y, own, f.mul(count, self._result_bytes(entry)))
        infinity = _infinity(self.dtype)
        largest = self._largest(f, "int32" if entry.whole else self.dtype, y, values, -1)
        sound = f.icmp_unsigned("<=", largest, 2**31 - 1 if entry.whole else infinity)
        flags = f.select(sound, I32(0), I32(2))
        for x, each in zip(xs, self.inputs, strict=True):
            if each.dtype == "int32" and each.codes is None:
                continue
            limit = infinity if each.dtype != "int32" else each.codes
            most = infinity if each.accepts_nan and each.dtype != "int32" else -1
            found = self._largest(f, each.dtype, x, f.mul(count, each.features), most)
            flags = f.or_(flags, f.select(f.icmp_unsigned(">=", found, limit), I32(1), I32(0)))
        f.ret(flags)
        return f.function

    def _commands(self, f: Function, name: str, tiled: Sequence[Tiled], bases: Any, scratch: Any) -> None:
        numbers = [n for t in tiled for n in t.arguments]
        table = self._data(name, ir.Constant(ir.ArrayType(I64, len(numbers)), numbers), ALIGNED)
        places = accumulate((len(t.arguments) for t in tiled), initial=0)
        for t, place in zip(tiled, places, strict=False):
            key = t.kind, t.made_from
            kernel = self._part(key, t.kind, Kernel.TYPES, VOID, t.write)
            arguments = f.bitcast(_address(table, 8 * place), Pointer(I64))
            if t.tiles == 1:
                f.call(kernel, [arguments, I64(0), bases, scratch])
                continue
            with f.loop(0, t.tiles) as tile:
                f.call(kernel, [arguments, tile.index, bases, scratch])

    def _part(self, key: Any, kind: str, arguments: Sequence[Any], result: Any, write: Any, *options: Any) -> Any:
        """A function that `write(module, name, *options)` writes, in a module of its own: see `jit.written`."""
        if key not in self.parts:
            function = self._external(f"{kind}{len(self.parts)}", result, arguments)
            self.parts[key] = kind, function, lambda module, name: write(module, name, *options)
        return self.parts[key][1]

    def _largest(self, f: Function, dtype: str, values: Any, count: Any, most: int) -> Any:
        """The largest size of `count` numbers as whole numbers of their bits: of those that are at most `most`."""
        kind = ("largest", dtype)
        largest = self._part(kind, "largest", [BYTES, I64, I64], I64, _write_largest, dtype)
        return f.call(largest, [values, count, I64(most)])


class _Layout:
    """Of the workspace of a block, where each part of it begins, in bytes."""

    def __init__(self, made: _Object, entry: Entry, rows: int) -> None:
        tiled, arena = entry.runs[rows]
        sizes = [arena, max([0, *map(_scratch_bytes, tiled)])]
        sizes += [rows * each.row_bytes for each in made.inputs]
        sizes += [rows * entry.outputs * SIZES[made.dtype], 8 * (FIRST + len(made.places) + len(made.inputs) + 1)]
        *places, end = accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0)
        _, self.scratch, *self.inputs, self.result, self.bases = places
        self.bytes = end + ALIGNED  # it may begin anywhere


def _scratch_bytes(tiled: Tiled) -> int:
    """What a command needs besides the arena: a product where its factors are packed."""
    if tiled.kind != "product":
        return 0
    dtype, _, packed = (*tiled.made_from, False, False)[:3]
    few, together = tiled.arguments[0] <= UNPACKED_ROWS, tiled.arguments[ARGUMENTS.index("b_column_stride")] == 1
    blocking = Blocking(dtype)
    return 0 if few and (together or packed) else blocking.scratch_packed if packed else blocking.scratch


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNED)


def _address(data: Any, offset: int = 0) -> Any:
    """So many bytes from where it begins."""
    return ir.FormattedConstant(BYTES, f"getelementptr (i8, ptr {data.get_reference()}, i64 {offset})")


def _text(value: str) -> Any:
    """Text as C has it; raises ExportError where that would not be all of it."""
    data = bytearray(value.encode(errors="replace") + b"\0")
    if "\0" in value or data[:-1].decode() != value:
        raise ExportError(f"the model has the text {shown(value)}, which C can't hold: give it other names")
    return ir.Constant(ir.ArrayType(I8, len(data)), data)


def _cpuid(f: Function, leaf: int, subleaf: int) -> Any:
    """The registers eax, ebx, ecx and edx."""
    kind = ir.FunctionType(ir.LiteralStructType([I32] * 4), [I32, I32])
    leaf -= 2**32 * (leaf >> 31)
    constraints = "={ax},={bx},={cx},={dx},{ax},{cx}"
    return f.asm(kind, "cpuid", constraints, [I32(leaf), I32(subleaf)], True)


def _copy(f: Function, to: Any, source: Any, size: Any) -> None:
    f.intrinsic("memcpy.p0.p0.i64", VOID, [to, source, f.number(size), I1(0)])


def _infinity(dtype: str) -> int:
    """Its bits."""
    return 0x7F800000 if dtype == "float32" else 0x7FF0000000000000


def _write_largest(module: ir.Module, name: str, dtype: str) -> None:
    """largest(values, count, most): the largest of the numbers without their signs, or of codes, as whole numbers.

    What is more than `most` counts as 0.  Infinity is above all numbers, and what is none above infinity.
    """
    f = Function(module, name, [BYTES, I64, I64], public=True, result=I64)
    kind, (values, count, most) = ir.IntType(8 * SIZES[dtype]), f.arguments
    values, limit = f.bitcast(values, Pointer(kind)), f.trunc(most, kind) if kind.width < 64 else most
    mask = kind(2 ** (kind.width - 1) - 1 if dtype in REALS else -1)
    with f.loop(0, count, carry=[kind(0)]) as i:
        bits = ir.IRBuilder.and_(f, f.load(f.at(values, i.index)), mask)
        bits = ir.IRBuilder.select(f, f.icmp_unsigned("<=", bits, limit), bits, kind(0))
        (known,) = i.values
        i.next.append(ir.IRBuilder.select(f, f.icmp_unsigned(">", bits, known), bits, known))
    f.ret(f.zext(i.values[0], I64) if kind.width < 64 else i.values[0])


def _write_whole(module: ir.Module, name: str, dtype: str) -> None:
    """whole(to, values, count): whole numbers of a floating type as int32."""
    f = Function(module, name, [BYTES, BYTES, I64], public=True)
    to, values, count = f.arguments
    to, values = f.bitcast(to, Pointer(I32)), f.bitcast(values, Pointer(REALS[dtype]))
    with f.loop(0, count) as i:
        f.store(f.fptosi(f.load(f.at(values, i.index)), I32), f.at(to, i.index))
    f.ret_void()
