"""NVIDIA's own bindings of cuBLASLt, as bpnet calls them, on a library that stands in for NVIDIA's.

The stand-in, written here in C++, has the names, numbers and structures of cublasLt.h (CUDA 13) and computes on the
host.  So what the bindings make of each call, down to the order of the arguments, is what the library would be given.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = 'extern "C" int cuDriverGetVersion(int* version) { *version = 13000; return 0; }\n'
LIBRARY = """\
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct Desc { int compute, scale; int64_t attribute[64]; };
struct Layout { int kind; uint64_t rows, columns; int64_t apart; int32_t count; int64_t offset; };
struct Preference { uint64_t attribute[64]; };
struct Result { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };
enum { REAL = 0, DOUBLE = 1, BFLOAT16 = 14 };
enum { TRANSA = 3, TRANSB = 4, EPILOGUE = 7, VECTOR = 8 };
enum { COUNT = 5, OFFSET = 6 };
enum { RELU = 2, BIAS = 4 };
static void* const HANDLE = (void*)0x1234;
static int alive = 0;

static double get(const void* a, int kind, int64_t i) {
    if (kind == DOUBLE) return ((const double*)a)[i];
    if (kind == REAL) return ((const float*)a)[i];
    const uint32_t bits = (uint32_t)((const uint16_t*)a)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void put(void* a, int kind, int64_t i, double value) {
    if (kind == DOUBLE) ((double*)a)[i] = value; else ((float*)a)[i] = (float)value;
}

extern "C" {
size_t cublasLtGetVersion() { return 999; }
int lent_alive() { return alive; }
int cublasLtCreate(void** handle) { *handle = HANDLE; return 0; }

int cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
    *desc = new Desc{compute, scale, {}};
    ++alive;
    return 0;
}
int cublasLtMatmulDescDestroy(Desc* desc) { delete desc; --alive; return 0; }
int cublasLtMatmulDescSetAttribute(Desc* desc, int name, const void* value, size_t size) {
    if (size != (name == VECTOR ? 8 : 4)) return 7;
    desc->attribute[name] = 0;
    memcpy(&desc->attribute[name], value, size);
    return 0;
}

int cublasLtMatrixLayoutCreate(Layout** layout, int kind, uint64_t rows, uint64_t columns, int64_t apart) {
    *layout = new Layout{kind, rows, columns, apart, 1, 0};
    ++alive;
    return 0;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) { delete layout; --alive; return 0; }

int cublasLtMatrixLayoutSetAttribute(Layout* layout, int name, const void* value, size_t size) {
    if (size != (name == COUNT ? 4 : 8) || (name != COUNT && name != OFFSET)) return 7;
    memcpy(name == COUNT ? (void*)&layout->count : (void*)&layout->offset, value, size);
    return 0;
}

int cublasLtMatmulPreferenceCreate(Preference** made) { *made = new Preference{}; ++alive; return 0; }
int cublasLtMatmulPreferenceDestroy(Preference* made) { delete made; --alive; return 0; }
int cublasLtMatmulPreferenceSetAttribute(Preference* of, int name, const void* value, size_t size) {
    if (size != (name == 1 ? 8 : 4)) return 7;
    memcpy(&of->attribute[name], value, size);
    return 0;
}

int cublasLtMatmulAlgoGetHeuristic(
    void* handle, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d, Preference* preference, int most,
    Result* results, int* found
) {
    if (handle != HANDLE || most != 1 || c != d || preference->attribute[1] != 32u << 20) return 7;
    for (int name = 5; name <= 8; ++name) if (preference->attribute[name] != 256) return 7;
    const bool is_double = a->kind == DOUBLE;
    const bool fits = is_double ? desc->compute == 70 : desc->compute == 68 || desc->compute == 77;
    if (!fits || a->kind != b->kind || desc->scale != (is_double ? DOUBLE : REAL)) return 15;
    *results = Result{{0xA160}, 4096, 0, 1.0f, {}};
    *found = 1;
    return 0;
}

int cublasLtMatmul(
    void* handle, Desc* desc, const void* alpha, const void* a, Layout* of_a, const void* b, Layout* of_b,
    const void* beta, const void* c, Layout* of_c, void* d, Layout* of_d, const uint64_t* algorithm, void* workspace,
    size_t size, void* stream
) {
    if (handle != HANDLE || algorithm[0] != 0xA160 || !workspace || size != 4096 || stream != (void*)0x5EED) return 7;
    if (get(alpha, desc->scale, 0) != 1.0 || c != d || of_c != of_d) return 7;
    const double added = get(beta, desc->scale, 0);
    const bool ta = desc->attribute[TRANSA], tb = desc->attribute[TRANSB];
    const int64_t m = of_d->rows, n = of_d->columns, k = ta ? of_a->rows : of_a->columns;
    const int64_t how = desc->attribute[EPILOGUE];
    if ((int64_t)(ta ? of_a->columns : of_a->rows) != m || (int64_t)(tb ? of_b->columns : of_b->rows) != k) return 7;
    void* vector = (void*)desc->attribute[VECTOR];
    for (int64_t s = 0; s < of_d->count; ++s) for (int64_t i = 0; i < m; ++i) for (int64_t j = 0; j < n; ++j) {
        const int64_t at = s * of_d->offset + i + j * of_d->apart;
        double sum = how & BIAS ? get(vector, of_d->kind, i) : 0;
        if (added) sum += added * get(d, of_d->kind, at);
        for (int64_t l = 0; l < k; ++l) {
            sum += get(a, of_a->kind, s * of_a->offset + (ta ? l + i * of_a->apart : i + l * of_a->apart))
                 * get(b, of_b->kind, s * of_b->offset + (tb ? j + l * of_b->apart : l + j * of_b->apart));
        }
        if (how & RELU) sum = sum > 0 ? sum : 0;
        put(d, of_d->kind, at, sum);
    }
    return 0;
}
}
"""
PROGRAM = """\
import ctypes
import gc
import itertools
import sys
from types import SimpleNamespace

