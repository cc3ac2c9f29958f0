"""Arrays as they lie in files: .npy, folders of them, and memory maps.

Their bytes are read by system calls and never mapped, so that a file which is cut meanwhile is an error, where reading
a map would end the process, and memory is what was asked for, whatever counts it.
"""

import math
import mmap
import os
import warnings
from typing import Any

import numpy as np

from bpnet.data.streams.sources import Chain, Field, FileState, Into, Source, gather, usable
from bpnet.errors import ArgumentError, DTypeError, FileFormatError, PathError, ShapeError, path_error

SEEK = 2**13
"""Bytes that can be read in the time that another call takes."""


class RawRows(Source):
    """An array in a file, `offset` bytes from its start; strides as NumPy has them, those of the rows the largest."""

    def __init__(
        self,
        path: str,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.state, self.name, self.offset, self.count = FileState(path), path, offset, shape[0]
        self.fields, self.dtype, self.shape = (Field(shape[1:], dtype),), dtype, shape[1:]
        whole = tuple(math.prod(shape[i + 1 :]) * dtype.itemsize for i in range(len(shape)))
        self.strides = whole if strides is None else strides
        self.plain = self.strides == whole
        self.columns = not self.plain and self.strides == tuple(
            math.prod(shape[:i]) * dtype.itemsize for i in range(len(shape))
        )
        """Whether a row's values are far apart, as in Fortran's order."""
        self.extent = dtype.itemsize + sum((n - 1) * s for n, s in zip(shape[1:], self.strides[1:], strict=True))
        if not self.columns and (min(self.strides) < 0 or self.extent > max(self.strides[0], whole[0])):
            raise ArgumentError(f"{path} is mapped in a way that can't be streamed, with strides of {self.strides}")
        end = offset + (whole[0] * self.count if self.columns else (self.count - 1) * self.strides[0] + self.extent)
        if self.state.size < end:
            raise PathError(f"{path} has {self.state.size:,} bytes of {end:,}: it has been cut off")

    def read(self, start: int, stop: int, into: Into = ()) -> Any:
        self.state.check()
        rows = stop - start
        try:
            with open(self.state.path, "rb", buffering=0) as file:
                if self.columns:
                    width = math.prod(self.shape)
                    found, size = np.empty((width, rows), self.dtype), self.dtype.itemsize
                    for column in range(width):
                        self._fill(file, self.offset + (column * self.count + start) * size, found[column])
                    return [found.reshape(*self.shape[::-1], rows).transpose()]
                at = self.offset + start * self.strides[0]
                if self.plain:
                    out = usable(into, 0, self.dtype)
                    out = np.empty((rows, *self.shape), self.dtype) if out is None else out
                    self._fill(file, at, out)
                    return [out]
                memory = np.empty((rows - 1) * self.strides[0] + self.extent, "u1")
                self._fill(file, at, memory)
                return [np.ndarray((rows, *self.shape), self.dtype, memory, 0, self.strides)]
        except OSError as error:
            raise path_error(f"{self.name} can't be read", error) from error

    def gather(self, rows: Any) -> Any:
        """Each run of rows by a call of its own, with what is between where that is little."""
        size = self.strides[0]
        if not self.plain or len(rows) * SEEK >= (int(rows[-1]) - int(rows[0])) * size:  # to read all takes no longer
            return gather(self, rows, max(1, SEEK // size))
        self.state.check()
        out = np.empty((len(rows), *self.shape), self.dtype)
        ends = np.r_[np.flatnonzero(np.diff(rows) != 1) + 1, len(rows)]
        try:
            with open(self.state.path, "rb", buffering=0) as file:
                at = 0
                for end in ends.tolist():
                    self._fill(file, self.offset + int(rows[at]) * size, out[at:end])
                    at = end
        except OSError as error:
            raise path_error(f"{self.name} can't be read", error) from error
        return [out]

    def _fill(self, file: Any, offset: int, out: Any) -> None:
        """Read the bytes of a contiguous array."""
        view, done = memoryview(out.reshape(-1).view("u1")), 0
        file.seek(offset)
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise self.state.cut(offset + done)
            done += count

    def fingerprint(self) -> str:
        return repr([os.path.basename(self.name), super().fingerprint()])


def npy(path: str) -> Source:
    """The array of a .npy file; raises PathError or FileFormatError."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except OSError as error:
        raise path_error(f"{path} can't be read", error) from error
    except ValueError as error:
        raise FileFormatError(f"{path} is not a .npy file, or is damaged: {error}") from error
    if dtype.hasobject:
        raise DTypeError(f"{path} holds Python objects; expected numbers")
    if not shape or shape[0] == 0:
        raise ShapeError(f"{path} has the shape {shape}; expected rows")
    strides = tuple(math.prod(shape[:i]) * dtype.itemsize for i in range(len(shape))) if fortran else None
    return RawRows(path, offset, shape, dtype, strides)


def npy_folder(path: str, names: list[str]) -> Source:
    """The arrays of the .npy files of a folder, one after the other."""
    return Chain(path, [npy(os.path.join(path, name)) for name in names])


def mapped(x: np.ndarray[Any, Any]) -> Source | None:
    """The file that an array is a map of, or a view of such a map; None where it is none, or has been written to."""
    part: Any = x
    root = None
    while part is not None and not isinstance(part, mmap.mmap):
        if isinstance(part, np.memmap):
            root = part
        part = part.obj if isinstance(part, memoryview) else getattr(part, "base", None)
    if part is None or root is None or root.filename is None or root.mode == "c" or x.ndim == 0:
        return None
    offset = root.offset + x.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return RawRows(str(root.filename), offset, x.shape, x.dtype, x.strides)
