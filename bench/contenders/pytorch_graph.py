"""PyTorch with the whole step, its fused optimizer included, captured by hand as one CUDA graph.

Each batch is copied to where the graph reads it.  On the CPU, where nothing can be captured, the same work is done
step by step, so that all but the capture can be tried there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.contenders.pytorch import PyTorch
from bench.workloads import Task


class GraphedPyTorch(PyTorch):
    captured = True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.batch: tuple[Any, Any] = (None, None)  # where the graphs read
        self.result: Any = None  # where they write
        self.launches: dict[str, Callable[[], None]] = {}
        self.captures = task.device == "cuda"

    def _train(self) -> None:
        if not self.network.training:
            self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(*self.batch)
        loss.backward()
        self.optimizer.step()
        self.result = loss.detach()

    def _infer(self) -> None:
        if self.network.training:
            self.network.eval()
        with torch.no_grad():
            self.result = self.forward(self.batch[0])

    def _capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What launches all that `work` does, after a few calls that leave memory, handles and choices behind."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)  # so that gradients get memory of the graph's own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        result = self.result

        def replay() -> None:
            graph.replay()
            self.result = result

        return replay

    def _launch_of(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` captured, with the network and the optimizer as they were before."""
        if not self.captures:
            return work
        kept = {key: value.clone() for key, value in self.network.state_dict().items()}
        moments = {
            (p, key): value.clone()
            for p, state in self.optimizer.state.items()
            for key, value in state.items()
            if torch.is_tensor(value)
        }
        replay = self._capture(work)
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                value.copy_(kept[key])
            for p, state in self.optimizer.state.items():
                for key, value in state.items():
                    if torch.is_tensor(value):
                        value.copy_(moments[p, key]) if (p, key) in moments else value.zero_()
        return replay

    def _run(self, name: str, work: Callable[[], None], x: Any, y: Any) -> Any:
        launch = self.launches.get(name)
        if launch is None:
            if self.batch[0] is None:
                self.batch = x.clone(), y.clone()
            launch = self.launches[name] = self._launch_of(work)
        self.batch[0].copy_(x)
        self.batch[1].copy_(y)
        launch()
        return self.result

    def step(self, x: Any, y: Any) -> Any:
        return self._run("step", self._train, x, y)

    def predict(self, x: Any) -> Any:
        y = self.batch[1]
        if y is None:  # before the first step: any targets will do
            y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if self.task.workload.loss == "mse":
                y = torch.zeros((len(x), self.task.workload.outputs), dtype=x.dtype, device=x.device)
        return self._run("predict", self._infer, x, y)


make = GraphedPyTorch
