"""Training that diverges: found at its step, with the layer named, and undone; NaN never saved."""

from pathlib import Path

from support.children import added, children
from support.soak import Soak

HERE = Path(__file__).parent


def test_divergence_is_found_named_and_undone(soak: Soak) -> None:
    """By a learning rate a million times as large, a value, or a layer that gives NaN from a random step on.

    NaN that callbacks put into parameters, buffers and optimizer state, too, validation data that make it, and
    estimators and tables.
    """
    each = [(2 * soak.seed + i, soak.count(200, 20)) for i in range(2)]
    found = added(children(HERE / "diverging.py", each, timeout=1200))
    soak.record("divergence", found["cases"], found["failures"])
