"""`--dtype int8`: a network whose linear layers, and convolutions, multiply integers of 8 bits.

The range of each layer's inputs is measured on collages (`sama.corpus.collage`), most of them degraded, sampled as
files are. ONNX Runtime's quantiser writes the graph: inputs unsigned, one scale a layer; weights signed, one scale for
each output, in 7 bits, so that processors that add products in 16 bits do not overflow. Attention, norms, the head and
the first filters of a pico network, which look for differences of a grey level, stay in float32. OpenVINO computes it.

Measuring takes from seconds to minutes, so a graph is kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import tempfile
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
    content = quantised(proto, inputs(model))
    with contextlib.suppress(OSError, OutputError):  # no folder can be written: next time it is made again
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, content)
    return content


def cache_folder() -> Path:
    """Where quantised graphs are kept: SAMA_CACHE, else `sama` in the user's cache folder."""
    if "SAMA_CACHE" in os.environ:
        return Path(os.environ["SAMA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sama"


def quantised(proto: Any, samples: list[torch.Tensor]) -> bytes:
    """A graph of `sama.export` with 8-bit layers, serialised. samples: inputs to measure, each without a batch"""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    source, each = proto.graph.input[0].name, iter(samples)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(each, None)
            return None if sample is None else {source: sample[None].float().numpy()}

    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        path = os.path.join(folder, "int8.onnx")
        quantize_static(
            proto,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=[*LAYERS],
            nodes_to_quantize=[*_layers(proto)],
            extra_options={"OpTypesToExcludeOutputQuantization": [*LAYERS]},
        )
        return Path(path).read_bytes()


def _layers(proto: Any) -> Iterator[str]:
    """Names of the nodes to quantise: products with weights, but those of the head and the first filters of a stem."""
    weights = {initializer.name for initializer in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in LAYERS and node.input[1] in weights:
            name = node.input[1]
            if not (name.startswith(("head.", "statistics.")) or ".stem.filters." in name):
                yield node.name


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
    strength, kind, seed = rng.random(), rng.integers(5), rng.integers(1 << 31)
    frames = []
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
