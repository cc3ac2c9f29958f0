"""The state of a trainer, as its users read and set it: parameters, buffers, the optimizer's, the number of steps."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array, Backend
from bpnet.backends import named as library
from bpnet.backends.base import State
from bpnet.callbacks.history import History
from bpnet.compatibility import check_options, check_parameters
from bpnet.distributed.base import LONG, Communicator, check_distributed
from bpnet.engine import Engine
from bpnet.errors import ArgumentError, NotBuiltError, kind_of
from bpnet.layout import Layout
from bpnet.locking import TrainingLock, locked
from bpnet.options import not_negative, whole
from bpnet.step import Carry, Snapshot, check_snapshot

if TYPE_CHECKING:
    from bpnet.files.model import Checkpoint

OPTIONS = "loss", "optimizer", "seed", "clip_norm", "penalties", "threads", "precision", "micro_batch", "compile"
"""What an engine is given as the trainer has it."""
APART = "_engine", "_lock", "_distributed", "communicator"
"""What is not copied with a trainer."""


class HasState:
    """What of a trainer needs no data: its engine's state."""

    communicator: Communicator | None
    metadata: Mapping[str, Any]
    history: History
    classes: Sequence[Any] | None
    loss: Any
    optimizer: Any
    _distributed: Any
    _engine: Engine | None
    _lock: TrainingLock

    def _have(self) -> Engine:
        if self._engine is None:
            raise NotBuiltError(
                "the trainer has no parameters yet: they are made from the first data, by fit(x, y) or build(x)"
            )
        return self._engine

    @property
    def distributed(self) -> Any:
        """The options by which it trains with other processes, or None; assignable, also where it was loaded."""
        return self._distributed

    @distributed.setter
    @locked("set")
    def distributed(self, options: Any) -> None:
        options = check_distributed(options)
        self._distributed, self.communicator = options, None if options is None else options.connect()
        if "device" in vars(self):
            self._share_host()
        if self._engine is not None:
            engine = self._engine
            self._set_state(engine.backend, engine.layout, *engine.state.now, engine.lr_scale)

    def _share_host(self) -> None:
        """Have a part of the processors and, where nothing lies on one yet, a GPU, if other ranks are on this host."""
        ranks, own = self.communicator, vars(self)  # which may be set anew
        if ranks is None:
            return
        if self._engine is None:
            own["device"] = import_module("bpnet.distributed.devices").device_of_rank(ranks, own["device"])
        if own["threads"] is None:
            own["threads"] = import_module("bpnet.distributed.agreeing").threads_of_rank(ranks)

    @property
    def rank(self) -> int:
        """Which of the processes of a distributed training this is, from 0 on; 0 where it is not distributed."""
        return 0 if self.communicator is None else self.communicator.rank

    @property
    def ranks(self) -> int:
        """How many processes train together: 1 where it is not distributed."""
        return 1 if self.communicator is None else self.communicator.size

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

    # ---- made anew, saved, copied -------------------------------------------------------------------------------

    def _set_state(self, backend: Backend, layout: Layout, carry: Carry, count: int, lr_scale: float = 1.0) -> Engine:
        check_options(backend, carry[0], self)
        options = {name: getattr(self, name) for name in OPTIONS} | {"lr_scale": lr_scale}
        if self.communicator is not None:
            options["ranks"] = self.communicator
        self._engine = engine = Engine(backend, layout, State(carry, count), **options)
        return engine

    @locked("read")
    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write network, parameters, buffers, optimizer state and history to a .safetensors file, for `bp.load`.

        `metadata` is anything of yours that JSON can hold.  A file that was there is replaced once the new one is whole
        and on the disk, and gives it its permissions; where `path` is a link, the file it points to is replaced.
        Raises PathError, which is an OSError, where it can't be written, and ArgumentError where JSON can't hold it.
        """
        from bpnet.files.model import write_checkpoint

        with self._have().ranks.phase("writing a file", LONG):  # as by a callback
            write_checkpoint(path, self._checkpoint(metadata))

    def _checkpoint(self, metadata: Mapping[str, Any] | None) -> "Checkpoint":
        """All that a file holds of it."""
        from bpnet.files.model import OPTIONS, Checkpoint

        (theta, buffers, state), count = self._have().state.now
        arrays = [self.backend.to_host(array).copy() for array in (theta, buffers, *state)]  # no more on a device
        options = {name: getattr(self, name) for name in OPTIONS}
        trained = self.layout, self.loss, self.optimizer, arrays, count, options, self.history.epochs, self.classes
        metadata = self.metadata if metadata is None else metadata
        return Checkpoint(*trained, metadata, self.lr_scale)

    @locked("read")
    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled functions, which are made again; of what another thread may then train, a copy.

        It trains alone, whatever ranks this one has.
        """
        engine, rest = self._engine, {n: value for n, value in vars(self).items() if n not in APART}
        made = None if engine is None else (engine.backend.name, engine.layout, *engine.snapshot(), engine.lr_scale)
        return rest | {"history": History(list(self.history)), "made": made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        made = state.pop("made")
        vars(self).update(state, _engine=None, _lock=TrainingLock(), _distributed=None, communicator=None)
        if made is not None:
            self._set_state(library(made[0]), *made[1:])


def check_trainer(trainer: Any) -> Any:
    """`trainer` where it is one; raises ArgumentError."""
    if not isinstance(trainer, HasState):
        raise ArgumentError(f"trainer is {kind_of(trainer)}; expected a bpnet Trainer")
    return trainer
