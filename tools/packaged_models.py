"""Calibrate, measure and package the models that `sama score` uses by default, and write their cards.

    python tools/packaged_models.py video --data v.csv --test test/labels.csv --weights runs/v/last.safetensors
    python tools/packaged_models.py video --data v.csv --test test/labels.csv   # measures the packaged one

`sama.train` and `sama corpus` make what these commands take (docs/models.md has the recipe). The model predicts VMAF:
its output is brought to VMAF's scale by a straight line, fitted on the validation split of --data and folded into the
last layer. Then all is measured on --test, whose contents come from other sources, by scoring its files with the public
API. The card says what was measured, with each bar of the project, reached or not, and so does
`bench/results/packaged-KIND.md`; the exit status is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from average import mean_of
from tqdm import tqdm

import sama
from sama.labels import Item, read_labels, with_split
from sama.metrics import bootstrap, linear_fit, metrics
from sama.model import DEFAULT_IMAGE_WEIGHTS, DEFAULT_WEIGHTS
from sama.models import build, save_weights
from sama.scoring import score_files

SCALE = {"name": "VMAF v0.6.1", "least": 0, "most": 100}
TARGETS = {"video": DEFAULT_WEIGHTS, "image": DEFAULT_IMAGE_WEIGHTS}
RESULTS = Path(__file__).parent.parent / "bench" / "results"
APART = 10  # least difference in VMAF between two versions whose order counts
TOLD, ALMOST_ALL = 5, 0.975  # least difference between versions that a comparison is to tell, and of how many pairs
TIMED = ("stutter", "freeze", "judder", "lost-h264", "lost-mpeg2")  # VMAF was not made for these: measured apart
SHARPENED = ("sharpen", "encoder+sharpen", "sharpen+jpeg", "jpeg+sharpen")
CLIPS = {"video": {"num_clips": 8, "whole_clips": True}, "image": {}}
SURE = ("blur", "defocus", "enlarged")  # kinds of which strong versions must be scored below the pristine one
STRONG = {"blur": 3.0, "defocus": 4.0, "enlarged": 3.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("video", "image"))
    parser.add_argument("--data", type=Path, required=True, help="labels of the training, with its validation split")
    parser.add_argument("--test", type=Path, required=True, help="labels of the test set")
    more = "a further test set for the table of sets, such as one of large pictures; may be repeated"
    parser.add_argument("--more", nargs=2, action="append", default=[], metavar=("NAME", "LABELS"), help=more)
    weights = "checkpoint to package, or several, whose mean it is (default: measure the packaged one)"
    parser.add_argument("--weights", type=Path, nargs="+", metavar="FILE", help=weights)
    parser.add_argument("--clips", type=int, help="clips of a video that make a score, at most")
    shares = "what each pair of frames of a clip counts, in all 1 (default: all the same)"
    parser.add_argument("--pair-weights", type=float, nargs="+", metavar="SHARE", help=shares)
    parser.add_argument("--frames", type=int, help="frames of a clip, where not those of the training")
    parser.add_argument("--notes", type=Path, help="text for the card: sources, recipe, what was tried")
    options = parser.parse_args()
    target = TARGETS[options.kind]
    validation = with_split(read_labels(options.data, label="vmaf"), "val")
    if options.weights:
        package(options, validation)
    test = read_labels(options.test, label="vmaf")
    found = {"validation": Measured(validation, predict(validation, target))}
    found["test"] = Measured(test, predict(test, target))
    for name, path in options.more:
        items = read_labels(path, label="vmaf")
        found[name] = Measured(items, predict(items, target))
    text, met = results(found)
    print(text)
    name = sama.load_model(target, device="cpu").name
    (RESULTS / f"packaged-{options.kind}.md").write_text(f"Measured by `tools/packaged_models.py`: {name}.\n\n{text}\n")
    if options.weights:
        notes = options.notes.read_text() if options.notes else ""
        target.with_suffix(".md").write_text(card(options, found, text, notes))
        print(f"{target} ({target.stat().st_size / 1e6:.1f} MB) and its card", file=sys.stderr)
    return 0 if met else 1


def package(options: argparse.Namespace, validation: list[Item]) -> None:
    """Write the packaged model: the checkpoint on VMAF's scale, by a line fitted on the validation split."""
    built = mean_of(options.weights)
    metadata = {key: value for key, value in built.metadata.items() if key not in ("calibration", "scale")}
    metadata |= CLIPS[options.kind]
    if options.clips:
        metadata["num_clips"] = options.clips
    if options.frames:
        metadata["clip_len"] = options.frames
    if options.pair_weights:
        metadata["pair_weights"] = options.pair_weights
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.safetensors"
        save_weights(built.model, raw, metadata=metadata)
        prediction = predict(validation, raw)
    slope, intercept = linear_fit([prediction[i.path] for i in validation], [i.mos for i in validation])
    if not slope > 0:
        raise RuntimeError(
            f"scores fall as VMAF rises on the validation split (slope {slope:.3g}): nothing is packaged"
        )
    head = built.model.head
    assert head is not None
    with torch.no_grad():
        head.fc_last.weight.mul_(slope)
        head.fc_last.bias.mul_(slope).add_(intercept)
    on_scale = Measured(validation, {path: slope * score + intercept for path, score in prediction.items()})
    scale = SCALE | {"noise": round(on_scale.noise, 2)}
    metadata |= {"scale": scale, "validation": {"files": len(validation), "slope": slope, "intercept": intercept}}
    save_weights(built.model, TARGETS[options.kind], metadata=metadata)


