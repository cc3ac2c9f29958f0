"""Several products in one call of NumPy's BLAS equal `np.matmul`, however the arrays lie, on any number of threads."""

import threading
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.backends.blas import BLAS, SMALL

SIZES = [(3, 4, 5), (200, 100, 60), (33, 784, 512), (700, 300, 11), (2, 1, 3), (128, 257, 255), (1, 3000, 1001)]
"""Rows, inner size, columns: below and above what is cut, along either axis, and evenly or not."""


@pytest.fixture(autouse=True)
def session() -> Any:
    with bp.backends.get("numpy").session(2):
        yield


def lies(a: np.ndarray, how: str) -> np.ndarray:
    """The values of `a`, lying in memory otherwise."""
    if how == "transposed":
        return np.asfortranarray(a)
    if how == "with gaps":
        wide = np.zeros((2 * a.shape[0], a.shape[1] + 3), a.dtype)
        wide[::2, 1:-2] = a
        return wide[::2, 1:-2]
    if how == "backwards":
        return np.ascontiguousarray(a[::-1])[::-1]
    if how == "unaligned":
        raw = np.zeros(a.nbytes + 1, np.uint8)
        view = np.frombuffer(raw.data, np.uint8)[1:].view(a.dtype).reshape(a.shape)
        view[...] = a
        return view
    return a


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", ["as it is", "transposed", "with gaps", "backwards", "unaligned"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_equal_matmul(size: tuple[int, int, int], how: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows, inner, columns = size
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((rows, inner), (inner, columns)))
    c = rng.standard_normal((columns, rows)).astype(dtype)
    first, second = np.empty((rows, columns), dtype), np.full((columns, columns), np.nan, dtype)
    BLAS.multiply([(lies(a, how), lies(b, how), first), (lies(c, how), lies(np.ones_like(c.T), how), second)], 2)
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-11}
    np.testing.assert_allclose(first, a @ b, **tolerance)
    np.testing.assert_allclose(second, c @ np.ones_like(c.T), **tolerance)


def test_mixed_types_are_left_to_numpy() -> None:
    a, b, out = np.ones((200, 200), np.float32), np.ones((200, 200)), np.empty((200, 200))
    BLAS.multiply([(a, b, out)], 2)
    assert np.array_equal(out, np.full((200, 200), 200.0))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_number_of_threads_changes_no_bit_of_a_product(size: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in (size[:2], size[1:]))
    found = []
    for threads in (1, 2, 4):
        found.append(np.empty((size[0], size[2]), np.float32))
        BLAS.multiply([(a, b, found[-1])], threads)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_no_piece_is_so_small_that_openblas_crashes() -> None:
    if not BLAS.cut:
        pytest.skip("NumPy's BLAS has no products in batches")
    cut = next(iter(BLAS.cut.values()))
    for rows, inner, columns in [(3, 600, 600), (600, 600, 3), (5, 1000, 1000), (101, 100, 100), (100, 100, 100)]:
        form = ((rows, inner), (rows, columns), (inner * 4, 4), (columns * 4, 4), (columns * 4, 4), True)
        pieces = cut((form,))
        assert all(np.prod(size, dtype=float) > SMALL for size in pieces.sizes)


def test_trainings_at_the_same_time_disturb_neither_results_nor_threads() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((600, 300)).astype(np.float32), rng.integers(0, 10, 600)

    def train(seed: int) -> np.ndarray:
        trainer = bp.Trainer(bp.Sequential(bp.Dense(200, "relu"), bp.Dense(10)), "cross_entropy", seed=seed)
        trainer.fit(x, y, epochs=6, batch_size=200, progress=False)
        return np.array(trainer.theta)

    alone = [train(seed) for seed in range(3)]
    together: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda s=s: together.__setitem__(s, train(s))) for s in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[seed], alone[seed]) for seed in range(3))
