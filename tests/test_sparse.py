"""Sparse tables: a step is that of the rows which a batch has, on every library, and nothing else is touched."""

import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import DataError, DivergedError, OptionError

CITY = bp.Shared(bp.Embedding(90, 2, sparse=True), "city")
NET = bp.Sequential(
    bp.Inputs(
        start=CITY,
        end=CITY,
        numbers=bp.Standardize(1.0, 2.0),
        codes=bp.Sequential(
            bp.Parallel(bp.Embedding(70, 3, sparse=True), bp.Embedding(70, 2, sparse=True)),
            bp.Flatten(),
            bp.BatchNorm(),
            bp.Dense(4, "tanh"),
        ),
    ),
    bp.Dense(5, "tanh"),
    bp.Dense(2),
)
"""A table that two inputs use, and two for one input of two columns."""
ONE = bp.Sequential(bp.Embedding(50, 3, sparse=True), bp.Flatten(), bp.Dense(2))


ONE_OF_TWO = bp.Sequential(
    bp.Inputs(
        start=bp.Embedding(90, 2), end=bp.Embedding(90, 3, sparse=True), numbers=bp.Standardize(1.0, 2.0),
        codes=bp.Sequential(bp.Embedding(70, 3, sparse=True), bp.Flatten()),
    ),
    bp.Dense(2),
)  # fmt: skip
"""Beside a table that is not sparse."""


def dense(network: Any) -> Any:
    """The same with ordinary tables."""
    return eval(repr(network).replace("sparse=True", "sparse=False"), vars(bp))


def data(rows: int = 40) -> tuple[dict[str, Any], Any]:
    """Numbers that occur many times, once, or never; and targets."""
    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, 90, rows) for name in ("start", "end")}
    x |= {"numbers": rng.standard_normal((rows, 3)), "codes": rng.integers(0, 70, (rows, 2), "int32")}
    return x, rng.standard_normal((rows, 2))


def trained(lib: Any, network: bp.Layer, optimizer: bp.Optimizer, **options: Any) -> bp.Trainer:
    """Shuffled, in batches of which the last is smaller."""
    x, y = data()
    x, y = {name: lib.array(a) for name, a in x.items()}, lib.array(y)
    trainer = bp.Trainer(network, "mse", optimizer, clip_norm=0.5, **options)
    trainer.fit(x, y, epochs=2, batch_size=16, progress=False)
    trainer.step({name: a[:16, ...] for name, a in x.items()}, y[:16, ...])
    return trainer


def test_the_same_on_every_library(backend: Any, library: Callable[[str], Any]) -> None:
    """And rows that no batch has keep their bits there, and have no state."""
    if backend.name == "jax":
        pytest.skip("on JAX a trainer compiles: the member jax-jit")
    found, lib = trained(backend, ONE_OF_TWO, bp.Adam(0.01)), library("numpy")
    expected = trained(lib, ONE_OF_TWO, bp.Adam(0.01), compile=False)
    assert found.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-12)
    for mine, theirs in zip((found.theta, *found.state), (expected.theta, *expected.state), strict=True):
        backend.close(mine, theirs, rtol=1e-12)
    start = found.layout.unpack(found.layout.start(0)[0])["0.end.table"]
    theta, *state = (backend.host(found.layout.unpack(a)["0.end.table"]) for a in (found.theta, *found.state))
    unused = np.setdiff1d(np.arange(90), data()[0]["end"])
    assert unused.size > 20
    np.testing.assert_array_equal(theta[unused], start[unused])
    for moments in state:
        np.testing.assert_array_equal(np.flatnonzero(~moments.any(axis=1)), unused)


def test_plain_descent_is_the_step_of_a_dense_table(library: Callable[[str], Any]) -> None:
    found, expected = (
        trained(library("numpy"), n, bp.SGD(0.1), compile=False) for n in (ONE_OF_TWO, dense(ONE_OF_TWO))
    )
    np.testing.assert_allclose(found.theta, expected.theta, rtol=1e-12)
    assert found.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-12)


def test_tables_that_several_inputs_use_and_several_tables_of_one_input(library: Callable[[str], Any]) -> None:
    lib, (x, y) = library("numpy"), data()
    found, expected = (trained(lib, network, bp.SGD(0.1), compile=False) for network in (NET, dense(NET)))
    for mine, theirs in ((found.theta, expected.theta), (found.buffers, expected.buffers)):
        lib.close(mine, theirs, rtol=1e-12)
    assert found.evaluate(x, y)["loss"] == pytest.approx(expected.evaluate(x, y)["loss"], rel=1e-12)


