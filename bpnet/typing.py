"""Types for annotations: an array of any library, and the names that stand for bpnet's own objects.

A type checker takes these names and no others, so that it finds a misspelt one.  An activation, loss or optimizer of
your own, which may have a name too, is passed as an object.  A name that a program reads from somewhere is
`cast(LossName, name)`; bpnet looks at it in any case.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol


class AnyArray(Protocol):
    """An array of NumPy, CuPy, PyTorch, JAX, or any other library that follows the standard.

    A list, a number, a text or a table is none.  Whether its type and values fit is checked when it is passed.
    """

    @property
    def shape(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


AnyInput = AnyArray | Mapping[str, AnyArray] | tuple[AnyArray, ...]
"""What a network is given: an array, or for one that takes several a dict or a tuple of them."""

ActivationName = Literal[
    "elu", "gelu", "gelu_tanh", "identity", "leaky_relu", "linear", "relu", "sigmoid", "silu", "softmax", "softplus",
    "swish", "tanh",
]  # fmt: skip
"""Names of activations."""

LossName = Literal[
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "mean_squared_error", "mse"
]
"""Names of losses."""

OptimizerName = Literal["adam", "adamw", "sgd"]
"""Names of optimizers."""

Precision = Literal["float32", "tf32", "bfloat16"]
"""How products of float32 matrices are computed: see `bpnet.Trainer`."""
