"""The CUDA kernels made of rules: NVIDIA's compiler takes them, and a C++ compiler's reading of them equals NumPy's.

Neither needs a device.  On the host every thread of every block is run one after the other, on real memory.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.backends.base import fold
from bpnet.backends.cuda import OPTIONS, WIDE, Form, keep_mask_source, map_launch, source, sum_launch
from bpnet.backends.trace import NotTraceableError
from bpnet.layer import Run
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
using namespace std;
struct Three { unsigned int x, y; };
static Three gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __device__
#define __forceinline__ inline
extern "C" void place(Three grid, Three block, Three b, Three t) {
    gridDim = grid; blockDim = block; blockIdx = b; threadIdx = t;
}
"""


class Three(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint)]


def biased(b: Any, z: Any, bias: Any) -> tuple[Any, Any]:
    z = z + bias
    return b.xp.maximum(z, 0.0), z


def forms(dtype: str) -> list[Any]:
    """Every elementwise rule: (name, rule, arrays, vectors, scalars)."""
    found = [(f"{f} value", f.value, 1, 0, ()) for f in ACTIVATIONS]
    found += [(f"{f} derivative", f.derivative, 2, 0, ()) for f in ACTIVATIONS]
    for optimizer, state in OPTIMIZERS:
        scalars, shrink = optimizer.numbers(optimizer.lr, 7)
        scalars = (*scalars, shrink) if optimizer.decay else scalars
        found.append((str(optimizer), type(optimizer).rule, 2 + state, 0, scalars))
    found.append(("bias", biased, 2, 1, ()))
    return [pytest.param(dtype, *form[1:], id=f"{form[0]}-{dtype}") for form in found]


