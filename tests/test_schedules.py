"""Schedules, at the steps where their formulas are easy to read, and as PyTorch's and optax's; in steps and epochs."""

import math
import pickle
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

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
    "restarts": (bp.CosineRestarts(0.4, 20), {0: 0.4, 10: 0.2, 19.9999999: 0.0, 20: 0.4, 30: 0.2, 70: 0.2}),
    "longer restarts": (bp.CosineRestarts(0.4, 20, 2, 0.2), {10: 0.3, 20: 0.4, 40: 0.3, 60: 0.4, 100: 0.3, 140: 0.4}),
    "flat, then cosine": (bp.FlatCosine(0.4, 40, 0.25, 0.1), {0: 0.4, 10: 0.4, 25: 0.25, 40: 0.1, 99: 0.1}),
    "coslog4": (bp.CosLog(0.4, 15), {0: 0.0, 1: 0.0, 3: 0.0, 7: 0.0, 15: 0.0, 99: 0.0, math.sqrt(2) - 1: 0.4,
                                     math.sqrt(8) - 1: 0.4, math.sqrt(32) - 1: 0.4, math.sqrt(128) - 1: 0.4,
                                     2**1.25 - 1: 0.2}),
    "one cycle": (bp.OneCycle(1.0, 101, 31 / 101), {0: 0.04, 15: 0.52, 30: 1.0, 65: 0.5 + 2e-6, 100: 4e-6, 999: 4e-6}),
    "one cycle that begins above": (bp.OneCycle(1.0, 10, 0.1), {0: 1.0, 4.5: 0.5 + 2e-6, 9: 4e-6}),
    "one cycle of a momentum": (bp.OneCycle(0.85, 11, 0.5, 0.95, 0.95), {0: 0.95, 4.5: 0.85, 7.25: 0.9, 10: 0.95}),
    "steps": (bp.StepDecay(0.4, 10, 0.5), {0: 0.4, 9: 0.4, 10: 0.2, 25: 0.1}),
    "some steps": (bp.StepDecay(0.4, [3, 5]), {0: 0.4, 2: 0.4, 3: 0.04, 4.9: 0.04, 5: 0.004, 99: 0.004}),
    "exponential": (bp.Exponential(0.4, 0.5, 10, 0.05), {0: 0.4, 5: 0.4 * 0.5**0.5, 10: 0.2, 99: 0.05}),
    "straight": (bp.Polynomial(0.4, 10), {0: 0.4, 5: 0.2, 10: 0.0, 99: 0.0}),
    "polynomial": (bp.Polynomial(0.5, 10, 2.0, 0.1), {0: 0.5, 5: 0.2, 10: 0.1, 99: 0.1}),
    "epochs": (bp.Epochs(bp.StepDecay(0.4, 2, 0.5), 5), {0: 0.4, 9: 0.4, 10: 0.2, 19: 0.2, 20: 0.1}),
    "parts of epochs": (bp.Epochs(bp.WarmUp(bp.Cosine(0.4, 10), 2), 4),
                        {0: 0.2, 4: 0.4, 6: 0.4, 8: 0.4, 28: 0.2, 48: 0.0}),
    "warm-up, then cosine": (bp.WarmUp(bp.Cosine(0.4, 10), 2), {0: 0.2, 1: 0.4, 2: 0.4, 7: 0.2, 12: 0.0, 50: 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_rate_of_the_step(name):
    schedule, rates = SCHEDULES[name]
    for step, rate in rates.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-14, abs=1e-16), step


TORCH = {  # ours, and PyTorch's of torch.optim.lr_scheduler and an optimizer
    "cosine": (bp.Cosine(0.7, 50, 0.2), lambda t, o: t.CosineAnnealingLR(o, 50, eta_min=0.2)),
    "restarts": (bp.CosineRestarts(0.7, 7, 1, 0.2), lambda t, o: t.CosineAnnealingWarmRestarts(o, 7, 1, 0.2)),
    "longer restarts": (bp.CosineRestarts(0.7, 5, 2), lambda t, o: t.CosineAnnealingWarmRestarts(o, 5, 2)),
    "one cycle": (bp.OneCycle(0.7, 51), lambda t, o: t.OneCycleLR(o, 0.7, 51)),
    "one cycle, options": (bp.OneCycle(0.7, 51, 0.2, 0.07, 0.0007),
                           lambda t, o: t.OneCycleLR(o, 0.7, 51, pct_start=0.2, div_factor=10, final_div_factor=100)),
    "steps": (bp.StepDecay(0.7, 4, 0.3), lambda t, o: t.StepLR(o, 4, 0.3)),
    "some steps": (bp.StepDecay(0.7, (4, 9, 31)), lambda t, o: t.MultiStepLR(o, [4, 9, 31])),
    "exponential": (bp.Exponential(0.7, 0.9), lambda t, o: t.ExponentialLR(o, 0.9)),
    "polynomial": (bp.Polynomial(0.7, 30, 1.5), lambda t, o: t.PolynomialLR(o, 30, 1.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_as_pytorch(name):
    torch = pytest.importorskip("torch")
    schedule, theirs = TORCH[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.7, momentum=0.9)
    oracle = theirs(torch.optim.lr_scheduler, optimizer)
    for step in range(51):
        assert schedule(step) == pytest.approx(oracle.get_last_lr()[0], rel=1e-10, abs=1e-12), step
        if step < 50:
            optimizer.step()
            oracle.step()


def test_as_optax():
    optax = pytest.importorskip("optax")
    pairs = [
        (bp.Exponential(0.7, 0.5, 10, 0.1), optax.exponential_decay(0.7, 10, 0.5, end_value=0.1)),
        (bp.Polynomial(0.7, 30, 2.0, 0.1), optax.polynomial_schedule(0.7, 0.1, 2.0, 30)),
        (bp.Cosine(0.7, 30, 0.07), optax.cosine_decay_schedule(0.7, 30, 0.1)),
    ]
    for schedule, theirs in pairs:
        for step in (0, 1, 7, 29, 30, 50):
            assert schedule(step) == pytest.approx(float(theirs(step)), rel=1e-6), (schedule, step)


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


# ---- other options than the learning rate ---------------------------------------------------------------------------


def test_momentum_and_decay_follow_schedules_by_hand():
    momentum, decay = bp.OneCycle(0.5, 6, start=0.9, final=0.9), bp.Cosine(0.3, 5)
    optimizer = bp.SGD(bp.WarmUp(0.1, 3), momentum=momentum, weight_decay=decay)
    x, y = np.random.default_rng(0).standard_normal((2, 8, 3))
    trainer = bp.Trainer(bp.Dense(3, bias=False), "mse", optimizer).build(x)
    theta, v = trainer.theta.copy(), 0.0
    for step in range(6):
        lr = optimizer.lr(step)
        grad = bp.value_and_grad(bp.Dense(3, bias=False), "mse", theta, x, y)[1]
        v = momentum(step) * v + grad
        theta = (1.0 - lr * decay(step)) * theta - lr * v
        trainer.step(x, y)
        np.testing.assert_allclose(trainer.theta, theta, rtol=1e-12)


def test_one_cycle_of_momentum_as_pytorch():
    """Of Adam too, whose correction is then by the beta1 of the step."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(6), rng.standard_normal((30, 6))
    parameter = torch.tensor(start, requires_grad=True)
    oracle = torch.optim.Adam([parameter], 0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(oracle, 0.1, 30)
    backend, layout = bp.backends.get("numpy"), bp.layout_of(bp.Dense(6, bias=False), (1,))
    optimizer = bp.Adam(bp.OneCycle(0.1, 30), beta1=bp.OneCycle(0.85, 30, start=0.95, final=0.95))
    theta, state = start, optimizer.init(backend, layout, start)
    for step, grad in enumerate(gradients):
        theta, state = optimizer.update(backend, layout, theta, grad, state, optimizer.hyperparameters_at(step))
        parameter.grad = torch.tensor(grad)
        oracle.step()
        if step < 29:
            cycle.step()
    np.testing.assert_allclose(theta, parameter.detach().numpy(), rtol=1e-10)


@dataclass(frozen=True)
class _TooMuch(bp.Schedule):
    def __call__(self, step):
        return 1.0 if step else 0.5


def test_a_schedule_may_give_only_what_the_option_may_be():
    x = np.ones((4, 2))
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.SGD(0.1, momentum=_TooMuch()))
    trainer.step(x, x[:, :1])
    with pytest.raises(OptionError, match="the momentum of the schedule is 1"):
        trainer.step(x, x[:, :1])


@dataclass(frozen=True)
class NotesRates(bp.Dropout):
    """Dropout that notes when it is called, and the share that it drops."""

    seen = []

    def forward(self, run, p, x):
        y, mask = super().forward(run, p, x)
        if run.training:
            self.seen.append(None if run.backend.traces else 1.0 - np.mean(np.asarray(mask) > 0.0))
        return y, mask


def test_dropout_follows_a_schedule(backend):
    """In a step that is compiled once; the masks are those of the seed on every library."""
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 500)).astype("float32"), rng.standard_normal((60, 2)).astype("float32")
    net = bp.Sequential(NotesRates(bp.Epochs(bp.Polynomial(0.8, 4))), bp.Dense(2))
    found = []
    for arrays in ((x, y), (backend.array(x), backend.array(y))):
        trainer = bp.Trainer(net, "mse", bp.SGD(0.01), compile="auto" if found else False)
        NotesRates.seen.clear()
        trainer.fit(*arrays, epochs=4, batch_size=30, shuffle=False, progress=False)
        found.append(trainer.theta)
        if len(found) == 1 or not (trainer.backend.traces or backend.name in ("numpy-jit", "cupy")):
            assert NotesRates.seen[-8:] == pytest.approx([0.8 * (1.0 - step / 8) for step in range(8)], abs=0.02)
    if backend.name in ("numpy-jit", "jax-jit"):
        assert len(NotesRates.seen) <= 3
    backend.close(found[1], np.float64(found[0]))
    np.testing.assert_array_equal(backend.host(trainer.predict(arrays[0])).shape, (60, 2))


def everything(of):
    """A network and penalties with every option that may be a schedule, besides the optimizer's and `Dropout`'s."""
    noise = bp.AlphaDropout(of(0.4)), bp.GaussianNoise(of(0.2))
    net = bp.Sequential(*noise, bp.Dense(4, "tanh"), bp.ActivityPenalty(of(0.1), of(0.05)), bp.Dense(3))
    return net, [bp.L1(of(0.01)), bp.L2(of(0.3), "*.bias"), bp.Orthogonality(of(0.1))]


def test_strengths_of_noise_and_penalties_follow_schedules(backend, uncompiled):
    """Each step is one with the numbers that the schedules have for it."""
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    x, y = (np.random.default_rng(n).standard_normal((12, n)) for n in (5, 3))

    def trainer(of, x, compile="auto"):
        net, penalties = everything(of)
        return bp.Trainer(net, "mse", bp.SGD(0.1), penalties=penalties, compile=compile).build(x)

    scheduled = trainer(lambda value: bp.Polynomial(value, 4), backend.array(x))
    for step in range(3):
        fixed = trainer(lambda value, left=1.0 - step / 4.0: bp.Constant(value * left), x, False)
        fixed.restore(((backend.host(scheduled.theta), fixed.buffers, ()), step))
        loss = scheduled.step(backend.array(x), backend.array(y))
        assert float(loss) == pytest.approx(float(fixed.step(x, y)), rel=1e-12)
        backend.close(scheduled.theta, fixed.theta)
    assert not uncompiled()


def test_what_looks_at_a_step_needs_no_length_of_an_epoch():
    """It is one step, where no training says more."""
    x = np.random.default_rng(0).standard_normal((6, 4))
    net, penalties = everything(lambda value: bp.Epochs(bp.Polynomial(value, 4)))
    trainer = bp.Trainer(net, "mse", bp.SGD(bp.Epochs(bp.Cosine(0.1, 3))), penalties=penalties)
    assert "not compiled" not in trainer.explain(x, x[:, :3])
    assert bp.inspect(trainer, x, x[:, :3]).loss > 0.0
    assert bp.check_gradients(net, x)
    assert net.summary(x).layers[0].parameters == 35
    bp.lsuv(trainer, x)
    theta = trainer.theta
    assert bp.value_and_grad(net, "mse", theta, x, x[:, :3], penalties=penalties)[1].shape == theta.shape


@dataclass(frozen=True)
class _Scaled(bp.Layer):
    """y = x times all of its factors, which may be schedules, in a prediction too."""

    factors: tuple[float | bp.Schedule, ...]

    def forward(self, run, p, x):
        factor = 1.0
        for one in self.factors:
            factor = factor * run.value(one)
        return x * factor, factor

    def backward(self, run, p, cache, dy, need_dx=True):
        return dy * cache, {}


def test_several_schedules_in_one_option_and_what_they_are_outside_of_a_training():
    """Each counts epochs where it says so; nobody counts steps of a prediction, which sees those of the first one."""
    x = np.ones((4, 1))
    net = bp.Sequential(_Scaled((bp.Epochs(bp.StepDecay(2.0, 1, 0.5)), 3.0)), bp.Dense(1, bias=False))
    for compile in (False, True) if find_spec("llvmlite") else (False,):
        trainer = bp.Trainer(net, bp.MeanAbsoluteError(), bp.SGD(0.0), compile=compile).build(x)
        trainer.parameters = {"0": {}, "1": {"weight": np.ones((1, 1))}}
        history = trainer.fit(x, 0.0 * x, epochs=2, batch_size=2, progress=False)
        assert history["loss"] == [6.0, 3.0]
        np.testing.assert_array_equal(trainer.predict(x), 6.0 * x)
        assert trainer.evaluate(x, 0.0 * x)["loss"] == 6.0
    run = bp.Run(bp.backends.get("numpy"), True)
    assert bp.Dropout(0.5).forward(run, {}, x)[0].shape == bp.GaussianNoise(0.1).forward(run, {}, x)[0].shape


def test_a_rate_of_dropout_is_below_1():
    with pytest.raises(OptionError, match="rate is 1"):
        bp.Dropout(bp.Constant(1.0))
    trainer = bp.Trainer(bp.Sequential(bp.Dropout(_TooMuch()), bp.Dense(1)), "mse", "sgd")
    trainer.step(np.ones((4, 2)), np.ones((4, 1)))
    with pytest.raises(OptionError, match="the rate of the schedule is 1"):
        trainer.step(np.ones((4, 2)), np.ones((4, 1)))
    with pytest.raises(OptionError, match=r"strength is -1|lr is -1"):
        bp.L2(bp.Constant(-1.0))
    assert bp.check_gradients(bp.Dropout(bp.Cosine(0.5, 10)), np.ones((6, 4)))


# ---- epochs ---------------------------------------------------------------------------------------------------------


def test_fit_knows_how_long_an_epoch_is(tmp_path):
    """Whatever the batch size, and wherever the schedule stands; a file keeps that it is in epochs."""
    x = np.random.default_rng(0).standard_normal((30, 2))
    schedule = bp.Epochs(bp.Polynomial(0.4, 4))
    for batch_size, optimizer in (
        (10, bp.SGD(schedule)),
        (7, bp.Clip(bp.Grouped("sgd", {"*": bp.Adam(schedule)}), 1.0)),
    ):
        trainer = bp.Trainer(bp.Dense(1), "mse", optimizer)
        steps = -(-30 // batch_size)
        seen = Rates()
        history = trainer.fit(x, x[:, :1], epochs=2, batch_size=batch_size, progress=False, callbacks=[seen])
        last = [(steps - 1) / steps, (2 * steps - 1) / steps]
        if isinstance(optimizer, bp.SGD):
            assert history["lr"] == pytest.approx([0.4 * (1.0 - epoch / 4.0) for epoch in last])
        else:
            assert history["lr"] == [0.01, 0.01]
        trainer.save(tmp_path / "m.safetensors")
        loaded = bp.load(tmp_path / "m.safetensors")
        assert loaded.optimizer == optimizer
        loaded.fit(x, x[:, :1], batch_size=batch_size, progress=False)
        trainer.fit(x, x[:, :1], batch_size=batch_size, progress=False)
        np.testing.assert_array_equal(loaded.theta, trainer.theta)


def test_an_epoch_of_a_given_length_keeps_it():
    x = np.ones((30, 2))
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.SGD(bp.Epochs(bp.Polynomial(0.4, 4), length=8)))
    history = trainer.fit(x, x[:, :1], epochs=2, batch_size=10, progress=False)
    assert history["lr"] == pytest.approx([0.4 * (1.0 - step / 32.0) for step in (2, 5)])


class Rates(bp.Callback):
    """Sees that the trainer's own optimizer stays as it was given."""

    def on_step_end(self, trainer, step):
        assert "length=None" in repr(trainer.optimizer)


def test_without_fit_an_epoch_has_no_length():
    x = np.ones((4, 2))
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.SGD(bp.Epochs(bp.Cosine(0.1, 3))))
    with pytest.raises(OptionError, match="counts epochs, and how long they are only fit knows"):
        trainer.step(x, x[:, :1])
    trainer.fit(x, x[:, :1], progress=False)
    trainer.step(x, x[:, :1])


# ---- what sets a rate -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given(bp.Layer):
    """Gives what it is told, whatever comes in: a network that learns nothing."""

    trainable = True

    def init(self, rng, in_shape):
        return {"weight": rng.full((1,), 1.0)}

    def forward(self, run, p, x):
        return x, x

    def backward(self, run, p, cache, dy, need_dx=True):
        return dy if need_dx else None, {"weight": p["weight"] * 0.0}


@pytest.mark.parametrize("lr", [0.2, bp.WarmUp(0.2, 1)])
def test_every_rate_is_multiplied_by_lr_scale(lr):
    x = np.ones((4, 2))
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.SGD(lr)).build(x)
    before, trainer.lr_scale = trainer.theta.copy(), 0.5
    _, grad = bp.value_and_grad(bp.Dense(1), "mse", before, x, x[:, :1])
    trainer.step(x, x[:, :1])
    np.testing.assert_allclose(trainer.theta, before - 0.1 * grad, rtol=1e-12)


def test_reduce_on_plateau(tmp_path):
    """A loss that never falls: a tenth after every second epoch, but no less than a 50th."""
    x = np.ones((4, 1))
    trainer = bp.Trainer(_Given(), "mse", bp.SGD(bp.WarmUp(0.4, 1)))
    callback = bp.ReduceOnPlateau("loss", factor=0.1, patience=2, least=0.02)
    history = trainer.fit(x, 0.0 * x, epochs=7, callbacks=[callback], progress=False)
    assert history["lr"] == pytest.approx([0.4, 0.4, 0.4, 0.04, 0.04, 0.008, 0.008])
    assert trainer.lr_scale == 0.02
    trainer.save(tmp_path / "m.safetensors")
    assert bp.load(tmp_path / "m.safetensors").lr_scale == 0.02
    assert pickle.loads(pickle.dumps(trainer)).lr_scale == 0.02
    trainer.lr_scale = 0.5
    assert trainer.fit(x, 0.0 * x, progress=False)["lr"][-1] == 0.2
    with pytest.raises(OptionError, match="lr_scale is -1"):
        trainer.lr_scale = -1


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"patience": 0}, {"least": -1.0}, {"monitor": 3}])
def test_unfit_options_of_reduce_on_plateau(options):
    with pytest.raises(OptionError):
        bp.ReduceOnPlateau(**options)
    with pytest.raises(OptionError, match="ReduceOnPlateau monitors 'val_loss', which is not recorded"):
        bp.Trainer(bp.Dense(1), "mse").fit(
            np.ones((2, 1)), np.ones((2, 1)), callbacks=[bp.ReduceOnPlateau()], progress=False
        )


