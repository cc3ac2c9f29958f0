"""The precision of products: what a trainer takes, hands to its layers, refuses, and keeps."""

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support.model_files import contents, made

import bpnet as bp
from bpnet.backends.base import PRECISIONS
from bpnet.errors import DTypeError, FileFormatError, OptionError


@dataclass(frozen=True)
class Listening(bp.Layer):
    """Hands its rows on, and notes what precision it is run with, forward and backward."""

    heard: ClassVar[list[str]] = []

    def forward(self, run: Any, p: Any, x: Any) -> tuple[Any, Any]:
        self.heard.append("float32" if run.context is None else run.context.precision)
        return x, None

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        self.heard.append("float32" if run.context is None else run.context.precision)
        return dy, {}


NET = bp.Sequential(bp.Dense(4, "relu"), Listening(), bp.Dropout(0.1), bp.Dense(3))


def data(dtype: str = "float32") -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((20, 5)).astype(dtype), rng.integers(0, 3, 20)


@pytest.fixture
def able(library: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """NumPy, as if it had products of every precision; they all are float32's."""
    lib = library("numpy")
    monkeypatch.setattr(type(lib.seam), "precisions", lambda self, device: PRECISIONS)
    Listening.heard.clear()
    return lib


@pytest.mark.parametrize("precision", ["float64", "bf16", "TF32", "", None, 32, np.float32, ["tf32"]])
def test_what_is_no_precision(precision: Any) -> None:
    with pytest.raises(OptionError, match=r"precision is .*; expected 'float32', 'tf32' or 'bfloat16'"):
        bp.Trainer(NET, "cross_entropy", precision=precision)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("call", ["fit", "step", "build"])
def test_a_library_without_it_says_so_at_the_first_data(call: str, precision: str, backend: Any) -> None:
    if backend.name == "cupy":
        pytest.skip("which has it")
    x, y = map(backend.array, data())
    trainer = bp.Trainer(NET, "cross_entropy", precision=precision)
    with pytest.raises(
        OptionError, match=f"precision is '{precision}', which products of .* do not have here"
    ) as error:
        getattr(trainer, call)(*((x,) if call == "build" else (x, y)))
    assert "pip install 'bpnet-xp[cuda13]'" in str(error.value)
    with pytest.raises(bp.errors.NotBuiltError):
        _ = trainer.theta


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_float64_has_no_other_precision(precision: str, able: Any) -> None:
    x, y = data("float64")
    with pytest.raises(DTypeError, match=f"precision is '{precision}', which is of products of float32 values"):
        bp.Trainer(NET, "cross_entropy", precision=precision).fit(x, y, progress=False)


def test_whole_numbers_are_float32(able: Any) -> None:
    x, y = data()
    trainer = bp.Trainer(NET, "cross_entropy", precision="tf32")
    trainer.fit((10 * x).astype("int64"), y, progress=False)
    assert trainer.theta.dtype == np.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_hear_of_it_whatever_the_trainer_does(precision: str, able: Any) -> None:
    x, y = data()
    trainer = bp.Trainer(NET, "cross_entropy", precision=precision)
    for act in (
        lambda: trainer.fit(x, y, epochs=2, batch_size=7, progress=False),
        lambda: trainer.step(x, y),
        lambda: trainer.evaluate(x, y),
        lambda: trainer.predict(x),
    ):
        Listening.heard.clear()
        act()
        assert set(Listening.heard) == {precision}
    assert trainer.history["matmul_precision"] == [precision] * 2
    Listening.heard.clear()
    with pytest.raises(bp.errors.DivergedError):
        bp.Trainer(NET, "cross_entropy", bp.SGD(1e38), precision=precision).fit(x, y, epochs=3, progress=False)
    assert set(Listening.heard) == {precision}


def test_the_default_is_that_of_the_data(backend: Any) -> None:
    for dtype in ("float32", "float64"):
        x, y = map(backend.array, data(dtype))
        trainer = bp.Trainer(NET, "cross_entropy")
        assert trainer.precision == "float32"
        assert trainer.fit(x, y, progress=False)["matmul_precision"] == [dtype]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_keep_it(copied: Any, able: Any) -> None:
    x, y = data()
    trainer = bp.Trainer(NET, "cross_entropy", precision="bfloat16")
    trainer.step(x, y)
    again = copied(trainer)
    Listening.heard.clear()
    again.step(x, y)
    assert again.precision == "bfloat16"
    assert set(Listening.heard) == {"bfloat16"}


# ---- files ----------------------------------------------------------------------------------------------------------


def saved(path: Path, able: Any) -> Path:
    trainer = bp.Trainer(bp.Dense(3), "cross_entropy", precision="bfloat16")
    trainer.fit(*data(), progress=False)
    trainer.save(path)
    return path


def test_a_file_keeps_it(tmp_path: Path, able: Any) -> None:
    trainer = bp.load(saved(tmp_path / "m.safetensors", able))
    assert trainer.precision == "bfloat16"
    assert trainer.history["matmul_precision"] == ["bfloat16"]


def test_where_it_is_lacking_a_loaded_model_computes_in_float32(
    tmp_path: Path, able: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "m.safetensors", able)
    monkeypatch.undo()
    trainer = bp.load(path)
    assert trainer.precision == "float32"
    assert trainer.history["matmul_precision"] == ["bfloat16"]
    trainer.fit(*data(), progress=False)
    assert trainer.history["matmul_precision"] == ["bfloat16", "float32"]


@pytest.mark.parametrize("change", ["gone", "unknown", "of another kind"])
def test_files_without_it_or_with_another(change: str, tmp_path: Path, able: Any) -> None:

    path = saved(tmp_path / "m.safetensors", able)
    tensors, description = contents(path)
    description.pop("precision")
    if change != "gone":
        description["precision"] = {"unknown": "float8", "of another kind": 3}[change]
    path.write_bytes(made(tensors, description))
    with pytest.raises(FileFormatError, match="precision"):
        bp.load(path)
