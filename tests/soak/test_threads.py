"""Many threads, several fits at once, fork, spawn, loky, and the interpreter's exit: the bits of one thread alone."""

import os
from pathlib import Path

import pytest
from support.children import added, children
from support.soak import Soak

HERE = Path(__file__).parent

WORKS = {  # how often: of a full run, of a sample
    "predictions": (1000, 40),
    "fits": (50, 2),
    "forks": (200, 4),
    "spawn": (12, 2),
    "loky": (12, 2),
    "exit": (60, 3),
}


@pytest.mark.parametrize("work", WORKS)
def test_the_bits_are_those_of_one_thread(work: str, soak: Soak) -> None:
    if work == "forks" and not hasattr(os, "fork"):
        pytest.skip("the platform has no fork")
    found = added(
        children(HERE / "crowded.py", [(work, compiled, soak.count(*WORKS[work])) for compiled in (0, 1)], timeout=1600)
    )
    soak.record("threads", found["cases"], found["failures"])
