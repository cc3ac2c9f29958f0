"""Which GPU a rank computes on, and whether its MPI reads the memory of GPUs."""

import ctypes
import os
from socket import gethostname
from typing import Any

from bpnet.distributed.base import Communicator, agreed
from bpnet.errors import DeviceError


def device_of_rank(ranks: Communicator, device: str | None) -> str | None:
    """What a trainer's `device` means for a rank: of "cuda" the GPU with the number that the rank has on its host.

    Where a host has fewer GPUs than ranks, several ranks take turns at each.  Devices with a number are as they are,
    and all others.  Called by all ranks; raises DeviceError where one of them has no GPU.
    """
    if device != "cuda" or ranks.size == 1:
        return device
    return f"cuda:{ranks.local_rank % agreed(ranks, _count)}"


def _count() -> int:
    from bpnet.backends import get

    get("cupy")  # or the error that says what is missing
    from bpnet.backends.cupy.collectives import device_count

    count = device_count()
    if not count:
        raise DeviceError(f"device is 'cuda', but CuPy finds no CUDA device on host {gethostname()}")
    return count


def is_cuda_aware(mpi: Any) -> bool:
    """Whether MPI says that it reads and writes the memory of CUDA devices, as it was built and is set up.

    `mpi` is the module of mpi4py.  MPICH and Open MPI are asked by `MPIX_Query_cuda_support`, which libraries that
    descend from them have too; one that has no such function says no.
    """
    switch = "OMPI_MCA_opal_cuda_support"  # of Open MPI, of which its older versions say nothing
    if os.environ.get(switch, "1").lower() in ("0", "false"):
        return False
    try:
        query = ctypes.CDLL(mpi.__file__).MPIX_Query_cuda_support
    except (AttributeError, OSError):
        return False
    query.restype, query.argtypes = ctypes.c_int, []
    return bool(query())