def predict(items: list[Item], weights: Path) -> dict[str, float]:
    """Scores by path."""
    rows = score_files([item.path for item in items], sama.load_model(weights), workers=os.cpu_count(), decoder="pyav")
    scores, failed = {}, []
    for row in tqdm(rows, total=len(items), desc="scoring", unit="file", leave=False, disable=None):
        if row.status == "ok" and row.score is not None:
            scores[row.path] = row.score
        else:
            failed.append(f"{row.path}: {row.reason}")
    if failed:
        raise RuntimeError(f"{len(failed)} files could not be scored: {failed[0]}")
    return scores


class Measured:
    """A labelled set and its scores. Figures are over versions that VMAF was made for, `TIMED` ones left out."""

    def __init__(self, items: list[Item], prediction: dict[str, float]) -> None:
        self.all, self.prediction = items, prediction
        self.items = [item for item in items if kind_of(item) not in TIMED]

    def arrays(self, items: Iterable[Item]) -> tuple[np.ndarray, np.ndarray]:
        chosen = [*items]
        return np.array([self.prediction[i.path] for i in chosen]), np.array([i.mos for i in chosen])

    @property
    def contents(self) -> dict[str, list[Item]]:
        groups = defaultdict(list)
        for item in self.items:
            groups[content_of(item)].append(item)
        return groups

    @property
    def srocc(self) -> tuple[float, tuple[float, float]]:
        scores, labels = self.arrays(self.items)
        interval = bootstrap(scores, labels, groups=[item.group for item in self.items], seed=0)["srocc"]
        return metrics(scores, labels).srocc, interval

    @property
    def within(self) -> float:
        by_content = [metrics(*self.arrays(items)).srocc for items in self.contents.values() if len(items) > 4]
        return float(np.nanmean(by_content))

    def margins(self, least: float) -> np.ndarray:
        """By how much each pair of versions of a content, at least `least` apart in VMAF, is in the right order;
        below 0: in the wrong one."""
        return np.array(
            [
                (self.prediction[a.path] - self.prediction[b.path]) * np.sign(a.mos - b.mos)
                for items in self.contents.values()
                for a, b in combinations(items, 2)
                if abs(a.mos - b.mos) >= least
            ]
        )

    @property
    def pairs(self) -> tuple[float, int]:
        """Share of pairs of versions of a content, `APART` apart in VMAF, in the right order, and their number."""
        margins = self.margins(APART)
        return float(np.mean(margins > 0)), len(margins)

    @property
    def noise(self) -> float:
        """How far, in `ALMOST_ALL` of the pairs of versions of a content, a difference points the wrong way at most."""
        return float(np.quantile(np.maximum(-self.margins(TOLD), 0), ALMOST_ALL))

    @property
    def rmse(self) -> float:
        scores, labels = self.arrays(self.items)
        return float(np.sqrt(np.mean((scores - labels) ** 2)))

    @property
    def pristine(self) -> list[float]:
        """Scores of the pristine versions, in rising order."""
        return sorted(self.prediction[item.path] for item in self.items if kind_of(item) == "pristine")

    def defects(self) -> list[str]:
        """Strong versions that are not scored below the pristine version of their content."""
        lines = []
        for name, items in self.contents.items():
            clean = [self.prediction[item.path] for item in items if kind_of(item) == "pristine"]
            for item in items:
                least = STRONG.get(kind_of(item))
                if (
                    clean
                    and least
                    and float(item.extra["strength"]) >= least
                    and self.prediction[item.path] >= clean[0]
                ):
                    score = self.prediction[item.path]
                    lines.append(
                        f"{name}: {kind_of(item)} {item.extra['strength']} {score:.0f}, pristine {clean[0]:.0f}"
                    )
        return lines


def kind_of(item: Item) -> str:
    return item.extra["kind"]


def content_of(item: Item) -> str:
    return item.extra.get("name", item.group)


def table(measured: Measured, key: Callable[[Item], str], title: str) -> list[str]:
    """Figures by what `key` says of a version."""
    groups = defaultdict(list)
    for item in measured.all:
        groups[key(item)].append(item)
    lines = ["", f"| {title} | files | VMAF, mean | score, mean | RMSE | SROCC |", "|---|---|---|---|---|---|"]
    for name in sorted(groups):
        scores, labels = measured.arrays(groups[name])
        srocc = f"{metrics(scores, labels).srocc:.2f}" if len(scores) > 2 else ""
        error = np.sqrt(np.mean((scores - labels) ** 2))
        mark = " (apart)" if name in TIMED else ""
        lines.append(
            f"| {name}{mark} | {len(scores)} | {labels.mean():.1f} | {scores.mean():.1f} | {error:.1f} | {srocc} |"
        )
    return lines


