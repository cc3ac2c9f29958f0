"""Where rows come from: a file by its ending, or standard input, which is looked at instead."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from bpnet.disk import open_ordinary
from bpnet.errors import DataError, OptionError, shown
from bpnet.tabular.files import files_of

KINDS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "text"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    ".npz": "npz",
}
"""What a file is by its ending."""
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""How text is compressed, by its last ending."""
BEGINNINGS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"PK\x03\x04": "npz"}
"""What standard input is by its first bytes; anything else is text."""
WHOLE, PIECES, PIECE = 1 << 30, 256, 1 << 18
"""Bytes up to which a file is known again by all of them, and of larger ones how many parts of how many bytes."""
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TextOptions:
    """How a text is written: the separator (None looks for it), the encoding, and what else stands for a gap."""

    sep: str | None = None
    encoding: str = "utf-8"
    missing: Sequence[str] = ()

    def __post_init__(self) -> None:
        named = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";"}
        sep = named.get(self.sep or "", self.sep)
        if sep is not None and (len(sep) != 1 or not sep.isascii() or sep in '"\r\n'):
            raise OptionError(f"--sep is {shown(self.sep)}; expected one character, such as ';', or tab")
        object.__setattr__(self, "sep", sep)
        try:
            "".encode(self.encoding)
        except LookupError:
            known = "utf-8, latin-1, cp1252 or utf-16"
            raise OptionError(
                f"--encoding is {shown(self.encoding)}; expected one that Python knows: {known}"
            ) from None


@dataclass(frozen=True)
class Source:
    """Bytes that can be read more than once: `kind` says of what, `ending` how a message calls that."""

    name: str
    kind: str
    ending: str
    compression: str | None
    open: Callable[[], BinaryIO]

    @property
    def size(self) -> int:
        """Bytes as they are read."""
        with self.open() as file:
            return 8 * os.fstat(file.fileno()).st_size if self.compression else os.fstat(file.fileno()).st_size

    def fingerprint(self) -> str:
        """What the content is known again by."""
        if self.kind == "folder":
            return fingerprint([path for _, path in files_of(Path(self.name))])
        with self.open() as file:
            return digest(file)


def digest(file: BinaryIO) -> str:
    """A hash of all bytes of a file; of one of more than WHOLE bytes, of its size and of PIECES parts of it."""
    size = os.fstat(file.fileno()).st_size
    if size <= WHOLE:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    found = hashlib.sha256(str(size).encode())
    for i in range(PIECES):
        file.seek((size - PIECE) * i // (PIECES - 1))
        found.update(file.read(PIECE))
    return found.hexdigest()


def fingerprint(paths: Sequence[Path]) -> str:
    """What the content of files is known again by."""
    found = []
    for path in paths:
        with open_ordinary(path) as file:
            found.append(digest(file))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def find_source(data: str) -> Source:
    """The source that DATA names; raises DataError where it is of no kind that can be read."""
    if data == "-":
        return standard_input()
    path = Path(data)
    if path.is_dir():
        if not files_of(path):
            raise DataError(f"{data} is a folder without tables; expected the name of a file, or a folder of .parquet")
        return Source(data, "folder", "folder of tables", None, lambda: open_ordinary(path))
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    compression = COMPRESSED.get(endings[-1]) if endings else None
    ending = "".join(endings[-2 if compression else -1 :])
    kind = KINDS.get(endings[-2] if compression and len(endings) == 2 else ending)
    if kind is None or (compression and kind != "text"):
        close = get_close_matches(data, ["digits"])
        hint = " (did you mean digits?)" if close else ""
        known = ", ".join(dict.fromkeys(KINDS))
        raise DataError(
            f"DATA must be digits, - for standard input, or a file that ends in {known}, .csv.gz or .csv.zst: "
            f"{shown(data)} is none of these{hint}"
        )
    return Source(data, kind, ending, compression, lambda: open_ordinary(path))


def standard_input() -> Source:
    """Standard input, put into a file that has no name, since it is read more than once."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or sys.stdin.isatty():
        raise DataError("DATA is -, but nothing comes from standard input: pipe a table into the command")
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file)
        if file.tell() == 0:
            raise DataError("DATA is -, but standard input is empty")
        file.seek(0)
        start = file.read(8)
        number = os.dup(file.fileno())  # which lives as long as the process
    kind = next((kind for beginning, kind in BEGINNINGS.items() if start.startswith(beginning)), "text")
    compression = next((name for beginning, name in PACKED.items() if start.startswith(beginning)), None)

    def reopen() -> BinaryIO:
        os.lseek(number, 0, os.SEEK_SET)
        return open(number, "rb", closefd=False)

    return Source("standard input", kind, ".csv" if kind == "text" else f".{kind}", compression, reopen)
