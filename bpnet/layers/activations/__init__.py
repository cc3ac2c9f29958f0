"""The catalogue of activations, each with its derivative beside it; where f' can be written with y, that is saved."""

from bpnet.layers.activation import Activation
from bpnet.layers.activations import gates, others, parametric, rectifiers, sigmoids

__all__ = ["Activation", "gates", "others", "parametric", "rectifiers", "sigmoids"]
