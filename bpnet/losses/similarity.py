"""Losses of directions and distances of what a network makes of its input."""

from dataclasses import dataclass

from bpnet.backends.base import Array
from bpnet.errors import ShapeError
from bpnet.layer import Run, Shape
from bpnet.losses.base import RowLoss
from bpnet.options import not_negative

SHORTEST = 1e-8
"""Vectors that are shorter count as so long where they are divided by their length."""


def polar(run: Run, x: Array) -> tuple[Array, Array]:
    """The Euclidean length along the last axis, which is kept, and x over it, or 0 where x is.

    Squares neither overflow nor vanish.
    """
    xp = run.xp
    least = float(xp.finfo(x.dtype).smallest_normal)
    scale = xp.maximum(xp.max(xp.abs(x), axis=-1, keepdims=True), least)
    ratio = x / scale
    length = xp.sqrt(xp.sum(ratio * ratio, axis=-1, keepdims=True))
    return scale * length, ratio / xp.maximum(length, least)


@dataclass(frozen=True, repr=False)
class CosineSimilarity(RowLoss):
    """l = 1 - cos of the angle between output y and target t = 1 - y t / (|y| |t|).

    dl/dy = (cos y / |y| - t / |t|) / |y|.  Vectors shorter than 1e-8 are divided by that instead of their length, as in
    PyTorch, so that nothing is divided by 0.
    """

    names = {"cosine_similarity": {}}

    def target_shape(self, out_shape: Shape) -> Shape:
        if len(out_shape) != 1:
            raise ShapeError(
                f"cosine_similarity needs a vector for each row, but the network gives {out_shape} per row"
            )
        return out_shape

    def row_values(self, run: Run, output: Array, target: Array) -> tuple[Array, Array]:
        xp = run.xp
        (own, _), (other, _) = polar(run, output), polar(run, target)
        y, t = output / xp.maximum(own, SHORTEST), target / xp.maximum(other, SHORTEST)
        cosine = xp.sum(y * t, axis=1, keepdims=True)
        turning = xp.astype(own >= SHORTEST, output.dtype)  # where the length of y is divided by, it changes too
        return 1.0 - cosine, (turning * cosine * y - t) / xp.maximum(own, SHORTEST)


@dataclass(frozen=True, repr=False)
class Triplet(RowLoss):
    """l = max(0, |a - p| - |a - n| + margin), of an anchor a, one like it p and one unlike it n (Schroff et al. 2015).

    With u = (a - p) / |a - p| and v = (a - n) / |a - n|, where l > 0: dl/da = u - v, dl/dp = -u, dl/dn = v; of equal
    points u, or v, is 0.  A row of the network's input has three rows of features, (3, features), which a network of
    dense layers turns into (3, units).  There is no target: y is one number a row, which is not looked at.
    """

    margin: float = 1.0

    names = {"triplet": {}}
    predicts = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(margin=not_negative)

    def target_shape(self, out_shape: Shape) -> Shape:
        if len(out_shape) != 2 or out_shape[0] != 3:
            raise ShapeError(
                f"triplet needs three vectors for each row, (3, units), but the network gives {out_shape} per row: "
                "pass x of the shape (rows, 3, features), of anchors, what is like them, and what is not"
            )
        return (1,)

    def row_values(self, run: Run, output: Array, target: Array) -> tuple[Array, Array]:
        xp = run.xp
        to_like, to_other = (output[:, 0, :] - output[:, i, :] for i in (1, 2))
        (near, u), (far, v) = polar(run, to_like), polar(run, to_other)
        value = xp.maximum(near - far + self.margin, 0.0)
        counts = xp.astype(value > 0.0, output.dtype)
        u, v = counts * u, counts * v
        slopes = xp.concat([u - v, -u, v], axis=1)
        return xp.expand_dims(value, axis=2), xp.reshape(slopes, output.shape)
