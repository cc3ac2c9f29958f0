"""Bad input at every public entry point: a typed error that says which argument, what was expected, and what came.

The tables hold (what is done, the error, a pattern of its text).  Each error is one of bpnet's, and the built-in that a
caller would catch.
"""

import json
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    BpnetError,
    DataError,
    DTypeError,
    MissingExtraError,
    NotBuiltError,
    OptionError,
    OutOfMemoryError,
    ShapeError,
    UnknownNameError,
)

BUILT_IN = {
    ArgumentError: TypeError,
    ArrayMismatchError: TypeError,
    DTypeError: TypeError,
    DataError: ValueError,
    OptionError: ValueError,
    ShapeError: ValueError,
    UnknownNameError: ValueError,
    MissingExtraError: ImportError,
    OutOfMemoryError: MemoryError,
    NotBuiltError: RuntimeError,
}

NETWORK = bp.Sequential(bp.Dense(5, "relu"), bp.Dense(3))
X = np.random.default_rng(0).standard_normal((20, 4))
Y = np.arange(20) % 3
BIG = np.full((20, 4), 3e38, "float32")


def fresh(network: bp.Layer = NETWORK, loss: Any = "cross_entropy", **options: Any) -> bp.Trainer:
    return bp.Trainer(network, loss, **options)


def built() -> bp.Trainer:
    return fresh().build(X)


def spoiled(value: float, row: int = 7, a: Any = X) -> Any:
    a = np.array(a, dtype="float64")
    a[row] = value
    return a


def expect(error: type[BpnetError], pattern: str, call: Callable[[], Any]) -> str:
    with pytest.raises(error, match=pattern) as caught:
        call()
    assert type(caught.value) is error or issubclass(type(caught.value), error)
    assert isinstance(caught.value, BpnetError)
    assert isinstance(caught.value, BUILT_IN[error])
    text = str(caught.value)
    assert len(text) < 1000
    assert "\n" not in text
    assert not re.search(r"<[\w.]+ object at 0x|Traceback", text), text
    return text


def table(rows: list[tuple[Any, ...]]) -> Any:
    return pytest.mark.parametrize(("call", "error", "pattern"), rows, ids=[row[2][:60] for row in rows])


# ---- x --------------------------------------------------------------------------------------------------------------

PANDAS_LIKE = type("DataFrame", (), {"to_numpy": lambda self: X})()


BAD_X: list[tuple[Any, type[BpnetError], str]] = [
    (X[:, 0], ShapeError, r"x has one axis; expected \(rows, features\): x\[None\] makes it one row, x\[:, None\] one"),
    (np.float64(3.0), ShapeError, r"x has no axis; expected \(rows, features\)$"),
    (X[:0], DataError, "x has no rows"),
    (X[:, :0], ShapeError, r"x has the shape \(20, 0\); expected at least one feature"),
    (X.astype(object), DTypeError, "x holds object values; expected float32 or float64, or whole numbers"),
    (X.astype(str), DTypeError, r"x holds <U\d+ values; expected float32 or float64"),
    (X.astype("S8"), DTypeError, r"x holds \|S8 values; expected float32 or float64"),
    (X.astype("complex128"), DTypeError, "x holds complex128 values; expected float32 or float64"),
    (X.astype("float16"), DTypeError, "x holds float16 values; expected float32 or float64"),
    (X.astype("longdouble"), DTypeError, r"x holds float\d+ values; expected float32 or float64|x holds float64"),
    (X.astype(">f8"), DTypeError, "x holds >f8 values; expected float32 or float64"),
    (X.astype("datetime64[s]"), DTypeError, r"x holds datetime64\[s\] values"),
    (spoiled(np.nan), DataError, "x has NaN or infinity, first in row 7"),
    (spoiled(np.inf), DataError, "x has NaN or infinity, first in row 7"),
    (spoiled(-np.inf, 3, spoiled(np.inf)), DataError, "x has NaN or infinity, first in row 3"),
    (X.tolist(), ArrayMismatchError, r"x is of type list; expected an array of NumPy, CuPy, .*numpy\.asarray\(x\)"),
    (tuple(X), ArrayMismatchError, "x is of type tuple; expected an array"),
    ("digits", ArrayMismatchError, "x is of type str; expected an array"),
    (3.0, ArrayMismatchError, "x is of type float; expected an array"),
    (None, ArrayMismatchError, "x is None; expected an array"),
    (np.ndarray, ArrayMismatchError, "x is the class ndarray; expected an array"),
    (PANDAS_LIKE, ArrayMismatchError, r"x is of type DataFrame; expected an array of .* for example x\.to_numpy\(\)"),
    (np.ma.masked_array(X, mask=X > 1), ArrayMismatchError, "x is a MaskedArray, which is not a plain array: pass"),
]  # fmt: skip
IDS_X = [row[2][:50] for row in BAD_X]


@pytest.mark.parametrize(("x", "error", "pattern"), BAD_X, ids=IDS_X)
def test_x_that_is_no_rows_of_numbers(x: Any, error: type[BpnetError], pattern: str) -> None:
    """The same words from whichever function x was given to."""
    old = built()
    theta = old.theta.copy()
    calls: list[Callable[[], Any]] = [
        lambda: fresh().fit(x, Y, progress=False),
        lambda: fresh().build(x),
        lambda: fresh().step(x, Y),
        lambda: old.fit(x, Y, progress=False),
        lambda: old.step(x, Y),
        lambda: old.predict(x),
        lambda: old.evaluate(x, Y),
        lambda: bp.value_and_grad(NETWORK, "cross_entropy", theta, x, Y),
        lambda: bp.check_gradients(NETWORK, x),
        lambda: bp.check_gradients(NETWORK, x, Y, loss="cross_entropy"),
    ]
    for call in calls:
        expect(error, pattern, call)
    validation = r"validation\[0\]" + pattern.removeprefix("x").replace(r"x\[", r"validation\[0\]\[").replace(
        r"\(x\)", r"\(validation\[0\]\)"
    ).replace(r"x\.to", r"validation\[0\]\.to")
    expect(error, validation, lambda: fresh().fit(X, Y, validation=(x, Y), progress=False))
    assert old.step_count == 0
    assert np.array_equal(old.theta, theta)


def test_a_matrix_is_refused() -> None:
    with pytest.warns(PendingDeprecationWarning):
        x = np.matrix(X)
    for call in (lambda: fresh().fit(x, Y), lambda: built().predict(x)):
        expect(ArrayMismatchError, r"x is a matrix, which is not a plain array: pass numpy\.asarray\(x\)", call)


def test_data_frames_and_sparse_matrices_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    expect(
        ArrayMismatchError, r"x is of type DataFrame; .*x\.to_numpy\(\)", lambda: fresh().fit(pandas.DataFrame(X), Y)
    )
    expect(ArrayMismatchError, r"y is of type Series; .*y\.to_numpy\(\)", lambda: fresh().fit(X, pandas.Series(Y)))
    expect(ArrayMismatchError, r"x is of type csr_array; .*x\.toarray\(\)", lambda: fresh().fit(sparse.csr_array(X), Y))


@table(
    [
        (lambda: built().predict(X[:, :3]), ShapeError, "x has 3 features, but the network was built for 4"),
        (lambda: built().fit(X[:, :3], Y), ShapeError, "x has 3 features, but the network was built for 4"),
        (lambda: built().step(X[:, :3], Y), ShapeError, "x has 3 features, but the network was built for 4"),
        (lambda: built().evaluate(X[:, :3], Y), ShapeError, "x has 3 features, but the network was built for 4"),
        (lambda: built().predict(X[:, None, :]), ShapeError, r"x has rows of shape \(1, 4\), but .* built for \(4,\)"),
        (
            lambda: built().predict(X.astype("float32")),
            DTypeError,
            "x holds float32 values, but the trainer's parameters float64",
        ),
        (lambda: fresh().fit(X, Y, validation=(X[:, :2], Y)), ShapeError, r"validation\[0\] has 2 features, .* for 4"),
        (lambda: fresh().fit(X, Y, validation=(X.astype("f"), Y)), DTypeError, r"validation\[0\] holds float32 values"),
    ]
)
def test_x_that_does_not_fit_the_network(call: Any, error: Any, pattern: str) -> None:
    expect(error, pattern, call)


