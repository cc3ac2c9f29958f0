"""Reports: figures by their definitions, on every library; what their text and their page are like."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

import bpnet as bp
from bpnet import report
from bpnet.errors import DataError, OptionError
from bpnet.report import importance
from bpnet.report.quantities import LEVELS
from bpnet.table import columns_of

WEIGHTS = np.array([[2.0, -1.0, -1.0], [0.0, 1.5, -1.5], [0.0, 0.0, 0.0]])
"""Logits of three classes by three columns, the last of which says nothing."""


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def linear_model(table, y, weights, loss, array=np.asarray, kind=None):
    """A model whose outputs are the columns times the weights."""
    schema, target = bp.Schema.of(table), bp.Target.of(y, kind=kind)
    weights = np.asarray(weights, np.float64)
    x = array(np.zeros((1, len(weights))))
    trainer = bp.Trainer(bp.Dense(weights.shape[1]), loss).build(x)
    trainer.parameters = {"weight": array(weights), "bias": array(np.zeros(weights.shape[1]))}
    return bp.TableModel(schema, target, trainer)


def classes(rows=400, names=("ant", "bee", "cow"), sure=1.0, seed=0):
    """A table, labels drawn from the probabilities of WEIGHTS, and a model that is `sure` times as sure."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    y = (x @ WEIGHTS + rng.gumbel(size=(rows, 3))).argmax(axis=1)
    table = dict(zip(("first", "second", "idle"), x.T, strict=True))
    labels = np.array(sorted(names), dtype=object)[y]
    return table, labels, linear_model(table, labels, sure * WEIGHTS, "cross_entropy"), x, y


# ---- classes --------------------------------------------------------------------------------------------------------


def test_figures_of_classes_are_what_they_are_called():
    table, labels, model, x, y = classes()
    found = report.figures(model, table, labels)
    p = softmax(x @ WEIGHTS)
    said = p.argmax(axis=1)
    matrix = np.array([[np.sum((y == i) & (said == j)) for j in range(3)] for i in range(3)])
    np.testing.assert_array_equal(found.confusion.matrix, matrix)
    assert found.names == ("ant", "bee", "cow")
    np.testing.assert_allclose(found.confusion.precision, [np.mean(y[said == k] == k) for k in range(3)])
    np.testing.assert_allclose(found.confusion.recall, [np.mean(said[y == k] == k) for k in range(3)])
    assert found.scores["accuracy"] == pytest.approx(np.mean(said == y))
    assert found.scores["log_loss"] == pytest.approx(-np.mean(np.log(p[np.arange(400), y])), rel=1e-5)
    assert found.baseline["accuracy"] == np.bincount(y).max() / 400
    bins = np.searchsorted(np.arange(1, 10) / 10, p.max(axis=1))
    np.testing.assert_array_equal(found.reliability.rows, np.bincount(bins, minlength=10))
    for k in np.unique(bins):
        assert found.reliability.true[k] == pytest.approx(np.mean((said == y)[bins == k]))
        assert found.reliability.mean[k] == pytest.approx(np.mean(p.max(axis=1)[bins == k]))
    assert found.reliability.error == found.scores["calibration_error"] < 0.08


def test_a_model_that_is_too_sure_is_shown_to_be():
    table, labels, model, _, _ = classes(sure=4.0)
    found = report.figures(model, table, labels, importance=False).reliability
    full = found.rows > 20
    assert np.all(found.true[full] < found.mean[full])
    assert found.error > 0.08


def test_the_surest_mistakes_are_called_as_the_rows_are():
    table, labels, model, x, y = classes()
    p = softmax(x @ WEIGHTS)
    wrong = np.flatnonzero(p.argmax(axis=1) != y)
    first = wrong[np.argmax(p[wrong].max(axis=1))]
    rows = np.arange(400) * 10
    (worst, *others) = report.figures(model, table, labels, rows=rows, importance=False).mistakes
    assert (worst.row, worst.true) == (first * 10, labels[first])
    assert worst.probability == pytest.approx(p[first].max(), rel=1e-5)
    assert [one.probability for one in others] == sorted((one.probability for one in others), reverse=True)


