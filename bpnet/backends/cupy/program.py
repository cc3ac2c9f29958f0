"""A list of commands on a CUDA device: kernels compiled, memory set aside, and what launches each command."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from itertools import chain
from typing import Any

import cupy
import numpy

from bpnet.backends.cupy import cublaslt, verdicts
from bpnet.backends.interrupts import uninterrupted
from bpnet.compiler.commands import (
    ARENA,
    NUMBERS,
    Address,
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
    RowScatterAdd,
    StridedCopy,
    Together,
    reads,
    result_dtype,
    result_layout,
    writes,
)
from bpnet.compiler.cuda import emit, gather, scatter
from bpnet.compiler.cuda.launch import THREADS, blocks_of_part, launch_of, most_tickets, width_of
from bpnet.compiler.epilogues import epilogue_name, spans_read, spans_written
from bpnet.errors import DeviceError

log = logging.getLogger("bpnet")

ALIGNMENT = 256
"""Bytes to whose multiples intermediate results are aligned, as those of CuPy's allocator are."""

Calls = list[tuple[Any, ...]]
"""Functions, each with its arguments."""
Memories = Sequence[Any]
"""CuPy's pointers to where each memory of a list of commands begins."""


class Program:
    """The commands of a function for arguments of certain shapes and types, and the memory that they work in.

    `values` are the numbers that change from call to call, for what is not compiled.
    """

    values: Sequence[float] = ()

    def __init__(self, commands: CommandList, loss: int | None = None) -> None:
        """`loss`: the memory of a result that lies where the number after the others says, an address."""
        self.commands, self.loss = commands, loss
        columns = [c.columns for c in commands.commands if isinstance(c, Fused)]
        self.tickets = cupy.zeros(most_tickets(max(columns, default=0)), numpy.uint32)
        self.launched_by: Any = None
        self.memories_of = [_memories_of(command) for command in commands.commands]
        self.prepared: list[tuple[Any, int, Calls]] = [((), 0, [])] * len(commands.commands)
        """Of each command, where all that it is given lay last, bytes of the workspace, and what launches it there."""
        self.needed = 0
        """Bytes of the workspace that kernels have been given since this was last set to 0."""
        self.by_cupy = False
        """Whether a product is CuPy's, which can't be captured."""
        self.workspaces: list[Any] = []
        """Memory that commands need while they run, the largest last; a graph may use the others."""
        arguments = {a.memory for a in commands.arguments if a is not None}
        self.first_writing = next(
            (i for i, c in enumerate(commands.commands) if any(m in arguments for m, *_ in spans_written(c))),
            len(commands.commands),
        )

    @cached_property
    def arena(self) -> Any:
        """The memory of intermediate results, for who launches the commands again and again."""
        return self.new_arena()

    def new_arena(self) -> Any:
        """Memory of intermediate results, which may be freed once the commands have been launched."""
        return cupy.empty(self.commands.arena, numpy.uint8)

    def follow(self, *launched_by: int) -> None:
        """Have tickets of their own for calls from another stream or thread, which may overlap with the last ones."""
        if launched_by != self.launched_by:
            self.launched_by, self.tickets = launched_by, cupy.zeros(self.tickets.shape, self.tickets.dtype)

    def calls(self, numbers: Any, arena: Any, arrays: Sequence[Any]) -> tuple[Calls, Calls]:
        """What launches all commands, in order: those before any writes to an argument, and the rest.

        `numbers` points to those that change from call to call; `arrays` are all arguments, and then new results but
        for the loss.
        """
        loss = numbers + 8 * len(self.commands.numbers)
        memories = [numbers, arena.data, *(a.data for a in arrays), loss]
        made = [self._prepared(number, memories) for number in range(len(self.commands.commands))]
        return list(chain(*made[: self.first_writing])), list(chain(*made[self.first_writing :]))

    def _prepared(self, number: int, memories: Memories) -> Calls:
        """What launches a command, prepared once as long as its arrays stay where they are.

        What is kept holds no memory, so that it is free again: None stands for the memories.
        """
        command = self.commands.commands[number]
        if isinstance(command, Call):
            return self._launches(command, memories)
        places = [self.tickets.data.ptr, len(cublaslt.refused), *[memories[m].ptr for m in self.memories_of[number]]]
        seen, needed, calls = self.prepared[number]
        if seen != (self._scratch(needed), *places):
            self.needed = 0
            made = self._launches(command, memories)
            plans = [part for call in made for part in call if isinstance(part, cublaslt.Plan)]
            self.needed = max([self.needed, *(plan.scratch for plan in plans)])
            calls = [tuple([None if part is memories else part for part in call]) for call in made]
            self.prepared[number] = (self._scratch(self.needed), *places), self.needed, calls
        if not isinstance(command, Product):
            return calls
        return [tuple([memories if part is None else part for part in call]) for call in calls]

    def _launches(self, command: Command, memories: Memories) -> Calls:
        if isinstance(command, Fused):
            return self._fused(command, memories)
        if isinstance(command, Together):
            gathers = [part for part in command.parts if isinstance(part, RowGather)]
            return [_gather(gathers, memories) if gathers else self._together(command, memories)]
        if isinstance(command, RowGather):
            return [_gather([command], memories)]
        if isinstance(command, RowScatterAdd):
            return _scatter_add(command, memories)
        if isinstance(command, StridedCopy):
            return [_strided(command, memories)] if command.count else []
        if isinstance(command, Call):
            needed = _memories_of(command)  # others may be freed while a captured step still holds this
            return [(self._call, command, [m if i in needed else None for i, m in enumerate(memories)])]
        return self._products(command, memories)

    def by_host(self, call: tuple[Any, ...]) -> bool:
        """Whether the host does more than to launch it, so that it can't be captured."""
        return call[0] == self._call and not call[1].captured

    def _call(self, command: Call, memories: Memories) -> None:
        """Call what is not compiled, and put what it gives where others read it."""
        command.carry_out(partial(_array, memories), self.values.__getitem__)

    def _workspace(self, size: int) -> Any:
        """Memory for a command while it runs, the same for all: they run one after the other."""
        if not self.workspaces or self.workspaces[-1].size < size:
            self.workspaces.append(cupy.empty(size, numpy.uint8))
        return self.workspaces[-1].data

    def _scratch(self, size: int) -> int:
        """The address of so much memory of the workspace; 0 where none is needed."""
        return int(self._workspace(size).ptr) if size else 0

    # ---- fused kernels ------------------------------------------------------------------------------------------

    def _fused(self, command: Fused, memories: Memories) -> Calls:
        """What launches a kernel, and one more where it leaves column-wise sums as matrices.

        Both work in one workspace, taken once its size is known, so that its address tells whether they can be launched
        again as they are.
        """
        real = numpy.dtype(command.kernel.dtype)
        launch = launch_of(command, _width(command, memories)[0])
        size = launch.scratch * real.itemsize
        parts = [(command, launch, 0)]
        if launch.partial_rows:
            again = _of_partial_rows(command, launch.partial_rows, len(memories))
            aligned = [*memories, memories[ARENA]]  # as the workspace is
            adding = launch_of(again, _width(again, aligned)[0])
            parts.append((again, adding, size))
            size += adding.scratch * real.itemsize
        self.needed = max(self.needed, size)
        scratch, calls = self._scratch(size), list[tuple[Any, ...]]()
        places = [*memories, self._workspace(size)] if size else memories
        for part, launched, start in parts:
            variant, arguments = self._arguments(part, places, scratch + start, launched.partial_rows > 0)
            calls.append((function(emit.source(part.kernel, variant), "fused"), *launched.sizes, arguments))
        return calls

    def _together(self, command: Together, memories: Memories) -> tuple[Any, ...]:
        """What launches kernels over vectors as one."""
        parts = [part for part in command.parts if isinstance(part, Fused)]
        variants, blocks, given = [], [], []
        for part in parts:
            variant, arguments = self._arguments(part, memories)
            variants.append(variant)
            blocks.append(blocks_of_part(part, variant.width))
            given += [blocks[-1], *arguments]
        text = emit.source_together(tuple(part.kernel for part in parts), tuple(variants))
        return function(text, "fused"), (sum(blocks), 1), (THREADS, 1), tuple(given)

    def _arguments(
        self, command: Fused, memories: Memories, scratch: int = 0, spread: bool = False
    ) -> tuple[emit.Variant, tuple[Any, ...]]:
        """How a kernel is written for arrays where they lie, and what it is given."""
        arrays = _pointers(command, memories)
        indirect = frozenset(i for i, address in enumerate(command.results) if address.memory == self.loss)
        masks = tuple(tuple(not isinstance(part, int) for part in mask.parts) for mask in command.masks)
        disjoint = not any(r.overlaps(w) for r in spans_read(command) for w in spans_written(command))
        real = numpy.dtype(command.kernel.dtype)
        numbers = memories[NUMBERS].ptr if NUMBERS in _memories_of(command) else 0
        arguments = [
            *(command.rows, command.columns), *arrays, *command.strides, scratch, self.tickets.data.ptr, numbers,
            *map(numpy.int32, command.numbers), *map(real.type, command.constants),
        ]  # fmt: skip
        for mask in command.masks:
            arguments += [numpy.uint32(mask.threshold), real.type(2**32 / mask.threshold)]
            arguments += [numpy.uint32(k) if isinstance(k, int) else numpy.int32(k.slot) for k in mask.parts]
        width, unaligned = _width(command, memories)
        return emit.Variant(width, indirect, masks, spread, disjoint, unaligned), tuple(arguments)

    # ---- products -----------------------------------------------------------------------------------------------

    def _products(self, command: Product, memories: Memories) -> Calls:
        """What launches a product: cuBLASLt with its epilogue; or without, and then the epilogue's kernel; or CuPy.

        CuPy knows no other precision, and its product can't be captured.
        """
        epilogue, (problem, addresses) = command.epilogue, _problem(command, memories)
        usable = verdicts.usable(f"product {problem.arithmetic} {problem.epilogue}")
        plan = cublaslt.plan(problem, addresses) if usable else None
        if plan is not None:
            return [(self._multiply, plan, addresses, self._scratch(plan.scratch), command, memories)]
        if epilogue is not None:
            return [*self._products(replace(command, epilogue=None), memories), *self._fused(epilogue, memories)]
        self.by_cupy = True
        return [(_by_cupy, command, memories)]

    def _multiply(
        self, plan: cublaslt.Plan, addresses: cublaslt.Addresses, workspace: int, command: Product, memories: Memories
    ) -> None:
        """Launch what has been planned; what the library then refuses is done by other means, now and later."""
        try:
            plan.run(addresses, workspace)
        except plan.lt.cuBLASLtError as error:
            cublaslt.refused.add((plan.device, plan.problem))
            log.warning("cuBLASLt refuses a product that it had planned, %s: %s", plan.problem, error)
            if cupy.cuda.get_current_stream().is_capturing():
                raise CaptureRefusedError from error
            uninterrupted(self._products(command, memories))


