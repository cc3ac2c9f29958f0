"""The loss of an ensemble whose members lie side by side in one network."""

from dataclasses import dataclass

from bpnet.layer import Shape
from bpnet.losses.base import Loss
from bpnet.losses.regression import MeanSquaredError


@dataclass(frozen=True, repr=False)
class Members(Loss):
    """l = mean over members of the loss of each, of outputs (rows, k, ...) and targets (rows, ...)."""

    loss: Loss

    example = (MeanSquaredError(),)

    def target_shape(self, out_shape: Shape) -> Shape:
        return self.loss.target_shape(out_shape[1:])
