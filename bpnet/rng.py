"""Start values are drawn on the host, so one seed gives one start on every library."""

import math
from collections.abc import Callable
from typing import Any

from bpnet.backends.interrupts import NoWarnings
from bpnet.errors import OutOfMemoryError
from bpnet.options import whole

Shape = tuple[int, ...]

TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal variable that is within -2 ... 2."""


class Rng:
    """Draws start values on the host, so one seed gives one start on every library."""

    def __init__(self, seed: int) -> None:
        import numpy

        with NoWarnings():  # NumPy turns a warning off while it seeds, and on again if nothing interrupts it
            self._generator = numpy.random.default_rng(whole("seed", seed, 0))

    def uniform(self, shape: Shape, limit: float) -> Any:
        """Evenly over -limit ... limit."""
        return self._generator.uniform(-limit, limit, shape)

    def normal(self, shape: Shape, deviation: float) -> Any:
        """Normally, around zero."""
        return self._generator.normal(0.0, deviation, shape)

    def truncated_normal(self, shape: Shape, deviation: float) -> Any:
        """Normally, around zero, drawn again until within two widths, which are chosen so that `deviation` is left."""
        found = self._generator.normal(0.0, width := deviation / TRUNCATED, shape)
        while (beyond := abs(found) > 2.0 * width).any():
            found[beyond] = self._generator.normal(0.0, width, int(beyond.sum()))
        return found

    def orthogonal(self, shape: Shape) -> Any:
        """A matrix evenly among those with orthonormal columns, or rows where these are fewer (Mezzadri 2007).

        Axes before the last count as rows.
        """
        import numpy

        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = numpy.linalg.qr(self._generator.normal(0.0, 1.0, (max(rows, columns), min(rows, columns))))
        q = q * numpy.where(numpy.diagonal(r) < 0.0, -1.0, 1.0)
        return (q.T if rows < columns else q).reshape(shape)

    def scaled(self, values: Any, factor: float) -> Any:
        """Values that were drawn, times a factor."""
        return values * factor

    def full(self, shape: Shape, value: float) -> Any:
        """The same value everywhere."""
        import numpy

        return numpy.full(shape, value)

    def given(self, shape: Shape, values: Any) -> Any:
        """Values that are known: a number for all, or one for each."""
        import numpy

        return numpy.broadcast_to(numpy.asarray(values, dtype=numpy.float64), shape)

    def computed(self, shape: Shape, compute: Callable[[], Any]) -> Any:
        """What `compute` makes of other start values."""
        return compute()


class ShapeRng(Rng):
    """Draws nothing: stands in where only the shapes of start values are wanted."""

    def __init__(self) -> None:
        pass

    def full(self, shape: Shape, value: float) -> Any:
        import numpy

        if math.prod(shape) >= 2**59:
            raise OutOfMemoryError(f"a layer has a parameter of the shape {shape}, which is more than any memory holds")
        return numpy.broadcast_to(numpy.float64(value), shape)

    def _zeros(self, shape: Shape, *others: Any, **options: Any) -> Any:
        return self.full(shape, 0.0)

    given = computed = uniform = normal = truncated_normal = orthogonal = _zeros

    def scaled(self, values: Any, factor: float) -> Any:
        return values
