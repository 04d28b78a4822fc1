"""The plan: which source pixel each pixel of the model's input comes from.

Everything that is scheduled, rounded or drawn at random is so here, and nowhere else.

    source H x W ──scale s──> level h x w ──cut into Gh x Gw cells──> one fragment fh x fw from each cell

        level (h, w)                      input (Sh, Sw) = (Gh*fh, Gw*fw)
        ┌──────┬──────┬──                 ┌────┬────┬──
        │  ┌──┐│ ┌──┐ │     origin =      │0,0 │0,1 │
        │  └──┘│ └──┘ │  cell + offset    ├────┼────┼──
        ├──────┼──────┼──   ───────>      │1,0 │1,1 │
        │ ┌──┐ │ ┌──┐ │                   ├────┼────┼──

A pixel of the input blends four taps of one source frame, around `step * (origin + pixel + 0.5) - 0.5` on each axis.
Section numbers are those of the paper (arXiv 2401.02614).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from sama.errors import InputError
from sama.kernels.layout import PATCH, ceil_div

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs

    Generator: TypeAlias = np.random.Generator | torch.Generator | int | None

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Draws: TypeAlias = tuple[Array, Array]
Pair: TypeAlias = tuple[int, int]  # vertical, horizontal

SCALE_STEP_FRAMES = PATCH[0]  # neighbouring frames that share a scale
MASK_CELL = PATCH[1:]  # of the patch mask, in pixels


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to pack the pyramid into a clip: the scales of its frames, and how two levels share a frame.

    schedule: number of scales from 1 to 1/ratio, one per scale step, repeated from the start when they are used up;
        "thumbnail" is 1/ratio alone, "alternate" is 1 and 1/ratio in turn, 1 is full resolution alone
    mask: pixels that come from full resolution instead, as a chequerboard: none, of whole fragments, or of patches
    integer_draws: offsets are drawn as whole pixels, not as fractions of the free space
    truncates: pixels of enlarged small sources are truncated to uint8 before they are normalised
    """

    schedule: int | Literal["thumbnail", "alternate"]
    mask: Literal["none", "window", "patch"] = "none"
    integer_draws: bool = False
    truncates: bool = False

    def scales(self, ratio: float) -> Array:
        """Scales of one period, float64, in (0, 1]; `ratio` is that of the source to the input, at least 1."""
        if self.schedule == "thumbnail":
            return np.array([1 / ratio])
        if self.schedule == "alternate":
            return np.array([1.0, 1 / ratio])
        return np.linspace(1, 1 / ratio, self.schedule)


VIDEO_MODES = {
    "sama": Mode(16),
    "sama-mix": Mode(8),
    "sama-c": Mode("alternate"),
    "sama-swm": Mode(16, mask="window"),
    "sama-spm": Mode(16, mask="patch"),
    "fragments": Mode(1, integer_draws=True, truncates=True),
    "resize": Mode("thumbnail"),  # not in the paper: with grid (1, 1) plain resizing and a centre crop, for comparisons
}
IMAGE_MODES = {
    "sama": Mode("thumbnail", mask="window"),
    "sama-spm": Mode("thumbnail", mask="patch"),
    "fragment": Mode(1, integer_draws=True),
}
ALIASES = {"sama+swm": "sama-swm", "sama+spm": "sama-spm"}


def resolve_mode(name: str, modes: dict[str, Mode]) -> str:
    """The canonical name of a mode or an alias; `InputError` for an unknown one."""
    canonical = ALIASES.get(name, name)
    if canonical not in modes:
        raise InputError(f"unknown mode {name!r}; known modes: {', '.join(modes)}")
    return canonical


