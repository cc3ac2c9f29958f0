"""The seam: what every backend adds to the Array API standard, held against its definition."""

import importlib
import itertools
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import mpmath
import numpy as np
import pytest
from conftest import SUBSTITUTED

import bpnet as bp
from bpnet.backends import base, common_backend
from bpnet.compiler import random
from bpnet.errors import ArgumentError, ArrayMismatchError, MissingExtraError, UnknownNameError


def mask(lib, key, shape=(300, 70), keep=0.7, dtype="float64"):
    like = lib.array(np.zeros(1), dtype)
    return lib.call(lambda like: bp.Run(lib.seam, True, key).keep_mask(shape, keep, like), like)


# ---- random numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.5, 0.05])
def test_mask_keeps_the_share_and_the_mean(backend, keep):
    drawn = backend.host(mask(backend, (1, 2, 3), keep=keep))
    n = drawn.size
    assert set(np.round(np.unique(drawn) * keep, 3)) == {0.0, 1.0}
    spread = 5.0 * (keep * (1.0 - keep) / n) ** 0.5
    assert abs(np.mean(drawn > 0.0) - keep) < spread + 2.0**-16
    assert abs(np.mean(drawn) - 1.0) < spread / keep
    for axis in (0, 1):  # no row or column is special
        share = np.mean(drawn > 0.0, axis=axis)
        assert np.max(np.abs(share - keep)) < 6.0 * (keep * (1.0 - keep) / drawn.shape[axis]) ** 0.5


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_mask_is_the_same_whenever_it_is_asked(backend, dtype):
    first, again = (mask(backend, (5, 6, 7), dtype=dtype) for _ in range(2))
    np.testing.assert_array_equal(backend.host(first), backend.host(again))
    assert backend.dtype(first) == dtype
    assert backend.seam.device(first) == backend.seam.device(backend.array(np.zeros(1)))


def test_another_key_gives_an_independent_mask(backend):
    base_key = (5, 6, 0, 7)
    first = backend.host(mask(backend, base_key)) > 0.0
    for other in [(4, 6, 0, 7), (5, 7, 0, 7), (5, 6, 1, 7), (5, 6, 0, 8), (6, 5, 0, 7), (5, 6, 0), (5, 6, 0, 7, 0)]:
        same = np.mean((backend.host(mask(backend, other)) > 0.0) == first)
        assert abs(same - (0.7**2 + 0.3**2)) < 0.02, other


def test_mask_is_bit_identical_among_libraries(backend):
    drawn = backend.host(mask(backend, (1, 2, 3)))
    words = [random._mix(i * 0x9E3779B9 + random.fold((1, 2, 3))) for i in range(drawn.size)]
    kept = np.array(words).reshape(drawn.shape) < round(0.7 * 2**32)
    np.testing.assert_array_equal(drawn > 0.0, kept)
    np.testing.assert_allclose(drawn[kept], 1 / 0.7, rtol=1e-9)


def test_mask_of_a_traced_step_is_that_of_its_number(backend):
    """The step number is an array where a step is compiled, and must name the same mask as the number itself."""
    like = backend.array(np.zeros(1))
    drawn = backend.call(lambda n, like: bp.Run(backend.seam, True, (9, n, 0)).keep_mask((40, 5), 0.5, like), 4, like)
    again = backend.call(lambda like: bp.Run(backend.seam, True, (9, 4, 0)).keep_mask((40, 5), 0.5, like), like)
    np.testing.assert_array_equal(backend.host(drawn), backend.host(again))


def test_rows_draw_the_same_wherever_they_are(backend):
    """A row by its number, which may change from call to call, and not by the rows that it is computed with."""
    if backend.name == "jax":
        pytest.skip("on JAX it is compiled: the member jax-jit")
    like = backend.array(np.zeros(1))

    def drawn(n, like, rows=40, by_row=True):
        run = bp.Run(backend.seam, True, (9, 4))
        run.first_row = n
        run = run.at("inner")
        shape = rows, 5
        return run.keep_mask(shape, 0.5, like, by_row), run.uniform(shape, like, by_row)

    whole = [backend.host(a) for a in backend.call(drawn, 0, like)]
    few = backend.compiled(lambda n, like: drawn(n, like, 7))
    for first in (3, 33):
        for part, every in zip(few(first, like), whole, strict=True):
            np.testing.assert_array_equal(backend.host(part), every[first : first + 7])
    for part, every in zip(backend.call(lambda n, like: drawn(n, like, 7, False), 33, like), whole, strict=True):
        np.testing.assert_array_equal(backend.host(part), every[:7])
    assert not np.array_equal(whole[0][:7], whole[0][7:14])


