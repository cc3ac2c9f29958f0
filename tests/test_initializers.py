"""Start values: each initializer's bound, variance or orthogonality, by name and as an object, in layers and files."""

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

import bpnet as bp
from bpnet import initializers as init
from bpnet.errors import (
    ArgumentError,
    BuiltError,
    DataError,
    OptionError,
    OutOfMemoryError,
    ShapeError,
    UnknownNameError,
)
from bpnet.typing import InitializerName

N, UNITS = 300, 500

UNIFORM = {  # the bound
    "glorot_uniform": math.sqrt(6.0 / (N + UNITS)),
    "he_uniform": math.sqrt(6.0 / N),
    "lecun_uniform": math.sqrt(3.0 / N),
    "torch": 1.0 / math.sqrt(N),
    "uniform": 1.0,
    "siren": math.sqrt(6.0 / N) / 30.0,
}
NORMAL = {  # the variance
    "glorot_normal": 2.0 / (N + UNITS),
    "glorot_truncated_normal": 2.0 / (N + UNITS),
    "he_normal": 2.0 / N,
    "he_truncated_normal": 2.0 / N,
    "lecun_normal": 1.0 / N,
    "lecun_truncated_normal": 1.0 / N,
    "normal": 1.0,
}


def weight(kernel_init: Any, shape: tuple[int, int] = (N, UNITS), **options: Any) -> Any:
    return bp.Dense(shape[1], kernel_init=kernel_init, **options).init(bp.Rng(0), shape[:1])["weight"]


def test_every_initializer_is_tested() -> None:
    names = set(get_args(InitializerName))
    assert names == {*UNIFORM, *NORMAL, "zeros", "ones", "orthogonal"}


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_values_fill_their_bounds_evenly(name: str) -> None:
    w, bound = weight(name), UNIFORM[name]
    assert np.max(np.abs(w)) <= bound
    assert np.max(np.abs(w)) > 0.999 * bound
    shares = np.histogram(w, 10, (-bound, bound))[0] / w.size
    assert np.all(np.abs(shares - 0.1) < 5.0 * math.sqrt(0.09 / w.size))


@pytest.mark.parametrize("name", NORMAL)
def test_normal_values_have_their_variance(name: str) -> None:
    """Within five standard errors: the kurtosis is 3, and less of what is truncated."""
    w, variance = weight(name), NORMAL[name]
    assert abs(np.mean(w)) < 5.0 * math.sqrt(variance / w.size)
    assert abs(np.var(w) / variance - 1.0) < 5.0 * math.sqrt(2.0 / w.size)
    widths = np.max(np.abs(w)) / math.sqrt(variance)
    assert widths < 2.0 / 0.87962566103423978 if "truncated" in name else widths > 4.0
    inside = np.mean(np.abs(w) < math.sqrt(variance))
    expected = math.erf(math.sqrt(0.5))
    if "truncated" in name:
        expected = math.erf(0.87962566103423978 * math.sqrt(0.5)) / math.erf(2.0 * math.sqrt(0.5))
    assert abs(inside - expected) < 5.0 * math.sqrt(0.25 / w.size)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (30, 30), (7, 1)], ids=str)
def test_orthogonal_columns_or_rows(shape: tuple[int, int]) -> None:
    w = weight(init.Orthogonal(gain=2.0), shape)
    assert w.shape == shape
    gram = w.T @ w if shape[0] >= shape[1] else w @ w.T
    np.testing.assert_allclose(gram, 4.0 * np.eye(min(shape)), atol=1e-12)


def test_orthogonal_matrices_are_drawn_evenly() -> None:
    """A matrix of one entry is 1 as often as -1, and one of two axes turns as far in every direction."""
    entries = [init.Orthogonal().draw(bp.Rng(seed), (1, 1), 1, 1)[0, 0] for seed in range(200)]
    assert 60 < sum(entry > 0.0 for entry in entries) < 140
    stacked = init.Orthogonal().draw(bp.Rng(0), (2, 3, 4), 6, 4)
    np.testing.assert_allclose(stacked.reshape(6, 4).T @ stacked.reshape(6, 4), np.eye(4), atol=1e-12)


