"""The training loop: `train` is one straight line from a config to checkpoints and a report.

What is random depends on the seed, the place in training and, for dropout and augmentation, the rank. So a run that was
killed and resumed ends with the weights of one that was left alone: to the bit on a CPU; on a GPU some sums have no
fixed order. Batches are the same on any number of ranks.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sama.errors import InputError
from sama.evaluation import calibration
from sama.feed import Batch, Feed
from sama.kernels.layout import ceil_div
from sama.labels import Item
from sama.models import ImageQuality, VideoQuality, save_weights
from sama.models.attention import attention_for_training, choose_attention
from sama.models.precision import DTYPES, check_precision, computing
from sama.models.swin3d import lay_out
from sama.training.augment import augment, jitter, soften, thin
from sama.training.cache import CachedFeed
from sama.training.config import Config, frames_of_epoch
from sama.training.local import local_loss
from sama.training.log import Log
from sama.training.losses import image_loss, video_loss
from sama.training.ranks import Ranks, seeded
from sama.training.report import Scored, write_run_report
from sama.training.setup import (
    check_some_exist,
    datasets,
    make_feed,
    make_model,
    parameter_groups,
    start_pretrained,
    start_standardised,
    whiten,
)
from sama.training.state import read_state, save_state


def train(config: Config) -> dict[str, Any]:
    """One run: train, validate, test, report. Returns the content of `OUT/report.json` ({} on all ranks but the first).

    Leaves in `config.out`: last.pt (resume point), best.safetensors and last.safetensors (for `sama score`), events for
    TensorBoard, report.md and report.json, and a folder with a report for each set.
    """
    ranks = Ranks.join(config.device)
    check_precision(config.dtype, ranks.device, compiled=config.compile)
    out = Path(config.out)
    sets = datasets(config)
    check_some_exist(sets)
    state = read_state(out, config, sets, ranks)

    model = make_model(config).to(ranks.device)
    if not state.tensors:
        start_standardised(model, config, sets["train"])
        if config.model.pretrained:
            start_pretrained(model, config, sets["train"], ranks)
        if config.model.whiten and isinstance(model, VideoQuality):
            whiten(model, config, sets["train"], ranks)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    if config.data.fragments:  # it learns from some of the fragments that the averaged one is evaluated on
        lay_out(model, config.data.fragments)
    attention: str = config.attention
    if attention == "auto":
        attention = attention_for_training(model, DTYPES[config.dtype], ranks.device, compiled=config.compile)
    choose_attention(model, attention, ranks.device, compiled=config.compile)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.optim.weight_decay)
    feed = make_feed(config, sets["train"], ranks, name="train", train=True)
    feeds = {name: make_feed(config, items, ranks, name=name) for name, items in sets.items() if name != "train"}
    validated = [name for name in config.data.validate if name in feeds]
    steps_per_epoch = ceil_div(len(feed), config.optim.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps_per_epoch, config))
    if state.tensors:
        model.load_state_dict(state.tensors["model"])
        ema.load_state_dict(state.tensors["ema"])
        optimizer.load_state_dict(state.tensors["optimizer"])
        schedule.load_state_dict(state.tensors["schedule"])
        state.tensors = {}
    if config.compile:
        model.compile()
    some_unused = config.optim.statistics_epochs > 0
    distributed = None
    if ranks.world_size > 1:
        distributed = DistributedDataParallel(model, find_unused_parameters=some_unused)
    network = distributed or model
    log = Log(out, config, sets, feed, state.failed, quiet=not ranks.first)
    if ranks.first:
        print(describe(model, config, ranks), file=sys.stderr)

    finals: dict[str, Scored] = {}
    for epoch in range(state.epoch, config.optim.epochs):
        log.begin(epoch, state.batch, state.losses)
        model.without_tokens = ema.without_tokens = epoch < config.optim.statistics_epochs
        model.train()
        if isinstance(feed, CachedFeed):
            feed.frames = frames_of_epoch(config, epoch)
        for batch in feed.epoch(epoch, start=state.batch):
            last = batch.index + 1 == len(feed)
            stepping = last or (batch.index + 1) % config.optim.accumulate == 0
            with distributed.no_sync() if distributed and not stepping else nullcontext():
                with seeded(ranks, config.seed, epoch, batch.index), computing(config.dtype, ranks.device):
                    prediction, local = predict(network, batch, config, ranks)
                predictions, labels = ranks.gather(prediction), ranks.gather(batch.labels)
                if not predictions.isfinite().all():  # the same on all ranks; the last checkpoint stays good
                    raise InputError(
                        f"predictions are not finite in epoch {epoch + 1}, batch {batch.index + 1}: lower optim.lr"
                    )
                loss = objective(predictions, labels, config)
                if config.data.reference:  # of this rank's share: a mean over its fragments, not over all ranks'
                    loss = loss + local
                batches = batches_in_step(batch.index, len(feed), config.optim.accumulate)
                with computing(config.dtype, ranks.device, backward=True):
                    (loss * ranks.world_size / batches).backward()  # gradients are averaged over ranks
            log.batch(batch, loss, predictions, labels)
            if stepping:
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or math.inf)
                if not norm.isfinite():  # the same on all ranks; the last checkpoint stays good
                    raise InputError(
                        f"gradients are not finite in epoch {epoch + 1}, batch {batch.index + 1}: lower optim.lr"
                    )
                lr = float(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                update_ema(ema, model, config.optim.ema)
                log.step(epoch, batch, norm, lr)
                if log.checkpoint_is_due() and not last:
                    state.epoch, state.batch, state.losses = epoch, batch.index + 1, log.losses
                    save_state(out, config, state, model, ema, optimizer, schedule)
        state.epoch, state.batch, state.losses = epoch + 1, 0, []

        log.failures([failed for part in ranks.all(log.failed) for failed in part.items()])
        if sum(ranks.all(log.files)) == 0 and log.from_first_batch:
            raise InputError(f"none of the {len(sets['train'])} training files could be read: {log.first_failure()}")
        final = epoch + 1 == config.optim.epochs
        record = log.end(epoch)
        if validated and (final or (epoch + 1) % config.evaluate_every == 0):
            scored = {name: score_feed(ema, feeds[name], config, ranks) for name in validated}
            record["validation"] = {name: log.validate(epoch, name, *scored[name]) for name in validated}
            if final:
                finals = scored
            if ranks.first and is_best(validated[0], record, state.history):
                chosen = scored[validated[0]].scores, sets[validated[0]]
                save_model(out / "best.safetensors", ema, config, sets["train"], record, *chosen)
        state.history.append(record)
        if ranks.first:
            save_state(out, config, state, model, ema, optimizer, schedule)

    finals = {name: finals.get(name) or score_feed(ema, feeds[name], config, ranks) for name in feeds}
    report = {}
    if ranks.first:
        chosen = (finals[validated[0]].scores, sets[validated[0]]) if validated else ({}, [])
        save_model(out / "last.safetensors", ema, config, sets["train"], state.history[-1], *chosen)
        for scored_set in finals.values():
            log.failures(scored_set.failed)
        report = write_run_report(out, config, sets, state.history, finals, log.failed)
    ranks.leave()
    return report


def describe(model: nn.Module, config: Config, ranks: Ranks) -> str:
    """What is trained, from what, for how long and where, in a line; a warning where that takes days."""
    size, kind = config.model.size, config.model.kind
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    start = Path(config.model.weights).name if config.model.weights else "random weights"
    line = f"{size} {kind} model, {millions:.1f} M parameters, from {start}"
    line += f"; {config.optim.epochs} epochs on {ranks.device}"
    if size == "tiny" and ranks.device.type == "cpu":
        line += (
            "\nthe tiny model takes seconds for each clip on a CPU; model.size nano is for a laptop (docs/training.md)"
        )
    return line


def predict(model: nn.Module, batch: Batch, config: Config, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The scores that go into the loss, float32 [B]: of clips summed over time, as published (paper, training loss).
    And the loss of the fragments' own labels, where there are any; of such clips scores are the mean over time."""
    if batch.x is None:  # nothing could be read: the other ranks wait for this one's part all the same
        shape = (1, 3, config.sampling.clip_len, 32, 32) if config.model.kind == "video" else (1, 3, 256, 256)
        nothing = model(torch.zeros(shape, device=ranks.device)).flatten()[:0].float()
        return nothing, nothing.sum()
    x, labels, grid = batch.x, batch.local, config.sampling.grid
    if config.data.fragments:
        x, labels = thin(x, labels, grid, config.data.fragments)
        grid = config.data.fragments
    if config.data.augment:
        x, labels = augment(x, labels)
    if config.data.soften:
        x = soften(x, config.data.soften, grid)
    tokens = model(jitter(x, config.data.jitter) if config.data.jitter else x).float()
    local = tokens.new_zeros(()) if labels is None else local_loss(tokens.flatten(1), labels.flatten(1))
    if config.model.kind == "image":
        return tokens.mean(1), local
    by_time = tokens.mean((1, 3, 4))
    return by_time.sum(1) if labels is None else by_time.mean(1), local


