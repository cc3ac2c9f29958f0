"""Rules compiled by Numba give the same bits as NumPy, from the first step or from the middle of a training on."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.backends.jit import Form, Jit, loop_source
from bpnet.backends.trace import NotTraceableError

OPTIMIZERS = [
    bp.SGD(0.1),
    bp.SGD(0.1, momentum=0.9),
    bp.SGD(0.1, momentum=0.9, nesterov=True),
    bp.Adam(1e-2),
    bp.AdamW(1e-2),
]


@pytest.fixture
def numpy_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The NumPy backend with nothing compiled yet and an empty folder for what will be."""
    pytest.importorskip("numba", reason="Numba is not installed")
    monkeypatch.setenv("BPNET_CACHE_DIR", str(tmp_path))
    backend = bp.backends.get("numpy")
    monkeypatch.setattr("bpnet.backends.numpy.JIT", Jit())
    monkeypatch.setattr(backend, "jit", None)
    return backend


def trained(optimizer: bp.Optimizer, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 40)).astype(dtype), rng.integers(0, 3, 64)
    network = bp.Sequential(bp.Dense(300, "relu"), bp.Dense(250, "tanh"), bp.Dense(3))
    trainer = bp.Trainer(network, "cross_entropy", optimizer)
    trainer.fit(x, y, epochs=3, batch_size=16, progress=False)
    return np.array(trainer.theta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_compiled_is_bit_identical(optimizer: bp.Optimizer, dtype: str, numpy_backend: Any) -> None:
    numpy_backend.jit = False
    plain = trained(optimizer, dtype)
    numpy_backend.jit = True
    assert np.array_equal(trained(optimizer, dtype), plain)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [bp.ReLU(), bp.LeakyReLU(0.3), bp.Identity(), bp.GELU()], ids=str)
@pytest.mark.parametrize("rows", [700, 3000])
def test_a_compiled_dense_layer_is_bit_identical(activation: Any, rows: int, dtype: str, numpy_backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, 50)).astype(dtype), rng.integers(0, 30, rows)
    network = bp.Sequential(bp.Dense(90, activation), bp.Dense(80, activation), bp.Dense(30))
    found = []
    for numpy_backend.jit in (False, True):
        trainer = bp.Trainer(network, "cross_entropy", "sgd").build(x)
        found.append((bp.gradient(network, "cross_entropy", trainer.theta, x, y), trainer.predict(x)))
    (value, grad), outputs = found[0]
    assert found[1][0][0] == value
    assert np.array_equal(found[1][0][1], grad)
    assert np.array_equal(found[1][1], outputs)
    compiled = {form.kind for form, loop in jit_of(numpy_backend).loops.items() if loop is not None}
    assert compiled == ({"forward", "backward"} if activation in (bp.ReLU(), bp.LeakyReLU(0.3)) else set())


def jit_of(backend: Any) -> Jit:
    import bpnet.backends.numpy as module

    return module.JIT


def test_it_takes_over_in_the_background_without_a_trace(numpy_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_backend.jit = False
    plain = trained(bp.Adam(1e-2), "float32")
    jit = Jit()
    monkeypatch.setattr("bpnet.backends.numpy.JIT", jit)
    monkeypatch.setattr("bpnet.backends.jit.WORTH_IT", 1)
    numpy_backend.jit = None
    assert np.array_equal(trained(bp.Adam(1e-2), "float32"), plain)
    assert any(form.rule is bp.Adam.rule for form in jit.loops)


def test_little_work_does_not_import_numba() -> None:
    code = (
        "import sys, numpy as np, bpnet as bp\n"
        "x = np.random.default_rng(0).random((100, 5))\n"
        "bp.Trainer(bp.Dense(1), 'mse').fit(x, x[:, :1], epochs=3)\n"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_machine_code_is_kept_on_disk(numpy_backend: Any, tmp_path: Path) -> None:
    numpy_backend.jit = True
    trained(bp.Adam(1e-2), "float32")
    assert list(tmp_path.glob("bpnet_rule_*.py"))
    assert list(tmp_path.glob("__pycache__/*.nbi"))


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    numpy_backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv("BPNET_CACHE_DIR", str(occupied / "folder"))
    numpy_backend.jit = True
    compiled = trained(bp.Adam(1e-2), "float32")
    numpy_backend.jit = False
    assert np.array_equal(compiled, trained(bp.Adam(1e-2), "float32"))


def test_only_exactly_rounded_operations_are_compiled() -> None:
    def rule(b: Any, theta: Any, grad: Any, lr: float) -> tuple[Any, ...]:
        return (theta - lr * b.xp.tanh(grad),)

    with pytest.raises(NotTraceableError):
        loop_source(Form("sweep", rule, 2, 1, np.dtype("float32")))


@dataclass(frozen=True)
class _Twofold(bp.Activation):
    """y = 2 z, whose derivative reads nothing."""

    keeps = "nothing"

    def value(self, b: Any, z: Any) -> Any:
        return 2.0 * z

    def derivative(self, b: Any, kept: Any, dy: Any) -> Any:
        return 2.0 * dy


@dataclass(frozen=True)
class _Steps(bp.Activation):
    """Adds truth values, which NumPy does in its own way, and asks for a type: neither can be traced."""

    def value(self, b: Any, z: Any) -> Any:
        return b.xp.maximum(z, 0.1 if z.dtype == b.xp.float32 else 0.2)

    def derivative(self, b: Any, kept: Any, dy: Any) -> Any:
        return dy * ((kept > 0.5) + (kept > 1.0))


@pytest.mark.parametrize("activation", [_Twofold(), _Steps(), bp.ReLU()], ids=str)
def test_what_cannot_be_traced_is_evaluated_as_it_stands(activation: Any, numpy_backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((700, 64)).astype("float32"), rng.standard_normal((700, 40)).astype("float32")
    network = bp.Sequential(bp.Dense(64, activation), bp.Dense(40, activation))
    theta = rng.standard_normal(bp.layout_of(network, (64,)).size).astype("float32")
    theta.flags.writeable = False
    found = []
    for numpy_backend.jit in (False, True):
        found.append(bp.gradient(network, "mse", theta, x, y)[1])
        trainer = bp.Trainer(network, "mse").build(x)
        small, large = trainer.predict(x[:5]), trainer.predict(x)[:5]
        np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)
    assert np.array_equal(*found)


def test_a_single_column_is_added_up_in_one_order(numpy_backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((700, 2000)).astype("float32"), rng.standard_normal((700, 1)).astype("float32")
    theta = rng.standard_normal(2001).astype("float32")
    found = []
    for numpy_backend.jit in (False, True):
        found.append(bp.gradient(bp.Dense(1, "relu"), "mse", theta, x, y)[1])
    assert np.array_equal(*found)


def test_numba_that_is_asked_for_and_missing_is_named(numpy_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpnet.backends.jit.importlib.util.find_spec", lambda name: None)
    numpy_backend.jit = None
    trained(bp.Adam(1e-2), "float32")
    numpy_backend.jit = True
    with pytest.raises(bp.errors.MissingExtraError, match=r"Numba: pip install 'bpnet-xp\[jit\]'"):
        trained(bp.Adam(1e-2), "float32")
