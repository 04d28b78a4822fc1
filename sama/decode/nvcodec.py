"""Decoding on an NVIDIA GPU with PyNvVideoCodec: NV12 surfaces in its memory, with exact colours and no RGB frame.

    packets of the wanted frames, from PyAV ──Annex B──> NVDEC ──> surfaces, numbered as they were sent ──> frames

Numbers, sizes, times and the choice of packets are those of `sama.decode.packets`. A packet goes to the GPU with its
frame's number in place of a time stamp and the surface comes back with it, so no frame can be taken for another.

Only four things of the library are used: `CreateDecoder`, `PacketData`, `Decode`, and frames with `getPTS` and DLPack.
It was written from the library's documentation and tested with a stand-in for these four, never on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from os import PathLike, fsdecode

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext

from sama.decode import VideoInfo
from sama.decode.nvdec import gpu_decodable
from sama.decode.packets import Source
from sama.decode.pyav import PyavVideo, SourcedVideo
from sama.devices import pick_device, thread_stream
from sama.errors import DecodeError, InputError, MissingLibraryError
from sama.frames import Frame

try:
    import PyNvVideoCodec
except RuntimeError as error:  # what it raises, with pages of advice, where the driver's video libraries are missing
    reason = str(error).partition("\n")[0]
    raise MissingLibraryError(f"PyNvVideoCodec is installed, but cannot be used: {reason}") from error

CODECS = {"h264": "H264", "hevc": "HEVC", "vp8": "VP8", "vp9": "VP9", "av1": "AV1"}  # names in cudaVideoCodec
# Units with start codes, as the GPU's parser wants them; parameter sets before every key frame, where a run may begin.
FILTERS = {"h264": "h264_mp4toannexb,dump_extra", "hevc": "hevc_mp4toannexb,dump_extra"}


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

    def _frames(self, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
        missing, early = list(reversed(wanted)), {}
        if not wanted:
            return
        session = _Session(self.info, self.device)
        with closing(self._units(wanted)) as units:
            for n, surface in session.decode(units, set(wanted)):
                early[n] = surface
                while missing and missing[-1] in early:
                    n = missing.pop()
                    yield n, self._frame(early.pop(n), n)
                if not missing:
                    return
        raise DecodeError(self.info.path, f"damaged or cut short: frame {missing[-1]} did not come out of the GPU")

    def _units(self, wanted: list[int]) -> Generator[tuple[int, bytes], None, None]:
        """`(number of the frame, data)` of each packet as the GPU's parser reads them."""
        filtered = None
        for n, source, packet in self.source.packets(wanted):
            if packet is None or filtered is None:
                filtered = _filter(self.info.codec, source)
            if packet is not None:
                yield n, b"".join(bytes(unit) for unit in filtered(packet))

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


class _Session:
    """One decoder of the GPU, on a stream of its own, for one pass over the packets of a file."""

    def __init__(self, info: VideoInfo, device: torch.device):
        self.info, self.device = info, device
        self.stream: torch.cuda.Stream | None = None
        with self._current():
            if device.type == "cuda":
                self.stream = thread_stream(device, "decoding")
            try:
                self.decoder = PyNvVideoCodec.CreateDecoder(
                    gpuid=device.index or 0,
                    codec=getattr(PyNvVideoCodec.cudaVideoCodec, CODECS[info.codec]),
                    cudacontext=0,  # the one that is current, which is torch's
                    cudastream=self.stream.cuda_stream if self.stream else 0,
                    usedevicememory=True,
                )
            except Exception as error:
                raise DecodeError(info.path, f"the GPU's decoder cannot be opened ({error})") from error

    def _current(self):
        """torch's CUDA context as the current one of this thread."""
        if self.device.type != "cuda":
            return nullcontext()
        torch.cuda.current_stream(self.device).query()
        return torch.cuda.device(self.device)

    def decode(self, units: Iterator[tuple[int, bytes]], wanted: set[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """`(number, uint8 [H * 3/2, W])` of wanted frames as they come out, copied: the decoder overwrites its own."""
        for n, data in units:
            yield from self._send(n, data, wanted)[1]
        came_out = True
        while came_out:  # an empty packet ends the stream
            came_out, frames = self._send(-1, b"", wanted)
            yield from frames

    def _send(self, n: int, data: bytes, wanted: set[int]) -> tuple[bool, list[tuple[int, torch.Tensor]]]:
        """Whether any frame comes out once `data` has gone in, and the wanted ones of them."""
        packet = PyNvVideoCodec.PacketData()
        memory = np.frombuffer(data, np.uint8)  # read by the call below, not later
        if data:
            packet.bsl_data, packet.bsl, packet.pts = memory.ctypes.data, len(data), n
        with self._current(), torch.cuda.stream(self.stream) if self.stream else nullcontext():
            try:
                surfaces = self.decoder.Decode(packet)
                numbered = [(surface.getPTS(), surface) for surface in surfaces]
                frames = [(k, torch.from_dlpack(surface).clone()) for k, surface in numbered if k in wanted]
            except Exception as error:
                reason = f"the GPU's decoder failed at the packet of frame {n} ({error})"
                raise DecodeError(self.info.path, reason) from error
        if self.stream and frames:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for _, frame in frames:
                frame.record_stream(current)
        return bool(numbered), frames


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
    if not all(video.index.packets[key].is_entry for key in video.index.keys):
        return "decoding cannot begin at each of its key frames (gradual refresh)"
    capability = torch.cuda.get_device_capability(device)
    return gpu_decodable(video.info.codec, video.info.pix_fmt, *video.decoded_size, capability=capability)
