"""`sama export`: a network as a file that runs without this package, ONNX or torch's `.pt2`.

A file takes what the sampler gives, `clip` `[B, 3, T, H, W]` (or patches, as the network cuts them) or `image`
`[B, 3, H, W]`, normalised float32, and gives `tokens`, the token map, and `score`, one for each clip or image. What is
needed to sample for it, and to read its scores, is in its metadata.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from sama.errors import InputError, MissingLibraryError, OutputError
from sama.files import replace_file
from sama.terminal import OK

if TYPE_CHECKING:
    import torch

    from sama.kernels.layout import OutputLayout
    from sama.model import QualityModel

FORMATS = (".onnx", ".pt2")
INSTALL = 'pip install "sama-vqa[export]"'
PARITY = 1e-4  # of an exported network, relative to the largest value of its token map or to 1


class Exported(NamedTuple):
    """What was written: its size in bytes, its metadata, and the largest difference from this package's network,
    relative to the largest value of the token map or to 1; None where no runtime is installed to compute it."""

    size: int
    metadata: dict[str, Any]
    parity: float | None


def export(
    weights: str | os.PathLike[str] | None,
    path: str | os.PathLike[str],
    *,
    layout: Literal["video", "patches"] = "video",
    mode: str | None = None,
) -> Exported:
    """Write the network of a checkpoint as `.onnx` or `.pt2`; the file appears whole or not at all.

    weights, mode: as for `load_model`
    layout: of the clips that a video network takes, "video" or "patches" (`sama.VideoSampler(layout=...)`)
    The batch is free in both formats. The length of a clip is free in ONNX, in multiples of 16 frames from 32 on, for
    networks that have clips of such a length and neither scale excitation nor scene statistics.
    `InputError` for another ending of `path`, or patches of an image network; `MissingLibraryError` without onnx;
    `OutputError` where the file cannot be written, or what was exported is more than `PARITY` off.
    """
    from sama.model import load_model

    check(path, layout)
    return write(load_model(weights, "cpu", mode=mode), path, layout)


def check(path: str | os.PathLike[str], layout: str) -> None:
    """`InputError` for an ending or a layout that is not known."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise InputError(f"{os.fspath(path)}: got the ending {ending!r}, expected {' or '.join(FORMATS)}")
    if layout not in ("video", "patches"):
        raise InputError(f"got {layout = }, expected 'video' or 'patches'")


def write(model: QualityModel, path: str | os.PathLike[str], layout: str) -> Exported:
    """`export`, of a model that is loaded, on the CPU."""
    if model.kind == "image" and layout == "patches":
        raise InputError(f"{model.name} scores images: layout patches is for videos")
    ending = Path(path).suffix.lower()
    metadata = describe(model, layout)
    content, run = (_onnx if ending == ".onnx" else _pt2)(model, layout, metadata)
    difference = None if run is None else parity(model, example(model, layout), run)
    if difference is not None and not difference <= PARITY:
        raise OutputError(
            f"{os.fspath(path)} is not written: what was exported is {difference:.2g} off this package's network, more "
            f"than {PARITY:g}"
        )
    replace_file(path, content)
    return Exported(len(content), metadata, difference)


def describe(model: QualityModel, layout: str) -> dict[str, Any]:
    """The metadata of an exported file: how to sample for it, how to normalise, what its scores mean."""
    from sama import __version__
    from sama.backends import MEAN, STD

    sampling = ("mode", "grid", "fragment", "clip_len", "interval", "num_clips", "whole_clips")
    scoring = ("pair_weights", "calibration", "scale")
    known = {key: model.metadata[key] for key in (*sampling, *scoring) if model.metadata.get(key) is not None}
    video = {"layout": layout} if model.kind == "video" else {}
    about = {"kind": model.kind, "size": model.module.size, "weights": model.name, "exported_by": f"sama {__version__}"}
    return {**about, **known, **video, "channels": "RGB", "mean": MEAN, "std": STD}


def shape(model: QualityModel, layout: str) -> tuple[int, ...]:
    """Of one input of the network."""
    from sama.kernels import layout as layouts

    height, width = model.sampler.size
    if model.kind == "image":
        return 3, height, width
    return layouts.shape("patches" if layout == "patches" else "video", model.clip_len, height, width)


def example(model: QualityModel, layout: str) -> torch.Tensor:
    """Two inputs of noise, always the same."""
    import torch

    return torch.randn(2, *shape(model, layout), generator=torch.Generator().manual_seed(0))


