"""The pretrained stem of a lite network: what each fragment looks like to filters that have seen photographs.

A few hundred contents do not teach a network what pictures look like, and without that it takes a soft picture for a
blurred one. EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; its Lite variant has no squeeze and excitation and no
swish) learned it on ImageNet. Its first five stages, to a stride of 16, describe the fragments; the Swin blocks behind
it compare them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sama.kernels.layout import PATCH, TOKEN, ceil_div
from sama.models.heads import exactly
from sama.models.stem import pixels

FIRST = 32  # channels of the first convolution
# Of each stage the factor of expansion, the kernel's side, the stride, the channels and the blocks.
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3))
DESCRIBED = 1  # the first stage whose channels describe a fragment
EPSILON = 1e-6
BATCH_NORM = 1e-3  # added to variances, where the weights were learned
CHANGE = 0.2  # share of a first filter that at first also looks at how the second frame differs, of deviation 1


class ScaledConv(nn.Conv2d):
    """A convolution whose weights have a factor for each output, the one of the batch norm it was learned with."""

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, side, stride=stride, padding=side // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs))

    def scaled(self) -> Tensor:
        """The weights, with their factors."""
        return self.weight * self.gain[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.scaled(), self.bias)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project (Sandler et al., arXiv 1801.04381); added to the input where that fits."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, side: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ScaledConv(inputs, inner, 1) if expansion > 1 else None
        self.filter = ScaledConv(inner, inner, side, stride=stride, groups=inner)
        self.project = ScaledConv(inner, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.filter(y)))
        return x + y if self.adds else y


class LiteStem(nn.Module):
    """Patches to tokens of 32x32 pixels and two frames: the mean and deviation over such a square of the channels of
    four stages, brought to `dim` values. It sees the first of the two frames and how the second differs.

    `centre` and `deviation` do not learn: training measures them, so that what `proj` maps has mean 0 and deviation 1.
    """

    centre: Tensor
    deviation: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = ScaledConv(3 * PATCH[0], FIRST, 3, stride=2)
        inputs, described = FIRST, 0
        self.stages = nn.ModuleList()
        for k, (expansion, side, stride, outputs, depth) in enumerate(STAGES):
            blocks = [
                InvertedResidual(
                    outputs if i else inputs, outputs, expansion=expansion, side=side, stride=1 if i else stride
                )
                for i in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
            described += 2 * outputs * (k >= DESCRIBED)
        self.register_buffer("centre", torch.zeros(described))
        self.register_buffer("deviation", torch.ones(described))
        self.proj = nn.Linear(described, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T/2, H/4, W/4, 96]` to `[B, T/2, H/32, W/32, dim]`, sizes rounded up."""
        with exactly(x):
            return self.proj((self.describe(x) - self.centre) / self.deviation)

    def describe(self, x: Tensor) -> Tensor:
        """`[B, T/2, H/4, W/4, 96]` to means and deviations of channels, `[B, T/2, H/32, W/32, 512]`."""
        x = x.to(self.first.weight.dtype)
        batch, time = x.shape[:2]
        x = pixels(x)
        rows, columns = (ceil_div(length, TOKEN) for length in x.shape[2:])
        beyond = [count * TOKEN - length for count, length in zip((rows, columns), x.shape[2:])]
        if any(beyond):
            x = F.pad(x, (0, beyond[1], 0, beyond[0]))
        x = F.relu6(self.first(x))
        parts = []
        for k, stage in enumerate(self.stages):
            x = stage(x)
            if k >= DESCRIBED:
                squares = x.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # [B * T, C, rows, h, columns, w]
                mean = squares.mean((3, 5))
                power = (squares * squares).mean((3, 5)) - mean * mean
                parts += [mean, (power.clamp_min(0) + EPSILON).sqrt()]
        return torch.cat(parts, 1).unflatten(0, (batch, time)).permute(0, 1, 3, 4, 2)

    def start(self, weights: Mapping[str, Tensor], mean: Tensor, std: Tensor) -> None:
        """Take the weights of EfficientNet-Lite0, by position: names differ between libraries, their order does not.

        weights: a checkpoint with a convolution and its batch norm after one another; mean, std: of the input's
            normalisation, in grey levels (the checkpoint's is 127 and 128)
        ValueError for weights of another network.
        """
        source = iter([value for name, value in weights.items() if not name.endswith("num_batches_tracked")])
        for layer in self.modules():
            if not isinstance(layer, ScaledConv):
                continue
            parts = [next(source, torch.empty(0)) for _ in range(5)]
            outputs = layer.out_channels
            kernel = (outputs, 3, *layer.kernel_size) if layer is self.first else tuple(layer.weight.shape)
            found = [tuple(part.shape) for part in parts]
            if found != [kernel, *[(outputs,)] * 4]:
                raise ValueError(f"got shapes {found}, expected {kernel} and 4 of {outputs}")
            weight, factor, shift, centre, power = parts
            gain = factor / (power + BATCH_NORM).sqrt()
            bias = shift - centre * gain
            with torch.no_grad():
                if layer is self.first:
                    bias += gain * (weight * ((mean - 127) / 128)[:, None, None]).sum((1, 2, 3))
                    weight = weight * (std / 128)[:, None, None]
                    change = CHANGE * weight * torch.randn(outputs, 1, 1, 1)
                    weight = torch.stack([weight - change, change], 2).flatten(1, 2)
                layer.weight.copy_(weight)
                layer.gain.copy_(gain)
                assert layer.bias is not None
                layer.bias.copy_(bias)
