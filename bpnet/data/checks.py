"""What every public entry point checks of its data, once, before anything is computed.

Checks of `values` (NaN, infinity, the range of labels) make the host wait for a device; others don't.
"""

import math
from typing import Any

from bpnet.backends import Array, Backend, backend_of, common_backend
from bpnet.errors import ArrayMismatchError, DataError, DTypeError, ShapeError, plural
from bpnet.layer import Shape
from bpnet.losses.base import Loss
from bpnet.losses.heads import Heads
from bpnet.losses.members import Members

NUMBERS = "whole numbers, float32 or float64"
LABELS = f"{NUMBERS}: numpy.unique(labels, return_inverse=True) numbers them"

WHOLE = "whole numbers, for which the network has a table: convert them, such as with astype('int32')"

LARGEST_WEIGHT = 60
"""The largest weight is below 2**60: the sum of 2**40 of them times 2**20 outputs is finite in float32."""


def check_x(x: Array, name: str = "x", codes: int | None = None, accepts_nan: bool = False) -> tuple[Backend, Array]:
    """The backend of `x`, and `x` as rows of finite float32 or float64 values; whole numbers become float32.

    With `codes` it is whole numbers up to it instead.
    """
    backend = backend_of(x, name)
    x, whole = rows_of(backend, x, name, codes)
    with backend.session(device=backend.device(x)):
        check_input(backend, x, name, codes, accepts_nan)
        if codes is None and not whole:
            return backend, x
        return backend, backend.xp.astype(x, backend.xp.float32 if codes is None else code_type(backend, x))


def check_input(backend: Backend, x: Array, name: str, codes: int | None, accepts_nan: bool) -> None:
    """Raise DataError where an array of x has values that a network does not take.

    With `accepts_nan` these are infinity alone, and of whole numbers none: see `Layer.accepts_nan`.
    """
    if codes is None:
        check_finite(backend, x, name, accepts_nan)
    elif not accepts_nan:
        check_codes(backend, x, codes, name)


def rows_of(backend: Backend, x: Array, name: str, codes: int | None = None) -> tuple[Array, bool]:
    """`x`, detached, where it is (rows, features) of numbers, and whether they are whole; values aren't looked at.

    With `codes` they must be whole, and a vector is rows of one each.
    """
    expected = "float32 or float64, or whole numbers, made float32" if codes is None else WHOLE
    x, whole = numeric(backend, x, name, expected)
    if codes is not None and not whole:
        raise DTypeError(f"{name} holds {x.dtype} values; expected {WHOLE}")
    if x.ndim < (2 if codes is None else 1):
        hint = f": {name}[None] makes it one row, {name}[:, None] one feature a row" if x.ndim else ""
        raise ShapeError(f"{name} has {'one axis' if x.ndim else 'no axis'}; expected (rows, features){hint}")
    if x.shape[0] == 0:
        raise DataError(f"{name} has no rows")
    if 0 in x.shape:
        raise ShapeError(f"{name} has the shape {tuple(x.shape)}; expected at least one feature")
    return x, whole


def code_type(backend: Backend, x: Array) -> Any:
    """The type in which layers are given whole numbers like those of `x`: int32 or int64, which it may be already."""
    xp = backend.xp
    if x.dtype in (xp.int32, xp.int64):
        return x.dtype
    return xp.int64 if x.dtype != xp.bool and int(xp.iinfo(x.dtype).bits) == 64 else xp.int32


def check_codes(backend: Backend, x: Array, codes: int, name: str) -> None:
    """Raise DataError where a whole number in `x` is none of 0 ... codes - 1; x may be of any type of them."""
    xp = backend.xp
    if x.dtype == xp.bool:
        x = xp.astype(x, xp.int32)
    low, high = int(xp.min(x)), int(xp.max(x))
    if low < 0 or high >= codes:
        wrong = low if low < 0 else high
        rows = xp.reshape(x, (x.shape[0], -1)) == wrong
        first = int(xp.argmax(xp.astype(xp.any(rows, axis=1), xp.int32)))
        raise DataError(
            f"{name} has {wrong} in row {first}, but the network has entries for 0 ... {codes - 1} "
            "(numpy.unique(values, return_inverse=True) numbers them)"
        )


def numeric(backend: Backend, a: Array, name: str, expected: str) -> tuple[Array, bool]:
    """`a`, detached, and whether it holds whole numbers or booleans; raises DTypeError unless it does, or floats."""
    a = detached(backend, a, name)
    if a.dtype in (backend.xp.float32, backend.xp.float64):
        return a, False
    try:
        whole = backend.xp.isdtype(a.dtype, ("bool", "integral"))
    except TypeError:  # a type that the standard does not know, such as that of records
        whole = False
    if not whole:
        raise DTypeError(f"{name} holds {a.dtype} values; expected {expected}")
    return a, True


