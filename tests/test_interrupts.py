"""An interrupt at any moment ends the call, leaves the trainer at one definite step, and nothing else behind.

Python looks for signals at the start of a function, where a loop jumps back, and after a call; so a tracer that raises
KeyboardInterrupt at the n-th of these places, for every n in turn, meets all moments at which Ctrl-C can come.
"""

import copy
import dis
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import compiles
from threadpoolctl import ThreadpoolController, threadpool_limits

import bpnet as bp
from bpnet.errors import BusyError

# Python drops an interrupt that comes while it closes a generator that nobody refers to any more, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TRACED = ("/bpnet/", "/threading.py", "/contextlib.py", "/_ufunc_config.py")
"""Where interrupts are raised, beside code that bpnet has written; what else is called is the libraries' own."""


def traced(frame: Any) -> bool:
    name = frame.f_code.co_filename.replace("\\", "/")
    return any(part in name for part in TRACED) or "__name__" not in frame.f_globals


EVERY = 89
"""The step from one moment to the next that is tried; 1 takes minutes."""


class Interrupt:
    """Raises KeyboardInterrupt in this thread at the n-th place where Python would look for signals."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.codes: dict[Any, bytes] = {}

    def __enter__(self) -> "Interrupt":
        sys.settrace(self.trace)
        sys.setprofile(self.profile)
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()

    def end(self) -> None:
        sys.setprofile(None)
        sys.settrace(None)

    @property
    def came(self) -> bool:
        return self.left < 0

    def profile(self, frame: Any, event: str, _: Any) -> None:
        """Functions begin and end, those written in C too."""
        caller = frame.f_back if event == "return" else frame
        if event in ("call", "return", "c_return") and caller is not None and traced(caller):
            self.look()

    def trace(self, frame: Any, event: str, _: Any) -> Any:
        """Loops jump back."""
        if not traced(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            code = self.codes.get(frame.f_code) or self.codes.setdefault(frame.f_code, frame.f_code.co_code)
            if dis.opname[code[frame.f_lasti]] == "JUMP_BACKWARD":
                self.look()
        return self.trace

    def look(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.end()
            raise KeyboardInterrupt


@pytest.fixture
def surroundings() -> Iterator[Callable[[], Any]]:
    """What must be after a call as it was before."""
    torch = sys.modules.get("torch")
    controller = ThreadpoolController().select(user_api="blas")

    def look() -> Any:
        grad = torch is None or torch.is_grad_enabled()
        return np.geterr(), [library["num_threads"] for library in controller.info()], grad

    with threadpool_limits(2, user_api="blas"):
        yield look


def elsewhere(function: Callable[[], Any]) -> Any:
    """What the function gives in another thread; its error is raised here."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append((function(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "a call in another thread does not come to its end"
    result, error = found[0]
    if error is not None:
        raise error
    return result


def bits(lib: Any, trainer: bp.Trainer) -> list[bytes]:
    return [lib.host(a).tobytes() for a in (trainer.theta, trainer.buffers, *trainer.state)]


NETWORK = bp.Sequential(bp.Dense(5, "relu"), bp.BatchNorm(), bp.Dropout(0.5), bp.Dense(3))


class Keep(bp.Callback):
    """Keeps the bits after every step."""

    def __init__(self, lib: Any) -> None:
        self.lib, self.steps = lib, {}

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        self.steps[trainer.step_count] = bits(self.lib, trainer)


