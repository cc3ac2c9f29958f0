"""`mpiexec -n 4 bpnet train ...`: the processes that a launcher has started, which act as one program.

Rank 0 is the one that speaks and writes; the others compute.
"""

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from bpnet.distributed import MPI
from bpnet.distributed.base import Communicator, agreed, by_first
from bpnet.distributed.watch import WATCHES, speaks
from bpnet.errors import DeviceError, MissingExtraError, OutOfMemoryError, path_error, plural

P = ParamSpec("P")
T = TypeVar("T")

LAUNCHED = (
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, Slurm with --mpi=pmi2
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),  # Slurm with --mpi=pmix
)
"""The variables by which launchers tell a process its number, and how many there are."""


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """The number of this process, and how many a launcher of MPI has started together: (0, 1) where none has."""
    for rank, size in LAUNCHED:
        try:
            found = int(environment[rank]), int(environment[size])
        except (KeyError, ValueError):
            continue
        if 0 <= found[0] < found[1]:
            return found
    return 0, 1


class Nowhere(io.TextIOBase):
    """A stream of text that nobody reads."""

    encoding = "utf-8"

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def silence() -> None:
    """Let only the first of several processes speak: what the others have to say is the same, or said by an error."""
    if launched()[0] > 0:
        sys.stdout = sys.stderr = Nowhere()


def by_one(command: Callable[P, None]) -> Callable[P, None]:
    """A command that the first of several processes does alone, while the others end."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if launched()[0] == 0:
            command(*args, **kwargs)

    return run


def tells(error: BaseException) -> bool:
    """Whether this process is to show an error by which the command ends: of several one does."""
    if WATCHES and speaks(error):
        sys.stderr = sys.__stderr__
        return True
    return not WATCHES


class Ranks:
    """The processes of a command: `options` is what a trainer is told of them, None where it is the only one."""

    def __init__(self, communicator: Communicator | None) -> None:
        self.communicator = communicator
        self.first = communicator is None or communicator.rank == 0
        self.count = 1 if communicator is None else communicator.size
        self.options = communicator

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """An error that is raised in it on one of them is raised on all."""
        failed: list[Exception] = []
        try:
            yield
        except Exception as error:
            failed.append(error)
        if self.communicator is not None:
            agreed(self.communicator, _typed, _raised, failed)
        _raised(failed)

    def by_first(self, function: Callable[..., T], *args: Any) -> T:
        """What function(*args) gives, or raises, on the first, which alone calls it."""
        return function(*args) if self.communicator is None else by_first(self.communicator, _typed, function, *args)


def _raised(errors: Sequence[Exception]) -> None:
    for error in errors:
        raise error


def _typed(function: Callable[..., T], *args: Any) -> T:
    """function(*args), with errors that other processes can raise too."""
    try:
        return function(*args)
    except OSError as error:
        raise path_error(str(error.filename or "reading or writing"), error) from error
    except MemoryError as error:
        raise OutOfMemoryError(f"there is not enough memory: {error}") from error


def as_one(command: Callable[P, None]) -> Callable[P, None]:
    """A command that several processes do together, of which its context's `obj` then tells: `Ranks`."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with connected() as found:
            context: Any = kwargs["context"]
            context.obj = found
            command(*args, **kwargs)

    return run


@contextmanager
def connected() -> Iterator[Ranks]:
    """The processes that were started together; what ends one ends all of them.

    Raises MissingExtraError where there are several but no mpi4py, and DeviceError where that is of another MPI.
    """
    _, size = launched()
    if size == 1:
        yield Ranks(None)
        return
    try:
        communicator = MPI().connect()
    except MissingExtraError as error:
        raise MissingExtraError(f"training by {plural(size, 'process')}", "mpi4py", "mpi") from error
    if communicator.size != size:
        from mpi4py import MPI as mpi

        library = mpi.Get_library_version().split("\n")[0].strip()
        raise DeviceError(
            f"{plural(size, 'process')} were started, but to mpi4py each is alone: it is built for {library}, so start "
            "them by the mpiexec of that"
        )
    yield Ranks(communicator)  # which the end of the process closes, once it has said by what it ends
