"""What is put around an optimizer, and what a trainer makes of averages: by hand, and on every library."""

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.errors import ArgumentError, OptionError, UnknownNameError
from bpnet.registry import describe, restore

NET = bp.Sequential(bp.Dense(4, "tanh"), bp.Dense(3, "tanh"), bp.Dense(2))
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((24, 3)), RNG.standard_normal((24, 2))
LAYOUT = bp.layout_of(NET, (3,))


def trained(optimizer, steps=4, x=X, y=Y, **options):
    """A trainer after so many steps, each on all rows."""
    trainer = bp.Trainer(NET, "mse", optimizer, **options).build(x)
    for _ in range(steps):
        trainer.step(x, y)
    return trainer


def gradient(theta, x=X, y=Y):
    return bp.value_and_grad(NET, "mse", theta, x, y)[1]


def start():
    return trained("sgd", 0).theta.copy()


# ---- the gradient ---------------------------------------------------------------------------------------------------


def test_clipping_by_hand():
    theta = start()
    g = 50.0 * gradient(theta)
    bounded = np.clip(g, -0.7, 0.7)
    for slot in LAYOUT.parameters:
        length = np.linalg.norm(bounded[slot.part])
        bounded[slot.part] *= min(1.0, 0.9 / length)
    bounded *= min(1.0, 1.5 / np.linalg.norm(bounded))
    backend, optimizer = bp.backends.get("numpy"), bp.Clip(bp.SGD(1.0), value=0.7, leaf_norm=0.9, norm=1.5)
    with backend.session():
        found, _ = optimizer.update(backend, LAYOUT, theta, g, (), optimizer.hyperparameters_at(0))
    np.testing.assert_allclose(found, theta - bounded, rtol=1e-12)
    assert np.linalg.norm(bounded) == pytest.approx(1.5)


def moved(optimizer, theta, gradient, layout=LAYOUT, step=0):
    """theta after one step of an optimizer that has done none."""
    backend = bp.backends.get("numpy")
    with backend.session():
        state = optimizer.init(backend, layout, theta)
        args = backend, layout, theta, gradient, state, optimizer.hyperparameters_at(step)
        return optimizer.update(*args, lambda at: (np.sum(at), gradient))[0]


def test_clipping_of_entries_alone():
    g = 50.0 * gradient(start())
    found = moved(bp.Clip(bp.SGD(1.0), value=0.7), start(), g)
    np.testing.assert_allclose(found, start() - np.clip(g, -0.7, 0.7), rtol=1e-12)


def test_noise_is_added_to_the_gradient():
    g = gradient(start())
    noisy, noise = (moved(bp.GradientNoise(bp.SGD(1.0)), start(), each) for each in (g, 0.0 * g))
    np.testing.assert_allclose(noisy, noise - g, rtol=1e-12, atol=1e-14)


