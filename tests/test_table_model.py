"""Tables: whatever holds one, a model takes it, and says what was to be learnt in the user's own terms."""

import contextlib
import datetime as dt
import json
import pickle
import re
import subprocess
import sys
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from support.model_files import contents
from test_files import write

import bpnet as bp
from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    DataError,
    DTypeError,
    FileFormatError,
    OptionError,
    ShapeError,
)
from bpnet.tabular.dates import reader_of
from bpnet.tabular.frames import Frame

BERLIN = ZoneInfo("Europe/Berlin")
MIXED: dict[str, list[Any]] = {
    "length": [1.5, None, 3.0, 4.0],
    "count": [1, 2, None, 4],
    "wet": [True, False, None, True],
    "city": ["Köln", "Ulm", None, "Köln"],
    "price": [Decimal("1.5"), None, Decimal(2), Decimal(7)],
    "born": [dt.date(2024, 1, 1), None, dt.date(2024, 3, 5), dt.date(2023, 12, 31)],
    "seen": [dt.datetime(2024, 1, 1, 5, 6), None, dt.datetime(2024, 3, 5, 1), dt.datetime(2023, 12, 31, 23)],
    "landed": [dt.datetime(2024, m, 5, 1, tzinfo=BERLIN) if m else None for m in (1, 0, 7, 12)],
    "opens": [dt.time(5, 6), None, dt.time(1), dt.time(23, 0, 1)],
    "took": [dt.timedelta(1), None, dt.timedelta(0, 5), dt.timedelta(3)],
    "empty": [None] * 4,
}


