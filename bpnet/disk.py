"""Files on disk: written whole or not at all, and read only where they are ordinary files.

What is written goes into a new file in the same folder, a part, which takes the old one's place once it is complete and
on the disk.  So who reads meanwhile finds the old file or the new one, and an error, an interrupt or a power cut leaves
the old one.  The part of a process that was killed is removed by the next one that writes into the folder.
"""

import errno
import io
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from bpnet.errors import ArgumentError, FolderError, NoSuchPathError, PathError, kind_of, path_error

try:
    import fcntl
except ImportError:  # Windows, where what is open can't be removed
    fcntl = None  # type: ignore[assignment]

PART, ENDING = ".bpnet-", ".part"
"""How the names of files begin and end that are not complete yet."""

WAITS = (0.01, 0.03, 0.1, 0.3) if os.name == "nt" else ()
"""Seconds between tries: Windows does not replace a file while somebody reads it."""

TRIES = 10
"""How often a new part is made where the one before was swept at once."""

ABANDONED = 86400.0
"""Seconds after which nobody writes to a part any more, where no lock says so."""

NO_SYNC = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EINVAL", "EBADF", "EISDIR", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")
    if hasattr(errno, name)
}
"""What systems and file systems say that can't open or sync folders."""


def checked_path(path: Any) -> str:
    """`path` as text; raises ArgumentError unless it can name a file."""
    with suppress(TypeError, UnicodeEncodeError):
        name = os.fspath(path)
        if isinstance(name, str) and name and b"\0" not in os.fsencode(name):
            return name
    given = repr(path) if isinstance(path, str) else kind_of(path)
    raise ArgumentError(f"path is {given}; expected the name of a file")


def absolute(path: str) -> str:
    """`path`, whatever folder is the current one later; raises PathError where that has been removed."""
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise path_error(f"{path} is of the current folder, which can't be found", error) from error


def make_folder(folder: str) -> None:
    """Make a folder, and those it lies in, unless it is there; "" is the current one.  Raises PathError.

    Those that were made are on the disk then.
    """
    path = Path(absolute(folder))
    missing = [name for name in (path, *path.parents) if not os.path.exists(name)]
    try:
        os.makedirs(folder or ".", exist_ok=True)
        for made in reversed(missing):
            _sync_folder(made.parent)
    except OSError as error:
        raise path_error(f"the folder {folder} can't be made", error) from error


def remove(path: str) -> None:
    """Remove a file, if it is there.  Raises PathError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise path_error(f"{path} can't be removed", error) from error


def append(path: str, content: bytes) -> None:
    """Write `content` at the end of a file, and hand it to the system.  Raises PathError, and leaves it as it was."""
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        (number,) = opening(path, flags | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(number)
            _check_ordinary(path, status)
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(number, rest) :]
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(number, status.st_size)
                raise
        finally:
            os.close(number)
    except OSError as error:
        raise path_error(f"{path} can't be written", error) from error


@contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = "wb", **text: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` at the end of the `with` block, unless the block raises.

    It is on the disk by then, so that a power cut can't leave an empty file.  `mode` is "wb" or "w", and `text` what
    `open` knows besides, as encoding.  A file that was there gives its permissions and group to the new one; a symbolic
    link stays, and the file it points to is replaced, while other hard links to that keep the old content.

    Raises PathError, which is an OSError, where nothing can be written there.
    """
    try:
        target = os.path.realpath(path)
        old = _replaceable(path, target)
        folder = os.path.dirname(target)
        sweep(folder + os.sep)
        with replacing(target, 0o666 if old is None else old.st_mode & 0o777) as part:
            if old is not None:
                _resemble(part.raw.fileno(), old)
            file = part if mode == "wb" else io.TextIOWrapper(part, **text)
            yield file
            file.flush()
            _sync(part.raw.fileno())
    except OSError as error:
        raise path_error(f"{os.fspath(path)} can't be written", error) from error
    try:
        _sync_folder(folder)
    except OSError as error:
        raise path_error(f"{os.fspath(path)} is written, but a power cut may still undo that", error) from error


