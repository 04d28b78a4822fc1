"""MP4 and MOV opened by their sample tables: to the bit what reading all packets gives, or else all packets are read.

`SAMA_FUZZ=1` damages fifty times as many files.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from servers import file_server
from small_models import save_nano
from videos import CLIPS, assert_same, full_decode, patch_box, write_video

import sama
from sama import storage
from sama.decode import decode_with, mp4, packets
from sama.decode.index import UNKNOWN
from sama.decode.pyav import PyavVideo
from sama.errors import DecodeError, IndexMismatchError
from sama.limits import Guard, Limits
from sama.scoring import score_files
from sama.storage import InMemory

TIMES = 50 if os.environ.get("SAMA_FUZZ") else 1
TABLED = [name for name in CLIPS if name.endswith((".mp4", ".mov")) and CLIPS[name][2] == "packets"]
BY_PACKETS = {"hevc-layers.mp4"}  # only the packets tell their temporal layers


def by_packets(path: Path | str, guard: Guard | None = None) -> PyavVideo:
    """A file that is opened by reading all packets."""
    guard = guard or Guard(str(path))
    guard.by_index = False
    return PyavVideo(str(path), guard=guard)


def remux(
    source: Path, path: Path, *, sound: str = "", seconds: int = 1, times: int = 1, again: bool = False, **options: str
) -> Path:
    """The video of a file in another container, so many times after each other, with seconds of sound for each time.

    again: and once more as a second stream. options: of the container
    """
    with av.open(str(source)) as given, av.open(str(path), "w", options=options) as made:
        template = given.streams.video[0]
        read = [packet for packet in given.demux(template) if packet.size]
        steps = sorted(packet.pts for packet in read)
        length = steps[-1] - steps[0] + steps[1] - steps[0]
        streams = [made.add_stream_from_template(template) for _ in range(1 + again)]
        audio = made.add_stream(sound, rate=8000, layout="mono") if sound else None
        for turn in range(times):
            for packet in read:
                for stream in streams:
                    copy = av.Packet(bytes(packet))
                    copy.pts, copy.dts = packet.pts + turn * length, packet.dts + turn * length
                    copy.time_base, copy.is_keyframe, copy.stream = template.time_base, packet.is_keyframe, stream
                    made.mux(copy)
            for n in range(8 * seconds if audio else 0):
                kind = np.float32 if sound == "aac" else np.int16
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), kind), format=audio.format.name, layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 8000, 1024 * (8 * seconds * turn + n), Fraction(1, 8000)
                made.mux(audio.encode(frame))
        if audio:
            made.mux(audio.encode())
    return path


def edit(source: Path, path: Path, *values: int) -> Path:
    """A copy whose one edit (version 0) is another one: its length in milliseconds, and the time that it begins at."""
    path.write_bytes(source.read_bytes())
    patch_box(path, b"elst", 8, values)
    return path


def delay_of(path: Path) -> int:
    return int.from_bytes(path.read_bytes().split(b"elst")[1][12:16], "big")


TICK = 12800 // 25
ODD = {
    # name: (a function of (the clips, path), how the file is opened)
    "faststart.mp4": (lambda clip, path: remux(clip("h264.mp4"), path, sound="aac", movflags="faststart"), "index"),
    "sound.mp4": (lambda clip, path: remux(clip("h264.mp4"), path, sound="aac"), "index"),
    "pcm.mov": (lambda clip, path: remux(clip("h264.mp4"), path, sound="pcm_s16le"), "index"),
    "negative-offsets.mp4": (
        lambda clip, path: remux(clip("h264.mp4"), path, movflags="negative_cts_offsets"),
        "index",
    ),
    "negative-dts.mp4": (lambda clip, path: remux(clip("h264.mp4"), path, use_editlist="0"), "index"),
    "vfr-90k.mp4": (lambda clip, path: remux(clip("h264-vfr.mp4"), path, video_track_timescale="90000"), "index"),
    "many-groups.mp4": (lambda clip, path: remux(clip("h264-open-gop.mp4"), path, times=3, sound="aac"), "index"),
    "two-streams.mp4": (lambda clip, path: remux(clip("h264.mp4"), path, again=True), "index"),
    "co64.mp4": (lambda clip, path: with_co64(remux(clip("h264.mp4"), path)), "index"),
    "begins-later.mp4": (
        lambda clip, path: edit(clip("h264.mp4"), path, 1360, delay_of(clip("h264.mp4")) + 6 * TICK),
        "index",
    ),
    "begins-at-a-later-key.mp4": (
        lambda clip, path: edit(clip("h264.mp4"), path, 600, delay_of(clip("h264.mp4")) + 22 * TICK),
        "index",
    ),
    "ends-earlier.mp4": (lambda clip, path: edit(clip("h264.mp4"), path, 1500, delay_of(clip("h264.mp4"))), "index"),
    "ends-much-earlier.mp4": (
        lambda clip, path: edit(clip("h264-open-gop.mp4"), path, 500, delay_of(clip("h264-open-gop.mp4"))),
        "index",
    ),
    "twice-as-fast.mp4": (
        lambda clip, path: edit(clip("h264.mp4"), path, 1600, delay_of(clip("h264.mp4")), 2 << 16),
        "packets",
    ),
    "fragmented.mp4": (
        lambda clip, path: remux(clip("h264.mp4"), path, sound="aac", movflags="frag_keyframe+empty_moov"),
        "packets",
    ),
    "fragments-after.mp4": (lambda clip, path: remux(clip("h264.mp4"), path, movflags="frag_keyframe"), "packets"),
    "dash.mp4": (lambda clip, path: remux(clip("h264.mp4"), path, movflags="dash+delay_moov"), "packets"),
    "sound-cut.mp4": (lambda clip, path: without_the_end_of_the_sound(clip, path), "packets"),
    "prores.mov": (lambda clip, path: write_video(path, "prores_ks", pix_fmt="yuv422p10le"), "index"),
    "mjpeg.mov": (lambda clip, path: write_video(path, "mjpeg", pix_fmt="yuvj420p"), "index"),
    "vp9.mp4": (
        lambda clip, path: write_video(path, "libvpx-vp9", options={"g": "15", "lag-in-frames": "12"}),
        "index",
    ),
    "png.mov": (lambda clip, path: write_video(path, "png", pix_fmt="rgb24"), "packets"),
}


def with_co64(path: Path) -> Path:
    """64-bit places of chunks, in a file whose moov comes last."""
    data = path.read_bytes()
    at = data.index(b"stco") - 4
    size, _, flags, count = struct.unpack_from(">I4sII", data, at)
    chunks = struct.unpack_from(f">{count}I", data, at + 16)
    longer = struct.pack(f">I4sII{count}Q", size + 4 * count, b"co64", flags, count, *chunks)
    made = bytearray(data[:at] + longer + data[at + size :])
    for box in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        start = data.rindex(box, 0, at) - 4
        made[start : start + 4] = struct.pack(">I", struct.unpack_from(">I", data, start)[0] + 4 * count)
    path.write_bytes(made)
    return path


def without_the_end_of_the_sound(clip, path: Path) -> Path:
    """All of the video is there, but not all of the sound: FFmpeg stops where it is to read that."""
    remux(clip("h264.mp4"), path, sound="aac", seconds=3, movflags="faststart")
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(audio=0) if packet.size)
        container.seek(0)
        assert last > max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: last - 1])
    return path


@pytest.mark.parametrize("name", [*TABLED, *ODD])
def test_tables_tell_what_packets_tell(clip, name, tmp_path):
    if name in ODD:
        make, opened = ODD[name]
        path = make(clip, tmp_path / name)
    else:
        path, opened = clip(name), "packets" if name in BY_PACKETS else "index"
    with PyavVideo(str(path)) as video, by_packets(path) as plain:
        assert (video.info.opened, plain.info.opened) == (opened, "packets")
        assert replace(video.info, opened="packets") == plain.info
        count = video.info.num_frames
        np.testing.assert_array_equal(video.seconds(range(count)), plain.seconds(range(count)))
        for column in video.index.packets.dtype.names:
            told, found = video.index.packets[column], plain.index.packets[column]
            known = told != UNKNOWN if column == "is_entry" else slice(None)
            np.testing.assert_array_equal(told[known], found[known], err_msg=column)
        expected = full_decode(path)
        assert count == len(expected)
        for n, frame in video.frames([0, count // 3, count // 2, count - 1]):
            assert_same(frame, expected[n])
        assert video.info.opened == opened


class Counted(InMemory):
    """Bytes that count how many of them are taken."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data, name)
        self.taken = 0

    def read_at(self, start: int, length: int) -> bytes:
        data = super().read_at(start, length)
        self.taken += len(data)
        return data


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """6,000 frames with sound, its moov at the end."""
    folder = tmp_path_factory.mktemp("film")
    options = {"bf": "2", "g": "20", "b": "100k"}
    clip = write_video(folder / "clip.mp4", "libx264", size=(160, 96), num_frames=60, options=options)
    return remux(clip, folder / "film.mp4", sound="aac", times=100)


