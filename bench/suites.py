"""Which cases belong to a run."""

from __future__ import annotations

from dataclasses import dataclass

from bench.contenders import ALL
from bench.measure import Case
from bench.workloads import WORKLOADS


@dataclass(frozen=True)
class Suite:
    """Cases, the contenders that meet in them, and how long each is measured."""

    about: str
    cases: tuple[Case, ...]
    contenders: tuple[str, ...] = tuple(ALL)
    rounds: int = 10
    seconds: float = 0.25


STRONGEST = (
    "bpnet",
    "bpnet-jit",
    "bpnet-cupy",
    "torch",
    "torch-compile",
    "jax",
    "numpy",
    "cupy",
    "floor",
    "floor-cupy",
)
PLAIN = tuple(name for name in STRONGEST if name != "torch-compile")  # which takes long to start


def _cases(key: str, batches: tuple[int, ...], dtype: str = "float32") -> tuple[Case, ...]:
    return tuple(Case(key, batch, dtype) for batch in batches)


SUITES = {
    "full": Suite(
        "every workload at every batch size, float64 for (a) too: hours",
        (
            *_cases("a", WORKLOADS["a"].batches),
            *_cases("a", (32, 512, 8192), "float64"),
            *(case for key in "bcde" for case in _cases(key, WORKLOADS[key].batches)),
        ),
    ),
    "targets": Suite(
        "every contender where the project has set itself targets: about an hour",
        (
            *_cases("a", (32, 128, 512, 2048, 8192, 32768, 65536)),
            *_cases("b", (32, 512, 8192)),
            *_cases("c", (32, 512, 8192)),
            *_cases("d", (32,)),
            *_cases("e", (4,)),
        ),
    ),
    "default": Suite(
        "training (a) with batches from 32 to 65536, beside the strongest peers: some minutes",
        tuple(Case("a", batch, modes=("step",)) for batch in (32, 128, 512, 2048, 8192, 32768, 65536)),
        PLAIN,
        rounds=7,
        seconds=0.2,
    ),
    "short": Suite(
        "each workload at a few batch sizes, both modes, beside the strongest peers: some minutes",
        (
            *_cases("a", (32, 128, 2048, 8192)),
            *_cases("b", (128,)),
            *_cases("c", (512,)),
            *_cases("d", (32,)),
            *_cases("e", (4,)),
        ),
        STRONGEST,
        rounds=7,
        seconds=0.15,
    ),
    "quick": Suite(
        "a first look: about a minute",
        (
            Case("a", 128, modes=("step",)),
            Case("a", 2048, modes=("step",)),
            Case("a", 8192, modes=("step",)),
            Case("d", 32, modes=("step",)),
            Case("e", 4, modes=("step",)),
        ),
        PLAIN,
        rounds=5,
        seconds=0.1,
    ),
}
