"""Ranks that are processes with a GPU each, between which NCCL adds gradients up."""

from dataclasses import dataclass

from bpnet.distributed.base import Communicator
from bpnet.errors import MissingExtraError


@dataclass(frozen=True)
class NCCL:
    """The processes that `mpiexec` has started, each on a GPU of its own."""

    rows: str = "same"
    dtype: str | None = None
    timeout: float = 30.0

    def connect(self) -> Communicator:
        """The ranks; called by all of them."""
        raise MissingExtraError("distributed='nccl'", "nccl4py", "nccl")
