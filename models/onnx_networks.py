"""The networks as ONNX graphs: every module of `sama.models.swin3d` and `attention` once more, in nodes.

The bias of the attention is computed in the graph, from its tables, so that a file is as large as the weights. Runtimes
compute what depends on weights alone once, when they load the file. Tensors are named and shaped as in the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from sama.kernels.layout import PATCH, PATCH_VALUES, STEMMED, TOKEN, OutputLayout, ceil_div
from sama.models.attention import MASKED, Attention
from sama.models.heads import TokenHead
from sama.models.lite import LiteStem
from sama.models.onnx_graph import END, Graph, finish
from sama.models.onnx_lite import lite_stem
from sama.models.onnx_swin2d import backbone
from sama.models.statistics import SceneStatistics
from sama.models.stem import FragmentStem
from sama.models.swin2d import ImageQuality
from sama.models.swin3d import Block, PatchEmbed, PatchMerging, ScaleExcitation, Stage, Swin3D, VideoQuality
from sama.models.windows import WINDOW, Windows, window_rows

BATCH = -1  # as the first size in a shape: whatever the batch is


class Network:
    """Builds the graph of a network for clips of `steps` temporal positions.

    free: the number of temporal positions is free, in whole windows, from `steps` on, which are two windows
    single: the batch is one, and attention is cut into parts of four axes, which runtimes compute in one pass
    """

    def __init__(self, steps: int, *, free: bool = False, single: bool = False) -> None:
        self.graph = Graph()
        self.steps, self.free, self.single = steps, free, single
        self.batch = ""  # name of the batch's size, int64 [1]

    def map(self, x: str, *sizes: int, steps: int | None = None) -> str:
        """Reshapes what holds a batch of maps to `[B, T, *sizes]`. steps: T, where that is not the clip's"""
        if not self.free:
            return self.graph.reshape(x, BATCH, steps or self.steps, *sizes)
        return self.graph.op("Reshape", x, self.graph.concat(self.batch, self.graph.constant([-1, *sizes]), axis=0))

    def patches(self, x: str, frames: int, height: int, width: int) -> str:
        """As `cut_patches`: frames `[B, 3, T, H, W]` to patches `[B, T/2, H/4, W/4, 96]`."""
        g, sizes = self.graph, (frames, height, width)
        _, h, w = whole = tuple(ceil_div(n, p) for n, p in zip(sizes, PATCH))
        beyond = [n * p - size for n, p, size in zip(whole, PATCH, sizes)]
        if any(beyond):
            x = g.pad(x, [*[0] * 7, *beyond])
        x = g.reshape(x, 0, 3, -1, PATCH[0], h, PATCH[1], w, PATCH[2])
        return g.reshape(g.transpose(x, 0, 2, 4, 6, 1, 3, 5, 7), 0, -1, h, w, PATCH_VALUES)

    def backbone(self, x: str, net: Swin3D, size: tuple[int, int], name: str) -> tuple[str, tuple[int, int]]:
        """Patches `[B, T, H, W, 96]`, with (H, W) of `size`, to features, and the size of their map."""
        g = self.graph
        if isinstance(net.stem, LiteStem):
            x, size = lite_stem(g, x, net.stem, size, f"{name}.stem")
            x = self.map(x, *size, net.stem.proj.out_features)
        elif net.stem is not None:
            x, size = self.stem(x, net.stem, size, f"{name}.stem")
        else:
            assert net.patch_embed is not None
            x = self.embed(x, net.patch_embed, f"{name}.patch_embed")
        width = net.width >> (len(net.layers) - 1)
        for i, stage in enumerate(net.layers):
            assert isinstance(stage, Stage)
            for k, block in enumerate(stage.blocks):
                assert isinstance(block, Block)
                x = self.block(x, block, size, width, f"{name}.layers.{i}.blocks.{k}")
            if stage.downsample is not None:
                x, size = self.merge(x, stage.downsample, size, width, f"{name}.layers.{i}.downsample")
                width *= 2
        return g.norm(x, net.norm, f"{name}.norm"), size

    def stem(self, x: str, stem: FragmentStem, size: tuple[int, int], name: str) -> tuple[str, tuple[int, int]]:
        g, (h, w) = self.graph, size
        rows, columns = stem.grid if not (h % stem.grid[0] or w % stem.grid[1]) else (1, 1)
        x = g.reshape(x, -1, rows, h // rows, columns, w // columns, 3, *PATCH)
        x = g.transpose(x, 0, 1, 3, 5, 6, 2, 7, 4, 8)  # [B * T, rows, columns, channel, frame, h, 4, w, 4]
        side = h // rows * PATCH[1], w // columns * PATCH[2]
        x = g.reshape(x, -1, 3 * PATCH[0], *side)
        x = g.convolution(x, stem.filters, f"{name}.filters")
        x = g.op("Tanh", x)
        x = g.gelu(g.convolution(x, stem.conv1, f"{name}.conv1"))
        x = g.gelu(g.convolution(x, stem.conv2, f"{name}.conv2"))
        x = g.convolution(x, stem.conv3, f"{name}.conv3")
        for _ in range(3):
            side = ceil_div(side[0], 2), ceil_div(side[1], 2)
        dim = stem.conv3.out_channels
        x = g.transpose(g.reshape(x, -1, rows, columns, dim, *side), 0, 1, 4, 2, 5, 3)
        size = rows * side[0], columns * side[1]
        return self.map(x, *size, dim), size

    def embed(self, x: str, part: PatchEmbed, name: str) -> str:
        g = self.graph
        x = g.linear(x, part.proj, f"{name}.proj")
        if part.mix is not None:
            return g.linear(g.gelu(x), part.mix, f"{name}.mix")
        return x if part.norm is None else g.norm(x, part.norm, f"{name}.norm")

    def merge(
        self, x: str, part: PatchMerging, size: tuple[int, int], width: int, name: str
    ) -> tuple[str, tuple[int, int]]:
        g, (h, w) = self.graph, size
        if h % 2 or w % 2:
            x = g.pad(x, [*[0] * 5, 0, 0, h % 2, w % 2, 0])
        half = ceil_div(h, 2), ceil_div(w, 2)
        x = g.transpose(g.reshape(x, -1, half[0], 2, half[1], 2, width), 0, 1, 3, 4, 2, 5)
        x = self.map(x, *half, 4 * width)
        return g.linear(g.norm(x, part.norm, f"{name}.norm"), part.reduction, f"{name}.reduction"), half

    def block(self, x: str, block: Block, size: tuple[int, int], width: int, name: str) -> str:
        g = self.graph
        windows = Windows.fit((self.steps, *size), WINDOW, shifted=block.shifted)
        y = self.attention(g.norm(x, block.norm1, f"{name}.norm1"), block.attn, windows, block.grid, f"{name}.attn")
        if block.excitation is not None:
            y = self.excite(y, block.excitation, f"{name}.excitation")
        x = g.op("Add", x, y)
        return g.op("Add", x, g.mlp(g.norm(x, block.norm2, f"{name}.norm2"), block.mlp, f"{name}.mlp"))

    def excite(self, x: str, part: ScaleExcitation, name: str) -> str:
        g = self.graph
        axes = g.constant([2, 3, 4])
        squeezed = (g.op(kind, x, axes, keepdims=0) for kind in ("ReduceMean", "ReduceMax"))
        gate = g.op("Sigmoid", g.op("Add", *(g.mlp(s, part, name) for s in squeezed)))
        gate = g.op("Unsqueeze", g.op("Mul", gate, g.constant(2.0)), axes)
        return g.op("Mul", x, gate)

    def attention(self, x: str, part: Attention, windows: Windows, grid: tuple[int, int], name: str) -> str:
        """Attention within the windows of a map `[B, T, H, W, C]`. The map is padded after the norm, with zeros."""
        g = self.graph
        if windows.padded != windows.size:
            x = g.pad(x, [*[0] * 6, *(p - s for p, s in zip(windows.padded, windows.size)), 0])
        long, shift, seam = windows.window[0], windows.shift[0], windows.seam
        bias = self.bias(part, windows, grid, name)
        if self.single:
            return self.parts(x, part, windows, bias, name)
        if shift:
            x = g.roll(x, 1, -shift)
            halves = [g.cut(g.cut(bias, 2, *ends), 3, *ends) for ends in ((0, seam), (seam, END))]
            before, last = g.cut(x, 1, 0, -long), g.cut(x, 1, -long)
            before = self.slabs(before, part, windows, [bias], windows.padded[0] - long, name)
            last = self.slabs(last, part, windows, halves, long, name)
            x = g.roll(g.concat(before, last, axis=1), 1, shift)
        else:
            x = self.slabs(x, part, windows, [bias], windows.padded[0], name)
        for axis, (n, padded) in enumerate(zip(windows.size, windows.padded), start=1):
            if n != padded:
                x = g.cut(x, axis, 0, n)
        return x

    def slabs(self, x: str, part: Attention, windows: Windows, biases: list[str], steps: int, name: str) -> str:
        """Attention within some slabs of windows, `steps` temporal positions of a map that is padded and rolled in
        time. biases: one, or two for the tokens before and after the seam"""
        g, (long, *_), (_, *size) = self.graph, windows.window, windows.padded
        order = _order(windows)  # [W, L]
        width, (count, length) = part.proj.in_features, order.shape
        x = g.rows(g.reshape(x, -1, long * prod(size), width), order, 1)  # [B * slabs, W, L, C]
        per_head = width // part.heads
        scale = torch.ones(3 * width)
        scale[:width] = per_head**-0.5
        qkv = g.linear(x, part.qkv, f"{name}.qkv", scale=scale)
        seam = windows.seam if len(biases) > 1 else length
        out = []
        for bias, first, last in zip(biases, (0, seam), (seam, length)):
            side = qkv if last - first == length else g.cut(qkv, 2, first, last)
            q, k, v = g.ops("Split", side, outputs=3, axis=-1, num_outputs=3)
            sizes = -1, count, last - first, part.heads, per_head
            q, v = (g.transpose(g.reshape(y, *sizes), 0, 1, 3, 2, 4) for y in (q, v))  # [N, W, heads, L, D]
            k = g.transpose(g.reshape(k, *sizes), 0, 1, 3, 4, 2)
            p = g.op("Softmax", g.op("Add", g.op("MatMul", q, k), bias), axis=-1)
            out.append(g.reshape(g.transpose(g.op("MatMul", p, v), 0, 1, 3, 2, 4), *sizes[:3], width))
        x = out[0] if len(out) == 1 else g.concat(*out, axis=2)
        x = g.linear(x, part.proj, f"{name}.proj")
        x = g.rows(g.reshape(x, -1, count * length, width), torch.argsort(order.flatten()), 1)
        return self.map(x, *size, width, steps=steps)

    def parts(self, x: str, part: Attention, windows: Windows, bias: str, name: str) -> str:
        """Attention within the windows of one padded map, without rolling it: each slab, and each side of a seam, takes
        its tokens by their numbers."""
        g, (heads, width) = self.graph, (part.heads, part.proj.in_features)
        x = g.reshape(x, prod(windows.padded), width)
        scale = torch.ones(3 * width)
        scale[:width] = (width // heads) ** -0.5
        q, k, v = (g.linear(x, *third) for third in _thirds(part.qkv, scale, f"{name}.qkv"))
        slabs = [*window_rows(windows)]  # each [W, L]
        biases, seam = [bias] * len(slabs), windows.seam
        if seam:
            ends = (0, seam), (seam, END)
            slabs[-1:] = slabs[-1].tensor_split([seam], 1)
            biases[-1:] = [g.cut(g.cut(bias, 2, *side), 3, *side) for side in ends]
        out = []
        for rows, its_bias in zip(slabs, biases):
            sizes = *rows.shape, heads, width // heads
            q1, k1, v1 = (g.reshape(g.rows(y, rows.flatten(), 0), *sizes) for y in (q, k, v))
            logits = g.op("MatMul", g.transpose(q1, 0, 2, 1, 3), g.transpose(k1, 0, 2, 3, 1))
            p = g.op("Softmax", g.op("Add", logits, its_bias), axis=-1)
            y = g.op("MatMul", p, g.transpose(v1, 0, 2, 1, 3))  # [W, heads, L, D]
            out.append(g.reshape(g.transpose(y, 0, 2, 1, 3), -1, width))
        places = torch.argsort(torch.cat([rows.flatten() for rows in slabs]))
        places = windows.crop(places.view(1, *windows.padded))
        x = out[0] if len(out) == 1 else g.concat(*out, axis=0)
        return g.linear(g.rows(x, places, 0), part.proj, f"{name}.proj")

    def bias(self, part: Attention, windows: Windows, grid: tuple[int, int], name: str) -> str:
        """As `Attention._build_bias` builds it: `[W, heads, L, L]`, or `[1, heads, L, L]`."""
        g, heads, cpu = self.graph, part.heads, torch.device("cpu")
        index = windows.relative_index(WINDOW, cpu)
        wt, space = windows.window[0], windows.window[1] * windows.window[2]

        def pairs(table: Tensor, name: str) -> str:
            rows = g.transpose(g.rows(g.constant(table, name), index, 0), 2, 0, 1)
            return g.reshape(rows, 1, heads, wt, space, wt, space)

        def in_space(values: Tensor) -> str:
            return g.reshape(g.op("Cast", g.constant(values.to(torch.uint8)), to=TensorProto.FLOAT), *by_window)

        by_window = -1, 1, 1, space, 1, space
        bias = relative = pairs(part.relative_position_bias_table, f"{name}.relative_position_bias_table")
        if part.fragment_position_bias_table is not None:
            fragment = pairs(part.fragment_position_bias_table, f"{name}.fragment_position_bias_table")
            distance = in_space(windows.fragment_distance(grid, cpu))
            bias = g.op("Add", fragment, g.op("Mul", distance, g.op("Sub", relative, fragment)))
        if part.scale_bias_table is not None:
            t = torch.arange(wt)
            table = g.constant(part.scale_bias_table, f"{name}.scale_bias_table")
            step = g.transpose(g.rows(table, t[:, None] - t + WINDOW[0] - 1, 0), 2, 0, 1)
            bias = g.op("Add", bias, g.reshape(step, 1, heads, wt, 1, wt, 1))
        apart = windows.apart(cpu)
        if apart is not None:
            bias = g.op("Add", bias, g.op("Mul", in_space(apart), g.constant(MASKED)))
        return g.reshape(bias, -1, heads, wt * space, wt * space)

    def head(self, x: str, part: TokenHead, name: str) -> str:
        g = self.graph
        return g.linear(g.gelu(g.linear(x, part.fc_hid, f"{name}.fc_hid")), part.fc_last, f"{name}.fc_last")

    def statistics(self, x: str, part: SceneStatistics, size: tuple[int, int], name: str) -> str:
        """Patches `[B, T, H, W, 96]` to the score of their statistics, `[B, 1]`."""
        g, length = self.graph, self.steps
        strength = g.linear(x, part.proj, f"{name}.proj")
        strength = g.op("Log", g.op("Add", g.op("Abs", strength), g.constant(part.FLOOR)))
        found: list[str] = []
        for third in range(part.THIRDS):
            first = min(round(third * length / part.THIRDS), length - 1)
            last = max(round((third + 1) * length / part.THIRDS), first + 1)
            found += self.mean_and_deviation(g.cut(strength, 1, first, last), (1, 2, 3), part.FLOOR)
        areas = torch.nn.functional.adaptive_avg_pool2d(torch.eye(prod(size)).view(-1, 1, *size), part.grid)
        flat = g.reshape(strength, -1, length, prod(size), PATCH_VALUES)
        fragments = g.op("MatMul", g.constant(areas.flatten(1).T), flat)
        found.append(g.mean(self.mean_and_deviation(fragments, (2,), part.FLOOR)[1], 1))

        frames = g.reshape(x, -1, length, prod(size), 3, PATCH[0], prod(PATCH[1:]))
        first_frame, second_frame = (g.cut(frames, 4, n, n + 1) for n in range(PATCH[0]))
        change = g.mean(g.op("Abs", g.op("Sub", second_frame, first_frame)), 2, 3, 4, 5)  # [B, T]
        change = g.op("Log", g.op("Add", change, g.constant(part.FLOOR / 10)))
        rising = g.ops("TopK", change, g.constant([length]), outputs=2, axis=1, largest=0, sorted=1)[0]
        found.append(g.op("MatMul", rising, g.constant(_quantiles(length, part.STEPS))))

        x = g.op("Sub", g.concat(*found, axis=1), g.constant(part.centre, f"{name}.centre"))
        x = g.op("Div", x, g.constant(part.deviation, f"{name}.deviation"))
        x = g.gelu(g.linear(x, part.fc1, f"{name}.fc1"))
        return g.linear(g.gelu(g.linear(x, part.fc2, f"{name}.fc2")), part.fc3, f"{name}.fc3")

    def mean_and_deviation(self, x: str, axes: Sequence[int], floor: float) -> list[str]:
        g = self.graph
        off = g.op("Sub", x, g.mean(x, *axes, keep=True))
        variance = g.mean(g.op("Mul", off, off), *axes)
        return [g.mean(x, *axes), g.op("Sqrt", g.op("Add", variance, g.constant(floor**2)))]


def video_graph(
    model: VideoQuality,
    *,
    layout: OutputLayout,
    frames: int,
    height: int,
    width: int,
    scale: Mapping[str, Any] | None,
    weights: Sequence[float] | None = None,
    single: bool = False,
) -> ModelProto:
    """The graph of a video model: `clip` to `tokens` `[B, 1, T/2, h, w]` and `score` `[B]`.

    layout: of the clip, "video" `[B, 3, frames, height, width]` or "patches" `[B, T/2, H/4, W/4, 96]`
    scale: `least` and `most` of the score, if it is kept within
    weights: of pairs of frames, if they do not count alike
    The batch is free, and so is the length where `length_is_free`; with `single` the batch is one and nothing is free,
    which runtimes compute faster.
    """
    size = ceil_div(height, PATCH[1]), ceil_div(width, PATCH[2])
    free = length_is_free(model, frames) and weights is None and not single
    steps = 2 * WINDOW[0] if free else ceil_div(frames, PATCH[0])
    net = Network(steps, free=free, single=single)
    g, batch = net.graph, 1 if single else "batch"
    if free:
        net.batch = g.cut(g.op("Shape", "clip"), 0, 0, 1)
    if layout == "patches":
        shape: list[int | str] = [batch, "pairs" if free else steps, *size, PATCH_VALUES]
        x = whole = "clip"
    else:
        shape = [batch, 3, "frames" if free else frames, height, width]
        x = whole = net.patches("clip", frames, height, width)
        if frames % PATCH[0]:  # zeros after the last frame would count as a change
            repeated = g.concat("clip", g.cut("clip", 2, -1), axis=2)
            whole = net.patches(repeated, frames + 1, height, width)
    tokens = ""
    map_size = (1, 1)
    if model.backbone is not None:
        assert model.head is not None
        features, map_size = net.backbone(whole if model.size in STEMMED else x, model.backbone, size, "backbone")
        tokens = g.transpose(net.head(features, model.head, "head"), 0, 4, 1, 2, 3)
    if model.statistics is not None:
        score = net.statistics(whole, model.statistics, size, "statistics")
        score = g.reshape(score, -1, 1, 1, 1, 1)
        other = tokens or g.constant(torch.zeros(1, 1, steps, 1, 1))
        tokens = g.op("Add", other, score)
    sizes = [batch, 1, "steps" if free else steps, *map_size]
    return finish(g, tokens, ("clip", shape), sizes, scale, weights)


def length_is_free(model: VideoQuality, frames: int) -> bool:
    """Whether the length of clips is free in a graph, in multiples of 16 frames from 32 on: nothing but the number of
    windows along time depends on it then."""
    window = PATCH[0] * WINDOW[0]
    whole = frames % window == 0 and frames >= 2 * window
    return whole and model.statistics is None and not model.options["scale_excitation"]


def image_graph(
    model: ImageQuality, *, height: int, width: int, scale: Mapping[str, Any] | None, single: bool = False
) -> ModelProto:
    """The graph of an image model: `image` `[B, 3, height, width]` to `tokens` `[B, N]` and `score` `[B]`.

    The batch is free; with `single` it is one.
    """
    net = Network(1, single=single)
    g, batch = net.graph, 1 if single else "batch"
    if isinstance(model.backbone, Swin3D):
        still = g.op("Unsqueeze", "image", g.constant([2]))
        x = net.patches(g.concat(*[still] * PATCH[0], axis=2), PATCH[0], height, width)
        size = ceil_div(height, PATCH[1]), ceil_div(width, PATCH[2])
        x, _ = net.backbone(x, model.backbone, size, "backbone")
    else:
        x = backbone(g, "image", model.backbone, "backbone")
    count = height // TOKEN * (width // TOKEN)
    tokens = g.reshape(net.head(x, model.head, "head"), -1, count)
    return finish(g, tokens, ("image", [batch, 3, height, width]), [batch, count], scale)


def _thirds(layer: nn.Linear, scale: Tensor, name: str) -> Iterator[tuple[nn.Linear, str]]:
    """Queries, keys and values as layers of their own, each with its name. scale: factors of the outputs"""
    for k, (weight, bias, factor) in enumerate(zip(layer.weight.chunk(3), layer.bias.chunk(3), scale.chunk(3))):
        third = nn.Linear(layer.in_features, len(weight))
        third.weight.copy_(weight * factor[:, None])
        third.bias.copy_(bias * factor)
        yield third, f"{name}.{k}"


def _order(windows: Windows) -> Tensor:
    """Place of every token of every window in one slab of the padded map, rolled in space: int64 `[W, L]`."""
    (_, rows, columns), (long, *window), (_, *shift) = windows.padded, windows.window, windows.shift
    slab = Windows((long, rows, columns), (long, window[0], window[1]), (0, shift[0], shift[1]))
    return window_rows(slab)[0]


def _quantiles(length: int, steps: int) -> Tensor:
    """`[length, steps]`: weights of sorted values in the quantiles at even steps from 0 to 1."""
    at = torch.linspace(0, 1, steps, dtype=torch.float64) * (length - 1)
    return (1 - (torch.arange(length)[:, None] - at).abs()).clamp(min=0).float()
