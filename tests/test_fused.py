"""The Triton kernel beyond the golden vectors: ragged batches, planes, output types; and that it compiles for Hopper.

Without a GPU the kernel runs in Triton's interpreter, on few and small frames.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planes import COLORS, CORRECTIONS, random_frame
from tolerances import assert_close, reference_tolerance

from sama.frames import Clip
from sama.kernels import layout as layouts
from sama.kernels import reference
from sama.plan import draw_image, draw_video, plan_image, plan_video

fused = pytest.importorskip("sama.kernels.fused")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = {"grid": (2, 3), "fragment": (16, 12)}
SIZES = [(1, 1), (37, 53), (200, 90), (32, 36)]


def on_device(frame):
    return replace(frame, planes=tuple(torch.from_numpy(plane).to(DEVICE) for plane in frame.planes))


def random_clip(seed, frames, layout, *size, **color):
    rng = np.random.default_rng(seed)
    return [on_device(random_frame(rng, layout, *size, **color)) for _ in range(frames)]


def poisoned(plans, layout="video", dtype=torch.float32):
    shape = len(plans), *layouts.shape(layout, plans[0].frames, *plans[0].size)
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def expected(plans, clips):
    rgb = [torch.stack([reference.to_rgb(replace(frame, correction=None)).cpu() for frame in clip]) for clip in clips]
    corrections = [clip[0].correction for clip in clips]
    return torch.stack([reference.sample(*arguments) for arguments in zip(rgb, plans, corrections)])


@pytest.mark.parametrize("mode", ["sama", "sama-swm", "sama-spm", "fragments"])
@pytest.mark.parametrize("layout", ["rgb", "i420", "nv12"])
def test_ragged_batch_in_one_launch(mode, layout):
    plans = [
        plan_video(
            mode, *size, 3, **SETTINGS, aligned=2, draws=draw_video(mode, *size, 3, **SETTINGS, aligned=2, generator=k)
        )
        for k, size in enumerate(SIZES)
    ]
    colors = [dict(zip(("matrix", "full_range"), color)) for color in COLORS]
    clips = [random_clip(k, 3, layout, *size, **colors[k]) for k, size in enumerate(SIZES)]
    out = poisoned(plans)
    fused.sample(plans, clips, out)
    if mode == "fragments":  # truncated: see assert_sampled in test_properties.py
        assert_close(out.cpu().floor(), out.cpu(), 0.0)
        assert_close(out.cpu(), expected(plans, clips), 1.0)
    else:
        assert_close(out.cpu(), expected(plans, clips), reference_tolerance())


@pytest.mark.parametrize("mode", ["sama-swm", "fragments"])
def test_corrected_colours(mode):
    """Each clip of a launch with its own correction; also truncated ones, which are cut off after it."""
    plans = [plan_video(mode, *size, 3, **SETTINGS) for size in SIZES]
    clips = [random_clip(k, 3, "rgb", *size, correction=CORRECTIONS[k % 2]) for k, size in enumerate(SIZES)]
    out = poisoned(plans)
    fused.sample(plans, clips, out)
    target = expected(plans, clips)
    if mode == "fragments":  # blends within the tolerance of an integer may fall to either side of it
        assert_close(out.cpu().floor(), out.cpu(), 0.0)
        assert_close(out.cpu(), target, 1.0)
    else:
        assert_close(out.cpu(), target, reference_tolerance() * 2)  # rows of a correction add up to 1.7
    assert (target == 0).any()
    assert (target == 255).any()


@pytest.mark.parametrize("block", [32, 64, 1024])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_block(block, layout):
    """Also blocks that do not divide the picture: nothing is left out, nothing is written twice or beside."""
    plans = [plan_video("sama-spm", 70, 91, 2, grid=(2, 1), fragment=(12, 20))] * 2
    clips = [random_clip(k, 2, "i420", 70, 91) for k in range(2)]
    shape = layouts.shape(layout, 2, 24, 20)
    margin = torch.full((4, *shape), float("nan"), device=DEVICE)
    fused.sample(plans, clips, margin[1:3], layout=layout, block=block)
    cut = torch.stack([reference.cut(x, layout) for x in expected(plans, clips)])
    assert_close(margin[1:3].cpu(), cut, reference_tolerance())
    assert margin[[0, 3]].isnan().all()


def test_places():
    """Clips go where they are sent, and a Clip in common memory is the same as its frames."""
    plans = [plan_video("sama", 50, 60, 2, **SETTINGS)] * 2
    clips = [random_clip(k, 2, "rgb", 50, 60) for k in range(2)]
    out = poisoned(plans * 2)
    fused.sample(plans, clips, out, places=[3, 1])
    stacked = [Clip("rgb", (torch.stack([frame.planes[0] for frame in clip]),)) for clip in clips]
    again = poisoned(plans)
    fused.sample(plans, stacked, again)
    assert torch.equal(out[[3, 1]], again)
    assert out[[0, 2]].isnan().all()


@pytest.mark.parametrize("block", [64, 1024], ids=["whole", "masked"])
@pytest.mark.parametrize("wide", [False, True], ids=["32-bit", "64-bit"])
@pytest.mark.parametrize("kind", ["rgb", "rgb-planar", "nv12", "nv12-odd", "i420"])
def test_reads_side_by_side_where_it_can(kind, wide, block, monkeypatch):
    """Channels that lie side by side are read by one address, or in one load; others each by their own."""
    plan = plan_video("sama", 30, 40, 1, grid=(1, 1), fragment=(16, 16))
    (frame,) = random_clip(0, 1, kind.partition("-")[0], 30, 40)
    target = expected([plan], [[frame]])
    if kind == "rgb-planar":
        planes = (frame.planes[0].permute(2, 0, 1).contiguous().permute(1, 2, 0),)
    elif kind == "nv12-odd":  # U at an odd address: two bytes cannot be loaded at once
        memory = torch.empty(frame.planes[1].numel() + 1, dtype=torch.uint8, device=DEVICE)[1:]
        planes = frame.planes[0], memory.view(frame.planes[1].shape).copy_(frame.planes[1])
    else:
        planes = frame.planes
    frame = replace(frame, planes=planes)
    packed = fused.tabulate([plan], [[frame]], [0]).packed(frame.layout != "rgb")
    assert packed == (kind in ("rgb", "nv12"))
    assert not fused.tabulate([plan], [[frame]], [0]).wide()
    monkeypatch.setattr(fused.Tables, "wide", lambda self: wide)
    out = poisoned([plan])
    fused.sample([plan], [[frame]], out, block=block)
    assert_close(out.cpu(), target, reference_tolerance())


def test_offsets_of_a_large_frame_have_64_bits():
    def tables(height, width, *strides):
        row = np.array([[height, width, *strides, *[0] * 6]], np.int32)
        return fused.Tables(*[None] * 2, row, *[None] * 5)

    assert not tables(20000, 30000, 90000, 90000, 3, 3).wide()
    assert tables(24000, 30000, 90000, 90000, 3, 3).wide()
    assert tables(24000, 30000, -90000, -90000, 3, 3).wide()
    assert tables(3, 2**30, 1, 1, 2, 2).wide()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit(dtype):
    plans = [plan_video("sama", 50, 60, 2, **SETTINGS)]
    clips = [random_clip(0, 2, "nv12", 50, 60)]
    exact, rounded = poisoned(plans), poisoned(plans, dtype=dtype)
    for out in (exact, rounded):
        fused.sample(plans, clips, out, mean=(120, 110, 100), std=(58, 57, 56))
    target = exact.to(dtype)
    if dtype == torch.bfloat16 and fused.interpreted():  # the interpreter truncates where a GPU rounds
        target = (exact.view(torch.int32) & -65536).view(torch.float32).to(dtype)
    assert torch.equal(rounded, target)


def test_turned_images_in_a_batch():
    sizes, turns = [(60, 80), (41, 33)], [(True, 17.0), (False, -44.0)]
    plans = [
        plan_image(
            "sama", *size, **SETTINGS, draws=draw_image("sama", *size, **SETTINGS, generator=1), flip=flip, angle=a
        )
        for size, (flip, a) in zip(sizes, turns)
    ]
    plans.append(plan_image("sama", 50, 70, **SETTINGS))
    clips = [random_clip(k, 1, "rgb", *size) for k, size in enumerate([*sizes, (50, 70)])]
    out = poisoned(plans)
    fused.sample(plans, clips, out)
    assert_close(out.cpu(), expected(plans, clips), reference_tolerance(), outliers=1e-3)


def test_refuses_what_does_not_fit():
    plan = plan_video("sama", 50, 60, 2, **SETTINGS)
    clip, out = random_clip(0, 2, "rgb", 50, 60), poisoned([plan])
    planar = random_clip(0, 2, "i420", 50, 60)
    corrected = random_clip(0, 2, "rgb", 50, 60, correction=CORRECTIONS[0])
    mixed = [planar[0], on_device(random_frame(np.random.default_rng(0), "i420", 50, 60, "bt709"))]
    for arguments, message in [
        (([plan], [clip], out.double()), "out must be contiguous float32"),
        (([plan], [clip], out[..., ::2]), "out must be contiguous"),
        (([plan], [clip], out[..., :8].contiguous()), "out has shape .*; expected"),
        (([plan], [clip[:1]], out), "the plan is for 2 frames of 50x60"),
        (([plan], [random_clip(0, 2, "rgb", 60, 50)], out), "the plan is for 2 frames of 50x60"),
        (([plan] * 2, [clip, planar], poisoned([plan] * 2)), "RGB clips, .* or 4:2:0 clips, not several"),
        (([plan] * 2, [clip] * 2, out), "places must be 2 different clips of the 1 in out"),
        (([plan] * 2, [clip, corrected], poisoned([plan] * 2)), "RGB clips with a correction, .* not several"),
        (([plan], [mixed], out), "share layout, colour and strides"),
        (([plan, plan_video("sama-spm", 50, 60, 2, **SETTINGS)], [clip] * 2, out), "one launch needs one grid"),
    ]:
        with pytest.raises(ValueError, match=message):
            fused.sample(*arguments)


def test_every_variant_compiles_for_hopper(tmp_path):
    """With no GPU and no driver; nothing may spill. In a process of its own: the interpreter replaces the kernel.

    Types of the output, which the last instruction alone knows, with one mode; `SAMA_REGISTERS=1` compiles them all.
    """
    every = os.environ.get("SAMA_REGISTERS") == "1"
    rows = tmp_path / "registers.json"
    script = Path(__file__).parent.parent / "bench" / "registers.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    match = "" if every else "float32|^sama-(rgb|corrected|nv12)-|^image-"
    words = [sys.executable, script, "--json", rows, "--match", match]
    run = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    rows = json.loads(rows.read_text())
    assert len(rows) == (4 * 3 * 2 * 3 if every else 4 * 3 * 2 + 3 * 2 * 2) + 3 + 3
    assert {row["target"] for row in rows} == {"sm_90"}
    found = {row["variant"]: row["instructions_per_pixel"] for row in rows}
    stored = json.loads((script.parent / "results" / "registers-sm_90-per-plane.json").read_text())
    before = {row["variant"].replace("yuv420", "nv12"): row["instructions_per_pixel"] for row in stored}
    for source, share in (("rgb", 0.75), ("nv12", 0.9)):  # fewer than when each plane was read by itself
        for layout in ("video", "patches"):
            name = f"sama-{source}-{layout}-float32"
            assert found[name] < share * before[name]
    assert all(0 < row["registers"] <= 128 and row["spilled_bytes"] == 0 for row in rows)


@pytest.mark.cuda
def test_allocates_only_output_and_tables():
    sizes = [(540, 960), (1080, 1920)]
    plans = [plan_video("sama", *size) for size in sizes]
    clips = [Clip("rgb", (torch.randint(0, 256, (32, *size, 3), dtype=torch.uint8, device="cuda"),)) for size in sizes]
    out = poisoned(plans)
    fused.sample(plans, clips, out)
    tables = sum(table.nbytes for table in fused.tabulate(plans, clips, [0, 1]))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused.sample(plans, clips, out)
    assert torch.cuda.max_memory_allocated() - before <= tables + 512
