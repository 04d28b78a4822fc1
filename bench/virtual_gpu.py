"""Decoding engines in virtual time, behind the interface of PyNvVideoCodec: for a simulation, and for tests under load.

Threads, queues and locks are real; only time is not. It goes by when every worker waits, for an engine, for its turn to
run Python, or for a session: then the one that would wake first does. So a run takes as long as its threads need to
switch, and its figures do not depend on the machine.
"""

from __future__ import annotations

import ctypes
import heapq
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

START = b"\0\0\0\1"
KEY, REFERENCE, UNREFERRED = 0x65, 0x41, 0x01  # headers of H.264 units: an IDR picture, one that others refer to, none


def packet_data(header: int, frame: int) -> bytes:
    """A packet of one H.264 unit, which holds nothing but the number of the frame that it shows."""
    return START + bytes([header, *(128 | frame >> 7 * place & 127 for place in range(4))])


def frame_of(data: bytes) -> int:
    """The number in a packet."""
    return sum((byte & 127) << 7 * place for place, byte in enumerate(data[len(START) + 1 :]))


@dataclass
class Rates:
    """What is assumed of a machine; times in seconds.

    engines, fps: engines, and pictures of 1080p that one decodes in a second
    construction: of a session
    opening: of a file: reading its packets, decoding its first frame; without Python's lock
    host: of each packet, in Python; one thread at a time
    ahead: packets that a session sends before it waits for their pictures
    """

    engines: int = 7
    fps: float = 730.0
    construction: float = 0.1
    opening: float = 0.02
    host: float = 30e-6
    ahead: int = 4


class VirtualTime:
    """A clock, and how many of the workers wait."""

    def __init__(self, workers: int):
        self.now = 0.0
        self.workers = workers
        self.begun = self.ended = self.blocked = self.order = 0
        self.sleeping: list[tuple[float, int, threading.Event]] = []
        self.lock = threading.RLock()

    def __call__(self) -> float:
        return self.now

    def jobs(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """The jobs, counted as they are begun."""
        for job in jobs:
            with self.lock:
                self.begun += 1
            yield job

    def end(self) -> None:
        """A job has ended, and the next one begun."""
        with self.lock:
            self.ended += 1
            self._advance()

    def sleep(self, seconds: float) -> None:
        self.sleep_until(self.now + seconds)

    def sleep_until(self, moment: float) -> None:
        woken = threading.Event()
        with self.lock:
            self.order += 1
            heapq.heappush(self.sleeping, (moment, self.order, woken))
            self.blocked += 1
            self._advance()
        woken.wait()

    def block(self) -> None:
        """The calling thread is about to wait for another."""
        with self.lock:
            self.blocked += 1
            self._advance()

    def unblock(self, threads: int) -> None:
        with self.lock:
            self.blocked -= threads

    def _advance(self) -> None:
        if self.blocked < min(self.workers, self.begun - self.ended) or not self.sleeping:
            return
        self.now, _, woken = heapq.heappop(self.sleeping)
        self.blocked -= 1
        woken.set()


class VirtualCondition(threading.Condition):
    """A condition whose waiting threads the clock knows of."""

    def __init__(self, time: VirtualTime):
        super().__init__()
        self.time = time

    def wait(self, timeout: float | None = None) -> bool:
        self.time.block()
        return super().wait()

    def notify(self, n: int = 1) -> None:
        self.time.unblock(min(n, len(self._waiters)))  # type: ignore[attr-defined]
        super().notify(n)


@dataclass
class Engine:
    """One decoding engine: when it is free, how long it has worked, and how many sessions it serves."""

    free: float = 0.0
    worked: float = 0.0
    sessions: int = 0


class VirtualGpu:
    """The library: what `sama.decode.nvcodec` uses of PyNvVideoCodec. A session stays with the engine that serves the
    fewest when it is made."""

    cudaVideoCodec = SimpleNamespace(H264="h264")  # noqa: N815

    def __init__(self, rates: Rates, time: VirtualTime):
        self.rates, self.time = rates, time
        self.engines = [Engine() for _ in range(rates.engines)]
        self.host_free = 0.0

    def GetDecoderCaps(self, gpuid: int = 0) -> dict[str, int]:  # noqa: N802
        return {"num_decoder_engines": self.rates.engines}

    def PacketData(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(bsl_data=0, bsl=0, pts=0)

    def CreateDecoder(self, **settings: object) -> VirtualDecoder:  # noqa: N802
        with self.time.lock:
            engine = min(self.engines, key=lambda engine: engine.sessions)
            engine.sessions += 1
        self.time.sleep(self.rates.construction)
        return VirtualDecoder(self, engine)

    def decode(self, engine: Engine, packets: int) -> None:
        """Take the time of sending packets, and of decoding them after whatever the engine has to do before."""
        with self.time.lock:
            self.host_free = max(self.host_free, self.time.now) + packets * self.rates.host
            sent = self.host_free
        self.time.sleep_until(sent)
        with self.time.lock:
            work = packets / self.rates.fps
            engine.free = max(engine.free, self.time.now) + work
            engine.worked += work
            done = engine.free
        self.time.sleep_until(done)


class VirtualDecoder:
    """A session: surfaces of six bytes in display order, some packets late."""

    reordered = 4

    def __init__(self, gpu: VirtualGpu, engine: Engine):
        self.gpu, self.engine = gpu, engine
        self.unsent = 0
        self.waiting: list[tuple[int, int]] = []  # (frame, number of the packet)
        self.memory = np.zeros((3, 2), np.uint8)

    def __del__(self):
        with self.gpu.time.lock:
            self.engine.sessions -= 1

    def Decode(self, packet: SimpleNamespace) -> list[VirtualSurface]:  # noqa: N802
        if packet.bsl:
            heapq.heappush(self.waiting, (frame_of(ctypes.string_at(packet.bsl_data, packet.bsl)), packet.pts))
            self.unsent += 1
        if self.unsent == self.gpu.rates.ahead or (self.unsent and not packet.bsl):
            self.gpu.decode(self.engine, self.unsent)
            self.unsent = 0
        behind = self.reordered if packet.bsl else 0
        ready = [heapq.heappop(self.waiting) for _ in range(max(0, len(self.waiting) - behind))]
        return [VirtualSurface(number, self.memory) for _, number in ready]


@dataclass
class VirtualSurface:
    number: int
    memory: np.ndarray

    def getPTS(self) -> int:  # noqa: N802
        return self.number

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.memory.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()


@contextmanager
def installed(gpu: VirtualGpu) -> Iterator[None]:
    """`sama.decode.nvcodec` is imported anew within the block, with this library in place of the real one."""
    names = ("PyNvVideoCodec", "sama.decode.nvcodec")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules["PyNvVideoCodec"] = gpu  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
