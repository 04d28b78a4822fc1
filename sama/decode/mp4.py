"""The sample tables of an MP4 or MOV file: what packets its video stream has, without reading them.

    moov: stsz, stsc, stco  -> place and size of each sample     (ISO 14496-12, 8.6 to 8.7)
          stts, ctts        -> when it is decoded and shown
          stss              -> whether it is a key sample
          elst              -> which samples are shown
    FFmpeg's own index of the stream (decoding times, places, sizes, no time stamps) must agree with them

FFmpeg gives the samples as packets in the order of the tables, with time stamps that are all shifted by one number;
which one, the first packet tells. Whatever the tables hold beside that (fragments, edits, several descriptions) is
`UnprovenError`: then all packets are to be read. The tables come from anywhere: sizes and counts are held against the
size of the file before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sama.decode.index import PACKET, UNKNOWN

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

    from sama.storage import Content

MAX_BOXES = 1000  # within one other box
MAX_EDITS = 16
MAX_SAMPLES = 1 << 22  # 19 hours at 60 frames a second
MAX_OFFSET = 1 << 28  # of a time stamp from the time of decoding; FFmpeg takes more for an error
MAX_STEP = 1 << 31
WHOLE_SPEED = 1 << 16
PARENTS = frozenset({b"edts", b"mdia", b"minf", b"stbl"})
TABLES = frozenset({*(b"tkhd mdhd elst stsd stts ctts stss stsz stsc stco co64".split())})
COMPARED = 64  # entries of FFmpeg's index

# Codecs whose packets FFmpeg gives as the file holds them, and key packets as its tables mark them.
CODECS = frozenset({"av1", "dnxhd", "h264", "hevc", "mjpeg", "mpeg4", "prores", "vp9"})


class UnprovenError(Exception):
    """The tables do not tell which packets FFmpeg gives, or not for sure."""


class Box(NamedTuple):
    """A box without its header: bytes `start..end - 1` of the file."""

    kind: bytes
    start: int
    end: int


class Track(NamedTuple):
    """The boxes of a track by their kind, each of which it has once."""

    boxes: dict[bytes, Box]
    content: Content

    def table(self, kind: bytes, columns: int) -> np.ndarray:
        """The entries of a box that holds a count and so many 32-bit numbers an entry: int64 [count, columns]."""
        count, start = self.counted(kind)
        return self.numbers(kind, start, count * columns, ">u4").reshape(count, columns)

    def counted(self, kind: bytes, skip: int = 0) -> tuple[int, int]:
        """The count that a box holds after its version and `skip` bytes, and where its entries begin."""
        start = self.boxes[kind].start + 4 + skip
        return int(self.numbers(kind, start, 1, ">u4")[0]), start + 4

    def numbers(self, kind: bytes, start: int, count: int, form: str) -> np.ndarray:
        """So many big-endian numbers of a box: int64 [count]."""
        size = count * np.dtype(form).itemsize
        if start + size > self.boxes[kind].end or count > 3 * MAX_SAMPLES:
            raise UnprovenError(f"{kind!r} is shorter than it says, or too long")
        data = self.content.read_at(start, size)
        if len(data) != size:
            raise UnprovenError(f"{kind!r} cannot be read")
        return np.frombuffer(data, form).astype(np.int64)


class Samples(NamedTuple):
    """place and size of the samples of a track in bytes, in file order; int64 [P]"""

    place: np.ndarray
    size: np.ndarray


def packet_table(content: Content, container: av.container.InputContainer, stream: VideoStream) -> np.ndarray:
    """All packets of a video stream, of type PACKET [P], time stamps up to a number that is added to all of them.

    content: the bytes of the file. Nothing of the container may have been read but its head.
    UnprovenError where the tables do not tell; then nothing was read but boxes.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec not in CODECS or not hasattr(stream, "index_entries"):
        raise UnprovenError(codec)
    if codec == "hevc" and _layers(stream.codec_context.extradata) != 1:
        raise UnprovenError("temporal layers, which only the packets tell")
    tracks, timescale = _tracks(content)
    for other in container.streams:
        if other.index != stream.index and len(other.index_entries):
            _check_readable(content, tracks.get(other.id), other.index_entries[-1])
    track = tracks.get(stream.id)
    if track is None:
        raise UnprovenError("no such track")
    return _packets(content, track, timescale, stream)


