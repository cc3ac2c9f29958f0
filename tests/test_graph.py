"""A training step on CuPy: compiled, captured as a CUDA graph and replayed, on a substitute for a device, and on one.

Replaying gives the bits of launching the same commands one by one.
"""

import inspect
import itertools
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from support.nvrtc import compiled
from support.world import Spent, World
from test_activations import ACTIVATIONS, alpha_of, both_passes
from test_interrupts import GO_ON, check_goes_on

import bpnet as bp
from bench.workloads import WORKLOADS, Task, pool, start_values
from bpnet.backends.base import PRECISIONS, State

BPNET = bp.__file__.removesuffix("__init__.py")
"""Where the files of the library lie."""
NETS = {
    "plain": bp.Sequential(bp.Dense(5, "relu"), bp.Dense(3)),
    "dropout": bp.Sequential(bp.Dense(5, "tanh"), bp.Dropout(0.3), bp.Residual(bp.Dropout(0.1)), bp.Dense(3)),
    "norm": bp.Sequential(bp.Dense(4), bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(3)),
    "standardized": bp.Sequential(
        bp.Standardize((0.1, 0.2, 0.3, 0.4), 2.0),
        bp.Dense(5, "relu"),
        bp.Dense(3),
        bp.Standardize(1.0, 3.0, invert=True),
    ),
}
OPTIMIZERS = {
    "adamw": bp.AdamW(bp.WarmUp(bp.Cosine(2e-2, steps=9), 3), weight_decay=0.1),
    "nesterov": bp.SGD(bp.Cosine(0.1, steps=5), momentum=0.9, nesterov=True),
    "sgd": bp.SGD(0.1),
}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
EITHER = pytest.mark.parametrize("capture", [False, True])


def data(count: int = 48, dtype: str = "float32", seed: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 4)).astype(dtype), rng.integers(0, 3, count).astype("int32")


def made(world: World, capture: bool, net: bp.Layer = NETS["plain"], optimizer: Any = "adam", **options: Any) -> Any:
    """A trainer for rows of four features whose steps are captured or not."""
    dtype = options.pop("dtype", "float32")
    trainer = bp.Trainer(net, "cross_entropy", optimizer, **options).build(world.array(data(1, dtype)[0]))
    trainer._engine.step.captures = capture
    return trainer


def both(world: World, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Two trainers alike, of which the second captures its steps."""
    return made(world, False, *args, **options), made(world, True, *args, **options)


def state(world: World, trainer: bp.Trainer) -> list[Any]:
    """All that training changes."""
    return [world.cupy.asnumpy(a) for a in (trainer.theta, trainer.buffers, *trainer.state)]


def unchanged(world: World, trainer: bp.Trainer, expected: list[Any]) -> None:
    for found, e in zip(state(world, trainer), expected, strict=True):
        np.testing.assert_array_equal(found, e)


def equal(world: World, one: bp.Trainer, other: bp.Trainer) -> None:
    assert one.step_count == other.step_count
    unchanged(world, one, state(world, other))
    for a, b in zip(one.history, other.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def graphs(trainer: bp.Trainer) -> int:
    """How many graphs its step has."""
    return sum(len(found.graphs) for found in trainer._engine.step.programs.values() if found is not None)


@pytest.fixture
def singly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch for every step."""
    monkeypatch.setattr(type(world.seam), "max_steps_per_launch", 1)


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "optimizer", "dtype"),
    [*((net, "adamw", "float32") for net in NETS), *(("plain", name, "float64") for name in OPTIMIZERS)],
)
@pytest.mark.usefixtures("singly")
def test_replaying_equals_launching(net: str, optimizer: str, dtype: str, world: World) -> None:
    """With schedules, bias correction, dropout, clipping and weights, batches by rows of which the last is smaller."""
    x, y = map(world.array, data(dtype=dtype))
    weight = world.array(np.arange(48, dtype=dtype))
    plain, captured = both(world, NETS[net], OPTIMIZERS[optimizer], clip_norm=0.5, dtype=dtype)
    launches = []
    for trainer in (plain, captured):
        with Spent(world, "graph launch") as spent:
            trainer.fit(x, y, epochs=4, batch_size=20, sample_weight=weight, progress=False)
        launches.append(*spent.counts)
    assert graphs(plain) == 0 < graphs(captured) <= 4  # for the rows of each batch where they lie, or for any
    assert launches == [0, 10]
    equal(world, captured, plain)
    world.check_bounds()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("micro_batch", [None, 9])
def test_all_products_of_a_captured_step_are_cublaslts(micro_batch: int | None, precision: str, world: World) -> None:
    """In every precision; and a batch in parts is that as a whole, but for rounding."""
    x, y = map(world.array, data(25))
    net = bp.Sequential(bp.Dense(5, "relu"), bp.Dense(4, "softmax"), bp.Dense(3))
    plain, captured = both(world, net, micro_batch=micro_batch, precision=precision)
    whole = made(world, True, net)
    for _ in range(5):
        for trainer in (plain, captured, whole):
            trainer.step(x, y)
    assert graphs(captured) == 1
    assert world.counts["product of cuBLAS"] == 0
    assert world.counts["product"] > 0
    equal(world, captured, plain)
    near = {"float32": 1e-5, "tf32": 1e-3, "bfloat16": 1e-2}[precision]
    thetas = [world.cupy.asnumpy(t.theta) for t in (whole, captured)]
    np.testing.assert_allclose(*thetas, rtol=10 * near, atol=near)
    assert np.allclose(*thetas, rtol=0, atol=3e-6) == (precision == "float32")


