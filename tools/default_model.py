"""Measure a model that was trained on the demo set, and package it as the one that `sama score` uses by default.

    python -m sama.train --config default                        # trains it
    python tools/default_model.py runs/default/last.safetensors  # measures and packages it, with its card
    python tools/default_model.py                                # measures the packaged one, and leaves it as it is

Everything is measured by scoring files with the public API: the demo's test split, whose contents, strengths and some
kinds of degradation the model has not seen, and six further collages of the training photographs, up to 1920x1080. The
demo's set is made first if it is not there (9 GB). The exit status is 1 where a bar of the project is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

import sama
from sama.corpus.degrade import UNSEEN
from sama.corpus.make import Settings, make
from sama.corpus.sources import ALL_CONTENTS, PACKAGES, SOURCES, SPLITS
from sama.evaluation import calibration, srocc_by_content
from sama.labels import Item, read_labels, with_split
from sama.metrics import bootstrap, metrics
from sama.model import DEFAULT_WEIGHTS
from sama.models import build, save_weights
from sama.scoring import score_files
from sama.training.report import with_pristine

BARS = {"seen": 0.85, "unseen": 0.6}  # mean SROCC within a content: over all kinds trained on; of each other kind
LARGE = Settings(tuple(f"large-collage-{n}" for n in range(900, 906)))
APART = 10  # least difference in label points between two versions whose order counts
CARD = DEFAULT_WEIGHTS.with_suffix(".md")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "weights", type=Path, nargs="?", help="checkpoint to package (default: measure the packaged one)"
    )
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data-full"), help="the demo set, made if need be")
    options = parser.parse_args()
    items = read_labels(make(options.data, size="full"))
    large = read_labels(make(f"{options.data}-large", size=LARGE))
    if options.weights:
        package(options.weights, with_split(items, "val"))
    found = {"test": measure(with_split(items, "test")), "large": measure(large)}
    text = results(found)
    print(text)
    if options.weights:
        CARD.write_text(card(items, text))
        print(f"{DEFAULT_WEIGHTS} ({DEFAULT_WEIGHTS.stat().st_size / 1e3:.0f} kB), {CARD}", file=sys.stderr)
    return 0 if all(reached(found["test"]).values()) else 1


def package(weights: Path, validation: list[Item]):
    """Write the packaged model: the checkpoint, scoring up to four whole clips, calibrated on the validation set."""
    built = build(weights)
    metadata = built.metadata | {"num_clips": 4, "whole_clips": True}
    with tempfile.TemporaryDirectory() as folder:
        uncalibrated = Path(folder) / "uncalibrated.safetensors"
        save_weights(built.model, uncalibrated, metadata=metadata)
        prediction = predict(validation, uncalibrated)
    scores, labels = [prediction[item.path] for item in validation], [item.mos for item in validation]
    metadata["calibration"] = calibration("logistic", scores, labels, "demo")
    DEFAULT_WEIGHTS.parent.mkdir(exist_ok=True)
    save_weights(built.model, DEFAULT_WEIGHTS, metadata=metadata)


def predict(items: list[Item], weights: Path = DEFAULT_WEIGHTS) -> dict[str, float]:
    """Scores by path."""
    model = sama.load_model(weights)
    rows = score_files([item.path for item in items], model, workers=os.cpu_count())
    scores, failed = {}, []
    for row in tqdm(rows, total=len(items), desc="scoring", unit="file", leave=False, disable=None):
        if row.status == "ok" and row.score is not None:
            scores[row.path] = row.score
        else:
            failed.append(f"{row.path}: {row.reason}")
    if failed:
        raise RuntimeError(f"{len(failed)} files could not be scored: {failed[0]}")
    return scores


@dataclass(frozen=True)
class Found:
    """What was measured on a set.

    sizes: the smallest and the largest, width x height
    srocc, interval: SROCC over all files of the kinds trained on, and its 95 % interval over contents
    within: the same SROCC within each content
    pairs: share of pairs of versions of a content, labels `APART` apart, in the right order
    kinds: SROCC of a content's pristine version and those of a kind, mean over contents
    """

    files: int
    contents: int
    sizes: str
    srocc: float
    interval: tuple[float, float]
    within: dict[str, float]
    pairs: float
    kinds: dict[str, float]


def measure(items: list[Item]) -> Found:
    prediction = predict(items)
    seen = [item for item in items if item.extra["kind"] not in UNSEEN]
    contents = {item.group for item in items}
    kinds = sorted({item.extra["kind"] for item in items} - {"pristine"})
    pairs = [
        (prediction[a.path] - prediction[b.path]) * (a.mos - b.mos) > 0
        for a, b in combinations(items, 2)
        if a.group == b.group and abs(a.mos - b.mos) >= APART
    ]
    scores, labels = [prediction[item.path] for item in seen], [item.mos for item in seen]
    interval = bootstrap(scores, labels, groups=[item.group for item in seen], seed=0)["srocc"]
    sizes = sorted({(ALL_CONTENTS[name].width, ALL_CONTENTS[name].height) for name in contents}, key=np.prod)
    return Found(
        len(items),
        len(contents),
        f"{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}",
        metrics(scores, labels).srocc,
        interval,
        srocc_by_content(seen, prediction),
        float(np.mean(pairs)),
        {kind: mean(srocc_by_content(with_pristine(items, kind), prediction, least=2)) for kind in kinds},
    )


def reached(test: Found) -> dict[str, bool]:
    """Whether each bar of the project was reached, by its description; NaN reaches none."""
    new = {kind: value for kind, value in test.kinds.items() if kind in UNSEEN}
    within = {f"{BARS['seen']} within a content": mean(test.within) >= BARS["seen"]}
    return within | {f"{BARS['unseen']} on {kind}": value >= BARS["unseen"] for kind, value in new.items()}


def mean(values: dict[str, float]) -> float:
    return float(np.mean([*values.values()]))


def results(found: dict[str, Found]) -> str:
    """The measurements as Markdown."""
    test, large = found["test"], found["large"]
    lines = [
        "| | files | contents | sizes | SROCC (95 % over contents) | SROCC within a content | pairs in order |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, f in {"test split": test, "new collages of the training photographs": large}.items():
        interval = "{:.3f} to {:.3f}".format(*f.interval)
        lines.append(
            f"| {name} | {f.files} | {f.contents} | {f.sizes} | {f.srocc:.3f} ({interval}) | {mean(f.within):.3f} | "
            f"{f.pairs:.1%} |"
        )
    bars = "; ".join(f"{bar} {'reached' if met else 'MISSED'}" for bar, met in reached(test).items())
    worst_first = sorted(test.within.items(), key=lambda entry: entry[1])
    lines += [
        "",
        "SROCC is with the measured label, over the kinds trained on; within a content: all strengths and kinds",
        "trained on together, mean over contents. Pairs: versions of a content, of any kind, whose labels are",
        f"{APART} of 100 points or more apart.",
        "",
        f"Bars of the project: {bars}.",
        "Within each content of the test: " + ", ".join(f"{name} {value:.2f}" for name, value in worst_first) + ".",
        "",
        "| kind | trained on | SROCC within a content |",
        "|---|---|---|",
    ]
    for kind, value in test.kinds.items():
        lines.append(f"| {kind} | {'no' if kind in UNSEEN else 'yes'} | {value:.3f} |")
    lines += ["", "Of a kind: the order of a content's pristine version and its two degraded ones of that kind."]
    return "\n".join(lines)


def card(items: list[Item], text: str) -> str:
    built = build(DEFAULT_WEIGHTS)
    metadata, counts = built.metadata, {split: len(with_split(items, split)) for split in SPLITS}
    sources = defaultdict(list)
    for name, source in SOURCES.items():
        package = PACKAGES.get(source.package, source.package)
        where = f"{source.file} of {package}; " if package else ""
        sources[source.split].append(f"- `{name}`: {where}{source.license}")
    return CARD_TEXT.format(
        parameters=sum(p.numel() for p in built.model.parameters()) / 1e3,
        results=text,
        contents=len({item.group for item in with_split(items, "train")}),
        sources="\n\n".join(f"{split}:\n\n" + "\n".join(sources[split]) for split in SPLITS),
        epochs=metadata["training"]["epochs"],
        seed=metadata["training"]["seed"],
        top=metadata["calibration"]["beta"][0],
        bottom=metadata["calibration"]["beta"][1],
        **counts,
        **{key: metadata[key] for key in ("clip_len", "mode", "num_clips")},
        **{key: "x".join(map(str, metadata[key])) for key in ("grid", "fragment")},
    )


CARD_TEXT = """# The default model

