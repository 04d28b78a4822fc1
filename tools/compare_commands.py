"""Cases of `compare_versions.py` that use the command lines: scores, reports, tables, training, and what feeds it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_cases import safetensors_file
from compare_worker import CROSS, Failure, Places, Text, attempt, case, collect, home
from PIL import Image

TIMES = ("seconds", "clips_per_second", "waiting")  # entries that are never the same twice

# Commands


class Interrupted(io.StringIO):
    """Standard output; Ctrl-C as soon as a text is written to it."""

    def __init__(self, at: str = ""):
        super().__init__()
        self.at = at

    def write(self, text: str) -> int:
        if self.at and self.at in text:
            raise KeyboardInterrupt
        return super().write(text)


def command(main: Callable, *arguments, interrupt_at: str = "") -> Iterator[tuple[str, Any]]:
    """Run a command in this process: its status, what it prints, and its message where it cannot be carried out."""
    said, warned = Interrupted(interrupt_at), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(warned):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code
    if status not in (0, 1, 2, 130):
        raise AssertionError(f"{arguments}: {status = }")
    yield "status", status
    yield "text", Text(said.getvalue())
    if status == 2:
        yield "message", Failure(Exception(warned.getvalue()))


def sama_command(*arguments, **settings) -> Iterator[tuple[str, Any]]:
    from sama import cli

    device = () if arguments[0] in ("weights", "data", "--version") else ("--device", "cpu")
    return command(cli.main, *arguments, *device, **settings)


def named(prefix: str, entries: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    return ((f"{prefix}/{name}", value) for name, value in entries)


def table(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a table of scores, without the time they took; reasons are words."""
    text = path.read_text()
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
    else:
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    for row in rows:
        name = Path(row["path"]).name
        yield f"{name}/reason", Text(row["reason"])
        yield name, {key: value for key, value in row.items() if key not in ("seconds", "reason")}
    yield "order", [row["path"] for row in rows]


@case("commands/score")
def commands_score(at: Places):
    videos, images = at.media / "videos", at.media / "images"
    for form in ("csv", "jsonl", "json"):
        out = at.out / f"scores.{form}"
        yield from named(form, sama_command("score", videos, "--out", out, "--workers", 2, "--batch", 3))
        yield from named(f"{form}/table", table(out))
    yield from named("again", sama_command("score", videos, "--out", out))
    out = at.out / "every.csv"
    yield from named("every", sama_command("score", videos / "h264.mp4", videos / "hd.mp4", "--every", 0.7, "-o", out))
    yield from named("every/table", table(out))
    out = at.out / "images.csv"
    few = [images / name for name in ("plain.jpg", "deep.png", "wide.png", "broken.png")]
    yield from named("images", sama_command("score", *few, "--random-weights", "--dtype", "bfloat16", "--out", out))
    yield from named("images/table", table(out))
    yield from named("mode", sama_command("score", videos / "vp9.webm", "--mode", "fragments"))
    for wrong in (
        ("nowhere.mp4",),
        (videos, "--workers", 0),
        (videos, "--decoder", "none"),
        (images,),
        (videos, "--resume"),
    ):
        yield from named(f"wrong {[Path(str(part)).name for part in wrong]}", sama_command("score", *wrong))


FEW = ("422.mp4", "444.mp4", "h264.mp4", "cut.mp4", "turned.mp4", "vp9.webm")


@case("commands/resume")
def commands_resume(at: Places):
    """Tables of some of the files: `commands_resume_other` goes on with a finished one and an interrupted one."""
    files = [at.media / "videos" / name for name in FEW]
    said = collect(sama_command, "score", *files, "--out", at.out / "whole.csv")
    for name in ("begun", "cut-off"):
        yield f"{name}/status", said["status"]
        yield from named(f"{name}/table", table(at.out / "whole.csv"))
    collect(sama_command, "score", *files[:3], "--out", at.out / "begun.csv")
    interrupted = collect(sama_command, "score", *files, "-o", at.out / "cut-off.csv", interrupt_at="cut.mp4")
    assert interrupted["status"] == 130
    assert (at.out / "cut-off.csv.partial").exists()


@case("commands/resume", CROSS)
def commands_resume_other(at: Places):
    files = [at.media / "videos" / name for name in FEW]
    for name in ("begun", "cut-off"):
        for path in at.other.glob(f"{name}.csv*"):
            shutil.copy(path, at.out)
        said = collect(sama_command, "score", *files, "-o", at.out / f"{name}.csv", "--resume")
        yield f"{name}/status", said["status"]
        yield from named(f"{name}/table", table(at.out / f"{name}.csv"))


