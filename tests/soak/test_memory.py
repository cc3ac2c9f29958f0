"""Memory that is limited, and memory that grows."""

import itertools
import sys
from pathlib import Path

import pytest
from support.children import added, children
from support.soak import Soak

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")

LIMITS = {"deep": range(64, 144, 8), "small": range(32, 52, 2), "wide": range(80, 240, 16)}
"""Megabytes besides what there is: too little for the batch of most, and enough for smaller ones.

With little memory a library may end the process itself, as OpenBLAS does where its own malloc fails: so 32 at least.
The small network needs less than that, and is not refused.
"""


def test_a_fit_with_limited_memory(soak: Soak) -> None:
    """It ends with an error that names the batch and parts that fit, and with these it works in the same process."""
    each = [
        (name, compiled, megabytes, warm)
        for name, limits in LIMITS.items()
        for compiled, megabytes, warm in itertools.product((0, 1), limits, (0, 1))
    ]
    found = added(children(HERE / "limited.py", each[:: soak.count(3, 23)], timeout=300))
    detail = f"of {found['cases']} limits {found['told']} calls were refused, {found['retried']} done again as they say"
    soak.record("memory", found["cases"], found["failures"], detail)


def test_memory_does_not_grow(soak: Soak) -> None:
    """Over 1,000 epochs and over 1,000 batch sizes, by less than 1%."""
    works = [(work, compiled) for work in ("epochs", "steps", "predictions", "fits") for compiled in (0, 1)]
    each = [(*work, soak.count(1000, 300)) for work in (works[1::2] if soak.sample else works)]
    found = added(children(HERE / "growing.py", each, timeout=3000))
    soak.record("growth", found["cases"], found["failures"], f"memory grows by {max(found['growth']):.2%} at most")
