"""The layers that take a table's columns: what they make of numbers and categories, and of what is missing."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from support.world import World

import bpnet as bp
from bpnet import trainer as trainers
from bpnet.data import loader
from bpnet.errors import ArgumentError, BpnetError, DataError, DivergedError, DTypeError, OptionError, ShapeError

nan, inf = np.nan, np.inf
KNOTS = ((0.0, 1.0, 3.0), (5.0,), (-1.0, 0.0, 0.0, 0.0, 2.0), (0.0, 0.0, 1.0, 4.0, 4.0))
"""Of four columns: simple, constant, and with knots that are equal, within and at both ends."""
ROBUST = bp.NumericInput((0.5, 1.0, 2.0, 0.0), (1.0, 2.0, 0.0, 3.0), clip=3.0, missing=(0, 3))
QUANTILES = bp.NumericInput(quantiles=KNOTS, clip=2.0, missing=(1, 2))
CODES = bp.CategoricalInput((5, 4, 7, 4, 5), (3, 0, 2, 3, 3))
NET = bp.Sequential(
    bp.TabularInput(bp.Sequential(ROBUST, bp.Dense(5, "tanh")), CODES),
    bp.Dense(4, "tanh"),
    bp.Dense(2),
)


def data(rows: int = 40, dtype: str = "float64", seed: int = 0) -> tuple[dict[str, Any], Any]:
    """A table in which a fifth of the numbers is missing, and codes are of all kinds; and targets."""
    rng = np.random.default_rng(seed)
    numbers, y = 4.0 * rng.standard_normal((rows, 4)), rng.standard_normal((rows, 2))
    numbers[rng.random((rows, 4)) < 0.2] = nan
    codes = rng.integers(-1, 8, (rows, 5), "int32")
    return {"numbers": numbers.astype(dtype), "categories": codes}, y.astype(dtype)


def on(lib: Any, x: Any) -> Any:
    return {name: lib.array(a) for name, a in x.items()} if isinstance(x, dict) else lib.array(x)


def start(layer: bp.Layer, shape: tuple[int, ...], lib: Any, dtype: str = "float64") -> dict[str, Any]:
    """The start values of a layer on a library."""
    values = layer.init(bp.Rng(0), shape)
    return {name: lib.array(getattr(v, "value", v), dtype) for name, v in values.items()}


def both(lib: Any, layer: bp.Layer, p: Any, x: Any, dy: Any) -> tuple[Any, ...]:
    """y, dx and the gradients, as a trainer would compute them; dx of whole numbers is left out."""

    def passes(p: Any, x: Any, dy: Any) -> Any:
        run = bp.Run(lib.seam, True, (0, 1, 0))
        y, cache = layer.forward(run, p, x)
        dx, grads = layer.backward(run, p, cache, dy)
        return (y, *([] if dx is None else [dx]), *grads.values())

    with lib.seam.session():
        return tuple(lib.call(passes, p, x, dy))


# ---- numbers --------------------------------------------------------------------------------------------------------


def expected_scores(x: float, knots: tuple[float, ...]) -> float:
    """By the definition, of one value."""
    places = sorted(set(knots))
    each = [NormalDist().inv_cdf((i + 0.5) / len(knots)) for i in range(len(knots))]
    scores = [np.mean([s for s, k in zip(each, knots, strict=True) if k == place]) for place in places]
    return float(np.interp(x, places, scores))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_numbers_as_the_formulas_say(backend: Any, dtype: str, uncompiled: Any) -> None:
    if (backend.name, dtype) == ("jax-jit", "float32"):
        pytest.skip("float32 on JAX is what float64 is there")
    rng = np.random.default_rng(0)
    x = np.concatenate([2.0 * rng.standard_normal((20, 4)), *[[[k[0]] * 4, [k[-1]] * 4] for k in KNOTS], [[nan] * 4]])
    x[rng.random(x.shape) < 0.2] = nan
    x[0], x[1] = 1e20, -1e20
    x = x.astype(dtype)
    dy = rng.standard_normal((len(x), 6)).astype(dtype)
    known, exact = ~np.isnan(x), np.where(np.isnan(x), 0.0, np.float64(x))
    for layer in (ROBUST, QUANTILES):
        y, dx = both(backend, layer, start(layer, (4,), backend, dtype), backend.array(x), backend.array(dy))
        if layer is ROBUST:
            factor = np.array([1.0, 0.5, 0.0, 1 / 3])
            z, slope = known * (exact - ROBUST.center) * factor, known * factor
        else:
            table = [[expected_scores(v, k) for v, k in zip(row, KNOTS, strict=True)] for row in exact]
            beyond = [[expected_scores(v + 1e-6, k) for v, k in zip(row, KNOTS, strict=True)] for row in exact]
            z, slope = known * table, known * np.subtract(beyond, table) / 1e-6
        with np.errstate(over="ignore"):
            t = z / layer.clip
            clipped, slope = z / np.sqrt(1 + t * t), slope * (1 + t * t) ** -1.5
        backend.close(y, np.concatenate([clipped, ~known[:, list(layer.missing)]], axis=1))
        backend.close(dx, slope * dy[:, :4], rtol=1e-5 if dtype == "float32" else 1e-9)
        assert backend.dtype(y) == backend.dtype(dx) == dtype
    assert not uncompiled()


def test_derivatives_by_finite_differences(noted: Callable[..., None]) -> None:
    x, y = data(12)
    x["categories"] = np.clip(x["categories"], 0, 3)
    rows = x["numbers"].reshape(6, 2, 4)
    several = bp.Inputs(numbers=ROBUST, codes=CODES, more=bp.Dense(2))
    for layer, given in (
        (ROBUST, x["numbers"]), (QUANTILES, x["numbers"]), (ROBUST, rows), (QUANTILES, rows), (CODES, x["categories"]),
        (NET, x), (several, {"numbers": x["numbers"], "codes": x["categories"], "more": y}),
        (bp.TabularInput(ROBUST), x["numbers"]), (bp.TabularInput(categories=CODES), x["categories"]),
    ):  # fmt: skip
        report = bp.check_gradients(layer, given)
        noted("layers", "numpy", [check.error for check in report.checks])
    assert bp.check_gradients(NET, x, y, loss="mse", tolerance=1e-7).ok


def test_outliers_are_clipped_whatever_their_size(library: Callable[[str], Any]) -> None:
    lib, x = library("numpy"), np.array([[1e38, -1e38, 5.0, 1e-3]], "float32")
    layer = bp.NumericInput(clip=3.0)
    y, dx = both(lib, layer, start(layer, (4,), lib, "float32"), x, np.ones_like(x))
    np.testing.assert_allclose(y, [[3.0, -3.0, 5.0 / np.sqrt(1.0 + 25.0 / 9.0), 1e-3]], rtol=1e-6)
    assert np.all(dx >= 0.0)
    assert np.all(dx[0, :2] < 1e-20)


def columns(dtype: str = "float64") -> Any:
    """What fitting is to cope with: ordinary, skewed, mostly one value, constant, missing, a single value, whole."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((101, 8)) * [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 9.0, 1e-3] + [5, 0, 0, 0.1, 0, 0, 0, 3e4]
    x[:, 1] = np.exp(2.0 * x[:, 1])
    x[:85, 2] = 0.0
    x[rng.random(x.shape) < 0.1] = nan
    x[:, 4], x[1:, 5] = nan, nan
    x[:, 6] = np.round(x[:, 6])
    x[0] = [7.0, 1.0, 0.0, 0.1, nan, 2.0, nan, 3e4]
    return x.astype(dtype)


