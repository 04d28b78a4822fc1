"""Files: which ones a user means, and writing one so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from sama.errors import DecodeError, OutputError
from sama.storage import is_url, listed, plain_name

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
    for name in (
        *("apng", "avif", "bmp", "dib", "gif", "heic", "heif", "hif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("jpx", "mpo", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
MOVING_SUFFIXES = frozenset((".apng", ".gif"))  # an image model reads the first frame, a video model all


def expand(arguments: Iterable[str], *, kind: str | None = None, left_out: list[str] | None = None) -> list[str]:
    """The files that arguments name: files as they are, folders searched recursively, globs, addresses (`sama.storage`)
    of files, folders, globs and tars, "-" for a list of names on standard input, one a line. Sorted within a folder,
    each file once, in the order of the arguments.

    kind: "video" or "image" leaves out files of the other kind found in folders, and adds them to `left_out`. What does
    not exist is kept: opening it says so.
    """
    suffixes = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES, None: VIDEO_SUFFIXES | IMAGE_SUFFIXES}[kind]
    found: dict[str, None] = {}
    for argument in arguments:
        names = [line.rstrip("\r\n") for line in sys.stdin] if argument == "-" else [argument]
        for name in filter(None, names):
            if is_url(name) or (suffix(name) == ".tar" and os.path.isfile(name)):
                for path in listed(name, VIDEO_SUFFIXES | IMAGE_SUFFIXES):
                    if path == name or suffix(path) in suffixes:
                        found[path] = None
                    elif left_out is not None:
                        left_out.append(path)
                continue
            if not os.path.lexists(name) and glob.has_magic(name):
                matches = sorted(glob.glob(name, recursive=True)) or [name]
            else:
                matches = [name]
            for match in matches:
                if not os.path.isdir(match):
                    found[match] = None
                    continue
                for path in in_folder(match, VIDEO_SUFFIXES | IMAGE_SUFFIXES):
                    if suffix(path) in suffixes:
                        found[path] = None
                    elif left_out is not None:
                        left_out.append(path)
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


def is_still(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name says that it is an image, and none that may move."""
    return suffix(path) in IMAGE_SUFFIXES - MOVING_SUFFIXES


def check_kind(path: str | os.PathLike[str], kind: str) -> None:
    """`DecodeError` where a file's name says that it is an image and the model scores videos, or the reverse; one that
    may move can be either."""
    is_other, what = (is_still(path), "an image") if kind == "video" else (suffix(path) in VIDEO_SUFFIXES, "a video")
    if is_other and (os.path.isfile(path) or is_url(path)):
        hint = "; an image model scores it (--weights packaged-image)" if kind == "video" else ""
        raise DecodeError(os.fsdecode(path), f"is {what}; the model scores {kind}s{hint}")


def suffix(path: str | os.PathLike[str]) -> str:
    return Path(plain_name(path)).suffix.lower()


def printable(text: str) -> str:
    """The text on one line of a terminal or a report: names that are no UTF-8, control characters and line breaks
    escaped."""
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that at any moment either the old or the new content is there, whole.

    A symbolic link is followed, and a file that was there keeps its permissions. `OutputError` where it cannot be
    written, on a full disk for one; the old content is kept then.
    """
    target = Path(os.path.realpath(path))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(unfinished, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(unfinished, target)
    except OSError as error:
        kept = "; the file that was there is kept" if os.path.isfile(target) else ""
        raise OutputError(f"{os.fspath(path)} cannot be written: {error.strerror or error}{kept}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
