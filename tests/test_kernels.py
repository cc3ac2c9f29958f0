"""What a backend puts in the place of a definition, held against the definition run on the same library."""

import importlib
import pkgutil

import numpy as np
import pytest
from conftest import SUBSTITUTED

import bpnet as bp
from bpnet.backends import base
from bpnet.layer import KERNELS
from bpnet.optimizers.adam import Adam, AdamW
from bpnet.optimizers.sgd import SGD

ROWS = (7, 5000)
"""Rows of a small batch, and of one that is cut up, in chunks of 65,536 elements and in blocks over threads."""


def matmul(lib, rng, rows, f):
    for k, m in ((40, 30), (7, 3)):
        x, w, dy = (lib.array(rng.standard_normal(s)) for s in ((rows, k), (k, m), (rows, m)))
        turned = lib.array(rng.standard_normal((m, rows)))
        yield from ((x, w), (dy, w, False, True), (x, dy, True), (x, turned, True, True), (turned, x))
    stacks = [lib.array(rng.standard_normal(s)) for s in ((3, rows, 4), (3, rows, 5), (4, 6))]
    yield from ((stacks[0], stacks[1], True), (stacks[0], stacks[2]))


def sum_rows(lib, rng, rows, f):
    yield from ((lib.array(rng.standard_normal((rows, *shape))),) for shape in ((30,), (3, 5), (1,)))


def dense_forward(lib, rng, rows, f):
    args = [rng.standard_normal(s) for s in ((rows, 40), (40, 30), (30,))]
    for bias in (True, False):
        x, weight, b = map(lib.array, args)
        yield (x, weight, b if bias else None, f)


def dense_backward(lib, rng, rows, f):
    x, weight, dy = (rng.standard_normal(s) for s in ((rows, 40), (40, 30), (rows, 30)))
    run = bp.Run(base.Backend(lib.xp))
    _, kept = KERNELS["dense_forward"](run, lib.array(x), lib.array(weight), None, f)
    for need_dx in (True, False):
        for bias in (True, False):
            yield (lib.array(x), lib.array(weight), kept, lib.array(dy), f, need_dx, bias)


def batch_norm_forward(lib, rng, rows, f):
    yield (*(lib.array(rng.standard_normal(s) + 2.0) for s in ((rows, 30), (30,), (30,))), 1e-5)


def batch_norm_backward(lib, rng, rows, f):
    for need_dx in (True, False):
        yield (*(lib.array(rng.standard_normal(s)) for s in ((rows, 30), (30,), (rows, 30))), need_dx)


def softmax_cross_entropy(lib, rng, rows, f):
    z = lib.array(3.0 * rng.standard_normal((rows, 30)))
    labels, weight = rng.integers(0, 30, rows).astype(np.int32), rng.uniform(size=rows)
    for target in (labels, np.eye(30)[labels]):
        for w in (None, lib.array(weight)):
            yield (z, lib.array(target), w, float(rows))


def elementwise_loss(lib, rng, rows, f):
    for loss in (bp.MeanSquaredError, bp.BinaryCrossEntropy, bp.BinaryCrossEntropyWithLogits):
        for width in (1, 30):
            output, target = rng.uniform(0.1, 0.9, (rows, width)), rng.uniform(size=(rows, width))
            for factor in (0.5 / rows, lib.array(rng.uniform(size=(rows, 1)))):
                yield (loss(), lib.array(output), lib.array(target), factor)


def scatter_add(lib, rng, rows, f):
    index = lib.array(rng.integers(0, 7, rows))
    for entries in (7, 9):  # some of which nobody names
        yield (lib.array(np.zeros((entries, 3))), index, lib.array(rng.standard_normal((rows, 3))))


def first_places(lib, rng, rows, f):
    yield (lib.array(rng.integers(0, 900, rows)), 900)


def read(lib, rng, rows, f):
    yield (tuple(lib.array(rng.standard_normal(n)) for n in (3, 5)),)


