"""Training on a device from arrays of the host: the same results, batches that are never overwritten, clear errors."""

import copy
import functools
import gc
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.world import World

import bpnet as bp
from bpnet.data import loader
from bpnet.data.memory import bytes_per_row, out_of_memory
from bpnet.data.prepare import named

NET = bp.Sequential(bp.Dense(6, "relu"), bp.Dropout(0.2), bp.Dense(3))
CALM = bp.Sequential(bp.Flatten(), bp.Residual(bp.Dense(4, "tanh")), bp.Dense(3))


def data(count: int = 50, dtype: str = "float32", seed: int = 3) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 9, (count, 4)) if dtype in ("uint8", "int64") else rng.standard_normal((count, 4))
    return x.astype(dtype), rng.integers(0, 3, count).astype("int32"), rng.random(count).astype("float32")


def same(world: World, one: bp.Trainer, other: bp.Trainer) -> None:
    for a, b in zip((one.theta, *one.state), (other.theta, *other.state), strict=True):
        np.testing.assert_array_equal(world.cupy.asnumpy(a), world.cupy.asnumpy(b))
    assert [{**r, "seconds": 0} for r in one.history] == [{**r, "seconds": 0} for r in other.history]


# ---- the same results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("streams", [True, False])
def test_streaming_equals_arrays_on_the_device(
    streams: bool, dtype: str, shuffle: bool, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Streamed from a memory-mapped file, with batches of which the last is smaller, and validation data."""
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0 if streams else 0.5)
    monkeypatch.setattr(loader, "TRANSFER", 100)
    x, y, weight = data(dtype=dtype)
    weight = weight.astype("float64" if dtype == "float64" else "float32")
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    held_x, held_y, _ = data(30, dtype, seed=4)
    options = {"epochs": 3, "batch_size": 16, "shuffle": shuffle, "progress": False}
    there = bp.Trainer(NET, "cross_entropy", bp.Adam(0.02))
    there.fit(
        world.array(x), world.array(y), sample_weight=world.array(weight),
        validation=(world.array(held_x), world.array(held_y)), **options,
    )  # fmt: skip
    fresh = bp.Trainer(NET, "cross_entropy", bp.Adam(0.02), device="cuda")
    for _ in range(3):  # streams run in another order each time
        here = copy.deepcopy(fresh)
        here.fit(mapped, y, sample_weight=weight, validation=(held_x, held_y), **options)
        same(world, here, there)
    outputs = here.predict(mapped, batch_size=16)
    assert type(outputs) is np.ndarray
    np.testing.assert_array_equal(outputs, world.cupy.asnumpy(there.predict(world.array(x), batch_size=16)))
    np.testing.assert_allclose(here.predict(mapped), outputs, rtol=1e-6)
    scores = there.evaluate(world.array(x), world.array(y), sample_weight=world.array(weight), batch_size=16)
    assert here.evaluate(mapped, y, sample_weight=weight, batch_size=16) == pytest.approx(scores, rel=1e-6)


@pytest.mark.parametrize("form", [lambda x: x[:, ::2], np.asfortranarray, lambda x: x.astype(">i4")])
def test_arrays_of_any_layout_can_be_streamed(form: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0)
    x, y, _ = data(dtype="int64")
    x = form(x)
    there, here = bp.Trainer(NET, "cross_entropy"), bp.Trainer(NET, "cross_entropy", device="cuda")
    there.fit(world.array(np.ascontiguousarray(x, "float32")), world.array(y), batch_size=16, progress=False)
    here.fit(x, y, batch_size=16, progress=False)
    same(world, here, there)


def test_data_that_fit_are_put_on_the_device_once(world: World) -> None:
    x, y, _ = data()
    trainer = bp.Trainer(NET, "cross_entropy", device="cuda")
    trainer.fit(x, y, batch_size=10, progress=False)
    copies = []
    for _ in range(2):
        before = world.counts["copy to device"]
        trainer.fit(x, y, batch_size=10, epochs=4, progress=False)
        copies.append(world.counts["copy to device"] - before - 8)  # the numbers of the steps of each epoch, and rows
    assert copies == [2, 2]


def test_steps_on_host_arrays(world: World) -> None:
    there, here = bp.Trainer(NET, "cross_entropy"), bp.Trainer(NET, "cross_entropy", device="cuda")
    for seed in range(5):
        x, y, _ = data(16, seed=seed)
        losses = there.step(world.array(x), world.array(y)), here.step(x, y, check=seed % 2 == 0)
        np.testing.assert_array_equal(*map(world.cupy.asnumpy, losses))
    same(world, here, there)
    here.step(world.array(x), world.array(y))
    assert type(here.predict(x)) is np.ndarray
    assert type(here.predict(world.array(x))) is type(world.array(x))


def test_no_step_waits_for_the_device(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the host for the pinned buffer of the batch before the last; a step copies its batch and its numbers."""
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0)
    x, y, _ = data(160)
    trainer = bp.Trainer(NET, "cross_entropy", device="cuda")
    trainer.fit(x, y, batch_size=16, progress=False)
    before = world.counts
    held = trainer._prepare(named(x, y, None))
    for batch in held.batches(16, np.arange(160)):
        trainer._engine.advance(*batch)
    spent = world.counts - before
    assert spent["copy to host"] == 0
    assert spent["synchronise"] == 1  # when the last batch has been sent
    assert spent["copy to device"] == 10 * 3
    assert spent["synchronise event"] <= 11
    assert spent["graph launch"] == 10


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_rows_stream_to_other_libraries_too(name: str, library: Callable[[str], Any]) -> None:
    backend = library("jax-jit" if name == "jax" else name)
    x, y, weight = data()
    there = bp.Trainer(CALM, "cross_entropy")
    there.fit(backend.array(x), backend.array(y), sample_weight=backend.array(weight), batch_size=16, progress=False)
    here = bp.Trainer(CALM, "cross_entropy", device=name)
    here.fit(x, y, sample_weight=weight, batch_size=16, progress=False)
    np.testing.assert_allclose(backend.host(here.theta), backend.host(there.theta), rtol=1e-5, atol=1e-6)
    outputs = here.predict(x)
    assert type(outputs) is np.ndarray
    np.testing.assert_allclose(outputs, backend.host(there.predict(backend.array(x))), rtol=1e-5, atol=1e-6)
    step = here.step_count
    here = pickle.loads(pickle.dumps(here))
    here.step(x, y)
    assert (here.step_count, here.device) == (step + 1, name)


