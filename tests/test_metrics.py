"""Metrics against numbers worked out by hand; fits that find what made the data; intervals that cover."""

import math

import numpy as np
import pytest

from sama.metrics import (
    Metrics,
    bootstrap,
    fitted_metrics,
    linear_fit,
    logistic,
    logistic_fit,
    medians,
    metrics,
    published_best,
)

NAMES = ("srocc", "plcc", "krocc", "rmse")


def test_metrics_by_hand():
    """Predictions (1, 2, 3, 10) and labels (1, 3, 2, 4), ranks (1, 2, 3, 4) and (1, 3, 2, 4).

    SROCC 1 - 6 (0 + 1 + 1 + 0) / (4 * 15) = 0.8; KROCC (5 - 1) / 6 pairs.
    PLCC: deviations (-3, -2, -1, 6) and (-1.5, 0.5, -0.5, 1.5): 13 / sqrt(50 * 5).
    RMSE of two standardised series, in label deviations: sqrt(2 - 2 PLCC) * sqrt(5 / 4).
    """
    result = metrics([1, 2, 3, 10], [1, 3, 2, 4])
    plcc = 13 / math.sqrt(250)
    expected = Metrics(0.8, plcc, 4 / 6, math.sqrt((2 - 2 * plcc) * 5 / 4))
    for name in NAMES:
        assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


def test_ties_by_hand():
    """Predictions (1, 1, 2), labels (1, 2, 3): ranks (1.5, 1.5, 3), (1, 2, 3), deviations (-.5, -.5, 1), (-1, 0, 1).

    SROCC 1.5 / sqrt(1.5 * 2); tau-b: 2 right of 3 pairs, one tied on the left: 2 / sqrt(2 * 3).
    """
    result = metrics([1, 1, 2], [1, 2, 3])
    assert result.srocc == pytest.approx(1.5 / math.sqrt(3))
    assert result.krocc == pytest.approx(2 / math.sqrt(6))


def test_scale_of_the_predictions_does_not_matter():
    prediction, mos = np.random.default_rng(1).normal(size=(2, 30))
    moved = metrics(1e-3 * prediction + 70, mos)
    for name in NAMES:
        assert getattr(moved, name) == pytest.approx(getattr(metrics(prediction, mos), name), rel=1e-6)


@pytest.mark.parametrize(
    ("prediction", "mos"),
    [([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0.1, 0.1, 0.1]), ([0.1 + 0.2, 0.3], [1, 2])],
    ids=["none", "one", "constant-prediction", "constant-label", "rounding"],
)
def test_what_does_not_exist_is_nan(prediction, mos):
    for result in (metrics(prediction, mos), fitted_metrics(prediction, mos)):
        assert all(math.isnan(getattr(result, name)) for name in NAMES)


def test_bad_input():
    with pytest.raises(ValueError, match=r"1 of 3 labels are not finite: at \[1\]"):
        metrics([1, 2, 3], [1, math.nan, 2])
    with pytest.raises(ValueError, match=r"1 of 3 predictions are not finite: at \[2\]"):
        metrics([1, 2, math.inf], [1, 3, 2])
    with pytest.raises(ValueError, match=r"must both be \[n\]; got \(2,\) and \(3,\)"):
        metrics([1, 2], [1, 2, 3])


@pytest.mark.parametrize("beta", [(90, 10, 0.3, 0.1), (4.5, 1.2, -40, 7)], ids=str)
def test_logistic_fit_finds_the_curve(beta):
    top, bottom, middle, width = beta
    x = middle + width * np.linspace(-4, 4, 60)
    mos = bottom + (top - bottom) / (1 + np.exp(-(x - middle) / width))
    fit = logistic_fit(x, mos)
    assert fit.beta == pytest.approx(beta, rel=1e-4)
    assert fit.note == ""
    np.testing.assert_allclose(fit([middle]), [(top + bottom) / 2], rtol=1e-4)
    result = fitted_metrics(x, mos)
    assert result.plcc == pytest.approx(1)
    assert result.rmse == pytest.approx(0, abs=1e-4 * (top - bottom))
    assert metrics(x, mos).plcc < 0.99


def test_logistic_fit_is_never_worse_than_a_line():
    rng = np.random.default_rng(4)
    for seed in range(20):
        n = int(rng.integers(5, 40))
        x, mos = rng.normal(size=n) * 10.0 ** (seed % 5 - 2), rng.uniform(0, 100, n)
        mos += 40 * np.sign(seed % 3 - 1) * (x - x.mean()) / x.std()
        slope, intercept = linear_fit(x, mos)
        fit = logistic_fit(x, mos)
        assert np.isfinite(fit(x)).all()
        assert np.sum((fit(x) - mos) ** 2) <= np.sum((slope * x + intercept - mos) ** 2) * (1 + 1e-5)


