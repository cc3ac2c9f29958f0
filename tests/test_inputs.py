"""Networks that take several arrays, and whole numbers by an embedding: the same on every library, and clear errors."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.world import World

import bpnet as bp
from bpnet import trainer as trainers
from bpnet.data import loader
from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    BpnetError,
    DataError,
    DTypeError,
    GradientError,
    OptionError,
    ShapeError,
)

NET = bp.Sequential(
    bp.Inputs(
        numbers=bp.Standardize(1.0, 2.0),
        city=bp.Embedding(3, 2),
        codes=bp.Sequential(bp.Embedding(70, 3), bp.Flatten(), bp.BatchNorm(), bp.Dropout(0.2), bp.Dense(4, "tanh")),
    ),
    bp.Dense(5, "tanh"),
    bp.Dense(2),
)
CALM = bp.Sequential(
    bp.Inputs(numbers="identity", city=bp.Embedding(3, 2), codes=bp.Sequential(bp.Embedding(70, 3), bp.Flatten())),
    bp.Dense(5, "tanh"),
    bp.Dense(2),
)
"""The same without what is random or couples rows."""


def data(rows: int = 40, dtype: str = "float64", seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Numbers, a code for each row, and two columns of others; and targets. Codes occur many times, or never."""
    rng = np.random.default_rng(seed)
    numbers, targets = (rng.standard_normal((rows, n)).astype(dtype) for n in (3, 2))
    codes = rng.integers(0, 70, (rows, 2), "int32")
    return {"numbers": numbers, "city": rng.integers(0, 3, rows), "codes": codes}, targets


def on(lib: Any, x: dict[str, Any]) -> dict[str, Any]:
    return {name: lib.array(a) for name, a in x.items()}


def compiled_on_jax(lib: Any) -> None:
    """Skip where JAX would compile every operation by itself."""
    if lib.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")


# ---- derivatives ----------------------------------------------------------------------------------------------------


def test_derivatives_by_finite_differences() -> None:
    x, y = data(12)
    for layer, rows in (
        (bp.Embedding(3, 2), x["city"]),
        (bp.Embedding(70, 3), x["codes"]),
        (bp.Inputs(bp.Dense(3, "tanh"), "identity"), (x["numbers"], y)),
        (bp.Inputs(("Land area", bp.Dense(3)), city=bp.Embedding(3, 2)), {"Land area": y, "city": x["city"]}),
        (bp.Inputs(numbers=bp.Dense(3)), {"numbers": y}),
        (NET, x),
    ):
        assert bp.check_gradients(layer, rows, tolerance=1e-7).ok
    assert bp.check_gradients(bp.Parallel(bp.Dense(3)), y, tolerance=1e-7).ok
    assert bp.check_gradients(NET, x, y, loss="mse", tolerance=1e-7).ok


def test_a_wrong_derivative_of_one_input_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bp.Inputs.backward

    def backward(*args: Any) -> Any:
        dx, grads = right(*args)
        return dx and (dx[0], 1.01 * dx[1]), grads

    monkeypatch.setattr(bp.Inputs, "backward", backward)
    _, y = data(6)
    with pytest.raises(GradientError) as error:
        bp.check_gradients(bp.Inputs("identity", "tanh"), (y, y))
    assert re.search(r"ok +x\[0\]", str(error.value))
    assert re.search(r"WRONG +x\[1\]", str(error.value))


def test_rows_of_an_embedding_start_with_a_length_of_about_1() -> None:
    table = np.asarray(bp.Embedding(4000, 16).init(bp.Rng(0), ())["table"].value)
    assert np.std(table) == pytest.approx(0.25, rel=0.02)
    assert abs(np.mean(table)) < 0.01


def test_branches_draw_different_masks() -> None:
    x, seam = np.ones((20, 30)), bp.backends.get("numpy")
    for layer, rows in ((bp.Inputs(bp.Dropout(), bp.Dropout()), (x, x)), (bp.Parallel(bp.Dropout(), bp.Dropout()), x)):
        y, _ = layer.forward(bp.Run(seam, True, (0, 1, 0)), {"0": {}, "1": {}}, rows)
        assert np.mean(y[:, :30] != y[:, 30:]) > 0.4


