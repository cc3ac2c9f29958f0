"""The CUDA kernels made of rules: NVIDIA's compiler takes them, and a C++ compiler's reading of them equals NumPy's.

Neither needs a device.  On the host the threads of a block take turns between barriers, one block after the other, on
real memory.
"""

import ctypes
import functools
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_activations import ACTIVATIONS as CASES
from test_activations import Case, check_far_out, exact
from test_kernels import ARGUMENTS

import bpnet as bp
from bpnet.backends.cuda import OPTIONS, Form, finish_launch, map_launch, source, sum_launch
from bpnet.backends.cuda_texts import DROPPED, cross_entropy_launch, mask_source
from bpnet.backends.trace import NotTraceableError
from bpnet.compiler.random import fold
from bpnet.layer import KERNELS, Run
from bpnet.layers.dense import dense_backward, dense_forward

ACTIVATIONS = [
    bp.Sigmoid(),
    bp.Tanh(),
    bp.ReLU(),
    bp.LeakyReLU(0.3),
    bp.GELU(),
    bp.GELU(approximate=True),
    bp.SiLU(),
    bp.Softplus(),
    bp.ELU(0.7),
]
OPTIMIZERS = [
    (bp.SGD(0.1), 0),
    (bp.SGD(0.1, momentum=0.9), 1),
    (bp.SGD(0.1, momentum=0.9, nesterov=True), 1),
    (bp.Adam(1e-2), 2),
    (bp.AdamW(1e-2), 2),
]
HOST = """\
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <ucontext.h>
#include <utility>
using std::erf; using std::exp; using std::expm1; using std::fabs; using std::log; using std::log1p; using std::sqrt;
using std::tanh;
struct Three { unsigned int x, y; };
static Three gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)

// The threads of a block take turns, each until it waits for the others or is done, on a stack of its own.
enum { MOST = 1024, STACK = 1 << 15 };
struct Thread { ucontext_t start; jmp_buf at; bool begun, waits; };
static Thread threads[MOST];
static jmp_buf back;
static size_t now;
static ucontext_t nowhere;

static void turn_over(bool waits) {
    threads[now].waits = waits;
    if (!_setjmp(threads[now].at)) _longjmp(back, 1);
}

static void __syncthreads() { turn_over(true); }

template <typename F> static F* running;
template <typename F> static void enter() {
    for (;;) {
        (*running<F>)();
        turn_over(false);
    }
}

// whether the threads of every block came to the same barriers
template <typename F> static bool run(Three grid, Three block, F body, char* stacks) {
    gridDim = grid, blockDim = block, running<F> = &body;
    const size_t count = block.x * block.y;
    for (size_t i = 0; i < count && stacks; ++i) {
        threads[i].begun = false;
        getcontext(&threads[i].start);
        threads[i].start.uc_stack.ss_sp = stacks + i * STACK, threads[i].start.uc_stack.ss_size = STACK;
        makecontext(&threads[i].start, enter<F>, 0);
    }
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        for (volatile size_t turn = 0, waiting = count; waiting; turn = turn + 1) {
            for (volatile size_t k = 0; k < count; k = k + 1) {
                now = turn % 2 ? count - 1 - k : k;  // in no order on which a kernel might rely
                threadIdx = {(unsigned int)(now % block.x), (unsigned int)(now / block.x)};
                if (!stacks) {
                    body();
                } else if (!_setjmp(back)) {
                    if (threads[now].begun) _longjmp(threads[now].at, 1);
                    threads[now].begun = true;
                    swapcontext(&nowhere, &threads[now].start);
                }
            }
            waiting = 0;
            for (size_t i = 0; i < count && stacks; ++i) waiting = waiting + threads[i].waits;
            if (waiting && waiting != count) return false;
        }
    }
    return true;
}

template <typename... A, size_t... I>
static bool call(
    Three grid, Three block, void (*kernel)(A...), void** given, char* stacks, std::index_sequence<I...>
) {
    return run(grid, block, [=] { kernel(*(A*)given[I]...); }, stacks);
}

template <typename... A> static bool call(Three grid, Three block, void (*kernel)(A...), void** given, char* stacks) {
    return call(grid, block, kernel, given, stacks, std::index_sequence_for<A...>());
}
"""


