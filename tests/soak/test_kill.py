"""A process killed while it saves or writes checkpoints, at any moment: every file is whole, and little is lost.

At random moments by the thousand; and before and after every call that reaches the file system (support/syscalls.py).
What was killed goes on from what it left, and ends with the bits of a training that nobody killed.
"""

import mmap
import os
import shutil
import signal
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from support.syscalls import AVAILABLE, KILL_AFTER, KILL_BEFORE, trace

import bpnet as bp

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
EVERY = 3
ROWS, BATCH = 160, 8
X = np.random.default_rng(0).standard_normal((ROWS, 6)).astype("float32")
Y = np.argmax(X[:, :3], axis=1)


class Steps(bp.Callback):
    """Tells another process how many steps are done, and saves the trainer now and then."""

    def __init__(self, shared, path):
        self.shared, self.path = shared, path

    def on_step_end(self, trainer, step):
        self.shared[:8] = struct.pack("<q", trainer.step_count)
        if trainer.step_count % 2 == 0 and self.path is not None:
            trainer.save(self.path)
            self.shared[8:] = struct.pack("<q", trainer.step_count)


def train(seed, epochs, folder=None, shared=None, rows=ROWS):
    net = bp.Sequential(bp.Dense(8, "tanh"), bp.Dropout(0.1), bp.Dense(3))
    trainer = bp.Trainer(net, "cross_entropy", bp.Adam(0.01), seed=seed, compile=False)
    options = {"epochs": epochs, "batch_size": BATCH, "progress": False, "validation": (X[:20], Y[:20])}
    callbacks = [bp.ReduceOnPlateau(patience=3)]
    if folder is not None:
        options |= {"checkpoint": folder / "run", "every": EVERY, "resume": True}
        callbacks += [] if shared is None else [Steps(shared, folder / "model.safetensors")]
    trainer.fit(X[:rows], Y[:rows], callbacks=callbacks, **options)
    return trainer


def told(shared):
    return struct.unpack("<qq", shared[:])


def wrong(folder, steps, saved):
    """What is wrong with what was left when so many steps were done, and the trainer had been saved after so many."""
    found = []
    for path in [*(folder / "run").glob("*.safetensors"), folder / "model.safetensors"]:
        if path.exists():
            try:
                found.append((path.name, bp.load(path).step_count))
            except Exception as error:
                return f"{path.name}: {error}"
    counts = dict(found)
    newest = max((count for name, count in found if name.startswith("step-")), default=0)
    if newest < steps - EVERY:
        return f"after {steps} steps the newest checkpoint is of {newest}"
    if counts.get("model.safetensors", 0) < saved:
        return f"saved after {saved} steps, and the file is of {counts.get('model.safetensors')}"
    return None


def forked(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads, as Python and JAX say
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_at_random_moments(soak, tmp_path):
    rng = np.random.default_rng(soak.seed)
    cases, failures, done, trainings = soak.count(1000, 25), [], 0, 0
    epochs = 40 if not soak.sample else 8
    for seed in range(10**6):
        folder, shared = tmp_path / str(seed), mmap.mmap(-1, 16)
        folder.mkdir()
        status = -1
        while status != 0 and done < cases and not failures:
            shared[:] = struct.pack("<qq", 0, 0)
            pid = forked(lambda seed=seed, folder=folder, shared=shared: train(seed, epochs, folder, shared))
            limit = time.monotonic() + 20.0  # by which it has ended, if it does no step
            early, more, begun = rng.random() < 0.2, rng.integers(0, 20), 0
            while not early and time.monotonic() < limit:
                now = told(shared)[0]
                begun = begun or now
                if begun and (now >= begun + more or now == epochs * ROWS // BATCH):
                    break
                time.sleep(0.0002)
            time.sleep(rng.uniform(0.0, 0.1 if early else 0.01))  # early: while it takes up what was left
            status = end(pid)
            done += 1
            steps, saved = told(shared)
            if status not in (0, -signal.SIGKILL):
                failures.append(f"training {seed}: it ended by itself, with {status}")
            elif why := wrong(folder, steps, saved):
                failures.append(f"training {seed}: {why}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is passed over as damaged
            found = train(seed, epochs, folder)
        wanted, trainings = train(seed, epochs), trainings + 1
        if found.theta.tobytes() != wanted.theta.tobytes():
            failures.append(f"training {seed} ended otherwise than one that was not killed")
        left = [path.name for path in (folder / "run").iterdir() if path.name.endswith(".part")]
        if left:
            failures.append(f"training {seed} left {left}")
        shutil.rmtree(folder)
        if done >= cases or failures:
            break
    soak.record(
        "kill", done, failures, f"{done} random moments, {trainings} trainings ended with the bits of one never killed"
    )


def end(pid):
    """Kill a process; its exit status, or minus the signal."""
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@pytest.mark.skipif(not AVAILABLE, reason="calls are traced on Linux on x86-64 alone")
def test_at_every_call_of_the_file_system(soak, tmp_path):
    rows, epochs = 5 * BATCH, 3
    wanted, failures, cases = train(0, epochs, rows=rows).theta.tobytes(), [], 0
    folder = tmp_path / "folder"

    def begin():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shared = mmap.mmap(-1, 16)
        return shared, lambda: train(0, epochs, folder, shared, rows).step_count

    shared, run = begin()
    run()  # what is imported at first is not to be part of it
    shared, run = begin()
    whole = trace(run, folder)
    assert whole.result == epochs * 5, whole.error
    count = len(whole.calls)
    moments = [(number, action) for number in range(count) for action in (KILL_BEFORE, KILL_AFTER)]
    rng = np.random.default_rng(soak.seed)
    for i in sorted(rng.permutation(len(moments))[: soak.count(len(moments), 40)]):
        number, action = moments[i]
        shared, run = begin()
        done = trace(run, folder, lambda n, call, at=number, how=action: how if n == at else None)
        cases += 1
        where = f"{action} call {number}, {whole.calls[number].name} {Path(whole.calls[number].paths[0]).name}"
        if done.signal != signal.SIGKILL:
            failures.append(f"{where}: not killed, {done.error}")
        elif why := wrong(folder, *told(shared)):
            failures.append(f"{where}: {why}")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                if train(0, epochs, folder, rows=rows).theta.tobytes() != wanted:
                    failures.append(f"{where}: ended otherwise than one that was not killed")
    soak.record("kill", cases, failures, f"before and after each of {count} calls of the file system: {cases} cases")