def test_finite_numbers_may_be_large() -> None:
    """Their sum overflows, they don't; and nobody is told of it."""
    trainer = fresh(optimizer=bp.SGD(0.1)).build(BIG)
    trainer.restore(((trainer.theta * np.float32(1e-38), trainer.buffers, trainer.state), 0))
    assert np.isfinite(trainer.predict(BIG)).all()
    trainer.step(BIG, Y)
    bp.value_and_grad(NETWORK, "cross_entropy", fresh().build(BIG).theta, BIG, Y)
    bp.Trainer(bp.Dense(4), "mse").build(BIG).evaluate(BIG, BIG)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"optimizer": bp.Adam(epsilon=1e-46)}, r"epsilon of Adam\(.*\) is 1e-46; with float32 .* at least 3.4e-18"),
        ({"optimizer": bp.AdamW(epsilon=1e-20)}, "epsilon of AdamW.* is 1e-20"),
        ({"optimizer": bp.SGD(1e39)}, r"lr of SGD\(.*\) is 1e\+39; with float32 parameters expected at most 3.4e\+38"),
        ({"optimizer": bp.SGD(bp.Cosine(1e-3, 5, 1e-40))}, "final of Cosine.* is 1e-40"),
        ({"network": bp.Sequential(bp.BatchNorm(epsilon=1e-46), bp.Dense(3))}, "epsilon of BatchNorm.* least 1.2e-38"),
        ({"network": bp.Residual(bp.Dense(4, bp.ELU(1e39)))}, "alpha of ELU.* is 1e\\+39"),
        ({"clip_norm": 1e-46}, "clip_norm is 1e-46; with float32 parameters expected at least 1.2e-38"),
    ],
)
def test_an_option_that_the_type_of_x_can_not_hold(options: Any, pattern: str) -> None:
    small = X.astype("float32")
    expect(OptionError, pattern, lambda: fresh(**options).build(small))
    expect(OptionError, pattern, lambda: fresh(**options).step(small, Y))
    fresh(**options).build(X)


@dataclass(frozen=True)
class Clamped(bp.Dense):
    """Its own options may be any numbers: what they mean is not known."""

    low: float = -1e300
    high: float = 1e300
    both: tuple[float, ...] = (1e-300, 1e300)
    inner: tuple[bp.Layer, ...] = ()
    next: bp.Layer | None = None


def test_what_the_options_of_a_users_class_mean_is_not_guessed(backend: Any, tmp_path: Any) -> None:
    x, y = backend.array(X.astype("float32")), backend.array(Y)
    trainer = fresh(bp.Sequential(Clamped(3))).build(x)
    trainer.step(x, y)
    trainer.save(tmp_path / "m.safetensors")
    assert bp.load(tmp_path / "m.safetensors").network == trainer.network
    for layer in (Clamped(3, bp.ELU(1e39)), Clamped(3, inner=(bp.ELU(1e39),)), Clamped(3, next=bp.ELU(1e39))):
        expect(OptionError, "alpha of ELU.* is 1e\\+39", lambda layer=layer: fresh(bp.Sequential(layer)).build(x))


def test_a_sound_file_with_an_option_that_is_refused_is_not_called_damaged(tmp_path: Any, monkeypatch: Any) -> None:
    path = tmp_path / "m.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(bp.Layer, "check_type", lambda *args: None)
        fresh(bp.Dense(3, bp.ELU(1e39))).build(X.astype("float32")).save(path)
    expect(OptionError, "m.safetensors can't be loaded: alpha of ELU.* is 1e\\+39", lambda: bp.load(path))


def test_the_gradient_alone_refuses_such_an_option_too() -> None:
    network, small = bp.Sequential(bp.BatchNorm(epsilon=1e-46), bp.Dense(3)), X.astype("float32")
    theta = fresh(network).build(X).theta.astype("float32")
    buffers = np.ones(8, "float32")
    call = lambda: bp.value_and_grad(network, "cross_entropy", theta, small, Y, buffers=buffers)  # noqa: E731
    expect(OptionError, "epsilon of BatchNorm.* is 1e-46", call)


# ---- y and weights --------------------------------------------------------------------------------------------------

ONE = bp.Dense(1, "sigmoid")
T = "cross_entropy"


@pytest.mark.parametrize(
    ("network", "loss", "y", "error", "pattern"),
    [
        (NETWORK, T, Y[:5], ShapeError, "x has 20 rows, but y has 5"),
        (NETWORK, T, np.array(1), ShapeError, "x has 20 rows, but y has no axis"),
        (NETWORK, T, Y[:0], ShapeError, "x has 20 rows, but y has 0"),
        (NETWORK, T, Y + 1, DataError, r"y has the label 3, but the network has 3 outputs: labels are 0 \.\.\. 2"),
        (NETWORK, T, Y - 1, DataError, r"y has the label -1, but the network has 3 outputs: labels are 0 \.\.\. 2"),
        (NETWORK, T, Y.astype("float64"), DTypeError, "y holds float64 values, but labels are whole numbers: convert"),
        (NETWORK, T, Y.astype("float32")[:, None], DTypeError, "y holds float32 values, but labels are whole numbers"),
        (NETWORK, T, Y.astype("float16"), DTypeError, "y holds float16 values; expected"),
        (NETWORK, T, Y.astype(str), DTypeError, r"y holds <U\d+ values; expected whole numbers"),
        (NETWORK, T, Y.astype(object), DTypeError, "y holds object values; expected whole numbers"),
        (NETWORK, T, Y.astype(complex), DTypeError, "y holds complex128 values; expected whole numbers"),
        (NETWORK, T, np.eye(2)[Y % 2], ShapeError, r"y has rows of shape \(2,\), but the network gives \(3,\)"),
        (NETWORK, T, np.ones((20, 3)), DataError, "a row of y does not add up to 1 .*, first in row 0"),
        (NETWORK, T, np.eye(3)[Y] * [[1, -1, 1]], DataError, r"y has a value outside 0 \.\.\. 1, first in row 1"),
        (NETWORK, T, spoiled(np.nan, 4, np.eye(3)[Y]), DataError, "y has NaN or infinity, first in row 4"),
        (NETWORK, T, Y.tolist(), ArrayMismatchError, r"y is of type list; expected an array .*numpy\.asarray\(y\)"),
        (NETWORK, T, None, ArrayMismatchError, "y is None; expected an array"),
        (NETWORK, T, np.ma.masked_array(Y), ArrayMismatchError, "y is a MaskedArray, which is not a plain array"),
        (ONE, "mse", X, ShapeError, r"y has rows of shape \(4,\), but the network gives \(1,\)"),
        (ONE, "mse", X[:, :1].astype(str), DTypeError, r"y holds <U\d+ values; expected whole numbers, float32 or"),
        (ONE, "mse", spoiled(np.inf, 2, Y), DataError, "y has NaN or infinity, first in row 2"),
        (bp.Dense(2), "mse", Y, ShapeError, r"y has rows of shape \(\), but the network gives \(2,\)"),
        (ONE, "binary_cross_entropy", Y, DataError, r"y has a value outside 0 \.\.\. 1, first in row 2"),
        (
            bp.Dense(1),
            "binary_cross_entropy_with_logits",
            -Y,
            DataError,
            r"y has a value outside 0 \.\.\. 1, first in row 1",
        ),
        (bp.Dense(2), "binary_cross_entropy", Y % 2, ShapeError, r"y has rows of shape \(\), .* gives \(2,\)"),
        (ONE, T, Y, ShapeError, r"cross_entropy needs one output per class, two or more, but the network gives \(1,\)"),
    ],
)
def test_y_that_is_no_target(network: bp.Layer, loss: str, y: Any, error: Any, pattern: str) -> None:
    theta = np.zeros(bp.layout_of(network, (4,)).size)
    calls: list[Callable[[], Any]] = [
        lambda: fresh(network, loss).fit(X, y, progress=False),
        lambda: fresh(network, loss).step(X, y),
        lambda: bp.value_and_grad(network, loss, theta, X, y),
    ]
    if y is not None:  # without y, check_gradients asks for it in words of its own
        calls.append(lambda: bp.check_gradients(network, X, y, loss=loss))
    if "cross_entropy needs" not in pattern:
        calls.append(lambda: fresh(network, loss).build(X).evaluate(X, y))
    for call in calls:
        expect(error, pattern, call)


