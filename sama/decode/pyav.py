"""Decoding on the CPU with FFmpeg, through PyAV.

    open:   read the tables of the file, or all packets, decode none but the first  -> `sama.decode.index`
    frames: wanted frames -> runs of packets -> feed a run, keep what was asked for, jump to the next

Frames of a run that nothing refers to are skipped by the decoder where that is exact (`index.SKIPS_EXACTLY`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from sama.decode import VideoInfo, color
from sama.decode.color import CONVERSIONS
from sama.decode.index import PacketIndex
from sama.decode.nal import parameter_sets
from sama.decode.packets import Source, check_file, frame_seconds, read_packets, read_tables
from sama.errors import DecodeError, IndexMismatchError, InputError
from sama.frames import Frame, Matrix
from sama.limits import Guard

MATRIX_OF_TAG: dict[int, Matrix] = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}  # AVColorSpace; 2 is "unspecified"
FULL_RANGE_TAG = 2  # AVCOL_RANGE_JPEG
ROTATIONS: tuple[Literal[0, 90, 180, 270], ...] = (0, 90, 180, 270)
NO_ENTRY = "decoding cannot begin"
DECODER_FRAMES = 20  # a decoder holds: the references of its codec, one frame per thread, and what is on its way


class PyavVideo:
    """`sama.decode.Video` with PyAV.

    threads: decoding threads; None for as many as there are cores and `packets.default_threads` allows
    guard: what the file may cost, and what damage does; None for no limit of time, and damage passed over

    The GPU decoders read files through one of these, their `source`. Beside `Video`'s, they use its attributes

    index          `PacketIndex`, None where time stamps do not tell which frames there are
    decoded_size   (width, height) in pixels, before mirroring and rotation
    orientation    from decoded to displayed
    matrix         of the colours; None: neither BT.601 nor BT.709
    full_range     of the colours
    num_streams    video streams, cover pictures counted
    sequence       parameter sets as `sama.decode.nal.parameter_sets` gives them
    """

    decoder = "pyav"

    def __init__(self, path: str, *, threads: int | None = None, guard: Guard | None = None):
        self.guard = guard or Guard(path)
        content = self.guard.find_content()
        if content is None:
            check_file(path)
        elif not content.size:
            raise DecodeError(path, "the file is empty")
        self.decoded = 0  # frames the decoder has given, wanted or not
        self._path = path
        self._threads = threads
        self._closed = False
        self._source: Source | None = None  # kept open for the first call of `frames`
        self._first: av.VideoFrame | None = None  # see `_open`
        try:
            with self.guard.reading():
                self._source = source = Source(path, threads, self.guard)
                width, height = source.context.width, source.context.height
                with self.guard.hold(DECODER_FRAMES * width * height * 3 // 2):
                    self._open(source)
        except BaseException:
            self.close()
            raise

    def complete(self) -> None:
        """Read all packets, if the file was opened by its tables.

        IndexMismatchError where they tell other frames than the tables: then numbers that were given out are wrong.
        """
        if self.info.opened == "packets":
            return
        before = self.info, self._seconds
        self.rest()
        self.guard.by_index = False
        with self.guard.reading():
            self._source = source = Source(self._path, self._threads, self.guard)
            self._open(source)
        if replace(self.info, opened="index") != before[0] or not np.array_equal(self._seconds, before[1]):
            raise IndexMismatchError(self._path, "its tables tell other frames than its packets")

    def _open(self, source: Source) -> None:
        opened = None
        if self.guard.by_index:
            try:
                opened = read_tables(source)
            except IndexMismatchError:
                source.expect(None)
                self._source = source = source.reopened()
        packets, first = opened or read_packets(source)
        if not len(packets):
            raise DecodeError(self._path, "its video stream holds no frames")
        if first is None:
            why = f" ({source.error})" if source.error else ""
            if not source.has_size:
                why += f"; frames of more than {self.guard.limits.video_pixels:,} pixels are not (--max-pixels)"
            raise DecodeError(self._path, f"none of its {len(packets)} {source.codec} packets can be decoded{why}")
        self.guard.check_pixels(first.width, first.height)
        # A PyAV frame whose side data was asked for is freed by the garbage collector, at any time. Its memory would be
        # used for other frames, and shows where a damaged stream leaves pixels out: it is kept as long as the decoder.
        self._first = first
        self.orientation = Orientation.of(first)
        self.decoded_size = first.width, first.height
        self.matrix, self.full_range = color_of(first)
        self.num_streams = len(source.container.streams.video)
        self.sequence = parameter_sets(source.codec, source.context.extradata)
        self.index = PacketIndex.of(packets, source, first)
        pts: Sequence[int | None] | np.ndarray
        if self.index is None:
            self.rest()
            pts = [frame.pts for frame in self._decode_all()]
            last_duration = None
        else:
            pts = self.index.frame_pts
            last_duration = int(packets["duration"][self.index.packet_of_frame[-1]])
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
            rotation=ROTATIONS[self.orientation.quarter_turns],
            mirrored=self.orientation.mirrored,
            fps=num_frames / duration,
            duration_seconds=duration,
            codec=source.codec,
            pix_fmt=first.format.name,
            index="decoding" if self.index is None else "packets",
            opened="index" if opened and self.index else "packets",
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

    def held_bytes(self, clip_len: int) -> int:
        """As `sama.decode.Video.held_bytes`: what the decoder holds, whatever the length of the clip."""
        bytes_per_sample = 2 if any(mark in self.info.pix_fmt for mark in ("10", "12", "16")) else 1
        return DECODER_FRAMES * self.info.width * self.info.height * 3 // 2 * bytes_per_sample

    def close(self) -> None:
        """As `sama.decode.Video.close`."""
        self._closed = True
        self.rest()

    def rest(self) -> None:
        """Close the file; it is opened again once frames are asked for."""
        if self._source is not None:
            self._source.close()
            self._source = None
        self._first = None

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
        with self.guard.reading():
            yield from self._decoded(wanted)

    def _decoded(self, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
        missing = list(reversed(wanted))
        reformatter = VideoReformatter()
        try:
            for n, frame in self._decode_planned(wanted):
                missing.pop()
                yield n, self._convert(n, frame, reformatter)
        except IndexMismatchError:
            self.complete()
            for n, frame in self._decode_planned(missing[::-1]):
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
        """The wanted frames; fewer where the decoder's output does not agree with the index, none without one."""
        index = self.index
        if index is None:
            return
        source, first = self._source or self._new_source(), self._first
        self._source = self._first = None
        try:
            for run in index.runs(wanted):
                source = source.for_run(index, run)
                pending = list(reversed(run.frames))
                for frame in source.decode_run(index, run):
                    self.decoded += 1
                    n = index.frame_at(frame.pts)
                    if pending and (n < 0 or n > pending[-1]):
                        return
                    if pending and n == pending[-1]:
                        yield pending.pop(), frame
                if pending:
                    return
        finally:
            source.close()
            del first

    def _new_source(self, threads: int | None = None) -> Source:
        tables = self.index.packets if self.index is not None and self.info.opened == "index" else None
        return Source(self._path, threads or self._threads, self.guard, tables)

    def packets(self, wanted: list[int]) -> Generator[tuple[int, int, Source, av.Packet | None], None, None]:
        """What a decoder other than FFmpeg's needs for `wanted` (increasing numbers), in file order.

        Yields `(n, place, source, packet)`: n is the frame that the packet shows, -1 for none, place its place in
        `PacketIndex.places`; packet is None where the next one begins another run. Packets of a run that no wanted
        frame needs are left out (`PacketIndex.unneeded`).
        InputError where the file has no index; DecodeError where decoding cannot begin at the key frame of a run.
        """
        index = self.index
        if index is None:
            raise InputError(f"{self._path}: its time stamps do not tell which packet shows which frame")
        source = self._new_source()
        try:
            end = 0
            for run in index.runs(wanted):
                source = source.positioned(index, run)
                if not source.is_entry(index, run.first):
                    raise DecodeError(self._path, f"{NO_ENTRY} at key frame {run.first} (gradual refresh)")
                if run.first != end:
                    yield -1, -1, source, None
                end = run.last + 1
                is_unneeded = index.unneeded(run, source.codec, source.unit_length)
                for number, packet in source.packets():
                    if number >= run.first and not is_unneeded(number, memoryview(packet)):
                        yield index.frame_of_packet(number), int(index.places[number]), source, packet
                    if number >= run.last:
                        break
        finally:
            source.close()

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        """Every frame from the start, with one thread: others can lose frames at the end of a damaged file."""
        source = self._new_source(threads=1)
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


