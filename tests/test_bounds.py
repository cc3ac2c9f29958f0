"""Compiled functions read and write what they are given and nothing beside it.

Every array here ends where a page of memory begins that nobody may touch, or begins where such a page ends, so that a
kernel that goes a single element too far ends the process.  That process is not the one that tests.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("llvmlite", reason="llvmlite is not installed")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the system has no mprotect")

GUARDED = """
import ctypes, faulthandler, mmap, sys, warnings
import numpy as np, bpnet as bp

faulthandler.enable()
PAGE, SYSTEM, KEPT = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True), []
SYSTEM.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

def guarded(a, last=True):
    '''A copy of `a` at the end (or the beginning) of memory between two pages that can't be touched.'''
    a = np.asarray(a)
    pages = -(-a.nbytes // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = PAGE + (pages * PAGE - a.nbytes if last else 0)
    made = np.frombuffer(memory, a.dtype, a.size, offset).reshape(a.shape)
    made[...] = a
    for page in (0, pages + 1):
        assert SYSTEM.mprotect(start + page * PAGE, PAGE, 0) == 0
    KEPT.append(memory)  # what is forbidden stays so: nothing else shall come to lie there
    return made

warnings.simplefilter("error", bp.errors.BpnetWarning)  # as of what is not compiled
seam = bp.backends.get("numpy")
rng = np.random.default_rng(0)

def compiled(function, *args, donate=False):
    with seam.session(2, work=1.0, choice=True):
        return seam.compile(function, donate=donate)(*args)

def close(found, expected, dtype):
    found, expected = (r if isinstance(r, tuple) else (r,) for r in (found, expected))
    for a, e in zip(found, expected, strict=True):
        largest = np.max(np.abs(e), initial=0.0)
        np.testing.assert_allclose(a, e, rtol=1e-4 if dtype == "float32" else 1e-10, atol=largest * 1e-5)
"""

KERNELS = """
FUNCTIONS = {
    "entries": lambda b, x, row, col, w, labels: b.xp.exp(x) * 2.0 + b.xp.where(x > 0.0, x, -x),
    "entries of three kinds": lambda b, x, row, col, w, labels: (x + row) * col,
    "sums": lambda b, x, row, col, w, labels: (
        b.xp.sum(x, axis=0), b.xp.sum(x, axis=1), b.xp.sum(x), b.xp.max(b.xp.abs(x))
    ),
    "softmax": lambda b, x, row, col, w, labels: b.xp.exp(x - b.xp.max(x, axis=1, keepdims=True)) / b.xp.sum(
        b.xp.exp(x - b.xp.max(x, axis=1, keepdims=True)), axis=1, keepdims=True
    ),
    "product": lambda b, x, row, col, w, labels: b.xp.matmul(x, w),
    "product of the transposed": lambda b, x, row, col, w, labels: b.xp.matmul(b.xp.permute_dims(x, (1, 0)), x),
    "product with the transposed": lambda b, x, row, col, w, labels: b.xp.matmul(x, b.xp.permute_dims(x, (1, 0))),
    "rows by number": lambda b, x, row, col, w, labels: b.xp.take(x, labels, axis=0) + 0.0,
    "a row by its label": lambda b, x, row, col, w, labels: x * b.xp.astype(
        b.xp.expand_dims(labels, axis=1) == b.xp.arange(x.shape[1], dtype=labels.dtype), x.dtype
    ),
    "the best of a row": lambda b, x, row, col, w, labels: b.xp.astype(b.xp.argmax(x, axis=1) == labels, x.dtype),
    "the last rows": lambda b, x, row, col, w, labels: x[x.shape[0] // 2 :, ...] * 2.0 + row,
}

def update(b, carry, grad):
    theta, state = carry
    state = 0.9 * state + grad
    return (theta - 0.1 * state, state)

for dtype, shapes in SHAPES.items():
    for number, (rows, columns) in enumerate(shapes):
        values = [rng.standard_normal(shape).astype(dtype) for shape in
                  ((rows, columns), (columns,), (rows, 1), (columns, 7))]
        labels = rng.integers(-rows, rows, rows).astype(("int32", "int64")[number % 2])
        for last in (True, False):
            args = [guarded(a, last) for a in (*values, labels)]
            for function in FUNCTIONS.values():
                close(compiled(function, *args), function(seam, *(np.float64(a) for a in values), labels), dtype)
            theta, state, grad = (rng.standard_normal(rows * columns).astype(dtype) for _ in range(3))
            expected = update(seam, (theta, state), grad)
            given = guarded(theta, last), guarded(state, last)
            found = compiled(update, given, guarded(grad, last), donate=True)
            assert found[0] is given[0] and found[1] is given[1], "written where they lay"
            close(found, expected, dtype)
    n = 13
    for index in ([0, 2**31 - 1, 3], [n - 1, -n], [n], [-n - 1, 0], [-(2**31), n + 1]):
        for last in (True, False):
            x, index = guarded(rng.standard_normal((n, 5)).astype(dtype), last), guarded(np.array(index, "i4"), last)
            found = compiled(lambda b, x, i: b.xp.take(x, i, axis=0) + 0.0, x, index)
            assert np.array_equal(np.isnan(found[:, 0]), (index >= n) | (index < -n))
"""

TRAINERS = """
for dtype, rows, features, loss, net in (
    ("float32", 7, 17, "cross_entropy", bp.Sequential(bp.Dense(9, "gelu"), bp.Dropout(0.3), bp.Dense(3))),
    ("float64", 37, 5, "cross_entropy", bp.Sequential(bp.Dense(9, "relu"), bp.BatchNorm(), bp.Dense(3))),
    ("float32", 3, 5, "mse", bp.Sequential(bp.Dense(7, "softmax"), bp.Dense(3, "sigmoid"))),
    ("float32", 1, 3, "binary_cross_entropy", bp.Dense(1, "sigmoid")),
    ("float32", 5, 11, "binary_cross_entropy_with_logits", bp.Dense(3)),
):
    outputs = net.out_shape((features,))[0]
    y = rng.integers(0, 3, rows) if loss == "cross_entropy" else rng.random((rows, outputs)).astype(dtype)
    x, weight = rng.standard_normal((rows, features)).astype(dtype), rng.random(rows).astype(dtype)
    x, y, weight = map(guarded, (x, y, weight))
    trainer = bp.Trainer(net, loss, bp.AdamW(0.01), clip_norm=0.5).build(x)
    assert np.all(np.isfinite(trainer.predict(x)))
    trainer.evaluate(x, y)
    trainer.step(x, y, weight)
    trainer.fit(x, y, batch_size=max(1, rows // 2), progress=False)
    assert np.all(np.isfinite(trainer.theta))
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


SHAPES = {
    "columns": '{"float32": [(5, n) for n in range(1, 18)], "float64": [(5, n) for n in range(1, 10)]}',
    "rows": '{"float32": [(n, 3) for n in range(1, 18)], "float64": [(n, 3) for n in range(1, 10)]}',
    "others": '{"float32": [(1, 33), (64, 1), (33, 31), (130, 50)], "float64": [(33, 31)]}',
}
"""Every remainder of the longest vectors, along rows and along columns."""


@pytest.mark.parametrize("shapes", SHAPES)
def test_no_kernel_reads_beside_its_arrays(shapes: str) -> None:
    run(f"SHAPES = {SHAPES[shapes]}\n{KERNELS}")


def test_training_and_prediction_read_nothing_beside_the_data() -> None:
    run(TRAINERS)
