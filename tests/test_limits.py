"""What one file may cost: pixels, seconds, memory; and that Ctrl-C ends whatever is being decoded."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from videos import write_video

import sama
from sama import cli, prefetch
from sama.decode import open_video
from sama.errors import DecodeError, InputError
from sama.feed import Feed
from sama.limits import MAX_SCANS, Guard, Limits
from sama.model import random_model
from sama.prefetch import BEGUN, Ended, ahead
from sama.scoring import score_files


@pytest.fixture(scope="module")
def model():
    model = random_model(device="cpu")
    model.metadata |= {"clip_len": 8, "num_clips": 2}
    model.sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16), layout="patches")
    model.token_maps = lambda samples: samples.flatten(1).double().cos().mean(1)[:, None]
    return model


def gif(width: int, height: int, frames: int = 20) -> bytes:
    """A GIF of a few hundred bytes whose frames are as large as its header says."""
    frame = b"!\xf9\x04\0\x0a\0\0\0," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF1, 0, 0) + bytes(12) + frames * frame + b";"


@pytest.mark.parametrize("name", ["max_pixels", "timeout"])
def test_limits_are_checked(name, capsys):
    with pytest.raises(InputError, match=f"{name} must be more than 0; got 0"):
        Limits(**{name: 0})
    for command in ("score x", "inspect x", "evaluate x .", "data check x ."):
        assert cli.main([*command.split(), f"--{name.replace('_', '-')}", "0"]) == 2
        assert (
            capsys.readouterr().err
            == f"sama: --{name.replace('_', '-')} must be more than 0; got 0{'.0' * (name == 'timeout')}\n"
        )


def test_a_frame_larger_than_the_limit_is_not_decoded(clip, tmp_path, model):
    guard = Guard("x", Limits(max_pixels=96 * 64 - 1))
    with pytest.raises(DecodeError, match=r"96x64 are more than 6,143 pixels \(--max-pixels\)"):
        open_video(clip("h264.mp4"), decoder="pyav", guard=guard)
    with open_video(clip("h264.mp4"), decoder="pyav", guard=Guard("x", Limits(max_pixels=96 * 64))) as video:
        assert len(list(video.frames([3]))) == 1
    (tmp_path / "bomb.gif").write_bytes(gif(16000, 16000))
    began = time.monotonic()
    (row,) = score_files([str(tmp_path / "bomb.gif")], model)
    assert row.status == "error"
    assert "frames of more than 134,217,728 pixels are not (--max-pixels)" in row.reason
    assert time.monotonic() - began < 10  # it took 32 s and 5 GB


def test_a_file_that_takes_too_long_is_a_row(clip, model):
    rows = list(score_files([str(clip("h264.mp4"))] * 2, model, limits=Limits(timeout=1e-4)))
    assert {row.reason for row in rows} == {"takes longer than 0 seconds to read (--timeout)"}
    feed = Feed([clip("h264.mp4")], model.sampler, clip_len=8, limits=Limits(timeout=1e-4))
    assert [why for batch in feed.epoch() for _, why in batch.failed] == [rows[0].reason]
    with pytest.raises(DecodeError, match="takes longer than 0 seconds"):
        model.score(clip("h264.mp4"), limits=Limits(timeout=1e-4))
    (row,) = score_files([str(clip("h264.mp4"))], model, limits=Limits(timeout=float("inf")))
    assert row.status == "ok"


def test_waiting_does_not_count():
    guard = Guard("x", Limits(timeout=0.5))
    with guard.waiting():
        time.sleep(0.6)
        assert guard.late() is None
    for _ in guard.outside(range(2)):
        time.sleep(0.3)
    guard.check_time()
    time.sleep(0.6)
    with pytest.raises(DecodeError, match="takes longer"):
        guard.check_time()


def test_the_default_time_grows_with_clips_and_bytes(tmp_path):
    with open(tmp_path / "large.mov", "wb") as file:
        file.truncate(100 << 30)  # holds no block on the disk
    guard = Guard(str(tmp_path / "large.mov"), Limits())
    guard.allow_clips(4)
    assert guard._limit == 600 + 10240 + 480
    guard = Guard(str(tmp_path / "large.mov"), Limits(timeout=60))
    guard.allow_clips(4)
    assert guard._limit == 60


@pytest.mark.parametrize("in_order", [True, False])
def test_a_job_that_cannot_be_ended_is_given_up(monkeypatch, in_order):
    """Its thread is in a library's code; the others go on, with as many threads as before."""
    monkeypatch.setattr(prefetch, "SPARE_SECONDS", 0.1)
    monkeypatch.setattr(prefetch, "LOOK_SECONDS", 0.1)
    release = threading.Event()

    def produce(job, ticket):
        ticket.guard = Guard(str(job), Limits(timeout=0.3))
        yield job
        if job in (1, 2):
            release.wait(20)
            yield "too late"

    ends, items = {}, []
    events = ahead(range(9), produce, workers=2, jobs_ahead=4, items_ahead=2, in_order=in_order)
    for job, item in events:
        if isinstance(item, Ended):
            ends[job] = item.error
        elif item is not BEGUN:
            items.append(item)
    assert {0, *range(3, 9)} <= set(items) <= set(range(9))
    assert {job: str(error) for job, error in ends.items() if error} == {
        job: f"{job}: takes longer than 0 seconds to read (--timeout)" for job in (1, 2)
    }
    assert len(ends) == 9
    release.set()