def test_a_film_costs_what_its_clips_cost(film):
    data = film.read_bytes()
    content = Counted(data, "film.mp4")
    tracemalloc.start()
    with PyavVideo("film.mp4", guard=Guard("film.mp4", content=content)) as video:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (video.info.num_frames, video.info.opened) == (6000, "index")
        assert peak < 250 * 6000
        wanted = [*range(2000, 2008), *range(4500, 4508)]
        frames = dict(video.frames(wanted))
        assert video.decoded < 100
    assert content.taken < 0.15 * len(data)  # the tables of these small packets are 2 %, and read twice
    with by_packets(film) as plain:
        for n, frame in plain.frames(wanted):
            for got, expected in zip(frames[n].planes, frame.planes, strict=True):
                np.testing.assert_array_equal(got, expected)


def test_a_film_on_the_web(film, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1 << 14)
    with file_server() as server:
        url = server.put("film.mp4", film.read_bytes())
        with PyavVideo(url) as video:
            assert video.info.opened == "index"
            assert [n for n, _ in video.frames([2000, 4500])] == [2000, 4500]
        assert server.sent["film.mp4"] < 0.25 * film.stat().st_size


def lie(monkeypatch, change):
    """Tables that say something else, from `change(tables)`."""
    told = mp4.packet_table
    monkeypatch.setattr(packets.mp4, "packet_table", lambda *arguments: change(told(*arguments)))


