"""How a sampled clip lies in memory: as a picture, or already cut into the patches that the model embeds.

"video"    [3, T, Sh, Sw]
"patches"  [T/2, Sh/4, Sw/4, 96], the last axis ordered (channel, frame, row, column) as the weights of the model's
           patch embedding, so that embedding is one matrix product

Either way the address of a value is `channel * step + frames[t] + rows[y] + columns[x]`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

OutputLayout = Literal["video", "patches"]
LAYOUTS: tuple[OutputLayout, ...] = ("video", "patches")
PATCH = (2, 4, 4)  # frames, rows, columns


class Addresses(NamedTuple):
    """int64 offsets in elements: a step per channel, and one entry per frame, row and column."""

    channel: int
    frames: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def shape(layout: OutputLayout, frames: int, height: int, width: int) -> tuple[int, ...]:
    """Shape of one sampled clip; ValueError where patches do not fit."""
    if layout == "video":
        return 3, frames, height, width
    if layout != "patches":
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if any(size % patch for size, patch in zip((frames, height, width), PATCH)):
        raise ValueError(
            f"a clip of {frames} frames of {height}x{width} cannot be cut into patches of {PATCH[0]} frames of "
            f'{PATCH[1]}x{PATCH[2]}: each size must be a multiple; use layout="video", which the model pads'
        )
    return frames // PATCH[0], height // PATCH[1], width // PATCH[2], 3 * PATCH[0] * PATCH[1] * PATCH[2]


def addresses(layout: OutputLayout, frames: int, height: int, width: int) -> Addresses:
    """Where every value of one sampled clip goes."""
    out = shape(layout, frames, height, width)
    t, y, x = (np.arange(n, dtype=np.int64) for n in (frames, height, width))
    if layout == "video":
        return Addresses(frames * height * width, t * height * width, y * width, x)
    patch = PATCH[0] * PATCH[1] * PATCH[2]
    return Addresses(
        patch,
        t // PATCH[0] * out[1] * out[2] * out[3] + t % PATCH[0] * PATCH[1] * PATCH[2],
        y // PATCH[1] * out[2] * out[3] + y % PATCH[1] * PATCH[2],
        x // PATCH[2] * out[3] + x % PATCH[2],
    )


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
