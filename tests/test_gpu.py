"""Training on a CUDA device equals training on the processor, and a step leaves the host free.

Tests marked `gpu` skip without a device; PyTorch on the processor stands in for it where that proves the test itself.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from conftest import SUBSTITUTED

import bpnet as bp

ON_DEVICE = pytest.param("cupy", marks=pytest.mark.gpu)
EITHER = pytest.mark.parametrize("name", ["torch", ON_DEVICE])
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])

EVERY_LAYER = bp.Sequential(
    bp.Standardize((0.1, -0.2, 0.3, 0.0, 0.05, 0.2), 1.25),
    bp.Dense(8, "tanh"),
    bp.BatchNorm(),
    bp.Flatten(),
    bp.Dense(32, "relu"),
    bp.Dropout(0.2),
    bp.Residual(bp.Sequential(bp.Dense(32, "gelu"), bp.Dense(32, "gelu_tanh", bias=False))),
    bp.Dense(24, "leaky_relu"),
    bp.SiLU(),
    bp.Dense(24, bp.ELU(0.7)),
    bp.Softplus(),
    bp.Dense(16, "sigmoid"),
    bp.Residual(bp.Tanh()),
    bp.Residual(bp.ReLU()),
    bp.Residual(bp.GELU()),
    bp.Residual(bp.Sequential(bp.LeakyReLU(), bp.Identity(), bp.ELU(), bp.Sigmoid())),
    bp.Dense(16),
    bp.Residual(bp.Softmax()),
    bp.Dense(5),
)
OPTIMIZERS = {
    "momentum": bp.SGD(0.05, momentum=0.9, nesterov=True),
    "sgd": bp.SGD(bp.Cosine(0.1, 100)),
    "adamw": bp.AdamW(1e-3, epsilon=1e-3, weight_decay=0.1),
}
ONE = {"float64": (1e-12, 1e-12), "float32": (1.3e-6, 1e-5)}
"""rtol and atol of the parameters after one step."""
LATER = {"float64": (100, 1e-9, 1e-9), "float32": (10, 1e-4, 1e-4)}
"""After how many steps more, and then rtol and atol.

