"""How many commands a training step of a small network around each entry of the catalogue is on a CUDA device.

Beside each number stands what kernels written by hand for it would need: a product brings its bias, its relu and the
sum of its bias's gradient with it; whatever else is done to the same entries is one kernel, and so are the norms of one
leaf.  No entry has twice as many.
"""

import numpy as np
import pytest
from support import substitute

import bpnet as bp
from bench.catalogue.entries import ENTRIES, Entry, pool
from bench.catalogue.with_bpnet import trainer_of

PLAIN = 12, 10
"""Eight products, the loss, the optimizer; and two sums of gradients of biases, with the slope of relu."""
BETWEEN = 14, 14
"""With something between products, there and back, twice."""

BY_HAND: dict[str, tuple[int, int]] = {
    "identity": PLAIN, "relu": PLAIN, "parametric_mish": (16, 14), "parametric_selu": (15, 14),
    # layers
    **dict.fromkeys(["Dense", "Flatten", "Sequential"], PLAIN),
    **dict.fromkeys(["GLU", "GeGLU", "SwiGLU"], (19, 19)),
    "ActivityPenalty": (15, 14), "GaussianNoise": (14, 12), "GroupNorm": (20, 14), "Reshape": (16, 14),
    "Parallel": (18, 14), "Standardize": (13, 11), "WeightNorm": (17, 14), "SpectralNorm": (25, 22),
    "Bilinear": (24, 19), "Embedding": (15, 13), "Inputs": (17, 14), "Residual": (18, 17), "Shared": (18, 13),
    "NumericInput": (14, 11), "CategoricalInput": (22, 15), "TabularInput": (23, 16), "NumericEmbedding": (35, 18),
    "BatchEnsemble": (34, 17), "MemberScale": (25, 13), "MemberDense": (19, 11), "Clamp": PLAIN,
    # losses
    "Members": (14, 11), "gaussian_nll": (14, 10), "quantile": (14, 10), "Heads": (16, 11), "triplet": (13, 12),
    # optimizers
    "Clip": (14, 11), "Grouped": (13, 10), "schedule_free_adamw": (13, 10), "prodigy": (15, 11), "sam": (26, 21),
    "lars": (21, 16), "lamb": (23, 17), "adafactor": (37, 20), "muon": (44, 29), "lbfgs": (11, 9),
}  # fmt: skip


def expected(entry: Entry) -> tuple[int, int]:
    return BY_HAND.get(entry.name, BETWEEN if entry.kind in ("activations", "layers") else PLAIN)


@pytest.mark.skipif(bool(substitute.missing()), reason=substitute.missing() or "none")
def test_no_entry_has_twice_the_launches_of_kernels_by_hand() -> None:
    import cupy

    def there(x: object) -> object:
        return {name: cupy.asarray(part) for name, part in x.items()} if isinstance(x, dict) else cupy.asarray(x)

    found = {}
    for entry in ENTRIES:
        x, y = (there(part) for part in pool(entry, 32)[0])
        trainer = trainer_of(entry, x)
        found[entry.name] = int(trainer.explain(x, y).split()[1])
        ours, by_hand = expected(entry)
        assert ours <= 2 * by_hand
    assert found == {entry.name: expected(entry)[0] for entry in ENTRIES}


def test_rows_of_several_axes_share_kernels_with_rows() -> None:
    """A dense layer makes a matrix of its rows, and what follows goes over the same rows, whatever axes they have."""
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    flat = bp.Sequential(bp.Dense(5, "relu"), bp.Dropout(0.5), bp.Dense(4, "tanh"), bp.LayerNorm())
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3, 7), np.float32), rng.standard_normal((6, 3, 4), np.float32)
    pairs = [(x, y), (x.reshape(18, 7), y.reshape(18, 4))]
    trainers = [bp.Trainer(flat, "mse", bp.SGD(0.1), compile=True, seed=3) for _ in pairs]
    texts = [t.explain(*pair) for t, pair in zip(trainers, pairs, strict=True)]
    assert texts[0].count("fused kernel") == texts[1].count("fused kernel")
    losses = [float(t.step(*pair)) for t, pair in zip(trainers, pairs, strict=True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    np.testing.assert_allclose(trainers[0].theta, trainers[1].theta, rtol=1e-5, atol=1e-6)
