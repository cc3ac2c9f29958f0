"""An epoch by ranks of MPI, by threads of one process, and by PyTorch, on the same cores, in alternating rounds.

*Strong*: everyone has the same batch, which ranks share.  *Weak*: every rank has a batch of its own, so that n ranks
take n times the rows in as many steps; ideally in the time of one.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import TOLERANCE
from bench.plan import available_cores
from bench.scaling.group import Failed, Group, mpiexec
from bench.workloads import WORKLOADS, Workload

Say = Callable[[str], None]
Record = dict[str, Any]

DEFAULT = {"a": (512, 2048, 8192, 32768), "b": (512, 2048), "c": (2048, 8192), "d": (512, 2048, 8192)}
"""Workloads and their batches, unless others are asked for."""
ROWS = 16384
EPOCH_FLOPS = 1e11  # of the products in an epoch, but for four batches
LEAST_ROUNDS = 5
CHECKED_ROWS = 256


@dataclass(frozen=True)
class Plan:
    """How long, and on what."""

    counts: tuple[int, ...]
    rounds: int = 10
    seconds: float = 0.3  # of a turn
    rows: int = ROWS
    budget: float = 60.0  # seconds of all turns of a case: the rounds are cut to it
    only: tuple[str, ...] = ()  # names of contenders before the @; all where it is empty
    kinds: tuple[str, ...] = ("strong", "weak")


@dataclass(frozen=True)
class Contender:
    """So many processes, each of so many threads; those called ranks are MPI's, even a single one."""

    name: str
    label: str
    kind: str  # of the child's session
    ranks: int
    threads: int

    @property
    def cores(self) -> int:
        return self.ranks * self.threads

    def group(self, workload: str, batch: int, folder: Path) -> Group:
        order = {"kind": self.kind, "name": self.name, "workload": workload, "batch": batch, "folder": str(folder)}
        order |= {"threads": self.threads, "cores": available_cores()[: self.cores]}
        if self.name.startswith("ranks"):
            program = mpiexec()
            if program is None:
                raise Failed(f"{self.name}: there is no mpiexec: pip install mpi4py mpich")
            return Group(self.name, order | {"distributed": "mpi"}, self.ranks, [program, "-n", str(self.ranks)])
        return Group(self.name, order, self.ranks)


def contenders(counts: list[int]) -> list[Contender]:
    """One process with a thread; and for each number of cores ranks and threads of bpnet and of PyTorch.

    One rank is what the steps cost that ranks take, without anybody to wait for.
    """
    found = [Contender("threads@1", "bpnet, 1 thread", "fit", 1, 1)]
    for n in counts:
        found.append(Contender(f"ranks@{n}", f"bpnet, {n} rank{'s' * (n > 1)}", "fit", n, 1))
        if n > 1:
            found += [
                Contender(f"threads@{n}", f"bpnet, {n} threads", "fit", 1, n),
                Contender(f"ddp@{n}", f"PyTorch DDP over gloo, {n} ranks", "ddp", n, 1),
                Contender(f"torch@{n}", f"PyTorch, {n} threads", "ddp", 1, n),
            ]
    return found


def counts_up_to(most: int) -> list[int]:
    """1, 2, 4 ... and no more than 16."""
    return [n for n in (1, 2, 4, 8, 16) if n <= most]


def make_data(workload: Workload, rows: int, folder: Path) -> None:
    """Rows of standard normal numbers with labels drawn at random, in x.npy and y.npy."""
    rng = np.random.default_rng(1)
    np.save(folder / "x.npy", rng.standard_normal((rows, workload.inputs), dtype=np.float32))
    if workload.loss == "mse":
        np.save(folder / "y.npy", rng.uniform(size=(rows, workload.outputs)).astype(np.float32))
    else:
        np.save(folder / "y.npy", rng.integers(0, workload.outputs, rows))


def apart(folder: Path, name: str, reference: str) -> float:
    """The largest, over the arrays of parameters, of the difference's norm over the array's norm."""
    with np.load(folder / f"{reference}.npz") as right, np.load(folder / f"{name}.npz") as own:
        norms = [(np.linalg.norm(own[k] - right[k]), np.linalg.norm(right[k])) for k in right.files]
    return max(float(difference / length) for difference, length in norms)


def alternate(groups: dict[str, Group], epochs: dict[str, int], rounds: int) -> dict[str, list[Record]]:
    """Rounds in which each group has its turn, in the reverse order every other time: seconds of the slowest rank."""
    found: dict[str, list[Record]] = {name: [] for name in groups}
    for number in range(rounds):
        for name in list(groups) if number % 2 == 0 else list(groups)[::-1]:
            answers = groups[name].ask("run", epochs=epochs[name])
            last = max(answers, key=lambda answer: float(answer["seconds"]))
            means = {k: statistics.mean(a[k] for a in answers) for k in answers[0] if k not in ("rank", "seconds")}
            each = {k: value / epochs[name] for k, value in means.items() if isinstance(value, float)}
            found[name].append({"seconds": last["seconds"] / epochs[name], **each})
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def timed(groups: dict[str, Group], sizes: dict[str, tuple[int, int]], plan: Plan) -> dict[str, list[Record]]:
    """What each group took for an epoch, by round; `sizes` are its batch and its rows."""
    epochs, total = {}, 0.0
    for name, group in groups.items():
        batch, rows = sizes[name]
        once = max(float(answer["seconds"]) for answer in group.ask("prepare", batch=batch, rows=rows))
        epochs[name] = max(1, round(plan.seconds / once))
        total += epochs[name] * once
    rounds = min(plan.rounds, max(LEAST_ROUNDS, int(plan.budget / total)))
    return alternate(groups, epochs, rounds)


