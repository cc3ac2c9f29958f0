"""Products of matrices by cuBLASLt, through NVIDIA's own bindings (nvmath-python), with their epilogues.

CuPy's product goes through a cuBLAS handle, which refuses a stream that is being captured in a CUDA graph, takes its
precision from the whole process, and stores a result before anything can be added to it.  Here every call names its
stream, its workspace and its precision, and waits for nothing.  What a product needs besides (descriptors, and the
algorithm that the library's heuristic names first, so that the same problem is always computed the same way) is planned
once and kept.

The workspace is taken from CuPy's allocator and given back as soon as the product is launched, like any temporary
array: what the pool hands out next is used by later launches of the same stream only.  So there is none to keep for
every stream, an algorithm that wants little takes little, and a captured graph's lies in the pool that is current then.

cuBLASLt counts in columns, where the row-major matrix M of C order is M^T.  So C = A B of rows is computed as
C^T = B^T A^T: the second factor goes first, and nothing is copied.
"""

import logging
import threading
import weakref
from functools import lru_cache
from typing import Any

import cupy
import numpy

from bpnet.backends.base import Array

WORKSPACE = 32 * 2**20
"""Bytes that an algorithm may use besides at most, as NVIDIA advises for Hopper."""

KINDS = {"float32": 0, "float64": 1, "uint16": 14}
"""Types of elements as cudaDataType numbers them.  16-bit words are bfloat16, which stays inside the seam."""

COMPUTE = {
    ("float32", "float32"): "COMPUTE_32F",
    ("float32", "tf32"): "COMPUTE_32F_FAST_TF32",
    ("uint16", "bfloat16"): "COMPUTE_32F",
    ("float64", "float32"): "COMPUTE_64F",  # the default precision is that of the data
}
"""How products and sums are computed, by the type of the factors and the precision asked for."""

Pair = tuple[int, int]


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


def product(
    a: Array,
    b: Array,
    out: Array,
    transposed: tuple[bool, bool] = (False, False),
    epilogue: str = "DEFAULT",
    vector: Array | None = None,
    extra: Array | None = None,
    precision: str = "float32",
) -> bool:
    """out <- op(a) op(b), followed by the epilogue, on the current stream; all are C-contiguous matrices.

    op transposes where `transposed` says so.  Epilogues (with m rows and n columns of `out`):

    DEFAULT                     nothing
    BIAS, RELU, RELU_BIAS       + vector (n,), then max(., 0)
    GELU_AUX, GELU_AUX_BIAS     + vector (n,); that is kept in extra (m, n), n a multiple of 8; then gelu by tanh
    BGRADA                      vector (n,) <- sums of the columns of b

    False, and nothing has been done, where cuBLASLt is missing or has no such product.
    """
    found = bindings()
    kind = a.dtype.name
    if found is None or b.dtype.name != kind or (kind, precision) not in COMPUTE:
        return False
    places = (a.data.ptr, b.data.ptr, out.data.ptr, *(0 if v is None else v.data.ptr for v in (vector, extra)))
    if places[3] % 16 or places[4] % 16 or (extra is not None and out.shape[1] % 8):
        return False  # algorithms that read 16 bytes of a vector at a time do not say so; the other is documented
    plan = _plan(
        cupy.cuda.runtime.getDevice(), a.shape, b.shape, transposed, kind, out.dtype.name, epilogue, precision,
        tuple(min(place & -place, 256) for place in places),
    )  # fmt: skip
    if plan is None:
        return False
    plan.run(*places)
    return True


@lru_cache(maxsize=1024)
def _plan(
    device: int,
    a: Pair,
    b: Pair,
    transposed: tuple[bool, bool],
    kind: str,
    result: str,
    epilogue: str,
    precision: str,
    aligned: tuple[int, ...],
) -> "Plan | None":
    """How a product is computed of factors of such shapes, types and places; None where the library knows no way."""
    plan = Plan(device, a, b, transposed, (kind, result), epilogue, COMPUTE[kind, precision])
    return plan if plan.find(aligned) else None