def test_clip_norm_of_a_trainer_is_that_of_clip():
    one, other = trained("adam", clip_norm=0.1), trained(bp.Clip("adam", norm=0.1))
    np.testing.assert_allclose(one.theta, other.theta, rtol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_aware_steps_by_hand(adaptive):
    theta, rho = start(), 0.3
    for _ in range(3):
        g = gradient(theta)
        uphill = theta * g if adaptive else g
        step = rho * (theta * uphill if adaptive else uphill) / np.linalg.norm(uphill)
        theta = theta - 0.1 * gradient(theta + step)
    found = trained(bp.SAM(bp.SGD(0.1), rho=rho, adaptive=adaptive), 3)
    np.testing.assert_allclose(found.theta, theta, rtol=1e-10, atol=1e-13)


def test_sharpness_aware_steps_on_every_library(backend, uncompiled):
    """Which ask for the gradient again in the midst of a step, with the same masks of dropout."""
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    net = bp.Sequential(bp.Dense(4, "tanh"), bp.Dropout(0.3), bp.Dense(2))
    trainer = bp.Trainer(net, "mse", bp.ExponentialAverage(bp.Grouped("sam", {"1*": None, "2*": "muon"}), 0.9))
    with pytest.raises(OptionError, match=r"groups: no parameter fits '1\*'; they are 0.weight, 2.weight, 0.bias"):
        trainer.build(X)
    optimizer = bp.ExponentialAverage(bp.Grouped("sam", {"0.bias": None, "2*": "schedule_free_adamw"}), 0.9)
    trainer = bp.Trainer(net, "mse", optimizer, seed=2)
    trainer.fit(backend.array(X), backend.array(Y), epochs=2, batch_size=12, shuffle=False, progress=False)
    assert backend.name in ("torch", "strict") or not uncompiled()
    reference = bp.Trainer(net, "mse", optimizer, seed=2, compile=False)
    reference.fit(X, Y, epochs=2, batch_size=12, shuffle=False, progress=False)
    for a, b in zip((trainer.theta, *trainer.state), (reference.theta, *reference.state), strict=True):
        backend.close(a, b, rtol=1e-9)


def test_noise_is_that_of_its_seed_and_fades():
    """Of a gradient of 0, theta is the sum of the noise."""
    backend, layout = bp.backends.get("numpy"), bp.layout_of(bp.Dense(100, bias=False), (300,))
    zero = np.zeros(layout.size)
    noise = []
    for seed, step in ((0, 0), (0, 99), (1, 0), (0, 0)):
        optimizer = bp.GradientNoise(bp.SGD(1.0), eta=0.04, gamma=0.5, seed=seed)
        noise.append(optimizer.update(backend, layout, zero, zero, (), optimizer.hyperparameters_at(step))[0])
    assert np.std(noise[0]) == pytest.approx(0.2, rel=0.02)
    assert np.std(noise[1]) == pytest.approx(0.2 / 100**0.25, rel=0.02)
    assert abs(np.mean(noise[0])) < 0.2 * 4.0 / layout.size**0.5
    assert abs(np.corrcoef(noise[0], noise[2])[0, 1]) < 0.03
    np.testing.assert_array_equal(noise[0], noise[3])


# ---- several batches in a step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_accumulated_batches_are_one_large_one(compiled, monkeypatch):
    if compiled:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    compiles(monkeypatch, compiled)
    optimizer = bp.AdamW(bp.Polynomial(0.05, 3), weight_decay=0.1)
    trainer = bp.Trainer(NET, "mse", bp.Accumulate(optimizer, 3)).build(X)
    for i in range(7):
        part = slice(8 * (i % 3), 8 * (i % 3) + 8)
        before = trainer.theta.copy()
        trainer.step(X[part], Y[part])
        assert (i % 3 == 2) or np.array_equal(trainer.theta, before)
    np.testing.assert_allclose(trainer.theta, trained(optimizer, 2).theta, rtol=1e-10)
    assert trainer.optimizer.learning_rate(5) == optimizer.learning_rate(1) == pytest.approx(0.1 / 3.0)


# ---- parts of the parameters ----------------------------------------------------------------------------------------


def test_groups_have_options_of_their_own():
    groups = {"0.bias": None, "*.bias": {"lr": 1.0}, "1.*": bp.Adam(0.01)}
    found = trained(bp.Grouped(bp.SGD(0.1, weight_decay=0.5), groups), 1).theta
    theta = start()
    g = gradient(theta)
    for slot in LAYOUT.parameters:
        part = slot.part
        if slot.name == "0.bias":
            expected = theta[part]
        elif slot.name == "1.weight":
            expected = theta[part] - 0.01 * g[part] / (np.abs(g[part]) + 1e-8)
        elif slot.name.endswith("bias"):
            expected = theta[part] - g[part]
        else:
            expected = theta[part] - 0.1 * (g[part] + 0.5 * theta[part])
        np.testing.assert_allclose(found[part], expected, rtol=1e-10, atol=1e-14, err_msg=slot.name)


def test_groups_keep_their_states_apart():
    """Along the same gradients each moves as if it were alone, and averages are of each."""
    backend, found = bp.backends.get("numpy"), []
    fast, slow = bp.Adam(0.05, amsgrad=True), bp.Adam(0.01)
    for optimizer in (bp.Grouped(slow, {"0.bias": None, "*.bias": fast}), slow, fast):
        theta, state = start(), optimizer.init(backend, LAYOUT, start())
        assert len(state) == len(optimizer.state_names)
        for step in range(3):
            args = theta, (step - 1.5) * gradient(start()), state, optimizer.hyperparameters_at(step)
            theta, state = optimizer.update(backend, LAYOUT, *args)
        found.append(theta)
    for slot in LAYOUT.parameters:
        alone = start() if slot.name == "0.bias" else found[2 if "bias" in slot.name else 1]
        np.testing.assert_allclose(found[0][slot.part], alone[slot.part], rtol=1e-12, err_msg=slot.name)
    one, other = trained(bp.Grouped(bp.ScheduleFreeAdamW(0.1), {"0.*": {}})), trained(bp.ScheduleFreeAdamW(0.1))
    np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-10)


