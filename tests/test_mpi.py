"""Ranks that are processes of MPI: what they say to each other arrives, and one that fails ends all."""

import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from support.rank_work import add, blocks, calls, fails, groups
from support.ranks import Run, ranks, threads

import bpnet as bp
from bpnet.distributed.agreeing import check_same
from bpnet.distributed.base import agreed, by_first
from bpnet.distributed.mpi import MPICommunicator
from bpnet.distributed.verdict import Doing, judge
from bpnet.errors import MissingExtraError, MissingPackageError, OptionError


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
            assert np.array_equal(one[f"ordered {dtype}"], add(dtype)(blocks(dtype))), "not the bits of one process"


def test_what_ranks_say_to_each_other_arrives():
    """And a sum in the order of blocks has the bits of one process, for 2 and 4 ranks."""
    check_calls(threads(3, calls))
    every, halves = zip(*ranks(4, groups), strict=True)
    check_calls(every)
    assert re.fullmatch(r"4 ranks: processes \d+, \d+, \d+, \d+ on \S+", every[0]["described"])
    assert [one["local"] for one in halves] == [(0, 2), (1, 2)] * 2
    check_calls(halves[:2])
    check_calls(halves[2:])
    assert every[0]["in place float32"], "NumPy's vector is added up where it lies"


SAID = {
    "raises": r"ValueError: a bad row\nbpnet: {name} has failed, which ends the others",
    "sleeps": r"bpnet: {name} hangs: for \d+ s it has been in training \(act, line \d+ of .*rank_work.py\)",
    "is stopped": r"bpnet: {name} is stopped, as by SIGSTOP, and the others have waited for it for \d+ s",
    "is killed": r"(PID {process} RUNNING AT|process rank 1 with PID {process} on node) .*[Kk]illed",
}


def test_a_rank_that_fails_ends_all():
    """Within the time limit, with one message that names it, a status that is not 0, and no process left."""
    runs = [Run(2, fails, how, timeout=2.5) for how in SAID]
    with ThreadPoolExecutor(len(runs)) as pool:
        ends = list(pool.map(lambda run: run.end(60.0), runs))
    for (how, said), ended in zip(SAID.items(), ends, strict=True):
        began, process = re.search(rf"{how} at ([\d.]+) in (\d+)", ended.out).groups()
        said = said.format(name=rf"rank 1 \(host \S+, process {process}\)", process=process)
        text = ended.err if how != "is killed" else ended.out + ended.err  # MPICH's own, on its standard output
        assert len(re.findall(said, text, re.DOTALL)) == 1, (how, text)
        assert ended.err.count("Traceback") == (how == "raises"), (how, ended.err)
        assert ended.code != 0, how
        assert not ended.left, how
        assert ended.at - float(began) < 25.0, how  # with what mpiexec takes, on a machine that is busy


# ---- who is to blame, without processes -------------------------------------------------------------------------


def watch(heard, rank=0, size=3, timeout=30.0, states=None, ended=()):
    states = states or {}
    return SimpleNamespace(
        rank=rank,
        size=size,
        timeout=timeout,
        patient=0.0,
        heard=heard,
        ended=ended,
        names=[f"rank {i}" for i in range(size)],
        grace=lambda: 3.0,
        process_state=lambda i: states.get(i, "runs"),
    )


def at(what="training", quiet=0.0, limit=24.0):
    return Doing(7, "computes", what, quiet, limit)


WAITS = Doing(8, "waits", "all_reduce", 0.0)
MINE = Doing(8, "waits", "all_reduce", 100.0)


def blamed(now, heard, **options):
    found = judge(watch(heard, **options), now, MINE)
    return None if found is None else found.text


