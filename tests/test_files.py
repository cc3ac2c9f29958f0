"""Model files: what is saved comes back exactly, and whatever else a file holds is refused by name."""

import contextlib
import copy
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save, save_file
from support.hostile_files import of_bytes
from support.model_files import contents, head, made, sealed, split, unsealed

import bpnet as bp
from bpnet.files.model import read_checkpoint, write_checkpoint
from bpnet.files.tensors import write as write_tensors
from bpnet.initializers import DISTRIBUTIONS, FANS, Initializer
from bpnet.layer import Layer
from bpnet.layers.members import STARTS
from bpnet.layers.numeric_embedding import FORMS
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.penalties import Penalty
from bpnet.registry import Registered, describe, examples, restore
from bpnet.schedules import Schedule

NETWORK = bp.Sequential(bp.Dense(8, "tanh"), bp.BatchNorm(), bp.Residual(bp.Dense(8, "tanh")), bp.Dense(3))


def data() -> tuple[Any, Any]:
    x = np.random.default_rng(7).standard_normal((48, 6))
    return x, np.argmax(x[:, :3], axis=1)


def trained(x: Any, y: Any, network: bp.Layer = NETWORK, optimizer: Any = None) -> bp.Trainer:
    optimizer = optimizer or bp.AdamW(bp.WarmUp(bp.Cosine(0.01, 20), 5))
    trainer = bp.Trainer(network, "cross_entropy", optimizer, seed=5, clip_norm=1.0)
    trainer.fit(x, y, epochs=2, batch_size=16, validation=(x, y), progress=False)
    return trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file."""
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    trained(*data()).save(path, metadata={"classes": ["a", "b", "c"]})
    return path


def write(path: Path, tensors: dict[str, Any], description: Any) -> Path:
    """A file that is sound but for what is in it."""
    path.write_bytes(made(tensors, description))
    return path


# ---- what is saved comes back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loaded_trainer_is_the_saved_one(backend: Any, dtype: str, tmp_path: Path) -> None:
    """Its outputs, optimizer, history and everything else, so that training on is as if it had never left."""
    if dtype == "float32" and backend.name.startswith("jax"):
        pytest.skip("float64 says the same, and JAX would compile it all again")
    x, y = backend.array(data()[0], dtype), backend.array(data()[1])
    trainer = trained(x, y)
    path = tmp_path / "model.safetensors"
    assert trainer.save(path) is None
    loaded = bp.load(path, like=x)
    assert bp.backends.backend_of(loaded.theta) is backend.seam
    assert backend.dtype(loaded.theta) == dtype
    for name in ("network", "loss", "optimizer", "seed", "clip_norm", "step_count", "metadata", "layout"):
        assert getattr(loaded, name) == getattr(trainer, name)
    assert loaded.history.epochs == trainer.history.epochs
    assert np.array_equal(backend.host(loaded.predict(x)), backend.host(trainer.predict(x)))
    assert loaded.evaluate(x, y) == trainer.evaluate(x, y)
    for one in (trainer, loaded):
        one.fit(x, y, epochs=2, batch_size=16, progress=False)
    for a, b in zip((trainer.theta, *trainer.state), (loaded.theta, *loaded.state), strict=True):
        assert np.array_equal(backend.host(a), backend.host(b))
    assert np.array_equal(backend.host(trainer.buffers), backend.host(loaded.buffers))
    assert loaded.history["loss"] == trainer.history["loss"]
    assert loaded.history["epoch"] == [1, 2, 3, 4]


def test_like_moves_a_model_to_another_library(backend: Any, saved: Path) -> None:
    x, y = data()
    host = bp.load(saved)
    assert type(host.theta) is np.ndarray
    there = bp.load(saved, like=backend.array(np.zeros(1)))
    assert bp.backends.backend_of(there.theta) is backend.seam
    assert backend.seam.device(there.theta) == backend.seam.device(backend.array(x))
    assert np.array_equal(backend.host(there.theta), host.theta)
    np.testing.assert_allclose(backend.host(there.predict(backend.array(x))), host.predict(x), rtol=1e-12, atol=1e-12)
    assert there.evaluate(backend.array(x), backend.array(y)) == pytest.approx(host.evaluate(x, y), rel=1e-12)


OPTIMIZERS = [
    bp.SGD(0.1),
    bp.SGD(bp.Cosine(0.1, 30, final=0.01), momentum=0.9, nesterov=True),
    bp.Adam(bp.Constant(0.01), beta1=0.8, beta2=0.99, epsilon=1e-6),
    bp.AdamW(bp.WarmUp(0.01, 7), weight_decay=0.3),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_every_optimizer_and_schedule_goes_on_where_it_was(optimizer: Any, tmp_path: Path) -> None:
    x, y = data()
    trainer = trained(x, y, optimizer=optimizer)
    trainer.save(tmp_path / "m.safetensors")
    loaded = bp.load(tmp_path / "m.safetensors")
    assert loaded.optimizer == optimizer
    for one in (trainer, loaded):
        one.fit(x, y, epochs=3, batch_size=16, progress=False)
    assert np.array_equal(trainer.theta, loaded.theta)
    assert loaded.history["lr"] == trainer.history["lr"]


@dataclass(frozen=True)
class Lift(bp.Layer):
    """y = x + p, with options of every kind that a file must hold, one buffer and one scalar."""

    pair: tuple[int, float] = (1, 0.5)
    name: str = "lift"
    inner: bp.Layer | None = None

    def init(self, rng: bp.Rng, in_shape: tuple[int, ...]) -> dict[str, Any]:
        return {"p": rng.full((), self.pair[1]), "seen": bp.Leaf(rng.full((2,), 7.0), trainable=False)}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return x + p["p"], None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {"p": run.xp.sum(dy)}


EVERY = bp.Sequential(
    bp.Flatten(), bp.Dense(5, bp.LeakyReLU(0.2)), bp.BatchNorm(0.5, 1e-3),
    bp.Residual(bp.Sequential(bp.Dense(5, "gelu_tanh", bias=False), bp.Dropout(0.3))),
    bp.GELU(), bp.GELU(approximate=True), bp.ELU(0.7), bp.Softplus(), bp.SiLU(), bp.Tanh(), bp.Sigmoid(), bp.ReLU(),
    bp.Identity(), bp.Softmax(), Lift((2, 0.25), "α", bp.Dense(2)), bp.Dense(1),
)  # fmt: skip


@pytest.mark.parametrize(
    "loss", [bp.MeanSquaredError(), bp.BinaryCrossEntropy(), bp.BinaryCrossEntropyWithLogits(), bp.CrossEntropy()]
)
def test_every_layer_and_loss_comes_back(loss: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((8, 2, 3)).astype("float32")
    outputs = {bp.CrossEntropy: bp.Dense(2), bp.BinaryCrossEntropy: bp.Sigmoid()}.get(type(loss), bp.Identity())
    trainer = bp.Trainer(bp.Sequential(EVERY, outputs), loss, seed=2**40).build(x)
    trainer.step(x, np.arange(8) % 2)
    trainer.save(tmp_path / "m.safetensors")
    loaded = bp.load(tmp_path / "m.safetensors")
    assert (loaded.network, loaded.loss, loaded.seed) == (trainer.network, loss, 2**40)
    assert loaded.layout == trainer.layout
    assert np.array_equal(loaded.theta, trainer.theta)
    assert np.array_equal(loaded.buffers, trainer.buffers)
    assert np.array_equal(loaded.predict(x), trainer.predict(x))


def test_metadata_is_the_users_and_is_kept(tmp_path: Path) -> None:
    x, y = data()
    notes = {"classes": ["a", "β"], "nested": {"bpnet": None, "x": [1, 2.5, True]}, "history": "mine", "": 1e300}
    trainer = trained(x, y)
    trainer.save(tmp_path / "one.safetensors", metadata=notes)
    loaded = bp.load(tmp_path / "one.safetensors")
    assert loaded.metadata == notes
    loaded.save(str(tmp_path / "two.safetensors"))
    assert bp.load(str(tmp_path / "two.safetensors")).metadata == notes
    loaded.save(tmp_path / "two.safetensors", metadata={})
    assert bp.load(tmp_path / "two.safetensors").metadata == {}


def test_a_built_network_can_be_saved_before_training(tmp_path: Path) -> None:
    x, _ = data()
    trainer = bp.Trainer(bp.Dense(3), "cross_entropy").build(x)
    trainer.save(tmp_path / "m.safetensors")
    loaded = bp.load(tmp_path / "m.safetensors")
    assert loaded.step_count == len(loaded.history) == 0
    assert np.array_equal(loaded.predict(x), trainer.predict(x))


def test_a_history_with_nan_survives(tmp_path: Path) -> None:
    trainer = trained(*data())
    trainer.history.epochs[0]["loss"] = float("nan")
    trainer.save(tmp_path / "m.safetensors")
    loss = bp.load(tmp_path / "m.safetensors").history["loss"]
    assert np.isnan(loss[0])
    assert loss[1:] == trainer.history["loss"][1:]


def test_others_can_read_the_file(saved: Path) -> None:
    trainer = bp.load(saved)
    tensors, description = contents(saved)
    assert set(tensors) == {
        *(f"parameters.{slot.name}" for slot in trainer.layout.parameters),
        "buffers.1.mean", "buffers.1.var", "optimizer.0", "optimizer.1",
        *(f"history.{name}" for name, value in trainer.history.epochs[0].items() if not isinstance(value, str)),
    }  # fmt: skip
    assert np.array_equal(tensors["parameters.2.inner.weight"], trainer.parameters["2"]["inner"]["weight"])
    assert tensors["parameters.0.weight"].shape == (6, 8)
    assert description["metadata"] == {"classes": ["a", "b", "c"]}
    assert description["network"]["layer"] == "Sequential"


# ---- the whole catalogue --------------------------------------------------------------------------------------------


def other_values(value: Any) -> Iterator[Any]:
    """Values that an option may have instead."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value + 2, 2 * value)
    elif isinstance(value, float):
        yield from (0.5 * value, value + 0.25, 0.125, 1.5, 2.0, 3.0)
    elif value is None:
        yield from (2, 0.5, "relu", (0, 1), ("0.weight",), ((0.0, 1.0),) * 12)
    elif isinstance(value, str):
        for names in (FANS, DISTRIBUTIONS, FORMS, STARTS, ("add", "multiply"), ("tanh", "he_normal", "linear", "no")):
            yield from (name for name in names if name != value)
        yield from ("mean", "sum", "max", "geometric", "own")
    elif isinstance(value, tuple) and value:
        yield from ((*value, value[-1]), value[:-1])
        for i, part in enumerate(value):
            yield from ((*value[:i], other, *value[i + 1 :]) for other in other_values(part))
    elif isinstance(value, Registered):
        yield from varied(value)


