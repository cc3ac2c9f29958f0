"""Machine code on disk, in a folder that is its user's alone: what lies there runs as part of the program.

A file holds the hash of its key and its code, then the code.  The key is the hash of all that the code is made from:
what the function computes, the compiler's sources, llvmlite's and LLVM's versions, the processor's name and features.
What is not exactly that, or could be another user's, is as good as absent: the code is then compiled anew, and the file
replaced.  A folder that is full, read-only or missing costs the time of compiling, and nothing else.

Kept out are other users, who may not so much as look into the folder, and whose files are not read; and all accidents:
files cut short, changed or in each other's place, of another processor or another version, written by several processes
at once, half written when the power failed.  Not kept out are root, and programs of the same user.  Against these no
secret would help: they could read it wherever it lay, and may as well change Python's own files, or those of bpnet.
"""

import functools
import hashlib
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bpnet.compiler import BEGAN
from bpnet.disk import open_ordinary, opening, replacing, sweep

LOG = logging.getLogger("bpnet")

HAS_OWNERS = hasattr(os, "geteuid")
"""Whether files have an owner and permissions; Windows keeps others out of a user's own folders by other means."""

LARGEST = 2**24
"""Bytes of a file; no function is that long."""

KEPT, BLOCK = 2**27, 2**12
"""Bytes that are kept, in whole blocks: of more, what has not been used for longest goes, until half of it remains."""

LOOKED_AFTER = KEPT // 16
"""Bytes that a process writes until it looks again how many there are."""

OURS = re.compile(r"\w+-[0-9a-f]{24}\.(o|json)")
"""Names of files that are kept."""

DAY = 86400.0
"""Seconds for which a file counts as just used."""

_written: dict[str, int] = {}
"""By the folder: bytes that this process has written since it last looked."""


def read(name: str, key: bytes) -> bytes | None:
    """The code that was written by this name and key; None where there is none."""
    try:
        with (
            _opened(make=False) as (prefix, folder),
            open_ordinary(prefix + name, getattr(os, "O_NOFOLLOW", 0), folder) as file,
        ):
            status = os.fstat(file.fileno())
            if HAS_OWNERS and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
                return None
            data = file.read(LARGEST + 1)  # as bytes, so that nobody can change what has been checked
            if time.time() - status.st_mtime > DAY:
                with suppress(OSError):  # as of what may only be read
                    os.utime(prefix + name, dir_fd=folder)
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if len(data) <= LARGEST and _digest(key, code) == digest else None


def write(name: str, key: bytes, code: bytes) -> None:
    """Keep `code`, where there is a place for it."""
    data = _digest(key, code) + code
    if len(data) > LARGEST:
        return
    try:
        with _opened(make=True) as (prefix, folder):
            _make_room(prefix, folder, len(data))
            with replacing(prefix + name, 0o600, folder) as file:
                file.write(data)
    except OSError as error:
        LOG.debug("machine code is not kept: %s", error)


def hash_of(sources: Iterable[Path]) -> str:
    """The hash of files of Python, for a key.

    Where bpnet has been installed anew since this process began, the files are not what runs in it: what comes of that
    is then found by no other process.
    """
    paths = sorted(sources)
    found = hashlib.sha256(b"\n".join(path.read_bytes() for path in paths)).hexdigest()
    if max(path.stat().st_ctime for path in paths) > BEGAN:
        found += secrets.token_hex(8)
    return found


def _digest(key: bytes, code: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key).digest() + code).digest()


def cache_folder() -> str | None:
    """Where machine code is kept: $BPNET_CACHE_DIR, else bpnet in the user's cache folder; None: there is none."""
    chosen = _absolute("BPNET_CACHE_DIR")
    if chosen:
        return chosen
    systems = {"win32": ("LOCALAPPDATA", "AppData", "Local"), "darwin": ("", "Library", "Caches")}
    variable, *parts = systems.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    home = os.path.expanduser("~")
    there = os.path.isabs(home) and os.path.isdir(home)  # /nonexistent, as system users have, is not to be made
    found = _absolute(variable) or (os.path.join(home, *parts) if there else None)
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
    if os.path.islink(path):
        raise _refusal(f"{path} is a link, which is not followed")
    (number,) = opening(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
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


def _make_room(prefix: str, folder: int | None, size: int) -> None:
    """Before so many bytes are written: remove what killed processes have left, and what has not been used for long.

    That is done at the first time, and then whenever a process has written a good deal.
    """
    place = cache_folder() or ""
    written = _written.get(place, LOOKED_AFTER) + max(size, BLOCK)
    _written[place] = written % LOOKED_AFTER
    if written < LOOKED_AFTER:
        return
    sweep(prefix, folder)
    found = []
    for name in filter(OURS.fullmatch, os.listdir(prefix if folder is None else folder)):
        with suppress(OSError):
            status = os.stat(prefix + name, dir_fd=folder, follow_symlinks=False)
            found.append((status.st_mtime, -(-status.st_size // BLOCK) * BLOCK, name))
    total = sum(bytes for _, bytes, _ in found)
    left = total if total <= KEPT else KEPT // 2
    for _, bytes, name in sorted(found):
        if total <= left:
            break
        with suppress(OSError):
            os.unlink(prefix + name, dir_fd=folder)
            total -= bytes