WHOLE = [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (1, 2, 4, 8)]


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize("dtype", WHOLE)
def test_labels_out_of_range_are_named_as_they_were_given(dtype: str, device: str | None, request: Any) -> None:
    """None of any type wraps to one that is in range."""
    if device is not None:
        request.getfixturevalue("world")
    limits = np.iinfo(dtype)
    trainer = fresh(device=device).build(X)
    good = Y.astype(dtype)
    assert trainer.evaluate(X, good) == trainer.evaluate(X, Y)
    for label in {int(limits.min), 3, 2**32 + 1, 2**63 + 1, 2**64 - 2**32, int(limits.max)}:
        if not limits.min <= label <= limits.max or label == 0:
            continue
        y = good.copy()
        y[7] = label
        pattern = f"y has the label {label}, but the network has 3 outputs: labels are 0 ... 2"
        for call in (
            lambda y=y: fresh(device=device).fit(X, y, progress=False),
            lambda y=y: trainer.evaluate(X, y),
            lambda y=y: trainer.step(X, y),
            lambda y=y: bp.value_and_grad(NETWORK, "cross_entropy", built().theta, X, y),
        ):
            expect(DataError, pattern, call)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_labels_out_of_range_on_every_library(backend: Any, dtype: str) -> None:
    limits = np.iinfo(dtype)
    trainer = fresh().build(backend.array(X))
    for label in {int(limits.min), int(limits.max)} - {0}:
        y = Y.astype(dtype)
        y[7] = label
        pattern = f"y has the label {label}, but the network has 3 outputs"
        expect(DataError, pattern, lambda y=y: trainer.evaluate(backend.array(X), backend.array(y)))


def test_boolean_labels_are_0_and_1(backend: Any) -> None:
    trainer = fresh(bp.Dense(2)).build(backend.array(X))
    scores = [trainer.evaluate(backend.array(X), backend.array(y)) for y in (Y > 0, (Y > 0).astype("int64"))]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_of_any_type_are_data_targets_and_weights(dtype: str, device: str | None, request: Any) -> None:
    if device is not None:
        request.getfixturevalue("world")
    x = (np.arange(80).reshape(20, 4) % 5 + (2**40 if dtype.endswith("8") else 0)).astype(dtype)
    weight = np.arange(20).astype(dtype)
    trainer = fresh(ONE, "mse", device=device).build(X.astype("float32"))
    wanted = trainer.evaluate(x.astype("float32"), Y.astype("float32"), sample_weight=weight.astype("float32"))
    assert trainer.evaluate(x, Y.astype(dtype), sample_weight=weight) == wanted
    assert float(trainer.step(x, Y.astype(dtype), weight)) == pytest.approx(wanted["loss"], rel=1e-6)


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_numbers_of_the_other_byte_order_are_refused_alike(dtype: str) -> None:
    trainer = built()
    for name, call in {
        "x": lambda: trainer.evaluate(X.astype(dtype), Y),
        "y": lambda: fresh(ONE, "mse").fit(X, Y.astype(dtype), progress=False),
        "sample_weight": lambda: trainer.step(X, Y, np.ones(20, dtype)),
    }.items():
        expect(DTypeError, f"{name} holds {dtype} values; expected ", call)
    expect(DTypeError, f"x holds {dtype} values", lambda: trainer.predict(X.astype(dtype)))
    expect(DTypeError, f"x holds {dtype} values", lambda: fresh().build(X.astype(dtype)))


def test_validation_is_named_in_its_errors() -> None:
    for validation, error, pattern in [
        ((X, Y[:5]), ShapeError, r"validation\[0\] has 20 rows, but validation\[1\] has 5"),
        ((X, Y + 1), DataError, r"validation\[1\] has the label 3, but the network has 3 outputs"),
        ((X, Y.tolist()), ArrayMismatchError, r"validation\[1\] is of type list; .*numpy\.asarray\(validation\[1\]\)"),
        ((X, None), ArrayMismatchError, r"validation\[1\] is None; expected an array"),
        ((X[:, 0], Y), ShapeError, r"validation\[0\] has one axis; expected .*: validation\[0\]\[None\] makes"),
    ]:
        expect(error, pattern, lambda v=validation: fresh().fit(X, Y, validation=v, progress=False))


def test_a_target_too_large_for_the_type_of_x() -> None:
    pattern = "y has a value too large for float32, the type of x, first in row 0"
    expect(DataError, pattern, lambda: fresh(ONE, "mse").fit(X.astype("f"), np.full(20, 1e300), progress=False))


@pytest.mark.parametrize(
    ("weight", "error", "pattern"),
    [
        (np.ones(3), ShapeError, r"sample_weight has the shape \(3,\); expected one number per row, \(20,\)"),
        (np.ones((20, 1)), ShapeError, r"sample_weight has the shape \(20, 1\); expected one number per row, \(20,\)"),
        (np.array(1.0), ShapeError, r"sample_weight has the shape \(\); expected one number per row"),
        (-np.ones(20), DataError, "sample_weight is negative, first in row 0"),
        (spoiled(-1.0, 6, np.ones(20)), DataError, "sample_weight is negative, first in row 6"),
        (np.zeros(20), DataError, "sample_weight is 0 everywhere; expected at least one row that counts"),
        (spoiled(np.nan, 9, np.ones(20)), DataError, "sample_weight has NaN or infinity, first in row 9"),
        (np.ones(20, complex), DTypeError, "sample_weight holds complex128 values; expected float32 or float64, or w"),
        (np.ones(20, np.float16), DTypeError, "sample_weight holds float16 values; expected float32 or float64, or wh"),
        (
            np.ones(20).astype(str),
            DTypeError,
            r"sample_weight holds <U\d+ values; expected float32 or float64, or whole n",
        ),
        ([1.0] * 20, ArrayMismatchError, "sample_weight is of type list; expected an array"),
        (2.0, ArrayMismatchError, "sample_weight is of type float; expected an array"),
    ],
)
def test_weights_that_are_none(weight: Any, error: Any, pattern: str) -> None:
    trainer = built()
    for call in (
        lambda: fresh().fit(X, Y, sample_weight=weight, progress=False),
        lambda: trainer.step(X, Y, weight),
        lambda: trainer.evaluate(X, Y, sample_weight=weight),
        lambda: bp.value_and_grad(NETWORK, T, trainer.theta, X, Y, sample_weight=weight),
    ):
        expect(error, pattern, call)
    shown = pattern.replace("sample_weight", r"validation\[2\]")
    expect(error, shown, lambda: fresh().fit(X, Y, validation=(X, Y, weight), progress=False))


@pytest.mark.parametrize("wrong", ["float labels", "rows", "weight", "classes", "validation", "callbacks"])
def test_a_call_that_failed_leaves_the_trainer_as_it_was(wrong: str) -> None:
    """What was wrong can be mended and tried again, also with another type and number of features."""
    trainer = fresh()
    calls: dict[str, Callable[[], Any]] = {
        "float labels": lambda: trainer.fit(X, Y * 1.0),
        "rows": lambda: trainer.fit(X, Y[1:]),
        "weight": lambda: trainer.fit(X, Y, sample_weight=-np.ones(20)),
        "classes": lambda: trainer.fit(X, Y + 1),
        "validation": lambda: trainer.fit(X, Y, validation=(X, Y * 1.0)),
        "callbacks": lambda: trainer.fit(X, Y, callbacks=[print]),
    }
    with pytest.raises(BpnetError):
        calls[wrong]()
    trainer.fit(X[:, :3].astype("float32"), Y, progress=False)
    assert trainer.layout.in_shape == (3,)
    assert trainer.step_count == len(trainer.history) == 1


# ---- every library --------------------------------------------------------------------------------------------------


def test_the_same_errors_on_every_library(backend: Any) -> None:
    x, y = backend.array(X), backend.array(Y)
    trainer = fresh().build(x)
    nan, single, minus = backend.array(spoiled(np.nan)), backend.array(X, "float32"), backend.array(-np.ones(20))
    for error, pattern, call in [
        (ShapeError, "x has one axis", lambda: fresh().fit(backend.array(X[:, 0]), y)),
        (ShapeError, "x has 3 features, but the network was built for 4", lambda: trainer.predict(x[:, :3])),
        (ShapeError, "x has 20 rows, but y has 5", lambda: trainer.evaluate(x, y[:5])),
        (DataError, "x has no rows", lambda: fresh().build(backend.array(X[:0]))),
        (DataError, "x has NaN or infinity, first in row 7", lambda: trainer.fit(nan, y)),
        (DataError, "the label 3, but the network has 3 outputs", lambda: trainer.fit(x, backend.array(Y + 1))),
        (DTypeError, r"y holds .*float64 values, but labels are whole", lambda: trainer.fit(x, backend.array(Y * 1.0))),
        (DTypeError, r"x holds .*complex128 values; expected", lambda: trainer.fit(backend.array(X + 1j), y)),
        (DTypeError, r"x holds .*float32 values, but the trainer's .*float64", lambda: trainer.predict(single)),
        (DataError, "sample_weight is negative, first in row 0", lambda: trainer.step(x, y, minus)),
        (ArrayMismatchError, "y is of type list; expected an array", lambda: trainer.fit(x, Y.tolist())),
    ]:  # fmt: skip
        expect(error, pattern, call)