def test_numpy_as_a_device_is_where_its_arrays_are() -> None:
    x, y, _ = data()
    trainer = bp.Trainer(NET, "cross_entropy", device="numpy")
    trainer.fit(x, y, progress=False)
    assert type(trainer.theta) is np.ndarray


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_less_precise_products_of_what_is_streamed(
    precision: str, streams: bool, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As of arrays on the device, in training and after it; a model that is loaded there goes on with them."""
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0 if streams else 0.5)
    x, y, _ = data()
    net = bp.Sequential(bp.Dense(6, "relu"), bp.Dense(3))
    exact, there, here = (
        bp.Trainer(net, "cross_entropy", bp.SGD(0.1), precision=p, device=d)
        for p, d in (("float32", "cuda"), (precision, None), (precision, "cuda"))
    )
    there.fit(world.array(x), world.array(y), epochs=2, batch_size=16, progress=False)
    for trainer in (exact, here):
        trainer.fit(x, y, epochs=2, batch_size=16, progress=False)
    same(world, here, there)
    outputs = here.predict(x)
    np.testing.assert_array_equal(outputs, world.cupy.asnumpy(there.predict(world.array(x))))
    assert outputs.dtype == np.float32
    scores = here.evaluate(x, y)
    assert scores == there.evaluate(world.array(x), world.array(y))
    here.save(tmp_path / "model.safetensors")
    exact.parameters = here.parameters
    assert not np.array_equal(exact.predict(x), outputs)
    assert exact.evaluate(x, y)["loss"] != scores["loss"]
    for where in ({"device": "cuda"}, {"like": world.array(x)}):
        loaded = bp.load(tmp_path / "model.safetensors", **where)
        assert loaded.precision == precision
        assert loaded.evaluate(*((x, y) if "device" in where else map(world.array, (x, y)))) == scores


# ---- what can't be --------------------------------------------------------------------------------------------------


def test_a_device_by_its_number(world: World, tmp_path: Path) -> None:
    x, y, _ = data()
    trainer = bp.Trainer(NET, "cross_entropy", bp.Adam(0.02), device="cuda:0")
    trainer.fit(x, y, progress=False)
    other = bp.Trainer(NET, "cross_entropy", bp.Adam(0.02), device="cuda")
    other.fit(x, y, progress=False)
    same(world, trainer, other)
    assert type(trainer.predict(x)) is np.ndarray
    assert trainer.predict(world.array(x)).device == world.cuda.Device()
    trainer.save(tmp_path / "m.safetensors")
    assert bp.load(tmp_path / "m.safetensors", device="cuda:0").device == "cuda:0"
    for load in (lambda: bp.Trainer(NET, "mse", device="cuda:1"), lambda: bp.load("m", device="cuda:1")):
        with pytest.raises(bp.errors.DeviceError, match="no CUDA device 1: CuPy finds 1, numbered from 0"):
            load()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "unknown device 'gpu': did you mean 'cuda'. known are cuda, jax, numpy, torch"),
        ("CUDA:1", "did you mean 'cuda:1'"),
        ("cupy:1", "did you mean 'cuda:1'"),
        ("gpu:", "did you mean 'cuda'"),
        ("cuba", "did you mean 'cuda'"),
        ("cpu", "unknown device 'cpu': did you mean 'numpy'"),
        ("numpy:0", "devices of numpy have no numbers: leave out :0"),
        ("cuda:", "expected a whole number after the colon, as in 'cuda:1'"),
        ("cuda:-1", "expected a whole number after the colon"),
        (0, "device is of type int; expected 'cuda', or 'cuda:1' for the second of several"),
    ],
)
def test_what_is_no_device(device: Any, message: str) -> None:
    with pytest.raises(bp.errors.BpnetError, match=message):
        bp.Trainer(NET, "mse", device=device)


def test_backends_by_their_names() -> None:
    with pytest.raises(bp.errors.UnknownNameError, match="unknown backend 'gpu': did you mean 'cupy'"):
        bp.backends.get("gpu")


@pytest.mark.gpu
def test_a_device_beyond_the_last(library: Any) -> None:
    count = library("cupy").module.cuda.runtime.getDeviceCount()
    with pytest.raises(bp.errors.DeviceError, match=f"no CUDA device {count}: CuPy finds {count}"):
        bp.Trainer(NET, "mse", device=f"cuda:{count}")


def test_a_device_that_is_not_there() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if cupy.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(bp.errors.DeviceError, match="no such CUDA device"):
        bp.Trainer(NET, "mse", device="cuda")


def test_cupy_that_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['cupy'] = None; import bpnet as bp\n"
        "try: bp.Trainer(bp.Dense(1), 'mse', device='cuda')\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "the cupy backend needs CuPy: pip install 'bpnet-xp[cuda13]'"


def test_arrays_that_lie_elsewhere_still(world: World, library: Callable[[str], Any]) -> None:
    torch = library("torch")
    x, y, _ = data()
    trainer = bp.Trainer(NET, "cross_entropy", device="cuda")
    with pytest.raises(TypeError, match="x is an array of torch, but the trainer's device is 'cuda': pass an array of"):
        trainer.fit(torch.array(x), torch.array(y), progress=False)
    with pytest.raises(TypeError, match="x belongs to numpy, but y to cupy"):
        trainer.fit(x, world.array(y), progress=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, y: (x[:, :3], y), "x has 3 features, but the network was built for 4"),
        (
            lambda x, y: (x.astype("float64"), y),
            "x holds float64 values, but the trainer's parameters float32: convert x",
        ),
        (lambda x, y: (x[:0], y[:0]), "x has no rows"),
        (lambda x, y: (x[0], y), "x has one axis"),
        (lambda x, y: (x * np.nan, y), "x has NaN or infinity, first in row 0"),
        (lambda x, y: (x, y + 1), "y has the label 3, but the network has 3 outputs"),
        (lambda x, y: (x, y[1:]), "x has 50 rows, but y has 49"),
        (lambda x, y: (x.astype(str), y), "x holds <U32 values; expected float32 or float64"),
    ],
)
def test_unfit_data_are_refused_as_everywhere(change: Callable[[Any, Any], Any], match: str, world: World) -> None:
    x, y, _ = data()
    trainer = bp.Trainer(NET, "cross_entropy", device="cuda").build(x)
    with pytest.raises(bp.errors.BpnetError, match=re.escape(match)):
        trainer.fit(*change(x, y), progress=False)


def test_divergence_is_traced_on_fed_data_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0)
    x, y, _ = data()
    x[30:] = 3e38
    trainer = bp.Trainer(NET, "cross_entropy", bp.SGD(0.1), device="cuda")
    with pytest.raises(bp.errors.DivergedError, match=r"step 2: the output of layer '0', Dense.* is no longer finite"):
        trainer.fit(x, y, batch_size=16, shuffle=False, progress=False)
    assert trainer.step_count == 1


def test_what_is_predicted_on_a_device_is_looked_at_too(world: World) -> None:
    x, y, _ = data()
    trainer = bp.Trainer(bp.Sequential(bp.Dense(3)), "cross_entropy", device="cuda").build(x)
    trainer.restore(((trainer.theta * np.nan, trainer.buffers, trainer.state), 0))
    for call in (lambda: trainer.predict(x), lambda: trainer.evaluate(x, y), lambda: trainer.step(x, y)):
        with pytest.raises(bp.errors.DivergedError, match="weight of layer '0'"):
            call()


def test_a_saved_model_goes_on_on_a_device(world: World, tmp_path: Path) -> None:
    x, y, _ = data()
    trainer = bp.Trainer(NET, "cross_entropy", device="cuda")
    trainer.fit(x, y, progress=False)
    trainer.save(tmp_path / "model.safetensors")
    loaded = bp.load(tmp_path / "model.safetensors", device="cuda")
    for one in (trainer, loaded):
        one.fit(x, y, progress=False)
    np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))
    with pytest.raises(TypeError, match="both like and device"):
        bp.load(tmp_path / "model.safetensors", like=x, device="cuda")


# ---- more than there is room for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("streamed", "captured"), [(True, True), (False, False)])
def test_a_batch_without_room_says_what_would_fit(streamed: bool, captured: bool, world: World) -> None:
    """The parameters stay as they were, the trainer goes on, and with the micro-batch that is named the batch fits."""
    x, y, _ = data(2048)
    bx, by = (x, y) if streamed else (world.array(x), world.array(y))
    options = {"device": "cuda" if streamed else None}
    trainer = bp.Trainer(NET, "cross_entropy", **options).build(bx)
    trainer._engine.step.captures = captured
    for _ in range(3):
        trainer.step(bx[:64], by[:64])
    before = [world.cupy.asnumpy(a) for a in (trainer.theta, *trainer.state)]
    world.leave(225_000 if streamed else 150_000)
    with pytest.raises(bp.errors.OutOfMemoryError) as caught:
        trainer.step(bx, by)
    assert isinstance(caught.value, MemoryError)
    pattern = (
        r"a training step on a batch of 2,048 rows needs more memory than there is: [\d,]+ bytes more were requested, "
        r"[\d,]+ bytes of [\d,]+ are free without it. Nothing was changed by it; micro_batch=(\d+) would fit"
    )
    found = re.fullmatch(pattern, str(caught.value))
    assert found is not None, str(caught.value)
    for a, b in zip((trainer.theta, *trainer.state), before, strict=True):
        np.testing.assert_array_equal(world.cupy.asnumpy(a), b)
    assert trainer.step_count == 3
    trainer.step(bx[:64], by[:64])
    del trainer, caught
    gc.collect()
    smaller = bp.Trainer(NET, "cross_entropy", micro_batch=int(found[1]), **options)
    for _ in range(3):
        smaller.step(bx, by)
    assert smaller.step_count == 3


def test_a_forward_pass_without_room_says_what_would_fit(world: World) -> None:
    x, y, _ = data(2048)
    bx, by = world.array(x), world.array(y)
    trainer = bp.Trainer(NET, "cross_entropy")
    trainer.step(bx[:64], by[:64])
    call = functools.partial(trainer.evaluate, bx, by)
    world.leave(90_000)
    with pytest.raises(bp.errors.OutOfMemoryError, match="a forward pass of 2,048 rows needs more memory") as caught:
        call()
    found = re.search(r"batch_size=(\d+) would fit", str(caught.value))
    assert found is not None, str(caught.value)
    del caught
    gc.collect()
    call(batch_size=int(found[1]))


def test_a_batch_that_cannot_even_be_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0)
    x, y, _ = data(4096)
    trainer = bp.Trainer(NET, "cross_entropy", device="cuda").build(x)
    world.leave(20_000)
    with pytest.raises(bp.errors.OutOfMemoryError, match="a batch of 2,000 rows does not fit on the device: "):
        trainer.fit(x, y, batch_size=2000, progress=False)


def test_a_library_that_does_not_say_what_is_free() -> None:
    """It is tried there and then: a quarter of what works is named, or what is likely where nobody can try."""
    error = MemoryError("no")
    layout = bp.layout_of(NET, (4,))

    class Silent(bp.backends.Backend):
        pass

    backend = Silent(bp.backends.get("numpy").xp)
    args = error, backend, layout, np.zeros(1, "float32"), 100, True
    begin = "a training step on a batch of 100 rows needs more memory than there is. Nothing was changed by it; "
    assert str(out_of_memory(*args)) == f"{begin}try micro_batch=64"
    tried: list[int] = []

    def attempt(rows: int, most: int) -> None:
        tried.append(rows)
        if rows > most:
            raise MemoryError

    assert str(out_of_memory(*args, lambda rows: attempt(rows, 20))) == f"{begin}micro_batch=4 would fit"
    assert tried == [64, 32, 16]
    assert str(out_of_memory(*args, lambda rows: attempt(rows, 0))) == f"{begin}even one row does not fit"
    norm = bp.layout_of(bp.Sequential(bp.BatchNorm(), bp.Dense(2)), (4,))
    assert "try batches of 64 rows" in str(out_of_memory(error, backend, norm, np.zeros(1), 100))


@dataclass(frozen=True)
class Greedy(bp.Layer):
    """y = x, with more memory than there is for more than 20 rows."""

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        if x.shape[0] > 20:
            raise MemoryError
        return x, None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


@pytest.mark.parametrize("norm", [(), (bp.BatchNorm(),)])
def test_a_batch_too_large_for_the_host_says_what_would_fit(norm: tuple[Any, ...]) -> None:
    """By trying; nothing is changed by that, and what is named works."""
    x, y, _ = data(100)
    net = bp.Sequential(Greedy(), *norm, bp.Dense(3))
    trainer = bp.Trainer(net, "cross_entropy", threads=1).build(x)
    before = trainer.snapshot()
    named = "batches of 4 rows would fit" if norm else "micro_batch=4 would fit"
    with pytest.raises(bp.errors.OutOfMemoryError, match=f"a batch of 100 rows .* by it; {named}"):
        trainer.step(x, y)
    for mine, its in zip(trainer.snapshot()[0][:2], before[0][:2], strict=True):
        np.testing.assert_array_equal(mine, its)
    for call in (functools.partial(trainer.predict, x), functools.partial(trainer.evaluate, x, y)):
        with pytest.raises(bp.errors.OutOfMemoryError, match=r"a forward pass of 100 rows .* batch_size=4 would fit"):
            call()
        call(batch_size=4)
    parts = {"batch_size": 4} if norm else {"batch_size": 100}
    again = bp.Trainer(net, "cross_entropy", micro_batch=None if norm else 4)
    again.fit(x, y, progress=False, **parts)


def test_how_much_a_row_takes() -> None:
    """4 values of x; 6 twice and their mask and product; 3 twice; 3 six times; and two derivatives of the widest."""
    assert bytes_per_row(bp.layout_of(NET, (4,)), 4) == 4 * (4 + 2 * 6 + 2 * 6 + 2 * 3 + 6 * 3 + 2 * 6)
    assert bytes_per_row(bp.layout_of(CALM, (2, 2)), 8) == 8 * (4 + 8 + 8 + 8 + 6 + 6 * 3 + 2 * 4)


# ---- micro-batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
def test_parts_of_a_batch_add_up(weighted: bool, backend: Any) -> None:
    """To the gradient of the whole, on every library; here of parts of 9 rows and of 8."""
    x, y, weight = data(25, "float64")
    arrays = [backend.array(x), backend.array(y), backend.array(weight.astype("float64")) if weighted else None]
    whole = bp.Trainer(CALM, "cross_entropy", bp.SGD(0.5))
    parted = bp.Trainer(CALM, "cross_entropy", bp.SGD(0.5), micro_batch=9)
    for _ in range(2):
        losses = whole.step(*arrays), parted.step(*arrays)
    np.testing.assert_allclose(*(backend.host(loss) for loss in losses), rtol=1e-12)
    np.testing.assert_allclose(backend.host(parted.theta), backend.host(whole.theta), rtol=1e-12, atol=1e-14)
    scores = whole.evaluate(*arrays[:2])
    assert parted.evaluate(*arrays[:2]) == pytest.approx(scores, rel=1e-12)
    np.testing.assert_allclose(backend.host(parted.predict(arrays[0])), backend.host(whole.predict(arrays[0])))


def test_parts_on_the_device_are_captured_too(world: World) -> None:
    x, y, _ = data(25)
    found = []
    for capture in (False, True):
        trainer = bp.Trainer(NET, "cross_entropy", bp.Adam(0.02), micro_batch=9, clip_norm=0.1).build(world.array(x))
        trainer._engine.step.captures = capture
        for _ in range(5):
            trainer.step(world.array(x), world.array(y))
        found.append(world.cupy.asnumpy(trainer.theta))
    assert world.counts["graph launch"] == 4
    np.testing.assert_array_equal(*found)


@dataclass(frozen=True)
class Counting(bp.Flatten):
    """Keeps something of a batch, though no row looks at another."""

    def init(self, rng: Any, in_shape: Any) -> dict[str, Any]:
        return {"seen": bp.Leaf(rng.full((), 0.0), trainable=False)}

    def update_buffers(self, run: bp.Run, p: Any, cache: Any) -> dict[str, Any]:
        return {"seen": p["seen"] + 1.0}


def test_rows_that_need_each_other_stay_together() -> None:
    with pytest.raises(ValueError, match="micro_batch is 8, but a layer of the network"):
        bp.Trainer(bp.Sequential(bp.Dense(3), bp.BatchNorm()), "mse", micro_batch=8)
    kept = bp.Sequential(Counting(), bp.Dense(3))
    with pytest.raises(ValueError, match="micro_batch is 8, but a layer of the network"):
        bp.Trainer(kept, "mse", micro_batch=8).build(np.ones((2, 2)))
    with pytest.raises(ValueError, match="micro_batch is 0; expected a whole number of at least 1"):
        bp.Trainer(NET, "mse", micro_batch=0)


# ---- on a device ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_on_a_device_streaming_equals_arrays_there(
    dtype: str, library: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = library("cupy")
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0)
    x, y, _ = data(20_000, dtype)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {"epochs": 3, "batch_size": 512, "progress": False}
    there, here = bp.Trainer(NET, "cross_entropy"), bp.Trainer(NET, "cross_entropy", device="cuda")
    there.fit(device.array(x), device.array(y), **options)
    here.fit(mapped, y, **options)
    np.testing.assert_array_equal(device.host(here.theta), device.host(there.theta))
    assert here.history["loss"] == there.history["loss"]
    np.testing.assert_array_equal(
        here.predict(mapped, batch_size=512), device.host(there.predict(device.array(x), batch_size=512))
    )


@pytest.mark.gpu
def test_on_a_device_a_batch_without_room_says_what_would_fit(library: Callable[[str], Any]) -> None:
    """The memory is limited in CuPy's own pool, so that no other program on the device is in the way."""
    device = library("cupy")
    pool = device.module.get_default_memory_pool()
    x, y, _ = data(500_000)
    bx, by = device.array(x), device.array(y)
    trainer = bp.Trainer(NET, "cross_entropy")
    trainer.step(bx[:64], by[:64])
    before = device.host(trainer.theta)
    pool.free_all_blocks()
    pool.set_limit(pool.used_bytes() + 2**25)
    try:
        with pytest.raises(
            bp.errors.OutOfMemoryError, match=r"a batch of 500,000 rows .* micro_batch=\d+ would fit"
        ) as caught:
            trainer.step(bx, by)
        np.testing.assert_array_equal(device.host(trainer.theta), before)
        trainer.step(bx[:64], by[:64])
        micro_batch = int(str(caught.value).partition("micro_batch=")[2].split()[0])
        del trainer, caught
        gc.collect()
        bp.Trainer(NET, "cross_entropy", micro_batch=micro_batch).step(bx, by)
    finally:
        pool.set_limit(size=0)