@case("commands/evaluate")
def commands_evaluate(at: Places):
    folder = at.media / "labels"
    given = ("--predictions", folder / "scores.csv", "--by", "kind", "--splits", 4, "--samples", 200)
    runs = {"predictions": (folder / "marked.csv", folder, *given), "scoring": (folder / "clips.csv", folder)}
    runs["split"] = (folder / "clips.csv", folder, "--split", "train")
    save = ("--calibrate", "logistic", "--scale", "a set", "--save", at.out / "calibrated.safetensors")
    runs["calibrate"] = (folder / "four-columns.txt", folder, *save)
    for name, arguments in runs.items():
        out = at.out / name
        yield from named(name, sama_command("evaluate", *arguments, "--out", out))
        if (out / "report.json").exists():
            yield f"{name}/report.json", json.loads((out / "report.json").read_text())
            yield f"{name}/report.md", Text((out / "report.md").read_text())
            yield f"{name}/scatter.png", np.asarray(Image.open(out / "scatter.png"))
    if (at.out / "calibrated.safetensors").exists():
        yield from safetensors_file(at.out / "calibrated.safetensors")
    yield from named("column", sama_command("evaluate", folder / "clips.csv", folder, "--by", "nothing"))


@case("commands/others")
def commands_others(at: Places):
    """`sama data check`, `sama weights`, `sama inspect`."""
    folder = at.media / "labels"
    for name in ("clips.csv", "mistakes.csv", "four-columns.txt", "photographs.csv", "nowhere.csv"):
        yield from named(f"check-{name}", sama_command("data", "check", folder / name, folder))
    for path in sorted((at.media / "checkpoints").iterdir()):
        if "image" not in path.name:
            yield from named(f"weights-{path.name}", sama_command("weights", path))
    videos, images, checkpoints = (at.media / name for name in ("videos", "images", "checkpoints"))
    pages = {videos / "h264.mp4": (), videos / "cut.mp4": (), images / "plain.jpg": ("--random-weights",)}
    pages[videos / "turned.mp4"] = ("--weights", checkpoints / "FAST_VQA_B_1_4.pth", "--every", 60)
    for path, settings in pages.items():
        out = at.out / f"{path.name}.png"
        yield from named(f"inspect-{path.name}", sama_command("inspect", path, "--out", out, *settings))
        if out.exists():
            yield f"inspect-{path.name}/pixels", np.asarray(Image.open(out))


# Training and its data

SMALL = {
    "model.size": "nano",
    "sampling.grid": "[2,2]",
    "sampling.fragment": "[16,16]",
    "sampling.clip_len": 4,
    "sampling.interval": 1,
    "sampling.num_clips": 2,
    "optim.batch": 3,
    "optim.epochs": 2,
    "device": "cpu",
    "workers": 1,
    "checkpoint_minutes": 0,
}
RUNS = {
    "plain": {},
    "all": {
        **{"optim.statistics_epochs": 1, "model.whiten": True, "data.augment": True, "optim.accumulate": 2},
        **{"optim.clip_norm": 1.0, "model.drop_path": 0.2, "model.scale_bias": True, "model.scale_excitation": True},
        **{"dtype": "bfloat16", "data.split": "protocol", "data.split_number": 3, "sampling.mode": "sama-spm"},
    },
    "image": {
        **{"model.kind": "image", "sampling.grid": "[8,8]", "sampling.fragment": "[32,32]", "data.standardise": True},
        **{"optim.schedule": "constant", "data.augment": True, "optim.epochs": 1},
    },
}


def training_command(at: Places, name: str, out: Path, **changes) -> Iterator[tuple[str, Any]]:
    labels = at.media / "labels" / ("photographs.csv" if name == "image" else "clips.csv")
    settings = {"data.labels": labels, "out": out, **SMALL, **RUNS[name], **changes}
    main = importlib.import_module("sama.train").main
    pairs = ((f"--{key}", json.dumps(value) if isinstance(value, bool) else value) for key, value in settings.items())
    return command(main, *itertools.chain(*pairs))


def trained(out: Path) -> Iterator[tuple[str, Any]]:
    """What a run leaves: weights, metadata, the state to go on from, reports without times."""
    from safetensors.torch import load_file

    read_metadata = home("read_metadata", "sama.models")
    for file in ("last.safetensors", "best.safetensors"):
        if (out / file).exists():
            yield f"{file}/metadata", timeless(read_metadata(out / file))
            yield from named(file, iter(load_file(out / file).items()))
    state = torch.load(out / "last.pt", weights_only=True)
    for part in ("model", "ema", "optimizer", "schedule"):
        yield from named(f"last.pt/{part}", flat(state[part]))
    for path in sorted(out.rglob("report.json")):
        report = timeless(json.loads(path.read_text()))
        report.pop("config", None)
        yield str(path.relative_to(out)), report | ({"title": ""} if "title" in report else {})


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{prefix}.{key}")
    else:
        yield prefix, value


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


