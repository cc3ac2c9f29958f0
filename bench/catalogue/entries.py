"""What is measured of the catalogue: each entry's data and settings.  Its networks are in each library's own file."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

FEATURES, WIDTH, CLASSES = 64, 128, 10
BATCHES = (32, 512, 8192)
POOL_ROWS = 4096
CODES, CITIES = 1000, 100  # entries of the tables of Embedding and of Inputs
MEMBERS = 4
OF_MEMBERS = ("BatchEnsemble", "MemberDense", "MemberScale", "Members")
"""Entries whose networks give outputs of several members."""
ENTRIES_OF, WIDTH_OF = (12, CITIES) * 4, (0, 8) * 4  # of the columns of CategoricalInput
NOISE = 1e-7
"""Rates of dropout and deviations of noise: drawn and applied in full, and yet all contenders compute the same."""

QUANTILES = (0.1, 0.5, 0.9)
CHECKED_STEPS = 3


@dataclass(frozen=True)
class Entry:
    """One of the catalogue: `x` and `y` say of what kind the data are, `lr` which rate all contenders have."""

    kind: str
    name: str
    x: str = "rows"
    y: str = "labels"
    lr: float = 1e-3
    tolerance: float = 1e-5  # relative, of the loss of every one of a few steps

    @property
    def key(self) -> str:
        """Where it is found, by kind and name: `Dropout` is a layer."""
        return f"{self.kind}-{self.name}"


def _all(kind: str, names: str, **options: Any) -> list[Entry]:
    return [Entry(kind, name, **options) for name in names.split()]


LAYERS = [
    *_all(
        "layers",
        "ActivityPenalty AlphaDropout BatchEnsemble BatchNorm Clamp Dense Dropout GLU GaussianNoise GeGLU GroupNorm "
        "LayerNorm MemberDense MemberScale NumericEmbedding Parallel RMSNorm Reshape Residual Scale Sequential Shared "
        "Standardize SwiGLU WeightNorm",
    ),
    Entry("layers", "Bilinear", tolerance=1e-4),  # sums of 4,096 products of products
    Entry("layers", "SpectralNorm", tolerance=2e-3),  # PyTorch's vectors are one iteration ahead
    Entry("layers", "Embedding", x="codes"),
    Entry("layers", "Flatten", x="matrices"),
    Entry("layers", "Inputs", x="several"),
    Entry("layers", "NumericInput", x="gaps"),
    Entry("layers", "CategoricalInput", x="categories"),
    Entry("layers", "TabularInput", x="table"),
]
ACTIVATIONS = [
    *_all(
        "activations",
        "celu elu gelu gelu_tanh hard_sigmoid hard_swish hard_tanh identity leaky_relu log_sigmoid log_softmax mish "
        "parametric_mish parametric_selu prelu relu relu6 selu sigmoid silu softmax softplus softshrink softsign "
        "squared_relu tanh",
    ),
    Entry("activations", "sine", tolerance=5e-3),  # which makes rounding 30 times as large, layer by layer
]
LOSSES = [
    *_all("losses", "cross_entropy focal Members"),
    *_all("losses", "binary_cross_entropy binary_cross_entropy_with_logits binary_focal hinge squared_hinge", y="bits"),
    *_all("losses", "cosine_similarity gaussian_nll huber log_cosh mean_absolute_error mean_squared_error quantile",
          y="numbers"),
    *_all("losses", "gamma poisson tweedie", y="amounts"),
    Entry("losses", "kl_divergence", y="shares"),
    Entry("losses", "Heads", y="heads"),
    Entry("losses", "triplet", x="triplets", y="nothing"),
]  # fmt: skip
OPTIMIZERS = [
    *_all("optimizers", "adabelief adam adamax adamw amsgrad nadam radam rmsprop schedule_free_adamw lamb"),
    *_all("optimizers", "adafactor adagrad", lr=1e-2),
    *_all("optimizers", "sgd sam Accumulate Clip ExponentialAverage GradientNoise Grouped StochasticAverage", lr=0.05),
    *_all("optimizers", "adadelta lars lbfgs prodigy", lr=1.0),
    Entry("optimizers", "muon", lr=1e-2, tolerance=1e-4),  # PyTorch iterates in bfloat16
    Entry("optimizers", "lion", lr=1e-4),
]
ENTRIES = sorted([*LAYERS, *ACTIVATIONS, *LOSSES, *OPTIMIZERS], key=lambda e: (e.kind, e.name.lower()))
SAME = {"linear": "identity", "swish": "silu", "mae": "mean_absolute_error", "mse": "mean_squared_error"}
"""Names that are others of an entry."""


def rows_of(entry: Entry, rng: np.random.Generator, rows: int) -> tuple[Any, Any]:
    """So many rows of random data: x, which is an array or a dict of them, and y."""

    def real(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    def gaps(*shape: int) -> Any:
        return np.where(rng.random(shape, np.float32) < 0.1, np.float32(np.nan), real(*shape))

    def categories() -> Any:
        return rng.integers(0, ENTRIES_OF, (rows, len(ENTRIES_OF)), np.int32)

    labels = rng.integers(0, CLASSES, rows)
    match entry.x:
        case "codes":
            x: Any = rng.integers(0, CODES, (rows, 8), np.int32)
        case "matrices":
            x = real(rows, 4, FEATURES // 4)
        case "several":
            x = {"numbers": real(rows, FEATURES // 2), "city": rng.integers(0, CITIES, (rows, 4), np.int32)}
        case "gaps":
            x = gaps(rows, FEATURES)
        case "categories":
            x = categories()
        case "table":
            x = {"numbers": gaps(rows, FEATURES // 2), "categories": categories()}
        case "triplets":
            x = real(rows, 3, FEATURES)
        case _:
            x = real(rows, FEATURES)
    match entry.y:
        case "bits":
            y: Any = rng.integers(0, 2, (rows, CLASSES)).astype(np.float32)
        case "numbers":
            y = real(rows, CLASSES)
        case "amounts":
            y = rng.standard_exponential((rows, CLASSES), np.float32) + np.float32(0.01)
        case "shares":
            y = rng.dirichlet(np.ones(CLASSES), rows).astype(np.float32)
        case "heads":
            y = np.concatenate([real(rows, 5), rng.integers(0, 7, (rows, 1)).astype(np.float32)], axis=1)
        case "nothing":
            y = np.zeros((rows, 1), np.float32)
        case _:
            y = labels
    return x, y


def outputs_of(entry: Entry) -> int:
    """How many outputs the network has for a row."""
    return {
        "gaussian_nll": 2 * CLASSES,
        "quantile": len(QUANTILES) * CLASSES,
        "Heads": 12,
        "Members": MEMBERS * CLASSES,
    }.get(entry.name, CLASSES)


def pool(entry: Entry, batch: int) -> list[tuple[Any, Any]]:
    """Batches to cycle through, the same for all contenders."""
    rng = np.random.default_rng([batch, zlib.crc32(entry.key.encode())])
    return [rows_of(entry, rng, batch) for _ in range(max(CHECKED_STEPS + 1, POOL_ROWS // batch))]
