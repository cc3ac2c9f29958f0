"""How many threads run a fused kernel, and how much memory their partial sums take."""

from dataclasses import dataclass

from bpnet.compiler.commands import Fused, FusedKernel, item_bytes

THREADS = 256
"""Threads of a block."""
MAX_BLOCKS = 2048
"""Blocks of a launch, some 16 for each multiprocessor of a large device; each thread goes on to further elements."""
MAX_SUMMING = 1024
"""The same of a launch that sums: as many as such a device runs at a time."""
MAX_PARTIAL_ROWS = 256
"""Blocks, one below the other, that sum the same columns: the last one adds up what all of them found."""
MAX_PARTIAL = 65536
"""Elements that the last block adds up, where one does so for all columns."""
MIN_ROWS = 16
"""Rows that a thread sums, where there are as many: fewer would leave more to the last block."""
COLUMN_THREADS = 32
"""Threads of a block along a row, where it sums columns."""
STRIP_BYTES = 32
"""Of a row that a block takes which goes down its columns again: no less is read at once, and more blocks have work."""
MOST_ROWS_AGAIN = 4096
"""Rows down which one block goes again rather than leave that to further launches; an estimate, not yet measured."""
SERIAL_ROWS = 64
"""Rows that a block adds up one after the other where its columns do not fit into registers."""

TYPES = {"float32": "float", "float64": "double"}
"""The types that kernels compute in, as C++ calls them."""
STORED = TYPES | {"int32": "int", "int64": "long long", "bool": "bool", "bfloat16": "bfloat16"}
"""The types of elements in memory; a bfloat16 is the upper half of a float."""

Sizes = tuple[tuple[int, int], tuple[int, int]]
"""(blocks along x, along y), (threads along x, along y)."""


def form_of(kernel: FusedKernel) -> str:
    """Which of the three loops serves a kernel."""
    return "rows" if kernel.reduces_rows else "columns" if kernel.reduces_columns else "map"


@dataclass(frozen=True)
class Launch:
    """How a command is launched: blocks and threads, elements of scratch memory, and what is left to sum.

    `partial_rows`, where it is not 0: the column-wise sums are left as matrices of so many rows in scratch memory.
    """

    sizes: Sizes
    scratch: int
    partial_rows: int = 0


def width_of(kernel: FusedKernel) -> int:
    """Elements of 16 bytes, of the type that a kernel computes in."""
    return 16 // item_bytes(kernel.dtype)


def launch_of(command: Fused, width: int) -> Launch:
    """How many threads run a command, which takes `width` elements at a time."""
    kernel, rows, columns = command.kernel, command.rows, command.columns
    form, sums = form_of(kernel), sum(kind == "column_sum" for kind, *_ in kernel.results)
    full = sum(kind.startswith("full_") for kind, *_ in kernel.results)
    across = -(-columns // width)
    again = kernel.goes_down_again
    sums += 0 if again else sum(op == "column_sum" for op, *_ in kernel.expressions)
    most_threads = COLUMN_THREADS if form == "columns" else THREADS
    most_threads = STRIP_BYTES // (width * item_bytes(kernel.dtype)) if again else most_threads
    threads = min(most_threads, 1 << (across - 1).bit_length())
    down, x, y, partial_rows = THREADS // threads, -(-across // threads), 1, 0
    if form == "map":
        most = MAX_SUMMING if full else MAX_BLOCKS
        x = min(x, most)
        y = min(-(-rows // down), max(most // x, 1))
    elif form == "columns" and not again:
        y = max(1, min(-(-rows // (MIN_ROWS * down)), MAX_SUMMING // x, MAX_PARTIAL_ROWS))
    elif form == "rows":
        x = min(-(-rows // down), MAX_SUMMING)
        if sums and columns > THREADS * width:  # more than the threads of a block can hold in registers
            x = partial_rows = max(x, -(-rows // SERIAL_ROWS))
        elif sums:
            x = min(x, max(MAX_PARTIAL // columns, 64))
    summing = y if form == "columns" else x
    return Launch(((x, y), (threads, down)), sums * summing * columns + full * x * y, partial_rows)


def blocks_of_part(command: Fused, width: int) -> int:
    """How many blocks of THREADS threads along x run a kernel over a vector that is launched with others."""
    return min(-(-command.columns // (width * THREADS)), MAX_BLOCKS)


def most_tickets(columns: int) -> int:
    """How many tickets a kernel over so many columns may need: one for full sums, and one for each vertical line of
    blocks that sum columns."""
    return 2 + columns // COLUMN_THREADS
