"""Windows of tokens: how a map is cut into them and joined again, and what pairs of tokens in a window have in common.

A map of tokens is `[B, T, H, W, C]`. Cut into windows it is `[B, slabs, W, L, C]`: `slabs` windows along time, `W`
windows over rows and columns, `L` tokens in a window, of which `S` belong to one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from sama.kernels.layout import ceil_div

WINDOW = (8, 7, 7)  # tokens along time, rows and columns

Size = tuple[int, int, int]  # along time, rows and columns


@dataclass(frozen=True)
class Windows:
    """How a map of `size = (T, H, W)` tokens is cut into windows.

    The map is padded at its end to whole windows and rolled by `-shift`. On an axis that one window covers, the window
    is as long as the map, and the shift is 0.
    """

    size: Size
    window: Size
    shift: Size

    @classmethod
    def fit(cls, size: Size, window: Size, *, shifted: bool) -> Windows:
        """Windows of at most `window` tokens for a map of `size`; `shifted` by half a window where there are many."""
        t, h, w = (min(most, n) for most, n in zip(window, size))
        shift_t, shift_h, shift_w = (most // 2 if shifted and n > most else 0 for most, n in zip(window, size))
        return cls(size, (t, h, w), (shift_t, shift_h, shift_w))

    @property
    def counts(self) -> Size:
        """Windows along time, rows and columns."""
        t, h, w = (ceil_div(n, window) for n, window in zip(self.size, self.window))
        return t, h, w

    @property
    def padded(self) -> Size:
        """Size of the map once it is padded to whole windows."""
        t, h, w = (count * window for count, window in zip(self.counts, self.window))
        return t, h, w

    @property
    def seam(self) -> int:
        """Tokens before the seam in a window of the last slab; 0 where nothing is shifted in time.

        At the seam the shift in time joins the end of the clip to its start. Tokens on different sides of it do not
        attend to each other.
        """
        return (self.window[0] - self.shift[0]) * self.window[1] * self.window[2] if self.shift[0] else 0

    def split(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]` to `[B, slabs, W, L, C]`."""
        x = self.pad(x)
        if any(self.shift):
            x = x.roll([-s for s in self.shift], (1, 2, 3))
        (nt, nh, nw), (wt, wh, ww) = self.counts, self.window
        x = x.reshape(x.shape[0], nt, wt, nh, wh, nw, ww, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return x.reshape(x.shape[0], nt, nh * nw, wt * wh * ww, -1)

    def join(self, x: Tensor) -> Tensor:
        """`[B, slabs, W, L, C]` back to `[B, T, H, W, C]`."""
        (nt, nh, nw), (wt, wh, ww) = self.counts, self.window
        x = x.reshape(x.shape[0], nt, nh, nw, wt, wh, ww, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.reshape(x.shape[0], *self.padded, -1)
        if any(self.shift):
            x = x.roll(self.shift, (1, 2, 3))
        return self.crop(x)

    def pad(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]` with zeros at the end of each axis, up to whole windows."""
        return x if self.padded == self.size else F.pad(x, (0, 0, *end_padding(self.size, self.padded)))

    def crop(self, x: Tensor) -> Tensor:
        """Undoes `pad`."""
        t, h, w = self.size
        return x[:, :t, :h, :w]

    def padding(self, device: torch.device) -> Tensor | None:
        """Bool `[slabs, W, L, 1]`, true where a token is padding; None for a map that needs none."""
        if self.padded == self.size:
            return None
        real = torch.zeros(1, *self.size, 1, dtype=torch.bool, device=device)
        real = F.pad(real, (0, 0, *end_padding(self.size, self.padded)), value=True)
        return Windows(self.padded, self.window, self.shift).split(real)[0]

    def pairs(self, cells: Tensor) -> Tensor:
        """Differences between the tokens of a window (first minus second), `[W, S, S]`, of values `[rows, columns]` of
        the padded and shifted map."""
        (_, nh, nw), (_, wh, ww) = self.counts, self.window
        cells = cells.reshape(nh, wh, nw, ww).permute(0, 2, 1, 3).reshape(nh * nw, wh * ww)
        return cells[:, :, None] - cells[:, None, :]

    def fragment_distance(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """L1 distance between the fragments of two tokens, in fragments: int64 `[W, S, S]`. Time does not count."""
        _, rows, columns = self.padded
        y, x = (
            (torch.arange(n, device=device) * fragments // n).roll(-shift)  # the fragment of each row and column
            for n, fragments, shift in zip((rows, columns), grid, self.shift[1:])
        )
        down = self.pairs(y[:, None].expand(-1, columns)).abs()
        return down + self.pairs(x.expand(rows, -1)).abs()

    def apart(self, device: torch.device) -> Tensor | None:
        """Bool `[W, S, S]`, true for two tokens from opposite sides of the map, which the shift in space brought
        together; None without such a shift."""
        if not any(self.shift[1:]):
            return None
        regions = []
        for n, window, shift in zip(self.padded[1:], self.window[1:], self.shift[1:]):
            regions.append(part_of(torch.arange(n, device=device), n, window, shift))
        return self.pairs(regions[0][:, None] * 3 + regions[1]) != 0

    def relative_index(self, full: Size, device: torch.device) -> Tensor:
        """Row of each pair of tokens in a relative-position table for windows of `full` size: int64 `[L, L]`."""
        token = torch.stack(torch.meshgrid(*(torch.arange(w, device=device) for w in self.window), indexing="ij"))
        t, h, w = (token.flatten(1)[:, :, None] - token.flatten(1)[:, None, :]).unbind()  # each [L, L]
        return ((t + full[0] - 1) * (2 * full[1] - 1) + h + full[1] - 1) * (2 * full[2] - 1) + w + full[2] - 1


def part_of(at: Tensor, size: int, window: int, shift: int) -> Tensor:
    """The parts, 0 to 2, that rows or columns of a shifted map belong to: a window may hold some of the last two, which
    the shift brought together from both ends of the map."""
    return (at >= size - window).long() + (at >= size - shift).long() if shift else torch.zeros_like(at)


@lru_cache(maxsize=64)
def window_rows(windows: Windows) -> Tensor:
    """Row in the flattened padded map of every token of every window: int64 `[slabs, W, L]`, on the CPU."""
    rows = torch.arange(prod(windows.padded), device="cpu").view(1, *windows.padded, 1)
    return Windows(windows.padded, windows.window, windows.shift).split(rows)[0, ..., 0]


def end_padding(size: tuple[int, ...], padded: tuple[int, ...]) -> tuple[int, ...]:
    """Arguments of `F.pad` that pad the end of each axis from `size` to `padded`: last axis first."""
    return tuple(n for s, p in zip(reversed(size), reversed(padded)) for n in (0, p - s))
