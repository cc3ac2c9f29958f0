"""Several ranks train as one process with the same batches: on every library, as threads that meet at a barrier."""

import copy
import os
import pickle
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ranks import ThreadCommunicator, ranks, threads
from test_optimizers import ELEMENTWISE, OTHERS

import bpnet as bp
from bpnet.distributed.base import agreed
from bpnet.errors import ArgumentError, BpnetWarning, DataError, DivergedError, OptionError, RankError

LINE = bp.Sequential(bp.Dense(8, "tanh"), bp.Dense(3))
DEEP = bp.Sequential(
    bp.Dense(8, "gelu"),
    bp.Residual(bp.Sequential(bp.Dropout(bp.WarmUp(0.3, 4)), bp.LayerNorm(), bp.Dense(8, "relu"))),
    bp.ActivityPenalty(l2=0.01),
    bp.Dense(3),
)


def data(rows: int = 90, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 5)), rng.integers(0, 3, rows), rng.uniform(0.5, 2.0, rows)


def fitted(ranks: Any, lib: Any, made: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
    """Parameters, buffers and the history of a training by these ranks; None: by one process."""
    x, y, weight = data()
    weighted = {"sample_weight": lib.array(weight)} if options.get("sample_weight") else {}
    held_out = lib.array(x[:41]), lib.array(y[:41])
    trainer = bp.Trainer(**made, distributed=ranks)
    options = {"epochs": 2, "batch_size": 20, "progress": False, "validation": held_out} | options | weighted
    trainer.fit(lib.array(x), lib.array(y), **options)
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in trainer.history]
    return lib.host(trainer.theta), lib.host(trainer.buffers), records


