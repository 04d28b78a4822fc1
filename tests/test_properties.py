"""Any size, grid, fragment, length and layout: kernels equal the reference, write everything, read nothing else."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from planes import COLORS, CORRECTIONS, random_frame
from tolerances import assert_close, reference_tolerance

from sama.frames import Frame
from sama.kernels import layout as layouts
from sama.kernels import reference
from sama.plan import IMAGE_MODES, VIDEO_MODES, draw_flip_angle, draw_image, draw_video, plan_image, plan_video

cpu = pytest.importorskip("sama.kernels.cpu")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

sizes = st.tuples(st.integers(1, 140), st.integers(1, 140))
grids = st.tuples(st.integers(1, 8), st.integers(1, 8))
fragments = st.tuples(st.integers(1, 20), st.integers(1, 20))
colors = st.sampled_from(COLORS)


def assume_affordable(plan):
    """The reference resizes whole frames: a 1 x 140 frame on a large target would be enormous."""
    assume(plan.levels.astype(np.int64).prod(1).max() <= 400_000)


def reference_of(frames, plan):
    rgb = [reference.to_rgb(replace(frame, correction=None)) for frame in frames]
    return reference.sample(torch.stack(rgb), plan, frames[0].correction)


def assert_sampled(got, frames, plan, **kwargs):
    """`got` is what the reference makes of the frames. Where a plan truncates, a blend within the tolerance of an
    integer may fall to either side of it: torch's own sums do, depending on the size of the picture."""
    exact = reference_of(frames, replace(plan, truncate=False))
    slack = reference_tolerance()
    if plan.truncate:
        assert_close(got, got.clamp((exact - slack).floor(), (exact + slack).floor()), 0.0)
    else:
        assert_close(got, exact, reference_tolerance(), **kwargs)


def poisoned(plan, layout="video"):
    return torch.full(layouts.shape(layout, plan.frames, *plan.size), float("nan"))


@quick
@given(
    mode=st.sampled_from(sorted(VIDEO_MODES)),
    layout=st.sampled_from(["rgb", "i420", "nv12"]),
    color=colors,
    size=sizes,
    grid=grids,
    fragment=fragments,
    frames=st.integers(1, 6),
    aligned=st.integers(1, 7),
    train=st.booleans(),
    seed=st.integers(0, 9),
)
@example("sama", "rgb", COLORS[0], (1, 1), (7, 7), (32, 32), 1, 32, False, 0)
@example("sama-spm", "i420", COLORS[1], (139, 77), (3, 5), (7, 9), 5, 3, True, 1)
@example("fragments", "nv12", COLORS[2], (33, 61), (2, 8), (19, 20), 3, 2, True, 2)
def test_cpu_equals_reference(mode, layout, color, size, grid, fragment, frames, aligned, train, seed):
    geometry = {"grid": grid, "fragment": fragment, "aligned": aligned}
    draws = draw_video(mode, *size, frames, **geometry, generator=seed) if train else None
    plan = plan_video(mode, *size, frames, **geometry, draws=draws)
    assume_affordable(plan)
    rng = np.random.default_rng(seed)
    clip = [random_frame(rng, layout, *size, *color) for _ in range(frames)]
    out = poisoned(plan)
    cpu.sample(cpu.Writer(plan, out), clip, threads=1 + seed % 2)
    assert_sampled(out, clip, plan)


@quick
@given(
    mode=st.sampled_from(sorted(VIDEO_MODES)),
    correction=st.sampled_from(CORRECTIONS),
    size=sizes,
    grid=grids,
    fragment=fragments,
    seed=st.integers(0, 9),
)
@example("fragments", CORRECTIONS[0], (33, 61), (2, 8), (19, 20), 2)
def test_cpu_equals_reference_corrected(mode, correction, size, grid, fragment, seed):
    plan = plan_video(mode, *size, 2, grid=grid, fragment=fragment)
    assume_affordable(plan)
    rng = np.random.default_rng(seed)
    clip = [random_frame(rng, "rgb", *size, correction=correction) for _ in range(2)]
    out = poisoned(plan)
    cpu.sample(cpu.Writer(plan, out), clip, threads=1)
    assert_sampled(out, clip, plan)


def test_correction_by_hand():
    """One pixel, one colour: the formula, and the cut to 0..255."""
    rgb = np.array([200, 100, 20], np.uint8).reshape(1, 1, 3)
    correction = ((1.0, 0.1, -0.5, 3.0), (0.0, 0.0, 1.0, -30.0), (1.0, 1.0, 0.0, 0.0))
    plan = plan_video("sama", 1, 1, 1, grid=(1, 1), fragment=(4, 4))
    out = poisoned(plan)
    cpu.sample(cpu.Writer(plan, out), [Frame("rgb", (rgb,), correction=correction)], threads=1)
    # 200 + 10 - 10 + 3; 20 - 30, below 0; 200 + 100, above 255
    assert_close(out, torch.tensor([203.0, 0.0, 255.0]).view(3, 1, 1, 1).expand_as(out), 1e-4)
    assert reference.to_rgb(Frame("rgb", (rgb,), correction=correction)).tolist() == [[[203, 0, 255]]]


