"""Attention within (shifted) windows with gated relative position bias, fused: the GPU kernels for the video network.

    out[i] = sum over j of softmax_j(scale * q[i] . k[j] + bias[i, j]) v[j]
    bias[i, j] = g R[i - j] + (1 - g) F[i - j] + S[t(i) - t(j)] + (-100 for tokens that the shift made neighbours)

over the tokens j of the window of i, and on the same side of the seam in time. R, F and S are the tables of relative
positions, of fragments and of scales; g is the L1 distance of the fragments of i and j. See `sama.models.windows` for
windows, padding, shift and seam, and `sama.models.attention` for the oracle.

The map is neither padded, rolled nor cut: tokens are found by the tables of `Layout`, three numbers for each token of
a map, made once for a geometry. The bias is computed from its tables where it is needed. Nothing in memory grows with
windows x L x L, L being the tokens of a window; besides output and gradients there are the logarithms of the softmax's
sums, one for each token and head.

The gradient of the bias is summed over windows and samples in registers, for one tile of a head's [L, L] at a time, in
a fixed order, and then into the tables in a fixed order: there is no atomic addition, and every gradient is the same to
the bit at every call.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from sama.kernels.attention_kernels import (
    COLUMN,
    REGION,
    SIDE,
    bias_kernel,
    forward_kernel,
    keys_kernel,
    queries_kernel,
)
from sama.kernels.layout import ceil_div
from sama.models.windows import WINDOW, Size, Windows, part_of, window_rows

SPLITS = 4  # partial sums of the bias's gradient, at most: more parallel work for maps of many windows


class Tables(NamedTuple):
    """The tables that the bias is computed from, `[rows, heads]` as `sama.models.attention.Attention` has them."""

    relative: Tensor
    fragment: Tensor | None = None
    scale: Tensor | None = None


def attend(
    qkv: Tensor,
    pad: Tensor | None,
    tables: Tables,
    *,
    windows: Windows,
    grid: tuple[int, int],
    full: Size = WINDOW,
    block: Configuration | None = None,
) -> Tensor:
    """Attention within windows of a map.

    qkv: `[B, T, H, W, 3, heads, D]` of the map as it is, on a GPU, float32, bfloat16 or float16; D at most 128
    pad: queries, keys and values of padding, `[3 * heads * D]`: the bias of the layer that made `qkv`. None is zeros
    windows, grid: as for `Attention.bias`; full: the window that the tables are for
    block: how every kernel works; None is `configuration`'s
    Returns `[B, T, H, W, heads * D]`. Gradients go to `qkv`, `pad` and the tables; each is the same at every call.
    ValueError for a map of another size than that of the windows, and for tables of another size than `full`.
    """
    heads = qkv.shape[5] if qkv.ndim == 7 else 0
    if qkv.ndim != 7 or tuple(qkv.shape[1:4]) != windows.size or qkv.shape[4] != 3 or not 0 < qkv.shape[6] <= 128:
        raise ValueError(f"got {tuple(qkv.shape) = }, expected [B, {', '.join(map(str, windows.size))}, 3, heads, D]")
    rows = (2 * full[0] - 1) * (2 * full[1] - 1) * (2 * full[2] - 1)
    for name, table, count in zip(Tables._fields, tables, (rows, rows, 2 * full[0] - 1)):
        if table is not None and tuple(table.shape) != (count, heads):
            raise ValueError(f"got a table {name} of shape {tuple(table.shape)}, expected ({count}, {heads})")
    pad = qkv.new_zeros(3 * heads * qkv.shape[6]) if pad is None else pad.to(qkv.dtype)
    major = torch.cuda.get_device_capability(qkv.device)[0] if qkv.is_cuda else 9
    configurations = {name: block or configuration(name, qkv.dtype, major) for name in ("forward", "backward", "bias")}
    call = Call(windows, grid, full, configurations)
    out: Tensor = _Fused.apply(qkv.contiguous(), pad, *tables, call)
    return out


class Configuration(NamedTuple):
    """Queries and keys that a program works on at a time, its warps, and the stages of its loop's loads."""

    queries: int
    keys: int
    warps: int
    stages: int


