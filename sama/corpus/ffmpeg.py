"""FFmpeg as a program: find one that has libvmaf, feed it frames, and say in one line what it lacks or what went wrong.

A run gets its arguments as a list, without a shell, reads its input from a pipe, writes to a pipe or one `file:`, works
on one thread, so that results repeat, and ends with this process or at a time limit.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise

import numpy as np

from sama.corpus.codec import FPS, Stream, read_video
from sama.errors import FfmpegError, MissingLibraryError

INSTALL = "pip install 'sama-vqa[corpus]' brings one that has"
QUIET = ("-nostdin", "-hide_banner", "-loglevel", "error")
BT709 = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
FULL_RANGE = "scale=in_range=tv:out_range=pc:flags=accurate_rnd+full_chroma_int"  # Motion JPEG's
PATIENCE_SECONDS, PATIENCE_PER_MEGAPIXEL = 120, 10  # a run takes a tenth of this on a busy machine


class Ffmpeg:
    """An FFmpeg program.

    path, version: where it is, and what it calls itself
    encoders, filters: names of those that it has
    """

    def __init__(self, path: str):
        self.path = path
        self._running: set[subprocess.Popen[bytes]] = set()
        first, *_ = self.run(["-version"], quiet=False).decode(errors="replace").splitlines() or [""]
        found = re.match(r"ffmpeg version (\S+)", first)
        if not found:
            raise FfmpegError(f"{path} is no FFmpeg: it says {first[:80]!r}")
        self.version = found[1]
        self.encoders = self._names("-encoders")
        self.filters = self._names("-filters")

    def _names(self, listing: str) -> frozenset[str]:
        """Names in one of FFmpeg's lists, whose lines are flags, a name and a description."""
        text = self.run([listing]).decode(errors="replace")
        return frozenset(words[1] for line in text.splitlines() if len(words := line.split()) > 2)

    def require(self, encoders: Iterable[str]) -> None:
        """`MissingLibraryError` where one of the encoders is missing."""
        if missing := sorted(set(encoders) - self.encoders):
            raise MissingLibraryError(
                f"FFmpeg {self.version} ({self.path}) has no encoder {', '.join(missing)}; {INSTALL} all of them"
            )

    def run(
        self,
        arguments: Sequence[str],
        *,
        feed: Iterable[bytes | memoryview] = (),
        limit_seconds: float = 60,
        folder: str | os.PathLike[str] | None = None,
        quiet: bool = True,
    ) -> bytes:
        """Run the program and return its standard output.

        feed: what goes to its standard input, in pieces; folder: where it runs
        `FfmpegError` with the first lines of its messages where it fails or takes longer than the limit; OSError
        (ENOSPC) where it says that the disk is full.
        """
        command = [self.path, *(QUIET if quiet else ()), *arguments]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder)
        except OSError as error:
            raise FfmpegError(f"{self.path} cannot be run: {error.strerror or error}") from error
        self._running.add(process)
        output: list[bytes] = []
        messages: list[bytes] = []
        assert process.stdout
        assert process.stderr
        helpers = [
            threading.Thread(target=_write, args=(process, feed), daemon=True),
            threading.Thread(target=_drain, args=(process.stdout, output), daemon=True),
            threading.Thread(target=_drain, args=(process.stderr, messages), daemon=True),
        ]
        try:
            for helper in helpers:
                helper.start()
            status = process.wait(limit_seconds)
            for helper in helpers:
                helper.join()
        except subprocess.TimeoutExpired:
            raise FfmpegError(f"{_brief(command)}: stopped after {limit_seconds:.0f} seconds") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for helper in helpers:
                helper.join()
            process.stdout.close()
            process.stderr.close()
            self._running.discard(process)
        if status:
            said = b"".join(messages).decode(errors="replace").strip()
            if "No space left on device" in said:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            why = " | ".join(said.splitlines()[:3]) or "no message"
            raise FfmpegError(f"{_brief(command)}: exit status {status}: {why}")
        return b"".join(output)

    def stop(self) -> None:
        """Kill all runs."""
        for process in list(self._running):
            process.kill()

    def encode(self, stream: Stream, target: str, form: str) -> bytes:
        """Encode a stream. target: "pipe:1", whose bytes are returned, or "file:" and a path; form: FFmpeg's name"""
        count, rows, width = stream.frames.shape
        height = rows * 2 // 3
        full = stream.codec == "mjpeg"
        options = [text for key, value in stream.options.items() for text in (f"-{key}", str(value))]
        arguments = [
            *raw_input(width, height),
            *("-map", "0:v:0", "-filter_threads", "1", "-vf", f"{BT709},{FULL_RANGE}" if full else BT709),
            *("-c:v", stream.codec, *options, "-threads", "1"),
            *("-pix_fmt", "yuvj420p" if full else "yuv420p", "-fps_mode", "passthrough"),
            *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", form, "-y", target),
        ]
        megapixels = count * width * height / 1e6
        limit = PATIENCE_SECONDS + PATIENCE_PER_MEGAPIXEL * megapixels
        return self.run(arguments, feed=(memoryview(frame).cast("B") for frame in stream.frames), limit_seconds=limit)

    def write_video(self, path: str, stream: Stream) -> None:
        """Encode a stream into an MP4 file."""
        self.encode(stream, f"file:{path}", "mp4")

    def transcode(self, stream: Stream) -> np.ndarray:
        """The frames as they decode after the stream's encoder, uint8 [T, H * 3/2, W]."""
        return read_video(io.BytesIO(self.encode(stream, "pipe:1", "matroska")))

    def decode_damaged(self, data: bytes, form: str, shape: tuple[int, int, int]) -> np.ndarray:
        """Frames of a raw stream with holes, concealed as FFmpeg does; a frame that is missing shows the one before.

        form: FFmpeg's name of the stream's format; shape: of the frames, [T, H * 3/2, W]
        """
        arguments = [
            *("-threads", "1", "-err_detect", "ignore_err", "-flags", "+output_corrupt", "-framerate", str(FPS)),
            *("-protocol_whitelist", "pipe", "-f", form, "-i", "pipe:0", "-map", "0:v:0", "-fps_mode", "passthrough"),
            *("-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"),
        ]
        limit = PATIENCE_SECONDS + PATIENCE_PER_MEGAPIXEL * shape[0] * shape[1] * shape[2] / 1e6
        raw = np.frombuffer(self.run(arguments, feed=[data], limit_seconds=limit), np.uint8)
        frames = raw[: raw.size // (shape[1] * shape[2]) * shape[1] * shape[2]].reshape(-1, *shape[1:])
        if not len(frames):
            raise FfmpegError(f"{self.path}: no frame of a {form} stream with lost packets could be decoded")
        return frames[np.minimum(np.arange(shape[0]), len(frames) - 1)]


def raw_input(width: int, height: int) -> list[str]:
    """Arguments for I420 frames on standard input."""
    return [
        *("-threads", "1", "-protocol_whitelist", "pipe", "-f", "rawvideo", "-pixel_format", "yuv420p"),
        *("-video_size", f"{width}x{height}", "-framerate", str(FPS), "-i", "pipe:0"),
    ]


def find_ffmpeg(path: str | None = None) -> Ffmpeg:
    """The program at `path`; by default imageio-ffmpeg's, or else one on PATH, whichever has libvmaf first.

    `MissingLibraryError` where there is none that has it, `FfmpegError` where `path` cannot be run.
    """
    seen = []
    for candidate in [path] if path else _candidates():
        try:
            ffmpeg = Ffmpeg(candidate)
        except FfmpegError:
            if path:
                raise
            continue
        if "libvmaf" in ffmpeg.filters:
            return ffmpeg
        seen.append(f"FFmpeg {ffmpeg.version} ({candidate}) has no libvmaf")
    raise MissingLibraryError(f"{'; '.join(seen) or 'there is no FFmpeg'}: {INSTALL} libvmaf")


def _candidates() -> list[str]:
    paths = []
    if find_spec("imageio_ffmpeg"):
        import imageio_ffmpeg

        with suppress(RuntimeError):  # a package without its program
            paths.append(imageio_ffmpeg.get_ffmpeg_exe())
    if (found := shutil.which("ffmpeg")) and found not in paths:
        paths.append(found)
    return paths


def _write(process: subprocess.Popen[bytes], feed: Iterable[bytes | memoryview]) -> None:
    assert process.stdin
    try:
        for piece in feed:
            process.stdin.write(piece)
        process.stdin.close()
    except (OSError, ValueError):  # it has ended: its status says why
        with suppress(OSError):
            process.stdin.close()


def _drain(pipe, chunks: list[bytes]) -> None:
    while chunk := pipe.read(1 << 20):
        chunks.append(chunk)


def _brief(command: Sequence[str]) -> str:
    """A command in short: its program and what it does."""
    what = [value for name, value in pairwise(command) if name in ("-c:v", "-lavfi")]
    return f"FFmpeg ({os.path.basename(command[0])}{', ' if what else ''}{', '.join(what)})"
