"""Data larger than memory: the same training as from arrays, bounded windows, and errors that name the file and row."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ranks import threads
from support.world import World

import bpnet as bp
from bpnet.data.streams import reading
from bpnet.data.streams.order import Shuffled, cuts_of
from bpnet.data.streams.reading import Reader

ROWS = 700
SMALL = {"buffer": 2**13, "block": 30}
"""A window has few of the rows, so that streams go through many."""
NET = bp.Sequential(bp.Dense(6, "relu"), bp.Dense(3))


def data(rows: int = ROWS, dtype: str = "float32") -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((rows, 4)).astype(dtype), rng.integers(0, 3, rows)
    return x, y, rng.random(rows).astype("float32")


def trainer(net: Any = NET, **options: Any) -> bp.Trainer:
    return bp.Trainer(net, "cross_entropy", bp.Adam(0.02), compile=False, **options)


def fitted(*data: Any, **options: Any) -> bp.Trainer:
    made = trainer()
    made.fit(*data, **{"epochs": 2, "batch_size": 32, "progress": False} | options)
    return made


def same(one: bp.Trainer, other: bp.Trainer) -> None:
    np.testing.assert_array_equal(one.theta, other.theta)
    assert [{**r, "seconds": 0} for r in one.history] == [{**r, "seconds": 0} for r in other.history]


def saved(folder: Path, **arrays: Any) -> dict[str, str]:
    paths = {name: str(folder / f"{name}.npy") for name in arrays}
    for name, array in arrays.items():
        np.save(paths[name], array)
    return paths


# ---- where rows come from -------------------------------------------------------------------------------------------


def npy(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    paths = saved(folder, x=x, y=y, w=w)
    return paths["x"], {"y": paths["y"], "sample_weight": paths["w"]}


def folder_of_npy(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    for name, array in {"x": x, "y": y}.items():
        (folder / name).mkdir()
        for i, part in enumerate(np.array_split(array, 4)):
            np.save(folder / name / f"{i}.npy", part)
    return folder / "x", {"y": folder / "y", "sample_weight": w}


def memmap(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    wide = saved(folder, wide=np.concatenate([np.zeros_like(x), x], axis=1))["wide"]
    return np.load(wide, mmap_mode="r")[:, 4:], {"y": y, "sample_weight": list(w)}


def fortran(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    return saved(folder, x=np.asfortranarray(x))["x"], {"y": y, "sample_weight": w}


def table(x: Any, y: Any, w: Any) -> Any:
    pa = pytest.importorskip("pyarrow")
    return pa.table({**{f"c{i}": x[:, i] for i in range(4)}, "y": y, "w": w})


NAMES = {"y": "y", "sample_weight": "w"}


def parquet(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    pytest.importorskip("pyarrow.parquet").write_table(table(x, y, w), folder / "t.parquet", row_group_size=90)
    return folder / "t.parquet", NAMES


def one_group(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    """A row group that is larger than a window."""
    pytest.importorskip("pyarrow.parquet").write_table(table(x, y, w), folder / "t.parquet")
    return folder / "t.parquet", NAMES


def folder_of_arrow(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    feather, whole = pytest.importorskip("pyarrow.feather"), table(x, y, w)
    for start, stop in itertools.pairwise((0, 100, 400, ROWS)):
        feather.write_feather(whole.slice(start, stop - start), folder / f"{start:03}.arrow", chunksize=70)
    return folder, NAMES


def lists(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_arrays(x.reshape(-1), 4)
    return pa.table({"x": column, "y": y, "w": w}), NAMES | {"columns": "x"}


def data_set(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    path, names = parquet(folder, x, y, w)
    return pytest.importorskip("pyarrow.dataset").dataset(path), names


def hdf5(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    with pytest.importorskip("h5py").File(folder / "t.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(50, 2), compression="gzip")
        file["y"], file["w"] = y, w
    return folder / "t.h5", NAMES | {"columns": "x"}


def zarr(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    module = pytest.importorskip("zarr")
    array = module.open_array(str(folder / "x.zarr"), mode="w", shape=x.shape, dtype=x.dtype, chunks=(40, 4))
    array[...] = x
    return folder / "x.zarr", {"y": y, "sample_weight": w}


class Rows:
    """An object with a length and slices, which give lists."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, part: slice) -> Any:
        return self.array[part].tolist()


