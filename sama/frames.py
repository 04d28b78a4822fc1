"""What travels from a decoder to a kernel: pictures in the decoder's own memory, not yet converted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sama.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Plane = np.ndarray | torch.Tensor

Layout = Literal["rgb", "i420", "nv12"]
Matrix = Literal["bt601", "bt709"]
Correction = tuple[tuple[float, float, float, float], ...]  # for R, G, B: factors of R, G, B, then what is added

LAYOUTS: tuple[Layout, ...] = ("rgb", "i420", "nv12")
MATRICES: tuple[Matrix, ...] = ("bt601", "bt709")


@dataclass(frozen=True, slots=True)
class Frame:
    """One 8-bit picture as its decoder holds it: views, no copies, any strides (a rotated view is as good).

    layout   planes (uint8 numpy arrays, or torch tensors on any device)
    "rgb"    (rgb,)     [H, W, 3]
    "i420"   (y, u, v)  [H, W], [ceil(H/2), ceil(W/2)], [ceil(H/2), ceil(W/2)]
    "nv12"   (y, uv)    [H, W], [ceil(H/2), ceil(W/2), 2]

    matrix and full_range say how 4:2:0 planes become RGB (`sama.kernels.color`); "rgb" ignores them.
    correction: for "rgb" whose decoder took the wrong matrix. Kernels apply it to blended values, which are then cut to
        0..255; None costs nothing.
    `InputError` where planes or a correction do not fit the layout, TypeError where planes are not uint8.
    """

    layout: Layout
    planes: tuple[Plane, ...]
    matrix: Matrix = "bt601"
    full_range: bool = False
    correction: Correction | None = None

    def __post_init__(self) -> None:
        _check(self, [tuple(plane.shape) for plane in self.planes])

    @property
    def height(self) -> int:
        return self.planes[0].shape[0]

    @property
    def width(self) -> int:
        return self.planes[0].shape[1]

    def channels(self) -> tuple[Plane, ...]:
        """Three views: R, G, B of [H, W], or Y of [H, W] and U, V at half size (read at `[y >> 1, x >> 1]`)."""
        return _channels(self)


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip whose frames lie in common memory: as `Frame`, with a leading axis T on every plane. A sequence of frames.

    Wherever a clip is taken, any sequence of equally large `Frame` will do.
    """

    layout: Layout
    planes: tuple[Plane, ...]
    matrix: Matrix = "bt601"
    full_range: bool = False
    correction: Correction | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(plane.shape) for plane in self.planes]
        if len({shape[:1] for shape in shapes}) != 1 or not shapes[0] or shapes[0][0] == 0:
            raise InputError(f"a clip needs planes with the same number of frames, at least 1; got shapes {shapes}")
        _check(self, [shape[1:] for shape in shapes])

    def __len__(self) -> int:
        return self.planes[0].shape[0]

    def __getitem__(self, t: int) -> Frame:
        planes = tuple(plane[t] for plane in self.planes)
        return Frame(self.layout, planes, self.matrix, self.full_range, self.correction)

    def channels(self) -> tuple[Plane, ...]:
        """As `Frame.channels`, each with the leading axis T."""
        return _channels(self)


def _channels(pictures: Frame | Clip) -> tuple[Plane, ...]:
    if pictures.layout == "rgb":
        rgb = pictures.planes[0]
        return rgb[..., 0], rgb[..., 1], rgb[..., 2]
    if pictures.layout == "nv12":
        y, uv = pictures.planes
        return y, uv[..., 0], uv[..., 1]
    return pictures.planes


def _check(pictures: Frame | Clip, got: list[tuple[int, ...]]) -> None:
    layout, matrix = pictures.layout, pictures.matrix
    if layout not in LAYOUTS:
        raise InputError(f"unknown frame layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if matrix not in MATRICES:
        raise InputError(f"unknown colour matrix {matrix!r}; known: {', '.join(MATRICES)}")
    if pictures.correction is not None:
        if layout != "rgb":
            raise InputError(f'only "rgb" frames can have a correction; got one for {layout!r}, which has a matrix')
        lengths = [len(row) for row in pictures.correction]
        if lengths != [4, 4, 4]:
            raise InputError(f"a correction is 3 rows of 4 numbers; got rows of {lengths}")
    if not got or len(got[0]) < 2 or 0 in got[0]:
        raise InputError(f"a frame needs at least one pixel; got planes of shapes {got}")
    height, width = got[0][:2]
    half = ((height + 1) // 2, (width + 1) // 2)
    expected = {
        "rgb": [(height, width, 3)],
        "i420": [(height, width), half, half],
        "nv12": [(height, width), (*half, 2)],
    }
    if got != expected[layout]:
        raise InputError(f"{layout} planes of a {width}x{height} frame: got shapes {got}, expected {expected[layout]}")
    dtypes = [str(plane.dtype).removeprefix("torch.") for plane in pictures.planes]
    if dtypes != ["uint8"] * len(dtypes):
        raise TypeError(f"planes must be uint8, 0..255; got {', '.join(dtypes)}")