class CaptureRefusedError(Exception):
    """A product was refused while it was captured: what stands in its place can be captured anew."""


def _problem(command: Product, memories: Memories) -> tuple[cublaslt.Problem, cublaslt.Addresses]:
    """A product, with its epilogue if it has one, as cuBLASLt is asked for it."""
    epilogue = command.epilogue
    addresses, dtype, name = [command.a.address, command.b.address, command.out], command.dtype, "DEFAULT"
    if epilogue is not None:
        addresses[2:] = *epilogue.results, *epilogue.operands[1:]
        dtype = result_dtype(epilogue.kernel, epilogue.kernel.results[0])
        name = epilogue_name(epilogue.kernel) or name
    problem = cublaslt.Problem(
        *(command.rows, command.columns, command.inner), _stored(command.a, command.inner),
        _stored(command.b, command.columns), command.factor_dtype, dtype, command.precision, name,
        command.accumulate, command.stack,
    )  # fmt: skip
    first, second, out, vector = (*(_pointer(memories, address) for address in addresses), 0)[:4]
    return problem, (first, second, out, vector)


def _memories_of(command: Command) -> tuple[int, ...]:
    """The memories that a command reads or writes."""
    found = {span.memory for span in (*spans_read(command), *spans_written(command))}
    for part in command.parts if isinstance(command, Together) else (command,):
        if isinstance(part, Fused) and (
            part.numbers or any(isinstance(k, Number) for m in part.masks for k in m.parts)
        ):
            found.add(NUMBERS)
    return tuple(sorted(found))


