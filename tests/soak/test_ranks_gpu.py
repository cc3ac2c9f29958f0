"""Ranks with a GPU each, as processes of MPI, on substitutes for devices and for NCCL: one of them is lost."""

import sys
from pathlib import Path

import numpy as np
import pytest
from support import substitute
from support.ranks import Run

sys.path.insert(0, str(Path(__file__).parent))
import ranked_gpu

import bpnet as bp

FATES = ("is killed", "stops", "hangs", "raises")


@pytest.mark.skipif(substitute.missing() != "", reason=substitute.missing() or "")
def test_a_rank_with_a_gpu_is_lost(soak, tmp_path):
    """All end, one says which rank it was, and the last checkpoint is good, for another number of ranks too."""
    rng, failures = np.random.default_rng(soak.seed), []
    count = soak.count(24, 1)
    longest = 0.0
    expected, x, y = ranked_gpu.task()
    expected.fit(x, y, epochs=4, batch_size=20, progress=False)
    for number in range(count):
        how, kind = ranked_gpu.HOW[number // len(FATES) % 3], FATES[(number + soak.seed) % len(FATES)]
        victim, step, folder = int(rng.integers(2)), int(rng.integers(4, 20)), tmp_path / str(number)
        ended = Run(2, ranked_gpu.train, how, kind, victim, step, str(folder)).end(100.0)
        what = f"{number}: rank {victim} {kind} at step {step}, by {how}: code {ended.code}, {ended.err[-1500:]}"
        if ended.code == 0 or ended.values or ended.left:
            failures.append(f"not all have ended: {what}")
        elif f"rank {victim}" not in ended.err and kind != "is killed":  # of which mpiexec speaks itself
            failures.append(f"it is not named: {what}")
        else:
            steps = [int(path.stem.partition("-")[2]) for path in folder.glob("step-*.safetensors")]
            if not steps or not 3 <= bp.load(folder / f"step-{max(steps):010}.safetensors").step_count <= step:
                failures.append(f"checkpoints of steps {steps}: {what}")
        longest = max(longest, ended.seconds)
        if number % 4 == 3:
            resumed = Run(3, ranked_gpu.train, how, "", -1, 0, str(folder)).end(100.0)
            if any(np.max(np.abs(theta - expected.theta)) > 1e-12 for theta, _ in resumed.values.values()):
                failures.append(f"resumed by three ranks it ends elsewhere: {what}")
            elif len(resumed.values) != 3:
                failures.append(f"it is not resumed by three ranks: {resumed.err[-1500:]}; {what}")
    soak.record(
        "ranks with a gpu", count, failures, f"on substitutes; the longest took {longest:.0f} s to the end of all"
    )
