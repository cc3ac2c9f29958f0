"""Whether of two functions that a user gives one is the derivative of the other."""

from collections.abc import Callable
from typing import Any

from bpnet.backends import Array, get
from bpnet.errors import ArgumentError, GradientError, ShapeError, kind_of

Elementwise = Callable[[Any, Array], Array]
"""A function of a namespace of the Array API and an array, entry by entry."""

STEPS = (1e-4, 1e-5, 1e-6)
"""Half-widths of the differences; the one that agrees best counts, since a kink or rounding spoils some of them."""


def check_slope(function: Elementwise, slope: Elementwise) -> None:
    """Raise where `slope` is not the derivative of `function` at some points, at which both are numbers."""
    backend = get("numpy")
    xp = backend.xp
    z = xp.linspace(-6.1, 6.3, 82)  # at none of the places where kinks usually are
    with backend.session():
        try:
            derived, *ends = slope(xp, z), *(function(xp, z + h) for step in STEPS for h in (step, -step))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise ArgumentError(
                f"the functions of an Activation are called with (xp, z), which fails: {told}"
            ) from error
        for made in (derived, *ends):
            if getattr(made, "shape", None) != z.shape:
                given = kind_of(made) if getattr(made, "shape", None) is None else f"of shape {made.shape}"
                raise ShapeError(f"a function of an Activation gave what is {given} for z of shape {z.shape}")
        measured = [(up - down) / (2.0 * h) for h, up, down in zip(STEPS, ends[::2], ends[1::2], strict=True)]
        least = xp.maximum(1e-6 * xp.abs(ends[0]), 1.0)  # of what is large, differences have fewer digits
        off = xp.min(xp.stack([xp.abs(derived - m) / xp.maximum(xp.abs(m), least) for m in measured]), axis=0)
        known = xp.isfinite(measured[-1]) & xp.isfinite(ends[-1])
        wrong = known & ~(off < 1e-5)  # so is a slope that is no number
        if not xp.any(known):
            raise GradientError("the function of an Activation is finite nowhere from -6 to 6")
        if xp.any(wrong):
            i = int(xp.argmax(xp.astype(wrong, xp.int8)))
            says = f"its slope there is {float(derived[i]):.6g}, but differences of the function say"
            raise GradientError(f"Activation at z = {float(z[i]):.6g}: {says} {float(measured[1][i]):.6g}")
