"""Videos as frames by number: `open_video` picks a decoder; what it yields is a `Frame` in the decoder's own memory.

    with open_video("clip.mp4") as video:
        video.info.num_frames                       # exact, also at a variable frame rate
        for n, frame in video.frames([0, 2, 4]):    # only these are decoded, and what they refer to
            ...

A decoder is one file in this package with a class that follows `Video`, and one entry in `DECODERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from os import PathLike, fsdecode
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from sama.decode import nvdec
from sama.errors import DamageError, DecodeError, IndexMismatchError, InputError, MissingLibraryError
from sama.limits import Guard, Limits

if TYPE_CHECKING:
    import numpy as np
    import torch

    from sama.decode.pyav import PyavVideo
    from sama.frames import Frame

Result = TypeVar("Result")


@dataclass(frozen=True)
class VideoInfo:
    """Properties of an open video.

    num_frames      frames that a decode of the whole file gives, exact
    width, height   in pixels as displayed, after mirroring and rotation
    rotation        degrees counter-clockwise that `frames` has applied: 0, 90, 180 or 270
    mirrored        whether `frames` has swapped left and right, before that rotation
    fps             average frames per second
    index           "packets": numbers come from the file's time stamps, frames nobody needs are not decoded;
                    "decoding": the file has no usable time stamps, its frames are counted from the start (slow)
    opened          what was read to know that: "index", tables of the file that say it for sure, or "packets", all
    """

    path: str
    num_frames: int
    width: int
    height: int
    rotation: Literal[0, 90, 180, 270]
    mirrored: bool
    fps: float
    duration_seconds: float
    codec: str
    pix_fmt: str
    index: Literal["packets", "decoding"]
    opened: Literal["index", "packets"]

    def rgb_bytes(self, frames: int) -> int:
        """Bytes of that many frames in RGB."""
        return frames * self.width * self.height * 3


class Video(Protocol):
    """An open video. Different videos may be used from different threads at once, one video from one at a time.

    decoder: the name, in `DECODERS`, of the decoder that gives its frames
    guard: the limits that it is read within, and what damage its stream has reported
    """

    info: VideoInfo
    decoder: str
    guard: Guard

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Yield `(index, frame)` for each distinct index, in increasing order, whatever the order of `indices`.

        Planes may be memory of the decoder: read them, never write; they live as long as something refers to them.
        IndexError where an index is outside 0..num_frames - 1; DecodeError where the file cannot give a frame.
        """

    def seconds(self, indices: Iterable[int]) -> np.ndarray:
        """Times at which frames are shown, in seconds after the first one; float64, the length of `indices`."""

    def held_bytes(self, clip_len: int) -> int:
        """About how many bytes decoding a clip of `clip_len` frames holds at one time."""

    def close(self) -> None:
        """Give back file handles. Frames already yielded stay valid."""

    def __enter__(self) -> Video: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Decoder(NamedTuple):
    """Where a decoder lives: `module.cls(path, threads=...)`, usable where `library` can be imported.

    gpu: it takes `device=` too; "auto" chooses it on a GPU only, for files that its module's `refusal` lets pass
    batched: it is fastest where it decodes the clips of many files in one call
    """

    module: str
    cls: str
    library: str
    install: str
    gpu: bool = False
    batched: bool = False

    def available(self) -> bool:
        try:
            return find_spec(self.library) is not None
        except ModuleNotFoundError:  # the package around it is missing
            return False


DECODERS = {  # "auto" takes the first available one that is for the file; exact colours come first
    "nvcodec": Decoder(
        "sama.decode.nvcodec", "NvcodecVideo", "PyNvVideoCodec", 'pip install "sama-vqa[nvcodec]"', gpu=True
    ),
    "dali": Decoder(
        "sama.decode.dali", "DaliVideo", "nvidia.dali", 'pip install "sama-vqa[dali]"', gpu=True, batched=True
    ),
    "pyav": Decoder("sama.decode.pyav", "PyavVideo", "av", "pip install av"),
}


CHOOSING = ("auto", "hybrid")  # a decoder for each file; hybrid: one of those that give the same frames to the bit


def check_decoder(name: str) -> None:
    """InputError unless `name` is in `CHOOSING` or `DECODERS`; the text lists them."""
    if name not in CHOOSING and name not in DECODERS:
        raise InputError(f"unknown decoder {name!r}; known: {', '.join([*CHOOSING, *DECODERS])}")


