"""What reading one file may cost: the pixels of a frame, seconds, and memory that it shares with the files beside it.

`Limits` are what a user sets. A `Guard` holds them for one file while it is read, and is asked at every packet, frame
and allocation. docs/limits.md says what each limit is and what it does not reach.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TypeVar

from sama.errors import DecodeError, InputError
from sama.storage import Content, find

Item = TypeVar("Item")

VIDEO_PIXELS = 1 << 27  # of a frame: 16384 x 8192; a 16K video has 15360 x 8640
IMAGE_PIXELS = 1 << 28  # 16384 x 16384, beyond the 200 megapixels of telephones
SECONDS, CLIP_SECONDS = 600.0, 120.0  # of a file, and more for each of its clips
BYTES_PER_SECOND = 10 << 20  # and more for what takes long to be read: a slow disk's rate
MAX_SCANS = 100  # of a JPEG: each is a pass over all pixels that may take a few bytes; encoders make 10, 20 at most


@dataclass(frozen=True)
class Limits:
    """What a file may cost.

    max_pixels: of a frame or an image; None is `VIDEO_PIXELS` or `IMAGE_PIXELS`
    timeout: seconds of reading, decoding and sampling, waiting not counted; infinity is no limit; None is `SECONDS`,
        `CLIP_SECONDS` more for each clip, and a second more for each `BYTES_PER_SECOND` of the file
    `InputError` where a limit is not above 0.
    """

    max_pixels: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_pixels", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be more than 0; got {value}")

    @property
    def video_pixels(self) -> int:
        """Pixels that a frame may have."""
        return self.max_pixels or VIDEO_PIXELS

    @property
    def ffmpeg_pixels(self) -> str:
        """The limit as FFmpeg's option: larger, because decoders ask for room at the edges of a frame too."""
        return str(self.video_pixels + self.video_pixels // 8 + (1 << 16))

    @property
    def image_pixels(self) -> int:
        """Pixels that an image may have."""
        return self.max_pixels or IMAGE_PIXELS


UNTIMED = Limits(timeout=math.inf)


class Guard:
    """The limits of one file while it is read, by one thread at a time.

    strict: a stream that reports damage raises `DamageError`, so that it can be read again in a way that repeats itself
    content: the bytes of what is no local file (`sama.storage`), once it is known
    reserve: called with a number of bytes; a context that waits until that many may be held, and holds them
    damage: what the stream reported, "" for nothing
    by_index: whether the file's own tables may stand for its packets (`sama.decode.mp4`)
    """

    def __init__(
        self,
        path: str,
        limits: Limits = UNTIMED,
        *,
        strict: bool = False,
        reserve: Callable[[int], AbstractContextManager[None]] | None = None,
        content: Content | None = None,
    ) -> None:
        self.path, self.limits, self.strict = path, limits, strict
        self.damage = ""
        self.by_index = True
        self._reserve = reserve or (lambda size: nullcontext())
        size = 0
        with suppress(OSError):
            size = os.path.getsize(path)
        self._limit = limits.timeout or SECONDS + size / BYTES_PER_SECOND
        self._begun = time.perf_counter()
        self._waited = 0.0
        self._waiting_since: float | None = None
        self.content: Content | None = None
        if content is not None:
            self._attach(content)

    def find_content(self) -> Content | None:
        """The content of what is no local file, found at the first call; None for a local file. `DecodeError` where it
        cannot be had."""
        if self.content is None and (content := find(self.path)) is not None:
            self._attach(content)
        return self.content

    def _attach(self, content: Content) -> None:
        self.content = content
        if self.limits.timeout is None:
            self._limit += content.size / BYTES_PER_SECOND

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While a file is read: where its bytes cannot be had, or it changes meanwhile, that is the error, whatever a
        decoder makes of it."""
        try:
            yield
        except DecodeError:
            if self.content is not None:
                self.content.check()
            raise
        if self.content is not None:
            self.content.check()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning that were not spent waiting."""
        now, since = time.perf_counter(), self._waiting_since
        return now - self._begun - self._waited - (0.0 if since is None else now - since)

    def allow_clips(self, count: int) -> None:
        """Allow the time that so many clips take, unless the user has set the limit."""
        if self.limits.timeout is None:
            self._limit += CLIP_SECONDS * count

    def late(self, spare: float = 0.0) -> DecodeError | None:
        """The error of a file that has taken longer than its limit and `spare` seconds, else None."""
        if self.seconds <= self._limit + spare:
            return None
        return DecodeError(self.path, f"takes longer than {self._limit:.0f} seconds to read (--timeout)")

    def check_time(self) -> None:
        """`DecodeError` where the file has taken longer than its limit."""
        if error := self.late():
            raise error

    def check_pixels(self, width: int, height: int) -> None:
        """`DecodeError` where a frame is larger than its limit."""
        if width * height > self.limits.video_pixels:
            most = f"{self.limits.video_pixels:,}"
            raise DecodeError(self.path, f"{width}x{height} are more than {most} pixels (--max-pixels)")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time that does not count."""
        self._waiting_since = began = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - began
            self._waiting_since = None

    def outside(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; what their consumer does between them does not count."""
        for item in items:
            with self.waiting():
                yield item

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold so many bytes while the block runs; waiting for them does not count."""
        held = self._reserve(size)
        with self.waiting():
            held.__enter__()
        try:
            yield
        finally:
            held.__exit__(None, None, None)


def has_too_many_scans(data: bytes | memoryview) -> bool:
    """Whether the first picture in the bytes of a JPEG has more than `MAX_SCANS` scans; not for what is no JPEG."""
    view = memoryview(data)
    at, scans = 2, 0
    if bytes(view[:2]) != b"\xff\xd8":
        return False
    while scans <= MAX_SCANS and (found := _MARKER.search(view, at)):
        at, kind = found.end(), found[0][-1]
        if kind == 0xD9:  # end of the picture
            break
        scans += kind == 0xDA
        if kind not in (0x01, 0xD8):  # all others have a length; what follows a scan's header is searched
            at += int.from_bytes(view[at : at + 2], "big")
    return scans > MAX_SCANS


SCAN = b"\xff\xda"  # marks a scan, and does not occur in its data; in a thumbnail it may
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # without restarts, which lie within a scan
