"""The GPU kernel: from a ragged batch of decoded clips to the model's input, in one launch and one pass.

    out[b, c, t, y, x] = (blend of four taps of frame t of clip b - mean[c]) / std[c], cast

with the clip's correction, if it has one, between the blend and the normalisation.

Frames stay where the decoder put them, as packed RGB or 4:2:0 planes; a table holds their addresses. Nothing is
allocated on the device but the output and the tables, nothing is written but the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
import triton
import triton.language as tl

from sama.frames import Clip
from sama.kernels.color import YUV_TO_RGB, YuvToRgb
from sama.kernels.layout import PATCH, OutputLayout, ceil_div, shape

if TYPE_CHECKING:
    from sama.frames import Frame
    from sama.plan import Plan

Source = Clip | Sequence["Frame"]

_NO_COLOR = YuvToRgb(0, 0, 0, 0, 0, 0)
_NO_CORRECTION = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
SAMPLE_FIELDS = tl.constexpr(12)  # columns of `Tables.samples`
WARP_FIELDS = tl.constexpr(5)  # columns of `Tables.warps`
CORRECTION_FIELDS = tl.constexpr(12)  # columns of `Tables.corrections`
ALIGN = 16  # bytes; tables begin at multiples, whatever the batch, so that one compiled kernel serves all


@triton.jit
def _weigh(p_origin, step, within, size, mask, WHOLE: tl.constexpr):
    """Both taps and the weight of the second on one axis: at = max(step * (origin + within + 0.5) - 0.5, 0)."""
    origin = _load(p_origin, mask, WHOLE)
    at = tl.maximum(step * ((origin + within).to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), at - first.to(tl.float32)


@triton.jit
def _nearest(position, size):
    """Index of the pixel under `position` in [-1, 1], half to even: adding 1.5 * 2**23 rounds at the units."""
    at = ((position + 1.0) * size - 1.0) * 0.5
    magic: tl.constexpr = 12582912.0
    return ((at + magic) - magic).to(tl.int32)


@triton.jit
def _turn(p_warp, y, x, height, width, mask):
    """Where a flip and a rotation bring pixel (y, x) from, and whether that is inside."""
    to_x = x.to(tl.float32) - width.to(tl.float32) * 0.5 + 0.5
    to_y = y.to(tl.float32) - height.to(tl.float32) * 0.5 + 0.5
    from_x = _nearest(to_x * tl.load(p_warp + 1) + to_y * tl.load(p_warp + 2), width.to(tl.float32))
    from_y = _nearest(to_x * tl.load(p_warp + 3) + to_y * tl.load(p_warp + 4), height.to(tl.float32))
    inside = mask & (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return from_y, tl.where(tl.load(p_warp) > 0, width - 1 - from_x, from_x), inside


@triton.jit
def _load(p, mask, WHOLE: tl.constexpr):
    """A value of each pixel; without a mask where every pixel of every program is one of the picture's."""
    if WHOLE:
        value = tl.load(p)
    else:
        value = tl.load(p, mask=mask, other=0)
    return value.to(tl.int32)