What `sama score` uses without `--weights`: a nano model without its Swin backbone, that is the scene statistics
alone (`SceneStatistics` in `models/statistics.py`): means and deviations of the log strengths of 96 components of
patches in three ranges of scales, how far the fragments lie apart, how much neighbouring frames differ, and a network
of three layers over them; {parameters:.0f} thousand parameters. It reads a clip of {clip_len} frames as {grid}
fragments of {fragment} pixels, mode `{mode}`. A score is the mean over up to {num_clips} clips of a video.

**For** putting versions of the same video in order (encodes, filters, sizes), and for finding those that are badly
blurred, noisy, enlarged, jerky or compressed. It works offline, on a CPU.

**Not for** opinions of people. Nobody voted: labels were measured against undegraded originals. So aesthetics,
exposure, colour, focus and content do not count, and what happened before an original was stored is unknown to it.
Between videos of different contents its scores are less certain than between versions of one (see the table). A video
of fewer than 63 frames is filled up with its last one, which this model takes for a fault. Scores cannot be compared
with published scores of SAMA, FAST-VQA or DOVER: for those give `--weights`. It is for videos, not for images.

## How well

The test split holds contents and strengths that it was not trained on, and three kinds of degradation, marked "no".
`python tools/default_model.py` measures it again.

{results}

## Data

{train} clips of {contents} contents for training, {val} for validation, {test} for the test, of 64 frames each, made by
`sama demo-data --size full`: photographs and clips that packages ship, and collages of pieces of the training
photographs between synthetic shapes, those to train on filmed as by cameras of all kinds (soft, sharpened, grainy,
pale, lightly compressed), then degraded by codecs and filters at graded strengths. The label, 0 to 100, is measured:
`sqrt((1 - MS-SSIM) * GMSD)` against the original, relative to what fixed degradations give on the same content, and
the delay of dropped frames (`sama/corpus/label.py`).

{sources}

## Recipe

`python -m sama.train --config default`: {epochs} epochs, seed {seed}, the averaged weights of the last epoch; all
settings are in `sama/configs/default.yaml`. Then `python tools/default_model.py runs/default/last.safetensors`, which
wrote this card. The `mos` that the command prints is the score on the labels' scale, by a logistic curve fitted on the
validation split; it runs from {bottom:.0f} to {top:.0f}.
"""


if __name__ == "__main__":
    sys.exit(main())
