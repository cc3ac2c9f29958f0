"""What a pass over memory does, in the form from which its machine code is made."""

import struct
from typing import TYPE_CHECKING, Any

from bpnet.backends.native.code import vector_bytes
from bpnet.backends.native.graph import ELEMENTWISE, REDUCTIONS, Symbol, root_of, space_of
from bpnet.backends.native.loops import STRIP, Pass, Reference

if TYPE_CHECKING:
    from bpnet.backends.native.schedule import Schedule, Step


LITERALS = (0.0, 1.0, -1.0, 2.0, 0.5)
"""Numbers that are part of the code, since the compiler makes something of them."""


class PassMaker:
    """Reads the symbols of a step: `made` is the pass, `told` what it is told of its operands, `sinks` its results."""

    def __init__(self, schedule: "Schedule", step: "Step") -> None:
        self.schedule, self.step = schedule, step
        self.operands: list[tuple[str, str]] = []
        self.operand_told: list[int] = []
        self.numbers: list[int] = []
        self.constants: dict[float, int] = {}
        self.expressions: list[tuple[Any, ...]] = []
        self.masks: list[int] = []
        self.known: dict[Any, Reference] = {}
        self.phases: dict[Symbol, int] = {}
        self.sums_rows = False
        """Whether columns are added up."""
        self.results = set(schedule.results)
        self.mine = set(step.symbols)
        self.sinks: list[tuple[str, Symbol]] = []
        found = []
        for symbol in step.symbols:
            if symbol.op not in REDUCTIONS:
                kind, value = "store", symbol
            elif symbol.args[1] == "columns":
                if symbol not in schedule.read and symbol not in self.results:
                    continue
                kind, value = "store", symbol
            else:
                kind = "rows" if symbol.args[1] == "rows" else f"all:{symbol.op}"
                value = symbol.args[0]
            phase = self.phase(value)
            self.sums_rows = self.sums_rows or kind == "rows"
            self.sinks.append((kind, symbol))
            found.append((kind, self.reference(value, phase, top=kind == "store"), phase, self.class_of(value)))
        self.flat = all(kind in ("full", "scalar") for kind, _ in self.operands) and not self.sums_rows
        self.sums_columns = any(e[0].startswith("columns") for e in self.expressions)
        """Whether rows are."""
        self.flat = self.flat and not self.sums_columns and not any(e[0] == "places" for e in self.expressions)
        counts = len(self.numbers), len(self.constants)
        rows, columns = step.space
        long = (rows * columns if self.flat else columns) > STRIP * vector_bytes() // schedule.size
        self.made = Pass(schedule.dtype, tuple(self.operands), *counts, tuple(self.expressions), tuple(found), long)
        constants = [struct.unpack("q", struct.pack("d", value))[0] for value in self.constants]
        self.told = [*self.operand_told, *self.numbers, *constants, *self.masks]

    def class_of(self, symbol: Symbol) -> str:
        """How the entries of a symbol belong to those of the pass: one each, one a row, one a column, or one."""
        (rows, columns), space = space_of(symbol), self.step.space
        if (rows, columns) == space:
            return "full"
        if symbol.size == 1:
            return "scalar"
        return "row" if rows == 1 else "column"

    def phase(self, symbol: Symbol) -> int:
        """How many sums over a row have to be known before an entry of `symbol` can be computed."""
        if symbol not in self.phases:
            mine = symbol in self.mine
            if symbol.op in REDUCTIONS and mine and symbol.args[1] == "columns":
                value = self.phase(symbol.args[0]) + 1
            elif symbol.op in ELEMENTWISE or symbol.op == "copy":
                inside = mine or symbol not in self.schedule.stored
                value = max([0, *(self.phase(a) for a in symbol.args if isinstance(a, Symbol))]) if inside else 0
            else:
                value = 0
            self.phases[symbol] = value
        return self.phases[symbol]

    def reference(self, symbol: Any, phase: int, top: bool = False) -> Reference:
        """Where the pass finds a value in its turn `phase` along a row; `top`: to compute it, not to read it."""
        if not isinstance(symbol, Symbol):
            value = float(symbol)
            if value in LITERALS:
                return "literal", value
            return "constant", self.constants.setdefault(value, len(self.constants))
        key = symbol, phase
        if key not in self.known:
            self.known[key] = self._reference(symbol, phase, top)
        return self.known[key]

    def _reference(self, symbol: Symbol, phase: int, top: bool) -> Reference:
        mine = symbol in self.mine
        if symbol.op == "number":
            self.numbers.append(symbol.args[0])
            return "number", len(self.numbers) - 1
        if symbol.op in REDUCTIONS and mine and symbol.args[1] == "columns":
            earlier = self.phase(symbol) - 1
            return self._expression(
                f"columns:{symbol.op}", self.class_of(symbol), earlier, (self.reference(symbol.args[0], earlier),)
            )
        computed = symbol.op in ELEMENTWISE or symbol.op in ("copy", "mask", "places")
        if computed and (symbol not in self.schedule.stored or (mine and (top or self.phase(symbol) == phase))):
            if symbol.op == "mask":
                return self._mask(symbol)
            if symbol.op == "places":
                return self._expression("places", "row", 0, ())
            args = tuple(self.reference(a, phase) for a in symbol.args)
            return self._expression(symbol.op, self.class_of(symbol), self.phase(symbol), args)
        return self._operand(symbol)

    def _operand(self, symbol: Symbol) -> Reference:
        self.operands.append((self.class_of(symbol), root_of(symbol)[0].dtype.name))
        self.operand_told += self.schedule.place(symbol)
        return "operand", len(self.operands) - 1

    def _expression(self, op: str, kind: str, phase: int, args: tuple[Any, ...]) -> Reference:
        self.expressions.append((op, kind, phase, *args))
        return "value", len(self.expressions) - 1

    def _mask(self, symbol: Symbol) -> Reference:
        threshold, *key = symbol.args
        self.masks.append(threshold)
        for part in key:
            slot = isinstance(part, Symbol)
            self.masks += [int(slot), part.args[0] if slot else part & 0xFFFFFFFF]
        return self._expression("mask", "full", 0, (len(key),))
