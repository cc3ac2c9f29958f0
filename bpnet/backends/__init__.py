"""The seam between the mathematics and an array library: one small file per library, loaded when its array arrives.

`backend_of(array)` finds the backend of an array, `get(name)` the one of a library by name.  A library without a file
of its own that follows the Array API standard works through the defaults of `Backend`.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

import array_api_compat

from bpnet.backends.base import Array, Backend
from bpnet.backends.interrupts import current
from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    MissingExtraError,
    MissingPackageError,
    OptionError,
    UnknownNameError,
    closest,
    kind_of,
)

__all__ = [
    "NAMES", "Array", "Backend", "backend_of", "check_device", "common_backend", "definitions", "device_named", "get",
    "reference", "register", "variant",
]  # fmt: skip

NAMES = {"numpy": "numpy", "cupy": "cuda13", "torch": "torch", "jax": "jax"}
"""Libraries with a file of their own, and the extra (or package) that brings each."""

ALIASES = {"cuda": "cupy", "gpu": "cupy", "cpu": "numpy"}
"""Other names by which people ask for one of them."""

DEVICES = {"cuda": "cupy", "numpy": "numpy", "torch": "torch", "jax": "jax"}
"""Where a trainer can compute with NumPy's arrays, and the library that does."""

_by_name: dict[str, Backend] = {}
_by_type: dict[type, Backend] = {}


def get(name: str) -> Backend:
    """The backend of the library called `name`: "numpy", "cupy", "torch" or "jax"."""
    if not isinstance(name, str):
        raise ArgumentError(f"the name of a backend is {kind_of(name)}; expected one of {', '.join(NAMES)}")
    if name in _by_name:
        return _by_name[name]
    if name not in NAMES:
        raise UnknownNameError("backend", name, NAMES, ALIASES.get(name.lower()))
    try:
        module = importlib.import_module(f"bpnet.backends.{name}")
    except ModuleNotFoundError as error:
        if name == "cupy":
            raise MissingExtraError("the cupy backend", "CuPy", NAMES[name]) from error
        raise MissingPackageError(f"the {name} backend", name) from error
    backend: Backend = module.BACKEND
    _by_name[name] = backend
    return backend


def named(name: str) -> Backend:
    """The backend of a library by its name, or by that of its module where bpnet has no file for it."""
    return get(name) if name in NAMES else _by_name.setdefault(name, Backend(importlib.import_module(name)))


