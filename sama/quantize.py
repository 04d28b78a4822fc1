"""`--dtype int8`: a network whose linear layers, and convolutions, multiply integers of 8 bits.

The range of each layer's inputs is measured, in the eager network, on collages (`sama.corpus.collage`), most of them
degraded, sampled as files are. ONNX Runtime's quantiser writes the graph: inputs unsigned, one scale a layer; weights
signed, one scale for each output, in 7 bits, so that processors that add products in 16 bits do not overflow. OpenVINO
computes it. In float32 stay attention, norms, the head, and the first filters of a pico network, which look for
differences of a grey level. Measuring takes from seconds to minutes: a graph is kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from sama.errors import OutputError
from sama.files import replace_file

if TYPE_CHECKING:
    from sama.model import QualityModel

SAMPLES = {"pico": 24, "nano": 24}  # inputs that are measured, by size of the network
FEW = 4  # of larger ones, whose clips have many tokens each
SIZES = ((320, 240), (480, 360), (640, 360), (854, 480))  # of their pictures
ROOM = 8  # pixels that a camera pans over, at most
LAYERS = ("MatMul", "Conv")
RECIPE = 1  # counts changes of what makes a graph, so that older ones are made anew
_log = logging.getLogger("sama")


def int8_graph(model: QualityModel, layout: str) -> bytes:
    """The network of a model as a quantised ONNX graph for a batch of one, serialised."""
    from sama.export import graph

    proto = graph(model, layout, single=True)
    key = f"{RECIPE} onnxruntime {version('onnxruntime')} numpy {np.__version__}".encode()
    name = hashlib.sha256(proto.SerializeToString(deterministic=True) + key).hexdigest()[:16]
    kept = cache_folder() / f"int8-{name}.onnx"
    with contextlib.suppress(OSError):
        return kept.read_bytes()
    _log.warning("quantising the network, once")
    content = quantised(proto, ranges(model, inputs(model)))
    with contextlib.suppress(OSError, OutputError):  # no folder can be written: next time it is made again
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, content)
    return content


def cache_folder() -> Path:
    """Where quantised graphs are kept: SAMA_CACHE, else `sama` in the user's cache folder."""
    if "SAMA_CACHE" in os.environ:
        return Path(os.environ["SAMA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sama"


def ranges(model: QualityModel, samples: list[torch.Tensor]) -> dict[str, tuple[float, float]]:
    """Least and largest input of every layer, by the layer's name. samples: each without a batch"""
    found: dict[str, tuple[float, float]] = {}

    def measure(name: str, x: torch.Tensor) -> None:
        least, most = found.get(name, (0.0, 0.0))
        found[name] = min(least, float(x.min())), max(most, float(x.max()))

    hooks = []
    for name, module in model.module.named_modules():
        if hasattr(module, "q_bias"):  # timm's attention, which takes its layer's weights alone
            name, module = f"{name}.qkv", module
        elif not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            continue
        hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: measure(name, inputs[0])))
    try:
        with torch.inference_mode():
            for sample in samples:
                model.module(sample[None])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def quantised(proto: Any, measured: dict[str, tuple[float, float]]) -> bytes:
    """A graph of `sama.export` with 8-bit layers, serialised. measured: as `ranges` gives it"""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData

    known, nodes = {}, []
    for node, layer in _layers(proto):
        if layer in measured:
            least, most = (np.float32(end) for end in measured[layer])
            known[node.input[0]] = TensorData(lowest=np.array(least), highest=np.array(most))
            nodes.append(node.name)
    with _without_warnings():
        quantizer = QDQQuantizer(
            onnx.shape_inference.infer_shapes(proto),
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=known,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=[*LAYERS],
            extra_options={"OpTypesToExcludeOutputQuantization": [*LAYERS]},
        )
        quantizer.quantize_model()
    content: bytes = quantizer.model.model.SerializeToString()
    return content


def _layers(proto: Any) -> Iterator[tuple[Any, str]]:
    """Nodes to quantise, each with its layer's name: products with weights, but those of the head and the first filters
    of a stem."""
    weights = {initializer.name for initializer in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in LAYERS and node.input[1] in weights:
            name = node.input[1].removesuffix(".weight")
            if not (name.startswith(("head.", "statistics.")) or name.endswith(".stem.filters")):
                yield node, re.sub(r"(?<=\.qkv)\.[0-2]$", "", name)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Within this block no library logs advice: the quantiser's is to prepare graphs that others exported. Nor does its
    logging leave a handler behind."""
    before, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers


def inputs(model: QualityModel) -> list[torch.Tensor]:
    """Sampled clips or images to measure ranges on, always the same ones."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(SAMPLES.get(model.module.size, FEW)):
        if model.kind == "image":
            pixels = _frames(SIZES[k % len(SIZES)], 1, rng)[0]
        else:
            pixels = _frames(SIZES[k % len(SIZES)], model.clip_len, rng)
        found.append(model.sampler(pixels)[0].float().cpu())
    return found


def _frames(size: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """A collage that a camera pans over, degraded in one way or not at all: uint8 [count, H, W, 3]."""
    from sama.corpus.collage import collage

    width, height = size
    scene = collage(width + ROOM, height + ROOM, [], rng)
    ends = rng.uniform(0, ROOM, (2, 2))
    strength, kind, seed = rng.random(), int(rng.integers(5)), int(rng.integers(1 << 31))
    frames: list[np.ndarray] = []
    for along in np.linspace(0, 1, count):
        x, y = (ends[0] + along * (ends[1] - ends[0])).astype(int)
        frame = scene.crop((x, y, x + width, y + height))
        frames.append(np.asarray(_degraded(frame, kind, strength, np.random.default_rng(seed + len(frames)))))
    return np.stack(frames)


def _degraded(picture: Image.Image, kind: int, strength: float, rng: np.random.Generator) -> Image.Image:
    """Blurred, compressed, noisy, enlarged or as it is. strength: from 0 to 1"""
    if kind == 0:
        return picture.filter(ImageFilter.GaussianBlur(0.5 + 3 * strength))
    if kind == 1:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=round(90 - 80 * strength))
        return Image.open(file).convert("RGB")
    if kind == 2:
        pixels = np.asarray(picture, np.float32)
        noise = rng.standard_normal(pixels.shape, np.float32) * (2 + 18 * strength)
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    if kind == 3:
        small = [round(length / (1.5 + 2.5 * strength)) for length in picture.size]
        return picture.resize(small, Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)
    return picture
