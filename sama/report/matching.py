"""Where in time one file shows what another one shows: found by content, by small pictures of luma.

    A   |-------[probe]------[probe]------[probe]-----|
    B       |-------[ ..... search ..... ]------ ...      content at t in A is at t + seconds in B

Frames of a few probes of A are correlated with those of B at every offset, what stands still taken out of both. At
most `PROBES` stretches of `PROBE_SECONDS` and what is searched around them are decoded, whatever the files' length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sama.decode import Video, VideoInfo
from sama.errors import InputError
from sama.files import printable
from sama.frames import Frame

SIZE = (32, 18)  # of a small picture: width, height
PROBES, PROBE_SECONDS = 3, 6.0
FRAMES_OF_A_PROBE = 64
NEAR_SECONDS = 1.0  # is searched first
CLEAR, LEAST = 0.9, 0.6  # correlations: not searched further; below, contents differ
LEAST_STILL = 0.8  # the same of pictures that hardly move
MOVING = 0.7  # grey levels, of the small pictures over time, root mean square
TIE = 1e-4  # of correlation: offsets nearer to zero come first

Thumbs = tuple[np.ndarray, np.ndarray]  # times [n] in seconds, luma [n, pixels]


@dataclass(frozen=True)
class Match:
    """Content at t seconds of the first file is at t + `seconds` of the other.

    correlation: of the two there, at most 1; moving: whether enough moves to tell the offset; where not, it is 0
    """

    seconds: float
    correlation: float
    moving: bool = True


def probes_of(video: Video) -> list[Thumbs]:
    """What of a file is looked for in others."""
    probes = [luma(video, *span) for span in _spans(video.info.duration_seconds)]
    return [(times, thumbs) for times, thumbs in probes if len(times)]


def find_offset(probes: list[Thumbs], first: VideoInfo, other: Video, max_seconds: float = 30.0) -> Match:
    """The offset of `other` to the first file, up to `max_seconds`. probes: of the first file, by `probes_of`

    `InputError` where they do not seem to show the same.
    """
    best = Match(0.0, -1.0)
    for width in sorted({min(NEAR_SECONDS, max_seconds), max_seconds}):
        regions = [luma(other, float(times[0]) - width, float(times[-1]) + width) for times, _ in probes]
        best = _search(probes, regions, width, 1 / max(first.fps, other.info.fps))
        if best.correlation >= (CLEAR if best.moving else LEAST_STILL):
            return best
    if best.correlation < (LEAST if best.moving else LEAST_STILL):
        raise InputError(
            f"{printable(other.info.path)} does not seem to show what {printable(first.path)} shows: at best their "
            f"pictures have a correlation of {best.correlation:.2f} within {max_seconds:g} s. If they do, give --offset"
        )
    return best


def luma(video: Video, begin: float, end: float) -> Thumbs:
    """Small pictures of the frames that are shown from `begin` to `end`, in seconds; at most some 100 a second."""
    times = video.seconds(range(video.info.num_frames))
    first, last = np.searchsorted(times, [begin - 1e-6, end + 1e-6])
    step = max(1, int((last - first) / max(1.0, 100 * (end - begin))))
    numbers = range(int(first), int(last), step)
    thumbs = [thumb(frame) for _, frame in video.frames(numbers)]
    return times[list(numbers)], np.asarray(thumbs, np.float32).reshape(len(thumbs), SIZE[0] * SIZE[1])


def thumb(frame: Frame) -> np.ndarray:
    """The frame's luma, averaged to `SIZE`; float32, flat."""
    plane = np.asarray(frame.planes[0])
    if frame.layout == "rgb":
        plane = plane.mean(2).astype(np.uint8)
    small = Image.fromarray(np.ascontiguousarray(plane)).resize(SIZE, Image.Resampling.BOX, reducing_gap=3)
    return np.asarray(small, np.float32).ravel()


def _spans(duration: float) -> list[tuple[float, float]]:
    """Stretches of a file to look at, begin and end in seconds: all of a short one."""
    if duration <= PROBES * PROBE_SECONDS:
        return [(0.0, duration)]
    middles = duration * (np.arange(PROBES) + 0.5) / PROBES
    return [(float(middle - PROBE_SECONDS / 2), float(middle + PROBE_SECONDS / 2)) for middle in middles]


def _search(probes: list[Thumbs], regions: list[Thumbs], width: float, step: float) -> Match:
    """The best offset up to `width`, on a grid of `step` seconds."""
    lags = np.arange(-round(width / step), round(width / step) + 1) * step
    products = np.zeros((3, len(lags)))  # of first and other, of first, of other, summed over probes
    still = np.zeros((3, len(lags)))
    pixels = 0
    for (times, thumbs), (region_times, region) in zip(probes, regions):
        keep = np.unique(np.linspace(0, len(times) - 1, FRAMES_OF_A_PROBE).astype(int))
        times, thumbs = times[keep], thumbs[keep]
        if not len(region_times):
            continue
        pixels += thumbs.size
        for k, lag in enumerate(lags):
            at = times + lag
            valid = (at >= region_times[0] - step) & (at <= region_times[-1] + step)
            if valid.sum() < max(2, len(times) / 3):
                continue
            number = np.clip(np.searchsorted(region_times, at[valid]), 1, max(1, len(region_times) - 1))
            if len(region_times) > 1:
                number -= at[valid] - region_times[number - 1] <= region_times[number] - at[valid]
            else:
                number[:] = 0
            a, b = thumbs[valid], region[number]
            still[:, k] += _products(a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True))
            products[:, k] += _products(a - a.mean(0), b - b.mean(0))
    moving = bool(pixels and np.sqrt(products[1].max() / pixels) >= MOVING)
    correlations = _correlations(products if moving else still)
    if not moving:
        middle = len(lags) // 2
        return Match(0.0, float(correlations[middle]), moving=False)
    good = np.flatnonzero(correlations >= correlations.max() - TIE)
    best = good[np.argmin(np.abs(lags[good]))]
    return Match(float(lags[best]), float(correlations[best]))


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.vdot(a, b), np.vdot(a, a), np.vdot(b, b)], np.float64)


def _correlations(products: np.ndarray) -> np.ndarray:
    """Correlation from sums of products; -1 where nothing was compared, 1 of two that do not vary at all."""
    both, first, other = products
    size = np.sqrt(first * other)
    return np.where(size > 0, both / np.maximum(size, 1e-9), np.where(first + other > 0, 0.0, -1.0))
