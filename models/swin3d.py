"""Video Swin with gated relative position bias: the network that scores clips.

Video Swin Transformer (Liu et al., arXiv 2106.13230) with the gated relative position bias (GRPB) of FAST-VQA
(Wu et al., arXiv 2207.02595), as SAMA uses it (arXiv 2401.02614). Between blocks tokens are `[B, T, H, W, C]`; within
a block they are cut into windows (`sama.models.windows`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sama.kernels.layout import PATCH, PATCH_VALUES, STEMMED, ceil_div, is_patches
from sama.models.attention import Attention, Bias
from sama.models.heads import TokenHead, by_sample, exactly, plain_cpu
from sama.models.lite import LiteStem
from sama.models.statistics import SceneStatistics
from sama.models.stem import FragmentStem
from sama.models.windows import WINDOW, Windows, end_padding, window_rows

CHUNK = 3136  # tokens a block works on at a time on the CPU, so that what it computes stays in the cache
BRANCH = 0.2  # initial size of what a block of a narrow network adds to its input, relative to that input

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "nano": {"dim": 32, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "hidden": 2 * PATCH_VALUES},
    "pico": {"dim": 48, "depths": (2, 2, 2), "heads": (2, 4, 8), "stem": (32, 64)},
    "lite": {"dim": 160, "depths": (2,), "heads": (5,), "stem": "lite"},
}


class ScaleExcitation(nn.Module):
    """Squeeze and excitation over the temporal positions, which are SAMA's scales (scale encoding (b)).

    Each position is multiplied by `2 * sigmoid(f(mean) + f(max))`, where mean and max go over space and channels. The
    last layer starts at zero, so that an untrained one changes nothing.
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
    """Two linear layers with a GELU between them."""

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
        t, h, w = x.shape[1:4]
        windows = Windows.fit((t, h, w), WINDOW, shifted=self.shifted)
        if self.attn.fused:
            y = self.attn.by_kernel(self.norm1(x), windows, self.grid)
            x = x + self._drop(y if self.excitation is None else self.excitation(y))
            return x + self._drop(self.mlp(self.norm2(x)))
        bias = self.attn.bias(windows, self.grid, x)
        padding = windows.padding(x.device)
        if self.excitation is not None:
            y = windows.join(self._attention(windows.split(x), bias, padding))
            x = x + self._drop(self.excitation(y))
            return x + self._drop(self.mlp(self.norm2(x)))
        if plain_cpu(self, x):
            return self._by_chunks(x, windows, bias, padding)
        return windows.join(self._whole(windows.split(x), bias, padding))

    def _whole(self, x: Tensor, bias: Bias, padding: Tensor | None) -> Tensor:
        """`[B, slabs, W, L, C]` to the same."""
        x = x + self._drop(self._attention(x, bias, padding))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _by_chunks(self, x: Tensor, windows: Windows, bias: Bias, padding: Tensor | None) -> Tensor:
        """`forward` in place, for some windows of one slab of one sample at a time: intermediate results stay in the
        processor's cache, the map is neither rolled nor cut, and no shape depends on the batch."""
        x = windows.pad(x).contiguous()
        rows = window_rows(windows)  # [slabs, W, L]
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
                        bias.select(here, last=slab == slabs - 1),
                        None if padding is None else padding[slab : slab + 1, here],
                    )
                    tokens.index_copy_(0, chunk, part.flatten(0, 3))
        return windows.crop(x)

    def _attention(self, x: Tensor, bias: Bias, padding: Tensor | None) -> Tensor:
        y = self.norm1(x)
        if padding is not None:
            y = y.masked_fill(padding, 0)  # padding is zero after the norm, and is attended to, as published
        return self.attn(y, bias)

    def _drop(self, y: Tensor) -> Tensor:
        """Stochastic depth: drops the branch `y` of some samples in training."""
        if not self.training or self.drop_path == 0:
            return y
        keep = 1 - self.drop_path
        kept = torch.empty((len(y),) + (1,) * (y.ndim - 1), dtype=y.dtype, device=y.device).bernoulli_(keep)
        return y * (kept / keep)


