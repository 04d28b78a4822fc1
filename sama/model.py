"""A checkpoint, ready to score: `load_model`, and what a score consists of.

m = sama.load_model("SAMA-baseline.pth")      # any checkpoint that `sama.models` reads
print(m.report)                               # what was loaded, missing, dropped
r = m.score("video.mp4")
r.score, r.clips, r.timeline                  # 0.71, (0.70, ...), ((1.07, 0.70), ...): seconds, value
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

import sama
from sama.decode import decode_with
from sama.decode.images import read_image
from sama.devices import pick_device
from sama.engines import INT8, RUNTIMES, label, pick_engine, tokens_of
from sama.errors import CheckpointError, InputError, MissingFileError, NoWeightsError
from sama.files import IMAGE_SUFFIXES, check_kind, suffix
from sama.graphs import Graphs
from sama.kernels.layout import PATCH, OutputLayout, ceil_div, fits_patches
from sama.limits import Guard, Limits
from sama.models import ImageQuality, LoadReport, VideoQuality
from sama.models.attention import choose_attention
from sama.models.precision import DTYPES, check_precision, computing, default_precision
from sama.plan import frame_indices
from sama.sampler import ImageSampler, VideoSampler

if TYPE_CHECKING:
    from sama.decode import Video

PACKAGED = "packaged"  # the name of the packaged model for videos, where a file of weights can be given
PACKAGED_IMAGE = "packaged-image"
DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"
DEFAULT_IMAGE_WEIGHTS = Path(__file__).parent / "weights" / "default-image.safetensors"
MOST = 10_000  # of each number that metadata say about sampling
REQUIRED = {  # of a checkpoint's metadata
    "video": ("mode", "grid", "fragment", "clip_len", "interval", "num_clips"),
    "image": ("mode", "grid", "fragment"),
}
WHERE_TO_GET_WEIGHTS = """checkpoints that this program reads, and where their authors publish them:
  SAMA-baseline_val-ltest_s_dev_v0.0.pth             https://github.com/Sissuire/SAMA
  FAST_VQA_B_1_4.pth                                 https://github.com/VQAssessment/FAST-VQA-and-FasterVQA
  DOVER.pth (its technical branch)                   https://github.com/VQAssessment/DOVER"""


@dataclass(frozen=True)
class Result:
    """The quality of one video or image.

    score     on the model's own scale, `scale` where that has a name; higher is better
    clips     one score a clip; `score` is their mean
    timeline  (seconds, score) of every clip, at its middle frame; empty where there is no time
    mos       `score` on the scale of the data set `mos_scale`, where the checkpoint carries a calibration, else None
    frames, width, height   of the source, as displayed
    scale     name of the scale of `score`, such as "VMAF v0.6.1" for the packaged models; None where it has none
    damage    what the stream of a damaged video reported: frames were concealed; empty otherwise
    """

    score: float
    clips: tuple[float, ...]
    timeline: tuple[tuple[float, float], ...]
    frames: int
    width: int
    height: int
    mos: float | None = None
    mos_scale: str | None = None
    scale: str | None = None
    damage: str = ""


def load_model(
    weights: str | os.PathLike[str] | None = None,
    device: str = "auto",
    *,
    mode: str | None = None,
    dtype: str = "auto",
    compile: bool = False,
    attention: str = "plain",
    engine: str = "eager",
) -> QualityModel:
    """The model of a checkpoint, on a device, with the sampler it was trained with.

    weights: a checkpoint of any source that `sama.models.build` reads; None or "packaged" is the packaged model for
        videos, "packaged-image" that for images
    device: "auto" is the GPU where there is one, else the CPU; "cpu", "cuda", "cuda:1", ...
    mode: sampling mode in place of the checkpoint's
    dtype: precision of the network, "float32", "tf32", "bfloat16" or "float16" (`sama.models.precision`); "int8" on a
        CPU, with engine "openvino" or "auto" (`sama.quantize`); "auto" is float16 on a GPU, float32 on a CPU
    attention: "plain", or on a GPU "fused" (`sama.kernels.attention`), which scores as fast in less memory
    engine: what computes the network on a CPU, "eager", "compile", "onnxruntime", "openvino" or "auto"
        (`sama.engines`)
    All errors are `sama.SamaError`: `NoWeightsError` where the packaged file is missing or a file has no quality head,
    `MissingFileError` (a FileNotFoundError), `CheckpointError` for a file that is no known checkpoint, `InputError` (a
    ValueError) for an unknown device, dtype or mode.
    """
    from sama.models import build

    weights = find_weights(weights)
    built = build(weights, mode=mode)
    if any(name.startswith("statistics.") for name in built.report.missing):
        raise NoWeightsError(
            f"{weights} ({built.report.source}) was made by a version of this package whose nano models had no scene "
            "statistics: it cannot be scored with any more; train again."
        )
    headless = [name for name in built.report.missing if name.startswith("head.")]
    if headless:
        raise NoWeightsError(
            f"{weights} ({built.report.source}) holds no quality head ({', '.join(headless)} missing): training can "
            f"start from it, but its scores would be random.\n{WHERE_TO_GET_WEIGHTS}"
        )
    sha256 = digest(weights)
    name = f"{Path(weights).name} ({built.report.source}, sha256 {sha256})"
    settings: dict[str, Any] = {"dtype": dtype, "compile": compile, "attention": attention, "engine": engine}
    return QualityModel(built.model, built.metadata, name, device, report=built.report, sha256=sha256, **settings)


