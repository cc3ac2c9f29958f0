"""A list of commands carried out by NumPy, plainly: what every target is to give, but for rounding."""

from collections.abc import Sequence
from typing import Any

import numpy

from bpnet.compiler.commands import (
    ARENA,
    Array,
    Call,
    Command,
    CommandList,
    Fused,
    Mask,
    Number,
    Product,
    RowGather,
    RowScatterAdd,
    StridedCopy,
    Together,
    item_bytes,
    reads,
    writes,
)
from bpnet.compiler.ops import RANDOM
from bpnet.compiler.random import GOLDEN, TRIPLE32, start_of


def interpret(commands: CommandList, arguments: Sequence[Any]) -> list[Any]:
    """The results for arguments as those it was made for; none of them is written to, also where it is donated."""
    run = _Interpreter(commands, arguments)
    for command in commands.commands:
        run.command(command)
    return [a and run.view(a) for a in commands.results]


class _Interpreter:
    def __init__(self, commands: CommandList, arguments: Sequence[Any]) -> None:
        self.memories = {ARENA: numpy.full(commands.arena, 255, numpy.uint8)}  # which is no number
        for array in commands.results:
            if array is not None:
                self.memories[array.memory] = numpy.full(array.span.stop, 255, numpy.uint8)
        for array, value in zip(commands.arguments, arguments, strict=True):
            if array is not None:
                self.memories[array.memory] = numpy.array(value, order="C").reshape(-1).view(numpy.uint8)
        names = {f"v{i}": value for i, value in enumerate(arguments)}
        self.numbers = [float(eval(text, {"__builtins__": {}}, names)) for text in commands.numbers]

    def command(self, c: Command) -> None:
        methods: dict[type, Any] = {
            Fused: self.fused, Product: self.product, RowGather: self.gather, RowScatterAdd: self.scatter_add,
            StridedCopy: self.strided, Call: self.call, Together: self.together,
        }  # fmt: skip
        methods[type(c)](c)

    def view(self, a: Array) -> Any:
        size = item_bytes(a.dtype)
        strides = None if a.strides is None else [n * size for n in a.strides]
        return numpy.ndarray(
            a.shape, "uint16" if a.dtype == "bfloat16" else a.dtype, self.memories[a.memory], a.offset, strides
        )

    def read(self, a: Array) -> Any:
        """A bfloat16 is the upper half of a float32."""
        found = self.view(a)
        return (found.astype(numpy.uint32) << 16).view(numpy.float32) if a.dtype == "bfloat16" else found

    def product(self, c: Product) -> None:
        a, b = map(self.read, reads(c)[:2])
        out = self.view(writes(c)[0])
        out[...] = out + a @ b if c.accumulate else a @ b
        if c.epilogue is not None:
            self.fused(c.epilogue)

    def call(self, c: Call) -> None:
        c.carry_out(self.view, self.numbers.__getitem__)

    def strided(self, c: StridedCopy) -> None:
        self.view(writes(c)[0])[...] = self.view(reads(c)[0])

    def gather(self, c: RowGather) -> None:
        source, index = map(self.view, reads(c))
        index = numpy.where(index < 0, index.astype(numpy.int64) + c.source_rows, index)
        there = (index >= 0) & (index < c.source_rows)
        self.view(writes(c)[0])[...] = numpy.where(there[:, None], source[numpy.where(there, index, 0)], 255)

    def scatter_add(self, c: RowScatterAdd) -> None:
        (source, index), out = map(self.view, reads(c)[:2]), self.view(writes(c)[0])
        index = numpy.where(index < 0, index.astype(numpy.int64) + c.out_rows, index)
        there, total = (index >= 0) & (index < c.out_rows), numpy.zeros((c.out_rows, c.columns), c.dtype)
        numpy.add.at(total, index[there], source[there])
        out[...] = out + total if c.accumulate else total

    def together(self, c: Together) -> None:
        for part in c.parts:
            self.command(part)

    def fused(self, c: Fused) -> None:
        kernel, real = c.kernel, numpy.dtype(c.kernel.dtype)
        operands, masks = reads(c), iter(c.masks)
        values: dict[Any, Any] = {("number", i): real.type(self.numbers[slot]) for i, slot in enumerate(c.numbers)}
        values |= {("constant", i): real.type(value) for i, value in enumerate(c.constants)}

        def value(reference: Any) -> Any:
            kind, which = reference
            if kind == "literal":
                return real.type(which)
            if kind != "operand":
                return values[reference]
            found = self.read(operands[which])
            return found.copy() if found.dtype == numpy.bool_ else found.astype(real)

        for phase in range(1 + max(result[2] for result in kernel.results)):
            for i, (op, layout, of_phase, *references) in enumerate(kernel.expressions):
                if of_phase != phase:
                    continue
                if op in RANDOM:
                    found = self.drawn(op, next(masks), c.rows * c.columns).reshape(c.rows, c.columns)
                elif op == "positions":
                    found = numpy.arange(c.columns)[None]
                elif op == "column_sum":
                    found = numpy.broadcast_to(value(references[0]), (c.rows, c.columns)).sum(axis=0, keepdims=True)
                elif op == "table":
                    found = numpy.asarray(references)[None]
                elif op.startswith("row_"):
                    found = getattr(numpy, op.removeprefix("row_"))(value(references[0]), axis=1, keepdims=True)
                elif op in ("astype", "copy"):
                    found = value(references[0])
                else:
                    found = getattr(numpy, op)(*map(value, references))
                found = found if found.dtype == numpy.bool_ and op != "astype" else found.astype(real)
                values["value", i] = numpy.broadcast_to(found, c.shape(layout))
            stored = []
            for (kind, reference, of_phase, layout), array in zip(kernel.results, writes(c), strict=True):
                if of_phase == phase:
                    found = numpy.broadcast_to(value(reference), c.shape(layout))
                    if not kind.startswith("store"):
                        axis, _, reduction = kind.partition("_")
                        found = getattr(numpy, reduction)(found, axis=0 if axis == "column" else None)
                    stored.append((array, found))
            for array, found in stored:
                self.view(array)[...] = _rounded(found) if array.dtype == "bfloat16" else found

    def drawn(self, op: str, mask: Mask, count: int) -> Any:
        before, *key = (int(self.numbers[p.slot]) if isinstance(p, Number) else p for p in mask.parts)
        x = numpy.arange(count, dtype=numpy.uint32) * numpy.uint32(GOLDEN) + numpy.uint32(start_of(tuple(key), before))
        for shift, factor in TRIPLE32:
            x = (x ^ (x >> numpy.uint32(shift))) * numpy.uint32(factor)
        x ^= x >> numpy.uint32(14)
        if op == "uniform":
            return ((x >> numpy.uint32(9)) + 0.5) * 2.0**-23
        return (x < mask.threshold) * (2.0**32 / mask.threshold)


def _rounded(x: Any) -> Any:
    """float32 as the words of bfloat16, to nearest, of two as near to the even one."""
    bits = x.astype(numpy.float32).view(numpy.uint32)
    up = bits + 0x7FFF + ((bits >> 16) & 1)
    return numpy.where(numpy.isnan(x), 0x7FC0, up >> 16).astype(numpy.uint16)
