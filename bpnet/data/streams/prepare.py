"""A stream as batches: what its first row says of types and shapes, and what a trainer expects."""

from collections.abc import Callable, Mapping
from typing import Any

from bpnet.backends import Array
from bpnet.data.loader import Loader
from bpnet.data.prepare import Expected, prepare
from bpnet.data.streams.loader import StreamLoader
from bpnet.data.streams.stream import Stream
from bpnet.errors import ArgumentError
from bpnet.layer import InShape, Layer
from bpnet.layout import Layout
from bpnet.losses.base import Loss


def prepare_stream(
    given: Mapping[str, Any],
    network: Layer,
    loss: Loss,
    expected: Expected | Callable[[InShape, Array], Layout],
    *,
    device: str | None,
    threads: int | None,
    values: bool,
) -> Loader:
    """The same as `prepare` of arrays, for a stream: types and shapes are those of its first row.

    Values are checked chunk by chunk as they are read.
    """
    (x_name, stream), *targets = given.items()
    assert isinstance(stream, Stream)
    if targets and not stream.has_y:
        raise ArgumentError(f"{x_name} is a stream without targets: {stream.source.targets}")
    head = stream.arranged(stream.first)
    head["x"] = _as_type(head["x"], stream.dtype)
    if not targets:
        head = {"x": head["x"]}
    template = prepare(head, network, loss, expected, device=device, threads=threads, values=False)
    return StreamLoader(stream, template, loss, threads, values)


def _as_type(x: Any, dtype: str | None) -> Any:
    """Arrays of floats in that type."""
    if isinstance(x, dict):
        return {name: _as_type(a, dtype) for name, a in x.items()}
    if isinstance(x, tuple):
        return tuple(_as_type(a, dtype) for a in x)
    return x.astype(dtype) if dtype is not None and x.dtype.kind == "f" else x
