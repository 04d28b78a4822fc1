"""Undegraded pictures and videos for the tests of `sama corpus`, made on the spot."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sama.corpus.codec import Stream, write_video

NEARLY_LOSSLESS = {"preset": "ultrafast", "crf": "3"}


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A sharp picture with the spectrum of natural ones, uint8 [H, W]: mostly low frequencies."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    spectrum /= np.maximum(frequency, 1 / max(width, height)) ** 1.4
    field = np.fft.irfft2(spectrum, (height, width))
    return np.clip(128 + 45 * field / field.std(), 16, 235).astype(np.uint8)


def photograph(path: Path, width: int = 960, height: int = 540, seed: int = 0, **options) -> Path:
    """A sharp photograph's file."""
    planes = [picture(width, height, seed)] * 3
    Image.fromarray(np.stack(planes, -1)).save(path, **options)
    return path


def moving(width: int, height: int, num_frames: int, seed: int = 0) -> np.ndarray:
    """Frames that pan over a picture, I420."""
    wide = picture(width + 2 * num_frames, height, seed)
    grey = np.full((height // 2, width), 128, np.uint8)
    return np.stack([np.concatenate([wide[:, 2 * t : 2 * t + width], grey]) for t in range(num_frames)])


def video(path: Path, frames: np.ndarray, codec: str = "libx264", **options) -> Path:
    """A video's file, nearly lossless unless options say otherwise."""
    write_video(str(path), Stream(frames, codec, options or NEARLY_LOSSLESS))
    return path


def fake_ffmpeg(path: Path, real: str, *, without: str = "", fails: str = "") -> Path:
    """A program that is FFmpeg but for lines of its lists with the word `without`, and for runs whose arguments have
    the word `fails`: those say that the disk is full."""
    path.write_text(
        f"""#!{sys.executable}
import os, subprocess, sys
arguments = sys.argv[1:]
if {fails!r} and any({fails!r} in argument for argument in arguments):
    sys.stderr.write("Error writing trailer: No space left on device\\n")
    sys.exit(228)
if {without!r} and arguments[-1] in ("-filters", "-encoders"):
    text = subprocess.run([{real!r}, *arguments], capture_output=True, text=True).stdout
    sys.stdout.write("\\n".join(line for line in text.splitlines() if {without!r} not in line))
    sys.exit(0)
os.execv({real!r}, [{real!r}, *arguments])
"""
    )
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
    return path
