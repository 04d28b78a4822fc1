"""Pictures for a page: frames at some moments of a file, shrunk and as JPEG, with the model's quality map over them.

However long a file is, a bounded number of frames is decoded and kept. Pictures stay in memory up to a limit, and go to
a folder beside the page from there on.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from PIL import Image

from sama.decode import open_video
from sama.decode.images import read_image
from sama.errors import DecodeError, OutputError, reason
from sama.files import IMAGE_SUFFIXES, MOVING_SUFFIXES, suffix
from sama.frames import Frame
from sama.kernels import reference
from sama.limits import Guard
from sama.sampler import VideoSampler
from sama.storage import Content, find

if TYPE_CHECKING:
    from sama.decode import Video
    from sama.model import QualityModel
    from sama.tables import Row

THUMBNAIL, PICTURE = (144, 81), (960, 720)  # pixels that they fit into
INLINE_BYTES = 20 << 20  # pictures of a page beyond which they lie in a folder beside it
MOMENTS = 2  # of the worst, and of the best


@dataclass
class Moment:
    """A moment of a file: its window's number, time in seconds (None for an image) and score, on the model's own scale.

    what: "lowest", "highest", or "" for others; picture: JPEG; cells: values of the quality map [h][w], or None
    """

    window: int
    seconds: float | None
    score: float
    what: str
    picture: bytes = b""
    cells: list[list[float]] | None = None


@dataclass
class Look:
    """What opening a file adds to its row. problem: why there are no pictures, or fewer"""

    codec: str = ""
    file_bytes: int | None = None
    thumbnail: bytes = b""
    moments: list[Moment] = field(default_factory=list)
    problem: str = ""


def choose(scores: Sequence[float], times: Sequence[float], each: int = MOMENTS) -> list[Moment]:
    """The lowest windows, worst first, then the highest, best first; at most `each` of both and none twice."""
    order = np.argsort(scores, kind="stable").tolist()
    lowest = order[: min(each, (len(order) + 1) // 2)]
    highest = order[::-1][: min(each, len(order) // 2)]
    marked = [(k, "lowest") for k in lowest] + [(k, "highest") for k in highest]
    return [Moment(k, times[k] if k < len(times) else None, scores[k], what) for k, what in marked]


def look(row: Row, path: str, moments: Sequence[Moment], model: QualityModel | None = None) -> Look:
    """Open a row's file and take pictures of its moments, the first of which gives the thumbnail.

    Where there are no moments, only a thumbnail is made, of the lowest window. model: draws quality maps, if it has
    tokens. A file that cannot be read is no error: `problem` says why.
    """
    seen = Look(moments=list(moments))
    try:
        content = find(path)
        seen.file_bytes = os.stat(path).st_size if content is None else content.size
    except (OSError, DecodeError):
        return Look(problem="the file was not there when this page was made")
    except ValueError:
        return Look(problem="the name cannot be opened")
    if row.status != "ok":
        return seen
    try:
        if row.decoder == "pillow" or suffix(path) in IMAGE_SUFFIXES - MOVING_SUFFIXES:
            _look_at_image(seen, row, path, model, content)
        else:
            with open_video(path, decoder="pyav", guard=Guard(path, content=content)) as video:
                _look_at_video(seen, row, video, model)
    except (DecodeError, OSError) as error:
        seen.moments, seen.problem = [], f"no pictures: {reason(error)}"
    return seen


def _look_at_image(seen: Look, row: Row, path: str, model: QualityModel | None, content: Content | None = None) -> None:
    pixels = read_image(path, content=content)
    seen.codec = suffix(path).removeprefix(".")
    seen.thumbnail = jpeg(shrink(Frame("rgb", (pixels,)), THUMBNAIL), 75)
    for moment in seen.moments:
        moment.picture, moment.what = jpeg(shrink(Frame("rgb", (pixels,)), PICTURE)), ""
        if model is not None and model.kind == "image":
            moment.cells = cells_of(model.token_maps(model.sampler(pixels)).mean(0).numpy())


def _look_at_video(seen: Look, row: Row, video: Video, model: QualityModel | None) -> None:
    seen.codec = video.info.codec
    wanted = seen.moments or choose(row.clips, row.times, 1)[:1]
    times = video.seconds(range(video.info.num_frames))
    frames = [nearest(times, moment.seconds or 0.0) for moment in wanted]
    for number, frame in video.frames(frames):
        for k, moment in enumerate(wanted):
            if frames[k] != number:
                continue
            if k == 0:
                seen.thumbnail = jpeg(shrink(frame, THUMBNAIL), 75)
            if seen.moments:
                moment.picture = jpeg(shrink(frame, PICTURE))
    if model is not None and model.kind == "video" and seen.moments:
        _map_moments(seen.moments, frames, video, model)


def _map_moments(moments: Sequence[Moment], middles: Sequence[int], video: Video, model: QualityModel) -> None:
    """Add the quality maps of the windows whose middle frames are given, where the model has one."""
    assert isinstance(model.sampler, VideoSampler)
    clip_len, interval = model.clip_len, model.metadata["interval"]
    steps = (np.arange(clip_len) - clip_len // 2) * interval
    starts = np.maximum(0, np.asarray(middles) + steps[0])
    order = np.argsort(starts, kind="stable")
    indices = np.minimum(starts[order, None] + np.arange(clip_len) * interval, video.info.num_frames - 1)
    for k, clip in zip(order, model.sampler.stream(video, indices)):
        moments[k].cells = cells_of(model.counted(model.token_maps(clip[None]))[0].mean(0).numpy())


def cells_of(values: np.ndarray) -> list[list[float]] | None:
    """A quality map [h, w] as lists; None for a model that has one value for the whole picture."""
    return None if values.size == 1 else [[float(value) for value in line] for line in values]


def nearest(times: np.ndarray, seconds: float) -> int:
    """The number of the frame that is shown nearest to a time. times: of all frames, increasing"""
    after = int(np.clip(np.searchsorted(times, seconds), 1, max(1, len(times) - 1)))
    return after - 1 if len(times) == 1 or seconds - times[after - 1] <= times[after] - seconds else after


def shrink(frame: Frame, box: tuple[int, int] | None) -> Image.Image:
    """A frame in RGB, made smaller to fit into `box` (width, height); never larger. Planes are made smaller first."""
    scale = 1.0 if box is None else min(1.0, box[0] / frame.width, box[1] / frame.height)
    if scale < 1:
        width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        half = (width + 1) // 2, (height + 1) // 2
        sizes = {"rgb": [(width, height)], "i420": [(width, height), half, half]}.get(frame.layout)
        if sizes:
            smaller = (_resized(np.asarray(plane), size) for plane, size in zip(frame.planes, sizes))
            frame = Frame(frame.layout, tuple(smaller), frame.matrix, frame.full_range, frame.correction)
    return Image.fromarray(reference.to_rgb(frame).cpu().numpy())


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2))


def jpeg(image: Image.Image, quality: int = 82) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality, optimize=True)
    return content.getvalue()


class PictureStore:
    """Pictures of one page: inside it, or beyond `limit` bytes in all, in a folder beside it, `NAME_files`.

    `add` gives each a number; `sources` are their addresses for the page, in that order. `OutputError` where the folder
    cannot be written.
    """

    def __init__(self, out: str | os.PathLike[str], limit: int = INLINE_BYTES) -> None:
        self.folder = Path(out).with_name(Path(out).stem + "_files")
        self.limit = limit
        self.count = self.total = 0
        self.outside = False
        self._held: list[bytes] = []

    def add(self, picture: bytes) -> int:
        """Keep a picture; returns its number, -1 for an empty one."""
        if not picture:
            return -1
        self.count += 1
        self.total += len(picture)
        if self.outside:
            self._write(self.count - 1, picture)
        else:
            self._held.append(picture)
            if self.total > self.limit:
                self._move_out()
        return self.count - 1

    def sources(self) -> list[str]:
        if self.outside:
            folder = quote(os.fsencode(self.folder.name))
            return [f"{folder}/{_name(number)}" for number in range(self.count)]
        return ["data:image/jpeg;base64," + base64.b64encode(picture).decode() for picture in self._held]

    def close(self) -> None:
        """Remove the folder that an earlier page left, if this one needs none."""
        if not self.outside:
            self._remove()

    def _move_out(self) -> None:
        self._remove()
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made: {error.strerror or error}") from error
        self.outside = True
        for number, picture in enumerate(self._held):
            self._write(number, picture)
        self._held = []

    def _remove(self) -> None:
        """Only where all that is in it was written by this class."""
        if self.folder.is_dir() and all(re.fullmatch(r"\d{6}\.jpg", name) for name in os.listdir(self.folder)):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, number: int, picture: bytes) -> None:
        path = self.folder / _name(number)
        try:
            path.write_bytes(picture)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _name(number: int) -> str:
    return f"{number:06}.jpg"
