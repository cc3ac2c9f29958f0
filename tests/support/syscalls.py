"""The system calls by which a function changes a folder: logged, made to fail, cut short, or the process killed there.

    done = trace(lambda: trainer.save(path), folder)
    done.calls                                  what reached the system: Call("write", ...), Call("fsync", ...), ...
    trace(save, folder, lambda number, call: errno.ENOSPC if number == 7 else None)

The function runs in a forked process, whose main thread is followed by ptrace: so all is seen that reaches the system,
whoever calls it, Python's file objects, NumPy's C code or a library's.  Not seen are other threads and processes, and
what goes through shared memory or io_uring: calls that prepare this, or change files in a way that `Call` has no word
for, are an error.  Linux on x86-64 alone.
"""

import ctypes
import errno
import os
import pickle
import platform
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
SECONDS = 60
"""After so many a process that was forked is ended."""

KILL_BEFORE, KILL_AFTER = "kill before", "kill after"

_FD, _PATH, _AT = "fd", "path", "at"
_CALLS: dict[int, tuple[str, tuple[Any, ...]]] = {
    # number: name, and where its paths come from: a descriptor, a path, or a folder's descriptor and a path
    1: ("write", ((_FD, 0),)),
    18: ("pwrite64", ((_FD, 0),)),
    3: ("close", ((_FD, 0),)),
    74: ("fsync", ((_FD, 0),)),
    75: ("fdatasync", ((_FD, 0),)),
    77: ("ftruncate", ((_FD, 0),)),
    91: ("fchmod", ((_FD, 0),)),
    93: ("fchown", ((_FD, 0),)),
    73: ("flock", ((_FD, 0),)),
    5: ("fstat", ((_FD, 0),)),
    8: ("lseek", ((_FD, 0),)),
    0: ("read", ((_FD, 0),)),
    17: ("pread64", ((_FD, 0),)),
    217: ("getdents64", ((_FD, 0),)),
    2: ("open", ((_PATH, 0),)),
    257: ("openat", ((_AT, 0, 1),)),
    76: ("truncate", ((_PATH, 0),)),
    82: ("rename", ((_PATH, 0), (_PATH, 1))),
    264: ("renameat", ((_AT, 0, 1), (_AT, 2, 3))),
    316: ("renameat2", ((_AT, 0, 1), (_AT, 2, 3))),
    83: ("mkdir", ((_PATH, 0),)),
    258: ("mkdirat", ((_AT, 0, 1),)),
    84: ("rmdir", ((_PATH, 0),)),
    87: ("unlink", ((_PATH, 0),)),
    263: ("unlinkat", ((_AT, 0, 1),)),
    90: ("chmod", ((_PATH, 0),)),
    280: ("utimensat", ((_AT, 0, 1),)),
    4: ("stat", ((_PATH, 0),)),
    6: ("lstat", ((_PATH, 0),)),
    262: ("newfstatat", ((_AT, 0, 1),)),
    332: ("statx", ((_AT, 0, 1),)),
    21: ("access", ((_PATH, 0),)),
    269: ("faccessat", ((_AT, 0, 1),)),
    439: ("faccessat2", ((_AT, 0, 1),)),
    89: ("readlink", ((_PATH, 0),)),
    267: ("readlinkat", ((_AT, 0, 1),)),
    # what no test has a model of
    20: ("writev", ((_FD, 0),)),
    40: ("sendfile", ((_FD, 0),)),
    85: ("creat", ((_PATH, 0),)),
    86: ("link", ((_PATH, 0), (_PATH, 1))),
    265: ("linkat", ((_AT, 0, 1), (_AT, 2, 3))),
    88: ("symlink", ((_PATH, 1),)),
    266: ("symlinkat", ((_AT, 1, 2),)),
    285: ("fallocate", ((_FD, 0),)),
    296: ("pwritev", ((_FD, 0),)),
    326: ("copy_file_range", ((_FD, 2),)),
    328: ("pwritev2", ((_FD, 0),)),
    9: ("mmap", ((_FD, 4),)),
    425: ("io_uring_setup", ()),
}
_UNKNOWN = {
    "writev", "sendfile", "creat", "link", "linkat", "symlink", "symlinkat", "fallocate", "pwritev", "copy_file_range",
    "pwritev2", "io_uring_setup",
}  # fmt: skip
_RENAMED = {
    "open": "open", "openat": "open", "pwrite64": "write", "fdatasync": "fsync", "ftruncate": "truncate",
    "renameat": "rename", "renameat2": "rename", "mkdirat": "mkdir", "unlinkat": "unlink", "fchmod": "chmod",
    "fstat": "stat", "lstat": "stat", "newfstatat": "stat", "statx": "stat", "faccessat": "access",
    "faccessat2": "access", "readlinkat": "readlink", "pread64": "read",
}  # fmt: skip


