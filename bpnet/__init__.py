"""bpnet: backpropagation derived by hand, written once in the Array API, trained on whatever array comes in.

    import bpnet as bp

    net = bp.Sequential(bp.Dense(512, "relu"), bp.Dropout(0.2), bp.Dense(10))
    trainer = bp.Trainer(net, loss="cross_entropy", optimizer=bp.AdamW(1e-3), seed=0)
    trainer.fit(x, y, epochs=10, batch_size=256)

NumPy arrays train on the CPU, CuPy arrays on the GPU; no other line changes.
"""

from typing import TYPE_CHECKING, Any

from bpnet import names

if TYPE_CHECKING:  # what a type checker sees; a test holds it against `names.PUBLIC`
    from bpnet import backends, data, distributed, errors, files, initializers, metrics, plots, report, testing, typing
    from bpnet.backends import reference
    from bpnet.backpropagation import row_losses, value_and_grad
    from bpnet.callbacks.base import Callback
    from bpnet.callbacks.checkpoints import ModelCheckpoint
    from bpnet.callbacks.history import History
    from bpnet.callbacks.loggers import CSVLogger, MLflow, TensorBoard
    from bpnet.callbacks.monitors import EarlyStopping, ReduceOnPlateau
    from bpnet.callbacks.norms import Norms
    from bpnet.callbacks.progress import Progress
    from bpnet.checking import BackendReport, check_backend
    from bpnet.estimators.classifier import MLPClassifier
    from bpnet.estimators.regressor import MLPRegressor
    from bpnet.inspection import Inspection, Summary, inspect
    from bpnet.layer import Composite, Layer, Leaf, Rng, Run
    from bpnet.layers.activation import Activation
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
    from bpnet.layers.categorical import CategoricalInput
    from bpnet.layers.clamp import Clamp
    from bpnet.layers.composition import Parallel, Residual, Sequential, Shared
    from bpnet.layers.dense import Dense
    from bpnet.layers.dropout import AlphaDropout, Dropout, GaussianNoise
    from bpnet.layers.embedding import Embedding
    from bpnet.layers.flatten import Flatten, Reshape
    from bpnet.layers.gated import GLU, GeGLU, SwiGLU
    from bpnet.layers.inputs import Inputs
    from bpnet.layers.members import BatchEnsemble, MemberDense, MemberScale
    from bpnet.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
    from bpnet.layers.numeric import NumericInput
    from bpnet.layers.numeric_embedding import NumericEmbedding
    from bpnet.layers.reparametrized import SpectralNorm, WeightNorm
    from bpnet.layers.scale import Scale
    from bpnet.layers.standardize import Standardize
    from bpnet.layers.tabular import TabularInput
    from bpnet.layout import Layout, layout_of
    from bpnet.learning_rate import LearningRateCurve, find_learning_rate
    from bpnet.loading import load
    from bpnet.losses.base import ElementwiseLoss, Loss, RowLoss
    from bpnet.losses.binary import BinaryCrossEntropy, BinaryCrossEntropyWithLogits, BinaryFocal, Hinge, SquaredHinge
    from bpnet.losses.classes import CrossEntropy, Focal, KLDivergence
    from bpnet.losses.heads import Head, Heads
    from bpnet.losses.likelihood import Gamma, GaussianNLL, Poisson, Tweedie
    from bpnet.losses.members import Members
    from bpnet.losses.regression import Huber, LogCosh, MeanAbsoluteError, MeanSquaredError, Quantile
    from bpnet.losses.similarity import CosineSimilarity, Triplet
    from bpnet.minimization import minimize
    from bpnet.optimizers.adafactor import Adafactor
    from bpnet.optimizers.adam import AdaBelief, Adam, Adamax, AdamW, NAdam, RAdam
    from bpnet.optimizers.adaptive import Adadelta, Adagrad, RMSprop
    from bpnet.optimizers.around import SAM, Accumulate, Clip, GradientNoise
    from bpnet.optimizers.averages import ExponentialAverage, StochasticAverage
    from bpnet.optimizers.base import ElementwiseOptimizer, Optimizer
    from bpnet.optimizers.groups import Grouped
    from bpnet.optimizers.layerwise import LAMB, LARS
    from bpnet.optimizers.lbfgs import LBFGS
    from bpnet.optimizers.muon import Muon
    from bpnet.optimizers.prodigy import Prodigy
    from bpnet.optimizers.schedule_free import ScheduleFreeAdamW
    from bpnet.optimizers.sgd import SGD, Lion
    from bpnet.penalties import L1, L2, Orthogonality, Penalty
    from bpnet.plots.live import LivePlot
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
    from bpnet.tabular.model import TableModel
    from bpnet.tabular.schema import Schema
    from bpnet.tabular.search import search_table
    from bpnet.tabular.target import Target
    from bpnet.tabular.training import train_table
    from bpnet.testing import GradientReport, check_gradients
    from bpnet.trainer import Trainer
    from bpnet.unit_variance import lsuv

