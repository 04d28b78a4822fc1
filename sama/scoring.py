"""Score many files: decode ahead in threads, batch clips across files, give one row for each file.

    files ──threads: decode, sample──> clips ──batches──> model ──> rows

Rows come in the order of the files, each as soon as its file is done. A file that fails is a row too.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sama.decode import Attempt, Video, again, check_decoder, gpu_workers, hybrid, open_video
from sama.decode.images import read_image
from sama.devices import own_stream
from sama.errors import DecodeError, reason
from sama.files import check_kind
from sama.limits import Guard, Limits
from sama.model import QualityModel
from sama.prefetch import BEGUN, BUDGET_BYTES, Ended, Meter, Ticket, ahead
from sama.storage import InMemory, Media, is_url
from sama.tables import Row

CLIPS_AHEAD = 4  # sampled clips of one file that may wait for the model
FILES_AHEAD = 256  # begun on a GPU while one before them is not done: their rows wait for it
MEMORY_SHARE = 8  # a GPU's memory by this is what decoding may hold of it, where that is more than `BUDGET_BYTES`
RESTART = object()  # stands for the beginning of a second attempt among the clips of a file


def score_files(
    paths: Iterable[str | Media],
    model: QualityModel,
    *,
    batch: int | None = None,
    workers: int | None = None,
    every_seconds: float | None = None,
    decoder: str = "auto",
    meter: Meter | None = None,
    limits: Limits | None = None,
    processes: int = 1,
) -> Generator[Row]:
    """Yield a row for every path, in order; a file that fails is a row with status "error" and the reason.

    paths: of files, addresses (`sama.storage`), or `Media`: bytes or pixels; taken one by one, a few ahead
    batch: clips that go through the model at once, None is `model.default_batch`; on a CPU scores do not depend on it
    workers: files decoded at the same time, ahead of the model; None is half of the cores, at most 4, or where a GPU
        decodes three for each of its engines: two are decoded at a time, and the next one is opened
    decoder: as for `sama.open_video`; with "hybrid" CPU cores decode beside the GPU (`sama.decode.hybrid`)
    every_seconds: as in `QualityModel.score`
    meter: measures how long the model waits for decoding
    limits: what a file may cost; None is `Limits()`
    processes: that score files, each with a model of its own (`sama.processes`); scores do not depend on it
    """
    check_decoder(decoder)
    if processes > 1:
        from sama.processes import score_in_processes

        settings = {"batch": batch, "every_seconds": every_seconds, "limits": limits}
        yield from score_in_processes(
            paths, model, processes=processes, workers=workers, decoder=decoder, meter=meter, **settings
        )
        return
    batch = batch or model.default_batch
    on_gpu = gpu_workers(decoder, model.device) if model.kind == "video" else 0
    count = len(paths) if isinstance(paths, Sequence) else sys.maxsize
    seats = hybrid.seats(model.device, count, workers) if decoder == "hybrid" and model.kind == "video" else None
    if seats is not None:
        workers = seats.threads
    workers = workers or on_gpu or min(4, max(1, (os.cpu_count() or 1) // 2))
    attribution = model.attribution(every_seconds)
    waiting: deque[_Open] = deque()
    samples: list[tuple[_Open, torch.Tensor]] = []
    limits = limits or Limits()
    if not isinstance(paths, Sequence) or any(map(_may_exist, paths)):
        model.sampler.prepare()  # compiling is no waiting for decoding
    events = ahead(
        (_Open(path, attribution) for path in paths),
        lambda file, ticket: _on_device(
            _samples(file, model, every_seconds, decoder, ticket, limits, seats), model.device
        ),
        workers=workers,
        jobs_ahead=FILES_AHEAD if on_gpu else workers + 1,
        items_ahead=max(2 * batch, workers) if on_gpu else CLIPS_AHEAD,
        budget_bytes=_budget(model.device),
        meter=meter,
        in_order=not on_gpu,  # a long file must not keep the GPU's decoders waiting
    )
    with contextlib.closing(events):  # an error here must not leave its threads behind
        for file, item in events:
            if item is BEGUN:
                waiting.append(file)
            elif item is RESTART:
                file.restart()
                samples[:] = [sample for sample in samples if sample[0] is not file]
            elif isinstance(item, Ended):
                file.end(item)
            elif isinstance(item, torch.Tensor):
                file.decoded += 1
                samples.append((file, item))
                if len(samples) == batch:
                    _run(samples, model, batch)
            while waiting and waiting[0].done:
                yield waiting.popleft().close(model)
    if samples:
        _run(samples, model, batch)
    while waiting:
        yield waiting.popleft().close(model)


class _Open:
    """A file whose row is not complete: the row, what has no path, and how many of its clips have been decoded."""

    def __init__(self, file: str | Media, attribution: dict[str, Any]):
        self.media = file if isinstance(file, Media) else None
        self.row = Row(file.key if isinstance(file, Media) else file, **attribution)
        self.decoded = 0
        self.ended = False

    @property
    def done(self) -> bool:
        return self.ended and len(self.row.clips) == self.decoded

    def restart(self):
        """Forget the clips so far."""
        self.decoded, self.row.clips = 0, []

    def end(self, end: Ended):
        self.ended = True
        self.row.seconds += end.seconds
        if end.error is not None:
            self.row.status, self.row.reason = "error", reason(end.error)

    def close(self, model: QualityModel) -> Row:
        row = self.row
        if row.status == "ok":
            row.score = float(np.mean(row.clips))
            row.mos, row.mos_scale = model.mos(row.score)
            if not all(map(math.isfinite, row.clips)):
                row.status, row.reason = "error", "the model gave a value that is not a number"
        if row.status != "ok":
            row.score, row.mos, row.clips, row.times = None, None, [], []
        row.times = row.times[: len(row.clips)]
        return row


def _run(samples: list[tuple[_Open, torch.Tensor]], model: QualityModel, batch: int):
    """Score one batch of clips, and add each value to the row of its file."""
    start = time.perf_counter()
    values = model.values([sample for _, sample in samples], batch)
    share = (time.perf_counter() - start) / len(samples)
    for (file, _), value in zip(samples, values):
        file.row.clips.append(value)
        file.row.seconds += share
    samples.clear()


def _on_device(samples: Iterator[torch.Tensor | object], device: torch.device) -> Iterator[torch.Tensor | object]:
    """Sampled clips, brought to the device where they are scored in a stream of this thread."""
    with own_stream(device) as finish:
        for sample in samples:
            yield finish(sample) if isinstance(sample, torch.Tensor) else sample


def _may_exist(file: str | Media) -> bool:
    return isinstance(file, Media) or is_url(file) or os.path.exists(file)


def _samples(
    file: _Open,
    model: QualityModel,
    every_seconds: float | None,
    decoder: str,
    ticket: Ticket,
    limits: Limits,
    seats: hybrid.Seats | None,
) -> Iterator[torch.Tensor | object]:
    """Open the file, fill in what is known of it, and yield its sampled clips.

    Where `again` says that the file is to be read once more from the start: `RESTART`, then all its clips.
    """
    row, content = file.row, None
    if file.media is not None:
        if file.media.data is None:
            raise DecodeError(row.path, file.media.problem)
        if isinstance(file.media.data, np.ndarray):
            yield from _pixel_clips(file.media, row, model, every_seconds)
            return
        content = InMemory(file.media.data, row.path)
    guard = ticket.guard = Guard(row.path, limits, strict=True, reserve=ticket.hold, content=content)
    if content is None:
        check_kind(row.path, model.kind)
    if model.kind == "image":
        image = read_image(row.path, max_pixels=limits.image_pixels, content=content)
        row.frames, row.height, row.width, row.decoder = 1, *image.shape[:2], "pillow"
        yield from guard.outside(model.sampler(image))
        return
    attempt: Attempt | None = Attempt(decoder, None)
    while attempt is not None:
        try:
            if seats is None:
                yield from _clips(row, model, every_seconds, attempt, guard)
            else:
                gpu = attempt.decoder == "hybrid"
                with hybrid.opened(row.path, model.device, guard, seats, ticket.stop, gpu=gpu) as video:
                    yield from _clips_of(video, row, model, every_seconds, guard)
            break
        except DecodeError as error:
            attempt = again(attempt, row.decoder, error)
            if attempt is None:
                raise
            yield RESTART
    if guard.damage:
        row.reason = f"frames were concealed: its stream reports errors ({guard.damage})"


def _pixel_clips(media: Media, row: Row, model: QualityModel, every_seconds: float | None) -> Iterator[torch.Tensor]:
    """The sampled clips of pixels."""
    pixels = np.asarray(media.data)
    dims = 3 if model.kind == "image" else 4
    if pixels.dtype != np.uint8 or pixels.ndim != dims or pixels.shape[-1] != 3 or not pixels.size:
        shape = "[H, W, 3]" if dims == 3 else "[T, H, W, 3]"
        raise DecodeError(row.path, f"pixels are {pixels.dtype} {list(pixels.shape)}; the model takes uint8 {shape}")
    row.frames, (row.height, row.width) = 1 if dims == 3 else len(pixels), pixels.shape[-3:-1]
    if dims == 3:
        yield from model.sampler(pixels)
        return
    seconds = None
    if media.fps:
        row.fps, row.duration = media.fps, len(pixels) / media.fps
        seconds = np.arange(len(pixels)) / media.fps
    elif every_seconds is not None:
        raise DecodeError(row.path, "pixels have no times: windows of so many seconds need their frames a second (fps)")
    indices = model.clip_indices(len(pixels), seconds, every_seconds)
    row.times = [] if seconds is None else seconds[indices[:, model.clip_len // 2]].tolist()
    for clip in indices:
        yield model.sampler(pixels[clip])[0]


def _clips(
    row: Row, model: QualityModel, every_seconds: float | None, attempt: Attempt, guard: Guard
) -> Iterator[torch.Tensor]:
    """The sampled clips of a video."""
    decoder, threads = attempt
    opened = open_video(row.path, decoder=decoder, threads=threads, device=model.device, guard=guard)
    with opened as video, guard.hold(video.held_bytes(model.clip_len)):
        yield from _clips_of(video, row, model, every_seconds, guard)


def _clips_of(
    video: Video, row: Row, model: QualityModel, every_seconds: float | None, guard: Guard
) -> Iterator[torch.Tensor]:
    """The sampled clips of an open video, whose memory is held."""
    info = video.info
    row.frames, row.width, row.height = info.num_frames, info.width, info.height
    row.duration, row.fps = info.duration_seconds, info.fps
    row.decoder, row.opened = video.decoder, info.opened
    seconds, clips = model.sample(video, every_seconds)
    guard.allow_clips(len(seconds))
    row.times = seconds.tolist()
    yield from guard.outside(clips)
    row.opened = video.info.opened  # its packets may have shown that they had to be read after all


def _budget(device: torch.device) -> int:
    """Bytes that decoding may hold at one time."""
    if device.type != "cuda":
        return BUDGET_BYTES
    return max(BUDGET_BYTES, torch.cuda.get_device_properties(device).total_memory // MEMORY_SHARE)
