"""The memory of a child's CUDA device, by the counters of whichever library the child has loaded."""

from __future__ import annotations

import gc
import sys
from typing import Any


def _pools() -> list[Any]:
    """CuPy's memory pools: the default one, and those that somebody made for a graph of his own."""
    pool = sys.modules["cupy"].cuda.MemoryPool
    return [thing for thing in gc.get_objects() if issubclass(type(thing), pool)]


def release() -> None:
    """Give back what the libraries keep for later, and forget the peak so far.  JAX keeps what it has."""
    gc.collect()
    if "cupy" in sys.modules:
        for pool in _pools():
            pool.free_all_blocks()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> int | None:
    """The most bytes that the library took from the device; of JAX, that it used of them.  None where it can't tell."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    if jax is not None:
        found = jax.devices()[0].memory_stats()
        return int(found["peak_bytes_in_use"]) if found else None
    if "cupy" in sys.modules:
        return int(sys.modules["cupy"].get_default_memory_pool().total_bytes())  # of which pools for graphs take theirs
    return None
