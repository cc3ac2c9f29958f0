"""What a type checker tells a user: which lines it lets pass, and what it says of the others."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

import bpnet as bp
from bpnet.backends.base import PRECISIONS
from bpnet.initializers import Initializer
from bpnet.registry import own_catalogue
from bpnet.typing import ActivationName, InitializerName, LossName, OptimizerName, Precision

ROOT = Path(bp.__file__).parent.parent

# What is wrong has the error beside it, in mypy's words up to where these name every literal.
NUMPY = """\
from dataclasses import dataclass
from typing import Any
import numpy as np
import numpy.typing as npt
import bpnet as bp
from bpnet.backends.base import Array, Backend

x = np.ones((8, 3), dtype=np.float32)
y = np.zeros(8, dtype=np.int64)
named: npt.NDArray[np.float64] = np.ones((8, 3))

@dataclass(frozen=True)
class Cube(bp.Activation):
    names = {"cube": {}}

    def value(self, b: Backend, z: Array) -> Array:
        return z * z * z

    def derivative(self, b: Backend, z: Array, dy: Array) -> Array:
        return 3.0 * dy * z * z

net = bp.Sequential(bp.Dense(4, "relu"), bp.Dense(4, Cube()), bp.Dropout(0.1), bp.Dense(3))
trainer = bp.Trainer(net, "cross_entropy", bp.AdamW(1e-3), precision="float32")
history = trainer.fit(x, y, epochs=2, validation=(named, y), sample_weight=named[:, 0], callbacks=[bp.EarlyStopping()])
losses: list[Any] = history["loss"]
score: float = trainer.evaluate(x, y)["loss"]
guess = trainer.predict(x).argmax(axis=1)
trainer.step(x, y)
trainer.step({"a": x, "b": named}, y)
trainer.step((x, named), y)
loaded: bp.Trainer = bp.load("model.safetensors", like=x)
report: bool = bp.check_gradients(bp.Dense(2, "tanh"), named).ok

def rows(a: bp.typing.AnyArray) -> int:
    return int(a.shape[0])

rows(x), rows(y > 0), rows(x[1:])

own = bp.Activation(lambda xp, z: xp.sin(z), lambda xp, z: xp.cos(z))
bp.Dense(3, own, kernel_init="he_normal", bias_init=bp.initializers.Constant(0.1)), bp.Dense(3, "prelu", ntk=True)
started: bp.Trainer = bp.lsuv(trainer, x, tolerance=0.01)

bp.Dense(3, kernel_init="he_norm")  # Argument "kernel_init" to "Dense" has incompatible type "Literal['he_norm']"
bp.Dense(3, "rleu")  # Argument 2 to "Dense" has incompatible type "Literal['rleu']"
bp.Dense("3")  # Argument 1 to "Dense" has incompatible type "str"; expected "int"
bp.Trainer(net, "crossentropy")  # Argument 2 to "Trainer" has incompatible type "Literal['crossentropy']"
bp.Trainer(net, "mse", optimizer="adm")  # Argument "optimizer" to "Trainer" has incompatible type "Literal['adm']"
bp.Trainer(net, "mse", precision="tf23")  # Argument "precision" to "Trainer" has incompatible type "Literal['tf23']"
bp.Trainer(net, bp.Adam())  # Argument 2 to "Trainer" has incompatible type "Adam"
bp.Trainer(net, "mse", epochs=3)  # Unexpected keyword argument "epochs" for "Trainer"
trainer.fit("not an array", y)  # Argument 1 to "fit" of "Trainer" has incompatible type "str"; expected "AnyArray |
trainer.fit(x, 3)  # Argument 2 to "fit" of "Trainer" has incompatible type "int"; expected "AnyArray | None"
trainer.fit(x, y, validation=x)  # Argument "validation" to "fit" of "Trainer" has incompatible type "ndarray
trainer.step([[1.0]], y)  # Argument 1 to "step" of "Trainer" has incompatible type "list[list[float]]"
trainer.predict(None)  # Argument 1 to "predict" of "Trainer" has incompatible type "None"; expected "AnyArray |
trainer.evaluate(x, y, sample_weight=1.0)  # Argument "sample_weight" to "evaluate" of "Trainer" has incompatible type
bp.check_gradients(bp.ReLU(), "x")  # Argument 2 to "check_gradients" has incompatible type "str"
bp.load("model.safetensors", like="cupy")  # Argument "like" to "load" has incompatible type "str"
bp.Dens(3)  # Module has no attribute "Dens"
"""

OTHERS = """\
import bpnet as bp
import {library}

x = {library}.ones((8, 3))
trainer = bp.Trainer(bp.Dense(1, "gelu"), "mse", "sgd")
trainer.fit(x, x[:, :1], validation=[x, x[:, :1]], sample_weight=x[:, 0])
trainer.evaluate(trainer.predict(x), x)
trainer.fit({library}, x)  # Argument 1 to "fit" of "Trainer" has incompatible type Module; expected "AnyArray |
"""
LIBRARIES = ("torch", "array_api_strict")
SETTINGS = """\
[mypy]
strict = true
[mypy-jax.*,jaxlib.*]
follow_imports = skip
[mypy-cupy.*,cupyx.*,nvmath.*,mpi4py.*,pyarrow.*,zarr.*,h5py.*,llvmlite.*,sklearn.*,scipy.*,threadpoolctl.*,array_api_compat.*]
ignore_missing_imports = true
"""
"""Where bpnet is installed, what it imports itself is not looked at; here it is read as the user's own."""


def test_what_a_type_checker_says_to_a_user(tmp_path: Path) -> None:
    """In one run, since reading PyTorch takes ten seconds.  JAX is left out, which would take half of that again."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    sources = {"with_numpy": NUMPY}
    for library in filter(find_spec, LIBRARIES):
        sources[f"with_{library}"] = OTHERS.format(library=library)
    expected, found = {}, {}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        for number, line in enumerate(source.splitlines(), 1):
            if "  # " in line:
                expected[name, number] = line.partition("  # ")[2]
    (tmp_path / "mypy.ini").write_text(SETTINGS, encoding="utf-8")  # this project's own read no library
    environment = {**os.environ, "MYPYPATH": "" if "site-packages" in ROOT.parts else str(ROOT)}
    command = [sys.executable, "-m", "mypy", "--cache-dir", "cache", *(f"{name}.py" for name in sources)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not done.stderr
    for name, number, text in re.findall(r"(\w+)\.py:(\d+): error: (.*)", done.stdout):
        found[name, int(number)] = text
    assert found.keys() == expected.keys(), done.stdout
    for place, text in found.items():
        assert text.startswith(expected[place]), text


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (bp.Activation, ActivationName),
        (Initializer, InitializerName),
        (bp.Loss, LossName),
        (bp.Optimizer, OptimizerName),
    ],
)
def test_a_type_checker_knows_the_names_of_the_catalogue(base: type, names: object) -> None:
    ours = {name for name, (cls, _) in own_catalogue(base).items() if cls.names}
    assert set(get_args(names)) == ours
    assert get_args(Precision) == PRECISIONS
