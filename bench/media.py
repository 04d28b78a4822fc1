"""Test clips from real photographs: panned, zoomed, with grain, encoded with x264. Made once, kept in `bench/clips`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

FOLDER = Path(__file__).parent / "clips"
FPS = 30
GRAIN = 4.0  # standard deviation of the noise, in grey levels
PHOTOGRAPHS = ("rocket", "coffee", "chelsea", "astronaut", "retina", "hubble_deep_field")


class Size(NamedTuple):
    name: str
    width: int
    height: int


SIZES = {size.name: size for size in (Size("540p", 960, 540), Size("1080p", 1920, 1080), Size("2160p", 3840, 2160))}


def clip_path(size: Size, seconds: float, progress=None) -> Path:
    """The path of the test clip of this size and length, made first if it is not there.

    progress: called once per frame made
    """
    path = FOLDER / f"{size.name}-{seconds:g}s.mp4"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        encode(unfinished, size, int(seconds * FPS), progress)
        unfinished.replace(path)
    return path


def encode(path: Path, size: Size, frames: int, progress=None):
    """x264 as platforms use it: B-frames with a pyramid, a key frame every 250 frames at most, CRF 23, BT.709."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        for number, picture in enumerate(pictures(size, frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts = number
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

    rgb = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    frames = [av.VideoFrame.from_image(image).reformat(format="yuv444p", dst_colorspace="ITU709") for image in rgb]
    return [[Image.fromarray(plane) for plane in frame.to_ndarray(channel_last=False)] for frame in frames]
