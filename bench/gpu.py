"""The sampler on a GPU: clips per second, bytes moved, and the share of the bandwidth that a plain copy reaches there.

python bench/gpu.py [--sweep] [--json FILE]  # the kernel alone, 1080p; --sweep: which configuration is fastest
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import sama
from sama.backends import MEAN, STD
from sama.frames import Clip
from sama.kernels import layout as layouts
from sama.kernels import reference
from sama.kernels.color import correction
from sama.kernels.layout import ceil_div
from sama.plan import Plan, plan_video

SECTOR = 32  # bytes: the least that a GPU reads from its memory
SOURCE_BYTES = 3 << 30  # decoded clips in rotation: many times the second-level cache
COPY_BYTES = 2 << 30


PLANES = {  # (bytes a pixel, halvings) of each plane
    "rgb": [(3, 0)],
    "i420": [(1, 0), (1, 1), (1, 1)],
    "nv12": [(1, 0), (2, 1)],
}


def sectors(plan: Plan, layout: str) -> int:
    """Bytes of the source that a plan cannot avoid reading: every 32-byte sector that holds a tap, once a frame.

    Planes are taken to start at a sector; rows follow each other without padding.
    """
    taps = {slot: _slot_taps(plan, slot) for slot in np.unique(plan.slots).tolist()}
    total = 0
    for pair in plan.slots.tolist():
        pieces = [piece for slot in set(pair) for piece in taps[slot]]
        for pixel, shift in PLANES[layout]:
            height, width = (plan.height + shift) >> shift, ((plan.width + shift) >> shift) * pixel
            touched = np.zeros(ceil_div(height * width, SECTOR), bool)
            for rows, columns in pieces:
                start = (rows >> shift)[:, None] * width + (columns >> shift)[None] * pixel
                touched[start // SECTOR] = True
                touched[(start + pixel - 1) // SECTOR] = True
            total += int(touched.sum()) * SECTOR
    return total


def _slot_taps(plan: Plan, slot: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Source rows and columns of every fragment of a slot. Masks are left out: either level is counted whole."""
    half, pieces = np.float32(0.5), []
    for i, j in itertools.product(*map(range, plan.grid)):
        axes = []
        for axis, size in enumerate((plan.height, plan.width)):
            level = np.arange(plan.fragment[axis], dtype=np.float32) + np.float32(plan.origins[slot, i, j, axis])
            first = np.maximum(plan.steps[slot, axis] * (level + half) - half, np.float32(0)).astype(np.int64)
            axes.append(np.unique(np.minimum(np.concatenate([first, first + 1]), size - 1)))
        pieces.append(tuple(axes))
    return pieces


def copy_bandwidth(device="cuda", size=COPY_BYTES) -> float:
    """Bytes read plus bytes written per second by a copy within a device's memory."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / np.median(timed(lambda _: target.copy_(source), 30, device))


def timed(call, repeats: int, device="cuda") -> list[float]:
    """Seconds of `call(k)` by device events, warmed up. The device is kept waiting while the host fills its queue, so
    that no time of the host's is counted. On a CPU, where only a rehearsal goes, by the clock."""
    for k in range(3):
        call(k)
    if torch.device(device).type == "cpu":
        times = []
        for k in range(repeats):
            start = time.perf_counter()
            call(k)
            times.append(time.perf_counter() - start)
        return times
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)  # cycles: some 30 ms
    for k, (start, end) in enumerate(pairs):
        start.record()
        call(k)
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


SOURCES = ("rgb", "rgb corrected", "nv12")  # the second as DALI gives it


def random_clips(count: int, frames: int, height: int, width: int, source: str, device="cuda") -> list[Clip]:
    """Clips of noise on a device: zeros would be flattered by it."""
    half = (height + 1) // 2, (width + 1) // 2
    layout = source.split()[0]
    shapes = [(height, width), (*half, 2)] if layout == "nv12" else [(height, width, 3)]
    return [
        Clip(
            layout,
            tuple(torch.randint(0, 256, (frames, *shape), dtype=torch.uint8, device=device) for shape in shapes),
            correction=correction("bt601", "bt709", False) if source == "rgb corrected" else None,
        )
        for _ in range(count)
    ]


FORMS = tuple(itertools.product(layouts.LAYOUTS, (torch.float32, torch.float16, torch.bfloat16)))


