"""NumPy on several threads: the same bits for any number of them, BLAS left as it was found, no error lost."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import bpnet as bp
from bpnet.backends.blas import BLAS
from bpnet.backends.threads import available_threads, default_threads

NETWORKS = {
    "dense": bp.Sequential(bp.Dense(64, "relu"), bp.Dense(10)),
    "dropout": bp.Sequential(bp.Dropout(0.2), bp.Dense(64, "gelu"), bp.Dropout(0.5), bp.Dense(10)),
    "batchnorm": bp.Sequential(bp.Dense(64), bp.BatchNorm(), bp.Tanh(), bp.Dense(10)),
    "wide": bp.Sequential(bp.Dense(3000, "sigmoid"), bp.Dense(10)),
}
"""The batches of `data` are cut into blocks by all but the third, the parameters of the last into chunks."""


def data(rows: int = 9000, dtype: str = "float32") -> tuple[Any, Any]:
    x = np.random.default_rng(0).standard_normal((rows, 20)).astype(dtype)
    return x, np.argmax(x[:, :10], axis=1)


def blas_threads() -> list[int]:
    """Of NumPy's BLAS: other packages, loaded by other tests, bring more."""
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    mine = [library for library in found if "numpy" in library["filepath"]]
    return [library["num_threads"] for library in mine or found[:1]]


@pytest.fixture
def two_blas_threads() -> Any:
    with threadpool_limits(2, user_api="blas"):
        assert all(threads == 2 for threads in blas_threads())
        yield
        after = blas_threads()
    assert all(threads == 2 for threads in after), "the number of BLAS threads was not restored"


SEEN: list[tuple[int, int, str]] = []


@dataclass(frozen=True)
class Spy(bp.Layer):
    """Passes x on and notes how many rows came, with how many BLAS threads, in which thread."""

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        SEEN.append((x.shape[0], max(blas_threads(), default=1), threading.current_thread().name))
        return x, None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_threads_changes_no_bit(name: str, dtype: str) -> None:
    x, y = data(500 if name == "wide" else 9000, dtype)
    weight = np.linspace(0.5, 1.5, len(x), dtype=dtype)
    found: list[Any] = []
    for threads in (1, 2, 4, None):
        trainer = bp.Trainer(NETWORKS[name], "cross_entropy", bp.AdamW(0.01), clip_norm=1.0, threads=threads)
        trainer.fit(x, y, epochs=2, batch_size=len(x) - 50, sample_weight=weight, progress=False)
        arrays = [trainer.theta, trainer.buffers, *trainer.state, trainer.predict(x)]
        found.append((arrays, trainer.history["loss"], trainer.evaluate(x, y)))
    for arrays, losses, scores in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(arrays, found[0][0], strict=True))
        assert (losses, scores) == found[0][1:]


def test_large_batches_are_cut_and_their_blocks_add_up() -> None:
    x, y = data(9000, "float64")
    network = bp.Sequential(Spy(), NETWORKS["dense"])
    trainer = bp.Trainer(network, "cross_entropy").build(x)
    weight = np.random.default_rng(1).uniform(0, 2, 9000)
    SEEN.clear()
    value, grad = bp.value_and_grad(network, "cross_entropy", trainer.theta, x, y, sample_weight=weight)
    sizes = [rows for rows, _, _ in SEEN]
    assert len(sizes) > 1
    assert sum(sizes) == 9000
    parts = [
        (
            weight[s].sum(),
            *bp.value_and_grad(network, "cross_entropy", trainer.theta, x[s], y[s], sample_weight=weight[s]),
        )
        for s in (slice(start, start + 30) for start in range(0, 9000, 30))
    ]
    total = weight.sum()
    assert value == pytest.approx(sum(w * v for w, v, _ in parts) / total, rel=1e-12)
    np.testing.assert_allclose(grad, sum(w * g for w, _, g in parts) / total, rtol=1e-9, atol=1e-14)