def test_an_ensemble_says_the_mean_of_its_members():
    table, labels, _, x, y = classes()
    trainer = bp.Trainer(bp.MemberDense(2, 3), bp.Members("cross_entropy")).build(x)
    weights = np.stack([2.0 * WEIGHTS, 0.2 * WEIGHTS])
    trainer.parameters = {"weight": weights, "bias": np.zeros((2, 3))}
    model = bp.TableModel(bp.Schema.of(table), bp.Target.of(labels), trainer)
    found = report.figures(model, table, labels, importance=False)
    p = np.mean([softmax(x @ some) for some in weights], axis=0)
    assert found.scores["log_loss"] == pytest.approx(-np.mean(np.log(p[np.arange(400), y])), rel=1e-5)


def test_margins_have_classes_but_no_probabilities():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(100, 2))
    labels = np.where(x[:, 0] + rng.normal(size=100) > 0, "yes", "no")
    found = report.figures(linear_model(x, labels, [[3.0], [0.0]], "hinge"), x, labels)
    assert found.confusion.matrix[1, 1] == np.sum((x[:, 0] > 0) & (labels == "yes"))
    assert found.reliability is None
    assert "log_loss" not in found.scores
    assert found.scores["roc_auc"] > 0.6
    assert [one.name for one in found.importances.columns] == ["x0", "x1"]


def test_labels_are_counted_each_by_itself():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 3))
    weights = rng.normal(size=(3, 2))
    y = (x @ weights > 0.3).astype(int)
    model = linear_model(x, {"wet": y[:, 0], "cold": y[:, 1]}, weights, "binary_cross_entropy_with_logits")
    found = report.figures(model, x, y)
    said = x @ weights > 0
    np.testing.assert_array_equal(found.labels.true, y.sum(axis=0))
    np.testing.assert_array_equal(found.labels.said, said.sum(axis=0))
    np.testing.assert_array_equal(found.labels.both, (said & (y == 1)).sum(axis=0))
    assert found.reliability.rows.sum() == 400
    assert "wet" in found.text()


# ---- quantities -----------------------------------------------------------------------------------------------------