@pytest.mark.parametrize(
    ("loss", "y", "bad", "pattern"),
    [
        ("cross_entropy", np.arange(6) % 3, np.arange(6), "label 5, but the network has 3 outputs"),
        ("cross_entropy", np.arange(6) % 3, np.arange(6) - 3, "label -3, but the network has 3 outputs"),
        ("cross_entropy", np.eye(6, 3), np.eye(6, 3), "row of y does not add up to 1.*first in row 3"),
        ("mse", np.ones((6, 3)), np.full((6, 3), np.nan), "y has NaN or infinity, first in row 0"),
        ("binary_cross_entropy", np.ones((6, 3)), np.full((6, 3), 2.0), "y has a value outside 0"),
    ],
)
def test_values_of_a_batch_like_the_last_are_looked_at(loss: str, y: Any, bad: Any, pattern: str, backend: Any) -> None:
    good = y.copy()
    if y.dtype == float and loss == "cross_entropy":
        good[3:, 0] = 1.0
    x = np.random.default_rng(0).standard_normal((6, 4))
    nan = x.copy()
    nan[2, 1] = np.nan
    x, nan, good, bad = (backend.array(a) for a in (x, nan, good, bad))
    trainer = bp.Trainer(bp.Dense(3, "identity" if loss == "cross_entropy" else "sigmoid"), loss)
    for _ in range(2):
        trainer.step(x, good)
    before = backend.host(trainer.theta).copy()
    for _ in range(2):
        with pytest.raises(DataError, match=pattern):
            trainer.step(x, bad)
        with pytest.raises(DataError, match="x has NaN or infinity, first in row 2"):
            trainer.step(nan, good)
    with pytest.raises(OptionError, match="check is 'no'"):
        trainer.step(x, good, check="no")
    assert trainer.step_count == 2
    assert np.array_equal(backend.host(trainer.theta), before)
    assert np.isfinite(float(trainer.step(x, good, check=np.True_)))
    assert np.isfinite(float(trainer.step(x, good)))


def test_half_precision_is_named(library: Any) -> None:
    torch = library("torch").module
    x = torch.tensor(X)
    for kind in (torch.float16, torch.bfloat16):
        expect(DTypeError, f"x holds {kind} values; expected float32 or float64", lambda k=kind: fresh().build(x.to(k)))


@pytest.mark.parametrize("other", ["strict", "torch", "jax"])
def test_libraries_do_not_mix(other: str, library: Any) -> None:
    there = library(other)
    name = r"(array_api_)?" + other
    x, y = there.array(X), there.array(Y)
    trainer = built()
    away = fresh().build(x)
    weight = there.array(np.ones(20))
    for pattern, call in [
        (f"x belongs to numpy, but y to {name}", lambda: fresh().fit(X, y)),
        (f"x belongs to {name}, but y to numpy", lambda: fresh().fit(x, Y)),
        (f"x belongs to {name}, but y to numpy", lambda: bp.value_and_grad(NETWORK, T, trainer.theta, x, Y)),
        (f"x belongs to numpy, but theta to {name}", lambda: bp.value_and_grad(NETWORK, T, away.theta, X, Y)),
        (f"but sample_weight to {name}", lambda: fresh().fit(X, Y, sample_weight=weight)),
        (f"x belongs to {name}, but the trainer's parameters to numpy", lambda: trainer.fit(x, y)),
        (f"x belongs to {name}, but the trainer's parameters to numpy.*bp.load", lambda: trainer.predict(x)),
        (rf"validation\[0\] belongs to {name}, but x to numpy", lambda: fresh().fit(X, Y, validation=(x, y))),
        (r"parameters\['0'\]\['bias'\] belongs to", lambda: put(trainer, "0", "bias", there.array(np.zeros(5)))),
        ("x belongs to numpy, but y to", lambda: bp.check_gradients(NETWORK, X, y, loss=T)),
    ]:
        expect(ArrayMismatchError, pattern, call)


def test_devices_do_not_mix() -> None:
    strict = pytest.importorskip("array_api_strict")
    there = strict.Device("device1")
    x, y = strict.asarray(X), strict.asarray(Y, device=there)
    expect(ArrayMismatchError, r"x lies on device .*CPU.* but y on .*device1.*: move one", lambda: fresh().fit(x, y))
    trainer = fresh().build(x)
    pattern = r"x lies on device .*device1.* but the trainer's parameters on .*CPU"
    expect(ArrayMismatchError, pattern, lambda: trainer.predict(strict.asarray(X, device=there)))


# ---- fit and its like: the other arguments --------------------------------------------------------------------------


def put(trainer: bp.Trainer, layer: str, name: str, value: Any) -> None:
    tree = trainer.parameters
    tree[layer] = {**tree[layer], name: value}
    trainer.parameters = tree


@table(
    [
        (lambda: fresh().fit(X, Y, epochs=0), OptionError, "epochs is 0; expected a whole number of at least 1"),
        (lambda: fresh().fit(X, Y, epochs=2.0), OptionError, r"epochs is 2\.0; expected a whole number"),
        (lambda: fresh().fit(X, Y, epochs=True), OptionError, "epochs is True; expected a whole number"),
        (lambda: fresh().fit(X, Y, batch_size=0), OptionError,
         "batch_size is 0; expected a whole number of at least 1"),
        (lambda: fresh().fit(X, Y, batch_size="all"), OptionError, "batch_size is 'all'; expected a whole number"),
        (lambda: fresh().fit(X, Y, batch_size=None), OptionError, "batch_size is None; expected a whole number"),
        (lambda: built().predict(X, batch_size=-1), OptionError, "batch_size is -1; expected a whole number"),
        (lambda: built().evaluate(X, Y, batch_size=0), OptionError, "batch_size is 0; expected a whole number"),
        (lambda: fresh().fit(X, Y, validation=X), ArgumentError, r"validation is of type ndarray; expected \(x, y\)"),
        (lambda: fresh().fit(X, Y, validation=0.2), ArgumentError, r"validation is of type float; expected \(x, y\)"),
        (lambda: fresh().fit(X, Y, validation=(X,)), ShapeError, r"validation has 1 parts?; expected \(x, y\) or"),
        (lambda: fresh().fit(X, Y, validation=(X, Y[:3])), ShapeError, r"validation\[0\] has 20 rows, .*\[1\] has 3"),
        (lambda: fresh().fit(X, Y, callbacks=bp.EarlyStopping()), ArgumentError,
         "callbacks is of type EarlyStopping; .*list"),
        (lambda: fresh().fit(X, Y, callbacks=None), ArgumentError, "callbacks is None; expected a list"),
        (lambda: fresh().fit(X, Y, callbacks=[bp.EarlyStopping]), ArgumentError,
         r"callbacks\[0\] is the class EarlyStopping"),
        (lambda: fresh().fit(X, Y, callbacks=[bp.EarlyStopping(), print]), ArgumentError, r"callbacks\[1\] is of type"),
        (lambda: fresh().predict(X), NotBuiltError, r"no parameters yet: .* by fit\(x, y\) or build\(x\)"),
        (lambda: fresh().evaluate(X, Y), NotBuiltError, "no parameters yet"),
        (lambda: fresh().save("m.safetensors"), NotBuiltError, "no parameters yet"),
        (lambda: fresh().parameters, NotBuiltError, "no parameters yet"),
        (lambda: fresh().theta, NotBuiltError, "no parameters yet"),
        (lambda: fresh().buffers, NotBuiltError, "no parameters yet"),
        (lambda: fresh().state, NotBuiltError, "no parameters yet"),
        (lambda: fresh().layout, NotBuiltError, "no parameters yet"),
        (lambda: fresh().snapshot(), NotBuiltError, "no parameters yet"),
        (lambda: setattr(fresh(), "parameters", {}), NotBuiltError, "no parameters yet"),
        (lambda: setattr(built(), "parameters", 5), ArgumentError, "parameters is of type int; expected a nested dict"),
        (lambda: setattr(built(), "parameters", {}), ShapeError,
         r"parameters differ .* in 0\.bias, .*; expected 0\.weight"),
        (lambda: put(built(), "0", "gain", X), ShapeError, r"parameters differ from the network's in 0\.gain"),
        (lambda: put(built(), "0", "bias", np.zeros(4)), ShapeError,
         r"\['bias'\] has the shape \(4,\); expected \(5,\)"),
        (lambda: put(built(), "0", "bias", np.zeros(5, "f")), DTypeError,
         r"\['bias'\] holds float32 values; expected float64"),
        (lambda: put(built(), "0", "bias", [0.0] * 5), ArrayMismatchError,
         r"parameters\['0'\]\['bias'\] is of type list"),
    ]
)  # fmt: skip
def test_options_of_training(call: Any, error: Any, pattern: str) -> None:
    expect(error, pattern, call)


