"""What a run needs before its first step: labelled sets, feeds, the network and its initial weights."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sama.backends import MEAN, STD
from sama.errors import InputError
from sama.feed import Feed
from sama.kernels.layout import PATCH, STEMMED, OutputLayout, fits_patches, is_patches
from sama.labels import Item, leakage, named_split, protocol_split, read_labels, with_split
from sama.model import find_weights
from sama.models import ImageQuality, VideoQuality, load_weights
from sama.models.lite import LiteStem
from sama.models.reading import read_metadata
from sama.models.swin3d import cut_patches
from sama.sampler import ImageSampler, VideoSampler
from sama.training.cache import CachedFeed
from sama.training.config import Config, Data
from sama.training.ranks import Ranks

WHITENING_FILES = 64
WHITENING_FLOOR = 1e-4  # below the power of the weakest component of natural patches
LEAST_DEVIATION = 0.01  # of a scene statistic, which is a logarithm

Sets = dict[str, list[Item]]


def datasets(config: Config) -> Sets:
    """The items of each set by its name: "train", "val", "test" and the further test sets, as far as there are any.

    Makes the demo's set first where the config asks for it. `InputError` where sets overlap, share contents that would
    make results flatter, or are empty.
    """
    data = config.data
    labels, root = (_demo_labels(config), None) if data.demo else (data.labels, data.root)
    items = read_labels(labels, root, label=data.label)
    if data.split == "column":
        sets = _column_splits(items, data)
    elif data.split == "protocol":
        train, val = protocol_split(items, data.split_number)
        sets = {"train": train, "val": val}
    else:
        sets = {"train": items}
    trained_on = {os.path.realpath(item.path) for item in sets["train"]} if data.tests else set()
    for test in data.tests:
        name = test.name or Path(test.labels).stem
        if name in sets:
            raise InputError(f"two sets are called {name!r}: give each of data.tests a name of its own")
        sets[name] = read_labels(test.labels, test.root, label=test.label)
        both = [item.path for item in sets[name] if os.path.realpath(item.path) in trained_on]
        if both:
            raise InputError(f"{len(both)} files of set {name!r} are in the training set too: {', '.join(both[:3])}")
    known = sorted({*sets} - {"train"})
    unknown = [name for name in data.validate if name not in (*known, "val")]
    if unknown:
        raise InputError(f"data.validate names {', '.join(map(repr, unknown))}; the sets are {', '.join(known)}")
    return sets


def _demo_labels(config: Config) -> Path:
    """The label file of the demo's set, which is made first if it is not there."""
    from sama.corpus.make import make

    images = config.model.kind == "image"
    folder = f"{config.data.demo_folder}-{config.data.demo}{'-images' if images else ''}"
    with _progress(f"making the demo set in {folder}", "file") as progress:
        return make(folder, size=config.data.demo or "small", images=images, progress=progress)


def _column_splits(items: Sequence[Item], data: Data) -> Sets:
    """The splits that the label file's own column names; contents of "test" must not be trained on."""
    train, val = named_split(items, data.train, data.val)
    sets = {"train": train, "val": val}
    if not any(item.split == data.test for item in items):
        return sets
    sets["test"] = with_split(items, data.test)
    shared = leakage({"train": train, "test": sets["test"]})
    if shared:
        raise InputError(f"{len(shared)} contents are in {data.train} and {data.test}: {', '.join([*shared][:5])}")
    shared = leakage({"val": val, "test": sets["test"]})
    if shared:
        print(
            f"{len(shared)} contents are in {data.val}, which chooses the best checkpoint, and in {data.test}: "
            f"{', '.join([*shared][:5])}",
            file=sys.stderr,
        )
    return sets


