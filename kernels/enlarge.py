"""Pixels of an image that Pillow would enlarge, without the enlarged image: for sources much longer than wide.

Published training enlarges an image to 256 pixels on its shorter side before anything else. One of 5000 x 1 becomes
1,280,000 x 256, a gigabyte, of which the input shows 65,536 pixels. Here each tap is computed from the source, in the
arithmetic of Pillow's `resize(..., BILINEAR)`, rounding included:

    taps     `centre = (at + 0.5) * source / enlarged`; the source pixels from `int(centre - 0.5)`, two at most, each by
             `1 - |its middle - centre|`, their sum made 1, as integers of 22 fractional bits
    value    `clip((sum(weight * pixel) + 2**21) >> 22)`, first along the row, then down the column
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sama.plan import Plan

BITS = 22  # of Pillow's weights

_ONE, _HALF = np.float32(1), np.float32(0.5)


def sample(image: np.ndarray, plan: Plan) -> np.ndarray:
    """Sample an image as if it had been enlarged to the plan's size.

    image: uint8 [h, w, 3], smaller than the plan's source or equal
    returns: float32 [3, Sh, Sw], 0..255
    """
    (y0, y1, wy), (x0, x1, wx) = (_taps(plan, axis) for axis in range(2))
    corners = [_pixels(image, plan, y, x).astype(np.float32) for y in (y0, y1) for x in (x0, x1)]  # [Sh, Sw, 3]
    wy, wx = wy[..., None], wx[..., None]
    top, bottom = ((_ONE - wx) * corners[k] + wx * corners[k + 1] for k in (0, 2))
    return np.ascontiguousarray(((_ONE - wy) * top + wy * bottom).transpose(2, 0, 1))


def pixels(image: np.ndarray, height: int, width: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The pixels (y, x) of the image enlarged to `height` x `width`: uint8 [*y.shape, 3]."""
    (top, bottom, down), (left, right, across) = (
        _weigh(at, *sizes) for at, *sizes in ((y, image.shape[0], height), (x, image.shape[1], width))
    )
    first, second = (_blend(image[row, left], image[row, right], across) for row in (top, bottom))
    return _blend(first, second, down)


def _pixels(image: np.ndarray, plan: Plan, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As `pixels`, through the plan's flip and rotation: black outside."""
    size = plan.height, plan.width
    if plan.warp is None:
        return pixels(image, *size, y, x)
    from_x, from_y = (at.astype(np.float32) - np.float32(n) * _HALF + _HALF for at, n in ((x, size[1]), (y, size[0])))
    x, y = (
        np.rint(((from_x * along[0] + from_y * along[1] + _ONE) * np.float32(n) - _ONE) * _HALF).astype(np.int64)
        for along, n in zip(plan.warp.matrix, size[::-1])
    )
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    y, x = np.where(inside, y, 0), np.where(inside, size[1] - 1 - x if plan.warp.flip else x, 0)
    return pixels(image, *size, y, x) * inside[..., None]


def _taps(plan: Plan, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second tap, int64, and weight of the second, float32, on one axis of the enlarged image: [Sh, Sw]."""
    pixel, size = np.indices(plan.size), (plan.height, plan.width)[axis]
    i, j = (pixel[k] // plan.fragment[k] for k in range(2))
    bit = (pixel[0] // plan.mask_cell[0] + pixel[1] // plan.mask_cell[1]) % 2 == 0
    slot = np.where(bit, *plan.slots[0, ::-1])
    level = plan.origins[slot, i, j, axis] + pixel[axis] % plan.fragment[axis]
    at = np.maximum(plan.steps[slot, axis] * (level.astype(np.float32) + _HALF) - _HALF, np.float32(0))
    first = np.minimum(at.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), at - first.astype(np.float32)


def _weigh(at: np.ndarray, source: int, enlarged: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both source pixels and the integer weights of them, [2, *at.shape], for places on one axis."""
    centre = (at + 0.5) * (source / enlarged)
    first = np.maximum((centre - 0.5).astype(np.int64), 0)
    second = np.minimum(first + 1, source - 1)
    weight = np.stack([1 - abs(first + 0.5 - centre), 1 - abs(first + 1.5 - centre)])
    weight[1][first + 1 >= source] = 0
    weight = np.maximum(weight, 0)
    return first, second, (weight / weight.sum(0) * (1 << BITS) + 0.5).astype(np.int32)


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    value = first * weight[0][..., None] + second * weight[1][..., None] + np.int32(1 << (BITS - 1))
    return (value >> BITS).clip(0, 255).astype(np.uint8)