class Three(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint)]


def biased(b: Any, z: Any, bias: Any) -> tuple[Any, Any]:
    z = z + bias
    return b.xp.maximum(z, 0.0), z


def twice(rule: Any) -> Any:
    return lambda *args: (rule(*args),) * 2


def forms(dtype: str) -> list[Any]:
    """Every elementwise rule: (name, rule, along, scalars)."""
    found: list[Any] = [(f"{f} value", f.value, "e", ()) for f in ACTIVATIONS]
    found += [(f"{f} derivative", f.derivative, "ee", ()) for f in ACTIVATIONS]
    for optimizer, state in OPTIMIZERS:
        scalars = optimizer.hyperparameters(optimizer.lr, 7)
        found.append((str(optimizer), optimizer.elementwise, "ee" + state * "e", scalars))
    found.append(("bias", biased, "ec", ()))
    found.append(("rows", biased, "er", ()))
    return [pytest.param(dtype, *form[1:], id=f"{form[0]}-{dtype}") for form in found]


EVERY = pytest.mark.parametrize(("dtype", "rule", "along", "scalars"), forms("float32") + forms("float64"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """run(code, kernel, launch, *arguments): a kernel's text compiled for this processor and run, thread by thread."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    made: dict[str, Any] = {}
    stacks = ctypes.create_string_buffer(1024 << 15)

    def run(code: str, kernel: str, launch: Any, *arguments: Any) -> None:
        if code not in made:
            path: Path = folder / f"k{len(made)}.cpp"
            ways = [
                f'extern "C" bool launch_{name}(Three grid, Three block, void** given, char* stacks) {{ '
                f"return call(grid, block, {name}, given, stacks); }}\n"
                for name in re.findall(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(", code)
            ]
            path.write_text(HOST + code + "".join(ways))
            command = [compiler, "-std=c++17", "-O0", "-ffp-contract=off", "-w", "-shared", "-fPIC", path.name]
            subprocess.run([*command, "-o", f"{path.stem}.so"], cwd=folder, check=True)
            made[code] = ctypes.CDLL(str(path.with_suffix(".so")))
        way = getattr(made[code], f"launch_{kernel}")
        way.restype = ctypes.c_bool
        given = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        room = stacks if "__syncthreads" in code else None  # who waits for nobody needs no stack of its own
        assert way(*(Three(*sizes) for sizes in launch), given, room), "threads of a block wait at different places"

    return run


def pointer(a: np.ndarray) -> Any:
    return ctypes.c_void_p(a.ctypes.data)


def numbers(prepare: str, dtype: str, scalars: Sequence[float]) -> list[Any]:
    space: dict[str, Any] = {}
    exec(prepare, space)
    kind = ctypes.c_float if dtype == "float32" else ctypes.c_double
    return [kind(value) for value in space["prepare"](np.dtype(dtype).type, *scalars)]


def aligned(a: np.ndarray) -> np.ndarray:
    """A copy of `a` that begins at a multiple of 16 bytes."""
    memory = np.empty(a.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


@EVERY
def test_nvidias_compiler_takes_it(dtype: str, rule: Any, along: str, scalars: tuple[float, ...]) -> None:
    compiled(source(Form(rule, along, len(scalars), dtype)).code)


ARCHITECTURES = ("sm_80", "sm_90")
"""What kernels are compiled for here, a sixth of a second each."""


@functools.cache
def compiled(code: str) -> None:
    for architecture in ARCHITECTURES:
        nvrtc, program = by_nvrtc(code, architecture)
        assert len(nvrtc.getCUBIN(program)) > 1000


def by_nvrtc(code: str, architecture: str) -> Any:
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    try:
        program = nvrtc.createProgram(code, "rule.cu", [], [])
    except Exception as error:  # CuPy without NVIDIA's compiler
        pytest.skip(f"NVRTC can't be used: {error}")
    try:
        nvrtc.compileProgram(program, [f"-arch={architecture}", *OPTIONS])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    return nvrtc, program


@pytest.mark.parametrize(
    ("kernel", "form", "loads", "stores"),
    [
        ("map_wide", Form(bp.AdamW().elementwise, "eeee", 3, "float32", held=(0, 1, 2)), 4, 3),
        ("map_wide", Form(bp.Adam().elementwise, "eeee", 2, "float64"), 4, 3),
        ("sum_wide", Form(twice(bp.ReLU().derivative), "ee", 0, "float32", summed=1), 8, 4),
        ("sum_wide", Form(twice(bp.ReLU().derivative), "ee", 0, "float32", (), ("bfloat16",) * 3, 1), 8, 4),
    ],
)
def test_sixteen_bytes_are_read_at_a_time_and_all_before_anything_is_written(
    kernel: str, form: Form, loads: int, stores: int
) -> None:
    nvrtc, program = by_nvrtc(source(form).code, "compute_90")
    body = nvrtc.getPTX(program).decode().split(f".entry {kernel}(")[1].split(".entry")[0]
    accesses = re.findall(r"(ld|st)\.global(?:\.nc)?\.(v4\.[fub]32|v2\.[fub]64)", body)
    wide = [kind for kind, _ in accesses]
    assert wide == ["ld"] * loads + ["st"] * stores


@EVERY
@pytest.mark.parametrize("kind", ["wide", "plain"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1203), (37, 24), (700, 4)])
def test_a_map_equals_the_rule(
    rows: int, columns: int, kind: str, dtype: str, rule: Any, along: str, scalars: Any, host: Any
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"e": (rows, columns), "c": (1, columns), "r": (rows, 1)}
    values = [rng.standard_normal(shapes[letter]) for letter in along]
    if scalars and len(along) == 4:  # Adam's sum of squares
        values[2] = np.abs(values[2])
    values = [value.astype(dtype) for value in values]
    with np.errstate(all="ignore"):
        expected = rule(bp.backends.get("numpy"), *values, *scalars)
    expected = expected if isinstance(expected, tuple) else (expected,)
    form = Form(rule, along, len(scalars), dtype)
    made = source(form)
    inputs = [aligned(value) for value in values]
    in_place = along.strip("e") == ""
    outputs = inputs[: len(expected)] if in_place else [aligned(np.zeros_like(e)) for e in expected]
    width = form.width if kind == "wide" else 1
    host(
        made.code, f"map_{kind}", map_launch(rows, columns, width),
        *(ctypes.c_longlong(n) for n in (rows, columns)), *map(pointer, [*inputs, *outputs]),
        *numbers(made.text.prepare, dtype, scalars),
    )  # fmt: skip
    eps = np.finfo(dtype).eps
    for output, e in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, e, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.exact and c.layer != bp.Identity()])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_slopes_of_any_input(dtype: str, case: Case, host: Any) -> None:
    z, results = aligned(exact(case, dtype)[0]), []
    for rule, arrays in (
        (case.layer.value, [z]),
        (case.layer.derivative, [z if case.layer.saves == "input" else None, aligned(np.ones_like(z))]),
    ):
        made, out = source(Form(rule, "e" * len(arrays), 0, dtype)), aligned(np.zeros_like(z))
        arrays = [results[0] if a is None else a for a in arrays]
        sizes = map(ctypes.c_longlong, (1, z.size))
        constants = numbers(made.text.prepare, dtype, ())
        host(made.code, "map_plain", map_launch(1, z.size, 1), *sizes, *map(pointer, [*arrays, out]), *constants)
        results.append(out)
    check_far_out(case, dtype, *results)


SHAPES = [(1, 12), (64, 12), (129, 40), (20000, 8), (5000, 1), (300, 516)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["wide", "plain"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_slope_and_its_column_sums(rows: int, columns: int, kind: str, dtype: str, host: Any) -> None:
    """What is stored is right, and what each block sums up adds up, by a kernel of its own, to the whole."""
    rng = np.random.default_rng(0)
    kept, dy = (aligned(rng.standard_normal((rows, columns)).astype(dtype)) for _ in range(2))
    form = Form(twice(bp.ReLU().derivative), "ee", 0, dtype, summed=1)
    made = source(form)
    if columns % form.width:  # then there is no wide one
        kind = "plain"
    launch, step = sum_launch(rows, columns, form.width if kind == "wide" else 1)
    dz, sums = aligned(np.zeros_like(dy)), aligned(np.full((launch[0][1], columns), np.nan, dtype))
    host(
        made.code, f"sum_{kind}", launch, *(ctypes.c_longlong(n) for n in (rows, columns, step)),
        *map(pointer, [kept, dy, dz, sums]), *numbers(made.text.prepare, dtype, ()),
    )  # fmt: skip
    assert np.array_equal(dz, dy * (kept > 0))
    exact = np.sum(dz, axis=0, dtype="float64")
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(sums.sum(axis=0), exact, rtol=1e-3, atol=rows * eps)
    total, half = (aligned(np.full(columns, np.nan, dtype)) for _ in range(2))
    made = source(Form(lambda b, s, share: (s, s * share), "s", 1, dtype))
    host(
        made.code, "finish", finish_launch(columns), *(ctypes.c_longlong(n) for n in sums.shape),
        *map(pointer, [sums, total, half]), *numbers(made.text.prepare, dtype, (0.5,)),
    )  # fmt: skip
    np.testing.assert_allclose(total, exact, rtol=1e-3, atol=rows * eps)
    assert np.array_equal(half, total * np.dtype(dtype).type(0.5))


@pytest.mark.parametrize("name", ["keep_mask", "drop_wide", "drop_plain"])
@pytest.mark.parametrize("shape", [(50, 33), (16, 8), (1, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mask_has_the_bits_of_the_definition(dtype: str, shape: Any, name: str, host: Any) -> None:
    key, keep = (3, 8, 0, 77), 0.7
    xp = bp.backends.get("numpy").xp
    expected = bp.backends.Backend(xp).keep_mask(key, shape, keep, xp.dtype(dtype), "cpu")
    x = aligned(np.random.default_rng(0).standard_normal(shape).astype(dtype))
    expected = expected if name == "keep_mask" else x * expected
    threshold, result = round(keep * 2**32), aligned(np.full(shape, np.nan, dtype))
    kind = ctypes.c_float if dtype == "float32" else ctypes.c_double
    host(
        mask_source(dtype), name, map_launch(1, x.size, DROPPED[dtype] if name == "drop_wide" else 1),
        ctypes.c_longlong(x.size), ctypes.c_uint(fold(key)), ctypes.c_uint(threshold), kind(2**32 / threshold),
        *map(pointer, (result,) if name == "keep_mask" else (x, result)),
    )  # fmt: skip
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_what_is_not_a_number_is_handed_on(op: str, host: Any) -> None:
    made = source(Form(lambda b, x, y: getattr(b.xp, op)(x, y), "ee", 0, "float64"))
    x, y = np.array([np.nan, 1.0, np.inf, 2.0]), np.array([1.0, np.nan, 3.0, 2.0])
    expected, out = getattr(np, op)(x, y), np.zeros(4)
    sizes = ctypes.c_longlong(1), ctypes.c_longlong(4)
    host(made.code, "map_plain", map_launch(1, 4, 1), *sizes, *map(pointer, (x, y, out)))
    assert np.array_equal(out, expected, equal_nan=True)


def test_what_cannot_be_traced_says_so() -> None:
    with pytest.raises(NotTraceableError):
        source(Form(lambda b, x: b.xp.sum(x), "e", 0, "float32"))


@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 10**9, 4), (10**7, 1, 1), (262144, 4096, 4), (3, 10, 2)])
def test_launches_stay_within_what_devices_take(rows: int, columns: int, width: int) -> None:
    launches = [f(rows, columns, width) for f in (map_launch, lambda *args: sum_launch(*args)[0])]
    launches += [finish_launch(columns), cross_entropy_launch(rows, min(columns, 10**5))]
    for (across, down), (x, y) in launches:
        assert 1 <= across < 2**31
        assert 1 <= down < 2**16
        assert 1 <= x * y <= 1024
        assert x & (x - 1) == y & (y - 1) == 0  # sums are halved down to one


class Lent(np.ndarray):
    """NumPy's array with what the launches ask of CuPy's: where it lies."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)


@pytest.fixture
def lent(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy's backend whose arrays are NumPy's and whose kernels run on the host: all but the device itself."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from bpnet.backends import cublaslt, cupy_kernels, cupy_launch, cupy_sums
    from bpnet.backends import cupy as seam

    def function(code: str, name: str, device: int) -> Any:
        return lambda grid, block, arguments: host(code, name, (grid, block), *map(passed, arguments))

    def passed(argument: Any) -> Any:
        if isinstance(argument, np.ndarray):
            return pointer(argument)
        kinds = {"l": ctypes.c_longlong, "q": ctypes.c_longlong, "I": ctypes.c_uint, "f": ctypes.c_float}
        return kinds.get(argument.dtype.char, ctypes.c_double)(argument)

    def empty(shape: Any, dtype: Any) -> Lent:
        return np.empty(shape, dtype).view(Lent)

    library = SimpleNamespace(
        empty=empty,
        empty_like=lambda a: empty(a.shape, a.dtype),
        matmul=np.matmul,
        cuda=SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: 0)),
    )
    monkeypatch.setattr(cublaslt, "bindings", lambda: None)
    monkeypatch.setattr(cupy_launch, "function", function)
    for module in (seam, cupy_kernels, cupy_launch, cupy_sums):
        monkeypatch.setattr(module, "cupy", library)
    return seam.CupyBackend(bp.backends.get("numpy").xp)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("f", [*ACTIVATIONS, bp.Identity(), bp.Softmax()], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("rows", "units"), [(9, 12), (9, 7), (1, 7)])
def test_cupys_dense_layer_equals_its_definition(
    f: Any, rows: int, units: int, has_bias: bool, dtype: str, lent: Any
) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.standard_normal(s).astype(dtype) for s in ((rows, 5), (5, units), units, (rows, units)))
    plain = Run(bp.backends.Backend(lent.xp))
    bias = bias if has_bias else None
    y, kept = dense_forward(plain, x, weight, bias, f)
    expected = dense_backward(plain, x, weight, kept, dy, f, True, has_bias)
    x, weight, dy = (a.view(Lent) for a in (x, weight, dy))
    mine, cache = dense_forward(Run(lent), x, weight, None if bias is None else bias.view(Lent), f)
    place = np.zeros_like(weight)
    run = Run(lent, context=lent.context(grad_buffers={id(weight): place}))
    found = dense_backward(run, x, weight, cache, dy, f, True, has_bias)
    assert found[1] is place
    eps = np.finfo(dtype).eps
    for a, e in zip((mine, *found), (y, *expected), strict=True):
        if e is None:
            assert a is None
        else:
            np.testing.assert_allclose(a, e, rtol=64 * eps, atol=64 * eps)


