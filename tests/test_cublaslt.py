"""Products by cuBLASLt: what NVIDIA's bindings are given makes a substitute for the library give what NumPy gives."""

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import substitute
from support.nvrtc import compiled
from support.world import World

import bpnet as bp

cublaslt = pytest.importorskip("bpnet.backends.cupy.cublaslt", reason="CuPy is not installed")

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
EPILOGUES = ("DEFAULT", "BIAS", "RELU", "RELU_BIAS")
ACTIVATIONS = (
    bp.Identity(), bp.ReLU(), bp.Sigmoid(), bp.Tanh(), bp.GELU(), bp.GELU(True), bp.Mish(), bp.ELU(0.25), bp.Softmax(),
)  # fmt: skip
"""Of which the derivative reads nothing, the output, the input; and one that is not elementwise."""


class Products:
    """What is asked of cuBLASLt: `lacks` are epilogues of which its heuristic is to know no product, `asked` those that
    it was asked for, `done` those that were computed; `sizes` of the workspaces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lacks: set[str] = set()
        self.asked: list[str] = []
        self.done: list[str] = []
        self.sizes: list[int] = []
        find, run = cublaslt.Plan.find, cublaslt.Plan.run

        def found(plan: Any, aligned: Any) -> Any:
            self.asked.append(plan.problem.epilogue)
            return plan.problem.epilogue not in self.lacks and find(plan, aligned)

        def ran(plan: Any, *args: Any) -> None:
            run(plan, *args)
            self.done.append(plan.problem.epilogue)

        monkeypatch.setattr(cublaslt.Plan, "find", found)
        monkeypatch.setattr(cublaslt.Plan, "run", ran)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[Products]:
    if substitute.missing():
        pytest.skip(f"no substitute for a device: {substitute.missing()}")
    if not cublaslt.available():
        pytest.skip("nvmath-python is not installed")
    cublaslt._plan.cache_clear()
    yield Products(monkeypatch)
    cublaslt._plan.cache_clear()


@pytest.fixture
def lt(products: Products) -> Products:
    """The same, for memory of NumPy's: that of the substitute is the host's."""
    return products


def tf32(a: np.ndarray) -> np.ndarray:
    """float32 values rounded to 11 significant bits."""
    bits = a.view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def bfloat16(a: np.ndarray) -> np.ndarray:
    """float32 values rounded to 8 significant bits."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def on_device(a: np.ndarray) -> np.ndarray:
    """A copy of `a` that begins where CuPy's pool would let it begin."""
    memory = np.empty(a.nbytes + 512, np.uint8)
    start = -memory.ctypes.data % 512
    copy = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def multiplied(
    lt: Products, a: Any, b: Any, out: Any, epilogue: str = "DEFAULT", vector: Any = None, **options: Any
) -> bool:
    """out <- a b of matrices of any strides, or of stacks of them; whether the library had it."""

    def stored(x: Any) -> tuple[bool, int, int]:
        row, column = (n // x.itemsize for n in x.strides[-2:])
        apart = x.strides[0] // x.itemsize if x.ndim == 3 else 0
        return (False, row, apart) if column == 1 and row >= x.shape[-1] else (True, column, apart)

    def workspace(size: int) -> int:
        lt.sizes.append(size)
        return 512

    rows, columns, inner = a.shape[-2], b.shape[-1], a.shape[-1]
    dtype = options.pop("dtype", a.dtype.name)
    kinds = dtype, out.dtype.name, options.pop("precision", "float32"), epilogue, options.pop("accumulate", False)
    stack = len(a) if a.ndim == 3 else 1
    problem = cublaslt.Problem(rows, columns, inner, stored(a), stored(b), *kinds, stack, **options)
    place = 0 if vector is None else vector.ctypes.data
    addresses = a.ctypes.data, b.ctypes.data, out.ctypes.data, place
    plan = cublaslt.plan(problem, addresses)
    if plan is not None:
        plan.run(addresses, workspace(plan.scratch))
    return plan is not None


@DTYPES
@pytest.mark.parametrize("transposed", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 7), (8, 16, 8), (1, 9, 4), (6, 1, 1), (2, 33, 24)])
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_product_and_its_epilogue(
    accumulate: bool, epilogue: str, m: int, k: int, n: int, transposed: tuple[bool, bool], dtype: str, lt: Products
) -> None:
    """Of whole matrices, and of some whose rows are apart."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    vector, before = (on_device(rng.standard_normal(size).astype(dtype)) for size in (n, (m, n)))
    z = a @ b + (vector if "BIAS" in epilogue else 0.0) + (before if accumulate else 0.0)
    expected = np.maximum(z, 0.0) if "RELU" in epilogue else z
    for apart in (0, 3):
        stored = []
        for x, t in zip((a, b), transposed, strict=True):
            x = x.T if t else x
            wide = on_device(np.pad(x, ((0, 0), (0, apart))))[:, : x.shape[1]]
            stored.append(wide.T if t else wide)
        out = on_device(before)
        given = vector if "BIAS" in epilogue else None
        assert multiplied(lt, *stored, out, epilogue, given, accumulate=accumulate)
        eps = 32 * np.finfo(dtype).eps * k
        np.testing.assert_allclose(out, expected, rtol=eps, atol=eps)
    assert lt.done == [epilogue] * 2


@pytest.mark.parametrize("transposed", [False, True])
def test_stacks_of_products(transposed: bool, lt: Products) -> None:
    """Of which a factor may be the same for all."""
    rng = np.random.default_rng(0)
    a, b = on_device(rng.standard_normal((5, 3, 4))), on_device(rng.standard_normal((4, 2)))
    shared = np.lib.stride_tricks.as_strided(b, (5, 4, 2), (0, *b.strides))
    if transposed:
        stored = on_device(np.ascontiguousarray(a.transpose(0, 2, 1)))
        a = stored.transpose(0, 2, 1)
    out = on_device(np.zeros((5, 3, 2)))
    assert multiplied(lt, a, shared, out)
    np.testing.assert_allclose(out, a @ b, rtol=1e-14, atol=1e-14)


def test_a_product_is_planned_once(lt: Products) -> None:
    """And used for other places in memory, but not for such as are less aligned."""
    x, eye = on_device(np.arange(400, dtype="float32")), on_device(np.eye(4, dtype="float32"))
    for start, plans in ((0, 1), (64, 1), (128, 1), (1, 2), (3, 2), (2, 3), (4, 4)):
        a, out = x[start : start + 12].reshape(3, 4), on_device(np.zeros((3, 4), "float32"))
        assert multiplied(lt, a, eye, out)
        assert np.array_equal(out, a)
        assert (start, len(lt.asked)) == (start, plans)


def test_every_call_names_the_current_stream_and_takes_a_workspace(lt: Products, world: World) -> None:
    a, out = on_device(np.eye(4)), on_device(np.zeros((4, 4)))
    for _ in range(3):
        out[...] = 0.0
        with world.cuda.Stream(non_blocking=True) as stream:
            multiplied(lt, a, a, out)
        assert not out.any()
        assert (stream.done, world.cuda.Stream.null.done) == (False, True)
        stream.synchronize()
        np.testing.assert_array_equal(out, a)
    assert lt.sizes == [4096] * 3


def test_what_is_forgotten_is_destroyed(lt: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    library, alive = cublaslt.bindings()[0], []

    def counted(kind: str) -> None:
        create, destroy = (getattr(library, f"{kind}_{verb}") for verb in ("create", "destroy"))
        monkeypatch.setattr(library, f"{kind}_create", lambda *args: (made := create(*args), alive.append(made))[0])
        monkeypatch.setattr(library, f"{kind}_destroy", lambda made: (alive.remove(made), destroy(made)))

    for kind in ("matmul_desc", "matrix_layout", "matmul_preference"):
        counted(kind)
    a = on_device(np.eye(4))
    multiplied(lt, a, a, on_device(np.zeros((4, 4))))
    assert len(alive) == 1 + 3  # a description and its layouts
    cublaslt._plan.cache_clear()
    assert not alive


@pytest.mark.parametrize("why", ["no bindings", "another type", "another precision", "vector", "none known"])
def test_what_cublaslt_cannot_do_is_not_done(why: str, lt: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    a, out, vector = (on_device(np.full(size, 77, "f")) for size in ((8, 8), (8, 8), 9))
    options = {}
    if why == "no bindings":
        monkeypatch.setattr(cublaslt, "bindings", lambda: "missing")
    elif why == "none known":
        lt.lacks = {"BIAS"}
    elif why == "another type":
        options["dtype"] = "float16"
    elif why == "another precision":
        options["precision"] = "bfloat16"  # of factors that are not rounded
    assert not multiplied(lt, a, a, out, "BIAS", vector[1:] if why == "vector" else vector[:8], **options)
    assert np.all(out == 77)
    assert lt.done == []


def test_hip_and_a_broken_installation_leave_cupys_product(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    runtime = SimpleNamespace(is_hip=True)
    monkeypatch.setattr(cublaslt, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert isinstance(cublaslt.bindings.__wrapped__(), str)
    runtime.is_hip, real = False, builtins.__import__

    def broken(name: str, *args: Any) -> Any:
        if name.startswith("nvmath"):
            raise RuntimeError("libcublasLt.so: no such file")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert isinstance(cublaslt.bindings.__wrapped__(), str)


# ---- products of compiled functions ---------------------------------------------------------------------------------


def layer(rows: int, n: int, units: int, dtype: str, seed: int = 0) -> tuple[Any, ...]:
    """Rows, a weight, a bias, and a derivative with respect to the output."""
    rng = np.random.default_rng(seed)
    x, weight, bias, dy = (rng.standard_normal(size) for size in ((rows, n), (n, units), units, (rows, units)))
    return tuple(a.astype(dtype) for a in (x, weight / n**0.5, bias, dy))


def dense(function: Any, has_bias: bool = True) -> Callable[..., Any]:
    """function(backend, x, weight, bias, dy): what such a layer gives, and all its derivatives."""

    def both(b: Any, x: Any, weight: Any, bias: Any, dy: Any) -> Any:
        units = bp.Dense(weight.shape[1], function, has_bias)
        run, p = bp.Run(b, True), {"weight": weight} | ({"bias": bias} if has_bias else {})
        y, cache = units.forward(run, p, x)
        dx, grads = units.backward(run, p, cache, dy)
        return y, dx, *(grads[name] for name in p)

    return both


def forward(function: Any, has_bias: bool = True) -> Callable[..., Any]:
    """The output of such a layer alone."""
    both = dense(function, has_bias)
    return lambda b, x, weight, bias: both(b, x, weight, bias, b.xp.matmul(x, weight))[:1]


def compared(world: World, function: Callable[..., Any], arguments: Any, rtol: float | None = None) -> None:
    """On the substitute for a device, compiled, and by NumPy's definitions in double precision."""
    numpy = bp.backends.Backend(bp.backends.get("numpy").xp)
    expected = function(numpy, *(a.astype("float64") for a in arguments))
    found = world.seam.compile(function)(*map(world.array, arguments))
    rtol = rtol or 200 * float(np.finfo(arguments[0].dtype).eps)
    for f, e in zip(map(world.cupy.asnumpy, found), expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=rtol, atol=rtol * max(1.0, np.abs(e).max()))
    world.check_bounds()