def quantity(rows=600, seed=1, loss="mse", growing=False):
    """A model that is right but for noise, which may grow with what is predicted."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.0, 1.0, (rows, 2))
    noise = rng.normal(size=rows) * (x[:, 0] * 2.0 if growing else 0.3)
    y = 100.0 + 10.0 * x[:, 0] + noise
    table = {"size": x[:, 0], "base": np.ones(rows), "idle": x[:, 1]}
    weights = [[10.0], [100.0], [0.0]]
    if loss != "mse":
        weights = np.array(weights) @ np.ones((1, 2)) + [[0.0, 0.0], [-0.3, 0.3], [0.0, 0.0]]
    return table, y, linear_model(table, y, weights, loss)


def test_figures_of_a_quantity_are_of_target_less_prediction():
    table, y, model = quantity()
    found = report.figures(model, table, y)
    (one,) = found.residuals
    off = y - (100.0 + 10.0 * table["size"])
    np.testing.assert_allclose(one.quantiles, np.quantile(off, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]), atol=1e-4)
    assert one.scores["mae"] == pytest.approx(np.mean(np.abs(off)), rel=1e-4)
    assert found.scores["r2"] == pytest.approx(1 - np.mean(off**2) / y.var(), rel=1e-4)
    assert found.baseline["mae"] == pytest.approx(np.mean(np.abs(y - y.mean())), rel=1e-5)
    assert sum(b.rows for b in one.bins) == 600
    assert all(b.low <= b.high <= c.low for b, c in zip(one.bins, one.bins[1:], strict=False))
    worst = int(np.argmax(np.abs(off)))
    assert (one.worst[0].row, one.worst[0].true) == (worst + 1, pytest.approx(y[worst]))


def test_intervals_hold_what_they_are_to_hold_on_rows_that_did_not_set_them():
    table, y, model = quantity()
    (one,) = report.figures(model, table, y, importance=False).residuals
    assert [c.level for c in one.coverage] == list(LEVELS)
    for level in one.coverage:
        assert level.held == pytest.approx(level.level, abs=0.05)
        assert max(level.by_size) - min(level.by_size) < 0.15
    table, y, model = quantity(growing=True)
    (one,) = report.figures(model, table, y, importance=False).residuals
    low, _, high = one.coverage[1].by_size
    assert low > 0.95 > 0.75 > high


def test_whole_numbers_are_quantities_too():
    x = np.arange(40.0)[:, None]
    y = (3.0 * x[:, 0]).astype(int)
    found = report.figures(linear_model(x, y, [[3.1]], "mse", kind="number"), x, y)
    assert found.residuals[0].scores["mae"] == pytest.approx(np.mean(0.1 * x), rel=1e-5)


def test_few_rows_have_no_intervals():
    table, y, model = quantity(rows=19)
    assert report.figures(model, table, y).residuals[0].coverage == []


def test_predicted_quantiles_are_held_against_the_targets():
    table, y, model = quantity(loss=bp.Quantile((0.16, 0.84)))
    (one,) = report.figures(model, table, y, importance=False).residuals
    assert one.predicted_quantiles == {0.16: pytest.approx(0.16, abs=0.04), 0.84: pytest.approx(0.84, abs=0.04)}


def test_a_predicted_deviation_is_held_against_the_targets():
    table, y, _ = quantity()
    weights = [[10.0, 0.0], [100.0, 2.0 * np.log(0.3)], [0.0, 0.0]]
    (one,) = report.figures(linear_model(table, y, weights, "gaussian_nll"), table, y, importance=False).residuals
    assert list(one.predicted_quantiles) == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert all(below == pytest.approx(q, abs=0.05) for q, below in one.predicted_quantiles.items())


def test_of_several_quantities_the_worst_come_first():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 12))
    y = x + np.linspace(0.1, 1.2, 12) * rng.normal(size=(60, 12))
    model = linear_model(x, {f"part {i}": y[:, i] for i in range(12)}, np.eye(12), "mse")
    found = report.figures(model, x, y)
    assert [one.name for one in found.residuals] == [f"part {i}" for i in range(12)]
    lines = found.text().splitlines()
    assert lines.index(next(s for s in lines if "part 11" in s)) < lines.index(next(s for s in lines if "part 0 " in s))


# ---- importance -----------------------------------------------------------------------------------------------------


def test_importance_is_of_the_columns_that_the_user_knows():
    """A category and a date, which are several columns of the network's input, each count once."""
    rng = np.random.default_rng(2)
    table = {
        "kind": np.array(["a", "b", "c"], dtype=object)[rng.integers(0, 3, 200)],
        "day": np.datetime64("2020-01-01") + rng.integers(0, 700, 200),
        "idle": rng.normal(size=200),
        "size": rng.normal(size=200),
    }
    y = 3.0 * (table["kind"] == "b") + (table["day"].astype("datetime64[M]").astype(int) % 12 < 6) + table["size"]
    schema, target = bp.Schema.of(table), bp.Target.of(y)
    x = schema.encode(table)
    inputs = bp.TabularInput(bp.NumericInput.fit(x["numbers"]), bp.CategoricalInput(schema.entries, (0,)))
    trainer = bp.Trainer(bp.Sequential(inputs, bp.Dense(1)), "mse", bp.Adam(0.1), compile=False)
    trainer.fit(x, y[:, None].astype(np.float32), epochs=20, progress=False)
    before = {name: array.copy() for name, array in x.items()}
    found = report.figures(bp.TableModel(schema, target, trainer), table, y).importances
    assert {one.name for one in found.columns} == set(table)
    assert [one.name for one in found.columns[:2]] == ["kind", "size"]
    assert found.columns[-1].name == "idle"
    assert all(one.deviation["r2"] > 0.0 for one in found.columns)
    np.testing.assert_array_equal(schema.encode(table)["numbers"], before["numbers"])


