"""The folder of a training's checkpoints, which one training at a time may use.

    step-0000001200.safetensors    the last ones, by how many steps had been done
    best.safetensors               after the best epoch
    .lock                          held by the process that trains

Each file but the lock is a model file, which `bp.load` reads; of a training it has besides what `fit` goes on from.
"""

import os
import re
import socket
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any

from bpnet.disk import absolute, checked_path, make_folder, opening, remove
from bpnet.errors import (
    BpnetWarning,
    BusyError,
    FileFormatError,
    OtherFormatError,
    PathError,
    path_error,
    plural,
    users_line,
)
from bpnet.files.model import Checkpoint, read_checkpoint, write_checkpoint

NAME = re.compile(r"step-(\d{10,})\.safetensors")
BEST = "best.safetensors"
LOCK = ".lock"
WAIT = 1.0
"""Seconds for which a lock is tried: a process that was killed, or a child it had just forked, may not be gone yet."""
LOCKED_BYTE = 2**30
"""Where Windows, which locks parts of files, locks one: none that is there, since what is locked can't be read."""


class Folder:
    """Checkpoints of one training; held while it runs, by a `with` block.

    table : makes the entry of a model of tables, for its file
    options : what besides must be the same where a training is resumed, as JSON values by name
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        table: Callable[[], Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = absolute(checked_path(path))
        self.table, self.options = table, dict(options or {})
        self._lock: IO[bytes] | None = None

    @classmethod
    def of(cls, path: Any) -> "Folder":
        return path if isinstance(path, Folder) else cls(path)

    # ---- one training at a time ---------------------------------------------------------------------------------

    def __enter__(self) -> "Folder":
        """Make the folder where there is none, and hold it; raises PathError, or BusyError where another does."""
        make_folder(self.path)
        try:
            self._lock = _locked(os.path.join(self.path, LOCK), self.path)
        except OSError as error:
            self.__exit__()
            raise path_error(f"the folder {self.path} can't be written to", error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            with suppress(OSError):  # nothing that counts is in it
                self._lock.close()  # which gives it up, as the death of the process does
            self._lock = None

    # ---- files --------------------------------------------------------------------------------------------------

    def file(self, number: int) -> str:
        """Of the training after so many steps."""
        return os.path.join(self.path, f"step-{number:010}.safetensors")

    @property
    def best(self) -> str:
        return os.path.join(self.path, BEST)

    def numbers(self) -> list[int]:
        """Of the steps of which there are files, in their order.  Raises PathError."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise path_error(f"the folder {self.path} can't be read", error) from error
        return sorted(int(found[1]) for name in names if (found := NAME.fullmatch(name)))

    def used(self) -> bool:
        """Whether a training is in it."""
        return bool(self.numbers()) or os.path.lexists(self.best)

    def newest(self) -> tuple[str, Checkpoint] | None:
        """The newest checkpoint that is sound, and its file; None where there is none at all.

        One that is damaged is passed over with a warning.  Raises FileFormatError where all are, and OtherFormatError
        where another version of bpnet has written the newest.
        """
        files = [self.file(number) for number in reversed(self.numbers())]
        files += [self.best] if os.path.lexists(self.best) else []
        first: Exception | None = None
        for path in files:
            try:
                found = read_checkpoint(path)
                if found.training is None:
                    raise FileFormatError(f"{path} is a model, but holds no training that could go on")
                return path, found
            except OtherFormatError:
                raise
            except (FileFormatError, PathError) as error:
                first = first or error
                warnings.warn(f"passed over: {error}", BpnetWarning, stacklevel=users_line())
        if files:
            raise FileFormatError(
                f"none of the {plural(len(files), 'checkpoint')} in {self.path} can be read: restore one, or choose "
                f"another folder. Of the newest: {first}"
            )
        return None

    def write_best(self, checkpoint: Checkpoint) -> None:
        write_checkpoint(self.best, checkpoint)

    def write(self, checkpoint: Checkpoint, number: int, keep: int) -> str:
        """Write the checkpoint after so many steps, then remove all before it but the last `keep`; gives its name."""
        path = self.file(number)
        write_checkpoint(path, checkpoint)
        for old in [other for other in self.numbers() if other <= number][:-keep]:
            remove(self.file(old))
        return path


def _locked(name: str, folder: str) -> IO[bytes]:
    """The file of that name, open and locked; raises BusyError where somebody else has it locked."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

    def create(path: str, _: int) -> int:
        (number,) = opening(path, flags, permissions=0o666)
        return number

    file = open(name, "r+b", buffering=0, opener=create)  # noqa: SIM115
    try:
        end = time.monotonic() + WAIT
        while not (held := _lock(file)) and time.monotonic() < end:
            time.sleep(0.02)
        if not held:
            owner = file.read(200).decode("utf-8", "replace").strip() or "another process"
            raise BusyError(
                f"{owner} trains in the folder {folder} at this moment: wait until it ends, or choose another folder"
            )
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        _HELD.add(weakref.ref(file, _HELD.discard))
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; False where it is locked.  A file system that has no locks goes without."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return True
    finally:
        file.seek(0)
    return True


_HELD: set[Any] = set()
"""References to lock files that are open; as in `bpnet.locking`, no interrupt is lost where one dies."""


def _in_child() -> None:
    """After a fork: the parent's locks are its own, and are not to outlive it here."""
    for known in list(_HELD):
        if (file := known()) is not None:
            file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
