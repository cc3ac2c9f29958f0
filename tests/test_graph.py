"""A training step as a CUDA graph: replaying gives the bits of launching, on a stand-in for a device, and on one."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from fake_cupy import TECHNIQUES, World, lent
from test_cuda import ACTIVATIONS, compiled, host  # noqa: F401 - a fixture
from test_interrupts import GO_ON, check_goes_on
from test_parts import Astray

import bpnet as bp
from bpnet.backends.base import PRECISIONS
from bpnet.feeding import shuffled


@pytest.fixture
def world(host: Any, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    """CuPy's backend on a stand-in for the device; its arrays are `world.array(values)`."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    return lent(host, monkeypatch)


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


def data(count: int = 48, dtype: str = "float32", seed: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 4)).astype(dtype), rng.integers(0, 3, count).astype("int32")


def made(world: World, capture: bool, net: bp.Layer = NETS["plain"], optimizer: Any = "adam", **options: Any) -> Any:
    """A trainer for rows of four features whose steps are captured or not."""
    world.seam.techniques = TECHNIQUES if capture else TECHNIQUES - {"graph"}
    dtype = options.pop("dtype", "float32")
    return bp.Trainer(net, "cross_entropy", optimizer, **options).build(world.array(data(1, dtype)[0]))


def state(world: World, trainer: bp.Trainer) -> list[Any]:
    """All that training changes."""
    return [world.cupy.asnumpy(a) for a in (trainer.theta, trainer.buffers, *trainer.state)]


