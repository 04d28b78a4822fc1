"""What a person sees of training: progress, TensorBoard scalars, and reports."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sama.data import Item
from sama.errors import InputError
from sama.files import replace_file
from sama.metrics import Metrics, metrics, published_best

if TYPE_CHECKING:
    import torch

    from sama.config import Config
    from sama.feed import Batch, Feed

RECENT = 256  # predictions that the progress bar's SROCC is over


class Log:
    """Progress of one run, in its folder. failed: the files that could not be read, and why, before it went on; those
    that follow are added. quiet: says and writes nothing (of all ranks but the first)."""

    def __init__(
        self,
        out: Path,
        config: Config,
        sets: Mapping[str, Sequence[Item]],
        feed: Feed,
        failed: dict[str, str],
        *,
        quiet: bool,
    ):
        self.out, self.config, self.sets, self.feed, self.quiet = out, config, sets, feed, quiet
        self.saved = time.perf_counter()
        self.failed = failed
        self.bar = self.board = None
        if not quiet:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out))
            sizes = ", ".join(f"{len(items)} {name}" for name, items in sets.items())
            print(f"{out}: {sizes}; {len(feed)} batches an epoch", file=sys.stderr)

    def begin(self, epoch: int, batch: int, losses: Sequence[float]):
        """An epoch begins, or goes on at a batch after those with these losses."""
        self.losses, self.loss = [*losses], math.nan
        self.recent: list[tuple[float, float]] = []
        self.files, self.started = 0, time.perf_counter()
        self.started_whole = batch == 0
        self.meter = self.feed.meter.waited, self.feed.meter.running
        if not self.quiet:
            from tqdm import tqdm

            title = f"epoch {epoch + 1}/{self.config.optim.epochs}"
            self.bar = tqdm(total=len(self.feed), initial=batch, desc=title, leave=False, disable=None)

    def batch(self, batch: Batch, loss, predictions: torch.Tensor, labels: torch.Tensor):
        """A batch went through; predictions and labels of all ranks."""
        self.failures(batch.failed)
        self.loss = loss.item()
        if len(labels) > (1 if self.config.model.kind == "video" else 0):  # of fewer, nothing is learnt
            self.losses.append(self.loss)
        self.files += len(labels)
        self.recent = [*self.recent, *zip(predictions.tolist(), labels.tolist())][-RECENT:]

    def step(self, epoch: int, batch: Batch, norm, lr: float):
        """A step of the optimiser is done."""
        if self.quiet:
            return
        at = epoch * len(self.feed) + batch.index
        for name, value in (("loss", self.loss), ("gradient norm", float(norm)), ("learning rate", lr)):
            self.board.add_scalar(f"train/{name}", value, at)
        self.bar.update(batch.index + 1 - self.bar.n)
        srocc = metrics(*zip(*self.recent)).srocc if self.recent else math.nan
        rate = self.files / (time.perf_counter() - self.started)
        self.bar.set_postfix_str(
            f"loss {self.loss:.3f}, SROCC {srocc:.3f}, {rate:.2f} clips/s, waiting {self._waiting():.0%}"
        )

    def checkpoint_is_due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch; if so, it is taken to be made now."""
        if self.quiet or time.perf_counter() - self.saved < 60 * self.config.checkpoint_minutes:
            return False
        self.saved = time.perf_counter()
        return True

    def end(self, epoch: int) -> dict[str, Any]:
        """The record of an epoch."""
        seconds = time.perf_counter() - self.started
        record = {
            "epoch": epoch,
            "loss": float(np.mean(self.losses)) if self.losses else math.nan,
            "seconds": round(seconds, 2),
            "clips_per_second": round(self.files / seconds, 3),
            "waiting": round(self._waiting(), 4),
        }
        self.saved = time.perf_counter()
        if not self.quiet:
            self.bar.close()
            self.board.add_scalar("epoch/clips per second", record["clips_per_second"], epoch)
            self.board.add_scalar("epoch/share of time waiting for data", record["waiting"], epoch)
        return record

    def validate(self, epoch: int, name: str, scored: dict[str, Any]) -> dict[str, float]:
        """A validation set's metrics, for the record of an epoch. ValueError where none of its files could be read."""
        self.failures(scored["failed"])
        if not scored["scores"]:
            raise InputError(f"none of the {len(self.sets[name])} files of the set {name!r} could be read")
        result = asdict(metrics(*pairs(scored, self.sets[name])))
        if not self.quiet:
            for metric, value in result.items():
                self.board.add_scalar(f"{name}/{metric}", value, epoch)
            loss = float(np.mean(self.losses)) if self.losses else math.nan
            print(f"epoch {epoch + 1}: loss {loss:.4f}, {name} {Metrics(**result)}", file=sys.stderr)
        return result

    def report(self, history: list[dict[str, Any]], finals: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Write report.json and report.md, and each set's own report in its folder; the content of the first."""
        from sama.evaluate import plain, write_report

        self.board.close()
        validations = [record["validation"] for record in history if "validation" in record]
        names = validations[-1] if validations else ()
        best = {name: asdict(published_best([Metrics(**one[name]) for one in validations])) for name in names}
        sets = {}
        for name, scored in finals.items():
            self.failures(scored["failed"])
            evaluation = evaluate(scored, self.sets[name], f"{self.out.name}: {name}", self.config.seed)
            write_report(evaluation, self.out / name)
            sets[name] = summary(evaluation, self.sets[name])
        content = plain(
            {
                "config": asdict(self.config),
                "sets": sets,
                "published_best_epoch_rule": best,
                "history": history,
                "failed": self.failed,
            }
        )
        replace_file(self.out / "report.json", json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
        replace_file(self.out / "report.md", markdown(content).encode())
        print(f"report: {self.out / 'report.md'}", file=sys.stderr)
        return content

    def failures(self, failed: Sequence[tuple[str, str]]):
        """Say of each file that cannot be read once that it is left out."""
        for path, reason in failed:
            if path not in self.failed:
                self.failed[path] = reason
                if not self.quiet:
                    print(f"left out: {path}: {reason}", file=sys.stderr)

    def first_failure(self) -> str:
        """One of the files that failed, and why."""
        return "; ".join(f"{path}: {reason}" for path, reason in [*self.failed.items()][:1])

    def _waiting(self) -> float:
        waited, running = self.feed.meter.waited - self.meter[0], self.feed.meter.running - self.meter[1]
        return waited / running if running else 0.0


def pairs(scored: dict[str, Any], items: Sequence[Item]) -> tuple[list[float], list[float]]:
    """Scores and labels of the files that were scored."""
    return list(scored["scores"].values()), [items[number].mos for number in scored["scores"]]


def evaluate(scored: dict[str, Any], items: Sequence[Item], title: str, seed: int):
    """The scores of a set as `sama.evaluate.Evaluation`."""
    from sama.evaluate import evaluate_predictions

    predictions = {items[number].path: score for number, score in scored["scores"].items()}
    by = "kind" if any("kind" in item.extra for item in items) else None
    return evaluate_predictions(items, predictions, failed=dict(scored["failed"]), by=by, seed=seed, title=title)


def with_pristine(items: Sequence[Item], kind: str) -> list[Item]:
    """The items of a kind of degradation, and the pristine versions."""
    return [item for item in items if item.extra.get("kind") in (kind, "pristine")]


def summary(evaluation, items: Sequence[Item]) -> dict[str, Any]:
    """What the report of a run says of a set. kinds: for each value of the column `kind`, how well its files are
    ordered within a content, the content's pristine version among them."""
    from sama.evaluate import within_contents

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
    """The report of a run for a reader."""
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
            f"| [{name}]({name}/report.md) | {entry['files']} | {entry['contents']} | {number(m['srocc'])}{interval} | "
            f"{number(m['plcc'])} | {number(m['krocc'])} | {number(m['rmse'])} | "
            f"{number(within['srocc']) if within else ''} |"
        )
    for name, best in report["published_best_epoch_rule"].items():
        said = ", ".join(f"{metric.upper()} {number(value)}" for metric, value in best.items())
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
            lines += [f"| {kind} | {k['files']} | {number(k['srocc'])} |" for kind, k in entry["kinds"].items()]
    if report["failed"]:
        lines += ["", "## Left out", ""] + [f"- {path}: {reason}" for path, reason in report["failed"].items()]
    return "\n".join([*lines, ""])


def number(value: float | None) -> str:
    """A metric in a table; nothing where it does not exist."""
    return "" if value is None else f"{value:.4g}"


def write_sweep(out: Path, names: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]]):
    """The runs of a sweep in `sweep.json` and `sweep.md`: for each sampling the mean over runs and a 95 % interval of
    the mean (Student's t), and as the protocol has it the medians over runs, of the last epoch and of the best one."""
    kept = ("sets", "published_best_epoch_rule")
    runs = [name | {key: report[key] for key in kept} for name, report in zip(names, reports)]
    replace_file(out / "sweep.json", json.dumps(runs, indent=1).encode())
    groups, bests = defaultdict(list), defaultdict(list)
    for run in runs:
        sampling = run.get("sampling", "all runs")
        for name, entry in run["sets"].items():
            groups[sampling, name].append(entry)
        for name, best in run["published_best_epoch_rule"].items():
            bests[sampling, name].append(best)
    lines = [
        "| sampling | set | runs | SROCC, mean (95 %) | SROCC within a content, mean (95 %) |",
        "|---|---|---|---|---|",
    ]
    for (sampling, name), entries in groups.items():
        srocc = [entry["metrics"]["srocc"] for entry in entries]
        inner = [entry["within"]["srocc"] for entry in entries if entry["within"]]
        lines.append(f"| {sampling} | {name} | {len(entries)} | {mean_interval(srocc)} | {mean_interval(inner)} |")
    metric_names = [field.name for field in fields(Metrics)]
    lines += [
        "",
        "Medians over runs; the best epoch of each metric on its own is as published results are (it flatters):",
        "",
        f"| sampling | set | epoch | {' | '.join(name.upper() for name in metric_names)} |",
        "|---|---|---|" + "---|" * len(metric_names),
    ]
    for key, entries in groups.items():
        rules = {"last": [entry["metrics"] for entry in entries], "best": bests.get(key, [])}
        for rule, found in rules.items():
            if found:
                cells = [number(median([one[name] for one in found])) for name in metric_names]
                lines.append(f"| {key[0]} | {key[1]} | {rule} | {' | '.join(cells)} |")
    replace_file(out / "sweep.md", "\n".join([*lines, ""]).encode())
    print(out / "sweep.md", file=sys.stderr)


def median(values: Sequence[float | None]) -> float | None:
    """None where one of them does not exist."""
    return None if None in values else float(np.median(values))


def mean_interval(values: Sequence[float | None]) -> str:
    """Mean of correlations and its 95 % interval (Student's t, cut to -1..1); of one, itself; nothing where one does
    not exist."""
    from scipy import stats

    if None in values or not values:
        return ""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.4f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return f"{mean:.4f} ({max(-1.0, mean - half):.3f} to {min(1.0, mean + half):.3f})"