import numpy as np
from nvmath.bindings import cublasLt

if cublasLt.get_version() != 999:
    sys.exit("another cuBLASLt was found")

from bpnet.backends.cupy import cublaslt

scratch = ctypes.create_string_buffer(4096)
cublaslt.cupy = SimpleNamespace(cuda=SimpleNamespace(
    runtime=SimpleNamespace(is_hip=False, getDevice=lambda: 0),
    get_current_stream=lambda: SimpleNamespace(ptr=0x5EED),
))


def aligned(a):
    memory = np.zeros(a.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    made = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    made[...] = a
    return made


rng, done = np.random.default_rng(0), 0
m, k, n = 6, 5, 16
cases = itertools.product(
    ("float32", "float64", "bfloat16", "tf32"), (False, True), (False, True), ("DEFAULT", "BIAS", "RELU", "RELU_BIAS"),
    (1, 3), (False, True),
)
for precision, ta, tb, epilogue, stack, adds in cases:
    real = "float64" if precision == "float64" else "float32"
    a, b = (rng.standard_normal((stack, *size)).astype(real) for size in ((m, k), (k, n)))
    stored = [aligned(v.transpose(0, 2, 1) if t else v) for v, t in ((a, ta), (b, tb))]
    if precision == "bfloat16":
        stored = [aligned((v.view(np.uint32) >> 16).astype(np.uint16)) for v in stored]
        a, b = (((v.view(np.uint32) >> 16) << 16).view(np.float32) for v in map(np.ascontiguousarray, (a, b)))
    out, vector = aligned(rng.standard_normal((stack, m, n)).astype(real)), aligned(rng.standard_normal(n).astype(real))
    z = a.astype("d") @ b + (vector if "BIAS" in epilogue else 0.0) + (out if adds else 0.0)
    y = np.maximum(z, 0) if "RELU" in epilogue else z
    kinds = precision if precision == "bfloat16" else real, real, "float32" if precision == "float64" else precision
    factors = (ta, m if ta else k, m * k), (tb, k if tb else n, k * n)
    problem = cublaslt.Problem(m, n, k, *factors, *kinds, epilogue, adds, stack)
    places = *(v.ctypes.data for v in (*stored, out)), vector.ctypes.data if "BIAS" in epilogue else 0
    cublaslt.plan(problem, places).run(places, ctypes.addressof(scratch))
    np.testing.assert_allclose(out, y, rtol=1e-5, atol=1e-5)
    done += 1
cublaslt._plan.cache_clear()
gc.collect()
assert ctypes.CDLL("libcublasLt.so.13").lent_alive() == 0
print(f"{done} products")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in is built as on Linux")
def test_products_by_nvidias_bindings(tmp_path: Path) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    for name, text in (("libcuda.so.1", DRIVER), ("libcublasLt.so.13", LIBRARY)):
        source = tmp_path / f"{name}.cpp"
        source.write_text(text)
        how = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        subprocess.run([compiler, *how, source.name, "-o", name], cwd=tmp_path, check=True)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).resolve().parent.parent,
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "another cuBLASLt was found" in found.stderr:
        pytest.skip("NVIDIA's own library is installed, and found first")
    assert found.returncode == 0, found.stderr
    assert found.stdout == "256 products\n"
