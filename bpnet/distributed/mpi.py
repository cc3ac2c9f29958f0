"""Ranks that are processes of MPI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy

from bpnet.backends.base import Array, Backend
from bpnet.distributed.base import Combine, Communicator
from bpnet.errors import MissingExtraError


@dataclass(frozen=True)
class MPI:
    """The processes that `mpiexec` has started.

    `comm` is a communicator of mpi4py (None: that of all processes).
    """

    rows: str = "same"
    reduction: str = "fast"
    timeout: float = 30.0
    comm: Any = None

    def connect(self) -> Communicator:
        """The ranks; called by all of them."""
        try:
            from mpi4py import MPI as mpi
        except ImportError:
            raise MissingExtraError("distributed='mpi'", "mpi4py", "mpi") from None
        return MPICommunicator(mpi, mpi.COMM_WORLD if self.comm is None else self.comm, self.rows, self.reduction)


class MPICommunicator(Communicator):
    """The ranks of a communicator of mpi4py.

    Before every call that all make there is a barrier that is polled, so that whoever waits can be interrupted, and
    find out whom it waits for; what comes then is done by MPI's blocking calls, which are its fastest.
    """

    def __init__(self, mpi: Any, comm: Any, rows: str, reduction: str) -> None:
        self.mpi, self.comm = mpi, comm.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.rows, self.reduction = rows, reduction
        self.bytes_sent = 0
        """Bytes of vectors that this rank has sent; where MPI itself adds up, the fewest that this can be done with."""
        self.seconds = 0.0
        """Seconds that were spent on communication, waiting for others included."""

    # ---- what all call ------------------------------------------------------------------------------------------

    def all_reduce(self, backend: Backend, vector: Array, tail: int = 0) -> Array:
        if self.size == 1:
            return vector
        begun = perf_counter()
        own = self._on_host(backend, vector)
        self._meet("all_reduce")
        self.comm.Allreduce(self.mpi.IN_PLACE, own)
        self.bytes_sent += 2 * own.nbytes * (self.size - 1) // self.size
        vector = self._given_back(backend, own, vector)
        self.seconds += perf_counter() - begun
        return vector

    def all_reduce_ordered(
        self, backend: Backend, parts: Sequence[Array], counts: Sequence[int], combine: Combine
    ) -> Array:
        """See the base class.

        Each rank is sent its segment of the vectors of all, and combines these; then all are sent all segments.  With
        one vector a rank that are no more bytes than any other all-reduce sends.
        """
        if self.size == 1:
            return combine(parts)
        begun = perf_counter()
        own = [numpy.ascontiguousarray(backend.to_host(part)) for part in parts]
        like, size = own[0], own[0].size
        borders = [size * rank // self.size for rank in range(self.size + 1)]
        lengths = [stop - start for start, stop in pairwise(borders)]
        kind = self.mpi._typedict[like.dtype.char]
        sent = numpy.concatenate([part[a:b] for a, b in pairwise(borders) for part in own])
        mine = lengths[self.rank]
        received = numpy.empty(sum(counts) * mine, like.dtype)
        self._meet("all_reduce")
        self.comm.Alltoallv(
            [sent, [len(own) * length for length in lengths], kind],
            [received, [count * mine for count in counts], kind],
        )
        segment = numpy.ascontiguousarray(combine(list(received.reshape(-1, mine))))
        total = numpy.empty(size, like.dtype)
        self.comm.Allgatherv([segment, mine, kind], [total, lengths, kind])
        self.bytes_sent += like.itemsize * (len(own) * (size - mine) + (self.size - 1) * mine)
        vector = self._given_back(backend, total, parts[0])
        self.seconds += perf_counter() - begun
        return vector

    def all_gather(self, value: Any) -> list[Any]:
        begun = perf_counter()
        self._meet("all_gather")
        found: list[Any] = self.comm.allgather(value)
        self.seconds += perf_counter() - begun
        return found

    def broadcast(self, value: Any) -> Any:
        begun = perf_counter()
        self._meet("broadcast")
        value = self.comm.bcast(value)
        self.seconds += perf_counter() - begun
        return value

    def broadcast_array(self, backend: Backend, array: Array) -> Array:
        begun = perf_counter()
        own = self._on_host(backend, array)
        self._meet("broadcast")
        self.comm.Bcast(own)
        array = self._given_back(backend, own, array)
        self.seconds += perf_counter() - begun
        return array

    def _meet(self, what: str) -> None:
        """Wait until all ranks have come here."""
        request = self.comm.Ibarrier()
        while not request.Test():
            pass

    # ---- arrays -------------------------------------------------------------------------------------------------

    def _on_host(self, backend: Backend, vector: Array) -> numpy.ndarray[Any, Any]:
        """The array as one of NumPy that may be written to: itself where it is one."""
        if isinstance(vector, numpy.ndarray) and vector.flags.c_contiguous and vector.flags.writeable:
            return vector
        return numpy.array(backend.to_host(vector), order="C")

    def _given_back(self, backend: Backend, own: numpy.ndarray[Any, Any], like: Array) -> Array:
        return own if isinstance(like, numpy.ndarray) else backend.from_host(own, like.dtype, backend.device(like))
