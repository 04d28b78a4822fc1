"""What sets are made of: contents, the camera, degradations and the demo's label."""

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from sama.corpus.camera import move, pan, take, vary_look, yuv_planes
from sama.corpus.degrade import blur, motion_blur, noise, resize, seeded, stutter
from sama.corpus.i420 import luma, split_planes
from sama.corpus.label import HALF_DELAY, HALF_DISTORTION, TYPICAL, Measured, gmsd, measure, ms_ssim, quality, register
from sama.corpus.sources import COLLAGES, CONTENTS, SOURCES, locate, photograph


@pytest.fixture(scope="module")
def frames():
    return CONTENTS["coins"].pristine(12)


def test_regions_of_a_photograph_do_not_overlap():
    for source in SOURCES:
        parts = [content for content in CONTENTS.values() if content.source == source]
        for n, one in enumerate(parts):
            for other in parts[:n]:
                if one.shot != other.shot:
                    assert one.shot[0] > other.shot[1] or other.shot[0] > one.shot[1]
                    continue
                (a, b, c, d), (e, f, g, h) = one.region, other.region
                assert c <= e or g <= a or d <= f or h <= b


def test_frozen_frames_are_registered(frames):
    held = stutter(frames, 3)
    assert list(register(luma(frames), luma(held))) == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]
    measured = measure(frames, held)
    assert measured.distortion == 0
    assert measured.delay == 1  # 0, 1 and 2 frames late
    noisy = noise(frames, 20, "coins")
    assert list(register(luma(frames), luma(noisy))) == list(range(12))


def test_quality_at_known_points():
    assert quality(Measured(0, 0), 0.1) == 100
    half = HALF_DISTORTION * 0.1 / TYPICAL
    assert quality(Measured(half, 0), 0.1) == pytest.approx(50)
    assert quality(Measured(half, HALF_DELAY), 0.1) == pytest.approx(25)
    assert quality(Measured(2 * half, 0), 0.2) == pytest.approx(50)


