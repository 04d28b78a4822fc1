"""Frames to files and back, so that the same frames give the same bytes.

Videos are 8-bit 4:2:0, BT.709, 30 frames a second; limited range, but full range in Motion JPEG. Images are PNG, JPEG
or WebP. In memory all are I420 (`sama.corpus.i420`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

FPS = 30
NEARLY_LOSSLESS = {"preset": "ultrafast", "crf": "10"}


class Stream(NamedTuple):
    """Frames, I420, and the encoder that stores them: FFmpeg's name and options, for images Pillow's."""

    frames: np.ndarray
    codec: str = "libx264"
    options: Mapping[str, Any] = NEARLY_LOSSLESS


def write_video(target: str | IO[bytes], stream: Stream, format: str = "mp4") -> None:
    """Encode a stream into a path or an open file, on one thread, so that the same frames give the same bytes."""
    with av.open(target, "w", format=format) as container:
        out: Any = container.add_stream(stream.codec, rate=FPS, options=dict(stream.options))
        out.height, out.width = stream.frames.shape[1] * 2 // 3, stream.frames.shape[2]
        full = stream.codec == "mjpeg"
        out.pix_fmt = "yuvj420p" if full else "yuv420p"
        context = out.codec_context
        context.thread_count = 1
        context.time_base = Fraction(1, FPS)
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        for number, picture in enumerate(stream.frames):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            if full:
                frame = frame.reformat(format="yuvj420p", src_color_range="MPEG", dst_color_range="JPEG")
            frame.pts = number
            frame.time_base = context.time_base
            container.mux(out.encode(frame))
        container.mux(out.encode())


def read_video(source: str | IO[bytes]) -> np.ndarray:
    """All frames of a file as I420, uint8 [T, H * 3/2, W]."""
    with av.open(source, "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = []
        for frame in container.decode(video=0):
            if frame.format.name == "yuvj420p":
                frame = frame.reformat(format="yuv420p", src_color_range="JPEG", dst_color_range="MPEG")
            frames.append(frame.to_ndarray())
    return np.stack(frames)


def transcode(stream: Stream) -> np.ndarray:
    """The frames as they decode after the stream's encoder, uint8 [T, H * 3/2, W]."""
    buffer = io.BytesIO()
    write_video(buffer, stream, "matroska")
    buffer.seek(0)
    return read_video(buffer)


def write_image(path: Path, stream: Stream) -> None:
    """Write the first frame: as JPEG or WebP if that is the stream's codec, else as PNG."""
    frame = av.VideoFrame.from_ndarray(stream.frames[0], format="yuv420p")
    rgb = frame.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG").to_ndarray()
    lossy = stream.codec in ("jpeg", "webp")
    Image.fromarray(rgb).save(path, stream.codec if lossy else "png", **(stream.options if lossy else {}))


def read_image(path: Path) -> np.ndarray:
    """An image as one frame of I420, uint8 [1, H * 3/2, W]."""
    with Image.open(path) as image:
        frame = av.VideoFrame.from_image(image.convert("RGB"))
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG").to_ndarray()[None]
