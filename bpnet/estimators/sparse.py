"""Rows of scipy.sparse: batches of them as they are, where the network begins with a dense layer, or as plain arrays.

A dense layer's products with sparse rows are SciPy's, so that neither memory nor time grows with the zeros.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bpnet.backends import Array, get
from bpnet.data.loader import Batch, Loader, Size, parts
from bpnet.errors import DataError
from bpnet.layer import Layer
from bpnet.layers.composition import Sequential
from bpnet.layers.dense import Dense
from bpnet.layout import Layout
from bpnet.trainer import Trainer

PREDICTED = 4096
"""Rows that are predicted at a time."""


def is_sparse(x: Any) -> bool:
    """Whether x is of scipy.sparse."""
    return hasattr(x, "tocsr")


def takes_sparse(network: Layer) -> bool:
    """Whether the first layer can compute with sparse rows."""
    first = network.layers[0] if isinstance(network, Sequential) and network.layers else network
    return type(first) is Dense and not first.ntk


class SparseLoader(Loader):
    """Rows of scipy.sparse in CSR form, with targets and weights of NumPy."""

    streams = True

    def __init__(self, layout: Layout, x: Any, y: Array | None, weight: Array | None, like: Array) -> None:
        if not isinstance(like, np.ndarray):
            raise DataError("X is sparse, which only SciPy computes with, and device is another: pass X.toarray()")
        super().__init__(get("numpy"), layout, x, y, weight, like)
        self.stays = takes_sparse(layout.network)

    def batches(self, size: Size, order: Any = None) -> Iterator[Batch]:
        for start, stop in parts(self.count if order is None else len(order), size):
            rows = slice(start, stop) if order is None else np.asarray(order[start:stop])
            y, weight = (None if a is None else a[rows] for a in (self.y, self.weight))
            yield self._given(self.x[rows]), y, weight, None

    def whole_batch(self) -> Batch:
        return self._given(self.x), self.y, self.weight, None

    def _given(self, x: Any) -> Any:
        return x if self.stays else x.toarray()


def outputs(trainer: Trainer, x: Any) -> Array:
    """What the trainer's network gives for sparse rows."""
    engine = trainer._have()
    theta = engine.carry[0]
    found = []
    for some, *_ in SparseLoader(engine.layout, x, None, None, theta).batches(PREDICTED):
        with engine.session(some.shape[0]):
            if isinstance(some, np.ndarray):
                found.append(engine.forward(engine.outputs, some)[0])
            else:
                found.append(engine.plain[engine.outputs](engine.backend, engine.evaluated(), engine.carry[1], some)[0])
    return found[0] if len(found) == 1 else np.concatenate(found)
