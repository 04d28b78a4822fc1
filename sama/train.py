"""Training: `python -m sama.train` (or `sama train`), one straight script.

python -m sama.train                                       # the demo: no data needed, a laptop is enough
python -m sama.train --config lsvq --data.root LSVQ        # a shipped config, with overrides
python -m sama.train --config mine.yaml --optim.epochs 5
torchrun --nproc-per-node 8 -m sama.train --config lsvq    # batches shared among 8 GPUs, the losses over whole batches

What is random depends on the seed, the place in training and, for dropout and augmentation, the rank, so a run that is
killed and gone on with (`--resume true`) ends with the weights of one that was left alone: to the bit on a CPU; on a
GPU some sums are in no fixed order. Batches are the same on any number of ranks.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sama.config import Config
from sama.data import Item, leakage, named_split, protocol_split, read_labels, with_split
from sama.devices import pick_device
from sama.errors import InputError
from sama.feed import Batch, Feed
from sama.files import replace_file
from sama.kernels.layout import PATCH
from sama.losses import image_loss, video_loss
from sama.report import Log, write_sweep
from sama.sampler import ImageSampler, VideoSampler

CONFIGS = Path(__file__).parent / "configs"
WHITENING_FILES, WHITENING_FLOOR = 64, 1e-4  # the floor is below the power of an image's weakest component
LEAST_DEVIATION = 0.01  # of a statistic, a logarithm
MAY_CHANGE = {
    "out",
    "device",
    "workers",
    "decoder",
    "checkpoint_minutes",
    "resume",
    "sweep",
}  # when a run is gone on with


def train(config: Config) -> dict[str, Any]:
    """One run: train, validate, test, report. Returns what it wrote to `OUT/report.json`."""
    ranks = Ranks.join(config.device)
    out = Path(config.out)
    sets = datasets(config)
    check_some_exist(sets)
    state = read_state(out, config, sets, ranks)

    model = make_model(config).to(ranks.device)
    if config.model.whiten and not state.tensors:
        whiten(model, config, sets["train"], ranks)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.optim.weight_decay)
    feed = make_feed(config, sets["train"], ranks, train=True)
    feeds = {name: make_feed(config, items, ranks) for name, items in sets.items() if name != "train"}
    validated = [name for name in config.data.validate if name in feeds]
    steps_an_epoch = -(-len(feed) // config.optim.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps_an_epoch, config))
    if state.tensors:
        model.load_state_dict(state.tensors["model"])
        ema.load_state_dict(state.tensors["ema"])
        optimizer.load_state_dict(state.tensors["optimizer"])
        schedule.load_state_dict(state.tensors["schedule"])
        state.tensors = {}
    if config.compile:
        model.compile()
    some_unused = config.optim.statistics_epochs > 0
    parallel = DistributedDataParallel(model, find_unused_parameters=some_unused) if ranks.count > 1 else model
    log = Log(out, config, sets, feed, state.failed, quiet=not ranks.first)

    finals = {}
    for epoch in range(state.epoch, config.optim.epochs):
        log.begin(epoch, state.batch, state.losses)
        model.without_tokens = ema.without_tokens = epoch < config.optim.statistics_epochs
        model.train()
        for batch in feed.epoch(epoch, start=state.batch):
            last = batch.index + 1 == len(feed)
            stepping = last or (batch.index + 1) % config.optim.accumulate == 0
            waits = nullcontext() if stepping or ranks.count == 1 else parallel.no_sync()
            with waits:
                with own_randomness(ranks, config.seed, epoch, batch.index), autocast(config, ranks):
                    prediction = predict(parallel, batch, config, ranks)
                everyones, labels = ranks.gather(prediction), ranks.gather(batch.labels)
                loss = objective(everyones, labels, config)
                (loss * ranks.count / together(batch.index, len(feed), config)).backward()  # averaged over ranks
            log.batch(batch, loss, everyones, labels)
            if stepping:
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or math.inf)
                if not norm.isfinite():  # the same on all ranks; the last checkpoint stays good
                    raise InputError(
                        f"gradients are not finite in epoch {epoch + 1}, batch {batch.index + 1}: lower lr"
                    )
                lr = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                average(ema, model, config.optim.ema)
                log.step(epoch, batch, norm, lr)
                if log.checkpoint_is_due() and not last:
                    state.epoch, state.batch, state.losses = epoch, batch.index + 1, log.losses
                    save_state(out, config, state, model, ema, optimizer, schedule)
        state.epoch, state.batch, state.losses = epoch + 1, 0, []

        log.failures([failed for part in ranks.all(log.failed) for failed in part.items()])
        if sum(ranks.all(log.files)) == 0 and log.started_whole:
            raise InputError(f"none of the {len(sets['train'])} training files could be read: {log.first_failure()}")
        final = epoch + 1 == config.optim.epochs
        record = log.end(epoch)
        if validated and (final or (epoch + 1) % config.evaluate_every == 0):
            scores = {name: score_feed(ema, feeds[name], config, ranks) for name in validated}
            record["validation"] = {name: log.validate(epoch, name, scores[name]) for name in validated}
            if final:
                finals = scores
            if ranks.first and is_best(validated[0], record, state.history):
                chosen = scores[validated[0]], sets[validated[0]]
                save_model(out / "best.safetensors", ema, config, sets["train"], record, *chosen)
        state.history.append(record)
        if ranks.first:
            save_state(out, config, state, model, ema, optimizer, schedule)

    finals = {name: finals.get(name) or score_feed(ema, feeds[name], config, ranks) for name in feeds}
    report = {}
    if ranks.first:
        chosen = (finals[validated[0]], sets[validated[0]]) if validated else ()
        save_model(out / "last.safetensors", ema, config, sets["train"], state.history[-1], *chosen)
        report = log.report(state.history, finals)
    ranks.leave()
    return report


def predict(model: nn.Module, batch: Batch, config: Config, ranks: Ranks) -> Tensor:
    """The scores that go into the loss, float32 [B]: for clips summed over time, as published (SPEC of the losses)."""
    if batch.x is None:  # nothing could be read: the other ranks wait for this one's part all the same
        shape = (1, 3, config.sampling.clip_len, 32, 32) if config.model.kind == "video" else (1, 3, 256, 256)
        return model(torch.zeros(shape, device=ranks.device)).flatten()[:0].float()
    tokens = model(augment(batch.x) if config.data.augment else batch.x)
    if config.model.kind == "image":
        return tokens.float().mean(1)
    return tokens.float().mean((1, 3, 4)).sum(1)


def objective(prediction: Tensor, labels: Tensor, config: Config) -> Tensor:
    """The loss of a whole batch; zero for an empty one."""
    if not len(labels):
        return prediction.sum()
    if config.model.kind == "image":
        return image_loss(prediction, labels)
    return video_loss(prediction, labels, config.optim.rank_weight)


def together(index: int, batches: int, config: Config) -> int:
    """How many batches make the optimiser's step that batch `index` of an epoch goes into: fewer at its end."""
    count = config.optim.accumulate
    return min(count, batches - index // count * count)


def rate(step: int, steps_an_epoch: int, config: Config) -> float:
    """Factor of the learning rate before step number `step`: linear warm-up, then a cosine to 0, or constant."""
    warm = config.optim.warmup_epochs * steps_an_epoch
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.optim.schedule == "constant":
        return 1.0
    total = config.optim.epochs * steps_an_epoch
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, total - warm))))


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """The backbone at its share of the learning rate, what makes a score of its features at the full one."""
    head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    rest = [p for name, p in model.named_parameters() if name.startswith("backbone.")]
    lr = config.optim.lr
    return [{"params": head, "lr": lr}, {"params": rest, "lr": lr * config.optim.backbone_lr}]


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float):
    """ema = decay * ema + (1 - decay) * model."""
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in model.parameters()], 1 - decay)


