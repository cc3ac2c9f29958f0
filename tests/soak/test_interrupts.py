"""Ctrl-C at any moment of any call, and errors and lacks of memory at each place: what is left is of one step."""

from pathlib import Path

from support.children import added, children
from support.soak import Soak

HERE = Path(__file__).parent


def test_interrupts_at_random_moments(soak: Soak) -> None:
    """Of fits, plain and compiled, between tiny calls, while compiling, saving and loading; by a timer and SIGINT."""
    parts, count = soak.count(20, 2), soak.count(510, 60)
    found = added(
        children(
            HERE / "interrupted.py", [(20 * soak.seed + i, count) for i in range(parts)], timeout=soak.count(3000, 300)
        )
    )
    detail = f"{found['cases']:,} of {found.get('calls', 0):,} calls interrupted before their end"
    soak.record("interrupt", found["cases"], found["failures"], detail)


def test_interrupts_of_imports(soak: Soak) -> None:
    """Each in a process of its own, which then goes on as if nothing had been."""
    seeds = [(soak.seed * 1000 + i,) for i in range(soak.count(400, 6))]
    found = added(children(HERE / "importing.py", seeds, timeout=120))
    detail = f"{found.get('came', 0)} imports interrupted, {found.get('others', 0)} of them other libraries' for good"
    soak.record("interrupt", found["cases"], found["failures"], detail)


def test_a_lack_of_memory_at_each_place(soak: Soak) -> None:
    """One allocation of Python's and NumPy's objects after the other fails, in whichever thread."""
    works = [(name, compiled) for name in ("steps", "steps of many rows", "fit", "predictions") for compiled in (0, 1)]
    each = [(*work, soak.count(1, 61), soak.seed) for work in works]
    found = added(children(HERE / "scarce.py", each, timeout=soak.count(3600, 300)))
    detail = f"{found.get('failed', 0):,} allocations failed, {found.get('crashed', 0)} times NumPy ended the process"
    soak.record("memory", found["cases"], found["failures"], detail)
