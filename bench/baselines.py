"""Other ways to sample, to compare with: what a good programmer would try before writing a kernel."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from sama.plan import Plan


def gather(clip: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Vectorised four-tap gather: the tables of `taps`, uint8 [T, H, W, 3] -> float32 [3, T, Sh, Sw]."""
    t = torch.arange(len(clip), device=clip.device)[:, None, None]
    wy, wx = weights[0, ..., None], weights[1, ..., None]
    top = (1 - wx) * clip[t, rows[0], columns[0]] + wx * clip[t, rows[0], columns[1]]
    bottom = (1 - wx) * clip[t, rows[1], columns[0]] + wx * clip[t, rows[1], columns[1]]
    return ((1 - wy) * top + wy * bottom).permute(3, 0, 1, 2).contiguous()


@cache
def compiled_gather():
    """`gather` through torch.compile: one fused loop over the output, as far as the compiler can."""
    return torch.compile(gather, fullgraph=True)


def taps(plan: Plan, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The plan for every pixel: source rows and columns, int64 [2, T, Sh, Sw], and weights, float32, the same shape."""
    index, weight = [], []
    for axis, size in enumerate((plan.height, plan.width)):
        low, high, second = axis_taps(plan, axis, size)
        index.append(torch.from_numpy(np.stack([low, high])).to(device))
        weight.append(second)
    return index[0], index[1], torch.from_numpy(np.stack(weight)).to(device)


def axis_taps(plan: Plan, axis: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second source index, int64, and weight of the second, float32, on one axis, for all [T, Sh, Sw]."""
    pixel = np.indices(plan.size)
    cell = [pixel[k] // plan.fragment[k] for k in range(2)]
    bit = (pixel[0] // plan.mask_cell[0] + pixel[1] // plan.mask_cell[1]) % 2 == 0
    slot = np.where(bit, plan.slots[:, 1, None, None], plan.slots[:, 0, None, None])  # [T, Sh, Sw]
    level = plan.origins[slot, cell[0], cell[1], axis] + pixel[axis] % plan.fragment[axis]
    half = np.float32(0.5)
    at = np.maximum(plan.steps[slot, axis] * (level.astype(np.float32) + half) - half, np.float32(0))
    first = np.minimum(at.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), at - first.astype(np.float32)


def crop_then_interpolate(clip: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Cut out what each fragment covers of the source, then resize only that, by `grid_sample`.

    clip: uint8 [T, H, W, 3]; returns float32 [3, T, Sh, Sw]. Unmasked modes only.
    """
    video = clip.permute(0, 3, 1, 2)  # [T, 3, H, W]
    out = torch.empty(3, plan.frames, *plan.size, device=clip.device)
    slots, first = np.unique(plan.slots[:, 0], return_index=True)
    for slot, start in zip(slots, first):
        frames = np.flatnonzero(plan.slots[:, 0] == slot)
        group = video[start : start + len(frames)] if len(frames) == np.ptp(frames) + 1 else video[frames]
        for i in range(plan.grid[0]):
            for j in range(plan.grid[1]):
                y, x = (_positions(plan, slot, i, j, axis) for axis in range(2))
                box = [slice(int(at[0]), int(at[-1]) + 2) for at in (y, x)]
                crop = group[..., box[0], box[1]].float()
                grid = [(2 * (at - int(at[0])) + 1) / size - 1 for at, size in zip((y, x), crop.shape[2:])]
                grid = torch.stack(torch.meshgrid(*map(torch.from_numpy, grid), indexing="ij")[::-1], -1).to(
                    clip.device
                )
                piece = torch.nn.functional.grid_sample(
                    crop, grid.expand(len(crop), -1, -1, -1), padding_mode="border", align_corners=False
                )
                rows = slice(i * plan.fragment[0], (i + 1) * plan.fragment[0])
                columns = slice(j * plan.fragment[1], (j + 1) * plan.fragment[1])
                out[:, frames, rows, columns] = piece.transpose(0, 1)
    return out


def _positions(plan: Plan, slot: int, i: int, j: int, axis: int) -> np.ndarray:
    """Source coordinate of every row or column of one fragment, float32."""
    half = np.float32(0.5)
    level = np.arange(plan.fragment[axis], dtype=np.float32) + np.float32(plan.origins[slot, i, j, axis])
    return np.maximum(plan.steps[slot, axis] * (level + half) - half, np.float32(0))
