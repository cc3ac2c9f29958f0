"""Real CuPy on a substitute for a device: what a step launches, allocates and waits for, and the rules of capture.

The substitute (`support/substitute.py`) computes every kernel and product on the host, in the order in which they are
given.  It can't tell how long anything takes, nor which products the real cuBLASLt has.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import SUBSTITUTED
from support import substitute

import bpnet as bp
from bench.workloads import WORKLOADS, Task, pool, start_values

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not SUBSTITUTED, reason=f"no substitute: {substitute.missing()}")]


@pytest.fixture
def cupy(library: Any) -> Any:
    pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    return library("cupy").module


class Spent:
    """What is done while this holds, by the names of `device.cpp`."""

    def __enter__(self) -> "Spent":
        self.before = Counter(substitute.counts())
        return self

    def __exit__(self, *_: object) -> None:
        self.counts = dict(Counter(substitute.counts()) - self.before)


def workload(key: str, cupy: Any) -> tuple[Any, ...]:
    """A trainer, and batches of 64 rows, on the device and on the host."""
    from bench.contenders.bpnet_trainer import trainer_for

    of = WORKLOADS[key]
    task = Task(of, "float32", 64, 1, "cuda", of.timing, start_values(of, "float32"))
    x, y = (a[0] for a in pool(of, 64, "float32"))
    return trainer_for(task), (cupy.asarray(x), cupy.asarray(y)), (x, y)


@pytest.fixture
def cub(cupy: Any) -> Iterator[None]:
    """CuPy sums by CUB, as it does unless it is told otherwise."""
    from cupy import _core

    before = _core.get_routine_accelerators(), _core.get_reduction_accelerators()
    for set_accelerators in (_core.set_routine_accelerators, _core.set_reduction_accelerators):
        set_accelerators(["cub"])
    yield
    _core.set_routine_accelerators(before[0])
    _core.set_reduction_accelerators(before[1])


@pytest.mark.usefixtures("cub")
def test_cupys_own_sums_are_counted(cupy: Any) -> None:
    x = cupy.asarray(np.arange(12, dtype="float32").reshape(3, 4))
    with Spent() as spent:
        found = [x.sum(), x.sum(axis=1), x.max(axis=1)]
    assert spent.counts["reduction of CUB"] == 3
    for f, e in zip(found, [66.0, [6.0, 22.0, 38.0], [3.0, 7.0, 11.0]], strict=True):
        np.testing.assert_array_equal(f.get(), e)


@pytest.mark.parametrize(("key", "most"), [("a", 12), ("c", 19), ("d", 8), ("e", 9)])
@pytest.mark.usefixtures("cub")
def test_a_captured_step_is_one_launch(key: str, most: int, cupy: Any) -> None:
    """Of few nodes, all kernels of ours and products of cuBLASLt, whatever CuPy sums by; in steady state nothing is
    allocated, and nobody waits."""
    trainer, batch, host = workload(key, cupy)
    with Spent() as first:
        trainer.step(*batch, check=False)
    with Spent() as second:
        trainer.step(*batch, check=False)
    assert first.counts["kernel"] + first.counts["product"] <= most
    assert first.counts.get("product of cuBLAS", 0) == 0
    nodes = {name.removeprefix("node: "): count for name, count in second.counts.items() if name.startswith("node: ")}
    assert sum(nodes.values()) <= most
    assert set(nodes) <= {"kernel", "product"}
    with Spent() as steady:
        for _ in range(3):
            trainer.step(*batch, check=False)
    assert steady.counts == {"graph launch": 3, "copy to device": 3}  # of the numbers that change from step to step
    plain, _, _ = workload(key, cupy)
    for _ in range(5):
        plain.step(*host)
    np.testing.assert_allclose(trainer.theta.get(), plain.theta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("key", ["a", "d"])
def test_a_step_command_by_command_allocates_nothing_more(key: str, cupy: Any) -> None:
    """What it needs lies in CuPy's pool from the first on."""
    trainer, batch, _ = workload(key, cupy)
    trainer.build(batch[0])
    trainer._engine.step.captures = False
    for _ in range(2):
        trainer.step(*batch, check=False)
    with Spent() as spent:
        trainer.step(*batch, check=False)
    assert set(spent.counts) == {"kernel", "product", "copy to device"}


