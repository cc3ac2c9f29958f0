"""Embedding: whole numbers become rows of a trained table."""

import math
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import DTypeError
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.options import whole


@dataclass(frozen=True)
class Embedding(Layer):
    r"""y = E[x]: for each whole number in x, 0 to entries - 1, its row of the table E of (entries, width).

    Rows x of (...) numbers become rows of (..., width), as in Keras and PyTorch: a vector x of one number a row gives
    (rows, width), and k columns give (rows, k, width), of which `Flatten()` makes (rows, k width).  Since every entry
    of y is one of E, the chain rule gives

        dL/dE_j = sum over all places i with x_i = j of dL/dy_i,

    which is 0 for numbers that don't occur (see `Run.scatter_add` for the order of the sums).  There is no dL/dx.

    It takes int32 and int64 as they come; other whole numbers are made such.  A number outside 0 ... entries - 1 is a
    DataError that names the row.  It is the first layer of a network, or of a branch of `Inputs`.  The entries of E
    start normally distributed with deviation 1 / sqrt(width), so that rows have a length of about 1; weight decay
    leaves them alone, since it would also shrink the rows of numbers that a batch does not have.

    Raises OptionError where entries or width is less than 1 (Bengio et al. 2003; Guo and Berkhahn 2016).
    """

    entries: int
    width: int

    example = (9, 4)

    def __post_init__(self) -> None:
        most = 2**31 - 1
        self._set(entries=whole("entries", self.entries, 1, most), width=whole("width", self.width, 1, most))

    @property
    def takes(self) -> int:
        return self.entries

    def out_shape(self, in_shape: Shape) -> Shape:
        return (*in_shape, self.width)

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        table = rng.normal((self.entries, self.width), 1.0 / math.sqrt(self.width))
        return {"table": Leaf(table, decay=False)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        if x.dtype not in (run.xp.int32, run.xp.int64):
            raise DTypeError(
                f"{self} is given {x.dtype} values, not whole numbers: put it first in the network, or in a branch of "
                "bp.Inputs"
            )
        index = run.xp.reshape(x, (-1,))
        return run.xp.reshape(run.xp.take(p["table"], index, axis=0), (*x.shape, self.width)), (p["table"], index)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        table, index = cache
        return None, {"table": run.scatter_add(table, index, run.xp.reshape(dy, (-1, self.width)))}
