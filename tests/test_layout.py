"""The parameter vector: views and joining, what decays, buffers apart, one start for every library."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ShapeError

NET = bp.Sequential(
    bp.Flatten(),
    bp.Dense(4, "relu"),
    bp.BatchNorm(),
    bp.Residual(bp.Sequential(bp.Dense(4, bias=False), bp.Dropout(0.5))),
    bp.Dense(3),
)
LAYOUT = bp.layout_of(NET, (2, 3))
NAMES = ["1.weight", "1.bias", "2.scale", "2.shift", "3.inner.0.weight", "4.weight", "4.bias"]


def at(tree, name):
    for key in name.split("."):
        tree = tree[key]
    return tree


def test_every_leaf_has_a_place_and_a_shape():
    shapes = {slot.name: slot.shape for slot in LAYOUT.parameters}
    assert shapes.keys() == set(NAMES)
    assert shapes["1.weight"] == (6, 4)
    assert shapes["3.inner.0.weight"] == (4, 4)
    assert LAYOUT.in_shape == (2, 3)
    assert LAYOUT.out_shape == (3,)


def test_slots_fill_the_vectors_without_gap_or_overlap():
    for slots, size in ((LAYOUT.parameters, LAYOUT.size), (LAYOUT.buffers, LAYOUT.buffer_size)):
        ends = [0]
        for slot in slots:
            assert slot.offset == ends[-1]
            assert slot.size == math.prod(slot.shape)
            ends.append(slot.offset + slot.size)
        assert ends[-1] == size
    assert LAYOUT.size == 6 * 4 + 4 + 4 + 4 + 4 * 4 + 4 * 3 + 3


def test_weights_decay_and_lie_first():
    decaying = [slot.name for slot in LAYOUT.parameters if slot.decay]
    assert decaying == ["1.weight", "3.inner.0.weight", "4.weight"]
    assert [slot.decay for slot in LAYOUT.parameters] == [True] * 3 + [False] * 4
    assert LAYOUT.decaying == 24 + 16 + 12


@dataclass(frozen=True)
class Scaled(bp.Flatten):
    """A layer whose leaves say against the rule what decays, and one of which is a buffer."""

    def init(self, rng, in_shape):
        return {
            "table": bp.Leaf(rng.normal((2, 3), 1.0), decay=False),
            "factor": bp.Leaf(rng.full(in_shape, 1.0), decay=True),
            "seen": bp.Leaf(rng.full((2, 2), 7.0), trainable=False),
        }


def test_a_leaf_says_what_it_is():
    layout = bp.layout_of(Scaled(), (4,))
    assert [(slot.name, slot.decay) for slot in layout.parameters] == [("factor", True), ("table", False)]
    assert [(slot.name, slot.decay) for slot in layout.buffers] == [("seen", False)]
    np.testing.assert_array_equal(layout.start(0)[1], np.full(4, 7.0))


def test_buffers_lie_apart():
    assert [slot.name for slot in LAYOUT.buffers] == ["2.mean", "2.var"]
    assert not {slot.name for slot in LAYOUT.buffers} & set(NAMES)


def test_views_are_nested_as_the_network_is(backend):
    theta, buffers = (backend.array(np.arange(float(n))) for n in (LAYOUT.size, LAYOUT.buffer_size))
    tree = LAYOUT.views(backend.seam, theta, buffers)
    for vector, slots in ((theta, LAYOUT.parameters), (buffers, LAYOUT.buffers)):
        for slot in slots:
            expected = backend.host(vector)[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            np.testing.assert_array_equal(backend.host(at(tree, slot.name)), expected)
    assert tree["0"] == {}
    assert tree["3"]["inner"]["1"] == {}
    assert set(LAYOUT.views(backend.seam, theta)["2"]) == {"scale", "shift"}


def test_joining_is_the_inverse_of_views(backend):
    theta, buffers = (backend.array(np.arange(float(n))) for n in (LAYOUT.size, LAYOUT.buffer_size))
    tree = LAYOUT.views(backend.seam, theta, buffers)
    np.testing.assert_array_equal(backend.host(LAYOUT.join(backend.seam, tree)), backend.host(theta))
    joined = LAYOUT.join_buffers(backend.seam, tree, backend.array(np.zeros(LAYOUT.buffer_size)))
    np.testing.assert_array_equal(backend.host(joined), backend.host(buffers))


def test_buffers_that_are_not_given_stay(backend):
    old = backend.array(np.arange(8.0))
    joined = LAYOUT.join_buffers(backend.seam, {"2": {"var": backend.array(np.ones(4))}}, old)
    np.testing.assert_array_equal(backend.host(joined), [0, 1, 2, 3, 1, 1, 1, 1])


def test_one_seed_gives_one_start():
    first, again, other = (LAYOUT.start(seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.5
    buffers = LAYOUT.start(3)[1]
    np.testing.assert_array_equal(buffers, [0, 0, 0, 0, 1, 1, 1, 1])


def test_every_library_starts_alike(backend):
    x = backend.array(np.zeros((2, 2, 3)))
    trainer = bp.Trainer(NET, "mse", seed=5).build(x)
    np.testing.assert_array_equal(backend.host(trainer.theta), LAYOUT.start(5)[0])
    np.testing.assert_array_equal(backend.host(trainer.buffers), LAYOUT.start(5)[1])
    x = backend.array(np.zeros((2, 2, 3)), "float32")
    trainer = bp.Trainer(NET, "mse", seed=5).build(x)
    np.testing.assert_array_equal(backend.host(trainer.theta), np.float32(LAYOUT.start(5)[0]))


def test_layers_of_a_network_start_differently():
    theta = LAYOUT.views(bp.backends.get("numpy"), LAYOUT.start(0)[0])
    assert not np.array_equal(theta["1"]["weight"][:4], theta["3"]["inner"]["0"]["weight"])


def test_the_layout_depends_on_network_and_shape():
    assert bp.layout_of(NET, (2, 3)) == LAYOUT
    assert bp.layout_of(NET, (3, 2)) != LAYOUT


def test_the_layout_is_that_of_the_network_itself_not_of_an_equal_one():
    @dataclass(frozen=True)
    class Factor(bp.Dense):
        factor: float = field(default=1.0, compare=False)

    one, other = Factor(2, factor=1.0), Factor(2, factor=5.0)
    assert one == other
    assert bp.layout_of(one, (3,)).network.factor == 1.0
    assert bp.layout_of(other, (3,)).network.factor == 5.0


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (bp.Flatten(), (3,)),
        (bp.Sequential(bp.Dropout(0.1), bp.ReLU()), (3,)),
        (bp.Residual(bp.Dense(4)), (3,)),
        (bp.Sequential(bp.Dense(4), bp.Residual(bp.Dense(3))), (3,)),
    ],
)
def test_networks_that_do_not_fit_are_refused(net, shape):
    with pytest.raises(ShapeError):
        bp.layout_of(net, shape)