def test_what_is_fitted_is_numpys(backend: Any) -> None:
    x = columns()
    rows, known = backend.array(x), [0, 1, 2, 3, 6, 7]
    robust, standard = bp.NumericInput.fit(rows, clip=3.0), bp.NumericInput.fit(rows, "standard")
    knots = bp.NumericInput.fit(rows, "quantile", knots=5).quantiles
    quartiles = np.nanquantile(x[:, known], [0.25, 0.5, 0.75], axis=0)
    scale = quartiles[2] - quartiles[0]
    scale[2] = (np.nanmax(x[:, 2]) - np.nanmin(x[:, 2])) / 2.0
    np.testing.assert_allclose(np.take(robust.center, known), quartiles[1], rtol=1e-12)
    np.testing.assert_allclose(np.take(robust.scale, known), np.where(np.arange(6) == 3, 0.0, scale), rtol=1e-12)
    np.testing.assert_allclose(np.take(standard.center, known), np.nanmean(x[:, known], axis=0), rtol=1e-12)
    deviation = np.where(np.arange(6) == 3, 0.0, np.nanstd(x[:, known], axis=0))
    np.testing.assert_allclose(np.take(standard.scale, known), deviation, rtol=1e-9)
    for column in known:
        np.testing.assert_allclose(knots[column], np.nanquantile(x[:, column], np.linspace(0, 1, 5)), rtol=1e-12)
    assert (robust.center[4], robust.scale[4], robust.scale[5]) == (0.0, 0.0, 0.0)
    assert (knots[4], knots[5]) == ((0.0,), (2.0,))
    assert robust.missing == standard.missing == tuple(np.flatnonzero(np.isnan(x).any(axis=0)))
    assert robust.clip == 3.0
    assert bp.NumericInput.fit(rows, "none", missing=(2,)) == bp.NumericInput(missing=(2,))