@contextmanager
def own_randomness(ranks: Ranks, seed: int, *place: int):
    """Dropout and stochastic depth drawn from the seed and the place in training, whatever was drawn before."""
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, *place, ranks.rank]).generate_state(1)[0]))
        yield


def augment(x: Tensor) -> Tensor:
    """Inputs [B, 3, T, H, W], images [B, 3, H, W] or patches [B, T/2, H/4, W/4, 96], each mirrored or not, and turned
    over a diagonal or not."""
    patches = x.ndim == 5 and x.shape[-1] == 3 * math.prod(PATCH)
    views = x.unflatten(-1, (3, *PATCH)) if patches else x
    rows, columns = ((1, 5), (2, 6)) if patches else ((x.ndim - 3,), (x.ndim - 2,))  # axes of one sample
    changed = []
    for sample, (turn, mirror) in zip(views, torch.rand(len(x), 2).tolist()):
        if turn < 0.5 and sample.shape[rows[0]] == sample.shape[columns[0]]:
            for row, column in zip(rows, columns):
                sample = sample.transpose(row, column)
        changed.append(sample.flip(columns) if mirror < 0.5 else sample)
    changed = torch.stack(changed)
    return changed.flatten(-4) if patches else changed


@torch.no_grad()
def whiten(model: nn.Module, config: Config, items: Sequence[Item], ranks: Ranks):
    """Make the patch embedding a whitening of patches of `WHITENING_FILES` files: principal components of deviation 1.
    Of a nano model all of them with either sign, so that with the GELU their strengths are what goes on; else as many
    as it has tokens' channels, from the strongest to the weakest at even steps. A nano model's scene statistics are of
    the same components, and are brought to mean 0 and deviation 1 over those files."""
    from sama.models.swin3d import cut_patches

    alone = Ranks(0, 1, ranks.device)
    feed = make_feed(config, items[:: max(1, len(items) // WHITENING_FILES)], alone, train=True)
    inputs = [batch.x for batch in feed.epoch() if batch.x is not None]
    if not inputs:
        raise InputError("model.whiten: none of the files could be read")
    x = torch.cat(inputs)
    x = x if x.shape[-1] == 3 * math.prod(PATCH) and x.shape[1] != 3 else cut_patches(x)
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
    if embed.mix is None:
        weight = weight[torch.linspace(len(weight) - 1, 0, embed.proj.out_features).round().long()]
    else:
        embed.mix.weight[:, len(weight) :] = embed.mix.weight[:, : len(weight)]
        weight = torch.cat([weight, -weight])
    embed.proj.weight.copy_(weight)
    embed.proj.bias.copy_(-weight @ mean)


def autocast(config: Config, ranks: Ranks):
    return torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")


# Data and model


def datasets(config: Config) -> dict[str, list[Item]]:
    """The items of each set: "train", "val", "test" and the further test sets, those that have any."""
    data = config.data
    labels, root = data.labels, data.root
    if data.demo:
        from tqdm import tqdm

        from sama.corpus.make import make

        images = config.model.kind == "image"
        folder = f"{data.demo_folder}-{data.demo}{'-images' if images else ''}"
        with tqdm(desc=f"making the demo set in {folder}", unit="file", leave=False, disable=None) as bar:

            def progress(done: int, total: int):
                bar.total = total
                bar.update(done - bar.n)

            labels, root = make(folder, size=data.demo, images=images, progress=progress), None
    items = read_labels(labels, root)
    if data.split == "column":
        train, val = named_split(items, data.train, data.val)
        sets = {"train": train, "val": val}
        if any(item.split == data.test for item in items):
            sets["test"] = with_split(items, data.test)
            shared = leakage({"train": train, "test": sets["test"]})
            if shared:
                raise InputError(
                    f"{len(shared)} contents are in {data.train} and {data.test}: {', '.join([*shared][:5])}"
                )
            shared = leakage({"val": val, "test": sets["test"]})
            if shared:
                print(
                    f"{len(shared)} contents are in {data.val}, which chooses the best checkpoint, and in {data.test}: "
                    f"{', '.join([*shared][:5])}",
                    file=sys.stderr,
                )
    elif data.split == "protocol":
        train, val = protocol_split(items, data.split_number)
        sets = {"train": train, "val": val}
    else:
        sets = {"train": items}
    learnt = {os.path.realpath(item.path) for item in sets["train"]} if data.tests else set()
    for test in data.tests:
        name = test.name or Path(test.labels).stem
        if name in sets:
            raise InputError(f"two sets are called {name!r}: give each of data.tests a name of its own")
        sets[name] = read_labels(test.labels, test.root)
        both = [item.path for item in sets[name] if os.path.realpath(item.path) in learnt]
        if both:
            raise InputError(f"{len(both)} files of set {name!r} are in the training set too: {', '.join(both[:3])}")
    known = sorted({*sets} - {"train"})
    unknown = [name for name in data.validate if name not in (*known, "val")]
    if unknown:
        raise InputError(f"data.validate names {', '.join(map(repr, unknown))}; the sets are {', '.join(known)}")
    return sets


def check_some_exist(sets: dict[str, list[Item]]):
    """ValueError for a set of which no file exists: most likely its root is wrong, which is to come out at once."""
    for name, items in sets.items():
        if not any(os.path.exists(item.path) for item in items):
            raise InputError(
                f"none of the {len(items)} files of the set {name!r} exists, the first of them {items[0].path}: is the "
                "root right (data.root, or that of data.tests)?"
            )


def make_model(config: Config) -> nn.Module:
    """The network, its initial weights drawn from the seed, then loaded over from `model.weights`."""
    from sama.models import ImageQuality, VideoQuality, load_weights

    told = config.model
    common = {"drop_path": told.drop_path, "dropout": told.dropout, "checkpointing": told.checkpointing}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if told.kind == "image":
            model = ImageQuality(told.size, **common)
        else:
            encodings = {"scale_bias": told.scale_bias, "scale_excitation": told.scale_excitation}
            steps = config.sampling.clip_len // 2
            grid = tuple(config.sampling.grid)
            model = VideoQuality(told.size, grid=grid, scale_steps=steps, tokens=told.tokens, **encodings, **common)
    if told.weights:
        print(load_weights(model, told.weights), file=sys.stderr)
    return model


def make_feed(config: Config, items: Sequence[Item], ranks: Ranks, *, train: bool = False) -> Feed:
    """The feed of a set: in training this rank's share of every batch, in evaluation of all files."""
    told = config.sampling
    geometry = {"grid": tuple(told.grid), "fragment": tuple(told.fragment)}
    if config.model.kind == "image":
        sampler, clips = ImageSampler(told.mode, **geometry), 1
    else:
        fits = told.clip_len % 2 == 0 and all(size % 4 == 0 for size in told.fragment)
        sampler = VideoSampler(told.mode, **geometry, layout="patches" if fits else "video")
        clips = 1 if train else told.num_clips
    labels = np.array([item.mos for item in items])
    if train and config.data.standardise:
        labels = (labels - labels.mean()) / (labels.std() or 1.0)
    return Feed(
        [item.path for item in items],
        sampler,
        labels=labels,
        batch=config.optim.batch,
        clip_len=told.clip_len,
        num_clips=clips,
        interval=told.interval,
        train=train,
        seed=config.seed,
        rank=ranks.rank,
        ranks=ranks.count,
        workers=config.workers,
        decoder=config.decoder,
        device=ranks.device,
    )


@torch.inference_mode()
def score_feed(model: nn.Module, feed: Feed, config: Config, ranks: Ranks) -> dict[str, Any]:
    """Scores of all files: {"scores": {number: score}, "failed": [(path, reason)]}, the same on every rank."""
    model.eval()
    scores, failed = {}, []
    for batch in feed.epoch():
        failed += batch.failed
        if batch.x is not None:
            with autocast(config, ranks):
                values = model.score(batch.x).double().reshape(len(batch), -1).mean(1)
            scores.update(zip(batch.numbers.tolist(), values.tolist()))
    everyones = ranks.all({"scores": scores, "failed": failed})
    merged = {number: score for part in everyones for number, score in part["scores"].items()}
    return {"scores": dict(sorted(merged.items())), "failed": [f for part in everyones for f in part["failed"]]}


# Ranks


@dataclass(frozen=True)
class Ranks:
    """This process among those that `torchrun` has started; alone without it."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> Ranks:
        count = int(os.environ.get("WORLD_SIZE", "1"))
        chosen = pick_device(device)
        if count == 1:
            return cls(0, 1, chosen)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(chosen)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(dist.get_rank(), count, chosen)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """The values [n] of all ranks, one after the other; n may differ. Gradients flow to this rank's part."""
        if self.count == 1:
            return values
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(values)], device=self.device))
        longest = max(int(size) for size in sizes)
        if not longest:
            return values
        padded = torch.zeros(longest, dtype=values.dtype, device=self.device)
        padded[: len(values)] = values.detach()
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        parts = [part[: int(size)] for part, size in zip(parts, sizes)]
        parts[self.rank] = values
        return torch.cat(parts)

    def all(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def leave(self):
        if self.count > 1:
            dist.barrier()


# Checkpoints


@dataclass
class State:
    """Where training is: the next batch, what became of the epochs before, the losses of the batches before in its
    epoch, files that could not be read; what a run that goes on exactly has in common with the one before: a digest of
    the sets, and on what it runs; and the tensors of a checkpoint."""

    epoch: int = 0
    batch: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    digest: str = ""
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)


