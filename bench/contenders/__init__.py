"""The contenders: one line each, and one file for each way of writing a training step.

A contender's module offers ``make(task, **options)``, which returns a ``Contender`` or raises ``Absent``. Each runs in
a process of its own, so nothing here imports those modules, and a library that is missing concerns one child only.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.contenders.base import Absent, Contender
from bench.workloads import Task

__all__ = ["ALL", "REFERENCE", "SUBJECT", "Absent", "Contender", "Entry", "make", "module_of"]

REFERENCE = "numpy"  # every other contender's results are compared with this one's
SUBJECT = "bpnet"  # every ratio is a peer's time over this one's
FLOOR = "floor"


@dataclass(frozen=True)
class Entry:
    """How a contender is named, made, and how much memory it takes."""

    label: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)
    activations: float = 2.0  # how many copies of every dense layer's output it holds, for planning what fits in memory
    epsilon_first: bool = False  # whether Adam's epsilon is added before the bias correction, as the paper's short form


_BOTH, _GPU = ("cpu", "cuda"), ("cuda",)


def _cupy(label: str, **options: Any) -> Entry:
    return Entry(label, "bpnet_trainer", {"backend": "cupy", **options}, _GPU)


ALL = {
    "bpnet": Entry("bpnet, NumPy", "bpnet_trainer", {"backend": "numpy"}, activations=0.3),
    "bpnet-jit": Entry("bpnet, NumPy + jit", "bpnet_trainer", {"backend": "numpy", "jit": True}, activations=0.3),
    "bpnet-torch": Entry("bpnet, PyTorch arrays", "bpnet_trainer", {"backend": "torch"}, _BOTH),
    "bpnet-jax": Entry("bpnet, JAX arrays", "bpnet_trainer", {"backend": "jax"}, _BOTH),
    "bpnet-cupy": _cupy("bpnet, CuPy"),
    "bpnet-cupy-steps": _cupy("bpnet, CuPy, 8 steps a launch", together=8),
    "bpnet-cupy-eager": _cupy("bpnet, CuPy, no graph", captures=False),
    "torch": Entry("PyTorch eager", "pytorch", {}, _BOTH),
    "torch-compile": Entry("torch.compile", "pytorch", {"compiled": True}, _BOTH),
    "torch-graph": Entry("PyTorch, CUDA graph", "pytorch_graph", {}, _GPU),
    "jax": Entry("JAX jit", "jax_jit", {}, _BOTH),
    "jax-steps": Entry("JAX jit, 8 steps a call", "jax_jit", {"together": 8}, _BOTH),
    "keras": Entry("Keras on JAX", "keras_jax", {}, _BOTH, epsilon_first=True),
    "sklearn": Entry("scikit-learn MLP", "sklearn_mlp", epsilon_first=True),
    "thinc": Entry("Thinc", "thinc_mlp", epsilon_first=True),
    "numpy": Entry("plain NumPy", "numpy_plain", {"library": "numpy"}),
    "cupy": Entry("plain CuPy", "numpy_plain", {"library": "cupy"}, _GPU),
    "floor": Entry("products alone", "floor", {"library": "numpy"}, activations=0.5),
    "floor-cupy": Entry("products alone, CuPy", "floor", {"library": "cupy"}, _GPU, activations=0.5),
    "roof-cupy": Entry("products and update's traffic", "floor", {"library": "cupy", "update": True}, _GPU, 0.5),
}


def subject_on(device: str) -> str:
    """The contender that all ratios are taken to."""
    return SUBJECT if device == "cpu" else "bpnet-cupy"


def floor_on(device: str) -> str:
    """The matrix products alone."""
    return FLOOR if device == "cpu" else "floor-cupy"


def module_of(entry: Entry) -> Any:
    """The entry's module, imported: one of this folder, or any where its name has a dot."""
    return importlib.import_module(entry.module if "." in entry.module else f"bench.contenders.{entry.module}")


def make(entry: Entry, task: Task) -> Contender:
    """The contender of this entry, ready for its first step."""
    contender: Contender = module_of(entry).make(task, **entry.options)
    return contender