def test_large_mask_does_not_depend_on_threads(library):
    lib = library("numpy")
    masks = []
    for threads in (1, 2, 3):
        with lib.seam.session(threads):
            masks.append(mask(lib, (1, 2), shape=(1000, 1000)))
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])
    assert abs(np.mean(masks[0]) - 1.0) < 0.005
    kept = masks[0].ravel() > 0.0
    for lag in 2 ** np.arange(20):  # no part of it is drawn twice
        assert abs(np.mean(kept[lag:] == kept[:-lag]) - (0.7**2 + 0.3**2)) < 0.01


# ---- operations the standard lacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("float64", 5e-16, 0.0), ("float32", 0.0, 2e-7)])
def test_erf(backend, dtype, rtol, atol):
    z = np.concatenate([np.linspace(-7, 7, 701), [1e-300, 1e-30, 1e-8, -1e-8, 30, -30, 1e8, -1e8, 0]]).astype(dtype)
    exact = [float(mpmath.erf(v)) for v in z.tolist()]
    with backend.seam.session():
        found = backend.call(lambda z: backend.seam.erf(z), backend.array(z))
    assert backend.dtype(found) == dtype
    np.testing.assert_allclose(backend.host(found), exact, rtol=rtol, atol=max(atol, float(np.finfo(dtype).tiny)))


def test_the_library_as_a_default_backend_gives_the_same(backend):
    """What a backend overrides equals the definition in standard operations, run on the same library."""
    if SUBSTITUTED and backend.name == "cupy":
        pytest.skip("the substitute for a device has no scans")
    plain = base.Backend(backend.xp)
    rng = np.random.default_rng(0)
    z = backend.array(rng.standard_normal(50) * 3.0)
    backend.close(backend.seam.erf(z), backend.host(plain.erf(z)))


# ---- to and from the host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32"])
def test_to_and_from_the_host(backend, dtype):
    values = (np.arange(6).reshape(2, 3) * 1.5).astype(dtype)
    there = backend.seam.from_host(values)
    assert backend.dtype(there) == dtype
    np.testing.assert_array_equal(backend.seam.to_host(there), values)
    single = backend.seam.from_host(values, backend.dtypes["float32"], backend.seam.device(there))
    assert backend.dtype(single) == "float32"
    values[0, 0] = 99
    assert backend.host(there)[0, 0] == 0  # a copy, whatever the host does afterwards


def test_copy_is_a_copy(library):
    for name in ("numpy", "torch"):
        lib = library(name)
        x = lib.array(np.ones(3))
        copied = lib.seam.copy(x)
        x[0] = 5.0
        np.testing.assert_array_equal(lib.host(copied), np.ones(3))


def test_fetch_gives_numbers(backend):
    scalars = [backend.xp.sum(backend.array(np.full(3, v))) for v in (1.0, 2.0)]
    assert backend.seam.fetch(scalars) == [3.0, 6.0]
    assert all(type(v) is float for v in backend.seam.fetch(scalars))
    backend.seam.synchronise(scalars[0])


def test_memory_is_none_or_free_of_total(backend):
    memory = backend.seam.memory(backend.array(np.zeros(1)))
    assert memory is None or 0 < memory[0] <= memory[1]


def test_to_host_from_another_device(library):
    lib = library("strict-device")
    np.testing.assert_array_equal(lib.seam.to_host(lib.array(np.ones(3))), np.ones(3))


# ---- finding the backend of an array --------------------------------------------------------------------------------


def test_arrays_find_their_backend(backend):
    x = backend.array(np.zeros(2))
    assert bp.backends.backend_of(x) is backend.seam
    assert common_backend({"x": x, "y": x}, {"weight": None}) is backend.seam
    if backend.seam.name in bp.backends.NAMES:
        assert bp.backends.get(backend.seam.name) is backend.seam


def test_two_libraries_do_not_mix(backend, library):
    other = library("strict" if backend.name != "strict" else "numpy")
    with pytest.raises(ArrayMismatchError, match=rf"x belongs to {backend.seam.name}, but y to {other.seam.name}"):
        common_backend({"x": backend.array(np.zeros(2)), "y": other.array(np.zeros(2))})


