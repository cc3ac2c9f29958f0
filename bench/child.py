"""The process that one contender lives in, ``python -m bench.child``: told what to do over its pipes, in lines of JSON.

It does nothing unless told, and answers only when its threads have gone to sleep, so that it never disturbs another.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from bench import device
from bench.contenders import ALL, Absent, Contender, Entry, make, module_of
from bench.workloads import WORKLOADS, Array, Task

CHECKED_STEPS = 3
CHECKED_ROWS = 256  # of the predictions
QUEUED_STEPS = 8
AGREE, LONGEST = 1.2, 1.0
"""Estimates of a step's time agree up to this ratio, and are made for about so many seconds."""


class Session:
    """One contender on one workload, as asked for on the command line."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.entry = Entry(**order["entry"]) if "entry" in order else ALL[order["contender"]]
        self.folder = order["folder"]
        self.workload = WORKLOADS[order["workload"]]
        with np.load(os.path.join(self.folder, "start.npz")) as start:
            values = [start[name] for name in start.files]
        self.task = Task(
            self.workload,
            order["dtype"],
            order["batch"],
            order["threads"],
            order["device"],
            self.workload.timing,
            values,
            order["precision"],
        )
        self.contender: Contender | None = None
        self.data: list[tuple[Any, Any]] = []
        self.together = 1  # training steps in one call
        self.stacks: list[tuple[Any, Any]] = []  # so many batches in one array each
        self.handed_over = 0.0  # seconds of the last run until all work had been handed to the device
        self.next = 0
        self.before = 0

    def _pool(self) -> tuple[Array, Array]:
        return np.load(os.path.join(self.folder, "x.npy")), np.load(os.path.join(self.folder, "y.npy"))

    def load(self) -> dict[str, Any]:
        """Import the contender's library."""
        module_of(self.entry)
        return {"loaded": True}

    def check(self, rows: int, name: str, **changes: Any) -> dict[str, Any]:
        """Train for a few steps from the common start, and leave the results in the folder to be compared."""
        settings = replace(self.workload.checking, **changes)
        contender = make(self.entry, replace(self.task, settings=settings, batch=rows))
        answer: dict[str, Any] = {"comparable": contender.has_results, "epsilon_first": self.entry.epsilon_first}
        if contender.has_results:
            x, y = self._pool()
            parts = [(x[i % len(x), :rows], y[i % len(y), :rows]) for i in range(CHECKED_STEPS)]
            batches = [(contender.put(bx), contender.put(by)) for bx, by in parts]
            outputs = contender.host(contender.predict(batches[0][0]))[:CHECKED_ROWS].astype(np.float64)
            if self.workload.loss == "cross_entropy" and not contender.probabilities:
                outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
                outputs /= outputs.sum(axis=1, keepdims=True)
            if contender.together > 1:
                stacks = [contender.put(np.stack(some)) for some in zip(*parts, strict=True)]
                losses = contender.losses(contender.several(*stacks))
            else:
                losses = [contender.loss(contender.step(*batch)) for batch in batches]
            values = {f"parameter_{i}": np.asarray(value) for i, value in enumerate(contender.parameters())}
            values |= {"outputs": outputs, "losses": np.array(losses)}
            np.savez(os.path.join(self.folder, f"{name}.npz"), **values)  # type: ignore[arg-type]
        answer["versions"] = versions()
        if self.task.device == "cuda":
            del contender
            device.release()
        return answer

    def prepare(self, mode: str, seconds: float) -> dict[str, Any]:
        """Get ready to be timed in this mode, by turns of so many seconds; tells about how many one step takes."""
        if self.contender is None:
            self.contender = contender = make(self.entry, self.task)
            x, y = self._pool()
            self.data = [(contender.put(x[i]), contender.put(y[i])) for i in range(len(x))]
            self.together = k = min(contender.together, len(x))
            if k > 1:
                places = range(0, len(x) - k + 1, k)
                self.stacks = [(contender.put(x[i : i + k]), contender.put(y[i : i + k])) for i in places]
            del x, y
        self.before = reset_peak_memory()
        steps = 1 if self.task.device == "cpu" else len(self.data)  # of which each may have a graph of its own
        return {"seconds": estimate(lambda count: self._run(mode, count), steps, seconds / 2)}

    def run(self, mode: str, steps: int, warm: int) -> dict[str, Any]:
        """Time this many steps, after a few that wake the threads and fill the caches."""
        if warm:
            self._run(mode, warm)
        answer = {"seconds": self._run(mode, steps)}
        if self.task.device == "cuda":  # few enough steps that the host never waits for room in the device's queue
            few = min(steps, QUEUED_STEPS)
            self._run(mode, few)
            answer["host"] = self.handed_over / few
        return answer

    def _run(self, mode: str, steps: int) -> float:
        """Seconds of so many steps; where several are taken in one call, of the calls they take, in proportion."""
        contender, start = self.contender, self.next
        assert contender is not None
        together = self.together if mode == "step" else 1
        data = self.stacks if together > 1 else self.data
        calls = -(-steps // together)
        batches = [data[(start + i) % len(data)] for i in range(calls)]
        result = None
        begin = time.perf_counter()
        if mode == "predict":
            predict = contender.predict
            for x, _ in batches:
                result = predict(x)
        else:
            step = contender.several if together > 1 else contender.step
            for x, y in batches:
                result = step(x, y)
        handed_over = time.perf_counter() - begin
        contender.wait(result)
        seconds = time.perf_counter() - begin
        self.next = (start + calls) % len(data)
        share = steps / (calls * together)
        self.handed_over = handed_over * share
        return seconds * share

    def memory(self) -> dict[str, Any]:
        """Bytes: the most this process held while it was timed, and how much of that came on top of the data."""
        peak = peak_memory()
        answer = {"peak": peak, "above": max(0, peak - self.before) if self.before else None}
        return answer | ({"device": device.peak()} if self.task.device == "cuda" else {})


def estimate(run: Callable[[int], float], steps: int, seconds: float) -> float:
    """Seconds of a step, where `run` gives those of so many: by runs ever longer, until one agrees with that before.

    The first steps compile or are captured as graphs, and tell little of the rest.  A run that counts has at least so
    many `steps` and `seconds`; all of them together take about LONGEST at most.
    """
    count, before, spent = 1, math.inf, 0.0
    while True:
        taken = run(count)
        now, spent = taken / count, spent + taken
        alike = count >= steps and taken >= seconds and max(now, before) <= AGREE * min(now, before)
        if alike or (spent > LONGEST and before < math.inf):
            return now
        before = now
        if count < steps or taken < seconds:
            count *= 2


def rest(quiet: float = 0.025, limit: float = 0.5) -> None:
    """Return when no thread of this process has computed for a while: thread pools spin before they sleep."""
    used, since = time.process_time(), time.perf_counter()
    end = since + limit
    while (now := time.perf_counter()) < end and now - since < quiet:
        time.sleep(0.005)
        before, used = used, time.process_time()
        if used - before > 0.0005:
            since = time.perf_counter()


def _status(field: str) -> int:
    """A figure of /proc/self/status in bytes; 0 where there is no such file."""
    try:
        with open("/proc/self/status") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)
    except OSError:
        return 0