@case("training/runs")
def training_runs(at: Places):
    """Whole runs; and runs that are stopped before a step, which `training_resumed` goes on with."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    for name in RUNS:
        yield from named(name, training_command(at, name, at.out / name))
        yield from named(name, trained(at.out / name))
    for name, place in {"plain": 4, "all": 2}.items():  # within the second epoch, and at its start
        steps = itertools.count(1)

        def stop(optimizer, arguments, settings, steps=steps, place=place):
            if next(steps) == place:
                raise KeyboardInterrupt

        handle = register_optimizer_step_pre_hook(stop)
        said = collect(training_command, at, name, at.out / f"stopped-{name}")
        handle.remove()
        assert said["status"] == 130, f"{name} was not stopped"
        state = torch.load(at.out / f"stopped-{name}" / "last.pt", weights_only=True)
        yield f"stopped-{name}/place", {key: state[key] for key in ("epoch", "batch", "losses", "failed")}


@case("training/runs", CROSS)
def training_resumed(at: Places):
    for name in ("plain", "all"):
        out = at.out / f"resumed-{name}"
        shutil.copytree(at.other / f"stopped-{name}", out)
        yield from named(name, training_command(at, name, out, resume=True))
        yield from named(name, trained(out))


@case("training/configs")
def training_configs(at: Places):
    """Every shipped config as the command line reads it."""
    import yaml

    sama = importlib.import_module("sama")
    main = importlib.import_module("sama.train").main
    for path in sorted((Path(sama.__file__).parent / "configs").glob("*.yaml")):
        said = collect(command, main, "--config", path.stem, "--print_config")
        yield path.stem, yaml.safe_load(said["text"]) or said["text"]
    labels = at.media / "labels" / "clips.csv"
    (at.out / "last.pt").touch()  # as if a run were in the folder
    wrong = {"optim.epochs": 0, "optim.nothing": 1, "data.validate": "[else]", "out": at.out, "dtype": "int"}
    for name, value in wrong.items():
        given = ("--data.labels", labels, "--device", "cpu", "--out", at.out / "wrong", f"--{name}", value)
        yield from named(f"wrong {name}", command(main, *given))


@case("labels")
def labels(at: Places):
    modules = "sama.labels", "sama.data"
    read_labels, protocol_split = home("read_labels", *modules), home("protocol_split", *modules)
    for path in sorted((at.media / "labels").glob("*.*")):
        if path.suffix in (".csv", ".txt"):
            items = attempt(read_labels, path, path.parent)
            failed = isinstance(items, Failure)
            yield path.name, items if failed else [dataclasses.asdict(item) for item in items]
            for k in range(0 if failed else 3):
                yield f"{path.name}/split-{k}", [[item.path for item in part] for part in protocol_split(items, k)]


@case("demo-set")
def demo_set(at: Places):
    """Contents of the demo set, and each degradation of one of them."""
    rooms = ("sources", "camera", "codec", "degrade", "label", "make")
    modules = ("sama.demo", *(f"sama.corpus.{room}" for room in rooms))
    contents, kinds = home("CONTENTS", *modules), home("KINDS", *modules)
    geometry = ("name", "source", "width", "height", "region", "scale", "shot")
    yield "contents", {name: [getattr(content, key) for key in geometry] for name, content in contents.items()}

    def pristine(name: str, num_frames: int):
        content = contents[name]
        if hasattr(content, "pristine"):
            return content.pristine(num_frames)
        return home("pristine", *modules)(content, num_frames)  # version 0.1.0

    for name in [*contents][::7]:
        yield f"pristine/{name}", pristine(name, 3)
    measure, quality = home("measure", *modules), home("quality", *modules)
    frames = pristine("astronaut", 8)
    for name, kind in kinds.items():
        stream = kind.apply(frames, kind.strength(0.6, "val"), "astronaut")
        shown = getattr(stream, "frames", stream)
        yield f"{name}/frames", shown
        yield f"{name}/settings", list(stream[1:]) if isinstance(stream, tuple) else []
        if shown.shape == frames.shape:
            yield f"{name}/label", [*measure(frames, shown), quality(measure(frames, shown), 0.1)]
