"""The demo's label: `mos` in 0..100, higher is better, measured against the undegraded frames. Nobody votes.

1. *Registration.* Each frame shown is matched with the undegraded frame, `SEARCH` frames before to after, that it looks
   most like at an eighth of the size. The mean over all frames of how far that one lies is the **delay** in frames: 0
   but for dropped frames.
2. *Distortion* of every `STEP`th frame against its match, on luma: `d = sqrt((1 - MS-SSIM) * GMSD)`, averaged over the
   frames. MS-SSIM: Wang et al. 2003, the five published weights, windows of 7 x 7; GMSD: Xue et al. 2014.
3. *Content.* The same blur costs a lawn more SSIM than it costs a sky. So `d` is divided by what four fixed
   degradations (`anchors`) give on this content, geometric mean, in units of `TYPICAL`, their average over contents.
4. *Scale.* `mos = 100 / (1 + (d / HALF_DISTORTION) ** SLOPE) / (1 + (delay / HALF_DELAY) ** SLOPE_DELAY)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import prewitt, uniform_filter

from sama.corpus.codec import Stream, transcode
from sama.corpus.degrade import blur, noise, resize
from sama.corpus.i420 import luma
from sama.errors import InputError

SEARCH = 24
STEP = 7
TYPICAL = 0.045
HALF_DISTORTION, SLOPE = 0.042, 1.3
HALF_DELAY, SLOPE_DELAY = 3.0, 1.2


class DemoLabeller:
    """The label as `sama.corpus.build` asks for it: one column, `mos`, to three digits."""

    columns = ("mos",)

    def prepare(self, name: str, pristine: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
        """A function from the frames that a version shows to its label. pristine: uint8 [T, H * 3/2, W]"""
        anchor = anchors(name, pristine)
        return lambda shown: {"mos": round(quality(measure(pristine, shown), anchor), 3)}


def distortion(reference: np.ndarray, shown: np.ndarray) -> float:
    """sqrt((1 - MS-SSIM) * GMSD) of two luma planes, uint8 or float [H, W] in 0..255; 0 for equal ones."""
    reference, shown = reference.astype(np.float32), shown.astype(np.float32)
    return float(np.sqrt(max(1 - ms_ssim(reference, shown), 0) * gmsd(reference, shown)))


def ms_ssim(reference: np.ndarray, shown: np.ndarray) -> float:
    """Multi-scale SSIM of float32 planes [H, W] in 0..255, over as many of its five scales as leave 7 pixels."""
    value, weights = 1.0, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        mean_x, mean_y, xx, yy, xy = (
            uniform_filter(plane, 7, mode="reflect")
            for plane in (reference, shown, reference * reference, shown * shown, reference * shown)
        )
        variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        similarity = (2 * covariance + 58.5225) / (variance_x + variance_y + 58.5225)
        smallest = min(reference.shape) // 2 < 7
        if scale == len(weights) - 1 or smallest:
            similarity = similarity * (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
            weight = sum(weights[scale:])
        value *= max(float(similarity.mean()), 0.0) ** weight
        if smallest:
            break
        reference, shown = block_means(reference), block_means(shown)
    return value


def gmsd(reference: np.ndarray, shown: np.ndarray) -> float:
    """Gradient magnitude similarity deviation of float32 planes [H, W] in 0..255, at half the size."""

    def magnitude(plane):
        return np.hypot(prewitt(plane, 0), prewitt(plane, 1)) / 3

    x, y = magnitude(block_means(reference)), magnitude(block_means(shown))
    return float(((2 * x * y + 170) / (x * x + y * y + 170)).std())


def block_means(planes: np.ndarray, by: int = 2) -> np.ndarray:
    """Means of blocks of `by` x `by` pixels, [..., H, W] to float32 [..., H // by, W // by]; pixels at the right and
    below that fill no block are left out."""
    height, width = planes.shape[-2] // by, planes.shape[-1] // by
    planes = planes[..., : height * by, : width * by]
    return planes.reshape(*planes.shape[:-2], height, by, width, by).mean((-3, -1), dtype=np.float32)


def register(reference: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The frame of the reference that each frame shows, int [T]: its own, unless others are clearly more alike; then
    the nearest in time of those that are equally alike.

    reference, shown: luma, uint8 [T, H, W]
    """
    reference, shown = block_means(reference, 8), block_means(shown, 8)
    matches = np.arange(len(shown))
    for t, picture in enumerate(shown):
        first = max(t - SEARCH, 0)
        errors = np.abs(reference[first : t + SEARCH + 1] - picture).mean((1, 2))
        if errors.min() < 0.6 * errors[t - first] - 0.1:
            candidates = first + np.flatnonzero(errors <= 1.05 * errors.min() + 0.02)
            matches[t] = candidates[np.abs(candidates - t).argmin()]
    return matches


def anchors(content: str, frames: np.ndarray) -> float:
    """What four fixed degradations do to this content: the geometric mean of their distortions on two frames."""
    chosen = frames[[len(frames) // 4, 3 * len(frames) // 4]]
    changed = (
        blur(chosen, 2),
        resize(chosen, 3),
        noise(chosen, 12, content),
        transcode(Stream(chosen, "mjpeg", {"qmin": "16", "qmax": "16"})),
    )
    values = [distortion(x, y) for other in changed for x, y in zip(luma(chosen), luma(other))]
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-4)))))


class Measured(NamedTuple):
    """distortion: `d` before it is set in relation to the content, 0 for equal frames. delay: in frames"""

    distortion: float
    delay: float


def measure(reference: np.ndarray, shown: np.ndarray) -> Measured:
    """Distortion and delay of a clip against the undegraded one, both I420, uint8 [T, H * 3/2, W]. `InputError` where
    their shapes differ."""
    reference, shown = luma(reference), luma(shown)
    if shown.shape != reference.shape:
        raise InputError(f"frames {shown.shape} are compared with {reference.shape}")
    matches = register(reference, shown)
    delay = float(np.abs(matches - np.arange(len(matches))).mean())
    chosen = range(min(STEP // 2, len(shown) - 1), len(shown), STEP)
    return Measured(float(np.mean([distortion(reference[matches[t]], shown[t]) for t in chosen])), delay)


def quality(measured: Measured, anchor: float) -> float:
    """The label, 0..100. anchor: what `anchors` gives on the content"""
    spatial = 1 / (1 + (measured.distortion * TYPICAL / anchor / HALF_DISTORTION) ** SLOPE)
    temporal = 1 / (1 + (measured.delay / HALF_DELAY) ** SLOPE_DELAY)
    return 100 * spatial * temporal
