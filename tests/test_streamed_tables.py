"""Tables that are larger than memory: what one pass finds, rows encoded as they are read, and the commands on them."""

import os
import re
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import DataError, DTypeError, OptionError, PathError

pytest.importorskip("pyarrow", reason="reading tables needs pyarrow (the cli extra)")

import pyarrow as pa
from pyarrow import ipc, parquet

from bpnet.tabular import files, scan, streaming
from bpnet.tabular.files import TableFile
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.splits import BySeed
from bpnet.tabular.streaming import prepare_file
from bpnet.tabular.training import prepare

ROWS = 1500
OPTIONS = {"hidden": [8], "epochs": 3, "batch_size": 64, "dropout": 0.0, "threads": 1}


def flights(rows=ROWS, seed=0):
    """Text, gaps, dates, booleans and numbers, a quantity and a class that depend on them."""
    rng = np.random.default_rng(seed)
    city, distance = rng.integers(0, 30, rows), rng.gamma(2.0, 300.0, rows)
    note = np.array(["ok", "late", None], dtype=object)[rng.integers(0, 3, rows)]
    age = [
        None if gone else int(value)
        for value, gone in zip(rng.integers(18, 90, rows), rng.random(rows) < 0.05, strict=True)
    ]
    delay = 20 + 3.0 * (city % 7) + 0.02 * distance + 15.0 * (note == "late") + rng.normal(size=rows)
    return {
        "city": [f"city {c}" for c in city],
        "distance": distance,
        "when": [datetime(2021, 1, 1) + timedelta(minutes=int(m)) for m in rng.integers(0, 900_000, rows)],
        "age": age,
        "note": note.tolist(),
        "code": [None if c == 3 else str(c) for c in rng.integers(0, 9, rows)],
        "weekend": rng.random(rows) < 0.3,
        "unit": np.ones(rows),
        "delay": [None if i % 97 == 5 else float(d) for i, d in enumerate(delay)],
        "kind": np.where(delay > 50, "long", np.where(delay > 40, "mid", "short")).tolist(),
    }


def write(columns, path="flights.parquet", group=400):
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return str(path)


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path():
    return write(flights())


def streamed(path, target="delay", **more):
    drop = {"delay": ("kind",), "kind": ("delay",)}[target]
    reading = {name: more.pop(name) for name in ("bad_rows", "features") if name in more}
    return prepare_file(TableFile(path), target, TrainingOptions(**{**OPTIONS, "drop": drop, **more}), **reading)


def rows_of(training):
    """All rows that are trained on, as the network takes them."""
    (stream,) = training.seen
    return dict(zip(stream.source.names, stream.source.read(0, stream.count), strict=True))


def same(a, b):
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


# ---- the same as in memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["delay", "kind"])
def test_where_all_rows_are_sampled_a_stream_is_what_it_is_in_memory(path, target):
    ours = streamed(path, target, class_weight="balanced" if target == "kind" else None)
    table = pa.table(flights())
    kept = np.flatnonzero(~np.array([value is None for value in flights()[target]]))
    held_out = np.searchsorted(kept, ours.numbers)
    parts = np.setdiff1d(np.arange(len(kept)), held_out), held_out
    theirs = prepare(table, target, ours.options, parts)
    assert ours.model.schema == theirs.model.schema
    assert ours.model.target == theirs.model.target
    assert ours.size == theirs.size
    network, other = (str(t.model.trainer.network) for t in (ours, theirs))
    assert network == other
    found, (x, *rest) = rows_of(ours), theirs.seen
    assert all(same(found[name], array) for name, array in x.items())
    assert all(same(found[name], array) for name, array in zip(["y", "sample_weight"], rest, strict=False))
    assert len(found) == len(x) + len(rest)
    for a, b in zip(ours.unseen, theirs.unseen, strict=True):
        assert all(same(a[n], b[n]) for n in a) if isinstance(a, dict) else same(a, b)
    assert any("never varies" in text for text in ours.warnings())


def test_a_stream_that_fits_trains_to_the_same_bits_as_memory(path):
    ours = streamed(path)
    x = rows_of(ours)
    y = x.pop("y")
    ours.fit(progress=False)
    theirs = streamed(path)
    theirs.seen = x, y
    theirs.fit(progress=False)
    assert same(ours.model.trainer.theta, theirs.model.trainer.theta)