def slices(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    return Rows(x.astype("float64")), {"y": Rows(y), "sample_weight": w, "dtype": "float32"}


def batches(folder: Path, x: Any, y: Any, w: Any) -> tuple[Any, dict[str, Any]]:
    cuts = [0, 1, 60, 60, 500, ROWS]
    return lambda: ((x[a:b], y[a:b], w[a:b]) for a, b in itertools.pairwise(cuts)), {}


SOURCES = [
    npy,
    folder_of_npy,
    memmap,
    fortran,
    parquet,
    one_group,
    folder_of_arrow,
    lists,
    data_set,
    hdf5,
    zarr,
    slices,
]
Source = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_trains_as_arrays_in_memory(source: Source, tmp_path: Path) -> None:
    """Bit for bit, where the order is exact or that of the file; in blocks on the same rows; and the same results."""
    x, y, w = data()
    expected = fitted(x, y, sample_weight=w)
    given, options = source(tmp_path, x, y, w)
    for kept in ({}, {"buffer": 2**13, "shuffle": "exact"}):  # read once, and a window at a time
        same(fitted(bp.data.stream(given, **options, **kept)), expected)
    rows = bp.data.stream(given, **options, **SMALL)
    same(fitted(rows, shuffle=False), fitted(x, y, sample_weight=w, shuffle=False))
    scores = expected.evaluate(x, y, sample_weight=w)
    assert expected.evaluate(rows) == pytest.approx(scores, rel=1e-6)
    np.testing.assert_allclose(expected.predict(rows), expected.predict(x), rtol=2e-6, atol=1e-6)
    every = trainer()._prepare({"x": rows, "y": None}).order(0, 0, True, 32).rows()
    assert sorted(every.tolist()) == list(range(ROWS))
    assert fitted(rows).history.epochs[-1]["loss"] == pytest.approx(expected.history.epochs[-1]["loss"], rel=0.02)


def test_batches_that_are_iterated_over(tmp_path: Path) -> None:
    """Their rows come in their order, and in windows that are shuffled; an iterator that ends is no such thing."""
    x, y, w = data()
    given, _ = batches(tmp_path, x, y, w)
    rows = bp.data.stream(given, **SMALL)
    assert rows.count == ROWS
    same(fitted(rows, shuffle=False), fitted(x, y, sample_weight=w, shuffle=False))
    assert fitted(rows, shuffle=True).history.epochs[-1]["loss"] < fitted(rows, epochs=1).history.epochs[-1]["loss"]
    some = bp.data.stream([(x[:90], y[:90]), (x[90:], y[90:])], count=100, **SMALL)
    same(fitted(some, shuffle=False), fitted(x[:100], y[:100], shuffle=False))
    with pytest.raises(bp.errors.ArgumentError, match=r"generator, which can be gone through once.*pass a function"):
        bp.data.stream(given())
    with pytest.raises(bp.errors.OptionError, match="can only be read in its own order"):
        bp.data.stream(given, shuffle="exact")
    with pytest.raises(bp.errors.DataError, match="ended after 700 rows; expected 800"):
        fitted(bp.data.stream(given, count=800, **SMALL))


def test_several_inputs_and_whole_numbers(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x, y, _ = data()
    codes = np.random.default_rng(0).integers(0, 5, (ROWS, 1)).astype("uint8")
    net = bp.Sequential(
        bp.Inputs(code=bp.Sequential(bp.Embedding(5, 2), bp.Flatten()), numbers=bp.Dense(4)), bp.Dense(3)
    )
    options: dict[str, Any] = {"batch_size": 32, "progress": False}
    expected = trainer(net)
    expected.fit({"numbers": x, "code": codes}, y, **options)
    parquet.write_table(
        pa.table({"a": x[:, 0], "y": y, "b": x[:, 1], "code": codes[:, 0], "c": x[:, 2], "d": x[:, 3]}),
        tmp_path / "t.parquet", row_group_size=100,
    )  # fmt: skip
    exact: dict[str, Any] = {"buffer": 2**13, "shuffle": "exact"}
    columns = {"numbers": ["a", "b", "c", "d"], "code": ["code"]}
    for rows in (
        bp.data.stream({"numbers": x, "code": codes}, y, **exact),
        bp.data.stream(tmp_path / "t.parquet", "y", columns=columns, **exact),
        bp.data.stream(lambda: [({"numbers": x, "code": codes}, y)], **SMALL),
    ):
        found = trainer(net)
        found.fit(rows, shuffle=rows.shuffle == "exact", **options)
        if rows.shuffle == "exact":
            same(found, expected)
    codes[500] = 7
    with pytest.raises(bp.errors.DataError, match=r"row 500 of .*x\['code'\] has 7, but the network has entries"):
        trainer(net).fit(bp.data.stream({"numbers": x, "code": codes}, y, **SMALL), **options)


@pytest.mark.parametrize("width", [2, 65])
def test_columns_of_every_type_become_rows(width: int) -> None:
    """Of one type or several, with values that are missing or without, in record batches of any size."""
    pa = pytest.importorskip("pyarrow")
    from bpnet.data.streams.arrow import Memory, TableRows

    rng, rows, cuts = np.random.default_rng(0), 500, [0, 300, 307]
    gone = rng.random((rows, width)) < 0.1
    mixed = ["f4", "i2"] * width
    for types, dtype in (
        (["f4"] * width, "f4"), (["f8"] * width, "f8"), (["i8"] * width, "i8"), (["u1"] * width, "u1"),
        (["f2"] * width, "f4"), (["?"] * width, "?"), (mixed[:width], "f4"), (["i8", "f8", *mixed][:width], "f8"),
    ):  # fmt: skip
        values = [(rng.random(rows) * 200).astype(kind) for kind in types]
        for missing in (np.zeros_like(gone), gone):
            columns = [pa.array(v, mask=missing[:, i]) for i, v in enumerate(values)]
            names = [f"c{i}" for i in range(width)]
            whole = pa.table(columns, names)
            table = pa.concat_tables([whole[a:b] for a, b in zip(cuts, [*cuts[1:], rows], strict=True)])
            source = TableRows(Memory(table, "the table"), [names[::-1]])
            expected = np.stack(values[::-1], axis=1).astype(dtype)
            if missing.any():
                expected = expected.astype("f8" if dtype in ("i8", "u1", "?") else dtype)
                expected[missing[:, ::-1]] = np.nan
            (found,) = source.read(0, rows)
            np.testing.assert_array_equal(found, expected, strict=True)
            (part,) = source.read(rows // 3, rows, [np.empty((rows - rows // 3, width), dtype)])
            np.testing.assert_array_equal(part, expected[rows // 3 :], strict=True)


def test_rows_of_several_files_are_gathered_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are far apart, of x in a folder and of y beside it, without what is between."""
    from bpnet.data.streams.raw import RawRows

    x, y = np.random.default_rng(0).normal(size=(400, 2500)), np.arange(400)
    (tmp_path / "x").mkdir()
    for i, part in enumerate(np.split(x, [150, 151])):
        np.save(tmp_path / "x" / f"{i}.npy", part)
    read, plain = [], RawRows._fill

    def fill(self: Any, file: Any, offset: int, out: Any) -> None:
        read.append(out.nbytes)
        plain(self, file, offset, out)

    monkeypatch.setattr(RawRows, "_fill", fill)
    rows = np.array([3, 149, 150, 151, 320])
    found = bp.data.stream(tmp_path / "x", y).source.gather(rows)
    np.testing.assert_array_equal(found[0], x[rows])
    np.testing.assert_array_equal(found[1], y[rows])
    assert sum(read) == found[0].nbytes


# ---- shuffling ------------------------------------------------------------------------------------------------------


def drawn(rows: int, block: int, size: int, together: int, epoch: int = 0, **lanes: Any) -> Any:
    cuts = cuts_of(rows, size)
    borders = np.r_[np.arange(0, rows, block), rows]
    return Shuffled(cuts, together, whole=cuts, borders=borders, seed=5, epoch=epoch, **lanes).rows()


def test_every_row_comes_once_and_anywhere() -> None:
    """Each place of the epoch has each row as often, as by a permutation of all: chi-squared of rows by places."""
    rows, cells, epochs = 96, 8, 1000
    counts = np.zeros((cells, cells))
    for epoch in range(epochs):
        order = drawn(rows, 6, 4, 5, epoch)
        assert epoch % 100 or sorted(order) == list(range(rows))
        np.add.at(counts, (order // (rows // cells), np.arange(rows) // (rows // cells)), 1)
    expected = epochs * rows / cells**2
    # a block of 6 rows comes nearly as one, which multiplies the variance of a cell by up to 6
    assert ((counts - expected) ** 2 / expected).sum() / (cells - 1) ** 2 < 6 * 1.5
    assert abs(counts / expected - 1).max() < 0.12


def test_what_blocks_leave_of_sorted_data() -> None:
    """A batch of sorted data has nearly the spread of one drawn from all; as many blocks as a window has are mixed."""
    rows, size = 20_000, 100
    values = np.arange(rows) / rows
    spread = [values[drawn(rows, 100, size, together)].reshape(-1, size).std(axis=1).mean() for together in (1, 8, 64)]
    alike = values[np.random.default_rng(0).permutation(rows)].reshape(-1, size).std(axis=1).mean()
    assert spread[0] < 0.1 * alike  # windows of one block mix nothing but its rows
    assert spread[1] > 0.88 * alike
    assert spread[2] > 0.98 * alike
    # within a window neighbours are as far apart as any two of its rows: no trace of the order of the file
    order = drawn(rows, 100, size, 64)[: 64 * size]
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04


def test_lanes_are_what_ranks_read() -> None:
    """The rows of a batch are those of the lanes one after the other, and a rank has the same without the others."""
    rows, size = 1000, 64
    whole = drawn(rows, 30, size, 4, lanes=4, mine=(0, 4))
    assert sorted(whole) == list(range(rows))
    cuts = cuts_of(rows, size)
    sizes = np.diff(cuts)
    parts = []
    for rank in range(2):
        own = np.r_[0, np.cumsum(sizes * (rank + 1) // 2 - sizes * rank // 2)]
        borders = np.r_[np.arange(0, rows, 30), rows]
        order = Shuffled(own, 4, whole=cuts, borders=borders, seed=5, lanes=4, mine=(2 * rank, 2 * rank + 2))
        parts.append((own, order.rows()))
    for i in range(len(sizes)):
        together = np.concatenate([some[own[i] : own[i + 1]] for own, some in parts])
        np.testing.assert_array_equal(together, whole[cuts[i] : cuts[i + 1]])


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    x, y, _ = data()
    rows = bp.data.stream(x, y, **SMALL)
    orders = [
        bp.Trainer(NET, "cross_entropy", seed=seed)._prepare({"x": rows, "y": None}).order(seed, epoch, True, 32).rows()
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not any(np.array_equal(orders[0], other) for other in orders[2:])
    found = [fitted(bp.data.stream(x, y, **SMALL | {"threads": n})) for n in (1, 4)]
    same(*found)


# ---- epochs, checkpoints --------------------------------------------------------------------------------------------


class StopAt(bp.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if trainer.step_count == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("shuffle", ["blocks", "exact"])
@pytest.mark.parametrize("bad", [False, True])
def test_a_training_goes_on_in_the_middle_of_an_epoch(shuffle: str, bad: bool, tmp_path: Path) -> None:
    x, y, w = data()
    x[[5, 250, 600]] = np.nan if bad else 0.0
    rows = bp.data.stream(x, y, sample_weight=w, shuffle=shuffle, bad_rows="skip", **SMALL)
    options: dict[str, Any] = {"epochs": 2, "validation": bp.data.stream(x[300:350], y[300:350], **SMALL)}
    with pytest.warns(bp.errors.BpnetWarning) if bad else nullcontext():
        expected = fitted(rows, **options)
    options |= {"checkpoint": tmp_path, "every": 1, "batch_size": 32, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(rows, callbacks=[StopAt(12)], **options)
    found = trainer()
    rows = bp.data.stream(x, y, sample_weight=w, shuffle=shuffle, bad_rows="skip", **SMALL)
    with pytest.warns(bp.errors.BpnetWarning) if bad else nullcontext():
        found.fit(rows, resume=True, **options)
    same(found, expected)
    other = bp.data.stream(x, y, sample_weight=w, shuffle=shuffle, bad_rows="skip", **SMALL | {"buffer": 2**12})
    if shuffle == "blocks":
        with pytest.raises(bp.errors.OptionError, match="buffer is 4096, but 8192"):
            trainer().fit(other, resume=True, **options | {"epochs": 3})


def test_metrics_drop_last_and_a_function_that_shuffles(tmp_path: Path) -> None:
    x, y, _ = data()
    exact = bp.data.stream(x, y, buffer=2**13, shuffle="exact")

    def bootstrap(epoch: int) -> Any:
        return np.random.default_rng(epoch).integers(0, ROWS, ROWS)

    for options in ({"drop_last": True}, {"shuffle": bootstrap}, {"batch_size": 10_000}):
        same(fitted(exact, **options), fitted(x, y, **options))
    found, expected = (fitted(*rows, metrics=["accuracy", "roc_auc"]).history for rows in ((exact,), (x, y)))
    for name in ("accuracy", "roc_auc"):
        np.testing.assert_allclose(found[name], expected[name])


# ---- bad rows, bad files --------------------------------------------------------------------------------------------


def test_a_bad_row_is_an_error_with_its_place(tmp_path: Path) -> None:
    x, y, w = data()
    np.save(tmp_path / "0.npy", x[:300])
    x[400, 2] = np.nan
    np.save(tmp_path / "1.npy", x[300:])
    rows = bp.data.stream(tmp_path, y, **SMALL)
    with pytest.raises(bp.errors.DataError, match=r"row 100 of .*1\.npy: x has NaN or infinity; bad_rows='skip'"):
        fitted(rows)
    with pytest.raises(bp.errors.DataError, match=r"row 100 of .*1\.npy"):
        trainer().build(x[:2]).predict(rows)
    x[400, 2] = 0.0
    nobody = bp.data.stream(x, y, sample_weight=np.zeros(ROWS), **SMALL)
    for call in (fitted, trainer().build(x[:2]).evaluate):
        with pytest.raises(bp.errors.DataError, match="sample_weight is 0 everywhere"):
            call(nobody)
    for which, value, match in (
        (y, 3, "row 650 of x: y has the label 3, but the network has 3 outputs"),
        (w, -1.0, "row 650 of x: sample_weight is negative, NaN or too large: -1"),
        (w, np.nan, "row 650 of x: sample_weight is negative, NaN or too large: nan"),
    ):
        before, which[650] = which[650], value
        with pytest.raises(bp.errors.DataError, match=match):
            fitted(bp.data.stream(x, y, sample_weight=w, **SMALL))
        which[650] = before


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    """As if they were not there, but for the batch that has them, which is smaller."""
    x, y, w = data()
    x[[5, 40, 41]], y[600], w[601] = np.nan, 9, np.inf
    good = np.ones(ROWS, bool)
    good[[5, 40, 41, 600, 601]] = False
    for kept in (SMALL, {}):
        rows = bp.data.stream(x, y, sample_weight=w, bad_rows="skip", **kept)
        with pytest.warns(bp.errors.BpnetWarning, match="5 rows of x could not be used and were left out"):
            found = fitted(rows, shuffle=False)
        assert rows.skipped == 5
        expected = trainer().build(x[:2])
        losses, weights = [], []
        for start in range(0, 2 * ROWS, 32):
            at = start % (32 * 22)
            batch = np.arange(at, min(at + 32, ROWS))[good[at : at + 32]]
            if start < 2 * 32 * 22:
                losses.append(float(expected.step(x[batch], y[batch], w[batch])))
                weights.append(w[batch].sum(dtype="f8"))
        np.testing.assert_allclose(found.theta, expected.theta, rtol=1e-6)
        mean = np.dot(losses[22:], weights[22:]) / np.sum(weights[22:])
        assert found.history.epochs[-1]["loss"] == pytest.approx(mean, rel=1e-6)
        assert found.evaluate(rows) == pytest.approx(found.evaluate(x[good], y[good], sample_weight=w[good]), rel=1e-6)
        with pytest.warns(bp.errors.BpnetWarning, match="3 rows of x could not be used"):
            outputs = found.predict(bp.data.stream(x, bad_rows="skip", **kept))
        np.testing.assert_allclose(outputs[good], found.predict(x[good]), rtol=1e-5, atol=1e-6)
        assert np.isnan(outputs[[5, 40, 41]]).all()
        assert np.isfinite(outputs[[600, 601]]).all()
    x[32:64] = np.nan
    with pytest.raises(bp.errors.DataError, match="none of the 32 rows of a batch can be used"):
        fitted(bp.data.stream(x, y, bad_rows="skip", **SMALL), shuffle=False)
    made, x[:] = trainer().build(x[:2]), np.nan
    for call in (made.predict, made.evaluate):
        with pytest.raises(bp.errors.DataError, match="none of the 700 rows of x can be used"):
            call(bp.data.stream(x, y, bad_rows="skip", **SMALL))


def test_ranks_count_the_rows_that_they_skip() -> None:
    x, y, _ = data(dtype="float64")
    x[[5, 40, 41, 600]] = np.nan

    def work(ranks: Any) -> int:
        rows = bp.data.stream(x, y, bad_rows="skip", **SMALL)
        trainer(distributed=ranks).fit(rows, batch_size=32, progress=False)
        return rows.skipped

    with pytest.warns(bp.errors.BpnetWarning):
        assert sum(threads(2, work)) == 4


def test_a_file_that_is_cut_or_written_to_is_an_error(tmp_path: Path) -> None:
    """Of a map too, where reading on would end the process: within the epoch, and while the batch is there."""
    x, y, _ = data(5000)

    class Cut(bp.Callback):
        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            if step == 20:
                change()

    path = ""
    changes: list[tuple[Callable[[], Any], str]] = [
        (lambda: os.truncate(path, 10_000), r"x\.npy has been cut to 10,000 bytes of 80,128: restore the file"),
        (lambda: os.utime(path, ns=(0, 0)), r"x\.npy has changed since the stream was made"),
        (lambda: os.unlink(path), r"x\.npy can't be read: No such file"),
    ]
    for change, match in changes:  # noqa: B007 - the callback calls it
        path = saved(tmp_path, x=x)["x"]
        for given in (path, np.load(path, mmap_mode="r")):
            saved(tmp_path, x=x)
            rows = bp.data.stream(given, y, **SMALL)
            with pytest.raises(bp.errors.PathError, match=match):
                fitted(rows, epochs=9, callbacks=[Cut()])
    h5, _ = hdf5(tmp_path, x[:ROWS], y[:ROWS], y[:ROWS])
    change = lambda: os.truncate(h5, 2000)  # noqa: E731
    with pytest.raises(bp.errors.PathError, match="has been cut to 2,000 bytes of"):
        fitted(bp.data.stream(h5, "y", columns="x", **SMALL), epochs=9, callbacks=[Cut()])
    path = saved(tmp_path, x=x)["x"]
    os.truncate(path, 70_000)
    with pytest.raises(bp.errors.PathError, match="has 70,000 bytes of 80,128: it has been cut off"):
        bp.data.stream(path, y)


def test_a_damaged_table_is_an_error_with_the_row(tmp_path: Path) -> None:
    path, names = parquet(tmp_path, *data())
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + b"\xff" * 800 + whole[2800:])
    with pytest.raises(bp.errors.DataError, match=r"t\.parquet is damaged from row \d+ on: "):
        fitted(bp.data.stream(path, **names, **SMALL))
    path.write_bytes(whole[:-100])
    with pytest.raises(bp.errors.FileFormatError, match=r"t\.parquet is not a Parquet file, or is damaged"):
        bp.data.stream(path, **names)


def test_missing_values_of_a_table(tmp_path: Path) -> None:
    """NaN where numbers are missing, which a network may take; of labels they are bad rows."""
    pa = pytest.importorskip("pyarrow")
    x, y, _ = data()
    columns = {f"c{i}": pa.array(x[:, i]) for i in range(3)}
    columns["c3"] = pa.array([None if i % 7 == 0 else i for i in range(ROWS)])
    table = pa.table(columns | {"y": y})
    with pytest.raises(bp.errors.DataError, match="row 0 of the table: x has NaN or infinity"):
        fitted(bp.data.stream(table, "y", **SMALL), shuffle=False)
    x[:, 3] = np.where(np.arange(ROWS) % 7 == 0, np.nan, np.arange(ROWS))
    net = bp.Sequential(bp.NumericInput.fit(x), bp.Dense(3))
    found, expected = trainer(net), trainer(net)
    found.fit(bp.data.stream(table, "y", buffer=2**13, shuffle="exact"), progress=False)
    expected.fit(x, y, progress=False)
    same(found, expected)
    labels = pa.array([None if i == 611 else int(label) for i, label in enumerate(y)])
    with pytest.raises(bp.errors.DataError, match="row 611 of the table: y has no value"):
        fitted(bp.data.stream(table.select(["c0", "c1"]).append_column("y", labels), "y", **SMALL))


def test_files_may_hold_a_column_in_different_types(tmp_path: Path) -> None:
    """As pandas writes whole numbers with gaps; what has no column of that name or no numbers is an error."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "t"
    (folder / "_temporary").mkdir(parents=True)
    for name, values in {"0": [1, 2], "1": [0.5, None], "2": [], "_temporary/3": [4]}.items():
        parquet.write_table(pa.table({"a": values, "y": pa.array(values, "float64")}), folder / f"{name}.parquet")
    source = bp.data.stream(folder, "y").source
    np.testing.assert_array_equal(source.read(0, 4)[0], np.array([[1], [2], [0.5], [np.nan]]))
    assert source.count == 4
    parquet.write_table(pa.table({"a": ["2"], "y": [1.0]}), folder / "4.parquet")
    with pytest.raises(bp.errors.DTypeError, match=r"column 'a' of .* holds string values"):
        bp.data.stream(folder, "y")
    parquet.write_table(pa.table({"b": [2], "y": [1.0]}), folder / "4.parquet")
    with pytest.raises(bp.errors.ShapeError, match=r"4\.parquet has no column 'a': all files of"):
        bp.data.stream(folder, "y")
    dataset, compute = pytest.importorskip("pyarrow.dataset"), pytest.importorskip("pyarrow.compute")
    with pytest.raises(bp.errors.OptionError, match=r"data set that can't be streamed: .*filter"):
        bp.data.stream(dataset.dataset(folder / "0.parquet").filter(compute.field("a") > 1), "y")


def test_lists_must_be_of_one_length(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")

    def read(lists: Any, columns: Any = "x") -> Any:
        source = bp.data.stream(pa.table({"x": lists, "y": range(len(lists))}), "y", columns=columns).source
        return source.read(0, source.count)[0]

    np.testing.assert_array_equal(read([[1, 2], [None, 4]], ["x"]), np.array([[1, 2], [np.nan, 4]]))
    for lists in ([[1, 2], [3], [4, 5, 6]], [[1, 2], None]):
        with pytest.raises(bp.errors.DataError, match="row 1 of the table: column 'x' has no list of 2 values"):
            read(lists)
    with pytest.raises(bp.errors.DataError, match="row 0 of the table: column 'x' has no list, by which"):
        read([None, [1, 2]])


def test_no_value_is_cut_to_fit_the_type_of_the_first() -> None:
    x, y, _ = data()
    halves = (y / 2).tolist()
    halves[0] = 1
    source = bp.data.stream(x, halves).source
    np.testing.assert_array_equal(source.read(0, ROWS)[1], halves)
    whole = x.round().astype("int8")
    for given, match in (
        (lambda: [(x[:9], y[:9]), (x[9:], y[9:] / 2)], "batch 1 of x, from row 9 on, has float64 values, but the fir"),
        (lambda: [(whole[:9], y[:9]), (whole[9:].astype("int64"), y[9:])], "has int64 values, but the first row int8"),
        (Rows(np.array([1, 2.5, 3.0], object)), "x, from row 0 on, has float64 values, but the first row int64"),
    ):
        with pytest.raises(bp.errors.DTypeError, match=match):
            bp.data.stream(given).source.read(0, 3)


def test_what_can_be_no_stream(tmp_path: Path) -> None:
    x, y, w = data()
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.npy").write_bytes(b"hello")
    (tmp_path / "a.csv").write_bytes(b"a,y\n1,2\n")
    again = iter([(x, y)] * 2)
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    errors = bp.errors
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: bp.data.stream(7), errors.ArgumentError, "x is of type int; expected a path, an array, or an object"),
        (lambda: bp.data.stream(tmp_path / "a.npy"), errors.NoSuchPathError, "a.npy, which is not there"),
        (lambda: bp.data.stream(tmp_path / "a.h5"), errors.NoSuchPathError, "a.h5, which is not there"),
        (lambda: bp.data.stream(tmp_path / "a.parquet"), errors.NoSuchPathError, "a.parquet is not there"),
        (lambda: bp.data.stream(tmp_path / "empty"), errors.PathError, "a folder without files of rows"),
        (lambda: bp.data.stream(tmp_path / "no.npy"), errors.FileFormatError, "no.npy is not a .npy file, or is dam"),
        (lambda: bp.data.stream(tmp_path / "a.csv"), errors.FileFormatError, r"x is .*a.csv; expected .npy, a t"),
        (lambda: bp.data.stream(tmp_path / "objects.npy"), errors.DTypeError, "holds Python objects"),
        (lambda: bp.data.stream(x[:0]), errors.DataError, "x has no rows"),
        (lambda: bp.data.stream(x, y[:9]), errors.ShapeError, "x has 700 rows, but y has 9"),
        (lambda: bp.data.stream(x, y, shuffle="some"), errors.OptionError, "shuffle is 'some'; expected"),
        (lambda: bp.data.stream(x, y, buffer=0), errors.OptionError, "buffer is 0; expected"),
        (lambda: bp.data.stream(x, y, columns=["a"]), errors.OptionError, "columns is given, but x is of type ndarray"),
        (lambda: bp.data.stream(x, y, count=3), errors.OptionError, "count is given, but x is of type ndarray"),
        (lambda: bp.data.stream({"a": x, "b": [[1.0]]}, y), errors.ShapeError, r"x\['a'\] has 700 rows, but x"),
        (lambda: bp.data.stream(lambda: [x], y), errors.ArgumentError, "x is batches, and y or sample_weight is given"),
        (lambda: bp.data.stream(lambda: iter(())), errors.DataError, "x has no rows"),
        (lambda: bp.data.stream(lambda: 3), errors.ArgumentError, "x gave something of type int; expected an iterator"),
        (lambda: bp.data.stream(lambda: [(x, y), (x, y[:5])]), errors.ShapeError, "batch 1 of x, from row 700 on,"),
        (lambda: bp.data.stream(lambda: [(x, y), (x[:, :2], y)]), errors.ShapeError, r"has rows of \(2,\), \(\), but"),
        (lambda: fitted(bp.data.stream(lambda: again, count=700)), errors.DataError, "is to begin anew and give as"),
        (lambda: fitted(bp.data.stream(x)), errors.ArgumentError, "x is a stream without targets: pass them as y"),
        (lambda: fitted(bp.data.stream(lambda: [x])), errors.ArgumentError, "without targets: let each batch be"),
        (lambda: fitted(bp.data.stream(x, y), y), errors.ArgumentError, "x is a stream, and y is given too"),
        (lambda: fitted(x), errors.ArrayMismatchError, "y is None"),
        (
            lambda: fitted("x.npy", y),
            errors.ArrayMismatchError,
            "x is of type str; expected an array, or of a file bp.da",
        ),
        (lambda: fitted(bp.data.stream(x, y), validation=(x,)), errors.ShapeError, "validation has 1 part"),
        (lambda: fitted(bp.data.stream(x, w)), errors.DTypeError, "y holds float32 values, but labels are"),
    ]
    for call, kind, match in cases:
        with pytest.raises(kind, match=match):
            call()
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": x[:, 0], "text": ["b"] * ROWS, "y": y})
    for some, columns in ((table.select(["y"]), None), (table, []), (table, {})):
        with pytest.raises(errors.OptionError, match="there is no column of the table for x"):
            bp.data.stream(some, "y", columns=columns)
    with pytest.raises(errors.DataError, match="the table has more than one column 'a'"):
        bp.data.stream(table.append_column("a", table["y"]), "y")
    with pytest.raises(errors.UnknownNameError, match="unknown column of the table 'why': known are a, text, y"):
        bp.data.stream(table, "why")
    with pytest.raises(errors.ArgumentError, match="without targets: pass the name of their column as y"):
        fitted(bp.data.stream(table.select(["a"])))
    with pytest.raises(errors.DTypeError, match=r"column 'text' of the table holds string values; expected num"):
        bp.data.stream(table, "y")


def test_tables_without_pyarrow_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and a folder of them, while a folder of arrays needs nothing."""
    x, y, _ = data()
    for folder, name in (("tables", "a.parquet"), ("arrays", "a.npy")):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", x)
        (tmp_path / folder / "a.npy").rename(tmp_path / folder / name)
    monkeypatch.setitem(sys.modules, "bpnet.data.streams.arrow", None)
    monkeypatch.delattr("bpnet.data.streams.arrow", raising=False)
    for path in ("tables", "tables/a.parquet"):
        with pytest.raises(bp.errors.MissingExtraError, match=rf"{path} needs pyarrow: pip install 'bpnet-xp\[stream"):
            bp.data.stream(tmp_path / path, "y")
    assert bp.data.stream(tmp_path / "arrays", y).count == len(x)


def test_a_thread_that_reads_may_be_the_one_to_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an error has left a training, and its garbage is collected in that thread."""
    x, y, _ = data()
    begun: list[Any] = []
    given: list[int] = []
    errors: list[Exception] = []
    stepping, closed = threading.Event(), threading.Event()
    windows = Reader.windows
    monkeypatch.setattr(Reader, "windows", lambda *given: begun.append(windows(*given)) or begun[-1])

    def slow() -> Iterator[Any]:
        for at in range(ROWS):
            given.append(at)
            if at == 400:  # of the second window, while the first is computed with
                stepping.wait(60)
                try:
                    begun[0].close()
                except Exception as error:
                    errors.append(error)
                closed.set()
            yield x[at : at + 1], y[at : at + 1]

    class Waits(bp.Callback):
        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            stepping.set()
            closed.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(bp.data.stream(slow, count=ROWS, buffer=2**14), callbacks=[Waits()])
    assert closed.is_set()
    assert not errors


# ---- memory, threads, devices ---------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
import numpy as np
import bpnet as bp

path, labels = sys.argv[1:]
trainer = bp.Trainer(bp.Sequential(bp.Dense(4), bp.Dense(2)), "cross_entropy", compile=False)
x = np.zeros((64, 256), "f4")
trainer.fit(bp.data.stream(x, np.zeros(64, "i4"), buffer=2**10), batch_size=64, progress=False)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 120 * 2**20,) * 2)
rows = bp.data.stream(path, labels, buffer=2**25)
trainer.fit(rows, batch_size=4096, progress=False)
assert trainer.evaluate(rows)["accuracy"] == 1.0
assert len(trainer.predict(rows)) == len(rows) == 300_000
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_memory_is_bounded_whatever_the_file(tmp_path: Path) -> None:
    """A file of 300 MB within 120 MB more than there was, of which the stacks of threads take 32."""
    for name, shape, dtype in (("x", (300_000, 256), "<f4"), ("y", (300_000,), "u1")):
        with open(tmp_path / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    run = [sys.executable, "-c", LIMITED, str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    assert subprocess.run(run, timeout=120, capture_output=True, text=True).stderr == ""


def test_a_row_group_is_decoded_once_for_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many windows it is cut into, and threads there are."""
    path, names = one_group(tmp_path, *data())
    from bpnet.data.streams.arrow import Parquet

    plain, opened = Parquet.group, []

    def group(self: Any, number: int) -> Any:
        opened.append(number)
        return plain(self, number)

    rows = bp.data.stream(path, **names, **SMALL | {"threads": 4, "read_ahead": 3})
    made = trainer().build(data()[0])
    loaded = made._prepare({"x": rows, "y": None})
    monkeypatch.setattr(Parquet, "group", group)
    for epoch in range(3):
        assert len(list(loaded.batches(32, loaded.order(0, epoch, True, 32)))) == 22
    assert opened == [0, 0, 0]


def test_threads_end_with_the_training(tmp_path: Path) -> None:
    x, y, _ = data(5000)
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        fitted(bp.data.stream(x, y, threads=3, **SMALL), callbacks=[StopAt(7)])
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="there are no such signals")
def test_rows_that_never_come_keep_nobody_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PATIENCE", 0.1)
    (x, y, _), waits, here = data(), threading.Event(), threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell starts by &

    def given() -> Any:
        for start in range(0, ROWS, 50):
            if start == 600:
                here.set()
                waits.wait()
            yield x[start : start + 50], y[start : start + 50]

    main = threading.main_thread().ident
    threading.Thread(target=lambda: here.wait() and signal.pthread_kill(main, signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            fitted(bp.data.stream(given, count=ROWS, **SMALL))
    finally:
        signal.signal(signal.SIGINT, before)
        waits.set()
    for thread in threading.enumerate():
        if thread.name == "bpnet-stream":
            thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_an_exact_order_leaves_no_row_group_open(tmp_path: Path) -> None:
    path, names = parquet(tmp_path, *data())

    class Counts(bp.Callback):
        most = 0

        def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
            self.most = max(self.most, len(os.listdir("/proc/self/fd")))

    counts, before = Counts(), len(os.listdir("/proc/self/fd"))
    fitted(bp.data.stream(path, **names, shuffle="exact", **SMALL), callbacks=[counts], epochs=1)
    assert counts.most - before <= 2 * 2  # a thread has one, or is about to close it


def test_what_is_predicted_is_not_the_memory_of_a_window() -> None:
    @dataclass(frozen=True)
    class Handing(bp.Layer):
        """Gives x as it is."""

        def init(self, rng: Any, in_shape: Any) -> Any:
            return {"a": rng.full((1,), 0.0)}

        def forward(self, run: Any, p: Any, x: Any) -> Any:
            return x, None

        def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
            return dy, {"a": p["a"]}

    x, _, _ = data()
    made = bp.Trainer(Handing(), "mse", compile=False).build(x)
    np.testing.assert_array_equal(made.predict(bp.data.stream(x, **SMALL)), x)


def test_streams_to_another_library() -> None:
    """The values of arrays on the host that are streamed there."""
    pytest.importorskip("torch")
    x, y, w = data(200)
    x = (x * 9).astype("uint8")
    options: dict[str, Any] = {"device": "torch", "compile": False}
    found, expected = (bp.Trainer(NET, "cross_entropy", bp.Adam(0.02), **options) for _ in range(2))
    rows = bp.data.stream(x, y, sample_weight=w, buffer=2**11, shuffle="exact")
    found.fit(rows, batch_size=32, progress=False, validation=rows)
    expected.fit(x, y, sample_weight=w, batch_size=32, progress=False, validation=(x, y, w))
    np.testing.assert_allclose(np.asarray(found.theta), np.asarray(expected.theta), rtol=1e-6, atol=1e-7)
    assert found.history.epochs[0]["val_loss"] == pytest.approx(expected.history.epochs[0]["val_loss"], rel=1e-6)
    np.testing.assert_allclose(found.predict(rows), expected.predict(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [{}, {"buffer": 2**11, "block": 10}])
def test_streams_to_a_device(kept: dict[str, Any], world: World) -> None:
    """Through the memory that a device reads by itself, in whatever order its streams run."""
    x, y, w = data(200)
    x = (x * 9).astype("uint8")
    w = w + 1
    options: dict[str, Any] = {"batch_size": 32, "epochs": 2, "progress": False}
    rows = bp.data.stream(x, y, sample_weight=w, **kept)
    here = bp.Trainer(NET, "cross_entropy", bp.Adam(0.02), device="cuda")
    here.fit(rows, validation=rows, **options)
    there = bp.Trainer(NET, "cross_entropy", bp.Adam(0.02))
    order = here._prepare({"x": rows, "y": None})
    arrays = [world.array(a) for a in (x.astype("float32"), y, w)]
    there.fit(
        *arrays[:2], sample_weight=arrays[2], shuffle=lambda epoch: order.order(0, epoch, True, 32).rows(), **options
    )
    for a, b in zip((here.theta, *here.state), (there.theta, *there.state), strict=True):
        np.testing.assert_array_equal(world.cupy.asnumpy(a), world.cupy.asnumpy(b))
    scores = there.evaluate(*arrays[:2], sample_weight=arrays[2])
    assert here.history.epochs[-1]["val_loss"] == pytest.approx(scores["loss"], rel=1e-6)
    outputs = here.predict(rows)
    assert type(outputs) is np.ndarray
    np.testing.assert_allclose(outputs, world.cupy.asnumpy(there.predict(arrays[0])), rtol=1e-6)
