"""Headers of H.264 and HEVC units: what may refer to a packet's picture, without decoding it.

A packet is a series of units, each after its length (MP4, Matroska; ISO 14496-15) or after a start code (Annex B). The
first byte of an H.264 unit (ITU-T H.264, 7.3.1), or the first two of an HEVC unit (ITU-T H.265, 7.3.1.2), say what it
holds. Other codecs carry state from one packet to the next, so that none of their packets can be left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

H264_SLICES = frozenset({1, 2, 3, 4, 5})
H264_EXTRAS = frozenset({6, 9, 12})  # supplemental information, delimiter, filler: they go with their picture
HEVC_EXTRAS = frozenset({35, 38, 39, 40})
HEVC_LEADING = frozenset({6, 7, 8, 9})  # RADL and RASL pictures
PARAMETER_SETS = {"h264": 7, "hevc": 33}  # the type of the unit that gives a sequence its size and buffers


class Picture(NamedTuple):
    """What the headers of a packet say of its picture.

    layer: its temporal layer; no picture of a lower layer refers to it
    is_reference: pictures of the same layer may refer to it, or the packet holds more than the picture
    is_leading: it is shown before the key picture that it follows in the file, and no later picture refers to it
    """

    layer: int
    is_reference: bool
    is_leading: bool


KEPT = Picture(0, True, False)


def nal_length(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length before each unit in MP4 and Matroska; 0: start codes instead."""
    at = {"h264": 4, "hevc": 21}.get(codec)
    if at is None or not extradata or len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1


def picture_of(codec: str, data: memoryview, length: int) -> Picture:
    """The picture of a packet; one to keep, in layer 0, where the headers do not tell.

    length: as `nal_length` gives it
    """
    if codec == "h264":
        return _h264_picture([unit[0] for unit in units(data, length) if len(unit)])
    if codec == "hevc":
        return _hevc_picture([(unit[0], unit[1]) for unit in units(data, length) if len(unit) > 1])
    return KEPT


def is_entry(codec: str, data: memoryview, length: int) -> bool:
    """Whether decoding can begin at a key packet: its picture refers to none before, nor does any shown after it.

    In H.264 that is an IDR picture, or one whose recovery point (ITU-T H.264, D.2.8) is itself; where recovery takes
    several pictures (gradual refresh), the ones until then come out damaged.
    """
    if codec != "h264":
        return True
    return any(_is_h264_entry(bytes(unit)) for unit in units(data, length) if len(unit))


def _is_h264_entry(unit: bytes) -> bool:
    if unit[0] & 31 != 6:
        return unit[0] & 31 == 5
    message = unit[1:].replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(message):
        kind, at = _summed(message, at)
        size, at = _summed(message, at)
        if kind == 6:  # recovery_frame_cnt, an Exp-Golomb number: 0 is a single set bit
            return at < len(message) and message[at] >= 128
        at += size
    return False


def _summed(message: bytes, at: int) -> tuple[int, int]:
    """A number written as bytes that are added up to the first below 255, and the place after it."""
    total = 0
    while at < len(message):
        total, at = total + message[at], at + 1
        if message[at - 1] < 255:
            break
    return total, at


def _h264_picture(headers: list[int]) -> Picture:
    kinds = {header & 31 for header in headers}
    if not kinds & H264_SLICES or kinds - H264_SLICES - H264_EXTRAS:
        return KEPT
    return Picture(0, any(header >> 5 & 3 for header in headers if header & 31 in H264_SLICES), False)


def _hevc_picture(headers: list[tuple[int, int]]) -> Picture:
    slices = [(first >> 1 & 63, second) for first, second in headers if first >> 1 & 63 < 32]
    if not slices:
        return KEPT
    kinds = {kind for kind, _ in slices}
    layer = (slices[0][1] & 7) - 1
    others = {first >> 1 & 63 for first, _ in headers} - kinds
    if others - HEVC_EXTRAS or len(kinds) > 1:
        return Picture(layer, True, False)
    kind = kinds.pop()
    is_reference = kind > 14 or kind % 2 == 1  # even up to 14: sub-layer non-reference
    return Picture(layer, is_reference, kind in HEVC_LEADING)


def hevc_layer(data: memoryview, length: int) -> int:
    """Temporal layer of a picture. One in a lower layer may be marked unused and still serve the layers above."""
    for unit in units(data, length):
        if len(unit) > 1 and unit[0] >> 1 & 63 < 32:  # a slice of the picture
            return (unit[1] & 7) - 1
    return 0


def units(data: memoryview, length: int) -> Iterator[memoryview]:
    """The units of a packet, without lengths or start codes; what is cut short is left out."""
    if length:
        at = 0
        while at + length < len(data):
            start = at + length
            at = start + int.from_bytes(data[at:start])
            yield data[start:at]
        return
    whole = bytes(data)
    at = whole.find(b"\0\0\1") + 3
    while at >= 3:
        after = whole.find(b"\0\0\1", at) + 3
        yield data[at : after - 3] if after >= 3 else data[at:]
        at = after


def parameter_sets(codec: str, extradata: bytes | None) -> bytes | None:
    """The sequence parameter sets of a stream, which fix its coded size and how many surfaces its decoder needs.

    extradata: of the container, avcC, hvcC or units with start codes
    None where they are not told there. Codecs without them, whose decoders need the same surfaces for one size, give
    b"".
    """
    if codec not in PARAMETER_SETS:
        return b""
    try:
        found = sorted(set(_listed_sets(codec, extradata or b"")))
    except (IndexError, struct.error):
        return None
    return b"".join(struct.pack(">H", len(unit)) + unit for unit in found) or None


def _listed_sets(codec: str, extradata: bytes) -> Iterator[bytes]:
    if not nal_length(codec, extradata):
        for unit in units(memoryview(extradata), 0):
            kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
            if kind == PARAMETER_SETS[codec]:
                yield bytes(unit).rstrip(b"\0")
        return
    at = 6 if codec == "h264" else 23  # after avcC's number of sets, or hvcC's number of arrays
    for _ in range(1 if codec == "h264" else extradata[22]):
        if codec == "h264":
            kind, count = PARAMETER_SETS[codec], extradata[5] & 31
        else:
            kind, (count,) = extradata[at] & 63, struct.unpack_from(">H", extradata, at + 1)
            at += 3
        for _ in range(count):
            (size,) = struct.unpack_from(">H", extradata, at)
            if kind == PARAMETER_SETS[codec]:
                yield extradata[at + 2 : at + 2 + size]
            at += 2 + size
