"""Has trainings diverge and looks at what they say and leave: `diverging.py SEED COUNT`."""

import faulthandler
import json
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bpnet as bp
from bpnet.errors import DivergedError


@dataclass(frozen=True)
class Falls(bp.Layer):
    """x times a schedule's factor, which is 1 until it is NaN: a layer that breaks at a step."""

    factor: Any = 1.0
    schedulable = {"factor": lambda what, value: value}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        factor = run.value(self.factor)
        return x * factor, factor

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy * cache, {}


@dataclass(frozen=True)
class At(bp.Schedule):
    """One value, and another from a step on."""

    step: int
    before: float
    after: float

    def __call__(self, step: int) -> float:
        return self.after if step >= self.step else self.before


def everything(trainer: bp.Trainer) -> list[bytes]:
    return [array.tobytes() for array in (trainer.theta, trainer.buffers, *trainer.state)]


class Keep(bp.Callback):
    """Keeps all after every step."""

    def __init__(self, steps: dict[int, list[bytes]]) -> None:
        self.steps = steps

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.steps[trainer.step_count] = everything(trainer)


def network(depth: int, place: int, layer: Any) -> bp.Layer:
    layers: list[Any] = []
    for _ in range(depth):
        layers += [bp.Dense(8, "tanh"), bp.BatchNorm()]
    layers.append(bp.Dense(3))
    if layer is not None:
        layers.insert(place, layer)
    return bp.Sequential(*layers)


def wrong(rng: np.random.Generator, compiled: bool, folder: Path) -> str:
    """What is not as promised in a random case; empty where all is."""
    depth, batches, rows = int(rng.integers(1, 4)), 4, 16
    at = int(rng.integers(1, 3 * batches))  # steps before the one that breaks
    x, y = rng.standard_normal((batches * rows, 5)), rng.integers(0, 3, batches * rows)
    kind = str(rng.choice(["layer", "rate", "value", "steps"]))
    place = int(rng.integers(0, 2 * depth + 1))
    layer = Falls(At(at, 1.0, math.nan)) if kind in ("layer", "steps") else None
    rate = At(at, 1e-3, 1e3) if kind == "rate" else 1e-3  # a million times as much
    optimizer = (
        bp.SGD(rate, momentum=0.9) if kind == "rate" else rng.choice([bp.Adam(rate), bp.SGD(rate, momentum=0.9)])
    )
    loss = "mse" if kind == "rate" else "cross_entropy"
    net = network(depth, place, layer)
    if kind == "rate":
        net, y = bp.Sequential(bp.Dense(8), bp.Dense(8), bp.Dense(2)), x[:, :2]
    trainer = bp.Trainer(net, loss, optimizer, compile=compiled).build(x)
    steps = {0: everything(trainer)}
    options: dict[str, Any] = {"batch_size": rows, "shuffle": False, "progress": False}
    if kind == "value":  # a value that is too large to be squared, in one batch
        at = int(rng.integers(0, batches))
        net = bp.Sequential(bp.BatchNorm(), bp.Dense(3))
        trainer = bp.Trainer(net, loss, optimizer, compile=compiled).build(x)
        steps = {0: everything(trainer)}
        x[at * rows + 3, 2] = 1e200
    epochs = 40
    try:
        if kind == "steps":
            for step in range(epochs * batches):
                b = slice(step % batches * rows, (step % batches + 1) * rows)
                trainer.step(x[b], y[b])
                steps[trainer.step_count] = everything(trainer)
        else:
            trainer.fit(x, y, epochs=epochs, callbacks=[Keep(steps)], **options)
        return f"{kind}: not found"
    except DivergedError as error:
        text = str(error)
    named = re.search(r"diverged at step (\d+): (.*) is no longer finite", text)
    if named is None:
        return f"{kind}: {text}"
    step = int(named[1])
    if kind != "rate" and not at + 1 <= step <= at + 2:
        return f"{kind} at step {at + 1}: {text}"
    if kind in ("layer", "steps") and f"layer '{place}'" not in named[2]:
        return f"{kind} in layer {place}: {text}"
    if kind == "value" and "layer '0'" not in named[2]:
        return f"{kind}: {text}"
    if trainer.step_count >= step or (kind != "steps" and trainer.step_count != step - 1):
        return f"{kind}: back at step {trainer.step_count}: {text}"
    if everything(trainer) != steps[trainer.step_count]:
        return f"{kind}: not what there was after step {trainer.step_count}: {text}"
    if not all(np.isfinite(np.frombuffer(array, trainer.theta.dtype)).all() for array in everything(trainer)):
        return f"{kind}: what is left is not finite"
    path = folder / "model.safetensors"
    trainer.save(path)
    parameters = trainer.snapshot()
    theta = parameters[0][0].copy()
    theta[int(rng.integers(theta.size))] = math.nan
    trainer.restore(((theta, *parameters[0][1:]), parameters[1]))
    before = path.read_bytes()
    saved: list[Callable[[], Any]] = [lambda: trainer.save(path)]
    for save in saved:
        try:
            save()
            return f"{kind}: NaN was saved"
        except DivergedError:
            if path.read_bytes() != before:
                return f"{kind}: the file has changed"
    for call in (lambda: trainer.predict(x), lambda: trainer.evaluate(x, y), lambda: trainer.fit(x, y, **options)):
        try:
            call()
            return f"{kind}: NaN in the parameters was passed over"
        except DivergedError as error:
            if "layer" not in str(error):
                return f"{kind}: no layer is named: {error}"
    return ""


def main(seed: int, count: int) -> None:
    warnings.simplefilter("ignore")
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            faulthandler.dump_traceback_later(60.0, exit=True)
            text = wrong(np.random.default_rng((seed, i)), bool(i % 2), Path(folder))
            failures += [f"case {i}: {text}"] if text else []
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"cases": count, "failures": failures}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
