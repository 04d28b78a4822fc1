"""The feed: order, draws, bounds, and files that fail."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import videos
from PIL import Image

import sama
from sama.devices import thread_stream
from sama.feed import Feed
from sama.prefetch import BEGUN, Budget, Ended, Meter, ahead
from sama.sampler import ImageSampler, VideoSampler

SETTINGS = {"decoder": "pyav", "batch": 2, "clip_len": 4, "train": True, "seed": 3, "workers": 2}


def small_sampler(**options):
    return VideoSampler(grid=(2, 2), fragment=(16, 16), **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Seven videos of several sizes and lengths, the fourth of them damaged."""
    root = tmp_path_factory.mktemp("feed")
    paths = []
    for k, size in enumerate([(96, 64), (64, 48), (48, 80), (96, 64), (120, 66), (64, 64), (72, 96)]):
        paths.append(videos.write_video(root / f"{k}.mp4", "libx264", size=size, num_frames=10 + k))
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    return paths


def contents(batches):
    return [(batch.index, batch.names, batch.failed, batch.labels.tolist(), batch.x) for batch in batches]


def assert_same(batches, expected):
    got, want = contents(batches), contents(expected)
    assert [entry[:4] for entry in got] == [entry[:4] for entry in want]
    assert all(torch.equal(a[4], b[4]) for a, b in zip(got, want))


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_do_not_depend_on_the_workers(files, workers):
    labels = np.arange(7.0)
    expected = list(Feed(files, small_sampler(), labels=labels, **SETTINGS).epoch(1))
    assert [len(batch) + len(batch.failed) for batch in expected] == [2, 2, 2]
    assert_same(Feed(files, small_sampler(), labels=labels, **SETTINGS | {"workers": workers}).epoch(1), expected)
    for batch in expected:
        assert batch.labels.tolist() == [float(name[-5]) for name in batch.names]  # 0.mp4 is labelled 0


def test_an_epoch_is_taken_up_in_its_middle(files):
    feed = Feed(files, small_sampler(), labels=range(7), **SETTINGS)
    assert_same(feed.epoch(2, start=2), list(feed.epoch(2))[2:])


def test_ranks_share_each_batch(files):
    both = [Feed(files, small_sampler(), rank=rank, ranks=2, **SETTINGS) for rank in range(2)]
    alone = Feed(files, small_sampler(), **SETTINGS)
    for parts, whole in zip(zip(*(feed.epoch() for feed in both)), alone.epoch(), strict=True):
        assert [name for part in parts for name in part.names] == whole.names
        x = torch.cat([part.x for part in parts if part.x is not None])
        assert torch.equal(x, whole.x)


@pytest.mark.parametrize("train", [False, True])
def test_shares_of_a_batch_may_be_uneven(files, train):
    """12 files over 8 ranks: four ranks take two, four take one, and together they are the batch of one rank."""
    many = [*files, *files]
    feeds = [Feed(many, small_sampler(), batch=12, rank=rank, ranks=8, train=train) for rank in range(8)]
    alone = Feed(many, small_sampler(), batch=12, train=train)
    for parts, whole in zip(zip(*(feed.batches(1) for feed in feeds)), alone.batches(1), strict=True):
        assert np.concatenate(parts).tolist() == whole.tolist()
    assert [len(feed.batches()[0]) for feed in feeds] == [2, 2, 2, 2, 1, 1, 1, 1]


def test_epochs_differ_in_order_and_draws(files):
    feed = Feed(files[:2], small_sampler(), **SETTINGS)
    (first,), (second,) = feed.epoch(0), feed.epoch(1)
    aligned = [second.names.index(name) for name in first.names]
    assert not torch.equal(first.x, second.x[aligned])
    orders = {tuple(Feed(files, small_sampler(), **SETTINGS).batches(epoch)[0]) for epoch in range(8)}
    assert len(orders) > 1


def test_draws_are_those_of_the_sampler(files):
    """A file's generator is made of seed, epoch and number; the rest is `VideoSampler.read`."""
    (batch,) = Feed(files[:1], small_sampler(), **SETTINGS).epoch(5)
    generator = np.random.default_rng([3, 5, 0])
    expected = small_sampler().read(files[0], decoder="pyav", clip_len=4, num_clips=1, train=True, generator=generator)
    assert torch.equal(batch.x, expected)