THETA = np.zeros(43)
NORM = bp.Sequential(bp.BatchNorm(), bp.Dense(3))


@table(
    [
        (lambda: bp.value_and_grad("relu", T, THETA, X, Y), ArgumentError,
         "network is of type str; expected a bpnet layer"),
        (lambda: bp.value_and_grad(bp.Dense, T, THETA, X, Y), ArgumentError,
         "network is the class Dense; expected an instance"),
        (lambda: bp.value_and_grad(NETWORK, "cros_entropy", THETA, X, Y), UnknownNameError,
         "unknown loss 'cros_entropy': did you mean 'cross_entropy'"),
        (lambda: bp.value_and_grad(NETWORK, T, THETA[1:], X, Y), ShapeError,
         r"theta has the shape \(42,\); expected \(43,\)"),
        (lambda: bp.value_and_grad(NETWORK, T, THETA[:, None], X, Y), ShapeError,
         r"theta has the shape \(43, 1\); expected \(43,\)"),
        (lambda: bp.value_and_grad(NETWORK, T, THETA.astype("f"), X, Y), DTypeError,
         "theta holds float32 values, but x float64"),
        (lambda: bp.value_and_grad(NETWORK, T, None, X, Y), ArrayMismatchError, "theta is None; expected an array"),
        (lambda: bp.value_and_grad(NETWORK, T, THETA.tolist(), X, Y), ArrayMismatchError,
         "theta is of type list; expected an array"),
        (lambda: bp.value_and_grad(NETWORK, T, THETA, X[:, :3], Y), ShapeError,
         r"theta has the shape \(43,\); expected \(38,\)"),
        (lambda: bp.value_and_grad(NORM, T, np.zeros(23), X, Y), ShapeError,
         "the network has 8 buffer values: pass them as buffers="),
        (lambda: bp.value_and_grad(NORM, T, np.zeros(23), X, Y, buffers=np.zeros(3)), ShapeError,
         r"buffers has the shape \(3,\); expected \(8,\)"),
        (lambda: bp.value_and_grad(NORM, T, np.zeros(23), X, Y, buffers=[0.0]), ArrayMismatchError,
         "buffers is of type list; expected"),
        (lambda: bp.value_and_grad(NETWORK, T, THETA, X, Y, seed=-1), OptionError,
         "seed is -1; expected a whole number"),
        (lambda: bp.check_gradients("relu", X), ArgumentError, "layer is of type str; expected a bpnet layer"),
        (lambda: bp.check_gradients(bp.ReLU, X), ArgumentError,
         r"layer is the class ReLU; expected an instance, ReLU\(...\)"),
        (lambda: bp.check_gradients(NETWORK, X, loss=T), ArgumentError,
         "y and loss belong together: pass both, or neither"),
        (lambda: bp.check_gradients(NETWORK, X, Y), ArgumentError, "y and loss belong together: pass both, or neither"),
        (lambda: bp.check_gradients(NETWORK, X, seed=-1), OptionError, "seed is -1; expected a whole number"),
        (lambda: bp.check_gradients(NETWORK, X, directions=0), OptionError,
         "directions is 0; expected a whole number of at least 1"),
        (lambda: bp.check_gradients(NETWORK, X, tolerance="a"), OptionError, "tolerance is 'a'; expected a number"),
        (lambda: bp.check_gradients(NETWORK, X, tolerance=-1.0), OptionError, r"tolerance is -1\.0; expected a number"),
        (lambda: bp.layout_of("relu", (4,)), ArgumentError, "network is of type str; expected a bpnet layer"),
    ]
)  # fmt: skip
def test_the_pure_functions(call: Any, error: Any, pattern: str) -> None:
    expect(error, pattern, call)


# ---- constructors ---------------------------------------------------------------------------------------------------