def installed(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


def as_pandas(columns: dict[str, list[Any]]) -> Any:
    return installed("pandas").DataFrame(columns)


def as_arrow(columns: dict[str, list[Any]]) -> Any:
    arrow = installed("pyarrow")
    return arrow.table({name: arrow.array(values) for name, values in columns.items()})


HOLDERS: dict[str, Any] = {
    "dict": dict,
    "records": lambda columns: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    "pandas": as_pandas,
    "pandas nullable": lambda columns: as_pandas(columns).convert_dtypes(),
    "pandas arrow": lambda columns: as_arrow(columns).to_pandas(types_mapper=installed("pandas").ArrowDtype),
    "polars": lambda columns: installed("polars").DataFrame(columns),
    "arrow": as_arrow,
    "arrow chunks": lambda columns: installed("pyarrow").concat_tables(
        [as_arrow(columns).slice(0, 1), as_arrow(columns).slice(1)]
    ),
}


# ---- what a table is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_table_is_the_same_whatever_holds_it(holder):
    table, known = HOLDERS[holder](MIXED), bp.Schema.of(MIXED)
    expected, schema = known.encode(MIXED), bp.Schema.of(table)
    assert [(f.name, f.kind, f.parts, f.zone) for f in schema.features] == [
        (f.name, f.kind, f.parts, f.zone) for f in known.features
    ]
    for made in (known.encode(table), schema.encode(table)):
        assert made["numbers"].dtype == np.float32
        assert made["categories"].dtype == np.int32
        np.testing.assert_allclose(made["numbers"], expected["numbers"], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(made["categories"], expected["categories"])
    some = known.encode(Frame.of(table).take(np.array([3, 0])))
    np.testing.assert_allclose(some["numbers"], expected["numbers"][[3, 0]], rtol=1e-6, atol=1e-6)


def test_what_columns_become():
    schema = bp.Schema.of(MIXED)
    kinds = [f.kind for f in schema.features]
    dates = ["date"] * 4
    assert kinds == ["number", "number", "boolean", "category", "number", *dates, "number", "number"]
    x = schema.encode(MIXED)
    number = dict(zip(schema.numbers, x["numbers"].T.tolist(), strict=True))
    assert len(schema.numbers) == schema.n_numbers == x["numbers"].shape[1]
    assert number["length"][::2] == [1.5, 3.0]
    assert number["count"][:2] == [1, 2]
    assert number["took"][::2] == [86400, 5]
    assert number["price"][0] == 1.5
    assert number["wet"][:2] == [1, 0]
    assert np.isnan(number["wet"][2])
    assert all(np.isnan(number["empty"]))
    assert x["categories"].tolist() == [[2], [3], [0], [2]]
    assert schema.entries == (4,)


CATEGORICAL: dict[str, Any] = {
    "pandas": lambda values: installed("pandas").DataFrame({"c": installed("pandas").Categorical(values)}),
    "polars": lambda values: installed("polars").DataFrame(
        {"c": values}, schema={"c": installed("polars").Categorical}
    ),
    "polars enum": lambda values: installed("polars").DataFrame(
        {"c": values}, schema={"c": installed("polars").Enum(["b", "a", "unused"])}
    ),
    "arrow": lambda values: installed("pyarrow").table({"c": installed("pyarrow").array(values).dictionary_encode()}),
    "numpy text": lambda values: {"c": np.array(["" if v is None else v for v in values])},
    "numpy variable": lambda values: {"c": np.array([v or "" for v in values], dtype=np.dtypes.StringDType())},
    "masked": lambda values: {"c": np.ma.array([v or "?" for v in values], mask=[v is None for v in values])},
    "structured": lambda values: np.array([(v or "",) for v in values], dtype=[("c", "U3")]),
    "array": lambda values: np.array([[v] for v in values], dtype=object),
    "rows": lambda values: [[v] for v in values],
}


@pytest.mark.parametrize("holder", CATEGORICAL)
def test_categories_are_the_same_whatever_holds_them(holder):
    table = CATEGORICAL[holder](["b", None, "a", "b"])
    schema = bp.Schema.of(table)
    assert schema.features[0].values == ("a", "b")
    assert schema.encode(table).tolist() == [[3], [0], [2], [3]]
    assert schema.encode(CATEGORICAL[holder](["a", "b", None])).tolist() == [[2], [3], [0]]


KINDS: dict[str, tuple[list[Any], str]] = {
    "numbers as text": (["1.5", " 2", "-3e2", ""], "number"),
    "with words for none": (["1", "NA", "2", "?", "n/a"], "number"),
    "numbers and their text": ([1, 2.5, "3"], "number"),
    "text of digits that begins with 0": (["007", "12", "3"], "category"),
    "few numbers in text": (["1", "two", "three"], "category"),
    "booleans with gaps": ([True, None, False], "boolean"),
    "text of booleans": (["yes", "no"], "category"),
    "ISO dates": (["2024-02-03", "", "2023-01-01"], "date"),
    "ISO times": (["2024-02-03T04:05:06", "2024-02-03 04:05"], "date"),
    "ISO with offsets": (["2024-02-03T04:05:06+02:00", "2024-02-03T04:05:06Z"], "date"),
    "German dates": (["31.12.2023", "1.2.2024"], "date"),
    "American dates": (["12/31/2023", "1/2/2024"], "date"),
    "day first": (["31/12/2023", "1/2/2024"], "date"),
    "months by name": (["3 Feb 2024", "31 Dec 2023"], "date"),
    "clock": (["12:30", "7:05"], "date"),
    "no dates": (["2024-13-45", "2024-01-01"], "category"),
    "text and numbers": (["a", 1, 2.0], "category"),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_objects_are_taken_for(case):
    values, kind = KINDS[case]
    schema = bp.Schema.of({"c": values})
    assert schema.features[0].kind == kind
    x = schema.encode({"c": values})
    assert x.shape[0] == len(values)
    missing = [i for i, v in enumerate(values) if v in (None, "", "NA", "?", "n/a")]
    gaps = np.flatnonzero(np.isnan(x[:, 0]) if kind != "category" else x[:, 0] == 0)
    assert gaps.tolist() == missing
    assert bp.Schema.restore(json.loads(json.dumps(schema.describe()))) == schema


def test_numbers_of_text():
    x = bp.Schema.of({"c": KINDS["numbers as text"][0]}).encode({"c": ["-3e2", "2", 7, None, "nan"]})
    np.testing.assert_array_equal(x[:, 0], np.float32([-300, 2, 7, np.nan, np.nan]))


def test_words_among_numbers_stand_for_missing_ones():
    values = [*map(str, range(40)), "unknown", "unknown"]
    with pytest.warns(bp.errors.BpnetWarning, match=r"'c' is taken for numbers, and 'unknown' there for missing ones"):
        schema = bp.Schema.of({"c": values})
    assert schema.features[0].texts == ("unknown",)
    assert np.isnan(schema.encode({"c": ["unknown", "1"]})[:, 0]).tolist() == [True, False]
    with pytest.raises(DTypeError, match=r"column 'c' of the table has 'lost' in row 1; the model takes numbers there"):
        schema.encode({"c": ["1", "lost"]})


def test_types_say_otherwise():
    table = {"zip": [70173, 10115, 70173], "flag": ["yes", "no", ""], "day": ["2024-01-01"] * 3}
    schema = bp.Schema.of(table, types={"zip": "category", "flag": "boolean", "day": "category"})
    x = schema.encode(table)
    assert schema.features[0].values == (10115, 70173)
    np.testing.assert_array_equal(x["numbers"][:, 0], [1, 0, np.nan])
    assert x["categories"].tolist() == [[3, 2], [2, 2], [3, 2]]
    assert schema.encode({**table, "zip": [70173.0, np.nan, 1.0]})["categories"][:, 0].tolist() == [3, 0, 1]
    with pytest.raises(OptionError, match="expected 'number', 'boolean', 'date' or 'category'"):
        bp.Schema.of(table, types={"zip": "text"})
    with pytest.raises(DataError, match="no column 'zap': did you mean 'zip'"):
        bp.Schema.of(table, types={"zap": "category"})


def test_unseen_rare_and_too_many_values_have_one_code():
    many = [f"v{i % 30}" for i in range(120)] + ["once"]
    schema = bp.Schema.of({"c": many})
    assert "once" not in schema.features[0].values
    assert schema.encode({"c": ["once", "never", "v0"]}).tolist() == [[1], [1], [2]]
    assert len(bp.Schema.of({"c": many}, most_categories=7).features[0].values) == 7
    with pytest.warns(bp.errors.BpnetWarning, match="column 'id' is left out"):
        schema = bp.Schema.of({"id": [f"id {i}" for i in range(200)], "x": [1.0] * 200})
    assert schema.names == ("x",)


def test_categories_of_numbers_are_told_apart_in_the_type_that_they_come_in():
    large = np.array([2**53, 2**53 + 1, 7])
    schema = bp.Schema.of({"c": large}, types={"c": "category"})
    assert schema.encode({"c": large})[:, 0].tolist() == [3, 4, 2]
    assert schema.encode({"c": np.uint64([2**53 + 1, 2**64 - 1])})[:, 0].tolist() == [4, 1]
    assert schema.encode({"c": np.int8([7, -7])})[:, 0].tolist() == [2, 1]
    strict = pytest.importorskip("array_api_strict")
    assert np.asarray(schema.encode({"c": strict.asarray(large)}))[:, 0].tolist() == [3, 4, 2]
    schema = bp.Schema.of({"c": np.array([0.1, 0.2, 0.2])}, types={"c": "category"})
    assert schema.encode({"c": np.float32([0.2, 0.1, np.nan, 0.3])})[:, 0].tolist() == [3, 2, 0, 1]
    assert schema.encode({"c": np.array([1, 0])})[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize("values", [[None], [np.nan], np.array([np.nan])], ids=["None", "NaN", "array"])
def test_rows_may_lack_everything(values):
    table = {"n": [1.5, 2.0], "c": ["a", "b"], "z": ["1a", "2"], "d": ["2024-01-01", "2024-02-01"], "b": [True, False]}
    x = bp.Schema.of(table).encode(dict.fromkeys(table, values))
    assert np.isnan(x["numbers"]).all()
    assert x["categories"].tolist() == [[0, 0]]


def test_text_with_underscores_is_no_number():
    schema = bp.Schema.of({"c": ["1_000", "1_", "2__3"]})
    assert schema.features[0].values == ("1_", "1_000", "2__3")


def test_only_what_rows_have_counts():
    schema = bp.Schema.of({"n": [1.5, 2.0], "d": ["2024-01-01", "2024-02-01"], "c": ["a", "b"]})
    table = Frame.of({"n": ["1", "many", "1e300"], "d": ["2024-01-01", "soon", "-"], "c": ["a", 7, "b"]})
    x = schema.encode(table.take([0]))
    assert x["numbers"][0, 0] == 1.0
    with pytest.raises(DTypeError, match="column 'n' of the table has 'many' in row 0"):
        schema.encode(table.take([1]))


# ---- dates ----------------------------------------------------------------------------------------------------------


def test_dates_are_days_and_where_they_are_in_year_month_week_and_day():
    times = [dt.datetime(1969, 2, 28, 23, 59, 30), dt.datetime(2024, 2, 29, 6), dt.datetime(2200, 12, 31)]
    parts = ("days", "year", "month", "day", "weekday", "hour", "minute")
    dates = np.array([*times, "NaT"], dtype="datetime64[us]")
    made = reader_of(dates, parts, 10.0)(dates)
    assert np.isnan(made[3]).all()
    assert made.shape == (4, 12)
    for of in ("s", "ms"):
        coarse = dates.astype(f"M8[{of}]")
        np.testing.assert_array_equal(reader_of(coarse, parts, 10.0)(coarse), made)
    np.testing.assert_allclose(reader_of(dates[1:2], parts, 10.0)(dates[1:2]), made[1:2], atol=1e-12)  # by a table
    for row, time in zip(made[:3], times, strict=True):
        hours = time.hour + time.minute / 60 + time.second / 3600
        turns = [(time.month - 1) / 12, (time.day - 1) / 31, time.weekday() / 7, hours / 24, hours % 1]
        circle = [f(2 * np.pi * turn) for turn in turns for f in (np.sin, np.cos)]
        days = (time - dt.datetime(1970, 1, 11)) / dt.timedelta(1)
        np.testing.assert_allclose(row, [days, time.year, *circle], atol=1e-9)


def test_of_dates_there_are_the_parts_that_vary():
    def parts(*texts):
        return bp.Schema.of({"d": list(texts)}).features[0].parts

    assert parts("2024-01-05", "2024-01-06") == ("days", "day", "weekday")
    assert parts("2024-01-05", "2024-01-05") == ("days",)
    assert parts("2024-01-05T01:00", "2024-01-05T07:00") == ("days", "hour")
    assert parts("2023-01-01", "2024-01-01") == ("days", "year", "weekday")


def test_times_of_a_zone_are_what_its_clocks_show():
    local = [dt.datetime(2024, 3, 31, 1, 59, tzinfo=BERLIN), dt.datetime(2024, 3, 31, 3, 1, tzinfo=BERLIN)]
    schema = bp.Schema.of({"t": local})
    naive = {"t": [time.replace(tzinfo=None) for time in local]}
    x = schema.encode({"t": local})
    np.testing.assert_array_equal(x, schema.encode(naive))
    elsewhere = {"t": [time.astimezone(dt.UTC) for time in local]}
    np.testing.assert_array_equal(x, schema.encode(elsewhere))
    written = {"t": [time.isoformat() for time in elsewhere["t"]]}
    np.testing.assert_array_equal(x, schema.encode(written))
    assert schema.features[0].zone == "Europe/Berlin"
    with pytest.raises(DataError, match="time zone 'Atlantis/Deep' is not known here"):
        bp.Schema.restore(
            {**schema.describe(), "features": [{**schema.features[0].describe(), "zone": "Atlantis/Deep"}]}
        )


def test_dates_at_prediction_may_be_text_or_dates():
    schema = bp.Schema.of({"t": ["7:05", "12:30"], "u": ["2024-07-01T12:00:00+02:00", "2024-07-01T11:00:00Z"]})
    instants = [dt.datetime(2024, 7, 1, hour, tzinfo=BERLIN) for hour in (12, 13)]
    table = {"t": [dt.time(7, 5), dt.time(12, 30)], "u": instants}
    given = {"t": ["7:05", "12:30"], "u": ["2024-07-01T12:00:00+02:00", "2024-07-01T11:00:00Z"]}
    np.testing.assert_array_equal(schema.encode(table), schema.encode(given))
    schema = bp.Schema.of({"d": ["31.12.2023", "1.2.2024"]})
    expected = schema.encode({"d": ["31.12.2023", "1.2.2024"]})
    np.testing.assert_array_equal(schema.encode({"d": [dt.date(2023, 12, 31), dt.date(2024, 2, 1)]}), expected)
    with pytest.raises(DTypeError, match=r"has '2024-02-01' in row 1; the model takes dates written as %d.%m.%Y there"):
        schema.encode({"d": ["1.2.2024", "2024-02-01"]})
    with pytest.raises(DTypeError, match=r"has 1\.5 in row 0; the model takes dates there"):
        schema.encode({"d": [1.5, 2.0]})
    schema = bp.Schema.of({"d": ["2024-01-01", "2024-02-03"]})
    np.testing.assert_array_equal(schema.encode({"d": ["20240203"]}), schema.encode({"d": [dt.date(2024, 2, 3)]}))
    for word in ("now", "today", "2024"):
        with pytest.raises(DTypeError, match=f"has '{word}' in row 0; the model takes dates there"):
            schema.encode({"d": [word]})
    schema = bp.Schema.of({"d": ["2024-01-01", "2024-02-03"]}, types={"d": "category"})
    assert schema.encode({"d": [dt.datetime(2024, 2, 3), dt.datetime(2024, 2, 3, 1)]})[:, 0].tolist() == [3, 1]


# ---- columns that are not as they should be -------------------------------------------------------------------------


def test_columns_are_found_by_name():
    table = {"größe": [1.0, 2.0], "名": ["a", "b"]}
    schema = bp.Schema.of(table)
    x = schema.encode(table)
    other = schema.encode({"more": [0, 0], "名": ["a", "b"], "größe": [1, 2]})
    assert all(np.array_equal(x[name], other[name]) for name in x)
    with pytest.raises(DataError, match="the table lacks the column 'größe' of the model; it has '名'"):
        schema.encode({"名": ["a"]})
    with pytest.raises(DataError, match="lacks the columns 'größe', '名'"):
        schema.encode({"x": [1]})
    with pytest.raises(ShapeError, match="the table has 3 columns; the model takes 2"):
        schema.encode(np.ones((2, 3)))
    pandas = installed("pandas")
    with pytest.raises(DataError, match="more than one column called 'a'"):
        bp.Schema.of(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    assert bp.Schema.of(pandas.DataFrame([[1, 2]], columns=[0, 1])).names == ("0", "1")


def test_a_table_without_names_goes_by_places():
    x = np.arange(12.0).reshape(4, 3)
    schema = bp.Schema.of(x, drop=["x1"])
    np.testing.assert_array_equal(schema.encode(x), x[:, [0, 2]])
    np.testing.assert_array_equal(schema.encode({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]}), x[:, [0, 2]])
    assert bp.Schema.of(x).encode(x) is x or np.shares_memory(bp.Schema.of(x).encode(x), x)
    with pytest.raises(ShapeError, match="the table has 4 columns; the model takes 3"):
        schema.encode(np.ones((2, 4)))
    named = bp.Schema.of({"a": [1.0], "b": ["u"]})
    assert named.encode([[2.5, "u"], [1, None]])["categories"].tolist() == [[2], [0]]


WRONG: dict[str, tuple[Any, str]] = {
    "text for a number": ({"n": [1, "x"]}, r"column 'n' of the table has 'x' in row 1; the model takes numbers"),
    "dates for a number": ({"n": [None, dt.date(2024, 1, 1)]}, r"has 2024-01-01.* in row 1; the model takes numbers"),
    "numbers for a boolean": ({"b": [1, 3]}, r"column 'b' of the table has 3 in row 1; the model takes true or false"),
    "numbers for text": (
        {"c": [None, 1]},
        r"column 'c' of the table has 1\.0 in row 1; the model takes text such as 'u'",
    ),
    "booleans for text": ({"c": ["u", True]}, r"has True in row 1; the model takes text such as 'u' there"),
    "lists": ({"c": ["u", ["v"]]}, r"column 'c' of the table holds list in row 1: \['v'\]; expected one number"),
    "complex numbers": ({"n": np.array([1j, 2])}, "column 'n' of the table holds complex128 values"),
    "a single value": ({"n": "12"}, "column 'n' of the table"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_kinds_are_named_with_column_and_row(case):
    table = {"n": [1.0, 2.0], "b": [True, False], "c": ["u", "v"]}
    schema = bp.Schema.of(table)
    changed, message = WRONG[case]
    with pytest.raises((DTypeError, ArgumentError, ArrayMismatchError), match=message):
        schema.encode({**table, **changed})


def test_infinity_is_refused_by_column_and_row():
    schema = bp.Schema.of({"n": [1.0, 2.0], "t": ["1", "2"]})
    with pytest.raises(DataError, match="column 'n' of the table is infinite in row 1"):
        schema.encode({"n": [np.nan, np.inf], "t": ["1", "2"]})
    with pytest.raises(DataError, match="column 't' of the table is infinite in row 2"):
        schema.encode({"n": [1.0] * 3, "t": ["1", "1", "-inf"]})
    with pytest.raises(DataError, match=r"column 'n' of the table has -1e\+39 in row 1, which is too large"):
        schema.encode({"n": [1.0, -1e39], "t": ["1", "1"]})


def test_rows_and_columns_must_be_there():
    pandas = installed("pandas")
    for table, error, message in (
        ({"a": [1, 2], "b": [1]}, ShapeError, "'a' of the table has 2 rows, but column 'b' 1"),
        ({"a": []}, DataError, "has no rows"),
        ({}, DataError, "no rows"),
        (np.ones(3), ShapeError, r"expected \(rows, columns\): the table\[None\]"),
        (3, ArgumentError, "the table is of type int; expected an array"),
        ("data.csv", ArgumentError, "of type str"),
        ([1, 2], ArgumentError, "a list of 1"),
        (pandas.Series([1, 2]), ArgumentError, r"a row of a DataFrame is frame.iloc\[\[0\]\]"),
    ):
        with pytest.raises(error, match=message):
            bp.Schema.of(table)


def test_numbers_that_float32_can_not_tell_apart_are_taken_from_a_near_origin():
    seconds = 1.7e9 + np.arange(100.0)
    table = {"t": seconds, "huge": 1e300 * np.arange(100.0), "tiny": 1e-300 * np.arange(100.0), "n": np.arange(100)}
    schema = bp.Schema.of(table)
    x = schema.encode(table).astype(np.float64)
    score = (np.arange(100) - 49.5) / np.arange(100).std()
    for column in range(3):
        np.testing.assert_allclose(x[:, column], score, atol=1e-4)
    np.testing.assert_array_equal(x[:, 3], np.arange(100))
    assert [f.unit == 1.0 for f in schema.features] == [False, False, False, True]
    np.testing.assert_array_equal(bp.Schema.of(table, dtype="float64").encode(table).dtype, np.float64)


# ---- the target -----------------------------------------------------------------------------------------------------

LABELS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "text": (["b", "a", "c", "a"], ("a", "b", "c")),
    "text in an array": (np.array(["b", "a"]), ("a", "b")),
    "whole numbers": ([7, -1, 7], (-1, 7)),
    "booleans": ([True, False], (False, True)),
    "whole floats": ([2.0, 1.0, 2.0], (1.0, 2.0)),
    "a column": (np.array([[1], [0]]), (0, 1)),
    "small integers": (np.array([200, 3], dtype=np.uint8), (3, 200)),
    "bytes that are no text": ([b"\xff", b"a", "b", b"\xfe"], ("\\xfe", "\\xff", "a", "b")),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_come_back_as_they_were(case):
    y, classes = LABELS[case]
    target = bp.Target.of(y)
    assert target.kind == "class"
    assert target.classes == classes
    assert all(type(a) is type(b) for a, b in zip(target.classes, classes, strict=True))
    loss = bp.CrossEntropy()
    codes = target.encode(y, loss)
    flat = [
        label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else label
        for label in np.ravel(np.array(y, dtype=object)).tolist()
    ]
    assert [classes[i] for i in codes.tolist()] == flat
    decoded = target.decode(np.eye(len(classes), dtype=np.float32)[codes], loss)
    assert decoded.tolist() == flat
    assert bp.Target.restore(json.loads(json.dumps(target.describe()))) == target
    weights = target.balanced_weights(y)
    np.testing.assert_allclose(np.bincount(codes, weights), len(flat) / len(classes), rtol=1e-6)


def test_what_is_a_class_and_what_a_quantity():
    rng = np.random.default_rng(0)
    cases = {
        "class": [rng.integers(0, 15, 90), np.arange(600) % 60 + 1, rng.integers(0, 3, 40).astype(float)],
        "number": [rng.normal(size=30), np.arange(60), rng.integers(0, 9000, 300), [1.5, 2.0, 3]],
    }
    for kind, several in cases.items():
        assert [bp.Target.of(y).kind for y in several] == [kind] * len(several)
    assert bp.Target.of(np.arange(30) % 3, kind="number").kind == "number"
    assert bp.Target.of(np.arange(60), kind="class").classes == tuple(range(60))
    assert bp.Target.of(rng.normal(size=(5, 2))) == bp.Target("number", (), (), 2)
    assert bp.Target.of(rng.integers(0, 2, (5, 3))) == bp.Target("multilabel", (), (), 3)
    assert bp.Target.of({"low": [1.5, 2], "high": [3, 4.5]}).names == ("low", "high")
    assert bp.Target.of(installed("pandas").Series(["u", "v"], name="kind")).name == "kind"


def test_targets_that_can_not_be_learnt_are_refused():
    for y, error, message in (
        (["a", None], DataError, "y is missing in row 1"),
        ([1.5, np.nan], DataError, "y is missing in row 1"),
        (["a", "a"], DataError, "single class 'a'"),
        (["a", 1], DTypeError, "y mixes 'a' and 1"),
        ([1.5, np.inf], DataError, "y is infinite in row 1"),
        (np.array(["2024-01-01"], dtype="datetime64[D]"), DTypeError, "expected labels or numbers"),
    ):
        with pytest.raises(error, match=message):
            bp.Target.of(y)
    target = bp.Target.of(["a", "b"])
    with pytest.raises(DataError, match="y has the class 'c' in row 1; the model knows 'a', 'b'"):
        target.encode(["a", "c"])
    with pytest.raises(DTypeError, match="y holds 'b' in row 1; expected numbers"):
        bp.Target.of(["1.5", "b"], kind="number")
    assert bp.Target.of(["1.5", "2"], kind="number").encode(["1.5", "2"]).tolist() == [[1.5], [2.0]]
    flags = np.array([[0.0, 1.0], [1.0, 1.0]])
    assert bp.Target.of(flags, kind="multilabel").encode(flags).tolist() == flags.tolist()
    with pytest.raises(DataError, match="y has values other than 0 and 1"):
        bp.Target.of(flags, kind="multilabel").encode(2 * flags)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


LOSSES: dict[str, tuple[Any, list[Any], int, Any, Any]] = {  # y, outputs, probabilities, and predictions of them
    "cross_entropy": (bp.CrossEntropy(), ["a", "b", "c"], 3, softmax, lambda z: np.array(list("abc"))[z.argmax(1)]),
    "focal": (bp.Focal(), ["a", "b", "c"], 3, softmax, lambda z: np.array(list("abc"))[z.argmax(1)]),
    "kl_divergence": (bp.KLDivergence(), ["a", "b"], 2, softmax, lambda z: np.array(list("ab"))[z.argmax(1)]),
    "binary logits": (
        bp.BinaryCrossEntropyWithLogits(),
        [5, 3],
        1,
        lambda z: np.hstack([sigmoid(-z), sigmoid(z)]),
        lambda z: np.where(z[:, 0] > 0, 5, 3),
    ),
    "one against the rest": (
        bp.BinaryFocal(),
        [1, 2, 3],
        3,
        lambda z: sigmoid(z) / sigmoid(z).sum(1, keepdims=True),
        lambda z: z.argmax(1) + 1,
    ),
    "hinge": (bp.Hinge(), [False, True], 1, None, lambda z: z[:, 0] > 0),
    "hinge of three": (bp.SquaredHinge(), [1, 2, 3], 3, None, lambda z: z.argmax(1) + 1),
    "mse": (bp.MeanSquaredError(), [0.5, 1.5], 1, None, lambda z: z[:, 0]),
    "two quantities": (bp.Huber(), [[0.5, 1.5]], 2, None, lambda z: z),
    "poisson": (bp.Poisson(), [0.5, 1.5], 1, None, lambda z: np.exp(z[:, 0])),
    "gamma": (bp.Gamma(), [0.5, 1.5], 1, None, lambda z: np.exp(z[:, 0])),
    "tweedie": (bp.Tweedie(), [0.5, 1.5], 1, None, lambda z: np.exp(z[:, 0])),
    "median": (bp.Quantile(), [0.5, 1.5], 1, None, lambda z: z[:, 0]),
    "quantiles": (bp.Quantile((0.1, 0.5, 0.9)), [0.5, 1.5], 3, None, lambda z: z),
    "gaussian_nll": (bp.GaussianNLL(), [0.5, 1.5], 2, None, lambda z: z[:, 0]),
}


def check_predictions(case, backend):
    z = np.random.default_rng(1).normal(size=(6, 3))
    loss, y, outputs, probabilities, predictions = LOSSES[case]
    target = bp.Target.of(np.array(y) if case == "two quantities" else y)
    assert target.outputs(loss) == outputs
    given = backend.array(z[:, :outputs].astype(np.float32))
    found, expected = target.decode(given, loss), predictions(z[:, :outputs])
    if expected.dtype.kind in "fiub":
        assert type(found) is type(given)
        np.testing.assert_allclose(backend.host(found), expected, rtol=1e-5)
    else:
        assert isinstance(found, np.ndarray)
        assert found.tolist() == expected.tolist()
    if probabilities is None:
        with pytest.raises(OptionError, match="no probabilities"):
            target.probabilities(loss, given)
    else:
        made = backend.host(target.probabilities(loss, given))
        np.testing.assert_allclose(made, probabilities(z[:, :outputs]), rtol=1e-5)


@pytest.mark.parametrize("case", LOSSES)
def test_outputs_of_every_loss_become_predictions(case, library):
    check_predictions(case, library("numpy"))


def test_outputs_become_predictions_where_they_are(backend):
    for case in ("cross_entropy", "binary logits", "one against the rest", "hinge", "poisson", "quantiles"):
        check_predictions(case, backend)


# ---- models ---------------------------------------------------------------------------------------------------------


def model_of(
    table: Any, y: Any, loss: Any = None, *, network: bp.Layer | None = None, epochs: int = 3
) -> bp.TableModel:
    """A small model that has been trained a little."""
    schema, target = bp.Schema.of(table), bp.Target.of(y, "what")
    x = schema.encode(table)
    loss = loss or (bp.CrossEntropy() if target.kind == "class" else bp.MeanSquaredError())
    if network is None:
        numbers = (
            bp.NumericInput.fit(x["numbers"] if isinstance(x, dict) else x, clip=3.0) if schema.n_numbers else None
        )
        codes = bp.CategoricalInput(schema.entries, [2] * len(schema.entries)) if schema.entries else None
        network = bp.Sequential(bp.TabularInput(numbers, codes), bp.Dense(8, "tanh"), bp.Dense(target.outputs(loss)))
    trainer = bp.Trainer(network, loss, bp.Adam(0.01), compile=False)
    like = x["numbers"] if isinstance(x, dict) else x
    trainer.fit(x, target.encode(y, loss, like=like), epochs=epochs, progress=False)
    return bp.TableModel(schema, target, trainer, {"epochs": epochs})


def measurements(rows: int = 40) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    return x, x.argmax(1)


@pytest.mark.parametrize("holder", ["pandas", "polars", "arrow", "records"])
def test_a_saved_model_takes_the_rows_that_it_was_trained_on(holder, tmp_path):
    columns = {name: values * 5 for name, values in MIXED.items()}
    y = ["no", "yes", "yes", "no"] * 5
    model, table = model_of(columns, y), HOLDERS[holder](columns)
    model.save(tmp_path / "model", {"by": "hand"})
    loaded = bp.load(tmp_path / "model", compile=False)
    assert isinstance(loaded, bp.TableModel)
    np.testing.assert_array_equal(loaded.predict(table), model.predict(columns))
    np.testing.assert_array_equal(loaded.predict_proba(table), model.predict_proba(columns))
    np.testing.assert_array_equal(loaded.predict(table, batch_size=3), model.predict(columns))
    assert set(loaded.predict(table)) <= {"no", "yes"}
    assert loaded.classes_.tolist() == ["no", "yes"]
    assert loaded.schema == model.schema
    assert loaded.target == model.target
    assert loaded.feature_names_in_.tolist() == list(MIXED)
    assert loaded.n_features_in_ == len(MIXED)
    assert (loaded.target_name, loaded.settings, loaded.metadata) == ("what", {"epochs": 3}, {"by": "hand"})
    held = HOLDERS[holder]({**columns, "what": y})
    assert loaded.evaluate(held, metrics=["f1"]) == model.evaluate(columns, y, metrics=["f1"])
    assert repr(loaded).startswith("<TableModel of 'what': 2 classes from 11 columns, ")
    assert re.search(r"city +category +2 values: Köln, Ulm\n", loaded.summary())
    assert re.search(r"landed +date +days, .*; clocks of Europe/Berlin\n", loaded.summary())
    again = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(again.predict_proba(table), loaded.predict_proba(table))


@pytest.fixture(scope="module")
def of_numbers(tmp_path_factory):
    """A model of a table of numbers that was trained by NumPy."""
    x, y = measurements()
    path = tmp_path_factory.mktemp("numbers") / "model"
    network = bp.Sequential(bp.Dense(8, "tanh"), bp.Dense(3))
    model_of(x, y, network=network).save(path)
    return path


def test_a_table_of_numbers_stays_where_it_is(of_numbers, backend):
    x, y = measurements()
    reference = bp.load(of_numbers, compile=False)
    given, expected = backend.array(x), reference.predict(x)
    model = bp.load(of_numbers, like=given)
    found, probabilities = model.predict(given), model.predict_proba(given)
    assert type(found) is type(probabilities) is type(given)
    assert backend.host(found).tolist() == expected.tolist()
    np.testing.assert_allclose(backend.host(probabilities), reference.predict_proba(x), atol=1e-5)
    accuracy = np.mean(expected == y)
    assert model.evaluate(given, backend.array(y))["accuracy"] == pytest.approx(accuracy)
    rows = model.predict(x.tolist())  # what is made on the host goes where the parameters are, and comes back
    assert isinstance(rows, np.ndarray)
    assert rows.tolist() == expected.tolist()
    if not isinstance(given, np.ndarray):
        with pytest.raises(ArrayMismatchError, match=r"bp\.load"):
            model.predict(x)


def test_columns_of_a_device_stay_there(backend):
    x, y = measurements()
    x[3, 1] = np.nan
    table = {"a": backend.array(x[:, 0]), "b": backend.array(x[:, 1]), "c": backend.array(y)}
    host = {"a": x[:, 0], "b": x[:, 1], "c": y}
    types = {"c": "category"}
    schema = bp.Schema.of(table, types)
    assert schema == bp.Schema.of(host, types)
    found, expected = schema.encode(table), schema.encode(host)
    for name in ("numbers", "categories"):
        assert type(found[name]) is type(table["a"])
        np.testing.assert_array_equal(backend.host(found[name]), expected[name])
    mixed = schema.encode({**table, "c": y.tolist()})
    assert type(mixed["categories"]) is type(table["a"])


def test_members_say_together_what_they_say_on_average():
    x, y = measurements()
    loss = bp.Members("cross_entropy")
    network = bp.Sequential(bp.BatchEnsemble(4, 8, "tanh", "random_signs"), bp.MemberDense(4, 3))
    model = model_of(x, y, loss, network=network)
    each = softmax(model.outputs(x).astype(np.float64))
    np.testing.assert_allclose(model.predict_proba(x), each.mean(1), rtol=1e-5)
    assert model.predict(x).tolist() == each.mean(1).argmax(1).tolist()
    network = bp.Sequential(bp.BatchEnsemble(4, 8, "tanh", "random_signs"), bp.MemberDense(4, 2))
    model = model_of(x, x[:, 0], bp.Members("gaussian_nll"), network=network)
    outputs = model.outputs(x).astype(np.float64)
    np.testing.assert_allclose(model.predict(x), outputs[:, :, 0].mean(1), rtol=1e-4, atol=1e-6)
    variance = np.exp(outputs[:, :, 1]).mean(1) + outputs[:, :, 0].var(1)
    mean, deviation = model.predict(x, return_std=True, batch_size=7)
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-4)
    np.testing.assert_allclose(mean, model.predict(x), rtol=1e-5)
    np.testing.assert_array_equal(model.predict_deviation(x, batch_size=7), deviation)


def test_several_labels_and_several_quantities():
    x, _ = measurements()
    labels = (x > 0).astype(int)
    model = model_of(x, labels, bp.BinaryCrossEntropyWithLogits(), epochs=150)
    assert (model.predict(x) == labels).mean() > 0.9
    assert model.predict(x).shape == (40, 3)
    assert model.predict_proba(x).shape == (40, 3)
    assert model.classes_.tolist() == [0, 1, 2]
    numbers = model_of(x, x[:, :2])
    assert numbers.predict(x).shape == (40, 2)
    with pytest.raises(AttributeError, match="no classes"):
        _ = numbers.classes_
    with pytest.raises(AttributeError, match="without names"):
        _ = numbers.feature_names_in_
    with pytest.raises(OptionError, match=r"loss is .*standard deviation: train with loss='gaussian_nll'"):
        numbers.predict_deviation(x)


def test_rows_come_in_the_shape_that_the_network_takes():
    pictures = np.random.default_rng(4).normal(size=(12, 2, 3)).astype(np.float32)
    y = ["left", "right"] * 6
    trainer = bp.Trainer(bp.Sequential(bp.Flatten(), bp.Dense(2)), "cross_entropy", compile=False)
    target, table = bp.Target.of(y), pictures.reshape(12, 6)
    trainer.fit(pictures, target.encode(y), progress=False)
    model = bp.TableModel(bp.Schema.of(table), target, trainer)
    np.testing.assert_array_equal(model.outputs(table), trainer.predict(pictures))


def test_a_model_checks_what_it_is_made_of():
    x, y = measurements()
    model = model_of(x, y)
    with pytest.raises(ShapeError, match=r"built for rows of \(3,\); the schema makes {'numbers': 2}"):
        bp.TableModel(bp.Schema.of(x[:, :2]), model.target, model.trainer)
    with pytest.raises(ShapeError, match=r"outputs of \(3,\); the target needs 2"):
        bp.TableModel(model.schema, bp.Target.of(["a", "b"]), model.trainer)
    with pytest.raises(ArgumentError, match="schema is of type dict; expected a Schema"):
        bp.TableModel({}, model.target, model.trainer)
    with pytest.raises(DataError, match="the target has no name"):
        bp.TableModel(model.schema, bp.Target.of(y), model.trainer).evaluate(x)
    x[33, 1] = np.inf
    for use in (lambda: model.predict(x, batch_size=16), lambda: model.evaluate(x, y)):
        with pytest.raises(DataError, match=r"column 'x1' of the table is infinite in row 33; the model takes finite"):
            use()
    x[33, 1] = np.nan
    model.predict(x)
    plain = model_of(*measurements(), network=bp.Dense(3))
    with pytest.raises(DataError, match=r"'b' of the table is missing in row 33; the model takes no missing ones"):
        plain.predict(dict(zip("abc", x.T, strict=True)))


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    table = {"city": ["a", "b"] * 10, "n": [1.0, 2.0] * 10, "day": ["2024-01-01", "2024-03-02"] * 10}
    path = tmp_path_factory.mktemp("tables") / "model.safetensors"
    model_of(table, ["u", "v"] * 10).save(path)
    return path


def changed(entry: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON value, with another one at a place, or without the last key where the value is `...`."""
    if not keys:
        return value
    made = dict(entry) if isinstance(entry, dict) else list(entry)
    if value is ... and len(keys) == 1:
        del made[keys[0]]
    else:
        made[keys[0]] = changed(made[keys[0]] if isinstance(made, list) else made.get(keys[0]), keys[1:], value)
    return made


HOSTILE: list[tuple[tuple[Any, ...], Any]] = [
    *[((), value) for value in ([], "x", 1, {}, {"schema": {}})],
    *[((key,), value) for key in ("schema", "target", "settings") for value in (..., None, 1, [], "x")],
    *[
        (("schema", key), value)
        for key in ("features", "named", "width", "dtype")
        for value in (..., None, {}, -1, "x")
    ],
    *[(("schema", "features", 0, key), value) for key in ("name", "kind", "values") for value in (..., None, 3, [[]])],
    (("schema", "features", 0, "values"), ["a", "a"]),
    (("schema", "features", 0, "values"), ["a", {"layer": "Dense"}]),
    (("schema", "features", 0, "values"), ["a", 1]),
    (("schema", "features", 0, "values"), [1, 10**400]),
    (("schema", "features", 0, "values"), ["a", "b", "c", None]),
    (("schema", "features", 0, "kind"), "number"),
    (("schema", "features", 0, "name"), "n"),
    (("schema", "features", 0, "code"), "print(1)"),
    *[
        (("schema", "features", 1, key), v)
        for key in ("origin", "unit")
        for v in (None, "1", True, 10**400, [1], 1e999)
    ],
    (("schema", "features", 1, "unit"), 0),
    (("schema", "features", 1, "texts"), [1]),
    *[(("schema", "features", 2, "parts"), value) for value in ([], ["days"] * 9, ["days", "aeon"], "days", [[]], ...)],
    *[(("schema", "features", 2, "zone"), value) for value in (1, "No/Zone", "../../etc/passwd", "+99:99")],
    (("schema", "features", 2, "format"), 7),
    *[
        (("target", key), value)
        for key in ("kind", "names", "classes", "columns")
        for value in (..., None, {}, "x", [1])
    ],
    (("target", "classes"), ["v", "u"]),
    (("target", "classes"), ["u", "u"]),
    (("target", "classes"), ["u", "v", "w"]),
    (("target", "classes"), ["u", 1]),
    (("target", "columns"), 10**30),
]


def test_damaged_entries_are_refused(saved, tmp_path):
    """Whatever a table's entry holds, it is an error of the file; nothing that it names is run."""
    (tensors, description), kept = contents(saved), []
    for keys, value in HOSTILE:
        broken = {**description, "table": changed(description["table"], keys, value)}
        path = write(tmp_path / "broken", tensors, broken)
        with contextlib.suppress(FileFormatError):
            bp.load(path)
            kept.append((keys, value))
    assert kept == [], "accepted"


def test_files_without_tables_are_trainers_as_before(saved, tmp_path):
    tensors, description = contents(saved)
    del description["table"]
    assert isinstance(bp.load(write(tmp_path / "plain", tensors, description)), bp.Trainer)
    model = bp.load(saved)
    model.trainer.save(tmp_path / "trainer")
    assert isinstance(bp.load(tmp_path / "trainer"), bp.Trainer)


def test_ordinary_models_import_nothing_of_tables(tmp_path):
    x, y = measurements()
    trainer = bp.Trainer(bp.Dense(3), "cross_entropy")
    trainer.fit(x, y, progress=False)
    trainer.save(tmp_path / "model")
    code = (
        "import sys, bpnet as bp; bp.load(sys.argv[1]); print(*(m for m in sys.modules if m.startswith('bpnet.tab')))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "model")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "bpnet.table"
