"""Within `bp.reference()` the definitions run alone, and are what everything else is held against."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import bpnet as bp
from bpnet.backends.interrupts import current
from bpnet.errors import GradientError
from bpnet.layer import KERNELS, kernel

HERE = str(Path(bp.__file__).parent)


@dataclass(frozen=True)
class NotesRows(bp.Layer):
    """Hands its rows on, and notes how many came, forward and backward, and in which thread's frames."""

    seen: ClassVar[list[int]] = []

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        self.seen.append(x.shape[0])
        return x, None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        self.seen.append(-dy.shape[0])
        return dy, {}


@contextmanager
def calls() -> Iterator[list[FrameType]]:
    """The frames of bpnet's functions that begin."""
    found: list[FrameType] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HERE) and not frame.f_code.co_name.startswith("<"):
            found.append(frame)

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


def depth(frame: FrameType | None) -> int:
    """How many of bpnet's functions the frame lies within, itself included."""
    count = 0
    while frame is not None and frame.f_code.co_filename.startswith(HERE):
        count, frame = count + 1, frame.f_back
    return count


@pytest.mark.parametrize(("check", "most"), [(False, 52), (True, 69)])
def test_a_step_is_short_to_read_and_its_derivative_near_the_caller(check: bool, most: int, library: Any) -> None:
    lib = library("numpy")
    x, y = lib.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), lib.array([[0.0], [1], [1], [0]])
    trainer = bp.Trainer(bp.Sequential(bp.Dense(2, "sigmoid"), bp.Dense(1, "sigmoid")), "mse", "sgd").build(x)
    with bp.reference():
        for _ in range(2):
            trainer.step(x, y, check=check)
        with calls() as frames:
            trainer.step(x, y, check=check)
    functions = {frame.f_code for frame in frames}
    assert len(functions) <= most, sorted(code.co_qualname for code in functions)
    deepest = [depth(frame) for frame in frames if frame.f_code.co_name == "dense_backward"]
    assert len(deepest) == 2
    assert max(deepest) <= 10 + check


def test_every_step_reaches_the_layers_with_the_whole_batch(backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = backend.array(rng.standard_normal((1100, 40)), "float32"), backend.array(rng.integers(0, 3, 1100))
    net = bp.Sequential(bp.Dense(200, "relu"), NotesRows(), bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(3))
    trainer = bp.Trainer(net, "cross_entropy", "adam")
    trainer.fit(x, y, epochs=2, progress=False, batch_size=1100)  # compiled where the library compiles
    with bp.reference():
        NotesRows.seen.clear()
        for _ in range(3):
            trainer.step(x, y, check=False)
        assert NotesRows.seen == [1100, -1100] * 3
        NotesRows.seen.clear()
        trainer.fit(x, y, epochs=2, batch_size=550, progress=False)
        assert NotesRows.seen == [550, -550] * 4
        NotesRows.seen.clear()
        trainer.predict(x)
        assert NotesRows.seen == [1100]
    assert not current.reference


def test_numpy_computes_in_one_thread() -> None:
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    blas = [library for library in found if "numpy" in library.filepath]  # others may be loaded beside it
    with threadpool_limits(2, user_api="blas"):
        before = [library.num_threads for library in blas]
        with bp.reference(), bp.reference():
            assert {library.num_threads for library in blas} <= {1}
        assert [library.num_threads for library in blas] == before
    assert not current.reference


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_steps_within_rounding(optimizer: str, backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = backend.array(rng.standard_normal((40, 5))), backend.array(rng.integers(0, 3, 40))
    net = bp.Sequential(bp.Dense(7, "gelu"), bp.BatchNorm(), bp.Dense(6, "relu"), bp.Residual(bp.Dense(6)), bp.Dense(3))
    ours, plain = (bp.Trainer(net, "cross_entropy", optimizer, clip_norm=1.0) for _ in range(2))
    for _ in range(3):
        expected = float(ours.step(x, y))
    with bp.reference():
        for _ in range(3):
            found = float(plain.step(x, y))
        plain.predict(x)
    assert found == pytest.approx(expected, rel=1e-10)
    backend.close(plain.theta, backend.host(ours.theta), rtol=1e-9)
    for a, b in zip(plain.state, ours.state, strict=True):
        backend.close(a, backend.host(b), rtol=1e-9)
    backend.close(plain.predict(x), backend.host(ours.predict(x)), rtol=1e-9)
    plain.step(x, y)  # and on it goes outside


@kernel
def tripled(run: bp.Run, x: Any) -> Any:
    """3 x; the name of a kernel that the test replaces."""
    return x * 3.0


@kernel
def tripled_slope(run: bp.Run, dy: Any) -> Any:
    return dy * 3.0


del KERNELS["tripled"], KERNELS["tripled_slope"]


@dataclass(frozen=True)
class Tripled(bp.Layer):
    """y = 3 x, dL/dx = 3 dL/dy."""

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return tripled(run, x), None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return (tripled_slope(run, dy) if need_dx else None), {}


def flipped(name: str, number: int) -> Any:
    """The definition of a kernel with the sign of one of its results turned."""
    definition = KERNELS[name]

    def wrong(run: bp.Run, *args: Any) -> Any:
        results = list(definition(run, *args))
        results[number] = -results[number]
        return tuple(results)

    wrong.__name__ = name
    return wrong


FLIPPED = {
    "dense_backward": ("bpnet.layers.dense", 1, bp.Dense(3), None),
    "batch_norm_backward": ("bpnet.layers.normalization", 1, bp.BatchNorm(), None),
    "softmax_cross_entropy": ("bpnet.losses.classes", 1, bp.Dense(3), "cross_entropy"),
}
"""Where a kernel is used, which of its results is turned, and a layer and a loss that use it."""


@pytest.mark.parametrize("name", FLIPPED)
def test_a_wrong_definition_is_found_though_a_right_replacement_runs(
    name: str, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = library("numpy")
    module, number, layer, loss = FLIPPED[name]
    x = np.random.default_rng(0).standard_normal((6, 4))
    given = {} if loss is None else {"y": np.arange(6) % 3, "loss": loss}
    report = bp.check_gradients(layer, x, **given)
    assert name in [r.name for r in report.replacements]
    assert f"ok    numpy's {name} against its definition: error" in str(report)
    monkeypatch.setitem(KERNELS, name, KERNELS[name])
    monkeypatch.setattr(f"{module}.{name}", kernel(flipped(name, number)))
    assert name in lib.seam.kernels
    with pytest.raises(GradientError, match="WRONG"):
        bp.check_gradients(layer, x, **given)


@pytest.mark.parametrize("name", FLIPPED)
def test_a_wrong_replacement_is_named(name: str, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = library("numpy")
    _, number, layer, loss = FLIPPED[name]
    monkeypatch.setitem(lib.seam.kernels, name, flipped(name, number))
    x = np.random.default_rng(0).standard_normal((6, 4))
    given = {} if loss is None else {"y": np.arange(6) % 3, "loss": loss}
    with pytest.raises(GradientError, match=rf"WRONG numpy's {name} against its definition: error \d"):
        bp.check_gradients(layer, x, **given)
