"""Rows that a model was trained on, known again by hashes in its settings."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.options import whole

MOST = 1 << 16
"""Hashes that are kept, of 4 bytes each."""
COLUMNS = 64
"""Columns that a hash is made of, at most."""
FACTOR, TOP = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


def remembered(x: Any, y: Any, held_out: tuple[Any, Any] | None) -> dict[str, Any]:
    """What `seen_share` needs: hashes of the rows that are trained on, of many every `every`th by its hash.

    `alike` is the share of rows that are like others anyhow: of those held out like one that is trained on, or where
    none are, of the rows that are there more than once.
    """
    hashes = row_hashes(x, y)
    every = math.ceil(len(hashes) / MOST)
    kept = np.unique(_short(hashes, every))
    found = {"every": every, "hashes": base64.b64encode(kept.astype("<u4").tobytes()).decode()}
    share = 1.0 - len(np.unique(hashes)) / len(hashes) if held_out is None else seen_share(found, *held_out)
    return found | {"alike": share}


def seen_share(known: Mapping[str, Any], x: Any, y: Any) -> float:
    """The share of rows, estimated where there were many, that are among those remembered; 0 where none can be told.

    Raises LookupError, TypeError or ValueError where what is known is damaged.
    """
    kept = np.frombuffer(base64.b64decode(known["hashes"], validate=True), "<u4")
    some = _short(row_hashes(x, y), whole("every", known["every"], 1))
    return float(np.isin(some, kept).mean()) if len(some) else 0.0


def _short(hashes: Array, every: int) -> Array:
    return (hashes[hashes % np.uint64(every) == 0] >> TOP).astype(np.uint32)


def row_hashes(x: Any, y: Any) -> Array:
    """A number of 64 bits for every row of what a network and its loss take."""
    columns = [column for array in (*(x.values() if isinstance(x, dict) else (x,)), y) for column in _columns(array)]
    hashes = np.full(len(columns[-1]), FACTOR)
    for column in columns:
        values = np.ascontiguousarray(column, dtype=np.float64) + 0.0  # as which 0 and -0 are the same
        values[np.isnan(values)] = np.nan
        hashes = (hashes ^ values.view(np.uint64)) * FACTOR
        hashes ^= hashes >> TOP
    return hashes * FACTOR


def _columns(array: Any) -> list[Array]:
    host = backend_of(array).to_host(array)
    host = host.reshape(len(host), -1)
    step = -(-host.shape[1] // COLUMNS)
    return [host[:, i] for i in range(0, host.shape[1], step)]
