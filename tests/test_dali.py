"""DALI on the CPU, which decodes VP8, VP9 and MJPEG: exact numbers, its own colours and their correction, bad files.

What a GPU alone can show is marked so; the code is the same, with another device.
"""

import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from videos import full_decode, planes_of, set_display_matrix, write_video

import sama
from sama.decode import index as packet_index
from sama.decode import open_video
from sama.decode import pyav as pyav_decoder
from sama.errors import DecodeError
from sama.feed import Feed
from sama.frames import Clip
from sama.kernels import reference
from sama.kernels.color import correction

if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
    pytest.skip('DALI is not installed: pip install "sama-vqa[dali]"', allow_module_level=True)

from sama.decode import dali as dali_decoder
from sama.decode.dali import DaliDecoder, DaliVideo

IRREGULAR_MS = np.cumsum(np.random.default_rng(5).integers(3, 90, 60)).tolist()
VP9 = {"g": "15", "lag-in-frames": "12", "auto-alt-ref": "1"}
CLIPS = {
    "vp9.webm": ("libvpx-vp9", {"options": VP9}),
    "vp9-vfr.webm": ("libvpx-vp9", {"options": VP9, "num_frames": 60, "times_ms": IRREGULAR_MS}),
    "vp9-from-7s.mkv": ("libvpx-vp9", {"options": VP9, "times_ms": range(7000, 8600, 40)}),
    "vp9-65x49.webm": ("libvpx-vp9", {"options": VP9, "size": (65, 49)}),
    "vp9-65x48.webm": ("libvpx-vp9", {"options": VP9, "size": (65, 48)}),
    "vp8.webm": ("libvpx", {"options": {"g": "15"}}),
    "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}),
}
TAGS = [
    pytest.param(space, range_, id=f"{name}-{'full' if range_ == ColorRange.JPEG else 'limited'}")
    for name, space in (("untagged", None), ("bt601", Colorspace.ITU601), ("bt709", Colorspace.ITU709))
    for range_ in (ColorRange.MPEG, ColorRange.JPEG)
]
SWSCALE = 2 | 0x2000 | 0x40000  # bilinear, full chroma interpolation, accurate rounding


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")

    def make(name):
        codec, arguments = CLIPS[name]
        path = folder / name
        return str(path if path.exists() else write_video(path, codec, **arguments))

    return make


@pytest.fixture(scope="module")
def decoder():
    return DaliDecoder("cpu", threads=2)


def formula(frame: av.VideoFrame) -> np.ndarray:
    """DALI's RGB of a frame on the CPU: BT.601 whatever the tag, chroma interpolated."""
    rgb = VideoReformatter().reformat(frame, format="rgb24", src_colorspace="ITU601", interpolation=SWSCALE)
    return rgb.to_ndarray()


def assert_frames(clip: Clip, expected: list[av.VideoFrame]):
    """That `clip` holds these frames, in DALI's colours: another build of the same library may round otherwise."""
    rgb = clip.planes[0]
    assert (rgb.dtype, len(rgb)) == (torch.uint8, len(expected))
    for got, frame in zip(rgb, expected, strict=True):
        assert np.abs(got.numpy().astype(int) - formula(frame)).max() <= 1


@pytest.mark.parametrize(("space", "color_range"), TAGS)
def test_colours_are_dalis_formula(decoder, tmp_path, space, color_range):
    path = write_video(
        tmp_path / "a.webm", "libvpx-vp9", num_frames=3, colorspace=space, color_range=color_range, options=VP9
    )
    (result,) = decoder.decode([(path, [0, 1, 2])])
    assert_frames(result, full_decode(path))


