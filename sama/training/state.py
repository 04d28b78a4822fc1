"""The state of a run on disk, `OUT/last.pt`: everything that a resumed run needs to end with the same weights."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sama.errors import InputError
from sama.files import replace_file
from sama.labels import Item
from sama.training.config import Config, Data, LabelledSet, Model, Optim, Sampling
from sama.training.ranks import Ranks

# Settings that a resumed run may change.
RESUMABLE = frozenset(
    {"out", "device", "workers", "decoder", "checkpoint_minutes", "resume", "sweep"},
)


@dataclass
class State:
    """Resume point of a run.

    epoch, batch: the next ones, from 0 on
    history: a record for each finished epoch
    losses: of the finished batches of the current epoch
    failed: files that could not be read, and why
    digest: of all files and labels (`digest_of`)
    where: number of ranks, device type and decoder, on which the result depends to the last bit
    tensors: "model", "ema", "optimizer" and "schedule" of a checkpoint; empty for a new run
    """

    epoch: int = 0
    batch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    where: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)


TENSORS = ("model", "ema", "optimizer", "schedule")
SAVED_FIELDS = ("epoch", "batch", "history", "losses", "failed", "digest", "where")


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that a run's result depends on, as plain data."""
    return {key: value for key, value in json.loads(json.dumps(asdict(config))).items() if key not in RESUMABLE}


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a run has saved them, with the defaults of those that its version of the package did not have."""
    groups: dict[str, Any] = {"data": Data(), "model": Model(), "sampling": Sampling(), "optim": Optim()}
    defaults = {one.name: one.default for one in fields(Config) if one.default is not MISSING}
    whole = {key: value for key, value in defaults.items() if key not in RESUMABLE} | settings
    for name, group in groups.items():
        whole[name] = asdict(group) | settings.get(name, {})
    whole["data"]["tests"] = [asdict(LabelledSet("")) | test for test in whole["data"]["tests"]]
    found: dict[str, Any] = json.loads(json.dumps(whole))
    return found


def digest_of(sets: Mapping[str, Sequence[Item]]) -> str:
    """SHA-256 over the files, labels and contents of all sets, in their order."""
    entries = {name: [(item.path, item.mos, item.group) for item in items] for name, items in sets.items()}
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def read_state(out: Path, config: Config, sets: Mapping[str, Sequence[Item]], ranks: Ranks) -> State:
    """The resume point in folder `out`, or a new state where it holds no run.

    `InputError` where `out` holds a run that the config does not resume, or one of other settings, files or labels.
    """
    path = out / "last.pt"
    where = {"ranks": ranks.world_size, "device": ranks.device.type, "decoder": config.decoder}
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        return State(digest=digest_of(sets), where=where)
    if not config.resume:
        raise InputError(f"{out} holds a run already: resume it with --resume true, or give another --out")
    saved = _load(path)
    settings, before = settings_of(config), completed(saved["config"])
    if before != settings:
        differing = [key for key in settings if before.get(key) != settings[key]]
        raise InputError(f"{out} was trained with other settings of {', '.join(differing)}: give another --out")
    if saved["digest"] != digest_of(sets):
        raise InputError(f"{out} was trained on other files or labels: the label file has changed; give another --out")
    changed = [f"{key} {was}, now {where[key]}" for key, was in saved["where"].items() if was != where[key]]
    if changed and ranks.first:
        print(f"{out} is resumed, but not exactly as it would have ended: {'; '.join(changed)}", file=sys.stderr)
    return State(**{name: saved[name] for name in SAVED_FIELDS} | {"where": where}, tensors=saved)


def _load(path: Path) -> dict[str, Any]:
    """The content of a resume point; `InputError` where it is damaged or none."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if missing := {"config", *SAVED_FIELDS, *TENSORS} - {*saved}:
            raise KeyError(f"it lacks {', '.join(sorted(missing))}")
    except OSError:
        raise
    except Exception as error:  # a damaged file raises different errors at different places
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(
            f"{path} is damaged or no resume point, so the run cannot be resumed ({what}): give another --out"
        ) from error
    return saved


def save_state(
    out: Path,
    config: Config,
    state: State,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Write the resume point; `OUT/last.pt` is replaced whole or not at all."""
    content = io.BytesIO()
    torch.save(
        {
            "config": settings_of(config),
            **{name: getattr(state, name) for name in SAVED_FIELDS},
            "model": model.state_dict(),
            "ema": ema.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        },
        content,
    )
    replace_file(out / "last.pt", content.getvalue())