def test_constants_and_the_first_layer_of_a_siren() -> None:
    assert np.all(weight("zeros") == 0.0)
    assert np.all(weight("ones") == 1.0)
    assert np.all(weight(init.Constant(0.3)) == 0.3)
    w = weight(init.Siren(first=True))
    assert 0.999 / N < np.max(np.abs(w)) <= 1.0 / N


def test_a_siren_keeps_its_deviation_from_layer_to_layer() -> None:
    """z is normal with the variance 2 E y**2, y being of the layer below, and E sin(z)**2 = (1 - exp(-2 var z)) / 2."""
    first = bp.Dense(256, "sine", kernel_init=init.Siren(first=True), bias_init="torch")
    net = bp.Sequential(first, *[bp.Dense(256, "sine", kernel_init="siren") for _ in range(4)])
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (500, 2))
    kept = np.mean(net.forward(bp.Run(bp.backends.get("numpy")), net.init(bp.Rng(0), (2,)), x)[0] ** 2)
    assert kept == pytest.approx((1.0 - math.exp(-4.0 * kept)) / 2.0, abs=0.01)


def test_dense_starts_as_keras_dense_does() -> None:
    start = bp.Dense(UNITS).init(bp.Rng(0), (N,))
    np.testing.assert_array_equal(start["weight"], bp.Rng(0).uniform((N, UNITS), math.sqrt(6.0 / (N + UNITS))))
    np.testing.assert_array_equal(start["bias"], np.zeros(UNITS))
    np.testing.assert_array_equal(bp.Dense(UNITS, "relu").init(bp.Rng(0), (N,))["weight"], start["weight"])


def test_a_layer_starts_as_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Linear(N, UNITS)
    ours = bp.Dense(UNITS, kernel_init="torch", bias_init="torch").init(bp.Rng(0), (N,))
    for name in ("weight", "bias"):
        found, expected = ours[name], getattr(theirs, name).detach().numpy()
        assert np.max(np.abs(found)) == pytest.approx(np.max(np.abs(expected)), rel=0.02)
        assert np.var(found) == pytest.approx(np.var(expected), rel=0.2)


def test_one_seed_is_one_start_on_every_library(backend: Any) -> None:
    net = bp.Sequential(
        bp.Dense(4, "prelu", kernel_init="orthogonal"), bp.Dense(3, kernel_init="he_truncated_normal", bias_init="ones")
    )
    theta = bp.Trainer(net, "mse", seed=3).build(backend.array(np.ones((2, 5)))).theta
    np.testing.assert_array_equal(backend.host(theta), bp.layout_of(net, (5,)).start(3)[0])


# ---- the parametrization of the neural tangent kernel ---------------------------------------------------------------


def test_ntk_starts_as_the_same_function_with_normal_weights() -> None:
    x = np.random.default_rng(0).standard_normal((40, N))
    plain, ntk = (
        bp.Sequential(bp.Dense(UNITS, "relu", kernel_init="lecun_normal", ntk=on), bp.Dense(3, ntk=on))
        for on in (False, True)
    )
    first, second = (bp.Trainer(net, "mse").build(x) for net in (plain, ntk))
    np.testing.assert_allclose(first.predict(x), second.predict(x), rtol=1e-10)
    assert np.std(second.parameters["0"]["weight"]) == pytest.approx(1.0, rel=0.01)
    y = np.zeros((40, 3))
    _, grad = bp.value_and_grad(plain, "mse", first.theta, x, y)
    _, scaled = bp.value_and_grad(ntk, "mse", second.theta, x, y)
    for slot in first.layout.parameters:
        factor = {"0.weight": N, "1.weight": UNITS}.get(slot.name, 1) ** -0.5
        np.testing.assert_allclose(scaled[slot.part], factor * grad[slot.part], rtol=1e-9, atol=1e-12)


# ---- layer-sequential unit variance ---------------------------------------------------------------------------------


