"""The one tolerance policy of the tests.

PIXEL   before normalisation, 0..255: kernels and the published sampler round the same float32 coordinates, so what is
        left is the order of sums (5e-5 seen); a coordinate rounded otherwise would show as 1e-2 and more on noise
VALUE   after normalisation, the same differences divided by the deviation
FUSED   0..255, only where torch's own interpolation fuses multiplication and addition in its coordinates, as it does on
        a GPU and in some CPU builds (2.11): half a unit in the last place of a coordinate, 0.013 on noise at 1080p
HALF    16-bit outputs equal the rounded float32 output exactly: no tolerance
"""

from functools import cache

import numpy as np
import torch

PIXEL = 1e-3
VALUE = 1e-5
FUSED = 0.02


@cache
def reference_tolerance() -> float:
    """What the reference on this CPU, with this torch, is held to: PIXEL, or FUSED where torch fuses."""
    picture = np.random.default_rng(0).integers(0, 256, (360, 640)).astype(np.float32)
    for target in ((341, 606), (302, 537), (224, 398)):
        (y0, y1, wy), (x0, x1, wx) = (_taps(*sizes) for sizes in zip(picture.shape, target))
        rows = [(1 - wx) * picture[y][:, x0] + wx * picture[y][:, x1] for y in (y0, y1)]
        expected = (1 - wy[:, None]) * rows[0] + wy[:, None] * rows[1]
        frames = torch.from_numpy(picture).repeat(3, 2, 1, 1)
        got = torch.nn.functional.interpolate(frames, size=target, mode="bilinear", align_corners=False)
        if np.abs(got[0, 0].numpy() - expected).max() > PIXEL:
            return FUSED
    return PIXEL


def _taps(size, target):
    half, step = np.float32(0.5), np.float32(size) / np.float32(target)
    at = np.maximum(step * (np.arange(target, dtype=np.float32) + half) - half, np.float32(0))
    low = np.minimum(at.astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def assert_close(got, expected, tolerance, *, outliers=0.0):
    """Largest absolute difference within `tolerance` for all but the share `outliers` of values; NaN never passes."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"got shape {got.shape}, expected {expected.shape}"
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    bad = ~(difference <= tolerance)
    assert bad.mean() <= outliers, f"{bad.sum()} of {bad.size} values off by more than {tolerance}: {difference.max()}"