Where a rectifier's input rounds to the other side of 0, a gradient changes by a whole entry.  In float32 that comes
about in some trainings of a hundred steps, and moves the parameters by a hundredth; in ten it is not to be expected.
"""


def data(dtype: str, rows: int = 96) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 4, 6)).astype(dtype), rng.integers(0, 5, rows)


def trainer_of(optimizer: str = "momentum", **options: Any) -> bp.Trainer:
    return bp.Trainer(EVERY_LAYER, "cross_entropy", OPTIMIZERS[optimizer], seed=7, clip_norm=1.0, **options)


def worst(actual: Any, expected: Any, tolerance: tuple[float, float]) -> float:
    """The largest difference as a share of what is allowed."""
    rtol, atol = tolerance
    return float(np.max(np.abs(actual - expected) / (atol + rtol * np.abs(expected))))


@EITHER
@DTYPES
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_equal_those_of_numpy(optimizer: str, dtype: str, name: str, library: Any, record_property: Any) -> None:
    other = library(name)
    x, y = data(dtype)
    weight = np.linspace(0.5, 1.5, len(x)).astype(dtype)
    trainers = trainer_of(optimizer, threads=1), trainer_of(optimizer)
    batches = (x, y, weight), (other.array(x), other.array(y), other.array(weight))
    last, *later = LATER[dtype]
    for count in range(1, last + 1):
        losses = [trainer.step(*batch) for trainer, batch in zip(trainers, batches, strict=True)]
        if count not in (1, last):
            continue
        tolerance = ONE[dtype] if count == 1 else tuple(later)
        for what in ("theta", "buffers"):
            ours, theirs = (getattr(trainer, what) for trainer in trainers)
            assert other.dtype(theirs) == dtype
            share = worst(other.host(theirs), ours, tolerance)
            record_property(f"{name} {dtype} {optimizer} {what} after {count}: share of the tolerance", share)
            assert share <= 1.0, f"{what} after {count} steps: {share:.2g} times the tolerance"
        assert other.dtype(losses[1]) == dtype
        np.testing.assert_allclose(float(losses[1]), float(losses[0]), rtol=10 * tolerance[0])
    outputs = [trainer.predict(batch[0]) for trainer, batch in zip(trainers, batches, strict=True)]
    assert other.dtype(outputs[1]) == dtype
    np.testing.assert_allclose(other.host(outputs[1]), outputs[0], *(10 * t for t in later))


@EITHER
@DTYPES
def test_one_seed_is_one_start_and_one_order_of_the_batches(dtype: str, name: str, library: Any) -> None:
    """Steps of one row each, so long that another order of the rows would lead elsewhere."""
    other = library(name)
    x, y = data(dtype)
    trainers = trainer_of().build(x), trainer_of().build(other.array(x))
    assert np.array_equal(other.host(trainers[1].theta), trainers[0].theta)
    assert np.array_equal(other.host(trainers[1].buffers), trainers[0].buffers)

    def trained(seed: int, x: Any, y: Any) -> Any:
        network = bp.Sequential(bp.Flatten(), bp.Dense(1, "tanh"))
        trainer = bp.Trainer(network, "mse", bp.SGD(0.2), seed=seed)
        trainer.fit(x, y, epochs=2, batch_size=1, progress=False)
        return trainer.theta

    x, y = x[:30], np.sign(x[:30, 0, :1])
    _, rtol, atol = LATER[dtype]
    ours, theirs = trained(7, x, y), other.host(trained(7, other.array(x), other.array(y)))
    np.testing.assert_allclose(theirs, ours, rtol, atol)
    reversed_ = trained(7, x[::-1].copy(), y[::-1].copy())  # the same rows in another order
    assert np.max(np.abs(reversed_ - ours)) > 100 * atol


@EITHER
def test_libraries_do_not_mix(name: str, library: Any) -> None:
    other = library(name)
    x, y = data("float32")
    there = other.array(x), other.array(y)
    with pytest.raises(bp.errors.ArrayMismatchError, match=f"x belongs to numpy, but y to {name}: convert"):
        trainer_of().fit(x, there[1])
    with pytest.raises(bp.errors.ArrayMismatchError, match=f"x belongs to {name}, but y to numpy: convert"):
        trainer_of().step(there[0], y)
    with pytest.raises(bp.errors.ArrayMismatchError, match="sample_weight"):
        trainer_of().step(*there, np.ones(len(x), np.float32))
    with pytest.raises(bp.errors.ArrayMismatchError, match=r"validation\[0\]"):
        trainer_of().fit(*there, validation=(x, y))
    trained = trainer_of().build(there[0])
    with pytest.raises(bp.errors.ArrayMismatchError, match="the trainer's parameters"):
        trained.predict(x)
    theta = trained.theta
    with pytest.raises(bp.errors.ArrayMismatchError, match="theta"):
        bp.value_and_grad(EVERY_LAYER, "cross_entropy", theta, x, y, buffers=trained.buffers)


# ---- on the device alone --------------------------------------------------------------------------------------------


@pytest.fixture
def cupy(library: Any) -> Any:
    return library("cupy").module


def on_device(cupy: Any, dtype: str, rows: int = 96) -> tuple[Any, Any]:
    x, y = data(dtype, rows)
    return cupy.asarray(x), cupy.asarray(y)


@pytest.mark.gpu
def test_the_same_seed_gives_the_same_bits(cupy: Any) -> None:
    x, y = on_device(cupy, "float32", 1000)
    runs = []
    for _ in range(2):
        trainer = trainer_of("adamw")
        trainer.fit(x, y, epochs=3, batch_size=128, progress=False)
        runs.append((trainer.theta.get(), [epoch["loss"] for epoch in trainer.history.epochs]))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


@pytest.mark.gpu
def test_a_device_that_is_not_there_is_named(cupy: Any) -> None:
    missing = cupy.cuda.Device(cupy.cuda.runtime.getDeviceCount())
    with pytest.raises(bp.errors.DeviceError, match="no such CUDA device"):
        bp.backends.get("cupy").from_host(np.ones(3), device=missing)


def test_what_cuda_says_of_a_missing_device_becomes_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("cupy", reason="CuPy is not installed")

    class Missing:
        def __enter__(self) -> None:
            raise real.cuda.runtime.CUDARuntimeError(101)  # cudaErrorInvalidDevice

        def __exit__(self, *_: object) -> None: ...

    with pytest.raises(bp.errors.DeviceError, match="no such CUDA device: cudaErrorInvalidDevice"):
        bp.backends.get("cupy").from_host(np.ones(3), device=Missing())


# ---- nothing waits and nothing is copied ----------------------------------------------------------------------------

SPIN = """
extern "C" __global__ void spin(unsigned long long nanoseconds) {
    unsigned long long begin, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - begin < nanoseconds);
}
"""
BUSY = 0.5  # seconds
METHODS = ("get", "set", "item", "tolist", "__float__", "__int__", "__bool__")
RUNTIME = ("memcpy", "memcpyAsync", "deviceSynchronize", "streamSynchronize", "eventSynchronize")


@contextmanager
def counted(cupy: Any) -> Iterator[list[str]]:
    """The names of CuPy's doors between host and device that are passed through: each is wrapped while this holds.

    What CuPy's own compiled code does by other ways than these is not seen here; whether it waits is, by `busy`.
    """
    seen: list[str] = []
    inside: list[str] = []  # a door that leads through others counts once

    def wrapped(name: str, call: Any, counts: Any = lambda *args: True) -> Any:
        def through(*args: Any, **options: Any) -> Any:
            if counts(*args) and not inside:
                seen.append(name)
            inside.append(name)
            try:
                return call(*args, **options)
            finally:
                inside.pop()

        return through

    def from_host(*args: Any) -> bool:
        return bool(args) and not isinstance(args[0], cupy.ndarray)

    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS:
            patch.setattr(cupy.ndarray, name, wrapped(name, getattr(cupy.ndarray, name)))
        for name in RUNTIME:
            patch.setattr(cupy.cuda.runtime, name, wrapped(name, getattr(cupy.cuda.runtime, name)))
        for name in ("array", "asarray", "asanyarray"):
            patch.setattr(cupy, name, wrapped(name, getattr(cupy, name), from_host))
        patch.setattr(cupy.cuda.Stream, "synchronize", wrapped("synchronize", cupy.cuda.Stream.synchronize))
        yield seen


@contextmanager
def busy(cupy: Any) -> Iterator[Any]:
    """Keeps the device busy for a while; gives an event that is not done as long as it is."""
    if SUBSTITUTED:
        pytest.skip("the substitute for a device does everything at once")
    spin = cupy.RawModule(code=SPIN).get_function("spin")
    spin((1,), (1,), (np.uint64(1),))  # compiled and loaded by then
    cupy.cuda.Device().synchronize()
    spin((1,), (1,), (np.uint64(BUSY * 1e9),))
    event = cupy.cuda.Event(disable_timing=True)
    event.record()
    yield event
    cupy.cuda.Device().synchronize()


@pytest.mark.gpu
def test_what_waits_is_found(cupy: Any) -> None:
    """The instrument itself: a look at a value waits for the device and passes through a door."""
    x = cupy.ones(3)
    with busy(cupy) as event, counted(cupy) as seen:
        assert float(x[0]) == 1.0
        assert event.done
    assert "__float__" in seen or "get" in seen
    _ = x + x  # to load a kernel may wait for the device
    with busy(cupy) as event:
        _ = x + x
        assert not event.done


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@DTYPES
def test_a_step_neither_waits_nor_copies(
    dtype: str,
    optimizer: str,
    capture: bool,
    cupy: Any,
    record_property: Any,
) -> None:
    x, y = on_device(cupy, dtype)
    trainer: Any = trainer_of(optimizer).build(x)
    trainer._engine.step.captures = capture
    for _ in range(4):  # kernels are compiled, memory is in the pools, a graph is captured
        trainer.step(x, y, check=False)
    with busy(cupy) as event:
        begin = time.perf_counter()
        for _ in range(2):  # of up to 180 launches, of which a device's queue holds about 1,000
            trainer.step(x, y, check=False)
        seconds = time.perf_counter() - begin
        assert not event.done, f"2 steps returned after {seconds:.3f} s, when the device had finished its other work"
    record_property(f"host us a step, {dtype} {optimizer} {'captured' if capture else 'launched'}", seconds / 2 * 1e6)
    with counted(cupy) as seen:
        for _ in range(3):
            trainer.step(x, y, check=False)
    assert seen == []


@pytest.mark.gpu
@DTYPES
def test_an_epoch_waits_once(dtype: str, cupy: Any) -> None:
    x, y = on_device(cupy, dtype, 960)
    trainer = trainer_of("adamw")
    trainer.fit(x, y, epochs=1, batch_size=96, progress=False)
    with counted(cupy) as seen:
        trainer.fit(x, y, epochs=2, batch_size=96, progress=False)
    to_host = [name for name in seen if name not in ("array", "asarray", "asanyarray")]
    assert len(to_host) <= 2 * 3 + 8, f"{len(to_host)} for 20 batches: {to_host}"  # reports, and the checks of x and y


def test_nvidias_compiler_takes_what_keeps_a_device_busy() -> None:
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    try:
        program = nvrtc.createProgram(SPIN, "spin.cu", [], [])
    except Exception as error:  # CuPy without NVIDIA's compiler
        pytest.skip(f"NVRTC can't be used: {error}")
    nvrtc.compileProgram(program, ["-arch=sm_80"])


def test_doors_are_counted_and_put_back() -> None:
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    before = real.array, real.cuda.runtime.deviceSynchronize, vars(real.ndarray).get("get")
    with counted(real) as seen:
        for door in (lambda: real.array([1.0]), real.cuda.runtime.deviceSynchronize):
            with suppress(real.cuda.runtime.CUDARuntimeError):  # there is no device
                door()
        assert "get" in vars(real.ndarray)
    assert seen[0] == "array"
    assert "deviceSynchronize" in seen
    assert before == (real.array, real.cuda.runtime.deviceSynchronize, vars(real.ndarray).get("get"))
