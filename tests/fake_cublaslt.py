"""cuBLASLt's bindings as NumPy plays them: descriptors are remembered, and products computed on host memory.

Matrices are read as the library reads them, by columns from an address, and what its documentation excludes is refused.
"""

import ctypes
import itertools
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

WORKSPACE = 32 * 2**20


def tf32(a: np.ndarray) -> np.ndarray:
    """float32 values rounded to 11 significant bits."""
    bits = a.view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def bfloat16(a: np.ndarray) -> np.ndarray:
    """float32 values rounded to 8 significant bits."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


class Error(Exception):
    """As the bindings report a status."""


class Result:
    """One result of the heuristic: the algorithm of 64 bytes, and the workspace it wants."""

    def __init__(self, size: int) -> None:
        assert size == 1
        self.memory = (ctypes.c_uint64 * 12)()
        self.ptr = ctypes.addressof(self.memory)

    @property
    def workspace_size(self) -> int:
        return self.memory[8]

    @property
    def state(self) -> int:
        return self.memory[9] & 0xFFFFFFFF


BLAS = SimpleNamespace(
    ComputeType=IntEnum("ComputeType", {"COMPUTE_32F": 68, "COMPUTE_64F": 70, "COMPUTE_32F_FAST_TF32": 77}),
    Operation=IntEnum("Operation", {"N": 0, "T": 1}),
)


class Fake:
    """The bindings of cuBLASLt: descriptors as dictionaries, products by NumPy on the memory that addresses name."""

    cuBLASLtError = Error
    MatmulHeuristicResult = Result
    Epilogue = IntEnum(
        "Epilogue",
        {"DEFAULT": 1, "RELU": 2, "BIAS": 4, "RELU_BIAS": 6},
    )
    MatmulDescAttribute = IntEnum(
        "MatmulDescAttribute",
        {"TRANSA": 3, "TRANSB": 4, "EPILOGUE": 7, "BIAS_POINTER": 8},
    )
    MatrixLayoutAttribute = IntEnum("MatrixLayoutAttribute", {"BATCH_COUNT": 5, "STRIDED_BATCH_OFFSET": 6})
    MatmulPreferenceAttribute = IntEnum(
        "MatmulPreferenceAttribute",
        {
            "MAX_WORKSPACE_BYTES": 1,
            "REDUCTION_SCHEME_MASK": 3,
            **{f"MIN_ALIGNMENT_{m}_BYTES": i for m, i in zip("ABCD", range(5, 9), strict=True)},
        },
    )

    def __init__(self) -> None:
        self.alive: dict[int, Any] = {}
        self.numbers = itertools.count(1000)
        self.lacks: set[str] = set()
        """Epilogues for which the heuristic knows no algorithm."""
        self.stacks: dict[int, dict[int, int]] = {}
        """Of layouts of several matrices, how many there are and how many elements they are apart."""
        self.asked: list[str] = []
        self.done: list[str] = []
        """The epilogues that were asked for, and those of the products that were computed."""
        self.scratch = 0xF00D
        """Where the workspace lies."""
        self.streams: list[int] = []
        self.algorithms: list[tuple[int, list[int]]] = []

    def _new(self, value: Any) -> int:
        number = next(self.numbers)
        self.alive[number] = value
        return number

    def create(self) -> int:
        return self._new("handle")

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        return self._new({"compute": int(compute), "scale": scale, self.MatmulDescAttribute.EPILOGUE: 1})

    def matrix_layout_create(self, kind: int, rows: int, columns: int, leading: int) -> int:
        assert rows <= leading
        return self._new((kind, rows, columns, leading))

    def get_matrix_layout_attribute_dtype(self, attribute: int) -> Any:
        return {5: np.int32, 6: np.int64}[attribute]

    def matrix_layout_set_attribute(self, number: int, attribute: int, place: int, size: int) -> None:
        kind = np.dtype(self.get_matrix_layout_attribute_dtype(attribute))
        assert size == kind.itemsize
        value = int(np.frombuffer(ctypes.string_at(place, size), kind)[0])
        self.stacks.setdefault(number, {})[attribute] = value

    def matmul_preference_create(self) -> int:
        return self._new({})

    def destroy(self, number: int) -> None:
        del self.alive[number]

    matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = destroy

    def get_matmul_desc_attribute_dtype(self, attribute: int) -> Any:
        return {3: np.int32, 4: np.int32, 7: np.uint32, 8: np.int64}[attribute]

    def get_matmul_preference_attribute_dtype(self, attribute: int) -> Any:
        return np.uint64 if attribute == 1 else np.uint32

    def matmul_desc_set_attribute(self, number: int, attribute: int, place: int, size: int) -> None:
        kind = np.dtype(self.get_matmul_desc_attribute_dtype(attribute))
        assert size == kind.itemsize
        self.alive[number][attribute] = int(np.frombuffer(ctypes.string_at(place, size), kind)[0])

    def matmul_preference_set_attribute(self, number: int, attribute: int, place: int, size: int) -> None:
        kind = np.dtype(self.get_matmul_preference_attribute_dtype(attribute))
        assert size == kind.itemsize
        self.alive[number][attribute] = int(np.frombuffer(ctypes.string_at(place, size), kind)[0])

    def matmul_algo_get_heuristic(
        self,
        handle: int,
        number: int,
        a: int,
        b: int,
        c: int,
        d: int,
        preference: int,
        wanted: int,
        at: int,
        count: int,
    ) -> None:
        assert self.alive[handle] == "handle"
        assert wanted == 1
        name = self.Epilogue(self.alive[number][7]).name
        self.asked.append(name)
        if name in self.lacks:
            raise Error("not supported")
        limits = self.alive[preference]
        assert limits[1] == WORKSPACE
        assert limits[7] == limits[8]
        self.algorithms.append((number, [limits[5], limits[6], limits[8]]))
        results = ctypes.cast(at, ctypes.POINTER(ctypes.c_uint64))
        results[0], results[8] = len(self.algorithms) - 1, 4096
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int32))[0] = 1

    def matmul(
        self, handle: int, number: int, alpha: int, a: int, of_a: int, b: int, of_b: int, beta: int, c: int, of_c: int,
        d: int, of_d: int, algorithm: int, scratch: int, size: int, stream: int,
    ) -> None:  # fmt: skip
        if of_a in self.stacks:
            count, layouts = self.stacks[of_a][5], (of_a, of_b, of_c)
            stacks = [self.stacks.pop(layout) for layout in layouts]
            sizes = [
                {0: 4, 1: 8, 14: 2}[self.alive[layout][0]] * s[6] for layout, s in zip(layouts, stacks, strict=True)
            ]
            assert all(s[5] == count for s in stacks)
            limits = self.algorithms[ctypes.cast(algorithm, ctypes.POINTER(ctypes.c_uint64))[0]][1]
            limits[:], kept = [1, 1, 1], list(limits)
            for i in range(count):
                here = (a + i * sizes[0], of_a, b + i * sizes[1], of_b)
                there = (c + i * sizes[2], of_c, d + i * sizes[2], of_d)
                Fake.matmul(self, handle, number, alpha, *here, beta, *there, algorithm, scratch, size, stream)
            limits[:] = kept
            self.stacks |= dict(zip(layouts, stacks, strict=True))
            return
        told = self.alive[number]
        planned, limits = self.algorithms[ctypes.cast(algorithm, ctypes.POINTER(ctypes.c_uint64))[0]]
        assert planned == number
        assert not any(place % limit for place, limit in zip((a, b, d), limits, strict=True)), (
            "planned for other places"
        )
        assert (c, of_c) == (d, of_d)
        self.check_scratch(scratch, size)
        scale = ctypes.c_double if told["scale"] == 1 else ctypes.c_float
        assert scale.from_address(alpha).value == 1.0
        added = scale.from_address(beta).value
        first, second = (read(self._columns(place, of)) for place, of in ((a, of_a), (b, of_b)))
        if told["compute"] == BLAS.ComputeType.COMPUTE_32F_FAST_TF32:
            first, second = tf32(first), tf32(second)
        first = (first.T if told[3] else first).astype("float64")
        second = (second.T if told[4] else second).astype("float64")
        out = self._columns(d, of_d)
        z = first @ second + (added * read(out) if added else 0.0)  # beta = 0: out is not read
        name = self.Epilogue(told[7]).name
        if name.endswith("BIAS"):
            z = z + read(self._vector(told[8], out))[:, None]
        write(out, np.fmax(z, 0.0) if "RELU" in name else z)  # 0 where z is not a number
        self.done.append(name)
        self.streams.append(stream)

    def check_scratch(self, place: int, size: int) -> None:
        """Whether a workspace is what the algorithm wants, where the allocator put it."""
        assert (place, size) == (self.scratch, 4096)

    def _vector(self, place: int, out: np.ndarray) -> np.ndarray:
        assert place % 16 == 0
        return memory(place, len(out), out.dtype)

    def _columns(self, place: int, number: int) -> np.ndarray:
        """The matrix of a layout at an address."""
        kind, rows, columns, leading = self.alive[number]
        dtype = np.dtype({0: "float32", 1: "float64", 14: "uint16"}[kind])
        return memory(place, leading * columns, dtype).reshape(columns, leading).T[:rows]


def read(a: np.ndarray) -> np.ndarray:
    """The values of an array, of which words of 16 bits are bfloat16."""
    return (a.astype("uint32") << 16).view("float32") if a.dtype == np.uint16 else a


def write(a: np.ndarray, values: np.ndarray) -> None:
    """a <- values, in the type of `a`."""
    a[...] = bfloat16(values).view("uint32") >> 16 if a.dtype == np.uint16 else values


def memory(place: int, count: int, dtype: Any) -> np.ndarray:
    """What lies at an address."""
    kind = np.dtype(dtype)
    return np.frombuffer((ctypes.c_char * (count * kind.itemsize)).from_address(place), kind)
