"""Every activation: right by finite differences, by PyTorch's autograd, for extreme inputs, and on every library."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
from support.differences import differences

import bpnet as bp
from bpnet.errors import ArgumentError, GradientError, ShapeError, UnknownNameError
from bpnet.layers.activations.rectifiers import SELU_BELOW, SELU_SCALE


class Case(NamedTuple):
    """An activation, the same in PyTorch and in mpmath, and how exact small values and slopes are.

    PyTorch's is a function of its functions, z, and alpha where there is one.  Values keep their relative precision, or
    they don't (`relative`).  Slopes do, or where they are written with 1 - y or the like, they are off by so many units
    in the last place of 1 (`off`), or of themselves times z**2 (`far`), where they are small for exp of something that
    is rounded itself.  Where its differences say nothing, `slope` is f' in mpmath.
    """

    layer: bp.Activation
    torch: Callable[..., Any]
    exact: Callable[..., Any] | None = None
    relative: bool = True
    off: float = 0.0
    far: float = 0.0
    slope: Callable[..., Any] | None = None


def mp_sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def mp_elu(z):
    return z if z > 0 else mpmath.expm1(z)


def mp_selu(z):
    return mpmath.mpf(SELU_SCALE) * z if z > 0 else mpmath.mpf(SELU_BELOW) * mpmath.expm1(z)


def mp_gelu(z):
    return z * mpmath.ncdf(z) if abs(z) < 1e4 else max(z, 0)


def mp_gelu_tanh(z):
    u = mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3)
    return z / (1 + mpmath.exp(-2 * u))


def mp_mish(z):
    return z * mpmath.tanh(mpmath.log1p(mpmath.exp(z)))


def mp_hard_sigmoid(z):
    return min(max(z / 6 + 0.5, 0), 1)


ACTIVATIONS = {
    "identity": Case(bp.Identity(), lambda f, z: z, lambda z: z),
    "sigmoid": Case(bp.Sigmoid(), lambda f, z: z.sigmoid(), mp_sigmoid, off=2),
    "log_sigmoid": Case(bp.LogSigmoid(), lambda f, z: f.logsigmoid(z), lambda z: -mpmath.log1p(mpmath.exp(-z))),
    "tanh": Case(bp.Tanh(), lambda f, z: z.tanh(), mpmath.tanh, off=4),
    "softsign": Case(bp.Softsign(), lambda f, z: f.softsign(z), lambda z: z / (1 + abs(z))),
    "hard_sigmoid": Case(bp.HardSigmoid(), lambda f, z: f.relu6(z + 3.0) / 6.0, mp_hard_sigmoid),
    "hard_tanh": Case(bp.HardTanh(), lambda f, z: f.hardtanh(z), lambda z: min(max(z, -1), 1)),
    "relu": Case(bp.ReLU(), lambda f, z: f.relu(z), lambda z: max(z, 0)),
    "relu6": Case(bp.ReLU6(), lambda f, z: f.relu6(z), lambda z: min(max(z, 0), 6)),
    "squared_relu": Case(bp.SquaredReLU(), lambda f, z: f.relu(z) ** 2, lambda z: max(z, 0) ** 2),
    "leaky_relu": Case(bp.LeakyReLU(), lambda f, z: f.leaky_relu(z), lambda z: max(z, z * mpmath.mpf(0.01))),
    "leaky_relu, steep": Case(bp.LeakyReLU(0.5), lambda f, z: f.leaky_relu(z, 0.5), lambda z: max(z, z / 2)),
    "prelu": Case(bp.PReLU(), lambda f, z, a: f.prelu(z, a), lambda z: max(z, z / 4)),
    "prelu, shared": Case(bp.PReLU(shared=True), lambda f, z, a: f.prelu(z, a.reshape(1)), lambda z: max(z, z / 4)),
    "softshrink": Case(
        bp.Softshrink(), lambda f, z: f.softshrink(z), lambda z: z - min(max(z, -mpmath.mpf(0.5)), mpmath.mpf(0.5))
    ),
    "gelu": Case(bp.GELU(), lambda f, z: f.gelu(z), mp_gelu, relative=False, off=4),
    "gelu_tanh": Case(bp.GELU(approximate=True), lambda f, z: f.gelu(z, approximate="tanh"), mp_gelu_tanh, far=1),
    "silu": Case(bp.SiLU(), lambda f, z: f.silu(z), lambda z: z * mp_sigmoid(z), off=20),
    "mish": Case(bp.Mish(), lambda f, z: f.mish(z), mp_mish, off=1),
    "hard_swish": Case(bp.HardSwish(), lambda f, z: f.hardswish(z), lambda z: z * mp_hard_sigmoid(z)),
    "softplus": Case(bp.Softplus(), lambda f, z: f.softplus(z, threshold=1e9), lambda z: mpmath.log1p(mpmath.exp(z))),
    "elu": Case(bp.ELU(), lambda f, z: f.elu(z), mp_elu),
    "elu, alpha": Case(bp.ELU(alpha=0.25), lambda f, z: f.elu(z, 0.25), lambda z: mp_elu(z) / (4 if z < 0 else 1)),
    "celu": Case(bp.CELU(), lambda f, z: f.celu(z), mp_elu),
    "celu, alpha": Case(bp.CELU(alpha=0.25), lambda f, z: f.celu(z, 0.25), lambda z: z if z > 0 else mp_elu(4 * z) / 4),
    "selu": Case(bp.SELU(), lambda f, z: f.selu(z), mp_selu),
    "parametric_mish": Case(bp.Parametric("mish"), lambda f, z, a: (1 - a) * z + a * f.mish(z), mp_mish, off=1),
    "parametric_selu": Case(bp.Parametric("selu"), lambda f, z, a: (1 - a) * z + a * f.selu(z), mp_selu),
    "parametric, shared": Case(
        bp.Parametric(bp.Tanh(), shared=True), lambda f, z, a: (1 - a) * z + a * z.tanh(), mpmath.tanh, off=4
    ),
    "sine": Case(bp.Sine(), lambda f, z: (30.0 * z).sin()),
    "sine, w0": Case(bp.Sine(1.0), lambda f, z: z.sin(), mpmath.sin, slope=mpmath.cos),
    "softmax": Case(bp.Softmax(), lambda f, z: f.softmax(z, -1)),
    "log_softmax": Case(bp.LogSoftmax(), lambda f, z: f.log_softmax(z, -1)),
}

EXTREMES = [
    0,
    1e-45,
    1e-30,
    1e-8,
    1e-3,
    0.3,
    1.1,
    3.3,
    4.95,
    6.5,
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
    1e20,
    1e30,
]
"""And the smallest and largest number of the type; at none but 0 has an activation a kink."""


@pytest.fixture(params=ACTIVATIONS)
def case(request: pytest.FixtureRequest) -> Case:
    return ACTIVATIONS[request.param]


def alpha_of(case: Case, width: int) -> Any:
    """Its parameter for so many features, of different values, or None."""
    start = case.layer.init(bp.Rng(0), (width,)).get("alpha")
    return None if start is None else np.asarray(start + 0.1 * np.arange(1.0, start.size + 1.0).reshape(start.shape))


def both_passes(run, layer, z, dy, alpha):
    p = {} if alpha is None else {"alpha": alpha}
    y, cache = layer.forward(run, p, z)
    dz, grads = layer.backward(run, p, cache, dy)
    return y, dz, grads.get("alpha")


def all_passes(lib, cases):
    """function(z, dy, *alphas): of each case y, dL/dz and dL/dalpha, None where there is none; it may be compiled."""

    def all_of_them(z, dy, *alphas):
        run = bp.Run(lib.seam, True)
        return tuple([both_passes(run, c.layer, z, dy, a) for c, a in zip(cases, alphas, strict=True)])

    return lib.compiled(all_of_them)


def passes(lib, cases, z, dy, alphas):
    """That for these."""
    return all_passes(lib, cases)(z, dy, *alphas)


def slope_errors(lib, function, z, dy, alphas, made):
    """How far dL/dz and dL/dalpha, which are `made`, are from differences of sum(dL/dy y), of each case."""

    def values(given):  # all cases have one z
        own = [None if a is None else lib.array(g["alpha"]) for g, a in zip(given, alphas, strict=True)]
        made = function(lib.array(given[0]["z"]), lib.array(dy), *own)
        return [np.sum(lib.host(y) * dy) for y, *_ in made]

    given = [{"z": z} | ({} if a is None else {"alpha": a}) for a in alphas]
    derived = [{"z": lib.host(dz)} | ({} if da is None else {"alpha": lib.host(da)}) for _, dz, da in made]
    return differences(values, given, derived)


def test_every_activation_of_the_catalogue_is_in_the_table():
    tested = {type(case.layer) for case in ACTIVATIONS.values()}
    public = [getattr(bp, name) for name in bp.__all__]
    assert tested == {c for c in public if isinstance(c, type) and issubclass(c, bp.Activation)} - {bp.Activation}


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if "," not in name])
def test_names_stand_for_the_default_options(name):
    assert bp.Dense(3, name).function == ACTIVATIONS[name].layer
    assert bp.Dense(3, ACTIVATIONS[name].layer).function is ACTIVATIONS[name].layer


def test_derivative_by_finite_differences(case, noted):
    """One row, one column, many of either, and rows of two axes."""
    rng, shapes = np.random.default_rng(0), [(5, 4), (1, 3), (7, 1), (50, 2), (2, 40), (2, 3, 4)]
    for layer, shape in [(bp.Dense(3, case.layer), (5, 4)), *((case.layer, shape) for shape in shapes)]:
        report = bp.check_gradients(layer, rng.standard_normal(shape) * 2.0)
        noted("activations", "numpy", [check.error for check in report.checks])


def test_value_and_derivative_as_pytorch(case, library):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    kinks = [[0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0], [6.0] * 7]
    z = np.concatenate([kinks, rng.standard_normal((30, 7)) * 3.0])
    dy, alpha = rng.standard_normal(z.shape), alpha_of(case, 7)
    given = [torch.tensor(a, requires_grad=True) for a in (z, alpha) if a is not None]
    out = case.torch(torch.nn.functional, *given)
    out.backward(torch.tensor(dy))
    expected = out.detach(), *(a.grad for a in given)
    ((*found, _),) = [(*made, None) for made in passes(library("numpy"), [case], z, dy, [alpha])]
    for got, want in zip((a for a in found if a is not None), expected, strict=True):
        library("numpy").close(got, want.numpy())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_same_on_every_library(backend, dtype, library, uncompiled, noted):
    rng, cases = np.random.default_rng(2), ACTIVATIONS.values()
    z = np.round(rng.standard_normal((6, 4)) * 200.0).astype(dtype) / 64  # whose products with 30 are exact
    dy, alphas = rng.standard_normal((6, 4)).astype(dtype), [alpha_of(case, 4) for case in cases]
    given = backend.array(z), backend.array(dy)
    typed = [None if a is None else backend.array(a.astype(dtype)) for a in alphas]
    function = all_passes(backend, cases)
    made = function(*given, *typed)
    assert not uncompiled()
    expected = passes(library("numpy"), cases, np.float64(z), np.float64(dy), alphas)
    for name, got, want in zip(ACTIVATIONS, made, expected, strict=True):
        for a, e in zip(got, want, strict=True):
            assert (a is None) == (e is None), name
            if a is not None:
                backend.close(a, e)
                assert backend.dtype(a) == dtype, name
                assert backend.seam.device(a) == backend.seam.device(given[0])
    np.testing.assert_array_equal(backend.host(given[0]), z)
    np.testing.assert_array_equal(backend.host(given[1]), dy)
    if dtype == "float64":
        z += 1.0 / 256.0  # away from kinks
        made = function(backend.array(z), backend.array(dy), *typed)
        noted("activations", backend.name, slope_errors(backend, function, z, dy, alphas, made))


def test_stays_on_the_device_of_the_input(library):
    lib = library("strict-device")
    z, cases = lib.array(np.ones((2, 3))), ACTIVATIONS.values()
    alphas = [None if a is None else lib.array(a) for a in (alpha_of(case, 3) for case in cases)]
    for made in passes(lib, cases, z, z, alphas):
        assert {lib.seam.device(a) for a in made if a is not None} == {lib.seam.device(z)}


@cache
def exact(case: Case, dtype: str) -> tuple[Any, Any]:
    """The value and slope at `far_out`, from 120 digits."""
    with mpmath.workdps(120):
        z = [mpmath.mpf(float(v)) for v in far_out(dtype)]
        value = [float(case.exact(v)) for v in z]
        slope = [float(case.slope(v) if case.slope else mp_slope(case.exact, v)) for v in z]
    return np.array(value), np.array(slope)


def far_out(dtype: str) -> Any:
    """Inputs of any size."""
    info = np.finfo(dtype)
    sizes = [*EXTREMES, float(info.max), float(info.smallest_subnormal)]
    return np.array(sorted({s * v for v in sizes for s in (-1, 1)}), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_exact_and_silent_for_extreme_inputs(backend, dtype):
    """A warning of overflow would fail the test.  What is no number stays none, and spoils no other."""
    cases = [case for case in ACTIVATIONS.values() if case.exact]
    rows = np.concatenate([far_out(dtype), np.array([np.nan, np.inf, -np.inf], dtype)])
    z, ones = backend.array(rows), backend.array(np.ones_like(rows))
    starts = [case.layer.init(bp.Rng(0), ()).get("alpha") for case in cases]
    alphas = [None if a is None else backend.array(a, dtype) for a in starts]
    for case, (y, dz, _) in zip(cases, passes(backend, cases, z, ones, alphas), strict=True):
        y, dz = backend.host(y), backend.host(dz)
        check_far_out(case, dtype, y[:-3], dz[:-3])
        assert np.isnan(y[-3]), case


def check_far_out(case, dtype, y, dz):
    """That these are the values and slopes of `exact`."""
    z, (value, slope) = far_out(dtype), exact(case, dtype)
    info, size = np.finfo(dtype), np.maximum(np.abs(z.astype("float64")), 1.0)
    small = 0.0 if case.relative else 2.0 * info.eps * np.minimum(size, 9.0)  # 1 + erf cancels, in every library
    least = info.tiny * size  # some libraries take smaller numbers for 0
    far = case.far * np.minimum(size, 100.0) ** 2
    fits = np.abs(value) < info.max * (1.0 - info.eps)  # not selu and the square of the largest numbers
    assert np.all(np.isinf(y[~fits]) | (np.abs(y[~fits]) >= info.max)), case
    allowed = (8 + far) * info.eps * np.abs(value) + small + least
    assert np.all(np.abs(y[fits] - value[fits]) <= allowed[fits]), case
    # a kink at 0, for which some libraries take numbers below `tiny`, is for the comparison with PyTorch
    fits = (np.abs(z) >= info.tiny) & (np.abs(slope) < info.max)
    allowed = info.eps * ((4 + far) * np.abs(slope) + case.off) + least
    assert np.all(np.abs(dz[fits] - slope[fits]) <= allowed[fits]), case


def mp_slope(function, z):
    with mpmath.workdps(120 if abs(z) > 1e-40 else 750):
        return mpmath.diff(function, z, h=mpmath.mpf(10) ** -20 * abs(z)) if z else 0


SOFTMAX = ACTIVATIONS["softmax"]


def test_softmax_of_large_logits_is_exact_and_silent(backend):
    z = np.array(
        [[1e4, -1e4, 0.0], [-1e4] * 3, [1e20, 1e20, -1e20], [0.0, 709.0, 1000.0], [1e30] * 3, [5e-324, 0.0, -0.0]]
    )
    ((y, dz, _),) = passes(backend, [SOFTMAX], backend.array(z), backend.array(np.ones_like(z)), [None])
    expected = [[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0], [0, 0, 1], [1 / 3] * 3, [1 / 3] * 3]
    np.testing.assert_allclose(backend.host(y), expected, rtol=1e-15, atol=1e-100)
    np.testing.assert_allclose(backend.host(dz), np.zeros_like(z), atol=1e-15)


def test_log_softmax_of_large_logits_and_of_classes_switched_off(backend):
    rows = [[1e4, -1e4, 0.0], [-1e4] * 3, [1e30, 1e30, -1e30], [0.0, 709.0, 1000.0], [1.0, -np.inf, 1.0]]
    z, dy = backend.array(np.array(rows)), backend.array(np.array([[1.0, 2.0, 3.0]] * 5))
    ((y, dz, _),) = passes(backend, [ACTIVATIONS["log_softmax"]], z, dy, [None])
    half, third = -np.log(2.0), -np.log(3.0)
    expected = [[0, -2e4, -1e4], [third] * 3, [half, half, -2e30], [-1000, -291, 0], [half, -np.inf, half]]
    np.testing.assert_allclose(backend.host(y), expected, rtol=1e-15)
    slopes = np.array([[1, 2, 3]] * 5) - 6.0 * np.array(
        [[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0], [0, np.exp(-291.0), 1], [0.5, 0, 0.5]]
    )
    np.testing.assert_allclose(backend.host(dz), slopes, atol=1e-15)


def test_softmax_of_classes_switched_off_and_of_logits_apart_by_more_than_the_largest_number(backend):
    largest = np.finfo("float64").max
    z = backend.array(np.array([[1.0, -np.inf, 1.0], [largest, -largest, largest], [-np.inf, -np.inf, -3.0]]))
    ((y, dz, _),) = passes(backend, [SOFTMAX], z, backend.array(np.array([[1.0, 2.0, 3.0]] * 3)), [None])
    np.testing.assert_array_equal(backend.host(y), [[0.5, 0, 0.5], [0.5, 0, 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(backend.host(dz), [[-0.5, 0, 0.5], [-0.5, 0, 0.5], [0, 0, 0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: bp.LeakyReLU(-0.1),
        lambda: bp.LeakyReLU(1.0),
        lambda: bp.ELU(0.0),
        lambda: bp.ELU(float("nan")),
        lambda: bp.CELU(-1.0),
        lambda: bp.Softshrink(-0.1),
        lambda: bp.Sine(0.0),
        lambda: bp.PReLU(float("nan")),
        lambda: bp.PReLU(shared=2),
        lambda: bp.Parametric("prelu"),
        lambda: bp.Parametric("mesh"),
    ],
)
def test_unfit_options_are_refused(make):
    with pytest.raises(ValueError, match=r"; expected |did you mean 'mish'"):
        make()


@pytest.mark.parametrize(("name", "meant"), [("rleu", "relu"), ("sigmod", "sigmoid"), ("soft_plus", "softplus")])
def test_unknown_name_suggests_a_known_one(name, meant):
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        bp.Dense(3, name)


# ---- with parameters, and of a user's own ---------------------------------------------------------------------------


def test_a_parameter_is_trained_and_saved_and_does_not_decay(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 3))
    net = bp.Sequential(bp.Dense(4, "prelu"), bp.Dense(4, "parametric_mish"), "prelu", bp.Dense(1))
    trainer = bp.Trainer(net, "mse", bp.AdamW(0.01)).build(x)
    names = {slot.name: slot.decay for slot in trainer.layout.parameters if "alpha" in slot.name}
    assert names == {"0.activation.alpha": False, "1.activation.alpha": False, "2.alpha": False}
    before = trainer.parameters["1"]["activation"]["alpha"].copy()
    np.testing.assert_array_equal(before, np.ones(4))
    trainer.fit(x, x[:, :1], epochs=3, progress=False)
    assert np.all(trainer.parameters["1"]["activation"]["alpha"] != before)
    trainer.save(tmp_path / "model")
    loaded = bp.load(tmp_path / "model")
    assert loaded.network == net
    np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))


def test_an_activation_without_its_parameter_is_what_it_starts_as(library):
    b, z = library("numpy").seam, np.linspace(-3.0, 3.0, 7)
    for case, plain in (("prelu", bp.LeakyReLU(0.25)), ("parametric_mish", bp.Mish())):
        layer = ACTIVATIONS[case].layer
        np.testing.assert_allclose(layer.value(b, z), plain.value(b, z), rtol=1e-15)
        found, expected = layer.derivative(b, z, z), plain.derivative(b, plain.saved(z, plain.value(b, z)), z)
        np.testing.assert_allclose(found, expected, rtol=1e-15)


OWN = bp.Activation(lambda xp, z: xp.sin(z) ** 2, lambda xp, z: 2.0 * xp.sin(z) * xp.cos(z))


def test_an_activation_of_ones_own_functions(backend, uncompiled):
    """It is right, compiled, and equal to itself."""
    z, dy = np.random.default_rng(0).standard_normal((2, 5, 4))
    ((y, dz, _),) = passes(backend, [Case(OWN, None)], backend.array(z), backend.array(dy), [None])
    backend.close(y, np.sin(z) ** 2)
    backend.close(dz, dy * np.sin(2.0 * z))
    assert not uncompiled()
    net = bp.Sequential(bp.Dense(3, OWN), OWN)
    assert net == bp.Sequential(bp.Dense(3, OWN), OWN)
    assert str(OWN) == "Activation(<lambda>, <lambda>)"


@pytest.mark.parametrize(
    ("function", "slope", "error", "message"),
    [
        (
            lambda xp, z: z**3,
            lambda xp, z: z**2,
            GradientError,
            r"at z = -6\.1: its slope there is 37\.21, .* 111\.63$",
        ),
        (lambda xp, z: xp.abs(z), lambda xp, z: xp.sign(-z), GradientError, "its slope there is 1, .* say -1$"),
        (lambda xp, z: z, lambda xp, z: z / 0.0, GradientError, "its slope there is -inf, .* say 1$"),
        (lambda xp, z: xp.log(-1.0 - z * z), lambda xp, z: z, GradientError, "is finite nowhere"),
        (lambda z: z, lambda z: z, ArgumentError, r"are called with \(xp, z\), which fails: TypeError"),
        (lambda xp, z: xp.sum(z), lambda xp, z: z, ShapeError, r"gave what is of shape \(\) for z of shape \(82,\)"),
        (lambda xp, z: z, lambda xp, z: 1.0, ShapeError, "gave what is of type float for z"),
        (
            "relu",
            lambda xp, z: z,
            ArgumentError,
            r"the function of an Activation is of type str; expected a function of",
        ),
    ],
)
def test_functions_that_do_not_agree_are_refused(function, slope, error, message):
    with pytest.raises(error, match=message):
        bp.Activation(function, slope)


def test_functions_may_have_kinks_large_values_and_be_defined_on_one_side():
    bp.Activation(lambda xp, z: xp.log(z), lambda xp, z: 1.0 / z)
    bp.Activation(lambda xp, z: 1e9 + xp.sin(z), lambda xp, z: xp.cos(z))
    bp.Activation(lambda xp, z: xp.maximum(z, 0.5), lambda xp, z: xp.astype(z > 0.5, z.dtype))


def test_functions_of_ones_own_are_in_no_file(tmp_path):
    trainer = bp.Trainer(bp.Sequential(bp.Dense(2), OWN), "mse").build(np.ones((3, 2)))
    pattern = r"Activation\(.*\) can't be saved, since its function is a function .*: write a class of your own"
    with pytest.raises(ArgumentError, match=pattern):
        trainer.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
