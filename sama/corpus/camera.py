"""Undegraded frames of photographs, clips and collages, as a camera would take them.

A photograph becomes a clip through a camera that pans, zooms and shakes a little; a collage besides has objects that
move before it; a clip keeps its own motion. All functions return I420 frames, uint8 [T, H * 3/2, W], and draw what is
random from a generator that the content's name seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from sama.corpus.codec import transcode
from sama.corpus.collage import collage, cutout
from sama.corpus.degrade import seeded, x264
from sama.corpus.i420 import change_planes, split_planes


def yuv_planes(image: Image.Image) -> list[Image.Image]:
    """Y, U and V (BT.709, limited range) of an RGB image, each of its full size."""
    frame = av.VideoFrame.from_image(image).reformat(format="yuv444p", dst_colorspace="ITU709")
    return [Image.fromarray(plane) for plane in frame.to_ndarray(channel_last=False)]


def pan(
    planes: Sequence[Image.Image],
    size: tuple[int, int],
    num_frames: int,
    rng: np.random.Generator,
    *,
    region: tuple[float, float, float, float] = (0, 0, 1, 1),
    scale: float = 1,
    pace: float = 1,
    kernel: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """A photograph seen through a camera that pans, zooms and shakes.

    planes: Y, U, V of the photograph, of one size. size: width and height of the frames, even
    region: left, top, right, bottom within which the camera moves, as shares of the photograph
    scale: pixels of a frame per pixel of the photograph, where the region leaves room for it
    pace: speed of the motion; at 0 the camera stands still
    kernel: of the resampling. At a scale of 1/1.4 or less the frames are equally sharp wherever the camera stands
    """
    frame_width, frame_height = size
    turns, phases = rng.uniform(0.35, 0.9, 3), rng.uniform(0, 1, 3)
    time = np.arange(num_frames) / 64 * pace
    across, down, zoom = (np.sin(2 * np.pi * (turn * time + phase)) for turn, phase in zip(turns, phases))
    shake = np.cumsum(rng.normal(0, 0.25, (2, num_frames)), axis=1) * min(pace, 1)
    left, top, right, bottom = np.multiply(region, [*planes[0].size, *planes[0].size])
    frames = np.empty((num_frames, frame_height * 3 // 2, frame_width), np.uint8)
    for t, frame in enumerate(frames):
        width = min(frame_width / scale * (1.02 + 0.06 * zoom[t]), right - left)
        height = min(width * frame_height / frame_width, bottom - top)
        width = min(height * frame_width / frame_height, right - left)  # by rounding it can be more
        x = left + np.clip((right - left - width) * (0.5 + 0.48 * across[t]) + shake[0, t], 0, right - left - width)
        y = top + np.clip((bottom - top - height) * (0.5 + 0.48 * down[t]) + shake[1, t], 0, bottom - top - height)
        for out, plane in zip(split_planes(frame), planes):
            out[:] = plane.resize(out.shape[::-1], kernel, (x, y, x + width, y + height))
    return frames


def play(path: Path, shot: tuple[int, int], size: tuple[int, int], num_frames: int, scale: float = 1) -> np.ndarray:
    """The middle of a clip's frames, resized.

    shot: first and last frame taken; played forwards and backwards in turn where it is shorter than `num_frames`
    size: width and height of the frames returned, even. scale: their pixels per pixel of the clip
    """
    first, last = shot
    width, height = size
    with av.open(str(path), "r") as container:
        decoded = islice(container.decode(video=0), first, last + 1)
        shown = [frame.reformat(format="yuv420p") for frame in decoded]
    there_and_back = [*range(len(shown)), *range(len(shown) - 2, 0, -1)]
    frames = np.empty((num_frames, height * 3 // 2, width), np.uint8)
    for t, frame in enumerate(frames):
        picture = shown[there_and_back[t % len(there_and_back)]].to_ndarray()
        left = (picture.shape[1] - width / scale) / 2
        top = (picture.shape[0] * 2 // 3 - height / scale) / 2
        for n, (out, plane) in enumerate(zip(split_planes(frame), split_planes(picture))):
            part = 2 if n else 1
            box = (left / part, top / part, plane.shape[1] - left / part, plane.shape[0] - top / part)
            out[:] = Image.fromarray(plane).resize(out.shape[::-1], Image.Resampling.BICUBIC, box)
    return frames


def film_collage(
    name: str, photographs: Sequence[Image.Image], size: tuple[int, int], num_frames: int, *, varied: bool = True
) -> np.ndarray:
    """A collage filmed by a camera that stands or moves, often with objects that move before it.

    name: what everything random is seeded by. photographs: RGB. varied: with a random look (`vary_look`)
    """
    rng = seeded(name)
    width, height = size
    scene = collage(int(width * 1.35), int(height * 1.35), photographs, rng)
    pace = float((0, rng.uniform(0.05, 0.3), 1)[rng.integers(3)])
    frames = pan(yuv_planes(scene), size, num_frames, seeded(name), pace=pace)
    for _ in range(rng.integers(0 if pace else 1, 5)):
        move(frames, *cutout(int(rng.uniform(0.1, 0.6) * min(width, height)), photographs, rng), rng)
    return vary_look(frames, rng) if varied else frames


def move(frames: np.ndarray, picture: Image.Image, mask: Image.Image, rng: np.random.Generator) -> None:
    """Paste a cutout (RGB and its mask, L) into the frames, in place, along a random smooth path."""
    parts = yuv_planes(picture)
    height, width = frames.shape[1] * 2 // 3, frames.shape[2]
    time = np.arange(len(frames)) / 64
    start = rng.uniform(-0.2, 0.8, 2) * (width, height)
    way, swing = rng.normal(0, 0.4, 2) * (width, height), rng.exponential(0.08, 2) * (width, height)
    turns, phases = rng.uniform(0.3, 1.5, 2), rng.uniform(0, 1, 2)
    path = start + time[:, None] * way + swing * np.sin(2 * np.pi * (turns * time[:, None] + phases))
    for frame, place in zip(frames, path):
        for n, (plane, part) in enumerate(zip(split_planes(frame), parts)):
            by = 2 if n else 1
            corner = np.floor(place / by).astype(int)
            x, y = (place / by - corner) * by
            canvas = Image.fromarray(plane)
            shifted, shape = (_shifted(image, by, x, y) for image in (part, mask))
            canvas.paste(shifted, tuple(corner.tolist()), shape)
            plane[:] = np.asarray(canvas)


def _shifted(image: Image.Image, by: int, x: float, y: float) -> Image.Image:
    """The image reduced by a factor of 1 or 2, its content moved right by x and down by y of its original pixels."""
    width, height = image.size
    return image.transform(
        (width // by, height // by), Image.Transform.AFFINE, (by, 0, -x, 0, by, -y), Image.Resampling.BILINEAR
    )


def vary_look(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a clip a random look of what differs between cameras and is no fault: softness or sharpening, contrast,
    grain, a light compression. A network that is trained on such clips does not take these for degradations."""
    focus = rng.random()
    soft = rng.uniform(0.3, 0.8) if focus < 0.4 else 0
    sharpening, radius = (rng.uniform(0.2, 1.2) if focus > 0.7 else 0), rng.uniform(0.6, 1.5)
    contrast, colour, light = rng.uniform(0.5, 1.3), rng.uniform(0.3, 1.2), rng.uniform(-30, 30)
    grain, clump = (rng.uniform(0.3, 3) if rng.random() < 0.6 else 0), rng.uniform(0.3, 0.7)

    def change(plane, n):
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

    frames = change_planes(frames, change)
    if rng.random() < 0.3:
        frames = transcode(x264(frames, rng.uniform(14, 23)))
    return frames


