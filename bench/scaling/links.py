"""All-reduces and training steps between hosts whose links are as slow as asked, and in shared memory.

What the model of efficiency is fitted to and tried on.  Ranks of all-reduces over links give their core away while they
wait, so that there may be more of them than cores: next to nothing is to be computed.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.plan import available_cores
from bench.scaling.group import Failed, Group, mpiexec
from bench.scaling.network import Network, why_not
from bench.scaling.ranks import Say, make_data, spread
from bench.workloads import WORKLOADS

Record = dict[str, Any]

ALGORITHMS = {
    "recursive doubling": "sched_recursive_doubling",
    "Rabenseifner": "sched_reduce_scatter_allgather",
    "ring": "tsp_ring",
}
"""The model's names, and those by which MPICH is told which to take."""


@dataclass(frozen=True)
class Plan:
    """What is measured: hosts, links (seconds of delay, bytes a second), bytes of the vector."""

    hosts: tuple[int, ...] = (2, 4, 8, 16)
    links: tuple[tuple[float, float], ...] = (
        *((2e-3, 25e6), (10e-3, 25e6), (2e-3, 6.25e6), (10e-3, 6.25e6)),
        *((5e-3, 12.5e6), (20e-3, 12.5e6)),
    )
    sizes: tuple[int, ...] = (4096, 65536, 524288, 2678824)
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    count: int = 2  # all-reduces in a row
    rounds: int = 3
    training: tuple[tuple[str, int], ...] = (("a", 512), ("a", 2048), ("a", 8192), ("d", 2048), ("b", 512))
    training_links: tuple[tuple[float, float], ...] = ((2e-4, 125e6), (2e-3, 125e6), (2e-3, 25e6), (10e-3, 60e6))
    shared: tuple[int, ...] = (64, 4096, 30064, 262144, 2678824, 8388608, 56846376)


def shared_memory(plan: Plan, counts: list[int], say: Say, keep: Callable[[Record], None]) -> None:
    """All-reduces of ranks that spin, as many as there are cores for, by mpi4py and by bpnet's communicator."""
    program = mpiexec()
    if program is None:
        say("no all-reduces: there is no mpiexec: pip install mpi4py mpich")
        return
    for ranks in (n for n in counts if n > 1):
        groups = {}
        order = {"kind": "all_reduce", "distributed": "mpi", "cores": available_cores()[:ranks]}
        try:
            for through in ("mpi4py", "bpnet"):
                start = [program, "-n", str(ranks)]
                groups[through] = Group(f"{through}@{ranks}", order | {"through": through}, ranks, start)
            for size in plan.shared:
                count = max(3, min(1000, 100_000_000 // max(size, 4096) // 4))
                times: dict[str, list[float]] = {through: [] for through in groups}
                for number in range(max(5, plan.rounds)):
                    for through in list(groups) if number % 2 == 0 else list(groups)[::-1]:
                        answers = groups[through].ask("run", size=size, count=count)
                        times[through].append(max(answer["seconds"] for answer in answers))
                for through, seconds in times.items():
                    say(f"shared memory, {through}, {ranks} ranks, {size:,} bytes: {1e6 * min(seconds):,.0f} us")
                    keep({"kind": "shared", "through": through, "ranks": ranks, "bytes": size, "seconds": seconds})
        except Failed as reason:
            say(f"no all-reduces of {ranks} ranks in shared memory: {reason}")
        finally:
            for group in groups.values():
                group.close()


def all_reduces(plan: Plan, say: Say, keep: Callable[[Record], None]) -> None:
    """Each algorithm on each number of hosts, over each link."""
    program = mpiexec()
    reason = why_not() or (None if program else "there is no mpiexec: pip install mpi4py mpich")
    if reason:
        say(f"no slow links: {reason}")
        return
    for hosts in plan.hosts:
        with Network(hosts) as net:
            for name in plan.algorithms:
                chosen = ALGORITHMS[name]
                net.set(0.0, 1e9)
                order = {"kind": "all_reduce", "distributed": "mpi", "cores": available_cores()}
                env = net.environment | {"MPIR_CVAR_IALLREDUCE_INTRA_ALGORITHM": chosen}
                with Group(name.replace(" ", "-"), order, hosts, net.mpiexec(str(program)), env) as group:
                    group.ask("run", size=max(plan.sizes), count=1, yields=True)  # connects
                    for delay, rate in plan.links:
                        net.set(delay, rate)
                        # TCP learns how long an answer takes now; until then it sends again what is on its way
                        group.ask("run", size=min(plan.sizes), count=3, yields=True)
                        for size in plan.sizes:
                            before, seconds = net.sent(0), []
                            for _ in range(plan.rounds):
                                answers = group.ask("run", size=size, count=plan.count, yields=True)
                                seconds.append(max(answer["seconds"] for answer in answers))
                            sent = (net.sent(0) - before) / (plan.rounds * (plan.count + 1))
                            record = {"kind": "all_reduce", "algorithm": name, "ranks": hosts, "delay": delay}
                            keep(record | {"rate": rate, "bytes": size, "seconds": seconds, "sent": sent})
                        median = 1e3 * statistics.median(seconds)
                        say(f"{name}, {hosts} hosts, {1e3 * delay:g} ms, {rate / 1e6:g} MB/s: {median:.1f} ms")


def trainings(plan: Plan, say: Say, keep: Callable[[Record], None]) -> None:
    """Steps of `Trainer.fit` on two hosts, over each link."""
    program = mpiexec()
    if why_not() or program is None:
        return
    for key, batch in plan.training:
        workload = WORKLOADS[key]
        rows = 8 * batch
        with tempfile.TemporaryDirectory(prefix="bench-") as made, Network(2) as net:
            make_data(workload, rows, Path(made))
            net.set(0.0, 1e9)
            order = {"kind": "fit", "distributed": "mpi", "threads": 1, "cores": available_cores()[:2]}
            order |= {"workload": key, "batch": batch, "folder": made}
            with Group(f"fit-{key}", order, 2, net.mpiexec(program), net.environment) as group:
                group.ask("prepare", batch=batch, rows=rows)
                for delay, rate in plan.training_links:
                    net.set(delay, rate)
                    group.ask("run")
                    before, times = net.sent(0), []
                    for _ in range(plan.rounds + 2):
                        answers = group.ask("run")
                        times.append(max(answer["seconds"] for answer in answers) / 8)
                    sent = (net.sent(0) - before) / (8 * len(times))
                    record = {"kind": "training", "workload": key, "batch": batch, "ranks": 2, "delay": delay}
                    record |= {"rate": rate, "parameters": workload.parameter_count(), "sent": sent}
                    record |= {"seconds": times, "step_ms": spread([1e3 * t for t in times])}
                    say(f"({key}) {batch}, {1e3 * delay:g} ms, {rate / 1e6:g} MB/s: {1e3 * min(times):.1f} ms a step")
                    keep(record | {"least_bytes": 4 * workload.parameter_count()})


def run(plan: Plan, counts: list[int], say: Say, keep: Callable[[Record], None]) -> None:
    """All of it; what can't be measured here is said, and the rest goes on."""
    shared_memory(plan, counts, say, keep)
    for what, measured in (("all-reduces", all_reduces), ("training", trainings)):
        try:
            measured(plan, say, keep)
        except Failed as reason:
            say(f"no {what} over slow links: {reason}")
