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
    "celu", "elu", "gelu", "gelu_tanh", "hard_sigmoid", "hard_swish", "hard_tanh", "identity", "leaky_relu", "linear",
    "log_sigmoid", "log_softmax", "mish", "parametric_mish", "parametric_selu", "prelu", "relu", "relu6", "selu",
    "sigmoid", "silu", "sine", "softmax", "softplus", "softshrink", "softsign", "squared_relu", "swish", "tanh",
]  # fmt: skip
"""Names of activations."""

CallbackName = Literal["early_stopping", "live_plot", "mlflow", "norms", "progress", "reduce_on_plateau"]
"""Names of callbacks."""

InitializerName = Literal[
    "glorot_normal", "glorot_truncated_normal", "glorot_uniform", "he_normal", "he_truncated_normal", "he_uniform",
    "lecun_normal", "lecun_truncated_normal", "lecun_uniform", "normal", "ones", "orthogonal", "siren", "torch",
    "uniform", "zeros",
]  # fmt: skip
"""Names of initializers."""

LossName = Literal[
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "binary_focal", "cosine_similarity", "cross_entropy",
    "focal", "gamma", "gaussian_nll", "hinge", "huber", "kl_divergence", "log_cosh", "mae", "mean_absolute_error",
    "mean_squared_error", "mse", "poisson", "quantile", "squared_hinge", "triplet", "tweedie",
]  # fmt: skip
"""Names of losses."""

MetricName = Literal[
    "accuracy", "average_precision", "balanced_accuracy", "brier", "calibration_error", "confusion_matrix", "f0.5",
    "f1", "f2", "log_loss", "mae", "mape", "pinball", "precision", "r2", "recall", "rmse", "roc_auc", "spearman",
    "top_k_accuracy",
]  # fmt: skip
"""Names of metrics."""

OptimizerName = Literal[
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "amsgrad", "lamb", "lars", "lbfgs",
    "lion", "muon", "nadam", "prodigy", "radam", "rmsprop", "sam", "schedule_free_adamw", "sgd",
]  # fmt: skip
"""Names of optimizers."""

Precision = Literal["float32", "tf32", "bfloat16"]
"""How products of float32 matrices are computed: see `bpnet.Trainer`."""
