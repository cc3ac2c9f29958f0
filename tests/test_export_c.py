"""Models as C headers and object files: a C program gives what `predict` gives, to the bit, and needs nothing else."""

import ctypes
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_layers import LAYERS

import bpnet as bp
from bpnet.errors import ArgumentError, ExportError, MissingExtraError, OptionError

pytest.importorskip("llvmlite", reason="needs llvmlite, the extra jit")
if sys.platform == "win32" or shutil.which("cc") is None:
    pytest.skip("needs a C compiler called cc", allow_module_level=True)

from bpnet.compiler.interpret import interpret
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
    x = RNG.standard_normal((1000, 300)).astype("float32")
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
    sources = SUPPORT / "predict.c", folder / "model.o"
    line = "cc", "-std=c99", "-O1", *WARNINGS, *options, "-I", folder, *sources, "-o", program, "-lm", "-pthread"
    if options and subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("this compiler has no thread sanitizer")
    run(*line)
    run(program, rows)
    y, p, c = (np.fromfile(f"{rows}.{kind}", dtype) for kind, dtype in (("y", "f4"), ("p", "f4"), ("c", "i4")))
    outputs = trainer.predict(x)
    assert np.array_equal(y.reshape(-1, 3), outputs)
    assert np.array_equal(c, outputs.argmax(axis=1))
    softmax = trainer.loss.prediction(trainer.backend, outputs)
    np.testing.assert_allclose(p.reshape(-1, 3), softmax, rtol=1e-5, atol=1e-7)


