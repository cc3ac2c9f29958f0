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
    from bpnet import backends, errors, initializers, metrics, testing, typing
    from bpnet.backends import reference
    from bpnet.backpropagation import row_losses, value_and_grad
    from bpnet.callbacks import (
        Callback,
        CSVLogger,
        EarlyStopping,
        History,
        MLflow,
        ModelCheckpoint,
        Norms,
        Progress,
        ReduceOnPlateau,
        TensorBoard,
    )
    from bpnet.checking import BackendReport, check_backend
    from bpnet.inspection import Inspection, Summary, inspect
    from bpnet.layer import Composite, Layer, Leaf, Rng, Run
    from bpnet.layers.activations import Activation
    from bpnet.layers.activations.gates import GELU, HardSwish, Mish, SiLU
    from bpnet.layers.activations.others import Identity, LogSoftmax, Sine, Softmax
    from bpnet.layers.activations.parametric import Parametric, PReLU
    from bpnet.layers.activations.rectifiers import (
        CELU,
        ELU,
        SELU,
        LeakyReLU,
        ReLU,
        ReLU6,
        Softplus,
        Softshrink,
        SquaredReLU,
    )
    from bpnet.layers.activations.sigmoids import HardSigmoid, HardTanh, LogSigmoid, Sigmoid, Softsign, Tanh
    from bpnet.layers.activity import ActivityPenalty
    from bpnet.layers.bilinear import Bilinear
    from bpnet.layers.composition import Parallel, Residual, Sequential, Shared
    from bpnet.layers.dense import Dense
    from bpnet.layers.dropout import AlphaDropout, Dropout, GaussianNoise
    from bpnet.layers.embedding import Embedding
    from bpnet.layers.flatten import Flatten, Reshape
    from bpnet.layers.gated import GLU, GeGLU, SwiGLU
    from bpnet.layers.inputs import Inputs
    from bpnet.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
    from bpnet.layers.reparametrized import SpectralNorm, WeightNorm
    from bpnet.layers.scale import Scale
    from bpnet.layers.standardize import Standardize
    from bpnet.layout import Layout, layout_of
    from bpnet.learning_rate import LearningRateCurve, find_learning_rate
    from bpnet.loading import load
    from bpnet.losses import (
        BinaryCrossEntropy,
        BinaryCrossEntropyWithLogits,
        BinaryFocal,
        CosineSimilarity,
        CrossEntropy,
        ElementwiseLoss,
        Focal,
        Gamma,
        GaussianNLL,
        Head,
        Heads,
        Hinge,
        Huber,
        KLDivergence,
        LogCosh,
        Loss,
        MeanAbsoluteError,
        MeanSquaredError,
        Poisson,
        Quantile,
        RowLoss,
        SquaredHinge,
        Triplet,
        Tweedie,
    )
    from bpnet.minimize import minimize
    from bpnet.optimizers import (
        LAMB,
        LARS,
        LBFGS,
        SAM,
        SGD,
        Accumulate,
        AdaBelief,
        Adadelta,
        Adafactor,
        Adagrad,
        Adam,
        Adamax,
        AdamW,
        Clip,
        ElementwiseOptimizer,
        ExponentialAverage,
        GradientNoise,
        Grouped,
        Lion,
        Muon,
        NAdam,
        Optimizer,
        Prodigy,
        RAdam,
        RMSprop,
        ScheduleFreeAdamW,
        StochasticAverage,
    )
    from bpnet.penalties import L1, L2, Orthogonality, Penalty
    from bpnet.schedules import (
        Constant,
        Cosine,
        CosineRestarts,
        CosLog,
        Epochs,
        Exponential,
        FlatCosine,
        OneCycle,
        Polynomial,
        Schedule,
        StepDecay,
        WarmUp,
    )
    from bpnet.testing import GradientReport, check_gradients
    from bpnet.trainer import Trainer
    from bpnet.unit_variance import lsuv

__version__ = "0.1.0"

