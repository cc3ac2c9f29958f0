"""Every optimizer: as in the papers, the same on every library, compiled and not; and clipping."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.backpropagation import loss_and_gradient
from bpnet.errors import ArgumentError, DivergedError, OptionError, UnknownNameError
from bpnet.optimizers.clipping import clip_by_global_norm

TEXTBOOK = {
    "sgd": bp.SGD(0.1),
    "sgd, momentum": bp.SGD(0.1, momentum=0.9),
    "sgd, nesterov": bp.SGD(0.1, 0.8, nesterov=True),
    "adam": bp.Adam(),
    "adam, betas": bp.Adam(0.01, 0.8, 0.95),
    "adam, no memory": bp.Adam(0.01, 0.0, 0.0),
    "adam, epsilon": bp.Adam(0.01, epsilon=0.1),
    "adamw": bp.AdamW(),
    "adamw, decay": bp.AdamW(0.02, 0.8, 0.9, 1e-3, 0.3),
    "adamw, no decay": bp.AdamW(0.02, weight_decay=0.0),
}
RAMP = bp.WarmUp(0.9, 4)
ELEMENTWISE = [
    bp.SGD(0.1, momentum=RAMP, nesterov=True, weight_decay=bp.Exponential(0.3, 0.5)),
    bp.SGD(0.1),
    bp.Adam(0.01, amsgrad=True),
    bp.AdamW(bp.Cosine(0.02, 20), beta1=RAMP, weight_decay=bp.WarmUp(0.3, 3)),
    bp.NAdam(0.01, weight_decay=0.3),
    bp.RAdam(0.01, beta2=0.9, weight_decay=0.3),
    bp.Adamax(0.01, weight_decay=0.3),
    bp.AdaBelief(0.01, weight_decay=0.3),
    bp.RMSprop(0.01, momentum=0.9, centered=True, weight_decay=0.3),
    bp.Adagrad(0.1, lr_decay=0.1, initial_sum=0.5, weight_decay=0.3),
    bp.Adadelta(0.5, weight_decay=0.3),
    bp.Lion(0.01, weight_decay=0.3),
]
"""What is elementwise: its state may be donated."""
OTHERS = [
    bp.LAMB(0.01, weight_decay=0.3),
    bp.LARS(0.1, momentum=RAMP, weight_decay=0.3, nesterov=True),
    bp.Adafactor(0.1, weight_decay=0.3),
    bp.Muon(weight_decay=0.3),
    bp.ScheduleFreeAdamW(bp.WarmUp(0.01, 3), weight_decay=0.3),
    bp.Prodigy(beta1=RAMP, initial=1e-2, weight_decay=0.3),
    bp.SAM(bp.SGD(0.1, 0.9), rho=0.1),
    bp.SAM(bp.Adam(0.01), rho=0.1, adaptive=True),
    bp.Clip(bp.Adam(0.01), value=1.0, leaf_norm=0.7, norm=0.5),
    bp.GradientNoise(bp.SGD(0.1), seed=3),
    bp.Accumulate(bp.AdamW(0.01), 2),
    bp.ExponentialAverage(bp.Adam(0.01), 0.9),
    bp.StochasticAverage(bp.SGD(0.1), start=1, every=2),
    bp.Grouped(
        bp.AdamW(0.01),
        groups={"0.*": None, "*.bias": {"lr": 0.1, "weight_decay": 0.0}, "2.weight": bp.Clip(bp.SGD(0.1), norm=0.5)},
    ),
]
SMALL = bp.layout_of(bp.Dense(7), (11,))  # weights, which decay, and biases, which don't
LARGE = bp.layout_of(
    bp.Sequential(bp.Dense(300), bp.Dense(10)), (301,)
)  # beyond a chunk of 65,536, which ends in weights
DEEP = bp.layout_of(bp.Sequential(bp.Dense(4, bias=False), bp.Dense(5, bias=False), bp.Dense(2)), (3,))


def drawn(layout, steps, dtype="float64"):
    """A start and so many gradients, of sizes from 1e-4 to 1e4, some exactly 0."""
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.uniform(-4, 4, layout.size) * (rng.uniform(size=layout.size) > 0.05)
    gradients = [(size * rng.standard_normal(layout.size)).astype(dtype) for _ in range(steps)]
    return rng.standard_normal(layout.size).astype(dtype), gradients


def run(lib, layout, optimizer, theta, gradients, donate=False):
    """theta and state after a step along each of the gradients."""
    ((theta, state),) = run_all(lib, layout, [optimizer], theta, gradients, donate)
    return theta, state


def run_all(lib, layout, optimizers, theta, gradients, donate=False):
    """The same of several, which are compiled as one function."""

    def update(seam, carries, grad, numbers):
        moved = []
        for optimizer, (theta, state), own in zip(optimizers, carries, numbers, strict=True):
            args = seam, layout, theta, grad, state, own

            def bowl(at, grad=grad):  # a loss whose gradient at theta is not `grad`, for whoever asks again
                return seam.xp.sum(at * at), 2.0 * at + grad

            moved.append(optimizer.update(*args, donate=True) if donate else optimizer.update(*args, bowl))
        return tuple(moved)

    with lib.seam.session(work=1.0):  # with some of which NumPy's functions may be compiled
        step = lib.seam.compile(update)
        carries = tuple((theta, optimizer.init(lib.seam, layout, theta)) for optimizer in optimizers)
        for i, grad in enumerate(gradients):
            carries = step(carries, lib.array(grad), tuple(optimizer.hyperparameters_at(i) for optimizer in optimizers))
    return carries


def textbook(optimizer, layout, theta, gradients):
    """The papers' updates, number by number: theta after each gradient.

    SGD: theta -= lr g.  With momentum mu (Polyak 1964; Sutskever et al. 2013): v = mu v + g, theta -= lr v, or with
    Nesterov's look ahead lr (g + mu v).  Adam (Kingma and Ba 2015, algorithm 1): moments m and v, each divided by
    1 - beta**t.  AdamW (Loshchilov and Hutter 2019, algorithm 2): theta, weights alone, decays by lr decay besides.
    """
    lr = optimizer.lr
    theta, moments = theta.tolist(), [(0.0, 0.0)] * len(theta)
    for t, gradient in enumerate(gradients, 1):
        for i, g in enumerate(gradient.tolist()):
            first, second = moments[i]
            if isinstance(optimizer, bp.SGD):
                first = optimizer.momentum * first + g
                step = g + optimizer.momentum * first if optimizer.nesterov else first
            else:
                first = optimizer.beta1 * first + (1.0 - optimizer.beta1) * g
                second = optimizer.beta2 * second + (1.0 - optimizer.beta2) * g * g
                root = (second / (1.0 - optimizer.beta2**t)) ** 0.5
                step = first / (1.0 - optimizer.beta1**t) / (root + optimizer.epsilon)
            decay = optimizer.weight_decay if isinstance(optimizer, bp.AdamW) and i < layout.decaying else 0.0
            theta[i] -= lr * step + lr * decay * theta[i]
            moments[i] = first, second
    return np.array(theta)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_steps_as_in_the_papers(name, library):
    optimizer, (theta, gradients) = TEXTBOOK[name], drawn(SMALL, 100)
    got, _ = run(library("numpy"), SMALL, optimizer, theta, gradients)
    expected = textbook(optimizer, SMALL, theta, gradients)
    largest = max(np.max(np.abs(a)) for a in (theta, expected))  # sums of steps that cancel are as exact as these
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13 * largest)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_same_on_every_library(backend, dtype, library):
    """All of them in one function, which is compiled where the library compiles."""
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    if (backend.name, dtype) in (("numpy-jit", "float32"), ("jax-jit", "float64"), ("cupy", "float32")):
        pytest.skip("one type is enough where compiling takes long")
    optimizers = [*ELEMENTWISE, *OTHERS]
    theta, gradients = drawn(DEEP, 5, dtype)
    gradients = [np.clip(grad, -100.0, 100.0) for grad in gradients]
    start = backend.array(theta)
    found = run_all(backend, DEEP, optimizers, start, gradients)
    double = np.float64(theta), [np.float64(g) for g in gradients]
    for optimizer, (got, state) in zip(optimizers, found, strict=True):
        expected, states = run(library("numpy"), DEEP, optimizer, *double)
        for a, b in zip((got, *state), (expected, *states), strict=True):
            assert backend.dtype(a) == dtype
            assert tuple(a.shape) == b.shape
            assert backend.seam.device(a) == backend.seam.device(start)
            try:
                backend.close(a, b)
            except AssertionError as error:
                raise AssertionError(f"{optimizer}: {error}") from None
    np.testing.assert_array_equal(backend.host(start), theta)


def test_stays_on_the_device_of_the_parameters(library):
    lib = library("strict-device")
    theta, gradients = drawn(DEEP, 2)
    for optimizer in (*ELEMENTWISE, *OTHERS):
        got, state = run(lib, DEEP, optimizer, lib.array(theta), gradients)
        assert {lib.seam.device(a) for a in (got, *state)} == {lib.seam.device(lib.array(theta))}, optimizer


@pytest.mark.parametrize("layout", [SMALL, LARGE], ids=["small", "large"])
def test_only_what_is_donated_is_written_to(layout, library):
    lib = library("numpy")
    theta, (first, second) = drawn(layout, 2)
    for optimizer in (*TEXTBOOK.values(), *ELEMENTWISE):
        start = theta.copy()
        state = run(lib, layout, optimizer, start, [first])[1]
        given = (start, second, *state)
        before = [a.copy() for a in given]
        args = lib.seam, layout, start, second, state, optimizer.hyperparameters_at(1)
        with lib.seam.session():
            kept = optimizer.update(*args)
            for a, b in zip(given, before, strict=True):
                np.testing.assert_array_equal(a, b)
            donated = optimizer.update(*args, donate=True)
        for a, b in zip((kept[0], *kept[1]), (donated[0], *donated[1]), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(second, before[1])


def test_any_number_of_threads_gives_the_same_bits(library):
    lib = library("numpy")
    theta, gradients = drawn(LARGE, 2)
    for optimizer in (*TEXTBOOK.values(), *ELEMENTWISE):
        results = []
        for threads in (1, 2, 5):
            with lib.seam.session(threads):
                state = optimizer.init(lib.seam, LARGE, theta)
                moved, state = optimizer.update(
                    lib.seam, LARGE, theta, gradients[0], state, optimizer.hyperparameters_at(0)
                )
                results.append(np.concatenate([moved, *state]))
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(("name", "optimizer"), [("sgd", bp.SGD()), ("adam", bp.Adam()), ("adamw", bp.AdamW())])
def test_names(name, optimizer):
    assert bp.Trainer(bp.Dense(1), "mse", name).optimizer == optimizer


def test_every_optimizer_of_the_catalogue_is_in_the_tables():
    public = [getattr(bp, name) for name in bp.__all__]
    bases = {bp.Optimizer, bp.ElementwiseOptimizer, bp.LBFGS}  # the last of which decides by values
    found = {c for c in public if isinstance(c, type) and issubclass(c, bp.Optimizer)} - bases
    assert {type(optimizer) for optimizer in (*ELEMENTWISE, *OTHERS)} == found


@pytest.mark.parametrize(
    "make",
    [
        lambda: bp.SGD(-0.1),
        lambda: bp.SGD(float("nan")),
        lambda: bp.SGD("fast"),
        lambda: bp.SGD(0.1, momentum=1.0),
        lambda: bp.SGD(0.1, momentum=-0.1),
        lambda: bp.SGD(0.1, nesterov=True),
        lambda: bp.Adam(beta1=1.0),
        lambda: bp.Adam(beta2=-0.5),
        lambda: bp.Adam(epsilon=0.0),
        lambda: bp.AdamW(weight_decay=-1.0),
    ],
)
def test_unfit_options_are_refused(make):
    with pytest.raises(OptionError):
        make()


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(UnknownNameError, match="did you mean 'adamw'"):
        bp.Trainer(bp.Dense(1), "mse", "adammw")


def test_adam_as_in_the_paper(backend):
    """Its moments, and steps by their bias-corrected values (Kingma and Ba 2015, algorithm 1)."""
    theta, gradients = drawn(SMALL, 20)
    optimizer = bp.Adam(0.01, 0.8, 0.95, 1e-3)
    got = run(backend, SMALL, optimizer, backend.array(theta), gradients)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        theta = theta - 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
    for a, b in zip((got[0], *got[1]), (theta, m, v), strict=True):
        backend.close(a, b)


def test_adam_learns_from_columns_of_large_numbers(backend):
    """Gradients of up to 1.6e19, whose squares float32 hardly holds: v must not become infinite."""
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    x = backend.array(np.full((4, 1), 2e9, "float32"))
    trainer = bp.Trainer(bp.Dense(1, bias=False), "mse", bp.Adam(0.05)).build(x)
    trainer.parameters = {"weight": backend.array(np.zeros((1, 1), "float32"))}
    trainer.fit(x, x, epochs=150, batch_size=4, progress=False)
    assert abs(float(trainer.theta[0]) - 1.0) < 0.05
    assert np.isfinite(backend.host(trainer.state[1])).all()


# ---- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_clipping_bounds_the_norm_and_keeps_the_direction(backend, dtype, limit):
    grad = np.random.default_rng(0).standard_normal(50).astype(dtype)
    given = backend.array(grad)
    with backend.seam.session():
        clipped = backend.call(lambda g: clip_by_global_norm(backend.seam, g, limit), given)
    norm = np.linalg.norm(np.float64(grad))
    backend.close(clipped, np.float64(grad) * min(1.0, limit / norm))
    assert backend.dtype(clipped) == dtype
    np.testing.assert_array_equal(backend.host(given), grad)


def test_clipping_leaves_a_gradient_of_zero(backend):
    clipped = clip_by_global_norm(backend.seam, backend.array(np.zeros(3)), 1.0)
    np.testing.assert_array_equal(backend.host(clipped), np.zeros(3))


def test_clipping_as_pytorch(library):
    torch = pytest.importorskip("torch")
    grad = np.random.default_rng(0).standard_normal(50)
    p = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor(grad)
    torch.nn.utils.clip_grad_norm_([p], 0.5)
    got = clip_by_global_norm(library("numpy").seam, grad, 0.5)
    np.testing.assert_allclose(got, p.grad.numpy(), rtol=1e-6)  # PyTorch divides by the norm + 1e-6


def test_trainer_clips():
    x, y = np.full((4, 2), 10.0), np.full((4, 1), 100.0)
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.SGD(1.0), clip_norm=0.25).build(x)
    before = trainer.theta.copy()
    trainer.step(x, y)
    np.testing.assert_allclose(np.linalg.norm(trainer.theta - before), 0.25, rtol=1e-12)


def test_clipping_keeps_the_direction_of_gradients_whose_squares_overflow(backend):
    grad = backend.array(np.asarray([3e30, 4e30], "float32"))
    with backend.seam.session():
        clipped = clip_by_global_norm(backend.seam, grad, 5.0)
        nothing = clip_by_global_norm(backend.seam, grad * 0.0, 5.0)
    np.testing.assert_allclose(backend.host(clipped), [3.0, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(backend.host(nothing), [0.0, 0.0])


TINY = {
    "float64": [(1e-200, 1e-201), (1e-300, 1e-302), (1e-160, 1.0), (1e200, 1e-3)],
    "float32": [(1e-30, 1e-31), (1e-32, 1e-33), (1e-25, 1.0), (1e30, 1e-3)],
}


@pytest.mark.parametrize("dtype", TINY)
def test_gradients_whose_squares_are_0_or_infinite_are_clipped_as_others(backend, dtype):
    direction = np.random.default_rng(0).standard_normal(300)
    direction /= np.linalg.norm(direction)
    for size, limit in TINY[dtype]:
        grad = (size * direction).astype(dtype)

        def clip(g, limit=limit):
            return clip_by_global_norm(backend.seam, g, limit)

        with backend.seam.session():
            clipped = backend.host(backend.call(clip, backend.array(grad)))
        exact = np.float64(grad) * min(1.0, limit / size)
        rtol = 2e-5 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(clipped, exact, rtol=rtol, atol=0.0, err_msg=str(size))


@pytest.mark.parametrize(
    ("grad", "limit"),
    [
        ([3e25, 4e25], 1.0),
        ([3e38, 3e38, -3e38, 3e38], 1.0),
        ([3e38, 3e38, -3e38, 3e38], 1e-30),
        ([3e-28, 4e-28], 1e-30),
        ([3e-30, 4e-30], 1e-29),
        ([1e-40, 2.0], 1e38),
    ],
)
def test_clipping_of_what_float32_hardly_holds(backend, grad, limit):
    exact = np.asarray(grad, "float32").astype("float64")
    expected = exact * min(1.0, limit / np.linalg.norm(exact))
    given = backend.array(np.asarray(grad, "float32"))
    with backend.seam.session():
        clipped = backend.call(lambda g: clip_by_global_norm(backend.seam, g, limit), given)
    found = backend.host(clipped).astype("float64")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-38)  # XLA has no numbers below 1.2e-38


@pytest.mark.parametrize("limit", [3.5e38, 1e300])
def test_a_limit_beyond_the_largest_number_is_none(backend, limit):
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    x = backend.array(np.ones((2, 1), "float32"))
    losses = []
    for clip_norm in (None, limit):
        trainer = bp.Trainer(bp.Dense(1), "mse", bp.SGD(0.1), clip_norm=clip_norm)
        losses.append(trainer.fit(x, x * 0.0, epochs=3, progress=False)["loss"])
    assert losses[0] == losses[1]


@dataclass(frozen=True)
class NumpyRate(bp.Schedule):
    """What a user writes with NumPy gives a NumPy number."""

    kind_of_number: str

    def __call__(self, step):
        return np.dtype(self.kind_of_number).type(0.1)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_schedule_of_numpy_numbers_changes_no_type(backend, kind, tmp_path):
    x = backend.array(np.random.default_rng(0).standard_normal((8, 3)).astype("float32"))
    trainer = bp.Trainer(bp.Dense(1), "mse", bp.Adam(NumpyRate(kind)))
    trainer.fit(x, x[:, :1], epochs=2, progress=False)
    assert trainer.theta.dtype == x.dtype
    trainer.save(tmp_path / "m.safetensors")


@dataclass(frozen=True)
class _Remembers(bp.SGD):
    """Keeps the parameters of one step before."""

    def init(self, backend, layout, theta):
        return (backend.xp.zeros_like(theta),)

    def elementwise(self, b, theta, before, grad, lr):
        return theta - lr * grad, theta


@pytest.mark.parametrize("size", [3, 70_000])
def test_a_rule_may_give_back_what_it_was_given(backend, size):
    theta, grad = np.arange(float(size)), np.ones(size)
    with backend.seam.session():
        moved, before = backend.seam.map_vector(
            _Remembers().elementwise,
            2,
            [backend.array(a.copy()) for a in (theta, theta * 0, grad)],
            [(0, size, (1.0,))],
            False,
        )
        own = [backend.seam.copy(backend.array(a)) for a in (theta, theta * 0, grad)]
        donated = backend.seam.map_vector(_Remembers().elementwise, 2, own, [(0, size, (1.0,))], True)
    for got in ((moved, before), donated):
        np.testing.assert_array_equal(backend.host(got[0]), theta - 1.0)
        np.testing.assert_array_equal(backend.host(got[1]), theta)


# ---- updates that ask again, and state of any shape -----------------------------------------------------------------


@dataclass(frozen=True)
class _LineSearch(bp.Optimizer):
    """Steepest descent that halves its step until the loss falls by half of what the gradient promises (Armijo 1966).

    Its state are the number of evaluations, and the last three gradients.
    """

    lr: float = 8.0

    state_names = ("evaluations", "gradients")
    traceable = False

    def init(self, backend, layout, theta):
        like = {"dtype": theta.dtype, "device": backend.device(theta)}
        return backend.xp.zeros((), **like), backend.xp.zeros((3, theta.shape[0]), **like)

    def update(self, backend, layout, theta, grad, state, hyperparameters, evaluate):
        xp, (rate,) = backend.xp, hyperparameters
        value, again = evaluate(theta)
        evaluations, promised = state[0] + 1.0, xp.sum(grad * again)
        while True:
            moved = theta - rate * grad
            evaluations = evaluations + 1.0
            if bool(evaluate(moved)[0] <= value - 0.5 * rate * promised):
                return moved, (evaluations, xp.concat([state[1][1:, :], grad[None, :]]))
            rate = 0.5 * rate


def test_an_optimizer_may_ask_for_the_loss_again_and_keep_state_of_any_shape(backend, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    network = bp.Sequential(bp.Dense(4, "tanh"), bp.Dropout(0.3), bp.Dense(2))
    trainer = bp.Trainer(network, "mse", _LineSearch(), seed=3)
    trainer.build(backend.array(x))
    before = trainer.snapshot()
    theta, evaluations, gradients = backend.host(trainer.theta), 0, [np.zeros(trainer.layout.size)] * 3
    for step in range(1, 4):
        trainer.step(backend.array(x), backend.array(y))

        def at(theta, step=step):
            arrays = backend.array(theta), trainer.buffers, backend.array(x), backend.array(y), None, None
            options = {"layout": trainer.layout, "loss": trainer.loss, "seed": 3}
            with backend.seam.session():
                made = loss_and_gradient(backend.seam, *arrays, step, **options)
            return float(made[0]), backend.host(made[1])

        value, grad = at(theta)
        rate, evaluations = 8.0, evaluations + 2
        while at(theta - rate * grad)[0] > value - 0.5 * rate * np.sum(grad * grad):
            rate, evaluations = 0.5 * rate, evaluations + 1
        theta, gradients = theta - rate * grad, [*gradients[1:], grad]
        backend.close(trainer.theta, theta, rtol=1e-9)
        assert float(trainer.state[0]) == evaluations
        backend.close(trainer.state[1], np.stack(gradients), rtol=1e-9)
    assert evaluations > 6, "some step was halved"
    trainer.save(tmp_path / "m.safetensors")
    loaded = bp.load(tmp_path / "m.safetensors", like=backend.array(x))
    for a in (loaded, trainer):
        a.step(backend.array(x), backend.array(y))
        a.fit(backend.array(x), backend.array(y), epochs=2, batch_size=8, progress=False)
    for a, b in zip((loaded.theta, *loaded.state), (trainer.theta, *trainer.state), strict=True):
        assert tuple(a.shape) == tuple(b.shape)
        np.testing.assert_array_equal(backend.host(a), backend.host(b))
    trainer.restore(before)
    assert float(trainer.state[0]) == 0.0


def test_an_update_that_decides_by_values_leaves_the_gradient_compiled(backend, uncompiled):
    """Its own operations run as they stand, and each call of the network is one of compiled code where there is any."""
    calls = []

    @dataclass(frozen=True)
    class CountsCalls(bp.Dense):
        def forward(self, run, p, x):
            calls.append(x)
            return super().forward(run, p, x)

    x, y = backend.array(np.ones((20, 3))), backend.array(np.ones((20, 2)))
    network = bp.Sequential(CountsCalls(4, "tanh"), bp.BatchNorm(), bp.Dense(2))
    trainer = bp.Trainer(network, "mse", _LineSearch())
    text = trainer.explain(x, y)
    for _ in range(3):
        trainer.step(x, y)
    if backend.name in ("numpy-jit", "jax-jit"):
        assert text.endswith("not compiled: update of _LineSearch(lr=8.0), which says so by its `traceable`")
        calls.clear()
        trainer.step(x, y)
        assert not calls
        assert not uncompiled()


@dataclass(frozen=True)
class _Overflows(bp.Optimizer):
    lr: float = 1.0
    state_names = ("scale",)

    def init(self, backend, layout, theta):
        return (backend.xp.ones((), dtype=theta.dtype, device=backend.device(theta)),)

    def update(self, backend, layout, theta, grad, state, hyperparameters, evaluate):
        return theta, (state[0] * 1e200,)


def test_state_of_another_shape_that_is_no_longer_finite_is_named(backend):
    x, y = backend.array(np.ones((4, 3))), backend.array(np.ones((4, 2)))
    trainer = bp.Trainer(bp.Dense(2), "mse", _Overflows())
    with pytest.raises(DivergedError, match=r"at step 2: _Overflows's scale of Dense\(.*\) is no longer finite"):
        trainer.fit(x, y, epochs=3, batch_size=4, progress=False)


@dataclass(frozen=True)
class _Slower(bp.SGD):
    """Steps of lr / t, t being its state."""

    state_names = ("steps t",)

    def init(self, backend, layout, theta):
        return (backend.xp.zeros((), dtype=theta.dtype, device=backend.device(theta)),)

    def update(self, backend, layout, theta, grad, state, hyperparameters, evaluate=None):
        t = state[0] + 1.0
        return theta - self.lr / t * grad, (t,)


def test_state_without_axes_is_compiled_after_steps_that_were_not(library, monkeypatch, uncompiled):
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    x, thetas = np.ones((4, 3)), []
    for first in (False, True):
        trainer = bp.Trainer(bp.Dense(2), "mse", _Slower())
        for compiled in (first, True, True):
            compiles(monkeypatch, compiled)
            trainer.step(x, x[:, :2])
            assert isinstance(trainer.state[0], np.ndarray)
        thetas.append(trainer.theta)
    np.testing.assert_allclose(*thetas, rtol=1e-14)
    assert not uncompiled()


def test_a_users_optimizer_or_loss_without_its_methods_is_refused():
    @dataclass(frozen=True)
    class _Nothing(bp.ElementwiseOptimizer):
        lr: float = 0.1

    @dataclass(frozen=True)
    class _HalfALoss(bp.ElementwiseLoss):
        def value(self, b, output, target):
            return output - target

    with pytest.raises(ArgumentError, match="the optimizer _Nothing has no elementwise: define it, as Elementwise"):
        bp.Trainer(bp.Dense(2), "mse", _Nothing())
    with pytest.raises(
        ArgumentError, match="the loss _HalfALoss has no derivative: define it, as ElementwiseLoss says"
    ):
        bp.Trainer(bp.Dense(2), _HalfALoss())


# ---- updates that look around ---------------------------------------------------------------------------------------


def _with_the_next(xp, v, g):
    return xp.concat([0.5 * v[:-1] + 0.25 * v[1:] - g[:-1], v[-1:] + v[:1] - g[-1:]])


def _with_the_last(xp, v, g):
    return xp.concat([v[:1] + v[-1:] - g[:1], 0.5 * v[1:] + 0.25 * v[:-1] - g[1:]])


def _halves_changed_over(xp, v, g):
    half = v.shape[0] // 2
    return xp.concat([v[half:] * 2.0 - g[:half], v[:half] * 3.0 - g[half:]])


def _second_half_reads_the_first(xp, v, g):
    """Which itself is changed."""
    half = v.shape[0] // 2
    return xp.concat([v[:half] * 2.0, v[half:] - v[:half] - g[half:]])


def _first_half_reads_the_second(xp, v, g):
    half = v.shape[0] // 2
    return xp.concat([v[:half] - v[half:] - g[:half], v[half:] * 2.0])


def _half_reads_one_further(xp, v, g):
    half = v.shape[0] // 2
    return xp.concat([v[1 : half + 1] * 2.0 - g[:half], v[half:] * 3.0])


def _half_reads_one_back(xp, v, g):
    half = v.shape[0] // 2
    return xp.concat([v[:half] * 3.0, v[half - 1 : -1] * 2.0 - g[half:]])


def _end_reads_the_beginning(xp, v, g):
    quarter = v.shape[0] // 4
    return xp.concat([v[: 3 * quarter] * 2.0 - g[: 3 * quarter], v[3 * quarter :] - v[:quarter]])


def _end_reads_what_follows_the_beginning(xp, v, g):
    quarter = v.shape[0] // 4
    return xp.concat([v[: 3 * quarter] * 2.0 - g[: 3 * quarter], v[3 * quarter :] - v[1 : quarter + 1]])


def _parts_of_parts(xp, v, g):
    quarter = v.shape[0] // 4
    inner = v[quarter:][: 2 * quarter]  # the two quarters in the middle
    parts = [inner[quarter:] + 1.0, v[: 2 * quarter] * 0.5 - g[quarter:][quarter : 3 * quarter]]
    return xp.concat([*parts, inner[:quarter] - v[3 * quarter :]])


def _by_their_sum(xp, v, g):
    return v / (1.0 + xp.sum(xp.abs(v))) - g


@dataclass(frozen=True)
class _LooksAround(bp.SGD):
    """Moves theta by more than each element's own, and its state by what theta was."""

    change: Callable[..., Any] = _with_the_next

    def init(self, backend, layout, theta):
        return (backend.xp.zeros_like(theta),)

    def update(self, backend, layout, theta, grad, state, *args, **options):
        xp = backend.xp
        return self.change(xp, theta, 0.1 * grad), (self.change(xp, state[0], theta),)


