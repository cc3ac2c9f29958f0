"""What is to be measured, how long and on what."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Entry

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """One workload at one batch size; its modes share the processes."""

    workload: str
    batch: int
    dtype: str = "float32"
    modes: tuple[str, ...] = ("step", "predict")
    precision: str = "float32"
    contenders: tuple[str, ...] | None = None  # those who meet in this case; None: the suite's

    @property
    def kind(self) -> str:
        """The type of the arrays, or where products are less exact than that, their precision."""
        return self.dtype if self.precision == "float32" else self.precision


@dataclass(frozen=True)
class Plan:
    """How long and on what to measure."""

    threads: int
    device: str = "cpu"
    rounds: int = 10
    seconds: float = 0.25  # one contender's turn in a round
    budget: float = 120.0  # seconds of timing in one case and mode, over all contenders; the rounds are cut to it
    memory: float = 0.8  # the share of the free memory to use
    deadline: float | None = None  # of time.monotonic(): whoever has not answered by then is ended

    def left(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass(frozen=True)
class Contestant:
    """One line of a case's results: an entry, and the threads it may use."""

    name: str
    entry: Entry
    threads: int


def available_cores() -> list[int]:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