def detached(backend: Backend, x: Array, name: str) -> Array:
    """`x` as the backend computes with it; raises ArrayMismatchError where it has no plain values."""
    unfit = backend.unfit(x)
    if unfit is not None:
        raise ArrayMismatchError(f"{name} is {unfit}")
    return backend.detach(x)


def check_like(value: Any, own: Array, what: str, whose: str) -> None:
    """Raise unless an array, called `what`, is of the library, device, shape and type of one that a trainer has."""
    common_backend({what: value, whose: own})
    if tuple(value.shape) != tuple(own.shape):
        raise ShapeError(f"{what} has the shape {tuple(value.shape)}; expected {tuple(own.shape)}")
    if value.dtype != own.dtype:
        raise DTypeError(f"{what} holds {value.dtype} values; expected {own.dtype}")


def check_rows(x: Array, in_shape: Shape, name: str = "x") -> None:
    """Raise ShapeError unless the rows of `x` have the shape for which a network was built."""
    shape = tuple(x.shape[1:])
    if shape == in_shape:
        return
    if len(shape) == len(in_shape) == 1:
        raise ShapeError(f"{name} has {plural(shape[0], 'feature')}, but the network was built for {in_shape[0]}")
    raise ShapeError(f"{name} has rows of shape {shape}, but the network was built for {in_shape}")


def check_target(
    backend: Backend,
    loss: Loss,
    out_shape: Shape,
    rows: int,
    dtype: Any,
    y: Array,
    name: str = "y",
    x_name: str = "x",
    values: bool = True,
) -> Array:
    """`y` as targets for `loss`: labels, or values of `dtype` in the shape of the output, for so many rows of x."""
    xp, shape = backend.xp, loss.target_shape(out_shape)
    y, whole = numeric(backend, y, name, LABELS if loss.labels else NUMBERS)
    if y.ndim == 0 or y.shape[0] != rows:
        raise ShapeError(f"{x_name} has {plural(rows, 'row')}, but {name} has {y.shape[0] if y.ndim else 'no axis'}")
    if loss.labels and (y.ndim == 1 or tuple(y.shape[1:]) == (1,)):
        return _labels(backend, loss, y if y.ndim == 1 else xp.reshape(y, (rows,)), shape[0], whole, name, values)
    if y.ndim == 1 and shape == (1,):
        y = xp.reshape(y, (rows, 1))
    if tuple(y.shape[1:]) != shape:
        hint = "; for labels take the loss cross_entropy" if whole and y.ndim == 1 and not loss.labels else ""
        own = "the network gives" if shape == out_shape else f"with outputs of {out_shape} {loss} takes rows of"
        raise ShapeError(f"{name} has rows of shape {tuple(y.shape[1:])}, but {own} {shape}{hint}")
    look = values and not whole
    if look:
        check_finite(backend, y, name)
    if y.dtype != dtype:
        y = xp.astype(y, dtype)
        if look:
            _check(backend, xp.isfinite(y), f"{name} has a value too large for {dtype}, the type of x")
    if values:
        _check_targets(backend, loss, y, name)
    return y


def _check_targets(backend: Backend, loss: Loss, y: Array, name: str) -> None:
    """Raise DataError where a target is none that the loss, or one of several, knows what to do with."""
    xp, loss = backend.xp, loss.inner if isinstance(loss, Members) else loss
    if isinstance(loss, Heads):
        for head, _, wanted in loss.parts:
            some, where = y[:, wanted], f"column {wanted.start} of {name}"
            if head.loss.labels:
                good = (some >= 0.0) & (some < float(head.outputs)) & (some == xp.floor(some))
                _check(backend, good, f"{where} has a label other than 0 ... {head.outputs - 1}", some)
            else:
                _check_targets(backend, head.loss, some, f"{name} from {where.removesuffix(f' of {name}')} on")
        return
    if loss.probabilities:
        _check(backend, (y >= 0.0) & (y <= 1.0), f"{name} has a value outside 0 ... 1", y)
    elif loss.positive or loss.least > -math.inf:
        least = max(loss.least, 0.0) if loss.positive else loss.least
        good, bound = (y > least, f"above {least:g}") if loss.positive else (y >= least, f"of at least {least:g}")
        _check(backend, good, f"{name} has a value that {loss} does not take, which needs targets {bound}", y)
    if loss.distributions:
        _check(
            backend,
            xp.abs(xp.sum(y, axis=1) - 1.0) < 1e-3,
            f"a row of {name} does not add up to 1 (expected one-hot rows, or probabilities of the classes)",
        )