@pytest.mark.parametrize("change", [_with_the_next, _parts_of_parts, _by_their_sum])
def test_an_update_may_read_other_elements_than_it_writes(change, backend):
    check_update(change, 4, backend)


@pytest.mark.parametrize("units", [4, 10_000])  # of many, several threads do a part each
@pytest.mark.parametrize(
    "change",
    [_with_the_next, _with_the_last, _halves_changed_over, _second_half_reads_the_first, _first_half_reads_the_second,
     _half_reads_one_further, _half_reads_one_back, _end_reads_the_beginning, _end_reads_what_follows_the_beginning,
     _parts_of_parts],
)  # fmt: skip
@pytest.mark.parametrize("compiled", [False, True])
def test_what_an_update_reads_is_not_written_over_before(compiled, change, units, library, monkeypatch):
    if compiled:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    lib = library("numpy")
    compiles(monkeypatch, compiled)
    check_update(change, units, lib)


def check_update(change, units, lib):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3)), rng.standard_normal((6, units))
    trainer = bp.Trainer(bp.Dense(units), "mse", _LooksAround(change=change), threads=2).build(lib.array(x))
    theta, state = lib.host(trainer.theta).copy(), np.zeros(4 * units)
    for _ in range(3):
        weight, bias = theta[: 3 * units].reshape(3, units), theta[3 * units :]
        slope = 2.0 / y.size * (x @ weight + bias - y)
        gradient = np.concatenate([(x.T @ slope).reshape(-1), slope.sum(axis=0)])
        theta, state = change(np, theta, 0.1 * gradient), change(np, state, theta)
        trainer.step(lib.array(x), lib.array(y))
        np.testing.assert_allclose(lib.host(trainer.theta), theta, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(lib.host(trainer.state[0]), state, rtol=1e-10, atol=1e-12)
