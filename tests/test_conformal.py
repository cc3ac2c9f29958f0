"""Conformal intervals and sets, that cover as often as they say; deviations, quantiles; networks drawn by dropout."""

import math
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.tabular import conformal
from bpnet.tabular.distributions import drawn_moments, moments, quantiles
from bpnet.tabular.sampling import samples


def test_the_rank_is_that_of_the_definition() -> None:
    assert [conformal.rank(n, c) for n, c in ((9, 0.9), (10, 0.9), (99, 0.9), (19, 0.95), (3, 0.1))] == [
        9, 10, 90, 19, 1,
    ]  # fmt: skip
    for wrong in (0.0, 1.0, -0.1, "0.9", math.nan, True):
        with pytest.raises(bp.errors.OptionError, match="coverage"):
            conformal.rank(10, wrong)


def test_a_threshold_is_the_score_of_that_rank(backend: Any) -> None:
    scores = np.random.default_rng(0).normal(size=(20, 2))
    limit = conformal.threshold(backend.array(scores, "float32"), 0.8)
    backend.close(limit, np.sort(scores.astype(np.float32), axis=0)[16])  # ceil(21 * 0.8) = 17
    assert np.isinf(backend.host(conformal.threshold(backend.array(scores[:3]), 0.9))).all()
    assert np.isinf(backend.host(conformal.threshold(backend.array(scores[:0]), 0.9))).all()


@pytest.mark.parametrize("method", ["residual", "normalized", "quantile"])
def test_intervals_cover_whatever_the_prediction(backend: Any, method: str) -> None:
    """Of a prediction that is far off, and noise that grows with x; 90% of new rows are within, by a hair's breadth."""
    rng = np.random.default_rng(1)
    x = rng.uniform(1.0, 5.0, (6000, 1))
    y = np.concatenate([x * x + x * rng.normal(size=x.shape), rng.exponential(size=x.shape)], axis=1)
    prediction, deviation = np.concatenate([10.0 * x, x], axis=1), np.concatenate([x, 2.0 / x], axis=1)
    held, new = ([backend.array(a[rows]) for a in (y, prediction, deviation)] for rows in (np.s_[:999], np.s_[999:]))
    if method == "quantile":
        limit = conformal.threshold(conformal.quantile_scores(held[0], held[1] - held[2], held[1] + held[2]), 0.9)
        low, high = conformal.quantile_interval(new[1] - new[2], new[1] + new[2], limit)
    else:
        known = [held[2], new[2]] if method == "normalized" else [None, None]
        limit = conformal.threshold(conformal.residual_scores(held[0], held[1], known[0]), 0.9)
        low, high = conformal.residual_interval(new[1], limit, known[1])
    low, high, truth = backend.host(low), backend.host(high), backend.host(new[0])
    share = ((low <= truth) & (truth <= high)).mean(axis=0)
    np.testing.assert_allclose(share, 0.9, atol=0.025)  # 0.0095 is the deviation of 999 scores


def test_wide_quantiles_are_drawn_together_to_the_middle_at_most(backend: Any) -> None:
    low, high = backend.array([[0.0], [0.0]]), backend.array([[4.0], [1.0]])
    left, right = conformal.quantile_interval(low, high, backend.array([-1.0]))
    backend.close(left, np.array([[1.0], [0.5]]))
    backend.close(right, np.array([[3.0], [0.5]]))


@pytest.mark.parametrize("method", conformal.SETS)
def test_sets_hold_the_true_class_as_often_as_asked_for(backend: Any, method: str) -> None:
    rng = np.random.default_rng(2)
    logits = 2.0 * rng.normal(size=(6000, 4))
    truth = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    codes = (rng.uniform(size=(6000, 1)) > truth.cumsum(1)).sum(1).clip(0, 3)
    wrong = np.sqrt(truth) / np.sqrt(truth).sum(1, keepdims=True)  # a network that is not sure enough
    chance = rng.uniform(size=(6000, 1))
    scores = conformal.label_scores(backend.array(wrong), method, backend.array(chance))
    held = conformal.true_scores(scores[:999, :], backend.array(codes[:999], "int64"))
    inside = backend.host(scores[999:, :]) <= backend.host(conformal.threshold(held, 0.9))
    assert inside[np.arange(5001), codes[999:]].mean() == pytest.approx(0.9, abs=0.025)
    sizes = inside.sum(1)
    assert sizes.mean() < 3.0
    if method == "aps":  # with more classes the harder a row is
        hard = wrong[999:].max(1) < 0.5
        assert sizes[hard].mean() > sizes[~hard].mean() + 0.5
        order = np.argsort(-wrong[:50], axis=1)
        likelier = np.cumsum(np.take_along_axis(wrong[:50], order, 1), axis=1) - np.take_along_axis(
            wrong[:50], order, 1
        )
        expected = np.empty_like(likelier)
        np.put_along_axis(expected, order, likelier, axis=1)
        backend.close(scores[:50, :], expected + chance[:50] * wrong[:50], rtol=1e-12)


