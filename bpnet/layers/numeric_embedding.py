"""Embeddings of numbers: each numeric column becomes several features, by a function of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bpnet.layer import Layer, Shape

Form = Literal["pbld", "plr", "piecewise_linear"]
FORMS = ("pbld", "plr", "piecewise_linear")


@dataclass(frozen=True, repr=False)
class NumericEmbedding(Layer):
    r"""Each of the n numbers of a row becomes `width` features, by a function of its own; (..., n) -> (..., n width).

    form : "pbld", periodic features with biases, a linear layer, and the number itself (Holzmueller, Grinsztajn and
        Steinwart 2024); "plr", periodic features, a linear layer and relu (Gorishniy, Rubachev and Babenko 2022);
        "piecewise_linear", how far the number is through each of the `bins` (the same), and then a linear layer, or
        with width=None the encoding itself
    """

    form: Form = "pbld"
    width: int | None = 4
    frequencies: int = 16
    sigma: float = 0.1
    bins: Sequence[Sequence[float]] | None = None
    flatten: bool = True

    def out_shape(self, in_shape: Shape) -> Shape:
        width = self.width or 0
        return (*in_shape[:-1], in_shape[-1] * width) if self.flatten else (*in_shape, width)
