"""How well scores follow the labels of a data set, and the calibration of scores to its scale.

    evaluation = evaluate_predictions(items, {path: score, ...}, splits=10)
    print(evaluation)
    save_calibrated("weights.pth", "konvid.safetensors", calibration("logistic", prediction, mos, "KoNViD-1k"))

Scores are on the model's own scale, whatever calibration its checkpoint carries.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sama.errors import InputError
from sama.files import printable
from sama.labels import Item, protocol_split
from sama.metrics import (
    NAMES,
    LogisticFit,
    Metrics,
    bootstrap,
    fitted_metrics,
    linear_fit,
    logistic_fit,
    medians,
    metrics,
)

if TYPE_CHECKING:
    pass

KINDS = ("linear", "logistic")
WITHIN = 3  # items that a content must have for a correlation within it


@dataclass(frozen=True)
class Part:
    """Metrics of some of the items, plain and after a logistic fit on these items."""

    items: int
    plain: Metrics
    fitted: Metrics


@dataclass(frozen=True)
class Evaluation:
    """Scores beside labels.

    title, model, settings: what was evaluated, in words
    items: labelled ones; paths, prediction, mos: of those with a score; failed: (path, reason) of the others
    all: metrics over the scored items; intervals: 95 %, of the plain ones, by bootstrap over contents
    fit: the logistic curve over all scored items, None where predictions or labels are constant
    splits: test parts of the protocol's splits number 0, 1, ...; medians: over them, None without splits
    by: for every value of a column, its part
    within: mean SROCC within contents and how many contents it is of, where contents have `WITHIN` items or more
    """

    title: str
    model: str
    settings: str
    items: int
    failed: list[tuple[str, str]]
    paths: list[str]
    prediction: list[float]
    mos: list[float]
    all: Part
    intervals: dict[str, tuple[float, float]]
    samples: int
    fit: LogisticFit | None
    splits: list[Part] = field(default_factory=list)
    medians: Part | None = None
    by_column: str = ""
    by: dict[str, Part] = field(default_factory=dict)
    within: tuple[float, int] | None = None

    def __str__(self) -> str:
        return markdown(self)


def evaluate_predictions(
    items: Sequence[Item],
    predictions: Mapping[str, float],
    *,
    failed: Mapping[str, str] | None = None,
    splits: int | None = None,
    by: str | None = None,
    samples: int = 1000,
    seed: int = 0,
    title: str = "",
    model: str = "",
    settings: str = "",
) -> Evaluation:
    """Compare scores with labels.

    predictions: a score for each `Item.path`; an item without one is counted as failed
    failed: why paths have no score
    splits: medians over the test parts of that many of the protocol's splits, of this one set of predictions; an item
        that failed is left out of its part
    by: a column of the label file (or "split"): metrics for each of its values
    samples, seed: of the bootstrap
    `InputError` for no item, a column that does not exist, scores that are not finite.
    """
    if not items:
        raise InputError("no items to evaluate")
    if splits is not None and splits < 1:
        raise InputError(f"splits must be more than 0; got {splits}")
    scored = [item for item in items if item.path in predictions]
    missing = {item.path: "no score" for item in items if item.path not in predictions}
    prediction, mos = [predictions[item.path] for item in scored], [item.mos for item in scored]

    parts = [_part(protocol_split(items, k)[1], predictions) for k in range(splits or 0)]
    middle = None
    if parts:
        plain, fitted = medians([part.plain for part in parts]), medians([part.fitted for part in parts])
        middle = Part(round(float(np.median([part.items for part in parts]))), plain, fitted)
    return Evaluation(
        title,
        model,
        settings,
        len(items),
        [(path, (failed or {}).get(path, reason)) for path, reason in missing.items()],
        [item.path for item in scored],
        prediction,
        mos,
        _part(scored, predictions),
        bootstrap(prediction, mos, samples=samples, seed=seed, groups=[item.group for item in scored]),
        samples,
        _fit(prediction, mos),
        parts,
        middle,
        by or "",
        {value: _part(chosen, predictions) for value, chosen in by_column(items, by).items()} if by else {},
        within_contents(scored, predictions),
    )


def _part(items: Sequence[Item], predictions: Mapping[str, float]) -> Part:
    scored = [item for item in items if item.path in predictions]
    prediction, mos = [predictions[item.path] for item in scored], [item.mos for item in scored]
    fit = _fit(prediction, mos)
    plain = metrics(prediction, mos)
    return Part(len(scored), plain, fitted_metrics(prediction, mos, fit) if fit else plain)


def _fit(prediction: Sequence[float], mos: Sequence[float]) -> LogisticFit | None:
    if math.isnan(metrics(prediction, mos).plcc):
        return None
    return logistic_fit(prediction, mos)


def by_column(items: Sequence[Item], by: str) -> dict[str, list[Item]]:
    """The items by their value in a column of the label file, or in "split"; `InputError` for an unknown column."""
    known = dict.fromkeys(["split", *(name for item in items for name in item.extra)])
    if by not in known:
        raise InputError(f"the label file has no column {by!r}; known: {', '.join(known)}")
    values: dict[str, list[Item]] = {}
    for item in items:
        values.setdefault(item.split if by == "split" else item.extra.get(by, ""), []).append(item)
    return dict(sorted(values.items()))


def within_contents(
    items: Sequence[Item], predictions: Mapping[str, float], *, least: int = WITHIN
) -> tuple[float, int] | None:
    """Mean of `srocc_by_content` where it is a number, and of how many contents; None where there is none."""
    values = [value for value in srocc_by_content(items, predictions, least=least).values() if not math.isnan(value)]
    return (float(np.mean(values)), len(values)) if values else None


def srocc_by_content(
    items: Sequence[Item], predictions: Mapping[str, float], *, least: int = WITHIN
) -> dict[str, float]:
    """SROCC of the scored items of each content that has `least` of them or more; NaN where they are constant."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.path in predictions:
            groups.setdefault(item.group, []).append(item)
    return {
        name: metrics([predictions[item.path] for item in group], [item.mos for item in group]).srocc
        for name, group in groups.items()
        if len(group) >= least
    }


