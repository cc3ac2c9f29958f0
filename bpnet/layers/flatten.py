"""Rows of another shape, of the same values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ArgumentError, OptionError, ShapeError, kind_of, plural
from bpnet.layer import Derivatives, Layer, Params, Run, Shape
from bpnet.options import is_listed, whole


@dataclass(frozen=True)
class Flatten(Layer):
    """y is x with all axes but the first joined into one; dL/dx is dL/dy in the shape of x."""

    def out_shape(self, in_shape: Shape) -> Shape:
        return (math.prod(in_shape),)

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return run.xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))), x.shape

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        return (run.xp.reshape(dy, cache) if need_dx else None), {}


@dataclass(frozen=True)
class Reshape(Layer):
    """y is x with rows of the given `shape`, in which one axis may be -1: as long as the others leave it.

    dL/dx is dL/dy in the shape of x.
    """

    shape: Sequence[int]

    example = ((2, -1),)

    def __post_init__(self) -> None:
        if not is_listed(self.shape):
            given = kind_of(self.shape)
            raise ArgumentError(f"shape is {given}; expected that of a row as a tuple, such as Reshape((28, 28))")
        shape = tuple([n if _is_open(n) else whole(f"shape[{i}]", n) for i, n in enumerate(self.shape)])
        if sum(map(_is_open, shape)) > 1:
            raise OptionError(f"shape is {shape}; expected -1 for one axis at most")
        self._set(shape=tuple(map(int, shape)))

    def out_shape(self, in_shape: Shape) -> Shape:
        size, known = math.prod(in_shape), math.prod(n for n in self.shape if n != -1)
        fits = size % known == 0 if -1 in self.shape else size == known
        if not fits:
            raise ShapeError(f"{self} can't hold a row of {in_shape}, which has {plural(size, 'value')}")
        return tuple(size // known if n == -1 else n for n in self.shape)

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return run.xp.reshape(x, (x.shape[0], *self.out_shape(tuple(x.shape[1:])))), x.shape

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        return (run.xp.reshape(dy, cache) if need_dx else None), {}


def _is_open(n: object) -> bool:
    """Whether an axis is as long as the others leave it."""
    return isinstance(n, int) and type(n) is not bool and n == -1
