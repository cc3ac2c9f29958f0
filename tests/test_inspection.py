"""What is seen of a network: a table of its layers, and what goes through them in a step."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ArgumentError, ArrayMismatchError, ShapeError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 2, 2)), np.arange(6) % 3
ENCODER = bp.Shared(bp.Dense(4, "tanh"), "encoder")
NET = bp.Sequential(
    bp.Flatten(), ENCODER, bp.BatchNorm(), bp.Residual(bp.Sequential(bp.LayerNorm(), ENCODER)), bp.Dropout(0.5),
    bp.Parallel("identity", bp.WeightNorm(bp.Dense(2))), bp.Dense(3),
)  # fmt: skip
STEPPED = bp.Sequential(  # of few shapes, since JAX compiles every operation anew for each
    bp.Flatten(), bp.Dense(4, "tanh"), bp.BatchNorm(), bp.Dropout(0.25),
    bp.Residual(bp.Sequential(bp.Dense(4, "gelu"))), bp.Dense(3),
)  # fmt: skip
PATHS = [
    "", "0", "1", "1.inner", "2", "3", "3.inner", "3.inner.0", "3.inner.1", "3.inner.1.inner", "4", "5", "5.0", "5.1",
    "5.1.inner", "6",
]  # fmt: skip


@dataclass(frozen=True)
class Sorted(bp.Layer):
    """What the compiler has no symbols for."""

    def forward(self, run, p, x):
        return run.xp.sort(x, axis=1), run.xp.argsort(x, axis=1)

    def backward(self, run, p, cache, dy, need_dx=True):
        return (run.xp.take_along_axis(dy, run.xp.argsort(cache, axis=1), axis=1) if need_dx else None), {}


# ---- a table of layers ----------------------------------------------------------------------------------------------


def test_a_summary_has_every_layer_with_what_it_costs():
    layers = {one.path: one for one in NET.summary(X).layers}
    assert list(layers) == PATHS
    dense = layers["1.inner"]
    assert (dense.out_shape, dense.parameters, dense.trainable) == ((4,), 20, True)
    assert dense.flops == 2 * 4 * 4 + 4 + 4  # a product, a bias and tanh
    assert dense.bytes == 8 * 4  # y is all that tanh needs, and x is another's
    assert layers["1"].parameters == 20
    assert layers["3.inner.1"].parameters == 0  # those of the first place
    assert (layers["2"].parameters, layers["2"].buffers) == (8, 8)
    assert layers["4"].flops == 4
    assert layers["5"].out_shape == (6,)
    assert layers["0"].flops == layers["0"].bytes == 0
    whole = layers[""]
    assert whole.parameters == bp.layout_of(NET, (2, 2)).size
    assert whole.flops == sum(layers[path].flops for path in "0123456") + 0


def test_a_summary_counts_rows_not_batches():
    """Whatever the number of rows, of any type and library."""
    figures = [NET.summary(x).layers for x in (X, X[:1], np.ones((3, 2, 2), np.int8))]
    assert [one.flops for one in figures[0]] == [one.flops for one in figures[1]] == [one.flops for one in figures[2]]
    assert [one.bytes for one in figures[0]] == [2 * one.bytes for one in figures[2]]  # which becomes float32


def test_a_summary_is_a_table():
    text = str(bp.Sequential(bp.Dense(300, "relu"), bp.BatchNorm(), bp.Standardize()).summary(np.ones((1, 784))))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["layer", "output", "parameters", "buffers", "trained", "FLOPs", "a", "row", "bytes", "a", "row"]
    assert lines[1][:5] == ["Sequential", "300", "236,100", "1,200", "yes"]
    assert lines[2][-6:-1] == ["bias=True)", "300", "235,500", "yes", "471,000"]
    assert lines[4][-5:] == ["300", "600", "no", "600", "2,400"]
    page = NET.summary(X)._repr_html_()
    assert page.count("<tr>") == 1 + len(PATHS)
    assert "Dense(units=4, activation=&#x27;tanh&#x27;, bias=True)</td>" in page


def test_what_can_not_be_seen_is_said():
    sorts = bp.Sequential(bp.Dense(3), Sorted()).summary(np.ones((2, 4)))
    assert [one.flops for one in sorts.layers] == [None, 27, None]
    assert str(sorts).count("?") == 2


def test_a_summary_of_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="GroupNorm"):
        bp.Sequential(bp.GroupNorm(3)).summary(np.ones((2, 4)))
    with pytest.raises(ArrayMismatchError):
        NET.summary((2, 2))


# ---- what goes through a network ------------------------------------------------------------------------------------


def test_a_step_is_seen_layer_by_layer(backend):
    x, y = backend.array(X), backend.array(Y)
    trainer = bp.Trainer(STEPPED, "cross_entropy", bp.SGD(0.1)).build(x)
    before = [backend.host(a) for a in (trainer.theta, trainer.buffers)]
    seen = bp.inspect(trainer, x, y)
    assert [one.path for one in seen.layers] == ["", "0", "1", "2", "3", "4", "4.inner", "4.inner.0", "5"]
    for array, old in zip((trainer.theta, trainer.buffers), before, strict=True):  # nothing was changed
        np.testing.assert_array_equal(backend.host(array), old)
    assert trainer.step_count == 0
    order = [seen[str(i)] for i in range(6)]
    for one, following in itertools.pairwise(order):
        np.testing.assert_array_equal(backend.host(one.y), backend.host(following.x))
        np.testing.assert_array_equal(backend.host(one.dy), backend.host(following.dx))
    np.testing.assert_array_equal(backend.host(seen[""].dx), backend.host(order[0].dx))
    np.testing.assert_allclose(np.tanh(backend.host(seen["1"].pre_activation)), backend.host(seen["1"].y), rtol=1e-12)
    assert seen["5"].pre_activation is None
    weight = backend.host(seen["5"].x).T @ backend.host(seen["5"].dy)
    np.testing.assert_allclose(backend.host(seen["5"].grads["weight"]), weight, rtol=1e-12)
    for one in seen.layers:
        arrays = {"x": one.x, "y": one.y, "dy": one.dy, "dx": one.dx, **one.grads}
        for name, array in arrays.items():
            assert one.norms[name] == pytest.approx(np.linalg.norm(backend.host(array)), rel=1e-12)
    # the gradient of the next step, whose masks it has
    loss = trainer.step(x, y)
    assert seen.loss == pytest.approx(float(loss), rel=1e-12)
    moved = trainer.layout.unpack(backend.array(before[0] - backend.host(trainer.theta)))
    for name, value in moved.items():
        backend.close(value, 0.1 * backend.host(seen[""].grads[name]), rtol=1e-9)


def test_vanishing_gradients_are_seen_at_a_glance():
    deep = bp.Sequential(*[bp.Dense(8, "sigmoid") for _ in range(8)], bp.Dense(3))
    seen = bp.inspect(bp.Trainer(deep, "cross_entropy"), np.ones((6, 8)), Y, np.full(6, 2.0))
    norms = [seen[str(i)].norms["weight"] for i in range(8)]
    assert norms[0] < 1e-3 * norms[7]
    lines = str(seen).splitlines()
    assert lines[0].split() == ["layer", "|x|", "|z|", "|y|", "|dL/dy|", "|dL/dx|", "|gradients|"]
    assert lines[2].split()[:2] == ["0", "Dense"]
    assert f"weight {norms[0]:.3g}, bias" in lines[2]
    assert "<td" in seen._repr_html_()


def test_what_is_called_twice_is_seen_twice():
    seen = bp.inspect(bp.Trainer(NET, "cross_entropy"), X, Y)
    assert [one.path for one in seen.layers] == PATHS
    first, second = seen["1.inner"], seen["3.inner.1.inner"]
    assert first.layer is second.layer
    assert not np.array_equal(first.x, second.x)
    assert not np.array_equal(first.grads["weight"], second.grads["weight"])
    np.testing.assert_allclose(seen["5.1.inner"].grads["weight"], seen["5.1.inner"].x.T @ seen["5.1.inner"].dy)


def test_the_loss_is_that_of_the_step_with_all_that_is_added_to_it():
    net = bp.Sequential(bp.Flatten(), bp.Dense(4, "tanh"), bp.ActivityPenalty(l2=0.1), bp.Dense(3))
    trainer = bp.Trainer(net, "cross_entropy", bp.SGD(0.1), penalties=[bp.L2(0.01)]).build(X)
    weights = np.arange(1.0, 7.0)
    seen = bp.inspect(trainer, X, Y, weights)
    assert seen.loss == pytest.approx(float(trainer.step(X, Y, weights)), rel=1e-12)
    added = seen["2"].dx - seen["2"].dy
    np.testing.assert_allclose(added, 0.1 * seen["2"].x * weights[:, None] / np.sum(weights), rtol=1e-9)


def test_what_can_not_be_inspected_is_refused():
    with pytest.raises(ArgumentError, match="expected a bpnet Trainer"):
        bp.inspect(NET, X, Y)
    trainer = bp.Trainer(NET, "cross_entropy")
    with pytest.raises(ShapeError):
        bp.inspect(trainer, X, Y[:2])
    with pytest.raises(ArgumentError, match="there is no layer '7'"):
        bp.inspect(trainer, X, Y)["7"]


def test_a_vector_is_unpacked_by_name(backend):
    layout = bp.layout_of(NET, (2, 2))
    vector = backend.array(np.arange(float(layout.size)))
    parts = layout.unpack(vector)
    assert list(parts) == [slot.name for slot in layout.parameters]
    np.testing.assert_array_equal(
        np.concatenate([backend.host(a).ravel() for a in parts.values()]), backend.host(vector)
    )
    assert parts["1.inner.weight"].shape == (4, 4)
    assert list(layout.unpack(backend.array(np.ones(8)), buffers=True)) == ["2.mean", "2.var"]
    with pytest.raises(ShapeError, match=rf"expected \({layout.size},\), for {layout.size} parameters"):
        layout.unpack(vector[:3])
