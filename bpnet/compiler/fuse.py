"""Fusion: which operations of a graph are done by one kernel, and in which order.

An elementwise operation is part of whatever reads its result, and is stored only where that pays or is needed: for a
product, as a result, or for a kernel over another shape.  Whatever goes over entries of one shape, and does not have to
wait for the end of a reduction, is one kernel.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpnet.compiler.commands import Span
from bpnet.compiler.graph import Graph
from bpnet.compiler.ops import (
    BY_COLUMN,
    COSTLY,
    GENERATORS,
    INTO_MEMORY,
    JOINS,
    LOOKS,
    POINTWISE,
    RANDOM,
    REDUCTIONS,
    ROW_REDUCTIONS,
)
from bpnet.compiler.symbols import NotTraceableError, Space, Symbol, root_of, space_of

DEEPEST = 50
"""Operations, one on the result of another, that a kernel may do on an entry."""

Outputs = Sequence[tuple[Symbol, int]]
"""Results: a symbol, and the memory that it is written to."""


ATTEMPTS = 8
"""How often fusion is tried with more results computed apart, before all of them are."""


class _OrderError(NotTraceableError):
    """A step would read a symbol that a later one computes."""

    def __init__(self, symbol: Symbol) -> None:
        super().__init__(f"the result of {symbol.op} is read before it is known")
        self.symbol = symbol


@dataclass
class Step:
    """What is done as a whole: a product, a gather of rows, or a fused kernel with several results."""

    kind: str
    """"matmul", "take", "strided", "called" or "fused"."""
    space: Space
    symbols: list[Symbol]
    """Those that it computes."""
    reads: set[Symbol] = field(default_factory=set)
    """Those that it reads from memory."""

    def __str__(self) -> str:
        rows, columns = self.space
        computes = ", ".join(f"%{s.number} {s.op}" for s in self.symbols)
        reads = ", ".join(f"%{s.number}" for s in sorted(self.reads, key=lambda s: s.number))
        return f"{self.kind} over {rows} x {columns}: {computes} from {reads or 'nothing'}"


def fuse(graph: Graph, outputs: Outputs, donated: frozenset[int] = frozenset()) -> "Fusion":
    """The steps that compute `outputs`; `donated` are memories of arguments that are written over.

    Those whose new values can't be written there at once are computed apart, and copied at the end.
    """
    apart: set[Symbol] = set()
    for _ in range(ATTEMPTS):
        try:
            fusion = Fusion(graph, outputs, donated, apart)
            found = fusion.conflicts()
            if not found:
                return fusion
        except _OrderError as error:  # something that is not written over needs what shall be
            found = {error.symbol}
        if found <= apart:
            break
        apart |= found
    return Fusion(graph, outputs, donated, None)


class Fusion:
    """The steps of a graph.

    apart: new values that are not written to donated memory by the step that computes them, but by a copy at the end;
    None: all are.
    needed: all that the results depend on, in the graph's order.
    consumers: how many operations and results need a symbol.
    stored: elementwise results that are written to memory; those of products and reductions always are.
    read: what steps read from memory.
    results: what is written to the memory of a result.
    draws: what random numbers are drawn for, entry by entry.
    inside: results as parts of larger arrays: in which, and how many elements from its start.
    """

    def __init__(self, graph: Graph, outputs: Outputs, donated: frozenset[int], apart: set[Symbol] | None) -> None:
        self.graph, self.donated, self.apart = graph, donated, apart
        symbols = [symbol for symbol, _ in outputs]
        self.consumers = Counter([*symbols, *(a for symbol in _needed(symbols) for a in symbol.inputs)])
        self.inside: dict[Symbol, tuple[Symbol, int]] = {}
        self.parts = _parts(symbols)
        # what writes over arguments comes after all that reads them
        self.last: set[Symbol] = set()
        self.results = {result for symbol, base in outputs for result in self._result(symbol, base)}
        self.needed = _needed(self.results)
        self.draws: set[Symbol] = set()
        self.stored = self._stored()
        self.steps: list[Step] = []
        self.sites: dict[Any, int] = {}
        # the step that computes a symbol
        self.at: dict[Symbol, int] = {}
        for symbol in self.needed:
            if symbol not in self.last:
                self._schedule(symbol, 0)
        end = len(self.steps)
        for symbol in self.needed:
            if symbol in self.last:
                self._schedule(symbol, end)
        for step in self.steps:
            step.reads = {leaf for symbol in step.symbols for leaf, _ in self._leaves(symbol)} - set(step.symbols)
        self.read = {symbol for step in self.steps for symbol in step.reads}

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))

    def conflicts(self) -> set[Symbol]:
        """What reads something after it has been written over, or in another order than it is written."""
        found: set[Symbol] = set()
        inside = {symbol: self.inside[symbol] for symbol in self.last}
        written = {s: Span(whole.args[0], offset, offset + s.size) for s, (whole, offset) in inside.items()}
        for symbol in self.last:
            if any(s.op in ROW_REDUCTIONS for s in self.steps[self.at[symbol]].symbols):
                found.add(symbol)  # a row is then read several times
            for read in self._read_of_donated(symbol):
                for other, span in written.items():
                    together = self.at[symbol] == self.at[other] and read == span
                    if read.overlaps(span) and not together:
                        found.add(symbol)
        return found

    def _read_of_donated(self, symbol: Symbol) -> Iterator[Span]:
        """All that `symbol` reads of donated memories, in entries."""
        for a in symbol.inputs:
            whole, start = root_of(a)
            if whole.op == "memory" and whole.args[0] in self.donated:
                size = (space_of(a)[0] - 1) * a.args[2] + a.shape[-1] if a.op == "window" else a.size
                yield Span(whole.args[0], start, start + size)
            elif a.op in POINTWISE and a not in self.stored:
                yield from self._read_of_donated(a)

    # ---- where results go ---------------------------------------------------------------------------------------

    def _result(self, symbol: Symbol, base: int) -> Iterator[Symbol]:
        """What to compute so that `symbol` comes to lie in the memory `base`."""
        whole = root_of(symbol)[0] if root_of(symbol)[0].size == symbol.size else symbol
        if whole.op == "memory" and whole.args[0] == base:
            return
        offset = 0
        for part in whole.args if whole.op == "concat" else (whole,):
            own = self._own(part, base)
            self.inside[own] = (self.graph.memory(base, (whole.size,), self.graph.real), offset)
            if base in self.donated:
                self.last.add(own)
            offset += part.size
            yield own

    def _own(self, symbol: Symbol, base: int) -> Symbol:
        """`symbol`, or a copy where it has a place already or memory would be written that is read later."""
        whole, _ = root_of(symbol)
        free = whole.size == symbol.size and whole not in self.inside and whole not in self.parts
        if free and base in self.donated:
            free = self.apart is not None and whole not in self.apart and whole.op in POINTWISE
        if free and (whole.op in POINTWISE or whole.op in INTO_MEMORY | REDUCTIONS):
            return whole
        if whole.op == "memory" and whole.args[0] in self.donated:
            raise NotTraceableError("an array that is given up comes back in another's place")
        return root_of(self.graph.copy(symbol, self.parts | self.inside.keys()))[0]

    def _stored(self) -> set[Symbol]:
        """Elementwise results that are written to memory; those of products and reductions always are."""
        stored = set(self.results)
        # for the entries of which random numbers are drawn: then for no other entries
        draws = self.draws
        for symbol in self.needed:
            if symbol.op in INTO_MEMORY | JOINS | LOOKS | {"transpose", "copy"}:
                stored.update(root_of(a)[0] for a in symbol.inputs)
            elif symbol.op in POINTWISE:
                rows = space_of(symbol)[0]
                if draws.intersection(symbol.args):
                    draws.add(symbol)
                for a in symbol.inputs:
                    row = rows > 1 and space_of(a)[0] == 1 < a.size and a.dtype == self.graph.real
                    if (row and a.op not in BY_COLUMN) or (a in draws and space_of(a) != space_of(symbol)):
                        stored.add(a)
            elif symbol.op in RANDOM:
                draws.add(symbol)
            if symbol.op in COSTLY and self.consumers[symbol] > 1:
                stored.add(symbol)
        depths: dict[Symbol, int] = {}
        for symbol in self.needed:  # nor may one kernel be too long a computation
            depths[symbol] = 1 + max((depths[a] for a in symbol.inputs if a not in stored), default=0)
            if depths[symbol] > DEEPEST and symbol.op in POINTWISE and symbol.dtype == self.graph.real:
                stored.add(symbol)
        return {s for s in stored if s.op in POINTWISE | GENERATORS | {"copy", "place"}}

    # ---- what is done together ----------------------------------------------------------------------------------

    def _leaves(self, symbol: Symbol) -> Iterator[tuple[Symbol, bool]]:
        """What the computation of `symbol` reads that is computed elsewhere, and whether entry by entry."""
        for a in symbol.inputs:
            yield from self._leaf(a)

    def _leaf(self, a: Symbol) -> Iterator[tuple[Symbol, bool]]:
        whole, _ = root_of(a)
        if whole.op == "transpose":
            yield from self._leaf(whole.args[0])
        elif whole.op in JOINS:
            for part in whole.args:
                yield from ((leaf, False) for leaf, _ in self._leaf(part))
            yield whole, False
        elif whole is not a:
            yield whole, False
        elif whole in self.stored or whole.op in INTO_MEMORY or whole.op in REDUCTIONS or whole.op == "memory":
            yield whole, True
        else:
            yield from self._leaves(whole)

    def _schedule(self, symbol: Symbol, least: int) -> None:
        """Find the step that computes `symbol`, or make one."""
        reduces = symbol.op in REDUCTIONS
        if not reduces and symbol.op not in INTO_MEMORY and symbol not in self.stored:
            return
        space = space_of(symbol.args[0] if reduces else symbol)
        if symbol.op in INTO_MEMORY:  # of a call there is one step for all that it gives
            kind, new = symbol.op, len(self.steps)
            number = self.sites.setdefault(symbol.args[0], new) if kind == "called" else new
        else:
            kind, number = "fused", self._kernel(symbol, space, least)
        if number == len(self.steps):
            self.steps.append(Step(kind, space, []))
        self.steps[number].symbols.append(symbol)
        self.at[symbol] = number

    def _kernel(self, symbol: Symbol, space: Space, least: int) -> int:
        """The number of the first step whose kernel can compute `symbol`, too, or of a new one."""

        def shares(step: Step) -> bool:
            return step.kind == "fused" and step.symbols[0].block == symbol.block

        joined: set[int] = set()
        # a kernel's numbers are drawn, and its rows reduced, for all of its columns
        every_column = symbol.op in ROW_REDUCTIONS or not self.draws.isdisjoint((symbol, *symbol.inputs))
        for leaf, entrywise in self._leaves(symbol):
            if leaf.op == "memory" or leaf.op in JOINS:
                continue
            if leaf not in self.at:
                raise _OrderError(leaf)
            number, row_wise = self.at[leaf], leaf.op in ROW_REDUCTIONS
            step = self.steps[number]
            by_row = row_wise and step.space[0] == space[0] and space[1] == 1
            fits = step.space == space or (by_row and not every_column)
            if shares(step) and fits and entrywise and (row_wise or leaf.op not in REDUCTIONS):
                least = max(least, number)
                joined.add(number)
            else:
                least = max(least, number + 1)
        for number in range(least, len(self.steps)):
            step = self.steps[number]
            if shares(step) and (step.space == space or number in joined):
                return number
        return len(self.steps)


def _parts(symbols: list[Symbol]) -> set[Symbol]:
    """What is computed as a part of a larger array that something else reads; a result may be one that nothing does."""
    results = [root_of(symbol)[0] for symbol in symbols]
    start = [part for r in results for part in (r.args if r.op == "concat" else (r,))]
    return {root_of(part)[0] for symbol in _needed(start) if symbol.op in JOINS for part in symbol.args}


def _needed(symbols: Iterable[Symbol]) -> list[Symbol]:
    """All that these depend on, and they themselves, in the graph's order."""
    found: set[Symbol] = set()
    todo = list(symbols)
    while todo:
        symbol = todo.pop()
        if symbol not in found:
            found.add(symbol)
            todo += symbol.inputs
    return sorted(found, key=lambda s: s.number)