def test_frozen_leaves_stay_and_a_group_of_all_is_the_optimizer():
    frozen = trained(bp.Grouped("adam", {"*": None}))
    np.testing.assert_array_equal(frozen.theta, start())
    assert frozen.state == ()
    np.testing.assert_array_equal(trained(bp.Grouped("sgd", {"*": "adam"})).theta, trained("adam").theta)


def test_a_group_that_asks_for_the_loss_moves_alone():
    found = trained(bp.Grouped(bp.SGD(1e-9), {"2.*": bp.LBFGS()}), 5)
    assert found.evaluate(X, Y)["loss"] < 0.98 * trained("sgd", 0).evaluate(X, Y)["loss"]
    np.testing.assert_allclose(found.theta[:12], start()[:12], atol=1e-7)


def test_a_group_has_only_the_state_that_its_leaves_need():
    """Of biases Muon has no momentum of its own: they move as by its rest, and arrays are called what they are."""
    groups = [bp.Grouped(bp.SGD(0.1), {"*.bias": bp.Clip(each, norm=1.0)}) for each in (bp.Muon(rest="adam"), "adam")]
    by_muon, by_rest = (trained(optimizer, 2) for optimizer in groups)
    np.testing.assert_array_equal(by_muon.theta, by_rest.theta)
    assert groups[0].state_names_of(LAYOUT) == groups[1].state_names == ("first moment m", "second moment v")
    whole = bp.Grouped(groups[0], {"*.weight": None})
    assert bp.ExponentialAverage(whole).state_names_of(LAYOUT)[1:] == groups[1].state_names
    assert len(trained(bp.ExponentialAverage(whole), 1).state) == 3


def test_muon_takes_the_matrices_between_hidden_layers():
    trainer = trained(bp.Muon(), 1)
    assert [tuple(a.shape) for a in trainer.state] == [(12,), (27,), (27,)]
    weight = trainer.theta[LAYOUT.parameters[1].part] - start()[LAYOUT.parameters[1].part]
    values = np.linalg.svd(weight.reshape(4, 3), compute_uv=False) / 0.02
    assert np.all((values > 0.6) & (values < 1.3))
    with pytest.raises(
        OptionError, match=r"no parameter is called like hidden, \('zzz',\); there are 0.weight, 1.weight"
    ):
        trained(bp.Muon(hidden=("zzz",)), 1)
    with pytest.raises(OptionError, match=r"hidden has 0.bias, which is no matrix, but of the shape \(4,\)"):
        trained(bp.Muon(hidden=("0.*",)), 1)


def test_muon_of_several_matrices_steps_further_where_one_is_wide():
    layout = bp.layout_of(bp.Sequential(*(bp.Dense(n, bias=False) for n in (4, 3, 12, 2))), (5,))
    theta, g = (np.random.default_rng(seed).standard_normal(layout.size) for seed in (0, 1))
    way = moved(bp.Muon(0.02, momentum=0.0), theta, g, layout) - theta
    for slot, length in zip(layout.parameters[1:3], (1.0, 2.0), strict=True):
        values = np.linalg.svd(way[slot.part].reshape(slot.shape), compute_uv=False) / 0.02
        assert np.all((values > 0.6 * length) & (values < 1.3 * length))


def test_muon_leaves_tables_of_embeddings_alone():
    net = bp.Sequential(bp.Embedding(9, 4), bp.Dense(5), bp.Dense(6), bp.Dense(2))
    trainer = bp.Trainer(net, "mse", "muon").build(np.arange(9))
    assert trainer.state[0].shape == (30,)


# ---- averages -------------------------------------------------------------------------------------------------------


def weights_after(optimizer, steps):
    """theta after each step."""
    trainer, found = trained(optimizer, 0), []
    for _ in range(steps):
        trainer.step(X, Y)
        found.append(trainer.theta.copy())
    return found


def test_exponential_average_by_hand():
    thetas, average = weights_after(bp.SGD(0.5), 5), None
    for theta in thetas:
        average = theta if average is None else 0.7 * average + 0.3 * theta
    trainer = trained(bp.ExponentialAverage(bp.SGD(0.5), 0.7), 5)
    np.testing.assert_allclose(trainer.theta, thetas[-1], rtol=1e-12)
    np.testing.assert_allclose(LAYOUT.join(trainer.backend, trainer.parameters), average, rtol=1e-12)


