"""PyNvVideoCodec as far as it goes without a GPU: which packets are sent, what comes back under which number, colours.

The library cannot even be imported without a driver; `nvcodec_stub.py` takes its place, with FFmpeg for the GPU.
"""

import sys

import numpy as np
import nvcodec_stub
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from videos import set_display_matrix, write_video

import sama
from sama.decode import open_video
from sama.errors import DecodeError

SIZE = (160, 144)
IRREGULAR_MS = np.cumsum(np.random.default_rng(5).integers(3, 90, 60)).tolist()
X264 = {"bf": "3", "x264-params": "b-pyramid=normal:keyint=16:min-keyint=16:scenecut=0"}
X265 = {"x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=4:pools=1:frame-threads=1:open-gop=1"}
OPEN = X264 | {"x264-params": f"{X264['x264-params']}:open-gop=1"}
CLIPS = {
    "h264.mp4": ("libx264", {"options": X264}),
    "h264.ts": ("libx264", {"options": X264}),
    "h264-vfr.mkv": ("libx264", {"num_frames": 60, "times_ms": IRREGULAR_MS, "options": X264}),
    "h264-full.mp4": (
        "libx264",
        {"options": X264, "colorspace": Colorspace.ITU709, "color_range": ColorRange.JPEG, "pix_fmt": "yuvj420p"},
    ),
    "h264-open.mp4": ("libx264", {"options": OPEN}),
    "vp8.webm": ("libvpx", {"options": {"g": "15", "lag-in-frames": "12", "auto-alt-ref": "1"}}),
    "hevc.mp4": ("libx265", {"options": X265}),
    "vp9.webm": ("libvpx-vp9", {"options": {"g": "15", "lag-in-frames": "12", "auto-alt-ref": "1"}}),
    "av1.mp4": ("libsvtav1", {"options": {"preset": "12", "g": "16"}}),
}


@pytest.fixture
def nvcodec(monkeypatch):
    """The decoder's module, on the stand-in and the CPU, with the abilities of an Ada GPU."""
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", nvcodec_stub)
    monkeypatch.delitem(sys.modules, "sama.decode.nvcodec", raising=False)
    from sama.decode import nvcodec

    monkeypatch.setattr(nvcodec, "pick_device", lambda device, numbered: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    yield nvcodec
    sys.modules.pop("sama.decode.nvcodec", None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")

    def make(name):
        codec, arguments = CLIPS[name]
        path = folder / name
        return path if path.exists() else write_video(path, codec, size=SIZE, **arguments)

    return make


def planes(frame):
    """Y, U, V as arrays, whatever holds them."""
    return [np.asarray(plane) for plane in frame.channels()]


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_pyav_as_nv12(nvcodec, clip, name):
    with open_video(clip(name), decoder="pyav") as pyav, nvcodec.NvcodecVideo(str(clip(name))) as video:
        assert video.info == pyav.info
        assert (video.decoder, video.held_bytes(8)) == ("nvcodec", 8 * 160 * 144 * 3)
        count = video.info.num_frames
        for indices in (range(count), range(0, count, 2), [count - 1, 3, 3, 20], [count - 1], []):
            expected = dict(pyav.frames(indices))
            got = dict(video.frames(indices))
            assert list(got) == sorted(set(indices))
            for n, frame in got.items():
                assert frame.layout == "nv12"
                assert (frame.matrix, frame.full_range) == (expected[n].matrix, expected[n].full_range)
                for plane, right in zip(planes(frame), planes(expected[n]), strict=True):
                    np.testing.assert_array_equal(plane, right)
        np.testing.assert_array_equal(video.seconds(range(count)), pyav.seconds(range(count)))


def test_only_what_is_needed_is_sent(nvcodec, clip, monkeypatch):
    sent = []
    decode = nvcodec_stub._Decoder.Decode
    monkeypatch.setattr(
        nvcodec_stub._Decoder, "Decode", lambda self, packet: (sent.append(packet.bsl), decode(self, packet))[1]
    )
    with nvcodec.NvcodecVideo(str(clip("h264.mp4"))) as video:
        assert [n for n, _ in video.frames([0, 33])] == [0, 33]
    assert sum(map(bool, sent)) <= 8  # of 40: the first, and from the third key frame, 32, to 33


@pytest.mark.parametrize(("suffix", "opened"), [("mp4", "index"), ("mkv", "packets")])
def test_decoding_begins_at_whole_pictures_only(nvcodec, suffix, opened, tmp_path):
    """Gradual refresh: where a file was opened by its tables, what a key frame is turns out when it is read."""
    path = tmp_path / f"refresh.{suffix}"
    write_video(path, "libx264", size=SIZE, options={"bf": "0", "x264-params": "intra-refresh=1:keyint=12"})
    with open_video(path, decoder="pyav") as video:
        assert video.info.opened == opened
    with pytest.raises(DecodeError, match=r"decoding cannot begin at .*\(gradual refresh\)"):
        list(nvcodec.NvcodecVideo(str(path)).frames([39]))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)], ids=["turned", "mirrored", "both"])
