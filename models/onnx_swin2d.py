"""timm's Swin V2 as an ONNX graph: the backbone of an image model of size tiny or nano."""

from __future__ import annotations

import math
from typing import Any

import torch

from sama.models.onnx_graph import Graph


def backbone(g: Graph, x: str, net: Any, name: str) -> str:
    """Images `[B, 3, H, W]` to features `[B, H/32, W/32, C]`."""
    proj = net.patch_embed.proj
    weights = (g.constant(part, f"{name}.patch_embed.proj") for part in (proj.weight, proj.bias))
    x = g.op("Conv", x, *weights, strides=list(proj.stride), pads=[0, 0, 0, 0])
    x = g.norm(g.transpose(x, 0, 2, 3, 1), net.patch_embed.norm, f"{name}.patch_embed.norm")
    for i, stage in enumerate(net.layers):
        if i:
            x = merge(g, x, stage.downsample, stage.blocks[0].input_resolution, f"{name}.layers.{i}.downsample")
        for k, block in enumerate(stage.blocks):
            x = one_block(g, x, block, f"{name}.layers.{i}.blocks.{k}")
    return g.norm(x, net.norm, f"{name}.norm")


def merge(g: Graph, x: str, part: Any, size: tuple[int, int], name: str) -> str:
    """Two by two tokens to one, on a map of `size` afterwards."""
    (h, w), width = size, part.reduction.in_features
    x = g.transpose(g.reshape(x, -1, h, 2, w, 2, width // 4), 0, 1, 3, 4, 2, 5)
    x = g.linear(g.reshape(x, -1, h, w, width), part.reduction, f"{name}.reduction")
    return g.norm(x, part.norm, f"{name}.norm")


def one_block(g: Graph, x: str, block: Any, name: str) -> str:
    """`[B, H, W, C]` to the same, where whole windows make the map."""
    x = g.op("Add", x, g.norm(attention(g, x, block, f"{name}.attn"), block.norm1, f"{name}.norm1"))
    return g.op("Add", x, g.norm(g.mlp(x, block.mlp, f"{name}.mlp"), block.norm2, f"{name}.norm2"))


def attention(g: Graph, x: str, block: Any, name: str) -> str:
    """Cosine attention within (shifted) windows, with a bias from the relative position."""
    part = block.attn
    (h, w), (rows, columns) = block.input_resolution, block.window_size
    assert h % rows == 0, f"{h = } is no multiple of {rows = }"
    assert w % columns == 0, f"{w = } is no multiple of {columns = }"
    width, heads, length = part.dim, part.num_heads, rows * columns
    place = torch.arange(h * w).view(h, w).roll([-n for n in block.shift_size], (0, 1))
    order = place.view(h // rows, rows, w // columns, columns).transpose(1, 2).reshape(-1, length)  # [W, L]
    count = len(order)
    x = g.rows(g.reshape(x, -1, h * w, width), order, 1)  # [B, W, L, C]
    x = g.op("MatMul", x, g.constant(part.qkv.weight.T, f"{name}.qkv.weight"))
    x = g.op("Add", x, g.constant(torch.cat((part.q_bias, part.k_bias, part.v_bias)), f"{name}.qkv.bias"))
    sizes = -1, count, length, heads, width // heads
    q, k, v = (g.reshape(y, *sizes) for y in g.ops("Split", x, outputs=3, axis=-1, num_outputs=3))
    q, k = g.transpose(unit(g, q), 0, 1, 3, 2, 4), g.transpose(unit(g, k), 0, 1, 3, 4, 2)
    scale = part.logit_scale.clamp(max=math.log(100)).exp()
    logits = g.op("Mul", g.op("MatMul", q, k), g.constant(scale, f"{name}.logit_scale"))
    table = 16 * torch.sigmoid(part.cpb_mlp(part.relative_coords_table).view(-1, heads))
    bias = g.rows(g.constant(table, f"{name}.bias_table"), part.relative_position_index, 0)
    logits = g.op("Add", logits, g.transpose(bias, 2, 0, 1))
    if block.attn_mask is not None:
        logits = g.op("Add", logits, g.constant(block.attn_mask[:, None], "apart"))
    x = g.op("MatMul", g.op("Softmax", logits, axis=-1), g.transpose(v, 0, 1, 3, 2, 4))
    x = g.reshape(g.transpose(x, 0, 1, 3, 2, 4), -1, count * length, width)
    x = g.rows(g.linear(x, part.proj, f"{name}.proj"), torch.argsort(order.flatten()), 1)
    return g.reshape(x, -1, h, w, width)


def unit(g: Graph, x: str) -> str:
    """Vectors of length 1."""
    length = g.op("ReduceL2", x, g.constant([-1]), keepdims=1)
    return g.op("Div", x, g.op("Max", length, g.constant(1e-12)))
