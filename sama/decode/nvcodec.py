"""Decoding on an NVIDIA GPU with PyNvVideoCodec: NV12 surfaces in its memory, with exact colours and no RGB frame.

    packets of the wanted frames, from PyAV ──Annex B──> NVDEC ──> surfaces, numbered as they were sent ──> frames

Numbers, sizes, times and the choice of packets are those of `sama.decode.packets`. A packet goes to the GPU with a
number in place of a time stamp and the surface comes back with it. The numbers of a run rise in the order in which its
frames are shown: the driver's parser hands time stamps out in rising order, whichever packets they came with (seen on
an H200, driver 580). Sessions are kept in a pool for each GPU (`sama.decode.sessions`).

Only five things of the library are used: `GetDecoderCaps`, `CreateDecoder`, `PacketData`, `Decode`, and frames with
`getPTS` and DLPack; the tests have a stand-in for these five. The library does not tell which frames it decoded with
errors (it prints that).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from os import PathLike, fsdecode
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext

from sama.decode.nvdec import gpu_decodable
from sama.decode.packets import Source
from sama.decode.pyav import NO_ENTRY, PyavVideo, SourcedVideo
from sama.decode.sessions import SessionPool
from sama.devices import pick_device
from sama.errors import DecodeError, InputError, MissingLibraryError, without_traceback
from sama.frames import Frame

try:
    import PyNvVideoCodec
except RuntimeError as error:  # what it raises, with pages of advice, where the driver's video libraries are missing
    reason = str(error).partition("\n")[0]
    raise MissingLibraryError(f"PyNvVideoCodec is installed, but cannot be used: {reason}") from error

CODECS = {"h264": "H264", "hevc": "HEVC", "vp8": "VP8", "vp9": "VP9", "av1": "AV1"}  # names in cudaVideoCodec
# Units with start codes, as the GPU's parser wants them; parameter sets before every key frame, where a run may begin.
FILTERS = {"h264": "h264_mp4toannexb,dump_extra", "hevc": "hevc_mp4toannexb,dump_extra"}


HELD_FRAMES = 10  # of RGB, the size of 20 surfaces: the decoder's, and the group that waits for the sampler
SESSIONS_PER_ENGINE = 2  # one decodes while the other waits for packets
DEFAULT_ENGINES = 2  # where the library does not say how many there are
REORDERED = 64  # packets at most by which a codec shows a picture earlier than the key frame that it comes after
FLUSH_ROUNDS = 8  # empty packets until a decoder has given everything; the first one is enough


class Unit(NamedTuple):
    """A packet as the GPU's parser reads it.

    frame: the number of the frame that it shows, -1 for none
    place: rises with the time at which it is shown, among all packets of a run
    data: empty where a run ends
    """

    frame: int
    place: int
    data: bytes


END = Unit(-1, -1, b"")


@dataclass(frozen=True)
class SessionKey:
    """What two files must share to be decoded by one session.

    sequence: their parameter sets. The library keeps the surfaces of a session's first file: with a file that needs
        more, or crops otherwise, it would give wrong pictures without an error.
    path: the file that a session is made for; two keys are equal without it
    """

    device: torch.device
    codec: str
    size: tuple[int, int]
    pix_fmt: str
    sequence: bytes | str
    path: str = field(compare=False)


class NvcodecVideo(SourcedVideo):
    """`sama.decode.Video` with PyNvVideoCodec: frames are "nv12" torch tensors on the GPU, of their own memory.

    path: a file
    threads: not used; every decoder takes it
    device: "cuda" or "cuda:N"; None is the current GPU
    source: the open `PyavVideo` of the same file, if there is one already; it is closed with this video
    DecodeError where the file is no video, or none that this GPU decodes; DeviceError where there is no GPU.
    """

    decoder = "nvcodec"

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        device: str | torch.device | None = None,
        source: PyavVideo | None = None,
    ):
        if torch.device(device or "cuda").type != "cuda":
            raise InputError(f'PyNvVideoCodec decodes on "cuda"; got {device}')
        self.device = pick_device(device or "cuda", numbered=True)
        source = source or PyavVideo(fsdecode(path))
        problem = refusal(source, self.device)
        super().__init__(source, problem and f"the GPU cannot decode it: {problem}")
        # Two files of the same parameter sets need the same surfaces; where those are not told, no other file does.
        sequence = self.info.path if source.sequence is None else source.sequence
        size = source.decoded_size
        self.key = SessionKey(self.device, self.info.codec, size, self.info.pix_fmt, sequence, self.info.path)

    def held_bytes(self, clip_len: int) -> int:
        """As `sama.decode.Video.held_bytes`: surfaces, no more than `HELD_FRAMES` whatever the length of the clip."""
        return self.info.rgb_bytes(min(clip_len, HELD_FRAMES))

    def _frames(self, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
        """A session is leased until all frames are there, or it is taken away: then from the next key frame before."""
        missing = list(reversed(wanted))
        while missing:
            with pool(self.device).lease(self.key) as lease, closing(self._units(missing[::-1])) as units:
                for n, surface in lease.session.decode(units, frozenset(missing), self.info.path):
                    if n != missing.pop():
                        raise DecodeError(
                            self.info.path, f"frame {n} came out of the GPU before others that it follows"
                        )
                    frame = self._frame(surface, n)
                    del surface
                    with lease.parked():
                        yield n, frame
                    del frame
                    if lease.taken or not missing:
                        break
                else:
                    raise DecodeError(self.info.path, f"the file ends before frame {missing[-1]}")

    def _units(self, wanted: list[int]) -> Generator[Unit, None, None]:
        """What the GPU needs for these frames; `END` between two runs."""
        filtered = None
        for n, place, source, packet in self.source.packets(wanted):
            if packet is None or filtered is None:
                filtered = _filter(self.info.codec, source)
            yield END if packet is None else Unit(n, place, b"".join(bytes(part) for part in filtered(packet)))

    def _frame(self, surface: torch.Tensor, n: int) -> Frame:
        """[H * 3/2, W] as planes, as displayed."""
        width, height = self.source.decoded_size
        if tuple(surface.shape) != (height * 3 // 2, width):
            expected = f"{(height * 3 // 2, width)}, the NV12 surface of a {width}x{height} frame"
            raise DecodeError(
                self.info.path, f"frame {n} came out of the GPU as {tuple(surface.shape)}, not {expected}"
            )
        planes: tuple[torch.Tensor, ...] = surface[:height], surface[height:].unflatten(1, (width // 2, 2))
        orientation = self.source.orientation
        if orientation.mirrored:
            planes = tuple(plane.flip(1) for plane in planes)
        if orientation.quarter_turns:
            planes = tuple(plane.rot90(orientation.quarter_turns, (0, 1)) for plane in planes)
        assert self.source.matrix is not None  # or `refusal` would have said so
        return Frame("nv12", planes, matrix=self.source.matrix, full_range=self.source.full_range)


class NvcodecSession:
    """One decoder of the GPU, on a CUDA stream of its own: `sama.decode.sessions.Session`.

    Each packet goes in with a number of its own, and a later run has higher ones than all before it: a surface that
    belongs to an earlier run or file is recognised, and ends the session.
    """

    def __init__(self, key: SessionKey):
        self.device = key.device
        self.stream: torch.cuda.Stream | None = None
        self.sent = 0  # packets
        self.highest = 0  # number of a packet
        self.pending = False  # whether packets went in that may not have come out
        self.decoder: Any = None
        try:
            with current_device(self.device):
                if self.device.type == "cuda":
                    self.stream = torch.cuda.Stream(self.device)
                self.decoder = PyNvVideoCodec.CreateDecoder(
                    gpuid=self.device.index or 0,
                    codec=getattr(PyNvVideoCodec.cudaVideoCodec, CODECS[key.codec]),
                    cudacontext=0,  # the device's primary one, which is torch's
                    cudastream=self.stream.cuda_stream if self.stream else 0,
                    usedevicememory=True,
                )
        except Exception as error:
            raise DecodeError(key.path, f"the GPU's decoder cannot be opened ({error})") from error

    def decode(self, units: Iterable[Unit], wanted: Collection[int], path: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield `(n, surface)` of the wanted frames as they come out: uint8 [H * 3/2, W], each a copy of its own.

        path: for messages
        DecodeError where the decoder fails, gives surfaces of packets before these, or ends a run with frames missing.
        """
        frames: dict[int, int] = {}  # of packets on their way: the numbers of their wanted frames
        before = self.highest  # of earlier runs
        begin: int | None = None  # what the numbers of a run are ahead of its packets' places
        for unit in chain(units, [END]):
            if unit.data and begin is None:
                begin = before + REORDERED - unit.place
            number = unit.place + (begin or 0)
            surfaces = self._send(number, unit, path)
            if unit.data and unit.frame in wanted:
                frames[number] = unit.frame
            rounds = 0
            while True:
                for shown, surface in surfaces:
                    if not before < shown <= self.highest:
                        raise DecodeError(path, "the GPU gave a frame of something that was decoded before")
                    if shown in frames:
                        yield frames.pop(shown), self._copy(surface, path)
                if unit.data or not surfaces or rounds == FLUSH_ROUNDS:
                    break
                rounds += 1
                surfaces = self._send(0, END, path)
            if not unit.data:
                if frames:
                    lost = min(frames.values())
                    raise DecodeError(path, f"damaged or cut short: frame {lost} did not come out of the GPU")
                before, begin = self.highest, None

    def reset(self) -> None:
        """As `sama.decode.sessions.Session.reset`: an empty packet ends whatever the parser is in the middle of.

        Flagging the next packet as a discontinuity does not: torchcodec's authors found that neither way of doing it
        drops the frames before (their `BetaCudaDeviceInterface::flush`).
        """
        rounds = 0
        while self.pending and rounds <= FLUSH_ROUNDS:
            rounds += 1
            self._send(0, END, "")
        if self.pending:
            raise DecodeError("", "the GPU's decoder does not come to an end")

    def close(self) -> None:
        """As `sama.decode.sessions.Session.close`."""
        with suppress(Exception), current_device(self.device):
            self.decoder = None

    def _send(self, number: int, unit: Unit, path: str) -> list[tuple[int, Any]]:
        """Number and surface of the frames that come out once a packet has gone in; none is left after `END`.

        The surfaces are the decoder's own, which it overwrites in the next call.
        """
        if not unit.data and not self.pending:
            return []
        packet = PyNvVideoCodec.PacketData()
        memory = np.frombuffer(unit.data, np.uint8)  # read by the call below, not later
        if unit.data:
            self.sent += 1
            self.highest = max(self.highest, number)
            packet.bsl_data, packet.bsl, packet.pts = memory.ctypes.data, len(unit.data), number
        try:
            with self._current():
                surfaces = [(surface.getPTS(), surface) for surface in self.decoder.Decode(packet)]
        except Exception as error:
            at = f"at the packet of frame {unit.frame}" if unit.data else "at the end of a run"
            # without what it refers to, or the decoder would go on living as long as the error
            raise DecodeError(path, f"the GPU's decoder failed {at} ({error})") from without_traceback(error)
        self.pending = bool(unit.data or surfaces)
        return surfaces

    def _copy(self, surface: Any, path: str) -> torch.Tensor:
        """A surface in memory of its own, ready for the stream that is current."""
        try:
            with self._current():
                frame = torch.from_dlpack(surface).clone()
            if self.stream:
                current = torch.cuda.current_stream(self.device)
                current.wait_stream(self.stream)
                frame.record_stream(current)
        except Exception as error:
            raise DecodeError(path, f"a frame cannot be copied out of the GPU's decoder ({error})") from error
        return frame

    @contextmanager
    def _current(self) -> Iterator[None]:
        """This session's device and stream as the current ones of this thread."""
        with current_device(self.device), torch.cuda.stream(self.stream) if self.stream else nullcontext():
            yield


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """torch's CUDA context as the current one of this thread."""
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.current_stream(device).query()  # makes the context, where there is none yet
    return torch.cuda.device(device)


