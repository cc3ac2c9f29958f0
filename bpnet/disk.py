"""Files on disk: written whole or not at all, and read only where they are ordinary files.

What is written goes into a new file in the same folder, which takes the old one's place once it is complete.  So who
reads meanwhile finds the old file or the new one, and an error, an interrupt or a power cut leaves the old one.
"""

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from typing import IO, Any

from bpnet.errors import ArgumentError, FolderError, NoSuchPathError, PathError, kind_of, path_error

PART = ".bpnet-"
"""How the names of files begin that are not complete yet."""

WAITS = (0.01, 0.03, 0.1, 0.3) if os.name == "nt" else ()
"""Seconds between tries: Windows does not replace a file while somebody reads it."""


def checked_path(path: Any) -> str:
    """`path` as text; raises ArgumentError unless it can name a file."""
    with suppress(TypeError, UnicodeEncodeError):
        name = os.fspath(path)
        if isinstance(name, str) and name and b"\0" not in os.fsencode(name):
            return name
    given = repr(path) if isinstance(path, str) else kind_of(path)
    raise ArgumentError(f"path is {given}; expected the name of a file")


def make_folder(folder: str) -> None:
    """Make a folder, and those it lies in, unless it is there; "" is the current one.  Raises PathError."""
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except OSError as error:
        raise path_error(f"the folder {folder} can't be made", error) from error


@contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = "wb", **text: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` at the end of the `with` block, unless the block raises.

    It is on the disk by then, so that a power cut can't leave an empty file.  `mode` is "wb" or "w", and `text` what
    `open` knows besides, as encoding.  A file that was there gives its permissions and group to the new one; a link
    stays, and the file it points to is replaced.

    Raises PathError, which is an OSError, where nothing can be written there.
    """
    try:
        target = os.path.realpath(path)
        old = _replaceable(path, target)
        with replacing(target, mode, 0o666 if old is None else old.st_mode & 0o777, **text) as file:
            if old is not None:
                _resemble(file.fileno(), old)
            yield file
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(os.path.dirname(target))
    except OSError as error:
        raise path_error(f"{os.fspath(path)} can't be written", error) from error


@contextmanager
def replacing(name: str, mode: str, permissions: int, folder: int | None = None, **text: Any) -> Iterator[IO[Any]]:
    """Open a new file beside `name` that takes its place at the end of the `with` block, or else is removed.

    A name that nobody can guess and O_EXCL keep others from planting something there.  `name` lies in the folder of
    the descriptor `folder`, if there is one.
    """
    part = os.path.join(os.path.dirname(name), f"{PART}{secrets.token_hex(8)}.part")

    def create(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), permissions, dir_fd=folder)

    try:
        with open(part, mode.replace("w", "x"), opener=create, **text) as file:
            yield file
        for wait in (*WAITS, None):
            try:
                os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
                break
            except PermissionError:
                if wait is None:
                    raise
                time.sleep(wait)
    finally:
        with suppress(OSError):  # after the replacement there is none
            os.unlink(part, dir_fd=folder)


def open_ordinary(name: str | os.PathLike[str], flags: int = 0, folder: int | None = None) -> BufferedReader:
    """Open a file to be read; a FIFO, a terminal, a device or a folder raises PathError, and nothing waits for one."""

    def look(name: str, given: int) -> int:
        wait_not = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
        return os.open(name, given | flags | wait_not, dir_fd=folder)

    _check_ordinary(name, os.stat(name, dir_fd=folder))  # since a mere look may do something to a device
    file = open(name, "rb", opener=look)  # noqa: SIM115 - the caller closes it
    try:
        _check_ordinary(name, os.fstat(file.fileno()))
    except PathError:
        file.close()
        raise
    return file


def _check_ordinary(name: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise FolderError(f"{os.fspath(name)} is a folder; expected the name of a file")
    if not stat.S_ISREG(status.st_mode):
        raise PathError(f"{os.fspath(name)} is no ordinary file, so it is left alone")


def _replaceable(path: str | os.PathLike[str], target: str) -> os.stat_result | None:
    """The status of the file at `path`, None where there is none; raises OSError where it may not be replaced."""
    folder, name = os.path.split(path)
    place = os.path.join(os.path.realpath(folder or "."), name)
    if target != place and hasattr(os, "geteuid"):  # it is a link
        above = os.stat(os.path.dirname(place))
        if above.st_mode & stat.S_IWOTH and os.lstat(place).st_uid not in (os.geteuid(), above.st_uid):
            raise PermissionError("it is another user's link, in a folder where all may put links")
    try:
        status = os.stat(target)
    except FileNotFoundError:
        folder = os.path.dirname(target)
        if not os.path.isdir(folder):
            raise NoSuchPathError(f"{os.fspath(path)}: there is no folder {folder}") from None
        return None
    _check_ordinary(path, status)
    if not os.access(target, os.W_OK):
        raise PermissionError("it is write-protected")
    return status


def _resemble(number: int, old: os.stat_result) -> None:
    """Give an open file the group and permissions of `old`; where that group is refused, a group gets none."""
    if not hasattr(os, "fchmod"):
        return
    with suppress(OSError):
        os.fchown(number, -1, old.st_gid)
    kept = 0o777 if os.fstat(number).st_gid == old.st_gid else 0o707
    os.fchmod(number, old.st_mode & kept)


def _sync_folder(folder: str) -> None:
    """Have the new name on the disk too, where folders can be opened."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
