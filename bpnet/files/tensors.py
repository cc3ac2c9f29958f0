"""The .safetensors format: named arrays and texts, here with a SHA-256 hash of the whole file.

    8 bytes   the header's length, as are all numbers of the lowest byte first
    header    JSON: {"__metadata__": {"sha256": ..., ...}, name: {"dtype": ..., "shape": ..., "data_offsets": ...}, ...}
    data      the arrays, one after the other

The hash stands at the header's beginning.  It is of the file with zeros in the hash's own place.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from io import BufferedReader
from typing import IO, TYPE_CHECKING, Any

from bpnet.disk import open_ordinary
from bpnet.errors import ArgumentError, FileFormatError

if TYPE_CHECKING:
    import numpy

    Tensors = dict[str, numpy.ndarray[Any, Any]]

BEGINNING = b'{"__metadata__":{"sha256":"'
PLACE = slice(8 + len(BEGINNING), 8 + len(BEGINNING) + 64)
"""Where the hash stands, counted from the file's start."""
ZEROS = "0" * 64

LARGEST_HEADER = 100_000_000
"""Bytes; what is longer the safetensors package does not read either."""

DTYPES = {"F32": "<f4", "F64": "<f8", "BOOL": "|b1", "I8": "|i1", "U8": "|u1"}
DTYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (2, 4, 8)}
CODES = {dtype[1:]: code for code, dtype in DTYPES.items()}


def write(file: IO[bytes], tensors: "Tensors", metadata: Mapping[str, str]) -> None:
    """Write arrays of numbers or truth values, and texts; raises ArgumentError where these are too long."""
    import numpy

    header: dict[str, Any] = {"__metadata__": {"sha256": ZEROS, **metadata}}
    parts: list[memoryview] = []
    offset = 0
    for name, tensor in tensors.items():
        dtype, end = CODES[f"{tensor.dtype.kind}{tensor.itemsize}"], offset + tensor.nbytes
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        parts.append(numpy.ravel(tensor).astype(DTYPES[dtype], copy=False).view(numpy.uint8).data)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    if len(text) > LARGEST_HEADER:
        raise ArgumentError(f"metadata and history take {len(text):,} bytes; expected at most {LARGEST_HEADER:,}")
    head = bytearray(struct.pack("<Q", len(text)) + text)
    digest = hashlib.sha256(head)
    for part in parts:
        digest.update(part)
    head[PLACE] = digest.hexdigest().encode("ascii")
    file.write(head)
    for part in parts:
        file.write(part)


def read(path: str | os.PathLike[str]) -> "tuple[Tensors, dict[str, str], bool | None]":
    """The arrays and texts of a file, and whether its hash is right; None where it has none.

    It is read into memory once, so that nobody can change what has been checked.  Raises OSError where there is no
    ordinary file, and FileFormatError where its parts do not fit together.
    """
    import numpy

    with open_ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise FileFormatError("it begins with no header")
        head += _filled(file, bytearray(length))
        blank = bytearray(head)
        blank[PLACE] = ZEROS.encode("ascii")
        digest, tensors = hashlib.sha256(blank), {}
        try:
            header = json.loads(head[8:].decode("utf-8"))
            metadata = header.pop("__metadata__", {})
            if not all(isinstance(text, str) for text in metadata.values()):
                raise FileFormatError("its metadata are not all text")
            for name, dtype, shape in _in_order(header, size - len(head)):
                raw = _filled(file, numpy.empty(math.prod(shape) * int(dtype[2:]), numpy.uint8))
                digest.update(raw)
                tensors[name] = raw.view(dtype).reshape(shape).astype(dtype[1:], copy=False)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise FileFormatError(str(error)) from None
    if not head[8:].startswith(BEGINNING):
        return tensors, metadata, None
    return tensors, metadata, digest.hexdigest().encode("ascii") == head[PLACE]


def _filled(file: BufferedReader, memory: Any) -> Any:
    """`memory`, with the file's next bytes in it."""
    if file.readinto(memory) < len(memory):
        raise FileFormatError("it is cut short")
    return memory


def _in_order(header: dict[str, Any], size: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of the arrays in the order in which they fill `size` bytes without a gap."""
    found, place = [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
        if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**63 for n in (start, end, *shape)):
            raise FileFormatError(f"the array {name!r} has a shape or a place that is impossible")
        if dtype not in DTYPES:
            raise FileFormatError(f"the array {name!r} holds {dtype!r} values; expected {', '.join(DTYPES)}")
        if end - start != math.prod(shape) * int(DTYPES[dtype][2:]):
            raise FileFormatError(f"the array {name!r} has the shape {shape}, but {end - start} bytes")
        if start != place:
            raise FileFormatError(f"the array {name!r} begins at byte {start}; expected {place}")
        found.append((name, DTYPES[dtype], shape))
        place = end
    if place != size:
        raise FileFormatError(f"its arrays have {place} bytes, but {size} follow its header")
    return found