def open_video(
    path: str | PathLike[str],
    *,
    decoder: str = "auto",
    threads: int | None = None,
    device: str | torch.device | None = None,
    guard: Guard | None = None,
) -> Video:
    """Open a video file.

    decoder: a name in `DECODERS`, or "auto": for each file a GPU's decoder where there is a GPU, the decoder's library,
        its driver, and a stream that they can decode; otherwise "pyav"; "hybrid" is the same without "dali", and where
        many files are scored, CPU cores decode beside the GPU. A named decoder never falls back. Where the
        GPU fails on the way, whoever reads whole files (`decode_with`, `Feed`, `score_files`) goes on with "pyav".
    threads: decoding threads of this video; None lets the decoder choose.
    device: where to decode, "cpu", "cuda" or "cuda:N"; None is a GPU where there is one. "pyav" decodes to main memory.
    guard: what the file may cost; None for no limit but that of pixels. Frames of a stream that is damaged are as the
        decoder conceals them, which repeats itself with `threads=1` alone

    DecodeError where the file is missing or no readable video, or none for the named decoder; InputError for an unknown
    decoder or a bad thread count; MissingLibraryError where the decoder's library is not installed.
    """
    check_decoder(decoder)
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, or None; got {threads}")
    name = "pyav" if decoder in CHOOSING else decoder
    chosen = DECODERS[name]
    if not chosen.available():
        raise MissingLibraryError(
            f"no library to decode with (decoder={decoder!r}); install it with `{chosen.install}`"
        )
    video_class = getattr(import_module(chosen.module), chosen.cls)
    if chosen.gpu:
        return video_class(fsdecode(path), threads=threads, device=device, **_guarded_source(path, threads, guard))
    video = video_class(fsdecode(path), threads=threads, guard=guard)
    return _on_gpu(video, device, decoder) if decoder in CHOOSING else video


def _guarded_source(path: str | PathLike[str], threads: int | None, guard: Guard | None) -> dict[str, PyavVideo]:
    """The argument `source` of a GPU's decoder, where a guard is to watch over it."""
    if guard is None:
        return {}
    from sama.decode.pyav import PyavVideo

    return {"source": PyavVideo(fsdecode(path), threads=threads, guard=guard)}


def _on_gpu(video: PyavVideo, device: str | torch.device | None, choosing: str) -> Video:
    """The same file with the first GPU decoder that decodes it, or `video` itself. choosing: one of `CHOOSING`"""
    asked = [one for one in DECODERS.values() if one.gpu and not (one.batched and choosing == "hybrid")]
    candidates = [decoder for decoder in asked if decoder.available()]
    if not candidates or str(device).startswith("cpu") or not nvdec.driver_available():
        return video
    import torch

    if not torch.cuda.is_available():
        return video
    where = torch.device(device or "cuda")
    for decoder in candidates:
        try:
            module = import_module(decoder.module)
        except (ImportError, OSError, RuntimeError):  # installed, but its driver is not
            continue
        if module.refusal(video, where) is None:
            return getattr(module, decoder.cls)(video.info.path, device=where, source=video)
    return video


def gpu_workers(decoder: str, device: str | torch.device) -> int:
    """How many threads keep a GPU's decoders busy, where `open_video` may decode there with nvcodec; 0 elsewhere."""
    if not str(device).startswith("cuda") or decoder not in (*CHOOSING, "nvcodec"):
        return 0
    if not DECODERS["nvcodec"].available() or not nvdec.driver_available():
        return 0
    try:
        from sama.decode import nvcodec
    except (ImportError, OSError, RuntimeError):  # installed, but its driver is not
        return 0
    return nvcodec.workers(nvcodec.pick_device(device, numbered=True))


def decode_with(
    use: Callable[[Video], Result],
    path: str | PathLike[str],
    *,
    decoder: str = "auto",
    threads: int | None = None,
    device: str | torch.device | None = None,
    guard: Guard | None = None,
) -> Result:
    """`use(video)` of a file, once more from the start where `again` says so: with pyav where a GPU's decoder fails on
    the way, with one thread where the stream is damaged, by all packets where a file's tables do not tell them.

    So nothing that `use` gives comes from frames of two decoders, and what it gives repeats itself.
    guard: what the file may cost; None is `Limits()`. Other parameters and errors as for `open_video`.
    """
    guard = guard or Guard(fsdecode(path), Limits())
    guard.strict = True
    attempt, used = Attempt(decoder, threads), None
    while True:
        try:
            with open_video(
                path, decoder=attempt.decoder, threads=attempt.threads, device=device, guard=guard
            ) as video:
                used = video.decoder
                return use(video)
        except DecodeError as error:
            following = again(attempt, used, error)
            if following is None:
                raise
            attempt = following


class Attempt(NamedTuple):
    """How a file is opened."""

    decoder: str
    threads: int | None


def again(attempt: Attempt, used: str | None, error: DecodeError) -> Attempt | None:
    """How a file that could not be read is opened once more, or None.

    used: the name of the decoder that failed, None where the file was not even opened
    """
    if isinstance(error, IndexMismatchError):
        return attempt  # whose guard knows of it
    if isinstance(error, DamageError):
        return Attempt("pyav" if attempt.decoder in CHOOSING else attempt.decoder, 1)
    if attempt.decoder in CHOOSING and used not in (None, "pyav"):
        return Attempt("pyav", attempt.threads)
    return None
