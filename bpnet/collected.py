"""What metrics keep of the batches of an evaluation, and what comes of it at the end."""

from functools import partial
from typing import Any

from bpnet.backends import get
from bpnet.backends.base import Backend, by_halves
from bpnet.errors import OutOfMemoryError
from bpnet.losses.base import Loss
from bpnet.metrics.base import Metric, Statistics


def _has_float64(xp: Any, device: Any) -> bool:
    """Whether a device has it: some have not, nor has JAX unless it is told."""
    return "float64" in xp.__array_namespace_info__().dtypes(kind="real floating", device=device)


class Collected:
    """The statistics of batch after batch, in float64.

    Sums come to the host, each batch's while the device computes the next; rows stay on the device, if it has float64.
    """

    def __init__(self, backend: Backend, metrics: tuple[Metric, ...], device: Any) -> None:
        self.backend, self.metrics = backend, metrics
        self.stay = tuple(metric.keeps_rows and _has_float64(backend.xp, device) for metric in metrics)
        self.batches: list[list[Statistics]] = []
        self.fetched = 0

    def add(self, statistics: tuple[Statistics, ...]) -> None:
        """What the metrics have of one more batch, in their order."""
        self._fetch()
        xp = self.backend.xp
        self.batches.append(
            [  # a copy of rows, whose memory is the batch's
                tuple(xp.astype(array, xp.float64) for array in some) if stays else some
                for some, stays in zip(statistics, self.stay, strict=True)
            ]
        )

    def _fetch(self) -> None:
        """Have what is to come to the host of the last batch there."""
        if self.fetched < len(self.batches):
            self.fetched = len(self.batches)
            self.batches[-1] = [
                some if stays else tuple(self.backend.to_host(array).astype("float64") for array in some)
                for some, stays in zip(self.batches[-1], self.stay, strict=True)
            ]

    def on_host(self) -> list[list[Statistics]]:
        """Those of each batch, for other ranks."""
        self._fetch()
        to_host = self.backend.to_host
        return [
            [tuple(map(to_host, some)) if stays else some for some, stays in zip(batch, self.stay, strict=True)]
            for batch in self.batches
        ]

    def replace(self, batches: list[list[Statistics]]) -> None:
        """Have those of all ranks, which are on the host."""
        self.batches, self.stay, self.fetched = batches, (False,) * len(self.metrics), len(batches)

    def results(self, loss: Loss) -> dict[str, Any]:
        """The metrics by name; raises OutOfMemoryError."""
        self._fetch()
        loss, found, host = loss.single, {}, get("numpy")
        every = zip(self.metrics, self.stay, zip(*self.batches, strict=True), strict=True)
        with host.session():
            for metric, stays, some in every:
                backend = self.backend if stays else host
                try:
                    statistics = by_halves(some, partial(metric.combine, backend))
                    found[metric.key] = metric.result(backend.xp, loss, *statistics)
                except backend.oom_errors as error:
                    raise OutOfMemoryError(
                        f"no memory for the metric {metric.key}, which needs an output and a target of every row at "
                        f"once ({error}): evaluate on fewer rows, or leave it out"
                    ) from error
        return found
