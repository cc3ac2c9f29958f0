"""From what a user passes to batches on a device: checks, conversion, streaming; `stream` is for data of any size."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker sees; a test holds it against `names.PUBLIC`
    from bpnet.data.streams.sources import Field, Source
    from bpnet.data.streams.stream import Stream, stream
else:
    from bpnet import names

    __getattr__ = names.on_demand("bpnet.data")

__all__ = ["Field", "Source", "Stream", "stream"]


def __dir__() -> list[str]:
    return __all__
