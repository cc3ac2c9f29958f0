"""Ranks that are processes of MPI."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate, pairwise
from socket import gethostname
from threading import Timer
from time import perf_counter
from typing import Any
from zlib import crc32

import numpy

from bpnet.backends.base import Array, Backend
from bpnet.distributed.base import Combine, Communicator
from bpnet.distributed.devices import is_cuda_aware
from bpnet.distributed.verdict import MOST, PATIENCE
from bpnet.distributed.watch import Watch, say
from bpnet.errors import (
    ArgumentError,
    BpnetWarning,
    MissingExtraError,
    MissingPackageError,
    OptionError,
    kind_of,
    plural,
)
from bpnet.options import choice, flag, number

MOST_NAMED = 16
"""Ranks whose process numbers still fit on a line or two."""
CALLS = "all_reduce", "all_gather", "broadcast"


@dataclass(frozen=True)
class MPI:
    """Trains with the processes that `mpiexec` (or a scheduler) has started, one training of all.

    `rows` is "same" where every rank passes the same data, of which it takes its part of every batch, and "own" where
    each passes rows of its own, which together are the data.  `reduction` is "fast", as MPI adds up, or "ordered": in
    the order of the rows, so that the result has the same bits for any number of ranks that divides the blocks; that
    sends as many bytes as other ways where each rank's blocks make one sum of those that one process adds up, and more
    where they make several.

    A rank that dies, hangs or fails ends all of them within `timeout` seconds, by RankError where Python can still
    raise it.  A rank hangs when it has not come back to the others for four fifths of that: have a longer one where a
    callback takes so long, or have the callback say `trainer.communicator.beat()` now and then.  `comm` is a
    communicator of mpi4py (None: that of all processes).

    Vectors of CuPy are passed to MPI where they lie if it is a CUDA-aware one, and else through pinned memory, which is
    kept from step to step.  `cuda_aware` says which; None asks MPI, of which some don't know.  An MPI that is not, and
    is passed the memory of a device, ends the program.  So far this has run on a substitute for a device alone.

    Needs mpi4py and an MPI: pip install 'bpnet-xp[mpi]' mpich.
    """

    rows: str = "same"
    reduction: str = "fast"
    timeout: float = 30.0
    comm: Any = None
    cuda_aware: bool | None = None

    def __post_init__(self) -> None:
        choice("rows", self.rows, ("same", "own"))
        choice("reduction", self.reduction, ("fast", "ordered"))
        number("timeout", self.timeout, 1.0, 604800.0)
        if self.cuda_aware is not None:
            flag("cuda_aware", self.cuda_aware)

    def connect(self) -> MPICommunicator:
        """The ranks; called by all of them.

        Raises MissingExtraError without mpi4py, and OptionError where MPI can't be used by two threads of a process.
        """
        if find_spec("mpi4py") is None:
            raise MissingExtraError("distributed='mpi'", "mpi4py", "mpi")
        with connecting(self.timeout):
            mpi = _library()
            if mpi.Is_finalized() or not mpi.Is_initialized():
                raise OptionError("distributed is MPI, which is not initialized, or already finalized, in this process")
            if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
                raise OptionError(
                    "MPI was initialized for one thread, but ranks watch each other by a second one: leave "
                    'mpi4py.rc.thread_level at "multiple"'
                )
            comm = mpi.COMM_WORLD if self.comm is None else self.comm
            if not isinstance(comm, mpi.Intracomm):
                raise ArgumentError(f"comm is {kind_of(comm)}; expected an intracommunicator of mpi4py, or None")
            watch = _watch(mpi, comm, self.timeout)
        if watch.rank:  # what warns of one warns of all
            warnings.simplefilter("ignore", BpnetWarning)
        return MPICommunicator(watch, self.rows, self.reduction, self.cuda_aware)


def _caller() -> str:
    """The function of bpnet's that calls the one that asks: what others say elsewhere is not for it."""
    frame = sys._getframe(2)
    return frame.f_code.co_name if str(frame.f_globals.get("__name__")).startswith("bpnet.") else ""