def test_a_layer_that_couples_rows_sees_the_whole_batch() -> None:
    x, y = data()
    trainer = bp.Trainer(bp.Sequential(Spy(), NETWORKS["batchnorm"]), "cross_entropy", threads=4).build(x)
    SEEN.clear()
    trainer.fit(x, y, batch_size=len(x), progress=False)
    assert [rows for rows, _, _ in SEEN] == [len(x)]
    trainer.predict(x)
    assert len(SEEN) > 2, "prediction may be cut"


@pytest.mark.parametrize(
    ("told", "threads"),
    [("1", 1), ("1,4", 1), *((told, available_threads()) for told in ("9999", "", "0", "-1", "all"))],
)
def test_where_nobody_says_how_many_the_environment_may(told: str, threads: int, monkeypatch: Any) -> None:
    """So that the workers of joblib, Dask and Ray, who are told by it, don't fight for processors."""
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    default_threads.cache_clear()
    SEEN.clear()
    try:
        assert default_threads() == threads
        bp.Trainer(bp.Sequential(Spy(), bp.Dense(10)), "cross_entropy", compile=False).fit(*data(), progress=False)
    finally:
        default_threads.cache_clear()
    assert len({name for _, _, name in SEEN}) <= threads


# ---- BLAS -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CountsSessions(bp.Dense):
    """Notes how many sessions limit BLAS: products have all its threads where it is one."""

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        OPEN.append(len(BLAS.open))
        return super().forward(run, p, x)


OPEN: list[int] = []


@pytest.mark.parametrize("check", [True, False])
def test_a_step_is_one_session(check: bool) -> None:
    """On a batch like the last, and on others."""
    x, y = data(64)
    trainer = bp.Trainer(bp.Sequential(_CountsSessions(10)), "cross_entropy", compile=False)
    OPEN.clear()
    for rows in (64, 64, 64, 32, 32):
        trainer.step(x[:rows], y[:rows], check=check)
    assert set(OPEN) == {1}


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_threads_are_restored_after_every_call() -> None:
    x, y = data()
    trainer = bp.Trainer(bp.Sequential(Spy(), NETWORKS["dense"]), "cross_entropy", threads=2)
    SEEN.clear()
    calls = [
        lambda: trainer.fit(x, y, batch_size=4500, validation=(x, y), progress=False),
        lambda: trainer.step(x, y),
        lambda: trainer.evaluate(x, y),
        lambda: trainer.predict(x),
        lambda: bp.value_and_grad(trainer.network, "cross_entropy", trainer.theta, x, y),
        lambda: bp.check_gradients(NETWORKS["dense"], x[:3]),
    ]
    for call in calls:
        call()
        assert all(threads == 2 for threads in blas_threads())
    assert all(threads == 1 for _, threads, _ in SEEN), "BLAS was to be held to one thread"
    assert np.geterr() == np.seterr()


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, bp.errors.DivergedError])
def test_blas_threads_are_restored_after_an_error(kind: type[BaseException]) -> None:
    class Fail(bp.Callback):
        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            if kind is not bp.errors.DivergedError:
                raise kind

    x, y = data()
    before = np.geterr()
    trainer = bp.Trainer(NETWORKS["dense"], "cross_entropy", bp.SGD(1e38), threads=2)
    with pytest.raises(kind):
        trainer.fit(x, y, epochs=9, batch_size=4500, callbacks=[Fail()], progress=False)
    assert all(threads == 2 for threads in blas_threads())
    assert np.geterr() == before


@pytest.mark.usefixtures("two_blas_threads")
def test_a_callback_may_call_the_trainer() -> None:
    """A session within a session: what the inner one ends, the outer still has."""

    class Look(bp.Callback):
        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            trainer.evaluate(x, y)
            trainer.predict(x)
            assert all(threads == 1 for threads in blas_threads())

    x, y = data()
    quiet, looked = (bp.Trainer(NETWORKS["dropout"], "cross_entropy", threads=2) for _ in range(2))
    quiet.fit(x, y, batch_size=4500, progress=False)
    looked.fit(x, y, batch_size=4500, callbacks=[Look()], progress=False)
    assert np.array_equal(quiet.theta, looked.theta)


