"""What a rank does in test_ranks_gpu.py: train on a device of its own, until something happens to it."""

import ctypes
import os
import signal
import time
from typing import Any

import numpy as np

import bpnet as bp

HOW = ("nccl", "mpi", "cuda-aware mpi")
LIMIT = 4.0


class Fate(bp.Callback):
    """What becomes of a rank after so many steps."""

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step = kind, step

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if trainer.step_count != self.step:
            return
        if self.kind == "raises":
            raise ValueError("as it was told to")
        if self.kind == "hangs":
            time.sleep(1000.0)
        os.kill(os.getpid(), signal.SIGKILL if self.kind == "is killed" else signal.SIGSTOP)


def task(**options: Any) -> tuple[bp.Trainer, Any, Any]:
    """A trainer and its data."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((120, 6)), rng.integers(0, 3, 120)
    network = bp.Sequential(bp.Dense(8, "relu"), bp.Dropout(0.2), bp.Dense(3))
    return bp.Trainer(network, "cross_entropy", bp.SGD(0.1), **options), x, y


def train(control: Any, how: str, kind: str, victim: int, step: int, folder: str) -> Any:
    """A training of 24 steps by one of HOW; parameters and losses at its end, where nothing happens before."""
    from support import substitute

    substitute.install()
    substitute.install_nccl()
    ctypes.CDLL("libcuda.so.1").sub_devices(control.size)
    made: Any = bp.distributed.NCCL(timeout=LIMIT)
    if how != "nccl":
        made = bp.distributed.MPI(timeout=LIMIT, cuda_aware=how == "cuda-aware mpi")  # to which memory is memory here
    trainer, x, y = task(device="cuda", distributed=made)
    fates = [Fate(kind, step)] if control.rank == victim else []
    trainer.fit(
        x, y, epochs=4, batch_size=20, callbacks=fates, progress=False, checkpoint=folder, every=3, resume=True
    )  # fmt: skip
    return trainer.theta.get(), trainer.history["loss"]
