"""How well predictions follow labels: SROCC, PLCC, KROCC, RMSE, a logistic fit, and bootstrap intervals.

    m = metrics(prediction, mos)                 # Metrics(srocc=0.88, plcc=0.87, krocc=0.70, rmse=9.1)
    fit = logistic_fit(prediction, mos)          # fit.beta, fit(prediction) on the scale of mos
    fitted_metrics(prediction, mos, fit)         # PLCC and RMSE after the fit
    bootstrap(prediction, mos, seed=0)           # {"srocc": (0.85, 0.90), ...}

Predictions and labels are numbers [n]; `InputError` where one is not finite. Correlations of fewer than two items, or
of constant predictions or labels, do not exist: all four metrics are NaN then, without a warning.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from sama.errors import InputError

WIDTHS = 0.02, 100.0  # of a logistic, in standard deviations of the predictions
BEYOND = 10.0  # how far outside the labels a logistic may level off, in ranges of the labels


@dataclass(frozen=True)
class Metrics:
    """srocc: Spearman's, plcc: Pearson's, krocc: Kendall's tau-b, -1 to 1; rmse: on the labels' scale."""

    srocc: float
    plcc: float
    krocc: float
    rmse: float

    def __str__(self) -> str:
        return f"SROCC {self.srocc:.4f}, PLCC {self.plcc:.4f}, KROCC {self.krocc:.4f}, RMSE {self.rmse:.4f}"


NAMES = tuple(f.name for f in fields(Metrics))
UNDEFINED = Metrics(*[float("nan")] * 4)


@dataclass(frozen=True)
class LogisticFit:
    """A curve from predictions to labels: bottom + (top - bottom) / (1 + exp(-(x - middle) / |width|)).

    beta: (top, bottom, middle, width), as `QualityModel.mos` takes it
    note: what a reader must know of it: that it is a straight line, or falls; else empty
    """

    beta: tuple[float, float, float, float]
    note: str = ""

    def __call__(self, prediction: ArrayLike) -> np.ndarray:
        return logistic(prediction, self.beta)


def metrics(prediction: ArrayLike, mos: ArrayLike) -> Metrics:
    """The protocol's metrics: RMSE of the predictions moved and scaled to the labels' mean and standard deviation."""
    prediction, mos = _checked(prediction, mos)
    if _constant(prediction) or _constant(mos):
        return UNDEFINED
    scaled = (prediction - prediction.mean()) / prediction.std() * mos.std() + mos.mean()
    return _metrics(prediction, mos, scaled)


def fitted_metrics(prediction: ArrayLike, mos: ArrayLike, fit: LogisticFit | None = None) -> Metrics:
    """PLCC and RMSE after a logistic fit, on the same items where `fit` is None; SROCC and KROCC as without one."""
    prediction, mos = _checked(prediction, mos)
    if _constant(prediction) or _constant(mos):
        return UNDEFINED
    return _metrics(prediction, mos, (fit or logistic_fit(prediction, mos))(prediction))


def _metrics(prediction: np.ndarray, mos: np.ndarray, scaled: np.ndarray) -> Metrics:
    from scipy import stats

    p_value = "asymptotic" if len(mos) > 2 else "auto"  # not used; the quick one fails for two items
    return Metrics(
        srocc=float(stats.spearmanr(prediction, mos).statistic),
        plcc=float("nan") if _constant(scaled) else float(stats.pearsonr(scaled, mos).statistic),
        krocc=float(stats.kendalltau(prediction, mos, method=p_value).statistic),
        rmse=float(np.sqrt(np.mean((scaled - mos) ** 2))),
    )


def logistic(x: ArrayLike, beta: Sequence[float]) -> np.ndarray:
    from scipy.special import expit

    top, bottom, middle, width = beta
    y: np.ndarray = bottom + (top - bottom) * expit((np.asarray(x, float) - middle) / abs(width))
    return y


def logistic_fit(prediction: ArrayLike, mos: ArrayLike) -> LogisticFit:
    """The least-squares logistic of four parameters (VQEG), within bounds: it levels off at most `BEYOND` label ranges
    outside the labels, and is neither a step nor a line (`WIDTHS`).

    Fewer than five distinct predictions, or no better fit, give the least-squares line, as the middle of a very wide
    logistic; `note` says so. `InputError` where predictions or labels are constant: nothing can be fitted.
    """
    from scipy.optimize import least_squares

    prediction, mos = _checked(prediction, mos)
    if _constant(prediction) or _constant(mos):
        what = "predictions" if _constant(prediction) else "labels"
        raise InputError(f"nothing to fit: the {what} of {len(mos)} items are all the same")
    center, unit = prediction.mean(), prediction.std()
    x = (prediction - center) / unit
    low, spread = mos.min(), np.ptp(mos)
    y = (mos - low) / spread

    slope, intercept = linear_fit(x, y)
    line = intercept + slope * x
    note = f"a straight line: {len(np.unique(x))} distinct predictions are too few for a logistic fit"
    beta = None
    if len(np.unique(x)) >= 5:
        sign = 1.0 if slope >= 0 else -1.0
        top, bottom = (1.0, 0.0) if sign > 0 else (0.0, 1.0)
        wide = intercept + 4 * slope, intercept - 4 * slope, 0.0, 2.0  # the line, bent a little
        bounds = np.array([(-BEYOND, 1 + BEYOND)] * 2 + [(x.min() - np.ptp(x), x.max() + np.ptp(x)), WIDTHS]).T
        starts = [(top, bottom, np.median(x), width) for width in (0.25, 0.75)] + [wide]
        results = [
            least_squares(lambda b: logistic(x, b) - y, np.clip(start, *bounds), bounds=bounds, max_nfev=500)
            for start in starts
        ]
        best = min(results, key=lambda result: result.cost)
        note = "a straight line: no logistic fits better"
        if np.isfinite(best.x).all() and 2 * best.cost < np.sum((line - y) ** 2):
            beta, note = best.x, ""
    if beta is None:
        width = 1e3 * max(1.0, np.abs(x).max())  # the logistic's slope in its middle is (top - bottom) / (4 * width)
        beta = intercept + 2 * slope * width, intercept - 2 * slope * width, 0.0, width
    top, bottom, middle, width = map(float, beta)
    if top < bottom:
        note = "; ".join(filter(None, [note, "the curve falls: higher predictions go with lower labels"]))
    scaled = low + spread * top, low + spread * bottom, center + unit * middle, unit * width
    top, bottom, middle, width = map(float, scaled)
    return LogisticFit((top, bottom, middle, width), note)


def linear_fit(prediction: ArrayLike, mos: ArrayLike) -> tuple[float, float]:
    """(slope, intercept) of the least-squares line; `InputError` where the predictions are constant."""
    prediction, mos = _checked(prediction, mos)
    if _constant(prediction):
        raise InputError(f"nothing to fit: the predictions of {len(mos)} items are all the same")
    centered = prediction - prediction.mean()
    slope = float(np.sum(centered * (mos - mos.mean())) / np.sum(centered**2))
    return slope, float(mos.mean() - slope * prediction.mean())


def bootstrap(
    prediction: ArrayLike,
    mos: ArrayLike,
    *,
    samples: int = 1000,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals (2.5 % to 97.5 %) of each of the four metrics, over items drawn with replacement.

    groups: one a item: whole groups are drawn, since items of one content do not vary on their own
    Draws in which a metric does not exist are left out; it is (NaN, NaN) where none is left.
    """
    prediction, mos = _checked(prediction, mos)
    if groups is not None and len(groups) != len(mos):
        raise InputError(f"one group an item is needed: got {len(groups)} groups of {len(mos)} items")
    members: dict[Hashable, list[int]] = {}
    for k, group in enumerate(range(len(mos)) if groups is None else groups):
        members.setdefault(group, []).append(k)
    units = [np.array(indices) for indices in members.values()]
    rng = np.random.default_rng(seed)
    values = np.full((samples, len(NAMES)), np.nan)
    if units:
        for row in values:
            drawn = np.concatenate([units[k] for k in rng.integers(0, len(units), len(units))])
            row[:] = tuple(asdict(metrics(prediction[drawn], mos[drawn])).values())
    intervals = {}
    for name, column in zip(NAMES, values.T):
        column = column[~np.isnan(column)]
        low, high = np.percentile(column, [2.5, 97.5]) if len(column) else (np.nan, np.nan)
        intervals[name] = float(low), float(high)
    return intervals


