"""Several ranks for tests: real MPI processes, and threads of this process.

    def summed(communicator, start):        # of a module's own, since other processes import it by its name
        backend = bp.backends.backend_of(np.zeros(1))
        return communicator.all_reduce(backend, np.full(3, start + communicator.rank))

    ranks(3, summed, 1.0)                   # by mpiexec: what each gave, by rank; skips where there is no MPI
    threads(3, summed, 1.0)                 # the same in threads, on any array library, without MPI

One start of mpiexec takes half a second and more: put many cases into one.
"""

import inspect
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bpnet.distributed.base import Communicator
from bpnet.distributed.verdict import process_state
from bpnet.errors import RankError
from support.children import environment

FOR_MPI = {
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more ranks than cores
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}
"""What Open MPI wants to be told; MPICH passes over it."""


@cache
def mpiexec() -> str:
    """The program that starts ranks, that of this environment before the system's; skips where there is none."""
    if find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed")
    found = shutil.which("mpiexec", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if found is None:
        pytest.skip("there is no mpiexec: pip install mpich")
    return found


@dataclass
class Ended:
    """How a run of several ranks ended."""

    code: int
    out: str
    err: str
    seconds: float
    values: dict[int, Any] = field(default_factory=dict)
    """What the function gave, by rank, of those that came to its end."""
    at: float = 0.0
    """When, as `time.time` tells it."""
    left: list[int] = field(default_factory=list)
    """Processes that were still there when mpiexec had ended."""


class Run:
    """`mpiexec -n COUNT` with a function or a program in every rank, at work until `end`.

    `options` are those of `bp.distributed.MPI` for a function, and `launcher` stands for mpiexec and its arguments.
    """

    def __init__(
        self,
        count: int,
        work: Callable[..., Any] | str,
        *args: Any,
        env: dict[str, str] | None = None,
        launcher: Sequence[str] = (),
        **options: Any,
    ) -> None:
        command = [*(launcher or (mpiexec(), "-n", str(count))), sys.executable]
        self.folder = Path(tempfile.mkdtemp(prefix="bpnet-ranks-"))
        if isinstance(work, str):
            program = self.folder / "program.py"
            program.write_text(dedent(work), encoding="utf-8")
            command += [str(program), *map(str, args)]
        else:
            task = self.folder / "task"
            task.write_bytes(pickle.dumps((inspect.getfile(work), work.__name__, args, options)))
            command += [str(Path(__file__).with_name("rank.py")), str(task)]
        self.begun, self.begun_at = time.monotonic(), time.time()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**FOR_MPI, BPNET_RANKS=str(self.folder), **(env or {})),
            start_new_session=True,
        )

    def processes(self) -> dict[int, int]:
        """The process numbers of ranks that have begun, by rank; on Linux."""
        found = {}
        for number, text in self._family():
            if rank := re.search(r"\0(?:PMI_RANK|OMPI_COMM_WORLD_RANK)=(\d+)", text):
                found[int(rank[1])] = number
        return found

    def _family(self) -> list[tuple[int, str]]:
        """The processes of this run that are alive, each with its environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it has just ended, or is another user's
                text = path.read_bytes().decode(errors="replace")
                if f"BPNET_RANKS={self.folder}\0" in text and process_state(int(path.parent.name)) != "gone":
                    found.append((int(path.parent.name), text))
        return found

    def end(self, timeout: float) -> Ended:
        """Wait for the end; where it does not come in so many seconds, kill all and fail."""
        hangs, out, err = False, "", ""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            hangs = True
        seconds = time.monotonic() - self.begun
        while not hangs and self._family() and time.monotonic() < self.begun + seconds + 1.0:
            time.sleep(0.02)
        left = [number for number, _ in self._family()]
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if hangs:
            out, err = self.process.communicate()
        values = {int(p.suffix[1:]): pickle.loads(p.read_bytes()) for p in self.folder.glob("value.*")}
        shutil.rmtree(self.folder, ignore_errors=True)
        if hangs:
            command = " ".join(map(str, self.process.args))
            pytest.fail(f"{command} hangs after {timeout} s:\n{out[-3000:]}\n{err[-3000:]}")
        return Ended(self.process.returncode, out, err, seconds, values, self.begun_at + seconds, left)


def ranks(
    count: int,
    work: Callable[..., Any] | str,
    *args: Any,
    env: dict[str, str] | None = None,
    timeout: float = 100.0,
    **options: Any,
) -> list[Any]:
    """What `work(communicator, *args)` gives in each of so many MPI processes, by rank.

    `work` is a function of a module's own, or a program, of which the value is what it printed (rank by rank is not
    told apart).  Fails where the run fails, prints to standard error, or takes longer than `timeout` seconds.
    """
    ended = Run(count, work, *args, env=env, **options).end(timeout)
    assert ended.code == 0, f"mpiexec ended with {ended.code}:\n{ended.out[-3000:]}\n{ended.err[-6000:]}"
    assert not ended.left
    return [ended.out] if isinstance(work, str) else [ended.values[rank] for rank in range(count)]


# ---- threads ----------------------------------------------------------------------------------------------------


class _Meeting:
    """Where threads leave what the others take."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)
        self.brought: list[Any] = [None] * count
        self.failure: tuple[int, BaseException] | None = None


