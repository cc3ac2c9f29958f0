"""The one way from what a user passes to batches: checked, converted, and placed where they are computed with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bpnet.backends import Array, Backend, backend_of, common_backend, device_named
from bpnet.data.checks import (
    check_input,
    check_rows,
    check_target,
    check_weight,
    code_type,
    detached,
    ignored_rows,
    rows_of,
)
from bpnet.data.loader import Loader, StreamingLoader
from bpnet.data.mapped import mapped_files
from bpnet.errors import ArgumentError, ArrayMismatchError, DTypeError, ShapeError, kind_of, plural
from bpnet.layer import InShape, Layer
from bpnet.layout import Layout, accepting, arranged
from bpnet.losses.base import Loss

PARAMETERS = "the trainer's parameters"


@dataclass(frozen=True)
class Expected:
    """What data must fit: a network's layout, and the library, device and type of an array, called `name`."""

    layout: Layout
    like: Array
    name: str = PARAMETERS


def named(x: Array, y: Array, weight: Array | None) -> dict[str, Any]:
    """The arguments of a call by their names; a weight that is None is left out, and for a stream so is y."""
    if is_stream(x):
        for what, part in (("y", y), ("sample_weight", weight)):
            if part is not None:
                raise ArgumentError(f"x is a stream, and {what} is given too: pass it to bp.data.stream")
        return {"x": x, "y": None}
    return {"x": x, "y": y} if weight is None else {"x": x, "y": y, "sample_weight": weight}


def is_stream(x: Any) -> bool:
    """Whether x is a `bpnet.data.Stream`, which is not imported for it."""
    return getattr(x, "is_stream", False) is True


def validation_data(validation: Any) -> dict[str, Any]:
    """The same of the parts of `validation`."""
    if is_stream(validation):
        return {"validation": validation, "y": None}
    if not isinstance(validation, tuple | list):
        raise ArgumentError(f"validation is {kind_of(validation)}; expected (x, y) or (x, y, sample_weight)")
    if len(validation) not in (2, 3):
        raise ShapeError(f"validation has {plural(len(validation), 'part')}; expected (x, y) or (x, y, sample_weight)")
    return {f"validation[{i}]": part for i, part in enumerate(validation) if i < 2 or part is not None}


def place_of(network: Layer, x: Any) -> tuple[Backend, Any]:
    """The backend and the device of x, or of the first of its arrays."""
    _, what, array, _ = arranged(network.takes, x, "x")[0]
    backend = backend_of(array, what)
    return backend, backend.device(detached(backend, array, what))


