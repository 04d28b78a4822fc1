"""The kernels of `sama.kernels.attention`: forward, and gradients of queries, of keys and values, and of the bias.

A program works on a block of queries or keys of one window and one head; the last kernel on a tile of one head's bias,
over many windows. What is known of the tokens of a window lies in the tables of `sama.kernels.attention.Layout`, which
all heads and samples share: computing it in every program took several times as long as the attention itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)  # logit of what is not attended to; a row of nothing else comes to no NaN
COLUMN, REGION, SIDE = tl.constexpr(8), tl.constexpr(16), tl.constexpr(20)  # first bits of a mark's parts


@triton.jit
def _of_head(p_qkv, p_pad, p_tables, p_scale, head, D: tl.constexpr, TABLE: tl.constexpr, STEPS: tl.constexpr):
    """What belongs to a head."""
    return p_qkv + head * D, p_pad + head * D, p_tables + head * TABLE, p_scale + head * STEPS


@triton.jit
def _tokens(p_places, p_marks, p_order, window, token, L: tl.constexpr):
    """Of tokens of a window: row in the map, and whether they are in it; mark, and order. Those from L on are in no
    window, and have the marks of the last one."""
    at = tl.minimum(token, L - 1)
    place = tl.load(p_places + window * L + at)
    return place, (token < L) & (place >= 0), tl.load(p_marks + window * L + at), tl.load(p_order + at)


@triton.jit
def _distance(i, j):
    """L1 distance of the fragments of queries and keys, by their marks."""
    down = (i & 255).to(tl.float32)[:, None] - (j & 255).to(tl.float32)[None, :]
    across = ((i >> COLUMN) & 255).to(tl.float32)[:, None] - ((j >> COLUMN) & 255).to(tl.float32)[None, :]
    return tl.abs(down) + tl.abs(across)


@triton.jit
def _logits(
    q, k, i, j, order_i, order_j, p_tables, p_scale, inside, scale,
    CENTRE: tl.constexpr, TT: tl.constexpr,
    GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Logits of queries with the marks i for keys with the marks j; inside: which keys are tokens of the window."""
    entry = tl.load(p_tables + ((order_i & 65535)[:, None] - (order_j & 65535)[None, :] + CENTRE))
    if GATED:  # two numbers in one: of relative positions, and above it of fragments
        fragment = (entry >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        bias = fragment + _distance(i, j) * (entry.to(tl.int32).to(tl.float32, bitcast=True) - fragment)
    else:
        bias = entry
    if SCALED:
        bias += tl.load(p_scale + ((order_i >> 16)[:, None] - (order_j >> 16)[None, :] + (TT - 1)))
    if APART:
        bias += tl.where(((i >> REGION) & 15)[:, None] == ((j >> REGION) & 15)[None, :], 0.0, -100.0)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias
    if SEAM:
        logits = tl.where((i >> SIDE)[:, None] == (j >> SIDE)[None, :], logits, HIDDEN)
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
def _queries(
    p_qkv, p_pad, p_sums, p_delta, p_grad, head, base, place, real,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Of queries: themselves, the gradient of their outputs, the logarithms of their sums, and delta."""
    q = _rows(p_qkv, p_pad, 0, base, place, real, HEADS, D, BLOCK_D, PADDED)
    grad = _outputs(p_grad + head * D, base, place, real, HEADS, D, BLOCK_D)
    o = (base + place).to(tl.int64) * HEADS + head
    return q, grad, tl.load(p_sums + o, mask=real, other=0.0), tl.load(p_delta + o, mask=real, other=0.0)


@triton.jit
def forward_kernel(
    # pointers
    p_qkv, p_pad, p_tables, p_scale, p_places, p_marks, p_order, p_out, p_sums,
    # sizes: rows of a sample's map, its windows
    rows, windows, scale,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, TT: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[i], and sums[i] = log(sum over j of exp(logits[i, j])), of a block of queries of one window and head."""
    BLOCKS: tl.constexpr = (L + BLOCK_Q - 1) // BLOCK_Q
    head, block, number = tl.program_id(1), tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    window, base = number % windows, (number // windows).to(tl.int64) * rows
    p_qkv, p_pad, p_tables, p_scale = _of_head(p_qkv, p_pad, p_tables, p_scale, head, D, TABLE, 2 * TT - 1)
    token = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place, real, i, order_i = _tokens(p_places, p_marks, p_order, window, token, L)
    q = _rows(p_qkv, p_pad, 0, base, place, real, HEADS, D, BLOCK_D, PADDED)
    most = tl.full([BLOCK_Q], -1e30, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_K):
        other = first + tl.arange(0, BLOCK_K)
        there, known, j, order_j = _tokens(p_places, p_marks, p_order, window, other, L)
        k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
        v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
        logits = _logits(
            q, k, i, j, order_i, order_j, p_tables, p_scale, other < L, scale,
            CENTRE, TT, GATED, SCALED, SEAM, APART,
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
    q, k, v, grad, i, j, order_i, order_j, p_tables, p_scale, sums, delta, real, inside, scale,
    CENTRE: tl.constexpr, TT: tl.constexpr,
    GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Probabilities, and the gradient of the logits; zero for queries that are padding."""
    logits = _logits(
        q, k, i, j, order_i, order_j, p_tables, p_scale, inside, scale,
        CENTRE, TT, GATED, SCALED, SEAM, APART,
    )  # fmt: skip
    p = tl.where(real[:, None], tl.exp(logits - sums[:, None]), 0.0)
    return p, p * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])


@triton.jit
def queries_kernel(
    # pointers
    p_qkv, p_pad, p_tables, p_scale, p_places, p_marks, p_order, p_padded,
    p_sums, p_delta, p_grad, p_dqkv,
    # sizes: rows of a sample's map, of its padded map, its windows
    rows, whole, windows, scale,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, TT: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries of one window and head."""
    BLOCKS: tl.constexpr = (L + BLOCK_Q - 1) // BLOCK_Q
    head, block, number = tl.program_id(1), tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    window, sample = number % windows, (number // windows).to(tl.int64)
    base = sample * rows
    p_qkv, p_pad, p_tables, p_scale = _of_head(p_qkv, p_pad, p_tables, p_scale, head, D, TABLE, 2 * TT - 1)
    token = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place, real, i, order_i = _tokens(p_places, p_marks, p_order, window, token, L)
    q, grad, sums, delta = _queries(
        p_qkv, p_pad, p_sums, p_delta, p_grad, head, base, place, real, HEADS, D, BLOCK_D, PADDED
    )
    dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_K):
        other = first + tl.arange(0, BLOCK_K)
        there, known, j, order_j = _tokens(p_places, p_marks, p_order, window, other, L)
        k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
        v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
        _p, ds = _slopes(
            q, k, v, grad, i, j, order_i, order_j, p_tables, p_scale, sums, delta, real, other < L, scale,
            CENTRE, TT, GATED, SCALED, SEAM, APART,
        )  # fmt: skip
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    d = tl.arange(0, BLOCK_D)
    row = sample * whole + tl.load(p_padded + window * L + token, mask=token < L, other=0)
    to = p_dqkv + head * D + row[:, None] * (3 * HEADS * D) + d[None, :]
    tl.store(to, (dq * scale).to(p_dqkv.dtype.element_ty), mask=real[:, None] & (d < D)[None, :])


@triton.jit
def keys_kernel(
    # pointers
    p_qkv, p_pad, p_tables, p_scale, p_places, p_marks, p_order, p_padded,
    p_sums, p_delta, p_grad, p_dqkv,
    # sizes: rows of a sample's map, of its padded map, its windows
    rows, whole, windows, scale,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, TT: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values of one window and head; of padding too, into the padded map."""
    BLOCKS: tl.constexpr = (L + BLOCK_K - 1) // BLOCK_K
    head, block, number = tl.program_id(1), tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    window, sample = number % windows, (number // windows).to(tl.int64)
    base = sample * rows
    p_qkv, p_pad, p_tables, p_scale = _of_head(p_qkv, p_pad, p_tables, p_scale, head, D, TABLE, 2 * TT - 1)
    other = block * BLOCK_K + tl.arange(0, BLOCK_K)
    there, known, j, order_j = _tokens(p_places, p_marks, p_order, window, other, L)
    k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
    v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
    dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for first in range(0, L, BLOCK_Q):
        token = first + tl.arange(0, BLOCK_Q)
        place, real, i, order_i = _tokens(p_places, p_marks, p_order, window, token, L)
        q, grad, sums, delta = _queries(
            p_qkv, p_pad, p_sums, p_delta, p_grad, head, base, place, real, HEADS, D, BLOCK_D, PADDED
        )
        p, ds = _slopes(
            q, k, v, grad, i, j, order_i, order_j, p_tables, p_scale, sums, delta, real, other < L, scale,
            CENTRE, TT, GATED, SCALED, SEAM, APART,
        )  # fmt: skip
        dv += tl.dot(tl.trans(p).to(grad.dtype), grad, input_precision="ieee")
        dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision="ieee")
    d = tl.arange(0, BLOCK_D)
    row = sample * whole + tl.load(p_padded + window * L + other, mask=other < L, other=0)
    to = p_dqkv + head * D + row[:, None] * (3 * HEADS * D) + d[None, :]
    within = (other < L)[:, None] & (d < D)[None, :]
    tl.store(to + HEADS * D, (dk * scale).to(p_dqkv.dtype.element_ty), mask=within)
    tl.store(to + 2 * HEADS * D, dv.to(p_dqkv.dtype.element_ty), mask=within)


@triton.jit
def bias_kernel(
    # pointers
    p_qkv, p_pad, p_tables, p_scale, p_places, p_marks, p_order, p_sums, p_delta, p_grad, p_dbias,
    # sizes: rows of a sample's map, its windows; windows of all samples, and how many of them a program works on
    rows, windows, scale, count, share,
    # constants
    HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, TT: tl.constexpr,
    PADDED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr, SEAM: tl.constexpr, APART: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of one head's [L, L] of the logits' gradient, summed over `share` of the windows of all samples: times
    the gate into the first half of dbias `[splits, 2, heads, L, L]`, times 1 - gate into the second; without gate into
    `[splits, 1, heads, L, L]`."""
    ACROSS: tl.constexpr = (L + BLOCK_K - 1) // BLOCK_K
    HALVES: tl.constexpr = 2 if GATED else 1
    head, split = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) // ACROSS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    other = tl.program_id(0) % ACROSS * BLOCK_K + tl.arange(0, BLOCK_K)
    p_qkv, p_pad, p_tables, p_scale = _of_head(p_qkv, p_pad, p_tables, p_scale, head, D, TABLE, 2 * TT - 1)
    gated = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    others = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for number in range(split * share, tl.minimum(count, (split + 1) * share)):
        window, base = number % windows, (number // windows).to(tl.int64) * rows
        place, real, i, order_i = _tokens(p_places, p_marks, p_order, window, token, L)
        there, known, j, order_j = _tokens(p_places, p_marks, p_order, window, other, L)
        q, grad, sums, delta = _queries(
            p_qkv, p_pad, p_sums, p_delta, p_grad, head, base, place, real, HEADS, D, BLOCK_D, PADDED
        )
        k = _rows(p_qkv, p_pad, 1, base, there, known, HEADS, D, BLOCK_D, PADDED)
        v = _rows(p_qkv, p_pad, 2, base, there, known, HEADS, D, BLOCK_D, PADDED)
        _p, ds = _slopes(
            q, k, v, grad, i, j, order_i, order_j, p_tables, p_scale, sums, delta, real, other < L, scale,
            CENTRE, TT, GATED, SCALED, SEAM, APART,
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
