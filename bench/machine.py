"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from functools import lru_cache
from typing import Any

import numpy as np

from bench.plan import available_cores


def processor() -> str:
    """The processor's name as it gives itself."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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


def describe() -> dict[str, Any]:
    """Date, processor, cores, memory, system and Python of this run; libraries are told by the contenders."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": processor(),
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
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 2)
    gpu = accelerator()
    return found | ({"gpu": gpu} if gpu else {})
