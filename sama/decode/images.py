"""Image files as pixels: any format that Pillow reads, 8 or 16 bits, turned as EXIF says."""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from sama.errors import DecodeError
from sama.limits import IMAGE_PIXELS, MAX_SCANS, SCAN, has_too_many_scans
from sama.storage import Content, find

if TYPE_CHECKING:
    from PIL import Image

# Pillow's names. Others are not tried, so that a file cannot choose what runs: EPS, for one, starts a program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF", "BMP", "DIB", "JPEG2000", "PPM")
HEIC_BRANDS = (b"heic", b"heix", b"heif", b"hevc", b"mif1", b"msf1")
JPEG_BYTES = 1 << 29  # a larger file is left to Pillow, which reads it piece by piece
BLOCK_BYTES = 1 << 24  # read at once where a file is only looked through
STRIP_PIXELS = 1 << 18  # converted at once, so that they stay in the processor's cache


@contextmanager
def quiet() -> Iterator[None]:
    """While the block runs, neither Pillow nor its libtiff write to the terminal, in the whole process.

    What they say lacks the file's name. Where it costs pixels, `read_image` raises an error; the rest is of damaged
    metadata. libtiff is found where it is a library of its own (Linux, macOS), not where it is a part of Pillow.
    """
    from PIL import Image

    before = []
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            before.append((setter, setter(None)))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            yield
    finally:
        for setter, handler in before:
            setter(handler)


def read_image(
    path: str | os.PathLike, *, max_pixels: int = IMAGE_PIXELS, content: Content | None = None
) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]; `DecodeError` with the reason where it cannot be read.

    The file's content counts, not its name: the formats are `IMAGE_FORMATS`, as far as the installed Pillow reads them
    (HEIC with `pip install pillow-heif`).

    turned       as EXIF or the container says. A quarter turn is left to the strides, so that no turned copy is made;
                 strides are never negative, torch takes the array as it is. Unreadable EXIF data: as stored
    16 bit       of each channel its high byte, `value >> 8`, as Pillow itself reads 16-bit colour
    transparent  laid on black, `round(value * alpha / 255)`, whether by alpha channel or transparent colour
    CMYK         by Pillow's plain formula, Adobe's inverted values told apart; grey, palette, 1 bit: as colours
    colour       profiles (ICC, gamma, HDR transfer) are left as they are: values are those of the file
    moving       the first frame of a GIF, PNG, WebP or AVIF animation; the first page of a TIFF
    refused      floating point and 32-bit integers, whose range nothing tells, and CIELAB

    content: the bytes, where they are no local file's (`sama.storage`); an address in `path` is read whole
    max_pixels: more than this by the header are refused before anything is decoded, and so is a JPEG of more than
    `MAX_SCANS` scans. Memory at the peak is 3 bytes a
    pixel and the file itself for a flawless JPEG, at most 7 bytes for the rest, 11 for a turned TIFF.

    Every JPEG is decoded whole. The thumbnail takes rows about `H / 256` apart: for up to 4,096 rows that is at least
    one of each 16 that a JPEG is decoded in, and the entropy decoder needs what lies between. Reduced decoding (`draft`
    in Pillow) would be faster but averages pixels, where the published model saw single ones.
    """
    name = os.fsdecode(path)
    try:
        content = content or find(name)
        if content is not None:
            if not content.size:
                raise DecodeError(name, "is empty, 0 bytes")
            return _decode(io.BytesIO(content.whole()), name, max_pixels)
        kind = os.stat(path)
        if stat.S_ISDIR(kind.st_mode):
            raise DecodeError(name, "is a folder, not an image")
        if not stat.S_ISREG(kind.st_mode):
            raise DecodeError(name, "is no ordinary file (a pipe, a socket or a device)")
        if kind.st_size == 0:
            raise DecodeError(name, "is empty, 0 bytes")
        with open(path, "rb") as file:
            return _decode(file, name, max_pixels)
    except DecodeError:
        raise
    except FileNotFoundError:
        raise DecodeError(name, "no such file") from None
    except PermissionError:
        raise DecodeError(name, "may not be read: permission denied") from None
    except MemoryError as error:
        raise DecodeError(name, "too large for the memory that is free") from error
    except Exception as error:  # a damaged header makes Pillow's readers raise nearly anything
        said = f"{error}" if isinstance(error, OSError | SyntaxError) else f"{type(error).__name__}: {error}"
        raise DecodeError(name, f"damaged image ({said})") from error


def _decode(file: BinaryIO, name: str, max_pixels: int) -> np.ndarray:
    with _identify(file, name, max_pixels) as image:
        if image.format in ("JPEG", "MPO"):
            _check_scans(file, name)
        pixels = _decode_jpeg(file, image) if _is_plain_jpeg(image) else None
        if pixels is None:
            _allocate(image)
            image.load()  # a TIFF is turned by Pillow, here
            turn = _turn(image)
            pixels = np.empty((image.height, image.width, 3), np.uint8)
            _convert(image, turn, pixels, name)
        else:
            turn = _turn(image)
            if turn.rows or turn.columns:
                pixels = pixels[_step(turn.rows), _step(turn.columns)].copy()
        return pixels.swapaxes(0, 1) if turn.swap else pixels


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def _identify(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The image in a file, its header read, its size found acceptable. As `PIL.Image.open`, but for `IMAGE_FORMATS`
    alone, and without its limit, which is the whole process's and warns from 89 megapixels on."""
    from PIL import Image

    Image.init()
    start = file.read(16)
    if start[4:8] == b"ftyp" and "HEIF" not in Image.OPEN and find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    damage = None
    for form in IMAGE_FORMATS:
        if form not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[form]
        accepted = accept is None or accept(start)
        if accepted and not isinstance(accepted, str):  # a string says that the format was left out of this Pillow
            file.seek(0)
            try:
                image = factory(file, name)
                break
            except Image.DecompressionBombError as error:
                raise DecodeError(name, f"more pixels than Pillow reads in {form} ({error})") from error
            except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error) as error:
                said = str(error).replace("not identified by this driver", "no pixels, or of an unknown kind")
                damage = damage or f"damaged image, its {form} header cannot be read ({said})"
    else:  # no reader took it
        if "HEIF" not in Image.OPEN and start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
            raise DecodeError(name, "HEIC image: reading it takes pillow-heif (pip install pillow-heif)")
        known = ", ".join(form for form in IMAGE_FORMATS if form in Image.OPEN)
        raise DecodeError(name, damage or f"not an image in a format that is read here ({known})")
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise DecodeError(name, f"{size} are more than {max_pixels:,} pixels (--max-pixels)")
    return image


