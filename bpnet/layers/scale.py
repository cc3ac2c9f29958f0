"""A trained scale for each feature."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Derivatives, Layer, Params, Rng, Run, Shape
from bpnet.options import finite


@dataclass(frozen=True)
class Scale(Layer):
    r"""y = x scale, a trained factor for each of the n features of the last axis of x, (..., n).

    With sums over all axes but the last, dL/dscale = sum of dL/dy x, and dL/dx = dL/dy scale.

    As the first layer it lets training choose among inputs (RealMLP: Holzmueller et al. 2024); after the branch of a
    `Residual`, with a small `start`, it is LayerScale (Touvron et al. 2021).
    """

    start: float = 1.0

    def __post_init__(self) -> None:
        self._check(start=finite)

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            raise ShapeError("Scale needs rows of features, but x has one axis: make it (rows, features)")
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {"scale": rng.full(in_shape[-1:], self.start)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return x * p["scale"], x

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        x, slopes = (run.xp.reshape(a, (-1, a.shape[-1])) for a in (cache, dy))
        return (dy * p["scale"] if need_dx else None), {"scale": run.sum_rows(slopes * x)}
