"""A training step as a CUDA graph: replaying gives the bits of launching, on a stand-in for the device and on a device."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cupy import Device, World
from test_cuda import host  # noqa: F401 - a fixture

import bpnet as bp


@pytest.fixture
def world(host: Any, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    """CuPy's backend on a stand-in for the device; its arrays are `world.array(values)`."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    return lent_device(host, monkeypatch)


def lent_device(run: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    from bpnet.backends import cupy as seam
    from bpnet.backends import cupy_feed, cupy_graph, cupy_kernels

    class Backend(seam.CupyBackend):
        def device(self, x: Any) -> Any:
            return x.device

    world = World(run)
    for module in (seam, cupy_feed, cupy_graph, cupy_kernels):
        for name in ("cupy", "cupyx"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(world, name))
        if hasattr(module, "module"):
            monkeypatch.setattr(module, "module", world.module)
    world.seam = Backend(bp.backends.get("numpy").xp)
    monkeypatch.setitem(bp.backends._by_type, Device, world.seam)
    monkeypatch.setitem(bp.backends._by_name, "cupy", world.seam)
    return world


NETS = {
    "plain": bp.Sequential(bp.Dense(5, "relu"), bp.Dense(3)),
    "dropout": bp.Sequential(bp.Dense(5, "tanh"), bp.Dropout(0.3), bp.Residual(bp.Dropout(0.1)), bp.Dense(3)),
    "norm": bp.Sequential(bp.Dense(4), bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(3)),
}


def data(count: int = 48, dtype: str = "float32") -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((count, 4)).astype(dtype), rng.integers(0, 3, count)


def test_first(world: World) -> None:
    x, y = map(world.array, data())
    trainer = bp.Trainer(NETS["plain"], "cross_entropy", "adam")
    trainer.fit(x, y, epochs=2, batch_size=16, progress=False)
    print(world.counts, trainer.history)
    assert world.counts["launch"] == 4