@contextmanager
def connecting(timeout: float) -> Iterator[None]:
    """Until all are connected, the others can only be waited for: this long, since some may start late."""
    names = "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"
    rank = next((int(os.environ[name]) for name in names if name in os.environ), None)
    if rank is None:  # nobody has started others
        yield
        return
    limit = MOST * timeout

    def end() -> None:
        text = (
            f"bpnet: rank {rank} (host {gethostname()}, process {os.getpid()}) has waited {limit:g} s for the others "
            "to connect: they have ended, or come later. Connect first, by bp.distributed.MPI().connect(), and do then "
            "what takes long"
        )
        if rank < 2:  # one of which waits
            say(text)
        os._exit(1)

    timer = Timer(limit + min(rank, 5), end)  # the others end as the first does
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _library() -> Any:
    """The module of mpi4py, with MPI begun."""
    try:
        import mpi4py

        begun = "mpi4py.MPI" in sys.modules or not mpi4py.rc.initialize
        if not begun:
            mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI as mpi
    except (ImportError, RuntimeError) as error:  # mpi4py is there, but no MPI that it could load
        raise MissingPackageError("distributed='mpi'", "mpich") from error
    if not begun and not mpi.Is_initialized():
        # mpi4py would let no other thread run meanwhile, which could take as long as the last rank to come
        begin, level = ctypes.CDLL(mpi.__file__).MPI_Init_thread, ctypes.c_int()
        if begin(None, None, mpi.THREAD_MULTIPLE, ctypes.byref(level)):
            raise OptionError("distributed is MPI, which could not be initialized")
    return mpi


def _watch(mpi: Any, comm: Any, timeout: float) -> Watch:
    """That of a communicator, which has one as long as it lives."""
    if not _KEYS:
        _KEYS.append(mpi.Comm.Create_keyval(delete_fn=lambda comm, key, watch: watch.stop()))
    watch: Watch | None = comm.Get_attr(_KEYS[0])
    if watch is None:
        watch = Watch(mpi, comm, timeout)
        comm.Set_attr(_KEYS[0], watch)
    watch.timeout = timeout
    return watch


_KEYS: list[int] = []