class ThreadCommunicator(Communicator):
    """Ranks that are threads of one process."""

    def __init__(self, meeting: _Meeting, rank: int, rows: str = "same", reduction: str = "fast") -> None:
        self.meeting, self.rank, self.size = meeting, rank, len(meeting.brought)
        self.rows, self.reduction = rows, reduction

    def connect(self) -> Communicator:  # so that it can be passed as a trainer's options
        return self

    def all_gather(self, value: Any) -> list[Any]:
        meeting = self.meeting
        meeting.brought[self.rank] = value
        self._wait()
        found = list(meeting.brought)
        self._wait()
        return found

    def _wait(self) -> None:
        try:
            self.meeting.barrier.wait(100.0)
        except threading.BrokenBarrierError:
            rank, reason = self.meeting.failure or (-1, "a rank did not come")
            raise RankError(f"rank {rank} failed: {reason}") from None

    def all_reduce(self, backend: Any, vector: Any, tail: int = 0) -> Any:
        total, *others = self.all_gather(backend.copy(vector))  # nobody writes to what others read
        for other in others:
            total = total + other
        return total

    def all_reduce_ordered(self, backend: Any, parts: Any, counts: Any, combine: Any) -> Any:
        assert len(parts) == counts[self.rank]
        every = self.all_gather([backend.copy(part) for part in parts])
        return combine([backend.copy(part) for some in every for part in some])

    def broadcast(self, value: Any) -> Any:
        return self.all_gather(value)[0]

    def broadcast_array(self, backend: Any, array: Any) -> Any:
        return backend.copy(self.all_gather(backend.copy(array))[0])

    def fail(self, error: BaseException) -> None:
        self.meeting.failure = self.meeting.failure or (self.rank, error)
        self.meeting.barrier.abort()

    def close(self) -> None:
        pass


def threads(count: int, work: Callable[..., Any], *args: Any, rows: str = "same", reduction: str = "fast") -> list[Any]:
    """What `work(communicator, *args)` gives in each of so many threads, by rank; raises what the first one raised.

    The communicator can be a trainer's `distributed`.
    """
    meeting, values, errors = _Meeting(count), [None] * count, [None] * count

    def run(rank: int) -> None:
        communicator = ThreadCommunicator(meeting, rank, rows, reduction)
        try:
            values[rank] = work(communicator, *args)
        except BaseException as error:
            errors[rank] = error  # type: ignore[call-overload]
            communicator.fail(error)

    running = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(100.0)
        assert not thread.is_alive(), "a rank hangs"
    first = next((error for error in errors if error is not None), None)
    if first is not None:  # of which that of the rank that failed first is the reason
        failed = None if meeting.failure is None else errors[meeting.failure[0]]
        raise failed or first
    return values
