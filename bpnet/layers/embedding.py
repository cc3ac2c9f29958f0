"""Embedding: whole numbers become rows of a trained table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import DTypeError
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape, kernel
from bpnet.options import flag, whole

Put = tuple[Any, Shape | None, Array | None, Array]
"""part, shape, index, values: what is put in a part of a vector; or, where there is an index, in those rows of it as a
table of that shape."""


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

    `sparse` is for large tables: a training step reads and writes only the rows of E that are in the batch, and their
    part of the optimizer's state, so that it takes as long for 10^6 entries as for 10^3.  All others stand still:

        E_j, state_j <- the optimizer's step with dL/dE_j, for j in x alone,

    as with PyTorch's `SparseAdam` and the lazy Adam of TensorFlow Addons, bias corrections and schedules counting all
    steps.  With plain `SGD` that is the ordinary step, since its rows without a gradient do not move; momentum and
    running means would go on moving them.  `fit` copies all of E once an epoch, to go back to; and only where arrays
    can be written to, or JAX compiles, is the rest of E not made anew.

    It needs an optimizer that moves each element by its own gradient and state: SGD, Lion, those of the families of
    Adam and Adagrad, and around them `Clip`, `SAM`, `Grouped` and `Muon`; another is an OptionError, and so is a
    penalty on the table.

    Raises OptionError where entries or width is less than 1 (Bengio et al. 2003; Guo and Berkhahn 2016).
    """

    entries: int
    width: int
    sparse: bool = False

    example = (9, 4)

    def __post_init__(self) -> None:
        most = 2**31 - 1
        self._set(entries=whole("entries", self.entries, 1, most), width=whole("width", self.width, 1, most))
        self._check(sparse=flag)

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


@kernel
def first_places(run: Run, index: Array, entries: int) -> Array:
    """Where in the vector `index`, of 0 ... entries - 1, the number at each place is first."""
    order = run.xp.argsort(index, stable=True)
    return run.xp.take(order, run.xp.searchsorted(run.xp.take(index, order), index))


@kernel
def read(run: Run, values: Any) -> Any:
    """The values, arrays in tuples, from now on on their own: of which they are read may be written to."""
    return values


@kernel
def put_rows(run: Run, vectors: Sequence[Array], puts: Sequence[Sequence[Put]]) -> tuple[Array, ...]:
    """The vectors, which are given up, with the values of `puts`: the parts of each cover it, in their order.

    Where a number is in an index several times, so must be its row.  Here everything is made anew.
    """
    xp = run.xp

    def made(vector: Array, part: Any, shape: Shape | None, index: Array | None, values: Array) -> Array:
        if index is None or shape is None:
            return values
        order = xp.argsort(index)
        numbers = xp.arange(shape[0], dtype=index.dtype, device=run.backend.device(index))
        place = xp.searchsorted(xp.take(index, order), numbers)
        place = xp.take(order, xp.where(place < index.shape[0], place, 0))
        found = (xp.take(index, place) == numbers)[:, None]
        table = xp.where(found, xp.take(values, place, axis=0), xp.reshape(vector[part], shape))
        return xp.reshape(table, (-1,))

    parts = [[made(vector, *put) for put in some] for vector, some in zip(vectors, puts, strict=True)]
    return tuple([xp.concat(some) if len(some) > 1 else some[0] for some in parts])