@pytest.mark.parametrize("built", [False, True])
def test_a_learning_rate_is_found_and_nothing_changed(backend, built):
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 2)).astype("float32")
    x, y = backend.array(values), backend.array(values @ np.float32([[1.0, 2.0], [-1.0, 1.0]]))
    trainer = bp.Trainer(bp.Dense(2), "mse", bp.Grouped(bp.SGD(0.01, 0.9), {"bias": {"lr": 0.1}}), seed=1)
    if built:
        trainer.fit(x, y, epochs=2, batch_size=16, progress=False)
    before = trainer.snapshot() if built else None
    curve = bp.find_learning_rate(trainer, x, y, low=1e-4, high=100.0, steps=61, batch_size=16)
    assert np.diff(np.log10(curve.rates)) == pytest.approx(0.1)
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) < 61, "the loss grows beyond bounds"
    assert 1e-3 < curve.suggestion < 0.3
    assert curve == bp.find_learning_rate(trainer, x, y, low=1e-4, high=100.0, steps=61, batch_size=16)
    if not built:
        assert "no parameters yet" in repr(trainer)
        return
    assert (trainer.step_count, len(trainer.history), trainer.lr_scale) == (6, 2, 1.0)
    (theta, _, state), _ = before
    for a, b in zip((trainer.theta, *trainer.state), (theta, *state), strict=True):
        np.testing.assert_array_equal(backend.host(a), backend.host(b))