def test_opening_takes_its_share_of_the_memory(clip):
    """Files are opened one after another where their decoders together would hold more than the budget."""
    held, most = 0, []

    @contextmanager
    def reserve(size):
        nonlocal held
        held += size
        most.append(held)
        yield
        held -= size

    with open_video(clip("h264.mp4"), decoder="pyav", guard=Guard("x", reserve=reserve)) as video:
        assert most == [video.held_bytes(32)]
    assert held == 0


def jpeg_of_many_scans(path: Path, scans: int) -> Path:
    Image.new("RGB", (3000, 3000)).save(path, "JPEG", progressive=True)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + scans * data[data.rfind(b"\xff\xda") : -2] + data[-2:])
    return path


STUCK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from sama.decode import images
images.has_too_many_scans = lambda data: print("decoding", flush=True)  # or it would not be decoded
from sama.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("command", "number"), [("score", signal.SIGINT), ("score", signal.SIGTERM), ("inspect", signal.SIGINT)]
)
def test_signals_end_it_whatever_is_being_decoded(tmp_path, command, number):
    """`score` decodes in a thread, `inspect` in the main one: both are within libjpeg for a minute."""
    path = jpeg_of_many_scans(tmp_path / "x.jpg", 2000)
    out = {"score": tmp_path / "x.csv", "inspect": tmp_path / "x.png"}[command]
    arguments = [command, str(path), "--random-weights", "--device", "cpu", "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert any("decoding" in line for line in process.stdout)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
        assert time.monotonic() - began < 3  # 2 s where nothing else runs, as other tests do here
        said = process.stderr.read()
    assert "Traceback" not in said
    kept = f"; 0 rows are kept in {out}.partial: --resume continues from them" if command == "score" else ""
    assert said.splitlines()[-1] == f"interrupted{kept}"


def test_a_command_that_has_ended_leaves_signals_as_they_were(clip, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc").exists() else 0
    assert cli.main(["score", str(tmp_path / "none.mp4")]) == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    deadline = time.monotonic() + 5
    while descriptors and len(os.listdir("/proc/self/fd")) > descriptors and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not descriptors or len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_motion_jpeg_of_many_scans(tmp_path):
    path = jpeg_of_many_scans(tmp_path / "x.mjpeg", MAX_SCANS)
    with pytest.raises(DecodeError, match="frame 0 is a JPEG of more than 100 scans"):
        open_video(path, decoder="pyav")


def test_a_container_whose_header_is_large(tmp_path):
    path = write_video(tmp_path / "x.avi", "rawvideo")
    path.write_bytes(path.read_bytes().replace(struct.pack("<II", 96, 64), struct.pack("<II", 20_000, 20_000)))
    with pytest.raises(DecodeError, match="can be decoded"):
        open_video(path, decoder="pyav", guard=Guard(str(path)))