def take(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clip as a camera of its own would have recorded it: soft lenses, noise of the sensor and what is left of it,
    sharpening, tone, a light compression. Unlike `vary_look` it makes noise depend on light, and sharpens it.

    Masters of one origin look alike, crisp and clean. A network that is trained on such takes softness and noise of any
    other camera for faults; and it cannot see that blur also removes noise, where there was none.
    """
    soft = rng.uniform(0.3, 1.2) if rng.random() < 0.6 else 0
    noise, clump = (np.exp(rng.uniform(np.log(0.4), np.log(4))) if rng.random() < 0.65 else 0), rng.uniform(0, 0.7)
    shot = rng.uniform(0, 1)  # share of the noise's power that grows with light
    amount, radius = (rng.uniform(0.2, 1.1) if rng.random() < 0.4 else 0), rng.uniform(0.6, 1.3)
    contrast, colour, light = rng.uniform(0.6, 1.2), rng.uniform(0.4, 1.2), rng.uniform(-25, 25)
    rate = rng.uniform(14, 22) if rng.random() < 0.25 else 0

    def change(plane, n):
        plane = plane.astype(np.float32)
        if soft:
            plane = gaussian_filter(plane, soft / (2 if n else 1), truncate=3)
        plane = 128 + (plane - 128) * np.float32(colour if n else contrast) + np.float32(0 if n else light)
        if noise:
            field = gaussian_filter(rng.standard_normal(plane.shape, np.float32), clump, truncate=3)
            power = 1 - shot if n else 1 - shot + shot * np.clip(plane, 16, 235) / 110
            plane += field * np.float32((0.5 if n else 1) * noise / field.std()) * np.sqrt(power)
        if amount and not n:
            plane += np.float32(amount) * (plane - gaussian_filter(plane, radius, truncate=3))
        return np.clip(plane, 16, 240 if n else 235)

    frames = change_planes(frames, change)
    return transcode(x264(frames, rate)) if rate else frames