def _tracks(content: Content) -> tuple[dict[int, Track], int]:
    """The tracks of a file by their number, and the time scale of its edits."""
    for box in _boxes(content, 0, content.size):
        if box.kind in (b"moof", b"sidx", b"styp"):
            raise UnprovenError("fragments")
        if box.kind == b"moov":
            break
    else:
        raise UnprovenError("no moov")
    tracks: dict[int, Track] = {}
    timescale = 0
    for child in _boxes(content, box.start, box.end):
        if child.kind in (b"mvex", b"cmov"):
            raise UnprovenError("fragments, or a compressed head")
        if child.kind == b"mvhd":
            timescale = _header(content, child, 12, 20)
        if child.kind == b"trak":
            track = Track({}, content)
            _gather(content, child, track.boxes)
            number = _header(content, track.boxes[b"tkhd"], 12, 20) if b"tkhd" in track.boxes else 0
            if number in tracks:
                raise UnprovenError("two tracks of one number")
            tracks[number] = track
    return tracks, timescale


def _boxes(content: Content, start: int, end: int) -> Iterator[Box]:
    """The boxes that follow each other in a part of a file."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        head = content.read_at(start, 16)
        size, body = int.from_bytes(head[:4], "big"), start + 8
        if size == 1:
            size, body = int.from_bytes(head[8:16], "big"), start + 16
        elif size == 0:
            size = end - start
        if len(head) < 8 or size < body - start or start + size > end:
            raise UnprovenError("a box that does not fit into its place")
        yield Box(head[4:8], body, start + size)
        start += size
    raise UnprovenError("too many boxes")


def _gather(content: Content, parent: Box, found: dict[bytes, Box]) -> None:
    """Add the boxes of a track that matter here."""
    for box in _boxes(content, parent.start, parent.end):
        if box.kind in found or box.kind in (b"stps", b"stz2"):
            raise UnprovenError(f"{box.kind!r}")
        if box.kind == b"sbgp" and content.read_at(box.start + 4, 4) == b"rap ":
            raise UnprovenError("key samples in groups")
        if box.kind in PARENTS or box.kind in TABLES:
            found[box.kind] = box
        if box.kind in PARENTS:
            _gather(content, box, found)


def _header(content: Content, box: Box, short: int, long: int) -> int:
    """A 32-bit number that lies so many bytes from the start of a box of version 0, or of version 1."""
    data = content.read_at(box.start, min(box.end - box.start, long + 4))
    at = long if data[:1] == b"\1" else short
    if len(data) < at + 4:
        raise UnprovenError(f"{box.kind!r} is too short")
    return int.from_bytes(data[at : at + 4], "big")


def _samples(content: Content, track: Track) -> Samples:
    """Places and sizes of all samples."""
    _require(track, b"stsz", b"stsc")
    (constant,) = track.numbers(b"stsz", track.boxes[b"stsz"].start + 4, 1, ">u4").tolist()
    count, start = track.counted(b"stsz", skip=4)
    if not 0 < count <= MAX_SAMPLES or constant * count > content.size:
        raise UnprovenError(f"{count} samples")
    size = np.full(count, constant) if constant else track.numbers(b"stsz", start, count, ">u4")
    chunk = _chunks(track)
    if not 0 < len(chunk) <= count or not 0 <= chunk.min() <= chunk.max() <= content.size:
        raise UnprovenError("more chunks than samples, or outside the file")
    groups = track.table(b"stsc", 3)
    first, each = groups[:, 0] - 1, groups[:, 1]
    good = len(groups) and first[0] == 0 and (np.diff(first) > 0).all() and first[-1] < len(chunk)
    if not good or each.min() < 1 or each.max() > count or (groups[:, 2] != 1).any():
        raise UnprovenError("chunks in no order, or of several descriptions")
    in_chunk = np.repeat(each, np.diff(first, append=len(chunk)))
    if in_chunk.sum() != count or size.min() < 1 or size.max() > content.size:
        raise UnprovenError("sizes or chunks that do not fit")
    before = np.cumsum(size) - size  # in all samples before
    begin = np.cumsum(in_chunk) - in_chunk  # the first sample of each chunk
    place = before + np.repeat(chunk - before[begin], in_chunk)
    return Samples(place, size)


def _chunks(track: Track) -> np.ndarray:
    """Where the chunks of a track begin."""
    kind = b"co64" if b"co64" in track.boxes else b"stco"
    _require(track, kind)
    if {b"co64", b"stco"} <= set(track.boxes):
        raise UnprovenError("two tables of chunks")
    count, start = track.counted(kind)
    return track.numbers(kind, start, count, ">i8" if kind == b"co64" else ">u4")


def _check_readable(content: Content, track: Track | None, last: av.index.IndexEntry) -> None:
    """UnprovenError where a sample of another stream may lie outside the file: FFmpeg would stop reading there."""
    if track is None or last.pos + last.size > content.size:
        raise UnprovenError("another stream is cut short")
    _require(track, b"stsz")
    if track.numbers(b"stsz", track.boxes[b"stsz"].start + 4, 1, ">u4")[0]:  # sound without compression, by chunks
        chunk = _chunks(track)
        if len(chunk) and not 0 <= chunk.min() <= chunk.max() <= last.pos:
            raise UnprovenError("another stream is in no order")
        return
    samples = _samples(content, track)
    if (samples.place + samples.size).max() > content.size:
        raise UnprovenError("another stream is cut short")


def _packets(content: Content, track: Track, timescale: int, stream: VideoStream) -> np.ndarray:
    """The packets of a track; `stream` is FFmpeg's, whose index must agree."""
    _require(track, b"stsd", b"stts", b"mdhd")
    if track.counted(b"stsd")[0] != 1:
        raise UnprovenError("several descriptions")
    samples = _samples(content, track)
    count = len(samples.size)
    duration = _expanded(track.table(b"stts", 2), count)
    if duration.min() < 1 or duration.max() >= MAX_STEP:
        raise UnprovenError("time that stands still or jumps")
    decoded = np.cumsum(duration) - duration
    offset = np.zeros(count, np.int64)
    if b"ctts" in track.boxes:
        table = track.table(b"ctts", 2)
        table[:, 1] = table[:, 1].astype(np.int32)  # signed, in whatever version
        offset = _expanded(table, count)
        if np.abs(offset).max() > MAX_OFFSET:
            raise UnprovenError("a time stamp far from its time")
    packets = np.zeros(count, PACKET)
    packets["pts"], packets["duration"], packets["size"] = decoded + offset, duration, samples.size
    packets["is_key"] = _keys(track, count)
    packets["is_shown"] = _shown(track, timescale, decoded + offset)
    codec = stream.codec_context.codec.canonical_name
    packets["is_entry"] = np.where(packets["is_key"], UNKNOWN, 0) if codec == "h264" else packets["is_key"]
    kept = _kept(samples, stream)
    packets, place, decoded = packets[kept], samples.place[kept], decoded[kept]
    if (place + packets["size"]).max() > content.size:
        raise UnprovenError("the file is cut short")
    _compare(packets, place, decoded, stream)
    return packets


