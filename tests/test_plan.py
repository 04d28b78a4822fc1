"""The plan against golden frame indices, tables worked out by hand, and its own bounds."""

import json

import numpy as np
import pytest
import torch
from golden import DATA
from hypothesis import given
from hypothesis import strategies as st

from sama.plan import (
    IMAGE_MODES,
    VIDEO_MODES,
    draw_flip_angle,
    draw_image,
    draw_video,
    frame_indices,
    plan_image,
    plan_video,
)

INDEX_CASES = json.loads((DATA / "frame_indices.json").read_text())


def index_id(case):
    return f"n{case['num_frames']}-len{case['clip_len']}-clips{case['num_clips']}-every{case['frame_interval']}"


@pytest.mark.parametrize("case", INDEX_CASES, ids=index_id)
def test_frame_indices_are_the_published_ones(case):
    arguments = case["num_frames"], case["clip_len"], case["num_clips"], case["frame_interval"]
    indices = frame_indices(*arguments)
    assert indices.dtype == np.int64
    assert indices.tolist() == case["test"]
    if "train_offsets" in case:
        assert frame_indices(*arguments, train=True, offsets=case["train_offsets"]).tolist() == case["train"]


def test_frame_indices_drawn_in_their_segments():
    drawn = np.stack([frame_indices(1000, 8, 4, 3, train=True, generator=seed).reshape(4, 8) for seed in range(200)])
    starts = drawn[:, :, 0] - np.arange(4) * 250
    assert starts.min() == 0
    assert starts.max() <= 250 - 8 * 3 - 1
    assert len(np.unique(starts)) > 100
    assert (np.diff(drawn, axis=2) == 3).all()
    assert (
        frame_indices(1000, train=True, generator=7).tolist() == frame_indices(1000, train=True, generator=7).tolist()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1; got 0"),
        ({"num_frames": 9, "clip_len": 0}, "clip_len must be at least 1; got 0"),
        ({"num_frames": 9, "num_clips": -1}, "num_clips must be at least 1; got -1"),
        ({"num_frames": 9, "interval": 0}, "interval must be at least 1 frame; got 0"),
        ({"num_frames": 9, "num_clips": 2, "offsets": [1]}, "offsets must be 2 frame numbers"),
    ],
)
def test_frame_indices_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        frame_indices(**arguments)


def levels(mode, height, width, frames=32, **kwargs):
    """Level size of every frame, mask bits 0 and 1."""
    plan = plan_video(mode, height, width, frames, **kwargs)
    return plan.levels[plan.slots]


def test_sama_goes_from_full_resolution_to_the_thumbnail():
    sizes = levels("sama", 1080, 1920)[:, 0]  # ratio 1080/224; scales from 1 to 224/1080 in 16 steps
    assert sizes[0].tolist() == [1080, 1920]
    assert sizes[1].tolist() == [1080, 1920]
    assert sizes[2].tolist() == [1023, 1819]  # scale 1 - 856/1080/15 = 0.94716: 1022.93 and 1818.55
    assert sizes[31].tolist() == [224, 398]  # 1920 * 224/1080 = 398.2


def test_schedules_by_hand():
    # 448 x 448 on a 224 target: ratio 2, scales from 1 to 1/2
    heights = levels("sama", 448, 448)[:, 0, 0]
    assert heights.tolist() == [h for k in range(16) for h in [round(448 * (1 - k / 30))] * 2]
    heights = levels("sama-mix", 448, 448)[:, 0, 0]
    assert heights.tolist() == [h for k in range(16) for h in [round(448 * (1 - k % 8 / 14))] * 2]
    assert levels("sama-c", 448, 448)[:, 0, 0].tolist() == [448, 448, 224, 224] * 8
    assert levels("fragments", 448, 448)[:, 0, 0].tolist() == [448] * 32
    for mode in ("sama-swm", "sama-spm"):
        assert levels(mode, 448, 448)[:, 0].tolist() == levels("sama", 448, 448)[:, 0].tolist()
        assert levels(mode, 448, 448)[:, 1].tolist() == [[448, 448]] * 32
    assert levels("sama", 448, 448, 70)[64:, 0].tolist() == levels("sama", 448, 448)[:6, 0].tolist()


@pytest.mark.parametrize("mode", VIDEO_MODES)
def test_small_sources_have_one_level(mode):
    # 112 x 300: ratio 1/2, everything is the source at twice its size
    assert (levels(mode, 112, 300) == [224, 600]).all()


