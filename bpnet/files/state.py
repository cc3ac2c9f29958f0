"""What a callback keeps, as JSON values and arrays: dicts, lists, tuples, numbers, text, and arrays of any library."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from bpnet.backends import Array, Backend
from bpnet.errors import ArgumentError, FileFormatError, kind_of
from bpnet.files.tensors import CODES

Arrays = dict[str, "numpy.ndarray[Any, Any]"]


def pack(what: str, value: Any, backend: Backend, like: Array, arrays: Arrays) -> Any:
    """`value` as JSON has it; its arrays, be they NumPy's or of the library of `like`, are put into `arrays`.

    Raises ArgumentError where there is something else in it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, numpy.generic):
        return pack(what, value.item(), backend, like, arrays)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, list | tuple):
        items = [pack(f"{what}[{i}]", item, backend, like, arrays) for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(f"{what}[{key!r}]", item, backend, like, arrays) for key, item in value.items()}}
    own = isinstance(value, type(like))
    if own or isinstance(value, numpy.ndarray):
        array = numpy.array(backend.to_host(value) if own else value)  # which may be written to meanwhile
        if array.dtype.str[1:] not in CODES:
            raise ArgumentError(
                f"{what} is an array of {array.dtype} values; expected whole numbers, truth values, float32 or float64"
            )
        name = f"state.{len(arrays)}"
        arrays[name] = array
        return {"array" if own else "numpy": name}
    raise ArgumentError(
        f"{what} is {kind_of(value)}; expected numbers, text, arrays, and lists, tuples and dicts of these by text"
    )


def unpack(value: Any, backend: Backend, like: Array, arrays: Mapping[str, Any]) -> Any:
    """What `pack` was given; arrays of the training's library are of that of `like` now, and on its device."""
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise FileFormatError("the state of a callback is damaged")
    ((kind, content),) = value.items()
    if kind == "float":
        return float(content)
    if kind in ("list", "tuple"):
        items = [unpack(item, backend, like, arrays) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {key: unpack(item, backend, like, arrays) for key, item in content.items()}
    array = arrays[content]
    if kind == "numpy":
        return array
    return backend.from_host(array, getattr(backend.xp, array.dtype.name), backend.device(like))


def vector(numbers: Sequence[float]) -> "numpy.ndarray[Any, Any]":
    """Numbers of Python as an array, exactly."""
    return numpy.array(numbers, dtype=numpy.float64)
