"""Masters: which files are undegraded pictures, how far they must shrink to be so, and the contents that they give.

A file is judged by pictures of it (`sama.corpus.probe`) and by what its container says. What is slightly soft or
compressed is shrunk until it no longer is; what would have to shrink by more than `MOST_SHRINK`, or to less than 360p,
is refused, with the reason. Nothing is ever enlarged.

"360p" and so on stand for the height of the 16:9 frame that encloses a picture: 640x272 is 360p, and so is 360x640.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from sama.corpus.probe import LEAST_ACTIVITY, activity, blockiness, detail, picture_area, thumbnail
from sama.decode import open_video
from sama.decode.images import read_image
from sama.decode.pyav import PyavVideo
from sama.errors import DecodeError
from sama.files import IMAGE_SUFFIXES, MOVING_SUFFIXES, suffix

SIZES = (360, 480, 540, 720, 1080, 1440, 2160)
SMALLEST = SIZES[0]
MOST_SHRINK = 2.5
LEAST_CUTOFF = 0.58  # share of Nyquist's frequency up to which there must be detail
NO_DETAIL = 0.008  # energy at the top, below which a picture whose detail ends early was enlarged
MOST_BLOCKS = 1.6  # `probe.blockiness` beyond which a file is refused
LEAST_QUALITY = 70  # of a JPEG
PHOTOGRAPH_SHRINK = 1.4  # least, so that sub-pixel motion softens nothing
LOOKS = 8  # frames of a video that are judged
BITS = {  # a pixel, that a codec spends on what is as good as undegraded; codecs that are not named need none
    **{"h264": 0.15, "hevc": 0.1, "vp9": 0.1, "av1": 0.08, "vvc": 0.07, "vp8": 0.2},
    **{"mpeg4": 0.4, "mpeg2video": 0.5, "mpeg1video": 0.6, "h263": 0.5, "wmv3": 0.3, "vc1": 0.3, "theora": 0.4},
    **{"msmpeg4v3": 0.5, "mjpeg": 1.2, "prores": 0.8, "dnxhd": 0.8},
}
CUT_STEP, CUT_FACTOR = 10, 3.5  # a cut: mean difference to the frame before in grey levels, and in units of those about
WINDOWS = 16  # parts of a long video that are searched for shots
WHOLE_FRAMES = 1500  # of a video that is searched as a whole
ALIKE = 0.95  # product of the thumbnails of two files that show the same
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics that eight bits do not hold


@dataclass
class Master:
    """A file, judged.

    path, kind: "video" or "photograph"
    width, height: in pixels, as displayed; box: left, top, right, bottom without black bars
    shrink: least factor by which it must shrink, at least 1
    notes: what was seen and done; refused: why it is no master, "" if it is one
    shots: of a video, first and last frame of each
    like: thumbnail, to find files that show the same
    """

    path: str
    kind: str
    width: int = 0
    height: int = 0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    shrink: float = 1.0
    notes: list[str] = field(default_factory=list)
    refused: str = ""
    shots: list[tuple[int, int]] = field(default_factory=list)
    like: np.ndarray | None = None
    frames: int = 1

    @property
    def size(self) -> float:
        """Largest size that it can give, as in 720p."""
        left, top, right, bottom = self.box
        return rows_of(right - left, bottom - top) / self.shrink

    def report(self) -> dict[str, Any]:
        """For the list of masters."""
        return {
            **{"file": self.path, "kind": self.kind, "width": self.width, "height": self.height},
            "status": "refused" if self.refused else "used",
            "reason": self.refused,
            **{"notes": "; ".join(self.notes), "shrunk_at_least": round(self.shrink, 2), "shots": len(self.shots)},
        }


def rows_of(width: float, height: float) -> float:
    """The 360 of 360p, for any shape and orientation."""
    return max(min(width, height), max(width, height) * 9 / 16)


def judge(path: str, *, num_frames: int, trust: bool = False) -> Master:
    """Open a file and judge it. It never raises for a bad file: that is refused, with the reason.

    num_frames: of a content; trust: only what cannot be read or is too small is refused
    """
    photograph = suffix(path) in IMAGE_SUFFIXES - MOVING_SUFFIXES
    master = Master(path, "photograph" if photograph else "video")
    try:
        (_judge_photograph if photograph else _judge_video)(master, num_frames)
    except DecodeError as error:
        master.refused = error.reason
        return master
    except MemoryError:
        master.refused = "too large for the memory that is free"
        return master
    if trust and master.refused:
        master.notes.append(f"trusted although: {master.refused}")
        master.refused, master.shrink = "", PHOTOGRAPH_SHRINK if photograph else 1.0
    left, top, right, bottom = master.box
    rows = rows_of(right - left, bottom - top) / (PHOTOGRAPH_SHRINK if photograph else 1)
    if rows < SMALLEST:
        least = math.ceil(SMALLEST * (PHOTOGRAPH_SHRINK if photograph else 1))
        master.refused = f"too small: {right - left}x{bottom - top}; a {master.kind} needs {least}p for clips of 360p"
    elif not master.refused and master.size < SMALLEST:
        if trust:
            master.notes.append("trusted: not shrunk as far")
            master.shrink = rows_of(right - left, bottom - top) / SMALLEST
        else:
            master.refused = f"{'; '.join(master.notes)}: only {master.size:.0f}p are left of it, less than 360p"
    return master


def _judge_photograph(master: Master, num_frames: int) -> None:
    pixels = read_image(master.path)
    luma = _luma(pixels)
    master.height, master.width = luma.shape
    master.shrink = PHOTOGRAPH_SHRINK
    quality = jpeg_quality(master.path)
    if quality is not None and quality < LEAST_QUALITY:
        master.refused = f"heavily compressed: JPEG of quality {quality:.0f} (at least {LEAST_QUALITY})"
    elif quality is not None and quality < 92:
        _demand(master, 1.4 + (92 - quality) / (92 - LEAST_QUALITY), f"JPEG of quality {quality:.0f}")
    _look(master, [luma])


def _judge_video(master: Master, num_frames: int) -> None:
    with open_video(master.path, decoder="pyav") as video:
        assert isinstance(video, PyavVideo)
        info = video.info
        master.width, master.height, master.frames = info.width, info.height, info.num_frames
        if refused := _unsuitable(video, num_frames):
            master.refused = refused
            master.box = 0, 0, info.width, info.height
            return
        wanted = [(2 * n + 1) * info.num_frames // (2 * LOOKS) for n in range(LOOKS)]
        pictures = [np.array(frame.channels()[0]) for _, frame in video.frames(wanted)]
        need = BITS.get(info.codec, 0.0)
        spent = _bits_a_pixel(video)
        if spent < need:
            factor = math.sqrt(need / spent) if spent else math.inf
            said = f"{spent:.3f} bits a pixel of {info.codec} (a master has {need:g})"
            _demand(master, factor, said)
            if factor > MOST_SHRINK:
                master.refused = f"heavily compressed: {said}"
        _look(master, pictures)
        if not master.refused:
            master.shots = find_shots(video, num_frames)
            if not master.shots:
                master.refused = f"no shot of {num_frames // 2} frames or more"


def _unsuitable(video: PyavVideo, num_frames: int) -> str:
    """Why a video cannot be used whatever it looks like, or ""."""
    source = video._source
    if source is not None:
        transfer = int(getattr(source.context, "color_trc", 2) or 2)
        if transfer in HDR:
            return f"high dynamic range ({HDR[transfer]}), which eight bits do not hold"
        if str(getattr(source.context, "field_order", "")) not in ("", "0", "1", "progressive", "unknown"):
            return "interlaced"
    if video.info.num_frames < num_frames // 2:
        return f"too short: {video.info.num_frames} frames; a content needs {num_frames // 2} at least"
    return ""


def _bits_a_pixel(video: PyavVideo) -> float:
    """Of the video stream; of the whole file where that is not known."""
    info = video.info
    size = int(video.index.packets["size"].sum()) if video.index else os.path.getsize(info.path)
    return size * 8 / (info.num_frames * info.width * info.height)


def _demand(master: Master, factor: float, why: str) -> None:
    """Shrink by at least a factor, and say why."""
    master.notes.append(why)
    master.shrink = max(master.shrink, min(factor, MOST_SHRINK))


def _look(master: Master, pictures: Sequence[np.ndarray]) -> None:
    """Judge pictures, luma, of a master."""
    master.box = left, top, right, bottom = picture_area(pictures)
    if (right - left, bottom - top) != (master.width - master.width % 2, master.height - master.height % 2):
        master.notes.append(f"black bars cut off: {right - left}x{bottom - top} of {master.width}x{master.height}")
    inside = [picture[top:bottom, left:right] for picture in pictures]
    master.like = thumbnail(np.ascontiguousarray(inside[len(inside) // 2]))
    if min(inside[0].shape) < 64:
        return
    lively = [picture for picture in inside if activity(picture) >= LEAST_ACTIVITY]
    if not lively:
        master.refused = master.refused or "nearly flat: no detail that could be degraded"
        return
    measured = [detail(picture) for picture in lively]
    cutoff, at_top = (float(np.median(values)) for values in zip(*measured))
    blocks = float(np.median([blockiness(picture) for picture in lively]))
    if blocks > MOST_BLOCKS:
        master.refused = master.refused or f"heavily compressed: blocks of 8x8 stand out ({blocks:.2f}; 1 for none)"
    elif blocks > 1.12:
        _demand(master, 1.4 + 2 * (blocks - 1.12), f"blocks of 8x8 ({blocks:.2f}; 1 for none)")
    if cutoff < LEAST_CUTOFF or (cutoff < 0.75 and at_top < NO_DETAIL):
        master.refused = master.refused or f"enlarged or out of focus: no detail above {cutoff:.0%} of its resolution"
    elif cutoff < 0.9:
        _demand(master, 1 / cutoff, f"soft: no detail above {cutoff:.0%} of its resolution")


def _luma(pixels: np.ndarray) -> np.ndarray:
    """BT.709 luma of RGB, uint8 [H, W, 3] to [H, W], in limited range."""
    out = np.empty(pixels.shape[:2], np.uint8)
    weights = np.array([0.2126, 0.7152, 0.0722], np.float32) * np.float32(219 / 255)
    for top in range(0, len(out), 256):
        out[top : top + 256] = np.rint(pixels[top : top + 256].astype(np.float32) @ weights + 16)
    return out


def jpeg_quality(path: str) -> float | None:
    """The quality that libjpeg's tables would have, by the mean of the luma table; None for what is no JPEG."""
    try:
        with Image.open(path) as image:
            tables = getattr(image, "quantization", None)
    except Exception:  # `read_image` says what is wrong
        return None
    if not tables:
        return None
    scale = float(np.mean(tables[min(tables)])) / 57.625 * 100  # per cent of the standard's table
    return min(max((200 - scale) / 2 if scale <= 100 else 5000 / scale, 1), 100)


