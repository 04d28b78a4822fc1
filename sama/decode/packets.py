"""Packets of a video file: which one shows which frame, and reading them from a file that holds its own media.

    file --FFmpeg reads, decodes the first frame--> list of Packet --> PacketIndex --runs(frames)--> Run, Run, ...

Every decoder numbers frames by this index. A run goes from the key frame before its first wanted frame to the last
packet that a wanted frame needs.

Reading all packets costs about 10 microseconds each, plus the reading of the file: a few milliseconds for a clip of
ten seconds, a second for half an hour. Nothing less gives exact numbers at a variable frame rate.
"""

from __future__ import annotations

import codecs
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, chain, pairwise
from typing import Any, Literal

import av
import av.error
import numpy as np
from av.container import Flags
from av.stream import Disposition

from sama.decode.nal import hevc_layer, is_entry, nal_length, picture_of
from sama.errors import DamageError, DecodeError
from sama.limits import MAX_SCANS, SCAN, Guard, has_too_many_scans
from sama.storage import Handle

MAX_THREADS = 4
THREAD_BYTES = 40 << 20  # of frames, one per thread: three threads at 2160p, one at 2160p with 10 bits
MIN_JUMP = 8  # packets; decoding on is cheaper than emptying and refilling the decoder for fewer
SEEK_BYTES = 16 << 20  # reading past fewer bytes is as fast as seeking, and cannot land in the wrong place

# Decoders whose "NONREF" leaves out no frame that another one refers to.
SKIPS_EXACTLY = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"})
# Decoders that pass over damaged slices without a word, unless they are told to stop there.
SILENT_DECODERS = frozenset({"hevc", "vvc"})
# Decoders whose frame threads may give a frame before the one that works on it knows of its damage: they are told to
# stop there too, and decode with one thread what is short, where most frames come out while the threads are at work.
LATE_DECODERS = frozenset({"h264"})
SHORT_RUN = 32  # packets
# Decoders whose frame threads take the pixels of damaged slices from frames that other threads are, or were, at, or
# that cannot be told to stop at damage.
SLICE_THREADS = frozenset({"exr", "ffv1", "mpeg4", "rv30", "rv40", "speedhq"})
# Decoders that show what was in memory where a stream is damaged, and do not say so: their frames do not repeat.
REFUSED_DECODERS = frozenset({"flashsv", "flashsv2"})
# Side data that changes how all packets after it are read: such packets cannot be left out.
STATEFUL_SIDE_DATA: tuple[Literal["new_extradata", "param_change"], ...] = ("new_extradata", "param_change")

# Titles in another encoding are no error; from PyAV 19 on they never are.
LENIENT_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# FFmpeg's names of the formats that are read: each holds its own media and refers to no other file. Left out are those
# that do, among them concat, dash, hls, image2, imf, lavfi, mlv, rtsp, sdp, svg_pipe and vobsub, and whatever is new.
CONTAINERS = (
    *("asf", "avi", "dv", "flv", "gxf", "ivf", "kux", "live_flv", "lxf", "matroska", "mov", "mpeg", "mpegts", "mxf"),
    *("nsv", "nut", "nuv", "obu", "ogg", "pva", "rm", "swf", "ty", "webm", "wtv", "yuv4mpegpipe"),
    # cameras, recorders, players
    *("cine", "dhav", "film_cpk", "filmstrip", "fits", "hxvs", "ifv", "iv8", "ivr", "lmlm4", "luodat", "moflex", "mtv"),
    *("mv", "mxg", "nc", "pmp", "r3d", "rpl", "ser", "smjpeg", "vivo", "wc3movie"),
    # games
    *("4xm", "bethsoftvid", "bfi", "bink", "cdxl", "dxa", "ea", "flic", "idcin", "ipmovie", "mods", "paf", "psxstr"),
    *("rl2", "roq", "sga", "siff", "smk", "smush", "thp", "tiertexseq", "usm", "vmd", "wsvqa", "xmv", "yop"),
    # streams without a container
    *("apv", "av1", "avs2", "avs3", "cavsvideo", "dirac", "dnxhd", "evc", "h261", "h263", "h264", "hevc", "ingenient"),
    *("m4v", "mjpeg", "mjpeg_2000", "mpegvideo", "mpjpeg", "vc1", "vc1test", "vvc"),
    # pictures, in one file
    *("apng", "gif", "jpegxl_anim"),
    *(f"{name}_pipe" for name in ("bmp", "dpx", "exr", "gif", "j2k", "jpeg", "jpegls", "jpegxl", "pam", "pbm", "pgm")),
    *(f"{name}_pipe" for name in ("pgmyuv", "png", "ppm", "qoi", "tiff", "webp")),
    *("aac", "aiff", "caf", "flac", "mp3", "wav"),  # sound, to say that it holds no video
)
OTHER_KINDS = {  # what is refused, and what its first `KIND_BYTES` hold
    "a playlist (hls)": rb"^\s*#EXTM3U",
    "a playlist (dash)": rb"<MPD\b",
    "a playlist (imf)": rb"<CompositionPlaylist\b",
    "a list of other files (concat)": rb"^ffconcat version",
    "a description of a network stream (sdp)": rb"^v=0\s",
    "a drawing (svg)": rb"<svg\b",
    "an index of subtitles (vobsub)": rb"^# VobSub index file",
}
KIND_BYTES = 4096


