"""Small video files for the tests, and what a plain decode of a whole file gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from sama.frames import Frame

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder writes to the terminal otherwise

IRREGULAR_MS = np.cumsum(np.random.default_rng(5).integers(3, 90, 60)).tolist()
PYRAMID = {"bf": "5", "x264-params": "b-pyramid=normal:keyint=16:min-keyint=16:scenecut=0"}
X265 = "log-level=none:keyint=12:min-keyint=12:bframes=4:pools=1:frame-threads=1"

CLIPS = {
    # file: (codec, arguments of write_video, how its frames are numbered)
    "h264.mp4": ("libx264", {"options": PYRAMID}, "packets"),
    "h264.mov": ("libx264", {"options": PYRAMID}, "packets"),
    "h264.mkv": ("libx264", {"options": PYRAMID}, "packets"),
    "h264.flv": ("libx264", {"options": PYRAMID}, "packets"),
    "h264.ts": ("libx264", {"options": PYRAMID}, "packets"),
    "h264.avi": ("libx264", {"options": PYRAMID}, "decoding"),
    "h264.264": ("libx264", {"options": PYRAMID, "format": "h264"}, "decoding"),
    "h264-one-gop.mp4": ("libx264", {"options": {"bf": "3", "g": "250"}}, "packets"),
    "h264-no-b.mp4": ("libx264", {"options": {"bf": "0", "g": "10"}}, "packets"),
    "h264-all-key.mp4": ("libx264", {"options": {"g": "1"}}, "packets"),
    "h264-open-gop.mp4": (
        "libx264",
        {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0:b-pyramid=normal"}},
        "packets",
    ),
    "h264-open-gop.ts": ("libx264", {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=8"}}, "packets"),
    "h264-intra-refresh.mp4": ("libx264", {"options": {"x264-params": "intra-refresh=1:keyint=12"}}, "packets"),
    "h264-interlaced.mp4": ("libx264", {"options": {"x264-params": "interlaced=1:keyint=10"}}, "decoding"),
    "h264-vfr.mp4": ("libx264", {"num_frames": 60, "times_ms": IRREGULAR_MS, "options": PYRAMID}, "packets"),
    "h264-from-7s.mkv": ("libx264", {"times_ms": range(7000, 8600, 40), "options": PYRAMID}, "packets"),
    "h264-from-7s.ts": ("libx264", {"times_ms": range(7000, 8600, 40), "options": PYRAMID}, "packets"),
    "h264-vfr.mkv": ("libx264", {"num_frames": 60, "times_ms": IRREGULAR_MS, "options": PYRAMID}, "packets"),
    "vp9-65x48.webm": ("libvpx-vp9", {"size": (65, 48), "options": {"g": "15"}}, "packets"),
    "vp9-64x49.webm": ("libvpx-vp9", {"size": (64, 49), "options": {"g": "15"}}, "packets"),
    "hevc.mp4": ("libx265", {"options": {"x265-params": X265}}, "packets"),
    "hevc-open-gop.mkv": ("libx265", {"options": {"x265-params": X265 + ":open-gop=1"}}, "packets"),
    "hevc-layers.mp4": ("libx265", {"options": {"x265-params": X265 + ":temporal-layers=3"}}, "packets"),
    "hevc.ts": ("libx265", {"options": {"x265-params": X265}}, "packets"),
    "vp9.webm": ("libvpx-vp9", {"options": {"g": "15", "lag-in-frames": "12", "auto-alt-ref": "1"}}, "packets"),
    "vp8.webm": ("libvpx", {"options": {"g": "15"}}, "packets"),
    "av1.mp4": ("libsvtav1", {"options": {"preset": "12", "g": "16"}}, "packets"),
    "av1.webm": ("libsvtav1", {"options": {"preset": "12", "g": "16"}}, "packets"),
    "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}, "packets"),
    "mpeg4.mp4": ("mpeg4", {"options": {"bf": "2", "g": "12"}}, "packets"),
    "mpeg4.avi": ("mpeg4", {"options": {"bf": "2", "g": "12"}}, "decoding"),
    "mpeg2.ts": ("mpeg2video", {"options": {"bf": "2", "g": "12"}}, "packets"),
    "mpeg2.mpg": ("mpeg2video", {"options": {"bf": "2", "g": "12"}}, "decoding"),
    "ffv1.mkv": ("ffv1", {}, "packets"),
}


def picture(n: int, width: int, height: int) -> np.ndarray:
    """uint8 `[H, W, 3]`: a moving pattern with noise, different for every frame number `n`."""
    noise = np.random.default_rng(n).integers(-12, 13, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    wave = [110 + 70 * np.sin((x + 3 * n) / 9 + c) + 40 * np.cos((y - 2 * n) / 7 - c) for c in range(3)]
    image = np.clip(np.stack(wave, axis=-1) + noise, 0, 255).astype(np.uint8)
    for bit in range(8):
        image[:8, 8 * bit : 8 * bit + 8] = 255 * (n >> bit & 1)
    return image


def write_video(
    path: Path,
    codec: str,
    *,
    size: tuple[int, int] = (96, 64),
    num_frames: int = 40,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times_ms: Sequence[int] | None = None,
    colorspace: Colorspace | None = None,
    color_range: ColorRange | None = None,
    format: str | None = None,
) -> Path:
    """Write `picture(0)`, `picture(1)`, ... as a video of 25 frames a second, or shown at `times_ms`.

    size: (width, height) in pixels. colorspace, color_range: tags; the pixels do not follow them.
    """
    width, height = size
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000 if times_ms else 25)
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        for n in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(n, width, height), format="rgb24").reformat(format=pix_fmt)
            frame.pts = times_ms[n] if times_ms else n
            frame.time_base = stream.codec_context.time_base
            if colorspace is not None:
                frame.colorspace = colorspace
            if color_range is not None:
                frame.color_range = color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for n in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 1024 * n, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def full_decode(path: Path) -> list[av.VideoFrame]:
    """Every frame, decoded in the plainest way: nothing skipped, no seeking, no frame threads."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    """Copies of the planes of a planar 8-bit frame, each `[height, width]`."""
    rows = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size) for plane in frame.planes]
    return [row[:, : plane.width].copy() for row, plane in zip(rows, frame.planes)]


def patch_box(path: Path, box: bytes, offset: int, values: Sequence[int]) -> None:
    """Overwrite 32-bit big-endian integers `offset` bytes after the name of the first MP4 box called `box`."""
    data = bytearray(path.read_bytes())
    start = data.index(box) + len(box) + offset
    for k, value in enumerate(values):
        data[start + 4 * k : start + 4 * k + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set the 2x2 part of an MP4 track's display matrix: x' = a*x + c*y, y' = b*x + d*y (1, 0 or -1 each)."""
    one = 1 << 16
    patch_box(path, b"tkhd", 40, [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30])


def assert_same(frame: Frame, expected: av.VideoFrame) -> None:
    """To the bit: planes where the decoder's planes are passed on, FFmpeg's RGB otherwise."""
    if frame.layout == "i420":
        got, want = frame.planes, planes_of(expected)
    else:
        got, want = frame.planes, [expected.to_ndarray(format="rgb24")]
    for got_plane, want_plane in zip(got, want, strict=True):
        np.testing.assert_array_equal(got_plane, want_plane)