class Library:
    """What `test_kernels` makes its arguments with."""

    xp = bp.backends.get("numpy").xp

    def __init__(self, dtype: str) -> None:
        self.real = dtype

    def array(self, a: np.ndarray) -> Lent:
        return aligned(a.astype(self.real) if a.dtype.kind == "f" else a).view(Lent)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 7, 600])
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if not name.startswith("dense")])
def test_cupys_other_kernels_equal_their_definitions(name: str, rows: int, dtype: str, lent: Any) -> None:
    plain, key = bp.backends.Backend(lent.xp), (5, 3, 0)
    eps = np.finfo(dtype).eps
    for args in ARGUMENTS[name](Library(dtype), np.random.default_rng(0), rows, None):
        before = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        got = lent.kernels[name](Run(lent, True, key), *args)
        want = KERNELS[name](Run(plain, True, key), *args)
        if got is NotImplemented:
            assert (name == "clip_by_global_norm" and dtype == "float64") or (name == "matmul" and args[0].ndim == 3)
            continue
        got, want = (r if isinstance(r, tuple) else (r,) for r in (got, want))
        for a, e in list(zip(got, want, strict=True))[: 1 if name == "drop" else None]:
            if e is None:
                assert a is None
                continue
            assert a.dtype == dtype
            assert a.shape == np.shape(e)
            np.testing.assert_allclose(a, e, rtol=64 * eps, atol=64 * eps * np.max(np.abs(e)))
        for a, old in zip(args, before, strict=True):
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, old)