def test_rounding_is_half_to_even():
    # scale 1/2 of 5 rounds to 2, of 7 to 4: 5 x 7 on a 2 x 2 target has ratio 2.5, so use 1/2.5 -> 2 and 2.8 -> 3
    plan = plan_image("sama", 5, 7, grid=(1, 1), fragment=(2, 2))
    assert plan.levels.tolist() == [[2, 3], [5, 7]]
    plan = plan_image("sama", 8, 10, grid=(1, 1), fragment=(4, 4))  # ratio 2 exactly: 10/2 = 5
    assert plan.levels.tolist() == [[4, 5], [8, 10]]
    plan = plan_image("sama", 8, 13, grid=(1, 1), fragment=(4, 4))  # 13/2 = 6.5 -> 6
    assert plan.levels.tolist() == [[4, 6], [8, 13]]
    plan = plan_image("sama", 8, 15, grid=(1, 1), fragment=(4, 4))  # 15/2 = 7.5 -> 8
    assert plan.levels.tolist() == [[4, 8], [8, 15]]


def test_origins_by_hand():
    # 20 x 33 at full resolution, 2 x 3 cells of 10 x 11 pixels, fragments of 4 x 4: 6 and 7 pixels of room
    settings = {"grid": (2, 3), "fragment": (4, 4)}
    plan = plan_video("fragments", 20, 33, 1, **settings)
    assert plan.origins[0].tolist() == [[[3, 3], [3, 14], [3, 25]], [[13, 3], [13, 14], [13, 25]]]
    u = np.array([[0, 0.5, 0.99], [0.2, 0.4, 0.6]])[..., None]
    plan = plan_video("sama", 20, 33, 1, **settings, draws=(u, u[::-1]))
    down = [[0, 3, 5], [10 + 1, 10 + 2, 10 + 3]]  # int(u * 6), second row of cells from 10
    across = [[1, 11 + 2, 22 + 4], [0, 11 + 3, 22 + 6]]  # int(v * 7)
    assert plan.origins[0].tolist() == np.stack([down, across], -1).tolist()