@table(
    [
        (lambda: fresh([bp.Dense(3)]), ArgumentError, "network is of type list; expected a bpnet layer"),
        (lambda: fresh(bp.Dense), ArgumentError, r"network is the class Dense; expected an instance, Dense\(\.\.\.\)"),
        (lambda: fresh(None), ArgumentError, "network is None; expected a bpnet layer"),
        (lambda: fresh(loss=None), ArgumentError, "loss is None; expected a name or a bpnet loss"),
        (lambda: fresh(loss=bp.CrossEntropy), ArgumentError,
         r"loss is the class CrossEntropy; .* CrossEntropy\(\.\.\.\)"),
        (lambda: fresh(loss=bp.Adam()), ArgumentError, "loss is of type Adam; expected a name or a bpnet loss"),
        (lambda: fresh(loss="crossentropy"), UnknownNameError,
         "unknown loss 'crossentropy': did you mean 'cross_entropy'"),
        (lambda: fresh(loss="ctc"), UnknownNameError, "unknown loss 'ctc': known are .*cross_entropy.* mse"),
        (lambda: fresh(optimizer="adm"), UnknownNameError,
         r"unknown optimizer 'adm': did you mean 'adam'\? known are adabelief, .*, sgd"),
        (lambda: fresh(optimizer=bp.Adam), ArgumentError,
         r"optimizer is the class Adam; expected an instance, Adam\(\.\.\.\)"),
        (lambda: fresh(optimizer=0.01), ArgumentError,
         "optimizer is of type float; expected a name or a bpnet optimizer"),
        (lambda: fresh(seed=-1), OptionError, "seed is -1; expected a whole number of at least 0"),
        (lambda: fresh(seed=1.5), OptionError, r"seed is 1\.5; expected a whole number"),
        (lambda: fresh(seed=None), OptionError, "seed is None; expected a whole number"),
        (lambda: fresh(clip_norm=0), OptionError, r"clip_norm is 0; expected a number in \(0, inf\)"),
        (lambda: fresh(clip_norm=float("inf")), OptionError, "clip_norm is inf; expected a number"),
        (lambda: fresh(threads=0), OptionError, "threads is 0; expected a whole number of at least 1"),
        (lambda: fresh(threads=1.0), OptionError, r"threads is 1\.0; expected a whole number"),
        (lambda: fresh(compile="yes"), OptionError, "compile is 'yes'; expected 'auto', True or False"),
        (lambda: fresh(compile=1), OptionError, "compile is 1; expected 'auto', True or False"),
        # layers
        (lambda: bp.Dense(0), OptionError, "units is 0; expected a whole number of at least 1"),
        (lambda: bp.Dense(3.0), OptionError, r"units is 3\.0; expected a whole number"),
        (lambda: bp.Dense("3"), OptionError, "units is '3'; expected a whole number"),
        (lambda: bp.Dense(True), OptionError, "units is True; expected a whole number"),
        (lambda: bp.Dense(3, "rleu"), UnknownNameError,
         r"unknown activation 'rleu': did you mean 'relu'\? known are celu, elu, .*tanh"),
        (lambda: bp.Dense(3, "softmx"), UnknownNameError, "did you mean 'softmax'"),
        (lambda: bp.Dense(3, "zzz"), UnknownNameError, "unknown activation 'zzz': known are celu"),
        (lambda: bp.Dense(3, bp.ReLU), ArgumentError,
         r"activation is the class ReLU; expected an instance, ReLU\(\.\.\.\)"),
        (lambda: bp.Dense(3, None), ArgumentError, "activation is None; expected a name or a bpnet activation"),
        (lambda: bp.Dense(3, np.tanh), ArgumentError,
         "activation is of type ufunc; expected a name or a bpnet activation"),
        (lambda: bp.Dense(3, bp.Dense(3)), ArgumentError,
         "activation is of type Dense; expected a name or a bpnet activation"),
        (lambda: bp.Dense(3, bias="no"), OptionError, "bias is 'no'; expected True or False"),
        (lambda: bp.Dropout(1.0), OptionError, r"rate is 1\.0; expected a number in \[0, 1\)"),
        (lambda: bp.Dropout(-0.1), OptionError, r"rate is -0\.1; expected a number in \[0, 1\)"),
        (lambda: bp.Dropout(float("nan")), OptionError, "rate is nan; expected a number"),
        (lambda: bp.Dropout("half"), OptionError, "rate is 'half'; expected a number"),
        (lambda: bp.BatchNorm(momentum=1.5), OptionError, r"momentum is 1\.5; expected a number in \[0, 1\]"),
        (lambda: bp.BatchNorm(epsilon=0), OptionError, r"epsilon is 0; expected a number in \(0, inf\)"),
        (lambda: bp.LeakyReLU(1.0), OptionError, r"negative_slope is 1\.0; expected a number in \[0, 1\)"),
        (lambda: bp.ELU(0), OptionError, r"alpha is 0; expected a number in \(0, inf\)"),
        (lambda: bp.GELU("tanh"), OptionError, "approximate is 'tanh'; expected True or False"),
        (lambda: bp.Sequential(), OptionError, r"Sequential\(\) has no layers; expected at least one"),
        (lambda: bp.Sequential([bp.Dense(3)]), ArgumentError,
         r"layer 0 of Sequential is of type list; .*Sequential\(\*layers\)"),
        (lambda: bp.Sequential(bp.Dense(3), "Relu"), UnknownNameError, "layer 'Relu': did you mean 'relu'"),
        (lambda: bp.Residual("leakyrelu"), UnknownNameError, "unknown layer 'leakyrelu': .* 'leaky_relu'"),
        (lambda: bp.Sequential("Dense"), OptionError,
         r"layer is 'Dense', which has options without defaults: pass an object, Dense\(...\)"),
        (lambda: bp.Trainer(bp.Dense(1), "mse", "Clip"), OptionError, "optimizer is 'Clip', which has options without"),
        (lambda: bp.Sequential(bp.Dense(3), 7), ArgumentError,
         "layer 1 of Sequential is of type int; expected a bpnet layer"),
        (lambda: bp.Sequential(bp.ReLU), ArgumentError, r"layer 0 of Sequential is the class ReLU; .*ReLU\(\.\.\.\)"),
        (lambda: bp.Residual(5), ArgumentError, "inner layer of Residual is of type int; expected a bpnet layer"),
        (lambda: bp.Residual(bp.Tanh), ArgumentError,
         "inner layer of Residual is the class Tanh; expected an instance"),
        # optimizers and schedules
        (lambda: bp.SGD(-0.1), OptionError, r"lr is -0\.1; expected a number in \[0, inf\)"),
        (lambda: bp.SGD(float("inf")), OptionError, "lr is inf; expected a number"),
        (lambda: bp.SGD("fast"), OptionError, "lr is 'fast'; expected a number"),
        (lambda: bp.SGD(None), OptionError, "lr is None; expected a number"),
        (lambda: bp.SGD(10**400), OptionError, r"lr is 10+\.\.\.; expected a number"),
        (lambda: bp.SGD(lambda step: 0.1), ArgumentError,
         "lr is of type function; expected a number, or a bpnet schedule"),
        (lambda: bp.Adam(bp.Cosine), ArgumentError, r"lr is the class Cosine; expected an instance, Cosine\(\.\.\.\)"),
        (lambda: bp.SGD(momentum=1.0), OptionError, r"momentum is 1\.0; expected a number in \[0, 1\)"),
        (lambda: bp.SGD(nesterov=True), OptionError, "nesterov=True needs a momentum above 0"),
        (lambda: bp.SGD(momentum=0.5, nesterov="yes"), OptionError, "nesterov is 'yes'; expected True or False"),
        (lambda: bp.Adam(beta1=1.0), OptionError, r"beta1 is 1\.0; expected a number in \[0, 1\)"),
        (lambda: bp.Adam(beta2=-0.5), OptionError, r"beta2 is -0\.5; expected a number in \[0, 1\)"),
        (lambda: bp.Adam(epsilon=0.0), OptionError, r"epsilon is 0\.0; expected a number in \(0, inf\)"),
        (lambda: bp.AdamW(weight_decay=-1), OptionError, r"weight_decay is -1; expected a number in \[0, inf\)"),
        (lambda: bp.Constant(-1), OptionError, r"lr is -1; expected a number in \[0, inf\)"),
        (lambda: bp.Cosine(0.1, 0), OptionError, "steps is 0; expected a whole number of at least 1"),
        (lambda: bp.Cosine(0.1, 10, final=-1), OptionError, "final is -1; expected a number"),
        (lambda: bp.WarmUp(0.1, 2.5), OptionError, r"steps is 2\.5; expected a whole number"),
        (lambda: bp.WarmUp("x", 5), OptionError, "lr is 'x'; expected a number"),
        (lambda: bp.WarmUp(bp.Cosine, 5), ArgumentError, "lr is the class Cosine; expected an instance"),
        # callbacks
        (lambda: bp.EarlyStopping(patience=0), OptionError, "patience is 0; expected a whole number of at least 1"),
        (lambda: bp.EarlyStopping(5), OptionError, "monitor is 5; expected the name of a recorded quantity"),
        (lambda: bp.EarlyStopping(min_delta=-1), OptionError, r"min_delta is -1; expected a number in \[0, inf\)"),
        (lambda: bp.EarlyStopping(min_delta="x"), OptionError, "min_delta is 'x'; expected a number"),
        # backends
        (lambda: bp.backends.get("nunpy"), UnknownNameError,
         r"unknown backend 'nunpy': did you mean 'numpy'\? known are cupy"),
        (lambda: bp.backends.get(None), ArgumentError, "name of a backend is None; expected one of numpy, cupy"),
    ]
)  # fmt: skip
def test_constructors(call: Any, error: Any, pattern: str) -> None:
    expect(error, pattern, call)


@table(
    [
        (lambda: fresh(bp.Sequential(bp.Residual(bp.Dense(7)), bp.Dense(3))).build(X), ShapeError,
         r"inner layer of Residual turns rows of \(4,\) into \(7,\); expected it to keep the shape"),
        (lambda: fresh(bp.Dense(3)).build(X[:, None, :]), ShapeError,
         r"cross_entropy needs one output per class, .* gives \(1, 3\) per row: .*Flatten\(\)"),
        (lambda: fresh(bp.Sequential(bp.Flatten(), bp.ReLU()), "mse").build(X), ShapeError,
         "has no parameters to train"),
    ]
)  # fmt: skip
def test_layers_that_do_not_fit_together(call: Any, error: Any, pattern: str) -> None:
    expect(error, pattern, call)


def test_numpy_scalars_are_numbers(tmp_path: Any) -> None:
    """`Dense(y.max() + 1)` is what everybody writes, and a file must be able to hold it."""
    units = Y.max() + 1
    network = bp.Sequential(bp.Dropout(np.float32(0.5)), bp.BatchNorm(np.float64(0.9)), bp.Dense(units))
    assert network == bp.Sequential(bp.Dropout(0.5), bp.BatchNorm(0.9), bp.Dense(3))
    schedule = bp.WarmUp(bp.Cosine(np.float32(0.5), np.int64(10)), np.int32(3))
    trainer = fresh(network, optimizer=bp.SGD(schedule, np.float32(0.5)), seed=np.int64(3), clip_norm=np.float32(1))
    trainer.fit(
        X,
        Y,
        epochs=np.int64(1),
        batch_size=np.int32(9),
        callbacks=[bp.EarlyStopping("loss", np.int64(2))],
        progress=False,
    )
    trainer.save(tmp_path / "m.safetensors")
    assert bp.load(tmp_path / "m.safetensors").network == network
    bp.Trainer(bp.Dense(3), T, bp.Adam(np.float64(1e-3)), threads=np.int64(1)).step(X, Y)


