"""Machine code on disk, in a folder that is its user's alone: what lies there runs as part of the program.

A file holds the hash of its key and its code, then the code.  What is not exactly that, or could be another user's, is
as good as absent: the code is then compiled anew, and the file replaced.
"""

import functools
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bpnet.disk import open_ordinary, replacing

LOG = logging.getLogger("bpnet")

HAS_OWNERS = hasattr(os, "geteuid")
"""Whether files have an owner and permissions; Windows keeps others out of a user's own folders by other means."""

LARGEST = 2**26
"""Bytes of a file; no function is that long."""

ABANDONED = 3600.0
"""Seconds after which a file that is not complete yet belongs to a process that is no more."""

MOST = 2**14
"""Files that are kept, some 100 MB: of more, those that have not been used for longest go, and half of these remain."""

OURS = re.compile(r"\w+-[0-9a-f]{24}\.(o|json)")
"""Names of files that are kept."""

DAY = 86400.0
"""Seconds for which a file counts as just used."""


def read(name: str, key: bytes) -> bytes | None:
    """The code that was written by this name and key; None where there is none."""
    try:
        with (
            _opened(make=False) as (prefix, folder),
            open_ordinary(prefix + name, getattr(os, "O_NOFOLLOW", 0), folder) as file,
        ):
            status = os.fstat(file.fileno())
            if status.st_size > LARGEST or (HAS_OWNERS and (status.st_uid != os.geteuid() or status.st_mode & 0o022)):
                return None
            data = file.read()
            if time.time() - status.st_mtime > DAY:
                with suppress(OSError):  # as of what may only be read
                    os.utime(prefix + name, dir_fd=folder)
    except OSError:
        return None
    return data[32:] if hashlib.sha256(key + data[32:]).digest() == data[:32] else None


def write(name: str, key: bytes, code: bytes) -> None:
    """Keep `code`, where there is a place for it."""
    try:
        with _opened(make=True) as (prefix, folder):
            _clean(prefix, folder)
            with replacing(prefix + name, 0o600, folder) as file:
                file.write(hashlib.sha256(key + code).digest() + code)
    except OSError as error:
        LOG.debug("machine code is not kept: %s", error)


def cache_folder() -> str | None:
    """Where machine code is kept: $BPNET_CACHE_DIR, else bpnet in the user's cache folder; None: there is none."""
    chosen = _absolute("BPNET_CACHE_DIR")
    if chosen:
        return chosen
    systems = {"win32": ("LOCALAPPDATA", "AppData", "Local"), "darwin": ("", "Library", "Caches")}
    variable, *parts = systems.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    home = os.path.expanduser("~")
    found = _absolute(variable) or (os.path.join(home, *parts) if os.path.isabs(home) else None)
    return found and os.path.join(found, "bpnet")


def _absolute(variable: str) -> str | None:
    """The folder that a variable names.  A relative one would be another in every folder, also in one downloaded."""
    value = os.environ.get(variable)
    if value and not os.path.isabs(value):
        _warn(f"{variable} is {value!r}, which is ignored: expected an absolute path")
        return None
    return value


@contextmanager
def _opened(make: bool) -> Iterator[tuple[str, int | None]]:
    """What names of files in the folder begin with, and its descriptor; raises OSError where it is not to be used.

    Names are looked up from the descriptor, so that nobody can put another folder in its place meanwhile.
    """
    path = cache_folder()
    if path is None:
        raise FileNotFoundError("there is no folder for it")
    if make:
        _make(path)
    if not HAS_OWNERS:
        yield path + os.sep, None
        return
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(number)
        if status.st_uid != os.geteuid():
            raise _refusal(f"{path} belongs to another user")
        if status.st_mode & 0o077:
            raise _refusal(f"{path} is open to other users; chmod 700 closes it")
        yield "", number
    finally:
        os.close(number)


def _make(path: str) -> None:
    """Make the folder, with those above it, for the user alone."""
    missing = [Path(path), *Path(path).parents]
    while missing and missing[-1].exists():
        above = missing.pop()
    if missing and HAS_OWNERS and above.stat().st_uid not in (0, os.geteuid()):
        # As under sudo: what root made in another's home, its owner could not use.
        raise _refusal(f"{above} belongs to another user")
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(0o700)


def _refusal(reason: str) -> OSError:
    _warn(
        f"compiled functions are not kept, so each process compiles them again: {reason}. "
        "BPNET_CACHE_DIR may name a folder that is yours alone"
    )
    return PermissionError(reason)


@functools.cache
def _warn(message: str) -> None:
    """Once."""
    LOG.warning(message)


@functools.cache
def _clean(prefix: str, folder: int | None) -> None:
    """Remove, once in a process, what killed processes have left half written, and what has not been used for long."""
    names, now = os.listdir(prefix if folder is None else folder), time.time()
    kept = [name for name in names if OURS.fullmatch(name)]
    ages = {}
    for name in [name for name in names if name.endswith(".part")] + (kept if len(kept) > MOST else []):
        with suppress(OSError):
            ages[name] = now - os.stat(prefix + name, dir_fd=folder, follow_symlinks=False).st_mtime
    old = [name for name, age in ages.items() if name.endswith(".part") and age > ABANDONED]
    if len(kept) > MOST:
        old += sorted(ages.keys() & set(kept), key=lambda name: ages[name])[MOST // 2 :]
    for name in old:
        with suppress(OSError):
            os.unlink(prefix + name, dir_fd=folder)