def _by_cupy(command: Product, memories: Memories) -> None:
    rows, columns, inner = command.rows, command.columns, command.inner
    if command.precision != "float32":
        raise DeviceError(f"cuBLASLt has no {command.precision} product of {rows} x {inner} x {columns}: use float32")
    a, b, out = (_array(memories, array) for array in (*reads(command)[:2], *writes(command)[:1]))
    if command.accumulate:
        out += cupy.matmul(a, b)
    else:
        cupy.matmul(a, b, out=out)


def _width(command: Fused, memories: Memories) -> tuple[int, frozenset[int]]:
    """How many elements a thread takes at a time, 16 bytes or one, and which operands it must then read one by one.

    Where the number of elements decides how sums are added up, it is to be the same wherever the arrays lie that a
    call is given, as batches do.  So it depends on where in its memory each is, as if all memories were aligned.
    """
    kernel = command.kernel
    width = width_of(kernel)
    layouts = *(layout for layout, _ in kernel.operands), *map(result_layout, kernel.results)
    wide = [layout in ("full", "window") for layout in layouts]
    places = *command.operands, *command.results
    fits = command.columns % width == 0 or (command.rows == 1 and not kernel.reduces_columns)
    fits = fits and not any(stride % width for stride in command.strides)
    fits = fits and not any(place.offset % 16 for place, w in zip(places, wide, strict=True) if w)
    loose = [i for i, place in enumerate(places) if wide[i] and memories[place.memory].ptr % 16] if fits else []
    if not fits or (loose and loose[-1] >= len(command.operands)):
        return 1, frozenset()
    return width, frozenset(loose)


