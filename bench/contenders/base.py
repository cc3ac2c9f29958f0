"""What a contender offers to the instrument."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.workloads import Array, Task


class Absent(Exception):
    """This contender can't take part; the message says why."""


class Contender:
    """One training step and one prediction of a workload, written as a user of that library would write them.

    Both may return before the device has finished: ``wait`` is called once after a run of them, and inside the time.
    """

    has_results = True  # False where nothing is computed that could be compared
    together = 1  # how many training steps one call of ``several`` takes; 1 where there is no such thing
    probabilities = False  # whether a classifier's ``predict`` gives these, not logits

    def __init__(self, task: Task) -> None:
        self.task = task

    def put(self, array: Array) -> Any:
        """A batch, in the library's own kind of array and on the device."""
        return array

    def step(self, x: Any, y: Any) -> Any:
        """Train on one batch; the result is what ``wait`` and ``loss`` take."""
        raise NotImplementedError

    def several(self, x: Any, y: Any) -> Any:
        """Train on one batch after the other, by one call: x is (batches, rows, inputs), y is (batches, rows, ...)."""
        raise NotImplementedError

    def predict(self, x: Any) -> Any:
        """The network's outputs for one batch, outside training."""
        raise NotImplementedError

    def wait(self, result: Any) -> None:
        """Return when ``result`` has been computed."""

    def loss(self, result: Any) -> float:
        """The loss of the batch that ``step`` trained on, as it was before the update."""
        return float(result)

    def losses(self, result: Any) -> list[float]:
        """The loss of each batch that ``several`` trained on."""
        return [float(loss) for loss in result]

    def parameters(self) -> list[Array]:
        """The parameters on the host, in the order of the start values."""
        raise NotImplementedError

    def host(self, output: Any) -> Array:
        """What ``predict`` returned, on the host."""
        return np.asarray(output)


def needs(condition: bool, reason: str) -> None:
    """Leave the run with this reason unless the condition holds."""
    if not condition:
        raise Absent(reason)
