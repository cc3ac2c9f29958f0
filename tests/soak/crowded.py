"""Trains and predicts in many threads, and in forked, spawned and joblib's processes: `crowded.py WORK COMPILED COUNT`.

Whatever it is, the bits are those of one thread alone.
"""

import faulthandler
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import bpnet as bp

NETWORK = bp.Sequential(bp.Dense(40, "relu"), bp.BatchNorm(), bp.Dropout(0.3), bp.Dense(3))
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((1500, 10), "f4"), RNG.integers(0, 3, 1500)


def made(compiled: int, seed: int = 0) -> bp.Trainer:
    return bp.Trainer(NETWORK, "cross_entropy", bp.Adam(0.01), seed=seed, compile=bool(compiled)).build(X)


def fitted(compiled: int, seed: int, rows: int = 1500) -> str:
    """What a training leaves, as a hash."""
    trainer = made(compiled, seed)
    trainer.fit(X[:rows], Y[:rows], epochs=2, batch_size=rows // 2, progress=False)
    arrays = trainer.theta, trainer.buffers, *trainer.state, trainer.predict(X)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the calls give, each in a thread; an error in the place of what was to be."""
    results: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(i: int) -> None:
        try:
            start.wait()
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = repr(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def predictions(compiled: int, count: int) -> tuple[int, list[str]]:
    """Eight threads, each so many predictions of one trainer."""
    trainer = made(compiled)
    trainer.fit(X, Y, batch_size=100, progress=False)
    rows = [1, 7, 64, 1500]
    right = [trainer.predict(X[:n]).tobytes() for n in rows]

    def predict(seed: int) -> int:
        order = np.random.default_rng(seed).integers(0, len(rows), count)
        return sum(trainer.predict(X[: rows[i]]).tobytes() != right[i] for i in order)

    found = at_once([lambda seed=i: predict(seed) for i in range(8)])
    return 8 * count, [f"{wrong} predictions differ" for wrong in found if wrong]


def fits(compiled: int, count: int) -> tuple[int, list[str]]:
    """Four at once, each its own trainer."""
    right = [fitted(compiled, seed) for seed in range(4)]
    failures = []
    for _ in range(count):
        found = at_once([lambda seed=i: fitted(compiled, seed) for i in range(4)])
        failures += [f"fit {i} is {f}" for i, (f, r) in enumerate(zip(found, right, strict=True)) if f != r]
    return 4 * count, failures


def forks(compiled: int, count: int) -> tuple[int, list[str]]:
    """Children that are forked at any moment of another thread's training, and train."""
    right, failures, training = fitted(compiled, 1), [], True
    rng = np.random.default_rng(count)

    def train() -> None:
        while training:
            if fitted(compiled, 1) != right:
                failures.append("the parent's training differs")

    thread = threading.Thread(target=train)
    thread.start()
    for _ in range(count):
        time.sleep(rng.uniform(0.0, 0.02))
        child = os.fork()
        if not child:
            os._exit(0 if fitted(compiled, 1) == right else 3)
        end, done, status = time.monotonic() + 60.0, 0, 0
        while not done and time.monotonic() < end:
            time.sleep(0.005)
            done, status = os.waitpid(child, os.WNOHANG)
        if not done:  # it may hang before it gets to its first line
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        failures += [f"a child ended with {code}"] if code else []
    training = False
    thread.join()
    return count, failures


def spawned(compiled: int, count: int) -> tuple[int, list[str]]:
    right = [fitted(compiled, seed) for seed in range(count)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(fitted, [(compiled, seed) for seed in range(count)])
    return count, ["a spawned process differs"] * sum(f != r for f, r in zip(found, right, strict=True))


def loky(compiled: int, count: int) -> tuple[int, list[str]]:
    from joblib import Parallel, delayed

    right = [fitted(compiled, seed) for seed in range(count)]
    found = Parallel(2, backend="loky")(delayed(fitted)(compiled, seed) for seed in range(count))
    trainer = made(compiled)
    rows = Parallel(2, backend="loky")(delayed(trainer.predict)(X[i : i + 50]) for i in range(0, 1500, 50))
    alone = [trainer.predict(X[i : i + 50]) for i in range(0, 1500, 50)]
    same = np.concatenate(rows).tobytes() == np.concatenate(alone).tobytes()
    return count, ["joblib's process differs"] * (sum(f != r for f, r in zip(found, right, strict=True)) + (not same))


EXIT = """
import sys, threading, time
sys.path.insert(0, {folder!r})
from crowded import *
trainer = made({compiled})
trainer.fit(X, Y, progress=False)
def train():
    while True:
        trainer.fit(X, Y, batch_size=50, progress=False)
threading.Thread(target=train, daemon=True).start()
time.sleep({delay})
{end}
"""


def exits(compiled: int, count: int) -> tuple[int, list[str]]:
    """The interpreter ends while a daemon thread trains and the thread pools wait."""
    rng, failures = np.random.default_rng(7), []
    for i in range(count):
        end, status = (("", 0), ("sys.exit(5)", 5), ("raise SystemExit(6)", 6))[i % 3]
        text = EXIT.format(folder=os.path.dirname(__file__), compiled=compiled, delay=rng.uniform(0.0, 0.2), end=end)
        command = [sys.executable, "-X", "faulthandler", "-c", text]
        done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
        if (done.returncode, done.stderr) != (status, ""):
            failures.append(f"exit {i} ended with {done.returncode}: {done.stderr[-1500:]}")
    return count, failures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(1500.0, exit=True)
    works = {"predictions": predictions, "fits": fits, "forks": forks, "spawn": spawned, "loky": loky, "exit": exits}
    if sys.argv[1] == "forks":
        faulthandler.cancel_dump_traceback_later()
    cases, failed = works[sys.argv[1]](*map(int, sys.argv[2:4]))
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"cases": cases, "failures": failed}))
