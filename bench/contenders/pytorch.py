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
    def __init__(self, task: Task, compiled: bool = False) -> None:
        super().__init__(task)
        if task.device == "cuda" and not torch.cuda.is_available():
            raise Absent("PyTorch finds no CUDA device")
        torch.set_num_threads(task.threads)
        torch.set_float32_matmul_precision("highest")
        self.network = nn.Sequential(*(module_for(layer, task) for layer in task.workload.layers))
        self.network.to(device=task.device, dtype=getattr(torch, task.dtype))
        with torch.no_grad():
            for parameter, value in zip(self.network.parameters(), task.start, strict=True):
                parameter.copy_(torch.from_numpy(value.T if value.ndim == 2 else value))
        self.criterion = nn.MSELoss() if task.workload.loss == "mse" else nn.CrossEntropyLoss()
        self.optimizer = self._optimizer()
        self.objective: Any = self._objective
        self.forward: Any = self.network
        if compiled:
            torch._dynamo.reset()
            self.objective = torch.compile(self._objective, fullgraph=True, dynamic=False)
            self.forward = torch.compile(self.network, fullgraph=True, dynamic=False)

    def _objective(self, x: Any, y: Any) -> Any:
        return self.criterion(self.network(x), y)

    def _optimizer(self) -> Any:
        s, parameters = self.task.settings, list(self.network.parameters())
        if self.task.workload.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=s.lr, fused=True)
        betas = s.beta1, s.beta2
        if self.task.workload.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=s.lr, betas=betas, eps=s.epsilon, fused=True)
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": s.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=s.lr, betas=betas, eps=s.epsilon, fused=True)

    def put(self, array: Array) -> Any:
        return torch.from_numpy(array).to(self.task.device)

    def step(self, x: Any, y: Any) -> Any:
        if not self.network.training:
            self.network.train()
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
        array: Array = output.cpu().numpy()
        return array


make = PyTorch
