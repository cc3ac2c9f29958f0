"""bpnet: the network of each entry, and `Trainer.step` on it."""

from __future__ import annotations

from typing import Any

import numpy as np

import bpnet as bp
from bench.catalogue.entries import (
    CITIES,
    CLASSES,
    CODES,
    ENTRIES_OF,
    FEATURES,
    MEMBERS,
    NOISE,
    OF_MEMBERS,
    QUANTILES,
    WIDTH,
    WIDTH_OF,
    Entry,
    outputs_of,
)


def network(entry: Entry) -> Any:
    """Three dense layers with the entry in or around the first two; of losses and optimizers as they are."""
    if entry.kind == "layers":
        return bp.Sequential(*layers(entry.name))
    between = [entry.name] if entry.kind == "activations" else ["relu"]
    ends: dict[str, list[Any]] = {"binary_cross_entropy": ["sigmoid"], "Members": [bp.Reshape((MEMBERS, CLASSES))]}
    last = ends.get(entry.name, [])
    return bp.Sequential(
        bp.Dense(WIDTH), *between, bp.Dense(WIDTH), *between, bp.Dense(outputs_of(entry)), *last
    )  # fmt: skip


def layers(name: str) -> list[Any]:
    last = bp.Dense(CLASSES)
    after: dict[str, Any] = {  # the dense layer
        "BatchNorm": bp.BatchNorm(), "LayerNorm": bp.LayerNorm(), "RMSNorm": bp.RMSNorm(),
        "GroupNorm": bp.GroupNorm(8), "Scale": bp.Scale(),
    }  # fmt: skip
    if name in after:
        return [bp.Dense(WIDTH), after[name], "relu", bp.Dense(WIDTH), after[name], "relu", last]
    behind: dict[str, Any] = {  # the activation
        "ActivityPenalty": bp.ActivityPenalty(l1=1e-3, l2=1e-3), "Dropout": bp.Dropout(NOISE),
        "AlphaDropout": bp.AlphaDropout(NOISE), "GaussianNoise": bp.GaussianNoise(NOISE), "Clamp": bp.Clamp(-1e3, 1e3),
    }  # fmt: skip
    if name in behind:
        return [bp.Dense(WIDTH), "relu", behind[name], bp.Dense(WIDTH), "relu", behind[name], last]
    instead: dict[str, Any] = {  # of the dense layer
        "Dense": bp.Dense(WIDTH), "WeightNorm": bp.WeightNorm(bp.Dense(WIDTH)),
        "SpectralNorm": bp.SpectralNorm(bp.Dense(WIDTH)), "Parallel": bp.Parallel("identity", bp.Dense(FEATURES)),
        "Bilinear": bp.Bilinear(WIDTH),
    }  # fmt: skip
    if name in instead:
        return [instead[name], "relu", instead[name], "relu", last]
    if name in ("GLU", "SwiGLU", "GeGLU"):
        gated = getattr(bp, name)(WIDTH)
        return [gated, gated, last]
    mean, spread = tuple(np.linspace(-1, 1, FEATURES)), tuple(np.linspace(0.5, 2, FEATURES))
    columns = bp.CategoricalInput(ENTRIES_OF, WIDTH_OF)
    first: dict[str, list[Any]] = {
        "NumericInput": [bp.NumericInput(mean, spread, 3.0, missing=range(FEATURES // 2, FEATURES))],
        "CategoricalInput": [columns],
        "TabularInput": [bp.TabularInput(bp.NumericInput(0.5, 2.0, 3.0), columns)],
        "Embedding": [bp.Embedding(CODES, 8), bp.Flatten()],
        "Flatten": [bp.Flatten()],
        "Inputs": [bp.Inputs(numbers="identity", city=bp.Sequential(bp.Embedding(CITIES, 8), bp.Flatten()))],
        "Standardize": [bp.Standardize(mean, spread)],
        "NumericEmbedding": [bp.NumericEmbedding()],
    }
    if name in first:
        return [*first[name], bp.Dense(WIDTH), "relu", bp.Dense(WIDTH), "relu", last]
    match name:
        case "BatchEnsemble":
            first_ = bp.BatchEnsemble(MEMBERS, WIDTH, "relu", "random_signs")
            return [first_, bp.BatchEnsemble(MEMBERS, WIDTH, "relu"), bp.MemberDense(MEMBERS, CLASSES)]
        case "MemberScale" | "MemberDense":
            scale = [bp.MemberScale(MEMBERS)] if name == "MemberScale" else []
            return [*scale, bp.Dense(WIDTH), "relu", bp.Dense(WIDTH), "relu", bp.MemberDense(MEMBERS, CLASSES)]
        case "Reshape":
            both = [bp.Reshape((8, WIDTH // 8)), bp.Scale(), "relu", bp.Reshape((WIDTH,))]
            return [bp.Dense(WIDTH), *both, bp.Dense(WIDTH), *both, last]
        case "Residual":
            return [bp.Dense(WIDTH), *[bp.Residual(bp.Dense(WIDTH, "tanh"))] * 2, last]
        case "Sequential":
            return [*[bp.Sequential(bp.Dense(WIDTH), "relu")] * 2, last]
        case "Shared":
            shared = bp.Shared(bp.Dense(WIDTH), "shared")
            return [bp.Dense(WIDTH), "relu", shared, "relu", shared, "relu", last]
    raise KeyError(name)


def loss(entry: Entry) -> Any:
    if entry.name in OF_MEMBERS:
        return bp.Members(bp.CrossEntropy())
    if entry.kind != "losses":
        return "cross_entropy"
    made = {
        "quantile": bp.Quantile(QUANTILES),
        "Heads": bp.Heads(bp.Head(bp.MeanSquaredError(), 5), bp.Head(bp.CrossEntropy(), 7)),
    }
    return made.get(entry.name, entry.name)


def optimizer(entry: Entry) -> Any:
    lr, sgd = entry.lr, bp.SGD(entry.lr)
    if entry.kind != "optimizers":
        return bp.Adam(lr, epsilon=1e-4)
    near_zero: dict[str, Any] = {  # where the usual epsilon makes signs of gradients that are only rounding
        name: (cls, {"epsilon": 1e-4} | more)
        for name, cls, more in (
            ("adam", bp.Adam, {}), ("amsgrad", bp.Adam, {"amsgrad": True}), ("adamw", bp.AdamW, {}),
            ("adabelief", bp.AdaBelief, {}), ("nadam", bp.NAdam, {}), ("radam", bp.RAdam, {}),
            ("adamax", bp.Adamax, {}), ("rmsprop", bp.RMSprop, {}), ("lamb", bp.LAMB, {}),
            ("schedule_free_adamw", bp.ScheduleFreeAdamW, {}), ("prodigy", bp.Prodigy, {}),
            ("adagrad", bp.Adagrad, {}), ("adadelta", bp.Adadelta, {}),
        )
    }  # fmt: skip
    if entry.name in near_zero:
        cls, options = near_zero[entry.name]
        return cls(lr, **options)
    match entry.name:
        case "Accumulate":
            return bp.Accumulate(sgd, 2)
        case "Clip":
            return bp.Clip(sgd, norm=0.1)
        case "ExponentialAverage":
            return bp.ExponentialAverage(sgd)
        case "GradientNoise":
            return bp.GradientNoise(sgd, eta=NOISE**2)
        case "Grouped":
            return bp.Grouped(sgd, {"*.bias": None})
        case "StochasticAverage":
            return bp.StochasticAverage(sgd, 0)
        case "sam":
            return bp.SAM(sgd)
        case "muon":
            return bp.Muon(lr, rest=bp.AdamW(1e-3, epsilon=1e-4))
    made: dict[str, Any] = {"sgd": bp.SGD, "lion": bp.Lion, "lars": bp.LARS, "lbfgs": bp.LBFGS,
                            "adafactor": bp.Adafactor}  # fmt: skip
    return made[entry.name](lr)


def trainer_of(entry: Entry, x: Any, **options: Any) -> Any:
    """A trainer that has been built for rows such as x."""
    trainer = bp.Trainer(network(entry), loss(entry), optimizer(entry), **options)
    trainer.build(x)
    return trainer


def start_values(entry: Entry, x: Any) -> dict[str, Any]:
    """Where all contenders start, by the names that the layout has; nothing is exactly 0 or 1 that is trained."""
    trainer, rng = trainer_of(entry, x, compile=False), np.random.default_rng(0)
    theta, buffers = trainer.layout.start(0)
    theta = theta + 0.02 * rng.standard_normal(theta.shape)
    named = trainer.layout.unpack(theta) | trainer.layout.unpack(buffers, buffers=True)
    return {name: np.asarray(value, np.float32) for name, value in named.items()}


class Bpnet:
    """`Trainer.step`, compiled or not."""

    def __init__(self, entry: Entry, start: dict[str, Any], x: Any, threads: int, compile: bool = True) -> None:
        self.trainer = trainer_of(entry, x, threads=threads, compile=compile)
        layout = self.trainer.layout
        self.start = np.concatenate([start[slot.name].reshape(-1) for slot in layout.parameters])
        self.trainer.parameters = layout.views(self.trainer.backend, self.start.copy())  # buffers are where all start

    def restore(self) -> None:
        self.trainer.theta[...] = self.start

    def put(self, array: Any) -> Any:
        return array

    def step(self, x: Any, y: Any) -> Any:
        return self.trainer.step(x, y, check=False)

    def value(self, loss: Any) -> float:
        return float(loss)

    def wait(self, loss: Any) -> None:
        pass


make = Bpnet
