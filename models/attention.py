"""Attention within windows, with the gated relative position bias (GRPB) of FAST-VQA (Wu et al., arXiv 2207.02595).

The bias depends on the place of a window in space only, so that all slabs of windows and all samples share it.
Shapes are named as in `sama.models.windows`.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sama.errors import DeviceError, InputError, MissingLibraryError
from sama.kernels.layout import ceil_div
from sama.models.heads import autocasting, without_autocast
from sama.models.windows import WINDOW, Windows

MASKED = -100.0  # the published logit offset between tokens that a shift made neighbours
ATTENTIONS = ("plain", "fused")
ALIGNED = 8  # elements of 16 bits in the 16 bytes that attention kernels on GPUs load at once


class Bias(NamedTuple):
    """Bias of the attention logits: `[W, heads, L, L]`, or `[1, heads, L, L]` where it is the same in all windows.

    whole: between all tokens of a window
    halves: `[..., seam, seam]` between the tokens before the seam of the last slab, and `[..., L - seam, L - seam]`
        between those after it; None where there is no seam
    """

    whole: Tensor
    halves: tuple[Tensor, Tensor] | None

    @classmethod
    def cut(cls, whole: Tensor, seam: int) -> Bias:
        """Cuts a bias at token `seam`, unless that is 0. Each tensor of 16 bits is aligned as `align` says."""
        halves = (align(whole[..., :seam, :seam]), align(whole[..., seam:, seam:])) if seam else None
        return cls(align(whole), halves)

    def select(self, windows: slice, *, last: bool) -> Bias:
        """The bias of some windows of one slab, the last or another one."""
        if len(self.whole) > 1:
            whole = self.whole[windows]
            halves = self.halves and (self.halves[0][windows], self.halves[1][windows])
        else:
            whole, halves = self
        return Bias(whole, halves if last else None)


def align(bias: Tensor) -> Tensor:
    """The same bias with every row at a multiple of 16 bytes, if its values have 16 bits; others are returned as is.

    Attention kernels on GPUs need that of 16-bit biases and do not check it everywhere. What is returned is a view:
    `bias` itself where it is aligned, else the start of the rows of a padded copy.
    """
    if bias.element_size() != 2:
        return bias
    *outer, last = bias.stride()
    if last == 1 and all(n % ALIGNED == 0 for n in (bias.storage_offset(), *outer)):
        return bias
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % ALIGNED))[..., :length]


def attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """Attention within windows, without the logits in memory.

    `qkv` is `[n, W, L, 3, heads, D]`, `bias` `[W, heads, L, L]` or `[1, heads, L, L]`. Returns `[n, W, L, heads * D]`.
    """
    n, w, length, _, heads, d = qkv.shape
    bias = bias.to(qkv.dtype)
    if bias.requires_grad and not torch.compiler.is_compiling():
        by_bias = qkv.reshape(-1, len(bias), *qkv.shape[2:])
        return _TrainableBias.apply(by_bias, bias).reshape(n, w, length, heads * d)
    return _attend(qkv, bias)


def _attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """`attend` by one call of PyTorch's attention, whose gradient of the bias is as large as all logits."""
    n, w, length, _, heads, d = qkv.shape
    if n == 1:
        return _attend_one(qkv[0], bias)[None]
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, n, w * heads, length, d)
    bias = align(bias.expand(w, -1, -1, -1).reshape(1, w * heads, length, length))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(n, -1, -1, -1))
    return out.unflatten(1, (w, heads)).transpose(2, 3).reshape(n, w, length, heads * d)


def _attend_one(qkv: Tensor, bias: Tensor) -> Tensor:
    """`attend` for `[W, L, 3, heads, D]`, without a copy of queries, keys and values."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [W, heads, L, D]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=align(bias)).transpose(1, 2).flatten(2)


class _TrainableBias(torch.autograd.Function):
    """`attend` with a gradient for the bias `[W, heads, L, L]`, in little memory.

    PyTorch's own keeps all logits on a CPU, and on a GPU it makes a gradient of the bias for each sample and then adds
    them up. Here the backward pass works on some samples, windows and heads at a time: on a CPU from the logits,
    elsewhere by PyTorch's fused attention, which it runs again.
    """

    LOGITS = 2**20  # at a time on a CPU, so that they stay in the processor's cache
    PIECE = 2**24  # elements elsewhere: of queries, keys and values copied at a time, and of bias gradients

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        bias = bias.detach()  # where a bias requires a gradient, PyTorch keeps the logits
        if _from_logits(qkv):
            return torch.stack([_attend_one(one, bias) for one in qkv])
        out = qkv.new_empty(*qkv.shape[:3], qkv.shape[4] * qkv.shape[5])
        samples = max(1, _TrainableBias.PIECE // max(1, qkv[0].numel()))
        for part, to in zip(qkv.split(samples), out.split(samples)):
            to.copy_(_attend(part, bias))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias = ctx.saved_tensors
        return (_gradients_from_logits if _from_logits(qkv) else _gradients_by_pieces)(qkv, bias, grad)


def _from_logits(qkv: Tensor) -> bool:
    """Whether gradients are computed from the logits: on a CPU, where a piece of them stays in the cache."""
    return qkv.device.type == "cpu"


def _gradients_from_logits(qkv: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `qkv` and `bias`, where the logits are computed again for one head of some windows at a time."""
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


