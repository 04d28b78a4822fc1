"""Sets of still images: the kinds of degradation of photographs, their files, and their label.

`still_kinds(ffmpeg)` gives the kinds by name, as `sama.corpus.degrade.Kind`, whose strengths run from hardly visible to
awful. What a user would choose beside the strength (chroma, speed, kernel) is drawn by the content's name and the
strength. A version that ends with a lossy format is stored as that format's own file, every other one as PNG.

In memory a still is one frame of I420. Its file is RGB, chroma enlarged smoothly; what is labelled is the file as it is
read back.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image, features

from sama.corpus.codec import Stream
from sama.corpus.degrade import Kind, blur, motion_blur, noise, seeded
from sama.corpus.ffmpeg import Ffmpeg
from sama.corpus.i420 import split_planes
from sama.corpus.kinds import (
    FINEST,
    KERNELS,
    WORST,
    banding,
    between,
    defocus,
    enlarged,
    film_grain,
    sharpen,
    shrunk,
)
from sama.corpus.vmaf import VmafLabeller
from sama.errors import MissingLibraryError

KEPT: Mapping[str, int] = {"compress_level": 1}  # at Pillow's level 6, writing PNG would be most of the time
FORMATS = {"webp": "webp", "avif": "avif", "jpeg2000": "jpg_2000"}  # Pillow's names of what it may lack
SUBSAMPLING = ("4:2:0", "4:2:0", "4:2:0", "4:4:4")  # most files are 4:2:0
MOST_SHIFT = 7  # pixels between the grids of two JPEG files: 0 would be the same grid
AWFUL = 0.95  # share of its own range that a codec has at most in a mixture

Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
Encode = Callable[[np.ndarray, float, np.random.Generator], Stream]


def kept(frames: np.ndarray) -> Stream:
    """A frame for a lossless file."""
    return Stream(frames, "png", KEPT)


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """A frame of I420 as RGB, uint8 [H, W, 3]; chroma is enlarged smoothly, as readers of JPEG do it."""
    y, *chroma = split_planes(frame)
    full = [np.asarray(Image.fromarray(plane).resize(y.shape[::-1], Image.Resampling.BILINEAR)) for plane in chroma]
    picture = av.VideoFrame.from_ndarray(np.stack([y, *full]), format="yuv444p", channel_last=False)
    return picture.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG").to_ndarray()


def as_frames(pixels: np.ndarray) -> np.ndarray:
    """RGB as one frame of I420, uint8 [1, H * 3/2, W]."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG").to_ndarray()[None]


def encode(pixels: np.ndarray, stream: Stream) -> bytes:
    """The bytes of an image file, by the stream's codec and options."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, stream.codec, **stream.options)
    return buffer.getvalue()


def write_still(path: Path, stream: Stream) -> None:
    """Write the first frame of a stream. Encoded in memory: a full disk is then said by the system, not by a codec."""
    path.write_bytes(encode(as_rgb(stream.frames[0]), stream))


def coded(stream: Stream, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A frame as it decodes after the stream's codec, I420.

    shift: right and down, in pixels, of the picture against the codec's grid of blocks
    """
    right, down = shift
    pixels = np.pad(as_rgb(stream.frames[0]), ((down, 0), (right, 0), (0, 0)), mode="edge")
    with Image.open(io.BytesIO(encode(pixels, stream))) as image:
        return as_frames(np.asarray(image.convert("RGB"))[down:, right:])


# Codecs: (frame, share of the worst, generator for what is drawn) -> Stream