def test_an_embedding_is_pytorchs(backend: Any) -> None:
    """Values and gradient to 1e-12, of numbers that occur many times and of others that never do."""
    compiled_on_jax(backend)
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    for entries, index in ((70, rng.integers(0, 9, (300, 2))), (3, rng.integers(0, 2, 40, "int32"))):
        table, dy = rng.standard_normal((entries, 5)), rng.standard_normal((*index.shape, 5))

        def both(table: Any, index: Any, dy: Any, entries: int = entries) -> Any:
            layer, run, p = bp.Embedding(entries, 5), bp.Run(backend.seam, True, (0, 1, 0)), {"table": table}
            y, cache = layer.forward(run, p, index)
            return y, layer.backward(run, p, cache, dy)[1]["table"]

        with backend.seam.session():
            found = backend.call(both, *map(backend.array, (table, index, dy)))
        weight = torch.tensor(table, requires_grad=True)
        y = torch.nn.functional.embedding(torch.tensor(index), weight)
        y.backward(torch.tensor(dy))
        for mine, theirs in zip(found, (y.detach(), weight.grad), strict=True):
            backend.close(mine, theirs.numpy(), rtol=1e-12)


def test_sums_of_many_rows_keep_their_digits(backend: Any) -> None:
    """One after the other they would lose three of float32's seven."""
    compiled_on_jax(backend)
    rows, index = np.full((20_000, 1), 0.1, "float32"), np.arange(20_000) % 2
    add = lambda *given: bp.Run(backend.seam, True, (0, 1, 0)).scatter_add(*given)  # noqa: E731
    with backend.seam.session():
        total = backend.call(add, *map(backend.array, (np.zeros((2, 1), "float32"), index, rows)))
    np.testing.assert_allclose(backend.host(total), 10_000 * float(np.float32(0.1)), rtol=4e-6)


# ---- training -------------------------------------------------------------------------------------------------------


def trained(lib: Any, network: bp.Layer = CALM, dtype: str = "float64", **options: Any) -> tuple[bp.Trainer, Any, Any]:
    x, y = data(dtype=dtype)
    x, y = on(lib, x), lib.array(y)
    trainer = bp.Trainer(network, "mse", bp.SGD(0.1, momentum=0.9), **options)
    trainer.fit(x, y, epochs=2, batch_size=16, validation=(x, y), progress=False)
    return trainer, x, y


def test_same_on_every_library(backend: Any, library: Callable[[str], Any]) -> None:
    """Shuffled, in batches of which the last is smaller, with validation; what is used of it, too."""
    compiled_on_jax(backend)
    trainer, x, y = trained(backend)
    numpy = library("numpy")
    expected, host_x, host_y = trained(numpy, compile=False)
    backend.close(trainer.theta, numpy.host(expected.theta), rtol=1e-12)
    backend.close(trainer.predict(x), numpy.host(expected.predict(host_x)), rtol=1e-12)
    backend.close(trainer.predict(x, batch_size=20), numpy.host(expected.predict(host_x)), rtol=1e-12)
    assert trainer.evaluate(x, y)["loss"] == pytest.approx(expected.evaluate(host_x, host_y)["loss"], rel=1e-12)
    assert trainer.history["val_loss"] == pytest.approx(expected.history["val_loss"], rel=1e-12)
    np.testing.assert_allclose(float(trainer.step(x, y)), float(expected.step(host_x, host_y)), rtol=1e-12)
    np.testing.assert_allclose(float(trainer.step(x, y, check=False)), float(expected.step(host_x, host_y)), rtol=1e-12)


def test_branches_of_one_array_of_whole_numbers() -> None:
    both = bp.Parallel(bp.Embedding(4, 2), bp.Embedding(3, 1))
    assert bp.check_gradients(both, np.arange(12) % 3, tolerance=1e-7).ok
    with pytest.raises(DataError, match="x has 3 in row 3, but"):
        bp.check_gradients(both, np.arange(12) % 4)
    assert not both.updates_buffers  # else the batch would never be cut


