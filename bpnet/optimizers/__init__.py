"""Optimizers, and what is put around them.  `base.py` says what one is."""

from bpnet.optimizers.adafactor import Adafactor
from bpnet.optimizers.adam import AdaBelief, Adam, Adamax, AdamW, NAdam, RAdam
from bpnet.optimizers.adaptive import Adadelta, Adagrad, RMSprop
from bpnet.optimizers.around import SAM, Accumulate, Around, Clip, GradientNoise
from bpnet.optimizers.averages import Average, ExponentialAverage, StochasticAverage
from bpnet.optimizers.base import ElementwiseOptimizer, Evaluate, Optimizer, State
from bpnet.optimizers.clipping import clip_by_global_norm
from bpnet.optimizers.groups import Grouped
from bpnet.optimizers.layerwise import LAMB, LARS
from bpnet.optimizers.lbfgs import LBFGS
from bpnet.optimizers.muon import Muon
from bpnet.optimizers.prodigy import Prodigy
from bpnet.optimizers.schedule_free import ScheduleFreeAdamW
from bpnet.optimizers.sgd import SGD, Lion

__all__ = [
    "LAMB", "LARS", "LBFGS", "SAM", "SGD", "Accumulate", "AdaBelief", "Adadelta", "Adafactor", "Adagrad", "Adam",
    "AdamW", "Adamax", "Around", "Average", "Clip", "ElementwiseOptimizer", "Evaluate", "ExponentialAverage",
    "GradientNoise", "Grouped", "Lion", "Muon", "NAdam", "Optimizer", "Prodigy", "RAdam", "RMSprop",
    "ScheduleFreeAdamW", "State", "StochasticAverage", "clip_by_global_norm",
]  # fmt: skip