__all__ = [
    "CELU", "ELU", "GELU", "GLU", "L1", "L2", "LAMB", "LARS", "LBFGS", "SAM", "SELU", "SGD", "Accumulate", "Activation",
    "ActivityPenalty", "AdaBelief", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "AlphaDropout",
    "BackendReport", "BatchNorm", "Bilinear", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "BinaryFocal",
    "CSVLogger", "Callback", "Clip", "Composite", "Constant", "CosLog", "Cosine", "CosineRestarts", "CosineSimilarity",
    "CrossEntropy", "Dense", "Dropout", "EarlyStopping", "ElementwiseLoss", "ElementwiseOptimizer", "Embedding",
    "Epochs", "Exponential", "ExponentialAverage", "FlatCosine", "Flatten", "Focal", "Gamma", "GaussianNLL",
    "GaussianNoise", "GeGLU", "GradientNoise", "GradientReport", "GroupNorm", "Grouped", "HardSigmoid", "HardSwish",
    "HardTanh", "Head", "Heads", "Hinge", "History", "Huber", "Identity", "Inputs", "Inspection", "KLDivergence",
    "Layer", "LayerNorm", "Layout", "Leaf", "LeakyReLU", "LearningRateCurve", "Lion", "LogCosh", "LogSigmoid",
    "LogSoftmax", "Loss", "MLflow", "MeanAbsoluteError", "MeanSquaredError", "Mish", "ModelCheckpoint", "Muon", "NAdam",
    "Norms", "OneCycle", "Optimizer", "Orthogonality", "PReLU", "Parallel", "Parametric", "Penalty", "Poisson",
    "Polynomial", "Prodigy", "Progress", "Quantile", "RAdam", "RMSNorm", "RMSprop", "ReLU", "ReLU6", "ReduceOnPlateau",
    "Reshape", "Residual", "Rng", "RowLoss", "Run", "Scale", "Schedule", "ScheduleFreeAdamW", "Sequential", "Shared",
    "SiLU", "Sigmoid", "Sine", "Softmax", "Softplus", "Softshrink", "Softsign", "SpectralNorm", "SquaredHinge",
    "SquaredReLU", "Standardize", "StepDecay", "StochasticAverage", "Summary", "SwiGLU", "Tanh", "TensorBoard",
    "Trainer", "Triplet", "Tweedie", "WarmUp", "WeightNorm", "__version__", "backends", "check_backend",
    "check_gradients", "errors", "find_learning_rate", "initializers", "inspect", "layout_of", "load", "lsuv",
    "metrics", "minimize", "reference", "row_losses", "testing", "typing", "value_and_grad",
]  # fmt: skip

_HOMES = {
    "bpnet.backends": "reference",
    "bpnet.callbacks": "CSVLogger Callback EarlyStopping History MLflow ModelCheckpoint Norms Progress ReduceOnPlateau "
    "TensorBoard",
    "bpnet.backpropagation": "row_losses value_and_grad",
    "bpnet.checking": "BackendReport check_backend",
    "bpnet.inspection": "Inspection Summary inspect",
    "bpnet.layer": "Composite Layer Leaf Rng Run",
    "bpnet.layers.activations": "Activation",
    "bpnet.layers.activations.gates": "GELU HardSwish Mish SiLU",
    "bpnet.layers.activations.others": "Identity LogSoftmax Sine Softmax",
    "bpnet.layers.activations.parametric": "Parametric PReLU",
    "bpnet.layers.activations.rectifiers": "CELU ELU SELU LeakyReLU ReLU ReLU6 Softplus Softshrink SquaredReLU",
    "bpnet.layers.activations.sigmoids": "HardSigmoid HardTanh LogSigmoid Sigmoid Softsign Tanh",
    "bpnet.layers.activity": "ActivityPenalty",
    "bpnet.layers.composition": "Parallel Residual Sequential Shared",
    "bpnet.layers.dense": "Dense",
    "bpnet.layers.dropout": "AlphaDropout Dropout GaussianNoise",
    "bpnet.layers.embedding": "Embedding",
    "bpnet.layers.flatten": "Flatten Reshape",
    "bpnet.layers.bilinear": "Bilinear",
    "bpnet.layers.gated": "GLU GeGLU SwiGLU",
    "bpnet.layers.inputs": "Inputs",
    "bpnet.layers.normalization": "BatchNorm GroupNorm LayerNorm RMSNorm",
    "bpnet.layers.reparametrized": "SpectralNorm WeightNorm",
    "bpnet.layers.scale": "Scale",
    "bpnet.layers.standardize": "Standardize",
    "bpnet.layout": "Layout layout_of",
    "bpnet.loading": "load",
    "bpnet.learning_rate": "LearningRateCurve find_learning_rate",
    "bpnet.minimize": "minimize",
    "bpnet.optimizers": "LAMB LARS LBFGS SAM SGD Accumulate AdaBelief Adadelta Adafactor Adagrad Adam AdamW Adamax "
    "Clip ElementwiseOptimizer ExponentialAverage GradientNoise Grouped Lion Muon NAdam Optimizer Prodigy RAdam "
    "RMSprop ScheduleFreeAdamW StochasticAverage",
    "bpnet.schedules": "Constant CosLog Cosine CosineRestarts Epochs Exponential FlatCosine OneCycle "
    "Polynomial Schedule StepDecay WarmUp",
    "bpnet.losses": "BinaryCrossEntropy BinaryCrossEntropyWithLogits BinaryFocal CosineSimilarity CrossEntropy "
    "ElementwiseLoss Focal Gamma GaussianNLL Head Heads Hinge Huber KLDivergence LogCosh Loss "
    "MeanAbsoluteError MeanSquaredError Poisson Quantile RowLoss SquaredHinge Triplet Tweedie",
    "bpnet.penalties": "L1 L2 Orthogonality Penalty",
    "bpnet.testing": "GradientReport check_gradients",
    "bpnet.trainer": "Trainer",
    "bpnet.unit_variance": "lsuv",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # to a type checker it would say that every name exists

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
        elif name in __all__:  # a module
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