@pytest.mark.parametrize("kind", ["robust", "standard", "quantile", "none"])
def test_what_is_fitted_can_be_trained_with(kind: str) -> None:
    x = columns("float32")
    layer = bp.NumericInput.fit(x, kind, clip=3.0)
    net = bp.Sequential(layer, bp.Dense(8, "tanh"), bp.Dense(1))
    trainer = bp.Trainer(net, "mse", compile=False).build(x)
    y = bp.Trainer(bp.Sequential(layer, bp.Dense(1)), "mse", compile=False).build(x).predict(x)
    assert np.all(np.isfinite(y))
    before = float(trainer.step(x, y))
    for _ in range(20):
        last = float(trainer.step(x, y))
    assert last < before


def test_fitting_takes_what_fit_takes() -> None:
    whole = np.array([[1, 2], [3, 4], [5, 9]])
    assert bp.NumericInput.fit(whole, "standard") == bp.NumericInput.fit(whole.astype("float32"), "standard")
    assert bp.NumericInput.fit(np.ones((2, 3))) == bp.NumericInput((1.0,) * 3, (0.0,) * 3)
    assert bp.NumericInput.fit(np.array([[0.0], [1e-42], [2e-42]], "float32")) == bp.NumericInput((0.0,), (0.0,))
    assert bp.NumericInput.fit(np.zeros((2, 3, 4)), "standard").scale == (0.0,) * 4
    for x, error, text in (
        (np.array([[1.0, 2.0], [nan, inf]]), DataError, "x has infinity, first in row 1"),
        (np.ones(3), ShapeError, r"x has one axis; expected \(rows, features\)"),
        (np.array([["a"]]), DTypeError, "x holds <U1 values"),
        ([[1.0]], BpnetError, "x is of type list"),
    ):
        with pytest.raises(error, match=text):
            bp.NumericInput.fit(x)
    with pytest.raises(OptionError, match="kind is 'minmax'; expected 'robust', 'standard', 'quantile' or 'none'"):
        bp.NumericInput.fit(whole, "minmax")


# ---- categories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [(3, 0, 2, 0, 3), (3, 0, 3, 3, 0)])
def test_categories_as_the_formulas_say(backend: Any, width: tuple[int, ...], uncompiled: Any) -> None:
    """Rows of tables and places, side by side by width; codes that are none count as unseen; sums of gradients."""
    rng, layer = np.random.default_rng(0), bp.CategoricalInput((5, 4, 7, 4, 5), width)
    p = start(layer, (5,), backend)
    tables = {name: rng.standard_normal(a.shape) for name, a in p.items() if "width" in name}
    x, dy = rng.integers(-2, 9, (30, 5)), rng.standard_normal((30, *layer.out_shape((5,))))
    p |= {name: backend.array(table) for name, table in tables.items()}
    y, *grads = both(backend, layer, p, backend.array(x), backend.array(dy))
    code = np.where((x >= 0) & (x < np.array(layer.entries)), x, 1)
    kinds = [w or -(n - 2) for w, n in zip(width, layer.entries, strict=True)]
    made, sums, at = [], {name: np.zeros_like(table) for name, table in tables.items()}, 0
    for kind in dict.fromkeys(kinds):
        first = 0
        for j in [j for j in range(5) if kinds[j] == kind]:
            if kind > 0:
                made.append(tables[f"width_{kind}"][first + code[:, j]])
                np.add.at(sums[f"width_{kind}"], first + code[:, j], dy[:, at : at + kind])
            else:
                made.append(np.eye(layer.entries[j])[code[:, j]][:, 2:])
            first, at = first + layer.entries[j], at + abs(kind)
    backend.close(y, np.concatenate(made, axis=1))
    for grad, expected in zip(grads, sums.values(), strict=True):
        backend.close(grad, expected)
    assert not uncompiled()


