"""Frames in I420: 8-bit 4:2:0, BT.709 limited range.

A clip is one array, uint8 [T, H * 3/2, W] with even H and W: in each frame H rows of luma, then the two chroma planes
of half the height and width, flattened.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def split_planes(frame: np.ndarray) -> list[np.ndarray]:
    """The planes of a frame [H * 3/2, W] as views: luma [H, W] and two of chroma [H/2, W/2]."""
    height, width = frame.shape[0] * 2 // 3, frame.shape[1]
    chroma = frame[height:].reshape(2, height // 2, width // 2)
    return [frame[:height], chroma[0], chroma[1]]


def luma(frames: np.ndarray) -> np.ndarray:
    """The luma of a clip [T, H * 3/2, W] as a view [T, H, W]."""
    return frames[:, : frames.shape[1] * 2 // 3]


def change_planes(frames: np.ndarray, change: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """A new clip: each plane is replaced by `change(plane, n)`, rounded and clipped to uint8; n is 0 for luma, 1 and 2
    for chroma."""
    out = np.empty_like(frames)
    for before, after in zip(frames, out):
        for n, (plane, target) in enumerate(zip(split_planes(before), split_planes(after))):
            target[:] = np.clip(np.rint(change(plane, n)), 0, 255)
    return out
