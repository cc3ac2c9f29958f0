"""The state of a trainer, as its users read and set it: parameters, buffers, the optimizer's, the number of steps."""

from collections.abc import Mapping
from typing import Any

from bpnet.backends import Array, Backend
from bpnet.compatibility import check_parameters
from bpnet.engine import Engine
from bpnet.errors import ArgumentError, NotBuiltError, kind_of
from bpnet.layout import Layout
from bpnet.locking import TrainingLock, locked
from bpnet.options import not_negative, whole
from bpnet.step import Snapshot, check_snapshot


class HasState:
    """What of a trainer needs no data: its engine's state."""

    _engine: Engine | None
    _lock: TrainingLock

    def _have(self) -> Engine:
        if self._engine is None:
            raise NotBuiltError(
                "the trainer has no parameters yet: they are made from the first data, by fit(x, y) or build(x)"
            )
        return self._engine

    @property
    def step_count(self) -> int:
        """How many steps the parameters are the result of."""
        return 0 if self._engine is None else self._engine.count

    @step_count.setter
    @locked("set")
    def step_count(self, count: int) -> None:
        engine = self._have()
        engine.state.now = engine.carry, whole("step_count", count, 0)

    @property
    def backend(self) -> Backend:
        """The library that the parameters belong to."""
        return self._have().backend

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in `theta`."""
        return self._have().layout

    @property
    def theta(self) -> Array:
        """All trained parameters, one vector.  A step may write to it, so copy what must stay."""
        return self._have().carry[0]

    @property
    def buffers(self) -> Array:
        """All values that are kept but not trained, one vector."""
        return self._have().carry[1]

    @property
    def state(self) -> tuple[Array, ...]:
        """The optimizer's state: arrays of any shape, most of them vectors like `theta`."""
        return self._have().carry[2]

    @property
    def parameters(self) -> dict[str, Any]:
        """What the network predicts with, nested by layer: {"0": {"weight": ..., "bias": ...}, ...}.  Assignable.

        It is `theta`, but where the optimizer averages, as `ExponentialAverage` does, the average.
        """
        return self.layout.views(self.backend, self._have().evaluated())

    @parameters.setter
    @locked("set")
    def parameters(self, tree: Mapping[str, Any]) -> None:
        check_parameters(tree, self.parameters)
        self._have().set_parameters(tree)

    @property
    def lr_scale(self) -> float:
        """A factor of every learning rate, at first 1: `ReduceOnPlateau` sets it, and you may.  Kept in files."""
        return self._have().lr_scale

    @lr_scale.setter
    def lr_scale(self, factor: float) -> None:
        self._have().lr_scale = not_negative("lr_scale", factor)

    @locked("read")
    def snapshot(self) -> Snapshot:
        """A copy of parameters, buffers, optimizer state and step count."""
        return self._have().snapshot()

    @locked("set")
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        engine = self._have()
        check_snapshot(snapshot, engine.carry)
        engine.restore(snapshot)


def check_trainer(trainer: Any) -> Any:
    """`trainer` where it is one; raises ArgumentError."""
    if not isinstance(trainer, HasState):
        raise ArgumentError(f"trainer is {kind_of(trainer)}; expected a bpnet Trainer")
    return trainer
