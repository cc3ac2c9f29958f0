"""A training of a random network, as it is and as it is resumed in another process."""

import hashlib
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import bpnet as bp
from bpnet.errors import BpnetError
from support import networks, substitute

BACKENDS = {  # module, its function that makes an array, and whether steps are compiled
    "numpy": ("numpy", "array", False),
    "numpy, compiled": ("numpy", "array", True),
    "torch": ("torch", "tensor", False),
    "jax": ("jax.numpy", "asarray", True),
    "cupy on a substitute": ("cupy", "asarray", "auto"),
}
BATCH, REPEATS = 5, 3
"""Rows of a batch, and how often the rows of a problem are taken over."""


class Drawn(bp.Callback):
    """Keeps how many steps it has seen, and what was lost at each."""

    def on_train_begin(self, trainer: bp.Trainer, epochs: int, steps: int) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.seen.append((step, float(trainer.step_loss)))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def usable(backend: str) -> str:
    """Why a backend can't be had here; empty where it can."""
    module = BACKENDS[backend][0]
    if module == "cupy":
        if why := substitute.missing():
            return why
        substitute.install()
    try:
        importlib.import_module("llvmlite" if "compiled" in backend else module)
    except ImportError as error:
        return str(error)
    return ""


def train(backend: str, seed: int, **options: Any) -> tuple[int, str]:
    """How many steps a training by that seed takes, and a hash of all that it ends with, but for times."""
    assert not usable(backend)
    module, maker, compile = BACKENDS[backend]
    make = getattr(importlib.import_module(module), maker)
    problem, rng = networks.drawn(seed)[0], np.random.default_rng((seed, 7))
    dtype = "float32" if rng.random() < 0.5 else "float64"

    def again(a: Any) -> Any:
        return make(np.concatenate([a] * REPEATS).astype(dtype if a.dtype.kind == "f" else a.dtype))

    x, y, weight = problem.batch(again)
    trainer = problem.trainer(compile)  # type: ignore[arg-type]
    stopping = bp.EarlyStopping("val_loss" if rng.random() < 0.7 else "loss", patience=2)
    callbacks: list[Any] = [Drawn(), stopping, bp.ReduceOnPlateau("loss", 0.5, patience=1)]
    some = {name: a[:7, ...] for name, a in x.items()} if isinstance(x, dict) else x[:7, ...]
    options |= {
        "epochs": 4,
        "batch_size": BATCH,
        "shuffle": bool(rng.random() < 0.8),
        "drop_last": bool(rng.random() < 0.3),
        "validation": (some, y[:7, ...]),
        "sample_weight": weight,
        "callbacks": callbacks,
        "progress": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(x, y, **options)
    (theta, buffers, state), count = trainer.snapshot()
    found = hashlib.sha256()
    for array in (theta, buffers, *state):
        found.update(trainer.backend.to_host(array).tobytes())
    records = [{**record, "seconds": 0.0} for record in trainer.history]
    found.update(repr((count, trainer.lr_scale, records, callbacks[0].seen, stopping.best, stopping.waited)).encode())
    return len(callbacks[0].seen), found.hexdigest()


def begun(backend: str, seed: int, folder: Path) -> tuple[int, str] | None:
    """The same with a checkpoint after every step in `folder`; None where the training can't be, or not be saved."""
    try:
        return train(backend, seed, checkpoint=folder, every=1, keep=10**6)
    except BpnetError:
        return None


def resumed(backend: str, seed: int, folder: Path) -> str:
    """The hash of the same resumed in `folder`, or the error."""
    try:
        return train(backend, seed, checkpoint=folder, resume=True)[1]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
