"""A training that another process resumes from a checkpoint ends with the same bits as one that nobody interrupted.

Networks, losses, optimizers and options are random; the step is too.
"""

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from support.resuming import BACKENDS, begun, resumed, usable


@pytest.fixture(scope="module")
def other():
    """Another process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


SAMPLE = {"numpy": 6, "numpy, compiled": 3, "torch": 3}


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_random_steps(backend, soak, tmp_path, other):
    if why := usable(backend):
        pytest.skip(why)
    steps, failures, cases, seed = [], [], soak.count(50, SAMPLE.get(backend, 1)), 1000 * soak.seed
    while len(steps) < cases:
        seed += 1
        folder, alone = tmp_path / "all", tmp_path / "alone"
        whole = begun(backend, seed, folder)
        if whole is not None:
            count, wanted = whole
            step = int(np.random.default_rng(seed).integers(1, count))
            alone.mkdir()
            shutil.copy(folder / f"step-{step:010}.safetensors", alone)
            found = other.submit(resumed, backend, seed, alone).result()
            steps.append(step)
            if found != wanted:
                why = found if " " in found else "other bits"
                failures.append(f"{backend}, problem {seed}, from step {step} of {count}: {why}")
            shutil.rmtree(alone)
        shutil.rmtree(folder, ignore_errors=True)
    soak.record("resume", len(steps), failures, f"{len(steps)} steps on {backend}, 0 ulp")
