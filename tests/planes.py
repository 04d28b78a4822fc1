"""Random frames in every layout, and the same frame as RGB by the reference."""

import numpy as np

from sama.frames import Frame

COLORS = [(matrix, full) for matrix in ("bt601", "bt709") for full in (False, True)]


CORRECTIONS = [  # of colours that were made with the wrong matrix, strong enough to be cut at both ends
    ((1.1, -0.2, 0.05, -3.0), (0.02, 1.3, -0.25, 40.0), (-0.4, 0.1, 1.2, 0.5)),
    ((0.5, 0.25, 0.25, 0.0), (0.0, 1.0, 0.0, -1.5), (0.0, 0.0, 1.0, 0.0)),
]


def random_frame(rng, layout, height, width, matrix="bt601", full_range=False, correction=None):
    """A `Frame` of noise, numpy planes."""
    half = (height + 1) // 2, (width + 1) // 2
    shapes = {
        "rgb": [(height, width, 3)],
        "i420": [(height, width), half, half],
        "nv12": [(height, width), (*half, 2)],
    }[layout]
    planes = tuple(rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes)
    return Frame(layout, planes, matrix, full_range, correction)
