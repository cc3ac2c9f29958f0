"""From a graph to a list of commands: which operations share one pass over memory, and where every array lies.

An elementwise operation is part of whatever reads its result, and is stored only where that pays or is needed: for a
product, as a result, or for a pass over another shape.  Whatever goes over entries of one shape, and does not have to
wait for the end of a sum, is one pass.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpnet.backends.native.code import SIZES
from bpnet.backends.native.graph import COSTLY, ELEMENTWISE, REDUCTIONS, Graph, Space, Symbol, root_of, space_of
from bpnet.backends.native.loops import STRIP, Pass
from bpnet.backends.native.passes import PassMaker
from bpnet.backends.native.products import Shape as ProductShape
from bpnet.backends.trace import NotTraceableError

NUMBERS, ARENA, FIRST = 0, 1, 2
"""Memories: numbers that change from call to call, intermediate results, and the first array that is passed in."""
LINE = 64
"""Bytes to whose multiples intermediate results are aligned."""
CHUNK = 16384
"""Elements that a tile of a pass handles, about."""
ROWS_TOGETHER = 512
"""Most rows of a tile of a product that is cut along its rows."""
DEEPEST = 50
"""Operations, one on the result of another, that a pass may do on an entry."""
LEAST_PRODUCT = 2**18
"""Multiplications under which a product is one tile."""
COPIED, TAKEN = 1.0, 1000.0
"""Cycles that copying an element for a product takes, and taking a tile; two vectors are multiplied in one."""
SPARE = 0.03
"""Share of the time that fewer tiles may cost, since a thread that is held up then holds up the others."""
MOST_SUMS = 64
"""Parts of a sum over rows, each added up by one thread, where there are fewer than STRIP rows in them."""

Place = tuple[int, int]
"""(memory, bytes into it)."""


def _up(n: int, unit: int) -> int:
    """n, or the next multiple of `unit`."""
    return -(-n // unit) * unit


class _OrderError(NotTraceableError):
    """A step would read what a later one computes."""


@dataclass
class Step:
    """Something that is done as a whole: a product, taken rows, or a pass with several results."""

    kind: str
    space: Space
    symbols: list[Symbol]
    reads: set[Symbol] = field(default_factory=set)
    """Stored symbols that are read from memory."""


@dataclass
class Command:
    """What a team carries out: a function by what it is made from, what it is told, and its number of tiles."""

    kind: str
    form: Any
    told: list[int]
    tiles: int

    def __str__(self) -> str:
        if self.kind == "pass":
            rows, columns = self.told[:2]
            done = [e[0] for e in self.form.expressions] or ["sum"]
            results = ", ".join(kind for kind, *_ in self.form.sinks)
            return f"pass over {rows} x {columns}, {len(done)} operations ({' '.join(done[:6])}), results: {results}"
        if self.kind == "product":
            rows, columns, inner = self.told[:3]
            return f"product {rows} x {inner} x {columns}, {self.tiles} tiles"
        return f"{self.told[0]} rows taken by number"


class Schedule:
    """The commands that compute `outputs`: pairs of a symbol and the memory that it is written to.

    `given_up` are memories of arrays that are passed in and written over.
    """

    def __init__(
        self, graph: Graph, outputs: Sequence[tuple[Symbol, int]], given_up: frozenset[int], threads: int
    ) -> None:
        self.graph, self.threads, self.given_up = graph, threads, given_up
        self.dtype = graph.real.name
        self.size = SIZES[self.dtype]
        self.in_place = True
        """Whether what is given up is written over by the very pass that computes its new values."""
        try:
            self._arrange(outputs)
            self.in_place = not self._conflicts()
        except _OrderError:  # something that is not written over needs what shall be
            self.in_place = False
        if not self.in_place:
            self._arrange(outputs)
        for step in self.steps:
            step.reads = {leaf for symbol in step.symbols for leaf, _ in self._leaves(symbol)} - set(step.symbols)
        self.read = {symbol for step in self.steps for symbol in step.reads}
        self.taken: list[set[tuple[int, int]]] = [set() for _ in self.steps]
        """What lies in the arena during each step: from which byte to before which."""
        self.places: dict[Symbol, Place] = {}
        self.arena = 0
        self._place()
        self.commands = [command for number in range(len(self.steps)) for command in self._commands(number)]

    def _arrange(self, outputs: Sequence[tuple[Symbol, int]]) -> None:
        """Which steps there are, in their order."""
        self.consumers = self._count([symbol for symbol, _ in outputs])
        self.inside: dict[Symbol, tuple[Symbol, int]] = {}
        """Parts of larger arrays: in which, and how many elements from its start."""
        self.last: set[Symbol] = set()
        """What writes over arrays that were passed in comes after all that reads them."""
        self.results = [r for symbol, base in outputs for r in self._result(symbol, base)]
        self.needed = self._needed(self.results)
        self.stored = self._stored()
        self.steps: list[Step] = []
        self.at: dict[Symbol, int] = {}
        for symbol in self.needed:
            if symbol not in self.last:
                self._schedule(symbol, 0)
        end = len(self.steps)
        for symbol in self.needed:
            if symbol in self.last:
                self._schedule(symbol, end)

    def _conflicts(self) -> bool:
        """Whether something is read after it has been written over, or in another order than it is written."""
        written = {}
        for symbol in self.last:
            container, offset = self.inside[symbol]
            written[symbol] = (container.args[0], offset, symbol.size)
        for symbol in self.last:
            for read in self._given(symbol):
                for other, (base, start, size) in written.items():
                    overlaps = read[0] == base and read[1] < start + size and start < read[1] + read[2]
                    together = self.at[symbol] == self.at[other] and read[1:] == (start, size)
                    if overlaps and not together:
                        return True
        return False

    def _given(self, symbol: Symbol) -> Iterator[tuple[int, int, int]]:
        """(memory, first entry, number of entries) of all that `symbol` reads of memories that are given up."""
        for a in symbol.args:
            if isinstance(a, Symbol):
                whole, start = root_of(a)
                if whole.op == "memory" and whole.args[0] in self.given_up:
                    yield whole.args[0], start, a.size
                elif a.op in ELEMENTWISE and a not in self.stored:
                    yield from self._given(a)

    # ---- where results go ---------------------------------------------------------------------------------------

    @staticmethod
    def _count(symbols: list[Symbol]) -> Counter[Symbol]:
        seen: Counter[Symbol] = Counter(symbols)
        todo = list(set(symbols))
        while todo:
            for a in todo.pop().args:
                if isinstance(a, Symbol):
                    if a not in seen:
                        todo.append(a)
                    seen[a] += 1
        return seen

    def _result(self, symbol: Symbol, base: int) -> Iterator[Symbol]:
        """What to compute so that `symbol` comes to lie in the memory `base`, with the places in it."""
        whole = root_of(symbol)[0] if root_of(symbol)[0].size == symbol.size else symbol
        if whole.op == "memory" and whole.args[0] == base:
            return
        offset = 0
        for part in whole.args if whole.op == "concat" else (whole,):
            own = self._own(part, base)
            self.inside[own] = (self.graph.memory(base, (whole.size,), self.graph.real), offset)
            if base in self.given_up:
                self.last.add(own)
            offset += part.size
            yield own

    def _own(self, symbol: Symbol, base: int) -> Symbol:
        """`symbol`, or a copy where it has a place already or memory would be written that is read later."""
        whole, _ = root_of(symbol)
        free = whole.size == symbol.size and whole not in self.inside and whole.op not in ("memory", "concat", "places")
        if free and base in self.given_up:
            free = self.in_place and whole.op in ELEMENTWISE
        if free and (whole.op in ELEMENTWISE or whole.op in ("matmul", "take", *REDUCTIONS)):
            return whole
        if whole.op == "memory" and whole.args[0] in self.given_up:
            raise NotTraceableError("an array that is given up comes back in another's place")
        return self.graph.add("copy", (symbol,), symbol.shape, symbol.dtype)

    def _needed(self, symbols: list[Symbol]) -> list[Symbol]:
        found: set[Symbol] = set()
        todo = list(symbols)
        while todo:
            symbol = todo.pop()
            if symbol not in found:
                found.add(symbol)
                todo += [a for a in symbol.args if isinstance(a, Symbol)]
        return sorted(found, key=lambda s: s.number)

    def _stored(self) -> set[Symbol]:
        """Elementwise results that are written to memory; those of products and sums always are."""
        stored = set(self.results)
        draws: set[Symbol] = set()
        """For the entries of which random numbers are drawn: then for no other entries."""
        for symbol in self.needed:
            if symbol.op in ("matmul", "take", "concat", "view", "transpose"):
                stored.update(root_of(a)[0] for a in symbol.args if isinstance(a, Symbol))
            elif symbol.op == "copy":
                stored.update(root_of(a)[0] for a in symbol.args)
            elif symbol.op in ELEMENTWISE:
                rows = space_of(symbol)[0]
                if draws.intersection(symbol.args):
                    draws.add(symbol)
                for a in symbol.args:
                    if isinstance(a, Symbol) and space_of(a) != space_of(symbol) and a in draws:
                        stored.add(a)
                    row = isinstance(a, Symbol) and space_of(a)[0] == 1 < a.size
                    if row and rows > 1 and a.dtype == self.graph.real and a.op != "places":
                        stored.add(a)
            elif symbol.op == "mask":
                draws.add(symbol)
            if symbol.op in COSTLY and self.consumers[symbol] > 1:
                stored.add(symbol)
        depths: dict[Symbol, int] = {}
        for symbol in self.needed:  # nor may one pass be too long a computation
            inner = [depths[a] for a in symbol.args if isinstance(a, Symbol) and a not in stored]
            depths[symbol] = 1 + max(inner, default=0)
            if depths[symbol] > DEEPEST and symbol.op in ELEMENTWISE and symbol.dtype == self.graph.real:
                stored.add(symbol)
        computed = {s for s in stored if s.op in ELEMENTWISE or s.op in ("copy", "mask", "places")}
        if any(s.dtype != self.graph.real for s in computed):
            raise NotTraceableError("truth values or places as a result of their own")
        return computed

    # ---- what is done together ----------------------------------------------------------------------------------

    def _leaves(self, symbol: Symbol) -> Iterator[tuple[Symbol, bool]]:
        """What the computation of `symbol` reads that is computed elsewhere, and whether entry by entry."""
        if symbol.op == "concat":
            for a in symbol.args:
                yield from self._leaf(a)
            return
        for a in symbol.args:
            if isinstance(a, Symbol):
                yield from self._leaf(a)

    def _leaf(self, a: Symbol) -> Iterator[tuple[Symbol, bool]]:
        whole, _ = root_of(a)
        if whole.op == "transpose":
            yield from self._leaf(whole.args[0])
        elif whole.op == "concat":
            for part in whole.args:
                yield from ((leaf, False) for leaf, _ in self._leaf(part))
            yield whole, False
        elif whole is not a:
            yield whole, False
        elif whole in self.stored or whole.op in ("matmul", "take", "memory", *REDUCTIONS):
            yield whole, True
        else:
            yield from self._leaves(whole)

    def _schedule(self, symbol: Symbol, least: int) -> None:
        """Find the step that computes `symbol`, or make one."""
        reduces = symbol.op in REDUCTIONS
        if not reduces and symbol.op not in ("matmul", "take") and symbol not in self.stored:
            return
        space = space_of(symbol.args[0] if reduces else symbol)
        if symbol.op in ("matmul", "take"):
            self.at[symbol] = len(self.steps)
            self.steps.append(Step(symbol.op, space, [symbol]))
            return
        joined: set[int] = set()
        for leaf, entrywise in self._leaves(symbol):
            if leaf.op == "memory" or leaf.op == "concat":
                continue
            if leaf not in self.at:
                raise _OrderError(f"the result of {leaf.op} is read before it is known")
            step = self.steps[self.at[leaf]]
            along = leaf.op in REDUCTIONS and leaf.args[1] == "columns"
            if step.kind == "pass" and entrywise and (along or leaf.op not in REDUCTIONS):
                fits = step.space == space or (along and step.space[0] == space[0] and space[1] == 1)
                if fits and step.symbols[0].block == symbol.block:
                    least = max(least, self.at[leaf])
                    joined.add(self.at[leaf])
                    continue
            least = max(least, self.at[leaf] + 1)
        for number in range(least, len(self.steps)):
            step = self.steps[number]
            fits = step.space == space or number in joined
            if step.kind == "pass" and fits and step.symbols[0].block == symbol.block:
                step.symbols.append(symbol)
                self.at[symbol] = number
                return
        self.at[symbol] = len(self.steps)
        self.steps.append(Step("pass", space, [symbol]))

    # ---- memory -------------------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Give everything that is stored its place: as soon as it has been read for the last time, that is free."""
        for symbol in self.needed:
            if symbol.op == "concat":
                offset = 0
                for part in symbol.args:
                    whole, start = root_of(part)
                    if whole in self.inside or start or whole.size != part.size or whole not in self.at:
                        raise NotTraceableError("parts that have a place elsewhere are joined")
                    self.inside[whole] = (symbol, offset)
                    offset += part.size
            elif symbol.op == "matmul" and len(symbol.args) == 3:  # added to where the sum is
                self.inside.setdefault(self._sum_place(symbol.args[2]), (symbol, 0))
        lives: dict[Symbol, list[int]] = {}
        for number, step in enumerate(self.steps):
            for symbol in (*step.symbols, *step.reads):
                if symbol.op != "memory":
                    lives.setdefault(self._container(symbol)[0], []).append(number)
        for symbol, numbers in sorted(lives.items(), key=lambda item: (min(item[1]), item[0].number)):
            if symbol.op != "memory":
                self.places[symbol] = (ARENA, self._room(symbol.size * self._bytes(symbol), min(numbers), max(numbers)))

    @staticmethod
    def _bytes(symbol: Symbol) -> int:
        return SIZES[symbol.dtype.name]

    def _sum_place(self, total: Symbol) -> Symbol:
        whole, _ = root_of(total)
        if whole not in self.at or self.consumers[total] > 1 or whole.op in ("memory", "concat"):
            raise NotTraceableError("a sum that is read elsewhere too is added to")
        return whole

    def _container(self, symbol: Symbol) -> tuple[Symbol, int]:
        offset = 0
        while symbol in self.inside:
            symbol, start = self.inside[symbol]
            offset += start
        return symbol, offset

    def _room(self, size: int, first: int, last: int) -> int:
        """A place in the arena that is free from step `first` to step `last`."""
        size = -(-size // LINE) * LINE
        offset = 0
        taken = self.taken[first : last + 1]
        for start, end in sorted(set().union(*taken)):
            if start - offset >= size:
                break
            offset = max(offset, end)
        for places in taken:
            places.add((offset, offset + size))
        self.arena = max(self.arena, offset + size)
        return offset

    def place(self, symbol: Symbol) -> Place:
        """Where the entries of a symbol lie."""
        whole, offset = root_of(symbol)
        container, more = self._container(whole)
        size = self._bytes(whole)
        base, start = container.args if container.op == "memory" else self.places[container]
        return base, start + (offset + more) * size

    # ---- commands -----------------------------------------------------------------------------------------------

    def _commands(self, number: int) -> Iterator[Command]:
        step = self.steps[number]
        if step.kind == "matmul":
            yield self._product(step.symbols[0])
        elif step.kind == "take":
            yield self._take(step.symbols[0])
        else:
            yield from self._pass(step, number)

    def _product(self, symbol: Symbol) -> Command:
        (rows, columns), told = space_of(symbol), []
        inner = symbol.args[0].shape[1]
        for matrix in symbol.args[:2]:
            turned = matrix.op == "transpose"
            matrix = matrix.args[0] if turned else matrix
            apart = (matrix.shape[1], 1)
            told += [*self.place(matrix), *(apart[::-1] if turned else apart)]
        down, across = self._tiles(rows, columns, inner)
        count = -(-columns // across)
        told = [rows, columns, inner, down, across, count, *told]
        told += [*self.place(symbol), columns, int(len(symbol.args) == 3)]
        return Command("product", self.dtype, told, -(-rows // down) * count)

    def _tiles(self, rows: int, columns: int, inner: int) -> Space:
        """Rows and columns of a tile: a result does not depend on how it is cut, so threads may decide.

        The cut of least cost, where a tile costs its multiplications and the copies of its parts of both matrices.
        """
        if self.threads == 1 or rows * columns * inner < LEAST_PRODUCT:
            return rows, columns
        shape, best = ProductShape(self.dtype), (math.inf, rows, columns)
        most = 4 * self.threads
        for down in {_up(-(-rows // n), shape.up) for n in (*range(1, most + 1), -(-rows // ROWS_TOGETHER))}:
            for across in {_up(-(-columns // n), shape.lanes) for n in range(1, most + 1)}:
                tiles = -(-rows // down) * -(-columns // across)
                if tiles > max(most, -(-rows // ROWS_TOGETHER)):
                    continue
                height, width = _up(min(rows, down), shape.up), _up(min(columns, across), shape.lanes)
                one = inner * (height * width / (2 * shape.lanes) + COPIED * (height + width)) + TAKEN
                cost = -(-tiles // self.threads) * one * (1.0 + SPARE * min(self.threads / tiles, 1.0))
                best = min(best, (cost, down, across))
        return best[1], best[2]

    def _take(self, symbol: Symbol) -> Command:
        data, index = symbol.args
        size = data.dtype.itemsize * math.prod(data.shape[1:])
        rows = symbol.shape[0]
        step = max(1, min(rows, CHUNK * 4 // max(size, 1)))
        told = [rows, step, size, data.shape[0], *self.place(data), *self.place(index), *self.place(symbol)]
        return Command("take", index.dtype.name, told, -(-rows // step))

    def _pass(self, step: Step, number: int) -> Iterator[Command]:
        made = PassMaker(self, step)
        rows, columns = step.space
        if made.flat:
            rows, columns = 1, rows * columns
        down, across = self._cut(rows, columns, made.sums_rows), columns
        if rows == 1 and columns > CHUNK and not made.sums_rows and not made.sums_columns:
            across = CHUNK  # sums depend on the shape alone, and not on the threads
        tiles = -(-rows // down) * -(-columns // across)
        told = [rows, columns, down, across, -(-columns // across), *made.told]
        after: list[Command] = []
        for kind, symbol in made.sinks:
            place = self.place(symbol)
            if kind == "rows":
                place = self._sum_parts(kind, self._strips(rows, down), columns, place, number, after)
            elif kind != "store":
                place = self._sum_parts(kind, tiles, 1, place, number, after)
            told += place
        yield Command("pass", made.made, told, tiles)
        yield from reversed(after)

    @staticmethod
    def _cut(rows: int, columns: int, sums: bool) -> int:
        """Rows of a tile; where columns are summed up, it has one strip of rows, or some whole ones."""
        down = max(1, min(rows, CHUNK // max(columns, 1)))
        if sums:
            down = max(down, min(STRIP, -(-rows // MOST_SUMS)))
        return down - down % STRIP if sums and STRIP < down < rows else down

    @staticmethod
    def _strips(rows: int, down: int) -> int:
        """How many sums over rows come of tiles of `down` rows."""
        return rows // down * -(-down // STRIP) + -(-(rows % down) // STRIP)

    def _sum_parts(self, kind: str, count: int, width: int, place: Place, number: int, after: list[Command]) -> Place:
        """Where `count` parts of a result go; the passes that make it of them are put into `after`, the last first."""
        if count == 1:
            return place
        rows, columns, down = 1, count, 1
        if kind == "rows":
            rows, columns, down = count, width, max(CHUNK // width // STRIP, 1) * STRIP
        sink = kind, ("operand", 0), 0, "full"
        form = Pass(self.dtype, (("full", self.dtype),), 0, 0, (), (sink,), kind != "rows")
        if kind == "rows":
            place = self._sum_parts(kind, self._strips(rows, down), columns, place, number, after)
        part = (ARENA, self._room(count * width * self.size, number, number))
        after.append(Command("pass", form, [rows, columns, down, columns, 1, *part, *place], -(-rows // down)))
        return part