def test_reading_goes_on_where_it_was_left_or_begins_anew(path):
    (stream,) = streamed(path).seen
    source = stream.source
    whole = source.read(0, source.count)
    for start, stop in [(0, 100), (100, 350), (700, 900), (20, 30), (source.borders[1] - 3, source.borders[2] + 5)]:
        assert all(same(a, b[start:stop]) for a, b in zip(source.read(start, stop), whole, strict=True))


def test_files_of_a_folder_are_one_table_and_arrow_is_read_too(path):
    whole = rows_of(streamed(path))
    columns, folder = flights(), Path("folder")
    folder.mkdir()
    for name, part in (("a", slice(0, 800)), ("b", slice(800, ROWS))):
        write({key: values[part] for key, values in columns.items()}, folder / f"{name}.parquet")
    (folder / "_metadata.parquet").write_bytes(b"of Spark")
    table = pa.table(columns)
    with ipc.new_file("flights.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=500)
    for other in ("folder", "flights.arrow"):
        found = rows_of(streamed(other))
        assert all(same(found[name], array) for name, array in whole.items())


# ---- what one pass finds --------------------------------------------------------------------------------------------


def test_of_many_values_the_frequent_are_counted_within_a_bound(monkeypatch):
    monkeypatch.setattr(scan, "MOST", 50)
    rng, tally = np.random.default_rng(0), scan.Tally()
    drawn = rng.zipf(1.3, 20_000) % 1000
    for part in np.split(drawn, 100):
        values, counts = np.unique(part, return_counts=True)
        tally.add([f"v{v}" for v in values], counts.tolist())
    assert len(tally.counts) <= 100
    true = np.bincount(drawn, minlength=1000)
    for value, count in tally.counts.items():
        assert true[int(value[1:])] - tally.lost <= count <= true[int(value[1:])]
    best = np.argsort(-true)[:10]
    assert all(f"v{v}" in tally.counts for v in best)


def test_text_that_is_no_number_is_not_given_up(monkeypatch):
    monkeypatch.setattr(scan, "MOST", 40)
    columns = flights()
    columns["code"] = [f"{i}.5" if i % 400 != 7 else "unknown" for i in range(ROWS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = streamed(write(columns))
    feature = next(f for f in training.model.schema.features if f.name == "code")
    assert (feature.kind, feature.texts) == ("number", ("unknown",))


def test_a_sample_is_bounded_and_what_it_could_miss_is_known(monkeypatch):
    monkeypatch.setattr(scan, "SAMPLE", 300)
    columns = flights(6000)
    columns["rare gap"] = [None if i == 5000 else float(i % 7) for i in range(6000)]
    columns["unit"] = [1.0] * 5999 + [2.0]
    columns["seat"] = ["window"] * 5990 + ["aisle"] * 10
    drawn = []
    monkeypatch.setattr(streaming, "remarks_on", lambda frame, *rest: drawn.append(frame.rows) or [])
    training = streamed(write(columns))
    assert 200 < drawn[0] < 400
    schema, network = training.model.schema, training.model.trainer.network
    gap = schema.numbers.index("rare gap")
    assert gap in network.layers[0].numbers.missing
    assert "unit" in schema.names
    assert next(f for f in schema.features if f.name == "seat").values == ("aisle", "window")
    everything = np.array(columns["distance"])
    center = network.layers[0].numbers.center[schema.numbers.index("distance")]
    assert abs((everything < center).mean() - 0.5) < 2.0 / np.sqrt(drawn[0])


def test_rows_are_held_out_by_their_numbers_alone():
    split, numbers = BySeed(3, 0.2), np.arange(100_000)
    found = split.held_out(numbers)
    assert abs(found.mean() - 0.2) < 0.005
    assert same(found, np.concatenate([split.held_out(part) for part in np.array_split(numbers, 7)]))
    assert not same(found, BySeed(4, 0.2).held_out(numbers))
    few = BySeed(3, 0.2, np.array([99_995, 5])).held_out(numbers, (numbers % 20_000 == 7).astype(int))
    assert not few[7::20_000].any()
    assert not BySeed(3, 0.0, np.array([10, 10])).held_out(numbers[:20], numbers[:20] % 2).any()


def test_moments_of_parts_are_those_of_all_rows():
    from bpnet.tabular.scaling import Spread, moments

    rng = np.random.default_rng(0)
    y = np.stack([1e6 + rng.normal(size=1000), np.full(1000, 2.5), 1e-200 * rng.normal(size=1000)], axis=1)
    spread = Spread()
    for part in np.array_split(y, 13):
        spread.add(part)
    mean, deviation, lost = moments(y)
    assert np.allclose(spread.mean, mean, rtol=1e-12)
    assert np.allclose(spread.deviation[:2], deviation[:2], rtol=1e-10)
    assert 0.0 < spread.deviation[2] < 1e-198  # whose square is no number of float64
    assert np.array_equal(spread.lost, lost)
    assert np.array_equal(spread.ends, [y.min(axis=0), y.max(axis=0)])


def test_a_target_is_judged_by_all_of_its_values():
    assert streamed(write(flights()), "kind").model.target.classes == ("long", "mid", "short")
    columns = flights()
    columns["delay"] = [i % 5 for i in range(ROWS)]
    assert streamed(write(columns)).model.target.kind == "class"
    columns["delay"] = [i % 1100 for i in range(ROWS)]
    assert streamed(write(columns)).model.target.kind == "number"
    columns["delay"] = [bool(i % 2) for i in range(ROWS)]
    columns["kind"] = [bool(i % 3) for i in range(ROWS)]
    both = prepare_file(TableFile(write(columns)), ["delay", "kind"], TrainingOptions(**OPTIONS))
    assert both.model.target.kind == "multilabel"


# ---- trained, saved, taken up ---------------------------------------------------------------------------------------


def test_train_table_takes_a_path_and_gives_an_ordinary_model(path):
    with pytest.warns(bp.errors.BpnetWarning):
        model = bp.train_table(path, "kind", stream=True, drop="delay", **OPTIONS | {"epochs": 8, "lr": 0.01})
    model.save("model.safetensors")
    loaded = bp.load("model.safetensors")
    table = pa.table(flights(400, seed=1))
    assert (model.predict(table) == loaded.predict(table)).all()
    assert model.evaluate(table)["accuracy"] > 0.6
    with pytest.warns(bp.errors.BpnetWarning):
        again = bp.train_table(path, "kind", drop="delay", **OPTIONS | {"epochs": 8, "lr": 0.01})
    assert abs(again.evaluate(table)["accuracy"] - model.evaluate(table)["accuracy"]) < 0.1


def test_a_training_goes_on_from_a_checkpoint_within_an_epoch(path, monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER", 1 << 14)  # several windows an epoch
    whole = streamed(path)
    whole.fit(progress=False)

    class Stops(bp.Callback):
        def on_step_end(self, trainer, step):
            if trainer.step_count == 25:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streamed(path).fit([Stops()], progress=False, checkpoint="steps", every=10)
    os.utime(path, ns=(0, 0))  # as a copy would have another time
    resumed = streamed(path)
    resumed.fit(progress=False, checkpoint="steps", every=10, resume=True)
    assert same(whole.model.trainer.theta, resumed.model.trainer.theta)
    assert whole.best_epoch == resumed.best_epoch


def test_a_preset_starts_from_the_sample(path):
    training = streamed(path, preset="simple", hidden=None, dropout=None, epochs=2)
    training.fit(progress=False)
    assert np.isfinite(training.model.trainer.theta).all()


# ---- rows and files that can't be used ------------------------------------------------------------------------------


def test_an_infinite_number_is_an_error_with_the_row_or_left_out():
    columns = flights()
    columns["distance"][777] = np.inf
    columns["delay"][5] = 1.0
    columns["delay"][13] = -np.inf
    path = write(columns)
    with pytest.raises(DataError, match=r"target 'delay' of flights\.parquet is infinite in row 13: a missing"):
        streamed(path)
    training = streamed(path, bad_rows="skip")
    count = sum(value is not None for value in columns["delay"])
    assert len(training.rows) + len(training.held_out) == count - 2
    assert any("2 rows of flights.parquet left out" in text for text in training.warnings())
    x = rows_of(training)
    assert np.isfinite(x["y"]).all()
    assert not np.isinf(x["numbers"]).any()


def test_a_quantity_that_the_loss_does_not_take_names_its_row():
    columns = flights()
    columns["delay"][901] = -3.0
    path = write(columns)
    with pytest.raises(DataError, match="has -3 in row 901; "):
        streamed(path, loss="poisson")
    assert len(streamed(path, loss="poisson", bad_rows="skip").rows)


def test_rows_that_cannot_be_read_are_named(path):
    good, size = Path(path).read_bytes(), os.path.getsize(path)
    group = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    start = group.dictionary_page_offset or group.data_page_offset
    Path(path).write_bytes(good[:start] + b"\xff" * 400 + good[start + 400 :])
    assert os.path.getsize(path) == size
    with pytest.raises(DataError, match=r"rows 400 to 799 of flights\.parquet can't be read as parquet"):
        streamed(path)
    Path(path).write_bytes(good[: size // 2])
    with pytest.raises(DataError, match=r"flights\.parquet can't be read as parquet"):
        streamed(path)


def test_a_file_that_changes_under_the_training_is_an_error(path):
    training = streamed(path)
    write(flights(seed=2))
    with pytest.raises(PathError, match=r"flights\.parquet has changed"):
        training.fit(progress=False)


def test_an_arrow_file_may_be_cut_while_it_is_read():
    """What has been read stays, where a map of the file would end the process; what comes next is an error."""
    table = pa.table({"a": np.arange(5000.0), "text": ["b"] * 5000})
    with ipc.new_file("t.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=2500)
    read = TableFile("t.arrow").tables(["a"])
    _, first = next(read)
    os.truncate("t.arrow", 1000)
    assert first["a"].to_numpy().sum() == np.arange(2500.0).sum()
    with pytest.raises(PathError, match=r"t\.arrow has changed while it was read"):
        next(read)


def test_files_of_a_folder_must_have_the_same_columns():
    Path("folder").mkdir()
    write(flights(100), "folder/a.parquet")
    columns = flights(100)
    columns["age"] = ["old"] * 100
    write(columns, "folder/b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has other columns than folder.a\.parquet, first 'age' \(string\)"):
        TableFile("folder")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"target": np.zeros(ROWS)}, OptionError, "target is none of the columns of flights.parquet"),
        ({"target": "delays"}, DataError, "flights.parquet has no column 'delays': did you mean 'delay'"),
        ({"target": ["delay", "kinds"]}, DataError, "no column 'kinds'"),
        ({"drop": "citi"}, DataError, "no column 'citi': did you mean 'city'"),
        ({"loss": "mse", "target": "kind"}, DTypeError, "target 'kind' of flights.parquet is text"),
        ({"bad_rows": "drop"}, OptionError, "bad_rows"),
        ({"table": {"x": [1, 2], "delay": [1, 2]}}, OptionError, "stream=True is for tables in files"),
        ({"table": "flights.csv"}, DataError, "flights.csv is no table that can be read by parts"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_cannot_be_streamed_says_why(path, given, error, words):
    arguments = {"table": path, "target": "delay", "stream": True, "progress": False} | given
    table, target = arguments.pop("table"), arguments.pop("target")
    with pytest.raises(error, match=words):
        bp.train_table(table, target, **OPTIONS | arguments)


def test_a_table_streams_where_it_would_take_half_of_the_free_memory(path, monkeypatch):
    file = TableFile(path)
    for free, expected in ((None, False), (10 * file.size, False), (5 * file.size, True)):
        monkeypatch.setattr(files, "free_memory", lambda free=free: free)
        assert files.streams(file, None) is expected
        assert files.streams(file, False) is False
    assert isinstance(files.in_memory_or_not(path, None), TableFile)
    assert files.in_memory_or_not(path, False).num_rows == ROWS
    monkeypatch.undo()
    assert files.free_memory() > 1 << 20


# ---- the commands ---------------------------------------------------------------------------------------------------

SMALL = ("--hidden", "8", "--epochs", "4", "--batch-size", "64", "--lr", "0.01", "--dropout", "0")


@pytest.fixture
def command():
    pytest.importorskip("typer", reason="the command line needs typer (the cli extra)")
    from tests.support import command

    return command


def test_the_commands_stream_and_say_so(path, command):
    result = command.ok("train", path, "-t", "kind", "--drop", "delay", "--stream", *SMALL)
    assert re.search(
        r"1,\d\d\d rows to train on, \d+ held out; 3 classes; .*; streamed, as all rows would take", result.out
    )
    assert "Confusion matrix" in result.out
    held_out = int(re.search(r"([\d,]+) held out", result.out)[1])
    found = [
        command.ok("evaluate", "model.safetensors", path, way, "--json", "--metric", "f1").json
        for way in ("--stream", "--no-stream")
    ]
    for name in ("loss", "accuracy", "f1", "rows", "held_out"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-6)
    assert (found[0]["rows"], found[0]["held_out"]) == (held_out, True)
    other = write(flights(300, seed=5), "other.parquet", 70)
    lines = [command.ok("evaluate", "model.safetensors", other, way).out for way in ("--stream", "--no-stream")]
    assert lines[0] == lines[1]
    assert "on all 300 rows" in lines[0]


def test_predictions_are_written_part_by_part(path, command):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bp.train_table(path, "kind", drop="delay", **OPTIONS | {"epochs": 1}).save("model.safetensors")
    keys = ["--keys", "city,age,when,note"]
    for ending, more in (("csv", keys), ("jsonl", keys), ("npy", []), ("parquet", [*keys, "--proba"]), (None, [])):
        found = []
        for way in ("--stream", "--no-stream"):
            to = [] if ending is None else ["--output", f"found.{ending}"]
            result = command.ok("predict", "model.safetensors", path, way, *more, *to)
            found.append(Path(f"found.{ending}").read_bytes() if ending else result.out)
            if ending == "parquet":
                found[-1] = parquet.read_table("found.parquet")
        if ending != "parquet":
            assert found[0] == found[1], ending
            continue
        a, b = (table.to_pydict() for table in found)
        for name in a:
            assert a[name] == (pytest.approx(b[name], abs=1e-6) if name.startswith("proba") else b[name])


def test_rows_count_from_one_in_the_commands(command):
    columns = flights()
    columns["distance"][777] = np.inf
    path = write(columns)
    line = command.refused("train", path, "-t", "delay", "--drop", "kind", "--stream", *SMALL)
    assert "column 'distance' of flights.parquet is infinite in row 778" in line
    result = command.ok("train", path, "-t", "delay", "--drop", "kind", "--stream", "--bad-rows", "skip", "-q", *SMALL)
    assert "1 row of flights.parquet left out, of which the first: column 'distance'" in result.err
    assert "no 'delay', first in row 6: left out" in result.err
    held_out = int(re.search(r"([\d,]+) rows held out", result.out)[1]) if "held out" in result.out else 0
    assert command.ok("evaluate", "model.safetensors", path, "--stream", "--json").json["rows"] == held_out
    assert "row 778" in command.refused("predict", "model.safetensors", path, "--stream", "-o", "p.csv")
    assert not Path("p.csv").exists()


def test_what_needs_all_rows_is_refused(path, command):
    for option in (("--folds", "3"), ("--search", "3")):
        line = command.refused("train", path, "-t", "kind", "--stream", *option)
        assert f"{option[0]} needs all rows in memory, but flights.parquet is streamed, as --stream asks" in line
    Path("small.csv").write_text("a,b\n1,2\n")
    assert "--stream is for Parquet" in command.refused("train", "small.csv", "-t", "b", "--stream")
    assert "--missing" in command.refused("train", path, "-t", "kind", "--stream", "--missing", "x")
    assert "--bad-rows skip" in command.refused("train", path, "-t", "kind", "--bad-rows", "skip")
    command.ok("train", path, "-t", "kind", "--drop", "delay", "--no-stream", "-q", "-o", "m.safetensors", *SMALL)
    assert "give --no-stream" not in command.ok("evaluate", "m.safetensors", path, "-q").out
    assert "--json" in command.refused("predict", "m.safetensors", path, "--stream", "--json")