@pytest.mark.parametrize(("steps", "members"), [(1, [0]), (3, [2]), (4, [3]), (5, [3]), (6, [3, 5]), (8, [3, 5, 7])])
def test_stochastic_average_by_hand(steps, members):
    """Of the parameters after steps 4, 6, 8, ...; before, it is what is trained."""
    thetas = weights_after(bp.SGD(0.5), steps)
    trainer = trained(bp.StochasticAverage(bp.SGD(0.5), start=2, every=2), steps)
    expected = np.mean([thetas[i] for i in members], axis=0)
    np.testing.assert_allclose(LAYOUT.join(trainer.backend, trainer.parameters), expected, rtol=1e-12)


def test_what_is_put_around_an_average_leaves_it_so():
    """Its state is found behind that of what is around it, and begins anew where parameters are set."""
    one, other = trained(bp.Accumulate(bp.ScheduleFreeAdamW(0.1), 2), 4), trained(bp.ScheduleFreeAdamW(0.1), 2)
    for steps in (0, 1):
        for trainer, count in ((one, 2 * steps), (other, steps)):
            if steps:
                trainer.parameters = LAYOUT.views(trainer.backend, start())
            for _ in range(count):
                trainer.step(X, Y)
        average = [LAYOUT.join(trainer.backend, trainer.parameters) for trainer in (one, other)]
        np.testing.assert_allclose(*average, rtol=1e-10)
        np.testing.assert_allclose(one.theta, other.theta, rtol=1e-10)


AVERAGING = [
    bp.ExponentialAverage(bp.Adam(0.1), 0.9),
    bp.StochasticAverage(bp.Accumulate(bp.SGD(0.5), 2), start=1),
    bp.ScheduleFreeAdamW(0.1),
    bp.Grouped(bp.SGD(0.1), {"0.*": bp.ScheduleFreeAdamW(0.1), "1.*": None}),
]


@pytest.mark.parametrize("optimizer", AVERAGING)
def test_a_trainer_predicts_with_the_average_and_keeps_both(optimizer, tmp_path):
    trainer = trained(optimizer)
    average = LAYOUT.join(trainer.backend, trainer.parameters)
    assert not np.allclose(average, trainer.theta)
    plain = bp.Trainer(NET, "mse").build(X)
    plain.parameters = trainer.parameters
    np.testing.assert_array_equal(trainer.predict(X), plain.predict(X))
    assert trainer.evaluate(X, Y) == plain.evaluate(X, Y)
    trainer.save(tmp_path / "m.safetensors")
    loaded = bp.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict(X), trainer.predict(X))
    for each in (loaded, trainer):
        each.step(X, Y)
    np.testing.assert_array_equal(loaded.theta, trainer.theta)
    history = trainer.fit(X, Y, validation=(X, Y), progress=False)
    assert history["val_loss"] == [trainer.evaluate(X, Y)["loss"]]


@pytest.mark.parametrize("optimizer", AVERAGING)
def test_parameters_that_are_set_are_those_that_predict(optimizer):
    trainer, other = trained(optimizer), trained("sgd")
    trainer.parameters = other.parameters
    np.testing.assert_array_equal(trainer.theta, other.theta)
    np.testing.assert_allclose(trainer.predict(X), other.predict(X), rtol=1e-12)


# ---- names, options, files ------------------------------------------------------------------------------------------

EVERY = [
    bp.SGD(0.1, momentum=bp.WarmUp(0.9, 5)), bp.Lion(), bp.NAdam(), bp.RAdam(), bp.Adamax(), bp.AdaBelief(),
    bp.Adam(amsgrad=True), bp.AdamW(weight_decay=bp.Epochs(bp.CosLog(0.1, 3), 4)), bp.RMSprop(centered=True),
    bp.Adagrad(), bp.Adadelta(), bp.LARS(), bp.LAMB(), bp.Adafactor(), bp.Muon(hidden=["1.weight"]),
    bp.ScheduleFreeAdamW(weight_decay=0.1), bp.Prodigy(), bp.LBFGS(), bp.SAM(), bp.Clip("adam", norm=1.0),
    bp.GradientNoise("sgd"), bp.Accumulate(bp.SGD(bp.StepDecay(0.1, (3, 5))), 2), *AVERAGING,
]  # fmt: skip


@pytest.mark.parametrize("optimizer", EVERY, ids=lambda optimizer: type(optimizer).__name__)
def test_what_is_0_is_no_hindrance(optimizer):
    """Neither parameters, nor entries of the gradient, nor all of it: the step is finite, or none."""
    zeros, some = np.zeros(LAYOUT.size), np.where(np.arange(LAYOUT.size) % 3, gradient(start()), 0.0)
    some[LAYOUT.parameters[1].part] = 0.0
    for step in (0, 9):
        if not isinstance(optimizer, bp.GradientNoise):
            np.testing.assert_array_equal(moved(optimizer, zeros, zeros, step=step), zeros)
        assert np.all(np.isfinite(moved(optimizer, zeros, some, step=step)))


