"""Memory-mapped files among the arrays that a user passes.

To read where such a file has been cut off ends the process (SIGBUS), or gives zeros.  So before each batch its length
is asked for, which takes a microsecond.  What is cut within that batch, while it is read, can't be helped here:
`bpnet.data.stream` reads the files of maps by system calls, to which that is an error.
"""

import mmap
from collections.abc import Iterable, Mapping
from typing import Any

from bpnet.errors import PathError


class MappedFile:
    """A file of which an array, called `what`, is a map."""

    def __init__(self, what: str, name: str, memory: mmap.mmap, start: int) -> None:
        self.what, self.name, self.memory = what, name, memory
        self.end = start + len(memory)

    def check(self) -> None:
        """Raise PathError where the file has become shorter than what is mapped of it."""
        try:
            size = self.memory.size()
        except (OSError, ValueError):  # there is no file that it belongs to, or it is closed
            return
        if size < self.end:
            raise PathError(
                f"{self.what} is a memory map of {self.name}, which has been cut to {size:,} bytes of {self.end:,}: "
                f"restore the file, or pass a copy of it in memory, np.array({self.what}); bp.data.stream "
                "reads files that may be cut, and raises where they are"
            )


def mapped_files(given: Mapping[str, Any]) -> list[MappedFile]:
    """The files that arrays are maps of, or views of such maps, by what errors call them."""
    found = []
    for what, x in given.items():
        parts: Iterable[Any] = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple) else (x,)
        for part in parts:
            name, start = "a file", 0
            while part is not None and not isinstance(part, mmap.mmap):
                if isinstance(part, memoryview):
                    part = part.obj
                    continue
                if getattr(part, "filename", None) is not None:
                    name, offset = str(part.filename), int(part.offset)
                    start = offset - offset % mmap.ALLOCATIONGRANULARITY
                part = getattr(part, "base", None)
            if part is not None:
                found.append(MappedFile(what, name, part, start))
    return found
