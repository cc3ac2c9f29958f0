"""What is measured: networks, their start values and their data, the same for every contender."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Activation = Literal["relu", "sigmoid"]

BATCHES = (1, 32, 128, 512, 2048, 8192, 32768, 65536, 131072)
CUDA_BATCHES = (128, 512, 2048, 8192, 32768, 65536, 131072, 262144)
PRECISIONS = ("float32", "tf32", "bfloat16")  # of the products, where arrays are float32; the lower ones on a GPU only

POOL_ROWS = 16384  # rows to draw batches from, so that successive steps see fresh data
POOL_BATCHES = 64


@dataclass(frozen=True)
class Layer:
    """One layer of a workload."""

    kind: Literal["dense", "batchnorm", "dropout"] | Activation
    inputs: int
    units: int
    bias: bool = True
    rate: float = 0.0


@dataclass(frozen=True)
class Settings:
    """The numbers a training step depends on besides its data."""

    lr: float
    weight_decay: float = 0.0
    dropout: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    epsilon_first: bool = False  # Adam's epsilon is added before the bias correction, as some libraries do
    momentum: float = 0.9  # of batch normalization: the share of the running values that is kept
    norm_epsilon: float = 1e-5


@dataclass(frozen=True)
class Workload:
    """A network with its loss and optimizer."""

    key: str
    title: str
    layers: tuple[Layer, ...]
    loss: Literal["cross_entropy", "mse"]  # the first from logits and integer labels
    optimizer: Literal["adam", "adamw", "sgd"]  # adamw decays arrays of two or more axes only
    checking: Settings  # a step long enough to tell a wrong update from a right one
    timing: Settings  # a step so short that training never settles, which would fill gradients with denormals
    batches: tuple[int, ...] = BATCHES

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        return self.layers[-1].units

    def dense(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == "dense"]

    def widths(self) -> int:
        """The widths of all layers whose outputs are new arrays, added up."""
        return sum(layer.units for layer in self.layers if layer.kind in ("dense", "batchnorm"))

    def has(self, kind: str) -> bool:
        return any(layer.kind == kind for layer in self.layers)

    def product_flops(self, rows: int) -> int:
        """Operations in the matrix products of one training step; the first layer needs no gradient of its input."""
        sizes = [2 * rows * layer.inputs * layer.units for layer in self.dense()]
        return 3 * sum(sizes) - sizes[0]

    def parameter_count(self) -> int:
        dense = sum((layer.inputs + layer.bias) * layer.units for layer in self.dense())
        return dense + sum(2 * layer.units for layer in self.layers if layer.kind == "batchnorm")


def _perceptron(sizes: tuple[int, ...], hidden: Activation, last: Activation | None = None) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for place, (inputs, units) in enumerate(pairwise(sizes)):
        layers.append(Layer("dense", inputs, units))
        activation = hidden if place < len(sizes) - 2 else last
        if activation is not None:
            layers.append(Layer(activation, units, units))
    return tuple(layers)


def _tabular() -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for inputs in (100, 256, 256):
        layers.append(Layer("dense", inputs, 256, bias=False))  # the normalization that follows would undo a bias
        layers.append(Layer("batchnorm", 256, 256))
        layers.append(Layer("relu", 256, 256))
        layers.append(Layer("dropout", 256, 256, rate=0.1))
    return (*layers, Layer("dense", 256, 2))


# With its usual epsilon, Adam's first step is lr times the gradient's sign, so rounding alone sends a value either way
# where a gradient is next to zero. A larger one makes the check see real differences only.
_ADAM_CHECK, _ADAM_TIME = Settings(lr=1e-3, epsilon=1e-4), Settings(lr=1e-6)

WORKLOADS = {
    workload.key: workload
    for workload in (
        Workload(
            "a",
            "784-512-512-10 relu, cross-entropy, Adam",
            _perceptron((784, 512, 512, 10), "relu"),
            "cross_entropy",
            "adam",
            _ADAM_CHECK,
            _ADAM_TIME,
        ),
        Workload(
            "b",
            "784-4x2048-10 relu, cross-entropy, Adam",
            _perceptron((784, 2048, 2048, 2048, 2048, 10), "relu"),
            "cross_entropy",
            "adam",
            replace(_ADAM_CHECK, lr=5e-5),
            _ADAM_TIME,
        ),
        Workload(
            "c",
            "100-3x256-2 batchnorm, relu, dropout 0.1, cross-entropy, AdamW",
            _tabular(),
            "cross_entropy",
            "adamw",
            replace(_ADAM_CHECK, weight_decay=1.0, dropout=False),
            replace(_ADAM_TIME, weight_decay=0.01),
            batches=BATCHES[1:],  # one row has no variance
        ),
        Workload(
            "d",
            "64-100-10 relu, cross-entropy, Adam",
            _perceptron((64, 100, 10), "relu"),
            "cross_entropy",
            "adam",
            _ADAM_CHECK,
            _ADAM_TIME,
        ),
        Workload(
            "e",
            "2-2-1 sigmoid, mean squared error, gradient descent: XOR",
            _perceptron((2, 2, 1), "sigmoid", "sigmoid"),
            "mse",
            "sgd",
            Settings(lr=0.2),
            Settings(lr=1e-6),
            batches=(4, *BATCHES[1:6]),
        ),
        Workload(
            "g",
            "4096-8x4096-10 relu, cross-entropy, Adam: for a GPU",
            _perceptron((4096,) * 9 + (10,), "relu"),
            "cross_entropy",
            "adam",
            replace(_ADAM_CHECK, lr=2e-5),
            _ADAM_TIME,
            batches=CUDA_BATCHES,
        ),
    )
}


def start_values(workload: Workload, dtype: str, seed: int = 0) -> list[Array]:
    """Parameters in the order of the layers: a dense layer's weight (inputs, units) and bias; a norm's scale and shift.

    Nothing starts at exactly zero or one, so that a contender which mixes two parameters up is found out.
    """
    rng = np.random.default_rng(seed)
    values: list[Array] = []
    for layer in workload.layers:
        if layer.kind == "dense":
            bound = (
                3.0 / layer.inputs
            ) ** 0.5  # unit variance of a sum over inputs of unit variance (LeCun et al. 1998)
            values.append(rng.uniform(-bound, bound, (layer.inputs, layer.units)))
            if layer.bias:
                values.append(rng.uniform(-0.1, 0.1, layer.units))
        elif layer.kind == "batchnorm":
            values.append(rng.uniform(0.5, 1.5, layer.units))
            values.append(rng.uniform(-0.5, 0.5, layer.units))
    return [value.astype(dtype) for value in values]


def pool_batches(batch: int) -> int:
    """How many batches there are to cycle through."""
    return min(POOL_BATCHES, max(1, POOL_ROWS // batch))


def pool(workload: Workload, batch: int, dtype: str, seed: int = 1) -> tuple[Array, Array]:
    """Batches to cycle through: x of shape (batches, batch, inputs), y of shape (batches, batch) or (..., outputs)."""
    rng = np.random.default_rng(seed)
    count = pool_batches(batch)
    if workload.key == "e":
        rows = np.resize(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype), (count, batch, 2))
        return rows, (rows[..., :1] != rows[..., 1:]).astype(dtype)
    x = rng.standard_normal((count, batch, workload.inputs), dtype=np.dtype(dtype).type)
    if workload.loss == "mse":
        return x, rng.uniform(size=(count, batch, workload.outputs)).astype(dtype)
    return x, rng.integers(0, workload.outputs, (count, batch))


@dataclass(frozen=True)
class Task:
    """One workload as a contender gets it."""

    workload: Workload
    dtype: str
    batch: int
    threads: int
    device: str  # "cpu" or "cuda"
    settings: Settings
    start: list[Array] = field(repr=False)
    precision: str = "float32"  # one of PRECISIONS

    def parameters_of(self, layer: Layer, taken: int) -> list[Array]:
        """The start values of a layer, of which ``taken`` came before."""
        count = 2 if layer.kind == "batchnorm" or (layer.kind == "dense" and layer.bias) else int(layer.kind == "dense")
        return self.start[taken : taken + count]

    def layers_with_values(self) -> list[tuple[Layer, list[Array]]]:
        """Each layer with its start values; layers without parameters come with an empty list."""
        pairs, taken = [], 0
        for layer in self.workload.layers:
            values = self.parameters_of(layer, taken)
            taken += len(values)
            pairs.append((layer, values))
        return pairs
