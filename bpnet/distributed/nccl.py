"""Ranks that are processes with a GPU each, between which NCCL adds gradients up."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from socket import gethostname
from time import monotonic
from typing import TYPE_CHECKING, Any

from bpnet.backends.base import Array, Backend
from bpnet.distributed.base import Combine, Communicator, agreed, on_all_ranks
from bpnet.distributed.mpi import MPI
from bpnet.errors import DeviceError, OptionError, RankError, plural
from bpnet.options import choice, number

if TYPE_CHECKING:
    from bpnet.backends.cupy.collectives import NcclSums

PERIOD = 0.25
"""Seconds between two looks at whether the device goes on."""
WAITED = 1.0
"""Seconds that a device waits in a sum before the others are asked why."""


@dataclass(frozen=True)
class NCCL:
    """Trains with the processes that `mpiexec` has started, each on a GPU of its own, with CuPy arrays.

    NVIDIA's library adds the gradients up, on the stream on which the step computes: a step is one CUDA graph with
    the sum in it, and the host waits for nothing.  All else that ranks say to each other goes through MPI, as with
    `MPI`, where `rows` and `timeout` are explained.

    With `dtype="bfloat16"` half the bytes are sent: each rank rounds its gradient to 8 significant bits (to nearest, of
    two as near to the even one), and so does NCCL every sum of two.  The gradient of n ranks then differs from the sum
    of theirs by no more than about n 2**-8 times the sum of their absolute values, element by element.  The loss and
    running statistics are sent as they are.  For networks of float32.

    Needs CuPy, mpi4py with an MPI, and NVIDIA's library: pip install 'bpnet-xp[cuda13,nccl]' mpich nvidia-nccl-cu13 (or
    cuda12 and nvidia-nccl-cu12).  So far this has run on a substitute for devices and for NCCL alone, not on a GPU.
    """

    rows: str = "same"
    dtype: str | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        choice("rows", self.rows, ("same", "own"))
        if self.dtype is not None:
            choice("dtype", self.dtype, ("bfloat16",))
        number("timeout", self.timeout, 1.0, math.inf, "left")

    def connect(self) -> Communicator:
        """The ranks; called by all of them.

        Raises MissingExtraError without mpi4py; and at the first sum MissingPackageError without NVIDIA's library, and
        DeviceError where two ranks are on one GPU, or NCCL refuses something else.
        """
        control = MPI(rows=self.rows, timeout=self.timeout).connect()
        return NCCLCommunicator(control, self.dtype, self.timeout)


class NCCLCommunicator(Communicator):
    """Ranks whose vectors NCCL adds up, and who say everything else by another communicator, `control`.

    A thread of its own looks at how many sums the device has begun and how many it has done.  Where it stays in one,
    other ranks are not coming: `control` then finds out who that is.  The sum is aborted, so that whoever waits for the
    device goes on, and hears of it by `check`.
    """

    captured = True

    def __init__(self, control: Communicator, dtype: str | None = None, timeout: float = 30.0) -> None:
        self.control, self.dtype, self.timeout = control, dtype, timeout
        self.rank, self.size, self.rows = control.rank, control.size, control.rows
        self.local_rank, self.local_size = control.local_rank, control.local_size
        self.sums: NcclSums | None = None
        self.error: RankError | None = None
        """By which the training ends."""
        self.watch: Any = getattr(control, "watch", None)
        self.joining = False
        """Whether NCCL is connecting the ranks."""
        self.seen: tuple[int, int] | None = None
        self.since = 0.0
        """What was last seen of the device, and since when."""
        self.ended = threading.Event()

    # ---- sums ---------------------------------------------------------------------------------------------------

    def all_reduce(self, backend: Backend, vector: Array, tail: int = 0) -> Array:
        if self.size == 1:
            return vector
        self.check()
        if backend.name != "cupy":
            raise on_all_ranks(
                OptionError(
                    f"distributed is NCCL, which adds up arrays on GPUs, but these are of {backend.name}: pass arrays "
                    "of CuPy, or NumPy's with device='cuda', or leave them where they are with distributed='mpi'"
                )
            )
        if self.sums is None:
            self.sums = self._connected(backend.device(vector))
        return self.sums.all_reduce(vector, tail, self.dtype)

    def all_reduce_ordered(
        self, backend: Backend, parts: Sequence[Array], counts: Sequence[int], combine: Combine
    ) -> Array:
        raise OptionError("distributed is NCCL, which adds up in an order of its own: use MPI(reduction='ordered')")

    def _connected(self, device: Any) -> NcclSums:
        """NCCL's ranks, on their devices, which a process has once; raises on all of them what one raises."""
        from bpnet.backends.cupy import collectives

        known = KNOWN.get((id(self.watch), device.id)) if self.watch is not None else None
        known = None if known is None or known.broken else known
        identity = agreed(self, self._identity)
        several = self.all_gather(((gethostname(), collectives.place(device)), known is not None))
        found = [place for place, _ in several]
        for rank, own in enumerate(found):
            if own in found[:rank]:
                raise on_all_ranks(
                    DeviceError(
                        f"ranks {found.index(own)} and {rank} are both on GPU {own[1]} of host {own[0]}, but NCCL "
                        "wants a GPU for each: start no more ranks on a host than it has GPUs, and make arrays on the "
                        "GPU of the rank, as device='cuda' does. Ranks that share one can use distributed='mpi'"
                    )
                )
        self.joining, self.seen, self.since = True, None, monotonic()
        threading.Thread(target=_looking, args=(weakref.ref(self), self.ended), name="bpnet-nccl", daemon=True).start()
        try:
            if known is None or not all(reused for _, reused in several):
                identity = self.broadcast(identity)
                with device:  # NCCL takes the current one
                    known = agreed(self, collectives.NcclSums, self.size, self.rank, identity)
        finally:
            self.joining = False
        if self.watch is not None:
            KNOWN[id(self.watch), device.id] = known
        return known

    def _identity(self) -> Any:
        from bpnet.backends.cupy import collectives

        nccl = collectives.nccl()
        return nccl.get_unique_id() if self.rank == 0 else None

    # ---- all else -----------------------------------------------------------------------------------------------

    def all_gather(self, value: Any) -> list[Any]:
        with self._heard():
            return self.control.all_gather(value)

    def broadcast(self, value: Any) -> Any:
        with self._heard():
            return self.control.broadcast(value)

    def broadcast_array(self, backend: Backend, array: Array) -> Array:
        with self._heard():
            return self.control.broadcast_array(backend, array)

    def describe(self) -> str:
        return self.control.describe()

    def phase(self, what: str, limit: float | None = None) -> AbstractContextManager[None]:
        return self.control.phase(what, limit)

    def beat(self) -> None:
        self.control.beat()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """A failure is known before, and after, all have met; who fails is known to NCCL too."""
        self.check()
        try:
            yield
        except RankError as error:
            self._abort(error)
            raise

    def check(self) -> None:
        """Raise RankError where a sum was aborted: what the device gave since is worth nothing."""
        if self.error is not None:
            self.control.check()  # which then knows that this rank has heard of it
            raise self.error

    def fail(self, error: BaseException) -> None:
        self.control.fail(error)
        if not isinstance(error, RankError):
            error = RankError(f"rank {self.rank} has failed: {error}")
        self._abort(error)

    def close(self) -> None:
        self.ended.set()
        self.control.close()

    # ---- the thread ---------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """See whether the device goes on, and whether the others do."""
        sums, seen = self.sums, (0, 0)
        if sums is not None:
            seen = int(sums.counted[0]), int(sums.counted[1])
            failed = sums.error()
            if failed is not None:
                self._lost(f"NCCL has failed on rank {self.rank}: {failed}")
        if seen != self.seen:
            self.seen, self.since = seen, now
            self.control.beat()
        waits = self.joining or (sums is not None and sums.waits)
        self._tell(waits and now - self.since > min(WAITED, self.timeout / 10.0))
        if self.watch is not None and self.watch.failure is not None:
            self._abort(RankError(self.watch.failure.text))
        elif waits and now - self.since > self.timeout:
            done = f"after {plural(seen[1], 'sum')}" if sums is not None else "to be connected"
            self._lost(f"the GPU of rank {self.rank} has waited {self.timeout:g} s for other ranks, {done}")

    def _tell(self, waits: bool) -> None:
        """Have the other ranks told that this one waits, though its program may not: it is its device."""
        watch = self.watch
        if watch is None:
            return
        doing = watch.doing
        if waits and doing.at == "computes":
            watch.doing = replace(doing, at="waits", what=SUM, since=self.since)
        elif not waits and doing.what == SUM:
            watch.doing = replace(doing, at="computes", what="", since=monotonic())

    def _lost(self, text: str) -> None:
        """The ranks can't go on, and it is not known who is to blame."""
        error = RankError(text)
        self.control.fail(error)
        self._abort(error)

    def _abort(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error if isinstance(error, RankError) else RankError(str(error))
        self.ended.set()
        if self.sums is not None:  # it may wait for captured steps to be forgotten, which they never are
            threading.Thread(target=self.sums.abort, name="bpnet-nccl-abort", daemon=True).start()


def _looking(known: weakref.ref[NCCLCommunicator], ended: threading.Event) -> None:
    """What the thread does as long as somebody else has the communicator."""
    period = PERIOD
    while not ended.wait(period):
        ranks = known()
        if ranks is None:
            return
        ranks.look(monotonic())
        period = min(PERIOD, ranks.timeout / 20.0)
        del ranks


SUM = "a sum of NCCL"
KNOWN: dict[tuple[int, int], NcclSums] = {}
"""The ranks of NCCL of this process, by who watches those of MPI, who lives as long, and the number of the device."""
