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
    rng = np.random.default_rng(0)
    size, target = 517, 333
    row = rng.integers(0, 256, size).astype(np.float32)
    at = np.float32(size) / np.float32(target) * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(
        0.5
    )
    low = at.astype(np.int64)
    weight = at - low.astype(np.float32)
    expected = (1 - weight) * row[low] + weight * row[np.minimum(low + 1, size - 1)]
    picture = torch.from_numpy(row).expand(3, 2, 64, size)
    got = torch.nn.functional.interpolate(picture, size=(64, target), mode="bilinear", align_corners=False)
    return PIXEL if np.abs(got[0, 0, 0].numpy() - expected).max() <= PIXEL else FUSED


def assert_close(got, expected, tolerance, *, outliers=0.0):
    """Largest absolute difference within `tolerance` for all but the share `outliers` of values; NaN never passes."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"got shape {got.shape}, expected {expected.shape}"
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    bad = ~(difference <= tolerance)
    assert bad.mean() <= outliers, f"{bad.sum()} of {bad.size} values off by more than {tolerance}: {difference.max()}"
