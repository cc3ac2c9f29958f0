"""One process of a `Group`, ``python -m bench.scaling.child``: a rank, or a training fed in some way."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import serve
from bench.workloads import WORKLOADS, Task, start_values

CHECKED_STEPS = 3


def rank_and_ranks(distributed: str | None) -> tuple[int, int]:
    """Which rank this process is, of how many: by MPI, or by the variables that PyTorch reads."""
    if distributed == "mpi":
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Session:
    """What all kinds have in common; `order` is what the group was made with."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.rank, self.ranks = rank_and_ranks(order.get("distributed"))
        workload = WORKLOADS[order["workload"]]
        start = start_values(workload, "float32")
        self.task = Task(workload, "float32", order["batch"], order["threads"], "cpu", workload.timing, start)

    def rows(self, count: int) -> tuple[Any, Any]:
        """The first `count` rows of the data, in memory."""
        return tuple(np.load(Path(self.order["folder"]) / f"{name}.npy", mmap_mode="r")[:count].copy() for name in "xy")

    def barrier(self) -> None:
        """Wait for the other ranks, so that all begin together."""

    def check(self, rows: int, name: str) -> dict[str, Any]:
        """Train from the common start for some steps in the order of the rows; rank 0 leaves its parameters."""
        from dataclasses import replace

        settings = replace(self.task.workload.checking, dropout=False)
        parameters, loss = self.trained(replace(self.task, settings=settings, batch=rows), rows)
        if self.rank == 0:
            found = {f"parameter_{i}": np.asarray(value) for i, value in enumerate(parameters)}
            np.savez(Path(self.order["folder"]) / f"{name}.npz", **found)  # type: ignore[arg-type]
        return {"rank": self.rank, "loss": loss, "versions": self.versions()}

    def trained(self, task: Task, batch: int) -> tuple[list[Any], float]:
        """Parameters after the checked steps, and the mean loss of the last of them."""
        raise NotImplementedError

    def prepare(self, batch: int, rows: int) -> dict[str, Any]:
        """Be ready for epochs of so many rows in batches of that size; returns the seconds of the second one."""
        self.ready(batch, rows)
        self.run()
        return self.run()

    def ready(self, batch: int, rows: int) -> None:
        raise NotImplementedError

    def run(self, epochs: int = 1) -> dict[str, Any]:
        """Seconds of so many epochs, and what the kind knows besides."""
        self.barrier()
        begin = time.perf_counter()
        known = self.epochs(epochs)
        return {"rank": self.rank, "seconds": time.perf_counter() - begin, **known}

    def epochs(self, count: int) -> dict[str, Any]:
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        from bench.child import versions

        return versions()


