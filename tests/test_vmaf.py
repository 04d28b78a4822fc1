"""VMAF as the label, against libvmaf run from files; the FFmpeg program: what it lacks, how it fails, that it ends."""

import json
import subprocess
import threading
import time
from pathlib import Path

import masters as made
import numpy as np
import pytest

from sama.corpus.codec import Stream, read_video
from sama.corpus.degrade import blur
from sama.corpus.ffmpeg import find_ffmpeg
from sama.corpus.kinds import KERNELS, defocus, disk_mean, hold, kept, kinds, lose_packets, resample
from sama.corpus.vmaf import METRICS, VmafLabeller
from sama.errors import FfmpegError, InputError, MissingLibraryError


@pytest.fixture(scope="module")
def ffmpeg():
    return find_ffmpeg()


@pytest.fixture(scope="module")
def clip():
    return made.moving(320, 240, 6)


def test_labels_are_those_of_libvmaf_run_from_files(ffmpeg, clip, tmp_path):
    shown = blur(clip, 1.2)
    labeller = VmafLabeller(ffmpeg)
    row = labeller.label(clip, shown)
    assert tuple(row) == labeller.columns
    raw = ["-f", "rawvideo", "-pixel_format", "yuv420p", "-video_size", "320x240"]
    clip.tofile(tmp_path / "reference")
    shown.tofile(tmp_path / "shown")
    inputs = [*raw, "-i", "file:shown", *raw, "-i", "file:reference"]
    features = "feature=name=cambi|name=psnr_hvs|name=float_ssim:log_fmt=json:log_path=log"
    subprocess.run(
        [ffmpeg.path, "-v", "error", *inputs, "-lavfi", f"libvmaf={features}", "-f", "null", "-"],
        cwd=tmp_path,
        check=True,
    )
    report = json.loads((tmp_path / "log").read_text())
    for column, feature in {"vmaf": "vmaf", **METRICS}.items():
        if column != "vmaf_neg":
            assert row[column] == pytest.approx(report["pooled_metrics"][feature]["mean"], abs=1e-4)
    each = np.array([frame["metrics"]["vmaf"] for frame in report["frames"]])
    assert row["vmaf"] == pytest.approx(each.mean(), abs=1e-4)
    assert row["vmaf_harmonic"] == pytest.approx(1 / np.mean(1 / (each + 1)) - 1, abs=1e-3)
    assert (row["model"], row["pooling"], row["libvmaf"]) == ("vmaf_v0.6.1", "mean", report["version"])
    assert labeller.label(clip, shown) == row


def test_labels_are_in_order(ffmpeg, clip):
    labeller = VmafLabeller(ffmpeg, ())
    values = [labeller.label(clip, shown)["vmaf"] for shown in (clip, blur(clip, 0.6), blur(clip, 2))]
    assert values[0] > 97
    assert values[0] > values[1] + 3 > values[2] + 20


def test_frames_that_are_held_count_as_not_aligned(ffmpeg):
    clip = made.moving(320, 240, 24)
    labeller = VmafLabeller(ffmpeg, ())
    whole, held = labeller.label(clip, blur(clip, 1)), labeller.label(clip, hold(clip, 4))
    assert (whole["aligned"], held["aligned"]) == (1, 0.25)
    assert held["vmaf"] < 80
    assert (hold(clip, 1) == clip).all()


def test_small_frames_have_no_cambi(ffmpeg, clip):
    small = clip[:2, :, :160].copy().reshape(2, -1)[:, : 160 * 180].reshape(2, 180, 160)
    row = VmafLabeller(ffmpeg, ("cambi", "ssim")).label(small, small)
    assert row["cambi"] == ""
    assert row["ssim"] == pytest.approx(1)
    with pytest.raises(InputError, match="compared with"):
        VmafLabeller(ffmpeg, ()).label(small, clip)
    with pytest.raises(InputError, match="unknown metric mos; known: vmaf_neg"):
        VmafLabeller(ffmpeg, ("mos",))


def test_every_kind_degrades_and_decodes_the_same_every_time(ffmpeg, tmp_path):
    clip, labeller, path = made.moving(320, 240, 8), VmafLabeller(ffmpeg, ()), str(tmp_path / "clip.mp4")
    ffmpeg.write_video(path, kept(clip))
    best = labeller.label(clip, read_video(path))["vmaf"]
    assert best > 95
    rises, known = [], kinds(ffmpeg)
    for name, kind in known.items():
        values = []
        for u in (0, 0.99):
            stream = kind.apply(clip, kind.strength(u, "train"), "content")
            ffmpeg.write_video(path, stream)
            shown = read_video(path)
            assert shown.shape == clip.shape, name
            values.append(labeller.label(clip, shown)["vmaf"])
        if values[1] > values[0] - 5:
            rises.append(name)
        first = Path(path).read_bytes()
        ffmpeg.write_video(path, kind.apply(clip, kind.strength(0.99, "train"), "content"))
        assert Path(path).read_bytes() == first, name
    assert set(rises) <= {"sharpen", "encoder+sharpen"}  # which VMAF rewards; `vmaf_neg` does not
    assert len(known) >= 30


