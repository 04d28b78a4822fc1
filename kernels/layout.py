"""Memory layout of a sampled clip: a picture, or the patches that the video model embeds.

"video"    [3, T, Sh, Sw]
"patches"  [T/2, Sh/4, Sw/4, 96], the last axis ordered (channel, frame, row, column) like the weights of the model's
           patch embedding, so that the embedding is one matrix product

In both layouts the address of a value is `channel * step + frames[t] + rows[y] + columns[x]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

OutputLayout = Literal["video", "patches"]
LAYOUTS: tuple[OutputLayout, ...] = ("video", "patches")
PATCH = (2, 4, 4)  # the video model's patch: frames, rows, columns
PATCH_VALUES = 3 * PATCH[0] * PATCH[1] * PATCH[2]
TOKEN = 32  # pixels of the side of what a network has a value for
STEMMED = ("pico", "lite")  # sizes of networks whose stem takes patches, for images too

Offsets: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


class Addresses(NamedTuple):
    """Offsets in elements, int64: the step from a channel to the next, and one entry per frame, row and column."""

    channel: int
    frames: Offsets
    rows: Offsets
    columns: Offsets


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up to an integer."""
    return -(-a // b)


def is_patches(shape: Sequence[int]) -> bool:
    """Whether a batch of this shape holds patches `[B, T/2, H/4, W/4, 96]`; else it holds frames or images.

    A shape that fits both patches and frames `[B, 3, T, H, W]` counts as frames.
    """
    return len(shape) == 5 and shape[1] != 3 and shape[-1] == PATCH_VALUES


def fits_patches(frames: int, size: Sequence[int]) -> bool:
    """Whether `frames` pictures of `size` (height, width) can be cut into whole patches.

    With the size of a fragment, the answer holds for every grid of such fragments.
    """
    return all(n % patch == 0 for n, patch in zip((frames, *size), PATCH, strict=True))


def shape(layout: OutputLayout, frames: int, height: int, width: int) -> tuple[int, ...]:
    """Shape of one sampled clip; ValueError for an unknown layout, and for a clip that has no whole patches."""
    if layout == "video":
        return 3, frames, height, width
    if layout != "patches":
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if not fits_patches(frames, (height, width)):
        raise ValueError(
            f"a clip of {frames} frames of {height}x{width} cannot be cut into patches of {PATCH[0]} frames of "
            f'{PATCH[1]}x{PATCH[2]}: each size must be a multiple; use layout="video", which the model pads'
        )
    return frames // PATCH[0], height // PATCH[1], width // PATCH[2], PATCH_VALUES


def addresses(layout: OutputLayout, frames: int, height: int, width: int) -> Addresses:
    """The address of every value of one sampled clip; ValueError as in `shape`."""
    out = shape(layout, frames, height, width)
    t, y, x = (np.arange(n, dtype=np.int64) for n in (frames, height, width))
    if layout == "video":
        return Addresses(frames * height * width, t * height * width, y * width, x)
    channel = PATCH[0] * PATCH[1] * PATCH[2]
    return Addresses(
        channel,
        t // PATCH[0] * out[1] * out[2] * out[3] + t % PATCH[0] * PATCH[1] * PATCH[2],
        y // PATCH[1] * out[2] * out[3] + y % PATCH[1] * PATCH[2],
        x // PATCH[2] * out[3] + x % PATCH[2],
    )