def calibration(kind: str, prediction: Sequence[float], mos: Sequence[float], scale: str) -> dict[str, Any]:
    """What `QualityModel.mos` takes from a checkpoint's metadata to bring scores onto the labels' scale.

    kind: "linear", least squares, or "logistic". Calibrate on labels that are not used to judge the result's RMSE.
    `InputError` where scores or labels are constant, or run against each other: the order would be turned around.
    """
    if kind not in KINDS:
        raise InputError(f"unknown calibration {kind!r}; known: {', '.join(KINDS)}")
    known = {"scale": scale, "kind": kind, "items": len(mos)}
    slope, intercept = linear_fit(prediction, mos)
    if slope <= 0:
        raise InputError(
            f"scores run against the labels of {scale} (slope {slope:.4g}): is a higher label better there?"
        )
    if kind == "linear":
        return known | {"slope": slope, "intercept": intercept}
    return known | {"beta": list(logistic_fit(prediction, mos).beta)}


def save_calibrated(
    weights: str | os.PathLike, path: str | os.PathLike, calibration: Mapping[str, Any], *, mode: str | None = None
):
    """A copy of a checkpoint, in our own format, with a calibration in place of the one it had, if any."""
    from sama.models import build, save_weights

    built = build(weights, mode=mode)
    save_weights(built.model, path, metadata=built.metadata | {"calibration": dict(calibration)})


def markdown(evaluation: Evaluation) -> str:
    """The evaluation as Markdown that reads well on a terminal."""
    e = evaluation
    n = len(e.mos)
    lines = [f"# {e.title or 'Evaluation'}", ""]
    lines += [f"Scores by {e.model}" + (f"; {e.settings}." if e.settings else "."), ""] if e.model else []
    lines += [f"{n} of {e.items} items scored{f', {len(e.failed)} left out (below)' if e.failed else ''}.", ""]
    rows = {f"all {n}": e.all.plain}
    rows["95 % from"] = Metrics(*(e.intervals[name][0] for name in NAMES))
    rows["to"] = Metrics(*(e.intervals[name][1] for name in NAMES))
    rows["after a logistic fit"] = e.all.fitted
    if e.medians:
        rows[f"median over {len(e.splits)} splits"] = e.medians.plain
        rows["median, fit on each test part"] = e.medians.fitted
    lines += _table("", rows)
    lines += [
        "",
        f"Intervals: percentiles of {e.samples} bootstrap draws of contents. Without a fit, RMSE is of scores",
    ]
    lines += ["moved and scaled to the labels' mean and standard deviation."]
    if e.fit and e.fit.note:
        lines += ["", f"Logistic fit: {e.fit.note}."]
    if e.fit is None:
        lines += ["", "No correlation exists: fewer than two items, or all scores or all labels are the same."]
    if e.medians:
        lines += [
            "",
            f"Splits: test parts (median {e.medians.items} items) of the protocol's random 80/20 splits number 0 to",
        ]
        lines += [f"{len(e.splits) - 1}, all of this one set of scores: no training was done for them."]
    if e.within:
        lines += ["", f"Within a content: mean SROCC {e.within[0]:.4f} over {e.within[1]} contents."]
    if e.by:
        lines += ["", *_table(e.by_column, {f"{value or '(none)'} ({p.items})": p.plain for value, p in e.by.items()})]
    if e.failed:
        lines += ["", "Left out:", ""]
        lines += [f"- {printable(path)}: {printable(reason)}" for path, reason in e.failed]
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, Metrics]) -> list[str]:
    title, *names = (printable(name).replace("|", "\\|") for name in [title, *rows])
    width = max(map(len, [title, *names]))
    lines = [f"| {title:<{width}} |  SROCC |   PLCC |  KROCC |     RMSE |"]
    lines += [f"|{'-' * (width + 2)}|-------:|-------:|-------:|---------:|"]
    for name, m in zip(names, rows.values()):
        lines.append(f"| {name:<{width}} | {m.srocc:6.4f} | {m.plcc:6.4f} | {m.krocc:6.4f} | {m.rmse:8.4g} |")
    return lines
