"""Rates against quality: the curve of each ladder, the hull of all, and Bjontegaard deltas between ladders."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from sama.errors import MissingLibraryError

LEAST_POINTS = 4  # of a curve, for Bjontegaard deltas
INSTALL = "Bjontegaard deltas need the package bjontegaard: pip install 'sama-vqa[compare]'"


@dataclass(frozen=True)
class Delta:
    """What the ladder `other` needs against `first`: rate in percent at the same quality (below 0 is less), quality in
    points at the same rate. None, with the reason, where it cannot be computed. left_out: points that are no gain."""

    first: str
    other: str
    rate_percent: float | None = None
    quality: float | None = None
    reason: str = ""
    left_out: int = 0


def hull(rates: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The points, by rate, that no mixture of two others beats: the upper convex hull over the rate's logarithm, from
    the lowest rate up to the highest score."""
    order = sorted(range(len(rates)), key=lambda k: (rates[k], -scores[k]))
    x = np.log2(np.asarray(rates, np.float64))
    kept: list[int] = []
    for k in order:
        if kept and (scores[k] <= scores[kept[-1]] or x[k] == x[kept[-1]]):
            continue
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (scores[b] - scores[a]) * (x[k] - x[a]) > (scores[k] - scores[a]) * (x[b] - x[a]):
                break
            kept.pop()
        kept.append(k)
    return kept


def rising(rates: Sequence[float], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Points by rate, those left out whose score is not above a cheaper one's."""
    kept: list[tuple[float, float]] = []
    for rate, score in sorted(zip(rates, scores)):
        if not kept or (score > kept[-1][1] and rate > kept[-1][0]):
            kept.append((rate, score))
    pairs = np.asarray(kept, np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def deltas(ladders: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[Delta]:
    """Bjontegaard deltas of every ladder against the first. ladders: name -> (rates, scores)

    By the package `bjontegaard` with piecewise cubic curves through the points (pchip). `MissingLibraryError` where it
    is not installed and there is something to compute.
    """
    curves = {name: rising(*points) for name, points in ladders.items()}
    first, *others = curves
    return [_delta(first, other, curves, ladders) for other in others]


def _delta(
    first: str,
    other: str,
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    ladders: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> Delta:
    (rate_a, score_a), (rate_b, score_b) = curves[first], curves[other]
    left_out = sum(len(ladders[name][0]) - len(curves[name][0]) for name in (first, other))
    if min(len(rate_a), len(rate_b)) < LEAST_POINTS:
        found = f"{len(rate_a)} and {len(rate_b)}"
        why = f"each curve needs {LEAST_POINTS} points of rising quality; there are {found}"
        return Delta(first, other, reason=why, left_out=left_out)
    if min(score_a[-1], score_b[-1]) <= max(score_a[0], score_b[0]):
        return Delta(first, other, reason="the curves have no quality in common", left_out=left_out)
    if find_spec("bjontegaard") is None:
        raise MissingLibraryError(INSTALL)
    import bjontegaard

    settings = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    common_rates = min(rate_a[-1], rate_b[-1]) > max(rate_a[0], rate_b[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of curves that overlap in part: the table shows them
        rate = float(bjontegaard.bd_rate(rate_a, score_a, rate_b, score_b, **settings))
        quality = float(bjontegaard.bd_psnr(rate_a, score_a, rate_b, score_b, **settings)) if common_rates else None
    return Delta(first, other, rate, quality, "" if common_rates else "the curves have no rate in common", left_out)