def test_tables_start_with_nothing_said_of_what_is_not_known() -> None:
    layer = bp.CategoricalInput((400, 300, 5), (16, 16, 0))
    (table,) = (leaf for name, leaf in layer.init(bp.Rng(0), (3,)).items() if name.startswith("width"))
    values = np.asarray(table.value)
    np.testing.assert_array_equal(values[[0, 1, 400, 401]], 0.0)
    assert np.std(np.delete(values, [0, 1, 400, 401], axis=0)) == pytest.approx(0.25, rel=0.03)
    layout = bp.layout_of(layer, (3,))
    assert [(slot.name, slot.decay) for slot in layout.parameters] == [("width_16", False)]
    assert layer.out_shape((3,)) == (35,)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "bool"])
def test_codes_of_any_type_of_whole_numbers(kind: str, library: Callable[[str], Any]) -> None:
    """One column may be a vector; all one-hot, they are not trained and of float32."""
    layer = bp.CategoricalInput((3,), (0,))
    x = np.array([0, 1, 1, 0]).astype(kind)
    for rows in (x, x[:, None]):
        trainer = bp.Trainer(bp.Sequential(layer, bp.Dense(1)), "mse", compile=False).build(rows)
        trainer.step(rows, np.ones((4, 1), "float32"))
        assert trainer.predict(rows).dtype == np.float32
    assert not layer.trainable
    assert bp.layout_of(layer, (), trains=False).size == 0


def test_columns_of_a_width_are_looked_up_together() -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    for width, gathers in (((4, 0, 8, 0), 2), ((4, 0, 8, 8), 3)):  # one brings columns of a width side by side
        layer = bp.CategoricalInput((9, 5, 30, 5) * 25, width * 25)
        trainer = bp.Trainer(bp.Sequential(layer, bp.Dense(2)), "mse", compile=True)
        text = trainer.explain(np.ones((8, 100), "int32"), np.ones((8, 2), "float32"))
        text = text[: text.index("result 0")]
        assert (text.count("row scatter-add"), text.count("row gather")) == (2, gathers)
        assert sum(line.startswith("  ") for line in text.splitlines()) < 30


# ---- both, in a network ---------------------------------------------------------------------------------------------


def trained(lib: Any, network: bp.Layer = NET, dtype: str = "float64", **options: Any) -> tuple[bp.Trainer, Any, Any]:
    x, y = (on(lib, part) for part in data(dtype=dtype))
    trainer = bp.Trainer(network, "mse", bp.SGD(0.1, momentum=0.9), **options)
    trainer.fit(x, y, epochs=2, batch_size=16, validation=(x, y), progress=False)
    return trainer, x, y


def test_same_on_every_library(backend: Any, library: Callable[[str], Any]) -> None:
    host_x, host_y = data()
    x, y, host = on(backend, host_x), backend.array(host_y), library("numpy")
    trainer = bp.Trainer(NET, "mse", bp.SGD(0.1, momentum=0.9))
    expected = bp.Trainer(NET, "mse", bp.SGD(0.1, momentum=0.9), compile=False)
    for check in (True, True, False):
        mine, theirs = trainer.step(x, y, check=check), expected.step(host_x, host_y, check=check)
        np.testing.assert_allclose(float(mine), float(theirs), rtol=1e-11)
    backend.close(trainer.theta, host.host(expected.theta), rtol=1e-11)
    backend.close(trainer.predict(x), host.host(expected.predict(host_x)), rtol=1e-11)


