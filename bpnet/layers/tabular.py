"""The first layer of a network for tables: numbers, categories, or both."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import OptionError
from bpnet.layer import Derivatives, Input, InShape, Layer, Params, Run, Takes
from bpnet.layers.categorical import CategoricalInput
from bpnet.layers.composition import named_layer
from bpnet.layers.inputs import Joined
from bpnet.layers.numeric import NumericInput


@dataclass(frozen=True)
class TabularInput(Joined):
    r"""y = [f(numbers), g(categories)]: the columns of a table, by a layer for its numbers and one for its categories.

        first = bp.TabularInput(bp.NumericInput.fit(numbers), bp.CategoricalInput(entries=(5, 302), width=(0, 8)))
        trainer = bp.Trainer(bp.Sequential(first, bp.Dense(64, "relu"), bp.Dense(1)), "mse")
        trainer.fit({"numbers": numbers, "categories": codes}, y)

    With both it takes a dict of these two arrays, of as many rows, and joins what the layers give along the last axis,
    as `Inputs` does.  With one of them it takes that array itself, and gives what its layer gives.  `numbers` may be a
    `Sequential` that begins with a `NumericInput`, and so take NaN.

    Raises OptionError where there is neither, or where one takes what the other is for.
    """

    numbers: Layer | None = None
    categories: Layer | None = None

    example = (NumericInput(0.5, 2.0), CategoricalInput((5,) * 12, (3,) * 12))

    def __post_init__(self) -> None:
        for name in ("numbers", "categories"):
            if (layer := getattr(self, name)) is not None:
                self._set(**{name: named_layer(f"{name} of TabularInput", layer)})
        if not self.children:
            raise OptionError("TabularInput has neither numbers nor categories; expected a layer for one of them")
        for name, layer in self.children:
            expected = "numbers" if name == "numbers" else "one array of whole numbers, such as CategoricalInput(...)"
            if (layer.takes is None) != (name == "numbers") or isinstance(layer.takes, tuple):
                raise OptionError(f"{name} of TabularInput is {layer}; expected a layer that takes {expected}")

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        given = ("numbers", self.numbers), ("categories", self.categories)
        return tuple((name, layer) for name, layer in given if layer is not None)

    @cached_property
    def _one(self) -> bool:
        """Whether there is a single array, which comes as it is."""
        return len(self.children) == 1

    @cached_property
    def takes(self) -> Takes:
        return self.children[0][1].takes if self._one else super().takes

    @cached_property
    def accepts_nan(self) -> bool | tuple[bool, ...]:  # type: ignore[override]
        return self.children[0][1].accepts_nan if self._one else super().accepts_nan

    def child_shapes(self, in_shape: InShape) -> Any:
        return iter((in_shape,)) if self._one else super().child_shapes(in_shape)

    def forward(self, run: Run, p: Params, x: Input) -> tuple[Array, Any]:
        return super().forward(run, p, (x,) if self._one else x)

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        dx, grads = super().backward(run, p, cache, dy, need_dx)
        return (dx[0] if self._one and dx is not None else dx), grads
