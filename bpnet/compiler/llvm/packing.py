"""Matrices that never change, packed once as products read them: see `products`."""

import math
from typing import Any

import numpy

from bpnet.compiler.llvm.products import Blocking


def packed(b: Any) -> Any:
    """The entries of b, (inner, columns), in the order in which a product a b reads them.

    KC rows at a time, or somewhat fewer so that all blocks are of one size; of these NR columns at a time, row by row,
    with zeros up to a multiple of a vector's lanes.
    """
    s, (inner, columns) = Blocking(b.dtype.name), b.shape
    count = math.ceil(inner / s.kc)
    kc = math.ceil(inner / count / 8) * 8
    wide = numpy.zeros((inner, -(-columns // s.lanes) * s.lanes), b.dtype)
    wide[:, :columns] = b
    blocks = [wide[k : k + kc] for k in range(0, inner, kc)]
    panels = [block[:, j : j + s.nr].reshape(-1) for block in blocks for j in range(0, columns, s.nr)]
    return numpy.concatenate(panels)
