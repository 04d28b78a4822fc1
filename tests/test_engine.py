"""Decoding on a GPU under load and with failures: scores, memory, faults and shutdown, on an unkind stand-in.

`nvcodec_stub.py` takes the place of the library, with FFmpeg for the GPU: what comes out right is right to the bit.
"""

import gc
import os
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import nvcodec_stub
import pytest
import torch
from fake_gpu import fake_gpu
from videos import write_video

import sama
from sama import inspection
from sama.decode import decode_with, open_video
from sama.errors import DecodeError
from sama.feed import Feed
from sama.model import random_model
from sama.scoring import score_files

X264 = {"bf": "3", "x264-params": "b-pyramid=normal:keyint=16:min-keyint=16:scenecut=0"}
X265 = {"x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=4:pools=1:frame-threads=1:open-gop=1"}
KINDS = [  # sizes, codecs and settings that sessions must not mix
    ("a.mp4", "libx264", {"options": X264}),
    ("b.mkv", "libx264", {"options": X264 | {"bf": "0"}}),
    ("c.ts", "libx264", {"options": X264, "size": (80, 48)}),
    ("d.mp4", "libx265", {"options": X265, "size": (144, 144)}),
    ("e.webm", "libvpx-vp9", {"options": {"g": "15"}, "size": (128, 128)}),
    ("f.mp4", "libx264", {"options": {"profile": "baseline", "g": "8"}}),
]


@pytest.fixture
def gpu():
    """A GPU whose memory is the main memory, with an unkind library: `auto` finds it, and everything runs."""
    with fake_gpu() as nvcodec:
        yield nvcodec


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    small = {"size": (64, 48), "num_frames": 40}
    return [str(write_video(folder / name, codec, **small | options)) for name, codec, options in KINDS]


@pytest.fixture(scope="module")
def model():
    """A score that depends on every pixel of the inputs and costs nothing."""
    model = random_model(device="cpu")
    model.metadata |= {"clip_len": 8, "num_clips": 3}
    model.sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16), layout="patches")
    model.token_maps = lambda samples: samples.flatten(1).double().cos().mean(1)[:, None]
    return model


@pytest.fixture(scope="module")
def expected(model, files):
    return {row.path: row for row in score_files(files, model, decoder="pyav")}


def failing(nvcodec, monkeypatch, after):
    """Make every session fail at packet number `after` of its life."""
    send = nvcodec.NvcodecSession._send

    def fail(self, number, unit, path):
        if unit.data and self.sent == after:
            raise DecodeError(path, f"the GPU's decoder failed at the packet of frame {unit.frame} (made to)")
        return send(self, number, unit, path)

    monkeypatch.setattr(nvcodec.NvcodecSession, "_send", fail)


def test_scores_are_those_of_pyav_to_the_bit(gpu, model, files, expected):
    rows = list(score_files(files * 5, model))
    assert [row.path for row in rows] == files * 5
    assert {row.decoder for row in rows} == {"nvcodec"}
    for row in rows:
        assert (row.status, row.clips, row.times) == ("ok", expected[row.path].clips, expected[row.path].times)
    counts = gpu.pool(torch.device("cpu")).counts
    assert counts.reused >= len(rows) - 14 - counts.dropped - len(KINDS) * 3
    assert counts.most <= 14


@pytest.mark.parametrize("after", [0, 5, 18])
def test_auto_goes_on_with_pyav_when_the_gpu_fails(gpu, model, files, expected, monkeypatch, after):
    """At the first packet, in the first clip, and when a clip has been scored already; the whole file is read again."""
    failing(gpu, monkeypatch, after)
    for path in files:
        (row,) = score_files([path], model)
        assert (row.status, row.decoder, row.reason) == ("ok", "pyav", "")
        assert (row.clips, row.times) == (expected[path].clips, expected[path].times)
        (row,) = score_files([path], model, decoder="nvcodec")
        assert (row.status, row.score) == ("error", None)
        assert "the GPU's decoder failed at the packet of frame" in row.reason
    assert gpu.pool(torch.device("cpu")).alive == 0