def test_without_cublaslt_steps_are_not_captured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since CuPy's products can't be; they give the same.  That cuBLASLt is missing is told at the first use."""
    x, y = map(world.array, data())
    usual = made(world, True)
    usual.fit(x, y, epochs=3, batch_size=20, progress=False)
    monkeypatch.setattr("bpnet.backends.cupy.cublaslt.bindings", lambda: "missing")
    without = made(world, True)
    without.fit(x, y, epochs=3, batch_size=20, progress=False)
    assert graphs(without) == 0
    assert world.counts["product of cuBLAS"] > 0
    for a, b in zip(state(world, usual), state(world, without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_from_elsewhere_are_copied(weighted: bool, world: World) -> None:
    """Steps on ever new arrays, some with gaps, need one graph; nothing waits for the device in between."""
    plain, captured = both(world)
    batches = [data(16, seed=seed) for seed in range(9)]
    weights = [np.arange(16, dtype="float32") + seed for seed in range(9)]
    seen = []
    for trainer in (plain, captured):
        losses, kept = [], []  # so that no two lie at the same place
        for i, ((x, y), weight) in enumerate(zip(batches, weights, strict=True)):
            bx = world.array(x) if i % 3 else world.array(np.repeat(x, 2, axis=1))[:, ::2]
            kept.append((bx, world.array(y), world.array(weight) if weighted else None))
            losses.append(trainer.step(*kept[-1], check=False))
        seen.append([world.cupy.asnumpy(loss) for loss in losses])
    assert graphs(captured) == 1
    assert seen[0] == seen[1]
    equal(world, captured, plain)


@pytest.fixture
def large(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of more than 200 bytes, such as x, are no longer small."""
    monkeypatch.setattr("bpnet.backends.cupy.compiled.SMALL", 200)


@pytest.fixture
def kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders of rows are kept, so that no two of them lie at the same place."""
    arrays, from_host = [], world.seam.from_host

    def keep(*args: Any) -> Any:
        arrays.append(from_host(*args))
        return arrays[-1]

    monkeypatch.setattr(world.seam, "from_host", keep)


@pytest.mark.parametrize("small", [2**20, 200])
@pytest.mark.usefixtures("kept", "singly")
def test_a_data_set_is_read_where_it_lies_and_may_move(
    small: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small one is copied then, a large one is read in the new place too, from the second step on."""
    monkeypatch.setattr("bpnet.backends.cupy.compiled.SMALL", small)
    x, y = map(world.array, data())
    other = [world.array(a) for a in data(seed=5)]
    plain, captured = both(world)
    for trainer in (plain, captured):
        copies = []
        for some in ((x, y), (x, y), other, other, (x, y), other):
            with Spent(world, "graph launch", "device copy") as spent:
                trainer.fit(*some, batch_size=16, progress=False)
            copies.append(spent.counts)
    # of the rows, and of x and y where they are small and have moved
    assert copies[:2] == [(2, 2), (3, 3)]
    assert copies[3] == (3, 9 if small == 2**20 else 3)
    assert copies[5][0] == 3
    assert graphs(captured) <= 4
    equal(world, captured, plain)
    (program,) = captured._engine.step.programs.values()
    copied = [(i, a.data.ptr) for graph in program.graphs.values() for i, a in graph.static_inputs.items()]
    assert len(copied) > len(set(copied)) == len({i for i, _ in copied}), "each argument has one place for all graphs"


@pytest.mark.usefixtures("large")
def test_large_batches_that_come_by_turns_are_read_where_they_lie(world: World) -> None:
    batches = [tuple(map(world.array, data(16, seed=seed))) for seed in range(3)]
    plain, captured = both(world)
    for trainer in (plain, captured):
        for i in range(12):
            with Spent(world, "graph launch", "device copy") as spent:
                trainer.step(*batches[i % 3], check=False)
    assert spent.counts == (1, 0)
    assert graphs(captured) == 3
    equal(world, captured, plain)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("turns", [3, 5, 7, 9])
