"""Where one bpnet step's time goes, by layer and by phase: clocks are put around the methods from outside.

Layers that run on several threads at once are given as the time that passed: the sum over the threads, divided by them.
"""

from __future__ import annotations

import argparse
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.contenders import ALL, Absent
from bench.report import columns, significant
from bench.workloads import WORKLOADS, Task, pool, start_values

Event = tuple[str, str, float, int]  # what, phase, seconds, thread


class Clock:
    """Collects how long the wrapped methods took."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.inside = threading.local()

    def around(self, method: Callable[..., Any], what: str, phase: str) -> Callable[..., Any]:
        """The same method, timed; a call made within a timed call counts for the outer one only."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if getattr(self.inside, "busy", False):
                return method(*args, **kwargs)
            self.inside.busy = True
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.events.append((what, phase, time.perf_counter() - begin, threading.get_ident()))
                self.inside.busy = False

        return timed


def leaves_of(layer: Any, path: str = "") -> list[tuple[str, Any]]:
    """The layers that are not made of layers, by where they stand: "0", "3.inner.1"."""
    children = getattr(layer, "children", ())
    if not children:
        return [(path, layer)]
    return [leaf for name, child in children for leaf in leaves_of(child, f"{path}.{name}" if path else name)]


@contextmanager
def clocks_in(trainer: Any) -> Iterator[Clock]:
    """Clocks around the layers, the loss, the optimizer and the parameter vector of a built trainer."""
    clock = Clock()
    layout, loss = trainer.layout, type(trainer.loss)
    places = [
        (layer, name, f"{path} {layer!r}", name)
        for path, layer in leaves_of(layout.network)
        for name in ("forward", "backward")
    ]
    places += [(trainer.optimizer, "update", repr(trainer.optimizer), "optimizer")]
    places += [(layout, name, "parameter vector", f"{name}") for name in ("views", "join")]
    call = loss.__call__
    try:
        for owner, name, what, phase in places:  # an attribute of the instance hides the method of its class
            object.__setattr__(owner, name, clock.around(getattr(owner, name), what, phase))
        loss.__call__ = clock.around(call, repr(trainer.loss), "loss")
        yield clock
    finally:
        loss.__call__ = call
        for owner, name, _, _ in places:
            object.__delattr__(owner, name)


def clocked(executable: Any, rounds: int) -> list[tuple[str, float]]:
    """What each command does, and the least seconds that it took, one after the other, in so many rounds."""
    from bpnet.compiler.llvm.thread_pool import POOL, CommandTable

    (table,), bases = executable.tables, ctypes.addressof(executable.memories)
    least = [float("inf")] * len(table.commands)
    for _ in range(rounds):
        for i in range(len(table.commands)):
            begin = time.perf_counter()
            POOL.run(CommandTable(table.commands[i : i + 1], bases, table.threads))
            least[i] = min(least[i], time.perf_counter() - begin)
    return list(zip((str(c.does) for c in executable.tiled), least, strict=True))


def profile(
    key: str, batch: int, dtype: str, threads: int, steps: int | None = None, contender: str = "bpnet"
) -> dict[str, Any]:
    """Milliseconds of one step by what and phase, of the whole step with and without the clocks, and its GFLOP/s."""
    from bench.contenders.bpnet_trainer import Bpnet

    workload = WORKLOADS[key]
    task = Task(workload, dtype, batch, threads, "cpu", workload.timing, start_values(workload, dtype))
    subject = Bpnet(task, **ALL[contender].options)
    x, y = pool(workload, batch, dtype)
    batches = [(subject.put(x[i]), subject.put(y[i])) for i in range(len(x))]

    def run(count: int) -> float:
        begin = time.perf_counter()
        for i in range(count):
            result = subject.step(*batches[i % len(batches)])
        subject.wait(result)
        return (time.perf_counter() - begin) / count

    run(2)
    count = steps or max(3, min(20_000, int(1.0 / run(2))))
    bare = run(count)
    about = {"workload": key, "batch": batch, "dtype": dtype, "threads": threads, "steps": count, "bare_ms": bare * 1e3}
    if ALL[contender].options.get("jit"):
        commands = clocked(subject.trainer._step.compiled().last[1].executable, max(3, min(count, 200)))
        return about | {
            "commands": [{"what": what, "ms": seconds * 1e3} for what, seconds in commands],
            "gflops": workload.product_flops(batch) / bare / 1e9,
        }
    with clocks_in(subject.trainer) as clock:
        run(1)
        clock.events.clear()
        whole = run(count)
    sums: dict[tuple[str, str], float] = {}
    workers: dict[tuple[str, str], set[int]] = {}
    for what, phase, seconds, thread in clock.events:
        sums[what, phase] = sums.get((what, phase), 0.0) + seconds
        workers.setdefault((what, phase), set()).add(thread)
    parts = {place: total / len(workers[place]) / count * 1e3 for place, total in sums.items()}
    return about | {
        "clocked_ms": whole * 1e3,
        "threads_seen": max(map(len, workers.values())),
        "parts": [{"what": what, "phase": phase, "ms": ms} for (what, phase), ms in parts.items()],
        "rest_ms": whole * 1e3 - sum(parts.values()),
        "gflops": workload.product_flops(batch) / whole / 1e9,
    }


