"""Times contenders side by side: a process each, the same threads, one at a time, alternating in short rounds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import ALL, REFERENCE, Entry, floor_on, subject_on
from bench.workloads import WORKLOADS, Workload, pool, start_values

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
CHECK_FLOPS = 2e12  # the check before a case trains on as many rows of the batch as this pays for
PATIENCE = 1800  # seconds after which an answer is no longer waited for
LIBRARY_BYTES = 500e6  # what a process takes before it has any data


@dataclass(frozen=True)
class Case:
    """One workload at one batch size; its modes share the processes."""

    workload: str
    batch: int
    dtype: str = "float32"
    modes: tuple[str, ...] = ("step", "predict")


@dataclass(frozen=True)
class Plan:
    """How long and on what to measure."""

    threads: int
    device: str = "cpu"
    rounds: int = 10
    seconds: float = 0.25  # one contender's turn in a round
    budget: float = 120.0  # seconds of timing in one case and mode, over all contenders; the rounds are cut to it
    memory: float = 0.8  # the share of the free memory to use


@dataclass(frozen=True)
class Contestant:
    """One line of a case's results: an entry, and the threads it may use."""

    name: str
    entry: Entry
    threads: int


class Child:
    """One contender in its own process."""

    def __init__(self, contestant: Contestant, case: Case, plan: Plan, folder: Path) -> None:
        self.name = contestant.name
        cores = available_cores()[: contestant.threads]
        order = {
            "entry": asdict(contestant.entry),
            "folder": str(folder),
            "workload": case.workload,
            "dtype": case.dtype,
            "batch": case.batch,
            "threads": contestant.threads,
            "device": plan.device,
            "cores": cores,
        }
        self.errors = open(folder / f"{self.name}.log", "w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.child", json.dumps(order)],
            cwd=ROOT,
            env=environment(contestant.threads, plan.device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def send(self, do: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; reading the answer will tell
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().strip().splitlines()[-1:] or ["no message"]
        hint = ", perhaps for want of memory" if code == -9 else ""
        return {"failed": f"the process ended with status {code}{hint}: {last[0]}"}

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.send(do, **arguments)
        return self.receive()

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def available_cores() -> list[int]:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def environment(threads: int, device: str) -> dict[str, str]:
    """The same number of threads for whatever library a child loads, and the same precision on a GPU."""
    names = (
        *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
        *("NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC"),  # the last is XLA's
    )
    extra = {
        "JAX_PLATFORMS": "cpu" if device == "cpu" else "cuda,cpu",
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several contenders share the device's memory
        "CUPY_TF32": "0",
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    if device == "cpu":
        extra["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **dict.fromkeys(names, str(threads)), **extra}


def free_memory() -> float:
    """Bytes that could be taken without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 8e9


def memory_needed(entry: Entry, workload: Workload, case: Case) -> float:
    """About the bytes that one contender takes."""
    size = np.dtype(case.dtype).itemsize
    widths = sum(layer.units for layer in workload.layers if layer.kind in ("dense", "batchnorm"))
    row = size * (2 * workload.inputs + entry.activations * widths)
    return LIBRARY_BYTES + case.batch * row + 8 * size * workload.parameter_count()


def groups(peers: list[Contestant], anchors: list[Contestant], case: Case, plan: Plan) -> list[list[Contestant]]:
    """The peers in groups that fit in memory together with the anchors; what doesn't fit at all is left out."""
    workload = WORKLOADS[case.workload]
    need = {peer.name: memory_needed(peer.entry, workload, case) for peer in (*peers, *anchors)}
    room = plan.memory * free_memory() - sum(need[anchor.name] for anchor in anchors)
    found: list[list[Contestant]] = []
    left = 0.0
    for peer in peers:
        if need[peer.name] > room:
            continue
        if need[peer.name] > left or not found:
            found.append([])
            left = room
        found[-1].append(peer)
        left -= need[peer.name]
    return found or ([[]] if anchors and room >= 0 else [])


@dataclass
class Line:
    """What is known of one contender in one case and mode."""

    status: str = "timed"  # or "absent", "failed", "disagrees", "too big"
    reason: str = ""
    seconds: list[float] = field(default_factory=list)  # of one step, by round
    ratios: list[float] = field(default_factory=list)  # its time over the subject's, by round
    over_floor: list[float] = field(default_factory=list)  # its time over the floor's, by round
    agreement: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)


def compare(folder: Path, name: str, reference: str, start: list[Any]) -> dict[str, float]:
    """How far a contender's results are from the reference's.

    ``loss``: the largest relative difference of a step's loss.  ``parameters``: the largest, over the arrays of
    parameters, of the difference's norm over the array's norm.  ``outputs``: the largest difference of a prediction at
    the start, of which probabilities are compared.  ``moved``: how far the reference's own parameters went.
    """
    with np.load(folder / f"{reference}.npz") as right, np.load(folder / f"{name}.npz") as ours:
        expected = [right[f"parameter_{i}"].astype(np.float64) for i in range(len(start))]
        values = [ours[f"parameter_{i}"].astype(np.float64) for i in range(len(start))]
        if [v.shape for v in values] != [e.shape for e in expected] or ours["outputs"].shape != right["outputs"].shape:
            return {"loss": float("inf"), "parameters": float("inf"), "outputs": float("inf"), "moved": 0.0}
        found = {
            "loss": np.max(np.abs(ours["losses"] - right["losses"]) / np.abs(right["losses"])),
            "parameters": max(_apart(v, e) for v, e in zip(values, expected, strict=True)),
            "outputs": np.max(np.abs(ours["outputs"] - right["outputs"])),
            "moved": max(_apart(s, e) for s, e in zip(start, expected, strict=True)),
        }
    return {key: float(value) for key, value in found.items()}


def _apart(values: Any, expected: Any) -> float:
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def agrees(agreement: Mapping[str, float]) -> bool:
    """Whether loss, parameters and predictions are the reference's; false for NaN."""
    return all(agreement[key] <= TOLERANCE for key in ("loss", "parameters", "outputs"))


def contestants(names: Iterable[str], plan: Plan) -> list[Contestant]:
    """The named contenders, with the subject, the floor and the reference in their places."""
    return [Contestant(name, ALL[name], plan.threads) for name in names]


def measure(
    case: Case,
    field_: list[Contestant],
    plan: Plan,
    subject: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Check every contestant's results, then time them; one record for each mode of the case."""
    subject, floor = subject or subject_on(plan.device), floor_on(plan.device)
    workload = WORKLOADS[case.workload]
    lines = {mode: {c.name: Line() for c in field_} for mode in case.modes}
    found_versions: dict[str, str] = {}
    rounds: dict[str, int] = dict.fromkeys(case.modes, 0)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        start = start_values(workload, case.dtype)
        np.savez(folder / "start.npz", *start)
        x, y = pool(workload, case.batch, case.dtype)
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
        del x, y
        rows = max(1, min(case.batch, int(CHECK_FLOPS / 3 / workload.product_flops(1))))
        _run_reference(case, plan, folder, rows)

        anchors = [c for c in field_ if c.name in (subject, floor)]
        together = groups([c for c in field_ if c not in anchors], anchors, case, plan)
        placed = {c.name for group in together for c in group} | ({c.name for c in anchors} if together else set())
        for c in field_:
            if c.name not in placed:
                need = memory_needed(c.entry, workload, case) / 1e9
                _mark(lines, c.name, "too big", f"needs about {need:.0f} GB beside the contenders it is compared with")
        for number, group in enumerate(together):
            say(f"group {number + 1} of {len(together)}: starts {', '.join(c.name for c in (*anchors, *group))}")
            with ExitStack() as stack:
                children = [stack.enter_context(Child(c, case, plan, folder)) for c in (*anchors, *group)]
                children = _checked(children, rows, lines, folder, start, found_versions)
                for mode in lines:
                    done = _rounds(children, mode, lines[mode], plan, subject, floor, say)
                    rounds[mode] = max(rounds[mode], done)
    return [
        {
            "workload": case.workload,
            "title": workload.title,
            "dtype": case.dtype,
            "batch": case.batch,
            "mode": mode,
            "threads": plan.threads,
            "device": plan.device,
            "subject": subject,
            "rounds": rounds[mode],
            "versions": found_versions,
            "contenders": {name: summary(line, case.batch) for name, line in lines[mode].items()},
        }
        for mode in lines
    ]


def _run_reference(case: Case, plan: Plan, folder: Path, rows: int) -> None:
    """Leave the reference's results in the folder, for both places of epsilon; on the CPU whatever the device."""
    with Child(Contestant(REFERENCE, ALL[REFERENCE], plan.threads), case, Plan(plan.threads), folder) as child:
        for first in (False, True):
            answer = child.ask("check", rows=rows, name=_reference(first), epsilon_first=first)
            if "comparable" not in answer:
                raise RuntimeError(f"the reference implementation fails: {answer}")


def _reference(epsilon_first: bool) -> str:
    return "reference-epsilon-first" if epsilon_first else "reference"


def _mark(lines: Mapping[str, Mapping[str, Line]], name: str, status: str, reason: str) -> None:
    for of_mode in lines.values():
        if of_mode[name].status == "timed":
            of_mode[name].status, of_mode[name].reason = status, reason


def _checked(
    children: list[Child],
    rows: int,
    lines: Mapping[str, Mapping[str, Line]],
    folder: Path,
    start: list[Any],
    found_versions: dict[str, str],
) -> list[Child]:
    """Those children whose results agree with the reference's; the others are marked with the reason.

    They load their libraries all at once, which takes long, and then compute in turn.
    """
    for child in children:
        child.send("load")
    answers = [child.receive() for child in children]
    kept = []
    for child, answer in zip(children, answers, strict=True):
        if "loaded" in answer:
            answer = child.ask("check", rows=rows, name=child.name)
        if "comparable" not in answer:
            ((status, reason),) = answer.items()
            _mark(lines, child.name, status, reason)
            continue
        found_versions.update(answer["versions"])
        if answer["comparable"]:
            agreement = compare(folder, child.name, _reference(answer["epsilon_first"]), start)
            for of_mode in lines.values():
                of_mode[child.name].agreement = agreement
            if not agrees(agreement):
                worst = max(("loss", "parameters", "outputs"), key=lambda key: agreement[key])
                _mark(lines, child.name, "disagrees", f"{worst} off by {agreement[worst]:.2g} after 3 steps")
                continue
        kept.append(child)
    return kept


def _rounds(
    children: list[Child],
    mode: str,
    lines: Mapping[str, Line],
    plan: Plan,
    subject: str,
    floor: str,
    say: Callable[[str], None],
) -> int:
    """Time the children in turns; the order is reversed from round to round, so that nobody is always first."""
    steps: dict[str, int] = {}
    turns = []
    total = 0.0
    for child in children:
        if lines[child.name].status != "timed":
            continue
        answer = child.ask("prepare", mode=mode)
        if "seconds" not in answer:
            ((lines[child.name].status, lines[child.name].reason),) = answer.items()
            continue
        steps[child.name] = min(100_000, max(1, round(plan.seconds / answer["seconds"])))
        total += steps[child.name] * answer["seconds"]
        turns.append(child)
    count = plan.rounds if total * plan.rounds <= plan.budget else max(3, int(plan.budget / total))
    say(f"{mode}: {count} rounds of {total:.1f} s")
    for number in range(count):
        taken: dict[str, float] = {}
        for child in turns if number % 2 == 0 else turns[::-1]:
            k = steps[child.name]
            answer = child.ask("run", mode=mode, steps=k, warm=k // 10)
            if "seconds" in answer:
                taken[child.name] = answer["seconds"] / k
            else:
                ((lines[child.name].status, lines[child.name].reason),) = answer.items()
        turns = [child for child in turns if child.name in taken]
        for name, seconds in taken.items():
            lines[name].seconds.append(seconds)
            if subject in taken:
                lines[name].ratios.append(seconds / taken[subject])
            if floor in taken:
                lines[name].over_floor.append(seconds / taken[floor])
    for child in turns:
        answer = child.ask("memory")
        if "peak" in answer:
            lines[child.name].memory = answer
    return count


def summary(line: Line, batch: int) -> dict[str, Any]:
    """A line as it goes into the JSON file: times in milliseconds, memory in MB."""
    if line.status != "timed" or not line.seconds:
        return {
            "status": line.status,
            "reason": line.reason,
            **({"agreement": line.agreement} if line.agreement else {}),
        }

    def spread(values: list[float]) -> dict[str, float] | None:
        if not values:
            return None
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    best = min(line.seconds)
    over_floor = spread(line.over_floor)
    megabytes = {f"{key}_mb": round(value / 1e6, 1) for key, value in line.memory.items() if value is not None}
    return {
        "status": "timed",
        "best_ms": best * 1e3,
        "median_ms": statistics.median(line.seconds) * 1e3,
        "rows_per_second": batch / best,
        "ratio": spread(line.ratios),
        "over_floor": over_floor,
        "products_share": 1 / over_floor["median"] if over_floor else None,
        "memory": megabytes,
        "agreement": line.agreement,
        "ms": [seconds * 1e3 for seconds in line.seconds],
    }