def test_capturing_comes_to_an_end(turns: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many large batches come by turns, and whatever comes then: new ones, or one again and again."""
    batches = [tuple(map(world.array, data(16, seed=seed))) for seed in range(40)]
    plain, captured = both(world)
    captures: list[int] = []
    real = type(captured._engine.step).capture
    monkeypatch.setattr(type(captured._engine.step), "capture", lambda *args: (captures.append(1), real(*args))[1])
    for trainer in (plain, captured):
        for batch in [*batches[:turns] * 12, *batches[turns:], *[batches[-1]] * 6, *batches[:turns] * 12]:
            trainer.step(*batch, check=False)
    assert len(captures) <= 16
    assert graphs(captured) <= 4
    equal(world, captured, plain)


def test_parameters_may_come_from_elsewhere(world: World) -> None:
    """After a snapshot is restored, or parameters assigned, the graph goes on with those."""
    x, y = map(world.array, data(16))
    plain, captured = both(world, NETS["norm"])
    for trainer in (plain, captured):
        for _ in range(3):
            trainer.step(x, y)
        kept = trainer.snapshot()
        for _ in range(3):
            trainer.step(x, y)
        trainer.restore(kept)
        trainer.step(x, y)
        trainer.parameters = {
            name: {key: 2.0 * value for key, value in group.items()} for name, group in trainer.parameters.items()
        }
        for _ in range(2):
            trainer.step(x, y)
    assert graphs(captured) == 1
    equal(world, captured, plain)


def test_memory_is_used_in_the_order_of_one_stream(world: World) -> None:
    """Steps on several streams, none of which the caller lets wait for another."""
    x, y = map(world.array, data(16))
    plain, captured = both(world)
    for _ in range(12):
        plain.step(x, y, check=False)
    world.synchronise()
    for i in range(12):
        with world.cuda.Stream() if i % 2 else world.cuda.Stream.null:
            captured.step(x, y, check=False)
    equal(world, captured, plain)


# ---- the host ahead of the device -----------------------------------------------------------------------------------


def test_the_host_may_run_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are not yet copied stay, and losses until they are fetched, though the device does nothing."""
    monkeypatch.setattr("bpnet.backends.cupy.device_scalars.RING", 4)
    monkeypatch.setattr("bpnet.backends.cupy.device_scalars.PAGE", 6)
    x, y = map(world.array, data())
    plain, captured = both(world, optimizer=bp.Adam(bp.Cosine(0.05, steps=30)))
    for trainer in (plain, captured):
        trainer.fit(x, y, epochs=6, batch_size=4, progress=False)
    equal(world, captured, plain)


def test_nothing_waits_inside_a_step(world: World) -> None:
    """A step is one copy of the rows, one of the numbers, and one launch; the ring lets the host wait twice in 64."""
    x, y = map(world.array, data())
    trainer = made(world, True, NETS["dropout"])
    trainer.fit(x, y, batch_size=16, progress=False)
    rows = [world.array(np.arange(16, dtype="int32")) for _ in range(64)]
    with Spent(world) as spent:
        for some in rows:
            trainer._engine.advance(x, y, None, some)
    assert spent.all == {"graph launch": 64, "device copy": 64, "copy to device": 64, "synchronise event": 2}


def test_steps_without_a_graph_wait_for_nothing_either(world: World) -> None:
    x, y = map(world.array, data())
    trainer = made(world, False, NETS["norm"])
    trainer.step(x, y, check=False)
    with Spent(world) as spent:
        for _ in range(3):
            trainer.step(x, y, check=False)
    assert set(spent.all) == {"copy to device", "kernel", "product"}
    assert spent.all["copy to device"] == 3


def test_a_replay_is_few_calls(world: World) -> None:
    """Python's and C's functions that the step itself calls; what CuPy does below them is not counted."""
    x, y = map(world.array, data(16))
    trainer = made(world, True)
    for _ in range(3):
        trainer.step(x, y)
    names: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(BPNET):
            names.append(frame.f_code.co_name if event == "call" else argument.__name__)

    sys.setprofile(note)
    try:
        trainer._engine.advance(x, y, None, None)
    finally:
        sys.setprofile(None)
    assert len(names) < 110, names


@pytest.mark.parametrize(("key", "most"), [("a", 13), ("c", 36), ("d", 9), ("e", 12)])
def test_commands_of_a_step(key: str, most: int, world: World) -> None:
    """Kernels and products, and nothing of CuPy's own."""
    from bench.contenders.bpnet_trainer import trainer_for

    world.host = lambda *_: None
    workload = WORKLOADS[key]
    task = Task(workload, "float32", 64, 1, "cuda", workload.timing, start_values(workload, "float32"))
    x, y = (world.array(a[0]) for a in pool(workload, 64, "float32"))
    trainer = trainer_for(task).build(x)
    trainer._engine.step.captures = False
    trainer.step(x, y, check=False)
    with Spent(world) as spent:
        trainer.step(x, y, check=False)
    assert set(spent.all) <= {"kernel", "product", "copy to device"}
    assert spent.all["kernel"] + spent.all["product"] <= most


@dataclass(frozen=True)
class _Halves(bp.Optimizer):
    """Steepest descent that halves its step until the loss falls."""

    lr: float = 8.0
    traceable: ClassVar = False

    def update(self, backend: Any, layout: Any, theta: Any, grad: Any, state: Any, numbers: Any, evaluate: Any) -> Any:
        (rate,), before = numbers, float(evaluate(theta)[0])
        while float(evaluate(theta - rate * grad)[0]) > before:
            rate = 0.5 * rate
        return theta - rate * grad, state


def test_an_update_that_decides_by_values_leaves_the_gradient_compiled(world: World) -> None:
    calls: list[Any] = []

    @dataclass(frozen=True)
    class Noted(bp.Dense):
        def forward(self, run: bp.Run, p: Any, x: Any) -> Any:
            calls.append(x)
            return super().forward(run, p, x)

    x, y = map(world.array, data())
    network = bp.Sequential(Noted(5, "tanh"), bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(3))
    trainers = [bp.Trainer(network, "cross_entropy", _Halves(), compile=c).build(x) for c in (False, "auto")]
    for _ in range(3):
        values = [float(trainer.step(x, y)) for trainer in trainers]
        assert values[1] == pytest.approx(values[0], rel=1e-5)
    for a, b in zip(*[state(world, trainer) for trainer in trainers], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    calls.clear()
    trainers[1].step(x, y)
    assert not calls


def test_what_is_written_over_is_not_promised_to_stay(world: World) -> None:
    """NVIDIA's compiler would read it through a cache that does not see what is written."""
    trainer = made(world, False)
    trainer.step(*map(world.array, data()))
    in_place = {"sqrt(" in code: "__restrict__" in code for code in world.codes}  # Adam's kernel, and one of the others
    assert in_place[True] is False
    assert any("__restrict__" in code for code in world.codes)


# ---- several steps at once -----------------------------------------------------------------------------------------


class Steps(bp.Callback):
    """Keeps what it is told after every step: its number in the epoch, and the trainer's."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.seen.append((step, trainer.step_count))


class Late(Steps):
    """Wants to know of all steps, but may be told late."""

    before_next_step = False


class Epochs(bp.Callback):
    """Wants to be told after epochs only."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_epoch_end(self, trainer: bp.Trainer, record: Any) -> None:
        self.seen.append(trainer.step_count)


@pytest.mark.parametrize(
    ("net", "optimizer", "weighted"),
    [*((net, "adamw", True) for net in NETS), ("plain", "nesterov", True), ("plain", "sgd", False)],
)
@pytest.mark.usefixtures("kept")
def test_eight_steps_are_one_launch_unless_each_is_told(net: str, optimizer: str, weighted: bool, world: World) -> None:
    """An epoch has 8 + 8 + 2 steps of 8 rows, and one of 6."""
    x, y = map(world.array, data(150))
    weight = world.array(np.arange(150, dtype="float32")) if weighted else None
    options = {"net": NETS[net], "optimizer": OPTIMIZERS[optimizer], "clip_norm": 0.5}
    plain, each, captured = (made(world, capture, **options) for capture in (False, True, True))
    launches = []
    for trainer, told in (plain, Steps()), (each, Steps()), (captured, Epochs()):
        start = trainer.snapshot()
        for epochs in (2, 1):  # in the first, graphs are captured; and then the carry comes from elsewhere
            trainer.restore(start)
            how = {"epochs": epochs, "batch_size": 8, "sample_weight": weight, "callbacks": [told]}
            with Spent(world, "graph launch", "copy to device", "synchronise") as spent:
                trainer.fit(x, y, progress=False, **how)
        launches.append(spent.counts)
        if isinstance(told, Steps):
            assert told.seen == [(i % 19 + 1, i + 1) for i in [*range(38), *range(19)]]
        else:
            assert told.seen == [19, 38, 19]
    more, waits = (1, 9) if weighted else (1, 5)  # copies of the data's, and for checks and losses
    assert launches == [(0, 19 + more, waits), (19, 19 + more, waits), (5, 5 + more, waits)]
    assert (graphs(each), graphs(captured)) == (2, 3)
    equal(world, each, plain)
    equal(world, captured, plain)


def test_threads_may_ask_for_programs_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more kinds than are kept."""
    function = world.seam.compile(lambda b, x: x + 1.0)
    arrays = [world.array(np.zeros((1, n), "float32")) for n in range(1, 13)]
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(20):
                for array in arrays:
                    function.find((array,), [array])
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors


def test_calls_of_other_streams_have_tickets_of_their_own(world: World) -> None:
    """They may overlap, and tickets tell which block of threads is the last."""
    function = world.seam.compile(lambda b, x: b.xp.sum(x, axis=0))
    x = world.array(np.ones((5000, 7), "float32"))
    found, tickets = [], []
    for stream in (world.cuda.Stream(), world.cuda.Stream()):
        with stream:
            found.append(function(x))
        (program,) = function.programs.values()
        tickets.append(program.program.tickets)
        stream.synchronize()
    assert tickets[0].data.ptr != tickets[1].data.ptr
    for each in found:
        np.testing.assert_array_equal(world.cupy.asnumpy(each), np.full(7, 5000.0))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.usefixtures("kept")
def test_who_may_be_told_late_does_not_part_the_steps(shuffle: bool, world: World) -> None:
    """As the progress bar, in whatever order the rows come."""
    x, y = map(world.array, data(76))
    (plain, captured), told = both(world), Late()
    for trainer, callbacks in (plain, []), (captured, [told]):
        how = {"epochs": 3, "batch_size": 4, "shuffle": shuffle, "callbacks": callbacks}
        with Spent(world, "graph launch") as spent:
            trainer.fit(x, y, progress=trainer is captured, **how)
    assert [step for step, _ in told.seen] == 3 * list(range(1, 20))
    assert spent.counts[0] <= 6 + 5 + 2 * 5  # eight steps were done first, then all alike captured
    equal(world, captured, plain)


def test_only_rows_that_lie_on_the_device_are_taken_together(world: World) -> None:
    """Not batches that stream through it, nor where each step is told of; nor are few batches copied to be one."""
    x, y = data(64)
    for options in ({"batch_size": 16, "shuffle": False}, {"batch_size": 4, "callbacks": [Steps()]}):
        plain, trainer = both(world)
        for either in (plain, trainer):
            either.fit(world.array(x), world.array(y), epochs=2, progress=False, **options)
        assert graphs(trainer) == 1
        assert plain.step_count == 128 // options["batch_size"]
        equal(world, trainer, plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpnet.data.loader.CACHED_SHARE", 0.0)
        trainer = made(world, True, device="cuda")
        trainer.fit(x, y, epochs=2, batch_size=4, progress=False)
        assert graphs(trainer) == 1


@dataclass(frozen=True)
class Until(bp.Schedule):
    """0.1 up to a step, the first being 0, then `after`."""

    step: int
    after: float

    def __call__(self, step: int) -> float:
        return 0.1 if step < self.step else self.after


@pytest.mark.parametrize(("after", "error"), [(1e30, bp.errors.DivergedError), (-1.0, bp.errors.OptionError)])
def test_what_goes_wrong_within_a_group_is_told_of_its_step(after: float, error: Any, world: World) -> None:
    """In the third epoch: a step that diverges, and a learning rate that is refused."""
    x, y = map(world.array, data(64))
    plain, captured = both(world, optimizer=bp.SGD(Until(37, after)))
    told = []
    for trainer in (plain, captured):
        with pytest.raises(error) as raised:
            trainer.fit(x, y, epochs=3, batch_size=4, progress=False)
        told.append(str(raised.value))
    assert told[0] == told[1]
    assert captured.step_count >= 37
    equal(world, captured, plain)


@EITHER
def test_a_buffer_that_overflows_within_a_group_is_divergence(capture: bool, world: World) -> None:
    x, y = data(64)
    good, wild = x.copy(), x.copy()
    wild[50, 1] = 1e20
    y = world.array(y)
    network = bp.Sequential(bp.BatchNorm(), bp.Dense(3))
    options = {"batch_size": 4, "shuffle": False, "progress": False}
    trainer, other = (made(world, capture, network, bp.Adam(0.01)) for _ in range(2))
    for each in (trainer, other):
        each.fit(world.array(good), y, epochs=2, **options)
    with pytest.raises(bp.errors.DivergedError, match=r"at step 45: var of layer '0', BatchNorm"):
        trainer.fit(world.array(wild), y, **options)
    other.fit(world.array(good[:48]), y[:48], **options)
    assert trainer.step_count == other.step_count
    unchanged(world, trainer, state(world, other))


@EITHER
def test_checked_steps_that_diverge_go_back(capture: bool, world: World) -> None:
    x, y = map(world.array, data(16))
    trainer, other = (made(world, capture, optimizer=bp.SGD(Until(37, 1e30))) for _ in range(2))
    for _ in range(33):
        trainer.step(x, y)
    for _ in range(32):
        other.step(x, y, check=False)
    with pytest.raises(bp.errors.DivergedError, match=r"at step 3[89]: .* from before step 33 were kept"):
        [trainer.step(x, y) for _ in range(6)]
    equal(world, trainer, other)


def test_parameters_that_are_no_numbers_are_told_of_whatever_a_product_makes_of_them(world: World) -> None:
    """The epilogue of relu makes zeros of them, so that no output shows it; and they are looked at once."""
    x, y = map(world.array, data(16))
    trainer = made(world, True)
    good = trainer.snapshot()
    spoiled = world.cupy.asnumpy(trainer.theta).copy()
    spoiled[0] = np.nan
    trainer.restore(((world.array(spoiled), trainer.buffers, trainer.state), 0))
    for call in (lambda: trainer.predict(x), lambda: trainer.evaluate(x, y)):
        with pytest.raises(bp.errors.DivergedError, match="weight of layer '0', Dense"):
            call()
    trainer.restore(good)
    each = []
    for _ in range(3):
        with Spent(world, "operation", "copy to host") as spent:
            trainer.predict(x)
        each.append(spent.counts)
    assert each[0] > each[1] == each[2]


# ---- memory that runs out, errors, interrupts -----------------------------------------------------------------------


class Allocator:
    """Gives memory so many times, and then none."""

    def __init__(self, world: World, times: int) -> None:
        self.world, self.left = world, times

    def __call__(self, size: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise MemoryError
        return self.world.malloc(size)


@pytest.mark.parametrize("when", ["first", "captured", "replayed"])
def test_wherever_memory_runs_out_nothing_is_changed(when: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first allocation of a step, or the second ...; then training goes on as if it had not."""
    monkeypatch.setattr("bpnet.backends.cupy.device_scalars.PAGE", 1)  # or else a replayed step would need none
    batches = [tuple(map(world.array, data(6, seed=seed))) for seed in range(5)]  # copied, to memory of the graph
    net = bp.Sequential(bp.Dense(4, "relu"), bp.BatchNorm(), bp.Dense(4, "tanh"), bp.Dense(3))
    options = {"net": net, "optimizer": bp.AdamW(0.1), "clip_norm": 0.5}
    plain = made(world, False, **options)
    expected = []
    for batch in batches:
        plain.step(*batch)
        expected.append(state(world, plain))
    before = {"first": 0, "captured": 1, "replayed": 2}[when]
    failed, times = True, 0
    while failed:
        trainer = made(world, True, **options)
        for batch in batches[:before]:
            trainer.step(*batch)
        start, failed = state(world, trainer), False
        try:
            with world.cuda.using_allocator(Allocator(world, times)):
                trainer._engine.advance(*batches[before], None, None)
        except bp.errors.OutOfMemoryError:
            failed = True
        reached = before if failed else before + 1
        unchanged(world, trainer, start if failed else expected[before])
        assert trainer.step_count == reached
        for number in range(reached, 5):
            trainer.step(*batches[number])
            unchanged(world, trainer, expected[number])
        times += 1
    assert times > {"first": 5, "captured": 3, "replayed": 1}[when]


@pytest.mark.parametrize("when", ["captured", "replayed"])
@pytest.mark.usefixtures("kept")
def test_where_memory_runs_out_for_a_group_its_steps_are_done_one_by_one(
    when: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first allocation of a group, or the second ...: then nothing was done."""
    monkeypatch.setattr("bpnet.backends.cupy.device_scalars.PAGE", 1)  # or else a replay would need none
    monkeypatch.setattr(type(world.seam), "max_steps_per_launch", 2)
    x, y = map(world.array, data(12))
    options = {"net": NETS["norm"], "optimizer": bp.AdamW(0.1), "clip_norm": 0.5}
    plain = made(world, False, **options)
    plain.fit(x, y, epochs=4, batch_size=6, progress=False)
    before = {"captured": 1, "replayed": 2}[when]
    real, refused, times = world.seam.run_steps, True, 0
    while refused:
        trainer, seen = made(world, True, **options), []
        trainer.fit(x, y, epochs=before, batch_size=6, progress=False)

        def limited(*args: Any, trainer: Any = trainer, seen: list[bool] = seen, times: int = times) -> Any:
            start = state(world, trainer)
            with world.cuda.using_allocator(Allocator(world, times)):
                found = real(*args)
            seen.append(found is None)
            if found is None:
                assert trainer.step_count == 2 * before
                unchanged(world, trainer, start)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.seam, "run_steps", limited)
            trainer.fit(x, y, batch_size=6, progress=False)
        (refused,) = seen
        trainer.fit(x, y, epochs=3 - before, batch_size=6, progress=False)
        equal(world, trainer, plain)
        times += 1
    assert times > 1


@dataclass(frozen=True)
class Faulty(bp.Layer):
    """Raises `error`, whatever it is, where one is set; of 7 rows it looks at a value, which can't be traced."""

    error: ClassVar[Any] = None

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        if Faulty.error is not None:
            raise Faulty.error
        return x * (1.0 if x.shape[0] != 7 else min(1.0, 1.0 + float(run.xp.sum(x * x)))), None

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a layer's own"), MemoryError("full")])
@pytest.mark.parametrize(("rows", "when"), [(5, 0), (7, 3)])
@pytest.mark.filterwarnings("ignore::bpnet.errors.BpnetWarning")
def test_a_step_that_is_broken_off_changes_nothing(
    rows: int, when: int, error: BaseException, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another shape is traced, or runs as it stands; and steps go on as before."""
    x, y = map(world.array, data())
    trainer = made(world, True, bp.Sequential(bp.Dense(3), Faulty()))
    for _ in range(when):
        trainer.step(x[:rows], y[:rows])
    for _ in range(3):
        trainer.step(x, y)
    assert graphs(trainer) == 1
    before = state(world, trainer)
    monkeypatch.setattr(Faulty, "error", error)
    with pytest.raises(type(error)):
        trainer.step(x[:rows], y[:rows])
    monkeypatch.setattr(Faulty, "error", None)
    unchanged(world, trainer, before)
    with Spent(world, "graph launch") as spent:
        for _ in range(3):
            trainer.step(x, y)
    assert spent.counts[0] >= 2  # graphs may be gone where there was no memory
    trainer.step(x[:rows], y[:rows])


class Interrupts:
    """Raises KeyboardInterrupt at the n-th place where Python looks for signals: calls and returns of functions."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        generates = code.co_flags & inspect.CO_GENERATOR  # whose end Python would not let an error out of
        if code.co_filename.startswith(BPNET) and event in ("call", "return", "c_return") and not generates:
            self.left -= 1
            if self.left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["first", "captured", "replayed"])
def test_an_interrupt_at_any_moment_leaves_a_definite_step(when: str, world: World) -> None:
    """That before it, or that after it; and whatever was captured then is right."""
    x, y = map(world.array, data(6))
    options = {"net": NETS["norm"], "optimizer": bp.AdamW(0.1)}
    plain = made(world, False, **options)
    expected = [state(world, plain)]
    for _ in range(6):
        plain.step(x, y)
        expected.append(state(world, plain))
    before = {"first": 0, "captured": 1, "replayed": 2}[when]
    at, reached = 0, set()
    while True:
        trainer = made(world, True, **options)
        for _ in range(before):
            trainer.step(x, y)
        broken = Interrupts(at)
        try:
            sys.setprofile(broken)
            trainer._engine.advance(x, y, None, None)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        reached.add(trainer.step_count)
        for number in range(trainer.step_count, 6):
            unchanged(world, trainer, expected[number])
            trainer.step(x, y)
        unchanged(world, trainer, expected[6])
        if broken.left >= 0:
            break
        at += 1 + at // (20 if when == "replayed" else 5)
    assert reached == {before, before + 1}


# ---- which graphs there are -----------------------------------------------------------------------------------------


def test_every_shape_has_its_graph_and_few_are_kept(world: World) -> None:
    x, y = map(world.array, data(40))
    plain, captured = both(world)
    for count in [n for n in range(2, 14) for _ in range(2)] + [13, 2, 2, 2]:
        for trainer in (plain, captured):
            trainer.step(x[:count], y[:count])
    assert graphs(captured) == len(captured._engine.step.programs) == 8
    equal(world, captured, plain)
    used = world.used
    del trainer, captured
    assert world.used < used


@dataclass(frozen=True)
class Looks(bp.Layer):
    """Lets the host look at a value."""

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        return x * min(1.0, 1.0 + float(run.xp.sum(x * x))), None

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


@pytest.mark.parametrize("batch_size", [20, 4])
def test_what_cannot_be_traced_runs_and_says_so_once(batch_size: int, world: World) -> None:
    """A layer that can't be is called as it stands; the rest is kernels, though no graph."""
    x, y = data()
    net = bp.Sequential(bp.Dense(5, "tanh"), Looks(), bp.Dense(3))
    expected = bp.Trainer(net, "cross_entropy", bp.SGD(0.1)).build(x)
    expected.fit(x, y, epochs=3, batch_size=batch_size, progress=False)
    trainer = made(world, True, net, bp.SGD(0.1))
    with pytest.warns(bp.errors.BpnetWarning, match="a training step is launched command by command, .*Looks") as told:
        trainer.fit(world.array(x), world.array(y), epochs=3, batch_size=batch_size, progress=False)
    assert len(told) == 1
    assert (graphs(trainer), world.counts["product of cuBLAS"]) == (0, 0)
    np.testing.assert_allclose(world.cupy.asnumpy(trainer.theta), expected.theta, rtol=1e-4, atol=1e-5)
    found = world.cupy.asnumpy(trainer.predict(world.array(x)))
    np.testing.assert_allclose(found, expected.predict(x), rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.step(world.array(x[:7]), world.array(y[:7]))


@pytest.mark.parametrize("captures", [False, True])
def test_a_step_may_depend_on_its_loss(captures: bool, world: World) -> None:
    """Which lies where the host reads it, at another place after each step."""

    def step(backend: Any, carry: Any, x: Any, number: Any) -> Any:
        (w,) = carry
        loss = backend.xp.sum(x * w)
        return (w - 0.01 * loss * backend.xp.sum(x, axis=0),), loss

    compiled, x, w = world.seam.compile(step, donate=True), np.linspace(0.1, 1.0, 12).reshape(3, 4), np.ones(4)
    compiled.captures = captures
    state, losses = State((world.array(w),), 0), []
    for count in range(4):
        losses.append(np.sum(x * w))
        found = world.seam.advance(compiled, state, (world.array(x), count), count + 1)
        np.testing.assert_allclose(found.get(), losses[-1], rtol=1e-12)
        w = w - 0.01 * losses[-1] * x.sum(axis=0)
        np.testing.assert_allclose(state.now[0][0].get(), w, rtol=1e-12)


@dataclass(frozen=True)
class _Asking(bp.SGD):
    """An optimizer that looks at a value."""

    def update(self, backend: Any, layout: Any, theta: Any, grad: Any, *rest: Any, **options: Any) -> Any:
        grad = grad * min(1.0, 1.0 + float(backend.xp.sum(grad * grad)))
        return super().update(backend, layout, theta, grad, *rest, **options)


def test_a_step_that_cannot_be_traced_runs_as_it_stands_and_says_so_once(world: World) -> None:
    x, y = data()
    net = bp.Sequential(bp.Dense(4), bp.BatchNorm(), bp.Dense(3))
    expected = bp.Trainer(net, "mse", _Asking(0.1)).build(x)
    trainer = bp.Trainer(net, "mse", _Asking(0.1)).build(world.array(x))
    target = np.eye(3, dtype="float32")[y]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected.fit(x, target, epochs=3, batch_size=20, progress=False)
    with pytest.warns(bp.errors.BpnetWarning, match="a training step is computed operation by operation") as told:
        trainer.fit(world.array(x), world.array(target), epochs=3, batch_size=20, progress=False)
    assert len(told) == 1
    assert graphs(trainer) == 0
    np.testing.assert_allclose(world.cupy.asnumpy(trainer.theta), expected.theta, rtol=1e-4, atol=1e-5)


@EITHER
@pytest.mark.parametrize("optimizer", GO_ON, ids=lambda o: type(o).__name__)
@pytest.mark.filterwarnings("ignore::bpnet.errors.BpnetWarning")
def test_an_optimizer_may_go_on_with_what_it_has_updated(optimizer: Any, capture: bool, world: World) -> None:
    trainer = bp.Trainer(NETS["plain"], "cross_entropy", optimizer).build(world.array(data(1, "float64")[0]))
    trainer._engine.step.captures = capture
    check_goes_on(trainer, world.array, world.cupy.asnumpy, 5)


def test_several_threads_may_call_a_compiled_function(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launches all of its commands before another does, since they use the same workspace."""
    from bpnet.backends.cupy import compiled

    step = world.seam.compile(lambda b, x: (b.xp.sum(x, axis=0),))
    batches = [world.array(data(30, seed=seed)[0]) for seed in range(4)]
    step(batches[0])
    launching: list[threading.Thread] = []
    found: dict[int, Any] = {}
    real = compiled.uninterrupted

    def slowly(calls: Any) -> None:
        launching.append(threading.current_thread())  # whose number another may have after it
        time.sleep(0.01)
        real(calls)

    def run(number: int) -> None:
        found[number] = step(batches[number])[0]

    monkeypatch.setattr(compiled, "uninterrupted", slowly)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for each in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            each(thread)
    assert len([thread for thread, _ in itertools.groupby(launching)]) == 4
    for number, x in enumerate(batches):
        expected = world.cupy.asnumpy(x).sum(axis=0)
        np.testing.assert_allclose(world.cupy.asnumpy(found[number]), expected, rtol=1e-5, atol=1e-5)


def test_only_steps_that_are_repeated_are_captured(world: World) -> None:
    x, y = map(world.array, data())
    trainer = made(world, True)
    for _ in range(3):
        trainer.evaluate(x, y)
        trainer.predict(x)
    assert world.counts["graph launch"] == 0


# ---- everything there is --------------------------------------------------------------------------------------------

LAYERS = {
    # of which the derivative reads nothing, the output and the input; with a row's sums; and with parameters
    **{name: bp.Dense(6, name) for name in ("identity", "relu", "sigmoid", "gelu", "softmax", "prelu")},
    "parametric, shared": bp.Dense(6, bp.Parametric("mish", shared=True)),
    "activation alone": bp.Sequential(bp.Softmax(), bp.Tanh()),
    "no bias": bp.Dense(6, "gelu", bias=False),
    "batch norm": bp.BatchNorm(),
    "standardize": bp.Standardize(0.5, 2.0),
    "standardize back": bp.Standardize(0.5, 2.0, invert=True),
    "flatten": bp.Flatten(),
    "residual": bp.Residual(bp.Sequential(bp.Dense(6, "tanh"), bp.Residual(bp.Dense(6)))),
}
LOSSES = {
    "cross_entropy": ("labels", "probabilities"),
    "mse": ("values",),
    "binary_cross_entropy": ("probabilities",),
    "binary_cross_entropy_with_logits": ("probabilities",),
}


def trained(array: Callable[[Any], Any], dtype: str, net: Any, loss: str, target: str, optimizer: Any) -> Any:
    """A trainer after four steps, and what it then predicts and how it is rated, of weighted rows."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((40, 4)).astype(dtype)
    y = {
        "labels": rng.integers(0, 3, 40),
        "probabilities": rng.dirichlet(np.ones(3), 40).astype(dtype),
        "values": rng.standard_normal((40, 3)).astype(dtype),
    }[target]
    weight = rng.uniform(0.5, 1.5, 40).astype(dtype)
    batch = array(x), array(y), array(weight)
    trainer = bp.Trainer(net, loss, optimizer, clip_norm=1.0)
    for _ in range(4):
        trainer.step(*batch)
    return trainer, trainer.predict(batch[0]), trainer.evaluate(batch[0], batch[1])


CASES = [
    *((bp.Sequential(bp.Dense(6), layer, bp.Dense(3)), "cross_entropy", "labels", "sgd") for layer in LAYERS.values()),
    *((NETS["plain"], "cross_entropy", "labels", optimizer) for optimizer in OPTIMIZERS),
    *(
        (
            bp.Sequential(bp.Dense(5), bp.Dense(3, "sigmoid" if loss == "binary_cross_entropy" else "identity")),
            loss,
            of,
            "sgd",
        )
        for loss, targets in LOSSES.items()
        for of in targets
    ),
]


NAMES = [*LAYERS, *OPTIMIZERS, *(f"{loss} of {of}" for loss, targets in LOSSES.items() for of in targets)]


@pytest.mark.parametrize(
    ("net", "loss", "target", "optimizer", "dtype"),
    [
        *((*case, "float32") for case in CASES),
        *((*case, "float64") for case in CASES[::12]),
    ],  # kernels differ by a name
    ids=[*NAMES, *(f"{name}, float64" for name in NAMES[::12])],
)
def test_everything_equals_numpy(net: Any, loss: str, target: str, optimizer: str, dtype: str, world: World) -> None:
    """Compiled and captured, for NVIDIA's compiler too; against NumPy in double precision."""
    expected, outputs, rating = trained(np.asarray, "float64", net, loss, target, OPTIMIZERS[optimizer])
    trainer, found, rated = trained(world.array, dtype, net, loss, target, OPTIMIZERS[optimizer])
    assert graphs(trainer) == 1
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == "float64" else {"rtol": 2e-4, "atol": 2e-5}
    for ours, theirs in ((trainer.theta, expected.theta), (trainer.buffers, expected.buffers), (found, outputs)):
        assert ours.dtype == dtype
        np.testing.assert_allclose(world.cupy.asnumpy(ours), theirs, **near)
    assert rated == pytest.approx(rating, rel=near["rtol"])
    assert world.counts["product of cuBLAS"] == 0
    for code in world.codes if dtype == "float32" else ():
        compiled(code)


@DTYPES
def test_every_activation_equals_numpys(dtype: str, world: World) -> None:
    """A few as one function; in float32 for NVIDIA's compiler too, which takes a second for each."""
    rng, near = np.random.default_rng(2), 1e-12 if dtype == "float64" else 3e-6
    z, dy = (np.round(rng.standard_normal((6, 4)) * 200.0).astype(dtype) / 64 for _ in range(2))
    every_case = list(ACTIVATIONS.values())
    for cases in (every_case[i : i + 4] for i in range(0, len(every_case), 4)):
        alphas = [None if a is None else a.astype(dtype) for a in (alpha_of(case, 4) for case in cases)]

        def every(b: Any, z: Any, dy: Any, *alphas: Any, cases: Any = cases) -> Any:
            run = bp.Run(b, True)
            made = (both_passes(run, c.layer, z, dy, a) for c, a in zip(cases, alphas, strict=True))
            return tuple(result for results in made for result in results if result is not None)

        found = world.seam.compile(every)(*(None if a is None else world.array(a) for a in (z, dy, *alphas)))
        expected = every(bp.backends.get("numpy"), *(None if a is None else np.float64(a) for a in (z, dy, *alphas)))
        for ours, theirs in zip(found, expected, strict=True):
            off = 3.0 * near * np.max(np.abs(theirs), initial=1.0)
            np.testing.assert_allclose(world.cupy.asnumpy(ours), theirs, rtol=near, atol=off)
    for code in world.codes if dtype == "float32" else ():
        compiled(code)


# ---- on a device ----------------------------------------------------------------------------------------------------


def on_device(device: Any, capture: bool, x: Any, *args: Any, **options: Any) -> Any:
    trainer = bp.Trainer(*args, **options).build(x)
    trainer._engine.step.captures = capture
    return trainer


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_on_a_device_replaying_equals_launching(net: str, optimizer: str, dtype: str, device: Any) -> None:
    """A capture refuses copies to the host and waiting, so a step that has a graph does neither."""
    x, y = map(device.array, data(1000, dtype))
    found = []
    for capture in (False, True):
        trainer = on_device(device, capture, x, NETS[net], "cross_entropy", OPTIMIZERS[optimizer], clip_norm=0.5)
        trainer.fit(x, y, epochs=20, batch_size=96, progress=False)
        found.append([device.host(a) for a in (trainer.theta, trainer.buffers, *trainer.state)])
        found[-1].append(np.asarray(trainer.history["loss"]))
    assert (
        graphs(trainer) >= 3
    )  # of eight steps, one, and the smaller last; of more where batches come to lie elsewhere
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize(("net", "loss", "target", "optimizer"), CASES)
def test_on_a_device_everything_equals_numpy(
    net: Any, loss: str, target: str, optimizer: str, dtype: str, device: Any
) -> None:
    expected, outputs, _ = trained(np.asarray, "float64", net, loss, target, OPTIMIZERS[optimizer])
    trainer, found, _ = trained(device.array, dtype, net, loss, target, OPTIMIZERS[optimizer])
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == "float64" else {"rtol": 2e-4, "atol": 2e-5}
    for ours, theirs in ((trainer.theta, expected.theta), (trainer.buffers, expected.buffers), (found, outputs)):
        np.testing.assert_allclose(device.host(ours), theirs, **near)


@pytest.mark.gpu
def test_on_a_device_the_host_may_run_ahead(device: Any) -> None:
    """Steps far beyond the ring of numbers and the page of losses, with another learning rate each."""
    x, y = map(device.array, data(64))
    losses = []
    for capture in (False, True):
        optimizer = bp.Adam(bp.Cosine(1e-2, steps=6000))
        trainer = on_device(device, capture, x, NETS["dropout"], "cross_entropy", optimizer)
        losses.append(device.seam.fetch([trainer.step(x, y, check=False) for _ in range(6000)]))
    assert graphs(trainer) == 1
    assert losses[0] == losses[1]
