"""From a function as a graph to its list of commands: fusion, memory, and a command for each step."""

import math
from collections.abc import Callable
from typing import Any

from bpnet.compiler import verify
from bpnet.compiler.commands import (
    FIRST,
    Address,
    Array,
    Call,
    Command,
    CommandList,
    Expression,
    Fused,
    FusedKernel,
    KernelResult,
    Mask,
    Matrix,
    Number,
    Product,
    Reference,
    RowGather,
    RowScatterAdd,
    StridedCopy,
)
from bpnet.compiler.fuse import Fusion, Step, fuse
from bpnet.compiler.memory import Memory, allocate
from bpnet.compiler.ops import GENERATORS, POINTWISE, RANDOM, REDUCTIONS, ROW_REDUCTIONS
from bpnet.compiler.symbols import NotTraceableError, Symbol, root_of, space_of
from bpnet.compiler.trace import Traced

LITERALS = (0.0, 1.0, -1.0, 2.0, 0.5)
"""Numbers that are part of the code, since compilers make something of them."""


def build(traced: Traced, donated: int = 0, alignment: int = 64) -> CommandList:
    """The commands of a function, whose first `donated` arguments are given up: its first results are written there.

    Intermediate results begin at multiples of `alignment` bytes of the arena.
    """
    outputs: list[tuple[Symbol, int]] = []
    results: list[Array | None] = []
    free = FIRST + sum(a is not None for a in traced.arguments)
    for i, symbol in enumerate(traced.results):
        array = traced.arguments[i] if i < donated else None
        if symbol is None:
            results.append(None)
            continue
        if array is None:
            array = Array(symbol.shape, symbol.dtype.name, free)
            free += 1
        elif symbol.shape != array.shape:
            raise NotTraceableError("a result of another shape than what is given up for it")
        results.append(array)
        outputs.append((symbol, array.memory))
    over = frozenset(a.memory for a in traced.arguments[:donated] if a is not None)
    fusion = fuse(traced.graph, outputs, over)
    memory = allocate(fusion, alignment)
    commands = tuple(
        _Kernel(step, fusion, memory).command() if step.kind == "fused" else _COMMANDS[step.kind](step, memory)
        for step in fusion.steps
    )
    made = CommandList(commands, memory.arena, tuple(traced.graph.numbers), traced.arguments, tuple(results))
    if verify.STRICT:
        verify.verify_graph(traced.graph)
        verify.verify_memory(fusion, memory)
    return verify.verified(made)


def _product(step: Step, memory: Memory) -> Product:
    (symbol,) = step.symbols
    matrices = []
    for matrix in symbol.args[:2]:
        turned = matrix.op == "transpose"
        matrix = matrix.args[0] if turned else matrix
        rows, columns = matrix.shape[-2:]
        apart = memory.row_stride(matrix) or columns
        down, along = (1, apart) if turned else (apart, 1)
        matrices.append(Matrix(memory.address(matrix), down, along, rows * columns))
    (a, b), (rows, columns), inner = matrices, symbol.shape[-2:], symbol.args[0].shape[-1]
    accumulate, stack = len(symbol.args) == 3, math.prod(symbol.shape[:-2])
    return Product(symbol.dtype.name, rows, columns, inner, a, b, memory.address(symbol), accumulate, stack)


def _call(step: Step, memory: Memory) -> Call:
    site, _, *inputs = step.symbols[0].args

    def array(symbol: Symbol) -> Array:
        return Array(symbol.shape, symbol.dtype.name, *memory.address(symbol))

    given = [Number(s.args[0]) if s.op == "number" else array(s) for s in inputs]
    outputs = [(symbol.args[1], array(symbol)) for symbol in step.symbols]
    return Call(site.function, site.text, tuple(given), tuple(outputs), site.captured)


def _strided(step: Step, memory: Memory) -> StridedCopy:
    (symbol,) = step.symbols
    source, offset, strides = symbol.args
    address = memory.address(source)
    size = symbol.dtype.itemsize
    axes: list[tuple[int, int]] = []
    for n, stride in zip(symbol.shape, strides, strict=True):  # axes that follow each other are one
        if n != 1 and axes and axes[-1][1] == stride * n:
            axes[-1] = axes[-1][0] * n, stride
        elif n != 1:
            axes.append((n, stride))
    if len(axes) > 4:
        raise NotTraceableError(f"a copy along {len(axes)} axes")
    axes = [(1, 0)] * (4 - len(axes)) + axes
    sizes, apart = (tuple(some) for some in zip(*axes, strict=True))
    return StridedCopy(
        size, sizes, apart, Address(address.memory, address.offset + offset * size), memory.address(symbol)
    )


def _gather(step: Step, memory: Memory) -> RowGather:
    (symbol,) = step.symbols
    source, index = symbol.args
    row_bytes = source.dtype.itemsize * math.prod(source.shape[1:])
    addresses = memory.address(source), memory.address(index), index.dtype.name, memory.address(symbol)
    return RowGather(index.size, source.shape[0], row_bytes, *addresses)


def _scatter_add(step: Step, memory: Memory) -> RowScatterAdd:
    (symbol,) = step.symbols
    rows, index, *total = symbol.args
    addresses = memory.address(rows), memory.address(index), index.dtype.name, memory.address(symbol)
    count, columns = symbol.shape
    return RowScatterAdd(symbol.dtype.name, rows.shape[0], count, columns, *addresses, bool(total))


