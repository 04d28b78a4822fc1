"""The kinds of degradation: `KINDS` of clips and `IMAGE_KINDS` of images, from hardly visible to awful.

A degradation takes I420 frames (`sama.corpus.i420`) and gives frames, or a `Stream` where an encoder is part of it; the
file of the set is then that encoder's output. Randomness comes from the content's name alone (`seeded`), so that a set
can be made again. The kinds in `UNSEEN` are kept for the test split: they show what a model makes of a degradation that
it was not trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import correlate1d, gaussian_filter

from sama.corpus.codec import Stream, transcode
from sama.corpus.i420 import change_planes


def seeded(*key: object) -> np.random.Generator:
    """A generator seeded by names and numbers: the same in every process."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


@dataclass(frozen=True)
class Kind:
    """A kind of degradation.

    weakest, strongest: range of the strength, in `unit`
    apply: (frames, strength, content name) -> the degraded stream
    whole: strengths are whole numbers, odd in training and even elsewhere, so that splits share none
    bend: exponent that spreads strengths: above 1 more of them are weak, below 1 more are strong
    """

    weakest: float
    strongest: float
    unit: str
    apply: Callable[[np.ndarray, float, str], Stream]
    whole: bool = False
    bend: float = 1

    def strength(self, u: float, split: str) -> float:
        """The strength at a place u in [0, 1) of the range."""
        value = self.weakest + u**self.bend * (self.strongest - self.weakest)
        if self.whole:
            odd = split == "train"
            return float(2 * round((value - odd) / 2) + odd)
        return round(value, 3)