def equal(world: World, one: bp.Trainer, other: bp.Trainer) -> None:
    assert one.step_count == other.step_count
    for a, b in zip(state(world, one), state(world, other), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(one.history, other.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def graphs(trainer: bp.Trainer) -> int:
    """How many graphs its step has."""
    return sum(len(known.in_place) + (known.copying is not None) for known in trainer._step.kinds.values())


# ---- the same bits --------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adamw": bp.AdamW(bp.WarmUp(bp.Cosine(2e-2, steps=9), 3), weight_decay=0.1),
    "nesterov": bp.SGD(bp.Cosine(0.1, steps=5), momentum=0.9, nesterov=True),
    "sgd": bp.SGD(0.1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_replaying_equals_launching(net: str, optimizer: str, dtype: str, world: World) -> None:
    """With schedules, bias correction, dropout and clipping, batches by rows of which the last is smaller."""
    x, y = map(world.array, data(dtype=dtype))
    options = {"net": NETS[net], "optimizer": OPTIMIZERS[optimizer], "clip_norm": 0.5, "dtype": dtype}
    plain, captured = made(world, False, **options), made(world, True, **options)
    for trainer in (plain, captured):
        launched = world.counts["launch"]
        trainer.fit(x, y, epochs=4, batch_size=20, progress=False)
    assert graphs(captured) == 2
    assert world.counts["launch"] - launched >= 8
    equal(world, captured, plain)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("micro_batch", [None, 9])
@pytest.mark.parametrize("few", [True, False])
def test_all_products_of_a_captured_step_are_cublaslts(
    few: bool, micro_batch: int | None, precision: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of columns among them; in the trainer's precision, though others are computed on the same arrays."""
    if not few:
        monkeypatch.setattr("bpnet.backends.cupy_kernels.FEW_OPERATIONS", 0.0)
    x, y = map(world.array, data(25))
    options = {
        "net": bp.Sequential(bp.Dense(5, "relu"), bp.Dense(4, "softmax"), bp.Dense(3)),
        "micro_batch": micro_batch,
    }
    exact = made(world, True, **options)
    plain, captured = (made(world, capture, precision=precision, **options) for capture in (False, True))
    for _ in range(5):
        for trainer in (exact, plain, captured):
            trainer.step(x, y)
    assert graphs(exact) == graphs(captured) == 1
    assert world.counts["product"] == 0
    assert world.counts["cublaslt"] > 0
    equal(world, captured, plain)
    same = np.array_equal(*(world.cupy.asnumpy(trainer.theta) for trainer in (exact, captured)))
    assert same == (precision == "float32")


@pytest.mark.parametrize("capture", [False, True])
def test_gradients_in_each_others_places_arrive_where_they_belong(capture: bool, world: World) -> None:
    x, y = data(20)
    found = []
    for turn, array in ((0, np.array), (1, world.array)):
        net = bp.Sequential(Astray(turn), bp.Dense(3))
        if turn:
            trainer = made(world, capture, net, bp.SGD(0.1))
        else:
            trainer = bp.Trainer(net, "cross_entropy", bp.SGD(0.1)).build(x)
        for _ in range(4):
            trainer.step(array(x), array(y))
        found.append(trainer.theta)
    assert not capture or graphs(trainer) == 1
    np.testing.assert_allclose(world.cupy.asnumpy(found[1]), found[0], rtol=1e-4, atol=1e-6)


def test_without_cublaslt_steps_are_not_captured(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Since CuPy's products can't be."""
    x, y = map(world.array, data())
    usual = made(world, True)
    world.seam.techniques = TECHNIQUES - {"cublaslt"}
    without = bp.Trainer(NETS["plain"], "cross_entropy")
    with caplog.at_level(logging.DEBUG, "bpnet"):
        for trainer in (usual, without):
            trainer.fit(x, y, epochs=3, batch_size=20, progress=False)
    assert "without a CUDA graph" in caplog.text
    assert graphs(without) == 0
    for a, b in zip(state(world, usual), state(world, without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_from_elsewhere_are_staged(weighted: bool, world: World) -> None:
    """Steps on ever new arrays, some with gaps, need one graph; nothing waits for the device in between."""
    plain, captured = made(world, False), made(world, True)
    batches = [data(16, seed=seed) for seed in range(9)]
    weights = [np.arange(16, dtype="float32") + seed for seed in range(9)]
    seen = []
    for trainer in (plain, captured):
        losses = []
        for i, ((x, y), weight) in enumerate(zip(batches, weights, strict=True)):
            bx = world.array(x) if i % 3 else world.array(np.repeat(x, 2, axis=1))[:, ::2]
            losses.append(trainer.step(bx, world.array(y), world.array(weight) if weighted else None, check=False))
        seen.append([world.cupy.asnumpy(loss) for loss in losses])
    assert graphs(captured) == 1
    assert seen[0] == seen[1]
    equal(world, captured, plain)


@pytest.mark.parametrize("small", [2**20, 200])
def test_a_data_set_is_read_where_it_lies_and_may_move(
    small: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small one is copied then, a large one is read in the new place too."""
    monkeypatch.setattr("bpnet.backends.cupy_places.SMALL", small)
    x, y = map(world.array, data())
    other = [world.array(a) for a in data(seed=5)]
    plain, captured = made(world, False), made(world, True)
    copies = []
    for trainer in (plain, captured):
        for some in ((x, y), (x, y), other, other, (x, y), other):
            before = world.counts["device copy"]
            trainer.fit(*some, batch_size=16, progress=False)
            copies.append(world.counts["device copy"] - before)
    # the first step of a place is no launch; each launch copies the rows of its batch, and x and y where they are small
    assert copies[6:] == ([2, 3, 9, 9, 3, 9] if small == 2**20 else [2, 3, 2, 3, 3, 3])
    assert graphs(captured) == 2
    equal(world, captured, plain)


@pytest.fixture
def large(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of more than 200 bytes, such as x, are no longer small."""
    monkeypatch.setattr("bpnet.backends.cupy_places.SMALL", 200)


@pytest.mark.usefixtures("large")
def test_large_batches_that_come_by_turns_are_read_where_they_lie(world: World) -> None:
    batches = [tuple(map(world.array, data(16, seed=seed))) for seed in range(3)]
    plain, captured = made(world, False), made(world, True)
    for trainer in (plain, captured):
        for i in range(12):
            before = dict(world.counts)
            trainer.step(*batches[i % 3], check=False)
    assert (world.counts["launch"] - before["launch"], world.counts["device copy"] - before["device copy"]) == (1, 0)
    assert graphs(captured) == 3
    equal(world, captured, plain)


@pytest.mark.usefixtures("large")
def test_large_batches_that_never_come_again_are_copied(world: World) -> None:
    """After a few of them; and one that does come again has a graph of its own."""
    batches = [tuple(map(world.array, data(16, seed=seed))) for seed in range(9)]
    plain, captured = made(world, False), made(world, True)
    for trainer in (plain, captured):
        done = []
        for batch in [*batches, *[batches[-1]] * 3, batches[3]]:
            before = dict(world.counts)
            trainer.step(*batch, check=False)
            done.append(tuple(world.counts[name] - before[name] for name in ("launch", "device copy")))
    assert done == [(0, 0)] * 4 + [(1, 2)] * 5 + [(1, 0)] * 3 + [(1, 2)]
    assert graphs(captured) == 2
    equal(world, captured, plain)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("turns", [3, 4, 5, 7])
def test_capturing_comes_to_an_end(turns: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many large batches come by turns, and whatever comes then: new ones, or one again and again."""
    batches = [tuple(map(world.array, data(16, seed=seed))) for seed in range(40)]
    plain, captured = made(world, False), made(world, True)
    captures: list[int] = []
    real = type(captured._step)._capture
    monkeypatch.setattr(type(captured._step), "_capture", lambda *args: (captures.append(len(done)), real(*args))[1])
    for trainer in (plain, captured):
        done: list[Any] = []
        for batch in [*batches[:turns] * 12, *batches[turns:], *[batches[-1]] * 6]:
            trainer.step(*batch, check=False)
            done.append(batch)
    last = [n for n in captures if n >= len(done) - 6]
    assert len(captures) <= turns + 6
    assert len(last) == 1, captures  # it is read where it lies from the second time on
    assert all(n < 8 * turns or n in last or turns * 12 <= n < turns * 12 + 6 for n in captures), captures
    equal(world, captured, plain)


@pytest.mark.usefixtures("large")
def test_graphs_of_one_kind_are_few(world: World) -> None:
    from bpnet.backends.cupy_places import MOST_PLACES

    batches = [tuple(map(world.array, data(16, seed=seed))) for seed in range(7)]
    plain, captured = made(world, False), made(world, True)
    for trainer in (plain, captured):
        for batch in batches:
            for _ in range(3):
                trainer.step(*batch)
    assert graphs(captured) == MOST_PLACES
    equal(world, captured, plain)


def test_parameters_may_come_from_elsewhere(world: World) -> None:
    """After a snapshot is restored, or parameters assigned, the graph goes on with those."""
    x, y = map(world.array, data(16))
    plain, captured = made(world, False, NETS["norm"]), made(world, True, NETS["norm"])
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
    plain, captured = made(world, False), made(world, True)
    for _ in range(12):
        plain.step(x, y, check=False)
    world.synchronise()
    for i in range(12):
        with world.cuda.Stream() if i % 2 else world.current[0]:
            captured.step(x, y, check=False)
    equal(world, captured, plain)


# ---- the host ahead of the device -----------------------------------------------------------------------------------


def test_the_host_may_run_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers in slots not yet copied stay, and losses until they are fetched, though the device does nothing."""
    from bpnet.backends import cupy_slots

    monkeypatch.setattr(cupy_slots, "SLOTS", 4)
    monkeypatch.setattr(cupy_slots, "PAGE", 6)
    x, y = map(world.array, data())
    optimizer = bp.Adam(bp.Cosine(0.05, steps=30))
    plain, captured = made(world, False, optimizer=optimizer), made(world, True, optimizer=optimizer)
    for trainer in (plain, captured):
        trainer.fit(x, y, epochs=6, batch_size=4, progress=False)
    equal(world, captured, plain)


def test_nothing_waits_inside_a_step(world: World) -> None:
    """A step is one copy of the rows, one of the numbers, and one launch; the ring lets the host wait twice in 64."""
    x, y = map(world.array, data())
    trainer = made(world, True, NETS["dropout"])
    trainer.fit(x, y, batch_size=16, progress=False)
    rows = [world.array(np.arange(16, dtype="int32")) for _ in range(64)]
    before = dict(world.counts)
    for some in rows:
        trainer._advance(x, y, None, some)
    spent = {name: count - before[name] for name, count in world.counts.items() if count != before[name]}
    assert spent == {"launch": 64, "device copy": 64, "host copy": 64, "event wait": 2}


def test_a_replay_is_few_calls(world: World) -> None:
    """Python's and C's functions that the step itself calls; what the stand-in does below them is not counted."""
    import sys

    x, y = map(world.array, data(16))
    trainer = made(world, True)
    for _ in range(3):
        trainer.step(x, y)
    names: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and "bpnet" in frame.f_code.co_filename:
            names.append(frame.f_code.co_name)
        elif event == "c_call" and "bpnet" in frame.f_code.co_filename:
            names.append(argument.__name__)

    sys.setprofile(note)
    try:
        trainer._advance(x, y, None, None)
    finally:
        sys.setprofile(None)
    assert len(names) < 60, names


# ---- several steps at once -----------------------------------------------------------------------------------------


class Steps(bp.Callback):
    """Keeps what it is told after every step: its number in the epoch, and the trainer's."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.seen.append((step, trainer.step_count))


class Epochs(bp.Callback):
    """Wants to be told after epochs only."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_epoch_end(self, trainer: bp.Trainer, record: Any) -> None:
        self.seen.append(trainer.step_count)


@pytest.fixture
def kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders of rows are kept, so that no two of them lie at the same place."""
    arrays, from_host = [], world.seam.from_host

    def keep(*args: Any) -> Any:
        arrays.append(from_host(*args))
        return arrays[-1]

    monkeypatch.setattr(world.seam, "from_host", keep)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.usefixtures("kept")
def test_eight_steps_are_one_launch_unless_each_is_told(net: str, optimizer: str, weighted: bool, world: World) -> None:
    """An epoch has 8 + 8 + 2 steps of 8 rows, and one of 6."""
    x, y = map(world.array, data(150))
    weight = world.array(np.arange(150, dtype="float32")) if weighted else None
    options = {"net": NETS[net], "optimizer": OPTIMIZERS[optimizer], "clip_norm": 0.5}
    plain, each, captured = made(world, False, **options), made(world, True, **options), made(world, True, **options)
    spent = []
    for trainer, told in (plain, Steps()), (each, Steps()), (captured, Epochs()):
        start = trainer.snapshot()
        for epochs in (2, 1):  # in the first, graphs are captured; and then the carry comes from elsewhere
            trainer.restore(start)
            before = dict(world.counts)
            how = {"epochs": epochs, "batch_size": 8, "sample_weight": weight, "callbacks": [told]}
            trainer.fit(x, y, progress=False, **how)
        spent.append([world.counts[name] - before[name] for name in ("launch", "host copy", "synchronise")])
        if isinstance(told, Steps):
            assert told.seen == [(i % 19 + 1, i + 1) for i in [*range(38), *range(19)]]
        else:
            assert told.seen == [19, 38, 19]
    assert spent == [[0, 0, 0], [19, 19, 0], [5, 5, 0]]
    assert (graphs(each), graphs(captured)) == (2, 3)
    equal(world, each, plain)
    equal(world, captured, plain)


class Late(Steps):
    """Wants to know of all steps, but may be told late."""

    before_next_step = False


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.usefixtures("kept")
def test_who_may_be_told_late_does_not_part_the_steps(shuffle: bool, world: World) -> None:
    """As the progress bar, in whatever order the rows come."""
    x, y = map(world.array, data(76))
    plain, captured, told = made(world, False), made(world, True), Late()
    for trainer, callbacks in (plain, []), (captured, [told]):
        before = world.counts["launch"]
        how = {"epochs": 3, "batch_size": 4, "shuffle": shuffle, "callbacks": callbacks}
        trainer.fit(x, y, progress=trainer is captured, **how)
    assert [step for step, _ in told.seen] == 3 * list(range(1, 20))
    assert world.counts["launch"] - before == 6 + 5 + 2 * 5  # eight steps were done first, then all alike captured
    equal(world, captured, plain)


def test_only_rows_that_lie_on_the_device_are_taken_together(world: World) -> None:
    """Not batches that stream through it, nor where each step is told of; nor are few batches copied to be one."""
    x, y = data(64)
    for options in ({"batch_size": 16, "shuffle": False}, {"batch_size": 4, "callbacks": [Steps()]}):
        plain, trainer = made(world, False), made(world, True)
        for either in (plain, trainer):
            either.fit(world.array(x), world.array(y), epochs=2, progress=False, **options)
        assert graphs(trainer) == 1
        assert plain.step_count == 128 // options["batch_size"]
        equal(world, trainer, plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpnet.feeding.COMFORTABLE", 0.0)
        trainer = made(world, True, device="cupy")
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
    options = {"optimizer": bp.SGD(Until(37, after))}
    plain, captured = made(world, False, **options), made(world, True, **options)
    told = []
    for trainer in (plain, captured):
        with pytest.raises(error) as raised:
            trainer.fit(x, y, epochs=3, batch_size=4, progress=False)
        told.append(str(raised.value))
    assert told[0] == told[1]
    assert captured.step_count >= 37
    equal(world, captured, plain)


@pytest.mark.parametrize("capture", [False, True])
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
    for a, b in zip(state(world, trainer), state(world, other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("capture", [False, True])
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
    spent = []
    for _ in range(3):
        before = world.counts["host copy"] + world.counts["operation"]
        trainer.predict(x)
        spent.append(world.counts["host copy"] + world.counts["operation"] - before)
    assert spent[0] > spent[1] == spent[2]


@pytest.mark.parametrize("when", ["captured", "replayed"])
@pytest.mark.usefixtures("kept")
def test_where_memory_runs_out_for_a_group_its_steps_are_done_one_by_one(
    when: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first allocation of a group, or the second ...: then nothing was done."""
    monkeypatch.setattr("bpnet.backends.cupy_slots.PAGE", 1)  # or else a replay would need none
    monkeypatch.setattr("bpnet.backends.cupy.MAX_STEPS_PER_LAUNCH", 2)
    x, y = map(world.array, data(12))
    options = {"net": NETS["norm"], "optimizer": bp.AdamW(0.1), "clip_norm": 0.5}
    plain = made(world, False, **options)
    plain.fit(x, y, epochs=4, batch_size=6, progress=False)
    before = {"captured": 1, "replayed": 2}[when]
    refused, left = True, 0
    while refused:
        trainer, free = made(world, True, **options), iter(range(left))
        trainer.fit(x, y, epochs=before, batch_size=6, progress=False)
        start = state(world, trainer)

        def few(size: int, free: Iterator[int] = free) -> Any:
            if next(free, None) is None:
                raise MemoryError
            return World.malloc(world, size)

        order = world.seam.from_host(shuffled(0, before, 12), "int32")
        with world.using_allocator(few):
            refused = trainer._several(x, y, None, order, 2) is None
        if refused:
            assert trainer.step_count == 2 * before
            for found, e in zip(state(world, trainer), start, strict=True):
                np.testing.assert_array_equal(found, e)
            trainer._advance(x, y, None, order[:6])
            trainer._advance(x, y, None, order[6:])
        trainer.history.epochs.append(plain.history.epochs[before])
        trainer.fit(x, y, epochs=3 - before, batch_size=6, progress=False)
        equal(world, trainer, plain)
        left += 1
    assert left > (2 if when == "replayed" else 20)


# ---- which graphs there are -----------------------------------------------------------------------------------------


def test_every_shape_has_its_graph_and_few_are_kept(world: World) -> None:
    from bpnet.backends.cupy_graph import MOST_KINDS

    x, y = map(world.array, data(40))
    plain, captured = made(world, False), made(world, True)
    for count in [n for n in range(2, 14) for _ in range(2)] + [13, 2, 2, 2]:
        for trainer in (plain, captured):
            trainer.step(x[:count], y[:count])
    assert graphs(captured) == len(captured._step.kinds) == MOST_KINDS
    equal(world, captured, plain)
    used = world.used
    del trainer, captured
    assert world.used < used


@dataclass(frozen=True)
class Looks(bp.Layer):
    """Lets the host wait for the device, as no graph can."""

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        return x * min(1.0, 1.0 + float(run.xp.sum(x * x))), None

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


def halving(self: Any, backend: Any, layout: Any, theta: Any, grad: Any, state: Any, numbers: Any, *args: Any) -> Any:
    """Computes with the numbers, as it can only where they lie on the host."""
    return bp.ElementwiseOptimizer.update(self, backend, layout, theta, grad, state, (0.5 * numbers[0],), *args)


@pytest.mark.parametrize("batch_size", [20, 4])
@pytest.mark.parametrize("why", ["waits", "computes"])
def test_what_cannot_be_captured_runs_and_says_so_once(
    why: str, batch_size: int, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = bp.Sequential(bp.Dense(3), Looks()) if why == "waits" else NETS["dropout"]
    if why == "computes":
        monkeypatch.setattr(bp.SGD, "update", halving)
    x, y = map(world.array, data())
    plain, captured = made(world, False, net, bp.SGD(0.1)), made(world, True, net, bp.SGD(0.1))
    with caplog.at_level(logging.DEBUG, "bpnet"):
        for trainer in (plain, captured):
            trainer.fit(x, y, epochs=3, batch_size=batch_size, progress=False)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "without a CUDA graph" in caplog.text
    assert graphs(captured) == 0
    equal(world, captured, plain)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("optimizer", GO_ON, ids=lambda o: type(o).__name__)
def test_an_optimizer_may_go_on_with_what_it_has_updated(optimizer: Any, capture: bool, world: World) -> None:
    world.seam.techniques = TECHNIQUES if capture else TECHNIQUES - {"graph"}
    trainer = bp.Trainer(NETS["plain"], "cross_entropy", optimizer)
    check_goes_on(trainer, world.array, world.cupy.asnumpy, 5)
    assert not capture or graphs(trainer) == 1


@dataclass(frozen=True)
class Faulty(bp.Layer):
    """Raises `error`, whatever it is, where one is set; batches of 7 rows can't be captured."""

    error: ClassVar[Any] = None

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        if Faulty.error is not None:
            raise Faulty.error
        return x * (1.0 if x.shape[0] != 7 else min(1.0, 1.0 + float(run.xp.sum(x * x)))), None

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a layer's own"), MemoryError("full")])
@pytest.mark.parametrize(("rows", "when"), [(5, 0), (5, 1), (7, 3)])
def test_a_step_that_is_broken_off_leaves_no_graph(
    rows: int, when: int, error: BaseException, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another shape runs for the first time, or the second, or without a graph: memory may be gone with it."""
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
    for a, b in zip(state(world, trainer), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert graphs(trainer) == 0
    for _ in range(3):
        trainer.step(x, y)
    assert graphs(trainer) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("when", ["first", "captured", "replayed"])
def test_wherever_memory_runs_out_nothing_is_changed(
    when: str, precision: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first allocation of a step, or the second ...; then training goes on as if it had not."""
    monkeypatch.setattr("bpnet.backends.cupy_slots.PAGE", 2)  # or else a replayed step would need none
    x, y = map(world.array, data(6))
    net = bp.Sequential(bp.Dense(4, "relu"), bp.BatchNorm(), bp.Dense(4, "tanh"), bp.Dense(3))
    options = {"net": net, "optimizer": bp.AdamW(0.1), "clip_norm": 0.5, "precision": precision}
    plain = made(world, False, **options)
    expected = []
    for _ in range(5):
        plain.step(x, y)
        expected.append(state(world, plain))
    before = {"first": 0, "captured": 1, "replayed": 2}[when]
    failed, left = True, 0
    while failed:
        trainer = made(world, True, **options)
        for _ in range(before):
            trainer.step(x, y)
        kept, failed, free = state(world, trainer), False, iter(range(left))

        def few(size: int, free: Iterator[int] = free) -> Any:
            if next(free, None) is None:
                raise MemoryError
            return World.malloc(world, size)

        try:
            with world.using_allocator(few):
                trainer._advance(x, y, None, None)
        except bp.errors.OutOfMemoryError:
            failed = True
        reached = before if failed else before + 1
        for found, e in zip(state(world, trainer), kept if failed else expected[before], strict=True):
            np.testing.assert_array_equal(found, e)
        assert trainer.step_count == reached
        for number in range(reached, 5):
            trainer.step(x, y)
            for found, e in zip(state(world, trainer), expected[number], strict=True):
                np.testing.assert_array_equal(found, e)
        left += 1
    assert left > (1 if when == "replayed" else 20)


def test_only_steps_that_are_repeated_are_captured(world: World) -> None:
    x, y = map(world.array, data())
    trainer = made(world, True)
    for _ in range(3):
        trainer.evaluate(x, y)
        trainer.predict(x)
    assert world.counts["launch"] == 0


# ---- the kernels that read their numbers from device memory ---------------------------------------------------------


def mixed(b: Any, x: Any, rate: Any, other: Any) -> Any:
    return x * (rate / (1.0 - other)) + (other - 0.1) * rate


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("held", [(0,), (1,), (0, 1)])
def test_held_numbers_give_the_same_bits(held: tuple[int, ...], dtype: str, world: World) -> None:
    from bpnet.backends.cuda import Held

    x = world.array(np.linspace(-3, 3, 77).astype(dtype))
    scalars = [0.3, 0.7123456789]
    some = [Held(world.array(np.float64(s))) if i in held else s for i, s in enumerate(scalars)]
    (expected,), (found,) = (
        world.seam.map_vector(lambda *a: (mixed(*a),), 1, (x,), [(0, 77, tuple(numbers))], False)
        for numbers in (scalars, some)
    )
    np.testing.assert_array_equal(world.cupy.asnumpy(found), world.cupy.asnumpy(expected))


@pytest.mark.parametrize("number", [0, 7, 2**32 + 5])
@pytest.mark.parametrize("rest", [(), (0,), (1, 2**31 + 3, 12)])
def test_a_held_part_of_a_key_gives_the_same_mask(rest: tuple[int, ...], number: int, world: World) -> None:
    from bpnet.backends.cuda import Held

    place = Held(world.array(np.int64(number)))
    masks = [world.seam.keep_mask((5, n, *rest), (9, 7), 0.6, "float32", world.cuda.Device()) for n in (number, place)]
    np.testing.assert_array_equal(*map(world.cupy.asnumpy, masks))


@dataclass(frozen=True)
class Branch(bp.Layer):
    """Gives its dropout another key than it has itself, and backward knows nothing of that."""

    inner = bp.Dropout(0.4)
    stochastic = True

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        return self.inner.forward(run.at("elsewhere"), p, x)

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
        return self.inner.backward(run, p, cache, dy, need_dx)


def test_the_derivative_of_dropout_has_the_mask_of_its_value(world: World) -> None:
    x, y = data(40)
    net = bp.Sequential(bp.Dense(6, "tanh"), Branch(), bp.Dense(3))
    results = []
    for techniques in (frozenset(), TECHNIQUES):
        world.seam.techniques = techniques
        trainer = bp.Trainer(net, "cross_entropy", bp.SGD(0.5)).build(world.array(x))
        for _ in range(4):
            trainer.step(world.array(x), world.array(y))
        results.append(world.cupy.asnumpy(trainer.theta))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


# ---- the kernels ----------------------------------------------------------------------------------------------------

LAYERS = [
    *ACTIVATIONS,
    bp.Softmax(),
    bp.BatchNorm(),
    bp.Standardize(0.5, 2.0),
    bp.Standardize(0.5, 2.0, invert=True),
    bp.Dropout(0.2),
    *(bp.Dense(8, f, bias) for f in ACTIVATIONS for bias in (True, False)),
    bp.Dense(3),
]
DENSE = len(ACTIVATIONS) + 5
"""From where on the layers are dense."""
LOSSES = {
    "cross_entropy": lambda y: (y, np.eye(3)[y]),
    "mse": lambda y: (np.eye(3)[y],),
    "binary_cross_entropy": lambda y: (np.eye(3)[y],),
    "binary_cross_entropy_with_logits": lambda y: (np.eye(3)[y],),
}


@pytest.mark.parametrize(
    ("dtype", "precision", "first"),
    [("float32", "float32", 0), ("float64", "float32", 0), ("float32", "bfloat16", 0), ("float32", "bfloat16", DENSE)],
)
def test_nvidias_compiler_takes_every_kernel(
    dtype: str, precision: str, first: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that training launches, whatever the layers, the loss, the optimizer and the precision; dense layers alone
    store what is rounded."""
    world.host, net = lambda *_: None, bp.Sequential(*LAYERS[first:])
    x, y = data(dtype=dtype)
    for few in (2.0**30, 0.0):
        monkeypatch.setattr("bpnet.backends.cupy_kernels.FEW_OPERATIONS", few)
        for loss, targets in LOSSES.items():
            for optimizer in OPTIMIZERS if loss == "cross_entropy" else ["sgd"]:
                for target in targets(y):
                    target = target if target.ndim == 1 else target.astype(dtype)
                    trainer = bp.Trainer(net, loss, OPTIMIZERS[optimizer], precision=precision, clip_norm=1.0)
                    for weight in (None, world.array(np.ones(len(x), dtype))):
                        for _ in range(3):
                            trainer.step(world.array(x), world.array(target), weight, check=False)
                    trainer._forward(trainer._outputs, world.array(x))  # as predict, but nothing is computed here
    assert len(world.codes) > 20
    for code in world.codes:
        compiled(code)


def test_a_step_is_kernels_and_products(world: World) -> None:
    """No operation of CuPy's own is left but to take rows, to add a residual, and of vectors of batch normalization."""
    x, y = map(world.array, data(40))
    for net, optimizer, loss, own in (
        (NETS["plain"], "adam", "cross_entropy", 2),
        (NETS["dropout"], "adamw", "cross_entropy", 4),
        (NETS["norm"], "nesterov", "mse", 3),
    ):
        trainer = made(world, False, net, OPTIMIZERS.get(optimizer, optimizer), clip_norm=1.0)
        target = y
        if loss == "mse":
            trainer.loss = bp.MeanSquaredError()
            target = world.array(np.eye(3, dtype="float32")[np.zeros(40, int)])
        rows = world.array(np.arange(20))
        trainer._advance(x, target, None, rows)
        before = dict(world.counts)
        trainer._advance(x, target, None, rows)
        assert world.counts["operation"] - before["operation"] == own, (net, own)


# ---- on a device ----------------------------------------------------------------------------------------------------


@pytest.fixture
def device(library: Callable[[str], Any]) -> Any:
    """CuPy with a device, and what captured products need."""
    pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    return library("cupy")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_on_a_device_replaying_equals_launching(
    net: str, optimizer: str, dtype: str, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture refuses copies to the host and waiting, so a step that has a graph does neither."""
    x, y = data(1000, dtype)
    found = []
    for capture in (False, True):
        monkeypatch.setattr(device.seam, "techniques", TECHNIQUES if capture else TECHNIQUES - {"graph"})
        trainer = bp.Trainer(NETS[net], "cross_entropy", OPTIMIZERS[optimizer], clip_norm=0.5)
        trainer.fit(device.array(x), device.array(y), epochs=20, batch_size=96, progress=False)
        found.append([device.host(a) for a in (trainer.theta, trainer.buffers, *trainer.state)])
        found[-1].append(np.asarray(trainer.history["loss"]))
    assert graphs(trainer) == 3  # of eight steps, one, and the smaller last
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("micro_batch", [None, 40])
def test_on_a_device_products_of_every_precision_are_captured(
    micro_batch: int | None, precision: str, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision not in device.seam.precisions(None):
        pytest.skip(f"no {precision} products on this device")
    x, y = map(device.array, data(1000))
    found = []
    for capture in (False, True):
        monkeypatch.setattr(device.seam, "techniques", TECHNIQUES if capture else TECHNIQUES - {"graph"})
        options = {"precision": precision, "micro_batch": micro_batch}
        trainer = bp.Trainer(NETS["plain"], "cross_entropy", bp.AdamW(1e-2), **options)
        trainer.fit(x, y, epochs=5, batch_size=96, progress=False)
        found.append(device.host(trainer.theta))
    assert graphs(trainer) == 3  # of eight steps, one, and the smaller last
    np.testing.assert_array_equal(*found)


@pytest.mark.gpu
def test_on_a_device_the_host_may_run_ahead(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps far beyond the ring of numbers and the page of losses, with another learning rate each."""
    x, y = map(device.array, data(64))
    losses = []
    for capture in (False, True):
        monkeypatch.setattr(device.seam, "techniques", TECHNIQUES if capture else TECHNIQUES - {"graph"})
        trainer = bp.Trainer(NETS["dropout"], "cross_entropy", bp.Adam(bp.Cosine(1e-2, steps=6000)))
        losses.append(device.seam.fetch([trainer.step(x, y, check=False) for _ in range(6000)]))
    assert graphs(trainer) == 1
    assert losses[0] == losses[1]