X = np.random.default_rng(0).standard_normal((60, 16)) * np.geomspace(1.0, 500.0, 16)
INNER = bp.Sequential(bp.Dense(16, "prelu", ntk=True), bp.BatchNorm(), bp.Dense(16))
NETWORK = bp.Sequential(bp.Dense(16, "relu"), bp.Residual(INNER), bp.Dense(16, "tanh"))  # few shapes for JAX


def started(x: Any) -> bp.Trainer:
    return bp.lsuv(bp.Trainer(NETWORK, "mse", seed=5), x, tolerance=1e-6)


def test_lsuv_gives_every_dense_layer_unit_variance() -> None:
    trainer, run = started(X), bp.Run(bp.backends.get("numpy"), True)
    p = trainer.layout.views(trainer.backend, trainer.theta, trainer.buffers)
    inner = p["1"]["inner"]
    first = X @ p["0"]["weight"]
    y = np.maximum(first, 0.0)
    second = (y / 4.0) @ inner["0"]["weight"]
    norm, _ = bp.BatchNorm().forward(run, inner["1"], np.where(second > 0.0, second, second / 4.0))
    third = norm @ inner["2"]["weight"]
    for z in (first, second, third, (y + third) @ p["2"]["weight"]):
        assert np.var(z) == pytest.approx(1.0, abs=1e-5)
    gram = inner["2"]["weight"].T @ inner["2"]["weight"]
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(16), atol=1e-12)


def test_lsuv_divides_by_the_deviation_until_it_is_near_1() -> None:
    """Which with biases takes several times: b is of what a layer gives, and is not divided."""
    x = 2.0 + np.random.default_rng(1).standard_normal((30, 4))

    def after(tries: int, tolerance: float = 1e-9, unit: float = 1.0, bias: bool = True) -> Any:
        layer = bp.Dense(3, bias=bias, bias_init=Ramp(0.3))
        return bp.lsuv(bp.Trainer(layer, "mse", seed=5), unit * x, tries=tries, tolerance=tolerance).theta[:12]

    def variance(w: Any, unit: float = 1.0) -> Any:
        return np.var(unit * x @ w.reshape(4, 3) + 0.3 * np.arange(3.0))

    first = after(1)
    drawn = first / np.linalg.norm(first.reshape(4, 3)[:, 0])
    np.testing.assert_allclose(first, drawn / variance(drawn) ** 0.5, rtol=1e-12)
    np.testing.assert_allclose(after(2), first / variance(first) ** 0.5, rtol=1e-12)
    assert variance(after(100)) == pytest.approx(1.0, abs=1e-9)
    plain = after(9, bias=False)
    np.testing.assert_allclose(plain, drawn / np.var(x @ drawn.reshape(4, 3)) ** 0.5, rtol=1e-12)
    unit = next(unit for unit in np.linspace(0.0, 2.0, 100) if variance(drawn, unit) > 0.65)
    np.testing.assert_allclose(after(9, 0.4, unit), drawn, rtol=1e-12)


def test_lsuv_is_the_same_on_every_library(backend: Any) -> None:
    backend.close(started(backend.array(X)).theta, started(X).theta, rtol=1e-10)


def test_lsuv_starts_the_optimizers_state_and_keeps_other_start_values() -> None:
    x = np.random.default_rng(0).standard_normal((30, 4))
    net = bp.Sequential(bp.Dense(3, "prelu", bias_init="ones"), bp.Dense(1))
    trainer = bp.lsuv(bp.Trainer(net, "mse"), x)
    np.testing.assert_array_equal(trainer.parameters["0"]["bias"], np.ones(3))
    np.testing.assert_array_equal(trainer.parameters["0"]["activation"]["alpha"], np.full(3, 0.25))
    same = bp.lsuv(bp.Trainer(net, "mse").build(x), x)
    np.testing.assert_array_equal(trainer.theta, same.theta)
    assert trainer.step_count == 0
    trainer.fit(x, x[:, :1], progress=False)
    with pytest.raises(BuiltError, match=r"the trainer has done 1 step, .*: make another"):
        bp.lsuv(trainer, x)
    with pytest.raises(DataError, match="what weight makes of x has the variance 0"):
        bp.lsuv(bp.Trainer(bp.Dense(1), "mse"), np.zeros((3, 2)))
    with pytest.raises(OptionError, match="tolerance is 0"):
        bp.lsuv(bp.Trainer(net, "mse"), x, tolerance=0)