def test_row_blocks_micro_batches_and_definitions_give_the_same(library: Callable[[str], Any]) -> None:
    lib = library("numpy")
    expected = trained(lib, compile=False)[0].theta
    lib.close(trained(lib, micro_batch=5, compile=False)[0].theta, expected, rtol=1e-12)
    with bp.reference():
        lib.close(trained(lib)[0].theta, expected, rtol=1e-12)


def test_a_saved_one_comes_back_and_goes_on(tmp_path: Any, library: Callable[[str], Any]) -> None:
    quantiles = bp.Sequential(bp.TabularInput(QUANTILES, CODES), bp.Dense(2))
    for network in (NET, quantiles, bp.Sequential(bp.TabularInput(numbers=ROBUST), bp.Dense(2))):
        x, y = data()
        x = x if network.takes is not None else x["numbers"]
        trainer = bp.Trainer(network, "mse", compile=False)
        trainer.fit(x, y, progress=False)
        trainer.save(tmp_path / "model")
        loaded = bp.load(tmp_path / "model")
        assert loaded.network == network
        np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))
        assert loaded.step(x, y) == trainer.step(x, y)
    short = bp.TabularInput(bp.NumericInput(1.0, (2.0, 4.0), 3.0, missing=(1,)), bp.CategoricalInput((5,), (0,)))
    assert eval(repr(short), vars(bp)) == short


def test_one_array_alone_is_taken_as_it_is() -> None:
    x, y = data()
    for layer, rows in ((ROBUST, x["numbers"]), (CODES, x["categories"])):
        name = "numbers" if layer is ROBUST else "categories"
        one = bp.TabularInput(**{name: layer})
        assert (one.takes, one.accepts_nan, one.trainable) == (layer.takes, True, layer is CODES)
        plain, wrapped = (bp.Trainer(bp.Sequential(f, bp.Dense(2)), "mse", seed=3, compile=False) for f in (layer, one))
        plain.fit(rows, y, progress=False)
        wrapped.fit(rows, y, progress=False)
        np.testing.assert_array_equal(plain.theta, wrapped.theta)
        np.testing.assert_array_equal(plain.predict(rows), wrapped.predict(rows))


def test_a_batch_like_the_last_is_not_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are rows to predict, whatever is missing in them."""
    seen: list[Any] = []
    prepare = trainers.prepare
    monkeypatch.setattr(trainers, "prepare", lambda *args, **options: seen.append(args) or prepare(*args, **options))
    for network in (NET, bp.Sequential(ROBUST, bp.Dense(2))):
        trainer = bp.Trainer(network, "mse", compile=False)
        for seed in range(4):
            x, y = data(seed=seed)
            x = x if network is NET else x["numbers"]
            trainer.step(x, y)
            if network is not NET:
                assert np.all(np.isfinite(trainer.predict(x)))
    assert len(seen) == 3


def test_what_goes_through_it_is_seen() -> None:
    """What is missing has no length; the lengths of all else are numbers."""
    x, y = data(12)
    found = bp.inspect(bp.Trainer(NET, "mse"), x, y)
    assert found["0.numbers.0"].norms["x"] == pytest.approx(np.sqrt(np.nansum(x["numbers"] ** 2)))
    assert found["0"].norms["x"] == found["0.numbers"].norms["x"] == found["0.numbers.0"].norms["x"]
    assert np.all(np.asarray(found["0.numbers.0"].dx)[np.isnan(x["numbers"])] == 0.0)
    assert found["0.categories"].x is x["categories"]
    assert all(np.isfinite(size) for one in found.layers for size in one.norms.values())
    shapes = {one.path: one.out_shape for one in NET.summary(x).layers}
    assert (shapes["0.numbers.0"], shapes["0.categories"], shapes["0"]) == ((6,), (13,), (18,))


def test_from_the_host_to_a_device(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch by batch, with what is missing in them."""
    monkeypatch.setattr(loader, "CACHED_SHARE", 0.0)
    x, y = data(dtype="float32")
    numbers, net = x["numbers"], bp.Sequential(bp.NumericInput(), bp.Dense(2))
    there, here = (bp.Trainer(net, "mse", bp.SGD(0.001), device=device) for device in ("cuda", None))
    for trainer in (there, here):
        trainer.fit(numbers, y, batch_size=20, shuffle=False, progress=False)
    np.testing.assert_allclose(world.cupy.asnumpy(there.theta), here.theta, rtol=1e-4, atol=1e-6)
    numbers[3, 1] = inf
    with pytest.raises(DataError, match=r"^x has infinity, first in row 3"):
        there.fit(numbers, y, progress=False)


