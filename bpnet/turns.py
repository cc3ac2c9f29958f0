"""Whose turn it is: one call trains a trainer at a time, and what reads it meanwhile from elsewhere is refused."""

import os
import weakref
from collections.abc import Callable
from functools import wraps
from threading import Lock, get_ident
from typing import Any, TypeVar

from bpnet.backends.interrupts import current, end_sessions
from bpnet.errors import BusyError

F = TypeVar("F", bound=Callable[..., Any])

ASKED = {
    "__getstate__": "a copy or a pickle was made",
    "parameters": "parameters was assigned to",
    "step_count": "step_count was assigned to",
}
"""What is done by methods that nobody calls by their name."""


class Turn:
    """Of one trainer: taken while it is trained."""

    def __init__(self) -> None:
        self.lock: Any = Lock()
        self.taken = self.thread = 0
        """How often it was taken, and by which thread last."""
        _TURNS.add(self)

    def refused(self, name: str) -> BusyError:
        asked = ASKED.get(name, f"{name} was called")
        if self.lock.locked() and self.thread == get_ident():
            return BusyError(
                f"{asked} by a callback of this trainer's own fit, which trains it already: set "
                "trainer.stop = True to end that, or call step in a loop of your own instead of fit"
            )
        return BusyError(
            f"{asked} while another thread trains this trainer: wait until it is done, or give each thread "
            "a trainer of its own (copy.deepcopy)"
        )


def trains(method: F) -> F:
    """For a method that trains: while it runs, no other does, and reading is for its thread alone."""

    @wraps(method)
    def calling(self: Any, *args: Any, **options: Any) -> Any:
        outer, turn = current.session, self._turn
        taken = turn.taken
        try:
            if turn.lock.locked():
                raise turn.refused(method.__name__)
            with turn.lock:
                if turn.taken != taken:  # between these lines
                    raise turn.refused(method.__name__)
                turn.taken, turn.thread = taken + 1, get_ident()
                return method(self, *args, **options)
        except BaseException:
            end_sessions(outer)
            raise

    return calling  # type: ignore[return-value]


def reads(method: F) -> F:
    """For a method that needs the parameters of one step: an error where another thread trains in the meantime."""

    @wraps(method)
    def calling(self: Any, *args: Any, **options: Any) -> Any:
        outer, turn = current.session, self._turn
        taken = turn.taken
        try:
            if turn.lock.locked() and turn.thread != get_ident():
                raise turn.refused(method.__name__)
            result = method(self, *args, **options)
            if turn.taken != taken:
                raise turn.refused(method.__name__)
            return result
        except BaseException:
            end_sessions(outer)
            raise

    return calling  # type: ignore[return-value]


def writes(method: F) -> F:
    """For a method that sets what training moves on: it may be called by callbacks, and else is one that trains."""
    from_elsewhere = trains(method)

    @wraps(method)
    def calling(self: Any, *args: Any, **options: Any) -> Any:
        turn = self._turn
        within = turn.lock.locked() and turn.thread == get_ident()
        return (method if within else from_elsewhere)(self, *args, **options)

    return calling  # type: ignore[return-value]


_TURNS: Any = weakref.WeakSet()


def _in_child() -> None:
    """After a fork: a thread that trains is not there, or is in the midst of a call that led to the fork."""
    for turn in _TURNS:
        turn.lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