@DTYPES
@pytest.mark.parametrize("function", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_dense_layer_equals_its_definition(
    has_bias: bool, function: Any, dtype: str, world: World, products: Any
) -> None:
    if not (dtype == "float32" and has_bias) and function not in (bp.ReLU(), bp.Tanh(), bp.Identity()):
        pytest.skip("its kernels are those of the activation alone")
    for shape in ((9, 12, 16), (9, 5, 7), (1, 7, 8), (70, 3, 1)):
        compared(world, dense(function, has_bias), layer(*shape, dtype))
    before = world.counts["kernel"]
    compared(world, forward(function, has_bias), layer(9, 12, 16, dtype)[:3])
    first = {bp.ReLU(): "RELU_BIAS" if has_bias else "RELU", bp.Identity(): "BIAS" if has_bias else "DEFAULT"}
    assert products.done == ["DEFAULT"] * 12 + [first.get(function, "DEFAULT")]  # others have a kernel anyhow
    assert world.counts["kernel"] - before == (function not in first)
    assert world.counts["product of cuBLAS"] == 0


@pytest.mark.parametrize("function", [bp.ReLU(), bp.Tanh(), bp.Identity()], ids=str)
@pytest.mark.parametrize("lacks", [{"RELU_BIAS"}, {"BIAS", "RELU_BIAS"}, set(EPILOGUES)])
def test_without_some_epilogues_the_rest_is_done_apart(
    lacks: set[str], function: Any, world: World, products: Any
) -> None:
    products.lacks = lacks
    compared(world, dense(function), layer(9, 12, 16, "float32"))
    compared(world, forward(function), layer(9, 12, 16, "float32")[:3])
    assert not lacks.intersection(products.done)
    assert (world.counts["product of cuBLAS"] > 0) == ("DEFAULT" in lacks)


@DTYPES
def test_parameters_may_begin_anywhere_and_rows_lie_apart(dtype: str, world: World, products: Any) -> None:
    """As in one vector of all parameters, behind an odd number of others; and as a view of the caller's."""
    rng = np.random.default_rng(0)
    theta, wide, narrow = (rng.standard_normal(size).astype(dtype) for size in (3 + 35 + 7, (6, 10), (7, 6)))
    both = dense(bp.ReLU())

    def function(b: Any, theta: Any, x: Any, dy: Any) -> Any:
        return both(b, x, b.xp.reshape(theta[3:38], (5, 7)), theta[38:], dy)

    expected = function(bp.backends.Backend(bp.backends.get("numpy").xp), theta, wide[:, ::2], narrow.T)
    given = world.array(theta), world.array(wide)[:, ::2], world.array(narrow).T
    for f, e in zip(world.seam.compile(function)(*given), expected, strict=True):
        np.testing.assert_allclose(world.cupy.asnumpy(f), e, rtol=2e-5, atol=2e-5)
    assert products.done == ["DEFAULT"] * 3  # whose bias begins where 16 bytes don't


def test_products_added_up_need_no_memory_of_their_own(world: World, products: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 5)), rng.standard_normal((20, 4))

    def function(backend: Any, a: Any, b: Any) -> Any:
        turned = [backend.xp.permute_dims(a[i : i + 5, ...], (1, 0)) for i in range(0, 20, 5)]
        parts = [backend.xp.matmul(x, b[5 * i : 5 * i + 5, ...]) for i, x in enumerate(turned)]
        total = parts[0]
        for part in parts[1:]:
            total = backend.add_to(total, part)
        return (total,)

    (found,) = world.seam.compile(function)(world.array(a), world.array(b))
    np.testing.assert_allclose(world.cupy.asnumpy(found), a.T @ b, rtol=1e-13, atol=1e-13)
    assert products.done == ["DEFAULT"] * 4
    assert world.counts["kernel"] == 0