class Fit(Session):
    """``Trainer.fit`` on arrays in memory, alone or as a rank of MPI."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__(order)
        self.options = {} if order.get("distributed") is None else {"distributed": order["distributed"]}

    def trainer(self, task: Task) -> Any:
        from bench.contenders.bpnet_trainer import leaves, trainer_for

        trainer = trainer_for(task, **self.options)
        trainer.build(np.zeros((1, task.workload.inputs), np.float32))
        parameters = trainer.parameters
        for (holder, key), value in zip(leaves(parameters), task.start, strict=True):
            holder[key] = value.copy()
        trainer.parameters = parameters
        return trainer

    def trained(self, task: Task, batch: int) -> tuple[list[Any], float]:
        from bench.contenders.bpnet_trainer import leaves

        trainer = self.trainer(task)
        x, y = self.rows(CHECKED_STEPS * batch)
        history = trainer.fit(x, y, epochs=1, batch_size=batch, shuffle=False, progress=False)
        return [holder[key] for holder, key in leaves(trainer.parameters)], float(history["loss"][-1])

    def ready(self, batch: int, rows: int) -> None:
        self.fitted, self.batch = self.trainer(self.task), batch
        self.data = self.rows(rows)

    def barrier(self) -> None:
        if self.options:
            from mpi4py import MPI

            MPI.COMM_WORLD.Barrier()

    def epochs(self, count: int) -> dict[str, Any]:
        before = self.spent()
        self.fitted.fit(*self.data, epochs=count, batch_size=self.batch, progress=False)
        return {name: value - before[name] for name, value in self.spent().items()}

    def spent(self) -> dict[str, float]:
        """Seconds in communication and bytes handed over for it so far, of a rank."""
        if not self.options:
            return {}
        communicator = self.fitted.communicator
        return {"communication": float(communicator.seconds), "bytes": float(communicator.bytes_sent)}


class Ddp(Session):
    """PyTorch's DistributedDataParallel over gloo, as its documentation has it; alone, the same loop without it."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__(order)
        import torch

        self.torch = torch
        torch.set_num_threads(order["threads"])
        if self.ranks > 1:
            place = (Path(order["folder"]) / f"store-{order['name']}").as_uri()
            torch.distributed.init_process_group("gloo", init_method=place, rank=self.rank, world_size=self.ranks)

    def network(self, task: Task) -> Any:
        from bench.contenders.pytorch import PyTorch

        contender = PyTorch(task)
        if self.ranks > 1:
            contender.network = self.torch.nn.parallel.DistributedDataParallel(contender.network)
        return contender

    def part(self, start: int, end: int) -> slice:
        """This rank's rows of a batch."""
        size = end - start
        return slice(start + size * self.rank // self.ranks, start + size * (self.rank + 1) // self.ranks)

    def trained(self, task: Task, batch: int) -> tuple[list[Any], float]:
        contender, (x, y) = self.network(task), map(self.torch.from_numpy, self.rows(CHECKED_STEPS * batch))
        losses = []
        for start in range(0, len(x), batch):
            part = self.part(start, start + batch)
            losses.append(contender.step(x[part], y[part]))
        total = self.torch.stack(losses).mean()
        if self.ranks > 1:
            self.torch.distributed.all_reduce(total)
        return contender.parameters(), float(total) / self.ranks

    def ready(self, batch: int, rows: int) -> None:
        self.contender, self.batch = self.network(self.task), batch
        self.data = tuple(map(self.torch.from_numpy, self.rows(rows)))
        self.epoch = 0

    def barrier(self) -> None:
        if self.ranks > 1:
            self.torch.distributed.barrier()

    def epochs(self, count: int) -> dict[str, Any]:
        torch, (x, y) = self.torch, self.data
        for _ in range(count):
            self.epoch += 1
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.epoch))
            losses = []
            for start in range(0, len(x), self.batch):
                rows = order[self.part(start, min(start + self.batch, len(x)))]
                losses.append(self.contender.step(x[rows], y[rows]))
            total = torch.stack(losses).mean()
            if self.ranks > 1:
                torch.distributed.all_reduce(total)
            float(total)
        return {}


class AllReduce:
    """All-reduces of vectors of float32, nothing else: by mpi4py, or by bpnet's communicator."""

    def __init__(self, order: dict[str, Any]) -> None:
        from mpi4py import MPI

        self.MPI, self.comm, self.order = MPI, MPI.COMM_WORLD, order
        self.version = MPI.Get_library_version().split("\n")[0]
        self.communicator: Any = None
        if order.get("through") == "bpnet":
            import bpnet as bp

            self.communicator = bp.distributed.MPI().connect()
            self.backend = bp.backends.get("numpy")

    def reduce(self, values: Any, into: Any, yields: bool) -> None:
        """One; it may give its core away between two looks at it, for where there are more ranks than cores."""
        if self.communicator is not None:
            self.communicator.all_reduce(self.backend, values)
        elif not yields:
            self.comm.Allreduce(values, into)
        else:
            request = self.comm.Iallreduce(values, into)
            while not request.Test():
                os.sched_yield()

    def run(self, size: int, count: int, yields: bool = False) -> dict[str, Any]:
        """Seconds of one of `count` in a row, of vectors of so many bytes."""
        values = np.full(max(1, size // 4), 1.0, np.float32)
        into = np.empty_like(values)
        for number in range(count + 1):
            if number == 1:
                begin = time.perf_counter()
            self.reduce(values, into, yields)
        seconds = time.perf_counter() - begin
        if self.communicator is None and float(into[-1]) != self.comm.size:
            raise RuntimeError(f"the sum is {into[-1]}, not {self.comm.size}")
        return {"rank": self.comm.rank, "seconds": seconds / count, "version": self.version}


def session_of(order: dict[str, Any]) -> Any:
    """The session that the order asks for."""
    if order["kind"] == "feed":
        from bench.scaling.feeds import Feed

        return Feed(order)
    return {"fit": Fit, "ddp": Ddp, "all_reduce": AllReduce}[order["kind"]](order)


def main() -> None:
    """Serve the socket as if it were the standard input and output; what libraries print goes to the errors."""
    order = json.loads(sys.argv[1])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(order["socket"])
        os.dup2(connection.fileno(), 0)
        os.dup2(connection.fileno(), 1)
    serve(session_of)


if __name__ == "__main__":
    main()
