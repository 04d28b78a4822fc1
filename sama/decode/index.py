"""Which packet of a video shows which frame, and which packets are needed for some frames.

    packets --PacketIndex.of--> frames in the order they are shown --runs(frames)--> Run, Run, ...

Every decoder numbers frames by this index. A run goes from the key frame before its first wanted frame to the last
packet that a wanted frame needs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import av
import numpy as np

from sama.decode.nal import picture_of

if TYPE_CHECKING:
    from sama.decode.packets import Source

MIN_JUMP = 8  # packets; decoding on is cheaper than emptying and refilling the decoder for fewer
NO_PTS = np.iinfo(np.int64).min
UNKNOWN = -1

# Decoders whose "NONREF" leaves out no frame that another one refers to.
SKIPS_EXACTLY = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"})

# What the index needs of a packet. pts and duration are in the stream's time base; pts is NO_PTS, duration 0 where it
# is not known. is_entry: a key packet that decoding can begin at (`sama.decode.nal.is_entry`), UNKNOWN where only the
# packet itself tells and it was not read. layer: HEVC's temporal layer.
PACKET = np.dtype(
    [
        *(("pts", "i8"), ("duration", "i8"), ("size", "i8")),
        *(("is_key", "?"), ("is_shown", "?"), ("is_damaged", "?"), ("is_stateful", "?")),
        *(("is_entry", "i1"), ("layer", "i1")),
    ]
)


@dataclass
class Run:
    """Packets `first..last` in file order, of which `frames` (numbers, increasing) are wanted."""

    first: int
    last: int
    frames: list[int]


class PacketIndex:
    """Which packet shows which frame, for files whose time stamps tell. Packets are numbered in file order.

    packets [P], of type PACKET; pts int64 [P]: their time stamps
    places [P]: their places in the order of the time stamps, those of packets that show no frame among them
    packet_of_frame [N], frame_pts [N]: of the N frames in the order they are shown
    keys: numbers of the key packets, increasing
    skippable bool [P]: packets that the decoder may leave out where their frame is neither wanted nor referred to
    """

    def __init__(self, packets: np.ndarray, *, codec: str, intra_only: bool):
        self.packets, self.pts, self.intra_only = packets, packets["pts"], intra_only
        shown = np.flatnonzero(packets["is_shown"])
        self.packet_of_frame = shown[np.argsort(self.pts[shown], kind="stable")]
        self.frame_pts = self.pts[self.packet_of_frame]
        self._order = np.argsort(self.pts, kind="stable")
        self._sorted_pts = self.pts[self._order]
        self.places = np.empty_like(self._order)
        self.places[self._order] = np.arange(len(packets))
        self.keys = np.flatnonzero(packets["is_key"])
        layers = packets["layer"]
        self.skippable = (layers == layers.max()) & (codec in SKIPS_EXACTLY)
        self._end = np.cumsum(packets["size"])

    @classmethod
    def of(cls, packets: np.ndarray, source: Source, first: av.VideoFrame) -> PacketIndex | None:
        """The index of a file, or None where its packets do not tell which frames a decode gives, or in which order.

        first: the first frame that can be decoded
        None for: no or equal time stamps; a start in the middle of a group of pictures, whose frames may be lost;
        interlaced video, where a packet may be half a frame; AVI, which stores no time stamps and whose packets may
        hold no frame or two; packets cut short; packets that change the decoder's state, or the palette.
        """
        pts, is_shown = packets["pts"], packets["is_shown"]
        shown = np.sort(pts[is_shown])
        if (pts == NO_PTS).any() or (shown[1:] == shown[:-1]).any():
            return None
        if first.pts is None or first.pts not in shown or not packets["is_key"][0] or first.interlaced_frame:
            return None
        if shown[0] < pts[0]:
            return None
        if first.format.name == "pal8" or packets["is_stateful"][1:].any():
            return None
        if packets["is_damaged"].any() or (source.format == "avi" and not source.intra_only):
            return None
        return cls(packets, codec=source.codec, intra_only=source.intra_only)

    def frame_at(self, pts: int | None) -> int:
        """The number of the frame with a time stamp, -1 where there is none."""
        if pts is None:
            return -1
        n = int(np.searchsorted(self.frame_pts, pts))
        return n if n < len(self.frame_pts) and self.frame_pts[n] == pts else -1

    def number_of(self, pts: int | None, size: int) -> int:
        """The number of the packet with a time stamp and a size, -1 where there is none."""
        if pts is None:
            return -1
        first, last = (int(np.searchsorted(self._sorted_pts, pts, side)) for side in ("left", "right"))
        found = [int(number) for number in self._order[first:last] if self.packets["size"][number] == size]
        return found[-1] if found else -1

    def runs(self, wanted: list[int]) -> list[Run]:
        """The packets to feed for `wanted` (increasing): runs apart by more than `MIN_JUMP` packets."""
        runs: list[Run] = []
        for n in wanted:
            key, last = self.key_before(n), int(self.packet_of_frame[n])
            if not runs or key > runs[-1].last + MIN_JUMP:
                runs.append(Run(key, last, []))
            runs[-1].last = max(runs[-1].last, last)
            runs[-1].frames.append(n)
        return runs

    def key_before(self, n: int) -> int:
        """Last key packet from which frame `n` can be decoded: sent and shown no later than the frame itself.

        Frames sent after a key frame but shown before it may refer to frames before the key frame.
        """
        at = int(np.searchsorted(self.keys, self.packet_of_frame[n], "right")) - 1
        while at > 0 and self.pts[self.keys[at]] > self.frame_pts[n]:
            at -= 1
        return int(self.keys[max(at, 0)])

    def shows_before(self, run: Run) -> bool:
        """Whether a run has pictures that are shown before its first one (open groups)."""
        return bool((self.pts[run.first + 1 : run.last + 1] < self.pts[run.first]).any())

    def frame_of_packet(self, number: int) -> int:
        """The number of the frame that a packet shows, -1 where it shows none."""
        return self.frame_at(int(self.pts[number])) if self.packets["is_shown"][number] else -1

    def unneeded(self, run: Run, codec: str, length: int) -> Callable[[int, memoryview], bool]:
        """A function of a packet of a run, `(number, data)`: whether every wanted frame is decoded the same without it.

        length: as `sama.decode.nal.nal_length` gives it
        Left out are pictures that are not wanted and that no wanted one can depend on: those of a layer above all
        wanted ones that follow, non-reference pictures of the layer of these, and HEVC's leading pictures of the key
        picture that the run begins with, which cannot be decoded from there.
        """
        wanted = sorted(self.packet_of_frame[run.frames].tolist())
        layers = self.packets["layer"][wanted].tolist()
        highest = list(accumulate(reversed(layers), max))[::-1]
        pts, start = self.pts, int(self.pts[run.first])

        def is_unneeded(number: int, data: memoryview) -> bool:
            at = bisect_left(wanted, number)
            if number == run.first or at == len(wanted) or wanted[at] == number:
                return False
            picture = picture_of(codec, data, length)
            if picture.is_leading and pts[number] < start:
                return True
            return picture.layer > highest[at] or (picture.layer == highest[at] and not picture.is_reference)

        return is_unneeded

    def bytes_between(self, first: int, last: int) -> int:
        """Size of packets `first..last - 1`."""
        return int(self._end[last - 1] - self._end[first - 1]) if 0 < first < last else 0
