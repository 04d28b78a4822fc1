"""The pretrained stem of a lite network as an ONNX graph."""

from __future__ import annotations

from sama.kernels.layout import PATCH, TOKEN, ceil_div
from sama.models.lite import DESCRIBED, EPSILON, InvertedResidual, LiteStem
from sama.models.onnx_graph import Graph


def lite_stem(g: Graph, x: str, stem: LiteStem, size: tuple[int, int], name: str) -> tuple[str, tuple[int, int]]:
    """Patches `[B, T, H, W, 96]`, with (H, W) of `size`, to tokens `[B * T, H/8, W/8, dim]`, and the size of their map
    (rounded up)."""
    side = [count * pixels for count, pixels in zip(size, PATCH[1:])]
    map_size = ceil_div(side[0], TOKEN), ceil_div(side[1], TOKEN)
    x = g.reshape(x, -1, *size, 3, *PATCH)
    x = g.reshape(g.transpose(x, 0, 3, 4, 1, 5, 2, 6), -1, 3 * PATCH[0], *side)
    beyond = [count * TOKEN - pixels for count, pixels in zip(map_size, side)]
    if any(beyond):
        x = g.pad(x, [*[0] * 6, *beyond])
    x = relu6(g, g.convolution(x, stem.first, f"{name}.first"))
    parts, square = [], TOKEN // 2  # a token's side in values of the map
    for k, stage in enumerate(stem.stages):
        for i, block in enumerate(stage.children()):
            assert isinstance(block, InvertedResidual)
            x = residual(g, x, block, f"{name}.stages.{k}.{i}")
            square //= block.filter.stride[0]
        if k >= DESCRIBED:
            window = {"kernel_shape": [square] * 2, "strides": [square] * 2}
            mean = g.op("AveragePool", x, **window)
            power = g.op("AveragePool", g.op("Mul", x, x), **window)
            power = g.op("Relu", g.op("Sub", power, g.op("Mul", mean, mean)))
            parts += [mean, g.op("Sqrt", g.op("Add", power, g.constant(EPSILON)))]
    x = g.transpose(g.concat(*parts, axis=1), 0, 2, 3, 1)
    x = g.op("Sub", x, g.constant(stem.centre, f"{name}.centre"))
    x = g.op("Div", x, g.constant(stem.deviation, f"{name}.deviation"))
    return g.linear(x, stem.proj, f"{name}.proj"), map_size


def residual(g: Graph, x: str, block: InvertedResidual, name: str) -> str:
    y = x
    if block.expand is not None:
        y = relu6(g, g.convolution(y, block.expand, f"{name}.expand"))
    y = relu6(g, g.convolution(y, block.filter, f"{name}.filter"))
    y = g.convolution(y, block.project, f"{name}.project")
    return g.op("Add", x, y) if block.adds else y


def relu6(g: Graph, x: str) -> str:
    return g.op("Clip", x, *(g.constant(end) for end in (0.0, 6.0)))