def test_which_devices_have_every_precision(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(type(world.seam.get_device(0))):
        compute_capability = "75"

    class Newer(Older):
        compute_capability = "80"

    older, newer = Older(), Newer()
    assert world.seam.precisions(older) == ("float32",)
    assert world.seam.precisions(newer) == ("float32", "tf32", "bfloat16")
    monkeypatch.setattr(cublaslt, "bindings", lambda: "missing")
    assert world.seam.precisions(newer) == world.seam.precisions(None) == ("float32",)


def not_finite(compile: Any, to_device: Any, to_host: Any, function: Any) -> None:
    """Values of x that are not finite make those of the weights' gradient so: else a network that diverges would go on.

    Its outputs need not tell, as relu's epilogue may make zeros of what is not a number.
    """
    x, weight, bias, dy = layer(9, 12, 16, "float32")
    x[3, 3], x[5, 5] = np.nan, np.inf
    y, _, gradient, _ = map(to_host, compile(dense(function))(*map(to_device, (x, weight, bias, dy))))
    if function == bp.Identity():
        with np.errstate(invalid="ignore"):
            assert np.array_equal(np.isfinite(y), np.isfinite(x @ weight + bias))
    assert not np.any(np.isfinite(gradient[[3, 5]]))


@pytest.mark.parametrize("function", [bp.ReLU(), bp.Identity()], ids=str)
def test_what_is_not_finite_reaches_the_gradient(function: Any, world: World) -> None:
    not_finite(world.seam.compile, world.array, world.cupy.asnumpy, function)
    assert world.counts["product"] == 3


# ---- precision ------------------------------------------------------------------------------------------------------

ROUND = {"tf32": tf32, "bfloat16": bfloat16}
UNIT = {"tf32": 2.0**-11, "bfloat16": 2.0**-8}
"""By how much a number changes at most, relatively, when it is rounded."""
ROUNDED = pytest.mark.parametrize("precision", ROUND)


@ROUNDED
def test_products_in_another_precision_are_those_of_rounded_factors(precision: str, lt: Products) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 12)).astype("f"), rng.standard_normal((12, 16)).astype("f")
    expected = (ROUND[precision](a).astype("d") @ ROUND[precision](b)).astype("f")
    if precision == "bfloat16":
        a, b = ((bfloat16(x).view("u4") >> 16).astype("u2") for x in (a, b))
    out = on_device(np.zeros((9, 16), "f"))
    kind = {"dtype": "bfloat16"} if precision == "bfloat16" else {}
    assert multiplied(lt, on_device(a), on_device(b), out, precision=precision, **kind)
    np.testing.assert_array_equal(out, expected)