def objective(prediction: Tensor, labels: Tensor, config: Config) -> Tensor:
    """The loss of a whole batch; zero for an empty one."""
    if not len(labels):
        return prediction.sum()
    if config.model.kind == "image":
        return image_loss(prediction, labels)
    return video_loss(prediction, labels, config.optim.rank_weight)


def batches_in_step(index: int, batches: int, accumulate: int) -> int:
    """Batches that make the optimiser's step which batch `index` of an epoch belongs to: fewer at the epoch's end."""
    return min(accumulate, batches - index // accumulate * accumulate)


def lr_factor(step: int, steps_per_epoch: int, config: Config) -> float:
    """Factor of the learning rate before step number `step`: linear warm-up, then a cosine to 0, or constant."""
    warm = config.optim.warmup_epochs * steps_per_epoch
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.optim.schedule == "constant":
        return 1.0
    total = config.optim.epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, total - warm))))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model, for every parameter."""
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in model.parameters()], 1 - decay)


@torch.inference_mode()
def score_feed(model: VideoQuality | ImageQuality, feed: Feed | CachedFeed, config: Config, ranks: Ranks) -> Scored:
    """Score all files of a feed; every rank scores its share and gets the scores of all."""
    model.eval()
    scores: dict[int, float] = {}
    failed: list[tuple[str, str]] = []
    for batch in feed.epoch():
        failed += batch.failed
        if batch.x is not None:
            with computing(config.dtype, ranks.device):
                values = model.score(batch.x).double().reshape(len(batch), -1).mean(1)
            scores.update(zip(batch.numbers.tolist(), values.tolist()))
    parts = ranks.all((scores, failed))
    merged = {number: score for part, _ in parts for number, score in part.items()}
    return Scored(dict(sorted(merged.items())), [entry for _, part in parts for entry in part])


def save_model(
    path: Path,
    ema: VideoQuality | ImageQuality,
    config: Config,
    trained_on: Sequence[Item],
    record: dict[str, Any],
    scores: dict[int, float],
    items: Sequence[Item],
) -> None:
    """Write the averaged weights as a checkpoint for `sama score`.

    record: of the epoch; scores: of a validation set, by the number of the item in `items`. The checkpoint carries a
    linear calibration to the labels of that set, unless there is none or its labels fall as scores rise.
    """
    scale = config.data.scale or (f"the demo set ({config.data.demo})" if config.data.demo else "")
    scale = scale or Path(config.data.labels).stem
    metadata = {
        **asdict(config.sampling),
        "data": {"labels": scale, "files": len(trained_on), "contents": len({item.group for item in trained_on})},
        "training": {"epochs": record["epoch"] + 1, "seed": config.seed, "validation": record.get("validation")},
    }
    if config.model.kind == "image":
        metadata = {key: metadata[key] for key in ("mode", "grid", "fragment", "data", "training")}
    if len(scores) > 1:
        try:
            labels = [items[number].mos for number in scores]
            metadata["calibration"] = calibration("linear", list(scores.values()), labels, scale)
        except InputError as error:
            print(f"{path.name} has no calibration: {error}", file=sys.stderr)
    save_weights(ema, path, metadata=metadata)


def is_best(name: str, record: dict[str, Any], history: Sequence[dict[str, Any]]) -> bool:
    """Whether this epoch's SROCC on the set `name` is higher than that of every epoch before."""
    before = [entry["validation"][name]["srocc"] for entry in history if "validation" in entry]
    new = record["validation"][name]["srocc"]
    return not before or (math.isfinite(new) and not any(value >= new for value in before))
