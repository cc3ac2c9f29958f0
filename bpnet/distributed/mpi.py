"""Ranks that are processes of MPI."""

from dataclasses import dataclass
from typing import Any

from bpnet.distributed.base import Communicator
from bpnet.errors import MissingExtraError


@dataclass(frozen=True)
class MPI:
    """The processes that `mpiexec` has started."""

    rows: str = "same"
    reduction: str = "fast"
    timeout: float = 30.0
    comm: Any = None

    def connect(self) -> Communicator:
        """The ranks; called by all of them."""
        raise MissingExtraError("distributed='mpi'", "mpi4py", "mpi")
