"""Decoding on the CPU with FFmpeg, through PyAV.

    open:   read all packets, decode none but the first     -> which packet shows frame n, and which are key frames
    frames: wanted frames -> runs of packets                 -> feed a run, keep what was asked for, jump to the next

A run goes from the key frame before its first wanted frame to the last packet that a wanted frame needs. Frames in
it that nothing refers to are skipped by the decoder where that is exact (`SKIPS_EXACTLY`).

Reading all packets costs about 10 microseconds each, plus the reading of the file: a few milliseconds for a clip of
ten seconds, a second for half an hour. Nothing less gives exact numbers at a variable frame rate.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import av
import av.error
import numpy as np
from av.container import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from sama.decode import VideoInfo
from sama.errors import DecodeError, InputError
from sama.frames import Frame, Matrix

MAX_THREADS = 4
THREAD_BYTES = 40 << 20  # of frames, one a thread: three threads at 2160p, one at 2160p with 10 bits
MIN_JUMP = 8  # packets; decoding on is cheaper than emptying and refilling the decoder for fewer
SEEK_BYTES = 16 << 20  # reading past fewer bytes is as fast as seeking, and cannot land in the wrong place

# Decoders whose "NONREF" leaves out no frame that another one refers to.
SKIPS_EXACTLY = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"})
# Side data that changes how all packets after it are read: such packets cannot be left out.
STATEFUL_SIDE_DATA = ("new_extradata", "param_change")

# Titles in another encoding are no error; from PyAV 19 on they never are.
LENIENT_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# FFmpeg's names of the formats that are read: each holds its own media and refers to no other file. Left out are those
# that do, among them concat, dash, hls, image2, imf, lavfi, mlv, rtsp, sdp, svg_pipe and vobsub, and whatever is new.
CONTAINERS = (
    *("asf", "avi", "dv", "flv", "gxf", "ivf", "kux", "live_flv", "lxf", "matroska", "mov", "mpeg", "mpegts", "mxf"),
    *("nsv", "nut", "nuv", "obu", "ogg", "pva", "rm", "swf", "ty", "webm", "wtv", "yuv4mpegpipe"),
    *("cine", "dhav", "film_cpk", "mtv", "r3d", "rpl", "ser", "vivo", "wc3movie"),  # cameras, players
    *("4xm", "bink", "ea", "flic", "idcin", "ipmovie", "roq", "smk", "thp", "vmd", "xmv", "yop"),  # games
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

MATRIX_OF_TAG: dict[int, Matrix] = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}  # AVColorSpace; 2 is "unspecified"
FULL_RANGE_TAG = 2  # AVCOL_RANGE_JPEG


class PyavVideo:
    """`sama.decode.Video` with PyAV. threads: None for as many as there are cores and `default_threads` allows.

    What other decoders go by, too: index (None where time stamps do not tell), decoded_size (width, height),
    orientation, matrix (None: neither BT.601 nor BT.709), full_range, num_streams (video streams, cover pictures too).
    """

    def __init__(self, path: str, *, threads: int | None = None):
        check_file(path)
        self.decoded = 0  # frames the decoder has given, wanted or not
        self._path = path
        self._threads = threads
        self._closed = False
        self._source: Source | None = Source(path, threads)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self):
        source = self._source
        packets, first = read_packets(source)
        if not packets:
            raise DecodeError(self._path, "its video stream holds no frames")
        if first is None:
            why = f" ({source.error})" if source.error else ""
            raise DecodeError(self._path, f"none of its {len(packets)} {source.codec} packets can be decoded{why}")
        self.orientation = Orientation.of(first)
        self.decoded_size = first.width, first.height
        self.matrix, self.full_range = color_of(first)
        self.num_streams = len(source.container.streams.video)
        self.index = PacketIndex.of(packets, source, first)
        if self.index is None:
            self._source = None
            source.close()
            pts = [frame.pts for frame in self._decode_all()]
            last_duration = None
        else:
            pts = self.index.frame_pts
            last_duration = packets[self.index.packet_of_frame[-1]].duration
        num_frames = len(pts)
        if not num_frames:
            raise DecodeError(self._path, f"none of its {len(packets)} {source.codec} packets can be decoded")
        self._seconds = frame_seconds(pts, source)
        span = float(self._seconds[-1])
        usual_gap = span / (num_frames - 1) if num_frames > 1 else 1 / source.nominal_fps
        duration = span + (float(last_duration * source.time_base) if last_duration else usual_gap)
        turned = self.orientation.quarter_turns % 2
        self.info = VideoInfo(
            path=self._path,
            num_frames=num_frames,
            width=self.decoded_size[turned],
            height=self.decoded_size[1 - turned],
            rotation=90 * self.orientation.quarter_turns,
            mirrored=self.orientation.mirrored,
            fps=num_frames / duration,
            duration_seconds=duration,
            codec=source.codec,
            pix_fmt=first.format.name,
            index="decoding" if self.index is None else "packets",
        )

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """As `sama.decode.Video.frames`. Memory does not grow with the number of frames."""
        if self._closed:
            raise InputError(f"{self._path}: the video is closed")
        return self._frames(self.checked(indices))

    def seconds(self, indices: Iterable[int]) -> np.ndarray:
        """As `sama.decode.Video.seconds`."""
        indices = list(indices)
        self.checked(indices)
        return self._seconds[indices] if indices else np.empty(0)

    def close(self) -> None:
        self._closed = True
        self.rest()

    def rest(self) -> None:
        """Close the file; it is opened again once frames are asked for."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def checked(self, indices: Iterable[int]) -> list[int]:
        """`indices` without duplicates, in increasing order; IndexError where there is no such frame."""
        wanted = sorted({int(n) for n in indices})
        wrong = [n for n in wanted if not 0 <= n < self.info.num_frames]
        if wrong:
            count = self.info.num_frames
            raise IndexError(f"{self._path} has frames 0 to {count - 1}; got {', '.join(map(str, wrong[:8]))}")
        return wanted

    def __enter__(self) -> PyavVideo:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _frames(self, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
        missing = list(reversed(wanted))
        reformatter = VideoReformatter()
        if self.index is not None:
            for n, frame in self._decode_planned(wanted):
                missing.pop()
                yield n, self._convert(n, frame, reformatter)
        if not missing:
            return
        # No index, or the decoder did not give what the index promised: decode and count.
        count = 0
        for count, frame in enumerate(self._decode_all(), start=1):
            if count - 1 == missing[-1]:
                yield missing.pop(), self._convert(count - 1, frame, reformatter)
                if not missing:
                    return
        raise DecodeError(
            self._path,
            f"damaged or cut short: frame {missing[-1]} cannot be decoded, "
            f"{count} of {self.info.num_frames} frames are readable",
        )

    def _decode_planned(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The wanted frames; fewer where the decoder's output does not agree with the index."""
        index = self.index
        source = self._source or Source(self._path, self._threads)
        self._source = None
        try:
            for run in index.runs(wanted):
                source = self.positioned(source, run)
                pending = list(reversed(run.frames))
                for frame in source.decode_run(index, run):
                    self.decoded += 1
                    n = index.frame_of_pts.get(frame.pts)
                    if pending and (n is None or n > pending[-1]):
                        return
                    if pending and n == pending[-1]:
                        yield pending.pop(), frame
                if pending:
                    return
        finally:
            source.close()

    def packets(self, wanted: list[int]) -> Iterator[tuple[int, Source, av.Packet | None]]:
        """What a decoder that is not FFmpeg's needs for `wanted` (increasing numbers): `(number, source, packet)` in
        file order, and None in place of a packet where some are left out before the next one."""
        source = Source(self._path, self._threads)
        try:
            end = 0
            for run in self.index.runs(wanted):
                source = self.positioned(source, run)
                if run.first != end:
                    yield run.first, source, None
                end = run.last + 1
                for number, packet in source.packets():
                    if number >= run.first:
                        yield number, source, packet
                    if number >= run.last:
                        break
        finally:
            source.close()

    def positioned(self, source: Source, run: Run) -> Source:
        """`source`, or a new one in its place, no further than the first packet of a run."""
        index = self.index
        if source.position > run.first or index.bytes_between(source.position, run.first) > SEEK_BYTES:
            source.seek(index, run.first)
        if source.position > run.first:  # the seek failed: read from the start
            source.close()
            source = Source(self._path, self._threads)
        return source

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        """Every frame from the start, without frame threads, which can lose frames at the end of a damaged file."""
        source = Source(self._path, self._threads, thread_type="SLICE")
        try:
            for _, packet in source.packets():
                for frame in source.decode(packet):
                    self.decoded += 1
                    yield frame
            for frame in source.decode(None):
                self.decoded += 1
                yield frame
        finally:
            source.close()

    def _convert(self, n: int, frame: av.VideoFrame, reformatter: VideoReformatter) -> Frame:
        if (frame.width, frame.height) != self.decoded_size:
            width, height = self.decoded_size
            reason = f"frame {n} is {frame.width}x{frame.height}, the first one {width}x{height}"
            raise DecodeError(self._path, f"{reason}; a change of size is not supported")
        try:
            return to_frame(frame, self.orientation, reformatter)
        except av.error.FFmpegError as error:
            reason = f"frame {n} ({frame.format.name}) cannot be converted to RGB ({error.strerror})"
            raise DecodeError(self._path, reason) from error


@dataclass(frozen=True)
class Orientation:
    """Decoded to displayed: mirror left and right, then turn counter-clockwise by quarters."""

    quarter_turns: int = 0
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """From the display matrix `(a, b, _, c, d, ...)`: x' = a*x + c*y, y' = b*x + d*y, y pointing down."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        mirrored = a * d - b * c < 0
        if mirrored:
            a, b = -a, -b
        return cls(round(-math.atan2(b, a) / (math.pi / 2)) % 4, mirrored)

    @property
    def flips_columns(self) -> bool:
        """Whether it reverses the order of the decoded columns."""
        return self.mirrored != (self.quarter_turns in (1, 2))

    def view(self, plane: np.ndarray) -> np.ndarray:
        return np.rot90(plane[:, ::-1] if self.mirrored else plane, self.quarter_turns)


def to_frame(frame: av.VideoFrame, orientation: Orientation, reformatter: VideoReformatter) -> Frame:
    """8-bit 4:2:0 as it lies in the decoder's memory; everything else as FFmpeg's own RGB.

    FFmpeg interpolates chroma where the height is odd, and flipped columns of an odd width would pair with the wrong
    chroma: both go through RGB.
    """
    matrix, full_range = color_of(frame)
    planar = frame.format.name in ("yuv420p", "yuvj420p") and matrix is not None and frame.height % 2 == 0
    if not planar or (frame.width % 2 and orientation.flips_columns):
        rgb = reformatter.reformat(frame, format="rgb24")
        return Frame("rgb", (orientation.view(plane_view(rgb.planes[0], 3).reshape(rgb.height, rgb.width, 3)),))
    return Frame(
        "i420",
        tuple(orientation.view(plane_view(plane)) for plane in frame.planes),
        matrix=matrix,
        full_range=full_range,
    )


def color_of(frame: av.VideoFrame) -> tuple[Matrix | None, bool]:
    """Matrix of a frame, None where it is neither of the two, and whether it uses the full range."""
    full_range = frame.format.name.startswith("yuvj") or int(frame.color_range) == FULL_RANGE_TAG
    return MATRIX_OF_TAG.get(int(frame.colorspace)), full_range


def plane_view(plane: av.video.plane.VideoPlane, bytes_per_pixel: int = 1) -> np.ndarray:
    """uint8 `[height, width * bytes_per_pixel]` on the plane's own memory, which it keeps alive."""
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, abs(plane.line_size))
    rows = rows[:, : plane.width * bytes_per_pixel]
    return rows if plane.line_size > 0 else rows[::-1]


@dataclass(frozen=True)
class Packet:
    """What the index needs of one packet. pts and duration are in the stream's time base, None where unknown."""

    pts: int | None
    duration: int | None
    size: int
    is_key: bool
    is_shown: bool
    is_damaged: bool
    is_stateful: bool
    layer: int


@dataclass
class Run:
    """Packets `first..last` in file order, of which `frames` (numbers, increasing) are wanted."""

    first: int
    last: int
    frames: list[int]


class PacketIndex:
    """Which packet shows which frame, for files whose time stamps tell. Packets are numbered in file order.

    packet_of_frame [N], frame_pts [N], frame_of_pts {pts: n}: the N frames in the order they are shown
    skippable [P]: packets that the decoder may leave out where their frame is neither wanted nor referred to
    """

    def __init__(self, packets: list[Packet], *, codec: str, intra_only: bool):
        shown = [number for number, packet in enumerate(packets) if packet.is_shown]
        self.packet_of_frame = sorted(shown, key=lambda number: packets[number].pts)
        self.frame_pts = [packets[number].pts for number in self.packet_of_frame]
        self.frame_of_pts = {pts: n for n, pts in enumerate(self.frame_pts)}
        self.number_of = {(packet.pts, packet.size): number for number, packet in enumerate(packets)}
        self.packets = packets
        self.keys = [number for number, packet in enumerate(packets) if packet.is_key]
        self.intra_only = intra_only
        top_layer = max(packet.layer for packet in packets)
        self.skippable = [codec in SKIPS_EXACTLY and packet.layer == top_layer for packet in packets]
        self._end = np.cumsum([packet.size for packet in packets])

    @classmethod
    def of(cls, packets: list[Packet], source: Source, first: av.VideoFrame) -> PacketIndex | None:
        """None where packets do not tell which frames a decode gives, or in which order.

        That is: no or equal time stamps; a start in the middle of a group of pictures, whose frames may be lost;
        interlaced video, where a packet may be half a frame; AVI, which stores no time stamps and whose packets may
        hold no frame or two; packets cut short; packets that change the decoder's state, or the palette.
        """
        shown = [packet.pts for packet in packets if packet.is_shown]
        start = packets[0]
        if any(packet.pts is None for packet in packets) or len(set(shown)) < len(shown) or first.pts not in shown:
            return None
        if not start.is_key or min(shown) < start.pts or first.interlaced_frame:
            return None
        if first.format.name == "pal8" or any(packet.is_stateful for packet in packets[1:]):
            return None
        if any(packet.is_damaged for packet in packets) or (source.format == "avi" and not source.intra_only):
            return None
        return cls(packets, codec=source.codec, intra_only=source.intra_only)

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
        while at > 0 and self.packets[self.keys[at]].pts > self.frame_pts[n]:
            at -= 1
        return self.keys[max(at, 0)]

    def bytes_between(self, first: int, last: int) -> int:
        """Size of packets `first..last - 1`."""
        return int(self._end[last - 1] - self._end[first - 1]) if 0 < first < last else 0


class Source:
    """One open container, its video stream and decoder; `position` is the number of the packet to be read next."""

    def __init__(self, path: str, threads: int | None, *, thread_type: str = "AUTO"):
        self.container = open_container(path)
        try:
            self.stream = video_stream(path, self.container)
        except BaseException:
            self.container.close()
            raise
        self.context = self.stream.codec_context
        self.context.thread_type = thread_type
        self.context.thread_count = threads or default_threads(self.context)
        self.position = 0
        self.error = ""  # the decoder's last complaint
        self._packets = self._demux()

        self.format = self.container.format.name
        self.codec = self.context.codec.canonical_name
        self.intra_only = self.context.codec.intra_only
        self.time_base = self.stream.time_base
        self.nominal_fps = float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def close(self):
        self._packets = iter(())
        self.container.close()

    def packets(self) -> Iterator[tuple[int, av.Packet]]:
        """`(number, packet)` from `position` on; the end of the file is where FFmpeg cannot read on."""
        for packet in self._packets:
            self.position += 1
            yield self.position - 1, packet

    def _demux(self) -> Iterator[av.Packet]:
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:  # an empty one would tell the decoder that the file has ended
                    yield packet
        except av.error.FFmpegError as error:
            self.error = error.strerror
        except IndexError:  # PyAV, at the end of a damaged file whose streams have become more on the way
            pass

    def seek(self, index: PacketIndex, number: int):
        """Go to packet `number`; `position` is past it where that failed."""
        self.position = len(index.packets)
        try:
            self.container.seek(index.packets[number].pts, stream=self.stream)
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

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Frames that come out once `packet` has gone in; None empties the decoder. Damage is passed over."""
        try:
            return self.context.decode(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self.error = error.strerror
            return []

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
    """All packets, and the first frame that can be decoded."""
    packets: list[Packet] = []
    first: list[av.VideoFrame] = []
    nal_length = hevc_nal_length(source.context.extradata) if source.codec == "hevc" else 0
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
                is_stateful=packet.is_keyframe and any(map(packet.has_sidedata, STATEFUL_SIDE_DATA)),
                layer=hevc_layer(memoryview(packet), nal_length) if source.codec == "hevc" else 0,
            )
        )
    first = first or source.decode(None)
    return packets, first[0] if first else None


def default_threads(context: av.VideoCodecContext) -> int:
    """No more than the machine has, nor than `MAX_THREADS`, nor than hold `THREAD_BYTES` of frames, one each."""
    components = context.format.components if context.format else ()
    frame_bytes = sum(part.width * part.height * (2 if part.bits > 8 else 1) for part in components)
    return max(1, min(MAX_THREADS, os.cpu_count() or 1, THREAD_BYTES // max(frame_bytes, 1)))


def hevc_nal_length(extradata: bytes | None) -> int:
    """Bytes of the length before each unit in MP4 and Matroska (ISO 14496-15, 8.3.3.1); 0: start codes instead."""
    return (extradata[21] & 3) + 1 if extradata and len(extradata) > 21 and extradata[0] == 1 else 0


def hevc_layer(data: memoryview, nal_length: int) -> int:
    """Temporal layer of a picture: one in a lower layer may be called unused and still serve the layers above."""
    at = 0
    while True:
        if nal_length:
            start = at + nal_length
            at = start + int.from_bytes(data[at:start])
        else:
            start = at = bytes(data).find(b"\0\0\1", at) + 3
            if start < 3:
                return 0
        if start + 2 > len(data):
            return 0
        if (data[start] >> 1) & 63 < 32:  # a slice of the picture
            return (data[start + 1] & 7) - 1


def frame_seconds(pts: list[int | None], source: Source) -> np.ndarray:
    """float64 `[N]`: time stamps in seconds after the first, or equal steps where they are missing or out of order."""
    if None not in pts and all(a < b for a, b in pairwise(pts)):
        return (np.array(pts, np.int64) - pts[0]) * float(source.time_base)
    return np.arange(len(pts)) / source.nominal_fps


def check_file(path: str):
    """DecodeError for what is no readable file at all."""
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


def open_container(path: str) -> av.container.InputContainer:
    """Open a file whose format is in `CONTAINERS`; no other file is opened, and no connection made, whatever it says.

    DecodeError where FFmpeg takes it for anything else, by its content or its name, or cannot read it.
    """
    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path}", container_options=options, **LENIENT_METADATA)
    except (av.error.FFmpegError, OSError) as error:
        with open(path, "rb") as file:
            start = file.read(KIND_BYTES)
        if isinstance(error, EOFError):
            reason = "it ends before its first frame"
        elif kind := kind_of(path, start, recognised=isinstance(error, av.error.ArgumentError)):
            reason = f"{kind}, not a video"
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
    is_text = b"\0" not in start
    for kind, mark in OTHER_KINDS.items():
        if is_text and re.search(mark, start):
            return kind
    if recognised and re.search(r"%\d*d", path):
        return "a name that stands for many pictures (image2)"
    return "a text file" if recognised and is_text else None


def video_stream(path: str, container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The first video stream that is not a cover picture."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError(path, f"has no video stream; found: {describe_streams(container)}")
    if streams[0].codec_context is None:
        raise DecodeError(path, "FFmpeg has no decoder for its video stream")
    return streams[0]


def describe_streams(container: av.container.InputContainer) -> str:
    kinds = ["cover picture" if stream.type == "video" else stream.type for stream in container.streams]
    return ", ".join(sorted(set(kinds))) or "nothing"
