"""Sampled inputs kept on disk, so that an epoch decodes nothing: `CachedFeed`.

A file is decoded once for each of its draws, before the first epoch. What the sampler gives, 0 to 255 before it is
normalised, is rounded to uint8: a value of the full resolution keeps its own, one between pixels moves by at most half
a grey level. An epoch takes one draw of each file, of which short clips take the first frames.

    FOLDER/NAME-DIGEST.u8      uint8 [slots, draws, T/2, H/4, W/4, 96] of clips, [slots, draws, 3, H, W] of images
    FOLDER/NAME-DIGEST.f32     float32 [slots, draws, T/2, rows, columns, MEASURES], where undegraded files are given
    FOLDER/NAME-DIGEST.json    the slot of each file, and which draws are there; an interrupted run goes on from it

Where the undegraded version of a file is known, its fragments are sampled by the same draws and compared with the
file's, once too, and the fragments get labels of their own (`sama.training.local`).

The digest is over the sampling and the seed. A file is known by its name, size and time of change, on which its draws
depend too: a set that grows keeps what was sampled, and its inputs do not depend on what was sampled before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sama.backends import MEAN, STD
from sama.errors import OutputError
from sama.feed import Batch, Feed
from sama.files import replace_file
from sama.kernels.layout import PATCH, TOKEN
from sama.models.swin3d import cut_patches
from sama.prefetch import Meter
from sama.training.local import MEASURES, local_labels, measure

SAVE_EVERY = 20  # seconds between two notes of what is done
FREE_BYTES = 1 << 30  # that stay on the disk


class _Filling(Feed):
    """A feed over some of its files in their order, whose draws depend on each file's key."""

    numbers: np.ndarray
    keys: list[str]

    @classmethod
    def of(cls, feed: Feed, keys: list[str], files: Sequence[str]) -> _Filling:
        """As a feed, of other files whose draws are those of the keys."""
        filling = cls.__new__(cls)
        filling.__dict__.update(feed.__dict__)
        filling.keys, filling.files = keys, list(files)
        return filling

    def batches(self, epoch: int = 0) -> list[np.ndarray]:
        return [self.numbers[k : k + self.batch] for k in range(0, len(self.numbers), self.batch)]

    def _generator(self, number: int, epoch: int) -> np.random.Generator | None:
        return np.random.default_rng([self.seed, epoch, int(self.keys[number], 16)]) if self.train else None


