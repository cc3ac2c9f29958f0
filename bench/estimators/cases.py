"""The data that the estimators are given, scaled beforehand, and the network that all of them train."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import mnist
from bench.tables import sets
from bench.tables.fetch import Unavailable

Array = np.ndarray[Any, Any]
Data = tuple[Array, Array, Array, Array]
"""Inputs and targets to train with, and to test on."""


@dataclass(frozen=True)
class Case:
    """Data, and what is the same for everyone: units of the hidden layers, rows of a batch, epochs."""

    title: str
    data: Callable[[Path], Data]
    hidden: tuple[int, ...]
    batch: int
    epochs: int
    classes: bool = True


def of_table(name: str) -> Callable[[Path], Data]:
    """A set of ``bench.tables`` that has numbers only, in float64 as scikit-learn's own loaders give them."""

    def data(cache: Path) -> Data:
        table = sets.load(name, cache)
        x = np.stack(list(table.columns.values()), axis=1)
        scale = x.std(axis=0)
        x = (x - x.mean(axis=0)) / np.where(scale == 0.0, 1.0, scale)
        y = np.unique(table.target, return_inverse=True)[1] if table.classes else _standard(table.target)
        order = np.random.default_rng(0).permutation(len(table))
        count = round(sets.TEST_SHARE * len(table))
        train, test = order[count:], order[:count]
        return x[train], y[train], x[test], y[test]

    return data


def hand_written(cache: Path) -> Data:
    """MNIST in float32; its files have a folder of their own."""
    try:
        found = mnist.load(mnist.folder_of_user(), os.environ.get("NPM_CONFIG_REGISTRY", mnist.REGISTRY))
    except OSError as error:
        raise Unavailable(f"MNIST can't be fetched: {error}") from None
    scale = np.float32(255)
    return found.x / scale, found.y, found.x_test / scale, found.y_test


def synthetic(rows: int, classes: int) -> Callable[[Path], Data]:
    """Rows of 20 numbers in float32, labelled by a random network and noise; 0 classes: a quantity."""

    def data(cache: Path) -> Data:
        rng = np.random.default_rng(rows + classes)
        total = rows + rows // 4
        x = rng.standard_normal((total, 20), dtype=np.float32)
        first, second = rng.standard_normal((20, 32)) / np.sqrt(20), rng.standard_normal((32, max(1, classes)))
        z = np.tanh(2.0 * x @ first.astype(np.float32)) @ second.astype(np.float32)
        z += 0.5 * rng.standard_normal(z.shape, dtype=np.float32)
        y = z.argmax(axis=1) if classes else _standard(z[:, 0])
        return x[:rows], y[:rows], x[rows:], y[rows:]

    return data


def _standard(y: Array) -> Array:
    return np.asarray((y - y.mean()) / y.std())


def _made(rows: int, batch: int, epochs: int) -> dict[str, Case]:
    name, network = f"{rows:,} x 20, synthetic", (128, 64)
    return {
        f"classes-{rows}": Case(f"{name}, 5 classes", synthetic(rows, 5), network, batch, epochs),
        f"quantity-{rows}": Case(f"{name}, a quantity", synthetic(rows, 0), network, batch, epochs, classes=False),
    }


CASES = {
    "digits": Case("digits, 1,348 x 64, float64", of_table("digits"), (100,), 200, 100),
    "satellite": Case("Satellite, 4,826 x 36, float64", of_table("satellite"), (100,), 200, 50),
    "concrete": Case("concrete, 772 x 8, float64", of_table("concrete"), (100,), 200, 200, classes=False),
    "mnist": Case("MNIST, 60,000 x 784", hand_written, (256, 128), 200, 5),
    **_made(10**4, 200, 20),
    **_made(10**5, 500, 5),
    **_made(10**6, 1000, 2),
}