def rows_for(workload: str, batch: int, plan: Plan) -> int:
    """Rows of an epoch, four batches at least: fewer for a network of which a row takes long."""
    affordable = int(EPOCH_FLOPS / WORKLOADS[workload].product_flops(1))
    return max(4 * batch, min(plan.rows, affordable))


def strong(workload: str, batch: int, groups: dict[str, Group], plan: Plan) -> Record:
    rows = rows_for(workload, batch, plan)
    found = timed(groups, dict.fromkeys(groups, (batch, rows)), plan)
    record = _record("strong", workload, batch, rows, found, plan)
    for name, line in record["contenders"].items():
        n = _cores(name)
        if name.startswith(("ranks", "threads")):
            of_one = zip(record["contenders"]["threads@1"]["seconds"], line["seconds"], strict=True)
            line["efficiency"] = spread([one / (n * own) for one, own in of_one])
        if name.startswith("ranks") and n > 1:
            for other in (f"threads@{n}", f"ddp@{n}", f"torch@{n}"):
                if other in record["contenders"]:
                    theirs = record["contenders"][other]["seconds"]
                    line.setdefault("speed_over", {})[other] = spread(
                        [t / own for t, own in zip(theirs, line["seconds"], strict=True)]
                    )
    return record


def weak(workload: str, batch: int, groups: dict[str, Group], plan: Plan) -> Record:
    """`batch` is each rank's; those with threads have as many rows as ranks would."""
    rows = rows_for(workload, batch, plan)
    sizes = {name: (_cores(name) * batch, _cores(name) * rows) for name in groups}
    found = timed(groups, sizes, plan)
    record = _record("weak", workload, batch, rows, found, plan)
    for name, line in record["contenders"].items():
        if name.startswith(("ranks", "threads")):
            of_one = zip(record["contenders"]["threads@1"]["seconds"], line["seconds"], strict=True)
            line["efficiency"] = spread([one / own for one, own in of_one])
    return record


def _cores(name: str) -> int:
    return int(name.partition("@")[2])


def _record(kind: str, workload: str, batch: int, rows: int, found: dict[str, list[Record]], plan: Plan) -> Record:
    parameters = WORKLOADS[workload].parameter_count()
    lines: dict[str, Any] = {}
    for name, answers in found.items():
        seconds = [answer["seconds"] for answer in answers]
        n = _cores(name)
        # in a weak case the steps of an epoch are as many for everyone, since `rows` are a rank's
        steps = -(-rows // batch)
        line: Record = {"cores": n, "seconds": seconds, "step_ms": spread([1e3 * s / steps for s in seconds])}
        if "communication" in answers[0]:
            line["communication"] = spread([a["communication"] / a["seconds"] for a in answers])
            line["communication_ms"] = spread([1e3 * a["communication"] / steps for a in answers])
            line["bytes"] = statistics.median(a["bytes"] for a in answers) / steps
            line["least_bytes"] = 2 * (n - 1) / n * 4 * parameters
        lines[name] = line
    return {
        "kind": kind,
        "workload": workload,
        "title": WORKLOADS[workload].title,
        "parameters": parameters,
        "batch": batch,
        "rows": rows,
        "rounds": len(next(iter(found.values()))),
        "contenders": lines,
    }


def run(cases: dict[str, tuple[int, ...]], plan: Plan, say: Say, keep: Callable[[Record], None]) -> list[Record]:
    """Measure every workload at its batches; `keep` is told each record as it is there."""
    records = []
    for key, batches in cases.items():
        workload = WORKLOADS[key]
        with tempfile.TemporaryDirectory(prefix="bench-") as made, ExitStack() as stack:
            folder = Path(made)
            make_data(workload, max(rows_for(key, batch, plan) for batch in batches) * max(plan.counts), folder)
            groups: dict[str, Group] = {}
            absent: dict[str, str] = {}
            versions: dict[str, str] = {}
            for contender in contenders(list(plan.counts)):
                if plan.only and contender.name.partition("@")[0] not in plan.only and contender.name != "threads@1":
                    continue
                try:
                    group = stack.enter_context(contender.group(key, max(batches), folder))
                    answers = group.ask("check", rows=CHECKED_ROWS, name=contender.name)
                    versions |= answers[0]["versions"]
                    off = apart(folder, contender.name, "threads@1")
                    # each rank normalises by its own rows, so there nothing is to be equal
                    if not off <= TOLERANCE and not (workload.has("batchnorm") and contender.ranks > 1):
                        raise Failed(f"{contender.name} disagrees: parameters off by {off:.2g} after 3 steps")
                    groups[contender.name] = group
                except Failed as reason:
                    if contender.name == "threads@1":
                        raise
                    say(f"({key}) left out: {reason}")
                    absent[contender.name] = str(reason)
            for kind, measured in (("strong", strong), ("weak", weak)):
                for batch in batches if kind in plan.kinds else ():
                    say(f"({key}) {kind}, batch {batch}: {', '.join(groups)}")
                    record = measured(key, batch, groups, plan) | {"absent": absent, "versions": versions}
                    records.append(record)
                    keep(record)
    return records
