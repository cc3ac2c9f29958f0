"""Programs that are run in processes of their own: what hangs or dies is a failure with a traceback."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """For a process that is to import the bpnet under test, and what tests share."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))} | more


def child(program: Path, *args: Any, timeout: float, **more: str) -> dict[str, Any]:
    """The JSON that a program prints last, with "failures": a list, to which its death or its hanging is added.

    A program arms faulthandler for its single cases, so that a hang is told where it hangs.
    """
    command = [sys.executable, str(program), *map(str, args)]
    name = f"{program.name} {' '.join(map(str, args))}"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment(**more), start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its own children, which hold the pipes
        out, err = process.communicate()
        return {"cases": 1, "failures": [f"{name} hangs: {err[-3000:]}"]}
    if process.returncode:
        return {"cases": 1, "failures": [f"{name} ended with {process.returncode}: {err[-3000:]}"]}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    found["failures"] = [f"{name}: {failure}" for failure in found["failures"]]
    return found


def children(program: Path, each: Iterable[tuple[Any, ...]], timeout: float, at_once: int = 2) -> Iterator[Any]:
    """What `child` gives for each of these arguments, some at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda args: child(program, *args, timeout=timeout), each)


def added(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sums of what programs have found."""
    total: dict[str, Any] = {"failures": []}
    for one in found:
        for name, value in one.items():
            total[name] = total[name] + value if name in total else value
    return total