def equal(found: list[Any], expected: Any, tolerance: float = 1e-12) -> None:
    """All ranks have the same bits, and one process has them but for rounding."""
    for theta, buffers, records in found[1:]:
        assert np.array_equal(theta, found[0][0])
        assert np.array_equal(buffers, found[0][1])
        assert records == found[0][2]
    theta, buffers, records = found[0]
    np.testing.assert_allclose(theta, expected[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(buffers, expected[1], rtol=tolerance, atol=tolerance)
    for mine, its in zip(records, expected[2], strict=True):
        assert mine.keys() == its.keys()
        numbers = [name for name, value in its.items() if isinstance(value, float)]
        assert [mine[n] for n in numbers] == pytest.approx([its[n] for n in numbers], rel=tolerance, abs=tolerance)


CASES = {
    "all at once": (
        {
            "network": DEEP,
            "loss": "cross_entropy",
            "optimizer": bp.AdamW(bp.Cosine(0.02, 20), beta1=bp.WarmUp(0.9, 4), weight_decay=bp.WarmUp(0.3, 3)),
            "clip_norm": 0.3,
            "penalties": [bp.L2(0.1, per_row=True), bp.L1(bp.Exponential(0.01, 0.9), of="0.*")],
            "micro_batch": 4,
        },
        {"sample_weight": True, "metrics": ["accuracy", "log_loss"]},
    ),
    "asked again": ({"network": LINE, "loss": "cross_entropy", "optimizer": bp.SAM(bp.SGD(0.1))}, {"batch_size": 45}),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_process(backend: Any, case: str) -> None:
    """With masks, weights, schedules, penalties and clipping, and a last batch that no number of ranks divides."""
    made, options = CASES[case]
    count = 3
    if backend.name in ("jax-jit", "cupy"):  # which compile every step for every trainer, the longer the more is in it
        count, made = 2, {name: value for name, value in made.items() if name not in ("micro_batch", "penalties")}
        made["network"] = bp.Sequential(bp.Dense(4, "tanh"), bp.Dropout(0.3), bp.Dense(3))
        options = {"batch_size": 45, "epochs": 1, "validation": None}
    equal(threads(count, fitted, backend, made, options), fitted(None, backend, made, options))


@pytest.mark.parametrize("optimizer", [*ELEMENTWISE, *OTHERS, bp.LBFGS(history=3)], ids=repr)
def test_with_every_optimizer(library: Callable[[str], Any], optimizer: bp.Optimizer) -> None:
    network = bp.Sequential(bp.Dense(6, "tanh"), bp.Dense(5, "tanh"), bp.Dense(3))
    made = {"network": network, "loss": "cross_entropy", "optimizer": optimizer, "clip_norm": 1.0}
    lib = library("numpy")
    equal(threads(2, fitted, lib, made, {}), fitted(None, lib, made, {}), 1e-12)


ORDERED = {"network": DEEP, "loss": "cross_entropy", "optimizer": "adam", "clip_norm": 0.3, "micro_batch": 5}


@pytest.mark.parametrize("kind", ["numpy", "numpy-jit"])
def test_sums_in_the_order_of_blocks_are_the_same_for_any_number(
    library: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """To the bit; and without the compiler, which adds up within its products, as those of one process."""
    lib, options = library(kind), {"sample_weight": True, "drop_last": True}
    if kind == "numpy-jit":
        monkeypatch.setattr("bpnet.backends.numpy.WORTH_IT", 0.0)
    one, *others = (threads(n, fitted, lib, ORDERED, options, reduction="ordered") for n in (1, 2, 3, 4))
    for other in others:
        equal(other, one[0], 0.0)
    equal(one, fitted(None, lib, ORDERED, options), 0.0 if kind == "numpy" else 1e-12)


def test_the_same_ranks_give_the_same_bits_again(library: Callable[[str], Any]) -> None:
    lib, case = library("numpy"), CASES["all at once"]
    equal(threads(3, fitted, lib, *case), threads(3, fitted, lib, *case)[0], 0.0)


def test_a_batch_may_have_fewer_rows_than_there_are_ranks(library: Callable[[str], Any]) -> None:
    lib, made = library("numpy"), {"network": LINE, "loss": "cross_entropy"}
    options = {"batch_size": 4, "sample_weight": True, "epochs": 1}
    equal(threads(7, fitted, lib, made, options), fitted(None, lib, made, options))


NAMED = bp.Sequential(
    bp.Inputs(codes=bp.Sequential(bp.Embedding(20, 3), bp.Flatten()), numbers=bp.Standardize(0.5, 2.0)),
    bp.Dense(2),
)


def of_several(ranks: Any, lib: Any, network: bp.Layer) -> tuple[Any, Any, list[Any]]:
    rng = np.random.default_rng(1)
    x = {"codes": lib.array(rng.integers(0, 20, (50, 2))), "numbers": lib.array(rng.standard_normal((50, 3)))}
    trainer = bp.Trainer(network, "mse", "adam", distributed=ranks)
    trainer.fit(x, lib.array(rng.standard_normal((50, 2))), epochs=2, batch_size=16, progress=False)
    trainer.step({name: a[:16, ...] for name, a in x.items()}, lib.array(np.ones((16, 2))))
    trainer.step({name: a[:2, ...] for name, a in x.items()}, lib.array(np.ones((2, 2))))
    return lib.host(trainer.theta), lib.host(trainer.buffers), []


SPARSE = eval(repr(NAMED).replace("sparse=False", "sparse=True"), vars(bp))


@pytest.mark.parametrize("network", [NAMED, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", ["numpy", "numpy-jit", "torch"])
def test_several_inputs_and_tables(
    library: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, network: bp.Layer, kind: str
) -> None:
    assert ("sparse=True" in repr(network)) is (network is SPARSE)
    if kind == "numpy-jit":
        monkeypatch.setattr("bpnet.backends.numpy.WORTH_IT", 0.0)
    lib = library(kind)
    equal(threads(3, of_several, lib, network), of_several(None, lib, network))


# ---- steps of one's own loop ----------------------------------------------------------------------------------------


def stepped(ranks: Any, lib: Any, own: bool) -> tuple[Any, Any, list[Any]]:
    """Steps on batches that all are given; or on the parts that ranks of such numbers of rows have of them."""
    x, y, weight = data(40)
    trainer = bp.Trainer(LINE, "cross_entropy", "adam", clip_norm=0.3, distributed=ranks)
    losses = []
    for start in (0, 20):
        cut = slice(start, start + 20)
        if own:
            cut = slice(start, start + 3) if ranks.rank == 0 else slice(start + 3, start + 20)
        batch = lib.array(x[cut]), lib.array(y[cut])
        losses.append(float(trainer.step(*batch)))
        losses.append(float(trainer.step(*batch, lib.array(weight[cut]), check=False)))
    return lib.host(trainer.theta), lib.host(trainer.buffers), [{"loss": loss} for loss in losses]


def test_a_step_is_of_all_ranks(backend: Any) -> None:
    if backend.name == "jax-jit":
        pytest.skip("JAX compiles every step for every trainer: fit alone")
    expected = stepped(None, backend, False)
    equal(threads(2, stepped, backend, False), expected)
    equal(threads(2, stepped, backend, True, rows="own"), expected)


# ---- rows of their own ----------------------------------------------------------------------------------------------


def own_rows(ranks: Any, counts: list[int], size: int) -> tuple[Any, Any, list[Any]]:
    """Each rank has so many of the rows, in their order; one process all, each batch in the order of the ranks."""
    total, starts = sum(counts), np.cumsum([0, *counts])
    x, y, weight = data(total)
    if ranks is None:
        order = np.concatenate([
            np.arange(a + n * start // total, a + n * min(start + size, total) // total)
            for start in range(0, total, size) for n, a in zip(counts, starts, strict=False)
        ])  # fmt: skip
        mine, shuffle = slice(None), lambda _: order
    else:
        mine, shuffle = slice(starts[ranks.rank], starts[ranks.rank + 1]), False
    trainer = bp.Trainer(LINE, "cross_entropy", "adam", distributed=ranks)
    held_out = (x[mine], y[mine], weight[mine])
    options = {"epochs": 2, "batch_size": size, "shuffle": shuffle, "progress": False, "validation": held_out}
    trainer.fit(x[mine], y[mine], sample_weight=weight[mine], metrics=["accuracy"], **options)
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in trainer.history]
    return trainer.theta, trainer.buffers, records


def test_ranks_may_have_rows_of_their_own() -> None:
    """Of any numbers: a batch has its part of each, all are used once, and all are evaluated."""
    for counts, size in (([32, 32], 12), ([16, 48, 32], 18)):
        equal(threads(len(counts), own_rows, counts, size, rows="own"), own_rows(None, counts, size))
    uneven = threads(3, own_rows, [7, 41, 25], 16, rows="own")
    equal(uneven, uneven[0])
    assert uneven[0][2][-1]["step"] == 2 * 5


# ---- one program ----------------------------------------------------------------------------------------------------


class Told(bp.Callback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        self.records.append(dict(record))


class ToldFirst(Told):
    only_first = True


class Act(bp.Callback):
    """Does something on one rank, after an epoch or a step."""

    def __init__(self, rank: int, act: Callable[[bp.Trainer], None], step: int | None = None) -> None:
        self.rank, self.act, self.step = rank, act, step

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        if self.step is None and trainer.rank == self.rank:
            self.act(trainer)

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if trainer.step_count == self.step and trainer.rank == self.rank:
            self.act(trainer)


def simple(ranks: Any, callbacks: Any = (), **options: Any) -> bp.Trainer:
    x, y, _ = data()
    trainer = bp.Trainer(LINE, "cross_entropy", bp.SGD(0.1), distributed=ranks)
    trainer.fit(x, y, **{"epochs": 3, "batch_size": 20, "progress": False, "callbacks": callbacks} | options)
    return trainer


def test_callbacks_hear_the_same_and_those_that_write_are_the_first_ranks() -> None:
    def work(ranks: Any) -> Any:
        told, first = Told(), ToldFirst()
        trainer = simple(ranks, [told, first])
        assert (trainer.rank, trainer.ranks, trainer.communicator) == (ranks.rank, 3, ranks)
        return told.records, first.records, list(trainer.history)

    (every, first, history), *others = threads(3, work)
    assert len(every) == 3
    assert every == first == history
    assert all(other == (every, [], history) for other in others)  # `seconds` too


def test_any_rank_may_stop_all_of_them() -> None:
    def stop(trainer: bp.Trainer) -> None:
        trainer.stop = True

    assert [len(t.history) for t in threads(2, lambda ranks: simple(ranks, [Act(1, stop)]))] == [1, 1]
    early = bp.EarlyStopping("loss", patience=1, min_delta=10.0)
    assert [len(t.history) for t in threads(2, lambda ranks: simple(ranks, [copy.copy(early)]))] == [2, 2]


def test_what_differs_is_the_first_ranks_with_one_warning() -> None:
    """As where other processors compute other parameters, or a callback sets them on one rank alone."""

    def nudge(trainer: bp.Trainer) -> None:
        trainer.parameters = {k: {n: a * 1.5 for n, a in p.items()} for k, p in trainer.parameters.items()}
        trainer.lr_scale *= 0.5

    with pytest.warns(bp.errors.BpnetWarning, match="ranks computed other parameters") as caught:
        one, two = threads(2, lambda ranks: simple(ranks, [Act(1, nudge)]))
    assert len(caught) == 1
    assert np.array_equal(one.theta, two.theta)
    np.testing.assert_allclose(one.theta, simple(None).theta, rtol=1e-12)
    assert one.lr_scale == two.lr_scale == 1.0


def test_all_begin_with_the_first_ranks_parameters() -> None:
    def work(ranks: Any) -> bp.Trainer:
        x, y, _ = data()
        trainer = bp.Trainer(LINE, "cross_entropy", distributed=ranks).build(x)
        if trainer.rank:
            trainer.restore(((trainer.theta + 1.0, *trainer.snapshot()[0][1:]), 0))
        trainer.fit(x, y, progress=False)
        return trainer

    one, two = threads(2, work)
    assert np.array_equal(one.theta, two.theta)
    np.testing.assert_allclose(one.theta, work(None).theta, rtol=1e-12)


def test_copies_train_alone_and_a_loaded_trainer_may_have_ranks(tmp_path: Path) -> None:
    def work(ranks: Any) -> Any:
        trainer = simple(ranks)
        copied = pickle.loads(pickle.dumps(trainer))
        assert (copied.distributed, copied.ranks) == (None, 1)
        x, y, _ = data()
        copied.fit(x, y, progress=False)
        if ranks.rank == 0:
            trainer.save(tmp_path / "model.safetensors")
        ranks.all_gather(None)
        loaded = bp.load(tmp_path / "model.safetensors")
        loaded.distributed = ranks
        loaded.fit(x, y, progress=False)
        assert loaded.ranks == 2
        np.testing.assert_allclose(loaded.theta, copied.theta, rtol=1e-12)
        return loaded.theta

    one, two = threads(2, work)
    assert np.array_equal(one, two)


def test_ranks_of_one_host_share_its_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody says how many threads there are to be; with a trainer from a file, too."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.setattr(ThreadCommunicator, "local_size", 3)
    simple(None, epochs=1).save(tmp_path / "model.safetensors")

    def work(ranks: Any) -> list[Any]:
        loaded, later = bp.load(tmp_path / "model.safetensors"), bp.Trainer(LINE, "mse")
        loaded.distributed = later.distributed = ranks
        return [t.threads for t in (bp.Trainer(LINE, "mse", distributed=ranks), loaded, later)] + [
            bp.Trainer(LINE, "mse", threads=5, distributed=ranks).threads
        ]

    assert threads(3, work) == [[2, 2, 2, 5]] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads(3, work) == [[None, None, None, 5]] * 3


def test_what_may_take_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that others wait for it: a step of another size, which may be compiled, and what a callback has done."""
    said: list[str] = []
    x, y, _ = data()

    def save(trainer: bp.Trainer) -> None:
        trainer.save(tmp_path / "model.safetensors")
        trainer.evaluate(x, y)
        trainer.predict(x)
        trainer.predict(x)

    def phase(self: Any, what: str, limit: float | None = None) -> Any:
        said.extend([what] if self.rank == 1 and limit else [])
        return nullcontext()

    monkeypatch.setattr(ThreadCommunicator, "phase", phase)
    threads(2, lambda ranks: simple(ranks, [Act(1, save), bp.EarlyStopping("loss")], batch_size=40))
    first, evaluation, own = "its first step of so many rows", "an evaluation", "a prediction"
    each = [evaluation, "writing a file", evaluation, own, own]
    assert [what for what in said if what != "callbacks"] == [first, first, *each, *each, *each]
    assert said.count("callbacks") == 2 + 3, "bpnet's own, and of all the begin and the end"


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def resumable(ranks: Any, folder: Path, act: Any = None, resume: bool = False, **options: Any) -> bp.Trainer:
    callbacks = [bp.EarlyStopping("loss", patience=9), *([] if act is None else [act])]
    return simple(ranks, callbacks, checkpoint=folder, every=2, resume=resume, **options)


def test_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    """From the midst of an epoch, in which a rank failed, to the end that one process has."""
    whole = simple(None, [bp.EarlyStopping("loss", patience=9)])

    class Ended(Exception):
        pass

    def work(ranks: Any) -> None:
        def end(trainer: bp.Trainer) -> None:
            raise Ended

        with pytest.raises((Ended, RankError)):
            resumable(ranks, tmp_path, Act(1, end, step=7))

    threads(2, work)
    found = threads(3, lambda ranks: resumable(ranks, tmp_path, resume=True))
    for trainer in found:
        assert np.array_equal(trainer.theta, found[0].theta)
        np.testing.assert_allclose(trainer.theta, whole.theta, rtol=1e-12)
        assert [r["loss"] for r in trainer.history] == pytest.approx([r["loss"] for r in whole.history], rel=1e-12)
    alone = resumable(None, tmp_path, resume=True)
    assert np.array_equal(alone.theta, found[0].theta)
    with pytest.raises(OptionError, match="holds a training already"):
        threads(2, lambda ranks: resumable(ranks, tmp_path))
    with pytest.raises(OptionError, match="batch_size is 30"):
        threads(2, lambda ranks: resumable(ranks, tmp_path, resume=True, batch_size=30))


def test_one_process_goes_on_in_an_order_of_the_users(tmp_path: Path) -> None:
    """Which a checkpoint keeps, of an epoch that leaves some rows out."""
    options = {"drop_last": True, "shuffle": lambda epoch: np.random.default_rng(epoch).integers(0, 90, 90)}

    def end(trainer: bp.Trainer) -> None:
        raise ArithmeticError

    def work(ranks: Any) -> None:
        with pytest.raises((ArithmeticError, RankError)):
            resumable(ranks, tmp_path, Act(1, end, step=7), **options)

    threads(2, work)
    found, whole = resumable(None, tmp_path, resume=True, **options), simple(None, **options)
    assert found.step_count == whole.step_count == 3 * 4
    np.testing.assert_allclose(found.theta, whole.theta, rtol=1e-12)


@pytest.mark.filterwarnings("error::bpnet.errors.BpnetWarning")
def test_who_goes_on_with_other_batches_is_warned(tmp_path: Path) -> None:
    """Within an epoch, where their rows depend on how many ranks there are, as those of a stream do without `lanes`."""
    x, y, _ = data()

    def end(trainer: bp.Trainer) -> None:
        raise ArithmeticError

    def fit(ranks: Any, folder: Path, options: dict[str, Any], **more: Any) -> None:
        stream = bp.data.stream(x, y, buffer=2000, block=5, **options)
        trainer = bp.Trainer(LINE, "cross_entropy", distributed=ranks)
        trainer.fit(stream, batch_size=20, epochs=2, progress=False, checkpoint=folder, every=2, **more)

    def begin(ranks: Any, folder: Path, options: dict[str, Any]) -> None:
        with pytest.raises((ArithmeticError, RankError)):
            fit(ranks, folder, options, callbacks=[Act(1, end, step=3)])

    for i, options in enumerate(({}, {"lanes": 2}, {"shuffle": "exact"})):
        threads(2, begin, tmp_path / str(i), options)
        expected = pytest.raises(BpnetWarning, match=r"2 ranks had begun.*than those of 1 rank:")
        with nullcontext() if options else expected:
            fit(None, tmp_path / str(i), options, resume=True)


# ---- errors ---------------------------------------------------------------------------------------------------------


def raised(work: Callable[[Any], Any]) -> Callable[[Any], tuple[type, str, bool]]:
    """What it raises on a rank, and whether on all of them."""

    def catch(ranks: Any) -> tuple[type, str, bool]:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            work(ranks)
        return type(caught.value), str(caught.value), getattr(caught.value, "on_all_ranks", False)

    return catch


def test_all_ranks_diverge_as_one_process_and_can_go_on() -> None:
    x = data()[0]
    x[57] = 1e200

    def work(ranks: Any) -> Any:
        trainer = bp.Trainer(LINE, "mse", bp.SGD(0.1), distributed=ranks)
        with pytest.raises(DivergedError) as caught:
            trainer.fit(x, 1e200 * np.ones((90, 3)), batch_size=20, progress=False)
        theta = trainer.theta.copy()
        trainer.fit(x[:50], np.ones((50, 3)), batch_size=20, progress=False)
        return str(caught.value), theta, trainer.theta

    expected = work(None)
    for text, before, after in threads(3, work):
        assert text == expected[0]
        assert np.array_equal(before, expected[1])
        np.testing.assert_allclose(after, expected[2], rtol=1e-12)


def test_other_arguments_than_those_of_the_first_rank_are_an_error() -> None:
    x, y, _ = data()

    def other(ranks: Any) -> None:
        simple(ranks, batch_size=20 + ranks.rank)

    def fewer(ranks: Any) -> None:
        rows = 90 - ranks.rank
        bp.Trainer(LINE, "cross_entropy", distributed=ranks).fit(x[:rows], y[:rows], progress=False)

    def values(ranks: Any) -> None:
        bp.Trainer(LINE, "cross_entropy", distributed=ranks).fit(x + ranks.rank, y, progress=False)

    def rate(ranks: Any) -> None:
        bp.Trainer(LINE, "cross_entropy", bp.Adam(0.1 + ranks.rank), distributed=ranks).fit(x, y, progress=False)

    def order(ranks: Any) -> None:
        simple(ranks, shuffle=ranks.rank == 0)

    own = "the same; for rows of its own see rows='own' of the options)"
    for work, text in (
        (other, "batch_size differs between rank 0 and rank 1: 20 on rank 0, but 21 on rank 1 (every rank is"),
        (
            fewer,
            f"rows differs between rank 0 and rank 1: 90 on rank 0, but 89 on rank 1 (every rank is to be given {own}",
        ),
        (values, f"the data differs between rank 0 and rank 1 (every rank is to be given {own}"),
        (rate, "optimizer"),
        (order, "shuffle differs between rank 0 and rank 1: True on rank 0, but False on rank 1"),
    ):
        found = threads(2, raised(work))
        assert found[0] == found[1]
        assert found[0][0] is OptionError
        assert text in found[0][1]
        assert found[0][2]


def test_after_a_wrong_argument_they_can_go_on() -> None:
    """Which all have passed, so that nobody has failed alone."""

    def work(ranks: Any) -> int:
        trainer = simple(ranks)
        for name, value in {"epochs": 0, "metrics": ["nonsense"], "callbacks": [3], "checkpoint": 3}.items():
            error, _, on_all_ranks = raised(lambda ranks, wrong={name: value}: simple(ranks, **wrong))(ranks)
            assert issubclass(error, bp.errors.BpnetError)
            assert on_all_ranks
        assert raised(lambda ranks: simple(ranks, batch_size=1))(ranks)[0] is OptionError
        trainer.fit(*data()[:2], progress=False)
        return trainer.step_count

    assert threads(2, work, rows="own") == [3 * 9 + 1] * 2


def test_what_one_rank_trains_beside_it_fails_alone() -> None:
    """So its error is not taken for that of all, which one of the others would show."""

    def beside(trainer: bp.Trainer) -> None:
        x = data()[0]
        bp.Trainer(bp.Dense(3), "mse", bp.SGD(1e300)).fit(x, x[:, :3], epochs=3, progress=False)

    found = threads(2, raised(lambda ranks: simple(ranks, [Act(1, beside)])))
    assert [error for error, *_ in found] == [RankError, DivergedError]
    assert not found[1][2]


def test_an_error_in_one_ranks_rows_is_that_of_all() -> None:
    def work(ranks: Any) -> None:
        x, y, _ = data()
        x[5] = np.nan if ranks.rank == 1 else 1.0
        bp.Trainer(LINE, "cross_entropy", distributed=ranks).fit(x, y, progress=False)

    found = threads(2, raised(work), rows="own")
    assert found == [(DataError, "x has NaN or infinity, first in row 5 (on rank 1)", True)] * 2


def test_an_error_that_nobody_expects_says_where_it_arose() -> None:
    """All raise their own; where one does, the others have its traceback."""
    assert {error for error, *_ in threads(2, raised(lambda ranks: agreed(ranks, int, "x")))} == {ValueError}

    def one(ranks: Any) -> list[str]:
        with pytest.raises(RuntimeError, match=r"ValueError: .*'x' \(on rank 1\)") as caught:
            agreed(ranks, int, "x" if ranks.rank else "1")
        return caught.value.__notes__

    assert all("Traceback" in notes[0] for notes in threads(2, one))


def test_a_rank_that_fails_alone_ends_the_others() -> None:
    def end(trainer: bp.Trainer) -> None:
        raise ArgumentError("as a callback may")

    class Told(bp.Callback):
        def on_exception(self, trainer: bp.Trainer, error: BaseException) -> None:
            assert isinstance(trainer.communicator, ThreadCommunicator)
            assert trainer.communicator.meeting.failure is not None, "the others wait for what callbacks do now"

    found = threads(3, raised(lambda ranks: simple(ranks, [Act(1, end), Told()])))
    assert found[1] == (ArgumentError, "as a callback may", False)
    assert [found[i][0] for i in (0, 2)] == [RankError] * 2


def test_what_ranks_can_not_do_is_an_error() -> None:
    sparse = bp.Sequential(bp.Embedding(20, 3, sparse=True), bp.Flatten(), bp.Dense(3))
    mixing = bp.Sequential(bp.BatchNorm(), bp.Dense(3))
    x, y, _ = data()
    for network, options, text in (
        (sparse, {"reduction": "ordered"}, "sparse"),
        (mixing, {"reduction": "ordered"}, "all rows of a batch"),
        (LINE, {"reduction": "ordered"}, "fewer blocks"),
        (LINE, {"reduction": "ordered", "rows": "own"}, "rows of their own"),
        (LINE, {"rows": "own"}, "batch_size is 1"),
    ):
        rows = np.abs(x).astype("int32") if network is sparse else x

        def work(ranks: Any, network: Any = network, rows: Any = rows) -> None:
            bp.Trainer(network, "cross_entropy", distributed=ranks).fit(rows, y, batch_size=1, progress=False)

        with pytest.raises(OptionError, match=text):
            threads(2, work, **options)
    for wrong in ("gloo", 3, bp.distributed.MPI):
        with pytest.raises(OptionError, match=r"distributed is .*; expected None, 'mpi', 'nccl'"):
            bp.Trainer(LINE, "mse", distributed=wrong)


def test_running_statistics_are_the_mean_of_those_of_all_ranks() -> None:
    """Of a BatchNorm that is not synchronised, by the rows that each has."""
    x, y, _ = data(30)

    def work(ranks: Any) -> Any:
        trainer = bp.Trainer(bp.Sequential(bp.BatchNorm(0.0), bp.Dense(3)), "cross_entropy", distributed=ranks)
        trainer.fit(x, y, batch_size=30, shuffle=False, progress=False)
        return trainer.buffers

    parts = [x[:7], x[7:15], x[15:22], x[22:]]
    mean = sum(len(p) * np.concatenate([p.mean(0), p.var(0, ddof=1)]) for p in parts) / 30
    for buffers in threads(4, work):
        np.testing.assert_allclose(buffers, mean, rtol=1e-12)


def test_what_a_step_does_is_said() -> None:
    x, y, _ = data()

    def work(ranks: Any) -> str:
        return bp.Trainer(LINE, "cross_entropy", compile=True, distributed=ranks).explain(x, y)

    for text in threads(2, work):
        assert "this rank has 45 rows of 90" in text
        assert "the sum over 2 ranks of 77 numbers" in text

    def alone(ranks: Any) -> str:
        return work(ranks) if ranks.rank else ""

    assert "this rank has 90 rows" in threads(2, alone, rows="own")[1]  # which needs nobody else


# ---- real processes -------------------------------------------------------------------------------------------------


def signalled(communicator: Any, folder: Path) -> tuple[Any, ...]:
    """One rank is told to end: all do after the same step, when it was saved; and go on from there."""

    def end(trainer: bp.Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        resumable(communicator, folder, Act(1, end, step=7))
    files = sorted(path.name for path in folder.iterdir())
    trainer = resumable(communicator, folder, resume=True)
    return ended.value.code, getattr(ended.value, "on_all_ranks", False), files, trainer.theta


def in_processes(communicator: Any, folder: Path) -> Any:
    """In each rank of MPI: the same as above, for a few of them."""
    lib = __import__("conftest").Library("numpy")
    found = [fitted(communicator, lib, *CASES[case]) for case in CASES]
    return [*found, stepped(communicator, lib, False)], signalled(communicator, folder)


def test_processes_of_mpi(library: Callable[[str], Any], tmp_path: Path) -> None:
    lib = library("numpy")
    every, ended = zip(*ranks(2, in_processes, tmp_path / "checkpoints"), strict=True)
    expected = [*(fitted(None, lib, *CASES[case]) for case in CASES), stepped(None, lib, False)]
    for some, one in zip(zip(*every, strict=True), expected, strict=True):
        equal(list(some), one)
    whole = simple(None, [bp.EarlyStopping("loss", patience=9)])
    for code, on_all_ranks, files, theta in ended:
        assert (code, on_all_ranks) == (128 + signal.SIGTERM, True)
        assert "step-0000000008.safetensors" in files  # which had begun when the signal came
        np.testing.assert_allclose(theta, whole.theta, rtol=1e-12)