def test_deviations_of_one_network_and_of_several(backend: Any) -> None:
    rng = np.random.default_rng(5)
    z = rng.normal(size=(6, 3, 4))  # three members, each with a mean and the logarithm of a variance of two targets
    mean, variance = z[:, :, 0::2], np.exp(z[:, :, 1::2])
    gaussian, squared = bp.GaussianNLL(), bp.MeanSquaredError()
    found = moments(backend.seam, gaussian, backend.array(z[:, 0]))
    backend.close(found[0], mean[:, 0])
    backend.close(found[1], variance[:, 0])
    mixture = variance.mean(1) + mean.var(1)
    found = moments(backend.seam, bp.Members(gaussian), backend.array(z))
    backend.close(found[0], mean.mean(1))
    backend.close(found[1], mixture, rtol=1e-9)
    found = moments(backend.seam, bp.Members(squared), backend.array(mean))
    backend.close(found[1], mean.var(1))
    assert moments(backend.seam, squared, backend.array(mean[:, 0]))[1] is None
    draws = [backend.array(z[:, i]) for i in range(3)]
    found = drawn_moments(gaussian, draws)  # by the law of total variance
    backend.close(found[0], mean.mean(1))
    backend.close(found[1], mixture, rtol=1e-9)
    found = drawn_moments(squared, [backend.array(mean[:, i]) for i in range(3)])
    backend.close(found[1], mean.var(1))


def test_quantiles_do_not_cross(backend: Any) -> None:
    z = np.random.default_rng(6).normal(size=(5, 4))
    loss = bp.Quantile((0.25, 0.75))
    found = quantiles(backend.seam, loss, backend.array(z))
    backend.close(found, np.sort(z.reshape(5, 2, 2), axis=2))
    backend.close(quantiles(backend.seam, loss, backend.array(z), (0.75,)), z.reshape(5, 2, 2).max(2)[:, :, None])
    normal = quantiles(backend.seam, bp.GaussianNLL(), backend.array(z), (0.5, 0.975))
    expected = z[:, 0::2, None] + np.exp(0.5 * z[:, 1::2, None]) * np.array([0.0, 1.959963984540054])
    backend.close(normal, expected, rtol=1e-9)


def test_dropout_draws_networks_around_the_prediction(backend: Any) -> None:
    """For linear units, the mean over masks is the prediction, and the variance is that of the masks."""
    rate, x = 0.25, np.random.default_rng(3).normal(size=(8, 5)).astype(np.float32)
    net = bp.Sequential(bp.Residual(bp.Sequential(bp.Dropout(rate))), bp.Dense(2))  # x + x m
    trainer = bp.Trainer(net, "mse", compile=False).build(backend.array(x))
    drawn = np.stack([backend.host(output) for output in samples(trainer, backend.array(x), 40, seed=1)])
    np.testing.assert_allclose(drawn.mean(0), backend.host(trainer.predict(backend.array(x))), atol=0.9)
    weight = backend.host(trainer.parameters["1"]["weight"])
    expected = np.sqrt((x**2) @ (weight**2) * rate / (1 - rate))
    np.testing.assert_allclose(drawn.std(0), expected, rtol=0.45)
    again = [backend.host(output) for output in samples(trainer, backend.array(x), 2, seed=1)]
    np.testing.assert_array_equal(again, drawn[:2])
    other = next(samples(trainer, backend.array(x), 1, seed=2))
    assert not np.allclose(backend.host(other), drawn[0])


def test_only_dropout_is_drawn_and_none_is_an_error() -> None:
    x = np.random.default_rng(4).normal(size=(16, 3))
    trainer = bp.Trainer(bp.Sequential(bp.BatchNorm(), bp.Dense(1)), "mse").build(x)
    with pytest.raises(bp.errors.ArgumentError, match="dropout"):
        next(samples(trainer, x, 1))
    net = bp.Sequential(bp.BatchNorm(), bp.Dropout(1e-12), bp.Dense(1))
    trainer = bp.Trainer(net, "mse").build(x)
    np.testing.assert_allclose(next(samples(trainer, x, 1)), trainer.predict(x))  # by running statistics
