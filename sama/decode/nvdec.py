"""What the video decoders of NVIDIA GPUs can do, and what of it this package takes.

Sources: the table of capabilities in the NVDEC application note (Video Codec SDK 13.0) and the limits in the NVDECODE
programming guide. Nothing here needs a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import NamedTuple


class Limits(NamedTuple):
    """Smallest and largest width and height in pixels."""

    least: tuple[int, int]
    most: tuple[int, int]


# Codecs that decode 8-bit 4:2:0 on every GPU from Turing on, A100, H100 and H200 included; AV1 needs a newer engine.
LIMITS = {
    "h264": Limits((48, 16), (4096, 4096)),
    "hevc": Limits((144, 144), (8192, 8192)),
    "vp8": Limits((48, 16), (4096, 4096)),
    "vp9": Limits((128, 128), (8192, 8192)),
    "av1": Limits((128, 128), (8192, 8192)),
}
TURING = (7, 5)
HOPPER = (9, 0)
AV1_FROM = (8, 6)  # compute capability; A100 (8.0) and Hopper (9.0) have no AV1
PLANES_8_BIT = ("yuv420p", "yuvj420p")


DRIVER_LIBRARY = "nvcuvid.dll" if sys.platform == "win32" else "libnvcuvid.so.1"


@cache
def driver_available() -> bool:
    """Whether the driver's video decoding library can be loaded; containers often come without it."""
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return False
    return True


def gpu_decodable(codec: str, pix_fmt: str, width: int, height: int, *, capability: tuple[int, int]) -> str | None:
    """Why a stream is not for the GPU's decoder, or None where it is.

    codec, pix_fmt: FFmpeg's names; width, height: as decoded; capability: `torch.cuda.get_device_capability()`
    Only what decodes to 8-bit 4:2:0 of even size is taken: more bits and other layouts have colours that the sampler
    does not convert itself, and an odd size has half a chroma sample at its edge.
    """
    card = f"compute capability {capability[0]}.{capability[1]}"
    if codec not in LIMITS:
        return f"{codec} is none of {', '.join(LIMITS)}"
    if capability < TURING:
        return f"GPUs before Turing are not known here; this one has {card}"
    if codec == "av1" and (capability < AV1_FROM or capability == HOPPER):
        return f"this GPU ({card}) has no AV1 decoder"
    if pix_fmt not in PLANES_8_BIT:
        return f"{pix_fmt} is not 8-bit 4:2:0"
    if width % 2 or height % 2:
        return f"{width}x{height} is an odd size"
    least, most = LIMITS[codec]
    if width < least[0] or height < least[1] or width > most[0] or height > most[1]:
        return f"{width}x{height} is outside {least[0]}x{least[1]} to {most[0]}x{most[1]}, the GPU's limits for {codec}"
    return None