@dataclass(frozen=True, slots=True)
class Warp:
    """Flip, then rotation about the centre, of an image. The turned image is never built: a tap at its `(y, x)` is the
    nearest pixel of the source, or 0 outside it.

    angle: degrees counter-clockwise, as `torchvision.transforms.functional.rotate`
    matrix: float32 [2, 2], from centred pixel coordinates (x, y) to coordinates in [-1, 1] of the flipped source
    """

    flip: bool
    angle: float
    matrix: Array

    @classmethod
    def of(cls, *, flip: bool, angle: float, height: int, width: int) -> Warp:
        """The warp of a source of `height` x `width` pixels; `InputError` for an angle that is not finite."""
        if not math.isfinite(angle):
            raise InputError(f"angle must be finite, in degrees; got {angle}")
        radians = math.radians(angle)
        cos, sin = math.cos(radians), math.sin(radians)
        rotation = np.array([[cos, -sin], [sin, cos]], np.float32)
        half = np.array([[0.5 * width], [0.5 * height]], np.float32)
        return cls(flip=bool(flip), angle=float(angle), matrix=rotation / half)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that a kernel needs to sample one clip from sources of one size; kernels round nothing themselves.

    A slot is one level of the pyramid with the draws of one run of frames. There are S slots.

    levels   int32 [S, 2]           height and width of the level
    steps    float32 [S, 2]         source pixels per level pixel, vertically and horizontally
    origins  int32 [S, Gh, Gw, 2]   top left corner (y, x) of each fragment on the level
    slots    int32 [T, 2]           slots of frame t for mask bits 0 and 1
    mask_cell                       mask bit of pixel (y, x): `(y // cell[0] + x // cell[1]) % 2 == 0`
    truncate                        floor the blend to an integer before it is normalised
    warp                            images only: flip and rotation of the source, before everything else
    """

    height: int
    width: int
    grid: Pair
    fragment: Pair
    levels: Array
    steps: Array
    origins: Array
    slots: Array
    mask_cell: Pair
    truncate: bool = False
    warp: Warp | None = None

    def __post_init__(self) -> None:
        for array in (self.levels, self.steps, self.origins, self.slots):
            array.setflags(write=False)

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return len(self.slots)

    @property
    def size(self) -> Pair:
        """Height and width of the input, in pixels."""
        return self.grid[0] * self.fragment[0], self.grid[1] * self.fragment[1]

    @property
    def masked(self) -> bool:
        """Whether any frame mixes two slots."""
        return bool((self.slots[:, 0] != self.slots[:, 1]).any())


def frame_indices(
    num_frames: int,
    clip_len: int = 32,
    num_clips: int = 1,
    interval: int = 2,
    train: bool = False,
    offsets: Sequence[int] | None = None,
    generator: Generator = None,
) -> Array:
    """Which frames of a video make its clips: int64 [num_clips * clip_len], clip after clip.

    The video is cut into `num_clips` segments of equal length, one per clip. A clip is `clip_len` frames, `interval`
    frames apart. It is centred in its segment in evaluation and starts at random in training; `offsets` gives the
    starts within the segments instead. An index past the end of the video becomes the last frame.
    `InputError` where there is no frame, and for a number below 1 or offsets of the wrong number.
    """
    for name, value in (("num_frames", num_frames), ("clip_len", clip_len), ("num_clips", num_clips)):
        if value < 1:
            raise InputError(f"{name} must be at least 1; got {value}")
    if interval < 1:
        raise InputError(f"interval must be at least 1 frame; got {interval}")
    segment = num_frames // num_clips
    spare = segment - clip_len * interval
    if offsets is not None:
        first = np.asarray(offsets, np.int64)
        if first.shape != (num_clips,) or (first < 0).any():
            raise InputError(f"offsets must be {num_clips} frame numbers from 0 on, one a clip; got {first.tolist()}")
    elif train:
        first = _integers(generator, max(1, spare), (num_clips,))
    else:
        first = np.full(num_clips, max(0, spare) // 2)
    starts = np.arange(num_clips) * segment + first
    indices: Array = starts[:, None] + np.arange(clip_len) * interval
    return np.minimum(indices, num_frames - 1).reshape(-1).astype(np.int64)


def plan_video(
    mode: str,
    height: int,
    width: int,
    frames: int = 32,
    *,
    grid: Pair = (7, 7),
    fragment: Pair = (32, 32),
    aligned: int = 32,
    draws: Draws | None = None,
) -> Plan:
    """Plan a clip of `frames` frames of `height` x `width` pixels (section "Scaling and masking").

    aligned: frames that share their draws (a run); all slots of a run show the same place
    draws: `(u, v)`, each [Gh, Gw, ceil(frames / aligned)]: vertical and horizontal place of every fragment in its
        cell, as uniforms in [0, 1), as whole pixels for "fragments"; None is the centre, as in evaluation
    `InputError` for an unknown mode, a size below 1, or draws of the wrong shape or range.
    """
    mode = resolve_mode(mode, VIDEO_MODES)
    source, grid, fragment = _size("source", height, width), _size("grid", *grid), _size("fragment", *fragment)
    if aligned < 1:
        raise InputError(f"aligned must be at least 1 frame; got {aligned}")
    if frames < 1:
        raise InputError(f"a clip needs at least 1 frame; got {frames}")
    if draws is None:
        return _centred_plan("video", mode, source, grid, fragment, aligned, frames)
    return _plan(VIDEO_MODES[mode], source, grid, fragment, aligned, frames, draws)


def plan_image(
    mode: str,
    height: int,
    width: int,
    *,
    grid: Pair = (8, 8),
    fragment: Pair = (32, 32),
    draws: Draws | None = None,
    flip: bool = False,
    angle: float | None = None,
) -> Plan:
    """Plan an image of `height` x `width` pixels as a clip of one frame.

    draws: `(u, v)` as in `plan_video`, each [Gh, Gw], as whole pixels for "fragment"
    flip, angle (degrees counter-clockwise): the augmentation of training, applied before the sampling
    `InputError` as in `plan_video`, and for an angle that is not finite.
    """
    mode = resolve_mode(mode, IMAGE_MODES)
    source, grid, fragment = _size("source", height, width), _size("grid", *grid), _size("fragment", *fragment)
    warp = None
    if flip or angle:
        warp = Warp.of(flip=flip, angle=angle or 0.0, height=height, width=width)
    if draws is None and warp is None:
        return _centred_plan("image", mode, source, grid, fragment, 1, 1)
    if draws is not None:
        u, v = (axis[..., None] if np.ndim(axis) == 2 else axis for axis in draws)
        draws = u, v
    return _plan(IMAGE_MODES[mode], source, grid, fragment, 1, 1, draws, warp)


def draw_video(
    mode: str,
    height: int,
    width: int,
    frames: int = 32,
    *,
    grid: Pair = (7, 7),
    fragment: Pair = (32, 32),
    aligned: int = 32,
    generator: Generator = None,
) -> Draws:
    """Training draws `(u, v)` for `plan_video`: float32 [Gh, Gw, runs] in [0, 1), int64 for "fragments"."""
    mode = resolve_mode(mode, VIDEO_MODES)
    return _draw(VIDEO_MODES[mode], height, width, grid, fragment, ceil_div(frames, aligned), generator)


def draw_image(
    mode: str,
    height: int,
    width: int,
    *,
    grid: Pair = (8, 8),
    fragment: Pair = (32, 32),
    generator: Generator = None,
) -> Draws:
    """Training draws `(u, v)` for `plan_image`: float32 [Gh, Gw] in [0, 1), int64 for "fragment"."""
    mode = resolve_mode(mode, IMAGE_MODES)
    u, v = _draw(IMAGE_MODES[mode], height, width, grid, fragment, 1, generator)
    return u[..., 0], v[..., 0]


def draw_flip_angle(generator: Generator = None) -> tuple[bool, float]:
    """Training augmentation of an image: a flip with probability 0.5, an angle uniform in [-45, 45] degrees."""
    flip, angle = _uniform(generator, (2,))
    return bool(flip < 0.5), float(angle * 90 - 45)


def _size(name: str, height: int, width: int) -> Pair:
    """`(height, width)`; `InputError` that names it where one is below 1."""
    if height < 1 or width < 1:
        raise InputError(f"{name} must be at least 1x1 (height x width); got {height}x{width}")
    return int(height), int(width)


def _levels(mode: Mode, size: Pair, target: Pair) -> tuple[Array, bool]:
    """Sizes of the levels, int64 [L, 2]: those of the schedule, then full resolution if a mask needs it. And whether
    the source is smaller than the target; the one level is then the enlarged source."""
    ratio = min(size[0] / target[0], size[1] / target[1])
    if ratio < 1:
        return np.rint([[size[0] / ratio, size[1] / ratio]]).astype(np.int64), True
    scales = mode.scales(ratio)
    if mode.mask != "none":
        scales = np.append(scales, 1.0)
    return np.rint(np.multiply.outer(scales, size)).astype(np.int64), False


def _free(levels: Array, grid: Pair, fragment: Pair) -> tuple[Array, Array]:
    """Size of a cell, and the room that a fragment has in it, both [L, 2]."""
    cells = levels // np.array(grid)
    return cells, cells - np.array(fragment)


def _draw(mode: Mode, height: int, width: int, grid: Pair, fragment: Pair, runs: int, generator: Generator) -> Draws:
    """Draws `(u, v)`, each [Gh, Gw, runs]."""
    shape = (*_size("grid", *grid), runs)
    if not mode.integer_draws:
        u, v = _uniform(generator, (2, *shape))
        return u, v
    target = grid[0] * fragment[0], grid[1] * fragment[1]
    levels, _ = _levels(mode, _size("source", height, width), target)
    generator = generator if _is_torch(generator) else np.random.default_rng(generator)  # one stream for both
    free_y, free_x = np.maximum(1, _free(levels, grid, fragment)[1][0])
    return _integers(generator, free_y, shape), _integers(generator, free_x, shape)


def _plan(
    mode: Mode,
    size: Pair,
    grid: Pair,
    fragment: Pair,
    aligned: int,
    frames: int,
    draws: Draws | None,
    warp: Warp | None = None,
) -> Plan:
    target = grid[0] * fragment[0], grid[1] * fragment[1]
    levels, small = _levels(mode, size, target)
    cells, free = _free(levels, grid, fragment)
    runs = ceil_div(frames, aligned)

    offsets = _offsets(mode, free, draws, (*grid, runs))  # [runs, L, Gh, Gw, 2]
    corner = np.stack(np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij"), axis=-1)
    room = (levels - np.array(fragment))[:, None, None]
    origins = np.minimum(cells[:, None, None] * corner, room) + offsets

    full = len(levels) - 1 if mode.mask != "none" else None
    period = 1 if small else len(levels) - (full is not None)
    t = np.arange(frames)
    slot = t // aligned * len(levels) + t // SCALE_STEP_FRAMES % period
    slots = np.stack([slot, slot if full is None else np.full(frames, full)], axis=1)

    steps = np.array(size, np.float32) / levels.astype(np.float32)
    return Plan(
        height=size[0],
        width=size[1],
        grid=grid,
        fragment=fragment,
        levels=np.tile(levels, (runs, 1)).astype(np.int32),
        steps=np.tile(steps, (runs, 1)),
        origins=origins.reshape(runs * len(levels), *grid, 2).astype(np.int32),
        slots=slots.astype(np.int32),
        mask_cell=MASK_CELL if mode.mask == "patch" else fragment,
        truncate=mode.truncates and small,
        warp=warp,
    )


@lru_cache(maxsize=256)
def _centred_plan(
    kind: Literal["video", "image"], mode: str, size: Pair, grid: Pair, fragment: Pair, aligned: int, frames: int
) -> Plan:
    modes = VIDEO_MODES if kind == "video" else IMAGE_MODES
    return _plan(modes[mode], size, grid, fragment, aligned, frames, None)


def _offsets(mode: Mode, free: Array, draws: Draws | None, shape: tuple[int, int, int]) -> Array:
    """Offset of every fragment in its cell, int64 [runs, L, Gh, Gw, 2]; `shape` is [Gh, Gw, runs]."""
    if draws is None:
        half = free // 2 if mode.integer_draws else (np.float32(0.5) * free.astype(np.float32)).astype(np.int64)
        return np.broadcast_to(half[None, :, None, None], (shape[2], len(free), *shape[:2], 2))
    if len(draws) != 2:
        raise InputError(f"draws must be a pair (u, v) of arrays of shape {shape}; got {len(draws)} of them")
    u, v = (np.asarray(axis) for axis in draws)
    if u.shape != shape or v.shape != shape:
        raise InputError(
            f"draws must have shape {shape} = (grid rows, grid columns, runs); got {u.shape} and {v.shape}"
        )
    both = np.stack([u, v], axis=-1).transpose(2, 0, 1, 3)[:, None]  # [runs, 1, Gh, Gw, 2]
    if not mode.integer_draws:
        if not ((both >= 0) & (both < 1)).all():
            raise InputError(f"draws must be in [0, 1); got values from {both.min()} to {both.max()}")
        return (both.astype(np.float32) * free.astype(np.float32)[None, :, None, None]).astype(np.int64)
    room = free[None, :, None, None]
    if not ((both >= 0) & (both <= room)).all() or (both != both.astype(np.int64)).any():
        raise InputError(
            f"draws must be whole pixels in 0..{int(free[0, 0])} (rows) and 0..{int(free[0, 1])} (columns) for this "
            f"mode and source; got values from {both.min()} to {both.max()}"
        )
    return np.broadcast_to(both.astype(np.int64), (shape[2], len(free), *shape[:2], 2))


def _uniform(generator: Generator, shape: tuple[int, ...]) -> Array:
    """Uniforms in [0, 1), float32. A generator that is None means fresh entropy, and an int is a seed, as in
    `numpy.random.default_rng`."""
    if _is_torch(generator):
        import torch

        drawn: Array = torch.rand(shape, generator=generator, device=generator.device).cpu().numpy()
        return drawn
    return np.random.default_rng(generator).random(shape, np.float32)


def _integers(generator: Generator, high: int, shape: tuple[int, ...]) -> Array:
    """Uniform integers in 0..high-1, int64."""
    if _is_torch(generator):
        import torch

        drawn: Array = torch.randint(int(high), shape, generator=generator, device=generator.device).cpu().numpy()
        return drawn
    return np.random.default_rng(generator).integers(0, high, shape)


def _is_torch(generator: Generator) -> TypeIs[torch.Generator]:
    """Whether it is a generator of PyTorch, which is not imported to find out."""
    return type(generator).__module__.startswith("torch")