# ---- where what is missing may be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (bp.Dense(3), False),
        (ROBUST, True),
        (CODES, True),
        (bp.Embedding(4, 2), False),
        (bp.Sequential(ROBUST, bp.Dense(3)), True),
        (bp.Sequential(bp.Dense(3), ROBUST), False),
        (bp.Shared(ROBUST, "a"), True),
        (bp.Residual(bp.NumericInput()), False),
        (bp.Parallel(ROBUST, bp.NumericInput()), True),
        (bp.Parallel(ROBUST, "identity"), False),
        (bp.Inputs(a=ROBUST, b="identity", c=CODES), (True, False, True)),
        (bp.TabularInput("identity", CODES), (False, True)),
        (NET, (True, True)),
    ],
)
def test_which_networks_take_what_is_missing(layer: bp.Layer, expected: Any) -> None:
    assert layer.accepts_nan == expected


def calls(network: bp.Layer, good: Any, y: Any, **options: Any) -> list[Callable[[Any], Any]]:
    """Every way by which data reach a network."""
    trainer = bp.Trainer(network, "mse", compile=False, **options).build(good)
    trainer.step(good, y)
    trainer.step(good, y)  # from now on, a batch of this kind is no longer prepared
    theta, buffers = trainer.theta, trainer.buffers if trainer.layout.buffer_size else None
    return [
        lambda x: trainer.step(x, y),
        lambda x: trainer.fit(x, y, progress=False),
        lambda x: trainer.fit(good, y, validation=(x, y), progress=False),
        lambda x: trainer.evaluate(x, y),
        lambda x: trainer.predict(x),
        lambda x: trainer.predict(x, batch_size=3),
        lambda x: bp.inspect(trainer, x, y),
        lambda x: network.summary(x),
        lambda x: bp.check_gradients(network, x, directions=1),
        lambda x: bp.value_and_grad(network, "mse", theta, x, y, buffers=buffers),
    ]


def test_infinity_is_refused_and_so_is_nan_where_nothing_is_missing() -> None:
    x, y = data(8)
    x["categories"] = np.clip(x["categories"], 0, 3)
    table = bp.Sequential(bp.Inputs(numbers=ROBUST, more="identity", categories=CODES), bp.Dense(2))
    good = {**x, "more": y}
    alone = bp.Sequential(ROBUST, bp.Dense(2))
    for network, given in ((table, good), (alone, x["numbers"])):
        for call in calls(network, given, y):
            call(given)
            numbers = x["numbers"].copy()
            numbers[5, 1] = -inf
            if network is alone:
                with pytest.raises(DataError, match="has infinity, first in row 5"):
                    call(numbers)
                continue
            with pytest.raises(DataError, match=r"\['numbers'\] has infinity, first in row 5"):
                call({**given, "numbers": numbers})
            with pytest.raises(DataError, match=r"\['more'\] has NaN or infinity, first in row 5"):
                call({**given, "more": np.where(np.isinf(numbers[:, :2]), nan, y)})


def test_a_divergence_is_said_of_what_diverged() -> None:
    """Not of x, whose NaN are meant."""
    x, y = data(16)
    for rows, network in ((x, NET), (x["numbers"], bp.Sequential(ROBUST, bp.Dense(4), bp.Dense(2)))):
        trainer = bp.Trainer(network, "mse", bp.SGD(1e200), compile=False)
        with pytest.raises(DivergedError, match=r"layer '[12]', Dense|of the loss|the loss is"):
            trainer.fit(rows, y, epochs=9, batch_size=4, progress=False)
        trainer = bp.Trainer(network, "mse", compile=False).build(rows)
        trainer.theta[...] = nan
        with pytest.raises(DivergedError, match="what the network gives is NaN, though x has no infinity: "):
            trainer.predict(rows)
        with pytest.raises(DivergedError, match="the loss is NaN, though x has no infinity: "):
            trainer.evaluate(rows, y)