def test_one_array_of_whole_numbers(backend: Any, uncompiled: Any) -> None:
    """Each library gives them to the layer as they come, also where the same batch is trained on again and again."""
    compiled_on_jax(backend)
    x, y = data(dtype="float32")
    x = {kind: backend.array(x["codes"].astype(kind)) for kind in ("int32", "int64", "uint8")}
    y = backend.array(y)
    network = bp.Sequential(bp.Embedding(70, 3), bp.Flatten(), bp.Dense(2))
    outputs = []
    for codes in x.values():
        trainer = bp.Trainer(network, "mse").build(codes)
        for _ in range(3):
            trainer.step(codes, y)
        outputs.append(backend.host(trainer.predict(codes)))
        assert backend.dtype(trainer.theta) == "float32"
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert not uncompiled()


@pytest.mark.parametrize("compiled", [True, False])
def test_threads_change_no_bit(compiled: bool) -> None:
    """Of several row blocks, and tables that several threads add rows up to."""
    if compiled:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    x, y = data(9000, "float32")
    x["codes"] = np.random.default_rng(2).integers(0, 5000, (9000, 2))
    network = bp.Sequential(
        bp.Inputs(city=bp.Embedding(3, 2), codes=bp.Sequential(bp.Embedding(5000, 4), bp.Flatten())), bp.Dense(2)
    )
    x = {"city": x["city"], "codes": x["codes"]}
    found = []
    for threads in (1, 2):
        trainer = bp.Trainer(network, "mse", bp.SGD(0.1), threads=threads, compile=compiled).build(x)
        trainer.step(x, y)
        found.append(trainer.theta)
    np.testing.assert_array_equal(*found)
    with bp.reference():
        exact, grad = bp.value_and_grad(network, "mse", trainer.theta, x, y)
    assert exact < float(trainer.step(x, y)) * 1.001
    assert np.isfinite(grad).all()


def test_micro_batches_and_definitions_give_the_same(library: Callable[[str], Any]) -> None:
    lib = library("numpy")
    expected = trained(lib, compile=False)[0].theta
    lib.close(trained(lib, micro_batch=5, compile=False)[0].theta, expected, rtol=1e-12)
    with bp.reference():
        lib.close(trained(lib)[0].theta, expected, rtol=1e-12)


def test_a_saved_one_comes_back_and_goes_on(tmp_path: Any, library: Callable[[str], Any]) -> None:
    trainer, x, y = trained(library("numpy"), NET)
    snapshot = trainer.snapshot()
    trainer.save(tmp_path / "model")
    loaded = bp.load(tmp_path / "model")
    assert (loaded.network, loaded.layout.in_shape) == (trainer.network, trainer.layout.in_shape)
    assert dict(loaded.layout.in_shape) == {"numbers": (3,), "city": (), "codes": (2,)}
    np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))
    assert loaded.step(x, y) == trainer.step(x, y)
    trainer.restore(snapshot)
    np.testing.assert_array_equal(trainer.predict(x), bp.load(tmp_path / "model").predict(x))
    assert eval(repr(NET), vars(bp)) == NET


def test_the_pure_core() -> None:
    x, y = data()
    layout = bp.layout_of(CALM, {name: a.shape[1:] for name, a in x.items()})
    theta, _ = layout.start(0)
    value, grad = bp.value_and_grad(CALM, "mse", theta, x, y)
    trainer = bp.Trainer(CALM, "mse", bp.SGD(1.0)).build(x)
    assert float(trainer.step(x, y)) == value
    np.testing.assert_allclose(theta - trainer.theta, grad, atol=1e-12)


def test_what_is_compiled_is_explained_by_the_names_of_the_arrays() -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    text = bp.Trainer(CALM, "mse", compile=True).explain(*data())
    assert "row gather of 40 of 3 rows: theta" in text
    assert "by x['city']" in text
    assert "row scatter-add of 80 rows to 70" in text


def test_a_batch_like_the_last_is_not_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    prepare = trainers.prepare
    monkeypatch.setattr(trainers, "prepare", lambda *args, **options: seen.append(args) or prepare(*args, **options))
    found = []
    for kinds in (1, 2):
        trainer = bp.Trainer(CALM, "mse")
        seen.clear()
        for step in range(4):
            x, y = data(seed=step)
            trainer.step(dict(sorted(x.items(), reverse=bool(step % kinds))), y, check=step > 2)
        found.append(trainer.theta)
        assert len(seen) == (1 if kinds == 1 else 4)
    np.testing.assert_array_equal(*found)
    pair = bp.Trainer(bp.Sequential(bp.Inputs("identity", bp.Embedding(3, 2)), bp.Dense(2)), "mse")
    seen.clear()
    for seed in range(3):
        x, y = data(seed=seed)
        pair.step((x["numbers"], x["city"]), y)
    assert len(seen) == 1


