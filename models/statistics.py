"""Scores from statistics of natural scenes, the part of a nano model that needs no backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sama.kernels.layout import PATCH, PATCH_VALUES
from sama.models.heads import exactly


class SceneStatistics(nn.Module):
    """A score from how strong each component of the patches is, and from how much neighbouring frames differ.

    The statistics, of the logarithm of each component's strength: its mean and deviation over each third of the clip,
    since the scales of the thirds differ, and the deviation between the means of the fragments. Then quantiles over
    time, `STEPS` of them at even steps from 0 to 1, of the logarithm of the mean difference between the two frames of
    a patch.

    Such statistics of natural scenes show degradation whatever the picture shows (Ruderman 1994; Mittal, Moorthy and
    Bovik 2012), and a network that learns from a few thousand clips does not find them by itself. `proj`, `centre` and
    `deviation` do not learn: training's whitening sets them, so that components have power 1, and statistics mean 0
    and deviation 1. Everything is computed in the weights' dtype, under autocast too, because components are small
    differences.
    """

    STEPS = 16
    THIRDS = 3
    FLOOR = 0.01  # added to strengths, whose deviation over all patches is 1; a tenth of it to differences of frames
    SAMPLES = 4  # measured at once, to save memory

    centre: Tensor
    deviation: Tensor

    def __init__(self, *, grid: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.grid = grid
        count = (2 * self.THIRDS + 1) * PATCH_VALUES + self.STEPS
        self.proj = nn.Linear(PATCH_VALUES, PATCH_VALUES).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.fc1 = nn.Linear(count, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Patches `[B, T, H, W, 96]` to scores `[B]`."""
        with exactly(x):
            x = (self.measure(x) - self.centre) / self.deviation
            x = self.dropout(F.gelu(self.fc1(x)))
            return self.fc3(F.gelu(self.fc2(x))).squeeze(-1)

    def measure(self, x: Tensor) -> Tensor:
        """Patches `[B, T, H, W, 96]` to statistics `[B, 7 * 96 + STEPS]`: for each third of the clip the means, then
        the deviations; the deviations between fragments; the differences of frames, in rising order."""
        return torch.cat([self._measure(some.to(self.proj.weight.dtype)) for some in x.split(self.SAMPLES)])

    def _measure(self, x: Tensor) -> Tensor:
        strength = (self.proj(x).abs() + self.FLOOR).log()
        length = x.shape[1]
        statistics: list[Tensor] = []
        for third in range(self.THIRDS):
            first = min(round(third * length / self.THIRDS), length - 1)
            last = max(round((third + 1) * length / self.THIRDS), first + 1)
            statistics += _mean_and_deviation(strength[:, first:last].flatten(1, -2), self.FLOOR)
        fragments = F.adaptive_avg_pool2d(strength.flatten(0, 1).permute(0, 3, 1, 2), self.grid).flatten(2)
        apart = _mean_and_deviation(fragments.transpose(1, 2), self.FLOOR)[1]
        statistics.append(apart.unflatten(0, (-1, length)).mean(1))

        first_frame, second_frame = x.unflatten(-1, (3, *PATCH)).unbind(-3)
        change = ((second_frame - first_frame).abs().flatten(2).mean(-1) + self.FLOOR / 10).log()  # [B, T]
        dtype = torch.promote_types(x.dtype, torch.float32)  # `quantile` takes no smaller one
        places = torch.linspace(0, 1, self.STEPS, dtype=dtype, device=x.device)
        quantiles = change.to(dtype).quantile(places, 1).T
        return torch.cat([*statistics, quantiles.to(x.dtype)], 1)


def _mean_and_deviation(x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Of `[B, N, C]`, over N. The floor gives the root a finite slope where an even picture has no variance."""
    variance, mean = torch.var_mean(x, 1, correction=0)
    return mean, (variance + floor**2).sqrt()
