"""What ranks say to each other: the processes of one training, each with a part of every batch.

`Trainer(distributed=options)` calls `options.connect()` once, and has all communication done by what that gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from traceback import format_exception
from typing import Any, Protocol, TypeVar

from bpnet.backends.base import Array, Backend
from bpnet.errors import BpnetError, OptionError, plural, shown

LONG = 600.0
"""Seconds that what is done now and then may take, such as a checkpoint, before a rank counts as one that hangs."""

NOTHING = nullcontext()

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

Combine = Callable[[Sequence[Array]], Array]
"""The sum of the parts of all ranks, in the order of the ranks, by additions of two that are always the same.

It is elementwise: parts of these vectors may be combined apart, and may be given up.
"""


class Communicator:
    """The ranks of a training, as one of them sees it: here one rank alone, of which others override everything.

    What all are to call waits for all of them.  Where another rank has failed, each raises RankError within the time
    limit.  One thread of a rank uses it at a time.
    """

    rank: int = 0
    """From 0 on."""
    size: int = 1
    """How many ranks there are."""
    local_rank: int = 0
    """From 0 on, among those of this host."""
    local_size: int = 1
    """How many ranks this host has, which share its processors."""
    rows: str = "same"
    """Whether every rank is given the same rows, of which it takes its part, or its "own"."""
    reduction: str = "fast"
    """Whether sums are to be the same for any number of ranks, "ordered": see `all_reduce_ordered`."""
    captured: bool = False
    """Whether all that `all_reduce` does is to launch work on the device of the vector, so that it can be captured."""

    def connect(self) -> Communicator:
        """Itself: it can be given to a trainer in the place of options."""
        return self

    @property
    def alone(self) -> bool:
        """Whether a training is as it would be without ranks."""
        return self.size == 1 and self.reduction == "fast"

    def all_reduce(self, backend: Backend, vector: Array, tail: int = 0) -> Array:
        """The sum of the vectors of all ranks, the same bits on every rank; `vector` is given up.

        The last `tail` elements are no gradient: they are summed in the type that they have, whatever others are.
        """
        return vector

    def all_reduce_ordered(
        self, backend: Backend, parts: Sequence[Array], counts: Sequence[int], combine: Combine
    ) -> Array:
        """combine(the vectors `parts` of rank 0, those of rank 1, ...), the same bits on every rank.

        All vectors are of one size, and given up; `counts` says how many each rank has, one or more.  So a sum over
        blocks of rows can be made in the order of the blocks, whoever computed them.
        """
        return combine(parts)

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks in their order: small ones, which are pickled."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """That of rank 0, which is pickled."""
        return value

    def broadcast_array(self, backend: Backend, array: Array) -> Array:
        """That of rank 0; the others give one of its shape and type."""
        return array

    def describe(self) -> str:
        """How many ranks there are, and which process each is: of one that is killed that may be all that is named."""
        return plural(self.size, "rank")

    def phase(self, what: str, limit: float | None = None) -> AbstractContextManager[None]:
        """While this rank does what `what` says: in so many seconds it is to meet the others again, or `beat`.

        Otherwise it counts as one that hangs, as soon as others wait for it.  None: four fifths of the time limit.  The
        innermost of nested phases counts.  Outside of those without a limit of their own, such as a training, a rank
        may take as long as it likes.
        """
        return NOTHING

    def beat(self) -> None:
        """This rank goes on, though it has not met the others for a while.  It costs next to nothing."""

    def check(self) -> None:
        """Raise RankError where another rank is known to have failed: sums on a device may be worth nothing since.

        It costs next to nothing: before a step is launched, and after the host has waited for a device.
        """

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank can't go on, and why: they are to end by a RankError that names it.

        Not for errors that all ranks raise: see `on_all_ranks`.
        """

    def close(self) -> None:
        """The trainer is no longer needed."""


