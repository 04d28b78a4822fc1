"""A stand-in for the four things of PyNvVideoCodec that `sama.decode.nvcodec` uses, with FFmpeg in place of the GPU.

As the library does, as far as its documentation tells: raw units go in by address, frames come out in display order,
some packets later, and are overwritten by later calls; an empty packet flushes.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import av
import numpy as np

cudaVideoCodec = SimpleNamespace(H264="h264", HEVC="hevc", VP8="vp8", VP9="vp9", AV1="libdav1d")  # noqa: N816


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
    def __init__(self, codec):
        self.context = av.CodecContext.create(codec, "r")
        self.context.thread_type = "SLICE"
        self.memory = {}
        self.flushed = False

    def Decode(self, packet):  # noqa: N802
        if packet.bsl:
            data = av.Packet(ctypes.string_at(packet.bsl_data, packet.bsl))
            data.pts = data.dts = packet.pts
            frames = self.context.decode(data)
        else:
            frames = [] if self.flushed else self.context.decode(None)
            self.flushed = True
        surfaces = []
        for slot, frame in enumerate(frames):
            nv12 = frame.reformat(format="nv12").to_ndarray()
            memory = self.memory.setdefault(slot, np.empty_like(nv12))
            memory[...] = nv12
            surfaces.append(_Surface(frame.pts, memory))
        return surfaces


def CreateDecoder(*, gpuid, codec, cudacontext, cudastream, usedevicememory):  # noqa: N802
    assert usedevicememory
    return _Decoder(codec)