def medians(results: Sequence[Metrics]) -> Metrics:
    """The median of each metric on its own; NaN where one of them is."""
    if not results:
        raise InputError("no results to take medians of")
    return Metrics(*(float(np.median([getattr(result, name) for result in results])) for name in NAMES))


def published_best(history: Sequence[Metrics]) -> Metrics:
    """The rule of published results: the best epoch on the test set, for each metric on its own.

    It looks at the test set to choose, so that it flatters; report the last epoch beside it. Epochs in which a metric
    is NaN are left out; NaN where all are. `InputError` for an empty history.
    """
    if not history:
        raise InputError("no epochs to choose from")
    best = {}
    for name in NAMES:
        values = [value for result in history if not math.isnan(value := getattr(result, name))]
        best[name] = (min if name == "rmse" else max)(values, default=float("nan"))
    return Metrics(**best)


def _constant(x: np.ndarray) -> bool:
    """Fewer than two values, or none that differ by more than rounding."""
    return len(x) < 2 or np.ptp(x) <= 4 * np.finfo(float).eps * np.abs(x).max()


def _checked(prediction: ArrayLike, mos: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    prediction, mos = np.asarray(prediction, float), np.asarray(mos, float)
    if prediction.shape != mos.shape or mos.ndim != 1:
        raise InputError(f"predictions and labels must both be [n]; got {prediction.shape} and {mos.shape}")
    for name, values in (("predictions", prediction), ("labels", mos)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise InputError(f"{len(wrong)} of {len(values)} {name} are not finite: at {wrong[:8].tolist()}")
    return prediction, mos