def test_a_column_that_says_nothing_has_no_importance():
    table, labels, model, _, _ = classes()
    found = report.figures(model, table, labels).importances
    assert [one.name for one in found.columns] == ["first", "second", "idle"]
    assert set(found.columns[2].worse.values()) == set(found.columns[2].deviation.values()) == {0.0}
    assert found == report.figures(model, table, labels).importances
    assert found != report.figures(model, table, labels, seed=1).importances


def test_the_columns_of_a_wide_table_are_searched_in_bounded_time(monkeypatch):
    """Columns are shuffled together, and groups that matter are parted, until those that do are found."""
    x = np.random.default_rng(0).normal(size=(50, 3000))
    runs = []

    def score(x, parts):
        runs.append(parts)
        return [{"r2": 1.0 - np.mean((some[:, [7, 1500, 2999]] - kept) ** 2)} for some in np.split(x, parts)]

    kept = x[:, [7, 1500, 2999]].copy()
    monkeypatch.setattr(importance, "WORK", 200.0)
    places = {f"column {j}": [(None, j)] for j in range(3000)}
    found = importance.importances(x, places, score, np.random.default_rng(1), 1.0, repeats=3)
    assert {one.name for one in found.columns[:3]} == {"column 7", "column 1500", "column 2999"}
    assert all(one.worse["r2"] > 0.3 for one in found.columns[:3])
    assert sum(runs) <= 202
    assert found.others + len(found.columns) == 3000
    assert abs(found.others_worse) < 1e-12


# ---- on every library -----------------------------------------------------------------------------------------------


def test_figures_are_the_same_on_every_library(backend):
    table, labels, model, x, y = classes(rows=80)
    expected = report.figures(model, table, labels).to_dict()
    array = backend.array(x)
    placed = linear_model(array, y, WEIGHTS, "cross_entropy", backend.array)
    found = report.figures(placed, array, backend.array(y)).to_dict()
    assert found["confusion"]["matrix"] == expected["confusion"]["matrix"]
    for name, value in expected["scores"].items():
        assert found["scores"][name] == pytest.approx(value, rel=1e-5)
    worse = [one["worse"]["log_loss"] for one in found["importances"]["columns"]]
    assert worse == pytest.approx([one["worse"]["log_loss"] for one in expected["importances"]["columns"]], rel=1e-4)


# ---- as text and as a page ------------------------------------------------------------------------------------------

NAMES = {
    "two": ("no", "yes"),
    "unicode": (
        "Größe",
        "很好很好很好很好",
        "wine 🍷",
        "a name that is too long for any column of a table",
        "x\x1b[31m\n<b>",
    ),
    "many": tuple(f"class {i:02d}" for i in range(60)),
}


def drawn(kind):
    """Figures with the names of a kind, the columns of the table among them."""
    names = sorted(NAMES[kind])
    rng = np.random.default_rng(len(names))
    x = rng.normal(size=(300, 20))
    weights = rng.normal(size=(20, len(names)))
    y = (x @ weights + rng.gumbel(size=(300, len(names)))).argmax(axis=1)
    y[: len(names)] = np.arange(len(names))
    table = {f"{name} {j}": x[:, j] for j, name in enumerate((names * 20)[:20])}
    model = linear_model(table, np.array(names, dtype=object)[y], weights, "cross_entropy")
    model.trainer.history.epochs += [
        {"epoch": i + 1, "loss": 9.0 / (i + 1), "val_loss": 1.0 + abs(i - 12), "val_accuracy": i / 40}
        for i in range(30)
    ]
    return report.figures(model, table, np.array(names, dtype=object)[y], title=f"<{kind}>.csv", which="300 rows")


@pytest.fixture(scope="module", params=NAMES)
def shown(request):
    return drawn(request.param)


