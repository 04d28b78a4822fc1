"""From decoded pixels to the model's input: `VideoSampler` and `ImageSampler` plan, then follow the plan with a kernel.

s = sama.VideoSampler("sama")
x = s(clip)            # uint8 [32, 1080, 1920, 3] -> float32 [1, 3, 32, 224, 224], normalised
x = s.read("a.mp4")    # four clips of a file     -> float32 [4, 3, 32, 224, 224], frame by frame as it is decoded
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from sama.errors import InputError, MissingLibraryError
from sama.frames import Clip, Frame
from sama.kernels import enlarge, reference
from sama.kernels.layout import LAYOUTS, OutputLayout, shape
from sama.plan import (
    IMAGE_MODES,
    VIDEO_MODES,
    Draws,
    Plan,
    draw_flip_angle,
    draw_image,
    draw_video,
    frame_indices,
    plan_image,
    plan_video,
    resolve_mode,
)

if TYPE_CHECKING:
    from sama.decode import Video, VideoInfo
    from sama.plan import Generator

Backend = Literal["auto", "reference", "cpu", "triton"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "cpu", "triton")
MEAN = (123.675, 116.28, 103.53)  # of ImageNet, R, G, B in 0..255
STD = (58.395, 57.12, 57.375)
ENLARGE_BELOW = 256  # images with a shorter side are enlarged to it before anything else
LARGEST_COPY = 1 << 22  # pixels of an enlarged image; beyond, only its taps are computed
LONGEST_SIDE = 1 << 24  # pixels: coordinates are float32

Source = Clip | Sequence[Frame]


class _Sampler:
    """What both samplers share: settings, the choice of a kernel, the run of it."""

    modes = VIDEO_MODES

    def __init__(self, mode, grid, fragment, normalize, dtype, backend, layout, threads):
        self.mode = resolve_mode(mode, self.modes)
        self.grid, self.fragment = tuple(grid), tuple(fragment)
        if backend not in BACKENDS:
            raise InputError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        if layout not in LAYOUTS:
            raise InputError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"dtype must be torch.float32, float16 or bfloat16; got {dtype}")
        for name, pair in (("grid", self.grid), ("fragment", self.fragment)):
            if len(pair) != 2 or min(pair) < 1:
                raise InputError(f"{name} must be two sizes (rows, columns) from 1 on; got {pair}")
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, or None for torch's number; got {threads}")
        self.normalize, self.dtype, self.backend, self.layout, self.threads = normalize, dtype, backend, layout, threads

    def __repr__(self):
        return (
            f"{type(self).__name__}({self.mode!r}, grid={self.grid}, fragment={self.fragment}, "
            f"normalize={self.normalize}, dtype={self.dtype}, backend={self.backend!r}, layout={self.layout!r})"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.grid[0] * self.fragment[0], self.grid[1] * self.fragment[1]

    @property
    def _scaling(self) -> dict[str, tuple[float, float, float]]:
        return {"mean": MEAN, "std": STD} if self.normalize else {"mean": (0, 0, 0), "std": (1, 1, 1)}

    def _run(self, plans: list[Plan], sources: list[Source]) -> torch.Tensor:
        """Sample a batch: [B, *layout.shape(...)] on the device of the sources."""
        lengths = {plan.frames for plan in plans}
        if len(lengths) != 1:
            raise InputError(f"clips of one batch must have the same number of frames; got {sorted(lengths)}")
        device = _device(sources)
        out = torch.empty(len(plans), *shape(self.layout, lengths.pop(), *self.size), dtype=self.dtype, device=device)
        backend = self._choose(device)
        if backend == "triton":
            self._run_triton(plans, sources, out)
        elif backend == "cpu":
            self._run_cpu(plans, sources, out)
        else:
            for plan, source, part in zip(plans, sources, out):
                part.copy_(self._reference(plan, source))
        return out

    def _choose(self, device: torch.device) -> Backend:
        if self.backend == "auto":
            fast, module = {"cuda": ("triton", "triton"), "cpu": ("cpu", "numba")}.get(
                device.type, ("reference", "torch")
            )
            return fast if importlib.util.find_spec(module) else "reference"
        if self.backend == "cpu" and device.type != "cpu":
            raise InputError(f'backend "cpu" samples frames in main memory; got frames on {device}')
        if self.backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError(
                f'backend "triton" samples frames on a GPU; got frames on {device}. Move them there, use backend '
                '"auto", or set TRITON_INTERPRET=1 before the start to run the kernel in Triton\'s slow interpreter'
            )
        return self.backend

    def prepare(self, device: torch.device) -> None:
        """Compile the kernel that frames on a device most often need, so that later calls do not wait for it."""
        if self._choose(device) == "cpu":
            _cpu_kernel().prepare("yuv" if self.modes is VIDEO_MODES else "rgb", self.dtype)

    def _writer(self, plan: Plan, out: torch.Tensor):
        return _cpu_kernel().Writer(plan, out, layout=self.layout, **self._scaling)

    def _run_cpu(self, plans, sources, out):
        """Clips one after the other, each on all threads; pictures, of a millisecond each, side by side."""
        cpu, threads = _cpu_kernel(), self.threads or torch.get_num_threads()
        writers = [self._writer(plan, part) for plan, part in zip(plans, out)]
        if plans[0].frames > 1:
            for write, source in zip(writers, sources):
                cpu.sample(write, source, threads)
        elif threads == 1 or len(plans) == 1:
            for write, source in zip(writers, sources):
                cpu.sample(write, source, 1)
        else:
            with concurrent.futures.ThreadPoolExecutor(min(threads, len(plans))) as pool:
                list(pool.map(cpu.sample, writers, sources, itertools.repeat(1)))

    def _run_triton(self, plans, sources, out):
        """One launch for all RGB clips, one for corrected ones, one for all 4:2:0 clips, into the same output."""
        try:
            from sama.kernels import fused
        except ImportError as error:
            raise MissingLibraryError('backend "triton" needs Triton: pip install triton') from error
        groups = defaultdict(list)
        for place, source in enumerate(sources):
            frame = source[0]
            groups[frame.layout == "rgb", frame.correction is None, plans[place].mask_cell].append(place)
        for places in groups.values():
            fused.sample(
                [plans[place] for place in places],
                [_as_tensors(sources[place]) for place in places],
                out,
                layout=self.layout,
                places=places,
                **self._scaling,
            )

    def _reference(self, plan: Plan, source: Source) -> torch.Tensor:
        correction = source[0].correction
        if isinstance(source, Clip):
            clip = reference.to_rgb(replace(source, correction=None))
        else:
            clip = torch.stack([reference.to_rgb(replace(frame, correction=None)) for frame in source])
        x = reference.sample(clip, plan, correction)
        return reference.cut(reference.normalize(x, **self._scaling), self.layout)


class VideoSampler(_Sampler):
    """Clips to the input of the video model (SAMA, section "Scaling and masking").

    mode: "sama", "sama-mix", "sama-c", "sama-swm", "sama-spm" or "fragments"
    grid, fragment: fragments (rows, columns) of pixels (rows, columns); the input is grid * fragment pixels
    aligned: frames that share the draws of their offsets
    normalize: with ImageNet's mean and deviation; False leaves 0..255
    dtype: torch.float32, float16 or bfloat16
    backend: "reference" (slow, any device), "cpu" (numba), "triton" (GPU); "auto" is the fastest that can run
    layout: "video", or "patches" as the model embeds them (`sama.kernels.layout`)
    threads: of the CPU kernel; None is `torch.get_num_threads()`
    ValueError for an unknown name or a size below 1.
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
        clips,
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
        ValueError or TypeError for a wrong shape, dtype, length or device.
        """
        sources = _video_sources(clips)
        draws = self.draws([_size_of(s) for s in sources], len(sources[0]), train, draws, generator)
        plans = [self.plan(*_size_of(s), len(s), draws=d) for s, d in zip(sources, draws, strict=True)]
        return self._run(plans, sources)

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

    def draws(self, sizes, frames, train=False, draws=None, generator=None) -> list[Draws | None]:
        """One pair of draws per clip (None: centred), given, drawn in order, or neither."""
        if draws is not None:
            draws = [draws] if len(draws) == 2 and np.ndim(draws[0]) == 3 else list(draws)
            if len(draws) != len(sizes):
                raise InputError(f"draws must be one pair (u, v) a clip; got {len(draws)} for {len(sizes)} clips")
            return draws
        if not train:
            return [None] * len(sizes)
        generator = _generator(generator)
        settings = {"grid": self.grid, "fragment": self.fragment, "aligned": self.aligned, "generator": generator}
        return [draw_video(self.mode, *size, frames, **settings) for size in sizes]

    def read(
        self,
        path: str | os.PathLike,
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
        from sama.decode import open_video

        with open_video(path, decoder=decoder) as video:
            return self.read_video(
                video, clip_len=clip_len, num_clips=num_clips, interval=interval, train=train, generator=generator
            )

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
        Only the clips that overlap at one moment are held, however many there are.
        """
        size = video.info.height, video.info.width
        clips, clip_len = indices.shape
        plans = [self.plan(*size, clip_len, draws=pair) for pair in draws or [None] * clips]
        places = defaultdict(list)
        for clip, t in np.ndindex(clips, clip_len):
            places[int(indices[clip, t])].append((clip, t))
        ends = indices.max(1).tolist()
        fast, open_clips, done = None, {}, 0
        for index, frame in video.frames(places):
            if fast is None:  # the CPU kernel samples frame by frame, the others a clip at a time
                fast = self._choose(_device([[frame]])) == "cpu"
            for clip, t in places[index]:
                if clip not in open_clips:
                    open_clips[clip] = self._open_clip(plans[clip]) if fast else [None] * clip_len
                if fast:
                    open_clips[clip][1](frame, t)
                else:
                    open_clips[clip][t] = frame
            while done < clips and ends[done] <= index:
                clip = open_clips.pop(done)
                yield clip[0] if fast else self._run([plans[done]], [clip])[0]
                done += 1

    def _open_clip(self, plan: Plan):
        out = torch.empty(shape(self.layout, plan.frames, *self.size), dtype=self.dtype)
        return out, self._writer(plan, out)


