"""Start values of weights and biases, by name or as objects: `Dense(64, "relu", kernel_init="he_normal")`.

A layer asks `draw(rng, shape, fan_in, fan_out)`: fan_in is the number of inputs that an output is made of, fan_out the
number of outputs that an input goes into; of a dense layer, also of its bias, these are features and units.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from bpnet.errors import ShapeError
from bpnet.layer import Rng, Shape
from bpnet.options import choice, finite, flag, not_negative, positive
from bpnet.registry import Registered


class Initializer(Registered, kind="initializer"):
    """Base of all initializers: a frozen dataclass of options with the method `draw`."""

    needs = ("draw",)

    def draw(self, rng: Rng, shape: Shape, fan_in: int, fan_out: int) -> Any:
        """Start values of that shape, float64 on the host, drawn from `rng`."""
        raise NotImplementedError


FANS = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("uniform", "normal", "truncated_normal")


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Around 0 with the variance scale / fan, where fan is fan_in, fan_out or their mean, "fan_avg".

    "uniform" is even over -a ... a with a = sqrt(3 scale / fan); "normal"; "truncated_normal" is drawn again beyond two
    widths, and as wide as leaves this variance.  The names:

    - `glorot_*`: scale 1, fan_avg (Glorot and Bengio 2010), so uniformly within sqrt(6 / (fan_in + fan_out)).  Keras's
      glorot_normal is `glorot_truncated_normal` here, and so on; PyTorch's are not truncated.
    - `he_*`: scale 2, fan_in (He et al. 2015), for the relu family, which lets about half of the signal through.
    - `lecun_*`: scale 1, fan_in (LeCun et al. 1998), for `selu`; with `Dense(ntk=True)` normal ones are N(0, 1).
    - `torch`: scale 1/3, fan_in, uniform, which is within 1 / sqrt(fan_in): PyTorch's default of linear layers, for
      weights (kaiming_uniform with a = sqrt 5) and biases.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "uniform"

    names = {
        f"{name}_{distribution}": {"scale": scale, "mode": mode, "distribution": distribution}
        for name, scale, mode in (("glorot", 1.0, "fan_avg"), ("he", 2.0, "fan_in"), ("lecun", 1.0, "fan_in"))
        for distribution in DISTRIBUTIONS
    } | {"torch": {"scale": 1.0 / 3.0}}

    def __post_init__(self) -> None:
        self._check(scale=positive, mode=partial(choice, known=FANS), distribution=partial(choice, known=DISTRIBUTIONS))

    def draw(self, rng: Rng, shape: Shape, fan_in: int, fan_out: int) -> Any:
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}[self.mode]
        if self.distribution == "uniform":
            return rng.uniform(shape, math.sqrt(3.0 * self.scale / fan))
        draw = rng.normal if self.distribution == "normal" else rng.truncated_normal
        return draw(shape, math.sqrt(self.scale / fan))


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """`gain` times a matrix with orthonormal columns, or rows where these are fewer (Saxe et al. 2014).

    Axes before the last count as rows.
    """

    gain: float = 1.0

    names = {"orthogonal": {}}

    def __post_init__(self) -> None:
        self._check(gain=positive)

    def draw(self, rng: Rng, shape: Shape, fan_in: int, fan_out: int) -> Any:
        if len(shape) < 2:
            raise ShapeError(
                f"{self} draws matrices, but is asked for values of the shape {shape}: take it for weights"
            )
        return rng.scaled(rng.orthogonal(shape), self.gain)


@dataclass(frozen=True)
class Siren(Initializer):
    """Uniformly within sqrt(6 / fan_in) / w0; of the first layer within 1 / fan_in (Sitzmann et al. 2020).

    For the activation `Sine` with the same w0.
    """

    w0: float = 30.0
    first: bool = False

    names = {"siren": {}}

    def __post_init__(self) -> None:
        self._check(w0=positive, first=flag)

    def draw(self, rng: Rng, shape: Shape, fan_in: int, fan_out: int) -> Any:
        return rng.uniform(shape, 1.0 / fan_in if self.first else math.sqrt(6.0 / fan_in) / self.w0)


@dataclass(frozen=True)
class Constant(Initializer):
    """The same value everywhere."""

    value: float = 0.0

    names = {"zeros": {"value": 0.0}, "ones": {"value": 1.0}}

    def __post_init__(self) -> None:
        self._check(value=finite)

    def draw(self, rng: Rng, shape: Shape, fan_in: int, fan_out: int) -> Any:
        return rng.full(shape, self.value)


@dataclass(frozen=True)
class Normal(Initializer):
    """N(0, deviation**2), whatever the layer's size."""

    deviation: float = 1.0

    names = {"normal": {}}

    def __post_init__(self) -> None:
        self._check(deviation=not_negative)

    def draw(self, rng: Rng, shape: Shape, fan_in: int, fan_out: int) -> Any:
        return rng.normal(shape, self.deviation)


@dataclass(frozen=True)
class Uniform(Initializer):
    """Evenly over -limit ... limit, whatever the layer's size."""

    limit: float = 1.0

    names = {"uniform": {}}

    def __post_init__(self) -> None:
        self._check(limit=not_negative)

    def draw(self, rng: Rng, shape: Shape, fan_in: int, fan_out: int) -> Any:
        return rng.uniform(shape, self.limit)