def varied(value: Any) -> list[Any]:
    """The same with another value of one option, for each option that takes one."""
    found = []
    for field in dataclasses.fields(value):
        for other in other_values(getattr(value, field.name)):
            try:
                made = rebuilt(value, field.name, other)
            except bp.errors.BpnetError:
                continue
            if made != value:
                found.append(made)
                break
    return found


def rebuilt(value: Any, name: str, other: Any) -> Any:
    options = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init} | {name: other}
    star = options.pop(value.star) if value.star else ()
    return type(value)(*star, **options)


FAMILIES = [Layer, Loss, Optimizer, Schedule, Initializer, Penalty]
OTHERS = [
    bp.Parametric("tanh"), bp.MemberScale(3, "normal", (1, 2)), bp.BatchEnsemble(3, 5, "relu", "normal", (4, 8)),
    bp.NumericEmbedding("piecewise_linear", 3, bins=((0.0, 1.0, 2.5), (-1.0, 1.0))),
    bp.CrossEntropy(class_prior=(1, 2)),
    bp.Heads(bp.Head("mse", 2), bp.Head("cross_entropy", 3, weight=0.5)), bp.Members("mse"),
    bp.Grouped("adam", {"*.bias": {"lr": 0.1}, "0.*": None, "*": bp.SGD(bp.Cosine(0.1, 9), momentum=0.5)}),
    bp.SGD(0.1, momentum=0.9, nesterov=True), bp.Muon(0.1, hidden=("1.weight",)),
    bp.Dense(3, kernel_init=bp.initializers.Orthogonal(0.5)),
]  # fmt: skip
"""Options that the walk does not find."""