@triton.jit
def _rgb(
    p_first, p_second, p_third, p_sample, p_warp, y, x, mask,
    YUV: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr, WARP: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """R, G, B of the source pixels (y, x), float32 0..255; see `kernels.color` for the integer arithmetic."""
    if WARP:
        y, x, mask = _turn(p_warp, y, x, tl.load(p_sample), tl.load(p_sample + 1), mask)
    rows, columns = y, x
    if WIDE:
        rows, columns = y.to(tl.int64), x.to(tl.int64)
    o_first = rows * tl.load(p_sample + 2) + columns * tl.load(p_sample + 4)
    first = _load(p_first + o_first, mask, WHOLE and not WARP)
    if YUV:
        o_other = (rows >> 1) * tl.load(p_sample + 3) + (columns >> 1) * tl.load(p_sample + 5)
        if PACKED:  # U and V lie side by side, U at an even address
            pair = _load((p_second + o_other).to(tl.pointer_type(tl.uint16)), mask, WHOLE)
            second, third = pair & 255, pair >> 8
        else:
            second = _load(p_second + o_other, mask, WHOLE)
            third = _load(p_third + o_other, mask, WHOLE)
        luma = ((8 * first + tl.load(p_sample + 6)) * tl.load(p_sample + 7)) >> 16
        u, v = 8 * second - 1024, 8 * third - 1024
        first = luma + (v * tl.load(p_sample + 8) >> 16)
        third = luma + (u * tl.load(p_sample + 9) >> 16)
        second = luma + (u * tl.load(p_sample + 10) >> 16) + (v * tl.load(p_sample + 11) >> 16)
        first = tl.minimum(tl.maximum(first, 0), 255)
        second = tl.minimum(tl.maximum(second, 0), 255)
        third = tl.minimum(tl.maximum(third, 0), 255)
    elif PACKED:  # R, G, B lie side by side: one address
        second = _load(p_first + o_first + 1, mask, WHOLE and not WARP)
        third = _load(p_first + o_first + 2, mask, WHOLE and not WARP)
    else:
        second = _load(p_second + o_first, mask, WHOLE and not WARP)
        third = _load(p_third + o_first, mask, WHOLE and not WARP)
    return first.to(tl.float32), second.to(tl.float32), third.to(tl.float32)


@triton.jit
def _blend(a, b, d, e, wy, wx):
    return (1.0 - wy) * ((1.0 - wx) * a + wx * b) + wy * ((1.0 - wx) * d + wx * e)


@triton.jit
def _correct(p_row, r, g, b):
    """One channel of a correction, cut to 0..255."""
    value = tl.load(p_row) * r + tl.load(p_row + 1) * g + tl.load(p_row + 2) * b + tl.load(p_row + 3)
    return tl.minimum(tl.maximum(value, 0.0), 255.0)


@triton.jit(do_not_specialize=["frames"])  # a clip of one frame is no other kernel
def sample_kernel(
    # pointers: output, then the tables of `Tables`
    p_out, p_frames, p_places, p_samples, p_slots, p_steps, p_origins, p_warps, p_corrections,
    # sizes
    frames,
    # (mean, 1 / std) per channel
    mean_r, mean_g, mean_b, scale_r, scale_g, scale_b,
    # constants
    GRID_H: tl.constexpr, GRID_W: tl.constexpr, FRAGMENT_H: tl.constexpr, FRAGMENT_W: tl.constexpr,
    CELL_H: tl.constexpr, CELL_W: tl.constexpr, MASKED: tl.constexpr, TRUNCATE: tl.constexpr, YUV: tl.constexpr,
    PACKED: tl.constexpr, WIDE: tl.constexpr, WARP: tl.constexpr, CORRECT: tl.constexpr, PATCHES: tl.constexpr,
    PATCH_T: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out = (four-tap blend - mean) / std` for BLOCK pixels of one frame (PATCHES: of PATCH_T frames) of one clip."""
    HEIGHT: tl.constexpr = GRID_H * FRAGMENT_H
    WIDTH: tl.constexpr = GRID_W * FRAGMENT_W
    clip = tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK], in the order of the output
    if PATCHES:
        PATCH: tl.constexpr = PATCH_T * PATCH_H * PATCH_W
        ACROSS: tl.constexpr = WIDTH // PATCH_W
        mask = pixel < PATCH_T * HEIGHT * WIDTH
        patch, within = pixel // PATCH, pixel % PATCH
        t = tl.program_id(1) * PATCH_T + within // (PATCH_H * PATCH_W)
        y = patch // ACROSS * PATCH_H + within // PATCH_W % PATCH_H
        x = patch % ACROSS * PATCH_W + within % PATCH_W
        o_out = (tl.program_id(1).to(tl.int64) * (HEIGHT // PATCH_H * ACROSS) + patch) * (3 * PATCH) + within
        o_channel = PATCH
    else:
        mask = pixel < HEIGHT * WIDTH
        t = tl.program_id(1)
        y, x = pixel // WIDTH, pixel % WIDTH
        o_out = t.to(tl.int64) * (HEIGHT * WIDTH) + pixel
        o_channel = frames.to(tl.int64) * (HEIGHT * WIDTH)

    p_slot = p_slots + (clip * frames + t) * 2
    if MASKED:
        p_slot += ((y // CELL_H + x // CELL_W) % 2 == 0).to(tl.int32)
    slot = tl.load(p_slot)
    p_sample = p_samples + clip * SAMPLE_FIELDS
    height, width = tl.load(p_sample), tl.load(p_sample + 1)
    p_origin = p_origins + ((slot * GRID_H + y // FRAGMENT_H) * GRID_W + x // FRAGMENT_W) * 2
    y0, y1, wy = _weigh(p_origin, tl.load(p_steps + slot * 2), y % FRAGMENT_H, height, mask, WHOLE)
    x0, x1, wx = _weigh(p_origin + 1, tl.load(p_steps + slot * 2 + 1), x % FRAGMENT_W, width, mask, WHOLE)

    p_frame = p_frames + (clip * frames + t) * 3
    p_first = tl.load(p_frame).to(tl.pointer_type(tl.uint8))
    p_second = tl.load(p_frame + 1).to(tl.pointer_type(tl.uint8))
    p_third = tl.load(p_frame + 2).to(tl.pointer_type(tl.uint8))
    planes = (p_first, p_second, p_third, p_sample, p_warps + clip * WARP_FIELDS)
    r00, g00, b00 = _rgb(*planes, y0, x0, mask, YUV, PACKED, WIDE, WARP, WHOLE)
    r01, g01, b01 = _rgb(*planes, y0, x1, mask, YUV, PACKED, WIDE, WARP, WHOLE)
    r10, g10, b10 = _rgb(*planes, y1, x0, mask, YUV, PACKED, WIDE, WARP, WHOLE)
    r11, g11, b11 = _rgb(*planes, y1, x1, mask, YUV, PACKED, WIDE, WARP, WHOLE)

    r = _blend(r00, r01, r10, r11, wy, wx)
    g = _blend(g00, g01, g10, g11, wy, wx)
    b = _blend(b00, b01, b10, b11, wy, wx)
    if CORRECT:
        p_correction = p_corrections + clip * CORRECTION_FIELDS
        red, green, blue = r, g, b
        r = _correct(p_correction, red, green, blue)
        g = _correct(p_correction + 4, red, green, blue)
        b = _correct(p_correction + 8, red, green, blue)
    if TRUNCATE:
        r, g, b = tl.floor(r), tl.floor(g), tl.floor(b)
    r = (r - mean_r) * scale_r
    g = (g - mean_g) * scale_g
    b = (b - mean_b) * scale_b
    p_out += tl.load(p_places + clip) * (frames.to(tl.int64) * (3 * HEIGHT * WIDTH)) + o_out
    r, g, b = r.to(p_out.dtype.element_ty), g.to(p_out.dtype.element_ty), b.to(p_out.dtype.element_ty)
    if WHOLE:
        tl.store(p_out, r)
        tl.store(p_out + o_channel, g)
        tl.store(p_out + 2 * o_channel, b)
    else:
        tl.store(p_out, r, mask=mask)
        tl.store(p_out + o_channel, g, mask=mask)
        tl.store(p_out + 2 * o_channel, b, mask=mask)


class Tables(NamedTuple):
    """What the kernel looks up, B clips of T frames with S slots in all.

    frames   int64 [B, T, 3]            address of each plane of each frame
    places   int64 [B]                  which clip of the output
    samples  int32 [B, 12]              height, width; row strides of plane 0, of planes 1 and 2; pixel strides of the
                                        same; colour constants
    slots    int32 [B, T, 2]            as in `Plan`, counted through the batch
    steps    float32 [S, 2]
    origins  int32 [S, Gh, Gw, 2]
    warps    float32 [B, 5]             flip, then the matrix of `Warp`
    corrections  float32 [B, 12]        as in `Frame`, by rows
    """

    frames: np.ndarray
    places: np.ndarray
    samples: np.ndarray
    slots: np.ndarray
    steps: np.ndarray
    origins: np.ndarray
    warps: np.ndarray
    corrections: np.ndarray

    def packed(self, yuv: bool) -> bool:
        """Whether the channels that are read together lie side by side in all frames: R, G, B; or U and V, with U at
        even addresses, so that both come in one load."""
        first, second, third = np.moveaxis(self.frames, -1, 0)
        if not yuv:
            return bool((second == first + 1).all() and (third == first + 2).all())
        strides = self.samples[:, [3, 5]]
        return bool((third == second + 1).all() and not (second % 2).any() and not (strides % 2).any())

    def wide(self) -> bool:
        """Whether offsets within a frame need 64 bits."""
        height, width, *strides = self.samples[:, :6].astype(np.int64).T
        rows, columns = np.abs(strides[:2]).max(0), np.abs(strides[2:]).max(0)
        return bool((height * rows + width * columns >= 2**31).any())

    def to(self, device: torch.device) -> list[torch.Tensor]:
        """All tables on a device, in one copy that does not wait."""
        starts = np.cumsum([0, *(ceil_div(table.nbytes, ALIGN) * ALIGN for table in self)]).tolist()
        packed = np.zeros(starts[-1], np.uint8)
        for start, table in zip(starts, self):
            packed[start : start + table.nbytes] = np.ascontiguousarray(table).reshape(-1).view(np.uint8)
        memory = torch.from_numpy(packed)
        if device.type == "cuda":
            memory = memory.pin_memory().to(device, non_blocking=True)
        return [
            memory[start : start + table.nbytes].view(getattr(torch, table.dtype.name))
            for start, table in zip(starts, self)
        ]


def tabulate(plans: Sequence[Plan], sources: Sequence[Source], places: Sequence[int]) -> Tables:
    """Gather the plans and the addresses of a batch; 8-byte tables come first, so that all are aligned."""
    counts = np.cumsum([0, *(len(plan.steps) for plan in plans)])
    return Tables(
        frames=np.stack([_addresses(source) for source in sources]),
        places=np.array(places, np.int64),
        samples=np.array([_describe(source) for source in sources], np.int32),
        slots=np.stack([plan.slots + start for plan, start in zip(plans, counts)]).astype(np.int32),
        steps=np.concatenate([plan.steps for plan in plans]),
        origins=np.concatenate([plan.origins for plan in plans]),
        warps=np.array([_warp(plan) for plan in plans], np.float32),
        corrections=np.array([_correction(source) for source in sources], np.float32),
    )


def sample(plans: Sequence[Plan], sources: Sequence[Source], out: torch.Tensor, **settings):
    """Sample a batch into `out`, in one launch; arguments as `prepare`."""
    prepare(plans, sources, out, **settings)()


def prepare(
    plans: Sequence[Plan],
    sources: Sequence[Source],
    out: torch.Tensor,
    *,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    layout: OutputLayout = "video",
    places: Sequence[int] | None = None,
    block: int | None = None,
    num_warps: int | None = None,
) -> Callable[[], None]:
    """Bring the tables of a batch to the device; what is returned launches the kernel, once, as often as it is called.

    The clips may have any sizes, but share grid, fragment, mask cell, length, and whether they are RGB, RGB with a
    correction, or 4:2:0.

    sources: for each clip its frames, torch tensors on the device of `out`
    out: contiguous float32, float16 or bfloat16 [B, *layout.shape(...)]; clip i is written to `out[places[i]]`
    block (pixels a program, a power of two), num_warps: in place of `configuration`
    ValueError where clips do not fit together, their plans or `out`.
    """
    plan = plans[0]
    places = list(range(len(plans)) if places is None else places)
    yuv, correct = _check(plans, sources, out, layout, places)
    frames_per_program = PATCH[0] if layout == "patches" else 1
    default_block, default_warps = configuration()
    block = block or default_block
    pixels = frames_per_program * plan.size[0] * plan.size[1]
    grid = (triton.cdiv(pixels, block), plan.frames // frames_per_program, len(plans))
    tables = tabulate(plans, sources, places)
    compile_time = constants(
        plans, yuv=yuv, correct=correct, layout=layout, packed=tables.packed(yuv), wide=tables.wide(), block=block
    )
    with torch.cuda.device_of(out):
        on_device = tables.to(out.device)

    def launch():
        with torch.cuda.device_of(out):
            sample_kernel[grid](
                out,
                *on_device,
                plan.frames,
                *(float(m) for m in mean),
                *(1 / float(s) for s in std),
                **compile_time,
                num_warps=num_warps or default_warps,
                enable_fp_fusion=False,  # coordinates must round as on the host
            )

    return launch


def constants(
    plans: Sequence[Plan], *, yuv: bool, correct: bool, layout: OutputLayout, packed: bool, wide: bool, block: int
) -> dict[str, int | bool]:
    """The kernel's compile-time arguments for a batch. packed, wide: see `Tables`

    Truncation may go by the batch: sources that it is not meant for are read at whole pixels, which it leaves alone.
    """
    plan = plans[0]
    return {
        "GRID_H": plan.grid[0],
        "GRID_W": plan.grid[1],
        "FRAGMENT_H": plan.fragment[0],
        "FRAGMENT_W": plan.fragment[1],
        "CELL_H": plan.mask_cell[0],
        "CELL_W": plan.mask_cell[1],
        "MASKED": any(plan.masked for plan in plans),
        "TRUNCATE": any(plan.truncate for plan in plans),
        "YUV": yuv,
        "PACKED": packed,
        "WIDE": wide,
        "WARP": any(plan.warp is not None for plan in plans),
        "CORRECT": correct,
        "PATCHES": layout == "patches",
        "PATCH_T": PATCH[0],
        "PATCH_H": PATCH[1],
        "PATCH_W": PATCH[2],
        "WHOLE": plan.size[0] * plan.size[1] * (PATCH[0] if layout == "patches" else 1) % block == 0,
        "BLOCK": block,
    }


def configuration() -> tuple[int, int]:
    """Pixels a program and warps a program. The interpreter pays per program, so it gets large ones."""
    if interpreted():
        return 8192, 1
    return 512, 4


def interpreted() -> bool:
    """Whether `TRITON_INTERPRET=1` was set when this module was imported: kernels then run on CPU tensors."""
    return not isinstance(sample_kernel, triton.runtime.JITFunction)


def _addresses(source: Source) -> np.ndarray:
    """Address of every plane of every frame, int64 [T, 3]."""
    if isinstance(source, Clip):
        planes = _channels(source)
        start = np.array([plane.data_ptr() for plane in planes])
        return start + np.arange(len(source))[:, None] * np.array([plane.stride(0) for plane in planes])
    return np.array([[plane.data_ptr() for plane in _channels(frame)] for frame in source])


def _channels(pictures: Frame | Clip) -> tuple[torch.Tensor, ...]:
    """The channels of pictures on a GPU, or in the interpreter: tensors, not arrays."""
    return cast("tuple[torch.Tensor, ...]", pictures.channels())


def _plane_strides(frame: Frame) -> list[tuple[int, ...]]:
    return [plane.stride() for plane in cast("tuple[torch.Tensor, ...]", frame.planes)]


def _describe(source: Source) -> tuple[int, ...]:
    """A row of `Tables.samples`."""
    frame = source[0]
    first, second, _ = _channels(frame)
    color = _NO_COLOR if frame.layout == "rgb" else YUV_TO_RGB[frame.matrix, frame.full_range]
    return (*first.shape, first.stride(0), second.stride(0), first.stride(1), second.stride(1), *color)


def _warp(plan: Plan) -> tuple[float, ...]:
    """A row of `Tables.warps`; without a warp, the turn that changes nothing."""
    if plan.warp is None:
        return 0, 2 / plan.width, 0, 0, 2 / plan.height
    return plan.warp.flip, *plan.warp.matrix.reshape(-1).tolist()


def _correction(source: Source) -> list[float]:
    """A row of `Tables.corrections`."""
    return [value for row in source[0].correction or _NO_CORRECTION for value in row]


def _check(
    plans: Sequence[Plan], sources: Sequence[Source], out: torch.Tensor, layout: OutputLayout, places: list[int]
) -> tuple[bool, bool]:
    """Raise unless everything fits; whether the clips are 4:2:0, and whether they have a correction."""
    if out.dtype not in (torch.float32, torch.float16, torch.bfloat16) or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous float32, float16 or bfloat16; got {out.dtype}, strides {out.stride()}"
        )
    shared = {(plan.grid, plan.fragment, plan.mask_cell, plan.frames) for plan in plans}
    if len(shared) != 1:
        raise ValueError(f"one launch needs one grid, fragment, mask cell and length for all clips; got {shared}")
    expected = shape(layout, plans[0].frames, *plans[0].size)
    if tuple(out.shape[1:]) != expected:
        raise ValueError(f"out has shape {tuple(out.shape)}; expected (clips, {', '.join(map(str, expected))})")
    if sorted(set(places)) != sorted(places) or len(places) != len(plans) or not set(places) <= set(range(len(out))):
        raise ValueError(f"places must be {len(plans)} different clips of the {len(out)} in out; got {places}")
    kinds = {(source[0].layout != "rgb", source[0].correction is not None) for source in sources}
    if len(kinds) != 1:
        raise ValueError("one launch takes RGB clips, RGB clips with a correction, or 4:2:0 clips, not several of them")
    for plan, source in zip(plans, sources, strict=True):
        pictures = [source[0]] if isinstance(source, Clip) else source
        strides = _plane_strides(pictures[0])
        for frame in pictures:
            if (frame.height, frame.width) != (plan.height, plan.width) or len(source) != plan.frames:
                raise ValueError(
                    f"the plan is for {plan.frames} frames of {plan.height}x{plan.width} (height x width); "
                    f"got {len(source)} frames, one of them {frame.height}x{frame.width}"
                )
            if any(plane.device != out.device for plane in frame.planes):
                raise ValueError(f"frames must be on {out.device}; got {[str(p.device) for p in frame.planes]}")
            same = _plane_strides(frame) == strides and (
                frame.layout,
                frame.matrix,
                frame.full_range,
                frame.correction,
            ) == ((pictures[0].layout, pictures[0].matrix, pictures[0].full_range, pictures[0].correction))
            if not same or len(set(strides[1:])) > 1:
                raise ValueError("all frames of a clip must share layout, colour and strides, U and V theirs too")
    yuv, corrected = kinds.pop()
    if any(plan.warp is not None for plan in plans) and (yuv or corrected):
        raise ValueError('flip and rotation need "rgb" frames without a correction')
    return yuv, corrected