__version__ = "0.1.0"

__all__ = [
    "CELU", "ELU", "GELU", "GLU", "L1", "L2", "LAMB", "LARS", "LBFGS", "SAM", "SELU", "SGD", "Accumulate", "Activation",
    "ActivityPenalty", "AdaBelief", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "AlphaDropout",
    "BackendReport", "BatchEnsemble", "BatchNorm", "Bilinear", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits",
    "BinaryFocal", "CSVLogger", "Callback", "CategoricalInput", "Clamp", "Clip", "Composite", "Constant", "CosLog",
    "Cosine", "CosineRestarts", "CosineSimilarity", "CrossEntropy", "Dense", "Dropout", "EarlyStopping",
    "ElementwiseLoss", "ElementwiseOptimizer", "Embedding", "Epochs", "Exponential", "ExponentialAverage", "FlatCosine",
    "Flatten", "Focal", "Gamma", "GaussianNLL", "GaussianNoise", "GeGLU", "GradientNoise", "GradientReport",
    "GroupNorm", "Grouped", "HardSigmoid", "HardSwish", "HardTanh", "Head", "Heads", "Hinge", "History", "Huber",
    "Identity", "Inputs", "Inspection", "KLDivergence", "Layer", "LayerNorm", "Layout", "Leaf", "LeakyReLU",
    "LearningRateCurve", "Lion", "LivePlot", "LogCosh", "LogSigmoid", "LogSoftmax", "Loss", "MLPClassifier",
    "MLPRegressor", "MLflow", "MeanAbsoluteError", "MeanSquaredError", "MemberDense", "MemberScale", "Members", "Mish",
    "ModelCheckpoint", "Muon", "NAdam", "Norms", "NumericEmbedding", "NumericInput", "OneCycle", "Optimizer",
    "Orthogonality", "PReLU", "Parallel", "Parametric", "Penalty", "Poisson", "Polynomial", "Prodigy", "Progress",
    "Quantile", "RAdam", "RMSNorm", "RMSprop", "ReLU", "ReLU6", "ReduceOnPlateau", "Reshape", "Residual", "Rng",
    "RowLoss", "Run", "Scale", "Schedule", "ScheduleFreeAdamW", "Schema", "Sequential", "Shared", "SiLU", "Sigmoid",
    "Sine", "Softmax", "Softplus", "Softshrink", "Softsign", "SpectralNorm", "SquaredHinge", "SquaredReLU",
    "Standardize", "StepDecay", "StochasticAverage", "Summary", "SwiGLU", "TableModel", "TabularInput", "Tanh",
    "Target", "TensorBoard", "Trainer", "Triplet", "Tweedie", "WarmUp", "WeightNorm", "__version__", "backends",
    "check_backend", "check_gradients", "data", "distributed", "errors", "files", "find_learning_rate", "initializers",
    "inspect", "layout_of", "load", "lsuv", "metrics", "minimize", "plots", "reference", "report", "row_losses",
    "search_table", "testing", "train_table", "typing", "value_and_grad",
]  # fmt: skip


if not TYPE_CHECKING:  # to a type checker it would say that every name exists
    _find = names.on_demand(
        "bpnet",
        (
            "backends",
            "data",
            "distributed",
            "errors",
            "files",
            "initializers",
            "metrics",
            "plots",
            "report",
            "testing",
            "typing",
        ),
    )

    def __getattr__(name: str) -> Any:
        value = globals()[name] = _find(name)
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