@pytest.mark.parametrize("classes", [2, 3, 10, 33, 1000, 3000])
@pytest.mark.parametrize("kind", ["int32", "int64", "probabilities"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cupys_cross_entropy_of_any_classes(dtype: str, kind: str, classes: int, lent: Any) -> None:
    """Of logits of any size, -inf among them; labels that name no class count as none, as in the definition.

    A row of no weight has the slope 0, even where softmax has no value.
    """
    rng = np.random.default_rng(0)
    rows = 5 if classes > 100 else 300
    z = (30.0 * rng.standard_normal((rows, classes))).astype(dtype)
    z[0] += 1e4
    z[1, 1] = -np.inf
    target = rng.uniform(size=(rows, classes)).astype(dtype)
    target[1, 1] = 0.0 if kind == "probabilities" else 0.5
    if kind != "probabilities":
        target = rng.integers(-1, classes + 1, rows).astype(kind)
        target[1] = 0
    weight = rng.uniform(size=rows).astype(dtype)
    weight[2] = 0.0
    eps = np.finfo(dtype).eps
    for w in (None, weight):
        if w is not None:  # a row that is infinitely wrong, but does not count
            z[2, :2], target[2] = (-np.inf, np.inf), 1.0 / classes if kind == "probabilities" else 0
        with np.errstate(all="ignore"):
            expected = KERNELS["softmax_cross_entropy"](Run(bp.backends.Backend(lent.xp)), z, target, w, 3.0)
        args = [None if a is None else a.view(Lent) for a in (z, target, w)]
        got = lent.kernels["softmax_cross_entropy"](Run(lent), *args, 3.0)
        assert w is None or not np.any(got[1][2])
        for a, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=100 * eps, atol=100 * eps)


def test_cupys_batch_statistics_beside_a_very_large_mean(lent: Any) -> None:
    """Where the mean itself is rounded by a tenth of the deviation, and the variance must not take that for spread."""
    x = (3e6 + np.random.default_rng(0).standard_normal((1000, 3))).astype("float32")
    exact = x.astype("float64")
    ones = np.ones(3, "float32").view(Lent)
    _, xhat, mean, var, _ = lent.kernels["batch_norm_forward"](Run(lent, True), x.view(Lent), ones, ones, 1e-5)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1.3e-7)
    np.testing.assert_allclose(var, exact.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(xhat, (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0) + 1e-5), atol=1e-4)