def parity(model: QualityModel, x: torch.Tensor, run: Run) -> float:
    """The largest difference of an exported network's token maps and scores from the module's, relative to the largest
    value of the token map or to 1."""
    import torch

    with torch.inference_mode():
        expected = model.module(x)
    tokens, score = (torch.as_tensor(found) for found in run(x))
    if tokens.shape != expected.shape:
        raise OutputError(f"the exported network gives tokens of shape {[*tokens.shape]}, not {[*expected.shape]}")
    kept = torch.tensor(model.values(list(x)))
    off = max(float((tokens - expected).abs().max()), float((score - kept).abs().max()))
    return off / max(1.0, float(expected.abs().max()))


Run = Callable[["torch.Tensor"], tuple[Any, Any]]


def graph(model: QualityModel, layout: str, *, single: bool = False) -> Any:
    """The network of a model as an ONNX graph. `MissingLibraryError` without onnx.

    single: for a batch of one and clips of one length, which runtimes compute faster
    """
    if find_spec("onnx") is None:
        raise MissingLibraryError(f"an ONNX graph needs the package onnx: {INSTALL}")
    import torch

    from sama.models import ImageQuality
    from sama.models.onnx_networks import image_graph, video_graph

    height, width = model.sampler.size
    sizes: dict[str, Any] = {"height": height, "width": width, "scale": model.metadata.get("scale"), "single": single}
    with torch.no_grad():
        if isinstance(model.module, ImageQuality):
            return image_graph(model.module, **sizes)
        known: OutputLayout = "patches" if layout == "patches" else "video"
        weights = model.metadata.get("pair_weights")
        return video_graph(model.module, layout=known, frames=model.clip_len, weights=weights, **sizes)


def _onnx(model: QualityModel, layout: str, metadata: dict[str, Any]) -> tuple[bytes, Run | None]:
    proto = graph(model, layout)
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    content = proto.SerializeToString()
    if find_spec("onnxruntime") is None:
        return content, None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return content, lambda x: session.run(["tokens", "score"], {name: x.numpy()})


def _pt2(model: QualityModel, layout: str, metadata: dict[str, Any]) -> tuple[bytes, Run | None]:
    import torch

    module = _scored(model, layout).eval()
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with torch.no_grad():
        program = torch.export.export(module, (example(model, layout),), dynamic_shapes=({0: batch},), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    content = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()

    def run(x: torch.Tensor) -> tuple[Any, Any]:
        with torch.no_grad():
            tokens, score = loaded(x)
        return tokens, score

    return content, run


def _scored(model: QualityModel, layout: str) -> torch.nn.Module:
    """A module from an input to token map and score."""
    import torch

    module, scale, kind = model.module, model.metadata.get("scale"), model.kind

    class Scored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = self.network(x) if kind == "image" else self.network(x, patches=layout == "patches")
            score = model.counted(tokens).flatten(1).mean(1)
            return tokens, score.clamp(scale["least"], scale["most"]) if scale else score

    return Scored()


def add_command(commands: Any) -> ArgumentParser:
    """Add `sama export` to the commands."""
    command = ArgumentParser(description="Write a network as a file that runs without this package.")
    command.add_argument("weights", metavar="WEIGHTS", help="a checkpoint; packaged or packaged-image for those")
    command.add_argument("-o", "--out", type=str, required=True, metavar="FILE", help="file to write: .onnx or .pt2")
    layouts = "of the clips that it takes: frames (video), or patches as the network cuts them"
    command.add_argument("--layout", choices=("video", "patches"), default="video", help=layouts)
    command.add_argument("--mode", type=str, help="sampling mode, in place of the checkpoint's")
    commands.add_subcommand("export", command, help="write a network as ONNX or pt2")
    return command


def run(options: Namespace) -> int:
    """`sama export`: write the file, and say how far it is from this package's network."""
    written = export(options.weights, options.out, layout=options.layout, mode=options.mode)
    about = written.metadata
    print(f"{options.out}: {about['kind']} model of size {about['size']}, {written.size / 1e6:.1f} MB")
    if written.parity is None:
        print(f"not compared with this package's network: onnxruntime is not installed ({INSTALL})", file=sys.stderr)
    else:
        print(f"at most {written.parity:.1g} off this package's network (relative; allowed is {PARITY:g})")
    return OK
