"""Efficiency on up to 1,024 GPUs as the model predicts it, from published figures: nothing of this was measured.

A step of a network of P parameters on b rows a GPU is

    t(n) = K tau + (28 + 12) P / M + b F / (f X) + t_all-reduce(n, 4 P) (1 + e),      times (1 + sigma z(n))

with K kernels in the captured step of tau seconds each; parameters read in three products and read and written by Adam
through a memory of M bytes a second; F floating-point operations a row at a fraction f of the peak X; an all-reduce of
float32 after the backward pass, by NCCL; the relative error e that the fitted model had on measurements held out; and
the expected largest z(n) of n standard normal numbers, since all wait for the slowest GPU, whose steps vary by sigma.

The time of the all-reduce is NCCL's own model (`src/graph/tuning.cc`, 2.28), by which it chooses between rings and
double binary trees (Sanders, Speck, Traeff 2009) and among its protocols: latencies inside a node and between nodes are
counted apart, so both are hierarchical.  `two_level` is the textbook's instead, to hold it against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from bench.scaling.model import terms
from bench.workloads import WORKLOADS, Workload

Array = np.ndarray[Any, Any]
Rng = np.random.Generator

SAMPLES = 400
BAND = (10.0, 90.0)
"""Percentiles of the samples between which a band lies."""


@dataclass(frozen=True)
class Assumed:
    """A figure that is taken from elsewhere: samples are log-uniform between its bounds."""

    low: float
    typical: float
    high: float
    unit: str
    source: str

    def draw(self, rng: Rng) -> float:
        return float(np.exp(rng.uniform(math.log(self.low), math.log(self.high))))


H100 = "NVIDIA H100 datasheet, SXM"
TUNING = "NCCL 2.28, src/graph/tuning.cc"

ASSUMED = {
    "peak": Assumed(494e12, 494e12, 494e12, "FLOP/s", f"X: TF32, dense: {H100}, 989 TFLOP/s with sparsity"),
    "fraction": Assumed(0.25, 0.4, 0.6, "", "f: of products of a thousand rows and more; our assumption"),
    "memory": Assumed(2.2e12, 2.7e12, 3.0e12, "B/s", f"M: {H100}, 3.35 TB/s, of which 65% to 90%"),
    "kernel": Assumed(1.5e-6, 2.5e-6, 5e-6, "s", "tau: a small kernel inside a CUDA graph; our assumption"),
    "nvlink": Assumed(
        320e9, 370e9, 400e9, "B/s", "of 450 GB/s a direction NCCL gets 370 (its authors: NVIDIA/nccl-tests issue 212)"
    ),
    "nic": Assumed(
        40e9, 47e9, 48e9, "B/s", "of NDR's 400 Gb/s one sees 46 to 48 GB/s (its authors: NVIDIA/nccl-tests issue 290)"
    ),
    "latency": Assumed(0.6, 1.0, 2.5, "x", f"factor of all latencies in {TUNING}; range our assumption"),
    "sigma": Assumed(0.002, 0.01, 0.03, "", "a step's relative deviation from GPU to GPU; our assumption"),
}
PROTOCOLS = ("LL", "LL128", "Simple")
BASE = {"tree": (6.8e-6, 14.0e-6, 8.4e-6), "ring": (6.6e-6, 14.0e-6, 8.4e-6)}
INSIDE = {"tree": (0.6e-6, 1.25e-6, 4.0e-6), "ring": (0.6e-6, 1.9e-6, 3.4e-6)}
BETWEEN = {"tree": (5.0e-6, 8.5e-6, 14.0e-6), "ring": (2.7e-6, 4.0e-6, 14.0e-6)}
LL_MOST = (141e9, 45e9, 35e9)  # Hopper, on one, two, and four and more nodes
TREE_SHARE = {  # of the bandwidth, by the power of two of the size above 64 bytes
    "LL": (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    "LL128": (1, 1, 1, 1, 1, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9, 1),
    "Simple": (*(0.9,) * 7, 0.8, 0.7, 0.6, 0.6, *(0.5,) * 4, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9),
}
"""Latencies in seconds by protocol, and what bounds bandwidths, in NCCL's model."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs that NVLink joins, and their network cards, in numbers that may be drawn."""

    gpus: int = 8  # of a node
    nics: int = 8
    peak: float = ASSUMED["peak"].typical
    fraction: float = ASSUMED["fraction"].typical
    memory: float = ASSUMED["memory"].typical
    kernel: float = ASSUMED["kernel"].typical
    nvlink: float = ASSUMED["nvlink"].typical
    nic: float = ASSUMED["nic"].typical
    latency: float = ASSUMED["latency"].typical
    sigma: float = ASSUMED["sigma"].typical
    error: float = 0.0  # e: relative, of the time of an all-reduce

    def drawn(self, rng: Rng, spread: float) -> Cluster:
        """One of the clusters that the assumptions allow."""
        chosen = {f.name: ASSUMED[f.name].draw(rng) for f in fields(self) if f.name in ASSUMED}
        return replace(self, **chosen, error=math.expm1(rng.normal(0.0, spread)))  # type: ignore[arg-type]

    def bus(self, nodes: int) -> float:
        """Bytes a second that each GPU's ring carries."""
        return self.nvlink if nodes == 1 else min(self.nvlink, self.nics * self.nic)

    def nccl(self, n: int, m: float) -> tuple[float, str]:
        """Seconds of an all-reduce of m bytes on n GPUs, and what NCCL's model chooses for it."""
        if n == 1:
            return 0.0, "none"
        nodes = -(-n // self.gpus)
        bus = self.bus(nodes)
        most = LL_MOST[0 if nodes == 1 else 1 if nodes == 2 else 2]
        place = max(0, int(math.log2(max(64.0, m) / 64)))
        found = []
        for protocol, name in enumerate(PROTOCOLS):
            inside = INSIDE["ring"][protocol] * (1.8 if nodes > 1 and name == "LL" else 1.0)
            steps, crossing = 2 * (n - 1), 2 * nodes if nodes > 1 else 0
            hops = (steps - crossing) * inside + crossing * BETWEEN["ring"][protocol]
            if name == "Simple" and nodes > 1:
                hops *= 1.4
            rate = {"LL": min(most, bus / 2), "LL128": 0.92 * bus, "Simple": bus}[name] * n / steps
            found.append((self.latency * (BASE["ring"][protocol] + hops) + m / rate, f"ring, {name}"))
            inside = INSIDE["tree"][protocol] * (1.8 if nodes > 1 and name == "LL" else 1.0)
            depth = (min(n, self.gpus) - 1) * inside + math.floor(math.log2(nodes)) * BETWEEN["tree"][protocol]
            rate = {
                "LL": min(most, 0.92 * bus / 3.8),
                "LL128": 0.92 * bus * (7 / 9 if nodes == 1 else 120 / 128),
                "Simple": 0.92 * bus,
            }[name] / 2
            shares = TREE_SHARE[name]
            rate *= shares[place] if place < len(shares) else 1.0
            found.append((self.latency * (BASE["tree"][protocol] + 2 * depth) + m / rate, f"tree, {name}"))
        return min(found)

    def two_level(self, n: int, m: float) -> float:
        """The textbook's: reduced and scattered inside a node, all-reduced between nodes, gathered inside a node.

        Each GPU then speaks for its share of m with those of its place on other nodes, over its share of the cards:

            2 (g-1) alpha_1 + 2 (g-1)/g m beta_1  +  A(N) alpha_2 + B(N, m/g) beta_2        for N nodes of g GPUs.
        """
        g = min(n, self.gpus)
        nodes = -(-n // self.gpus)
        inside = 2 * (g - 1) * self.latency * INSIDE["ring"][2] + 2 * (g - 1) / g * m / self.nvlink
        between = []
        for algorithm in ("ring", "Rabenseifner"):
            a, b, _ = terms(algorithm, nodes, m / g)
            between.append(a * self.latency * BETWEEN["ring"][2] + b / (self.nic * self.nics / self.gpus))
        return inside + min(between)

    def compute(self, workload: Workload, rows: float) -> float:
        """Seconds of a step on one GPU alone."""
        parameters = workload.parameter_count()
        kernels = 6 * len(workload.dense()) + 4
        products = rows * workload.product_flops(1) / (self.fraction * self.peak)
        return kernels * self.kernel + (28 + 12) * parameters / self.memory + products

    def step(self, workload: Workload, rows: float, n: int) -> float:
        """Seconds of a step on n GPUs of `rows` rows each."""
        reduce = self.nccl(n, 4.0 * workload.parameter_count())[0] * (1.0 + self.error)
        return (self.compute(workload, rows) + reduce) * (1.0 + self.sigma * largest_of(n))


def largest_of(n: int) -> float:
    """The expected largest of n standard normal numbers, by Blom's (1958) approximation."""
    from statistics import NormalDist

    return 0.0 if n == 1 else NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def efficiency(cluster: Cluster, key: str, batch: int, n: int, weak: bool) -> float:
    """Of n GPUs: weak, with `batch` rows each; strong, with so many together, against one GPU with all of them."""
    workload = WORKLOADS[key]
    if weak:
        return cluster.step(workload, batch, 1) / cluster.step(workload, batch, n)
    return cluster.step(workload, batch, 1) / (n * cluster.step(workload, batch / n, n))


def band(cluster: Cluster, key: str, batch: int, counts: list[int], weak: bool, spread: float) -> Array:
    """Rows of (typical, low, high) efficiency, one for each number of GPUs; `spread` is that of the fitted model."""
    rng = np.random.default_rng(0)
    clusters = [cluster.drawn(rng, spread) for _ in range(SAMPLES)]
    rows = []
    for n in counts:
        samples = [efficiency(one, key, batch, n, weak) for one in clusters]
        rows.append((efficiency(cluster, key, batch, n, weak), *np.percentile(samples, BAND)))
    return np.array(rows)