@pytest.mark.parametrize(("space", "color_range"), TAGS)
def test_linear_part_is_undone(decoder, tmp_path, space, color_range):
    """Where chroma is flat, so that interpolation does nothing, what is left after the correction is rounding."""
    path = tmp_path / "flat.mkv"
    rng = np.random.default_rng(0)
    chroma = [(128, 128), *rng.integers(90, 151, (39, 2)).tolist()]  # of each frame
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options={"lossless": "1"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.color_range = color_range
        if space:
            stream.codec_context.colorspace = space
        for n, (u, v) in enumerate(chroma):
            flat = [np.full((8, 32), value, np.uint8) for value in (u, v)]  # [16, 16] each
            luma = rng.integers(100, 170, (32, 32), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(np.concatenate([luma, *flat]), format="yuv420p")
            frame.pts, frame.color_range = n, color_range
            if space:
                frame.colorspace = space
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (result,) = decoder.decode([(path, range(40))])
    with open_video(path, decoder="pyav") as video:
        right = torch.stack([reference.to_rgb(frame) for _, frame in video.frames(range(40))]).float()
    raw = result.planes[0].float()
    corrected = reference.correct(raw.movedim(-1, 0), result.correction).movedim(0, -1)
    # two rounded terms here, up to three floored ones there, each by the factors of the correction
    assert (corrected - right).abs().max() < 2.3
    assert (corrected - right).mean((0, 1, 2)).abs().max() < 0.15
    assert (corrected - right).abs().mean() < 0.6
    assert (raw - right).abs().mean() > (3 if space == Colorspace.ITU709 else 0.4)


def test_correction_by_arithmetic():
    """Over many colours, none of them cut: BT.601 for BT.709, rounded, then corrected, against FFmpeg's integers."""
    rng = np.random.default_rng(1)
    y, u, v = (rng.integers(*bounds, 100_000) for bounds in ((90, 160), (108, 148), (108, 148)))
    luma, u, v = 255 / 219 * (y - 16), 255 / 224 * (u - 128), 255 / 224 * (v - 128)
    rgb = np.stack([luma + 1.402 * v, luma - 0.344136 * u - 0.714136 * v, luma + 1.772 * u]).round()
    exact = np.stack([luma + 1.5748 * v, luma - 0.187324 * u - 0.468124 * v, luma + 1.8556 * u])
    rows = np.array(correction("bt601", "bt709", False))
    error = rows[:, :3] @ rgb + rows[:, 3:] - exact
    assert np.abs(error.mean(1) - [-1.0, -1.5, -1.0]).max() < 0.02  # what FFmpeg drops: half a level for each shift
    assert error.std(1).max() < 0.35


@pytest.mark.parametrize("name", CLIPS)
def test_any_frames_in_any_order(decoder, clip, name):
    frames = full_decode(clip(name))
    last = len(frames) - 1
    for indices in ([last, 0, 17, 17, 3, last], range(0, last, 7), [last], range(last + 1)):
        (result,) = decoder.decode([(clip(name), np.array(indices))])
        assert_frames(result, [frames[n] for n in indices])


def test_sixty_irregular_time_stamps(decoder, clip):
    frames = full_decode(clip("vp9-vfr.webm"))
    assert len(frames) == 60
    with DaliVideo(clip("vp9-vfr.webm"), dali=decoder) as video:
        assert video.info.num_frames == 60
        np.testing.assert_allclose(video.seconds(range(60)), (np.array(IRREGULAR_MS) - IRREGULAR_MS[0]) / 1000)
        for n, frame in video.frames(range(60)):
            assert_frames(Clip("rgb", (frame.planes[0][None],)), [frames[n]])


def test_no_file_ends_a_batch(decoder, clip, tmp_path):
    """Good files among empty, cut, garbage, flipped, missing and unfit ones are decoded as on their own."""
    vp9, jpeg = Path(clip("vp9.webm")).read_bytes(), bytearray(Path(clip("mjpeg.avi")).read_bytes())
    rng = np.random.default_rng(7)
    for at in rng.integers(3000, len(jpeg) - 4000, 16):
        jpeg[at] ^= 1 << rng.integers(8)
    contents = {"empty.webm": b"", "garbage.webm": b"x" * 5000, "cut.webm": vp9[:300], "flipped.avi": bytes(jpeg)}
    bad = {name: str(tmp_path / name) for name in (*contents, "half.webm", "h264.mp4", "missing.webm")}
    for name, content in (contents | {"half.webm": vp9[: len(vp9) // 2]}).items():
        Path(bad[name]).write_bytes(content)
    write_video(Path(bad["h264.mp4"]), "libx264", num_frames=4)
    reasons = {
        "empty.webm": "the file is empty",
        "garbage.webm": "a text file, not a video",
        "cut.webm": "not a video file|no frames|none of its|ends before",
        "flipped.avi": "DALI cannot decode it .*Invalid data",
        "half.webm": "has frames 0 to [0-9]+; got [0-9]+",
        "h264.mp4": "on the CPU it decodes vp8, vp9, mjpeg, and this is h264; decoder pyav can",
        "missing.webm": "no such file",
    }
    good = [(clip("vp9.webm"), [39, 0, 5]), (clip("mjpeg.avi"), [1, 1]), (clip("vp8.webm"), range(8))]
    batch = good[:1] + [(bad[name], range(40)) for name in reasons] + [(clip("vp9.webm"), [3, 40])] + good[1:]
    results = decoder.decode(batch)
    for result, (name, reason) in zip(results[1:], reasons.items()):
        assert isinstance(result, DecodeError), name
        assert result.path == bad[name]
        assert re.search(reason, result.reason), result
    assert str(results[-3]) == f"{clip('vp9.webm')}: has frames 0 to 39; got 40"
    for result, request in zip([results[0], *results[-2:]], good):
        (alone,) = decoder.decode([request])
        assert torch.equal(result.planes[0], alone.planes[0])
        assert_frames(result, [full_decode(request[0])[n] for n in request[1]])


def test_half_a_file_gives_its_half(decoder, clip, tmp_path):
    blob = Path(clip("vp9.webm")).read_bytes()
    half = tmp_path / "half.webm"
    half.write_bytes(blob[: len(blob) // 2])
    with DaliVideo(half, dali=decoder) as video:
        count = video.info.num_frames
        assert 0 < count < 40
        frames = full_decode(clip("vp9.webm"))
        for n, frame in video.frames(range(count)):
            assert_frames(Clip("rgb", (frame.planes[0][None],)), [frames[n]])


def test_black_frames_are_checked(decoder, clip, tmp_path, monkeypatch):
    """A black frame is passed on where it is one, and an error where DALI makes it up."""
    path = tmp_path / "black.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(4):
            planes = np.full((72, 64), 128, np.uint8)
            planes[:48] = 16 if n < 3 else 90
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (result,) = decoder.decode([(path, [0, 3, 1])])
    assert [int(frame.max()) for frame in result.planes[0]][::2] == [0, 0]
    assert result.planes[0][1].float().mean() > 60

    call = DaliDecoder._call

    def blank_second_frames(self, jobs):
        tensors = call(self, jobs)
        for tensor in tensors:
            tensor[1] = 0
        return tensors

    monkeypatch.setattr(DaliDecoder, "_call", blank_second_frames)
    results = decoder.decode([(path, [2, 1]), (clip("vp9.webm"), [4, 9])])
    assert int(results[0].planes[0].max()) == 0
    assert results[1].path == clip("vp9.webm")
    assert results[1].reason == "damaged: DALI gave frame 9 as black without an error, and it is not"


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)], ids=["turned", "mirrored", "both"])
def test_as_displayed(decoder, tmp_path, matrix):
    path = write_video(tmp_path / "turned.mp4", "libvpx-vp9", num_frames=4, options=VP9)
    set_display_matrix(path, *matrix)
    frames = full_decode(path)
    orientation = pyav_decoder.Orientation.of(frames[0])
    (result,) = decoder.decode([(path, [3, 1])])
    with DaliVideo(path, dali=decoder) as video:
        assert tuple(result.planes[0].shape[1:3]) == (video.info.height, video.info.width)
        for got, n in zip(result.planes[0], (3, 1)):
            expected = orientation.view(formula(frames[n]))
            assert np.abs(got.numpy().astype(int) - expected).max() <= 1
            (_, frame), *_ = video.frames([n])
            assert torch.equal(frame.planes[0], got)


def test_files_that_dali_would_count_otherwise_are_refused(decoder, tmp_path):
    deep = write_video(tmp_path / "deep.webm", "libvpx-vp9", num_frames=3, pix_fmt="yuv444p")
    wide = write_video(tmp_path / "wide.webm", "libvpx-vp9", num_frames=3, colorspace=Colorspace.SMPTE240M)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(write_video(tmp_path / "m.avi", "mjpeg", pix_fmt="yuvj420p").read_bytes()[:20000])
    for path, reason in [
        (deep, "yuv444p is not 8-bit 4:2:0"),
        (wide, "its colour matrix is neither BT.601 nor BT.709"),
        (cut, "its time stamps do not tell which frames it has"),
    ]:
        (result,) = decoder.decode([(path, [0])])
        assert result.reason == f"DALI cannot be used: {reason}; decoder pyav can"
        with pytest.raises(DecodeError, match=reason):  # a named decoder never falls back
            open_video(path, decoder="dali", device="cpu")
        with open_video(path, decoder="auto", device="cpu") as video:
            assert type(video) is pyav_decoder.PyavVideo


@pytest.mark.parametrize(
    ("frame_pts", "packets", "streams", "problem"),
    [
        ([0, 1, 2], 3, 1, None),
        ([5, 7, 8], 3, 1, None),
        ([0, 1, 2], 4, 1, "some of its packets show no frame"),
        ([-1, 0, 1], 3, 1, "its time stamps start below zero"),
        ([0, 1, 2], 3, 2, "it has 2 video streams or cover pictures"),
    ],
    ids=["good", "later", "hidden", "below-zero", "two-streams"],
)
def test_numbering(frame_pts, packets, streams, problem):
    index = SimpleNamespace(frame_pts=frame_pts, packets=[None] * packets)
    assert dali_decoder.numbering_problem(SimpleNamespace(index=index, num_streams=streams)) == problem


def test_video_protocol(clip, monkeypatch):
    monkeypatch.setattr(dali_decoder, "CHUNK_BYTES", 3 * 96 * 64 * 7)  # 7 frames
    held = []
    call = DaliDecoder._call
    monkeypatch.setattr(DaliDecoder, "_call", lambda self, jobs: held.append(len(jobs[0].frames)) or call(self, jobs))
    with open_video(clip("vp9.webm"), decoder="dali", device="cpu") as video:
        with open_video(clip("vp9.webm"), decoder="pyav") as pyav:
            assert video.info == pyav.info
        frames = full_decode(clip("vp9.webm"))
        seen = []
        for n, frame in video.frames([39, *range(0, 30, 2), 39]):
            seen.append(n)
            assert_frames(Clip("rgb", (frame.planes[0][None],)), [frames[n]])
        assert seen == [*range(0, 30, 2), 39]
        assert held == [7, 7, 2]
        assert list(video.frames([])) == []
        with pytest.raises(IndexError, match="has frames 0 to 39; got -1, 40"):
            video.frames([40, 3, -1])
    with pytest.raises(ValueError, match="the video is closed"):
        video.frames([0])
    with pytest.raises(ValueError, match="at least one; got shape"):
        DaliDecoder("cpu").decode([(clip("vp9.webm"), [])])
    with pytest.raises(ValueError, match="computes on cpu and cuda"):
        DaliDecoder("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu(clip):
    with pytest.raises(RuntimeError, match="torch finds no GPU"):
        open_video(clip("vp9.webm"), decoder="dali", device="cuda:0")


def test_videos_in_threads(clip):
    """One each, at the same time, as in scoring."""

    def decode(name):
        with open_video(clip(name), decoder="dali", device="cpu") as video:
            return [frame.planes[0] for _, frame in video.frames(range(0, 40, 3))]

    names = ["vp9.webm", "mjpeg.avi", "vp8.webm"] * 3
    for name in CLIPS:
        clip(name)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(decode, names))
    for name, frames in zip(names, results):
        assert_frames(Clip("rgb", (torch.stack(frames),)), full_decode(clip(name))[::3])


def test_decoders_are_shared_and_few(clip, monkeypatch):
    """Videos of one device and number of threads use the same decoders, one thread each at a time."""
    made = []
    build = DaliDecoder.__init__
    monkeypatch.setattr(DaliDecoder, "__init__", lambda self, *a, **k: (made.append(k), build(self, *a, **k))[1])
    dali_decoder._decoders.clear()
    path = clip("vp9.webm")

    def decode(start):
        with open_video(path, decoder="dali", device="cpu", threads=1) as video:
            return sum(1 for _ in video.frames(range(start, 40, 8)))

    assert [decode(0) for _ in range(5)] == [5] * 5
    assert len(made) == 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, range(8))) == [5] * 8
    assert len(made) <= dali_decoder.MAX_DECODERS
    feed = Feed(
        [path] * 6, sama.VideoSampler(grid=(2, 2), fragment=(16, 16)), batch=2, clip_len=4, decoder="dali", workers=1
    )
    before = len(made)
    assert [len(batch) for batch in feed.epoch()] == [2, 2, 2]
    assert len(made) == before  # as those of single videos


def test_a_call_ends_between_two_runs_of_packets(clip, monkeypatch):
    """Key frames at 0, 15 and 30: clips at 3 to 6 and 18 to 24 are two calls, though there is room for more."""
    monkeypatch.setattr(dali_decoder, "CHUNK_BYTES", 3 * 96 * 64 * 7)  # 7 frames
    monkeypatch.setattr(packet_index, "MIN_JUMP", 0)
    calls = []
    call = DaliDecoder._call
    monkeypatch.setattr(
        DaliDecoder, "_call", lambda self, jobs: calls.append(jobs[0].frames.tolist()) or call(self, jobs)
    )
    wanted = [3, 4, 5, 6, 18, 20, 22, 24, 31]
    with open_video(clip("vp9.webm"), decoder="dali", device="cpu") as video:
        assert [n for n, _ in video.frames(wanted)] == wanted
    assert calls == [[3, 4, 5, 6], [18, 20, 22, 24, 31]]


@pytest.mark.parametrize("space", [Colorspace.ITU601, Colorspace.ITU709], ids=["bt601", "bt709"])
def test_inputs_of_a_score_are_close_to_pyavs(tmp_path, space):
    """Through the plan, with chroma as smooth as photographs have it: what stays is rounding and interpolation."""
    path, (y, x) = tmp_path / "smooth.webm", np.mgrid[:240, :320]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options={"crf": "10", "b": "0"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.colorspace = space
        for n in range(8):
            rgb = [110 + 60 * np.sin((x + 4 * n) / 40 + c) + 40 * np.cos((y - 2 * n) / 30 - c) for c in range(3)]
            frame = av.VideoFrame.from_ndarray(np.stack(rgb, -1).astype(np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=int(space))
            frame.pts, frame.colorspace = n, space
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sampler = sama.VideoSampler(grid=(3, 3), fragment=(32, 32), normalize=False)
    with open_video(path, decoder="pyav") as video:
        (right,) = sampler.stream(video, np.arange(8)[None])
    with open_video(path, decoder="dali", device="cpu") as video:
        (got,) = sampler.stream(video, np.arange(8)[None])
        raw = torch.stack([frame.planes[0] for _, frame in video.frames(range(8))])
    before, after = (sampler(raw)[0] - right).abs().mean(), (got - right).abs().mean()
    assert after < 0.7
    assert before > after * (4 if space == Colorspace.ITU709 else 1.5)


GROWTH = """
import ctypes, sys
import numpy as np, psutil
from sama.decode.dali import DaliDecoder
decoder, paths = DaliDecoder("cpu", threads=2), sys.argv[1:]
def resident(rounds):
    for _ in range(rounds):
        results = decoder.decode([(path, np.arange(0, 40, 4)) for path in paths])
    assert sum(hasattr(result, "planes") for result in results) == 3, results
    del results
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # or the C library keeps some of what is free
    return psutil.Process().memory_info().rss
print(resident(5), resident(15))
"""


def test_memory_does_not_grow(clip, tmp_path):
    """60 more files, a quarter of them bad, after 20."""
    bad = tmp_path / "bad.avi"
    blob = bytearray(Path(clip("mjpeg.avi")).read_bytes())
    rng = np.random.default_rng(7)
    for at in rng.integers(3000, len(blob) - 4000, 16):
        blob[at] ^= 1 << rng.integers(8)
    bad.write_bytes(blob)
    paths = [clip("vp9.webm"), clip("mjpeg.avi"), clip("vp8.webm"), str(bad)]
    run = subprocess.run([sys.executable, "-c", GROWTH, *paths], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    before, after = map(int, run.stdout.split())
    assert after - before < 4 << 20


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", "mp4", {"bf": "3", "g": "16"}),
        ("libx264", "ts", {"bf": "3", "g": "16"}),
        ("libx265", "mp4", {"x265-params": "log-level=none:keyint=12:bframes=4:pools=1"}),
        ("libvpx-vp9", "webm", VP9),
    ],
    ids=["h264-mp4", "h264-ts", "hevc", "vp9"],
)
@pytest.mark.parametrize(("space", "color_range"), TAGS)
def test_gpu_frames_corrected(tmp_path, codec, suffix, options, space, color_range):
    """Right frames, in FFmpeg's colours but for rounding and interpolated chroma: the pattern's is steep."""
    path = write_video(
        tmp_path / f"a.{suffix}",
        codec,
        size=(192, 160),
        options=options,
        colorspace=space,
        color_range=color_range,
    )
    indices = [39, 0, 17, 17, 3]
    (result,) = DaliDecoder("cuda").decode([(path, indices)])
    assert not isinstance(result, DecodeError), result
    corrected = reference.to_rgb(result).cpu().float()
    with open_video(path, decoder="pyav") as video:
        right = {n: reference.to_rgb(frame).float() for n, frame in video.frames(indices)}
    for got, n in zip(corrected, indices, strict=True):
        off = [float((got - frame).abs().mean()) for frame in right.values()]
        assert list(right)[int(np.argmin(off))] == n
        assert (got - right[n]).mean((0, 1)).abs().max() < 1
        assert min(off) < 4


@pytest.mark.cuda
def test_gpu_batch_names_bad_files(clip, tmp_path):
    (tmp_path / "garbage.mp4").write_bytes(b"x" * 5000)
    good = write_video(tmp_path / "good.mp4", "libx264", size=(192, 160), options={"bf": "3"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good.read_bytes()[:20000])
    results = DaliDecoder("cuda").decode([(good, [3]), (tmp_path / "garbage.mp4", [0]), (cut, [0]), (good, [3, 3])])
    assert [isinstance(result, Clip) for result in results] == [True, False, False, True]
    assert torch.equal(results[0].planes[0][0], results[3].planes[0][1])


def test_planes_helper_matches_formula_where_chroma_is_flat(clip):
    """The oracle itself: on grey, swscale's general path is BT.601 in real numbers, rounded."""
    frame = full_decode(clip("vp9.webm"))[0]
    y = planes_of(frame)[0].astype(float)
    grey = av.VideoFrame.from_ndarray(
        np.concatenate([planes_of(frame)[0], np.full((32, 96), 128, np.uint8)]), format="yuv420p"
    )
    expected = np.clip(255 / 219 * (y - 16), 0, 255)
    assert np.abs(formula(grey) - expected[..., None]).max() <= 1
