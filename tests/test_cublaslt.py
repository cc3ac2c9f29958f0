"""Products by cuBLASLt: what its descriptors are told gives what the definitions give, on bindings that NumPy plays."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_cuda
from fake_cublaslt import BLAS, GELU, Fake, bfloat16, tf32
from test_cuda import ACTIVATIONS, Lent

import bpnet as bp
from bpnet.layer import Run
from bpnet.layers.dense import dense_backward, dense_forward
from bpnet.layout import layout_of
from bpnet.steps import Views, outputs, scores, training_step

pytest.importorskip("cupy", reason="CuPy is not installed")
from bpnet.backends import cublaslt, cupy_kernels

host, lent = test_cuda.host, test_cuda.lent

F = [*ACTIVATIONS, bp.Identity(), bp.Softmax()]
STREAM = 0x5EED


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("CuPy's own product, which can't be captured")


@pytest.fixture
def lt(lent: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """The fake bindings, in the place of the real ones, with the CuPy seam on host memory; `lt.seam` is that."""
    fake = Fake()
    allocated: list[int] = []

    def alloc(size: int) -> Any:
        allocated.append(size)
        return SimpleNamespace(ptr=fake.scratch)

    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDevice=lambda: 0, is_hip=False),
        get_current_stream=lambda: SimpleNamespace(ptr=fake.stream),
        alloc=alloc,
    )
    fake.seam, fake.allocated, fake.stream = lent, allocated, STREAM
    fake.cupy = cupy_kernels.cupy
    fake.cupy.matmul = refuse
    fake.cupy.empty = lambda shape, dtype: on_device(np.full(shape, 77, dtype))
    monkeypatch.setattr(cublaslt, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(cublaslt, "bindings", lambda: (fake, BLAS))
    forget()
    yield fake
    forget()


def forget() -> None:
    """Let every plan and handle go."""
    cublaslt._plan.cache_clear()
    cublaslt._handle.cache_clear()


def on_device(a: np.ndarray) -> Any:
    """A copy of `a` that begins where CuPy's pool would let it begin."""
    room = np.empty(a.nbytes + 512, np.uint8)
    start = -room.ctypes.data % 512
    copy = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy.view(Lent)


# ---- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 7), (8, 16, 8), (1, 9, 4), (6, 1, 1), (2, 33, 24)])
@pytest.mark.parametrize("epilogue", [e.name for e in Fake.Epilogue])
def test_a_product_and_its_epilogue(
    epilogue: str, m: int, k: int, n: int, transposed: tuple[bool, bool], dtype: str, lt: Fake
) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    vector, out, extra = (on_device(rng.standard_normal(s).astype(dtype)) for s in (n, (m, n), (m, n)))
    z = a @ b + (vector if epilogue.endswith("BIAS") else 0.0)
    stored = [on_device(np.ascontiguousarray(x.T if t else x)) for x, t in zip((a, b), transposed, strict=True)]
    needs = "BIAS" in epilogue or epilogue == "BGRADA"
    aux = extra if "AUX" in epilogue else None
    done = cublaslt.product(*stored, out, transposed, epilogue, vector if needs else None, aux)
    assert done == (aux is None or n % 8 == 0)
    if not done:
        return
    eps = 32 * np.finfo(dtype).eps * k
    with np.errstate(over="ignore"):  # exp of what is far out
        y = (
            np.maximum(z, 0)
            if "RELU" in epilogue
            else GELU.value(bp.backends.get("numpy"), z)
            if aux is not None
            else z
        )
    np.testing.assert_allclose(out, y, rtol=eps, atol=eps)
    if aux is not None:
        np.testing.assert_allclose(extra, z, rtol=eps, atol=eps)
    if epilogue == "BGRADA":
        np.testing.assert_allclose(vector, b.sum(axis=0), rtol=eps, atol=eps)


