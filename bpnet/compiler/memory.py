"""Memory: where every array lies that is stored.

Intermediate results share one arena; the address of one is free again as soon as it has been read for the last time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bpnet.compiler.commands import ARENA, Address
from bpnet.compiler.fuse import Fusion
from bpnet.compiler.ops import JOINS
from bpnet.compiler.symbols import NotTraceableError, Symbol, root_of


@dataclass(frozen=True)
class Memory:
    """Addresses of whole arrays; and for those that are parts of others, in which, how many elements from its start."""

    addresses: dict[Symbol, Address]
    inside: dict[Symbol, tuple[Symbol, int]]
    arena: int
    """Bytes of intermediate results."""

    def container(self, symbol: Symbol) -> tuple[Symbol, int]:
        """The array that no other contains in which a whole one lies, and how many elements from its start."""
        offset = 0
        while symbol in self.inside:
            symbol, start = self.inside[symbol]
            offset += start
        return symbol, offset

    def row_stride(self, symbol: Symbol) -> int | None:
        """How many elements the rows of a symbol are apart, where they don't follow each other."""
        if symbol.op == "window":
            return int(symbol.args[2])
        return self.inside[symbol][0].shape[-1] if symbol.op == "place" else None

    def address(self, symbol: Symbol) -> Address:
        """Where the entries of a symbol lie."""
        whole, offset = root_of(symbol)
        container, more = self.container(whole)
        memory, start = container.args if container.op == "memory" else self.addresses[container]
        return Address(memory, start + (offset + more) * whole.dtype.itemsize)


def allocate(fusion: Fusion, alignment: int) -> Memory:
    """Give everything that is stored its address; in the arena it begins at a multiple of `alignment` bytes."""
    memory = Memory({}, _contained(fusion), 0)
    lives: dict[Symbol, list[int]] = {}
    for number, step in enumerate(fusion.steps):
        for symbol in (*step.symbols, *step.reads):
            container, _ = memory.container(symbol)
            if container.op != "memory":
                lives.setdefault(container, []).append(number)
    symbols = sorted(lives, key=lambda symbol: (min(lives[symbol]), symbol.number))
    offsets, arena = arrange([(s.size * s.dtype.itemsize, lives[s]) for s in symbols], alignment)
    return Memory({s: Address(ARENA, o) for s, o in zip(symbols, offsets, strict=True)}, memory.inside, arena)


def arrange(arrays: Sequence[tuple[int, Sequence[int]]], alignment: int) -> tuple[list[int], int]:
    """Where arrays begin that share memory, at multiples of `alignment`, and how many bytes it has.

    Each has so many bytes for itself, from the first of the steps that it is needed in to the last.
    """
    # what is in use during each step: from which byte to before which
    taken: list[set[tuple[int, int]]] = [set() for _ in range(1 + max((max(steps) for _, steps in arrays), default=0))]
    offsets: list[int] = []
    total = 0
    for size, steps in arrays:
        size = -(-size // alignment) * alignment
        meanwhile = taken[min(steps) : max(steps) + 1]
        offset = 0
        for start, end in sorted(set().union(*meanwhile)):
            if start - offset >= size:
                break
            offset = max(offset, end)
        for spans in meanwhile:
            spans.add((offset, offset + size))
        offsets.append(offset)
        total = max(total, offset + size)
    return offsets, total


def _contained(fusion: Fusion) -> dict[Symbol, tuple[Symbol, int]]:
    """All that lies in larger arrays: results, parts that are joined, and products that others are added to."""
    inside = dict(fusion.inside)
    computed = {symbol for step in fusion.steps for symbol in step.symbols}
    for symbol in fusion.needed:
        if symbol.op in JOINS:
            offset = 0
            for part in symbol.args:
                whole, start = root_of(part)
                if whole in inside or start or whole.size != part.size or whole not in computed:
                    raise NotTraceableError("parts that have an address elsewhere are joined")
                inside[whole] = (symbol, offset)
                offset += part.size if symbol.op == "concat" else part.shape[-1]
        elif symbol.op in ("matmul", "scatter_add") and len(symbol.args) == 3:  # added to where the sum is
            total = symbol.args[2]
            whole, _ = root_of(total)
            if whole not in computed or fusion.consumers[total] > 1 or whole.op in JOINS:
                raise NotTraceableError("a sum that is read elsewhere too is added to")
            inside.setdefault(whole, (symbol, 0))
        elif symbol.op == "called" and symbol.args[0].captured is not None and _read_once(fusion, symbol.args[2]):
            inside.setdefault(symbol.args[2], (symbol, 0))  # works in place
    return inside


def _read_once(fusion: Fusion, x: Symbol) -> bool:
    """Whether nobody but who is asking reads an array, or anything that lies in it."""
    whole, _ = root_of(x)
    if x.op == "memory" or fusion.consumers[x] > 1:
        return False
    return x is whole and (x.op not in JOINS or all(_lies_alone(fusion, part) for part in x.args))


def _lies_alone(fusion: Fusion, part: Symbol) -> bool:
    whole, _ = root_of(part)
    return fusion.consumers[part] == 1 and (part is whole or fusion.consumers[whole] == 1)