# ---- objects, files, errors -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ramp(init.Initializer):
    """0, 1, 2, ... times a factor."""

    factor: float = 1.0

    def draw(self, rng: bp.Rng, shape: Any, fan_in: int, fan_out: int) -> Any:
        return rng.given(shape, self.factor * np.arange(float(shape[-1])))


def test_initializers_are_kept_in_files(tmp_path: Any) -> None:
    layers = [
        bp.Dense(3, kernel_init="he_normal", bias_init=init.Constant(0.5)),
        bp.Dense(
            3, kernel_init=init.VarianceScaling(2.0, "fan_out", "truncated_normal"), bias_init=Ramp(2.0), ntk=True
        ),
        bp.Dense(3, kernel_init=init.Orthogonal(0.1), bias_init="ones"),
    ]
    x = np.ones((4, 3))
    trainer = bp.Trainer(bp.Sequential(*layers), "mse").build(x)
    np.testing.assert_array_equal(trainer.parameters["1"]["bias"], [0.0, 2.0, 4.0])
    trainer.save(tmp_path / "model")
    assert bp.load(tmp_path / "model").network == trainer.network
    assert repr(layers[0]) == (
        "Dense(units=3, activation='identity', bias=True, kernel_init='he_normal', bias_init=Constant(value=0.5))"
    )
    assert repr(bp.Dense(3, "relu")) == "Dense(units=3, activation='relu', bias=True)"


def test_shapes_are_found_without_memory_for_start_values() -> None:
    for name in get_args(InitializerName):
        layout = bp.layout_of(bp.Dense(2**20, kernel_init=name, ntk=True), (2**20,))
        assert layout.size == 2**40 + 2**20
    with pytest.raises(OutOfMemoryError):
        bp.layout_of(bp.Dense(2**30, kernel_init="orthogonal"), (2**30,))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.Dense(3, kernel_init="glorot"), UnknownNameError, "unknown kernel_init 'glorot': did you mean"),
        (lambda: bp.Dense(3, bias_init="zero"), UnknownNameError, "unknown bias_init 'zero': did you mean 'zeros'"),
        (lambda: bp.Dense(3, kernel_init=3), ArgumentError, "kernel_init is of type int; expected a name or a"),
        (lambda: bp.Dense(3, kernel_init=init.Normal), ArgumentError, r"init is the class Normal; .*Normal\(...\)"),
        (lambda: bp.Dense(3, ntk="yes"), OptionError, "ntk is 'yes'; expected True or False"),
        (lambda: init.VarianceScaling(0.0), OptionError, "scale is 0"),
        (lambda: init.VarianceScaling(mode="fan"), OptionError, "mode is 'fan'; expected 'fan_in', .* or 'fan_avg'"),
        (lambda: init.VarianceScaling(distribution="cauchy"), OptionError, "distribution is 'cauchy'"),
        (lambda: init.Orthogonal(-1.0), OptionError, "gain is -1"),
        (lambda: init.Siren(w0=0), OptionError, "w0 is 0"),
        (lambda: init.Constant(math.inf), OptionError, "value is inf"),
        (lambda: init.Normal(-1.0), OptionError, "deviation is -1"),
        (lambda: init.Uniform("wide"), OptionError, "limit is 'wide'"),
        (
            lambda: bp.layout_of(bp.Dense(3, bias_init="orthogonal"), (2,)), ShapeError,
            r"Orthogonal\(gain=1.0\) draws matrices, .* of the shape \(3,\)",
        ),
    ],
)  # fmt: skip
def test_unfit_options_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