class Options(Protocol):
    """What `Trainer(distributed=...)` takes: `bp.distributed.MPI(...)`, for one."""

    def connect(self) -> Communicator:
        """The ranks; called by all of them."""


NAMES: dict[str, tuple[str, str]] = {
    "mpi": ("bpnet.distributed.mpi", "MPI"),
    "nccl": ("bpnet.distributed.nccl", "NCCL"),
}
"""By the name that stands for it: a class of options, with its module."""


def check_distributed(value: Any) -> Options | None:
    """What `distributed` of a trainer means; raises OptionError."""
    if value is None:
        return None
    if isinstance(value, str) and value in NAMES:
        from importlib import import_module

        module, name = NAMES[value]
        made: Options = getattr(import_module(module), name)()
        return made
    if not callable(getattr(value, "connect", None)) or isinstance(value, type):
        known = ", ".join(map(repr, NAMES))
        raise OptionError(
            f"distributed is {shown(value)}; expected None, {known}, or options such as bp.distributed.MPI(rows='own')"
        )
    options: Options = value
    return options


def on_all_ranks(error: E, ranks: Communicator | None = None) -> E:
    """The error, marked as one that all ranks raise: the communicator is still good, and one of them may print it.

    Not where `ranks`, those of the training that raises it, are one alone: what trains beside it is not told.
    """
    if ranks is None or not ranks.alone:
        error.on_all_ranks = True  # type: ignore[attr-defined]
    return error


@contextmanager
def failing(ranks: Communicator) -> Iterator[None]:
    """Where this rank alone raises something in it, the others are told."""
    try:
        yield
    except BaseException as error:
        tell(ranks, error)
        raise


def tell(ranks: Communicator | None, error: BaseException) -> None:
    """Tell others of an error that this rank alone raises."""
    if ranks is not None and not getattr(error, "on_all_ranks", False):
        ranks.fail(error)


# ---- what all ranks do, or none -------------------------------------------------------------------------------------


def agreed(ranks: Communicator, function: Callable[..., T], *args: Any) -> T:
    """function(*args), where it raises on no rank; else on every rank the error of the first on which it does.

    Which rank that is it says, where others have done it.
    """
    if ranks.alone:
        return function(*args)
    result: Any
    result, error = _tried(function, *args)
    own = _sendable(error)
    errors = ranks.all_gather(own)
    for rank, found in enumerate(errors):
        if found is not None:
            if None in errors:
                text, found = str(found), copy(found)  # which ranks that are threads have in common
                found.args = (f"{text} (on rank {rank})",)
            raise on_all_ranks(found if error is None or str(found) != str(own) else error)
    return result  # type: ignore[no-any-return]


def raise_first(ranks: Communicator | None, error: Exception | None) -> None:
    """Raise on all ranks the error of the first that has one; None: there are no others."""
    ranks = ranks or Communicator()
    for found in ranks.all_gather(_sendable(error)):
        if found is not None:
            raise on_all_ranks(found, ranks)


def by_first(ranks: Communicator, function: Callable[..., T], *args: Any) -> T:
    """What function(*args) gives on rank 0, which alone calls it, or the error that it raises there; on every rank."""
    result, error = _tried(function, *args) if ranks.rank == 0 else (None, None)
    result, found = ranks.broadcast((result, _sendable(error)))
    if found is not None:
        raise on_all_ranks(found if error is None else error, ranks)
    return result  # type: ignore[no-any-return]


def _tried(function: Callable[..., T], *args: Any) -> tuple[Any, Exception | None]:
    """What it gives, or raises."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error


def _sendable(error: Exception | None) -> Exception | None:
    """The error as another process can have it, whatever it holds; of one that nobody expects, with where it arose."""
    if error is None or isinstance(error, BpnetError):
        return error
    made = RuntimeError(f"{type(error).__name__}: {error}")
    made.add_note("".join(format_exception(error)).rstrip())
    return made
