"""Times contenders side by side: a process each, the same threads, one at a time, alternating in short rounds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import ALL, REFERENCE, floor_on, subject_on
from bench.memory import groups, needs
from bench.plan import Case, Contestant, Plan
from bench.process import Child
from bench.workloads import WORKLOADS, pool, start_values

TOLERANCE = 1e-4
LIMITS = {
    "float32": {"loss": TOLERANCE, "parameters": TOLERANCE, "outputs": TOLERANCE},
    "tf32": {"loss": 1e-3, "outputs": 1e-3, "way": 0.2},
    "bfloat16": {"loss": 1e-2, "outputs": 1e-2, "way": 0.4},
}
"""How far results may be from the reference's, by the precision of the products.

Adam's steps are as long for small gradients as for large ones, so where rows' gradients nearly cancel, rounding shows.
With operands of products rounded to 10 bits on the host, parameters of (a), (b), (c) and (g) were 0.03 to 0.11 of their
way from the reference's, to bfloat16 0.06 to 0.23, losses within 2e-4 and 2e-3, predictions within 3e-4 and 4e-3.
"""
CHECK_FLOPS = 2e12  # the check before a case trains on as many rows of the batch as this pays for
CUDA_CHECK_ROWS = 8192  # and on a GPU on no more than these


@dataclass
class Line:
    """What is known of one contender in one case and mode."""

    status: str = "timed"  # or "absent", "failed", "disagrees", "too big", "not run"
    reason: str = ""
    seconds: list[float] = field(default_factory=list)  # of one step, by round
    ratios: list[float] = field(default_factory=list)  # its time over the subject's, by round
    over_floor: list[float] = field(default_factory=list)  # its time over the floor's, by round
    host: list[float] = field(default_factory=list)  # on a GPU: seconds until one step has been handed over, by round
    agreement: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)


def compare(folder: Path, name: str, reference: str, start: list[Any]) -> dict[str, float]:
    """How far a contender's results are from the reference's.

    ``loss``: the largest relative difference of a step's loss.  ``parameters``: the largest, over the arrays of
    parameters, of the difference's norm over the array's norm.  ``outputs``: the largest difference of a prediction at
    the start, of which probabilities are compared.  ``moved``: how far the reference's own parameters went.  ``way``:
    the largest, over the arrays, of the difference's norm over that of the reference's way from the start.
    """
    worst = {"parameters": 0.0, "moved": 0.0, "way": 0.0}
    with np.load(folder / f"{reference}.npz") as right, np.load(folder / f"{name}.npz") as ours:
        shapes_differ = ours["outputs"].shape != right["outputs"].shape
        for i, begun in enumerate(start):
            value, expected = ours[f"parameter_{i}"], right[f"parameter_{i}"]
            if value.shape != expected.shape or shapes_differ:
                return {"loss": np.inf, "parameters": np.inf, "outputs": np.inf, "moved": 0.0, "way": np.inf}
            length, apart, moved = (_norm(a) for a in (expected, value - expected, begun - expected))
            ways = {"parameters": apart / length, "moved": moved / length, "way": apart / moved if moved else 0.0}
            for key, now in ways.items():
                worst[key] = max(worst[key], now) if now == now else now  # not a number stays so
        found = {
            "loss": np.max(np.abs(ours["losses"] - right["losses"]) / np.abs(right["losses"])),
            "outputs": np.max(np.abs(ours["outputs"] - right["outputs"])),
        }
    return worst | {key: float(value) for key, value in found.items()}


def _norm(values: Any) -> float:
    """The Euclidean norm; large arrays, of which a case may have gigabytes, are added up in their own type by BLAS."""
    return float(np.linalg.norm(values if values.size > 2**20 else values.astype(np.float64)))


def agrees(agreement: Mapping[str, float], precision: str = "float32") -> bool:
    """Whether the results are the reference's to within what the precision allows; false for NaN."""
    return all(agreement[key] <= limit for key, limit in LIMITS[precision].items())


def contestants(names: Iterable[str], plan: Plan) -> list[Contestant]:
    """The named contenders, with the subject, the floor and the reference in their places."""
    return [Contestant(name, ALL[name], plan.threads) for name in names]