@pytest.mark.parametrize("rows", [250, 8 * 32])
def test_a_fit_copies_the_order_of_rows_and_the_numbers(rows: int, cupy: Any) -> None:
    """Nothing else, with weights and a smaller last batch: a launch does all full batches, and another the last."""
    rng = np.random.default_rng(0)
    x, y, weight = rng.standard_normal((rows, 7), dtype="f"), rng.integers(0, 3, rows), rng.random(rows, dtype="f")
    data, seen = [cupy.asarray(a) for a in (x, y, weight)], []

    class Counting(bp.Callback):
        def on_epoch_end(self, trainer: Any, record: Any) -> None:
            seen.append(Counter(substitute.counts()))

    trainer = bp.Trainer(bp.Sequential(bp.Dense(8, "relu"), bp.Dense(3)), "cross_entropy", seed=0)
    trainer.fit(*data[:2], sample_weight=data[2], epochs=6, batch_size=32, progress=False, callbacks=[Counting()])
    spent, launches = seen[-1] - seen[-2], 1 if rows % 32 == 0 else 2
    assert spent["graph launch"] == launches
    assert (spent["copy to device"], spent["malloc"]) == (1 + launches, 0)
    assert spent["copy"] <= launches  # of the order, where it has come to lie elsewhere
    assert spent["kernel"] <= 9  # of what an epoch looks at in the end


def test_predictions_and_scores_equal_those_of_numpy(cupy: Any) -> None:
    trainer, (x, y), host = workload("a", cupy)
    plain, _, _ = workload("a", cupy)
    trainer.step(x, y)
    plain.step(*host)
    expected = plain.predict(host[0])
    np.testing.assert_allclose(trainer.predict(x).get(), expected, rtol=1e-4, atol=1e-5)
    with Spent() as spent:
        found = trainer.predict(x, check=False)
    assert set(spent.counts) == {"kernel", "product"}, "nobody waits"
    np.testing.assert_allclose(found.get(), expected, rtol=1e-4, atol=1e-5)
    assert trainer.evaluate(x, y) == pytest.approx(plain.evaluate(*host), rel=1e-4)


def test_what_may_not_be_captured(cupy: Any) -> None:
    """As CUDA's documentation has it; but in CuPy's own, relaxed mode, memory may be allocated."""
    x, size, runtime = cupy.ones(4), 2**20, cupy.cuda.runtime
    spoils = {
        "waiting": lambda stream: stream.synchronize(),
        "memory": lambda stream: cupy.empty(size + len(spoiled)),
        "a value": lambda stream: float(x[0]),
    }
    spoiled: list[str] = []
    for name, spoil in spoils.items():
        cupy.get_default_memory_pool().free_all_blocks()
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture(runtime.streamCaptureModeGlobal)
            with pytest.raises(Exception, match=r"cudaErrorStreamCapture|not permitted|capturing"):
                spoil(stream)
            with contextlib.suppress(runtime.CUDARuntimeError):  # CuPy refuses some of it beforehand
                stream.end_capture()
        spoiled.append(name)
    assert spoiled == [*spoils]
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        spoils["memory"](stream)
        stream.end_capture()


def test_cuda_streams_of_the_user(cupy: Any) -> None:
    """Steps on streams by turns are those of one stream."""
    trainer, batch, _ = workload("d", cupy)
    other, _, _ = workload("d", cupy)
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    cupy.cuda.Device().synchronize()  # the batch is there: these streams wait for no other
    for i in range(6):
        trainer.step(*batch, check=False)
        with streams[i % 2]:
            other.step(*batch, check=False)
    cupy.cuda.Device().synchronize()
    np.testing.assert_array_equal(trainer.theta.get(), other.theta.get())


def test_a_call_on_another_stream_waits_for_the_last(cupy: Any) -> None:
    """A training on the default stream, and predictions on another, which read what it leaves."""
    trainer, (x, y), _ = workload("d", cupy)
    for _ in range(3):
        trainer.step(x, y, check=False)
    waits = []
    for stream in (cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream.null):
        with stream, Spent() as spent:
            trainer.step(x, y, check=False)
        waits.append(spent.counts.get("device synchronise", 0))
    assert waits == [0, 1, 1]


def test_kernels_that_do_not_compile_are_named() -> None:
    import cupy

    with pytest.raises(cupy.cuda.compiler.CompileException, match="undeclared_name"):
        cupy.RawModule(code='extern "C" __global__ void f() { undeclared_name(); }').get_function("f")


def test_every_trainer_computes(cupy: Any) -> None:
    """Dropout, batch normalization, weights and clipping from one seed, as NumPy without the compiler."""
    rng = np.random.default_rng(0)
    x, y, weight = rng.standard_normal((96, 7), dtype="float32"), rng.integers(0, 3, 96), rng.random(96, np.float32)
    net = bp.Sequential(bp.Dense(20, "gelu"), bp.BatchNorm(), bp.Dropout(0.2), bp.Residual(bp.Dense(20)), bp.Dense(3))
    found = []
    for array in (cupy.asarray, np.asarray):
        trainer = bp.Trainer(net, "cross_entropy", "adamw", clip_norm=0.5, seed=3, compile="auto")
        trainer.fit(array(x), array(y), sample_weight=array(weight), epochs=3, batch_size=16, progress=False)
        found.append((cupy.asnumpy(trainer.theta), trainer.history["loss"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)
