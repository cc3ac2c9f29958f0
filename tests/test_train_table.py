"""train_table: a model of a table from Python, and the parts that it is made of."""

import dataclasses
import inspect
import warnings

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import BpnetWarning, DataError, OptionError, ShapeError, UnknownNameError
from bpnet.tabular import leaks, sizing, splits
from bpnet.tabular.folds import each_fold
from bpnet.tabular.model import TableModel
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.schema import Schema
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
    infinite = columns | {"b": np.where(np.arange(120) == 12, np.inf, columns["b"])}
    with pytest.raises(DataError, match="column 'b' of the table is infinite in row 12"):
        bp.train_table(infinite, "rich", **QUICK)
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
    with pytest.raises(DataError, match="no column to learn from: there is the target alone"):
        bp.train_table({"rich": columns["rich"]}, "rich")
    with pytest.raises(DataError, match="no column 'poor'"):
        bp.train_table(columns, ["rich", "poor"])
    with pytest.raises(DataError, match=r"the target of the table has 0 in row 3; Gamma\(\) needs targets above 0"):
        bp.train_table({"b": columns["b"]}, np.where(np.arange(120) == 3, 0.0, 1.5), loss="gamma")
    infinite = np.stack([columns["b"], np.where(np.arange(120) == 7, np.inf, columns["b"])], axis=1)
    with pytest.raises(DataError, match="column 'x1' of the table is infinite in row 7"):
        bp.train_table(infinite, columns["rich"])


@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_the_unit_of_a_quantity_does_not_matter_to_sgd(schedule):
    columns = shop(60)
    x = np.stack([columns["b"], columns["score"]], axis=1)
    options = QUICK | {"epochs": 2, "optimizer": bp.SGD(lr=0.02), "lr": None, "schedule": schedule, "validation": 0.0}
    small, large = (bp.train_table(x, columns["b"] ** 2 * unit + 0.5, **options).predict(x) for unit in (1.0, 2.0**13))
    np.testing.assert_allclose((large - 0.5) * 2.0**-13, small - 0.5, atol=1e-4)


@pytest.mark.parametrize("preset", ["strong", "simple"])
def test_presets(preset):
    columns = shop()
    model = bp.train_table(
        without(columns, "score", "large"), "rich", preset=preset, epochs=8, progress=False, compile=False
    )
    assert model.evaluate(columns)["accuracy"] > 0.7
    numbers = bp.train_table(
        without(columns, "rich", "large"), "score", preset=preset, ensemble=2, epochs=2, progress=False, compile=False
    )
    assert numbers.outputs(columns).shape == (120, 2, 1)
    low, high = columns["score"].min(), columns["score"].max()
    several = bp.train_table(
        without(columns, "rich", "large", "score"),
        np.stack([columns["score"] > 0, columns["a"] > 0], axis=1),
        loss="binary_cross_entropy",
        preset=preset,
        epochs=1,
        progress=False,
        compile=False,
    )
    assert several.predict_proba(columns).shape == (120, 2)
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


def test_a_fold_has_no_say_in_its_training():
    x = np.arange(60.0).reshape(30, 2)
    options = TrainingOptions(epochs=1, hidden=(2,))
    apart = []
    for training, part in each_fold(x, x[:, 0] % 4, options, 3):
        lots = [lot[1] for lot in (training.seen, training.unseen, training.apart)]
        assert [len(lot) for lot in lots] == [16, 4, 10]
        known = np.concatenate([training.rows, training.held_out])
        assert set(range(30)) - set(known.tolist()) == set(part.tolist())
        apart += part.tolist()
    assert sorted(apart) == list(range(30))


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


def test_the_target_may_be_a_column_of_an_array_and_others_may_be_left_out():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 2, (80, 1)), rng.normal(size=(80, 3))], axis=1)
    model = bp.train_table(x, "x0", drop=["x2"], **QUICK | {"epochs": 2})
    assert (model.schema.names, model.schema.width) == (("x1", "x3"), 4)
    found = model.predict_proba(x)
    np.testing.assert_array_equal(model.predict_proba(x[:, [1, 3]]), found)
    restored = TableModel(Schema.restore(model.schema.describe()), model.target, model.trainer)
    np.testing.assert_array_equal(restored.predict_proba(x.tolist()), found)


@pytest.mark.parametrize("as_one", [True, False])
def test_tables_of_another_library_are_trained_on_where_they_are(as_one):
    strict = pytest.importorskip("array_api_strict")
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    x[:, 2] = np.arange(60) % 4
    table = strict.asarray(x) if as_one else {f"x{i}": strict.asarray(x[:, i].copy()) for i in range(3)}
    model = bp.train_table(table, "x2", **QUICK | {"epochs": 2})
    with pytest.raises(DataError, match="column 'x1' of the table is infinite in row 7"):
        bp.train_table(strict.asarray(np.where(np.arange(60)[:, None] == 7, [0, np.inf, 0], x)), "x2", **QUICK)
    bp.train_table(table, strict.asarray(x[:, 2] > 1.0), class_weight="balanced", **QUICK | {"epochs": 1})
    found = model.predict(table)
    assert isinstance(found, type(strict.asarray(0)))
    assert found.shape == (60,)


@pytest.mark.parametrize("rows", [30, 90])
@pytest.mark.parametrize("kind", ["rich", "score"])
def test_targets_of_another_length_are_refused(kind, rows):
    columns = shop(60)
    with pytest.raises(ShapeError, match=rf"has {rows} values, but the table 60 rows"):
        bp.train_table({"a": columns["a"]}, shop(90)[kind][:rows], **QUICK)


def test_a_single_name_is_one_name():
    options = QUICK | {"epochs": 1, "drop": "b", "metrics": "f1", "callbacks": "norms"}
    model = bp.train_table(without(shop(), "score", "large"), "rich", **options)
    assert "b" not in model.feature_names_in_
    assert "val_f1" in model.trainer.history.epochs[0]
    assert any(name.startswith("norm") for name in model.trainer.history.epochs[0])


def test_train_table_shows_its_options_and_knows_no_others():
    shown = inspect.signature(bp.train_table).parameters
    for option in dataclasses.fields(TrainingOptions):
        default = option.default if option.default is not dataclasses.MISSING else {}
        assert shown[option.name].default == default, option.name
        assert shown[option.name].kind is inspect.Parameter.KEYWORD_ONLY
    for train in (bp.train_table, bp.search_table):
        with pytest.raises(UnknownNameError, match="unknown option 'epoch': did you mean 'epochs'"):
            train(shop(), "rich", epoch=3)
        with pytest.raises(UnknownNameError, match="did you mean 'callbacks'"):
            train(shop(), "rich", callback="norms")


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 64},
        {"drop": 3},
        {"metrics": None},
        {"types": None},
        {"early_stopping": 2.5},
        {"seed": -1},
        {"schedule": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_wrong_kind_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        TrainingOptions(**options)
