"""One contender that is several processes: all are told at once what to do, and sleep while others have their turn.

MPI's ranks spin while they wait for each other, so the time between turns is not spent in MPI: each rank reads its
orders from a socket of its own, as lines of JSON, and answers there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bench.plan import ROOT
from bench.process import environment

PATIENCE = 300.0  # seconds after which an answer is no longer waited for


def mpiexec() -> str | None:
    """The program that starts ranks: of this environment, or else of the system; None where there is none."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


class Failed(Exception):
    """A group that did not do what it was told; the message says which rank and why."""


class Group:
    """So many processes of ``python -m bench.scaling.child``; `order` says what each of them is.

    `start` goes before the command and starts all of them (``mpiexec -n 4``); without it each is started alone, and
    `RANK` and `WORLD_SIZE` in its environment say which it is, as PyTorch reads them.
    """

    def __init__(
        self,
        name: str,
        order: dict[str, Any],
        ranks: int,
        start: list[str] | None = None,
        env: dict[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.name, self.ranks, self.patience = name, ranks, patience
        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        place = str(self.folder / "socket")
        self.errors = open(self.folder / "log", "w+", encoding="utf-8")  # noqa: SIM115
        command = [sys.executable, "-m", "bench.scaling.child", json.dumps(order | {"socket": place})]
        given = environment(order.get("threads", 1), "cpu") | {"PYTHONPATH": str(ROOT)} | (env or {})
        options: dict[str, Any] = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stderr": self.errors}
        options |= {"stdout": self.errors, "start_new_session": True}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.connections: list[socket.socket] = []
        self.streams: list[Any] = []  # of these
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(place)
            door.listen(ranks)
            door.settimeout(1.0)
            try:
                if start is not None:
                    self.processes.append(subprocess.Popen([*start, *command], env=given, **options))
                else:
                    for rank in range(ranks):
                        own = given | {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
                        self.processes.append(subprocess.Popen(command, env=own, **options))
                self._accept(door)
            except BaseException:
                self.close()
                raise

    def _accept(self, door: socket.socket) -> None:
        end = time.monotonic() + self.patience
        while len(self.streams) < self.ranks:
            try:
                connection, _ = door.accept()
            except TimeoutError:
                if time.monotonic() > end or any(p.poll() not in (None, 0) for p in self.processes):
                    raise Failed(f"{self.name} did not start: {self.last_words()}") from None
                continue
            connection.settimeout(self.patience)
            self.connections.append(connection)
            self.streams.append(connection.makefile("rw", encoding="utf-8"))

    def last_words(self) -> str:
        """The last line that the processes have printed."""
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["no message"])[-1]

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """What each rank answers, by rank; raises `Failed` where one of them has no answer."""
        for stream in self.streams:
            with suppress(OSError):
                stream.write(json.dumps({"do": do, **arguments}) + "\n")
                stream.flush()
        answers = []
        for stream in self.streams:
            try:
                line = stream.readline()
            except OSError:
                raise Failed(f"{self.name} gave no answer within {self.patience:.0f} s: {self.last_words()}") from None
            answer = json.loads(line) if line else {"failed": f"a process has ended: {self.last_words()}"}
            for kind in ("failed", "absent"):
                if kind in answer:
                    raise Failed(f"{self.name}: {answer[kind]}")
            answers.append(answer)
        return sorted(answers, key=lambda answer: int(answer.get("rank", 0)))

    def close(self) -> None:
        for either in (*self.streams, *self.connections):
            with suppress(OSError):
                either.close()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