KEPT = ("epoch", "batch", "history", "losses", "failed", "digest", "where")  # of a State, in a checkpoint


def told(config: Config) -> dict[str, Any]:
    """The part of a config that a run's result depends on, as plain data."""
    return {key: value for key, value in json.loads(json.dumps(asdict(config))).items() if key not in MAY_CHANGE}


def digest(sets: dict[str, list[Item]]) -> str:
    """Changes with every file and label of the sets, and their order."""
    said = {name: [(item.path, item.mos, item.group) for item in items] for name, items in sets.items()}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def read_state(out: Path, config: Config, sets: dict[str, list[Item]], ranks: Ranks) -> State:
    """The state to go on from. ValueError where `out` holds a run and the config does not resume it, or it is one of
    other settings or labels."""
    path = out / "last.pt"
    where = {"ranks": ranks.count, "device": ranks.device.type, "decoder": config.decoder}
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        return State(digest=digest(sets), where=where)
    if not config.resume:
        raise InputError(f"{out} holds a run already: --resume true goes on with it, or give another --out")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["config"] != told(config):
        differing = [key for key in told(config) if saved["config"].get(key) != told(config)[key]]
        raise InputError(f"{out} was trained with other settings of {', '.join(differing)}: give another --out")
    if saved["digest"] != digest(sets):
        raise InputError(f"{out} was trained on other files or labels: the label file has changed; give another --out")
    changed = [f"{key} {was}, now {where[key]}" for key, was in saved["where"].items() if was != where[key]]
    if changed and ranks.first:
        print(f"{out} goes on, but not exactly as it would have: {'; '.join(changed)}", file=sys.stderr)
    return State(**{name: saved[name] for name in KEPT} | {"where": where}, tensors=saved)


