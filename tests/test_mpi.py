"""Ranks that are processes of MPI: what they say to each other arrives, and one that fails ends all."""

import functools
import operator

import numpy as np
from support.ranks import ranks, threads

import bpnet as bp
from bpnet.backends.base import by_halves


def calls(communicator):
    """What each call gives, on three kinds of arrays."""
    backend = bp.backends.backend_of(np.zeros(1))
    rank, size = communicator.rank, communicator.size
    found = {"rank": (rank, size), "gathered": communicator.all_gather({"rank": rank})}
    found["broadcast"] = communicator.broadcast([rank, "of", size])
    for dtype in ("float32", "float64"):
        vector = (np.arange(1001) + 1000 * rank).astype(dtype)
        found[f"sum {dtype}"] = communicator.all_reduce(backend, vector)
        found[f"array {dtype}"] = communicator.broadcast_array(backend, np.full(7, rank, dtype))
        parts = [np.random.default_rng(10 * rank + i).normal(size=11).astype(dtype) for i in range(rank + 1)]
        combine = functools.partial(by_halves, add=operator.add)
        found[f"ordered {dtype}"] = communicator.all_reduce_ordered(backend, parts, [1, 2, 3][:size], combine)
    return found


def check_calls(found):
    size = len(found)
    for rank, one in enumerate(found):
        assert one["rank"] == (rank, size)
        assert one["gathered"] == [{"rank": other} for other in range(size)]
        assert one["broadcast"] == [0, "of", size]
        for dtype in ("float32", "float64"):
            total = size * np.arange(1001) + 1000 * sum(range(size))
            assert one[f"sum {dtype}"].dtype == one[f"array {dtype}"].dtype == dtype
            assert np.array_equal(one[f"sum {dtype}"], total)
            assert np.array_equal(one[f"array {dtype}"], np.zeros(7))
            parts = [
                np.random.default_rng(10 * r + i).normal(size=11).astype(dtype)
                for r in range(size)
                for i in range(r + 1)
            ]
            assert np.array_equal(one[f"ordered {dtype}"], by_halves(parts, operator.add))


def test_what_ranks_say_to_each_other():
    check_calls(threads(3, calls))
    check_calls(ranks(3, calls))