def test_a_product_is_planned_once(lt: Fake) -> None:
    """And used for other places in memory, but not for such as are less aligned."""
    x = on_device(np.arange(400, dtype="float32"))
    for start, plans in ((0, 1), (64, 1), (128, 1), (1, 2), (3, 2), (2, 3), (4, 4)):
        a, b, out = (
            x[start : start + 12].reshape(3, 4),
            on_device(np.eye(4, dtype="float32")),
            lt.cupy.empty((3, 4), "f"),
        )
        assert cublaslt.product(a, b, out)
        assert np.array_equal(out, a)
        assert (start, len(lt.asked)) == (start, plans)
    assert lt.done == ["DEFAULT"] * 7


def test_every_call_names_the_current_stream_and_takes_a_workspace(lt: Fake) -> None:
    a, out = on_device(np.eye(4)), lt.cupy.empty((4, 4), "d")
    for lt.stream, lt.scratch in ((5, 512), (5, 512), (9, 1024), (5, 512)):
        cublaslt.product(a, a, out)
    assert lt.streams == [5, 5, 9, 5]
    assert lt.allocated == [4096] * 4


def test_what_is_forgotten_is_destroyed(lt: Fake) -> None:
    a = on_device(np.eye(4))
    cublaslt.product(a, a, lt.cupy.empty((4, 4), "d"))
    assert len(lt.alive) == 1 + 1 + 3  # the handle; a description and its layouts
    cublaslt._plan.cache_clear()
    assert list(lt.alive.values()) == ["handle"]


