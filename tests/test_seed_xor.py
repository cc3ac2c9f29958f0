"""The experiment that the project grew from: a 2-2-1 sigmoid network learns XOR, as the hand-written script does."""

import numpy as np
import pytest

import bpnet as bp

X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = np.array([[0.0], [1.0], [1.0], [0.0]])
PRINTED = [0.06029012, 0.94447222, 0.944367, 0.05997169]
NET = bp.Sequential(bp.Dense(2, "sigmoid"), bp.Dense(1, "sigmoid"))
FEW = {"numpy": 300, "numpy-readonly": 300, "strict": 300, "jax": 300}
"""Fewer updates, where each operation is checked or dispatched alone; on NumPy another test makes them all."""


def start():
    """The script's start values: weights of both layers, then biases of both."""
    rng = np.random.RandomState(42)
    return rng.rand(2, 2), rng.rand(2, 1), rng.rand(1, 2), rng.rand(1, 1)


def script(updates):
    """The script's loop, which the outputs leave one update behind: those after `updates` updates."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    w1, w2, b1, b2 = start()
    for update in range(updates + 1):
        hidden = sigmoid(X @ w1 + b1)
        output = sigmoid(hidden @ w2 + b2)
        if update == updates:
            return output
        d_output = (Y - output) * (output * (1 - output))
        d_hidden = (d_output @ w2.T) * (hidden * (1 - hidden))
        w2 += hidden.T @ d_output * 0.1
        b2 += np.sum(d_output, axis=0, keepdims=True) * 0.1
        w1 += X.T @ d_hidden * 0.1
        b1 += np.sum(d_hidden, axis=0) * 0.1


def trainer_at_start(lib):
    """Rate 0.2 on the mean over 4 rows is the script's 0.1 on half the sum of squares."""
    w1, w2, b1, b2 = (lib.array(a) for a in start())
    trainer = bp.Trainer(NET, "mse", bp.SGD(0.2)).build(lib.array(X))
    flat = lib.xp.reshape
    trainer.parameters = {"0": {"weight": w1, "bias": flat(b1, (2,))}, "1": {"weight": w2, "bias": flat(b2, (1,))}}
    return trainer


def test_the_script_prints_what_it_printed():
    np.testing.assert_allclose(script(9999)[:, 0], PRINTED, atol=5e-9)


def test_steps_reproduce_the_script(library):
    lib = library("numpy")
    trainer = trainer_at_start(lib)
    for _ in range(9999):
        trainer.step(X, Y)
    outputs = trainer.predict(X)
    np.testing.assert_allclose(outputs, script(9999), rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(outputs[:, 0], PRINTED, atol=5e-9)


def test_fit_reproduces_the_script(library):
    trainer = trainer_at_start(library("numpy"))
    trainer.fit(X, Y, epochs=2000, batch_size=4, shuffle=False, progress=False)
    np.testing.assert_allclose(trainer.predict(X), script(2000), rtol=0.0, atol=1e-12)


def test_every_library_learns_alike(backend):
    updates = FEW.get(backend.name, 9999)
    trainer, x, y = trainer_at_start(backend), backend.array(X), backend.array(Y)
    for _ in range(updates):
        trainer.step(x, y)
    np.testing.assert_allclose(backend.host(trainer.predict(x)), script(updates), rtol=0.0, atol=1e-9)


def test_the_gradient_is_the_script_s():
    """One update of the script, read as a gradient."""
    w1, w2, b1, b2 = start()
    layout = bp.layout_of(NET, (2,))
    seam = bp.backends.get("numpy")
    theta = layout.join(seam, {"0": {"weight": w1, "bias": b1[0]}, "1": {"weight": w2, "bias": b2[0]}})
    value, grad = bp.value_and_grad(NET, "mse", theta, X, Y)
    assert float(value) == pytest.approx(np.mean((Y - script(0)) ** 2), rel=1e-14)
    p = layout.views(seam, theta - 0.2 * grad)
    hidden = 1 / (1 + np.exp(-(X @ p["0"]["weight"] + p["0"]["bias"])))
    output = 1 / (1 + np.exp(-(hidden @ p["1"]["weight"] + p["1"]["bias"])))
    np.testing.assert_allclose(output, script(1), rtol=1e-14)
