"""The feed: files in, sampled batches out, while the next ones are decoded.

    files ──order of the epoch──> jobs ──threads: open, decode, sample──> clips, in order ──> batches

    feed = Feed(files, sama.VideoSampler(), labels=mos, batch=8, train=True, seed=0)
    for epoch in range(30):
        for batch in feed.epoch(epoch):
            batch.x, batch.labels, batch.names      # float32 [8, 3, 32, 224, 224], float32 [8], list of 8

What is drawn for a file depends on the seed, the epoch and the file's number alone: any number of workers and ranks,
and an epoch taken up again in its middle, give the same batches. A file that fails is left out of its batch and named.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch

from sama.decode import Video, VideoInfo, open_video
from sama.decode.images import read_image
from sama.errors import InputError, reason, without_traceback
from sama.files import check_kind
from sama.sampler import ImageSampler, VideoSampler

Job = TypeVar("Job")
Item = TypeVar("Item")

BUDGET_BYTES = 2 << 30  # of frames in decoders, at one time
DECODER_FRAMES = 20  # a CPU decoder holds: the references of its codec, one frame a thread, and what is on its way
MAX_WORKERS = 16
BEGUN = object()


@dataclass(frozen=True)
class Ended:
    """The end of a job: the error that ended it, if one did, and the seconds it worked, without waiting."""

    error: Exception | None
    seconds: float


@dataclass
class Meter:
    """How long a consumer has waited for its producers, and since when it has been running; in seconds."""

    waited: float = 0.0
    running: float = 0.0

    @property
    def share(self) -> float:
        """Part of the time that was spent waiting, 0..1."""
        return self.waited / self.running if self.running else 0.0


class Budget:
    """Bytes that jobs may hold at one time. Jobs are numbered; the oldest is always let through, however large."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._active: set[int] = set()
        self._changed = threading.Condition()

    def enter(self, number: int):
        with self._changed:
            self._active.add(number)

    def leave(self, number: int):
        with self._changed:
            self._active.discard(number)
            self._changed.notify_all()

    @contextmanager
    def hold(self, number: int, size: int, stop: threading.Event):
        """Wait until `size` bytes are free, keep them until the end of the block."""
        with self._changed:
            while not (self.used + size <= self.limit or number == min(self._active) or stop.is_set()):
                self._changed.wait(0.2)
            self.used += size
        try:
            yield
        finally:
            with self._changed:
                self.used -= size
                self._changed.notify_all()


class Ticket:
    """A job's place in the order; `hold(size)` waits until the job may keep that many bytes."""

    def __init__(self, number: int, budget: Budget, stop: threading.Event):
        self.number, self.budget, self.stop = number, budget, stop

    def hold(self, size: int):
        return self.budget.hold(self.number, size, self.stop)


class _Started(Generic[Job, Item]):
    def __init__(self, job: Job, items_ahead: int):
        self.job = job
        self.items: queue.Queue = queue.Queue(items_ahead)


def ahead(
    jobs: Iterable[Job],
    produce: Callable[[Job, Ticket], Iterable[Item]],
    *,
    workers: int,
    jobs_ahead: int,
    items_ahead: int,
    budget_bytes: int = BUDGET_BYTES,
    meter: Meter | None = None,
) -> Iterator[tuple[Job, Item | Ended | object]]:
    """Run jobs in threads, ahead of whoever consumes what they produce.

    Yields, in the order of the jobs, whatever the threads do: `(job, BEGUN)`, `(job, item)` for each item as soon as it
    is there, `(job, Ended)`. At most `jobs_ahead` jobs are begun and not consumed, each at most `items_ahead` items
    ahead. An error in a job ends that job alone. Closing the generator ends the threads.
    """
    stop, budget, meter = threading.Event(), Budget(budget_bytes), meter or Meter()
    started: deque[_Started] = deque()
    remaining = enumerate(jobs)
    begun = time.perf_counter()

    def begin(pool: ThreadPoolExecutor):
        number, job = next(remaining, (None, None))
        if number is not None:
            started.append(_Started(job, items_ahead))
            budget.enter(number)
            pool.submit(_work, started[-1], produce, Ticket(number, budget, stop))

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for _ in range(max(jobs_ahead, workers)):
                begin(pool)
            while started:
                current = started[0]
                yield current.job, BEGUN
                item = None
                while not isinstance(item, Ended):
                    waiting = time.perf_counter()
                    item = current.items.get()
                    meter.waited += time.perf_counter() - waiting
                    meter.running += time.perf_counter() - begun
                    begun = time.perf_counter()
                    if isinstance(item, Ended):
                        started.popleft()
                        begin(pool)
                    yield current.job, item
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _work(started: _Started, produce: Callable[[Job, Ticket], Iterable[Item]], ticket: Ticket):
    """Everything that a job produces into its queue, then how it ended."""
    start, waited, error = time.perf_counter(), 0.0, None

    def put(item):
        nonlocal waited
        began = time.perf_counter()
        while not ticket.stop.is_set():
            try:
                started.items.put(item, timeout=0.2)
                break
            except queue.Full:
                continue
        waited += time.perf_counter() - began

    try:
        for item in produce(started.job, ticket):
            if ticket.stop.is_set():
                return
            put(item)
    except Exception as caught:
        error = without_traceback(caught)
    finally:
        ticket.budget.leave(ticket.number)
        put(Ended(error, time.perf_counter() - start - waited))