@cache
def engines(device: torch.device) -> int:
    """Decoding engines of a GPU as the library reports them, `DEFAULT_ENGINES` where it does not."""
    try:
        return int(PyNvVideoCodec.GetDecoderCaps(gpuid=device.index or 0)["num_decoder_engines"]) or DEFAULT_ENGINES
    except Exception:  # the library raises RuntimeError and types of its own
        return DEFAULT_ENGINES


def sessions(device: torch.device) -> int:
    """How many files are decoded at one time on a GPU."""
    return SESSIONS_PER_ENGINE * engines(device)


def workers(device: torch.device) -> int:
    """Threads that keep the sessions of a GPU busy: half as many more open the next files in the meantime."""
    return sessions(device) * 3 // 2


@cache
def pool(device: torch.device) -> SessionPool[SessionKey, NvcodecSession]:
    """The sessions of a GPU, shared by all threads; those not in use are closed when the program ends."""
    made: SessionPool[SessionKey, NvcodecSession] = SessionPool(NvcodecSession, limit=sessions(device))
    atexit.register(made.clear)
    return made


def _filter(codec: str, source: Source) -> Callable[[av.Packet], list[av.Packet]]:
    """A function of a packet that gives its data, in one or more packets, as the GPU's parser wants it."""
    if codec not in FILTERS:
        return lambda packet: [packet]
    return BitStreamFilterContext(FILTERS[codec], source.stream).filter


def refusal(video: PyavVideo, device: torch.device) -> str | None:
    """Why this GPU is not to decode a file, or None."""
    if video.matrix is None:
        return "its colour matrix is neither BT.601 nor BT.709"
    if video.index is None:
        return "its time stamps do not tell which frames it has"
    capability = torch.cuda.get_device_capability(device)
    problem = gpu_decodable(video.info.codec, video.info.pix_fmt, *video.decoded_size, capability=capability)
    if problem:
        return problem
    entries = video.index.packets["is_entry"][video.index.keys]
    return None if entries.all() else f"{NO_ENTRY} at each of its key frames (gradual refresh)"  # UNKNOWN passes