def test_every_option_of_the_catalogue_comes_back() -> None:
    """Of everything that a file may describe: as it is by default, and with another value of each option."""
    seen, missed = 0, set()
    for family in FAMILIES:
        for name, example in examples(family).items():
            others = varied(example)
            for one in (example, *others):
                assert restore(json.loads(json.dumps(describe(one)))) == one
                seen += 1
            for field in dataclasses.fields(example):
                if field.init and all(getattr(o, field.name) == getattr(example, field.name) for o in others):
                    missed.add(f"{name}.{field.name}")
    for one in OTHERS:
        assert restore(json.loads(json.dumps(describe(one)))) == one
    assert seen > 400
    assert missed <= {
        "parametric_mish.inner", "parametric_selu.inner", "MemberScale.chunks", "BatchEnsemble.chunks",
        "NumericEmbedding.bins", "cross_entropy.class_prior", "sgd.nesterov",
    }  # fmt: skip


def test_every_layer_loss_and_optimizer_is_saved_and_loaded(tmp_path: Path) -> None:
    """Through files, with what they train and keep; each optimizer after a step, where a batch is all that it needs."""
    x = np.random.default_rng(0).standard_normal((6, 12)).astype("float32")
    path = tmp_path / "m.safetensors"

    def comes_back(trainer: bp.Trainer) -> None:
        trainer.save(path)
        loaded = bp.load(path)
        assert (loaded.network, loaded.loss, loaded.optimizer) == (trainer.network, trainer.loss, trainer.optimizer)
        for mine, its in zip(vectors_of(trainer), vectors_of(loaded), strict=True):
            assert mine.dtype == its.dtype
            assert np.array_equal(mine, its)

    for layer in examples(Layer).values():
        if layer.takes is None:
            comes_back(bp.Trainer(bp.Sequential(bp.Dense(12), layer, bp.Flatten(), bp.Dense(1)), "mse").build(x))
        elif isinstance(layer.takes, int):
            comes_back(bp.Trainer(bp.Sequential(layer, bp.Flatten(), bp.Dense(1)), "mse").build(x.astype("int64") % 2))
        else:
            rows = {name: x if takes is None else x.astype("int64") % 2 for name, takes in layer.takes}
            rows = tuple(rows.values()) if "0" in rows else rows
            comes_back(bp.Trainer(bp.Sequential(layer, bp.Flatten(), bp.Dense(1)), "mse").build(rows))
    for loss in examples(Loss).values():
        for network in (
            bp.Dense(1),
            bp.Dense(2),
            bp.Dense(12),
            bp.MemberDense(2, 1),
            bp.MemberDense(2, 2),
            bp.MemberDense(3, 2),
        ):
            with contextlib.suppress(bp.errors.BpnetError):
                comes_back(bp.Trainer(network, loss).build(x))
                break
        else:
            raise AssertionError(f"{loss} fits no network")
    network = bp.Sequential(bp.Dense(12, "tanh"), bp.Dense(12, "tanh"), bp.Dense(12))
    for optimizer in examples(Optimizer).values():
        trainer = bp.Trainer(network, "mse", optimizer, penalties=list(examples(Penalty).values())[:1]).build(x)
        trainer.step(x, x)
        comes_back(trainer)


