"""Ensembles in one network: k members, side by side on an axis of their own, in one batched pass.

Rows are (rows, n), which all members see, or (rows, k, n), one for each; what comes out is (rows, k, ...).  With the
loss `bp.Members(loss)` each member learns by itself, and what the ensemble says is the mean of what they predict.
"""

from dataclasses import dataclass

from bpnet.layer import Layer, Shape
from bpnet.layers.activation import Activation
from bpnet.typing import ActivationName


@dataclass(frozen=True, repr=False)
class BatchEnsemble(Layer):
    """y_m = f(((x_m r_m) W) s_m + b_m): a dense layer of `members`, which share W (Wen, Tran and Ba 2020)."""

    members: int
    units: int
    activation: ActivationName | Activation = "identity"
    bias: bool = True
    start: str = "ones"

    example = (3, 5)

    def out_shape(self, in_shape: Shape) -> Shape:
        return (self.members, self.units)


@dataclass(frozen=True)
class MemberScale(Layer):
    """y_m = x_m r_m: the only thing that differs between the members of TabM-mini (Gorishniy et al. 2025)."""

    members: int
    start: str = "random_signs"

    example = (3,)

    def out_shape(self, in_shape: Shape) -> Shape:
        return (self.members, in_shape[-1])


@dataclass(frozen=True, repr=False)
class MemberDense(Layer):
    """y_m = f(x_m W_m + b_m): a dense layer for each member, which share nothing."""

    members: int
    units: int
    activation: ActivationName | Activation = "identity"
    bias: bool = True

    example = (3, 5)

    def out_shape(self, in_shape: Shape) -> Shape:
        return (self.members, self.units)