def test_a_cpp_program_links_it(compiled: Any, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler called c++")
    source = tmp_path / "program.cpp"
    body = "float x[MODEL_INPUTS] = {}, y[MODEL_OUTPUTS]; return model_predict(x, 1, y);"
    source.write_text(f'#include "model.h"\nint main() {{ {body} }}\n')
    run("c++", *WARNINGS, "-I", compiled[2], source, compiled[2] / "model.o", "-o", tmp_path / "program")
    run(tmp_path / "program")


def test_the_object_needs_the_c_library_alone_and_has_no_state(compiled: Any) -> None:
    """But for the byte that says whether this processor will do."""
    if shutil.which("nm") is None or sys.platform != "linux":
        pytest.skip("needs nm")
    header, found = (compiled[2] / "model.h").read_text(), {}
    for line in run("nm", compiled[2] / "model.o").splitlines():
        *_, kind, name = line.split()
        found.setdefault(kind, set()).add(name)
    assert found.pop("U") <= {"malloc", "free", "memcpy", "memset"}
    assert found.pop("b", set()) <= {"processor"}
    assert found.pop("D") == {"model_class_names"}  # pointers, which the linker makes and nobody changes
    assert ".data.rel.ro" in run("objdump", "-h", compiled[2] / "model.o")
    public = set(re.findall(r"\b(model_\w+)(?=\(|;|\[)", header))
    assert found.pop("T") | found.pop("R") | {"model_class_names"} == public
    assert set(found) <= {"t", "r"}, found


def test_the_least_processor(tmp_path: Path) -> None:
    """Within rounding what this one gives; the soak suite tries all levels."""
    x = RNG.standard_normal((50, 20)).astype("float32")
    net = bp.Sequential(bp.Dense(40, "tanh"), bp.LayerNorm(), bp.Dense(30, "softplus"), bp.Dense(4, "softmax"))
    trainer = bp.Trainer(net, "mse", seed=0, compile=True).build(x)
    code, y = Library(trainer, tmp_path, cpu="generic")("predict", x, like=trainer.predict(x))
    assert code == 0
    np.testing.assert_allclose(y, trainer.predict(x), rtol=0.0, atol=1e-6)


def test_a_processor_that_has_less_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    this = processor.named("native")
    if not this.is_x86:
        pytest.skip("other processors than x86-64 don't tell")
    monkeypatch.setitem(processor.CPUID, (1, 0, processor.ECX), "fma:12 missing:16")  # a bit that none has set
    more = processor.Processor(this.triple, this.name, this.features | {"missing"}, this.flags)
    monkeypatch.setattr(processor, "named", lambda name: more)
    x = RNG.standard_normal((2, 3)).astype("float32")
    library = Library(bp.Trainer(bp.Scale(), "mse", seed=0).build(x), tmp_path)
    for _ in range(2):
        code, y = library("predict", x, like=x)
        assert code == 3
        assert np.all(y == 77)
    assert library.library.model_supported() == 0


# ---- models of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_layer_is_compiled(name: str) -> None:
    """After it is a dense layer, since some have no parameters."""
    case = LAYERS[name]
    x = RNG.standard_normal(case.shape).astype("float32")
    network = Network(exported(bp.Trainer(bp.Sequential(case.layer, bp.Dense(2)), "mse", seed=0).build(x)))
    network.check_rows(network.commands(network.results[0], 4), 4)


def test_several_inputs_in_float64(tmp_path: Path) -> None:
    """Numbers that may be missing, and codes, of which wrong ones are found."""
    branches = bp.Inputs(
        ("0", bp.NumericInput(0.5, 2.0, missing=(1,))),
        ("double", bp.Embedding(5, 3)),
        ("any", bp.CategoricalInput((4,), (0,))),
    )
    trainer = bp.Trainer(bp.Sequential(branches, bp.Dense(9, "gelu"), bp.Dense(2)), "mse", seed=0, compile=True)
    x = {"0": RNG.standard_normal((21, 3)), "double": RNG.integers(0, 5, 21), "any": RNG.integers(0, 4, (21, 1))}
    x["0"][3, 1] = np.nan
    want = trainer.build(x).predict(x)
    library = Library(trainer, tmp_path)
    rows = [x["0"], x["double"].astype("int32"), x["any"].astype("int32")]
    code, y = library("predict", *rows, like=want)
    assert code == 0
    assert np.array_equal(y, want)
    text = library.header.read_text()
    assert "const double *x_0, const int32_t *x_double, const int32_t *x_any, int64_t rows, double *y" in text
    rows[2][5] = 99  # none that is known
    rows[0][6, 0], rows[1][7] = np.inf, 5
    code, y = library("predict", *rows, like=want)
    assert code == 4
    right = np.delete(np.arange(21), [5, 6, 7])
    assert np.array_equal(y[right], want[right])
    assert np.isfinite(y[5]).all()


TABLE = r"""
#include <stdio.h>
#include "model.h"
int main(void) {
    printf("%d %d %d ", model_code_city("Z\303\274rich"), model_code_city("Rome"), model_code_city(""));
    printf("%d %d %.9g\n", model_code_floor(2.0), model_code_floor(9.5), model_number_id(1e9 + 5.0));
    return 0;
}
"""


def test_a_model_of_tables(tmp_path: Path) -> None:
    """Its preprocessing is in the object, or is said, or done by functions of the header."""
    rng = np.random.default_rng(1)
    rows = 60
    table = {
        "size": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(50.0, 20.0, rows)),
        "id": 1e9 + rng.integers(0, 9, rows).astype(float),
        "city": rng.choice(["Bern", "Zürich", 'say "*/"'], rows),
        "floor": rng.choice([1, 2, 5], rows),
        "new": rng.random(rows) < 0.5,
        "built": np.datetime64("2020-01-01") + rng.integers(0, 900, rows),
        "price": rng.normal(size=rows),
    }
    model = bp.train_table(table, "price", types={"floor": "category"}, epochs=2, seed=0)
    like = model.predict(table).astype("float32").reshape(rows, 1)
    library = Library(model, tmp_path)
    x = model.inputs(table)
    code, y = library("predict", np.ascontiguousarray(x["numbers"]), x["categories"], like=like)
    assert code == 0
    np.testing.assert_allclose(y, like, rtol=1e-5, atol=1e-6)
    text = library.header.read_text()
    for told in (
        "x_numbers[0]  size",
        "x_categories[0]  city: 0 missing, 1 not known, 2 Bern",
        "x_numbers[2]  new: 1 if true",
        "built.month_sin: sin of 2 pi / 12 times its month",
    ):
        assert told in text
    (tmp_path / "table.c").write_text(TABLE.replace("\\\\n", "\\n"))
    run(
        "cc",
        "-std=c99",
        *WARNINGS,
        "-I",
        tmp_path,
        tmp_path / "table.c",
        library.object,
        "-o",
        tmp_path / "table",
        "-lm",
    )
    *codes, number = run(tmp_path / "table").split()
    floors = model.schema.categories[1].values
    assert codes == ["3", "1", "0", str(2 + floors.index(2)), "1"]
    feature = next(f for f in model.schema.features if f.name == "id")
    assert float(number) == np.float32((1e9 + 5.0 - feature.origin) / feature.unit)