def test_as_displayed(nvcodec, tmp_path, matrix):
    path = write_video(tmp_path / "turned.mp4", "libx264", size=SIZE, num_frames=3, options=X264)
    set_display_matrix(path, *matrix)
    with open_video(path, decoder="pyav") as pyav, nvcodec.NvcodecVideo(str(path)) as video:
        assert (video.info.rotation, video.info.mirrored) != (0, False)
        for (_, frame), (_, right) in zip(video.frames(range(3)), pyav.frames(range(3)), strict=True):
            for plane, expected in zip(planes(frame), planes(right), strict=True):
                np.testing.assert_array_equal(plane, expected)


def test_sampled_as_pyav_to_the_bit(nvcodec, clip):
    """Through the sampler: the inputs of a score are the same."""
    sampler = sama.VideoSampler(grid=(2, 2), fragment=(16, 16))
    indices = np.arange(0, 32, 2).reshape(1, 16)
    with open_video(clip("h264.mp4"), decoder="pyav") as pyav, nvcodec.NvcodecVideo(str(clip("h264.mp4"))) as video:
        (expected,), (got,) = list(sampler.stream(pyav, indices)), list(sampler.stream(video, indices))
    assert torch.equal(got, expected)


def test_bad_files_are_named(nvcodec, clip, tmp_path, monkeypatch):
    for name, content, reason in [
        ("empty.mp4", b"", "the file is empty"),
        ("garbage.mp4", b"garbage" * 999, "a text file, not a video"),
        ("half.mp4", clip("h264.mp4").read_bytes()[:9000], "cut short"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError, match=reason) as caught:
            nvcodec.NvcodecVideo(str(tmp_path / name))
        assert caught.value.path == str(tmp_path / name)
    ten_bits = write_video(tmp_path / "10.mkv", "libx265", size=SIZE, num_frames=4, pix_fmt="yuv420p10le", options=X265)
    with pytest.raises(DecodeError, match="the GPU cannot decode it: yuv420p10le is not 8-bit 4:2:0; decoder pyav can"):
        nvcodec.NvcodecVideo(str(ten_bits))

    with nvcodec.NvcodecVideo(str(clip("h264.mp4"))) as video:
        with pytest.raises(IndexError, match="has frames 0 to 39; got 40"):
            video.frames([0, 40])
        monkeypatch.setattr(nvcodec_stub._Decoder, "Decode", lambda self, packet: [])
        with pytest.raises(DecodeError, match="frame 0 did not come out of the GPU"):
            list(video.frames([0, 1]))

        def fail(self, packet):
            raise RuntimeError("HandlePictureDecode error 999")

        monkeypatch.setattr(nvcodec_stub._Decoder, "Decode", fail)
        with pytest.raises(DecodeError, match=r"failed at the packet of frame 0 \(HandlePictureDecode error 999\)"):
            list(video.frames([0, 1]))
    with pytest.raises(ValueError, match="the video is closed"):
        video.frames([0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", nvcodec_stub)
    monkeypatch.delitem(sys.modules, "sama.decode.nvcodec", raising=False)
    from sama.decode.nvcodec import NvcodecVideo

    with pytest.raises(RuntimeError, match="torch finds no GPU"):
        NvcodecVideo(str(clip("h264.mp4")))
    with pytest.raises(ValueError, match='decodes on "cuda"; got cpu'):
        NvcodecVideo(str(clip("h264.mp4")), device="cpu")
    sys.modules.pop("sama.decode.nvcodec", None)


def test_says_that_there_is_no_driver(monkeypatch, tmp_path, clip):
    """The library fails at its import, with a long text of which one line is passed on."""
    (tmp_path / "PyNvVideoCodec.py").write_text('raise RuntimeError("libnvidia-encode.so.1 is missing\\n\\nSTEPS...")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
    monkeypatch.delitem(sys.modules, "sama.decode.nvcodec", raising=False)
    with pytest.raises(ImportError, match=r"cannot be used: libnvidia-encode\.so\.1 is missing$"):
        open_video(clip("h264.mp4"), decoder="nvcodec")


@pytest.mark.cuda
@pytest.mark.parametrize("name", [name for name in CLIPS if not name.startswith("av1")])
def test_gpu_frames_are_those_of_pyav(clip, name):
    """The real library: H.264, HEVC and VP9 decode to the bit by their standards."""
    pytest.importorskip("PyNvVideoCodec")
    with open_video(clip(name), decoder="pyav") as pyav, open_video(clip(name), decoder="nvcodec") as video:
        count = video.info.num_frames
        for indices in (range(count), [count - 1, 3, 20]):
            expected = dict(pyav.frames(indices))
            for n, frame in video.frames(indices):
                right = planes(expected[n])
                for plane, wanted in zip(frame.channels(), right, strict=True):
                    np.testing.assert_array_equal(plane.cpu().numpy(), wanted)
