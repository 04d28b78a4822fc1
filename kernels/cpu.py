"""The CPU kernel: samples frame by frame, from packed RGB or straight from 4:2:0 planes, in the decoder's memory.

The arithmetic is in `sama.kernels.cpu_loops`; this file checks what it is given and finds the addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from sama.kernels.color import YUV_TO_RGB
from sama.kernels.cpu_loops import compiled
from sama.kernels.layout import OutputLayout, addresses

if TYPE_CHECKING:
    import torch

    from sama.frames import Frame
    from sama.plan import Plan


def prepare(kind: Literal["rgb", "yuv"], dtype: torch.dtype) -> None:
    """Compile the kernel for frames of a kind and outputs of a dtype now, so that no later call waits for it."""
    import torch

    compiled(kind, dtype != torch.float32)


class Writer:
    """Samples single frames into one clip's output, in any order and from any thread.

    write = Writer(plan, out, mean=..., std=...)
    write(frame, t)    # samples `frame` as frame t of the clip

    out: contiguous torch tensor of `layout.shape(...)`, float32, float16 or bfloat16, on the CPU. Its frame t is
    overwritten whole. ValueError where out or a frame does not fit the plan.
    """

    def __init__(
        self,
        plan: Plan,
        out: torch.Tensor,
        *,
        mean: Sequence[float] = (0, 0, 0),
        std: Sequence[float] = (1, 1, 1),
        layout: OutputLayout = "video",
    ):
        self.plan = plan
        self.places = addresses(layout, plan.frames, *plan.size)
        self.mean = np.asarray(mean, np.float32)
        self.scale = np.float32(1) / np.asarray(std, np.float32)
        self.out, self.bfloat16 = _flat(out)
        if self.out.size != 3 * plan.frames * plan.size[0] * plan.size[1]:
            raise ValueError(f"out has {self.out.size} values; the plan gives 3 x {plan.frames} x {plan.size} of them")

    def __call__(self, frame: Frame, t: int, bands: tuple[int, int] | None = None) -> None:
        plan = self.plan
        if (frame.height, frame.width) != (plan.height, plan.width):
            raise ValueError(
                f"the plan is for frames of {plan.height}x{plan.width} (height x width); got one of "
                f"{frame.height}x{frame.width}"
            )
        planes = _planes(frame)
        slots = plan.slots[t]
        geometry = (plan.steps[slots], plan.origins[slots], (plan.height, plan.width), plan.fragment, plan.mask_cell)
        where = (
            (int(self.places.frames[t]), self.places.channel),
            (self.places.rows, self.places.columns),
            bands or (0, plan.grid[0]),
        )
        output = (self.mean, self.scale, self.out, self.bfloat16)
        half = self.bfloat16 is not None
        if plan.warp is not None:
            if frame.layout != "rgb" or frame.correction is not None:
                got = repr(frame.layout) + (" with a correction" if frame.correction else "")
                raise ValueError(f'flip and rotation need "rgb" frames without a correction; got {got}')
            compiled("turned", half)(*planes, plan.warp.matrix, plan.warp.flip, *geometry, *output, *where)
            return
        color = None
        if frame.layout != "rgb":
            color = tuple(np.int32(value) for value in YUV_TO_RGB[frame.matrix, frame.full_range])
        mixed = bool(slots[0] != slots[1])
        correction = None if frame.correction is None else np.array(frame.correction, np.float32)
        kind = "yuv" if color is not None else "rgb" if correction is None else "corrected"
        kernel = compiled(kind, half)
        kernel(*planes, color, correction, *geometry, mixed, plan.truncate, *output, *where)


def sample(write: Writer, frames: Sequence[Frame], threads: int):
    """Sample a whole clip, one `Frame` per frame of the plan, on `threads` threads.

    The threads are this call's own, so that it works after a fork and beside other calls.
    """
    bands = write.plan.grid[0]
    if len(frames) == 1:
        cuts = np.linspace(0, bands, min(threads, bands) + 1).astype(int).tolist()
        tasks: list[tuple[Frame, int, tuple[int, int] | None]] = [(frames[0], 0, cut) for cut in pairwise(cuts)]
    else:
        tasks = [(frame, t, None) for t, frame in enumerate(frames)]
    if threads == 1:
        for task in tasks:
            write(*task)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(write, *task) for task in tasks]:
            done.result()


def _planes(frame: Frame) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Address of each channel; strides in bytes: of rows, of plane 0 and planes 1 and 2, then of pixels, alike."""
    places = [_address_and_strides(plane) for plane in frame.channels()]
    addresses = tuple(address for address, _ in places)
    strides, other, last = (strides for _, strides in places)
    if other != last:
        raise ValueError(f"planes 1 and 2 of a frame must have the same strides; got {other} and {last}")
    return addresses, (strides[0], other[0], strides[1], other[1])


def _address_and_strides(plane: np.ndarray | torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Both in bytes, since planes are uint8."""
    if isinstance(plane, np.ndarray):
        return plane.__array_interface__["data"][0], plane.strides
    return plane.data_ptr(), plane.stride()


def _flat(out: torch.Tensor) -> tuple[np.ndarray, bool | None]:
    """The memory of `out` as a 1-D array, and which 16-bit format it holds (None: float32)."""
    import torch

    formats = {torch.float32: None, torch.float16: False, torch.bfloat16: True}
    if out.dtype not in formats or out.device.type != "cpu" or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous float32, float16 or bfloat16 on the CPU; got {out.dtype} on {out.device}"
            + ("" if out.is_contiguous() else ", not contiguous")
        )
    if out.dtype == torch.float32:
        return out.numpy().reshape(-1), None
    return out.view(torch.uint16).numpy().reshape(-1), formats[out.dtype]
