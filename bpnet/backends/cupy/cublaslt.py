"""Products of matrices by cuBLASLt, through NVIDIA's own bindings (nvmath-python), with their epilogues.

CuPy's product goes through a cuBLAS handle, which refuses a stream that is being captured in a CUDA graph, takes its
precision from the whole process, and stores a result before anything can be added to it.  Here every call names its
stream, its workspace and its precision, and waits for nothing.  What a product needs besides (descriptors, and the
algorithm that the library's heuristic names first, so that the same problem is always computed the same way) is planned
once and kept.

cuBLASLt counts in columns, where the row-major matrix M of C order is M^T.  So C = A B of rows is computed as
C^T = B^T A^T: the second factor goes first, and nothing is copied.
"""

import logging
import threading
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import cupy
import numpy

WORKSPACE = 32 * 2**20
"""Bytes that an algorithm may use besides at most, as NVIDIA advises for Hopper."""

COMPUTE_TYPE = 2
"""The reduction scheme of split-K in which parts of a sum lie in the workspace, in the type in which it is computed."""

KINDS = {"float32": 0, "float64": 1, "bfloat16": 14}
"""Types of elements as cudaDataType numbers them."""

COMPUTE = {
    ("float32", "float32"): "COMPUTE_32F",
    ("float32", "tf32"): "COMPUTE_32F_FAST_TF32",
    ("bfloat16", "bfloat16"): "COMPUTE_32F",
    ("float64", "float32"): "COMPUTE_64F",  # the default precision is that of the data
}
"""How products and sums are computed, by the type of the factors and the precision asked for."""


@lru_cache(maxsize=1)
def bindings() -> tuple[Any, Any] | str:
    """The bindings of cuBLASLt, and of cuBLAS for its names; or what is missing: they, the library or the driver."""
    if cupy.cuda.runtime.is_hip:
        return "cuBLASLt is for NVIDIA's devices"
    try:
        from nvmath.bindings import cublas, cublasLt

        cublasLt.get_version()  # loads the library
    except Exception as error:  # an installation can be broken in any way; CuPy's own products remain
        logging.getLogger("bpnet").debug("products by CuPy, without cuBLASLt: %s", error)
        return str(error)
    return cublasLt, cublas


def available() -> bool:
    """Whether products can be computed here."""
    return not isinstance(bindings(), str)


Factor = tuple[bool, int, int]
"""Of a factor: whether it is stored transposed, how many elements its stored rows are apart, and those of a stack."""


@dataclass(frozen=True)
class Problem:
    """out <- a b, or out <- out + a b, of row-major matrices, followed by an epilogue.

    `dtype` is the type of the factors and `result` that of out.  Of a `stack` of such products the results follow each
    other.  Epilogues: DEFAULT, nothing; BIAS, RELU and RELU_BIAS, a vector of the type of out is added to every row,
    and then max(., 0) is taken.
    """

    rows: int
    columns: int
    inner: int
    a: Factor
    b: Factor
    dtype: str
    result: str
    precision: str
    epilogue: str
    accumulate: bool
    stack: int = 1

    @property
    def arithmetic(self) -> str:
        """The precision, that of float64 data by their own name."""
        return "float64" if self.dtype == "float64" else self.precision


Addresses = tuple[int, int, int, int]
"""Addresses of a, b, out and the epilogue's vector (0: none)."""


def plan(problem: Problem, addresses: Addresses) -> "Plan | None":
    """How a product of what lies at these addresses is computed; None where cuBLASLt is missing or has none for it.

    The library's heuristic is asked here, which may not be done while a stream is captured.
    """
    if not available() or (problem.dtype, problem.precision) not in COMPUTE:
        return None
    if addresses[3] % 16:
        return None  # algorithms that read 16 bytes of a vector at a time do not say so
    device, aligned = cupy.cuda.runtime.getDevice(), tuple(min(place & -place, 256) for place in addresses)
    if (device, problem) in refused:
        return None
    try:
        return _plan(device, problem, aligned)
    except cast(Any, bindings())[0].cuBLASLtError as error:  # as where there is no memory for its own
        logging.getLogger("bpnet").warning("cuBLASLt can't plan a product, %s: %s", problem, error)
        return None


refused: set[tuple[int, Problem]] = set()
"""Those that the library planned on a device, and then would not compute."""


def forget() -> None:
    """Ask the library again for what it had no product for."""
    refused.clear()
    _plan.cache_clear()


@lru_cache(maxsize=1024)
def _plan(device: int, problem: Problem, aligned: Addresses) -> "Plan | None":
    """How a product is computed on memory aligned to so many bytes; None where the library knows no way."""
    made = Plan(device, problem)
    return made if made.find(aligned) else None


