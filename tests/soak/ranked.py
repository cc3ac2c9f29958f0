"""What ranks do in tests/soak/test_ranks.py."""

import mmap
import struct
import time

import numpy as np
from support.rank_work import act

import bpnet as bp

EVERY, ROWS, BATCH = 3, 96, 8
X = np.random.default_rng(0).standard_normal((ROWS, 6))
Y = np.argmax(X[:, :3], axis=1)


class Steps(bp.Callback):
    """Tells how many steps this rank has done, and does at one of them what it is asked for."""

    def __init__(self, path, rank, how, step):
        with open(f"{path}.{rank}", "r+b") as file:
            self.shared = mmap.mmap(file.fileno(), 8)
        self.how, self.step = how, step

    def on_step_end(self, trainer, step):
        self.shared[:] = struct.pack("<q", trainer.step_count)
        time.sleep(0.002)
        if trainer.step_count == self.step:
            act(self.how)


def train(ranks, folder, epochs, how="", step=-1, rank=-1):
    """A training that goes on from its checkpoints; at a step a rank does what `how` says."""
    net = bp.Sequential(bp.Dense(8, "tanh"), bp.Dropout(0.1), bp.Dense(3))
    distributed = None if ranks is None else Connected(ranks)
    trainer = bp.Trainer(net, "cross_entropy", bp.Adam(0.01), compile=False, distributed=distributed, threads=1)
    callbacks = [bp.ReduceOnPlateau(patience=3)]
    if ranks is not None:
        callbacks.append(Steps(f"{folder}/steps", ranks.rank, how if ranks.rank == rank else "", step))
    options = {} if folder is None else {"checkpoint": f"{folder}/run", "every": EVERY, "resume": True}
    options |= {"epochs": epochs, "batch_size": BATCH, "progress": False, "validation": (X[:20], Y[:20])}
    trainer.fit(X, Y, callbacks=callbacks, **options)
    return trainer.theta


class Connected:
    """Options of a trainer that stand for ranks which are connected."""

    def __init__(self, ranks):
        self.ranks = ranks

    def connect(self):
        return self.ranks


def told(folder):
    """How many steps each rank has done."""
    found = []
    for path in folder.glob("steps.*"):
        found.append(struct.unpack("<q", path.read_bytes())[0])
    return found


def begin(folder, count):
    for rank in range(count):
        (folder / f"steps.{rank}").write_bytes(struct.pack("<q", 0))