def test_who_is_blamed():
    assert blamed(110.0, {1: (109.0, at(quiet=9.0)), 2: (109.0, WAITS)}) is None
    assert "rank 1 hangs: for 25 s it has been in training" in blamed(
        126.0, {1: (125.0, at(quiet=24.0)), 2: (125.0, WAITS)}
    )
    assert blamed(126.0, {1: (125.0, at("evaluation", 24.0, 600.0)), 2: (125.0, WAITS)}) is None, "a phase may be long"
    assert "rank 2 does not answer" in blamed(125.0, {1: (124.0, WAITS)})
    assert "or its host or the network is down" in blamed(125.0, {1: (124.0, WAITS)}, states={2: ""})
    assert "rank 2 is stopped" in blamed(125.0, {1: (124.0, WAITS)}, states={2: "stopped"})
    assert blamed(110.0, {1: (109.0, WAITS)}, states={2: "stopped"}) is None, "it may go on"
    assert "rank 2 is gone" in blamed(101.5, {1: (101.0, WAITS)}, states={2: "gone"})


def test_outside_of_a_training_nothing_is_too_long():
    """Only in one a rank is expected back."""
    watch = SimpleNamespace(mpi=None, comm=None, rank=0, size=2, local_rank=0, local_size=2, timeout=30.0, phases=[])
    watch.phase = lambda what, limit: limit
    ranks = MPICommunicator(watch, "same", "fast")
    assert (ranks.phase("training"), ranks.phase("an evaluation", 600.0)) == (24.0, math.inf)
    watch.phases.append("training")
    assert (ranks.phase("training"), ranks.phase("an evaluation", 600.0)) == (24.0, 600.0)


def test_what_one_function_says_is_not_for_another():
    """As where one rank alone trains something else in a callback."""
    met = []
    comm = SimpleNamespace(allgather=lambda value: [value], bcast=lambda value: value)
    watch = SimpleNamespace(
        mpi=SimpleNamespace(Exception=OSError), comm=comm, rank=0, size=2, local_rank=0, local_size=2
    )
    watch.meet, watch.met = lambda call, what, size: met.append((what, call)), lambda: None
    ranks = MPICommunicator(watch, "same", "fast")
    agreed(ranks, len, ())
    check_same(ranks, {})
    by_first(ranks, len, ())
    ranks.all_gather(0)
    assert [what for what, _ in met] == [
        "all_gather (agreed)",
        "all_gather (check_same)",
        "broadcast (by_first)",
        "all_gather",
    ]
    assert len({call for _, call in met}) == 4


def test_what_was_heard_before_the_wait_is_not_held_against_anybody():
    """It may be hours old."""
    assert blamed(102.0, {1: (50.0, at(quiet=20.0)), 2: (99.0, at(quiet=23.0))}) is None


def test_the_lowest_that_waits_speaks():
    heard = {0: (125.0, WAITS), 1: (125.0, at(quiet=24.0))}
    assert blamed(126.0, heard, rank=2) is None
    assert blamed(128.0, heard, rank=2) is not None, "where it doesn't, the next one does"


def test_who_waits_for_the_end_of_the_program_waits_as_long_as_it_takes():
    end = Doing(8, "waits", "the end of its program", 100.0)
    assert judge(watch({1: (9999.0, at(quiet=9000.0)), 2: (9999.0, WAITS)}), 10000.0, end) is None
    assert judge(watch({2: (9999.0, WAITS)}), 10000.0, end).rank == 1


def test_options_are_checked():
    with pytest.raises(OptionError, match="rows is 'some'; expected 'same' or 'own'"):
        bp.distributed.MPI(rows="some")
    with pytest.raises(OptionError, match="reduction is 'slow'"):
        bp.distributed.MPI(reduction="slow")
    with pytest.raises(OptionError, match=r"timeout is 0\.5"):
        bp.distributed.MPI(timeout=0.5)


def test_without_mpi_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("bpnet.distributed.mpi.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bpnet-xp\[mpi\]'"):
        bp.distributed.MPI().connect()
    monkeypatch.setattr("bpnet.distributed.mpi.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # which has found no library of MPI, as it were
    with pytest.raises(MissingPackageError, match="pip install mpich"):
        bp.distributed.MPI().connect()
