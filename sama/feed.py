"""The feed: files in, sampled batches out, while the next ones are decoded.

    files ──order of the epoch──> jobs ──threads: open, decode, sample──> clips, in order ──> batches

    feed = Feed(files, sama.VideoSampler(), labels=mos, batch=8, train=True, seed=0)
    for epoch in range(30):
        for batch in feed.epoch(epoch):
            batch.x, batch.labels, batch.names      # float32 [8, 3, 32, 224, 224], float32 [8], list of 8

What is drawn for a file depends on the seed, the epoch and the file's number alone: any number of workers and ranks,
and an epoch resumed in its middle, give the same batches. A file that fails is left out of its batch and named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sama.decode import DECODERS, Video, check_decoder, decode_with
from sama.decode.images import read_image
from sama.devices import own_stream
from sama.errors import InputError, reason
from sama.files import check_kind, is_still
from sama.kernels.layout import ceil_div
from sama.limits import Guard, Limits
from sama.plan import Draws
from sama.prefetch import BEGUN, BUDGET_BYTES, Ended, Meter, Ticket, ahead
from sama.sampler import ImageSampler, VideoSampler

MAX_WORKERS = 16

ClipRequest = tuple[int, np.ndarray, Draws | None]  # number of the file, numbers of the frames, draws
Finish = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Batch:
    """Sampled files, in the order of the epoch.

    x        the inputs, [B * num_clips, ...] as the sampler gives them, a file's clips after one another
    labels   float32 [B], NaN where the feed has none; on the device of x
    numbers  int64 [B], of the files in the feed's list
    names    their paths
    failed   (path, reason) of the batch's files that could not be read; they are in none of the above
    index    which batch of the epoch this is
    local    labels of the fragments, float32 [B, T/2, rows, columns] or NaN; only of a `CachedFeed` with references
    """

    x: torch.Tensor | None
    labels: torch.Tensor
    numbers: np.ndarray
    names: list[str]
    failed: list[tuple[str, str]] = field(default_factory=list)
    index: int = 0
    local: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)


class Feed:
    """Batches of sampled files. See the module.

    files: paths of videos, or of images with an `ImageSampler`; an image among videos is a clip that stands still
    sampler: its output's dtype and layout are the batches'
    labels: one per file
    batch: files in a batch, over all ranks
    clip_len, num_clips, interval: as `sama.frame_indices`; of videos only
    train: draw the clip, the offsets, and for images flip and angle; shuffle files; leave out an incomplete last batch
        (the rest of a drawn order: another one in each epoch). Otherwise files come in order and all of them
    seed: of all draws
    rank, ranks: this process takes its share of each batch; shares differ by one file where ranks do not divide it
    workers: files decoded at the same time; None is the number of cores, at most 16
    decoder: as `sama.open_video`
    device: of x and labels in a batch
    budget_bytes: of decoded frames held at one time; one file is always let through, however large
    rotate: images in training are turned by a random angle, as published; that hides fine detail from the model
    limits: what a file may cost; None is `Limits()`
    InputError for no files, a size below 1, an unknown decoder, or a number of labels other than that of the files.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike],
        sampler: VideoSampler | ImageSampler,
        *,
        labels: Sequence[float] | None = None,
        batch: int = 8,
        clip_len: int = 32,
        num_clips: int = 1,
        interval: int = 2,
        train: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int | None = None,
        decoder: str = "auto",
        device: str | torch.device = "cpu",
        budget_bytes: int = BUDGET_BYTES,
        rotate: bool = True,
        limits: Limits | None = None,
    ):
        self.files = [os.fsdecode(path) for path in files]
        if not self.files:
            raise InputError("no files: got an empty list, expected at least one path")
        for name, value in (("batch", batch), ("num_clips", num_clips), ("ranks", ranks), ("budget", budget_bytes)):
            if value < 1:
                raise InputError(f"{name} must be at least 1; got {value}")
        if not 0 <= rank < ranks:
            raise InputError(f"rank must be in 0..{ranks - 1}; got {rank}")
        if labels is not None and len(labels) != len(self.files):
            raise InputError(f"labels must be one a file; got {len(labels)} for {len(self.files)} files")
        if train and min(len(self.files), batch) < ranks:
            raise InputError(
                f"training on {ranks} ranks needs as many files, and batches as large; got {len(self.files)} files, "
                f"batches of {batch}"
            )
        check_decoder(decoder)
        self.images = isinstance(sampler, ImageSampler)
        self.batched = not self.images and decoder in DECODERS and DECODERS[decoder].batched
        if self.images and num_clips != 1:
            raise InputError(f"an image has one clip; got num_clips={num_clips}")
        self.sampler = sampler
        self.labels = np.full(len(self.files), np.nan, np.float32) if labels is None else np.asarray(labels, np.float32)
        self.batch, self.clip_len, self.num_clips, self.interval = batch, clip_len, num_clips, interval
        self.train, self.seed, self.rank, self.ranks = train, seed, rank, ranks
        cores = os.cpu_count() or 1
        self.workers = workers or min(MAX_WORKERS, cores)
        self.threads = max(1, cores // self.workers)
        self.decoder, self.device, self.budget_bytes = decoder, torch.device(device), budget_bytes
        self.rotate = rotate
        self.limits = limits or Limits()
        self.meter = Meter()
        self.decoders: Counter[str] = Counter()

    @cached_property
    def _openers(self) -> ThreadPoolExecutor:
        """Threads that open the files of a batch for a decoder that takes batches."""
        return ThreadPoolExecutor(self.workers, thread_name_prefix="open")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, len(self.files) // self.batch) if self.train else ceil_div(len(self.files), self.batch)

    def batches(self, epoch: int = 0) -> list[np.ndarray]:
        """Numbers of this rank's files in every batch of an epoch, int64."""
        order = np.arange(len(self.files))
        if self.train:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        parts = [order[k * self.batch : (k + 1) * self.batch] for k in range(len(self))]
        return [np.array_split(part, self.ranks)[self.rank] for part in parts]

    def epoch(self, epoch: int = 0, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        batches = self.batches(epoch)[start:]
        jobs = [job for numbers in batches for job in self._jobs(numbers)]
        share = ceil_div(self.batch, self.ranks)
        self.sampler.prepare()  # compiling is no waiting for data
        produced = ahead(
            jobs,
            lambda job, ticket: self._produce(job, epoch, ticket),
            workers=1 if self.batched else self.workers,
            jobs_ahead=2 if self.batched else share + self.workers,
            items_ahead=share if self.batched else 1,
            budget_bytes=self.budget_bytes,
            meter=self.meter,
        )
        with closing(produced):
            for index, numbers in enumerate(batches, start=start):
                yield self._collect(index, numbers, produced)

    def _jobs(self, numbers: np.ndarray) -> list[tuple[int, ...]]:
        """What one thread does at a time: a file, or all videos of the batch for a decoder that takes batches."""
        alone = [number for number in numbers.tolist() if not self.batched or is_still(self.files[number])]
        together = tuple(number for number in numbers.tolist() if number not in alone)
        return [*([together] if together else []), *((number,) for number in alone)]

    def _collect(self, index: int, numbers: np.ndarray, produced: Iterator[tuple[tuple[int, ...], Any]]) -> Batch:
        """Take the files of one batch from what is produced."""
        found: dict[int, torch.Tensor] = {}
        failed: dict[int, str] = {}
        while len(found) + len(failed) < len(numbers):
            job, item = next(produced)
            if isinstance(item, Ended):
                if item.error is not None:
                    failed.update({n: reason(item.error) for n in job if n not in found and n not in failed})
            elif item is not BEGUN:
                number, result = item
                if isinstance(result, Exception):
                    failed[number] = reason(result)
                else:
                    found[number] = result
        good = [number for number in numbers.tolist() if number in found]
        x = torch.cat([found[number] for number in good]) if good else None
        if x is not None and x.is_cuda:
            for number in good:
                found[number].record_stream(torch.cuda.current_stream(x.device))
        return Batch(
            x=x,
            labels=torch.from_numpy(self.labels[good]).to(self.device),
            numbers=np.array(good, np.int64),
            names=[self.files[number] for number in good],
            failed=[(self.files[number], failed[number]) for number in numbers.tolist() if number in failed],
            index=index,
        )

    def _produce(
        self, job: tuple[int, ...], epoch: int, ticket: Ticket
    ) -> Iterator[tuple[int, torch.Tensor | BaseException]]:
        """Yield `(number, clips [num_clips, ...])`, or `(number, error)`, for the files of a job."""
        with own_stream(self.device) as finish:
            if self.batched and not is_still(self.files[job[0]]):
                yield from self._read_together(job, epoch, ticket, finish)
                return
            for number in job:
                yield number, finish(self._read(number, epoch, ticket))

    def _read_together(
        self, job: tuple[int, ...], epoch: int, ticket: Ticket, finish: Finish
    ) -> Iterator[tuple[int, torch.Tensor | BaseException]]:
        """The files of a batch with DALI: as many clips in one call and one launch as the budget holds."""
        from sama.decode import dali

        assert isinstance(self.sampler, VideoSampler)
        videos: dict[int, dali.DaliVideo] = {}
        todo: list[ClipRequest] = []
        errors: dict[int, Exception] = {}
        threads, device = self.workers, self.device
        opened = [self._openers.submit(dali.DaliVideo, self.files[n], threads=threads, device=device) for n in job]
        for number, future in zip(job, opened):
            error = future.exception()
            if error is not None:
                yield number, error
                continue
            video = videos[number] = future.result()
            settings = self.clip_len, self.num_clips, self.interval, self.train
            indices, draws = self.sampler.choose(video.info, *settings, self._generator(number, epoch))
            todo += [(number, *clip) for clip in zip(indices, draws)]
            self.decoders[video.decoder] += 1
        sampled: dict[int, list[torch.Tensor]] = {number: [] for number in videos}
        try:
            for part in self._parts(todo, videos):
                with ticket.hold(sum(videos[number].held_bytes(self.clip_len) for number, *_ in part)):
                    with dali.lend(device, threads) as decoder:
                        decoded = decoder.decode([(videos[number], indices) for number, indices, _ in part])
                    errors |= {n: clip for clip, (n, *_) in zip(decoded, part) if isinstance(clip, Exception)}
                    good = [(clip, n, d) for clip, (n, _, d) in zip(decoded, part) if not isinstance(clip, Exception)]
                    if good:
                        pairs = [pair for *_, pair in good if pair is not None] or None
                        x = finish(self.sampler([clip for clip, *_ in good], draws=pairs))
                        for (_, number, _), one in zip(good, x):
                            sampled[number].append(one)
                    del decoded, good
        finally:
            for video in videos.values():
                video.close()
        for number, inputs in sampled.items():
            yield number, errors[number] if number in errors else finish(torch.stack(inputs))

    def _parts(self, todo: list[ClipRequest], videos: Mapping[int, Video]) -> Iterator[list[ClipRequest]]:
        """`todo` in pieces whose decoded frames the budget holds, though at least one clip each."""
        part: list[ClipRequest] = []
        size = 0
        for entry in todo:
            more = videos[entry[0]].held_bytes(self.clip_len)
            if part and size + more > self.budget_bytes:
                yield part
                part, size = [], 0
            part, size = [*part, entry], size + more
        if part:
            yield part

    def _generator(self, number: int, epoch: int) -> np.random.Generator | None:
        return np.random.default_rng([self.seed, epoch, number]) if self.train else None

    def _read(self, number: int, epoch: int, ticket: Ticket) -> torch.Tensor:
        path, sampler = self.files[number], self.sampler
        guard = ticket.guard = Guard(path, self.limits, reserve=ticket.hold)
        guard.allow_clips(self.num_clips)
        if isinstance(sampler, ImageSampler):
            check_kind(path, "image")
            image = read_image(path, max_pixels=self.limits.image_pixels)
            self.decoders["pillow"] += 1
            angle = None if self.rotate or not self.train else 0.0
            return sampler(image, train=self.train, angle=angle, generator=self._generator(number, epoch))
        if is_still(path):
            still = torch.from_numpy(read_image(path, max_pixels=self.limits.image_pixels)).to(self.device)
            self.decoders["pillow"] += 1
            clip = still.expand(self.clip_len, *still.shape)
            return sampler([clip] * self.num_clips, self.train, generator=self._generator(number, epoch))

        def read(video: Video) -> torch.Tensor:
            with guard.hold(video.held_bytes(self.clip_len)):
                x = sampler.read_video(
                    video,
                    clip_len=self.clip_len,
                    num_clips=self.num_clips,
                    interval=self.interval,
                    train=self.train,
                    generator=self._generator(number, epoch),
                )
            self.decoders[video.decoder] += 1
            return x

        return decode_with(read, path, decoder=self.decoder, threads=self.threads, device=self.device, guard=guard)