@dataclass(frozen=True)
class Packet:
    """What the index needs of one packet. pts and duration are in the stream's time base, None where unknown.

    is_entry: a key packet that decoding can begin at, see `sama.decode.nal.is_entry`
    """

    pts: int | None
    duration: int | None
    size: int
    is_key: bool
    is_shown: bool
    is_damaged: bool
    is_stateful: bool
    is_entry: bool
    layer: int


@dataclass
class Run:
    """Packets `first..last` in file order, of which `frames` (numbers, increasing) are wanted."""

    first: int
    last: int
    frames: list[int]


class PacketIndex:
    """Which packet shows which frame, for files whose time stamps tell. Packets are numbered in file order.

    packets [P], pts [P]: all packets and their time stamps
    places [P]: their places in the order of the time stamps, those of packets that show no frame among them
    packet_of_frame [N], frame_pts [N], frame_of_pts {pts: n}: the N frames in the order they are shown
    keys: numbers of the key packets, increasing
    skippable [P]: packets that the decoder may leave out where their frame is neither wanted nor referred to
    """

    def __init__(self, packets: list[Packet], pts: list[int], *, codec: str, intra_only: bool):
        shown = [number for number, packet in enumerate(packets) if packet.is_shown]
        self.packet_of_frame = sorted(shown, key=lambda number: pts[number])
        self.frame_pts = [pts[number] for number in self.packet_of_frame]
        self.frame_of_pts = {stamp: n for n, stamp in enumerate(self.frame_pts)}
        self.number_of = {(packet.pts, packet.size): number for number, packet in enumerate(packets)}
        self.packets = packets
        self.pts = pts
        self.places = np.argsort(np.argsort(pts, kind="stable")).tolist()
        self.keys = [number for number, packet in enumerate(packets) if packet.is_key]
        self.intra_only = intra_only
        top_layer = max(packet.layer for packet in packets)
        self.skippable = [codec in SKIPS_EXACTLY and packet.layer == top_layer for packet in packets]
        self._end = np.cumsum([packet.size for packet in packets])

    @classmethod
    def of(cls, packets: list[Packet], source: Source, first: av.VideoFrame) -> PacketIndex | None:
        """The index of a file, or None where its packets do not tell which frames a decode gives, or in which order.

        first: the first frame that can be decoded
        None for: no or equal time stamps; a start in the middle of a group of pictures, whose frames may be lost;
        interlaced video, where a packet may be half a frame; AVI, which stores no time stamps and whose packets may
        hold no frame or two; packets cut short; packets that change the decoder's state, or the palette.
        """
        pts = [packet.pts for packet in packets if packet.pts is not None]
        shown = {packet.pts for packet in packets if packet.is_shown}
        if len(pts) < len(packets) or len(shown) < sum(packet.is_shown for packet in packets):
            return None
        if first.pts not in shown or not packets[0].is_key or first.interlaced_frame:
            return None
        if any(packet.is_shown and stamp < pts[0] for packet, stamp in zip(packets, pts)):
            return None
        if first.format.name == "pal8" or any(packet.is_stateful for packet in packets[1:]):
            return None
        if any(packet.is_damaged for packet in packets) or (source.format == "avi" and not source.intra_only):
            return None
        return cls(packets, pts, codec=source.codec, intra_only=source.intra_only)

    def runs(self, wanted: list[int]) -> list[Run]:
        """The packets to feed for `wanted` (increasing): runs apart by more than `MIN_JUMP` packets."""
        runs: list[Run] = []
        for n in wanted:
            key, last = self.key_before(n), self.packet_of_frame[n]
            if not runs or key > runs[-1].last + MIN_JUMP:
                runs.append(Run(key, last, []))
            runs[-1].last = max(runs[-1].last, last)
            runs[-1].frames.append(n)
        return runs

    def key_before(self, n: int) -> int:
        """Last key packet from which frame `n` can be decoded: sent and shown no later than the frame itself.

        Frames sent after a key frame but shown before it may refer to frames before the key frame.
        """
        at = bisect_right(self.keys, self.packet_of_frame[n]) - 1
        while at > 0 and self.pts[self.keys[at]] > self.frame_pts[n]:
            at -= 1
        return self.keys[max(at, 0)]

    def refers_back(self, run: Run) -> bool:
        """Whether pictures of a run may refer to some before it, which the decoder is not given (open groups)."""
        start = self.pts[run.first]
        shown_before = any(stamp < start for stamp in self.pts[run.first + 1 : run.last + 1])
        return run.first > 0 and (shown_before or not self.packets[run.first].is_entry)

    def frame_of_packet(self, number: int) -> int:
        """The number of the frame that a packet shows, -1 where it shows none."""
        return self.frame_of_pts[self.pts[number]] if self.packets[number].is_shown else -1

    def unneeded(self, run: Run, codec: str, length: int) -> Callable[[int, memoryview], bool]:
        """A function of a packet of a run, `(number, data)`: whether every wanted frame is decoded the same without it.

        length: as `sama.decode.nal.nal_length` gives it
        Left out are pictures that are not wanted and that no wanted one can depend on: those of a layer above all
        wanted ones that follow, non-reference pictures of the layer of these, and HEVC's leading pictures of the key
        picture that the run begins with, which cannot be decoded from there.
        """
        wanted = sorted(self.packet_of_frame[n] for n in run.frames)
        layers = [self.packets[number].layer for number in wanted]
        highest = list(accumulate(reversed(layers), max))[::-1]

        def is_unneeded(number: int, data: memoryview) -> bool:
            at = bisect_left(wanted, number)
            if number == run.first or at == len(wanted) or wanted[at] == number:
                return False
            picture = picture_of(codec, data, length)
            if picture.is_leading and self.pts[number] < self.pts[run.first]:
                return True
            return picture.layer > highest[at] or (picture.layer == highest[at] and not picture.is_reference)

        return is_unneeded

    def bytes_between(self, first: int, last: int) -> int:
        """Size of packets `first..last - 1`."""
        return int(self._end[last - 1] - self._end[first - 1]) if 0 < first < last else 0