def prepare(
    given: Mapping[str, Any],
    network: Layer,
    loss: Loss,
    expected: Expected | Callable[[InShape, Array], Layout],
    *,
    device: str | None = None,
    threads: int | None = None,
    values: bool = True,
    ratios: bool = True,
) -> Loader:
    """x, or x, y and the weight, each by the name that errors call it, as batches.

    x is an array, or for a network that takes several a dict or a tuple of them; `expected` is what they must fit, or
    gives the layout for rows of a shape and an array like what is computed, where nothing says so yet.  On a `device`,
    arrays of NumPy are streamed to it.  Values (NaN, infinity, the range of labels and of whole numbers) are looked at
    where `values` says so, for which the host must wait for a device; types and shapes are always.  Only `ratios` of
    weights count, but where others have weights too.
    """
    (x_name, x), *targets = given.items()
    if is_stream(x):
        from bpnet.data.streams.prepare import prepare_stream

        return prepare_stream(given, network, loss, expected, device=device, threads=threads, values=values)
    maps = mapped_files(given)
    for file in maps:
        file.check()
    takes = network.takes
    inputs = [_Input(*one, nan) for one, nan in zip(arranged(takes, x, x_name), accepting(network), strict=True)]
    first = inputs[0]
    host = first.host
    common_backend({one.what: one.x for one in inputs} | dict(targets))
    for one in inputs[1:]:
        if one.x.shape[0] != first.x.shape[0]:
            have = plural(first.x.shape[0], "row")
            raise ShapeError(f"{first.what} has {have}, but {one.what} {one.x.shape[0]}: expected as many")
    with host.session(threads, host.device(first.x)):
        backend, place = (host, None) if device is None else device_named(device)
        streams = backend is not host
        if streams and host.name != "numpy":
            raise ArrayMismatchError(
                f"{first.what} is an array of {host.name}, but the trainer's device is {device!r}: pass an array of "
                f"NumPy or {backend.name}"
            )
        if place is not None and not streams and host.device(first.x) != place:
            raise ArrayMismatchError(
                f"{first.what} lies on {host.device(first.x)}, but the trainer's device is {device!r}: move it there"
            )
        for one in inputs if values else ():
            if one.codes is not None or not one.whole:
                check_input(host, one.x, one.what, one.codes, one.accepts_nan)
        real = [one for one in inputs if not one.whole]
        for one in real:
            if one.x.dtype != real[0].x.dtype:
                held = f"{real[0].what} holds {real[0].x.dtype} values, but {one.what} {one.x.dtype}"
                raise DTypeError(f"{held}: convert one of them")
        single = not real or real[0].x.dtype == host.xp.float32
        shapes = tuple((one.name, tuple(int(n) for n in one.x.shape[1:])) for one in inputs)
        if isinstance(expected, Expected):
            layout, like = expected.layout, expected.like
            if not streams and (host is not backend_of(like) or host.device(first.x) != host.device(like)):
                try:
                    common_backend({first.what: first.x, expected.name: like})
                except ArrayMismatchError as error:
                    if expected.name != PARAMETERS:
                        raise
                    hint = f"bp.load(path, like={first.what}) brings a saved model there"
                    raise ArrayMismatchError(f"{error}; {hint}") from None
            built = layout.in_shape if isinstance(takes, tuple) else (("", layout.in_shape),)
            for one, (_, shape) in zip(inputs, built, strict=True):
                check_rows(one.x, shape, one.what)
            if real and single != (like.dtype == backend.xp.float32):
                what, dtype = real[0].what, real[0].x.dtype
                raise DTypeError(f"{what} holds {dtype} values, but {expected.name} {like.dtype}: convert {what}")
        else:
            dtype = backend.xp.float32 if single else backend.xp.float64
            own = real and not streams
            like = real[0].x if own else backend.from_host(0.0, dtype, place if streams else host.device(first.x))
            layout = expected(shapes if isinstance(takes, tuple) else shapes[0][1], like)
        types = [like.dtype if one.codes is None else code_type(host, one.x) for one in inputs]
        dtype = like.dtype
        if streams:  # what is on the host has the host's type of the same name
            for i, one in enumerate(inputs):
                if one.codes is not None:
                    wide = code_type(host, one.x) == host.xp.int64
                    types[i] = backend.from_host(0, backend.xp.int64 if wide else backend.xp.int32, place).dtype
            dtype = host.xp.finfo(host.xp.float32 if like.dtype == backend.xp.float32 else host.xp.float64).dtype
        else:
            pairs, astype = zip(inputs, types, strict=True), host.xp.astype
            arrays = [one.x if one.x.dtype == kind else astype(one.x, kind) for one, kind in pairs]
        x = tuple(one.x for one in inputs) if streams else tuple(arrays)
        x = x if isinstance(takes, tuple) else x[0]
        y = weight = None
        if targets:
            y_name, y = targets[0]
            rows = int(first.x.shape[0])
            y = check_target(host, loss, layout.out_shape, rows, dtype, y, y_name, first.what, values)
        if targets[1:]:
            weight = check_weight(
                host, rows, dtype, targets[1][1], targets[1][0], values, ratios and loss.reduction == "mean"
            )
        if targets:
            weight = ignored_rows(host, loss, dtype, y, weight, y_name, values)
        if streams:
            return StreamingLoader(backend, layout, x, y, weight, like, types, threads, maps)
        return Loader(host, layout, x, y, weight, like, maps)


def kind(x: Any, y: Any = None) -> tuple[Any, ...] | None:
    """All of a batch that decides whether it fits and must be converted, but for its values; None: not arrays.

    x may be several arrays, in a dict or a tuple.
    """
    try:
        if y is None:
            return type(x), x.dtype, x.shape, x.device
        return type(x), x.dtype, x.shape, x.device, type(y), y.dtype, y.shape, y.device
    except AttributeError:
        pass
    if type(x) not in (dict, tuple):
        return None
    parts = [kind(a) for a in (x.values() if type(x) is dict else x)] + ([] if y is None else [kind(y)])
    return None if None in parts else (type(x), *x, *parts) if type(x) is dict else (type(x), *parts)


class _Input:
    """An array of x as it was passed: `what` errors call it, whether it holds whole numbers, and of how many codes."""

    def __init__(self, name: str, what: str, x: Any, takes: Any, accepts_nan: bool) -> None:
        self.name, self.what, self.codes, self.accepts_nan = name, what, takes, accepts_nan
        self.host = backend_of(x, what)
        self.x, self.whole = rows_of(self.host, x, what, takes)
