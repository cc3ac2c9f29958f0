"""Terms that training adds to the loss: of parameters, and of what comes out of a layer."""

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import SUBSTITUTED

import bpnet as bp
from bpnet.errors import ArgumentError, DivergedError, OptionError

NET = bp.Sequential(bp.Dense(4, "tanh"), bp.ActivityPenalty(0.03, 0.2), bp.Dense(3))
PENALTIES = (bp.L1(0.01), bp.L2(0.5, "0.bias"), bp.L2(1.2, "0.*", per_row=True), bp.Orthogonality(0.1))
"""Of one leaf two at a time, of the last none; the matrices are a wide and a tall one."""
ROWS = 6
WEIGHT = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 1.5])


def draw(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


X, Y = draw(ROWS, 2), draw(ROWS, 3, 1)[:, :, 0]


def start(x=X):
    layout = bp.layout_of(NET, x.shape[1:])
    return layout, draw(layout.size)


def expected(theta, x=X, y=Y, weight=None):
    """The loss with all terms, by NumPy as it is written down."""
    layout, w = bp.layout_of(NET, x.shape[1:]), np.ones(len(x)) if weight is None else weight
    p = layout.views(bp.backends.backend_of(theta), theta)
    a, b = p["0"]["weight"], p["2"]["weight"]
    hidden = np.tanh(x @ a + p["0"]["bias"])
    error = hidden @ b + p["2"]["bias"] - y
    rows = (error**2).mean(axis=1) + 0.03 * np.abs(hidden).sum(axis=1) + 0.1 * (hidden**2).sum(axis=1)
    value = (rows * w).sum() / w.sum() + 0.01 * (np.abs(a).sum() + np.abs(b).sum())
    value += 0.25 * (p["0"]["bias"] ** 2).sum()
    value += 0.6 / w.sum() * ((a**2).sum() + (p["0"]["bias"] ** 2).sum())
    gram = [m.T @ m if m.shape[0] >= m.shape[1] else m @ m.T for m in (a, b)]
    return value + 0.025 * sum(((g - np.eye(len(g))) ** 2).sum() for g in gram)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
def test_value_and_gradient(weight):
    _, theta = start()
    value, grad = bp.value_and_grad(NET, "mse", theta, X, Y, sample_weight=weight, penalties=PENALTIES)
    assert float(value) == pytest.approx(expected(theta, weight=weight), rel=1e-12)
    h, measured = 1e-6, []
    for i in range(len(theta)):
        ends = [expected(theta + s * h * np.eye(1, len(theta), i)[0], weight=weight) for s in (1, -1)]
        measured.append((ends[0] - ends[1]) / (2.0 * h))
    np.testing.assert_allclose(grad, measured, rtol=1e-7, atol=1e-8)


def test_a_step_on_every_library(backend, uncompiled):
    """Compiled where it compiles."""
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    layout, theta = start()
    trainer = bp.Trainer(NET, "mse", bp.SGD(0.1), penalties=PENALTIES)
    given = backend.array(X), backend.array(Y)
    trainer.build(given[0])
    trainer.parameters = layout.views(trainer.backend, backend.array(theta))
    value = trainer.step(*given, backend.array(WEIGHT))
    assert float(value) == pytest.approx(expected(theta, weight=WEIGHT), rel=1e-12)
    _, grad = bp.value_and_grad(NET, "mse", theta, X, Y, sample_weight=WEIGHT, penalties=PENALTIES)
    backend.close(trainer.theta, theta - 0.1 * grad)
    assert not uncompiled()


@dataclass(frozen=True)
class LooksInto(bp.Composite):
    """Looks at values, so that nothing of it can be traced."""

    inner: bp.Layer

    @property
    def children(self):
        return (("inner", self.inner),)

    def out_shape(self, in_shape):
        return self.inner.out_shape(in_shape)

    def init(self, rng, in_shape):
        return {"inner": self.inner.init(rng, in_shape)}

    def forward(self, run, p, x):
        assert float(run.xp.sum(x)) < 1e30
        y, cache = self.inner.forward(run.at("inner"), p["inner"], x)
        assert float(run.xp.sum(y)) < 1e30  # by when the penalty has been traced
        return y, (cache,)

    def backward(self, run, p, cache, dy, need_dx=True):
        assert float(run.xp.sum(dy)) < 1e30
        dx, grads = self.inner.backward(run.at("inner"), p["inner"], cache[0], dy, need_dx)
        return dx, {"inner": grads}


def test_within_what_can_not_be_traced(backend):
    """A penalty on what comes out of a layer counts there too, once, and a schedule has the number of the step."""
    if backend.name in ("jax", "jax-jit"):
        pytest.skip("JAX traces all or nothing")
    if backend.name == "cupy" and SUBSTITUTED:
        pytest.skip("the substitute has not what CuPy's sign is made of")
    dropout = bp.Dropout(bp.Polynomial(0.5, 2))
    inner = bp.Sequential(bp.Dense(4, "tanh"), bp.ActivityPenalty(bp.Polynomial(0.03, 3), 0.2), dropout)
    found = []
    for arrays, compile in ((lambda x: x, False), (backend.array, "auto")):
        trainer = bp.Trainer(bp.Sequential(LooksInto(inner), bp.Dense(3)), "mse", bp.SGD(0.1), compile=compile)
        given = arrays(X), arrays(Y)
        found.append([float(trainer.step(*given, w)) for w in (None, arrays(WEIGHT), None)])
    np.testing.assert_allclose(*found, rtol=1e-12)


@pytest.mark.parametrize("micro_batch", [None, 100])
def test_terms_are_of_the_whole_batch_however_it_is_cut(micro_batch):
    x, y = draw(1000, 2), draw(1000, 3, 1)[:, :, 0]
    layout, theta = start()
    trainer = bp.Trainer(NET, "mse", bp.SGD(0.1), penalties=PENALTIES, micro_batch=micro_batch, clip_norm=0.5).build(x)
    trainer.parameters = layout.views(trainer.backend, theta)
    assert float(trainer.step(x, y)) == pytest.approx(expected(theta, x, y), rel=1e-10)
    _, grad = bp.value_and_grad(NET, "mse", theta, x, y, penalties=PENALTIES)
    np.testing.assert_allclose(trainer.theta, theta - 0.1 * grad * 0.5 / np.linalg.norm(grad), rtol=1e-10)


def test_what_has_become_0_stays():
    """The derivatives at 0, where |w| has none, are 0."""
    b, w = bp.backends.get("numpy"), np.zeros((2, 2))
    for penalty in (bp.L1(0.3), bp.L2(0.3), bp.Orthogonality(0.3)):
        np.testing.assert_array_equal(penalty.derivative(b, w), w)
    layer = bp.Sequential(bp.Dense(3, "relu", bias=False), bp.ActivityPenalty(0.1, 0.1))
    (_, grad), (_, plain) = (bp.value_and_grad(net, "mse", np.zeros(6), X, Y) for net in (layer, layer.layers[0]))
    np.testing.assert_array_equal(grad, plain)


def test_neither_predictions_nor_evaluate_know_of_them():
    trainers = []
    plain = bp.Sequential(NET.layers[0], bp.ActivityPenalty(), NET.layers[2])
    for net, penalties in ((NET, PENALTIES), (plain, ())):
        trainer = bp.Trainer(net, "mse", penalties=penalties).build(X)
        trainers.append((trainer.predict(X), trainer.evaluate(X, Y)["loss"]))
    np.testing.assert_array_equal(trainers[0][0], trainers[1][0])
    assert trainers[0][1] == trainers[1][1]


def test_a_rectangular_matrix_becomes_orthogonal():
    for shape in ((5, 3), (3, 5)):
        trainer = bp.Trainer(bp.Dense(shape[1], bias=False), "mse", bp.SGD(0.1), penalties=[bp.Orthogonality(1.0)])
        trainer.fit(np.zeros((4, shape[0])), np.zeros((4, shape[1])), epochs=300, progress=False)
        w = trainer.parameters["weight"]
        np.testing.assert_allclose(w.T @ w if shape[0] > shape[1] else w @ w.T, np.eye(3), atol=1e-8)


def test_a_penalty_that_is_not_finite_is_named():
    x = np.full((4, 3), 1e19, "float32")
    many = bp.Sequential(bp.ActivityPenalty(l2=1e3), bp.Dense(2, "tanh")), ()
    for (net, penalties), scale in ((many, 1.0), ((bp.Dense(2), [bp.L2(1e38)]), 1e19)):
        trainer = bp.Trainer(net, "mse", penalties=penalties)
        with pytest.raises(DivergedError, match=r"MeanSquaredError\(\) of the outputs is, so it is a penalty"):
            trainer.step(x / np.float32(scale), np.zeros((4, 2), "float32"))


def test_they_are_kept_in_files(tmp_path):
    bp.Trainer(NET, "mse", penalties=PENALTIES).build(X).save(tmp_path / "m.safetensors")
    trainer = bp.load(tmp_path / "m.safetensors")
    assert (trainer.penalties, trainer.network) == (PENALTIES, NET)
    bp.Trainer(NET, "mse").build(X).save(tmp_path / "m.safetensors")
    assert bp.load(tmp_path / "m.safetensors").penalties == ()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bp.L2(-1.0), OptionError, "strength is -1.0"),
        (lambda: bp.L2(1.0, 3), OptionError, "of is 3; expected a pattern of parameter names"),
        (lambda: bp.ActivityPenalty(-1.0), OptionError, "l1 is -1.0"),
        (lambda: bp.Trainer(NET, "mse", penalties=bp.L2(0.1)), ArgumentError, "penalties is .*; expected a list"),
        (lambda: bp.Trainer(NET, "mse", penalties=["l2"]), ArgumentError, r"penalties\[0\] is .*a bpnet penalty"),
        (lambda: bp.Trainer(NET, "mse", penalties=[bp.L2(0.1, "1.*")]).build(X), OptionError,
         r"L2\(strength=0.1, of='1.\*', per_row=False\) is of no parameter: they are 0.weight, 2.weight"),
        (lambda: bp.Trainer(NET, "mse", penalties=[bp.Orthogonality(0.1, "*.bias")]).build(X), OptionError,
         "is of no matrix: of the parameters that it is of, none has two axes"),
        (lambda: bp.Trainer(NET, "mse", penalties=[bp.L2(1e-60)]).build(X.astype("float32")), OptionError,
         "strength of L2.* with float32 parameters"),
    ],
)  # fmt: skip
def test_what_can_not_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_loss_made_too_large_by_weights_is_no_fault_of_a_penalty():
    x = np.ones((4, 3), "float32")
    trainer = bp.Trainer(bp.Dense(1), bp.MeanSquaredError(reduction="sum"), bp.SGD(0.0)).build(x)
    with pytest.raises(DivergedError, match=r"\(reduction='sum'\) of the outputs is, but not with the weights"):
        trainer.step(x, np.full((4, 1), 1e12, "float32"), np.full(4, 2.0**59, "float32"))