def save_state(out: Path, config: Config, state: State, model, ema, optimizer, schedule):
    """Everything that training goes on from, whole or not at all."""
    content = io.BytesIO()
    torch.save(
        {
            "config": told(config),
            **{name: getattr(state, name) for name in KEPT},
            "model": model.state_dict(),
            "ema": ema.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        },
        content,
    )
    replace_file(out / "last.pt", content.getvalue())


def save_model(
    path: Path, ema, config: Config, trained_on: Sequence[Item], record: dict, scores=None, items: Sequence[Item] = ()
):
    """The averaged weights as a checkpoint for `sama score`, calibrated on the validation set if there is one, and its
    labels do not run against the scores."""
    from sama.evaluate import calibration
    from sama.models import save_weights

    scale = config.data.scale or (f"the demo set ({config.data.demo})" if config.data.demo else "")
    scale = scale or Path(config.data.labels).stem
    metadata = {
        **asdict(config.sampling),
        "data": {"labels": scale, "files": len(trained_on), "contents": len({item.group for item in trained_on})},
        "training": {"epochs": record["epoch"] + 1, "seed": config.seed, "validation": record.get("validation")},
    }
    if config.model.kind == "image":
        metadata = {key: metadata[key] for key in ("mode", "grid", "fragment", "data", "training")}
    if scores and len(scores["scores"]) > 1:
        numbers = list(scores["scores"])
        try:
            labels = [items[number].mos for number in numbers]
            metadata["calibration"] = calibration("linear", list(scores["scores"].values()), labels, scale)
        except ValueError as error:
            print(f"{path.name} has no calibration: {error}", file=sys.stderr)
    save_weights(ema, path, metadata=metadata)


