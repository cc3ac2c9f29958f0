"""A training on a table that is saved after every epoch, and goes on from there."""

import os
import re
from collections.abc import Mapping
from typing import Any

from bpnet.callbacks.base import Callback, Record
from bpnet.disk import make_folder
from bpnet.errors import OptionError, path_error
from bpnet.loading import load
from bpnet.tabular.model import TableModel
from bpnet.tabular.training import TableTraining
from bpnet.trainer import Trainer

NAME = re.compile(r"epoch-(\d{5,})\.safetensors")
BEST = "best.safetensors"


class Checkpoints(Callback):
    """Saves the model after every epoch to `epoch-00012.safetensors` in a folder, and the best one to BEST.

    Of the former the last two are kept.  Raises PathError where nothing can be written.
    """

    def __init__(self, training: TableTraining, folder: str) -> None:
        self.training, self.folder = training, folder

    def on_train_begin(self, trainer: Trainer, epochs: int, steps: int) -> None:
        make_folder(self.folder)

    def on_epoch_end(self, trainer: Trainer, record: Record) -> None:
        model, number = self.training.model, len(trainer.history)
        model.save(os.path.join(self.folder, f"epoch-{number:05}.safetensors"))
        stopping = self.training.stopping
        if stopping is not None and stopping.best_epoch == record["epoch"]:
            model.save(os.path.join(self.folder, BEST))
        for old in sorted(_numbers(self.folder))[:-2]:
            path = os.path.join(self.folder, f"epoch-{old:05}.safetensors")
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise path_error(f"{path} can't be removed", error) from error


def _numbers(folder: str) -> list[int]:
    """Of the epochs of which there are files."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise path_error(f"{folder} can't be read", error) from error
    return [int(found[1]) for name in names if (found := NAME.fullmatch(name))]


def resume(training: TableTraining, folder: str) -> int:
    """Give a training the state that the newest file of a folder has; the number of its epochs, 0 where there is none.

    Raises OptionError where that is of another network, loss, optimizer, table or seed.
    """
    numbers = _numbers(folder)
    if not numbers:
        return 0
    path = os.path.join(folder, f"epoch-{max(numbers):05}.safetensors")
    saved = _load(path, training)
    _check_same(path, training, saved)
    _take_over(training.model.trainer, saved.trainer)
    stopping, history = training.begin_stopping(), saved.trainer.history
    if stopping is not None:
        stopping.follow(history)
        best = os.path.join(folder, BEST)
        if os.path.exists(best):
            current = training.model.trainer.snapshot()
            kept = _load(best, training)
            training.model.trainer.restore(kept.trainer.snapshot())
            stopping.kept = training.model.trainer.snapshot()
            training.model.trainer.restore(current)
    return len(history)


def _load(path: str, training: TableTraining) -> TableModel:
    trainer = training.model.trainer
    like = None if trainer.device is not None else trainer.theta
    found: Any = load(path, like=like, device=trainer.device)
    if not isinstance(found, TableModel):
        raise OptionError(f"{path} is no model of a table: choose another folder for checkpoints")
    return found


def _take_over(trainer: Trainer, saved: Trainer) -> None:
    trainer.restore(saved.snapshot())
    trainer.history.epochs[:] = saved.history.epochs
    trainer.lr_scale = saved.lr_scale


def _check_same(path: str, training: TableTraining, saved: TableModel) -> None:
    own, other = training.model, saved
    pairs: Mapping[str, tuple[Any, Any]] = {
        "seed": (own.trainer.seed, other.trainer.seed),
        "held-out rows": (own.settings["split"], other.settings.get("split")),
        "columns": (own.schema, other.schema),
        "target": (own.target, other.target),
        "network": (own.trainer.network, other.trainer.network),
        "loss": (own.trainer.loss, other.trainer.loss),
        "optimizer": (own.trainer.optimizer, other.trainer.optimizer),
    }
    for what, (mine, its) in pairs.items():
        if mine != its:
            raise OptionError(
                f"{path} was trained with another {what}: resume with the same data and options, or choose another "
                "folder for checkpoints"
            )