def kernel_rows(
    height: int,
    width: int,
    *,
    mode="sama",
    frames=32,
    grid=(7, 7),
    batch=16,
    repeats=50,
    blocks=(None,),
    warps=(None,),
    forms=FORMS,
    device="cuda",
    source_bytes=SOURCE_BYTES,
    copy_bytes=COPY_BYTES,
):
    """Clips/s of the kernel for all sources and all forms of output, with bytes and share of the copy."""
    from sama.kernels import fused

    bandwidth = copy_bandwidth(device, copy_bytes)
    plan = plan_video(mode, height, width, frames, grid=grid)
    for source in SOURCES:
        clip_bytes = frames * height * width * (1.5 if source == "nv12" else 3)
        clips = random_clips(max(batch, int(source_bytes // clip_bytes)), frames, height, width, source, device)
        rgb = reference.to_rgb(replace(clips[0], correction=None)).cpu()
        sampled = reference.sample(rgb, plan, clips[0].correction)  # on the CPU, where nothing is fused
        expected = reference.normalize(sampled, MEAN, STD)
        groups = [clips[k : k + batch] for k in range(0, len(clips) - batch + 1, batch)]
        read = sectors(plan, clips[0].layout)
        for layout, dtype in forms:
            shape = batch, *layouts.shape(layout, frames, *plan.size)
            out = torch.full(shape, float("nan"), dtype=dtype, device=device)
            moved = batch * (read + out[0].nbytes)
            for block, num_warps in itertools.product(blocks, warps):
                settings = {"mean": MEAN, "std": STD, "layout": layout, "block": block, "num_warps": num_warps}
                launches = [fused.prepare([plan] * batch, group, out, **settings) for group in groups]
                launches[0]()
                error = (out[0].cpu().float() - reference.cut(expected, layout)).abs().max().item()
                truncated = dtype == torch.bfloat16 and fused.interpreted()  # which rounds on a GPU
                if not error <= (5e-4 if dtype == torch.float32 else 0.04 if truncated else 0.02):
                    raise RuntimeError(f"kernel is {error} off the reference: {layout} {dtype} {source}")
                seconds = timed(lambda k, launches=launches: launches[k % len(launches)](), repeats, device)
                p20, p50, p80 = (float(np.percentile(seconds, q)) for q in (20, 50, 80))
                yield {
                    "source": source,
                    "size": f"{width}x{height}",
                    "mode": mode,
                    "layout": layout,
                    "dtype": str(dtype).removeprefix("torch."),
                    "batch": batch,
                    "block": block or fused.configuration()[0],
                    "num_warps": num_warps or fused.configuration()[1],
                    "clips_per_s_p20": batch / p80,
                    "clips_per_s": batch / p50,
                    "clips_per_s_p80": batch / p20,
                    "megabytes_per_clip": moved / batch / 1e6,
                    "gigabytes_per_s": moved / p50 / 1e9,
                    "copy_gigabytes_per_s": bandwidth / 1e9,
                    "share_of_copy": moved / p50 / bandwidth,
                }


def sample_rows(case: str, path: Path, repeats: int):
    """For `throughput.py`: the reference and the Triton kernel on the GPU, on the frames of a real clip, one clip a
    call, all that a call costs on the host included."""
    if not torch.cuda.is_available():
        return []
    import measure
    import published

    planes = published.read_clip(path)
    on_gpu = [replace(f, planes=tuple(reference.tensor(plane).cuda() for plane in f.planes)) for f in planes]
    rgb = torch.stack([reference.to_rgb(frame) for frame in on_gpu])
    providers = {
        "reference, GPU": lambda: sama.VideoSampler(backend="reference")(rgb)[0],
        "triton, rgb": lambda: sama.VideoSampler(backend="triton")(rgb)[0],
    }
    if planes[0].layout != "rgb":
        providers["triton, planes"] = lambda: sama.VideoSampler(backend="triton")(on_gpu)[0]
    measure.check(providers, sama.VideoSampler(backend="cpu")(planes)[0])
    seconds = measure.timed(f"{case}: sample, GPU", providers, max(repeats, 20), sync=torch.cuda.synchronize)
    plan = plan_video("sama", *rgb.shape[1:3])
    bandwidth = copy_bandwidth()
    notes = {}
    for name, source in (("triton, rgb", "rgb"), ("triton, planes", planes[0].layout)):
        if name not in providers:
            continue
        moved = sectors(plan, source) + 3 * 32 * 224 * 224 * 4
        rate = moved / np.median(seconds[name])
        notes[name] = f"{moved / 1e6:.1f} MB, {rate / 1e9:.0f} GB/s, {rate / bandwidth:.0%} of a copy"
    work = dict.fromkeys(providers, 1.0)
    return measure.rows(case, "sample, GPU, one clip a call", "clips/s", seconds, work, "reference, GPU", **notes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sweep", action="store_true", help="blocks of 128 to 1024 pixels on 2, 4 and 8 warps, float32"
    )
    parser.add_argument("--json", type=Path, help="write the rows there as well, a line each as they come")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is false", file=sys.stderr)
        return 1
    tried = {}
    if options.sweep:
        tried = {
            "blocks": (128, 256, 512, 1024),
            "warps": (2, 4, 8),
            "forms": [("video", torch.float32)],
            "repeats": 20,
        }
    if options.json:
        options.json.write_text("")
    for row in kernel_rows(1080, 1920, **tried):
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(
            f"{row['source']:13} {row['layout']:7} {row['dtype']:8} block {row['block']:4} warps {row['num_warps']}: "
            f"{row['clips_per_s']:8.0f} clips/s {row['gigabytes_per_s']:6.0f} GB/s {row['share_of_copy']:4.0%} of copy",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