def test_text_fits_the_terminal(shown):
    for width in (80, 100):
        lines = shown.text(width).splitlines()
        assert max(map(columns_of, lines)) <= width
        assert not any(c < " " for line in lines for c in line)
    assert "... and 5 more columns, each no more than" in shown.text()
    assert re.search(r"^ +13 .* best$", shown.text(), re.MULTILINE)
    if len(shown.names) == 60:
        assert "... and 50 more classes with fewer errors" in shown.text()
    assert str(shown) == shown.text()


class Tags(HTMLParser):
    """What elements and attributes a page has, and whether they are closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "rect", "path", "circle") or self.get_starttag_text()[-2] != "/":
            self.open += [tag] * (tag != "meta")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


def test_a_page_needs_nothing_beside_itself(shown, tmp_path):
    shown.html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, *_ in tags.attributes}
    assert not [a for a in tags.attributes if a[1] in ("src", "href", "action") or a[1].startswith("on")]
    assert "url(" not in page
    assert "http:" not in page.replace("http-equiv", "")
    assert "https:" not in page
    assert "prefers-color-scheme: dark" in page
    assert "<b>" not in re.sub(r"<b>[\d.,%-]+</b>", "", page)
    for heading in ("Training", "Confusion", "Calibration", "Importance of columns"):
        assert heading in tags.text
    pictures = re.findall("<svg.*?</svg>", page)
    assert len(pictures) == 4 + (len(shown.names) == 60)
    for picture in pictures:
        ElementTree.fromstring(picture)
    shown.html(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_a_page_of_quantities_shows_them(tmp_path):
    table, y, model = quantity(loss=bp.Quantile((0.16, 0.84)))
    report.figures(model, table, y, title="houses", facts={"trained on": "a & b"}).html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    text = Tags(page).text
    for words in ("houses", "a & b", "Residuals", "Worst rows", "Interval coverage", "Predicted quantiles"):
        assert words in text
    assert page.count("<circle") == 2 * 600


def test_a_page_that_can_not_be_written_leaves_nothing(tmp_path):
    table, y, model = quantity(rows=30)
    with pytest.raises(OSError, match="nowhere"):
        report.figures(model, table, y, importance=False).html(tmp_path / "nowhere" / "page.html")


def test_figures_are_data_too():
    table, labels, model, _, _ = classes()
    found = json.loads(json.dumps(report.figures(model, table, labels).to_dict(), allow_nan=False))
    assert set(found) == {
        "kind", "rows", "names", "scores", "baseline", "confusion", "mistakes", "reliability", "importances",
    }  # fmt: skip
    table, y, model = quantity()
    found = json.loads(json.dumps(report.figures(model, table, y).to_dict(), allow_nan=False))
    assert set(found["residuals"][0]) >= {"name", "scores", "quantiles", "bins", "worst", "coverage"}


@pytest.mark.parametrize("rows", [1, 2])
def test_hardly_any_rows_are_no_reason_to_fail(rows, tmp_path):
    table, labels, model, _, _ = classes()
    some = {name: values[:rows] for name, values in table.items()}
    found = report.figures(model, some, labels[:rows])
    found.html(tmp_path / "page.html")
    assert f"{rows} row" in found.text()
    table, y, model = quantity()
    found = report.figures(model, {name: values[:rows] for name, values in table.items()}, y[:rows])
    found.html(tmp_path / "page.html")
    assert "Residuals" in found.text()


def test_what_can_not_be_reported_is_said():
    table, labels, model, _, _ = classes()
    with pytest.raises(DataError, match="has no rows"):
        report.figures(model, {name: values[:0] for name, values in table.items()}, labels[:0])
    with pytest.raises(DataError, match="y has the class 'dog' in row 0; the model knows"):
        report.figures(model, {name: values[:1] for name, values in table.items()}, ["dog"])
    with pytest.raises(DataError, match="y is missing"):
        report.figures(model, table)
    with pytest.raises(OptionError, match="repeats"):
        report.figures(model, table, labels, repeats=0)
