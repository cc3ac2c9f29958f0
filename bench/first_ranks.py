"""What a visit to a CUDA device asks about ranks: NCCL with one rank, in a captured step too, and a training of two.

    python -m bench.first_ranks FILE [--small]

Two ranks train with NCCL where there are two devices, and share one by MPI where there is one (and an mpiexec).  Facts
are lines of JSON, as those of `bench.first_minute`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cupy
import numpy as np

import bpnet as bp
from bench.first_minute import Facts, attempted, device_us
from bpnet.backends.base import State
from bpnet.backends.cupy import collectives

SIZES = {True: (1_000,), False: (675_000, 25_000_000)}
"""Elements of the vectors, in a rehearsal and on a device: of 2.7 MB and 100 MB."""
EPOCHS = 3

Say = Callable[..., None]


def alone() -> Any:
    """NCCL with one rank on the current device."""
    return collectives.NcclSums(1, 0, collectives.nccl().get_unique_id())


def sums(say: Say, small: bool) -> None:
    """Of one rank, which are the vector, or its elements to 8 bits: whether they are, and microseconds of each."""
    for dtype in (None, "bfloat16"):
        ranks = alone()
        for size in SIZES[small]:
            given = np.random.default_rng(0).standard_normal(size).astype("float32")
            vector = cupy.asarray(given)
            found = cupy.asnumpy(ranks.all_reduce(vector, 2, dtype))
            expected = given.copy()
            if dtype is not None:
                bits = given.view(np.uint32).astype(np.uint64)
                kept = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
                expected[:-2] = kept[:-2]
            with cupy.cuda.Stream(non_blocking=True) as stream:
                stream.begin_capture()
                ranks.all_reduce(vector, 2, dtype)
                graph = stream.end_capture()
            times = 5 if small else 100
            say(
                "sum",
                nccl=ranks.nccl.get_version(),
                sent=dtype or "float32",
                size=size,
                right=bool((found == expected).all()),
                us=device_us(partial(ranks.all_reduce, vector, 2, dtype), times),
                captured_us=device_us(graph.launch, times),
                counted=[int(n) for n in ranks.counted],
                error=ranks.error(),
            )


def step(say: Say, small: bool) -> None:
    """A captured step with a sum over ranks in its graph, against the same step launched command by command."""
    seam, ranks = bp.backends.get("cupy"), alone()
    x = cupy.asarray(np.random.default_rng(1).standard_normal((64, 32)).astype("float32"))

    def of(backend: Any, carry: Any, x: Any, number: Any) -> Any:
        (w,) = carry
        gradient = backend.xp.sum(x * backend.xp.sum(x * w, axis=1, keepdims=True), axis=0)
        gradient = backend.outside(lambda _, vector: ranks.all_reduce(vector), gradient, "a sum", captured=True)
        return (w - 0.001 * gradient,), backend.xp.sum(gradient)

    results = []
    for captures in (False, True):
        compiled: Any = seam.compile(of, donate=True)
        compiled.captures = captures
        state = State((cupy.ones(32, "float32"),), 0)
        with seam.session(device=x.device):
            for count in range(8):
                seam.advance(compiled, state, (x, count), count + 1)
            results.append(cupy.asnumpy(state.now[0][0]))
            graphs = sum(len(program.graphs) for program in compiled.programs.values())
    say("step with a sum", equal=bool((results[0] == results[1]).all()), graphs=graphs)


def two(say: Say, small: bool) -> None:
    """Two ranks against one process with the same global batches, in float64."""
    program = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None or find_spec("mpi4py") is None:
        say("two ranks", why="there is no mpiexec, or no mpi4py")
        return
    how = "nccl" if collectives.device_count() > 1 else "mpi"
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "theta.npy"
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
        command = [program, "-n", "2", sys.executable, "-m", "bench.first_ranks", str(found), "--train", how]
        done = subprocess.run(command, env=os.environ | root, capture_output=True, text=True, timeout=100)
        if done.returncode:
            raise RuntimeError(f"{how}: {done.stderr[-2000:]}")
        start, one = trained(None)
        apart = float(np.linalg.norm(np.load(found) - one) / np.linalg.norm(one - start))
    say("two ranks", how=how, devices=collectives.device_count(), apart=apart, ok=apart <= 1e-12)


def trained(distributed: Any) -> tuple[Any, Any]:
    """Parameters before and after a training."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((150, 30)), rng.integers(0, 5, 150)
    network = bp.Sequential(bp.Dense(64, "relu"), bp.Dropout(0.2), bp.Dense(5))
    trainer = bp.Trainer(network, "cross_entropy", "adamw", device="cuda", distributed=distributed)
    start = cupy.asnumpy(trainer.build(x).theta).copy()
    trainer.fit(x, y, epochs=EPOCHS, batch_size=50, progress=False)
    return start, cupy.asnumpy(trainer.theta)


PARTS = {part.__name__: part for part in (sums, step, two)}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.first_ranks", description=__doc__)
    top.add_argument("file", type=Path)
    top.add_argument("--small", action="store_true", help="small vectors, for a rehearsal")
    top.add_argument("--train", metavar="HOW", help="as one of several ranks: train, and write the parameters to FILE")
    options = top.parse_args()
    if options.train:
        np.save(options.file, trained(options.train)[1])
        return 0
    return attempted(PARTS, Facts(options.file).say, options.small)


if __name__ == "__main__":
    raise SystemExit(main())