def test_branches_without_names_take_a_tuple() -> None:
    x, y = data()
    network = bp.Sequential(bp.Inputs(bp.Dense(2), bp.Embedding(3, 2)), bp.Dense(2))
    by_tuple, by_name = bp.Trainer(network, "mse", seed=1), bp.Trainer(network, "mse", seed=1)
    by_tuple.fit((x["numbers"], x["city"]), y, epochs=2)
    by_name.fit({"1": x["city"], "0": x["numbers"]}, y, epochs=2)
    np.testing.assert_array_equal(by_tuple.theta, by_name.theta)


def test_a_shared_embedding_sums_what_each_input_gives() -> None:
    x, y = data(12)
    city = bp.Shared(bp.Embedding(3, 2), "city")
    network = bp.Sequential(bp.Inputs(start=city, end=city, numbers=bp.Dense(2)), bp.Dense(2))
    rows = {"start": x["city"], "end": x["city"][::-1].copy(), "numbers": x["numbers"]}
    assert bp.check_gradients(network, rows, y, loss="mse", tolerance=1e-7).ok
    layout = bp.layout_of(network, {"start": (), "end": (), "numbers": (3,)})
    assert [slot.shape for slot in layout.parameters if "table" in slot.name] == [(3, 2)]


def test_what_goes_through_it_is_seen() -> None:
    x, y = data(12)
    summary = CALM.summary(x)
    assert [one.out_shape for one in summary.layers if one.path in ("0.city", "0.codes.0", "0")] == [
        (11,),
        (2,),
        (2, 3),
    ]
    found = bp.inspect(bp.Trainer(CALM, "mse"), x, y)
    assert found["0.codes.0"].x is x["codes"]
    assert found["0.codes.0"].dx is None
    assert found["0.numbers"].norms["x"] == pytest.approx(np.linalg.norm(x["numbers"]))
    assert found["0"].norms["x"] == pytest.approx(np.linalg.norm(x["numbers"]))
    assert str(found)


