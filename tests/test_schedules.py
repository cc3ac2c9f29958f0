"""Learning-rate schedules, at the steps where their formulas are easy to read."""

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import OptionError

SCHEDULES = {  # a schedule, and its rate at some steps, the first being step 0
    "constant": (bp.Constant(0.3), {0: 0.3, 1: 0.3, 10**6: 0.3}),
    "cosine": (bp.Cosine(0.4, 60), {0: 0.4, 15: 0.2 + 0.2 * 0.5**0.5, 30: 0.2, 40: 0.1, 60: 0.0, 999: 0.0}),
    "cosine to a rest": (bp.Cosine(0.5, 10, final=0.1), {0: 0.5, 5: 0.3, 10: 0.1, 11: 0.1}),
    "warm-up": (bp.WarmUp(0.4, 4), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.4, 99: 0.4}),
    "warm-up in one step": (bp.WarmUp(0.4, 1), {0: 0.4, 1: 0.4}),
    "warm-up, then cosine": (bp.WarmUp(bp.Cosine(0.4, 10), 2), {0: 0.2, 1: 0.4, 2: 0.4, 7: 0.2, 12: 0.0, 50: 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_rate_of_the_step(name):
    schedule, rates = SCHEDULES[name]
    for step, rate in rates.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-14, abs=1e-16), step


def test_cosine_as_pytorch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.7)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.2)
    for step in range(21):
        assert bp.Cosine(0.7, 20, 0.2)(step) == pytest.approx(oracle.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize("optimizer", [bp.SGD, bp.Adam, bp.AdamW])
def test_optimizer_takes_a_number_or_a_schedule(optimizer):
    assert [optimizer(0.2).learning_rate(s) for s in (0, 9)] == [0.2, 0.2]
    assert [optimizer(bp.WarmUp(0.2, 2)).learning_rate(s) for s in (0, 9)] == [0.1, 0.2]


def test_trainer_follows_the_schedule(backend):
    """Along a constant gradient of 1, gradient descent moves by the sum of the rates."""
    x, y = backend.array(np.ones((1, 1))), backend.array(np.full((1, 1), 1e6))
    trainer = bp.Trainer(bp.Dense(1, bias=False), "mse", bp.SGD(bp.WarmUp(0.4, 4)), clip_norm=1.0).build(x)
    start = float(trainer.theta[0])
    history = trainer.fit(x, y, epochs=6, progress=False)
    assert history["lr"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rel=1e-12)
    assert float(trainer.theta[0]) - start == pytest.approx(1.8, rel=1e-9)


def test_more_steps_than_a_float_can_count(backend):
    x, y = backend.array(np.ones((2, 1))), backend.array(np.zeros((2, 1)))
    for schedule, lr in ((bp.WarmUp(0.1, 10**400), 0.0), (bp.Cosine(0.1, 10**400), 0.1)):
        assert bp.Trainer(bp.Dense(1), "mse", bp.SGD(schedule)).fit(x, y, progress=False)["lr"] == [lr]


@pytest.mark.parametrize(
    "make",
    [
        lambda: bp.Constant(-1.0),
        lambda: bp.Cosine(0.1, 0),
        lambda: bp.Cosine(0.1, 2.5),
        lambda: bp.Cosine(0.1, 10, final=-0.1),
        lambda: bp.Cosine(float("inf") - float("inf"), 10),
        lambda: bp.WarmUp(0.1, 0),
        lambda: bp.WarmUp(-0.1, 5),
        lambda: bp.WarmUp("slow", 5),
    ],
)
def test_unfit_options_are_refused(make):
    with pytest.raises(OptionError):
        make()