def test_ssim_at_one_scale_is_that_of_scikit_image():
    """Planes too small for a second scale."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (13, 13)).astype(np.float32)
    y = x + rng.normal(0, 20, (13, 13)).astype(np.float32)
    _, full = structural_similarity(x, y, data_range=255, full=True, use_sample_covariance=False)
    assert ms_ssim(x, y) == pytest.approx(full.mean(), abs=1e-5)
    assert ms_ssim(x, x) == pytest.approx(1)


def test_gmsd_by_hand():
    """A step of 90 in one column, of which half is lost: magnitudes at half size 45 / 90 beside it, 0 elsewhere."""
    x = np.zeros((32, 32), np.float32)
    x[:, 16:] = 90
    lost = (2 * 90 * 45 + 170) / (90**2 + 45**2 + 170)
    values = np.ones((16, 16))
    values[:, 7:9] = lost
    assert gmsd(x, x / 2) == pytest.approx(values.std(), rel=1e-5)
    assert gmsd(x, x) == 0


def test_noise_blur_and_resize_do_what_they_say(frames):
    flat = np.full_like(frames, 128)
    noisy = [split_planes(frame) for frame in noise(flat, 6, "coins")]
    assert np.std([planes[0] for planes in noisy]) == pytest.approx(6, rel=0.05)
    assert np.std([planes[1] for planes in noisy]) == pytest.approx(3, rel=0.05)
    assert not np.array_equal(noisy[0][0], noisy[1][0])
    for change in (blur, resize, lambda frames, strength: motion_blur(frames, strength, "coins")):
        assert np.array_equal(change(flat, 3.0), flat)
        assert np.std(luma(change(frames, 3.0))) < np.std(luma(frames))


@pytest.mark.parametrize(("length", "expected"), [(1, [0, 1, 0]), (2, [0.25, 0.5, 0.25]), (3, [1 / 3, 1 / 3, 1 / 3])])
def test_motion_blur_is_a_box_of_its_length(length, expected):
    frames = np.zeros((1, 48, 32), np.uint8)
    frames[0, 16, 16] = 240
    smeared = luma(motion_blur(frames, length, "coins"))[0].astype(float)
    line = smeared[16] if smeared[16].sum() > smeared[:, 16].sum() else smeared[:, 16]
    assert line[15:18] / 240 == pytest.approx(expected)


def test_cutouts_move_by_shares_of_a_pixel():
    """A yellow square before grey: its middle, in luma and in chroma, follows one smooth path."""
    frames = np.concatenate([np.full((16, 240, 320), 60, np.uint8), np.full((16, 120, 320), 128, np.uint8)], 1)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (4, 4, 28, 28))
    move(frames, Image.new("RGB", (32, 32), (255, 230, 0)), mask, np.random.default_rng(1))
    middles = []
    for frame in frames:
        for plane, rest, size in zip(split_planes(frame), (60, 128, 128), (1, 2, 2)):
            weight = np.abs(plane.astype(float) - rest)
            total = weight.sum() * size**2 / np.abs(weight).max()
            assert 0.9 * 24**2 < total < 1.1 * 24**2  # all of it is there
            middles.append([(weight.sum(axis) @ np.arange(weight.shape[1 - axis])) / weight.sum() for axis in (1, 0)])
    middles = np.reshape(middles, (16, 3, 2)) * np.array([1, 2, 2])[:, None] + np.array([0, 0.5, 0.5])[:, None]
    assert np.abs(middles - middles[:, :1]).max() < 0.6  # chroma is as fine as it has samples
    step = np.diff(middles[:, 0], axis=0)
    assert 0.5 < np.abs(step).max() < 20
    assert np.abs(np.diff(step, axis=0)).max() < 0.3


def test_contents_to_train_on_have_a_random_look():
    """Softer in some cases, sharper in others, with grain in some; contents of validation and test are left alone."""
    content = CONTENTS["coffee"]
    still = pan(yuv_planes(photograph(locate(SOURCES["coffee"]))), (480, 320), 2, seeded("coffee"))
    assert np.array_equal(content.pristine(2), still)
    for content in (CONTENTS["coins"], COLLAGES["collage-000"]):
        varied = content.pristine(2)
        assert np.array_equal(varied, content.pristine(2))
        assert not np.array_equal(varied, content._replace(varied=False).pristine(2))
    still = still[[0, 0]]

    def detail(frames):
        plane = luma(frames)[0].astype(float)
        return np.abs(np.diff(plane)).mean() / plane.std()

    looks = [vary_look(still, np.random.default_rng(seed)) for seed in range(12)]
    assert {(frames.shape, frames.dtype) for frames in looks} == {(still.shape, still.dtype)}
    outside = [np.mean((plane < 16) | (plane > 235)) for plane in map(luma, looks)]  # the limited range
    assert np.median(outside) == 0
    assert max(outside) < 0.02  # of a light compression
    sharpness = [detail(frames) / detail(still) for frames in looks]
    assert min(sharpness) < 0.9
    assert max(sharpness) > 1.1
    flicker = [np.abs(np.diff(luma(frames).astype(float), axis=0)).mean() for frames in looks]
    assert min(flicker) < 0.2
    assert max(flicker) > 0.5


def test_a_camera_that_sees_the_whole_width_of_a_photograph_stays_within_it():
    """456 * 480 / 852 * 852 / 480 is more than 456, by rounding."""
    ramp = Image.fromarray(np.tile(np.arange(456) // 2, (300, 1)).astype(np.uint8))
    frames = pan([ramp] * 3, (852, 480), 2, seeded("narrow"), scale=852 / 456)
    expected = ramp.resize((852, 480), Image.Resampling.BICUBIC)
    assert np.array_equal(frames[:, :480], np.broadcast_to(expected, (2, 480, 852)))


def test_each_camera_has_a_look_of_its_own():
    """Softer and noisier in some cases; noise is new in every frame, stronger in the light, and sharpened with the
    picture; all of it the same from the same seed, and within the limited range."""
    still = pan(yuv_planes(photograph(locate(SOURCES["coffee"]))), (480, 320), 2, seeded("coffee"), pace=0)
    still = still[[0, 0]]
    looks = [take(still, np.random.default_rng(seed)) for seed in range(16)]
    assert np.array_equal(looks[3], take(still, np.random.default_rng(3)))
    assert {(frames.shape, frames.dtype) for frames in looks} == {(still.shape, still.dtype)}
    assert max(np.mean((plane < 16) | (plane > 235)) for plane in map(luma, looks)) < 0.02  # of a light compression
    noise = [np.abs(np.diff(luma(frames).astype(float), axis=0)).mean() for frames in looks]
    assert min(noise) < 0.2
    assert max(noise) > 1
    quiet = np.argsort(noise)[:5]  # detail of the others is their noise
    edges = [np.abs(np.diff(luma(looks[n])[0].astype(float))).mean() / luma(looks[n])[0].std() for n in quiet]
    before = np.abs(np.diff(luma(still)[0].astype(float))).mean() / luma(still)[0].std()
    assert min(edges) < 0.9 * before

    ramp = np.full((2, 480, 256), 128, np.uint8)
    luma(ramp)[:] = np.linspace(30, 220, 256)
    grows = []
    for seed in range(16):
        change = np.abs(np.diff(luma(take(ramp, np.random.default_rng(seed))).astype(float), axis=0))
        if change.mean() > 0.5:
            grows.append(change[..., 160:240].mean() / change[..., 16:96].mean())
    assert len(grows) > 4
    assert max(grows) > 1.15
