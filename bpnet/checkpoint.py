"""A trainer as plain data on the host: what a file holds, and what a trainer is made from again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpnet.layout import Layout
from bpnet.losses import Loss
from bpnet.optimizers import Optimizer


@dataclass
class Checkpoint:
    """Network, loss and optimizer, where a training has come with them, and what the user added."""

    layout: Layout
    """Of the network, for the shape of its input."""
    loss: Loss
    optimizer: Optimizer
    vectors: list[Any]
    """Parameters, buffers and the arrays of the optimizer's state, of NumPy."""
    step_count: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the trainer, by their names."""
    history: list[dict[str, Any]] = field(default_factory=list)
    classes: Sequence[Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
