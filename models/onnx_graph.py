"""ONNX graphs, built node by node from the weights of a module, and what every exported network has.

Tracing a network of windows takes minutes, depends on the version of torch and fixes sizes that need not be. Built node
by node a graph takes a second; the size of the batch is free, and where it can be the length of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sama.models.lite import ScaledConv

OPSET = 20  # the first with GELU
IR_VERSION = 9  # the one of that opset: older runtimes read it
END = np.iinfo(np.int64).max


class Graph:
    """Nodes and constants of an ONNX graph; every method adds to them and returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._known: dict[Any, str] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        names = [self._name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: Tensor | np.ndarray | float | Sequence[int], name: str = "constant") -> str:
        """A constant; the same values make one. Numbers without a dtype are float32, lists are int64."""
        if isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
        elif isinstance(value, np.ndarray):
            array = value
        else:
            array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        array = np.array(array, np.float32 if array.dtype == np.float64 else array.dtype, order="C")
        key = array.shape, array.dtype.str, array.tobytes()
        if key not in self._known:
            self._known[key] = name if name not in self.initializers else self._name(name)
            self.initializers[self._known[key]] = numpy_helper.from_array(array, self._known[key])
        return self._known[key]

    def reshape(self, x: str, *sizes: int) -> str:
        return self.op("Reshape", x, self.constant([*sizes]))

    def transpose(self, x: str, *axes: int) -> str:
        return self.op("Transpose", x, perm=axes)

    def cut(self, x: str, axis: int, start: int, end: int = END) -> str:
        """`x[start:end]` on an axis."""
        return self.op("Slice", x, *(self.constant([n]) for n in (start, end, axis)))

    def concat(self, *parts: str, axis: int) -> str:
        return self.op("Concat", *parts, axis=axis)

    def pad(self, x: str, before_and_after: Sequence[int]) -> str:
        return self.op("Pad", x, self.constant([*before_and_after]))

    def roll(self, x: str, axis: int, shift: int) -> str:
        """`torch.roll` by a shift that is not 0."""
        return self.concat(self.cut(x, axis, -shift), self.cut(x, axis, 0, -shift), axis=axis)

    def rows(self, x: str, index: Tensor, axis: int) -> str:
        return self.op("Gather", x, self.constant(index.to(torch.int32)), axis=axis)

    def mean(self, x: str, *axes: int, keep: bool = False) -> str:
        return self.op("ReduceMean", x, self.constant([*axes]), keepdims=int(keep))

    def linear(self, x: str, layer: nn.Linear, name: str, *, scale: Tensor | None = None) -> str:
        """A linear layer; scale: factors of its outputs."""
        weight: Tensor = layer.weight
        bias: Tensor | None = layer.bias
        if scale is not None:
            weight = weight * scale[:, None]
            bias = None if bias is None else bias * scale
        x = self.op("MatMul", x, self.constant(weight.T, f"{name}.weight"))
        return x if bias is None else self.op("Add", x, self.constant(bias, f"{name}.bias"))

    def convolution(self, x: str, layer: nn.Conv2d, name: str) -> str:
        weights = [self.constant(layer.scaled() if isinstance(layer, ScaledConv) else layer.weight, f"{name}.weight")]
        if layer.bias is not None:
            weights.append(self.constant(layer.bias, f"{name}.bias"))
        pads = [int(n) for n in layer.padding] * 2
        return self.op("Conv", x, *weights, strides=list(layer.stride), pads=pads, group=layer.groups)

    def norm(self, x: str, layer: nn.LayerNorm, name: str) -> str:
        scale, shift = self.constant(layer.weight, f"{name}.weight"), self.constant(layer.bias, f"{name}.bias")
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=layer.eps)

    def gelu(self, x: str) -> str:
        return self.op("Gelu", x)

    def mlp(self, x: str, part: Any, name: str) -> str:
        return self.linear(self.gelu(self.linear(x, part.fc1, f"{name}.fc1")), part.fc2, f"{name}.fc2")

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def finish(
    graph: Graph,
    tokens: str,
    source: tuple[str, Sequence[int | str]],
    sizes: Sequence[int | str],
    scale: Mapping[str, Any] | None,
    weights: Sequence[float] | None = None,
) -> onnx.ModelProto:
    """The model: from a source, by name and shape, to `tokens` of the given sizes, and `score`, their mean.

    scale: `least` and `most` of the score, which is kept within; weights: of the steps in time, in all 1, where they do
        not count alike
    """
    counted = tokens
    if weights is not None:
        counted = graph.op("Mul", tokens, graph.constant(len(weights) * torch.tensor(weights).view(-1, 1, 1)))
    score = graph.mean(counted, *range(1, len(sizes)))
    if scale:
        score = graph.op("Clip", score, *(graph.constant(float(scale[end])) for end in ("least", "most")))
    for value, name in ((tokens, "tokens"), (score, "score")):
        graph.nodes.append(helper.make_node("Identity", [value], [name], name=name))
    inputs = [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, list(source[1]))]
    outputs = [
        helper.make_tensor_value_info("tokens", TensorProto.FLOAT, list(sizes)),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, [sizes[0]]),
    ]
    body = helper.make_graph(graph.nodes, "sama", inputs, outputs, list(graph.initializers.values()))
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION, producer_name="sama-vqa")
    onnx.checker.check_model(model)
    return model
