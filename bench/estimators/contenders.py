"""The estimators, each made as its users would: an object with ``fit`` and ``predict``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from bench.contenders.base import needs
from bench.estimators.cases import Array, Case

RATE = 1e-3
"""Adam's, for everyone."""


def _with_scikit_learns_face(package: Any, case: Case, seed: int, **options: Any) -> Any:
    kind = package.MLPClassifier if case.classes else package.MLPRegressor
    options |= {"batch_size": case.batch, "learning_rate_init": RATE, "max_iter": case.epochs, "random_state": seed}
    return kind(hidden_layer_sizes=case.hidden, n_iter_no_change=case.epochs + 1, **options)


def with_bpnet(case: Case, seed: int, threads: int, inputs: int, outputs: int) -> Any:
    import bpnet

    return _with_scikit_learns_face(bpnet, case, seed)


def with_bpnet_eager(case: Case, seed: int, threads: int, inputs: int, outputs: int) -> Any:
    """bpnet as it is without its extra ``jit``."""
    sys.modules["llvmlite"] = None  # type: ignore[assignment]  # which makes its import fail
    return with_bpnet(case, seed, threads, inputs, outputs)


def with_sklearn(case: Case, seed: int, threads: int, inputs: int, outputs: int) -> Any:
    import sklearn.neural_network

    return _with_scikit_learns_face(sklearn.neural_network, case, seed)


class Keras:
    """A `Sequential` model on JAX."""

    def __init__(self, case: Case, seed: int, threads: int, inputs: int, outputs: int) -> None:
        import keras

        keras.utils.set_random_seed(seed)
        self.case = case
        self.model = keras.Sequential([keras.Input((inputs,))])
        for units in case.hidden:
            self.model.add(keras.layers.Dense(units, activation="relu"))
        self.model.add(keras.layers.Dense(outputs, activation="softmax" if case.classes else None))
        loss = "sparse_categorical_crossentropy" if case.classes else "mse"
        self.model.compile(optimizer=keras.optimizers.Adam(RATE), loss=loss)

    def fit(self, x: Array, y: Array) -> None:
        self.model.fit(x, y, batch_size=self.case.batch, epochs=self.case.epochs, verbose=0)

    def predict(self, x: Array) -> Array:
        found = self.model.predict(x, batch_size=max(self.case.batch, 1000), verbose=0)
        return np.asarray(found.argmax(axis=1) if self.case.classes else found[:, 0])


def with_skorch(case: Case, seed: int, threads: int, inputs: int, outputs: int) -> Any:
    """skorch's estimators, which take float32 only."""
    import torch
    from skorch import NeuralNetClassifier, NeuralNetRegressor

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    sizes = [inputs, *case.hidden, outputs]
    layers: list[Any] = []
    for before, after in pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    options = {
        "module": torch.nn.Sequential(*layers[:-1]), "optimizer": torch.optim.Adam, "lr": RATE, "verbose": 0,
        "batch_size": case.batch, "max_epochs": case.epochs, "train_split": None, "iterator_train__shuffle": True,
        "iterator_valid__batch_size": max(case.batch, 1000),
    }  # fmt: skip
    if case.classes:
        return Cast(NeuralNetClassifier(criterion=torch.nn.CrossEntropyLoss, **options), np.int64)
    return Cast(NeuralNetRegressor(**options), np.float32)


class Cast:
    """What brings arrays to the types that PyTorch wants."""

    def __init__(self, model: Any, target: Any) -> None:
        self.model, self.target = model, target

    def fit(self, x: Array, y: Array) -> None:
        y = y.astype(self.target)
        self.model.fit(x.astype(np.float32), y if self.target is np.int64 else y[:, None])

    def predict(self, x: Array) -> Array:
        return np.asarray(self.model.predict(x.astype(np.float32))).reshape(-1)


Make = Callable[[Case, int, int, int, int], Any]
CONTENDERS: dict[str, tuple[str, Make]] = {
    "bpnet": ("bpnet", with_bpnet),
    "bpnet-eager": ("bpnet without jit", with_bpnet_eager),
    "sklearn": ("scikit-learn", with_sklearn),
    "keras": ("Keras on JAX", Keras),
    "skorch": ("skorch", with_skorch),
}
"""The name for people, and what makes one: of case, seed, threads, and how many inputs and outputs there are."""


def make(name: str, case: Case, seed: int, threads: int, inputs: int, outputs: int) -> Any:
    """A fresh estimator."""
    return CONTENDERS[name][1](case, seed, threads, inputs, outputs)


def get_ready(name: str) -> None:
    """Load what a contender needs beyond what its first fit loads; raises Absent where it would not be what it is."""
    if name != "bpnet":
        return
    needs(importlib.util.find_spec("llvmlite") is not None, "llvmlite is not installed: pip install -e '.[jit]'")
    import bpnet as bp

    x = np.zeros((4, 2), np.float32)
    bp.Trainer(bp.Sequential(bp.Dense(1)), "mse", compile=True).fit(x, x[:, :1], epochs=1, progress=False)
