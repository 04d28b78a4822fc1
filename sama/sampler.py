"""From decoded pixels to the model's input: `VideoSampler` and `ImageSampler` plan, then follow the plan with a kernel.

s = sama.VideoSampler("sama")
x = s(clip)            # uint8 [32, 1080, 1920, 3] -> float32 [1, 3, 32, 224, 224], normalised
x = s.read("a.mp4")    # four clips of a file     -> float32 [4, 3, 32, 224, 224], frame by frame as it is decoded
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sama.backends import Backend, Sampler, Source, device_of
from sama.errors import InputError
from sama.frames import Clip, Frame
from sama.kernels import enlarge, reference
from sama.kernels.layout import PATCH, OutputLayout, shape
from sama.plan import (
    IMAGE_MODES,
    Draws,
    Plan,
    draw_flip_angle,
    draw_image,
    draw_video,
    frame_indices,
    plan_image,
    plan_video,
)

if TYPE_CHECKING:
    from sama.decode import Video, VideoInfo
    from sama.plan import Generator

ENLARGE_BELOW = 256  # images with a shorter side are enlarged to it before anything else
LARGEST_COPY = 1 << 22  # pixels of an enlarged image; beyond, only its taps are computed
LONGEST_SIDE = 1 << 24  # pixels: coordinates are float32
GROUP = 8  # frames that a GPU samples in one launch, and that wait for it: a multiple of a patch's


Pixels = np.ndarray | torch.Tensor
Clips = Pixels | Clip | Sequence[Pixels | Clip | Frame | Sequence[Frame]]
Images = Pixels | Sequence[Pixels]


class VideoSampler(Sampler):
    """Clips to the input of the video model (SAMA, section "Scaling and masking").

    mode: "sama", "sama-mix", "sama-c", "sama-swm", "sama-spm", "fragments" or "resize" (`sama.plan.VIDEO_MODES`)
    grid, fragment: fragments (rows, columns) of pixels (rows, columns); the input is grid * fragment pixels
    aligned: frames that share the draws of their offsets
    normalize: with ImageNet's mean and deviation; False leaves 0..255
    dtype: torch.float32, float16 or bfloat16
    backend: "reference" (slow, any device), "cpu" (numba), "triton" (GPU); "auto" is the fastest that can run
    layout: "video", or "patches" as the model embeds them (`sama.kernels.layout`)
    threads: of the CPU kernel; None is `torch.get_num_threads()`
    `InputError` for an unknown name or a size below 1.
    """

    def __init__(
        self,
        mode: str = "sama",
        grid: tuple[int, int] = (7, 7),
        fragment: tuple[int, int] = (32, 32),
        aligned: int = 32,
        normalize: bool = True,
        dtype: torch.dtype = torch.float32,
        backend: Backend = "auto",
        *,
        layout: OutputLayout = "video",
        threads: int | None = None,
    ):
        super().__init__(mode, grid, fragment, normalize, dtype, backend, layout, threads)
        if aligned < 1:
            raise InputError(f"aligned must be at least 1 frame; got {aligned}")
        self.aligned = aligned

    def __call__(
        self,
        clips: Clips,
        train: bool = False,
        draws: Draws | Sequence[Draws] | None = None,
        generator: Generator = None,
    ) -> torch.Tensor:
        """Sample one clip or a batch of clips that may differ in size.

        clips: uint8 [T, H, W, 3] tensor or array, or a `Clip`, or a list of `Frame`; or a list (or a [B, T, H, W, 3]
            batch) of those, all with T frames
        train: draw the offsets of the fragments, from `generator` (NumPy's, torch's, or a seed; None is fresh entropy);
            otherwise fragments are centred in their cells
        draws: `(u, v)` in place of the draw, or a list of them, one a clip: [Gh, Gw, ceil(T / aligned)], uniforms in
            [0, 1), whole pixels for "fragments"
        returns: [B, 3, T, Gh*fh, Gw*fw], or [B, T/2, Sh/4, Sw/4, 96] with layout="patches", on the device of the clips
        `InputError` or TypeError for a wrong shape, dtype, length or device.
        """
        sources = _video_sources(clips)
        pairs = self.draws([_size_of(s) for s in sources], len(sources[0]), train, draws, generator)
        plans = [self.plan(*_size_of(s), len(s), draws=pair) for s, pair in zip(sources, pairs, strict=True)]
        return self.run(plans, sources)

    def plan(self, height: int, width: int, frames: int = 32, *, draws: Draws | None = None) -> Plan:
        """The plan that this sampler follows for one clip."""
        return plan_video(
            self.mode,
            height,
            width,
            frames,
            grid=self.grid,
            fragment=self.fragment,
            aligned=self.aligned,
            draws=draws,
        )

    def draws(
        self,
        sizes: Sequence[tuple[int, int]],
        frames: int,
        train: bool = False,
        draws: Draws | Sequence[Draws] | None = None,
        generator: Generator = None,
    ) -> list[Draws | None]:
        """One pair of draws (u, v) for each clip: those given, or drawn in order with `train`; None is centred.

        sizes: height and width of each clip; frames: of every clip
        """
        if draws is not None:
            pairs = cast("list[Draws | None]", [draws] if len(draws) == 2 and np.ndim(draws[0]) == 3 else [*draws])
            if len(pairs) != len(sizes):
                raise InputError(
                    f"draws must be one pair (u, v) for each clip; got {len(pairs)} for {len(sizes)} clips"
                )
            return pairs
        if not train:
            return [None] * len(sizes)
        stream = _generator(generator)
        return [
            draw_video(
                self.mode,
                height,
                width,
                frames,
                grid=self.grid,
                fragment=self.fragment,
                aligned=self.aligned,
                generator=stream,
            )
            for height, width in sizes
        ]

    def read(
        self,
        path: str | os.PathLike[str],
        *,
        clip_len: int = 32,
        num_clips: int = 4,
        interval: int = 2,
        train: bool = False,
        generator: Generator = None,
        decoder: str = "auto",
    ) -> torch.Tensor:
        """Sample the clips of a video file while it is decoded: [num_clips, 3, clip_len, Sh, Sw], where the decoder's
        frames are: in main memory with "pyav".

        Only planned frames are decoded as far as the codec allows, none is converted to RGB, and each is let go once it
        is sampled, so that memory does not grow with the clip. Frames are chosen by `sama.frame_indices`.
        `sama.DecodeError` for a file that cannot be read.
        """
        from sama.decode import decode_with

        chosen: tuple[np.ndarray, list[Draws | None]] | None = None

        def read(video: Video) -> torch.Tensor:
            nonlocal chosen  # a second attempt samples the same
            chosen = chosen or self.choose(video.info, clip_len, num_clips, interval, train, generator)
            indices, draws = chosen
            video.guard.allow_clips(num_clips)
            return torch.stack(list(self.stream(video, indices, draws=draws)))

        return decode_with(read, path, decoder=decoder)

    def read_video(
        self,
        video: Video,
        *,
        clip_len: int = 32,
        num_clips: int = 4,
        interval: int = 2,
        train: bool = False,
        generator: Generator = None,
    ) -> torch.Tensor:
        """As `read`, of a video that is already open."""
        indices, draws = self.choose(video.info, clip_len, num_clips, interval, train, generator)
        return torch.stack(list(self.stream(video, indices, draws=draws)))

    def choose(
        self, info: VideoInfo, clip_len: int, num_clips: int, interval: int, train: bool, generator: Generator
    ) -> tuple[np.ndarray, list[Draws | None]]:
        """Frame numbers [num_clips, clip_len] and draws of the clips that `read` takes of a video."""
        generator = _generator(generator)
        indices = frame_indices(info.num_frames, clip_len, num_clips, interval, train, generator=generator)
        draws = self.draws([(info.height, info.width)] * num_clips, clip_len, train, None, generator)
        return indices.reshape(num_clips, clip_len), draws

    def stream(
        self, video: Video, indices: np.ndarray, *, draws: Sequence[Draws | None] | None = None
    ) -> Iterator[torch.Tensor]:
        """Sample clips of an open video while it is decoded, and yield each as soon as it is complete.

        indices: frame numbers, [clips, T], the clips in the order in which they end
        draws: one pair (u, v) a clip; None is centred
        yields: [3, T, Sh, Sw], or [T/2, Sh/4, Sw/4, 96] with layout="patches", clip after clip, where the frames are
        Only the clips that overlap at one moment are held, however many there are, and `GROUP` frames of each.
        """
        size = video.info.height, video.info.width
        clips, clip_len = indices.shape
        plans = [self.plan(*size, clip_len, draws=pair) for pair in draws or [None] * clips]
        places = defaultdict(list)
        for clip, t in np.ndindex(clips, clip_len):
            places[int(indices[clip, t])].append((clip, t))
        ends = indices.max(1).tolist()
        open_clips: dict[int, _FrameByFrame | _InGroups] = {}
        kind: type[_FrameByFrame] | type[_InGroups] | None = None
        done = 0
        for index, frame in video.frames(places):
            if kind is None:  # the CPU kernel samples frame by frame, the others in groups
                kind = _FrameByFrame if self.choose_backend(device_of([[frame]])) == "cpu" else _InGroups
            for clip, t in places[index]:
                if clip not in open_clips:
                    open_clips[clip] = kind(self, plans[clip])
                open_clips[clip].add(frame, t)
            while done < clips and ends[done] <= index:
                yield open_clips.pop(done).finish()
                done += 1


class _FrameByFrame:
    """An open clip that samples each frame as it comes, on a CPU."""

    def __init__(self, sampler: VideoSampler, plan: Plan) -> None:
        self.out = torch.empty(shape(sampler.layout, plan.frames, *sampler.size), dtype=sampler.dtype)
        self.add = sampler.writer(plan, self.out)

    def finish(self) -> torch.Tensor:
        return self.out


class _InGroups:
    """An open clip that samples `GROUP` frames in one launch as soon as they are there, and lets them go."""

    def __init__(self, sampler: VideoSampler, plan: Plan) -> None:
        self.sampler, self.plan = sampler, plan
        self.groups: dict[int, dict[int, Frame]] = defaultdict(dict)  # frames that wait, by their place in the clip
        self.out: torch.Tensor | None = None

    def add(self, frame: Frame, t: int) -> None:
        start = t // GROUP * GROUP
        stop = min(start + GROUP, self.plan.frames)
        group = self.groups[start]
        group[t] = frame
        if len(group) == stop - start:
            plan = replace(self.plan, slots=self.plan.slots[start:stop])
            part = self.sampler.run([plan], [[group[place] for place in range(start, stop)]])[0]
            del self.groups[start]
            self._keep(part, start, stop)

    def _keep(self, part: torch.Tensor, start: int, stop: int) -> None:
        if self.out is None:
            size = shape(self.sampler.layout, self.plan.frames, *self.sampler.size)
            self.out = torch.empty(size, dtype=part.dtype, device=part.device)
        if self.sampler.layout == "patches":
            self.out[start // PATCH[0] : stop // PATCH[0]] = part
        else:
            self.out[:, start:stop] = part

    def finish(self) -> torch.Tensor:
        assert self.out is not None
        return self.out


class ImageSampler(Sampler):
    """Images to the input of the image model; the parameters are those of `VideoSampler`.

    mode: "sama", "sama-spm" or "fragment"
    Images whose shorter side is below 256 pixels are first enlarged to it as Pillow's bilinear filter does. Where that
    would take more than 4 megapixels (an image of 2 x 4000 would become one of 256 x 512000), the enlarged image is
    not made: what the input shows of it is computed tap by tap, the same values, by NumPy whatever the backend.
    """

    modes = IMAGE_MODES

    def __init__(
        self,
        mode: str = "sama",
        grid: tuple[int, int] = (8, 8),
        fragment: tuple[int, int] = (32, 32),
        normalize: bool = True,
        dtype: torch.dtype = torch.float32,
        backend: Backend = "auto",
        *,
        threads: int | None = None,
    ):
        super().__init__(mode, grid, fragment, normalize, dtype, backend, "video", threads)

    def __call__(
        self,
        images: Images,
        train: bool = False,
        draws: Draws | Sequence[Draws] | None = None,
        flip: bool | Sequence[bool] | None = None,
        angle: float | Sequence[float] | None = None,
        generator: Generator = None,
    ) -> torch.Tensor:
        """Sample one image or a batch of images of any sizes.

        images: uint8 [H, W, 3] tensor or array, or a list of them
        train: draw the offsets, a flip (probability 0.5) and an angle (uniform in [-45, 45] degrees), image by image
        draws, flip, angle: one for a single image or a list, in place of those draws; degrees counter-clockwise
        returns: [B, 3, Gh*fh, Gw*fw] on the device of the images
        `InputError` or TypeError for a wrong shape, dtype, length or device, or a side that would be enlarged to more
        than 2**24 pixels.
        """
        arrays = _image_arrays(images)
        sizes = [enlarged_size(*image.shape[:2]) for image in arrays]
        pairs, flips, angles = self._augmentation(sizes, train, draws, flip, angle, _generator(generator))
        plans = [
            plan_image(
                self.mode,
                height,
                width,
                grid=self.grid,
                fragment=self.fragment,
                draws=pair,
                flip=flip,
                angle=angle,
            )
            for (height, width), pair, flip, angle in zip(sizes, pairs, flips, angles)
        ]
        enlarged = [_enlarge(image, *size) for image, size in zip(arrays, sizes)]
        sources: dict[int, Source] = {k: source for k, source in enumerate(enlarged) if source is not None}
        if len(sources) == len(arrays):
            return self.run(plans, list(sources.values()))[:, :, 0]
        device = device_of([Clip("rgb", (image[None],)) for image in arrays])
        out = torch.empty(len(arrays), 3, *self.size, dtype=self.dtype, device=device)
        if sources:
            out[[*sources]] = self.run([plans[k] for k in sources], list(sources.values()))[:, :, 0]
        for k in sorted({*range(len(arrays))} - {*sources}):
            x = torch.from_numpy(enlarge.sample(_as_array(arrays[k]), plans[k]))[:, None]
            out[k] = reference.normalize(x, **self.scaling)[:, 0]
        return out

    def _augmentation(
        self,
        sizes: Sequence[tuple[int, int]],
        train: bool,
        draws: Draws | Sequence[Draws] | None,
        flip: bool | Sequence[bool] | None,
        angle: float | Sequence[float] | None,
        generator: Generator,
    ) -> tuple[list[Draws | None], list[bool], list[float | None]]:
        """Draws, flip and angle of every image: those given, else drawn in training, else none."""
        count = len(sizes)
        if draws is not None and count == 1 and np.ndim(draws[0]) in (2, 3) and len(draws) == 2:
            draws = cast("list[Draws]", [draws])
        given = {"draws": draws, "flip": flip, "angle": angle}
        columns: dict[str, list[Any]] = {}
        for name, value in given.items():
            values = list(value) if isinstance(value, Sequence | np.ndarray | torch.Tensor) else [value] * count
            if len(values) != count:
                raise InputError(f"{name} must be one for each image; got {len(values)} for {count} images")
            columns[name] = values
        if train:
            for k, size in enumerate(sizes):
                pair = draw_image(self.mode, *size, grid=self.grid, fragment=self.fragment, generator=generator)
                drawn = pair, *draw_flip_angle(generator)
                for column, one in zip(columns.values(), drawn):
                    column[k] = one if column[k] is None else column[k]
        return columns["draws"], [bool(flip) for flip in columns["flip"]], columns["angle"]


def _generator(generator: Generator) -> Generator:
    """One stream for all draws of a call: a seed, or nothing, becomes a generator."""
    return generator if isinstance(generator, torch.Generator) else np.random.default_rng(generator)


def _video_sources(clips: Clips) -> list[Source]:
    """The clips of a batch, one source each."""
    if isinstance(clips, Clip):
        return [clips]
    if isinstance(clips, torch.Tensor | np.ndarray):
        if clips.ndim == 5:
            return [_clip(clip) for clip in clips]
        return [_clip(clips)]
    entries: list[Any] = list(clips)
    if not entries:
        raise InputError("no clips: got an empty list, expected at least one clip")
    if isinstance(entries[0], Frame):
        return [_same_size(entries)]
    return [clip if isinstance(clip, Clip) else _source(clip) for clip in entries]


def _source(clip: Pixels | Sequence[Frame]) -> Source:
    return _clip(clip) if isinstance(clip, torch.Tensor | np.ndarray) else _same_size(list(clip))


def _clip(clip: Pixels) -> Clip:
    if clip.ndim != 4 or clip.shape[3] != 3 or 0 in clip.shape:
        raise InputError(f"a clip must have shape [T, H, W, 3] with T, H, W from 1 on; got {list(clip.shape)}")
    if str(clip.dtype).removeprefix("torch.") != "uint8":
        raise TypeError(f"a clip must be uint8, 0..255, as decoders give it; got {clip.dtype}")
    return Clip("rgb", (clip,))


def _same_size(frames: list[Frame]) -> list[Frame]:
    if not frames or not all(isinstance(frame, Frame) for frame in frames):
        kinds = sorted({type(frame).__name__ for frame in frames}) or "nothing"
        raise TypeError(
            f"a clip must be a [T, H, W, 3] tensor or array, a Clip, or a list of Frame; got a list of {kinds}"
        )
    sizes = {(frame.height, frame.width) for frame in frames}
    if len(sizes) != 1:
        raise InputError(f"frames of one clip must have the same size; got {sorted(sizes)} (height, width)")
    return frames


def _image_arrays(images: Images) -> list[Pixels]:
    if isinstance(images, torch.Tensor | np.ndarray):
        images = list(images) if images.ndim == 4 else [images]
    arrays: list[Pixels] = list(images)
    if not arrays:
        raise InputError("no images: got an empty list, expected at least one image")
    for image in arrays:
        if not isinstance(image, torch.Tensor | np.ndarray):
            raise TypeError(f"an image must be a uint8 [H, W, 3] tensor or array; got {type(image).__name__}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"an image must have shape [H, W, 3] with H and W from 1 on; got {list(image.shape)}")
        if str(image.dtype).removeprefix("torch.") != "uint8":
            raise TypeError(f"an image must be uint8, 0..255; got {image.dtype}")
    return arrays


def enlarged_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of an image as the published training makes them: `int(size * 256 / shorter side)`."""
    short = min(height, width)
    if short >= ENLARGE_BELOW:
        return height, width
    size = int(height * ENLARGE_BELOW / short), int(width * ENLARGE_BELOW / short)
    if max(size) > LONGEST_SIDE:
        raise InputError(
            f"an image of {width}x{height} pixels is too narrow: enlarged to {ENLARGE_BELOW} on its shorter side it "
            f"would have {max(size):,} on the longer; at most {LONGEST_SIDE:,}"
        )
    return size


def _enlarge(image: Pixels, height: int, width: int) -> Clip | None:
    """The image at that size, by Pillow where that is larger than it is; None where it would be a very large one."""
    if (height, width) != tuple(image.shape[:2]):
        if height * width > LARGEST_COPY:
            return None
        from PIL import Image

        enlarged = np.array(Image.fromarray(_as_array(image)).resize((width, height), Image.Resampling.BILINEAR))
        image = torch.from_numpy(enlarged).to(image.device) if isinstance(image, torch.Tensor) else enlarged
    return Clip("rgb", (image[None],))


def _as_array(image: Pixels) -> np.ndarray:
    return np.ascontiguousarray(image.cpu().numpy() if isinstance(image, torch.Tensor) else image)


def _size_of(source: Source) -> tuple[int, int]:
    return source[0].height, source[0].width