def swapped(tables: np.ndarray) -> np.ndarray:
    tables["size"][[20, 21]] = tables["size"][[21, 20]]
    return tables


def later(tables: np.ndarray) -> np.ndarray:
    tables["pts"][25:] += 100
    return tables


LIES = {
    "sizes-swapped": (swapped, True),  # the frames are the same
    "a-key-too-many": (lambda tables: set_to(tables, "is_key", 30, True), True),
    "other-times": (later, False),
    "one-too-many": (lambda tables: np.append(tables, set_to(tables[-1:].copy(), "pts", 0, 99_999)), False),
    "one-hidden": (lambda tables: set_to(tables, "is_shown", 33, False), False),
    "wrong-from-the-start": (lambda tables: set_to(tables, "size", 0, 5), True),
}


def set_to(tables: np.ndarray, column: str, number: int, value: object) -> np.ndarray:
    tables[column][number] = value
    return tables


@pytest.mark.parametrize("name", LIES)
def test_tables_that_lie_cost_time_and_no_frame(clip, name, monkeypatch):
    change, harmless = LIES[name]
    path = clip("h264.mp4")
    expected = full_decode(path)
    lie(monkeypatch, change)

    def use(video):
        frames = dict(video.frames(range(video.info.num_frames)))
        for n, frame in frames.items():
            assert_same(frame, expected[n])
        return len(frames), video.info.opened

    assert decode_with(use, path, decoder="pyav") == (40, "packets")
    with PyavVideo(str(path)) as video:
        if harmless:
            assert use(video) == (40, "packets")
        else:
            with pytest.raises(IndexMismatchError, match=r"tables tell other frames than its packets"):
                use(video)