def test_two_devices_do_not_mix(library):
    here, there = library("strict"), library("strict-device")
    with pytest.raises(ArrayMismatchError, match=r"x lies on device .* but y on"):
        common_backend({"x": here.array(np.zeros(2)), "y": there.array(np.zeros(2))})


@pytest.mark.parametrize("thing", [[1.0], (1.0,), 1.0, "x", None, {"a": 1}, object(), np.ma.zeros(2), memoryview(b"x")])
def test_what_is_no_array_is_refused(thing):
    with pytest.raises(ArrayMismatchError, match="x is"):
        bp.backends.backend_of(thing)


def test_unknown_backend_suggests_a_known_one():
    with pytest.raises(UnknownNameError, match="did you mean 'numpy'"):
        bp.backends.get("nunpy")
    with pytest.raises(ArgumentError):
        bp.backends.get(None)


@pytest.mark.parametrize(
    ("name", "hint"), [("cupy", r"bpnet-xp\[cuda13\]"), ("torch", "pip install torch"), ("jax", "pip install jax")]
)
def test_a_library_that_is_missing_is_named(monkeypatch, name, hint):
    monkeypatch.setattr(bp.backends, "_by_name", {})
    monkeypatch.delitem(sys.modules, f"bpnet.backends.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"array_api_compat.{name}", None)
    package = importlib.import_module("bpnet.backends")
    monkeypatch.delattr(package, name, raising=False)
    with pytest.raises(MissingExtraError, match=hint):
        bp.backends.get(name)


# ---- compiling ------------------------------------------------------------------------------------------------------


def test_later_steps_compile_nothing(backend):
    """A step is traced once: neither its number nor its learning rate is a constant of the program."""
    traced = []

    @dataclass(frozen=True)
    class Counted(bp.Dense):
        def forward(self, run, p, x):
            traced.append(x.shape)
            return super().forward(run, p, x)

    if backend.name != "jax-jit":
        pytest.skip("compiles nothing")
    x, y = backend.array(np.ones((6, 3))), backend.array(np.ones((6, 2)))
    trainer = bp.Trainer(bp.Sequential(Counted(2), bp.Dropout(0.1)), "mse", bp.Adam(bp.WarmUp(0.1, 5)), clip_norm=1.0)
    trainer.build(x)  # which tries layers like this one by themselves
    traced.clear()
    for _ in range(5):
        trainer.step(x, y)
    assert len(traced) == 1
    trainer.fit(x, y, epochs=3, batch_size=2, progress=False)
    assert traced[1:] == [(2, 3)]


def test_jax_of_32_bits_takes_labels_of_64_and_refuses_other_numbers(tmp_path):
    pytest.importorskip("jax", reason="jax is not installed")
    bp.Trainer(bp.Dense(3), "cross_entropy").build(np.ones((4, 2))).save(tmp_path / "m.safetensors")
    code = """
import jax, numpy as np, bpnet as bp
x, y = np.arange(8.0, dtype="f4").reshape(4, 2), np.array([0, 1, 2, 0])
for labels in (y, y.astype(np.uint64)):
    losses = []
    for put in (np.asarray, bp.backends.get("jax").from_host):
        trainer = bp.Trainer(bp.Dense(3), "cross_entropy")
        losses += trainer.fit(put(x), put(labels, labels.dtype), progress=False)["loss"]
    assert abs(losses[0] - losses[1]) < 1e-5, losses
for call in (
    lambda: bp.load("m.safetensors", like=jax.numpy.ones(1)),
    lambda: bp.backends.get("jax").from_host(x, np.dtype("f8")),
    lambda: bp.backends.get("jax").from_host(y + 2**40, np.dtype("i8")),
):
    try:
        call()
    except bp.errors.DTypeError as error:
        assert "jax_enable_x64" in str(error) and "damaged" not in str(error), error
    else:
        raise AssertionError
"""
    environment = os.environ | {"JAX_ENABLE_X64": "0", "PYTHONPATH": str(Path(bp.__file__).parents[1])}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- blocks, threads and sessions -----------------------------------------------------------------------------------


def test_blocks_cover_all_rows_in_order(backend):
    for rows in (1, 2, 31, 1000, 12345):
        for work in (1.0, 1e4, 1e8):
            blocks = backend.seam.blocks(rows, work)
            assert blocks[0][0] == 0
            assert blocks[-1][1] == rows
            assert all(start < stop for start, stop in blocks)
            assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))


