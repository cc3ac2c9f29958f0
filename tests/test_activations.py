"""Every activation: right by finite differences, by PyTorch's autograd, for extreme inputs, and on every library."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import OptionError, UnknownNameError


class Case(NamedTuple):
    """An activation, the same in PyTorch and in mpmath, and how exact small values and slopes are.

    Values keep their relative precision, or they don't (`relative`).  Slopes do, or where they are written with 1 - y
    or the like, they are off by so many units in the last place of 1 (`off`), or of themselves times z**2 (`far`),
    where they are small for exp of something that is rounded itself.
    """

    layer: bp.Activation
    torch: Callable[..., Any]
    exact: Callable[..., Any] | None
    relative: bool = True
    off: float = 0.0
    far: float = 0.0


def mp_sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def mp_elu(z):
    return z if z > 0 else mpmath.expm1(z)


def mp_gelu(z):
    return z * mpmath.ncdf(z) if abs(z) < 1e4 else max(z, 0)


def mp_gelu_tanh(z):
    u = mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3)
    return z / (1 + mpmath.exp(-2 * u))


ACTIVATIONS = {
    "identity": Case(bp.Identity(), lambda f, z: z, lambda z: z),
    "sigmoid": Case(bp.Sigmoid(), lambda f, z: z.sigmoid(), mp_sigmoid, off=2),
    "tanh": Case(bp.Tanh(), lambda f, z: z.tanh(), mpmath.tanh, off=4),
    "relu": Case(bp.ReLU(), lambda f, z: f.relu(z), lambda z: max(z, 0)),
    "leaky_relu": Case(bp.LeakyReLU(), lambda f, z: f.leaky_relu(z), lambda z: max(z, z * mpmath.mpf(0.01))),
    "leaky_relu, steep": Case(bp.LeakyReLU(0.5), lambda f, z: f.leaky_relu(z, 0.5), lambda z: max(z, z / 2)),
    "gelu": Case(bp.GELU(), lambda f, z: f.gelu(z), mp_gelu, relative=False, off=4),
    "gelu_tanh": Case(bp.GELU(approximate=True), lambda f, z: f.gelu(z, approximate="tanh"), mp_gelu_tanh, far=1),
    "silu": Case(bp.SiLU(), lambda f, z: f.silu(z), lambda z: z * mp_sigmoid(z), off=20),
    "softplus": Case(bp.Softplus(), lambda f, z: f.softplus(z, threshold=1e9), lambda z: mpmath.log1p(mpmath.exp(z))),
    "elu": Case(bp.ELU(), lambda f, z: f.elu(z), mp_elu),
    "elu, alpha": Case(bp.ELU(alpha=0.25), lambda f, z: f.elu(z, 0.25), lambda z: mp_elu(z) / (4 if z < 0 else 1)),
    "softmax": Case(bp.Softmax(), lambda f, z: f.softmax(z, -1), None),
}

EXTREMES = [
    0,
    1e-30,
    1e-8,
    1e-3,
    0.3,
    1,
    3,
    4.95,
    6,
    8,
    9,
    15,
    17,
    30,
    36,
    40,
    50,
    88,
    100,
    104,
    500,
    709,
    746,
    1e3,
    1e4,
    1e30,
]
"""And the largest number of the type."""


@pytest.fixture(params=ACTIVATIONS)
def case(request: pytest.FixtureRequest) -> Case:
    return ACTIVATIONS[request.param]


def passes(lib, layer, z, dy):
    def both(z, dy):
        run = bp.Run(lib.seam, True)
        y, cache = layer.forward(run, {}, z)
        return y, layer.backward(run, {}, cache, dy)[0]

    return lib.call(both, z, dy)


def test_every_activation_of_the_catalogue_is_in_the_table():
    tested = {type(case.layer) for case in ACTIVATIONS.values()}
    public = [getattr(bp, name) for name in bp.__all__]
    assert tested == {c for c in public if isinstance(c, type) and issubclass(c, bp.Activation)} - {bp.Activation}


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if "," not in name])
def test_names_stand_for_the_default_options(name):
    assert bp.Dense(3, name).function == ACTIVATIONS[name].layer
    assert bp.Dense(3, ACTIVATIONS[name].layer).function is ACTIVATIONS[name].layer


def test_derivative_by_finite_differences(case):
    x = np.random.default_rng(0).standard_normal((5, 4)) * 2.0
    assert bp.check_gradients(case.layer, x).ok
    assert bp.check_gradients(bp.Dense(3, case.layer), x).ok


def test_value_and_derivative_as_pytorch(case, library):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    z = np.concatenate([[[0.0] * 7], rng.standard_normal((30, 7)) * 3.0])  # at 0 too, where some have a kink
    dy = rng.standard_normal(z.shape)
    rows = torch.tensor(z, requires_grad=True)
    out = case.torch(torch.nn.functional, rows)
    out.backward(torch.tensor(dy))
    y, dz = passes(library("numpy"), case.layer, z, dy)
    library("numpy").close(y, out.detach().numpy())
    library("numpy").close(dz, rows.grad.numpy())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_same_on_every_library(case, backend, dtype, library):
    rng = np.random.default_rng(2)
    z, dy = (rng.standard_normal((6, 4)) * 3.0).astype(dtype), rng.standard_normal((6, 4)).astype(dtype)
    given = backend.array(z), backend.array(dy)
    expected = passes(library("numpy"), case.layer, np.float64(z), np.float64(dy))
    for got, want in zip(passes(backend, case.layer, *given), expected, strict=True):
        backend.close(got, want)
        assert backend.dtype(got) == dtype
        assert backend.seam.device(got) == backend.seam.device(given[0])
    np.testing.assert_array_equal(backend.host(given[0]), z)
    np.testing.assert_array_equal(backend.host(given[1]), dy)


def test_stays_on_the_device_of_the_input(case, library):
    lib = library("strict-device")
    z = lib.array(np.ones((2, 3)))
    assert {lib.seam.device(a) for a in passes(lib, case.layer, z, z)} == {lib.seam.device(z)}


@cache
def exact(case: Case, dtype: str) -> tuple[Any, Any, Any]:
    """Inputs of `dtype` of any size, and the value and slope there, from 120 digits."""
    z = np.array(sorted({s * v for v in [*EXTREMES, float(np.finfo(dtype).max)] for s in (-1, 1)}), dtype=dtype)
    with mpmath.workdps(120):
        value = [float(case.exact(mpmath.mpf(float(v)))) for v in z]
        slope = [float(mp_slope(case.exact, mpmath.mpf(float(v)))) for v in z]
    return z, np.array(value), np.array(slope)


@pytest.mark.parametrize("case", [c for c in ACTIVATIONS.values() if c.exact], ids=lambda c: str(c.layer))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_exact_and_silent_for_extreme_inputs(case, backend, dtype):
    """A warning of overflow would fail the test."""
    z = exact(case, dtype)[0]
    y, dz = passes(backend, case.layer, backend.array(z), backend.array(np.ones_like(z)))
    check_far_out(case, dtype, backend.host(y), backend.host(dz))


def check_far_out(case, dtype, y, dz):
    """That these are the values and slopes of `exact`."""
    z, value, slope = exact(case, dtype)
    info, size = np.finfo(dtype), np.maximum(np.abs(z.astype("float64")), 1.0)
    small = 0.0 if case.relative else 2.0 * info.eps * np.minimum(size, 9.0)  # 1 + erf cancels, in every library
    least = info.tiny * size  # some libraries take smaller numbers for 0
    far = case.far * np.minimum(size, 100.0) ** 2
    assert np.all(np.abs(y - value) <= (8 + far) * info.eps * np.abs(value) + small + least)
    inner = z != 0.0  # a kink at 0 is for the comparison with PyTorch
    assert np.all((np.abs(dz - slope) <= info.eps * ((4 + far) * np.abs(slope) + case.off) + least)[inner])


def mp_slope(function, z):
    return mpmath.diff(function, z, h=mpmath.mpf(10) ** -20 * abs(z)) if z else 0


def test_softmax_of_large_logits_is_exact_and_silent(backend):
    z = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4], [0.0, 709.0, 1000.0]])
    y, dz = passes(backend, bp.Softmax(), backend.array(z), backend.array(np.ones_like(z)))
    expected = [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0, 0, 1]]
    np.testing.assert_allclose(backend.host(y), expected, rtol=1e-15, atol=1e-100)
    np.testing.assert_allclose(backend.host(dz), np.zeros_like(z), atol=1e-15)


def test_softmax_of_classes_switched_off_and_of_logits_apart_by_more_than_the_largest_number(backend):
    largest = np.finfo("float64").max
    z = backend.array(np.array([[1.0, -np.inf, 1.0], [largest, -largest, largest], [-np.inf, -np.inf, -3.0]]))
    y, dz = passes(backend, bp.Softmax(), z, backend.array(np.array([[1.0, 2.0, 3.0]] * 3)))
    np.testing.assert_array_equal(backend.host(y), [[0.5, 0, 0.5], [0.5, 0, 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(backend.host(dz), [[-0.5, 0, 0.5], [-0.5, 0, 0.5], [0, 0, 0]])


@pytest.mark.parametrize(
    "make", [lambda: bp.LeakyReLU(-0.1), lambda: bp.LeakyReLU(1.0), lambda: bp.ELU(0.0), lambda: bp.ELU(float("nan"))]
)
def test_unfit_options_are_refused(make):
    with pytest.raises(OptionError):
        make()


@pytest.mark.parametrize(("name", "meant"), [("rleu", "relu"), ("sigmod", "sigmoid"), ("soft_plus", "softplus")])
def test_unknown_name_suggests_a_known_one(name, meant):
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        bp.Dense(3, name)