def _require(track: Track, *kinds: bytes) -> None:
    for kind in kinds:
        if kind not in track.boxes:
            raise UnprovenError(f"no {kind!r}")


def _expanded(table: np.ndarray, count: int) -> np.ndarray:
    """The values of a table of (repeats, value), each as often as it says: int64 [count]."""
    if not len(table) or table[:, 0].max() > count or table[:, 0].sum() != count:
        raise UnprovenError("a table for another number of samples")
    return np.repeat(table[:, 1], table[:, 0])


def _keys(track: Track, count: int) -> np.ndarray:
    """bool [P]: all, where no table says which."""
    if b"stss" not in track.boxes:
        return np.ones(count, bool)
    numbers = track.table(b"stss", 1)[:, 0] - 1
    if not len(numbers) or numbers[0] < 0 or numbers[-1] >= count or (np.diff(numbers) <= 0).any():
        raise UnprovenError("key samples in no order")
    keys = np.zeros(count, bool)
    keys[numbers] = True
    return keys


def _shown(track: Track, timescale: int, stamps: np.ndarray) -> np.ndarray:
    """bool [P]: of samples with such time stamps, those that the one edit of a track shows; all without an edit."""
    if b"elst" not in track.boxes:
        return np.ones(len(stamps), bool)
    box = track.boxes[b"elst"]
    (version,) = track.numbers(b"elst", box.start, 1, ">u1").tolist()
    count, start = track.counted(b"elst")
    if not count:
        return np.ones(len(stamps), bool)
    if count > MAX_EDITS:
        raise UnprovenError("several edits")
    wide = 8 if version == 1 else 4
    edits = []
    for number in range(count):
        at = start + number * (2 * wide + 4)
        length, begin = track.numbers(b"elst", at, 2, f">i{wide}").tolist()
        edits.append((length, begin, int(track.numbers(b"elst", at + 2 * wide, 1, ">u4")[0])))
    *empty, (length, begin, speed) = edits
    if any(place != -1 for _, place, _ in empty) or begin < 0 or length <= 0 or speed != WHOLE_SPEED or not timescale:
        raise UnprovenError("several edits")
    media_scale = _header(track.content, track.boxes[b"mdhd"], 12, 20)
    end = begin + (length * media_scale + timescale // 2) // timescale  # rounded as FFmpeg does
    return (stamps >= begin) & (stamps < min(end, np.iinfo(np.int64).max))


def _layers(extradata: bytes | None) -> int:
    """Temporal layers of an HEVC stream as its hvcC says; 0 where it does not."""
    return extradata[21] >> 3 & 7 if extradata and len(extradata) > 21 and extradata[0] == 1 else 0


def _kept(samples: Samples, stream: VideoStream) -> slice:
    """The samples that FFmpeg has in its index: some in a row, since there is one edit at most."""
    count = len(stream.index_entries)
    if not 0 < count <= len(samples.size):
        raise UnprovenError("another number of samples")
    first = np.flatnonzero(samples.place == stream.index_entries[0].pos)
    if len(first) != 1 or first[0] + count > len(samples.size):
        raise UnprovenError("other samples")
    return slice(int(first[0]), int(first[0]) + count)


def _compare(packets: np.ndarray, place: np.ndarray, decoded: np.ndarray, stream: VideoStream) -> None:
    """UnprovenError unless FFmpeg's index agrees: at both ends, where samples begin or end to be shown, and between."""
    count, entries = len(packets), stream.index_entries
    edges = np.flatnonzero(np.diff(packets["is_shown"]))[:COMPARED]
    ends = np.arange(3)
    spread = np.linspace(0, count - 1, COMPARED).astype(int)
    start = entries[0].timestamp - int(decoded[0])
    for number in np.unique(np.concatenate([ends, count - 1 - ends, edges, edges + 1, spread])).tolist():
        if not 0 <= number < count:
            continue
        entry, packet = entries[number], packets[number]
        found = entry.pos, entry.size, entry.timestamp, entry.is_keyframe, entry.is_discard
        expected = place[number], packet["size"], decoded[number] + start, packet["is_key"], not packet["is_shown"]
        if found != expected:
            raise UnprovenError(f"FFmpeg has another sample {number}: {found}, {expected}")
