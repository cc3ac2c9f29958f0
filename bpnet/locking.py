"""One call trains a trainer at a time, and whoever reads it meanwhile from another thread is refused."""

import os
import traceback
from collections.abc import Callable
from functools import wraps
from threading import Lock, get_ident
from typing import Any, TypeVar
from weakref import ref

from bpnet.backends.interrupts import current, end_sessions
from bpnet.errors import BusyError, OutOfMemoryError

F = TypeVar("F", bound=Callable[..., Any])

UNNAMED = {
    "__getstate__": "a copy or a pickle was made",
    "parameters": "parameters was assigned to",
    "step_count": "step_count was assigned to",
}
"""What is done by methods that nobody calls by their name."""


class TrainingLock:
    """Of one trainer: held by the call that trains it."""

    def __init__(self) -> None:
        self.lock: Any = Lock()
        self.count = self.thread = 0
        """How often it was taken, and by which thread last."""
        _LOCKS.add(ref(self, _LOCKS.discard))

    def mine(self) -> bool:
        """Whether this thread trains."""
        return bool(self.lock.locked()) and self.thread == get_ident()

    def refused(self, name: str) -> BusyError:
        call = UNNAMED.get(name, f"{name} was called")
        if self.mine():
            return BusyError(
                f"{call} by a callback of this trainer's own fit, which trains it already: set "
                "trainer.stop = True to end that, or call step in a loop of your own instead of fit"
            )
        return BusyError(
            f"{call} while another thread trains this trainer: wait until it is done, or give each thread "
            "a trainer of its own (copy.deepcopy)"
        )


def locked(access: str) -> Callable[[F], F]:
    """For a method of a trainer, by what it does to the parameters.

    "train": while it runs, no other does, and reading is for its thread alone.  "set": the same, and callbacks may call
    it.  "read": it needs the parameters of one step, so it is an error where another thread trains in the meantime.
    Whatever interrupt comes, no session stays open, and the lock is free: `with` takes and gives it up in C.
    """

    def decorate(method: F) -> F:
        @wraps(method)
        def calling(self: Any, *args: Any, **options: Any) -> Any:
            outer, own, name = current.session, self._lock, method.__name__
            count = own.count
            try:
                if own.lock.locked() and (access == "train" or not own.mine()):
                    raise own.refused(name)
                if access == "read" or own.mine():
                    result = method(self, *args, **options)
                    if access == "read" and own.count != count:
                        raise own.refused(name)
                    return result
                with own.lock:
                    if own.count != count:  # between these lines
                        raise own.refused(name)
                    own.count, own.thread = count + 1, get_ident()
                    return method(self, *args, **options)
            except BaseException as error:
                end_sessions(outer)
                check_memory(error, name)
                raise

        return calling  # type: ignore[return-value]

    return decorate


def check_memory(error: BaseException, name: str) -> None:
    """Raise OutOfMemoryError where that is what ended a method, though nobody has said so yet."""
    if isinstance(error, MemoryError) and not isinstance(error, OutOfMemoryError):
        traceback.clear_frames(error.__traceback__)  # which hold what had been made
        raise OutOfMemoryError(f"{name} needs more memory than there is: {error or 'even for small things'}") from error


_LOCKS: set[Any] = set()
"""References to all of them.  No WeakSet, from whose callbacks, written in Python, no interrupt could come out."""


def _in_child() -> None:
    """After a fork: a thread that trains is not there, or is in the midst of a call that led to the fork."""
    for known in list(_LOCKS):
        if (own := known()) is not None:
            own.lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