# ---- what can't be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: bp.NumericInput(scale=-1.0), OptionError, r"scale is -1.0; expected a number in \[0, inf\)"),
        (lambda: bp.NumericInput(center=nan), OptionError, "center is nan"),
        (lambda: bp.NumericInput(clip=0.0), OptionError, "clip is 0.0"),
        (lambda: bp.NumericInput(missing=(2, 1)), OptionError, r"missing is \(2, 1\); expected numbers of columns in"),
        (lambda: bp.NumericInput(missing=(-1,)), OptionError, r"missing\[0\] is -1"),
        (lambda: bp.NumericInput((1.0, 2.0), (1.0,)), OptionError, "center 2, scale 1; expected one of each for every"),
        (lambda: bp.NumericInput(quantiles=((0.0, 2.0, 1.0),)), OptionError, r"quantiles\[0\] is not sorted"),
        (lambda: bp.NumericInput(quantiles=()), OptionError, "quantiles is empty"),
        (
            lambda: bp.NumericInput(quantiles=(tuple(range(2049)), *((0,),) * 2047)),
            OptionError,
            "2,048 columns of up to 2,049 knots; expected at most 4,194,304 in all",
        ),
        (lambda: bp.NumericInput(quantiles=((),)), OptionError, r"quantiles\[0\] is \(\)"),
        (lambda: bp.NumericInput((1.0, 2.0)).out_shape((3,)), ShapeError, "center for 2 columns, but rows have 3"),
        (lambda: bp.NumericInput(missing=(3,)).out_shape((3,)), ShapeError, "the column 3 .* but rows have 3"),
        (lambda: bp.NumericInput().out_shape(()), ShapeError, "needs rows of features"),
        (lambda: bp.CategoricalInput((5, 4), (1,)), OptionError, "entries has 2 numbers and width 1"),
        (lambda: bp.CategoricalInput((), ()), OptionError, "entries has 0 numbers"),
        (lambda: bp.CategoricalInput((1,), (1,)), OptionError, r"entries\[0\] is 1; expected .* at least 2"),
        (lambda: bp.CategoricalInput((5,), (-1,)), OptionError, r"width\[0\] is -1"),
        (lambda: bp.CategoricalInput((2,), (0,)), OptionError, "leave no feature"),
        (lambda: bp.CategoricalInput((2**22, 2**22 + 1), (1, 1)), OptionError, "8,388,609 entries; expected at most"),
        (
            lambda: bp.CategoricalInput((5,), (1,)).out_shape((2,)),
            ShapeError,
            r"has 1 column, but rows have the shape \(2,\)",
        ),
        (lambda: bp.TabularInput(), OptionError, "neither numbers nor categories"),
        (lambda: bp.TabularInput(CODES), OptionError, "numbers of TabularInput is .* a layer that takes numbers"),
        (lambda: bp.TabularInput(categories=ROBUST), OptionError, "categories of TabularInput is .* whole numbers"),
        (lambda: bp.TabularInput(3), ArgumentError, "numbers of TabularInput is of type int"),
    ],
)
def test_unfit_options_and_shapes_are_refused(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_unfit_tables_are_refused() -> None:
    x, y = data(8)
    for given, error, text in (
        (x["numbers"], ArgumentError, "expected a dict of arrays, as the network takes them: numbers, categories"),
        ({**x, "categories": x["categories"] * 1.0}, DTypeError, r"x\['categories'\] holds float64 values; expected"),
        ({**x, "categories": x["categories"][:, :3]}, ShapeError, r"has 5 columns, but rows have the shape \(3,\)"),
        ({**x, "categories": x["categories"][:5]}, ShapeError, r"x\['numbers'\] has 8 rows, but x\['categories'\] 5"),
    ):
        with pytest.raises(error, match=text):
            bp.Trainer(NET, "mse").fit(given, y, progress=False)


def test_long_options_are_told_in_few_words() -> None:
    many = bp.NumericInput(tuple(range(10_000)), 1.0, missing=tuple(range(10_000)))
    assert len(repr(many)) < 150
    assert len(repr(bp.NumericInput(quantiles=(tuple(range(9)),) * 1000))) < 100
    assert repr(QUANTILES) == "NumericInput(quantiles=... 4 columns, clip=2, missing=(1, 2))"
