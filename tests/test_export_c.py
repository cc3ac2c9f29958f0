"""Models as C headers and object files: a C program gives what `predict` gives, to the bit, and needs nothing else."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ExportError, OptionError

pytest.importorskip("llvmlite", reason="needs llvmlite, the extra jit")
if sys.platform == "win32" or shutil.which("cc") is None:
    pytest.skip("needs a C compiler called cc", allow_module_level=True)

from bpnet.compiler.llvm import processor
from bpnet.export.c_model import Network
from bpnet.export.models import exported

WARNINGS = "-Wall", "-Wextra", "-Werror", "-pedantic"
SUPPORT = Path(__file__).parent / "support"
RNG = np.random.default_rng(0)


def run(*command: Any) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


class Library:
    """The object in a shared library, which may not lack anything."""

    def __init__(self, model: Any, folder: Path, **options: Any) -> None:
        self.header, self.object = bp.files.to_c(model, folder / "model", block=8, **options)
        shared = folder / "model.so"
        defined = ["-Wl,-z,defs"] if sys.platform == "linux" else []
        run("cc", "-shared", "-o", shared, self.object, *defined, "-lm")
        self.library = ctypes.CDLL(str(shared))

    def __call__(self, name: str, *x: Any, like: Any) -> tuple[int, Any]:
        """What a function returns, and what it gives, in the shape and type of `like`."""
        y = np.full(like.shape, 77, like.dtype)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*x, y)]
        function = getattr(self.library, f"model_{name}")
        return function(*pointers[:-1], ctypes.c_int64(len(y)), pointers[-1]), y


def classifier() -> tuple[Any, Any]:
    """A trainer with classes, and rows for it."""
    x = RNG.standard_normal((1000, 37)).astype("float32")
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 1)
    net = bp.Sequential(
        bp.Standardize(0.1, 2.0), bp.Dense(70, "relu"), bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(33, "relu"),
        bp.Dense(3),
    )  # fmt: skip
    trainer = bp.Trainer(net, "cross_entropy", "adam", seed=0, compile=True)
    trainer.fit(x, y, epochs=2, batch_size=100, progress=False)
    trainer.classes = ["plain", "two words", 'été "??/\\']
    return trainer, x


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("c")
    trainer, x = classifier()
    bp.files.to_c(trainer, folder / "model", block=64)
    return trainer, x, folder


@pytest.mark.parametrize("options", [(), ("-fsanitize=thread",)], ids=["plain", "thread sanitizer"])
def test_a_c_program_predicts_what_the_trainer_does(compiled: Any, options: tuple[str, ...]) -> None:
    """Of 1 to 1,000 rows, from 8 threads at once, and is told what is wrong."""
    trainer, x, folder = compiled
    program, rows = folder / "predict", folder / "rows"
    x.tofile(rows)
    source = SUPPORT / "predict.c"
    try:
        run("cc", "-std=c99", "-O1", "-g", *WARNINGS, *options, "-I", folder, source, folder / "model.o", "-o", program, "-lm", "-pthread")
    except AssertionError:
        if options:
            pytest.skip("this compiler has no thread sanitizer")
        raise
    run(program, rows)
    y, p, c = (np.fromfile(f"{rows}.{kind}", dtype) for kind, dtype in zip("ypc", ("float32", "float32", "int32"), strict=True))
    outputs = trainer.predict(x)
    assert np.array_equal(y.reshape(-1, 3), outputs)
    assert np.array_equal(c, outputs.argmax(axis=1))
    np.testing.assert_allclose(p.reshape(-1, 3), trainer.loss.prediction(trainer.backend, outputs), rtol=1e-5, atol=1e-7)
