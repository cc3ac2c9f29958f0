"""Functions of NumPy arrays compiled by LLVM (the extra `jit`): they compute what their definitions compute.

The members "numpy-jit" of the other tests' fixture run everything else compiled; here is what is promised besides.
"""

import contextlib
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import mpmath
import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.layer import Run
from bpnet.losses.classes import softmax_cross_entropy

pytest.importorskip("llvmlite", reason="llvmlite is not installed")
SEAM = bp.backends.get("numpy")
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compile from the first step on."""
    compiles(monkeypatch, True)


def compiled(function: Any, *args: Any, threads: int | None = None) -> Any:
    """function(seam, *args), compiled."""
    with SEAM.session(threads, work=1.0):
        return SEAM.compile(function)(*args)


# ---- operations -----------------------------------------------------------------------------------------------------


def normalized(b: Any, x: Any) -> Any:
    centred = x - b.xp.mean(x, axis=0)
    return centred / b.xp.sqrt(b.xp.mean(centred * centred, axis=0) + 1e-5)


def hot(b: Any, x: Any, labels: Any) -> Any:
    places = b.xp.arange(x.shape[1], dtype=labels.dtype)
    return x * b.xp.astype(b.xp.expand_dims(labels, axis=1) == places, x.dtype)


OPERATIONS: dict[str, Any] = {
    "sum and difference": lambda b, x, row, labels: (x + row) - 2.0 * x,
    "product and quotient": lambda b, x, row, labels: (x * row + 1.0) / (row * row + 1.0) - (1.0 - x) / 3.0,
    "relu's slope": lambda b, x, row, labels: row * b.xp.astype(x > 0.0, x.dtype),
    "comparisons": lambda b, x, row, labels: (
        b.xp.where(x <= row, x, -x) + b.xp.astype((x < 0.0) == (row >= 0.0), x.dtype)
    ),
    "largest and least": lambda b, x, row, labels: b.xp.maximum(b.xp.minimum(x, row), -0.5),
    "sign and size": lambda b, x, row, labels: b.xp.sign(x) * b.xp.sqrt(b.xp.abs(x)),
    "exp, log, tanh": lambda b, x, row, labels: b.xp.exp(x) + b.xp.log(b.xp.abs(x) + 0.1) * b.xp.tanh(row),
    "log1p, expm1": lambda b, x, row, labels: b.xp.log1p(b.xp.abs(x)) + b.xp.expm1(row),
    "error function": lambda b, x, row, labels: b.erf(x),
    "sums of columns": lambda b, x, row, labels: b.xp.sum(x * row, axis=0),
    "sums of rows": lambda b, x, row, labels: b.xp.sum(x * row, axis=1),
    "sum of all": lambda b, x, row, labels: b.xp.sum(x * x),
    "largest of all": lambda b, x, row, labels: b.xp.max(b.xp.abs(x)),
    "softmax": lambda b, x, row, labels: b.xp.exp(x) / b.xp.sum(b.xp.exp(x), axis=-1, keepdims=True),
    "normalization": lambda b, x, row, labels: normalized(b, x),
    "labels": lambda b, x, row, labels: hot(b, x, labels),
    "the best label": lambda b, x, row, labels: b.xp.astype(b.xp.argmax(x, axis=1) == labels, x.dtype),
    "rows by number": lambda b, x, row, labels: b.xp.take(x, labels, axis=0) * 2.0,
    "known numbers": lambda b, x, row, labels: (
        x * b.constants([0.1 * k - 1.0 for k in range(x.shape[1])], x) + b.constants([0.3] * x.shape[1], x)
    ),
    "some rows": lambda b, x, row, labels: b.xp.sum(x[1:4, ...], axis=0) + b.xp.reshape(x, (-1,))[: row.shape[0]],
    "cross-entropy": lambda b, x, row, labels: softmax_cross_entropy(Run(b), x, labels, None, 7.0),
}
SHAPES = [(5, 3), (4, 7), (64, 100), (700, 10), (33, 513), (3000, 1)]


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_numpys(name: str, shape: Any, dtype: str, jit: Any, uncompiled: Any) -> None:
    if shape[1] == 1 and name in ("some rows", "rows by number"):
        pytest.skip("as for other widths")
    rng = np.random.default_rng(0)
    x, row = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape[1]).astype(dtype)
    labels = rng.integers(0, min(shape), shape[0])
    function = OPERATIONS[name]
    found, expected = compiled(function, x, row, labels), function(SEAM, x.astype("f8"), row.astype("f8"), labels)
    assert not uncompiled()
    for a, e in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
        assert a.dtype == dtype
        assert a.shape == e.shape
        largest = np.max(np.abs(e))
        np.testing.assert_allclose(
            a, e, rtol=2e-5 if dtype == "float32" else 1e-12, atol=largest * (2e-6 if dtype == "float32" else 1e-14)
        )


SLICES: dict[str, Any] = {
    "of a matrix": lambda xp, x, v: x[3:9, ...] * 2.0,
    "of a slice": lambda xp, x, v: x[3:15, ...][2:7, ...] * 2.0,
    "of a slice of a slice": lambda xp, x, v: x[1:, ...][2:, ...][4:6] + x[:2, ...],
    "from the end": lambda xp, x, v: x[-9:-2, ...][-4:, ...] * 2.0,
    "beyond the end": lambda xp, x, v: x[12:99, ...][:50, ...] * 2.0,
    "of a vector": lambda xp, x, v: v[5:50] * 2.0,
    "of a slice of a vector": lambda xp, x, v: v[5:50][7:30] - v[1:60][3:26],
    "of a slice of a slice of a vector": lambda xp, x, v: v[1:][2:][3:40][4:9] * v[0:5],
    "of a row": lambda xp, x, v: xp.reshape(x[4:5, ...], (-1,))[1:4] * v[2:7][1:4],
    "of a matrix in a vector": lambda xp, x, v: xp.reshape(v[6:54], (8, 6))[2:5, ...] * x[7:][:3],
    "of a vector in a matrix": lambda xp, x, v: xp.reshape(x[2:8, ...], (-1,))[7:20] * 2.0,
    "of a shape in a shape": lambda xp, x, v: xp.reshape(xp.reshape(v[4:], (-1, 4))[3:, ...], (-1, 2))[5:9, ...] * 2.0,
    "of what is computed": lambda xp, x, v: xp.exp(x)[2:9, ...][1:4, ...] + 1.0,
    "of a product": lambda xp, x, v: xp.matmul(x, x[1:7, ...])[2:9, ...][3:5, ...] * 2.0,
    "for a product": lambda xp, x, v: xp.matmul(x[2:9, ...][1:4, ...], x[1:][2:8]),
    "for a sum": lambda xp, x, v: xp.sum(x[2:9, ...][1:6, ...], axis=0) + xp.sum(v[3:][2:20]),
    "of what is joined": lambda xp, x, v: xp.concat([v[:7] * 2.0, v[7:30] + 1.0])[3:25][2:9] * 2.0,
    "as it is": lambda xp, x, v: x[5:11, ...][2:4, ...],
}


@DTYPES
@pytest.mark.parametrize("name", SLICES)
def test_slices_of_slices(name: str, dtype: str, jit: Any, uncompiled: Any) -> None:
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((18, 6)).astype(dtype), rng.standard_normal(60).astype(dtype)
    found = compiled(lambda b, x, v: SLICES[name](b.xp, x, v), x, v)
    expected = SLICES[name](SEAM.xp, x, v)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-13)
    assert not uncompiled()


MASKED: dict[str, Any] = {
    "chosen by a mask": lambda xp, x, m, k: xp.where(m, x, -x),
    "chosen by a row of one": lambda xp, x, m, k: xp.where(m[:1, ...], x, 2.0 * x),
    "a mask as numbers": lambda xp, x, m, k: x * xp.astype(m, x.dtype),
    "a mask compared": lambda xp, x, m, k: xp.astype(m == (x > 0.5), x.dtype),
    "whole numbers": lambda xp, x, m, k: x * xp.astype(k >= 3, x.dtype),
    "equal whole numbers": lambda xp, x, m, k: x * xp.astype(k == k[::-1, ...], x.dtype),
    "large whole numbers": lambda xp, x, m, k: x * xp.astype(k > 2**24, x.dtype),
}


@DTYPES
@pytest.mark.parametrize("name", MASKED)
def test_truth_values_and_whole_numbers_that_are_passed_in(name: str, dtype: str, jit: Any) -> None:
    x = np.random.default_rng(0).standard_normal((37, 21)).astype(dtype)
    k = np.where(np.arange(37) % 2, np.arange(37), 2**24 + 1)[:, None]
    given = x, x > 0.2, k
    refuses = name in ("equal whole numbers", "large whole numbers")  # which float32 could not tell apart
    with pytest.warns(bp.errors.BpnetWarning, match="may be large") if refuses else contextlib.nullcontext():
        found = compiled(lambda b, *a: MASKED[name](b.xp, *a), *given)
    np.testing.assert_array_equal(found, MASKED[name](SEAM.xp, *given))


@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("what", ["all", "some", "labels"])
def test_numbers_of_rows_below_0_count_from_the_end(what: str, kind: str, jit: Any, uncompiled: Any) -> None:
    """Of the array that is taken from, which may be a part of another."""
    x = np.random.default_rng(0).standard_normal((9, 5))
    labels = np.arange(18).reshape(9, 2)[:, 1].astype(kind)
    index = np.array([0, -1, 5, -2, -6, 3], kind)

    def take(b: Any, x: Any, labels: Any, index: Any) -> Any:
        if what == "labels":
            places = b.xp.arange(18, dtype=labels.dtype)
            return b.xp.astype(b.xp.expand_dims(b.xp.take(labels, index), axis=1) == places, x.dtype)
        return b.xp.take(x if what == "all" else x[1:7, ...], index, axis=0) * 2.0

    def hot(b: Any, x: Any, labels: Any, index: Any) -> Any:
        return np.eye(18)[labels[index]] if what == "labels" else take(b, x, labels, index)

    np.testing.assert_array_equal(compiled(take, x, labels, index), hot(SEAM, x, labels, index))
    assert not uncompiled()


@DTYPES
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_numbers_of_no_row_give_no_number(kind: str, dtype: str, jit: Any, uncompiled: Any) -> None:
    """Nor what lies beside the array, of which this is a part: as on JAX, where eager NumPy raises IndexError."""
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(dtype)
    index = np.array([0, 6, 2, -7, 2**31 - 1, -(2**31), 5, -6], kind)
    found = compiled(lambda b, x, index: b.xp.take(x[1:7, ...], index, axis=0) * 2.0, x, index)
    wrong = (index >= 6) | (index < -6)
    assert np.all(np.isnan(found[wrong]))
    np.testing.assert_array_equal(found[~wrong], 2.0 * x[1:7][index[~wrong]])
    assert not uncompiled()


@DTYPES
@pytest.mark.parametrize("name", ["exp", "log", "log1p", "expm1", "tanh", "sin", "cos"])
def test_functions_are_exact_to_a_few_units_in_the_last_place(name: str, dtype: str, jit: Any) -> None:
    rng = np.random.default_rng(0)
    limits, far = np.finfo(dtype), np.array([])
    magnitudes = 10.0 ** rng.uniform(-12, 2, 300)
    x = np.concatenate([magnitudes, -magnitudes, rng.uniform(-3, 3, 300), [1.0, -1.0, 0.5, 88.0, -88.0]]).astype(dtype)
    if name == "log":
        x = np.concatenate([np.abs(x), [limits.max, limits.tiny, limits.smallest_subnormal]]).astype(dtype)
    if name == "log1p":
        x = np.concatenate([x[x > -1.0], [limits.max]]).astype(dtype)
    if name in ("sin", "cos"):  # also of any size, and next to where they are 0
        far = 10.0 ** rng.uniform(2, np.log10(limits.max), 300)
        x = np.concatenate([x, far, -far, np.pi / 2 * np.arange(-300, 300), [1e30, limits.max, 2.0**17]]).astype(dtype)
    with np.errstate(all="ignore"):
        found = compiled(lambda b, x: getattr(b.xp, name)(x), x[None, :])[0]
    with mpmath.workdps(400):
        expected = np.array([float(getattr(mpmath, name)(mpmath.mpf(float(v)))) for v in x])
        inside = (np.abs(expected) < limits.max) & (np.abs(expected) > limits.tiny)
    error = np.abs(found[inside].astype("f8") - expected[inside])
    assert np.max(error / np.spacing(np.abs(expected[inside]).astype(dtype)).astype("f8")) < (2 if far.size else 6)


@DTYPES
def test_sines_of_one_number_a_row_are_those_of_vectors(dtype: str, jit: Any) -> None:
    x = np.array([0.0, -0.0, 1.0, -3e4, 2.5e5, -7e9, 1e20, np.finfo(dtype).max, np.inf, np.nan], dtype)
    found = compiled(lambda b, x: b.xp.sin(b.xp.max(x, axis=-1, keepdims=True)) * b.xp.cos(x), x[:, None])[:, 0]
    expected = compiled(lambda b, x: b.xp.sin(x) * b.xp.cos(x), x[None])[0]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@DTYPES
def test_functions_of_what_is_not_finite(dtype: str, jit: Any) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45 if dtype == "float32" else 5e-324, -1.0, 1000.0]], dtype)
    for name in ("exp", "log", "log1p", "expm1", "tanh", "sin", "cos", "sqrt", "abs", "sign"):
        with np.errstate(all="ignore"):
            expected = getattr(np, name)(x)
        np.testing.assert_allclose(
            compiled(lambda b, x, n=name: getattr(b.xp, n)(x), x), expected, rtol=1e-6, err_msg=name
        )
    for name in ("maximum", "minimum"):
        expected = getattr(np, name)(x, x[:, ::-1])
        found = compiled(lambda b, x, y, n=name: getattr(b.xp, n)(x, y), x, x[:, ::-1])
        np.testing.assert_array_equal(found, expected)


SIZES = [1, 2, 7, 8, 9, 31, 48, 49, 130]


@DTYPES
@pytest.mark.parametrize("inner", [1, 3, 64, 256, 257, 600])
def test_products_of_every_shape(inner: int, dtype: str, jit: Any, uncompiled: Any) -> None:
    rng = np.random.default_rng(0)
    for rows in SIZES:
        for columns in SIZES:
            a, b = rng.standard_normal((rows, inner)), rng.standard_normal((inner, columns))
            check_product(a.astype(dtype), b.astype(dtype))
    assert not uncompiled()


@DTYPES
@pytest.mark.parametrize("inner", [1, 64, 257])
@pytest.mark.parametrize("relu", [False, True])
def test_products_add_a_bias_and_take_the_positive_part(relu: bool, inner: int, dtype: str, jit: Any) -> None:
    """The same bits as when that is done by itself, however many threads there are; what is no number stays none."""
    rng = np.random.default_rng(0)

    def layer(s: Any, a: Any, b: Any, bias: Any) -> Any:
        z = a @ b + bias
        return s.xp.maximum(z, 0.0) if relu else z

    def by_parts(s: Any, a: Any, b: Any, bias: Any) -> Any:
        product = a @ b
        z = product + bias
        return (s.xp.maximum(z, 0.0) if relu else z), product

    for rows, columns in itertools.product([*SIZES, 300], SIZES):
        shapes = (rows, inner), (inner, columns), (columns,)
        a, b, bias = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
        a[-1, -1], bias[-1] = np.nan, np.inf
        alone = compiled(by_parts, a, b, bias)[0]
        assert np.all(np.isnan(alone[-1]))
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(compiled(layer, a, b, bias, threads=threads), alone)


def test_epilogues_are_part_of_products(jit: Any) -> None:
    x, y = np.ones((64, 784), np.float32), np.zeros(64, np.int64)
    network = bp.Sequential(bp.Dense(512, "relu"), bp.Dense(512, "relu"), bp.Dense(10))
    text = bp.Trainer(network, "cross_entropy", compile=True).explain(x, y)
    assert "12 commands" in text
    assert text.count(", and fused kernel over 64 x 512: add maximum") >= 2


@DTYPES
def test_products_of_large_matrices(dtype: str, jit: Any) -> None:
    rng = np.random.default_rng(0)
    for rows, inner, columns in ((700, 784, 530), (2100, 300, 64), (40, 1500, 1100)):
        check_product(*(rng.standard_normal(s).astype(dtype) for s in ((rows, inner), (inner, columns))))


def check_product(a: Any, b: Any) -> None:
    """In either order in memory, on one thread and on several: right, and the same bits."""
    expected = a.astype("f8") @ b.astype("f8")
    bound = 4 * np.finfo(a.dtype).eps * (np.abs(a).astype("f8") @ np.abs(b).astype("f8")) * max(1, a.shape[1] ** 0.5)

    def turned(s: Any, x: Any, y: Any) -> Any:
        return s.xp.matmul(s.xp.permute_dims(x, (1, 0)), s.xp.permute_dims(y, (1, 0)))

    found = []
    for threads in (1, 2, 3):
        found.append(compiled(lambda s, x, y: x @ y, a, b, threads=threads))
        found.append(compiled(turned, a.T.copy(), b.T.copy(), threads=threads))
    orders = (
        1 if b.shape[1] > 1 else 2
    )  # products by a vector are sums over rows in one order, over columns in the other
    for i, c in enumerate(found):
        assert np.all(np.abs(c - expected) <= bound)
        assert np.array_equal(c, found[i % orders])


# ---- whole trainings ------------------------------------------------------------------------------------------------

NETWORKS = {
    "dense": bp.Sequential(bp.Dense(64, "relu"), bp.Dense(32, "relu"), bp.Dense(10)),
    "activations": bp.Sequential(
        *(bp.Dense(9, f) for f in ("sigmoid", "tanh", "leaky_relu", "gelu", "gelu_tanh", "silu", "softplus", "elu")),
        bp.ReLU(), bp.Dense(10, "softmax"), bp.Dense(10),
    ),
    "residual": bp.Sequential(
        bp.Flatten(), bp.Residual(bp.Sequential(bp.Dense(16, "gelu"), bp.Dense(20))), bp.Dense(10)
    ),
    "normalized": bp.Sequential(
        bp.Dense(40, bias=False), bp.BatchNorm(), bp.ReLU(),
        bp.Dense(30), bp.BatchNorm(momentum=0.5), bp.Tanh(), bp.Dense(10),
    ),
    "standardized": bp.Sequential(
        bp.Standardize(tuple(np.arange(20.0) - 9), tuple(0.5 + np.arange(20.0))),
        bp.Dense(40, "relu"), bp.Dense(10), bp.Standardize(2.0, 0.5, invert=True),
    ),
    "dropout": bp.Sequential(bp.Dropout(0.2), bp.Dense(40, "relu"), bp.Dropout(0.5), bp.Dense(10)),
    "one output": bp.Sequential(bp.Dense(5, "tanh"), bp.Dense(1)),
}  # fmt: skip
LOSSES = ["mse", "cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits"]
SGDS = [bp.SGD(0.05), bp.SGD(0.05, momentum=0.9), bp.SGD(0.05, momentum=0.9, nesterov=True)]
OPTIMIZERS = [*SGDS, bp.Adam(1e-3, epsilon=1e-4), bp.AdamW(bp.Cosine(1e-3, 20), epsilon=1e-4, weight_decay=0.5)]


def data(network: bp.Layer, loss: str, rows: int, dtype: str = "float64") -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 20)).astype(dtype)
    outputs = network.out_shape((20,))[0]
    y = rng.integers(0, outputs, rows) if loss == "cross_entropy" else rng.random((rows, outputs)).astype(dtype)
    return x, y, rng.random(rows).astype(dtype)


def results(trainer: bp.Trainer, x: Any, y: Any, weight: Any) -> list[Any]:
    """Everything that can be had of a training: losses, vectors, predictions, scores."""
    steps = [float(trainer.step(x, y)), float(trainer.step(x, y, weight))]
    trainer.fit(x, y, epochs=2, batch_size=max(2, len(x) // 3), validation=(x, y), progress=False)
    trainer.fit(x, y, batch_size=len(x), sample_weight=weight, shuffle=False, progress=False)
    history = [
        value
        for record in trainer.history.epochs
        for name, value in record.items()
        if name not in ("seconds", "matmul_precision")
    ]
    scores = [*trainer.evaluate(x, y).values(), *trainer.evaluate(x, y, sample_weight=weight).values()]
    return [
        np.array(steps),
        np.array(history),
        trainer.theta,
        trainer.buffers,
        *trainer.state,
        trainer.predict(x),
        np.array(scores),
    ]


def same(network: bp.Layer, loss: str, optimizer: bp.Optimizer, rows: int, monkeypatch: Any, **options: Any) -> None:
    found = []
    for SEAM_jit in (False, True):
        compiles(monkeypatch, SEAM_jit)
        trainer = bp.Trainer(network, loss, optimizer, seed=1, **options)
        found.append(results(trainer, *data(network, loss, rows)))
    for plain, mine in zip(*found, strict=True):
        assert np.linalg.norm(mine - plain) <= 1e-8 * np.linalg.norm(plain)


@pytest.mark.parametrize("rows", [3, 50, 700])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("dropout", "one output")])
def test_a_network_is_trained_as_by_its_definition(name: str, rows: int, monkeypatch: Any, uncompiled: Any) -> None:
    same(NETWORKS[name], "cross_entropy", OPTIMIZERS[-1], rows, monkeypatch)
    assert not uncompiled()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_every_optimizer(optimizer: bp.Optimizer, monkeypatch: Any, uncompiled: Any) -> None:
    same(NETWORKS["dense"], "cross_entropy", optimizer, 50, monkeypatch, clip_norm=0.5)
    assert not uncompiled()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["dense", "one output"])
def test_every_loss(loss: str, name: str, monkeypatch: Any, uncompiled: Any) -> None:
    if (name, loss) == ("one output", "cross_entropy"):
        pytest.skip("needs two classes")
    network = bp.Sequential(NETWORKS[name], bp.Sigmoid()) if loss == "binary_cross_entropy" else NETWORKS[name]
    same(network, loss, bp.SGD(0.05), 40, monkeypatch)
    assert not uncompiled()


def test_a_batch_of_several_blocks(monkeypatch: Any, uncompiled: Any) -> None:
    """Batches are cut where their arrays would take too much memory, and the gradients of the parts added up."""
    monkeypatch.setattr("bpnet.backends.numpy.compiled.COMPILED_ROWS", 64)
    same(NETWORKS["dense"], "cross_entropy", OPTIMIZERS[-1], 500, monkeypatch)
    same(NETWORKS["residual"], "mse", bp.SGD(0.05, momentum=0.9), 500, monkeypatch)
    assert not uncompiled()


@DTYPES
def test_dropout_draws_the_bits_of_the_definition(dtype: str, jit: Any, uncompiled: Any) -> None:
    like = np.zeros((70, 33), dtype)
    for key, first in (((3, 1, 0), 0), ((3, 2, 0), 9), ((4, 2**33 + 5, 7), 2**32 - 3)):
        expected = bp.backends.Backend(SEAM.xp).keep_mask(key, like.shape, 0.7, like.dtype, "cpu", first)
        for changing in (True, False):

            def drawn(
                b: Any, like: Any, n: Any, row: Any, k: Any = key, first: Any = None if changing else first
            ) -> Any:
                row = row if first is None else first
                return b.keep_mask((k[0], n, k[2]), like.shape, 0.7, like.dtype, "cpu", row) * (like + 1.0)

            assert np.array_equal(compiled(drawn, like, key[1], first), expected)
    assert not uncompiled()


def test_dropout_is_drawn_anew_in_every_step_and_again_by_backward(jit: Any, uncompiled: Any) -> None:
    network = NETWORKS["dropout"]
    x, y, _ = data(network, "cross_entropy", 60)
    trainer = bp.Trainer(network, "cross_entropy", bp.SGD(0.0)).build(x)
    losses = [float(trainer.step(x, y)) for _ in range(3)]
    assert len(set(losses)) == 3
    generic = bp.backends.Backend(SEAM.xp)  # the definitions of everything, dropout's mask too
    p = trainer.layout.views(generic, trainer.theta)
    run = Run(generic, True, (0, 1))
    output, _ = network.forward(run, p, x)
    assert losses[0] == pytest.approx(float(bp.CrossEntropy()(run, output, y, None, 60.0)[0]), rel=1e-12)
    learning = bp.Trainer(network, "cross_entropy", bp.Adam(1e-2))
    learning.fit(x, y, epochs=200, batch_size=30, progress=False)
    assert learning.history["loss"][-1] < 0.6 * learning.history["loss"][0]
    assert not uncompiled()


@DTYPES
@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_threads_changes_no_bit(name: str, dtype: str, jit: Any) -> None:
    loss = "mse" if name == "one output" else "cross_entropy"
    found = []
    for threads in (1, 2, 4):
        trainer = bp.Trainer(NETWORKS[name], loss, bp.AdamW(0.01), clip_norm=1.0, threads=threads)
        found.append(results(trainer, *data(NETWORKS[name], loss, 3000, dtype)))
    for one in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(one, found[0], strict=True))


# ---- arrays as users have them --------------------------------------------------------------------------------------


def test_inputs_in_any_order_in_memory_and_never_written(jit: Any, uncompiled: Any) -> None:
    x, y, weight = data(NETWORKS["dense"], "cross_entropy", 90)
    expected = bp.Trainer(NETWORKS["dense"], "cross_entropy")
    expected.step(x, y, weight)
    wide = np.zeros((90, 41))
    wide[:, 1::2] = x
    labels = np.zeros(180, y.dtype)
    labels[::2] = y
    for given, labelled in ((np.asfortranarray(x), y), (wide[:, 1::2], labels[::2])):
        given.flags.writeable = labelled.flags.writeable = False
        copies = given.copy(), labelled.copy()
        trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy")
        trainer.step(given, labelled, weight)
        assert np.array_equal(trainer.theta, expected.theta)
        assert np.array_equal(trainer.predict(given), expected.predict(x))
        assert np.array_equal(given, copies[0])
        assert np.array_equal(labelled, copies[1])
    assert not uncompiled()


def test_batches_of_changing_size_and_data_that_changes_in_place(jit: Any) -> None:
    network = NETWORKS["dense"]
    x = data(network, "cross_entropy", 100)[0]
    trainer = bp.Trainer(network, "cross_entropy").build(x)
    for rows in (100, 7, 100, 33, 7):
        assert np.allclose(trainer.predict(x[:rows]), trainer.predict(x)[:rows], rtol=1e-12)
    before = trainer.predict(x)
    x *= 2.0
    after = trainer.predict(x)
    assert not np.allclose(before, after)
    assert not np.shares_memory(before, after)


def test_what_is_not_finite_in_x_is_named(jit: Any) -> None:
    x = data(NETWORKS["dense"], "cross_entropy", 100)[0]
    trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy").build(x)
    for bad in (np.nan, np.inf):
        x[41, 3] = bad
        with pytest.raises(bp.errors.DataError, match="first in row 41"):
            trainer.predict(x)
    x[41, 3] = 1e308  # is finite, though the sum of two is not
    x[42, 3] = 1e308
    trainer.predict(x)


def test_divergence_is_found_and_the_last_parameters_kept(jit: Any) -> None:
    x, y, _ = data(NETWORKS["dense"], "mse", 64)
    trainer = bp.Trainer(NETWORKS["dense"], "mse", bp.SGD(1e6))
    with pytest.raises(bp.errors.DivergedError, match="diverged at step"):
        trainer.fit(x, y, epochs=5, batch_size=16, progress=False)
    assert np.all(np.isfinite(trainer.theta))


def test_several_threads_of_the_user(jit: Any) -> None:
    network = NETWORKS["dense"]
    x, y, _ = data(network, "cross_entropy", 2000)

    def train(found: dict[int, Any], number: int) -> None:
        trainer = bp.Trainer(network, "cross_entropy", seed=number % 2)
        trainer.fit(x, y, epochs=5, batch_size=500, progress=False)
        found[number] = trainer.theta

    alone: dict[int, Any] = {}
    for number in range(2):
        train(alone, number)
    together: dict[int, Any] = {}
    workers = [threading.Thread(target=train, args=(together, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(together[number], alone[number % 2]) for number in range(4))


FORKS = """
import os, threading, time
import numpy as np, bpnet as bp
x, y = np.random.default_rng(0).random((200, 6)), np.arange(200) % 3
trainer = bp.Trainer(bp.Sequential(bp.Dense(40, "relu"), bp.Dense(3)), "cross_entropy", compile=True)
trainer.step(x, y)
expected, at_work = trainer.predict(x), True