def checked_rows(case: Case, device: str) -> int:
    """Rows of the check before a case.

    On a GPU they are other than the batch: what compilers try out for a shape must not be disturbed, and checks run at
    the same time.
    """
    rows = max(1, min(case.batch, int(CHECK_FLOPS / 3 / WORKLOADS[case.workload].product_flops(1))))
    return rows if device == "cpu" else min(rows, CUDA_CHECK_ROWS, case.batch - case.batch // 4)


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
        rows = checked_rows(case, plan.device)
        _run_reference(case, plan, folder, rows, {c.entry.epsilon_first for c in field_})

        anchors = [c for c in field_ if c.name in (subject, floor)]
        together = groups([c for c in field_ if c not in anchors], anchors, case, plan)
        placed = {c.name for group in together for c in group} | ({c.name for c in anchors} if together else set())
        for c in field_:
            if c.name not in placed:
                need = " and ".join(f"{n / 1e9:.0f} GB" for n in needs(c.entry, case, plan.device))
                where = "" if plan.device == "cpu" else " of host and device"
                _mark(lines, c.name, "too big", f"needs about {need}{where} beside the contenders it is compared with")
        for number, group in enumerate(together):
            say(f"group {number + 1} of {len(together)}: starts {', '.join(c.name for c in (*anchors, *group))}")
            with ExitStack() as stack:
                children = [stack.enter_context(Child(c, case, plan, folder)) for c in (*anchors, *group)]
                children = _checked(children, rows, lines, folder, start, found_versions, case)
                for mode in lines:
                    done = _rounds(children, mode, lines[mode], plan, subject, floor, say)
                    rounds[mode] = max(rounds[mode], done)
    return [record_of(case, mode, plan, subject, rounds[mode], found_versions, lines[mode]) for mode in lines]


def record_of(
    case: Case,
    mode: str,
    plan: Plan,
    subject: str,
    rounds: int,
    versions: Mapping[str, str],
    lines: Mapping[str, Line],
) -> dict[str, Any]:
    """A case in one mode as it goes into the JSON file."""
    return {
        "workload": case.workload,
        "title": WORKLOADS[case.workload].title,
        "dtype": case.dtype,
        **({"precision": case.precision} if plan.device != "cpu" else {}),
        "batch": case.batch,
        "mode": mode,
        "threads": plan.threads,
        "device": plan.device,
        "subject": subject,
        "rounds": rounds,
        "versions": versions,
        "contenders": {name: summary(line, case.batch) for name, line in lines.items()},
    }


def _run_reference(case: Case, plan: Plan, folder: Path, rows: int, epsilons: Iterable[bool]) -> None:
    """Leave the reference's results in the folder, for the places of epsilon asked for; on the CPU in any case."""
    exact = replace(case, precision="float32")
    with Child(
        Contestant(REFERENCE, ALL[REFERENCE], plan.threads), exact, replace(plan, device="cpu"), folder
    ) as child:
        for first in epsilons:
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
    case: Case,
) -> list[Child]:
    """Those children whose results agree with the reference's; the others are marked with the reason.

    They load their libraries all at once, which takes long, and then compute in turn; on a GPU, where compilers and
    the host do most of the work, at once.
    """
    for child in children:
        child.send("load")
    answers = [child.receive() for child in children]
    loaded = [child for child, answer in zip(children, answers, strict=True) if "loaded" in answer]
    at_once = [child for child in loaded if child.plan.device != "cpu"]
    for child in at_once:
        child.send("check", rows=rows, name=child.name)
    kept = []
    for child, answer in zip(children, answers, strict=True):
        if child in loaded:
            answer = child.receive() if child in at_once else child.ask("check", rows=rows, name=child.name)
        if "comparable" not in answer:
            ((status, reason),) = answer.items()
            _mark(lines, child.name, status, reason)
            continue
        found_versions.update(answer["versions"])
        if answer["comparable"]:
            agreement = compare(folder, child.name, _reference(answer["epsilon_first"]), start)
            for of_mode in lines.values():
                of_mode[child.name].agreement = agreement
            if not agrees(agreement, case.precision):
                limits = LIMITS[case.precision]
                worst = max(limits, key=lambda key: agreement[key] / limits[key])
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
        if plan.left() == 0.0:
            lines[child.name].status, lines[child.name].reason = "not run", "the time for all cases was over"
            continue
        answer = child.ask("prepare", mode=mode, seconds=plan.seconds)
        if "seconds" not in answer:
            ((lines[child.name].status, lines[child.name].reason),) = answer.items()
            continue
        steps[child.name] = min(100_000, max(1, round(plan.seconds / answer["seconds"])))
        total += steps[child.name] * answer["seconds"]
        turns.append(child)
    budget = min(plan.budget, plan.left())
    count = plan.rounds if total * plan.rounds <= budget else max(3, int(budget / total))
    say(f"{mode}: {count} rounds of {total:.1f} s")
    for number in range(count):
        taken: dict[str, float] = {}
        for child in turns if number % 2 == 0 else turns[::-1]:
            k = steps[child.name]
            answer = child.ask("run", mode=mode, steps=k, warm=k // 10)
            if "seconds" in answer:
                taken[child.name] = answer["seconds"] / k
                if "host" in answer:
                    lines[child.name].host.append(answer["host"])
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
        **({"host_us": statistics.median(line.host) * 1e6} if line.host else {}),
        "products_share": 1 / over_floor["median"] if over_floor else None,
        "memory": megabytes,
        "agreement": line.agreement,
        "ms": [seconds * 1e3 for seconds in line.seconds],
    }
