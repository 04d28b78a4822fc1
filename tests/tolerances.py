"""The one tolerance policy of the tests.

PIXEL   before normalisation, 0..255: kernels and the published sampler round the same float32 coordinates, so what is
        left is the order of sums (5e-5 seen); a coordinate rounded otherwise would show as 1e-2 and more on noise
VALUE   after normalisation, the same differences divided by the deviation
HALF    16-bit outputs equal the rounded float32 output exactly: no tolerance
"""

import numpy as np

PIXEL = 1e-3
VALUE = 1e-5


def assert_close(got, expected, tolerance, *, outliers=0.0):
    """Largest absolute difference within `tolerance` for all but the share `outliers` of values; NaN never passes."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"got shape {got.shape}, expected {expected.shape}"
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    bad = ~(difference <= tolerance)
    assert bad.mean() <= outliers, f"{bad.sum()} of {bad.size} values off by more than {tolerance}: {difference.max()}"
