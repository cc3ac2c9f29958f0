"""train_table: a model of a table from Python, and the parts that it is made of."""

import warnings

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import BpnetWarning, DataError, OptionError
from bpnet.tabular import leaks, sizing, splits
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.training import prepare

QUICK = {"epochs": 30, "lr": 0.02, "hidden": (16,), "dropout": 0.0, "progress": False, "compile": False}


def shop(rows=120, seed=0):
    """A table of columns: two numbers, a text, a date, and targets of every kind."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=rows), rng.normal(size=rows)
    city = np.array(["Oslo", "Rom", "Wien"], object)[rng.integers(0, 3, rows)]
    score = a + (city == "Rom") * 2.0
    return {
        "a": np.where(rng.random(rows) < 0.1, np.nan, a),
        "b": b,
        "city": city,
        "when": np.datetime64("2024-01-01") + rng.integers(0, 300, rows),
        "score": score,
        "large": 1e4 + 500.0 * score,
        "rich": np.where(score > 1.0, "yes", "no").astype(object),
    }


def without(columns, *names):
    return {name: values for name, values in columns.items() if name not in names}


def test_labels_and_quantities():
    columns = shop()
    model = bp.train_table(without(columns, "score", "large"), "rich", **QUICK)
    assert model.classes_.tolist() == ["no", "yes"]
    assert np.mean(model.predict(columns) == columns["rich"]) > 0.9
    assert model.predict_proba(columns).sum(axis=1) == pytest.approx(1.0)
    model = bp.train_table(without(columns, "rich", "large"), "score", **QUICK)
    assert np.corrcoef(model.predict(columns), columns["score"])[0, 1] > 0.9
    assert model.target_name == "score"


def test_the_target_may_be_an_array():
    columns = shop()
    x = np.stack([columns["a"], columns["b"]], axis=1)
    model = bp.train_table(x, columns["rich"], **QUICK)
    assert set(model.predict(x)) <= {"no", "yes"}
    both = bp.train_table(x, np.stack([columns["score"], columns["large"]], axis=1), **QUICK)
    assert both.predict(x).shape == (120, 2)


def test_several_quantities_count_alike_whatever_their_units():
    columns = shop(300)
    model = bp.train_table(without(columns, "rich"), ["score", "large"], **QUICK)
    found = model.predict(columns)
    for i, name in enumerate(("score", "large")):
        assert np.corrcoef(found[:, i], columns[name])[0, 1] > 0.85


def test_rows_without_a_target_are_left_out_with_a_warning():
    columns = without(shop(), "score", "large")
    columns["rich"][[7, 9]] = None
    with pytest.warns(BpnetWarning, match="2 rows of the table have no 'rich', first in row 7: left out"):
        model = bp.train_table(columns, "rich", **QUICK | {"epochs": 1})
    assert len(model.classes_) == 2


def test_suspicions_are_warned_of_in_python_s_words():
    columns = without(shop(), "large", "score") | {"same": ["x"] * 120, "number": np.arange(120)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bp.train_table(columns, "rich", **QUICK | {"epochs": 1})
    same, number = (str(warning.message) for warning in caught)
    assert same == "column 'same' of the table never varies, and is left out"
    assert number.startswith("column 'number' of the table counts the rows: if it is their number and no quantity")
    assert number.endswith("leave it out with drop=['number']")


def test_the_schema_is_of_the_rows_that_are_trained_on():
    columns = without(shop(), "score", "large")
    training = prepare(columns, "rich", TrainingOptions(validation=0.25))
    alone = columns["city"].copy()
    alone[training.held_out[0]] = "Atlantis"
    training = prepare(columns | {"city": alone}, "rich", TrainingOptions(validation=0.25))
    (city,) = (feature for feature in training.model.schema.features if feature.name == "city")
    assert city.values == ("Oslo", "Rom", "Wien")
    assert set(training.rows) | set(training.held_out) == set(range(120))


def test_what_is_wrong_is_said_before_the_training():
    columns = without(shop(), "score", "large")
    for options, words in (
        ({"hidden": (0,)}, "hidden"),
        ({"schedule": "cosin"}, "schedule is 'cosin'"),
        ({"class_weight": {"maybe": 2.0}}, "class_weight has the class 'maybe'"),
        ({"hidden": (10**6, 10**6, 10**6)}, "hidden makes a network"),
        ({"optimizer": "prodigy", "weight_decay": -1.0}, "weight_decay is -1"),
    ):
        with pytest.raises(OptionError, match=words):
            bp.train_table(columns, "rich", **options)
    with pytest.raises(DataError, match="no column 'poor'"):
        bp.train_table(columns, "poor")


@pytest.mark.parametrize("preset", ["strong", "simple"])
def test_presets(preset):
    columns = shop()
    model = bp.train_table(
        without(columns, "score", "large"), "rich", preset=preset, epochs=8, progress=False, compile=False
    )
    assert model.evaluate(columns)["accuracy"] > 0.7
    numbers = bp.train_table(
        without(columns, "rich", "large"), "score", preset=preset, members=2, epochs=2, progress=False, compile=False
    )
    assert numbers.outputs(columns).shape == (120, 2, 1)
    low, high = columns["score"].min(), columns["score"].max()
    assert preset == "simple" or ((low <= numbers.predict(columns)) & (numbers.predict(columns) <= high)).all()


def test_class_weights_move_the_boundary():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(180, 1)), rng.normal(size=(20, 1)) + 1.5])
    y = np.repeat([0, 1], [180, 20])
    shares = []
    for weight in (None, "balanced", {1: 30.0}):
        model = bp.train_table(x, y, **QUICK, class_weight=weight)
        shares.append(float(np.mean(model.predict(x) == 1)))
    assert shares[0] < shares[1] < shares[2]


# ---- its parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(60, 30, 10), (97, 2, 1), (5, 5), (1, 1, 200)], ids=str)
def test_rows_are_held_out_of_every_class(sizes):
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rows, out = splits.split(len(classes), 0.2, 3, classes)
    assert sorted([*rows, *out]) == list(range(len(classes)))
    held = np.bincount(classes[out], minlength=len(sizes))
    for size, count in zip(sizes, held, strict=True):
        assert count <= max(size - 1, 0)
        assert abs(count - 0.2 * size) <= 1.0 or size <= 2
    again = splits.split(len(classes), 0.2, 3, classes)
    assert (again[0] == rows).all()


def test_folds_hold_out_every_row_once():
    classes = np.repeat([0, 1, 2], [40, 25, 7])
    parts = splits.folds(72, 5, 0, classes)
    assert sorted(np.concatenate([out for _, out in parts])) == list(range(72))
    for rows, out in parts:
        assert sorted([*rows, *out]) == list(range(72))
        assert np.bincount(classes[out], minlength=3).tolist() in ([8, 5, 1], [8, 5, 2])


def test_sizes_grow_with_the_rows():
    sizes = [sizing.size_for(rows, classes=True) for rows in (20, 274, 1_437, 10_000, 100_000, 10_000_000)]
    assert [size.hidden[0] for size in sizes] == sorted(size.hidden[0] for size in sizes)
    assert [size.batch_size for size in sizes] == sorted(size.batch_size for size in sizes)
    assert (sizes[0].hidden, sizes[1].hidden, sizes[-1].hidden) == ((32, 16), (64, 32), (512, 256))
    assert all(30 <= size.epochs <= 200 for size in sizes)
    columns = without(shop(274), "score", "large")
    assert prepare(columns, "rich", TrainingOptions()).model.trainer.layout.size < 10_000


def test_rows_are_known_again():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 4)).astype(np.float32), rng.integers(0, 2, 500)
    x[3, 1] = np.nan
    known = leaks.remembered({"numbers": x[:400], "categories": y[:400, None]}, y[:400], None)
    assert known["alike"] == 0.0
    assert leaks.seen_share(known, {"numbers": x[:400], "categories": y[:400, None]}, y[:400]) == 1.0
    assert leaks.seen_share(known, {"numbers": x[200:], "categories": y[200:, None]}, y[200:]) == pytest.approx(2 / 3)
    assert leaks.seen_share(known, {"numbers": x[400:], "categories": y[400:, None]}, y[400:]) == 0.0
    many = rng.normal(size=(150_000, 1)).astype(np.float32)
    known = leaks.remembered(many, np.zeros(150_000), (many[:10], np.zeros(10)))
    assert len(known["hashes"]) < 400_000
    mixed = np.concatenate([many[:5000], rng.normal(size=(5000, 1)).astype(np.float32)])
    assert leaks.seen_share(known, mixed, np.zeros(10_000)) == pytest.approx(0.5, abs=0.05)