@dataclass
class Batch:
    """Sampled files, in the order of the epoch.

    x        the inputs, [B * num_clips, ...] as the sampler gives them, a file's clips after one another
    labels   float32 [B], NaN where the feed has none; on the device of x
    numbers  int64 [B], of the files in the feed's list
    names    their paths
    failed   (path, reason) of the batch's files that could not be read; they are in none of the above
    index    which batch of the epoch this is
    """

    x: torch.Tensor | None
    labels: torch.Tensor
    numbers: np.ndarray
    names: list[str]
    failed: list[tuple[str, str]] = field(default_factory=list)
    index: int = 0

    def __len__(self) -> int:
        return len(self.names)


class Feed:
    """Batches of sampled files. See the module.

    files: paths of videos, or of images with an `ImageSampler`
    sampler: its output's dtype and layout are the batches'
    labels: one a file
    batch: files in a batch, over all ranks
    clip_len, num_clips, interval: as `sama.frame_indices`; of videos only
    train: draw the clip, the offsets, and for images flip and angle; shuffle files; leave out an incomplete last batch
        (the rest of a drawn order: another one in each epoch). Otherwise files come in order and all of them
    seed: of all draws
    rank, ranks: this process takes its share of each batch; shares differ by one file where ranks do not divide it
    workers: files decoded at the same time; None is the number of cores, at most 16
    decoder: as `sama.open_video`
    device: where x and labels are to be
    budget_bytes: of decoded frames that may be held at one time; one file always may
    ValueError for no files, a size below 1, or labels of another number.
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
        self.images = isinstance(sampler, ImageSampler)
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
        self.meter = Meter()
        self.decoders: Counter[str] = Counter()

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, len(self.files) // self.batch) if self.train else -(-len(self.files) // self.batch)

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
        share = -(-self.batch // self.ranks)
        produced = ahead(
            jobs,
            lambda job, ticket: self._produce(job, epoch, ticket),
            workers=1 if self.decoder == "dali" else self.workers,
            jobs_ahead=2 if self.decoder == "dali" else share + self.workers,
            items_ahead=share if self.decoder == "dali" else 1,
            budget_bytes=self.budget_bytes,
            meter=self.meter,
        )
        try:
            for index, numbers in enumerate(batches, start=start):
                yield self._collect(index, numbers, produced)
        finally:
            produced.close()

    def _jobs(self, numbers: np.ndarray) -> list[tuple[int, ...]]:
        """What one thread does at a time: a file, or the whole batch for a decoder that takes batches."""
        if self.decoder == "dali" and not self.images:
            return [tuple(numbers.tolist())] if len(numbers) else []
        return [(number,) for number in numbers.tolist()]

    def _collect(self, index: int, numbers: np.ndarray, produced) -> Batch:
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

    def _produce(self, job: tuple[int, ...], epoch: int, ticket: Ticket):
        """Yield `(number, clips [num_clips, ...])`, or `(number, error)`, for the files of a job."""
        with _own_stream(self.device) as finish:
            if self.decoder == "dali" and not self.images:
                yield from self._read_together(job, epoch, ticket, finish)
                return
            for number in job:
                yield number, finish(self._read(number, epoch, ticket))

    def _read_together(self, job: tuple[int, ...], epoch: int, ticket: Ticket, finish):
        """The files of a batch with DALI: as many clips in one call and one launch as the budget holds."""
        from sama.decode.dali import DaliDecoder, DaliVideo

        decoder = DaliDecoder(self.device, threads=self.workers)
        videos, todo, errors = {}, [], {}
        with ThreadPoolExecutor(self.workers) as pool:
            opened = [pool.submit(DaliVideo, self.files[number], decoder=decoder) for number in job]
        for number, future in zip(job, opened):
            if future.exception() is not None:
                yield number, future.exception()
                continue
            video = videos[number] = future.result()
            told = self.clip_len, self.num_clips, self.interval, self.train
            clips = zip(*self.sampler.choose(video.info, *told, self._generator(number, epoch)))
            todo += [(number, *clip) for clip in clips]
            self.decoders["dali"] += 1
        sampled: dict[int, list[torch.Tensor]] = {number: [] for number in videos}
        try:
            for part in self._parts(todo, videos):
                with ticket.hold(sum(clip_bytes(videos[number].info, self.clip_len) for number, *_ in part)):
                    decoded = decoder.decode([(videos[number], indices) for number, indices, _ in part])
                    good = [(clip, *entry) for clip, entry in zip(decoded, part) if not isinstance(clip, Exception)]
                    errors |= {n: clip for clip, (n, *_) in zip(decoded, part) if isinstance(clip, Exception)}
                    if good:
                        draws = [pair for *_, pair in good] if self.train else None
                        x = finish(self.sampler([clip for clip, *_ in good], draws=draws))
                        for (_, number, *_), one in zip(good, x):
                            sampled[number].append(one)
                    del decoded, good
        finally:
            for video in videos.values():
                video.close()
        for number, clips in sampled.items():
            yield number, errors[number] if number in errors else finish(torch.stack(clips))

    def _parts(self, todo: list[tuple], videos: dict[int, Video]) -> Iterator[list[tuple]]:
        """`todo` in pieces whose decoded frames the budget holds, though at least one clip each."""
        part, size = [], 0
        for entry in todo:
            more = clip_bytes(videos[entry[0]].info, self.clip_len)
            if part and size + more > self.budget_bytes:
                yield part
                part, size = [], 0
            part, size = [*part, entry], size + more
        if part:
            yield part

    def _generator(self, number: int, epoch: int) -> np.random.Generator | None:
        return np.random.default_rng([self.seed, epoch, number]) if self.train else None

    def _read(self, number: int, epoch: int, ticket: Ticket) -> torch.Tensor:
        path, generator = self.files[number], self._generator(number, epoch)
        if self.images:
            check_kind(path, "image")
            image = read_image(path)
            self.decoders["pillow"] += 1
            return self.sampler(image, train=self.train, generator=generator)
        check_kind(path, "video")
        with open_video(path, decoder=self.decoder, threads=self.threads, device=self.device) as video:
            self.decoders[decoder_name(video)] += 1
            with ticket.hold(held_bytes(video, self.clip_len)):
                return self.sampler.read_video(
                    video,
                    clip_len=self.clip_len,
                    num_clips=self.num_clips,
                    interval=self.interval,
                    train=self.train,
                    generator=generator,
                )


@contextmanager
def _own_stream(device: torch.device):
    """Work of this thread on a CUDA device in a stream of its own. Yields a function that brings a tensor to the device
    and waits, in this thread only, until it is there."""
    if device.type != "cuda":
        yield lambda x: x.to(device)
        return
    stream = torch.cuda.Stream(device)

    def finish(x: torch.Tensor) -> torch.Tensor:
        x = (x if x.is_cuda else x.pin_memory()).to(device, non_blocking=True)
        stream.synchronize()
        return x

    with torch.cuda.stream(stream):
        yield finish


def decoder_name(video: Video) -> str:
    """The name, in `sama.decode.DECODERS`, of the decoder that a video was opened with."""
    return type(video).__module__.rpartition(".")[2]


def held_bytes(video: Video, clip_len: int) -> int:
    """About how much memory the decoding of a video takes while it goes on."""
    if decoder_name(video) != "pyav":
        return clip_bytes(video.info, clip_len)
    info = video.info
    bytes_per_sample = 2 if any(mark in info.pix_fmt for mark in ("10", "12", "16")) else 1
    return DECODER_FRAMES * info.width * info.height * 3 // 2 * bytes_per_sample


def clip_bytes(info: VideoInfo, clip_len: int) -> int:
    """Bytes of a clip in RGB."""
    return clip_len * info.width * info.height * 3