def is_best(name: str, record: dict[str, Any], history: list[dict[str, Any]]) -> bool:
    """Whether no validation on the set `name` before had a higher SROCC."""
    before = [entry["validation"][name]["srocc"] for entry in history if "validation" in entry]
    new = record["validation"][name]["srocc"]
    return not before or (new == new and not any(value >= new for value in before))


# The command line


def parser():
    from jsonargparse import ArgumentParser

    about = "Train a model. Without --config and --data.labels: the demo, which needs no data."
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    main = ArgumentParser(prog="python -m sama.train", description=about, allow_abbrev=False)
    main.add_argument("--config", action="config", help=f"a YAML file, or the name of a shipped one: {names}")
    main.add_class_arguments(Config)
    return main


def configure(arguments: Sequence[str]) -> Config:
    """The config that a command line asks for."""
    arguments = list(arguments)
    given = [argument.partition("=")[0] for argument in arguments]
    if not {"--config", "--data.labels", "--data.demo", "--print_config", "--help", "-h"} & set(given):
        arguments = ["--config", "demo", *arguments]
    for k, argument in enumerate(arguments):
        name = argument.removeprefix("--config=") if argument.startswith("--config=") else argument
        after = argument.startswith("--config=") or (k and arguments[k - 1] == "--config")
        if after and (CONFIGS / f"{name}.yaml").exists():
            shipped = str(CONFIGS / f"{name}.yaml")
            arguments[k] = f"--config={shipped}" if argument.startswith("--config=") else shipped
    main = parser()
    told = main.instantiate(main.parse_args(arguments))
    return Config(**{field.name: told[field.name] for field in dataclasses.fields(Config)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; 0 where all went well, 2 where it could not be carried out, 130 interrupted."""
    try:
        run(configure(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with --resume true goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # also a GPU out of memory, an unknown device
        print(f"sama.train: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def run(config: Config) -> list[dict[str, Any]]:
    """The runs of a config: one, or those of its sweep in turn and a table of them in `OUT/sweep.md`."""
    runs = list(sweep(config))
    reports = [train(one) for _, one in runs]
    if len(runs) > 1 and int(os.environ.get("RANK", "0")) == 0:
        write_sweep(Path(config.out), [name for name, _ in runs], reports)
    return reports


def sweep(config: Config) -> Iterator[tuple[dict[str, Any], Config]]:
    """What is particular to each run, and its config, with a folder of its own."""
    told = config.sweep
    axes = told.samplings or [None], told.split_numbers or [None], told.seeds or [None]
    for sampling, number, seed in itertools.product(*axes):
        one, name = config, {}
        if sampling is not None:
            one, name["sampling"] = dataclasses.replace(one, sampling=parse_sampling(sampling, config)), sampling
        if number is not None:
            one = dataclasses.replace(one, data=dataclasses.replace(one.data, split_number=number))
            name["split"] = number
        if seed is not None:
            one, name["seed"] = dataclasses.replace(one, seed=seed), seed
        folder = "-".join(str(value).replace(" ", "-") for value in name.values())
        yield name, dataclasses.replace(one, out=str(Path(config.out) / folder) if folder else config.out)


def parse_sampling(text: str, config: Config):
    """ "fragments", or "resize 1x1 224x224": mode, grid, fragment."""
    mode, *sizes = text.split()
    pairs = [tuple(int(part) for part in size.split("x") if part.isdigit()) for size in sizes]
    if len(pairs) not in (0, 2) or any(len(pair) != 2 for pair in pairs):
        raise InputError(f'sweep.samplings takes "mode" or "mode ROWSxCOLUMNS ROWSxCOLUMNS"; got {text!r}')
    geometry = dict(zip(("grid", "fragment"), pairs))
    return dataclasses.replace(config.sampling, mode=mode, **geometry)


if __name__ == "__main__":
    sys.exit(main())
