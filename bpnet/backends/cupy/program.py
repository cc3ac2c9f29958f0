"""A list of commands on a CUDA device: kernels compiled, memory set aside, and what launches each command."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import cupy
import numpy

from bpnet.backends.cupy import cublaslt
from bpnet.compiler.commands import (
    ARENA,
    Array,
    Call,
    Command,
    CommandList,
    Fused,
    FusedKernel,
    Matrix,
    Number,
    Product,
    RowGather,
    StridedCopy,
    result_dtype,
)
from bpnet.compiler.cuda import emit, gather
from bpnet.compiler.cuda.launch import launch_of, spreads, width_of
from bpnet.compiler.epilogues import epilogue_name, spans_read, spans_written

ALIGNMENT = 256
"""Bytes to whose multiples intermediate results are aligned, as those of CuPy's allocator are."""

Calls = list[tuple[Any, ...]]
"""Functions, each with its arguments."""
Launcher = Callable[[Sequence[Any], int], Calls]
"""launcher(memories, numbers): the calls that launch a command, where memories begin at these pointers, and the numbers
that change from call to call lie at that address."""


class Program:
    """The commands of a function for arguments of certain shapes and types, and the memory that they work in.

    `values` are the numbers that change from call to call, for what is not compiled.
    """

    values: Sequence[float] = ()

    def __init__(self, commands: CommandList, indirect: frozenset[int] = frozenset()) -> None:
        """`indirect`: memories of results that lie where the number after the others says, an address."""
        self.commands, self.indirect = commands, indirect
        fused = [c for c in commands.commands if isinstance(c, Fused)]
        scratch, tickets = zip(*[(0, 1), *map(_needs, fused)], strict=True)
        self.scratch = -(-commands.arena // ALIGNMENT) * ALIGNMENT
        """Where in the arena kernels leave partial sums, behind intermediate results."""
        self.size = self.scratch + max(scratch) * (numpy.dtype(fused[0].kernel.dtype).itemsize if fused else 0)
        self.tickets = cupy.zeros(max(tickets), numpy.uint32)
        self.workspaces: list[Any] = []
        """What products by cuBLASLt need besides, the largest last; a graph may use the others."""
        arguments = {a.memory for a in commands.arguments if a is not None}
        self.first_writing = next(
            (i for i, c in enumerate(commands.commands) if any(m in arguments for m, *_ in spans_written(c))),
            len(commands.commands),
        )
        self.launchers = [self._launcher(c) for c in commands.commands]

    @cached_property
    def arena(self) -> Any:
        """The memory of intermediate results, for who launches the commands again and again."""
        return self.new_arena()

    def new_arena(self) -> Any:
        """Memory of intermediate results, which may be freed once the commands have been launched."""
        return cupy.empty(self.size, numpy.uint8)

    def memories(self, arena: Any, arguments: Sequence[Any], results: Sequence[Any] = ()) -> list[Any]:
        """Where every memory begins: those of intermediate results, of arguments, and of new results."""
        return [None, arena.data, *(a.data for a in arguments), *(a.data for a in results)]

    def calls(self, memories: Sequence[Any], numbers: int) -> tuple[Calls, Calls]:
        """What launches all commands, in order: those before any writes to an argument, and the rest."""
        made = [launcher(memories, numbers) for launcher in self.launchers]
        computing, writing = made[: self.first_writing], made[self.first_writing :]
        return [call for some in computing for call in some], [call for some in writing for call in some]

    def _launcher(self, command: Command) -> Launcher:
        if isinstance(command, Fused):
            return lambda memories, numbers: self._fused(command, memories, numbers)
        if isinstance(command, RowGather):
            return lambda memories, _: [_gather(command, memories)]
        if isinstance(command, Call):
            return lambda memories, _: [(self._call, command, memories)]
        if isinstance(command, StridedCopy):
            return lambda memories, _: [_strided(command, memories)] if command.count else []
        return lambda memories, numbers: [(self._multiply, command, memories, numbers)]

    def _call(self, command: Call, memories: Sequence[Any]) -> None:
        """Call what is not compiled, and put what it gives where others read it."""
        given = [self.values[x.slot] if isinstance(x, Number) else _whole(memories, x) for x in command.inputs]
        made = command.function(*given)
        for i, out in command.outputs:
            _whole(memories, out)[...] = made[i]

    # ---- fused kernels ------------------------------------------------------------------------------------------

    def _fused(self, command: Fused, memories: Sequence[Any], numbers: int) -> Calls:
        operands = [memories[p.memory].ptr + p.offset for p in command.operands]
        indirect = frozenset(i for i, p in enumerate(command.results) if p.memory in self.indirect)
        slot = numbers + 8 * len(self.commands.numbers)
        results = [slot if i in indirect else memories[p.memory].ptr + p.offset for i, p in enumerate(command.results)]
        disjoint = not any(r.overlaps(w) for r in spans_read(command) for w in spans_written(command))
        return self._launch(command, operands, results, indirect, disjoint, numbers, memories[ARENA].ptr + self.scratch)

    def _launch(
        self, command: Fused, operands: list[int], results: list[int], indirect: frozenset[int], disjoint: bool,
        numbers: int, scratch: int,
    ) -> Calls:  # fmt: skip
        kernel = command.kernel
        width = _width(command, operands, results, indirect)
        keys = tuple(tuple(not isinstance(part, int) for part in mask.key) for mask in command.masks)
        spread = spreads(kernel, command.columns, width)
        variant = emit.Variant(width, indirect, keys, spread, disjoint)
        launch, real = launch_of(command, width), numpy.dtype(kernel.dtype).type
        arguments = [
            *(command.rows, command.columns), *operands, *results, scratch, self.tickets.data.ptr, numbers,
            *map(numpy.int32, command.numbers), *map(real, command.constants),
        ]  # fmt: skip
        for mask in command.masks:
            arguments += [numpy.uint32(mask.threshold), real(2**32 / mask.threshold)]
            arguments += [numpy.uint32(k) if isinstance(k, int) else numpy.int32(k.slot) for k in mask.key]
        calls: Calls = [(function(emit.source(kernel, variant), "fused"), *launch.sizes, tuple(arguments))]
        if launch.partial_rows:  # of each column-wise sum a matrix is left, whose columns are summed up
            size = launch.partial_rows * command.columns
            itemsize, sums = numpy.dtype(kernel.dtype).itemsize, _column_sum(kernel.dtype)
            again = Fused(sums, launch.partial_rows, command.columns, (), (), (), (), ())
            summed = [i for i, (kind, *_) in enumerate(kernel.results) if kind == "column_sum"]
            for n, i in enumerate(summed):
                partial, rest = scratch + n * size * itemsize, scratch + launch.scratch * itemsize
                calls += self._launch(again, [partial], [results[i]], frozenset(), True, numbers, rest)
        return calls

    # ---- products -----------------------------------------------------------------------------------------------

    def _multiply(self, command: Product, memories: Sequence[Any], numbers: int) -> None:
        """Launch a product: by cuBLASLt, or else by CuPy, which knows no other precision and can't be captured."""
        a, b, out = (memories[p.memory].ptr + p.offset for p in (command.a.place, command.b.place, command.out))
        epilogue = command.epilogue
        if epilogue is not None:
            result, *others = (memories[p.memory].ptr + p.offset for p in (*epilogue.results, *epilogue.operands[1:]))
            if self._by_library(command, (a, b, result, *(others or [0])), epilogue):
                return
        if not self._by_library(command, (a, b, out, 0), None):
            self._by_cupy(command, memories)
        if epilogue is not None:
            for call, *arguments in self._fused(epilogue, memories, numbers):
                call(*arguments)

    def _by_library(self, command: Product, places: cublaslt.Places, epilogue: Fused | None) -> bool:
        a, b = _stored(command.a, command.inner), _stored(command.b, command.columns)
        sizes, result, name = (command.rows, command.columns, command.inner), command.dtype, "DEFAULT"
        if epilogue is not None:
            result = result_dtype(epilogue.kernel, epilogue.kernel.results[0])
            name = epilogue_name(epilogue.kernel) or ""
        kinds = command.factor_dtype, result, command.precision
        stack = command.stack, command.a.stack_stride, command.b.stack_stride
        problem = cublaslt.Problem(*sizes, *a, *b, *kinds, name, command.accumulate, *stack)
        return cublaslt.multiply(problem, places, self._workspace)

    @staticmethod
    def _by_cupy(command: Product, memories: Sequence[Any]) -> None:
        rows, columns, inner = sizes = command.rows, command.columns, command.inner
        if command.precision != "float32":
            raise cublaslt.missing(command.precision, sizes)
        c = Matrix(command.out, columns, 1, rows * columns)
        a, b, out = (
            _array(memories, m, command.dtype, (command.stack, *shape))
            for m, shape in ((command.a, (rows, inner)), (command.b, (inner, columns)), (c, (rows, columns)))
        )
        if command.accumulate:
            out += cupy.matmul(a, b)
        else:
            cupy.matmul(a, b, out=out)

    def _workspace(self, size: int) -> int:
        """Memory for a product, the same for all: commands run one after the other."""
        if not self.workspaces or self.workspaces[-1].size < size:
            self.workspaces.append(cupy.empty(size, numpy.uint8))
        return int(self.workspaces[-1].data.ptr)


def _width(command: Fused, operands: Sequence[int], results: Sequence[int], indirect: frozenset[int]) -> int:
    """How many elements a thread takes at a time: 16 bytes where arrays lie so, else one."""
    kernel = command.kernel
    width = width_of(kernel)
    whole = [p for p, (layout, _) in zip(operands, kernel.operands, strict=True) if layout == "full"]
    whole += [
        p for i, (p, (kind, _, _, layout)) in enumerate(zip(results, kernel.results, strict=True))
        if kind.startswith("store") and layout == "full" and i not in indirect
    ]  # fmt: skip
    fits = command.columns % width == 0 or (command.rows == 1 and not kernel.reduces_columns)
    return width if fits and not any(p % 16 for p in whole) else 1


def _needs(command: Fused) -> tuple[int, int]:
    """Elements of scratch memory and tickets that a command may need, however its arrays lie."""
    scratch = tickets = 0
    for width in {1, width_of(command.kernel)}:
        launch = launch_of(command, width)
        more = 0
        if launch.partial_rows:
            sums = Fused(_column_sum(command.kernel.dtype), launch.partial_rows, command.columns, (), (), (), (), ())
            more, others = _needs(sums)
            tickets = max(tickets, others)
        scratch, tickets = max(scratch, launch.scratch + more), max(tickets, launch.tickets)
    return scratch, tickets


@lru_cache
def _column_sum(dtype: str) -> FusedKernel:
    return FusedKernel(dtype, (("full", dtype),), 0, 0, (), (("column_sum", ("operand", 0), 0, "full"),))


def _gather(command: RowGather, memories: Sequence[Any]) -> tuple[Any, ...]:
    source, index, out = (memories[p.memory].ptr + p.offset for p in (command.source, command.index, command.out))
    width = math.gcd(source | out | command.row_bytes, 16)
    sizes = command.rows, command.source_rows, command.row_bytes // width
    code = gather.source(command.index_dtype, width)
    return function(code, "gather"), *gather.sizes(*sizes), (*sizes, source, index, out)


def _whole(memories: Sequence[Any], of: Array) -> Any:
    return cupy.ndarray(of.shape, numpy.dtype(of.dtype), memories[of.memory] + of.offset)


def _strided(command: StridedCopy, memories: Sequence[Any]) -> tuple[Any, ...]:
    source, out = (memories[p.memory].ptr + p.offset for p in (command.source, command.out))
    *rows, along = command.shape
    code, sizes = gather.strided_source(command.itemsize), gather.sizes(math.prod(rows), 0, along)
    return function(code, "strided"), *sizes, (*command.shape, *command.strides, source, out)


def _stored(matrix: Matrix, columns: int) -> tuple[bool, int]:
    """Whether a matrix of so many columns is stored transposed, and how many elements its stored rows are apart."""
    as_it_is = matrix.column_stride == 1 and matrix.row_stride >= columns
    return (False, matrix.row_stride) if as_it_is else (True, matrix.column_stride)


def _array(memories: Sequence[Any], matrix: Matrix, dtype: str, shape: Sequence[int]) -> Any:
    """A stack of matrices as CuPy sees it."""
    real, strides = numpy.dtype(dtype), (matrix.stack_stride, matrix.row_stride, matrix.column_stride)
    memory = memories[matrix.place.memory] + matrix.place.offset
    return cupy.ndarray(shape, real, memory, tuple(n * real.itemsize for n in strides))


def function(code: str, name: str) -> Any:
    """A kernel of a text, on the current device."""
    return _function(code, name, cupy.cuda.runtime.getDevice())


@lru_cache(maxsize=1024)
def _function(code: str, name: str, device: int) -> Any:
    options = ("--std=c++17", "-ffp-contract=off") if cupy.cuda.runtime.is_hip else emit.OPTIONS
    return cupy.RawModule(code=code, options=options).get_function(name)
