"""Derivatives against central differences, on any library, of many cases at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

STEP = 1e-4
"""Along directions whose entries are around 1: what is cut off is of its fourth power, rounding of 1e-16 / STEP."""


def differences(
    evaluate: Callable[[list[dict[str, Any]]], Sequence[float]],
    given: Sequence[Mapping[str, Any]],
    derived: Sequence[Mapping[str, Any]],
    directions: int = 2,
) -> list[float]:
    """The errors of all derivatives along random directions, relative to what the longest one could be along it.

    `given` has the arrays of each case by name, `derived` the derivatives by some of them, and evaluate(given) is a
    number for each case.  Of all cases the k-th array is moved at once, those of a shape in one direction.  As in
    `bp.check_gradients`, an error is relative to 1e-4 of the number itself at least, whose rounding is differenced.
    """
    errors, base = [], evaluate([*map(dict, given)])
    for k in range(max(map(len, derived))):
        for i in range(directions):
            names = [list(d)[k] if k < len(d) else None for d in derived]
            along = [None if n is None else drawn((k, i), g[n].shape) for n, g in zip(names, given, strict=True)]

            def values(h: float, names: Any = names, along: Any = along) -> Any:
                moved = zip(given, names, along, strict=True)
                return np.asarray(evaluate([dict(g) if n is None else {**g, n: g[n] + h * d} for g, n, d in moved]))

            near, far = (values(h) - values(-h) for h in (STEP, 2.0 * STEP))
            found = (8.0 * near - far) / (12.0 * STEP)
            for name, d, slopes, measured, now in zip(names, along, derived, map(float, found), base, strict=True):
                if name is not None:
                    expected = float(np.sum(slopes[name] * d))
                    longest = float(np.linalg.norm(slopes[name]) * np.linalg.norm(d))
                    scale = max(abs(expected), abs(measured), longest, 1e-4 * abs(float(now)), 1e-8)
                    errors.append(abs(expected - measured) / scale)
    return errors


def drawn(seed: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)