def outcome(path: Path, by_index: bool):
    """What comes of a file: its properties, times and some frames, or the error."""
    guard = Guard(str(path), Limits(timeout=20))
    guard.by_index = by_index

    def use(video):
        count = video.info.num_frames
        found = []
        for n, frame in video.frames({0, count // 3, count // 2, count - 1}):
            found.append((n, hashlib.md5(b"".join(plane.tobytes() for plane in frame.planes)).hexdigest()))
        return replace(video.info, opened="packets"), hashlib.md5(video.seconds(range(count)).tobytes()).digest(), found

    try:
        return *decode_with(use, path, decoder="pyav", threads=1, guard=guard), guard.damage
    except DecodeError as error:
        return type(error), error.reason


BOXES = b"stsz stsc stco stts ctts stss elst tkhd mdhd mvhd stsd avcC moov trak mdat hdlr edts mdia sbgp".split()


def damaged(draw: random.Random, data: bytes) -> bytes:
    """A file with numbers in its boxes changed, boxes renamed, bits flipped, or its end cut off."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        kind, at = draw.randrange(9), data.find(draw.choice(BOXES))
        place = at + draw.choice([-4, 4, 8, 12, 16, draw.randrange(200)])
        if kind <= 5 and at > 0 and place + 4 <= len(data):
            number = draw.choice([0, 1, 2, 3, 2**31 - 1, 2**32 - 1, 2**31, len(data), draw.randrange(1 << 16)])
            if kind == 5:
                step = draw.choice([-1, 1, 2, 512, -512, 40, -40])
                number = (struct.unpack_from(">I", data, place)[0] + step) % 2**32
            struct.pack_into(">I", data, place, number)
        elif kind == 6:
            del data[max(100, draw.randrange(len(data))) :]
        elif kind == 7:
            for _ in range(draw.randint(1, 10)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 8 and at > 0:
            data[at : at + 4] = draw.choice([b"free", b"stps", b"ctts", b"stsz", b"moof"])
    return bytes(data)


@pytest.mark.parametrize(
    "name", ["h264.mp4", "h264-open-gop.mp4", "h264-vfr.mp4", "hevc.mp4", "faststart.mp4", "pcm.mov"]
)
def test_damaged_files_give_the_same_either_way(clip, name, tmp_path):
    whole = (ODD[name][0](clip, tmp_path / name) if name in ODD else clip(name)).read_bytes()
    for seed in range(25 * TIMES):
        path = tmp_path / f"damaged{Path(name).suffix}"
        path.write_bytes(damaged(random.Random(f"{name} {seed}"), whole))
        assert outcome(path, True) == outcome(path, False), seed


def test_cut_files_give_the_same_either_way(clip, tmp_path):
    whole = ODD["faststart.mp4"][0](clip, tmp_path / "whole.mp4").read_bytes()
    seen = set()
    for size in np.linspace(len(whole) // 3, len(whole) - 1, 12).astype(int):
        path = tmp_path / "cut.mp4"
        path.write_bytes(whole[:size])
        found = outcome(path, True)
        assert found == outcome(path, False), size
        seen.add(found[0] if isinstance(found[0], type) else found[0].num_frames)
    assert len(seen) > 3


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = box(b"mdia", data)
    return data


HOSTILE = {
    "no-boxes": b"",
    "size-of-seven": struct.pack(">I4s", 7, b"moov") + bytes(20),
    "size-of-zero-64-bit": struct.pack(">I4sQ", 1, b"free", 0) + bytes(50),
    "size-beyond-the-file": struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + bytes(50),
    "too-many-boxes": box(b"free") * 200_000,
    "nested": box(b"moov", box(b"trak", nested(5000))),
    "fragment-first": box(b"moof") + box(b"moov"),
    "compressed": box(b"moov", box(b"cmov")),
    "no-number": box(b"moov", box(b"trak", box(b"tkhd", bytes(3)))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_boxes(name):
    with pytest.raises(mp4.UnprovenError):
        mp4._tracks(InMemory(HOSTILE[name], name))


FULL = {
    b"stsz": struct.pack(">IIIII", 0, 0, 3, 10, 20) + struct.pack(">I", 30),
    b"stsc": struct.pack(">IIIII", 0, 1, 1, 3, 1),
    b"stco": struct.pack(">III", 0, 1, 40),
}
BAD_TABLES = {
    "many-samples": {b"stsz": struct.pack(">III", 0, 0, 2**32 - 1)},
    "many-samples-of-a-byte": {b"stsz": struct.pack(">III", 0, 1, 50_000_000)},
    "many-large-samples": {b"stsz": struct.pack(">III", 0, 2**32 - 1, 3)},
    "sizes-of-zero": {b"stsz": struct.pack(">IIIIII", 0, 0, 3, 0, 0, 0)},
    "sizes-cut-short": {b"stsz": struct.pack(">IIII", 0, 0, 3, 10)},
    "chunks-outside": {b"stco": struct.pack(">III", 0, 1, 2**32 - 1)},
    "many-chunks": {b"stco": struct.pack(">II", 0, 2**32 - 1)},
    "chunks-below-zero": {b"stco": b"", b"co64": struct.pack(">IIq", 0, 1, -40)},
    "samples-in-chunks": {b"stsc": struct.pack(">IIIII", 0, 1, 1, 2**32 - 1, 1)},
    "groups-in-no-order": {b"stsc": struct.pack(">IIIIIIII", 0, 2, 1, 1, 1, 1, 2, 1)},
    "groups-from-zero": {b"stsc": struct.pack(">IIIII", 0, 1, 0, 3, 1)},
    "no-groups": {b"stsc": struct.pack(">II", 0, 0)},
    "other-descriptions": {b"stsc": struct.pack(">IIIII", 0, 1, 1, 3, 2)},
}


def track_of(tables: dict[bytes, bytes]) -> mp4.Track:
    stream, boxes = io.BytesIO(), {}
    for kind, data in tables.items():
        if data:
            boxes[kind] = mp4.Box(kind, stream.tell(), stream.tell() + len(data))
            stream.write(data)
    stream.write(bytes(200))
    return mp4.Track(boxes, InMemory(stream.getvalue(), "tables"))


@pytest.mark.parametrize("name", BAD_TABLES)
def test_hostile_tables_take_no_memory(name):
    good = track_of(FULL)
    samples = mp4._samples(good.content, good)
    assert (samples.place.tolist(), samples.size.tolist()) == ([40, 50, 70], [10, 20, 30])
    bad = track_of(FULL | BAD_TABLES[name])
    tracemalloc.start()
    with pytest.raises(mp4.UnprovenError):
        mp4._samples(bad.content, bad)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("rows", [[(2**32 - 1, 1)], [(2, 5)], [(2, 5), (2, 5)], [(2**31, 1), (2**31, 1)], []])
def test_repeats_that_do_not_add_up(rows):
    with pytest.raises(mp4.UnprovenError):
        mp4._expanded(np.array(rows, np.int64).reshape(-1, 2), 3)


def test_the_row_says_how_a_file_was_opened(clip, tmp_path):
    settings = {"mode": "sama", "grid": [7, 7], "fragment": [32, 32], "clip_len": 8, "interval": 2, "num_clips": 1}
    model = sama.load_model(save_nano(tmp_path / "nano.safetensors", settings), "cpu")
    names = ["h264.mp4", "h264.mkv", "h264.avi"]
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = list(score_files([*(str(clip(name)) for name in names), str(tmp_path / "a.png")], model))
    assert [(row.status, row.opened) for row in rows] == [
        *(("ok", "index"), ("ok", "packets"), ("ok", "packets"), ("error", None))
    ]
