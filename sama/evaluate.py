"""How well scores follow the labels of a data set, as a report; and scores brought onto its scale.

    evaluation = evaluate_predictions(items, {path: score, ...}, splits=10)
    print(evaluation)
    write_report(evaluation, "report/")          # report.md, report.json, scatter.png
    save_calibrated("weights.pth", "konvid.safetensors", calibration("logistic", prediction, mos, "KoNViD-1k"))

Scores are always those on the model's own scale, whatever calibration its checkpoint carries.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sama.data import Item, protocol_split, read_labels, with_split
from sama.errors import InputError
from sama.files import printable
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
    from sama.model import QualityModel

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
    ValueError for no item, a column that does not exist, scores that are not finite.
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
        {value: _part(chosen, predictions) for value, chosen in _columns(items, by).items()} if by else {},
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


def _columns(items: Sequence[Item], by: str) -> dict[str, list[Item]]:
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


# Calibration


def calibration(kind: str, prediction: Sequence[float], mos: Sequence[float], scale: str) -> dict[str, Any]:
    """What `QualityModel.mos` takes from a checkpoint's metadata to bring scores onto the labels' scale.

    kind: "linear", least squares, or "logistic". Calibrate on labels that are not used to judge the result's RMSE.
    ValueError where scores or labels are constant, or run against each other: the order would be turned around.
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


# The command


@dataclass(frozen=True)
class Plan:
    """What `sama evaluate` was asked for, checked. ValueError where options do not go together."""

    labels: str
    root: str
    weights: str | None = None
    random_weights: bool = False
    mode: str | None = None
    split: str | None = None
    splits: int | None = None
    by: str | None = None
    predictions: str | None = None
    out: str | None = None
    resume: bool = False
    overwrite: bool = False
    calibrate: str | None = None
    scale: str | None = None
    save: str | None = None
    samples: int = 1000
    seed: int = 0
    batch: int | None = None
    workers: int | None = None
    decoder: str = "auto"

    def __post_init__(self):
        if len({bool(value) for value in (self.calibrate, self.scale, self.save)}) > 1:
            raise InputError(
                "--calibrate, --scale and --save go together: the fit, the scale's name, the file to write"
            )
        if self.calibrate and self.random_weights:
            raise InputError("random weights are not worth a calibration: give --weights")
        for name in ("splits", "samples", "batch", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be more than 0; got {value}")
        if self.split and self.splits:
            raise InputError(
                "--split takes the file's own split, --splits the protocol's random ones: give one of them"
            )
        if self.resume and self.predictions:
            raise InputError("--resume goes on with scoring, --predictions does none: give one of them")
        if self.resume and not self.out:
            raise InputError("--resume is about the scores in --out, which is not given")
        if self.out and not (self.resume or self.overwrite):
            there = next((n for n in ("report.md", "report.json") if os.path.exists(os.path.join(self.out, n))), None)
            if there:
                raise InputError(
                    f"{os.path.join(self.out, there)} is there already: give another --out, or --overwrite"
                )
        if not os.path.isdir(self.root):
            raise InputError(f"there is no folder {self.root}")
        if self.save:
            if not self.save.endswith(".safetensors"):
                raise InputError(f"{self.save}: the calibrated checkpoint's name must end in .safetensors")
            if not Path(self.save).parent.is_dir():
                raise InputError(f"{self.save}: there is no folder {Path(self.save).parent}")
            if os.path.exists(self.save) and not self.overwrite:
                raise InputError(f"{self.save} is there already: give another name, or --overwrite")


def run(
    plan: Plan,
    load: Callable[[Sequence[str]], QualityModel],
    *,
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]],
) -> Evaluation:
    """Read labels, score (or read scores), compare, write what is asked for.

    load: called with the labelled paths for the model, where it is needed
    progress: called with a title; a context that gives a function of files done and files in all
    """
    items = read_labels(plan.labels, plan.root)
    title = os.path.basename(plan.labels)
    if plan.split:
        items, title = with_split(items, plan.split), f"{title}, split {plan.split}"
    if plan.predictions:
        rows = _read_predictions(plan, load([item.path for item in items]).name if plan.calibrate else None)
    else:
        rows = _score(plan, load([item.path for item in items]), items, progress)
    predictions, failed = _match(rows, items, plan)
    evaluation = evaluate_predictions(
        items,
        predictions,
        failed=failed,
        splits=plan.splits,
        by=plan.by,
        samples=plan.samples,
        seed=plan.seed,
        title=title,
        model=_one(row.model for row in rows),
        settings=_one(row.settings for row in rows),
    )
    fitted = calibration(plan.calibrate, evaluation.prediction, evaluation.mos, plan.scale) if plan.calibrate else None
    if plan.out:
        write_report(evaluation, plan.out)
    if fitted:
        from sama.model import DEFAULT_WEIGHTS

        save_calibrated(plan.weights or DEFAULT_WEIGHTS, plan.save, fitted, mode=plan.mode)
    return evaluation


