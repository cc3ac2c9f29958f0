"""Whose turn it is: one call trains a trainer at a time, and what reads it meanwhile from elsewhere is refused."""

from collections.abc import Callable
from functools import wraps
from threading import Lock, get_ident
from typing import Any, TypeVar

from bpnet.backends.interrupts import current, end_sessions
from bpnet.errors import BusyError

F = TypeVar("F", bound=Callable[..., Any])


class Turn:
    """Of one trainer: taken while it is trained."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.taken = self.thread = 0
        """How often it was taken, and by which thread last."""

    def refused(self, name: str) -> BusyError:
        if self.lock.locked() and self.thread == get_ident():
            return BusyError(
                f"{name} was called by a callback of this trainer's own fit, which trains it already: set "
                "trainer.stop = True to end that, or call step in a loop of your own instead of fit"
            )
        return BusyError(
            f"{name} was called while another thread trains this trainer: wait until it is done, or give each thread "
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