class ImageSampler(_Sampler):
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
        images,
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
        ValueError or TypeError for a wrong shape, dtype, length or device, or a side that would be enlarged to more
        than 2**24 pixels.
        """
        images = _image_arrays(images)
        sizes = [_enlarged_size(*image.shape[:2]) for image in images]
        draws, flips, angles = self._augmentation(sizes, train, draws, flip, angle, _generator(generator))
        settings = {"grid": self.grid, "fragment": self.fragment}
        plans = [
            plan_image(self.mode, *size, draws=pair, flip=flip, angle=angle, **settings)
            for size, pair, flip, angle in zip(sizes, draws, flips, angles)
        ]
        sources = [_enlarge(image, *size) for image, size in zip(images, sizes)]
        whole = [k for k, source in enumerate(sources) if source is not None]
        if len(whole) == len(images):
            return self._run(plans, sources)[:, :, 0]
        device = _device([Clip("rgb", (image[None],)) for image in images])
        out = torch.empty(len(images), 3, *self.size, dtype=self.dtype, device=device)
        if whole:
            out[whole] = self._run([plans[k] for k in whole], [sources[k] for k in whole])[:, :, 0]
        for k in sorted({*range(len(images))} - {*whole}):
            x = torch.from_numpy(enlarge.sample(_as_array(images[k]), plans[k]))[:, None]
            out[k] = reference.normalize(x, **self._scaling)[:, 0]
        return out

    def _augmentation(self, sizes, train, draws, flip, angle, generator):
        """Draws, flip and angle of every image: what was given, else drawn in training, else none."""
        count = len(sizes)
        if draws is not None and count == 1 and np.ndim(draws[0]) in (2, 3) and len(draws) == 2:
            draws = [draws]
        given = {"draws": draws, "flip": flip, "angle": angle}
        columns = {}
        for name, value in given.items():
            values = list(value) if isinstance(value, Sequence | np.ndarray | torch.Tensor) else [value] * count
            if len(values) != count:
                raise InputError(f"{name} must be one a image; got {len(values)} for {count} images")
            columns[name] = values
        if train:
            for k, size in enumerate(sizes):
                settings = {"grid": self.grid, "fragment": self.fragment, "generator": generator}
                drawn = draw_image(self.mode, *size, **settings), *draw_flip_angle(generator)
                for name, value in zip(columns, drawn):
                    columns[name][k] = value if columns[name][k] is None else columns[name][k]
        return columns["draws"], [bool(flip) for flip in columns["flip"]], columns["angle"]


def _cpu_kernel():
    try:
        from sama.kernels import cpu
    except ImportError as error:
        raise MissingLibraryError('backend "cpu" needs numba: pip install numba') from error
    return cpu


def _generator(generator: Generator) -> Generator:
    """One stream for all draws of a call: a seed, or nothing, becomes a generator."""
    return generator if isinstance(generator, torch.Generator) else np.random.default_rng(generator)


def _video_sources(clips) -> list[Source]:
    if isinstance(clips, Clip):
        return [clips]
    if isinstance(clips, torch.Tensor | np.ndarray):
        if clips.ndim == 5:
            return [_clip(clip) for clip in clips]
        return [_clip(clips)]
    clips = list(clips)
    if not clips:
        raise InputError("no clips: got an empty list, expected at least one clip")
    if isinstance(clips[0], Frame):
        return [_same_size(clips)]
    return [clip if isinstance(clip, Clip) else _source(clip) for clip in clips]


def _source(clip) -> Source:
    return _clip(clip) if isinstance(clip, torch.Tensor | np.ndarray) else _same_size(list(clip))


def _clip(clip) -> Clip:
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


def _image_arrays(images) -> list:
    if isinstance(images, torch.Tensor | np.ndarray):
        images = list(images) if images.ndim == 4 else [images]
    images = list(images)
    if not images:
        raise InputError("no images: got an empty list, expected at least one image")
    for image in images:
        if not isinstance(image, torch.Tensor | np.ndarray):
            raise TypeError(f"an image must be a uint8 [H, W, 3] tensor or array; got {type(image).__name__}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"an image must have shape [H, W, 3] with H and W from 1 on; got {list(image.shape)}")
        if str(image.dtype).removeprefix("torch.") != "uint8":
            raise TypeError(f"an image must be uint8, 0..255; got {image.dtype}")
    return images


def _enlarged_size(height: int, width: int) -> tuple[int, int]:
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


def _enlarge(image, height: int, width: int) -> Clip | None:
    """The image at that size, by Pillow where that is larger than it is; None where it would be a very large one."""
    if (height, width) != tuple(image.shape[:2]):
        if height * width > LARGEST_COPY:
            return None
        from PIL import Image

        enlarged = np.array(Image.fromarray(_as_array(image)).resize((width, height), Image.Resampling.BILINEAR))
        image = torch.from_numpy(enlarged).to(image.device) if isinstance(image, torch.Tensor) else enlarged
    return Clip("rgb", (image[None],))


def _as_array(image) -> np.ndarray:
    return np.ascontiguousarray(image.cpu().numpy() if isinstance(image, torch.Tensor) else image)


def _size_of(source: Source) -> tuple[int, int]:
    return source[0].height, source[0].width


def _device(sources: list[Source]) -> torch.device:
    """The device that all frames of all clips are on."""
    devices = {
        plane.device if isinstance(plane, torch.Tensor) else torch.device("cpu")
        for source in sources
        for pictures in ([source] if isinstance(source, Clip) else source)
        for plane in pictures.planes
    }
    if len(devices) != 1:
        raise InputError(f"all clips must be on one device; got {sorted(map(str, devices))}")
    return devices.pop()


def _as_tensors(source: Source) -> Source:
    """The source with torch planes, for the interpreter's sake: frames on a GPU are torch already."""

    if isinstance(source[0].planes[0], torch.Tensor):
        return source

    def convert(pictures):
        planes = tuple(reference.tensor(plane) for plane in pictures.planes)
        return replace(pictures, planes=planes)

    return convert(source) if isinstance(source, Clip) else [convert(frame) for frame in source]