EVERY = pytest.mark.parametrize(("dtype", "rule", "arrays", "vectors", "scalars"), forms("float32") + forms("float64"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """run(code, kernel, launch, *arguments): a kernel's text compiled for this processor and run, thread by thread."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    made: dict[str, Any] = {}

    def run(code: str, kernel: str, launch: Any, *arguments: Any) -> None:
        if code not in made:
            path: Path = folder / f"k{len(made)}.cpp"
            path.write_text(HOST + code)
            command = [compiler, "-std=c++17", "-O0", "-ffp-contract=off", "-shared", "-fPIC", path.name]
            subprocess.run([*command, "-o", f"{path.stem}.so"], cwd=folder, check=True)
            made[code] = ctypes.CDLL(str(path.with_suffix(".so")))
        library = made[code]
        (gx, gy), (bx, by) = launch
        for place in np.ndindex(gx, gy, bx, by):
            library.place(Three(gx, gy), Three(bx, by), Three(*place[:2]), Three(*place[2:]))
            getattr(library, kernel)(*arguments)

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
def test_nvidias_compiler_takes_it(
    dtype: str, rule: Any, arrays: int, vectors: int, scalars: tuple[float, ...]
) -> None:
    compiled(source(Form(rule, arrays, vectors, len(scalars), dtype)).code)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nvidias_compiler_takes_the_mask(dtype: str) -> None:
    compiled(keep_mask_source(dtype))


ARCHITECTURES = ("sm_80", "sm_90")
"""What kernels are compiled for here, a sixth of a second each."""


def compiled(code: str) -> None:
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    for architecture in ARCHITECTURES:
        try:
            program = nvrtc.createProgram(code, "rule.cu", [], [])
        except Exception as error:  # CuPy without NVIDIA's compiler
            pytest.skip(f"NVRTC can't be used: {error}")
        try:
            nvrtc.compileProgram(program, [f"-arch={architecture}", *OPTIONS])
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        assert len(nvrtc.getCUBIN(program)) > 1000


@EVERY
@pytest.mark.parametrize("kind", ["wide", "plain"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1203), (37, 24), (700, 4)])
def test_a_map_equals_the_rule(
    rows: int, columns: int, kind: str, dtype: str, rule: Any, arrays: int, vectors: int, scalars: Any, host: Any
) -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((rows, columns) if i < arrays - vectors else columns) for i in range(arrays)]
    if scalars and arrays == 4:  # Adam's sum of squares
        values[2] = np.abs(values[2])
    values = [value.astype(dtype) for value in values]
    with np.errstate(all="ignore"):
        expected = rule(bp.backends.get("numpy"), *values, *scalars)
    expected = expected if isinstance(expected, tuple) else (expected,)
    made = source(Form(rule, arrays, vectors, len(scalars), dtype))
    inputs = [aligned(value) for value in values]
    outputs = inputs[: len(expected)] if vectors == 0 else [aligned(e) * 0 for e in expected]
    outputs = [aligned(o) for o in outputs] if vectors else outputs
    width = WIDE[dtype] if kind == "wide" else 1
    host(
        made.code, f"map_{kind}", map_launch(rows, columns, width),
        *(ctypes.c_longlong(n) for n in (rows, columns)), *map(pointer, [*inputs, *outputs]),
        *numbers(made.text.prepare, dtype, scalars),
    )  # fmt: skip
    eps = np.finfo(dtype).eps
    for output, e in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, e, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["wide", "plain"])
@pytest.mark.parametrize("rows", [1, 64, 129, 20000])
def test_slope_and_its_column_sums(rows: int, kind: str, dtype: str, host: Any) -> None:
    rng = np.random.default_rng(0)
    kept, dy = (aligned(rng.standard_normal((rows, 12)).astype(dtype)) for _ in range(2))
    made = source(Form(bp.ReLU().derivative, 2, 0, 0, dtype))
    launch, step = sum_launch(rows, 12, WIDE[dtype] if kind == "wide" else 1)
    dz, sums = aligned(np.zeros_like(dy)), aligned(np.zeros((launch[0][1], 12), dtype))
    host(
        made.code, f"sum_{kind}", launch, *(ctypes.c_longlong(n) for n in (rows, 12, step)),
        *map(pointer, [kept, dy, dz, sums]), *numbers(made.text.prepare, dtype, ()),
    )  # fmt: skip
    assert np.array_equal(dz, dy * (kept > 0))
    assert len(sums) <= 256
    np.testing.assert_allclose(sums.sum(axis=0), np.sum(dz, axis=0, dtype="float64"), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mask_has_the_bits_of_the_definition(dtype: str, host: Any) -> None:
    key, keep, shape = (3, 8, 0, 77), 0.7, (50, 33)
    xp = bp.backends.get("numpy").xp
    expected = bp.backends.Backend(xp).keep_mask(key, shape, keep, xp.dtype(dtype), "cpu")
    threshold, mask = round(keep * 2**32), np.zeros(shape, dtype)
    kind = ctypes.c_float if dtype == "float32" else ctypes.c_double
    host(
        keep_mask_source(dtype), "keep_mask", map_launch(1, mask.size, 1), ctypes.c_longlong(mask.size),
        ctypes.c_uint(fold(key)), ctypes.c_uint(threshold), kind(2**32 / threshold), pointer(mask),
    )  # fmt: skip
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_what_is_not_a_number_is_handed_on(op: str, host: Any) -> None:
    made = source(Form(lambda b, x, y: getattr(b.xp, op)(x, y), 2, 0, 0, "float64"))
    x, y = np.array([np.nan, 1.0, np.inf, 2.0]), np.array([1.0, np.nan, 3.0, 2.0])
    expected, out = getattr(np, op)(x, y), np.zeros(4)
    sizes = ctypes.c_longlong(1), ctypes.c_longlong(4)
    host(made.code, "map_plain", map_launch(1, 4, 1), *sizes, *map(pointer, (x, y, out)))
    assert np.array_equal(out, expected, equal_nan=True)


def test_what_cannot_be_traced_says_so() -> None:
    with pytest.raises(NotTraceableError):
        source(Form(lambda b, x: b.xp.sum(x), 1, 0, 0, "float32"))


@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 10**9, 4), (10**7, 1, 1), (262144, 4096, 4), (3, 10, 2)])
def test_launches_stay_within_what_devices_take(rows: int, columns: int, width: int) -> None:
    for (across, down), (x, y) in (map_launch(rows, columns, width), sum_launch(rows, columns, width)[0]):
        assert 1 <= across < 2**31
        assert 1 <= down < 2**16
        assert 1 <= x * y <= 1024


class Lent(np.ndarray):
    """NumPy's array with what the launches ask of CuPy's: where it lies."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)


@pytest.fixture
def lent(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy's backend whose arrays are NumPy's and whose kernels run on the host: all but the device itself."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from bpnet.backends import cublaslt, cupy_kernels
    from bpnet.backends import cupy as seam

    class Module:
        def __init__(self, code: str) -> None:
            self.code = code

        def get_function(self, name: str) -> Any:
            def launch(grid: Any, block: Any, arguments: Any) -> None:
                host(self.code, name, (grid, block), *map(passed, arguments))

            return launch

    def passed(argument: Any) -> Any:
        if isinstance(argument, np.ndarray):
            return pointer(argument)
        kinds = {"l": ctypes.c_longlong, "q": ctypes.c_longlong, "I": ctypes.c_uint, "f": ctypes.c_float}
        return kinds.get(argument.dtype.char, ctypes.c_double)(argument)

    def empty(shape: Any, dtype: Any) -> Lent:
        return np.empty(shape, dtype).view(Lent)

    library = SimpleNamespace(
        empty=empty,
        ones=lambda *args: np.ones(*args).view(Lent),
        empty_like=lambda a: empty(a.shape, a.dtype),
        matmul=np.matmul,
        sum=np.sum,
    )
    monkeypatch.setattr(cublaslt, "bindings", lambda: None)
    for module in (seam, cupy_kernels):
        monkeypatch.setattr(module, "cupy", library)
        monkeypatch.setattr(module, "module", Module)
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
    run = Run(lent, places={id(weight): place})
    found = dense_backward(run, x, weight, cache, dy, f, True, has_bias)
    assert found[1] is place
    eps = np.finfo(dtype).eps
    for a, e in zip((mine, *found), (y, *expected), strict=True):
        if e is None:
            assert a is None
        else:
            np.testing.assert_allclose(a, e, rtol=64 * eps, atol=64 * eps)


@pytest.mark.parametrize("donate", [True, False])
def test_cupys_update_equals_its_rule(donate: bool, lent: Any) -> None:
    """The second piece begins where 16 bytes don't, so its elements are read one by one."""
    rng = np.random.default_rng(0)
    arrays = [aligned(np.abs(rng.standard_normal(1001))).view(Lent) for _ in range(4)]
    before = [a.copy() for a in arrays]
    (scalars, shrink), rule = bp.AdamW(1e-2).numbers(1e-2, 3), bp.AdamW.rule
    pieces = [(0, 333, (*scalars, shrink)), (333, 1001, (*scalars, 1.0))]
    results = lent.sweep(rule, 3, arrays, pieces, donate)
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

    from bpnet.backends import cupy as seam
    from bpnet.backends import cupy_kernels

    for module in (seam, cupy_kernels):
        monkeypatch.setattr(module, "module", refuse)
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
    (result,) = lent.sweep(bp.SGD.rule, 1, (x.reshape(-1), x.reshape(-1)), [(0, 45, (0.1,))], False)
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
    bp.Dense(8, "tanh"),
    bp.BatchNorm(),
    bp.Flatten(),
    bp.Dense(32, "relu"),
    bp.Dropout(0.2),
    bp.Residual(bp.Sequential(*(bp.Dense(32, f) for f in ACTIVATIONS))),
    bp.Residual(bp.Sequential(*ACTIVATIONS, bp.Softmax(), bp.Identity())),
    bp.Dense(5),
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
    with pytest.raises(mismatch, match="x is an array of numpy but y is one of cupy: convert one of them"):
        trainer.fit(x, watched(y))
    with pytest.raises(mismatch, match="x is an array of cupy but y is one of numpy: convert one of them"):
        trainer.step(watched(x), y)
    trainer.build(watched(x))
    with pytest.raises(mismatch, match=r"trainer's parameters.*bp\.load\(path, like=x\)"):
        trainer.predict(x)
    with pytest.raises(mismatch, match=r"parameters\['0'\]\['bias'\] is an array of numpy"):
        trainer.parameters = {**trainer.parameters, "0": {"bias": np.zeros(8), "weight": np.zeros((4, 8))}}