def vectors_of(trainer: bp.Trainer) -> list[Any]:
    return [trainer.theta, trainer.buffers, *trainer.state]


def test_numbers_come_back_in_another_type(backend: Any, saved: Path) -> None:
    """The stored numbers, each rounded; and what is trained on is of that type."""
    there = bp.load(saved, like=backend.array(np.zeros(1)), dtype="float32")
    host = bp.load(saved)
    assert backend.dtype(there.theta) == "float32"
    assert all(backend.dtype(array) == "float32" for array in vectors_of(there))
    for mine, its in zip(vectors_of(host), vectors_of(there), strict=True):
        assert np.array_equal(mine.astype("float32"), backend.host(its))
    like = backend.array(np.zeros(1))
    assert backend.dtype(bp.load(saved, dtype=backend.seam.xp.float64, like=like).theta) == "float64"


def test_types_that_no_model_has_and_numbers_that_do_not_fit(saved: Path, tmp_path: Path) -> None:
    for dtype in ("float16", "int32", "bfloat16", "", 3, int, [], np.float16, "float"):
        with pytest.raises(bp.errors.OptionError, match=r"dtype is .*; expected 'float32' or 'float64'"):
            bp.load(saved, dtype=dtype)
    trainer = bp.load(saved)
    trainer.theta[0] = 1e300
    trainer.theta[1] = -np.inf  # may be meant, as a bias is
    trainer.save(tmp_path / "m")
    assert bp.load(tmp_path / "m").theta[1] == -np.inf
    with pytest.raises(
        bp.errors.OptionError, match=r"m can't be loaded as float32: it holds 1e\+300, which is too large"
    ):
        bp.load(tmp_path / "m", dtype="float32")


def test_nan_is_neither_saved_nor_loaded(saved: Path, tmp_path: Path) -> None:
    for which, name in ((0, "the parameter 0.weight"), (1, "the buffer 1.mean"), (2, "array 0 of the state of AdamW")):
        trainer = bp.load(saved)
        vectors_of(trainer)[which][0] = np.nan
        with pytest.raises(bp.errors.DivergedError, match=f"{name}.* has NaN, which no file keeps"):
            trainer.save(tmp_path / "m")
        assert not list(tmp_path.iterdir())
    tensors, description = contents(saved)
    tensors["optimizer.1"][3] = np.nan
    refused(write(tmp_path / "m", tensors, description), r"array 1 of the state of AdamW.* has NaN$")


