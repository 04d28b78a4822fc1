"""Bad files say what is wrong, give the frames that they hold, and leave nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from pathlib import Path

import av
import numpy as np
import pytest
from videos import assert_same, full_decode, picture, write_audio, write_video

from sama.decode import open_video
from sama.errors import DecodeError


def make_missing(path, clip):
    return path


def make_folder(path, clip):
    path.mkdir()


def make_empty(path, clip):
    path.touch()


def make_text(path, clip):
    path.write_text("clip.mp4, 10, 25, 3.2\n" * 50)


def make_noise(path, clip):
    path.write_bytes(random.Random(0).randbytes(5000))


def make_cut_mp4(path, clip):
    whole = clip("h264.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def make_audio(path, clip):
    write_audio(path)


def make_frameless(path, clip):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def make_undecodable(path, clip):
    path.write_bytes(clip("h264.mp4").read_bytes())
    overwrite_packets(path, range(40))


def overwrite_packets(path, numbers):
    """Fill packets of a file with 0xFF."""
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        start, size = spans[number]
        data[start : start + size] = b"\xff" * size
    path.write_bytes(data)


BAD_FILES = {
    "missing.mp4": (make_missing, "no such file"),
    "folder.mp4": (make_folder, "a directory, not a file"),
    "empty.mp4": (make_empty, "the file is empty"),
    "text.mp4": (make_text, "a text file, not a video"),
    "text.txt": (make_text, "text|not a video file"),
    "noise.mp4": (make_noise, "not a video file that FFmpeg can read"),
    "cut.mp4": (make_cut_mp4, r"cut short or damaged: its table of contents \(moov\) cannot be read"),
    "audio.m4a": (make_audio, "has no video stream; found: audio"),
    "frameless.avi": (make_frameless, "its video stream holds no frames"),
    "frameless.mkv": (make_frameless, "it ends before its first frame"),
    "undecodable.mp4": (make_undecodable, "none of its 40 h264 packets can be decoded"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_says_what_is_wrong(name, clip, tmp_path, capfd):
    make, reason = BAD_FILES[name]
    make(tmp_path / name, clip)
    with pytest.raises(DecodeError, match=reason) as caught:
        open_video(tmp_path / name, decoder="pyav")
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"
    assert capfd.readouterr() == ("", "")


def test_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        image = av.VideoFrame.from_ndarray(picture(0, 64, 48), format="rgb24").reformat(format="yuvj420p")
        container.mux(cover.encode(image))
        container.mux(cover.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    with pytest.raises(DecodeError, match="no video stream; found: audio, cover picture"):
        open_video(path, decoder="pyav")


def test_damaged_frames_are_named(clip, tmp_path, capfd):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(clip("h264-no-b.mp4").read_bytes())
    overwrite_packets(path, range(25, 40))
    expected = full_decode(clip("h264-no-b.mp4"))
    with open_video(path, decoder="pyav") as video:
        assert video.info.num_frames == 40
        for n, frame in video.frames(range(25)):
            assert_same(frame, expected[n])
        with pytest.raises(DecodeError, match="frame 30 cannot be decoded, 25 of 40 frames are readable"):
            list(video.frames([3, 30, 39]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["h264.mkv", "h264.ts", "h264.flv", "mpeg4.avi", "vp9.webm"])
def test_cut_file_gives_the_frames_it_holds(clip, name, tmp_path):
    whole = clip(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) * 2 // 3])
    expected = full_decode(clip(name))
    with open_video(path, decoder="pyav") as video:
        assert 5 < video.info.num_frames < 40
        for n, frame in video.frames(range(video.info.num_frames)):
            if n < 4:  # the last ones may be damaged
                assert_same(frame, expected[n])


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.ts", "vp9.webm", "mpeg4.avi", "h264.flv"])
def test_flipped_bits_never_crash(clip, name, tmp_path):
    whole = clip(name).read_bytes()
    for seed in range(4):
        draw = random.Random(seed)
        data = bytearray(whole)
        for at in draw.sample(range(1500, len(data)), 20):
            data[at] ^= 1 << draw.randrange(8)
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(data)
        with contextlib.suppress(DecodeError), open_video(path, decoder="pyav") as video:
            sizes = {frame.width for _, frame in video.frames(range(0, video.info.num_frames, 3))}
            assert sizes <= {video.info.width}  # 96, unless the size itself was hit


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files_and_threads() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


@needs_proc
def test_500_files_leave_nothing_behind(clip, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(clip("h264.mp4").read_bytes()[:2000])

    def read(times):
        for _ in range(times):
            with open_video(clip("h264-no-b.mp4"), threads=2, decoder="pyav") as video:
                assert len(list(video.frames([1, 2]))) == 2
                next(video.frames([5, 30]))
            with pytest.raises(DecodeError):
                open_video(bad, decoder="pyav")

    read(50)
    gc.collect()
    before, memory = open_files_and_threads(), resident_mib()
    read(450)
    gc.collect()
    assert open_files_and_threads() == before
    assert resident_mib() - memory < 8


@needs_proc
def test_memory_does_not_grow_with_the_clip(tmp_path):
    options = {"preset": "ultrafast", "g": "30"}
    path = write_video(tmp_path / "long.mp4", "libx264", size=(640, 480), num_frames=60, options=options)
    with open_video(path, threads=2, decoder="pyav") as video:
        list(zip(range(20), video.frames(range(60))))
        memory = resident_mib()
        assert max(resident_mib() for _ in video.frames(range(60))) - memory < 10  # all its frames: 26 MiB