def in_precision(precision: str, function: Any) -> Callable[..., Any]:
    """As `dense`, with products in a precision."""

    def both(b: Any, x: Any, weight: Any, bias: Any, dy: Any) -> Any:
        units = bp.Dense(weight.shape[1], function)
        run, p = bp.Run(b, True, context=b.context(precision)), {"weight": weight, "bias": bias}
        y, cache = units.forward(run, p, x)
        dx, grads = units.backward(run, p, cache, dy)
        return y, dx, grads["weight"], grads["bias"]

    return both


@ROUNDED
@pytest.mark.parametrize("function", ACTIVATIONS, ids=str)
def test_a_dense_layer_in_another_precision(function: Any, precision: str, world: World) -> None:
    arguments = layer(70, 12, 16, "float32")
    exact = bp.backends.Backend(bp.backends.get("numpy").xp)
    expected = dense(function)(exact, *(a.astype("float64") for a in arguments))
    found = world.seam.compile(in_precision(precision, function))(*map(world.array, arguments))
    for i, (f, e) in enumerate(zip(map(world.cupy.asnumpy, found), expected, strict=True)):
        assert f.dtype == np.float32
        error = np.linalg.norm(f - e) / np.linalg.norm(e)
        assert error <= 8 * UNIT[precision]
        assert error > 1e-6 or i == 3, "the precision makes no difference"
    world.check_bounds()
    for code in world.codes:
        compiled(code)