def test_the_same_trainer_gives_the_same_bytes_as_the_package_writes(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    trainer = bp.load(saved)
    trainer.save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == whole
    arrays = {
        "i": np.arange(3),
        "flag": np.array([True]),
        "empty": np.zeros((0, 2), "float32"),
        "α\n\x1f": np.array(1.5),
    }
    checkpoint = dataclasses.replace(trainer._checkpoint({"x": "β"}), training={"place": [1, 2]}, arrays=arrays)
    write_checkpoint(tmp_path / "m", checkpoint)
    whole = (tmp_path / "m").read_bytes()
    assert save(load(whole), {"bpnet": json.loads(split(whole)[0])["__metadata__"]["bpnet"]}) == whole
    found = read_checkpoint(tmp_path / "m")
    assert found.training == {"place": [1, 2]}
    assert {name: (a.dtype, a.tolist()) for name, a in found.arrays.items()} == {
        name: (a.dtype, a.tolist()) for name, a in arrays.items()
    }


def test_a_history_of_many_epochs_of_all_kinds(tmp_path: Path) -> None:
    """Arrays where all are numbers; and what only some epochs have, or is no number, comes back too."""
    trainer = trained(*data())
    first = trainer.history.epochs[0]
    trainer.history.epochs = [
        first | {"epoch": i, "note": "a" if i < 10_000 else "b"} | ({"own": [i]} if i % 8_000 == 7 else {"mixed": 1})
        for i in range(20_000)
    ]
    trainer.history.epochs[5] |= {"mixed": None, "loss": float("inf")}
    trainer.history.epochs[6] |= {"mixed": 0.5}
    trainer.save(tmp_path / "m")
    loaded = bp.load(tmp_path / "m")
    assert len(loaded.history) == 20_000
    assert loaded.history.epochs == trainer.history.epochs
    assert [type(record.get("mixed")) for record in loaded.history.epochs[5:8]] == [type(None), float, type(None)]
    assert len(contents(tmp_path / "m")[1]["history"]["columns"]["note"]["values"]) == 2


def test_arrays_among_the_settings_of_a_table_come_back(tmp_path: Path) -> None:
    """As those that a calibration keeps, one number a row; and settings are not taken for them."""
    x, y = data()
    model = bp.train_table(x, y, hidden=(4,), epochs=1, progress=False).calibrate(x, y)
    scores = model.settings["calibration"]
    model.settings = {**model.settings, "own": {"array": "table.0", "deeper": {"more": np.arange(3)}}}
    model.save(tmp_path / "m")
    found = bp.load(tmp_path / "m").settings
    assert np.array_equal(found["calibration"], scores)
    assert found["own"]["array"] == "table.0"
    assert found["own"]["deeper"]["more"].tolist() == [0, 1, 2]
    model.settings = {"own": {"array of the file": "table.0"}}
    with pytest.raises(bp.errors.ArgumentError, match="which files use themselves"):
        model.save(tmp_path / "m")


def test_a_layer_of_ones_own_comes_back_by_its_name(saved: Path, tmp_path: Path) -> None:
    x, _ = data()
    trainer = bp.Trainer(bp.Sequential(Lift((2, 0.25), "α", bp.Dense(2)), bp.Dense(3)), "cross_entropy").build(x)
    trainer.save(tmp_path / "m")
    assert bp.load(tmp_path / "m").network == trainer.network
    tensors, description = contents(tmp_path / "m")
    description["network"]["layers"][0]["layer"] = "Lifted"
    refused(
        write(tmp_path / "m", tensors, description), "'Lifted', which is not defined: import the module that defines"
    )


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("moment", ["replace", "fsync", "write"])
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_write_leaves_what_was_there(
    kind: type[BaseException], moment: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data()
    path = tmp_path / "model.safetensors"
    trainer = trained(x, y)
    if before:
        trainer.save(path)
    theta = trainer.theta.copy()
    trainer.fit(x, y, progress=False)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if moment == "write":
            args[0].write(b"half of it")
        raise kind("no space left on device")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr("bpnet.files.model.write", interrupted)
        else:
            patch.setattr(os, moment, interrupted)
        with pytest.raises(kind):
            trainer.save(path)
    assert [p.name for p in tmp_path.iterdir()] == (["model.safetensors"] if before else [])
    if before:
        assert np.array_equal(bp.load(path).theta, theta)
    trainer.save(path)
    assert np.array_equal(bp.load(path).theta, trainer.theta)


def test_a_save_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("something else")
    trained(*data()).save(path)
    assert bp.load(path).step_count == 6
    assert len(list(tmp_path.iterdir())) == 1


# ---- files that are no models ---------------------------------------------------------------------------------------


def refused(path: Path, pattern: str = ".") -> None:
    with pytest.raises(bp.errors.FileFormatError, match=pattern) as caught:
        bp.load(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value), "which file?"


def test_files_that_are_no_models(saved: Path, tmp_path: Path) -> None:
    """Headers that are no such, arrays that are not where they are said to be, files of other programs."""
    path = tmp_path / "m.safetensors"
    for name, data in of_bytes(saved.read_bytes()):
        path.write_bytes(data)
        try:
            refused(path)
        except BaseException as error:
            error.add_note(name)
            raise
    path.write_bytes(b"a,b\n1,2\n")
    refused(path, "is not a .safetensors file")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.safetensors"
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        bp.load(missing)
    refused(tmp_path)


def test_a_file_cut_short_anywhere(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    places = {*range(12), *range(12, len(whole), 97), len(whole) - 1}
    for place in sorted(places):
        path.write_bytes(whole[:place])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)
    path.write_bytes(whole)
    assert bp.load(path).step_count == 6


def test_arrays_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros((2, 2))}, path)
    refused(path, "a .safetensors file, but not a bpnet model")
    save_file({"weight": np.zeros((2, 2))}, path, metadata={"format": "pt"})
    refused(path, "a .safetensors file, but not a bpnet model")
    for text in ("", "{", "3", "[]", "null", '"x"', "{}", '{"format": 1}', "[" * 20_000, '{"format":' * 20_000):
        refused(write(path, {"weight": np.zeros((2, 2))}, text))


def test_another_format_is_named(saved: Path, tmp_path: Path) -> None:
    tensors, description = contents(saved)
    newer = r"newer bpnet \(format 3, this reads 2\)"
    refused(write(tmp_path / "m", tensors, {**description, "format": 3}), newer)
    refused(write(tmp_path / "m", tensors, json.dumps({**description, "format": 3})), newer)  # with no hash
    older = write(tmp_path / "m", tensors, json.dumps({**description, "format": 1}))
    refused(older, r"older bpnet \(format 1, this reads 2\)")
    for nonsense in (-1, 0.5, "1", None, [], True, float("nan"), float("inf"), 10**30):
        refused(write(tmp_path / "m", tensors, {**description, "format": nonsense}))


