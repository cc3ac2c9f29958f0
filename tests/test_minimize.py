"""Every optimizer finds the bottom of a parabola and of Rosenbrock's valley; and what `bp.minimize` promises."""

import numpy as np
import pytest

import bpnet as bp

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
    (bp.Lion(bp.Cosine(0.03, 1500)), 1500),  # which needs a rate that falls: see below
    (bp.LAMB(bp.Cosine(0.01, 1500)), 1500),
    (bp.LARS(3e-3), 500),
    (bp.Adafactor(bp.Cosine(3.0, 4000)), 4000),
    (bp.Muon(rest=bp.AdamW(0.03)), 1300),
    (bp.ScheduleFreeAdamW(0.3, beta1=0.98), 2000),
    (bp.Prodigy(3.0), 1000),
    (bp.SAM(bp.Adam(0.1), rho=1e-3), 600),
    (bp.Clip(bp.Adam(0.1), norm=1.0), 600),
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
