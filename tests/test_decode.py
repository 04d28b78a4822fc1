"""Frames by number are exactly the frames of a plain decode of the whole file, in FFmpeg's colours."""

from __future__ import annotations

import gc
import os
import pickle
import random
import threading

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from videos import CLIPS, IRREGULAR_MS, X265, assert_same, full_decode, patch_box, set_display_matrix, write_video

from sama.decode import DECODERS, Decoder, open_video, packets
from sama.decode import pyav as pyav_decoder
from sama.errors import DecodeError
from sama.frames import Frame
from sama.kernels.color import YUV_TO_RGB


def subsets(count: int) -> list[list[int]]:
    draw = random.Random(count)
    sizes = (1, 1, 2, 3, 5, 8, count // 2)
    return [list(range(count)), list(range(0, count, 2)), [count - 1], *(draw.sample(range(count), k) for k in sizes)]


def to_rgb(frame: Frame) -> np.ndarray:
    """The formula of `sama.kernels.color` on whole planes: uint8 `[H, W, 3]`."""
    k = YUV_TO_RGB[frame.matrix, frame.full_range]
    y, u, v = (plane.astype(np.int64) for plane in frame.planes)
    u, v = (plane.repeat(2, 0).repeat(2, 1)[: y.shape[0], : y.shape[1]] * 8 - 1024 for plane in (u, v))
    luma = ((8 * y + k.luma_offset) * k.luma_factor) >> 16
    rgb = [luma + (v * k.vr >> 16), luma + (u * k.ug >> 16) + (v * k.vg >> 16), luma + (u * k.ub >> 16)]
    return np.clip(np.stack(rgb, axis=-1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seek_bytes", [packets.SEEK_BYTES, 0], ids=["read-on", "seek"])
@pytest.mark.parametrize("name", CLIPS)
def test_any_subset_equals_full_decode(clip, name, seek_bytes, monkeypatch):
    monkeypatch.setattr(packets, "SEEK_BYTES", seek_bytes)
    path = clip(name)
    expected = full_decode(path)
    assert len({frame.to_ndarray(format="rgb24").tobytes() for frame in expected}) == len(expected) >= 40
    index = CLIPS[name][2]
    if index == "packets" and "intra-refresh" not in name:  # whose "key" frames are not whole pictures
        monkeypatch.setattr(pyav_decoder.PyavVideo, "_decode_all", lambda video: pytest.fail("needed the slow way"))
    with open_video(path, decoder="pyav", threads=3) as video:
        assert (video.info.num_frames, video.info.index) == (len(expected), index)
        for indices in subsets(len(expected)):
            seen = []
            for n, frame in video.frames(indices):
                seen.append(n)
                assert_same(frame, expected[n])
            assert seen == sorted(set(indices))


def test_skips_jumps_and_stops(clip):
    def decoded(indices):
        with open_video(clip("h264.mp4"), threads=3, decoder="pyav") as video:
            assert len(list(video.frames(indices))) == len(indices)
            return video.decoded

    assert decoded(range(40)) == 40
    assert decoded(range(0, 40, 2)) <= 30  # the other half is not referred to, but for the pyramid's middle
    assert decoded([0]) == 1
    assert decoded([0, 39]) <= 12  # not the groups of pictures between them


def test_hevc_skips_the_top_layer_only(tmp_path):
    def layers(name):
        options = {"x265-params": X265 + ":temporal-layers=3"}
        with open_video(write_video(tmp_path / name, "libx265", options=options), decoder="pyav") as video:
            video.complete()
            layers = video.index.packets["layer"]
            assert (video.index.skippable == (layers == 2)).all()
            return layers.tolist()

    assert set(layers("lengths.mp4")) == {0, 1, 2}
    assert layers("lengths.mp4") == layers("start-codes.ts")


def test_late_seek_starts_over(clip, monkeypatch):
    """A container that lands behind the wanted key frame costs time, never a wrong frame."""
    monkeypatch.setattr(packets, "SEEK_BYTES", 0)
    seek = packets.Source.seek

    def seek_late(source, index, number):
        seek(source, index, number)
        if number:
            list(zip(range(20), source.packets()))

    monkeypatch.setattr(packets.Source, "seek", seek_late)
    expected = full_decode(clip("h264.mp4"))
    with open_video(clip("h264.mp4"), decoder="pyav") as video:
        for n, frame in video.frames([3, 20, 38]):
            assert_same(frame, expected[n])


@pytest.mark.parametrize("name", ["h264-vfr.mp4", "h264-vfr.mkv"])
def test_variable_frame_rate_seconds(clip, name):
    with open_video(clip(name), decoder="pyav") as video:
        times = video.seconds(range(60))
        assert video.info.duration_seconds >= times[-1]
        assert video.info.fps == pytest.approx(60 / video.info.duration_seconds)
    np.testing.assert_allclose(times, (np.array(IRREGULAR_MS) - IRREGULAR_MS[0]) / 1000, atol=1e-9)


def test_edit_list_hides_frames(clip, tmp_path):
    """A trimmed MP4: frames before the cut are decoded for the others' sake and never counted."""
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(clip("h264.mp4").read_bytes())
    tick = 12800 // 25
    delay = int.from_bytes(path.read_bytes().split(b"elst")[1][12:16], "big")
    patch_box(path, b"elst", 8, [1600 - 6 * 40, delay + 6 * tick])
    expected = full_decode(path)
    assert len(expected) == 34
    with open_video(path, decoder="pyav") as video:
        assert (video.info.num_frames, video.info.index) == (34, "packets")
        for indices in subsets(34):
            for n, frame in video.frames(indices):
                assert_same(frame, expected[n])


def test_equal_time_stamps_are_counted(clip, tmp_path):
    """Two broadcasts in one file, each from time zero."""
    path = tmp_path / "twice.ts"
    path.write_bytes(clip("h264.ts").read_bytes() * 2)
    expected = full_decode(path)
    with open_video(path, decoder="pyav") as video:
        assert (video.info.num_frames, video.info.index) == (len(expected), "decoding")
        for n, frame in video.frames([1, 39, 41, len(expected) - 1]):
            assert_same(frame, expected[n])


def test_invisible_packets_are_not_frames(clip, tmp_path):
    """VP8 packets that only serve as a reference (alternate references) show nothing."""
    path = tmp_path / "hidden.webm"
    data = bytearray(write_video(path, "libvpx", options={"g": "15"}).read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in (5, 11, 12, 33):
        data[data.index(packets[number])] &= ~0x10  # show_frame
    path.write_bytes(data)
    expected = full_decode(path)
    assert len(expected) == 36
    with open_video(path, decoder="pyav") as video:
        assert (video.info.num_frames, video.info.index) == (36, "packets")
        for indices in subsets(36):
            for n, frame in video.frames(indices):
                assert_same(frame, expected[n])


def test_threads_are_bounded_by_memory(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    context = av.CodecContext.create("hevc", "r")

    def threads(width, height, pix_fmt):
        context.width, context.height, context.pix_fmt = width, height, pix_fmt
        return packets.default_threads(context)

    assert threads(1920, 1080, "yuv420p") == 4
    assert threads(3840, 2160, "yuv420p") == 3
    assert threads(3840, 2160, "yuv420p10le") == 1
    assert threads(7680, 4320, "yuv420p") == 1


def test_change_of_size_is_refused(tmp_path):
    parts = [write_video(tmp_path / f"{w}.264", "libx264", size=(w, 48), num_frames=5, format="h264") for w in (64, 96)]
    path = tmp_path / "both.264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path, decoder="pyav") as video:
        assert len(list(video.frames(range(5)))) == 5
        with pytest.raises(DecodeError, match="frame 5 is 96x48, the first one 64x48; a change of size"):
            list(video.frames([4, 5]))


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_full_range_planes(codec, tmp_path):
    path = write_video(tmp_path / "full.mkv", codec, pix_fmt="yuvj420p", num_frames=3)
    (_, frame), *_ = open_video(path, decoder="pyav").frames([0])
    assert (frame.layout, frame.full_range) == ("i420", True)
    np.testing.assert_array_equal(to_rgb(frame), full_decode(path)[0].to_ndarray(format="rgb24"))


@pytest.mark.parametrize("size", [(96, 64), (65, 48), (854, 480)], ids=lambda size: "{}x{}".format(*size))
@pytest.mark.parametrize("color_range", [None, ColorRange.MPEG, ColorRange.JPEG], ids=["untagged", "limited", "full"])
@pytest.mark.parametrize(
    ("colorspace", "matrix"),
    [(None, "bt601"), (Colorspace.ITU709, "bt709"), (Colorspace.ITU601, "bt601"), (Colorspace.SMPTE170M, "bt601")],
    ids=["untagged", "bt709", "bt470bg", "smpte170m"],
)
def test_planes_convert_as_ffmpeg_does(colorspace, matrix, color_range, size, tmp_path):
    path = write_video(
        tmp_path / "colour.mkv", "ffv1", size=size, colorspace=colorspace, color_range=color_range, num_frames=2
    )
    with open_video(path, decoder="pyav") as video:
        frames = dict(video.frames([1]))
    assert (frames[1].layout, frames[1].matrix, frames[1].full_range) == (
        "i420",
        matrix,
        color_range == ColorRange.JPEG,
    )
    np.testing.assert_array_equal(to_rgb(frames[1]), full_decode(path)[1].to_ndarray(format="rgb24"))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "colorspace"),
    [
        ("ffv1", "yuv420p", (64, 49), None),
        ("ffv1", "yuv420p", (65, 49), None),
        ("ffv1", "yuv420p10le", (96, 64), None),
        ("libx265", "yuv420p10le", (96, 64), None),
        ("libx264", "yuv422p", (96, 64), None),
        ("libx264", "yuv444p", (96, 64), None),
        ("libx264rgb", "rgb24", (96, 64), None),
        ("ffv1", "gray", (96, 64), None),
        ("ffv1", "bgra", (65, 49), None),
        ("gif", "rgb8", (96, 64), None),
        ("ffv1", "yuv420p", (96, 64), Colorspace.SMPTE240M),
        ("ffv1", "yuv420p", (96, 64), Colorspace.FCC),
        ("ffv1", "yuv420p", (96, 64), 9),
    ],
    ids=lambda value: "{}x{}".format(*value) if isinstance(value, tuple) else str(value),
)
def test_everything_else_is_ffmpegs_rgb(codec, pix_fmt, size, colorspace, tmp_path):
    path = tmp_path / ("clip.gif" if codec == "gif" else "clip.mkv")
    options = {"x265-params": "log-level=none"} if codec == "libx265" else None
    write_video(path, codec, pix_fmt=pix_fmt, size=size, colorspace=colorspace, num_frames=6, options=options)
    expected = full_decode(path)
    with open_video(path, decoder="pyav") as video:
        for n, frame in video.frames([1, 5]):
            assert frame.layout == "rgb"
            assert_same(frame, expected[n])


@pytest.mark.parametrize("size", [(96, 64), (65, 48)], ids=["96x64", "65x48"])
@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (-1, 0, 0, -1),
        (0, -1, 1, 0),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
    ids=["none", "90-clockwise", "180", "90-counter", "mirror", "flip", "transpose", "anti-transpose"],
)
def test_display_matrix_is_applied(matrix, size, tmp_path):
    path = write_video(tmp_path / "turned.mp4", "libvpx-vp9", size=size, num_frames=3)
    set_display_matrix(path, *matrix)
    decoded = full_decode(path)[1]
    source = decoded.to_ndarray(format="rgb24")
    a, b, c, d = matrix
    y, x = np.mgrid[: size[1], : size[0]]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    expected = np.empty((row.max() + 1, column.max() + 1, 3), np.uint8)
    expected[row, column] = source

    with open_video(path, decoder="pyav") as video:
        ((_, frame),) = video.frames([1])
        assert (video.info.height, video.info.width) == expected.shape[:2] == (frame.height, frame.width)
        if not video.info.mirrored:
            assert video.info.rotation == decoded.rotation % 360
        assert video.info.mirrored == (a * d - b * c < 0)
    reverses_columns = -1 in (a, b)
    assert frame.layout == ("rgb" if size[0] % 2 and reverses_columns else "i420")
    np.testing.assert_array_equal(frame.planes[0] if frame.layout == "rgb" else to_rgb(frame), expected)


def test_planes_outlive_the_video(clip):
    expected = full_decode(clip("h264.mp4"))
    video = open_video(clip("h264.mp4"), decoder="pyav")
    frames = dict(video.frames(range(40)))
    video.close()
    del video
    gc.collect()
    for n, frame in frames.items():
        assert_same(frame, expected[n])


def test_planes_are_views(clip):
    with open_video(clip("h264.mp4"), decoder="pyav") as video:
        ((_, frame),) = video.frames([0])
    assert not any(plane.flags.owndata for plane in frame.planes)


def test_requests_on_one_video_do_not_disturb_each_other(clip):
    expected = full_decode(clip("h264.mkv"))
    with open_video(clip("h264.mkv"), decoder="pyav") as video:
        for (n, one), (m, other) in zip(video.frames(range(20)), video.frames(range(20, 40))):
            assert_same(one, expected[n])
            assert_same(other, expected[m])
        assert list(video.frames([])) == []
        next(video.frames([5]))  # and left there


def test_videos_in_threads(clip):
    names = ["h264.mp4", "hevc.mp4", "vp9.webm", "mpeg4.avi"]
    paths = [clip(name) for name in names]
    expected = [full_decode(path) for path in paths]
    failures = []

    def read(k):
        try:
            for _ in range(5):
                with open_video(paths[k], threads=2, decoder="pyav") as video:
                    for n, frame in video.frames(range(0, 40, 3)):
                        assert_same(frame, expected[k][n])
        except BaseException as error:
            failures.append((names[k], error))

    workers = [threading.Thread(target=read, args=(k,)) for k in range(len(names))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.parametrize("indices", [[40], [-1], [3, 99, 0]], ids=str)
def test_index_out_of_range(clip, indices):
    with (
        open_video(clip("h264.mp4"), decoder="pyav") as video,
        pytest.raises(IndexError, match=r"has frames 0 to 39; got (40|-1|99)"),
    ):
        video.frames(indices)


def test_closed_video_is_refused(clip):
    with open_video(clip("h264.mp4"), decoder="pyav") as video:
        pass
    with pytest.raises(ValueError, match="is closed"):
        video.frames([0])


def test_unknown_decoder_lists_the_known(clip):
    with pytest.raises(ValueError, match="unknown decoder 'dali2'; known: auto, hybrid, nvcodec, dali, pyav"):
        open_video(clip("h264.mp4"), decoder="dali2")
    with pytest.raises(ValueError, match="threads must be at least 1, or None; got 0"):
        open_video(clip("h264.mp4"), threads=0)


def test_explicit_decoder_does_not_fall_back(clip, monkeypatch):
    monkeypatch.setitem(DECODERS, "absent", Decoder("sama.decode.absent", "X", "no_such_library", "pip install absent"))
    with pytest.raises(ImportError, match=r"decoder='absent'.*`pip install absent`"):
        open_video(clip("h264.mp4"), decoder="absent")
    open_video(clip("h264.mp4"), decoder="auto", device="cpu").close()


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DecodeError("clip.mp4", "the file is empty")))
    assert (type(error), error.path, error.reason, str(error)) == (
        DecodeError,
        "clip.mp4",
        "the file is empty",
        "clip.mp4: the file is empty",
    )
