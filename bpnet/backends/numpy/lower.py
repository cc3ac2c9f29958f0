"""A list of commands as the thread pool carries it out: cut into tiles, with everything that its machine code is given.

Tiles of reductions depend on the shape alone, so no result depends on the number of threads.
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from llvmlite import ir

from bpnet.compiler.commands import (
    ARENA,
    Address,
    Command,
    Fused,
    FusedKernel,
    Number,
    Product,
    RowGather,
    RowScatterAdd,
    StridedCopy,
)
from bpnet.compiler.epilogues import epilogue_name
from bpnet.compiler.llvm.builder import SIZES, vector_bytes
from bpnet.compiler.llvm.fused import STRIP, write_fused
from bpnet.compiler.llvm.gather import write_gather, write_strided
from bpnet.compiler.llvm.products import EPILOGUES, Blocking, write_product
from bpnet.compiler.llvm.scatter import write_chains, write_scatter_add

LINE = 64
"""Bytes to whose multiples partial results are aligned."""
TILE = 16384
"""Elements that a tile of a fused kernel handles, about."""
ROWS_TOGETHER = 512
"""Most rows of a tile of a product that is cut along its rows."""
LEAST_PRODUCT = 2**18
"""Multiplications under which a product is one tile."""
PACKED, TAKEN = 1.0, 1000.0
"""Cycles that packing an element for a product takes, and taking a tile; two vectors are multiplied in one."""
SPARE = 0.03
"""Share of the time that fewer tiles may cost, since a thread that is held up then holds up the others."""
MOST_SUMS = 64
"""Parts of a column-wise sum, each added up by one thread, where there are fewer than STRIP rows in them."""

_WRITERS: dict[str, Callable[..., None]] = {
    "fused": write_fused,
    "product": write_product,
    "gather": write_gather,
    "strided": write_strided,
    "chains": write_chains,
    "scatter_add": write_scatter_add,
}


@dataclass(frozen=True)
class TiledCommand:
    """What the thread pool carries out: a function, its arguments, and its number of tiles."""

    kind: str
    made_from: tuple[Any, ...]
    """All that its machine code depends on."""
    arguments: tuple[int, ...]
    tiles: int
    does: Command | str

    def write(self, module: ir.Module, name: str) -> None:
        _WRITERS[self.kind](module, name, *self.made_from)


def lower(commands: Sequence[Command], arena: int, threads: int) -> tuple[list[TiledCommand], int]:
    """The commands for so many threads, and the bytes of the arena with partial results, which lie at its end."""
    lowered, size = [], arena
    for command in commands:
        one = _Lowering(arena, threads)
        lowered += one.lowered(command)
        size = max(size, one.end)
    return lowered, size


def _multiple(n: int, unit: int) -> int:
    """n, or the next multiple of `unit`."""
    return -(-n // unit) * unit


class _Lowering:
    """Of one command, whose partial results lie from byte `end` of the arena on."""

    def __init__(self, end: int, threads: int) -> None:
        self.end, self.threads = _multiple(end, LINE), threads

    def lowered(self, command: Command) -> list[TiledCommand]:
        if isinstance(command, Fused):
            return self._fused(command)
        if isinstance(command, RowScatterAdd):
            return self._scatter_add(command)
        one: dict[type, Any] = {Product: self._product, RowGather: self._gather, StridedCopy: self._strided}
        return [one[type(command)](command)]  # calls are not for the thread pool

    def _product(self, c: Product) -> TiledCommand:
        down, across = self._product_tiles(c)
        count = -(-c.columns // across)
        a, b = ((*m.address, m.row_stride, m.column_stride) for m in (c.a, c.b))
        tiles = -(-c.rows // down) * count
        sizes = (c.rows, c.columns, c.inner, down, across, count)
        out, bias, epilogue = c.out, c.out, None
        if c.epilogue is not None:
            out, bias, epilogue = c.epilogue.results[0], c.epilogue.operands[1], epilogue_name(c.epilogue.kernel)
        ending = int(c.accumulate), *bias, EPILOGUES.index(epilogue)
        arguments = (*sizes, *a, *b, *out, c.columns, *ending)
        if c.stack == 1:
            return TiledCommand("product", (c.dtype,), arguments, tiles, c)
        stack = (tiles, c.a.stack_stride, c.b.stack_stride)
        return TiledCommand("product", (c.dtype, True), (*arguments, *stack), c.stack * tiles, c)

    def _product_tiles(self, c: Product) -> tuple[int, int]:
        """Rows and columns of a tile: a result does not depend on how it is cut, so threads may decide.

        The cut of least cost, where a tile costs its multiplications and the packing of its parts of both matrices.
        """
        if self.threads == 1 or c.rows * c.columns * c.inner < LEAST_PRODUCT:
            return c.rows, c.columns
        blocking, best = Blocking(c.dtype), (math.inf, c.rows, c.columns)
        mr, lanes, most = blocking.mr, blocking.lanes, 4 * self.threads
        for down in {_multiple(-(-c.rows // n), mr) for n in (*range(1, most + 1), -(-c.rows // ROWS_TOGETHER))}:
            for across in {_multiple(-(-c.columns // n), lanes) for n in range(1, most + 1)}:
                tiles = -(-c.rows // down) * -(-c.columns // across)
                if tiles > max(most, -(-c.rows // ROWS_TOGETHER)):
                    continue
                height, width = _multiple(min(c.rows, down), mr), _multiple(min(c.columns, across), lanes)
                one = c.inner * (height * width / (2 * lanes) + PACKED * (height + width)) + TAKEN
                cost = -(-tiles // self.threads) * one * (1.0 + SPARE * min(self.threads / tiles, 1.0))
                best = min(best, (cost, down, across))
        return best[1], best[2]

    def _gather(self, c: RowGather) -> TiledCommand:
        step = max(1, min(c.rows, TILE * 4 // max(c.row_bytes, 1)))
        arguments = (c.rows, step, c.row_bytes, c.source_rows, *c.source, *c.index, *c.out)
        return TiledCommand("gather", (c.index_dtype,), arguments, -(-c.rows // step), c)

    def _scatter_add(self, c: RowScatterAdd) -> list[TiledCommand]:
        """The chains of rows, and their sums, each number's by one thread."""
        firsts = Address(ARENA, self.end)
        following = Address(ARENA, _multiple(self.end + c.out_rows * SIZES["int32"], LINE))
        self.end = _multiple(following.offset + c.rows * SIZES["int32"], LINE)
        chains = (c.rows, c.out_rows, *c.index, *firsts, *following)
        each = c.columns * -(-(c.rows + c.out_rows) // c.out_rows)  # elements that are read and written for a number
        step = max(1, min(c.out_rows, TILE // max(each, 1)))
        sums = (c.out_rows, step, c.columns, *c.source, *firsts, *following, *c.out, int(c.accumulate))
        return [
            TiledCommand("chains", (c.index_dtype,), chains, 1, f"which rows have a number, for the {c}"),
            TiledCommand("scatter_add", (c.dtype,), sums, -(-c.out_rows // step), c),
        ]

    def _strided(self, c: StridedCopy) -> TiledCommand:
        rows = math.prod(c.shape[:-1])
        step = max(1, min(rows, TILE // max(c.shape[-1], 1)))
        arguments = (*c.shape, *c.strides, step, *c.source, *c.out)
        return TiledCommand("strided", (c.itemsize,), arguments, -(-rows // step) if c.count else 0, c)

    def _fused(self, c: Fused) -> list[TiledCommand]:
        """The kernel, and those that make results of partial ones, where its tiles give several."""
        kernel = c.kernel
        rows, columns = (1, c.rows * c.columns) if kernel.flat else (c.rows, c.columns)
        down, across = _rows_of_a_tile(rows, columns, kernel.reduces_columns), columns
        if rows == 1 and columns > TILE and not kernel.reduces_columns and not kernel.reduces_rows:
            across = TILE
        tiles = -(-rows // down) * -(-columns // across)
        results: list[int] = []
        after: list[TiledCommand] = []
        for (kind, *_), address in zip(kernel.results, c.results, strict=True):
            if kind == "column_sum":
                address = self._partial(kernel.dtype, kind, _strips(rows, down), columns, address, after)
            elif not kind.startswith("store"):
                address = self._partial(kernel.dtype, kind, tiles, 1, address, after)
            results += address
        constants = struct.unpack(f"{len(c.constants)}q", struct.pack(f"{len(c.constants)}d", *c.constants))
        masks: list[int] = []
        for mask in c.masks:
            masks.append(mask.threshold)
            for part in mask.parts:  # whether it is the slot of a number, and that or the part itself
                masks += (1, part.slot) if isinstance(part, Number) else (0, part)
        sizes = (rows, columns, down, across, -(-columns // across))
        arguments = (*sizes, *chain(*c.operands), *c.strides, *c.numbers, *constants, *masks, *results)
        long = columns > STRIP * vector_bytes() // SIZES[kernel.dtype]
        return [TiledCommand("fused", (kernel, long), arguments, tiles, c), *reversed(after)]

    def _partial(
        self, dtype: str, kind: str, count: int, width: int, address: Address, after: list[TiledCommand]
    ) -> Address:
        """Where `count` parts of a result go; the kernels that make it of them are put into `after`, the last first."""
        if count == 1:
            return address
        by_columns = kind == "column_sum"
        rows, columns, down = (count, width, max(TILE // width // STRIP, 1) * STRIP) if by_columns else (1, count, 1)
        kernel = FusedKernel(dtype, (("full", dtype),), 0, 0, (), ((kind, ("operand", 0), 0, "full"),))
        text = f"{kind} of {count} partial results, to {address}"
        if by_columns:
            address = self._partial(dtype, kind, _strips(rows, down), columns, address, after)
        part = Address(ARENA, self.end)
        self.end = _multiple(self.end + count * width * SIZES[dtype], LINE)
        arguments = (rows, columns, down, columns, 1, *part, *address)
        after.append(TiledCommand("fused", (kernel, not by_columns), arguments, -(-rows // down), text))
        return part


def _rows_of_a_tile(rows: int, columns: int, sums: bool) -> int:
    """Of a fused kernel; where it adds up columns, a tile has one strip of rows, or some whole ones."""
    down = max(1, min(rows, TILE // max(columns, 1)))
    if sums:
        down = max(down, min(STRIP, -(-rows // MOST_SUMS)))
    return down - down % STRIP if sums and STRIP < down < rows else down


def _strips(rows: int, down: int) -> int:
    """How many column-wise sums come of tiles of `down` rows."""
    return rows // down * -(-down // STRIP) + -(-(rows % down) // STRIP)
