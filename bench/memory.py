"""Who fits into memory together: on the host, and on a GPU on the device too."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

import numpy as np

from bench.contenders import Entry
from bench.plan import Case, Contestant, Plan
from bench.workloads import WORKLOADS, Workload, pool_batches

LIBRARY_BYTES = 500e6  # what a process takes before it has any data
CUDA_LIBRARY_BYTES = 2e9  # the same with CUDA's libraries
CONTEXT_BYTES = 1e9  # what a process takes of a device before it has any data: context, kernels, workspaces


def free_memory() -> float:
    """Bytes that could be taken without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 8e9


@lru_cache(maxsize=1)
def free_device_memory() -> float:
    """Bytes free on the first CUDA device while none of our processes runs; asked by a process that then goes away."""
    command = [sys.executable, "-c", "import cupy; print(cupy.cuda.runtime.memGetInfo()[0])"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (subprocess.CalledProcessError, ValueError):
        return float("inf")  # no device, or no CuPy to ask: the contenders will tell


def memory_needed(entry: Entry, workload: Workload, case: Case) -> float:
    """About the bytes that one contender takes on the CPU."""
    size = np.dtype(case.dtype).itemsize
    row = size * (2 * workload.inputs + entry.activations * workload.widths())
    return LIBRARY_BYTES + case.batch * row + 8 * size * workload.parameter_count()


def device_memory_needed(entry: Entry, workload: Workload, case: Case) -> float:
    """About the bytes that one contender takes of a GPU: its data, activations, and six vectors of parameters.

    These are the parameters, their gradient, Adam's two moments, and two for whoever does not update in place.
    """
    size = np.dtype(case.dtype).itemsize
    activation = 2 if case.precision == "bfloat16" else size
    data = pool_batches(case.batch) * case.batch * workload.inputs * size
    activations = case.batch * entry.activations * workload.widths() * activation
    return CONTEXT_BYTES + data + activations + 6 * size * workload.parameter_count()


def needs(entry: Entry, case: Case, device: str) -> tuple[float, ...]:
    """Bytes of the host's memory, and where the device has its own, of that."""
    workload = WORKLOADS[case.workload]
    if device == "cpu":
        return (memory_needed(entry, workload, case),)
    size = np.dtype(case.dtype).itemsize
    data = pool_batches(case.batch) * case.batch * workload.inputs * size
    host = CUDA_LIBRARY_BYTES + data + 3 * size * workload.parameter_count()
    return host, device_memory_needed(entry, workload, case)


def groups(peers: list[Contestant], anchors: list[Contestant], case: Case, plan: Plan) -> list[list[Contestant]]:
    """The peers in groups that fit in memory together with the anchors; what doesn't fit at all is left out."""
    need = {peer.name: needs(peer.entry, case, plan.device) for peer in (*peers, *anchors)}
    free = (free_memory(),) if plan.device == "cpu" else (free_memory(), free_device_memory())
    room = [plan.memory * bytes_ - sum(need[a.name][i] for a in anchors) for i, bytes_ in enumerate(free)]
    found: list[list[Contestant]] = []
    left = [0.0 for _ in room]

    def fits(peer: Contestant, within: list[float]) -> bool:
        return all(n <= w for n, w in zip(need[peer.name], within, strict=True))

    for peer in peers:
        if not fits(peer, room):
            continue
        if not fits(peer, left) or not found:
            found.append([])
            left = room
        found[-1].append(peer)
        left = [w - n for w, n in zip(left, need[peer.name], strict=True)]
    return found or ([[]] if anchors and min(room) >= 0 else [])