def test_evaluation_takes_every_file_once_in_order(files):
    feed = Feed(files, small_sampler(), batch=3, clip_len=4, num_clips=2, workers=2, decoder="pyav")
    batches = list(feed.epoch())
    assert [name for batch in batches for name in batch.names] == [str(path) for path in files if path != files[3]]
    assert [len(batch.x) for batch in batches] == [6, 4, 2]
    ((name, reason),) = [failed for batch in batches for failed in batch.failed]
    assert name == str(files[3])
    assert "cut short or damaged" in reason
    expected = small_sampler().read(files[4], decoder="pyav", clip_len=4, num_clips=2)
    assert torch.equal(batches[1].x[:2], expected)
    assert feed.decoders == {"pyav": 6}


def test_a_batch_of_bad_files_is_empty(files, tmp_path):
    (batch,) = Feed([tmp_path / "none.mp4"], small_sampler(), **SETTINGS).epoch()
    assert batch.x is None
    assert batch.names == []
    assert batch.failed == [(str(tmp_path / "none.mp4"), "no such file")]


def test_images(tmp_path):
    for k, size in enumerate([(300, 280), (40, 60)]):
        Image.effect_noise(size, 40).convert("RGB").save(tmp_path / f"{k}.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    (batch,) = Feed(paths, ImageSampler(), batch=2).epoch()
    assert torch.equal(batch.x, ImageSampler()([np.asarray(Image.open(path)) for path in paths]))
    first, again = (next(Feed(paths, ImageSampler(), batch=2, train=True).epoch(1)).x for _ in range(2))
    assert torch.equal(first, again)


def test_wrong_settings_are_named(files):
    with pytest.raises(ValueError, match="no files: got an empty list"):
        Feed([], small_sampler())
    with pytest.raises(ValueError, match="labels must be one a file; got 1 for 7 files"):
        Feed(files, small_sampler(), labels=[1.0])
    with pytest.raises(ValueError, match="unknown decoder 'dali2'; known: auto, hybrid, nvcodec, dali, pyav"):
        Feed(files, small_sampler(), decoder="dali2")
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1; got 2"):
        Feed(files, small_sampler(), rank=2, ranks=2)
    with pytest.raises(ValueError, match=r"training on 9 ranks needs as many files, .* got 7 files, batches of 12"):
        Feed(files, small_sampler(), batch=12, ranks=9, train=True)
    with pytest.raises(ValueError, match=r"training on 3 ranks .* got 7 files, batches of 2"):
        Feed(files, small_sampler(), batch=2, ranks=3, train=True)


def test_ahead_keeps_order_and_bounds():
    """Twenty jobs of three items, the later ones quicker: in order, never more ahead than allowed, errors their own."""
    lock, active, most = threading.Lock(), set(), 0

    def produce(job, ticket):
        nonlocal most
        with lock:
            active.add(job)
            most = max(most, len(active))
        for k in range(3):
            time.sleep(0.002 * (job % 3))
            if job == 7 and k == 1:
                raise KeyError("seven")
            yield job, k

    found, ends = [], {}
    for job, item in ahead(range(20), produce, workers=3, jobs_ahead=4, items_ahead=1):
        if isinstance(item, Ended):
            ends[job] = item.error
            active.discard(job)
        elif item is not BEGUN:
            found.append(item)
    assert found == [(job, k) for job in range(20) for k in range(3) if job != 7 or k < 1]
    assert [job for job, error in ends.items() if error] == [7]
    assert most <= 5


def test_ahead_out_of_order_waits_for_no_job_but_stays_near_it():
    """The first job goes on until fifteen others are done; no job begins twenty after it; beginnings are in order."""
    first_may_end, begun = threading.Event(), []

    def produce(job, ticket):
        yield job, 0
        if job == 0:
            assert first_may_end.wait(30)
        if job == 7:
            raise KeyError("seven")
        yield job, 1

    announced, items, ended = [], [], []
    for job, item in ahead(range(40), produce, workers=3, jobs_ahead=20, items_ahead=4, in_order=False):
        if item is BEGUN:
            announced.append(job)
            begun.append(len(ended))
        elif isinstance(item, Ended):
            assert job in announced
            ended.append((job, item.error))
            if len(ended) == 15:
                assert 0 not in dict(ended)
                first_may_end.set()
        else:
            items.append(item)
    assert announced == sorted(announced) == list(range(40))
    assert sorted(job for job, _ in ended) == list(range(40))
    assert [job for job, error in ended if error] == [7]
    assert sorted(items) == [(job, k) for job in range(40) for k in range(2) if (job, k) != (7, 1)]
    assert all(items.index((job, 0)) < items.index((job, 1)) for job in range(40) if job != 7)
    place = [job for job, _ in ended].index(0)
    assert begun[20] > place  # until the first job is done


@pytest.mark.parametrize("in_order", [True, False])
def test_ahead_ends_its_threads_when_it_is_closed(in_order):
    before = threading.active_count()
    produced = ahead(
        range(100), lambda job, ticket: iter([job] * 50), workers=3, jobs_ahead=5, items_ahead=2, in_order=in_order
    )
    next(produced)
    produced.close()
    assert threading.active_count() == before


def test_a_budget_lets_the_oldest_through_and_holds_the_others():
    """Four jobs that hold 60 of 100 bytes at a time: one after the other; one that wants 1000 is not stuck."""
    held, most = 0, 0
    lock = threading.Lock()

    def produce(job, ticket):
        nonlocal held, most
        with ticket.hold(1000 if job == 2 else 60):
            with lock:
                held += 1
                most = max(most, held)
            time.sleep(0.01)
            with lock:
                held -= 1
            yield job

    items = [item for _, item in ahead(range(5), produce, workers=4, jobs_ahead=5, items_ahead=1, budget_bytes=100)]
    assert [item for item in items if isinstance(item, int)] == [0, 1, 2, 3, 4]
    assert most <= 2  # an oldest one may come beside one that holds already
    assert Budget(5).used == 0


def test_the_meter_tells_who_waits():
    def slow(job, ticket):
        time.sleep(0.03)
        yield job

    meter = Meter()
    for _ in ahead(range(5), slow, workers=1, jobs_ahead=1, items_ahead=1, meter=meter):
        pass
    assert meter.share > 0.8
    meter = Meter()
    for _, item in ahead(range(5), slow, workers=1, jobs_ahead=2, items_ahead=1, meter=meter):
        if isinstance(item, int):
            time.sleep(0.1)
    assert 0 < meter.share < 0.5


def test_a_thread_keeps_its_streams(monkeypatch):
    """One CUDA stream per thread, device and purpose, however many jobs it does."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    cuda = torch.device("cuda:0")
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        calls = [pool.submit(thread_stream, cuda, what) for pool in (one, other) for what in ("a", "a", "b")]
    first, again, b, *others = (call.result() for call in calls)
    assert first is again
    assert len({first, b, *others}) == 4


def test_the_feed_is_public():
    assert sama.Feed is Feed


def test_dali_batches_are_those_of_pyav(tmp_path):
    """The same files, clips and draws; bad files named. Colours differ by DALI's interpolated chroma: the means of an
    input agree to a quarter of its deviation."""
    pytest.importorskip("nvidia.dali.experimental.dynamic", reason="needs nvidia-dali")
    paths = []
    for k, size in enumerate([(96, 64), (64, 96), (80, 80)]):
        paths.append(videos.write_video(tmp_path / f"{k}.webm", "libvpx-vp9", size=size, num_frames=12))
    paths.append(tmp_path / "bad.webm")
    paths[-1].write_bytes(paths[0].read_bytes()[:200])
    settings = SETTINGS | {"batch": 4, "num_clips": 2}
    (pyav,) = Feed(paths, small_sampler(), **settings).epoch()
    settings["decoder"] = "dali"
    whole = Feed(paths, small_sampler(), **settings)
    (dali,) = whole.epoch()
    assert dali.names == pyav.names
    assert [name for name, _ in dali.failed] == [str(paths[-1])]
    assert whole.decoders == {"dali": 3}
    assert dali.x.shape == pyav.x.shape == (6, 3, 4, 32, 32)
    assert (dali.x - pyav.x).abs().mean() < 0.25
    (tight,) = Feed(paths, small_sampler(), **settings, budget_bytes=1).epoch()
    assert torch.equal(tight.x, dali.x)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_an_image_among_videos_is_a_clip_that_stands_still(tmp_path, decoder, train):
    if decoder == "dali":
        pytest.importorskip("nvidia.dali.experimental.dynamic", reason="needs nvidia-dali")
    still, damaged, missing = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.jpg"
    image = np.random.default_rng(0).integers(0, 256, (75, 91, 3), np.uint8)
    Image.fromarray(image).save(still)
    damaged.write_bytes(still.read_bytes()[:200])
    video = videos.write_video(tmp_path / "d.webm", "libvpx-vp9", size=(96, 64), num_frames=12)
    names = [still, damaged, missing, video]
    settings = SETTINGS | {"train": train, "batch": 4, "num_clips": 2, "decoder": decoder}
    (batch,) = Feed(names, small_sampler(), **settings).epoch()
    assert sorted(name for name, _ in batch.failed) == [str(damaged), str(missing)]
    assert sorted(batch.names) == [str(still), str(video)]
    first = 2 * batch.names.index(str(still))
    clips = [np.broadcast_to(image, (4, *image.shape))] * 2
    expected = small_sampler()(clips, train, generator=np.random.default_rng([3, 0, 0]) if train else None)
    assert torch.equal(batch.x[first : first + 2], expected)