def reset_peak_memory() -> int:
    """Forget the peak so far, which imports and checks have left; returns what is held now."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass
    return _status("VmRSS")


def peak_memory() -> int:
    """The most memory held; not from getrusage on Linux, which counts the parent's pages from before the exec."""
    peak = _status("VmHWM")
    if peak:
        return peak
    try:
        import resource
    except ImportError:
        return 0
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def versions() -> dict[str, str]:
    """Versions of the array libraries in this process, and the BLAS behind NumPy."""
    names = ("numpy", "bpnet", "torch", "jax", "keras", "skorch", "sklearn", "pytabkit", "thinc", "cupy", "llvmlite")
    found = {name: _version(name) for name in names if name in sys.modules}
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return found
    for pool in threadpool_info():
        if pool["user_api"] == "blas" and "numpy" in pool["filepath"]:
            found["blas"] = f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', 'unknown')})"
    return found


def _version(name: str) -> str:
    told = getattr(sys.modules[name], "__version__", None)
    with suppress(importlib.metadata.PackageNotFoundError):
        return str(told or importlib.metadata.version(name))
    return ""


def serve(session_of: Callable[[dict[str, Any]], Any]) -> None:
    """Do what the lines on the standard input say, by methods of the session that the command line orders."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes where errors go
    order = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order["cores"])
    session = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            session = session or session_of(order)
            answer = getattr(session, message.pop("do"))(**message)
        except (Absent, ModuleNotFoundError) as absent:
            answer = {"absent": str(absent)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        rest()
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    serve(Session)