class Source:
    """One open container, its video stream and decoder; `position` is the number of the packet to be read next.

    With one thread it decodes a damaged stream the same way every time. With more, which pixels stand in for the
    damaged ones depends on how far each thread is: then damage is a `DamageError`, if the guard is strict.
    """

    def __init__(self, path: str, threads: int | None, guard: Guard):
        self.path, self.threads, self.guard = path, threads, guard
        self.container = open_container(path, guard)
        try:
            self.stream = video_stream(path, self.container)
            self.context = self.stream.codec_context
            guard.check_pixels(self.context.width, self.context.height)
            self.has_size = self.context.width > 0  # FFmpeg forgets a size that it was told to refuse
        except BaseException:
            self.container.close()
            raise
        canonical = self.context.codec.canonical_name
        self.context.thread_type = "SLICE" if canonical in SLICE_THREADS else "AUTO"
        self.context.thread_count = threads or default_threads(self.context)
        self.strict = guard.strict and threads != 1
        options = {"max_pixels": guard.limits.ffmpeg_pixels}
        self.is_late = self.strict and canonical in LATE_DECODERS
        if self.is_late or (self.strict and canonical in SILENT_DECODERS):
            options["err_detect"] = "explode"
        self.context.options = options
        self.position = 0
        self.frames = 0  # that the decoder has given
        self.error = ""  # the decoder's last complaint
        self.opening = False  # damage of the first frame is of no interest yet, and told of in time or too late
        self._packets: Iterator[av.Packet] = self._demux()

        self.format = self.container.format.name
        self.codec = self.context.codec.canonical_name
        self.intra_only = self.context.codec.intra_only
        self.time_base = self.stream.time_base or Fraction(1)
        self.nominal_fps = float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def close(self) -> None:
        self._packets = iter(())
        self.container.close()

    def packets(self) -> Iterator[tuple[int, av.Packet]]:
        """`(number, packet)` from `position` on; the end of the file is where FFmpeg cannot read on."""
        for packet in self._packets:
            self.guard.check_time()
            if self.codec == "mjpeg" and bytes(packet).count(SCAN) > MAX_SCANS and has_too_many_scans(bytes(packet)):
                raise DecodeError(self.path, f"frame {self.position} is a JPEG of more than {MAX_SCANS} scans")
            self.position += 1
            yield self.position - 1, packet

    def _demux(self) -> Iterator[av.Packet]:
        try:
            for packet in self.container.demux(self.stream):
                self._check_content()
                if packet.size:  # an empty one would tell the decoder that the file has ended
                    yield packet
        except av.error.FFmpegError as error:
            self.error = error.strerror or ""
        except IndexError:  # PyAV, at the end of a damaged file whose streams have become more on the way
            pass
        self._check_content()

    def _check_content(self) -> None:
        """DecodeError where the bytes of a remote file could not be had: to FFmpeg, it ends there."""
        if self.guard.content is not None and self.guard.content.error is not None:
            raise self.guard.content.error

    def seek(self, index: PacketIndex, number: int) -> None:
        """Go to packet `number`; `position` is past it where that failed."""
        self.position = len(index.packets)
        try:
            self.container.seek(index.pts[number], stream=self.stream)
        except av.error.FFmpegError:
            return
        packets = self._demux()
        for packet in packets:
            at = index.number_of.get((packet.pts, packet.size), -1)
            if at >= number:
                break
        else:
            return
        self.position = at
        self._packets = chain([packet], packets)

    def for_run(self, index: PacketIndex, run: Run) -> Source:
        """This source, or a new one with one thread, where one of `LATE_DECODERS` would stop at what is no damage,
        references to pictures before the run, or know of damage too late."""
        many_threads = not index.refers_back(run) and run.last - run.first >= SHORT_RUN
        if many_threads or not self.is_late:
            return self
        self.close()
        return Source(self.path, 1, self.guard)

    def positioned(self, index: PacketIndex, run: Run) -> Source:
        """This source, or a new one in its place, no further than the first packet of a run."""
        if self.position > run.first or index.bytes_between(self.position, run.first) > SEEK_BYTES:
            self.seek(index, run.first)
        if self.position <= run.first:
            return self
        self.close()  # the seek failed: read from the start
        return Source(self.path, self.threads, self.guard)

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Frames that come out once `packet` has gone in; None empties the decoder. Damage is noted and passed over.

        DamageError in its place where the source is strict.
        """
        try:
            frames = self.context.decode(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self.error = error.strerror or ""
            self._note_damage(self.error)
            return []
        self.frames += len(frames)
        if any(frame.is_corrupt for frame in frames) and not (self.opening and self.is_late):
            self._note_damage("damaged frames")
        return frames

    def _note_damage(self, what: str) -> None:
        """What cannot be decoded before the first frame leaves no trace in any other, unless it would have been one.

        Whether a decoder in `LATE_DECODERS` would have passed over it turns out when the file is read again.
        """
        if self.frames and not self.is_late:
            self.guard.damage = self.guard.damage or what
        if self.strict and (self.frames or self.is_late):
            raise DamageError(self.path, f"its stream is damaged ({what})")

    def decode_alone(self, packet: av.Packet) -> list[av.VideoFrame]:
        """Frames of one packet at once; leaves the decoder empty."""
        frames = self.decode(packet) + self.decode(None)
        self.context.flush_buffers()
        return frames

    def decode_run(self, index: PacketIndex, run: Run) -> Iterator[av.VideoFrame]:
        """The wanted frames of a run and some more, in the order they are shown; leaves the decoder empty."""
        wanted = {index.packet_of_frame[n] for n in run.frames}
        for number, packet in self.packets():
            if number in wanted or (number >= run.first and not index.intra_only):
                self.context.skip_frame = "NONREF" if number not in wanted and index.skippable[number] else "DEFAULT"
                yield from self.decode(packet)
            if number >= run.last:
                break
        yield from self.decode(None)
        self.context.flush_buffers()


def read_packets(source: Source) -> tuple[list[Packet], av.VideoFrame | None]:
    """All packets of a source at its beginning, and the first frame that can be decoded, None where there is none."""
    packets: list[Packet] = []
    first: list[av.VideoFrame] = []
    length = nal_length(source.codec, source.context.extradata)
    source.opening = True
    for number, packet in source.packets():
        if not first:
            first = (source.decode_alone(packet) if number == 0 else []) or source.decode(packet)
        hidden = source.codec == "vp8" and not memoryview(packet)[0] & 0x10  # its show_frame bit
        packets.append(
            Packet(
                pts=packet.pts,
                duration=packet.duration,
                size=packet.size,
                is_key=packet.is_keyframe,
                is_shown=not (hidden or packet.is_discard),
                is_damaged=packet.is_corrupt,
                is_stateful=packet.is_keyframe and any(packet.has_sidedata(kind) for kind in STATEFUL_SIDE_DATA),
                is_entry=packet.is_keyframe and is_entry(source.codec, memoryview(packet), length),
                layer=hevc_layer(memoryview(packet), length) if source.codec == "hevc" else 0,
            )
        )
    first = first or source.decode(None)
    source.opening = False
    return packets, first[0] if first else None


def default_threads(context: av.VideoCodecContext) -> int:
    """No more than the machine has, nor than `MAX_THREADS`, nor than hold `THREAD_BYTES` of frames, one each."""
    components = context.format.components if context.format else ()
    frame_bytes = sum(part.width * part.height * (2 if part.bits > 8 else 1) for part in components)
    return max(1, min(MAX_THREADS, os.cpu_count() or 1, THREAD_BYTES // max(frame_bytes, 1)))


def frame_seconds(pts: Sequence[int | None], source: Source) -> np.ndarray:
    """float64 `[N]`: time stamps in seconds after the first, or equal steps where they are missing or out of order."""
    stamps = [stamp for stamp in pts if stamp is not None]
    if len(stamps) == len(pts) and all(a < b for a, b in pairwise(stamps)):
        return (np.array(stamps, np.int64) - stamps[0]) * float(source.time_base)
    return np.arange(len(pts)) / source.nominal_fps


def check_file(path: str) -> None:
    """DecodeError for what is no readable local file at all."""
    if not os.path.exists(path):
        raise DecodeError(path, "no such file")
    if not os.path.isfile(path):
        raise DecodeError(path, "a directory, not a file" if os.path.isdir(path) else "not a regular file")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise DecodeError(path, f"cannot be opened: {error.strerror}") from error
    if not os.path.getsize(path):
        raise DecodeError(path, "the file is empty")


def open_container(path: str, guard: Guard) -> av.container.InputContainer:
    """Open a file whose format is in `CONTAINERS`; no other file is opened, and no connection made, whatever it says.

    DecodeError where FFmpeg takes it for anything else, by its content or its name, or cannot read it.
    """
    content = guard.content
    lists = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none" if content else "file"}
    limits = {"max_pixels": guard.limits.ffmpeg_pixels}  # FFmpeg decodes some frames to learn of the stream
    source = Handle(content) if content else f"file:{path}"
    try:
        container = av.open(source, "r", options=limits, container_options=lists, **LENIENT_METADATA)
    except (av.error.FFmpegError, OSError) as error:
        if content:
            start = content.read_at(0, KIND_BYTES)
            content.check()
        else:
            with open(path, "rb") as file:
                start = file.read(KIND_BYTES)
        if isinstance(error, EOFError):
            reason = "it ends before its first frame"
        elif kind := kind_of(path, start, recognised=isinstance(error, av.error.ArgumentError)):
            reason = f"{kind}, not a video"
        elif isinstance(error, av.error.ArgumentError):
            reason = "in a format that is not read here: only formats that hold their own media are"
        elif start[4:8] == b"ftyp":
            reason = "an MP4 or MOV file cut short or damaged: its table of contents (moov) cannot be read"
        else:
            reason = f"not a video file that FFmpeg can read ({error.strerror})"
        raise DecodeError(path, reason) from error
    container.flags &= ~Flags.gen_pts.value  # a guess is worse than none
    return container


def kind_of(path: str, start: bytes, *, recognised: bool) -> str | None:
    """What a file is that is none of `CONTAINERS`; None where its first bytes and its name do not tell.

    recognised: FFmpeg knows its format, and that is not on the list
    """
    is_text = is_utf8(start)
    for kind, mark in OTHER_KINDS.items():
        if is_text and re.search(mark, start):
            return kind
    if recognised and re.search(r"%\d*d", path):
        return "a name that stands for many pictures (image2)"
    return "a text file" if is_text else None


def is_utf8(start: bytes) -> bool:
    """Whether the first bytes of a file are text, maybe cut within a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


def video_stream(path: str, container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The first video stream that is not a cover picture."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError(path, f"has no video stream; found: {describe_streams(container)}")
    if streams[0].codec_context is None:
        raise DecodeError(path, "FFmpeg has no decoder for its video stream")
    if (name := streams[0].codec_context.codec.canonical_name) in REFUSED_DECODERS:
        raise DecodeError(path, f"its codec, {name}, is not read: of a damaged stream FFmpeg gives what was in memory")
    return streams[0]


def describe_streams(container: av.container.InputContainer) -> str:
    kinds = ["cover picture" if stream.type == "video" else stream.type for stream in container.streams]
    return ", ".join(sorted(set(kinds))) or "nothing"