def check_weight(
    backend: Backend,
    rows: int,
    dtype: Any,
    weight: Array | None,
    name: str = "sample_weight",
    values: bool = True,
    ratios: bool = True,
) -> Array | None:
    """`weight` as one finite, non-negative number of `dtype` for each of so many rows.

    Of a mean only `ratios` count, so weights that are very large or small are scaled in their own type, before they
    become of `dtype`: then no sum overflows or loses bits.  What is less than 1e-37 of the largest may count as 0 in
    float32.
    """
    if weight is None:
        return None
    weight, whole = numeric(backend, weight, name, "float32 or float64, or whole numbers")
    if tuple(weight.shape) != (rows,):
        raise ShapeError(f"{name} has the shape {tuple(weight.shape)}; expected one number per row, ({rows},)")
    xp = backend.xp
    if whole:
        weight = xp.astype(weight, dtype)
    elif values:
        check_finite(backend, weight, name)
    if values:
        _check(backend, weight >= 0.0, f"{name} is negative")
        largest = float(xp.max(weight))
        if largest == 0.0:
            least = float(xp.finfo(weight.dtype).smallest_normal)
            raise DataError(
                f"{name} is 0 everywhere; expected at least one row that counts (some libraries take numbers under "
                f"{least:.2g} for 0: scale all weights up)"
            )
        if (
            ratios and not 1.0 <= largest < 2.0**LARGEST_WEIGHT
        ):  # else they stay the array that they are, as a CUDA graph likes
            power = LARGEST_WEIGHT - math.frexp(largest)[1]
            weight = weight * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)  # at once it may be no float32
    elif ratios:
        least = float(xp.finfo(weight.dtype).smallest_normal)
        root = 2.0 ** (LARGEST_WEIGHT / 2) / xp.sqrt(xp.maximum(xp.max(weight), least))
        weight = weight * root * root
    return weight if weight.dtype == dtype else xp.astype(weight, dtype)


def ignored_rows(
    backend: Backend, loss: Loss, dtype: Any, y: Array, weight: Array | None, name: str, values: bool
) -> Array | None:
    """The weights of rows, 0 where the loss ignores the label."""
    ignored, xp = getattr(loss, "ignore_index", None), backend.xp
    if ignored is None or y.ndim != 1:
        return weight
    counts = xp.astype(y != ignored, dtype)
    weight = counts if weight is None else weight * counts
    if values and not bool(xp.any(weight > 0.0)):
        raise DataError(f"no row counts: {name} has the label {ignored}, which is ignored, wherever there is a weight")
    return weight


def check_finite(backend: Backend, x: Array, name: str, accepts_nan: bool = False) -> None:
    """Raise DataError where `x` has infinity, or unless it may, NaN.  A finite sum tells at once that there is none."""
    xp = backend.xp
    if bool(xp.isfinite(xp.sum(x))):
        return
    if accepts_nan:
        _check(backend, ~xp.isinf(x), f"{name} has infinity")
    else:
        _check(backend, xp.isfinite(x), f"{name} has NaN or infinity")


def _check(backend: Backend, good: Array, message: str, values: Array | None = None) -> None:
    """Raise DataError unless all are good, with the first row that has one that isn't, and of `values` that one."""
    xp = backend.xp
    rows = xp.all(good, axis=tuple(range(1, good.ndim))) if good.ndim > 1 else good
    if bool(xp.all(rows)):
        return
    row, found = int(xp.argmin(xp.astype(rows, xp.int32))), ""
    if values is not None:
        fine, given = (backend.to_host(a[row : row + 1, ...]).reshape(-1).tolist() for a in (good, values))
        found = f": {given[fine.index(False)]:g}"
    raise DataError(f"{message}, first in row {row}{found}")


def _labels(backend: Backend, loss: Loss, y: Array, classes: int, whole: bool, name: str, values: bool) -> Array:
    xp = backend.xp
    if not whole:
        raise DTypeError(
            f"{name} holds {y.dtype} values, but labels are whole numbers: convert it to an integer type, "
            "or give one-hot rows"
        )
    bits = 8 if y.dtype == xp.bool else int(xp.iinfo(y.dtype).bits)
    unsigned = xp.isdtype(y.dtype, "unsigned integer")
    if y.dtype not in (xp.int32, xp.int64):  # others can't name every class, or some libraries can't compare them
        y = xp.astype(y, xp.int64 if bits == 64 else xp.int32)
    if not values:
        return y
    ignored, known = getattr(loss, "ignore_index", None), y
    if ignored is not None:
        known = xp.where(y == ignored, xp.zeros_like(y), y)
    low, high = int(xp.min(known)), int(xp.max(known))
    if low < 0 and unsigned:  # too large for the signed type of as many bits, where it wraps
        low += 2**bits
    if not 0 <= low <= high < classes:
        wrong = high if 0 <= low < classes else low
        raise DataError(
            f"{name} has the label {wrong}, but the network has {classes} outputs: labels are 0 ... {classes - 1} "
            "(numpy.unique(labels, return_inverse=True) numbers others)"
        )
    return y
