"""8-bit 4:2:0 to RGB, in the integer arithmetic of FFmpeg's default x86 path, which the published model was trained on.

    Y' = ((8*Y + luma_offset) * luma_factor) >> 16,   u = 8*U - 1024,   v = 8*V - 1024
    R = Y' + (v*vr >> 16),   G = Y' + (u*ug >> 16) + (v*vg >> 16),   B = Y' + (u*ub >> 16),   clipped to 0..255

with chroma nearest, at `[y >> 1, x >> 1]`. FFmpeg itself takes this path for even heights only.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from sama.frames import Correction, Matrix


class YuvToRgb(NamedTuple):
    """The integer constants of one matrix and range."""

    luma_offset: int
    luma_factor: int
    vr: int
    ub: int
    ug: int
    vg: int


YUV_TO_RGB = {
    # (matrix, full_range)
    ("bt601", False): YuvToRgb(-128, 9539, 13075, 16525, -3209, -6660),
    ("bt709", False): YuvToRgb(-128, 9539, 14686, 17305, -1747, -4366),
    ("bt601", True): YuvToRgb(0, 8192, 11485, 14516, -2819, -5850),
    ("bt709", True): YuvToRgb(0, 8192, 12901, 15201, -1535, -3835),
}


@cache
def correction(used: Matrix, matrix: Matrix, full_range: bool, *, floored: bool = True) -> Correction:
    """What brings RGB that a decoder made with the matrix `used` to what FFmpeg makes with the right one.

    That is linear: `M(matrix) M(used)^-1`, without an offset, since both keep grey grey. floored: FFmpeg takes the path
    above, whose shifts drop fractions where the decoder rounds, half a level or so each; their mean is taken off.
    What stays: chroma that the decoder interpolated and FFmpeg did not, and colours that were cut to 0..255.
    """
    right, wrong = (_linear(YUV_TO_RGB[name, full_range]) for name in (matrix, used))
    factors = right @ np.linalg.inv(wrong)
    offset = -_dropped(YUV_TO_RGB[matrix, full_range]) if floored else np.zeros(3)
    return tuple((*row, add) for row, add in zip((factors.round(9) + 0.0).tolist(), offset.tolist()))


def _linear(c: YuvToRgb) -> np.ndarray:
    """The matrix from Y, U, V (without their offsets) to R, G, B, exact."""
    rows = [[c.luma_factor, 0, c.vr], [c.luma_factor, c.ug, c.vg], [c.luma_factor, c.ub, 0]]
    return np.array(rows) * 8 / 65536


def _dropped(c: YuvToRgb) -> np.ndarray:
    """What the shifts of R, G, B drop, on average over all values."""
    values = 8 * np.arange(256)
    luma = _fraction((values + c.luma_offset) * c.luma_factor)
    vr, ub, ug, vg = (_fraction((values - 1024) * factor) for factor in (c.vr, c.ub, c.ug, c.vg))
    return luma + np.array([vr, ug + vg, ub])


def _fraction(products: np.ndarray) -> float:
    return float(np.mean(products & 65535)) / 65536
