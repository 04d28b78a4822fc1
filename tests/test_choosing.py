"""Which decoder "auto" takes for a file, and what named ones say when they cannot."""

from types import SimpleNamespace

import pytest
import torch
from videos import write_video

from sama import decode
from sama.decode import DECODERS, Decoder, check_decoder, nvdec, open_video
from sama.decode.nvdec import gpu_decodable
from sama.decode.pyav import PyavVideo
from sama.errors import InputError

TURING, AMPERE_A100, ADA, HOPPER, BLACKWELL = (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)
HD = ("yuv420p", 1920, 1080)


@pytest.mark.parametrize(
    ("codec", "stream", "capability", "reason"),
    [
        ("h264", HD, HOPPER, None),
        ("h264", ("yuvj420p", 1920, 1080), HOPPER, None),
        ("h264", HD, TURING, None),
        ("hevc", ("yuv420p", 8192, 4320), HOPPER, None),
        ("vp9", HD, AMPERE_A100, None),
        ("vp8", HD, HOPPER, None),
        ("av1", HD, ADA, None),
        ("av1", HD, BLACKWELL, None),
        ("av1", HD, HOPPER, "no AV1 decoder"),
        ("av1", HD, AMPERE_A100, "no AV1 decoder"),
        ("av1", HD, TURING, "no AV1 decoder"),
        ("h264", HD, (7, 0), "before Turing"),
        ("h264", ("yuv420p10le", 1920, 1080), HOPPER, "yuv420p10le is not 8-bit 4:2:0"),
        ("h264", ("yuv422p", 1920, 1080), HOPPER, "yuv422p is not 8-bit 4:2:0"),
        ("hevc", ("yuv444p", 1920, 1080), HOPPER, "yuv444p is not 8-bit 4:2:0"),
        ("h264", ("yuv420p", 8192, 4320), HOPPER, "8192x4320 is outside 48x16 to 4096x4096"),
        ("hevc", ("yuv420p", 96, 64), HOPPER, "96x64 is outside 144x144"),
        ("vp9", ("yuv420p", 427, 240), HOPPER, "427x240 is an odd size"),
        ("vp9", ("yuv420p", 426, 241), HOPPER, "426x241 is an odd size"),
        ("ffv1", HD, HOPPER, "ffv1 is none of h264, hevc, vp8, vp9, av1"),
        ("mjpeg", HD, HOPPER, "mjpeg is none of"),
    ],
)
def test_what_a_gpu_decodes(codec, stream, capability, reason):
    got = gpu_decodable(codec, *stream, capability=capability)
    assert got is None if reason is None else reason in got


class FakeVideo:
    def __init__(self, path, *, threads=None, device=None, source=None):
        self.path, self.threads, self.device, self.source = path, threads, device, source


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a Hopper GPU and two decoders for it, of which the first refuses WebM."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvdec, "driver_available", lambda: True, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: HOPPER)

    def by_name(video, device):
        return "no WebM" if video.info.path.endswith("webm") else by_stream(video, device)

    def by_stream(video, device):
        assert device.type == "cuda"
        size = video.info.width, video.info.height
        return gpu_decodable(video.info.codec, video.info.pix_fmt, *size, capability=torch.cuda.get_device_capability())

    modules = {
        "first": SimpleNamespace(refusal=by_name, Video=type("First", (FakeVideo,), {})),
        "second": SimpleNamespace(refusal=by_stream, Video=type("Second", (FakeVideo,), {})),
    }
    real = decode.import_module

    def import_module(name):
        if name == "broken":
            raise RuntimeError("Driver version is too old")
        return modules.get(name) or real(name)

    monkeypatch.setattr(decode, "import_module", import_module)
    fakes = {name: Decoder(name, "Video", "sys", "pip install it", gpu=True) for name in ("broken", "first", "second")}
    missing = {"missing": Decoder("missing", "Video", "no_such_library", "pip install it", gpu=True)}
    monkeypatch.setattr(decode, "DECODERS", {**missing, **fakes, "pyav": DECODERS["pyav"]})
    return modules


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    size = {"size": (160, 144), "num_frames": 4}
    return {
        "h264": write_video(folder / "a.mp4", "libx264", **size),
        "vp9": write_video(folder / "a.webm", "libvpx-vp9", **size),
        "av1": write_video(folder / "av1.mp4", "libsvtav1", options={"preset": "12"}, **size),
        "10 bits": write_video(folder / "deep.mkv", "libx264", pix_fmt="yuv420p10le", **size),
        "small": write_video(folder / "small.mkv", "libvpx-vp9", num_frames=4),
    }


def test_auto_chooses_for_each_file(gpu, clips):
    expected = {"h264": "First", "vp9": "Second", "av1": "PyavVideo", "10 bits": "PyavVideo", "small": "PyavVideo"}
    for name, kind in expected.items():
        video = open_video(clips[name])
        assert type(video).__name__ == kind, name
        if kind == "PyavVideo":
            assert len(list(video.frames([0, 3]))) == 2
        else:  # the index that was made to choose goes on being used
            assert isinstance(video.source, PyavVideo)
            assert video.device == torch.device("cuda")
    assert open_video(clips["h264"], device="cuda:1").device == torch.device("cuda:1")
    assert type(open_video(clips["h264"], device="cpu")) is PyavVideo


def test_a_named_decoder_is_taken_as_it_is(gpu, clips):
    video = open_video(clips["av1"], decoder="first", threads=3)
    assert (type(video).__name__, video.source, video.threads) == ("First", None, 3)
    with pytest.raises(ImportError, match=r"no library to decode with \(decoder='missing'\); install it with `pip"):
        open_video(clips["h264"], decoder="missing")
    with pytest.raises(RuntimeError, match="Driver version is too old"):
        open_video(clips["h264"], decoder="broken")


def test_auto_without_the_drivers_video_library_is_pyav(gpu, clips, monkeypatch):
    """Containers often have a GPU and its decoders' libraries, and not this part of the driver."""
    monkeypatch.setattr(nvdec, "driver_available", lambda: False, raising=False)
    assert type(open_video(clips["h264"])) is PyavVideo
    assert type(open_video(clips["h264"], decoder="first")).__name__ == "First"  # what is named is taken


@pytest.mark.parametrize(("library", "there"), [(None, True), ("libno_such_driver.so.1", False)])
def test_the_driver_is_looked_for_once(library, there, monkeypatch):
    monkeypatch.setattr(nvdec, "DRIVER_LIBRARY", library)  # None is the program itself
    nvdec.driver_available.cache_clear()
    assert nvdec.driver_available() is nvdec.driver_available() is there
    assert nvdec.driver_available.cache_info().misses == 1
    nvdec.driver_available.cache_clear()


def test_a_decoders_name_is_checked():
    for name in ("auto", "hybrid", *DECODERS):
        check_decoder(name)
    with pytest.raises(InputError, match="unknown decoder 'dali2'; known: auto, hybrid, nvcodec, dali, pyav"):
        check_decoder("dali2")
    assert [name for name, decoder in DECODERS.items() if decoder.batched] == ["dali"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_auto_without_a_gpu_a_gpu_is_pyav(clips):
    for path in clips.values():
        with open_video(path) as video:
            assert (type(video), video.decoder) == (PyavVideo, "pyav")
    assert list(DECODERS) == ["nvcodec", "dali", "pyav"]  # exact colours before corrected ones