@pytest.mark.parametrize("high", [0.5, 5e3])
def test_a_curve_of_learning_rates_by_hand(high):
    """To its end, and to where the loss is 4 times its least running mean; steps go on as if nothing had been."""
    x, y = np.random.default_rng(0).standard_normal((2, 20, 3))
    net = bp.Dense(3)
    trainer, other = (bp.Trainer(net, "mse", bp.SGD(bp.WarmUp(0.1, 8))).build(x) for _ in range(2))
    curve = bp.find_learning_rate(trainer, x, y, low=0.01, high=high, steps=12)
    theta, mean, rates, losses, means = other.theta, 0.0, [], [], []
    for step in range(12):
        loss, grad = bp.value_and_grad(net, "mse", theta, x, y)
        rates.append(0.01 * (high / 0.01) ** (step / 11.0))
        losses.append(loss)
        mean = 0.9 * mean + 0.1 * loss
        means.append(mean / (1.0 - 0.9 ** (step + 1)))
        theta = theta - rates[-1] * grad
        if loss > 4.0 * min(means):
            break
    assert (len(curve.rates) == 12) is (high == 0.5)
    for found, expected in ((curve.rates, rates), (curve.losses, losses), (curve.smoothed, means)):
        assert found == pytest.approx(expected, rel=1e-10)
    assert curve.suggestion == pytest.approx(0.1 * rates[int(np.argmin(means))])
    for each in (trainer, other):
        each.step(x, y)
    np.testing.assert_array_equal(trainer.theta, other.theta)