def opening(path: str | Path, flags: int, folder: int | None = None, permissions: int = 0o777) -> Iterator[int]:
    """What `os.open` gives, as the one value of an iterator.

        (number,) = opening(path, flags)
        try:

    No interrupt can come between the opening and the `try`, so that none leaves the file open.
    """
    return map(partial(os.open, dir_fd=folder), (path,), (flags,), (permissions,))


class Part(io.BufferedWriter):
    """A file that is not complete yet.

    Its descriptor is for this module alone: NumPy and Pillow would write by it, past the buffer, and overlook that a
    disk was full; without it they call `write`.
    """

    raw: io.FileIO

    def fileno(self) -> int:
        raise io.UnsupportedOperation("what is written here goes through write()")


@contextmanager
def replacing(name: str, permissions: int, folder: int | None = None) -> Iterator[Part]:
    """Open a new file beside `name` that takes its place at the end of the `with` block, or else is removed.

    A name that nobody can guess and O_EXCL keep others from planting something there, and a lock keeps `sweep` away.
    `name` lies in the folder of the descriptor `folder`, if there is one.
    """

    def create(path: str, flags: int) -> int:
        (number,) = opening(path, flags | getattr(os, "O_NOFOLLOW", 0), folder, permissions)
        return number

    for left in reversed(range(TRIES)):
        path = os.path.join(os.path.dirname(name), f"{PART}{secrets.token_hex(8)}{ENDING}")
        raw = None
        try:
            raw = io.FileIO(path, "x", opener=create)
            if not _locked(raw.fileno()) and left:  # swept in the instant before
                continue
            part = Part(raw)
            yield part
            part.flush()
            if fcntl is None:
                part.close()
            _replace(path, name, folder)
            part.close()
            return
        finally:
            try:
                if raw is not None:
                    raw.close()  # first, since Windows removes nothing that is open
            finally:
                with suppress(OSError):  # after the replacement there is none
                    os.unlink(path, dir_fd=folder)


def _locked(number: int) -> bool:
    """Lock a part that was made until it is closed, or its process ends; False if it is no longer there."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks here, so nothing is swept either
        return True
    return os.fstat(number).st_nlink > 0


def _replace(path: str, name: str, folder: int | None) -> None:
    for wait in (*WAITS, None):
        try:
            return os.replace(path, name, src_dir_fd=folder, dst_dir_fd=folder)
        except PermissionError:
            if wait is None:
                raise
            time.sleep(wait)


def sweep(prefix: str, folder: int | None = None) -> None:
    """Remove the parts of processes that are no more; their names begin with `prefix`, as does that of their folder."""
    with suppress(OSError):
        for name in os.listdir(prefix if folder is None else folder):
            if name.startswith(PART) and name.endswith(ENDING):
                with suppress(OSError):
                    _sweep(prefix + name, folder)


def _sweep(path: str, folder: int | None) -> None:
    status = os.stat(path, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        return
    if fcntl is None:
        os.unlink(path)
        return
    (number,) = opening(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, folder)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # there are no locks here
            if time.time() - status.st_mtime < ABANDONED:
                return
        os.unlink(path, dir_fd=folder)
    finally:
        os.close(number)


def open_ordinary(name: str | os.PathLike[str], flags: int = 0, folder: int | None = None) -> BufferedReader:
    """Open a file to be read; a FIFO, a terminal, a device or a folder raises PathError, and nothing waits for one."""

    def look(name: str, given: int) -> int:
        wait_not = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
        (number,) = opening(name, given | flags | wait_not, folder)
        return number

    _check_ordinary(name, os.stat(name, dir_fd=folder))  # since a mere look may do something to a device
    file = open(name, "rb", opener=look)  # noqa: SIM115 - the caller closes it
    try:
        _check_ordinary(name, os.fstat(file.fileno()))
    except BaseException:
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


def _sync(number: int) -> None:
    """Have an open file on the disk: on a Mac not only in the disk's own memory, which fsync is content with."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # as of a network's disk
            fcntl.fcntl(number, full)
            return
    os.fsync(number)


def _sync_folder(folder: str | Path) -> None:
    """Have the names in a folder on the disk, where folders can be opened; raises OSError where the disk fails."""
    try:
        (number,) = opening(folder, os.O_RDONLY)
        try:
            _sync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