def configuration(kernel: str, dtype: torch.dtype, major: int = 9) -> Configuration:
    """Of the kernels "forward", "backward" (of queries, keys and values) and "bias": the fastest on an H200, of those
    that no register spills in (`bench/results/gpu-h200-attention-speed.csv`). More stages than one take twice as long.

    Products of float32 are computed in full, by threads that hold the factors in registers: smaller blocks for them.
    major: of the GPU's compute capability; on 10 the forward kernel has registers for fewer queries
    """
    queries = {"forward": 64, "backward": 64, "bias": 32}[kernel]
    fewer = dtype == torch.float32 or (kernel == "forward" and major == 10)
    return Configuration(queries // 2 if fewer else queries, 32, 4, 1)


class Layout(NamedTuple):
    """What is known of the tokens of windows, int32, on a device.

    places: `[windows, L]`, row of each token in the flattened map; -1 for padding
    padded: `[windows, L]`, its row in the flattened padded map
    marks: `[windows, L]`, what the bias depends on: row of the fragment, from bit `COLUMN` on its column, from `REGION`
        on the part of the map, of which a shift in space joins several, from `SIDE` on the side of the seam in time
    order: `[L]`, place in a table of relative positions, from bit 16 on the temporal position
    """

    places: Tensor
    padded: Tensor
    marks: Tensor
    order: Tensor


@lru_cache(maxsize=64)
def layout(windows: Windows, grid: tuple[int, int], full: Size, device: torch.device) -> Layout:
    """The tables for windows of a map, a grid of fragments, and tables of relative positions for `full` windows."""
    padded = window_rows(windows).flatten(0, 1)  # [windows, L]
    (slabs, down, across), (wt, wh, ww), (_, high, wide) = windows.counts, windows.window, windows.padded
    steps, rows, columns = windows.size
    t, y, x = padded // (high * wide), padded // wide % high, padded % wide
    places = torch.where((t < steps) & (y < rows) & (x < columns), (t * rows + y) * columns + x, -1)

    _, up, left = windows.shift
    region = part_of((y - up) % high, high, wh, up) * 3 + part_of((x - left) % wide, wide, ww, left)
    step, row, column = torch.meshgrid(*(torch.arange(n) for n in windows.window), indexing="ij")
    step = step.flatten()
    last = (torch.arange(len(padded)) >= (slabs - 1) * down * across)[:, None]
    side = (last & (step >= wt - windows.shift[0])).long()
    marks = y * grid[0] // high | x * grid[1] // wide << COLUMN.value | region << REGION.value | side << SIDE.value
    relative = ((step.view(windows.window) * (2 * full[1] - 1) + row) * (2 * full[2] - 1) + column).flatten()
    order = relative | step << 16
    return Layout(*(table.to(torch.int32).to(device) for table in (places, padded, marks, order)))


class Call(NamedTuple):
    """What the kernels are to compute, beside tensors."""

    windows: Windows
    grid: tuple[int, int]
    full: Size
    configurations: dict[str, Configuration]  # by kernel

    def layout(self, device: torch.device) -> Layout:
        return layout(self.windows, self.grid, self.full, device)

    @property
    def number(self) -> int:
        """Windows of a sample."""
        return prod(self.windows.counts)

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return prod(self.windows.window)

    def options(self, kernel: str) -> dict[str, int]:
        """What a kernel is compiled with."""
        _, _, warps, stages = self.configurations[kernel]
        return {"num_warps": warps, "num_stages": stages}

    def constants(self, kernel: str, heads: int, dim: int, *, gated: bool, scaled: bool) -> dict[str, Any]:
        """The constants of a kernel."""
        queries, keys, *_ = self.configurations[kernel]
        t, h, w = self.full
        centre = ((t - 1) * (2 * h - 1) + h - 1) * (2 * w - 1) + w - 1
        table = {"TABLE": (2 * t - 1) * (2 * h - 1) * (2 * w - 1), "CENTRE": centre, "TT": t}
        blocks = {"BLOCK_Q": queries, "BLOCK_K": keys, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
        shift = self.windows.shift
        flags = {
            "PADDED": self.windows.padded != self.windows.size,
            "GATED": gated,
            "SCALED": scaled,
            "SEAM": shift[0] > 0,
            "APART": shift[1] + shift[2] > 0,
        }
        return {"HEADS": heads, "D": dim, "L": self.length, **table, **flags, **blocks}


class _Fused(torch.autograd.Function):
    """`attend`, of tables `[rows, heads]`, which the kernels read as `_tables` gives them."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, pad: Tensor, relative: Tensor, fragment: Tensor | None, scale: Tensor | None, call: Call
    ) -> Tensor:
        given = relative, fragment, scale
        tables = _tables(*(None if table is None else table.detach() for table in given))
        *sizes, _, heads, dim = qkv.shape
        out = qkv.new_empty(*sizes, heads * dim)
        sums = qkv.new_empty(*sizes, heads, dtype=torch.float32)
        has = {"gated": fragment is not None, "scaled": scale is not None}
        settings = call.constants("forward", heads, dim, **has) | call.options("forward")
        blocks = ceil_div(call.length, call.configurations["forward"].queries)
        places, _, marks, order = call.layout(qkv.device)
        with _device(qkv):
            forward_kernel[(call.number * len(qkv) * blocks, heads)](
                *(qkv, pad, *tables, places, marks, order, out, sums),
                *(prod(call.windows.size), call.number, dim**-0.5),
                **settings,
            )
        ctx.save_for_backward(qkv, pad, out, sums, *tables)
        ctx.call, ctx.has = call, has
        ctx.dtypes = [None if table is None else table.dtype for table in given]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, pad, out, sums, *tables = ctx.saved_tensors
        call: Call = ctx.call
        *sizes, _, heads, dim = qkv.shape
        windows, length = call.windows, call.length
        settings = {
            name: call.constants(name, heads, dim, **ctx.has) | call.options(name) for name in ("backward", "bias")
        }
        queries, keys, *_ = call.configurations["backward"]
        grad = grad.contiguous()
        delta = (grad.float() * out.float()).unflatten(-1, (heads, dim)).sum(-1)  # [B, T, H, W, heads]
        padded = windows.padded != windows.size
        dqkv = (torch.zeros if padded else torch.empty)(
            len(qkv), *windows.padded, 3 * heads * dim, dtype=qkv.dtype, device=qkv.device
        )
        places, rows, marks, order = call.layout(qkv.device)
        inputs = qkv, pad, *tables, places, marks, order
        size, number, scale = prod(windows.size), call.number * len(qkv), dim**-0.5
        with _device(qkv):
            for kernel, block in ((queries_kernel, queries), (keys_kernel, keys)):
                grid = number * ceil_div(length, block), heads
                kernel[grid](
                    *(*inputs, rows, sums, delta, grad, dqkv),
                    *(size, prod(windows.padded), call.number, scale),
                    **settings["backward"],
                )
            dtables: list[Tensor | None] = [None] * 3
            if any(ctx.needs_input_grad[2:5]):
                splits = min(SPLITS, number)
                halves = 1 + ctx.has["gated"]
                dbias = torch.empty(splits, halves, heads, length, length, dtype=torch.float32, device=qkv.device)
                tiles = ceil_div(length, call.configurations["bias"].queries) * ceil_div(
                    length, call.configurations["bias"].keys
                )
                share = ceil_div(number, splits)
                bias_kernel[tiles, heads, splits](
                    *(*inputs, sums, delta, grad, dbias),
                    *(size, call.number, scale, number, share),
                    **settings["bias"],
                )
                dtables = _into_tables(dbias.sum(0), call, ctx.dtypes)
        dpad = None
        if padded:
            real = dqkv[:, : sizes[1], : sizes[2], : sizes[3]]
            whole, dqkv = dqkv, real.clone(memory_format=torch.contiguous_format)
            real.zero_()
            dpad = whole.flatten(0, 3).float().sum(0).to(pad.dtype)
        return dqkv.view(qkv.shape), dpad, *dtables, None


def _into_tables(dbias: Tensor, call: Call, dtypes: list[torch.dtype | None]) -> list[Tensor | None]:
    """The tables' gradients `[rows, heads]` from those of the gate's two sides, `[1 or 2, heads, L, L]`.

    As an embedding's, which is summed in a fixed order.
    """
    windows, (_, heads, length, _) = call.windows, dbias.shape
    index = windows.relative_index(call.full, dbias.device)
    rows = (2 * call.full[0] - 1) * (2 * call.full[1] - 1) * (2 * call.full[2] - 1)

    def sums(values: Tensor, index: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        flat = values.flatten(1).T.contiguous()
        return torch.ops.aten.embedding_dense_backward(flat, index.flatten(), rows, -1, False).to(dtype)

    relative, fragment, scale = dtypes
    assert relative is not None
    found: list[Tensor | None] = [sums(dbias[0], index, rows, relative), None, None]
    if fragment is not None:
        found[1] = sums(dbias[1], index, rows, fragment)
    if scale is not None:
        wt = windows.window[0]
        t = torch.arange(wt, device=dbias.device)
        by_step = dbias.sum(0).view(heads, wt, length // wt, wt, length // wt).sum((2, 4))
        found[2] = sums(by_step, t[:, None] - t + call.full[0] - 1, 2 * call.full[0] - 1, scale)
    return found


def _tables(relative: Tensor | None, fragment: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tables of relative positions and of fragments, `[heads, rows]`, as one of two float32 in an int64, so that a
    pair of tokens is looked up once; of relative positions alone, float32, where there is no other. And that of scales,
    `[heads, steps]`, float32; where there is none the first, which is not read then."""
    assert relative is not None
    tables = relative.float().T.contiguous()
    if fragment is not None:
        tables = torch.stack([tables, fragment.float().T], -1).view(torch.int64)[..., 0]
    return tables, tables if scale is None else scale.float().T.contiguous()


def _device(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
