"""Video Swin with gated relative position bias: the network that scores clips.

Video Swin Transformer (Liu et al., arXiv 2106.13230) with the gated relative position bias (GRPB) of FAST-VQA
(Wu et al., arXiv 2207.02595), as SAMA uses it (arXiv 2401.02614).

Tokens are kept as `[B, T, H, W, C]` between blocks. A block cuts them into windows, `[B, slabs, W, L, C]`: `slabs`
along time, `W` windows side by side in space, `L` tokens each. The attention bias depends on the place in space only,
so all slabs and samples share one bias `[W, heads, L, L]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sama.models.heads import TokenHead, autocasting, by_sample, exactly, plain_cpu

PATCH = (2, 4, 4)  # frames, rows, columns
WINDOW = (8, 7, 7)  # tokens
MASKED = -100.0  # the published logit offset between tokens that a shift made neighbours
CHUNK = 3136  # tokens a block works on at a time on the CPU, so that what it computes stays in the cache

BRANCH = 0.2  # of the size of its input is what a block of a narrow network adds to it, at the start

SIZES = {
    "tiny": {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "nano": {"dim": 32, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "hidden": 2 * 3 * prod(PATCH)},
}


@dataclass(frozen=True)
class Windows:
    """How a map of `size = (T, H, W)` tokens is cut into windows.

    The map is padded at its end to whole windows and rolled by `-shift`. On an axis that one window covers, the window
    is the map and nothing is shifted.
    """

    size: tuple[int, int, int]
    window: tuple[int, int, int]
    shift: tuple[int, int, int]

    @classmethod
    def fit(cls, size: tuple[int, int, int], window: tuple[int, int, int], *, shifted: bool) -> Windows:
        fitted = tuple(min(w, s) for w, s in zip(window, size))
        shift = tuple(w // 2 if shifted and s > w else 0 for w, s in zip(window, size))
        return cls(size, fitted, shift)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Windows along time, rows and columns."""
        return tuple(-(-s // w) for s, w in zip(self.size, self.window))

    @property
    def padded(self) -> tuple[int, int, int]:
        return tuple(n * w for n, w in zip(self.counts, self.window))

    @property
    def seam(self) -> int:
        """Tokens before the seam in the windows of the last slab, where a shift in time joined the clip's end to its
        start; 0 for none. Tokens on different sides do not attend to each other."""
        return (self.window[0] - self.shift[0]) * self.window[1] * self.window[2] if self.shift[0] else 0

    def split(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]` to `[B, slabs, W, L, C]`."""
        x = self.pad(x)
        if any(self.shift):
            x = x.roll([-s for s in self.shift], (1, 2, 3))
        (nt, nh, nw), (wt, wh, ww) = self.counts, self.window
        x = x.reshape(len(x), nt, wt, nh, wh, nw, ww, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return x.reshape(len(x), nt, nh * nw, wt * wh * ww, -1)

    def join(self, x: Tensor) -> Tensor:
        """`[B, slabs, W, L, C]` back to `[B, T, H, W, C]`."""
        (nt, nh, nw), (wt, wh, ww) = self.counts, self.window
        x = x.reshape(len(x), nt, nh, nw, wt, wh, ww, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.reshape(len(x), *self.padded, -1)
        if any(self.shift):
            x = x.roll(self.shift, (1, 2, 3))
        return self.crop(x)

    def pad(self, x: Tensor) -> Tensor:
        return x if self.padded == self.size else F.pad(x, (0, 0, *_end_padding(self.size, self.padded)))

    def crop(self, x: Tensor) -> Tensor:
        t, h, w = self.size
        return x[:, :t, :h, :w]

    def padding(self, device: torch.device) -> Tensor | None:
        """Bool `[slabs, W, L, 1]`, true where a token is padding; None where the map needs none."""
        if self.padded == self.size:
            return None
        real = torch.zeros(1, *self.size, 1, dtype=torch.bool, device=device)
        real = F.pad(real, (0, 0, *_end_padding(self.size, self.padded)), value=True)
        return Windows(self.padded, self.window, self.shift).split(real)[0]

    def pairs(self, cells: Tensor) -> Tensor:
        """`[rows, columns]`, values of the padded and shifted map, to the pairs `[W, S, S]` (first less second)."""
        (_, nh, nw), (_, wh, ww) = self.counts, self.window
        cells = cells.reshape(nh, wh, nw, ww).permute(0, 2, 1, 3).reshape(nh * nw, wh * ww)
        return cells[:, :, None] - cells[:, None, :]

    def fragment_distance(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """L1 distance between the fragments of two tokens, in fragments: int64 `[W, S, S]`, `S` tokens in a frame of
        a window. Time does not count."""
        distance = 0
        for axis in (1, 2):
            n = self.padded[axis]
            fragment = (torch.arange(n, device=device) * grid[axis - 1] // n).roll(-self.shift[axis])
            cells = fragment[:, None].expand(-1, self.padded[2]) if axis == 1 else fragment.expand(self.padded[1], -1)
            distance = distance + self.pairs(cells).abs()
        return distance

    def apart(self, device: torch.device) -> Tensor | None:
        """Bool `[W, S, S]`, true where a shift in space made neighbours of tokens from opposite sides of the map; None
        where there is none."""
        if not any(self.shift[1:]):
            return None
        regions = []
        for axis in (1, 2):
            n, w, s = self.padded[axis], self.window[axis], self.shift[axis]
            i = torch.arange(n, device=device)
            regions.append((i >= n - w).long() + (i >= n - s).long() if s else torch.zeros_like(i))
        return self.pairs(regions[0][:, None] * 3 + regions[1]) != 0

    def relative_index(self, full: tuple[int, int, int], device: torch.device) -> Tensor:
        """Row of a table for windows of `full` size that belongs to each pair of tokens: int64 `[L, L]`."""
        token = torch.stack(torch.meshgrid(*(torch.arange(w, device=device) for w in self.window), indexing="ij"))
        t, h, w = (token.flatten(1)[:, :, None] - token.flatten(1)[:, None, :]).unbind()  # each [L, L]
        return ((t + full[0] - 1) * (2 * full[1] - 1) + h + full[1] - 1) * (2 * full[2] - 1) + w + full[2] - 1


def _end_padding(size: tuple[int, ...], padded: tuple[int, ...]) -> tuple[int, ...]:
    """Padding at the end of each axis as `F.pad` wants it, last axis first."""
    return tuple(n for s, p in zip(reversed(size), reversed(padded)) for n in (0, p - s))


def attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """Attention within windows, without the logits in memory.

    `qkv` is `[n, W, L, 3, heads, D]`, `bias` `[W, heads, L, L]` or `[1, heads, L, L]`. Returns `[n, W, L, heads * D]`.
    """
    n, w, length, _, heads, d = qkv.shape
    bias = bias.to(qkv.dtype)
    if bias.requires_grad and bias.device.type == "cpu" and not torch.compiler.is_compiling():
        by_bias = qkv.reshape(-1, len(bias), *qkv.shape[2:])
        return _TrainableBias.apply(by_bias, bias).reshape(n, w, length, heads * d)
    if n == 1 and not bias.requires_grad:
        return _attend_one(qkv[0], bias)[None]
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, n, w * heads, length, d)
    bias = bias.expand(w, -1, -1, -1).reshape(1, w * heads, length, length)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(n, -1, -1, -1))
    return out.unflatten(1, (w, heads)).transpose(2, 3).reshape(n, w, length, heads * d)


def _attend_one(qkv: Tensor, bias: Tensor) -> Tensor:
    """`attend` for `[W, L, 3, heads, D]`; nothing is copied."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [W, heads, L, D]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class _TrainableBias(torch.autograd.Function):
    """`attend` with a gradient for the bias `[W, heads, L, L]`, for the CPU, where PyTorch's would keep all logits.

    The backward pass computes the logits again, a head of some windows at a time.
    """

    LOGITS = 2**20  # at a time, so that they stay in the processor's cache

    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        bias = bias.detach()  # of one that wants a gradient PyTorch would keep the logits
        return torch.stack([_attend_one(one, bias) for one in qkv])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias = ctx.saved_tensors
        n, windows, length, _, heads, d = qkv.shape
        grad = grad.unflatten(-1, (heads, d))
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        dqkv = torch.empty_like(qkv)
        dbias = torch.zeros_like(bias, dtype=dtype)
        samples = max(1, min(n, _TrainableBias.LOGITS // length**2))
        step = max(1, _TrainableBias.LOGITS // (samples * length**2))
        for some in zip(*(t.split(samples) for t in (qkv, dqkv, grad))):
            for first, h in product(range(0, windows, step), range(heads)):
                here = slice(first, first + step)
                part, to, do = (t[:, here, ..., h, :] for t in some)
                q, k, v = part.to(dtype).unbind(3)  # [samples, step, L, D]
                q, do = q * d**-0.5, do.to(dtype)
                p = (q @ k.mT).add_(bias[here, h]).softmax(-1)
                ds = torch._softmax_backward_data(do @ v.mT, p, -1, dtype)
                dbias[here, h] += ds.sum(0)
                to[..., 0, :] = (ds @ k).mul_(d**-0.5)
                to[..., 1, :] = ds.mT @ q
                to[..., 2, :] = p.mT @ do
        return dqkv, dbias.to(bias.dtype)


class Attention(nn.Module):
    """Multi-head attention within windows.

    With `gated`, the bias of a token pair is `g * relative + (1 - g) * fragment` (FAST-VQA, section 3.3), where `g` is
    the L1 distance between the two fragments, so 0 within a fragment, 1 between neighbours, and more beyond.
    With `scale_bias`, a value per head and per difference of temporal positions is added (SAMA's scale encoding (a)).
    """

    def __init__(self, dim: int, heads: int, *, gated: bool, scale_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        rows = prod(2 * w - 1 for w in WINDOW)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.fragment_position_bias_table = nn.Parameter(torch.zeros(rows, heads)) if gated else None
        self.scale_bias_table = nn.Parameter(torch.ones(2 * WINDOW[0] - 1, heads)) if scale_bias else None
        self._cached = None  # what the bias was built from, and the bias

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_cached": None}

    def forward(self, x: Tensor, bias: Tensor, seam: int) -> Tensor:
        """`x` `[B, slabs, W, L, C]`; the windows of the last slab are cut in two at token `seam`, if that is not 0."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if not seam:
            return self.proj(attend(qkv.flatten(0, 1), bias).unflatten(0, x.shape[:2]))
        before, last = qkv.split([x.shape[1] - 1, 1], 1)
        start, end = last.flatten(0, 1).split([seam, x.shape[3] - seam], 2)
        parts = attend(start, bias[..., :seam, :seam]), attend(end, bias[..., seam:, seam:])
        out = torch.cat(parts, 2)[:, None]
        if before.shape[1]:
            out = torch.cat([attend(before.flatten(0, 1), bias).unflatten(0, before.shape[:2]), out], 1)
        return self.proj(out)

    def bias(self, windows: Windows, grid: tuple[int, int], x: Tensor) -> Tensor:
        """What is added to the attention logits: `[W, heads, L, L]`, or `[1, heads, L, L]` where all windows agree.

        In the dtype of `x`'s query, and kept until that, the shape or a table changes (writes through `table.data`
        go unseen). Where gradients are wanted or a compiler looks on, it is built anew, in the tables' dtype.
        """
        tables = [self.relative_position_bias_table, self.fragment_position_bias_table, self.scale_bias_table]
        tables = [t for t in tables if t is not None]
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tables)
        if wanted or torch.compiler.is_compiling():
            return self._build_bias(windows, grid)
        state = [(t.data_ptr(), t.device, t.dtype, None if t.is_inference() else t._version) for t in tables]
        dtype = _compute_dtype(x)
        key = (windows, grid, dtype, state)
        if self._cached is None or self._cached[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._cached = key, self._build_bias(windows, grid).to(dtype)
        return self._cached[1]

    def _build_bias(self, windows: Windows, grid: tuple[int, int]) -> Tensor:
        device = self.relative_position_bias_table.device
        index = windows.relative_index(WINDOW, device)
        wt, space = windows.window[0], windows.window[1] * windows.window[2]

        def pairs(table: Tensor) -> Tensor:
            return table.t()[:, index].view(-1, wt, space, wt, space)  # [heads, wt, S, wt, S]

        bias = relative = pairs(self.relative_position_bias_table)[None]
        if self.fragment_position_bias_table is not None:
            fragment = pairs(self.fragment_position_bias_table)[None]
            g = windows.fragment_distance(grid, device)[:, None, None, :, None, :].to(bias.dtype)
            bias = torch.addcmul(fragment, g, relative - fragment)  # g * relative + (1 - g) * fragment
        if self.scale_bias_table is not None:
            t = torch.arange(wt, device=device)
            step = self.scale_bias_table.t()[:, t[:, None] - t + WINDOW[0] - 1]  # [heads, wt, wt]
            bias = bias + step[None, :, :, None, :, None]
        apart = windows.apart(device)
        if apart is not None:
            bias = bias + MASKED * apart[:, None, None, :, None, :]
        return bias.reshape(-1, self.heads, wt * space, wt * space)


class ScaleExcitation(nn.Module):
    """Squeeze and excitation over the temporal positions, which are SAMA's scales (scale encoding (b)).

    Each position is multiplied by `2 * sigmoid(f(mean) + f(max))`, mean and max over space and channels. The last
    layer starts at zero, so that a fresh one changes nothing.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(steps, steps)
        self.fc2 = nn.Linear(steps, steps)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]` to the same; `T` must be `steps`."""
        if x.shape[1] != self.steps:
            raise ValueError(
                f"got {x.shape[1]} temporal positions, expected {self.steps}: a model with "
                f"scale_excitation takes clips of {self.steps * PATCH[0]} frames only"
            )
        squeezed = torch.stack([x.mean((2, 3, 4)), x.amax((2, 3, 4))])
        gate = 2 * torch.sigmoid(self.fc2(F.gelu(self.fc1(squeezed))).sum(0))
        return x * gate[:, :, None, None, None]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention within (shifted) windows, then an MLP, each added to its input."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        shifted: bool,
        gated: bool,
        drop_path: float,
        grid: tuple[int, int],
        scale_bias: bool,
        scale_steps: int | None,
    ) -> None:
        super().__init__()
        self.shifted, self.drop_path, self.grid = shifted, drop_path, grid
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, gated=gated, scale_bias=scale_bias)
        self.excitation = ScaleExcitation(scale_steps) if scale_steps else None
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]` to the same. In plain evaluation on a CPU `x` may be overwritten."""
        windows = Windows.fit(tuple(x.shape[1:4]), WINDOW, shifted=self.shifted)
        bias = self.attn.bias(windows, self.grid, x)
        padding = windows.padding(x.device)
        if self.excitation is not None:
            y = windows.join(self._attention(windows.split(x), bias, windows.seam, padding))
            x = x + self._drop(self.excitation(y))
            return x + self._drop(self.mlp(self.norm2(x)))
        if plain_cpu(self, x):
            return self._by_chunks(x, windows, bias, padding)
        return windows.join(self._whole(windows.split(x), bias, windows.seam, padding))

    def _whole(self, x: Tensor, bias: Tensor, seam: int, padding: Tensor | None) -> Tensor:
        x = x + self._drop(self._attention(x, bias, seam, padding))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _by_chunks(self, x: Tensor, windows: Windows, bias: Tensor, padding: Tensor | None) -> Tensor:
        """The same in place, some windows of one slab of one sample at a time: what is computed on the way stays in
        the processor's cache, the map is neither rolled nor cut, and no shape depends on the batch."""
        x = windows.pad(x).contiguous()
        rows = _window_rows(windows)  # [slabs, W, L]
        slabs, count, length = rows.shape
        step = max(1, CHUNK // length)
        for tokens in x.flatten(1, 3):
            for slab in range(slabs):
                for first in range(0, count, step):
                    here = slice(first, first + step)
                    chunk = rows[slab, here].flatten()
                    part = tokens.index_select(0, chunk).view(1, 1, -1, length, tokens.shape[1])
                    part = self._whole(
                        part,
                        bias if len(bias) == 1 else bias[here],
                        windows.seam if slab == slabs - 1 else 0,
                        None if padding is None else padding[slab : slab + 1, here],
                    )
                    tokens.index_copy_(0, chunk, part.flatten(0, 3))
        return windows.crop(x)

    def _attention(self, x: Tensor, bias: Tensor, seam: int, padding: Tensor | None) -> Tensor:
        y = self.norm1(x)
        if padding is not None:
            y = y.masked_fill(padding, 0)  # padding is zero after the norm, and is attended to, as published
        return self.attn(y, bias, seam)

    def _drop(self, y: Tensor) -> Tensor:
        """Stochastic depth: drops the branch of some samples."""
        if not self.training or self.drop_path == 0:
            return y
        keep = 1 - self.drop_path
        kept = torch.empty((len(y),) + (1,) * (y.ndim - 1), dtype=y.dtype, device=y.device).bernoulli_(keep)
        return y * (kept / keep)


class PatchMerging(nn.Module):
    """Two by two tokens to one of twice the width; odd maps get a row or column of zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, H, W, C]` to `[B, T, ceil(H/2), ceil(W/2), 2C]`."""
        if x.shape[2] % 2 or x.shape[3] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, T, H/2, 2, W/2, 2, C]
        x = x.permute(0, 1, 2, 4, 5, 3, 6).flatten(4)
        return self.reduction(self.norm(x))


class PatchEmbed(nn.Module):
    """Frames, or patches already cut from them, to tokens.

    With `hidden`, of a narrow network, by two layers: tokens then tell how strong each component of a patch is, which
    is what degradation changes, and which survives the merging of tokens; the components themselves, of either sign,
    cancel. There is no norm then, which would take the strength away.
    """

    def __init__(self, dim: int, hidden: int = 0) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * prod(PATCH), hidden or dim)
        self.mix = nn.Linear(hidden, dim) if hidden else None
        self.norm = None if hidden else nn.LayerNorm(dim)

    def forward(self, x: Tensor, *, patches: bool) -> Tensor:
        """`[B, 3, T, H, W]`, or `[B, T/2, H/4, W/4, 96]`, to `[B, T/2, H/4, W/4, dim]`."""
        if plain_cpu(self, x):  # some frames at a time, so that they stay in the processor's cache
            step = 2 if patches else 2 * PATCH[0]
            return torch.cat([self._embed(part, patches) for part in x.split(step, 1 if patches else 2)], 1)
        return self._embed(x, patches)

    def _embed(self, x: Tensor, patches: bool) -> Tensor:
        x = x if patches else cut_patches(x)
        if self.mix is None:
            return self.norm(self.proj(x))
        with exactly(x):
            x = self.proj(x.to(self.proj.weight.dtype))
        return self.mix(F.gelu(x))


class SceneStatistics(nn.Module):
    """A score from how strong each component of the patches is. Of its logarithm: the mean and the deviation over each
    third of the clip, whose scales differ, and how far the fragments' means lie apart. And how much the two frames of
    a patch differ, at every `1 / (STEPS - 1)` of the order of time's steps.

    Such statistics of natural scenes tell degradation whatever the picture shows (Ruderman 1994; Mittal, Moorthy and
    Bovik 2012), and a network that learns from a few thousand clips does not find them by itself. `proj`, `centre` and
    `deviation` do not learn: `sama.train.whiten` sets them, so that components are of power 1 and statistics of mean 0
    and deviation 1. All is in the weights' dtype, under autocast too, since components are small differences.
    """

    STEPS = 16
    THIRDS = 3
    FLOOR = 0.01  # under a strength, where 1 is its deviation over all patches; under a difference a tenth of that
    SAMPLES = 4  # measured at once, for the memory's sake

    def __init__(self, *, grid: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.grid = grid
        width = 3 * prod(PATCH)
        count = (2 * self.THIRDS + 1) * width + self.STEPS
        self.proj = nn.Linear(width, width).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.fc1 = nn.Linear(count, 64)
        self.fc2 = nn.Linear(64, 64)
        self.fc3 = nn.Linear(64, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Patches `[B, T, H, W, 96]` to `[B]`."""
        with exactly(x):
            x = (self.measure(x) - self.centre) / self.deviation
            x = self.dropout(F.gelu(self.fc1(x)))
            return self.fc3(F.gelu(self.fc2(x))).squeeze(-1)

    def measure(self, x: Tensor) -> Tensor:
        """`[B, 7 * 96 + STEPS]` of patches: of each third the means, then the deviations; the fragments' deviations;
        the differences of frames."""
        return torch.cat([self._measure(some.to(self.proj.weight.dtype)) for some in x.split(self.SAMPLES)])

    def _measure(self, x: Tensor) -> Tensor:
        strength = (self.proj(x).abs() + self.FLOOR).log()
        told, length = [], x.shape[1]
        for third in range(self.THIRDS):
            first = min(round(third * length / self.THIRDS), length - 1)
            last = max(round((third + 1) * length / self.THIRDS), first + 1)
            told += _mean_and_deviation(strength[:, first:last].flatten(1, -2), self.FLOOR)
        fragments = F.adaptive_avg_pool2d(strength.flatten(0, 1).permute(0, 3, 1, 2), self.grid).flatten(2)
        apart = _mean_and_deviation(fragments.transpose(1, 2), self.FLOOR)[1]
        told.append(apart.unflatten(0, (-1, length)).mean(1))

        first, second = x.unflatten(-1, (3, *PATCH)).unbind(-3)
        change = ((second - first).abs().flatten(2).mean(-1) + self.FLOOR / 10).log()  # [B, T]
        dtype = torch.promote_types(x.dtype, torch.float32)
        places = torch.linspace(0, 1, self.STEPS, dtype=dtype, device=x.device)
        quantiles = change.to(places.dtype).quantile(places, 1).T  # which wants float32 at least
        return torch.cat([*told, quantiles.to(x.dtype)], 1)


def _mean_and_deviation(x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Of `[B, N, C]`, over N. An even picture has no variance, and without the floor the root has no slope there."""
    variance, mean = torch.var_mean(x, 1, correction=0)
    return mean, (variance + floor**2).sqrt()


def cut_patches(x: Tensor) -> Tensor:
    """Frames `[B, 3, T, H, W]` to patches `[B, ceil(T/2), ceil(H/4), ceil(W/4), 96]`, last axis (channel, frame, row,
    column); the end is padded with zeros to whole patches."""
    size = tuple(x.shape[2:])
    counts = tuple(-(-s // p) for s, p in zip(size, PATCH))
    whole = tuple(n * p for n, p in zip(counts, PATCH))
    if whole != size:
        x = F.pad(x, _end_padding(size, whole))
    (t, h, w), (pt, ph, pw) = counts, PATCH
    x = x.reshape(len(x), 3, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(len(x), t, h, w, 3 * prod(PATCH))


class Stage(nn.Module):
    """Blocks, every second one with shifted windows, then patch merging unless it is the last stage."""

    def __init__(self, dim: int, heads: int, drop_paths: list[float], *, last: bool, **options) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, shifted=i % 2 == 1, gated=not last, drop_path=p, **options)
            for i, p in enumerate(drop_paths)
        )
        self.downsample = None if last else PatchMerging(dim)
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.blocks[0].norm1.weight.dtype)  # under autocast, sums stay in the weights' dtype
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Swin3D(nn.Module):
    """The backbone: frames or patches to a map of features."""

    def __init__(
        self,
        *,
        dim: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        drop_path: float,
        checkpointing: bool,
        hidden: int = 0,
        **options,
    ) -> None:
        super().__init__()
        rates = iter(drop_path * i / (sum(depths) - 1) for i in range(sum(depths)))
        self.patch_embed = PatchEmbed(dim, hidden)
        self.layers = nn.ModuleList(
            Stage(dim * 2**i, heads[i], [next(rates) for _ in range(depths[i])], last=i == len(depths) - 1, **options)
            for i in range(len(depths))
        )
        for layer in self.layers:
            layer.checkpointing = checkpointing
        self.width = dim * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor, *, patches: bool) -> Tensor:
        """Tokens `[B, T/2, H/32, W/32, width]`, sizes rounded up."""
        x = self.patch_embed(x, patches=patches)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class VideoQuality(nn.Module):
    """Scores clips: Swin3D-T with GRPB and a head on every token.

    `size` is "tiny" (the published model, 28 M parameters) or "nano" (2.4 M, to train on a laptop), to whose tokens the
    score of `SceneStatistics` is added.
    `grid` is the number of fragments in height and width that the sampler lays out.
    `scale_bias` and `scale_excitation` are the paper's scale encodings (a) and (b); the latter takes clips of
    `2 * scale_steps` frames only.
    `drop_path` is the stochastic depth of the last block, `dropout` that of the head.
    `checkpointing` recomputes every block in the backward pass: less memory, more time.
    `tokens=False` makes a nano model of `SceneStatistics` alone, without a backbone and much faster; the attribute
    `without_tokens` leaves the backbone out for a while, as training does at first.

    In evaluation on a CPU each sample is computed on its own, so its score does not depend on its batch.
    """

    kind = "video"
    without_tokens = False

    def __init__(
        self,
        size: Literal["tiny", "nano"] = "tiny",
        *,
        grid: tuple[int, int] = (7, 7),
        scale_bias: bool = False,
        scale_excitation: bool = False,
        scale_steps: int = 16,
        drop_path: float = 0.1,
        dropout: float = 0.5,
        checkpointing: bool = False,
        tokens: bool = True,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"got {size = }, expected one of {', '.join(map(repr, SIZES))}")
        if not tokens and size != "nano":
            raise ValueError(f"got {size = } and {tokens = }: only a nano model has anything but tokens")
        self.size = size
        self.options = {
            "grid": tuple(grid),
            "scale_bias": scale_bias,
            "scale_excitation": scale_excitation,
            "scale_steps": scale_steps,
            "drop_path": drop_path,
            "dropout": dropout,
            "tokens": tokens,
        }
        self.backbone = self.head = self.statistics = None
        if tokens:
            self.backbone = Swin3D(
                **SIZES[size],
                drop_path=drop_path,
                checkpointing=checkpointing,
                grid=tuple(grid),
                scale_bias=scale_bias,
                scale_steps=scale_steps if scale_excitation else None,
            )
            self.head = TokenHead(self.backbone.width, dropout=dropout)
        if size == "nano":
            self.statistics = SceneStatistics(grid=tuple(grid), dropout=dropout)
        self.apply(partial(_initialise, narrow=size == "nano"))
        if tokens and size == "nano":
            nn.init.zeros_(self.head.fc_last.weight)  # the tokens add what the statistics do not tell

    def forward(self, x: Tensor, *, patches: bool | None = None) -> Tensor:
        """The token map `[B, 1, T/2, H/32, W/32]` (rounded up) of normalised clips; `[B, 1, T/2, 1, 1]` without tokens.

        `x` is frames `[B, 3, T, H, W]`, or patches `[B, T/2, H/4, W/4, 96]` with the last axis ordered (channel 3,
        frame 2, row 4, column 4). `patches` says which; None tells by the shape (where both fit, frames).
        """
        patches = self._patches(x, patches)
        return by_sample(self, lambda x: self._map(x, patches), x).permute(0, 4, 1, 2, 3)

    def _map(self, x: Tensor, patches: bool) -> Tensor:
        if self.statistics is None:
            return self.head(self.backbone(x, patches=patches))
        odd = not patches and x.shape[2] % PATCH[0]
        whole = torch.cat([x, x[:, :, -1:]], 2) if odd else x  # zeros after the last frame would be a change
        whole = whole if patches else cut_patches(whole)
        told = self.statistics(whole)[:, None, None, None, None]
        if self.backbone is None or self.without_tokens:
            return told.expand(-1, whole.shape[1], 1, 1, 1)
        return self.head(self.backbone(x if odd else whole, patches=patches or not odd)) + told

    def features(self, x: Tensor, *, patches: bool | None = None) -> Tensor:
        """What the head sees: `[B, width, T/2, H/32, W/32]`."""
        if self.backbone is None:
            raise ValueError("this model has scene statistics alone (tokens=False): there are no features of tokens")
        patches = self._patches(x, patches)
        return by_sample(self, lambda x: self.backbone(x, patches=patches), x).permute(0, 4, 1, 2, 3)

    def score(self, x: Tensor, *, patches: bool | None = None, over_time: Literal["mean", "sum"] = "mean") -> Tensor:
        """One score a clip, `[B]`: the mean of the token map.

        `over_time="sum"` gives what the published training loop puts into the loss: the mean over height and width,
        summed over time.
        """
        if over_time not in ("mean", "sum"):
            raise ValueError(f"got {over_time = }, expected 'mean' or 'sum'")
        by_time = self(x, patches=patches).mean((1, 3, 4))
        return by_time.mean(1) if over_time == "mean" else by_time.sum(1)

    def _patches(self, x: Tensor, patches: bool | None) -> bool:
        """Whether `x` is patches, once its shape is checked."""
        width = 3 * prod(PATCH)
        if patches is None:
            patches = x.ndim == 5 and x.shape[1] != 3 and x.shape[-1] == width
        if x.ndim != 5 or 0 in x.shape or (x.shape[-1] != width if patches else x.shape[1] != 3):
            raise ValueError(
                f"got {tuple(x.shape) = }, expected frames [B, 3, T, H, W] or patches [B, T/2, H/4, W/4, {width}]"
            )
        return patches


@lru_cache(maxsize=64)
def _window_rows(windows: Windows) -> Tensor:
    """Row in the flattened padded map of every token of every window: int64 `[slabs, W, L]`."""
    rows = torch.arange(prod(windows.padded), device="cpu").view(1, *windows.padded, 1)
    return Windows(windows.padded, windows.window, windows.shift).split(rows)[0, ..., 0]


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a linear layer's output for this input."""
    return torch.get_autocast_dtype(x.device.type) if autocasting(x) else x.dtype


def _initialise(module: nn.Module, *, narrow: bool) -> None:
    """Weights of deviation 0.02, as published. A narrow network would pass on next to nothing with it: there layers
    keep the size of what they get, with the root of 1 / inputs, and what a block adds to its input starts small."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if narrow else 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ScaleExcitation):
        nn.init.zeros_(module.fc2.weight)
    elif isinstance(module, Attention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
    if isinstance(module, PatchEmbed) and module.mix is not None:
        nn.init.normal_(module.mix.bias)  # so that the first norm leaves the ratio of strengths to it
    if narrow and isinstance(module, Attention | Mlp):  # applied after its layers
        with torch.no_grad():
            (module.proj if isinstance(module, Attention) else module.fc2).weight.mul_(BRANCH)