def jpeg(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    """Quality 95 to 3; the quality that matters to people is at the lower end."""
    quality = round(between(share**0.55, 95, 3))
    return Stream(frames, "jpeg", {"quality": quality, "subsampling": str(rng.choice(SUBSAMPLING))})


def webp(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    return Stream(frames, "webp", {"quality": round(between(share, 92, 0)), "method": int(rng.integers(2, 5))})


def avif(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    options = {"quality": round(between(share**0.8, 85, 2)), "subsampling": str(rng.choice(SUBSAMPLING))}
    return Stream(frames, "avif", {**options, "speed": int(rng.integers(7, 10)), "max_threads": 1})


def jpeg2000(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    """An eighth to a 480th of the bytes, evenly on a logarithmic scale."""
    ratio = round(8 * 60.0**share, 1)
    return Stream(frames, "jpeg2000", {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True})


def hevc(frames: np.ndarray, share: float, rng: np.random.Generator) -> Stream:
    """One intra frame of HEVC: what a HEIC file holds."""
    preset = str(rng.choice(["superfast", "faster", "medium"]))
    params = "pools=none:frame-threads=1:wpp=0:log-level=none"
    return Stream(frames, "libx265", {"preset": preset, "crf": f"{between(share, 16, 49):.2f}", "x265-params": params})


def require(chosen: Mapping[str, Kind], ffmpeg: Ffmpeg) -> None:
    """`MissingLibraryError` where Pillow or FFmpeg lacks what the chosen kinds write."""
    uses: dict[str, tuple[str, ...]] = {"webp": ("webp",), "avif": ("avif",), "jpeg2000": ("jpeg2000",)}
    uses |= {name: ("webp", "avif") for name in ("shrunk+codec", "noise+codec")}
    needed = {form for name in chosen for form in uses.get(name, ())}
    if missing := sorted(form for form in needed if not features.check(FORMATS[form])):
        left = ",".join(name for name in chosen if not set(uses.get(name, ())) & set(missing))
        raise MissingLibraryError(
            f"Pillow {Image.__version__} cannot write {', '.join(missing)}: pip install -U 'pillow>=11.3' brings one "
            f"that can; or do without: --kinds {left}"
        )
    if "hevc-intra" in chosen:
        ffmpeg.require(["libx265"])


def still_kinds(ffmpeg: Ffmpeg) -> dict[str, Kind]:
    """All kinds by name; HEVC is that FFmpeg's."""

    def file(name: str, codec: Encode) -> Kind:
        return Kind(0, 1, "share of the worst", lambda f, s, c: codec(f, s, seeded(c, name, s)))

    def pixels(name: str, change: Change) -> Callable[[np.ndarray, float, str], Stream]:
        return lambda f, s, c: kept(change(f, s, seeded(c, name, s)))

    def mixed(name: str, apply: Callable[[np.ndarray, float, float, np.random.Generator], Stream]) -> Kind:
        """Two steps, each with a share of its worst that is drawn."""

        def mix(frames, share, content):
            rng = seeded(content, name, share)
            first, second = share * rng.uniform(0.3, 1, 2)
            return apply(frames, first, AWFUL * second, rng)

        return Kind(FINEST, WORST, "share of the worst", mix)

    def newer(frames, share, rng):
        return (webp, avif)[rng.integers(2)](frames, share, rng)

    def kernel(rng):
        return str(rng.choice(list(KERNELS)))

    def shrunk_then(codec, frames, a, b, rng):
        small = coded(codec(shrunk(frames, 1.2 + 3.8 * a), b, rng))
        return kept(enlarged(small, frames, kernel(rng)))

    def noisy(frames, sigma, rng):
        return noise(frames, sigma, str(rng.integers(1 << 30)))

    def twice(frames, a, b, rng):
        right, down = (int(step) for step in rng.integers(0, MOST_SHIFT + 1, 2))
        return jpeg(coded(jpeg(frames, AWFUL * a, rng), (right, down)), b, rng)

    return {
        "jpeg": file("jpeg", jpeg),
        "webp": file("webp", webp),
        "avif": file("avif", avif),
        "jpeg2000": file("jpeg2000", jpeg2000),
        "hevc-intra": Kind(
            0, 1, "share of the worst", pixels("hevc-intra", lambda f, s, r: ffmpeg.transcode(hevc(f, s, r)))
        ),
        "blur": Kind(0.4, 4, "sigma, pixels", pixels("blur", lambda f, s, r: blur(f, s)), bend=1.8),
        "defocus": Kind(0.5, 6, "radius, pixels", pixels("defocus", lambda f, s, r: defocus(f, s)), bend=1.8),
        "motion-blur": Kind(1.5, 18, "pixels", lambda f, s, c: kept(motion_blur(f, s, c)), bend=1.8),
        "noise": Kind(1, 40, "sigma, grey levels", pixels("noise", noisy), bend=1.6),
        "grain": Kind(1, 40, "grey levels", pixels("grain", film_grain), bend=1.6),
        "enlarged": Kind(
            1.2,
            8,
            "factor",
            pixels("enlarged", lambda f, s, r: enlarged(shrunk(f, s), f, kernel(r))),
            bend=1.3,
        ),
        "sharpen": Kind(
            0.3, 6, "amount", pixels("sharpen", lambda f, s, r: sharpen(f, s, r.uniform(0.7, 2.5))), bend=1.5
        ),
        "banding": Kind(2, 40, "grey levels", pixels("banding", lambda f, s, r: banding(f, s)), bend=1.5),
        "shrunk+jpeg": mixed("shrunk+jpeg", partial(shrunk_then, jpeg)),
        "shrunk+codec": mixed("shrunk+codec", partial(shrunk_then, newer)),
        "blur+jpeg": mixed("blur+jpeg", lambda f, a, b, r: jpeg(blur(f, 0.4 + 2.6 * a), b, r)),
        "noise+jpeg": mixed("noise+jpeg", lambda f, a, b, r: jpeg(noisy(f, 1 + 32 * a, r), b, r)),
        "noise+codec": mixed("noise+codec", lambda f, a, b, r: newer(noisy(f, 1 + 32 * a, r), b, r)),
        "sharpen+jpeg": mixed(
            "sharpen+jpeg", lambda f, a, b, r: jpeg(sharpen(f, 0.3 + 3 * a, r.uniform(0.7, 2)), b, r)
        ),
        "jpeg+sharpen": mixed(
            "jpeg+sharpen", lambda f, a, b, r: kept(sharpen(coded(jpeg(f, b, r)), 0.3 + 2.5 * a, r.uniform(0.7, 2)))
        ),
        "jpeg-twice": mixed("jpeg-twice", twice),
    }


class StillLabeller(VmafLabeller):
    """VMAF of still images. The reference goes through RGB, as every version does: the pristine file equals it."""

    def prepare(self, name: str, pristine: np.ndarray) -> Callable[[np.ndarray], dict[str, float | str]]:
        return super().prepare(name, as_frames(as_rgb(pristine[0])))
