"""Inputs that are sampled once and kept: what they hold, that they are found again, and what a curriculum takes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sama.corpus.codec import Stream, write_video
from sama.errors import InputError, OutputError
from sama.feed import Feed
from sama.sampler import ImageSampler, VideoSampler
from sama.training.cache import CachedFeed, normalised
from sama.training.config import Config, Data, Optim, Sampling, frames_of_epoch

FRAMES, BATCH = 4, 2


def write(path, width, *, seed):
    """A video of 12 frames of noise."""
    frames = np.random.default_rng(seed).integers(16, 236, (12, 72, width), np.uint8)
    write_video(str(path), Stream(frames))


@pytest.fixture
def files(tmp_path):
    """Five videos, of which the fourth is damaged."""
    paths = []
    for k in range(5):
        path = tmp_path / f"{k}.mp4"
        write(path, 64 + 16 * k, seed=k)
        paths.append(path)
    paths[3].write_bytes(b"no video")
    return [str(path) for path in paths]


def feed(files, *, side=16, train=True, normalize=False, seed=3, **options):
    sampler = VideoSampler("sama-c", (2, 2), (side, side), normalize=normalize, layout="patches")
    labels = [float(k) for k in range(len(files))]
    settings = {"batch": BATCH, "clip_len": FRAMES, "interval": 1, "workers": 2, "decoder": "pyav"} | options
    return Feed(files, sampler, labels=labels, train=train, seed=seed, **settings)


def all_inputs(cached, epoch=0):
    """Inputs by the number of the file."""
    return {
        n: x for batch in cached.epoch(epoch) if batch.x is not None for n, x in zip(batch.numbers.tolist(), batch.x)
    }


def test_evaluation_is_that_of_the_feed_to_half_a_grey_level(files, tmp_path):
    cached = CachedFeed(feed(files, train=False, num_clips=2), tmp_path / "cache", "val")
    plain = feed(files, train=False, num_clips=2, normalize=True)
    for ours, theirs in zip(cached.epoch(), plain.epoch(), strict=True):
        assert ours.names == theirs.names
        assert [path for path, _ in ours.failed] == [path for path, _ in theirs.failed]
        torch.testing.assert_close(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=0.5 / 57 + 1e-5)
    assert cached.failed.keys() == {3}


def test_a_curriculum_takes_the_first_frames(files, tmp_path):
    cached = CachedFeed(feed(files), tmp_path / "cache", "train", draws=2)
    whole = all_inputs(cached)
    assert {x.shape[0] for x in whole.values()} == {FRAMES // 2}
    cached.frames = 2
    for number, x in all_inputs(cached).items():
        torch.testing.assert_close(x, whole[number][:1], rtol=0, atol=0)


def test_epochs_take_different_draws_and_the_same_ones_again(files, tmp_path):
    files = files[:1] * 2
    cached = CachedFeed(feed(files), tmp_path / "cache", "train", draws=4)
    seen = {epoch: all_inputs(cached, epoch)[0] for epoch in range(8)}
    assert len({x.numpy().tobytes() for x in seen.values()}) > 1
    for epoch, x in seen.items():
        torch.testing.assert_close(all_inputs(cached, epoch)[0], x, rtol=0, atol=0)


def test_nothing_is_decoded_twice_and_a_set_that_grows_keeps_its_inputs(files, tmp_path, monkeypatch):
    some = [files[0], files[2]]
    before = all_inputs(CachedFeed(feed(some), tmp_path / "cache", "train"))
    read = []
    original = Feed._read

    def watched(self, number, epoch, ticket):
        read.append(self.files[number])
        return original(self, number, epoch, ticket)

    monkeypatch.setattr(Feed, "_read", watched)
    again = all_inputs(CachedFeed(feed(some), tmp_path / "cache", "train"))
    assert read == []
    more = [files[1], files[4], *some]
    grown = all_inputs(CachedFeed(feed(more), tmp_path / "cache", "train"))
    assert sorted(read) == sorted([files[1], files[4]])
    for n in (0, 1):
        torch.testing.assert_close(again[n], before[n], rtol=0, atol=0)
        torch.testing.assert_close(grown[n + 2], before[n], rtol=0, atol=0)
    alone = all_inputs(CachedFeed(feed(more), tmp_path / "other", "train"))  # made in another order
    for n, x in alone.items():
        torch.testing.assert_close(x, grown[n], rtol=0, atol=0)


def test_a_file_that_changed_is_sampled_again(files, tmp_path):
    before = all_inputs(CachedFeed(feed(files[:2]), tmp_path / "cache", "train"))
    write(files[0], 64, seed=99)
    after = all_inputs(CachedFeed(feed(files[:2]), tmp_path / "cache", "train"))
    assert not torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["{", "[]", '{"slots": 3, "done": 4}'])
def test_damaged_notes_are_no_obstacle(files, tmp_path, damage):
    before = all_inputs(CachedFeed(feed(files[:2]), tmp_path / "cache", "train"))
    (notes,) = (tmp_path / "cache").glob("*.json")
    notes.write_text(damage)
    after = all_inputs(CachedFeed(feed(files[:2]), tmp_path / "cache", "train"))
    for n, x in after.items():
        torch.testing.assert_close(x, before[n], rtol=0, atol=0)
    assert json.loads(notes.read_text())["slots"]


def test_a_full_disk_is_said_before_anything_is_sampled(files, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OutputError, match=r"give another data\.cache, or fewer data.draws"):
        CachedFeed(feed(files), tmp_path / "cache", "train")


def test_images_are_kept_unrotated(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 320, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = Feed(
        [str(tmp_path / "a.png")],
        ImageSampler("fragment", (2, 2), (32, 32), normalize=False),
        labels=[1.0],
        batch=1,
        train=True,
        rotate=False,
    )
    x = all_inputs(CachedFeed(images, tmp_path / "cache", "train", draws=3))[0]
    mean, std = (normalised(torch.full((1, 3, 1, 1), v, dtype=torch.uint8)).flatten() for v in (0, 1))
    values = ((x - mean[:, None, None]) / (std - mean)[:, None, None]).round().to(torch.uint8).numpy()
    for row in (0, 32):
        for column in (0, 32):
            part = values[:, row : row + 32, column : column + 32].transpose(1, 2, 0)
            for part_or_mirrored in (part, part[:, ::-1]):
                windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32, 3))[:, :, 0]
                if (windows[..., 0, 0, :] == part_or_mirrored[0, 0]).all(-1).any() and any(
                    np.array_equal(windows[y, x0], part_or_mirrored)
                    for y, x0 in zip(*np.nonzero((windows[..., 0, 0, :] == part_or_mirrored[0, 0]).all(-1)))
                ):
                    break
            else:
                pytest.fail("a fragment is nowhere in the image as it is")


def test_the_curriculum_counts_epochs_in_turn():
    config = Config(
        data=Data(labels="x.csv", cache="c"), optim=Optim(curriculum=[(2, 2), (4, 1)]), sampling=Sampling(clip_len=8)
    )
    assert [frames_of_epoch(config, epoch) for epoch in range(5)] == [2, 2, 4, 8, 8]


@pytest.mark.parametrize("entry", [(3, 1), (16, 1), (0, 1), (2, 0)])
def test_a_curriculum_that_is_none_is_refused(entry):
    with pytest.raises(InputError, match="must be pairs of frames"):
        Config(data=Data(labels="x.csv", cache="c"), optim=Optim(curriculum=[entry]), sampling=Sampling(clip_len=8))


def test_a_curriculum_needs_a_cache():
    with pytest.raises(InputError, match=r"give data\.cache"):
        Config(data=Data(labels="x.csv"), optim=Optim(curriculum=[(2, 1)]))
