"""Loss functions: each one's value, and its derivative with respect to the network's output, from one pass.

`base` says what a loss is; the others are in files by what their targets are.
"""

from bpnet.losses.base import ElementwiseLoss, Loss, RowLoss
from bpnet.losses.binary import (
    BinaryCrossEntropy,
    BinaryCrossEntropyWithLogits,
    BinaryFocal,
    Hinge,
    SquaredHinge,
)
from bpnet.losses.classes import CrossEntropy, Focal, KLDivergence, softmax_cross_entropy
from bpnet.losses.heads import Head, Heads
from bpnet.losses.likelihood import Gamma, GaussianNLL, Poisson, Tweedie
from bpnet.losses.regression import Huber, LogCosh, MeanAbsoluteError, MeanSquaredError, Quantile
from bpnet.losses.similarity import CosineSimilarity, Triplet

__all__ = [
    "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "BinaryFocal", "CosineSimilarity", "CrossEntropy",
    "ElementwiseLoss", "Focal", "Gamma", "GaussianNLL", "Head", "Heads", "Hinge", "Huber", "KLDivergence", "LogCosh",
    "Loss", "MeanAbsoluteError", "MeanSquaredError", "Poisson", "Quantile", "RowLoss", "SquaredHinge", "Triplet",
    "Tweedie", "softmax_cross_entropy",
]  # fmt: skip