# ---- layers of a user's own -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Careless(bp.Layer):
    """Its gradient has a wrong shape, or is not there."""

    mistake: str

    def out_shape(self, in_shape: Any) -> Any:
        return in_shape

    def init(self, rng: Any, in_shape: Any) -> Any:
        return {"s": rng.full(in_shape, 1.0)}

    def forward(self, run: Any, p: Any, x: Any) -> Any:
        return x * p["s"], x

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
        wrong = {"rows": {"s": dy * cache}, "number": {"s": run.xp.sum(dy * cache)}, "none": {}}
        return dy * p["s"], wrong[self.mistake]


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("rows", r"the gradient of s has the shape \(2, 4\); expected \(4,\)"),
        ("number", r"the gradient of s has the shape \(\); expected \(4,\)"),
        ("none", "backward gave no gradient for s"),
    ],
)
def test_a_gradient_of_another_shape(mistake: str, said: str, jit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if jit:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    compiles(monkeypatch, jit)
    trainer = fresh(bp.Sequential(Careless(mistake), bp.Dense(3)))
    with pytest.raises(ShapeError, match=rf"layer '0', Careless\(mistake='{mistake}'\): {said}"):
        trainer.step(X, Y)


class Plain(bp.Layer):
    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return x, None

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return dy, {}


@dataclass
class Soft(Plain):
    size: int = 1


class Undecorated(bp.Dense):
    """What it is told besides, no file would keep."""

    more: int = 1


@dataclass(frozen=True)
class Listed(Plain):
    sizes: Any = (1, 2)


def test_a_users_layer_must_be_a_frozen_dataclass() -> None:
    for layer in (Plain(), Soft(), Undecorated(3)):
        name = type(layer).__name__
        pattern = rf"layer {name} is no frozen dataclass: write @dataclass\(frozen=True\) above it"
        expect(ArgumentError, pattern, lambda layer=layer: bp.Sequential(layer))
        expect(ArgumentError, pattern, lambda layer=layer: bp.Trainer(layer, T))
        expect(ArgumentError, pattern, lambda layer=layer: bp.check_gradients(layer, X))
    pattern = r"options of .*Listed\(sizes=\[1\]\).* can't be hashed: use tuples, not lists or arrays"
    expect(ArgumentError, pattern, lambda: fresh(bp.Sequential(Listed([1]), bp.Dense(3))).build(X))
    bp.check_gradients(Listed(), X)


def test_a_users_layer_can_not_take_a_name_that_is_taken() -> None:
    def again() -> None:
        @dataclass(frozen=True)
        class Dense(bp.Layer):
            """Another."""

    expect(OptionError, r"there is a layer called Dense already, in bpnet\.layers\.dense: .* another name", again)
    assert isinstance(bp.Dense(3, "relu"), bp.Layer)

    def redefined() -> type:
        @dataclass(frozen=True)
        class Again(bp.Layer):
            """As in a notebook whose cell is run twice."""

        return Again

    assert redefined() is not redefined()


# ---- files and extras -----------------------------------------------------------------------------------------------


def test_saving_and_loading(tmp_path: Any) -> None:
    trainer, path = built(), tmp_path / "m.safetensors"
    trainer.save(path)
    for error, pattern, call in [
        (ArgumentError, "metadata is of type int; expected a dict", lambda: trainer.save(path, metadata=5)),
        (ArgumentError, r"metadata\['a'\] is of type ndarray; .*JSON", lambda: trainer.save(path, metadata={"a": X})),
        (ArgumentError, r"metadata\['a'\]\[1\] is of type set; .*JSON", lambda: trainer.save(path, {"a": [1, {2}]})),
        (ArgumentError, r"metadata has the key 1; expected text", lambda: trainer.save(path, metadata={1: 2})),
        (ArgumentError, r"path is of type int; expected", lambda: bp.load(5)),
        (ArgumentError, r"path is None; expected", lambda: trainer.save(None)),
        (ArrayMismatchError, r"like is of type list; expected an array", lambda: bp.load(path, like=[1.0])),
    ]:
        expect(error, pattern, call)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        trainer.save(tmp_path / "nowhere" / "m.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder; expected the name of a file"):
        trainer.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert np.array_equal(bp.load(path).theta, trainer.theta)
    assert json.dumps(bp.load(path).metadata) == "{}"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("cupy", r"the cupy backend needs CuPy: pip install 'bpnet-xp\[cuda13\]'"),
        ("torch", "the torch backend needs torch: pip install torch"),
        ("jax", "the jax backend needs jax: pip install jax"),
    ],
)
def test_a_library_that_is_not_installed(name: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m == name or m.startswith((f"{name}.", f"array_api_compat.{name}"))]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"bpnet.backends.{name}", raising=False)
    monkeypatch.setattr(bp.backends, "_by_name", {})
    expect(MissingExtraError, pattern, lambda: bp.backends.get(name))
    assert bp.backends.get("numpy").name == "numpy"


def test_every_error_of_the_table_is_bpnets_and_a_built_in() -> None:
    for error, built_in in BUILT_IN.items():
        assert issubclass(error, BpnetError)
        assert issubclass(error, built_in)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant", "call"),
    [
        ("Relu", "relu", lambda name: bp.Dense(3, name)),
        ("ReLU", "relu", lambda name: bp.Sequential(name)),
        ("LeakyReLU", "leaky_relu", lambda name: bp.Dense(3, name)),
        ("leaky-relu", "leaky_relu", lambda name: bp.Residual(name)),
        ("Gelu", "gelu", lambda name: bp.Dense(3, name)),
        ("ELU", "elu", lambda name: bp.Dense(3, name)),
        ("SELU", "selu", lambda name: bp.Dense(3, name)),
        ("Soft Max", "softmax", lambda name: bp.Dense(3, name)),
        ("CrossEntropy", "cross_entropy", lambda name: bp.Trainer(NETWORK, name)),
        ("crossentropy", "cross_entropy", lambda name: bp.value_and_grad(NETWORK, name, X, X, X)),
        ("MSE", "mse", lambda name: bp.Trainer(NETWORK, name)),
        ("BinaryCrossEntropyWithLogits", "binary_cross_entropy_with_logits", lambda name: bp.Trainer(NETWORK, name)),
        ("Adam", "adam", lambda name: bp.Trainer(NETWORK, T, name)),
        ("AdamW", "adamw", lambda name: bp.Trainer(NETWORK, T, name)),
        ("NumPy", "numpy", lambda name: bp.backends.get(name)),
        ("CuPy:1", "cuda:1", lambda name: bp.Trainer(NETWORK, T, device=name)),
        ("CUDA", "cuda", lambda name: bp.Trainer(NETWORK, T, device=name)),
        ("PyTorch", "torch", lambda name: bp.backends.get(name)),
    ],
)
def test_a_misspelt_name_suggests_the_one_that_was_meant(given: str, meant: str, call: Any) -> None:
    text = expect(
        UnknownNameError, f"{re.escape(repr(given))}: did you mean {re.escape(repr(meant))}", lambda: call(given)
    )
    assert text.count("did you mean") == 1


def test_a_name_like_no_other_suggests_nothing() -> None:
    assert "did you mean" not in expect(UnknownNameError, "known are", lambda: bp.Dense(3, "xyz"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Dens", "Dense"),
        ("dense", "Dense"),
        ("Batchnorm", "BatchNorm"),
        ("Relu", "ReLU"),
        ("qq", None),
    ],
)
def test_a_misspelt_name_of_the_package(given: str, meant: str | None) -> None:
    hint = f": did you mean '{meant}'\\?" if meant else ""
    with pytest.raises(AttributeError, match=f"^module 'bpnet' has no attribute '{given}'{hint}$"):
        getattr(bp, given)


