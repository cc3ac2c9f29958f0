"""What has been published for MNIST, as a user of bpnet would set it up: see ``bench/mnist.py``.

Where a text doesn't say how something was done, the docstring says what is done here, after "Ours:".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import bpnet as bp
from bench.report import Record
from bpnet.optimizers.around import Around


@dataclass(frozen=True)
class Data:
    """Pixels of 0 to 255 as float32 rows of 784, and labels."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Training:
    """What an experiment trains: a trainer, its rows, and how."""

    trainer: bp.Trainer
    x: np.ndarray
    y: np.ndarray
    batch_size: int
    callbacks: tuple[bp.Callback, ...] = ()


def one_hot(labels: np.ndarray) -> np.ndarray:
    rows: np.ndarray = np.eye(10, dtype=np.float32)[labels]
    return rows


@dataclass(frozen=True)
class MaxNorm(Around):
    """A step of `base`, then the weights into each unit are scaled down to a norm of at most `limit`.

    w <- w min(1, limit / |w|), for every column w of a weight matrix (Srivastava et al. 2014, section 5.1).
    """

    base: Any
    limit: float = 2.0

    example = ("sgd",)

    def update(self, backend: Any, layout: Any, theta: Any, *args: Any, **options: Any) -> Any:
        theta, state = super().update(backend, layout, theta, *args, **options)
        xp, parts = backend.xp, []
        for slot in layout.parameters:
            w = xp.reshape(theta[slot.part], slot.shape)
            if w.ndim == 2:
                squares = xp.sum(w * w, axis=0, keepdims=True)
                w = w * xp.minimum(1.0, self.limit / xp.sqrt(xp.maximum(squares, 1e-12)))
            parts.append(xp.reshape(w, (slot.size,)))
        return backend.concat(parts), state


class Plateau(bp.Callback):
    """Ends a training after the third epoch in a row whose loss is not 1e-4 below the lowest before."""

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self.best, self.waited = float("inf"), 0

    def on_epoch_end(self, trainer: bp.Trainer, record: Record) -> None:
        self.waited = self.waited + 1 if record["loss"] > self.best - 1e-4 else 0
        self.best = min(self.best, record["loss"])
        trainer.stop = self.waited > 2


def nielsen(data: Data, seed: int, epochs: int) -> Training:
    """Nielsen, Neural Networks and Deep Learning (2015), chapter 1: 95.42 % right, in the best epoch of the best of 3.

    784-30-10 sigmoid units, weights and biases from N(0, 1), pixels / 256, the first 50,000 rows, batches of 10, 30
    epochs. The cost of a row is half the summed squares, "mse" the mean over 10 outputs: eta 3 is a rate of 15 here.
    """
    layers = [bp.Dense(units, "sigmoid", kernel_init="normal", bias_init="normal") for units in (30, 10)]
    net = bp.Sequential(bp.Standardize(scale=256.0), *layers)
    trainer = bp.Trainer(net, "mse", bp.SGD(15.0), seed=seed)
    return Training(trainer, data.x[:50_000], one_hot(data.y[:50_000]), 10)


def scikit_learn(activation: Any, *units: int) -> Callable[[Data, int, int], Training]:
    """Xiao, Rasul and Vollgraf, Fashion-MNIST (2017), table 3 and benchmark/runner.py: scikit-learn's MLP on MNIST.

    Standardized features, and the defaults of MLPClassifier: Adam at 0.001, batches of 200, all start values uniform
    within sqrt(6 / (n + units)), alpha 1e-4, divided by the rows of a batch. It ends after 200 epochs, or as in the
    versions of 2017 after the third in a row whose loss is not 1e-4 below the lowest; later ones wait for ten.
    """

    def made(data: Data, seed: int, epochs: int) -> Training:
        mean, deviation = data.x.mean(axis=0, dtype=np.float64), data.x.std(axis=0, dtype=np.float64)
        scaling = bp.Standardize(mean.tolist(), np.where(deviation > 0.0, deviation, 1.0).tolist())
        start: Any = {"kernel_init": "glorot_uniform", "bias_init": "glorot_uniform"}
        net = bp.Sequential(scaling, *(bp.Dense(n, activation, **start) for n in units), bp.Dense(10, **start))
        trainer = bp.Trainer(net, "cross_entropy", bp.Adam(1e-3), penalties=[bp.L2(1e-4 / 200)], seed=seed)
        return Training(trainer, data.x, data.y, 200, (Plateau(),))

    return made


def simard(data: Data, seed: int, epochs: int) -> Training:
    """Simard, Steinkraus and Platt, Best Practices for Convolutional Neural Networks (2003): 1.6 %, no distortions.

    784-800-10, cross-entropy, weights from N(0, 0.05**2), the first 50,000 rows, a rate of 0.005 times 0.3 after every
    100 epochs. Ours: tanh, pixels / 255, 50 epochs, and batches of 10 at ten times the rate of single rows.
    """
    start = bp.initializers.Normal(0.05)
    hidden, output = bp.Dense(800, "tanh", kernel_init=start), bp.Dense(10, kernel_init=start)
    net = bp.Sequential(bp.Standardize(scale=255.0), hidden, output)
    rate = bp.Epochs(bp.StepDecay(10 * 0.005, 100, 0.3))
    trainer = bp.Trainer(net, "cross_entropy", bp.SGD(rate), seed=seed)
    return Training(trainer, data.x[:50_000], data.y[:50_000], 10)