class Plan:
    """Descriptors of one product, and the algorithm for it.  Addresses are given anew at every call."""

    def __init__(self, device: int, problem: Problem) -> None:
        self.lt, blas = cast(tuple[Any, Any], bindings())
        self.device, self.problem, p = device, problem, problem
        real = "float64" if p.result == "float64" else "float32"
        self.factors = numpy.array([1.0, float(p.accumulate)], real)  # alpha, beta
        self.alpha, self.beta = self.factors.ctypes.data, self.factors.ctypes.data + self.factors.itemsize
        self.description = self.lt.matmul_desc_create(blas.ComputeType[COMPUTE[p.dtype, p.precision]], KINDS[real])
        self.layouts: list[int] = []
        close = weakref.finalize(self, _destroy, self.lt, self.description, self.layouts)
        close.atexit = False  # the process ends with its device
        names: Any = self.lt.MatrixLayoutAttribute
        for dtype, rows, columns, (transposed, stride, apart) in (
            (p.dtype, p.inner, p.columns, p.b),
            (p.dtype, p.rows, p.inner, p.a),
            (p.result, p.rows, p.columns, (False, p.columns, p.rows * p.columns)),
        ):
            seen = (rows, columns) if transposed else (columns, rows)  # which counts in columns
            layout = self.lt.matrix_layout_create(KINDS[dtype], *seen, stride)
            self.layouts.append(layout)
            if p.stack > 1:
                self.set("matrix_layout", layout, names.BATCH_COUNT, p.stack)
                self.set("matrix_layout", layout, names.STRIDED_BATCH_OFFSET, apart)
        names, turned = self.lt.MatmulDescAttribute, (blas.Operation.N, blas.Operation.T)
        self.set("matmul_desc", self.description, names.TRANSA, turned[p.b[0]])
        self.set("matmul_desc", self.description, names.TRANSB, turned[p.a[0]])
        self.set("matmul_desc", self.description, names.EPILOGUE, self.lt.Epilogue[p.epilogue])
        self.vector = numpy.zeros(1, numpy.int64)
        self.vector_name, self.vector_at = int(names.BIAS_POINTER), self.vector.ctypes.data
        self.lock = threading.Lock()

    def set(self, kind: str, descriptor: int, attribute: Any, value: int) -> None:
        """Set an attribute of a descriptor of a kind, as the bindings call it."""
        held = numpy.array([value], getattr(self.lt, f"get_{kind}_attribute_dtype")(attribute))
        getattr(self.lt, f"{kind}_set_attribute")(descriptor, attribute, held.ctypes.data, held.nbytes)

    def point(self, vector: int) -> None:
        """Give the address of the epilogue's vector."""
        if vector:
            self.vector[0] = vector
            self.lt.matmul_desc_set_attribute(self.description, self.vector_name, self.vector_at, 8)

    def find(self, aligned: Addresses) -> bool:
        """Ask the library's heuristic for the algorithm, for memory aligned to so many bytes; whether there is one."""
        of_a, of_b, of_out, of_vector = aligned
        handle = _handle(self.lt, self.device)
        self.point(of_vector)  # whose alignment it reads from the address
        preference = self.lt.matmul_preference_create()
        names = self.lt.MatmulPreferenceAttribute
        try:
            self.set("matmul_preference", preference, names.MAX_WORKSPACE_BYTES, WORKSPACE)
            if self.problem.result == "bfloat16":  # parts of a sum are added up unrounded
                self.set("matmul_preference", preference, names.REDUCTION_SCHEME_MASK, COMPUTE_TYPE)
            for matrix, value in zip("ABCD", (of_b, of_a, of_out, of_out), strict=True):
                self.set("matmul_preference", preference, names[f"MIN_ALIGNMENT_{matrix}_BYTES"], value)
            self.algorithm = self.lt.MatmulHeuristicResult(1)
            count = numpy.zeros(1, numpy.int32)
            self.lt.matmul_algo_get_heuristic(
                handle, self.description, *self.layouts, self.layouts[-1], preference, 1,
                self.algorithm.ptr, count.ctypes.data,
            )  # fmt: skip
        except self.lt.cuBLASLtError as error:  # which is how it says that it knows none
            logging.getLogger("bpnet").debug("cuBLASLt has no product for %s: %s", self.problem, error)
            return False
        finally:
            self.lt.matmul_preference_destroy(preference)
        if not count[0] or self.algorithm.state:
            return False
        self.scratch, self.algorithm_at = int(self.algorithm.workspace_size), int(self.algorithm.ptr)
        return True

    def run(self, addresses: Addresses, workspace: int) -> None:
        """Compute the product of what lies at these addresses, on the current stream, with `scratch` bytes besides."""
        a, b, out, vector = addresses
        first, second, result = self.layouts
        with self.lock:  # from when the vector's address is given until the call has read it
            self.point(vector)
            self.lt.matmul(
                _handle(self.lt, self.device), self.description, self.alpha, b, first, a, second, self.beta,
                out, result, out, result, self.algorithm_at, workspace, self.scratch,
                cupy.cuda.get_current_stream().ptr,
            )  # fmt: skip


def _destroy(lt: Any, description: int, layouts: list[int]) -> None:
    lt.matmul_desc_destroy(description)
    for layout in layouts:
        lt.matrix_layout_destroy(layout)


@lru_cache(maxsize=64)
def _handle(lt: Any, device: int) -> int:
    """The library's handle for a device, which is the current one; any number of threads may use it."""
    handle: int = lt.create()
    return handle
