"""Every optimizer finds the bottom of a parabola and of Rosenbrock's valley; and what `bp.minimize` promises."""

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ArgumentError, DivergedError, DTypeError, OptionError, ShapeError

GOAL = np.array([1.0, -1.0, 1.0, 1.0, 1.0])
START = np.array([-1.0, 10.0, 1.0, 0.0, 0.0])


def parabola_and_rosenbrock(x):
    """Of the first three, and of the last two."""
    off, (a, b) = x[:3] - GOAL[:3].astype(x.dtype), x[3:]
    value = np.sum(off * off) + (1.0 - a) ** 2 + 100.0 * (b - a * a) ** 2
    valley = np.stack([-2.0 * (1.0 - a) - 400.0 * a * (b - a * a), 200.0 * (b - a * a)])
    return value, np.concatenate([2.0 * off, valley])


CONVERGES = [  # an optimizer, and after how many steps it is there
    (bp.SGD(1e-3), 9000),
    (bp.SGD(1e-3, 0.9, nesterov=True), 1000),
    (bp.Adam(0.03), 1300),
    (bp.Adam(0.1, amsgrad=True), 500),
    (bp.AdamW(0.03), 1300),
    (bp.NAdam(0.01), 3200),
    (bp.RAdam(0.03), 1900),
    (bp.Adamax(0.3), 700),
    (bp.AdaBelief(0.03), 600),
    (bp.RMSprop(bp.Cosine(0.01, 4000), rho=0.9), 4000),
    (bp.RMSprop(bp.Cosine(0.01, 1500), momentum=0.9, centered=True), 1500),
    (bp.Adagrad(0.3), 4000),
    (bp.Adadelta(0.1), 10_000),
    (bp.Lion(bp.Cosine(0.03, 1500)), 1500),  # by the signs of gradients, with a rate that has to fall
    (bp.LAMB(bp.Cosine(0.01, 1500)), 1500),
    (bp.LARS(3e-3), 500),
    (bp.Adafactor(bp.Cosine(10.0, 3000)), 3000),
    (bp.Muon(rest=bp.AdamW(0.03)), 1300),
    (bp.ScheduleFreeAdamW(0.3, beta1=0.98), 2000),
    (bp.Prodigy(bp.Cosine(1.0, 2000)), 2000),
    (bp.SAM(bp.Adam(0.1), rho=1e-3), 600),
    (bp.Clip(bp.Adam(0.1), norm=1.0), 600),
    (bp.GradientNoise(bp.Adam(0.03), eta=0.01), 1500),
    (bp.Accumulate(bp.Adam(0.1), 2), 1000),
    (bp.ExponentialAverage(bp.Adam(0.03), 0.9), 1300),
    (bp.StochasticAverage(bp.Adam(0.1), start=500), 700),
    (bp.Grouped(bp.Adam(9.0), groups={"x": {"lr": 0.03}}), 1300),
    (bp.LBFGS(), 30),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_optimizer_converges(dtype):
    missed = {}
    for optimizer, steps in CONVERGES:
        found = bp.minimize(parabola_and_rosenbrock, START.astype(dtype), optimizer, steps)
        assert found.dtype == dtype
        if not np.max(np.abs(found - GOAL)) < 3e-2:
            missed[optimizer] = found
    assert not missed


def test_every_optimizer_is_among_them():
    public = [getattr(bp, name) for name in bp.__all__]
    found = {c for c in public if isinstance(c, type) and issubclass(c, bp.Optimizer)}
    assert {type(optimizer) for optimizer, _ in CONVERGES} == found - {bp.Optimizer, bp.ElementwiseOptimizer}


@pytest.mark.parametrize(
    "optimizer", [bp.LBFGS(), bp.SAM(bp.SGD(0.2), rho=1e-4), bp.ExponentialAverage(bp.SGD(0.2), 0.5)]
)
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_arrays_of_any_library_and_shape(backend, shape, optimizer):
    if backend.name == "jax":
        pytest.skip("the member jax-jit computes the same: nothing is compiled here")
    start = np.random.default_rng(0).standard_normal(shape)
    given = backend.array(start)

    def bowl(x):
        return backend.xp.sum((x - 1.0) * (x - 1.0)), 2.0 * (x - 1.0)

    found = bp.minimize(bowl, given, optimizer, 40)
    assert (backend.dtype(found), tuple(found.shape)) == ("float64", shape)
    np.testing.assert_allclose(backend.host(found), np.ones(shape), atol=1e-3)
    np.testing.assert_array_equal(backend.host(given), start)


def test_no_step_gives_a_copy():
    x = np.ones(3)
    found = bp.minimize(lambda x: (0.0, x), x, steps=0)
    assert found is not x
    np.testing.assert_array_equal(found, x)


def test_asks_for_each_gradient_once():
    """Also where the optimizer asks for the loss at the same place again."""
    seen = []

    def bowl(x):
        seen.append(x.copy())
        return np.sum(x * x), 2.0 * x

    bp.minimize(bowl, np.array([3.0, -1.0]), bp.LBFGS(), 1)
    assert len({tuple(x) for x in seen}) == len(seen)


@pytest.mark.parametrize(
    ("function", "x", "steps", "error", "message"),
    [
        (lambda x: (0.0, x), np.ones(2, "int64"), 1, DTypeError, "x holds int64 values"),
        (lambda x: (0.0, x), np.ones(0), 1, ShapeError, "at least one element"),
        (lambda x: (0.0, x), np.ones(2), -1, OptionError, "steps is -1"),
        (lambda x: x, np.ones(2), 1, ArgumentError, "the two of `return value, gradient`"),
        (lambda x: (0.0, x[:1]), np.ones(2), 1, ShapeError, r"a gradient of \(1,\), float64"),
        (lambda x: (0.0, np.float32(1.0) * x.astype("float32")), np.ones(2), 1, ShapeError, "float32"),
        (lambda x: (0.0, x * np.inf), np.ones(2), 3, DivergedError, "its end is not finite"),
    ],
)
def test_what_does_not_fit_is_refused(function, x, steps, error, message):
    with pytest.raises(error, match=message):
        bp.minimize(function, x, "sgd", steps)
