"""A trained scale for each feature."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Derivatives, Layer, Leaf, Params, Rng, Run, Shape
from bpnet.options import finite, flag


@dataclass(frozen=True)
class Scale(Layer):
    r"""y = x scale, a trained factor for each of the n features of the last axis of x, (..., n).

    With sums over all axes but the last, dL/dscale = sum of dL/dy x, and dL/dx = dL/dy scale.

    As the first layer it lets training choose among inputs (RealMLP: Holzmueller et al. 2024); after the branch of a
    `Residual`, with a small `start`, it is LayerScale (Touvron et al. 2021).  Weight decay leaves it alone, unless
    `decay` is True, as it is in RealMLP.
    """

    start: float = 1.0
    decay: bool = False

    def __post_init__(self) -> None:
        self._check(start=finite, decay=flag)

    def out_shape(self, in_shape: Shape) -> Shape:
        if not in_shape:
            raise ShapeError("Scale needs rows of features, but x has one axis: make it (rows, features)")
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        return {"scale": Leaf(rng.full(in_shape[-1:], self.start), decay=self.decay)}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        return x * p["scale"], x

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        x, slopes = (run.xp.reshape(a, (-1, a.shape[-1])) for a in (cache, dy))
        return (dy * p["scale"] if need_dx else None), {"scale": run.sum_rows(slopes * x)}
