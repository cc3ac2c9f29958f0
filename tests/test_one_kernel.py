"""The prototype of a whole network as one kernel computes, on the host, what bpnet computes."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_on_host import aligned

import bpnet as bp
from bench import one_kernel

NETWORK = bp.Sequential(
    *[bp.Dense(one_kernel.WIDTH, "relu", bias=False)] * one_kernel.HIDDEN, bp.Dense(one_kernel.OUTPUTS, bias=False)
)


def test_loss_and_gradient_are_those_of_the_network(host: Callable[..., None]) -> None:
    """Of three tiles, the last of which is not full, by two blocks."""
    tile, blocks = 32, 2
    rng, rows = np.random.default_rng(0), 2 * tile + 5
    x, y = (rng.standard_normal((rows, n)) for n in (one_kernel.WIDTH, one_kernel.OUTPUTS))
    theta = bp.Trainer(NETWORK, "mse").build(x).theta
    expected, gradient = bp.value_and_grad(NETWORK, "mse", theta, x, y)
    given = [aligned(a.astype("f")) for a in (x, y, theta)]
    gradients, losses = (
        aligned(np.full((blocks, one_kernel.WEIGHTS), np.nan, "f")),
        aligned(np.full(blocks, np.nan, "f")),
    )
    addresses: list[Any] = [ctypes.c_void_p(a.ctypes.data) for a in (*given, gradients, losses)]
    scale = 1.0 / y.size
    arguments = [ctypes.c_longlong(rows), *addresses, ctypes.c_float(scale)]
    host(one_kernel.source(tile), "train", ((blocks, 1), (one_kernel.THREADS, 1)), *arguments)
    np.testing.assert_allclose(losses.sum() * scale, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients.sum(axis=0), gradient, rtol=1e-3, atol=1e-6 * np.abs(gradient).max())


def test_it_fits_a_multiprocessor() -> None:
    """Its sums in registers, none of which is spilled, and all else in the shared memory that a block may have."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    assert "0 bytes spill stores, 0 bytes spill loads" in one_kernel.compiler_log(64, "sm_90")
    for tile, device in ((32, "A100 SXM (sm_80)"), (64, "H100 SXM (sm_90)")):
        assert one_kernel.shared_bytes(tile) <= 1024 * one_kernel.DEVICES[device][3]
