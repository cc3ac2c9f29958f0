"""Times every entry of the catalogue: a process for each library, checked before it is timed, in short rounds."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.catalogue import report
from bench.catalogue.entries import BATCHES, CHECKED_STEPS, ENTRIES, Entry, pool
from bench.plan import Plan, available_cores
from bench.process import Process, environment

SUBJECT = "bpnet"
PEERS = {
    "torch": ("with_torch", {}),
    "compile": ("with_torch", {"compiled": True}),
    "jax": ("with_jax", {}),
}
"""The module of each, and options: PyTorch eager, torch.compile and JAX."""
COMPILERS = 2
"""Processes of torch.compile, which takes longest to compile: each has every other entry."""
GROUP = 6
"""Entries that are compiled by all processes at the same time, before they are timed one by one."""
LATE = 1.5
"""How many times as long as to time them entries take at least, with compilers other than torch.compile."""
PATIENCE = 240.0
"""Seconds after which an answer is no longer waited for."""
MOST_STEPS = 2000


@dataclass
class Field:
    """The processes, which are started when they are needed, and again where one has ended."""

    names: list[str]
    threads: int
    folder: Path
    stack: ExitStack
    processes: dict[tuple[str, int], Process] = field(default_factory=dict)
    timing: float = 0.0  # seconds to time an entry of the last group

    def of(self, name: str, entry: int) -> Process:
        """The process of a contender that has the entry of this number."""
        place = name, entry % COMPILERS if name == "compile" else 0
        process = self.processes.get(place)
        if process is None or process.process.poll() is not None:
            module, options = PEERS.get(name, ("with_bpnet", {}))
            order = {
                "module": f"bench.catalogue.{module}", "options": options, "folder": str(self.folder),
                "threads": self.threads, "cores": available_cores()[: self.threads],
            }  # fmt: skip
            env = environment(self.threads, "cpu") | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
            process = Process(f"{name}-{place[1]}", "bench.catalogue.child", order, env, Plan(self.threads))
            self.processes[place] = self.stack.enter_context(process)
        process.plan = replace(process.plan, deadline=time.monotonic() + PATIENCE)
        return process

    def drop(self) -> None:
        """Let all processes forget what they have prepared."""
        for process in self.processes.values():
            process.ask("drop")


def chosen(options: argparse.Namespace) -> list[Entry]:
    """The entries asked for; raises SystemExit where there is none of a name."""
    found = [e for e in ENTRIES if not options.kind or e.kind in options.kind]
    for name in options.entry or ():
        if name not in {e.name for e in found}:
            raise SystemExit(f"no entry is called {name!r}; they are {', '.join(e.name for e in found)}")
    return [e for e in found if not options.entry or e.name in options.entry]


def run(options: argparse.Namespace, keep: Callable[[Any], None] = lambda record: None) -> dict[str, Any]:
    """Measure the entries, printing a line for each when it is done, then what there is to say of all."""
    entries, batches = chosen(options), sorted(options.batch or BATCHES)
    names = [SUBJECT, *(options.peer or PEERS)]
    begun, deadline = time.monotonic(), time.monotonic() + options.seconds
    record: dict[str, Any] = {"threads": options.threads, "batches": batches, "peers": names[1:], "entries": []}
    print(report.heading(names[1:], batches), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        field_ = Field(names, options.threads, Path(folder), stack)
        for first in range(0, len(entries), GROUP):
            group = dict(enumerate(entries[first : first + GROUP], first))
            late = field_.timing * LATE * (len(entries) - first) > deadline - time.monotonic()
            for line in _group(group, field_, batches, options, late, deadline):
                record["entries"].append(line)
                print(report.line(line, names[1:], batches), flush=True)
                keep(record)
            print(
                f"{time.monotonic() - begun:7.0f} s  {min(first + GROUP, len(entries))} of {len(entries)}",
                file=sys.stderr,
            )
    record["seconds"] = round(time.monotonic() - begun, 1)
    print("\n" + report.summary(record), flush=True)
    return record


def _group(
    group: dict[int, Entry], field_: Field, batches: list[int], options: argparse.Namespace, late: bool, deadline: float
) -> Iterator[dict[str, Any]]:
    """Compile some entries with all contenders at the same time, then time one after the other.

    Where it is `late`, torch.compile is left out, which takes most of the time to compile, and there are fewer rounds.
    """
    lines: dict[int, dict[str, Any]] = {i: {"kind": e.kind, "name": e.name, "contenders": {}} for i, e in group.items()}
    if time.monotonic() > deadline:
        for line in lines.values():
            yield line | {"failed": "not run: the time was over"}
        return
    starts = {i: _start(entry, field_.folder) for i, entry in group.items()}
    asked = []
    for i, entry in group.items():
        if starts[i]:
            lines[i]["failed"] = starts[i]
            continue
        for name in field_.names:
            if late and name == "compile":
                lines[i]["contenders"][name] = {"absent": "left out: its compilation would not fit in the time"}
                continue
            process = field_.of(name, i)
            process.send("prepare", key=entry.key, batches=batches)
            asked.append((i, name, process))
    for i, name, process in asked:
        if process.process.poll() is not None:  # with an entry before this one
            process = field_.of(name, i)
            process.send("prepare", key=group[i].key, batches=batches)
        process.plan = replace(process.plan, deadline=time.monotonic() + PATIENCE)
        lines[i]["contenders"][name] = process.receive()
    begun = time.monotonic()
    for i, entry in group.items():
        if not starts[i]:
            _compare(entry, lines[i]["contenders"], batches)
            for batch in batches:
                _rounds(entry, i, batch, field_, lines[i]["contenders"], 3 if late else options.rounds, options.turn)
        yield lines[i]
    field_.timing = (time.monotonic() - begun) / len(group)
    field_.drop()


def _start(entry: Entry, folder: Path) -> str:
    """Leave the entry's start values for all contenders; why not, where there are none."""
    from bench.catalogue.with_bpnet import start_values

    try:
        values = start_values(entry, pool(entry, 32)[0][0])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    np.savez(folder / f"{entry.key}.npz", **values)
    return ""


