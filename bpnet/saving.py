"""The checkpoints of a training, as `Trainer.fit` writes them and goes on from them."""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from bpnet.callbacks.base import Callback, Record
from bpnet.data.loader import Loader
from bpnet.errors import (
    ArgumentError,
    BpnetWarning,
    FileFormatError,
    OptionError,
    kind_of,
    plural,
    shown,
    users_line,
)
from bpnet.files.folder import Folder
from bpnet.files.history import of_python
from bpnet.files.model import OPTIONS, Checkpoint, damaged
from bpnet.files.state import pack, unpack, vector
from bpnet.registry import describe
from bpnet.signals import Exit, StopSignals

if TYPE_CHECKING:
    from bpnet.fitting import Training

ROWS = 64
"""Rows that are looked at to tell whether data are the same."""
PLURAL = ("the callbacks that keep a state", "the columns", "the rows held out")
TABLE = ("schema", "target")
"""Entries of a model of tables that say what it is of."""


class Saving:
    """Where a training writes checkpoints, after how many steps, how many it keeps, and whether it goes on from them.

    Within a `with` block nobody else trains in the folder, and a signal that is to end the program waits for the step.
    """

    def __init__(self, folder: Folder, every: int | None, keep: int, resume: bool) -> None:
        self.folder, self.every, self.keep, self.resume = folder, every, keep, resume
        self.signals = StopSignals()
        self.written = 0
        """How many steps there had been at the last checkpoint."""
        self.lowest = math.inf
        """The loss of the best epoch, as `best.safetensors` has it."""
        self.sample = ""
        """A hash of some rows, by which other data are noticed."""

    def __enter__(self) -> "Saving":
        try:
            self.signals.install()
            self.folder.__enter__()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            if self.signals.number and (error is None or isinstance(error, Exception)):  # nobody has acted on it yet
                done = "after its last step, when all was saved"
                self.signals.hand_on(done if error is None else f"as it failed: {type(error).__name__}: {error}")
        except Exit as ended:
            error = ended
            raise
        finally:
            self.close()
            if isinstance(error, Exit):
                error.tell()

    def close(self) -> None:
        """Have the folder free, and the handlers that there were; again, where an interrupt broke that off."""
        try:
            self.folder.__exit__()
        finally:
            self.signals.restore()

    # ---- writing ------------------------------------------------------------------------------------------------

    def due(self, number: int) -> bool:
        """Whether there is to be a checkpoint, so many steps having been done."""
        every = self.every
        return self.signals.number > 0 or (every is not None and number // every > self.written // every)

    def after_epoch(self, training: "Training", last: bool) -> None:
        """Write what is to be written after an epoch, which may be the last."""
        loss = _loss(training, training.trainer.history.epochs[-1])
        best, self.lowest = loss < self.lowest, min(self.lowest, loss)
        if last or self.every is None or self.due(training.number):
            self.save(training, best)
        elif best:
            self.folder.write_best(self._checkpoint(training))

    def save(self, training: "Training", best: bool = False) -> None:
        """Write a checkpoint, which may be the `best` one too; then let a signal that has come end the training."""
        number, checkpoint = training.number, self._checkpoint(training)
        if best:
            self.folder.write_best(checkpoint)
        path = self.folder.write(checkpoint, number, self.keep)
        self.written = number
        if self.signals.number:
            self.signals.hand_on(f"after {plural(number, 'step')}, saved in {path}: resume=True goes on from there")

    def _checkpoint(self, training: "Training") -> Checkpoint:
        """The trainer, and what of the training goes on from here."""
        trainer, engine = training.trainer, training.engine
        arrays: dict[str, Any] = {}
        if training.losses:
            arrays["losses"] = vector(training.losses)
            if callable(training.shuffle):  # which may not give the same once more
                arrays["order"] = training.order
        callbacks = []
        for callback in _with_state(training):
            state, name = callback.state_dict(), _name(callback)
            if not isinstance(state, dict):
                raise ArgumentError(f"{name}.state_dict() gave something {kind_of(state)}; expected a dict")
            try:
                packed = pack(f"{name}.state_dict()", state, engine.backend, engine.carry[0], arrays)
            except RecursionError:
                raise ArgumentError(
                    f"{name}.state_dict() contains itself, or is nested too deeply for a file"
                ) from None
            callbacks.append([name, packed])
        kept = {
            "begun": list(training.begun),
            "options": _options(training, self.folder),
            "callbacks": callbacks,
            "stop": trainer.stop,
            "sample": self.sample,
            "seconds": training.elapsed(),
        }
        table = None if self.folder.table is None else self.folder.table()
        return replace(trainer._checkpoint(None), table=table, training=kept, arrays=arrays)

    # ---- going on -----------------------------------------------------------------------------------------------

    def take_up(self, training: "Training") -> list[tuple[Callback, Any]]:
        """Have the training go on from the newest checkpoint, if there is one and it is asked for.

        Gives callbacks, with the state that each had.  Raises OptionError, with nothing done, where the folder holds
        another training.
        """
        trainer, engine = training.trainer, training.engine
        for part in (trainer.network, trainer.loss, trainer.optimizer, *trainer.penalties):
            describe(part)  # or the error that no file can hold it, before there is anything to lose
        with engine.looking():
            self.written, self.sample = training.number, _sample(training.data, training.held_out)
        if not self.resume:
            if self.folder.used():
                raise OptionError(
                    f"checkpoint is {self.folder.path}, which holds a training already: go on with that by "
                    "resume=True, or choose another folder"
                )
            return []
        found = self.folder.newest()
        if found is None:
            return []
        path, saved = found
        kept: Any = saved.training
        with damaged(path):
            differences = [*_differences(training, self.folder, saved)]
        if differences:
            raise OptionError(
                f"{'; '.join(differences)}: resume with the same data and options, or choose another folder for "
                "checkpoints"
            )
        if kept["sample"] != self.sample:
            warnings.warn(
                f"the training in {self.folder.path} was begun with other data, or with the same rows in another "
                "order; it goes on with these",
                BpnetWarning,
                stacklevel=users_line(),
            )
        backend, like = engine.backend, engine.carry[0]
        device = backend.device(like)
        with damaged(path), engine.looking():
            theta, buffers, *state = [backend.from_host(values, like.dtype, device) for values in saved.vectors]
            states = [unpack(packed, backend, like, saved.arrays) for _, packed in kept["callbacks"]]
            epochs, steps = kept["begun"]
            losses = saved.arrays.get("losses", vector([])).tolist()
            if len(losses) > training.steps:
                raise FileFormatError("it has more losses than an epoch has steps")
            history = saved.history.made()
            seconds, stop = float(kept["seconds"]), bool(kept["stop"])
        engine.restore(((theta, buffers, tuple(state)), saved.step_count))
        engine.lr_scale, trainer.stop = saved.lr_scale, stop
        trainer.history.epochs[:] = history
        trainer.classes = saved.classes if trainer.classes is None else trainer.classes
        trainer.metadata = trainer.metadata or saved.metadata
        training.begun, training.losses, training.seconds = (epochs, steps), losses, seconds
        training.order = saved.arrays.get("order")
        self.written = training.number
        self.lowest = min((_loss(training, record) for record in history[epochs:]), default=math.inf)
        return list(zip(_with_state(training), states, strict=True))


def _loss(training: "Training", record: Record) -> float:
    """By which epochs are compared; infinite where there is none."""
    loss = record.get("loss" if training.held_out is None else "val_loss", math.nan)
    return math.inf if math.isnan(loss) else loss


def _sample(*several: Loader | None) -> str:
    """A hash of some rows of x and y, of each of several data."""
    found = hashlib.sha256()
    for data in filter(None, several):
        for array in data.sample(ROWS):
            found.update(array.tobytes())
    return found.hexdigest()


def _with_state(training: "Training") -> list[Callback]:
    """The callbacks that keep a state."""
    own = [getattr(callback.state_dict, "__func__", None) for callback in training.listeners]
    return [c for c, method in zip(training.listeners, own, strict=True) if method is not Callback.state_dict]


def _name(callback: Callback) -> str:
    """What a callback is, and what it follows: the state of one is none for another."""
    monitor = getattr(callback, "monitor", None)
    return type(callback).__qualname__ + (f"({monitor!r})" if isinstance(monitor, str) else "")


def _options(training: "Training", folder: Folder) -> dict[str, Any]:
    """What must be the same where the training is resumed, besides what makes a trainer, as JSON values by name."""
    data, held_out, shuffle = training.data, training.held_out, training.shuffle
    return {
        **folder.options,
        "batch_size": training.batch_size,
        "micro_batch": training.trainer.micro_batch,
        "shuffle": "a function" if callable(shuffle) else shuffle,
        "drop_last": training.count < data.count,
        "the number of rows": data.count,
        "sample_weight": None if data.weight is None else "given",
        "validation": None if held_out is None else plural(held_out.count, "row"),
        **data.options(),
    }


def _apart(name: str, mine: Any, its: Any) -> list[tuple[str, Any, Any]]:
    """The one option in which two networks, losses or optimizers differ, as optimizer.lr; else they themselves."""
    pairs: list[tuple[str, Any, Any]] = []
    if is_dataclass(mine) and type(mine) is type(its):
        path = name.removeprefix("the ")
        pairs = [(f"{path}.{f.name}", getattr(mine, f.name), getattr(its, f.name)) for f in fields(mine)]
    elif isinstance(mine, tuple) and isinstance(its, tuple) and "." in name and len(mine) == len(its):
        pairs = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(mine, its, strict=True))]
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    return _apart(*differing[0]) if len(differing) == 1 else [(name, mine, its)]


