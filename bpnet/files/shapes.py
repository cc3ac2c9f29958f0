"""How large the state of an optimizer is, found without the memory for it: a file may describe what it doesn't hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array, get
from bpnet.backends.base import Backend
from bpnet.layer import Shape
from bpnet.layout import Layout
from bpnet.optimizers.base import Optimizer

if TYPE_CHECKING:
    import numpy


def state_shapes(optimizer: Optimizer, layout: Layout, dtype: "numpy.dtype[Any]") -> list[Shape]:
    """The shapes of the arrays of its state for parameters of this type."""
    backend = _Shapes()
    theta = backend.xp.zeros((layout.size,), dtype=dtype)
    return [tuple(array.shape) for array in optimizer.init(backend, layout, theta)]


class _Shapes(Backend):
    """NumPy's, but new arrays are one number in every place, and so are copies and what is joined of several."""

    name = "numpy"

    def __init__(self) -> None:
        super().__init__(_Namespace(get("numpy").xp))

    def device(self, x: Array) -> Any:
        return "cpu"

    def copy(self, x: Array) -> Array:
        return x

    def concat(self, vectors: Sequence[Array]) -> Array:
        return self.xp.concat(vectors)


class _Namespace:
    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def full(self, shape: Any, value: Any = 0.0, *, dtype: Any = None, device: Any = None) -> Array:
        return self._xp.broadcast_to(self._xp.asarray(value if dtype is None else 0, dtype=dtype), shape)

    zeros = ones = empty = full

    def full_like(self, x: Array, value: Any = 0.0, *, dtype: Any = None, device: Any = None) -> Array:
        return self.full(x.shape, value, dtype=x.dtype if dtype is None else dtype)

    zeros_like = ones_like = empty_like = full_like

    def concat(self, arrays: Sequence[Array], *, axis: int | None = 0) -> Array:
        if axis == 0 and all(array.ndim == 1 for array in arrays):
            return self.full((sum(array.shape[0] for array in arrays),), dtype=arrays[0].dtype)
        return self._xp.concat(arrays, axis=axis)