def test_what_a_learning_rate_can_not_be_found_with():
    x = np.ones((4, 2))
    find = partial(bp.find_learning_rate, x=x, y=x[:, :1])
    with pytest.raises(OptionError, match="the optimizer's learning rate of step 1 is 0"):
        find(bp.Trainer(bp.Dense(1), "mse", bp.SGD(0.0)))
    assert find(bp.Trainer(bp.Dense(1), "mse", bp.SGD(bp.Epochs(bp.Exponential(0.1, 0.5))))).suggestion > 1e-3
    for options in ({"low": 0.0}, {"low": 1.0, "high": 0.5}, {"steps": 1}, {"batch_size": 0}):
        with pytest.raises(OptionError):
            find(bp.Trainer(bp.Dense(1), "mse"), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: bp.CosineRestarts(0.1, 0),
        lambda: bp.FlatCosine(0.1, 5, flat=1.0),
        lambda: bp.CosLog(0.1, 5, cycles=0),
        lambda: bp.OneCycle(0.1, 5, warm_up=1.0),
        lambda: bp.OneCycle(0.1, 5, start=-1.0),
        lambda: bp.StepDecay(0.1, (5, 3)),
        lambda: bp.StepDecay(0.1, 0),
        lambda: bp.Exponential(0.1, 0.0),
        lambda: bp.Polynomial(0.1, 5, power=0.0),
        lambda: bp.Epochs(bp.Cosine(0.1, 5), length=0),
    ],
)
def test_more_unfit_options_are_refused(make):
    with pytest.raises(OptionError):
        make()