def test_errors_can_be_pickled() -> None:
    """As they are on their way from a worker process."""
    with pytest.raises(UnknownNameError) as caught:
        bp.Dense(3, "Relu")
    caught.value.add_note("in a worker")
    for error in (caught.value, MissingExtraError("what", "package", "extra"), DataError("text")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# ---- probabilities for a loss that wants logits ---------------------------------------------------------------------

SOFTMAXES: list[bp.Layer] = [
    bp.Dense(3, "softmax"),
    bp.Dense(3, bp.Softmax()),
    bp.Sequential(bp.Dense(3), "softmax"),
    bp.Sequential(bp.Dense(5), bp.Sequential(bp.Dense(3), bp.Softmax()), bp.Identity()),
    bp.Sequential(bp.Dense(3, "softmax"), bp.Flatten(), bp.Dropout(0.1)),
]


@pytest.mark.parametrize("network", SOFTMAXES, ids=str)
def test_softmax_before_cross_entropy_is_warned_of(network: bp.Layer) -> None:
    pattern = r"the network ends in Softmax\(\), but CrossEntropy\(\) takes logits .*: leave the last activation out$"
    for start in ("fit", "step", "build"):
        trainer = fresh(network)
        with pytest.warns(bp.errors.BpnetWarning, match=pattern) as caught:
            getattr(trainer, start)(*([X] if start == "build" else [X, Y]))
        assert [w.filename for w in caught] == [__file__]
        assert issubclass(caught[0].category, UserWarning)
        trainer.fit(X, Y)  # no more
        trainer.step(X, Y)


def test_sigmoid_before_a_loss_of_logits_is_warned_of() -> None:
    pattern = r"ends in Sigmoid\(\), but .*: leave the last activation out, or take the loss 'binary_cross_entropy'"
    for network in (ONE, bp.Sequential(bp.Dense(1), "sigmoid")):
        with pytest.warns(bp.errors.BpnetWarning, match=pattern):
            fresh(network, "binary_cross_entropy_with_logits").fit(X, Y % 2)
    with pytest.warns(
        bp.errors.BpnetWarning, match=r"Sigmoid\(\), but CrossEntropy\(\) .*leave the last activation out$"
    ):
        fresh(bp.Dense(3, "sigmoid")).fit(X, Y)


@pytest.mark.parametrize(
    ("network", "loss"),
    [
        (bp.Dense(3, "softmax"), "mse"),
        (bp.Dense(3, "softmax"), "binary_cross_entropy"),
        (ONE, "binary_cross_entropy"),
        (ONE, "mse"),
        (bp.Sequential(bp.Dense(5, "softmax"), bp.Dense(3)), T),
        (bp.Sequential(bp.Dense(5, "sigmoid"), bp.Dense(1)), "binary_cross_entropy_with_logits"),
        (bp.Sequential(bp.Dense(3), bp.Residual("softmax")), T),
        (bp.Dense(3, "relu"), T),
    ],
)
def test_right_pairs_are_not_warned_of(network: bp.Layer, loss: str) -> None:
    y = Y % 2 if loss != T and network.out_shape((4,)) == (1,) else Y if loss == T else np.eye(3)[Y]
    fresh(network, loss).fit(X, y)  # warnings are errors here


# ---- arrays that hold no plain values, and sizes that no memory has room for ----------------------------------------


def odd_tensors(torch: Any) -> list[tuple[Any, type[BpnetError], str]]:
    x = torch.tensor(X)
    return [
        (x.to_sparse(), ArrayMismatchError, r"is a tensor of the layout torch\.sparse_coo: pass its to_dense\(\)"),
        (x.to_sparse_csr(), ArrayMismatchError, r"is a tensor of the layout torch\.sparse_csr: pass its to_dense\(\)"),
        (x.float().to_mkldnn(), ArrayMismatchError, r"is a tensor of the layout torch\._mkldnn: pass its to_dense\(\)"),
        (x.to("meta"), ArrayMismatchError, "is a tensor on the device 'meta'|lies on device"),
        (torch.nested.nested_tensor([x, x[:3]]), ArrayMismatchError, "is a nested tensor: pad it|has no shape"),
        (torch.nested.nested_tensor([x, x[:3]], layout=torch.jagged), ArrayMismatchError, "is a nested tensor: pad it"),
        (torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8), ArrayMismatchError, r"is a quantized tensor: pass"),
        (x.to(torch.complex64), DTypeError, "holds torch.complex64 values"),
        (x.to(torch.complex64).conj(), DTypeError, "holds torch.complex64 values"),
        (x.to(torch.bfloat16), DTypeError, "holds torch.bfloat16 values"),
    ]


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of prototypes
@pytest.mark.parametrize("case", range(10))
def test_tensors_without_plain_values(case: int) -> None:
    torch = pytest.importorskip("torch")
    odd, error, pattern = odd_tensors(torch)[case]
    x, y = torch.tensor(X), torch.tensor(Y)
    trainer = fresh().build(x)
    theta = trainer.theta.clone()
    for name, call in [
        ("x", lambda: fresh().build(odd)),
        ("x", lambda: fresh().step(odd, y)),
        ("x", lambda: fresh().fit(odd, y)),
        ("x", lambda: trainer.step(odd, y)),
        ("x", lambda: trainer.predict(odd)),
        ("x", lambda: trainer.evaluate(odd, y)),
        ("y", lambda: trainer.step(x, odd)),
        ("y", lambda: trainer.fit(x, odd)),
        ("sample_weight", lambda: trainer.step(x, y, odd)),
        ("theta", lambda: bp.value_and_grad(NETWORK, T, odd, x, y)),
        ("x", lambda: bp.check_gradients(NETWORK, odd)),
    ]:
        if name == "theta" and error is DTypeError:
            continue  # its shape is wrong first
        expect(error, rf"{name}.* (?:{pattern}|on meta: move)", call)
    assert torch.equal(trainer.theta, theta)


@pytest.mark.parametrize(
    "dtype", ["O", "S3", "datetime64[s]", "timedelta64[s]", "V8", [("a", "f4"), ("b", "i4")], np.dtypes.StringDType()]
)
def test_types_that_the_standard_does_not_know(dtype: Any) -> None:
    odd = np.zeros((20, 4), dtype)
    for name, call in [
        ("x", lambda: fresh().fit(odd, Y)),
        ("x", lambda: built().predict(odd)),
        ("y", lambda: fresh().fit(X, odd)),
        ("sample_weight", lambda: fresh().fit(X, Y, sample_weight=odd)),
        (r"validation\[0\]", lambda: fresh().fit(X, Y, validation=(odd, Y))),
    ]:
        expect(DTypeError, f"{name} holds .* values", call)


def test_an_array_that_jax_was_given() -> None:
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.asarray(X)
    x.delete()
    expect(ArrayMismatchError, "x is an array that was given up: copy what must stay", lambda: fresh().build(x))


def test_sizes_beyond_any_memory() -> None:
    for units in (2**31, 10**12, 10**30, 10**400, 10**5000):
        text = expect(
            OptionError,
            "units is .*; expected a whole number of at most 2,147,483,647",
            lambda units=units: bp.Dense(units),
        )
        assert len(text) < 150
    for shape in ((10**30,), (4, 2**40)):
        expect(
            OptionError,
            "in_shape is .*; expected a whole number of at most",
            lambda shape=shape: bp.layout_of(NETWORK, shape),
        )
    most = 2**31 - 1
    wide = bp.Sequential(bp.Dense(most), bp.Dense(most), bp.Dense(3))
    expect(
        OutOfMemoryError,
        r"a layer has a parameter of the shape \(2147483647, 2147483647\)",
        lambda: fresh(wide).build(X),
    )
    if sys.maxsize > 2**32:
        slim = bp.Sequential(bp.Dense(most), bp.Dense(2**20), bp.Dense(3))  # 18 petabytes
        trainer = fresh(slim)
        expect(OutOfMemoryError, r"2,251,[0-9,]+ parameters of the network and", lambda: trainer.build(X))
        expect(NotBuiltError, "no parameters yet", lambda: trainer.theta)


def test_snapshots_of_another_kind() -> None:
    trainer = built()
    (theta, buffers, state), count = trainer.snapshot()
    for wrong in (
        None,
        (1, 2),
        ((theta, buffers), 0),
        ((theta, buffers, None), 0),
        ((theta, buffers, state[:1]), 0),
        7,
    ):
        expect(
            ArgumentError,
            r"snapshot is .*, but not what this trainer's snapshot\(\) gave",
            lambda wrong=wrong: trainer.restore(wrong),
        )
    expect(OptionError, "the snapshot's step count is -1", lambda: trainer.restore(((theta, buffers, state), -1)))
    short = (state[0][:3], state[1])
    pattern = r"snapshot's optimizer state has the shape \(3,\); expected \(43,\)"
    expect(ShapeError, pattern, lambda: trainer.restore(((theta, buffers, short), 0)))
    expect(ArrayMismatchError, "parameters is None", lambda: trainer.restore(((None, buffers, state), 0)))
    trainer.restore(((theta, buffers, state), count))


def test_long_values_are_named_by_what_they_are() -> None:
    for value in (X, X.tolist(), object(), range(10**9), {"a": "b" * 100}):
        text = expect(OptionError, "units is .*; expected a whole number", lambda value=value: bp.Dense(value))
        assert len(text) < 120