class _Kernel:
    """Reads the symbols of a step."""

    def __init__(self, step: Step, fusion: Fusion, memory: Memory) -> None:
        self.step, self.fusion, self.memory = step, fusion, memory
        self.computed = set(step.symbols)
        self.operands: list[tuple[str, str]] = []
        self.addresses: list[Address] = []
        self.strides: list[int] = []
        self.numbers: list[int] = []
        self.constants: dict[float, int] = {}
        self.expressions: list[Expression] = []
        self.masks: list[Mask] = []
        self.known: dict[Any, Reference] = {}
        self.phases: dict[Symbol, int] = {}

    def command(self) -> Fused:
        results: list[KernelResult] = []
        addresses, strides = [], []
        read, kept = self.fusion.read, self.fusion.results
        for symbol in self.step.symbols:
            if symbol.op in ROW_REDUCTIONS and symbol not in read and symbol not in kept:
                continue  # only the kernel itself reads it
            reduces = symbol.op in REDUCTIONS and symbol.op not in ROW_REDUCTIONS
            store = "store" if symbol.dtype == symbol.graph.real else f"store:{symbol.dtype.name}"
            kind, value = (symbol.op, symbol.args[0]) if reduces else (store, symbol)
            phase = self.phase(value)
            layout = "window" if symbol.op == "place" else self.layout(value).replace("window", "full")
            results.append((kind, self.reference(value, phase, top=not reduces), phase, layout))
            addresses.append(self.memory.address(symbol))
            if (apart := self.memory.row_stride(symbol)) is not None:
                strides.append(apart)
        kernel = FusedKernel(
            self.step.symbols[0].graph.real.name, tuple(self.operands), len(self.numbers), len(self.constants),
            tuple(self.expressions), tuple(results),
        )  # fmt: skip
        rows, columns = self.step.space
        operands, numbers, constants = tuple(self.addresses), tuple(self.numbers), tuple(self.constants)
        masks, windows = tuple(self.masks), (*self.strides, *strides)
        return Fused(kernel, rows, columns, operands, numbers, constants, masks, tuple(addresses), windows)

    def layout(self, symbol: Symbol) -> str:
        """For which entries of the kernel a symbol has one of its own."""
        rows, _ = space = space_of(symbol)
        if symbol.op == "window":
            return "window"
        if space == self.step.space:
            return "full"
        if symbol.size == 1:
            return "scalar"
        return "per_column" if rows == 1 else "per_row"

    def phase(self, symbol: Symbol) -> int:
        """How many row-wise reductions have to be known before an entry of `symbol` can be computed."""
        if symbol not in self.phases:
            value, mine = 0, symbol in self.computed
            if symbol.op in ROW_REDUCTIONS and mine:
                value = self.phase(symbol.args[0]) + 1
            elif symbol.op in POINTWISE | {"copy", "place"} and (mine or symbol not in self.fusion.stored):
                value = max([0, *map(self.phase, symbol.inputs)])
            self.phases[symbol] = value
        return self.phases[symbol]

    def reference(self, symbol: Any, phase: int, top: bool = False) -> Reference:
        """Where the kernel finds a value in a phase; `top`: to compute it, not to read it."""
        if not isinstance(symbol, Symbol):
            value = float(symbol)
            if value in LITERALS and (value or math.copysign(1.0, value) > 0.0):  # -0.0 equals 0.0
                return "literal", value
            return "constant", self.constants.setdefault(value, len(self.constants))
        if symbol in self.computed and self.layout(symbol) in ("per_row", "scalar"):
            phase = self.phase(symbol)  # such values are known in the phases that follow
        key = symbol, phase
        if key not in self.known:
            self.known[key] = self._reference(symbol, phase, top)
        return self.known[key]

    def _reference(self, symbol: Symbol, phase: int, top: bool) -> Reference:
        mine = symbol in self.computed
        if symbol.op == "number":
            self.numbers.append(symbol.args[0])
            return "number", len(self.numbers) - 1
        if symbol.op in ROW_REDUCTIONS and mine:
            earlier = self.phase(symbol) - 1
            value = self.reference(symbol.args[0], earlier)
            return self._expression(symbol.op, self.layout(symbol), earlier, value)
        if symbol.op == "place":
            return self.reference(symbol.args[0], phase)
        computed = symbol.op in POINTWISE or symbol.op == "copy" or symbol.op in GENERATORS
        if not computed or (symbol in self.fusion.stored and not (mine and (top or self.phase(symbol) == phase))):
            self.operands.append((self.layout(symbol), root_of(symbol)[0].dtype.name))
            if symbol.op == "window":
                self.strides.append(symbol.args[2])
            self.addresses.append(self.memory.address(symbol))
            return "operand", len(self.operands) - 1
        if symbol.op in RANDOM:
            threshold, *given = symbol.args
            parts = [Number(k.args[0]) if isinstance(k, Symbol) else k & 0xFFFFFFFF for k in given]
            self.masks.append(Mask(threshold, tuple(parts)))
            return self._expression(symbol.op, "full", 0, len(parts))
        if symbol.op == "positions":
            return self._expression("positions", "per_column", 0)
        if symbol.op == "table":
            return self._expression("table", "per_column", 0, *symbol.args)
        args = tuple(self.reference(a, phase) for a in symbol.args)
        return self._expression(symbol.op, self.layout(symbol), phase, *args)

    def _expression(self, op: str, layout: str, phase: int, *references: Any) -> Reference:
        self.expressions.append((op, layout, phase, *references))
        return "value", len(self.expressions) - 1


_COMMANDS: dict[str, Callable[[Step, Memory], Command]] = {
    "matmul": _product,
    "take": _gather,
    "scatter_add": _scatter_add,
    "called": _call,
    "strided": _strided,
}
