"""Networks for tables: a plain one, and the preset "strong" with the ingredients of RealMLP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.layer import Layer
from bpnet.layers.activation import Activation
from bpnet.layers.composition import Sequential
from bpnet.layers.standardize import Standardize
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.trainer import Trainer
from bpnet.typing import ActivationName


def table_network(
    inputs: Layer | None,
    outputs: int,
    *,
    hidden: Sequence[int] = (256,),
    activation: ActivationName | Activation = "relu",
    dropout: float = 0.0,
    norm: Any = None,
    residual: bool = False,
    members: int | None = None,
    out_scale: Standardize | None = None,
) -> Sequential:
    """inputs -> (Dense -> norm -> activation -> dropout) for each of `hidden` -> Dense(outputs) -> out_scale.

    inputs : what makes features of rows, such as TabularInput; None where x has them
    norm : a layer between product and activation, such as "BatchNorm"; None for none
    residual : y = x + block(x) wherever a block keeps the width
    members : so many networks side by side, the output being (rows, members, outputs): TabM (Gorishniy et al. 2025).
        Train it with the loss bp.Members(loss)
    out_scale : an inverted `Standardize`, which gives the output in the unit of the target
    """
    raise NotImplementedError


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: what `Trainer` and `fit` are to be given, and how it starts."""

    network: Sequential
    loss: Loss
    optimizer: Optimizer
    epochs: int
    batch_size: int
    data_driven: bool = True
    """Whether weights and biases start from the data: see `start`."""

    def trainer(self, **options: Any) -> Trainer:
        """A trainer of it; the options are those of `bp.Trainer`."""
        return Trainer(self.network, self.loss, self.optimizer, **options)

    def start(self, trainer: Trainer, x: Any) -> Trainer:
        """Give weights and biases their start values, where these depend on the data; call it once before `fit`."""
        raise NotImplementedError


def strong(
    numbers: Layer | None,
    categories: Layer | None,
    outputs: int,
    *,
    task: str,
    loss: Loss | None = None,
    out_scale: Standardize | None = None,
    out_range: tuple[Any, Any] | None = None,
    members: int | None = None,
    simple: bool = False,
    epochs: int = 256,
    batch_size: int = 256,
    **options: Any,
) -> Recipe:
    """The network and the training of RealMLP-TD, or of RealMLP-TD-S with `simple` (Holzmueller et al. 2024).

    numbers, categories : a `NumericInput` (robust scaling and smooth clip) and a `CategoricalInput`; None where the
        table has no such columns
    task : "classification" or "regression"
    out_scale, out_range : for regression, an inverted `Standardize`, and the least and the largest target
    """
    raise NotImplementedError