def test_cupys_kernels_take_arrays_with_gaps(lent: Any) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((40, 30)).view(Lent)
    x, dy, run, plain = wide[:, :7], wide[:, 9:16], Run(lent, True), Run(bp.backends.Backend(lent.xp), True)
    scale, shift = (rng.standard_normal(7).view(Lent) for _ in range(2))
    labels, weight = rng.integers(0, 7, 80)[::2].view(Lent), rng.uniform(size=(80, 1))[::2].view(Lent)
    loss = bp.MeanSquaredError()
    for name, args in {
        "batch_norm_forward": (x, scale, shift, 1e-5),
        "batch_norm_backward": (x.copy(), scale, dy, True),
        "softmax_cross_entropy": (x, labels, weight[:, 0], 4.0),
        "elementwise_loss": (loss, x, dy, weight),
        "drop": (x, 0.6, None),
    }.items():
        got, want = lent.kernels[name](run, *args), KERNELS[name](plain, *args)
        for a, e in list(zip(got, want, strict=True))[: 1 if name == "drop" else None]:
            np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [0.5, 1e-30])
@pytest.mark.parametrize("worst", [np.nan, np.inf, 3e38, 1e-30])
def test_cupys_clipping_of_what_float32_hardly_holds(worst: float, limit: float, lent: Any) -> None:
    grad = np.array([1e-20, worst, 2.0, worst], "f").view(Lent)
    with np.errstate(all="ignore"):
        expected = KERNELS["clip_by_global_norm"](Run(bp.backends.Backend(lent.xp)), grad, limit)
        found = lent.kernels["clip_by_global_norm"](Run(lent), grad, limit)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "limit"), [(1e-30, 1e-31), (1e-20, 1e-22), (1e-32, 1e-33), (1e-25, 1.0), (1e30, 1e-3)]
)
def test_cupys_clipping_of_gradients_whose_squares_are_0_or_infinite(size: float, limit: float, lent: Any) -> None:
    direction = np.random.default_rng(0).standard_normal(300)
    grad = (size * direction / np.linalg.norm(direction)).astype("f")
    found = lent.kernels["clip_by_global_norm"](Run(lent), grad.view(Lent), limit)
    np.testing.assert_allclose(found, grad * min(1.0, limit / size), rtol=2e-5, atol=0.0)


