"""Programs that are run in processes of their own: what hangs or dies is a failure with a traceback."""

import json
import os
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
    try:
        done = subprocess.run(
            command, timeout=timeout, capture_output=True, text=True, check=False, env=environment(**more)
        )
    except subprocess.TimeoutExpired as error:
        return {"cases": 1, "failures": [f"{name} hangs: {str(error.stderr or '')[-3000:]}"]}
    if done.returncode:
        return {"cases": 1, "failures": [f"{name} ended with {done.returncode}: {done.stderr[-3000:]}"]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
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
