"""Decoding with NVIDIA DALI 2: batches of files at once, on the GPU (NVDEC), or on the CPU for VP8, VP9 and MJPEG.

    requests (file, frames) --packet index--> checked numbers --one call of DALI--> RGB [n, H, W, 3] --> checked clips

DALI numbers frames by their time stamps, as `sama.decode.packets` does. Numbers, sizes and times come from there; files
that DALI would number otherwise are refused. What DALI does with bad input, and what this module does about it:

- A batch with one bad file fails as a whole: it is decoded again file by file, and the bad one is named.
- Frames that it cannot get may come out black, without an error: every black frame is compared with FFmpeg's.
- It converts with BT.601 whatever the file says and interpolates chroma: `Frame.correction` undoes the linear part.
- Duplicates make it jump back to the last key frame: it is asked for each frame once.
- Its batches and tensors refer to each other, so that files and frames would stay in memory until Python's garbage
  collector finds them: each call runs it, for young objects only, which takes a millisecond.

The CPU path is tested. The GPU path is the same code with another device, and was not run on a GPU yet.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike, fsdecode
from typing import NamedTuple

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import torch

from sama.decode.nvdec import PLANES_8_BIT, gpu_decodable
from sama.decode.pyav import Orientation, PyavVideo, SourcedVideo
from sama.decode.sessions import SessionPool
from sama.devices import pick_device, thread_stream
from sama.errors import DecodeError, InputError, without_traceback
from sama.frames import Clip, Correction, Frame
from sama.kernels import reference
from sama.kernels.color import correction

CPU_CODECS = ("vp8", "vp9", "mjpeg")
MATRIX = "bt601"  # DALI's own, for every file
CHUNK_BYTES = 256 << 20  # of RGB that `DaliVideo.frames` holds at once, though at least one frame
GPU_CHUNK_BYTES = 1 << 30  # likewise on a GPU: the frames of a score at 1080p are 0.8 GB
MAX_DECODERS = 4  # that are kept, each with its threads
BLACK_STEP = 16  # pixels: a frame that is black on this grid is looked at as a whole
BLACK = 3  # grey levels: FFmpeg's picture of a frame that is all zero in DALI's has no more

Request = tuple["str | PathLike[str] | DaliVideo", "np.ndarray | Sequence[int]"]


class DaliDecoder:
    """Batches of clips, each file read once.

    device: "cpu", "cuda" or "cuda:N"; None is the GPU where there is one
    threads: of DALI's pool; None shares DALI's default pool of this Python thread
    Use one decoder from one thread at a time.
    InputError for another device, DeviceError for a GPU that is not there.
    """

    def __init__(self, device: str | torch.device | None = None, *, threads: int | None = None):
        self.device = decoding_device(device)
        self._stream = thread_stream(self.device, "DALI") if self.device.type == "cuda" else None
        self._context = None
        if threads is not None:
            index = {"device_id": self.device.index} if self.device.type == "cuda" else {}
            self._context = ndd.EvalContext(num_threads=threads, **index)

    def decode(self, requests: Sequence[Request]) -> list[Clip | DecodeError]:
        """A result for each request, in order: the clip, or the error that names the file. No file ends a batch.

        requests: (path, or an open `DaliVideo`; frame numbers, int64 [n], in any order, any number of times)
        clips: layout "rgb", uint8 [n, H, W, 3] on the device, as displayed, with the correction of DALI's colours. In
            main memory the clips of a batch share one allocation, freed with the last of them. On a GPU each is a copy,
            because DALI does not know when other streams have read its memory; it is ready for the stream that is
            current here, without waiting. Call `Tensor.record_stream` before using it in another one.
        InputError where a request asks for no frames. Frames beyond the end of a file are that file's `DecodeError`.
        """
        results: dict[int, Clip | DecodeError] = {}
        jobs = []
        for place, (target, indices) in enumerate(requests):
            numbers = np.asarray(indices, np.int64)
            if numbers.ndim != 1 or not len(numbers):
                raise InputError(f"a request needs a list of frame numbers, at least one; got shape {numbers.shape}")
            try:
                video = target if isinstance(target, DaliVideo) else DaliVideo(target, dali=self)
                jobs.append(_Job.of(place, video, numbers))
            except DecodeError as error:
                results[place] = without_traceback(error)
        for job, result in self._decode(jobs):
            results[job.place] = result
        return [results[place] for place in range(len(requests))]

    def reset(self) -> None:
        """As `sama.decode.sessions.Session.reset`: between two calls there is nothing to forget."""

    def close(self) -> None:
        """As `sama.decode.sessions.Session.close`."""
        self._context = None

    def _decode(self, jobs: list[_Job]) -> Iterator[tuple[_Job, Clip | DecodeError]]:
        """All jobs in one call; where that fails, each on its own."""
        if not jobs:
            return
        try:
            with self._aside():
                tensors = self._call(jobs)
        except Exception as error:  # DALI raises RuntimeError and others, with no type of its own
            if len(jobs) == 1:
                yield jobs[0], DecodeError(jobs[0].video.info.path, f"DALI cannot decode it ({reason_of(error)})")
            else:
                for job in jobs:
                    yield from self._decode([job])
            return
        gc.collect(1)
        results: list[Clip | DecodeError] = []
        for job, tensor in zip(jobs, tensors):
            try:
                with self._aside():
                    results.append(job.clip(tensor))
            except DecodeError as error:
                results.append(without_traceback(error))
        if self._stream:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for clip in results:
                if isinstance(clip, Clip):
                    plane = clip.planes[0]
                    assert isinstance(plane, torch.Tensor)
                    plane.record_stream(current)
        yield from zip(jobs, results)

    def _aside(self):
        """Work in this decoder's stream, so that checking frames does not wait for the GPU's other work."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _call(self, jobs: list[_Job]) -> list[torch.Tensor]:
        """uint8 [n, H, W, 3] for each job, the frames once each, as DALI decodes them."""
        device = "cpu" if self.device.type == "cpu" else f"gpu:{self.device.index}"
        with self._context or nullcontext(), ndd.EvalMode.sync_cpu:
            encoded = ndd.batch([ndd.as_tensor(job.encoded) for job in jobs])
            frames = ndd.batch([ndd.as_tensor(job.frames) for job in jobs])
            # affine would pin threads to the first cores, whatever else runs there
            batch = ndd.decoders.video(encoded, frames=frames, device=device, affine=False)
            return [tensor.torch() for tensor in batch.tensors]


