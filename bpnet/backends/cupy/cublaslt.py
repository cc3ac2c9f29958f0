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
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cupy
import numpy

WORKSPACE = 32 * 2**20
"""Bytes that an algorithm may use besides at most, as NVIDIA advises for Hopper."""

KINDS = {"float32": 0, "float64": 1, "bfloat16": 14}
"""Types of elements as cudaDataType numbers them."""

COMPUTE = {
    ("float32", "float32"): "COMPUTE_32F",
    ("float32", "tf32"): "COMPUTE_32F_FAST_TF32",
    ("bfloat16", "bfloat16"): "COMPUTE_32F",
    ("float64", "float32"): "COMPUTE_64F",  # the default precision is that of the data
}
"""How products and sums are computed, by the type of the factors and the precision asked for."""


def bindings() -> tuple[Any, Any] | None:
    """The bindings of cuBLASLt, and of cuBLAS for its names; None where they, the library or the driver are missing."""
    found = _loaded()
    return None if isinstance(found, str) else found


def why_not() -> str | None:
    """What is missing for the bindings."""
    found = _loaded()
    return found if isinstance(found, str) else None


@lru_cache(maxsize=1)
def _loaded() -> tuple[Any, Any] | str:
    """The bindings, or what is missing for them."""
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
    return bindings() is not None


@dataclass(frozen=True)
class Problem:
    """out <- a b, or out <- out + a b, of row-major matrices, followed by an epilogue.

    Of both factors: whether they are stored transposed, and how many elements their stored rows are apart.
    `dtype` is the type of the factors and `result` that of out.  Of a `stack` of such products, the factors are so many
    elements apart, and the results follow each other.  Epilogues: DEFAULT, nothing; BIAS, RELU and RELU_BIAS,
    a vector of the type of out is added to every row, and then max(., 0) is taken.
    """

    rows: int
    columns: int
    inner: int
    a_transposed: bool
    a_stride: int
    b_transposed: bool
    b_stride: int
    dtype: str
    result: str
    precision: str
    epilogue: str
    accumulate: bool
    stack: int = 1
    a_stack_stride: int = 0
    b_stack_stride: int = 0


Places = tuple[int, int, int, int]
"""Addresses of a, b, out and the epilogue's vector (0: none)."""


def multiply(problem: Problem, places: Places, workspace: Callable[[int], int]) -> bool:
    """Compute it on the current stream; `workspace(size)` gives the address of so much memory for it.

    False, and nothing has been done, where cuBLASLt is missing or has no such product.
    """
    if bindings() is None or (problem.dtype, problem.precision) not in COMPUTE:
        return False
    if places[3] % 16:
        return False  # algorithms that read 16 bytes of a vector at a time do not say so
    aligned = tuple(min(place & -place, 256) for place in places)
    plan = _plan(cupy.cuda.runtime.getDevice(), problem, aligned)
    if plan is None:
        return False
    plan.run(places, workspace)
    return True


@lru_cache(maxsize=1024)
def _plan(device: int, problem: Problem, aligned: Places) -> "Plan | None":
    """How a product is computed on memory aligned to so many bytes; None where the library knows no way."""
    plan = Plan(device, problem)
    return plan if plan.find(aligned) else None