@pytest.mark.parametrize(
    "why", ["no bindings", "types differ", "another type", "another precision", "vector", "none known"]
)
def test_what_cublaslt_cannot_do_is_not_done(why: str, lt: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    a, out = on_device(np.eye(8, dtype="f")), lt.cupy.empty((8, 8), "f")
    b, vector = a, on_device(np.ones(9, "f"))
    if why == "no bindings":
        monkeypatch.setattr(cublaslt, "bindings", lambda: None)
    elif why == "none known":
        lt.lacks = {"BIAS"}
    elif why == "types differ":
        b = a.astype("d")
    elif why == "another type":
        a = b = a.astype(np.float16)
    vector = vector[1:] if why == "vector" else vector[:8]
    precision = "bfloat16" if why == "another precision" else "float32"
    assert not cublaslt.product(a, b, out, (False, False), "BIAS", vector, precision=precision)
    assert np.all(np.asarray(out) == 77)
    assert lt.done == []


def test_hip_and_a_broken_installation_leave_cupys_product(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    runtime = SimpleNamespace(is_hip=True)
    monkeypatch.setattr(cublaslt, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert isinstance(cublaslt._loaded.__wrapped__(), str)
    runtime.is_hip, real = False, builtins.__import__

    def broken(name: str, *args: Any) -> Any:
        if name.startswith("nvmath"):
            raise RuntimeError("libcublasLt.so: no such file")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert isinstance(cublaslt._loaded.__wrapped__(), str)


# ---- the dense layer ------------------------------------------------------------------------------------------------

SHAPES = [(9, 12, 16), (9, 5, 7), (1, 7, 8), (70, 3, 1)]


def layer(rows: int, n: int, units: int, dtype: str, has_bias: bool = True) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.standard_normal(s) for s in ((rows, n), (n, units), units, (rows, units)))
    x, weight, bias, dy = (a.astype(dtype) for a in (x, weight / n**0.5, bias, dy))
    return x, weight, bias if has_bias else None, dy


def compared(lt: Fake, f: Any, shape: tuple[int, int, int], dtype: str, has_bias: bool, scale: float = 64) -> None:
    x, weight, bias, dy = layer(*shape, dtype, has_bias)
    plain = Run(bp.backends.Backend(lt.seam.xp))
    y, kept = dense_forward(plain, x, weight, bias, f)
    expected = (y, *dense_backward(plain, x, weight, kept, dy, f, True, has_bias))
    x, weight, dy = map(on_device, (x, weight, dy))
    place = on_device(np.zeros_like(weight))
    run = Run(lt.seam, context=lt.seam.context(grad_buffers={id(weight): place}))
    y, kept = dense_forward(run, x, weight, None if bias is None else on_device(bias), f)
    found = (y, *dense_backward(run, x, weight, kept, dy, f, True, has_bias))
    assert found[2] is place
    eps = scale * np.finfo(dtype).eps
    for a, e in zip(found, expected, strict=True):
        if e is None:
            assert a is None
        else:
            np.testing.assert_allclose(a, e, rtol=eps, atol=eps * max(1.0, np.abs(e).max()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("f", F, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_dense_layer_equals_its_definition(shape: Any, has_bias: bool, f: Any, dtype: str, lt: Fake) -> None:
    compared(lt, f, shape, dtype, has_bias)
    first = {(True, True): "RELU_BIAS", (True, False): "RELU", (False, True): "BIAS", (False, False): "DEFAULT"}
    assert lt.done == [first[f == bp.ReLU(), has_bias], "BGRADA" if has_bias else "DEFAULT", "DEFAULT"]
    assert set(lt.streams) == {STREAM}


@pytest.mark.parametrize("f", [bp.ReLU(), GELU, bp.Tanh(), bp.Identity()], ids=str)
@pytest.mark.parametrize(
    "lacks", [{"BGRADA"}, {"RELU_BIAS", "GELU_AUX_BIAS"}, set(Fake.Epilogue.__members__) - {"DEFAULT"}]
)
def test_without_some_epilogues_the_rest_is_done_apart(lacks: set[str], f: Any, lt: Fake) -> None:
    lt.lacks = lacks
    compared(lt, f, (9, 12, 16), "float32", True)


def test_without_any_cupys_products_remain(lt: Fake) -> None:
    lt.lacks = set(Fake.Epilogue.__members__)
    lt.cupy.matmul = np.matmul
    compared(lt, bp.ReLU(), (9, 12, 16), "float32", True)
    assert lt.done == []


@pytest.mark.parametrize("f", [bp.ReLU(), bp.Identity()], ids=str)
def test_large_products_leave_the_sums_to_the_pass_before(f: Any, lt: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_kernels, "FEW_OPERATIONS", 0.0)
    compared(lt, f, (130, 5, 8), "float64", True)
    assert "BGRADA" not in lt.done
    assert len(lt.done) == 3


def test_parameters_may_begin_anywhere_and_rows_lie_apart(lt: Fake) -> None:
    """As in one vector of all parameters, behind an odd number of others; and as a view of the caller's."""
    rng = np.random.default_rng(0)
    theta = on_device(rng.standard_normal(3 + 35 + 7))
    weight, bias = theta[3:38].reshape(5, 7), theta[38:]
    wide, narrow = rng.standard_normal((6, 10)), rng.standard_normal((7, 6))
    x, dy = wide.view(Lent)[:, ::2], narrow.view(Lent).T
    run = Run(lt.seam)
    y, kept = dense_forward(run, x, weight, bias, bp.ReLU())
    dx, dw, db = dense_backward(run, x, weight, kept, dy, bp.ReLU(), True, True)
    z = wide[:, ::2] @ weight + bias
    dz = narrow.T * (z > 0)
    for found, expected in (
        (y, np.maximum(z, 0)),
        (dx, dz @ weight.T),
        (dw, wide[:, ::2].T @ dz),
        (db, dz.sum(axis=0)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


# ---- precision ------------------------------------------------------------------------------------------------------

ROUND = {"tf32": tf32, "bfloat16": bfloat16}
UNIT = {"tf32": 2.0**-11, "bfloat16": 2.0**-8}
"""By how much a number changes at most, relatively, when it is rounded."""


@pytest.mark.parametrize("rows", [1, 3, 260])
def test_rounding_to_bfloat16(rows: int, lt: Fake) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, to compare with, is not installed")
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 5 * rows, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0, 1 << 31, 0x8001], "u4")
    for values in (bits.view("f"), ties.view("f")):
        found = cupy_kernels.rounded(on_device(values)).view(ml_dtypes.bfloat16)
        with np.errstate(invalid="ignore"):
            expected = values.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(found.astype("f"), expected.astype("f"))
    nan = cupy_kernels.rounded(on_device(np.array([np.nan, -np.nan], "f")))
    assert np.isnan(nan.view(ml_dtypes.bfloat16).astype("f")).all()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("f", F, ids=str)
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounded_products_are_as_near_as_rounding_allows(
    shape: Any, few: bool, f: Any, precision: str, lt: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sum of k products is off by at most (2u + u^2) times the sum of their absolute values, plus float32's."""
    if not few:
        monkeypatch.setattr(cupy_kernels, "FEW_OPERATIONS", 0.0)
    x, weight, bias, dy = layer(*shape, "float32")
    exact = [a.astype("float64") for a in (x, weight, bias, dy)]
    plain = Run(bp.backends.Backend(lt.seam.xp))
    x, weight, bias, dy = map(on_device, (x, weight, bias, dy))
    run = Run(lt.seam, context=lt.seam.context(precision))
    u = UNIT[precision] * (2 + UNIT[precision]) + 1e-5

    z, _ = dense_forward(run, x, weight, bias, bp.Identity())
    assert z.dtype == np.float32
    error = np.abs(z - (exact[0] @ exact[1] + exact[2]))
    assert np.all(error <= u * (np.abs(exact[0]) @ np.abs(exact[1]) + np.abs(exact[2])))
    rounded = ROUND[precision]
    assert np.array_equal(z, (rounded(x).astype("d") @ rounded(weight) + exact[2]).astype("f")), "not what it says"

    y, kept = dense_forward(run, x, weight, bias, f)
    np.testing.assert_allclose(y, f.value(plain.backend, z.astype("d")), rtol=1e-5, atol=1e-5)
    dx, dw, db = dense_backward(run, x, weight, kept, dy, f, True, True)
    assert all(a.dtype == np.float32 for a in (y, dx, dw, db))
    dz = np.asarray(f.derivative(plain.backend, None if kept is None else kept.astype("d"), exact[3]))
    size, some = np.abs(dz), 1e-6
    assert np.all(np.abs(dx - dz @ exact[1].T) <= u * (size @ np.abs(exact[1].T)) + some)
    assert np.all(np.abs(dw - exact[0].T @ dz) <= u * (np.abs(exact[0].T) @ size) + some)
    exact = u if few or precision == "bfloat16" else 1e-5  # sums are float32
    assert np.all(np.abs(db - dz.sum(axis=0)) <= exact * size.sum(axis=0) + some)


def test_which_devices_have_every_precision(lt: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = (SimpleNamespace(compute_capability=c) for c in ("75", "80"))
    assert lt.seam.precisions(older) == ("float32",)
    assert lt.seam.precisions(newer) == ("float32", "tf32", "bfloat16")
    monkeypatch.setattr(cublaslt, "bindings", lambda: None)
    assert lt.seam.precisions(newer) == lt.seam.precisions(None) == ("float32",)


def test_gelu_comes_with_rounded_products_only(lt: Fake) -> None:
    x, weight, bias, _ = map(on_device, layer(9, 12, 16, "float32"))
    for precision, epilogue in (("float32", "BIAS"), ("tf32", "GELU_AUX_BIAS"), ("bfloat16", "GELU_AUX_BIAS")):
        dense_forward(Run(lt.seam, context=lt.seam.context(precision)), x, weight, bias, GELU)
        assert lt.done[-1] == epilogue


def test_factors_are_rounded_once_in_a_pass(lt: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight and the input for the forward pass serve the backward pass too; a child's run shares them."""
    done: list[tuple[int, ...]] = []
    real = cupy_kernels.rounded
    monkeypatch.setattr(cupy_kernels, "rounded", lambda a: (done.append(a.shape), real(a))[1])
    x, weight, bias, dy = map(on_device, layer(9, 12, 16, "float32"))
    run = Run(lt.seam, context=lt.seam.context("bfloat16"))
    _, kept = dense_forward(run.at("0"), x, weight, bias, bp.ReLU())
    dense_backward(run.at("0"), x, weight, kept, dy, bp.ReLU(), True, True)
    assert done == [(9, 12), (12, 16)]


def test_float64_is_never_rounded(lt: Fake) -> None:
    x, weight, bias, _ = map(on_device, layer(9, 12, 16, "float64"))
    y, _ = dense_forward(Run(lt.seam, context=lt.seam.context("bfloat16")), x, weight, bias, GELU)
    np.testing.assert_allclose(y, GELU.value(bp.backends.get("numpy"), x @ weight + bias), rtol=1e-13, atol=1e-13)


def test_a_missing_product_is_an_error_where_it_would_be_of_another_precision(lt: Fake) -> None:
    lt.lacks = set(Fake.Epilogue.__members__)
    x, weight, bias, _ = map(on_device, layer(9, 12, 16, "float32"))
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(bp.errors.DeviceError, match=f"no {precision} product"):
            dense_forward(Run(lt.seam, context=lt.seam.context(precision)), x, weight, bias, bp.ReLU())


@pytest.mark.parametrize("without", ["fused", "cublaslt"])
def test_without_a_technique_other_precisions_are_refused(without: str, lt: Fake) -> None:
    """Beforehand; and where it is taken out afterwards, instead of computing with another precision than asked for."""
    newer = SimpleNamespace(compute_capability="90")
    x, weight, bias, dy = map(on_device, layer(9, 12, 16, "float32"))
    run = Run(lt.seam, context=lt.seam.context("tf32"))
    _, kept = dense_forward(run, x, weight, bias, bp.ReLU())
    lt.seam.techniques = lt.seam.techniques - {without}
    assert lt.seam.precisions(newer) == ("float32",)
    with pytest.raises(bp.errors.DeviceError, match="tf32"):
        dense_forward(run, x, weight, bias, bp.ReLU())
    with pytest.raises(bp.errors.DeviceError, match="tf32"):
        dense_backward(run, x, weight, kept, dy, bp.ReLU(), True, True)


def test_a_gradient_has_its_place_once(lt: Fake) -> None:
    """Where a layer of the user's multiplies by the same weight twice, even if it is all that is left to place."""
    x, weight, _, dy = map(on_device, layer(9, 12, 16, "float32"))
    place = on_device(np.zeros_like(weight))
    run = Run(lt.seam, context=lt.seam.context(grad_buffers={id(weight): place}))
    first, second = (dense_backward(run, x, weight, None, dy, bp.Identity(), False, False)[1] for _ in range(2))
    assert first is place
    np.testing.assert_array_equal(second, first)
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize("f", [f for f in F if f != bp.Identity()], ids=str)
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("from_layer", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_products_alone_read_is_stored_as_they_round_it(
    shape: Any, from_layer: bool, few: bool, f: Any, lt: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input, the output and their derivatives come and go in bfloat16; the parameters' derivatives in float32."""
    if not few:
        monkeypatch.setattr(cupy_kernels, "FEW_OPERATIONS", 0.0)
    x, weight, bias, dy = map(on_device, layer(*shape, "float32"))
    u = 2.0**-8
    numpy = bp.backends.get("numpy")
    if from_layer:
        x, dy = map(cupy_kernels.rounded, (x, dy))
    exact_x, exact_dy = (np.asarray(cupy_kernels.widened(a), "d") for a in (x, dy))
    run = Run(lt.seam, context=lt.seam.context("bfloat16", network=bp.Dense(1)))
    y, kept = dense_forward(run, x, weight, bias, f)
    softmax = f == bp.Softmax()  # which is no rule, so it is computed, and handed on, in float32
    assert y.dtype == (np.float32 if softmax else cupy_kernels.BFLOAT16)
    z = exact_x @ weight.astype("d") + bias
    error = 1.2 * u * (2.1 * np.abs(exact_x) @ np.abs(weight) + np.abs(bias) + np.abs(z))
    assert np.all(np.abs(cupy_kernels.widened(y) - f.value(numpy, z)) <= error + u * np.abs(f.value(numpy, z)) + 1e-5)

    dx, dw, db = dense_backward(run, x, weight, kept, dy, f, True, True)
    assert (dx.dtype, dw.dtype, db.dtype) == (x.dtype, np.float32, np.float32)
    dz = np.asarray(
        f.derivative(numpy, None if kept is None else np.asarray(cupy_kernels.widened(kept), "d"), exact_dy)
    )
    size, some, most = np.abs(dz), 1e-6, u * (2 + u) + 1e-5
    exact_dx = dz @ weight.T.astype("d")
    error = most * (size @ np.abs(weight.T)) + some
    assert np.all(np.abs(cupy_kernels.widened(dx) - exact_dx) <= error + u * (np.abs(exact_dx) + error))
    assert np.all(np.abs(dw - exact_x.T @ dz) <= most * (np.abs(exact_x.T) @ size) + some)
    assert np.all(np.abs(db - dz.sum(axis=0)) <= most * size.sum(axis=0) + some)


def test_the_last_layers_output_is_not_rounded(lt: Fake) -> None:
    x, weight, bias, _ = map(on_device, layer(9, 12, 16, "float32"))
    y, _ = dense_forward(
        Run(lt.seam, context=lt.seam.context("bfloat16", network=bp.Dense(1))), x, weight, bias, bp.Identity()
    )
    assert np.array_equal(y, (bfloat16(x).astype("d") @ bfloat16(weight) + bias).astype("f"))


class Halved(bp.Dense):
    """A user's layer that computes with its rows."""

    def forward(self, run: Any, p: Any, x: Any) -> Any:
        return super().forward(run, p, x * 0.5)


@pytest.mark.parametrize(
    ("network", "narrow"),
    [
        (bp.Dense(3), True),
        (bp.Sequential(bp.Flatten(), bp.Sequential(bp.Dense(3, "relu"), bp.Dense(3, "softmax"))), True),
        (bp.Sequential(bp.Dense(3, "relu"), bp.Dropout(0.1)), False),
        (bp.Sequential(bp.Dense(3), bp.ReLU()), False),
        (bp.Residual(bp.Dense(3)), False),
        (bp.Sequential(bp.Dense(3), bp.Sequential(Halved(3))), False),
    ],
    ids=str,
)
def test_networks_in_which_products_alone_read_activations(network: Any, narrow: bool) -> None:
    assert network.products_only == narrow


def steps(lt: Fake, net: Any, loss: Any, precision: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Twenty steps from the same start by NumPy in float64, and by the seam: parameters, loss and outputs of each."""
    layout = layout_of(net, (5,))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)), rng.integers(0, 3, 40)
    y = y if isinstance(loss, bp.CrossEntropy) else np.eye(3)[y]
    monkeypatch.setattr(lt.seam, "empty_vector", lambda size, like: lt.cupy.empty(size, like.dtype), raising=False)
    monkeypatch.setattr(lt.seam, "copy", lambda a: a.copy(), raising=False)
    found = []
    for backend, dtype, how in ((bp.backends.get("numpy"), "float64", "float32"), (lt.seam, "float32", precision)):
        kind = on_device if backend is lt.seam else np.asarray
        theta, buffers = (kind(v.astype(dtype)) for v in layout.start(0))
        target = kind(y.astype(dtype) if y.ndim == 2 else y)
        optimizer = bp.SGD(0.1)
        views = Views(layout)
        step = training_step(layout, views, loss, optimizer, 0, None, how)
        carry = theta, buffers, optimizer.init(backend, theta)
        for i in range(1, 21):
            carry, value = step(backend, carry, kind(x.astype(dtype)), target, None, None, (0.1,), i)
        out, _ = outputs(layout, views, how)(backend, *carry[:2], kind(x.astype(dtype)))
        score, *_ = scores(layout, views, loss, how)(backend, *carry[:2], kind(x.astype(dtype)), target, None, 40.0)
        assert carry[0].dtype == out.dtype == value.dtype == dtype
        found.append((np.asarray(carry[0]), float(value), float(score), np.asarray(out)))
    return found


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(
    ("net", "loss"),
    [
        (
            bp.Sequential(bp.Dense(16, "relu"), bp.Residual(bp.Dense(16, "tanh")), bp.BatchNorm(), bp.Dense(3)),
            bp.CrossEntropy(),
        ),
        (
            bp.Sequential(bp.Dense(16, "relu"), bp.Dense(8, "gelu_tanh"), bp.Dense(7, "silu"), bp.Dense(3)),
            bp.CrossEntropy(),
        ),
        (bp.Sequential(bp.Dense(16, "softplus"), bp.Dense(3, "sigmoid")), bp.BinaryCrossEntropy()),
    ],
    ids=str,
)
def test_whole_steps(precision: str, net: Any, loss: Any, lt: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near float64's by what was rounded, and float32 outside of products."""
    expected, actual = steps(lt, net, loss, precision, monkeypatch)
    limit = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 5e-2}[precision]
    for e, a in zip(expected, actual, strict=True):
        np.testing.assert_allclose(a, e, rtol=limit, atol=limit)
    assert np.allclose(expected[-1], actual[-1], rtol=1e-5, atol=1e-5) == (precision == "float32")


def test_storing_what_is_rounded_anyway_changes_nothing(lt: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """With relu and no bias, which is all that is rounded besides."""
    net = bp.Sequential(bp.Dense(16, "relu", bias=False), bp.Dense(8, "relu", bias=False), bp.Dense(3, bias=False))
    _, narrow = steps(lt, net, bp.CrossEntropy(), "bfloat16", monkeypatch)
    monkeypatch.setattr(bp.Dense, "products_only", False)
    net = bp.Sequential(*net.layers)
    _, wide = steps(lt, net, bp.CrossEntropy(), "bfloat16", monkeypatch)
    for a, b in zip(narrow, wide, strict=True):
        assert np.array_equal(a, b)


# ---- on a device ----------------------------------------------------------------------------------------------------


@pytest.fixture
def device(library: Any) -> Any:
    """CuPy on a device with cuBLASLt; skips with the reason."""
    lib = library("cupy")
    if not cublaslt.available():
        pytest.skip("nvmath-python is not installed, or finds no cuBLASLt")
    return lib


LARGER = [(9, 12, 16), (37, 5, 7), (128, 784, 512), (1024, 512, 10), (1000, 33, 257)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("f", F, ids=str)
@pytest.mark.parametrize("shape", LARGER)
@pytest.mark.parametrize("few", [True, False])
def test_the_dense_layer_on_a_device(
    few: bool, shape: Any, f: Any, dtype: str, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not few:
        monkeypatch.setattr(cupy_kernels, "FEW_OPERATIONS", 0.0)
    x, weight, bias, dy = layer(*shape, dtype)
    plain = Run(bp.backends.Backend(bp.backends.get("numpy").xp))
    exact = [a.astype("float64") for a in (x, weight, bias, dy)]
    y, kept = dense_forward(plain, *exact[:3], f)
    expected = (y, *dense_backward(plain, *exact[:2], kept, exact[3], f, True, True))
    x, weight, bias, dy = map(device.array, (x, weight, bias, dy))
    run = Run(device.seam)
    y, kept = dense_forward(run, x, weight, bias, f)
    found = (y, *dense_backward(run, x, weight, kept, dy, f, True, True))
    for a, e in zip(found, expected, strict=True):
        device.close(a, e, rtol=2e-6 if dtype == "float32" else 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("f", [bp.ReLU(), GELU, bp.Tanh(), bp.Identity()], ids=str)
@pytest.mark.parametrize("shape", LARGER)
@pytest.mark.parametrize("narrow", [True, False])
def test_rounded_products_on_a_device(narrow: bool, shape: Any, f: Any, precision: str, device: Any) -> None:
    x, weight, bias, dy = layer(*shape, "float32")
    exact = [a.astype("float64") for a in (x, weight, bias, dy)]
    plain = Run(bp.backends.Backend(bp.backends.get("numpy").xp))
    expected = dense_forward(plain, *exact[:3], f)[0]
    run = Run(device.seam, context=device.seam.context(precision, network=bp.Dense(1) if narrow else None))
    x, weight, bias, dy = map(device.array, (x, weight, bias, dy))
    y, kept = dense_forward(run, x, weight, bias, f)
    found = (y, *dense_backward(run, x, weight, kept, dy, f, True, True))
    own = None if kept is None else device.host(device.seam.widened(kept)).astype("float64")  # signs may have turned
    expected = (expected, *dense_backward(plain, *exact[:2], own, exact[3], f, True, True))
    for a, e in zip(found, expected, strict=True):
        error = np.linalg.norm(device.host(device.seam.widened(a)) - e) / np.linalg.norm(e)
        assert error <= 4 * UNIT[precision]
    error = np.linalg.norm(device.host(device.seam.widened(found[0])) - expected[0]) / np.linalg.norm(expected[0])
    assert error > 1e-6 or shape[1] < 64, "the precision asked for makes no difference"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_dense_layer_can_be_captured(precision: str, device: Any) -> None:
    cupy = device.module
    x, weight, bias, dy = map(device.array, layer(64, 48, 32, "float32"))

    def both() -> tuple[Any, ...]:
        run = Run(device.seam, context=device.seam.context(precision))
        y, kept = dense_forward(run, x, weight, bias, bp.ReLU())
        return (y, *dense_backward(run, x, weight, kept, dy, bp.ReLU(), True, True))

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        expected = [device.host(a) for a in both()]  # plans, loads kernels, and fills the pool
        stream.synchronize()
        stream.begin_capture()
        results = both()
        graph = stream.end_capture()
        graph.launch()
        stream.synchronize()
    for a, e in zip(results, expected, strict=True):
        assert np.array_equal(device.host(a), e)


def not_finite(seam: Any, to_device: Any, to_host: Any, f: Any) -> None:
    """Values of x that are not finite make those of the weights' gradient so: else a network that diverges would go on.

    Its outputs need not tell, as relu's epilogue may make zeros of what is not a number.
    """
    x, weight, bias, dy = layer(9, 12, 16, "float32")
    x[3, 3], x[5, 5] = np.nan, np.inf
    run, on = Run(seam), [*map(to_device, (x, weight, bias, dy))]
    with np.errstate(invalid="ignore"):
        y, kept = dense_forward(run, *on[:3], f)
        _, gradient, _ = dense_backward(run, *on[:2], kept, on[3], f, True, True)
        if f == bp.Identity():
            assert np.array_equal(np.isfinite(to_host(y)), np.isfinite(x @ weight + bias))
    assert not np.any(np.isfinite(to_host(gradient)[[3, 5]]))


@pytest.mark.parametrize("f", [bp.ReLU(), bp.Identity()], ids=str)
def test_what_is_not_finite_reaches_the_gradient(f: Any, lt: Fake) -> None:
    not_finite(lt.seam, on_device, np.asarray, f)
    assert lt.done


@pytest.mark.gpu
@pytest.mark.parametrize("f", [bp.ReLU(), bp.Identity()], ids=str)
def test_what_is_not_finite_reaches_the_gradient_on_a_device(f: Any, device: Any) -> None:
    not_finite(device.seam, device.array, device.host, f)


@pytest.mark.gpu
def test_nothing_is_changed_for_other_products(device: Any) -> None:
    import cupy

    before = cupy._core.get_compute_type(np.dtype("float32"))
    x, y = device.array(np.ones((64, 8), "float32")), device.array(np.zeros(64, "int64"))
    for precision in device.seam.precisions(None):
        trainer = bp.Trainer(bp.Dense(3), "cross_entropy", precision=precision)
        trainer.fit(x, y, progress=False)
        assert trainer.history["precision"] == [precision]
    assert cupy._core.get_compute_type(np.dtype("float32")) == before