@pytest.mark.usefixtures("two_blas_threads")
def test_two_fits_in_two_threads_at_once() -> None:
    """They meet in the middle of their training, so that both sessions are open; BLAS is let go by the last."""
    x, y = data()
    meeting = threading.Barrier(2, timeout=60)

    class Meet(bp.Callback):
        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            meeting.wait()

    names = ("dense", "dropout")
    together = [bp.Trainer(NETWORKS[name], "cross_entropy", seed=i, threads=2) for i, name in enumerate(names)]
    errors: list[BaseException] = []

    def train(trainer: bp.Trainer) -> None:
        try:
            trainer.fit(x, y, epochs=2, batch_size=4500, callbacks=[Meet()], progress=False)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=train, args=(trainer,)) for trainer in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not errors
    assert all(n == 2 for n in blas_threads())
    for i, (name, trainer) in enumerate(zip(names, together, strict=True)):
        alone = bp.Trainer(NETWORKS[name], "cross_entropy", seed=i, threads=1)
        alone.fit(x, y, epochs=2, batch_size=4500, progress=False)
        assert np.array_equal(alone.theta, trainer.theta)


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_is_held_until_the_last_of_two_sessions_ends() -> None:
    x, y = data(6000)
    first_is_over = threading.Event()
    in_second: list[int] = []

    class Wait(bp.Callback):
        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            if step == 1:
                second_is_open.set()
                assert first_is_over.wait(60)
            in_second.extend(blas_threads())

    second_is_open = threading.Event()
    second = bp.Trainer(NETWORKS["dense"], "cross_entropy", threads=2)
    thread = threading.Thread(
        target=second.fit, args=(x, y), kwargs={"batch_size": 3000, "callbacks": [Wait()], "progress": False}
    )
    thread.start()
    assert second_is_open.wait(60)
    bp.Trainer(NETWORKS["dense"], "cross_entropy", threads=2).fit(x, y, progress=False)
    first_is_over.set()
    thread.join(60)
    assert not thread.is_alive()
    assert in_second
    assert all(n == 1 for n in in_second)
    assert all(n == 2 for n in blas_threads())


# ---- errors and processes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trap(bp.Layer):
    """Lets two blocks run at once, and then fails in the thread of the given kind."""

    helper: bool

    meeting = threading.Barrier(2, timeout=60)

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        if run.training and x.shape[0] > 2:  # two rows are those with which build tries a layer
            self.meeting.wait()
            if (threading.current_thread() is not threading.main_thread()) == self.helper:
                raise FloatingPointError(f"in {threading.current_thread().name}")
        return x, None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("helper", [True, False])
def test_an_error_in_a_block_reaches_the_caller_from_any_thread(helper: bool) -> None:
    x, y = data(8000)
    trainer = bp.Trainer(bp.Sequential(Trap(helper), NETWORKS["dense"]), "cross_entropy", threads=2)
    for _ in range(2):  # and the helpers live on
        with pytest.raises(FloatingPointError, match="in bpnet" if helper else "in MainThread"):
            trainer.step(x, y)
    assert trainer.step_count == 0
    other = bp.Trainer(NETWORKS["dense"], "cross_entropy", threads=2)
    other.fit(x, y, epochs=2, progress=False)
    assert other.evaluate(x, y)["accuracy"] > 0.2


FORK = """
import os, signal, sys
import numpy as np
import bpnet as bp

signal.alarm(60)
x = np.random.default_rng(0).standard_normal((8000, 20))
y = np.argmax(x[:, :10], axis=1)

def train():
    trainer = bp.Trainer(bp.Sequential(bp.Dense(64, "relu"), bp.Dense(10)), "cross_entropy", threads=2)
    trainer.fit(x, y, epochs=2, batch_size=4500, progress=False)
    return trainer.theta

before = train()  # starts helper threads, which a fork does not copy
child = os.fork()
same = np.array_equal(train(), before)
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
sys.exit(0 if same and os.waitstatus_to_exitcode(status) == 0 else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_trains_too_and_processes_end() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