def test_everything_that_reads_files_falls_back(gpu, model, files, expected, monkeypatch, tmp_path):
    failing(gpu, monkeypatch, 18)
    path = files[0]
    assert list(model.score(path).clips) == expected[path].clips
    with pytest.raises(DecodeError, match="made to"):
        model.score(path, decoder="nvcodec")
    told = {"clip_len": 8, "num_clips": 2, "train": True}
    sampler = model.sampler
    for seed in (3, torch.Generator()):
        x = sampler.read(path, generator=seed, **told)
        if isinstance(seed, torch.Generator):
            seed.manual_seed(torch.Generator().initial_seed())
        assert torch.equal(x, sampler.read(path, generator=seed, decoder="pyav", **told))
    feeds = [
        Feed(files[:2], sampler, batch=2, clip_len=8, num_clips=2, train=True, decoder=name)
        for name in ("auto", "pyav")
    ]
    (got,), (right,) = (list(feed.epoch(1)) for feed in feeds)
    assert torch.equal(got.x, right.x)
    assert feeds[0].decoders == {"pyav": 2}
    with pytest.raises(DecodeError, match="made to"):
        sampler.read(path, decoder="nvcodec", **told)
    monkeypatch.setattr(inspection, "decode_with", lambda use, path, **options: decode_with(use, path, **options))
    monkeypatch.setattr(model, "token_maps", lambda samples: torch.zeros(len(samples), 4, 2, 2), raising=False)
    inspection.draw(path, model, tmp_path / "page.svg")


def test_an_error_of_its_user_is_no_reason_to_fall_back(gpu, files):
    def use(video):
        used.append(video.decoder)
        raise ValueError("mine")

    used = []
    with pytest.raises(ValueError, match="mine"):
        decode_with(use, files[0])
    assert used == ["nvcodec"]


MANY = 1000 if os.environ.get("SAMA_ALL_FILES") == "1" else 300  # files


def test_many_files_with_faults(gpu, model, files, expected, tmp_path):
    """Five runs of packets in a hundred fail, in three ways: every row is there and right, whoever decoded it. A
    thousand files with SAMA_ALL_FILES=1."""
    library = gpu.library
    paths = []
    for number in range(MANY):
        paths.append(tmp_path / f"{number:04}{Path(files[number % len(files)]).suffix}")
        paths[-1].symlink_to(files[number % len(files)])
    library.fault_rate = 0.05
    library.seed(7)
    rows = list(score_files([str(path) for path in paths], model))
    assert [row.path for row in rows] == [str(path) for path in paths]
    for row in rows:
        right = expected[str(Path(row.path).readlink())]
        assert (row.status, row.clips) == ("ok", right.clips), row
    by_pyav = sum(row.decoder == "pyav" for row in rows)
    counts = gpu.pool(torch.device("cpu")).counts
    assert MANY // 50 <= by_pyav <= library.faults
    assert by_pyav <= counts.dropped
    assert library.most <= 14
    assert library.most == counts.most


def test_few_sessions_and_one_that_cannot_be_made(gpu, model, files, expected):
    """Another program holds all sessions but three of those that are believed to be there: PyAV does the rest."""
    gpu.library.most_sessions = 3
    rows = list(score_files(files * 10, model))
    assert all(row.clips == expected[row.path].clips for row in rows)
    assert {row.decoder for row in rows} == {"nvcodec", "pyav"}


def test_twice_the_engines_that_the_library_reports(gpu):
    cpu = torch.device("cpu")
    assert (gpu.engines(cpu), gpu.sessions(cpu), gpu.pool(cpu).limit) == (7, 14, 14)
    for reported, engines in ((None, 2), (0, 2), (1, 1)):
        gpu.engines.cache_clear()
        gpu.library.engines = reported
        assert gpu.engines(cpu) == engines
        assert (gpu.sessions(cpu), gpu.workers(cpu)) == (2 * engines, 3 * engines)


def test_more_videos_than_sessions_in_one_thread(gpu, files):
    """Frames of five videos in turn, with two sessions: sessions are taken away and lent again, none waits for ever."""
    gpu.library.engines = 1
    gpu.engines.cache_clear()
    gpu.pool.cache_clear()
    videos = [gpu.NvcodecVideo(path) for path in (files * 2)[:5]]
    found = [[] for _ in videos]
    for frames in zip(*(video.frames(range(0, 40, 4)) for video in videos), strict=True):
        for k, (n, frame) in enumerate(frames):
            found[k].append((n, [np.asarray(plane).copy() for plane in frame.channels()]))
    for path, got in zip((files * 2)[:5], found):
        with open_video(path, decoder="pyav") as pyav:
            for (n, planes), (right, frame) in zip(got, pyav.frames(range(0, 40, 4)), strict=True):
                assert n == right
                for plane, wanted in zip(planes, frame.channels()):
                    np.testing.assert_array_equal(plane, wanted)
    assert gpu.library.most == 2