@contextmanager
def _progress(title: str, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, as a function to call with (done, all)."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, leave=False, disable=quiet or None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def check_some_exist(sets: Mapping[str, Sequence[Item]]) -> None:
    """`InputError` for a set of which no file exists: most likely its root is wrong, and the user learns it at once."""
    for name, items in sets.items():
        if not any(os.path.exists(item.path) for item in items):
            raise InputError(
                f"none of the {len(items)} files of the set {name!r} exists, the first of them {items[0].path}: is the "
                "root right (data.root, or that of data.tests)?"
            )


def make_model(config: Config) -> VideoQuality | ImageQuality:
    """The network, its initial weights drawn from the seed and then replaced by those in `model.weights`, if given."""
    settings = config.model
    common: dict[str, Any] = {
        "drop_path": settings.drop_path,
        "dropout": settings.dropout,
        "checkpointing": settings.checkpointing,
    }
    model: VideoQuality | ImageQuality
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if settings.kind == "image":
            grid: dict[str, Any] = {"grid": config.sampling.grid} if settings.size in STEMMED else {}
            model = ImageQuality(settings.size, **grid, **common)
        else:
            model = VideoQuality(
                settings.size,
                grid=config.sampling.grid,
                scale_bias=settings.scale_bias,
                scale_excitation=settings.scale_excitation,
                scale_steps=config.sampling.clip_len // PATCH[0],
                tokens=settings.tokens,
                **common,
            )
    if settings.weights:
        print(load_weights(model, find_weights(settings.weights)), file=sys.stderr)
    return model


@torch.no_grad()
def start_standardised(model: VideoQuality | ImageQuality, config: Config, items: Sequence[Item]) -> None:
    """With `data.standardise`, bring a start from weights whose scores have a scale, as the packaged models' have, to
    labels of mean 0 and deviation 1 over `items`; it would be far off at first."""
    head = model.head
    if not (config.data.standardise and config.model.weights) or head is None:
        return
    if "scale" not in read_metadata(find_weights(config.model.weights)):
        return
    mean, deviation = _mean_and_deviation(items)
    head.fc_last.weight.div_(deviation)
    head.fc_last.bias.sub_(mean).div_(deviation)


def _mean_and_deviation(items: Sequence[Item]) -> tuple[float, float]:
    """Of the labels; a deviation of 1 where they are all equal."""
    labels = np.array([item.mos for item in items])
    return float(labels.mean()), float(labels.std() or 1.0)


def make_feed(
    config: Config, items: Sequence[Item], ranks: Ranks, *, name: str = "", train: bool = False
) -> Feed | CachedFeed:
    """The feed of a set; this rank's share of every batch. With a name and `data.cache`, its inputs are sampled once,
    before this returns, and kept."""
    if not config.data.cache or not name:
        return _feed(config, items, ranks, train=train)
    feed = _feed(config, items, ranks, train=train, normalize=False)
    if not feed.images and not fits_patches(config.sampling.clip_len, config.sampling.fragment):
        raise InputError(
            f"data.cache keeps whole patches of {'x'.join(map(str, PATCH))} (frames, rows, columns); got clips of "
            f"{config.sampling.clip_len} frames and fragments of {'x'.join(map(str, config.sampling.fragment))}"
        )
    with _progress(f"sampling {name}", "file", quiet=not ranks.first) as progress:
        references = undegraded(config, items) if train else ()
        cached = CachedFeed(
            feed, config.data.cache, name, draws=config.data.draws, references=references, progress=progress
        )
    if cached.unmeasured and ranks.first:
        path, why = cached.unmeasured[0]
        print(
            f"{len(cached.unmeasured)} undegraded files could not be sampled, the first {path}: {why}", file=sys.stderr
        )
    return cached


def undegraded(config: Config, items: Sequence[Item]) -> list[str]:
    """The paths of the items' undegraded versions, "" where a version shows other frames (column `aligned` below 1) or
    none is named; empty without `data.reference`. `InputError` where the label file has no such column."""
    column, data = config.data.reference, config.data
    if not column:
        return []
    if not any(item.extra.get(column) for item in items):
        raise InputError(f"{data.labels} names no undegraded file: its column {column!r} is missing or empty")
    root = data.root or os.path.dirname(data.labels)
    same = [float(item.extra.get("aligned") or 1) >= 1 for item in items]
    names = [item.extra.get(column, "") if aligned else "" for item, aligned in zip(items, same)]
    return [os.path.join(root, name) if name else "" for name in names]


def _feed(config: Config, items: Sequence[Item], ranks: Ranks, *, train: bool = False, normalize: bool = True) -> Feed:
    sampling = config.sampling
    grid, fragment = sampling.grid, sampling.fragment
    sampler: VideoSampler | ImageSampler
    if config.model.kind == "image":
        sampler, clips = ImageSampler(sampling.mode, grid, fragment, normalize=normalize), 1
    else:
        layout: OutputLayout = "patches" if fits_patches(sampling.clip_len, fragment) else "video"
        sampler = VideoSampler(sampling.mode, grid, fragment, normalize=normalize, layout=layout)
        clips = 1 if train else sampling.num_clips
    labels = np.array([item.mos for item in items])
    if train and config.data.standardise:
        mean, deviation = _mean_and_deviation(items)
        labels = (labels - mean) / deviation
    return Feed(
        [item.path for item in items],
        sampler,
        labels=labels.tolist(),
        batch=config.optim.batch,
        clip_len=sampling.clip_len,
        num_clips=clips,
        interval=sampling.interval,
        train=train,
        seed=config.seed,
        rank=ranks.rank,
        ranks=ranks.world_size,
        workers=config.workers,
        decoder=config.decoder,
        device=ranks.device,
        rotate=config.data.rotate,
    )


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Groups for the optimiser: the head (and scene statistics) at the learning rate, the backbone at its share; where
    the stem has a share of that, it is the third."""
    optim = config.optim
    names = ["backbone.", *(["backbone.stem."] if optim.stem_lr != 1 else [])]
    groups: list[list[nn.Parameter]] = [[] for _ in range(len(names) + 1)]
    for name, parameter in model.named_parameters():
        groups[sum(map(name.startswith, names))].append(parameter)
    rates = optim.lr, optim.lr * optim.backbone_lr, optim.lr * optim.backbone_lr * optim.stem_lr
    return [{"params": group, "lr": rate} for group, rate in zip(groups, rates)]


@torch.no_grad()
def start_pretrained(model: VideoQuality | ImageQuality, config: Config, items: Sequence[Item], ranks: Ranks) -> None:
    """Start the stem of a lite model from `model.pretrained`, and measure what it describes on some training files.

    `InputError` for a file that is no checkpoint of EfficientNet-Lite0.
    """
    path = config.model.pretrained
    assert model.backbone is not None
    stem = model.backbone.stem
    assert isinstance(stem, LiteStem)
    mean, std = (torch.tensor(values) for values in (MEAN, STD))
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            stem.start(weights, mean, std)
    except (OSError, ValueError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"model.pretrained {path} is no checkpoint of EfficientNet-Lite0: {error}") from None
    x = _some_inputs(config, items, ranks)
    described = torch.cat([stem.describe(some) for some in x.split(8)]).flatten(0, -2)
    stem.deviation.copy_(described.std(0) + LEAST_DEVIATION)
    stem.centre.copy_(described.mean(0))


@torch.no_grad()
def whiten(model: VideoQuality, config: Config, items: Sequence[Item], ranks: Ranks) -> None:
    """Start the patch embedding as a whitening of patches of `WHITENING_FILES` files.

    Its rows become the principal components of the patches, scaled to deviation 1. A nano model gets every component
    with either sign, so that the GELU passes on its strength; a wider one as many components as tokens have channels,
    from the strongest to the weakest at even steps. The scene statistics of a nano model measure the same components,
    and are brought to mean 0 and deviation 1 over those files.
    """
    x = _some_inputs(config, items, ranks)
    patches = x.flatten(0, -2)[::7].double()
    power, directions = torch.linalg.eigh(torch.cov(patches.T))
    weight = (directions / (power.clamp_min(0) + WHITENING_FLOOR).sqrt()).T
    mean = patches.mean(0)
    statistics = model.statistics
    if statistics is not None:
        statistics.proj.weight.copy_(weight)
        statistics.proj.bias.copy_(-weight @ mean)
        deviation, centre = torch.std_mean(statistics.measure(x), 0, correction=0)
        statistics.centre.copy_(centre)
        statistics.deviation.copy_(deviation + LEAST_DEVIATION)
    if model.backbone is None:
        return
    embed = model.backbone.patch_embed
    assert embed is not None
    if embed.mix is None:
        weight = weight[torch.linspace(len(weight) - 1, 0, embed.proj.out_features).round().long()]
    else:
        embed.mix.weight[:, len(weight) :] = embed.mix.weight[:, : len(weight)]
        weight = torch.cat([weight, -weight])
    embed.proj.weight.copy_(weight)
    embed.proj.bias.copy_(-weight @ mean)


def _some_inputs(config: Config, items: Sequence[Item], ranks: Ranks) -> Tensor:
    """Patches of `WHITENING_FILES` of the files."""
    feed = make_feed(config, items[:: max(1, len(items) // WHITENING_FILES)], Ranks.alone(ranks.device), train=True)
    inputs = [batch.x for batch in feed.epoch() if batch.x is not None]
    if not inputs:
        raise InputError("none of the files that initial weights are measured on could be read")
    x = torch.cat(inputs)
    if x.ndim == 4:
        x = x[:, :, None].expand(-1, -1, PATCH[0], -1, -1)
    return x if is_patches(x.shape) else cut_patches(x)
