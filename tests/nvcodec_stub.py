"""A stand-in for the five things of PyNvVideoCodec that `sama.decode.nvcodec` uses, with FFmpeg in place of the GPU.

It is as unkind as the library, as far as its documentation and its sources (2.2) tell:

- Raw units go in by address. Frames come out in display order, some packets later, in memory that the next call of
  `Decode` overwrites. Their time stamps rise: each frame has the lowest of those that went in and did not come out yet,
  whichever packet it came with (seen on an H200, driver 580). An empty packet brings out all that is left, after which
  parameter sets must come again.
- Pictures before the first key frame in display order come out too, though they cannot be decoded.
- A session keeps the surfaces of its first sequence: another one comes out wrong, and no error says so.
- Only so many sessions can be made. A session that failed must not be used again, nor two threads use one at a time,
  nor another device be the current one.
- Frames that could not be decoded come out as any others.

`library` holds what a test sets and what it looks at; what must never be done is noted in `library.crimes`.
"""

from __future__ import annotations

import ctypes
import heapq
import random
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace

import av
import numpy as np
from av.codec.context import Flags

from sama.decode.nal import PARAMETER_SETS, units

cudaVideoCodec = SimpleNamespace(H264="h264", HEVC="hevc", VP8="vp8", VP9="vp9", AV1="libdav1d")  # noqa: N816

DELAY = 2  # frames that stay behind beside those that wait for their turn
POISON = 0xA5
FAULTS = ("raises", "loses", "repeats")


class Library:
    """engines: that are reported; None: the library does not tell
    most_sessions: that can be made
    fault_rate: of runs of packets that fail, by `seed`, each in one of the ways in `FAULTS`
    damage_rate: of frames that come out wrong without an error
    rate: called for each picture with its session, to let virtual time go by
    """

    def __init__(self):
        self.engines: int | None = 7
        self.most_sessions, self.fault_rate, self.damage_rate = 14, 0.0, 0.0
        self.rate: Callable[[_Decoder], None] = lambda decoder: None
        self.alive = self.most = self.made = self.sent = self.surfaces = self.faults = self.damaged = 0
        self.crimes: list[str] = []
        self.current = threading.local()  # .device: what the calling thread has made current
        self.lock = threading.Lock()
        self.seed(0)

    def seed(self, number: int):
        self.random = random.Random(number)

    def fault(self) -> tuple[int, str] | None:
        """How many packets from here, and in which way, a run fails; None where it does not."""
        with self.lock:
            if self.random.random() >= self.fault_rate:
                return None
            self.faults += 1
            return self.random.randrange(4), self.random.choice(FAULTS)

    def crime(self, what: str):
        with self.lock:
            self.crimes.append(what)
        raise RuntimeError(what)


library = Library()


def reset() -> Library:
    """Another library, as new."""
    global library
    library = Library()
    return library


class PacketData:
    def __init__(self):
        self.bsl_data = self.bsl = self.pts = 0


class _Surface:
    """NV12, [H * 3/2, W], in memory that the decoder goes on using."""

    def __init__(self, pts, memory):
        self.pts, self.memory = pts, memory

    def getPTS(self):  # noqa: N802
        return self.pts

    def __dlpack__(self, **kwargs):
        return self.memory.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.memory.__dlpack_device__()


class _Decoder:
    def __init__(self, codec, gpuid):
        self.library, self.codec, self.gpuid = library, codec, gpuid
        with library.lock:
            if library.alive >= library.most_sessions:
                raise RuntimeError("cuvidCreateDecoder failed: CUDA_ERROR_OUT_OF_MEMORY")
            library.alive += 1
            library.made += 1
            library.most = max(library.most, library.alive)
            self.number = library.made
        self.busy, self.failed = threading.Lock(), False
        self.sequence = None
        self.memory: list[np.ndarray] = []
        self.last = 0
        self._restart()

    def __del__(self):
        if hasattr(self, "number"):
            with self.library.lock:
                self.library.alive -= 1

    def _restart(self):
        """The parser forgets parameter sets and references."""
        self.context = av.CodecContext.create(self.codec, "r")
        self.context.thread_type = "SLICE"
        self.context.flags |= Flags.output_corrupt
        self.behind = deque()
        self.stamps = []  # a heap
        self.plan = self.library.fault()
        self.packets = 0

    def Decode(self, packet):  # noqa: N802
        if not self.busy.acquire(blocking=False):
            self.library.crime("two threads use one session")
        try:
            if self.failed:
                self.library.crime("a session was used after it had failed")
            if getattr(self.library.current, "device", self.gpuid) != self.gpuid:
                self.library.crime("another device is current")
            return self._decode(packet)
        except RuntimeError:
            self.failed = True
            raise
        finally:
            self.busy.release()

    def _decode(self, packet):
        for memory in self.memory:
            memory[...] = POISON
        if packet.bsl:
            with self.library.lock:
                self.library.sent += 1
            self.library.rate(self)
            data = av.Packet(ctypes.string_at(packet.bsl_data, packet.bsl))
            self._check_sequence(bytes(data))
            heapq.heappush(self.stamps, packet.pts)
            frames = self.context.decode(data)
        else:
            frames = self.context.decode(None)
        self.behind.extend(frames)
        ready = [self.behind.popleft() for _ in range(len(self.behind) - (DELAY if packet.bsl else 0))]
        surfaces = [self._surface(slot, frame) for slot, frame in enumerate(self._faulty(ready, packet.bsl))]
        with self.library.lock:
            self.library.surfaces = max(self.library.surfaces, len(self.memory))
        if not packet.bsl:
            self._restart()
        self.packets += 1
        return surfaces

    def _faulty(self, frames, more):
        """The frames of this call, after what was planned to go wrong."""
        if self.plan is None or self.packets < self.plan[0]:
            return frames
        kind = self.plan[1]
        if kind == "raises":
            raise RuntimeError("HandlePictureDecode error 999")
        if kind == "loses" and frames:
            self.plan = None
            return frames[1:]
        if kind == "repeats" and frames:
            self.plan = None
            heapq.heappush(self.stamps, 0)
            return [frames[0], *frames]
        return frames

    def _check_sequence(self, data):
        if self.codec not in PARAMETER_SETS:
            return
        for unit in units(memoryview(data), 0):
            kind = unit[0] & 31 if self.codec == "h264" else unit[0] >> 1 & 63
            if kind == PARAMETER_SETS[self.codec]:
                found = bytes(unit).rstrip(b"\0")
                self.sequence = self.sequence or found
                if self.sequence != found:
                    self.library.crime("a session was given another sequence than its first")

    def _surface(self, slot, frame):
        nv12 = frame.reformat(format="nv12").to_ndarray()
        if slot == len(self.memory):
            self.memory.append(np.empty_like(nv12))
        self.memory[slot][...] = nv12
        with self.library.lock:
            if self.library.damage_rate and self.library.random.random() < self.library.damage_rate:
                self.library.damaged += 1
                self.memory[slot][...] = 0
        return _Surface(heapq.heappop(self.stamps), self.memory[slot])


def GetDecoderCaps(gpuid=0):  # noqa: N802
    if library.engines is None:
        raise RuntimeError("Could not dynamically load libnvcuvid.so.1")
    return {"num_decoder_engines": library.engines}


def CreateDecoder(*, gpuid, codec, cudacontext, cudastream, usedevicememory):  # noqa: N802
    assert usedevicememory
    return _Decoder(codec, gpuid)