@dataclass
class Call:
    """A call that concerns the folder."""

    name: str
    paths: tuple[str, ...]
    """Absolute; of a descriptor that of its file at that moment."""
    flags: int = 0
    """Of open."""
    offset: int = 0
    """Where a write begins; of truncate the new size."""
    data: bytes = b""
    """What is written."""
    made: bool = False
    """Whether open makes a new file."""
    result: int = 0
    """Or -errno."""

    @property
    def changes(self) -> bool:
        """Whether files, or what is on the disk of them, may be others after it."""
        created = self.name == "open" and (self.made or self.flags & os.O_TRUNC)
        return bool(created) or self.name in ("write", "truncate", "rename", "mkdir", "rmdir", "unlink", "fsync")


@dataclass
class Done:
    """What came of a function that was traced."""

    calls: list[Call]
    result: Any = None
    """What it returned."""
    error: str = ""
    """A traceback, where it raised."""
    signal: int = 0
    """By which it was ended."""


_LIBC = ctypes.CDLL(None, use_errno=True) if AVAILABLE else None
_TRACEME, _CONT_SYSCALL, _GETREGS, _SETREGS, _SETOPTIONS = 0, 24, 12, 13, 0x4200
_SYSGOOD, _EXITKILL = 1, 0x100000
_ARGUMENTS = (14, 13, 12, 7, 9, 8)
"""Places of the arguments among the registers."""
_NUMBER, _RESULT = 15, 10


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    assert _LIBC is not None
    _LIBC.ptrace.argtypes = [ctypes.c_long] * 4
    if _LIBC.ptrace(request, pid, 0, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


def trace(
    function: Callable[[], Any], folder: str | os.PathLike[str], act: Callable[[int, Call], Any] = lambda *_: None
) -> Done:
    """Call `function` in a forked process, and log what it does to `folder` and all in it.

    `act` is asked before each such call, with its number from 0: for None it is made, for a number it fails with that
    errno and does nothing (but close, which closes all the same), for a negative one only so many bytes are written
    (-1: one), for KILL_BEFORE and KILL_AFTER the process is killed there.
    """
    root = os.path.realpath(folder)
    answer = os.memfd_create("answer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads, as Python and JAX say: the child has only this one
        pid = os.fork()
    if pid == 0:
        _child(function, answer)
    done = Done([])
    try:
        _follow(pid, root, act, done)
    except BaseException:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    finally:
        with open(answer, "rb") as file:
            file.seek(0)
            text = file.read()
    if text and not done.signal:
        done.result, done.error = pickle.loads(text)
    return done


def _child(function: Callable[[], Any], file: int) -> None:
    """Never returns."""
    status = 1
    try:
        signal.alarm(SECONDS)
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            answer = function(), ""
        except BaseException:
            answer = None, traceback.format_exc()
        text = pickle.dumps(answer)
        while text:
            text = text[os.write(file, text) :]
        status = 0
    finally:
        os._exit(status)


def _follow(pid: int, root: str, act: Callable[[int, Call], Any], done: Done) -> None:
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, _SYSGOOD | _EXITKILL)
    registers = (ctypes.c_ulonglong * 27)()
    pending: tuple[Call, Any] | None = None
    entered, passed = False, 0
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        while True:
            with suppress(ProcessLookupError):  # which was killed
                _ptrace(_CONT_SYSCALL, pid, passed)
            _, status = os.waitpid(pid, 0)
            passed = 0
            if not os.WIFSTOPPED(status):
                done.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                return
            if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
                passed = os.WSTOPSIG(status)
                continue
            entered = not entered
            if not entered and pending is None:
                continue
            _ptrace(_GETREGS, pid, ctypes.addressof(registers))
            if entered:
                call = _call(pid, root, registers, memory)
                if call is None:
                    continue
                action = act(len(done.calls), call)
                done.calls.append(call)
                if action == KILL_BEFORE:
                    os.kill(pid, signal.SIGKILL)
                    continue
                pending = call, (action, registers[12])
                if type(action) is int and action > 0:
                    if call.name != "close":  # which closes, whatever it says
                        registers[_NUMBER] = 2**64 - 1
                    _ptrace(_SETREGS, pid, ctypes.addressof(registers))
                elif type(action) is int:
                    registers[12] = min(-action, registers[12])
                    call.data = call.data[:-action]
                    _ptrace(_SETREGS, pid, ctypes.addressof(registers))
            else:
                assert pending is not None
                call, (action, length) = pending
                pending = None
                if type(action) is int:
                    if action > 0:
                        registers[_RESULT] = 2**64 - action
                    registers[12] = length
                    _ptrace(_SETREGS, pid, ctypes.addressof(registers))
                call.result = struct.unpack("<q", struct.pack("<Q", registers[_RESULT]))[0]
                if action == KILL_AFTER:
                    os.kill(pid, signal.SIGKILL)


def _call(pid: int, root: str, registers: Any, memory: Any) -> Call | None:
    """The call that is about to be made, if it concerns the folder `root`."""
    found = _CALLS.get(registers[_NUMBER])
    if found is None:
        return None
    name, places = found
    arguments = [registers[place] for place in _ARGUMENTS]
    assert name != "io_uring_setup", "what goes through io_uring is not seen"
    paths = tuple(_path(pid, memory, arguments, place) for place in places)
    if not any(path == root or path.startswith(root + os.sep) for path in paths):
        return None
    if name == "mmap":  # of a file that is only read, or copied when it is written to
        assert not (arguments[2] & 2 and arguments[3] & 1), f"{paths}: what is written by shared memory is not seen"
        return None
    assert name not in _UNKNOWN, f"{name}({paths}): there is no model of this"
    call = Call(_RENAMED.get(name, name), paths)
    if call.name == "open":
        call.flags = arguments[1 if name == "open" else 2]
        call.made = bool(call.flags & os.O_CREAT) and not os.path.lexists(paths[0])
    elif call.name == "write":
        memory.seek(arguments[1])
        call.data = memory.read(arguments[2])
        call.offset = arguments[3] if name == "pwrite64" else _position(pid, arguments[0])
    elif call.name == "truncate":
        call.offset = arguments[1]
    return call


def _path(pid: int, memory: Any, arguments: list[int], place: tuple[Any, ...]) -> str:
    kind, *indices = place
    first = arguments[indices[0]]
    if kind == _FD:
        return _target(pid, first)
    text = _text(memory, arguments[indices[-1]])
    if kind == _PATH or ctypes.c_int(first & 0xFFFFFFFF).value == -100:  # AT_FDCWD
        folder = os.readlink(f"/proc/{pid}/cwd")
    else:
        folder = _target(pid, first)
    path = os.path.join(folder, text) if text else folder
    above, name = os.path.split(os.path.normpath(path))
    return os.path.join(os.path.realpath(above), name)  # of a link the link itself


def _target(pid: int, number: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{number & 0xFFFFFFFF}")
    except OSError:
        return ""


def _text(memory: Any, address: int) -> str:
    if not address:
        return ""
    found = b""
    while b"\0" not in found:
        step = 4096 - (address + len(found)) % 4096  # not beyond the page, after which there may be none
        memory.seek(address + len(found))
        found += memory.read(step)
    return os.fsdecode(found.partition(b"\0")[0])


def _position(pid: int, number: int) -> int:
    """Where the next write to a descriptor begins."""
    with open(f"/proc/{pid}/fdinfo/{number}") as lines:
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
    if int(facts["flags"], 8) & os.O_APPEND:
        return os.stat(f"/proc/{pid}/fd/{number}").st_size
    return int(facts["pos"])


def mark(folder: str | os.PathLike[str], text: str) -> None:
    """Leave a text in the log: a call "readlink" of a path that is not there."""
    with suppress(OSError):
        os.readlink(os.path.join(folder, f"mark:{text}"))


def marked(call: Call) -> str | None:
    """The text that `mark` has left, if the call is one of its."""
    before, found, text = os.path.basename(call.paths[0]).partition("mark:")
    return text if call.name == "readlink" and found and not before else None


ERRORS = {
    "open": (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EDQUOT, errno.ENOENT, errno.EINTR),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EINTR, -1, -1000),
    "fsync": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR),
    "rename": (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOENT),
    "mkdir": (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT),
    "unlink": (errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT),
    "truncate": (errno.EIO, errno.EROFS),
    "close": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "chmod": (errno.EIO, errno.EPERM),
    "fchown": (errno.EIO, errno.EPERM),
    "flock": (errno.ENOLCK, errno.EWOULDBLOCK),
    "lseek": (errno.EIO,),
    "read": (errno.EIO, errno.EINTR),
    "stat": (errno.EIO, errno.EACCES, errno.ENOENT),
    "access": (errno.EACCES, errno.EIO),
    "readlink": (errno.EIO, errno.EACCES),
    "getdents64": (errno.EIO,),
    "utimensat": (errno.EPERM, errno.EROFS),
}
"""What each call may say, and how short a write may be."""
