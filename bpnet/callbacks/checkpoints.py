"""Files of the networks that a training passes through."""

import math
import os
from contextlib import suppress
from string import Formatter
from typing import TYPE_CHECKING

from bpnet.callbacks.base import Record
from bpnet.callbacks.history import unrecorded
from bpnet.callbacks.monitors import Monitors
from bpnet.disk import checked_path, make_folder, remove
from bpnet.errors import OptionError, shown
from bpnet.options import whole

if TYPE_CHECKING:
    from bpnet.trainer import Trainer


class ModelCheckpoint(Monitors):
    """Save the trainer after an epoch that is among the `keep` best by `monitor`; with `monitor=None`, the last ones.

        bp.ModelCheckpoint("models/best.safetensors")
        bp.ModelCheckpoint("models/epoch-{epoch:03}.safetensors", monitor=None, keep=3)
        bp.ModelCheckpoint("models/{epoch}-{val_accuracy:.3f}.safetensors", "val_accuracy", keep=5)

    Files are those of `trainer.save`, for `bp.load`, each written as a whole or not at all, and a worse one is removed
    only once the better one is on the disk.  Braces in the file's name stand for what the epoch's record has, as in
    `str.format`; the folder is made where there is none.  Of two equal epochs the earlier is kept, and NaN is none.
    Which is better, larger or smaller, is what the metric of that name says; of any other quantity smaller is, unless
    its name ends in "accuracy".

    A training that goes on, from a file too, counts the epochs of its history whose files are there.  After or during
    the training `paths` are the files that are kept, the best (or the latest) first.

    Raises OptionError where `monitor` or a name in braces is not recorded, and PathError where nothing can be written.
    """

    only_first = True

    def __init__(self, path: str | os.PathLike[str], monitor: str | None = "val_loss", keep: int = 1) -> None:
        super().__init__("epoch" if monitor is None else monitor)
        if monitor is None:  # the later, the better
            self.sign = -1.0
        self.folder, self.name = os.path.split(checked_path(path))
        self.keep = whole("keep", keep, 1)
        try:
            fields = {field for _, field, _, _ in Formatter().parse(self.name) if field is not None}
        except ValueError as error:
            raise OptionError(f"path is {shown(path)}; {error} in the file's name, which is a format string") from None
        if "{" in self.folder:
            raise OptionError(f"path is {shown(path)}; expected braces in the file's name alone, not in a folder's")
        if self.keep > 1 and "epoch" not in fields:
            raise OptionError(f"path is {shown(path)}; expected {{epoch}} in the name, by which {keep} files differ")
        self._kept: list[tuple[float, str]] = []

    @property
    def paths(self) -> list[str]:
        """The files that are kept, the best first."""
        return [path for _, path in self._kept]

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        make_folder(self.folder)
        self._kept = []
        for record in trainer.history:
            with suppress(OptionError):  # as of an epoch without validation data
                if os.path.exists(self._path(record)):
                    self._place(record)

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        before = self._kept
        try:
            path = self._place(record)
            if path is not None:
                trainer.save(path)
        except BaseException:
            self._kept = before
            raise
        for old in {path for _, path in before} - set(self.paths):
            remove(old)

    def _place(self, record: Record) -> str | None:
        """Where the epoch belongs, which is then counted among the kept ones; None if it is none of them."""
        value, path = self.value(record), self._path(record)
        full = len(self._kept) >= self.keep
        if math.isnan(value) or (full and value >= self._kept[-1][0]):
            return None
        others = [(v, p) for v, p in self._kept if p != path]
        self._kept = sorted([*others, (value, path)], key=lambda kept: kept[0])[: self.keep]
        return path

    def _path(self, record: Record) -> str:
        try:
            return os.path.join(self.folder, self.name.format_map(record))
        except KeyError as error:
            name = str(error.args[0])
            text = unrecorded(f"{self.name} names {name!r}, which is not recorded", name, record)
            raise OptionError(text) from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise OptionError(f"{self.name} can't be filled in: {error}") from None
