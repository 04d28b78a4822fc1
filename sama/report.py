"""What a person sees of training: progress, TensorBoard scalars, and a report in Markdown, JSON and a picture."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sama.data import Item
from sama.metrics import Metrics, bootstrap, fitted_metrics, metrics, published_best
from sama.score import replace_file

if TYPE_CHECKING:
    import torch

    from sama.config import Config
    from sama.feed import Batch, Feed

RECENT = 256  # predictions that the progress bar's SROCC is over


class Log:
    """Progress of one run, in its folder. quiet: says and writes nothing (of all ranks but the first)."""

    def __init__(self, out: Path, config: Config, sets: Mapping[str, Sequence[Item]], feed: Feed, *, quiet: bool):
        self.out, self.config, self.sets, self.feed, self.quiet = out, config, sets, feed, quiet
        self.saved = time.perf_counter()
        self.failed: dict[str, str] = {}
        self.bar = self.board = None
        if not quiet:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out))
            sizes = ", ".join(f"{len(items)} {name}" for name, items in sets.items())
            print(f"{out}: {sizes}; {len(feed)} batches an epoch", file=sys.stderr)

    def begin(self, epoch: int, batch: int):
        """An epoch begins, at a batch."""
        self.losses: list[float] = []
        self.recent: list[tuple[float, float]] = []
        self.files, self.started = 0, time.perf_counter()
        self.meter = self.feed.meter.waited, self.feed.meter.running
        if not self.quiet:
            from tqdm import tqdm

            title = f"epoch {epoch + 1}/{self.config.optim.epochs}"
            self.bar = tqdm(total=len(self.feed), initial=batch, desc=title, leave=False, disable=None)

    def step(self, epoch: int, batch: Batch, loss, norm, lr: float, predictions: torch.Tensor, labels: torch.Tensor):
        """A step of the optimiser is done."""
        self._note(batch.failed)
        self.losses.append(loss.item())
        self.files += len(labels)
        if self.quiet:
            return
        self.recent += zip(predictions.tolist(), labels.tolist())
        self.recent = self.recent[-RECENT:]
        at = epoch * len(self.feed) + batch.index
        for name, value in (("loss", self.losses[-1]), ("gradient norm", float(norm)), ("learning rate", lr)):
            self.board.add_scalar(f"train/{name}", value, at)
        self.bar.update(batch.index + 1 - self.bar.n)
        srocc = metrics(*zip(*self.recent)).srocc if self.recent else math.nan
        rate = self.files / (time.perf_counter() - self.started)
        self.bar.set_postfix_str(
            f"loss {self.losses[-1]:.3f}, SROCC {srocc:.3f}, {rate:.2f} clips/s, waiting {self._waiting():.0%}"
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

    def validate(self, epoch: int, scored: dict[str, Any]) -> dict[str, Any]:
        """The validation set's metrics, for the record of an epoch."""
        self._note(scored["failed"])
        result = asdict(metrics(*pairs(scored, self.sets["val"])))
        if not self.quiet:
            for name, value in result.items():
                self.board.add_scalar(f"val/{name}", value, epoch)
            loss = float(np.mean(self.losses)) if self.losses else math.nan
            print(f"epoch {epoch + 1}: loss {loss:.4f}, val {Metrics(**result)}", file=sys.stderr)
        return {"val": result}

    def report(self, history: list[dict[str, Any]], finals: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Write report.json, report.md, predictions.csv and scatter.png; the content of the first."""
        self.board.close()
        validated = [Metrics(**record["val"]) for record in history if "val" in record]
        sets = {name: summary(scored, self.sets[name], self.config.seed) for name, scored in finals.items()}
        content = {
            "config": json.loads(json.dumps(asdict(self.config))),
            "sets": sets,
            "published_best_epoch_rule": asdict(published_best(validated)) if validated else None,
            "history": history,
            "failed": self.failed,
        }
        replace_file(self.out / "report.json", json.dumps(content, indent=1).encode())
        replace_file(self.out / "report.md", markdown(content).encode())
        for name, scored in finals.items():
            labelled = ((score, self.sets[name][number]) for number, score in scored["scores"].items())
            lines = [f"{score!r},{item.mos!r},{item.path}" for score, item in labelled]
            replace_file(self.out / f"predictions-{name}.csv", "\n".join(["score,mos,path", *lines, ""]).encode())
        scatter(self.out / "scatter.png", {name: pairs(scored, self.sets[name]) for name, scored in finals.items()})
        print(f"{self.out / 'report.md'}", file=sys.stderr)
        return content

    def _note(self, failed: Sequence[tuple[str, str]]):
        """Say of each file that cannot be read once that it is left out."""
        for path, reason in failed:
            if path not in self.failed:
                self.failed[path] = reason
                if not self.quiet:
                    print(f"left out: {path}: {reason}", file=sys.stderr)

    def _waiting(self) -> float:
        waited, running = self.feed.meter.waited - self.meter[0], self.feed.meter.running - self.meter[1]
        return waited / running if running else 0.0


def pairs(scored: dict[str, Any], items: Sequence[Item]) -> tuple[list[float], list[float]]:
    """Scores and labels of the files that were scored."""
    return list(scored["scores"].values()), [items[number].mos for number in scored["scores"]]


def summary(scored: dict[str, Any], items: Sequence[Item], seed: int) -> dict[str, Any]:
    """Everything that is said of the scores of a set: metrics with intervals over contents, with a logistic fit, and,
    where contents have several files, how well files are ordered within a content, over all and for each `kind`."""
    predictions, labels = pairs(scored, items)
    kept = [items[number] for number in scored["scores"]]
    groups = [item.group for item in kept]
    result = {
        "files": len(kept),
        "contents": len(set(groups)),
        "failed": len(scored["failed"]),
        "metrics": asdict(metrics(predictions, labels)),
        "fitted": asdict(fitted_metrics(predictions, labels)),
        "intervals": bootstrap(predictions, labels, seed=seed, groups=groups) if kept else {},
    }
    if len(kept) >= 3 * len(set(groups)):
        result["within content"] = within(predictions, kept)
        kinds = sorted({item.extra.get("kind", "") for item in kept} - {"", "pristine"})
        if kinds:
            result["kinds"] = {
                kind: within(predictions, kept, {kind, "pristine"})
                | {"files": sum(item.extra["kind"] == kind for item in kept)}
                for kind in kinds
            }
    return result


def within(predictions: Sequence[float], items: Sequence[Item], kinds: set[str] | None = None) -> dict[str, Any]:
    """Mean over contents of the SROCC of each one's files, of some kinds: {"srocc", "contents"}."""
    by_group = defaultdict(list)
    for prediction, item in zip(predictions, items):
        if kinds is None or item.extra["kind"] in kinds:
            by_group[item.group].append((prediction, item.mos))
    values = [metrics(*zip(*group)).srocc for group in by_group.values() if len(group) >= 3]
    values = [value for value in values if value == value]
    return {"srocc": float(np.mean(values)) if values else math.nan, "contents": len(values)}


def markdown(report: dict[str, Any]) -> str:
    """The report for a reader."""
    config, history = report["config"], report["history"]
    sampling, optim = config["sampling"], config["optim"]
    size = "x".join(str(g * f) for g, f in zip(sampling["grid"], sampling["fragment"]))
    lines = [
        f"# {config['model']['size']} {config['model']['kind']} model, {sampling['mode']}, {size}",
        "",
        f"{optim['epochs']} epochs, batch {optim['batch']}, seed {config['seed']}; "
        f"{np.mean([record['clips_per_second'] for record in history]):.2f} clips/s in training, "
        f"{np.mean([record['waiting'] for record in history]):.0%} of the time waiting for data.",
        "",
        "| set, last epoch | files | contents | SROCC (95 % over contents) | PLCC | KROCC | RMSE | PLCC, RMSE fitted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in report["sets"].items():
        m, fit, (low, high) = entry["metrics"], entry["fitted"], entry["intervals"].get("srocc", (math.nan, math.nan))
        lines.append(
            f"| {name} | {entry['files']} | {entry['contents']} | {m['srocc']:.4f} ({low:.3f} to {high:.3f}) | "
            f"{m['plcc']:.4f} | {m['krocc']:.4f} | {m['rmse']:.3f} | {fit['plcc']:.4f}, {fit['rmse']:.3f} |"
        )
    best = report["published_best_epoch_rule"]
    if best:
        lines += [
            "",
            "Best epoch on the validation set, each metric on its own, as published results are (it flatters): "
            f"{Metrics(**best)}.",
        ]
    for name, entry in report["sets"].items():
        if "within content" in entry:
            whole = entry["within content"]
            lines += ["", f"## Order within a content: {name}", ""]
            lines += [f"Mean SROCC over {whole['contents']} contents: {whole['srocc']:.3f}."]
            if "kinds" in entry:
                lines += ["", "| kind | files | SROCC within a content |", "|---|---|---|"]
                lines += [f"| {kind} | {k['files']} | {k['srocc']:.3f} |" for kind, k in entry["kinds"].items()]
    if report["failed"]:
        lines += ["", "## Left out", ""] + [f"- {path}: {reason}" for path, reason in report["failed"].items()]
    return "\n".join([*lines, "", "![predictions and labels](scatter.png)", ""])


def scatter(path: Path, sets: Mapping[str, tuple[Sequence[float], Sequence[float]]]):
    """Scores against labels, a panel a set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * max(1, len(sets)), 4), layout="constrained")
    axes = figure.subplots(1, max(1, len(sets)), squeeze=False)[0]
    for axis, (name, (scores, labels)) in zip(axes, sets.items()):
        axis.scatter(scores, labels, s=9, alpha=0.6, color="#1670a8", linewidths=0)
        axis.set_xlabel("score")
        axis.set_ylabel("label")
        axis.set_title(f"{name}: SROCC {metrics(scores, labels).srocc:.3f}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def write_sweep(out: Path, names: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]]):
    """The runs of a sweep in `sweep.json` and `sweep.md`: for each sampling the mean over runs, a 95 % interval of the
    mean (Student's t) and, as the protocol has it, the median over splits."""
    runs = [
        name | {"sets": {key: {k: v for k, v in entry.items() if k != "intervals"} for key, entry in r["sets"].items()}}
        for name, r in zip(names, reports)
    ]
    replace_file(out / "sweep.json", json.dumps(runs, indent=1).encode())
    groups = defaultdict(list)
    for run in runs:
        for key, entry in run["sets"].items():
            groups[run.get("sampling", "all runs"), key].append(entry)
    lines = [
        "| sampling | set | runs | SROCC, mean (95 %) | median | PLCC, median | SROCC within a content, mean (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for (sampling, key), entries in groups.items():
        srocc = [entry["metrics"]["srocc"] for entry in entries]
        plcc = [entry["metrics"]["plcc"] for entry in entries]
        inner = [entry["within content"]["srocc"] for entry in entries if "within content" in entry]
        lines.append(
            f"| {sampling} | {key} | {len(entries)} | {mean_interval(srocc)} | {np.median(srocc):.4f} | "
            f"{np.median(plcc):.4f} | {mean_interval(inner) if inner else ''} |"
        )
    replace_file(out / "sweep.md", "\n".join([*lines, ""]).encode())
    print(out / "sweep.md", file=sys.stderr)


def mean_interval(values: Sequence[float]) -> str:
    """Mean and its 95 % interval (Student's t); of one value, itself."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.4f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return f"{mean:.4f} ({mean - half:.3f} to {mean + half:.3f})"
