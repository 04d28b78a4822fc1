"""What `sama evaluate` does: read labels, score the files or read their scores, compare, write the report."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sama.errors import InputError
from sama.evaluation import Evaluation, by_column, calibration, evaluate_predictions, save_calibrated
from sama.evaluation_report import write_report
from sama.journal import Journal
from sama.labels import Item, read_labels, with_split
from sama.limits import Limits
from sama.model import QualityModel, find_weights
from sama.parts import read_scores
from sama.scoring import score_files
from sama.storage import is_url
from sama.tables import FORMATS, Row, check_unmixed

ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `sama evaluate`, checked: `InputError` where they do not go together."""

    labels: str
    root: str
    weights: str | None = None
    random_weights: bool = False
    mode: str | None = None
    label: str = ""
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
    max_pixels: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if len({bool(value) for value in (self.calibrate, self.scale, self.save)}) > 1:
            raise InputError(
                "--calibrate, --scale and --save go together: the fit, the scale's name, the file to write"
            )
        if self.calibrate and self.random_weights:
            raise InputError("random weights are not worth a calibration: give --weights")
        for name in ("splits", "samples", "batch", "workers", "max_pixels", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name.replace('_', '-')} must be more than 0; got {value}")
        if self.seed < 0:
            raise InputError(f"--seed must be at least 0; got {self.seed}")
        if self.split and self.splits:
            raise InputError(
                "--split takes the file's own split, --splits the protocol's random ones: give one of them"
            )
        if self.resume and self.predictions:
            raise InputError("--resume continues scoring, --predictions does none: give one of them")
        if self.resume and not self.out:
            raise InputError("--resume is about the scores in --out, which is not given")
        if self.out and not (self.resume or self.overwrite):
            there = next((n for n in ("report.md", "report.json") if os.path.exists(os.path.join(self.out, n))), None)
            if there:
                raise InputError(f"{os.path.join(self.out, there)} exists already: give another --out, or --overwrite")
        if not (is_url(self.root) or os.path.isdir(self.root)):
            raise InputError(f"there is no folder {self.root}")
        if self.save:
            if not self.save.endswith(".safetensors"):
                raise InputError(f"{self.save}: the calibrated checkpoint's name must end in .safetensors")
            if not Path(self.save).parent.is_dir():
                raise InputError(f"{self.save}: there is no folder {Path(self.save).parent}")
            if os.path.exists(self.save) and not self.overwrite:
                raise InputError(f"{self.save} exists already: give another name, or --overwrite")


def run(
    options: EvaluateOptions,
    load: Callable[[Sequence[str]], QualityModel],
    *,
    progress: ProgressBar,
) -> Evaluation:
    """Read labels, score (or read scores), compare, write what is asked for.

    load: called with the labelled paths for the model, where it is needed
    progress: called with a title; a context that gives a function of files done and files in all
    """
    items = read_labels(options.labels, options.root, label=options.label)
    title = os.path.basename(options.labels)
    if options.split:
        items, title = with_split(items, options.split), f"{title}, split {options.split}"
    if options.by:
        by_column(items, options.by)  # a column that does not exist is found out before hours of scoring
    if options.predictions:
        rows = _read_predictions(
            options.predictions, load([item.path for item in items]).name if options.calibrate else None
        )
    else:
        rows = _score(options, load([item.path for item in items]), items, progress)
    predictions, failed = _match(rows, items, options)
    evaluation = evaluate_predictions(
        items,
        predictions,
        failed=failed,
        splits=options.splits,
        by=options.by,
        samples=options.samples,
        seed=options.seed,
        title=title,
        model=_one(row.model for row in rows),
        settings=_one(row.settings for row in rows),
    )
    fitted = None
    if options.calibrate and options.scale and options.save:
        fitted = calibration(options.calibrate, evaluation.prediction, evaluation.mos, options.scale)
    if options.out:
        write_report(evaluation, options.out)
    if fitted and options.save:
        save_calibrated(find_weights(options.weights), options.save, fitted, mode=options.mode)
    return evaluation


def _score(options: EvaluateOptions, model: QualityModel, items: Sequence[Item], progress: ProgressBar) -> list[Row]:
    """A row for each path, by the model, or from an earlier run into the same folder."""
    paths = list(dict.fromkeys(item.path for item in items))
    journal = None
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        scores_by = model.name, model.describe()
        out = Path(options.out) / "scores.csv"
        journal = Journal(out, scores_by, resume=options.resume, overwrite=options.overwrite)
    remaining = journal.remaining(paths) if journal else paths
    rows = {} if journal is None else dict(journal.rows)
    scored = score_files(
        remaining,
        model,
        batch=options.batch,
        workers=options.workers,
        decoder=options.decoder,
        limits=Limits(options.max_pixels, options.timeout),
    )
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


def _read_predictions(table: str, model: str | None) -> list[Row]:
    """The rows of a table of scores; all by `model`, if that is given."""
    path = Path(table)
    folder = is_url(table) or path.is_dir()
    if path.suffix.lower() not in FORMATS and not folder:
        raise InputError(f"{path}: cannot tell the format; the name must end in {', '.join(FORMATS)}")
    if not (folder or path.exists()):
        raise InputError(f"no such file: {path}")
    rows = read_scores(table)
    if not rows:
        raise InputError(f"{path} holds no scores")
    check_unmixed(rows, str(path))
    if model is not None:
        foreign = next((row.model for row in rows if row.model != model), None)
        if foreign is not None:
            raise InputError(
                f"{path} holds scores by {foreign or 'an unnamed model'}; a calibration of {model} needs its own"
            )
    return rows


def _match(
    rows: Sequence[Row], items: Sequence[Item], options: EvaluateOptions
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores by `Item.path`, and the reasons of items without one. A row's path is as it was scored, or as labelled."""
    found: dict[str, Row] = {}
    for row in rows:
        for path in (os.path.abspath(row.path), os.path.abspath(os.path.join(options.root, row.path))):
            found.setdefault(path, row)
    predictions: dict[str, float] = {}
    failed: dict[str, str] = {}
    for item in items:
        match = found.get(os.path.abspath(item.path))
        if match is None:
            failed[item.path] = f"no row in {options.predictions}"
        elif match.status != "ok" or match.score is None:
            failed[item.path] = match.reason or "no score"
        elif math.isfinite(match.score):
            predictions[item.path] = match.score
        else:
            failed[item.path] = "the score is not a number"
    if not predictions:
        path, reason = next(iter(failed.items()))
        raise InputError(f"none of the {len(items)} labelled files has a score; the first: {path}: {reason}")
    return predictions, failed


def _one(values: Iterable[str]) -> str:
    """The different values, joined; most often there is one."""
    return "; ".join(dict.fromkeys(value for value in values if value))
