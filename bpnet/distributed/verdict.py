"""Who keeps the other ranks from going on: one that hangs, has been stopped, or is gone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpnet.distributed.watch import Watch

PATIENCE = 0.8
"""The share of the time limit after which a rank that does not go on is given up: then all have to end."""
MOST = 10.0
"""Time limits that may pass until all ranks have come to `connect`, or while data are sent and all ranks answer."""
END = "the end of its program"


@dataclass(frozen=True)
class Doing:
    """What the main thread of a rank does, as others are told."""

    number: int
    """How many times all ranks have met, that for which it waits included."""
    at: str
    """"computes", "waits" for others, or "sends" them data and receives theirs."""
    what: str
    """The call in which it waits, or the phase in which it computes."""
    since: float
    """By its own clock; in a message: how many seconds it is ago that it last went on."""
    limit: float = math.inf
    """Seconds that this may take."""
    where: str = ""
    """The line of the program."""


@dataclass(frozen=True)
class Failure:
    """Why a training can't go on."""

    rank: int
    """Whose fault it is."""
    text: str
    speaker: int
    """The rank that is to show it."""
    hangs: bool = False
    """Whether that rank may have to be killed."""
    together: bool = False
    """Whether all ranks have found it, so that none waits for another."""


def judge(watch: Watch, now: float, doing: Doing) -> Failure | None:
    """Who keeps the rank of `watch` from going on with what it is `doing`, if it has for too long.

    The lowest of the ranks that wait says so; the others leave it a little more time.
    """
    begun = max(doing.since, watch.patient)
    heard = {rank: (when, its) for rank, (when, its) in watch.heard.items() if when > begun}  # since it waits
    waiting = [rank for rank, (_, its) in heard.items() if its is not None and its.at != "computes"]
    late = 0.5 * watch.grace() * min(sum(rank < watch.rank for rank in waiting), 4)
    for rank, name in enumerate(watch.names):
        if rank == watch.rank:
            continue
        when, its = heard.get(rank, (begun, None))
        computes, state = its is not None and its.at == "computes", watch.process_state(rank)
        silent, longest = now - when, PATIENCE * watch.timeout
        if its is not None and computes and its.limit < math.inf:
            longest = max(longest, its.limit)
        text = ""
        if state == "gone" and rank not in watch.ended and silent > late:
            text = "is gone: it was killed, or has ended without a word"
        elif state == "stopped" and silent > longest + late:
            text = f"is stopped, as by SIGSTOP, and the others have waited for it for {silent:.0f} s"
        elif silent > longest + late:
            why = "" if state else ": it was killed or stopped, or its host or the network is down"
            text = f"does not answer, and the others have waited for it for {silent:.0f} s{why}"
        elif its is not None and computes and doing.what != END and its.since + silent > its.limit + late:
            where = f" ({its.where})" if its.where else ""
            text = (
                f"hangs: for {its.since + silent:.0f} s it has been in {its.what}{where}, while the others wait for "
                f"it. If it needs so long, pass MPI(timeout=...) of more than {watch.timeout:g} seconds"
            )
        if text:
            return Failure(rank, f"{name} {text}", watch.rank, True)
    if doing.at == "sends" and now - begun > MOST * watch.timeout + late:
        text = f"all answer, but for {now - begun:.0f} s MPI has not brought {doing.what} to its end"
        return Failure(watch.rank, f"{watch.names[watch.rank]} hangs: {text}", watch.rank, True)
    return None


def process_state(number: int) -> str:
    """Whether a process of this machine "runs", is "stopped" or "gone"; empty where that can't be told."""
    try:
        letter = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "gone" if Path("/proc/self").exists() else ""  # nothing is known elsewhere than on Linux
    return {"Z": "gone", "X": "gone", "T": "stopped", "t": "stopped"}.get(letter, "runs")
