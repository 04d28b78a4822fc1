"""The published algorithm, in plain torch: resize every whole frame, then keep a few patches of it.

The oracle of every other kernel and the baseline of every benchmark, so it is neither tuned nor slowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from sama.kernels.color import YUV_TO_RGB
from sama.kernels.layout import PATCH, OutputLayout, shape
from sama.plan import SCALE_STEP_FRAMES

if TYPE_CHECKING:
    from sama.frames import Clip, Correction, Frame
    from sama.plan import Plan, Warp


def sample(clip: torch.Tensor, plan: Plan, correction: Correction | None = None) -> torch.Tensor:
    """Sample one clip.

    clip: uint8 or float [T, H, W, 3], 0..255, any device
    correction: as in `Frame`, applied to resized pixels
    returns: float32 [3, T, Sh, Sw] on the clip's device, 0..255
    """
    video = clip.permute(3, 0, 1, 2)  # [3, T, H, W]
    video = _turn(video, plan.warp) if plan.warp else video
    out = torch.empty(3, plan.frames, *plan.size, device=clip.device)
    bit = _mask(plan).to(clip.device)
    for start in range(0, plan.frames, SCALE_STEP_FRAMES):
        step = slice(start, min(start + SCALE_STEP_FRAMES, plan.frames))
        frames = video[:, step].float()
        for slots, group in _by_slots(plan, step):
            chosen = frames[:, group]
            mosaic = _fragments(chosen, plan, slots[0], correction)
            if slots[0] != slots[1]:
                mosaic = torch.where(bit, _fragments(chosen, plan, slots[1], correction), mosaic)
            out[:, step][:, group] = mosaic
    return out


def normalize(x: torch.Tensor, mean, std) -> torch.Tensor:
    """`(x - mean) / std` per channel of [3, T, H, W]."""
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1, 1) for v in (mean, std))
    return (x - mean) / std


def correct(x: torch.Tensor, correction: Correction) -> torch.Tensor:
    """Float RGB [3, ...] with a correction applied, cut to 0..255."""
    rows = torch.tensor(correction, dtype=x.dtype, device=x.device)
    mixed = torch.einsum("ij,j...->i...", rows[:, :3], x)
    return (mixed + rows[:, 3].view(3, *[1] * (x.ndim - 1))).clamp(0, 255)


def _fragments(frames: torch.Tensor, plan: Plan, slot: int, correction: Correction | None) -> torch.Tensor:
    """Resize `frames`, float [3, n, H, W], to the slot's level and paste its fragments together: [3, n, Sh, Sw]."""
    height, width = plan.levels[slot].tolist()
    resized = frames
    if (height, width) != frames.shape[2:]:
        resized = interpolate(frames, size=(height, width), mode="bilinear", align_corners=False)
    if correction is not None:
        resized = correct(resized, correction)
    if plan.truncate:
        resized = resized.to(torch.uint8).float()
    (fh, fw), out = plan.fragment, frames.new_empty(*frames.shape[:2], *plan.size)
    for i, row in enumerate(plan.origins[slot].tolist()):
        for j, (y, x) in enumerate(row):
            out[..., i * fh : (i + 1) * fh, j * fw : (j + 1) * fw] = resized[..., y : y + fh, x : x + fw]
    return out


def _by_slots(plan: Plan, step: slice) -> list[tuple[tuple[int, int], list[int]]]:
    """The frames of one scale step, grouped by their pair of slots: one group, unless a run ends inside the step."""
    groups: dict[tuple[int, int], list[int]] = {}
    for frame, pair in enumerate(plan.slots[step].tolist()):
        groups.setdefault(tuple(pair), []).append(frame)
    return list(groups.items())


def _mask(plan: Plan) -> torch.Tensor:
    """bool [Sh, Sw]: where a pixel comes from slot 1."""
    y, x = (torch.arange(n) // cell for n, cell in zip(plan.size, plan.mask_cell))
    return (y[:, None] + x) % 2 == 0


def _turn(video: torch.Tensor, warp: Warp) -> torch.Tensor:
    from torchvision.transforms.v2.functional import horizontal_flip, rotate

    video = horizontal_flip(video) if warp.flip else video
    return rotate(video.transpose(0, 1), warp.angle).transpose(0, 1)


def to_rgb(pictures: Frame | Clip) -> torch.Tensor:
    """uint8 RGB [..., H, W, 3]: planes in the integer arithmetic of `kernels.color`; "rgb" as it is, or corrected."""
    if pictures.layout == "rgb":
        rgb = tensor(pictures.planes[0])
        if pictures.correction is None:
            return rgb
        return correct(rgb.movedim(-1, 0).float(), pictures.correction).round().to(torch.uint8).movedim(0, -1)
    y, u, v = (tensor(plane).to(torch.int32) for plane in pictures.channels())
    height, width = y.shape[-2:]
    u, v = (plane.repeat_interleave(2, -2)[..., :height, :].repeat_interleave(2, -1)[..., :width] for plane in (u, v))
    c = YUV_TO_RGB[pictures.matrix, pictures.full_range]
    y = ((8 * y + c.luma_offset) * c.luma_factor) >> 16
    u, v = 8 * u - 1024, 8 * v - 1024
    red, green, blue = y + (v * c.vr >> 16), y + (u * c.ug >> 16) + (v * c.vg >> 16), y + (u * c.ub >> 16)
    return torch.stack((red, green, blue), -1).clamp(0, 255).to(torch.uint8)


def tensor(array) -> torch.Tensor:
    """A torch tensor of a tensor or an array, sharing memory where torch can."""
    if isinstance(array, torch.Tensor):
        return array
    sharable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if sharable else array.copy())


def cut(x: torch.Tensor, layout: OutputLayout) -> torch.Tensor:
    """A sampled clip [3, T, Sh, Sw] in an output layout of `kernels.layout`."""
    target = shape(layout, *x.shape[1:])
    if layout == "video":
        return x
    patches = x.view(3, target[0], PATCH[0], target[1], PATCH[1], target[2], PATCH[2])
    return patches.permute(1, 3, 5, 0, 2, 4, 6).reshape(target)


def join(x: torch.Tensor, layout: OutputLayout) -> torch.Tensor:
    """What was `cut`, as [3, T, Sh, Sw] again."""
    if layout == "video":
        return x
    steps, rows, columns, _ = x.shape
    patches = x.view(steps, rows, columns, 3, *PATCH).permute(3, 0, 4, 1, 5, 2, 6)
    return patches.reshape(3, *(n * size for n, size in zip((steps, rows, columns), PATCH)))