class MPICommunicator(Communicator):
    """The ranks of a communicator of mpi4py.

    Before every call that all make they meet, by a call of a few bytes that is polled; so whoever waits can be
    interrupted, and told whom it waits for.  What comes then is done by MPI's blocking calls, which are its fastest.
    """

    def __init__(self, watch: Watch, rows: str, reduction: str, cuda_aware: bool | None = None) -> None:
        self.watch, self.mpi, self.comm = watch, watch.mpi, watch.comm
        self.rank, self.size = watch.rank, watch.size
        self.local_rank, self.local_size = watch.local_rank, watch.local_size
        self.rows, self.reduction, self.cuda_aware = rows, reduction, cuda_aware
        self.bytes_sent = 0
        """Bytes of vectors that this rank has sent; where MPI itself adds up, the fewest that this can be done with."""
        self.seconds = 0.0
        """Seconds that were spent on communication, waiting for others included."""
        self.received: numpy.ndarray[Any, Any] = numpy.empty(0)

    # ---- what all call ------------------------------------------------------------------------------------------

    @contextmanager
    def _together(self, what: str, size: int = 0, by: str = "") -> Iterator[None]:
        """What all ranks do together, with `size` bytes of each, called `by` the same function of bpnet's."""
        begun, watch = perf_counter(), self.watch
        try:
            call = CALLS.index(what) + 1 + len(CALLS) * crc32(by.encode())
            watch.meet(call, f"{what} ({by})" if by else what, size)
            yield
        except self.mpi.Exception as error:
            raise watch.broken(what, error) from error
        finally:
            watch.met()
            self.seconds += perf_counter() - begun

    def all_reduce(self, backend: Backend, vector: Array, tail: int = 0) -> Array:
        if self.size == 1:
            return vector
        own = self._on_host(backend, vector)
        with self._together("all_reduce", own.nbytes):
            self.comm.Allreduce(self.mpi.IN_PLACE, own)
        self.bytes_sent += 2 * own.nbytes * (self.size - 1) // self.size
        return self._given_back(backend, own, vector)

    def all_reduce_ordered(
        self, backend: Backend, parts: Sequence[Array], counts: Sequence[int], combine: Combine
    ) -> Array:
        """See the base class.

        Each rank is sent its segment of the vectors of all, and combines these; then all are sent all segments.  With
        one vector a rank that is no more bytes than any other all-reduce sends.
        """
        if self.size == 1:
            return combine(parts)
        own = [numpy.ascontiguousarray(backend.to_host(part)) for part in parts]
        like, size = own[0], own[0].size
        starts = [size * rank // self.size for rank in range(self.size + 1)]
        lengths = [stop - start for start, stop in pairwise(starts)]
        before, mine = list(accumulate(counts, initial=0)), lengths[self.rank]
        if self.received.size < before[-1] * mine or self.received.dtype != like.dtype:
            self.received = numpy.empty(before[-1] * mine, like.dtype)  # kept, since new memory is slow at first
        received = self.received[: before[-1] * mine]
        total = like if like.flags.writeable else numpy.empty(size, like.dtype)
        with self._together("all_reduce", like.nbytes):
            for i in range(max(counts)):
                out, given = (own[i], lengths) if i < len(own) else (like, [0] * self.size)
                taken = [mine * (i < count) for count in counts]
                places = [(first + min(i, count - 1)) * mine for first, count in zip(before, counts, strict=False)]
                self.comm.Alltoallv([out, (given, starts[:-1])], [received, (taken, places)])
            segment = combine(list(received.reshape(before[-1], mine)))
            self.comm.Allgatherv(numpy.ascontiguousarray(segment), [total, lengths])
        self.bytes_sent += like.itemsize * (len(own) * (size - mine) + (self.size - 1) * mine)
        return self._sent_back(backend, total, parts[0])

    def all_gather(self, value: Any) -> list[Any]:
        with self._together("all_gather", by=_caller()):
            found: list[Any] = self.comm.allgather(value)
        return found

    def broadcast(self, value: Any) -> Any:
        with self._together("broadcast", by=_caller()):
            return self.comm.bcast(value)

    def broadcast_array(self, backend: Backend, array: Array) -> Array:
        own = self._on_host(backend, array)
        with self._together("broadcast", own.nbytes):
            self.comm.Bcast(own)
        return self._given_back(backend, own, array)

    def describe(self) -> str:
        hosts: dict[str, list[str]] = {}
        for host, process in self.watch.processes:
            hosts.setdefault(host, []).append(str(process))
        ranks = super().describe()
        if self.size > MOST_NAMED:
            return f"{ranks} on {plural(len(hosts), 'host')}"
        return f"{ranks}: " + "; ".join(f"processes {', '.join(some)} on {host}" for host, some in hosts.items())

    # ---- how they go on -----------------------------------------------------------------------------------------

    def phase(self, what: str, limit: float | None = None) -> AbstractContextManager[None]:
        if limit is None:
            limit = PATIENCE * self.watch.timeout
        elif not self.watch.phases:
            limit = math.inf
        return self.watch.phase(what, limit)

    def beat(self) -> None:
        self.watch.beat()

    def check(self) -> None:
        self.watch.check()

    def fail(self, error: BaseException) -> None:
        self.watch.fail(error)

    # ---- arrays -------------------------------------------------------------------------------------------------

    def _on_host(self, backend: Backend, vector: Array) -> Any:
        """The array as MPI takes it and may write to it: itself where it is one of NumPy."""
        if backend.name == "cupy":
            return self.staging.begin(vector)
        if isinstance(vector, numpy.ndarray) and vector.flags.c_contiguous and vector.flags.writeable:
            return vector
        return numpy.array(backend.to_host(vector), order="C")

    def _given_back(self, backend: Backend, own: Any, like: Array) -> Array:
        """What MPI has left there, as an array like the one that it was made of."""
        if backend.name == "cupy":
            return self.staging.end(own, like)
        return self._sent_back(backend, own, like)

    def _sent_back(self, backend: Backend, own: numpy.ndarray[Any, Any], like: Array) -> Array:
        return own if isinstance(like, numpy.ndarray) else backend.from_host(own, like.dtype, backend.device(like))

    @cached_property
    def staging(self) -> Any:
        """How vectors of CuPy go to MPI."""
        from bpnet.backends.cupy.collectives import Staging

        return Staging(is_cuda_aware(self.mpi) if self.cuda_aware is None else self.cuda_aware)