class SourcedVideo:
    """What `Video`s of other decoders share: a `PyavVideo`, their `source`, gives the numbers, times and packets.

    problem: why the decoder cannot take this file, or None
    DecodeError, and the source closed, where there is a problem.
    """

    decoder: str

    def __init__(self, source: PyavVideo, problem: str | None):
        self.source = source
        self.guard = source.guard
        self.info = source.info
        self._closed = False
        if problem is not None:
            self.close()
            raise DecodeError(self.info.path, f"{problem}; decoder pyav can")
        source.rest()

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """As `sama.decode.Video.frames`. Memory does not grow with the number of frames."""
        if self._closed:
            raise InputError(f"{self.info.path}: the video is closed")
        return self._frames(self.source.checked(indices))

    def _frames(self, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
        """The frames of distinct numbers in increasing order."""
        raise NotImplementedError

    def seconds(self, indices: Iterable[int]) -> np.ndarray:
        """As `sama.decode.Video.seconds`."""
        return self.source.seconds(indices)

    def held_bytes(self, clip_len: int) -> int:
        """As `sama.decode.Video.held_bytes`: the clip."""
        return self.info.rgb_bytes(clip_len)

    def close(self) -> None:
        """As `sama.decode.Video.close`; closes the source too."""
        self._closed = True
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@dataclass(frozen=True)
class Orientation:
    """Decoded to displayed: mirror left and right, then turn counter-clockwise by quarters."""

    quarter_turns: int = 0
    mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """From the display matrix `(a, b, _, c, d, ...)`: x' = a*x + c*y, y' = b*x + d*y, y pointing down."""
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
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
    """8-bit 4:2:0 as it lies in the decoder's memory; everything else as FFmpeg's own RGB, where it knows the matrix.

    FFmpeg interpolates chroma where the height is odd, and flipped columns of an odd width would pair with the wrong
    chroma: both go through RGB.
    """
    matrix, full_range = color_of(frame)
    planar = frame.format.name in ("yuv420p", "yuvj420p") and frame.height % 2 == 0
    if int(frame.colorspace) in CONVERSIONS:
        return Frame("rgb", (orientation.view(color.to_rgb(frame, full_range, reformatter)),))
    if matrix is None or not planar or (frame.width % 2 and orientation.flips_columns):
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
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, abs(plane.line_size))
    rows = rows[:, : plane.width * bytes_per_pixel]
    return rows if plane.line_size > 0 else rows[::-1]
