"""Training by several processes, each with a part of every batch: `Trainer(distributed=...)`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker sees; a test holds it against `names.PUBLIC`
    from bpnet.distributed.mpi import MPI
    from bpnet.distributed.nccl import NCCL
else:
    from bpnet import names

    __getattr__ = names.on_demand("bpnet.distributed")

__all__ = ["MPI", "NCCL"]


def __dir__() -> list[str]:
    return __all__
