"""What changes training inputs at random while their labels stay: `thin` leaves fragments out, `augment` moves,
`jitter` recolours, `soften` blurs.

A label that is relative to an undegraded file, such as VMAF, depends little on how bright, strong in contrast or crisp
that file is; without these a network takes the training set's own look for quality.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sama.kernels.layout import PATCH, is_patches

REACH = 4  # pixels of the blur to each side


def thin(x: Tensor, local: Tensor | None, grid: tuple[int, int], kept: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Keep some rows and columns of fragments of each input, drawn at random, in their order. Shapes as in `augment`.

    grid: fragments in height and width, each of as many labels as fit; kept: of these
    """
    at = x.ndim - 4 if is_patches(x.shape) else x.ndim - 3  # axis of one sample's rows
    samples, labels = [], []
    for k in range(len(x)):
        sample, label = x[k], None if local is None else local[k]
        for axis, (count, left) in enumerate(zip(grid, kept)):
            chosen = torch.randperm(count)[:left].sort().values.to(x.device)
            sample = _parts(sample, at + axis, count, chosen)
            label = None if label is None else _parts(label, 1 + axis, count, chosen)
        samples.append(sample)
        labels.append(label)
    some = None if local is None else torch.stack([label for label in labels if label is not None])
    return torch.stack(samples), some


def _parts(x: Tensor, axis: int, count: int, chosen: Tensor) -> Tensor:
    """Of `count` equal parts along an axis the chosen ones."""
    return x.unflatten(axis, (count, -1)).index_select(axis, chosen).flatten(axis, axis + 1)


def augment(x: Tensor, local: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Mirror each input left to right with probability 1/2, and transpose square ones with probability 1/2.

    x: clips [B, 3, T, H, W], images [B, 3, H, W] or patches [B, T/2, H/4, W/4, 96]
    local: labels of squares of 32x32 [B, T/2, rows, columns], which move with them
    Returns both, of the same shapes.
    """
    patches = is_patches(x.shape)
    views = x.unflatten(-1, (3, *PATCH)) if patches else x
    rows, columns = ((1, 5), (2, 6)) if patches else ((x.ndim - 3,), (x.ndim - 2,))  # axes of one sample
    square = all(views.shape[1 + row] == views.shape[1 + column] for row, column in zip(rows, columns))
    square = square and (local is None or local.shape[2] == local.shape[3])
    samples, labels = [], []
    for k, (transposing, mirroring) in enumerate(torch.rand(len(x), 2).tolist()):
        sample, label = views[k], None if local is None else local[k]
        if transposing < 0.5 and square:
            for row, column in zip(rows, columns):
                sample = sample.transpose(row, column)
            label = None if label is None else label.transpose(1, 2)
        if mirroring < 0.5:
            sample = sample.flip(columns)
            label = None if label is None else label.flip(2)
        samples.append(sample)
        labels.append(label)
    stacked = torch.stack(samples)
    moved = None if local is None else torch.stack([label for label in labels if label is not None])
    return stacked.flatten(-4) if patches else stacked, moved


def jitter(x: Tensor, share: float) -> Tensor:
    """Change contrast, brightness and balance of colours of each input at random. Shapes as in `augment`.

    share: of the contrast, of a deviation of ImageNet and of half of one, at most
    """
    count, last = len(x), x.shape[-1]
    contrast, light, balance = torch.rand(3, count, 3, device=x.device) * 2 - 1
    scale = 1 + share * contrast[:, :1].expand(-1, 3)
    offset = share * (light[:, :1] + balance / 2)
    if is_patches(x.shape):
        scale, offset = (values.repeat_interleave(last // 3, 1)[:, None, None, None] for values in (scale, offset))
    else:
        scale, offset = (values.reshape(count, 3, *[1] * (x.ndim - 2)) for values in (scale, offset))
    return x * scale + offset


def soften(x: Tensor, most: float, grid: tuple[int, int]) -> Tensor:
    """Blur each input by a Gaussian of its own, within its fragments, mirrored at their borders; shapes as in `augment`

    most: largest deviation, in pixels; each input's is even between 0 and it
    grid: fragments in height and width
    """
    deviations = (torch.rand(len(x), device=x.device) * most).clamp_min(1e-3)
    if is_patches(x.shape):
        frames = x.unflatten(-1, (3, *PATCH)).permute(0, 1, 5, 4, 2, 6, 3, 7)  # [B, T/2, 2, 3, H/4, 4, W/4, 4]
        pictures = frames.flatten(6, 7).flatten(4, 5).flatten(1, 3)
        soft = _blurred(pictures, deviations, grid).unflatten(1, (x.shape[1], PATCH[0], 3))
        soft = soft.unflatten(5, (-1, PATCH[2])).unflatten(4, (-1, PATCH[1]))
        return soft.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4)
    pictures = x.flatten(1, 2) if x.ndim == 5 else x
    return _blurred(pictures, deviations, grid).reshape(x.shape)


def _blurred(pictures: Tensor, deviations: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pictures `[B, N, H, W]` of fragments, each sample blurred by its own deviation `[B]`."""
    rows, columns = grid
    x = pictures.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # [B, N, rows, h, columns, w]
    down, along = (_blurs(deviations, x.shape[axis]).to(x.dtype) for axis in (3, 5))
    x = torch.einsum("bij,bnrjcw->bnricw", down, x)
    x = torch.einsum("bij,bnrhcj->bnrhci", along, x)
    return x.flatten(4, 5).flatten(2, 3)


def _blurs(deviations: Tensor, size: int) -> Tensor:
    """Matrices `[B, size, size]` that blur `size` pixels in a line, mirrored at both ends."""
    offsets = torch.arange(-REACH, REACH + 1, device=deviations.device)
    weights = torch.exp(-(offsets**2) / (2 * deviations[:, None] ** 2))
    weights = weights / weights.sum(1, keepdim=True)
    last = max(size - 1, 1)
    places = torch.arange(size, device=deviations.device)[:, None] + offsets
    places = (last - (places.remainder(2 * last) - last).abs()).clamp_max(size - 1)  # [size, 2 * REACH + 1]
    matrices = weights.new_zeros(len(weights), size, size)
    return matrices.scatter_add_(2, places.expand(len(weights), -1, -1), weights[:, None].expand(-1, size, -1))