@pytest.mark.parametrize("donate", [True, False])
def test_cupys_update_equals_its_rule(donate: bool, lent: Any) -> None:
    """The second piece begins where 16 bytes don't, so its elements are read one by one."""
    rng = np.random.default_rng(0)
    arrays = [aligned(np.abs(rng.standard_normal(1001))).view(Lent) for _ in range(4)]
    before = [a.copy() for a in arrays]
    numbers, rule = bp.AdamW(1e-2).hyperparameters(1e-2, 3), bp.AdamW(1e-2).elementwise
    pieces = [(0, 333, numbers), (333, 1001, (*numbers[:-1], 1.0))]
    results = lent.map_vector(rule, 3, arrays, pieces, donate)
    for start, stop, numbers in pieces:
        expected = rule(lent, *(a[start:stop] for a in before), *numbers)
        for result, e in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result[start:stop], e)
    for result, array, old in zip(results, arrays, before, strict=False):
        assert (result is array) == donate
        assert donate or np.array_equal(array, old)


def test_without_fused_rules_the_definitions_run(lent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a kernel of a rule was launched")

    from bpnet.backends import cupy_launch

    monkeypatch.setattr(cupy_launch, "function", refuse)
    lent.techniques = lent.techniques - {"fused"}
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(s).view(Lent) for s in ((9, 5), (5, 12), (9, 12)))
    f, run, plain = bp.Tanh(), Run(lent), Run(bp.backends.Backend(lent.xp))
    y, kept = dense_forward(run, x, weight, None, f)
    expected, _ = dense_forward(plain, x, weight, None, f)
    np.testing.assert_array_equal(y, expected)
    found = dense_backward(run, x, weight, kept, dy, f, True, True)
    for a, e in zip(found, dense_backward(plain, x, weight, kept, dy, f, True, True), strict=True):
        np.testing.assert_array_equal(a, e)
    np.testing.assert_array_equal(lent.fuse(f.value)(lent, x), np.tanh(x))
    (result,) = lent.map_vector(bp.SGD().elementwise, 1, (x.reshape(-1), x.reshape(-1)), [(0, 45, (0.1,))], False)
    np.testing.assert_array_equal(result, x.reshape(-1) - 0.1 * x.reshape(-1))
    mask = lent.keep_mask((3, 8), (50, 33), 0.7, np.dtype("float64"), "cpu")
    np.testing.assert_array_equal(
        mask, bp.backends.Backend(lent.xp).keep_mask((3, 8), (50, 33), 0.7, mask.dtype, "cpu")
    )