def predict():
    while at_work:
        trainer.predict(x)

thread = threading.Thread(target=predict, daemon=True)
thread.start()
for _ in range(10):
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(trainer.predict(x), expected) else 1)
    end = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, 9)  # it hangs
        time.sleep(0.001)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
at_work = False
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_another_thread_computes(tmp_path: Path) -> None:
    """Whatever that thread had locked is free in the child."""
    run(FORKS, BPNET_CACHE_DIR=str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_training_goes_on_in_a_forked_child(tmp_path: Path) -> None:
    code = (
        "import os, numpy as np, bpnet as bp\n"
        "x = np.random.default_rng(0).standard_normal((4000, 30)); y = x[:, :2]\n"
        "net = bp.Sequential(bp.Dense(50, 'relu'), bp.Dense(2))\n"
        "t = bp.Trainer(net, 'mse', threads=2, compile=True); t.step(x, y)\n"
        "child = os.fork()\n"
        "theta = [t.step(x, y) for _ in range(3)] and t.theta\n"
        f"file = {str(tmp_path / 'child.npy')!r}\n"
        "if child == 0: np.save(file, theta); os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert np.array_equal(np.load(file), theta)\n"
    )
    run(code)


# ---- what can't be traced ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sorted(bp.Layer):
    """y = x sorted along each row, of which there is no symbol."""

    def forward(self, run: Run, p: Any, x: Any) -> tuple[Any, Any]:
        order = run.xp.argsort(x, axis=1)
        return run.xp.take_along_axis(x, order, axis=1), order

    def backward(self, run: Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return run.xp.take_along_axis(dy, run.xp.argsort(cache, axis=1), axis=1), {}


@dataclass(frozen=True)
class _Decided(bp.Activation):
    """Decides by a value, which a symbol has not."""

    def value(self, b: Any, z: Any) -> Any:
        return 2.0 * z if b.xp.max(z) > 0.0 else z

    def derivative(self, b: Any, kept: Any, dy: Any) -> Any:
        return 2.0 * dy if b.xp.max(kept) > 0.0 else dy


@pytest.mark.parametrize("layer", [_Sorted(), _Decided()], ids=str)
def test_what_cannot_be_traced_is_called_as_it_stands(layer: Any, monkeypatch: Any, uncompiled: Any) -> None:
    same(bp.Sequential(bp.Dense(12), layer, bp.Dense(3)), "mse", bp.SGD(0.05), 30, monkeypatch)
    assert uncompiled()


# ---- what close readings found ---------------------------------------------------------------------------------------


def both(monkeypatch: Any, function: Any) -> list[Any]:
    """What `function()` gives as it stands and compiled."""
    found = []
    for choice in (False, True):
        compiles(monkeypatch, choice)
        found.append(function())
    return found


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8"])
@DTYPES
def test_labels_of_every_type_in_shuffled_batches(dtype: str, kind: str, monkeypatch: Any, uncompiled: Any) -> None:
    x, y, _ = data(NETWORKS["dense"], "cross_entropy", 200, dtype)

    def losses() -> Any:
        trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy", bp.SGD(0.05))
        return trainer.fit(x, y.astype(kind), epochs=4, batch_size=64, progress=False)["loss"]

    plain, mine = both(monkeypatch, losses)
    np.testing.assert_allclose(mine, plain, rtol=1e-4 if dtype == "float32" else 1e-12)
    assert not uncompiled()


def test_one_trainer_in_several_threads(jit: Any) -> None:
    x = data(NETWORKS["dense"], "cross_entropy", 300)[0]
    trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy").build(x)
    expected = {rows: trainer.predict(x[:rows]) for rows in (300, 100)}
    wrong: list[int] = []

    def ask(rows: int) -> None:
        for _ in range(200):
            shifted = x[:rows].copy()
            if not np.array_equal(trainer.predict(shifted), expected[rows]):
                wrong.append(rows)

    workers = [threading.Thread(target=ask, args=(rows,)) for rows in (300, 300, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_teams_of_changing_size(jit: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("bpnet.backends.numpy.available_threads", lambda: 4)
    trainers = []
    for threads, dtype in ((4, "float32"), (2, "float64"), (3, "float32"), (1, "float64")):
        x = np.random.default_rng(0).standard_normal((900, 300)).astype(dtype)
        trainer = bp.Trainer(bp.Sequential(bp.Dense(400, "relu"), bp.Dense(300)), "mse", threads=threads).build(x)
        trainers.append((trainer, x, trainer.predict(x)))
    for _ in range(30):
        for trainer, x, expected in trainers:
            assert np.array_equal(trainer.predict(x), expected)


def test_a_single_very_wide_row(monkeypatch: Any, uncompiled: Any) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3))

    def results_of() -> list[Any]:
        trainer = bp.Trainer(bp.Dense(20000, "softmax"), "mse", bp.SGD(1.0), clip_norm=1.0).build(x)
        outputs = trainer.predict(x)
        trainer.step(x, np.linspace(0.0, 1.0, 20000)[None])
        return [outputs, trainer.theta]

    for plain, mine in zip(*both(monkeypatch, results_of), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-9, atol=1e-12)
    assert not uncompiled()


@dataclass(frozen=True)
class _DropPath(bp.Layer):
    """Drops whole rows, with one draw a row, doubled before it is used."""

    stochastic = True

    def forward(self, run: Run, p: Any, x: Any) -> tuple[Any, Any]:
        mask = 2.0 * run.keep_mask((x.shape[0], 1), 0.5, like=x)
        return x * mask, mask

    def backward(self, run: Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy * cache, {}


def test_a_mask_is_drawn_for_its_own_entries(jit: Any, uncompiled: Any) -> None:
    x = np.random.default_rng(0).standard_normal((50, 33)) + 10.0
    found = compiled(lambda b, x: _DropPath().forward(Run(b, True, (1, 2)), {}, x)[0], x)
    expected = bp.backends.Backend(SEAM.xp).keep_mask((1, 2), (50, 1), 0.5, x.dtype, "cpu")
    np.testing.assert_array_equal(found, x * (2.0 * expected))
    assert not uncompiled()


@dataclass(frozen=True)
class _Swaps(bp.ElementwiseOptimizer):
    """Each vector's new values come of the other's old ones, and of other places of its own."""

    lr: float = 0.1
    state_names = ("other",)

    def elementwise(self, b: Any, theta: Any, v: Any, grad: Any, lr: Any) -> tuple[Any, ...]:
        return 0.5 * v + (1.0 - lr) * grad, 2.0 * theta


@dataclass(frozen=True)
class _Turns(_Swaps):
    def update(self, backend: Any, layout: Any, theta: Any, grad: Any, state: Any, *args: Any, **options: Any) -> Any:
        half = layout.size // 2
        turned = backend.xp.concat([theta[half:] * 0.5, theta[:half] + grad[:half]])
        return turned, (state[0] + theta,)


@dataclass(frozen=True)
class _Remembers(bp.Layer):
    """Two buffers, each of which becomes what comes of the other."""

    def init(self, rng: Any, in_shape: Any) -> dict[str, Any]:
        return {n: bp.Leaf(rng.full(in_shape, v), trainable=False) for n, v in (("a", 1.0), ("b", 3.0))}

    def forward(self, run: Run, p: Any, x: Any) -> tuple[Any, Any]:
        return x * p["a"], x

    def backward(self, run: Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy * p["a"], {}

    def update_buffers(self, run: Run, p: Any, cache: Any) -> dict[str, Any]:
        return {"a": p["b"] * 0.9, "b": p["a"] * 1.1 + run.xp.sum(cache, axis=0)}


@pytest.mark.parametrize("optimizer", [_Swaps(), _Turns()], ids=str)
def test_what_is_given_up_is_read_before_it_is_written_over(optimizer: Any, monkeypatch: Any, uncompiled: Any) -> None:
    same(bp.Sequential(bp.Dense(7), _Remembers(), bp.Dense(6)), "mse", optimizer, 30, monkeypatch, clip_norm=1.0)
    assert not uncompiled()


@dataclass(frozen=True)
class _Odd(bp.Layer):
    """Things that a layer may do, each of which has no symbol, or needs care."""

    what: str

    def forward(self, run: Run, p: Any, x: Any) -> tuple[Any, Any]:
        xp = run.xp
        if self.what == "rows by the best column":
            return x + xp.take(x, xp.argmax(x, axis=1), axis=0), None
        if self.what == "a transpose that is added":
            square = x[:5, ...][:, ...] if x.shape[1] == 5 else x
            return x + xp.sum(square + xp.permute_dims(square, (1, 0)), axis=0), None
        if self.what == "truths of a row":
            return xp.where(x[0, ...] > 0.0, x, 0.5 * x) if x.ndim == 3 else xp.where(
                xp.sum(x, axis=0) > 0.0, x, 0.5 * x
            ), None
        return xp.astype(xp.reshape(x > 0.0, (-1, x.shape[1])), x.dtype) + x, None

    def backward(self, run: Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


@pytest.mark.parametrize(
    "what", ["rows by the best column", "a transpose that is added", "truths of a row", "truths turned"]
)
def test_what_has_no_symbol_gives_the_same_all_the_same(what: str, monkeypatch: Any, caplog: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 5))
    network = bp.Sequential(bp.Dense(5), _Odd(what))
    plain, mine = both(monkeypatch, lambda: bp.Trainer(network, "mse").build(x).predict(x))
    np.testing.assert_allclose(mine, plain, rtol=1e-12)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_arrays_of_other_kinds(jit: Any, tmp_path: Path) -> None:
    x, y, _ = data(NETWORKS["dense"], "cross_entropy", 50)
    trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy").build(x)
    mapped = np.memmap(tmp_path / "x", x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    assert np.array_equal(trainer.predict(mapped), trainer.predict(x))
    memory = np.frombuffer(bytes(trainer.theta.nbytes), trainer.theta.dtype)
    trainer._engine.state.now = (
        (memory, *trainer._engine.state.now[0][1:]),
        trainer.step_count,
    )  # as when it comes out of a read-only file
    trainer.step(x, y)
    assert not memory.any()
    assert trainer.theta.any()


def test_many_blocks(jit: Any, monkeypatch: Any, uncompiled: Any) -> None:
    monkeypatch.setattr("bpnet.backends.numpy.compiled.COMPILED_ROWS", 4)
    x, y, _ = data(NETWORKS["dense"], "cross_entropy", 1600)
    trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy").build(x)
    assert trainer.predict(x).shape == (1600, 10)
    assert np.isfinite(trainer.evaluate(x, y)["loss"])
    assert not uncompiled()


def test_sums_over_large_vectors_do_not_depend_on_threads(jit: Any) -> None:
    x, y, _ = data(NETWORKS["dense"], "cross_entropy", 40)
    found = []
    for threads in (1, 2, 3):
        network = bp.Sequential(bp.Dense(900, "relu"), bp.Dense(50, "tanh"), bp.Dense(10))
        trainer = bp.Trainer(network, "cross_entropy", bp.SGD(0.3), clip_norm=0.01, threads=threads)
        for _ in range(5):
            trainer.step(x, y)
        found.append(trainer.theta)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_numbers_are_computed_in_double_precision(jit: Any) -> None:
    def rule(b: Any, x: Any, beta: Any) -> Any:
        return (1.0 - beta) * x

    x = np.ones((1, 3), "float32")
    assert np.array_equal(compiled(rule, x, 0.999999), rule(SEAM, x, 0.999999))


def test_a_prediction_does_not_keep_what_it_was_given(jit: Any) -> None:
    x = data(NETWORKS["dense"], "cross_entropy", 50)[0]
    trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy").build(x)
    given = x.copy()
    trainer.predict(given)
    kept = weakref.ref(given)
    del given
    assert kept() is None


# ---- when it is compiled -------------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.stdout


def test_little_work_loads_no_compiler() -> None:
    run(
        "import sys, numpy as np, bpnet as bp\n"
        "x = np.random.default_rng(0).random((100, 5))\n"
        "bp.Trainer(bp.Dense(1), 'mse').fit(x, x[:, :1], epochs=3)\n"
        "assert 'llvmlite' not in sys.modules"
    )


def test_the_same_steps_are_compiled_every_time(monkeypatch: Any, tmp_path: Path) -> None:
    """When a training goes over depends on its work alone, so the same seed gives the same bits."""
    monkeypatch.setattr("bpnet.backends.numpy.WORTH_IT", 3e7)
    network = NETWORKS["dense"]
    x, y, _ = data(network, "cross_entropy", 60)

    def fit(trainer: bp.Trainer, epochs: int) -> bp.Trainer:
        for _ in range(epochs):
            trainer.fit(x, y, batch_size=20, progress=False)
        return trainer

    whole = fit(bp.Trainer(network, "cross_entropy"), 12)
    assert np.array_equal(fit(bp.Trainer(network, "cross_entropy"), 12).theta, whole.theta)
    assert not np.array_equal(fit(bp.Trainer(network, "cross_entropy", compile=False), 12).theta, whole.theta)
    part = fit(bp.Trainer(network, "cross_entropy"), 7)
    part.save(tmp_path / "part.safetensors")
    assert np.array_equal(fit(bp.load(tmp_path / "part.safetensors", like=x), 5).theta, whole.theta)


USE = (
    "import numpy as np, bpnet as bp\n"
    "x = np.random.default_rng(0).random((100, 5), 'f4')\n"
    "t = bp.Trainer(bp.Dense(2, 'relu'), 'mse', compile=True); t.fit(x, x[:, :2], epochs=3)\n"
    "print(t.theta.tolist())"
)


def _evaluated(trainer: bp.Trainer, x: Any, y: Any) -> float:
    trainer.evaluate(x, y, sample_weight=np.random.default_rng(1).uniform(size=len(x)))
    return trainer.evaluate(x, y)["loss"]


def _stepped(trainer: bp.Trainer, x: Any, y: Any) -> float:
    trainer.step(x, y, np.linspace(0.0, 2.0, 2 * len(x))[::2])
    return float(trainer.step(x, y))


def _shuffled(trainer: bp.Trainer, x: Any, y: Any) -> float:
    trainer.fit(x, y, batch_size=len(x) // 4, progress=False)
    return float(trainer.step(x, y))


@pytest.mark.parametrize("calls", [_evaluated, _stepped, _shuffled])
def test_what_was_passed_before_and_is_gone_is_not_used(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and orders that no longer exist when a call without any follows."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((400, 20)), rng.integers(0, 3, 400)
    found = []
    for choice in (False, True):
        compiles(monkeypatch, choice)
        trainer = bp.Trainer(bp.Sequential(bp.Dense(32, "relu"), bp.Dense(3)), "cross_entropy", seed=0).build(x)
        found.append(calls(trainer, x, y))
    assert found[1] == pytest.approx(found[0], rel=1e-12)


OTHER_PROCESSOR = """
import numpy as np
from bpnet.compiler.llvm import builder, jit
builder.vector_bytes, builder.many_registers, builder.fuses = (lambda: {width}), (lambda: {many}), (lambda: {fuses})
if not {many} and jit.llvm.get_default_triple().startswith("x86_64"):  # and no instruction that it lacks
    jit._identity = lambda: ("", "haswell" if {fuses} else "x86-64", "")
import bpnet as bp
rng = np.random.default_rng(0)
for dtype in ("float32", "float64"):
    x, y = rng.standard_normal((300, 37)).astype(dtype), rng.integers(0, 5, 300)
    found = []
    for choice in (False, True):
        net = bp.Sequential(bp.Dense(70, "tanh"), bp.Dense(53), bp.BatchNorm(), bp.ReLU(), bp.Dense(5))
        trainer = bp.Trainer(net, "cross_entropy", bp.Adam(1e-3, epsilon=1e-3), seed=1, compile=choice)
        trainer.fit(x, y, epochs=2, batch_size=128, progress=False)
        found.append(np.concatenate([trainer.theta, trainer.predict(x).ravel(), trainer.predict(x[:1]).ravel()]))
    error = np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])
    assert error < (1e-4 if dtype == "float32" else 1e-10), error
"""


@pytest.mark.parametrize(("width", "many", "fuses"), [(32, False, True), (16, True, True), (16, False, False)])
def test_processors_with_shorter_vectors(width: int, many: bool, fuses: bool, tmp_path: Path) -> None:
    """With 16 registers of 32 bytes, 32 of 16, and the least that x86-64 has."""
    run(OTHER_PROCESSOR.format(width=width, many=many, fuses=fuses), BPNET_CACHE_DIR=str(tmp_path))


def test_machine_code_is_kept_and_damaged_files_replaced(tmp_path: Path) -> None:
    first = run(USE, BPNET_CACHE_DIR=str(tmp_path))
    files = sorted(tmp_path.glob("*.o"))
    assert len(files) > 3
    times = [file.stat().st_mtime_ns for file in files]
    assert run(USE, BPNET_CACHE_DIR=str(tmp_path)) == first
    assert [file.stat().st_mtime_ns for file in files] == times
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert run(USE, BPNET_CACHE_DIR=str(tmp_path)) == first


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert run(USE, BPNET_CACHE_DIR=str(occupied / "folder")) == run(USE, BPNET_CACHE_DIR=str(tmp_path / "other"))


def test_the_extra_that_is_asked_for_and_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpnet.backends.numpy.can_compile", lambda: False)
    x = np.ones((4, 2))
    bp.Trainer(bp.Dense(1), "mse").step(x, x[:, :1])
    with pytest.raises(bp.errors.MissingExtraError, match=r"llvmlite: pip install 'bpnet-xp\[jit\]'"):
        bp.Trainer(bp.Dense(1), "mse", compile=True).step(x, x[:, :1])


def test_a_helper_that_falls_asleep_in_the_midst_of_a_list_goes_on() -> None:
    """Nobody would wake it before the next list."""
    from bpnet.compiler.llvm import thread_pool

    helper = object.__new__(thread_pool._Worker)
    helper.pool, helper.memory, helper.number = thread_pool.ThreadPool(), np.zeros(1), 0
    helper.scratch = np.zeros(1)
    helper.called, helper.awake, slept, asleep = SimpleQueue(), False, [], threading.Event()

    def help(*_: Any) -> None:  # returns when there was nothing to do for a while
        slept.append(helper.pool.at_work)
        if len(slept) == 3:
            helper.pool.at_work = 0
            asleep.set()

    helper.help, helper.pool.at_work = help, 1
    threading.Thread(target=helper.serve, daemon=True).start()
    helper.called.put(None)
    assert asleep.wait(10)
    for _ in range(1000):
        if not helper.awake:
            break
        time.sleep(0.01)
    assert not helper.awake
    assert slept == [1, 1, 1]
