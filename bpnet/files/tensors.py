"""The .safetensors format: named arrays and a description, with a SHA-256 hash of both.

    8 bytes   the header's length, as are all numbers of the lowest byte first
    header    JSON: {"__metadata__": {"bpnet": TEXT}, name: {"dtype": ..., "shape": ..., "data_offsets": ...}, ...}
    data      the arrays, one after the other

TEXT is JSON too: {"format": 2, "sha256": ..., and the description}.  The hash is of TEXT, without the hash, and of the
name, type, shape and bytes of every array.

Files are read by the package safetensors, which is meant to be given what comes from strangers.  Written they are here,
byte for byte as it does: it would copy the arrays twice, or replace files by its own rules.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from bpnet.disk import open_ordinary
from bpnet.errors import ArgumentError, FileFormatError, OtherFormatError, OutOfMemoryError

if TYPE_CHECKING:
    import numpy

    Tensors = dict[str, numpy.ndarray[Any, Any]]

FORMAT = 2
ENTRY = "bpnet"
"""The name of the description among a file's texts."""

LARGEST_HEADER = 16 * 2**20
"""Bytes, beyond an eighth of the file: the package takes up to four times as much to read it, and refuses 100 MB."""
MARGIN = 48 * 2**20
"""Bytes that a header may take in memory beyond the size of the file, by COSTS."""
COSTS = {"{": 1000, "[": 100, ",": 60, ":": 150, '"': 20}
"""Bytes that each such character takes at most once the JSON it stands in is read: as an array's entry, a list, ..."""