TENSORS: list[tuple[Any, str]] = [
    (lambda t: t.pop("parameters.0.weight"), r"array 'parameters\.0\.weight' is missing"),
    (lambda t: t.pop("buffers.1.var"), r"array 'buffers\.1\.var' is missing"),
    (lambda t: t.pop("optimizer.0"), "optimizer"),
    (lambda t: t.pop("optimizer.1"), "optimizer"),
    (lambda t: t.update({"optimizer.2": t["optimizer.1"]}), "optimizer"),
    (lambda t: t.update({"optimizer.x": t["optimizer.1"]}), "optimizer"),
    (lambda t: t.update({"optimizer.1": t["optimizer.1"][:-1]}), "optimizer"),
    (lambda t: t.update({"optimizer.1": t["optimizer.1"][:, None]}), "optimizer"),
    (lambda t: t.update({"optimizer.1": t["optimizer.1"].astype("int64")}), "optimizer"),
    (lambda t: t.update({"parameters.0.weight": t["parameters.0.weight"].T.copy()}), r"\(8, 6\); expected \(6, 8\)"),
    (lambda t: t.update({"parameters.0.bias": np.zeros(())}), r"\(\); expected \(8,\)"),
    (lambda t: t.update({"parameters.0.bias": np.zeros((8, 1))}), r"\(8, 1\); expected \(8,\)"),
    (lambda t: t.update({"parameters.0.bias": np.zeros(8, "int64")}), "holds int64 values, but the first parameter"),
    (lambda t: t.update({"parameters.0.bias": np.zeros(8, "float16")}), "'F16'; expected U64, .*F32"),
    (lambda t: t.update({"buffers.1.mean": np.zeros(8, "bool")}), "holds bool values, but"),
    (lambda t: t.update({"parameters.9.weight": np.zeros(3)}), r"parameters\.9\.weight"),
]


@pytest.mark.parametrize(("change", "pattern"), TENSORS, ids=range(len(TENSORS)))
def test_arrays_that_do_not_fit_the_description(change: Any, pattern: str, saved: Path, tmp_path: Path) -> None:
    tensors, description = contents(saved)
    change(tensors)
    refused(write(tmp_path / "m.safetensors", tensors, description), pattern)


