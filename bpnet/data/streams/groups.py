"""Arrays by their names in Zarr and HDF5 files, and what a user may pass that is batches."""

import os
from typing import Any

from bpnet.errors import (
    ArgumentError,
    MissingPackageError,
    NoSuchPathError,
    PathError,
    UnknownNameError,
    kind_of,
    path_error,
)

HDF5 = (".h5", ".hdf5", ".hdf", ".he5")


def opened(path: str) -> Any:
    """What a Zarr or HDF5 file holds, opened to read: an array or a group; None where it is none by its name."""
    if path.endswith(HDF5):
        try:
            import h5py
        except ImportError as error:
            raise MissingPackageError(f"a stream of {path}", "h5py") from error
        try:
            return h5py.File(path, "r")
        except FileNotFoundError:
            raise NoSuchPathError(f"x is the path {path}, which is not there") from None
        except OSError as error:  # what HDF5 says of a file that is none, or has been cut off
            raise path_error(f"{path} can't be read as HDF5 ({error})", error) from error
    if path.rstrip("/").endswith(".zarr"):
        try:
            import zarr
        except ImportError as error:
            raise MissingPackageError(f"a stream of {path}", "zarr") from error
        if not os.path.exists(path):
            raise NoSuchPathError(f"x is the path {path}, which is not there")
        try:
            return zarr.open(path, mode="r")
        except Exception as error:  # each version has errors of its own
            raise PathError(f"{path} can't be read as Zarr: {error}") from error
    return None


def group_of(x: Any) -> Any:
    """The group of Zarr or HDF5 that x is or names; None where it is none."""
    if isinstance(x, str | os.PathLike):
        x = opened(os.fspath(x))
    kind = type(x)
    return x if kind.__module__.partition(".")[0] in ("zarr", "h5py") and kind.__name__ in ("Group", "File") else None


def members(group: Any, given: Any, columns: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
    """x, y and the weights that are arrays of a group."""
    name = os.fspath(given) if isinstance(given, str | os.PathLike) else "the group"
    known = sorted(str(key) for key in group)

    def member(what: str, key: Any) -> Any:
        if not isinstance(key, str):
            return key  # an array of its own
        if key not in group:
            raise UnknownNameError(f"array of {name}, which is {what},", key, known)
        if not hasattr(group[key], "shape"):
            raise ArgumentError(f"{what} is {key!r}, which is a group in {name}; expected an array")
        return group[key]

    if columns is None:
        rest = [key for key in known if key not in (y, weight)]
        if len(rest) != 1:
            raise ArgumentError(f"{name} has the arrays {', '.join(known)}: name that of x by columns=")
        columns = rest[0]
    if isinstance(columns, dict):
        return {k: member("x", v) for k, v in columns.items()}, member("y", y), member("sample_weight", weight)
    if not isinstance(columns, str):
        raise ArgumentError(
            f"columns is {kind_of(columns)}; expected the name of an array of {name}, or a dict of them"
        )
    return member("x", columns), member("y", y), member("sample_weight", weight)


def is_batches(x: Any) -> bool:
    """Whether x is batches, or gives them."""
    if isinstance(x, list):
        return bool(x) and isinstance(x[0], tuple | list)
    if isinstance(x, str | os.PathLike | dict | tuple) or hasattr(x, "fields"):
        return False
    return not is_sliced(x) and (callable(x) or hasattr(x, "__iter__"))


def is_sliced(x: Any) -> bool:
    """Whether x has rows that can be sliced."""
    return (
        not isinstance(x, type)
        and hasattr(x, "__getitem__")
        and (hasattr(x, "__len__") or bool(getattr(x, "shape", ())))
    )