def _compare(entry: Entry, contenders: dict[str, Any], batches: list[int]) -> None:
    """Mark those whose losses are not bpnet's: they are not timed."""
    ours = contenders[SUBJECT].get("losses")
    for name, answer in contenders.items():
        if "losses" not in answer or ours is None:
            continue
        worst = 0.0
        for batch in map(str, batches):
            off = np.abs(np.subtract(answer["losses"][batch], ours[batch])) / np.abs(ours[batch])
            worst = max(worst, float(np.max(np.where(np.isfinite(off), off, np.inf))))
        answer["off"] = worst
        if worst > entry.tolerance:
            answer["disagrees"] = f"loss off by {worst:.1e} within {CHECKED_STEPS} steps"
        elif name == SUBJECT:
            moved = min(abs(ours[str(b)][-1] / ours[str(b)][0] - 1.0) for b in batches)
            answer["moved"] = moved


def timed(answer: dict[str, Any]) -> bool:
    """Whether a contender has been found right, and has not failed since."""
    return "losses" in answer and not answer.keys() & {"disagrees", "failed", "absent"}


def _rounds(
    entry: Entry, number: int, batch: int, field_: Field, contenders: dict[str, Any], rounds: int, turn: float
) -> None:
    """Time the contenders in turns, in the reverse order every other round; the medians of time and ratio are kept."""
    names = [name for name in field_.names if timed(contenders[name])]
    if SUBJECT not in names:
        return
    guess = {n: contenders[n]["seconds"][str(batch)] for n in names}  # while others compiled: mended by every round
    taken: dict[str, list[float]] = {name: [] for name in names}
    for count in range(rounds):
        for name in names if count % 2 == 0 else names[::-1]:
            steps = min(MOST_STEPS, max(1, round(turn / guess[name])))
            answer = field_.of(name, number).ask("run", key=entry.key, batch=batch, steps=steps)
            if "seconds" not in answer:
                contenders[name] |= answer
                if name == SUBJECT:
                    return
            else:
                guess[name] = answer["seconds"]
                taken[name].append(answer["seconds"])
        names = [name for name in names if timed(contenders[name])]
    for name in names:
        ratios = [theirs / ours for theirs, ours in zip(taken[name], taken[SUBJECT], strict=True)]
        contenders[name].setdefault("times", {})[str(batch)] = {
            "us": statistics.median(taken[name]) * 1e6,
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