@dataclass
class Case:
    """A trainer that has been trained a little, and a batch."""

    lib: Any
    trainer: bp.Trainer
    x: Any
    y: Any

    def step(self) -> Any:
        return [self.trainer.step(self.x, self.y, check=False) for _ in range(2)]

    def fit(self, *callbacks: bp.Callback) -> Any:
        return self.trainer.fit(self.x, self.y, batch_size=self.x.shape[0] // 2, callbacks=callbacks, progress=False)

    def right(self, name: str, first: Any) -> dict[int, list[bytes]]:
        """The bits after each step that an interrupt may leave."""
        keep = Keep(self.lib)
        self.trainer.restore(first)
        keep.on_step_end(self.trainer, 0)
        if name == "fit":
            self.fit(keep)
            self.trainer.history.epochs.pop()
        else:
            for _ in range(4):
                self.trainer.step(self.x, self.y)
                keep.on_step_end(self.trainer, 0)
        return keep.steps

    def interrupted(self, name: str, call: Callable[[], Any], look: Callable[[], Any]) -> None:
        """Interrupt the call at one moment after the other."""
        trainer, first = self.trainer, self.trainer.snapshot()
        history = list(trainer.history)
        right = self.right(name, first)
        for _ in range(3):  # until all is compiled and kept
            trainer.restore(first)
            call()
        before, moment = look(), 0
        while True:
            trainer.restore(first)
            trainer.history = bp.History(list(history))
            try:
                with Interrupt(moment) as interrupt:
                    call()
            except KeyboardInterrupt:
                pass
            assert look() == before, f"at moment {moment}"
            assert bits(self.lib, trainer) == right[trainer.step_count], f"at moment {moment}"
            if name == "step":
                trainer.step(self.x, self.y)
                assert bits(self.lib, trainer) == right[trainer.step_count], f"after moment {moment}"
            elsewhere(self.step)
            if not interrupt.came:
                assert moment > 10
                return
            moment += EVERY if "numpy" in self.trainer.backend.name else 5 * EVERY


CALLS = [  # tests/soak/test_interrupts.py interrupts calls with NumPy ten thousand times
    *(("numpy", name) for name in ("step", "evaluate")),
    *(("numpy-jit", name) for name in ("step", "fit", "predict", "save")),
    *(("torch", name) for name in ("step", "fit", "evaluate", "build")),
    *(pytest.param("cupy", name, marks=pytest.mark.gpu) for name in ("step", "fit", "predict", "save")),
]


@pytest.mark.parametrize(("backend", "name"), CALLS, indirect=["backend"])
def test_an_interrupt_leaves_one_definite_step(backend: Any, name: str, surroundings: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = backend.array(rng.standard_normal((12, 4)), "float32"), backend.array(rng.integers(0, 3, 12))
    trainer = bp.Trainer(NETWORK, "cross_entropy", bp.AdamW(0.01), clip_norm=1.0)
    trainer.fit(x, y, batch_size=6, progress=False)
    case = Case(backend, trainer, x, y)
    call = {
        "step": case.step,
        "fit": case.fit,
        "predict": lambda: trainer.predict(x),
        "evaluate": lambda: trainer.evaluate(x, y, batch_size=8),
        "save": lambda: trainer.save(tmp_path / "model"),
        "build": lambda: bp.Trainer(NETWORK, "cross_entropy", bp.AdamW(0.01)).build(x),
    }[name]
    case.interrupted(name, call, surroundings)


@pytest.mark.parametrize(
    "backend", ["numpy", "numpy-jit", "torch", "jax-jit", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
def test_an_interrupt_leaves_rows_of_sparse_tables_at_one_definite_step(backend: Any, surroundings: Any) -> None:
    """They are put back where they were, with those of the state, or none of them is."""
    network = bp.Sequential(bp.Embedding(50, 2, sparse=True), bp.Flatten(), bp.BatchNorm(), bp.Dense(3))
    x, y = backend.array(np.arange(24).reshape(12, 2) * 7 % 50), backend.array(np.arange(12) % 3)
    trainer = bp.Trainer(network, "cross_entropy", bp.Adam(0.01), clip_norm=1.0).build(x)
    case = Case(backend, trainer, x, y)
    case.interrupted("step", case.step, surroundings)


@pytest.mark.parametrize("name", ["step", "predict"])
@pytest.mark.parametrize("jit", [False, True])
def test_an_interrupt_while_several_threads_work(
    jit: bool, name: str, surroundings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of rows, products and shares of the parameters are then with helpers."""
    if jit:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    compiles(monkeypatch, jit)
    monkeypatch.setattr("bpnet.backends.numpy.ALONE", 0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1100, 200)).astype("f4"), rng.integers(0, 3, 1100)
    trainer = bp.Trainer(bp.Sequential(bp.Dense(360, "relu"), bp.Dense(3)), "cross_entropy", threads=2).build(x)

    class Lib:
        host = staticmethod(np.asarray)

    case = Case(Lib, trainer, x, y)
    case.interrupted(name, case.step if name == "step" else lambda: trainer.predict(x), surroundings)


@dataclass(frozen=True)
class _Untraced(bp.SGD):
    """By a rule that no compiler knows, with memory of its own."""

    def elementwise(self, b: Any, theta: Any, *args: Any) -> tuple[Any, ...]:
        grad, lr = args
        return (theta - lr * b.xp.flip(b.xp.flip(np.where(False, np.empty(theta.shape), grad))),)


@pytest.mark.parametrize("optimizer", [bp.Adam(0.01), bp.AdamW(0.01), _Untraced(0.01)], ids=lambda o: type(o).__name__)
def test_a_lack_of_memory_leaves_one_definite_step(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever array can't be had, in whatever thread."""
    monkeypatch.setattr("bpnet.backends.numpy.ALONE", 0)
    monkeypatch.setattr("bpnet.backends.numpy.CHUNK", 0)
    monkeypatch.setattr("bpnet.backends.numpy.UPDATE_CHUNK", 1000)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 50)), rng.integers(0, 3, 8)
    net = bp.Sequential(bp.Dense(360, "relu"), bp.Dense(3))
    trainer = bp.Trainer(net, "cross_entropy", optimizer, threads=2).build(x)
    first, empty = trainer.snapshot(), np.empty
    right = []
    for _ in range(2):
        right.append([a.tobytes() for a in (trainer.theta, *trainer.state)])
        trainer.step(x, y)
    left, failed = 0, 0

    def scarce(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            raise MemoryError
        return empty(*args, **options)

    for moment in range(1000):
        trainer.restore(first)
        monkeypatch.setattr("bpnet.backends.numpy._memory", threading.local())
        left = moment
        monkeypatch.setattr(np, "empty", scarce)
        try:
            trainer.step(x, y, check=False)
        except MemoryError:
            failed += 1
        monkeypatch.setattr(np, "empty", empty)
        assert [a.tobytes() for a in (trainer.theta, *trainer.state)] == right[trainer.step_count], f"at {moment}"
        if left >= 0:
            break
    assert failed


# ---- two at once ----------------------------------------------------------------------------------------------------


class Within(bp.Callback):
    """Calls something after the first step, and keeps what came of it."""

    def __init__(self, call: Callable[[bp.Trainer], Any]) -> None:
        self.call, self.found = call, None

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if self.found is None:
            try:
                self.found = self.call(trainer)
            except Exception as error:
                self.found = error


def small() -> tuple[bp.Trainer, Any, Any]:
    x, y = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4), np.arange(8) % 3
    return bp.Trainer(NETWORK, "cross_entropy").build(x), x, y


@pytest.mark.parametrize("name", ["fit", "step", "build"])
def test_a_second_training_of_one_trainer_is_refused(name: str) -> None:
    trainer, x, y = small()
    calls = {"fit": lambda: trainer.fit(x, y), "step": lambda: trainer.step(x, y), "build": lambda: trainer.build(x)}
    here, there = Within(lambda _: calls[name]()), Within(lambda _: elsewhere(calls[name]))
    trainer.fit(x, y, epochs=2, batch_size=4, callbacks=[here, there], progress=False)
    assert isinstance(here.found, BusyError)
    assert isinstance(there.found, BusyError)
    assert f"{name} was called by a callback of this trainer's own fit" in str(here.found)
    assert f"{name} was called while another thread trains this trainer" in str(there.found)
    assert trainer.step_count == 4
    trainer.step(x, y)  # and afterwards it is free, as after an error
    with pytest.raises(bp.errors.BpnetError):
        trainer.fit(x, y[:-1])
    elsewhere(lambda: trainer.step(x, y))


@pytest.mark.parametrize("name", ["predict", "evaluate", "snapshot", "save"])
def test_a_callback_may_read_its_trainer_and_other_threads_may_not(name: str, tmp_path: Path) -> None:
    trainer, x, y = small()
    calls = {
        "predict": lambda: trainer.predict(x),
        "evaluate": lambda: trainer.evaluate(x, y),
        "snapshot": trainer.snapshot,
        "save": lambda: trainer.save(tmp_path / "model"),
    }
    here, there = Within(lambda _: [calls[name]()]), Within(lambda _: elsewhere(calls[name]))
    trainer.fit(x, y, callbacks=[here, there], progress=False)
    assert isinstance(here.found, list)
    assert isinstance(there.found, BusyError)
    elsewhere(calls[name])


def test_what_was_read_while_training_began_is_refused() -> None:
    @dataclass(frozen=True)
    class Train(bp.Layer):
        """Has another thread train in the midst of a prediction."""

        def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
            if not run.training:
                elsewhere(lambda: trainer.step(np.asarray(x), y))
            return x, None

        def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
            return dy, {}

    _, x, y = small()
    trainer = bp.Trainer(bp.Sequential(Train(), bp.Dense(3)), "cross_entropy").build(x)
    with pytest.raises(BusyError, match="predict was called while another thread trains"):
        trainer.predict(x)


@pytest.mark.parametrize("name", ["restore", "parameters", "step_count", "copy", "pickle"])
def test_what_is_trained_is_neither_set_nor_copied_from_elsewhere(name: str) -> None:
    trainer, x, y = small()
    first, tree = trainer.snapshot(), {k: dict(v) for k, v in trainer.parameters.items()}
    calls = {
        "restore": lambda: trainer.restore(first),
        "parameters": lambda: setattr(trainer, "parameters", tree),
        "step_count": lambda: setattr(trainer, "step_count", 7),
        "copy": lambda: copy.deepcopy(trainer),
        "pickle": lambda: pickle.dumps(trainer),
    }
    there = Within(lambda _: elsewhere(calls[name]))
    trainer.fit(x, y, batch_size=4, callbacks=[there], progress=False)
    assert isinstance(there.found, BusyError)
    made = {"restore": "restore was called", "copy": "a copy or", "pickle": "a copy or"}
    assert str(there.found).startswith(made.get(name, f"{name} was assigned to"))
    assert trainer.step_count == 2
    here = Within(lambda _: [calls[name]()])
    trainer.fit(x, y, batch_size=4, callbacks=[here], progress=False)  # its callbacks may do it
    assert isinstance(here.found, list)
    assert trainer.step_count == {"restore": 1, "step_count": 8}.get(name, 4)
    elsewhere(calls[name])
    trainer.step(x, y)


class Trains(list[Any]):
    """Trains elsewhere while it is copied."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __reduce_ex__(self, _: Any) -> Any:
        elsewhere(self.call)
        return list, ()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["copy", "pickle"])
def test_a_copy_is_of_one_step_though_training_begins_meanwhile(backend: Any, copied: Any) -> None:
    _, x, y = small()
    x, y = backend.array(x), backend.array(y)
    trainer = bp.Trainer(NETWORK, "cross_entropy")
    trainer.fit(x, y, progress=False)
    trainer.predict(x)
    for check in (True, False):
        trainer.step(x, y, check=check)
    right, predicted = bits(backend, trainer), backend.host(trainer.predict(x))
    trainer.metadata = {"more": Trains(lambda: trainer.fit(x, y, progress=False))}
    other = copied(trainer)
    assert (trainer.step_count, other.step_count) == (4, 3)
    assert (len(trainer.history), len(other.history)) == (2, 1)
    assert bits(backend, other) == right
    np.testing.assert_array_equal(backend.host(other.predict(x)), predicted)
    other.fit(x, y, progress=False)
    assert bits(backend, other) == bits(backend, trainer)


FORKS = """
import os, signal, sys, threading
import numpy as np
import bpnet as bp

signal.alarm(60)
x = np.random.default_rng(0).standard_normal((64, 20))
y = np.argmax(x[:, :10], axis=1)
trainer = bp.Trainer(bp.Sequential(bp.Dense(64, "relu"), bp.Dense(10)), "cross_entropy").build(x)

def fork():
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            trainer.predict(x)
            trainer.step(x, y)
            trainer.fit(x, y, progress=False)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

class Forks(bp.Callback):
    def on_step_end(self, trainer, step):
        if sys.argv[1] == "callback":
            fork()
        else:
            begun.set()
            done.wait()

begun, done = threading.Event(), threading.Event()
training = threading.Thread(target=lambda: trainer.fit(x, y, callbacks=[Forks()], progress=False))
if sys.argv[1] == "callback":
    trainer.fit(x, y, callbacks=[Forks()], progress=False)
else:
    training.start()
    begun.wait()
    fork()
    done.set()
    training.join()
trainer.step(x, y)
"""


@pytest.mark.parametrize("where", ["callback", "thread"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_child_forked_while_a_trainer_trains_may_use_it(where: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, where]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_fork_waits_while_another_thread_is_in_blas() -> None:
    """For what OpenBLAS's threads hold just then would stay taken in the child."""
    from bpnet.backends.blas import BLAS

    small()  # which computes with NumPy
    held, wait, left = threading.Event(), threading.Event(), []

    def multiply() -> None:
        with BLAS.lock:
            held.set()
            wait.wait(0.1)
            left.append(True)

    thread = threading.Thread(target=multiply)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if left else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()
    assert BLAS.lock.acquire(blocking=False)
    BLAS.lock.release()


# ---- threads that can't start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
def test_where_no_more_threads_can_be_had_those_there_are_do_the_work(
    jit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if jit:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
        from bpnet.compiler.llvm import thread_pool

        monkeypatch.setattr(thread_pool.POOL, "workers", [])
    from bpnet.backends import threads

    compiles(monkeypatch, jit)
    monkeypatch.setattr("bpnet.backends.numpy.ALONE", 0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1100, 200)).astype("f4"), rng.integers(0, 3, 1100)

    def trained() -> list[Any]:
        network = bp.Sequential(bp.Dense(360, "relu"), bp.Dense(3))
        trainer = bp.Trainer(network, "cross_entropy", threads=3)
        trainer.fit(x, y, epochs=2, batch_size=1100, progress=False)
        return [trainer.theta, trainer.predict(x), trainer.evaluate(x, y)["loss"]]

    expected = trained()
    monkeypatch.setattr(threads, "_pool", threads._Pool())
    if jit:
        monkeypatch.setattr(thread_pool.POOL, "workers", [])

    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert all(np.array_equal(a, b) for a, b in zip(trained(), expected, strict=True))


# ---- optimizers that go on after the update -------------------------------------------------------------------------


def adam(theta: Any, m: Any, v: Any, grad: Any, step: int, lr: float = 0.05) -> Any:
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad * grad
    return theta - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8), m, v


@dataclass(frozen=True)
class _Bounded(bp.Adam):
    """Adam, with all parameters held within bounds after each step."""

    def update(self, backend: Any, *args: Any, **options: Any) -> Any:
        theta, state = super().update(backend, *args, **options)
        return backend.xp.minimum(backend.xp.maximum(theta, -0.05), 0.05), state

    def plain(self, theta: Any, state: Any, grad: Any, step: int) -> Any:
        theta, *state = adam(theta, *state, grad, step)
        return np.clip(theta, -0.05, 0.05), state


@dataclass(frozen=True)
class _BoundedInPlace(_Bounded):
    """The same, written to what the update gave, where arrays can be written to; no symbol can."""

    traceable = False

    def update(self, backend: Any, *args: Any, **options: Any) -> Any:
        if backend.name == "jax":
            return super().update(backend, *args, **options)
        theta, state = bp.Adam.update(self, backend, *args, **options)
        theta[...] = backend.xp.minimum(backend.xp.maximum(theta, -0.05), 0.05)
        return theta, state


@dataclass(frozen=True)
class _Twice(bp.Adam):
    """Two updates in one step, the second of what the first gave."""

    def update(self, backend: Any, layout: Any, theta: Any, grad: Any, state: Any, *args: Any, **options: Any) -> Any:
        theta, state = super().update(backend, layout, theta, grad, state, *args, **options)
        return super().update(backend, layout, theta, backend.xp.zeros_like(theta), state, *args, **options)

    def plain(self, theta: Any, state: Any, grad: Any, step: int) -> Any:
        theta, *state = adam(*adam(theta, *state, grad, step), np.zeros_like(grad), step)
        return theta, state


@dataclass(frozen=True)
class _TwiceAtOnce(_Twice):
    """The same, writing to the vectors at once."""

    def update(self, *args: Any, **options: Any) -> Any:
        return super().update(*args, **(options | {"donate": True}))


@dataclass(frozen=True)
class _Mean(bp.Adam):
    """Adam, whose state is also a running mean of the parameters."""

    def init(self, backend: Any, layout: Any, theta: Any) -> Any:
        return (*super().init(backend, layout, theta), backend.copy(theta))

    def update(self, backend: Any, layout: Any, theta: Any, grad: Any, state: Any, *args: Any, **options: Any) -> Any:
        theta, moments = super().update(backend, layout, theta, grad, state[:2], *args, **options)
        return theta, (*moments, 0.5 * state[2] + 0.5 * theta)

    def plain(self, theta: Any, state: Any, grad: Any, step: int) -> Any:
        theta, *moments = adam(theta, *state[:2], grad, step)
        return theta, (*moments, 0.5 * state[2] + 0.5 * theta)


@dataclass(frozen=True)
class _Keeps(bp.SGD):
    """Steps along the mean of this gradient and the last, which is its state."""

    lr: float = 0.05

    def init(self, backend: Any, layout: Any, theta: Any) -> Any:
        return (backend.xp.zeros_like(theta),)

    def update(self, backend: Any, layout: Any, theta: Any, grad: Any, state: Any, *args: Any, **options: Any) -> Any:
        return theta - 0.025 * (grad + state[0]), (grad,)

    def plain(self, theta: Any, state: Any, grad: Any, step: int) -> Any:
        return theta - 0.025 * (grad + state[0]), (grad,)


GO_ON = [_Bounded(0.05), _BoundedInPlace(0.05), _Twice(0.05), _TwiceAtOnce(0.05), _Mean(0.05), _Keeps()]


def check_goes_on(trainer: bp.Trainer, array: Callable[[Any], Any], host: Callable[[Any], Any], steps: int) -> None:
    """What steps leave is what plain NumPy makes of the gradients; the trainer was built for rows of 4."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 4)), rng.integers(0, 3, 8)
    bx, by = array(x), array(y)
    theta, *state = (host(a).copy() for a in (trainer.theta, *trainer.state))
    for step in range(1, steps + 1):
        trainer.step(bx, by)
        _, grad = bp.value_and_grad(trainer.network, "cross_entropy", theta, x, y)
        theta, state = trainer.optimizer.plain(theta, state, grad, step)  # type: ignore[attr-defined]
        for found, expected in zip((trainer.theta, *trainer.state), (theta, *state), strict=True):
            np.testing.assert_allclose(host(found), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", GO_ON, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("units", [5, 20_000])  # of many, several threads do a part each
def test_an_optimizer_may_go_on_with_what_it_has_updated(backend: Any, units: int, optimizer: Any) -> None:
    if units > 5 and "numpy" not in backend.name:
        pytest.skip("one thread updates them")
    net = bp.Sequential(bp.Dense(units, "tanh"), bp.Dense(3))
    trainer = bp.Trainer(net, "cross_entropy", optimizer, threads=2).build(backend.array(np.zeros((8, 4))))
    check_goes_on(trainer, backend.array, backend.host, 4)
