"""What a person sees while training goes on: messages, a progress bar, TensorBoard scalars."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sama.errors import InputError
from sama.labels import Item
from sama.metrics import Metrics, metrics

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from sama.feed import Batch, Feed
    from sama.training.cache import CachedFeed
    from sama.training.config import Config
    from sama.training.events import EventFile

RECENT = 256  # predictions that the progress bar's SROCC is over


class Log:
    """Progress of one run.

    out: the run's folder, for TensorBoard; sets: items by set; feed: of the training set
    failed: unreadable files and why, of the run before it was resumed; those found now are added
    quiet: write and print nothing, on all ranks but the first
    """

    def __init__(
        self,
        out: Path,
        config: Config,
        sets: Mapping[str, Sequence[Item]],
        feed: Feed | CachedFeed,
        failed: dict[str, str],
        *,
        quiet: bool,
    ) -> None:
        self.out, self.config, self.sets, self.feed, self.quiet = out, config, sets, feed, quiet
        self.saved = time.perf_counter()
        self.failed = failed
        self.bar: tqdm | None = None
        self.board: EventFile | None = None
        if not quiet:
            from sama.training.events import EventFile

            self.board = EventFile(out)
            sizes = ", ".join(f"{len(items)} {name}" for name, items in sets.items())
            print(f"{out}: {sizes}; {len(feed)} batches an epoch", file=sys.stderr)

    def begin(self, epoch: int, batch: int, losses: Sequence[float]) -> None:
        """Begin an epoch, or resume it at a batch; losses: of the batches before."""
        self.losses, self.loss = [*losses], math.nan
        self.recent: list[tuple[float, float]] = []
        self.files, self.started = 0, time.perf_counter()
        self.from_first_batch = batch == 0
        self.meter = self.feed.meter.waited, self.feed.meter.running
        if not self.quiet:
            from tqdm import tqdm

            title = f"epoch {epoch + 1}/{self.config.optim.epochs}"
            self.bar = tqdm(total=len(self.feed), initial=batch, desc=title, leave=False, disable=None)

    def batch(self, batch: Batch, loss: torch.Tensor, predictions: torch.Tensor, labels: torch.Tensor) -> None:
        """Note a batch; predictions and labels: of all ranks, float [n]."""
        self.failures(batch.failed)
        self.loss = loss.item()
        if len(labels) > (1 if self.config.model.kind == "video" else 0):  # of fewer, nothing is learnt
            self.losses.append(self.loss)
        self.files += len(labels)
        self.recent = [*self.recent, *zip(predictions.tolist(), labels.tolist())][-RECENT:]

    def step(self, epoch: int, batch: Batch, norm: torch.Tensor, lr: float) -> None:
        """Note a step of the optimiser: gradient norm before clipping, learning rate of the head."""
        if self.bar is None or self.board is None:
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
        """Whether `checkpoint_minutes` have passed since the last checkpoint; if so, the clock starts anew."""
        if self.quiet or time.perf_counter() - self.saved < 60 * self.config.checkpoint_minutes:
            return False
        self.saved = time.perf_counter()
        return True

    def end(self, epoch: int) -> dict[str, Any]:
        """End an epoch: its record for the history."""
        seconds = time.perf_counter() - self.started
        record = {
            "epoch": epoch,
            "loss": float(np.mean(self.losses)) if self.losses else math.nan,
            "seconds": round(seconds, 2),
            "clips_per_second": round(self.files / seconds, 3),
            "waiting": round(self._waiting(), 4),
        }
        self.saved = time.perf_counter()
        if self.bar is not None and self.board is not None:
            self.bar.close()
            self.board.add_scalar("epoch/clips per second", record["clips_per_second"], epoch)
            self.board.add_scalar("epoch/share of time waiting for data", record["waiting"], epoch)
        return record

    def validate(
        self, epoch: int, name: str, scores: Mapping[int, float], failed: Sequence[tuple[str, str]]
    ) -> dict[str, float]:
        """The metrics of a validation set, for the record of an epoch.

        scores: by the item's number; failed: (path, reason). `InputError` where none of its files could be read.
        """
        self.failures(failed)
        if not scores:
            raise InputError(f"none of the {len(self.sets[name])} files of the set {name!r} could be read")
        labels = [self.sets[name][number].mos for number in scores]
        result = asdict(metrics(list(scores.values()), labels))
        if self.board is not None:
            for metric, value in result.items():
                self.board.add_scalar(f"{name}/{metric}", value, epoch)
            loss = float(np.mean(self.losses)) if self.losses else math.nan
            print(f"epoch {epoch + 1}: loss {loss:.4f}, {name} {Metrics(**result)}", file=sys.stderr)
        return result

    def failures(self, failed: Sequence[tuple[str, str]]) -> None:
        """Note files that cannot be read; each is printed once."""
        for path, reason in failed:
            if path not in self.failed:
                self.failed[path] = reason
                if not self.quiet:
                    print(f"left out: {path}: {reason}", file=sys.stderr)

    def first_failure(self) -> str:
        """One of the files that failed, and why."""
        return "; ".join(f"{path}: {reason}" for path, reason in [*self.failed.items()][:1])

    def _waiting(self) -> float:
        """Share of the epoch's time that training has waited for data, 0..1."""
        waited, running = self.feed.meter.waited - self.meter[0], self.feed.meter.running - self.meter[1]
        return waited / running if running else 0.0