def _check_scans(file: BinaryIO, name: str) -> None:
    """`DecodeError` where a JPEG has scans without end, each of which is a pass over all its pixels."""
    file.seek(0)
    if sum(block.count(SCAN) for block in iter(lambda: file.read(BLOCK_BYTES), b"")) > MAX_SCANS:  # seldom
        if isinstance(file, io.BytesIO):
            too_many = has_too_many_scans(file.getvalue())
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                too_many = has_too_many_scans(memoryview(data))
        if too_many:
            raise DecodeError(name, f"a JPEG of more than {MAX_SCANS} scans")


def _allocate(image: Image.Image) -> None:
    """Make room for the pixels of a large TIFF, as Pillow would, but for its own limit: ours has been looked at."""
    size = getattr(image, "_tile_size", None)
    if image.format == "TIFF" and size is not None:
        from PIL import Image

        image.im = Image.core.new(image.mode, size)


def _decode_jpeg(file: BinaryIO, image: Image.Image) -> np.ndarray | None:
    """The pixels of a flawless JPEG, equal to Pillow's, by the same libjpeg-turbo straight into an array: half of the
    memory, and no repacking from 4 to 3 bytes. None otherwise: Pillow then reads the file, or says what is wrong."""
    if file.seek(0, os.SEEK_END) > JPEG_BYTES:
        file.seek(0)
        return None
    try:
        from simplejpeg import decode_jpeg

        file.seek(0)
        pixels = decode_jpeg(file.read())  # strict: ValueError where libjpeg would only warn
    except (ImportError, ValueError):
        return None
    finally:
        file.seek(0)
    return pixels if pixels.shape == (image.height, image.width, 3) else None


class Turn(NamedTuple):
    """How stored pixels become the picture: rows and columns reversed or not, then the axes swapped or not."""

    rows: bool = False
    columns: bool = False
    swap: bool = False


_TURNS = {  # by EXIF orientation
    1: Turn(),
    2: Turn(columns=True),
    3: Turn(rows=True, columns=True),
    4: Turn(rows=True),
    5: Turn(swap=True),
    6: Turn(rows=True, swap=True),
    7: Turn(rows=True, columns=True, swap=True),
    8: Turn(columns=True, swap=True),
}


def _turn(image: Image.Image) -> Turn:
    from PIL.ExifTags import Base

    try:
        return _TURNS.get(image.getexif().get(Base.Orientation, 1), _TURNS[1])
    except Exception:  # whatever stands in the place of EXIF data, the pixels are there
        return _TURNS[1]


def _step(reversed_axis: bool) -> slice:
    return slice(None, None, -1 if reversed_axis else 1)


def _convert(image: Image.Image, turn: Turn, pixels: np.ndarray, name: str):
    """A loaded image as RGB into `pixels`, reversed as `turn` says, a few rows at a time: whole conversions in between
    would take more memory than the image."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = _as_rgb(image.crop((0, top, image.width, bottom)), image, name)
        place = slice(image.height - bottom, image.height - top) if turn.rows else slice(top, bottom)
        pixels[place] = strip[_step(turn.rows), _step(turn.columns)]


def _as_rgb(image: Image.Image, whole: Image.Image, name: str) -> np.ndarray:
    """uint8 [H, W, 3] of a part of an image in any of Pillow's modes, see `read_image`."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and whole.format in ("PNG", "PPM")):  # 0..65535 in 32 bits: PGM
        high = _high_bytes(np.asarray(image), whole)
        return np.broadcast_to(high[..., None], (*high.shape, 3))
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floating point numbers"
        raise DecodeError(name, f"its pixels are {kind}, whose range nothing tells: convert it to 8 or 16 bits")
    if mode == "LAB":
        raise DecodeError(name, "its colours are CIELAB: convert it to RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        for through in ("LA", "RGBA", "RGBa")[0 if mode == "La" else 1 :]:  # La knows no way but LA
            image = image if mode == "RGBa" else image.convert(through)
        return np.asarray(image)[..., :3]
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _high_bytes(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits as uint8: the upper 8 of the bits that the format uses, white as the largest."""
    bits, tags = 16, getattr(image, "tag_v2", {})
    if image.format == "TIFF":  # Pillow neither widens 12 bits nor minds which end is white
        from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

        bits = tags.get(BITSPERSAMPLE, (16,))[0]
        if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
            values = (1 << bits) - 1 - values
    high = (values >> (bits - 8)).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        high[values == image.info["transparency"]] = 0
    return high