def _score(plan: Plan, model: QualityModel, items: Sequence[Item], progress) -> list:
    """A row for each path, from the model, or from an earlier run into the same folder."""
    from contextlib import nullcontext

    from sama.score import Journal, describe, score_files

    paths = list(dict.fromkeys(item.path for item in items))
    journal = None
    if plan.out:
        os.makedirs(plan.out, exist_ok=True)
        scores_by = model.name, describe(model, None)
        out = Path(plan.out) / "scores.csv"
        journal = Journal(out, scores_by, resume=plan.resume, overwrite=plan.overwrite)
    remaining = journal.remaining(paths) if journal else paths
    batch = plan.batch or (1 if model.device.type == "cpu" else 8)
    rows = {} if journal is None else dict(journal.rows)
    scored = score_files(remaining, model, batch=batch, workers=plan.workers, decoder=plan.decoder)
    with journal or nullcontext(), progress("scoring") as bar:
        bar(0, len(remaining))
        try:
            for done, row in enumerate(scored, start=1):
                rows[row.path] = row
                if journal:
                    journal.add(row)
                bar(done, len(remaining))
        finally:
            scored.close()
        if journal:
            journal.finish(paths)
    return [rows[path] for path in paths]


def _read_predictions(plan: Plan, model: str | None) -> list:
    """The rows of a table of scores; all by `model`, if that is given."""
    from sama.score import FORMATS, read_table

    path = Path(plan.predictions)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: cannot tell the format; the name must end in {', '.join(FORMATS)}")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    rows = read_table(path)
    if not rows:
        raise InputError(f"{path} holds no scores")
    if model is not None:
        foreign = next((row.model for row in rows if row.model != model), None)
        if foreign is not None:
            raise InputError(
                f"{path} holds scores by {foreign or 'an unnamed model'}; a calibration of {model} needs its own"
            )
    return rows


def _match(rows: Sequence, items: Sequence[Item], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
    """Scores, and reasons of those without one, by `Item.path`; a row's path is as it was scored or as labelled."""
    found = {}
    for row in rows:
        for path in (os.path.abspath(row.path), os.path.abspath(os.path.join(plan.root, row.path))):
            found.setdefault(path, row)
    predictions, failed = {}, {}
    for item in items:
        row = found.get(os.path.abspath(item.path))
        if row is None:
            failed[item.path] = f"no row in {plan.predictions}"
        elif row.status == "ok" and row.score is not None and not math.isfinite(row.score):
            failed[item.path] = "the score is not a number"
        elif row.status == "ok" and row.score is not None:
            predictions[item.path] = row.score
        else:
            failed[item.path] = row.reason or "no score"
    if not predictions:
        path, reason = next(iter(failed.items()))
        raise InputError(f"none of the {len(items)} labelled files has a score; the first: {path}: {reason}")
    return predictions, failed


def _one(values) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


# Reports


def write_report(evaluation: Evaluation, folder: str | os.PathLike):
    """report.md, report.json and scatter.png in a folder, which is made if need be."""
    from sama.files import replace_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of names in other scripts
        scatter(evaluation).savefig(folder / "scatter.png", dpi=120)
    replace_file(folder / "report.json", json.dumps(report(evaluation), indent=1, allow_nan=False).encode() + b"\n")
    text = f"{markdown(evaluation)}\n\n![labels over scores](scatter.png)\n"
    replace_file(folder / "report.md", text.encode(errors="replace"))


def report(evaluation: Evaluation) -> dict[str, Any]:
    """Everything in an evaluation as JSON can hold it; what does not exist (NaN) is null."""
    return plain(asdict(evaluation))


def plain(value: Any) -> Any:
    """Data as JSON can hold it: NaN becomes None, tuples lists."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def markdown(evaluation: Evaluation) -> str:
    """The report as Markdown that reads well on a terminal."""
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


def scatter(evaluation: Evaluation):
    """Labels over scores, with the logistic fit: a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.add_subplot()
    x, y = np.array(evaluation.prediction), np.array(evaluation.mos)
    axis.scatter(x, y, s=max(2, min(20, 4000 / max(1, len(x)))), alpha=0.5, color="#1670a8", linewidths=0)
    if evaluation.fit:
        line = np.linspace(x.min(), x.max(), 200)
        axis.plot(line, evaluation.fit(line), color="#c23b22", label="logistic fit")
        axis.legend(frameon=False)
    axis.set_xlabel("score, the model's own scale")
    axis.set_ylabel("label")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{printable(evaluation.title)}\n{evaluation.all.plain}", fontsize=9, parse_math=False)
    return figure