def find_weights(weights: str | os.PathLike[str] | None) -> Path:
    """The file that a user means: None and "packaged" are the model for videos that comes with the package,
    "packaged-image" is that for images.

    `MissingFileError` where there is none, `NoWeightsError` where the packaged one is not there.
    """
    packaged = {None: DEFAULT_WEIGHTS, PACKAGED: DEFAULT_WEIGHTS, PACKAGED_IMAGE: DEFAULT_IMAGE_WEIGHTS}
    name = None if weights is None else os.fspath(weights)
    if weights is not None and (name not in packaged or os.path.exists(weights)):
        if not os.path.exists(weights):
            raise MissingFileError(os.fspath(weights))
        return Path(weights)
    if not packaged[name].exists():
        raise NoWeightsError(
            f"the packaged model is not there ({packaged[name]}): install again, or give weights.\n"
            f"{WHERE_TO_GET_WEIGHTS}"
        )
    return packaged[name]


def packaged_for(paths: Sequence[str | os.PathLike[str]]) -> str:
    """The name of the packaged model for some files: that for images where all of them are images."""
    return PACKAGED_IMAGE if paths and all(suffix(path) in IMAGE_SUFFIXES for path in paths) else PACKAGED


def score(
    source: str | os.PathLike[str] | np.ndarray | torch.Tensor,
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str = "auto",
    every_seconds: float | None = None,
    fps: float | None = None,
    decoder: str = "auto",
) -> Result:
    """Score one file, or pixels, in one call: `load_model(weights, device).score(source, ...)`.

    r = sama.score("video.mp4")
    r.score, r.clips, r.timeline

    source: a file, or pixels, uint8 [T, H, W, 3] of a video, [H, W, 3] of an image with an image model
    weights, device: as for `load_model`; by default the packaged model for what the source is
    every_seconds: score one clip in each window of this length, instead of a few of the whole video
    fps: frames per second of pixels, for their timeline; decoder: as for `sama.open_video`
    Raises what `load_model` raises, and `sama.DecodeError` for a file that cannot be read. A model is loaded at every
    call: to score several files, load it once with `load_model`, or use the command `sama score`.
    """
    if weights is None:
        if isinstance(source, np.ndarray | torch.Tensor):
            weights = PACKAGED_IMAGE if source.ndim == 3 else PACKAGED
        else:
            weights = packaged_for([source])
    return load_model(weights, device).score(source, every_seconds=every_seconds, fps=fps, decoder=decoder)


def random_model(
    kind: Literal["video", "image"] = "video", device: str = "auto", *, mode: str = "sama", **options: Any
) -> QualityModel:
    """A model with random weights (always the same ones), to try things out; its name says that scores mean nothing.

    options: `dtype`, `compile`, `attention` and `engine`, as for `load_model`
    """
    from sama.models.checkpoints import MODELS, SETTINGS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = MODELS[kind]("tiny")
    metadata = {**SETTINGS[kind], "kind": kind, "mode": mode}
    return QualityModel(module.eval(), metadata, "RANDOM WEIGHTS, scores mean nothing", device, **options)