class DaliVideo(SourcedVideo):
    """`sama.decode.Video` with DALI: frames are RGB torch tensors on the decoder's device.

    path: a file
    threads, device: as for `DaliDecoder`
    dali: a `DaliDecoder` to use in place of a shared one of these
    source: the open `PyavVideo` of the same file, if there is one already; it is closed with this video
    DecodeError where the file is no video, or none that DALI decodes on this device with known numbers and colours.
    """

    decoder = "dali"

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        device: str | torch.device | None = None,
        dali: DaliDecoder | None = None,
        source: PyavVideo | None = None,
    ):
        self._key = DaliKey(dali.device if dali else decoding_device(device), threads)
        self._dali = dali
        source = source or PyavVideo(fsdecode(path))
        problem = refusal(source, self._key.device)
        super().__init__(source, problem and f"DALI cannot be used: {problem}")
        self.orientation: Orientation = source.orientation
        self.correction = correction_of(source)

    def _frames(self, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
        """`CHUNK_BYTES` of frames are decoded, and held, at a time."""
        if not wanted:
            return
        encoded = read_bytes(self.info.path)
        for chunk in self._chunks(wanted):
            job = _Job(0, self, encoded, np.array(chunk, np.int32), None)
            try:
                with nullcontext(self._dali) if self._dali else lend(*self._key) as dali:
                    ((_, clip),) = dali._decode([job])
            except Exception as error:  # what the file does wrong is no exception there
                raise DecodeError(self.info.path, f"DALI cannot be used ({reason_of(error)})") from error
            if isinstance(clip, DecodeError):
                raise clip
            for n, t in zip(chunk, range(len(clip))):
                yield n, clip[t]
            del clip

    def _chunks(self, wanted: list[int]) -> Iterator[list[int]]:
        """`wanted` in pieces for one call each, cut between two runs of packets if possible: a call begins at a key
        frame, and decodes again what lies between that and its first frame."""
        size = CHUNK_BYTES if self._key.device.type == "cpu" else GPU_CHUNK_BYTES
        count = max(1, size // self.info.rgb_bytes(1))
        chunk: list[int] = []
        assert self.source.index is not None  # or `refusal` would have said so
        for run in self.source.index.runs(wanted):
            if chunk and len(chunk) + len(run.frames) > count:
                yield chunk
                chunk = []
            chunk = chunk + run.frames
            while len(chunk) > count:
                yield chunk[:count]
                chunk = chunk[count:]
        if chunk:
            yield chunk


class DaliKey(NamedTuple):
    """What decoders must share to stand in for one another."""

    device: torch.device
    threads: int | None


@contextmanager
def lend(device: str | torch.device | None, threads: int | None) -> Iterator[DaliDecoder]:
    """A decoder for the time of a block, one of at most `MAX_DECODERS` that all threads share; waits for it."""
    with _decoders.lease(DaliKey(decoding_device(device), threads)) as lease:
        yield lease.session


def decoding_device(device: str | torch.device | None) -> torch.device:
    """The device with its number; InputError for one that DALI does not decode on."""
    chosen = pick_device(device, numbered=True)
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f'DALI decodes on "cpu" or "cuda"; got {device}')
    return chosen


@dataclass(frozen=True)
class _Job:
    """One file of a call. frames: int32, distinct; places: where each requested frame is among them, None for all."""

    place: int
    video: DaliVideo
    encoded: np.ndarray
    frames: np.ndarray
    places: np.ndarray | None

    @classmethod
    def of(cls, place: int, video: DaliVideo, numbers: np.ndarray) -> _Job:
        try:
            video.source.checked(numbers)
        except IndexError as error:
            raise DecodeError(video.info.path, str(error).removeprefix(f"{video.info.path} ")) from error
        frames, places = np.unique(numbers, return_inverse=True)
        encoded = read_bytes(video.info.path)
        if len(frames) == len(numbers):  # DALI puts them into any order itself
            return cls(place, video, encoded, numbers.astype(np.int32), None)
        return cls(place, video, encoded, frames.astype(np.int32), places)

    def clip(self, tensor: torch.Tensor) -> Clip:
        """What was asked for, as displayed; DecodeError unless it is what the index promised."""
        width, height = self.video.source.decoded_size
        path, expected = self.video.info.path, (len(self.frames), height, width, 3)
        if tuple(tensor.shape) != expected:
            raise DecodeError(path, f"DALI gave frames of shape {tuple(tensor.shape)}; its index says {expected}")
        if tensor.is_cuda:
            tensor = tensor.clone()
        self._check_black(tensor)  # waits for the copy
        if self.places is not None:
            tensor = tensor[torch.from_numpy(self.places).to(tensor.device)]
        if self.video.orientation.mirrored:
            tensor = tensor.flip(2)
        if self.video.orientation.quarter_turns:
            tensor = tensor.rot90(self.video.orientation.quarter_turns, (1, 2))
        return Clip("rgb", (tensor,), correction=self.video.correction)

    def _check_black(self, tensor: torch.Tensor):
        """DecodeError where DALI gave a black frame that FFmpeg decodes as another."""
        suspects = (~tensor[:, ::BLACK_STEP, ::BLACK_STEP].flatten(1).any(1)).nonzero()[:, 0].tolist()
        black = [int(self.frames[k]) for k in suspects if not tensor[k].any()]
        for n, frame in self.video.source.frames(black):
            if int(reference.to_rgb(frame).max()) > BLACK:
                reason = f"damaged: DALI gave frame {n} as black without an error, and it is not"
                raise DecodeError(self.video.info.path, reason)


_decoders: SessionPool[DaliKey, DaliDecoder] = SessionPool(
    lambda key: DaliDecoder(key.device, threads=key.threads), limit=MAX_DECODERS
)


def refusal(video: PyavVideo, device: torch.device) -> str | None:
    """Why DALI is not to decode a file, or None."""
    info = video.info
    if video.guard.content is not None:
        return "it reads local files alone"
    if device.type == "cpu" and info.codec not in CPU_CODECS:
        return f"on the CPU it decodes {', '.join(CPU_CODECS)}, and this is {info.codec}"
    if info.pix_fmt not in PLANES_8_BIT:
        return f"{info.pix_fmt} is not 8-bit 4:2:0"
    if video.matrix is None:
        return "its colour matrix is neither BT.601 nor BT.709"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        problem = gpu_decodable(info.codec, info.pix_fmt, *video.decoded_size, capability=capability)
        if problem:
            return problem
    return numbering_problem(video)


def numbering_problem(video: PyavVideo) -> str | None:
    """Why DALI would number frames otherwise, or None: it sorts all packets of the best stream by their time stamps,
    hidden ones too, and leaves out those before zero."""
    if video.index is None:
        return "its time stamps do not tell which frames it has"
    if len(video.index.frame_pts) != len(video.index.packets):
        return "some of its packets show no frame"
    if video.index.frame_pts[0] < 0:
        return "its time stamps start below zero"
    if video.num_streams > 1:
        return f"it has {video.num_streams} video streams or cover pictures"
    return None


def correction_of(video: PyavVideo) -> Correction | None:
    """The correction of DALI's colours; where the height is odd, FFmpeg interpolates too, and drops no fractions."""
    floored = video.decoded_size[1] % 2 == 0
    assert video.matrix is not None  # or `refusal` would have said so
    if video.matrix == MATRIX and not floored:
        return None
    return correction(MATRIX, video.matrix, video.full_range, floored=floored)


def read_bytes(path: str) -> np.ndarray:
    """A whole file, uint8."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror}") from error


def reason_of(error: BaseException) -> str:
    """The line of DALI's report that says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\[/\S+:\d+\] ", "", str(error).partition("Stacktrace")[0])
    lines = [line.strip() for line in text.partition("encountered:")[2].splitlines() or text.splitlines()]
    return next((line for line in lines if line), type(error).__name__)