def text(found: dict[str, Any]) -> str:
    """The profile as a table."""
    if "commands" in found:
        return _text_of_commands(found)
    whole = found["clocked_ms"]
    named: dict[str, dict[str, float]] = {}
    for part in found["parts"]:
        named.setdefault(part["what"], {})[part["phase"]] = part["ms"]
    rows = [["", "forward", "backward", "other", "ms", "share"]]

    def row(what: str, forward: float | None, backward: float | None, other: float | None) -> None:
        total = sum(value or 0.0 for value in (forward, backward, other))
        cells = ["" if value is None else significant(value) for value in (forward, backward, other)]
        rows.append([what, *cells, significant(total), f"{total / whole:.1%}"])

    for what, phases in sorted(named.items(), key=lambda item: not item[0][0].isdigit()):
        other = {phase: ms for phase, ms in phases.items() if phase not in ("forward", "backward")}
        row(what, phases.get("forward"), phases.get("backward"), sum(other.values()) if other else None)
    row("the rest: checks, threads, sums of blocks", None, None, found["rest_ms"])
    row(
        "whole step",
        sum(p.get("forward", 0.0) for p in named.values()),
        sum(p.get("backward", 0.0) for p in named.values()),
        None,
    )
    rows[-1] = [rows[-1][0], rows[-1][1], rows[-1][2], "", significant(whole), "100.0%"]
    return (
        f"({found['workload']}) {WORKLOADS[found['workload']].title}, {found['dtype']}, batch {found['batch']}, "
        f"{found['threads']} threads ({found['threads_seen']} seen at work), {found['steps']} steps\n"
        f"{columns(rows)}\n"
        f"{significant(found['bare_ms'])} ms without the clocks; "
        f"the matrix products' operations over the whole step: {found['gflops']:.0f} GFLOP/s"
    )


def _text_of_commands(found: dict[str, Any]) -> str:
    """The profile of a compiled step, which has no layers any more."""
    done = sum(part["ms"] for part in found["commands"])
    rows = [["command", "ms", "share"]]
    rows += [[p["what"], significant(p["ms"]), f"{p['ms'] / done:.1%}"] for p in found["commands"]]
    rows.append(["all of them, each called by itself", significant(done), "100.0%"])
    return (
        f"({found['workload']}) {WORKLOADS[found['workload']].title}, {found['dtype']}, batch {found['batch']}, "
        f"{found['threads']} threads, compiled\n{columns(rows)}\n"
        f"{significant(found['bare_ms'])} ms the step, {found['gflops']:.0f} GFLOP/s of the matrix products' operations"
    )


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Profile the workloads and batches asked for: (a) at 128 and 8192 by default."""
    found = []
    contender = (options.contender or ["bpnet"])[0]
    for key in options.workload or ["a"]:
        for batch in options.batch or [128, 8192]:
            try:
                found.append(profile(key, batch, options.dtype or "float32", options.threads, options.steps, contender))
            except Absent as absent:
                raise SystemExit(f"nothing to profile: {absent}") from None
            print(text(found[-1]) + "\n", flush=True)
    return found