def digest(path: str | os.PathLike[str]) -> str:
    """The first 12 digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def check_metadata(metadata: Mapping[str, Any], name: str) -> None:
    """`CheckpointError` where metadata do not say how to sample for a model, or how it is calibrated."""
    missing = [key for key in REQUIRED[metadata["kind"]] if key not in metadata]
    if missing:
        raise CheckpointError(f"{name} does not say how to sample for it: its metadata lacks {', '.join(missing)}")
    for key in REQUIRED[metadata["kind"]]:
        value = metadata[key]
        sizes = value if key in ("grid", "fragment") else [value]
        if key == "mode":
            good, expected = isinstance(value, str), "the name of a sampling mode"
        else:
            counts = isinstance(sizes, list | tuple) and all(type(n) is int and 0 < n <= MOST for n in sizes)
            pair = key in ("grid", "fragment")
            good, expected = (
                counts and len(sizes) == (2 if pair else 1),
                ("two sizes" if pair else "a number") + f", 1 to {MOST}",
            )
        if not good:
            raise CheckpointError(f"{name}: its metadata say {key} = {value!r}, expected {expected}")
    weights = metadata.get("pair_weights")
    if weights is not None:
        pairs = ceil_div(metadata["clip_len"], PATCH[0]) if metadata["kind"] == "video" else 0
        if not (isinstance(weights, list | tuple) and len(weights) == pairs and all(map(_is_finite, weights))):
            expected = f"{pairs} numbers, one for each pair of frames" if pairs else "none for a model of images"
            raise CheckpointError(f"{name}: its metadata say pair_weights = {weights!r}, expected {expected}")
    scale = metadata.get("scale")
    if scale is not None and not (
        isinstance(scale, dict)
        and isinstance(scale.get("name"), str)
        and all(isinstance(scale.get(end), int | float) for end in ("least", "most"))
    ):
        raise CheckpointError(f"{name}: its metadata say scale = {scale!r}, expected a name, least and most")
    calibration = metadata.get("calibration")
    if not calibration:
        return
    kind = calibration.get("kind") if isinstance(calibration, dict) else None
    numbers: Any = None
    if kind == "linear":
        numbers = [calibration.get("slope"), calibration.get("intercept")]
    elif kind == "logistic":
        numbers = calibration.get("beta")
    good = isinstance(numbers, list | tuple) and len(numbers) == (2 if kind == "linear" else 4)
    good = good and all(_is_finite(number) for number in numbers) and isinstance(calibration.get("scale"), str)
    if not good or (kind == "logistic" and not numbers[3]):
        raise CheckpointError(
            f"{name}: its metadata say calibration = {calibration!r}, expected a scale, and kind linear with slope and "
            "intercept, or kind logistic with beta, four numbers of which the last is not 0"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


class QualityModel:
    """A network, its sampler, and a device: what scores files. `load_model` makes one.

    module: in evaluation mode; metadata: as `sama.models.build` gives it
    name: what scores are attributed to; report: what became of the checkpoint's weights
    sha256: of the weights' file, as `digest` gives it; None where there is no file
    device, dtype, compile, attention, engine: as for `load_model`
    """

    def __init__(
        self,
        module: VideoQuality | ImageQuality,
        metadata: dict[str, Any],
        name: str,
        device: str | torch.device = "auto",
        *,
        dtype: str = "auto",
        compile: bool = False,
        attention: str = "plain",
        engine: str = "eager",
        report: LoadReport | None = None,
        sha256: str | None = None,
    ) -> None:
        self.device = pick_device(device)
        dtype = default_precision(self.device) if dtype == "auto" else dtype
        self.engine = pick_engine(engine, self.device, module.size, dtype)
        compile = compile or self.engine == "compile"
        if compile and self.engine in RUNTIMES:
            raise InputError(f"compile is for torch; got engine {engine!r}")
        check_precision("float32" if dtype == INT8 else dtype, self.device, compiled=compile)
        check_metadata(metadata, name)
        self.module = module.to(self.device)
        choose_attention(self.module, attention, self.device, compiled=compile)
        if compile:
            self.module.compile()
        self.metadata, self.name, self.report, self.sha256 = metadata, name, report, sha256
        self.precision, self.compiled, self.attention = dtype, compile, attention
        self.dtype = DTYPES.get(dtype, torch.float32)  # of int8 what goes in and comes out
        grid, fragment = tuple(metadata["grid"]), tuple(metadata["fragment"])
        self.sampler: VideoSampler | ImageSampler
        if self.kind == "image":
            self.sampler = ImageSampler(metadata["mode"], grid, fragment)
        else:
            layout: OutputLayout = "patches" if fits_patches(self.clip_len, fragment) else "video"
            self.sampler = VideoSampler(metadata["mode"], grid, fragment, dtype=self._input_dtype(), layout=layout)
        self.graphs = Graphs(self._tokens, self.module, enabled=not compile)
        self._by_runtime = tokens_of(self, self.engine) if self.engine in RUNTIMES else None

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which builds anew what belongs to a device."""
        settings: dict[str, Any] = {
            "dtype": self.precision,
            "compile": self.compiled and self.engine != "compile",
            "attention": self.attention,
            "engine": self.engine,
            "report": self.report,
            "sha256": self.sha256,
        }
        parts = copy.deepcopy(self.module).cpu(), self.metadata, self.name, str(self.device)
        return partial(QualityModel, **settings), parts

    def __repr__(self) -> str:
        scale = f", calibrated to {self.scale}" if self.scale else ""
        scale = f", scores in {self.score_scale}" if self.score_scale else scale
        return f"<QualityModel for {self.kind}s: {self.name}; {self.settings}; on {self.device}{scale}>"

    @property
    def kind(self) -> Literal["video", "image"]:
        """What the model scores."""
        return "image" if self.metadata["kind"] == "image" else "video"

    @property
    def clip_len(self) -> int:
        """Frames of a clip."""
        return int(self.metadata["clip_len"])

    @property
    def scale(self) -> str | None:
        """The name of the labels' scale that the checkpoint is calibrated to, if any."""
        calibration = self.metadata.get("calibration")
        return calibration["scale"] if calibration else None

    @property
    def score_scale(self) -> str | None:
        """The name of the scale that scores are on, where the model was made to predict a known one.

        metadata["scale"]: {"name": "VMAF v0.6.1", "least": 0, "most": 100}; each clip's score is kept within
        """
        scale = self.metadata.get("scale")
        return scale["name"] if scale else None

    @property
    def default_batch(self) -> int:
        """Clips that go through the model at once unless the user says otherwise: 1 on a CPU, 8 on a GPU."""
        return 1 if self.device.type == "cpu" else 8

    def describe(self, every_seconds: float | None = None) -> str:
        """What a score depends on beside the weights, in one line. every_seconds: as in `score`"""
        return self.settings if every_seconds is None else f"{self.settings}, one clip every {every_seconds:g} s"

    @property
    def settings(self) -> str:
        """Sampling mode, clips and precision, in one line."""
        dtype = self.precision + (", compiled" if self.compiled else "")
        dtype += f", {label(self.engine)}" if self.engine in RUNTIMES else ""
        dtype += ", fused attention" if self.attention == "fused" else ""
        clips = f"{self.frame_plan()}, " if self.kind == "video" else ""
        return f"{self.metadata['mode']}, {clips}{dtype}"

    def frame_plan(self, every_seconds: float | None = None) -> str:
        """Which frames make a score, in a few words. every_seconds: as in `score`"""
        data = self.metadata
        if self.kind == "image":
            return "the whole image"
        clips = f"of {data['clip_len']} frames, {data['interval']} apart"
        if every_seconds is not None:
            return f"one clip {clips}, every {every_seconds:g} s"
        return f"{'up to ' if data.get('whole_clips') else ''}{data['num_clips']} clips {clips}"

    def attribution(self, every_seconds: float | None = None) -> dict[str, Any]:
        """What every row of scores says of the model, by column of `sama.tables.Row`. every_seconds: as in `score`"""
        return {
            "model": self.name,
            "settings": self.describe(every_seconds),
            "scale": self.score_scale or "",
            "weights_sha256": self.sha256,
            "mode": self.metadata["mode"],
            "plan": self.frame_plan(every_seconds),
            "version": sama.__version__,
        }

    def clip_indices(
        self, num_frames: int, seconds: np.ndarray | None = None, every_seconds: float | None = None
    ) -> np.ndarray:
        """Frame numbers of the clips that make a score, int64 [clips, clip_len].

        seconds: time of every frame, needed with `every_seconds`: one clip from the middle of each window of that
        length; None is the published protocol of a few clips for the whole video

        The published clips run on with the last frame where a video is too short. A model for which that is a fault in
        the video (metadata["whole_clips"]) takes only as many clips as fit, though at least one.
        """
        data = self.metadata
        if every_seconds is None:
            clips = data["num_clips"]
            if data.get("whole_clips"):
                clips = max(1, min(clips, num_frames // (data["clip_len"] * data["interval"])))
            return frame_indices(num_frames, data["clip_len"], clips, data["interval"]).reshape(clips, data["clip_len"])
        if not 0 < every_seconds < math.inf:
            raise InputError(f"windows must be longer than 0 seconds; got {every_seconds}")
        if seconds is None:
            raise InputError("every_seconds needs the time of every frame; got none")
        windows = np.floor(seconds / every_seconds)  # of each frame; a gap in time leaves windows without a clip
        edges = np.concatenate([[0], np.flatnonzero(np.diff(windows)) + 1, [num_frames]])
        span = data["clip_len"] * data["interval"]  # a clip longer than its window goes on beyond it
        starts = edges[:-1] + np.maximum(0, np.diff(edges) - span) // 2
        starts = np.unique(np.minimum(starts, max(0, num_frames - span)))
        indices: np.ndarray = starts[:, None] + np.arange(data["clip_len"]) * data["interval"]
        return np.minimum(indices, num_frames - 1)

    def sample(self, video: Video, every_seconds: float | None = None) -> tuple[np.ndarray, Iterator[torch.Tensor]]:
        """The sampled clips of an open video, and their times.

        Returns the time of the middle frame of each clip, float64 [clips] in seconds, and an iterator over the clips,
        each as soon as it is decoded, in the layout of the sampler. `InputError` for an image model.
        """
        if not isinstance(self.sampler, VideoSampler):
            raise InputError(f"{self.name} scores images; got the video {video.info.path}")
        all_seconds = video.seconds(range(video.info.num_frames)) if every_seconds is not None else None
        indices = self.clip_indices(video.info.num_frames, all_seconds, every_seconds)
        middles = video.seconds(indices[:, self.clip_len // 2].tolist())
        return middles, self.sampler.stream(video, indices)

    def _input_dtype(self) -> torch.dtype:
        """Of sampled clips: on a GPU 16 bits where the network rounds them to that as the first thing it does."""
        rounds = isinstance(self.module, VideoQuality) and self.module.rounds_input
        return self.dtype if rounds and self.device.type == "cuda" else torch.float32

    def _tokens(self, samples: torch.Tensor) -> torch.Tensor:
        return self._by_runtime(samples) if self._by_runtime is not None else self._computed(samples, self.precision)

    def _computed(self, samples: torch.Tensor, precision: str) -> torch.Tensor:
        with computing(precision, self.device):
            tokens: torch.Tensor = self.module(samples)
        return tokens

    @torch.inference_mode()
    def token_maps(self, samples: torch.Tensor) -> torch.Tensor:
        """The values of the model on its tokens, float32 on the CPU: [B, T/2, h, w] of clips, [B, h, w] of images."""
        tokens = self.graphs(samples.to(self.device, non_blocking=True)).float().cpu()
        if self.precision == "float16":  # each sample for itself, so that its value does not depend on the others
            for n in (~tokens.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
                tokens[n] = self._computed(samples[n : n + 1].to(self.device).float(), "float32")[0].float().cpu()
        if self.kind == "video":
            return tokens[:, 0]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.unflatten(1, (side, side))

    def counted(self, maps: torch.Tensor) -> torch.Tensor:
        """Token maps `[..., T/2, h, w]` such that their mean is the score: as they are, or with
        metadata["pair_weights"] each pair of frames as much as it counts. `InputError` for other clips than those."""
        weights = self.metadata.get("pair_weights")
        if weights is None:
            return maps
        if maps.shape[-3] != len(weights):
            raise InputError(
                f"got clips of {maps.shape[-3]} pairs of frames, expected {len(weights)}: {self.name} says what "
                "each of these counts (pair_weights)"
            )
        return maps * (len(weights) * torch.tensor(weights, dtype=maps.dtype)).view(-1, 1, 1)

    def values(self, samples: Sequence[torch.Tensor], batch: int | None = None) -> list[float]:
        """One score for each sample. With `batch`, fewer samples are padded to it, so that the shape never changes."""
        if len({sample.device for sample in samples}) > 1:  # some files were decoded on the GPU, some were not
            samples = [sample.to(self.device) for sample in samples]
        stacked = torch.stack(list(samples))
        if batch and len(stacked) < batch and (self.compiled or self.device.type != "cpu"):
            filling = stacked.new_zeros(batch - len(stacked), *stacked.shape[1:])
            stacked = torch.cat([stacked, filling])
        maps = self.token_maps(stacked)[: len(samples)]
        values: list[float] = self.counted(maps.double()).flatten(1).mean(1).tolist()
        if scale := self.metadata.get("scale"):
            values = [min(max(value, scale["least"]), scale["most"]) for value in values]
        return values

    def mos(self, score: float) -> tuple[float | None, str | None]:
        """The score on the scale that the checkpoint is calibrated to, and the name of that scale.

        metadata["calibration"]: {"scale": name, "kind": "linear", "slope": a, "intercept": b}, or "logistic" with
        "beta": (top, bottom, middle, width) for `bottom + (top - bottom) / (1 + exp(-(score - middle) / |width|))`
        """
        calibration = self.metadata.get("calibration")
        if not calibration:
            return None, None
        if calibration["kind"] == "linear":
            value = calibration["slope"] * score + calibration["intercept"]
        else:
            top, bottom, middle, width = calibration["beta"]
            value = bottom + (top - bottom) * (1 + np.tanh((score - middle) / (2 * abs(width)))) / 2  # never overflows
        return float(value), calibration["scale"]

    def result(self, values: Sequence[float], seconds: Iterable[float], frames: int, width: int, height: int) -> Result:
        """The result of a file. values: scores of its clips; seconds: times of their middle frames, or none"""
        score = float(np.mean(values))
        mos, scale = self.mos(score)
        timeline = tuple(zip(map(float, seconds), values))
        return Result(score, tuple(values), timeline, frames, width, height, mos, scale, self.score_scale)

    def score(
        self,
        source: str | os.PathLike[str] | np.ndarray | torch.Tensor,
        *,
        every_seconds: float | None = None,
        fps: float | None = None,
        decoder: str = "auto",
        limits: Limits | None = None,
    ) -> Result:
        """Score a file, or pixels: uint8 [T, H, W, 3] for a video model, [H, W, 3] for an image model.

        every_seconds: score one clip in each window of this length instead of the published few of the whole video;
            memory does not grow with the length
        fps: frames per second of pixels, for their timeline; decoder: as for `sama.open_video`
        limits: what a file may cost; None is `Limits()`
        `sama.DecodeError` for a file that cannot be read, or is a video for an image model, or the reverse.
        """
        if isinstance(source, np.ndarray | torch.Tensor):
            return self._score_pixels(source, every_seconds, fps)
        check_kind(source, self.kind)
        if self.kind == "image":
            pixels = read_image(source, max_pixels=(limits or Limits()).image_pixels)
            return self._score_pixels(pixels, None, None)
        guard = Guard(os.fsdecode(source), limits or Limits())

        def score_video(video: Video) -> Result:
            seconds, clips = self.sample(video, every_seconds)
            guard.allow_clips(len(seconds))
            values = [value for clip in guard.outside(clips) for value in self.values([clip], 1)]
            info = video.info
            return self.result(values, seconds, info.num_frames, info.width, info.height)

        result = decode_with(score_video, source, decoder=decoder, device=self.device, guard=guard)
        return replace(result, damage=guard.damage)

    def _score_pixels(
        self, pixels: np.ndarray | torch.Tensor, every_seconds: float | None, fps: float | None
    ) -> Result:
        if self.kind == "image":
            values = self.values(list(self.sampler(pixels)), 1)
            return self.result(values, [], 1, pixels.shape[1], pixels.shape[0])
        if pixels.ndim != 4:
            raise InputError(f"a video model scores uint8 [T, H, W, 3]; got shape {list(pixels.shape)}")
        if every_seconds is not None and not fps:
            raise InputError("every_seconds needs the fps of the array")
        seconds = np.arange(len(pixels)) / fps if fps else None
        indices = self.clip_indices(len(pixels), seconds, every_seconds)
        values = [value for clip in indices for value in self.values([self.sampler(pixels[clip])[0]], 1)]
        middles = [] if seconds is None else seconds[indices[:, self.clip_len // 2]].tolist()
        return self.result(values, middles, len(pixels), pixels.shape[2], pixels.shape[1])
