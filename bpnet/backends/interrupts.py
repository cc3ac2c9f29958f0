"""What must hold while bpnet computes, and its end, however a call is broken off.

An interrupt (Ctrl-C) reaches the main thread wherever Python looks for signals: at the start of a function, at the end
of a loop's turn and after every call.  So it may come before the first line of an `__exit__`, and between a call and
the line that keeps its result.  What must not be torn apart is one call of a function written in C, between whose parts
Python does not look, or goes without any call at all.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import wraps
from itertools import chain, starmap
from operator import call, length_hint, setitem
from types import FunctionType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

TRIES = 16
"""How often an update in place is resumed after interrupts, or a lack of memory, before it counts as broken."""

Calls = Iterable[tuple[Any, ...]]
"""Functions, each with its arguments."""


def uninterrupted(calls: Calls) -> None:
    """Make the calls, one after the other; where all are of functions written in C, no interrupt comes in between.

    A call that finds no memory has done nothing yet, and is made again, so that what was begun is not left halfway.
    """
    made = [*calls, (bool,)]  # the last one tells whether all before it are done
    left: Any = iter(made)
    following = left
    for tries in range(TRIES, -1, -1):
        try:
            deque(starmap(call, following), 0)
        except (MemoryError, SystemError):  # NumPy's own in the place of the first, now and then
            at = len(made) - 1 - length_hint(left)
            if not tries or at == len(made) - 1:
                raise
            following = chain((made[at],), left)
        else:
            return


class Session:
    """What holds in this thread for the time of a public call; sessions may be nested.

    A session notes what it is to restore, becomes the `current.session`, and then changes it; what `restore` restores
    may be restored again.  So one whose end was kept by an interrupt is ended by the one around it, or by
    `ends_sessions`.
    """

    threads = 0
    """How many threads may be used; 0: no session is open that says so."""
    compiles = False
    """Whether compiled functions are run."""
    limits_blas = False
    """Whether BLAS is held at one thread."""
    outer: "Session"

    def __enter__(self) -> None:
        self.outer = current.session
        current.session = self

    def __exit__(self, *_: object) -> None:
        if current.session is self:
            self.restore()
            current.session = self.outer
        else:
            end_sessions(self.outer)

    def restore(self) -> None:
        """Restore what was before."""


class NoWarnings(Session):
    """NumPy's warnings are off."""

    def __enter__(self) -> None:
        import numpy

        self.before, self.errors = copy_context(), numpy.errstate(all="ignore")
        super().__enter__()
        self.errors.__enter__()

    def __exit__(self, *_: object) -> None:
        if current.session is self:
            self.errors.__exit__(None, None, None)  # which can be done only once
            current.session = self.outer
        else:
            end_sessions(self.outer)

    def restore(self) -> None:
        import numpy

        numpy.seterr(**self.before.run(numpy.geterr))


class _Current(threading.local):
    session = Session()
    reference = False
    """Whether definitions run alone; see `bpnet.backends.reference`."""
    inside = False
    """Whether this thread is at work on one of several blocks, which is then not cut again."""
    deferred: list[Callable[[Calls], None]] | None = None
    """For the update in place that a step ends with, to be made when all else is done; None: it is made at once."""


current = _Current()


def advance(step: Callable[..., tuple[Any, Any]], state: Any, count: int, *args: Any) -> Any:
    """See `Backend.advance`; the carry is the first of `args`.

    All that the step computes comes first, then the update in place with which it may end, and the new state with it.
    """
    outer = current.deferred
    deferred: list[Callable[[Calls], None]] = []
    try:
        current.deferred = deferred
        carry, result = step(*args)
    finally:
        current.deferred = outer
    publish = ((setattr, state, "now", (carry, count)),)
    deferred[0](publish) if deferred else uninterrupted(publish)
    return result


def store_rows(run: Any, vectors: Any, puts: Any) -> Any:
    """`put_rows` for arrays that can be written to: at the end of the step that `advance` carries out."""
    calls = [
        (setitem, vector, part, values) if index is None else (setitem, vector[part].reshape(shape), index, values)
        for vector, some in zip(vectors, puts, strict=True)
        for part, shape, index, values in some
    ]
    if current.deferred is None:
        uninterrupted(calls)
    else:
        current.deferred.append(lambda then: uninterrupted([*calls, *then]))
    return tuple(vectors)


def end_sessions(outer: Session) -> None:
    """End the sessions within `outer`."""
    while (session := current.session) is not outer and session is not _Current.session:
        session.restore()
        current.session = session.outer


def ends_sessions(function: F) -> F:
    """The function, after which no session is open that was not open before, whatever interrupt comes."""

    @wraps(function)
    def calling(*args: Any, **options: Any) -> Any:
        outer = current.session
        try:
            return function(*args, **options)
        except BaseException:
            end_sessions(outer)
            raise

    return calling  # type: ignore[return-value]


def methods_end_sessions(cls: type[T]) -> type[T]:
    """The class, each of whose public methods `ends_sessions`."""
    for name, method in list(vars(cls).items()):
        if isinstance(method, FunctionType) and not name.startswith("_"):
            setattr(cls, name, ends_sessions(method))
    return cls