DTYPES = {
    "U64": "<u8", "I64": "<i8", "F64": "<f8", "F32": "<f4", "U32": "<u4", "I32": "<i4", "U16": "<u2", "I16": "<i2",
    "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
"""What NumPy calls the types, in the order in which the package lays them out, so that each is aligned."""
CODES = {dtype[1:]: code for code, dtype in DTYPES.items()}

BEGINNING = re.compile(r'\{"format": ?([0-9]{1,9})(?=[,}])(?:,"sha256":"([0-9a-f]{64})"(?=[,}]))?')


def write(file: IO[bytes], tensors: "Tensors", description: Mapping[str, Any]) -> None:
    """Write arrays of numbers or truth values, and a description that JSON can hold.

    The same ones give the same bytes.  Raises ArgumentError where they are more than a file may have.
    """
    import numpy

    no_hash = "0" * 64
    text = json.dumps({"format": FORMAT, "sha256": no_hash, **description}, separators=(",", ":"))
    odd = {name: a.dtype for name, a in tensors.items() if a.dtype.str[1:] not in CODES}
    if odd:
        (name, dtype), *_ = odd.items()
        raise ArgumentError(f"the array {name!r} holds {dtype} values; expected numbers or truth values")
    order = {code: place for place, code in enumerate(DTYPES)}
    coded = [(stored(name), CODES[a.dtype.str[1:]], a) for name, a in tensors.items()]
    parts = {
        name: (code, a.shape, numpy.ascontiguousarray(a, DTYPES[code]))
        for name, code, a in sorted(coded, key=lambda part: (order[part[1]], part[0]))
    }
    text = text.replace(no_hash, _digest(text, parts), 1)
    header: dict[str, Any] = {"__metadata__": {ENTRY: text}}
    offset = 0
    for name, (dtype, shape, array) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    head += b" " * (-len(head) % 8)  # so that the arrays are aligned
    if _is_too_much(head, len(head) + offset):
        raise ArgumentError(
            f"metadata, settings and whatever else describes the model take {len(head):,} bytes, which are more than a "
            "file of this size may have: keep large ones in a file of their own"
        )
    file.write(struct.pack("<Q", len(head)) + head)
    for _, _, array in parts.values():
        file.write(_bytes(array))


def read(path: str | os.PathLike[str]) -> "tuple[dict[str, Any], Tensors]":
    """The description and the arrays of a file.

    It is read into memory once, so that nobody can change what has been checked, and takes no more than twice its size
    there and MARGIN.  Raises OSError where there is no ordinary file, and FileFormatError where it is not one that
    `write` wrote, bit for bit.
    """
    import numpy

    found, head = _parts(path)
    try:
        header = json.loads(head, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        cut = "not fully covered" in str(error)
        raise FileFormatError(f"{NOT_THE_FORMAT}: {'a part of it is missing' if cut else error}") from None
    text: str = (header.get("__metadata__") or {}).get(ENTRY, "")
    del header, head
    beginning = BEGINNING.match(text)
    if beginning is None:
        raise FileFormatError("this is a .safetensors file, but not a bpnet model")
    version, digest = int(beginning[1]), beginning[2]
    if version > FORMAT:
        raise OtherFormatError(f"the file was written by a newer bpnet (format {version}, this reads {FORMAT})")
    if version < FORMAT:
        raise OtherFormatError(f"the file was written by an older bpnet (format {version}, this reads {FORMAT})")
    if digest is None:
        raise FileFormatError("the file is damaged: it has no SHA-256 hash")
    parts = {name: (tensor["dtype"], tensor["shape"], tensor["data"]) for name, tensor in found}
    if _digest(text, parts) != digest:
        raise FileFormatError("the file is damaged: its content does not match its SHA-256 hash")
    tensors = {}
    try:
        description = json.loads(text, object_pairs_hook=_unique)
        for stored_name, tensor in found:
            name = _name(stored_name)
            if tensor["dtype"] not in DTYPES:
                raise FileFormatError(f"the array {name!r} holds {tensor['dtype']!r}; expected {', '.join(DTYPES)}")
            dtype = DTYPES[tensor["dtype"]]
            array = numpy.frombuffer(tensor.pop("data"), dtype).reshape(tensor["shape"])
            tensors[name] = array.astype(dtype[1:], copy=not array.flags.writeable)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"the file is damaged: {error}") from None
    if len(tensors) != len(found) or not isinstance(description, dict):
        raise FileFormatError("the file is damaged: what describes it is not what bpnet writes")
    return description, tensors


NOT_THE_FORMAT = "this is not a .safetensors file that can be read"


def _parts(path: str | os.PathLike[str]) -> tuple[list[tuple[str, Any]], bytes]:
    """What the package finds in a file, its arrays by name; and the file's header."""
    with open_ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not size:
            raise FileFormatError(f"{NOT_THE_FORMAT}: it is empty")
        if not 2 <= length <= size - 8:
            raise FileFormatError(f"{NOT_THE_FORMAT}: it begins with no header")
        if _is_too_long(length, size) or _is_too_much(file.read(length), size):
            raise FileFormatError(f"{NOT_THE_FORMAT}: its header would take more memory than a file of its size may")
        file.seek(0)
        data = file.read(size)
    head = data[8 : 8 + length]
    if int.from_bytes(data[:8], "little") != length or _is_too_much(head, size):
        raise FileFormatError(f"{NOT_THE_FORMAT}: it was written to while it was read")
    import safetensors

    deserialize: Any = safetensors.deserialize
    try:
        return deserialize(data), head
    except safetensors.SafetensorError as error:
        cut = "not fully covered" in str(error)
        raise FileFormatError(f"{NOT_THE_FORMAT}: {'a part of it is missing' if cut else error}") from None
    except MemoryError:
        raise OutOfMemoryError("no memory for its arrays") from None


def _is_too_long(length: int, size: int) -> bool:
    return length > min(LARGEST_HEADER + size // 8, 100_000_000)


def _is_too_much(header: bytes, size: int) -> bool:
    """Whether a header takes more bytes than a file of that size may have, or more memory once it is read."""
    cost = sum(cost * header.count(character.encode()) for character, cost in COSTS.items())
    return _is_too_long(len(header), size) or cost > MARGIN + size


def _digest(text: str, parts: Mapping[str, tuple[str, Any, Any]]) -> str:
    """The hash of a description without its hash, and of arrays, each a type, a shape and bytes, by name."""
    raw = memoryview(text.encode("utf-8"))
    match = BEGINNING.match(text)
    assert match is not None
    start, stop = match.span(2)
    found = hashlib.sha256(f"{len(raw)} ".encode())
    found.update(raw[:start])
    found.update(raw[stop:])
    for name, (dtype, shape, data) in sorted(parts.items()):
        found.update(json.dumps([name, dtype, list(shape)]).encode())
        found.update(_bytes(data))
    return found.hexdigest()


def _bytes(array: Any) -> memoryview:
    """What an array without gaps, or a bytearray, has in memory."""
    if isinstance(array, bytes | bytearray):
        return memoryview(array)
    return memoryview(array.reshape(-1).view("u1"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError where it has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the same key stands twice in one JSON object")
    return found


def stored(name: str) -> str:
    """The name as files have it, where what JSON would escape is escaped, so that JSON writes each name in one way."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _name(stored_name: str) -> str:
    """The name that `stored` was given; raises FileFormatError where there is none."""
    with contextlib.suppress(ValueError):
        name: str = json.loads(f'"{stored_name}"')
        if stored(name) == stored_name:
            return name
    raise FileFormatError(f"there is an array {stored_name!r}, which the model does not have")
