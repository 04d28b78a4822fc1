"""Which files a user means, and images as pixels."""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sama.decode import DecodeError

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "divx", "f4v", "flv", "h264", "h265", "hevc", "ivf", "m2ts", "m2v", "m4v", "mj2"),
        *("mjpeg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "nut", "obu", "ogm", "ogv", "qt", "rm", "rmvb"),
        *("ts", "vob", "webm", "wmv", "y4m"),
    )
)
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in ("avif", "bmp", "heic", "heif", "jp2", "jpe", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
)


def expand(arguments: Iterable[str], *, kind: str | None = None) -> list[str]:
    """The files that arguments name: files as they are, folders searched recursively, globs, "-" for a list of names on
    standard input, one a line. Sorted within a folder, each file once, in the order of the arguments.

    kind: "video" or "image" leaves out files of the other kind found in folders. What does not exist is kept: opening
    it says so.
    """
    suffixes = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES, None: VIDEO_SUFFIXES | IMAGE_SUFFIXES}[kind]
    found: dict[str, None] = {}
    for argument in arguments:
        names = [line.rstrip("\r\n") for line in sys.stdin] if argument == "-" else [argument]
        for name in filter(None, names):
            if not os.path.lexists(name) and glob.has_magic(name):
                matches = sorted(glob.glob(name, recursive=True)) or [name]
            else:
                matches = [name]
            for match in matches:
                found.update(dict.fromkeys(in_folder(match, suffixes) if os.path.isdir(match) else [match]))
    return list(found)


def in_folder(folder: str, suffixes: frozenset[str]) -> list[str]:
    """Files below a folder by their suffix, hidden ones left out, in sorted order; each folder once, whatever links."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = os.stat(parent)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, n) for n in sorted(names) if not n.startswith(".") and suffix(n) in suffixes]
    return found


def check_kind(path: str | os.PathLike, kind: str):
    """`DecodeError` where a file's name says that it is an image and the model scores videos, or the reverse."""
    other, what = (IMAGE_SUFFIXES, "an image") if kind == "video" else (VIDEO_SUFFIXES, "a video")
    if suffix(path) in other and os.path.isfile(path):
        raise DecodeError(os.fsdecode(path), f"is {what}; the model scores {kind}s")


def suffix(path: str | os.PathLike) -> str:
    return Path(path).suffix.lower()


def read_image(path: str | os.PathLike) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], turned as its EXIF orientation says; `DecodeError` where it cannot be read.

    Transparency is laid on black; colour profiles are left as they are.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = os.fsdecode(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise DecodeError(name, "no such file") from None
    except UnidentifiedImageError:
        raise DecodeError(name, "not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(name, f"too many pixels to be trusted ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DecodeError(name, f"damaged image ({error})") from error