def _differences(training: "Training", folder: Folder, saved: Checkpoint) -> Iterator[str]:
    """In what a training differs from the one that was saved, in words."""
    trainer, engine, kept = training.trainer, training.engine, saved.training or {}
    kinds = ["a trainer" if entry is None else "of a table" for entry in (folder.table, saved.table)]
    single = engine.carry[0].dtype == engine.backend.xp.float32
    own, options = _plain(_options(training, folder)), kept["options"]
    pairs: dict[str, tuple[Any, Any]] = {
        **{name: (getattr(trainer, name), saved.options[name]) for name in OPTIONS},
        **{name: (own.get(name), options.get(name)) for name in [*own, *(options.keys() - own.keys())]},
        "the network": (trainer.network, saved.layout.network),
        "the loss": (trainer.loss, saved.loss),
        "the optimizer": (trainer.optimizer, saved.optimizer),
        "the shape of a row of x": (engine.layout.in_shape, saved.layout.in_shape),
        "the type of x": ("float32" if single else "float64", str(saved.vectors[0].dtype)),
        "the model": (kinds[0], kinds[1]),
        "the callbacks that keep a state": (
            [_name(callback) for callback in _with_state(training)],
            [name for name, _ in kept["callbacks"]],
        ),
    }
    if folder.table is not None and saved.table is not None:
        table, other = _plain(folder.table()), saved.table
        pairs |= {f"the {'columns' if name == 'schema' else name}": (table[name], other[name]) for name in TABLE}
        pairs["the rows held out"] = table["settings"].get("split"), other["settings"].get("split")
    for whole, (mine, its) in pairs.items():
        for name, ours, theirs in _apart(whole, mine, its) if mine != its else ():
            words = [shown(value) for value in (ours, theirs)]
            short = max(map(len, words)) <= 40 and "of type" not in " ".join(words)
            verb, instead = ("are", "others") if name in PLURAL else ("is", "another")
            what = f"{words[0]}, but {words[1]}" if short else f"{instead} than"
            yield f"{name} {verb} {what} in the training that {folder.path} holds"
    before, after = (
        [_plain(record | {"seconds": 0}) for record in some] for some in (trainer.history, saved.history.made())
    )
    if any(own != other for own, other in zip(before, after, strict=False)):
        yield (
            f"the trainer has been trained for {plural(len(before), 'epoch')} that are not those of the training that "
            f"{folder.path} holds"
        )


def _plain(value: Any) -> Any:
    """As a file holds it."""

    def plain(other: Any) -> Any:
        number = of_python(other)
        return str(other) if number is other else number

    return json.loads(json.dumps(value, default=plain))
