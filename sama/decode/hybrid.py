"""Files decoded by a GPU and by CPU cores at one time: each goes to whoever is free.

    file --PyAV opens it--> the GPU can decode it: a seat on the GPU, or one on the CPU, whichever is free first
                            otherwise:             a seat on the CPU

There are a few more threads than seats, so that files that wait for one side do not keep the other waiting. Both sides
give the same frames to the bit; each samples where its frames are, so that only sampled inputs travel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import torch

from sama.decode import DECODERS, Video, gpu_workers
from sama.decode.pyav import PyavVideo
from sama.errors import DecodeError, InputError
from sama.limits import Guard
from sama.prefetch import SPARE_SECONDS

if TYPE_CHECKING:
    from sama.decode.nvcodec import NvcodecVideo

LOOK_SECONDS = 0.2  # between two looks at seats whose files are given up


class Seats:
    """So many files may be decoded on the GPU, and so many on the CPU, at one time.

    files: that will ask for a seat. The last ones, as many as there are seats on the GPU, do not take one on the CPU if
        the GPU can decode them: there a long one would be the last to end.
    condition: of threads, in place of Python's, for simulations
    """

    def __init__(self, gpu: int, cpu: int, files: int, *, condition: threading.Condition | None = None):
        self.limits = {"nvcodec": gpu, "pyav": cpu}
        self.taken: dict[str, list[Guard]] = {"nvcodec": [], "pyav": []}
        self.remaining = files
        self.for_cpu = 0  # files that wait and that the GPU cannot decode
        self.most = {"nvcodec": 0, "pyav": 0}  # seats taken at one time
        self.changed = condition or threading.Condition()

    @property
    def threads(self) -> int:
        """A thread for each seat, and some more."""
        return self.limits["nvcodec"] + 2 * self.limits["pyav"]

    @contextmanager
    def take(self, guard: Guard, *, gpu: bool, stop: threading.Event) -> Iterator[str]:
        """Wait for a seat, on the GPU or the CPU, if `gpu`, else on the CPU, and keep it while the block runs.

        Yields the name of the decoder. `DecodeError` where `stop` is set before there is a seat.
        """
        with guard.waiting(), self.changed:
            self.for_cpu += not gpu
            try:
                while (decoder := self._free(gpu)) is None:
                    if stop.is_set():
                        raise DecodeError(guard.path, "was not decoded: stopped")
                    self.changed.wait(LOOK_SECONDS)
            finally:
                self.for_cpu -= not gpu
            self.taken[decoder].append(guard)
            self.most[decoder] = max(self.most[decoder], len(self.taken[decoder]))
            self.remaining -= 1
        try:
            yield decoder
        finally:
            with self.changed:
                self.taken[decoder].remove(guard)
                self.changed.notify_all()

    def _free(self, gpu: bool) -> str | None:
        """Where there is a seat for a file."""
        if gpu and self._seats("nvcodec"):
            return "nvcodec"
        last = self.remaining <= self.limits["nvcodec"]
        if self._seats("pyav") and not (gpu and (self.for_cpu or last)):
            return "pyav"
        return None

    def _seats(self, decoder: str) -> int:
        """Free seats; a file that is given up, in a library that does not come back, holds none."""
        return self.limits[decoder] - sum(guard.late(SPARE_SECONDS) is None for guard in self.taken[decoder])


def seats(device: torch.device, files: int, workers: int | None) -> Seats:
    """The seats of a GPU and of the CPU beside it, for so many files.

    workers: files decoded at one time, at least one of them by the CPU; None is what keeps the GPU's decoders busy, and
        half of the cores: the others read packets and feed the GPU
    `InputError` where no GPU can decode.
    """
    on_gpu = gpu_workers("hybrid", device)
    if not on_gpu:
        how = DECODERS["nvcodec"].install
        raise InputError(
            f"decoder hybrid needs a GPU, its driver's libnvcuvid and PyNvVideoCodec ({how}); got device {device}: "
            "use decoder auto"
        )
    on_cpu = max(1, (os.cpu_count() or 1) // 2) if workers is None else max(1, workers - on_gpu)
    return Seats(on_gpu, on_cpu, files)


@contextmanager
def opened(
    path: str, device: torch.device, guard: Guard, where: Seats, stop: threading.Event, *, gpu: bool = True
) -> Iterator[Video]:
    """A video, decoded by whoever is free; by the CPU unless `gpu`.

    Memory is held before a seat, so that who has a seat waits for nobody.
    """
    source = PyavVideo(path, threads=1, guard=guard)
    with closing(source):
        from sama.decode import nvcodec

        can = gpu and nvcodec.refusal(source, device) is None
        source.rest()
        with guard.hold(source.held_bytes(0)), where.take(guard, gpu=can, stop=stop) as decoder:
            yield on_gpu(path, device, source) if decoder == "nvcodec" else source


def on_gpu(path: str, device: torch.device, source: PyavVideo) -> NvcodecVideo:
    """The video with the GPU's decoder."""
    from sama.decode.nvcodec import NvcodecVideo

    return NvcodecVideo(path, device=device, source=source)
