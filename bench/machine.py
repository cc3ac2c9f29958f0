"""What the figures were measured on, and the file that keeps them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.plan import available_cores

KERNELS = (
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),
    *("MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ATEN_CPU_CAPABILITY", "XLA_FLAGS"),
)
"""Variables of the environment by which libraries choose their machine code: figures made with them are told apart."""


def processor() -> dict[str, str]:
    """The processor's name as it gives itself, and the numbers that tell apart those of one name, where it tells."""
    told: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                told.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    found = {"cpu": told.get("model name") or platform.processor() or platform.machine()}
    if "cpu family" in told:
        found["model"] = f"family {told['cpu family']}, model {told.get('model')}"
    return found


def accelerator() -> str | None:
    """The name of the first CUDA device, where CuPy finds one."""
    return _device()[0]


def why_no_accelerator() -> str:
    """What CuPy says where it finds no CUDA device."""
    return _device()[1]


@lru_cache(maxsize=1)
def _device() -> tuple[str | None, str]:
    try:
        import cupy

        return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()), ""
    except ModuleNotFoundError:
        return None, "CuPy is not installed"
    except Exception as error:
        return None, f"CuPy finds no CUDA device: {error}"


def ticks() -> tuple[int, int]:
    """Ticks of all processors since the machine began, and those of waiting: idle, and for a disk."""
    with open("/proc/stat") as lines:
        spent = [int(number) for number in next(lines).split()[1:9]]
    return sum(spent), spent[3] + spent[4]


Clock = tuple[float, float, tuple[int, int] | None]


def clock() -> Clock:
    """The time, this process's seconds of all cores, and the machine's ticks where they are told."""
    try:
        told = ticks()
    except OSError:
        told = None
    return time.perf_counter(), time.process_time(), told


def others(begun: Clock, least: float = 0.3) -> float | None:
    """How many cores have been at other work since the clock said so; None where that isn't told.

    Ticks are hundredths of a second: where it is less than `least` seconds ago, the rest is waited for.
    """
    time.sleep(max(0.0, begun[0] + least - time.perf_counter()))
    ended = clock()
    if begun[2] is None or ended[2] is None:
        return None
    passed, idle = (b - a for a, b in zip(begun[2], ended[2], strict=True))
    own = (ended[1] - begun[1]) / (ended[0] - begun[0])
    return round(max(0.0, (os.cpu_count() or 1) * (1 - idle / max(1, passed)) - own), 2)


def busy(seconds: float = 0.5) -> float | None:
    """How many processors are at work while this process sleeps, also for other machines; None where it isn't told."""
    try:
        before = ticks()
        time.sleep(seconds)
        after = ticks()
    except OSError:
        return None
    passed = max(1, after[0] - before[0])
    return (os.cpu_count() or 1) * (1 - (after[1] - before[1]) / passed)


def describe() -> dict[str, Any]:
    """Date, processor, cores, memory, system and Python of this run; libraries are told by the contenders."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **processor(),
        "cores": len(available_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    try:
        with open("/proc/meminfo") as lines:
            found["memory_gb"] = round(int(next(lines).split()[1]) / 1e6, 1)
    except OSError:
        pass
    if chosen := {name: os.environ[name] for name in KERNELS if name in os.environ}:
        found["environment"] = chosen
    others = busy()
    if others is not None:
        found["busy"] = round(others, 2)
    gpu = accelerator()
    return found | ({"gpu": gpu} if gpu else {})


def keep(result: dict[str, Any], path: Path | None) -> None:
    """Write the figures so that an interrupted run leaves the last whole file."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
