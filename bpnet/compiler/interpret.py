"""A list of commands carried out by NumPy, plainly: what every target is to give, but for rounding."""

import math
from collections.abc import Sequence
from typing import Any

import numpy

from bpnet.compiler.commands import (
    ARENA,
    Call,
    Command,
    CommandList,
    Fused,
    Mask,
    Matrix,
    Number,
    Place,
    Product,
    RowGather,
    StridedCopy,
    item_bytes,
    result_dtype,
)
from bpnet.compiler.random import TRIPLE32, fold


def interpret(commands: CommandList, arguments: Sequence[Any]) -> list[Any]:
    """The results for arguments as those it was made for; none of them is written to, also where it is donated."""
    run = _Interpreter(commands, arguments)
    for command in commands.commands:
        run.command(command)
    return [a and run.view(Place(a.memory, 0), a.dtype, math.prod(a.shape)).reshape(a.shape) for a in commands.results]


class _Interpreter:
    def __init__(self, commands: CommandList, arguments: Sequence[Any]) -> None:
        self.memories = {ARENA: numpy.full(commands.arena, 255, numpy.uint8)}  # which is no number
        for array in commands.results:
            if array is not None:
                size = math.prod(array.shape) * numpy.dtype(array.dtype).itemsize
                self.memories[array.memory] = numpy.full(size, 255, numpy.uint8)
        for array, value in zip(commands.arguments, arguments, strict=True):
            if array is not None:
                self.memories[array.memory] = numpy.array(value, order="C").reshape(-1).view(numpy.uint8)
        names = {f"v{i}": value for i, value in enumerate(arguments)}
        self.numbers = [float(eval(text, {"__builtins__": {}}, names)) for text in commands.numbers]

    def command(self, c: Command) -> None:
        methods: dict[type, Any] = {
            Fused: self.fused, Product: self.product, RowGather: self.gather, StridedCopy: self.strided, Call: self.call
        }  # fmt: skip
        methods[type(c)](c)

    def view(self, place: Place, dtype: str, count: int) -> Any:
        part = self.memories[place.memory][place.offset : place.offset + count * item_bytes(dtype)]
        return part.view("uint16" if dtype == "bfloat16" else dtype)

    def read(self, place: Place, dtype: str, count: int) -> Any:
        """A bfloat16 is the upper half of a float32."""
        found = self.view(place, dtype, count)
        return (found.astype(numpy.uint32) << 16).view(numpy.float32) if dtype == "bfloat16" else found

    def matrix(self, m: Matrix, number: int, rows: int, columns: int, dtype: str) -> Any:
        start = Place(m.place.memory, m.place.offset + number * m.stack_stride * item_bytes(dtype))
        turned = m.column_stride != 1 and m.row_stride == 1
        shape = (columns, rows) if turned else (rows, columns)
        found = self.read(start, dtype, rows * columns).reshape(shape)
        return found.T if turned else found

    def product(self, c: Product) -> None:
        outs = self.view(c.out, c.dtype, c.stack * c.rows * c.columns).reshape(c.stack, c.rows, c.columns)
        for i, out in enumerate(outs):
            a = self.matrix(c.a, i, c.rows, c.inner, c.factor_dtype)
            made = a @ self.matrix(c.b, i, c.inner, c.columns, c.factor_dtype)
            out[...] = out + made if c.accumulate else made
        if c.epilogue is not None:
            self.fused(c.epilogue)

    def call(self, c: Call) -> None:
        given = [
            self.numbers[x.slot] if isinstance(x, Number) else self.view(x[0], x[2], math.prod(x[1])).reshape(x[1])
            for x in c.inputs
        ]
        made = c.function(*given)
        for i, (place, shape, dtype) in c.outputs:
            self.view(place, dtype, math.prod(shape))[...] = numpy.reshape(made[i], -1)

    def strided(self, c: StridedCopy) -> None:
        kind = numpy.dtype((numpy.void, c.itemsize))
        source = self.memories[c.source.memory]
        strides = [n * c.itemsize for n in c.strides]
        taken = numpy.ndarray(c.shape, kind, source, c.source.offset, strides) if c.count else numpy.empty(0, kind)
        self.view(c.out, "uint8", c.count * c.itemsize)[...] = numpy.frombuffer(taken.tobytes(), numpy.uint8)

    def gather(self, c: RowGather) -> None:
        index = self.view(c.index, c.index_dtype, c.rows).astype(numpy.int64)
        index = numpy.where(index < 0, index + c.source_rows, index)
        there = (index >= 0) & (index < c.source_rows)
        source = self.view(c.source, "uint8", c.source_rows * c.row_bytes).reshape(c.source_rows, c.row_bytes)
        out = self.view(c.out, "uint8", c.rows * c.row_bytes).reshape(c.rows, c.row_bytes)
        out[...] = numpy.where(there[:, None], source[numpy.where(there, index, 0)], 255)

    def fused(self, c: Fused) -> None:
        kernel, real = c.kernel, numpy.dtype(c.kernel.dtype)
        shapes = {"full": (c.rows, c.columns), "per_row": (c.rows, 1), "per_column": (1, c.columns), "scalar": (1, 1)}
        masks = iter(c.masks)
        values: dict[Any, Any] = {("number", i): real.type(self.numbers[slot]) for i, slot in enumerate(c.numbers)}
        values |= {("constant", i): real.type(value) for i, value in enumerate(c.constants)}

        def value(reference: Any) -> Any:
            kind, which = reference
            if kind == "literal":
                return real.type(which)
            if kind != "operand":
                return values[reference]
            layout, dtype = kernel.operands[which]
            found = self.read(c.operands[which], dtype, math.prod(shapes[layout])).reshape(shapes[layout])
            return found.copy() if dtype == "bool" else found.astype(real)

        for phase in range(1 + max(result[2] for result in kernel.results)):
            for i, (op, layout, of_phase, *references) in enumerate(kernel.expressions):
                if of_phase != phase:
                    continue
                if op == "mask":
                    found = self.mask(next(masks), c.rows * c.columns).reshape(shapes["full"])
                elif op == "positions":
                    found = numpy.arange(c.columns)[None]
                elif op.startswith("row_"):
                    found = getattr(numpy, op.removeprefix("row_"))(value(references[0]), axis=1, keepdims=True)
                elif op in ("astype", "copy"):
                    found = value(references[0])
                else:
                    found = getattr(numpy, op)(*map(value, references))
                found = found if found.dtype == numpy.bool_ and op != "astype" else found.astype(real)
                values["value", i] = numpy.broadcast_to(found, shapes[layout])
            stored = []
            for result, place in zip(kernel.results, c.results, strict=True):
                kind, reference, of_phase, layout = result
                if of_phase == phase:
                    found = numpy.broadcast_to(value(reference), shapes[layout])
                    if not kind.startswith("store"):
                        axis, _, reduction = kind.partition("_")
                        found = getattr(numpy, reduction)(found, axis=0 if axis == "column" else None)
                    stored.append((place, result_dtype(kernel, result), found.reshape(-1)))
            for place, dtype, found in stored:
                self.view(place, dtype, found.size)[...] = _rounded(found) if dtype == "bfloat16" else found

    def mask(self, mask: Mask, count: int) -> Any:
        key = fold(tuple(int(self.numbers[p.slot]) if isinstance(p, Number) else p for p in mask.key))
        x = numpy.arange(count, dtype=numpy.uint32) * numpy.uint32(0x9E3779B9) + numpy.uint32(key)
        for shift, factor in TRIPLE32:
            x = (x ^ (x >> numpy.uint32(shift))) * numpy.uint32(factor)
        kept = (x ^ (x >> numpy.uint32(14))) < mask.threshold
        return kept * (2.0**32 / mask.threshold)


def _rounded(x: Any) -> Any:
    """float32 as the words of bfloat16, to nearest, of two as near to the even one."""
    bits = x.astype(numpy.float32).view(numpy.uint32)
    up = bits + 0x7FFF + ((bits >> 16) & 1)
    return numpy.where(numpy.isnan(x), 0x7FC0, up >> 16).astype(numpy.uint16)
