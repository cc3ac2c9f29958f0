"""Models as object files: random networks give the bits that the trainer gives, and the same model the same bytes."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.networks import drawn

import bpnet as bp

MAKES = """
import sys, numpy as np, bpnet as bp
network = bp.Sequential(bp.Dense(9, "gelu"), bp.BatchNorm(), bp.Dense(3))
trainer = bp.Trainer(network, "cross_entropy", seed=0).build(np.zeros((2, 5), "float32"))
bp.files.to_c(trainer, sys.argv[1] + "/model")
"""


@pytest.fixture(autouse=True)
def _can():
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    if sys.platform == "win32" or shutil.which("cc") is None:
        pytest.skip("there is no C compiler called cc")


def test_c(soak, tmp_path):
    """Of the whole catalogue, all rows at once and one by one, in both types, for this processor and others."""
    from bpnet.compiler.llvm import processor

    first, failures, cpus = 10_000 * soak.seed, [], processor.choices()
    seeds = range(first, first + soak.count(300, 8))
    for seed in seeds:
        dtype, cpu = ("float32", "float64")[seed % 2], cpus[seed % len(cpus)]
        problem = drawn(seed)[0]
        x, _, _ = problem.batch(lambda a, dtype=dtype: a if a.dtype.kind in "iub" else a.astype(dtype))
        trainer = problem.trainer(True).build(x)
        want = trainer.predict(x)
        _, code = bp.files.to_c(trainer, tmp_path / f"m{seed}", name="m", cpu=cpu, block=8)
        shared = code.with_suffix(".so")
        subprocess.run(["cc", "-shared", "-o", shared, code, "-lm"], check=True)
        library = ctypes.CDLL(str(shared))
        if not library.m_supported():
            continue
        predict = library.m_predict
        allowed = 0.0 if cpu == "native" else np.abs(want).max() * (2e-6 if dtype == "float32" else 1e-14)
        takes = trainer.network.takes
        pairs = [(x[name], kind) for name, kind in takes] if isinstance(takes, tuple) else [(x, takes)]
        rows = [np.ascontiguousarray(a, dtype if kind is None else "int32") for a, kind in pairs]

        def given(some, like, predict=predict):
            y = np.empty_like(like)
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*some, y)]
            assert predict(*pointers[:-1], ctypes.c_int64(len(y)), pointers[-1]) == 0
            return y

        single = [given([np.ascontiguousarray(a[i : i + 1]) for a in rows], want[:1])[0] for i in range(len(want))]
        for how, found in (("all rows", given(rows, want)), ("one by one", np.array(single))):
            if not np.abs(found - want).max() <= allowed or not np.array_equal(found, single):
                failures.append(f"network {seed} in {dtype} for {cpu}, {how}: {np.abs(found - want).max():.1e} apart")
        shared.unlink()
    soak.record("export to C", len(seeds), failures, "the bits of Trainer.predict, but for other processors than this")


def test_the_same_bytes(soak, tmp_path):
    digests = set()
    for seed in range(soak.count(10, 2)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", MAKES, str(folder)], env=environment, check=True)
        digests.add(hashlib.sha256(b"".join((folder / f"model.{end}").read_bytes() for end in "ho")).hexdigest())
    soak.record("export to C, hash seeds", soak.count(10, 2), len(digests) - 1, "the same bytes")