def test_a_frame_of_something_else_is_never_taken(gpu, files):
    """A session left in the middle of a file goes on with another; one that gives an old frame is ended."""
    pool = gpu.pool(torch.device("cpu"))
    for path in (files[0], files[0], files[3]):
        with gpu.NvcodecVideo(path) as video:
            frames = video.frames(range(40))
            for _ in range(7):
                next(frames)
            frames.close()
            assert [n for n, _ in video.frames([1, 38])] == [1, 38]
    assert (pool.counts.created, pool.counts.dropped) == (2, 0)
    with pool.lease(gpu.NvcodecVideo(files[0]).key) as lease:
        assert not lease.session.pending
        assert lease.session.sent > 20
    gpu.library.fault_rate = 1.0
    gpu.library.random.choice = lambda faults: "repeats"
    with gpu.NvcodecVideo(files[1]) as video, pytest.raises(DecodeError, match="decoded before"):
        list(video.frames(range(40)))
    assert pool.counts.dropped == 1


def test_memory_does_not_grow_with_the_file(gpu, tmp_path, monkeypatch):
    """Surfaces that are alive at one time, in the package and in the library: the same for 60 frames and for 400."""
    most = {}
    sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16), backend="reference", layout="patches")
    copy = gpu.NvcodecSession._copy
    for count in (60, 400):
        alive, peak = 0, 0

        def let_go():
            nonlocal alive
            alive -= 1

        def counted(self, surface, path):
            nonlocal alive, peak
            frame = copy(self, surface, path)
            alive += 1
            peak = max(peak, alive)
            weakref.finalize(frame.untyped_storage(), let_go)
            return frame

        monkeypatch.setattr(gpu.NvcodecSession, "_copy", counted)
        path = write_video(tmp_path / f"{count}.mp4", "libx264", size=(64, 48), num_frames=count, options=X264)
        with gpu.NvcodecVideo(str(path)) as video:
            indices = np.arange(0, count // 8 * 8, 2).reshape(2, -1)
            inputs = list(sampler.stream(video, indices))
            held = video.held_bytes(indices.shape[1])
        with open_video(path, decoder="pyav") as video:
            for got, right in zip(inputs, sampler.stream(video, indices), strict=True):
                assert torch.equal(got, right)
        gc.collect()
        most[count] = peak, gpu.library.surfaces, held
    assert most[60] == most[400]
    assert most[400][0] <= 8 + 2
    assert most[400][1] <= 8


def test_ended_in_the_middle(gpu, model, files):
    """A run that is closed, or fails, leaves no thread and no lease behind, and the sessions go on serving."""
    pool = gpu.pool(torch.device("cpu"))
    for taken in (1, 7):
        with closing(score_files(files * 20, model)) as rows:
            for _, _ in zip(range(taken), rows):
                pass
        assert (pool.leases, list(pool.waiting), pool.alive) == ([], [], len(pool.idle))
    with pytest.raises(KeyboardInterrupt):
        interrupted(score_files(files * 20, model))
    assert (pool.leases, list(pool.waiting), pool.alive) == ([], [], len(pool.idle))
    assert all(row.status == "ok" for row in score_files(files, model))


def interrupted(rows):
    with closing(rows):
        next(rows)
        raise KeyboardInterrupt


def test_a_damaged_frame_comes_out_as_any_other(gpu, files):
    """The library prints that and tells nobody: what is known of it here, to be put right when it does."""
    gpu.library.damage_rate = 0.5
    with gpu.NvcodecVideo(files[0]) as video:
        assert len(list(video.frames(range(40)))) == 40
    assert gpu.library.damaged > 5


def test_a_session_of_another_device_is_noticed(gpu, files):
    """That the stand-in sees it: without the guard, a packet would go to whichever device is current."""
    with gpu.NvcodecVideo(files[0]) as video:
        gpu.library.current.device = 1
        assert len(list(video.frames([0]))) == 1
    decoder = nvcodec_stub.CreateDecoder(gpuid=0, codec="h264", cudacontext=0, cudastream=0, usedevicememory=True)
    gpu.library.current.device = 1
    with pytest.raises(RuntimeError, match="another device is current"):
        decoder.Decode(nvcodec_stub.PacketData())
    with pytest.raises(RuntimeError, match="used after it had failed"):
        decoder.Decode(nvcodec_stub.PacketData())
    gpu.library.crimes.clear()
