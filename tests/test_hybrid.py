"""Files decoded by a GPU and CPU cores at one time, on the unkind stand-in: order, both sides, faults, shutdown."""

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_gpu
from test_engine import expected, files, model  # noqa: F401 - fixtures
from videos import write_video

from sama import cli, scoring
from sama.decode import hybrid, open_video
from sama.decode.hybrid import Seats
from sama.decode.pyav import PyavVideo
from sama.errors import DecodeError, InputError
from sama.feed import Feed
from sama.limits import Guard, Limits
from sama.scoring import score_files


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(hybrid.os, "cpu_count", lambda: 8)
    with fake_gpu() as nvcodec:
        yield nvcodec


@pytest.fixture
def seats(monkeypatch):
    """The seats that a run has made, in a list."""
    made, make = [], hybrid.seats
    monkeypatch.setattr(scoring.hybrid, "seats", lambda *sizes: made.append(make(*sizes)) or made[-1])
    return made


def links(folder, files, count):  # noqa: F811
    """So many names of the files, in turn."""
    paths = [folder / f"{number:04}{Path(files[number % len(files)]).suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        path.symlink_to(files[number % len(files)])
    return [str(path) for path in paths]


def test_both_sides_decode_and_nobody_can_tell(gpu, model, files, expected, seats, tmp_path):  # noqa: F811
    """With faults in five of a hundred runs of packets: every row in its order and right, the failed ones by PyAV."""
    gpu.library.fault_rate = 0.05
    gpu.library.seed(3)
    gpu.library.rate = lambda decoder: time.sleep(0.0005)  # or the CPU would get nothing to do
    deep = write_video(tmp_path / "deep.mkv", "libx264", size=(64, 48), pix_fmt="yuv420p10le")  # not for the GPU
    paths = links(tmp_path, [*files, str(deep)], 300)
    rows = list(score_files(paths, model, decoder="hybrid"))
    assert [row.path for row in rows] == paths
    right = expected | {row.path: row for row in score_files([str(deep)], model, decoder="pyav")}
    for row in rows:
        assert (row.status, row.clips) == ("ok", right[str(Path(row.path).readlink())].clips), row
    by = [row.decoder for row in rows]
    assert {row.decoder for row in rows if row.path.endswith(".mkv") and Path(row.path).readlink() == deep} == {"pyav"}
    assert gpu.library.faults > 10
    assert min(by.count("nvcodec"), by.count("pyav") - gpu.library.faults - 300 // 7) > 20
    (used,) = seats
    assert used.limits == {"nvcodec": 21, "pyav": 4}
    assert used.most == {"nvcodec": 21, "pyav": 4}
    assert used.taken == {"nvcodec": [], "pyav": []}
    assert gpu.library.most <= 14


def test_memory_is_bounded(gpu, model, files, monkeypatch):  # noqa: F811
    """Room for two files: no more are decoded at one time, whoever does it, and none waits for ever."""
    with PyavVideo(files[3]) as video:
        size = video.held_bytes(8)
    monkeypatch.setattr(scoring, "_budget", lambda device: 2 * size)
    decoding, most, clips_of = [], [], scoring._clips_of

    def counted(*arguments):
        decoding.append(1)
        most.append(len(decoding))
        try:
            yield from clips_of(*arguments)
        finally:
            decoding.pop()

    monkeypatch.setattr(scoring, "_clips_of", counted)
    rows = list(score_files([files[3]] * 12, model, decoder="hybrid"))
    assert [row.status for row in rows] == ["ok"] * 12
    assert max(most) <= 3  # two, and the oldest, which is always let through


@pytest.mark.parametrize("after", [1, 5])
def test_shutdown_under_load(gpu, model, files, tmp_path, after):  # noqa: F811
    """Whoever has had enough gets his threads back, those that wait for seats too."""
    before = threading.active_count()
    paths = links(tmp_path, files, 200)
    with closing(score_files(paths, model, decoder="hybrid")) as rows:
        for _ in range(after):
            next(rows)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_seats():
    """The GPU first; the CPU for what the GPU refuses, before others; the last files wait for the GPU."""
    stop, guards = threading.Event(), [Guard(str(n), Limits(timeout=1)) for n in range(9)]
    seats = Seats(gpu=1, cpu=1, files=5)
    with seats.take(guards[0], gpu=True, stop=stop) as first, seats.take(guards[1], gpu=True, stop=stop) as second:
        assert (first, second) == ("nvcodec", "pyav")
        got = []

        def refused():
            with seats.take(guards[2], gpu=False, stop=stop) as seat:
                got.append(seat)

        thread = threading.Thread(target=refused)
        thread.start()
        while not seats.for_cpu:
            time.sleep(0.001)
        assert seats._free(True) is None
        guards[1]._begun -= 99  # given up, in a library that does not come back
        thread.join(10)
        assert got == ["pyav"]
    assert seats._free(True) == "nvcodec"
    with seats.take(guards[3], gpu=True, stop=stop):
        assert seats.remaining == 1
        assert seats._free(True) is None  # the last one
        assert seats._free(False) == "pyav"
        stop.set()
        with pytest.raises(DecodeError, match="stopped"), seats.take(guards[4], gpu=True, stop=stop):
            pass


def test_one_file_and_training(gpu, model, files):  # noqa: F811
    """Where there is one file at a time, the GPU decodes what it can."""
    with open_video(files[0], decoder="hybrid", device="cuda") as video:
        assert video.decoder == "nvcodec"
    feed = Feed(files, model.sampler, batch=3, clip_len=8, decoder="hybrid")
    assert sum(len(batch) for batch in feed.epoch()) == len(files)
    assert feed.decoders["nvcodec"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_does_not_fall_back(clip, model, capsys):  # noqa: F811
    with pytest.raises(InputError, match="decoder hybrid needs a GPU"):
        list(score_files([str(clip("h264.mp4"))], model, decoder="hybrid"))
    assert cli.main(["score", str(clip("h264.mp4")), "--device", "cpu", "--decoder", "hybrid"]) == 2
    assert "sama: decoder hybrid needs a GPU, its driver's libnvcuvid and PyNvVideoCodec" in capsys.readouterr().err