def test_lost_packets_leave_the_number_of_frames(ffmpeg):
    clip = made.moving(320, 240, 8)
    options = {"x264-params": "slices=6", "bf": "0", "crf": "12"}
    data = ffmpeg.encode(Stream(clip, "libx264", options), "pipe:1", "h264")
    lossy = lose_packets(data, 0.5, np.random.default_rng(0), mpeg2=False)
    assert lossy.count(b"\0\0\1") < data.count(b"\0\0\1") - 5
    assert ffmpeg.decode_damaged(lossy, "h264", clip.shape).shape == clip.shape
    assert lose_packets(data, 0, np.random.default_rng(0), mpeg2=False) == data


def test_disks_and_sizes():
    spot = np.zeros((41, 41), np.float32)
    spot[20, 20] = 1000
    blurred = disk_mean(spot, 3.5)
    assert blurred.sum() == pytest.approx(1000, rel=1e-4)
    assert (np.hypot(*(np.argwhere(blurred > 1e-3) - 20).T) <= 5).all()
    assert np.allclose(disk_mean(np.full((20, 30), 7, np.float32), 2.3), 7)
    clip = made.moving(64, 48, 2)
    assert defocus(clip, 2).std() < clip.std()
    assert resample(clip, 96, 80, KERNELS["lanczos"]).shape == (2, 120, 96)


def test_what_an_ffmpeg_lacks_is_said(ffmpeg, tmp_path, monkeypatch):
    without = str(made.fake_ffmpeg(tmp_path / "old", ffmpeg.path, without="libvmaf"))
    with pytest.raises(MissingLibraryError, match=r"old\) has no libvmaf: pip install 'sama-vqa\[corpus\]'"):
        find_ffmpeg(without)
    poor = find_ffmpeg(str(made.fake_ffmpeg(tmp_path / "poor", ffmpeg.path, without="libsvtav1")))
    poor.require(["libx264"])
    with pytest.raises(MissingLibraryError, match="has no encoder libsvtav1"):
        poor.require(["libx264", "libsvtav1"])
    with pytest.raises(FfmpegError, match="cannot be run: No such file"):
        find_ffmpeg(str(tmp_path / "none"))
    other = tmp_path / "hello"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    with pytest.raises(FfmpegError, match="no FFmpeg: it says 'hello'"):
        find_ffmpeg(str(other))
    monkeypatch.setattr("sama.corpus.ffmpeg._candidates", lambda: [without])
    with pytest.raises(MissingLibraryError, match="has no libvmaf"):
        find_ffmpeg()
    monkeypatch.setattr("sama.corpus.ffmpeg._candidates", list)
    with pytest.raises(MissingLibraryError, match="there is no FFmpeg"):
        find_ffmpeg()


def test_failures_name_the_reason(ffmpeg, clip, tmp_path):
    with pytest.raises(FfmpegError, match=r"libx264\): exit status \d+: .*crf"):
        ffmpeg.write_video(str(tmp_path / "a.mp4"), Stream(clip, "libx264", {"crf": "much"}))
    with pytest.raises(FfmpegError, match="exit status"):
        ffmpeg.write_video(str(tmp_path / "no folder" / "a.mp4"), kept(clip))
    full = find_ffmpeg(str(made.fake_ffmpeg(tmp_path / "full", ffmpeg.path, fails="file:")))
    with pytest.raises(OSError, match="No space left"):
        full.write_video(str(tmp_path / "a.mp4"), kept(clip))


def test_runs_end(ffmpeg):
    endless = ["-f", "lavfi", "-i", "testsrc", "-f", "null", "-"]
    with pytest.raises(FfmpegError, match="stopped after 1 seconds"):
        ffmpeg.run(endless, limit_seconds=1)
    threading.Timer(0.5, ffmpeg.stop).start()
    began = time.perf_counter()
    with pytest.raises(FfmpegError, match="exit status"):
        ffmpeg.run(endless)
    assert time.perf_counter() - began < 20
    assert not ffmpeg._running