def find_shots(video: PyavVideo, num_frames: int) -> list[tuple[int, int]]:
    """First and last frame of pieces without a cut, each of `num_frames`, or of at least half where a shot is shorter.

    A video of up to `WHOLE_FRAMES` is searched as a whole, a longer one in windows spread over it.
    """
    total = video.info.num_frames
    if total <= max(WHOLE_FRAMES, 4 * num_frames):
        windows = [(0, total)]
    else:
        length = 3 * num_frames
        windows = [(n * (total - length) // (WINDOWS - 1), length) for n in range(WINDOWS)]
    pieces = []
    for first, length in windows:
        for begin, end in _uncut(video, first, first + length):
            while end - begin >= num_frames // 2:
                last = min(begin + num_frames, end)
                pieces.append((begin, last - 1))
                begin = last + num_frames // 4
    return pieces


def _uncut(video: PyavVideo, first: int, end: int) -> list[tuple[int, int]]:
    """Spans [begin, end) of the frames without a cut, fade to black or flat picture, within first..end - 1."""
    step = max(video.info.height // 90, 1)
    frames = (frame for _, frame in video.frames(range(first, end)))
    small = [np.asarray(frame.channels()[0])[::step, ::step].astype(np.int16) for frame in frames]
    change = np.array([0.0] + [float(np.abs(b - a).mean()) for a, b in pairwise(small)])
    blank = np.array([picture.std() < 6 for picture in small])
    spans, begin = [], 0
    for t in range(1, len(small) + 1):
        if t < len(small):
            around = np.r_[change[max(t - 6, 1) : t], change[t + 1 : t + 7]]
            usual = float(np.median(around)) if len(around) else 0.0
            cut = change[t] > max(CUT_STEP, CUT_FACTOR * usual)
            if not (cut or blank[t] or blank[t - 1]):
                continue
        if not blank[begin]:
            spans.append((first + begin, first + t))
        begin = t
    return spans


def join_groups(masters: Sequence[Master]) -> dict[str, str]:
    """The group of each master's file: its own, or that of an earlier file that shows the same picture."""
    groups: dict[str, str] = {}
    leaders: list[Master] = []
    for master in masters:
        for leader in leaders:
            if master.like is not None and leader.like is not None and float(master.like @ leader.like) >= ALIKE:
                master.notes.append(f"shows the same as {leader.path}")
                groups[master.path] = groups[leader.path]
                break
        else:
            leaders.append(master)
            groups[master.path] = master.path
    return groups
