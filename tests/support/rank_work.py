"""What ranks do in tests of communicators; a module of its own, since each process imports it."""

import functools
import operator
import os
import signal
import time

import numpy as np

import bpnet as bp
from bpnet.backends.base import by_halves

BLOCKS = 12


def blocks(dtype):
    """Of a sum over blocks of rows, the parts; of a size that no number of ranks divides."""
    rng = np.random.default_rng(0)
    return [(rng.normal(size=1003) * 10.0 ** rng.integers(-3, 4)).astype(dtype) for _ in range(BLOCKS)]


def add(dtype):
    return functools.partial(by_halves, add=operator.add)


def calls(ranks):
    """What each call gives, on three kinds of arrays."""
    backend = bp.backends.backend_of(np.zeros(1))
    rank, size = ranks.rank, ranks.size
    found = {
        "rank": (rank, size),
        "described": ranks.describe(),
        "local": (ranks.local_rank, ranks.local_size),
        "gathered": ranks.all_gather({"rank": rank}),
    }
    found["broadcast"] = ranks.broadcast([rank, "of", size])
    for dtype in ("float32", "float64"):
        vector = (np.arange(1001) + 1000 * rank).astype(dtype)
        found[f"sum {dtype}"] = ranks.all_reduce(backend, vector)
        found[f"in place {dtype}"] = found[f"sum {dtype}"] is vector
        found[f"array {dtype}"] = ranks.broadcast_array(backend, np.full(7, rank, dtype))
        parts = blocks(dtype)
        own = parts[BLOCKS * rank // size : BLOCKS * (rank + 1) // size]
        found[f"ordered {dtype}"] = ranks.all_reduce_ordered(backend, own, [BLOCKS // size] * size, add(dtype))
    return found


def groups(ranks):
    """`calls` of all ranks, and of groups of 2."""
    from mpi4py import MPI

    half = bp.distributed.MPI(comm=MPI.COMM_WORLD.Split(ranks.rank // 2)).connect()
    return calls(ranks), calls(half)


def fails(ranks, how):
    """After some sums the last rank does what `how` says, and tells the time."""
    backend, vector = bp.backends.backend_of(np.zeros(1)), np.ones(1000)
    with ranks.phase("training"):
        for step in range(10):
            vector = ranks.all_reduce(backend, vector)
            if step == 5 and ranks.rank == ranks.size - 1:
                print(f"{how} at {time.time()} in {os.getpid()}", flush=True)
                act(how)


def act(how):
    if how == "raises":
        raise ValueError("a bad row")
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "sleeps":
        time.sleep(1000.0)
    while how == "loops":
        pass
    if how == "exits":
        raise SystemExit(3)


def others(ranks, how):
    """What all ranks do, and ends as one program."""
    if how == "all raise":
        raise ValueError("the same on all")
    if how == "all raise, marked":
        error = ValueError("the same on all")
        error.on_all_ranks = True
        raise error
    if how == "each raises another":
        raise ValueError(f"row {ranks.rank}")
    if how == "out of step":
        ranks.all_gather(1) if ranks.rank else ranks.broadcast(1)
    if how == "exits" and ranks.rank == 2:
        raise SystemExit(3)
    if how == "exits":
        ranks.all_gather(1)
    if how.startswith("sums"):
        backend, vector = bp.backends.backend_of(np.zeros(1)), np.ones(100_000)
        with ranks.phase("training"):
            for _ in range(10 if how == "sums" else 10**9):
                ranks.all_reduce(backend, vector)
    if how == "a pause":
        with ranks.phase("training"):
            if ranks.rank:
                with ranks.phase("writing a checkpoint", 100.0):
                    time.sleep(2.5)
            ranks.all_gather(1)
        if ranks.rank:  # outside of all phases, too
            time.sleep(2.5)
        ranks.all_gather(1)
        print("went on", flush=True)
