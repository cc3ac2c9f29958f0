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
from bpnet.distributed.base import LONG, Communicator, by_first, on_all_ranks
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
    from bpnet.distributed.step import RankedStep
    from bpnet.fitting import Training

ROWS = 64
"""Rows that are looked at to tell whether data are the same."""
PLURAL = ("the callbacks that keep a state", "the columns", "the rows held out")
TABLE = ("schema", "target")
"""Entries of a model of tables that say what it is of."""


class Stopping:
    """How a training hears of signals that are to end the program: then the step is finished first, on all ranks.

    It is made so only where there are several ranks, or a folder for checkpoints.
    """

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.ranks = Communicator()
        self.ranked: RankedStep | None = None

    def of(self, training: "Training") -> "Stopping":
        """The same, with the training's ranks."""
        self.ranks, self.ranked = training.ranks, training.engine.ranked
        if self.ranked is not None:
            self.ranked.watched, self.ranked.stops, self.ranked.stopping = True, False, False
        return self

    def __enter__(self) -> "Stopping":
        try:
            self.signals.install()
            self.open()
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
            if isinstance(error, Exit) and self.ranks.rank == 0:
                error.tell()

    def given(self) -> dict[str, Any]:
        """What all ranks must have been given alike, by name."""
        return {"checkpoint": None, "every": None}

    def open(self) -> None:
        """Begin."""

    def close(self) -> None:
        """Have the handlers that there were; again, where an interrupt broke that off."""
        self.signals.restore()
        if self.ranked is not None:
            self.ranked.watched = self.ranked.stops = False

    def stopping(self) -> bool:
        """Whether a rank has been told to stop; all hear of it after the same step."""
        if self.ranked is None:
            return self.signals.number > 0
        self.ranked.stops = self.signals.number > 0
        return self.ranked.stopping

    def due(self, number: int) -> bool:
        """Whether something is to be done, so many steps having been done."""
        return self.stopping()

    def take_up(self, training: "Training") -> list[tuple[Callback, Any]]:
        """Have the training go on from where one was broken off: see `Saving`."""
        return []

    def after_epoch(self, training: "Training", last: bool) -> None:
        """Do what is to be done after an epoch, which may be the last."""
        if self.stopping():
            self.save(training)

    def save(self, training: "Training") -> None:
        """Let a signal that has come end the training."""
        self.hand_on(f"after {plural(training.number, 'step')}; nothing was saved")

    def hand_on(self, text: str) -> None:
        """Where a rank has been told to stop, have all of them do that."""
        if self.ranked is not None:
            self.signals.number = max(self.ranks.all_gather(int(self.signals.number)))
            self.ranked.stops = self.ranked.stopping = False
        if self.signals.number:
            try:
                self.signals.hand_on(text)
            except BaseException as ended:
                on_all_ranks(ended, self.ranks)
                raise