def test_blocks_depend_on_the_batch_alone(library):
    seam = library("numpy").seam
    found = []
    for threads in (1, 2, 7):
        with seam.session(threads):
            found.append(seam.blocks(9000, 1e6))
    assert len(found[0]) > 1
    assert found[0] == found[1] == found[2]


def test_results_come_in_the_order_of_the_blocks(backend):
    blocks = [(i, i + 1) for i in range(20)]
    with backend.seam.session(3):
        assert list(backend.seam.map_blocks(lambda number, part: (number, part), blocks)) == list(enumerate(blocks))


def test_blocks_run_on_as_many_threads_as_allowed(library):
    seam, meet = library("numpy").seam, threading.Barrier(3)
    with seam.session(3):  # each block waits for the two others: they must be at work at once
        names = set(seam.map_blocks(lambda *_: (meet.wait(10), threading.get_ident())[1], [(0, 1), (1, 2), (2, 3)]))
    assert len(names) == 3
    with seam.session(1):
        names = set(seam.map_blocks(lambda *_: threading.get_ident(), [(0, 1), (1, 2), (2, 3)]))
    assert names == {threading.get_ident()}


def test_an_error_in_a_block_reaches_the_caller(backend):
    def function(number, part):
        if number == 3:
            raise KeyError("third")
        return number

    seam, blocks = backend.seam, [(i, i + 1) for i in range(8)]
    with seam.session(2):
        results = iter(seam.map_blocks(function, blocks))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="third"):
            next(results)
    with seam.session(2):  # and the threads work on
        assert list(seam.map_blocks(lambda number, _: number, blocks)) == list(range(8))


def test_a_caller_may_stop_early(library):
    seam = library("numpy").seam
    with seam.session(2):
        results = seam.map_blocks(lambda number, _: number, [(i, i + 1) for i in range(50)])
        assert next(iter(results)) == 0
        results.close()
        assert list(seam.map_blocks(lambda number, _: number, [(0, 1), (1, 2)])) == [0, 1]


@pytest.fixture
def blas():
    """Threads of NumPy's BLAS, set to 2 for the test."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    found = controller.lib_controllers  # other packages, loaded by other tests, bring more
    libraries = [c for c in found if "numpy" in c.filepath] or found[:1]
    if not libraries:
        pytest.skip("NumPy's BLAS is none that threadpoolctl can set")
    with controller.limit(limits=2):
        if any(c.get_num_threads() != 2 for c in libraries):
            pytest.skip("NumPy's BLAS can't use two threads")
        yield lambda: {c.get_num_threads() for c in libraries}


def test_session_holds_blas_at_one_thread_and_restores_it(blas, library):
    seam = library("numpy").seam
    with seam.session():
        assert blas() == {1}
        with seam.session(2):
            assert blas() == {1}
        assert blas() == {1}
    assert blas() == {2}
    with pytest.raises(KeyError), seam.session():
        raise KeyError
    assert blas() == {2}


def test_session_of_another_thread_holds_blas_too(blas, library):
    seam, seen = library("numpy").seam, []

    def other():
        with seam.session():
            seen.append(blas())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [{1}]


def test_sessions_of_two_threads_overlap(blas, library):
    seam = library("numpy").seam
    entered, leave = threading.Event(), threading.Event()

    def other():
        with seam.session():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with seam.session():
        thread.start()
        assert entered.wait(10)
    still = blas()
    leave.set()
    thread.join()
    assert still == {1}  # the other was open
    assert blas() == {2}


def test_public_calls_restore_blas(blas, library):
    x, y = np.ones((6, 3)), np.ones((6, 1))
    trainer = bp.Trainer(bp.Dense(1), "mse")
    trainer.fit(x, y, epochs=2, progress=False)
    trainer.step(x, y)
    trainer.evaluate(x, y)
    trainer.predict(x)
    with pytest.raises(ValueError, match="features"):
        trainer.predict(np.ones((6, 4)))
    assert blas() == {2}


def test_session_restores_how_numpy_treats_floating_point_errors(library):
    before = np.geterr()
    with library("numpy").seam.session():
        assert set(np.geterr().values()) == {"ignore"}
    assert np.geterr() == before