def blur(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in pixels of luma."""
    return change_planes(
        frames, lambda plane, n: gaussian_filter(plane.astype(np.float32), sigma / (2 if n else 1), truncate=3)
    )


def motion_blur(frames: np.ndarray, length: float, content: str) -> np.ndarray:
    """Mean over `length` pixels, which may be fractional, along rows or columns (the content's name decides)."""
    axis = int(seeded(content, "motion").integers(2))

    def smear(plane, n):
        length_here = max(length / (2 if n else 1), 1)
        half = int(np.ceil((length_here - 1) / 2))
        box = np.ones(2 * half + 1)
        box[[0, -1]] = 1 - (half - (length_here - 1) / 2) if half else 1
        return correlate1d(plane.astype(np.float32), box / box.sum(), axis=axis)

    return change_planes(frames, smear)


def resize(frames: np.ndarray, factor: float) -> np.ndarray:
    """Shrink by a factor, antialiased, and enlarge again, both bicubic: a low rung of a streaming ladder as a player
    shows it."""

    def down_and_up(plane, n):
        small = [max(round(length / factor), 2) for length in plane.shape[::-1]]
        image = Image.fromarray(plane).resize(small, Image.Resampling.BICUBIC)
        return np.asarray(image.resize(plane.shape[::-1], Image.Resampling.BICUBIC))

    return change_planes(frames, down_and_up)


def noise(frames: np.ndarray, sigma: float, content: str) -> np.ndarray:
    """Gaussian noise, new in every frame: `sigma` grey levels on luma, half as much on chroma."""
    rng = seeded(content, "noise")

    def add(plane, n):
        return plane + rng.standard_normal(plane.shape, np.float32) * np.float32(sigma / (2 if n else 1))

    return change_planes(frames, add)


def stutter(frames: np.ndarray, hold: float) -> np.ndarray:
    """Repeat every shown frame for `hold` frames on average, in place of those that follow it."""
    return frames[(np.floor(np.arange(len(frames)) / hold) * hold).astype(int)]


def x264(frames: np.ndarray, crf: float) -> Stream:
    """H.264, without processor-specific arithmetic: with it, runs of the same program were seen to differ in some
    bytes."""
    options = {"preset": "veryfast", "crf": f"{crf:.3f}", "x264-params": "cpu-independent=1"}
    return Stream(frames, "libx264", options)


def x265(frames: np.ndarray, crf: float) -> Stream:
    params = "pools=none:frame-threads=1:wpp=0:log-level=none"
    return Stream(frames, "libx265", {"preset": "faster", "crf": f"{crf:.3f}", "x265-params": params})


def vp9(frames: np.ndarray, crf: float) -> Stream:
    options = {"crf": f"{crf:.0f}", "b": "0", "deadline": "realtime", "cpu-used": "7", "row-mt": "0"}
    return Stream(frames, "libvpx-vp9", options)


def mpeg4(frames: np.ndarray, quantiser: float) -> Stream:
    q = f"{quantiser:.0f}"
    return Stream(frames, "mpeg4", {"qmin": q, "qmax": q, "g": "12", "bf": "2"})


def mjpeg(frames: np.ndarray, quantiser: float) -> np.ndarray:
    """Frames after Motion JPEG; the set stores them as H.264."""
    q = f"{quantiser:.0f}"
    return transcode(Stream(frames, "mjpeg", {"qmin": q, "qmax": q}))


def jpeg(frames: np.ndarray, strength: float) -> Stream:
    return Stream(frames, "jpeg", {"quality": 100 - int(strength)})


def webp(frames: np.ndarray, strength: float) -> Stream:
    return Stream(frames, "webp", {"quality": 100 - int(strength)})


def mixture(content: str, kind: str, strength: float) -> np.ndarray:
    """Strengths of the two parts of a mixed kind, each `strength` times a share in [0.5, 1) fixed by the content."""
    return strength * seeded(content, kind).uniform(0.5, 1, 2)


def resize_x264(frames: np.ndarray, strength: float, content: str) -> Stream:
    a, b = mixture(content, "resize+x264", strength)
    return x264(resize(frames, 1 + 3.5 * a), 20 + 24 * b)


def noise_x264(frames: np.ndarray, strength: float, content: str) -> Stream:
    a, b = mixture(content, "noise+x264", strength)
    return x264(noise(frames, 2 + 25 * a, content), 18 + 22 * b)


def resize_jpeg(frames: np.ndarray, strength: float, content: str) -> Stream:
    a, b = mixture(content, "resize+jpeg", strength)
    return jpeg(resize(frames, 1 + 3.5 * a), 10 + 80 * b)


def blur_noise(frames: np.ndarray, strength: float, content: str) -> Stream:
    a, b = mixture(content, "blur+noise", strength)
    return Stream(noise(blur(frames, 0.4 + 3 * a), 1 + 18 * b, content))


KINDS = {
    "x264": Kind(22, 48, "CRF", lambda f, s, c: x264(f, s)),
    "x265": Kind(22, 48, "CRF", lambda f, s, c: x265(f, s)),
    "mpeg4": Kind(2.5, 30.5, "quantiser", lambda f, s, c: mpeg4(f, s), whole=True),
    "resize": Kind(1.3, 7, "factor", lambda f, s, c: Stream(resize(f, s)), bend=1.3),
    "blur": Kind(0.5, 5, "sigma, pixels", lambda f, s, c: Stream(blur(f, s)), bend=1.6),
    "noise": Kind(2, 32, "sigma, grey levels", lambda f, s, c: Stream(noise(f, s, c)), bend=1.6),
    "stutter": Kind(1.5, 15, "frames a picture is held", lambda f, s, c: Stream(stutter(f, s)), bend=1.3),
    "resize+x264": Kind(0.1, 1, "share of the worst", resize_x264),
    "noise+x264": Kind(0.05, 1, "share of the worst", noise_x264),
    "blur+noise": Kind(0.05, 1, "share of the worst", blur_noise, bend=1.3),
    "mjpeg": Kind(2.5, 30.5, "quantiser", lambda f, s, c: Stream(mjpeg(f, s)), whole=True),
    "vp9": Kind(26, 63, "CRF", lambda f, s, c: vp9(f, s), whole=True),
    "motion-blur": Kind(2, 20, "pixels", lambda f, s, c: Stream(motion_blur(f, s, c)), bend=1.6),
}
IMAGE_KINDS = {
    "jpeg": Kind(15, 97, "100 - quality", lambda f, s, c: jpeg(f, s), whole=True, bend=0.6),
    **{kind: KINDS[kind] for kind in ("resize", "blur", "noise")},
    "resize+jpeg": Kind(0.1, 1, "share of the worst", resize_jpeg),
    **{kind: KINDS[kind] for kind in ("blur+noise", "motion-blur")},
    "webp": Kind(15, 100, "100 - quality", lambda f, s, c: webp(f, s), whole=True, bend=0.6),
}
UNSEEN = ("mjpeg", "vp9", "motion-blur", "webp")
