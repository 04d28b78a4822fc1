"""The settings of a training run: dataclasses, filled from a YAML file and the command line (`python -m sama.train`).

The shipped files are in `sama/configs/`; each begins with its cost, its result and the exact command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sama.decode import check_decoder
from sama.errors import InputError
from sama.kernels.layout import PATCH, STEMMED, TOKEN


@dataclass(frozen=True)
class LabelledSet:
    """A further labelled set to score.

    labels: label file; root: folder that its entries are relative to, None for its own; name: of the set in the report
    label: as in `Data`
    """

    labels: str
    root: str | None = None
    name: str = ""
    label: str = ""


@dataclass(frozen=True)
class Data:
    """The labelled files to train, validate and test on.

    labels: label file of any form that `sama.labels` reads
    root: folder that its entries are relative to; None is the label file's own
    label: column of the label file to learn, of a CSV; "" is the one that its form tells (mos, vmaf, ...)
    demo: make a set of photographs, clips and collages, degraded (`sama.corpus`), instead of reading labels: "small" or
        "full"; of images for an image model; "" does not
    demo_folder: folder for that set; its size is added to the name
    split: "column" takes the label file's own column `split`; "protocol" a random 80/20 split by content; "all" trains
        on everything and validates on nothing
    split_number: of the protocol
    train, val, test: names in the column `split`
    tests: further sets, each by its name
    validate: names of the sets to score every `evaluate_every` epochs, of "val", "test" and those of `tests`; the
        others are scored after the last epoch. The first one chooses the best checkpoint and gives the calibration.
        Published results validate on their test sets, so that their best epochs flatter
    scale: name of the labels' scale in the checkpoint's calibration; "" is the label file's name
    augment: mirror inputs, and transpose square ones, at random
    jitter: largest share by which contrast and brightness of inputs are changed at random, for labels that hardly
        depend on them
    soften: largest deviation in pixels of a Gaussian by which inputs are blurred at random, within their fragments: for
        labels that are relative to an undegraded file, which may itself be soft
    rotate: turn images in training by a random angle, as published, which hides fine detail
    cache: folder for sampled inputs: each file is decoded once for each of `draws`, before the first epoch, and the
        epochs read what was sampled. About 0.6 MB for a pair of frames of 224x224; "" decodes in every epoch
    draws: inputs of each training file in the cache; an epoch takes one of them
    reference: column of the label file that names each file's undegraded version, where it shows the same frames; with
        it each 32x32 pixels of training inputs have a label of their own (`sama.training.local`). Needs cache and
        standardise; "" does not
    standardise: train on labels brought to mean 0 and deviation 1. A model that starts from random weights, and whose
        loss depends on the scale, would otherwise spend its time on finding it; the calibration brings scores back
    fragments: rows and columns of fragments that a training input keeps, drawn at random, since a step costs as many;
        for a model with a value for each 32x32 pixels. Without, all of `sampling.grid`
    """

    labels: str = ""
    root: str | None = None
    label: str = ""
    demo: Literal["", "small", "full"] = ""
    demo_folder: str = "runs/demo-data"
    split: Literal["column", "protocol", "all"] = "column"
    split_number: int = 0
    train: str = "train"
    val: str = "val"
    test: str = "test"
    tests: list[LabelledSet] = field(default_factory=list)
    validate: list[str] = field(default_factory=lambda: ["val"])
    scale: str = ""
    augment: bool = False
    jitter: float = 0.0
    soften: float = 0.0
    rotate: bool = True
    cache: str = ""
    draws: int = 1
    reference: str = ""
    standardise: bool = False
    fragments: tuple[int, int] | None = None


@dataclass(frozen=True)
class Model:
    """The network.

    kind: "video" (Swin3D-T with GRPB) or "image" (Swin V2-T)
    size: "tiny", the published one, or "nano", "pico" and "lite", for a laptop; the packaged models are lite
    weights: checkpoint to start from, of any source that `sama weights` reads, or "packaged"; "" starts from random
        weights
    pretrained: checkpoint of EfficientNet-Lite0 to start the stem of a lite model from (docs/models.md)
    whiten: start the patch embedding as a whitening of the training set's patches, so that details, a thousandth of the
        power of a patch, weigh as much as its brightness; for a video model that starts from random weights
    drop_path: stochastic depth of the last block; dropout: of the head and of a nano model's scene statistics
    checkpointing: recompute activations in the backward pass, for less memory and more time
    scale_bias, scale_excitation: the paper's scale encodings (a) and (b), of the video model
    tokens: false makes a nano video model of `SceneStatistics` alone, without a backbone
    """

    kind: Literal["video", "image"] = "video"
    size: Literal["tiny", "nano", "pico", "lite"] = "tiny"
    weights: str = ""
    pretrained: str = ""
    whiten: bool = False
    drop_path: float = 0.1
    dropout: float = 0.5
    checkpointing: bool = False
    scale_bias: bool = False
    scale_excitation: bool = False
    tokens: bool = True


@dataclass(frozen=True)
class Sampling:
    """From files to inputs. The defaults are the published ones for videos; images take a grid of 8x8.

    mode: sampling mode; grid, fragment: fragments (rows, columns) and their pixels (rows, columns)
    clip_len, interval: number of frames of a clip, and their distance in frames
    num_clips: clips of each file in evaluation; training takes one
    """

    mode: str = "sama"
    grid: tuple[int, int] = (7, 7)
    fragment: tuple[int, int] = (32, 32)
    clip_len: int = 32
    interval: int = 2
    num_clips: int = 4


@dataclass(frozen=True)
class Optim:
    """The optimiser: AdamW.

    batch: files in a batch, over all ranks; at least 2 videos, since their losses compare them
    accumulate: batches in a step of the optimiser; each batch has its own loss
    statistics_epochs: first epochs that train only the `SceneStatistics` of a nano video model, which is quick
    lr: learning rate of all but the backbone; backbone_lr: factor of it for the backbone; stem_lr: further factor of
        that for a lite model's pretrained stem
    curriculum: pairs of frames and epochs, such as [[2, 6], [4, 3]]: in the first epochs training clips have only so
        many frames, of a data.cache, since most faults show in a few and a step costs as its frames; then clip_len
    warmup_epochs: length of the warm-up; of its n steps, step k (from 0 on) has (k + 1) / (n + 1) of the rate
    schedule: after the warm-up: "cosine" to 0, or "constant"
    clip_norm: largest norm of the gradients, which are scaled down to it; 0 sets no limit
    ema: decay of the averaged weights, which are evaluated and saved; 0 averages nothing
    rank_weight: weight of the rank loss beside the PLCC loss, for videos
    """

    epochs: int = 30
    statistics_epochs: int = 0
    batch: int = 12
    accumulate: int = 1
    lr: float = 1e-3
    backbone_lr: float = 0.1
    stem_lr: float = 1.0
    weight_decay: float = 0.05
    curriculum: list[tuple[int, int]] = field(default_factory=list)
    warmup_epochs: float = 2.5
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = 0.0
    ema: float = 0.999
    rank_weight: float = 0.3


@dataclass(frozen=True)
class Sweep:
    """Several runs, one after the other, and a table of them at the end; one run for each combination of these lists.

    samplings: as "mode" or "mode ROWSxCOLUMNS ROWSxCOLUMNS" (grid, fragment); seeds; split_numbers: of the protocol
    """

    samplings: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    split_numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """A training run.

    out: folder for checkpoints, logs and the report
    seed: of initial weights, order, draws and dropout
    device: "auto" is the GPU where there is one; dtype: of matrix products (`sama.models.precision`)
    attention: "plain", "fused" (`sama.kernels.attention`), or the faster one (`sama.models.attention`)
    compile: with torch.compile
    workers: number of files decoded at the same time; null is the number of cores, at most 16
    decoder: as for `sama score --decoder`
    evaluate_every: epochs between two validations; the last epoch is always validated
    checkpoint_minutes: time between two resume points within an epoch; each epoch ends with one
    resume: continue from the resume point in `out`, if there is one; otherwise `out` must be new. On a CPU the result
        is that of an uninterrupted run; with another number of ranks, device or decoder nearly so, with a message
    """

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    sampling: Sampling = field(default_factory=Sampling)
    optim: Optim = field(default_factory=Optim)
    sweep: Sweep = field(default_factory=Sweep)
    out: str = "runs/train"
    seed: int = 0
    device: str = "auto"
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    attention: Literal["auto", "plain", "fused"] = "auto"
    compile: bool = False
    workers: int | None = None
    decoder: str = "auto"
    evaluate_every: int = 1
    checkpoint_minutes: float = 10.0
    resume: bool = False

    def __post_init__(self) -> None:
        optim = self.optim
        for name, value, least in (
            ("optim.epochs", optim.epochs, 1),
            ("optim.batch", optim.batch, 2 if self.model.kind == "video" else 1),
            ("optim.accumulate", optim.accumulate, 1),
            ("optim.statistics_epochs", optim.statistics_epochs, 0),
            ("evaluate_every", self.evaluate_every, 1),
            ("sampling.num_clips", self.sampling.num_clips, 1),
            ("sampling.clip_len", self.sampling.clip_len, 1),
            ("sampling.interval", self.sampling.interval, 1),
            ("optim.clip_norm", optim.clip_norm, 0),
            ("optim.lr", optim.lr, 0),
            ("optim.backbone_lr", optim.backbone_lr, 0),
            ("optim.stem_lr", optim.stem_lr, 0),
            ("optim.weight_decay", optim.weight_decay, 0),
            ("optim.warmup_epochs", optim.warmup_epochs, 0),
            ("optim.rank_weight", optim.rank_weight, 0),
            ("data.draws", self.data.draws, 1),
            ("data.soften", self.data.soften, 0),
            ("data.split_number", self.data.split_number, 0),
            ("workers", 1 if self.workers is None else self.workers, 1),
            ("checkpoint_minutes", self.checkpoint_minutes, 0),
            *(("seed", seed, 0) for seed in (self.seed, *self.sweep.seeds)),
            *(("sweep.split_numbers", number, 0) for number in self.sweep.split_numbers),
        ):
            if not value >= least:
                raise InputError(f"{name} must be at least {least}; got {value}")
        for name, share in (
            ("optim.ema", optim.ema),
            ("data.jitter", self.data.jitter),
            ("model.dropout", self.model.dropout),
            ("model.drop_path", self.model.drop_path),
        ):
            if not 0 <= share < 1:
                raise InputError(f"{name} must be in [0, 1); got {share}")
        check_decoder(self.decoder)
        check_curriculum(optim.curriculum, self.sampling.clip_len)
        if not self.data.cache and (optim.curriculum or self.data.draws > 1):
            raise InputError("optim.curriculum and data.draws are for sampled inputs that are kept: give data.cache")
        if self.data.reference and not (self.data.cache and self.data.standardise):
            raise InputError("data.reference needs data.cache and data.standardise true")
        whole = self.model.size in STEMMED and not any(side % TOKEN for side in self.sampling.fragment)
        if self.data.reference and (self.data.demo or not whole):
            raise InputError(
                f"data.reference is for a label file, and a model of size {' or '.join(STEMMED)}, which has a value "
                f"for each 32x32 pixels, on fragments of whole such squares; got a {self.model.size} model, "
                f"{'x'.join(map(str, self.sampling.fragment))}" + (" and data.demo" if self.data.demo else "")
            )
        kept, there = self.data.fragments, self.sampling.grid
        if kept and not (whole and all(1 <= some <= count for some, count in zip(kept, there))):
            raise InputError(
                f"data.fragments is for a model of size {' or '.join(STEMMED)} on fragments of whole squares of 32x32, "
                f"and at most sampling.grid; got {'x'.join(map(str, kept))} of {'x'.join(map(str, there))} and a "
                f"{self.model.size} model on {'x'.join(map(str, self.sampling.fragment))}"
            )
        if kept and self.model.kind == "image" and kept[0] != kept[1]:
            raise InputError(f"data.fragments of images must be square; got {'x'.join(map(str, kept))}")
        model = self.model
        if model.pretrained and (model.size != "lite" or model.weights):
            raise InputError(
                f"model.pretrained starts a model of size lite, without model.weights; got size {model.size}"
                + (f" and {model.weights}" if model.weights else "")
            )
        if model.whiten and (model.weights or model.kind != "video" or model.size in STEMMED):
            raise InputError(
                "model.whiten is for a video model that starts from random weights, without model.weights; not for "
                f"{' or '.join(STEMMED)}"
            )
        if (optim.statistics_epochs or not model.tokens) and (model.kind, model.size) != ("video", "nano"):
            raise InputError(
                "optim.statistics_epochs and model.tokens=false are for a nano video model, which alone has scene "
                f"statistics; got a {model.size} {model.kind} model"
            )
        if optim.statistics_epochs and model.weights:
            raise InputError(
                "optim.statistics_epochs is for a model that starts from random weights, not model.weights"
            )
        if optim.statistics_epochs >= optim.epochs:
            raise InputError(
                "optim.statistics_epochs must be fewer than optim.epochs, so that the backbone learns too; got "
                f"{optim.statistics_epochs} and {optim.epochs}: give both (model.tokens false leaves the backbone out)"
            )
        if bool(self.data.labels) == bool(self.data.demo):
            raise InputError(
                "data.labels (a label file) or data.demo (small, full) says what to learn from, one of them; got "
                f"data.labels={self.data.labels!r}, data.demo={self.data.demo!r}"
            )


def check_curriculum(curriculum: Sequence[Sequence[int]], clip_len: int) -> None:
    """`InputError` for a curriculum that is none."""
    for entry in curriculum:
        if len(entry) != 2 or not (0 < entry[0] <= clip_len and entry[0] % PATCH[0] == 0 and entry[1] > 0):
            raise InputError(
                f"optim.curriculum must be pairs of frames (a multiple of {PATCH[0]}, at most sampling.clip_len = "
                f"{clip_len}) and epochs; got {list(entry)}"
            )


def frames_of_epoch(config: Config, epoch: int) -> int:
    """Frames of a training clip in an epoch, by the curriculum."""
    for frames, epochs in config.optim.curriculum:
        if epoch < epochs:
            return frames
        epoch -= epochs
    return config.sampling.clip_len