def _gradients_by_pieces(qkv: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `qkv` and `bias` by PyTorch's attention, for some windows of some samples at a time.

    The bias gradients of the samples are added up in float32, or in float64 where the bias is.
    """
    n, windows, length, _, heads, _ = qkv.shape
    dqkv = torch.empty_like(qkv)
    dbias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
    most = max(1, _TrainableBias.PIECE // (heads * length**2))  # windows of all samples in a piece
    step = ceil_div(windows, ceil_div(windows, most))
    samples = max(1, most // step)
    for some, here in product(range(0, n, samples), range(0, windows, step)):
        place = slice(some, some + samples), slice(here, here + step)
        with torch.enable_grad(), without_autocast(qkv):
            part, part_bias = qkv[place].detach().requires_grad_(), bias[place[1]].detach().requires_grad_()
            gradients = torch.autograd.grad(_attend(part, part_bias), (part, part_bias), grad[place])
        dqkv[place] = gradients[0]
        dbias[place[1]] += gradients[1]
        del gradients, part, part_bias  # or they would be held beside the next ones
    return dqkv, dbias.to(bias.dtype)


class Attention(nn.Module):
    """Multi-head attention within windows.

    With `gated`, the bias of a token pair is `g * relative + (1 - g) * fragment` (FAST-VQA, section 3.3). `g` is the L1
    distance between the two fragments: 0 within a fragment, 1 between neighbours, more beyond.
    With `scale_bias`, a value per head and per difference of temporal positions is added (SAMA's scale encoding (a)).
    """

    fused = False  # whether blocks call `by_kernel`; `choose_attention` sets it

    def __init__(self, dim: int, heads: int, *, gated: bool, scale_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        rows = prod(2 * w - 1 for w in WINDOW)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.fragment_position_bias_table = nn.Parameter(torch.zeros(rows, heads)) if gated else None
        self.scale_bias_table = nn.Parameter(torch.ones(2 * WINDOW[0] - 1, heads)) if scale_bias else None
        self._cached: tuple[object, Bias] | None = None  # a bias, after what it was built from

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cached": None}

    def forward(self, x: Tensor, bias: Bias) -> Tensor:
        """`[B, slabs, W, L, C]` to the same. If the bias has halves, so do the windows of the last slab: their tokens
        before and after the seam attend to their own side only."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if bias.halves is None:
            return self.proj(attend(qkv.flatten(0, 1), bias.whole).unflatten(0, x.shape[:2]))
        before, last = qkv.split([x.shape[1] - 1, 1], 1)
        sides = last.flatten(0, 1).split([half.shape[-1] for half in bias.halves], 2)
        out = torch.cat([attend(side, half) for side, half in zip(sides, bias.halves)], 2)[:, None]
        if before.shape[1]:
            out = torch.cat([attend(before.flatten(0, 1), bias.whole).unflatten(0, before.shape[:2]), out], 1)
        return self.proj(out)

    def by_kernel(self, x: Tensor, windows: Windows, grid: tuple[int, int]) -> Tensor:
        """A map `[B, T, H, W, C]` to the same, by the fused kernels: padding is zero, and no bias is kept."""
        from sama.kernels.attention import Tables, attend

        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        tables = Tables(self.relative_position_bias_table, self.fragment_position_bias_table, self.scale_bias_table)
        return self.proj(attend(qkv, self.qkv.bias, tables, windows=windows, grid=grid))

    def bias(self, windows: Windows, grid: tuple[int, int], x: Tensor) -> Bias:
        """The bias for such windows and a grid of so many fragments in height and width.

        In inference it has the dtype of the queries that `x` leads to, and is kept until that dtype, the windows, the
        grid or a table changes (a write through `table.data` goes unseen). Where a table needs a gradient, or under a
        compiler, it is built anew, in the dtype of the tables.
        """
        every = (self.relative_position_bias_table, self.fragment_position_bias_table, self.scale_bias_table)
        tables = [t for t in every if t is not None]
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tables)
        if wanted or torch.compiler.is_compiling():
            return Bias.cut(self._build_bias(windows, grid), windows.seam)
        state = [(t.data_ptr(), t.device, t.dtype, None if t.is_inference() else t._version) for t in tables]
        dtype = _compute_dtype(x)
        key = (windows, grid, dtype, state)
        if self._cached is None or self._cached[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._cached = key, Bias.cut(self._build_bias(windows, grid).to(dtype), windows.seam)
        return self._cached[1]

    def _build_bias(self, windows: Windows, grid: tuple[int, int]) -> Tensor:
        """`[W, heads, L, L]` or `[1, heads, L, L]`, in the dtype of the tables."""
        device = self.relative_position_bias_table.device
        index = windows.relative_index(WINDOW, device)
        wt, space = windows.window[0], windows.window[1] * windows.window[2]

        def pairs(table: Tensor) -> Tensor:
            return _rows(table, index).view(-1, wt, space, wt, space)  # [heads, wt, S, wt, S]

        bias = relative = pairs(self.relative_position_bias_table)[None]
        if self.fragment_position_bias_table is not None:
            fragment = pairs(self.fragment_position_bias_table)[None]
            g = windows.fragment_distance(grid, device)[:, None, None, :, None, :].to(bias.dtype)
            bias = torch.addcmul(fragment, g, relative - fragment)  # g * relative + (1 - g) * fragment
        if self.scale_bias_table is not None:
            t = torch.arange(wt, device=device)
            step = _rows(self.scale_bias_table, t[:, None] - t + WINDOW[0] - 1)  # [heads, wt, wt]
            bias = bias + step[None, :, :, None, :, None]
        apart = windows.apart(device)
        if apart is not None:
            bias = bias + MASKED * apart[:, None, None, :, None, :]
        return bias.reshape(-1, self.heads, wt * space, wt * space)


def choose_attention(model: nn.Module, name: str, device: torch.device, *, compiled: bool = False) -> None:
    """Sets how a model attends: "plain", by PyTorch's attention, or "fused", by the kernels of
    `sama.kernels.attention`, on a GPU and without a compiler.

    `InputError` for another name, for a compiled model, and for one that has no such attention; `DeviceError` without a
    GPU; `MissingLibraryError` without Triton.
    """
    if name not in ATTENTIONS:
        raise InputError(f"unknown attention {name!r}; known: {', '.join(ATTENTIONS)}")
    parts = [part for part in model.modules() if isinstance(part, Attention)]
    if name == "fused":
        if not parts:
            raise InputError("attention fused is for networks with GRPB; this one has none: take attention plain")
        if compiled:
            raise InputError("attention fused cannot be compiled: leave out compile, or take attention plain")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise DeviceError(f"attention fused is for a GPU; got device {device}: take attention plain there")
        if find_spec("triton") is None:
            raise MissingLibraryError("attention fused needs Triton: pip install triton")
    for part in parts:
        part.fused = name == "fused"


def attention_for_training(
    model: nn.Module, dtype: torch.dtype, device: torch.device, *, compiled: bool = False
) -> str:
    """The faster attention for training: "fused" in 16 bits on a GPU, where it can be had; else "plain".

    On an H200, forward and backward of a layer took 11.3 ms in place of 18.2 in a Swin-T's first stage and 3.9 in place
    of 9.6 in its third (bfloat16, 8 clips); in float32 they took half as long again
    (`bench/results/gpu-h200-attention-speed.csv`).
    """
    has_gates = any(isinstance(part, Attention) for part in model.modules())
    can = device.type == "cuda" and dtype.itemsize == 2 and not compiled and find_spec("triton") is not None
    return "fused" if can and has_gates else "plain"


def kept_biases(model: nn.Module) -> list[Bias]:
    """The biases that a model's attention has built and keeps; a CUDA graph reads them where they are."""
    return [part._cached[1] for part in model.modules() if isinstance(part, Attention) and part._cached]


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table `[rows, heads]` at an index `[...]`: contiguous `[heads, ...]`.

    As an embedding, whose gradient is summed in a fixed order. That of `table[index]` is not on several threads.
    """
    return F.embedding(index, table).movedim(-1, 0).contiguous()


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a linear layer's output for this input."""
    return torch.get_autocast_dtype(x.device.type) if autocasting(x) else x.dtype