def _of_partial_rows(command: Fused, rows: int, workspace: int) -> Fused:
    """The kernel that sums the matrices of so many rows that another has left of its column-wise sums.

    They lie one after the other at the start of the memory of that number, `workspace`.
    """
    kernel, size = command.kernel, rows * command.columns * numpy.dtype(command.kernel.dtype).itemsize
    sums = [p for p, (kind, *_) in zip(command.results, kernel.results, strict=True) if kind == "column_sum"]
    partial = tuple(Address(workspace, n * size) for n in range(len(sums)))
    return Fused(_column_sums(kernel.dtype, len(sums)), rows, command.columns, partial, (), (), (), tuple(sums))


@lru_cache
def _column_sums(dtype: str, count: int) -> FusedKernel:
    sums = tuple(("column_sum", ("operand", i), 0, "full") for i in range(count))
    return FusedKernel(dtype, (("full", dtype),) * count, 0, 0, (), sums)


def _pointer(memories: Memories, address: Address) -> int:
    return int(memories[address.memory].ptr) + address.offset


def _pointers(command: Fused, memories: Memories) -> list[int]:
    """Where the operands of a kernel lie, and then its results."""
    return [_pointer(memories, address) for address in (*command.operands, *command.results)]


def _gather(commands: Sequence[RowGather], memories: Memories) -> tuple[Any, ...]:
    """What launches gathers of the same rows as one."""
    rows, index, widths, given, words = commands[0].rows, commands[0].index, [], [], 1
    for command in commands:
        source, out = _pointer(memories, command.source), _pointer(memories, command.out)
        widths.append(math.gcd(source | out | command.row_bytes, 16))
        given += [command.source_rows, command.row_bytes // widths[-1], source, out]
        words = max(words, command.row_bytes // widths[-1])
    code = gather.source(commands[0].index_dtype, tuple(widths))
    return function(code, "gather"), *gather.sizes(rows, words), (rows, _pointer(memories, index), *given)


def _scatter_add(command: RowScatterAdd, memories: Memories) -> Calls:
    source, index, out = (_pointer(memories, address) for address in (command.source, command.index, command.out))
    code, by_rows = scatter.source(command.dtype, command.index_dtype), command.rows < command.out_rows
    zeros: Calls = []
    if by_rows and not command.accumulate:
        count, zero = command.out_rows * command.columns, function(scatter.zero_source(command.dtype), "zero")
        zeros = [(zero, *scatter.zero_sizes(count), (count, out))]
    sizes = command.rows, command.out_rows, command.columns, int(by_rows), int(command.accumulate)
    return [*zeros, (function(code, "scatter_add"), *scatter.sizes(command), (*sizes, source, index, out))]


def _strided(command: StridedCopy, memories: Memories) -> tuple[Any, ...]:
    source, out = (_pointer(memories, address) for address in (command.source, command.out))
    *rows, along = command.shape
    code, sizes = gather.strided_source(command.itemsize), gather.sizes(math.prod(rows), along)
    return function(code, "strided"), *sizes, (*command.shape, *command.strides, source, out)


def _stored(matrix: Matrix, columns: int) -> cublaslt.Factor:
    """How a matrix of so many columns is stored."""
    transposed = matrix.column_stride != 1 or matrix.row_stride < columns
    return transposed, matrix.column_stride if transposed else matrix.row_stride, matrix.stack_stride


def _array(memories: Memories, array: Array) -> Any:
    """An array as CuPy sees it."""
    real, memory = numpy.dtype(array.dtype), memories[array.memory] + array.offset
    return cupy.ndarray(array.shape, real, memory, array.strides and tuple(n * real.itemsize for n in array.strides))


@cupy.memoize(for_each_device=True)  # type: ignore[untyped-decorator]
def function(code: str, name: str) -> Any:
    """A kernel of a text, on the current device."""
    options = ("--std=c++17", "-ffp-contract=off") if cupy.cuda.runtime.is_hip else emit.OPTIONS
    return cupy.RawModule(code=code, options=options).get_function(name)