@ROUNDED
def test_a_product_is_that_of_rounded_factors_and_nothing_else_is_rounded(precision: str, world: World) -> None:
    x, weight, bias, _ = layer(9, 12, 16, "float32")

    def function(b: Any, x: Any, weight: Any, bias: Any) -> Any:
        run = bp.Run(b, context=b.context(precision))
        return bp.Dense(16).forward(run, {"weight": weight, "bias": bias}, x)[:1]

    (found,) = world.seam.compile(function)(*map(world.array, (x, weight, bias)))
    rounded = ROUND[precision]
    expected = rounded(x).astype("d") @ rounded(weight) + bias
    np.testing.assert_array_equal(world.cupy.asnumpy(found), expected.astype("f"))


@pytest.mark.parametrize("rows", [1, 3, 260])
def test_kernels_round_to_bfloat16_as_ieee_754_says(rows: int, world: World) -> None:
    """To nearest, of two as near to the even one; NaN and infinities stay such."""
    bits = np.random.default_rng(0).integers(0, 2**32, rows, dtype=np.uint32)
    ties = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0, 1 << 31, 0x8001]
    x = np.concatenate([bits, np.array([*ties, 0x7FC00000, 0xFFFFFFFF], np.uint32)]).view("f").reshape(-1, 1)

    def function(b: Any, x: Any, one: Any) -> Any:
        return (bp.Run(b, context=b.context("bfloat16")).matmul(x, one),)

    (found,) = world.seam.compile(function)(world.array(x), world.array(np.ones((1, 1), "f")))
    expected = np.where(np.isnan(x), np.nan, bfloat16(np.where(np.isnan(x), 0.0, x).astype("f")))
    np.testing.assert_array_equal(world.cupy.asnumpy(found), expected)