def test_every_run_has_its_own_draws_and_masks_use_the_first():
    u, v = draw_video("sama-swm", 500, 700, 70, generator=1)
    assert u.shape == v.shape == (7, 7, 3)
    plan = plan_video("sama-swm", 500, 700, 70, draws=(u, v))
    for run, frame in enumerate((0, 32, 64)):
        free = np.array([500 // 7 - 32, 700 // 7 - 32])
        offset = plan.origins[plan.slots[frame, 0]] - np.stack(
            np.meshgrid(np.arange(7) * 71, np.arange(7) * 100, indexing="ij"), -1
        )
        expected = (np.stack([u[..., run], v[..., run]], -1) * free.astype(np.float32)).astype(int)
        assert offset.tolist() == expected.tolist()
    first_full = plan.origins[plan.slots[0, 0]]
    for frame in (0, 33, 69):
        assert plan.origins[plan.slots[frame, 1]].tolist() == first_full.tolist()


@given(
    mode=st.sampled_from(sorted(VIDEO_MODES)),
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fragment=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    frames=st.integers(1, 70),
    aligned=st.integers(1, 40),
    train=st.booleans(),
)
def test_fragments_stay_in_their_cells(mode, size, grid, fragment, frames, aligned, train):
    settings = {"grid": grid, "fragment": fragment, "aligned": aligned}
    draws = draw_video(mode, *size, frames, **settings, generator=3) if train else None
    plan = plan_video(mode, *size, frames, **settings, draws=draws)
    assert plan.slots.shape == (frames, 2)
    assert plan.slots.max() < len(plan.levels) == len(plan.steps) == len(plan.origins)
    cells = (plan.levels // np.array(grid))[:, None, None]
    start = cells * np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
    assert (plan.origins >= start).all()
    assert (plan.origins + np.array(fragment) <= start + cells).all()
    assert plan.steps.tolist() == (np.float32(size) / plan.levels.astype(np.float32)).tolist()


@pytest.mark.parametrize("kind", ["numpy", "torch", "seed"])
def test_draws_come_from_the_generator(kind):
    make = {
        "numpy": lambda: np.random.default_rng(5),
        "torch": lambda: torch.Generator().manual_seed(5),
        "seed": lambda: 5,
    }[kind]
    for mode in ("sama", "fragments"):
        first = draw_video(mode, 300, 400, 64, generator=make())
        again = draw_video(mode, 300, 400, 64, generator=make())
        assert np.array_equal(first, again)
        assert first[0].shape == (7, 7, 2)
        plan_video(mode, 300, 400, 64, draws=first)
    generator = make()
    if kind != "seed":
        assert not np.array_equal(
            draw_image("sama", 300, 400, generator=generator), draw_image("sama", 300, 400, generator=generator)
        )


def test_integer_draws_reach_every_place():
    # 238 x 238, cells of 34: room of 2 pixels, drawn as randint(34 - 32): 0 or 1
    u, v = draw_video("fragments", 238, 238, 320, generator=0)
    assert not np.array_equal(u, v)
    assert set(np.unique(u)) == set(np.unique(v)) == {0, 1}
    u, _ = draw_video("fragments", 100, 100, generator=0)  # enlarged to 224: no room at all
    assert set(np.unique(u)) == {0}


def test_augmentation_draws():
    drawn = [draw_flip_angle(seed) for seed in range(500)]
    flips, angles = np.array([flip for flip, _ in drawn]), np.array([angle for _, angle in drawn])
    assert 0.4 < flips.mean() < 0.6
    assert angles.min() >= -45
    assert angles.max() <= 45
    assert abs(angles.mean()) < 4
    assert 24 < angles.std() < 28  # 90 / sqrt(12) = 26


def test_evaluation_plans_are_kept_and_cannot_be_changed():
    plan = plan_video("sama", 720, 1280)
    assert plan_video("sama", 720, 1280) is plan
    with pytest.raises(ValueError, match="read-only"):
        plan.origins[0] = 0


ONES = np.ones((7, 7, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_video("sama2", 9, 9), r"unknown mode 'sama2'; known modes: sama, sama-mix, .*fragments"),
        (lambda: plan_image("sama-swm", 9, 9), r"unknown mode 'sama-swm'; known modes: sama, sama-spm, fragment"),
        (lambda: plan_video("sama", 0, 9), "source must be at least 1x1 .* got 0x9"),
        (lambda: plan_video("sama", 9, 9, 0), "a clip needs at least 1 frame; got 0"),
        (lambda: plan_video("sama", 9, 9, grid=(0, 7)), "grid must be at least 1x1"),
        (lambda: plan_video("sama", 9, 9, fragment=(32, -1)), "fragment must be at least 1x1"),
        (lambda: plan_video("sama", 9, 9, aligned=0), "aligned must be at least 1 frame; got 0"),
        (lambda: plan_video("sama", 9, 9, draws=(ONES, ONES)), r"draws must be in \[0, 1\); got values from 1.0"),
        (lambda: plan_video("sama", 9, 9, draws=(-ONES, ONES / 2)), r"draws must be in \[0, 1\)"),
        (lambda: plan_video("sama", 9, 9, draws=(ONES * np.nan, ONES / 2)), r"draws must be in \[0, 1\)"),
        (lambda: plan_video("sama", 9, 9, 64, draws=(ONES, ONES)), r"draws must have shape \(7, 7, 2\)"),
        (lambda: plan_video("sama", 9, 9, draws=(ONES,)), "draws must be a pair"),
        (lambda: plan_video("fragments", 300, 300, draws=(ONES / 2, ONES)), r"whole pixels in 0..10"),
        (lambda: plan_video("fragments", 300, 300, draws=(ONES * 11, ONES)), r"whole pixels in 0..10"),
        (lambda: plan_image("sama", 9, 9, angle=float("nan")), "angle must be finite"),
    ],
)
def test_plans_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("alias", ["sama+swm", "sama+spm"])
def test_published_names_are_aliases(alias):
    assert plan_video(alias, 300, 400) is plan_video(alias.replace("+", "-"), 300, 400)


@pytest.mark.parametrize("mode", IMAGE_MODES)
def test_image_levels(mode):
    plan = plan_image(mode, 768, 1024)  # ratio 3
    full, thumbnail = [768, 1024], [256, 341]
    bits = plan.levels[plan.slots[0]].tolist()
    assert bits == ([full, full] if mode == "fragment" else [thumbnail, full])
    assert plan.mask_cell == ((4, 4) if mode == "sama-spm" else (32, 32))
