"""Colours that FFmpeg's scaler does not convert: YCgCo, and BT.2020 with constant luminance.

Formulas of ITU-T H.273, 8.3, in float64, so that frames are the same every time. FFmpeg brings the chroma to the luma's
grid, as it does for other matrices.
"""

from __future__ import annotations

from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import VideoReformatter

UNSPECIFIED = 2  # AVColorSpace
KR, KG, KB = 0.2627, 0.6780, 0.0593  # of BT.2020
ALPHA, BETA = 1.09929682680944, 0.018053968510807  # of its transfer characteristics


def ycgco(y: np.ndarray, cg: np.ndarray, co: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R', G', B' of luma 0..1 and chroma -0.5..0.5: equations 43 to 46."""
    rest = y - cg
    return rest + co, y + cg, rest - co


def bt2020_constant(y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R', G', B' of luma 0..1 and chroma -0.5..0.5: equations 50 to 62, where light, not its code, adds up to luma."""
    blue = y + cb * np.where(cb < 0, 1.9404, 1.5816)
    red = y + cr * np.where(cr < 0, 1.7182, 0.9938)
    green = _coded((_light(y) - KR * _light(red) - KB * _light(blue)) / KG)
    return red, green, blue


def _light(coded: np.ndarray) -> np.ndarray:
    coded = np.clip(coded, 0, 1)
    return np.where(coded < 4.5 * BETA, coded / 4.5, ((coded + ALPHA - 1) / ALPHA) ** (1 / 0.45))


def _coded(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return np.where(light < BETA, 4.5 * light, ALPHA * light**0.45 - (ALPHA - 1))


CONVERSIONS: dict[int, Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]] = {8: ycgco, 10: bt2020_constant}


def to_rgb(frame: av.VideoFrame, full_range: bool, reformatter: VideoReformatter) -> np.ndarray:
    """A frame whose colorspace is in `CONVERSIONS` as uint8 [H, W, 3]. FFmpegError where its layout is not known."""
    convert = CONVERSIONS[int(frame.colorspace)]
    bits = 8 if all(part.bits == 8 for part in frame.format.components) else 16
    frame.colorspace = UNSPECIFIED  # both before and after: only chroma's grid and the bits change
    planes = reformatter.reformat(frame, format="yuv444p" if bits == 8 else "yuv444p16le").planes
    kind, scale = np.dtype("u1" if bits == 8 else "<u2"), 1 << bits - 8
    y, *chroma = (
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width].astype(np.float64) / scale
        for plane in planes
    )
    first, span, chroma_span = (0, 255, 255) if full_range else (16, 219, 224)
    colors = convert((y - first) / span, *((part - 128) / chroma_span for part in chroma))
    return np.rint(255 * np.clip(np.stack(colors, axis=-1), 0, 1)).astype(np.uint8)
