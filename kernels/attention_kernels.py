"""The kernels of `sama.kernels.attention`: forward, and gradients of queries, of keys and values, and of the bias.

A program works on a block of queries or keys of one window and one head; the last kernel on a tile of one head's bias,
over many windows. Tokens are found by their place in a window; names ending in `_kernel` are launched.
"""

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)  # logit of what is not attended to; a row of nothing else comes to no NaN


@triton.jit
def _window(number, slabs, down, across):
    """Sample, slab, row and column of a window."""
    return (
        number // (across * down * slabs),
        number // (across * down) % slabs,
        number // across % down,
        number % across,
    )


@triton.jit
def _locate(
    token, slab, row, column, steps, rows, columns, slabs, down, across,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
):  # fmt: skip
    """Of tokens of a window: row in the flattened map of a sample, row in the padded one, and whether they are in the
    map at all, where others are padding."""
    t = (slab * WT + token // (WH * WW) + ST) % (slabs * WT)
    y = (row * WH + token // WW % WH + SH) % (down * WH)
    x = (column * WW + token % WW + SW) % (across * WW)
    real = (token < WT * WH * WW) & (t < steps) & (y < rows) & (x < columns)
    return (t * rows + y) * columns + x, (t * down * WH + y) * across * WW + x, real


@triton.jit
def _mark(
    token, row, column, down, across,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    GH: tl.constexpr, GW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    """What the bias depends on, of tokens of a window: place in a table of relative positions; temporal position; row
    and column of the fragment; region of the map, of which a shift in space joins several; side of the seam in time."""
    t, y, x = token // (WH * WW), token // WW % WH, token % WW
    at_y, at_x = row * WH + y, column * WW + x
    high, wide = down * WH, across * WW
    region = token * 0
    if SH > 0:
        region += ((at_y >= high - WH).to(tl.int32) + (at_y >= high - SH).to(tl.int32)) * 3
    if SW > 0:
        region += (at_x >= wide - WW).to(tl.int32) + (at_x >= wide - SW).to(tl.int32)
    relative = (t * (2 * TH - 1) + y) * (2 * TW - 1) + x
    return relative, t, (at_y + SH) % high * GH // high, (at_x + SW) % wide * GW // wide, region, t >= WT - ST


@triton.jit
def _distance(i, j):
    """L1 distance of the fragments of queries and keys."""
    return (tl.abs(i[2][:, None] - j[2][None, :]) + tl.abs(i[3][:, None] - j[3][None, :])).to(tl.float32)


@triton.jit
def _logits(
    q, k, i, j, p_relative, p_fragment, p_scale, last, inside, scale,
    TT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Logits of queries with the marks i for keys with the marks j; inside: which keys are tokens of the window."""
    o = i[0][:, None] - j[0][None, :] + ((TT - 1) * (2 * TH - 1) + TH - 1) * (2 * TW - 1) + TW - 1
    pair = inside[None, :] & (o >= 0) & (o < (2 * TT - 1) * (2 * TH - 1) * (2 * TW - 1))
    bias = tl.load(p_relative + o, mask=pair, other=0.0)
    if GATED:
        fragment = tl.load(p_fragment + o, mask=pair, other=0.0)
        bias = fragment + _distance(i, j) * (bias - fragment)
    if SCALED:
        step = i[1][:, None] - j[1][None, :] + TT - 1
        bias += tl.load(p_scale + step, mask=pair & (step >= 0) & (step < 2 * TT - 1), other=0.0)
    if APART:
        bias += tl.where(i[4][:, None] == j[4][None, :], 0.0, -100.0)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias
    if SEAM:
        logits = tl.where((i[5][:, None] != j[5][None, :]) & last, HIDDEN, logits)
    return tl.where(inside[None, :], logits, HIDDEN)


@triton.jit
def _rows(
    p_qkv, p_pad, part, base, place, real,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Queries (part 0), keys (1) or values (2) of one head, of tokens at a place; padding has those of a zero."""
    d = tl.arange(0, BLOCK_D)
    o = (base + place).to(tl.int64) * (3 * HEADS * D) + part * (HEADS * D)
    x = tl.load(p_qkv + o[:, None] + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)
    if PADDED:
        pad = tl.load(p_pad + part * (HEADS * D) + d, mask=d < D, other=0.0)
        x = tl.where(real[:, None], x, pad[None, :])
    return x


@triton.jit
def _outputs(p, base, place, real, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one head of the output, or of its gradient; zero where a token is padding."""
    d = tl.arange(0, BLOCK_D)
    o = (base + place).to(tl.int64) * (HEADS * D)
    return tl.load(p + o[:, None] + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def forward_kernel(
    # pointers
    p_qkv, p_pad, p_relative, p_fragment, p_scale, p_out, p_sums,
    # sizes: of the map, in windows
    steps, rows, columns, slabs, down, across, scale,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, TABLE: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    GH: tl.constexpr, GW: tl.constexpr, TT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[i], and sums[i] = log(sum over j of exp(logits[i, j])), of a block of queries of one window and head."""
    L: tl.constexpr = WT * WH * WW
    BLOCKS: tl.constexpr = (L + BLOCK_Q - 1) // BLOCK_Q
    head, block = tl.program_id(1), tl.program_id(0) % BLOCKS
    sample, slab, row, column = _window(tl.program_id(0) // BLOCKS, slabs, down, across)
    base, last = sample.to(tl.int64) * (steps * rows * columns), slab == slabs - 1
    p_qkv += head * D
    p_pad += head * D
    p_relative += head * TABLE
    p_fragment += head * TABLE
    p_scale += head * (2 * TT - 1)

    token = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place, _in_padded, real = _locate(
        token, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
    )
    i = _mark(token, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
    q = _rows(p_qkv, p_pad, 0, base, place, real, HEADS, D, BLOCK_D, PADDED)
    most = tl.full([BLOCK_Q], -1e30, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_K):
        other = first + tl.arange(0, BLOCK_K)
        there, _there_padded, known = _locate(
            other, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
        )
        j = _mark(other, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
        k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
        v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
        logits = _logits(
            q, k, i, j, p_relative, p_fragment, p_scale, last, other < L, scale,
            TT, TH, TW, GATED, SCALED, ST > 0, SH + SW > 0,
        )  # fmt: skip
        new = tl.maximum(most, tl.max(logits, 1))
        p = tl.exp(logits - new[:, None])
        shrink = tl.exp(most - new)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        most = new
    d = tl.arange(0, BLOCK_D)
    o = (base + place).to(tl.int64) * HEADS + head
    tl.store(p_sums + o, most + tl.log(total), mask=real)
    to = p_out + o[:, None] * D + d[None, :]
    tl.store(to, (out / total[:, None]).to(p_out.dtype.element_ty), mask=real[:, None] & (d < D)[None, :])


@triton.jit
def _slopes(
    q, k, v, grad, i, j, p_relative, p_fragment, p_scale, sums, delta, real, last, inside, scale,
    TT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Probabilities, and the gradient of the logits; zero for queries that are padding."""
    logits = _logits(
        q, k, i, j, p_relative, p_fragment, p_scale, last, inside, scale, TT, TH, TW, GATED, SCALED, SEAM, APART
    )
    p = tl.where(real[:, None], tl.exp(logits - sums[:, None]), 0.0)
    return p, p * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])


@triton.jit
def queries_kernel(
    # pointers
    p_qkv, p_pad, p_relative, p_fragment, p_scale, p_sums, p_delta, p_grad, p_dqkv,
    # sizes
    steps, rows, columns, slabs, down, across, scale,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, TABLE: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    GH: tl.constexpr, GW: tl.constexpr, TT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries of one window and head."""
    L: tl.constexpr = WT * WH * WW
    BLOCKS: tl.constexpr = (L + BLOCK_Q - 1) // BLOCK_Q
    head, block = tl.program_id(1), tl.program_id(0) % BLOCKS
    sample, slab, row, column = _window(tl.program_id(0) // BLOCKS, slabs, down, across)
    base, last = sample.to(tl.int64) * (steps * rows * columns), slab == slabs - 1
    p_qkv += head * D
    p_pad += head * D
    p_relative += head * TABLE
    p_fragment += head * TABLE
    p_scale += head * (2 * TT - 1)

    token = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place, padded, real = _locate(
        token, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
    )
    i = _mark(token, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
    q = _rows(p_qkv, p_pad, 0, base, place, real, HEADS, D, BLOCK_D, PADDED)
    grad = _outputs(p_grad + head * D, base, place, real, HEADS, D, BLOCK_D)
    o = (base + place).to(tl.int64) * HEADS + head
    sums = tl.load(p_sums + o, mask=real, other=0.0)
    delta = tl.load(p_delta + o, mask=real, other=0.0)
    dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_K):
        other = first + tl.arange(0, BLOCK_K)
        there, _there_padded, known = _locate(
            other, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
        )
        j = _mark(other, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
        k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
        v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
        _p, ds = _slopes(
            q, k, v, grad, i, j, p_relative, p_fragment, p_scale, sums, delta, real, last, other < L, scale,
            TT, TH, TW, GATED, SCALED, ST > 0, SH + SW > 0,
        )  # fmt: skip
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    d = tl.arange(0, BLOCK_D)
    whole = sample.to(tl.int64) * (slabs * WT * down * WH * across * WW) + padded
    to = p_dqkv + head * D + whole[:, None] * (3 * HEADS * D) + d[None, :]
    tl.store(to, (dq * scale).to(p_dqkv.dtype.element_ty), mask=real[:, None] & (d < D)[None, :])


@triton.jit
def keys_kernel(
    # pointers
    p_qkv, p_pad, p_relative, p_fragment, p_scale, p_sums, p_delta, p_grad, p_dqkv,
    # sizes
    steps, rows, columns, slabs, down, across, scale,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, TABLE: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    GH: tl.constexpr, GW: tl.constexpr, TT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values of one window and head; of padding too, into the padded map."""
    L: tl.constexpr = WT * WH * WW
    BLOCKS: tl.constexpr = (L + BLOCK_K - 1) // BLOCK_K
    head, block = tl.program_id(1), tl.program_id(0) % BLOCKS
    sample, slab, row, column = _window(tl.program_id(0) // BLOCKS, slabs, down, across)
    base, last = sample.to(tl.int64) * (steps * rows * columns), slab == slabs - 1
    p_qkv += head * D
    p_pad += head * D
    p_relative += head * TABLE
    p_fragment += head * TABLE
    p_scale += head * (2 * TT - 1)

    other = block * BLOCK_K + tl.arange(0, BLOCK_K)
    there, padded, known = _locate(
        other, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
    )
    j = _mark(other, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
    k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
    v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
    dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_Q):
        token = first + tl.arange(0, BLOCK_Q)
        place, _in_padded, real = _locate(
            token, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
        )
        i = _mark(token, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
        q = _rows(p_qkv, p_pad, 0, base, place, real, HEADS, D, BLOCK_D, PADDED)
        grad = _outputs(p_grad + head * D, base, place, real, HEADS, D, BLOCK_D)
        o = (base + place).to(tl.int64) * HEADS + head
        sums = tl.load(p_sums + o, mask=real, other=0.0)
        delta = tl.load(p_delta + o, mask=real, other=0.0)
        p, ds = _slopes(
            q, k, v, grad, i, j, p_relative, p_fragment, p_scale, sums, delta, real, last, other < L, scale,
            TT, TH, TW, GATED, SCALED, ST > 0, SH + SW > 0,
        )  # fmt: skip
        dv += tl.dot(tl.trans(p).to(grad.dtype), grad, input_precision="ieee")
        dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision="ieee")
    d = tl.arange(0, BLOCK_D)
    whole = sample.to(tl.int64) * (slabs * WT * down * WH * across * WW) + padded
    to = p_dqkv + head * D + whole[:, None] * (3 * HEADS * D) + d[None, :]
    within = (other < L)[:, None] & (d < D)[None, :]
    tl.store(to + HEADS * D, (dk * scale).to(p_dqkv.dtype.element_ty), mask=within)
    tl.store(to + 2 * HEADS * D, dv.to(p_dqkv.dtype.element_ty), mask=within)


@triton.jit
def bias_kernel(
    # pointers
    p_qkv, p_pad, p_relative, p_fragment, p_scale, p_sums, p_delta, p_grad, p_dbias,
    # sizes
    steps, rows, columns, slabs, down, across, scale, windows, share,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, TABLE: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    GH: tl.constexpr, GW: tl.constexpr, TT: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of one head's [L, L] of the logits' gradient, summed over `share` of the windows of all samples: times
    the gate into the first half of dbias `[splits, 2, heads, L, L]`, times 1 - gate into the second; without gate into
    `[splits, 1, heads, L, L]`."""
    L: tl.constexpr = WT * WH * WW
    ACROSS: tl.constexpr = (L + BLOCK_K - 1) // BLOCK_K
    HALVES: tl.constexpr = 2 if GATED else 1
    head, split = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) // ACROSS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    other = tl.program_id(0) % ACROSS * BLOCK_K + tl.arange(0, BLOCK_K)
    p_qkv += head * D
    p_pad += head * D
    p_relative += head * TABLE
    p_fragment += head * TABLE
    p_scale += head * (2 * TT - 1)
    gated = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    others = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for number in range(split * share, tl.minimum(windows, (split + 1) * share)):
        sample, slab, row, column = _window(number, slabs, down, across)
        base, last = sample.to(tl.int64) * (steps * rows * columns), slab == slabs - 1
        place, _in_padded, real = _locate(
            token, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
        )
        there, _there_padded, known = _locate(
            other, slab, row, column, steps, rows, columns, slabs, down, across, WT, WH, WW, ST, SH, SW
        )
        i = _mark(token, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
        j = _mark(other, row, column, down, across, WT, WH, WW, ST, SH, SW, GH, GW, TH, TW)
        q = _rows(p_qkv, p_pad, 0, base, place, real, HEADS, D, BLOCK_D, PADDED)
        k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
        v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
        grad = _outputs(p_grad + head * D, base, place, real, HEADS, D, BLOCK_D)
        o = (base + place).to(tl.int64) * HEADS + head
        sums = tl.load(p_sums + o, mask=real, other=0.0)
        delta = tl.load(p_delta + o, mask=real, other=0.0)
        _p, ds = _slopes(
            q, k, v, grad, i, j, p_relative, p_fragment, p_scale, sums, delta, real, last, other < L, scale,
            TT, TH, TW, GATED, SCALED, ST > 0, SH + SW > 0,
        )  # fmt: skip
        if GATED:
            g = _distance(i, j)
            gated += g * ds
            others += (1.0 - g) * ds
        else:
            gated += ds
    within = (token < L)[:, None] & (other < L)[None, :]
    to = p_dbias + ((split * HALVES) * HEADS + head).to(tl.int64) * (L * L) + token[:, None] * L + other[None, :]
    tl.store(to, gated, mask=within)
    if GATED:
        tl.store(to + HEADS * L * L, others, mask=within)