class Plan:
    """Descriptors of one product, and the algorithm for it.  Places in memory are named anew at every call."""

    def __init__(self, device: int, problem: Problem) -> None:
        self.lt, blas = bindings()  # type: ignore[misc]
        self.device, self.problem, p = device, problem, problem
        real = "float64" if p.result == "float64" else "float32"
        self.factors = numpy.array([1.0, float(p.accumulate)], real)  # alpha, beta
        self.alpha, self.beta = self.factors.ctypes.data, self.factors.ctypes.data + self.factors.itemsize
        self.description = self.lt.matmul_desc_create(blas.ComputeType[COMPUTE[p.dtype, p.precision]], KINDS[real])
        a = (p.inner, p.rows) if p.a_transposed else (p.rows, p.inner)
        b = (p.columns, p.inner) if p.b_transposed else (p.inner, p.columns)
        # rows, columns and leading dimension of the columns' view: the row-major (p, q) is (q, p)
        self.layouts = [
            self.lt.matrix_layout_create(KINDS[kind], shape[1], shape[0], stride)
            for kind, shape, stride in (
                (p.dtype, b, p.b_stride), (p.dtype, a, p.a_stride), (p.result, (p.rows, p.columns), p.columns),
            )
        ]  # fmt: skip
        if p.stack > 1:
            apart = p.b_stack_stride, p.a_stack_stride, p.rows * p.columns
            for layout, stride in zip(self.layouts, apart, strict=True):
                self.set_layout(layout, "BATCH_COUNT", p.stack)
                self.set_layout(layout, "STRIDED_BATCH_OFFSET", stride)
        close = weakref.finalize(self, _destroy, self.lt, self.description, self.layouts)
        close.atexit = False  # the process ends with its device
        names = self.lt.MatmulDescAttribute
        self.set(names.TRANSA, blas.Operation.T if p.b_transposed else blas.Operation.N)
        self.set(names.TRANSB, blas.Operation.T if p.a_transposed else blas.Operation.N)
        self.set(names.EPILOGUE, self.lt.Epilogue[p.epilogue])
        self.vector = numpy.zeros(1, numpy.int64)
        self.vector_name, self.vector_at = int(names.BIAS_POINTER), self.vector.ctypes.data
        self.lock = threading.Lock()

    def set(self, attribute: Any, value: int) -> None:
        """Set an attribute of the description."""
        held = numpy.array([value], self.lt.get_matmul_desc_attribute_dtype(attribute))
        self.lt.matmul_desc_set_attribute(self.description, attribute, held.ctypes.data, held.nbytes)

    def set_layout(self, layout: int, name: str, value: int) -> None:
        """Set an attribute of a matrix."""
        attribute = self.lt.MatrixLayoutAttribute[name]
        held = numpy.array([value], self.lt.get_matrix_layout_attribute_dtype(attribute))
        self.lt.matrix_layout_set_attribute(layout, attribute, held.ctypes.data, held.nbytes)

    def point(self, vector: int) -> None:
        """Name the place of the epilogue's vector."""
        if vector:
            self.vector[0] = vector
            self.lt.matmul_desc_set_attribute(self.description, self.vector_name, self.vector_at, 8)

    def find(self, aligned: Places) -> bool:
        """Ask the library's heuristic for the algorithm, for memory aligned to so many bytes; whether there is one."""
        of_a, of_b, of_out, of_vector = aligned
        self.point(of_vector)  # whose alignment it reads from the address
        preference = self.lt.matmul_preference_create()
        names = self.lt.MatmulPreferenceAttribute
        try:
            for name, value in (
                (names.MAX_WORKSPACE_BYTES, WORKSPACE),
                (names.MIN_ALIGNMENT_A_BYTES, of_b),
                (names.MIN_ALIGNMENT_B_BYTES, of_a),
                (names.MIN_ALIGNMENT_C_BYTES, of_out),
                (names.MIN_ALIGNMENT_D_BYTES, of_out),
            ):
                held = numpy.array([value], self.lt.get_matmul_preference_attribute_dtype(name))
                self.lt.matmul_preference_set_attribute(preference, name, held.ctypes.data, held.nbytes)
            self.algorithm = self.lt.MatmulHeuristicResult(1)
            count = numpy.zeros(1, numpy.int32)
            first, second, result = self.layouts
            self.lt.matmul_algo_get_heuristic(
                _handle(self.device), self.description, first, second, result, result, preference, 1,
                self.algorithm.ptr, count.ctypes.data,
            )  # fmt: skip
        except self.lt.cuBLASLtError as error:  # which is how it says that it knows none
            logging.getLogger("bpnet").debug("cuBLASLt has no product for %s: %s", self.problem, error)
            return False
        finally:
            self.lt.matmul_preference_destroy(preference)
        if not count[0] or self.algorithm.state:
            return False
        self.scratch = int(self.algorithm.workspace_size)
        return True

    def run(self, places: Places, workspace: Callable[[int], int]) -> None:
        """Compute the product of what lies at these addresses, on the current stream."""
        a, b, out, vector = places
        scratch = workspace(self.scratch) if self.scratch else 0
        first, second, result = self.layouts
        with self.lock:  # from the naming of the vector's place until the call has read it
            self.point(vector)
            self.lt.matmul(
                _handle(self.device), self.description, self.alpha, b, first, a, second, self.beta, out, result, out,
                result, self.algorithm.ptr, scratch, self.scratch, cupy.cuda.get_current_stream().ptr,
            )  # fmt: skip


def _destroy(lt: Any, description: int, layouts: list[int]) -> None:
    lt.matmul_desc_destroy(description)
    for layout in layouts:
        lt.matrix_layout_destroy(layout)


@lru_cache(maxsize=64)
def _handle(device: int) -> int:
    """The library's handle for a device, which is the current one; any number of threads may use it."""
    lt, _ = bindings()  # type: ignore[misc]
    handle: int = lt.create()
    return handle
