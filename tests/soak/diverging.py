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


class Plants(bp.Callback):
    """Puts NaN into one number of the parameters, buffers or optimizer state after a step."""

    def __init__(self, at: int, part: int, place: float) -> None:
        self.at, self.part, self.place = at, part, place
        self.leaf = ""

    def plant(self, trainer: bp.Trainer) -> None:
        (theta, buffers, state), count = trainer.snapshot()
        arrays = [theta.copy(), buffers.copy(), *(s.copy() for s in state)]
        vector = arrays[self.part]
        i = int(self.place * vector.size)
        vector[i] = math.nan
        trainer.restore(((arrays[0], arrays[1], tuple(arrays[2:])), count))
        slots = trainer.layout.buffers if self.part == 1 else trainer.layout.parameters
        name = next(slot.path[-1] for slot in slots if slot.part.start <= i < slot.part.stop)
        layer = next(slot.path[0] for slot in slots if slot.part.start <= i < slot.part.stop)
        self.leaf = f"{name} of layer '{layer}'"

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if trainer.step_count == self.at:
            self.plant(trainer)


def planted(rng: np.random.Generator, compiled: bool, folder: Path) -> str:
    """NaN from without: by a callback in `fit`, or between calls of `step`, which look at all of it now and then."""
    at, part = int(rng.integers(1, 12)), int(rng.integers(0, 3))
    plants = Plants(at, part, float(rng.random()))
    x, y = rng.standard_normal((64, 5)), rng.integers(0, 3, 64)
    trainer = bp.Trainer(network(2, 0, None), "cross_entropy", bp.Adam(0.01), compile=compiled).build(x)
    steps = {0: everything(trainer)}
    by_fit = bool(rng.integers(0, 2))
    name = f"{('theta', 'buffers', 'state')[part]} after step {at} by {'fit' if by_fit else 'step'}"
    try:
        if by_fit:
            trainer.fit(x, y, epochs=4, batch_size=16, callbacks=[Keep(steps), plants], progress=False)
        else:
            for _ in range(at + 40):
                trainer.step(x[:16], y[:16])
                steps[trainer.step_count] = everything(trainer)
                if trainer.step_count == at:
                    plants.plant(trainer)
        return f"{name}: not found"
    except DivergedError as error:
        text = str(error)
    if plants.leaf not in text:
        return f"{name}: {plants.leaf} is not named: {text}"
    if by_fit:
        if f"at step {at}:" not in text or everything(trainer) != steps[at]:
            return f"{name}: not found at its step, or not gone back to it: {text}"
        path = folder / "planted.safetensors"
        trainer.save(path)
        before = path.read_bytes()
        plants.plant(trainer)
        try:
            trainer.save(path)
            return f"{name}: NaN was saved"
        except DivergedError:
            return "" if path.read_bytes() == before else f"{name}: the file has changed"
    found = re.search(r"diverged at step (\d+)", text)
    if found is None or not at < int(found[1]) <= at + 33:
        return f"{name}: found when? {text}"
    return ""


def held_out(rng: np.random.Generator, compiled: bool, folder: Path) -> str:
    """Validation data that make NaN of finite parameters: all goes back to before the epoch."""
    x, y = rng.standard_normal((64, 5)), rng.integers(0, 3, 64)
    square = bp.Activation(lambda xp, z: z * z, lambda xp, z: 2.0 * z)
    net = bp.Sequential(bp.Dense(4, square), bp.Dense(3))
    trainer = bp.Trainer(net, "cross_entropy", compile=compiled).build(x)
    epochs, before = int(rng.integers(0, 4)), []
    if epochs:
        trainer.fit(x, y, epochs=epochs, batch_size=16, progress=False)
    before = everything(trainer)
    wrong = x[:20].copy()
    wrong[int(rng.integers(0, 20))] = 1e200
    try:
        trainer.fit(x, y, batch_size=16, validation=(wrong, y[:20]), progress=False)
        return "validation: not found"
    except DivergedError as error:
        if "validation data" not in str(error) or "layer '" not in str(error):
            return f"validation: {error}"
    return "" if everything(trainer) == before else "validation: not gone back to before the epoch"


def of_a_table(rng: np.random.Generator, compiled: bool, folder: Path) -> str:
    """Estimators and `train_table`, with a learning rate that is a million times as large, and more."""
    x, y = rng.standard_normal((64, 4)), rng.standard_normal(64)
    which = int(rng.integers(0, 2))
    lr = float(10.0 ** rng.uniform(*((160, 200), (20, 30))[which]))  # of float64, and float32
    calls: list[Callable[[], Any]] = [
        lambda: bp.MLPRegressor(hidden_layer_sizes=(8,), solver="sgd", learning_rate_init=lr, max_iter=20).fit(x, y),
        lambda: bp.train_table(
            {**{f"c{i}": x[:, i] for i in range(4)}, "y": y}, "y", hidden=[8], optimizer=bp.SGD(lr), epochs=20
        ),
    ]
    try:
        calls[which]()
        return f"{('estimator', 'train_table')[which]}: not found with the learning rate {lr:.1g}"
    except (DivergedError, ValueError) as error:  # as scikit-learn's own estimators raise, with the same text
        if not re.search(r"diverged at step \d+.*layer '", str(error)):
            return f"{('estimator', 'train_table')[which]}: {error}"
    return ""


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
            case = (wrong, planted, wrong, held_out, planted, of_a_table)[i // 2 % 6]
            text = case(np.random.default_rng((seed, i)), bool(i % 2), Path(folder))
            failures += [f"case {i}: {text}"] if text else []
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"cases": count, "failures": failures}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
