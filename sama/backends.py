"""Which kernel follows a plan: `Sampler`, the settings and the run that both samplers share.

backend       kernel                   frames
"reference"   plain torch, the oracle  on any device
"cpu"         numba, frame by frame    in main memory
"triton"      one launch for a batch   on a GPU
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypedDict

import torch

from sama.errors import InputError, MissingLibraryError
from sama.frames import Clip, Frame
from sama.kernels import reference
from sama.kernels.layout import LAYOUTS, OutputLayout, shape
from sama.plan import VIDEO_MODES, Mode, Plan, resolve_mode

if TYPE_CHECKING:
    from sama.kernels.cpu import Writer

Backend = Literal["auto", "reference", "cpu", "triton"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "cpu", "triton")
MEAN = (123.675, 116.28, 103.53)  # of ImageNet, R, G, B in 0..255
STD = (58.395, 57.12, 57.375)

Source = Clip | Sequence[Frame]


class Scaling(TypedDict):
    """How R, G, B values become the input: `(value - mean) / std`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Sampler:
    """What both samplers share: their settings, the choice of a kernel, and the run of it. See `VideoSampler`."""

    modes: dict[str, Mode] = VIDEO_MODES

    def __init__(
        self,
        mode: str,
        grid: tuple[int, int],
        fragment: tuple[int, int],
        normalize: bool,
        dtype: torch.dtype,
        backend: Backend,
        layout: OutputLayout,
        threads: int | None,
    ) -> None:
        self.mode = resolve_mode(mode, self.modes)
        if backend not in BACKENDS:
            raise InputError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        if layout not in LAYOUTS:
            raise InputError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"dtype must be torch.float32, float16 or bfloat16; got {dtype}")
        self.grid, self.fragment = _sizes("grid", grid), _sizes("fragment", fragment)
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, or None for torch's number; got {threads}")
        self.normalize, self.dtype, self.threads = normalize, dtype, threads
        self.backend, self.layout = backend, layout

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.mode!r}, grid={self.grid}, fragment={self.fragment}, "
            f"normalize={self.normalize}, dtype={self.dtype}, backend={self.backend!r}, layout={self.layout!r})"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.grid[0] * self.fragment[0], self.grid[1] * self.fragment[1]

    @property
    def scaling(self) -> Scaling:
        """Mean and deviation that values are normalised with; 0 and 1 where they are not."""
        return {"mean": MEAN, "std": STD} if self.normalize else {"mean": (0, 0, 0), "std": (1, 1, 1)}

    def run(self, plans: Sequence[Plan], sources: Sequence[Source]) -> torch.Tensor:
        """Sample a batch: [B, *layout.shape(...)] on the device of the sources."""
        lengths = {plan.frames for plan in plans}
        if len(lengths) != 1:
            raise InputError(f"clips of one batch must have the same number of frames; got {sorted(lengths)}")
        device = device_of(sources)
        out = torch.empty(len(plans), *shape(self.layout, lengths.pop(), *self.size), dtype=self.dtype, device=device)
        backend = self.choose_backend(device)
        if backend == "triton":
            self._run_triton(plans, sources, out)
        elif backend == "cpu":
            self._run_cpu(plans, sources, out)
        else:
            for plan, source, part in zip(plans, sources, out):
                part.copy_(self._reference(plan, source))
        return out

    def choose_backend(self, device: torch.device) -> Backend:
        """The backend for frames on a device; "auto" takes the fastest that can run.

        `InputError` where the chosen backend cannot sample frames there.
        """
        if self.backend == "auto":
            if device.type == "cuda" and importlib.util.find_spec("triton"):
                return "triton"
            if device.type == "cpu" and importlib.util.find_spec("numba"):
                return "cpu"
            return "reference"
        if self.backend == "cpu" and device.type != "cpu":
            raise InputError(f'backend "cpu" samples frames in main memory; got frames on {device}')
        if self.backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError(
                f'backend "triton" samples frames on a GPU; got frames on {device}. Move them there, use backend '
                '"auto", or set TRITON_INTERPRET=1 before the start to run the kernel in Triton\'s slow interpreter'
            )
        return self.backend

    def prepare(self) -> None:
        """Compile the CPU kernel that files most often need, so that no later call waits for it."""
        if self.backend in ("auto", "cpu") and self.choose_backend(torch.device("cpu")) == "cpu":
            cpu_kernel().prepare("yuv" if self.modes is VIDEO_MODES else "rgb", self.dtype)

    def writer(self, plan: Plan, out: torch.Tensor) -> Writer:
        """The CPU kernel for one clip: call it with a frame and its place in the clip."""
        write: Writer = cpu_kernel().Writer(plan, out, layout=self.layout, **self.scaling)
        return write

    def _run_cpu(self, plans: Sequence[Plan], sources: Sequence[Source], out: torch.Tensor) -> None:
        """Clips one after the other, each on all threads; pictures, of a millisecond each, side by side."""
        cpu, threads = cpu_kernel(), self.threads or torch.get_num_threads()
        writers = [self.writer(plan, part) for plan, part in zip(plans, out)]
        if plans[0].frames > 1:
            for write, source in zip(writers, sources):
                cpu.sample(write, source, threads)
        elif threads == 1 or len(plans) == 1:
            for write, source in zip(writers, sources):
                cpu.sample(write, source, 1)
        else:
            with ThreadPoolExecutor(min(threads, len(plans))) as pool:
                list(pool.map(cpu.sample, writers, sources, itertools.repeat(1)))

    def _run_triton(self, plans: Sequence[Plan], sources: Sequence[Source], out: torch.Tensor) -> None:
        """One launch for all RGB clips, one for corrected ones, one for all 4:2:0 clips, into the same output."""
        try:
            from sama.kernels import fused
        except ImportError as error:
            raise MissingLibraryError('backend "triton" needs Triton: pip install triton') from error
        groups: dict[tuple[bool, bool, tuple[int, int]], list[int]] = defaultdict(list)
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
                **self.scaling,
            )

    def _reference(self, plan: Plan, source: Source) -> torch.Tensor:
        correction = source[0].correction
        if isinstance(source, Clip):
            clip = reference.to_rgb(replace(source, correction=None))
        else:
            clip = torch.stack([reference.to_rgb(replace(frame, correction=None)) for frame in source])
        x = reference.sample(clip, plan, correction)
        return reference.cut(reference.normalize(x, **self.scaling), self.layout)


def _sizes(name: str, pair: Sequence[int]) -> tuple[int, int]:
    """Rows and columns, both from 1 on."""
    if len(pair) != 2 or min(pair) < 1:
        raise InputError(f"{name} must be two sizes (rows, columns) from 1 on; got {tuple(pair)}")
    return pair[0], pair[1]


def cpu_kernel() -> ModuleType:
    """The module of the CPU kernel; `MissingLibraryError` without numba."""
    try:
        from sama.kernels import cpu
    except ImportError as error:
        raise MissingLibraryError('backend "cpu" needs numba: pip install numba') from error
    return cpu


def device_of(sources: Sequence[Source]) -> torch.device:
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
    """The source with torch planes; only in Triton's interpreter are they anything else."""
    if isinstance(source[0].planes[0], torch.Tensor):
        return source

    def planes(pictures: Frame | Clip) -> tuple[torch.Tensor, ...]:
        return tuple(reference.tensor(plane) for plane in pictures.planes)

    if isinstance(source, Clip):
        return replace(source, planes=planes(source))
    return [replace(frame, planes=planes(frame)) for frame in source]
