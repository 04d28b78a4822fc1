"""A folder of files that mean no good, the same ones for a seed: `fill(folder, count, seed)`.

Small clips of every container and encoder that this FFmpeg writes, damaged; playlists and scripts; bombs; odd names;
what is no file at all. About a tenth of them are whole.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import zlib
from pathlib import Path

import av
from test_containers import SCRIPTS
from test_limits import gif, jpeg_of_many_scans
from videos import write_video

from sama.decode.packets import CONTAINERS

CONTAINER_NAMES = {"matroska": "mkv", "mpegts": "ts", "mpeg": "mpg", "yuv4mpegpipe": "y4m", "ogg": "ogv"}
LEFT_OUT = {
    "libaom-av1",
    "librav1e",
    "libvvenc",
    "wrapped_avframe",
    "a64multi",
    "a64multi5",
    "vnull",
}  # slow, or no video
OPTIONS = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12"}, "libvpx-vp9": {"cpu-used": "8"}}
NAMES = [
    "%03d",
    "a\nb",
    "a\rb",
    "a b",
    "-o",
    "'\"",
    "*",
    "[x]",
    "concat:a|b",
    "http:x",
    "\udcff",
    "é" * 60,
    "a;b,c",
    "file:",
]


def clips(folder: Path) -> list[Path]:
    """A clip for each encoder in the first container that takes it, and one for each other container."""
    made, encoders = [], []
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "w")
        except ValueError:
            continue
        hardware = any(
            mark in name for mark in ("_vaapi", "_nvenc", "_qsv", "_amf", "_vulkan", "_v4l2m2m", "_mf", "_d3d")
        )
        if codec.type == "video" and codec.name == name and name not in LEFT_OUT and not hardware:
            encoders.append((name, codec))
    containers = [name for name in CONTAINERS if name in av.formats_available]
    done = set()
    for name, codec in encoders:
        for container in ("matroska", "mov", "avi", "mxf", "gif", "apng", "flv", "ivf"):
            if container in containers and (path := _write(folder, name, codec, container)):
                made.append(path)
                done.add(container)
                break
    for container in containers:
        for name in ("libx264", "mpeg4", "mpeg2video", "mjpeg", "libvpx", "rawvideo", "dvvideo", "rv20"):
            if container in done:
                break
            if path := _write(folder, name, av.Codec(name, "w"), container):
                made.append(path)
                done.add(container)
    return made


def _write(folder: Path, name: str, codec: av.Codec, container: str) -> Path | None:
    """A clip of six frames, None where encoder and container do not go together."""
    path = folder / f"{name}.{CONTAINER_NAMES.get(container, container)}"
    size = {"dvvideo": (720, 576), "rv20": (352, 288), "h261": (352, 288), "h263": (352, 288)}.get(name, (96, 64))
    formats = [f.name for f in codec.video_formats or ()] or ["yuv420p"]
    pix_fmt = next((f for f in ("yuv420p", "yuvj420p", "yuv422p", "rgb24") if f in formats), formats[0])
    try:
        write_video(path, name, size=size, num_frames=6, pix_fmt=pix_fmt, options=OPTIONS.get(name), format=container)
    except Exception:  # of any kind, from the encoder, the muxer or the options
        path.unlink(missing_ok=True)
        return None
    return path if path.exists() and path.stat().st_size else None


def damaged(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Cut, flipped, swapped, put in, filled, joined: one to three of these."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        size = len(data)
        at, length = draw.randrange(size), draw.randint(1, max(1, size // 4))
        kind = draw.randrange(8)
        if kind == 0:
            del data[max(1, at) :]
        elif kind == 1:
            for _ in range(draw.randint(1, 30)):
                data[draw.randrange(size)] ^= 1 << draw.randrange(8)
        elif kind == 2:  # in the header, where sizes and counts are
            for _ in range(draw.randint(1, 6)):
                data[draw.randrange(min(size, 600))] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 3:
            to = draw.randrange(size)
            block = data[at : at + length]
            del data[at : at + length]
            data[to:to] = block
        elif kind == 4:
            data[at:at] = other[: draw.randint(1, 2000)]
        elif kind == 5:
            data[at : at + length] = bytes([draw.choice((0, 0xFF))]) * len(data[at : at + length])
        elif kind == 6:
            data += data[at:] if draw.random() < 0.5 else other
        else:
            del data[at : at + draw.randint(1, 16)]
        if not data:
            return b"\0"
    return bytes(data)


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(5000))) + chunk(b"IEND", b"")


def bombs(folder: Path) -> None:
    """Small files that ask for much memory or time."""
    (folder / "bomb.gif").write_bytes(gif(16_000, 16_000))
    (folder / "wide.gif").write_bytes(gif(65_535, 1_500))
    (folder / "many.gif").write_bytes(gif(100, 100, frames=20_000))
    jpeg_of_many_scans(folder / "scans.mjpeg", 500)
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (9_000, 9_000)):
        (folder / f"{width}x{height}.png").write_bytes(png(width, height))
        (folder / f"{width}x{height}.mov").write_bytes(png(width, height))
    raw = write_video(folder / "header.avi", "rawvideo", num_frames=3)
    raw.write_bytes(raw.read_bytes().replace(struct.pack("<II", 96, 64), struct.pack("<II", 20_000, 20_000)))
    table = write_video(folder / "table.mp4", "mpeg4", num_frames=3)
    data = bytearray(table.read_bytes())
    at = data.index(b"stsz") + 8
    data[at : at + 8] = struct.pack(">II", 1, 50_000_000)  # samples of one byte each
    table.write_bytes(data)


def scripts(folder: Path, bait: Path, port: int) -> None:
    """Texts that name other files and addresses, under the name of a video; the nearest of those files is there."""
    shutil.copy(bait, folder)
    for kind, target in (
        ("near", bait.name),
        ("far", str(bait)),
        ("net", f"http://127.0.0.1:{port}/a.ts"),
        ("self", None),
    ):
        for name, (text, _) in SCRIPTS.items():
            path = folder / f"{kind}-{name}"
            path.write_text(text.format(target or path.name, port))


def special(folder: Path) -> None:
    """What is no regular file."""
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "zero.mkv").symlink_to("/dev/zero")
    (folder / "terminal.mkv").symlink_to("/dev/tty")
    (folder / "gone.mov").symlink_to("nowhere")
    (folder / "empty.mp4").touch()
    here = Path.cwd()
    os.chdir(folder)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.mp4")
    os.chdir(here)


def fill(folder: Path, bait: Path, port: int, *, count: int, seed: int = 0) -> list[Path]:
    """Make the files; returns them in order. bait, port: what scripts name, and nobody should open."""
    folder.mkdir()
    source = folder.parent / "clips"
    source.mkdir()
    whole = clips(source)
    contents = [path.read_bytes() for path in whole]
    bombs(folder)
    scripts(folder, bait, port)
    special(folder)
    for name in NAMES:
        (folder / f"{name}.mp4").write_bytes(contents[0])
    draw = random.Random(seed)
    for number in range(count - len(os.listdir(folder))):
        path, data = whole[number % len(whole)], contents[number % len(whole)]
        if number >= len(whole) // 2:
            data = damaged(draw, data, draw.choice(contents))
        (folder / f"{number:05d}{path.suffix}").write_bytes(data)
    return sorted(folder.iterdir())