def device_named(name: Any) -> tuple[Backend, Any]:
    """The backend that a trainer's `device` stands for, and of "cuda:1" that device; None is the current one.

    "cuda" is CuPy's; "numpy", "torch" and "jax" are where these libraries make arrays.  Raises ArgumentError,
    UnknownNameError or OptionError where `name` is no device, and MissingExtraError or DeviceError where it is missing.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"device is {kind_of(name)}; expected 'cuda', or 'cuda:1' for the second of several")
    kind, colon, number = name.partition(":")
    if kind not in DEVICES:
        library = ALIASES.get(kind.lower(), kind)
        meant = "cuda" if library.lower() == "cupy" else closest(library, DEVICES)
        meant = f"{meant}:{number}" if meant == "cuda" and number.isdecimal() else meant
        raise UnknownNameError("device", name, DEVICES, meant)
    if colon and not (number.isdecimal() and len(number) < 10):
        raise OptionError(f"device is {name!r}; expected a whole number after the colon, as in 'cuda:1'")
    backend = get(DEVICES[kind])
    return backend, backend.get_device(int(number)) if colon else None


def check_device(name: Any) -> str:
    """`name` where it is a device on which arrays can be made."""
    backend, device = device_named(name)
    backend.from_host(0.0, device=device)
    return str(name)


def backend_of(array: Array, name: str = "x") -> Backend:
    """The backend of `array`; `name` is what an error calls the argument.

    Raises ArrayMismatchError where `array` is no array of a library that follows the standard.
    """
    kind = type(array)
    found = _by_type.get(kind)
    if found is None:
        found = _by_type[kind] = _find(array, name)
    return found


def register(kind: type, backend: Backend) -> None:
    """`backend` for arrays of that class, which are of no library."""
    _by_type[kind] = backend


def _find(array: Array, name: str) -> Backend:
    if isinstance(array, type):
        raise ArrayMismatchError(f"{name} is {kind_of(array)}; expected an array")
    if array_api_compat.is_numpy_array(array):
        import numpy

        if isinstance(array, numpy.matrix | numpy.ma.MaskedArray):
            kind = type(array).__name__
            raise ArrayMismatchError(f"{name} is a {kind}, which is not a plain array: pass numpy.asarray({name})")
        return get("numpy")
    if array_api_compat.is_dask_array(array):
        raise ArrayMismatchError(
            f"{name} is a Dask array, whose values are yet to be computed: bp.data.stream reads it chunk by chunk, "
            f"{name}.compute() makes it one array of NumPy"
        )
    for library in ("torch", "jax", "cupy"):
        if getattr(array_api_compat, f"is_{library}_array")(array):
            return get(library)
    if array is None:
        raise ArrayMismatchError(f"{name} is None; expected an array")
    if isinstance(array, str | os.PathLike):
        raise ArrayMismatchError(f"{name} is {kind_of(array)}; expected an array, or of a file bp.data.stream({name})")
    if not array_api_compat.is_array_api_obj(array):
        known = [f"{name}.{method}()" for method in ("to_numpy", "toarray") if hasattr(array, method)]
        hint = known[0] if known else f"numpy.asarray({name})"
        raise ArrayMismatchError(
            f"{name} is {kind_of(array)}; expected an array of NumPy, CuPy, PyTorch, JAX or another library "
            f"that follows the Array API standard, for example {hint}"
        )
    xp: ModuleType = array_api_compat.array_namespace(array)
    return _by_name.setdefault(xp.__name__, Backend(xp))


@contextmanager
def reference() -> Iterator[None]:
    """What is printed is what runs: within `with bp.reference():`, whatever library the arrays are of.

    Each step then calls the layers, losses and optimizers as they are written, in the calling thread and on the whole
    batch at once: nothing is replaced, compiled, captured or cut into blocks.  So a breakpoint in `dense_backward` is
    reached at every step, and a layer that notes what it sees does so every time.  It holds for this thread.
    """
    before = current.reference
    with get("numpy").session(1):
        try:
            current.reference = True
            yield
        finally:
            current.reference = before


_REPLACED = (
    "kernels", "context", "fuse", "map_vector", "blocks", "map_blocks", "total", "add_to", "concat", "writable",
    "compile", "advance", "run_steps", "max_steps_per_launch", "traces",
)  # fmt: skip
"""What `Backend` defines and a library's own class may replace by something faster."""


@cache
def definitions(backend: Backend) -> Backend:
    """The same library by definitions alone: see `reference`."""
    return variant(backend, **{name: vars(Backend)[name] for name in _REPLACED})


def variant(backend: Backend, **attributes: Any) -> Backend:
    """A backend like this one but for some attributes of its class."""
    kind = type(backend)
    made: Backend = object.__new__(type(kind.__name__, (kind,), attributes))
    vars(made).update(vars(backend))
    return made


def common_backend(arrays: Mapping[str, Any], optional: Mapping[str, Any] = MappingProxyType({})) -> Backend:
    """The one backend of all the named arrays; of the `optional` ones, those that are None are passed over.

    Raises ArrayMismatchError where they come from different libraries or lie on different devices.
    """
    (first_name, first), *others = arrays.items()
    backend = backend_of(first, first_name)
    for name, array in (*others, *((n, a) for n, a in optional.items() if a is not None)):
        other = backend_of(array, name)
        if other is not backend:
            raise ArrayMismatchError(
                f"{first_name} belongs to {backend.name}, but {name} to {other.name}: convert one of them, since "
                "nothing is moved between libraries unasked"
            )
        if array is not first and backend.device(array) != backend.device(first):
            raise ArrayMismatchError(
                f"{first_name} lies on device {backend.device(first)}, but {name} on {backend.device(array)}: "
                "move one of them, since nothing is moved between devices unasked"
            )
    return backend
