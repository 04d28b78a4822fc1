"""The convolutional stem of a pico network: what detail each part of a fragment holds, before any window is cut.

Quality shows in faint detail: gradients of a grey level or two, and what differs between two neighbouring frames. A
linear embedding of whole patches learns filters for that slowly. Here the first filters are derivatives of luma and
chroma and differences of the two frames of a patch, steep enough that a few grey levels count, some of them less steep
too; `tanh` keeps what is strong from drowning what is faint. They do not learn, which saves half of a training step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sama.kernels.layout import PATCH
from sama.models.heads import exactly, plain_cpu

STEEP, FLAT = 24.0, 5.0  # of the first filters: 2.5 and 12 grey levels give tanh(1)
FILTERS = 20


class FragmentStem(nn.Module):
    """Patches to tokens of 8x8 pixels and two frames, by convolutions that do not reach over a fragment's border.

    dim: of the tokens; widths: channels of the two hidden layers; grid: fragments in height and width
    """

    def __init__(self, dim: int, widths: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        first, second = widths
        self.filters = nn.Conv2d(3 * PATCH[0], FILTERS, 3, padding=1, bias=False).requires_grad_(False)
        self.conv1 = nn.Conv2d(FILTERS, first, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(second, dim, 3, stride=2, padding=1)

    def start(self) -> None:
        """Set the first filters to derivatives."""
        with torch.no_grad():
            self.filters.weight.copy_(derivatives())

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T/2, H/4, W/4, 96]` to `[B, T/2, H/8, W/8, dim]`, sizes rounded up."""
        if plain_cpu(self, x):  # a pair of frames at a time, so that it stays in the processor's cache
            return torch.cat([self._embed(part) for part in x.split(1, 1)], 1)
        with exactly(x):
            return self._embed(x.to(self.filters.weight.dtype))

    def _embed(self, x: Tensor) -> Tensor:
        batch, time = x.shape[:2]
        fits = not (x.shape[2] % self.grid[0] or x.shape[3] % self.grid[1])
        rows, columns = grid = self.grid if fits else (1, 1)
        x = pixels(x, grid)
        x = torch.tanh(self.filters(x))
        x = F.gelu(self.conv1(x))
        x = F.gelu(self.conv2(x))
        x = self.conv3(x)  # [B * T * rows * columns, dim, h, w]
        x = x.unflatten(0, (batch, time, rows, columns)).permute(0, 1, 2, 5, 3, 6, 4)
        return x.flatten(4, 5).flatten(2, 3)


def pixels(x: Tensor, grid: tuple[int, int] = (1, 1)) -> Tensor:
    """Patches `[B, T/2, H/4, W/4, 96]` to the pixels of each fragment, `[B * T/2 * rows * columns, 6, h, w]`: channels
    (colour, frame), last in memory, which convolutions are faster for.

    grid: fragments in height and width, which divides the patches
    """
    rows, columns = grid
    x = x.unflatten(4, (3, *PATCH)).unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
    # [B, T, rows, h/4, columns, w/4, 3, 2, 4, 4]
    x = x.permute(0, 1, 2, 4, 3, 8, 5, 9, 6, 7)
    return x.flatten(8, 9).flatten(6, 7).flatten(4, 5).flatten(0, 3).permute(0, 3, 1, 2)


def derivatives() -> Tensor:
    """First filters, `[20, 6, 3, 3]` over (channel, frame).

    Of the mean of the two frames' luma the two gradients, three second derivatives and the Laplacian; of the difference
    of their luma the value, a gradient and the Laplacian; some of these less steep; the gradients of two chroma
    channels; and the local means of luma and both chromas.
    """
    identity, mean = torch.zeros(3, 3), torch.full((3, 3), 1 / 9)
    identity[1, 1] = 1
    smooth, slope = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([-0.5, 0.0, 0.5])
    bend = torch.tensor([-0.5, 1.0, -0.5])
    dx, dy = torch.outer(smooth, slope), torch.outer(slope, smooth)
    dxx, dyy, dxy = torch.outer(smooth, bend), torch.outer(bend, smooth), torch.outer(slope, slope) * 2
    laplacian = torch.outer(bend, bend)
    luma = torch.tensor([0.299, 0.587, 0.114])
    blue, red = torch.tensor([-0.17, -0.33, 0.5]), torch.tensor([0.5, -0.42, -0.08])
    both, change = torch.tensor([0.5, 0.5]), torch.tensor([-1.0, 1.0])
    filters = [(STEEP, luma, both, f) for f in (dx, dy, dxx, dyy, dxy, laplacian)]
    filters += [(FLAT, luma, both, f) for f in (dx, dy, laplacian)]
    filters += [(STEEP, luma, change, f) for f in (identity, dx, laplacian)]
    filters += [(FLAT, luma, change, identity)]
    filters += [(STEEP, chroma, both, f) for chroma in (blue, red) for f in (dx, dy)]
    filters += [(1.0, colour, both, mean) for colour in (luma, blue, red)]
    return torch.stack([gain * torch.einsum("c,t,yx->ctyx", *parts).flatten(0, 1) for gain, *parts in filters])
