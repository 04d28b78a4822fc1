"""Test clips from real photographs: panned, zoomed, with grain, encoded. Made once, kept in `bench/clips`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from sama.corpus.camera import yuv_planes

FOLDER = Path(__file__).parent / "clips"
FPS = 30
GRAIN = 4.0  # standard deviation of the noise, in grey levels
PHOTOGRAPHS = ("rocket", "coffee", "chelsea", "astronaut", "retina", "hubble_deep_field")


class Size(NamedTuple):
    name: str
    width: int
    height: int


SIZES = {size.name: size for size in (Size("540p", 960, 540), Size("1080p", 1920, 1080), Size("2160p", 3840, 2160))}


class Codec(NamedTuple):
    """An encoder as platforms use it, for files of moderate quality; a key frame every 250 frames at most."""

    encoder: str
    options: dict[str, str]
    format: str


CODECS = {  # "h264": B-frames with a pyramid
    "h264": Codec("libx264", {"preset": "veryfast", "crf": "23"}, "mp4"),
    "hevc": Codec("libx265", {"preset": "ultrafast", "crf": "26", "x265-params": "log-level=error"}, "mp4"),
    "vp9": Codec("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0", "g": "250"}, "webm"),
    "mjpeg": Codec("mjpeg", {"qscale": "4"}, "avi"),
}


def clip_path(size: Size, seconds: float, progress=None, codec: str = "h264") -> Path:
    """The path of the test clip of this size and length, made first if it is not there.

    progress: called once per frame made
    """
    kind = "" if codec == "h264" else f"-{codec}"
    path = FOLDER / f"{size.name}-{seconds:g}s{kind}.{CODECS[codec].format}"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        encode(unfinished, size, int(seconds * FPS), progress, codec=codec)
        unfinished.replace(path)
    return path


def encode(
    path: Path,
    size: Size,
    frames: int,
    progress=None,
    *,
    codec: str = "h264",
    matrix: Colorspace = Colorspace.ITU709,
    color_range: ColorRange = ColorRange.MPEG,
):
    """Encode `pictures`. matrix, color_range: tags; the pictures are made for the first ones."""
    encoder, options, format = CODECS[codec]
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(encoder, rate=FPS, options=options)
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, pix_fmt
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = color_range
        for number, picture in enumerate(pictures(size, frames)):
            frame = av.VideoFrame.from_ndarray(picture, format=pix_fmt)
            frame.pts, frame.colorspace, frame.color_range = number, matrix, color_range
            container.mux(stream.encode(frame))
            if progress:
                progress()
        container.mux(stream.encode())


def pictures(size: Size, frames: int):
    """Pictures in 4:2:0, uint8 [H * 3/2, W]: each photograph for its share of the clip, the camera moving over it, with
    grain on the luma."""
    photographs = load_photographs()
    rng = np.random.default_rng(0)
    grain = np.rint(rng.normal(0, GRAIN, (size.height + 64, size.width + 64))).astype(np.int16)
    for number in range(frames):
        shot, at = divmod(number * len(photographs) / frames, 1)
        luma, *chroma = photographs[int(shot)]
        top, left = rng.integers(0, 64, 2)
        noise = grain[top : top + size.height, left : left + size.width]
        luma = np.clip(look(luma, size.width, size.height, at, shot) + noise, 16, 235).astype(np.uint8)
        chroma = [look(plane, size.width // 2, size.height // 2, at, shot).reshape(-1, size.width) for plane in chroma]
        yield np.concatenate([luma, *chroma])


def look(plane: Image.Image, width: int, height: int, at: float, shot: float) -> np.ndarray:
    """A plane of a photograph, through a camera that pans and zooms: in for even shots, out for odd ones."""
    at = at if shot % 2 == 0 else 1 - at
    across = min(plane.width, plane.height * width / height) * (0.95 - 0.35 * at)
    down = across * height / width
    left, top = (plane.width - across) * (0.1 + 0.7 * at), (plane.height - down) * (0.8 - 0.6 * at)
    box = (left, top, left + across, top + down)
    return np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC, box))


def load_photographs() -> list[list[Image.Image]]:
    """Y, U, V of each photograph, at full size."""
    import skimage.data

    return [yuv_planes(Image.fromarray(getattr(skimage.data, name)()).convert("RGB")) for name in PHOTOGRAPHS]