def test_a_step_is_that_of_pytorchs_sparse_adam() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, (4, 6, 2)), rng.standard_normal((4, 6, 2))
    network = bp.Sequential(bp.Inputs(bp.Sequential(ONE.layers[0], bp.Flatten()), "identity"), bp.Dense(2))
    trainer = bp.Trainer(network, "mse", bp.Adam(0.1, epsilon=1e-15)).build((x[0], y[0]))
    table, weight, bias = (
        torch.tensor(trainer.layout.unpack(trainer.theta)[name], requires_grad=True)
        for name in ("0.0.0.table", "1.weight", "1.bias")
    )
    optimizers = torch.optim.SparseAdam([table], 0.1, eps=1e-15), torch.optim.Adam([weight, bias], 0.1, eps=1e-15)
    for index, target in zip(x, y, strict=True):
        trainer.step((index, target), target)
        rows = torch.nn.functional.embedding(torch.tensor(index), table, sparse=True).reshape(6, 6)
        output = torch.cat([rows, torch.tensor(target)], dim=1) @ weight + bias
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.nn.functional.mse_loss(output, torch.tensor(target)).backward()
        for optimizer in optimizers:
            optimizer.step()
    found = trainer.layout.unpack(trainer.theta)
    np.testing.assert_allclose(found["0.0.0.table"], table.detach().numpy(), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(found["1.weight"], weight.detach().numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    "optimizer",
    [
        bp.SGD(0.1, momentum=0.9, nesterov=True), bp.AdamW(0.01, weight_decay=0.1), bp.NAdam(0.01), bp.RMSprop(0.01),
        bp.Adagrad(0.1), bp.Lion(0.01), bp.Adam(bp.Cosine(0.1, 30)), bp.SAM(bp.Adam(0.01)),
        bp.Clip(bp.Adam(0.01), value=0.1, leaf_norm=0.2),
        bp.Grouped(bp.Adam(0.01), groups={"0.start*": {"lr": 0.1}, "*.bias": bp.SGD(0.1, momentum=0.5)}),
        bp.Muon(0.01, rest=bp.Adam(0.01)),
        bp.Grouped(bp.LAMB(0.01), groups={"*.table": bp.Adam(0.01), "0.codes.*.weight": None}),
    ],
    ids=lambda o: type(o).__name__,
)  # fmt: skip
def test_with_every_row_in_every_batch_it_is_the_dense_step(optimizer: bp.Optimizer) -> None:
    x, y = data(210)
    x |= {"start": np.arange(210) % 90, "end": np.arange(210) % 80, "codes": (np.arange(420) % 70).reshape(210, 2)}
    found = []
    for network in (NET, dense(NET)):
        trainer = bp.Trainer(network, "mse", optimizer, compile=False).build(x)
        for _ in range(3):
            trainer.step(x, y)
        found.append(trainer)
    for mine, theirs in zip(*((t.theta, *t.state) for t in found), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_frozen_table_stays(library: Callable[[str], Any]) -> None:
    optimizer = bp.Grouped(bp.Adam(0.01), groups={"*.table": None})
    trainer = trained(library("numpy"), NET, optimizer)
    start = trainer.layout.unpack(trainer.layout.start(0)[0])
    for name, values in trainer.layout.unpack(trainer.theta).items():
        assert (values == start[name]).all() == name.endswith("table"), name


def test_a_step_takes_no_memory_for_the_rest_of_the_table(compiled: bool) -> None:
    """Neither the gradient nor the state of 10^5 rows is ever made, nor are they copied, or added up."""
    network = bp.Sequential(bp.Embedding(100_000, 16, sparse=True), bp.Dense(4, "tanh"), bp.Dense(2))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 100_000, 64), rng.standard_normal((64, 2)).astype("float32")
    trainer = bp.Trainer(network, "mse", bp.Adam(0.01), compile=compiled).build(x)
    trainer.step(x, y)  # with a copy to go back to
    arrays = trainer.theta, *trainer.state
    before = [a.copy() for a in arrays]
    tracemalloc.start()
    for check in (True, True, False, False):
        trainer.step(x, y, check=check)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < trainer.theta.nbytes / 10
    assert all(a is b for a, b in zip(arrays, (trainer.theta, *trainer.state), strict=True)), "they stay where they are"
    for old, new in zip(before, arrays, strict=True):
        changed = (trainer.layout.unpack(old)["0.table"] != trainer.layout.unpack(new)["0.table"]).any(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(changed), np.unique(x))


@pytest.fixture(params=[False, True], ids=["eager", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    return bool(request.param)


def test_nor_does_what_xla_makes_of_it(library: Callable[[str], Any]) -> None:
    lib = library("jax-jit")
    network = bp.Sequential(bp.Embedding(100_000, 16, sparse=True), bp.Dense(4, "tanh"), bp.Dense(2))
    x, y = lib.array(np.arange(64)), lib.array(np.ones((64, 2), "float32"))
    trainer = bp.Trainer(network, "mse", bp.Adam(0.01)).build(x)
    engine: Any = trainer._engine
    lowered = engine.step.lower(engine.carry, x, y, None, None, *engine.hyperparameters(0))
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < trainer.theta.nbytes / 10
    assert memory.alias_size_in_bytes >= 3 * trainer.theta.nbytes


def test_other_ways_to_the_same_step(library: Callable[[str], Any], tmp_path: Any) -> None:
    """In blocks, by definitions, streamed; from a file, from a snapshot, from a pickle."""
    lib, adam = library("numpy"), bp.Adam(0.01)
    expected = trained(lib, ONE_OF_TWO, adam, compile=False)
    for options in ({"micro_batch": 5}, {"threads": 1}):
        lib.close(trained(lib, ONE_OF_TWO, adam, compile=False, **options).theta, expected.theta, rtol=1e-12)
    with bp.reference():
        lib.close(trained(lib, ONE_OF_TWO, adam).theta, expected.theta, rtol=1e-12)
    library("torch")
    lib.close(trained(lib, ONE_OF_TWO, adam, device="torch").theta.numpy(), expected.theta, rtol=1e-12)
    x, y = data()
    expected.save(tmp_path / "model")
    snapshot = expected.snapshot()
    others = [bp.load(tmp_path / "model"), pickle.loads(pickle.dumps(expected))]
    loss = float(expected.step(x, y))
    theta = expected.theta.copy()
    expected.restore(snapshot)
    for trainer in (*others, expected):
        assert trainer.network == ONE_OF_TWO
        assert float(trainer.step(x, y)) == loss
        np.testing.assert_array_equal(trainer.theta, theta)


def test_a_step_that_diverges_is_undone() -> None:
    x, y = np.arange(6)[:, None], np.ones((6, 2))
    trainer = bp.Trainer(ONE, "mse", bp.SGD(0.1)).build(x)
    theta = trainer.theta.copy()
    trainer.step(x, y)
    assert (trainer.theta != theta).any()
    with pytest.raises(DivergedError, match="diverged at step 2"):
        trainer.step(x, 1e30 * y)
    assert trainer.step_count == 0
    np.testing.assert_array_equal(trainer.theta, theta)
    with pytest.raises(DataError, match="x has 50 in row 2, but"):
        trainer.step(np.array([[1], [2], [50]]), y[:3])
    np.testing.assert_array_equal(trainer.theta, theta)


@pytest.mark.gpu
def test_an_interrupt_of_cupys_compiler_leaves_one_definite_step(
    library: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the kernels of a first step it is at."""
    lib = library("cupy")
    compiler, moment, left = lib.module.cuda.compiler, 0, 1000
    whole, x, y = compiler._compile_module_with_cache, lib.array(np.arange(6)), lib.array(np.ones((6, 2)))

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(compiler, "_compile_module_with_cache", interrupted)
    while True:
        trainer = bp.Trainer(bp.Sequential(bp.Embedding(60 + moment, 3, sparse=True), bp.Dense(2)), "mse").build(x)
        first, left = lib.host(trainer.theta), moment
        lib.module.clear_memo()
        try:
            trainer.step(x, y, check=False)
        except KeyboardInterrupt:
            np.testing.assert_array_equal(lib.host(trainer.theta), first)
            assert trainer.step_count == 0
        if left >= 0:
            break
        moment, left = moment + 1, 1000
    assert moment > 3


def test_it_is_explained(compiled: bool) -> None:
    text = bp.Trainer(ONE_OF_TWO, "mse", compile=compiled).explain(*data())
    assert "at most 40 of 0.end.table and at most 80 of 0.codes.0.table" in text
    assert ("row gather of 40 of 40 rows: theta" in text) == compiled


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an average": (lambda: bp.Trainer(ONE, "mse", bp.ExponentialAverage("adam")), "^ExponentialAverage.* moves rows"),
    "sums": (lambda: bp.Trainer(ONE, "mse", bp.Accumulate("sgd", 2)), "^Accumulate.* moves rows of 0.table"),
    "noise": (lambda: bp.Trainer(ONE, "mse", bp.Clip(bp.GradientNoise("sgd"), norm=1.0)), "^GradientNoise.* moves"),
    "by layers": (lambda: bp.Trainer(ONE, "mse", "lamb"), r"^LAMB.* take one that moves each .* bp.Adam\(\)"),
    "a line search": (lambda: bp.Trainer(ONE, "mse", "lbfgs"), "^LBFGS.* or looks at all of them"),
    "a penalty": (
        lambda: bp.Trainer(ONE, "mse", penalties=[bp.L2(0.1, of="*.table")]), "L2.* is of all rows of 0.table, which",
    ),
    "one of two": (
        lambda: bp.Trainer(bp.Sequential(bp.Parallel(bp.Embedding(50, 2), ONE.layers[0]), bp.Flatten()), "mse"),
        "are given the same numbers: where one is a sparse Embedding, both must be",
    ),
    "within another": (
        lambda: bp.Trainer(bp.Sequential(bp.Dense(3), *ONE.layers), "mse"),
        "can be sparse only where it is first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sparse_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    trainer = make()
    with pytest.raises(OptionError, match=message):
        trainer.build(np.zeros((4, 1), "int32"))
    with pytest.raises(OptionError, match="sparse is 'yes'; expected True or False"):
        bp.Embedding(3, 2, sparse="yes")  # type: ignore[arg-type]
