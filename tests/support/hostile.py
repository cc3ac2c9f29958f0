"""Loads files that may be hostile, in a process of its own, and says what that did: `Loader`.

What counts is what `bp.load` raised or gave, the processor time it took, the memory, and what Python's audit events
tell of it: code compiled or run, modules imported, files opened for writing, processes and connections begun.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
WAIT = 60.0
"""Seconds after which a load counts as one that never ends: many times what is allowed, on a machine that is busy."""

FORBIDDEN = (
    "exec", "compile", "import", "marshal.", "pickle.", "code.", "ctypes.", "cpython.run", "subprocess.", "socket.",
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename",
    "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.putenv", "os.kill",
    "shutil.", "tempfile.", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.", "sqlite3.", "mmap.", "signal.",
)  # fmt: skip
"""How the names of audit events begin that no file may bring about."""


class Watch:
    """Hears audit events while it is armed; one for a process, since a hook can't be taken back."""

    def __init__(self) -> None:
        self.armed, self.file, self.seen = False, "", list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            path, _, flags = args
            reads = not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if reads and (path == self.file or not isinstance(path, str) or "zoneinfo" in path):
                return
        elif not event.startswith(FORBIDDEN):
            return
        self.seen.append(f"{event} {args!r:.200}")


def prepare() -> Watch:
    """All that a load may need is imported before it is watched."""
    import safetensors  # noqa: F401

    import bpnet as bp
    import bpnet.sparse
    from bpnet.names import define_all
    from bpnet.tabular.dates import zone_of

    define_all()
    warnings.simplefilter("error")
    with contextlib.suppress(bp.errors.BpnetError):
        bp.load(TESTS / "no file")
    for zone in ("Europe/Berlin", "No/Zone", "None"):
        with contextlib.suppress(bp.errors.BpnetError):
            zone_of(zone)
    return Watch()


def load(watch: Watch, path: str) -> tuple[str, str, float]:
    """What `bp.load` came to ("loaded" or the name of an error), the error's text, and the seconds it took."""
    import bpnet as bp

    watch.file, watch.armed, begin = path, True, time.process_time()
    try:
        bp.load(path)
        kind, text = "loaded", ""
    except bp.errors.BpnetError as error:
        kind, text = type(error).__name__, str(error)
    except BaseException as error:
        kind, text = f"{type(error).__name__}, which is no error of bpnet", str(error)
    finally:
        watch.armed = False
    return kind, text, time.process_time() - begin


def memory(key: str) -> int:
    """A number of bytes of this process, as VmHWM, the most memory since `forget_peak`; 0 where Linux is not."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(key)), 0)
    except OSError:
        return 0


def forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


@dataclass
class Outcome:
    """What a load came to."""

    kind: str
    text: str = ""
    seconds: float = 0.0
    bytes: int = 0
    """Of memory, more than before."""
    events: tuple[str, ...] = ()

    def faults(self, size: int, refused: bool = True) -> list[str]:
        """What of it no file of that size may bring about."""
        found = [f"it ran {event}" for event in self.events]
        if self.kind not in ("FileFormatError", "OtherFormatError", "loaded", "OptionError", "DTypeError"):
            found.append(f"it ended in {self.kind}: {self.text[:200]}")
        elif refused and self.kind == "loaded":
            found.append("it was loaded")
        if self.seconds > 1.0:
            found.append(f"it took {self.seconds:.1f} s")
        if self.bytes > 2 * size + 64 * 2**20:
            found.append(f"it took {self.bytes / 2**20:.0f} MiB for a file of {size:,} bytes")
        if len(self.text) > 2000 or not all(c.isprintable() or c == "\n" for c in self.text):
            found.append("its error is long, or not printable")
        return found


class Loader:
    """The process; it is begun anew where a file ended it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> int | None:
        if self.process is None:
            return None
        process, self.process = self.process, None
        with contextlib.suppress(OSError):
            process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return process.wait()

    def load(self, path: Path) -> Outcome:
        if self.process is None:
            command = [sys.executable, "-c", "from support.hostile import serve; serve()"]
            places = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONPATH": places})
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        import select

        ready, _, _ = select.select([self.process.stdout], [], [], WAIT)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            ended = self.end()
            return Outcome(f"the end of the process, {ended}" if ready else "no end", seconds=WAIT)
        return Outcome(**json.loads(line) | {"events": tuple(json.loads(line)["events"])})


def serve() -> None:
    """Load the files that are named on standard input, one a line."""
    watch = prepare()
    for line in sys.stdin:
        watch.seen.clear()
        forget_peak()
        before = memory("VmRSS")
        kind, text, seconds = load(watch, line.rstrip("\n"))
        more = max(memory("VmHWM") - before, 0)
        found = {"kind": kind, "text": text, "seconds": seconds, "bytes": more, "events": watch.seen}
        print(json.dumps(found), flush=True)
