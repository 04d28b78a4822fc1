"""What a picture shows of its own past: black bars, blocks, missing detail. For `sama.corpus.masters`.

All functions take luma planes, uint8 [H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PATCH = 64  # pixels a side, of the patches whose spectrum is measured
SHARPEST = 0.15  # share of the patches that count: what is in focus
DETAIL = 0.08  # of the energy at low frequencies, a frequency's own divided by its usual fall
BAR_LUMA, BAR_SPREAD = 24, 2.5  # a row or column of a black bar: no brighter in the mean, no livelier
BIN = 1 / 20  # of Nyquist's frequency
LEAST_ACTIVITY = 0.2  # grey levels between neighbours


class Detail(NamedTuple):
    """cutoff: frequency up to which there is detail, as a share of Nyquist's, 1 for sharp pictures
    top: energy at the highest frequencies, relative as in `DETAIL`; noise and texture leave some, enlarging none
    """

    cutoff: float
    top: float


def detail(luma: np.ndarray) -> Detail:
    """How far up the spectrum of the sharpest patches has detail.

    Power spectra of natural pictures fall with the square of the frequency f. So the radial mean of power times f^2 is
    about even up to where a lens, a denoiser or an enlargement has cut it off; it is measured in units of its mean
    between 0.1 and 0.3 of Nyquist's frequency.
    """
    size = min(PATCH, *luma.shape)
    rows, columns = (length // size for length in luma.shape)
    grid = luma[: rows * size, : columns * size].reshape(rows, size, columns, size)
    patches = grid.swapaxes(1, 2).reshape(-1, size, size)
    down, right = np.diff(patches[:, ::2].astype(np.int16), axis=2), np.diff(patches[..., ::2].astype(np.int16), axis=1)
    activity = np.abs(down).mean((1, 2)) + np.abs(right).mean((1, 2))
    chosen = np.argsort(-activity, kind="stable")[: max(round(len(patches) * SHARPEST), min(4, len(patches)))]
    sharp = patches[chosen].astype(np.float32)
    window = np.hanning(size + 2)[1:-1].astype(np.float32)
    sharp = (sharp - sharp.mean((1, 2), keepdims=True)) * window * window[:, None]
    rounding = float((window**2).sum()) ** 2 / 12  # what rounding to whole grey levels adds at each frequency
    power = np.maximum(np.mean([np.abs(np.fft.rfft2(patch)) ** 2 for patch in sharp], axis=0) - rounding, 0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * 2
    bins = np.minimum((frequency / BIN).astype(int), round(1 / BIN))
    count = np.bincount(bins.ravel())
    spectrum = np.bincount(bins.ravel(), power.ravel())[:-1] / np.maximum(count[:-1], 1)
    spectrum = spectrum * (np.arange(len(spectrum)) + 0.5) ** 2
    level = spectrum / max(float(spectrum[2:6].mean()), 1e-9)
    below = np.flatnonzero(level < DETAIL)  # above it there may be mirror images, of enlarging
    return Detail(float(below[below > 1][0] * BIN) if (below > 1).any() else 1.0, float(level[-3:].mean()))


def blockiness(luma: np.ndarray) -> float:
    """How much larger steps are at the borders of 8 x 8 blocks, wherever the grid lies, than elsewhere: 1 for none."""
    worst = 1.0
    for plane in (luma, luma.T):
        steps = np.minimum(np.abs(np.diff(plane.astype(np.int16), axis=1)), 16)  # edges of objects count little
        columns = steps.mean(0)[: (plane.shape[1] - 1) // 8 * 8].reshape(-1, 8).mean(0) + 0.5
        worst = max(worst, float(columns.max() / np.median(columns)))
    return worst


def activity(luma: np.ndarray) -> float:
    """Mean difference of neighbours, in grey levels: next to 0 for what is flat."""
    return float(np.abs(np.diff(luma.astype(np.int16), axis=1)).mean())


def picture_area(pictures: Sequence[np.ndarray]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what no black bar covers in any of the pictures; even, and the whole picture where
    less than a quarter would be left."""
    height, width = pictures[0].shape
    spans = []
    for axis, length in ((1, width), (0, height)):
        across = 1 - axis
        bright = np.max([picture.mean(across) for picture in pictures], axis=0)
        lively = np.max([picture.std(across) for picture in pictures], axis=0)
        inside = np.flatnonzero((bright > BAR_LUMA) | (lively > BAR_SPREAD))
        first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, length)
        spans.append((first + first % 2, last - last % 2))
    (left, right), (top, bottom) = spans
    if (right - left) * (bottom - top) * 4 < width * height:
        return 0, 0, width - width % 2, height - height % 2
    return left, top, right, bottom


def thumbnail(luma: np.ndarray) -> np.ndarray:
    """A picture in small, float32 [24 * 24], of mean 0 and length 1: its product with another's is 1 for equal ones."""
    from PIL import Image

    small = np.asarray(Image.fromarray(luma).resize((24, 24), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)
