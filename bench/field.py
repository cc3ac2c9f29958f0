"""The learners of a benchmark, a process each: started when they are needed, and again where one has ended."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from bench.plan import Plan, available_cores
from bench.process import Process, environment

Result = dict[str, Any]


class Field:
    """Processes of `module`, one for each name, in which ``warm`` imports what is needed and ``learn`` counts.

    bpnet's machine code is kept in the folder, so that what an earlier run compiled is compiled anew in this one.
    """

    def __init__(self, module: str, threads: int, folder: Path, **order: Any) -> None:
        self.module, self.stack = module, ExitStack()
        self.order: dict[str, Any] = {
            "threads": threads,
            "folder": str(folder),
            "cores": available_cores()[:threads],
            **order,
        }
        self.processes: dict[str, Process] = {}
        self.versions: dict[str, str] = {}
        self.absent: dict[str, str] = {}

    def ask(self, name: str, patience: float, **order: Any) -> Result:
        """A learner's answer, given in so many seconds, or what it failed with, or why it is absent."""
        if name in self.absent:
            return {"absent": self.absent[name]}
        process = self.processes.get(name)
        if process is None or process.process.poll() is not None:
            threads = self.order["threads"]
            env = environment(threads, "cpu") | {"BPNET_CACHE_DIR": str(Path(self.order["folder"]) / "code")}
            process = Process(name, self.module, self.order | {"name": name}, env, Plan(threads))
            self.processes[name] = self.stack.enter_context(process)
            answer = process.ask("warm")
            if "versions" not in answer:
                self.absent[name] = answer.get("absent") or answer["failed"]
                return {"absent": self.absent[name]}
            self.versions |= answer["versions"]
        process.plan = replace(process.plan, deadline=time.monotonic() + patience)
        return process.ask("learn", **order)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def add_options(command: argparse.ArgumentParser) -> None:
    """Options of every benchmark that has learners."""
    command.add_argument("--seed", action="append", type=int, help="only this one; may be repeated; 0 to 4 by default")
    command.add_argument("--cache", type=Path, help="folder of the data sets; in the user's cache by default")
    command.add_argument("--patience", type=float, default=1800.0, help="seconds after which one is stopped")
    command.add_argument("--seconds", type=float, help="for all: nothing is begun later than this")
    command.add_argument("--again", action="store_true", help="measure anew what the file has")
    command.add_argument("--threads", type=int, default=argparse.SUPPRESS, help="all cores by default")
    command.add_argument("--json", type=Path, metavar="FILE", default=argparse.SUPPRESS,
                         help="keep the figures; what it has is not done again")  # fmt: skip