def test_layers_of_weights_that_are_0_step_as_the_optimizer_does():
    zeros, g = np.zeros(LAYOUT.size), gradient(start())
    np.testing.assert_allclose(moved(bp.LAMB(0.1), zeros, g), -0.1 * g / (np.abs(g) + 1e-6), rtol=1e-10)
    np.testing.assert_allclose(moved(bp.LARS(0.1), zeros, g), -0.1 * g, rtol=1e-12)
    for optimizer in (bp.LAMB(0.1), bp.LARS(0.1)):
        np.testing.assert_array_equal(moved(optimizer, start(), zeros), start())


@pytest.mark.parametrize("optimizer", EVERY, ids=lambda optimizer: type(optimizer).__name__)
def test_is_kept_in_files(optimizer):
    assert restore(describe(optimizer)) == optimizer
    hash(optimizer)
    assert eval(repr(optimizer), vars(bp)) == optimizer


def test_names():
    made = {name: bp.Trainer(NET, "mse", name).optimizer for name in ("amsgrad", "rmsprop", "muon", "sam", "lbfgs")}
    assert made == {
        "amsgrad": bp.Adam(amsgrad=True), "rmsprop": bp.RMSprop(), "muon": bp.Muon(), "sam": bp.SAM("sgd"),
        "lbfgs": bp.LBFGS(),
    }  # fmt: skip
    with pytest.raises(UnknownNameError, match="did you mean 'adam'"):
        bp.Clip("adamm", norm=1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: bp.RMSprop(rho=1.0),
        lambda: bp.RMSprop(centered=1),
        lambda: bp.Adagrad(initial_sum=-1.0),
        lambda: bp.Adadelta(epsilon=0.0),
        lambda: bp.Lion(beta1=1.5),
        lambda: bp.NAdam(momentum_decay=-1.0),
        lambda: bp.LARS(trust=0.0),
        lambda: bp.LAMB(weight_decay=-1.0),
        lambda: bp.Adafactor(decay=1.0),
        lambda: bp.Muon(iterations=0),
        lambda: bp.ScheduleFreeAdamW(beta1=0.0),
        lambda: bp.Prodigy(initial=0.0),
        lambda: bp.LBFGS(c1=0.5, c2=0.4),
        lambda: bp.SAM(rho=-1.0),
        lambda: bp.Clip("sgd"),
        lambda: bp.Clip("sgd", value=0.0),
        lambda: bp.Accumulate("sgd", 0),
        lambda: bp.ExponentialAverage("sgd", 1.0),
        lambda: bp.StochasticAverage("sgd", -1),
        lambda: bp.GradientNoise("sgd", eta=0.0),
        lambda: bp.Grouped("sgd", {"*": {"beta1": 0.9}}),
        lambda: bp.Grouped("sgd", {"*": {"lr": -1.0}}),
    ],
)
def test_unfit_options_are_refused(make):
    with pytest.raises(OptionError):
        make()


@pytest.mark.parametrize("groups", ["0.*", [("0.*",)], {1: None}, 3, {"*": 5}, {"*": bp.SGD}])
def test_unfit_groups_are_refused(groups):
    with pytest.raises(ArgumentError, match="groups"):
        bp.Grouped("sgd", groups)


@pytest.mark.parametrize("optimizer", [bp.SAM(), bp.LBFGS()])
def test_who_needs_the_loss_again_says_so(optimizer):
    backend = bp.backends.get("numpy")
    theta = start()
    state = optimizer.init(backend, LAYOUT, theta)
    with pytest.raises(ArgumentError, match="pass `evaluate`, as a trainer and"):
        optimizer.update(backend, LAYOUT, theta, theta, state, optimizer.hyperparameters_at(0))


@dataclass(frozen=True)
class _NoMethod(bp.Optimizer):
    lr: float = 0.1


@dataclass(frozen=True)
class _Unnamed(bp.SGD):
    def init(self, backend, layout, theta):
        return (backend.xp.zeros_like(theta),)


def test_a_users_optimizer_within_others_is_looked_at_too():
    with pytest.raises(ArgumentError, match="the optimizer _NoMethod has no update"):
        bp.Clip(_NoMethod(), norm=1.0)
    with pytest.raises(OptionError, match=r"has 1 arrays of state, but state_names \(\)"):
        trained(bp.Grouped("sgd", {"*": _Unnamed()}), 1)
