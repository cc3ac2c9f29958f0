"""What an interrupt, an error or a lack of memory may leave behind: it must be after a call as it was before."""

import gc
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from bpnet.backends import threads
from bpnet.backends.blas import BLAS
from bpnet.backends.interrupts import _Current, current
from bpnet.disk import PART

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP") if hasattr(signal, name)]


class Leftovers:
    """Looks at all of a process that a call might change; `folder` is where its files lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blas = ThreadpoolController().select(user_api="blas")
        self.before = self.look()

    def look(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "NumPy's error state": np.geterr(),
            "threads of BLAS": [library["num_threads"] for library in self.blas.info()],
            "signal handlers": [signal.getsignal(number) for number in SIGNALS],
            "sessions": current.session is _Current.session,
            "state of the thread": (current.reference, current.inside, current.deferred),
            "sessions that hold BLAS": (len(BLAS.open), BLAS.found),
            "locks": locks(),
            "the lock of BLAS": BLAS.lock._is_owned(),  # by this thread, and by none below
            "files": sorted(str(p) for p in self.folder.rglob("*") if p.name.startswith(PART)),
            "warnings": len(warnings.filters),
            "streams": (sys.stdout, sys.stderr, sys.gettrace(), gc.isenabled(), os.getcwd()),
        }
        if os.path.isdir("/proc/self/fd"):
            found["open files"] = len(os.listdir("/proc/self/fd"))
        if "torch" in sys.modules:
            found["autograd"] = sys.modules["torch"].is_grad_enabled()
        return found

    def found(self) -> list[str]:
        """What is not as before, each in words; it counts once."""
        start = time.monotonic()
        while compiles(time.monotonic() - start):
            time.sleep(0.001)
        after = self.look()
        if after != self.before:
            gc.collect()  # what an error's traceback holds
            after = self.look()
        changed = [
            f"{name}: {self.before[name]} is now {after[name]}" for name in after if after[name] != self.before[name]
        ]
        self.before = after
        return changed


def compiles(waited: float) -> bool:
    """Whether something is still compiled, which goes on to its end, though nobody waits for it any more.

    After an interrupt Python may count a thread for ever that never began, or one that is about to.
    """
    threads = [thread for thread in threading.enumerate() if thread.name == "bpnet-compiler"]
    return any(waited < (30.0 if thread.is_alive() else 0.1) for thread in threads)


def locks() -> list[str]:
    """The locks of this process that a call may take, as far as they are taken."""
    found: dict[str, Any] = {"helpers": threads._pool.lock}
    if "bpnet.compiler.llvm.jit" in sys.modules:
        from bpnet.backends.numpy import compiled
        from bpnet.compiler.llvm import jit, thread_pool

        found |= {"thread pool": thread_pool.POOL.lock, "machine code": jit._lock}
        found |= {
            f"{type(owner).__name__} {id(owner)}": owner.lock for known in list(compiled._LOCKED) if (owner := known())
        }
    if not BLAS.lock.acquire(timeout=1.0):
        return [*(name for name, lock in found.items() if lock.locked()), "BLAS"]
    BLAS.lock.release()
    return [name for name, lock in found.items() if lock.locked()]
