"""What ranks of MPI know of each other: who waits, who is at work, who has failed, hangs or is gone.

A rank that waits for the others polls (`Watch.meet`), so that it can be interrupted and told of a failure.  A thread of
its own sleeps for most of the time.  Where its rank has waited for a while, it asks the others, whose threads answer:
what they are doing, and since when.  Who hangs, or does not answer, is then named to all, and all end by RankError.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from socket import gethostname
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import numpy

from bpnet.distributed.verdict import END, PATIENCE, Doing, Failure, judge, process_state
from bpnet.errors import RankError

PERIOD = 0.25
"""Seconds between two looks of the thread."""
ASKED = 1.0
"""Seconds that a rank waits before it asks the others, and between two questions."""
SPUN = 0.2
"""Seconds for which a rank that waits does not sleep."""
GRACE = 0.1
"""The share of the time limit that a rank waits for others to end, when it ends by an error; a second at least."""
LONGEST = 1000
"""Most characters of a text that is sent."""


class Watch:
    """Of one communicator of mpi4py; it lives as long as the process."""

    previous_hook: Callable[..., Any] = staticmethod(sys.excepthook)
    """What shows an error that nobody has caught."""

    def __init__(self, mpi: Any, comm: Any, timeout: float) -> None:
        self.mpi, self.timeout = mpi, timeout
        self.process, self.launcher = os.getpid(), os.getppid()
        request = comm.Ibarrier()
        while not request.Test():
            sleep(0.001)
        self.comm, self.control = comm.Dup(), comm.Dup()
        known = self.comm.allgather((gethostname(), self.process, _machine()))
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.processes = [(host, number) for host, number, _ in known]
        self.names = [f"rank {rank} (host {host}, process {number})" for rank, (host, number, _) in enumerate(known)]
        beside = [rank for rank, (host, *_) in enumerate(known) if host == known[self.rank][0]]
        self.local_rank, self.local_size = beside.index(self.rank), len(beside)
        self.beside = [machine == known[self.rank][2] for *_, machine in known]
        """Which ranks are of this machine, where their processes can be looked up."""
        self.main = threading.get_ident()
        self.doing = Doing(0, "computes", "", monotonic())
        self.phases: list[tuple[str, float, float]] = []
        self.beaten = 0.0
        self.failure: Failure | None = None
        self.raised = False
        """Whether the program has heard of the failure."""
        self.told: BaseException | None = None
        """The error of this rank of which others have been told."""
        self.others_failed: dict[int, bool] = {}
        """The ranks that have failed, and whether each by an error of its own."""
        self.ended: dict[int, bool] = {}
        """The ranks whose programs end, and whether each has shown an error."""
        self.heard: dict[int, tuple[float, Doing | None]] = {}
        """When each other rank last said something, and what it was doing then."""
        self.patient = self.asked = self.looked = monotonic()
        self.sent: list[Any] = []
        self.sending, self.receiving = threading.Lock(), threading.Lock()
        self.agreed = numpy.empty(4, numpy.int64)
        self.stopped = threading.Event()
        self.spoke = False
        """Whether this rank shows the error by which the program ends."""
        self.unheard = 0.0
        """Since when the program has not heard of the failure."""
        self.thread = threading.Thread(target=self._run, name="bpnet-watch", daemon=True)
        if self.size > 1:
            self.thread.start()
            if not WATCHES:
                Watch.previous_hook, sys.excepthook = staticmethod(sys.excepthook), _hook
            WATCHES.append(self)
            atexit.register(self.at_exit)

    # ---- what the program does ----------------------------------------------------------------------------------

    def meet(self, call: int, what: str, size: int = 0) -> None:
        """Wait until all ranks have come here, to do the same: the call of this number, of so many bytes.

        Then they do what may block, and say `met`.
        """
        self.check()
        number, self.main = self.doing.number + 1, threading.get_ident()
        self.doing = Doing(number, "waits", what, monotonic())
        agreed = self.agreed
        agreed[:] = call, -call, size, -size
        request = self.comm.Iallreduce(self.mpi.IN_PLACE, agreed, self.mpi.MAX)
        begun, done = self.doing.since, request.Test
        while not done():
            waited = monotonic() - begun
            if waited < SPUN:
                _give_way()
            else:
                self.check()
                sleep(0.0005)
        self.doing = Doing(number, "sends", what, monotonic())
        if agreed[0] != -agreed[1] or agreed[2] != -agreed[3]:
            self._out_of_step(what, size)

    def broken(self, what: str, error: Exception) -> RankError:
        """That MPI itself has failed."""
        text = f"{self.names[self.rank]} could not communicate with the others, in {what}: {error}"[:LONGEST]
        if self.failure is None:
            self.failure = Failure(self.rank, text, self.rank)
            self._send("failure", self.failure)
        self.raised = True
        return RankError(self.failure.text)

    def met(self) -> None:
        """What all do together is done."""
        self.doing = Doing(self.doing.number, "computes", "", monotonic())

    def _out_of_step(self, what: str, size: int) -> None:
        """Raise, on every rank."""
        calls = [f"{what} of {size:,} bytes" if size else what for what, size in self.comm.allgather((what, size))]
        places = "; ".join(
            f"{self.names[calls.index(call)]} is at {call}" for call in sorted(set(calls), key=calls.index)
        )
        text = f"the ranks are not at the same place of the program: {places}. All must make the same calls"
        self.failure, self.raised = Failure(self.rank, text, 0, together=True), True
        error = RankError(text)
        error.on_all_ranks = True  # type: ignore[attr-defined]
        raise error

    def check(self) -> None:
        """Raise where a rank has failed."""
        if (failure := self.failure) is not None:
            self.raised = True
            raise RankError(failure.text)

    def process_state(self, rank: int) -> str:
        """See `verdict.process_state`."""
        return process_state(self.processes[rank][1]) if self.beside[rank] else ""

    def beat(self) -> None:
        """The program goes on, though it has not met the others for a while."""
        self.beaten = monotonic()

    @contextmanager
    def phase(self, what: str, limit: float) -> Iterator[None]:
        """What the program does may take so many seconds from one meeting, or beat, to the next."""
        self.phases.append((what, limit, monotonic()))
        try:
            yield
        finally:
            self.phases.pop()

    # ---- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        period = min(PERIOD, self.timeout / 20.0)
        while not self.stopped.wait(period):
            now = monotonic()
            if now - self.looked > 20.0 * period:  # this process, or the whole machine, was halted
                self.patient = now
            self.looked = now
            try:
                self._look(now)
            except self.mpi.Exception:
                if self.failure is None and not self.stopped.is_set():
                    raise

    def _look(self, now: float) -> None:
        self._receive(now)
        if os.getppid() != self.launcher:  # mpiexec was killed, and nobody else would end its ranks
            os._exit(1)
        doing = self.doing
        if self.failure is None and doing.at != "computes":
            waited = now - max(doing.since, self.patient)
            if waited > min(ASKED, self.timeout / 10.0):
                if now - self.asked > max(min(ASKED, self.timeout / 10.0), self.size / 500.0):
                    self.asked = now
                    self._send("doing", self._as_told(now))
                failure = judge(self, now, doing)
                if failure is not None:
                    self.failure = failure
                    self._send("failure", failure)
        if self.failure is not None and not self.raised:
            self._end_unheard(now)

    def _receive(self, now: float) -> None:
        while self.receiving.acquire(blocking=False):
            try:
                status = self.mpi.Status()
                if not self.control.Iprobe(status=status):
                    return
                source = status.Get_source()
                kind, value = self.control.recv(source=source)
            finally:
                self.receiving.release()
            self.heard[source] = now, self.heard.get(source, (0.0, None))[1]
            if kind == "doing":
                self.heard[source] = now, value
                if self.doing.at == "computes" and value.at != "computes":
                    self._send("doing", self._as_told(now), source)
            elif kind == "failure":
                self.failure = self.failure or value
                self.others_failed[source] = self.others_failed.get(source, False) or value.rank == source
            elif kind == "heard":
                self.others_failed.setdefault(source, False)
            elif kind == "end":
                self.ended[source] = value

    def _send(self, kind: str, value: Any, to: int | None = None) -> None:
        with self.sending:
            self.sent = [request for request in self.sent if not request.Test()]
            for rank in range(self.size) if to is None else (to,):
                if rank != self.rank:
                    self.sent.append(self.control.isend((kind, value), rank))

    def _as_told(self, now: float) -> Doing:
        """What this rank does, with how long ago it last went on."""
        doing, last = self.doing, max(self.doing.since, self.patient, self.beaten)
        if doing.at != "computes":
            return replace(doing, since=now - doing.since)
        what, limit = "", math.inf
        if self.phases:
            what, limit, begun = self.phases[-1]
            last = max(last, begun)
        return replace(doing, what=what, since=now - last, limit=limit, where=self._where() if now - last > 1.0 else "")

    def _where(self) -> str:
        """The line at which the program is: of the user's, and what it called."""
        frame = sys._current_frames().get(self.main)
        stack = traceback.extract_stack(frame)[::-1] if frame is not None else []
        if not stack:
            return ""
        own = next((line for line in stack if f"{os.sep}bpnet{os.sep}" not in line.filename), stack[0])
        return f"{own.name}, line {own.lineno} of {own.filename}"

    def _end_unheard(self, now: float) -> None:
        """End this process, whose program does not hear of the failure: it hangs, or waits within MPI."""
        failure = self.failure
        assert failure is not None
        self.unheard = self.unheard or now
        guilty = failure.hangs and failure.rank == self.rank
        sends = self.doing.at == "sends"
        if now - self.unheard < (self.grace() if guilty or sends else PATIENCE * self.timeout):
            return
        if failure.speaker == self.rank:
            say(f"bpnet: {failure.text}")
            self.spoke = True
        self._leave(1)

    # ---- the end ------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank can't go on."""
        if self.told is error or self.size == 1:
            return
        self.told = error
        if self.failure is not None and self.raised:  # of which the others know
            self._send("heard", None)
            return
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        text = f"{self.names[self.rank]} has failed: {text}"[:LONGEST]
        own = Failure(self.rank, text, self.rank)
        self._send("failure", own)
        self.failure, self.raised = self.failure or own, True

    def speaks(self, error: BaseException) -> bool:
        """Whether this rank is to show the error by which the program ends, of which the others are told.

        Waits a moment for what others have to say.
        """
        if getattr(error, "on_all_ranks", False):
            return self.rank == 0
        if not self.spoke:
            self.fail(error)
            self.spoke = self._is_to_speak(error)
        return self.spoke

    def _is_to_speak(self, error: BaseException) -> bool:
        failure = self.failure
        own = not isinstance(error, RankError) or (failure is not None and failure.rank == self.rank)
        limit = monotonic() + self.grace()
        while monotonic() < limit and self.others_failed.keys() | self.ended.keys() != self._others():
            if not own and failure is not None and self.rank == failure.speaker:
                break  # it was this rank that noticed
            self._rest()
        if any(self.ended.values()):
            return False
        lowest = min([self.rank] * own + [r for r, its in self.others_failed.items() if its], default=None)
        if own:
            return lowest == self.rank
        if lowest is not None:  # its rank shows it, unless it caught it
            while monotonic() < limit and lowest not in self.ended:
                self._rest()
            if self.ended.get(lowest, True):
                return False
            return self.rank == min(set(range(self.size)) - {lowest})
        return failure is None or self.rank == failure.speaker

    def _others(self) -> set[int]:
        return set(range(self.size)) - {self.rank}

    def grace(self) -> float:
        return max(1.0, GRACE * self.timeout)

    def _rest(self) -> None:
        """Hear what others say, soon."""
        sleep(0.002)
        self._receive(monotonic())

    def _leave(self, code: int) -> None:
        """End this process, and with it all others, which have a moment to come here too; never by MPI_Finalize.

        That would wait for calls which others don't make.  The rank that has shown the error ends all by MPI_Abort;
        where none has, or it does not get so far, the others do.
        """
        failure = self.failure
        self._send("end", self.spoke)
        others = self._others() - ({failure.rank} if failure is not None and failure.hangs else set())
        limit = monotonic() + self.grace()
        while monotonic() < limit and not self.ended.keys() >= others:
            self._rest()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        limit = monotonic() + self.grace()
        while not self.spoke and any(self.ended.values()) and monotonic() < limit:
            self._rest()
        timer = threading.Timer(self.grace(), os._exit, [code])  # where not even that can be done
        timer.daemon = True
        timer.start()
        self.mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def hook(self, error: BaseException) -> None:
        """The program ends by an error that nobody has caught."""
        shown = self.speaks(error)
        if shown and isinstance(error, RankError) and not getattr(error, "on_all_ranks", False):
            say(f"bpnet: {error}")  # at which line this rank has waited tells nothing
        elif shown:
            sys.stderr = sys.__stderr__ or sys.stderr  # whoever else was kept silent
            self.previous_hook(type(error), error, error.__traceback__)
        if getattr(error, "on_all_ranks", False):
            return  # all end alike
        alone = not all(self.others_failed.get(rank) for rank in self._others())
        if shown and alone and not isinstance(error, RankError):
            say(f"bpnet: {self.names[self.rank]} has failed, which ends the others")
        atexit.unregister(self.at_exit)
        atexit._run_exitfuncs()
        self._leave(130 if isinstance(error, KeyboardInterrupt) else 1)

    def at_exit(self) -> None:
        """The program ends; all ranks go to MPI_Finalize together, or none does."""
        if os.getpid() != self.process or self.mpi.Is_finalized():
            return
        error: BaseException | None = None
        if self.failure is None:
            try:
                self.meet(0, END)
            except (RankError, KeyboardInterrupt) as raised:
                error = raised
        if error is not None and self.speaks(error):
            say(f"bpnet: {error}")
        if (self.failure is None and error is None) or (self.failure is not None and self.failure.together):
            self.stop()
        else:
            self._leave(1)

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join(1.0)


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python calls for an error that nobody has caught."""
    watch = next((watch for watch in WATCHES if watch.told is error), WATCHES[0])
    if watch.process == os.getpid() and not watch.stopped.is_set():
        watch.hook(error.with_traceback(trace))
    else:
        watch.previous_hook(kind, error, trace)


def speaks(error: BaseException) -> bool:
    """Whether this process is to show the error by which its program ends: of several ranks one does.

    The others are told that this one has failed, if that error is not all's.  Always true where there are no ranks.
    """
    return all(watch.speaks(error) for watch in WATCHES if watch.process == os.getpid())


def say(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.__stderr__ or sys.stderr, flush=True)  # whoever else is kept silent


def _machine() -> str:
    """What processes that see each other have in common."""
    try:
        return f"{gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{gethostname()} {os.getpid()}"


WATCHES: list[Watch] = []
"""Those of this process."""
_give_way = getattr(os, "sched_yield", lambda: sleep(0.0))
