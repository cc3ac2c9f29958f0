"""What the ranks of a training see to: that all have the same, and that what one finds, all know."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from socket import gethostname
from typing import TYPE_CHECKING, Any

from bpnet.collected import Collected
from bpnet.data.loader import Batch, Loader, parts
from bpnet.distributed.base import Communicator, on_all_ranks
from bpnet.errors import BpnetWarning, OptionError, users_line

if TYPE_CHECKING:
    from bpnet.engine import Engine


def check_same(ranks: Communicator, given: Mapping[str, Any]) -> None:
    """Raise OptionError, on all ranks, where one of them was given something else than rank 0, by what is shown."""
    texts = {name: re.sub(r" at 0x[0-9a-fA-F]+", "", str(value)) for name, value in given.items()}
    first, *others = ranks.all_gather(texts)
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                hint = "every rank is to be given the same; for rows of its own see rows='own' of the options"
                shown = "" if name == "the data" else f": {value} there, but {other.get(name)}"
                raise on_all_ranks(OptionError(f"{name} differs between rank 0 and rank {rank}{shown} ({hint})"))


def threads_of_rank(ranks: Communicator) -> int | None:
    """How many threads a rank uses where nobody says: its share of the processors that those of its host may run on."""
    if ranks.local_size == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    every = ranks.all_gather((gethostname(), own))
    together = set().union(*(some for host, some in every if host == gethostname()))
    return max(1, min(len(own), len(together) // ranks.local_size))


def same_state(engine: Engine) -> bool:
    """Whether all ranks had the same parameters, buffers and optimizer's state; all then have those of rank 0."""
    (theta, buffers, state), count = engine.state.now
    backend, ranks, found = engine.backend, engine.ranks, hashlib.blake2b()
    with engine.looking():
        for array in (theta, buffers, *state):
            found.update(memoryview(backend.to_host(array)).cast("B") if array.shape else backend.to_host(array))
        first, *others = ranks.all_gather((found.digest(), count))
        if all(other == first for other in others):
            return True
        carry = [ranks.broadcast_array(backend, array) for array in (theta, buffers, *state)]
    engine.known_batch = None
    engine.state.now = (carry[0], carry[1], tuple(carry[2:])), first[1]
    return False


def warn_of_drift(ranks: Communicator) -> None:
    """Once, on rank 0."""
    if ranks.rank == 0:
        warnings.warn(
            "ranks computed other parameters from the same sums, as different processors or library versions may: "
            "those of rank 0 were taken, here and after every such epoch",
            BpnetWarning,
            stacklevel=users_line(),
        )


def evaluation(
    ranks: Communicator, data: Loader, size: int
) -> tuple[Callable[[], Iterator[Batch]], int, float, Callable[..., Any]]:
    """What this rank has of an evaluation by batches of `size`; how many rows all have, and their weight; and

    gather(numbers of the batches, `data.passed()`, collected) -> those of all ranks; `collected` gets their statistics,

    in the order of the rows.  The same rows are parted evenly, or where sums are to be the same for any number of
    ranks, by batches.
    """

    def gather(found: list[Any], passed: Any, collected: Collected) -> tuple[list[Any], Any]:
        every = ranks.all_gather((found, passed, collected.on_host()))
        collected.replace([batch for *_, some in every for batch in some])
        if passed is not None:
            passed = tuple(map(sum, zip(*(own for _, own, _ in every), strict=True)))
        return [numbers for some, *_ in every for numbers in some], passed

    count, weight = data.count, data.total_weight()
    if ranks.rows == "own":
        counts, weights = zip(*ranks.all_gather((count, weight)), strict=True)
        return partial(data.batches, size), sum(counts), sum(weights), gather
    size = size if ranks.reduction == "ordered" else min(size, -(-count // ranks.size))
    cuts = parts(count, size)
    mine = cuts[len(cuts) * ranks.rank // ranks.size : len(cuts) * (ranks.rank + 1) // ranks.size]
    batches = partial(data.batches, mine)
    if data.lazy:
        batches = partial(data.batches, size, range(mine[0][0], mine[-1][1]) if mine else range(0))
    return batches, count, weight, gather
