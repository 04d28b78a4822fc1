"""Packets of a video file: which there are, and reading them from a file that holds its own media.

    file --its tables (`sama.decode.mp4`), or all packets--> packets --> `sama.decode.index.PacketIndex`

Reading all packets costs about 10 microseconds each, plus the reading of the file: a few milliseconds for a clip of
ten seconds, seconds for a film. Nothing less gives exact numbers at a variable frame rate, except tables that say of
each packet what it would say itself. Whatever is read of a file that was opened by such tables is held against them.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any, Literal

import av
import av.error
import numpy as np
from av.container import Flags
from av.stream import Disposition

from sama.decode import mp4, nal
from sama.decode.index import NO_PTS, PACKET, UNKNOWN, PacketIndex, Run
from sama.errors import DamageError, DecodeError, IndexMismatchError
from sama.limits import MAX_SCANS, SCAN, Guard, has_too_many_scans
from sama.storage import Handle, LocalFile

MAX_THREADS = 4
THREAD_BYTES = 40 << 20  # of frames, one per thread: three threads at 2160p, one at 2160p with 10 bits
SEEK_BYTES = 16 << 20  # reading past fewer bytes is as fast as seeking, and cannot land in the wrong place
SEEK_PACKETS = 250  # likewise, in a file with tables: to seek there is to look something up in them

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


class Source:
    """One open container, its video stream and decoder; `position` is the number of the packet to be read next.

    With one thread it decodes a damaged stream the same way every time. With more, which pixels stand in for the
    damaged ones depends on how far each thread is: then damage is a `DamageError`, if the guard is strict.

    tables: the packets as the tables of the file tell them, of type PACKET, where it was opened by these: each one that
        is read must be as it says there, or else `IndexMismatchError`
    """

    def __init__(self, path: str, threads: int | None, guard: Guard, tables: np.ndarray | None = None):
        self.path, self.threads, self.guard = path, threads, guard
        self.tables: dict[str, np.ndarray] | None = None
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
        self.unit_length = nal.nal_length(self.codec, self.context.extradata)
        self.expect(tables)
        self.time_base = self.stream.time_base or Fraction(1)
        self.nominal_fps = float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def close(self) -> None:
        self._packets = iter(())
        self.container.close()

    def reopened(self, threads: int | None = None) -> Source:
        """A new one in the place of this one, at the beginning; threads: None for as many as this one was given."""
        self.close()
        return Source(self.path, threads or self.threads, self.guard, self._expected)

    def expect(self, tables: np.ndarray | None) -> None:
        """From now on, packets must be as in these tables."""
        self._expected = tables
        self.tables = None if tables is None else {name: tables[name] for name in PACKET.names or ()}

    def peek(self) -> av.Packet | None:
        """The packet that is to be read next, unchecked."""
        packet = next(self._packets, None)
        if packet is not None:
            self._packets = chain([packet], self._packets)
        return packet

    def packets(self) -> Iterator[tuple[int, av.Packet]]:
        """`(number, packet)` from `position` on; the end of the file is where FFmpeg cannot read on."""
        for packet in self._packets:
            self.guard.check_time()
            if self.codec == "mjpeg" and bytes(packet).count(SCAN) > MAX_SCANS and has_too_many_scans(bytes(packet)):
                raise DecodeError(self.path, f"frame {self.position} is a JPEG of more than {MAX_SCANS} scans")
            self._check(packet)
            self.position += 1
            yield self.position - 1, packet
        self._check(None)

    def _check(self, packet: av.Packet | None) -> None:
        """IndexMismatchError unless the packet at `position`, None for the end, is as the tables say."""
        if self.tables is None:
            return
        number, tables = self.position, self.tables
        if (packet is None) != (number == len(tables["pts"])):
            self.guard.by_index = False
            raise IndexMismatchError(self.path, f"its tables tell {len(tables['pts'])} packets, it has others")
        if packet is None:
            return
        found = (packet.pts, packet.duration or 0, packet.size, packet.is_keyframe, not packet.is_discard)
        expected = tuple(tables[name][number] for name in ("pts", "duration", "size", "is_key", "is_shown"))
        good = found == expected and not packet.is_corrupt and tables["layer"][number] == self._layer(packet)
        if not good or (number and is_stateful(packet)):
            self.guard.by_index = False
            raise IndexMismatchError(self.path, f"its tables tell another packet {number} than it has")

    def _layer(self, packet: av.Packet) -> int:
        return nal.hevc_layer(memoryview(packet), self.unit_length) if self.codec == "hevc" else 0

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
            self.container.seek(int(index.pts[number]), stream=self.stream)
        except av.error.FFmpegError:
            return
        packets = self._demux()
        for packet in packets:
            at = index.number_of(packet.pts, packet.size)
            if at >= number:
                break
        else:
            return
        self.position = at
        self._packets = chain([packet], packets)

    def for_run(self, index: PacketIndex, run: Run) -> Source:
        """This source, or a new one in its place, at the first packet of a run.

        It has one thread where one of `LATE_DECODERS` would stop at what is no damage, references to pictures before
        the run, or know of damage too late.
        """
        is_short = run.last - run.first < SHORT_RUN or (run.first > 0 and index.shows_before(run))
        if self.is_late and is_short:
            return self.reopened(threads=1).positioned(index, run)
        source = self.positioned(index, run)
        if source.is_late and run.first > 0 and not source.is_entry(index, run.first):
            return source.reopened(threads=1).positioned(index, run)
        return source

    def is_entry(self, index: PacketIndex, number: int) -> bool:
        """Whether decoding can begin at a key packet, the next one to be read."""
        known = index.packets["is_entry"][number]
        if known != UNKNOWN:
            return bool(known)
        packet = self.peek()
        return packet is not None and nal.is_entry(self.codec, memoryview(packet), self.unit_length)

    def positioned(self, index: PacketIndex, run: Run) -> Source:
        """This source, or a new one in its place, at the first packet of a run."""
        source = self
        ahead = run.first - self.position
        is_far = self.tables is not None and ahead > SEEK_PACKETS
        if ahead < 0 or is_far or index.bytes_between(self.position, run.first) > SEEK_BYTES:
            self.seek(index, run.first)
        if self.position > run.first:
            source = self.reopened()  # the seek failed: read from the start
        try:
            while source.position < run.first and next(source.packets(), None) is not None:
                pass
        except BaseException:
            source.close()
            raise
        return source

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


def read_tables(source: Source) -> tuple[np.ndarray, av.VideoFrame | None] | None:
    """What `read_packets` gives, from the tables of the file; None where these do not prove it, and nothing was read.

    Reads as far as the first frame. `IndexMismatchError` where the packets until then are not as the tables say.
    """
    if "mov" not in source.format.split(","):
        return None
    try:
        content = source.guard.content or LocalFile(source.path, source.path)
        tables = mp4.packet_table(content, source.container, source.stream)
    except (mp4.UnprovenError, OSError):
        return None
    packet = source.peek()
    if packet is None or packet.pts is None:
        return None
    tables["pts"] += packet.pts - int(tables["pts"][0])
    source.expect(tables)
    source.opening = True
    first: list[av.VideoFrame] = []
    for number, packet in source.packets():
        if first := _first_frames(source, number, packet):
            break
    first = first or source.decode(None)
    source.opening = False
    return tables, first[0] if first else None


def read_packets(source: Source) -> tuple[np.ndarray, av.VideoFrame | None]:
    """All packets of a source at its beginning, of type PACKET, and the first frame that can be decoded, None where
    there is none."""
    first: list[av.VideoFrame] = []

    def rows() -> Iterator[tuple[object, ...]]:
        for number, packet in source.packets():
            if not first:
                first.extend(_first_frames(source, number, packet))
            data = memoryview(packet)
            hidden = source.codec == "vp8" and not data[0] & 0x10  # its show_frame bit
            yield (
                NO_PTS if packet.pts is None else packet.pts,
                packet.duration or 0,
                packet.size,
                packet.is_keyframe,
                not (hidden or packet.is_discard),
                packet.is_corrupt,
                is_stateful(packet),
                packet.is_keyframe and nal.is_entry(source.codec, data, source.unit_length),
                source._layer(packet),
            )

    source.opening = True
    packets = np.fromiter(rows(), PACKET)
    first = first or source.decode(None)
    source.opening = False
    return packets, first[0] if first else None


def _first_frames(source: Source, number: int, packet: av.Packet) -> list[av.VideoFrame]:
    """What comes out of the decoder at a packet, where nothing came before."""
    return (source.decode_alone(packet) if number == 0 else []) or source.decode(packet)


def is_stateful(packet: av.Packet) -> bool:
    """Whether a key packet changes how all after it are read."""
    return packet.is_keyframe and any(packet.has_sidedata(kind) for kind in STATEFUL_SIDE_DATA)


def default_threads(context: av.VideoCodecContext) -> int:
    """No more than the machine has, nor than `MAX_THREADS`, nor than hold `THREAD_BYTES` of frames, one each."""
    components = context.format.components if context.format else ()
    frame_bytes = sum(part.width * part.height * (2 if part.bits > 8 else 1) for part in components)
    return max(1, min(MAX_THREADS, os.cpu_count() or 1, THREAD_BYTES // max(frame_bytes, 1)))


def frame_seconds(pts: Sequence[int | None] | np.ndarray, source: Source) -> np.ndarray:
    """float64 `[N]`: time stamps in seconds after the first, or equal steps where they are missing or out of order."""
    if isinstance(pts, np.ndarray) or None not in pts:
        stamps = np.array(pts, np.int64)
        if (stamps[1:] > stamps[:-1]).all():
            return (stamps - stamps[0]) * float(source.time_base)
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
