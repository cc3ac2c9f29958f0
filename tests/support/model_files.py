"""Model files made by hand: with other contents than `Trainer.save` would write, and the right hash of them."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.numpy import load_file, save

NO_HASH = "0" * 64


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the description in a file, as the package safetensors finds them."""
    with safetensors.safe_open(path, framework="numpy") as file:
        text = file.metadata()["bpnet"]
    description = json.loads(text)
    del description["sha256"]
    return load_file(path), description


def text_of(description: Mapping[str, Any]) -> str:
    """A description as files have it, with no hash yet."""
    rest = dict(description)
    return json.dumps({"format": rest.pop("format", 2), "sha256": NO_HASH, **rest}, separators=(",", ":"))


def made(tensors: Mapping[str, Any], description: Any) -> bytes:
    """A file that is sound but for what is in it; a description that is text stays as it is."""
    text = description if isinstance(description, str) else text_of(description)
    return sealed(save(dict(tensors), metadata={"bpnet": text}))


def head(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, JSON as an object or as it stands."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def split(whole: bytes) -> tuple[bytes, bytes]:
    """Header and data of a file."""
    (length,) = struct.unpack("<Q", whole[:8])
    return whole[8 : 8 + length], whole[8 + length :]


def digest(text: str, tensors: Any) -> str:
    """What files have as their hash: of the description, and of name, type, shape and bytes of each array."""
    found = hashlib.sha256(f"{len(text.encode())} ".encode() + text.replace(NO_HASH, "", 1).encode())
    for name, tensor in sorted(tensors):
        found.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode() + bytes(tensor["data"]))
    return found.hexdigest()


def sealed(whole: bytes) -> bytes:
    """A file with the right hash in the place of zeros; as it is where it has no such place, or no arrays."""
    try:
        tensors = safetensors.deserialize(whole)
        text = json.loads(split(whole)[0])["__metadata__"]["bpnet"]
        found = digest(text, tensors)
    except (safetensors.SafetensorError, LookupError, TypeError, ValueError, RecursionError):
        return whole
    return whole.replace(NO_HASH.encode(), found.encode(), 1)


def unsealed(whole: bytes) -> bytes:
    """A file with zeros in the place of its hash."""
    mark = whole.find(b'sha256\\":\\"') + len(b'sha256\\":\\"')
    return whole[:mark] + NO_HASH.encode() + whole[mark + 64 :]