class PatchMerging(nn.Module):
    """Two by two tokens to one of twice the width; odd maps are padded with a row or column of zeros."""

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

    A narrow network embeds with two layers, `hidden` wide in between. Its tokens then hold how strong each component of
    a patch is: degradation changes that, and it survives the merging of tokens, where the components themselves, of
    either sign, cancel. Such an embedding has no norm, which would remove the strength.
    """

    def __init__(self, dim: int, hidden: int = 0) -> None:
        super().__init__()
        self.proj = nn.Linear(PATCH_VALUES, hidden or dim)
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
            x = self.proj(x)
            return x if self.norm is None else self.norm(x)
        with exactly(x):
            x = self.proj(x.to(self.proj.weight.dtype))
        return self.mix(F.gelu(x))


def cut_patches(x: Tensor) -> Tensor:
    """Frames `[B, 3, T, H, W]` to patches `[B, ceil(T/2), ceil(H/4), ceil(W/4), 96]`, last axis (channel, frame, row,
    column); the end is padded with zeros to whole patches."""
    size = tuple(x.shape[2:])
    t, h, w = (ceil_div(s, p) for s, p in zip(size, PATCH))
    pt, ph, pw = PATCH
    whole = (t * pt, h * ph, w * pw)
    if whole != size:
        x = F.pad(x, end_padding(size, whole))
    x = x.reshape(x.shape[0], 3, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(x.shape[0], t, h, w, PATCH_VALUES)


class Stage(nn.Module):
    """Blocks, every second one with shifted windows, then patch merging unless it is the last stage."""

    def __init__(
        self, dim: int, heads: int, drop_paths: list[float], *, last: bool, checkpointing: bool, **options: Any
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, shifted=i % 2 == 1, gated=not last, drop_path=p, **options)
            for i, p in enumerate(drop_paths)
        )
        self.downsample = None if last else PatchMerging(dim)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.parameters()).dtype)  # under autocast, sums stay in the weights' dtype
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Swin3D(nn.Module):
    """The backbone: frames or patches to a map of features. `options` are those of `Block`."""

    def __init__(
        self,
        *,
        dim: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        drop_path: float,
        checkpointing: bool,
        hidden: int = 0,
        stem: tuple[int, int] | Literal["lite"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        rates = iter(drop_path * i / (sum(depths) - 1) for i in range(sum(depths)))
        self.patch_embed = None if stem else PatchEmbed(dim, hidden)
        self.stem: FragmentStem | LiteStem | None = None
        if stem:
            self.stem = LiteStem(dim) if stem == "lite" else FragmentStem(dim, stem, options["grid"])
        self.layers = nn.ModuleList(
            Stage(
                dim * 2**i,
                heads[i],
                [next(rates) for _ in range(depths[i])],
                last=i == len(depths) - 1,
                checkpointing=checkpointing,
                **options,
            )
            for i in range(len(depths))
        )
        self.width = dim * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor, *, patches: bool) -> Tensor:
        """Tokens `[B, T/2, H/32, W/32, width]`, sizes rounded up."""
        if self.stem is not None:
            x = self.stem(x if patches else cut_patches(x))
        elif self.patch_embed is not None:
            x = self.patch_embed(x, patches=patches)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class VideoQuality(nn.Module):
    """Scores clips: Swin3D-T with GRPB and a head on every token.

    `size` is "tiny" (the published model, 28 M parameters), "nano" (2.4 M), "pico" or "lite" (1.4 M each), to train
    on a laptop; the packaged one is lite. A nano model adds the score of `SceneStatistics` to the value of each token.
    A pico model has three stages behind a convolutional stem (`FragmentStem`), a lite model one behind a pretrained
    stem (`LiteStem`), and both a value for each fragment of 32x32 pixels.
    `grid` is the number of fragments in height and width that the sampler lays out.
    `scale_bias` and `scale_excitation` are the paper's scale encodings (a) and (b); with the latter the model takes
    clips of `2 * scale_steps` frames only.
    `drop_path` is the stochastic depth of the last block, `dropout` that of the head.
    `checkpointing` recomputes every block in the backward pass, which needs less memory and more time.
    `tokens=False` makes a nano model of `SceneStatistics` alone, without a backbone and much faster. The attribute
    `without_tokens` switches the backbone off for a while, as training does in its first epochs.

    In evaluation on a CPU each sample is computed on its own, so its score does not depend on its batch.
    ValueError for an unknown size, and for a tiny model without tokens.
    """

    kind = "video"
    without_tokens = False
    backbone: Swin3D | None
    head: TokenHead | None
    statistics: SceneStatistics | None

    def __init__(
        self,
        size: Literal["tiny", "nano", "pico", "lite"] = "tiny",
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
        rows, columns = grid
        self.size = size
        self.options = {
            "grid": (rows, columns),
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
                grid=(rows, columns),
                scale_bias=scale_bias,
                scale_steps=scale_steps if scale_excitation else None,
            )
            self.head = TokenHead(self.backbone.width, dropout=dropout)
        if size == "nano":
            self.statistics = SceneStatistics(grid=(rows, columns), dropout=dropout)
        self.apply(partial(initialise, narrow=size != "tiny"))
        if self.head is not None and self.statistics is not None:
            nn.init.zeros_(self.head.fc_last.weight)  # the statistics alone give the score of an untrained model

    @property
    def rounds_input(self) -> bool:
        """Whether autocast rounds the input before anything is computed from it: a linear embedding is all that sees
        it."""
        embed = None if self.backbone is None else self.backbone.patch_embed
        return self.statistics is None and embed is not None and embed.mix is None

    def forward(self, x: Tensor, *, patches: bool | None = None) -> Tensor:
        """The token map `[B, 1, T/2, H/32, W/32]` (rounded up) of normalised clips; `[B, 1, T/2, 1, 1]` without tokens.

        `x` is frames `[B, 3, T, H, W]`, or patches `[B, T/2, H/4, W/4, 96]` with the last axis ordered (channel 3,
        frame 2, row 4, column 4). `patches` says which; with None the shape decides, and one that fits both is frames.
        ValueError for any other shape, and for an empty input.
        """
        token_map = partial(self._map, patches=self._patches(x, patches))
        return by_sample(self, token_map, x).permute(0, 4, 1, 2, 3)

    def _map(self, x: Tensor, patches: bool) -> Tensor:
        """Values of tokens, `[B, T/2, H/32, W/32, 1]`, or `[B, T/2, 1, 1, 1]` without tokens."""
        if self.statistics is None and self.size not in STEMMED:
            return self._token_values(x, patches)
        odd = not patches and x.shape[2] % PATCH[0]
        whole = torch.cat([x, x[:, :, -1:]], 2) if odd else x  # zeros after the last frame would count as a change
        whole = whole if patches else cut_patches(whole)
        if self.statistics is None:
            return self._token_values(whole, True)
        by_statistics = self.statistics(whole)[:, None, None, None, None]
        if self.backbone is None or self.without_tokens:
            return by_statistics.expand(-1, whole.shape[1], 1, 1, 1)
        by_tokens = self._token_values(x, False) if odd else self._token_values(whole, True)
        return by_tokens + by_statistics

    def _token_values(self, x: Tensor, patches: bool) -> Tensor:
        assert self.backbone is not None
        assert self.head is not None
        return self.head(self.backbone(x, patches=patches))

    def features(self, x: Tensor, *, patches: bool | None = None) -> Tensor:
        """Input of the head: `[B, width, T/2, H/32, W/32]`. ValueError for a model without tokens."""
        if self.backbone is None:
            raise ValueError("this model has scene statistics alone (tokens=False): there are no features of tokens")
        backbone = partial(self.backbone, patches=self._patches(x, patches))
        return by_sample(self, backbone, x).permute(0, 4, 1, 2, 3)

    def score(self, x: Tensor, *, patches: bool | None = None, over_time: Literal["mean", "sum"] = "mean") -> Tensor:
        """One score per clip, `[B]`: the mean of the token map.

        `over_time="sum"` is the mean over height and width, summed over time, as the published training loop passes it
        to the loss.
        """
        if over_time not in ("mean", "sum"):
            raise ValueError(f"got {over_time = }, expected 'mean' or 'sum'")
        by_time = self(x, patches=patches).mean((1, 3, 4))
        return by_time.mean(1) if over_time == "mean" else by_time.sum(1)

    def _patches(self, x: Tensor, patches: bool | None) -> bool:
        """Whether `x` is patches; ValueError where its shape is neither that of patches nor that of frames."""
        if patches is None:
            patches = is_patches(x.shape)
        if x.ndim != 5 or 0 in x.shape or (x.shape[-1] != PATCH_VALUES if patches else x.shape[1] != 3):
            raise ValueError(
                f"got {tuple(x.shape) = }, expected frames [B, 3, T, H, W] or patches "
                f"[B, T/2, H/4, W/4, {PATCH_VALUES}]"
            )
        return patches


def lay_out(model: nn.Module, grid: tuple[int, int]) -> None:
    """Tell a network how many fragments its inputs have in height and width from now on."""
    for module in model.modules():
        if isinstance(module, Block | FragmentStem):
            module.grid = grid


def initialise(module: nn.Module, *, narrow: bool) -> None:
    """Initial weights of a module: of deviation 0.02, as published, or for a narrow network.

    With 0.02 the signal would vanish in a narrow network. There a deviation of `inputs ** -0.5` makes each layer keep
    the size of its input, and what a block adds to its input starts small.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if narrow else 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ScaleExcitation):
        nn.init.zeros_(module.fc2.weight)
    elif isinstance(module, Attention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
    elif isinstance(module, FragmentStem):
        module.start()
    if isinstance(module, PatchEmbed) and module.mix is not None:
        nn.init.normal_(module.mix.bias)  # gives the norm of the first block something to relate strengths to
    if narrow and isinstance(module, Attention | Mlp):  # `apply` has come to its layers before
        with torch.no_grad():
            (module.proj if isinstance(module, Attention) else module.fc2).weight.mul_(BRANCH)