class Saving(Stopping):
    """Where a training writes checkpoints, after how many steps, how many it keeps, and whether it goes on from them.

    Within a `with` block nobody else trains in the folder, and a signal that is to end the program waits for the step.
    Of several ranks the first alone writes, and reads.
    """

    def __init__(self, folder: Folder, every: int | None, keep: int, resume: bool) -> None:
        super().__init__()
        self.folder, self.every, self.keep, self.resume = folder, every, keep, resume
        self.written = 0
        """How many steps there had been at the last checkpoint."""
        self.lowest = math.inf
        """The loss of the best epoch, as `best.safetensors` has it."""
        self.sample = ""
        """A hash of some rows, by which other data are noticed."""

    def given(self) -> dict[str, Any]:
        return {"checkpoint": "given", "every": self.every}

    def open(self) -> None:
        by_first(self.ranks, self._lock)

    def _lock(self) -> None:
        self.folder.__enter__()

    def close(self) -> None:
        try:
            if self.ranks.rank == 0:
                self.folder.__exit__()
        finally:
            super().close()

    # ---- writing ------------------------------------------------------------------------------------------------

    def due(self, number: int) -> bool:
        """Whether there is to be a checkpoint, so many steps having been done."""
        every = self.every
        return self.stopping() or (every is not None and number // every > self.written // every)

    def after_epoch(self, training: "Training", last: bool) -> None:
        loss = _loss(training, training.trainer.history.epochs[-1])
        best, self.lowest = loss < self.lowest, min(self.lowest, loss)
        if self.due(training.number) or last or self.every is None:
            self.save(training, best)
        elif best:
            with self.ranks.phase("writing a checkpoint", LONG):
                by_first(self.ranks, self._write_best, training)

    def save(self, training: "Training", best: bool = False) -> None:
        """Write a checkpoint, which may be the `best` one too; then let a signal that has come end the training."""
        number = training.number
        with self.ranks.phase("writing a checkpoint", LONG):
            path = by_first(self.ranks, self._write, training, best)
        self.written = number
        self.hand_on(f"after {plural(number, 'step')}, saved in {path}: resume=True goes on from there")

    def _write(self, training: "Training", best: bool) -> str:
        checkpoint = self._checkpoint(training)
        if best:
            self.folder.write_best(checkpoint)
        return self.folder.write(checkpoint, training.number, self.keep)

    def _write_best(self, training: "Training") -> None:
        self.folder.write_best(self._checkpoint(training))

    def _checkpoint(self, training: "Training") -> Checkpoint:
        """The trainer, and what of the training goes on from here."""
        trainer, engine = training.trainer, training.engine
        arrays: dict[str, Any] = {}
        if training.losses:
            arrays["losses"] = vector(training.losses)
            if callable(training.shuffle) and self.ranks.rows == "same":  # which may not give the same once more
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
            "ranks": self.ranks.size,
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
        with engine.looking():
            own = self.ranks.rows == "own"  # which other ranks have when it goes on
            self.written, self.sample = training.number, "" if own else sample_of(training.data, training.held_out)
        with self.ranks.phase("reading a checkpoint", LONG):
            found = by_first(self.ranks, self._found, training)
        if found is None:
            return []
        path, saved = found
        kept: Any = saved.training
        with damaged(path):
            differences = [*_differences(training, self.folder, saved)]
        if differences:
            error = OptionError(
                f"{'; '.join(differences)}: resume with the same data and options, or choose another folder for "
                "checkpoints"
            )
            raise on_all_ranks(error, self.ranks)
        if kept["sample"] != self.sample:
            warnings.warn(
                f"the training in {self.folder.path} was begun with other data, or with the same rows in another "
                "order; it goes on with these",
                BpnetWarning,
                stacklevel=users_line(),
            )
        backend, like = engine.backend, engine.carry[0]
        device = backend.device(like)
        with damaged(path):
            ranks = int(kept.get("ranks", 1))
        if "losses" in saved.arrays and ranks != self.ranks.size and (own or _by_ranks(training)):
            warnings.warn(
                f"the training in {self.folder.path} was interrupted within an epoch that {plural(ranks, 'rank')} had "
                f"begun, whose batches are of other rows than those of {plural(self.ranks.size, 'rank')}: in this "
                "epoch some rows come twice and others not. Batches of a stream are the same with lanes=, a multiple "
                "of both",
                BpnetWarning,
                stacklevel=users_line(),
            )
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

    def _found(self, training: "Training") -> tuple[str, Checkpoint] | None:
        """The newest checkpoint, and where it lies, if there is one and it is asked for."""
        trainer = training.trainer
        for part in (trainer.network, trainer.loss, trainer.optimizer, *trainer.penalties):
            describe(part)  # or the error that no file can hold it, before there is anything to lose
        if self.resume:
            return self.folder.newest()
        if self.folder.used():
            raise OptionError(
                f"checkpoint is {self.folder.path}, which holds a training already: go on with that by resume=True, or "
                "choose another folder"
            )
        return None


def _loss(training: "Training", record: Record) -> float:
    """By which epochs are compared; infinite where there is none."""
    loss = record.get("loss" if training.held_out is None else "val_loss", math.nan)
    return math.inf if math.isnan(loss) else loss


def sample_of(*several: Loader | None) -> str:
    """A hash of some rows of x and y, of each of several data."""
    found = hashlib.sha256()
    for data in filter(None, several):
        for array in data.sample(ROWS):
            found.update(array.tobytes())
    return found.hexdigest()


def _by_ranks(training: "Training") -> bool:
    """Whether the rows of a batch depend on how many ranks there are."""
    return training.shuffle is True and training.data.by_ranks


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
    data, shuffle = training.data, training.shuffle
    return {
        **folder.options,
        "batch_size": training.batch_size,
        "micro_batch": training.trainer.micro_batch,
        "shuffle": "a function" if callable(shuffle) else shuffle,
        "drop_last": training.count < sum(training.rows),
        "the number of rows": sum(training.rows),
        "sample_weight": None if data.weight is None else "given",
        "validation": None if training.held_out is None else plural(sum(training.rows_held_out), "row"),
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