class Here(str):
    """NumPy's device, which can be made the current one as CuPy's can."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Watched(Lent):
    """An array of which a step may not ask a value: that would wait for the device."""

    device = Here("cpu")
    closed = False


def door(name: str) -> Callable[..., Any]:
    def method(self: Watched, *arguments: Any) -> Any:
        assert not Watched.closed, f"the host asks a device for a value, by {name}"
        return getattr(np.ndarray, name)(self, *arguments)

    return method


for name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
    setattr(Watched, name, door(name))


@pytest.fixture
def watched(lent: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """array(values): an array that bpnet takes for CuPy's, for steps that are launched kernel by kernel.

    No more are made while `Watched.closed`.
    """
    from bpnet.backends import cupy as seam

    def empty(shape: Any, dtype: Any) -> Watched:
        return aligned(np.empty(shape, dtype)).view(Watched)

    def array(values: Any) -> Watched:
        assert not Watched.closed, "something is copied to the device"
        return aligned(np.asarray(values)).view(Watched)

    monkeypatch.setattr(Watched, "closed", False)
    monkeypatch.setattr(seam.cupy, "array", array, raising=False)
    monkeypatch.setattr(seam.cupy, "empty", empty)
    monkeypatch.setattr(seam.cupy, "empty_like", lambda a: empty(a.shape, a.dtype))
    monkeypatch.setattr(lent, "techniques", lent.techniques - {"graph"})
    monkeypatch.setattr(lent, "device", lambda x: Watched.device)
    monkeypatch.setattr(lent, "session", lambda threads=None, device=None, work=0.0: Watched.device)
    monkeypatch.setitem(bp.backends._by_type, Watched, lent)
    return array


EVERY_LAYER = bp.Sequential(
    bp.Standardize((0.1, 0.2, 0.3, 0.4), 0.5),
    bp.Dense(8, "tanh"),
    bp.BatchNorm(),
    bp.Flatten(),
    bp.Dense(32, "relu"),
    bp.Dropout(0.2),
    bp.Residual(bp.Sequential(*(bp.Dense(32, f) for f in ACTIVATIONS))),
    bp.Residual(bp.Sequential(*ACTIVATIONS, bp.Softmax(), bp.Identity())),
    bp.Dense(5),
    bp.Standardize(0.5, 2.0, invert=True),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("optimizer", "state"), OPTIMIZERS, ids=str)
def test_a_step_asks_the_device_for_nothing(
    dtype: str, optimizer: Any, state: int, lent: Any, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer and optimizer, trained through CuPy's seam, and as NumPy trains them."""
    monkeypatch.setattr(type(bp.backends.get("numpy")), "keep_mask", bp.backends.Backend.keep_mask)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3, 4)).astype(dtype), rng.integers(0, 5, 40)
    trainers = [bp.Trainer(EVERY_LAYER, "cross_entropy", optimizer, seed=3, clip_norm=1.0) for _ in range(2)]
    batches = (watched(x), watched(y)), (x, y)
    trainers[0].build(batches[0][0])
    assert trainers[0].backend is lent
    monkeypatch.setattr(Watched, "closed", True)
    for _ in range(3):
        losses = [t.step(*batch, check=False) for t, batch in zip(trainers, batches, strict=True)]
    monkeypatch.setattr(Watched, "closed", False)
    assert trainers[0].theta.dtype == dtype
    theta, expected = (t.theta.view(np.ndarray) for t in trainers)
    tolerance = 1e-9 if dtype == "float64" else 2e-4
    np.testing.assert_allclose(theta, expected, rtol=tolerance, atol=tolerance)
    assert abs(losses[0] - losses[1]) < tolerance


def test_arrays_of_cupy_and_numpy_do_not_mix(watched: Any) -> None:
    x, y = np.ones((6, 3, 4)), np.zeros(6, np.int64)
    trainer = bp.Trainer(EVERY_LAYER, "cross_entropy")
    mismatch = bp.errors.ArrayMismatchError
    with pytest.raises(mismatch, match="x belongs to numpy, but y to cupy: convert one of them"):
        trainer.fit(x, watched(y))
    with pytest.raises(mismatch, match="x belongs to cupy, but y to numpy: convert one of them"):
        trainer.step(watched(x), y)
    trainer.build(watched(x))
    with pytest.raises(mismatch, match=r"trainer's parameters.*bp\.load\(path, like=x\)"):
        trainer.predict(x)
    with pytest.raises(
        mismatch, match=r"parameters\['1'\]\['bias'\] belongs to numpy, but the trainer's parameters to cupy"
    ):
        trainer.parameters = {**trainer.parameters, "1": {"bias": np.zeros(8), "weight": np.zeros((4, 8))}}
