"""Embeddings of numbers: what they compute, how they start, and the bins that are found in data.

Their derivatives are in the table of `test_layers`.
"""

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import OptionError, ShapeError

BINS = ((0.0, 1.0, 3.0), (-1.0, 1.0))


def outputs(backend, layer, x):
    """Of the rows x, by start values drawn from 0, as the library's compiler has it."""
    layout = bp.layout_of(layer, x.shape[1:], trains=False)
    vectors = (backend.array(a) for a in layout.start(0))

    def function(theta, buffers, x):
        return layer.forward(bp.Run(backend.seam), layout.views(backend.seam, theta, buffers), x)[:1]

    return backend.host(backend.call(function, *vectors, backend.array(x))[0])


def test_an_encoding_says_how_far_a_number_is_through_each_bin(backend):
    x = np.array([[-1.0, -2.0], [0.25, 0.0], [2.0, 1.0], [5.0, 4.0]])
    expected = [  # the first bin goes on to the left, the last to the right; where a column has none, there is 0
        [-1.0, 0.0, -0.5, 0.0],
        [0.25, 0.0, 0.5, 0.0],
        [1.0, 0.5, 1.0, 0.0],
        [1.0, 2.0, 2.5, 0.0],
    ]
    layer = bp.NumericEmbedding("piecewise_linear", width=None, bins=BINS)
    np.testing.assert_allclose(outputs(backend, layer, x), expected, rtol=1e-14)


def test_bins_are_quantiles_of_what_is_there(backend):
    x = np.random.default_rng(0).standard_normal((41, 4))
    x[:, 1] = np.round(x[:, 1])  # of equal numbers many quantiles are one
    x[:, 2], x[:, 3] = 7.0, np.nan
    x[::4, 0] = np.nan
    found, share = bp.NumericEmbedding.bins_of(backend.array(x), 10), np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(found[0], np.nanquantile(x[:, 0], share), rtol=1e-12)
    np.testing.assert_array_equal(found[1], np.unique(np.quantile(x[:, 1], share)))
    assert found[2:] == ((7.0, 8.0), (0.0, 1.0))
    bp.NumericEmbedding("piecewise_linear", bins=found)
    bp.NumericEmbedding("piecewise_linear", bins=bp.NumericEmbedding.bins_of(np.full((3, 1), -1e30)))


def test_each_form_starts_as_its_paper_has_it(library):
    lib, x = library("numpy"), np.linspace(-1.0, 1.0, 9)[:, None] * [1.0, 0.5]
    pbld = outputs(lib, bp.NumericEmbedding("pbld", 4), x)
    np.testing.assert_array_equal(pbld[:, 3::4], x)
    plr = outputs(lib, bp.NumericEmbedding("plr", 8, flatten=False), x)
    assert plr.shape == (9, 2, 8)
    assert (plr >= 0.0).all()
    assert (plr == 0.0).any()
    linear = outputs(lib, bp.NumericEmbedding("piecewise_linear", 5, bins=BINS), x)
    np.testing.assert_allclose(np.diff(linear, 2, axis=0), 0.0, atol=1e-14)  # until V is learnt
    drawn = bp.NumericEmbedding("plr", 2, frequencies=500, sigma=0.25).init(bp.Rng(1), (20,))["frequency"].value
    assert np.std(drawn) == pytest.approx(0.25, rel=0.02)


def test_weight_decay_is_of_weights_alone():
    net = bp.Sequential(bp.NumericEmbedding(), bp.NumericEmbedding("piecewise_linear", bins=((0.0, 1.0),) * 8))
    decaying = [slot.name for slot in bp.layout_of(net, (2,)).parameters if slot.decay]
    assert sorted(decaying) == ["0.weight", "1.linear", "1.weight"]


def test_bins_let_a_linear_layer_learn_any_function_of_a_column():
    x = np.random.default_rng(0).uniform(-3.0, 3.0, (256, 1))
    y = np.sin(2.0 * x) + (x > 1.0)
    errors = {}
    for form, options in {
        "piecewise_linear": {"bins": bp.NumericEmbedding.bins_of(x, 24)},
        "pbld": {"sigma": 1.0},
    }.items():
        net = bp.Sequential(bp.NumericEmbedding(form, 8, **options), bp.Dense(1))
        trainer = bp.Trainer(net, "mse", bp.Adam(0.03), seed=0)
        trainer.fit(x, y, epochs=60, batch_size=64, progress=False)
        errors[form] = trainer.evaluate(x, y)["loss"] / y.var()
    assert max(errors.values()) < 0.05, errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("pldb",), "form is 'pldb'; expected 'pbld', 'plr' or 'piecewise_linear'"),
        (("plr", None), "width is None, which is of the form 'piecewise_linear'"),
        (("pbld", 1), "width is 1; expected a whole number of at least 2"),
        (("piecewise_linear", 4), "bins is None and form is 'piecewise_linear'.* NumericEmbedding.bins_of"),
        (("plr", 4, 16, 0.1, BINS), "form is 'plr', which alone has bins: leave them out|which alone has bins"),
        (("piecewise_linear", 4, 16, 0.1, ((1.0, 1.0),)), r"bins\[0\] is \(1.0, 1.0\); expected .* rising order"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(OptionError, match=message):
        bp.NumericEmbedding(*options)


def test_rows_of_other_columns():
    with pytest.raises(ShapeError, match="bins of 2 columns, but rows have 3"):
        bp.NumericEmbedding("piecewise_linear", bins=BINS).out_shape((3,))
    with pytest.raises(ShapeError, match=r"x is of \(4,\); expected \(rows, columns\)"):
        bp.NumericEmbedding.bins_of(np.zeros(4))
