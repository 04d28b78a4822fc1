"""The contents that masters give: parts of photographs, filmed, and shots of videos, each at a size of its own.

Each follows `sama.corpus.build.Content`. Parts of one photograph do not overlap, shots of one video neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import av
import numpy as np
from PIL import Image

from sama.corpus.camera import pan, take, yuv_planes
from sama.corpus.degrade import seeded
from sama.corpus.i420 import split_planes
from sama.corpus.masters import Master, rows_of
from sama.decode import open_video
from sama.decode.images import read_image
from sama.errors import InputError
from sama.frames import Frame

SHAPES = ((16 / 9, 1.0), (16 / 9, 1.0), (16 / 9, 1.0), (4 / 3, 1.0), (1.0, 16 / 9), (16 / 9, 3 / 4))  # of 1 row
FREQUENCY = {360: 3, 480: 3, 540: 4, 720: 5, 1080: 4, 1440: 1, 2160: 1}  # of sizes, where a master allows them
GRIDS = ((1, 1), (2, 1), (2, 2), (3, 2))  # how a photograph is divided
ROOM = 1.04  # of the camera's, at least, in units of the frame


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


@dataclass(frozen=True)
class MasterContent:
    """A content of a set made of masters.

    kind: "photograph", whose `box` a camera films, or "video", of which frames first..last are shown
    shrink: pixels of the master per pixel of the frames, along one side
    seed: of the camera's motion
    look: whether the frames get the look of a camera of their own (`camera.take`)
    """

    name: str
    group: str
    split: str
    kind: Literal["photograph", "video"]
    path: str
    width: int
    height: int
    box: Box
    shrink: float
    first: int = 0
    last: int = 0
    seed: int = 0
    look: bool = False

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def pristine(self, num_frames: int) -> np.ndarray:
        """As `sama.corpus.build.Content.pristine`."""
        frames = self._frames(num_frames)
        return take(frames, seeded(self.seed, self.name, "look")) if self.look else frames

    def _frames(self, num_frames: int) -> np.ndarray:
        """As the master has them."""
        return (self._film if self.kind == "photograph" else self._play)(num_frames)

    def _film(self, num_frames: int) -> np.ndarray:
        rng = seeded(self.seed, self.name, "camera")
        pace = float((0.0, rng.uniform(0.05, 0.3), rng.uniform(0.3, 1), 1.0)[rng.integers(4)])
        return self._seen(self._planes(), num_frames, rng, pace)

    def _planes(self) -> list[Image.Image]:
        """Y, U, V of the photograph's part."""
        part = _pixels(self.path)[self.box.top : self.box.bottom, self.box.left : self.box.right]
        return yuv_planes(Image.fromarray(np.ascontiguousarray(part)))

    def _seen(self, planes: list[Image.Image], num_frames: int, rng: np.random.Generator, pace: float) -> np.ndarray:
        """The photograph's part through a camera that the generator moves."""
        kernel = Image.Resampling.LANCZOS
        return pan(planes, (self.width, self.height), num_frames, rng, scale=1 / self.shrink, pace=pace, kernel=kernel)

    def _play(self, num_frames: int) -> np.ndarray:
        """The shot, forwards and backwards in turn where it is shorter."""
        with open_video(self.path, decoder="pyav") as video:
            shown = [self._fit(frame) for _, frame in video.frames(range(self.first, self.last + 1))]
        order = [*range(len(shown)), *range(len(shown) - 2, 0, -1)]
        return np.stack([shown[order[t % len(order)]] for t in range(num_frames)])

    def _fit(self, frame: Frame) -> np.ndarray:
        """The box of a frame, at the content's size: only cut where it is not to shrink."""
        out = np.empty((self.height * 3 // 2, self.width), np.uint8)
        for n, (plane, target) in enumerate(zip(bt709_planes(frame), split_planes(out))):
            left, top, right, bottom = (edge // (2 if n else 1) for edge in self.box)
            part = plane[top:bottom, left:right]
            if part.shape != target.shape:
                picture = Image.fromarray(np.ascontiguousarray(part))
                part = np.asarray(picture.resize(target.shape[::-1], Image.Resampling.LANCZOS))
            target[:] = part
        return out


class StillContent(MasterContent):
    """The same for a set of still images."""

    def _frames(self, num_frames: int) -> np.ndarray:
        """Views of a photograph, each from a place of its own, or frames spread over a shot; nothing in between is
        made or kept."""
        if self.kind == "photograph":
            planes = self._planes()
            views = [seeded(self.seed, self.name, "view", n) for n in range(num_frames)]
            return np.concatenate([self._seen(planes, 1, rng, 0.0) for rng in views])
        length = self.last - self.first + 1
        places = [self.first + (2 * n + 1) * length // (2 * num_frames) for n in range(num_frames)]
        with open_video(self.path, decoder="pyav") as video:
            shown = {place: self._fit(frame) for place, frame in video.frames(sorted(set(places)))}
        return np.stack([shown[place] for place in places])


@lru_cache(maxsize=2)  # parts of one photograph follow each other
def _pixels(path: str) -> np.ndarray:
    return read_image(path)


def bt709_planes(frame: Frame) -> list[np.ndarray]:
    """Y, U, V of a decoded frame in BT.709, limited range, 4:2:0; odd last rows and columns are cut off."""
    height, width = frame.height - frame.height % 2, frame.width - frame.width % 2
    if frame.layout == "rgb":
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.planes[0][:height, :width]), format="rgb24")
        return split_planes(picture.reformat(format="yuv420p", dst_colorspace="ITU709").to_ndarray())
    y, u, v = (np.asarray(plane) for plane in frame.channels())
    planes = [y[:height, :width], u[: height // 2, : width // 2], v[: height // 2, : width // 2]]
    if frame.matrix == "bt709" and not frame.full_range:
        return planes
    joined = np.concatenate([np.ascontiguousarray(plane).ravel() for plane in planes])
    picture = av.VideoFrame.from_ndarray(joined.reshape(height * 3 // 2, width), format="yuv420p")
    converted = picture.reformat(
        format="yuv420p",
        src_colorspace="ITU709" if frame.matrix == "bt709" else "ITU601",
        dst_colorspace="ITU709",
        src_color_range="JPEG" if frame.full_range else "MPEG",
        dst_color_range="MPEG",
    )
    return split_planes(converted.to_ndarray())


def contents_of(
    master: Master, name: str, group: str, *, most: int, sizes: Sequence[int], seed: int
) -> list[MasterContent]:
    """Up to `most` contents of a master, in random order of size; none where no size fits.

    name: begins theirs; group: what shares its pictures; sizes: rows to choose from, as 720 for 720p
    """
    rng = seeded(seed, name, "contents")
    box = Box(*master.box)
    make = _of_photograph if master.kind == "photograph" else _of_video
    return make(master, box, name, group, most, sizes, rng, seed)


def _of_photograph(
    master: Master,
    box: Box,
    name: str,
    group: str,
    most: int,
    sizes: Sequence[int],
    rng: np.random.Generator,
    seed: int,
) -> list[MasterContent]:
    grids = [grid for grid in GRIDS if grid[0] * grid[1] <= most]
    grids = [grid if box.width >= box.height else grid[::-1] for grid in grids]
    grids = [grid for grid in grids if _largest(box.width // grid[0], box.height // grid[1], master.shrink, sizes)]
    if not grids:
        return []
    columns, rows = grids[-1] if rng.random() < 0.7 else grids[rng.integers(len(grids))]
    contents = []
    for n in range(columns * rows):
        across, down = n % columns, n // columns
        cell = Box(
            box.left + box.width * across // columns,
            box.top + box.height * down // rows,
            box.left + box.width * (across + 1) // columns,
            box.top + box.height * (down + 1) // rows,
        )
        shapes = [shape for shape in SHAPES if _fits(cell, shape, master.shrink, sizes)]
        shape = shapes[rng.integers(len(shapes))] if shapes else SHAPES[0]
        fitting = _fits(cell, shape, master.shrink, sizes)
        if not fitting:
            continue
        size = draw_size(fitting, rng)
        width, height = (4 * round(size * side / 4) for side in shape)
        most_shrink = min(cell.width / (width * ROOM), cell.height / (height * ROOM))
        shrink = float(rng.uniform(master.shrink, min(most_shrink, 2.2 * master.shrink)))
        roam = min(most_shrink / shrink, float(rng.uniform(1, 1.5))) * ROOM
        wide, high = min(int(width * shrink * roam), cell.width), min(int(height * shrink * roam), cell.height)
        left = cell.left + int(rng.integers(cell.width - wide + 1))
        top = cell.top + int(rng.integers(cell.height - high + 1))
        part = Box(left, top, left + wide, top + high)
        contents.append(
            MasterContent(
                f"{name}-{n}", group, "", "photograph", master.path, width, height, part, round(shrink, 4), seed=seed
            )
        )
    return contents


def _fits(cell: Box, shape: tuple[float, float], shrink: float, sizes: Iterable[int]) -> list[int]:
    """The sizes whose frames, of that shape, the camera can take of a part of a photograph."""
    return [
        size
        for size in sizes
        if cell.width >= size * shape[0] * shrink * ROOM and cell.height >= size * shape[1] * shrink * ROOM
    ]


def _largest(width: int, height: int, shrink: float, sizes: Iterable[int]) -> int:
    cell = Box(0, 0, width, height)
    return max((size for shape in SHAPES for size in _fits(cell, shape, shrink, sizes)), default=0)


def _of_video(
    master: Master,
    box: Box,
    name: str,
    group: str,
    most: int,
    sizes: Sequence[int],
    rng: np.random.Generator,
    seed: int,
) -> list[MasterContent]:
    shots = master.shots
    if len(shots) > most:
        shots = [shots[(2 * n + 1) * len(shots) // (2 * most)] for n in range(most)]
    rows = rows_of(box.width, box.height)
    fitting = [size for size in sizes if size <= rows / master.shrink]
    contents = []
    for n, (first, last) in enumerate(shots):
        if not fitting:
            break
        size = draw_size(fitting, rng)
        shrink = max(rows / size, 1.0)
        part = box
        if shrink < 1.01:  # cut instead
            shrink, width, height = 1.0, box.width // 4 * 4, box.height // 4 * 4
            left, top = ((length % 4) // 2 * 2 for length in (box.width, box.height))
            part = Box(box.left + left, box.top + top, box.left + left + width, box.top + top + height)
        else:
            width, height = (4 * round(length / shrink / 4) for length in (box.width, box.height))
        contents.append(
            MasterContent(
                f"{name}-{n}", group, "", "video", master.path, width, height, part, round(shrink, 4), first, last, seed
            )
        )
    return contents


def draw_size(sizes: Sequence[int], rng: np.random.Generator) -> int:
    """One of the sizes, the usual ones more often."""
    weights = np.array([FREQUENCY.get(size, 2) for size in sizes], float)
    return int(sizes[rng.choice(len(sizes), p=weights / weights.sum())])


def names_of(paths: Sequence[str]) -> dict[str, str]:
    """A short name for each file, for file names and as a seed, without its folder unless two are the same."""
    names: dict[str, str] = {}
    taken: dict[str, int] = {}
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", path.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0])
        stem = stem.strip("-").lower()[:32] or "master"
        taken[stem] = taken.get(stem, 0) + 1
        names[path] = stem if taken[stem] == 1 else f"{stem}-{chr(96 + min(taken[stem], 26))}{taken[stem]}"
    return names


def with_splits(
    contents: Sequence[MasterContent], val_share: float, test_share: float, seed: int
) -> list[MasterContent]:
    """The contents, their groups divided at random into train, val and test.

    With two groups one is for val; with one, all is for training. `InputError` for shares that leave nothing to train
    on.
    """
    if not (0 <= val_share < 1 and 0 <= test_share < 1 and val_share + test_share < 1):
        raise InputError(f"shares of val and test must leave something to train on; got {val_share}, {test_share}")
    groups = sorted({content.group for content in contents}, key=lambda group: seeded(seed, group, "split").random())
    count = len(groups)
    val = max(round(count * val_share), 1) if count > 1 and val_share else 0
    test = max(round(count * test_share), 1) if count > 2 and test_share else 0
    split = {group: "val" if n < val else "test" if n < val + test else "train" for n, group in enumerate(groups)}
    return [replace(content, split=split[content.group]) for content in contents]