@pytest.mark.parametrize("streams", [True, False])
def test_from_the_host_to_a_device(streams: bool, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As arrays on the device; whole numbers of a byte travel as bytes."""
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0 if streams else 0.5)
    x, y = data(dtype="float32")
    x["codes"] = x["codes"].astype("uint8")
    there, here = (bp.Trainer(CALM, "mse", bp.SGD(0.1), device=device) for device in (None, "cuda"))
    there.fit({name: world.array(a) for name, a in x.items()}, world.array(y), epochs=2, batch_size=16, progress=False)
    here.fit(x, y, epochs=2, batch_size=16, progress=False)
    np.testing.assert_array_equal(*(world.cupy.asnumpy(t.theta) for t in (there, here)))
    assert type(here.predict(x)) is np.ndarray


# ---- what can't be --------------------------------------------------------------------------------------------------


def changed(**arrays: Any) -> dict[str, Any]:
    """The data with other arrays by these names, or without one where it is None."""
    return {name: a for name, a in (data()[0] | arrays).items() if a is not None}


X, Y = data()
UNFIT: dict[str, tuple[Any, type[BpnetError], str]] = {
    "one array": (X["numbers"], ArgumentError, "x is of type ndarray; expected a dict of arrays.*numbers, city, codes"),
    "a tuple": ((X["numbers"],), ArgumentError, "expected a dict of arrays"),
    "missing": (changed(city=None), ShapeError, "x lacks city: expected numbers, city, codes"),
    "unexpected": (changed(town=X["city"]), ShapeError, "x has town, which the network does not take"),
    "rows": (changed(city=X["city"][:30]), ShapeError, r"x\['numbers'\] has 40 rows, but x\['city'\] 30"),
    "columns": (changed(codes=X["codes"][:, :1]), ShapeError, r"x\['codes'\] has 1 feature, but .* built for 2"),
    "a list": (changed(city=[0] * 40), ArrayMismatchError, r"x\['city'\] is of type list"),
    "real codes": (changed(city=X["numbers"][:, 0]), DTypeError, r"x\['city'\] holds float64 values; expected whole"),
    "two types": (
        changed(numbers=X["numbers"].astype("float32")), DTypeError, r"x\['numbers'\] holds float32 values, but"
    ),
    "not finite": (
        changed(numbers=np.where(np.arange(40)[:, None] == 7, np.nan, X["numbers"])), DataError,
        r"x\['numbers'\] has NaN or infinity, first in row 7",
    ),
    "too large": (
        changed(codes=np.where(np.arange(80).reshape(40, 2) == 9, 70, X["codes"])), DataError,
        r"x\['codes'\] has 70 in row 4, but the network has entries for 0 ... 69",
    ),
    "negative": (changed(city=np.where(np.arange(40) == 5, -1, X["city"])), DataError, r"x\['city'\] has -1 in row 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_data_are_named(name: str) -> None:
    x, kind, message = UNFIT[name]
    trainer = bp.Trainer(CALM, "mse").build(X)
    trainer.step(X, Y)  # a batch of whose kind is not prepared again
    theta = trainer.theta.copy()
    for call in (trainer.fit, trainer.step, trainer.evaluate, lambda x, y: trainer.predict(x)):
        with pytest.raises(kind, match=message):
            call(x, Y)
    with pytest.raises(kind, match=re.sub("^x| x", lambda m: m[0].replace("x", r"validation\[0\]"), message[:30])):
        trainer.fit(X, Y, validation=(x, Y))
    np.testing.assert_array_equal(trainer.theta, theta)


def test_a_number_without_an_entry_is_an_error_on_every_library(backend: Any) -> None:
    """Also where a batch of the same kind has just been trained on, or predicted for."""
    compiled_on_jax(backend)
    codes = np.arange(12) % 4
    good, y = backend.array(codes), backend.array(np.zeros((12, 1)))
    trainer = bp.Trainer(bp.Sequential(bp.Embedding(4, 2), bp.Dense(1)), "mse")
    for wrong, row in ((4, 5), (-1, 6), (2**31 - 1, 0)):
        bad = backend.array(np.where(np.arange(12) == row, wrong, codes))
        trainer.step(good, y)
        trainer.predict(good)
        for call in (trainer.step, trainer.fit, trainer.evaluate, lambda x, y: trainer.predict(x)):
            with pytest.raises(DataError, match=f"x has {wrong} in row {row}, but"):
                call(bad, y)


def test_arrays_of_two_libraries(library: Callable[[str], Any]) -> None:
    strict = library("strict")
    with pytest.raises(
        ArrayMismatchError, match=r"x\['numbers'\] belongs to numpy, but x\['city'\] to array_api_strict"
    ):
        bp.Trainer(CALM, "mse").build(changed(city=strict.array(X["city"])))


def test_networks_that_can_not_be() -> None:
    for wrong in (
        lambda: bp.Inputs(),
        lambda: bp.Inputs(("a", "relu"), a="relu"),
        lambda: bp.Inputs(("a.b", "relu")),
        lambda: bp.Inputs(a=bp.Inputs("relu", "relu")),
        lambda: bp.Parallel(bp.Embedding(3, 2), bp.Dense(2)),
        lambda: bp.Embedding(0, 3),
        lambda: bp.Embedding(3, 1.5),  # type: ignore[arg-type]
    ):
        with pytest.raises(OptionError):
            wrong()
    with pytest.raises(ShapeError, match=r"give rows of other shapes: 0 \(2, 3\), 1 \(3,\); expected the same but"):
        bp.Trainer(bp.Inputs(bp.Embedding(70, 3), "identity"), "mse").build((X["codes"], X["numbers"]))
    with pytest.raises(ArgumentError, match="x is a dict, but the network takes one array"):
        bp.Trainer(bp.Dense(3), "mse").build(X)
    with pytest.raises(DTypeError, match="is given float32 values, not whole numbers: put it first"):
        bp.Trainer(bp.Sequential(bp.Dense(3), bp.Embedding(3, 2)), "mse", compile=False).fit(
            X["codes"], np.zeros((40, 3, 2))
        )
