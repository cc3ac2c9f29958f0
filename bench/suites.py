"""Which cases belong to a run."""

from __future__ import annotations

from dataclasses import dataclass

from bench.contenders import ALL
from bench.plan import Case
from bench.workloads import CUDA_BATCHES, PRECISIONS, WORKLOADS


@dataclass(frozen=True)
class Suite:
    """Cases, the contenders that meet in them, and how long each is measured."""

    about: str
    cases: tuple[Case, ...]
    contenders: tuple[str, ...] = tuple(ALL)
    rounds: int = 10
    seconds: float = 0.25
    cuda: tuple[Case, ...] = ()  # the cases on a GPU, the more important first
    limit: float | None = None  # seconds for all cases on a GPU: those that no longer fit are not begun


STRONGEST = (
    "bpnet",
    "bpnet-jit",
    "bpnet-cupy",
    "torch",
    "torch-compile",
    "torch-graph",
    "jax",
    "numpy",
    "cupy",
    "floor",
    "floor-cupy",
)
PLAIN = tuple(name for name in STRONGEST if name != "torch-compile")  # which takes long to start


def _cases(key: str, batches: tuple[int, ...], dtype: str = "float32") -> tuple[Case, ...]:
    return tuple(Case(key, batch, dtype) for batch in batches)


def _cuda(key: str, batch: int, precision: str, *contenders: str) -> Case:
    return Case(key, batch, modes=("step",), precision=precision, contenders=contenders)


PEERS = ("bpnet-cupy", "bpnet-cupy-steps", "torch", "torch-graph", "jax", "jax-steps")
OTHERS = ("bpnet-torch", "bpnet-jax", "cupy")
EVERYONE = (*PEERS, "bpnet-cupy-eager", "torch-compile", "roof-cupy")

EVERY_BATCH = tuple(
    _cuda(key, batch, precision, *EVERYONE, *(OTHERS if precision == "float32" else ()))
    for key in "agc"
    for precision in PRECISIONS
    for batch in CUDA_BATCHES
)
SHORT = (
    _cuda("a", 128, "float32", *PEERS, "bpnet-cupy-eager", *OTHERS),
    _cuda("a", 8192, "tf32", *PEERS),
    _cuda("g", 8192, "bfloat16", "bpnet-cupy", "torch", "torch-graph", "jax", "roof-cupy"),
    _cuda("a", 65536, "bfloat16", "bpnet-cupy", "torch", "torch-graph", "jax"),
    _cuda("c", 2048, "float32", *PEERS),
    _cuda("g", 8192, "tf32", "bpnet-cupy", "torch", "jax", "roof-cupy"),
    _cuda("g", 8192, "float32", "bpnet-cupy", "torch", "jax", "roof-cupy"),
    _cuda("a", 1024, "bfloat16", *PEERS),
    _cuda("a", 2048, "tf32", "bpnet-cupy", "torch-graph", "torch-compile"),  # which takes long to start
    _cuda("a", 262144, "float32", "bpnet-cupy", "torch", "jax"),
)
CROSSING = tuple(
    Case(key, batch, modes=("step",))
    for key, batches in (("a", (1, 32, 128, 512, 2048, 8192, 32768)), ("d", (1, 32, 512, 8192, 131072)))
    for batch in batches
)

SUITES = {
    "full": Suite(
        "every workload at every batch size, float64 for (a) too: hours",
        (
            *_cases("a", WORKLOADS["a"].batches),
            *_cases("a", (32, 512, 8192), "float64"),
            *(case for key in "bcde" for case in _cases(key, WORKLOADS[key].batches)),
        ),
        cuda=EVERY_BATCH,
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
        cuda=EVERY_BATCH,
    ),
    "default": Suite(
        "training (a) with batches from 32 to 65536, beside the strongest peers: some minutes",
        tuple(Case("a", batch, modes=("step",)) for batch in (32, 128, 512, 2048, 8192, 32768, 65536)),
        PLAIN,
        rounds=7,
        seconds=0.2,
        cuda=tuple(_cuda("a", batch, "float32", *PEERS) for batch in CUDA_BATCHES),
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
        cuda=SHORT,
        limit=450.0,
    ),
    "crossing": Suite(
        "bpnet alone, training (a) and (d) from one row to many: where a GPU overtakes the CPU; some minutes",
        CROSSING,
        ("bpnet", "bpnet-jit", "bpnet-cupy"),
        rounds=5,
        seconds=0.15,
        cuda=(*CROSSING, *(Case("a", batch, modes=("step",)) for batch in (131072, 262144))),
        limit=300.0,
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
        cuda=(_cuda("a", 128, "float32", *PEERS), _cuda("a", 8192, "tf32", *PEERS)),
        limit=150.0,
    ),
}