@ROUNDED
def test_float64_is_never_rounded(precision: str, world: World) -> None:
    arguments = layer(9, 12, 16, "float64")
    found = world.seam.compile(in_precision(precision, bp.Tanh()))(*map(world.array, arguments))
    expected = dense(bp.Tanh())(bp.backends.Backend(bp.backends.get("numpy").xp), *arguments)
    for f, e in zip(map(world.cupy.asnumpy, found), expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12, atol=1e-12)


@ROUNDED
def test_a_missing_product_is_an_error_where_it_would_be_of_another_precision(
    precision: str, world: World, products: Any
) -> None:
    products.lacks = set(EPILOGUES)
    with pytest.raises(bp.errors.DeviceError, match=f"no {precision} product"):
        world.seam.compile(in_precision(precision, bp.Tanh()))(*map(world.array, layer(9, 12, 16, "float32")))


# ---- on a device ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("function", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("shape", [(9, 12, 16), (37, 5, 7), (128, 784, 512), (1024, 512, 10), (1000, 33, 257)])
def test_the_dense_layer_on_a_device(shape: Any, function: Any, dtype: str, device: Any) -> None:
    arguments, both = layer(*shape, dtype), dense(function)
    exact = [a.astype("float64") for a in arguments]
    expected = both(bp.backends.Backend(bp.backends.get("numpy").xp), *exact)
    found = device.seam.compile(both)(*map(device.array, arguments))
    for a, e in zip(found, expected, strict=True):
        device.close(a, e, rtol=2e-6 if dtype == "float32" else 1e-12)


@pytest.mark.gpu
@ROUNDED
@pytest.mark.parametrize("shape", [(128, 40, 16), (37, 5, 10)])
def test_a_dense_layer_in_another_precision_on_a_device(shape: Any, precision: str, device: Any) -> None:
    """At most as far off as rounded factors; rows of 10 are not aligned to 16 bytes, so tf32 may be float32 there."""
    rows, inputs, units = shape
    arguments = layer(rows, inputs, units, "float32")
    expected = dense(bp.Tanh())(bp.backends.Backend(bp.backends.get("numpy").xp), *(a.astype("d") for a in arguments))
    found = device.seam.compile(in_precision(precision, bp.Tanh()))(*map(device.array, arguments))
    for f, e in zip(map(device.host, found), expected, strict=True):
        assert f.dtype == np.float32
        assert np.linalg.norm(f - e) <= 8 * UNIT[precision] * np.linalg.norm(e)


@pytest.mark.gpu
@pytest.mark.parametrize("function", [bp.ReLU(), bp.Identity()], ids=str)
def test_what_is_not_finite_reaches_the_gradient_on_a_device(function: Any, device: Any) -> None:
    not_finite(device.seam.compile, device.array, device.host, function)


@pytest.mark.gpu
def test_nothing_is_changed_for_other_products(device: Any) -> None:
    import cupy

    before = cupy._core.get_compute_type(np.dtype("float32"))
    x, y = device.array(np.ones((64, 8), "float32")), device.array(np.zeros(64, "int64"))
    for precision in device.seam.precisions(None):
        trainer = bp.Trainer(bp.Dense(3), "cross_entropy", precision=precision)
        trainer.fit(x, y, progress=False)
        assert trainer.history["matmul_precision"] == [precision]
    assert cupy._core.get_compute_type(np.dtype("float32")) == before
