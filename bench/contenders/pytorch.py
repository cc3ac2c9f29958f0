"""PyTorch: eager with its fused optimizer, or with network and loss compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.contenders.base import Absent, Contender
from bench.workloads import Array, Layer, Task


def module_for(layer: Layer, task: Task) -> Any:
    settings = task.settings
    if layer.kind == "dense":
        return nn.Linear(layer.inputs, layer.units, bias=layer.bias)
    if layer.kind == "batchnorm":
        return nn.BatchNorm1d(layer.units, eps=settings.norm_epsilon, momentum=1 - settings.momentum)
    if layer.kind == "dropout":
        return nn.Dropout(layer.rate if settings.dropout else 0.0)
    return {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[layer.kind]()


class PyTorch(Contender):
    captured = False  # whether the step becomes a CUDA graph

    def __init__(self, task: Task, compiled: bool = False) -> None:
        super().__init__(task)
        if task.device == "cuda" and not torch.cuda.is_available():
            raise Absent("PyTorch finds no CUDA device")
        torch.set_num_threads(task.threads)
        torch.set_float32_matmul_precision("high" if task.precision == "tf32" else "highest")
        self.network = nn.Sequential(*(module_for(layer, task) for layer in task.workload.layers))
        self.network.to(device=task.device, dtype=getattr(torch, task.dtype))
        with torch.no_grad():
            for parameter, value in zip(self.network.parameters(), task.start, strict=True):
                parameter.copy_(torch.from_numpy(value.T if value.ndim == 2 else value))
        self.criterion = nn.MSELoss() if task.workload.loss == "mse" else nn.CrossEntropyLoss()
        self.optimizer = self._optimizer()
        self.objective: Any = self._objective
        self.forward: Any = self.network
        if task.precision == "bfloat16":
            self.objective, self.forward = self._in_bfloat16(self._objective), self._in_bfloat16(self.network)
        if compiled:
            torch._dynamo.reset()
            mode = "max-autotune" if task.device == "cuda" else None
            self.objective = torch.compile(self.objective, fullgraph=True, dynamic=False, mode=mode)
            self.forward = torch.compile(self.forward, fullgraph=True, dynamic=False, mode=mode)
        self.marks_steps = compiled and task.device == "cuda"  # for the graphs that the compiler captures

    def _in_bfloat16(self, function: Any) -> Any:
        """The same with products and activations in bfloat16; parameters and the loss stay as they are."""

        def low(*args: Any) -> Any:
            with torch.autocast(self.task.device, dtype=torch.bfloat16, cache_enabled=False):
                return function(*args)

        return low

    def _objective(self, x: Any, y: Any) -> Any:
        return self.criterion(self.network(x), y)

    def _optimizer(self) -> Any:
        s, parameters = self.task.settings, list(self.network.parameters())
        if self.task.workload.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=s.lr, fused=True)
        adam = {"lr": s.lr, "betas": (s.beta1, s.beta2), "eps": s.epsilon, "fused": True}
        adam["capturable"] = self.captured and self.task.device == "cuda"
        if self.task.workload.optimizer == "adam":
            return torch.optim.Adam(parameters, **adam)
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": s.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, **adam)

    def put(self, array: Array) -> Any:
        return torch.from_numpy(array).to(self.task.device)

    def step(self, x: Any, y: Any) -> Any:
        if not self.network.training:
            self.network.train()
        if self.marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(x, y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def predict(self, x: Any) -> Any:
        if self.network.training:
            self.network.eval()
        with torch.inference_mode():
            return self.forward(x)

    def wait(self, result: Any) -> None:
        if self.task.device == "cuda":
            torch.cuda.synchronize()

    def parameters(self) -> list[Array]:
        return [self.host(p.detach().T if p.ndim == 2 else p.detach()) for p in self.network.parameters()]

    def host(self, output: Any) -> Array:
        array: Array = output.float().cpu().numpy() if output.dtype == torch.bfloat16 else output.cpu().numpy()
        return array


make = PyTorch
