"""Intervals of the mean of paired differences: a bootstrap over windows, repeatable, right for few windows too."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, stdtrit

DRAWS = 4000
LEVEL = 0.95


def interval(differences: np.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """A 95 % interval of the mean of differences [n], in the order of time.

    Circular blocks of about the cube root of n neighbours are drawn, since neighbouring windows are alike (Politis and
    Romano, 1992). Percentiles are widened for small n as Student's t is, never beyond the range of the drawn means
    (expanded percentiles: Hesterberg, 2015, section 5.3). Of one window both ends are its difference.
    """
    d = np.asarray(differences, np.float64)
    n = len(d)
    if n < 2 or np.ptp(d) == 0:
        return float(d.mean()), float(d.mean())
    block = max(1, round(n ** (1 / 3))) if n >= 8 else 1
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    each = max(1, 2_000_000 // n)
    for first in range(0, draws, each):
        count = min(each, draws - first)
        starts = rng.integers(0, n, (count, -(n // -block)))
        drawn = (starts[..., None] + np.arange(block)).reshape(count, -1)[:, :n] % n
        means[first : first + count] = d[drawn].mean(1)
    tail = float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - LEVEL) / 2)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def widened(mean: float, low: float, high: float, noise: float) -> tuple[float, float]:
    """The interval with another, independent error of half width `noise` added to it."""
    return mean - float(np.hypot(mean - low, noise)), mean + float(np.hypot(high - mean, noise))
