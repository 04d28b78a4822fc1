"""Packets that no wanted frame needs are left out, and what is left decodes to the same wanted frames, to the bit.

FFmpeg decodes what a GPU would be sent, each run with a fresh decoder; a plain decode of the whole file is the oracle.
"""

import av
import numpy as np
import pytest
from videos import CLIPS, X265, full_decode, planes_of, write_video

from sama.decode.nal import KEPT, nal_length, parameter_sets, picture_of
from sama.decode.pyav import PyavVideo

X264 = "scenecut=0:keyint=16:min-keyint=16"
STREAMS = {
    **{name: CLIPS[name][:2] for name in CLIPS if name.startswith(("h264", "hevc")) and CLIPS[name][2] == "packets"},
    "x264-strict-pyramid.mp4": ("libx264", {"options": {"bf": "7", "x264-params": f"b-pyramid=strict:{X264}"}}),
    "x264-no-pyramid.mkv": ("libx264", {"options": {"bf": "4", "x264-params": f"b-pyramid=none:b-adapt=0:{X264}"}}),
    "x264-refs.mp4": ("libx264", {"options": {"bf": "2", "x264-params": f"ref=8:weightp=2:bframes=3:{X264}"}}),
    "x264-slices.ts": ("libx264", {"options": {"bf": "3", "x264-params": f"slices=4:b-adapt=0:{X264}"}}),
    "x264-baseline.mp4": ("libx264", {"options": {"profile": "baseline", "x264-params": X264}}),
    "x264-cavlc-one-gop.flv": ("libx264", {"options": {"preset": "ultrafast", "bf": "3", "g": "250"}}),
    "x264-open-gop-pyramid.mkv": (
        "libx264",
        {"num_frames": 60, "options": {"bf": "5", "x264-params": f"open-gop=1:b-pyramid=normal:{X264}"}},
    ),
    "x265-no-pyramid.mkv": ("libx265", {"options": {"x265-params": f"{X265}:b-pyramid=0:b-adapt=0"}}),
    "x265-open-gop-layers.mp4": (
        "libx265",
        {"num_frames": 60, "options": {"x265-params": f"{X265}:open-gop=1:temporal-layers=3"}},
    ),
    "x265-radl.mkv": ("libx265", {"options": {"x265-params": f"{X265}:open-gop=0:radl=2"}}),
    "x265-low-delay.ts": ("libx265", {"options": {"x265-params": f"{X265}:bframes=0:ref=4"}}),
}
NEVER_LEFT_OUT = ["vp9.webm", "vp8.webm", "av1.mp4"]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")

    def make(name):
        codec, arguments = STREAMS[name] if name in STREAMS else CLIPS[name][:2]
        path = folder / name
        return path if path.exists() else write_video(path, codec, **arguments)

    return make


def decode_sent(video, wanted):
    """`{n: planes}` that FFmpeg makes of the packets for `wanted`, and how many packets those are."""
    found, context, count = {}, None, 0

    def collect(packet):
        for frame in context.decode(packet):
            found[video.index.frame_at(frame.pts)] = planes_of(frame)

    for _, _, source, packet in video.packets(wanted):
        if packet is None or context is None:
            if context is not None:
                collect(None)
            context = av.CodecContext.create(source.context.codec.name, "r")
            context.extradata = source.context.extradata
            context.thread_type = "SLICE"
        if packet is not None:
            count += 1
            collect(packet)
    collect(None)
    return found, count


def selections(count):
    rng = np.random.default_rng(count)
    yield from ([n] for n in range(count))
    yield range(0, count, 2)
    yield range(1, count, 2)
    yield range(0, count, 5)
    yield from (sorted(rng.choice(count, size, replace=False).tolist()) for size in (2, 3, 5, 8, 12, 20))


GRADUAL = "h264-intra-refresh.mp4"


@pytest.mark.parametrize("name", [name for name in STREAMS if name != GRADUAL])
def test_wanted_frames_are_those_of_a_full_decode(stream, name):
    expected = [planes_of(frame) for frame in full_decode(stream(name))]
    with PyavVideo(str(stream(name))) as video:
        assert video.index is not None
        assert video.info.num_frames == len(expected)
        for wanted in map(list, selections(len(expected))):
            found, _ = decode_sent(video, wanted)
            assert set(wanted) <= set(found), wanted
            for n in wanted:
                for got, right in zip(found[n], expected[n], strict=True):
                    np.testing.assert_array_equal(got, right, err_msg=f"frame {n} of {wanted}")


@pytest.mark.parametrize(
    ("name", "most"),
    [("x264-no-pyramid.mkv", 0.8), ("x264-strict-pyramid.mp4", 0.8), ("hevc-layers.mp4", 0.8), ("hevc.mp4", 0.9)],
)
def test_fewer_packets_are_sent(stream, name, most):
    """Every second frame of the whole file, as a score takes them."""
    with PyavVideo(str(stream(name))) as video:
        wanted = list(range(0, video.info.num_frames, 2))
        _, count = decode_sent(video, wanted)
        assert len(wanted) <= count <= most * video.info.num_frames


def test_gradual_refresh_is_no_entry(stream):
    """Its recovery points are marked as key frames, and the pictures from there on come out damaged."""
    with PyavVideo(str(stream(GRADUAL))) as video:
        video.complete()
        assert not video.index.packets["is_entry"][video.index.keys].all()


@pytest.mark.parametrize("name", NEVER_LEFT_OUT)
def test_codecs_that_carry_state_lose_nothing(stream, name):
    with PyavVideo(str(stream(name))) as video:
        last = video.index.packet_of_frame[38]
        (run,) = video.index.runs(list(range(0, 39, 2)))
        _, sent = 0, sum(packet is not None for *_, packet in video.packets(list(range(0, 39, 2))))
        assert sent == run.last - run.first + 1 >= last


def test_headers_that_say_nothing_keep_their_packet():
    for codec in ("h264", "hevc"):
        for data in (b"", b"\0", b"\0\0\1", b"\0\0\0\1", bytes(3), b"\xff" * 40):
            assert picture_of(codec, memoryview(data), 0) == KEPT
            assert picture_of(codec, memoryview(data), 4) == KEPT
    assert picture_of("vp9", memoryview(b"\x82\x49"), 0) == KEPT
    with_set = b"\0\0\1\x67\x64\0\0\1\x01\x9a"  # a slice that nothing refers to, beside a parameter set
    assert picture_of("h264", memoryview(with_set), 0) == KEPT
    assert picture_of("h264", memoryview(with_set[5:]), 0) == (0, False, False)


def test_parameter_sets_are_the_same_in_every_container(stream, tmp_path):
    """Of one encoder and setting; another size has others; what cannot be read has none."""
    found = []
    for name in ("h264.mp4", "h264.mkv", "h264.ts", "hevc.mp4", "hevc.ts"):
        with PyavVideo(str(stream(name))) as video:
            found.append(video.sequence)
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4]
    assert all(found)
    other = write_video(tmp_path / "other.mp4", "libx264", size=(64, 48), num_frames=3, **CLIPS["h264.mp4"][1])
    with PyavVideo(str(other)) as video:
        assert video.sequence not in found
    with PyavVideo(str(stream("vp9.webm"))) as video:
        assert video.sequence == b""
    for extradata in (None, b"", b"\1" * 30, b"\1" * 6, b"nothing"):
        assert parameter_sets("h264", extradata) is None or extradata == b"\1" * 30
        assert nal_length("h264", extradata) in (0, 2)
