"""The report of a finished run: report.json, report.md, and a folder with an evaluation of each set."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sama.evaluation import Evaluation, evaluate_predictions, within_contents
from sama.evaluation_report import without_nan, write_report
from sama.files import replace_file
from sama.labels import Item
from sama.metrics import Metrics, published_best
from sama.training.config import Config


class Scored(NamedTuple):
    """Scores of a set, the same on every rank. scores: by the item's number; failed: (path, reason)."""

    scores: dict[int, float]
    failed: list[tuple[str, str]]


def write_run_report(
    out: Path,
    config: Config,
    sets: Mapping[str, Sequence[Item]],
    history: Sequence[dict[str, Any]],
    finals: Mapping[str, Scored],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Write report.json, report.md and each set's own report in its folder; returns the content of report.json.

    history: a record for each epoch; finals: the last epoch's scores of each set, by the item's number
    failed: unreadable files of the whole run, and why
    """
    validations = [record["validation"] for record in history if "validation" in record]
    names = validations[-1] if validations else ()
    best = {name: asdict(published_best([Metrics(**one[name]) for one in validations])) for name in names}
    summaries = {}
    for name, scored in finals.items():
        evaluation = evaluate_set(scored, sets[name], f"{out.name}: {name}", config.seed)
        write_report(evaluation, out / name)
        summaries[name] = summary(evaluation, sets[name])
    content = without_nan(
        {
            "config": asdict(config),
            "sets": summaries,
            "published_best_epoch_rule": best,
            "history": history,
            "failed": failed,
        }
    )
    replace_file(out / "report.json", json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    replace_file(out / "report.md", markdown(content).encode())
    print(f"report: {out / 'report.md'}", file=sys.stderr)
    return content


def evaluate_set(scored: Scored, items: Sequence[Item], title: str, seed: int) -> Evaluation:
    """The comparison of a set's scores with its labels; by the column `kind` where the label file has one."""
    predictions = {items[number].path: score for number, score in scored.scores.items()}
    by = "kind" if any("kind" in item.extra for item in items) else None
    return evaluate_predictions(items, predictions, failed=dict(scored.failed), by=by, seed=seed, title=title)


def with_pristine(items: Sequence[Item], kind: str) -> list[Item]:
    """The items of one kind of degradation and all pristine items."""
    return [item for item in items if item.extra.get("kind") in (kind, "pristine")]


def summary(evaluation: Evaluation, items: Sequence[Item]) -> dict[str, Any]:
    """The entry of a set in report.json.

    "kinds": for each value of the column `kind` the mean SROCC within a content, over the files of that kind and the
    content's pristine version.
    """
    predictions = dict(zip(evaluation.paths, evaluation.prediction))
    kinds = sorted({item.extra.get("kind", "") for item in items} - {"", "pristine"})
    found = {}
    for kind in kinds:
        chosen = with_pristine(items, kind)
        within = within_contents(chosen, predictions, least=2)
        found[kind] = {
            "files": sum(item.extra["kind"] == kind for item in chosen),
            "srocc": within[0] if within else None,
        }
    return {
        "files": len(evaluation.paths),
        "contents": len({item.group for item in items if item.path in predictions}),
        "failed": len(evaluation.failed),
        "metrics": asdict(evaluation.all.plain),
        "fitted": asdict(evaluation.all.fitted),
        "intervals": evaluation.intervals,
        "within": evaluation.within and {"srocc": evaluation.within[0], "contents": evaluation.within[1]},
        "kinds": found,
    }


def markdown(report: dict[str, Any]) -> str:
    """report.md, from the content of report.json."""
    config, history = report["config"], report["history"]
    sampling, optim = config["sampling"], config["optim"]
    size = "x".join(str(g * f) for g, f in zip(sampling["grid"], sampling["fragment"]))
    rate, waiting = (np.mean([record[key] for record in history]) for key in ("clips_per_second", "waiting"))
    lines = [
        f"# {config['model']['size']} {config['model']['kind']} model, {sampling['mode']}, {size}",
        "",
        f"{optim['epochs']} epochs, batch {optim['batch']}, seed {config['seed']}; {rate:.2f} clips/s in training, "
        f"{waiting:.0%} of the time waiting for data.",
        "",
        "| set, last epoch | files | contents | SROCC (95 % over contents) | PLCC | KROCC | RMSE | within a content |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in report["sets"].items():
        m, (low, high), within = entry["metrics"], entry["intervals"]["srocc"], entry["within"]
        interval = f" ({low:.3f} to {high:.3f})" if low is not None else ""
        lines.append(
            f"| [{name}]({name}/report.md) | {entry['files']} | {entry['contents']} | "
            f"{as_cell(m['srocc'])}{interval} | {as_cell(m['plcc'])} | {as_cell(m['krocc'])} | {as_cell(m['rmse'])} | "
            f"{as_cell(within['srocc']) if within else ''} |"
        )
    for name, best in report["published_best_epoch_rule"].items():
        said = ", ".join(f"{metric.upper()} {as_cell(value)}" for metric, value in best.items())
        lines += ["", f"Best epoch on {name}, each metric on its own, as published results are (it flatters): {said}."]
    for name, entry in report["sets"].items():
        if entry["kinds"]:
            lines += [
                "",
                f"## {name}: order within a content, by kind",
                "",
                "| kind | files | mean SROCC |",
                "|---|---|---|",
            ]
            lines += [f"| {kind} | {k['files']} | {as_cell(k['srocc'])} |" for kind, k in entry["kinds"].items()]
    if report["failed"]:
        lines += ["", "## Left out", ""] + [f"- {path}: {reason}" for path, reason in report["failed"].items()]
    return "\n".join([*lines, ""])


def as_cell(value: float | None) -> str:
    """A metric in a table; nothing where it does not exist."""
    return "" if value is None else f"{value:.4g}"