def put_rows(lib, rng, rows, f):
    """Numbers that occur several times have the same row each time."""
    index, table = rng.integers(0, 900, rows), rng.standard_normal((900, 3))
    vectors = tuple(lib.seam.copy(lib.array(rng.standard_normal(n))) for n in (10 + 2700, 4))
    whole, values = (lib.array(rng.standard_normal(n)) for n in (10, 4))
    some = (slice(0, 10), None, None, whole), (slice(10, 2710), (900, 3), lib.array(index), lib.array(table[index]))
    yield (vectors, (some, ((..., None, None, values),)))


ARGUMENTS = {
    f.__name__: f
    for f in (
        matmul, sum_rows, dense_forward, dense_backward, batch_norm_forward, batch_norm_backward,
        softmax_cross_entropy, elementwise_loss, scatter_add, first_places, read, put_rows,
    )
}  # fmt: skip
ACTIVATIONS = [bp.Identity(), bp.ReLU(), bp.GELU(), bp.Softmax()]
"""Of which the derivative reads nothing, the output, the input; and one that is not elementwise."""
for module in pkgutil.walk_packages(bp.__path__, "bpnet."):  # a definition is known once its module is imported
    if module.name.startswith(("bpnet.layers.", "bpnet.losses")):
        importlib.import_module(module.name)


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


