"""Interrupts calls at random moments and looks at what they leave: `interrupted.py SEED COUNT [NAME ...]`.

COUNT is how many interrupts are to come before the end of a call.
Even seeds interrupt by a timer of the system, odd ones by SIGINT from another thread.
"""

import faulthandler
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support.leftovers import Leftovers
from threadpoolctl import threadpool_limits

import bpnet as bp

HANGS = 60.0
"""Seconds after which a call hangs."""
NETWORK = bp.Sequential(bp.Dense(5, "relu"), bp.BatchNorm(), bp.Dropout(0.5), bp.Dense(3))
WIDE = bp.Sequential(bp.Dense(360, "relu"), bp.Dense(3))
"""Whose blocks, products and parameters several threads share."""
SPARSE = bp.Sequential(bp.Embedding(50, 2, sparse=True), bp.Flatten(), bp.BatchNorm(), bp.Dense(3))
SMOOTH = bp.Sequential(bp.Dense(5, "tanh"), bp.Dense(3))
FITS = {  # networks and optimizers of calls of `fit`
    "fit": (NETWORK, bp.AdamW(0.01)),
    "fit of many rows": (WIDE, bp.Adam(0.01)),
    "fit of sparse tables": (SPARSE, bp.Adam(0.01)),
    "fit by L-BFGS": (SMOOTH, bp.LBFGS()),
    "fit by Muon": (NETWORK, bp.Muon(0.01)),
    "fit with validation": (NETWORK, bp.SGD(bp.Cosine(0.1, 6), momentum=0.9)),
    "fit with checkpoints": (NETWORK, bp.Adam(0.01)),
}


def bits(trainer: bp.Trainer) -> list[bytes]:
    return [array.tobytes() for array in (trainer.theta, trainer.buffers, *trainer.state)]


class Keep(bp.Callback):
    """Keeps the bits after every step."""

    def __init__(self, steps: dict[int, list[bytes]]) -> None:
        self.steps = steps

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.steps[trainer.step_count] = bits(trainer)


