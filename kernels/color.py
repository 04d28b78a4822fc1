"""8-bit 4:2:0 to RGB, in the integer arithmetic of FFmpeg's default x86 path, which the published model was trained on.

    Y' = ((8*Y + luma_offset) * luma_factor) >> 16,   u = 8*U - 1024,   v = 8*V - 1024
    R = Y' + (v*vr >> 16),   G = Y' + (u*ug >> 16) + (v*vg >> 16),   B = Y' + (u*ub >> 16),   clipped to 0..255

with chroma nearest, at `[y >> 1, x >> 1]`. FFmpeg itself takes this path for even heights only.
"""

from __future__ import annotations

from typing import NamedTuple


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