class CachedFeed:
    """Batches as those of the `Feed` that it is made of, from inputs that were sampled once.

    feed: of the files; its sampler gives patches or images, not normalised. A feed in training has `draws` inputs of
        each file, another one its only one
    folder, name: of the cache; draws: inputs kept of each file in training
    references: of each file its undegraded version, of the same size and frames; "" where it is not known
    progress: called with (files done, files in all) while the cache is filled

    `OutputError` where the disk has no room for it.
    """

    def __init__(
        self,
        feed: Feed,
        folder: str | os.PathLike[str],
        name: str,
        *,
        draws: int = 1,
        references: Sequence[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.feed, self.draws = feed, draws if feed.train else 1
        self.frames = feed.clip_len
        self.meter = Meter()
        self.decoders = feed.decoders
        base = Path(folder) / f"{name}-{self._digest()}"
        self._path, self._notes = base.with_suffix(".u8"), base.with_suffix(".json")
        self._keys = [_key(path) for path in feed.files]
        self.failed: dict[int, str] = {}
        self.unmeasured: list[tuple[str, str]] = []  # undegraded files that could not be read, and why
        self._local: torch.Tensor | None = None
        self._open()
        self._fill(progress)
        if any(references):
            self._measure(references, progress)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.feed)

    def _digest(self) -> str:
        feed, sampler = self.feed, self.feed.sampler
        told = [str(sampler.mode), sampler.grid, sampler.fragment, feed.clip_len, feed.num_clips, feed.interval]
        told += [feed.train, feed.seed, self.draws, feed.images, feed.rotate]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    def _open(self) -> None:
        """The file of inputs, with a slot for every file, and what is known of it."""
        feed = self.feed
        height, width = feed.sampler.size
        pt, ph, pw = PATCH
        one: tuple[int, ...] = (3, height, width)
        if not feed.images:
            one = (feed.num_clips * feed.clip_len // pt, height // ph, width // pw, 3 * pt * ph * pw)
        self._slots: dict[str, int] = {}
        self._measured: dict[str, dict[str, str]] = {}  # by the file's key and the draw, the reference's key
        done: dict[str, list[int]] = {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._notes.exists():
            try:
                notes = json.loads(self._notes.read_text())
                self._slots, done = dict(notes["slots"]), dict(notes["done"])
                self._measured = dict(notes.get("measured", {}))
            except (ValueError, KeyError, TypeError):
                self._slots, done, self._measured = {}, {}, {}  # damaged notes: all is sampled again
        for key in self._keys:
            self._slots.setdefault(key, len(self._slots))
        count = len(self._slots)
        size = count * self.draws * int(np.prod(one, dtype=np.int64))
        there = self._path.stat().st_size if self._path.exists() else 0
        free = shutil.disk_usage(self._path.parent).free
        if size > there and free < size - there + FREE_BYTES:
            raise OutputError(
                f"{self._path.parent}: the cache of sampled inputs takes {(size - there) / 1e9:.1f} GB, and the disk "
                f"has {free / 1e9:.1f} GB free: give another data.cache, or fewer data.draws"
            )
        with open(self._path, "ab") as file:
            file.truncate(max(size, there))
        self._inputs = np.memmap(self._path, np.uint8, "r+", shape=(count, self.draws, *one))
        self._done = np.zeros((count, self.draws), bool)
        for key, draws in done.items():
            self._done[self._slots[key], draws] = True
        self._slot = np.array([self._slots[key] for key in self._keys])

    def _fill(self, progress: Callable[[int, int], None] | None) -> None:
        """Sample what is not there yet."""
        filling = _Filling.of(self.feed, self._keys, self.feed.files)
        saved = time.monotonic()
        for draw in range(self.draws):
            wanted = [n for n, slot in enumerate(self._slot) if not self._done[slot, draw] and n not in self.failed]
            filling.numbers = np.array(wanted, np.int64)
            for batch in filling.epoch(draw) if wanted else ():
                if batch.x is not None:
                    values = batch.x.round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
                    slots = self._slot[batch.numbers]
                    self._inputs[slots, draw] = values.reshape(len(batch), *self._inputs.shape[2:])
                    self._done[slots, draw] = True
                reasons = dict(batch.failed)
                asked = filling.batches()[batch.index].tolist()
                self.failed |= {n: reasons[self.feed.files[n]] for n in asked if self.feed.files[n] in reasons}
                if progress:
                    progress(int(self._done[self._slot].sum()) // self.draws, len(self._slot))
                if time.monotonic() - saved > SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
            if wanted:
                self._save()

    def _save(self) -> None:
        self._inputs.flush()
        done = {key: np.flatnonzero(self._done[slot]).tolist() for key, slot in self._slots.items()}
        notes = {"slots": self._slots, "done": done, "measured": self._measured}
        replace_file(self._notes, json.dumps(notes).encode())

    def _measure(self, references: Sequence[str], progress: Callable[[int, int], None] | None) -> None:
        """Compare what was sampled with the same of the undegraded files, and label each square of 32x32 pixels."""
        height, width = self.feed.sampler.size
        grid = height // TOKEN, width // TOKEN
        shape = (*self._done.shape, 1 if self.feed.images else self._inputs.shape[2], *grid, MEASURES)
        path = self._path.with_suffix(".f32")
        if not path.exists():
            self._measured = {}
        with open(path, "ab") as file:
            file.truncate(max(4 * int(np.prod(shape)), path.stat().st_size))
        values = np.memmap(path, np.float32, "r+", shape=shape)
        known = np.array([bool(reference) and n not in self.failed for n, reference in enumerate(references)])
        total = int(known.sum())
        theirs = [_key(reference) if reference else "" for reference in references]
        filling = _Filling.of(self.feed, self._keys, references)
        saved = time.monotonic()
        for draw in range(self.draws):
            is_there = [self._measured.get(key, {}).get(str(draw)) == one for key, one in zip(self._keys, theirs)]
            filling.numbers = np.flatnonzero(known & ~np.array(is_there, bool))
            count = total - len(filling.numbers)
            for batch in filling.epoch(draw) if len(filling.numbers) else ():
                for number, x in zip(batch.numbers.tolist(), () if batch.x is None else batch.x):
                    slot = self._slot[number]
                    reference, shown = _as_patches(x.cpu().round()), _as_patches(self._inputs[slot, draw])
                    values[slot, draw] = measure(reference, shown, grid).numpy()
                    self._measured.setdefault(self._keys[number], {})[str(draw)] = theirs[number]
                self.unmeasured += batch.failed
                count += len(batch)
                if progress:
                    progress(count, total)
                if time.monotonic() - saved > SAVE_EVERY:
                    values.flush()
                    self._save()
                    saved = time.monotonic()
            values.flush()
            self._save()
        found = np.full((len(theirs), *shape[1:]), np.nan, np.float32)
        for number, (key, theirs_key) in enumerate(zip(self._keys, theirs)):
            there = [int(draw) for draw, own in self._measured.get(key, {}).items() if own == theirs_key]
            found[number, there] = values[self._slot[number], there]
        self._local = local_labels(torch.from_numpy(found), torch.from_numpy(self.feed.labels), seed=self.feed.seed)

    def epoch(self, epoch: int = 0, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on, the next one read while one is used.

        In training, clips have `frames` frames from the beginning of a random draw.
        """
        batches = self.feed.batches(epoch)
        began = time.perf_counter()
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._batch, epoch, start, batches[start]) if start < len(batches) else None
            for index in range(start, len(batches)):
                assert ahead is not None
                asked = time.perf_counter()
                batch = ahead.result()
                self.meter.waited += time.perf_counter() - asked
                if index + 1 < len(batches):
                    ahead = pool.submit(self._batch, epoch, index + 1, batches[index + 1])
                yield batch
                now = time.perf_counter()
                self.meter.running += now - began
                began = now

    def _batch(self, epoch: int, index: int, numbers: np.ndarray) -> Batch:
        feed = self.feed
        good = [number for number in numbers.tolist() if number not in self.failed]
        inputs, local = [], []
        for number in good:
            draw = int(np.random.default_rng([feed.seed, epoch, number]).integers(self.draws)) if feed.train else 0
            one = self._inputs[self._slot[number], draw]
            if not feed.images:
                one = one[: self.frames // PATCH[0]] if feed.train else one.reshape(feed.num_clips, -1, *one.shape[1:])
            inputs.append(one[None] if feed.images or feed.train else one)
            if self._local is not None:
                local.append(self._local[number, draw, : None if feed.images else self.frames // PATCH[0]])
        x = torch.from_numpy(np.concatenate(inputs)).to(feed.device) if inputs else None
        return Batch(
            x=None if x is None else normalised(x),
            labels=torch.from_numpy(feed.labels[good]).to(feed.device),
            numbers=np.array(good, np.int64),
            names=[feed.files[number] for number in good],
            failed=[(feed.files[n], self.failed[n]) for n in numbers.tolist() if n in self.failed],
            index=index,
            local=torch.stack(local).to(feed.device) if local else None,
        )


def normalised(x: torch.Tensor) -> torch.Tensor:
    """uint8 patches [B, T, H, W, 96] or images [B, 3, H, W] to float32, as the sampler normalises."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device=x.device) for values in (MEAN, STD))
    if x.ndim == 5:
        mean, std = (values.repeat_interleave(PATCH[0] * PATCH[1] * PATCH[2]) for values in (mean, std))
    else:
        mean, std = mean[:, None, None], std[:, None, None]
    return (x.float() - mean) / std


def _as_patches(x: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Patches `[T/2, H/4, W/4, 96]` as they are; an image `[3, H, W]` as a pair of equal frames."""
    x = torch.tensor(np.asarray(x))
    return cut_patches(x[None, :, None].expand(-1, -1, PATCH[0], -1, -1))[0] if x.ndim == 3 else x


def _key(path: str) -> str:
    """What a file is known by, 16 digits in hexadecimal."""
    try:
        status = os.stat(path)
        known = [os.path.basename(path), status.st_size, status.st_mtime_ns]
    except OSError:
        known = [os.path.abspath(path)]
    return hashlib.sha256(json.dumps(known).encode(errors="surrogateescape")).hexdigest()[:16]
