"""The prototype of a whole network as one kernel computes what bpnet computes; without a device, on its substitute."""

from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bench import one_kernel

NETWORK = bp.Sequential(
    *[bp.Dense(one_kernel.WIDTH, "relu", bias=False)] * one_kernel.HIDDEN, bp.Dense(one_kernel.OUTPUTS, bias=False)
)


@pytest.mark.gpu
def test_loss_and_gradient_are_those_of_the_network(library: Any) -> None:
    """Of three tiles, the last of which is not full, by two blocks."""
    cupy, tile, blocks = library("cupy").module, 32, 2
    rng, rows = np.random.default_rng(0), 2 * tile + 5
    x, y = (rng.standard_normal((rows, n)) for n in (one_kernel.WIDTH, one_kernel.OUTPUTS))
    theta = bp.Trainer(NETWORK, "mse").build(x).theta
    expected, gradient = bp.value_and_grad(NETWORK, "mse", theta, x, y)
    gradients, losses = cupy.full((blocks, one_kernel.WEIGHTS), np.nan, "f"), cupy.full(blocks, np.nan, "f")
    kernel, size = one_kernel.compiled(tile), one_kernel.shared_bytes(tile)
    given = [cupy.asarray(a.astype("f")) for a in (x, y, theta)]
    scale = np.float32(1.0 / y.size)
    kernel((blocks,), (one_kernel.THREADS,), (rows, *given, gradients, losses, scale), shared_mem=size)
    np.testing.assert_allclose(losses.get().sum() * scale, expected, rtol=1e-5)
    near = 1e-6 * np.abs(gradient).max()
    np.testing.assert_allclose(gradients.get().sum(axis=0), gradient, rtol=1e-3, atol=near)


def test_it_fits_a_multiprocessor() -> None:
    """Its sums in registers, none of which is spilled, and all else in the shared memory that a block may have."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    assert "0 bytes spill stores, 0 bytes spill loads" in one_kernel.compiler_log(64, "sm_90")
    for tile, device in ((32, "A100 SXM (sm_80)"), (64, "H100 SXM (sm_90)")):
        assert one_kernel.shared_bytes(tile) <= 1024 * one_kernel.DEVICES[device][3]
