"""What is told of a training while it runs: the base of callbacks."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bpnet.errors import ArgumentError, OptionError, UnknownNameError, kind_of
from bpnet.names import CLASSES

if TYPE_CHECKING:
    from bpnet.trainer import Trainer

Record = dict[str, Any]


class Callback:
    """Base of the callbacks; override what is wanted.  `trainer.stop = True` ends the training after the epoch.

    A callback may predict, evaluate, save and restore, but not train the trainer that is at it: BusyError.

    On a GPU, several steps may be done by one launch, unless a callback overrides `on_step_end`.  One that can wait
    says so by `before_next_step = False`: it is then told of the steps one after the other once all of them are done,
    so count by its argument `step`; `trainer.step_count` and the parameters are those after the last of them.
    """

    before_next_step: ClassVar[bool] = True
    only_first: ClassVar[bool] = False
    """Whether of several ranks the first alone has it: say so of one that writes or shows something.

    Others are told on every rank, of the same records, and have to do the same to the trainer on all.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """A method that is never called because its name is misspelt is an error where it is defined."""
        super().__init_subclass__(**options)
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name in vars(cls):
            if name.startswith("on_") and name not in known:
                raise UnknownNameError(f"method of the callback {cls.__name__},", name, known)

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        """Before the first of `epochs` epochs of `steps` steps each."""

    def on_step_end(self, trainer: "Trainer", step: int) -> None:
        """After a step, the first of an epoch being 1.  Reading values here, as of parameters, waits for a device."""

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        """After an epoch, with its record of the history."""

    def on_exception(self, trainer: "Trainer", error: BaseException) -> None:
        """Where training was interrupted or something raised, `on_train_begin` apart; before `on_train_end`."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint is to hold of the callback, for a training that is resumed; by default nothing.

        Numbers, text and arrays, in lists, tuples and dicts by text; `trainer.snapshot()` is made of these.  It is
        asked for between steps.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """After `on_train_begin`, where a training is resumed: go on from what `state_dict` gave."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """After the last epoch, also where training was interrupted or something raised, `on_train_begin` apart."""


NAMES = {
    "early_stopping": "EarlyStopping",
    "live_plot": "LivePlot",
    "mlflow": "MLflow",
    "norms": "Norms",
    "progress": "Progress",
    "reduce_on_plateau": "ReduceOnPlateau",
}
"""Names that stand for callbacks, as they are by default."""


def check_callbacks(callbacks: Any) -> list[Callback]:
    """The callbacks that a list of names and objects means; raises ArgumentError or UnknownNameError."""
    if not isinstance(callbacks, list | tuple):
        raise ArgumentError(f"callbacks is {kind_of(callbacks)}; expected a list of names or of callbacks")
    found = []
    for i, callback in enumerate(callbacks):
        if isinstance(callback, str):
            if CLASSES["bpnet"].get(callback, "").startswith("bpnet.callbacks.") and callback != "Callback":
                raise OptionError(f"callbacks[{i}] is {callback!r}: pass an object, bp.{callback}(...)")
            if callback not in NAMES:
                raise UnknownNameError("callback", callback, NAMES)
            callback = getattr(importlib.import_module("bpnet"), NAMES[callback])()
        if not isinstance(callback, Callback):
            hint = "an instance of it" if isinstance(callback, type) else "a name or a bpnet Callback"
            raise ArgumentError(f"callbacks[{i}] is {kind_of(callback)}; expected {hint}")
        found.append(callback)
    return found


def needs_each_step(callback: Callback) -> bool:
    """Whether it is to be told after every step, before the next."""
    return callback.before_next_step and getattr(callback.on_step_end, "__func__", None) is not Callback.on_step_end


def end(callbacks: Sequence[Callback], trainer: "Trainer", first: BaseException | None = None) -> None:
    """Tell all of them the end, whatever one raises; raise the first error, to which later ones are notes."""
    raised = first
    for callback in callbacks:
        for name, args in (("on_exception", (trainer, raised)), ("on_train_end", (trainer,))):
            if name == "on_exception" and raised is None:
                continue
            try:
                getattr(callback, name)(*args)
            except BaseException as error:
                if first is None:
                    first = error
                else:
                    first.add_note(f"{type(callback).__name__}.{name} raised besides: {error!r}")
    if first is not None:
        raise first