def test_logistic_fit_of_a_line_is_that_line():
    x = np.linspace(-1, 2, 30)
    np.testing.assert_allclose(logistic_fit(x, 7 - 3 * x)(x), 7 - 3 * x, atol=0.02)


def test_too_few_for_a_curve_give_a_line_and_say_so():
    """Least squares through (0, 1), (1, 3), (2, 2): slope 1/2, mean 2."""
    fit = logistic_fit([0, 1, 2], [1, 3, 2])
    assert fit.note == "a straight line: 3 distinct predictions are too few for a logistic fit"
    np.testing.assert_allclose(fit([0, 1, 2, 4]), [1.5, 2, 2.5, 3.5], atol=1e-4)


def test_a_falling_curve_says_so():
    x = np.linspace(0, 1, 20)
    fit = logistic_fit(x, logistic(x, (1, 5, 0.5, 0.1)))
    assert "the curve falls" in fit.note
    assert fit(0.0) > fit(1.0)


def test_outliers_and_steps_are_survived():
    x = np.concatenate([np.linspace(0, 1, 30), [1e6]])
    mos = np.concatenate([np.linspace(1, 5, 30), [3]])
    assert np.isfinite(logistic_fit(x, mos)(x)).all()
    step = logistic_fit(np.arange(20.0), np.repeat([1.0, 5.0], 10))
    np.testing.assert_allclose(step(np.arange(20.0)), np.repeat([1.0, 5.0], 10), atol=0.1)


@pytest.mark.parametrize(("prediction", "mos", "what"), [([1, 1], [1, 2], "predictions"), ([1, 2], [3, 3], "labels")])
def test_nothing_to_fit(prediction, mos, what):
    with pytest.raises(ValueError, match=f"nothing to fit: the {what} of 2 items are all the same"):
        logistic_fit(prediction, mos)


def test_bootstrap_covers_what_is_known():
    """A Pearson correlation r of n items has, by Fisher, the interval tanh(atanh(r) +- 1.96 / sqrt(n - 3))."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = 0.8 * x + 0.6 * rng.normal(size=400)
    intervals = bootstrap(x, y, samples=400, seed=1)
    r = metrics(x, y).plcc
    fisher = np.tanh(np.arctanh(r) + 1.96 / math.sqrt(397) * np.array([-1, 1]))
    np.testing.assert_allclose(intervals["plcc"], fisher, atol=0.015)
    for name in NAMES:
        low, high = intervals[name]
        assert low < getattr(metrics(x, y), name) < high
    assert intervals == bootstrap(x, y, samples=400, seed=1)
    assert intervals != bootstrap(x, y, samples=400, seed=2)


def test_bootstrap_of_groups_is_wider_where_a_group_moves_as_one():
    """Eight copies of each of 20 contents tell no more than the 20."""
    rng = np.random.default_rng(5)
    x, noise = rng.normal(size=(2, 20))
    x, y = np.repeat(x, 8), np.repeat(x + noise, 8)
    groups = [f"content {k // 8}" for k in range(160)]
    widths = [np.ptp(bootstrap(x, y, samples=200, seed=0, groups=g)["plcc"]) for g in (None, groups)]
    assert widths[1] > 2 * widths[0]
    with pytest.raises(ValueError, match="got 3 groups of 160 items"):
        bootstrap(x, y, seed=0, groups=["a"] * 3)


def test_bootstrap_of_next_to_nothing():
    assert all(np.isnan(bootstrap([1.0], [2.0], samples=10, seed=0)["srocc"]))
    assert all(np.isnan(bootstrap([], [], samples=10, seed=0)["rmse"]))
    assert bootstrap([1.0, 2.0], [1.0, 2.0], samples=50, seed=0)["srocc"] == pytest.approx((1, 1))  # half have one item


def test_medians_and_published_best():
    epochs = [Metrics(0.5, 0.9, 0.3, 2.0), Metrics(0.7, 0.6, math.nan, 1.0), Metrics(0.6, 0.8, 0.4, 3.0)]
    assert published_best(epochs) == Metrics(0.7, 0.9, 0.4, 1.0)
    assert medians([epochs[0], epochs[2]]) == Metrics(0.55, pytest.approx(0.85), 0.35, 2.5)
    assert math.isnan(published_best([Metrics(*[math.nan] * 4)]).srocc)
    for choose in (published_best, medians):
        with pytest.raises(ValueError, match=r"^no (epochs|results) to"):
            choose([])