def test_number_types_that_numpy_has_not(saved: Path, tmp_path: Path) -> None:
    """bfloat16 and 8-bit floats are legal in a .safetensors file."""
    entries, data = split(unsealed(saved.read_bytes()))
    for kind in ("BF16", "F8_E4M3"):
        changed = json.loads(entries)
        changed["parameters.3.bias"]["dtype"] = kind
        start, stop = changed["parameters.3.bias"]["data_offsets"]
        changed["parameters.3.bias"]["shape"] = [(stop - start) // (2 if kind == "BF16" else 1)]
        (tmp_path / "m").write_bytes(sealed(head(changed, data)))
        refused(tmp_path / "m", f"holds '{kind}'; expected U64, ")


def test_a_layer_that_is_not_defined_here(saved: Path, tmp_path: Path) -> None:
    tensors, description = contents(saved)
    description["network"]["layers"][0]["layer"] = "Attention"
    path = write(tmp_path / "m.safetensors", tensors, description)
    refused(path, "layer 'Attention', which is not defined: import the module that defines it")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything within a JSON value."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


NASTY = [
    None, True, False, 0, -1, 1, 2, 3.7, -0.5, 10**30, -(10**400), 1e308, float("inf"), float("nan"), "", "relu",
    "x" * 5000, [], [[]], [-1], [0], [6, 6], [10**12, 10**12], ["a"], [["a", 1]], {}, {"": 1}, {"__class__": "x"},
    {"layer": "Dense"}, {"layer": "Dense", "units": 10**9}, {"layer": "Dense", "units": 3, "nonsense": 1},
    {"layer": None}, {"layer": ["Dense"]}, {"layer": "Layer"}, {"layer": "Composite"}, {"layer": "Activation"},
    {"layer": "ReLU"}, [{"layer": "ReLU"}], {"layer": "Sequential"}, {"layer": "Sequential", "layers": 3},
    {"layer": "Sequential", "layers": {"layer": "ReLU"}}, {"loss": "Loss"}, {"loss": "CrossEntropy"},
    {"optimizer": "Optimizer"}, {"optimizer": "SGD", "lr": {"schedule": "Cosine", "lr": 1, "steps": 0}},
    {"schedule": "Constant", "lr": 1},
]  # fmt: skip


def works(path: Path) -> bool:
    """Load what must be either refused or good for everything a trainer does."""
    try:
        trainer = bp.load(path)
    except bp.errors.FileFormatError:
        return False
    x, y = data()
    assert trainer.predict(x).shape == (48, 3)
    trainer.evaluate(x, y)
    assert len(repr(trainer.history).splitlines()) == 1 + len(trainer.history)
    try:
        trainer.fit(x, y, batch_size=48, progress=False)
    except bp.errors.DivergedError:
        pass  # a learning rate of 1e308 is legal
    else:
        trainer.save(path)
        bp.load(path)
    return True


def test_no_change_to_the_description_breaks_the_reader(saved: Path, tmp_path: Path) -> None:
    """Every part of it in turn left out, and replaced by some of many things that do not belong there.

    The soak suite's mutations are a thousand times as many.
    """
    tensors, description = contents(saved)
    path = tmp_path / "m.safetensors"
    good, seen = 0, 0
    for number, place in enumerate(list(places(description))):
        for nasty in (*NASTY[number % 4 :: 4], "leave out"):
            changed = copy.deepcopy(description)
            parent = changed
            for key in place[:-1]:
                parent = parent[key]
            if nasty == "leave out":
                del parent[place[-1]]
            else:
                parent[place[-1]] = nasty
            try:
                good += works(write(path, tensors, changed))
            except BaseException as error:
                error.add_note(f"{place} = {nasty!r:.60}")
                raise
            seen += 1
    assert seen > 600
    assert 0 < good < seen / 2


@pytest.mark.parametrize("right", [False, True])
def test_no_change_to_the_bytes_breaks_the_reader(right: bool, saved: Path, tmp_path: Path) -> None:
    """Neither with the hash of what was written, nor with that of the changed bytes."""
    whole = saved.read_bytes()
    length = 8 + len(split(whole)[0])
    chance = random.Random(0)
    path = tmp_path / "m.safetensors"
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.randrange(length) if chance.random() < 0.9 else chance.randrange(len(whole))
            changed[place] = chance.choice((chance.randrange(256), 0, 32, 34, 44, 48, 57, 91, 123, 125))
        if changed == whole:
            continue
        if right:
            changed = sealed(unsealed(bytes(changed)))
        path.write_bytes(changed)
        try:
            bp.load(path)
        except bp.errors.FileFormatError as error:
            assert str(path) in str(error)  # noqa: PT017 - an exception is allowed, not expected
        else:
            assert right


def test_every_single_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    bp.Trainer(bp.Dense(1), "mse", "sgd").build(np.zeros((1, 1), "float32")).save(path)
    whole = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for place in range(len(whole)):
            for changed in (whole[place] ^ 1 << bit for bit in range(8)):
                file.seek(place)
                file.write(bytes([changed]))
                with pytest.raises(bp.errors.FileFormatError):
                    bp.load(path)
            file.seek(place)
            file.write(whole[place : place + 1])
    bp.load(path)


def test_a_file_that_lost_its_hash(saved: Path, tmp_path: Path) -> None:
    tensors, description = contents(saved)
    path = write(tmp_path / "m.safetensors", tensors, '{"format":2,' + json.dumps(description)[1:])
    refused(path, "damaged: it has no SHA-256 hash")
    whole = saved.read_bytes()
    path.write_bytes(unsealed(whole))
    refused(path, "damaged: its content does not match its SHA-256 hash")
    path.write_bytes(sealed(unsealed(whole)))
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(path, "damaged: its content does not match its SHA-256 hash")


def test_a_model_too_large_for_the_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("bpnet.files.tensors._parts", full)
    with pytest.raises(bp.errors.OutOfMemoryError, match=r"model\.safetensors: the model does not fit in memory"):
        bp.load(saved)


def test_what_a_file_says_commands_no_terminal(saved: Path, tmp_path: Path) -> None:
    tensors, description = contents(saved)
    evil = "\x1b]0;title\x07\u202e\x9b31m"

    def shown(change: Any) -> None:
        changed = copy.deepcopy(description)
        change(changed)
        with pytest.raises(bp.errors.FileFormatError) as caught:
            bp.load(write(tmp_path / "m", tensors, changed))
        said = "".join(traceback.format_exception(caught.value))
        assert all(c.isprintable() or c == "\n" for c in said), ascii(said)
        assert "x1b" in said
        assert len(str(caught.value)) < 2_000

    shown(lambda d: d.update(network={evil: 1}))
    shown(lambda d: d.update(network={"layer": evil}))
    shown(lambda d: d.update(network={"layer": "Dense", "units": 3, evil: 1}))
    shown(lambda d: d.update(network={"layer": "Dense", "units": evil}))
    shown(lambda d: d.update(network={"layer": "Dense", "units": 3, "activation": evil}))
    shown(lambda d: d.update(precision=evil))
    shown(lambda d: d.update(seed=evil))
    shown(lambda d: d.update(seed=evil * 10_000))
    tensors[evil] = np.zeros(1)
    shown(lambda _: None)
    (tmp_path / "m").write_bytes(head({evil: {"dtype": evil, "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))
    refused(tmp_path / "m")


# ---- places that are no files ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        refused(path, "this is no ordinary file")
        with pytest.raises(bp.errors.PathError, match="is no ordinary file, so it is left alone"):
            bp.Trainer(bp.Dense(1), "mse").build(np.zeros((1, 1))).save(path)


class Named:
    """Something that stands for a path."""

    def __init__(self, name: Any) -> None:
        self.name = name

    def __fspath__(self) -> Any:
        return self.name

    def __repr__(self) -> str:
        return f"Named({self.name!r})"


@pytest.mark.parametrize(
    "path", [None, 3, True, b"model", [], "", "a\0b", "\ud800", Named(b"model"), Named(3)], ids=repr
)
def test_paths_that_are_none(path: Any, saved: Path) -> None:
    trainer = bp.load(Named(str(saved)))
    for call in (trainer.save, bp.load):
        with pytest.raises(bp.errors.ArgumentError, match=r"path is .*; expected the name of a file"):
            call(path)


def test_places_that_can_not_be_read_or_written(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bp.load(saved)

    def refuses(call: Any, path: Path, kind: type[OSError]) -> None:
        with pytest.raises(kind, match=re.escape(str(path)[:100])) as caught:
            call(path)
        assert isinstance(caught.value, bp.errors.PathError)

    refuses(trainer.save, tmp_path / "none" / "model", FileNotFoundError)
    refuses(trainer.save, saved / "model", OSError)
    refuses(bp.load, saved / "model", OSError)
    refuses(trainer.save, tmp_path / ("x" * 5000), OSError)
    refuses(bp.load, tmp_path / ("x" * 5000), OSError)
    refuses(trainer.save, tmp_path, IsADirectoryError)

    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    refuses(trainer.save, tmp_path / "model", PermissionError)
    refuses(bp.load, saved, PermissionError)


@pytest.mark.parametrize(
    "device", ["", 0, False, [], b"numpy", "numpy:" + "9" * 5000, "numpy:-1", "numpy:1", "cuda:99"]
)
def test_devices_that_are_none(device: Any, saved: Path) -> None:
    for call in (lambda: bp.load(saved, device=device), lambda: bp.Trainer(bp.Dense(1), "mse", device=device)):
        with pytest.raises(bp.errors.BpnetError, match=r"device|needs CuPy"):
            call()


def test_metadata_that_no_file_can_hold(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bp.load(saved)
    endless: dict[str, Any] = {}
    endless["again"] = endless
    for metadata in (endless, {"digits": 10**5000}, {"x": {1, 2}}, {1: 2}, [1]):
        with pytest.raises(bp.errors.ArgumentError, match="metadata"):
            trainer.save(tmp_path / "m", metadata=metadata)  # type: ignore[arg-type]
    monkeypatch.setattr("bpnet.files.tensors.LARGEST_HEADER", 5000)
    with pytest.raises(bp.errors.ArgumentError, match=r"metadata, settings .* take [0-9,]+ bytes"):
        trainer.save(tmp_path / "m", metadata={"notes": "x" * 5000})
    assert not list(tmp_path.iterdir())


# ---- several at once ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that is being read")
def test_threads_that_save_and_load_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    trainers = [bp.Trainer(bp.Dense(50), "mse", seed=seed).build(np.zeros((1, 40), "float32")) for seed in range(3)]
    sound = {trainer.theta.tobytes() for trainer in trainers}
    trainers[0].save(path)
    faults: list[BaseException] = []

    def again(call: Any) -> None:
        try:
            for _ in range(40):
                call()
        except BaseException as error:
            faults.append(error)

    def check() -> None:
        assert bp.load(path).theta.tobytes() in sound

    threads = [
        threading.Thread(target=again, args=[call]) for call in (check, *(partial(t.save, path) for t in trainers))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that is being read")
def test_a_file_rewritten_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    trainer = bp.Trainer(bp.Dense(300), "mse").build(np.zeros((1, 300), "float32"))
    trainer.save(path)
    whole, ended = path.read_bytes(), threading.Event()

    def rewrite() -> None:
        while not ended.wait(0.001):
            path.write_bytes(whole)  # which cuts the file to nothing first

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(200):
            with contextlib.suppress(bp.errors.FileFormatError):
                assert np.array_equal(bp.load(path).theta, trainer.theta)
    finally:
        ended.set()
        thread.join()
    assert np.array_equal(bp.load(path).theta, trainer.theta)


def test_a_training_goes_on_while_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hashed is what is written."""
    x, y = data()
    trainer = bp.Trainer(NETWORK, "cross_entropy").build(x)
    trainer.step(x, y)
    theta, path = trainer.theta.copy(), tmp_path / "m.safetensors"

    def meanwhile(*parts: Any) -> None:
        trainer.theta[...] = 0.0
        write_tensors(*parts)

    monkeypatch.setattr("bpnet.files.model.write", meanwhile)
    trainer.save(path)
    assert np.array_equal(bp.load(path).theta, theta)


def test_a_new_process_loads_what_it_never_imported(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((20, 6), dtype="float32")
    layers = (bp.Dense(4, "gelu_tanh"), bp.BatchNorm(), bp.Residual(bp.Dense(4, bp.LeakyReLU(0.2))), bp.Dropout(0.1))
    network = bp.Sequential(bp.Flatten(), *layers, bp.SiLU(), bp.Dense(1))
    rate = bp.WarmUp(bp.Cosine(1e-3, steps=9), steps=2)
    trainer = bp.Trainer(network, "binary_cross_entropy_with_logits", bp.AdamW(rate))
    trainer.fit(x, (x[:, 0] > 0.5).astype("int8"), progress=False)
    trainer.save(tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy, bpnet as bp\n"
        "folder = sys.argv[1]\n"
        "trainer = bp.load(folder + '/m.safetensors')\n"
        "numpy.save(folder + '/out.npy', trainer.predict(numpy.load(folder + '/x.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), trainer.predict(x))
