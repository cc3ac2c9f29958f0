"""What a compiled function does, in order: plain data that every target carries out and a person can read."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
Reference = tuple[str, Any]
Expression = tuple[Any, ...]
KernelResult = tuple[str, Reference, int, str]

@dataclass(frozen=True)
class Number:
    slot: int

@dataclass(frozen=True)
class Mask:
    threshold: int
    key: tuple[Any, ...]


ARENA, FIRST = 1, 2          # memories: 0 hyperparameters (numbers that change from call to call), 1 arena, FIRST.. arguments, then new results

@dataclass(frozen=True)
class Place:                 # where an array begins
    memory: int
    offset: int              # bytes

@dataclass(frozen=True)
class FusedKernel:           # what code is made from: no sizes, no places, no target; equal kernels share their code
    dtype: str
    operands: tuple[tuple[str, str], ...]        # (layout, dtype); layout: "full" | "per_row" | "per_column" | "scalar"
    numbers: int                                 # hyperparameters it reads
    constants: int                               # numbers fixed per command (1/n ...): arguments, not code; literals 0, 1, -1, 2, 0.5 are code
    expressions: tuple[Expression, ...]          # (op, layout, phase, *references): phase = row-wise reductions that must be known before
    results: tuple[KernelResult, ...]            # (kind, reference, phase, layout); kind: "store" | "column_sum" | "full_sum" | "full_max" | "full_min"
# row-wise reductions are expressions ("row_sum", "row_max", "row_min") with layout "per_row"

@dataclass(frozen=True)
class Fused:                 # a command: a kernel over rows x columns
    kernel: FusedKernel
    rows: int
    columns: int
    operands: tuple[Place, ...]
    numbers: tuple[int, ...]                     # which hyperparameters
    constants: tuple[float, ...]
    masks: tuple[Mask, ...]                      # for each "mask" expression in order: threshold, and the key's parts (an int, or Number(slot))
    results: tuple[Place, ...]

@dataclass(frozen=True)
class Matrix:
    place: Place
    row_stride: int          # elements
    column_stride: int

@dataclass(frozen=True)
class Product:               # out <- a b, or out + a b
    dtype: str
    rows: int
    columns: int
    inner: int
    a: Matrix
    b: Matrix
    out: Place               # contiguous rows x columns
    accumulate: bool

@dataclass(frozen=True)
class RowGather:             # out[i] = source[index[i]]
    rows: int
    source_rows: int
    row_bytes: int
    source: Place
    index: Place
    index_dtype: str
    out: Place

@dataclass(frozen=True)
class CommandList:
    commands: tuple[Fused | Product | RowGather, ...]
    arena: int               # bytes
    # + what the arguments and results are (shape, dtype, memory), enough for `verify` and `interpret`