def equal(lib, got, want):
    for a, b in zip(flat(got), flat(want), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert lib.dtype(a) == lib.dtype(b)
            assert tuple(a.shape) == tuple(b.shape)
            lib.close(a, lib.host(b))


def test_every_kernel_has_arguments_here():
    assert ARGUMENTS.keys() == KERNELS.keys()


def test_backends_replace_only_kernels(backend):
    assert backend.seam.kernels.keys() <= KERNELS.keys()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_replacement_equals_its_definition(backend, name, rows):
    replacement = backend.seam.kernels.get(name)
    if replacement is None:
        pytest.skip(f"{backend.seam.name} runs the definition")
    if backend.name == "cupy" and SUBSTITUTED and name in ("first_places", "put_rows"):
        pytest.skip("the definition sorts, which CuPy does by Thrust, and so only on a device")
    run, plain = bp.Run(backend.seam, True), bp.Run(base.Backend(backend.xp), True)
    activations = ACTIVATIONS if name.startswith("dense") else [None]
    if backend.name == "jax-jit" and rows > ROWS[0]:  # which knows no blocks of rows
        activations = activations[:2]
    for f in activations:
        for number, args in enumerate(ARGUMENTS[name](backend, np.random.default_rng(0), rows, f)):
            before = [backend.host(a) if hasattr(a, "shape") else a for a in args]
            with backend.seam.session(2):
                got = replacement(run, *args)
                few = rows if name == "sum_rows" else 0  # of which NumPy's replacement makes one sum
                assert number or few > 128 or got is not NotImplemented, "the first case is what the replacement is for"
                if got is not NotImplemented:  # it is left to the definition
                    want = KERNELS[name](plain, *args)
                    equal(backend, got, want)
            for a, old in zip(args, before, strict=True):
                if hasattr(a, "shape"):
                    np.testing.assert_array_equal(backend.host(a), old)


@pytest.mark.parametrize("shape", [(7, 5), (5000, 30), (300, 20, 30)])
def test_fused_rule_equals_the_rule(backend, shape):
    if type(backend.seam).fuse is base.Backend.fuse:
        pytest.skip(f"{backend.seam.name} evaluates rules as they stand")
    rng = np.random.default_rng(0)
    z, dy = backend.array(rng.standard_normal(shape)), backend.array(rng.standard_normal(shape))
    for f in (bp.Sigmoid(), bp.GELU(), bp.Softmax()):
        with backend.seam.session(2):
            y = backend.seam.fuse(f.value)(backend.seam, z)
            kept = f.saved(z, y)
            equal(backend, y, f.value(backend.seam, z))
            equal(
                backend, backend.seam.fuse(f.derivative)(backend.seam, kept, dy), f.derivative(backend.seam, kept, dy)
            )


# ---- sweeping a rule over vectors -----------------------------------------------------------------------------------


def untraceable(b, x, g, factor):
    return (b.xp.where(x > 0.0, x - factor * g, x),)


def shared(b, x, v, g, factor):
    """Values that are read again after the place of a result could have been taken."""
    step = factor * g + v
    return x - step * v, step + x / (b.xp.abs(v) + 1.0)


def passed_through(b, x, v, g, factor):
    return x - factor * g, v


RULES = {  # a rule, how many vectors of state it has, how many scalars
    "sgd": (SGD().elementwise, 0, 1),
    "momentum": (SGD(momentum=0.9).elementwise, 1, 1),
    "nesterov": (SGD(momentum=0.9, nesterov=True).elementwise, 1, 1),
    "adam": (Adam().elementwise, 2, 2),
    "adamw": (AdamW().elementwise_step, 2, 3),
    "untraceable": (untraceable, 0, 1),
    "shared": (shared, 1, 1),
    "passed through": (passed_through, 1, 1),
}


@pytest.mark.parametrize("donate", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize("size", [90, 70_000, 200_003])
@pytest.mark.parametrize("name", RULES)
def test_sweep_equals_the_plain_rule_bit_for_bit(name, size, donate, library):
    lib = library("numpy")
    rule, states, scalars = RULES[name]
    rng = np.random.default_rng(0)
    arrays = [np.abs(rng.standard_normal(size)) for _ in range(states + 2)]
    first, second = (tuple(rng.uniform(0.1, 0.9, scalars).tolist()) for _ in range(2))
    pieces = [(0, size // 3, first), (size // 3, size, second)]
    expected = base.Backend(lib.xp).map_vector(rule, states + 1, arrays, pieces, False)
    given = [a.copy() for a in arrays]
    with lib.seam.session(2):
        found = lib.seam.map_vector(rule, states + 1, given, pieces, donate)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    for a, before in zip(given[0 if not donate else -1 :], arrays[0 if not donate else -1 :], strict=True):
        np.testing.assert_array_equal(a, before)


@pytest.mark.parametrize("name", RULES)
def test_sweep_on_every_library(backend, name, library):
    rule, states, scalars = RULES[name]
    rng = np.random.default_rng(0)
    arrays = [np.abs(rng.standard_normal(20)) for _ in range(states + 2)]
    numbers = tuple(rng.uniform(0.1, 0.9, scalars).tolist())
    given = [backend.array(a) for a in arrays]
    found = backend.seam.map_vector(rule, states + 1, given, [(0, 20, numbers)], False)
    for got, want in zip(found, rule(library("numpy").seam, *arrays, *numbers), strict=True):
        backend.close(got, want)
    for a, before in zip(given, arrays, strict=True):
        np.testing.assert_array_equal(backend.host(a), before)


@pytest.mark.parametrize("seed", range(40))
def test_sweep_of_a_random_rule(seed, library):
    """Rules of random operations: whatever the order of reads and writes, memory is never reused too early."""
    seam = library("numpy").seam
    plan = np.random.default_rng(seed)
    outputs = int(plan.integers(1, 4))
    steps = [(int(plan.integers(0, 6)), *plan.random(2).tolist()) for _ in range(int(plan.integers(1, 12)))]
    ends = plan.random(outputs).tolist()

    def rule(b, *values):
        *arrays, s = values
        known = list(arrays)
        for op, i, j in steps:
            x, y = known[int(i * len(known))], known[int(j * len(known))]
            known.append([x + y, x - s * y, x * y, y / (b.xp.abs(x) + 1.0), b.xp.sqrt(b.xp.abs(x)) - y, 0.5 - x][op])
        results = []
        for k, e in enumerate(ends):  # each another value, and none an input
            value = known[int(e * len(known))]
            results.append(value * (k + 2.0) if any(value is v for v in (*arrays, *results)) else value)
        return tuple(results)

    arrays = [plan.standard_normal(50) for _ in range(outputs + 1)]
    expected = rule(seam, *arrays, 0.3)
    for donate in (False, True):
        found = seam.map_vector(rule, outputs, [a.copy() for a in arrays], [(0, 50, (0.3,))], donate)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, want)