def dropout(data: Data, seed: int, epochs: int) -> Training:
    """Srivastava et al., Dropout (2014), table 2 and appendix B.1: 1.06 %, after a million steps.

    784-3x1024-10 relu, half of the hidden units and a fifth of the inputs dropped, a final momentum of 0.95, the
    weights into a unit of a norm of at most 2, all 60,000 rows. Ours: batches of 100 (so that a million steps are 1,667
    epochs), weights from N(0, 1 / n), a momentum that grows from 0.5 in the first tenth, and a rate of 0.02 that falls
    to 0 along half a cosine, within the epochs given.
    """
    hidden = [
        layer for _ in range(3) for layer in (bp.Dense(1024, "relu", kernel_init="lecun_normal"), bp.Dropout(0.5))
    ]
    net = bp.Sequential(bp.Standardize(scale=255.0), bp.Dropout(0.2), *hidden, bp.Dense(10, kernel_init="lecun_normal"))
    rate = bp.Epochs(bp.Cosine(0.02, epochs))
    momentum = bp.Epochs(bp.Polynomial(0.5, max(1, epochs // 10), final=0.95))
    trainer = bp.Trainer(net, "cross_entropy", MaxNorm(bp.SGD(rate, momentum), 2.0), seed=seed)
    return Training(trainer, data.x, data.y, 100)


def lecun(data: Data, seed: int, epochs: int) -> Training:
    """LeCun, Bottou, Bengio and Haffner, Gradient-Based Learning (1998), figure 9: 4.7 % by 784-300-10, squared error.

    Units 1.7159 tanh(2/3 a), targets of +-1, pixels from -0.1 to 1.175, start values within 2.4 / n, 20 epochs; all
    this is said of LeNet-5. Ours: plain descent in batches of 10, along the gradient of the mean over outputs, by a
    rate that falls evenly from 0.05 to a fiftieth of it.
    """
    tanh = bp.Activation(
        lambda xp, z: 1.7159 * xp.tanh(z * (2 / 3)), lambda xp, z: 1.7159 * 2 / 3 * (1 - xp.tanh(z * (2 / 3)) ** 2)
    )
    layers = [bp.Dense(n, tanh, kernel_init=bp.initializers.Uniform(2.4 / m)) for m, n in ((784, 300), (300, 10))]
    net = bp.Sequential(bp.Standardize(mean=20.0, scale=200.0), *layers)
    trainer = bp.Trainer(net, "mse", bp.SGD(bp.Epochs(bp.Exponential(0.05, 1 / 50, epochs))), seed=seed)
    return Training(trainer, data.x, 2.0 * one_hot(data.y) - 1.0, 10)


def hinton(data: Data, seed: int, epochs: int) -> Training:
    """Hinton (2005, unpublished; in the table of MNIST's page): 1.53 % by 784-500-300-10.

    Softmax, cross-entropy, weight decay. Ours: sigmoid units, pixels / 255, batches of 100, momentum 0.9, a penalty of
    1e-5 / 2 times the squares of the weights, 100 epochs, a rate that falls from 0.1 to 0 along half a cosine.
    """
    net = bp.Sequential(bp.Standardize(scale=255.0), bp.Dense(500, "sigmoid"), bp.Dense(300, "sigmoid"), bp.Dense(10))
    optimizer = bp.SGD(bp.Epochs(bp.Cosine(0.1, epochs)), momentum=0.9)
    trainer = bp.Trainer(net, "cross_entropy", optimizer, penalties=[bp.L2(1e-5)], seed=seed)
    return Training(trainer, data.x, data.y, 100)


@dataclass(frozen=True)
class Experiment:
    """What is made, its epochs, and what was published: per cent of the test set that are wrong."""

    title: str
    make: Callable[[Data, int, int], Training]
    epochs: int
    published: float
    best_epoch: bool = False


EXPERIMENTS = {
    "nielsen": Experiment("Nielsen 2015: 30 sigmoid, squared error, best epoch", nielsen, 30, 4.58, True),
    "scikit-learn-relu": Experiment("scikit-learn 2017: 100 relu", scikit_learn("relu", 100), 200, 2.8),
    "scikit-learn-relu-2": Experiment("scikit-learn 2017: 100 + 10 relu", scikit_learn("relu", 100, 10), 200, 2.8),
    "scikit-learn-tanh": Experiment("scikit-learn 2017: 100 tanh", scikit_learn("tanh", 100), 200, 3.8),
    "simard": Experiment("Simard 2003: 800 hidden, cross-entropy", simard, 50, 1.6),
    "dropout": Experiment("Srivastava 2014: 3 x 1024 relu, dropout, max-norm", dropout, 1667, 1.06),
    "lecun": Experiment("LeCun 1998: 300 hidden, squared error", lecun, 20, 4.7),
    "hinton": Experiment("Hinton 2005: 500 + 300, weight decay", hinton, 100, 1.53),
}
