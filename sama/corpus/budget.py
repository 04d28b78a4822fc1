"""What a set will cost: seconds and bytes of each kind, measured on a sample, and what of a plan fits a budget."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sama.corpus.build import Recipe, Version, make_version
from sama.corpus.contents import MasterContent
from sama.corpus.kinds import resample
from sama.errors import OutputError

SAMPLE_FRAMES = 12  # at least
SAMPLE_MEGAPIXELS = 8  # of the clip: with fewer, starting programs would be most of the time
SAMPLE_PIXELS = 1280 * 720  # a frame of the sample has no more
CLIPS_HELD = 5  # copies of a clip that a worker holds at a time: undegraded, degraded, decoded twice, and room


@dataclass(frozen=True)
class Cost:
    """seconds of wall time, with all workers busy; size in bytes"""

    seconds: float
    size: float

    def __str__(self) -> str:
        return f"{spell(self.seconds)} and {self.size / 1e9:.2f} GB"


@dataclass(frozen=True)
class Prices:
    """Of each kind, for a million pixels of a clip or an image: seconds of one worker, and bytes. making: seconds of
    the undegraded frames."""

    seconds: Mapping[str, float]
    size: Mapping[str, float]
    making: float

    def cost(self, content: MasterContent, versions: Sequence[Version], num_frames: int, workers: int) -> Cost:
        """Of all versions of a content. num_frames: of each of their files"""
        megapixels = content.width * content.height * num_frames / 1e6
        seconds = sum(self.seconds[version.kind] + self.making * (version.kind == "pristine") for version in versions)
        return Cost(seconds * megapixels / workers, sum(self.size[version.kind] for version in versions) * megapixels)


def measure(recipe: Recipe, sample: MasterContent, workers: int, progress: Callable[[int, int], None]) -> Prices:
    """Make and label a short clip, or an image, of every kind at half of its range, as many at the same time as there
    are workers."""
    began = time.perf_counter()
    pixels = min(sample.width * sample.height, SAMPLE_PIXELS)
    count = max(SAMPLE_FRAMES, int(SAMPLE_MEGAPIXELS * 1e6 / pixels))
    clip = sample.pristine(1 if recipe.images else min(count, recipe.num_frames))
    making = (time.perf_counter() - began) / (clip.size / 1.5e6)
    scale = np.sqrt(SAMPLE_PIXELS / (sample.width * sample.height))
    if scale < 1 and not recipe.images:  # starting programs is much of an image's time, so its size stays
        width, height = (int(length * scale) // 4 * 4 for length in (sample.width, sample.height))
        clip = resample(clip, width, height, Image.Resampling.BOX)
    megapixels = clip.size / 1.5e6
    label = recipe.labeller.prepare(sample.name, clip)
    names = list(recipe.kinds)
    done = 0

    def one(name: str) -> tuple[float, float]:
        nonlocal done
        began = time.perf_counter()
        kind = recipe.kinds[name]
        version = Version(sample.name, 0, name, 0, kind.strength(0.5, "train"))
        path, _, shown = make_version(recipe, version, clip, Path(folder))
        label(shown)
        done += 1
        progress(done, len(names))
        return (time.perf_counter() - began) / megapixels, Path(folder, path).stat().st_size / megapixels

    with tempfile.TemporaryDirectory(prefix="sama-sample-") as folder, ThreadPoolExecutor(workers) as pool:
        Path(folder, recipe.folder).mkdir()
        try:
            measured = dict(zip(names, pool.map(one, names)))
        except BaseException:
            recipe.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return Prices({name: m[0] for name, m in measured.items()}, {name: m[1] for name, m in measured.items()}, making)


def within(costs: Sequence[Cost], hours: float | None, gigabytes: float | None) -> int:
    """How many contents, of those in order, fit a budget."""
    seconds, size = np.cumsum([cost.seconds for cost in costs]), np.cumsum([cost.size for cost in costs])
    count = len(costs)
    if hours is not None:
        count = min(count, int(np.searchsorted(seconds, hours * 3600, side="right")))
    if gigabytes is not None:
        count = min(count, int(np.searchsorted(size, gigabytes * 1e9, side="right")))
    return count


def total(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(cost.seconds for cost in costs), sum(cost.size for cost in costs))


def check_space(folder: Path, size: float) -> None:
    """`OutputError` where the disk of a folder has less room than that many bytes and a twentieth."""
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < 1.05 * size:
        raise OutputError(
            f"{folder}: the set will take about {size / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free: give "
            "--gigabytes, or another folder"
        )


def workers_for(contents: Sequence[MasterContent], num_frames: int) -> int:
    """The number of cores, or of workers that the free memory holds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    largest = max((content.width * content.height for content in contents), default=1)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return cores
    return max(1, min(cores, int(free // (CLIPS_HELD * largest * num_frames * 3 / 2))))


def spell(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