class Trained:
    """Calls of one trainer, which may leave it at the end of any step, but nowhere else."""

    def __init__(self, name: str, compile: bool, folder: Path) -> None:
        self.name, self.compile, self.folder = name, compile, folder / f"{name} {compile}"
        network, optimizer = FITS.get(name, (WIDE if "many rows" in name else NETWORK, bp.AdamW(0.01)))
        rows, width = (2600, 200) if network is WIDE else (24, 4)
        rng = np.random.default_rng(0)
        self.x = rng.integers(0, 50, (rows, 3)) if network is SPARSE else rng.standard_normal((rows, width), "f4")
        self.y = rng.integers(0, 3, rows)
        self.trainer = bp.Trainer(network, "cross_entropy", optimizer, clip_norm=1.0, compile=compile, threads=2)
        self.first = self.trainer.build(self.x).snapshot()
        self.steps = {0: bits(self.trainer)}
        """The bits after each step that an interrupt may leave."""
        if name in FITS:
            self.fit(Keep(self.steps))
        else:
            for _ in range(10):
                self.trainer.step(self.x, self.y)
                self.steps[self.trainer.step_count] = bits(self.trainer)
        self.reset()
        self.outputs = self.trainer.predict(self.x).tobytes()
        self.call: Callable[[], Any] = {
            "steps": self.some_steps, "predictions": self.predictions, "file": self.file,
            "steps of many rows": self.some_steps, "predictions of many rows": self.predictions,
        }.get(name, self.fit)  # fmt: skip

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.trainer.restore(self.first)
        self.trainer.history = bp.History()

    def fit(self, *callbacks: bp.Callback) -> None:
        more: dict[str, Any] = {}
        if self.name == "fit with validation":
            callbacks = (*callbacks, bp.EarlyStopping(patience=9), bp.Progress(io.StringIO()))
            more = {"validation": (self.x, self.y), "metrics": ["accuracy"]}
        if self.name == "fit with checkpoints":
            more = {"checkpoint": self.folder / "saved", "every": 2, "resume": (self.folder / "saved").exists()}
        size = self.x.shape[0] // 2
        self.trainer.fit(self.x, self.y, epochs=3, batch_size=size, callbacks=callbacks, progress=False, **more)

    def some_steps(self) -> None:
        for i in range(4):
            self.trainer.step(self.x, self.y, check=bool(i % 2))

    def predictions(self) -> None:
        for _ in range(3):
            self.trainer.predict(self.x)
            self.trainer.evaluate(self.x, self.y)
            self.trainer.predict(self.x, batch_size=10)
            self.trainer.snapshot()

    def file(self) -> None:
        self.trainer.save(self.folder / "model.safetensors")
        bp.load(self.folder / "model.safetensors", like=self.x).predict(self.x)

    def wrong(self) -> list[str]:
        """What is not as it is to be after the call, interrupted or not."""
        trainer, found = self.trainer, []
        if bits(trainer) != self.steps[trainer.step_count]:
            found.append(f"parameters of no step, though {trainer.step_count} are counted")
        if self.name not in FITS and trainer.step_count < 9:
            trainer.step(self.x, self.y)
            if bits(trainer) != self.steps[trainer.step_count]:
                found.append("the next step is another")
        elif self.name == "fit with checkpoints":
            trainer = self.trainer = bp.Trainer(
                trainer.network, "cross_entropy", trainer.optimizer, clip_norm=1.0, compile=self.compile, threads=2
            ).build(self.x)
            self.fit()  # goes on from what was written
            if bits(trainer) != self.steps[6] or len(trainer.history) != 3:
                found.append("what was resumed is not what would have been")
        elif self.name in FITS and trainer.step_count % 2 == 0:
            trainer.history = bp.History([{"epoch": i + 1} for i in range(trainer.step_count // 2)])
            at = trainer.step_count
            if at < 6 and "validation" not in self.name:
                trainer.fit(self.x, self.y, batch_size=self.x.shape[0] // 2, progress=False)
                if bits(trainer) != self.steps[at + 2]:
                    found.append("the next epoch is another")
        trainer.restore(self.first)
        made: list[bytes] = []
        thread = threading.Thread(target=lambda: made.append(trainer.predict(self.x).tobytes()), daemon=True)
        thread.start()
        thread.join(HANGS / 2)
        if made != [self.outputs]:
            found.append("another thread can't predict, or not the same")
        return found


class Again:
    """Calls that leave nothing but what they give, which is the same when they are done again."""

    def __init__(self, name: str, compile: bool, folder: Path) -> None:
        self.name, self.compile = name, compile
        rng = np.random.default_rng(0)
        self.x, self.y = rng.standard_normal((60, 4), "f4"), rng.integers(0, 2, 60)
        self.columns = {f"x{i}": self.x[:, i] for i in range(3)} | {"c": np.where(self.x[:, 3] > 0, "a", "b")}
        self.call: Callable[[], Any] = {
            "compiling": self.compiling, "train_table": self.table,
            "estimator": self.estimator, "gradient": self.gradient,
        }[name]  # fmt: skip
        self.count = 0
        self.made = self.result()

    def reset(self) -> None:
        self.count += 1

    def compiling(self) -> bytes:
        from bpnet.compiler.llvm import jit

        if self.compile:  # machine code is read, or made, again
            jit._addresses.clear()
        trainer = bp.Trainer(NETWORK, "cross_entropy", bp.Adam(0.01), compile=self.compile)
        trainer.fit(self.x, self.y, batch_size=30, progress=False)
        return trainer.theta.tobytes()

    def table(self) -> Any:
        model = bp.train_table(self.columns, target=self.y, epochs=2, progress=False)
        return np.asarray(model.predict(self.columns)).tolist()

    def estimator(self) -> Any:
        found = bp.MLPClassifier(hidden_layer_sizes=(4,), max_iter=3, early_stopping=True, random_state=0).fit(
            self.x, self.y
        )
        return found.predict_proba(self.x).tobytes()

    def gradient(self) -> Any:
        theta = bp.Trainer(SMOOTH, "cross_entropy").build(self.x).theta
        value, grad = bp.value_and_grad(SMOOTH, "cross_entropy", theta, self.x, self.y)
        return float(value), grad.tobytes()

    def result(self) -> Any:
        return self.call()

    def wrong(self) -> list[str]:
        return ["done again, it gives something else"] if self.count % 5 == 0 and self.result() != self.made else []


NAMES = (
    *FITS, "steps", "steps of many rows", "predictions", "predictions of many rows", "file",
    "compiling", "train_table", "estimator", "gradient",
)  # fmt: skip


def main(seed: int, count: int, *names: str) -> None:
    warnings.simplefilter("ignore")  # as that a training of so few epochs has not converged
    armed, came, failures = False, 0, []

    def interrupt(*_: Any) -> None:
        nonlocal armed, came
        if armed:
            armed, came = False, came + 1
            raise KeyboardInterrupt

    rng = random.Random(seed)
    main_thread, asked, wait = threading.get_ident(), threading.Event(), 0.0

    def send() -> None:
        while True:
            asked.wait()
            asked.clear()
            time.sleep(wait)
            signal.pthread_kill(main_thread, signal.SIGINT)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    if seed % 2:
        threading.Thread(target=send, daemon=True).start()
    with tempfile.TemporaryDirectory() as name, threadpool_limits(2, user_api="blas"):
        kinds = [(n, c) for n in names or NAMES for c in (False, True)]
        works: list[Any] = []
        for n, c in kinds:
            faulthandler.dump_traceback_later(4 * HANGS, exit=True)
            works.append((Trained if n in FITS or n in NAMES[7:12] else Again)(n, c, Path(name)))
        seconds = {}
        for work in works:
            for _ in range(2):
                work.reset()
                start = time.perf_counter()
                work.call()
                seconds[work] = time.perf_counter() - start
        leftovers = Leftovers(Path(name))
        i = -1
        while came < count and i < 9 * count:
            i += 1
            faulthandler.dump_traceback_later(HANGS, exit=True)
            work = works[i % len(works)]
            work.reset()
            wait = rng.uniform(1e-6, 1.1 * seconds[work])
            at = came
            try:
                armed = True
                if seed % 2:
                    asked.set()
                else:
                    signal.setitimer(signal.ITIMER_REAL, wait)
                work.call()
                armed = False
            except KeyboardInterrupt:
                if came == at:
                    raise
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            found = leftovers.found()
            try:
                found += work.wrong()
            except Exception as error:
                found.append(f"not usable: {type(error).__name__}: {error}")
            failures += [f"case {i}, {work.name}, compile={work.compile}: {text}" for text in found]
            leftovers.found()
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"cases": came, "calls": i + 1, "failures": failures}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
