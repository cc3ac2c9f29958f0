"""The one way from what a user passes to batches: checked, converted, and placed where they are computed with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bpnet.backends import Array, backend_of, common_backend, device_named
from bpnet.data.checks import check_finite, check_rows, check_target, check_weight, ignored_rows, rows_of
from bpnet.data.loader import Loader, StreamingLoader
from bpnet.errors import ArgumentError, ArrayMismatchError, DTypeError, ShapeError, kind_of, plural
from bpnet.layout import Layout
from bpnet.losses import Loss

PARAMETERS = "the trainer's parameters"


@dataclass(frozen=True)
class Expected:
    """What data must fit: a network's layout, and the library, device and type of an array, called `name`."""

    layout: Layout
    like: Array
    name: str = PARAMETERS


def named(x: Array, y: Array, weight: Array | None) -> dict[str, Any]:
    """The arguments of a call by their names; a weight that is None is left out."""
    return {"x": x, "y": y} if weight is None else {"x": x, "y": y, "sample_weight": weight}


def validation_data(validation: Any) -> dict[str, Any]:
    """The same of the parts of `validation`."""
    if not isinstance(validation, tuple | list):
        raise ArgumentError(f"validation is {kind_of(validation)}; expected (x, y) or (x, y, sample_weight)")
    if len(validation) not in (2, 3):
        raise ShapeError(f"validation has {plural(len(validation), 'part')}; expected (x, y) or (x, y, sample_weight)")
    return {f"validation[{i}]": part for i, part in enumerate(validation) if i < 2 or part is not None}


def prepare(
    given: Mapping[str, Any],
    loss: Loss,
    expected: Expected | Callable[[Array], Layout],
    *,
    device: str | None = None,
    threads: int | None = None,
    values: bool = True,
) -> Loader:
    """x, or x, y and the weight, each by the name that errors call it, as batches.

    `expected` is what they must fit, or gives the layout for x where nothing says so yet.  On a `device`, arrays of
    NumPy are streamed to it.  Values (NaN, infinity, the range of labels) are looked at where `values` says so, for
    which the host must wait for a device; types and shapes are always.
    """
    (x_name, x), *targets = given.items()
    host = backend_of(x, x_name)
    x, whole = rows_of(host, x, x_name)
    common_backend({x_name: x, **dict(targets)})
    with host.session(threads, host.device(x)):
        backend, place = (host, None) if device is None else device_named(device)
        streams = backend is not host
        if streams and host.name != "numpy":
            raise ArrayMismatchError(
                f"{x_name} is an array of {host.name}, but the trainer's device is {device!r}: pass an array of NumPy "
                f"or {backend.name}"
            )
        if place is not None and not streams and host.device(x) != place:
            raise ArrayMismatchError(
                f"{x_name} lies on {host.device(x)}, but the trainer's device is {device!r}: move {x_name} there"
            )
        if values and not whole:
            check_finite(host, x, x_name)
        single = whole or x.dtype == host.xp.float32
        if isinstance(expected, Expected):
            layout, like = expected.layout, expected.like
            if not streams and (host is not backend_of(like) or host.device(x) != host.device(like)):
                try:
                    common_backend({x_name: x, expected.name: like})
                except ArrayMismatchError as error:
                    if expected.name != PARAMETERS:
                        raise
                    hint = f"bp.load(path, like={x_name}) brings a saved model there"
                    raise ArrayMismatchError(f"{error}; {hint}") from None
            check_rows(x, layout.in_shape, x_name)
            if not whole and single != (like.dtype == backend.xp.float32):
                raise DTypeError(f"{x_name} holds {x.dtype} values, but {expected.name} {like.dtype}: convert {x_name}")
            dtype = like.dtype
        else:
            layout, dtype = expected(x), backend.xp.float32 if single else backend.xp.float64
            like = backend.from_host(0.0, dtype, place) if streams else x
        if streams:  # what is on the host has the host's type of the same name
            dtype = host.xp.finfo(host.xp.float32 if like.dtype == backend.xp.float32 else host.xp.float64).dtype
        else:
            x = host.xp.astype(x, dtype) if whole else x
            dtype = x.dtype
        y = weight = None
        if targets:
            rows, (y_name, y) = x.shape[0], targets[0]
            y = check_target(host, loss, layout.out_shape, rows, dtype, y, y_name, x_name, values)
        if targets[1:]:
            weight = check_weight(host, rows, dtype, targets[1][1], targets[1][0], values)
        if targets:
            weight = ignored_rows(host, loss, dtype, y, weight, y_name, values)
        if streams:
            return StreamingLoader(backend, layout, x, y, weight, like, threads)
        return Loader(host, layout, x, y, weight)
