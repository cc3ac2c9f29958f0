"""Checks of what the compiler's stages hand on: graphs, where their arrays lie, and lists of commands.

A fault that is found here would otherwise be a wrong number, or memory of somebody else.
"""

from typing import Any

import numpy

from bpnet.compiler.commands import (
    ARENA,
    Array,
    Command,
    CommandList,
    Fused,
    FusedKernel,
    Number,
    Together,
    item_bytes,
    reads,
    writes,
)
from bpnet.compiler.fuse import Fusion
from bpnet.compiler.graph import Graph
from bpnet.compiler.memory import Memory
from bpnet.compiler.ops import (
    COMPARISON,
    COMPARISONS,
    GENERATORS,
    OPERATIONS,
    POINTWISE,
    RANDOM,
    REDUCTIONS,
    ROW_REDUCTIONS,
)
from bpnet.compiler.symbols import Symbol, space_of

STRICT = False
"""Whether everything is verified that is compiled, and a fault of the compiler is an error, not a warning: in tests."""


class VerificationError(Exception):
    """A stage of the compiler made something that can't be right."""


def verified(commands: CommandList) -> CommandList:
    """The commands, verified where all are."""
    if STRICT:
        verify_commands(commands)
    return commands


def _check(right: bool, what: str, *of: Any) -> None:
    """Raise an error that says what is wrong of which operations or commands, unless it is right."""
    if not right:
        raise VerificationError(f"{what}: {', '.join(map(str, of))}" if of else what)


# ---- graphs ----------------------------------------------------------------------------------------------------------


def verify_graph(graph: Graph) -> None:
    """Every operation is in the table, on as many symbols as it takes, all before it, of fitting shapes and types."""
    for number, symbol in enumerate(graph.symbols):
        _check(symbol.number == number and symbol.op in OPERATIONS, "no operation", symbol)
        args = symbol.inputs
        _check(all(a.number < number and a is graph.symbols[a.number] for a in args), "reads what comes later", symbol)
        operation, op = OPERATIONS[symbol.op], symbol.op
        if op in POINTWISE:
            _check(len(symbol.args) == operation.arity, f"takes {operation.arity}", symbol)
            _check(numpy.broadcast_shapes(*(a.shape for a in args)) == symbol.shape, "shapes", symbol)
            truth = operation.kind == COMPARISON
            _check(symbol.dtype == (numpy.bool_ if truth else graph.real), "the type of the result", symbol)
            numbers = args[1:] if op == "where" else [] if truth or op == "astype" else args
            _check(all(a.dtype == graph.real for a in numbers), "types", symbol)
        elif op in REDUCTIONS:
            (x,) = args
            shape = {"row": (*x.shape[:-1], 1), "column": (*(1,) * (x.ndim - 1), *x.shape[-1:]), "full": (1,) * x.ndim}
            _check(symbol.shape == shape[op.partition("_")[0]] and symbol.dtype == x.dtype, "shapes or types", symbol)
        elif op == "matmul":
            a, b, *total = args
            _check(a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2], "shapes", symbol)
            _check(all(s.shape == (*a.shape[:-1], b.shape[-1]) for s in (symbol, *total)), "shapes", symbol)
            _check({s.dtype for s in (symbol, *args)} == {graph.real}, "types", symbol)
        elif op == "view":
            _check(symbol.args[1] + symbol.size <= args[0].size, "beyond the end", symbol)
        elif op == "window":
            (rows, columns), (_, offset, apart) = space_of(symbol), symbol.args
            _check(1 < columns < apart and rows > 1, "no window", symbol)
            _check(offset + (rows - 1) * apart + columns <= args[0].size, "beyond the end", symbol)
        elif op == "beside":
            _check(all(a.op == "place" and a.shape[:-1] == symbol.shape[:-1] for a in args), "shapes", symbol)
            _check(sum(a.shape[-1] for a in args) == symbol.shape[-1], "shapes", symbol)
        elif op == "transpose":
            _check(sorted(symbol.shape) == sorted(args[0].shape) and symbol.ndim > 1, "shapes", symbol)
        elif op == "concat":
            _check(symbol.size == sum(a.size for a in args), "shapes", symbol)
        elif op == "take":
            x, index = args
            _check(index.dtype.kind == "i" and symbol.shape == (*index.shape, *x.shape[1:]), "shapes", symbol)
        elif op == "scatter_add":
            added, index, *total = args
            _check(index.dtype.kind == "i" and index.shape == added.shape[:1], "shapes", symbol)
            _check(
                symbol.shape[1:] == added.shape[1:] and all(s.shape == symbol.shape for s in total), "shapes", symbol
            )
            _check({s.dtype for s in (symbol, added, *total)} == {graph.real}, "types", symbol)


def verify_memory(fusion: Fusion, memory: Memory) -> None:
    """No two arrays of which one is written or read while the other is still needed share memory, and all fit."""
    lives: dict[Symbol, list[int]] = {}
    for number, step in enumerate(fusion.steps):
        for symbol in (*step.symbols, *step.reads):
            if memory.address(symbol).memory == ARENA:
                lives.setdefault(memory.container(symbol)[0], []).append(number)
    spans = []
    for symbol, numbers in lives.items():
        start = memory.addresses[symbol].offset
        spans.append((start, start + symbol.size * symbol.dtype.itemsize, min(numbers), max(numbers), symbol))
    spans.sort(key=lambda span: span[:2])
    for i, (start, end, first, last, symbol) in enumerate(spans):
        _check(start >= 0 and end <= memory.arena, "outside the arena", symbol)
        for other_start, _, other_first, other_last, other in spans[i + 1 :]:
            if other_start >= end:
                break
            _check(last < other_first or other_last < first, "share memory while both are needed", symbol, other)