class Plan:
    """Descriptors of one product, and the algorithm for it.  Places in memory are named anew at every call."""

    def __init__(
        self, device: int, a: Pair, b: Pair, transposed: tuple[bool, bool], kinds: tuple[str, str], epilogue: str,
        compute: str,
    ) -> None:  # fmt: skip
        self.lt, blas = bindings()  # type: ignore[misc]
        self.device, self.epilogue = device, epilogue
        of_a, of_b = transposed
        real = "float64" if kinds[1] == "float64" else "float32"
        self.factors = numpy.array([1.0, 0.0], real)  # alpha, beta
        self.alpha, self.beta = self.factors.ctypes.data, self.factors.ctypes.data + self.factors.itemsize
        self.description = self.lt.matmul_desc_create(blas.ComputeType[compute], KINDS[real])
        rows, columns = a[of_a], b[not of_b]
        kind, result = (KINDS[k] for k in kinds)
        # rows, columns and leading dimension of the columns' view: the row-major (p, q) is (q, p), q apart
        self.layouts = [
            self.lt.matrix_layout_create(of, shape[1], shape[0], shape[1])
            for of, shape in ((kind, b), (kind, a), (result, (rows, columns)))
        ]
        close = weakref.finalize(self, _destroy, self.lt, self.description, self.layouts)
        close.atexit = False  # the process ends with its device
        names = self.lt.MatmulDescAttribute
        self.set(names.TRANSA, blas.Operation.T if of_b else blas.Operation.N)
        self.set(names.TRANSB, blas.Operation.T if of_a else blas.Operation.N)
        self.set(names.EPILOGUE, self.lt.Epilogue[epilogue])
        if "AUX" in epilogue:
            self.set(names.EPILOGUE_AUX_LD, columns)
        self.pointers = numpy.zeros(2, numpy.int64)
        self.pointers_at = self.pointers.ctypes.data
        self.named = (int(names.BIAS_POINTER), int(names.EPILOGUE_AUX_POINTER))
        self.lock = threading.Lock()

    def set(self, attribute: Any, value: int) -> None:
        """Set an attribute of the description."""
        held = numpy.array([value], self.lt.get_matmul_desc_attribute_dtype(attribute))
        self.lt.matmul_desc_set_attribute(self.description, attribute, held.ctypes.data, held.nbytes)

    def point(self, vector: int, extra: int) -> None:
        """Name the places of what the epilogue reads or writes besides."""
        for i, place in enumerate((vector, extra)):
            if place:
                self.pointers[i] = place
                self.lt.matmul_desc_set_attribute(self.description, self.named[i], self.pointers_at + 8 * i, 8)

    def find(self, aligned: tuple[int, ...]) -> bool:
        """Ask the library's heuristic for the algorithm, for memory aligned to so many bytes; whether there is one."""
        of_a, of_b, of_out, *others = aligned
        self.point(*others)  # of these it reads the alignment from the address
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
            logging.getLogger("bpnet").debug("cuBLASLt has no product with %s: %s", self.epilogue, error)
            return False
        finally:
            self.lt.matmul_preference_destroy(preference)
        if not count[0] or self.algorithm.state:
            return False
        self.scratch = int(self.algorithm.workspace_size)
        return True

    def run(self, a: int, b: int, out: int, vector: int, extra: int) -> None:
        """Compute the product of what lies at these addresses, on the current stream."""
        scratch = cupy.cuda.alloc(self.scratch)  # nothing, where that is 0
        first, second, result = self.layouts
        with self.lock:  # from the naming of the places until the call has read them
            self.point(vector, extra)
            self.lt.matmul(
                _handle(self.device), self.description, self.alpha, b, first, a, second, self.beta, out, result, out,
                result, self.algorithm.ptr, scratch.ptr, self.scratch, cupy.cuda.get_current_stream().ptr,
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