def test_a_fitted_estimator() -> None:
    """What its commands give: machine code of them is the trainer's."""
    pytest.importorskip("sklearn")
    x = RNG.standard_normal((8, 5)).astype("float32")
    est = bp.MLPClassifier((8,), solver="lbfgs", max_iter=9, random_state=0)
    with pytest.warns(UserWarning, match="iterations"):
        est.fit(x, np.where(x[:, 0] > 0.3, "yes", "no"))
    network = Network(exported(est))
    assert network.classes == ["no", "yes"]
    _, p, places = (interpret(network.commands(r, 8), [*network.weights, x])[0] for r in network.results)
    np.testing.assert_allclose(p, est.predict_proba(x), rtol=1e-5, atol=1e-6)
    assert np.array_equal(est.classes_[places.astype(int)], est.predict(x))


# ---- what can't be compiled -----------------------------------------------------------------------------------------


class Passing(bp.Layer):
    def out_shape(self, in_shape: Any) -> Any:
        return in_shape

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
        return dy, {}


@dataclass(frozen=True)
class Untraceable(Passing):
    def forward(self, run: Any, p: Any, x: Any) -> Any:
        return run.xp.cumulative_sum(x, axis=1), None


@dataclass(frozen=True)
class Coupling(Passing):
    def forward(self, run: Any, p: Any, x: Any) -> Any:
        return x - run.xp.mean(x, axis=0), None


@pytest.mark.parametrize(
    ("layer", "said"),
    [(Untraceable(), r"forward of Untraceable\(\).*cumulative_sum"), (Coupling(), "depend on the rows beside it")],
)
def test_what_can_not_be_compiled_is_named(layer: bp.Layer, said: str, tmp_path: Path) -> None:
    x = RNG.standard_normal((6, 4)).astype("float32")
    trainer = bp.Trainer(bp.Sequential(bp.Dense(3), bp.Residual(layer)), "mse", seed=0).build(x)
    with pytest.raises(ExportError, match=said):
        bp.files.to_c(trainer, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_names_and_labels_that_c_would_take_for_others(tmp_path: Path) -> None:
    """Names that are the same in capitals, text that C would end early, labels that are no classes."""
    x = np.ones((2, 3), "float32")
    rows = {"a": x, "A": x[:, :2], "x\xb2": x[:, :1]}
    inputs = bp.Sequential(bp.Inputs(**dict.fromkeys(rows, bp.Dense(1))), bp.Dense(2))
    header = bp.files.to_c(bp.Trainer(inputs, "mse").build(rows), tmp_path / "a", block=1)[0].read_text()
    assert re.findall("#define (A_INPUTS.*)", header) == ["A_INPUTS_A 3", "A_INPUTS_A_ 2", "A_INPUTS_X_ 1"]
    trainer = bp.Trainer(bp.Dense(2), "hinge").build(x)
    trainer.classes = ["long", "wide"]
    header = bp.files.to_c(trainer, tmp_path / "b", block=1)[0].read_text()
    assert "CLASSES" not in header
    assert "y[rows * B_LABELS] <- for each label whether the row has it" in header
    trainer = bp.Trainer(bp.Dense(2), "cross_entropy").build(x)
    for classes, said in (
        (["a", "a\0b"], "text 'a.x00b', which C can't hold"),
        (["a", "\ud800"], "which C can't hold"),
        (["a", "b", "c"], "has 3 names; its network tells 2 apart"),
    ):
        trainer.classes = classes
        with pytest.raises((ExportError, ArgumentError), match=said):
            bp.files.to_c(trainer, tmp_path / "c", block=1)


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("model", {"cpu": "z80"}, "cpu is 'z80'; expected 'native'"),
        ("model", {"block": 0}, "block"),
        ("model", {"name": "a-b"}, "name is 'a-b'; expected a name of C"),
        ("3d", {}, "name is '3d'"),
    ],
)
def test_options(path: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    trainer = bp.Trainer(bp.Dense(2), "mse", seed=0).build(np.zeros((1, 3), "float32"))
    with pytest.raises(OptionError, match=re.escape(said)):
        bp.files.to_c(trainer, tmp_path / path, **options)


def test_without_llvmlite_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bpnet.export.c.can_compile", lambda: False)
    trainer = bp.Trainer(bp.Dense(2), "mse", seed=0).build(np.zeros((1, 3), "float32"))
    with pytest.raises(MissingExtraError, match="to_c needs llvmlite"):
        bp.files.to_c(trainer, tmp_path / "model")