def results(found: dict[str, Measured]) -> tuple[str, bool]:
    """The measurements as Markdown, and whether every bar of the project is reached on the test."""
    lines = [
        "| set | files | contents | SROCC over all (95 % over masters) | within a content | pairs in order | RMSE |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, m in found.items():
        srocc, interval = m.srocc
        share, count = m.pairs
        lines.append(
            f"| {name} | {len(m.items)} | {len(m.contents)} | {srocc:.3f} ({interval[0]:.3f} to {interval[1]:.3f}) | "
            f"{m.within:.3f} | {share:.1%} of {count} | {m.rmse:.1f} |"
        )
    test = found["test"]
    spread = test.pristine[-1] - test.pristine[0]
    defects = test.defects()
    bars = {
        f"SROCC over all at least 0.75: {test.srocc[0]:.3f}": test.srocc[0] >= 0.75,
        f"SROCC within a content at least 0.85: {test.within:.3f}": test.within >= 0.85,
        f"pairs {APART} VMAF apart at least 95 % in order: {test.pairs[0]:.1%}": test.pairs[0] >= 0.95,
        f"RMSE at most 11 without a fit: {test.rmse:.1f}": test.rmse <= 11,
        f"pristine versions within 15 points: {spread:.1f}": spread <= 15,
        f"no strongly blurred or enlarged version above its pristine one: {len(defects)}": not defects,
    }
    low, middle, high = (np.percentile(test.pristine, q) for q in (0, 50, 100))
    lines += [
        "",
        "Pairs: versions of one content at least 10 points of VMAF apart. Versions with dropped, repeated or lost",
        "frames, for which VMAF was not made, are in none of these figures; the table of kinds marks them apart.",
        "",
        "| bar of the project, on the test | |",
        "|---|---|",
        *(f"| {bar} | {'reached' if met else '**missed**'} |" for bar, met in bars.items()),
        "",
        f"Pristine versions of the test are scored {low:.0f} to {high:.0f}, in the middle {middle:.0f}.",
    ]
    if defects:
        lines.append(f"Scored above their pristine version: {'; '.join(defects)}.")
    scores, labels = test.arrays(test.items)
    lines += ["", "| predicted, test | files | VMAF, mean | RMSE |", "|---|---|---|---|"]
    for least in range(0, 100, 20):
        there = (scores >= least) & (scores < least + 20 + (least == 80))
        if there.any():
            error = np.sqrt(np.mean((scores[there] - labels[there]) ** 2))
            lines.append(f"| {least} to {least + 20} | {there.sum()} | {labels[there].mean():.1f} | {error:.1f} |")
    lines += table(test, kind_of, "kind, test")
    lines += table(test, lambda item: f"{int(item.extra['width'])}x{int(item.extra['height'])}", "size, test")
    return "\n".join(lines), all(bars.values())


def card(options: argparse.Namespace, found: dict[str, Measured], text: str, notes: str) -> str:
    target = TARGETS[options.kind]
    built = build(target)
    data = built.metadata
    with open(options.data, newline="") as file:
        train = [row for row in csv.DictReader(file) if row["split"] == "train"]
    clips = (
        ""
        if options.kind == "image"
        else (f" A clip has {data['clip_len']} frames; a score is the mean over up to {data['num_clips']} clips.")
    )
    return CARD.format(
        kind=options.kind,
        network=built.model.size,
        parameters=sum(p.numel() for p in built.model.parameters()) / 1e6,
        size=target.stat().st_size / 1e6,
        mode=data["mode"],
        grid="x".join(map(str, data["grid"])),
        fragment="x".join(map(str, data["fragment"])),
        clips=clips,
        results=text,
        train=len(train),
        contents=len({row.get("name", row["content"]) for row in train}),
        validation=len(found["validation"].all),
        epochs=data["training"]["epochs"],
        seed=data["training"]["seed"],
        notes=notes,
    )


CARD = """# The packaged {kind} model

What `sama score` uses for {kind}s without `--weights`: a {network} Swin ({parameters:.1f} million
parameters, {size:.1f} MB) on {grid} fragments of {fragment} pixels, mode `{mode}`, with one value for each
fragment.{clips}

**A score is a prediction of VMAF v0.6.1, 0 to 100, without the reference.** VMAF was fitted to people's votes on
compressed and scaled video: 95 is as good as undegraded, 70 is visibly worse, 30 is bad. It says how much of a master's
detail was lost, not how beautiful the master is. Nobody's votes were used here.

**Not for** opinions of people on content, exposure, colour or focus; for screen content and drawings, of which the
training has little; and for comparison with scores of SAMA, FAST-VQA or DOVER, for which give `--weights`.

## How well

The test's contents come from other sources than the training's. Choices were made on the validation split.
`python tools/packaged_models.py` wrote what follows.

{results}

## Data and recipe

{train} versions of {contents} contents for training, {validation} files for validation, made by `sama corpus` and
labelled with VMAF v0.6.1; {epochs} epochs, seed {seed}, the averaged weights.

{notes}
"""


if __name__ == "__main__":
    sys.exit(main())