# ---- commands --------------------------------------------------------------------------------------------------------


def verify_commands(commands: CommandList) -> None:
    """Everything read has been written before, lies inside its memory, and no command writes what it reads otherwise.

    A command may write the very elements that it reads, entry by entry.
    """
    sizes = {ARENA: commands.arena}
    written: dict[int, Any] = {}
    for array in (*commands.results, *commands.arguments):
        if array is not None:
            sizes[array.memory] = array.span.stop
            written[array.memory] = numpy.full(sizes[array.memory], array in commands.arguments)
    written[ARENA] = numpy.zeros(commands.arena, bool)

    for command in commands.commands:
        for part in command.parts if isinstance(command, Together) else (command,):
            if isinstance(part, Fused):
                _verify_fused(part, len(commands.numbers))
        read, written_here = _read_of_others(command), writes(command)
        for array in (*read, *written_here):
            memory, start, stop = array.span
            _check(memory in sizes, "a memory that is none", array.address, command)
            _check(start >= 0 and stop <= sizes[memory], "outside of its memory", array.address, command)
            _check(start % item_bytes(array.dtype) == 0, "not aligned", array.address, command)
        for array in read:
            _check(bool(_bytes_of(array, written).all()), "reads before it is written", array.address, command)
        for number, array in enumerate(written_here):
            for other in (*read, *written_here[:number]):
                right = not array.overlaps(other) or (array == other and other in read)
                _check(right, "writes while it reads or writes", array.address, other.address, command)
            _bytes_of(array, written)[...] = True
    for array in commands.results:
        _check(array is None or bool(written[array.memory].all()), "a result that is not written", array)


def _bytes_of(array: Array, memories: dict[int, Any]) -> Any:
    """Of each byte of an array, what the memories have for it."""
    memory, start, stop = array.span
    size = item_bytes(array.dtype)
    if array.strides is None or start == stop:
        return memories[memory][start:stop]
    strides = [stride * size for stride in array.strides]
    return numpy.ndarray((*array.shape, size), bool, memories[memory], array.offset, (*strides, 1))


def _read_of_others(command: Command) -> list[Array]:
    """What a command reads that others have written."""
    if not isinstance(command, Fused):
        return reads(command)
    found, kernel = [], command.kernel
    results = zip(writes(command), kernel.results, strict=True)
    stored = {w: r[2] for w, r in results if r[0].startswith("store")}
    for i, array in enumerate(reads(command)):
        phases = [e[2] for e in kernel.expressions if ("operand", i) in e[3:]]
        phases += [r[2] for r in kernel.results if r[1] == ("operand", i)]
        later = {phase > stored.get(array, max(phases)) for phase in phases}
        _check(len(later) < 2, "reads before and after it is written", array.address, command)
        if later == {False}:
            found.append(array)
    return found


def _verify_fused(command: Fused, numbers: int) -> None:
    kernel = command.kernel
    given = len(command.operands), len(command.numbers), len(command.constants), len(command.results)
    _check(
        given == (len(kernel.operands), kernel.numbers, kernel.constants, len(kernel.results)),
        f"not given what its kernel takes: {command}",
    )
    slots = [*command.numbers, *(p.slot for mask in command.masks for p in mask.parts if isinstance(p, Number))]
    _check(all(0 <= slot < numbers for slot in slots), f"a number that is none: {command}")
    masks = [e[3] for e in kernel.expressions if e[0] in RANDOM]
    _check(masks == [len(mask.parts) for mask in command.masks], f"not given the masks of its kernel: {command}")
    _verify_kernel(kernel)


def _verify_kernel(kernel: FusedKernel) -> None:
    limits = {"operand": len(kernel.operands), "number": kernel.numbers, "constant": kernel.constants}
    for i, (op, layout, phase, *references) in enumerate(kernel.expressions):
        _check(op in POINTWISE or op in GENERATORS | ROW_REDUCTIONS | {"copy", "column_sum"}, f"no operation: {op}")
        if op in ROW_REDUCTIONS:
            what, number = references[0]
            layouts = {"value": [e[1] for e in kernel.expressions], "operand": [of for of, _ in kernel.operands]}
            single = what not in layouts or layouts[what][number] in ("per_row", "scalar")
            _check(not single, f"{op} of what has one entry a row")
        for kind, which in references if op not in GENERATORS else ():
            _check(kind == "literal" or which < (i if kind == "value" else limits[kind]), f"{op} of what comes later")
            if kind == "value":
                before, inner, earlier, *_ = kernel.expressions[which]
                known = earlier + (before in REDUCTIONS)
                _check(known <= phase, f"{op} reads a reduction before it is known")
                wider = inner == "full" and layout != "full" and op not in REDUCTIONS
                _check(not wider, f"{op} has fewer entries than what it is of")
    for kind, (of, which), _, _ in kernel.results:
        truth = of == "value" and kernel.expressions[which][0] in COMPARISONS
        _check(not truth or kind == "store:bool", f"{kind} of truth values")