def test_correction_refused():
    planes = tuple(np.zeros(shape, np.uint8) for shape in [(4, 4), (2, 2), (2, 2)])
    with pytest.raises(ValueError, match="only \"rgb\" frames can have a correction; got one for 'i420'"):
        Frame("i420", planes, correction=CORRECTIONS[0])
    with pytest.raises(ValueError, match="3 rows of 4 numbers; got rows of \\[3, 3, 3\\]"):
        Frame("rgb", (np.zeros((4, 4, 3), np.uint8),), correction=((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    turned = plan_image("sama", 4, 4, grid=(1, 1), fragment=(4, 4), flip=True, angle=10.0)
    frame = Frame("rgb", (np.zeros((4, 4, 3), np.uint8),), correction=CORRECTIONS[0])
    with pytest.raises(ValueError, match="without a correction; got 'rgb' with a correction"):
        cpu.Writer(turned, poisoned(turned))(frame, 0)


@quick
@given(
    mode=st.sampled_from(sorted(IMAGE_MODES)),
    size=sizes,
    grid=grids,
    fragment=fragments,
    seed=st.integers(0, 1000),
)
def test_cpu_equals_reference_turned(mode, size, grid, fragment, seed):
    geometry = {"grid": grid, "fragment": fragment}
    flip, angle = draw_flip_angle(seed)
    draws = draw_image(mode, *size, **geometry, generator=seed)
    plan = plan_image(mode, *size, **geometry, draws=draws, flip=flip, angle=angle)
    assume_affordable(plan)
    frame = random_frame(np.random.default_rng(seed), "rgb", *size)
    out = poisoned(plan)
    cpu.sample(cpu.Writer(plan, out), [frame], threads=2)
    # at centres of symmetry a rotated coordinate can be a rounding tie, and then either pixel is right
    assert_sampled(out, [frame], plan, outliers=2e-3 if out.numel() > 1000 else 0.02)


@quick
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    layout=st.sampled_from(["rgb", "i420"]),
    seed=st.integers(0, 99),
)
def test_16_bit_outputs_are_the_rounded_32_bit_outputs(dtype, layout, seed):
    plan = plan_video("sama-swm", 61, 47, 2, grid=(2, 3), fragment=(9, 8))
    rng = np.random.default_rng(seed)
    clip = [random_frame(rng, layout, 61, 47) for _ in range(2)]
    scaling = {"mean": rng.uniform(0, 255, 3), "std": rng.choice([1e7, 58.395, 1e-2], 3)}  # subnormal to large
    exact, rounded = poisoned(plan), poisoned(plan).to(dtype)
    cpu.sample(cpu.Writer(plan, exact, **scaling), clip, threads=1)
    cpu.sample(cpu.Writer(plan, rounded, **scaling), clip, threads=1)
    assert torch.equal(rounded, exact.to(dtype))


@pytest.mark.parametrize("mode", ["sama", "sama-swm", "sama-spm"])
def test_patches_are_the_video_cut(mode):
    plan = plan_video(mode, 90, 133, 6, grid=(3, 2), fragment=(20, 16))
    clip = [random_frame(np.random.default_rng(t), "i420", 90, 133) for t in range(6)]
    video, patches = poisoned(plan), poisoned(plan, "patches")
    cpu.sample(cpu.Writer(plan, video), clip, threads=1)
    cpu.sample(cpu.Writer(plan, patches, layout="patches"), clip, threads=1)
    assert torch.equal(patches, reference.cut(video, "patches"))
    # and one patch by hand: frames 2 and 3, rows 4 to 7, columns 8 to 11
    assert torch.equal(patches[1, 1, 2], video[:, 2:4, 4:8, 8:12].reshape(-1))


@pytest.mark.parametrize("step", [(1, -1), (-1, 1), (-1, -1)], ids=["mirrored", "upside-down", "half-turn"])
@pytest.mark.parametrize("layout", ["rgb", "i420"])
def test_strided_planes(layout, step):
    """Views that run backwards, transposed ones, and planes with a margin: as their copies."""
    frame = random_frame(np.random.default_rng(0), layout, 60, 84)
    views = tuple(plane[:: step[0], :: step[1]].swapaxes(0, 1)[3:-3] for plane in frame.planes)
    if layout == "i420":
        views = tuple(plane[:: step[0], :: step[1]].swapaxes(0, 1) for plane in frame.planes)
    outs = []
    for planes in (views, tuple(plane.copy() for plane in views)):
        strided = type(frame)(layout, planes)
        plan = plan_video("sama", strided.height, strided.width, 1, grid=(2, 2), fragment=(8, 8))
        outs.append(poisoned(plan))
        cpu.sample(cpu.Writer(plan, outs[-1]), [strided], threads=1)
    assert torch.equal(*outs)


def test_threads_and_bands_change_nothing():
    plan = plan_video("sama-spm", 200, 150, 8, grid=(5, 3), fragment=(16, 20))
    clip = [random_frame(np.random.default_rng(t), "nv12", 200, 150) for t in range(8)]
    outs = [poisoned(plan) for _ in range(3)]
    for out, threads in zip(outs, (1, 2, 7)):
        cpu.sample(cpu.Writer(plan, out), clip, threads=threads)
    single = poisoned(plan)
    write = cpu.Writer(plan, single)
    for t in reversed(range(8)):
        for band in range(5):
            write(clip[t], t, (band, band + 1))
    assert all(torch.equal(out, single) for out in outs)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guard pages are made with mmap and mprotect of Linux")
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_nothing_is_read_outside_the_frame(backend):
    """Frames that end, or begin, at a page that must not be touched: one byte too far is a segmentation fault."""
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("guard pages are in main memory")
    script = Path(__file__).parent / "guard.py"
    run = subprocess.run([sys.executable, script, backend], capture_output=True, text=True)
    assert run.returncode == 0, (
        f"exit {run.returncode} (-11 is a segmentation fault) {run.stdout[-500:]}{run.stderr[-2000:]}"
    )
    assert "cases done" in run.stdout
