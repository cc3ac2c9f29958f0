"""bpnet: backpropagation derived by hand, written once in the Array API, trained on whatever array comes in.

    import bpnet as bp

    net = bp.Sequential(bp.Dense(512, "relu"), bp.Dropout(0.2), bp.Dense(10))
    trainer = bp.Trainer(net, loss="cross_entropy", optimizer=bp.AdamW(1e-3), seed=0)
    trainer.fit(x, y, epochs=10, batch_size=256)

NumPy arrays train on the CPU, CuPy arrays on the GPU; no other line changes.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a type checker sees; a test holds it against `_HOMES`
    from bpnet import backends as backends
    from bpnet import errors as errors
    from bpnet import testing as testing
    from bpnet import typing as typing
    from bpnet.backends import reference as reference
    from bpnet.backpropagation import value_and_grad as value_and_grad
    from bpnet.callbacks import Callback as Callback
    from bpnet.callbacks import EarlyStopping as EarlyStopping
    from bpnet.callbacks import History as History
    from bpnet.callbacks import Progress as Progress
    from bpnet.layer import Composite as Composite
    from bpnet.layer import Layer as Layer
    from bpnet.layer import Leaf as Leaf
    from bpnet.layer import Rng as Rng
    from bpnet.layer import Run as Run
    from bpnet.layers.activation import ELU as ELU
    from bpnet.layers.activation import GELU as GELU
    from bpnet.layers.activation import Activation as Activation
    from bpnet.layers.activation import Identity as Identity
    from bpnet.layers.activation import LeakyReLU as LeakyReLU
    from bpnet.layers.activation import ReLU as ReLU
    from bpnet.layers.activation import Sigmoid as Sigmoid
    from bpnet.layers.activation import SiLU as SiLU
    from bpnet.layers.activation import Softmax as Softmax
    from bpnet.layers.activation import Softplus as Softplus
    from bpnet.layers.activation import Tanh as Tanh
    from bpnet.layers.composition import Residual as Residual
    from bpnet.layers.composition import Sequential as Sequential
    from bpnet.layers.dense import Dense as Dense
    from bpnet.layers.dropout import Dropout as Dropout
    from bpnet.layers.flatten import Flatten as Flatten
    from bpnet.layers.normalization import BatchNorm as BatchNorm
    from bpnet.layers.standardize import Standardize as Standardize
    from bpnet.layout import Layout as Layout
    from bpnet.layout import layout_of as layout_of
    from bpnet.loading import load as load
    from bpnet.losses import BinaryCrossEntropy as BinaryCrossEntropy
    from bpnet.losses import BinaryCrossEntropyWithLogits as BinaryCrossEntropyWithLogits
    from bpnet.losses import CrossEntropy as CrossEntropy
    from bpnet.losses import ElementwiseLoss as ElementwiseLoss
    from bpnet.losses import Loss as Loss
    from bpnet.losses import MeanSquaredError as MeanSquaredError
    from bpnet.optimizers import SGD as SGD
    from bpnet.optimizers import Adam as Adam
    from bpnet.optimizers import AdamW as AdamW
    from bpnet.optimizers import ElementwiseOptimizer as ElementwiseOptimizer
    from bpnet.optimizers import Optimizer as Optimizer
    from bpnet.schedules import Constant as Constant
    from bpnet.schedules import Cosine as Cosine
    from bpnet.schedules import Schedule as Schedule
    from bpnet.schedules import WarmUp as WarmUp
    from bpnet.testing import GradientReport as GradientReport
    from bpnet.testing import check_gradients as check_gradients
    from bpnet.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOMES = {
    "bpnet.layers.dense": ("Dense",),
    "bpnet.layers.activation": (
        "Activation", "ELU", "GELU", "Identity", "LeakyReLU", "ReLU", "Sigmoid", "SiLU", "Softmax", "Softplus", "Tanh",
    ),
    "bpnet.layers.composition": ("Residual", "Sequential"),
    "bpnet.layers.dropout": ("Dropout",),
    "bpnet.layers.flatten": ("Flatten",),
    "bpnet.layers.normalization": ("BatchNorm",),
    "bpnet.layers.standardize": ("Standardize",),
    "bpnet.layer": ("Composite", "Layer", "Leaf", "Rng", "Run"),
    "bpnet.losses": (
        "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "CrossEntropy", "ElementwiseLoss", "Loss",
        "MeanSquaredError",
    ),
    "bpnet.optimizers": ("Adam", "AdamW", "ElementwiseOptimizer", "Optimizer", "SGD"),
    "bpnet.schedules": ("Constant", "Cosine", "Schedule", "WarmUp"),
    "bpnet.layout": ("Layout", "layout_of"),
    "bpnet.backends": ("reference",),
    "bpnet.backpropagation": ("value_and_grad",),
    "bpnet.trainer": ("Trainer",),
    "bpnet.loading": ("load",),
    "bpnet.callbacks": ("Callback", "EarlyStopping", "History", "Progress"),
    "bpnet.testing": ("GradientReport", "check_gradients"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("backends", "errors", "testing", "typing")

__all__ = ["__version__", *sorted(_HOME), *_MODULES]


if not TYPE_CHECKING:  # to a type checker it would say that every name exists

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
        elif name in _MODULES:
            value = importlib.import_module(f"bpnet.{name}")
        else:
            closest = importlib.import_module("bpnet.errors").closest
            meant = None if name.startswith("_") else closest(name, __all__)
            hint = f": did you mean {meant!r}?" if meant else ""
            raise AttributeError(f"module 'bpnet' has no attribute {name!r}{hint}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
